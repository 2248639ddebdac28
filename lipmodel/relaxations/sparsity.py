"""Sparsity of polynomial programs: which variables belong together, and in which order to eliminate them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lipmodel.certify.polynomials import Monomial

if TYPE_CHECKING:
    from lipmodel.certify.polynomials import Program

Graph = dict[int, set[int]]
Clique = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cliques:
    """An elimination order of a graph, and the maximal cliques of the chordal extension that it makes.

    width: the size of the largest clique, less one. The cliques have the running intersection property.
    """

    order: tuple[int, ...]
    cliques: tuple[Clique, ...]

    @property
    def width(self) -> int:
        return max((len(c) for c in self.cliques), default=1) - 1


def coupling_graph(program: Program) -> Graph:
    """Variables that share a monomial of the objective, or a constraint, are adjacent (Waki, Kim, Kojima & Muramatsu
    2006, SIAM J. Optim. 17:218)."""
    graph: Graph = {i: set() for i in range(program.size)}
    constraints = (part.terms for part in (*program.nonnegative, *program.zero))
    together = [set(m) for m in program.objective.terms]
    together += [{i for m in terms for i in m} for terms in constraints]
    for group in together:
        for i in group:
            graph[i] |= group
    for i, others in graph.items():
        others.discard(i)
    return graph


def chordal_cliques(graph: Mapping[int, set[int]]) -> Cliques:
    """Greedy elimination, the variable of least degree first, of those the one that adds the fewest edges."""
    left = {i: set(others) for i, others in graph.items()}
    order: list[int] = []
    fronts: list[set[int]] = []
    while left:
        least = min(map(len, left.values()))
        candidates = [i for i, others in left.items() if len(others) == least]
        v = min(candidates, key=lambda i: (_fill(left, i), i)) if len(candidates) > 1 else candidates[0]
        front = left.pop(v)
        order.append(v)
        for i in front:
            left[i] |= front
            left[i] -= {i, v}
        if not any(front | {v} <= other for other in fronts):
            fronts.append(front | {v})
    return Cliques(order=tuple(order), cliques=tuple(tuple(sorted(f)) for f in fronts))


def _fill(graph: Mapping[int, set[int]], i: int) -> int:
    """Twice the edges that eliminating a variable adds; an estimate by its first neighbours where there are many."""
    around = graph[i]
    return sum(len(around - graph[j]) - 1 for j in around)


def variable_cliques(program: Program, sparsity: str) -> Cliques:
    """The cliques of a program: of its coupling graph, or ("dense") all variables at once."""
    found = chordal_cliques(coupling_graph(program))
    return Cliques(order=found.order, cliques=(tuple(range(program.size)),)) if sparsity == "dense" else found


def covering(support: Iterable[Monomial], cliques: Sequence[Clique]) -> bool:
    """Whether the variables of every monomial lie in one clique."""
    sets = [set(c) for c in cliques]
    return all(any(s.issuperset(m) for s in sets) for m in support)
