"""Scalar activations with proved slope intervals.

For f continuous and piecewise C1 on [lo, hi] the difference quotients (f(x) - f(y)) / (x - y) lie between the least
and the greatest value of f' there, one-sided limits at breakpoints included (mean value theorem), and no smaller
interval holds them all. `Activation.slopes` encloses these two numbers by doubles rounded outward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from lipmodel.activations.formula import Affine, Array, Expression
from lipmodel.activations.tracks import (
    Bounds,
    Lattice,
    Piece,
    Place,
    Track,
    hull,
    lattice_indices,
    track_range,
)
from lipmodel.errors import NotLipschitz, UsageError

if TYPE_CHECKING:
    from flint import arb


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """A place where an activation jumps, or (`gap`) a stretch where it is not defined.

    refusal: the reason, ready to print; value: the value at the place itself, where it is neither side's.
    """

    at: Place
    refusal: str
    gap: bool = False
    value: Fraction | None = None

    def touches(self, lo: float, hi: float) -> bool:
        if self.gap:
            return lo < self.at[1] and hi > self.at[0]
        return lo <= self.at[1] and hi >= self.at[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """A scalar function with all that its slope intervals need.

    name, params: an ONNX operator type and its attributes, or what the user registered; expression: the sympy
    expression that everything was derived from, as text; pieces: from left to right; frozen: the stored global slope
    interval.
    """

    name: str
    params: tuple[tuple[str, float], ...] = ()
    expression: str
    pieces: tuple[Piece, ...] = field(repr=False)
    joints: tuple[Joint, ...] = field(default=(), repr=False)
    jumps: Lattice | None = field(default=None, repr=False)
    frozen: Bounds | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """The name with its parameters, as in ``LeakyRelu(alpha=0.01)``."""
        values = ", ".join(f"{k}={v:g}" for k, v in self.params)
        return f"{self.name}({values})" if values else self.name

    @property
    def piecewise_linear(self) -> bool:
        """Whether every piece is affine with rational coefficients (then `exact` is available)."""
        return all(isinstance(p.value.formula, Affine) for p in self.pieces)

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """The points between pieces, as the nearest doubles."""
        inner = {float((Fraction(e[0]) + Fraction(e[1])) / 2) for p in self.pieces for e in (p.lower, p.upper) if e}
        return tuple(sorted(inner))

    def __call__(self, x: Any) -> Array:
        """float64 evaluation, of any shape; NaN where the function is not defined."""
        x = np.asarray(x, dtype=np.float64)
        y = self._floats(x, lambda piece: piece.value)
        for joint in self.joints:
            if joint.value is not None:
                y = np.where(x == float(joint.at[0]), float(joint.value), y)
        return y

    def derivative(self, x: Any) -> Array:
        """float64 derivative (an estimate, for searches), of any shape; the left one at a breakpoint."""
        return self._floats(np.asarray(x, dtype=np.float64), lambda piece: piece.slope)

    @overload
    def slopes(self, lo: float = ..., hi: float = ...) -> tuple[float, float]: ...
    @overload
    def slopes(self, lo: Array, hi: Array) -> tuple[Array, Array]: ...
    def slopes(self, lo: Any = -math.inf, hi: Any = math.inf) -> Any:
        """Proved [alpha, beta] with alpha <= (f(x) - f(y)) / (x - y) <= beta for all x != y in [lo, hi].

        Rounded outward. lo, hi: numbers or arrays (broadcast together; then alpha and beta are arrays of their shape),
        infinite ends allowed. For lo = hi: the hull of the one-sided derivatives. Raises NotLipschitz with the reason
        and the place where the function jumps, is not defined or has an unbounded derivative in the interval;
        UsageError for lo > hi or NaN.
        """
        if np.ndim(lo) == 0 and np.ndim(hi) == 0:
            return self._slopes(float(lo), float(hi))
        return self._many(np.asarray(lo, dtype=np.float64), np.asarray(hi, dtype=np.float64))

    def value_range(self, lo: float = -math.inf, hi: float = math.inf) -> tuple[float, float]:
        """Proved bounds, rounded outward, of f over [lo, hi]; infinite where none are known."""
        lo, hi = _interval(lo, hi)
        for joint in self.joints:
            if joint.gap and joint.touches(lo, hi):
                raise NotLipschitz(self._refusal(lo, hi, joint.refusal))
        found = [track_range(p.value, p, lo, hi) for p in self.pieces if p.meets(lo, hi)]
        found += [(float(j.value),) * 2 for j in self.joints if j.value is not None and j.touches(lo, hi)]
        if not found:
            raise NotLipschitz(self._refusal(lo, hi, "it is not defined there"))
        return hull(found)

    def enclose(self, x: arb) -> arb:
        """A ball that contains f of every point of the ball x, at the working precision; NaN where f is not defined."""
        from lipmodel.activations.enclose import enclose

        return enclose(self, x)

    def exact(self, x: Fraction) -> Fraction:
        """f(x) in rational arithmetic; UsageError unless `piecewise_linear`."""
        if not self.piecewise_linear:
            raise UsageError(f"{self.label} has no exact rational values")
        for joint in self.joints:
            if joint.value is not None and joint.at[0] == x:
                return joint.value
        for piece in self.pieces:
            if (piece.lower is None or piece.lower[0] <= x) and (piece.upper is None or x <= piece.upper[1]):
                assert isinstance(piece.value.formula, Affine)
                return piece.value.formula.fraction(Fraction(x))
        raise NotLipschitz(f"{self.label} is not defined at {x}")

    def _slopes(self, lo: float, hi: float) -> tuple[float, float]:
        lo, hi = _interval(lo, hi)
        if self.frozen is not None and lo == -math.inf and hi == math.inf:
            return self.frozen
        for joint in self.joints:
            if joint.touches(lo, hi):
                raise NotLipschitz(self._refusal(lo, hi, joint.refusal))
        if self.jumps is not None:
            first, last = lattice_indices(self.jumps, lo, hi)
            if first <= last:
                raise NotLipschitz(self._refusal(lo, hi, f"it jumps at {_lattice_place(self.jumps, first)}"))
        try:
            found = [track_range(p.slope, p, lo, hi) for p in self.pieces if p.meets(lo, hi)]
        except NotLipschitz as error:
            raise NotLipschitz(self._refusal(lo, hi, str(error))) from None
        if not found:
            raise NotLipschitz(self._refusal(lo, hi, "it is not defined there"))
        alpha, beta = hull(found)
        if not (math.isfinite(alpha) and math.isfinite(beta)):
            raise NotLipschitz(self._refusal(lo, hi, "no finite bound of its derivative could be proved"))
        if self.frozen is not None:
            alpha, beta = max(alpha, self.frozen[0]), min(beta, self.frozen[1])
        return (alpha, beta)

    def _many(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        lo, hi = np.broadcast_arrays(lo, hi)
        pairs, inverse = np.unique(np.stack([lo.ravel(), hi.ravel()], axis=1), axis=0, return_inverse=True)
        if self.piecewise_linear and not self.joints and pairs.shape[0] > 8:
            values = self._piecewise_linear_slopes(pairs[:, 0], pairs[:, 1])
        else:
            values = np.array([self._slopes(float(a), float(b)) for a, b in pairs], dtype=np.float64).reshape(-1, 2)
        both = values[inverse.ravel()].reshape(*lo.shape, 2)
        return both[..., 0], both[..., 1]

    def _piecewise_linear_slopes(self, lo: Array, hi: Array) -> Array:
        from lipmodel.activations.balls import float_down, float_up

        if bool(np.any(~(lo <= hi) | (lo == np.inf) | (hi == -np.inf))):
            raise UsageError("an interval needs lo <= hi, both numbers")
        result = np.stack([np.full(lo.shape, np.inf), np.full(lo.shape, -np.inf)], axis=1)
        for piece in self.pieces:
            # For a double t and a rational r: t > r iff t > float_down(r), t >= r iff t >= float_up(r), and so on.
            touched = np.ones(lo.shape, dtype=np.bool_)
            if piece.lower is not None:
                r = Fraction(piece.lower[0])
                touched &= np.where(lo < hi, hi > float_down(r), lo >= float_up(r))
            if piece.upper is not None:
                r = Fraction(piece.upper[1])
                touched &= np.where(lo < hi, lo < float_up(r), lo <= float_down(r))
            slope = track_range(piece.slope, piece, -math.inf, math.inf)
            result[touched, 0] = np.minimum(result[touched, 0], slope[0])
            result[touched, 1] = np.maximum(result[touched, 1], slope[1])
        return result

    def _floats(self, x: Array, track: Callable[[Piece], Track]) -> Array:
        result = np.full(x.shape, np.nan)
        done = np.isnan(x)
        for piece in self.pieces:
            below = np.inf if piece.upper is None else float(piece.upper[1])
            above = -np.inf if piece.lower is None else float(piece.lower[0])
            mask = ~done & (x >= above) & (x <= below)
            if mask.all():
                return _mended(track(piece), piece, x)
            result[mask] = _mended(track(piece), piece, x[mask])
            done |= mask
        return result

    def _refusal(self, lo: float, hi: float, reason: str) -> str:
        where = "the real line" if (lo, hi) == (-math.inf, math.inf) else f"[{lo:g}, {hi:g}]"
        return f"{self.label} is not Lipschitz on {where}: {reason}"


def _interval(lo: float, hi: float) -> tuple[float, float]:
    lo, hi = float(lo), float(hi)
    if not lo <= hi or lo == math.inf or hi == -math.inf:
        raise UsageError(f"[{lo}, {hi}] is not an interval: it needs lo <= hi, both numbers")
    return lo, hi


def _lattice_place(lattice: Lattice, k: float) -> str:
    from flint import arb

    at = "every integer" if lattice.offset.text == "0" else "every integer + 1/2"
    return at if math.isinf(k) else f"{float(lattice.offset.ball(arb(0)) + arb(k) * lattice.spacing.ball(arb(0))):g}"


def _mended(track: Track, piece: Piece, x: Array) -> Array:
    """float64 values of a formula; where intermediate results overflow or an end is a limit, from balls instead."""
    y = track.formula.floats(x)
    lost = ~np.isfinite(y) & np.isfinite(x)
    if not lost.any():
        return y
    from flint import arb, ctx

    y = np.array(y)
    ends = [(e[0], limit) for e, limit in ((piece.lower, track.left), (piece.upper, track.right)) if e]
    limits = {float(e): limit for e, limit in ends if isinstance(limit, Affine | Expression)}
    with ctx.workprec(192):
        for index in map(tuple, np.argwhere(lost)):  # also where x is a single number
            at = float(x[index])
            enclosure = limits[at].ball(arb(0)) if at in limits else track.formula.ball(arb(at))
            if enclosure.is_finite():
                y[index] = float(enclosure)
    return y
