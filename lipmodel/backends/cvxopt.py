"""CVXOPT's conelp: a primal-dual interior-point solver in Python (Andersen, Dahl & Vandenberghe).

The package is GPL-3 and is imported here and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.base import Availability, BackendOption, Capabilities, Point, SolveOptions, Termination
from lipmodel.backends.conic import refusal
from lipmodel.backends.running import Answer, solve_conic
from lipmodel.backends.settings import LOG_LEVEL, MAX_ITERATIONS, Settings, distribution_state

if TYPE_CHECKING:
    from lipmodel.backends.conic import Task
    from lipmodel.model.model import Model

_KNOWN: dict[str, Any] = {
    "maxiters": 100,
    "abstol": 1e-7,
    "reltol": 1e-6,
    "feastol": 1e-7,
    "refinement": 0,
    "kktreg": 0.0,
}
_STATUS: dict[str, Termination] = {"optimal": "optimal", "unknown": "inaccurate"}


class CVXOPT:
    """CVXOPT's cone program solver, called directly with dense symmetric blocks."""

    name = "cvxopt"
    description = "CVXOPT conelp interior point (Python, BLAS), any model"
    capabilities = Capabilities(
        cones=frozenset({"psd", "soc", "nonnegative", "zero"}),
        max_order=60,
        on_request=True,
        precision=1e-7,
        licence="GPL-3.0",
        options=(
            MAX_ITERATIONS,
            LOG_LEVEL,
            BackendOption(
                name="kktsolver",
                default="chol",
                help="how the linear systems are solved; qr is the most accurate and the slowest",
                choices=("chol", "qr", "ldl"),
            ),
        ),
        passes_on="the options of conelp by their names: abstol, reltol, feastol, maxiters, refinement, kktreg",
    )

    def available(self) -> Availability:
        return distribution_state("cvxopt", "cvxopt", "cvxopt")

    def refuses(self, model: Model) -> str | None:
        return refusal(model, self.capabilities)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        """Raises UsageError for an unknown option."""
        return solve_conic(self, model, options, _run, _KNOWN)


class _OutOfTimeError(Exception):
    """Raised inside the solver, which has no time limit of its own."""


def _run(work: Task, settings: Settings) -> Answer:
    from cvxopt import solvers

    # below this, steps become so short that the scaling is divided by zero
    accuracy = min(1e-8, max(1e-4 * work.tol, 1e-10))
    told = {"abstol": accuracy, "reltol": accuracy, "feastol": 1e-9, "show_progress": settings.log_level > 0}
    if settings.max_iterations:
        told["maxiters"] = settings.max_iterations
    told |= {key: value for key, value in settings.passed.items() if value}
    data = _data(work)
    kkt = _timed(str(settings.own["kktsolver"]), data, work.time_left)
    try:
        found = solvers.conelp(**data, kktsolver=kkt, options=told)
    except _OutOfTimeError:
        return Answer(x=None, termination="time-limit", message="stopped at the time limit")
    except (ArithmeticError, ValueError, TypeError) as error:  # rank deficient, as a rule
        return Answer(x=None, termination="failed", message=str(error))
    status, iterations = str(found["status"]), int(found["iterations"])
    termination = _STATUS.get(status, "failed")
    if termination == "inaccurate" and iterations >= told.get("maxiters", _KNOWN["maxiters"]):
        termination = "iteration-limit"
    x = None if found["x"] is None else np.array(found["x"]).ravel()
    objective, lower = (_number(found[key]) for key in ("primal objective", "dual objective"))
    return Answer(x=x, termination=termination, objective=objective, lower=lower, iterations=iterations, message=status)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _timed(name: str, data: dict[str, Any], seconds: float | None) -> Callable[[Any], Any]:
    """The solver of linear systems, called once an iteration, which looks at the clock first."""
    from cvxopt import misc

    deadline = None if seconds is None else time.monotonic() + seconds
    factor = {"chol": misc.kkt_chol, "qr": misc.kkt_qr, "ldl": misc.kkt_ldl}[name](data["G"], data["dims"], data["A"])

    def solve(scaling: Any) -> Any:
        if deadline is not None and time.monotonic() > deadline:
            raise _OutOfTimeError
        return factor(scaling)

    return solve


def _data(work: Task) -> dict[str, Any]:
    """conelp's form: min c'x, G x + s = h, A x = b, s in nonnegative, second-order and PSD cones (whole matrices)."""
    from cvxopt import matrix

    from lipmodel.backends.sdpa import full_vectors

    p = work.program
    # its equations have to be independent; those that say 0 = 0 are left out
    said = np.flatnonzero((np.diff(p.eq.indptr) > 0) | (p.eq_rhs != 0.0))
    parts, constants = [p.ineq], [p.ineq_rhs]
    for block in p.soc:
        parts.append(block.matrix)
        constants.append(block.rhs)
    for psd in p.psd:
        coefficients, constant = full_vectors(psd, p.size)
        parts.append(coefficients.T)
        constants.append(constant)
    dims = {"l": p.ineq.shape[0], "q": [len(b.rhs) for b in p.soc], "s": [b.order for b in p.psd]}
    return {
        "c": matrix(work.cost),
        "G": _sparse(-sp.vstack(parts)),
        "h": matrix(np.concatenate(constants)),
        "dims": dims,
        "A": _sparse(p.eq[said]),
        "b": matrix(-p.eq_rhs[said], (len(said), 1), "d"),
    }


def _sparse(m: Any) -> Any:
    from cvxopt import spmatrix

    coo = sp.coo_array(m)
    row, col = (index.astype(np.int64).tolist() for index in coo.coords)
    return spmatrix(coo.data.tolist(), row, col, size=coo.shape)
