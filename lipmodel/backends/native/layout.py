"""Where the signals of a program stand in its matrix: fronts, groups of rows and constants in positions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.native.chain import SPARSE_DENSITY, Array, Exponents
from lipmodel.backends.native.ordering import Front, Graph, fronts, minimum_fill
from lipmodel.backends.native.program import NO_SIGNAL, Program, Rows, without_signals

Positions = Exponents  # integers
Index = slice | Positions


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One front: the positions it eliminates and the runs of later positions that it reaches."""

    own: slice
    runs: tuple[slice, ...]
    parts: tuple[slice, ...]  # where the runs stand in the later part of the front
    diagonal: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Rows with their place in t and in the matrix; e at positions `own`, m over slices of positions."""

    span: slice
    own: Index | None
    alpha: Array
    beta: Array
    slope_sum: Array
    slope_product: Array
    pre: tuple[tuple[slice, Array, Any], ...]  # positions, the block, and the block once more, compressed, or None
    curved: bool
    varies: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """A program in positions, constant slack folded in where it would be eliminated first.

    steps: in the order of elimination; positions rise along it. groups: of rows; bent, plain: those with unknowns, with
    and without m, in that order. constants: blocks of the upper triangle. unknowns: an order of them in which the first
    `single` belong to one row each, in the order of the rows (bent, then plain); cost, weights, nonnegative and shift
    are in that order, `contraction` is the part of weights for the rows (bent, plain).
    """

    size: int
    order: int
    steps: tuple[Step, ...]
    groups: tuple[Group, ...]
    bent: tuple[Group, ...]
    plain: tuple[Group, ...]
    constants: tuple[tuple[slice, slice, Array], ...]
    unknowns: Positions
    single: int
    weights: Any
    contraction: Any
    shift: Array
    cost: Array


def laid_out(program: Program) -> Layout:
    """The layout of a program, its elimination the cheapest that is known."""
    program = _folded(program)
    found = fronts(graph_of(program))
    starts: dict[int, int] = {}
    end = 0
    for front in found:
        for s in front.signals:
            starts[s] = end
            end += program.sizes[s]
    groups = [_group(program, starts, *item) for item in zip(program.rows, program.spans, program.varying, strict=True)]
    bent = sorted((g for g in groups if g.varies and g.pre), key=_first)
    plain = sorted((g for g in groups if g.varies and not g.pre), key=_first)
    rows = np.concatenate(
        [np.zeros(0, dtype=np.int64), *(np.arange(g.span.start, g.span.stop) for g in (*bent, *plain))]
    )
    unknowns, single = _arranged(program.weights[rows])
    return Layout(
        size=end,
        order=program.order,
        steps=tuple(_step(program, starts, front) for front in found),
        groups=tuple(groups),
        bent=tuple(bent),
        plain=tuple(plain),
        constants=tuple(_placed(program, starts, pair, block) for pair, block in program.constant.items()),
        unknowns=unknowns,
        single=single,
        weights=sp.csr_array(program.weights[:, unknowns]),
        contraction=sp.csr_array(program.weights[rows][:, unknowns]),
        shift=program.shift,
        cost=program.cost[unknowns],
    )


def graph_of(program: Program) -> Graph:
    """Which signals meet in the matrix of a program."""
    around: list[set[int]] = [set() for _ in program.sizes]
    diagonal = [True] * len(program.sizes)

    def meet(a: int, b: int) -> None:
        if a == b:
            diagonal[a] = False
        else:
            around[a].add(b)
            around[b].add(a)

    for a, b in program.constant:
        meet(a, b)
    for rows in program.rows:
        read = [s for s, m in rows.pre.items() if np.any(m)]
        if rows.signal != NO_SIGNAL and np.any(rows.alpha + rows.beta):
            for s in read:
                meet(rows.signal, s)
        if rows.curved:
            for a in read:
                for b in read:
                    meet(a, b)
    return Graph(sizes=program.sizes, neighbours=tuple(frozenset(n) for n in around), diagonal=tuple(diagonal))


def _folded(program: Program) -> Program:
    """The program with constant slack that would be eliminated before what it couples eliminated once and for all."""
    slack = {d for d in program.slack() if all(d not in pair or pair[0] != pair[1] for pair in program.constant)}
    if not slack:
        return program
    place = {s: i for i, s in enumerate(minimum_fill(graph_of(program)))}
    constant = dict(program.constant)
    folded = []
    for d in sorted(slack):
        coupled = [pair for pair in constant if d in pair]
        others = [a if b == d else b for a, b in coupled]
        if any(place[s] < place[d] or s in slack for s in others):
            continue
        folded.append(d)
        weight = np.zeros(program.sizes[d])
        for rows, span in zip(program.rows, program.spans, strict=True):
            if rows.signal == d:
                np.add.at(weight, rows.index, 2 * program.shift[span])
        blocks = {
            s: constant.pop(pair) if pair[0] == s else constant.pop(pair).T
            for s, pair in zip(others, coupled, strict=True)
        }
        for a, left in blocks.items():
            for b, right in blocks.items():
                if a <= b:
                    block = -(left / weight) @ right.T
                    constant[a, b] = constant[a, b] + block if (a, b) in constant else block
    return without_signals(replace(program, constant=constant), folded)


def _step(program: Program, starts: Mapping[int, int], front: Front) -> Step:
    own = slice(starts[front.signals[0]], starts[front.signals[-1]] + program.sizes[front.signals[-1]])
    runs = _runs([slice(starts[s], starts[s] + program.sizes[s]) for s in front.later])
    ends = np.cumsum([0, *(run.stop - run.start for run in runs)])
    parts = tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(ends))
    return Step(own=own, runs=tuple(runs), parts=parts, diagonal=front.diagonal)


def _runs(slices: Sequence[slice]) -> list[slice]:
    """Rising slices with those that touch joined."""
    runs: list[slice] = []
    for here in slices:
        if runs and runs[-1].stop == here.start:
            runs[-1] = slice(runs[-1].start, here.stop)
        else:
            runs.append(here)
    return runs


def _group(program: Program, starts: Mapping[int, int], rows: Rows, span: slice, varies: bool) -> Group:
    read = sorted((s for s, block in rows.pre.items() if np.any(block)), key=lambda s: starts[s])
    pre = []
    for run in _runs([slice(starts[s], starts[s] + program.sizes[s]) for s in read]):
        parts = [rows.pre[s] for s in read if run.start <= starts[s] < run.stop]
        block = parts[0] if len(parts) == 1 else np.hstack(parts)
        sparse = block.size >= 1 << 14 and np.count_nonzero(block) <= SPARSE_DENSITY * block.size
        pre.append((run, block, sp.csr_array(block) if sparse else None))
    return Group(
        span=span,
        own=None if rows.signal == NO_SIGNAL else index(starts[rows.signal] + rows.index),
        alpha=rows.alpha,
        beta=rows.beta,
        slope_sum=rows.alpha + rows.beta,
        slope_product=rows.alpha * rows.beta,
        pre=tuple(pre),
        curved=rows.curved and bool(pre),
        varies=varies,
    )


def _placed(
    program: Program, starts: Mapping[int, int], pair: tuple[int, int], block: Array
) -> tuple[slice, slice, Array]:
    a, b = (slice(starts[s], starts[s] + program.sizes[s]) for s in pair)
    return (a, b, block) if a.start <= b.start else (b, a, np.ascontiguousarray(block.T))


def _first(group: Group) -> int:
    """The first position of the entries of a group of rows."""
    if group.own is None:
        return 1 << 60
    return int(group.own.start) if isinstance(group.own, slice) else int(group.own.min(initial=1 << 60))


def _arranged(weights: Any) -> tuple[Positions, int]:
    """An order of the unknowns, and how many of the first belong to one row each, in the order of the rows."""
    per_row, per_column = np.diff(weights.indptr), np.bincount(weights.indices, minlength=weights.shape[1])
    order: list[int] = []
    single = 0
    for row in range(weights.shape[0]):
        if per_row[row] != 1 or per_column[weights.indices[weights.indptr[row]]] != 1:
            break
        order.append(int(weights.indices[weights.indptr[row]]))
        single += 1
    rest = np.setdiff1d(np.arange(weights.shape[1]), order)
    return np.concatenate([np.array(order, dtype=np.int64), rest]), single


def index(positions: Positions) -> Index:
    """A slice where the positions are consecutive."""
    count = len(positions)
    if count and np.array_equal(positions, np.arange(positions[0], positions[0] + count)):
        return slice(int(positions[0]), int(positions[0]) + count)
    return positions
