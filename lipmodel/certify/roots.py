"""Square roots of rationals as doubles, on the side that is asked for."""

from __future__ import annotations

import math
from fractions import Fraction


def sqrt_up(value: Fraction) -> float:
    """The smallest double >= sqrt(value), value >= 0; inf where there is none. Raises ValueError where value < 0."""
    if value < 0:
        raise ValueError(f"no square root of the negative number {value}")
    n, d = value.numerator, value.denominator
    # the root times 2^places has 53 or 54 bits; below the normal range doubles are multiples of 2^-1074
    places = min(1074, 53 - (n.bit_length() - d.bit_length()) // 2)
    while True:
        scaled_n, scaled_d = (n << 2 * places, d) if places >= 0 else (n, d << -2 * places)
        root = math.isqrt(scaled_n // scaled_d)
        if root < 2**53:
            break
        places -= 1
    if root * root * scaled_d < scaled_n:
        root += 1
    try:
        return math.ldexp(root, -places)
    except OverflowError:
        return math.inf
