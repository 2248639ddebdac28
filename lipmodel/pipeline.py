"""From a network to a proved bracket: the stages of DESIGN, each a function of the value before it and of the question.

    network -> increment system -> family of programs -> model -> backend -> multipliers -> proof; witness; result
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lipmodel.backends import backend as find_backend
from lipmodel.backends.base import Backend, Point, Progress, SolveOptions, Termination
from lipmodel.errors import SoundnessError, UsageError
from lipmodel.families import Member, chosen_outputs, measured, member_spec, members, restricted, row_labels
from lipmodel.formulation import Formulation
from lipmodel.formulation import formulation as find_formulation
from lipmodel.result import Assurance, OutputBound, Result, Timings
from lipmodel.spec import Spec, norm_pair, parse_domain, parse_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lipmodel.model.model import Model
    from lipmodel.network.graph import Network
    from lipmodel.network.increments import IncrementSystem

MAX_ORDER = 6000
"""Orders of the matrix inequality beyond which no proof of it is attempted in process."""
MAX_ENTRIES = 60_000_000
"""Entries of the expanded system beyond which only norm bounds are computed."""
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A question and how to answer it; `reason` says why the formulation was chosen, where it was."""

    spec: Spec
    formulation: Formulation
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """The answer for one member of a family."""

    member: Member
    bound: float
    proof: dict[str, Any] | None
    claim: float | None
    lower: float | None
    termination: Termination
    backend: str | None
    assumptions: tuple[dict[str, Any], ...] = ()


@dataclass(slots=True)
class _Clock:
    started: float
    limit: float | None
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def deadline(self) -> float:
        return math.inf if self.limit is None else self.started + self.limit

    def left(self) -> float:
        return self.deadline - time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - start


def solve(
    net: Network | str | os.PathLike[str],
    formulation: Any = None,
    *,
    norm: Any = None,
    outputs: Any = "all",
    domain: Any = "global",
    backend: Any = None,
    tol: float = 1e-6,
    time_limit: float | None = None,
    options: Mapping[str, Any] | None = None,
    backend_options: Mapping[str, Any] | None = None,
    assurance: str = "proved",
    graph_input: Any = None,
    graph_output: Any = None,
    witness: bool = True,
    report: Report | None = None,
    progress: Callable[[Progress], None] | None = None,
    verbose: bool = False,
) -> Result:
    """A proved bracket for the Lipschitz constant of a network.

    net: a path to an ONNX file, or a Network. formulation: a name, `FILE.py:CLASS`, a class, an instance, or None to
    choose one. norm: P or P:Q with P, Q among 1, 2, inf (default: the formulation's own). outputs: "all", an index,
    indices, or "margin:I". tol: relative, on the bound. time_limit: seconds for everything. options: of the formulation.
    assurance: "proved", or "model" to use inequalities that the formulation states by itself.
    Raises UsageError, RefusedInput, BackendUnavailable, SoundnessError.
    """
    if assurance not in ("proved", "model"):
        raise UsageError(f"assurance {assurance!r}: choose 'proved' or 'model'")
    if not (isinstance(tol, int | float) and 0.0 < tol < 1.0):
        raise UsageError(f"tol {tol!r}: a relative tolerance between 0 and 1, such as 1e-6")
    if time_limit is not None and not time_limit > 0.0:
        raise UsageError(f"time limit {time_limit!r}: a positive number of seconds")
    clock = _Clock(started=time.monotonic(), limit=time_limit)
    say = report or (lambda line: None)
    solver = None if backend is None else find_backend(backend)
    with clock.stage("import"):
        network = _loaded(net, graph_input, graph_output)
        system = _increments(network)
    request = make_request(system, formulation, norm=norm, outputs=outputs, domain=domain, options=options)
    if request.reason:
        say(request.reason)
    spec = measured(request.spec)
    system = chosen_outputs(system, spec.outputs)
    with _single_thread():
        parts = _parts(system, spec, request.formulation, solver, clock, tol, assurance, backend_options, say, progress, verbose)
        bound, proof, assumptions = _overall(system, spec, parts, clock, say)
        lower, found = _witnessed(network, request.spec, clock, say) if witness else (None, None)
    return _result(network, request, parts, bound, proof, assumptions, lower, found, clock, graph_input, graph_output)


def make_request(
    system: IncrementSystem,
    formulation: Any = None,
    *,
    norm: Any = None,
    outputs: Any = "all",
    domain: Any = "global",
    options: Mapping[str, Any] | None = None,
) -> Request:
    """The question in full: the formulation (chosen by norm and size if None) and the spec. Raises UsageError."""
    chosen_domain, chosen = parse_domain(domain), parse_outputs(outputs)
    chosen.check(system.output.size)
    reason = ""
    if formulation is None:
        pair = norm_pair("2" if norm is None else norm)
        name, reason = _choose(system, Spec(input_norm=pair[0], output_norm=pair[1], outputs=chosen))
        formulation = name
    instance = find_formulation(formulation, options)
    pair = norm_pair(instance.default_norm if norm is None else norm)
    spec = Spec(input_norm=pair[0], output_norm=pair[1], domain=chosen_domain, outputs=chosen)
    return Request(spec=spec, formulation=instance, reason=reason)


def _choose(system: IncrementSystem, spec: Spec) -> tuple[str, str]:
    """A formulation for the norm and the predicted size, and why."""
    from lipmodel.network.increments import dense_entries

    p, q = measured(spec).norms
    where = f"--norm {p}:{q}"
    if system.neurons == 0:
        return "product", "formulation product: the network is linear, so its norm is the constant"
    if system.order > MAX_ORDER or dense_entries(system) > MAX_ENTRIES:
        return "product", f"formulation product: {system.neurons} activations are too many for a matrix inequality"
    name = "lipsdp-neuron" if p in ("1", "2") and (q in ("2", "inf") and not (p == "1" and q == "2")) else "geolip"
    if p == "1" and q in ("1", "2"):
        name = "lipsdp-neuron" if q == "2" else "geolip"
    programs = (system.output.size if q == "inf" else 1) * (system.input.size if p == "1" else 1)
    if programs > 200:
        return "product", f"formulation product: {where} would need {programs} programs (ask for geolip to solve them)"
    return name, f"formulation {name}: the tightest for {where} with {system.neurons} activations"


def _loaded(net: Any, graph_input: Any, graph_output: Any) -> Network:
    from lipmodel.network.graph import Network
    from lipmodel.network.onnx_import import load

    if isinstance(net, Network):
        return net
    return load(net, graph_input=graph_input, graph_output=graph_output)


def _increments(network: Network) -> IncrementSystem:
    from lipmodel.network.increments import increments

    return increments(network)


@contextmanager
def _single_thread() -> Iterator[None]:
    """One BLAS thread: NumPy's and SciPy's pools would otherwise fight each other."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield


def build(system: IncrementSystem, formulation: Formulation, spec: Spec) -> Any:
    """What a formulation states for one system: a Model, Multipliers or a NormExpression. Raises UsageError."""
    from lipmodel.certify.lmi import Multipliers
    from lipmodel.errors import LipmodelError
    from lipmodel.model.model import Model
    from lipmodel.model.norm_expression import NormExpression

    try:
        built = formulation.build(system, spec)
    except LipmodelError:
        raise
    except Exception as error:
        raise UsageError(f"the formulation {formulation.name!r} failed in build: {type(error).__name__}: {error}") from error
    if isinstance(built, Model):
        built.check()
    elif not isinstance(built, Multipliers | NormExpression):
        raise UsageError(
            f"the formulation {formulation.name!r} returned {type(built).__name__} from build: "
            "it must return a Model, Multipliers or a NormExpression"
        )
    return built


def choose_backend(model: Model, system: IncrementSystem) -> tuple[Backend | None, str]:
    """The first backend that takes the model at its size, and why the others do not."""
    from lipmodel.backends import backend_names
    from lipmodel.backends.base import Installed

    reasons = []
    order = max(model.sizes().psd)
    for name in backend_names():
        candidate = find_backend(name, usable=False)
        state = candidate.available()
        if not isinstance(state, Installed):
            reasons.append(f"{name}: {state}")
        elif (refusal := candidate.refuses(model)) is not None:
            reasons.append(f"{name}: {refusal}")
        elif order > candidate.capabilities.max_order:
            reasons.append(f"{name}: order {order} is above {candidate.capabilities.max_order}, its limit unless asked for")
        else:
            return candidate, "; ".join(reasons)
    return None, "; ".join(reasons)


def _parts(
    system: IncrementSystem,
    spec: Spec,
    formulation: Formulation,
    solver: Backend | None,
    clock: _Clock,
    tol: float,
    assurance: str,
    backend_options: Mapping[str, Any] | None,
    say: Report,
    progress: Callable[[Progress], None] | None,
    verbose: bool,
) -> list[Part]:
    """Every member of the family, solved and proved one after the other; late ones keep their closed-form bound."""
    family = members(system, spec, formulation.norms, formulation.name)
    parts: list[Part] = []
    cache: dict[int, Any] = {}
    for number, member in enumerate(family):
        share = None
        if clock.limit is not None:
            # half of the time belongs to the bound, the rest to its proof and the witness
            share = max(0.0, 0.6 * clock.left() / (len(family) - number) * min(2.0, len(family) - number))
        options = SolveOptions(
            tol=tol, time_limit=share, verbose=verbose, native=dict(backend_options or {}), progress=progress
        )
        part = _part(system, member, spec, formulation, solver, clock, options, assurance, say, cache)
        parts.append(part)
        if len(family) > 1:
            place = " ".join(f"{n} {i}" for n, i in (("row", member.row), ("column", member.column)) if i is not None)
            say(f"{number + 1}/{len(family)} {place}: {part.bound:.6g}")
    return parts


def _part(
    whole: IncrementSystem,
    member: Member,
    spec: Spec,
    formulation: Formulation,
    solver: Backend | None,
    clock: _Clock,
    options: SolveOptions,
    assurance: str,
    say: Report,
    cache: dict[int, Any],
) -> Part:
    from lipmodel.certify.lmi import Multipliers
    from lipmodel.model.model import Model
    from lipmodel.network.increments import dense_entries

    system = restricted(whole, member)
    if not system.output.blocks:
        return _constant(system, member)
    asked = member_spec(spec, member)
    with clock.stage("build"):
        built = build(system, formulation, asked)
    candidates: list[tuple[str, Multipliers]] = []
    claim = lower = None
    termination: Termination = "closed-form"
    used: str | None = None
    small = system.order <= MAX_ORDER and dense_entries(system) <= MAX_ENTRIES
    if isinstance(built, Model):
        point, used = _point(built, system, solver, options, clock, say, small)
        termination = point.termination
        claim = None if point.objective is None else built.bound_of(point.objective)
        lower = None if point.lower is None else built.bound_of(point.lower)
        if point.values is not None:
            from lipmodel.certify.extract import extract

            multipliers, own = extract(built, system, point.values)
            candidates.append((used or formulation.name, multipliers))
            if own and assurance == "model" and member.row is None and member.column is None:
                from lipmodel.certify.assumed import prove_assuming

                with clock.stage("certify"):
                    assumed_part = prove_assuming(built, system, member, point.values, multipliers, own)
                if assumed_part is not None:
                    bound, proof, assumptions = assumed_part
                    return Part(
                        member=member, bound=bound, proof=proof, claim=claim, lower=lower, termination=termination,
                        backend=used, assumptions=assumptions,
                    )  # fmt: skip
                say("the stated inequalities could not be used in a proof; proving without them")
            elif own:
                say(f"{len(own)} term(s) of {formulation.name!r} follow no known rule: proved without them (--assurance model uses them)")
    elif isinstance(built, Multipliers):
        candidates.append((formulation.name, built))
    else:
        return _norm_part(system, member, built, clock)
    with clock.stage("certify"):
        bound, proof = _proved_lmi(system, member, candidates, clock, cache, claim, termination) if small else (math.inf, None)
        if proof is None:
            bound, proof = product_part(system, member.norms)
    return Part(member=member, bound=bound, proof=proof, claim=claim, lower=lower, termination=termination, backend=used)


def _point(
    model: Model, system: IncrementSystem, solver: Backend | None, options: SolveOptions, clock: _Clock, say: Report, small: bool
) -> tuple[Point, str | None]:
    """A solver's point, or none: a failure is a termination, never an exception."""
    from lipmodel.errors import BackendUnavailable

    chosen, reasons = (solver, "") if solver is not None else choose_backend(model, system)
    if chosen is None:
        say(f"no backend takes this model ({reasons}): closed-form multipliers instead")
        return Point(values=None, termination="closed-form", message=reasons), None
    if options.time_limit is not None and options.time_limit < 1e-3:
        return Point(values=None, termination="time-limit"), chosen.name
    refusal = chosen.refuses(model)
    if refusal is not None:
        raise UsageError(f"the backend {chosen.name!r} does not take this model: {refusal}")
    if not small:
        say(f"order {system.order} is beyond what can be proved as a matrix inequality: norm bounds only")
        return Point(values=None, termination="closed-form"), None
    with clock.stage("solve"):
        try:
            return chosen.solve(model, options), chosen.name
        except (BackendUnavailable, UsageError):
            raise
        except KeyboardInterrupt:
            say("interrupted: proving what there is")
            return Point(values=None, termination="interrupted"), chosen.name
        except Exception as error:
            say(f"{chosen.name} failed ({type(error).__name__}: {error}): proving a closed-form bound")
            return Point(values=None, termination="failed", message=str(error)), chosen.name


def _proved_lmi(
    system: IncrementSystem,
    member: Member,
    candidates: list[tuple[str, Any]],
    clock: _Clock,
    cache: dict[int, Any],
    claim: float | None,
    termination: Termination,
) -> tuple[float, dict[str, Any] | None]:
    """The best proved bound of the candidates; closed forms join in unless a solver's optimum was confirmed."""
    from lipmodel.certify.certificate import lmi_proof
    from lipmodel.certify.kernel import decides_positive_semidefinite, exact_lmi
    from lipmodel.certify.repair import prove
    from lipmodel.network.increments import exact_system, float_system

    matrices = float_system(system, cache)
    p, q = member.norms
    exact: list[Any] = []

    def verifiable(multipliers: Any) -> bool:
        """What `verify` will ask, so that it accepts every certificate written."""
        if not exact:
            exact.append(exact_system(system))
        return decides_positive_semidefinite(exact_lmi(exact[0], multipliers))

    best = None
    if candidates:
        best = prove(matrices, p, q, candidates, closed=False, deadline=clock.deadline, check=verifiable)
    confirmed = best is not None and claim is not None and termination == "optimal" and best.bound <= claim * (1.0 + 1e-4)
    if not confirmed:
        closed = prove(matrices, p, q, (), deadline=clock.deadline, check=verifiable)
        if closed is not None and (best is None or closed.bound < best.bound):
            best = closed
    if best is None or not math.isfinite(best.bound):
        return math.inf, None
    return best.bound, lmi_proof(best.multipliers, member.norms, best.bound)


def product_part(system: IncrementSystem, norms: tuple[str, str]) -> tuple[float, dict[str, Any]]:
    """The product bound of a system, and its proof."""
    from lipmodel.certify.certificate import product_proof
    from lipmodel.certify.product_rule import product_bound
    from lipmodel.network.increments import product_system
    from lipmodel.ranges.norms import float_norms, float_up

    norm = float_norms()
    bound = float_up(product_bound(product_system(system), norms[0], norms[1], norm))
    return bound, product_proof([float_up(v) for v in norm.log], norms, bound)


def _norm_part(system: IncrementSystem, member: Member, expression: Any, clock: _Clock) -> Part:
    """A norm expression: proved by the rule it names, which recomputes it; of no rule, it is a claim only."""
    with clock.stage("certify"):
        claim = expression.evaluate()
        if expression.rule == "product":
            bound, proof = product_part(system, member.norms)
            return Part(member=member, bound=bound, proof=proof, claim=claim, lower=None, termination="closed-form", backend=None)
        bound, proof = product_part(system, member.norms)
    return Part(member=member, bound=bound, proof=proof, claim=claim, lower=None, termination="closed-form", backend=None)


def _constant(system: IncrementSystem, member: Member) -> Part:
    """An output that does not depend on the input."""
    bound, proof = product_part(system, member.norms)
    return Part(member=member, bound=bound, proof=proof, claim=0.0, lower=0.0, termination="closed-form", backend=None)


def _overall(
    system: IncrementSystem, spec: Spec, parts: list[Part], clock: _Clock, say: Report
) -> tuple[float, dict[str, Any] | None, list[dict[str, Any]]]:
    """The largest of the members, or the product bound of the whole network where that is smaller."""
    from lipmodel.certify.certificate import largest_proof

    assumptions = [a for part in parts for a in part.assumptions]
    if len(parts) == 1 and parts[0].member.row is None and parts[0].member.column is None:
        bound, proof = parts[0].bound, parts[0].proof
    else:
        bound = max(part.bound for part in parts)
        proof = None
        if all(part.proof is not None for part in parts):
            proof = largest_proof([(p.member.row, p.member.column, p.proof or {}) for p in parts], bound)
    if proof is not None and proof["rule"] == "product":
        return bound, proof, assumptions
    with clock.stage("certify"):
        other, other_proof = product_part(system, spec.norms)
    if other < bound or proof is None:
        say(f"the product bound {other:.6g} is better: it is the one reported")
        return other, other_proof, []
    return bound, proof, assumptions


def _witnessed(network: Network, spec: Spec, clock: _Clock, say: Report) -> tuple[float | None, Any]:
    """A witnessed lower bound; the search takes no longer than the bound did (0.1 s at least)."""
    from lipmodel.lower.search import search

    spent = time.monotonic() - clock.started
    budget = max(0.1, spent) if clock.limit is None else max(0.1, min(spent, clock.left()))
    with clock.stage("lower"):
        try:
            found = search(network, spec.input_norm, spec.output_norm, outputs=spec.outputs, time_limit=budget)
        except KeyboardInterrupt:
            say("interrupted: no lower bound")
            return None, None
    return (None, None) if found is None else (found.ratio, found)


def _result(
    network: Network,
    request: Request,
    parts: list[Part],
    bound: float,
    proof: dict[str, Any] | None,
    assumptions: list[dict[str, Any]],
    lower: float | None,
    found: Any,
    clock: _Clock,
    graph_input: Any,
    graph_output: Any,
) -> Result:
    from lipmodel.certify.certificate import certificate

    spec = request.spec
    proved = proof is not None and math.isfinite(bound)
    assurance: Assurance = ("model" if assumptions else "proved") if proved else "none"
    if proved and lower is not None and lower > bound and not assumptions:
        raise SoundnessError(_contradiction(network, request, bound, lower, proof, found))
    claims = [p.claim for p in parts if p.claim is not None and math.isfinite(p.claim)]
    claim = max(claims) if len(claims) == len(parts) else None
    if not proved and claim is not None:
        assurance = "numeric"
    lowers = [p.lower for p in parts]
    estimate = None if any(v is None for v in lowers) or not proved else max(v for v in lowers if v is not None)
    gap = None if estimate is None or bound <= 0.0 else max(0.0, (bound - estimate) / bound)
    per_output = None
    if proof is not None and proof["rule"] == "largest" and parts[0].member.row is not None:
        labels = row_labels(spec.outputs, network.output_size)
        per_output = tuple(
            OutputBound(output=labels[r], bound=max(p.bound for p in parts if p.member.row == r), lower_bound=None)
            for r in sorted({p.member.row for p in parts if p.member.row is not None})
        )
    backends = {p.backend for p in parts if p.backend is not None}
    formulation = {"name": request.formulation.name, "options": request.formulation.options()}
    written = certificate(
        network={"sha256": network.source.sha256, "graph_input": _name(graph_input), "graph_output": _name(graph_output)},
        spec=spec.to_json(),
        formulation=formulation,
        bound=bound if proved else None,
        upper=proof if proved else None,
        lower_bound=lower,
        lower=None if found is None else found.as_json(),
        assumptions=assumptions if proved else [],
    )
    spent = clock.spent
    timings = Timings(
        import_=spent.get("import", 0.0),
        build=spent.get("build", 0.0),
        solve=spent.get("solve", 0.0),
        certify=spent.get("certify", 0.0),
        lower=spent.get("lower", 0.0),
        total=time.monotonic() - clock.started,
    )
    return Result(
        spec=spec,
        network=describe(network),
        formulation=request.formulation.name,
        options=request.formulation.options(),
        backend=", ".join(sorted(backends)) or None,
        bound=bound if proved else math.inf,
        assurance=assurance,
        termination=_worst([p.termination for p in parts]),
        claim=claim,
        gap=gap,
        lower_bound=lower,
        per_output=per_output,
        timings=timings,
        certificate=written,
        reason=request.reason,
    )


def describe(network: Network) -> dict[str, Any]:
    """What a result says about its network."""
    from lipmodel.network.ops import Elementwise

    ops = [data["op"] for _, data in network.graph.nodes(data=True)]
    return {
        "path": network.source.path,
        "sha256": network.source.sha256,
        "inputs": network.input_size,
        "outputs": network.output_size,
        "activations": sum(op.size for op in ops if isinstance(op, Elementwise)),
        "parameters": network.source.parameters,
    }


def _name(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


_ORDER: tuple[Termination, ...] = (
    "interrupted", "failed", "time-limit", "iteration-limit", "inaccurate", "closed-form", "optimal",
)  # fmt: skip


def _worst(terminations: list[Termination]) -> Termination:
    return min(terminations, key=_ORDER.index)


def _contradiction(network: Network, request: Request, bound: float, lower: float, proof: Any, found: Any) -> str:
    """The message of the one error that must never happen, with what reproduces it."""
    import json

    bundle = {"network": describe(network), "spec": request.spec.to_json(), "upper": proof, "lower": found.as_json()}
    return (
        f"the witnessed lower bound {lower!r} is above the proved bound {bound!r}: one of the two is wrong, and this is "
        f"a defect of lipmodel. Please report it with this: {json.dumps(bundle)}"
    )


def export(
    net: Network | str | os.PathLike[str],
    formulation: Any,
    path: str | os.PathLike[str],
    *,
    norm: Any = None,
    outputs: Any = "all",
    domain: Any = "global",
    options: Mapping[str, Any] | None = None,
    graph_input: Any = None,
    graph_output: Any = None,
) -> tuple[str, str]:
    """Write the (scaled) problem to a solver file and its map beside it; returns the two paths. Raises UsageError."""
    from lipmodel.io import write_problem
    from lipmodel.model.model import Model

    network = _loaded(net, graph_input, graph_output)
    request = make_request(_increments(network), formulation, norm=norm, outputs=outputs, domain=domain, options=options)
    spec = measured(request.spec)
    system = chosen_outputs(_increments(network), spec.outputs)
    family = members(system, spec, request.formulation.norms, request.formulation.name)
    if len(family) != 1:
        raise UsageError(
            f"--norm {':'.join(request.spec.norms)} is a family of {len(family)} programs, and a file holds one: "
            "choose an output with --outputs I (and for an input norm 1, another input norm)"
        )
    member = family[0]
    built = build(restricted(system, member), request.formulation, member_spec(spec, member))
    if not isinstance(built, Model):
        raise UsageError(f"the formulation {request.formulation.name!r} needs no solver: there is no problem to export")
    header = {
        "network": describe(network),
        "spec": request.spec.to_json(),
        "formulation": {"name": request.formulation.name, "options": request.formulation.options()},
        "member": {"row": member.row, "column": member.column, "norms": list(member.norms)},
    }
    return write_problem(built, path, header)


__all__ = ["Request", "build", "export", "make_request", "replace", "solve"]
