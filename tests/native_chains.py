"""Chains of layers for the numeric core of the native backend, with dense and exact algebra to compare with."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.sparse as sp
from dense_algebra import has_positive_pivots, semidefinite_optimum

from lipmodel.backends.native.chain import ChainProblem

SLOPES = {
    "relu": (0.0, 1.0),
    "leaky": (0.01, 1.0),
    "gelu": (-0.13, 1.13),
    "abs": (-1.0, 1.0),
    "sigmoid": (0.0, 0.25),
    "falling": (-1.0, -0.2),
    "steep": (0.5, 3.0),
}


def gaussian(rng: np.random.Generator, dims: list[int]) -> list[np.ndarray]:
    return [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in itertools.pairwise(dims)]


def problem(matrices: list[Any], norm: str = "2", slopes: str | tuple[float, float] = "relu") -> ChainProblem:
    low, high = SLOPES[slopes] if isinstance(slopes, str) else slopes
    return ChainProblem(
        weights=tuple(matrices[:-1]),
        alpha=tuple(np.full(w.shape[0], low) for w in matrices[:-1]),
        beta=tuple(np.full(w.shape[0], high) for w in matrices[:-1]),
        output=matrices[-1],
        input_norm="2" if norm == "2" else "inf",
    )


def dense_inequality(p: ChainProblem) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Coefficients of (t, eta), the constant V'V, and the objective: the inequality is sum y_j A_j - V'V >= 0."""
    weights = [w.toarray() if sp.issparse(w) else w for w in p.weights]
    inputs, neurons = weights[0].shape[1], sum(w.shape[0] for w in weights)
    order = inputs + neurons
    pre = np.zeros((neurons, order))
    row, column = 0, 0
    for w in weights:
        pre[row : row + w.shape[0], column : column + w.shape[1]] = w
        row, column = row + w.shape[0], column + w.shape[1]
    post = np.hstack([np.zeros((neurons, inputs)), np.eye(neurons)])
    u = post - np.concatenate(p.alpha)[:, None] * pre
    r = post - np.concatenate(p.beta)[:, None] * pre
    terms = [np.outer(u[j], r[j]) + np.outer(r[j], u[j]) for j in range(neurons)]
    units = [np.diag(np.eye(order)[i]) for i in range(inputs)]
    terms += [np.sum(units, axis=0)] if p.input_norm == "2" else units
    gram = np.zeros((order, order))
    gram[column:, column:] = p.output.T @ p.output
    return terms, gram, np.concatenate([np.zeros(neurons), np.ones(len(terms) - neurons)])


def unknowns(p: ChainProblem, solution: Any) -> np.ndarray:
    return np.concatenate([*solution.t, solution.eta[:1] if p.input_norm == "2" else solution.eta])


def dense_matrix(p: ChainProblem, solution: Any) -> np.ndarray:
    terms, gram, _ = dense_inequality(p)
    return sum(y * term for y, term in zip(unknowns(p, solution), terms, strict=True)) - gram


def is_exactly_definite(p: ChainProblem, solution: Any) -> bool:
    """Positive definite in rational arithmetic, everything built from the stored doubles."""
    weights = [[[Fraction(x) for x in row] for row in w.tolist()] for w in p.weights]
    layers = [len(weights[0][0]), *(len(w) for w in weights)]
    starts = np.cumsum([0, *layers])
    order = int(starts[-1])
    s = [[Fraction(0)] * order for _ in range(order)]
    for i, eta in enumerate(solution.eta.tolist()):
        s[i][i] += Fraction(eta)
    for k, w in enumerate(weights):
        for j, row in enumerate(w):
            t, low, high = (Fraction(float(x[k][j])) for x in (solution.t, p.alpha, p.beta))
            own = {int(starts[k + 1]) + j: Fraction(1)}
            inputs = {int(starts[k]) + i: x for i, x in enumerate(row)}
            u = own | {i: -low * x for i, x in inputs.items()}
            r = own | {i: -high * x for i, x in inputs.items()}
            for a, x in u.items():
                for b, y in r.items():
                    s[a][b] += t * x * y
                    s[b][a] += t * x * y
    rows = [[Fraction(x) for x in row] for row in p.output.tolist()]
    for row in rows:
        for a, x in enumerate(row):
            for b, y in enumerate(row):
                s[int(starts[-2]) + a][int(starts[-2]) + b] -= x * y
    return has_positive_pivots(s)


def clarabel_optimum(p: ChainProblem, solution: Any) -> float | None:
    terms, gram, cost = dense_inequality(p)
    return semidefinite_optimum(terms, -gram, cost, 1.05 * unknowns(p, solution))
