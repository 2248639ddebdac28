"""The bound of a chain as a function of relative multipliers alone, by the covariance recursion, with its gradient.

Every increment of layer k obeys w w' << Y_k x'diag(kappa)x, where, from Y_0 = diag(kappa)^-1, with G = W Y W', slopes
[alpha, beta], B = beta - alpha, and any diagonal S with 2 S - G > 0,

    Y <- alpha G alpha + C'K C,   K = (2 S - G)^-1,   C = G alpha + S B;

rho = lmax(V Y_L V') makes eta = rho kappa with t = rho S^-1 B^-2 feasible, and the best S gives the optimum of the
program. The variables are log(S / diag G) and log kappa: a change of one layer carries all later layers with it, so
that what is well chosen there stays so, however deep the network is. The gradient is the reverse mode of the
recursion: where Y has the adjoint Z, G has (alpha + K C) Z (alpha + K C)', which then passes through W and diag G.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dtrmm
from scipy.linalg.lapack import dtrtri

from lipmodel.backends.native.barrier import add_to_diagonal, cholesky
from lipmodel.backends.native.chain import Array, Chain, split

COVERED = 1.4  # largest eigenvalue of S^-1 G that S is given where it has to be raised: less than two


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """What the recursion leaves behind at one layer."""

    gram: Array  # G
    bounds: Array  # the diagonal of S
    root: Array  # inverse of the lower Cholesky factor of 2 S - G
    half: Array  # H with Y = H'H, lower triangular; empty where some alpha is not zero
    cover: Array  # Y, where H is empty


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pass:
    """One forward pass.

    value: log(cost'kappa) + log of a power mean of the eigenvalues of V Y V', an upper bound of the largest,
    - weight sum_k [logdet(2 S_k - G_k) - logdet S_k]. level: log of the objective of the point.
    """

    x: Array
    value: float
    level: float
    weight: float
    kappa: Array
    layers: list[Layer]
    adjoint: Array  # R with R R' the adjoint of Y_L


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PowerMean:
    """A smooth stand-in for the logarithm of the largest eigenvalue: (1 / power) log sum lambda^power.

    top: the largest eigenvalue; excess: of the mean over its logarithm; vectors, shares: the gradient of the mean is
    vectors diag(shares) vectors'.
    """

    top: float
    excess: float
    vectors: Array
    shares: Array


def power_mean(matrix: Array, power: float) -> PowerMean | None:
    """Of a symmetric positive semidefinite matrix; None where it is not finite, or zero."""
    if not np.all(np.isfinite(matrix)):
        return None
    values, vectors = np.linalg.eigh(matrix)
    top = float(values[-1])
    if not top > 0:
        return None
    ratios = np.maximum(values / top, 0.0)
    total = float((ratios**power).sum())
    shares = ratios ** (power - 1) / (total * top)
    return PowerMean(top=top, excess=math.log(total) / power, vectors=vectors, shares=shares)


class Recursion:
    """log of the bound of a chain, in the variables (log(S_k / diag G_k))_k and, where eta is not tied, log kappa."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.widths = tuple(high - low for low, high in zip(chain.alpha, chain.beta, strict=True))
        self.shifted = tuple(bool(np.any(low)) for low in chain.alpha)

    @property
    def neurons(self) -> int:
        return self.chain.neurons

    def variables(self, y: Array) -> Array | None:
        """Those of a strictly feasible point y; None where the recursion breaks down."""
        chain = self.chain
        t, eta = split(chain, y)
        bounds = [1 / (tk * width**2) for tk, width in zip(t, self.widths, strict=True)]
        kappa = np.ones_like(eta) if chain.tied else eta
        scale = eta[0] if chain.tied else 1.0
        layers: list[Layer] = []
        x = []
        for k, own in enumerate(bounds):
            gram = self._gram(k, kappa, layers)
            own = scale * own
            layer = self._layer(k, gram, own)
            if layer is None and np.all(np.isfinite(gram)) and np.all(own > 0):
                # the rounding errors of hundreds of layers: S is raised until it covers G again
                root = 1 / np.sqrt(own)
                own = own * (float(np.linalg.eigvalsh(gram * root * root[:, None])[-1]) / COVERED)
                layer = self._layer(k, gram, own)
            if layer is None:
                return None
            layers.append(layer)
            x.append(np.log(own / gram.diagonal()))
        found = np.concatenate(x if chain.tied else [*x, np.log(kappa)])
        return found if np.all(np.isfinite(found)) else None

    def forward(self, x: Array, weight: float, power: float) -> Pass | None:
        """The pass at x, None outside the domain. power: of the power mean."""
        chain = self.chain
        kappa = np.ones(chain.weights[0].shape[1]) if chain.tied else np.exp(x[chain.neurons :])
        layers: list[Layer] = []
        barrier = 0.0
        for k, span in enumerate(chain.spans):
            gram = self._gram(k, kappa, layers)
            layer = self._layer(k, gram, np.exp(x[span]) * gram.diagonal())
            if layer is None:
                return None
            layers.append(layer)
            if weight:
                barrier -= 2 * float(np.log(layer.root.diagonal()).sum()) + float(np.log(layer.bounds).sum())
        last = layers[-1]
        if last.half.size:
            ends = dtrmm(1.0, last.half, chain.output.T, lower=1)
            ends = ends.T @ ends
        else:
            ends = chain.output @ last.cover @ chain.output.T
        mean = power_mean(ends, power)
        if mean is None:
            return None
        price = 0.0 if chain.tied else float(np.log(chain.cost @ kappa))
        level = price + float(np.log(mean.top))
        value = level + mean.excess - weight * barrier
        if not np.isfinite(value):
            return None
        adjoint = chain.output.T @ (mean.vectors * np.sqrt(mean.shares))
        return Pass(x=x, value=value, level=level, weight=weight, kappa=kappa, layers=layers, adjoint=adjoint)

    def _gram(self, k: int, kappa: Array, layers: list[Layer]) -> Array:
        """G of layer k from the layers before it."""
        chain, weight = self.chain, self.chain.weights[k]
        if k == 0:
            if chain.tied and chain.input_gram.size:
                return chain.input_gram
            scaled = weight / np.sqrt(kappa)
            return np.asarray(scaled @ scaled.T)
        before = layers[-1]
        if before.half.size:
            if chain.sparse[k] is None:
                spread = dtrmm(1.0, before.half, weight.T, lower=1)
                return np.asarray(spread.T @ spread)
            spread = np.asarray(chain.sparse[k] @ before.half.T)
            return np.asarray(spread @ spread.T)
        return np.asarray((chain.sparse[k] if chain.sparse[k] is not None else weight) @ before.cover @ weight.T)

    def _layer(self, k: int, gram: Array, bounds: Array) -> Layer | None:
        pivot = -gram
        add_to_diagonal(pivot, 2 * bounds)
        factor = cholesky(pivot) if np.all(bounds > 0) else None
        if factor is None:
            return None
        root = dtrtri(factor, lower=1)[0]
        width = self.widths[k]
        if not self.shifted[k]:
            return Layer(gram=gram, bounds=bounds, root=root, half=root * (width * bounds), cover=np.zeros((0, 0)))
        low = self.chain.alpha[k]
        middle = gram * low
        add_to_diagonal(middle, width * bounds)
        spread = dtrmm(1.0, root, middle, lower=1)
        cover = spread.T @ spread
        cover += gram * low * low[:, None]
        return Layer(gram=gram, bounds=bounds, root=root, half=np.zeros((0, 0)), cover=cover)

    def gradient(self, found: Pass) -> Array:
        """Of the value of a pass."""
        chain, mu = self.chain, found.weight
        result = np.empty_like(found.x)
        rank: Array | None = found.adjoint  # of Y, as a product, at the last layer
        adjoint: Array = np.zeros((0, 0))
        for k in range(len(chain.spans) - 1, -1, -1):
            layer, low, width = found.layers[k], chain.alpha[k], self.widths[k]
            inverse = layer.root.T @ layer.root  # K
            carried = inverse * (width * layer.bounds)
            if self.shifted[k]:
                carried += (inverse @ layer.gram) * low
            own = -2 * mu * inverse.diagonal() + mu / layer.bounds  # of S
            if rank is not None:
                image = carried @ rank
                own += 2 * np.einsum("ij,ij->i", image, width[:, None] * rank - image)
                if self.shifted[k]:
                    image += low[:, None] * rank
                back = image @ image.T
                rank = None
            else:
                image = carried @ adjoint
                own += 2 * (width * image.diagonal() - np.einsum("ij,ij->i", image, carried))
                if k == 0 and chain.tied:
                    result[chain.spans[0]] = layer.bounds * own
                    break
                if self.shifted[k]:
                    image += low[:, None] * adjoint
                    add_to_diagonal(carried, low)
                back = image @ carried.T
            result[chain.spans[k]] = layer.bounds * own
            if k == 0 and chain.tied:
                break
            back += mu * inverse
            add_to_diagonal(back, layer.bounds * own / layer.gram.diagonal())
            weight = chain.weights[k]
            if chain.sparse[k] is not None:
                adjoint = np.asarray(chain.sparse[k].T @ np.asarray(chain.sparse[k].T @ back).T)
            elif k:
                adjoint = weight.T @ (back @ weight)
            else:
                share = chain.cost * found.kappa
                through = np.einsum("ij,ij->j", weight, back @ weight)
                result[chain.neurons :] = share / share.sum() - through / found.kappa
        return result

    def point(self, found: Pass) -> Array:
        """The multipliers (t_1..t_L, eta) of a pass, on the boundary of the feasible set."""
        price = 1.0 if self.chain.tied else float(self.chain.cost @ found.kappa)
        rho = float(np.exp(found.level)) / price
        t = [rho / (layer.bounds * width**2) for layer, width in zip(found.layers, self.widths, strict=True)]
        return np.concatenate([*t, rho * (found.kappa[:1] if self.chain.tied else found.kappa)])

    def raised(self, y: Array, slack: float) -> Array:
        """y raised by a share of it, which the last layer feels, and eta once more, which the first one does."""
        result = y * (1 + slack)
        result[self.chain.neurons :] *= 1 + slack
        return result
