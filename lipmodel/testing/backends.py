"""The conformance suite of backends: small problems with known optima, and everything that may go wrong.

    @pytest.mark.parametrize("check", backend_checks(), ids=str)
    def test_my_backend(check):
        reason = check(MyBackend())
        if reason is not None:
            pytest.skip(reason)

A structured backend may refuse a model, with a reason; a general one may not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.backends.base import Backend, Installed, Missing, Point, SolveOptions, Unlicensed
from lipmodel.errors import UsageError
from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
from lipmodel.model.model import Model, inner
from lipmodel.model.qc import slope_restricted
from lipmodel.model.terms import Congruence
from lipmodel.model.variables import Expression
from lipmodel.network.increments import IncrementSystem, SlopeRestricted
from lipmodel.network.linear import Diagonal, compose
from lipmodel.testing.networks import formal_constant, random_system

if TYPE_CHECKING:
    from lipmodel.spec import Norm

Array = np.ndarray[Any, Any]
TERMINATIONS = ("optimal", "inaccurate", "time-limit", "iteration-limit", "interrupted", "failed")
UNFINISHED = 1e-3
"""How far, relatively, a point may be from satisfying its constraints where the solver says it is optimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendCheck:
    """One named check; calling it with a backend raises AssertionError where the backend does not conform.

    It returns the reason for which a structured backend refuses the model, or None.
    """

    name: str
    run: Callable[[Backend], str | None]

    def __str__(self) -> str:
        return self.name

    def __call__(self, backend: Backend) -> str | None:
        return self.run(backend)


def backend_checks() -> list[BackendCheck]:
    """All checks; each builds its own problem and takes well under a second with an interior-point solver."""
    checks = [BackendCheck(name="declaration", run=_declaration)]
    checks += [BackendCheck(name=name, run=_optimum(problem)) for name, problem in _PROBLEMS.items()]
    for kind, (p, q) in itertools.product(("chain", "mixed", "residual", "scaled"), _PAIRS):
        checks.append(BackendCheck(name=f"{kind}-{p}-{q}", run=_certifiable(kind, p, q)))
    checks += [BackendCheck(name=name, run=run) for name, run in _CONDUCT.items()]
    return checks


# -------------------------------------------------------------------------------- problems of known optimum

_PAIRS: tuple[tuple[Norm, Norm], ...] = (("2", "2"), ("inf", "1"), ("inf", "2"), ("2", "1"))


def decoupled(gains: Array, alpha: Array, beta: Array, splits: int = 1) -> IncrementSystem:
    """n independent chains y_i = a_i s_i ... s_i x_i with `splits` activations each; its constants are known.

    gains: the products of the weights, shape (n,); the weights themselves are of very different sizes.
    """
    n = len(gains)
    x = Signal(name="x", size=n)
    form, activations = LinearForm.of(x), []
    for k in range(splits):
        weights = Diagonal(values=2.0 ** np.round(8.0 * np.sin(1.0 + k + np.arange(n))))
        gains = gains / weights.values
        signal = Signal(name=f"w{k + 1}", size=n)
        pre = LinearForm(size=n, blocks={s: compose(weights, m) for s, m in form.blocks.items()})
        form = LinearForm.of(signal)
        activations.append(
            SlopeRestricted(name=f"layer{k + 1}", signal=signal, pre=pre, post=form, alpha=alpha, beta=beta)
        )
    output = {s: compose(Diagonal(values=gains), m) for s, m in form.blocks.items()}
    return IncrementSystem(
        signals=(x, *(a.signal for a in activations)),
        input=LinearForm.of(x, role="input"),
        activations=tuple(activations),
        output=LinearForm(size=n, blocks=output, role="output"),
    )


def lipsdp(system: IncrementSystem, *, tied: bool = False) -> Model:
    """rho |x|^2 - |y|^2 - sum t_j q_j >= 0, minimise rho; the bound is its root (Fazlyab et al. 2019, 1906.04893)."""
    m = Model("lipsdp")
    ball, price = m.ball(system.input, "2")
    form = ball - inner(system.output, system.output)
    for a in system.activations:
        form -= slope_restricted(a, m.multiplier(a, tied=tied))
    m.require(form >= 0)
    m.minimize(2 * price, bound="sqrt")
    return m


def mixed_norm(system: IncrementSystem, p: Norm, q: Norm) -> Model:
    """The program of Wang, Prakriya & Jha (2022, arXiv 2203.01212) for p in {2, inf}, q in {1, 2}."""
    m = Model("mixed-norm")
    dual = m.signal("dual", system.output.size)
    ball_in, price_in = m.ball(system.input, p)
    ball_out, price_out = m.ball(dual, "inf" if q == "1" else "2")
    form = ball_in + ball_out - 2 * inner(dual, system.output)
    for a in system.activations:
        form -= slope_restricted(a, m.multiplier(a))
    m.require(form >= 0)
    m.minimize(price_in + price_out)
    return m


_GAINS = np.array([3.0, -1.5, 0.25])
_SLOPES = {
    "relu": (np.zeros(3), np.ones(3)),
    "mixed-signs": (np.array([-1.0, -0.13, -0.5]), np.array([1.0, 1.13, 0.25])),
    "one-sign": (np.array([0.01, 0.5, 0.9]), np.ones(3)),
}
Problem = Callable[[], tuple[Model, float]]


def _independent(slopes: str, p: Norm, q: Norm, splits: int) -> Problem:
    """Independent chains: the relaxation is exact, |a_i| max(|alpha|, |beta|)^splits each."""

    def problem() -> tuple[Model, float]:
        alpha, beta = _SLOPES[slopes]
        system = decoupled(_GAINS, alpha, beta, splits)
        each = np.abs(_GAINS) * np.maximum(np.abs(alpha), np.abs(beta)) ** splits
        if (p, q) == ("2", "2"):
            return lipsdp(system), float(each.max())
        return mixed_norm(system, p, q), float(each.sum() if (p, q) == ("inf", "1") else np.linalg.norm(each))

    return problem


def _tied() -> tuple[Model, float]:
    """One t for both neurons: rho = min over t of max_i (t a_i)^2 / (2 t - c_i^2)."""
    a, c = np.array([2.0, 0.5]), np.array([1.0, 3.0])
    system = decoupled(a * c, np.zeros(2), np.ones(2))
    x, w = system.signals
    pre = LinearForm(size=2, blocks={x: Diagonal(values=a)})
    (old,) = system.activations
    activation = SlopeRestricted(name=old.name, signal=w, pre=pre, post=old.post, alpha=old.alpha, beta=old.beta)
    output = LinearForm(size=2, blocks={w: Diagonal(values=c)}, role="output")
    tied = IncrementSystem(signals=system.signals, input=system.input, activations=(activation,), output=output)

    def rho(t: float) -> float:
        return float(np.max((t * a) ** 2 / (2.0 * t - c**2)))

    low, high = 4.5 + 1e-9, 100.0
    for _ in range(200):  # rho is convex
        left, right = low + (high - low) / 3.0, high - (high - low) / 3.0
        low, high = (low, right) if rho(left) <= rho(right) else (left, high)
    return lipsdp(tied, tied=True), math.sqrt(rho(low))


def _linear_map() -> tuple[Model, float]:
    """No activation: the spectral norm."""
    weights = np.random.default_rng(1).standard_normal((3, 5))
    x = Signal(name="x", size=5)
    output = weights @ LinearForm.of(x)
    system = IncrementSystem(
        signals=(x,),
        input=LinearForm.of(x, role="input"),
        activations=(),
        output=LinearForm(size=3, blocks=output.blocks, role="output"),
    )
    return lipsdp(system), float(np.linalg.norm(weights, 2))


def _hyperbola(*, equality: bool) -> tuple[Model, float]:
    """Minimise u subject to [[u, 1], [1, v]] >= 0 and v = 4 or 3 v <= 12, u and v free: u = 1/4."""
    m = Model("hyperbola")
    a, b = m.signal("a", 1), m.signal("b", 1)
    u, v = m.variable("u"), m.variable("v")
    m.require(inner(a, a, weight=u) + 2 * inner(a, b) + inner(b, b, weight=v) >= 0)
    m.require(v.equals(4.0) if equality else 3 * v <= 12.0)
    m.minimize(u)
    return m, 0.25


def _shifted() -> tuple[Model, float]:
    """A free variable with a negative optimum, and a constant in the objective: min u - 3, u >= largest of -A's."""
    m = Model("shifted")
    z = m.signal("z", 3)
    matrix = np.array([[-2.0, 0.5, 0.0], [0.5, -3.0, 0.1], [0.0, 0.1, -4.0]])
    u = m.variable("u")
    m.require(inner(z, z, weight=u.spread(3)) - inner(z, matrix @ z) >= 0)
    m.minimize(u - 3.0)
    return m, float(np.linalg.eigvalsh(matrix)[-1]) - 3.0


def _positive_part() -> tuple[Model, float]:
    """Minimise tr X subject to X >= A and X >= 0, X a symmetric matrix: the sum of A's positive eigenvalues."""
    m = Model("positive-part")
    z = m.signal("z", 4)
    matrix = np.random.default_rng(2).standard_normal((4, 4))
    matrix = matrix + matrix.T
    x = m.symmetric("X", 4)
    gram = QuadraticForm(terms=(Congruence(form=z, matrix=x),))
    m.require(gram - inner(z, matrix @ z) >= 0)
    m.require(gram >= 0)
    cols, rows = np.triu_indices(4)
    m.minimize(Expression.of(x)[np.flatnonzero(rows == cols)].sum())
    return m, float(np.sum(np.maximum(np.linalg.eigvalsh(matrix), 0.0)))


def _two_blocks() -> tuple[Model, float]:
    """One variable in two matrix inequalities of its own signals: the larger of two spectral norms, squared."""
    m = Model("two-blocks")
    rng = np.random.default_rng(3)
    rho, norms = m.variable("rho", nonnegative=True), []
    for name, size in (("a", 3), ("b", 2)):
        z, weights = m.signal(name, size), rng.standard_normal((4, size))
        m.require(inner(z, z, weight=rho.spread(size)) - inner(weights @ z, weights @ z) >= 0)
        norms.append(float(np.linalg.norm(weights, 2)))
    m.minimize(rho, bound="sqrt")
    return m, max(norms)


_PROBLEMS: dict[str, Problem] = {
    **{
        f"independent-{slopes}-{p}-{q}-depth{splits}": _independent(slopes, p, q, splits)
        for slopes in _SLOPES
        for p, q in _PAIRS
        for splits in (1, 3)
    },
    "tied-multipliers": _tied,
    "linear-map": _linear_map,
    "equality-row": lambda: _hyperbola(equality=True),
    "inequality-row": lambda: _hyperbola(equality=False),
    "free-variable": _shifted,
    "matrix-variable": _positive_part,
    "two-blocks": _two_blocks,
}


def _optimum(problem: Problem) -> Callable[[Backend], str | None]:
    def run(backend: Backend) -> str | None:
        model, expected = problem()
        before = str(model)
        refusal = _refusal(backend, model)
        if refusal is not None:
            return refusal
        point = backend.solve(model, SolveOptions())
        assert str(model) == before, "solving leaves the model as it was"
        _check_point(model, point, backend)
        finished = ("optimal", "inaccurate", "iteration-limit")
        assert point.termination in finished, f"termination {point.termination} ({point.message})"
        assert point.objective is not None, "a solved problem has an objective"
        tolerance = _tolerance(backend) * max(abs(expected), 1e-3)
        claim = model.bound_of(point.objective)
        assert abs(claim - expected) <= tolerance, f"the optimum is {expected!r}, not {claim!r}"
        return None

    return run


def _certifiable(kind: str, p: Norm, q: Norm) -> Callable[[Backend], str | None]:
    """On random networks the proved bound is about what the solver claims, and never below the formal constant."""

    def run(backend: Backend) -> str | None:
        from lipmodel.certify.extract import extract
        from lipmodel.certify.repair import prove
        from lipmodel.network.increments import float_system

        for seed in range(2):
            system = random_system(kind, seed)
            model = lipsdp(system) if (p, q) == ("2", "2") else mixed_norm(system, p, q)
            refusal = _refusal(backend, model)
            if refusal is not None:
                return refusal
            point = backend.solve(model, SolveOptions())
            _check_point(model, point, backend)
            assert point.values is not None, f"no point ({point.message})"
            assert point.objective is not None, "a point comes with its objective"
            claim, tolerance = model.bound_of(point.objective), _tolerance(backend)
            multipliers, own = extract(model, system, point.values)
            assert not own, "every term follows a rule"
            proved = prove(float_system(system), p, q, [(backend.name, multipliers)], closed="doubt")
            assert proved is not None, "nothing could be proved from the point"
            formal = formal_constant(system, p, q)
            assert proved.bound >= formal * (1.0 - 1e-9), f"the bound {proved.bound!r} is below {formal!r}"
            assert claim >= formal * (1.0 - tolerance), f"the claim {claim!r} is below {formal!r}"
            assert proved.bound <= claim * (1.0 + 10.0 * tolerance), f"{proved.bound!r} was proved of {claim!r}"
        return None

    return run


# -------------------------------------------------------------------------------- conduct


def _declaration(backend: Backend) -> None:
    assert isinstance(backend, Backend), "a backend has name, description, capabilities, available, refuses and solve"
    assert backend.name, "a backend has a name"
    assert backend.name == backend.name.strip().lower(), "a name is lower case, as it is typed"
    assert backend.description, "a backend has a description"
    assert isinstance(backend.available(), Installed | Missing | Unlicensed), "available says which of the three it is"
    assert 0.0 < backend.capabilities.precision < 1.0, "the precision is relative"
    assert backend.capabilities.max_order >= 1, "the largest order is positive"


def _infeasible(backend: Backend) -> str | None:
    """-(1 + u) |z|^2 >= 0 with u >= 0."""
    m = Model("infeasible")
    z = m.signal("z", 2)
    u = m.variable("u", nonnegative=True)
    m.require(inner(z, z, weight=(-1.0 - u).spread(2)) >= 0)
    m.minimize(u)
    return _hopeless(backend, m)


def _unbounded(backend: Backend) -> str | None:
    """(1 + u) |z|^2 >= 0, minimise -u."""
    m = Model("unbounded")
    z = m.signal("z", 2)
    u = m.variable("u", nonnegative=True)
    m.require(inner(z, z, weight=(1.0 + u).spread(2)) >= 0)
    m.minimize(-u)
    return _hopeless(backend, m)


def _hopeless(backend: Backend, model: Model) -> str | None:
    refusal = _refusal(backend, model)
    if refusal is None:
        point = backend.solve(model, SolveOptions(time_limit=10.0))
        assert point.termination in TERMINATIONS, f"unknown termination {point.termination!r}"
        assert point.termination != "optimal", "a problem without a solution has no optimum"
        assert point.objective is None or math.isfinite(point.objective), "an objective is finite or absent"
    return refusal


def _limited(options: SolveOptions) -> Callable[[Backend], str | None]:
    """Whatever the limits, a point of the right form or none comes back, and nothing is raised."""

    def run(backend: Backend) -> str | None:
        model = mixed_norm(random_system("mixed", 5), "inf", "2")
        refusal = _refusal(backend, model)
        if refusal is None:
            _check_point(model, backend.solve(model, options), backend)
        return refusal

    return run


def _unknown_option(backend: Backend) -> str | None:
    model = lipsdp(random_system("chain", 1))
    refusal = _refusal(backend, model)
    if refusal is not None:
        return refusal
    try:
        backend.solve(model, SolveOptions(native={"no_such_option": 1}))
    except UsageError as error:
        message = str(error)
    else:
        message = ""
    assert "no_such_option" in message, "an option that the solver does not have is a UsageError that names it"
    return None


def _repeatable(backend: Backend) -> str | None:
    model = lipsdp(random_system("mixed", 2))
    refusal = _refusal(backend, model)
    if refusal is None:
        first, second = (backend.solve(model, SolveOptions()) for _ in range(2))
        assert first.termination == second.termination, "the same problem ends the same way"
        assert first.objective is not None, "a solved problem has an objective"
        assert second.objective is not None, "a solved problem has an objective"
        assert abs(first.objective - second.objective) <= 1e-9 * abs(first.objective), "and has the same answer"
    return refusal


def _tolerated(backend: Backend) -> str | None:
    """A loose tolerance is still a good point."""
    model, expected = _independent("relu", "2", "2", 3)()
    refusal = _refusal(backend, model)
    if refusal is None:
        point = backend.solve(model, SolveOptions(tol=1e-2))
        _check_point(model, point, backend)
        assert point.objective is not None, "a solved problem has an objective"
        assert abs(model.bound_of(point.objective) - expected) <= 0.05 * expected, "the tolerance is relative"
    return refusal


_CONDUCT: dict[str, Callable[[Backend], str | None]] = {
    "infeasible": _infeasible,
    "unbounded": _unbounded,
    "time-limit": _limited(SolveOptions(time_limit=1e-9)),
    "short-time": _limited(SolveOptions(time_limit=0.02)),
    "one-iteration": _limited(SolveOptions(max_iterations=1)),
    "unknown-option": _unknown_option,
    "repeatable": _repeatable,
    "loose-tolerance": _tolerated,
}


def _refusal(backend: Backend, model: Model) -> str | None:
    reason = backend.refuses(model)
    if reason is not None:
        assert backend.capabilities.structured, f"only a structured backend may refuse a small model: {reason}"
        assert reason.strip(), "a refusal has a reason"
    return reason


def _tolerance(backend: Backend) -> float:
    return max(1e-6, 10.0 * backend.capabilities.precision)


def _check_point(model: Model, point: Point, backend: Backend) -> None:
    """Shapes, finite numbers, an objective that is that of the values, and, if optimal, constraints that hold."""
    assert point.termination in TERMINATIONS, f"unknown termination {point.termination!r}"
    for value in (point.objective, point.lower):
        assert value is None or math.isfinite(value), "an objective is finite or absent"
    if point.values is None:
        assert point.termination != "optimal", "an optimum comes with a point"
        return
    assert set(point.values) == set(model.variables), "a point has all variables of the model, and no others"
    for v, x in point.values.items():
        assert np.shape(x) == (v.size,), f"{v!r} has a value of shape {np.shape(x)}"
        assert np.all(np.isfinite(x)), f"{v!r} has a value that is not finite"
    if point.termination != "optimal":
        return
    tolerance = _tolerance(backend)
    assert model.objective is not None
    assert point.objective is not None, "an optimum comes with its objective"
    value = float(model.objective.value(point.values)[0])
    scale = max(abs(value), abs(point.objective), 1e-9)
    assert abs(value - point.objective) <= 10.0 * tolerance * scale, (
        f"objective {point.objective!r}, at the point {value!r}"
    )
    if point.lower is not None:
        assert point.lower <= point.objective + 10.0 * tolerance * scale, "the lower estimate is below the objective"
    _check_constraints(model, point.values)


def _check_constraints(model: Model, values: Any) -> None:
    for v in model.variables:
        if v.nonnegative:
            least = float(np.min(values[v]))
            assert least >= -UNFINISHED * float(np.max(np.abs(values[v]))) - 1e-9, f"{v!r} is negative: {least!r}"
    for form in model.matrix_constraints:
        matrix, moduli = _matrix(form, values), _matrix(form, values, modulus=True)
        size = np.sqrt(np.maximum(np.diag(moduli), 1e-300))
        least = float(np.linalg.eigvalsh(matrix / np.outer(size, size))[0])
        assert least >= -UNFINISHED, f"a matrix inequality is violated: {least!r} of its own size"


def _matrix(form: QuadraticForm, values: Any, *, modulus: bool = False) -> Array:
    """The symmetric matrix of a form at a point; with modulus=True the sum of the moduli of all contributions."""
    offsets, order = {}, 0
    for s in form.signals:
        offsets[s] = order
        order += s.size
    lower = np.zeros((order, order))
    for term in form.terms:
        for t in term.triplets():
            weight = t.value if t.variable is None else t.value * np.asarray(values[t.variable])[t.index]
            rows, cols = offsets[t.block[0]] + t.row, offsets[t.block[1]] + t.col
            np.add.at(lower, (np.maximum(rows, cols), np.minimum(rows, cols)), np.abs(weight) if modulus else weight)
    return lower + np.tril(lower, -1).T
