"""Random tiny networks on random boxes and balls, through the whole pipeline.

    python -m benchmarks.local_fuzz [--count 10000] [--seed 0] [--minutes M]

Every third network is a ReLU chain of one input, whose constant is known from all its pieces in rational arithmetic;
the others (graphs with branches, convolutions and all activations) are sampled. Question number i depends on the seed
and i alone. Writes results/local_fuzz.md.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import lipmodel as lm
from lipmodel.result import write_atomically
from lipmodel.spec import Ball, Box
from lipmodel.testing.networks import KINDS, random_network

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))  # the tests check the same things, on fewer networks

from local_points import pieces, points, quotients, random_domain, squared  # noqa: E402
from random_graphs import random_graph  # noqa: E402

PAIRS = tuple(product(("1", "2", "inf"), repeat=2))
FORMULATIONS = (None, None, "product", "geolip", "lipsdp-neuron", "lipsdp-layer")
OTHERS = (
    *("liplt", "combettes-pesquet", "k3", "k4", "path-norm", "seqlip", "syed-hu", "eclipse", "eclipse-fast"),
    *("geolip-triangle", "lipsdp-pair", "lipopt", "sos", "s-opt", "shor", "hr1", "hr2"),
)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What happened so far; tight: answers with lower bound within 1e-6 of the bound."""

    asked: int = 0
    refused: int = 0
    answered: int = 0
    enumerated: int = 0
    tight: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def chain_of_one_input(rng: np.random.Generator) -> tuple[Any, Any, list[list[Fraction]]]:
    """(network, domain, slopes of all pieces on the domain)."""
    sizes = [1, *(int(v) for v in rng.integers(1, 6, size=int(rng.integers(1, 4)))), int(rng.integers(1, 4))]
    weights = [np.round(8 * rng.standard_normal(s)) / 8 for s in zip(sizes[1:], sizes, strict=False)]
    biases = [np.round(8 * rng.standard_normal(n)) / 8 for n in sizes[1:]]
    middle, half = np.round(8 * rng.standard_normal()) / 8, 2.0 ** rng.integers(-9, 3)
    domain = Box(middle - half, middle + half) if rng.random() < 0.5 else Ball(middle, half)
    return lm.from_weights(weights, biases), domain, pieces(weights, biases, middle - half, middle + half)


def one(seed: int, index: int, tally: Tally) -> None:
    """Ask question number `index`, and note what does not hold."""
    rng = np.random.default_rng([seed, index])
    p, q = PAIRS[int(rng.integers(9))]
    formulation = (*FORMULATIONS, *OTHERS)[int(rng.integers(len(FORMULATIONS) + len(OTHERS)))]
    slopes: list[list[Fraction]] | None = None
    if index % 3 == 0:
        net, domain, slopes = chain_of_one_input(rng)
    else:
        drawn = random_graph(rng)[0] if index % 3 == 1 else None
        kind = KINDS[int(rng.integers(len(KINDS)))]
        net = random_network(kind, int(rng.integers(10**6))) if drawn is None else lm.load(drawn)
        domain = random_domain(rng, net.input_size)
    tally.asked += 1
    label = f"seed {seed}, number {index}: {formulation}, {p}:{q}, {domain}"
    try:
        whole = lm.solve(net, formulation, norm=(p, q), witness=False, time_limit=2.0)
        r = lm.solve(net, formulation, norm=(p, q), domain=domain, time_limit=2.0)
    except lm.UsageError:
        tally.refused += 1
        return
    tally.answered += 1
    tally.rules[r.certificate["upper"]["rule"]] += 1
    tally.domains[type(domain).__name__.lower()] += 1
    tally.tight += r.lower_bound is not None and r.bound <= r.lower_bound * (1.0 + 1e-6)
    failed = tally.failures.append
    if slopes is not None:
        tally.enumerated += 1
        truth = max(squared(v, q) for v in slopes)
        if Fraction(r.bound) ** 2 < truth:
            failed(f"{label}: the bound {r.bound!r} is below the constant")
        if r.lower_bound is not None and Fraction(r.lower_bound) ** 2 > truth:
            failed(f"{label}: the lower bound {r.lower_bound!r} is above the constant")
    seen = quotients(net, points(domain, p, 200, rng), p, q, rng)
    if seen > r.bound * (1.0 + 1e-6) + 1e-9:
        failed(f"{label}: a quotient {seen!r} is above the bound {r.bound!r}")
    # tied multipliers cannot follow slopes that differ from neuron to neuron, and the others need not be monotone
    if formulation not in ("lipsdp-layer", *OTHERS) and r.bound > whole.bound * (1.0 + 1e-5) + 1e-290:
        failed(f"{label}: the bound {r.bound!r} is above the global one, {whole.bound!r}")
    if lm.verify(net, r.certificate).bound != r.bound:
        failed(f"{label}: verified as something else")


def report(tally: Tally, seed: int, seconds: float) -> str:
    rules = ", ".join(f"{name} {number}" for name, number in tally.rules.most_common())
    domains = ", ".join(f"{name} {number}" for name, number in tally.domains.most_common())
    lines = [
        "# Random tiny networks on boxes and balls",
        "",
        f"Seed {seed}: {tally.asked} questions, of which {tally.refused} were refused as documented and "
        f"{tally.answered} answered ({domains}), {tally.enumerated} of them against the enumerated constant; "
        f"{seconds / 60:.0f} minutes. "
        f"Reproduce with `python -m benchmarks.local_fuzz --seed {seed} --count {tally.asked}`.",
        "",
        f"**{len(tally.failures)} failures.**",
        "",
        *(f"- {failure}" for failure in tally.failures[:50]),
        "",
        "Checked of every answer: bound at least the constant (one input: in rational arithmetic) and every "
        "difference quotient sampled in the domain, witness at most the constant and inside the domain (decided by "
        "`verify`), bound at most the global one up to the solvers' tolerance (but for tied multipliers), certificate "
        "verified.",
        "",
        f"Rules: {rules}. Lower bound within 1e-6 of the bound: {tally.tight}.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run, and write local_fuzz.md; the exit code is 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args(argv)
    start, tally = time.monotonic(), Tally()
    while tally.asked < args.count and time.monotonic() < start + 60.0 * args.minutes:
        index = tally.asked
        try:
            one(args.seed, index, tally)
        except Exception:  # an error of any kind is a finding
            tally.asked = index + 1
            tally.failures.append(f"seed {args.seed}, number {index}: {traceback.format_exc(limit=-3)}")
        if tally.asked % 100 == 0:
            print(f"{tally.asked}/{args.count}: {len(tally.failures)} failures", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "local_fuzz.md", report(tally, args.seed, time.monotonic() - start))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
