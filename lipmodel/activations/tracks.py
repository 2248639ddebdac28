"""Ranges of functions that are monotone between known points: the engine under slopes and value ranges.

A `Track` is one smooth function on one piece of the line (an activation, or its derivative) with all points between
which it is monotone. Its range over an interval is then the hull of finitely many point values, each enclosed in
balls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from lipmodel.activations.formula import Affine, Expression, Formula
from lipmodel.errors import NotLipschitz

Bounds = tuple[float, float]
Place = tuple[Fraction | float, Fraction | float]
"""lower <= x <= upper, where the ends may be infinite; the two agree where x is exact."""

Limit = Formula | float | str | None
"""The limit at an open end: a constant formula, +-inf, the reason why there is none, or None: evaluate there."""

_START, _STOP, _CEILING = 96, 1536, 1 << 14
_EVERYTHING: Bounds = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A place between monotone stretches of a track; `bounds` encloses its values there where they are known."""

    at: Place
    bounds: Bounds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """Infinitely many exact turns offset + k spacing, where the track takes values[k mod len(values)]."""

    offset: Expression
    spacing: Expression
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A function that is monotone between consecutive turns; `left` and `right` are its limits at the ends."""

    formula: Formula
    turns: tuple[Turn, ...] = ()
    lattice: Lattice | None = None
    left: Limit = None
    right: Limit = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One smooth piece of an activation on (lower, upper), None for an infinite end: f and its derivative."""

    lower: Place | None = None
    upper: Place | None = None
    value: Track
    slope: Track

    def meets(self, lo: float, hi: float) -> bool:
        """Whether [lo, hi] may share more than an end point with the piece; for lo = hi, whether it may contain it."""
        if lo < hi:
            return (self.lower is None or hi > self.lower[0]) and (self.upper is None or lo < self.upper[1])
        return (self.lower is None or lo >= self.lower[0]) and (self.upper is None or lo <= self.upper[1])


def track_range(track: Track, piece: Piece, lo: float, hi: float) -> Bounds:
    """Outward doubles around the range of a track over [lo, hi] in its piece; NotLipschitz where there is no limit."""
    formula = track.formula
    if isinstance(formula, Affine) and not formula.slope:
        return tight(formula, (Fraction(0), Fraction(0)))
    found: list[Bounds] = []
    for turn in track.turns:
        if turn.at[0] < hi and turn.at[1] > lo:
            found.append(turn.bounds or tight(formula, turn.at))
    if track.lattice is not None:
        found += [(v, v) for v in lattice_values(track.lattice, lo, hi)]
    inside_left = piece.lower is None or lo > piece.lower[1]
    inside_right = piece.upper is None or hi < piece.upper[0]
    found += _end(track, piece, -1, (lo, lo) if inside_left else piece.lower, own=inside_left)
    found += _end(track, piece, 1, (hi, hi) if inside_right else piece.upper, own=inside_right)
    return hull(found)


def hull(found: list[Bounds]) -> Bounds:
    return (min(b[0] for b in found), max(b[1] for b in found))


def _end(track: Track, piece: Piece, side: int, at: Place | None, *, own: bool) -> list[Bounds]:
    """The value of a track at one end of a range: a point of the query (own), or the end of the piece."""
    assert at is not None
    limit = track.left if side < 0 else track.right
    inside = own and math.isfinite(at[0])
    if not inside and isinstance(limit, str):
        raise NotLipschitz(limit)
    if any(t.bounds is not None and t.at[0] <= at[0] and at[1] <= t.at[1] for t in track.turns):
        return []
    if inside or limit is None:
        value = tight(track.formula, at) if math.isfinite(at[0]) else _EVERYTHING
        return [value] if _finite(value) else _from_limit(track, piece, at[0])
    return [limit_bounds(limit)]


def limit_bounds(limit: Limit) -> Bounds:
    """Outward doubles around a limit; NotLipschitz with the reason where there is none."""
    if isinstance(limit, str):
        raise NotLipschitz(limit)
    if limit is None:
        return _EVERYTHING
    if isinstance(limit, float):
        return (limit, limit)
    return tight(limit, (Fraction(0), Fraction(0)))


def _from_limit(track: Track, piece: Piece, x: Fraction | float) -> list[Bounds]:
    """Bounds at a point so far out that its own evaluation overflows: between the limit and a point further in.

    Beyond its outermost turns a track is monotone, so its value at x lies between its limit and its value at any point
    on the other side that is still beyond all turns.
    """
    side = 1 if x > 0 else -1
    if math.isfinite(x) and (piece.upper if side > 0 else piece.lower) is None and track.lattice is None:
        limit = limit_bounds(track.right if side > 0 else track.left)
        inner = [*(e for t in track.turns for e in t.at), *(e for b in (piece.lower, piece.upper) if b for e in b)]
        bound = max((side * e for e in inner), default=Fraction(0))
        further_in = Fraction(x) / 2
        while side * further_in > max(bound, 1):
            value = tight(track.formula, (further_in, further_in))
            if _finite(value):
                return [limit, value]
            further_in /= 2
    return [_EVERYTHING]


def _finite(bounds: Bounds) -> bool:
    return math.isfinite(bounds[0]) and math.isfinite(bounds[1])


def lattice_values(lattice: Lattice, lo: float, hi: float) -> list[float]:
    """The values at all lattice points that [lo, hi] may contain, each once."""
    first, last = lattice_indices(lattice, lo, hi)
    count = len(lattice.values)
    if math.isinf(first) or math.isinf(last) or last - first >= count - 1:
        return list(lattice.values)
    return [lattice.values[k % count] for k in range(int(first), int(last) + 1)]


def lattice_indices(lattice: Lattice, lo: float, hi: float) -> tuple[float, float]:
    """The least and greatest k with offset + k spacing possibly in [lo, hi]; none where the first exceeds the last."""
    from flint import arb, ctx

    if math.isinf(lo) or math.isinf(hi):
        return (-math.inf, math.inf)
    # The index must be resolved: the integers near the largest doubles have 1024 bits.
    with ctx.workprec(1300):
        offset, spacing = lattice.offset.ball(arb(0)), lattice.spacing.ball(arb(0))
        first = ((arb(lo) - offset) / spacing).lower().ceil().unique_fmpz()
        last = ((arb(hi) - offset) / spacing).upper().floor().unique_fmpz()
    if first is None or last is None:
        return (-math.inf, math.inf)
    return (int(first), int(last))


def tight(formula: Formula, at: Place) -> Bounds:
    """Outward doubles around the value of a formula at a place, as tight as its exactness allows.

    The precision grows until the two doubles are neighbours; what cancels beyond reach, or is below the subnormal
    numbers, keeps a wider enclosure, which is still one.
    """
    from lipmodel.activations.balls import float_down, float_up

    lower, upper = Fraction(at[0]), Fraction(at[1])
    if isinstance(formula, Affine):
        ends = (formula.fraction(lower), formula.fraction(upper))
        return (float_down(min(ends)), float_up(max(ends)))
    return _tight(formula, lower, upper)


def _tight(formula: Expression, lower: Fraction, upper: Fraction) -> Bounds:
    from flint import ctx

    from lipmodel.activations.balls import ball, outward

    best = _EVERYTHING
    precision = _START
    while True:
        with ctx.workprec(precision):
            low, high = outward(formula.ball(ball((lower, upper))))
        best = (max(best[0], low), min(best[1], high))
        narrow = best[1] <= math.nextafter(best[0], math.inf)
        vanishing = max(-best[0], best[1]) <= math.ulp(0.0)
        close = best[1] <= math.nextafter(math.nextafter(best[0], math.inf), math.inf)
        hopeless = close or not _finite(best)
        if narrow or vanishing or (hopeless and precision >= _STOP) or precision >= _CEILING:
            return best
        if lower != upper and precision >= 2 * _START:
            return best
        precision *= 2
