"""Clarabel: an interior-point solver for conic programs (Goulart & Chen 2024, arXiv 2405.12762)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.base import Availability, Capabilities, Installed, Missing, Point, SolveOptions, Termination
from lipmodel.backends.conic import Task, check_options, refusal, task

if TYPE_CHECKING:
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


class Clarabel:
    """Clarabel, called directly with one PSD triangle cone per matrix inequality."""

    name = "clarabel"
    description = "Clarabel interior point (Rust), any model"
    capabilities = Capabilities(cones=frozenset({"psd", "nonnegative", "zero"}), max_order=64, precision=1e-8)

    def available(self) -> Availability:
        try:
            import clarabel
        except ImportError:
            return Missing(extra="clarabel")
        return Installed(version=str(getattr(clarabel, "__version__", "")))

    def refuses(self, model: Model) -> str | None:
        return refusal(model)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        import clarabel

        settings = clarabel.DefaultSettings()
        known = {key: getattr(settings, key) for key in dir(settings) if not key.startswith("_")}
        native = check_options(self.name, options.native, {k: v for k, v in known.items() if not callable(v)})
        work = task(model, options)
        if work.time_left is not None and work.time_left <= 0.0:
            return Point(values=None, termination="time-limit", message="no time left to solve in")
        if not work.is_finite():
            return Point(values=None, termination="failed", message="coefficients out of the range of floats")
        settings.verbose = options.verbose
        # the solver's gaps are absolute below one, and the optimum of a deep network is far below one
        settings.tol_gap_rel = settings.tol_gap_abs = min(1e-8, max(1e-6 * options.tol, 1e-13))
        settings.tol_feas = 1e-9
        if work.time_left is not None:
            settings.time_limit = work.time_left
        if options.max_iterations is not None:
            settings.max_iter = options.max_iterations
        for key, value in native.items():
            setattr(settings, key, value)
        try:
            solution = clarabel.DefaultSolver(*_data(work, clarabel), settings).solve()
        except BaseException as error:  # a panic in Rust arrives as a BaseException
            if type(error).__name__ != "PanicException":
                raise
            return Point(values=None, termination="failed", message=str(error))
        status = str(solution.status)
        return work.point(
            solution.x,
            _STATUS.get(status, "failed"),
            float(solution.obj_val),
            float(solution.obj_val_dual),
            iterations=int(solution.iterations),
            message=status,
        )


def _data(work: Task, clarabel: Any) -> tuple[Any, ...]:
    """(P, q, A, b, cones) of Clarabel's form: min x'P x / 2 + q'x subject to A x + s = b, s in the cones."""
    from lipmodel.bridges.program import svec

    program, n = work.program, work.program.size
    parts: list[tuple[Any, Any, Any]] = []
    if program.eq.shape[0]:
        parts.append((program.eq, program.eq_rhs, clarabel.ZeroConeT(program.eq.shape[0])))
    if program.ineq.shape[0]:
        parts.append((program.ineq, program.ineq_rhs, clarabel.NonnegativeConeT(program.ineq.shape[0])))
    for block in program.psd:
        parts.append((*svec(block, n, upper=True), clarabel.PSDTriangleConeT(block.order)))
    matrix = sp.csc_matrix(sp.vstack([-a for a, _, _ in parts]))
    return sp.csc_matrix((n, n)), work.cost, matrix, np.concatenate([b for _, b, _ in parts]), [c for _, _, c in parts]
