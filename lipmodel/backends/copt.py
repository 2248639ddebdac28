"""COPT (Cardinal Optimizer): conic interior point, through its matrix interface.

It receives the dual in standard form; the multipliers of its equalities, with the sign turned, are the values of the
model's variables. Without a licence it solves problems up to a size. It runs in a process of its own: creating its
environment prints to stdout, whatever it is told.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.base import Availability, BackendOption, Capabilities, Point, SolveOptions, Termination
from lipmodel.backends.conic import refusal
from lipmodel.backends.running import Answer, solve_conic
from lipmodel.backends.settings import LOG_LEVEL, MAX_ITERATIONS, THREADS, Settings, distribution_state
from lipmodel.child import GRACE, in_child
from lipmodel.errors import BackendUnavailable

if TYPE_CHECKING:
    from lipmodel.backends.conic import Task
    from lipmodel.bridges.program import PsdBlock
    from lipmodel.bridges.standard import StandardProgram
    from lipmodel.model.model import Model

Array = np.ndarray[Any, Any]
_STATUS: dict[int, Termination] = {1: "optimal", 5: "inaccurate", 7: "inaccurate", 8: "time-limit"}
_STATUS |= {9: "inaccurate", 10: "interrupted", 11: "iteration-limit"}
_METHODS = ("auto", "primal-dual", "dual", "admm")


class Copt:
    """COPT's barrier for semidefinite programs, called directly."""

    name = "copt"
    description = "COPT conic interior point, any model; without a licence up to a size"
    capabilities = Capabilities(
        cones=frozenset({"psd", "soc", "rsoc", "nonnegative", "zero", "free"}),
        form="standard",
        max_order=400,
        on_request=True,
        precision=1e-7,
        licence="commercial",
        options=(
            MAX_ITERATIONS,
            THREADS,
            LOG_LEVEL,
            BackendOption(name="method", default="auto", help="the algorithm for matrix variables", choices=_METHODS),
        ),
        passes_on="the parameters of COPT by their names, such as FeasTol=1e-9",
    )

    def available(self) -> Availability:
        return distribution_state("coptpy", "coptpy", "copt")

    def refuses(self, model: Model) -> str | None:
        return refusal(model, self.capabilities)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        """Raises UsageError for an unknown parameter, BackendUnavailable for a problem above the free size."""
        return solve_conic(self, model, options, _run, _known())


@lru_cache(maxsize=1)
def _known() -> dict[str, Any]:
    """All parameters of COPT with their defaults."""

    def ask() -> dict[str, Any]:
        import coptpy

        with coptpy.Envr() as environment:
            model = environment.createModel()
            names = [name for name in dir(coptpy.COPT.Param) if not name.startswith("_")]
            return {name: model.getParamInfo(name)[2] for name in names}

    asked = in_child(ask, seconds=None, quiet=True)
    return dict(asked.value or {})


def _run(work: Task, settings: Settings) -> Answer:
    standard = work.standard
    told: dict[str, Any] = {"Logging": int(settings.log_level > 0), "FeasTol": 1e-9, "DualTol": 1e-9, "RelGap": 1e-9}
    told["SDPMethod"] = _METHODS.index(settings.own["method"]) - 1
    if settings.threads:
        told["Threads"] = settings.threads
    if settings.max_iterations:
        told["BarIterLimit"] = settings.max_iterations
    if work.time_left is not None:
        told["TimeLimit"] = work.time_left
    told |= settings.passed
    seconds = None if work.time_left is None else work.time_left + GRACE
    ended = in_child(lambda: _solved(standard, told), seconds=seconds, quiet=not settings.log_level)
    if ended.ended != "done":
        if "LICENSE" in ended.message:
            raise BackendUnavailable(f"the backend 'copt' is unlicensed for a problem of this size ({ended.message})")
        return Answer(x=None, termination="time-limit" if ended.ended == "late" else "failed", message=ended.message)
    y, primal, status, iterations = ended.value
    return Answer(
        x=None if y is None else -y,
        termination=_STATUS.get(status, "failed"),
        objective=float("nan") if y is None else -float(standard.rhs @ y),
        lower=-primal,
        iterations=iterations,
        message=f"status {status}",
    )


def _solved(standard: StandardProgram, told: dict[str, Any]) -> tuple[Array | None, float, int, int]:
    """The multipliers of the equalities, the objective, COPT's status and its iterations."""
    import coptpy

    matrix, cost, cones = conic_form(standard)
    with coptpy.Envr() as environment:
        model = environment.createModel()
        for name, value in told.items():
            model.setParam(name, value)
        places = model.loadConeMatrix(cost, matrix, standard.rhs, cones)
        model.objsense = coptpy.COPT.MINIMIZE
        model.solve()
        y = None
        if model.haslpsol:
            # a row with matrix variables is kept in a list of its own
            linear = model.getDuals() if any(at > 0 for at in places) else []
            semidefinite = model.getPsdDuals() if any(at < 0 for at in places) else []
            y = np.array([linear[at - 1] if at > 0 else semidefinite[-at - 1] for at in places])
        iterations = int(model.barrieriter + model.simplexiter)
        return y, float(model.lpobjval if y is not None else np.nan), int(model.status), iterations


def conic_form(standard: StandardProgram) -> tuple[Any, Array, dict[str, Any]]:
    """(A, c, K): min c'x, A x = rhs, x in (free, nonnegative, second-order, rotated, lower triangles by column).

    COPT has no matrices of order one: they are nonnegative numbers.
    """
    p = standard.geometric
    plain = [s for s in p.soc if not s.rotated]
    rotated = [s for s in p.soc if s.rotated]
    numbers = [_triangles(block, p.size) for block in standard.psd if block.order == 1]
    matrices = [_triangles(block, p.size) for block in standard.psd if block.order > 1]
    second = [(s.matrix.T, s.rhs) for s in (*plain, *rotated)]
    pairs = [(p.eq.T, p.eq_rhs), (p.ineq.T, p.ineq_rhs), *numbers, *second, *matrices]
    cones = {
        "f": p.eq.shape[0],
        "l": p.ineq.shape[0] + len(numbers),
        "q": [len(s.rhs) for s in plain],
        "r": [len(s.rhs) for s in rotated],
        "s": [block.order for block in standard.psd if block.order > 1],
    }
    return sp.csc_matrix(sp.hstack([a for a, _ in pairs])), np.concatenate([c for _, c in pairs]), cones


def _triangles(block: PsdBlock, size: int) -> tuple[Any, Array]:
    """A_j as row j over the lower triangle, and C: entries off the diagonal as they are, each counts twice."""
    n = block.order
    place = block.col * n - block.col * (block.col - 1) // 2 + (block.row - block.col)
    total = n * (n + 1) // 2
    constant = block.var < 0
    c = np.bincount(place[constant], weights=block.value[constant], minlength=total)
    rest = ~constant
    return sp.csr_array((block.value[rest], (block.var[rest], place[rest])), shape=(size, total)), c
