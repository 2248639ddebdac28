"""Float32 arithmetic in rationals, with every freedom that a machine has: order, fusion, subnormal numbers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

LEAST_NORMAL = Fraction(1, 2**126)


def nearest(value: Fraction) -> Fraction:
    """The float32 number nearest to a rational, ties to even, subnormal numbers kept. Raises OverflowError."""
    if value == 0:
        return value
    n, d = abs(value.numerator), value.denominator
    exponent = n.bit_length() - d.bit_length()
    exponent -= Fraction(2) ** exponent > abs(value)
    quantum = Fraction(2) ** max(exponent - 23, -149)
    rounded = round(value / quantum) * quantum
    if abs(rounded) >= 2**128:
        raise OverflowError
    return rounded


@dataclass(frozen=True, slots=True, eq=False)
class Machine:
    """A way to compute in float32; `flush`: operands and results below 2^-126 become zero; `fused`: where it likes."""

    rng: Any
    flush: bool
    fused: bool

    def kept(self, value: Fraction) -> Fraction:
        return Fraction(0) if self.flush and abs(value) < LEAST_NORMAL else value

    def rounded(self, value: Fraction) -> Fraction:
        return self.kept(nearest(value))

    def times(self, a: Fraction, b: Fraction) -> Fraction:
        return self.rounded(self.kept(a) * self.kept(b))

    def plus(self, a: Fraction, b: Fraction) -> Fraction:
        return self.rounded(self.kept(a) + self.kept(b))

    def dot(self, weights: list[Fraction], x: list[Fraction], *more: Fraction) -> Fraction:
        """The sum of products and of some more numbers, in any order, some multiplications fused with an addition."""
        open_ = [(self.kept(w) * self.kept(v), True) for w, v in zip(weights, x, strict=True)]
        items = open_ + [(v, False) for v in more]
        if not items:
            return Fraction(0)
        if self.rng.integers(2):
            self.rng.shuffle(items)
        sequential = bool(self.rng.integers(2))
        while len(items) > 1:
            a = items.pop(0)
            b = items.pop(0 if sequential else int(self.rng.integers(len(items))))
            if self.fused and a[1] != b[1]:
                total = self.rounded(sum((self.kept(v) if not product else v for v, product in (a, b)), Fraction(0)))
            else:
                total = self.plus(*(self.rounded(v) if product else v for v, product in (a, b)))
            items.insert(0, (total, False))
        value, product = items[0]
        return self.rounded(value) if product else value

    def relu(self, x: list[Fraction]) -> list[Fraction]:
        return [max(self.kept(v), Fraction(0)) for v in x]


def machines(rng: Any) -> list[Machine]:
    """One of every kind."""
    return [Machine(rng, flush, fused) for flush in (False, True) for fused in (False, True)]


def rationals(values: Any) -> Any:
    """An array, or a list of arrays, as nested lists of rationals."""
    if isinstance(values, list | np.ndarray):
        return [rationals(v) for v in values]
    return Fraction(float(values))
