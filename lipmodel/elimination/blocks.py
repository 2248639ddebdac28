"""The matrices of an increment system by blocks, in units of order one, and the linear algebra on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as sla

Array = np.ndarray[Any, np.dtype[np.float64]]

SMALL = 32
"""Orders up to which all eigenvalues are found in less time than one is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """The matrices of an increment system, dense, signal 0 the input, signal k the k-th activation's output.

    pre[k-1][j]: (n_k, n_j) block of the k-th pre-activation; output[j]: (m, n_j); scale[k]: the power of two by which
    signal k was divided (1 for the input), scale_out the same for the output. groups: per activation, labels of the
    entries that share a multiplier (see `FloatSystem`).
    """

    sizes: tuple[int, ...]
    pre: tuple[dict[int, Array], ...]
    alpha: tuple[Array, ...]
    beta: tuple[Array, ...]
    output: dict[int, Array]
    outputs: int
    scale: tuple[float, ...]
    scale_out: float
    groups: tuple[Any, ...] = ()

    def tied(self, k: int, values: Array) -> Array:
        """Multipliers of activation k, or what bounds them from below: the largest of every group for all of it."""
        return tied(self.groups[k - 1], values) if self.groups else values


def tied(labels: Array | None, values: Array) -> Array:
    """Values, shape (n,), made the same all over a group: its largest one. None: every entry is by itself."""
    if labels is None:
        return values
    _, group = np.unique(labels, return_inverse=True)
    largest = np.full(int(group.max()) + 1, -np.inf)
    np.maximum.at(largest, group, values)
    return largest[group]


def scaled_blocks(system: Any) -> Blocks:
    """The blocks of a `FloatSystem` with every signal scaled to gain of order one, by powers of two (exact).

    Raises ValueError where the output reads no signal: such a network is constant, and there is nothing to scale.
    """
    if not system.output:
        raise ValueError("the output reads no signal: the network is constant")
    gains = [1.0]
    for pre, alpha, beta in zip(system.pre, system.alpha, system.beta, strict=True):
        slope = float(np.max(np.maximum(np.abs(alpha), np.abs(beta)), initial=0.0))
        reach = sum(_size(m.center) * gains[j] for j, m in pre.items())
        gains.append(_power_of_two(slope * reach))
    out = _power_of_two(sum(_size(m.center) * gains[j] for j, m in system.output.items()))
    pre_scaled = tuple(
        {j: m.center * (gains[j] / gains[k]) for j, m in pre.items()} for k, pre in enumerate(system.pre, start=1)
    )
    return Blocks(
        sizes=tuple(system.sizes),
        pre=pre_scaled,
        alpha=system.alpha,
        beta=system.beta,
        output={j: m.center * (gains[j] / out) for j, m in system.output.items()},
        outputs=next(iter(system.output.values())).shape[0],
        scale=tuple(gains),
        scale_out=out,
        groups=tuple(system.groups),
    )


def _size(a: Array) -> float:
    """A cheap estimate of the spectral norm, from below: ten power steps from the largest row."""
    if a.size == 0 or not np.any(a):
        return 0.0
    top = float(np.max(np.abs(a)))
    b = a / top
    x = b[int(np.argmax(np.sum(b * b, axis=1)))]
    for _ in range(10):
        x = b.T @ (b @ x)
        norm = float(np.linalg.norm(x))
        if norm == 0.0:
            return top
        x /= norm
    return top * float(np.linalg.norm(b @ x))


def spectral_estimate(m: Any) -> float:
    """A cheap estimate of the spectral norm of a LinearMap, without expanding it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(m.shape[1])
    value = 0.0
    for _ in range(12):
        norm = float(np.linalg.norm(x))
        if norm == 0.0 or not np.isfinite(norm):
            return value
        y = m.matvec(x / norm)
        value = float(np.linalg.norm(y))
        x = m.rmatvec(y)
    return value


def _power_of_two(value: float) -> float:
    if not np.isfinite(value) or value <= 0.0:
        return 1.0
    return float(2.0 ** np.clip(np.round(np.log2(value)), -900, 900))


def top_eigenvalue(a: Array) -> float:
    """The largest eigenvalue of a symmetric matrix (an estimate, like everything here)."""
    n = a.shape[0]
    if n == 0:
        return 0.0
    if n == 1:
        return float(a[0, 0])
    if not np.all(np.isfinite(a)):
        return float("inf")
    try:
        if n <= SMALL:
            return float(np.linalg.eigvalsh(a)[-1])
        return float(sla.eigh(a, eigvals_only=True, subset_by_index=[n - 1, n - 1], check_finite=False)[0])
    except (np.linalg.LinAlgError, ValueError):
        return float(np.linalg.eigvalsh(a)[-1])  # the subset driver fails on clustered spectra


def cholesky(a: Array) -> Array | None:
    """The lower Cholesky factor; None where there is none, or not a finite one."""
    if not np.all(np.isfinite(a)):
        return None
    factor, info = sla.lapack.dpotrf(a, lower=1, clean=1)
    diagonal = np.diag(factor)
    if info != 0 or not np.all(np.isfinite(diagonal)) or not np.all(diagonal > 0):
        return None
    return np.asarray(factor)
