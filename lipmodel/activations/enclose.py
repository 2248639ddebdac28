"""Values of activations on balls."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from flint import arb

from lipmodel.activations.balls import ball, outward, rational_ends
from lipmodel.activations.formula import Formula
from lipmodel.activations.tracks import Bounds, Limit, Piece, lattice_values
from lipmodel.errors import NotLipschitz

if TYPE_CHECKING:
    from lipmodel.activations.spec import Activation


def enclose(activation: Activation, x: arb) -> arb:
    """A ball around f(x) for every point of the ball x; NaN where f is not defined."""
    if not x.is_finite():
        return _wide(activation, (-math.inf, math.inf)) if not x.is_nan() else arb.nan()
    span = outward(x)
    if any(j.gap and j.touches(*span) for j in activation.joints):
        return arb.nan()
    ends = rational_ends(x)
    if ends is None:
        return _wide(activation, span)
    found = [_on_piece(p, x, ends) for p in activation.pieces if _meets(p, ends)]
    found += [arb(float(j.value)) for j in activation.joints if j.value is not None and j.touches(*span)]
    if not found:
        return arb.nan()
    result = found[0]
    for other in found[1:]:
        result = result.union(other)
    return result if result.is_finite() else _wide(activation, span)


def _meets(piece: Piece, ends: tuple[Fraction, Fraction]) -> bool:
    return (piece.lower is None or ends[1] >= piece.lower[0]) and (piece.upper is None or ends[0] <= piece.upper[1])


def _on_piece(piece: Piece, x: arb, ends: tuple[Fraction, Fraction]) -> arb:
    track, (lo, hi) = piece.value, ends
    free_left = piece.lower is None or lo > piece.lower[1]
    free_right = piece.upper is None or hi < piece.upper[0]
    if free_left and free_right and lo == hi:
        return track.formula.ball(x)
    points = [_at(track.formula, (lo, lo), None) if free_left else _at(track.formula, piece.lower, track.left)]
    points.append(_at(track.formula, (hi, hi), None) if free_right else _at(track.formula, piece.upper, track.right))
    for turn in track.turns:
        if turn.at[0] <= hi and turn.at[1] >= lo:
            points.append(_from_bounds(turn.bounds) if turn.bounds else _at(track.formula, turn.at, None))
    if track.lattice is not None:
        points += [arb(v) for v in lattice_values(track.lattice, *outward(x))]
    result = points[0]
    for other in points[1:]:
        result = result.union(other)
    return result


def _at(formula: Formula, place: tuple[Fraction | float, Fraction | float] | None, limit: Limit) -> arb:
    assert place is not None
    if limit is None:
        return formula.ball(ball((Fraction(place[0]), Fraction(place[1]))))
    if isinstance(limit, str | float):
        return arb(0, math.inf)
    return limit.ball(arb(0))


def _from_bounds(bounds: Bounds) -> arb:
    if math.isinf(bounds[0]) or math.isinf(bounds[1]):
        return arb(0, math.inf)
    return arb(bounds[0]).union(arb(bounds[1]))


def _wide(activation: Activation, span: tuple[float, float]) -> arb:
    try:
        return _from_bounds(activation.value_range(*span))
    except NotLipschitz:
        return arb.nan()
