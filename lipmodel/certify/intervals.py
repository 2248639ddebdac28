"""Constants that are no rational numbers, such as square roots: enclosed between two that are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from flint import arb

from lipmodel.certify.functions import enclosed_values

BITS = 192
"""Bits of the ends of an interval, beyond which they are rounded outward."""


@dataclass(frozen=True, slots=True, eq=False)
class Between:
    """A number that lies between two, with the arithmetic of such; compared with another it is never equal."""

    low: Fraction
    high: Fraction

    def __neg__(self) -> Known:
        return Between(-self.high, -self.low)

    def __add__(self, other: Known) -> Known:
        low, high = ends(other)
        return between(self.low + low, self.high + high)

    def __sub__(self, other: Known) -> Known:
        return self + -other

    def __rsub__(self, other: Fraction) -> Known:
        return other + -self

    def __mul__(self, other: Known) -> Known:
        corners = [a * b for a, b in product(ends(self), ends(other))]
        return between(min(corners), max(corners))

    def __truediv__(self, other: Known) -> Known:
        return self * inverse(other)

    def __rtruediv__(self, other: Fraction) -> Known:
        return other * inverse(self)

    __radd__, __rmul__ = __add__, __mul__


Known = Fraction | Between
"""A number, exact or enclosed."""


def between(low: Fraction, high: Fraction) -> Known:
    """The number that lies there; itself where there is one alone."""
    return low if low == high else Between(-_rounded_up(-low), _rounded_up(high))


def ends(value: Known | float) -> tuple[Fraction, Fraction]:
    if isinstance(value, Between):
        return value.low, value.high
    return Fraction(value), Fraction(value)


def known(value: Known | float) -> Known:
    return value if isinstance(value, Between) else Fraction(value)


def inverse(value: Known) -> Known:
    """1 / value. Raises ZeroDivisionError where that may be infinite."""
    low, high = ends(value)
    if low <= 0 <= high:
        raise ZeroDivisionError("a division by what may be 0")
    return between(1 / high, 1 / low)


def applied(function: Callable[[arb], arb], value: Known) -> Known:
    """A function in ball arithmetic. Raises Unreadable where it is not known to be defined, or huge."""
    return between(*enclosed_values(function, *ends(value)))


def _rounded_up(value: Fraction) -> Fraction:
    n, d = value.as_integer_ratio()
    if n.bit_length() <= BITS and d & (d - 1) == 0:
        return value
    unit = Fraction(2) ** (n.bit_length() - d.bit_length() - BITS)
    return math.ceil(value / unit) * unit
