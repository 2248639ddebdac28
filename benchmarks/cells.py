"""The cells of small piecewise linear networks on polytopes, in rational arithmetic.

On every cell the network is affine; the largest norm of the Jacobians of the full-dimensional cells is its Lipschitz
constant on the polytope (Jordan & Dimakis 2020, arXiv 2003.01219).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

import lipmodel as lm

Array = np.ndarray[Any, Any]
Rows = list[list[Fraction]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Polytope:
    """A full-dimensional polytope: its vertices, and for each of them the numbers of the facets it lies on."""

    vertices: tuple[tuple[Fraction, ...], ...]
    facets: tuple[frozenset[int], ...]
    used: int

    def values(self, a: Sequence[Fraction], b: Fraction) -> list[Fraction]:
        return [sum((x * y for x, y in zip(a, v, strict=True)), b) for v in self.vertices]


def box(lo: Sequence[Fraction], hi: Sequence[Fraction]) -> Polytope:
    """The box lo <= x <= hi, lo < hi."""
    corners = list(itertools.product((0, 1), repeat=len(lo)))
    vertices = tuple(tuple((lo, hi)[c][k] for k, c in enumerate(corner)) for corner in corners)
    facets = tuple(frozenset(2 * k + c for k, c in enumerate(corner)) for corner in corners)
    return Polytope(vertices=vertices, facets=facets, used=2 * len(lo))


def cross(center: Sequence[Fraction], radius: Fraction) -> Polytope:
    """The ball of the l1 norm."""
    n = len(center)
    sides = list(itertools.product((1, -1), repeat=n))
    vertices, facets = [], []
    for k, sign in itertools.product(range(n), (1, -1)):
        vertices.append(tuple(c + (sign * radius if i == k else 0) for i, c in enumerate(center)))
        facets.append(frozenset(number for number, side in enumerate(sides) if side[k] == sign))
    return Polytope(vertices=tuple(vertices), facets=tuple(facets), used=len(sides))


def halves(p: Polytope, a: Sequence[Fraction], b: Fraction) -> tuple[Polytope | None, Polytope | None]:
    """The full-dimensional parts of p where a'x + b <= 0 and >= 0; where the form vanishes on p, the latter is p."""
    values = p.values(a, b)
    if min(values) >= 0:
        return None, p
    if max(values) <= 0:
        return p, None
    new = [(v, f | {p.used}) for v, f, s in zip(p.vertices, p.facets, values, strict=True) if s == 0]
    below = [(v, f, s) for v, f, s in zip(p.vertices, p.facets, values, strict=True) if s < 0]
    above = [(v, f, s) for v, f, s in zip(p.vertices, p.facets, values, strict=True) if s > 0]
    for (u, f, s), (v, g, t) in itertools.product(below, above):
        common = f & g
        # two vertices span an edge exactly if no third one lies on all their common facets
        if sum(common <= other for other in p.facets) == 2:
            share = s / (s - t)
            new.append((tuple(x + share * (y - x) for x, y in zip(u, v, strict=True)), common | {p.used}))
    parts = []
    for side in (below, above):
        pairs = [*((v, f) for v, f, _ in side), *new]
        parts.append(Polytope(vertices=tuple(v for v, _ in pairs), facets=tuple(f for _, f in pairs), used=p.used + 1))
    return parts[0], parts[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bent:
    """A piecewise linear activation: slopes[k] between breaks[k-1] and breaks[k], value `anchor` at breaks[0]."""

    name: str
    parameters: tuple[tuple[str, float], ...]
    breaks: tuple[float, ...]
    slopes: tuple[float, ...]
    anchor: float = 0.0

    def pieces(self) -> list[tuple[Fraction, Fraction]]:
        """(slope, intercept) of every piece."""
        slopes, breaks = [Fraction(s) for s in self.slopes], [Fraction(b) for b in self.breaks]
        at = Fraction(self.anchor)
        found = [(slopes[0], at - slopes[0] * breaks[0])]
        for k, b in enumerate(breaks):
            if k > 0:
                at += slopes[k] * (b - breaks[k - 1])
            found.append((slopes[k + 1], at - slopes[k + 1] * b))
        return found

    def activation(self) -> Any:
        return lm.activation(self.name, **dict(self.parameters))


BENT = (
    Bent(name="Relu", parameters=(), breaks=(0.0,), slopes=(0.0, 1.0)),
    Bent(name="Abs", parameters=(), breaks=(0.0,), slopes=(-1.0, 1.0)),
    Bent(name="LeakyRelu", parameters=(("alpha", 0.125),), breaks=(0.0,), slopes=(0.125, 1.0)),
    Bent(name="LeakyRelu", parameters=(("alpha", -0.5),), breaks=(0.0,), slopes=(-0.5, 1.0)),
    Bent(name="Clip", parameters=(("min", -1.0), ("max", 0.5)), breaks=(-1.0, 0.5), slopes=(0, 1, 0), anchor=-1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bending:
    """A chain of piecewise linear activations: weights (n_k, n_{k-1}), biases, one activation per hidden layer."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    bent: tuple[Bent, ...]

    def network(self) -> Any:
        return lm.from_weights(self.weights, self.biases, activation=[*(b.activation() for b in self.bent), None])


def jacobians(net: Bending, start: Polytope, inputs: Rows, offset: list[Fraction]) -> list[Rows]:
    """The Jacobians, with respect to u, of all full-dimensional cells of u -> f(inputs u + offset) on a polytope."""
    cells = [(start, inputs, offset)]
    for number, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        rows, shift = [[Fraction(x) for x in row] for row in w.tolist()], [Fraction(x) for x in b.tolist()]
        moved = [(p, *_affine(rows, shift, m, c)) for p, m, c in cells]
        if number == len(net.bent):
            return [m for _, m, _ in moved]
        pieces, breaks = net.bent[number].pieces(), [Fraction(x) for x in net.bent[number].breaks]
        cells = []
        for p, m, c in moved:
            for part, chosen in _split(p, m, c, breaks):
                taken = [pieces[k] for k in chosen]
                slopes = [[s * x for x in row] for (s, _), row in zip(taken, m, strict=True)]
                cells.append((part, slopes, [s * x + i for (s, i), x in zip(taken, c, strict=True)]))
    raise ValueError("a chain ends in a linear layer")


def _affine(rows: Rows, shift: list[Fraction], m: Rows, c: list[Fraction]) -> tuple[Rows, list[Fraction]]:
    """rows (m u + c) + shift, as a matrix and an offset."""
    product = times(rows, m, len(m[0]) if m else 0)
    return product, [sum((a * x for a, x in zip(row, c, strict=True)), b) for row, b in zip(rows, shift, strict=True)]


def times(left: Rows, right: Rows, columns: int) -> Rows:
    """The product of two matrices, the second one with the given number of columns."""
    found = []
    for row in left:
        total = [Fraction(0)] * columns
        for a, other in zip(row, right, strict=True):
            if a:
                total = [t + a * x for t, x in zip(total, other, strict=True)]
        found.append(total)
    return found


def _split(p: Polytope, m: Rows, c: list[Fraction], breaks: list[Fraction]) -> Iterator[tuple[Polytope, list[int]]]:
    """The parts of p on which no pre-activation crosses a break, with the piece of every neuron."""
    parts: list[tuple[Polytope, list[int]]] = [(p, [])]
    for a, b in zip(m, c, strict=True):
        following = []
        for part, chosen in parts:
            rest: Polytope | None = part
            for k, at in enumerate(breaks):
                if rest is None:
                    break
                below, rest = halves(rest, a, b - at)
                if below is not None:
                    following.append((below, [*chosen, k]))
            if rest is not None:
                following.append((rest, [*chosen, len(breaks)]))
        parts = following
    return iter(parts)
