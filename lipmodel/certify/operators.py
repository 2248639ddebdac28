"""The operators that the exact checker reads by itself, as steps of a tape, in exact arithmetic.

A value is a constant array, exactly what is stored, or a tensor that may move with the input. What is not understood
raises `Unreadable`. Constants only matter as weights; biases do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import numpy as np

from lipmodel.certify.tape import MAX_ENTRIES, Entry, Sparse, Tape, Unreadable, selection

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = {1: "<f4", 7: "<i8", 10: "<f2", 11: "<f8"}
"""FLOAT, INT64, FLOAT16 and DOUBLE."""
ROUND_BITS = 160
"""Places after the binary point to which what is not dyadic is enclosed, relative to its size."""
MAX_TENSOR = 5_000_000

SLOPES: dict[str, tuple[float, float]] = {
    "Relu": (0.0, 1.0),
    "Abs": (-1.0, 1.0),
    "Tanh": (0.0, 1.0),
    "Sigmoid": (0.0, 0.25),
    "Softplus": (0.0, 1.0),
    "Softsign": (0.0, 1.0),
    "Atan": (0.0, 1.0),
    "Asinh": (0.0, 1.0),
    "Sin": (-1.0, 1.0),
    "Cos": (-1.0, 1.0),
}
"""Infimum and supremum of the derivative."""


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
"""A moving tensor, or a constant one (float64 or int64, exactly what is stored)."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node: its name, inputs (None where one is left out), attributes with defaults, and the tape."""

    name: str
    op: str
    opset: int
    inputs: tuple[Value | None, ...]
    attributes: dict[str, Any]
    tape: Tape

    def moving(self, port: int) -> Moving:
        value = self.inputs[port]
        return value if isinstance(value, Moving) else Moving(self.tape.still(np.size(value)), np.shape(value))  # type: ignore[arg-type]

    def fixed(self, port: int, kind: str = "f") -> Array:
        """A constant input, floating ("f") or integer ("i")."""
        value = self.inputs[port]
        if value is None or isinstance(value, Moving) or value.dtype.kind != kind:
            raise Unreadable(f"the operator {self.op} with an input {port} that is not a constant of the usual kind")
        return value

    def given(self, port: int) -> bool:
        return port < len(self.inputs) and self.inputs[port] is not None

    def apply(self, x: Moving, map: Sparse, shape: tuple[int, ...], *, opaque: bool = False) -> Moving:
        return Moving(self.tape.linear(x.step, map, opaque=opaque), shape)

    def select(self, x: Moving, at: Array) -> Moving:
        """The entries of x at these positions, in the shape of `at`."""
        if at.size == prod(x.shape) and bool(np.all(at.ravel() == np.arange(at.size))):
            return Moving(x.step, at.shape)
        return self.apply(x, selection(at.ravel().tolist(), prod(x.shape)), at.shape)

    def broadcast(self, x: Moving, shape: tuple[int, ...]) -> Moving:
        return self.select(x, np.broadcast_to(x.at, shape))

    def scale(self, x: Moving, factors: Sequence[Fraction | tuple[Fraction, Fraction]]) -> Moving:
        """x times one number per entry, each exact or an enclosure (lowest, highest)."""
        entries, exponent = enclosed(factors)
        if all(e == (1 << exponent, 0) for e in entries):
            return x
        rows = [{i: e} if e != (0, 0) else {} for i, e in enumerate(entries)]
        return self.apply(x, Sparse(len(rows), exponent, rows), x.shape)


Handler = Callable[[Node], Value]


def enclosed(numbers: Sequence[Fraction | tuple[Fraction, Fraction]]) -> tuple[list[Entry], int]:
    """Integers with radii over one power of two; dyadic numbers without an error."""
    pairs = [v if isinstance(v, tuple) else (v, v) for v in numbers]
    exponent = 0
    for low, high in pairs:
        for v in (low, high):
            exact = v.denominator & (v.denominator - 1) == 0
            size = v.numerator.bit_length() - v.denominator.bit_length()
            exponent = max(exponent, v.denominator.bit_length() - 1 if exact else ROUND_BITS - size)
    result = []
    for low, high in pairs:
        a, b = math.floor(low * 2**exponent), math.ceil(high * 2**exponent)
        middle = (a + b) // 2
        result.append((middle, max(b - middle, middle - a)))
    return result, exponent


def stored(values: Array, rows: Array, columns: Array, shape: tuple[int, int]) -> Sparse:
    """The matrix with these doubles at these places; every place is named once."""
    kept = np.flatnonzero(values)
    ratios = [v.as_integer_ratio() for v in values[kept].tolist()]
    exponent = max((d.bit_length() - 1 for _, d in ratios), default=0)
    table: list[dict[int, Entry]] = [{} for _ in range(shape[0])]
    for (n, d), i, c in zip(ratios, rows[kept].tolist(), columns[kept].tolist(), strict=True):
        table[i][c] = (n << (exponent - d.bit_length() + 1), 0)
    return Sparse(shape[1], exponent, table)


def tensor(proto: Any) -> Array:
    """A stored tensor as float64 or int64, exactly."""
    if proto.data_type not in DTYPES or proto.data_location or proto.HasField("segment"):
        raise Unreadable("external data, or a tensor of an unusual type")
    dtype, count = np.dtype(DTYPES[proto.data_type]), prod(proto.dims)
    if count > MAX_TENSOR:
        raise Unreadable("a tensor that is too large")
    if proto.HasField("raw_data"):
        values = np.frombuffer(proto.raw_data, dtype=dtype)
    elif proto.data_type == 10:
        values = np.array(proto.int32_data, dtype=np.uint16).view(np.float16)
    else:
        values = np.array(
            {1: proto.float_data, 7: proto.int64_data, 11: proto.double_data}[proto.data_type], dtype=dtype
        )
    if values.size != count or not np.all(np.isfinite(values)):
        raise Unreadable("a tensor of another size than its shape, or with a weight that is not finite")
    return values.reshape(tuple(proto.dims)).astype(np.int64 if dtype.kind == "i" else np.float64)


# ------------------------------------------------------------------------------------------------------- the operators


def _contraction(node: Node, a: Value, a_at: Array, b: Value, b_at: Array) -> Moving:
    """a b for (batches of) matrices given by the positions of their entries, one of them constant."""
    x, w = (a, b) if isinstance(a, Moving) else (b, a)
    if not isinstance(x, Moving) or isinstance(w, Moving) or w.dtype.kind != "f":
        raise Unreadable(f"the operator {node.op} between two constants or two tensors that move")
    shape = (*np.broadcast_shapes(a_at.shape[:-2], b_at.shape[:-2]), a_at.shape[-2], b_at.shape[-1])
    whole = (*shape, a_at.shape[-1])
    if prod(whole) > MAX_TENSOR:
        raise Unreadable("a matrix product that is too large")
    left, right = a_at[..., :, None, :], np.swapaxes(b_at, -1, -2)[..., None, :, :]
    at, weights = (left, right) if x is a else (right, left)
    rows = np.broadcast_to(np.arange(prod(shape)).reshape(*shape, 1), whole).ravel()
    columns = np.broadcast_to(at, whole).ravel()
    values = np.broadcast_to(w.ravel()[weights], whole).ravel()
    return node.apply(x, stored(values, rows, columns, (prod(shape), prod(x.shape))), shape)


def _positions(value: Value) -> Array:
    return value.at if isinstance(value, Moving) else np.arange(value.size).reshape(value.shape)


def _both(node: Node) -> tuple[Value, Value]:
    a, b = node.inputs[:2]
    assert a is not None
    assert b is not None
    return a, b


def _matmul(node: Node) -> Value:
    a, b = _both(node)
    a_at, b_at = _positions(a), _positions(b)
    product_ = _contraction(
        node, a, a_at if a_at.ndim > 1 else a_at[None, :], b, b_at if b_at.ndim > 1 else b_at[:, None]
    )
    rows = product_.shape[-2:-1] if a_at.ndim > 1 else ()
    columns = product_.shape[-1:] if b_at.ndim > 1 else ()
    return Moving(product_.step, (*product_.shape[:-2], *rows, *columns))


def _gemm(node: Node) -> Value:
    a, b = _both(node)
    a_at = _positions(a).T if node.attributes["transA"] else _positions(a)
    b_at = _positions(b).T if node.attributes["transB"] else _positions(b)
    y = _contraction(node, a, a_at, b, b_at)
    y = node.scale(y, [Fraction(node.attributes["alpha"])] * prod(y.shape))
    if not node.given(2) or not isinstance(node.inputs[2], Moving):
        return y
    c = node.broadcast(node.moving(2), y.shape)
    c = node.scale(c, [Fraction(node.attributes["beta"])] * prod(y.shape))
    return Moving(node.tape.sum([y.step, c.step]), y.shape)


def _sum(node: Node) -> Value:
    """Add, Sum and Sub: constants are biases, but their shape counts."""
    values = [v for v in node.inputs if v is not None]
    moving = [node.moving(k) for k, v in enumerate(node.inputs) if isinstance(v, Moving)]
    if not moving or any(not isinstance(v, Moving) and v.dtype.kind != "f" for v in values):
        raise Unreadable(f"arithmetic on constants ({node.op})")
    shape = np.broadcast_shapes(*(np.shape(v) if not isinstance(v, Moving) else v.shape for v in values))
    if node.op == "Sub" and isinstance(node.inputs[1], Moving):
        moving[-1] = node.scale(moving[-1], [Fraction(-1)] * prod(moving[-1].shape))
    return Moving(node.tape.sum([node.broadcast(x, shape).step for x in moving]), shape)


def _times(node: Node) -> Value:
    """Mul and Div by constants, and Neg."""
    port = 1 if not isinstance(node.inputs[0], Moving) else 0
    if node.op == "Neg":
        x = node.moving(0)
        return node.scale(x, [Fraction(-1)] * prod(x.shape))
    w = node.fixed(1 - port)
    x = node.moving(port)
    if (
        not isinstance(node.inputs[port], Moving)
        or (node.op == "Div" and port == 1)
        or (node.op == "Div" and not w.all())
    ):
        raise Unreadable(f"arithmetic on constants, or a division by what is not one ({node.op})")
    shape = np.broadcast_shapes(x.shape, w.shape)
    known = {v: 1 / Fraction(v) if node.op == "Div" else Fraction(v) for v in set(w.ravel().tolist())}
    return node.scale(node.broadcast(x, shape), [known[v] for v in np.broadcast_to(w, shape).ravel().tolist()])


def _moved(node: Node, x: Value, at: Array) -> Value:
    return node.select(x, at) if isinstance(x, Moving) else x.ravel()[at]


def _layout(node: Node) -> Value:
    """Operators that give entries another place or another shape."""
    x = node.inputs[0]
    assert x is not None
    shape, at = np.shape(x) if not isinstance(x, Moving) else x.shape, _positions(x)
    if node.op == "Dropout" and node.given(2) and np.any(node.fixed(2, "b")):
        raise Unreadable("Dropout in training mode")
    if node.op == "Transpose":
        return _moved(node, x, at.transpose(node.attributes["perm"] or None))
    if node.op == "Flatten":
        axis = node.attributes["axis"] % len(shape) if node.attributes["axis"] != len(shape) else len(shape)
        at = at.reshape(prod(shape[:axis]), -1)
    elif node.op == "Reshape":
        target = node.fixed(1, "i").tolist()
        if node.attributes.get("allowzero"):
            raise Unreadable("Reshape with allowzero")
        at = at.reshape([shape[k] if d == 0 else d for k, d in enumerate(target)])
    elif node.op in ("Squeeze", "Unsqueeze"):
        axes = node.attributes.get("axes") or (node.fixed(1, "i").tolist() if node.given(1) else None)
        if node.op == "Squeeze":
            at = at.squeeze(None if axes is None else tuple(axes))
        else:
            at = np.expand_dims(at, tuple(axes or ()))
    return _moved(node, x, at)


def _concat(node: Node) -> Value:
    values = [v for v in node.inputs if v is not None]
    axis = node.attributes["axis"]
    if not any(isinstance(v, Moving) for v in values):
        return np.concatenate([v for v in values if not isinstance(v, Moving)], axis=axis)
    parts = [np.full(np.shape(_positions(v)), k) for k, v in enumerate(values)]
    owner = np.concatenate(parts, axis=axis)
    steps = []
    for k, v in enumerate(values):
        if isinstance(v, Moving):
            index = np.full(owner.size, -1)
            index[np.flatnonzero(owner.ravel() == k)] = np.arange(prod(v.shape))
            steps.append(node.tape.linear(v.step, selection(index.tolist(), prod(v.shape))))
    return Moving(node.tape.sum(steps), owner.shape)


def _conv(node: Node) -> Value:
    x, w = node.moving(0), node.fixed(1)
    rank, groups = len(x.shape) - 2, node.attributes["group"]
    taps, spatial = w.shape[2:], x.shape[2:]
    strides, dilations = (node.attributes[key] or [1] * rank for key in ("strides", "dilations"))
    spans = [(k - 1) * d + 1 for k, d in zip(taps, dilations, strict=True)]
    before, after = _padding(node, spatial, spans, strides)
    output = [
        (n + p + q - span) // s + 1 for n, p, q, span, s in zip(spatial, before, after, spans, strides, strict=True)
    ]
    shape = (x.shape[0], w.shape[0], *output)
    each, fan = w.shape[0] // groups, w.shape[1]
    if (
        fan * groups != x.shape[1]
        or each * groups != w.shape[0]
        or w.size * prod(output) * x.shape[0] > 2 * MAX_ENTRIES
    ):
        raise Unreadable("a convolution that is too large, or whose groups do not fit")
    out_at, in_at = np.arange(prod(shape)).reshape(shape), x.at
    b, o, c = np.ix_(range(x.shape[0]), range(w.shape[0]), range(fan))
    rows, columns, values = [], [], []
    for place in product(*map(range, output)):
        for tap in product(*map(range, taps)):
            source = [p * s - q + t * d for p, s, q, t, d in zip(place, strides, before, tap, dilations, strict=True)]
            if not all(0 <= v < n for v, n in zip(source, spatial, strict=True)):
                continue
            full = (x.shape[0], w.shape[0], fan)
            rows.append(np.broadcast_to(out_at[(b, o, *place)], full).ravel())
            columns.append(np.broadcast_to(in_at[(b, o // each * fan + c, *source)], full).ravel())
            values.append(np.broadcast_to(w[(o, c, *tap)], full).ravel())
    empty = np.zeros(0, dtype=np.int64)
    parts = [np.concatenate([empty, *part]) for part in (values, rows, columns)]
    map_ = stored(
        parts[0].astype(np.float64), parts[1].astype(np.int64), parts[2].astype(np.int64), (prod(shape), prod(x.shape))
    )
    return node.apply(x, map_, shape, opaque=True)


def _padding(
    node: Node, spatial: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The padding before and after, per axis."""
    rank, mode = len(spatial), node.attributes["auto_pad"]
    if mode == "NOTSET":
        pads = node.attributes["pads"] or [0] * 2 * rank
        return pads[:rank], pads[rank:]
    if mode == "VALID":
        return [0] * rank, [0] * rank
    needed = [max(0, (-(-n // s) - 1) * s + span - n) for n, s, span in zip(spatial, strides, spans, strict=True)]
    less = [v // 2 for v in needed]
    more = [v - u for u, v in zip(less, needed, strict=True)]
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def _batch_normalization(node: Node) -> Value:
    if node.attributes.get("training_mode") or not node.attributes.get("spatial", 1):
        raise Unreadable("BatchNormalization in training mode or per entry")
    x, gamma, variance = node.moving(0), node.fixed(1), node.fixed(4)
    epsilon = Fraction(node.attributes["epsilon"])
    factors = []
    for g, v in zip(gamma.tolist(), variance.tolist(), strict=True):
        total = Fraction(v) + epsilon
        if total <= 0:
            raise Unreadable("a variance that is not positive")
        low = _inverse_root(total)
        ends = sorted([Fraction(g) * low[0], Fraction(g) * low[1]])
        factors.append((ends[0], ends[1]))
    channel = np.broadcast_to(np.arange(len(factors)).reshape(-1, *[1] * (len(x.shape) - 2)), x.shape)
    return node.scale(x, [factors[k] for k in channel.ravel().tolist()])


def _inverse_root(value: Fraction) -> tuple[Fraction, Fraction]:
    """An enclosure of value^(-1/2), exact where that is dyadic."""
    n, d = value.denominator, value.numerator  # the square of what is sought is n / d
    places = ROUND_BITS + max(0, (d.bit_length() - n.bit_length()) // 2)
    root = math.isqrt((n << 2 * places) // d)
    exact = root * root * d == n << 2 * places
    return Fraction(root, 1 << places), Fraction(root + (not exact), 1 << places)


def _activation(node: Node) -> Value:
    x = node.moving(0)
    size = prod(x.shape)
    if node.op in SLOPES:
        low, high = SLOPES[node.op]
    elif node.op == "LeakyRelu":
        low, high = sorted([node.attributes["alpha"], 1.0])
    elif node.op == "HardSigmoid":
        low, high = sorted([0.0, node.attributes["alpha"]])
    elif node.op == "Elu" and node.attributes["alpha"] >= 0.0:
        low, high = 0.0, max(1.0, node.attributes["alpha"])
    elif node.op == "Clip":
        ends = [node.attributes.get(key) for key in ("min", "max")]
        if node.opset >= 11:
            ends = [float(node.fixed(port).reshape(())) if node.given(port) else None for port in (1, 2)]
        if ends == [None, None]:
            return x
        low, high = 0.0, float(None in ends or ends[0] != ends[1])
    elif node.op == "PRelu":
        slopes = np.broadcast_to(node.fixed(1), x.shape).ravel().tolist()
        lows, highs = ([f(v, 1.0) for v in slopes] for f in (min, max))
        return Moving(node.tape.activation(x.step, node.name, lows, highs), x.shape)
    else:
        raise Unreadable(f"the operator {node.op} with these parameters")
    return Moving(node.tape.activation(x.step, node.name, [low] * size, [high] * size), x.shape)


def _constant(node: Node) -> Value:
    found = {key: value for key, value in node.attributes.items() if value is not None}
    if len(found) != 1 or not found.keys() <= {"value", "value_float", "value_floats", "value_int", "value_ints"}:
        raise Unreadable(f"a Constant given by {', '.join(found)}")
    ((key, value),) = found.items()
    if key == "value":
        return tensor(value)
    return np.array(value, dtype=np.float64 if "float" in key else np.int64)


OPERATORS: dict[str, Handler] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "Concat": _concat,
    "BatchNormalization": _batch_normalization,
    "Constant": _constant,
    **dict.fromkeys(("Add", "Sum", "Sub"), _sum),
    **dict.fromkeys(("Mul", "Div", "Neg"), _times),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Transpose"), _layout),
    **dict.fromkeys((*SLOPES, "LeakyRelu", "PRelu", "Clip", "HardSigmoid", "Elu"), _activation),
}
