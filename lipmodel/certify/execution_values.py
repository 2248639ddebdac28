"""Tensors as float32 arithmetic computes them: where the real value lies, and how far the computed one may be from it.

Every number is an integer multiple of 2^-160, rounded to the safe side; nothing here is floating point, and the answer
is the same on every machine. A float32 tensor is looked at as a sum of *terms* (products of a weight and a value, and
biases), each of which goes through at most `depth` roundings: with u = 2^-24 its value differs from the exact sum of
the terms by at most ((1 + u)^depth - 1) times the sum of their moduli (`mass`), in whatever order they are added, and
whether multiplications and additions are fused or not (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
sections 3.1 and 3.5). Sums of sums are longer sums, so a bias or a residual may be added before, after or in between.

Subnormal numbers: an operand or a result below 2^-126 may be kept, rounded to a multiple of 2^-149, or replaced by
zero; 2^-126 for each covers all three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Contract = Callable[[Array, Array], Array]
"""A bilinear map of a tensor and a tensor of weights, without bias, that is exact for integers of 64 bits."""

PLACES = 160
ROUNDINGS = 2**24
"""1 / u for the unit roundoff u of float32."""
TINY = 1 << (PLACES - 126)
"""The least normal number."""
LARGEST = (2**24 - 1) << (104 + PLACES)
"""The greatest finite number."""
MAX_DEPTH = 2**23
"""Roundings of one term; up to here (1 + u)^depth <= 2."""
WEIGHT_BITS = 30
SUM_BITS = 61
FIELDS = ("low", "high", "carried", "mass", "depth")


class Unfit(Exception):  # noqa: N818 - it is about the network
    """What is computed is not covered: it may overflow, or the sums are too long."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Executed:
    """A tensor and its execution; all arrays have its shape and hold Python integers (`depth`: a count, else units).

    low <= real value <= high. The computed value is a sum of terms with at most `depth` roundings each, whose moduli
    add up to at most `mass`; the exact sum of these terms differs from the real value by at most `carried`.
    """

    low: Array
    high: Array
    carried: Array
    mass: Array
    depth: Array

    def __post_init__(self) -> None:
        for name in FIELDS:  # arithmetic on arrays without axes gives numbers
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=object))

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.low)

    @property
    def error(self) -> Array:
        """|computed value - real value| is at most this."""
        error: Array = self.carried + _grown(self.mass, self.depth)
        return error

    @property
    def magnitude(self) -> Array:
        """|computed value| is at most this."""
        magnitude: Array = np.maximum(abs(self.low), abs(self.high)) + self.error
        return magnitude


def exactly(values: Array) -> Executed:
    """A constant of float32 numbers (as doubles)."""
    at = units(values)
    return Executed(low=at, high=at, carried=_zeros(at.shape), mass=abs(at), depth=_zeros(at.shape))


def anywhere(lo: Sequence[float], hi: Sequence[float]) -> Executed:
    """The float32 vectors between two vectors of doubles; no float32 number is beyond the greatest one."""
    low = np.maximum(_objects([_floor(v) for v in lo]), -LARGEST)
    high = np.minimum(_objects([-_floor(-v) for v in hi]), LARGEST)
    mass = np.maximum(abs(low), abs(high))
    return Executed(low=low, high=high, carried=_zeros(low.shape), mass=mass, depth=_zeros(low.shape))


def gathered(parts: Sequence[Executed], at: Array) -> Executed:
    """The entries at these positions of the parts, flattened and laid end to end; what a copy of memory does."""

    def field(name: str) -> Array:
        flat: Array = np.concatenate([getattr(part, name).ravel() for part in parts])
        return flat[at]

    return Executed(**{name: field(name) for name in FIELDS})


def contracted(x: Executed, weights: Array, contract: Contract, factor: float = 1.0) -> Executed:
    """factor * contract(x, weights), weights and factor being float32 numbers (as doubles).

    The factor may be applied to the weights, to x, to the products or to sums of them.
    """
    exact = weights * factor  # 48 bits: exact in a double
    terms = contract(np.ones(x.shape, dtype=np.int64), (exact != 0).astype(np.int64))
    longest = int(terms.max(initial=0))
    _check_depth(longest + 1)
    scale = int(np.frexp(np.abs(exact).max(initial=0.0))[1]) - WEIGHT_BITS
    moduli = np.ldexp(np.abs(exact), -scale)
    short = np.ceil(moduli).astype(np.int64)
    room = SUM_BITS - WEIGHT_BITS - longest.bit_length()

    def at_most(values: Array) -> Array:
        """contract(values, |weights|) for values >= 0, in units of 2^scale."""
        shift = max(0, _top(values).bit_length() - room)
        return _times(contract, values + ((1 << shift) - 1), shift, short)

    middle = (x.low + x.high) >> 1
    shift = max(0, _top(abs(middle)).bit_length() - room)
    centre = _times(contract, middle, shift, np.where(exact < 0, -short, short))
    radius = at_most(x.high - middle + ((1 << shift) - 1))
    if np.any(short != moduli):  # every weight was changed by at most 2^scale
        radius = radius + terms.astype(object) * _top(np.maximum(abs(x.low), abs(x.high)))
    magnitude = x.magnitude
    tiny = _tiny(longest, abs(factor), np.abs(weights).max(initial=0.0), magnitude)
    result = Executed(
        low=-_raised(radius - centre, scale),
        high=_raised(radius + centre, scale),
        carried=_raised(at_most(x.error), scale) + tiny,
        mass=_raised(at_most(magnitude), scale),
        depth=(terms + (terms > 0) * (factor != 1.0)).astype(object),
    )
    if factor != 1.0:
        _check_size((longest + 1) * 2 * _product(abs(factor), np.abs(weights).max(initial=0.0), magnitude))
    return _checked(result)


def _times(contract: Contract, values: Array, shift: int, matrix: Array) -> Array:
    """contract(values, matrix), the last `shift` bits of the values being cut off (downward)."""
    cut = np.asarray(values >> shift, dtype=np.int64)
    return contract(cut, matrix).astype(object) << shift


def added(a: Executed, b: Executed) -> Executed:
    """a + b, entry by entry (with broadcasting)."""
    return _checked(
        Executed(
            low=a.low + b.low,
            high=a.high + b.high,
            carried=a.carried + b.carried + 8 * TINY,
            mass=a.mass + b.mass,
            depth=a.depth + b.depth + 1,
        )
    )


def negated(x: Executed) -> Executed:
    """-x."""
    return Executed(low=-x.high, high=-x.low, carried=x.carried + 2 * TINY, mass=x.mass, depth=x.depth)


def scaled(x: Executed, factors: Array, *, divide: bool = False) -> Executed:
    """x times float32 numbers, or divided by them (as doubles; with broadcasting)."""
    least = np.abs(factors).min(initial=np.inf)
    if divide and least < 2.0**-126:
        raise Unfit("a division by zero or by a subnormal number")
    shape = np.broadcast_shapes(x.shape, factors.shape)
    known = {v: 1 / Fraction(v) if divide else Fraction(v) for v in set(factors.ravel().tolist())}
    fractions = [known[v] for v in np.broadcast_to(factors, shape).ravel().tolist()]
    above = _objects([f.numerator for f in fractions]).reshape(shape)
    below = _objects([f.denominator for f in fractions]).reshape(shape)
    largest = 1 / Fraction(least) if divide else Fraction(np.abs(factors).max(initial=0.0))
    ends = [x.low * above, x.high * above]
    moduli, magnitude = abs(above), np.broadcast_to(x.magnitude, shape)
    return _checked(
        Executed(
            low=np.minimum(*ends) // below,
            high=-(-np.maximum(*ends) // below),
            carried=-(-x.error * moduli // below) + _tiny(1, 0.0, largest, magnitude),
            mass=-(-magnitude * moduli // below),
            depth=_zeros(shape) + 1,
        )
    )


def rectified(x: Executed, slope: float = 0.0) -> Executed:
    """max(x, 0) + slope min(x, 0), slope >= 0 a float32 number."""
    over, under = slope.as_integer_ratio()
    error, zero = x.error, _zeros(x.shape)
    low = np.maximum(x.low, 0) + np.minimum(x.low, 0) * over // under
    high = np.maximum(x.high, 0) - (-np.minimum(x.high, 0) * over // under)
    if slope == 0.0:
        carried = np.minimum(error, np.maximum(x.high + error, 0)) + TINY
    else:
        negative = np.maximum(error - x.low, 0)
        products = -(-negative * over // under)
        stretched = -(-error * max(over, under) // under)
        carried = stretched + _grown(products, zero + 1) + _tiny(1, 0.0, slope, negative)
    mass = np.maximum(abs(low), abs(high)) + carried
    return _checked(Executed(low=low, high=high, carried=carried, mass=mass, depth=zero))


def units(values: Array) -> Array:
    """Multiples of 2^-149 (as doubles), in units."""
    return _objects([_floor(v) for v in np.ravel(values).tolist()]).reshape(np.shape(values))


def _floor(value: float) -> int:
    over, under = value.as_integer_ratio()
    return (over << PLACES) // under


def _objects(values: Sequence[int]) -> Array:
    result = np.empty(len(values), dtype=object)
    result[:] = values
    return result


def _top(values: Any) -> int:
    """The largest of nonnegative numbers."""
    return int(np.max(np.asarray(values, dtype=object), initial=0))


def _zeros(shape: tuple[int, ...]) -> Array:
    return np.full(shape, 0, dtype=object)


def _raised(values: Array, scale: int) -> Array:
    """values 2^scale, rounded up."""
    return values << scale if scale >= 0 else -(-values >> -scale)


def _grown(mass: Array, depth: Array) -> Array:
    """((1 + u)^depth - 1) mass, by depth u / (1 - depth u)."""
    grown: Array = -(-mass * depth // (ROUNDINGS - depth))
    return grown


def _product(factor: Any, weight: Any, magnitude: Array) -> int:
    """(1 + factor) (1 + weight) (1 + the largest magnitude), in units."""
    largest = _top(magnitude) + (1 << PLACES)
    return ceil((1 + Fraction(factor)) * (1 + Fraction(weight)) * largest)


def _tiny(terms: int, factor: Any, weight: Any, magnitude: Array) -> int:
    """What is lost to subnormal numbers in a sum of so many products (of two numbers and a factor).

    With t = 2^-126 and P = (1 + |a|)(1 + |b|)(1 + |c|): a product of operands that are each off by t is off by t P at
    most, the results of its two multiplications by t P, and the sums, one for each term, by t (1 + |a|); every later
    rounding lets this grow, but in all by no more than a factor of two. 2 (3 terms + 1) t P <= 8 (terms + 1) t P.
    """
    return -(-8 * (terms + 1) * TINY * _product(factor, weight, magnitude) >> PLACES)


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Unfit(f"a sum of {depth} numbers is longer than the error analysis of float32 sums allows ({MAX_DEPTH})")


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise Unfit(
            f"a float32 number may overflow on this box: sums of up to {float(Fraction(size, 1 << PLACES)):.2g} cannot "
            "be ruled out"
        )


def _checked(x: Executed) -> Executed:
    """x, all of whose partial sums are finite float32 numbers. Raises Unfit."""
    _check_depth(_top(x.depth))
    _check_size(_top(x.mass + x.error))
    return x
