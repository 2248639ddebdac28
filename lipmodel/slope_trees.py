"""Search for the largest norm over all slopes of one layer: branch and bound whose tree is the proof. Untrusted.

max over S of |G S A|_2^2, S diagonal with entries in [alpha, beta], is at a vertex. A node of the tree has set some
slopes; its bound is the two-layer LipSDP (Fazlyab et al. 2019, arXiv 1906.04893) of the neurons that are left, with
multipliers that a child inherits, which only makes its bound smaller.
"""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lipmodel.certify.certificate import hex_vector

Array = np.ndarray[Any, Any]

TIGHT = 4e-10
"""Relative distance, of squares, from the best vertex at which a leaf is good enough."""
PRECISION = 1e-10
"""Relative accuracy of the multipliers that are asked for."""
MOST_LEAVES = 4096
"""Leaves of a tree at most: a checker goes through all of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """G S A with slopes in [alpha, beta]. after: G, shape (r, n); before: A, shape (n, k).

    units: where G and A are the true ones over powers of two, what squares and multipliers are to be multiplied by.
    """

    after: Array
    before: Array
    alpha: Array
    beta: Array
    units: tuple[float, float] = (1.0, 1.0)

    @property
    def size(self) -> int:
        """The number n of neurons."""
        return len(self.alpha)

    def square(self, slopes: Array) -> float:
        """|G S A|_2^2."""
        return _square((self.after * slopes) @ self.before)


@dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """A node of the tree; slopes: those that are set, alpha where free. value: a bound of |G S A|^2 by t.

    direction: the unit x where the bound is attained; children: the neuron that was split, low and high.
    """

    free: Array
    slopes: Array
    t: Array
    value: float
    direction: Array | None
    children: tuple[int, Node, Node] | None = field(default=None)

    def to_json(self, unit: float) -> dict[str, Any]:
        """The tree below, as a certificate carries it; unit: of the multipliers."""
        if self.children is None:
            return {"t": hex_vector(self.t * unit)}
        j, low, high = self.children
        return {"neuron": j, "low": low.to_json(unit), "high": high.to_json(unit)}


@dataclass(slots=True, kw_only=True, eq=False)
class Tree:
    """A search that can go on: `value` bounds the maximum, `attained` is the best vertex found, once it has begun."""

    layer: Layer
    root: Node
    waiting: list[tuple[float, int, Node]]
    attained: float = 0.0
    leaves: int = 1
    _count: Any = field(default_factory=itertools.count)

    @property
    def value(self) -> float:
        """The bound of max |G S A|^2 that the tree proves, up to rounding."""
        return -self.waiting[0][0]

    @property
    def square(self) -> float:
        """The same in the units of the true matrices."""
        return self.value * self.layer.units[0]

    def to_json(self) -> dict[str, Any]:
        """The tree as a certificate carries it."""
        return self.root.to_json(self.layer.units[1])

    @property
    def solved(self) -> bool:
        """Whether the bound is attained, up to TIGHT."""
        return self.value <= self.attained * (1.0 + TIGHT)

    def branch(self, deadline: float, most: int = MOST_LEAVES) -> None:
        """Split the worst leaf until the bound is attained, or the time is over."""
        if self.attained == 0.0:
            low, high = self.layer.alpha, self.layer.beta
            for start in (_rounded(self.layer, self.root), high, np.where(-low > high, low, high)):
                self.attained = max(self.attained, climbed(self.layer, start))
        while not self.solved and self.leaves < most and time.monotonic() < deadline:
            _, _, node = heapq.heappop(self.waiting)
            j = _most_slack(self.layer, node)
            pair = [self._child(node, j, float(end[j])) for end in (self.layer.alpha, self.layer.beta)]
            node.children = (j, pair[0], pair[1])
            for child in pair:
                heapq.heappush(self.waiting, (-child.value, next(self._count), child))
            self.leaves += 1

    def _child(self, node: Node, j: int, slope: float) -> Node:
        slopes = node.slopes.copy()
        slopes[j] = slope
        kept = node.free != j
        child = _node(self.layer, node.free[kept], slopes, node.t[kept])
        if child.value > self.attained:
            start, value = alternated(self.layer, _rounded(self.layer, child))
            self.attained = self.attained if value <= self.attained else climbed(self.layer, start)
        if child.value > self.attained * (1.0 + TIGHT) and len(child.free):
            found = multipliers(self.layer, child.free, slopes)
            other = child if found is None else _node(self.layer, child.free, slopes, found)
            child = other if other.value < child.value else child
        return child


def tree(layer: Layer) -> Tree:
    """The tree of a single leaf: the two-layer LipSDP of the whole layer."""
    everything, slopes = np.arange(layer.size), layer.alpha.copy()
    found = multipliers(layer, everything, slopes)
    root = None if found is None else _node(layer, everything, slopes, found)
    if root is None or root.direction is None:
        root = min((_node(layer, everything, slopes, t) for t in _plain(layer)), key=lambda node: node.value)
    return Tree(layer=layer, root=root, waiting=[(-root.value, -1, root)])


def climbed(layer: Layer, slopes: Array) -> float:
    """|G S A|^2 at a vertex that no change of a single slope improves, from a given one."""
    slopes, best = alternated(layer, slopes)
    improved = True
    while improved:
        improved = False
        for j in range(layer.size):
            other = slopes.copy()
            other[j] = layer.alpha[j] + layer.beta[j] - slopes[j]
            value = layer.square(other)
            if value > best * (1.0 + 1e-14):
                slopes, best, improved = other, value, True
    return best


def alternated(layer: Layer, slopes: Array) -> tuple[Array, float]:
    """A vertex that is best for its own singular vectors, from a given one: u' G S A x is linear in S."""
    best = -np.inf
    while True:
        left, sizes, right = np.linalg.svd((layer.after * slopes) @ layer.before, full_matrices=False)
        if not float(sizes[0]) ** 2 > best * (1.0 + 1e-12):
            return slopes, max(best, float(sizes[0]) ** 2)
        best = float(sizes[0]) ** 2
        gain = (layer.after.T @ left[:, 0]) * (layer.before @ right[0])
        slopes = np.where(gain > 0.0, layer.beta, layer.alpha)


def multipliers(layer: Layer, free: Array, slopes: Array) -> Array | None:
    """Good multipliers of the free neurons, the others set: a small LipSDP, solved by the native backend."""
    from lipmodel.backends import backend
    from lipmodel.backends.base import SolveOptions
    from lipmodel.certify.extract import extract
    from lipmodel.model.model import Model, inner
    from lipmodel.model.qc import slope_restricted

    system = _two_paths(layer, free, slopes)
    m = Model("slopes of one layer")
    ball, price = m.ball(system.input, "2")
    form = ball - inner(system.output, system.output)
    form -= slope_restricted(system.activations[0], m.multiplier(system.activations[0]))
    m.require(form >= 0)
    m.minimize(2 * price, bound="sqrt")
    solver = backend("native")
    if solver.refuses(m) is not None:
        return None
    point = solver.solve(m, SolveOptions(tol=PRECISION))
    return None if point.values is None else extract(m, system, point.values)[0].t[0]


def _two_paths(layer: Layer, free: Array, slopes: Array) -> Any:
    """x -> G (sigma A x + E w), w = (slope in [0, c]) (A x) of the free neurons, as an increment system."""
    from lipmodel.model.forms import LinearForm, Signal, apply
    from lipmodel.network.increments import IncrementSystem, SlopeRestricted
    from lipmodel.network.linear import Dense

    x, w = Signal(name="x", size=layer.before.shape[1]), Signal(name="w", size=len(free))
    post = LinearForm.of(w)
    act = SlopeRestricted(
        name="w",
        signal=w,
        pre=apply(Dense(weights=np.ascontiguousarray(layer.before[free])), LinearForm.of(x)),
        post=post,
        alpha=np.zeros(len(free)),
        beta=(layer.beta - layer.alpha)[free],
    )
    output = apply(Dense(weights=np.ascontiguousarray(layer.after[:, free])), post)
    if np.any(slopes):
        output = output + apply(Dense(weights=(layer.after * slopes) @ layer.before), LinearForm.of(x))
    return IncrementSystem(
        signals=(x, w),
        input=LinearForm.of(x, role="input"),
        activations=(act,),
        output=LinearForm(size=output.size, blocks=output.blocks, role="output"),
    )


def _plain(layer: Layer) -> list[Array]:
    """Multipliers in closed form, multiples of the largest eigenvalue of G'G: the product of the two norms or less."""
    top = _square(layer.after)
    return [np.full(layer.size, c * top) for c in (0.501, 0.6, 0.8, 1.0)]


def _node(layer: Layer, free: Array, slopes: Array, t: Array) -> Node:
    """The node with the bound that t gives: inf where it gives none."""
    value, direction = np.inf, None
    try:
        stack = [(layer.after * slopes) @ layer.before]
        if len(free):
            factor, drive = _eliminated(layer, free, slopes, t)
            stack.append(np.linalg.solve(factor, drive))
        _, sizes, right = np.linalg.svd(np.vstack(stack), full_matrices=False)
        value, direction = float(sizes[0]) ** 2, right[0]
    except np.linalg.LinAlgError:
        pass
    return Node(free=free, slopes=slopes, t=t, value=value if np.isfinite(value) else np.inf, direction=direction)


def _eliminated(layer: Layer, free: Array, slopes: Array, t: Array) -> tuple[Array, Array]:
    """K = 2 diag(t) - G_F' G_F by its Cholesky factor, and the map from x to K w at the w where the form is least."""
    own = layer.after[:, free]
    step = (layer.beta - layer.alpha)[free]
    factor = np.linalg.cholesky(np.diag(2.0 * t) - own.T @ own)
    return factor, own.T @ ((layer.after * slopes) @ layer.before) + (step * t)[:, None] * layer.before[free]


def _relaxed(layer: Layer, node: Node) -> tuple[Array, Array]:
    """(A x, w) of the free neurons where the bound of a node is attained."""
    assert node.direction is not None
    factor, drive = _eliminated(layer, node.free, node.slopes, node.t)
    w = np.linalg.solve(factor.T, np.linalg.solve(factor, drive @ node.direction))
    return layer.before[node.free] @ node.direction, w


def _most_slack(layer: Layer, node: Node) -> int:
    """The free neuron whose relaxed slope is furthest from an end, weighed with its multiplier."""
    if node.direction is None:
        return int(node.free[0])
    v, w = _relaxed(layer, node)
    slack = node.t * w * ((layer.beta - layer.alpha)[node.free] * v - w)
    return int(node.free[int(np.argmax(slack))])


def _rounded(layer: Layer, node: Node) -> Array:
    """The vertex next to the relaxed slopes of a node."""
    slopes = node.slopes.copy()
    if node.direction is not None and len(node.free):
        v, w = _relaxed(layer, node)
        high = w * v > 0.5 * (layer.beta - layer.alpha)[node.free] * v**2
        slopes[node.free] = np.where(high, layer.beta[node.free], layer.alpha[node.free])
    return slopes


def _square(matrix: Array) -> float:
    return float(np.linalg.norm(matrix, 2)) ** 2
