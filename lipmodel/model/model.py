"""The model: variables, signals, constraints function-in-set, one linear objective and the map from it to a bound."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import UsageError
from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
from lipmodel.model.sets import CONES, PSD, FormSet, SparsePSD, VectorSet
from lipmodel.model.terms import Congruence, Factored, Rule, Term, all_variables
from lipmodel.model.variables import Expression, Variable, as_expression
from lipmodel.spec import as_norm

if TYPE_CHECKING:
    from lipmodel.network.increments import SlopeRestricted
    from lipmodel.rounds import State

Array = np.ndarray[Any, Any]
BoundMap = Literal["identity", "sqrt"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constraint:
    """function in set: a QuadraticForm in a cone of forms, or an Expression in a cone of vectors."""

    function: QuadraticForm | Expression
    set: FormSet | VectorSet

    def __bool__(self) -> bool:
        raise UsageError("a constraint has no truth value: pass it to Model.require")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Predicted sizes of a model: numbers of scalar variables, orders of the PSD constraints, all coefficients.

    dominant: orders of the matrices that are (scaled) diagonally dominant; linear: entries of vectors in cones.
    """

    variables: int
    psd: tuple[int, ...]
    linear: int
    coefficients: int
    dominant: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Model:
    """A solver-agnostic conic model whose matrix constraints are quadratic forms in named signals.

    State it with `signal`, `variable`, `multiplier`, `ball`, `require`, `minimize`; print it with `str`.
    refine: where a better model of the same constant may follow, what states it once this one is solved (cutting
    planes); it is given what is known by then, and returns a model, or None to end. Every model is proved by itself.
    """

    name: str
    signals: list[Signal] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    objective: Expression | None = None
    bound: BoundMap = "identity"
    refine: Callable[[State], Model | None] | None = None

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
        """Nonnegative multipliers of an activation's quadratic constraint: one per neuron, or (tied) one for all.

        Where neurons act in groups (Softmax, ...) there is one per group.
        """
        size, groups = activation.signal.size, activation.groups
        if tied or groups is None:
            return self.variable(f"t_{activation.name}", 1 if tied else size, nonnegative=True).spread(size)
        _, group = np.unique(groups, return_inverse=True)
        t = self.variable(f"t_{activation.name}", int(group.max()) + 1, nonnegative=True)
        every: Expression = sp.csr_array((np.ones(size), (np.arange(size), group)), shape=(size, t.size)) @ t
        return every

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

    def require(
        self,
        constraint: Constraint,
        *,
        cliques: str | Sequence[Sequence[LinearForm | Signal]] | None = None,
        merge: bool = True,
        cone: str = "psd",
    ) -> None:
        """Add a constraint such as `form >= 0`, `expression >= 0` or `expression.equals(0)`.

        Of a quadratic form: cliques="auto" (or groups of signals that cover its products) takes it apart into one
        smaller matrix per clique, equivalently, with `merge` merging those that are cheaper together; cone="dd" or
        "sdd" replaces positive semidefinite by (scaled) diagonally dominant, which is stronger. Raises UsageError.
        """
        if not isinstance(constraint, Constraint):
            raise UsageError(
                f"require expects a constraint such as `form >= 0` (or `expression.equals(0)`), got {constraint!r}"
            )
        constraint = _in_cone(constraint, cliques, merge, cone)
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
        """The quadratic forms required to be nonnegative, in whichever cone."""
        return [c.function for c in self.constraints if isinstance(c.function, QuadraticForm)]

    @property
    def psd_forms(self) -> list[QuadraticForm]:
        """The quadratic forms required to be positive semidefinite and nothing more."""
        pairs = [(c.function, c.set) for c in self.constraints]
        return [f for f, kind in pairs if isinstance(f, QuadraticForm) and isinstance(kind, PSD | SparsePSD)]

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
        forms = [(c.function, c.set) for c in self.constraints if isinstance(c.function, QuadraticForm)]
        psd = tuple(order_of(f) for f, kind in forms if isinstance(kind, PSD | SparsePSD))
        dominant = tuple(order_of(f) for f, kind in forms if not isinstance(kind, PSD | SparsePSD))
        linear = sum(c.function.size for c in self.constraints if isinstance(c.function, Expression))
        count = sum(predicted_coefficients(f) for f, _ in forms)
        variables = sum(v.size for v in self.variables)
        return Sizes(variables=variables, psd=psd, linear=linear, coefficients=count, dominant=dominant)

    def __str__(self) -> str:
        from lipmodel.model.render import model_text

        return model_text(self)


def order_of(form: QuadraticForm) -> int:
    """The order of the form's matrix."""
    return sum(s.size for s in form.signals)


def predicted_coefficients(form: QuadraticForm) -> int:
    """About how many coefficients the form expands into, without expanding it."""
    return sum(_predicted(t) for t in form.terms)


def _predicted(term: Term) -> int:
    if isinstance(term, Factored):
        return int(_entries(term.left) * _entries(term.right) / max(1, term.size))
    if isinstance(term, Congruence):
        return (_entries(term.form) ** 2 + _entries(term.form)) // 2
    return sum(len(t.value) for t in term.triplets())


def _entries(form: LinearForm) -> int:
    return sum(m.entries for m in form.blocks.values())


def _in_cone(constraint: Constraint, cliques: Any, merge: bool, cone: str) -> Constraint:
    """The constraint in the set that `require` is told. Raises UsageError."""
    if cone not in CONES:
        raise UsageError(f"cone={cone!r}: the cones of quadratic forms are {', '.join(CONES)}")
    if cliques is None and cone == "psd":
        return constraint
    form = constraint.function
    if not isinstance(form, QuadraticForm):
        raise UsageError("cliques and cone are about quadratic forms: require(form >= 0, ...)")
    if cliques is None:
        return replace(constraint, set=CONES[cone])
    if cone != "psd":
        raise UsageError(f"cone={cone!r} needs no cliques: its inequalities are as sparse as the form")
    if not isinstance(cliques, str):
        cliques = _given_cliques(form, cliques)
    elif cliques != "auto":
        raise UsageError(f"cliques={cliques!r}: write 'auto', or groups of signals such as [(system.input, act.post)]")
    return replace(constraint, set=SparsePSD(cliques=cliques, merge=bool(merge)))


def _given_cliques(form: QuadraticForm, groups: Any) -> tuple[tuple[Signal, ...], ...]:
    """Groups of signals that cover every product of the form. Raises UsageError, naming a product that is missing."""
    cliques = []
    for group in groups:
        listed = [s for g in group for s in ((g,) if isinstance(g, Signal) else getattr(g, "signals", (g,)))]
        if not all(isinstance(s, Signal) for s in listed):
            raise UsageError(f"a clique is a group of signals such as (system.input, act.post), not {group!r}")
        cliques.append(tuple(s for s in dict.fromkeys(listed) if s in form.signals))
    for a, b in {pair for t in form.terms for pair in t.pattern()}:
        if not any(a in c and b in c for c in cliques):
            raise UsageError(f"no clique holds both {a!r} and {b!r}, whose product is in the form")
    return tuple(c for c in cliques if c)


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
