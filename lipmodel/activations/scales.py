"""Finite sums of scales x^a * exp(p(x)), their quotients, and which scale outgrows which."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import sympy
from flint import arb, ctx, fmpq

from lipmodel.activations.balls import rational
from lipmodel.activations.formula import evaluate_ball
from lipmodel.errors import UsageError

PRECISION = 256
LONGEST = 80
"""Operations in a constant that is still simplified, and in a coefficient that is still kept exactly."""
LARGEST = 40_000
"""Work in one product of sums, in terms and operations; beyond, nothing is proved."""


class Undecided(Exception):  # noqa: N818 - neither an error nor a failure
    """Not proved on this half-line; a larger threshold may help."""


class Unsupported(Exception):  # noqa: N818
    """The expression is outside what this module can rewrite."""


class TooLong(Unsupported):
    """A product that is beyond `LARGEST`."""


@dataclass(frozen=True, slots=True)
class Scale:
    """x^power * exp(sum of rate * x^degree), degrees positive and decreasing, rates nonzero real numbers of sympy."""

    power: Fraction = Fraction(0)
    rates: tuple[tuple[Fraction, Any], ...] = ()

    def __mul__(self, other: Scale) -> Scale:
        rates: dict[Fraction, Any] = dict(self.rates)
        for degree, rate in other.rates:
            rates[degree] = rates.get(degree, sympy.Integer(0)) + rate
        kept = tuple((d, r) for d, r in sorted(rates.items(), reverse=True) if number_sign(r) != 0)
        return Scale(self.power + other.power, kept)

    def __pow__(self, exponent: Fraction) -> Scale:
        factor = sympy.Rational(exponent.numerator, exponent.denominator)
        return Scale(self.power * exponent, tuple((d, r * factor) for d, r in self.rates if exponent))

    def growth(self) -> int:
        """1 if it tends to infinity, -1 if to 0, 0 if it is 1."""
        if self.rates:
            return number_sign(self.rates[0][1])
        return (self.power > 0) - (self.power < 0)

    def bound(self, threshold: Fraction) -> arb:
        """A ball that contains (0, sup] for a decaying scale on x >= threshold; Undecided where it may increase.

        x s'(x)/s(x) = power + sum degree rate x^degree must be negative: the top term outweighs the positive ones at
        the threshold, hence beyond it.
        """
        if self.growth() > 0:
            raise Unsupported("a bound of a scale that grows")
        r = rational(threshold)
        if self.rates:
            top, rate = self.rates[0]
            lower = [(d, number_ball(s) * rational(d)) for d, s in self.rates[1:]] + [
                (Fraction(0), rational(self.power))
            ]
            positive = sum((power(r, d - top) * c for d, c in lower if not c < 0), arb(0))
            if not positive < -number_ball(rate) * rational(top):
                raise Undecided
        value = power(r, self.power)
        for degree, rate in self.rates:
            value *= (number_ball(rate) * power(r, degree)).exp()
        return value.union(arb(0))


Terms = dict[Scale, Any]
"""A finite sum: scale -> coefficient, a sympy expression in remainder symbols."""
ONE = Scale()


def power(base: arb, exponent: Fraction) -> arb:
    return base ** fmpq(exponent.numerator, exponent.denominator)


def number_ball(number: Any) -> arb:
    """Enclosure of a real constant of sympy."""
    try:
        return evaluate_ball(sympy.sstr(number), {})
    except UsageError as error:
        raise Unsupported(f"{number} cannot be enclosed") from error


def number_sign(number: Any) -> int:
    """The sign of a real constant of sympy, proved by a ball that excludes zero or by simplification to zero."""
    if number.is_Rational:
        return int(number.p > 0) - int(number.p < 0)
    with ctx.workprec(PRECISION):
        enclosure = number_ball(number)
    if enclosure > 0:
        return 1
    if enclosure < 0:
        return -1
    if number.count_ops() <= LONGEST and sympy.simplify(number) == 0:
        return 0
    raise Unsupported(f"the sign of {number} could not be decided")


def vanishes(number: Any) -> bool:
    """Whether a constant of sympy is proved to be 0."""
    try:
        return bool(number.is_number) and number_sign(number) == 0
    except Unsupported:
        return False


@dataclass(frozen=True, slots=True)
class Quotient:
    """above / below."""

    above: Terms
    below: Terms


UNIT: Terms = {ONE: sympy.Integer(1)}


def faster(a: Scale, b: Scale) -> int:
    """-1 where a outgrows b."""
    return (b * a ** Fraction(-1)).growth()


def constant(value: Any) -> Quotient:
    return term(ONE, sympy.sympify(value))


def term(scale: Scale, coefficient: Any) -> Quotient:
    return Quotient({scale: coefficient} if coefficient != 0 else {}, UNIT)


def _collected(pairs: Any) -> Terms:
    sums: dict[Scale, Any] = {}
    for scale, coefficient in pairs:
        sums[scale] = sums.get(scale, sympy.Integer(0)) + coefficient
    expanded = ((scale, sympy.expand(c)) for scale, c in sums.items())
    return {scale: c for scale, c in expanded if c != 0}


def _size(terms: Terms) -> int:
    return sum(1 + int(c.count_ops()) for c in terms.values())


def _product(a: Terms, b: Terms) -> Terms:
    if _size(a) * _size(b) > LARGEST:
        raise TooLong("an expansion of too many terms")
    return _collected((s * t, c * d) for s, c in a.items() for t, d in b.items())


def normal(above: Terms, below: Terms) -> Quotient:
    """A quotient whose denominator, where it is a single exact term, has moved into the numerator."""
    if len(below) == 1:
        ((scale, coefficient),) = below.items()
        if not coefficient.free_symbols:
            if number_sign(coefficient) == 0:
                raise Unsupported("a division by zero")
            inverse = {scale ** Fraction(-1): 1 / coefficient}
            return Quotient(_product(above, inverse), UNIT)
    return Quotient(above, below)


def multiply(a: Quotient, b: Quotient) -> Quotient:
    return normal(_product(a.above, b.above), _product(a.below, b.below))


def add(a: Quotient, b: Quotient) -> Quotient:
    if a.below == b.below:
        return Quotient(_collected([*a.above.items(), *b.above.items()]), a.below)
    above = [*_product(a.above, b.below).items(), *_product(b.above, a.below).items()]
    return normal(_collected(above), _product(a.below, b.below))
