"""PICOS as a backend, and models as PICOS problems (Sagnol & Stahlberg 2022, JOSS 7:3915).

The package is GPL-3 and is imported here and nowhere else. The problem keeps the shape of the model: one variable per
variable, with its name and sign, one constraint per constraint, matrices put together from their factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.base import Availability, BackendOption, Capabilities, Point, SolveOptions, Termination
from lipmodel.backends.blocks import affine, dual_objective, matrix_of, quiet, reformulated, sorted_duals
from lipmodel.backends.conic import refusal
from lipmodel.backends.running import Answer, solve_conic
from lipmodel.backends.settings import LOG_LEVEL, MAX_ITERATIONS, Settings, distribution_state
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
_STATUS: dict[str, Termination] = {"optimal": "optimal", "feasible": "inaccurate", "unknown": "inaccurate"}


class PICOS:
    """PICOS, which compiles the problem once more for the solver that it is told to use."""

    name = "picos"
    description = "PICOS problem objects, and any solver that PICOS knows (--backend-option solver=NAME)"
    capabilities = Capabilities(
        cones=frozenset({"psd", "soc", "nonnegative", "zero"}),
        max_order=40,
        on_request=True,
        precision=1e-6,
        licence="GPL-3.0",
        options=(
            MAX_ITERATIONS,
            LOG_LEVEL,
            BackendOption(name="solver", default="cvxopt", help="the solver, by PICOS's name for it; always given"),
        ),
        passes_on="options of problem.solve(...), such as rel_ipm_opt_tol=1e-9",
    )

    def available(self) -> Availability:
        return distribution_state("picos", "PICOS", "picos")

    def refuses(self, model: Model) -> str | None:
        return refusal(model, self.capabilities)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        """Raises UsageError for a solver that PICOS does not know or that is not installed, and unknown options."""
        return solve_conic(self, model, options, _run)

    def to_native(self, model: Model) -> Any:
        """The model as a picos.Problem; its variables are in problem.variables under their names."""
        return problem_of(reformulated(model, self.capabilities))[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Language:
    """Blocks in the words of PICOS, where vectors are columns."""

    variables: Mapping[Variable, Any]

    def constant(self, values: Any) -> Any:
        import picos

        return picos.Constant(values if sp.issparse(values) else np.asarray(values, dtype=np.float64))

    def vector(self, variable: Variable) -> Any:
        found = self.variables[variable]
        if variable.order is None:
            return found
        cols, rows = lower_triangle(variable.order)
        picked = (np.ones(len(rows)), (np.arange(len(rows)), cols * variable.order + rows))
        return self.constant(sp.csr_matrix(picked, shape=(len(rows), variable.order**2))) * found.vec

    def matrix(self, variable: Variable) -> Any:
        return self.variables[variable]

    def product(self, left: Any, right: Any) -> Any:
        return left * right

    def multiple(self, number: Any, matrix: Any) -> Any:
        return number * matrix

    def entrywise(self, values: Array, matrix: Any) -> Any:
        return self.constant(values) ^ matrix

    def diagonal(self, vector: Any) -> Any:
        import picos

        return picos.diag(vector)

    def transpose(self, matrix: Any) -> Any:
        return matrix.T

    def shaped(self, vector: Any, rows: int, cols: int) -> Any:
        return vector.reshaped((cols, rows)).T

    def blocks(self, rows: list[list[Any]]) -> Any:
        import picos

        return picos.block(rows)


def problem_of(model: Model, unit: float = 1.0) -> tuple[Any, dict[Variable, Any], list[Any]]:
    """The picos.Problem, its variables, and its constraints in the order of the model's; the objective in `unit`s."""
    with quiet():
        import picos

        problem = picos.Problem(model.name)
        variables = {v: _variable(v) for v in model.variables}
        language = _Language(variables=variables)
        constraints = [_required(problem, c.function, c.set, language) for c in model.constraints]
        assert model.objective is not None
        objective = affine(model.objective, language)
        problem.set_objective("min", objective if unit == 1.0 else objective / unit)
        return problem, variables, constraints


def _variable(v: Variable) -> Any:
    import picos

    if v.order is not None:
        return picos.SymmetricVariable(v.name, v.order)
    return picos.RealVariable(v.name, v.size, lower=0.0 if v.nonnegative else None)


def _required(problem: Any, function: Any, kind: Any, language: _Language) -> Any:
    """Add a constraint; None for a form without signals, and a list for several cones."""
    if isinstance(function, QuadraticForm):
        return problem.add_constraint(matrix_of(function, language) >> 0) if function.signals else None
    vector = affine(function, language)
    if isinstance(kind, Nonnegative):
        return problem.add_constraint(vector >= 0)
    if isinstance(kind, Zero):
        return problem.add_constraint(vector == 0)
    size = kind.block or function.size
    starts = range(0, function.size, size)
    return [problem.add_constraint(abs(vector[at + 1 : at + size]) <= vector[at]) for at in starts]


def _run(work: Task, settings: Settings) -> Answer:
    """Solve the scaled problem in a process of its own: not all solvers know a time limit."""
    solver = str(settings.own["solver"]).lower()
    with quiet():
        import picos

        known = picos.available_solvers()
    if solver not in known:
        raise UsageError(f"PICOS has no solver {solver!r} here; choose with solver=NAME from {', '.join(known)}")
    model = work.program.model
    problem, variables, constraints = problem_of(model, work.unit)
    told = {"solver": solver, "verbosity": int(settings.log_level > 0), "rel_ipm_opt_tol": 1e-8, "primals": None}
    told |= {"abs_ipm_opt_tol": 1e-8, "duals": None, "max_iterations": settings.max_iterations or None}
    try:
        problem.options.update(**told | dict(settings.passed))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"PICOS does not take {', '.join(settings.passed)}: {error}") from None
    seconds = None if work.time_left is None else work.time_left + GRACE
    ended = in_child(partial(_solved, problem, variables, constraints), seconds=seconds, quiet=not settings.log_level)
    if ended.ended != "done":
        if "license" in ended.message.lower():
            raise BackendUnavailable(f"{solver}, which PICOS was told to use, is unlicensed: {ended.message}")
        return Answer(x=None, termination="time-limit" if ended.ended == "late" else "failed", message=ended.message)
    status, values, duals = ended.value
    termination = _STATUS.get(status, "failed")
    if values is None:
        return Answer(x=None, termination=termination, message=status)
    x = np.concatenate([values[v.name] for v in model.variables])
    return Answer(
        x=x,
        termination=termination,
        objective=float(work.cost @ x),
        lower=dual_objective(work.standard, *sorted_duals(model, duals)),
        message=f"{solver}: {status}",
    )


def _solved(
    problem: Any, variables: Mapping[Variable, Any], constraints: list[Any]
) -> tuple[str, dict[str, Array] | None, list[Any]]:
    """The status, the values of the variables by name, and the duals of the constraints."""
    with quiet():
        solution = problem.solve()
    status = str(solution.claimedStatus)
    values: dict[str, Array] = {}
    for v, x in variables.items():
        if x.value is None:
            return status, None, []
        matrix = np.asarray(x.np, dtype=np.float64)
        cols, rows = lower_triangle(v.order) if v.order is not None else (None, None)
        values[v.name] = matrix.ravel() if v.order is None else matrix.reshape(v.order, v.order)[rows, cols]
    return status, values, [_dual(c) for c in constraints]


def _dual(constraint: Any) -> Array | None:
    value = getattr(constraint, "dual", None)
    return None if value is None else np.array(value, dtype=np.float64)
