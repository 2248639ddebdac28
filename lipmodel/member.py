"""One program of a family: build it, have it solved, and prove a bound from whatever comes back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.backends.base import Backend, Progress, Termination
from lipmodel.certify.certificate import lmi_proof, product_proof
from lipmodel.certify.evidence import Evidence, Proved, why_not
from lipmodel.certify.lmi import Multipliers
from lipmodel.choice import MAX_ORDER, find_point
from lipmodel.clock import Clock
from lipmodel.errors import LipmodelError, UsageError
from lipmodel.families import Member, member_spec, restricted
from lipmodel.formulation import Formulation
from lipmodel.model.model import Model
from lipmodel.model.norm_expression import NormExpression
from lipmodel.model.terms import Factored
from lipmodel.network.increments import IncrementSystem, dense_entries
from lipmodel.prover import ON_THE_WAY, Comparison, Prover
from lipmodel.rounds import by_rounds, has_pairs
from lipmodel.spec import Norm, Spec

if TYPE_CHECKING:
    from lipmodel.certify.product_rule import ProvedProduct
    from lipmodel.model.terms import Term

QUICK_ORDER = 600
"""Orders up to which a closed form is proved even where the time is over; beyond, it is the norms."""
MAX_ENTRIES = 60_000_000
"""Entries of the expanded system beyond which only norm bounds are computed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """The answer for one member.

    bound: proved by `proof`. claim: what the solver's objective says; lower: its lower estimate of the relaxation's
    optimum, as a bound. assumptions: what the proof takes from the formulation. plan: from the model to the solver.
    own: whether the bound is what the formulation itself gives, in closed form, and no better bound takes its place.
    instead: the name of what was proved where it is not the formulation's own bound: "product", or a closed form.
    """

    member: Member
    bound: float
    proof: dict[str, Any]
    claim: float | None = None
    lower: float | None = None
    termination: Termination = "closed-form"
    backend: str | None = None
    assumptions: tuple[dict[str, Any], ...] = ()
    plan: str = ""
    own: bool = False
    instead: str = ""


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """How the members of one family are to be solved; `cache` shares their matrices.

    product: the product bound of the whole network, with its proof, once it is known; find_product: what proves it.
    interrupted: set by the first interrupt; the members that are left keep their closed-form bound. alone: the
    formulation answers for itself, also where the product bound or a closed form is better.
    """

    formulation: Formulation
    spec: Spec
    clock: Clock
    backend: Backend | None
    tol: float
    assurance: str
    native: Mapping[str, Any]
    verbose: bool
    say: Callable[[str], None]
    progress: Callable[[Progress], None] | None
    jobs: int | None = None
    cache: dict[int, Any] = field(default_factory=dict)
    product: ProvedProduct | None = None
    find_product: Callable[[], ProvedProduct] | None = None
    interrupted: bool = False
    alone: bool = False

    def whole_product(self) -> ProvedProduct:
        """The product bound of the whole network, proved when it is first asked for."""
        if self.product is None:
            assert self.find_product is not None
            self.product = self.find_product()
        return self.product

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """An interrupt inside ends what stands here and nothing else: what is proved by then remains."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True
            self.say("interrupted: keeping what is proved")


def solve_member(whole: IncrementSystem, member: Member, run: Run, time_limit: float | None) -> Part:
    """The proved bound of one member. Raises UsageError where the formulation or the backend cannot be used."""
    system = restricted(whole, member)
    if not system.output.blocks:
        return replace(_by_norms(system, member, run, claim=0.0), instead="")
    late = run.interrupted or run.clock.left() <= 0.0
    if late and system.order > QUICK_ORDER:
        return _by_norms(system, member, run, termination="interrupted" if run.interrupted else "time-limit")
    with run.clock.stage("build"):
        built = build(system, run.formulation, member_spec(run.spec, member))
    if isinstance(built, NormExpression | Evidence):
        return _by_rule(built, system, member, run, time_limit)
    if not provable(system):
        run.say(f"order {system.order} is beyond what can be proved as a matrix inequality: norm bounds only")
        return _by_norms(system, member, run)
    # every row, or column, of a family is bounded by what bounds the whole
    known = math.inf if run.product is None else run.product.bound
    prover = Prover(system=system, member=member, clock=run.clock, cache=run.cache, known=known)
    if isinstance(built, Iterator):
        return _by_stream(built, prover, member, run, time_limit)
    if isinstance(built, Multipliers):
        claim = built.claim(*member.norms)
        said = claim if math.isfinite(claim) else None
        return _by_multipliers(prover, member, run, [(run.formulation.name, built)], claim=said, own=True)
    if built.refine is not None or has_pairs(built):
        return by_rounds(built, prover, member, run, time_limit)
    if system.complete is not None and not free_multipliers(built) and run.assurance != "model":
        with run.clock.stage("build"):
            complete = build(system.complete, run.formulation, member_spec(run.spec, member))
        if isinstance(complete, Model):
            built, prover.solved = complete, system.complete
    return by_model(built, prover, member, run, time_limit)


def by_model(built: Model, prover: Prover, member: Member, run: Run, time_limit: float | None) -> Part:
    """The part of one model: solved, and proved by the multipliers of the point that comes back."""
    point, used = find_point(built, prover, run, time_limit)
    facts: dict[str, Any] = {
        "claim": None if point.objective is None else built.bound_of(point.objective),
        "lower": None if point.lower is None else max(0.0, built.bound_of(point.lower)),
        "termination": point.termination,
        "backend": None if used is None else used.name,
        "plan": "factors read" if used is not None and used.capabilities.structured else point.plan,
    }
    if point.values is None:
        return _by_multipliers(prover, member, run, [], **facts)
    multipliers, own = prover.read(built, point.values)
    if own:
        part = _by_assumption(built, prover.system, member, run, point.values, multipliers, own, facts)
        if part is not None:
            return part
    facts["feasible"] = used is not None and used.capabilities.feasible
    facts["comparison"] = "never" if run.alone else "doubt" if free_multipliers(built) else "doubt-tied"
    origin = run.formulation.name if used is None else used.name
    return _by_multipliers(prover, member, run, [(origin, multipliers)], **facts)


def free_multipliers(model: Model) -> bool:
    """Whether every neuron has a multiplier of its own."""
    for form in model.matrix_constraints:
        for term in form.terms:
            if isinstance(term, Factored) and term.rule is not None and term.rule.kind == "slope":
                for variable, k in term.weight.coefficients.items():
                    if variable.size < k.shape[0]:
                        return False
    return True


def provable(system: IncrementSystem) -> bool:
    """Whether the system is small enough for its matrix inequality to be expanded and proved."""
    return system.order <= MAX_ORDER and dense_entries(system) <= MAX_ENTRIES


Built = Model | Multipliers | Iterator[Multipliers] | NormExpression | Evidence


def build(system: IncrementSystem, formulation: Formulation, spec: Spec) -> Built:
    """What a formulation states for one system. Raises UsageError, also for whatever goes wrong inside `build`."""
    try:
        built: Built = formulation.build(system, spec)
    except LipmodelError:
        raise
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"the formulation {formulation.name!r} failed in build: {what}{_place(error)}") from error
    if isinstance(built, Model):
        built.check()
    elif isinstance(built, Multipliers):
        _check_multipliers(formulation.name, system, built)
    elif not isinstance(built, NormExpression | Iterator | Evidence):
        raise UsageError(
            f"the formulation {formulation.name!r} returned {type(built).__name__} from build: "
            "it must return a Model, Multipliers (or an iterator of ever better ones) or a NormExpression"
        )
    return built


def _check_multipliers(name: str, system: IncrementSystem, given: Multipliers) -> None:
    """Raises UsageError where multipliers do not fit the system; their values are mended later, whatever they are."""
    sizes = [("g", given.g, system.input.size), ("s", given.s, system.output.size)]
    count = len(given.t) if isinstance(given.t, tuple | list) else -1
    if count != len(system.activations):
        raise UsageError(
            f"the multipliers of {name!r} do not fit: t must be a tuple of {len(system.activations)} vectors, one for "
            "each activation of the system"
        )
    sizes += [(f"t of {a.name}", t, a.size) for t, a in zip(given.t, system.activations, strict=True)]
    for what, vector, size in sizes:
        if not (isinstance(vector, np.ndarray) and vector.dtype.kind in "fiu" and vector.shape == (size,)):
            raise UsageError(f"the multipliers of {name!r} do not fit: {what} must be an array of {size} numbers")


def _place(error: BaseException) -> str:
    """The line of the user's file that an error comes from, if it is not one of ours."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if "lipmodel" not in code.co_filename.replace("\\", "/").split("/")[-3:-1] and code.co_name == "build":
            place = f" ({code.co_filename}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place


def _by_multipliers(
    prover: Prover,
    member: Member,
    run: Run,
    candidates: list[tuple[str, Multipliers]],
    *,
    claim: float | None = None,
    lower: float | None = None,
    termination: Termination = "closed-form",
    backend: str | None = None,
    plan: str = "",
    feasible: bool = False,
    comparison: Comparison = "doubt",
    own: bool = False,
) -> Part:
    """The part with the best bound that the prover settles on; norms where it proves nothing.

    own: the candidates are in closed form, and a proof of them as they are is the answer.
    """
    already = run.interrupted
    hurry = already or run.clock.left() <= 0.0
    with run.clock.stage("certify"), run.finishing():
        prover.settle(
            candidates,
            claim=math.inf if claim is None else claim,
            optimal=termination == "optimal" and claim is not None,
            feasible=feasible,
            comparison=comparison,
            own=own,
            deadline=run.clock.deadline,
            hurry=hurry,
        )
    if run.interrupted and not already:
        termination = "interrupted"
    best = prover.best
    if best is None or not math.isfinite(best.bound):
        facts = {"claim": claim, "lower": lower, "termination": termination, "backend": backend, "plan": plan}
        return _by_norms(prover.system, member, run, **facts)
    return Part(
        member=member,
        bound=best.bound,
        proof=lmi_proof(best.multipliers, member.norms, best.bound),
        claim=claim,
        lower=lower,
        termination=termination,
        backend=backend,
        plan=plan,
        own=own and best.origin == candidates[0][0],
        instead="" if best.origin.startswith((ON_THE_WAY, *(name for name, _ in candidates))) else "a closed form",
    )


def _by_stream(
    stream: Iterator[Multipliers], prover: Prover, member: Member, run: Run, time_limit: float | None
) -> Part:
    """The part of ever better multipliers: drawn until they end or the time is over, then proved like any others."""
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    best: Multipliers | None = None
    claim, termination = math.inf, "closed-form"
    count, started = 0, time.monotonic()
    with run.clock.stage("solve"):
        try:
            for found in stream:
                _check_multipliers(run.formulation.name, prover.system, found)
                value = found.claim(*member.norms)
                if value < claim:
                    best, claim = found, value
                count += 1
                if run.progress is not None and math.isfinite(claim):
                    seconds = time.monotonic() - started
                    run.progress(Progress(iteration=count, objective=claim, lower=0.0, seconds=seconds, bound=None))
                if time.monotonic() > deadline:
                    termination = "time-limit"
                    break
        except KeyboardInterrupt:
            run.interrupted = True
            run.say("interrupted: proving what there is")
            termination = "interrupted"
        except LipmodelError:
            raise
        except Exception as error:
            run.say(f"{run.formulation.name} failed ({type(error).__name__}: {error}): proving what there is")
            termination = "failed"
    candidates = [] if best is None else [(run.formulation.name, best)]
    facts: dict[str, Any] = {"claim": None if best is None else claim, "termination": termination}
    return _by_multipliers(prover, member, run, candidates, own=best is not None, **facts)


def _by_rule(
    stated: NormExpression | Evidence, system: IncrementSystem, member: Member, run: Run, time_limit: float | None
) -> Part:
    """The part of a norm expression, or of evidence, by the rule that it names; the product where it names none."""
    from lipmodel.certify.norm_rules import NORM_RULES, prove_expression

    if isinstance(stated, NormExpression) and stated.rule not in NORM_RULES:
        with run.clock.stage("certify"):
            claim = stated.evaluate(run.whole_product().evaluator.again())
        stated_itself = stated.rule == "product"
        part = _by_norms(system, member, run, claim=claim)
        return replace(part, own=stated_itself, instead="" if stated_itself else part.instead)
    said: float | None = None
    with run.clock.stage("certify"), run.finishing():
        if isinstance(stated, NormExpression):
            found: Proved | None = prove_expression(stated, system, member.norms)
            said = None if found is None else found.bound
        else:
            stated = stated if run.backend is None else stated.using(run.backend)
            deadline = math.inf if time_limit is None else time.monotonic() + time_limit
            found, said = stated.prove(system, member.norms, deadline), stated.claim
            reason = found and why_not(stated, found, system, member.norms, run.spec.domain)
            if reason is not None:
                run.say(f"the evidence of {run.formulation.name!r} does not prove its bound: {reason}")
                found = None
        if found is not None and math.isfinite(found.bound):
            return Part(
                member=member, bound=found.bound, proof=found.proof, claim=said, own=True, backend=found.backend
            )
    termination: Termination = "interrupted" if run.interrupted else "failed"
    return _by_norms(system, member, run, claim=said, termination=termination)


def _by_assumption(
    model: Model,
    system: IncrementSystem,
    member: Member,
    run: Run,
    values: Mapping[Any, Any],
    multipliers: Multipliers,
    own: list[Term],
    facts: dict[str, Any],
) -> Part | None:
    """A bound proved up to the terms that the formulation states by itself, where that was asked for."""
    if run.assurance != "model":
        names = "term" if len(own) == 1 else "terms"
        run.say(
            f"{len(own)} {names} of {run.formulation.name!r} follow no rule that the proof knows: the bound is proved "
            "without them (--assurance model uses them, as assumptions)"
        )
        return None
    if member.row is not None or member.column is not None:
        run.say("inequalities stated by hand are not used in families: the bound is proved without them")
        return None
    from lipmodel.certify.assumed import prove_assuming

    with run.clock.stage("certify"):
        found = prove_assuming(model, system, member, values, multipliers, own)
    if found is None:
        run.say("the point does not prove the stated inequality, even with its own terms: proving without them")
        return None
    bound, proof, assumptions = found
    return Part(member=member, bound=bound, proof=proof, assumptions=assumptions, **facts)


def _by_norms(system: IncrementSystem, member: Member, run: Run, **facts: Any) -> Part:
    """The product bound, which needs no expansion."""
    whole = member.row is None and member.column is None and member.norms == run.spec.norms
    with run.clock.stage("certify"):
        if whole:
            bound, proof = product_part(run.whole_product())
        else:
            bound, proof = product_bound_of(system, member.norms)
    return Part(member=member, bound=bound, proof=proof, instead="product", **facts)


def product_bound_of(system: IncrementSystem, norms: tuple[Norm, Norm]) -> tuple[float, dict[str, Any]]:
    """The product bound of a system, rounded up, and its proof. It may be inf where norms overflow."""
    from lipmodel.certify.product_rule import product_system, prove_product

    return product_part(prove_product(product_system(system), *norms))


def product_part(proved: ProvedProduct) -> tuple[float, dict[str, Any]]:
    """A product bound and its proof, reduced to the claims that it needs."""
    return proved.bound, product_proof(proved.claims(), proved.norms, proved.bound, rule=proved.rule)
