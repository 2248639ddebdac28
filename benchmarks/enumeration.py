"""A hundred thousand certified bounds of tiny networks, global and on boxes and balls, against enumeration.

    python -m benchmarks.enumeration [--bounds 100000] [--seed 0] [--minutes M] [--restart]

Every network is asked many questions (norm pairs, outputs, formulations, backends). Globally the yardstick is the
largest norm over all vertices of the slope box. On a domain it is the local constant itself: the domain is cut into the
cells on which a piecewise linear network is affine, in rational arithmetic, and the largest norm of their Jacobians is
taken. Bounds close to the yardstick are decided in rational arithmetic. Every twentieth certificate is verified, every
fiftieth question also asks for a witness. Network number i depends on the seed and i alone, and a run goes on where the
last one with its seed ended. Writes results/enumeration.json and enumeration.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import lipmodel as lm
from lipmodel.result import write_atomically

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent)]  # the tests check the same things, on fewer networks

from random_graphs import random_graph  # noqa: E402
from random_networks import (  # noqa: E402
    PAIRS,
    Plan,
    Step,
    exceeds,
    formal_constant,
    induced,
    random_chain,
    random_weights,
)
from soundness_checks import functionals  # noqa: E402

from benchmarks.cells import BENT, Bending, Rows, box, cross, jacobians, times  # noqa: E402

Array = np.ndarray[Any, Any]
SUBJECTS = 4
"""Norm pairs with outputs that are asked of one network, of every formulation."""
FORMULATIONS = ("product", "geolip", "lipsdp-neuron", "lipsdp-layer")
OTHERS = (
    *("liplt", "combettes-pesquet", "k3", "k4", "path-norm", "seqlip", "syed-hu", "eclipse", "eclipse-fast"),
    *("geolip-triangle", "lipsdp-pair", "lipopt", "sos", "s-opt", "shor", "hr1", "hr2"),
)
"""Formulations of which some are asked, about subjects of their own; the last eight for no longer than a second."""
OTHERS_ASKED = 4
INPUTS = 6
"""Inputs up to which networks are taken."""
SAVED = 25
"""Networks between two savings."""
REFUSALS = (
    *("does not reach --norm", "does not take this model", "defined for chains", "is about chains of layers"),
    *("is not positive definite", "looks at one layer and the next"),
)
CLOSE = 1.0 + 1e-6
"""Ratio of bound and yardstick below which the question is decided in rational arithmetic."""
ROUNDING = 1e-10
"""What the yardstick in floating point may be off by, relatively."""
COUNTERS = ("domains", "pairs", "formulations", "rules", "backends", "terminations", "refusals")


# --------------------------------------------------------------------------------------------------------------- truth


@dataclass(frozen=True, slots=True)
class Subject:
    """What a bound is about: a norm pair, outputs, and the row and column of them that it looks at (None: all)."""

    p: str
    q: str
    outputs: str
    row: int | None = None
    column: int | None = None

    def functionals(self, size: int) -> tuple[Array, str]:
        """The rows that are measured, and the norm in which they are."""
        rows, each = functionals(self.outputs, size)
        return (rows if self.row is None else rows[[self.row]]), ("inf" if each else self.q)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A number that the constant is not below, in floating point, and whether a bound is too small, exactly."""

    value: float
    exceeded: Callable[[float], bool]


def global_truth(plan: Plan, about: Subject) -> Truth:
    """The formal constant, by all vertices of the slope box."""
    rows, q = about.functionals(plan.outputs)
    if about.column is not None:
        chosen = np.eye(plan.inputs)[:, [about.column]]
        first = (Step(size=1), Step(size=plan.inputs, terms=((0, chosen),)))
        rest = [replace(step, terms=tuple((k + 1, m) for k, m in step.terms)) for step in plan.steps[1:]]
        plan = Plan(steps=(*first, *rest), exact=plan.exact)
    formal = formal_constant(plan, about.p, q, rows)
    return Truth(
        value=formal.value, exceeded=lambda bound: plan.exact and exceeds(plan, formal, bound, about.p, q, rows)
    )


def reached(net: Bending, domain: Any, p: str) -> tuple[list[Rows], int]:
    """The Jacobians of all cells on a domain with respect to the inputs that can move, and how many these are.

    A ball of the l2 norm is replaced by a cube inside: the largest norm is then at most the constant.
    """
    n = net.weights[0].shape[1]
    if isinstance(domain, lm.Box):
        lo, hi = [Fraction(x) for x in domain.lo], [Fraction(x) for x in domain.hi]
    else:
        center, radius = [Fraction(x) for x in domain.center], Fraction(domain.radius)
        if p == "1":
            inputs = [[Fraction(int(i == j)) for j in range(n)] for i in range(n)]
            return jacobians(net, cross(center, radius), inputs, [Fraction(0)] * n), n
        half = radius * (Fraction(999, math.isqrt(n * 10**6) + 1) if p == "2" else 1)
        lo, hi = [c - half for c in center], [c + half for c in center]
    free = [i for i in range(n) if lo[i] < hi[i]]
    inputs = [[Fraction(int(i == j)) for j in free] for i in range(n)]
    offset = [Fraction(0) if i in free else lo[i] for i in range(n)]
    return jacobians(net, box([lo[i] for i in free], [hi[i] for i in free]), inputs, offset), len(free)


def local_truth(cells: list[Rows], free: int, about: Subject) -> Truth:
    """The largest norm of the Jacobians of the cells; columns are counted among the inputs that can move."""
    rows, q = about.functionals(len(cells[0]))
    stack = rows @ np.array([[[float(x) for x in row] for row in cell] for cell in cells]).reshape(
        len(cells), len(cells[0]), free
    )
    columns = [k for k in range(free) if about.column in (None, k)]
    stack = stack[:, :, columns]
    if not columns:
        return Truth(value=0.0, exceeded=lambda bound: bound < 0.0)
    norms = induced(stack, about.p, q)
    best = int(np.argmax(norms))
    exact = times([[Fraction(x) for x in row] for row in rows.tolist()], cells[best], free)
    exact = [[row[k] for k in columns] for row in exact]
    return Truth(value=float(norms[best]), exceeded=lambda bound: above(exact, stack[best], bound, about.p, q))


def above(exact: Rows, matrix: Array, bound: float, p: str, q: str) -> bool:
    """Whether a matrix, given exactly and rounded, provably has ||.||_{p->q} > bound."""
    plan = Plan(steps=(Step(size=matrix.shape[1]), Step(size=len(matrix), terms=((0, matrix),))))
    x = [Fraction(float(v)) for v in formal_constant(plan, p, q).direction]
    y = [sum((a * b for a, b in zip(row, x, strict=True)), Fraction(0)) for row in exact]
    return _squared(y, q) > Fraction(bound) ** 2 * _squared(x, p)


def _squared(v: list[Fraction], norm: str) -> Fraction:
    if norm == "2":
        return sum((x * x for x in v), Fraction(0))
    return (sum(map(abs, v), Fraction(0)) if norm == "1" else max(map(abs, v))) ** 2


# ----------------------------------------------------------------------------------------------------------- questions


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """A network, a domain, and the truth of every question about them."""

    network: Any
    domain: Any
    outputs: int
    truth: Callable[[Subject], Truth]

    @property
    def kind(self) -> str:
        return "global" if self.domain == "global" else type(self.domain).__name__.lower()


def random_bending(rng: np.random.Generator) -> Bending:
    """A chain of 1 to 3 inputs and at most ten neurons; weights in eighths, or float32."""
    sizes, left = [int(rng.integers(1, 4))], 10
    for _ in range(int(rng.integers(1, 4))):
        if left:
            sizes.append(int(rng.integers(1, min(6, left) + 1)))
            left -= sizes[-1]
    sizes.append(int(rng.integers(1, 4)))
    weights = [random_weights(rng, m, n) for n, m in itertools.pairwise(sizes)]
    biases = [rng.standard_normal(m) * 0.3 for m in sizes[1:]]
    if rng.random() < 0.5:
        weights, biases = [np.round(8 * w) / 8 for w in weights], [np.round(8 * b) / 8 for b in biases]
    else:
        weights, biases = [w.astype(np.float32) for w in weights], [b.astype(np.float32) for b in biases]
    bent = [BENT[0] if rng.random() < 0.5 else BENT[int(rng.integers(len(BENT)))] for _ in sizes[2:]]
    return Bending(weights=tuple(weights), biases=tuple(biases), bent=tuple(bent))


def random_region(rng: np.random.Generator, size: int) -> Any:
    """A box, sometimes with degenerate sides, or a ball."""
    scale = 10.0 ** rng.uniform(-1.5, 1.0)
    center = rng.standard_normal(size)
    if rng.random() < 0.5:
        center = np.round(4 * center) / 4
    if rng.random() < 0.25:
        return lm.Ball(tuple(center.tolist()), scale * rng.uniform(0.1, 1.0))
    half = scale * rng.uniform(0.1, 1.0, size)
    if rng.random() < 0.1:
        half[rng.integers(size)] = 0.0
    return lm.Box(center - half, center + half)


def random_case(rng: np.random.Generator, index: int) -> Case:
    """Half of the cases are global (chains, and graphs with branches), half on boxes and balls."""
    if index % 2:
        net = random_bending(rng)
        domain = random_region(rng, net.weights[0].shape[1])
        cells = cache(lambda p: reached(net, domain, p))
        return Case(
            network=net.network(),
            domain=domain,
            outputs=len(net.weights[-1]),
            truth=lambda about: local_truth(*cells(about.p if isinstance(domain, lm.Ball) else "inf"), about),
        )
    given, plan = random_global(rng)
    while plan.inputs > INPUTS:  # signs of inputs are enumerated as well
        given, plan = random_global(rng)
    return Case(network=given(), domain="global", outputs=plan.outputs, truth=lambda about: global_truth(plan, about))


def random_global(rng: np.random.Generator) -> tuple[Callable[[], Any], Plan]:
    """How to get a random network, and its plan."""
    if rng.random() < 0.6:
        chain = random_chain(rng)
        return chain.network, chain.plan()
    model, plan = random_graph(rng)
    return lambda: lm.load(model), plan


def random_questions(rng: np.random.Generator, m: int) -> Iterator[dict[str, Any]]:
    """Arguments of `solve` other than network and domain."""
    for _ in range(SUBJECTS):
        about = _random_subject(rng, m)
        for formulation in FORMULATIONS:
            yield {
                "formulation": formulation,
                **about,
                "backend": (None, "native", "clarabel", "scs")[int(rng.choice(4, p=[0.87, 0.04, 0.06, 0.03]))],
                "time_limit": float(rng.choice([1e-3, 5e-3, 0.02])) if rng.random() < 0.03 else None,
            }
    for name in rng.choice(OTHERS, OTHERS_ASKED, replace=False).tolist():
        yield {
            "formulation": name,
            **_random_subject(rng, m),
            "backend": None,
            "time_limit": 1.0 if name in OTHERS[9:] else None,
        }


def _random_subject(rng: np.random.Generator, m: int) -> dict[str, Any]:
    outputs = "all"
    if m > 1 and rng.random() < 0.4:
        chosen = rng.permutation(m)[: int(rng.integers(1, m + 1))]
        outputs = f"margin:{chosen[0]}" if rng.random() < 0.5 else ",".join(str(i) for i in chosen)
    p, q = PAIRS[int(rng.integers(len(PAIRS)))]
    return {"norm": f"{p}:{q}", "outputs": outputs}


# ------------------------------------------------------------------------------------------------------------ the state


def fresh(seed: int) -> dict[str, Any]:
    """The state of a run that has not begun."""
    numbers = dict.fromkeys(("networks", "answers", "bounds", "trivial", "close", "tight", "verified", "witnesses"), 0)
    return {"seed": seed, **numbers, "seconds": 0.0, "failures": [], "logs": {}, **{key: {} for key in COUNTERS}}


def count(state: dict[str, Any], key: str, value: str) -> None:
    state[key][value] = state[key].get(value, 0) + 1


def compare(state: dict[str, Any], kind: str, bound: float, truth: Truth) -> str | None:
    """One certified bound against the truth; what is wrong with it, if anything."""
    state["bounds"] += 1
    count(state, "domains", kind)
    close = bound <= truth.value * CLOSE
    state["trivial"] += truth.value == 0.0
    state["close"] += close and truth.value > 0.0
    state["tight"] += 0.0 < bound <= truth.value * (1.0 + 1e-9)
    if truth.value > 0.0:
        total, number = state["logs"].get(kind, [0.0, 0])
        state["logs"][kind] = [total + math.log(max(bound / truth.value, 1e-300)), number + 1]
    if bound < truth.value * (1.0 - ROUNDING) or (close and truth.exceeded(bound)):
        return f"UNSOUND: the bound {bound!r} is below the constant, about {truth.value!r}"
    return None


def proved(r: lm.Result, about: Subject) -> Iterator[tuple[Subject, float]]:
    """Every bound that the certificate of a result proves, and what it is about."""
    assert r.certificate is not None
    upper = r.certificate["upper"]
    yield about, r.bound
    for member in upper["members"] if upper["rule"] == "largest" else ():
        yield replace(about, row=member["row"], column=member["column"]), float.fromhex(member["proof"]["bound"])


def ask(
    case: Case, question: dict[str, Any], truth: Callable[[Subject], Truth], state: dict[str, Any]
) -> Iterator[str]:
    """One question: its bounds against the truth, and of a sample the certificate and a witness. What is wrong."""
    p, q = question["norm"].split(":")
    about = Subject(p, q, question["outputs"])
    try:
        r = lm.solve(case.network, domain=case.domain, witness=state["answers"] % 50 == 0, **question)
    except lm.UsageError as error:
        reason = next((text for text in REFUSALS if text in str(error)), None)
        if reason is None:
            yield f"refused: {error}"
        else:
            count(state, "refusals", reason)
        return
    state["answers"] += 1
    if r.assurance != "proved" or not math.isfinite(r.bound):
        yield f"{r.assurance}, {r.bound!r}"
        return
    assert r.certificate is not None
    for part, bound in proved(r, about):
        wrong = compare(state, case.kind, bound, truth(part))
        if wrong is not None:
            yield f"{part}: {wrong}"
    if r.lower_bound is not None:
        state["witnesses"] += 1
        # a cube inside of an l2 ball knows less than a witness in the ball
        inside = case.kind == "ball" and p == "2"
        if r.lower_bound > truth(about).value * (1.0 + 1e-9) and not inside:
            yield f"UNSOUND: the witness {r.lower_bound!r} is above the constant, about {truth(about).value!r}"
    if state["answers"] % 20 == 0:
        verdict = lm.verify(case.network, json.dumps(r.to_json()))
        state["verified"] += 1
        if (verdict.bound, verdict.lower_bound) != (r.bound, r.lower_bound):
            yield f"verified as {verdict.bound!r}, {verdict.lower_bound!r} instead of {r.bound!r}, {r.lower_bound!r}"
    count(state, "pairs", question["norm"])
    count(state, "formulations", r.formulation)
    count(state, "rules", r.certificate["upper"]["rule"])
    count(state, "backends", r.backend or "none")
    count(state, "terminations", r.termination)


def next_network(state: dict[str, Any]) -> None:
    """The next network with all its questions; an error of any kind is a finding."""
    index, start = state["networks"], time.process_time()
    label = f"seed {state['seed']}, network {index}"
    try:
        rng = np.random.default_rng([state["seed"], index])
        case = random_case(rng, index)
        truth = cache(case.truth)
        label += f", {case.domain}"
        for question in random_questions(rng, case.outputs):
            try:
                state["failures"] += [f"{label}, {question}: {what}" for what in ask(case, question, truth, state)]
            except Exception:
                state["failures"].append(f"{label}, {question}: {traceback.format_exc(limit=-4)}")
    except Exception:
        state["failures"].append(f"{label}: {traceback.format_exc(limit=-4)}")
    state["networks"] += 1
    state["seconds"] += time.process_time() - start


def report(state: dict[str, Any]) -> str:
    """The state in words and tables."""
    lines = [
        "# Certified bounds against enumeration",
        "",
        f"Seed {state['seed']}: {state['networks']} tiny networks (up to 10 neurons), {state['answers']} answers with "
        f"{state['bounds']} certified bounds (a family proves one for every output and input, too), "
        f"{state['seconds'] / 60:.0f} minutes of CPU. {sum(state['refusals'].values())} questions were refused as "
        f"documented. Reproduce with `python -m benchmarks.enumeration --seed {state['seed']} "
        f"--bounds {state['bounds']}`.",
        "",
        f"**{len(state['failures'])} failures.**",
        "",
        *(f"- {failure}" for failure in state["failures"][:50]),
        "",
        "Globally the yardstick is the largest norm over all vertices of the slope box; on a box or ball it is the "
        "local constant itself, from all cells of the network in rational arithmetic (l2 balls: of a cube inside). "
        f"{state['close']} bounds were within 1e-6 of it and decided in rational arithmetic, {state['tight']} within "
        f"1e-9; in {state['trivial']} cases it is 0. {state['verified']} certificates were verified from their JSON, "
        f"and {state['witnesses']} witnesses compared with it.",
        "",
        "| domain | bounds | bound / yardstick, geometric mean |",
        "|---|---|---|",
    ]
    for kind, number in sorted(state["domains"].items()):
        total, logs = state["logs"].get(kind, [0.0, 0])
        lines.append(f"| {kind} | {number} | {math.exp(total / max(logs, 1)):.4f} |")
    for key in ("pairs", "formulations", "rules", "backends", "terminations"):
        parts = sorted(state[key].items(), key=lambda item: -item[1])
        lines += ["", f"{key.capitalize()} (answers): {', '.join(f'{name} {number}' for name, number in parts)}."]
    return "\n".join(lines) + "\n"


def save(state: dict[str, Any], folder: Path) -> None:
    write_atomically(folder / "enumeration.json", json.dumps(state, indent=1) + "\n")
    write_atomically(folder / "enumeration.md", report(state))


def main(argv: list[str] | None = None) -> int:
    """Run, and write enumeration.json and enumeration.md; the exit code is 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bounds", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--restart", action="store_true", help="forget the networks that were done already")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    saved, state = args.out / "enumeration.json", fresh(args.seed)
    if saved.exists() and not args.restart:
        before = json.loads(saved.read_text())
        state = before if before["seed"] == args.seed else state
    deadline = time.monotonic() + 60.0 * args.minutes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        while state["bounds"] < args.bounds and time.monotonic() < deadline:
            next_network(state)
            if state["networks"] % SAVED == 0:
                save(state, args.out)
                print(f"{state['bounds']}/{args.bounds}: {len(state['failures'])} failures", flush=True)
    save(state, args.out)
    return 1 if state["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
