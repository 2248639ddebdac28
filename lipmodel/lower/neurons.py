"""The nonlinearities of a node, in floating point at many points at once: values, derivatives, second derivatives.

Three kinds with one face: `Neurons` act entry by entry, `Vectors` on groups, `Factors` multiply two halves. What
`slopes` gives is all that `tangent` and `cotangent` need: slopes, or for the last two the arguments themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lipmodel.lower.balls import Array
from lipmodel.lower.scalar import pieces
from lipmodel.network.ops import Elementwise, Grouped


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neurons:
    """The nonlinearities of one node.

    A piecewise linear one is f(v) = base v + offset + sum_k jumps[:, k] max(v - breaks[:, k], 0) (unused columns: jump
    0 at infinity). `smooth` lists the others as (activation, entries); their slopes may jump at `breaks` as well.
    """

    base: Array
    offset: Array
    breaks: Array
    jumps: Array
    smooth: tuple[tuple[Any, Array], ...]

    def values(self, v: Array) -> Array:
        y = self.base[:, None] * v + self.offset[:, None]
        for k in range(self.breaks.shape[1]):
            y += self.jumps[:, k, None] * np.maximum(v - self.breaks[:, k, None], 0.0)
        for activation, index in self.smooth:
            y[index] = activation(v[index])
        return y

    def slopes(self, v: Array) -> Array:
        s = np.repeat(self.base[:, None], v.shape[1], axis=1)
        for k in range(self.breaks.shape[1]):
            s += self.jumps[:, k, None] * (v > self.breaks[:, k, None])
        for activation, index in self.smooth:
            s[index] = activation.derivative(v[index])
        return s

    def tangent(self, slopes: Array, t: Array) -> Array:
        """The increments of the values for increments t of the arguments, by `slopes`."""
        return np.asarray(slopes * t)

    def cotangent(self, slopes: Array, c: Array) -> Array:
        """The same for the transposed derivative."""
        return np.asarray(slopes * c)

    def bend(self, v: Array, t: Array, c: Array) -> Array:
        """The gradient of c'J(v) t by v, as far as it is smooth."""
        return np.asarray(self.curvatures(v) * t * c)

    def curvatures(self, v: Array) -> Array:
        """Second derivatives of the smooth ones (differences of f'), zero elsewhere."""
        s = np.zeros(v.shape)
        for activation, index in self.smooth:
            at = v[index]
            h = 1e-4 * np.maximum(1.0, np.abs(at))
            s[index] = (activation.derivative(at + h) - activation.derivative(at - h)) / (2.0 * h)
        return s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vectors:
    """The nonlinearity of a node that acts on vectors; what stands in for its slopes are its arguments themselves."""

    op: Grouped
    smooth: tuple[tuple[Any, Array], ...]
    breaks: Array
    jumps: Array

    def values(self, v: Array) -> Array:
        return self.op.evaluate([v])

    def slopes(self, v: Array) -> Array:
        return v

    def tangent(self, slopes: Array, t: Array) -> Array:
        return self.op.apply(self.op.function.tangent, slopes, t)

    def cotangent(self, slopes: Array, c: Array) -> Array:
        return self.op.apply(self.op.function.cotangent, slopes, c)

    def bend(self, v: Array, t: Array, c: Array) -> Array:
        # third derivatives are symmetric: the gradient of c'J(v) t is the derivative of J(v)'c along t
        h = 1e-4 * np.maximum(1.0, np.abs(v).max(axis=0)) / np.maximum(np.abs(t).max(axis=0), 1e-300)
        ahead, behind = (self.cotangent(v + sign * h * t, c) for sign in (1.0, -1.0))
        return np.asarray((ahead - behind) / (2.0 * h))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """A product, of the two halves of its arguments; what stands in for its slopes are its arguments themselves."""

    smooth: tuple[tuple[Any, Array], ...]
    breaks: Array
    jumps: Array

    def values(self, v: Array) -> Array:
        x, y = np.split(v, 2)
        return np.asarray(x * y)

    def slopes(self, v: Array) -> Array:
        return v

    def tangent(self, slopes: Array, t: Array) -> Array:
        (x, y), (dx, dy) = np.split(slopes, 2), np.split(t, 2)
        return np.asarray(y * dx + x * dy)

    def cotangent(self, slopes: Array, c: Array) -> Array:
        x, y = np.split(slopes, 2)
        return np.concatenate([y * c, x * c])

    def bend(self, v: Array, t: Array, c: Array) -> Array:
        dx, dy = np.split(t, 2)
        return np.concatenate([dy, dx]) * c


def factors(size: int) -> Factors:
    """A product of two vectors of this size."""
    none = np.zeros((2 * size, 0))
    return Factors(smooth=((None, np.arange(2 * size)),), breaks=none, jumps=none)


def vectors(op: Grouped) -> Vectors:
    """What is known of a nonlinearity that acts on vectors: it is smooth."""
    none = np.zeros((op.size, 0))
    return Vectors(op=op, smooth=((op.function, np.arange(op.size)),), breaks=none, jumps=none)


def neurons(op: Elementwise) -> Neurons:
    """Tables for the activations of one node."""
    n = op.size
    lines: list[tuple[Array, Any]] = []
    smooth: list[tuple[Any, Array]] = []
    kinks: list[tuple[Array, list[tuple[float, float]]]] = []
    for part in op.parts:
        act, index = part.activation, np.asarray(part.index)
        if act.piecewise_linear:
            found = pieces(act.exact, act.breakpoints, name=act.name)
            lines.append((index, found))
            jumps_here = [float(b - a) for a, b in pairwise(found.slopes)]
            kinks.append((index, [(float(b), j) for b, j in zip(found.breaks, jumps_here, strict=True)]))
        else:
            smooth.append((act, index))
            kinks.append((index, _slope_jumps(act)))
    most = max([len(k) for _, k in kinks], default=0)
    base, offset = np.zeros(n), np.zeros(n)
    breaks, jumps = np.full((n, most), np.inf), np.zeros((n, most))
    for index, p in lines:
        base[index], offset[index] = float(p.slopes[0]), float(p.offsets[0])
    for index, found_here in kinks:
        for k, (point, jump) in enumerate(found_here):
            breaks[index, k], jumps[index, k] = point, jump
    return Neurons(base=base, offset=offset, breaks=breaks, jumps=jumps, smooth=tuple(smooth))


def _slope_jumps(activation: Any) -> list[tuple[float, float]]:
    """Where the derivative of an activation that is not piecewise linear jumps, and by how much."""
    out = []
    for point in activation.breakpoints:
        near = 1e-9 * max(1.0, abs(point))
        below, above = (float(activation.derivative(point + t)) for t in (-near, near))
        if np.isfinite(above - below) and abs(above - below) > 1e-6:
            out.append((point, above - below))
    return out
