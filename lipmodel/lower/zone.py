"""The domain as the search for witness pairs sees it: where points may be, and how far they may move.

Floating point throughout; whether both points of a pair lie in the domain is decided exactly before they count.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lipmodel.errors import UsageError
from lipmodel.lower.attain import vector_norm
from lipmodel.lower.balls import Array
from lipmodel.lower.moves import Box
from lipmodel.lower.scalar import float_up
from lipmodel.spec import Ball, Domain, Global, Norm
from lipmodel.spec import Box as BoxDomain

INSIDE = 1.0 - 2.0**-40
"""Points on the boundary of a ball are pulled in by this factor."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Zone:
    """A domain of the search. box: (lower, upper), shape (inputs,) each, around or equal to it (None: the whole space).

    norm: "1" or "2" for a ball of that norm around `center`, "" where the box is the domain itself.
    """

    domain: Domain
    input_norm: Norm
    box: Box | None
    norm: str = ""
    center: Array
    radius: float = 0.0

    @property
    def diameter(self) -> float:
        """The length of a diagonal, or a diameter."""
        if self.norm:
            return 2.0 * self.radius
        return 1.0 if self.box is None else float(np.linalg.norm(self.box[1] - self.box[0]))

    def inside(self, x: Array) -> Array:
        """The columns of x, shape (inputs, k), brought into the domain."""
        if self.box is not None:
            x = np.clip(x, self.box[0][:, None], self.box[1][:, None])
        if self.norm:
            gap = x - self.center[:, None]
            length = _lengths(gap, self.norm)
            x = self.center[:, None] + gap * np.minimum(1.0, INSIDE * self.radius / np.maximum(length, 1e-300))
        return np.asarray(x)

    def starts(self, count: int, rng: np.random.Generator) -> Array:
        """Random points of a bounded domain, some of them corners or on the boundary; shape (inputs, count)."""
        assert self.box is not None
        low, high = self.box
        if not self.norm:
            x = rng.uniform(size=(len(low), count))
            corner = rng.random(count) < 0.25
            return np.asarray(low[:, None] + (high - low)[:, None] * np.where(corner, np.round(x), x))
        gap = rng.standard_normal((len(low), count))
        if self.norm == "1":
            sparse = rng.random((len(low), count)) < 3.0 / len(low)
            gap = np.where(rng.random(count) < 0.5, gap, gap * sparse)
        share = np.where(rng.random(count) < 0.5, 1.0, rng.random(count))
        return self.inside(self.center[:, None] + gap * (self.radius * share / _lengths(gap, self.norm)))

    def room(self, x: Array, v: Array) -> float:
        """How large |t| may be so that x + t v stays in a ball."""
        if not self.norm:
            return np.inf
        left = INSIDE * self.radius - float(vector_norm(x - self.center, self.norm))  # type: ignore[arg-type]
        return max(left, 0.0) / max(float(vector_norm(v, self.norm)), 1e-300)  # type: ignore[arg-type]

    def holds(self, x: Array) -> bool:
        """Whether a point lies in the domain, decided exactly."""
        return self.domain.contains(x, self.input_norm)


def zone(domain: Domain, size: int, norm: Norm) -> Zone:
    """The domain for a search among inputs of this size. Raises UsageError where it does not fit them."""
    domain = domain.sized(size)
    nowhere = np.zeros(size)
    if isinstance(domain, Global):
        return Zone(domain=domain, input_norm=norm, box=None, center=nowhere)
    if isinstance(domain, BoxDomain):
        return Zone(domain=domain, input_norm=norm, box=(np.array(domain.lo), np.array(domain.hi)), center=nowhere)
    center = np.array(domain.center)
    if norm == "inf" or size == 1:
        return Zone(domain=domain, input_norm=norm, box=_inscribed(domain), center=center)
    box = (center - domain.radius, center + domain.radius)
    if not np.all(np.isfinite(np.stack(box))):
        raise UsageError("a ball beyond the range of doubles cannot be searched")
    return Zone(domain=domain, input_norm=norm, box=box, norm=norm, center=center, radius=domain.radius)


def _inscribed(ball: Ball) -> Box:
    """The largest box of doubles inside an l_inf ball."""
    radius = Fraction(ball.radius)
    low = np.array([float_up(Fraction(c) - radius) for c in ball.center])
    high = np.array([-float_up(-(Fraction(c) + radius)) for c in ball.center])
    return low, high


def _lengths(x: Array, norm: str) -> Array:
    """Norms of the columns, never 0."""
    return np.maximum(vector_norm(x.T, norm), 1e-300)  # type: ignore[arg-type]
