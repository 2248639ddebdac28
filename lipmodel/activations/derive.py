"""Slope intervals from a sympy expression alone.

sympy supplies branches, derivatives and limits at singular points; every inequality is proved in balls or on
half-lines. For each smooth branch this finds a list of places between which f' is proved monotone, because f'' has no
zero there: interval branch and bound on a bounded window, and an expansion with proved remainders from the window to
infinity or to a singular end. The same is done for f itself (zeros of f'), which gives value ranges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import sympy
from flint import arb, ctx

from lipmodel.activations.asymptotics import Tail
from lipmodel.activations.balls import outward, rational
from lipmodel.activations.branches import (
    Branch,
    Cut,
    X,
    approach,
    branches,
    continuous,
    place,
    prepare,
    regular,
    settle,
    zeros_in_window,
)
from lipmodel.activations.formula import Affine, Expression, Formula, from_sympy
from lipmodel.activations.scales import Undecided, Unsupported, number_ball, number_sign
from lipmodel.activations.shapes import Shape
from lipmodel.activations.signs import Cell, Unresolved, variation, zero_cells
from lipmodel.activations.spec import Activation, Joint
from lipmodel.activations.tracks import Bounds, Limit, Piece, Place, Track, Turn, hull, track_range
from lipmodel.errors import NotLipschitz, SoundnessError, UsageError

Smooth = tuple[Expression, Expression, Expression]
"""A function and its first two derivatives."""

_EVERYTHING: Bounds = (-math.inf, math.inf)
_SIGNIFICANT = Fraction(1, 2**120)
_NARROW = arb(2) ** -60
_FAR = 5
"""2^5: where a tail that oscillates for ever starts to be bounded as a whole."""


def derive(expression: Any, params: Mapping[str, float], *, name: str) -> Shape:
    """The pieces of an activation given by a sympy expression; its other symbols have the values `params`.

    Raises UsageError where the expression is not one of a single real variable in the functions known, NotLipschitz
    with the reason where its structure cannot be proved. Jumps and undefined stretches become joints, which refuse
    the intervals that touch them.
    """
    try:
        prepared = prepare(expression, params)
        leaves = list(branches(prepared))
        if all(leaf.expression is None for leaf in leaves):
            raise UsageError(f"{expression} has no real values")
        joints = tuple(_joints(prepared, leaves))
        pieces = tuple(_piece(leaf) for leaf in _united_branches(leaves, joints) if leaf.expression is not None)
        return Shape(pieces=pieces, joints=joints)
    except NotLipschitz as error:
        raise NotLipschitz(f"{name} is refused: {error}") from None
    except (UsageError, Unsupported) as error:
        raise UsageError(f"{name} cannot be derived: {error}") from None


def _united_branches(leaves: list[Branch], joints: tuple[Joint, ...]) -> list[Branch]:
    """The branches, where a switch that changes nothing no longer separates two."""
    refused = {joint.at for joint in joints}
    result = [leaves[0]]
    for leaf in leaves[1:]:
        last = result[-1]
        same = leaf.expression is not None and leaf.expression == last.expression
        if same and leaf.left is not None and leaf.left.at not in refused:
            formulas = [from_sympy(leaf.expression, X), from_sympy(sympy.diff(leaf.expression, X), X)]
            if regular(tuple(formulas), leaf.left):
                result[-1] = Branch(left=last.left, right=leaf.right, expression=leaf.expression)
                continue
        result.append(leaf)
    return result


def _piece(branch: Branch) -> Piece:
    f = [branch.expression]
    for _ in range(3):
        f.append(_simplified(sympy.diff(f[-1], X)))
    return Piece(
        lower=None if branch.left is None else branch.left.at,
        upper=None if branch.right is None else branch.right.at,
        value=_track(f[0], f[1], f[2], branch, slope=False),
        slope=_track(f[1], f[2], f[3], branch, slope=True),
    )


def _simplified(e: Any) -> Any:
    """The same expression, free of X where that is seen by cancelling."""
    if e.has(X) and e.count_ops() <= 100 and e.is_rational_function(X):
        reduced = sympy.cancel(e)
        return e if reduced.has(X) else reduced
    return e


def _track(q: Any, dq: Any, ddq: Any, branch: Branch, *, slope: bool) -> Track:
    """q between the cuts of a branch, with the places where its derivative dq may vanish."""
    affine = _affine(q)
    if affine is not None and (not slope or not affine.slope):
        sign = (affine.slope > 0) - (affine.slope < 0)
        ends = [_line_end(affine, side * sign, slope) for side in (-1, 1)]
        return Track(
            formula=affine,
            left=ends[0] if branch.left is None else None,
            right=ends[1] if branch.right is None else None,
        )
    formula: Formula = affine or from_sympy(q, X)
    if not q.has(X):
        everywhere = from_sympy(q, X)
        return Track(formula=everywhere, left=everywhere, right=everywhere)
    smooth = (from_sympy(q, X), from_sympy(dq, X), from_sympy(ddq, X))
    turns: list[Turn] = []
    limits: list[Limit] = []
    window: list[Fraction] = []
    period = _period(q) if branch.left is None or branch.right is None else None
    for end, other, side in ((branch.left, branch.right, -1), (branch.right, branch.left, 1)):
        if end is not None and regular(smooth, end):
            window.append(end.at[0] if side < 0 else end.at[1])
            limits.append(None)
        elif end is None and period is not None:
            inner = Fraction(0) if other is None else other.at[1 if side > 0 else 0]
            window.append(Fraction(math.floor(inner)) + side * (period + 1))
            limits.append(None)
        else:
            start, limit, turn = _open_end(q, dq, end, side, slope=slope)
            window.append(start)
            limits.append(limit)
            turns += [] if turn is None else [turn]
    if window[0] < window[1]:
        turns += _turns(dq, smooth, window[0], window[1], slope=slope)
    turns.sort(key=lambda turn: turn.at[0])
    track = Track(formula=formula, turns=tuple(turns), left=limits[0], right=limits[1])
    return track if period is None else _repeated(track, branch, window)


def _period(q: Any) -> int | None:
    """An integer above a period of q, proved to be one by substitution; None if there is none."""
    if not q.has(sympy.sin, sympy.cos):
        return None
    try:
        period = sympy.periodicity(q, X)
    except Exception:  # whatever goes wrong in a search for a period, there is none to use
        return None
    if period is None or not period.is_positive:
        return None
    moved = q.subs(X, X + period).replace(
        lambda e: isinstance(e, sympy.sin | sympy.cos), lambda e: e.func(sympy.expand(e.args[0]))
    )
    if sympy.expand(moved - q) != 0:
        return None
    return math.ceil(outward(number_ball(period))[1])


def _repeated(track: Track, branch: Branch, window: list[Fraction]) -> Track:
    """A track whose window holds a whole period: beyond it, its values are those inside."""
    inside = Piece(
        lower=None if branch.left is None else branch.left.at,
        upper=None if branch.right is None else branch.right.at,
        value=track,
        slope=track,
    )
    low = -math.inf if branch.left is not None else float(window[0])
    high = math.inf if branch.right is not None else float(window[1])
    bounds = track_range(track, inside, low, high)
    left = [] if branch.left is not None else [Turn(at=(-math.inf, window[0]), bounds=bounds)]
    right = [] if branch.right is not None else [Turn(at=(window[1], math.inf), bounds=bounds)]
    return replace(track, turns=(*left, *track.turns, *right))


def _affine(e: Any) -> Affine | None:
    if not e.is_polynomial(X):
        return None
    p = sympy.Poly(e, X)
    if p.degree() > 1 or not (p.domain.is_ZZ or p.domain.is_QQ):
        return None
    slope, intercept = (Fraction(int(c.p), int(c.q)) for c in (p.coeff_monomial(X), p.coeff_monomial(1)))
    return Affine(slope=slope, intercept=intercept)


def _line_end(line: Affine, direction: int, slope: bool) -> Limit:
    if direction == 0:
        return line
    return "its derivative grows without bound" if slope else direction * math.inf


def _open_end(q: Any, dq: Any, end: Cut | None, side: int, *, slope: bool) -> tuple[Fraction, Limit, Turn | None]:
    """(start, limit, turn) at an infinite or singular end: from `start` on, q is monotone, or enclosed by `turn`."""
    where = f"x -> {'-' if side < 0 else ''}inf" if end is None else f"x -> {end}"
    settled = settle(dq, end, side)
    known, t = _known(q, end, side, None if settled is None else settled[1])
    bounds = None if known is None else known.bounds
    limit = _limit(known)
    if slope and limit in (math.inf, -math.inf):
        limit = f"its derivative grows without bound as {where}"
    if settled is not None and (limit is not None or (bounds is None and settled[2])):
        if limit is None:
            # Monotone, but towards what is not known: only intervals that reach the end need that.
            limit = f"its derivative could not be bounded as {where}" if slope else settled[2] * side * math.inf
        return settled[0], limit, None
    start = place(end, side, t)
    far: Fraction | float = side * math.inf if end is None else end.at[1 if side > 0 else 0]
    at: Place = (start, far) if side > 0 else (far, start)
    return start, limit, Turn(at=at, bounds=_EVERYTHING if bounds is None else outward(bounds))


def _known(q: Any, end: Cut | None, side: int, settled: Fraction | None) -> tuple[Tail | None, Fraction]:
    """What is proved of q near an end, and the t from which on it holds.

    settled: the t from which on q is monotone, where that is known; it serves as it is. Otherwise t grows until q is
    enclosed tightly, or far out.
    """
    far = Fraction(2) ** _FAR
    near = place(end, side, Fraction(1))
    size = _magnitude(from_sympy(q, X), near - 1, near + 1)
    t = Fraction(1) if settled is None else settled
    while t <= 2 ** (12 if end is None else 40):
        try:
            known = approach(q, end, side, t)
            tight = known.bounds is not None and known.bounds.rad() < (size + abs(known.bounds)) * _NARROW
            if (settled is not None or tight or t >= far) and (known.growth <= 0 or known.sign):
                return known, t
        except Undecided:
            pass
        except Unsupported:
            break
        t *= 2
    return None, far if settled is None else settled


def _limit(known: Tail | None) -> Limit:
    if known is None or (known.growth <= 0 and known.limit is None):
        return None
    if known.growth > 0:
        return known.sign * math.inf
    return from_sympy(sympy.simplify(known.limit), X)


def _turns(derivative: Any, smooth: Smooth, lower: Fraction, upper: Fraction, *, slope: bool) -> list[Turn]:
    """The places in a bounded window where the derivative of a smooth function may vanish."""
    q, dq, ddq = smooth
    try:
        return [_turn(q, dq, cell) for cell in zeros_in_window(derivative, lower, upper)]
    except Unresolved:
        pass
    try:
        return _united_turns(
            _turn(q, dq, cell) for cell in zero_cells(dq, ddq, lower, upper, _magnitude(q, lower, upper))
        )
    except Unresolved as error:
        if not slope:
            return [Turn(at=(lower, upper), bounds=_EVERYTHING)]
        raise NotLipschitz(f"its derivative could not be bounded near x = {float(error.at):.6g} ({error})") from None


def _turn(q: Formula, dq: Formula, cell: Cell) -> Turn:
    tiny = cell[1] - cell[0] <= _SIGNIFICANT * max(Fraction(1), abs(cell[0]))
    return Turn(at=cell, bounds=None if tiny else outward(variation(q, dq, cell)))


def _united_turns(turns: Iterable[Turn]) -> list[Turn]:
    """Touching wide turns united."""
    result: list[Turn] = []
    for turn in turns:
        last = result[-1] if result else None
        if last and last.bounds and turn.bounds and last.at[1] >= turn.at[0]:
            result[-1] = Turn(at=(last.at[0], turn.at[1]), bounds=hull([last.bounds, turn.bounds]))
        else:
            result.append(turn)
    return result


def _magnitude(q: Formula, lower: Fraction, upper: Fraction) -> arb:
    """The size of a function on an interval, from samples: the yardstick for what is flat."""
    size = arb(0)
    with ctx.workprec(128):
        for k in range(1, 16):
            value = abs(q.ball(rational(lower + (upper - lower) * k / 16)))
            if value.is_finite() and value.upper() > size:
                size = value.upper()
    return size


def _joints(prepared: Any, leaves: list[Branch]) -> list[Joint]:
    """What separates the branches: jumps, poles, and stretches without a value."""
    joints = []
    for leaf in leaves:
        if leaf.expression is None:
            low: Fraction | float = -math.inf if leaf.left is None else leaf.left.at[0]
            high: Fraction | float = math.inf if leaf.right is None else leaf.right.at[1]
            text = f"it is not defined between {float(low):g} and {float(high):g}"
            if leaf.left is None or leaf.right is None:
                text = f"it is not defined for x {f'< {float(high):g}' if leaf.left is None else f'> {float(low):g}'}"
            joints.append(Joint(at=(low, high), gap=True, refusal=text))
    for before, after in pairwise(leaves):
        cut = before.right
        if before.expression is not None and after.expression is not None and cut is not None:
            refusal, value = _jump(prepared, before.expression, after.expression, cut)
            if refusal:
                joints.append(Joint(at=cut.at, refusal=refusal, value=value))
    return joints


def _jump(prepared: Any, before: Any, after: Any, cut: Cut) -> tuple[str, Fraction | None]:
    """(why an activation is not continuous at a cut, its value there where it is rational); ("", None) if it is."""
    if continuous(prepared):
        return "", None
    if cut.exact is None:
        return f"its continuity near {cut} could not be proved", None
    limits = [_one_sided(before, cut, 1), _one_sided(after, cut, -1)]
    if any(isinstance(limit, str) for limit in limits):
        return next(limit for limit in limits if isinstance(limit, str)), None
    value = sympy.simplify(prepared.subs(X, cut.exact))
    own = Fraction(int(value.p), int(value.q)) if value.is_Rational else None
    try:
        if number_sign(limits[1] - limits[0]) != 0:
            return f"it jumps by {float(limits[1] - limits[0]):g} at {cut}", own
        if value.is_real and value.is_finite and number_sign(value - limits[0]) != 0:
            return f"its value at {cut} is not its limit there", own
    except Unsupported:
        return f"its continuity at {cut} could not be proved", None
    return "", None


def _one_sided(e: Any, cut: Cut, side: int) -> Any:
    """The limit of a branch at a cut as an exact number, or the reason why there is none."""
    if regular((from_sympy(e, X),), cut):
        return sympy.simplify(e.subs(X, cut.exact))
    for exponent in range(41):
        try:
            known = approach(e, cut, side, Fraction(2) ** exponent)
        except Undecided:
            continue
        except Unsupported as error:
            return f"its limit at {cut} could not be determined ({error})"
        if known.growth > 0:
            return f"it is unbounded near {cut}"
        if known.limit is not None:
            return known.limit
        return f"it has no limit at {cut}"
    return f"its limit at {cut} could not be determined"


def cross_check(activation: Activation, expression: Any, params: Mapping[str, float]) -> None:
    """Compare a derived activation with sympy's own values of its expression; SoundnessError if they disagree.

    No proof rests on this: it is a guard against a wrong result of a symbolic step, at two dozen points and secants.
    """
    e = prepare(expression, params)
    before: tuple[float, float] | None = None
    for k in range(-12, 13):
        x = k * 0.6875 + 0.109375
        value = e.subs(X, sympy.Float(x, 40))
        if not (value.is_number and value.is_real and value.is_finite):
            before = None
            continue
        y = float(value)
        if not math.isfinite(y):
            before = None
            continue
        error = 1e-9 * (1 + abs(y))
        enclosure = outward(activation.enclose(arb(x)))
        if not enclosure[0] - error <= y <= enclosure[1] + error:
            raise SoundnessError(f"{activation.label}: {enclosure} does not contain f({x}) = {y}")
        if before is not None:
            try:
                alpha, beta = activation.slopes(before[0], x)
            except NotLipschitz:
                alpha, beta = _EVERYTHING
            secant = (y - before[1]) / (x - before[0])
            if not alpha - 4 * error <= secant <= beta + 4 * error:
                raise SoundnessError(
                    f"{activation.label}: slope {secant} on [{before[0]}, {x}] not in [{alpha}, {beta}]"
                )
        before = (x, y)
