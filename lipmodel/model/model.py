"""The model: variables, signals, constraints function-in-set, one linear objective and the map from it to a bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lipmodel.errors import UsageError
from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
from lipmodel.model.terms import Factored, Rule, all_variables
from lipmodel.model.variables import Expression, Variable, as_expression
from lipmodel.spec import as_norm

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
        raise TypeError("a constraint has no truth value: pass it to Model.require")


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
        """An auxiliary signal, the unit ball of a dual norm for instance; its products with the output are certified."""
        signal = Signal(name=name, size=int(size))
        self.signals.append(signal)
        return LinearForm.of(signal, role="dual")

    def variable(self, name: str, size: int = 1, *, nonnegative: bool = False) -> Expression:
        """A vector of `size` decision variables."""
        if any(v.name == name for v in self.variables):
            name = f"{name}_{len(self.variables)}"
        variable = Variable(name=name, size=int(size), nonnegative=nonnegative)
        self.variables.append(variable)
        return Expression.of(variable)

    def symmetric(self, name: str, order: int) -> Variable:
        """A symmetric matrix variable, for a `Congruence` term."""
        variable = Variable(name=name, size=order * (order + 1) // 2, order=order)
        self.variables.append(variable)
        return variable

    def multiplier(self, activation: Any, *, tied: bool = False) -> Expression:
        """Nonnegative multipliers of an activation's quadratic constraint, one per neuron; one for all with tied=True."""
        size = activation.signal.size
        t = self.variable(f"t_{activation.name}", 1 if tied else size, nonnegative=True)
        return t.spread(size)

    def ball(self, form: LinearForm, norm: Any) -> tuple[QuadraticForm, Expression]:
        """A weighted square sum kappa_i form_i^2, and the price at which it is at most 1/2 on the unit ball of the norm.

        norm 2: one variable kappa, price kappa/2. norm inf: one kappa_i per entry, price (sum kappa)/2.
        The l1 ball has no such form: its programs are solved column by column. Raises UsageError.
        """
        norm = as_norm(norm)
        if norm == "1":
            raise UsageError("the l1 ball has no diagonal quadratic form: use one program per column (input) or row (output)")
        name = "kappa" if form.role == "input" else "sigma" if form.role == "dual" else "ball"
        weight = self.variable(name, 1 if norm == "2" else form.size, nonnegative=True)
        return inner(form, form, weight=weight.spread(form.size)), weight.sum() * 0.5

    def require(self, constraint: Constraint) -> None:
        """Add a constraint such as `form >= 0` or `expression >= 0`. Raises TypeError."""
        if not isinstance(constraint, Constraint):
            raise TypeError(f"require expects a constraint such as `form >= 0`, got {constraint!r}")
        self.constraints.append(constraint)
        self._adopt(constraint)

    def minimize(self, objective: Any, *, bound: BoundMap = "identity") -> None:
        """The linear objective, and how the bound follows from it: itself, or its square root (where L^2 is minimised)."""
        if bound not in ("identity", "sqrt"):
            raise UsageError(f"bound={bound!r}: the map from objective to bound is 'identity' or 'sqrt'")
        expression = as_expression(objective, 1)
        self.objective = expression
        self.bound = bound
        self._adopt(Constraint(function=expression, set=Zero()))

    def _adopt(self, constraint: Constraint) -> None:
        f = constraint.function
        used = all_variables(f.terms) if isinstance(f, QuadraticForm) else tuple(f.coefficients)
        self.variables.extend(v for v in used if v not in self.variables)
        if isinstance(f, QuadraticForm):
            self.signals.extend(s for s in f.signals if s not in self.signals)

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
        if not self.matrix_constraints:
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


def _predicted(term: Any) -> int:
    if isinstance(term, Factored):
        left = sum(m.entries for m in term.left.blocks.values()) / max(1, term.size)
        right = sum(m.entries for m in term.right.blocks.values()) / max(1, term.size)
        return int(term.size * left * right)
    if hasattr(term, "form"):
        n = sum(m.entries for m in term.form.blocks.values())
        return int(n * n)
    return sum(len(t.value) for t in term.entries)


def inner(a: LinearForm, b: LinearForm, weight: Any = 1.0) -> QuadraticForm:
    """sum_i weight_i a_i b_i, the primitive under every quadratic form; weight affine in the variables.

    Products of the marked input, output and dual signals carry a rule, so that they can be certified; all other
    products are the user's own statement.
    """
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
