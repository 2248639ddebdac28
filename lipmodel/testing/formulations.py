"""The conformance suite of formulations: what they state is solved, proved, and compared with exhaustive enumeration.

    @pytest.mark.parametrize("check", formulation_checks(), ids=str)
    def test_my_formulation(check):
        check(MyFormulation())

A formulation that fails "enumeration-..." claims less than the constant of some network: it states something false.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.backends import backend as find_backend
from lipmodel.backends.base import Backend, SolveOptions
from lipmodel.certify.evidence import Evidence
from lipmodel.certify.extract import extract
from lipmodel.certify.lmi import Multipliers
from lipmodel.certify.norm_rules import NORM_RULES, prove_expression
from lipmodel.certify.repair import prove, prove_closed_form
from lipmodel.errors import UsageError
from lipmodel.formulation import Formulation
from lipmodel.model.model import Model
from lipmodel.model.norm_expression import NormExpression
from lipmodel.network.increments import IncrementSystem, float_system
from lipmodel.network.linear import Selection
from lipmodel.spec import NORMS, Norm, Spec, as_norm
from lipmodel.testing.networks import KINDS, formal_constant, random_system, rescaled

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]
PLAIN = "one-layer"
"""The networks that no formulation refuses: one hidden layer."""
ROUNDING = 1e-9
"""What the enumeration, in floating point, may be off by, relatively."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormulationCheck:
    """One named check; called with a formulation (and a backend), it raises AssertionError where that does not fit."""

    name: str
    run: Callable[[Formulation, Backend], None]

    def __str__(self) -> str:
        return self.name

    def __call__(self, formulation: Formulation, backend: str | Backend = "clarabel") -> None:
        self.run(formulation, find_backend(backend))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """claim: the bound by the formulation's own objective; proved: by the known inequalities alone, from its point."""

    claim: float
    proved: float


def answer(formulation: Formulation, system: IncrementSystem, p: Norm, q: Norm, backend: Backend) -> Answer:
    """Build, solve and prove one program. Raises AssertionError where nothing comes of it."""
    built = formulation.build(system, Spec(input_norm=p, output_norm=q))
    if isinstance(built, NormExpression):
        value = built.evaluate()
        proved = prove_expression(built, system, (p, q)).bound if built.rule in NORM_RULES else value
        return Answer(claim=value, proved=proved)
    if isinstance(built, Evidence):
        found = built.prove(system, (p, q), math.inf)
        assert found is not None, "nothing follows from the evidence"
        return Answer(claim=found.bound if built.claim is None else built.claim, proved=found.bound)
    matrices = float_system(system)
    if isinstance(built, Iterator):
        built = min(built, key=lambda m: m.claim(p, q), default=None)
        assert built is not None, "no multipliers were given"
    if isinstance(built, Multipliers):
        proof = prove_closed_form(matrices, p, q, built, formulation.name)
        assert proof is not None, "nothing follows from the multipliers"
        return Answer(claim=proof.bound, proved=proof.bound)
    assert isinstance(built, Model), f"build returned a {type(built).__name__}"
    built.check()
    refusal = backend.refuses(built)
    assert refusal is None, f"the backend {backend.name!r} refuses the model: {refusal}"
    point = backend.solve(built, SolveOptions())
    assert point.values is not None, f"the solver found nothing ({point.message}): infeasible or unbounded as stated?"
    assert point.objective is not None, "the solver found nothing"
    multipliers, _ = extract(built, system, point.values)
    proof = prove(matrices, p, q, [(formulation.name, multipliers)], closed="doubt")
    assert proof is not None, "nothing could be proved from the solver's point"
    return Answer(claim=built.bound_of(point.objective), proved=proof.bound)


def formulation_checks() -> list[FormulationCheck]:
    """All checks; each runs over the norm pairs that the formulation declares."""
    checks = [FormulationCheck(name="declaration", run=_declaration)]
    checks += [FormulationCheck(name=f"enumeration-{kind}", run=_enumeration(kind, 3, 2)) for kind in KINDS]
    checks += [
        FormulationCheck(name="enumeration-one-output", run=_enumeration("mixed", 3, 1)),
        FormulationCheck(name="enumeration-one-input", run=_enumeration("residual", 1, 2)),
        FormulationCheck(name="scaling", run=_scaling),
        FormulationCheck(name="permutation", run=_permutation),
        FormulationCheck(name="repeatable", run=_repeatable),
    ]
    return checks


def _pairs(formulation: Formulation) -> Iterator[tuple[Norm, Norm]]:
    for p, q in sorted(formulation.norms):
        yield as_norm(p), as_norm(q)


def _tolerance(backend: Backend) -> float:
    return max(1e-6, 10.0 * backend.capabilities.precision)


def _declaration(formulation: Formulation, backend: Backend) -> None:
    del backend
    cls = type(formulation)
    assert cls.name, "a formulation has a name"
    assert cls.name == cls.name.strip().lower(), "the name is lower case, as it is typed"
    assert cls.norms, "it declares the norm pairs that it states"
    assert all(p in NORMS and q in NORMS for p, q in cls.norms), "norms are '1', '2' and 'inf'"
    try:
        as_norm(cls.default_norm)
    except UsageError as error:
        raise AssertionError(f"default_norm: {error}") from None
    assert cls.__doc__, "a docstring says what it is, and from which paper"
    for option in dataclasses.fields(cls):  # type: ignore[arg-type]
        assert option.metadata.get("help"), f"the option {option.name} has a line of help: lm.option(default, help=...)"


def _enumeration(kind: str, inputs: int, outputs: int) -> Callable[[Formulation, Backend], None]:
    """Neither the claim nor the proved bound is below the maximum over all slopes."""

    def run(formulation: Formulation, backend: Backend) -> None:
        for seed in (0, 1):
            system = random_system(kind, seed, inputs=inputs, outputs=outputs)
            for p, q in _pairs(formulation):
                formal = formal_constant(system, p, q)
                try:
                    found = answer(formulation, system, p, q, backend)
                except UsageError:
                    if kind == PLAIN:
                        raise
                    return  # a formulation of chains may say so
                where = f"{p}->{q} on random_system({kind!r}, {seed}, inputs={inputs}, outputs={outputs})"
                assert found.proved >= formal * (1.0 - ROUNDING), f"{where}: {found.proved!r} proved of {formal!r}"
                least = formal * (1.0 - _tolerance(backend))
                assert found.claim >= least, (
                    f"{where}: the formulation claims {found.claim!r} where {formal!r} is attained"
                )

    return run


def _scaling(formulation: Formulation, backend: Backend) -> None:
    """Inputs four times, outputs a thousandth as large: so is the bound."""
    _compare(formulation, backend, lambda s: rescaled(s, inputs=4.0, outputs=2.0**-10), 2.0**-8, "a rescaled network")


def _permutation(formulation: Formulation, backend: Backend) -> None:
    """The order of inputs and outputs does not matter."""

    def permuted(system: IncrementSystem) -> IncrementSystem:
        turned = system.restrict_input(_reversal(system.input.size))
        return turned.restrict_output(_reversal(system.output.size))

    _compare(formulation, backend, permuted, 1.0, "a network with its inputs and outputs reversed")


def _reversal(n: int) -> Selection:
    return Selection(index=np.arange(n)[::-1].copy(), size=n)


def _compare(
    formulation: Formulation,
    backend: Backend,
    change: Callable[[IncrementSystem], IncrementSystem],
    factor: float,
    what: str,
) -> None:
    for kind in (PLAIN, "residual"):
        system = random_system(kind, 3)
        for p, q in _pairs(formulation):
            try:
                before = answer(formulation, system, p, q, backend)
            except UsageError:
                if kind == PLAIN:
                    raise
                return
            after = answer(formulation, change(system), p, q, backend)
            expected = factor * before.claim
            tolerance = 10.0 * _tolerance(backend) * expected
            assert abs(after.claim - expected) <= tolerance, f"{p}->{q}: {what} has {after.claim!r}, not {expected!r}"


def _repeatable(formulation: Formulation, backend: Backend) -> None:
    """Building leaves the system as it was, and does the same twice."""
    del backend
    for kind in (PLAIN, "mixed", "concat"):
        system = random_system(kind, 4)
        before = _blocks(system)
        for p, q in _pairs(formulation):
            spec = Spec(input_norm=p, output_norm=q)
            try:
                first, second = (_stated(formulation.build(system, spec)) for _ in range(2))
            except UsageError:
                if kind == PLAIN:
                    raise
                continue
            assert first == second, "the same system gives the same statement"
        after = _blocks(system)
        assert len(before) == len(after), "build leaves the system alone"
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)), "build leaves the system alone"


def _stated(built: Any) -> str:
    if isinstance(built, Multipliers):
        return str([v.tolist() for v in (*built.t, built.g, built.s)])
    if isinstance(built, Iterator):
        return _stated(next(built))
    return built.describe() if isinstance(built, Evidence) else str(built)


def _blocks(system: IncrementSystem) -> Sequence[Array]:
    forms = [*(a.pre for a in system.activations), system.output]
    found = [m.enclosure().dense().center.copy() for form in forms for m in form.blocks.values()]
    return [*found, *(a.alpha.copy() for a in system.activations), *(a.beta.copy() for a in system.activations)]
