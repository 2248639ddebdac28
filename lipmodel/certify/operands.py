"""What the operators of the exact checker work on: stored tensors, tensors that move with the input, and nodes.

A constant is an array of what is stored (float64, int64, bool), or of rational numbers where a graph computes it: the
function of a network is the one in real arithmetic, so nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from lipmodel.certify.intervals import Known, ends, known
from lipmodel.certify.tape import Entry, Fixed, Sparse, Tape, Unreadable, selection

Array = np.ndarray[Any, np.dtype[Any]]

ROUND_BITS = 160
"""Places after the binary point to which what is not dyadic is enclosed, relative to its size."""
MAX_TENSOR = 5_000_000

_STORED: dict[int, tuple[str, str]] = {
    1: ("<f4", "float_data"),
    2: ("<u1", "int32_data"),
    3: ("<i1", "int32_data"),
    4: ("<u2", "int32_data"),
    5: ("<i2", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("<u1", "int32_data"),
    10: ("<u2", "int32_data"),
    11: ("<f8", "double_data"),
    12: ("<u4", "uint64_data"),
    13: ("<u8", "uint64_data"),
    16: ("<u2", "int32_data"),
}
"""By the numbers of ONNX's TensorProto.DataType: how an entry is stored as bytes, and in which field otherwise."""
FLOAT, INT64, BOOL, FLOAT16, DOUBLE, UINT64, BFLOAT16 = 1, 7, 9, 10, 11, 13, 16
HOLDS = {
    FLOAT16: (FLOAT16,),
    BFLOAT16: (BFLOAT16,),
    FLOAT: (FLOAT16, BFLOAT16, FLOAT),
    DOUBLE: (FLOAT16, BFLOAT16, FLOAT, DOUBLE),
}
"""The floating types, and those of which each has all numbers."""
NARROW: dict[int, Any] = {FLOAT16: np.float16, FLOAT: np.float32, DOUBLE: np.float64}
"""The floating types that numpy has."""


@dataclass(frozen=True, slots=True, eq=False)
class Moving:
    """A tensor that may depend on the input: a step of the tape, in some shape."""

    step: int
    shape: tuple[int, ...]

    @property
    def at(self) -> Array:
        """The position of every entry in the flat vector."""
        return np.arange(prod(self.shape)).reshape(self.shape)


Value = Moving | Array
"""A moving tensor, or a constant one."""
Interval = Known | tuple[Fraction, Fraction]
"""A number, exact or between two."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node: its name, inputs (None where one is left out), attributes with defaults, and the tape.

    types: the element type of every input, as ONNX numbers them; outputs: how many there are; alone: whether nothing
    else in the file reads the first input.
    """

    name: str
    op: str
    opset: int
    inputs: tuple[Value | None, ...]
    attributes: dict[str, Any]
    tape: Tape
    types: tuple[int, ...] = ()
    outputs: int = 1
    alone: bool = False

    def value(self, port: int) -> Value:
        value = self.inputs[port]
        if value is None:
            raise Unreadable(f"the operator {self.op} without input {port}")
        return value

    def moving(self, port: int) -> Moving:
        """An input as a step of the tape, constant or not."""
        value = self.value(port)
        return value if isinstance(value, Moving) else Moving(self.tape.still(value.size, constant(value)), value.shape)

    def fixed(self, port: int, kinds: str = "fO") -> Array:
        """A constant input: floating ("fO"), whole ("i") or logical ("b")."""
        value = self.value(port)
        if isinstance(value, Moving) or value.dtype.kind not in kinds:
            raise Unreadable(f"the operator {self.op} with an input {port} that is not a constant of the usual kind")
        return value

    def given(self, port: int) -> bool:
        return port < len(self.inputs) and self.inputs[port] is not None

    def apply(self, x: Moving, map: Sparse, shape: tuple[int, ...], *, shift: Fixed | None = None) -> Moving:
        """map x + shift."""
        return Moving(self.tape.linear(x.step, map, shift=shift), shape)

    def weighted(
        self,
        x: Moving,
        weights: Array,
        which: Array,
        rows: Array,
        columns: Array,
        shape: tuple[int, ...],
        shift: Fixed | None = None,
    ) -> Moving:
        """Entry rows_i of the result has weight number which_i times entry columns_i of x; plus shift."""
        used = (weights.ravel() != 0)[which]
        if self.tape.entries + np.count_nonzero(used) > self.tape.limit:
            raise Unreadable("too many weights to be read a second time")
        map = matrix(weights, which[used], rows[used], columns[used], (prod(shape), prod(x.shape)))
        return self.apply(x, map, shape, shift=shift)

    def select(self, x: Moving, at: Array) -> Moving:
        """The entries of x at these positions, in the shape of `at`."""
        if at.size == prod(x.shape) and bool(np.all(at.ravel() == np.arange(at.size))):
            return Moving(x.step, at.shape)
        return self.apply(x, selection(at.ravel().tolist(), prod(x.shape)), at.shape)

    def broadcast(self, x: Moving, shape: tuple[int, ...]) -> Moving:
        return self.select(x, np.broadcast_to(x.at, shape))

    def scale(self, x: Moving, factors: Sequence[Interval], shift: Fixed | None = None) -> Moving:
        """x times one number per entry, each exact or an enclosure, plus shift."""
        entries, exponent = enclosed(factors)
        if shift is None and all(e == (1 << exponent, 0) for e in entries):
            return x
        rows = [{i: e} if e != (0, 0) else {} for i, e in enumerate(entries)]
        return self.apply(x, Sparse(len(rows), exponent, rows), x.shape, shift=shift)


Handler = Callable[[Node], Value | list[Value]]
"""From a node to its first output, or to a list of outputs."""


def positions(value: Value) -> Array:
    """The position of every entry in the flat tensor."""
    return value.at if isinstance(value, Moving) else np.arange(value.size).reshape(value.shape)


def moved(node: Node, x: Value, at: Array) -> Value:
    """The entries of x at these positions, in the shape of `at`."""
    return node.select(x, at) if isinstance(x, Moving) else np.asarray(x.ravel()[at])


def rational(values: Array) -> Array:
    """The same numbers as fractions."""
    result = np.empty(values.shape, dtype=object)
    result[...] = np.reshape([Fraction(v) for v in values.ravel().tolist()], values.shape)
    return result


def reals(values: Array) -> Array:
    """The same numbers, exact ones as fractions, others as they are enclosed."""
    result = np.empty(values.size, dtype=object)
    result[:] = [known(v) for v in values.ravel().tolist()]
    return result.reshape(values.shape)


def enclosed(numbers: Sequence[Interval | float]) -> tuple[list[Entry], int]:
    """Integers with radii over one power of two; dyadic numbers without an error."""
    pairs = [v if isinstance(v, tuple) else ends(v) for v in numbers]
    ratios = [(low.as_integer_ratio(), high.as_integer_ratio()) for low, high in pairs]
    exponent = 0
    for n, d in {ratio for pair in ratios for ratio in pair}:
        exact = d & (d - 1) == 0
        exponent = max(exponent, d.bit_length() - 1 if exact else ROUND_BITS - n.bit_length() + d.bit_length())
    result = []
    for (n, d), (p, q) in ratios:
        low, high = (n << exponent) // d, -(-(p << exponent) // q)
        middle = (low + high) // 2
        result.append((middle, high - middle))
    return result, exponent


def integers(values: Array) -> tuple[list[Entry], int]:
    """The numbers of a constant tensor, flat, as integers with radii over one power of two."""
    flat = values.ravel()
    if flat.dtype.kind != "f":
        return enclosed(flat.tolist())
    fractions, powers = np.frexp(flat)
    mantissas = (fractions * 2.0**53).astype(np.int64)
    zeros = np.frexp((mantissas & -mantissas).astype(np.float64))[1] - 1  # at the end of a mantissa in binary
    places = np.where(flat != 0.0, 53 - powers - zeros, 0)
    exponent = max(0, int(places.max(initial=0)))
    shifts = (powers - 53 + exponent).tolist()
    pairs = zip(mantissas.tolist(), shifts, strict=True)
    return [(m << s if s >= 0 else m >> -s, 0) for m, s in pairs], exponent


def constant(values: Array) -> Fixed:
    """The numbers of a constant tensor, flat."""
    return Fixed(*integers(values))


def matrix(weights: Array, which: Array, rows: Array, columns: Array, shape: tuple[int, int]) -> Sparse:
    """The matrix with weight number which_i of `weights` in place (rows_i, columns_i); every place is named once."""
    entries, exponent = integers(weights)
    table: list[dict[int, Entry]] = [{} for _ in range(shape[0])]
    for k, i, c in zip(which.tolist(), rows.tolist(), columns.tolist(), strict=True):
        table[i][c] = entries[k]
    return Sparse(shape[1], exponent, table)


def tensor(proto: Any) -> Array:
    """A stored tensor as float64, int64 or bool, exactly. Raises Unreadable."""
    kind, count = proto.data_type, prod(proto.dims)
    if kind not in _STORED or proto.data_location or proto.HasField("segment"):
        raise Unreadable("external data, or a tensor of an unusual type")
    if count > MAX_TENSOR or min(proto.dims, default=0) < 0:
        raise Unreadable("a tensor that is too large")
    dtype, field = np.dtype(_STORED[kind][0]), _STORED[kind][1]
    values = np.frombuffer(proto.raw_data, dtype) if proto.HasField("raw_data") else np.array(getattr(proto, field))
    fits = kind != UINT64 or not np.any(values.astype(np.uint64) >> np.uint64(63))
    if values.size != count or not fits or not np.array_equal(values, values.astype(dtype)):
        raise Unreadable("a tensor whose data does not fit its shape or type")
    values = values.astype(dtype)
    if kind == FLOAT16:
        values = values.view(np.float16)
    elif kind == BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    if kind not in HOLDS:
        return values.reshape(tuple(proto.dims)).astype(bool if kind == BOOL else np.int64)
    if not np.all(np.isfinite(values)):
        raise Unreadable("a weight that is not finite")
    return values.reshape(tuple(proto.dims)).astype(np.float64)
