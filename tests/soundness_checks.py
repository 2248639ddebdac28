"""Random questions about random tiny networks, put to the public pipeline, and what must hold of every answer."""

from __future__ import annotations

import json
import math
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from random_graphs import random_graph
from random_networks import PAIRS, Chain, Formal, Plan, exceeds, formal_constant, random_chain

import lipmodel as lm

Array = np.ndarray[Any, Any]
FORMULATIONS = ("lipsdp-neuron", "geolip", "lipsdp-layer", "product", None)
BACKENDS = (None, "native", "clarabel", "scs")
REFUSALS = ("does not reach --norm", "does not take this model")
"""The only errors that a question may end in: a norm pair out of reach, a structure that a backend does not have."""
TIGHT = 1e-9
ROUNDING = 1e-11
"""What the enumeration in floating point may be off by where cancellation is mild; violations are proved exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    p: str
    q: str
    outputs: str
    formulation: str | None
    backend: str | None
    time_limit: float | None = None

    def arguments(self) -> dict[str, Any]:
        return {"norm": f"{self.p}:{self.q}", "outputs": self.outputs, "time_limit": self.time_limit}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """A network, how it is given (a Network made from weights, or an ONNX model), and a question about it."""

    label: str
    plan: Plan
    chain: Chain | None
    model: Any
    question: Question


@dataclass(slots=True, kw_only=True)
class Outcome:
    """failures: what did not hold; refused: the documented refusal; ratio, loss: to the formal constant, the claim."""

    label: str
    failures: list[str] = field(default_factory=list)
    refused: str | None = None
    ratio: float | None = None
    loss: float | None = None
    rule: str = ""
    terminations: str = ""

    def expect(self, condition: bool, message: str) -> None:
        if not condition:
            self.failures.append(message)


def random_case(seed: int, index: int) -> Case:
    """The case of this number; it depends on the two numbers alone."""
    rng = np.random.default_rng([seed, index])
    chain, model = None, None
    if rng.random() < 0.4:
        chain = random_chain(rng)
        plan = chain.plan()
    else:
        model, plan = random_graph(rng)
    p, q = PAIRS[int(rng.integers(0, len(PAIRS)))]
    m = plan.outputs
    outputs = "all"
    if m > 1 and rng.random() < 0.4:
        chosen = rng.permutation(m)[: int(rng.integers(1, m + 1))]
        outputs = f"margin:{chosen[0]}" if rng.random() < 0.5 else ",".join(str(i) for i in chosen)
    formulation = FORMULATIONS[int(rng.choice(5, p=[0.3, 0.35, 0.1, 0.1, 0.15]))]
    backend = BACKENDS[int(rng.choice(4, p=[0.6, 0.12, 0.2, 0.08]))]
    limit = float(rng.choice([1e-3, 0.02, 0.3])) if rng.random() < 0.05 else None
    question = Question(p=p, q=q, outputs=outputs, formulation=formulation, backend=backend, time_limit=limit)
    return Case(label=f"seed {seed}, network {index}", plan=plan, chain=chain, model=model, question=question)


def functionals(outputs: str, size: int) -> tuple[Array, bool]:
    """The rows that a choice of outputs measures, and whether each counts by itself (margins)."""
    eye = np.eye(size)
    if outputs == "all":
        return eye, False
    if outputs.startswith("margin:"):
        i = int(outputs.removeprefix("margin:"))
        return np.array([eye[i] - eye[j] for j in range(size) if j != i]), True
    return eye[[int(i) for i in outputs.split(",")]], False


def formal_of(plan: Plan, p: str, q: str, outputs: str) -> tuple[Formal, Array, str]:
    """The formal constant of the question, its functionals, and the output norm that they are measured in."""
    rows, each = functionals(outputs, plan.outputs)
    norm = "inf" if each else q
    return formal_constant(plan, p, norm, rows), rows, norm


def check(case: Case, folder: Path) -> Outcome:
    """Everything that must hold of one case. Never raises: a crash is a failure with its trace."""
    outcome = Outcome(label=f"{case.label}: {case.question}")
    try:
        _check(case, folder, outcome)
    except lm.UsageError as error:
        if any(text in str(error) for text in REFUSALS):
            outcome.refused = next(text for text in REFUSALS if text in str(error))
        else:
            outcome.failures.append(f"refused: {error}")
    except Exception:
        outcome.failures.append(f"crash: {traceback.format_exc(limit=-6)}")
    return outcome


def _check(case: Case, folder: Path, outcome: Outcome) -> None:
    a, plan = case.question, case.plan
    path = folder / "net.onnx"
    if case.chain is not None:
        network = case.chain.network()
        network.save(path)
    else:
        path.write_bytes(case.model.SerializeToString())
        network = lm.load(path)
    formal, rows, q = formal_of(plan, a.p, a.q, a.outputs)
    product = lm.solve(network, "product", witness=False, **a.arguments())
    outcome.expect(product.bound >= formal.value * (1 - ROUNDING), f"product {product.bound!r} < {formal.value!r}")
    lm.verify(network, product)
    result = lm.solve(network, a.formulation, backend=a.backend, **a.arguments())
    outcome.rule = result.certificate["upper"]["rule"] if result.certificate["upper"] else "none"
    outcome.terminations = result.termination
    check_bracket(result, formal, plan, a.p, q, rows, outcome)
    outcome.expect(
        result.bound <= product.bound * (1 + TIGHT), f"bound {result.bound!r} above product {product.bound!r}"
    )
    check_rows(result, plan, a, outcome)
    check_certificate(result, network, path, folder, outcome)
    if result.certificate["upper"] is not None and formal.value > 0.0:
        check_kernels(result, network, plan, outcome)
    if math.isfinite(result.bound) and formal.value > 0.0:
        outcome.ratio = result.bound / formal.value
        if result.termination == "optimal" and result.claim:
            outcome.loss = result.bound / result.claim


def check_bracket(result: lm.Result, formal: Formal, plan: Plan, p: str, q: str, rows: Array, outcome: Outcome) -> None:
    """lower <= formal constant <= bound, the right end in rational arithmetic where the plan is exact."""
    bound, lower = result.bound, result.lower_bound
    outcome.expect(result.assurance == "proved" and math.isfinite(bound), f"assurance {result.assurance}, {bound!r}")
    outcome.expect(bound >= formal.value * (1 - ROUNDING), f"UNSOUND: bound {bound!r} < {formal.value!r}")
    if plan.exact and math.isfinite(bound):
        outcome.expect(not exceeds(plan, formal, bound, p, q, rows), f"UNSOUND: {bound!r} is exactly too small")
    if lower is not None:
        outcome.expect(lower <= formal.value * (1 + TIGHT), f"UNSOUND: witness {lower!r} > {formal.value!r}")
        outcome.expect(0.0 <= lower <= bound, f"bracket {lower!r}, {bound!r}")
    outcome.expect(result.exact == (lower is not None and bound - lower <= 1e-9 * bound), "exact is wrong")


def check_rows(result: lm.Result, plan: Plan, a: Question, outcome: Outcome) -> None:
    """Every bound per output is above that output's own constant, and none is above the whole."""
    if result.per_output is None:
        return
    rows, _ = functionals(a.outputs, plan.outputs)
    outcome.expect(len(result.per_output) == len(rows), "per_output has another number of rows")
    for row, said in zip(rows, result.per_output, strict=True):
        own = formal_constant(plan, a.p, "inf", row[None, :]).value
        outcome.expect(said.bound >= own * (1 - ROUNDING), f"UNSOUND: output {said.output}: {said.bound!r} < {own!r}")
        outcome.expect(said.bound <= result.bound, f"output {said.output}: above the whole")


def check_certificate(result: lm.Result, network: Any, path: Path, folder: Path, outcome: Outcome) -> None:
    """`verify` accepts the result, its JSON, and the files; the JSON reads back as it was."""
    text = json.dumps(result.to_json())
    outcome.expect(lm.Result.from_json(json.loads(text)).to_json() == result.to_json(), "the JSON reads back otherwise")
    verdict = lm.verify(network, text)
    stated = result.bound if math.isfinite(result.bound) else None
    outcome.expect((verdict.bound, verdict.lower_bound) == (stated, result.lower_bound), f"verified {verdict}")
    saved = folder / "result.json"
    result.save(saved)
    again = lm.verify(path, saved)
    outcome.expect(again == verdict, "the files give another verdict")


def check_kernels(result: lm.Result, network: Any, plan: Plan, outcome: Outcome) -> None:
    """The floating-point proof and the exact one agree on the multipliers, and on ones that are false for sure."""
    from lipmodel.certify.certificate import read_vector
    from lipmodel.certify.kernel import decides_positive_semidefinite, exact_lmi
    from lipmodel.certify.lmi import Multipliers
    from lipmodel.certify.rigor import proves_lmi
    from lipmodel.families import Member, chosen_outputs, restricted
    from lipmodel.network.increments import exact_system, float_system, increments

    upper = result.certificate["upper"]
    member = upper["members"][0] if upper["rule"] == "largest" else {"row": None, "column": None, "proof": upper}
    proof = member["proof"]
    if proof["rule"] != "lmi":
        return
    p, q = proof["norms"]
    whole = chosen_outputs(increments(network), result.spec.outputs)
    system = restricted(whole, Member(row=member["row"], column=member["column"], norms=(p, q)))
    vectors = {key: read_vector(proof[key], key) for key in ("g", "s")}
    t = tuple(read_vector(v, "t") for v in proof["t"])
    exact, floating = exact_system(system), float_system(system)
    rows, _ = functionals(str(result.spec.outputs), plan.outputs)
    if member["row"] is not None:
        rows = rows[member["row"]][None, :]
    if member["column"] is None:
        own = formal_constant(plan, p, q, rows).value
    else:
        own = formal_constant(_one_input(plan, member["column"]), p, q, rows).value
    false = (0.99 * own / float.fromhex(proof["bound"])) ** 2
    for factor, expected in ((1.0, True), (false, False)):
        if factor < 1e-250:
            continue
        m = Multipliers(t=t, g=vectors["g"] * factor, s=vectors["s"])
        outcome.expect(proves_lmi(floating, m) is expected, f"the floating-point proof: {not expected} at {factor!r}")
        decided = decides_positive_semidefinite(exact_lmi(exact, m))
        outcome.expect(decided is expected, f"the exact proof: {decided} at {factor!r}")


def _one_input(plan: Plan, column: int) -> Plan:
    from random_networks import Step

    first = Step(size=1)
    chosen = np.eye(plan.inputs)[:, [column]]
    steps = [first, Step(size=plan.inputs, terms=((0, chosen),))]
    for step in plan.steps[1:]:
        terms = tuple((k + 1, m) for k, m in step.terms)
        steps.append(Step(size=step.size, terms=terms, low=step.low, high=step.high))
    return Plan(steps=tuple(steps), exact=plan.exact)
