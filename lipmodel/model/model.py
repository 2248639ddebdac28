"""The model: variables, signals, constraints function-in-set, one linear objective and the map from it to a bound."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lipmodel.errors import UsageError
from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
from lipmodel.model.terms import Congruence, Factored, Rule, Term, all_variables
from lipmodel.model.variables import Expression, Variable, as_expression
from lipmodel.spec import as_norm

if TYPE_CHECKING:
    from lipmodel.network.increments import SlopeRestricted

Array = np.ndarray[Any, Any]
BoundMap = Literal["identity", "sqrt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PSD:
    """Quadratic forms that are nonnegative for all values of the signals."""

    def __str__(self) -> str:
        return "positive semidefinite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nonnegative:
    """Vectors with nonnegative entries."""

    def __str__(self) -> str:
        return "nonnegative"


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero:
    """The zero vector."""

    def __str__(self) -> str:
        return "zero"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constraint:
    """function in set: a QuadraticForm in PSD, or an Expression in Nonnegative or Zero."""

    function: QuadraticForm | Expression
    set: PSD | Nonnegative | Zero

    def __bool__(self) -> bool:
        raise UsageError("a constraint has no truth value: pass it to Model.require")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Predicted sizes of a model: numbers of scalar variables, orders of the PSD constraints, their coefficients."""

    variables: int
    psd: tuple[int, ...]
    linear: int
    coefficients: int


@dataclass(slots=True, eq=False)
class Model:
    """A solver-agnostic conic model whose matrix constraints are quadratic forms in named signals.

    State it with `signal`, `variable`, `multiplier`, `ball`, `require`, `minimize`; print it with `str`.
    """

    name: str
    signals: list[Signal] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    objective: Expression | None = None
    bound: BoundMap = "identity"

    def signal(self, name: str, size: int) -> LinearForm:
        """An auxiliary signal such as a vector of the dual unit ball; its products with the output are certified."""
        signal = Signal(name=name, size=_whole(size, f"the size of signal {name!r}"))
        self.signals.append(signal)
        return LinearForm.of(signal, role="dual")

    def variable(self, name: str, size: int = 1, *, nonnegative: bool = False) -> Expression:
        """A vector of `size` decision variables; a name that is taken gets a number."""
        count = _whole(size, f"the size of variable {name!r}")
        return Expression.of(self._added(Variable(name=name, size=count, nonnegative=nonnegative)))

    def symmetric(self, name: str, order: int) -> Variable:
        """A symmetric order x order matrix variable, for a `Congruence` term; a name that is taken gets a number."""
        n = _whole(order, f"the order of variable {name!r}")
        return self._added(Variable(name=name, size=n * (n + 1) // 2, order=n))

    def _added(self, variable: Variable) -> Variable:
        taken = {v.name for v in self.variables}
        names = itertools.chain([variable.name], (f"{variable.name}_{k}" for k in itertools.count(2)))
        variable = replace(variable, name=next(n for n in names if n not in taken))
        self.variables.append(variable)
        return variable

    def multiplier(self, activation: SlopeRestricted, *, tied: bool = False) -> Expression:
        """Nonnegative multipliers of an activation's quadratic constraint: one per neuron, or (tied) one for all."""
        size = activation.signal.size
        t = self.variable(f"t_{activation.name}", 1 if tied else size, nonnegative=True)
        return t.spread(size)

    def ball(self, form: LinearForm, norm: Any) -> tuple[QuadraticForm, Expression]:
        """sum_i kappa_i form_i^2 with new variables kappa >= 0, and half its maximum over the unit ball of the norm.

        norm 2: one kappa for all entries, price kappa/2. norm inf: one per entry, price (sum kappa)/2.
        The l1 ball has no such form: its programs are solved column by column. Raises UsageError.
        """
        norm = as_norm(norm)
        if norm == "1":
            raise UsageError("the l1 ball has no diagonal quadratic form: use one program per column or output row")
        if not isinstance(form, LinearForm):
            raise UsageError(f"a ball is about a linear form such as system.input, not a {type(form).__name__}")
        name = "kappa" if form.role == "input" else "sigma" if form.role == "dual" else "ball"
        weight = self.variable(name, 1 if norm == "2" else form.size, nonnegative=True)
        return inner(form, form, weight=weight.spread(form.size)), weight.sum() * 0.5

    def require(self, constraint: Constraint) -> None:
        """Add a constraint such as `form >= 0`, `expression >= 0` or `expression.equals(0)`. Raises UsageError."""
        if not isinstance(constraint, Constraint):
            raise UsageError(
                f"require expects a constraint such as `form >= 0` (or `expression.equals(0)`), got {constraint!r}"
            )
        self.constraints.append(constraint)
        f = constraint.function
        self._adopt(all_variables(f.terms) if isinstance(f, QuadraticForm) else f.coefficients)
        if isinstance(f, QuadraticForm):
            self.signals.extend(s for s in f.signals if s not in self.signals)

    def minimize(self, objective: Any, *, bound: BoundMap = "identity") -> None:
        """The linear objective, one number, and its map to the bound: identity, or sqrt where L^2 is minimised.

        Raises UsageError.
        """
        if bound not in ("identity", "sqrt"):
            raise UsageError(f"bound={bound!r}: the map from objective to bound is 'identity' or 'sqrt'")
        if isinstance(objective, QuadraticForm | LinearForm | Constraint):
            kind = type(objective).__name__
            raise UsageError(f"the objective is an expression in the variables such as a price, not a {kind}")
        if isinstance(objective, Expression) and objective.size != 1:
            raise UsageError(f"the objective is one number, not a vector of {objective.size}: take its .sum()")
        self.objective = as_expression(objective, 1)
        self.bound = bound
        self._adopt(self.objective.coefficients)

    def _adopt(self, variables: Iterable[Variable]) -> None:
        self.variables.extend(v for v in variables if v not in self.variables)

    @property
    def matrix_constraints(self) -> list[QuadraticForm]:
        """The quadratic forms required to be nonnegative."""
        return [c.function for c in self.constraints if isinstance(c.function, QuadraticForm)]

    def bound_of(self, objective: float) -> float:
        """The bound that an objective value would give, if it were proved."""
        return float(np.sqrt(max(objective, 0.0))) if self.bound == "sqrt" else float(objective)

    def check(self) -> None:
        """Raises UsageError, listing everything that is missing, unless the model can be solved."""
        missing = []
        if self.objective is None:
            missing.append("no objective (call m.minimize(...))")
        elif not self.objective.coefficients:
            missing.append("the objective is a constant (minimise the prices of the balls)")
        if not any(f.signals for f in self.matrix_constraints):
            missing.append("no matrix constraint (call m.require(form >= 0))")
        if missing:
            raise UsageError(f"the model {self.name!r} is incomplete: " + "; ".join(missing))

    def sizes(self) -> Sizes:
        """Predicted sizes, without expanding anything."""
        orders = tuple(sum(s.size for s in f.signals) for f in self.matrix_constraints)
        linear = sum(c.function.size for c in self.constraints if isinstance(c.function, Expression))
        count = sum(_predicted(t) for f in self.matrix_constraints for t in f.terms)
        return Sizes(variables=sum(v.size for v in self.variables), psd=orders, linear=linear, coefficients=count)

    def __str__(self) -> str:
        from lipmodel.model.render import model_text

        return model_text(self)


def _predicted(term: Term) -> int:
    if isinstance(term, Factored):
        return int(_entries(term.left) * _entries(term.right) / max(1, term.size))
    if isinstance(term, Congruence):
        return (_entries(term.form) ** 2 + _entries(term.form)) // 2
    return sum(len(t.value) for t in term.triplets())


def _entries(form: LinearForm) -> int:
    return sum(m.entries for m in form.blocks.values())


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UsageError(f"{what} must be a positive whole number, not {value!r}")
    return int(value)


def inner(a: LinearForm, b: LinearForm, weight: Any = 1.0) -> QuadraticForm:
    """sum_i weight_i a_i b_i, the primitive under every quadratic form; weight affine in the variables.

    Products of the marked input, output and dual signals carry a rule, so that they can be certified; all other
    products are the user's own statement. Raises UsageError.
    """
    for form in (a, b):
        if not isinstance(form, LinearForm):
            raise UsageError(f"an inner product is of two linear forms (system.input, act.post, ...), not of {form!r}")
    if a.size != b.size:
        raise UsageError(f"inner product of forms of sizes {a.size} and {b.size}: they must agree")
    rule: Rule | None = None
    roles = {a.role, b.role}
    if roles == {"input"}:
        rule = Rule(kind="ball-input")
    elif roles == {"dual"} and a.signals == b.signals:
        rule = Rule(kind="ball-dual", subject=a.signals[0])
    elif roles == {"dual", "output"}:
        rule = Rule(kind="output-dual", subject=(a if a.role == "dual" else b).signals[0])
    elif roles == {"output"}:
        rule = Rule(kind="output-output")
    return QuadraticForm(terms=(Factored(weight=as_expression(weight, a.size), left=a, right=b, rule=rule),))


def values_of(model: Model, vector: Array) -> Mapping[Variable, Array]:
    """Split one long vector, in the order of model.variables."""
    values: dict[Variable, Array] = {}
    start = 0
    for v in model.variables:
        values[v] = np.asarray(vector[start : start + v.size], dtype=np.float64)
        start += v.size
    return values
