"""Building blocks of activations: affine and smooth pieces, places, and the jumps between pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lipmodel.activations.formula import Affine, Expression
from lipmodel.activations.spec import Joint
from lipmodel.activations.tracks import Lattice, Limit, Piece, Place, Track, Turn

Number = Fraction | float
"""A parameter: exact, or +-inf."""
INF = math.inf
ZERO, ONE = Fraction(0), Fraction(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a family makes of its parameters."""

    pieces: tuple[Piece, ...]
    joints: tuple[Joint, ...] = ()
    jumps: Lattice | None = None


def decimal(text: str, scale: Fraction = ONE) -> Place:
    """The enclosure of scale * t for a t that was rounded to the digits of `text`."""
    digits = len(text.partition(".")[2])
    value, error = Fraction(text), Fraction(1, 10**digits)
    ends = sorted((scale * (value - error), scale * (value + error)))
    return (ends[0], ends[1])


def exact(value: Fraction | int) -> Place:
    return (Fraction(value), Fraction(value))


def constant(value: Fraction | int) -> Affine:
    return Affine(slope=ZERO, intercept=Fraction(value))


def affine_piece(slope: Number, intercept: Number, lower: Place | None = None, upper: Place | None = None) -> Piece:
    slope, intercept = Fraction(slope), Fraction(intercept)
    ends = (0.0, 0.0) if slope == 0 else (-INF, INF) if slope > 0 else (INF, -INF)
    return Piece(
        lower=lower,
        upper=upper,
        value=Track(
            formula=Affine(slope=slope, intercept=intercept),
            left=ends[0] if lower is None else None,
            right=ends[1] if upper is None else None,
        ),
        slope=Track(formula=constant(slope), left=constant(slope), right=constant(slope)),
    )


def piecewise_affine(
    breaks: Sequence[Fraction], maps: Sequence[tuple[Number, Number]], at_breaks: object = None
) -> Shape:
    """(slope, intercept) maps between increasing breaks; `at_breaks`: the value at breaks where the sides disagree."""
    edges: list[Place | None] = [None, *(exact(b) for b in breaks), None]
    pieces = tuple(affine_piece(*m, edges[i], edges[i + 1]) for i, m in enumerate(maps))
    joints = []
    for i, b in enumerate(breaks):
        jump = (Fraction(maps[i + 1][0]) - Fraction(maps[i][0])) * b + Fraction(maps[i + 1][1]) - Fraction(maps[i][1])
        if jump:
            value = at_breaks if isinstance(at_breaks, Fraction) else None
            joints.append(Joint(at=exact(b), refusal=f"it jumps by {float(jump):g} at {float(b):g}", value=value))
    return Shape(pieces=pieces, joints=tuple(joints))


def smooth(
    value: str,
    slope: str,
    *,
    parameters: dict[str, Fraction] | None = None,
    slope_turns: Sequence[Place] = (),
    value_turns: Sequence[Place] = (),
    slopes: tuple[Limit | int, Limit | int] = (None, None),
    values: tuple[Limit | int, Limit | int] = (None, None),
    lower: Place | None = None,
    upper: Place | None = None,
) -> Piece:
    """One smooth piece: formulas, the places where they turn, and their limits at open ends."""
    known = tuple((parameters or {}).items())
    tracks = []
    for text, turns, (left, right) in ((value, value_turns, values), (slope, slope_turns, slopes)):
        ends = [constant(e) if isinstance(e, int) else e for e in (left, right)]
        formula = Expression(text=text, parameters=known)
        tracks.append(Track(formula=formula, turns=tuple(Turn(at=t) for t in turns), left=ends[0], right=ends[1]))
    return Piece(lower=lower, upper=upper, value=tracks[0], slope=tracks[1])


def whole(value: str, slope: str, **options: object) -> Callable[[], Shape]:
    """The builder of a family without parameters that is smooth on the whole line."""
    return lambda: Shape(pieces=(smooth(value, slope, **options),))  # type: ignore[arg-type]
