"""Closed-form strictly feasible points of a chain, and the neuron-wise scaling in which they are of order one.

One forward pass: Y_0 = diag(kappa)^-1, G = W Y W', S diagonal with 2S - G > 0, and, with slopes [alpha, beta] and
B = beta - alpha, Y <- alpha G alpha + (alpha G + B S)(2S - G)^-1 (G alpha + S B). Every increment obeys
w w' << Y x'diag(kappa)x, so rho = lmax(V Y_L V') gives eta = rho kappa with multipliers t = rho S^-1 B^-2. For slopes
[0, 1] and a scalar S this is ECLipsE-Fast (Xu, Sivaranjani 2024, arXiv 2404.04375) and, over-relaxed, Syed, Hu 2025
(arXiv 2503.14297); a diagonal S from row sums is sound by diagonal dominance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dtrmm, dtrsm
from scipy.linalg.lapack import dtrtri

from lipmodel.backends.native.barrier import add_to_diagonal, cholesky
from lipmodel.backends.native.chain import (
    ABSENT,
    Array,
    Chain,
    Exponents,
    Scaling,
    exponents,
    scaled_chain,
    scaled_weight,
    shift,
    triangular_factor,
)
from lipmodel.backends.native.elimination import elimination_order

Rule = Callable[[Array], Array]
MARGIN = 1.3  # of the first iterate above the closed form, so that no block starts near singular


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start:
    """A chain in scaled signals, and two strictly feasible points of it, None where none was found.

    y: the better one, near the boundary. inside: where no block is near singular.
    """

    chain: Chain
    scaling: Scaling
    y: Array | None = None
    inside: Array | None = None


def _largest_eigenvalue(matrix: Array) -> float:
    """Of a symmetric positive semidefinite matrix; a power iteration (from below, a few per cent) where it is large."""
    if matrix.shape[0] <= 64:
        return float(np.linalg.eigvalsh(matrix)[-1])
    vector = np.sqrt(np.abs(matrix).sum(axis=1))
    value = 0.0
    for _ in range(30):
        norm = float(np.linalg.norm(vector))
        if norm == 0:
            return 0.0
        vector = matrix @ (vector / norm)
        value = max(value, float(np.linalg.norm(vector)))
    return value


def row_sum_rule(relaxation: float) -> Rule:
    """S = lmax(Q^-1/2 G Q^-1/2) Q / c, Q = diag(|G| 1), 0 < c < 2."""

    def rule(gram: Array) -> Array:
        rows = np.abs(gram).sum(axis=1)
        root = 1 / np.sqrt(rows)
        return np.asarray(_largest_eigenvalue(gram * root * root[:, None]) * rows / relaxation)

    return rule


def spectral_rule(relaxation: float) -> Rule:
    """S = lmax(G) I / c, 0 < c < 2."""
    return lambda gram: np.full(gram.shape[0], _largest_eigenvalue(gram) / relaxation)


def dominance_rule(relaxation: float) -> Rule:
    """S = diag(|G| 1) / c, 0 < c < 2."""
    return lambda gram: np.asarray(np.abs(gram).sum(axis=1) / relaxation)


RULES: tuple[Rule, ...] = (
    *(row_sum_rule(c) for c in (1.4, 1.0, 1.3, 1.5, 1.7)),
    *(spectral_rule(c) for c in (1.0, 1.4)),
    *(dominance_rule(c) for c in (1.0, 1.6)),
)


def _row_exponents(weight: Array, columns: Exponents) -> Exponents:
    """Exponent of the largest entry of every row of W[i, j] 2^columns[j]."""
    entries = exponents(weight)
    return np.asarray(np.max(np.where(entries == ABSENT, ABSENT, entries + columns[None, :]), axis=1))


def _input_scale(weight: Array, *, tied: bool) -> tuple[Exponents, Array]:
    """Signal exponents of the inputs, and kappa in scaled signals: the identity for input norm 2, else proportional to
    the columns of W_1 with normalised rows (exact for one neuron)."""
    count = weight.shape[1]
    if tied:
        return np.zeros(count, dtype=np.int64), np.ones(count)
    rows = _row_exponents(weight, np.zeros(count, dtype=np.int64))
    level = _row_exponents(weight.T, -rows)
    length = np.linalg.norm(scaled_weight(weight, -level, rows), axis=0)
    signals = -(level // 2)
    return signals, shift(length, level + 2 * signals)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Forward:
    scaling: Scaling
    t: list[Array]  # in scaled signals
    eta: Array


def _forward(
    weights: Sequence[Array], alpha: Sequence[Array], beta: Sequence[Array], output: Array, rule: Rule, *, tied: bool
) -> _Forward | None:
    """The forward pass, every signal rescaled as it appears; None where a pivot fails."""
    first, kappa = _input_scale(weights[0], tied=tied)
    signals, inputs = [first], []
    t: list[Array] = []
    half: Array | None = None  # the covariance is half' half, or full where a slope alpha is not zero
    full: Array | None = None
    for weight, low, high in zip(weights, alpha, beta, strict=True):
        rows = _row_exponents(weight, signals[-1])
        operand = scaled_weight(weight, signals[-1], rows)
        if full is not None:
            gram = operand @ full @ operand.T
        else:
            spread = operand / np.sqrt(kappa) if half is None else dtrmm(1.0, half, operand.T, lower=1).T
            gram = spread @ spread.T
        own = exponents(np.maximum(np.abs(low), np.abs(high)))
        low, width = shift(low, -own), shift(high, -own) - shift(low, -own)
        bounds = rule(gram)
        if not (np.all(np.isfinite(bounds)) and np.all(bounds > 0)):
            return None
        shifted = -gram
        add_to_diagonal(shifted, 2 * bounds)
        pivot = cholesky(shifted)
        if pivot is None:
            return None
        middle = gram * low
        add_to_diagonal(middle, width * bounds)
        if len(signals) == len(weights):  # only what the output reads of it is needed
            units = exponents(np.sqrt(width**2 * bounds + low**2 * gram.diagonal()))
        else:
            half = dtrsm(1.0, pivot, middle, lower=1) if low.any() else dtrtri(pivot, lower=1)[0] * middle.diagonal()
            full = half.T @ half + gram * low * low[:, None] if low.any() else None
            size = np.einsum("ij,ij->j", half, half) if full is None else full.diagonal()
            units = exponents(np.sqrt(size))
            half = shift(half, -units[None, :])
            full = None if full is None else shift(full, -units[:, None] - units[None, :])
        inputs.append(rows + units)
        signals.append(rows + units + own)
        t.append(shift(1 / (bounds * width**2), 2 * units))
    power = int(np.max(exponents(np.abs(output).max(axis=0)) + signals[-1]))
    ends = shift(output, (signals[-1] - units - power)[None, :])
    if ends.shape[0] > ends.shape[1]:
        ends = triangular_factor(ends)
    reach = dtrsm(1.0, pivot, middle @ ends.T, lower=1)
    low = ends * low
    rho = float(np.linalg.eigvalsh(reach.T @ reach + low @ gram @ low.T)[-1])
    if not np.isfinite(rho) or rho <= 0:
        return None
    unit = int(exponents(np.sqrt(np.array(rho))))
    rho = float(shift(np.array(rho), -2 * unit))
    power += unit
    return _Forward(
        scaling=Scaling(signals=tuple(signals), inputs=tuple(inputs), output=power),
        t=[rho * tk for tk in t],
        eta=rho * kappa,
    )


def _plain_scaling(
    weights: Sequence[Array], alpha: Sequence[Array], beta: Sequence[Array], output: Array, *, tied: bool
) -> Scaling:
    """Largest entry of every row and largest slope of every neuron of order one."""
    signals, inputs = [_input_scale(weights[0], tied=tied)[0]], []
    for weight, low, high in zip(weights, alpha, beta, strict=True):
        inputs.append(_row_exponents(weight, signals[-1]))
        signals.append(inputs[-1] + exponents(np.maximum(np.abs(low), np.abs(high))))
    power = int(np.max(exponents(np.abs(output).max(axis=0)) + signals[-1]))
    return Scaling(signals=tuple(signals), inputs=tuple(inputs), output=power)


def least_eta(chain: Chain, t: Sequence[Array], shape: Array) -> Array | None:
    """The least multiple of `shape` (n0,) that is feasible as eta with the multipliers t; None where no eta is."""
    gram = chain.output_gram
    for k in range(len(t) - 1, -1, -1):
        pivot = cholesky(np.diag(2 * t[k]) - gram)
        if pivot is None:
            return None
        half = dtrsm(1.0, pivot, chain.weights[k] * (chain.slope_sum[k] * t[k])[:, None], lower=1)
        gram = half.T @ half
        if chain.curved[k]:
            gram -= 2 * (chain.weights[k].T * (chain.slope_product[k] * t[k])) @ chain.weights[k]
    root = 1 / np.sqrt(shape)
    gram = gram * root * root[:, None]
    if not np.all(np.isfinite(gram)):
        return None
    return np.asarray(max(float(np.linalg.eigvalsh(gram)[-1]), 1e-12 * float(np.abs(gram).max()), 1e-200) * shape)


def backward_sweep(chain: Chain) -> Array | None:
    """A feasible point from scalar multipliers per layer, t_k = lmax of what the later layers ask for (any slopes)."""
    gram = chain.output_gram
    t: list[Array] = []
    for k in range(len(chain.weights) - 1, -1, -1):
        if not np.all(np.isfinite(gram)):
            return None
        need = max(float(np.linalg.eigvalsh(gram)[-1]), 1e-12 * float(np.abs(gram).max()))
        tk = np.full(gram.shape[0], need if need > 0 else 1.0)
        pivot = cholesky(np.diag(2 * tk) - gram)
        if pivot is None:
            return None
        half = dtrsm(1.0, pivot, chain.weights[k] * (chain.slope_sum[k] * tk)[:, None], lower=1)
        gram = half.T @ half
        if chain.curved[k]:
            gram -= 2 * (chain.weights[k].T * (chain.slope_product[k] * tk)) @ chain.weights[k]
        t.insert(0, tk)
    shape = np.ones(chain.weights[0].shape[1]) if chain.tied else np.linalg.norm(chain.weights[0], axis=0)
    eta = least_eta(chain, t, shape)
    if eta is None:
        return None
    return np.concatenate([*t, eta[:1] if chain.tied else eta])


def _firm(chain: Chain, y: Array) -> tuple[Array, Array] | None:
    """y with eta raised (more and more) as soon as it is strictly feasible, and a point well inside."""
    for excess in (1 + 1e-7, 1 + 1e-5, 1.001, 1.02, 1.1, 2.0, 16.0):
        edge = y.copy()
        edge[chain.neurons :] *= excess
        if elimination_order(chain).factorize(chain, edge) is not None:
            inside = MARGIN * edge
            inside[chain.neurons :] *= 1.02
            return edge, inside
    return None


def closed_form(
    weights: Sequence[Array], alpha: Sequence[Array], beta: Sequence[Array], output: Array, *, tied: bool
) -> Start:
    """The first forward rule that works, else the backward sweep; every neuron lies on a path from input to output."""
    for rule in RULES:
        with contextlib.suppress(np.linalg.LinAlgError):
            found = _forward(weights, alpha, beta, output, rule, tied=tied)
            if found is None:
                continue
            chain = scaled_chain(weights, alpha, beta, output, found.scaling, tied=tied)
            points = _firm(chain, np.concatenate([*found.t, found.eta[:1] if tied else found.eta]))
            if points is not None:
                return Start(chain=chain, scaling=found.scaling, y=points[0], inside=points[1])
    scaling = _plain_scaling(weights, alpha, beta, output, tied=tied)
    chain = scaled_chain(weights, alpha, beta, output, scaling, tied=tied)
    y = backward_sweep(chain)
    edge, inside = (None if y is None else _firm(chain, y)) or (None, None)
    return Start(chain=chain, scaling=scaling, y=edge, inside=inside)
