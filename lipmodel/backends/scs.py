"""SCS: a first-order conic solver (O'Donoghue, Chu, Parikh & Boyd 2016, arXiv 1312.3039)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.base import Availability, Capabilities, Installed, Missing, Point, SolveOptions, Termination
from lipmodel.backends.clarabel import svec

if TYPE_CHECKING:
    from lipmodel.model.model import Model

_STATUS: dict[int, Termination] = {1: "optimal", 2: "inaccurate"}


class SCS:
    """SCS, called directly; its answers are rough, and the repair makes bounds of them."""

    name = "scs"
    description = "SCS operator splitting (C), any model, moderate accuracy"
    capabilities = Capabilities(cones=frozenset({"psd", "nonnegative", "zero"}), max_order=600, precision=1e-4)

    def available(self) -> Availability:
        try:
            import scs
        except ImportError:
            return Missing(extra="scs")
        return Installed(version=str(scs.__version__))

    def refuses(self, model: Model) -> str | None:
        return None

    def solve(self, model: Model, options: SolveOptions) -> Point:
        import scs

        from lipmodel.bridges.program import cone_program
        from lipmodel.bridges.scaling import prepare

        prepared = prepare(model)
        program = cone_program(prepared.model)
        parts = [(-program.eq, program.eq_rhs), (-program.ineq, program.ineq_rhs)]
        for block in program.psd:
            a, b = svec(block, program.size, upper=False)
            parts.append((-a, b))
        scale = float(np.abs(program.cost).max()) or 1.0
        data = {
            "A": sp.csc_matrix(sp.vstack([a for a, _ in parts if a.shape[0]])),
            "b": np.concatenate([b for a, b in parts if a.shape[0]]),
            "c": program.cost / scale,
        }
        cone = {"z": program.eq.shape[0], "l": program.ineq.shape[0], "s": [block.order for block in program.psd]}
        settings = {
            "verbose": options.verbose,
            "eps_abs": max(1e-2 * options.tol, 1e-9),
            "eps_rel": max(1e-2 * options.tol, 1e-9),
            "max_iters": options.max_iterations if options.max_iterations is not None else 50_000,
            "time_limit_secs": 0.0 if options.time_limit is None else max(options.time_limit, 0.01),
            **options.native,
        }
        solution = scs.SCS(data, cone, **settings).solve()
        info, x = solution["info"], np.asarray(solution["x"], dtype=np.float64)
        finite = bool(np.all(np.isfinite(x)))
        return Point(
            values=prepared.restore(program.values(x)) if finite else None,
            termination=_termination(int(info["status_val"]), str(info["status"])),
            objective=_finite(info["pobj"] * scale + program.offset),
            lower=_finite(info["dobj"] * scale + program.offset),
            iterations=int(info["iter"]),
            message=str(info["status"]),
        )


def _termination(value: int, text: str) -> Termination:
    if "time_limit" in text:
        return "time-limit"
    if "max_iters" in text or "iteration" in text:
        return "iteration-limit"
    if "interrupted" in text:
        return "interrupted"
    return _STATUS.get(value, "failed")


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
