"""Nonlinearities of vectors that do not act entry by entry: Softmax, LogSoftmax, normalisations, LRN.

An increment dw of phi: R^n -> R^n is S dv, S the mean of the Jacobian J along the segment, a matrix that is not
diagonal. What is known of S for all points is all that a proof may use:

* alpha I <= S <= beta I where J is symmetric: (dw - alpha dv)'(beta dv - dw) >= 0, one inequality for the whole vector;
* |S|_2 <= beta = -alpha elsewhere: the same inequality then says |dw| <= beta |dv|;
* |S|_1 and |S|_inf, for the product of norms.

That the entries of Softmax add up to 1, and that LayerNormalization does not feel the mean, is not used: sound, looser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from math import ceil, inf, log, nextafter, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.errors import NotLipschitz

if TYPE_CHECKING:
    from flint import arb

Array = np.ndarray[Any, Any]

WIDER = 1.0 + 2.0**-40
"""More than what rounding can take away in the few operations of a bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorFunction:
    """A function phi: R^n -> R^n for every n >= 1; floating-point arrays have shape (groups, n, points)."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def label(self) -> str:
        """The name with the parameters."""
        given = ", ".join(f"{f.name}={getattr(self, f.name):g}" for f in fields(self))
        return f"{self.name}({given})" if given else self.name

    def value(self, v: Array) -> Array:
        """phi(v)."""
        raise NotImplementedError

    def tangent(self, v: Array, t: Array) -> Array:
        """J(v) t."""
        raise NotImplementedError

    def cotangent(self, v: Array, c: Array) -> Array:
        """J(v)' c; the same as J(v) c where J is symmetric."""
        return self.tangent(v, c)

    def balls(self, v: list[arb]) -> list[arb]:
        """phi in ball arithmetic, at the precision of the context."""
        raise NotImplementedError

    def slopes(self, n: int) -> tuple[float, float]:
        """alpha, beta of the inequality above, rounded outward; both 0 where phi is constant."""
        raise NotImplementedError

    def gains(self, n: int) -> Mapping[str, float]:
        """Bounds of |J|_1 and |J|_inf, rounded up, by the name of the norm."""
        raise NotImplementedError

    def limits(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        """Bounds of the values for arguments between lo and hi (which may be infinite), shape (groups, n)."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(VectorFunction):
    """p_i = exp v_i / sum_j exp v_j. J = diag(p) - p p', so 0 <= J <= I/2 and |J|_1 = |J|_inf = 2 max p_i (1 - p_i).

    The largest eigenvalue is at most the largest row sum, 1/2 (Gao & Pavel 2017, arXiv 1704.00805, have 1).
    """

    def value(self, v: Array) -> Array:
        e = np.exp(v - np.max(v, axis=1, keepdims=True))
        return np.asarray(e / np.sum(e, axis=1, keepdims=True))

    def tangent(self, v: Array, t: Array) -> Array:
        p = self.value(v)
        return np.asarray(p * (t - np.sum(p * t, axis=1, keepdims=True)))

    def balls(self, v: list[arb]) -> list[arb]:
        powers, total = _powers(v)
        return [e / total for e in powers]

    def slopes(self, n: int) -> tuple[float, float]:
        return (0.0, 0.5) if n > 1 else (0.0, 0.0)

    def gains(self, n: int) -> Mapping[str, float]:
        return dict.fromkeys(("1", "inf"), 0.5 if n > 1 else 0.0)

    def limits(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        return np.zeros(lo.shape), np.ones(hi.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSoftmax(VectorFunction):
    """w_i = v_i - log sum_j exp v_j. J = I - 1 p', and every norm of it is largest at a vertex of the simplex.

    With p = e_1 the vector (x_j - x_1) has |.|_2 <= sqrt(n) |x|_2, |.|_1 <= max(1, n - 1) |x|_1, |.|_inf <= 2 |x|_inf,
    and these are attained in the limit.
    """

    def value(self, v: Array) -> Array:
        shifted = v - np.max(v, axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True)))

    def tangent(self, v: Array, t: Array) -> Array:
        return np.asarray(t - np.sum(Softmax().value(v) * t, axis=1, keepdims=True))

    def cotangent(self, v: Array, c: Array) -> Array:
        return np.asarray(c - Softmax().value(v) * np.sum(c, axis=1, keepdims=True))

    def balls(self, v: list[arb]) -> list[arb]:
        top = _largest(v)
        rest = _powers(v)[1].log()
        return [(x - top) - rest for x in v]

    def slopes(self, n: int) -> tuple[float, float]:
        gain = _root_up(n) if n > 1 else 0.0
        return -gain, gain

    def gains(self, n: int) -> Mapping[str, float]:
        return {"1": float(n - 1), "inf": 2.0 if n > 1 else 0.0}

    def limits(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        top = np.max(hi, axis=1, keepdims=True)
        with np.errstate(all="ignore"):
            low = (lo - top) - log(lo.shape[1]) * WIDER
            low = low - np.abs(low) * (WIDER - 1.0)
        return np.where(np.isfinite(low), low, -np.inf), np.zeros(hi.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Normalised(VectorFunction):
    """u / sqrt(|u|^2 / n + epsilon), epsilon > 0, for u = v (root mean square) or v less its mean."""

    epsilon: float

    def __post_init__(self) -> None:
        if not 0.0 < self.epsilon < inf:
            raise NotLipschitz(f"{self.name} with epsilon = {self.epsilon:g} jumps where all entries are the same")

    def centred(self, v: Array) -> Array:
        """v, or v less its mean: the orthogonal projection P that the function starts with."""
        raise NotImplementedError

    def value(self, v: Array) -> Array:
        u = self.centred(v)
        return np.asarray(u / np.sqrt(np.mean(u * u, axis=1, keepdims=True) + self.epsilon))

    def tangent(self, v: Array, t: Array) -> Array:
        u, d = self.centred(v), self.centred(t)
        sigma = np.sqrt(np.mean(u * u, axis=1, keepdims=True) + self.epsilon)
        z = u / sigma
        return np.asarray((d - z * np.mean(z * d, axis=1, keepdims=True)) / sigma)

    def _scaled(self, gain: float) -> float:
        """gain / sqrt(epsilon), rounded up."""
        return _above(lambda: _ball(gain) / _ball(self.epsilon).sqrt())


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNormalization(_Normalised):
    """z = (v - mean) / sigma, sigma^2 = variance + epsilon, before the scale and the bias.

    J = (P - z z'/n) / sigma with P = I - 1 1'/n, and |z|^2 <= n: 0 <= J <= I / sqrt(epsilon). A row of sigma J has the
    sum of moduli 2 (n - 1)/n - a^2 + a |rest|, a = |z_i| / sqrt(n) and |rest| <= sqrt(n - 1) sqrt(1 - a^2), hence at
    most 2 (n - 1)/n + (sqrt(n) - 1)/2; and at most sqrt(n).
    """

    def centred(self, v: Array) -> Array:
        return np.asarray(v - np.mean(v, axis=1, keepdims=True))

    def balls(self, v: list[arb]) -> list[arb]:
        mean = sum(v[1:], start=v[0]) / len(v)
        u = [x - mean for x in v]
        sigma = (sum((x * x for x in u), start=0 * mean) / len(v) + self.epsilon).sqrt()
        return [x / sigma for x in u]

    def slopes(self, n: int) -> tuple[float, float]:
        return 0.0, self._scaled(1.0) if n > 1 else 0.0

    def gains(self, n: int) -> Mapping[str, float]:
        row = min(_root_up(n), (2.0 * (n - 1) / n + 0.5 * (_root_up(n) - 1.0)) * WIDER)
        return dict.fromkeys(("1", "inf"), self._scaled(row) if n > 1 else 0.0)

    def limits(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        top = np.full(lo.shape, sqrt(lo.shape[1] - 1) * WIDER)
        return -top, top


@dataclass(frozen=True, slots=True, kw_only=True)
class RMSNormalization(_Normalised):
    """z = v / sigma, sigma^2 = |v|^2 / n + epsilon, before the scale.

    As for LayerNormalization, with J = (I - z z'/n) / sigma: row sums of sigma J are at most (1 + sqrt(n)) / 2.
    """

    def centred(self, v: Array) -> Array:
        return v

    def balls(self, v: list[arb]) -> list[arb]:
        sigma = (sum((x * x for x in v[1:]), start=v[0] * v[0]) / len(v) + self.epsilon).sqrt()
        return [x / sigma for x in v]

    def slopes(self, n: int) -> tuple[float, float]:
        return 0.0, self._scaled(1.0)

    def gains(self, n: int) -> Mapping[str, float]:
        return dict.fromkeys(("1", "inf"), self._scaled(0.5 * (1.0 + _root_up(n)) * WIDER))

    def limits(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        top = np.full(lo.shape, sqrt(lo.shape[1]) * WIDER)
        return -top, top


@dataclass(frozen=True, slots=True, kw_only=True)
class LRN(VectorFunction):
    """Local response normalisation y_i = v_i / D_i^beta, D_i = bias + (alpha / size) sum_{j in W(i)} v_j^2.

    W(i) are the entries from i - floor((size - 1)/2) to i + ceil((size - 1)/2) that exist, at most m = min(size, n).
    Lipschitz for bias > 0, alpha >= 0, beta >= 0, and else not (unless alpha = 0): with beta < 0 it grows faster than
    any line, with alpha < 0 or bias <= 0 some D_i vanishes.

    With u_j = sqrt(alpha/size) v_j / sqrt(D_i) on W(i), s = |u|^2 = 1 - bias/D_i < 1 and D_i^-beta = bias^-beta
    (1 - s)^beta, row i of J is D_i^-beta (e_i - 2 beta u_i u'). In units of bias^-beta:

    * A row sum is at most (1 - s)^beta times |1 - 2 beta a^2| + 2 beta a sqrt(m - 1) sqrt(s - a^2), a = |u_i|, which is
      at most 1 + s beta (sqrt(m) - 1) or s beta (sqrt(m) + 1) - 1 (a^2 = s (1 - cos 2x)/2). Over s, with c for the
      factor of s: (1 - s)^beta (1 + c s) is largest at s = (c - beta)/(c (1 + beta)), or at 0 where c <= beta; and
      (1 - s)^beta (c s - 1) at s = (c + beta)/(c (1 + beta)), for c > 1. The larger of both is |J|_inf.
    * Off the diagonal |J_ij| <= beta s (1 - s)^beta <= h = (beta/(1 + beta))^(1 + beta) <= 1/e, as 2 |u_i u_j| <= s; on
      it |J_ii| <= 1, as 2 beta s (1 - s)^beta <= 2 h < 1. A column has at most m - 1 other entries, and
      |J|_1 <= 1 + (m - 1) h.
    * |J|_2 <= sqrt(|J|_1 |J|_inf). At v = 0 all three norms are 1.
    """

    size: int
    alpha: float
    beta: float
    bias: float

    def __post_init__(self) -> None:
        fine = self.bias > 0.0 and self.alpha >= 0.0 and self.beta >= 0.0 and self.size >= 1
        if not (fine and max(self.bias, self.alpha, self.beta) < inf):
            raise NotLipschitz(
                f"LRN with alpha = {self.alpha:g}, beta = {self.beta:g}, bias = {self.bias:g} is not Lipschitz: it "
                "needs alpha and beta that are not negative, and a positive bias"
            )

    def _window(self, i: int, n: int) -> range:
        return range(max(0, i - (self.size - 1) // 2), min(n, i + ceil((self.size - 1) / 2) + 1))

    def _windows(self, n: int) -> Array:
        """The matrix with entry (i, j) = 1 for j in W(i)."""
        found = np.zeros((n, n))
        for i in range(n):
            found[i, self._window(i, n)] = 1.0
        return found

    def _parts(self, v: Array) -> tuple[Array, Array, Array]:
        """The windows, D and D^-beta."""
        windows = self._windows(v.shape[1])
        d = self.bias + self.alpha / self.size * (windows @ (v * v))
        return windows, d, d**-self.beta

    def value(self, v: Array) -> Array:
        return np.asarray(v * self._parts(v)[2])

    def tangent(self, v: Array, t: Array) -> Array:
        windows, d, power = self._parts(v)
        bend = 2.0 * self.beta * self.alpha / self.size * v * power / d
        return np.asarray(power * t - bend * (windows @ (v * t)))

    def cotangent(self, v: Array, c: Array) -> Array:
        windows, d, power = self._parts(v)
        bend = 2.0 * self.beta * self.alpha / self.size * v * power / d
        return np.asarray(power * c - v * (windows.T @ (bend * c)))

    def balls(self, v: list[arb]) -> list[arb]:
        squares = [x * x for x in v]
        factor, found = _ball(self.alpha) / self.size, []
        for i, x in enumerate(v):
            window = [squares[j] for j in self._window(i, len(v))]
            found.append(x / (self.bias + factor * sum(window[1:], start=window[0])) ** _ball(self.beta))
        return found

    def slopes(self, n: int) -> tuple[float, float]:
        gains = self.gains(n)
        gain = sqrt(gains["1"] * gains["inf"]) * WIDER
        return -gain, gain

    def gains(self, n: int) -> Mapping[str, float]:
        m, b = min(self.size, n), self.beta

        def unit() -> Any:
            return _ball(self.bias) ** -_ball(b)

        if b == 0.0:
            return {"1": 1.0, "inf": 1.0}

        def column() -> Any:
            return unit() * (1 + (m - 1) * (_ball(b) / (1 + _ball(b))) ** (1 + _ball(b)))

        def row() -> Any:
            root, beta, best = _ball(m).sqrt(), _ball(b), _ball(1)
            rising, falling = beta * (root - 1), beta * (root + 1)
            if not rising < beta:
                # the closed form is (1 - s)^beta (1 + c s) at its maximum over all s, hence an upper bound in any case
                best = best.max((beta * (1 + rising) / (rising * (1 + beta))) ** beta * (1 + rising) / (1 + beta))
            if falling > 1:
                best = best.max((beta * (falling - 1) / (falling * (1 + beta))) ** beta * (falling - 1) / (1 + beta))
            return unit() * best

        return {"1": _above(column), "inf": _above(row)}

    def limits(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            top = np.maximum(np.abs(lo), np.abs(hi)) * (_above(lambda: _ball(self.bias) ** -_ball(self.beta)) * WIDER)
        return -top, top


def _largest(v: list[arb]) -> arb:
    """The largest midpoint: what is subtracted so that exponentials keep their size."""
    return max((x.mid() for x in v), key=float)


def _powers(v: list[arb]) -> tuple[list[arb], arb]:
    """exp(v_i - top) and their sum."""
    top = _largest(v)
    powers = [(x - top).exp() for x in v]
    return powers, sum(powers[1:], start=powers[0])


def _ball(value: float) -> Any:
    from flint import arb

    return arb(value)


def _above(ball: Callable[[], Any]) -> float:
    """A double above what a ball holds, computed with 128 bits."""
    from flint import ctx

    with ctx.workprec(128):
        return nextafter(float(ball().upper()), inf)


def _root_up(n: int) -> float:
    """sqrt(n), rounded up."""
    root = sqrt(n)
    return root if root * root == n and root == int(root) else nextafter(root, inf)
