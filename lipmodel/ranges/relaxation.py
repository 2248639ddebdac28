"""Linear relaxations of activations, propagated backward: smaller ranges of pre-activations than intervals give.

Between lo and hi an activation lies between two lines. A linear function of any value of the network is then bounded by
one of the values before it, and so on back to the input, where the domain itself is read (Zhang, Weng, Chen, Hsieh &
Daniel 2018, CROWN, arXiv 1811.00866; Singh, Gehr, Pueschel & Vechev 2019, DeepPoly).

Coefficients are rounded to few bits at every node, and what that changes is charged against the interval of the node.
So all matrix products are products of short integers, which floating point computes without rounding in whatever order,
and everything else is done in integers or one rounded operation at a time: the same ranges come out on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.errors import LipmodelError, NotLipschitz
from lipmodel.lower.balls import IntegerMatrix, split_matrix
from lipmodel.network import ops
from lipmodel.ranges.enclosure import INFLATE
from lipmodel.ranges.local import HALVES, Interval, Propagation
from lipmodel.ranges.spans import Span, SpanMatrix, around, down

if TYPE_CHECKING:
    from lipmodel.activations import Activation

Array = np.ndarray[Any, Any]

SHORT = 16
"""Bits of a coefficient."""
CHARGED = 12
"""Bits of what is charged for rounding it."""
WIDEST = 2**18
"""Entries of a vector up to which products of two short coefficients add up without rounding."""
REACH = 500
"""Binary exponents of coefficients and weights beyond which no relaxation is tried."""
BATCH = 4_000_000
"""Coefficients at one node that are handled at once."""
WORK = 2e10
"""Multiplications that one pass through a network may cost."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lines:
    """slope_low v + low <= phi(v) <= slope_high v + high on the range of v; slopes of at most SHORT bits, (n,) each."""

    slope_low: Array
    low: Array
    slope_high: Array
    high: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Backward:
    """A map made ready for coefficients: its transpose in integers, and what its radius adds to |M x|."""

    transpose: IntegerMatrix
    radius: Span | None


class Untame(LipmodelError):  # noqa: N818 - no error that anybody sees
    """Numbers too large, too small or too many for a relaxation: the intervals stay as they are."""


@dataclass(slots=True, kw_only=True, eq=False)
class Relaxation:
    """The lines and maps met on one pass through a graph; `tighten` is what `Propagation.run` asks."""

    state: Propagation
    lines: dict[str, Lines | None] = field(default_factory=dict)
    maps: dict[str, Backward] = field(default_factory=dict)
    spent: float = 0.0

    def tighten(self, node: str, known: Interval) -> Interval:
        """A range of the pre-activations of an elementwise node, at most as large as the known one."""
        op, argument = self.state.network.op(node), self.state.network.arguments(node)[0]
        assert isinstance(op, ops.Elementwise)
        lo, hi = known[0].copy(), known[1].copy()
        if argument not in self.state.forms and bool(np.all(np.isfinite(lo) & np.isfinite(hi))):
            rows = np.flatnonzero(_open(op, lo, hi))
            try:
                for first, last in self._batches(argument, len(rows)):
                    some = rows[first:last]
                    unit = np.zeros((2 * len(some), op.size))
                    unit[np.arange(len(some)), some] = 1.0
                    unit[len(some) + np.arange(len(some)), some] = -1.0
                    found = self._lower(argument, unit)
                    lo[some] = np.maximum(lo[some], found[: len(some)])
                    hi[some] = np.minimum(hi[some], -found[len(some) :])
            except Untame:
                pass
        lo, hi = np.minimum(lo, known[1]), np.maximum(hi, known[0])
        self.lines[node] = _lines(op, lo, hi)
        return lo, hi

    def _batches(self, target: str, count: int) -> list[tuple[int, int]]:
        network = self.state.network
        before = [node for node in self._before(target) if node not in self.state.forms or node == network.input]
        widest = max((network.size(node) for node in before), default=1)
        work = sum(
            float(op.map.entries) for node in before if isinstance(op := network.op(node), ops.Linear)
        ) * 6.0 * count  # fmt: skip
        if self.spent + work > WORK or widest > WIDEST:
            raise Untame("a relaxation would take too long")
        self.spent += work
        size = max(1, BATCH // (2 * widest))
        return [(k, min(k + size, count)) for k in range(0, count, size)]

    def _before(self, target: str) -> list[str]:
        """The node and all that it depends on, in reverse topological order."""
        needed, found = {target}, []
        for node in reversed(self.state.network.order()):
            if node in needed:
                found.append(node)
                needed.update(self.state.network.arguments(node))
        return found

    def _lower(self, target: str, unit: Array) -> Array:
        """Doubles below unit @ (value of the target) on the whole domain, one per row."""
        network = self.state.network
        bound = [Fraction(0)] * len(unit)
        waiting: dict[str, list[tuple[Array, Array | None]]] = {target: [(unit, None)]}
        for node in self._before(target):
            if node not in waiting:
                continue
            whole, power, extra = _shortened(waiting.pop(node))
            span = self.state.span(node)
            if extra is not None:
                if span is None:
                    raise Untame("a value is unbounded")
                self._charge(bound, extra, span)
            op, arguments = network.op(node), network.arguments(node)
            constant = node in self.state.forms and not self.state.forms[node].blocks
            lines = self.lines.get(node)
            if isinstance(op, ops.Input):
                self._at_the_input(bound, whole, power)
            elif (
                constant
                or isinstance(op, ops.Constant | ops.Grouped | ops.Product)
                or (isinstance(op, ops.Elementwise) and lines is None)
            ):
                if span is None:
                    raise Untame("a value is unbounded")
                _gather(bound, whole, power, span)
            elif isinstance(op, ops.Linear):
                ready = self._ready(node, op, arguments[0])
                for offset in (None if op.bias is None else around(op.bias, op.bias_radius), ready.radius):
                    if offset is not None:
                        _gather(bound, whole, power, offset)
                waiting.setdefault(arguments[0], []).append(_pulled(ready.transpose, whole, power))
            elif isinstance(op, ops.Elementwise):
                assert lines is not None
                above, below = np.maximum(whole, 0.0), np.minimum(whole, 0.0)
                for part, offset_ in ((above, lines.low), (below, lines.high)):
                    if np.any(offset_):
                        _gather(bound, part, power, around(offset_))
                scaled = above * lines.slope_low + below * lines.slope_high  # exact: one of the two is zero
                waiting.setdefault(arguments[0], []).append((np.ldexp(scaled, power[:, None]), None))
            else:
                coefficients = np.ldexp(whole, power[:, None])
                for port, u in enumerate(arguments):
                    seen = coefficients[:, op.positions[port]] if isinstance(op, ops.Concat) else coefficients
                    waiting.setdefault(u, []).append((seen, None))
        return np.array([down(b.numerator, b.denominator.bit_length() - 1) for b in bound])

    def _ready(self, node: str, op: ops.Linear, argument: str) -> Backward:
        if node not in self.maps:
            enclosure = op.map.enclosure()
            transpose = split_matrix(enclosure.center.T)
            if any(abs(e) > REACH for e in transpose.exponents):
                raise Untame("weights of extreme sizes")
            radius = None
            if enclosure.radius is not None:
                span = self.state.span(argument)
                if span is None:
                    raise Untame("a value is unbounded")
                radius = _spread(enclosure.radius, span)
            self.maps[node] = Backward(transpose=transpose, radius=radius)
        return self.maps[node]

    def _charge(self, bound: list[Fraction], extra: Array, span: Span) -> None:
        """Subtract extra @ |x|, rounded up; extra: nonnegative floats."""
        largest = np.max(extra, axis=1, initial=0.0)
        power = np.frexp(np.where(largest > 0, largest, 1.0))[1].astype(np.int64) - CHARGED
        whole = np.ceil(np.ldexp(extra, -power[:, None]))
        size = Span(mid=span.magnitude(), rad=0 * span.mid, exponent=span.exponent)
        _gather(bound, -whole, power, size)

    def _at_the_input(self, bound: list[Fraction], whole: Array, power: Array) -> None:
        region = self.state.region
        if region.norm == "inf":
            _gather(bound, whole, power, region.box)
            return
        _gather(bound, whole, power, region.center)
        radius = Fraction(region.radius, 1 << region.exponent)
        for i, row in enumerate(whole):
            if region.norm == "1":
                length = Fraction(int(np.max(np.abs(row), initial=0.0)))
            else:
                square = int(np.sum(row * row))  # short integers: exact
                length = Fraction(math.isqrt((square << 2 * HALVES) - 1) + 1, 1 << HALVES) if square else Fraction(0)
            bound[i] -= length * radius * Fraction(2) ** int(power[i])


def _shortened(parts: list[tuple[Array, Array | None]]) -> tuple[Array, Array, Array | None]:
    """The sum of coefficients as whole * 2^power (one power a row), and a bound of what was left out, None for zero.

    parts: floats, each with a bound of its own error (None: exact).
    """
    total, error = parts[0]
    for more, slack in parts[1:]:
        rounding = 2.0**-52 * (np.abs(total) + np.abs(more))
        total = total + more
        error = rounding + (0.0 if error is None else error) + (0.0 if slack is None else slack)
    largest = np.max(np.abs(total), axis=1, initial=0.0)
    if not bool(np.all((largest == 0.0) | ((largest > 2.0**-REACH) & (largest < 2.0**REACH)))):
        raise Untame("coefficients of extreme sizes")
    power = np.frexp(np.where(largest > 0, largest, 1.0))[1].astype(np.int64) - SHORT
    whole = np.rint(np.ldexp(total, -power[:, None]))
    rest = np.abs(total - np.ldexp(whole, power[:, None]))  # exact: both are multiples of the last bit of `total`
    if error is None and not np.any(rest):
        return whole, power, None
    return whole, power, (rest + (0.0 if error is None else error)) * INFLATE


def _pulled(transpose: IntegerMatrix, whole: Array, power: Array) -> tuple[Array, Array | None]:
    """(whole 2^power) M and a bound of its error; the products of integers are exact."""
    right = np.ascontiguousarray(whole.T)
    total: Any = np.zeros((transpose.shape[0], len(whole)))
    size = np.zeros_like(total)
    for part, exponent in zip(transpose.parts, transpose.exponents, strict=True):
        product = np.ldexp(np.asarray(part @ right), exponent)
        total = total + product
        size = size + np.abs(product)
    count = len(transpose.parts)
    back = np.ldexp(total.T, power[:, None])
    if count <= 1:
        return back, None
    return back, np.ldexp(size.T, power[:, None]) * (count * 2.0**-52)


def _gather(bound: list[Fraction], whole: Array, power: Array, span: Span) -> None:
    """Add a lower bound of (whole 2^power) x for all x of the span."""
    center = split_matrix(whole)
    size = replace(center, parts=tuple(abs(part) for part in center.parts))
    y = SpanMatrix(center=center, size=size, radius=None).apply(span)
    low = (y.mid - y.rad).tolist()
    for i, value in enumerate(low):
        if value:
            shift = int(power[i]) - y.exponent
            bound[i] += Fraction(value << shift) if shift >= 0 else Fraction(value, 1 << -shift)


def _spread(radius: Any, span: Span) -> Span:
    """Intervals around 0 that hold every D x with |D| <= radius and x in the span."""
    reach = split_matrix(radius)
    y = SpanMatrix(center=reach, size=reach, radius=None).apply(
        Span(mid=span.magnitude(), rad=0 * span.mid, exponent=span.exponent)
    )
    return Span(mid=0 * y.mid, rad=y.mid + y.rad, exponent=y.exponent)


# --- Lines ----------------------------------------------------------------------------------------------------------


def _open(op: ops.Elementwise, lo: Array, hi: Array) -> Array:
    """Entries whose slopes may depend on how large their range is."""
    result = lo < hi
    for part in op.parts:
        if part.activation.piecewise_linear:
            inside = np.zeros(len(part.index), dtype=bool)
            for b in part.activation.breakpoints:
                inside |= (lo[part.index] < b) & (b < hi[part.index])
            result[part.index] &= inside
    return result


def _lines(op: ops.Elementwise, lo: Array, hi: Array) -> Lines | None:
    """Lines around all activations of a node; None where there are none."""
    if not bool(np.all(np.isfinite(lo) & np.isfinite(hi))):
        return None
    values = np.zeros((4, op.size))
    for part in op.parts:
        a, b = lo[part.index], hi[part.index]
        try:
            found = _relu_lines(a, b) if part.activation.name == "Relu" else _secant_lines(part.activation, a, b)
        except NotLipschitz:
            return None
        values[:, part.index] = found
    if not bool(np.all(np.abs(values) < 2.0**REACH)):
        return None
    return Lines(slope_low=values[0], low=values[1], slope_high=values[2], high=values[3])


def _short(x: Array) -> Array:
    """Numbers of SHORT bits near x, which lies within [-2^SHORT, 2^SHORT] or is cut off there."""
    x = np.clip(x, -(2.0**SHORT), 2.0**SHORT)
    mantissa, exponent = np.frexp(np.where(np.abs(x) < 2.0**-SHORT, 0.0, x))
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, SHORT)), exponent - SHORT))


def _relu_lines(lo: Array, hi: Array) -> Array:
    with np.errstate(all="ignore"):
        slope = np.where(lo >= 0, 1.0, np.where(hi <= 0, 0.0, _short(hi / (hi - lo))))
    below = np.where(lo >= 0, 1.0, np.where(hi <= 0, 0.0, np.where(hi > -lo, 1.0, 0.0)))
    # max(v, 0) - s v is largest at an end, where it is computed with two roundings
    high = np.maximum(-slope * lo, hi - slope * hi)
    unstable = (lo < 0) & (hi > 0)
    high = np.where(unstable, high + (np.abs(lo) + np.abs(hi)) * 2.0**-51 + 2.0**-1000, 0.0)
    return np.stack([below, np.zeros(len(lo)), slope, np.maximum(high, 0.0)])


def _secant_lines(activation: Activation, lo: Array, hi: Array) -> Array:
    """Two lines of one slope, near that of the secant; exact for pieces, else from the slopes over the range."""
    pairs, inverse = np.unique(np.stack([lo, hi], axis=1), axis=0, return_inverse=True)
    found = np.array([_secant(activation, float(a), float(b)) for a, b in pairs]).reshape(-1, 4)
    return np.asarray(found[inverse.ravel()].T)


def _secant(activation: Activation, lo: float, hi: float) -> tuple[float, float, float, float]:
    if lo == hi:
        low, high = activation.value_range(lo, hi)
        return 0.0, low, 0.0, high
    width = Fraction(hi) - Fraction(lo)
    if activation.piecewise_linear and not activation.joints:
        ends = [Fraction(lo), Fraction(hi), *(Fraction(b) for b in activation.breakpoints if lo < b < hi)]
        values = [activation.exact(t) for t in ends]
        steep = Fraction(max(map(abs, activation.slopes())))
        mean = (values[1] - values[0]) / width

        def offsets(s: Fraction) -> tuple[Fraction, Fraction]:
            gaps = [v - s * t for v, t in zip(values, ends, strict=True)]
            # breakpoints are the nearest doubles to the true ones, where the function may be that little off
            slack = (abs(s) + steep) * Fraction(max(abs(lo), abs(hi))) / 2**52
            return min(gaps) - slack, max(gaps) + slack

    else:
        alpha, beta = (Fraction(v) for v in activation.slopes(lo, hi))
        first, last = activation.value_range(lo, lo), activation.value_range(hi, hi)
        if not all(map(math.isfinite, (*first, *last))):
            raise NotLipschitz("its values are unbounded")
        mean = (Fraction(last[0]) + Fraction(last[1]) - Fraction(first[0]) - Fraction(first[1])) / (2 * width)

        def offsets(s: Fraction) -> tuple[Fraction, Fraction]:
            left, right = ([Fraction(v) - s * Fraction(t) for v in ends] for t, ends in ((lo, first), (hi, last)))
            # phi(v) - s v falls from the left by at most s - alpha a unit, and rises to the right by at most beta - s
            low = _meeting(left[0], right[0], s - alpha, beta - s, width)
            return low, -_meeting(-left[1], -right[1], beta - s, s - alpha, width)

    edges = activation.slopes(lo, lo)[0], activation.slopes(hi, hi)[0], *activation.slopes(lo, hi), float(mean)
    slopes = {float(v) for v in _short(np.array(edges))}
    middle = (Fraction(lo) + Fraction(hi)) / 2
    found = [(s, *offsets(Fraction(s))) for s in sorted(slopes)]
    below = max(found, key=lambda line: Fraction(line[0]) * middle + line[1])
    above = min(found, key=lambda line: Fraction(line[0]) * middle + line[2])
    return below[0], _down(below[1]), above[0], -_down(-above[2])


def _meeting(left: Fraction, right: Fraction, fall: Fraction, rise: Fraction, width: Fraction) -> Fraction:
    """The least of max(left - fall t, right - rise (width - t)) over 0 <= t <= width."""
    if fall <= 0:
        return max(left, right - rise * width) if rise >= 0 else max(left, right)
    if rise <= 0:
        return max(right, left - fall * width)
    t = min(max((left - right + rise * width) / (fall + rise), Fraction(0)), width)
    return max(left - fall * t, right - rise * (width - t))


def _down(value: Fraction) -> float:
    """The largest double at most a rational number."""
    try:
        out = float(value)
    except OverflowError:
        return -math.inf if value < 0 else 2.0**1023
    return out if Fraction(out) <= value else math.nextafter(out, -math.inf)
