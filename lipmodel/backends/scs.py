"""SCS: a first-order conic solver (O'Donoghue, Chu, Parikh & Boyd 2016, arXiv 1312.3039)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.base import Availability, Capabilities, Installed, Missing, Point, SolveOptions, Termination
from lipmodel.backends.conic import Task, check_options, refusal, task

if TYPE_CHECKING:
    from lipmodel.model.model import Model

_DEFAULTS: dict[str, Any] = {
    "normalize": True,
    "scale": 0.1,
    "adaptive_scale": True,
    "rho_x": 1e-6,
    "max_iters": 50_000,
    "eps_abs": 1e-8,
    "eps_rel": 1e-8,
    "eps_infeas": 1e-7,
    "alpha": 1.5,
    "time_limit_secs": 0.0,
    "acceleration_lookback": 10,
    "acceleration_interval": 10,
    "verbose": False,
    "write_data_filename": "",
    "log_csv_filename": "",
}
_SOLVED, _INTERRUPTED = (1, 2), -5


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
        return refusal(model)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        import scs

        native = check_options(self.name, options.native, _DEFAULTS)
        work = task(model, options)
        if work.time_left is not None and work.time_left <= 0.0:
            return Point(values=None, termination="time-limit", message="no time left to solve in")
        if not work.is_finite():
            return Point(values=None, termination="failed", message="coefficients out of the range of floats")
        accuracy = max(1e-2 * options.tol, 1e-9)
        settings = {"eps_abs": accuracy, "eps_rel": accuracy, "max_iters": 50_000, "verbose": options.verbose}
        if options.max_iterations is not None:
            settings["max_iters"] = options.max_iterations
        if work.time_left is not None:
            settings["time_limit_secs"] = work.time_left
        solution = scs.SCS(*_data(work), **{**settings, **native}).solve()
        info = solution["info"]
        status = str(info["status"])
        return work.point(
            solution["x"],
            _termination(int(info["status_val"]), status),
            float(info["pobj"]),
            float(info["dobj"]),
            iterations=int(info["iter"]),
            message=status,
        )


def _data(work: Task) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and cone of SCS's form: min c'x subject to A x + s = b, s in the zero, nonnegative and PSD cones."""
    from lipmodel.bridges.program import svec

    program = work.program
    parts = [(program.eq, program.eq_rhs), (program.ineq, program.ineq_rhs)]
    parts += [svec(block, program.size, upper=False) for block in program.psd]
    matrix = sp.csc_matrix(sp.vstack([-a for a, _ in parts if a.shape[0]]))
    data = {"A": matrix, "b": np.concatenate([b for _, b in parts]), "c": work.cost}
    return data, {"z": program.eq.shape[0], "l": program.ineq.shape[0], "s": [block.order for block in program.psd]}


def _termination(value: int, text: str) -> Termination:
    if value == _INTERRUPTED:
        return "interrupted"
    if value not in _SOLVED:
        return "failed"
    if "time_limit" in text:
        return "time-limit"
    return "iteration-limit" if "max_iters" in text else "optimal" if value == 1 else "inaccurate"
