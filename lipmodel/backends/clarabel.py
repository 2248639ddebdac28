"""Clarabel: an interior-point solver for conic programs (Goulart & Chen 2024, arXiv 2405.12762)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.base import Availability, Capabilities, Installed, Missing, Point, SolveOptions, Termination

if TYPE_CHECKING:
    from lipmodel.model.model import Model

_STATUS: dict[str, Termination] = {
    "Solved": "optimal",
    "AlmostSolved": "inaccurate",
    "MaxIterations": "iteration-limit",
    "MaxTime": "time-limit",
    "InsufficientProgress": "inaccurate",
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
        return None

    def solve(self, model: Model, options: SolveOptions) -> Point:
        import clarabel

        from lipmodel.bridges.program import cone_program
        from lipmodel.bridges.scaling import prepare

        prepared = prepare(model)
        program = cone_program(prepared.model)
        rows, rhs, cones = [], [], []
        if program.eq.shape[0]:
            rows.append(-program.eq)
            rhs.append(program.eq_rhs)
            cones.append(clarabel.ZeroConeT(program.eq.shape[0]))
        if program.ineq.shape[0]:
            rows.append(-program.ineq)
            rhs.append(program.ineq_rhs)
            cones.append(clarabel.NonnegativeConeT(program.ineq.shape[0]))
        for block in program.psd:
            a, b = svec(block, program.size, upper=True)
            rows.append(-a)
            rhs.append(b)
            cones.append(clarabel.PSDTriangleConeT(block.order))
        scale = float(np.abs(program.cost).max()) or 1.0
        settings = clarabel.DefaultSettings()
        settings.verbose = options.verbose
        settings.tol_gap_rel = settings.tol_gap_abs = min(1e-8, 1e-2 * options.tol)
        settings.tol_feas = 1e-9
        if options.time_limit is not None:
            settings.time_limit = max(options.time_limit, 0.01)
        if options.max_iterations is not None:
            settings.max_iter = options.max_iterations
        for key, value in options.native.items():
            setattr(settings, key, value)
        n = program.size
        solver = clarabel.DefaultSolver(
            sp.csc_matrix((n, n)),
            program.cost / scale,
            sp.csc_matrix(sp.vstack(rows)),
            np.concatenate(rhs),
            cones,
            settings,
        )
        solution = solver.solve()
        status = str(solution.status)
        x = np.asarray(solution.x, dtype=np.float64)
        finite = x.shape == (n,) and bool(np.all(np.isfinite(x)))
        return Point(
            values=prepared.restore(program.values(x)) if finite else None,
            termination=_STATUS.get(status, "failed"),
            objective=_number(solution.obj_val, scale, program.offset),
            lower=_number(solution.obj_val_dual, scale, program.offset),
            iterations=int(solution.iterations),
            message=status,
        )


def _number(value: Any, scale: float, offset: float) -> float | None:
    number = float(value) * scale + offset
    return number if np.isfinite(number) else None


def svec(block: Any, size: int, *, upper: bool) -> tuple[Any, Any]:
    """Coefficients (rows, size) and constant of a matrix inequality as a scaled vector of its triangle.

    Off-diagonal entries times sqrt 2; upper: column by column of the upper triangle, else of the lower one.
    """
    r, c, n = block.row, block.col, block.order
    index = r * (r + 1) // 2 + c if upper else c * n - c * (c - 1) // 2 + (r - c)
    value = np.where(r == c, block.value, np.sqrt(2.0) * block.value)
    total = n * (n + 1) // 2
    constant = block.var < 0
    b = np.zeros(total)
    np.add.at(b, index[constant], value[constant])
    rest = ~constant
    a = sp.csr_array((value[rest], (index[rest], block.var[rest])), shape=(total, size))
    return a, b
