"""SDPA for Python: a primal-dual interior-point solver (Yamashita, Fujisawa & Kojima 2003, OMS 18:491).

The package is GPL-2 and is imported here and nowhere else. It receives the dual in standard form; the multipliers of
its equalities, with the sign turned, are the values of the model's variables. The library knows no time limit, does not
answer to interrupts and leaves the process on errors: it runs in a process of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.base import Availability, BackendOption, Capabilities, Point, SolveOptions, Termination
from lipmodel.backends.conic import refusal
from lipmodel.backends.running import Answer, solve_conic
from lipmodel.backends.settings import LOG_LEVEL, MAX_ITERATIONS, THREADS, Settings, distribution_state
from lipmodel.child import in_child

if TYPE_CHECKING:
    from lipmodel.backends.conic import Task
    from lipmodel.bridges.program import PsdBlock
    from lipmodel.bridges.standard import StandardProgram
    from lipmodel.model.model import Model

Array = np.ndarray[Any, Any]
_KNOWN: dict[str, Any] = {
    "maxIteration": 100,
    "epsilonStar": 1e-7,
    "lambdaStar": 1e2,
    "omegaStar": 2.0,
    "lowerBound": -1e5,
    "upperBound": 1e5,
    "betaStar": 0.1,
    "betaBar": 0.2,
    "gammaStar": 0.9,
    "epsilonDash": 1e-7,
    "numThreads": 1,
    "domainMethod": "none",
    "rangeMethod": "none",
    "frvMethod": "split",
    "rho": 0.0,
    "zeroPoint": 1e-12,
}
_PHASE: dict[str, Termination] = {"pdOPT": "optimal", "pdFEAS": "inaccurate", "pFEAS": "inaccurate"}
_PHASE |= {"dFEAS": "inaccurate", "noINFO": "inaccurate"}


class SDPA:
    """SDPA, called through its Python package with one matrix variable per matrix inequality."""

    name = "sdpa"
    description = "SDPA interior point (C++), any model without second-order cones"
    capabilities = Capabilities(
        cones=frozenset({"psd", "nonnegative", "free"}),
        form="standard",
        max_order=100,
        on_request=True,
        precision=1e-6,
        licence="GPL-2.0",
        options=(
            MAX_ITERATIONS,
            THREADS,
            LOG_LEVEL,
            BackendOption(name="lambdaStar", default=1e2, help="size of the initial point"),
        ),
        passes_on="parameters of SDPA by their names: epsilonStar, epsilonDash, gammaStar, frvMethod, ...",
    )

    def available(self) -> Availability:
        return distribution_state("sdpap", "sdpa-python", "sdpa")

    def refuses(self, model: Model) -> str | None:
        return refusal(model, self.capabilities)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        """Raises UsageError for an unknown parameter."""
        return solve_conic(self, model, options, _run, _KNOWN)


def _run(work: Task, settings: Settings) -> Answer:
    standard = work.standard
    accuracy = min(1e-7, max(1e-2 * work.tol, 1e-9))
    parameters = {"epsilonStar": accuracy, "epsilonDash": accuracy, "lambdaStar": settings.own["lambdaStar"]}
    parameters |= {"maxIteration": settings.max_iterations or _KNOWN["maxIteration"]}
    parameters |= {"numThreads": settings.threads or 1, "print": "display" if settings.log_level else "no"}
    parameters |= settings.passed
    ended = in_child(lambda: _solved(standard, parameters), seconds=work.time_left, quiet=not settings.log_level)
    if ended.ended != "done":
        return Answer(x=None, termination="time-limit" if ended.ended == "late" else "failed", message=ended.message)
    y, info = ended.value
    iterations, phase = int(info["iteration"]), str(info["phasevalue"])
    termination = _PHASE.get(phase, "failed")
    if termination == "inaccurate" and iterations >= parameters["maxIteration"]:
        termination = "iteration-limit"
    return Answer(
        x=-y,
        termination=termination,
        objective=-float(info["dualObj"]),
        lower=-float(info["primalObj"]),
        iterations=iterations,
        message=phase,
    )


def _solved(standard: StandardProgram, parameters: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
    """The multipliers of the equalities, and what SDPA reports."""
    from sdpap import SymCone
    from sdpap.fvelim import split
    from sdpap.param import param
    from sdpap.sdpacall import sdpacall

    matrix, cost, free, linear, orders = sedumi(standard)
    cone = SymCone(f=free, l=linear, s=tuple(orders))
    a, b, c = (sp.csc_matrix(x) for x in (matrix, standard.rhs[:, None], cost[:, None]))
    told = param(dict(parameters), sdpacall.get_backend_info()["gmp"])
    if free:
        a, b, c, cone = split(a, b, c, cone, told["rho"])
    _, y, _, info = sdpacall.solve_sdpa(a, b, c, cone, told)
    return np.asarray(y.todense(), dtype=np.float64).ravel(), info


def sedumi(standard: StandardProgram) -> tuple[Any, Array, int, int, list[int]]:
    """(A, c, f, l, s): min c'x, A x = rhs; x = (free, nonnegative, matrices column by column, as a whole).

    Second-order cones are not expected.
    """
    p = standard.geometric
    sizes = dict(standard.cones)
    free, linear = sizes.get("free", 0), sizes.get("nonnegative", 0)
    parts = [p.eq.T, p.ineq.T]
    costs = [p.eq_rhs, p.ineq_rhs]
    for block in standard.psd:
        coefficients, constant = full_vectors(block, len(standard.rhs))
        parts.append(coefficients)
        costs.append(constant)
    return sp.csc_array(sp.hstack(parts)), np.concatenate(costs), free, linear, [block.order for block in standard.psd]


def full_vectors(block: PsdBlock, size: int) -> tuple[Any, Array]:
    """A_j as row j of a CSR matrix (size, order^2), and C, (order^2,): both triangles."""
    order = block.order
    off = block.row != block.col
    position = np.concatenate([block.col * order + block.row, (block.row * order + block.col)[off]])
    var = np.concatenate([block.var, block.var[off]])
    value = np.concatenate([block.value, block.value[off]])
    constant = var < 0
    c = np.bincount(position[constant], weights=value[constant], minlength=order * order)
    rest = ~constant
    return sp.csr_array((value[rest], (var[rest], position[rest])), shape=(size, order * order)), c
