"""From a network to a proved bracket: the stages, composed. Each is a function of the value before it and the question.

network -> increment system -> family of programs -> model -> backend -> multipliers -> proof; witness; result
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lipmodel.backends import backend as find_backend
from lipmodel.backends.base import Progress, Termination
from lipmodel.certify.certificate import certificate, largest_proof, network_named
from lipmodel.clock import Clock
from lipmodel.errors import NotLipschitz, SoundnessError, UsageError
from lipmodel.families import Member, chosen_outputs, measured, members, restricted, row_labels
from lipmodel.member import Part, Run, build, product_bound_of, product_part, solve_member
from lipmodel.network.graph import Network
from lipmodel.network.increments import IncrementSystem
from lipmodel.question import Request, Systems, asked, make_request, systems
from lipmodel.result import Assurance, OutputBound, Result, Timings, describe, plain, rounded
from lipmodel.spec import Norm, Spec

if TYPE_CHECKING:
    from lipmodel.certify.product_rule import ProvedProduct
    from lipmodel.lower.witness import Witness

LOOK = 0.01
"""Seconds per activation, up to a hundred of them, that the search for a lower bound may take in any case."""
PAYS = 1.0
"""Seconds of work from which processes are started for the members of a family."""
WORKSPACE = 12
"""Dense matrices of the order of the inequality that a solver may hold at once."""


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
    float32: bool = False,
    graph_input: Any = None,
    graph_output: Any = None,
    witness: bool = True,
    jobs: int | None = None,
    report: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    verbose: bool = False,
) -> Result:
    """A proved bracket for the Lipschitz constant of a network.

    net: a path to an ONNX file, or a Network. formulation: a name, `FILE.py:CLASS`, a class, an instance, or None to
    choose one. norm: P or P:Q with P, Q among 1, 2, inf (default: the formulation's own). outputs: "all", an index,
    indices, or "margin:I". domain: "global", "box:LO:HI", "ball:X:EPS", lm.Box(lo, hi) or lm.Ball(center, radius).
    tol: relative, on the bound. time_limit: seconds for everything. options: the formulation's.
    assurance: "proved", or "model" to use inequalities that the formulation states by itself. float32: also state, in
    the certificate, what the bound says about the network as float32 arithmetic executes it on a box. jobs: processes
    for the programs of a family (default: one a core). report: told in a line what happens; progress: given the
    solver's states in units of the constant, with the best bound proved so far (at once the product bound, then
    improvements).
    Raises UsageError, RefusedInput, BackendUnavailable, SoundnessError.
    """
    if assurance not in ("proved", "model"):
        raise UsageError(f"assurance {assurance!r}: choose 'proved' or 'model'")
    if not (isinstance(tol, int | float) and 0.0 < tol < 1.0):
        raise UsageError(f"tol {tol!r}: a relative tolerance between 0 and 1, such as 1e-6")
    if time_limit is not None and not time_limit > 0.0:
        raise UsageError(f"time limit {time_limit!r}: a positive number of seconds")
    if jobs is not None and not (isinstance(jobs, int) and jobs >= 1):
        raise UsageError(f"jobs {jobs!r}: a positive number of processes")
    clock = Clock(started=time.monotonic(), limit=time_limit)
    say = report or (lambda line: None)
    solver = None if backend is None else find_backend(backend)
    with clock.stage("import"):
        network = loaded(net, graph_input, graph_output)
        norms, region = asked(network, formulation, norm, domain, options)
        found = systems(network, region, norms[0])
    request = make_request(found.system, formulation, norm=norms, outputs=outputs, domain=region, options=options)
    if request.reason:
        say(request.reason)
    run = Run(
        formulation=request.formulation,
        spec=measured(request.spec),
        clock=clock,
        backend=solver,
        tol=tol,
        assurance=assurance,
        native=dict(backend_options or {}),
        verbose=verbose,
        say=say,
        progress=progress,
        jobs=jobs,
    )
    return answer(network, found, request, run, float32=float32, witness=witness)


def answer(
    network: Network,
    found: Systems,
    request: Request,
    run: Run,
    *,
    float32: bool = False,
    witness: bool = True,
) -> Result:
    """The bracket for a question in full, over systems that are already there.

    run: of the request's formulation and measured spec. float32 and witness as in `solve`. Raises UsageError,
    SoundnessError.
    """
    say, clock = run.say, run.clock
    execution = None
    if float32:
        from lipmodel.certify.execution import float_execution

        with clock.stage("certify"):
            execution = float_execution(network, request.spec)
    system = chosen_outputs(found.system, run.spec.outputs)
    masked = None if found.masked is None else chosen_outputs(found.masked, run.spec.outputs)
    with _single_thread():
        run.find_product = partial(_product, system, masked, run.spec.norms)
        parts = _parts(system, run) if run.alone else _first_parts(system, run)
        bound, proof, assumptions = _overall(system, parts, run)
        pair = _witness(network, request.spec, bound, run, system.neurons) if witness else None
        if assumptions and pair is not None and pair.ratio > bound:
            say(f"two points contradict what {request.formulation.name!r} states: the bound is proved without it")
            run.assurance = "proved"
            parts = _parts(system, run)
            bound, proof, assumptions = _overall(system, parts, run)
    if assumptions and execution is not None:
        say("the bound rests on assumptions: nothing is stated about execution in float32")
        execution = None
    return _result(network, request, parts, bound, proof, assumptions, pair, execution, clock)


def loaded(net: Any, graph_input: Any, graph_output: Any) -> Network:
    if isinstance(net, Network):
        return net
    from lipmodel.network.doors import load

    return load(net, graph_input=graph_input, graph_output=graph_output)


@contextmanager
def _single_thread() -> Iterator[None]:
    """One BLAS thread: NumPy's and SciPy's pools would otherwise fight each other."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield


def _product(system: IncrementSystem, masked: IncrementSystem | None, norms: tuple[Norm, Norm]) -> ProvedProduct:
    """The product bound of the whole.

    masked: the system with the stable neurons left in, whose norms may multiply better.
    """
    from lipmodel.certify.product_rule import product_system, prove_product

    first = prove_product(product_system(system), *norms)
    if masked is None:
        return first
    other = prove_product(product_system(masked), *norms, rule="masked-product")
    return other if other.bound < first.bound else first


def _first_parts(system: IncrementSystem, run: Run) -> list[Part]:
    """The product bound of the whole, which is proved from then on whatever happens; then every member."""
    from lipmodel.certify.quick import quick_bound

    def tell(bound: float) -> None:
        if run.progress is not None and math.isfinite(bound):
            seconds = time.monotonic() - run.clock.started
            run.progress(Progress(iteration=0, objective=bound, lower=0.0, seconds=seconds, bound=bound))

    with run.clock.stage("solve"):
        if run.progress is not None:
            tell(quick_bound(system, *run.spec.norms))
        product = run.whole_product()
    tell(product.bound)
    try:
        return _parts(system, run)
    except KeyboardInterrupt:
        run.say("interrupted again: the product bound is the answer")
        bound, proof = product_part(product)
        whole = Member(norms=run.spec.norms)
        return [Part(member=whole, bound=bound, proof=proof, termination="interrupted", instead="product")]


def _parts(system: IncrementSystem, run: Run) -> list[Part]:
    """Every member of the family; those that come too late keep their closed-form bound.

    The first one shows how long they take: the others are shared out among processes where that pays.
    """
    family = members(system, run.spec, run.formulation.norms, run.formulation.name)
    parts: dict[int, Part] = {}

    def keep(number: int, part: Part) -> None:
        parts[number] = part
        if len(family) > 1:
            named = (("row", part.member.row), ("column", part.member.column))
            place = " ".join(f"{axis} {i}" for axis, i in named if i is not None)
            run.say(f"{len(parts)}/{len(family)} {place}: {rounded(part.bound, up=True)}")

    def share(workers: int) -> float | None:
        """The seconds of a solver; the rest is for proofs and witness, and a quick member leaves more for others."""
        if run.clock.limit is None:
            return None
        return max(0.0, 0.6 * run.clock.left() * min(1.0, 2.0 * workers / max(1, len(family) - len(parts))))

    while rest := [number for number in range(len(family)) if number not in parts]:
        try:
            before = time.monotonic()
            keep(rest[0], solve_member(system, family[rest[0]], run, share(1)))
            took, rest = time.monotonic() - before, rest[1:]
            workers = _workers(system, run, len(rest)) if took * len(rest) > PAYS else 1
            if len(parts) == 1 and workers > 1 and not run.interrupted:
                _in_processes(system, family, rest, run, workers, share, keep)
        except KeyboardInterrupt:
            if run.interrupted:
                raise
            run.interrupted = True
            run.say("interrupted: keeping what is proved")
    return [parts[number] for number in range(len(family))]


def _workers(system: IncrementSystem, run: Run, count: int) -> int:
    """Processes for `count` members: at most one a core, and together in half of the memory."""
    from lipmodel.machine import CAN_FORK, available_cores, available_memory

    if not CAN_FORK:
        return 1
    cores = available_cores() if run.jobs is None else run.jobs
    each = WORKSPACE * 8 * float(system.order) ** 2
    return max(1, min(cores, count, int(0.5 * available_memory() / each)))


def _in_processes(
    system: IncrementSystem,
    family: list[Member],
    rest: list[int],
    run: Run,
    workers: int,
    share: Callable[[int], float | None],
    keep: Callable[[int, Part], None],
) -> None:
    """Solve some members in processes of their own; a member that a process does not finish is left to the caller."""
    from lipmodel.parallel import Send, forked

    limit = share(workers)

    def work(number: int, send: Send) -> tuple[Part, dict[str, float]]:
        own = replace(run, clock=Clock(started=run.clock.started, limit=run.clock.limit), say=lambda line: send(line))
        own.progress = None if run.progress is None else lambda state: send(replace(state, values=None))
        return solve_member(system, family[number], own, limit), own.clock.spent

    def received(message: str | Progress) -> None:
        if isinstance(message, str):
            run.say(message)
        elif run.progress is not None:
            run.progress(message)

    def finished(number: int, answer: tuple[Part, dict[str, float]]) -> None:
        part, spent = answer
        for stage, seconds in spent.items():
            run.clock.spent[stage] = run.clock.spent.get(stage, 0.0) + seconds
        keep(number, part)

    def stop() -> None:
        run.interrupted = True
        run.say("interrupted: proving what there is")

    forked(rest, work, workers=workers, received=received, finished=finished, interrupted=stop)


def _overall(
    system: IncrementSystem, parts: list[Part], run: Run
) -> tuple[float, dict[str, Any], list[dict[str, Any]]]:
    """The largest of the members, or the product bound of the whole network where that is smaller."""
    family = len(parts) > 1 or parts[0].member.row is not None or parts[0].member.column is not None
    bound, proof = max(part.bound for part in parts), parts[0].proof
    other = bound if run.alone and math.isfinite(bound) else run.whole_product().bound
    if other > 0.0 and all(part.own for part in parts):  # closed forms answer for themselves
        if other < bound * (1.0 - 1e-6):
            run.say(f"the product bound {rounded(other, up=True)} is smaller")
        other = bound
    if family and other < bound:
        with run.clock.stage("certify"), run.finishing():
            parts[:] = [_improved(system, part) if part.bound > other else part for part in parts]
        bound = max(part.bound for part in parts)
    if other < bound:
        if other < bound * (1.0 - 1e-6):
            run.say(f"the product bound {rounded(other, up=True)} is better: it is the one reported")
        parts[:] = [replace(part, instead="product") for part in parts]
        with run.clock.stage("certify"):
            return *product_part(run.whole_product()), []
    if family:
        proof = largest_proof([(part.member.row, part.member.column, part.proof) for part in parts], bound)
    return bound, proof, [a for part in parts for a in part.assumptions]


def _improved(system: IncrementSystem, part: Part) -> Part:
    """The part with its own product bound, where that is smaller."""
    bound, proof = product_bound_of(restricted(system, part.member), part.member.norms)
    return replace(part, bound=bound, proof=proof, instead="product") if bound < part.bound else part


def _witness(network: Network, spec: Spec, bound: float, run: Run, neurons: int) -> Witness | None:
    """A witnessed lower bound; the search takes no longer than the bound did, or a second for larger networks."""
    from lipmodel.lower.search import search

    clock, say = run.clock, run.say
    worth = max(time.monotonic() - clock.started, LOOK * min(neurons, 100))
    budget = 0.1 if run.interrupted else max(0.1, min(worth, clock.left()))
    with clock.stage("lower"):
        try:
            target = bound * (1.0 - 1e-10)
            return search(
                network,
                spec.input_norm,
                spec.output_norm,
                outputs=spec.outputs,
                time_limit=budget,
                domain=spec.domain,
                target=target,
            )
        except KeyboardInterrupt:
            say("interrupted: no lower bound")
        except NotLipschitz as error:  # outside of the domain
            say(f"no lower bound: {error}")
        except Exception as error:  # the search is untrusted, and a proved bound must not be lost to it
            say(f"the search for a lower bound failed ({type(error).__name__}: {error}): please report it")
        return None


def _result(
    network: Network,
    request: Request,
    parts: list[Part],
    bound: float,
    proof: dict[str, Any],
    assumptions: list[dict[str, Any]],
    found: Witness | None,
    execution: dict[str, Any] | None,
    clock: Clock,
) -> Result:
    spec = request.spec
    proved = math.isfinite(bound)
    lower = None if found is None else found.ratio
    if found is not None and found.ratio > bound and not assumptions:
        raise SoundnessError(_contradiction(network, request, bound, proof, found))
    claims = [p.claim for p in parts if p.claim is not None and math.isfinite(p.claim)]
    claim = max(claims) if len(claims) == len(parts) else None
    assurance: Assurance = "none" if claim is None else "numeric"
    if proved:
        assurance = "model" if assumptions else "proved"
    lowers = [p.lower for p in parts if p.lower is not None]
    estimate = max(lowers) if len(lowers) == len(parts) else None
    gap = max(0.0, (bound - estimate) / bound) if proved and estimate is not None and bound > 0.0 else None
    per_output = None
    if proof["rule"] == "largest" and parts[0].member.row is not None:
        labels = row_labels(spec.outputs, network.output_size)
        rows = sorted({p.member.row for p in parts if p.member.row is not None})
        bounds = {row: max(p.bound for p in parts if p.member.row == row) for row in rows}
        per_output = tuple(OutputBound(output=labels[row], bound=bounds[row], lower_bound=None) for row in rows)
    backends = {p.backend for p in parts if p.backend is not None}
    formulation = {"name": request.formulation.name, "options": plain(request.formulation.options())}
    written = certificate(
        network=network_named(network),
        spec=spec.to_json(),
        formulation=formulation,
        bound=bound if proved else None,
        upper=proof if proved else None,
        lower_bound=lower,
        lower=None if found is None else found.as_json(),
        assumptions=assumptions if proved else [],
        float_execution=execution if proved else None,
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
        options=plain(request.formulation.options()),
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
        plan=next((part.plan for part in parts if part.plan), ""),
        instead=_instead(parts),
    )


def _instead(parts: list[Part]) -> str:
    """What was proved in place of the formulation's own bounds, and for how many programs of a family."""
    others = [part.instead for part in parts if part.instead]
    names = ", ".join(dict.fromkeys(others))
    return names if len(others) in (0, len(parts)) else f"{names} for {len(others)} of {len(parts)} programs"


_ORDER: tuple[Termination, ...] = (
    "interrupted", "failed", "time-limit", "iteration-limit", "inaccurate", "closed-form", "optimal",
)  # fmt: skip


def _worst(terminations: list[Termination]) -> Termination:
    return min(terminations, key=_ORDER.index)


def _contradiction(network: Network, request: Request, bound: float, proof: dict[str, Any], found: Witness) -> str:
    """The message of the one error that must never happen, with what reproduces it."""
    bundle = {"network": describe(network), "spec": request.spec.to_json(), "upper": proof, "lower": found.as_json()}
    return (
        f"the witnessed lower bound {found.ratio!r} is above the proved bound {bound!r}: one of the two is wrong, and "
        f"this is a defect of lipmodel. Please report it with this: {json.dumps(bundle)}"
    )


__all__ = ["Request", "build", "make_request", "solve"]
