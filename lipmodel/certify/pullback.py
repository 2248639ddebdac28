"""Linear functions of a value deep in a network, bounded below by going back through it, in integers.

Coefficients are rounded to 16 bits, maps are split into matrices so small that all sums of products stay below 2^53:
floating point computes them without rounding, in whatever order. What is rounded off a coefficient is counted against
the interval of the value that it belongs to. (More bits would not always give smaller ranges: where a value is small,
its interval says more than the lines do.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.certify.tape import Fixed, Sparse

Array = np.ndarray[Any, np.dtype[Any]]

SHORT = 16
"""Bits of a coefficient."""
COLUMN = 52 - SHORT
"""Bits of the sums of moduli in a column of the matrices that a map is split into."""
SPARE = 8
"""Bits below the last one of a product of the first of these matrices that are kept of the second one's."""
SLOPE = 60 - SHORT
"""Bits of the slopes of a line."""
SUM = 58
"""Bits of sums of coefficients."""
CHARGED = 20
"""Bits of what is rounded off a coefficient, rounded up."""
VECTOR = 96
"""Bits of the vectors that coefficients are multiplied with."""
ROOT = 64
"""Fractional bits of square roots."""


@dataclass(slots=True, eq=False)
class Rows:
    """Linear functions: coefficients * 2^power, integers in float64 (rows, n) of at most SHORT bits; power: (rows,)."""

    coefficients: Array
    power: Array


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """A matrix (m, n) as (first 2^gap + second) 2^power, up to |rest| 2^power in each sum over a column.

    first, second: integers in float64, transposed; second None where the first is all.
    """

    first: Any
    second: Any
    gap: int
    power: int
    rest: int


def split(map: Sparse) -> Split:
    """The map, made ready for coefficients."""
    sums, counts = [0] * map.columns, [0] * map.columns
    for row in map.rows:
        for c, (v, _) in row.items():
            sums[c] += abs(v)
            counts[c] += 1
    many = max(counts, default=0).bit_length()
    cut = max(0, max(sums, default=0).bit_length() - COLUMN)
    lower = max(0, cut - COLUMN + many) if cut else 0
    rows, columns = map.pattern
    numbers = [v for row in map.rows for v, _ in row.values()]
    first = [(abs(v) >> cut) * (1 if v > 0 else -1) for v in numbers]
    parts = [_matrix(first, rows, columns, map)]
    rest = False
    if cut:
        left = [v - (w << cut) for v, w in zip(numbers, first, strict=True)]
        second = [(abs(v) >> lower) * (1 if v > 0 else -1) for v in left]
        rest = any(v != w << lower for v, w in zip(left, second, strict=True))
        parts.append(_matrix(second, rows, columns, map))
    return Split(parts[0], parts[1] if cut else None, cut - lower, lower - map.exponent, rest << many if rest else 0)


def _matrix(values: list[int], rows: Array, columns: Array, map: Sparse) -> Any:
    shape = (map.columns, len(map.rows))
    data = np.array(values, dtype=np.float64)
    matrix: Any = sp.csr_array((data, (columns, rows)), shape=shape)
    return matrix.toarray() if 20 * len(values) > shape[0] * shape[1] else matrix


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Coefficients before they are rounded: integers (rows, n) in int64, times 2^power, each known up to slop units."""

    values: Array
    power: Array
    slop: int = 0


def pulled(rows: Rows, map: Split) -> Sums:
    """Coefficients of the argument of a map; of at most 52 + SPARE + 1 bits."""
    turned = np.ascontiguousarray(rows.coefficients.T)
    total = np.asarray(map.first @ turned).T.astype(np.int64) << SPARE
    slop = 0
    if map.second is not None:
        more = np.asarray(map.second @ turned).T.astype(np.int64)
        shift = map.gap - SPARE
        total += more >> shift if shift > 0 else more << -shift
        slop = int(shift > 0)
        if map.rest:
            slop += (map.rest << SHORT + max(-shift, 0) >> max(shift, 0)) + 1
    return Sums(total, rows.power + map.power + map.gap - SPARE, slop)


def added(parts: Sequence[Sums]) -> Sums:
    """The sum of coefficients, of at most SUM bits; what is cut off below adds to the slop."""
    if len(parts) == 1:
        return parts[0]
    fine = SUM - len(parts).bit_length()
    bits = [np.maximum(_bits(part.values), part.slop.bit_length()) for part in parts]
    least = min(int(part.power.min()) for part in parts)
    power = np.max([np.where(b > 0, b + part.power, least) for b, part in zip(bits, parts, strict=True)], axis=0) - fine
    total, slop = np.zeros(parts[0].values.shape, dtype=np.int64), 0
    for part in parts:
        up = part.power - power
        left, right = np.clip(up, 0, 62)[:, None], np.clip(-up, 0, 62)[:, None]
        total += (part.values << left) >> right
        # at most one unit by the shift to the right; the slop of a part counts in its own units
        slop += int(bool(np.any(up < 0))) + (part.slop << max(0, int(up.max())) if part.slop else 0)
    return Sums(total, power, slop)


def _bits(values: Array) -> Array:
    """Per row, at least as many bits as the largest entry has; 0 for a row of zeros."""
    largest = np.abs(values).max(axis=1, initial=0)
    return np.asarray(np.where(largest > 0, np.frexp(largest.astype(np.float64))[1], 0), dtype=np.int64)


def shortened(sums: Sums) -> tuple[Rows, Array | None]:
    """Rows near the sums, and the moduli of what was rounded off, in their units; None for nothing."""
    shift = np.maximum(_bits(sums.values) - SHORT, 0)
    if not shift.any():
        return Rows(sums.values.astype(np.float64), sums.power), None
    by = shift[:, None]
    short = sums.values >> by
    rest = sums.values - (short << by)
    half = np.where(by > 0, np.int64(1) << np.maximum(by - 1, 0), 1)
    up = (rest > half) | ((rest == half) & (short & 1 == 1))
    short += up
    rest = np.where(up, (np.int64(1) << by) - rest, rest)
    return Rows(short.astype(np.float64), sums.power + shift), rest if rest.any() else None


def scaled(rows: Rows, low: Array, high: Array) -> Array:
    """Nonnegative coefficients times low, negative ones times high: int64; low, high: int64 of at most SLOPE bits."""
    values = rows.coefficients.astype(np.int64)
    return np.where(values >= 0, values * low, values * high)


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """Intervals made ready for coefficients: digits of midpoints and radii (entries, count) of `width` bits each.

    sizes: upper bounds of the moduli, integers over 2^(cut - exponent).
    """

    middle: Array
    radius: Array | None
    width: int
    exponent: int
    sizes: Array
    cut: int


def vector(x: Fixed) -> Vector:
    """Intervals made ready, outward to VECTOR bits."""
    x = x.rounded(VECTOR)
    width = 53 - SHORT - len(x.entries).bit_length()
    moduli = [abs(v) + r for v, r in x.entries]
    cut = max(0, max(moduli, default=0).bit_length() - (62 - CHARGED - 1 - len(moduli).bit_length()))
    radii = [r for _, r in x.entries]
    return Vector(
        middle=_digits([v for v, _ in x.entries], width),
        radius=_digits(radii, width) if any(radii) else None,
        width=width,
        exponent=x.exponent,
        sizes=np.array([-(-v >> cut) for v in moduli], dtype=np.int64),
        cut=cut,
    )


def _digits(x: Sequence[int], width: int) -> Array:
    """The digits of the moduli, lowest first, with the signs of the numbers."""
    count = max((abs(v).bit_length() for v in x), default=0) // width + 1
    mask = (1 << width) - 1
    signs = np.array([-1.0 if v < 0 else 1.0 for v in x])
    sizes = [abs(v) for v in x]
    columns = [signs * [(v >> width * k) & mask for v in sizes] for k in range(count)]
    return np.stack(columns, axis=1) if len(x) else np.zeros((0, count))


def _products(coefficients: Array, digits: Array, width: int) -> list[int]:
    found = np.asarray(coefficients @ digits).astype(np.int64).tolist()
    return [sum(v << width * k for k, v in enumerate(row)) for row in found]


class Bounds:
    """Lower bounds of some linear functions, one rational number per row."""

    def __init__(self, count: int) -> None:
        self.values = [Fraction(0)] * count

    def add(self, numbers: Sequence[int], exponent: int, power: Array) -> None:
        """Add number * 2^(power - exponent), row by row."""
        for i, (number, p) in enumerate(zip(numbers, power.tolist(), strict=True)):
            if number:
                shift = p - exponent
                self.values[i] += number << shift if shift >= 0 else Fraction(number, 1 << -shift)

    def gather(self, rows: Rows, x: Vector) -> None:
        """Add a lower bound of the functions for all x in the intervals."""
        total = _products(rows.coefficients, x.middle, x.width)
        if x.radius is not None:
            radii = _products(np.abs(rows.coefficients), x.radius, x.width)
            total = [a - b for a, b in zip(total, radii, strict=True)]
        self.add(total, x.exponent, rows.power)

    def charge(self, rest: Array | None, slop: int, power: Array, x: Vector) -> None:
        """Subtract sum_j (rest_ij + slop) |x_j| 2^power."""
        if slop:
            self.add([-slop * int(x.sizes.sum())] * len(power), x.exponent - x.cut, power)
        if rest is not None:
            by = np.maximum(_bits(rest) - CHARGED, 0)
            short = -(-rest >> by[:, None])
            self.add([-v for v in (short @ x.sizes).tolist()], x.exponent - x.cut, power + by)

    def on_ball(self, rows: Rows, norm: str, radius: int, exponent: int) -> None:
        """Subtract how far the functions reach on a ball of this norm, of radius * 2^-exponent."""
        whole = np.abs(rows.coefficients).astype(np.int64)
        if norm == "1":
            self.add([-int(v) * radius for v in whole.max(axis=1, initial=0)], exponent, rows.power)
            return
        assert norm == "2"
        lengths = [root_up(v) for v in (whole * whole).sum(axis=1).tolist()]
        self.add([-v * radius for v in lengths], exponent + ROOT, rows.power)


def root_up(square: int) -> int:
    """The square root of an integer, rounded up, over 2^-ROOT."""
    return math.isqrt((square << 2 * ROOT) - 1) + 1 if square else 0
