"""Witness pairs: two inputs whose difference quotient, rounded down with proof, bounds the constant from below.

For any x != y, sup ||f(x)-f(y)||_q / ||x-y||_p is at least the quotient at (x, y): no differentiability, no pattern and
no solver is involved. Points are binary floats, so a piecewise linear network is evaluated exactly (in integers, up to
a proved error far below what a double can hold where numbers grow long) and a smooth one in ball arithmetic.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from lipmodel.errors import LipmodelError, Refuted, UsageError
from lipmodel.lower.balls import Array, BallMap, Balls, add, ball_map, place, split_matrix
from lipmodel.lower.scalar import Scalar, Vectors, beside, column_range, entries, negative, product, scalar
from lipmodel.network.ops import Add, Concat, Constant, Elementwise, Grouped, Input, Linear, Product
from lipmodel.spec import Norm, Outputs, as_norm, parse_outputs

if TYPE_CHECKING:
    from lipmodel.network.graph import Network

Rows = Sequence[Mapping[int, float]]
Mode = Literal["vector", "each"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Witness:
    """Two inputs and a proved lower bound of their quotient: ||f(x)-f(y)||_q / ||x-y||_p >= ratio.

    x, y: flat float64 inputs; p, q: norms of input and output; outputs: which outputs are measured.
    """

    x: Array
    y: Array
    p: Norm
    q: Norm
    outputs: Outputs
    ratio: float

    def as_json(self) -> dict[str, Any]:
        """The witness with every number as a hexadecimal float."""
        return {
            "x": [float(v).hex() for v in self.x],
            "y": [float(v).hex() for v in self.y],
            "input_norm": self.p,
            "output_norm": self.q,
            "outputs": str(self.outputs),
            "ratio": float(self.ratio).hex(),
        }

    @classmethod
    def from_json(cls, data: Any) -> Witness:
        """The witness that `as_json` wrote. Raises Refuted where it is malformed."""
        keys = {"x", "y", "input_norm", "output_norm", "outputs", "ratio"}
        if not isinstance(data, dict) or set(data) != keys:
            raise Refuted(f"a witness has the keys {', '.join(sorted(keys))} and no others")
        x, y = (_hex_vector(data[name], name) for name in ("x", "y"))
        if len(x) != len(y):
            raise Refuted(f"the points of a witness differ in size: {len(x)} and {len(y)}")
        try:
            p, q, outputs = as_norm(data["input_norm"]), as_norm(data["output_norm"]), parse_outputs(data["outputs"])
        except UsageError as error:
            raise Refuted(f"a malformed witness: {error}") from error
        return cls(x=x, y=y, p=p, q=q, outputs=outputs, ratio=_hex_float(data["ratio"], "ratio"))


def witness_ratio(network: Network, x: Array, y: Array, p: Norm, q: Norm, outputs: Outputs | str = "all") -> float:
    """A proved lower bound of ||f(x)-f(y)||_q / ||x-y||_p, rounded down; 0.0 where nothing can be decided.

    f is the network in real arithmetic, restricted to the chosen outputs; x, y: finite float64, input_size entries.
    For margin:I it is the largest of the quotients of y_I - y_j, j != I. Raises UsageError where sizes or outputs do
    not fit.
    """
    rows, mode = output_rows(outputs, network.output_size)
    return evaluate_pair(network, x, y, p, q, rows=rows, mode=mode)


def evaluate_pair(
    network: Network, x: Array, y: Array, p: Norm, q: Norm, *, rows: Rows | None = None, mode: Mode = "vector"
) -> float:
    """The same for outputs given by linear functionals {index: coefficient}; None is the whole output.

    mode "vector": the q-norm of the vector of all functionals; "each": the largest modulus among them.
    """
    with threadpool_limits(limits=1):
        return pair_program(network).ratio(x, y, p, q, rows=rows, mode=mode)


def pair_moduli(
    network: Network, x: Array, y: Array, *, rows: Rows | None = None
) -> tuple[list[Fraction], list[Fraction]] | None:
    """|x - y| exactly, and proved lower bounds of |f(x) - f(y)| or its functionals; None where x = y."""
    with threadpool_limits(limits=1):
        return pair_program(network).moduli(x, y, rows=rows)


def output_rows(outputs: Outputs | str, size: int) -> tuple[list[dict[int, float]] | None, Mode]:
    """The functionals that a choice of outputs means, and how they are measured. Raises UsageError out of range."""
    chosen = parse_outputs(outputs)
    if any(not 0 <= i < size for i in chosen.indices):
        raise UsageError(f"outputs {chosen}: the network has outputs 0 to {size - 1}")
    if chosen.kind == "all":
        return None, "vector"
    if chosen.kind == "vector":
        return [{i: 1.0} for i in chosen.indices], "vector"
    (i,) = chosen.indices
    if size == 1:
        raise UsageError("a margin needs a network of two outputs or more")
    return [{i: 1.0, j: -1.0} for j in range(size) if j != i], "each"


# --- Evaluation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One node made ready: what it does to the values of its arguments (slots of earlier steps)."""

    slot: int
    arguments: tuple[int, ...]
    op: Any
    maps: tuple[tuple[Any, Array], ...] = ()
    linear: BallMap | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairProgram:
    """A network made ready for evaluating many pairs; build it with `pair_program`."""

    steps: tuple[Step, ...]
    input_size: int
    output: int
    exact: bool

    def difference(self, x: Array, y: Array) -> Balls:
        """f(y) - f(x), shape (output_size, 1)."""
        pair = np.stack([np.asarray(v, dtype=np.float64).ravel() for v in (x, y)], axis=1)
        start = Balls.from_floats(pair)
        if not self.exact:
            # where weights are known to a radius only, the difference is carried along: errors then scale with it
            start = beside(start, add([column_range(start, 1, 2), negative(column_range(start, 0, 1))]))
        pending = Counter(u for step in self.steps for u in step.arguments)
        values: dict[int, Balls] = {}
        for step in self.steps:
            values[step.slot] = _run(step, [values[u] for u in step.arguments], start)
            for u in step.arguments:
                pending[u] -= 1
                if pending[u] == 0 and u != self.output:
                    del values[u]
        end = values[self.output]
        if not self.exact:
            return column_range(end, 2, 3)
        return add([column_range(end, 1, 2), negative(column_range(end, 0, 1))])

    def ratio(self, x: Array, y: Array, p: Norm, q: Norm, *, rows: Rows | None = None, mode: Mode = "vector") -> float:
        """See `evaluate_pair`."""
        found = self._moduli(x, y, rows)
        if found is None:
            return 0.0
        (step, step_exponent), (change, change_exponent) = found
        top, bottom = _norm_squared(change, "inf" if mode == "each" else q), _norm_squared(step, p)
        shift = 2 * (step_exponent - change_exponent)
        return root_down(top << max(shift, 0), bottom << max(-shift, 0))

    def moduli(self, x: Array, y: Array, *, rows: Rows | None = None) -> tuple[list[Fraction], list[Fraction]] | None:
        """See `pair_moduli`."""
        found = self._moduli(x, y, rows)
        if found is None:
            return None
        step, change = ([v / Fraction(2) ** exponent for v in values] for values, exponent in found)
        return step, change

    def _moduli(
        self, x: Array, y: Array, rows: Rows | None
    ) -> tuple[tuple[list[int], int], tuple[list[int], int]] | None:
        """The same as integers over powers of two."""
        x, y = (np.asarray(v, dtype=np.float64).ravel() for v in (x, y))
        if not len(x) == len(y) == self.input_size:
            raise UsageError(f"the network has {self.input_size} inputs, not {len(x)} and {len(y)}")
        if not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
            raise UsageError("the points of a witness must be finite")
        if np.array_equal(x, y):
            return None
        change = self.difference(x, y)
        if rows is not None:
            change = _functionals(rows, change.size).apply(change)
        step = Balls.from_floats(np.stack([x, y], axis=1))
        return ([abs(a - b) for a, b in step.mid.tolist()], step.exponent), (_moduli(change), change.exponent)


def pair_program(network: Network) -> PairProgram:
    """Make a network ready; matrices are split once. Raises NotLipschitz where an activation jumps."""
    order = network.order()
    wanted = {network.output}
    for node in reversed(order):
        if node in wanted:
            wanted.update(network.arguments(node))
    slots = {node: k for k, node in enumerate(order)}
    steps: list[Step] = []
    known: dict[int, Scalar] = {}
    for node in order:
        op = network.graph.nodes[node]["op"]
        if node not in wanted:
            continue
        maps: list[tuple[Any, Array]] = []
        linear: BallMap | None = None
        if isinstance(op, Elementwise):
            for part in op.parts:
                if id(part.activation) not in known:
                    known[id(part.activation)] = scalar(part.activation)
                maps.append((known[id(part.activation)], np.asarray(part.index)))
        elif isinstance(op, Linear):
            linear = ball_map(op.map)
        elif isinstance(op, Grouped):
            maps.append((Vectors(op=op), np.arange(op.size)))
        arguments = tuple(slots[u] for u in network.arguments(node))
        steps.append(Step(slot=slots[node], arguments=arguments, op=op, maps=tuple(maps), linear=linear))
    exact = all(s.linear is None or (s.linear.is_exact and s.op.bias_radius is None) for s in steps)
    return PairProgram(steps=tuple(steps), input_size=network.input_size, output=slots[network.output], exact=exact)


def _run(step: Step, inputs: list[Balls], start: Balls) -> Balls:
    op, columns = step.op, start.mid.shape[1]
    if isinstance(op, Input):
        return start
    if isinstance(op, Constant):
        return _columns(op.values, None, columns)
    if isinstance(op, Linear):
        assert step.linear is not None
        y = step.linear.apply(inputs[0])
        return y if op.bias is None else add([y, _columns(op.bias, op.bias_radius, columns)])
    if isinstance(op, Add):
        return add(inputs)
    if isinstance(op, Concat):
        return place(inputs, op.positions, sum(len(p) for p in op.positions))
    if isinstance(op, Product):
        return product(*inputs)
    if isinstance(op, Elementwise | Grouped):
        x = inputs[0].shortened()
        parts = [function.apply(_entries(x, index)) for function, index in step.maps]
        return (
            parts[0]
            if len(parts) == 1 and _in_order(step.maps[0][1])
            else place(parts, [index for _, index in step.maps], x.size)
        )
    raise LipmodelError(f"the operation {type(op).__name__} has no exact evaluation, so no pair can be a witness")


def _columns(values: Array, radius: Array | None, columns: int) -> Balls:
    """A vector that both points share; in a column of differences it is zero."""
    wide = np.zeros((len(values), columns))
    wide[:, :2] = np.asarray(values, dtype=np.float64)[:, None]
    spread = None
    if radius is not None:
        spread = np.zeros((len(values), columns))
        spread[:, :2] = np.asarray(radius, dtype=np.float64)[:, None]
    return Balls.from_floats(wide, spread)


def _entries(x: Balls, index: Array) -> Balls:
    if len(index) == x.size and _in_order(index):
        return x
    return entries(x, index)


def _in_order(index: Array) -> bool:
    return bool(np.array_equal(index, np.arange(len(index))))


def _functionals(rows: Rows, size: int) -> Any:
    row = [k for k, r in enumerate(rows) for _ in r]
    column = [i for r in rows for i in r]
    if any(not 0 <= i < size for i in column):
        raise UsageError(f"a functional of outputs beyond 0 to {size - 1}")
    data = np.array([c for r in rows for c in r.values()], dtype=np.float64)
    return split_matrix(sp.csr_array((data, (row, column)), shape=(len(rows), size)))


def _moduli(change: Balls) -> list[int]:
    """Lower bounds of |x| in units of 2^-exponent."""
    sizes = [abs(v) for v in change.mid[:, 0].tolist()]
    if change.radius is None:
        return sizes
    unit = Fraction(2) ** change.exponent
    radii = change.radius[:, 0].tolist()
    return [
        max(0, s - math.ceil(Fraction(r) * unit)) if math.isfinite(r) else 0 for s, r in zip(sizes, radii, strict=True)
    ]


def _norm_squared(moduli: list[int], norm: Norm) -> int:
    if norm == "2":
        return sum(v * v for v in moduli)
    total = sum(moduli) if norm == "1" else max(moduli, default=0)
    return total * total


def root_down(top: int, bottom: int) -> float:
    """The square root of top / bottom (integers, top >= 0, bottom > 0), rounded down to a double."""
    if top == 0:
        return 0.0
    half = (140 - top.bit_length() + bottom.bit_length()) // 2
    root = math.isqrt((top << 2 * half) // bottom if half >= 0 else top // (bottom << -2 * half))
    cut = root.bit_length() - 53
    power = cut - half
    if power + 53 > 1024:
        return sys.float_info.max
    return 0.0 if power < -1074 else math.ldexp(root >> cut, power)


def _hex_vector(data: Any, name: str) -> Array:
    if not isinstance(data, list) or not data:
        raise Refuted(f"{name} of a witness is a list of hexadecimal floats")
    return np.array([_hex_float(v, name) for v in data], dtype=np.float64)


def _hex_float(text: Any, name: str) -> float:
    try:
        value = float.fromhex(text)
    except (TypeError, ValueError, OverflowError):
        raise Refuted(f"{name} of a witness holds {text!r}, which is not a hexadecimal float") from None
    if not math.isfinite(value):
        raise Refuted(f"{name} of a witness holds {text!r}, which is not finite")
    return value
