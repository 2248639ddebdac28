"""What is checked of a backend: known optima, proofs from its points, and how it behaves when something goes wrong."""

from __future__ import annotations

import itertools
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lipmodel.backends.base import Backend, Installed, Missing, Progress, SolveOptions, Unlicensed
from lipmodel.errors import UsageError
from lipmodel.model.model import Model, inner
from lipmodel.model.sets import Nonnegative, Zero
from lipmodel.testing.models import NETWORK_PROBLEMS, Problem, lipsdp, mixed_norm
from lipmodel.testing.networks import formal_constant, random_system
from lipmodel.testing.points import TERMINATIONS, check_point, tolerance_of
from lipmodel.testing.programs import PROGRAMS

if TYPE_CHECKING:
    from lipmodel.spec import Norm

Check = Callable[[Backend], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """A check of conduct, and the version of the suite that it came with."""

    run: Check
    since: int


def refused(backend: Backend, model: Model) -> str | None:
    """Why the backend refuses the model, or None. AssertionError where it has no right to."""
    reason = backend.refuses(model)
    if reason is not None:
        beyond = "psd" not in backend.capabilities.cones and not _is_linear(model)
        assert backend.capabilities.structured or beyond, f"a general backend may not refuse a small model: {reason}"
        assert reason.strip(), "a refusal has a reason"
    return reason


def _is_linear(model: Model) -> bool:
    return all(isinstance(c.set, Nonnegative | Zero) for c in model.constraints)


# -------------------------------------------------------------------------------- optima


def optimum(problem: Problem, factor: float = 1.0) -> Check:
    """The known optimum is found; factor: of the tolerance."""

    def run(backend: Backend) -> str | None:
        model, expected = problem()
        before = _fingerprint(model)
        reason = refused(backend, model)
        if reason is not None:
            return reason
        point = backend.solve(model, SolveOptions())
        assert _fingerprint(model) == before, "solving leaves the model as it was"
        check_point(model, point, backend)
        finished = ("optimal", "inaccurate", "iteration-limit")
        assert point.termination in finished, f"termination {point.termination} ({point.message})"
        assert point.objective is not None, "a solved problem has an objective"
        tolerance = factor * tolerance_of(backend) * max(abs(expected), 1e-3)
        claim = model.bound_of(point.objective)
        assert abs(claim - expected) <= tolerance, f"the optimum is {expected!r}, not {claim!r}"
        return None

    return run


def _fingerprint(model: Model) -> tuple[Any, ...]:
    """What must be the same after a solve: the text, and every coefficient."""
    triplets = (t for form in model.matrix_constraints for term in form.terms for t in term.triplets())
    return str(model), tuple(model.variables), tuple(t.value.tobytes() for t in triplets)


def certifiable(kind: str, p: Norm, q: Norm) -> Check:
    """On random networks the proved bound is about what the solver claims, and never below the formal constant."""

    def run(backend: Backend) -> str | None:
        from lipmodel.certify.extract import extract
        from lipmodel.certify.repair import prove
        from lipmodel.network.increments import float_system

        for seed in range(2):
            system = random_system(kind, seed)
            model = lipsdp(system) if (p, q) == ("2", "2") else mixed_norm(system, p, q)
            reason = refused(backend, model)
            if reason is not None:
                return reason
            point = backend.solve(model, SolveOptions())
            check_point(model, point, backend)
            assert point.values is not None, f"no point ({point.message})"
            assert point.objective is not None, "a point comes with its objective"
            claim, tolerance = model.bound_of(point.objective), tolerance_of(backend)
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
    capabilities = backend.capabilities
    assert 0.0 < capabilities.precision < 1.0, "the precision is relative"
    assert capabilities.max_order >= 1, "the largest order is positive"
    assert capabilities.form in ("geometric", "standard"), "the form is one of two"
    assert capabilities.licence, "a licence has a name"


def _declared_options(backend: Backend) -> None:
    """Options have a name of their own, a help text and a default among their choices."""
    options = backend.capabilities.options
    names = [option.name for option in options]
    assert len(set(names)) == len(names), "every option has a name of its own"
    for option in options:
        assert option.help.strip(), f"the option {option.name} says what it does"
        assert isinstance(option.default, bool | int | float | str), f"the option {option.name} has a plain default"
        assert not option.choices or option.default in option.choices, f"the default of {option.name} is a choice"


def _defaults_given(backend: Backend) -> str | None:
    """Every declared option takes its own default, and changes nothing."""
    defaults = {option.name: option.default for option in backend.capabilities.options}
    return _solved_with(backend, SolveOptions(native=defaults))


def _small(backend: Backend) -> tuple[Model, float]:
    """A small model that a backend with its cones can take."""
    if "psd" in backend.capabilities.cones or backend.capabilities.structured:
        return NETWORK_PROBLEMS["independent-relu-inf-2-depth3"]()
    return PROGRAMS["absolute-values"].problem()


def _solved_with(backend: Backend, options: SolveOptions, factor: float = 1.0) -> str | None:
    """The small model is solved to `factor` times the tolerance."""
    model, expected = _small(backend)
    reason = refused(backend, model)
    if reason is None:
        point = backend.solve(model, options)
        check_point(model, point, backend)
        assert point.objective is not None, "a solved problem has an objective"
        claim = model.bound_of(point.objective)
        assert abs(claim - expected) <= factor * tolerance_of(backend) * abs(expected), f"{claim!r}, not {expected!r}"
    return reason


def _wrong_option(backend: Backend) -> str | None:
    """A value of a wrong type is a UsageError that names the option, before anything is solved."""
    model, _ = _small(backend)
    reason = refused(backend, model)
    for option in backend.capabilities.options if reason is None else ():
        if isinstance(option.default, str) and not option.choices:
            continue
        _raises_usage_error(backend, model, option.name, "no such value")
    return reason


def _unknown_option(backend: Backend) -> str | None:
    model, _ = _small(backend)
    reason = refused(backend, model)
    if reason is None:
        _raises_usage_error(backend, model, "no_such_option", 1)
    return reason


def _raises_usage_error(backend: Backend, model: Model, name: str, value: Any) -> None:
    try:
        backend.solve(model, SolveOptions(native={name: value}))
    except UsageError as error:
        message = str(error)
    else:
        message = ""
    assert name in message, f"{name}={value!r} is a UsageError that names the option, not {message!r}"


def _infeasible() -> Model:
    """-(1 + u) |z|^2 >= 0 with u >= 0."""
    m = Model("infeasible")
    z = m.signal("z", 2)
    u = m.variable("u", nonnegative=True)
    m.require(inner(z, z, weight=(-1.0 - u).spread(2)) >= 0)
    m.minimize(u)
    return m


def _unbounded() -> Model:
    """(1 + u) |z|^2 >= 0, minimise -u."""
    m = Model("unbounded")
    z = m.signal("z", 2)
    u = m.variable("u", nonnegative=True)
    m.require(inner(z, z, weight=(1.0 + u).spread(2)) >= 0)
    m.minimize(-u)
    return m


def _contradiction() -> Model:
    """u >= 1 and u <= 0."""
    m = Model("contradiction")
    u = m.variable("u")
    m.require(u >= 1.0)
    m.require(u <= 0.0)
    m.minimize(u)
    return m


def _unbounded_rows() -> Model:
    """Minimise -u, u >= 0."""
    m = Model("unbounded-rows")
    u = m.variable("u", nonnegative=True)
    m.require(u >= -1.0)
    m.minimize(-u)
    return m


def _hopeless(make: Callable[[], Model]) -> Check:
    """What has no solution is not called optimal, and nothing is raised."""

    def run(backend: Backend) -> str | None:
        model = make()
        reason = refused(backend, model)
        if reason is None:
            point = backend.solve(model, SolveOptions(time_limit=10.0))
            assert point.termination in TERMINATIONS, f"unknown termination {point.termination!r}"
            assert point.termination != "optimal", "a problem without a solution has no optimum"
            assert point.objective is None or math.isfinite(point.objective), "an objective is finite or absent"
        return reason

    return run


def _limited(options: SolveOptions) -> Check:
    """Whatever the limits, a point of the right form or none comes back, and nothing is raised."""

    def run(backend: Backend) -> str | None:
        models = [mixed_norm(random_system("mixed", 5), "inf", "2"), PROGRAMS["absolute-values"].problem()[0]]
        reasons = [refused(backend, model) for model in models]
        for model, reason in zip(models, reasons, strict=True):
            if reason is None:
                check_point(model, backend.solve(model, options), backend)
        return None if None in reasons else reasons[0]

    return run


def _repeatable(backend: Backend) -> str | None:
    """A, then B, then A again: the same answer, whatever was solved in between."""
    model, other = _small(backend)[0], PROGRAMS["largest-eigenvalue"].problem()[0]
    reason = refused(backend, model)
    if reason is None:
        first = backend.solve(model, SolveOptions())
        if refused(backend, other) is None:
            backend.solve(other, SolveOptions())
        second = backend.solve(model, SolveOptions())
        assert first.termination == second.termination, "the same problem ends the same way"
        assert first.objective is not None, "a solved problem has an objective"
        assert second.objective is not None, "a solved problem has an objective"
        assert abs(first.objective - second.objective) <= 1e-9 * abs(first.objective), "and has the same answer"
    return reason


def _gap(backend: Backend) -> str | None:
    """What is called optimal has a lower estimate next to its objective."""
    model, expected = _small(backend)
    reason = refused(backend, model)
    if reason is None:
        point = backend.solve(model, SolveOptions())
        if point.termination == "optimal":
            assert point.lower is not None, "an optimum rests on a lower estimate"
            off = abs(model.bound_of(point.lower) - expected)
            assert off <= 10.0 * tolerance_of(backend) * abs(expected), f"the lower estimate is off by {off!r}"
    return reason


def _reports(backend: Backend) -> str | None:
    """States come in order, with numbers; they come at all exactly where progress is declared."""
    model, _ = _small(backend)
    reason = refused(backend, model)
    if reason is None:
        states: list[Progress] = []
        backend.solve(model, SolveOptions(progress=states.append))
        assert bool(states) == backend.capabilities.progress, "progress is reported where it is declared"
        for a, b in itertools.pairwise(states):
            assert a.iteration <= b.iteration, "iterations are counted upwards"
            assert a.seconds <= b.seconds + 1e-3, "time goes on"
        for state in states:
            assert not math.isnan(state.objective), "an objective is a number"
            assert not math.isnan(state.lower), "a lower estimate is a number, or -inf"
    return reason


def _interrupted(backend: Backend) -> str | None:
    """An interrupt while a state is reported stops the solve: it is raised, or said in the termination."""
    model, _ = _small(backend)
    reason = refused(backend, model)
    if reason is None and backend.capabilities.progress:

        def interrupt(state: Progress) -> None:
            raise KeyboardInterrupt

        try:
            point = backend.solve(model, SolveOptions(progress=interrupt))
        except KeyboardInterrupt:
            return None
        assert point.termination == "interrupted", f"an interrupt is not {point.termination!r}"
        check_point(model, point, backend)
    return reason


def _silent(backend: Backend) -> str | None:
    """Nothing is written to stdout, where the answer stands alone."""
    model, _ = _small(backend)
    reason = refused(backend, model)
    if reason is None:
        with _captured() as written:
            backend.solve(model, SolveOptions())
        assert not written, f"a backend is silent unless it is told otherwise: {written[0]!r}"
    return reason


@contextmanager
def _captured() -> Iterator[list[bytes]]:
    """What is written to the file descriptor of stdout, also by C libraries."""
    written: list[bytes] = []
    sys.stdout.flush()
    with tempfile.TemporaryFile() as stream:
        saved = os.dup(1)
        os.dup2(stream.fileno(), 1)
        try:
            yield written
        finally:
            sys.stdout.flush()
            os.dup2(saved, 1)
            os.close(saved)
            stream.seek(0)
            found = stream.read()
            if found:
                written.append(found)


CONDUCT: dict[str, Conduct] = {
    "declaration": Conduct(run=_declaration, since=1),
    "infeasible": Conduct(run=_hopeless(_infeasible), since=1),
    "unbounded": Conduct(run=_hopeless(_unbounded), since=1),
    "time-limit": Conduct(run=_limited(SolveOptions(time_limit=1e-9)), since=1),
    "short-time": Conduct(run=_limited(SolveOptions(time_limit=0.02)), since=1),
    "one-iteration": Conduct(run=_limited(SolveOptions(max_iterations=1)), since=1),
    "unknown-option": Conduct(run=_unknown_option, since=1),
    "repeatable": Conduct(run=_repeatable, since=1),
    "loose-tolerance": Conduct(run=lambda backend: _solved_with(backend, SolveOptions(tol=1e-2), 5e4), since=1),
    "declared-options": Conduct(run=_declared_options, since=2),
    "defaults-given": Conduct(run=_defaults_given, since=2),
    "wrong-option": Conduct(run=_wrong_option, since=2),
    "infeasible-rows": Conduct(run=_hopeless(_contradiction), since=2),
    "unbounded-rows": Conduct(run=_hopeless(_unbounded_rows), since=2),
    "no-time": Conduct(run=_limited(SolveOptions(time_limit=0.0)), since=2),
    "gap": Conduct(run=_gap, since=2),
    "progress": Conduct(run=_reports, since=2),
    "interrupt": Conduct(run=_interrupted, since=2),
    "silent": Conduct(run=_silent, since=2),
}
