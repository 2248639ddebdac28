"""Arithmetic on constant tensors, exact where binary floats allow it and enclosed where not.

The weights of a network are what its file stores, and the function is the one in real arithmetic. So what a graph
computes from constants alone must not be rounded silently: every result has a proved radius, None where it is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from lipmodel.ranges.enclosure import INFLATE, TINY, MatrixEnclosure

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Enclosed:
    """Real numbers within `radius` (None: zero) of `values`, float64 arrays of one shape."""

    values: Array
    radius: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def is_finite(self) -> bool:
        return bool(np.all(np.isfinite(self.values))) and (
            self.radius is None or bool(np.all(np.isfinite(self.radius)))
        )

    def reshaped(self, shape: tuple[int, ...]) -> Enclosed:
        """The same numbers in another shape."""
        return Enclosed(
            values=self.values.reshape(shape), radius=None if self.radius is None else self.radius.reshape(shape)
        )

    def broadcast(self, shape: tuple[int, ...]) -> Enclosed:
        """Repeated to a larger shape by the rules of numpy and ONNX."""
        radius = None if self.radius is None else np.broadcast_to(self.radius, shape)
        return Enclosed(values=np.broadcast_to(self.values, shape), radius=radius)

    def take(self, index: Array) -> Enclosed:
        """The entries at `index` of the flattened tensor, in the shape of `index`."""
        radius = None if self.radius is None else self.radius.ravel()[index]
        return Enclosed(values=self.values.ravel()[index], radius=radius)


def add(a: Enclosed, b: Enclosed) -> Enclosed:
    """a + b, broadcast (TwoSum: Knuth)."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = a.values + b.values
        t = total - a.values
        error = (a.values - (total - t)) + (b.values - t)
    return _rounded(total, error == 0.0, _radius(a, total.shape) + _radius(b, total.shape))


def multiply(a: Enclosed, b: Enclosed) -> Enclosed:
    """a * b, broadcast (TwoProduct: Dekker, Veltkamp)."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = a.values * b.values
        a_radius, b_radius = _radius(a, product.shape), _radius(b, product.shape)
        spread = a_radius * (np.abs(b.values) + b_radius) + np.abs(a.values) * b_radius
        spread = np.where((a_radius > 0) | (b_radius > 0), spread + TINY, 0.0)
    return _rounded(product, _product_is_exact(a.values, b.values, product), spread)


def reciprocal(a: Enclosed) -> Enclosed:
    """1 / a; infinite radius where `a` may be zero."""
    with np.errstate(all="ignore"):
        inverse = 1.0 / a.values
        exact = _product_is_exact(inverse, a.values, np.ones(a.shape)) & (inverse * a.values == 1.0)
        spread = np.zeros(a.shape)
        if a.radius is not None:
            gap = (np.abs(a.values) - a.radius) * (1.0 - 2.0**-50)
            spread = np.where(gap > 0, a.radius * np.abs(inverse) / gap * INFLATE + TINY, np.inf)
            spread = np.where(a.radius > 0, spread, 0.0)
    return _rounded(inverse, exact, spread)


def matmul(a: Enclosed, b: Enclosed) -> Enclosed:
    """The matrix product of two constant matrices."""
    left, right = (MatrixEnclosure(center=x.values, radius=x.radius) for x in (a, b))
    with np.errstate(over="ignore", invalid="ignore"):
        product = left @ right
    return Enclosed(values=product.center, radius=product.radius)


def total(a: Enclosed, axes: tuple[int, ...]) -> Enclosed:
    """The sum over some axes, which are kept with length 1."""
    rest = [k for k in range(a.values.ndim) if k not in axes]
    count = prod(a.shape[k] for k in axes)
    kept = tuple(1 if k in axes else d for k, d in enumerate(a.shape))
    index = np.arange(a.values.size).reshape(a.shape).transpose(*rest, *axes).reshape(prod(kept), count)
    return matmul(a.take(index), Enclosed(values=np.ones((count, 1)))).reshaped(kept)


def pointwise(function: Callable[..., Any], *operands: Enclosed) -> Enclosed:
    """A function of balls (python-flint's arb, 256 bits), entry by entry of operands of one shape.

    Not finite where the function is not defined.
    """
    from flint import ctx

    precision, ctx.prec = ctx.prec, 256
    try:
        found = [function(*entry) for entry in zip(*(_balls(x) for x in operands), strict=True)]
        pairs = np.array([_nearest(ball) for ball in found], dtype=np.float64).reshape(-1, 2)
    finally:
        ctx.prec = precision
    shape = operands[0].shape
    radius = pairs[:, 1].reshape(shape).copy()
    return Enclosed(values=pairs[:, 0].reshape(shape).copy(), radius=radius if np.any(radius) else None)


def _balls(x: Enclosed) -> list[Any]:
    from flint import arb

    radii = np.zeros(x.shape) if x.radius is None else x.radius
    pairs = zip(x.values.ravel().tolist(), radii.ravel().tolist(), strict=True)
    return [arb(v, r) if r else arb(v) for v, r in pairs]


def _nearest(ball: Any) -> tuple[float, float]:
    """A float and a radius, rounded up, that enclose a ball."""
    from flint import arb

    center = float(ball.mid())
    if not np.isfinite(center):
        return center, np.inf
    distance = abs(ball - arb(center)).upper()
    radius = float(distance)
    while not arb(radius) >= distance:
        radius = float(np.nextafter(radius, np.inf))
    return center, radius


def _radius(a: Enclosed, shape: tuple[int, ...]) -> Array:
    return np.zeros(shape) if a.radius is None else np.asarray(np.broadcast_to(a.radius, shape))


def _rounded(values: Array, exact: Array, spread: Array) -> Enclosed:
    """A result rounded to nearest: half a spacing of error, unless exact, and the error that the operands bring."""
    if bool(np.all(exact)) and not np.any(spread):
        return Enclosed(values=values)
    with np.errstate(all="ignore"):
        half = np.where(exact, 0.0, 0.5 * np.spacing(np.abs(values)) + TINY)
        radius = (half + spread) * INFLATE
    return Enclosed(values=values, radius=np.where(np.isfinite(values), radius, np.inf))


def _product_is_exact(a: Array, b: Array, product: Array) -> Array:
    """Whether a * b = product in the real numbers; False where the test itself could over- or underflow."""
    with np.errstate(all="ignore"):
        a_high, a_low = _split(a)
        b_high, b_low = _split(b)
        error = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
        size = np.maximum(np.abs(a), np.abs(b))
        safe = (np.abs(product) > 2.0**-900) & (np.abs(product) < 2.0**900) & (size < 2.0**900)
        small = np.minimum(np.abs(a), np.abs(b))
        safe &= small > 2.0**-900
        return np.asarray((safe & (error == 0.0)) | (a == 0.0) | (b == 0.0))


def _split(a: Array) -> tuple[Array, Array]:
    scaled = a * 134217729.0
    high = scaled - (scaled - a)
    return high, a - high
