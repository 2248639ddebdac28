"""Small random networks of every shape that matters, and their formal constants by exhaustive enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.network.linear import Dense, Diagonal
from lipmodel.network.ops import Add, Concat, Elementwise, Input, Linear, Op, Part
from lipmodel.spec import dual

if TYPE_CHECKING:
    import networkx as nx

    from lipmodel.network.graph import Network
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.spec import Norm

Array = np.ndarray[Any, Any]
Activations = Sequence[tuple[str, dict[str, float]]]

MAX_NEURONS = 14
"""Activations up to which the vertices of the slope box are enumerated."""
RELU: Activations = (("Relu", {}),)
MIXED: Activations = (
    ("Relu", {}),
    ("LeakyRelu", {"alpha": 0.125}),
    ("LeakyRelu", {"alpha": -0.5}),
    ("Abs", {}),
    ("Tanh", {}),
    ("Gelu", {}),
    ("HardSwish", {}),
    ("Selu", {}),
)
"""Slope intervals [0, 1], [0.125, 1], [-0.5, 1], [-1, 1], and such with ends that are no round numbers."""


class _Sketch:
    """A network under construction; tensors are node names."""

    def __init__(self, seed: int, inputs: int) -> None:
        import networkx as nx

        self.rng = np.random.default_rng(seed)
        self.graph: nx.MultiDiGraph = nx.MultiDiGraph()
        self.x = self.add(Input(shape=(1, inputs)), [])

    def size(self, node: str) -> int:
        return int(self.graph.nodes[node]["shape"][1])

    def add(self, op: Op, arguments: Sequence[str]) -> str:
        node = f"{type(op).__name__.lower()}{len(self.graph)}"
        size = op.output_size([self.size(u) for u in arguments])
        self.graph.add_node(node, op=op, shape=(1, size))
        for port, u in enumerate(arguments):
            self.graph.add_edge(u, node, key=port)
        return node

    def linear(self, node: str, size: int, scale: float = 1.0, weights: Array | None = None) -> str:
        if weights is None:
            weights = scale * self.rng.standard_normal((size, self.size(node)))
        return self.add(Linear(map=Dense(weights=weights), bias=self.rng.standard_normal(size)), [node])

    def activate(self, node: str, choices: Activations = RELU) -> str:
        from lipmodel.activations import activation

        drawn = self.rng.integers(len(choices), size=self.size(node))
        parts = [
            Part(activation=activation(name, **params), index=np.flatnonzero(drawn == k))
            for k, (name, params) in enumerate(choices)
            if np.any(drawn == k)
        ]
        return self.add(Elementwise(parts=tuple(parts)), [node])

    def finish(self, output: str) -> Network:
        from lipmodel.network.sources import finished

        return finished(self.graph, self.x, output)


def _linear(s: _Sketch, outputs: int) -> str:
    return s.linear(s.x, outputs)


def _one_layer(s: _Sketch, outputs: int) -> str:
    return s.linear(s.activate(s.linear(s.x, 6)), outputs)


def _chain(s: _Sketch, outputs: int, choices: Activations = RELU) -> str:
    node = s.x
    for size in (4, 3, 3):
        node = s.activate(s.linear(node, size), choices)
    return s.linear(node, outputs)


def _mixed(s: _Sketch, outputs: int) -> str:
    return _chain(s, outputs, MIXED)


def _trailing(s: _Sketch, outputs: int) -> str:
    return s.activate(s.linear(s.activate(s.linear(s.x, 5)), outputs), MIXED)


def _residual(s: _Sketch, outputs: int) -> str:
    node = s.linear(s.x, 4)
    for _ in range(2):
        block = s.linear(s.activate(s.linear(node, 3), MIXED), 4)
        node = s.add(Add(), [node, block])
    return s.linear(s.activate(node), outputs)


def _skips(s: _Sketch, outputs: int) -> str:
    seen = [s.x]
    for size in (3, 3, 2):
        total = s.add(Add(), [s.linear(node, size) for node in (*seen, seen[-1])])
        seen.append(s.activate(total, MIXED))
    return s.add(Add(), [s.linear(node, outputs) for node in seen])


def _concat(s: _Sketch, outputs: int) -> str:
    left = s.activate(s.linear(s.x, 3))
    right = s.activate(s.linear(s.x, 2), MIXED)
    order = s.rng.permutation(5 + s.size(s.x))
    positions = np.split(order, [3, 5])
    joined = s.add(Concat(positions=tuple(positions)), [left, right, s.x])
    return s.linear(s.activate(s.linear(joined, 4)), outputs)


def _dead(s: _Sketch, outputs: int) -> str:
    def sparse(rows: int, columns: int) -> Array:
        weights = s.rng.standard_normal((rows, columns))
        weights[s.rng.integers(rows)] = 0.0  # a neuron that nothing reaches
        weights[:, s.rng.integers(columns)] = 0.0  # one that reaches nothing
        return weights

    node = s.activate(s.linear(s.x, 4, weights=sparse(4, s.size(s.x))))
    node = s.activate(s.linear(node, 4, weights=sparse(4, 4)), MIXED)
    weights = s.rng.standard_normal((outputs, 4))
    weights[:, 1] = 0.0
    return s.linear(node, outputs, weights=weights)


def _scaled(s: _Sketch, outputs: int) -> str:
    node = s.x
    for size in (4, 4):
        rows = 10.0 ** s.rng.uniform(-3.0, 3.0, size=(size, 1))
        weights = 10.0 ** s.rng.uniform(-4.0, 4.0) * rows * s.rng.standard_normal((size, s.size(node)))
        node = s.activate(s.linear(node, size, weights=weights))
    return s.linear(node, outputs, scale=10.0 ** s.rng.uniform(-4.0, 4.0))


_SHAPES: dict[str, Callable[[_Sketch, int], str]] = {
    "linear": _linear,
    "one-layer": _one_layer,
    "chain": _chain,
    "mixed": _mixed,
    "trailing": _trailing,
    "residual": _residual,
    "skips": _skips,
    "concat": _concat,
    "dead": _dead,
    "scaled": _scaled,
}
KINDS: tuple[str, ...] = tuple(_SHAPES)
"""What `random_network` draws: plain chains, slopes that differ by neuron, branches that are added or joined, an
activation at the end, dead neurons, weights of very different sizes."""


def random_network(kind: str, seed: int, *, inputs: int = 3, outputs: int = 2) -> Network:
    """A random network of one of the `KINDS`, at most 12 scalar activations; the same for the same arguments."""
    sketch = _Sketch(seed, inputs)
    return sketch.finish(_SHAPES[kind](sketch, outputs))


def random_system(kind: str, seed: int, *, inputs: int = 3, outputs: int = 2) -> IncrementSystem:
    """The increment system of `random_network`."""
    from lipmodel.network.increments import increments

    return increments(random_network(kind, seed, inputs=inputs, outputs=outputs))


def rescaled(system: IncrementSystem, *, inputs: float = 1.0, outputs: float = 1.0) -> IncrementSystem:
    """The system of x -> outputs * f(inputs * x); its constants are inputs * outputs times as large."""
    n, m = system.input.size, system.output.size
    changed = system.restrict_input(Diagonal(values=np.full(n, inputs)))
    return changed.restrict_output(Diagonal(values=np.full(m, outputs)))


def slope_vertices(system: IncrementSystem) -> Array:
    """All combinations of extreme slopes, shape (2^N, N), N the number of activations. ValueError for large N."""
    if system.neurons > MAX_NEURONS:
        raise ValueError(f"{system.neurons} activations are too many to enumerate: at most {MAX_NEURONS}")
    ends = [pair for a in system.activations for pair in zip(a.alpha, a.beta, strict=True)]
    return np.array(list(itertools.product(*ends)), dtype=np.float64).reshape(2**system.neurons, system.neurons)


def jacobians(system: IncrementSystem, slopes: Array) -> Array:
    """The linear maps C(s) for slopes of shape (P, N); shape (P, m, n), in floating point."""
    count, n = len(slopes), system.input.size
    values = {system.signals[0]: np.broadcast_to(np.eye(n), (count, n, n))}

    def at(form: Any) -> Array:
        total = np.zeros((count, form.size, n))
        for signal, block in form.blocks.items():
            total = total + block.enclosure().dense().center @ values[signal]
        return total

    start = 0
    for activation in system.activations:
        own = slopes[:, start : start + activation.size]
        start += activation.size
        values[activation.signal] = own[:, :, None] * at(activation.pre)
    return at(system.output)


def formal_constant(system: IncrementSystem, p: Norm, q: Norm) -> float:
    """max ||C(s)||_{p->q} over all slopes, which no bound that ignores biases may be below; floating point, exhaustive.

    The maximum is at a vertex of the slope box, because the norm is convex in every slope. ValueError beyond
    `MAX_NEURONS` activations.
    """
    return float(np.max(induced_norms(jacobians(system, slope_vertices(system)), p, q)))


def induced_norms(c: Array, p: Norm, q: Norm) -> Array:
    """||C||_{p->q} of every matrix of a stack, shape (P, m, n) -> (P,); by all sign vectors where that is NP-hard."""
    order = {"1": 1, "2": 2, "inf": np.inf}
    if p == "1":
        return np.asarray(np.linalg.norm(c, order[q], axis=1).max(axis=1))
    if q == "inf":
        return induced_norms(np.swapaxes(c, 1, 2), "1", dual(p))
    if p == q == "2":
        return np.asarray(np.linalg.norm(c, 2, axis=(1, 2)))
    if p == "inf":
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=c.shape[2]))).T
        return np.asarray(np.linalg.norm(c @ signs, order[q], axis=1).max(axis=1))
    return induced_norms(np.swapaxes(c, 1, 2), "inf", "2")
