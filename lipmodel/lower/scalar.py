"""Scalar nonlinearities on balls: piecewise linear ones in integers, smooth ones in ball arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from flint import arb, ctx

from lipmodel.errors import NotLipschitz
from lipmodel.lower.balls import Array, Balls, add, object_array, place
from lipmodel.ranges.enclosure import INFLATE, TINY

if TYPE_CHECKING:
    from lipmodel.activations import Activation
    from lipmodel.network.ops import Grouped

PRECISION = 250
"""Working precision of smooth activations, bits."""
FRACTION = 256
"""Fractional bits that are kept of their values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A continuous piecewise linear function: slopes[k] x + offsets[k] between breaks[k-1] and breaks[k]."""

    breaks: tuple[Fraction, ...]
    slopes: tuple[Fraction, ...]
    offsets: tuple[Fraction, ...]

    @property
    def is_dyadic(self) -> bool:
        return all(v.denominator & (v.denominator - 1) == 0 for v in (*self.slopes, *self.offsets))


def pieces(function: Callable[[Fraction], Fraction], breakpoints: Sequence[float], *, name: str = "") -> Pieces:
    """The exact pieces of a piecewise linear function whose breakpoints are known up to rounding.

    The lines are read off between the given breakpoints and the breaks are where neighbouring lines meet. Raises
    NotLipschitz where the function jumps.
    """
    jumps = f"{name or 'the activation'} jumps, so it has no Lipschitz constant"
    marks = sorted({Fraction(b) for b in breakpoints if math.isfinite(b)})
    inner = [Fraction(0)]
    if marks:
        inner = [marks[0] - 2, *((a + b) / 2 for a, b in pairwise(marks)), marks[-1] + 2]
    lines = []
    for k, middle in enumerate(inner):
        gaps = [abs(middle - b) for b in marks[max(0, k - 1) : k + 1]]
        step = min([Fraction(1), *gaps]) / 2
        a, b = function(middle - step), function(middle + step)
        slope = (b - a) / (2 * step)
        lines.append((slope, a - slope * (middle - step)))
    merged = lines[:1]
    breaks: list[Fraction] = []
    for slope, offset in lines[1:]:
        before, intercept = merged[-1]
        if slope == before:
            if offset != intercept:
                raise NotLipschitz(jumps)
            continue
        breaks.append((intercept - offset) / (slope - before))
        merged.append((slope, offset))
    for point, (slope, offset) in zip(breaks, merged, strict=False):
        near = min((abs(point - b) for b in marks), default=Fraction(0))
        if near > Fraction(2) ** -40 * (1 + abs(point)) or function(point) != slope * point + offset:
            raise NotLipschitz(jumps)
    return Pieces(breaks=tuple(breaks), slopes=tuple(s for s, _ in merged), offsets=tuple(o for _, o in merged))


def apply_pieces(p: Pieces, x: Balls) -> tuple[Balls, Array]:
    """The function on every ball, and the index of the piece that certainly holds all of the ball (-1: undecided)."""
    shape = x.mid.shape
    middle = np.zeros(shape, dtype=np.int64)
    low = np.zeros(shape, dtype=np.int64)
    high = np.zeros(shape, dtype=np.int64)
    for point in p.breaks:
        middle += _above(x.mid, point, x.exponent)
        signs = _shifted(x, point).signs()
        low += signs > 0
        high += signs >= 0
    shift = max([0, *((v.denominator.bit_length() - 1) for v in (*p.slopes, *p.offsets))])
    # over a negative exponent the offsets would not be integers
    x = x.rescaled(max(x.exponent, 0))
    mid = object_array([0] * x.mid.size, shape)
    for k, (slope, offset) in enumerate(zip(p.slopes, p.offsets, strict=True)):
        where = middle == k
        factor, constant = int(slope * (1 << shift)), int(offset * (1 << shift)) << x.exponent
        if factor or constant:
            mid[where] = x.mid[where] * factor + constant
    radius = None
    if x.radius is not None:
        steepest = float_up(max(abs(s) for s in p.slopes))
        certain = np.array([float_up(abs(s)) for s in p.slopes])[low]
        with np.errstate(all="ignore"):
            radius = np.where(low == high, certain, steepest) * x.radius * INFLATE + TINY
    return Balls(mid=mid, exponent=x.exponent + shift, radius=radius), np.where(low == high, low, -1)


def slope_times(p: Pieces, piece: Array, d: Balls) -> Balls:
    """slopes[piece] * d, entry by entry (piece -1 counts as the first)."""
    shift = max(s.denominator.bit_length() - 1 for s in p.slopes)
    factors = object_array([int(s * (1 << shift)) for s in p.slopes], (len(p.slopes),))
    sizes = np.array([float_up(abs(s)) for s in p.slopes])
    index = np.maximum(piece, 0)
    with np.errstate(all="ignore"):
        radius = sizes[index] * d.radii() * INFLATE + TINY
    return Balls(mid=d.mid * factors[index], exponent=d.exponent + shift, radius=radius)


def apply_exactly(function: Callable[[Fraction], Fraction], steepest: float, x: Balls) -> Balls:
    """A function given on rationals, with slopes at most `steepest`; values are rounded to FRACTION bits."""
    scale = Fraction(2) ** -x.exponent
    values = [function(int(v) * scale) for v in x.mid.ravel().tolist()]
    mid = object_array([math.floor(v * (1 << FRACTION)) for v in values], x.mid.shape)
    radius = np.full(x.mid.shape, 2.0**-FRACTION)
    if x.radius is not None:
        with np.errstate(all="ignore"):
            radius = (radius + steepest * x.radius) * INFLATE + TINY
    return Balls(mid=mid, exponent=FRACTION, radius=radius)


def apply_enclosure(function: Callable[[arb], arb], x: Balls, steepest: float | None = None) -> Balls:
    """A function given on real balls; steepest: a bound of the moduli of all its slopes, where there is one.

    With such a bound the function is enclosed at the midpoints, which is several times faster.
    """
    flat, radii = x.mid.ravel().tolist(), x.radii().ravel().tolist()
    mid: list[int] = []
    radius: list[float] = []
    with ctx.workprec(PRECISION):
        for value, error in zip(flat, radii, strict=True):
            if not math.isfinite(error):
                mid.append(0)
                radius.append(math.inf)
                continue
            point = arb((value, -x.exponent))
            whole, size = _fixed(function(point if error == 0.0 or steepest is not None else arb(point, error)))
            mid.append(whole)
            radius.append(size)
    spread = np.array(radius).reshape(x.mid.shape)
    if steepest is not None and x.radius is not None:
        with np.errstate(all="ignore"):
            spread = (spread + steepest * x.radius) * INFLATE + TINY
    return Balls(mid=object_array(mid, x.mid.shape), exponent=FRACTION, radius=spread)


def _fixed(value: arb) -> tuple[int, float]:
    """A ball with FRACTION fractional bits that contains the value."""
    if not value.is_finite():
        return 0, math.inf
    mantissa, power = (int(v) for v in value.mid().man_exp())
    if power + FRACTION > 4096:
        return 0, math.inf
    shift = power + FRACTION
    exact = shift >= 0
    whole = mantissa << shift if exact else mantissa >> min(-shift, 8192)
    size, scale = (int(v) for v in value.rad().man_exp())
    error = 0.0
    if size:
        error = math.inf if size.bit_length() + scale > 1000 else math.ldexp(size, scale) * INFLATE + TINY
    return whole, error if exact else error * INFLATE + 2.0**-FRACTION * INFLATE


def slope_range_times(low: Array, high: Array, d: Balls) -> Balls:
    """s * d for every s in [low, high], entry by entry (finite doubles)."""
    center = 0.5 * low + 0.5 * high
    spread = np.maximum(high - center, center - low) * INFLATE + TINY
    factor = Balls.from_floats(center)
    with np.errstate(all="ignore"):
        radius = (spread * d.magnitude() + np.abs(center) * d.radii()) * INFLATE + TINY
    return Balls(mid=d.mid * factor.mid, exponent=d.exponent + factor.exponent, radius=radius)


def choose(take_first: Array, first: Balls, second: Balls) -> Balls:
    """first where the mask holds, second elsewhere."""
    exponent = max(first.exponent, second.exponent)
    a, b = first.rescaled(exponent), second.rescaled(exponent)
    return Balls(
        mid=np.where(take_first, a.mid, b.mid), exponent=exponent, radius=np.where(take_first, a.radii(), b.radii())
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scalar:
    """An activation made ready for balls of shape (n, 2), columns f's arguments at x and y, or (n, 3) with y - x."""

    activation: Activation
    pieces: Pieces | None
    steepest: float | None

    def apply(self, x: Balls) -> Balls:
        points = column_range(x, 0, 2)
        act = self.activation
        piece: Array | None = None
        if self.pieces is not None and self.pieces.is_dyadic:
            values, piece = apply_pieces(self.pieces, points)
        elif act.piecewise_linear:
            values = apply_exactly(act.exact, math.inf if self.steepest is None else self.steepest, points)
        else:
            values = apply_enclosure(_value(act), points, self.steepest)
        if x.mid.shape[1] == 2:
            return values
        return beside(values, self._difference(points, values, column_range(x, 2, 3), piece))

    def _difference(self, points: Balls, values: Balls, d: Balls, piece: Array | None) -> Balls:
        """f(y) - f(x): as a slope times y - x where that is known better than the two values are."""
        plain = add([column_range(values, 1, 2), negative(column_range(values, 0, 1))])
        if self.pieces is not None and piece is not None:
            same = ((piece[:, 0] == piece[:, 1]) & (piece[:, 0] >= 0))[:, None]
            return choose(same, slope_times(self.pieces, piece[:, :1], d), plain)
        # only where the values have lost too much: slope intervals take long
        poor = np.flatnonzero(~(plain.radii() <= 2.0**-20 * d.magnitude())[:, 0])
        if not len(poor):
            return plain
        low, high = points.limits()
        try:
            alpha, beta = self.activation.slopes(np.min(low[poor], axis=1), np.max(high[poor], axis=1))
        except NotLipschitz:
            return plain
        steep = slope_range_times(alpha[:, None], beta[:, None], entries(d, poor))
        best = choose(steep.radii() < entries(plain, poor).radii(), steep, entries(plain, poor))
        rest = np.setdiff1d(np.arange(d.size), poor)
        return place([best, entries(plain, rest)], [poor, rest], d.size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vectors:
    """A nonlinearity that acts on vectors, made ready for the same balls; the columns by themselves, then y - x."""

    op: Grouped

    def apply(self, x: Balls) -> Balls:
        points = column_range(x, 0, 2)
        values = apply_to_vectors(self.op, points)
        if x.mid.shape[1] == 2:
            return values
        plain = add([column_range(values, 1, 2), negative(column_range(values, 0, 1))])
        return beside(values, plain)


def product(x: Balls, y: Balls) -> Balls:
    """The products of the values at both points; where there are differences, that of a product as two products."""
    values = _times(column_range(x, 0, 2), column_range(y, 0, 2))
    if x.mid.shape[1] == 2:
        return values
    ahead = _times(column_range(x, 1, 2), column_range(y, 2, 3))
    return beside(values, add([ahead, _times(column_range(x, 2, 3), column_range(y, 0, 1))]))


def _times(x: Balls, y: Balls) -> Balls:
    """x y, entry by entry."""
    x, y = x.shortened(), y.shortened()
    radius = None
    if x.radius is not None or y.radius is not None:
        with np.errstate(all="ignore"):
            radius = (x.radii() * y.magnitude() + x.magnitude() * y.radii()) * INFLATE + TINY
        radius[np.isnan(radius)] = np.inf
    return Balls(mid=x.mid * y.mid, exponent=x.exponent + y.exponent, radius=radius)


def apply_to_vectors(op: Grouped, x: Balls) -> Balls:
    """A function of vectors, group by group and column by column."""
    mid, radius = object_array([0] * x.mid.size, x.mid.shape), np.zeros(x.mid.shape)
    radii = x.radii()
    with ctx.workprec(PRECISION):
        for group in op.groups.tolist():
            for column in range(x.mid.shape[1]):
                known = [(int(x.mid[i, column]), float(radii[i, column])) for i in group]
                if all(math.isfinite(r) for _, r in known):
                    v = [arb((m, -x.exponent)) + arb(0, r) for m, r in known]
                    found = [_fixed(y) for y in op.function.balls(v)]
                else:
                    found = [(0, math.inf)] * len(group)
                mid[group, column] = [m for m, _ in found]
                radius[group, column] = [r for _, r in found]
    return Balls(mid=mid, exponent=FRACTION, radius=radius)


def scalar(activation: Activation) -> Scalar:
    """The activation, its pieces found. Raises NotLipschitz where it jumps."""
    known = None
    if activation.piecewise_linear:
        known = pieces(activation.exact, activation.breakpoints, name=activation.name)
    try:
        steepest = max(abs(float(s)) for s in activation.slopes())
    except NotLipschitz:
        steepest = None
    return Scalar(activation=activation, pieces=known, steepest=steepest)


def _value(activation: Activation) -> Callable[[arb], arb]:
    """f on balls; where one formula holds everywhere it is evaluated without further ado."""
    if len(activation.pieces) != 1 or activation.joints:
        return activation.enclose
    formula = activation.pieces[0].value.formula

    def value(x: arb) -> arb:
        y = formula.ball(x)
        return y if y.is_finite() else activation.enclose(x)

    return value


def entries(x: Balls, index: Array) -> Balls:
    """The rows x[index]."""
    return Balls(mid=x.mid[index], exponent=x.exponent, radius=None if x.radius is None else x.radius[index])


def column_range(x: Balls, first: int, last: int) -> Balls:
    """Columns first..last-1."""
    radius = None if x.radius is None else x.radius[:, first:last]
    return Balls(mid=x.mid[:, first:last], exponent=x.exponent, radius=radius)


def beside(left: Balls, right: Balls) -> Balls:
    """The columns of both."""
    exponent = max(left.exponent, right.exponent)
    a, b = left.rescaled(exponent), right.rescaled(exponent)
    radius = None
    if a.radius is not None or b.radius is not None:
        radius = np.concatenate([a.radii(), b.radii()], axis=1)
    return Balls(mid=np.concatenate([a.mid, b.mid], axis=1), exponent=exponent, radius=radius)


def negative(x: Balls) -> Balls:
    """-x."""
    return Balls(mid=-x.mid, exponent=x.exponent, radius=x.radius)


def float_up(value: Fraction) -> float:
    """The least double at least as large (inf beyond the range)."""
    try:
        out = float(value)
    except OverflowError:
        return math.inf
    return out if Fraction(out) >= value else math.nextafter(out, math.inf)


def _shifted(x: Balls, point: Fraction) -> Balls:
    """x - point, scaled by the denominator of point (signs are what is wanted of it)."""
    exponent = max(x.exponent, 0)
    mid = x.rescaled(exponent).mid * point.denominator - (point.numerator << exponent)
    radius = None
    if x.radius is not None:
        with np.errstate(all="ignore"):
            radius = x.radius * float_up(Fraction(point.denominator)) * INFLATE + TINY
    return Balls(mid=mid, exponent=exponent, radius=radius)


def _above(mid: Array, point: Fraction, exponent: int) -> Array:
    """1 where mid * 2^-exponent > point, else 0."""
    scale = max(exponent, 0)
    values = mid * (point.denominator << (scale - exponent)) - (point.numerator << scale)
    return np.asarray(np.sign(values).astype(np.int64) > 0, dtype=np.int64)
