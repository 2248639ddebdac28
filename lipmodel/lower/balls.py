"""Vectors of real numbers enclosed in balls with integer midpoints: exact evaluation of affine maps, fast.

A weight is a binary float, so a matrix of weights is a short sum of integer matrices times powers of two. A long
integer is a sum of 16-bit limbs. Every sum of products of the two stays below 2^52, hence a floating-point matrix
product computes it without any rounding, in whatever order it adds (the error-free splitting of Ozaki, Ogita, Oishi and
Rump 2012, Numerical Algorithms 59:95). Radii are floating-point numbers, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.network.conv import Conv
from lipmodel.network.exact import dyadic_exponent, integers
from lipmodel.network.linear import Composition, LinearMap, Selection, Sum
from lipmodel.ranges.enclosure import INFLATE, TINY

Array = np.ndarray[Any, Any]

LIMB = 16
"""Bits of a limb of a midpoint."""
LONGEST = 640
"""Midpoints longer than this many bits are shortened, and the radius grows by what was cut off."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Balls:
    """Reals x with |x - mid * 2^-exponent| <= radius, entry by entry; radius None means equal.

    mid: Python integers, object array of shape (n, c), one column per point; radius: float64 of that shape, or None.
    """

    mid: Array
    exponent: int
    radius: Array | None = None

    @property
    def size(self) -> int:
        return int(self.mid.shape[0])

    @classmethod
    def from_floats(cls, values: Array, radius: Array | None = None) -> Balls:
        """The exact values of a finite float64 array of shape (n, c)."""
        values = np.asarray(values, dtype=np.float64)
        exponent = dyadic_exponent(values)
        mid = object_array(integers(values, exponent), values.shape)
        return cls(mid=mid, exponent=exponent, radius=None if radius is None else np.array(radius, dtype=np.float64))

    def rescaled(self, exponent: int) -> Balls:
        """The same balls over 2^-exponent, exponent at least the present one."""
        if exponent == self.exponent:
            return self
        return Balls(mid=self.mid * (1 << (exponent - self.exponent)), exponent=exponent, radius=self.radius)

    def radii(self) -> Array:
        """The radius, zeros where there is none."""
        return np.zeros(self.mid.shape) if self.radius is None else self.radius

    def shortened(self) -> Balls:
        """The same balls with midpoints of at most LONGEST bits."""
        excess = max((v.bit_length() for v in self.mid.ravel().tolist()), default=0) - LONGEST
        if excess <= 0:
            return self
        step = power_up(excess - self.exponent)
        return Balls(
            mid=self.mid >> excess, exponent=self.exponent - excess, radius=self.radii() * INFLATE + step + TINY
        )

    def magnitude(self) -> Array:
        """Upper bounds of |x|, float64."""
        return (magnitudes(self.mid, self.exponent) + self.radii()) * INFLATE + TINY

    def limits(self) -> tuple[Array, Array]:
        """Float64 lower and upper bounds of x."""
        size = magnitudes(self.mid, self.exponent)
        center = np.where(np.sign(self.mid).astype(np.int64) < 0, -size, size)
        with np.errstate(all="ignore"):
            slack = (self.radii() + size * 2.0**-50) * INFLATE + TINY
            low, high = center - slack, center + slack
        return np.where(np.isfinite(low), low, -np.inf), np.where(np.isfinite(high), high, np.inf)

    def signs(self) -> Array:
        """Sign of x where the ball decides it (+1, -1), else 0; int64 of shape (n, c)."""
        sign = np.sign(self.mid).astype(np.int64)
        if self.radius is not None:
            low = np.minimum(magnitudes(self.mid, self.exponent), 2.0**999) * (1.0 - 2.0**-50) - TINY
            sign[~(low > self.radius)] = 0  # also where the radius is not a number
        return sign


def object_array(values: Sequence[int], shape: tuple[int, ...]) -> Array:
    """Python integers as an object array."""
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out.reshape(shape)


def power_up(exponent: int) -> float:
    """2^exponent as a float, rounded up (inf beyond the range)."""
    return math.inf if exponent > 1000 else 2.0 ** max(exponent, -1000)


def magnitudes(mid: Array, exponent: int) -> Array:
    """|mid| * 2^-exponent to a relative error of 2^-51, rounded up; below 2^-1000 it may be off by that much."""
    out = [_magnitude(v, exponent) for v in mid.ravel().tolist()]
    return np.array(out, dtype=np.float64).reshape(mid.shape)


def _magnitude(value: int, exponent: int) -> float:
    bits = value.bit_length()
    if bits <= 53:
        lead, shift = abs(value), -exponent
    else:
        lead, shift = (abs(value) >> (bits - 53)) + 1, bits - 53 - exponent
    if bits - exponent > 1000:
        return math.inf
    return math.ldexp(lead, shift)


def add(terms: Sequence[Balls]) -> Balls:
    """The sum of balls of one shape."""
    if len(terms) == 1:
        return terms[0]
    exponent = max(t.exponent for t in terms)
    mid = terms[0].rescaled(exponent).mid
    for term in terms[1:]:
        mid = mid + term.rescaled(exponent).mid
    known = [t.radius for t in terms if t.radius is not None]
    radius = None if not known else np.sum(known, axis=0) * INFLATE + TINY
    return Balls(mid=mid, exponent=exponent, radius=radius)


def place(parts: Sequence[Balls], positions: Sequence[Array], size: int) -> Balls:
    """The vector whose entries positions[k] are those of parts[k]."""
    exponent = max(p.exponent for p in parts)
    columns = parts[0].mid.shape[1]
    mid = object_array([0] * (size * columns), (size, columns))
    radius = None if all(p.radius is None for p in parts) else np.zeros((size, columns))
    for part, position in zip(parts, positions, strict=True):
        mid[position] = part.rescaled(exponent).mid
        if radius is not None:
            radius[position] = part.radii()
    return Balls(mid=mid, exponent=exponent, radius=radius)


# --- Linear maps ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntegerMatrix:
    """A matrix split into integer matrices: M = sum_k parts[k] * 2^exponents[k], exactly, within `radius` entrywise.

    parts: float64 matrices (dense or CSR) with integer entries so small that products with limbs are exact; size: |M|;
    radius: nonnegative matrix or None.
    """

    shape: tuple[int, int]
    parts: tuple[Any, ...]
    exponents: tuple[int, ...]
    size: Any
    radius: Any

    @property
    def is_exact(self) -> bool:
        return self.radius is None

    def apply(self, x: Balls) -> Balls:
        x = x.shortened()
        columns = x.mid.shape[1]
        limbs = to_limbs(x.mid)
        count = limbs.shape[2]
        flat = limbs.reshape(x.size, columns * count)
        base = min(self.exponents, default=0)
        mid = object_array([0] * (self.shape[0] * columns), (self.shape[0], columns))
        for part, power in zip(self.parts, self.exponents, strict=True):
            product = np.asarray(part @ flat).reshape(self.shape[0], columns, count)
            mid = mid + from_limbs(product) * (1 << (power - base))
        radius = None
        with np.errstate(all="ignore"):  # an infinite radius is an honest one
            if x.radius is not None:
                radius = np.asarray(self.size @ x.radius) * INFLATE + TINY
            if self.radius is not None:
                extra = np.asarray(self.radius @ x.magnitude())
                radius = ((extra if radius is None else radius + extra) * INFLATE) + TINY
        return Balls(mid=mid, exponent=x.exponent - base, radius=radius)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gather:
    """The action of a Selection: no arithmetic."""

    index: Array

    @property
    def is_exact(self) -> bool:
        return True

    def apply(self, x: Balls) -> Balls:
        kept = np.flatnonzero(self.index >= 0)
        part = Balls(
            mid=x.mid[self.index[kept]],
            exponent=x.exponent,
            radius=None if x.radius is None else x.radius[self.index[kept]],
        )
        return part if len(kept) == len(self.index) else place([part], [kept], len(self.index))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """Maps applied one after the other, the first first."""

    maps: tuple[Any, ...]

    @property
    def is_exact(self) -> bool:
        return all(m.is_exact for m in self.maps)

    def apply(self, x: Balls) -> Balls:
        for m in self.maps:
            x = m.apply(x)
        return x


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parallel:
    """The sum of maps."""

    maps: tuple[Any, ...]

    @property
    def is_exact(self) -> bool:
        return all(m.is_exact for m in self.maps)

    def apply(self, x: Balls) -> Balls:
        return add([m.apply(x) for m in self.maps])


BallMap = IntegerMatrix | Gather | Chain | Parallel


def ball_map(linear: LinearMap) -> BallMap:
    """What applies a linear map to balls: leaves exactly, compositions factor by factor, sums term by term."""
    if isinstance(linear, Selection):
        return Gather(index=np.asarray(linear.index))
    if isinstance(linear, Composition):
        return Chain(maps=tuple(ball_map(f) for f in reversed(linear.factors)))
    if isinstance(linear, Sum):
        return Parallel(maps=tuple(ball_map(t) for t in linear.terms))
    if isinstance(linear, Conv):
        return _split_convolution(linear)
    enclosure = linear.enclosure()
    return split_matrix(enclosure.center, enclosure.radius)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Convolved:
    """A convolution where a stored matrix would stand: it is applied, not written out."""

    conv: Conv

    def __matmul__(self, x: Array) -> Array:
        return self.conv.matvec(x)


def _split_convolution(conv: Conv) -> IntegerMatrix:
    """The integer parts of a convolution, each one with an integer kernel."""
    kernel = np.asarray(conv.kernel, dtype=np.float64)
    parts, exponents = _integer_parts(kernel, int(np.prod(kernel.shape[1:])))

    def like(values: Array) -> _Convolved:
        return _Convolved(conv=replace(conv, kernel=values, radius=None))

    return IntegerMatrix(
        shape=conv.shape,
        parts=tuple(like(part) for part in parts),
        exponents=tuple(exponents),
        size=like(np.abs(kernel)),
        radius=None if conv.radius is None else like(conv.radius),
    )


def split_matrix(center: Any, radius: Any = None) -> IntegerMatrix:
    """The integer parts of a finite float64 matrix, dense or CSR."""
    sparse = sp.issparse(center)
    matrix: Any = sp.csr_array(center) if sparse else np.asarray(center, dtype=np.float64)
    if sparse:
        matrix.sum_duplicates()
    widest = int(np.max(np.diff(matrix.indptr), initial=1)) if sparse else max(1, int(matrix.shape[1]))
    wholes, exponents = _integer_parts(np.asarray(matrix.data if sparse else matrix), widest)
    return IntegerMatrix(
        shape=(int(matrix.shape[0]), int(matrix.shape[1])),
        parts=tuple(_like(matrix, whole) for whole in wholes),
        exponents=tuple(exponents),
        size=abs(matrix),
        radius=radius,
    )


def _integer_parts(values: Array, widest: int) -> tuple[list[Array], list[int]]:
    """values = sum_k parts[k] 2^exponents[k], in integers so small that sums of `widest` products with limbs are exact.

    Raises ValueError where a value is not finite.
    """
    width = 52 - LIMB - math.ceil(math.log2(widest + 1))
    rest = np.array(values, dtype=np.float64)
    if not np.all(np.isfinite(rest)):
        raise ValueError("non-finite weights have no exact form")
    parts: list[Array] = []
    exponents: list[int] = []
    while rest.size and np.any(rest):
        power = int(np.frexp(np.max(np.abs(rest)))[1]) - width
        whole = np.trunc(np.ldexp(rest, -power))
        rest = rest - np.ldexp(whole, power)
        parts.append(whole)
        exponents.append(power)
    return parts, exponents


def _like(matrix: Any, values: Array) -> Any:
    """The matrix with other stored values, in whichever storage multiplies faster."""
    if sp.issparse(matrix):
        part = sp.csr_array((values, matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
        part.eliminate_zeros()
        return part
    if np.count_nonzero(values) * 20 < values.size:
        return sp.csr_array(values)
    return values


def to_limbs(mid: Array) -> Array:
    """Integers as 16-bit limbs, lowest first, the highest signed: float64 of shape (n, c, count)."""
    flat = mid.ravel().tolist()
    count = max((v.bit_length() for v in flat), default=0) // LIMB + 1
    raw = b"".join([v.to_bytes(2 * count, "little", signed=True) for v in flat])
    limbs = np.frombuffer(raw, dtype="<u2").reshape(*mid.shape, count).astype(np.float64)
    top = limbs[..., -1]
    top[top >= 2.0 ** (LIMB - 1)] -= 2.0**LIMB
    return limbs


def from_limbs(limbs: Array) -> Array:
    """Integers from limbs of any sign and size below 2^53: object array of shape (n, c)."""
    rows = limbs.reshape(-1, limbs.shape[-1]).astype(np.int64)
    low = np.empty(rows.shape, dtype="<u2")
    carry = np.zeros(rows.shape[0], dtype=np.int64)
    for k in range(rows.shape[1]):
        total = rows[:, k] + carry
        low[:, k] = total & 0xFFFF
        carry = total >> LIMB
    head = carry.astype("<i8").view("u1").reshape(-1, 8)
    raw = np.concatenate([low.view("u1").reshape(rows.shape[0], -1), head], axis=1)
    width, data = raw.shape[1], raw.tobytes()
    values = [int.from_bytes(data[i : i + width], "little", signed=True) for i in range(0, len(data), width)]
    return object_array(values, limbs.shape[:-1])
