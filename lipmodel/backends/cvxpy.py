"""CVXPY as a backend, and models as CVXPY problems (Diamond & Boyd 2016, JMLR 17:83).

The problem keeps the shape of the model: one cp.Variable per variable, with its name and sign, one constraint per
constraint, matrices put together from their factors block by block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.backends.base import Availability, BackendOption, Capabilities, Point, SolveOptions, Termination
from lipmodel.backends.blocks import affine, dual_objective, matrix_of, quiet, reformulated, sorted_duals
from lipmodel.backends.conic import refusal
from lipmodel.backends.running import Answer, solve_conic
from lipmodel.backends.settings import LOG_LEVEL, MAX_ITERATIONS, THREADS, Settings, distribution_state
from lipmodel.child import GRACE, in_child
from lipmodel.errors import BackendUnavailable, UsageError
from lipmodel.model.forms import QuadraticForm
from lipmodel.model.model import Model
from lipmodel.model.sets import Nonnegative, Zero
from lipmodel.model.terms import lower_triangle
from lipmodel.model.variables import Variable

if TYPE_CHECKING:
    from lipmodel.backends.conic import Task

Array = np.ndarray[Any, Any]
_STATUS: dict[str, Termination] = {
    "optimal": "optimal",
    "optimal_inaccurate": "inaccurate",
    "user_limit": "iteration-limit",
}
_LIMITS = {
    "CLARABEL": ("time_limit", "max_iter"),
    "SCS": ("time_limit_secs", "max_iters"),
    "HIGHS": ("time_limit", ""),
    "CVXOPT": ("", "max_iters"),
    "COPT": ("TimeLimit", "BarIterLimit"),
}
"""What solvers call their time limit and their iteration limit; COPT and MOSEK take their own parameters as well."""
_TOLERANCES: dict[str, Mapping[str, float]] = {
    "CLARABEL": {"tol_gap_rel": 1e-10, "tol_gap_abs": 1e-10, "tol_feas": 1e-9},
    "SCS": {"eps_abs": 1e-8, "eps_rel": 1e-8},
    "CVXOPT": {"abstol": 1e-9, "reltol": 1e-9, "feastol": 1e-9},
}
_THREADS = {"CLARABEL": "max_threads", "HIGHS": "threads", "COPT": "Threads"}
_POOLED = ("CLARABEL", "HIGHS")
"""Solvers with a pool of threads that the process shares, and that those who are forked from it would wait for."""


class CVXPY:
    """CVXPY, which compiles the problem once more for the solver that it is told to use."""

    name = "cvxpy"
    description = "CVXPY problem objects, and any solver that CVXPY knows (--backend-option solver=NAME)"
    capabilities = Capabilities(
        cones=frozenset({"psd", "soc", "nonnegative", "zero"}),
        max_order=64,
        on_request=True,
        precision=1e-7,
        licence="Apache-2.0",
        options=(
            MAX_ITERATIONS,
            THREADS,
            LOG_LEVEL,
            BackendOption(name="solver", default="CLARABEL", help="the solver, by CVXPY's name for it; always given"),
        ),
        passes_on="keywords of the solver in problem.solve(...), such as eps_abs=1e-9 with solver=SCS",
    )

    def available(self) -> Availability:
        return distribution_state("cvxpy", "cvxpy", "cvxpy")

    def refuses(self, model: Model) -> str | None:
        return refusal(model, self.capabilities)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        """Raises UsageError for a solver that CVXPY does not know or that is not installed, and unknown keywords."""
        return solve_conic(self, model, options, _run)

    def to_native(self, model: Model) -> Any:
        """The model as a cvxpy.Problem; its variables are in problem.var_dict under their names."""
        return problem_of(reformulated(model, self.capabilities))[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Language:
    """Blocks in the words of CVXPY."""

    variables: Mapping[Variable, Any]

    def constant(self, values: Any) -> Any:
        return values

    def vector(self, variable: Variable) -> Any:
        found = self.variables[variable]
        if variable.order is None:
            return found
        cols, rows = lower_triangle(variable.order)
        return found[rows, cols]

    def matrix(self, variable: Variable) -> Any:
        return self.variables[variable]

    def product(self, left: Any, right: Any) -> Any:
        return left @ right

    def multiple(self, number: Any, matrix: Any) -> Any:
        return number[0] * matrix

    def entrywise(self, values: Array, matrix: Any) -> Any:
        import cvxpy as cp

        return cp.multiply(values, matrix)

    def diagonal(self, vector: Any) -> Any:
        import cvxpy as cp

        return cp.diag(vector) if vector.size > 1 else cp.reshape(vector, (1, 1), order="F")

    def transpose(self, matrix: Any) -> Any:
        return matrix.T

    def shaped(self, vector: Any, rows: int, cols: int) -> Any:
        import cvxpy as cp

        return cp.reshape(vector, (rows, cols), order="C")

    def blocks(self, rows: list[list[Any]]) -> Any:
        import cvxpy as cp

        return cp.bmat(rows)


def problem_of(model: Model, unit: float = 1.0) -> tuple[Any, dict[Variable, Any], list[Any]]:
    """The cvxpy.Problem, its variables, and its constraints in the order of the model's; the objective in `unit`s."""
    with quiet():
        import cvxpy as cp

        variables = {v: _variable(v) for v in model.variables}
        language = _Language(variables=variables)
        constraints = [_constraint(c.function, c.set, language) for c in model.constraints]
        assert model.objective is not None
        objective = cp.sum(affine(model.objective, language))
        kept = [c for c in constraints if c is not None]
        return cp.Problem(cp.Minimize(objective if unit == 1.0 else objective / unit), kept), variables, constraints


def _variable(v: Variable) -> Any:
    import cvxpy as cp

    if v.order is not None:
        return cp.Variable((v.order, v.order), name=v.name, symmetric=True)
    return cp.Variable(v.size, name=v.name, nonneg=v.nonnegative)


def _constraint(function: Any, kind: Any, language: _Language) -> Any:
    """The constraint; None for a form without signals."""
    import cvxpy as cp

    if isinstance(function, QuadraticForm):
        return cp.PSD(matrix_of(function, language)) if function.signals else None
    vector = affine(function, language)
    if not function.coefficients:
        vector = cp.Constant(vector)
    if isinstance(kind, Nonnegative):
        return vector >= 0
    if isinstance(kind, Zero):
        return vector == 0
    size = kind.block or function.size
    rows = cp.reshape(vector, (function.size // size, size), order="C")
    return cp.SOC(rows[:, 0], rows[:, 1:].T, axis=0)


def _run(work: Task, settings: Settings) -> Answer:
    """Solve the scaled problem in a process of its own: not all solvers know a time limit, some write to stdout."""
    solver = str(settings.own["solver"]).upper()
    with quiet():
        import cvxpy as cp

        if solver not in cp.installed_solvers():
            known = ", ".join(cp.installed_solvers())
            raise UsageError(f"CVXPY has no solver {solver!r} here; choose with solver=NAME from {known}")
    told = _keywords(solver, work, settings)
    model = work.program.model
    problem, variables, constraints = problem_of(model, work.unit)
    seconds = None if work.time_left is None else work.time_left + GRACE
    call = partial(_solved, problem, variables, constraints, solver, told, verbose=settings.log_level > 0)
    ended = in_child(call, seconds=seconds, quiet=not settings.log_level)
    if ended.ended != "done":
        _explain(solver, ended.message, settings.passed)
        return Answer(x=None, termination="time-limit" if ended.ended == "late" else "failed", message=ended.message)
    status, values, duals, iterations = ended.value
    if values is None:
        return Answer(x=None, termination=_STATUS.get(status, "failed"), iterations=iterations, message=status)
    x = np.concatenate([np.asarray(values[v.name], dtype=np.float64) for v in model.variables])
    termination: Termination = _STATUS.get(status, "failed")
    if status == "user_limit" and work.time_left is not None and not settings.max_iterations:
        termination = "time-limit"
    return Answer(
        x=x,
        termination=termination,
        objective=float(work.cost @ x),
        lower=dual_objective(work.standard, *sorted_duals(model, duals)),
        iterations=iterations,
        message=f"{solver}: {status}",
    )


def _keywords(solver: str, work: Task, settings: Settings) -> dict[str, Any]:
    """What problem.solve is told, in the solver's own words. Raises UsageError for what it has no word for."""
    told: dict[str, Any] = dict(_TOLERANCES.get(solver, {}))
    seconds, iterations = _LIMITS.get(solver, ("", ""))
    if work.time_left is not None and seconds:
        told[seconds] = work.time_left
    for value, word, what in (
        (settings.max_iterations, iterations, "max_iterations"),
        (settings.threads, _THREADS.get(solver, ""), "threads"),
    ):
        if value and not word:
            raise UsageError(f"{what} has no common name for {solver} in CVXPY: give the solver's own option")
        if value:
            told[word] = value
    if solver in _POOLED:
        told.setdefault(_THREADS[solver], 1)
    return told | dict(settings.passed)


def _explain(solver: str, message: str, passed: Mapping[str, Any]) -> None:
    """Raises UsageError where an error is about an option, BackendUnavailable where it is about a licence."""
    named = [name for name in passed if name in message]
    if named or (passed and message.startswith(("TypeError", "AttributeError", "KeyError"))):
        raise UsageError(f"{solver} in CVXPY does not take {', '.join(named or passed)}: {message}")
    if "license" in message.lower():
        raise BackendUnavailable(f"{solver}, which CVXPY was told to use, is unlicensed: {message}")


def _solved(
    problem: Any,
    variables: Mapping[Variable, Any],
    constraints: Sequence[Any],
    solver: str,
    told: Mapping[str, Any],
    *,
    verbose: bool,
) -> tuple[str, dict[str, Array] | None, list[Any], int | None]:
    """The status, the values of the variables by name, the duals of the constraints, the iterations."""
    with quiet():
        problem.solve(solver=solver, verbose=verbose, **told)
    iterations = getattr(problem.solver_stats, "num_iters", None)
    values: dict[str, Array] = {}
    for v, x in variables.items():
        if x.value is None:
            return str(problem.status), None, [], iterations
        matrix = x.value
        if v.order is not None:
            cols, rows = lower_triangle(v.order)
            matrix = matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
            matrix = matrix[rows, cols]
        values[v.name] = np.asarray(matrix, dtype=np.float64).ravel()
    duals = [None if c is None else c.dual_value for c in constraints]
    return str(problem.status), values, duals, iterations
