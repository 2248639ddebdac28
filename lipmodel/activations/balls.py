"""Balls of Arb (F. Johansson, 2017, arXiv:1611.02831) to and from rational points and outward-rounded doubles."""

from __future__ import annotations

import math
from fractions import Fraction

from flint import arb, fmpq

Point = tuple[Fraction, Fraction]
"""A real number x known as lower <= x <= upper; the two agree where it is exact."""


def point(value: Fraction | float | int) -> Point:
    """The exact point of a rational or of a binary float."""
    return (Fraction(value), Fraction(value))


def rational(value: Fraction) -> arb:
    """Ball around a rational, at the working precision; exact for a dyadic one that fits it."""
    return arb(fmpq(value.numerator, value.denominator))


def ball(at: tuple[Fraction, Fraction]) -> arb:
    """Ball that contains [lower, upper]."""
    lower = rational(at[0])
    return lower if at[0] == at[1] else lower.union(rational(at[1]))


def outward(x: arb) -> tuple[float, float]:
    """The tightest doubles around a ball, (-inf, inf) for one that is not finite."""
    ends = rational_ends(x)
    if ends is not None:
        return (float_down(ends[0]), float_up(ends[1]))
    if not x.is_finite():
        return (-math.inf, math.inf)
    low = [int(v) for v in x.lower().man_exp()]
    high = [int(v) for v in x.upper().man_exp()]
    return (_down(low[0], low[1]), 0.0 - _down(-high[0], high[1]))


def rational_ends(x: arb) -> tuple[Fraction, Fraction] | None:
    """The exact ends of a ball, whatever the working precision; None if infinite or too long to write down."""
    if not x.is_finite():
        return None
    parts = []
    for part in (x.mid(), x.rad()):
        mantissa, exponent = part.man_exp()
        if abs(int(exponent)) > 1 << 16:
            return None
        parts.append(_dyadic(int(mantissa), int(exponent)))
    return (parts[0] - parts[1], parts[0] + parts[1])


def _dyadic(mantissa: int, exponent: int) -> Fraction:
    return Fraction(mantissa << exponent) if exponent >= 0 else Fraction(mantissa, 1 << -exponent)


def _down(mantissa: int, exponent: int) -> float:
    """The largest double (or -inf) not above mantissa * 2^exponent."""
    if mantissa == 0:
        return 0.0
    magnitude = mantissa.bit_length() + exponent
    # Such exponents can have hundreds of digits themselves: never form the power of two.
    if magnitude > 1025:
        return math.nextafter(math.inf, 0.0) if mantissa > 0 else -math.inf
    if magnitude < -1080:
        return 0.0 if mantissa > 0 else -math.ulp(0.0)
    return float_down(_dyadic(mantissa, exponent))


def float_down(value: Fraction) -> float:
    """The largest double (or -inf) not above a rational."""
    try:
        nearest = float(value)
    except OverflowError:
        return math.nextafter(math.inf, 0.0) if value > 0 else -math.inf
    return math.nextafter(nearest, -math.inf) if Fraction(nearest) > value else nearest


def float_up(value: Fraction) -> float:
    """The smallest double (or inf) not below a rational."""
    return 0.0 - float_down(-value)  # 0.0 -, so that zero has the positive sign
