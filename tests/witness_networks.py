"""Networks of single operations, and an independent evaluation of them in rational arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import networkx as nx
import numpy as np

from lipmodel.activations import activation
from lipmodel.network.graph import Network, Source
from lipmodel.network.ops import Op
from lipmodel.spec import Norm

NORMS: tuple[Norm, ...] = ("1", "2", "inf")
PAIRS = [(p, q) for p in NORMS for q in NORMS]
Vector = list[Fraction]


def build(nodes: Sequence[tuple[str, Op, Sequence[str]]], output: str) -> Network:
    graph: Any = nx.MultiDiGraph()
    sizes: dict[str, int] = {}
    for name, op, arguments in nodes:
        sizes[name] = op.output_size([sizes[a] for a in arguments])
        graph.add_node(name, op=op, shape=(sizes[name],))
        for port, a in enumerate(arguments):
            graph.add_edge(a, name, key=port)
    source = Source(path=None, sha256="", graph_inputs=(), graph_outputs=(), parameters=0, opset=None, producer="")
    network = Network(graph=graph, input=nodes[0][0], output=output, source=source)
    network.validate()
    return network


def rational(values: Any) -> Vector:
    return [Fraction(float(v)) for v in np.ravel(values)]


def times(matrix: Any, x: Vector) -> Vector:
    return [sum((Fraction(float(a)) * b for a, b in zip(row, x, strict=True)), Fraction(0)) for row in matrix]


def convolved(kernel: Any, shape: tuple[int, ...], stride: int, pad: int, x: Vector) -> Vector:
    """One image, two dimensions, by the definition."""
    _, channels, height, width = shape
    outputs, _, k, _ = kernel.shape
    rows, columns = ((n + 2 * pad - k) // stride + 1 for n in (height, width))
    out = []
    for o in range(outputs):
        for i in range(rows):
            for j in range(columns):
                total = Fraction(0)
                for c in range(channels):
                    for a in range(k):
                        for b in range(k):
                            r, s = i * stride - pad + a, j * stride - pad + b
                            if 0 <= r < height and 0 <= s < width:
                                at = (c * height + r) * width + s
                                total += Fraction(float(kernel[o, c, a, b])) * x[at]
                out.append(total)
    return out


def squared_norm(x: Vector, norm: Norm) -> Fraction:
    sizes = [abs(v) for v in x]
    if norm == "2":
        return sum((v * v for v in sizes), Fraction(0))
    total = sum(sizes, Fraction(0)) if norm == "1" else max(sizes)
    return total * total


def check_rounded_down(ratio: float, change: Vector, step: Vector, p: Norm, q: Norm) -> None:
    """The ratio is the largest double below the truth (or one beside it)."""
    truth = squared_norm(change, q) / squared_norm(step, p)
    assert Fraction(ratio) ** 2 <= truth
    assert truth == 0 or Fraction(math.nextafter(math.nextafter(ratio, math.inf), math.inf)) ** 2 > truth


def difference(a: Vector, b: Vector) -> Vector:
    return [s - t for s, t in zip(a, b, strict=True)]


PIECEWISE: list[tuple[Any, Callable[[Fraction], Fraction]]] = [
    (activation("Relu"), lambda v: max(v, Fraction(0))),
    (activation("LeakyRelu", alpha=0.01), lambda v: v if v > 0 else Fraction(0.01) * v),
    (activation("LeakyRelu", alpha=-2.0), lambda v: v if v > 0 else -2 * v),
    (activation("Abs"), abs),
    (activation("Clip", min=-0.5, max=0.75), lambda v: min(max(v, Fraction(-1, 2)), Fraction(3, 4))),
    (
        activation("HardSigmoid", alpha=0.2, beta=0.5),
        lambda v: min(max(Fraction(0.2) * v + Fraction(0.5), Fraction(0)), Fraction(1)),
    ),
]
