"""SCS: a first-order conic solver (O'Donoghue, Chu, Parikh & Boyd 2016, arXiv 1312.3039)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.base import Availability, Capabilities, Point, SolveOptions, Termination
from lipmodel.backends.conic import Task, refusal
from lipmodel.backends.running import Answer, solve_conic
from lipmodel.backends.settings import LOG_LEVEL, MAX_ITERATIONS, Settings, distribution_state

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
    capabilities = Capabilities(
        cones=frozenset({"psd", "soc", "nonnegative", "zero"}),
        max_order=600,
        precision=1e-4,
        licence="MIT",
        options=(MAX_ITERATIONS, LOG_LEVEL),
        passes_on="the settings of SCS by their names, such as eps_abs=1e-6",
    )

    def available(self) -> Availability:
        return distribution_state("scs", "scs", "scs")

    def refuses(self, model: Model) -> str | None:
        return refusal(model, self.capabilities)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        """Raises UsageError for an unknown option."""
        return solve_conic(self, model, options, _run, _DEFAULTS)


def _run(work: Task, told: Settings) -> Answer:
    import scs

    # the optimum of a deep network, or of one taken apart into cliques, is far below one
    settings = {"eps_abs": max(1e-3 * work.tol, 1e-9), "eps_rel": max(1e-2 * work.tol, 1e-9)}
    settings |= {"max_iters": 50_000, "verbose": told.log_level > 0}
    if told.max_iterations:
        settings["max_iters"] = told.max_iterations
    if work.time_left is not None:
        settings["time_limit_secs"] = work.time_left
    solution = scs.SCS(*_data(work), **{**settings, **told.passed}).solve()
    info = solution["info"]
    status = str(info["status"])
    return Answer(
        x=solution["x"],
        termination=_termination(int(info["status_val"]), status),
        objective=float(info["pobj"]),
        lower=float(info["dobj"]),
        iterations=int(info["iter"]),
        message=status,
    )


def _data(work: Task) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and cone of SCS's form: min c'x, A x + s = b, s in the zero, nonnegative, second-order and PSD cones."""
    from lipmodel.bridges.program import svec

    program = work.program
    parts = [(program.eq, program.eq_rhs), (program.ineq, program.ineq_rhs)]
    parts += [(soc.matrix, soc.rhs) for soc in program.soc]
    parts += [svec(block, program.size, upper=False) for block in program.psd]
    matrix = sp.csc_matrix(sp.vstack([-a for a, _ in parts if a.shape[0]]))
    data = {"A": matrix, "b": np.concatenate([b for _, b in parts]), "c": work.cost}
    cone = {"z": program.eq.shape[0], "l": program.ineq.shape[0]}
    return data, {**cone, "q": [len(soc.rhs) for soc in program.soc], "s": [block.order for block in program.psd]}


def _termination(value: int, text: str) -> Termination:
    if value == _INTERRUPTED:
        return "interrupted"
    if value not in _SOLVED:
        return "failed"
    if "time_limit" in text:
        return "time-limit"
    return "iteration-limit" if "max_iters" in text else "optimal" if value == 1 else "inaccurate"
