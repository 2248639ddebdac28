"""Symbolic block elimination: the order of the signals, and the fronts of the factorisation.

The signals of a matrix inequality are the vertices of a graph, joined where their block of the matrix is not zero.
Greedy minimum fill (Tinney & Walker 1967, Proc. IEEE 55; here counted in entries, a diagonal block that becomes dense
included) keeps chains banded and eliminates a wide diagonal layer before the narrow ones around it. Neighbouring
signals of the elimination tree are merged where one larger dense operation is cheaper than two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OVERHEAD = 6e5  # multiplications that take as long as the calls of one front
EXHAUSTIVE = 60  # neighbours up to which fill is counted pair by pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Sizes of the signals, their neighbours, and whether a signal's own block is diagonal before any elimination."""

    sizes: tuple[int, ...]
    neighbours: tuple[frozenset[int], ...]
    diagonal: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Signals that are eliminated together, those that the elimination reaches, and whether the pivot is diagonal."""

    signals: tuple[int, ...]
    later: tuple[int, ...]  # in the order of their elimination
    diagonal: bool


def fronts(graph: Graph) -> list[Front]:
    """The fronts in the order of elimination: the cheapest of minimum fill, the given order, and its reverse."""
    count = len(graph.sizes)
    candidates = [minimum_fill(graph), list(range(count)), list(range(count - 1, -1, -1))]
    found = [_merged(graph, _symbolic(graph, _postorder(graph, order))) for order in candidates]
    return min(found, key=lambda steps: sum(_cost(graph, step) for step in steps))


def minimum_fill(graph: Graph) -> list[int]:
    """Greedy order: next the signal whose elimination makes the fewest zero entries nonzero; ties by cost."""
    around = [set(n) for n in graph.neighbours]
    dense = [not d for d in graph.diagonal]
    left = set(range(len(graph.sizes)))
    scores = {k: _fill(graph, k, around, dense) for k in left}
    order = []
    while left:
        k = min(left, key=lambda j: (scores[j], j))
        order.append(k)
        left.remove(k)
        near = around[k]
        for i in near:
            around[i].remove(k)
            around[i] |= near - {i}
            dense[i] = True
        changed = set(near).union(*(around[i] for i in near)) if len(near) <= EXHAUSTIVE else set(near)
        for j in changed:
            scores[j] = _fill(graph, j, around, dense)
    return order


def _fill(graph: Graph, k: int, around: Sequence[set[int]], dense: Sequence[bool]) -> tuple[float, float]:
    sizes, near = graph.sizes, around[k]
    reach = sum(sizes[i] for i in near)
    fill = sum(sizes[i] ** 2 / 2 for i in near if not dense[i])
    if len(near) <= EXHAUSTIVE:
        fill += sum(sizes[i] * sum(sizes[j] for j in near - around[i] if j > i) for i in near)
    else:
        fill += sum(sizes[i] * (reach - sizes[i]) for i in near) / 2
    return fill, _operations(sizes[k], reach, diagonal=not dense[k])


def _operations(size: int, reach: int, *, diagonal: bool) -> float:
    """Multiplications of a factorisation and a band inverse for one front."""
    own = 0.0 if diagonal else 0.5 * size**3 + 2.0 * size**2 * reach
    return own + 2.0 * size * reach**2


def _cost(graph: Graph, step: Front) -> float:
    size = sum(graph.sizes[s] for s in step.signals)
    return OVERHEAD + _operations(size, sum(graph.sizes[s] for s in step.later), diagonal=step.diagonal)


def _reached(graph: Graph, order: Sequence[int]) -> list[list[int]]:
    """For every signal of the order the later ones that its elimination reaches, in order."""
    position = {s: i for i, s in enumerate(order)}
    reached: list[set[int]] = [
        {position[j] for j in graph.neighbours[s] if position[j] > i} for i, s in enumerate(order)
    ]
    for later in reached:
        if later:
            parent = min(later)
            reached[parent] |= later - {parent}
    return [sorted(later) for later in reached]


def _postorder(graph: Graph, order: Sequence[int]) -> list[int]:
    """The order with every subtree of the elimination tree in one piece: the same fill, children beside parents."""
    reached = _reached(graph, order)
    children: list[list[int]] = [[] for _ in order]
    roots: list[int] = []
    for i, later in enumerate(reached):
        (children[later[0]] if later else roots).append(i)
    found: list[int] = []
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        i, done = stack.pop()
        if done:
            found.append(order[i])
            continue
        stack.append((i, True))
        # the child that shares most with its parent stands next to it
        shared = sorted(children[i], key=lambda c: (len(reached[c]), c))
        stack.extend((c, False) for c in reversed(shared))
    return found


def _symbolic(graph: Graph, order: Sequence[int]) -> list[Front]:
    reached = _reached(graph, order)
    touched = {j for later in reached for j in later}
    return [
        Front(signals=(s,), later=tuple(order[j] for j in reached[i]), diagonal=graph.diagonal[s] and i not in touched)
        for i, s in enumerate(order)
    ]


def _merged(graph: Graph, steps: list[Front]) -> list[Front]:
    """Merge fronts with the next one, which must be their parent, while that saves time; the order stays."""
    result: list[Front] = []
    for step in steps:
        current = step
        while result and result[-1].later and result[-1].later[0] in current.signals:
            child = result[-1]
            merged = Front(signals=(*child.signals, *current.signals), later=current.later, diagonal=False)
            if _cost(graph, merged) > _cost(graph, child) + _cost(graph, current):
                break
            current = merged
            result.pop()
        result.append(current)
    return result
