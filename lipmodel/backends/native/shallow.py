"""The barrier of one wide hidden layer: its neurons are eliminated first; what remains has the size of both ends.

With an output slack s the matrix on (x0, w, s) is [E_0, -W' diag((a + b) t), 0; ., 2 diag(t), -V'; ., ., I], where
E_0 = diag(eta) + 2 W' diag(a b t) W. Eliminating w leaves, of order n0 + m,
B = [diag(eta) - W' diag((b - a)^2 t / 2) W, -W' diag((a + b) / 2) V'; ., I - V diag(1 / 2t) V'], and
P_ww = diag(1 / 2t) + H B^-1 H' with H = [diag((a + b) / 2) W, diag(1 / 2t) V']. An evaluation costs n1 (n0 + m)^2
instead of n1^3. The same three functions as in `barrier`, for the same matrix inequality.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dtrtri

from lipmodel.backends.native.barrier import add_to_diagonal, cholesky, hadamard
from lipmodel.backends.native.chain import Array, Chain, split


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShallowFactor:
    """The Cholesky factor of B at t, and H."""

    t: Array
    pivot: Array
    spread: Array  # H
    logdet: float  # of S(y)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShallowBand:
    """B^-1 and the gradient of logdet S."""

    gradient: Array
    inverse: Array


def factorize(chain: Chain, y: Array) -> ShallowFactor | None:
    """The factor of S(y), or None where S(y) is not (numerically) positive definite."""
    if not np.all(y > 0) or not np.all(np.isfinite(y)):
        return None
    (t,), eta = split(chain, y)
    weight, output = chain.weights[0], chain.output
    count = weight.shape[1]
    half = chain.slope_sum[0] / 2
    spread = np.empty((t.size, count + output.shape[0]))
    np.multiply(weight, half[:, None], out=spread[:, :count])
    np.divide(output.T, 2 * t[:, None], out=spread[:, count:])
    block = np.empty((spread.shape[1],) * 2)
    block[:count, :count] = -(weight.T * ((chain.beta[0] - chain.alpha[0]) ** 2 * t / 2)) @ weight
    add_to_diagonal(block[:count, :count], eta)
    block[count:, :count] = -output @ spread[:, :count]
    block[:count, count:] = block[count:, :count].T
    block[count:, count:] = -output @ spread[:, count:]
    add_to_diagonal(block[count:, count:], 1.0)
    pivot = cholesky(block)
    if pivot is None:
        return None
    logdet = float(np.log(2 * t).sum()) + 2 * float(np.log(pivot.diagonal()).sum())
    return ShallowFactor(t=t, pivot=pivot, spread=spread, logdet=logdet)


def band_inverse(chain: Chain, factor: ShallowFactor) -> ShallowBand:
    """B^-1, and the gradient of logdet S: <A_j, P> for every unknown j."""
    weight = chain.weights[0]
    count = weight.shape[1]
    root = dtrtri(factor.pivot, lower=1)[0]
    inverse = root.T @ root
    own = factor.spread @ root.T  # H C^-T: the rows of P_ww are inner products of its rows
    entries = 1 / (2 * factor.t) + np.einsum("ij,ij->i", own, own)
    cross = factor.spread @ inverse[:, :count]
    entries -= chain.slope_sum[0] * np.einsum("ij,ij->i", cross, weight)
    if chain.curved[0]:
        entries += chain.slope_product[0] * np.einsum("ij,ij->i", weight @ inverse[:count, :count], weight)
    tail = inverse.diagonal()[:count]
    gradient = np.concatenate([2 * entries, [tail.sum()] if chain.tied else tail])
    return ShallowBand(gradient=gradient, inverse=inverse)


def hessian(chain: Chain, factor: ShallowFactor, band: ShallowBand) -> Array:
    """The Hessian of -logdet S at y, shape (unknowns, unknowns)."""
    weight, alpha, beta = chain.weights[0], chain.alpha[0], chain.beta[0]
    count, neurons = weight.shape[1], chain.neurons
    reach = factor.spread @ band.inverse  # P_w(xs)
    base = reach @ factor.spread.T
    add_to_diagonal(base, 1 / (2 * factor.t))
    image = reach[:, :count] @ weight.T
    corner = band.inverse[:count, :count]
    through = corner @ weight.T  # P_xx W'
    result = np.empty((neurons + chain.cost.size,) * 2)
    both = weight @ through
    hadamard(base, image, image.T, both, alpha, beta, alpha, beta, out=result[:neurons, :neurons])
    cross = 2 * (reach[:, :count].T - through * alpha) * (reach[:, :count].T - through * beta)
    square = corner * corner
    if chain.tied:
        result[neurons, :neurons] = cross.sum(axis=0)
        result[neurons, neurons] = square.sum()
    else:
        result[neurons:, :neurons] = cross
        result[neurons:, neurons:] = square
    result[:neurons, neurons:] = result[neurons:, :neurons].T
    return result
