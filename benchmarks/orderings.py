"""The proved orderings between bounds on random networks: a thousand chains, every method, three norms.

    python -m benchmarks.orderings [--networks 1000] [--seed 0] [--minutes M] [--restart]

Every network is a chain of at most ten neurons whose formal constant (the largest norm over all slopes) is enumerated.
The bound of every formulation that has the norm pair is computed, and every ordering that is a theorem is checked: no
bound is below the formal constant, and no method is above one that it provably refines. Half of the networks have
slopes [0, 1], every fifth has nonnegative weights, where several methods are exact. Network number i depends on the
seed and i alone. Writes results/orderings.json and orderings.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lipmodel as lm
from lipmodel.result import write_atomically

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent)]

from random_networks import FIXED, Chain, exceeds, formal_constant, random_chain, random_weights  # noqa: E402

Values = dict[tuple[str, str], float]
"""Bounds by method and norm pair ("2:2")."""

ROUNDING = 1e-9
"""What closed forms may differ by, relatively: outward rounding and the widening of a proof."""
SOLVER = 1e-5
"""The same where the method that ought to be smaller is an optimum found to a tolerance of 1e-6."""
DESCENT = 1e-4
"""The same of `s-opt`, whose descent ends early."""
GROTHENDIECK = 1.7823
SAVED = 10

NORMS = ("2:2", "inf:inf", "1:1", "inf:1", "2:1", "inf:2")
CLOSED = ("product", "liplt", "combettes-pesquet", "k3", "k4", "path-norm")
EUCLIDEAN = ("eclipse-fast", "eclipse", "syed-hu", "s-opt", "seqlip", "lipsdp-neuron", "lipsdp-layer", "lipsdp-pair")
MIXED = ("geolip",)
REFUSALS = ("does not reach --norm", "chain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """A theorem: `smaller` is at most `factor` times `larger` for these norm pairs and networks.

    plain: only with slopes [0, 1]. depths: numbers of matrices, None for all. single: only one output. larger_norms:
    the pair of the larger one where it is another. living: only without dead neurons, which lipsdp-layer alone counts.
    slack: relative.
    """

    smaller: str
    larger: str
    norms: tuple[str, ...]
    slack: float = ROUNDING
    plain: bool = False
    depths: tuple[int, ...] | None = None
    single: bool = False
    nonnegative: bool = False
    living: bool = False
    larger_norms: str | None = None
    factor: float = 1.0

    def applies(self, facts: Facts) -> bool:
        return (
            (facts.plain or not self.plain)
            and (self.depths is None or facts.depth in self.depths)
            and (facts.outputs == 1 or not self.single)
            and (facts.nonnegative or not self.nonnegative)
            and (facts.living or not self.living)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What theorems ask of a network."""

    depth: int
    outputs: int
    plain: bool
    nonnegative: bool
    living: bool


ONE_INF = ("1:1", "inf:inf")
EVERY = (*ONE_INF, "2:2")
ORDERINGS = (
    Ordering(smaller="lipsdp-pair", larger="lipsdp-neuron", norms=("2:2",), slack=SOLVER),
    Ordering(smaller="lipsdp-neuron", larger="lipsdp-layer", norms=("2:2",), slack=SOLVER),
    Ordering(smaller="lipsdp-layer", larger="eclipse-fast", norms=("2:2",), slack=SOLVER, living=True),
    Ordering(smaller="eclipse-fast", larger="norms", norms=("2:2",), plain=True),
    Ordering(smaller="lipsdp-neuron", larger="eclipse", norms=("2:2",), slack=SOLVER),
    Ordering(smaller="lipsdp-neuron", larger="syed-hu", norms=("2:2",), slack=SOLVER),
    Ordering(smaller="lipsdp-neuron", larger="s-opt", norms=("2:2",), slack=SOLVER),
    Ordering(smaller="s-opt", larger="lipsdp-neuron", norms=("2:2",), slack=DESCENT),
    Ordering(smaller="syed-hu", larger="eclipse-fast", norms=("2:2",)),
    Ordering(smaller="lipsdp-neuron", larger="liplt", norms=("2:2",), slack=SOLVER, depths=(1, 2)),
    Ordering(smaller="seqlip", larger="formal", norms=("2:2",), slack=1e-6, depths=(1, 2)),
    Ordering(smaller="liplt", larger="combettes-pesquet", norms=EVERY),
    Ordering(smaller="combettes-pesquet", larger="liplt", norms=EVERY),
    Ordering(smaller="liplt", larger="norms", norms=EVERY),
    Ordering(smaller="k4", larger="k3", norms=EVERY),
    Ordering(smaller="k3", larger="liplt", norms=ONE_INF),
    Ordering(smaller="k4", larger="path-norm", norms=NORMS),
    Ordering(smaller="path-norm", larger="norms", norms=ONE_INF),
    Ordering(smaller="geolip", larger="lipsdp-neuron", norms=("2:2",), slack=SOLVER),
    Ordering(smaller="lipsdp-neuron", larger="geolip", norms=("2:2",), slack=SOLVER),
    Ordering(smaller="geolip", larger="k4", norms=("inf:1",), slack=SOLVER, depths=(1, 2), single=True),
    Ordering(smaller="geolip", larger="formal", norms=("inf:1",), slack=SOLVER, depths=(1, 2), single=True, plain=True,
             factor=GROTHENDIECK),
    Ordering(smaller="lipsdp-neuron", larger="formal", norms=("2:2",), slack=SOLVER, depths=(1, 2), single=True,
             plain=True, factor=math.sqrt(math.pi / 2)),
    Ordering(smaller="geolip", larger="geolip", norms=("2:2",), larger_norms="inf:2", slack=SOLVER),
    Ordering(smaller="geolip", larger="geolip", norms=("2:1",), larger_norms="inf:1", slack=SOLVER),
    Ordering(smaller="geolip", larger="geolip", norms=("2:2",), larger_norms="2:1", slack=SOLVER),
    Ordering(smaller="geolip", larger="geolip", norms=("inf:2",), larger_norms="inf:1", slack=SOLVER),
    Ordering(smaller="k4", larger="formal", norms=EVERY, nonnegative=True, plain=True, slack=1e-8),
    Ordering(smaller="lipsdp-neuron", larger="formal", norms=("2:2",), nonnegative=True, plain=True, slack=SOLVER),
)  # fmt: skip
"""All that is checked, besides that no bound is below the formal constant."""


def random_network(rng: np.random.Generator, index: int) -> tuple[Chain, Facts]:
    """A chain without a trailing activation; every second with slopes [0, 1], every tenth nonnegative besides."""
    chain = random_chain(rng)
    phis = list(chain.phis)
    plain = index % 2 == 0
    for k in range(len(phis)):
        if k == len(phis) - 1:
            phis[k] = None
        elif plain:
            phis[k] = FIXED[0]
    weights, nonnegative = chain.weights, index % 10 == 0
    if nonnegative:
        weights = tuple(np.abs(random_weights(rng, *w.shape)) for w in weights)
    chain = Chain(weights=weights, biases=chain.biases, phis=tuple(phis))
    linear = all(phi is None for phi in phis)
    depth = 1 if linear else len(weights)
    plain = plain and all(phi is not None for phi in phis[:-1])
    living = lm.increments(chain.network()).complete is None
    return chain, Facts(depth=depth, outputs=len(weights[-1]), plain=plain, nonnegative=nonnegative, living=living)


def bounds(chain: Chain) -> Iterator[tuple[tuple[str, str], float | str]]:
    """The bound of every method and norm pair, or why there is none."""
    network = chain.network()
    for pair in NORMS:
        names = CLOSED + (EUCLIDEAN if pair == "2:2" else ()) + (MIXED if pair[-1] != "f" and pair[0] != "1" else ())
        for name in names:
            try:
                r = lm.solve(network, name, norm=pair, witness=False)
            except lm.UsageError as error:
                yield (name, pair), str(error)
                continue
            yield (name, pair), r.bound if r.assurance == "proved" else f"{r.assurance}: {r.bound!r}"


def norms_of(chain: Chain, pair: str) -> float:
    """The product of the matrices' norms and the largest slopes, in floating point."""
    order = {"1": 1, "2": 2, "inf": np.inf}[pair.split(":")[0]]
    gains = [max(abs(phi.low), abs(phi.high)) for phi in chain.phis if phi is not None]
    return float(np.prod([np.linalg.norm(np.float64(w), order) for w in chain.weights])) * math.prod(gains)


def check(chain: Chain, facts: Facts, state: dict[str, Any]) -> Iterator[str]:
    """What does not hold of one network."""
    values: Values = {}
    for (name, pair), value in bounds(chain):
        if isinstance(value, str):
            reason = next((text for text in REFUSALS if text in value), None)
            if reason is None:
                yield f"{name} {pair}: {value}"
            state["refusals"] = state["refusals"] + 1
        else:
            values[name, pair] = value
    plan = chain.plan()
    for pair in NORMS:
        p, q = pair.split(":")
        formal = formal_constant(plan, p, q)
        values["formal", pair] = formal.value
        if p == q:
            values["norms", pair] = norms_of(chain, pair)
        for (name, norms), bound in list(values.items()):
            if norms != pair or name in ("formal", "norms"):
                continue
            state["bounds"] += 1
            tally(state["ratios"], f"{name} {pair}", bound, formal.value)
            below = bound < formal.value * (1.0 - 1e-10)
            if below or (bound <= formal.value * (1.0 + 1e-6) and exceeds(plan, formal, bound, p, q)):
                yield f"UNSOUND: {name} {pair}: {bound!r} is below the formal constant, about {formal.value!r}"
    for number, ordering in enumerate(ORDERINGS):
        for pair in ordering.norms if ordering.applies(facts) else ():
            small = values.get((ordering.smaller, pair))
            large = values.get((ordering.larger, ordering.larger_norms or pair))
            if small is None or large is None:
                continue
            record = state["orderings"].setdefault(str(number), {"checked": 0, "worst": 0.0, "strict": 0})
            record["checked"] += 1
            limit = ordering.factor * large
            record["strict"] += small < limit * (1.0 - 1e-6)
            excess = small / limit - 1.0 if limit > 0.0 else (math.inf if small > 0.0 else 0.0)
            record["worst"] = max(record["worst"], excess)
            if small > limit * (1.0 + ordering.slack) + 1e-290:
                words = describe(ordering)
                yield f"{ordering.smaller} {small!r} is above {ordering.larger} {large!r} ({pair}, {words})"


def tally(ratios: dict[str, Any], key: str, bound: float, formal: float) -> None:
    """Keep the sum of the logarithms of bound / formal constant, their number and the largest."""
    if formal > 0.0:
        total, number, most = ratios.get(key, [0.0, 0, 0.0])
        ratio = math.log(max(bound / formal, 1e-300))
        ratios[key] = [total + ratio, number + 1, max(most, ratio)]


def describe(ordering: Ordering) -> str:
    """The conditions of an ordering in words."""
    parts = []
    if ordering.plain:
        parts.append("slopes [0, 1]")
    if ordering.depths is not None:
        parts.append("at most one hidden layer")
    if ordering.single:
        parts.append("one output")
    if ordering.living:
        parts.append("no dead neurons")
    if ordering.nonnegative:
        parts.append("nonnegative weights")
    return ", ".join(parts) or "all"


def fresh(seed: int) -> dict[str, Any]:
    """The state of a run that has not begun."""
    return {
        "seed": seed, "networks": 0, "bounds": 0, "refusals": 0, "seconds": 0.0, "failures": [], "orderings": {},
        "ratios": {},
    }  # fmt: skip


def next_network(state: dict[str, Any]) -> None:
    """The next network; an error of any kind is a finding."""
    index, start = state["networks"], time.process_time()
    label = f"seed {state['seed']}, network {index}"
    try:
        chain, facts = random_network(np.random.default_rng([state["seed"], index]), index)
        state["failures"] += [f"{label}: {what}" for what in check(chain, facts, state)]
    except Exception:
        state["failures"].append(f"{label}: {traceback.format_exc(limit=-4)}")
    state["networks"] += 1
    state["seconds"] += time.process_time() - start


def report(state: dict[str, Any]) -> str:
    """The state in words and tables."""
    lines = [
        "# Orderings between bounds",
        "",
        f"Seed {state['seed']}: {state['networks']} random chains of at most ten neurons, {state['bounds']} proved "
        f"bounds, {state['refusals']} questions refused as documented (norms that a method lacks), "
        f"{state['seconds'] / 60:.0f} minutes of CPU. Reproduce with `python -m benchmarks.orderings --seed "
        f"{state['seed']} --networks {state['networks']}`.",
        "",
        f"**{len(state['failures'])} failures**, bounds below the formal constant included.",
        "",
        *(f"- {failure}" for failure in state["failures"][:50]),
        "",
        "`formal` is the largest norm over all slopes, enumerated; `norms` the product of the matrices' own norms.",
        "",
        "| never above | what it refines | norms | networks | checked | strictly below | largest excess |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, ordering in enumerate(ORDERINGS):
        record = state["orderings"].get(str(number), {"checked": 0, "worst": 0.0, "strict": 0})
        factor = "" if ordering.factor == 1.0 else f"{ordering.factor:.4f} × "
        other = "" if ordering.larger_norms is None else f" ({ordering.larger_norms})"
        lines.append(
            f"| {ordering.smaller} | {factor}{ordering.larger}{other} | {', '.join(ordering.norms)} | "
            f"{describe(ordering)} | {record['checked']} | {record['strict']} | {record['worst']:.1e} |"
        )
    lines += ["", "Bound / formal constant:", "", "| method | norms | geometric mean | largest |", "|---|---|---|---|"]
    for key, (total, number, most) in sorted(
        state["ratios"].items(), key=lambda item: (item[0].split()[1], item[1][0])
    ):
        name, pair = key.split()
        lines.append(f"| {name} | {pair} | {math.exp(total / number):.4f} | {math.exp(most):.3g} |")
    return "\n".join(lines) + "\n"


def save(state: dict[str, Any], folder: Path) -> None:
    write_atomically(folder / "orderings.json", json.dumps(state, indent=1) + "\n")
    write_atomically(folder / "orderings.md", report(state))


def main(argv: list[str] | None = None) -> int:
    """Run, and write orderings.json and orderings.md; the exit code is 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--restart", action="store_true", help="forget the networks that were done already")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args(argv)
    path, state = args.out / "orderings.json", fresh(args.seed)
    if path.is_file() and not args.restart:
        known = json.loads(path.read_text(encoding="utf-8"))
        state = known if known["seed"] == args.seed else state
    deadline = time.monotonic() + 60.0 * args.minutes
    for number in itertools.count():
        if state["networks"] >= args.networks or time.monotonic() > deadline:
            break
        next_network(state)
        if number % SAVED == 0:
            save(state, args.out)
    save(state, args.out)
    print(report(state))
    return 1 if state["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
