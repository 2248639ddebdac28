"""Solve a program: prune, reduce, start, follow the path, put all back, check."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from lipmodel.backends.native.blocks import BlockBarrier
from lipmodel.backends.native.chain import SHARES, Array, Status, relative_gap, shift, widened_slopes
from lipmodel.backends.native.core import single_thread
from lipmodel.backends.native.descent import THOROUGH, improvements
from lipmodel.backends.native.follower import Outcome, Progress
from lipmodel.backends.native.graph import GraphRecursion, NotCovered
from lipmodel.backends.native.launch import Launch, launched
from lipmodel.backends.native.memory import memory_limit
from lipmodel.backends.native.portfolio import solved_program
from lipmodel.backends.native.program import NO_SIGNAL, Blocks, Program, compressed
from lipmodel.backends.native.pruning import NOTHING, Pruned, embedded, pruned
from lipmodel.backends.native.structure import Structure, structure_of
from lipmodel.backends.native.units import scaled


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """The best strictly feasible point found; y is None where there is none.

    value: cost'y; lower: objective of a primal feasible point (in floating point, no proof), or 0. status: as in
    ChainSolution, "failed" where no strictly feasible point was found.
    """

    y: Array | None
    value: float
    lower: float
    status: Status
    iterations: int


def solve_program(
    program: Program,
    *,
    tol: float = 1e-6,
    time_limit: float | None = None,
    max_iterations: int = 200,
    memory: int | None = None,
    on_iterate: Callable[[Progress], bool | None] | None = None,
) -> Solution:
    """The best strictly feasible point of a program, to a relative gap `tol` on its bound.

    time_limit in seconds. memory: bytes, by default a share of what is available; where the path follower would take
    more, descent alone. on_iterate is called once at the start, whenever a better point is known and once per
    iteration, and may return False to stop. KeyboardInterrupt is caught and returns the best point. BLAS runs on one
    thread. Does not raise on finite data.
    """
    began = time.monotonic()
    deadline = math.inf if time_limit is None else began + time_limit
    with single_thread(), np.errstate(all="ignore"):
        try:
            return _solve(program, tol, began, deadline, max_iterations, memory_limit(memory), on_iterate)
        except KeyboardInterrupt:
            return _none("interrupted")
        except (MemoryError, np.linalg.LinAlgError):
            return _none("failed")


def _none(status: Status) -> Solution:
    return Solution(y=None, value=math.inf, lower=0.0, status=status, iterations=0)


def _solve(
    program: Program,
    tol: float,
    began: float,
    deadline: float,
    max_iterations: int,
    memory: int,
    on_iterate: Callable[[Progress], bool | None] | None,
) -> Solution:
    prepared = _prepared(program, deadline)
    if isinstance(prepared, Solution):
        return prepared
    start, power, normal = prepared.start, prepared.start.units.power, prepared.normal

    def report(best: Outcome) -> bool:
        if on_iterate is None:
            return True
        if prepared.widened:
            best = replace(best, lower=0.0)
        value = float(start.barrier.cost @ best.y)
        both = [float(shift(np.array(start.objective(v)), power)) for v in (value, best.lower)]
        if normal is not None:
            both = [normal.objective(v) for v in both]
        progress = Progress(
            iteration=best.iterations,
            value=both[0],
            lower=both[1],
            gap=relative_gap(best.lower, value, root=start.barrier.root),
            elapsed=time.monotonic() - began,
            solution=lambda: _restored(prepared, best),
        )
        return on_iterate(progress) is not False

    outcome = solved_program(
        start,
        prepared.structure,
        tol=tol,
        deadline=deadline,
        max_iterations=max_iterations,
        memory=memory,
        report=report,
    )
    if prepared.widened:
        outcome = replace(outcome, lower=0.0, status="inaccurate" if outcome.status == "optimal" else outcome.status)
    try:
        return _restored(prepared, outcome)
    except KeyboardInterrupt:
        return _restored(prepared, replace(outcome, status="interrupted"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Prepared:
    """A program, what exact changes made of it, and where its solvers start.

    whole: with the weight of its dual ball set to one, where there is `normal`; widened: whether slopes were. small,
    structure: of the program that is solved.
    """

    program: Program
    whole: Program
    small: Pruned
    start: Launch
    structure: Structure | None
    normal: _Normal | None
    widened: bool


def _prepared(program: Program, deadline: float) -> _Prepared | Solution:
    """The solution itself where the network is constant, or no strictly feasible point was found."""
    normal = _normalised(program)
    whole = program if normal is None else normal.program
    structure = structure_of(whole)
    wide, widened = _widened(whole, structure)
    small = pruned(wide)
    if not small.unknowns.any():
        return _nothing(program, whole, small, normal)
    reduced = _reduced(small.program)
    known = structure_of(reduced)
    start = launched(reduced, known, deadline)
    if start is None:
        return _none("time-limit" if time.monotonic() > deadline else "failed")
    return _Prepared(
        program=program, whole=whole, small=small, start=start, structure=known, normal=normal, widened=widened
    )


def program_descent(program: Program) -> Iterator[Solution]:
    """The closed form of the start, then ever better points by descent alone, on the boundary of the feasible set."""
    prepared = _prepared(program, math.inf)
    if isinstance(prepared, Solution):
        if prepared.y is not None:
            yield prepared
        return
    points: Iterator[Array] = iter(())
    if prepared.structure is not None:
        with contextlib.suppress(NotCovered):
            objective = GraphRecursion(prepared.start, prepared.structure)
            x = objective.variables(prepared.start.y)
            points = points if x is None else improvements(objective, x, care=THOROUGH)
    for y in itertools.chain([prepared.start.y], points):
        found = _unscaled(prepared, y)
        yield _solution(program, found, 0.0, "inaccurate", 0, prepared.normal)


def _unscaled(prepared: _Prepared, y: Array) -> Array:
    """The unknowns of the whole program from those of the barrier."""
    start = prepared.start
    return embedded(prepared.whole, prepared.small, shift(start.point(y), start.units.unknowns))


# ---------------------------------------------------------------------------------------------------------------------
# Exact changes of the program


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Normal:
    """A homogeneous program with one weight for its dual ball, that weight set to one: the objective becomes a square.

    (kappa, t, sigma) and (c kappa, c t, sigma / c) are equally feasible, and a kappa + b sigma with the best c is
    2 sqrt(a b).
    """

    program: Program
    unknown: int  # sigma
    price: float  # b

    def objective(self, value: float) -> float:
        """a kappa + b sigma where a kappa is `value` at sigma = 1."""
        return 2.0 * math.sqrt(max(self.price * value, 0.0))

    def point(self, y: Array, value: float) -> Array:
        scale = math.sqrt(self.price / value) if value > 0.0 else 1.0
        return np.insert(scale * y, self.unknown, 1.0 / scale)


def _normalised(program: Program) -> _Normal | None:
    structure = structure_of(program)
    if structure is None or structure.extra or len(structure.duals) != 1 or program.root:
        return None
    ((_, g),) = structure.duals.items()
    span = program.spans[g]
    part = program.weights[span]
    sigma = int(part.indices[0])
    if np.any(part.indices != sigma) or program.cost[sigma] <= 0.0 or np.any(program.shift):
        return None
    others = np.flatnonzero(np.arange(program.unknowns) != sigma)
    shifted = program.shift.copy()
    shifted[span] = np.asarray(part.sum(axis=1)).ravel()
    return _Normal(
        program=replace(
            program,
            weights=program.weights[:, others],
            shift=shifted,
            cost=program.cost[others],
            nonnegative=program.nonnegative[others],
            root=True,
        ),
        unknown=sigma,
        price=float(program.cost[sigma]),
    )


def _widened(program: Program, structure: Structure | None) -> tuple[Program, bool]:
    """The program with the slopes of its activations widened where they are too narrow, and whether any were."""
    changed, rows = False, list(program.rows)
    for g in () if structure is None else structure.activations:
        group = rows[g]
        low, high = np.minimum(group.alpha, group.beta), np.maximum(group.alpha, group.beta)
        low, high, narrow = widened_slopes(low, high)
        if narrow:
            changed, rows[g] = True, replace(group, alpha=low, beta=high)
    return (replace(program, rows=tuple(rows)) if changed else program), changed


def _reduced(program: Program) -> Program:
    """Signals measured by one number in the coordinates that anything else reads (QR), where those are fewer."""
    for s, size in enumerate(program.sizes):
        own = [g for g, rows in enumerate(program.rows) if rows.signal == s]
        if (
            len(own) != 1
            or program.rows[own[0]].pre
            or not program.rows[own[0]].covers(size)
            or (s, s) in program.constant
        ):
            continue
        span = program.spans[own[0]]
        part = program.weights[span]
        same = np.all(program.shift[span] == program.shift[span][0]) and (part - part[[0] * size]).count_nonzero() == 0
        readers: Blocks = {g: rows.pre[s].T for g, rows in enumerate(program.rows) if s in rows.pre}
        near = {a: block.T for (a, b), block in program.constant.items() if b == s}
        far = {b: block for (a, b), block in program.constant.items() if a == s}
        count = sum(block.shape[1] for block in (*readers.values(), *near.values(), *far.values()))
        if not same or not 0 < count < size:
            continue
        found, coupled = compressed(readers, {**near, **far})
        rows = list(program.rows)
        for g, block in found.items():
            rows[g] = replace(rows[g], pre={**rows[g].pre, s: np.ascontiguousarray(block.T)})
        ball = rows[own[0]]
        rows[own[0]] = replace(ball, index=ball.index[:count], alpha=ball.alpha[:count], beta=ball.beta[:count])
        keep = np.ones(len(program.shift), dtype=bool)
        keep[span.start + count : span.stop] = False
        constant = dict(program.constant)
        for j, block in coupled.items():
            constant[(j, s) if j < s else (s, j)] = block.T if j < s else block
        program = replace(
            program,
            sizes=tuple(count if j == s else n for j, n in enumerate(program.sizes)),
            rows=tuple(rows),
            weights=program.weights[keep],
            shift=program.shift[keep],
            constant=constant,
        )
    return program


# ---------------------------------------------------------------------------------------------------------------------
# Back to the original numbers


def _restored(prepared: _Prepared, outcome: Outcome) -> Solution:
    """The outcome in the original units, moved towards the start as little as makes it feasible there."""
    start = prepared.start
    lower = float(shift(np.array(start.objective(outcome.lower)), start.units.power))
    status: Status = outcome.status
    for share in SHARES:
        if share > 1e-7:
            status = "inaccurate" if status == "optimal" else status
        y = _unscaled(prepared, (1 - share) * outcome.y + share * start.y)
        if feasible(prepared.whole, y):
            return _solution(prepared.program, y, lower, status, outcome.iterations, prepared.normal)
    return replace(_none("inaccurate"), lower=lower, iterations=outcome.iterations)


def _solution(
    program: Program, y: Array, lower: float, status: Status, iterations: int, normal: _Normal | None
) -> Solution:
    if normal is not None:
        value = float(normal.program.cost @ y)
        y, lower = normal.point(y, value), normal.objective(lower)
    value = float(program.cost @ y)
    return Solution(y=y, value=value, lower=min(lower, value), status=status, iterations=iterations)


def _nothing(program: Program, whole: Program, small: Pruned, normal: _Normal | None) -> Solution:
    """A network that is constant."""
    y = embedded(whole, small, np.zeros(0))
    if not feasible(whole, y):
        return _none("inaccurate")
    return _solution(program, y, 0.0, "optimal", 0, normal)


def feasible(program: Program, y: Array) -> bool:
    """Block Cholesky of the whole inequality, under a diagonal congruence by powers of two."""
    if not np.all(np.isfinite(y)) or np.any(y[program.nonnegative] < 0.0):
        return False
    t = program.weights @ y + program.shift
    signals = [np.full(size, -(1 << 40)) for size in program.sizes]
    for rows, span in zip(program.rows, program.spans, strict=True):
        if rows.signal != NO_SIGNAL:
            weight = np.abs(t[span])
            level = np.where(weight > 0.0, np.frexp(weight)[1].astype(np.int64), -(1 << 40))
            np.maximum.at(signals[rows.signal], rows.index, level)
    units = [np.where(level > -(1 << 39), -(level // 2), 0) for level in signals]
    own = np.where(y != 0.0, np.frexp(np.abs(y))[1].astype(np.int64), NOTHING)
    changed, _ = scaled(program, units, own)
    barrier = BlockBarrier(changed, np.zeros(program.unknowns, dtype=bool))
    return barrier.factorize(np.ldexp(y, -own)[barrier.unknowns]) is not None
