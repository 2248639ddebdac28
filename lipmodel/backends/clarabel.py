"""Clarabel: an interior-point solver for conic programs (Goulart & Chen 2024, arXiv 2405.12762)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.base import Availability, Capabilities, Point, Progress, SolveOptions, Termination
from lipmodel.backends.conic import Task, refusal
from lipmodel.backends.running import Answer, solve_conic
from lipmodel.backends.settings import LOG_LEVEL, MAX_ITERATIONS, THREADS, Settings, distribution_state
from lipmodel.child import GRACE, in_child
from lipmodel.machine import CAN_FORK

if TYPE_CHECKING:
    from lipmodel.bridges.plan import ProgramDuals
    from lipmodel.model.model import Model

_STATUS: dict[str, Termination] = {
    "Solved": "optimal",
    "AlmostSolved": "inaccurate",
    "InsufficientProgress": "inaccurate",
    "NumericalError": "inaccurate",
    "MaxIterations": "iteration-limit",
    "MaxTime": "time-limit",
    "CallbackTerminated": "interrupted",
}


SLOW = 2e10
"""Operations of one iteration from which the solver runs in a process of its own, without progress: about seconds."""

LARGE = 1e8
"""Operations of one iteration from which the factorisation is by supernodes: at order 64 it is ten times as fast."""


class Clarabel:
    """Clarabel, called directly with one PSD triangle cone per matrix inequality."""

    name = "clarabel"
    description = "Clarabel interior point (Rust), any model"
    capabilities = Capabilities(
        cones=frozenset({"psd", "soc", "nonnegative", "zero"}),
        max_order=64,
        precision=1e-8,
        progress=True,
        licence="Apache-2.0",
        options=(MAX_ITERATIONS, replace(THREADS, default=1), LOG_LEVEL),
        passes_on="the settings of Clarabel by their names, such as equilibrate_max_iter=20",
    )

    def available(self) -> Availability:
        return distribution_state("clarabel", "clarabel", "clarabel")

    def refuses(self, model: Model) -> str | None:
        return refusal(model, self.capabilities)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        """Raises UsageError for an unknown option."""
        import clarabel

        settings = clarabel.DefaultSettings()
        known = {key: getattr(settings, key) for key in dir(settings) if not key.startswith("_")}
        known = {key: value for key, value in known.items() if isinstance(value, bool | int | float | str)}
        return solve_conic(self, model, options, lambda work, told: _run(work, told, options.progress), known)


def _run(work: Task, told: Settings, progress: Callable[[Progress], None] | None) -> Answer:
    # a pool of threads must never exist in this process: whoever is forked from it would wait for its threads for ever
    threads = int(told.passed.get("max_threads", told.threads))
    if _operations(work) <= SLOW and (threads == 1 or not CAN_FORK):
        return _solved(work, told, progress)
    seconds = None if work.time_left is None else work.time_left + GRACE
    ended = in_child(lambda: _solved(work, told, None), seconds=seconds, quiet=not told.log_level)
    if ended.ended == "done":
        answer: Answer = ended.value
        return answer
    return Answer(x=None, termination="time-limit" if ended.ended == "late" else "failed", message=ended.message)


def _operations(work: Task) -> float:
    """About how many operations one factorisation takes, in which no time limit and no interrupt is seen."""
    return sum((0.5 * block.order * (block.order + 1)) ** 3 / 3.0 for block in work.program.psd)


def _solved(work: Task, told: Settings, progress: Callable[[Progress], None] | None) -> Answer:
    import clarabel

    settings = clarabel.DefaultSettings()
    settings.verbose = told.log_level > 0
    # the solver's gaps are absolute below one, and the optimum of a deep network is far below one
    settings.tol_gap_rel = settings.tol_gap_abs = min(1e-8, max(1e-6 * work.tol, 1e-13))
    settings.tol_feas = 1e-9
    if work.time_left is not None:
        settings.time_limit = work.time_left
    if told.max_iterations:
        settings.max_iter = told.max_iterations
    settings.max_threads = told.threads
    if _operations(work) > LARGE:
        settings.direct_solve_method = "faer"
    for key, value in told.passed.items():
        setattr(settings, key, value)
    try:
        solver = clarabel.DefaultSolver(*_data(work, clarabel), settings)
        solver.set_termination_callback(_watch(work, progress))
        solution = solver.solve()
    except BaseException as error:  # a panic in Rust arrives as a BaseException
        if type(error).__name__ != "PanicException":
            raise
        return Answer(x=None, termination="failed", message=str(error))
    status = str(solution.status)
    return Answer(
        x=np.array(solution.x),
        termination=_STATUS.get(status, "failed"),
        objective=float(solution.obj_val),
        lower=float(solution.obj_val_dual),
        iterations=int(solution.iterations),
        message=status,
        duals=_duals(work, np.array(solution.z)),
    )


def _duals(work: Task, z: Any) -> ProgramDuals | None:
    """Clarabel's z, cone by cone in the order of `_data`; None where the solver broke down."""
    from lipmodel.bridges.plan import ProgramDuals

    program = work.program
    sizes = [program.eq.shape[0], program.ineq.shape[0], *(len(soc.rhs) for soc in program.soc)]
    sizes += [block.order * (block.order + 1) // 2 for block in program.psd]
    if z.shape != (sum(sizes),) or not np.all(np.isfinite(z)):
        return None
    eq, ineq, *rest = np.split(z, np.cumsum(sizes)[:-1])
    matrices = []
    for block, triangle in zip(program.psd, rest[len(program.soc) :], strict=True):
        full = np.zeros((block.order, block.order))
        col, row = np.tril_indices(block.order)  # the upper triangle, column by column
        full[row, col] = np.where(row == col, triangle, triangle / np.sqrt(2.0))
        matrices.append(full + np.triu(full, 1).T)
    return ProgramDuals(psd=matrices, ineq=ineq, eq=eq, soc=rest[: len(program.soc)])


def _watch(work: Task, progress: Callable[[Progress], None] | None) -> Callable[[Any], bool]:
    """What is called at every iteration: it reports the state, and stops the solver after an interrupt."""

    def look(info: Any) -> bool:
        try:
            if progress is not None:
                progress(
                    work.progress(
                        iteration=int(info.iterations),
                        objective=float(info.cost_primal),
                        lower=float(info.cost_dual),
                        seconds=float(info.solve_time),
                    )
                )
        except KeyboardInterrupt:
            return True
        return False

    return look


def _data(work: Task, clarabel: Any) -> tuple[Any, ...]:
    """(P, q, A, b, cones) of Clarabel's form: min x'P x / 2 + q'x subject to A x + s = b, s in the cones."""
    from lipmodel.bridges.program import svec

    program, n = work.program, work.program.size
    parts: list[tuple[Any, Any, Any]] = []
    if program.eq.shape[0]:
        parts.append((program.eq, program.eq_rhs, clarabel.ZeroConeT(program.eq.shape[0])))
    if program.ineq.shape[0]:
        parts.append((program.ineq, program.ineq_rhs, clarabel.NonnegativeConeT(program.ineq.shape[0])))
    for soc in program.soc:
        parts.append((soc.matrix, soc.rhs, clarabel.SecondOrderConeT(len(soc.rhs))))
    for block in program.psd:
        parts.append((*svec(block, n, upper=True), clarabel.PSDTriangleConeT(block.order)))
    matrix = sp.csc_matrix(sp.vstack([-a for a, _, _ in parts]))
    return sp.csc_matrix((n, n)), work.cost, matrix, np.concatenate([b for _, b, _ in parts]), [c for _, _, c in parts]
