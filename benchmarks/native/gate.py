"""The gate: random networks of every kind, each solved to a millionth, feasible, proved, and compared."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.native.systems import RandomCase, random_case
from lipmodel.backends import backend
from lipmodel.backends.base import Point, SolveOptions
from lipmodel.backends.native.chains import NotAChain, read_chain
from lipmodel.backends.native.general import solve_program
from lipmodel.backends.native.reading import read_program
from lipmodel.bridges.program import cone_program
from lipmodel.certify.extract import extract
from lipmodel.certify.repair import prove
from lipmodel.member import free_multipliers
from lipmodel.model.model import Model
from lipmodel.network.increments import IncrementSystem, float_system
from lipmodel.pipeline import build, make_request

Array = np.ndarray[Any, Any]
TOL = 1e-6
PROOF = 1e-8
"""What the proof may lose, relatively."""
TINY = 22
"""Orders up to which Clarabel solves the same model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One network of the suite: what went wrong (nothing: ""), the gap of its claim and what the proof lost."""

    seed: int
    label: str
    failure: str
    gap: float
    loss: float
    iterations: int
    seconds: float
    proof_seconds: float
    compared: bool = False
    refuted: bool = False
    zero: bool = False


def model_of(case: RandomCase) -> Model:
    """The program of a case."""
    p, q = case.norms
    request = make_request(case.system, case.formulation, norm=f"{p}:{q}")
    model = build(case.system, request.formulation, request.spec)
    assert isinstance(model, Model)
    return model


def examine(case: RandomCase) -> Outcome:
    """Solve one case and check its answer by everything that does not come from the solver."""
    facts: dict[str, Any] = {"seed": case.seed, "label": str(case), "gap": math.nan, "loss": math.nan}
    facts |= {"iterations": 0, "seconds": 0.0, "proof_seconds": 0.0}
    try:
        model = model_of(case)
        start = time.process_time()
        point = backend("native").solve(model, SolveOptions(tol=TOL))
        facts |= {"seconds": time.process_time() - start, "iterations": point.iterations or 0}
        failures = _failures(case, model, point, facts)
    except Exception:
        failures = [traceback.format_exc(limit=-2).strip()]
    return Outcome(failure="; ".join(failures), **facts)


def _failures(case: RandomCase, model: Model, point: Point, facts: dict[str, Any]) -> list[str]:
    if point.values is None or point.objective is None or point.lower is None:
        return [f"no point ({point.termination}: {point.message})"]
    claim, lower = model.bound_of(point.objective), model.bound_of(max(point.lower, 0.0))
    facts["zero"] = not reaches_output(case.system)
    failures = []
    if not facts["zero"]:
        facts["gap"] = 1.0 - lower / claim if claim > 0.0 else math.inf
        if not facts["gap"] <= TOL:
            failures.append(f"gap {facts['gap']:.2e} ({point.termination})")
        if lower > claim:
            failures.append(f"lower estimate {lower!r} above the claim {claim!r}")
    least = least_eigenvalue(model, point)
    if not least > 0.0:
        failures.append(f"not strictly feasible: least eigenvalue {least:.2e} at unit diagonal")
    start = time.process_time()
    multipliers, _ = extract(model, case.system, point.values)
    proved = prove(
        float_system(case.system),
        *case.norms,
        [("native", multipliers)],
        closed="doubt" if free_multipliers(model) else "doubt-tied",
    )
    facts["proof_seconds"] = time.process_time() - start
    if proved is None:
        failures.append("nothing proved from the point")
    elif not facts["zero"]:
        facts["loss"] = proved.bound / claim - 1.0
        if facts["loss"] > PROOF:
            failures.append(f"the proof loses {facts['loss']:.2e} of the claim {claim!r}")
    if not failures and case.system.order <= TINY and not facts["zero"]:
        failures += _compared(model, claim, lower, facts)
    if not failures and not facts["zero"]:
        failures += _crossed(model, claim, lower)
    return failures


def _crossed(model: Model, claim: float, lower: float) -> list[str]:
    """A chain solved again by the path follower of general graphs: both brackets hold the same optimum."""
    try:
        read_chain(model)
    except NotAChain:
        return []
    other = solve_program(read_program(model), tol=TOL)
    value, least = model.bound_of(other.value), model.bound_of(max(other.lower, 0.0))
    if lower > value * (1.0 + 1e-9) or least > claim * (1.0 + 1e-9):
        return [f"as a general graph {least!r}..{value!r}, as a chain {lower!r}..{claim!r}"]
    return []


def _compared(model: Model, claim: float, lower: float, facts: dict[str, Any]) -> list[str]:
    """Clarabel on the same model, where its point is feasible and its gap closed; the native claim has been proved."""
    other = backend("clarabel").solve(model, SolveOptions(tol=1e-7, time_limit=20.0))
    if other.termination != "optimal" or other.objective is None or other.lower is None:
        return []
    value, least = model.bound_of(other.objective), model.bound_of(max(other.lower, 0.0))
    if not (value > 0.0 and abs(1.0 - least / value) <= 1e-6 and least_eigenvalue(model, other) > -1e-7):
        return []
    facts["compared"] = True
    # the claim is proved here: an optimum above it is refuted, whatever Clarabel's own tolerances say
    facts["refuted"] = claim < least * (1.0 - 3e-6)
    if claim > value * (1.0 + 3e-6) or (lower > value * (1.0 + 3e-6) and not facts["refuted"]):
        return [f"Clarabel has {least!r}..{value!r}, native {lower!r}..{claim!r}"]
    return []


def reaches_output(system: IncrementSystem) -> bool:
    """Whether any path of nonzero weights leads from the input to the output."""
    live = {system.signals[0]: np.ones(system.signals[0].size, dtype=bool)}

    def reached(form: Any) -> Array:
        total = np.zeros(form.size)
        for signal, block in form.blocks.items():
            total += abs(block.enclosure().center) @ live[signal].astype(float)
        return total > 0.0

    for activation in system.activations:
        live[activation.signal] = reached(activation.pre)
    return bool(reached(system.output).any())


def least_eigenvalue(model: Model, point: Point) -> float:
    """Of the model's matrix at the point, expanded entry by entry and scaled to a unit diagonal."""
    (block,) = cone_program(model).psd
    assert point.values is not None
    y = np.concatenate([*(np.asarray(point.values[v]) for v in model.variables), np.ones(1)])
    if not np.all(np.isfinite(y)) or any(np.any(point.values[v] < 0) for v in model.variables if v.nonnegative):
        return -math.inf
    lower = np.zeros((block.order, block.order))
    np.add.at(lower, (block.row, block.col), y[block.var] * block.value)
    diagonal = np.diag(lower)
    if not np.all(diagonal > 0.0):
        return -math.inf
    root = 1.0 / np.sqrt(diagonal)
    scaled = root[:, None] * lower * root
    return float(np.linalg.eigvalsh(scaled, UPLO="L")[0])


def run_gate(
    count: int,
    seed: int = 0,
    *,
    largest: int = 28,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Cases seed, seed + 1, ..: failures in words, and what the rest looks like."""
    outcomes = []
    for i in range(seed, seed + count):
        outcomes.append(examine(random_case(i, largest)))
        if outcomes[-1].failure:
            say(f"FAILURE {outcomes[-1].label}: {outcomes[-1].failure}")
    real = [o for o in outcomes if math.isfinite(o.gap)]
    hessians = [o.iterations for o in real] or [0]
    return {
        "count": count,
        "seed": seed,
        "failures": [asdict(o) for o in outcomes if o.failure],
        "zero": sum(o.zero for o in outcomes),
        "compared": sum(o.compared for o in outcomes),
        "refuted": sum(o.refuted for o in outcomes),
        "largest gap": max((o.gap for o in real), default=0.0),
        "largest loss": max((o.loss for o in real if math.isfinite(o.loss)), default=0.0),
        "median iterations": float(np.median(hessians)),
        "most iterations": max(hessians),
        "seconds": sum(o.seconds for o in outcomes),
        "proof seconds": sum(o.proof_seconds for o in outcomes),
        "slowest": [[round(o.seconds, 2), o.label] for o in sorted(outcomes, key=lambda o: -o.seconds)[:5]],
    }
