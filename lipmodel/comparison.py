"""Every formulation that applies, on one network and one machine, under one time budget: each answers for itself.

The cheapest go first, each in a process of its own. A closed form may take a quarter of the time that is left (if it
does not fit, what comes after it will hardly do), the others an equal share: what quick methods leave goes to the slow
ones. At the end a witness pair is searched for, which bounds the constant from below.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lipmodel.attempts import Attempts, Outlook, outlook, solve_alone, warm_up, witness
from lipmodel.backends import backend as find_backend
from lipmodel.backends.base import Backend, Progress
from lipmodel.errors import BackendUnavailable, SoundnessError, UsageError
from lipmodel.families import chosen_outputs, measured, members
from lipmodel.formulation import Formulation, formulation_names
from lipmodel.formulation import formulation as find_formulation
from lipmodel.pipeline import LOOK, loaded
from lipmodel.question import Request, Systems, asked, make_request, systems
from lipmodel.result import Result, describe
from lipmodel.spec import Spec

if TYPE_CHECKING:
    from lipmodel.estimates import Estimate
    from lipmodel.lower.witness import Witness
    from lipmodel.network.graph import Network

TIME_LIMIT = 120.0
"""Seconds for everything, where no limit is given."""
FOR_WITNESS = 0.1
"""Part of the time that is kept for the lower bound, and as much again for estimates where they are wanted."""
FOR_OUTLOOK = 0.01
"""Part of the time that it may take to see what one method is."""
CLOSED_FORM = 0.25
"""Part of the time that is left that a closed form may take."""
LEAST = 1.0
"""Seconds that a method has in any case, once it has begun."""

Status = Literal["waiting", "running", "answered", "not applicable", "did not fit", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """One method of a comparison.

    method: the formulation, with the options that are not its defaults; backend: what solved it, or what it was asked
    to be solved by. result: where it answered, with a proved bound; reason: why it did not. seconds: from building the
    model to the proof.
    """

    method: str
    backend: str | None = None
    status: Status = "waiting"
    result: Result | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """The method, with its solver where there is one."""
        return self.method if self.backend is None else f"{self.method} ({self.backend})"

    @property
    def bound(self) -> float:
        """The proved bound, inf where there is none."""
        return math.inf if self.result is None else self.result.bound

    @property
    def note(self) -> str:
        """What must be known about the bound: that it is not the method's own, that the method was stopped."""
        if self.result is None:
            return self.reason
        notes = [f"{self.result.instead} instead"] if self.result.instead else []
        why = self.result.termination
        notes += [why.replace("-", " ")] if why not in ("optimal", "closed-form") else []
        gap = self.result.gap
        if gap is not None and gap > 1e-3:
            notes.append(f"gap {gap:.1e}")
        return ", ".join(notes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """What every method proved about one network, the best bound first; then those without a bound.

    witness: the pair that bounds the constant from below, found in witness_seconds. estimates: numbers that bound
    nothing. time_limit: of the whole, in seconds; seconds: what it took.
    """

    network: dict[str, Any]
    spec: Spec
    entries: tuple[Entry, ...]
    witness: Witness | None
    witness_seconds: float
    estimates: tuple[Estimate, ...]
    no_estimates: tuple[tuple[str, str], ...]
    time_limit: float
    seconds: float
    interrupted: bool

    @property
    def answered(self) -> list[Entry]:
        """The methods with a proved bound, the best first."""
        return [entry for entry in self.entries if entry.status == "answered"]

    @property
    def skipped(self) -> list[Entry]:
        """The methods without one, and why."""
        return [entry for entry in self.entries if entry.status != "answered"]

    @property
    def results(self) -> list[Result]:
        """The results of the methods that answered, the best bound first."""
        return [entry.result for entry in self.entries if entry.result is not None]

    @property
    def best(self) -> float:
        """The smallest proved bound, inf where there is none."""
        return min((entry.bound for entry in self.answered), default=math.inf)

    @property
    def lower_bound(self) -> float | None:
        return None if self.witness is None else self.witness.ratio

    def to_json(self) -> list[dict[str, Any]]:
        """The results as plain JSON values, the best bound first."""
        return [result.to_json() for result in self.results]


Watch = Callable[[int, Entry, Progress | None], None]


def compare(
    net: Network | str | os.PathLike[str],
    formulations: Iterable[Any] | None = None,
    *,
    backends: Iterable[Any] = (),
    norm: Any = None,
    outputs: Any = "all",
    domain: Any = "global",
    tol: float = 1e-6,
    time_limit: float = TIME_LIMIT,
    estimates: bool = False,
    graph_input: Any = None,
    graph_output: Any = None,
    jobs: int | None = None,
    report: Callable[[str], None] | None = None,
    watch: Watch | None = None,
    verbose: bool = False,
) -> Comparison:
    """The proved bounds of several methods on one network, each the method's own, and one witnessed lower bound.

    formulations: names, `FILE.py:CLASS`, classes or instances (default: every known one). backends: each model is
    solved by each of them (default: the first that takes it). norm: P or P:Q (default: what the named formulations
    share, else 2). time_limit: seconds for everything, from the import on. estimates: also compute what may lie below
    the constant. report: told in a line what happens (verbose: also what the methods say); watch: given the number, the
    entry and, while it runs, the progress of a method. The other arguments are those of `solve`. Every method runs in a
    forked process of its own, one after the other (not on Linux: in this process, which a method can then hold up).
    Raises UsageError (also where no named formulation applies), RefusedInput, BackendUnavailable (where none of the
    named backends is there), SoundnessError, KeyboardInterrupt where nothing was proved before it.
    """
    began = time.monotonic()
    if not (isinstance(time_limit, int | float) and 0.0 < time_limit < math.inf):
        raise UsageError(f"time limit {time_limit!r}: a positive number of seconds")
    if not (isinstance(tol, int | float) and 0.0 < tol < 1.0):
        raise UsageError(f"tol {tol!r}: a relative tolerance between 0 and 1, such as 1e-6")
    named = None if formulations is None else [find_formulation(f) for f in formulations]
    if norm is None:
        own = {f.default_norm for f in named or ()}
        norm = own.pop() if len(own) == 1 else "2"
    solvers, missing = _usable(backends)
    network = loaded(net, graph_input, graph_output)
    norms, region = asked(network, None, norm, domain, None)
    found = systems(network, region, norms[0])
    question = {"norm": norms, "outputs": outputs, "domain": region}
    spec = make_request(found.system, "product", **question).spec
    run = _Comparing(
        network=network,
        found=found,
        spec=spec,
        end=began + time_limit,
        methods=[],
        attempts=Attempts(verbose=verbose),
        settings={"tol": tol, "jobs": jobs, "verbose": verbose},
        say=report or (lambda line: None),
        watch=watch or (lambda number, entry, progress: None),
    )
    run.methods = _methods(found, question, named, missing)
    warm_up()
    pair, witness_seconds = None, 0.0
    numbers: list[Estimate] = []
    without: list[tuple[str, str]] = []
    try:
        run.look(solvers, FOR_OUTLOOK * time_limit)
        if named is not None and all(m.entry.status == "not applicable" for m in run.methods):
            reasons = "".join(f"\n  - {m.entry.label}: {m.entry.reason}" for m in run.methods)
            raise UsageError(f"none of the formulations applies:{reasons}")
        kept = FOR_WITNESS * time_limit
        run.solve(2.0 * kept if estimates else kept)
        pair, witness_seconds = run.lower(kept)
        if estimates:
            numbers, without = run.estimates()
    except KeyboardInterrupt:
        run.attempts.interrupted = True
    entries = [_with_witness(m.entry, pair) for m in run.methods]
    if run.attempts.interrupted and not any(entry.result for entry in entries):
        raise KeyboardInterrupt
    entries.sort(key=lambda entry: (entry.status != "answered", entry.bound, entry.seconds))
    return Comparison(
        network=describe(network),
        spec=spec,
        entries=tuple(entries),
        witness=pair,
        witness_seconds=witness_seconds,
        estimates=tuple(numbers),
        no_estimates=tuple(without),
        time_limit=float(time_limit),
        seconds=time.monotonic() - began,
        interrupted=run.attempts.interrupted,
    )


@dataclass(slots=True, kw_only=True, eq=False)
class _Method:
    """A method on its way; request is None where it is known from the start that it cannot be tried."""

    entry: Entry
    request: Request | None = None
    backend: Backend | None = None
    outlook: Outlook = field(default_factory=lambda: Outlook(cost=math.inf))


def _usable(backends: Iterable[Any]) -> tuple[list[Backend], list[tuple[str, str]]]:
    """The backends that can be used, and why others cannot. Raises UsageError, BackendUnavailable if none can."""
    solvers: list[Backend] = []
    missing: list[tuple[str, str]] = []
    for name in dict.fromkeys(backends):
        try:
            solvers.append(find_backend(name))
        except BackendUnavailable as error:
            missing.append((name if isinstance(name, str) else name.name, str(error)))
    if missing and not solvers:
        raise BackendUnavailable("\n".join(reason for _, reason in missing))
    return solvers, missing


def _methods(
    found: Systems,
    question: dict[str, Any],
    named: Sequence[Formulation] | None,
    missing: Sequence[tuple[str, str]],
) -> list[_Method]:
    """Every formulation once, those that do not reach the question already marked."""
    methods: list[_Method] = [
        _Method(entry=Entry(method="every model", backend=name, status="not applicable", reason=reason))
        for name, reason in missing
    ]
    known: dict[str, list[Formulation]] = {}
    for given in formulation_names() if named is None else named:
        try:
            formulation = given if isinstance(given, Formulation) else find_formulation(given)
        except Exception as error:  # an extension of a third party that does not load
            entry = Entry(method=str(given), status="failed", reason=f"{type(error).__name__}: {error}")
            methods.append(_Method(entry=entry))
            continue
        label = _label(formulation)
        alike = known.setdefault(label, [])
        if formulation in alike:
            continue
        alike.append(formulation)
        label = label if len(alike) == 1 else f"{label} [{len(alike)}]"
        request = make_request(found.system, formulation, **question)
        try:
            system = chosen_outputs(found.system, request.spec.outputs)
            members(system, measured(request.spec), formulation.norms, label)
        except UsageError:
            pairs = ", ".join(sorted(":".join(pair) for pair in formulation.norms))
            reason = f"it has {pairs}, from which {':'.join(request.spec.norms)} is not reached here"
            methods.append(_Method(entry=Entry(method=label, status="not applicable", reason=reason)))
        else:
            methods.append(_Method(entry=Entry(method=label), request=request))
    return methods


def _label(formulation: Formulation) -> str:
    """The name, and the options that are not the defaults."""
    plain = {f.name: f.default for f in fields(formulation)}  # type: ignore[arg-type]
    options = [f"{key}={value}" for key, value in formulation.options().items() if value != plain[key]]
    return " ".join([formulation.name or type(formulation).__name__, *options])


@dataclass(slots=True, kw_only=True, eq=False)
class _Comparing:
    """A comparison on its way; end: when it is over, on the clock of `time.monotonic`."""

    network: Network
    found: Systems
    spec: Spec
    end: float
    methods: list[_Method]
    attempts: Attempts
    settings: dict[str, Any]
    say: Callable[[str], None]
    watch: Watch

    def left(self) -> float:
        return self.end - time.monotonic()

    def look(self, solvers: Sequence[Backend], seconds: float) -> None:
        """See what every method is, so that the cheapest go first; models are asked of every given backend."""
        system = chosen_outputs(self.found.system, self.spec.outputs)
        expanded: list[_Method] = []
        for method in self.methods:
            if method.request is None or self.attempts.interrupted:
                expanded.append(method)
                continue
            call = partial(outlook, system, method.request, solvers[0] if solvers else None)
            told: list[Outlook] = []
            outcome = self.attempts.run(call, seconds=max(LEAST, seconds), received=told.append)
            method.outlook = told[-1] if told else method.outlook
            if method.outlook.refusal:
                method.entry = replace(method.entry, status="did not fit", reason=method.outlook.refusal)
            elif outcome.ended in ("not applicable", "failed"):
                method.entry = replace(method.entry, status=outcome.ended, reason=outcome.reason)
            if solvers and method.entry.status == "waiting" and method.outlook.solver:
                for solver in solvers:
                    entry = replace(method.entry, backend=solver.name)
                    expanded.append(replace(method, entry=entry, backend=solver))
            else:
                expanded.append(method)
        self.methods = sorted(
            expanded, key=lambda m: (m.entry.status != "waiting", not m.outlook.closed, m.outlook.cost)
        )
        for number, method in enumerate(self.methods):
            self.watch(number, method.entry, None)

    def solve(self, kept: float) -> None:
        """Every method that is waiting, each with its share of what is left but for the seconds kept."""
        waiting = [number for number, method in enumerate(self.methods) if method.entry.status == "waiting"]
        for place, number in enumerate(waiting):
            left = self.left() - kept
            if self.attempts.interrupted or (place > 0 and left <= 0.0):
                why = "interrupted" if self.attempts.interrupted else "no time was left for it"
                self._change(number, status="did not fit", reason=why)
                continue
            share = 1.0 / (len(waiting) - place)
            if self.methods[number].outlook.closed:
                share = max(share, CLOSED_FORM)
            self._attempt(number, max(LEAST, share * left))

    def _attempt(self, number: int, seconds: float) -> None:
        method = self.methods[number]
        assert method.request is not None
        self._change(number, status="running")

        def received(content: str | Progress) -> None:
            if not isinstance(content, str):
                self.watch(number, method.entry, content)
            elif self.attempts.verbose:
                self.say(f"{method.entry.label}: {content}")

        began = time.monotonic()
        asked = (self.network, self.found, method.request, method.backend)
        call = partial(solve_alone, *asked, seconds, self.settings)
        outcome = self.attempts.run(call, seconds=seconds, received=received)
        result = outcome.value
        if isinstance(result, Result) and math.isfinite(result.bound):
            took = result.timings.total
            self._change(number, status="answered", result=result, seconds=took, backend=result.backend)
        elif isinstance(result, Result):
            self._change(number, status="failed", reason="nothing could be proved", seconds=time.monotonic() - began)
        else:
            took = time.monotonic() - began
            self._change(number, status=outcome.ended, reason=outcome.reason, seconds=took)

    def _change(self, number: int, **facts: Any) -> None:
        method = self.methods[number]
        method.entry = replace(method.entry, **facts)
        self.watch(number, method.entry, None)

    def lower(self, kept: float) -> tuple[Witness | None, float]:
        """The search for a witness, in the seconds kept for it, and no longer than the methods took together."""
        if self.attempts.interrupted:
            return None, 0.0
        took = sum(method.entry.seconds for method in self.methods)
        best = min((method.entry.bound for method in self.methods), default=math.inf)
        left = max(LEAST, self.left())
        seconds = min(max(took, LOOK * min(self.found.system.neurons, 100)), kept, 0.5 * left)
        self.say(f"searching for a witness of the lower bound, {seconds:.3g} s")
        began = time.monotonic()
        call = partial(witness, self.network, self.spec, seconds, best * (1.0 - 1e-10))
        outcome = self.attempts.run(call, seconds=LEAST + left, received=self.say)
        if outcome.ended != "done":
            self.say(f"no lower bound: {outcome.reason}")
        return outcome.value, time.monotonic() - began

    def estimates(self) -> tuple[list[Estimate], list[tuple[str, str]]]:
        """Numbers that bound nothing, and why others are not there."""
        from lipmodel.estimates import ESTIMATES, Estimate, estimate

        found: list[Estimate] = []
        without: list[tuple[str, str]] = []
        for place, name in enumerate(ESTIMATES):
            seconds = max(LEAST, self.left() / (len(ESTIMATES) - place))
            if self.attempts.interrupted:
                without.append((name, "interrupted"))
                continue

            def call(send: Callable[[Any], None], name: str = name, seconds: float = seconds) -> Estimate:
                spec = self.spec
                return estimate(
                    self.network,
                    name,
                    norm=spec.norms,
                    domain=spec.domain,
                    outputs=spec.outputs,
                    time_limit=0.5 * seconds,
                )

            outcome = self.attempts.run(call, seconds=seconds, received=self.say)
            if isinstance(outcome.value, Estimate):
                found.append(outcome.value)
            else:
                without.append((name, outcome.reason))
        return found, without


def _with_witness(entry: Entry, pair: Witness | None) -> Entry:
    """The entry whose result also has the lower bound. Raises SoundnessError where that is above the proved bound."""
    result = entry.result
    if result is None or pair is None or result.certificate is None:
        return entry
    if pair.ratio > result.bound:
        bundle = json.dumps({"result": result.to_json(), "lower": pair.as_json()})
        raise SoundnessError(
            f"the witnessed lower bound {pair.ratio!r} is above the bound {result.bound!r} of {entry.label}: one of "
            f"the two is wrong, and this is a defect of lipmodel. Please report it with this: {bundle}"
        )
    claim = {**result.certificate["claim"], "lower_bound": pair.ratio.hex()}
    certificate = {**result.certificate, "claim": claim, "lower": pair.as_json()}
    return replace(entry, result=replace(result, lower_bound=pair.ratio, certificate=certificate))
