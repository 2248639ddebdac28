"""Slopes and values of the scalar functions of a network, in exact arithmetic, read independently of the importer.

For f continuous and piecewise C1 on an interval, the difference quotients of f there lie between the infimum and the
supremum of f' (mean value theorem), one-sided limits at breaks included. Ends that are no binary floats are rationals
just outside, far closer than two doubles are to each other: whoever rounds the true ends outward to doubles encloses
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

from flint import arb, ctx

from lipmodel.certify.curves import Ball, Function, Place, exact, function
from lipmodel.certify.tape import Kind, Number, Unreadable

Ends = tuple[Fraction, Fraction]

BITS = 256
"""Relative precision of what is enclosed."""
MOST_BITS = 4096
"""Working precision beyond which what cancels, or what comes very close to a double, is left as it is."""
HUGE, TINY = 1000, 8192
"""Numbers above 2^HUGE are not computed with; below 2^-TINY they are rounded outward."""


def _outside(low: str, high: str) -> Ends:
    """An interval around one whose ends have these first 40 decimal places."""
    unit = Fraction(1, 10**40)
    return Fraction(low) - unit, Fraction(high) + unit


_NONE = (-math.inf, math.inf)
_UNIT = (0.0, 1.0)
_PLAIN: Mapping[str, tuple[Number, Number]] = {
    **dict.fromkeys(("Relu", "Tanh", "Softplus", "LogSigmoid", "Softsign", "Atan", "Asinh", "Tanhshrink"), _UNIT),
    **dict.fromkeys(("Abs", "Sin", "Cos"), (-1.0, 1.0)),
    "Sigmoid": (0.0, 0.25),
    "HardSwish": (-0.5, 1.5),
    "Exp": (0.0, math.inf),
    # 2/sqrt(pi), at 0
    "Erf": (0.0, _outside("0", "1.1283791670955125738961589031215451716881")[1]),
    # 1/2 -+ (erf(1)/2 + exp(-1)/sqrt(pi)), at x^2 = 2
    "Gelu": _outside("-0.1289041451851547863407444422619733123324", "1.1289041451851547863407444422619733123324"),
    # where the second derivative vanishes
    "GeluTanh": _outside("-0.1289930686587717654559044703995538457343", "1.1289930686587717654559044703995538457343"),
    "Mish": _outside("-0.1125261223894625564073279011485534622233", "1.0884981612517278612282936273921257871577"),
}
_SWISH = _outside("-0.0998393201288669169581849243205709721307", "1.0998393201288669169581849243205709721307")


def _hull(*ends: Number) -> tuple[Number, Number]:
    return min(ends), max(ends)


def _shrink(bias: float, lambd: float) -> tuple[Number, Number]:
    """With lambd <= 0 nothing is cut: two half-lines, at a distance of twice the bias."""
    if lambd > 0.0:
        return _UNIT if bias == lambd else _NONE
    return (1.0, 1.0) if bias == 0.0 else _NONE


_PARAMETRIC: Mapping[str, tuple[tuple[str, ...], Callable[..., tuple[Number, Number]]]] = {
    "LeakyRelu": (("alpha",), lambda alpha: _hull(alpha, 1.0)),
    "Elu": (("alpha",), lambda alpha: _hull(0.0, alpha, 1.0)),
    "Celu": (("alpha",), lambda alpha: _UNIT if alpha > 0.0 else _NONE),
    "Selu": (("alpha", "gamma"), lambda alpha, gamma: _hull(0.0, Fraction(gamma) * Fraction(alpha), gamma)),
    "HardSigmoid": (("alpha", "beta"), lambda alpha, beta: _hull(0.0, alpha)),
    "ThresholdedRelu": (("alpha",), lambda alpha: _UNIT if alpha == 0.0 else _NONE),
    "Shrink": (("bias", "lambd"), _shrink),
    "Clip": (("min", "max"), lambda min, max: (1.0, 1.0) if (min, max) == _NONE else (0.0, float(min < max))),
    "Swish": (("beta",), lambda beta: _SWISH if beta else (0.5, 0.5)),
}
"""The parameters of a family, and the slopes on the line that it has with them."""


def kind_of(op: str, attributes: Mapping[str, Any]) -> Kind:
    """What the nodes of an operator apply: a family, and those attributes that are parameters of it.

    Numbers may be given as hexadecimal text. Raises Unreadable.
    """
    family = op
    if op == "Gelu" and attributes.get("approximate", "none") != "none":
        family = "GeluTanh" if attributes["approximate"] == "tanh" else "another Gelu"
    if family in _PLAIN:
        return Kind(family)
    if family not in _PARAMETRIC:
        raise Unreadable(f"the operator {family}")
    return Kind(family, tuple((name, _parameter(attributes.get(name))) for name in _PARAMETRIC[family][0]))


def _parameter(value: Any) -> float:
    try:
        number = float.fromhex(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unreadable("a function with a parameter that is not a finite number")
    return number


def global_slopes(kind: Kind) -> tuple[Number, Number]:
    """Ends of the difference quotients on the whole line; -inf and inf where they have none, or the function jumps."""
    if kind.family in _PLAIN:
        return _PLAIN[kind.family]
    return _PARAMETRIC[kind.family][1](**dict(kind.parameters))


def pieces(kind: Kind) -> tuple[list[Fraction], list[Fraction], list[Fraction]] | None:
    """Breaks, slopes and intercepts of a continuous piecewise linear function; None for others."""
    f = function(kind)
    if f.lines is None:
        return None
    return list(f.breaks), [slope for slope, _ in f.lines], [intercept for _, intercept in f.lines]


def slopes(kind: Kind, lo: Fraction, hi: Fraction) -> Ends:
    """Ends of the difference quotients on [lo, hi]; of the one-sided derivatives where lo = hi.

    Exact for piecewise linear functions, elsewhere rounded outward. Raises Unreadable where the function jumps.
    """
    f = _continuous(kind, lo, hi)
    met = _stretches(f, lo, hi)
    if f.lines is not None:
        return _union((f.lines[k][0],) * 2 for k, _, _ in met)
    parts = ((f.curves[k], a, b) for k, a, b in met)
    low, high = _union(_range(c.slope, c.turns, c.waves and c.waves[1], a, b) for c, a, b in parts)
    return _within(low, high, global_slopes(kind))


def values(kind: Kind, lo: Fraction, hi: Fraction) -> Ends:
    """Least and greatest value on [lo, hi]; exact for piecewise linear functions, elsewhere rounded outward.

    Raises Unreadable where the function jumps.
    """
    f = _continuous(kind, lo, hi)
    met = _stretches(f, lo, hi)
    if f.lines is not None:
        lines = f.lines
        return _union((lines[k][0] * x + lines[k][1],) * 2 for k, a, b in met for x in (a, b))
    parts = ((f.curves[k], a, b) for k, a, b in met)
    return _union(_within(*_range(c.value, c.extrema, c.waves and c.waves[0], a, b), c.bounds) for c, a, b in parts)


def _continuous(kind: Kind, lo: Fraction, hi: Fraction) -> Function:
    f = function(kind)
    if not lo <= hi or any(lo <= b <= hi for b in f.jumps):
        raise Unreadable(f"the function {kind.family}, which jumps")
    return f


def _stretches(f: Function, lo: Fraction, hi: Fraction) -> list[tuple[int, Fraction, Fraction]]:
    """The curves that meet [lo, hi], each with what it meets."""
    found = []
    for k in range(len(f.curves)):
        a = max(lo, f.breaks[k - 1]) if k else lo
        b = min(hi, f.breaks[k]) if k < len(f.breaks) else hi
        if a < b or (a == b and lo == hi):
            found.append((k, a, b))
    return found


def _range(curve: Ball, places: tuple[Place, ...], wave: int | None, lo: Fraction, hi: Fraction) -> Ends:
    """Least and greatest value on [lo, hi] of what changes direction at these places only."""
    found = [enclosed_values(curve, lo, lo), enclosed_values(curve, hi, hi)]
    found += [enclosed_values(curve, a, b) for a, b in places if lo <= b and a <= hi]
    if wave is not None:
        found += [(v, v) for v in _crests(curve, wave, lo, hi)]
    return _union(found)


def _within(low: Fraction, high: Fraction, bounds: tuple[Number, Number]) -> Ends:
    """The part of [low, high] between bounds that hold as well; balls reach beyond limits that are only approached."""
    return (
        low if low >= bounds[0] else Fraction(bounds[0]),
        high if high <= bounds[1] else Fraction(bounds[1]),
    )


def _union(found: Iterable[Ends]) -> Ends:
    low, high = zip(*found, strict=True)
    return min(low), max(high)


def _crests(curve: Ball, offset: int, lo: Fraction, hi: Fraction) -> list[Fraction]:
    """Which of 1 and -1 a wave reaches on [lo, hi], its crests and troughs being at (2k + offset) pi/2."""
    with ctx.workprec(BITS + 2 * max(lo.numerator.bit_length(), hi.numerator.bit_length())):
        quarter = arb.pi() / 2
        first, last = ((exact(x) / quarter - offset) / 2 for x in (lo, hi))
        numbers = range(math.ceil(_ends(first)[0]), math.floor(_ends(last)[1]) + 1)
        return [Fraction(1 if curve(quarter * (2 * k + offset)) > 0 else -1) for k in numbers[:2]]


def enclosed_values(curve: Ball, lo: Fraction, hi: Fraction) -> Ends:
    """Bounds of the values on [lo, hi], without regard to how they depend on each other.

    At one point with more precision until no double lies between the bounds: then they are no wider than what somebody
    else has rounded to doubles.
    """
    bits = 2 * BITS
    while True:
        with ctx.workprec(bits):
            ball = curve(_between(lo, hi))
            low, high = _ends(ball)
        fine = ball.rel_accuracy_bits() >= BITS and (low == high or not low <= Fraction(float(low)) <= high)
        if fine or lo != hi or bits >= MOST_BITS:
            return low, high
        bits *= 2


def _between(lo: Fraction, hi: Fraction) -> arb:
    return exact(lo) if lo == hi else exact(lo).union(exact(hi))


def _ends(ball: arb) -> Ends:
    """The ends of a ball, rounded outward where they are tiny. Raises Unreadable where they are huge, or unknown."""
    if not ball.is_finite():
        raise Unreadable("a function with values that are not known")
    ends = []
    for end, outward in ((ball.lower(), -1), (ball.upper(), 1)):
        mantissa, exponent = (int(v) for v in end.man_exp())
        size = exponent + mantissa.bit_length()
        if size > HUGE:
            raise Unreadable("a function with very large values")
        if mantissa and size < -TINY:
            ends.append(Fraction(outward, 2**TINY) if mantissa * outward > 0 else Fraction(0))
        else:
            ends.append(Fraction(mantissa) * Fraction(2) ** exponent)
    return ends[0], ends[1]
