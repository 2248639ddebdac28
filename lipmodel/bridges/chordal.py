"""A sparse matrix inequality as smaller ones that overlap, in clique-tree form.

For a chordal pattern with maximal cliques K_1, .., K_c: Z is positive semidefinite if and only if it is a sum of
E_k' Z_k E_k with Z_k positive semidefinite (Agler, Helton, McCullough & Rodman 1988, Linear Algebra Appl. 107:101; the
theory of chordal graphs is in Vandenberghe & Andersen 2015, Found. Trends Optim. 1:241). Every entry of the form is
given to one clique A_k, and every edge of a clique tree has one free symmetric matrix X on what its two cliques share:

    A_k + sum_(children c) E_c' X_c E_c - E_k' X_k E_k   positive semidefinite for every clique k

No equality is left over. Cliques are groups of signals: the inputs and the layers that meet in one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import scipy.sparse as sp

from lipmodel.bridges.base import Applied, Part, Shape, Soundness, free_name
from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
from lipmodel.model.model import Constraint
from lipmodel.model.sets import PSD, SparsePSD
from lipmodel.model.terms import Congruence, Term
from lipmodel.model.variables import Variable
from lipmodel.network.linear import Sparse, identity

Array = np.ndarray[Any, Any]
Clique = tuple[Signal, ...]
HANDLING = 10
"""Rows that the handling of one more block costs: what makes merging cliques of few neurons worth while."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CliqueTree:
    """cliques: parents before children; parent: the index of each one's parent, -1 for a root; shared: separators."""

    cliques: tuple[Clique, ...]
    parent: tuple[int, ...]
    shared: tuple[Clique, ...]

    @property
    def orders(self) -> tuple[int, ...]:
        return tuple(_size(c) for c in self.cliques)

    @property
    def overlaps(self) -> int:
        """The number of scalar variables on all edges."""
        return sum(map(_triangle, self.shared))

    @property
    def touching(self) -> tuple[int, ...]:
        """About how many variables every clique has: those of its edges, and a multiplier for each of its rows."""
        found = [order + _triangle(shared) for order, shared in zip(self.orders, self.shared, strict=True)]
        for above, shared in zip(self.parent, self.shared, strict=True):
            if above >= 0:
                found[above] += _triangle(shared)
        return tuple(found)


def _size(clique: Sequence[Signal]) -> int:
    return sum(s.size for s in clique)


def _triangle(clique: Sequence[Signal]) -> int:
    n = _size(clique)
    return n * (n + 1) // 2


def clique_tree(form: QuadraticForm, kind: PSD | SparsePSD) -> CliqueTree:
    """Cliques of a chordal extension of the form's pattern, or of the given groups, merged where that is cheaper."""
    graph = nx.Graph()
    graph.add_nodes_from(form.signals)
    pairs = (pair for term in form.terms for pair in term.pattern())
    graph.add_edges_from((a, b) for a, b in pairs if a is not b)
    given = kind.cliques if isinstance(kind, SparsePSD) and not isinstance(kind.cliques, str) else ()
    for group in given:
        graph.add_edges_from((a, b) for i, a in enumerate(group) for b in group[:i])
    order = {s: i for i, s in enumerate(form.signals)}
    cliques = [tuple(sorted(c, key=order.__getitem__)) for c in _maximal_cliques(graph)]
    tree = nx.maximum_spanning_tree(_clique_graph(cliques))
    if not isinstance(kind, SparsePSD) or kind.merge:
        tree = _merged(tree, order)
    return _rooted(tree, order)


def _maximal_cliques(graph: nx.Graph) -> list[frozenset[Signal]]:
    """Those of a chordal extension: greedily, of the elimination that fills in the fewest entries at every step.

    Nothing is filled in where the graph is chordal: then some signal's neighbours are a clique at every step.
    """
    left = graph.copy()
    cost = {s: _fill(left, s) for s in left}
    found: list[frozenset[Signal]] = []
    holding: dict[Signal, list[frozenset[Signal]]] = {s: [] for s in left}
    while left:
        signal = min(cost, key=cost.__getitem__)
        neighbours = list(left[signal])
        clique = frozenset((signal, *neighbours))
        if not any(clique <= other for other in holding[signal]):
            found.append(clique)
            for s in clique:
                holding[s].append(clique)
        new = [(a, b) for i, a in enumerate(neighbours) for b in neighbours[:i] if not left.has_edge(a, b)]
        left.add_edges_from(new)
        left.remove_node(signal)
        del cost[signal]
        touched = set(neighbours)
        for a, b in new:
            touched |= set(left[a]) & set(left[b])
        for s in touched:
            cost[s] = _fill(left, s)
    return found


def _fill(graph: nx.Graph, signal: Signal) -> int:
    """The entries that eliminating a signal makes nonzero."""
    neighbours = list(graph[signal])
    return sum(a.size * b.size for i, a in enumerate(neighbours) for b in neighbours[:i] if not graph.has_edge(a, b))


def _clique_graph(cliques: Sequence[Clique]) -> nx.Graph:
    """Cliques joined where they share signals, weighted by how many; a heaviest spanning tree is a clique tree."""
    graph = nx.Graph()
    graph.add_nodes_from(cliques)
    holding: dict[Signal, list[Clique]] = {}
    for clique in cliques:
        for s in clique:
            holding.setdefault(s, []).append(clique)
    for found in holding.values():
        for i, a in enumerate(found):
            for b in found[:i]:
                if not graph.has_edge(a, b):
                    graph.add_edge(a, b, weight=_size(tuple(set(a) & set(b))))
    return graph


def _merged(tree: nx.Graph, order: dict[Signal, int]) -> nx.Graph:
    """The tree with edges contracted while one block is predicted to be cheaper than two and their overlap."""
    tree = tree.copy()
    pending = list(tree.edges)
    while pending:
        a, b = pending.pop()
        if not tree.has_edge(a, b):
            continue
        union = tuple(sorted({*a, *b}, key=order.__getitem__))
        shared = tree.edges[a, b]["weight"]
        if _cost(_size(union)) > _cost(_size(a)) + _cost(_size(b)) + shared**2:
            continue
        around = {c: tree.edges[end, c]["weight"] for end in (a, b) for c in tree[end] if c not in (a, b)}
        tree.remove_nodes_from([a, b])
        tree.add_node(union)
        for c, weight in around.items():
            tree.add_edge(union, c, weight=weight)
            pending.append((union, c))
    return tree


def _cost(order: int) -> float:
    """What an eigenvalue or Cholesky decomposition of one block costs, and its handling."""
    return float(order + HANDLING) ** 3


def _rooted(tree: nx.Graph, order: dict[Signal, int]) -> CliqueTree:
    cliques: list[Clique] = []
    parent: list[int] = []
    shared: list[Clique] = []
    done: dict[Clique, int] = {}
    for root in sorted(tree.nodes, key=lambda c: min((order[s] for s in c), default=0)):
        pending = [] if root in done else [(root, -1)]
        while pending:
            clique, above = pending.pop()
            done[clique] = len(cliques)
            cliques.append(clique)
            parent.append(above)
            shared.append(tuple(s for s in clique if s in cliques[above]) if above >= 0 else ())
            pending += [(c, done[clique]) for c in tree[clique] if c not in done]
    return CliqueTree(cliques=tuple(cliques), parent=tuple(parent), shared=tuple(shared))


def split_form(form: QuadraticForm, tree: CliqueTree, overlaps: Sequence[Variable | None]) -> list[QuadraticForm]:
    """One form per clique; overlaps: the matrix variable of the edge to every clique's parent, None where it has none.

    A term stays whole where one clique holds all its signals, and is split into pairs of signals elsewhere.
    """
    orders = tree.orders
    terms: list[list[Term]] = [[] for _ in tree.cliques]
    holding: dict[Signal, set[int]] = {}
    for k, clique in enumerate(tree.cliques):
        for s in clique:
            holding.setdefault(s, set()).add(k)
    for term in form.terms:
        for piece in [term] if set.intersection(*(holding[s] for s in term.signals)) else term.split():
            common = set.intersection(*(holding[s] for s in piece.signals))
            terms[min(common, key=orders.__getitem__)].append(piece)
    for k, variable in enumerate(overlaps):
        if variable is not None:
            shared = stacked(tree.shared[k])
            terms[k].append(Congruence(form=shared, matrix=variable, scale=-1.0))
            terms[tree.parent[k]].append(Congruence(form=shared, matrix=variable))
    return [QuadraticForm(terms=tuple(t)) for t in terms]


def stacked(signals: Sequence[Signal]) -> LinearForm:
    """Signals one below the other."""
    size, at, blocks = _size(signals), 0, {}
    for s in signals:
        rows = np.arange(at, at + s.size)
        eye = sp.csr_array((np.ones(s.size), (rows, np.arange(s.size))), shape=(size, s.size))
        blocks[s] = identity(size) if s.size == size else Sparse(weights=eye)
        at += s.size
    return LinearForm(size=size, blocks=blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Bridge: a matrix inequality that is to be split, but has one clique only, as it is."""

    name: str = "one matrix"
    sources: frozenset[str] = frozenset({"sparse-psd"})
    targets: frozenset[str] = frozenset({"psd"})
    soundness: Soundness = "equivalent"
    source: str = ""

    def predict(self, shape: Shape, part: Part, constraint: Constraint) -> Shape | None:
        if len(_tree(constraint).cliques) != 1:
            return None
        whole = Part(kind="psd", sizes=part.sizes, entries=part.entries, origin=part.origin, split=True)
        return shape.replaced(part, [whole])

    def apply(self, constraint: Constraint, taken: frozenset[str]) -> Applied:
        whole = Constraint(function=constraint.function, set=PSD())
        return Applied(constraints=(whole,), variables=(), dual=lambda duals: duals[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cliques:
    """Bridge: a sparse matrix inequality as one per clique of a clique tree."""

    name: str = "cliques"
    sources: frozenset[str] = frozenset({"psd", "sparse-psd"})
    targets: frozenset[str] = frozenset({"psd"})
    soundness: Soundness = "equivalent"
    source: str = "Agler et al. 1988; Vandenberghe & Andersen 2015"

    def predict(self, shape: Shape, part: Part, constraint: Constraint) -> Shape | None:
        if part.split:
            return None
        tree = _tree(constraint)
        if len(tree.cliques) == 1:
            return None
        after = Part(
            kind="psd",
            sizes=tree.orders,
            entries=part.entries + 2 * tree.overlaps,
            origin=part.origin,
            split=True,
            touching=tree.touching,
        )
        return shape.replaced(part, [after], variables=tree.overlaps)

    def apply(self, constraint: Constraint, taken: frozenset[str]) -> Applied:
        form, tree = constraint.function, _tree(constraint)
        assert isinstance(form, QuadraticForm)
        names, overlaps = set(taken), []
        for shared in tree.shared:
            name = free_name("overlap", names)
            names.add(name)
            overlaps.append(Variable(name=name, size=_triangle(shared), order=_size(shared)) if shared else None)
        forms = split_form(form, tree, overlaps)

        def dual(parts: Sequence[Array]) -> Array:
            return completed(form.signals, [f.signals for f in forms], tree, parts)

        return Applied(
            constraints=tuple(Constraint(function=f, set=PSD()) for f in forms),
            variables=tuple(v for v in overlaps if v is not None),
            dual=dual,
        )


def _tree(constraint: Constraint) -> CliqueTree:
    assert isinstance(constraint.function, QuadraticForm)
    assert isinstance(constraint.set, PSD | SparsePSD)
    return clique_tree(constraint.function, constraint.set)


def completed(
    signals: Sequence[Signal], orders: Sequence[Sequence[Signal]], tree: CliqueTree, parts: Sequence[Array]
) -> Array:
    """A positive semidefinite matrix over all signals from one for every clique (`orders`: how each is arranged).

    Cliques are added from the root; a new signal is joined to what is there through what its clique shares with it
    (the completion of largest determinant, where there is one: Grone, Johnson, Sa & Wolkowicz 1984).
    """
    place, at = {}, 0
    for s in signals:
        place[s] = np.arange(at, at + s.size)
        at += s.size
    whole = np.zeros((at, at))
    done = np.zeros(0, dtype=np.int64)
    for arranged, shared, part in zip(orders, tree.shared, parts, strict=True):
        index = np.concatenate([place[s] for s in arranged])
        old = np.concatenate([np.zeros(0, dtype=np.int64), *(place[s] for s in shared)])
        new = np.setdiff1d(index, old)
        local = {int(i): k for k, i in enumerate(index)}
        n, o = [local[int(i)] for i in new], [local[int(i)] for i in old]
        if len(done):
            across = part[np.ix_(n, o)] @ np.linalg.pinv(part[np.ix_(o, o)], hermitian=True) @ whole[np.ix_(old, done)]
            whole[np.ix_(new, done)] = across
            whole[np.ix_(done, new)] = across.T
            whole[np.ix_(new, old)] = part[np.ix_(n, o)]
            whole[np.ix_(old, new)] = part[np.ix_(o, n)]
        whole[np.ix_(new, new)] = part[np.ix_(n, n)]
        done = np.union1d(done, new)
    return whole
