"""One program of a family: build it, have it solved, and prove a bound from whatever comes back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.backends import backend as find_backend
from lipmodel.backends import backend_names
from lipmodel.backends.base import Backend, Installed, Point, Progress, SolveOptions, Termination
from lipmodel.certify.certificate import lmi_proof, product_proof
from lipmodel.certify.evidence import Evidence, Proved
from lipmodel.certify.extract import sound_point
from lipmodel.certify.lmi import Multipliers
from lipmodel.clock import Clock
from lipmodel.errors import BackendUnavailable, LipmodelError, UsageError
from lipmodel.families import Member, member_spec, restricted
from lipmodel.formulation import Formulation
from lipmodel.model.model import Model
from lipmodel.model.norm_expression import NormExpression
from lipmodel.model.terms import Factored
from lipmodel.network.increments import IncrementSystem, dense_entries
from lipmodel.prover import ON_THE_WAY, Comparison, Prover
from lipmodel.spec import Norm, Spec

if TYPE_CHECKING:
    from lipmodel.certify.product_rule import ProvedProduct
    from lipmodel.model.terms import Term

MAX_ORDER = 20_000
"""Orders of the matrix inequality beyond which no proof of it is attempted."""
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

    product: the product bound of the whole network, with its proof, once it is known. interrupted: set by the first
    interrupt; the members that are left keep their closed-form bound.
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
    interrupted: bool = False

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
        return _by_rule(built, system, member, run)
    if not provable(system):
        run.say(f"order {system.order} is beyond what can be proved as a matrix inequality: norm bounds only")
        return _by_norms(system, member, run)
    # every row, or column, of a family is bounded by what bounds the whole
    known = math.inf if run.product is None else run.product.bound
    prover = Prover(system=system, member=member, clock=run.clock, cache=run.cache, known=known)
    if isinstance(built, Iterator):
        return _by_stream(built, prover, member, run, time_limit)
    if isinstance(built, Multipliers):
        return _by_multipliers(prover, member, run, [(run.formulation.name, built)], feasible=True, own=True)
    if system.complete is not None and not free_multipliers(built) and run.assurance != "model":
        with run.clock.stage("build"):
            complete = build(system.complete, run.formulation, member_spec(run.spec, member))
        if isinstance(complete, Model):
            built, prover.solved = complete, system.complete
    point, used = _point(built, prover, run, time_limit)
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
        part = _by_assumption(built, system, member, run, point.values, multipliers, own, facts)
        if part is not None:
            return part
    facts["feasible"] = used is not None and used.capabilities.feasible
    facts["comparison"] = "doubt" if free_multipliers(built) else "doubt-tied"
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


def choose_backend(model: Model, without: Collection[str] = ()) -> tuple[Backend | None, list[tuple[str, str]]]:
    """The first backend that takes the model at its size, and why those before it do not; some may be left out."""
    refusals: list[tuple[str, str]] = []
    sizes: dict[bool, int] = {}
    for name in backend_names():
        if name in without:
            refusals.append((name, "it found no point"))
            continue
        candidate = find_backend(name, usable=False)
        if candidate.capabilities.on_request:
            refusals.append((name, "it is used where it is asked for"))
            continue
        state = candidate.available()
        if not isinstance(state, Installed):
            refusals.append((name, str(state)))
            continue
        refusal = _refusal(candidate, model)
        if refusal is not None:
            refusals.append((name, refusal))
            continue
        limit, structured = candidate.capabilities.max_order, candidate.capabilities.structured
        if structured not in sizes:
            sizes[structured] = _order(model, reduced=not structured)
        if sizes[structured] <= limit:
            return candidate, refusals
        refusals.append((name, f"order {sizes[structured]} is above {limit}, its limit unless it is asked for"))
    return None, refusals


def _order(model: Model, *, reduced: bool) -> int:
    """The order of the model's largest matrix inequality, as stated or after the exact reductions."""
    order = max(model.sizes().psd, default=0)
    if not reduced or order > MAX_ORDER:
        return order
    from lipmodel.bridges.scaling import prepare

    try:
        return max(prepare(model).model.sizes().psd, default=0)
    except Exception:  # a model that cannot be reduced is solved as it stands, or not at all
        return order


def _refusal(candidate: Backend, model: Model) -> str | None:
    """Why a backend does not take a model; one whose own check of it fails does not take it."""
    try:
        return candidate.refuses(model)
    except Exception as error:
        return f"its check of the model failed ({type(error).__name__}: {error})"


def _point(model: Model, prover: Prover, run: Run, time_limit: float | None) -> tuple[Point, Backend | None]:
    """A solver's point and the solver, or none: a failure is a termination, never an exception.

    Where no backend was asked for, the next one is tried after one that finds nothing.
    """
    if run.backend is not None:
        refusal = _refusal(run.backend, model)
        if refusal is not None:
            raise UsageError(f"the backend {run.backend.name!r} does not take this model: {refusal}")
        return _solved(model, run.backend, prover, run, time_limit), run.backend
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    tried: list[str] = []
    while True:
        chosen, refusals = choose_backend(model, tried)
        if chosen is None:
            why = "; ".join(f"{name}: {reason}" for name, reason in refusals)
            run.say(f"no backend takes this model ({why}): closed-form multipliers instead")
            return Point(values=None, termination="failed" if tried else "closed-form", message=why), None
        left = None if time_limit is None else deadline - time.monotonic()
        point = _solved(model, chosen, prover, run, left)
        if point.values is not None or point.termination != "failed":
            return point, chosen
        tried.append(chosen.name)


def _solved(model: Model, chosen: Backend, prover: Prover, run: Run, time_limit: float | None) -> Point:
    """The point of one backend."""
    if run.interrupted:
        return Point(values=None, termination="interrupted")
    if time_limit is not None and time_limit < 1e-3:
        return Point(values=None, termination="time-limit")
    options = SolveOptions(
        tol=run.tol,
        time_limit=time_limit,
        verbose=run.verbose,
        native=run.native,
        progress=_watched(model, prover, run.progress),
    )
    with run.clock.stage("solve"):
        try:
            point = sound_point(model, chosen.solve(model, options))
        except (BackendUnavailable, UsageError):
            raise
        except KeyboardInterrupt:
            run.interrupted = True
            run.say("interrupted: proving what there is")
            return Point(values=None, termination="interrupted")
        except BaseException as error:  # a panic of a solver written in Rust is no Exception
            run.say(f"{chosen.name} failed ({type(error).__name__}: {error})")
            return Point(values=None, termination="failed", message=str(error))
    if point.termination == "interrupted":
        run.interrupted = True
        run.say("interrupted: proving what there is")
    return point


def _watched(
    model: Model, prover: Prover, progress: Callable[[Progress], None] | None
) -> Callable[[Progress], None] | None:
    """What a solver reports to, which proves its improvements and passes them on; None where nobody listens."""
    if progress is None:
        return None
    observe = prover.watch(model)
    return lambda state: progress(observe(state))


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
    return _by_multipliers(prover, member, run, candidates, feasible=True, own=best is not None, **facts)


def _by_rule(stated: NormExpression | Evidence, system: IncrementSystem, member: Member, run: Run) -> Part:
    """The part of a norm expression, or of evidence, by the rule that it names; the product where it names none."""
    from lipmodel.certify.norm_rules import NORM_RULES, prove_expression

    if isinstance(stated, NormExpression) and stated.rule not in NORM_RULES:
        with run.clock.stage("certify"):
            claim = stated.evaluate(None if run.product is None else run.product.evaluator.again())
        stated_itself = stated.rule == "product"
        part = _by_norms(system, member, run, claim=claim)
        return replace(part, own=stated_itself, instead="" if stated_itself else part.instead)
    said: float | None = None
    with run.clock.stage("certify"), run.finishing():
        if isinstance(stated, NormExpression):
            found: Proved | None = prove_expression(stated, system, member.norms)
            said = None if found is None else found.bound
        else:
            found, said = stated.prove(system, member.norms, run.clock.deadline), stated.claim
        if found is not None and math.isfinite(found.bound):
            return Part(member=member, bound=found.bound, proof=found.proof, claim=said, own=True)
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
        if whole and run.product is not None:
            bound, proof = product_part(run.product)
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
