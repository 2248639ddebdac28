"""The low-rank ascent on any graph: residual networks, shared multipliers, several inputs, an output in the l_1 norm.

What is maximised is f = |C z| / sqrt(2 k), C the coupling with constant slack, its weight k, or with dual signals the
sum of such lengths, one for each of their prices; it is half of the objective then, and its square otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.native.ascent import OVERHEAD, Ascended, Dual, climbed
from lipmodel.backends.native.blocks import BlockBarrier
from lipmodel.backends.native.chain import SPARSE_DENSITY, Array, Exponents
from lipmodel.backends.native.launch import Launch
from lipmodel.backends.native.lowrank import Layer, Reading, pool_of, reading, signals_of
from lipmodel.backends.native.program import Blocks, Program
from lipmodel.backends.native.structure import Structure


class NotLowRank(Exception):  # noqa: N818 - control flow: the path follower takes such a program
    """Why the primal points of a program are not spheres."""


def ascend_program(
    launch: Launch,
    structure: Structure,
    *,
    tol: float,
    deadline: float,
    max_iterations: int,
    report: Callable[[int, Array, float, float], bool],
    alone: bool = False,
) -> Ascended:
    """`ascent.ascend` on a launched program: y and lower are those of its barrier, the gap is on its bound.

    Raises NotLowRank where terms are stated besides, multipliers have a price, or a row has several unknowns.
    """
    return climbed(
        lambda: program_dual(launch, structure),
        tol=tol,
        deadline=deadline,
        max_iterations=max_iterations,
        report=report,
        alone=alone,
    )


def program_dual(launch: Launch, structure: Structure) -> Dual:
    """The unknowns of a launched program. Raises NotLowRank."""
    program = launch.program
    _check(program, structure)
    spans, weights = program.spans, program.weights.tocsr()
    scales = [np.zeros(0)] * len(program.sizes)  # a signal is its part of the factor's rows times this
    starts: dict[int, int] = {}
    end = 0
    owners: list[Exponents] = []

    def place(s: int, g: int, *, ball: bool) -> tuple[slice, Array]:
        """The rows of a signal, and the root of its weights K."""
        nonlocal end
        starts[s] = end
        end += program.sizes[s]
        part = weights[spans[g]]
        owners.append(np.asarray(part.indices, dtype=np.int64))
        weight = np.sqrt(part.data)
        scales[s] = np.sqrt(program.cost[part.indices] / 2) / weight if ball else 1 / weight
        return slice(starts[s], end), weight

    for s, g in structure.inputs.items():
        place(s, g, ball=True)
    inputs, input_pool = end, pool_of(np.concatenate(owners))
    layers = []
    for g in structure.activations:
        rows = program.rows[g]
        reads = {s: m for s, m in rows.pre.items() if np.any(m)}
        radius, centre = (rows.beta - rows.alpha) / 2, (rows.beta + rows.alpha) / 2
        ratio = None if np.array_equal(centre, radius) else (centre / radius)[:, None]
        here, weight = place(rows.signal, g, ball=False)
        layers.append(
            Layer(
                rows=here,
                reads=_readings(reads, radius * weight, starts, scales),
                ratio=ratio,
                pool=pool_of(owners[-1]),
            )
        )
    far = structure.duals or structure.slack
    blocks, prices, labels = _ends(program, far, free=bool(structure.duals))
    balance, (factor, hessian) = launch.balance, _work(launch.barrier)
    free = balance is None and bool(structure.duals)
    return Dual(
        signals=signals_of(
            inputs, input_pool, tuple(layers), _readings(blocks, prices, starts, scales), pool_of(labels)
        ),
        owner=np.concatenate(owners),
        far=labels if structure.duals else None,
        prices=program.cost,
        levels=_levels(program, structure),
        barrier=launch.barrier,
        factor=factor,
        hessian=hessian,
        lower=lambda f: 2 * f if free else f**2 / (1.0 if balance is None else balance.price),
        vector=launch.vector,
    )


def _work(barrier: BlockBarrier) -> tuple[float, float]:
    """Floating-point operations of a factorisation and of an iteration of the path follower, as measured."""
    layout = barrier.layout
    fronts = 0
    for step in layout.steps:
        own, later = step.own.stop - step.own.start, sum(run.stop - run.start for run in step.runs)
        fronts += later * own * (own + later) + (0 if step.diagonal else own**3)
    dense = barrier.cost.size**3 / 3 + 0.4 * layout.size * len(layout.shift) ** 2
    count = len(layout.steps) * OVERHEAD
    return fronts + 2 * count, dense + 12 * fronts + 60 * count


def _check(program: Program, structure: Structure) -> None:
    spans, cost = program.spans, program.cost
    if structure.extra:
        raise NotLowRank("it has terms stated besides")
    reads = [list(program.rows[g].pre.values()) for g in structure.activations]
    if not all(any(np.any(m) for m in blocks) for blocks in (*reads, list(program.constant.values()))):
        raise NotLowRank("something in it reads nothing")
    ends = [*structure.inputs.values(), *structure.duals.values()]
    for g in (*ends, *structure.activations):
        if np.any(np.diff(program.weights[spans[g]].indptr) != 1):
            raise NotLowRank("it has weights of several unknowns")
    used = [np.unique(program.weights[spans[g]].indices) for g in structure.activations]
    inner = np.concatenate([np.zeros(0, dtype=np.int64), *used])
    if len(np.unique(inner)) != len(inner):
        raise NotLowRank("it has multipliers shared across activations")
    outer = np.unique(np.concatenate([program.weights[spans[g]].indices for g in ends]))
    if np.any(cost[inner] != 0) or np.any(cost[outer] <= 0) or len(inner) + len(outer) != len(cost):
        raise NotLowRank("it has unknowns whose price is not that of a ball")


def _readings(blocks: Blocks, gains: Array, starts: Mapping[int, int], scales: list[Array]) -> tuple[Reading, ...]:
    """Blocks with their rows times `gains`, side by side where their signals are."""
    found = []
    run: list[int] = []
    order = sorted(blocks, key=lambda s: starts[s])
    for s, after in zip(order, [*order[1:], None], strict=True):
        run.append(s)
        end = starts[s] + blocks[s].shape[1]
        if after is not None and starts[after] == end:
            continue
        parts = [blocks[r] * scales[r] for r in run]
        matrix: Any = parts[0] if len(parts) == 1 else np.hstack(parts)
        if matrix.size >= 1 << 14 and np.count_nonzero(matrix) <= SPARSE_DENSITY * matrix.size:
            matrix = sp.csr_array(matrix)
        found.append(reading(slice(starts[run[0]], end), matrix, (gains, None)))
        run = []
    return tuple(found)


def _ends(program: Program, far: Mapping[int, int], *, free: bool) -> tuple[Blocks, Array, Exponents]:
    """The couplings of all far signals one below the other, their gains, and the unknowns (0: slack) of their rows."""
    read = sorted({a if b in far else b for a, b in program.constant})
    parts: dict[int, list[Array]] = {s: [] for s in read}
    gains, labels = [], []
    for d, g in far.items():
        size, span = program.sizes[d], program.spans[g]
        for s in read:
            block = program.constant.get((s, d))
            other = program.constant.get((d, s))
            parts[s].append(
                block.T if block is not None else np.zeros((size, program.sizes[s])) if other is None else other
            )
        if free:
            part = program.weights[span]
            gains.append(np.sqrt(program.cost[part.indices] / (2 * part.data)))
            labels.append(np.asarray(part.indices, dtype=np.int64))
        else:
            gains.append(1 / np.sqrt(2 * program.shift[span]))
            labels.append(np.zeros(size, dtype=np.int64))
    return {s: np.vstack(parts[s]) for s in read}, np.concatenate(gains), np.concatenate(labels)


def _levels(program: Program, structure: Structure) -> Array:
    """Of every unknown, the most activations on a way from what it belongs to to the far end, itself included."""
    levels = np.zeros(program.unknowns)
    signal = np.zeros(len(program.sizes))

    def settle(groups: Iterable[int], level: float) -> None:
        for g in groups:
            levels[program.weights[program.spans[g]].indices] = level

    for g in reversed(structure.activations):
        rows = program.rows[g]
        level = signal[rows.signal] + 1
        settle([g], level)
        for s in rows.pre:
            signal[s] = max(signal[s], level)
    settle(structure.inputs.values(), float(max(signal, default=0.0)) + 1)
    return levels
