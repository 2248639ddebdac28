"""HiGHS: simplex and interior point for linear programs (Huangfu & Hall 2018, MPC 10:119)."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.base import Availability, BackendOption, Capabilities, Point, SolveOptions, Termination
from lipmodel.backends.conic import refusal
from lipmodel.backends.running import Answer, solve_conic
from lipmodel.backends.settings import LOG_LEVEL, MAX_ITERATIONS, THREADS, Settings, distribution_state

if TYPE_CHECKING:
    from lipmodel.backends.conic import Task
    from lipmodel.model.model import Model

_STATUS: dict[str, Termination] = {
    "kOptimal": "optimal",
    "kTimeLimit": "time-limit",
    "kIterationLimit": "iteration-limit",
    "kInterrupt": "interrupted",
    "kHighsInterrupt": "interrupted",
    "kUnknown": "inaccurate",
}
_LIMITS = ("simplex_iteration_limit", "ipm_iteration_limit", "pdlp_iteration_limit")


class Highs:
    """HiGHS, called directly, for models whose constraints are linear rows."""

    name = "highs"
    description = "HiGHS simplex and interior point (C++), linear programs only (-o cone=dd)"
    capabilities = Capabilities(
        cones=frozenset({"nonnegative", "zero"}),
        precision=1e-8,
        licence="MIT",
        options=(
            MAX_ITERATIONS,
            replace(THREADS, default=1),
            LOG_LEVEL,
            BackendOption(
                name="solver",
                default="choose",
                help="the algorithm: HiGHS's choice, or one of them",
                choices=("choose", "simplex", "ipm", "pdlp"),
            ),
        ),
        passes_on="the options of HiGHS by their names, such as primal_feasibility_tolerance=1e-9",
    )

    def available(self) -> Availability:
        return distribution_state("highspy", "highspy", "highs")

    def refuses(self, model: Model) -> str | None:
        if model.psd_forms:  # said without reducing the model first, which takes time on large ones
            return "it solves linear programs only (lipsdp-neuron and geolip are one with -o cone=dd)"
        return refusal(model, self.capabilities)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        """Raises UsageError for an unknown option."""
        return solve_conic(self, model, options, _run, _known())


@lru_cache(maxsize=1)
def _known() -> dict[str, Any]:
    """All options of HiGHS with their defaults."""
    import highspy

    options = highspy.HighsOptions()
    names = (name for name in dir(options) if not name.startswith("_"))
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}


def _run(work: Task, settings: Settings) -> Answer:
    import highspy

    solver = highspy.Highs()
    told: dict[str, Any] = {"output_flag": settings.log_level > 0, "solver": str(settings.own["solver"])}
    told |= {"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9}
    # its pool of threads is shared by the whole process, made anew here for the number that is asked for; with one
    # thread there is none, which would be missing in whoever is forked from this process
    told["threads"] = settings.threads
    solver.resetGlobalScheduler(True)
    if settings.max_iterations:
        told |= dict.fromkeys(_LIMITS, settings.max_iterations)
    if work.time_left is not None:
        told["time_limit"] = work.time_left
    for name, value in (told | dict(settings.passed)).items():
        solver.setOptionValue(name, value)
    program = _program(work)
    solver.passModel(program)
    interrupted: list[bool] = []
    _listen(solver, interrupted)
    solver.run()
    if interrupted:
        raise KeyboardInterrupt
    return _answer(solver, program)


def _listen(solver: Any, interrupted: list[bool]) -> None:
    """HiGHS calls back now and then: only there can Python see an interrupt; it is noted and stops the solver."""

    def look(event: Any) -> None:
        try:
            event.data_in.user_interrupt = bool(interrupted)
        except KeyboardInterrupt:
            interrupted.append(True)
            event.data_in.user_interrupt = True

    for callback in (solver.cbSimplexInterrupt, solver.cbIpmInterrupt):
        callback.subscribe(look)


def _program(work: Task) -> Any:
    """min c'y, -h <= G y, E y = -f, y free."""
    import highspy

    p = work.program
    rows = sp.csr_array(sp.vstack([p.ineq, p.eq]))
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = p.size, rows.shape[0]
    program.col_cost_ = work.cost
    program.col_lower_ = np.full(p.size, -highspy.kHighsInf)
    program.col_upper_ = np.full(p.size, highspy.kHighsInf)
    program.row_lower_ = np.concatenate([-p.ineq_rhs, -p.eq_rhs])
    program.row_upper_ = np.concatenate([np.full(len(p.ineq_rhs), highspy.kHighsInf), -p.eq_rhs])
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_ = rows.indptr
    program.a_matrix_.index_ = rows.indices
    program.a_matrix_.value_ = rows.data
    return program


def _answer(solver: Any, program: Any) -> Answer:
    status, info, solution = solver.getModelStatus().name, solver.getInfo(), solver.getSolution()
    iterations = sum(
        max(int(n), 0) for n in (info.simplex_iteration_count, info.ipm_iteration_count, info.pdlp_iteration_count)
    )
    # every row has a lower end and every column is free: the dual objective is that of the rows
    lower = float(np.dot(solution.row_dual, program.row_lower_)) if solution.dual_valid else float("nan")
    return Answer(
        x=np.array(solution.col_value) if solution.value_valid else None,
        termination=_STATUS.get(status, "failed"),
        objective=float(info.objective_function_value),
        lower=lower,
        iterations=iterations,
        message=status.removeprefix("k"),
    )
