"""The bound of a program with activations between two ends as a function of relative multipliers, with its gradient.

The recursion of `recursion` on any graph: Y is the covariance of all signals that are still read. With h the input of
an activation, P = H Y, G = H Y H', slopes [alpha, beta], B = beta - alpha, S = diag(t B^2)^-1 and
C = G alpha + S B, its output joins Y, and what is not read any more leaves it, as

    [Y, P'alpha; alpha P, alpha G alpha] + [P, C]' (2 S - G)^-1 [P, C].

At the far end sigma above all eigenvalues of E Y E' is needed. The variables are log(1 / (t diag G)) (for tied
multipliers the mean of what their first layer has) and the logarithms of the weights of both ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.linalg.blas import dtrmm
from scipy.linalg.lapack import dtrtri

from lipmodel.backends.native.barrier import add_to_diagonal, cholesky
from lipmodel.backends.native.chain import Array, Mask
from lipmodel.backends.native.closed import users
from lipmodel.backends.native.launch import Launch
from lipmodel.backends.native.recursion import power_mean
from lipmodel.backends.native.structure import Structure


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """An activation: what it reads of the live signals, what it leaves of them, and its multipliers t = K theta.

    first: its unknowns that no activation before has; means: the shares of its neurons in what they are relative to.
    """

    operand: Array  # H over the live signals
    kept: Mask
    alpha: Array
    width: Array
    weights: Any
    first: Array
    means: Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """What the recursion leaves behind at one activation: P (kept columns), G, diag S, t, (2 S - G)^-1 [P, C]."""

    reach: Array
    gram: Array
    bounds: Array
    t: Array
    relative: Array  # what the unknowns that appear here are relative to
    inverse: Array
    image: Array
    logdet: float  # of 2 S - G


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pass:
    """One pass; value and level as in `recursion.Pass`, y: all unknowns on the boundary of the feasible set."""

    x: Array
    y: Array
    value: float
    level: float
    weight: float
    layers: list[Layer]
    start: Array  # the diagonal of the first Y
    ends: Array  # the adjoint of E Y E'
    ball: Array  # the weights of the far end
    quotient: Array  # diagonal of (E Y E' o adjoint), which is what the logarithms of `ball` feel


class NotCovered(Exception):  # noqa: N818 - control flow: such a program starts from its closed form
    """Why a program has no such function."""


class GraphRecursion:
    """log of the bound of a launched program, whose barrier's unknowns are y.

    Raises NotCovered where terms are stated besides or multipliers have a price.
    """

    def __init__(self, launch: Launch, structure: Structure) -> None:
        program = launch.program
        self.launch, self.program, self.structure = launch, program, structure
        self.near = users(program, structure.inputs.values())
        self.inner = users(program, structure.activations)
        self.far = users(program, structure.duals.values())
        cost = program.cost
        priced = np.any(cost[self.near] > 0) and (not structure.duals or np.any(cost[self.far] > 0))
        if structure.extra or np.any(cost < 0) or np.any(cost[self.inner]) or not priced:
            raise NotCovered
        if not np.all(self.near | self.inner | self.far):
            raise NotCovered
        spans, sizes = program.spans, program.sizes
        self.balls = sp.csr_array(
            program.weights[np.concatenate([_places(spans[g]) for g in structure.inputs.values()])]
        )
        live = list(structure.inputs)
        last = {s: k for k, g in enumerate(structure.activations) for s in program.rows[g].pre}
        last.update({s: len(structure.activations) for pair in program.constant for s in pair})
        seen = np.zeros(program.unknowns, dtype=bool)
        self.nodes: list[Node] = []
        for k, g in enumerate(structure.activations):
            rows = program.rows[g]
            kept = [s for s in live if last.get(s, -1) > k]
            operand = np.hstack([rows.pre[s] if s in rows.pre else np.zeros((rows.size, sizes[s])) for s in live])
            weights = sp.csr_array(program.weights[spans[g]])
            width = np.abs(rows.beta - rows.alpha)
            own = np.unique(weights.indices)
            first = own[~seen[own]]
            seen[own] = True
            means = sp.csr_array((sp.diags_array(width**2) @ weights)[:, first].T)
            shares = 1 / np.maximum(np.diff(means.indptr), 1)
            self.nodes.append(
                Node(
                    operand=operand,
                    kept=np.concatenate([np.full(sizes[s], s in kept) for s in live]),
                    alpha=np.minimum(rows.alpha, rows.beta),
                    width=width,
                    weights=weights,
                    first=first,
                    means=sp.csr_array(sp.diags_array(shares) @ means),
                )
            )
            live = [*kept, rows.signal]
        far = structure.slack or structure.duals
        couplings = []
        for d in far:
            blocks = {a if b == d else b: m.T if b == d else m for (a, b), m in program.constant.items() if d in (a, b)}
            couplings.append(np.hstack([blocks[s] if s in blocks else np.zeros((sizes[d], sizes[s])) for s in live]))
        self.ends = np.vstack(couplings)
        places = np.concatenate([_places(spans[g]) for g in far.values()])
        self.outer = sp.csr_array(program.weights[places])
        self.fixed = 2 * program.shift[places]

    @property
    def neurons(self) -> int:
        return sum(len(node.alpha) for node in self.nodes)

    def variables(self, y: Array) -> Array | None:
        """Those of a strictly feasible point; None where the recursion breaks down."""
        y = self.launch.point(y)
        if not np.all(y > 0):
            return None
        found = self._layers(y, None)
        if found is None:
            return None
        x = np.log(y)
        for node, layer in zip(self.nodes, found[1], strict=True):
            x[node.first] = -np.log(y[node.first] * layer.relative)
        return x if np.all(np.isfinite(x)) else None

    def _layers(self, y: Array, x: Array | None) -> tuple[Array, list[Layer], Array] | None:
        """First diagonal, layers and last Y, from the unknowns, those of the activations from x where it is given."""
        start = 1 / (2 * (self.balls @ y))
        cover = np.diag(start)
        layers = []
        for node in self.nodes:
            reach = node.operand @ cover
            gram = reach @ node.operand.T
            relative = node.means @ gram.diagonal()
            if x is not None:
                y[node.first] = np.exp(-x[node.first]) / relative
            t = node.weights @ y
            bounds = 1 / (t * node.width**2)
            pivot = -gram
            add_to_diagonal(pivot, 2 * bounds)
            factor = cholesky(pivot) if np.all(bounds > 0) and np.all(t > 0) else None
            if factor is None:
                return None
            logdet = 2 * float(np.log(factor.diagonal()).sum())
            root = dtrtri(factor, lower=1)[0]
            inverse = root.T @ root
            reach = reach[:, node.kept]
            middle = gram * node.alpha
            add_to_diagonal(middle, node.width * bounds)
            joined = np.hstack([reach, middle])
            half = dtrmm(1.0, root, joined, lower=1)
            image = dtrmm(1.0, root, half, lower=1, trans_a=1)
            layer = Layer(
                reach=reach,
                gram=gram,
                bounds=bounds,
                t=t,
                relative=relative,
                inverse=inverse,
                image=image,
                logdet=logdet,
            )
            layers.append(layer)
            new = half.T @ half
            size = reach.shape[1]
            new[:size, :size] += cover[np.ix_(node.kept, node.kept)]
            scaled = node.alpha[:, None] * reach
            new[size:, :size] += scaled
            new[:size, size:] += scaled.T
            new[size:, size:] += gram * node.alpha * node.alpha[:, None]
            cover = new
        return start, layers, cover

    def forward(self, x: Array, weight: float, power: float) -> Pass | None:
        """The pass at x, None outside the domain. power: of the mean that stands for the largest eigenvalue."""
        y = np.exp(x)
        found = self._layers(y, x)
        if found is None:
            return None
        start, layers, cover = found
        barrier = 0.0
        if weight:
            barrier = sum(layer.logdet - float(np.log(layer.bounds).sum()) for layer in layers)
        ball = 2 * (self.outer @ y) + self.fixed
        root = 1 / np.sqrt(ball)
        ends = (self.ends * root[:, None]) @ cover @ (self.ends * root[:, None]).T
        mean = power_mean(ends, power)
        if mean is None:
            return None
        cost = self.program.cost
        level = float(np.log(cost[self.near] @ y[self.near])) + float(np.log(mean.top))
        if self.structure.duals:
            level += float(np.log(cost[self.far] @ y[self.far]))
        value = level + mean.excess - weight * barrier
        if not np.isfinite(value):
            return None
        adjoint = (mean.vectors * mean.shares) @ mean.vectors.T
        if self.structure.duals:
            y[self.far] *= mean.top
        else:
            y[~self.far] *= mean.top
        return Pass(
            x=x,
            y=y,
            value=value,
            level=level,
            weight=weight,
            layers=layers,
            start=start,
            ends=adjoint * root * root[:, None],
            ball=ball,
            quotient=np.einsum("ij,ij->i", adjoint, ends),
        )

    def gradient(self, found: Pass) -> Array:
        """Of the value of a pass."""
        mu, cost = found.weight, self.program.cost
        result = np.zeros_like(found.x)
        y = np.exp(found.x)
        for mask in (self.near, self.far) if self.structure.duals else (self.near,):
            result[mask] = cost[mask] * y[mask] / (cost[mask] @ y[mask])
        if self.structure.duals:
            result -= y * (self.outer.T @ (2 * found.quotient / found.ball))
        theta = self._multipliers(found)
        felt = np.zeros_like(found.x)  # by the multipliers
        adjoint = self.ends.T @ found.ends @ self.ends
        for node, layer in zip(reversed(self.nodes), reversed(found.layers), strict=True):
            size, low = layer.reach.shape[1], node.alpha
            spread = layer.image @ adjoint  # (2 S - G)^-1 [P, C] Z
            back = spread @ layer.image.T
            own = -2 * (back.diagonal() + mu * layer.inverse.diagonal()) + mu / layer.bounds
            own += 2 * node.width * spread[:, size:].diagonal()
            mixed = spread[:, size:] * low
            back += mixed + mixed.T
            back += adjoint[size:, size:] * low * low[:, None]
            back += mu * layer.inverse
            felt += node.weights.T @ (-own * layer.bounds / layer.t)
            change = felt[node.first] * theta[node.first]
            result[node.first] = -change
            add_to_diagonal(back, node.means.T @ (-change / layer.relative))
            reach = 2 * spread[:, :size] + 2 * low[:, None] * adjoint[size:, :size]
            before = node.operand.T @ (back @ node.operand)
            mixed = np.zeros_like(before)
            mixed[:, node.kept] = node.operand.T @ reach
            before += (mixed + mixed.T) / 2
            before[np.ix_(node.kept, node.kept)] += adjoint[:size, :size]
            adjoint = before
        kappa = found.start * adjoint.diagonal()
        result -= y * (self.balls.T @ (2 * found.start * kappa))
        return result

    def point(self, found: Pass) -> Array:
        """The barrier's unknowns of a pass, on the boundary of the feasible set."""
        return self.launch.vector(found.y)

    def raised(self, y: Array, slack: float) -> Array:
        """y with the weights of the far end raised by a share of them, or all others where those are fixed."""
        full = self.launch.point(y)
        if self.structure.duals:
            return self.launch.vector(np.where(self.far, 1 + slack, 1.0) * full)
        return self.launch.vector(np.where(self.near, (1 + slack) ** 2, 1 + slack) * full)

    def _multipliers(self, found: Pass) -> Array:
        """The unknowns of the activations before they are scaled."""
        theta = np.zeros_like(found.x)
        for node, layer in zip(self.nodes, found.layers, strict=True):
            theta[node.first] = np.exp(-found.x[node.first]) / layer.relative
        return theta


def _places(span: slice) -> Array:
    return np.arange(span.start, span.stop)
