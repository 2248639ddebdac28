"""Vectors of intervals in integers, and linear maps on them: exact, then rounded outward to a fixed precision.

The same integers come out on every machine: matrix products are splits into products that floating point computes
without rounding (`lower.balls`), everything else is done in Python's integers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from lipmodel.lower.balls import Balls, IntegerMatrix, object_array, split_matrix
from lipmodel.network.exact import dyadic_exponent, integers
from lipmodel.network.linear import Composition, LinearMap, Selection, Sum

Array = np.ndarray[Any, Any]

BITS = 192
"""Bits of the largest number of a vector; what is cut off below widens the intervals."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span:
    """Reals x with |x - mid 2^-exponent| <= rad 2^-exponent, entry by entry; mid, rad: Python integers, shape (n,)."""

    mid: Array
    rad: Array
    exponent: int

    @property
    def size(self) -> int:
        return int(self.mid.shape[0])

    def magnitude(self) -> Array:
        """Upper bounds of |x| 2^exponent."""
        return np.asarray(abs(self.mid) + self.rad)

    def over(self, exponent: int) -> Span:
        """The same intervals over 2^-exponent, exponent at least the present one."""
        factor = 1 << (exponent - self.exponent)
        return self if factor == 1 else Span(mid=self.mid * factor, rad=self.rad * factor, exponent=exponent)

    def rounded(self) -> Span:
        """Intervals of at most BITS bits that contain these."""
        longest = max((v.bit_length() for v in (*self.mid.tolist(), *self.rad.tolist())), default=0)
        excess = longest - BITS
        if excess <= 0:
            return self
        return Span(mid=self.mid >> excess, rad=(self.rad >> excess) + 2, exponent=self.exponent - excess)

    def limits(self) -> tuple[Array, Array]:
        """Doubles below and above, as near as they can be; infinite beyond the range of doubles."""
        low = [down(v, self.exponent) for v in (self.mid - self.rad).tolist()]
        high = [-down(-v, self.exponent) for v in (self.mid + self.rad).tolist()]
        return np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)


def between(lo: Array, hi: Array) -> Span:
    """The intervals [lo, hi] of finite doubles, exactly."""
    both = np.stack([np.asarray(lo, dtype=np.float64), np.asarray(hi, dtype=np.float64)])
    exponent = dyadic_exponent(both)
    whole = object_array(integers(both, exponent), both.shape)
    return Span(mid=whole[0] + whole[1], rad=whole[1] - whole[0], exponent=exponent + 1)


def around(center: Array, radius: Array | None = None) -> Span:
    """The intervals center +- radius (finite doubles), exactly."""
    both = np.stack([np.asarray(center, dtype=np.float64), np.zeros(len(center)) if radius is None else radius])
    exponent = dyadic_exponent(both)
    whole = object_array(integers(both, exponent), both.shape)
    return Span(mid=whole[0], rad=whole[1], exponent=exponent)


def add(terms: Sequence[Span]) -> Span:
    """The sum of vectors of one size."""
    exponent = max(t.exponent for t in terms)
    shifted = [t.over(exponent) for t in terms]
    mid, rad = shifted[0].mid, shifted[0].rad
    for term in shifted[1:]:
        mid, rad = mid + term.mid, rad + term.rad
    return Span(mid=mid, rad=rad, exponent=exponent)


def place(parts: Sequence[Span], positions: Sequence[Array]) -> Span:
    """The vector whose entries positions[k] are those of parts[k], zero elsewhere."""
    return scattered(parts, positions, sum(len(p) for p in positions))


def scattered(parts: Sequence[Span], positions: Sequence[Array], size: int) -> Span:
    """The vector of this size whose entries positions[k] are those of parts[k], zero elsewhere."""
    exponent = max((p.exponent for p in parts), default=0)
    mid, rad = (object_array([0] * size, (size,)) for _ in range(2))
    for part, position in zip(parts, positions, strict=True):
        shifted = part.over(exponent)
        mid[position], rad[position] = shifted.mid, shifted.rad
    return Span(mid=mid, rad=rad, exponent=exponent)


def times(first: Span, second: Span) -> Span:
    """All products of an entry of one and the same entry of the other."""
    (a, b), (c, d) = ((s.mid - s.rad, s.mid + s.rad) for s in (first, second))
    ends = [a * c, a * d, b * c, b * d]
    low, high = reduce(np.minimum, ends), reduce(np.maximum, ends)
    return Span(mid=low + high, rad=high - low, exponent=first.exponent + second.exponent + 1)


def intersection(first: Span, second: Span) -> Span:
    """The entries that both vectors allow; where they do not meet, those of the first."""
    exponent = max(first.exponent, second.exponent)
    a, b = first.over(exponent), second.over(exponent)
    low, high = np.maximum(a.mid - a.rad, b.mid - b.rad), np.minimum(a.mid + a.rad, b.mid + b.rad)
    apart = np.asarray(low > high, dtype=bool)
    low[apart], high[apart] = (a.mid - a.rad)[apart], (a.mid + a.rad)[apart]
    return Span(mid=low + high, rad=high - low, exponent=exponent + 1)


def down(value: int, exponent: int) -> float:
    """The largest double at most value * 2^-exponent (-inf below the range)."""
    cut = max(value.bit_length() - 53, exponent - 1074)
    lead, power = (value >> cut, cut - exponent) if cut > 0 else (value, -exponent)
    try:
        return math.ldexp(lead, power)
    except OverflowError:
        return sys.float_info.max if value > 0 else -math.inf


# --- Linear maps ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpanMatrix:
    """A matrix ready for intervals: its entries, their moduli, and the radius they are known to."""

    center: IntegerMatrix
    size: IntegerMatrix
    radius: IntegerMatrix | None

    def apply(self, x: Span) -> Span:
        """All products M x."""
        x = x.rounded()
        mid, rad = _product(self.center, x.mid, x.exponent), _product(self.size, x.rad, x.exponent)
        parts = [Span(mid=mid[0], rad=0 * mid[0], exponent=mid[1]), Span(mid=0 * rad[0], rad=rad[0], exponent=rad[1])]
        if self.radius is not None:
            extra = _product(self.radius, x.magnitude(), x.exponent)
            parts.append(Span(mid=0 * extra[0], rad=extra[0], exponent=extra[1]))
        return add(parts).rounded()


def _product(matrix: IntegerMatrix, x: Array, exponent: int) -> tuple[Array, int]:
    y = matrix.apply(Balls(mid=x.reshape(-1, 1), exponent=exponent))
    return y.mid[:, 0], y.exponent


def span_matrix(linear: LinearMap) -> SpanMatrix:
    """A stored map, made ready."""
    enclosure = linear.enclosure()
    center = split_matrix(enclosure.center)
    # truncation keeps signs, so the moduli of the parts are the parts of the moduli
    size = replace(center, parts=tuple(abs(part) for part in center.parts))
    radius = enclosure.radius
    return SpanMatrix(center=center, size=size, radius=None if radius is None else split_matrix(radius))


Ready = dict[int, tuple[LinearMap, SpanMatrix]]
"""Maps that have been made ready, by identity (and themselves, so that the identity stays theirs)."""


def image(linear: LinearMap, x: Span, ready: Ready) -> Span:
    """All products M x; compositions factor by factor, sums term by term. ready: maps met before."""
    if isinstance(linear, Selection):
        kept = np.flatnonzero(linear.index >= 0)
        index = linear.index[kept]
        part = Span(mid=x.mid[index], rad=x.rad[index], exponent=x.exponent)
        return part if len(kept) == len(linear.index) else scattered([part], [kept], len(linear.index))
    if isinstance(linear, Composition):
        for factor in reversed(linear.factors):
            x = image(factor, x, ready)
        return x
    if isinstance(linear, Sum):
        return add([image(term, x, ready) for term in linear.terms]).rounded()
    if id(linear) not in ready:
        ready[id(linear)] = (linear, span_matrix(linear))
    return ready[id(linear)][1].apply(x)
