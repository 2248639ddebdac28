"""Ten thousand random tiny networks through the whole pipeline, each against the exhaustive value.

    python -m benchmarks.fuzz [--count 10000] [--seed 0] [--minutes M] [--restart]

A run goes on where the last one with this seed ended. Network number i depends on the seed and i alone, so whatever is
found can be looked at again: `random_case(seed, i)` of tests/soundness_checks.py. Writes results/fuzz.json and fuzz.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lipmodel.result import write_atomically

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))  # the tests check the same things, on fewer networks

import metamorphic  # noqa: E402
from soundness_checks import Outcome, check, random_case  # noqa: E402

EVERY = 100
"""Networks between two savings, and between two checks of what holds between related networks."""
LISTED = 20
COUNTERS = ("refusals", "rules", "terminations", "formulations", "backends", "norms", "warnings")


def fresh(seed: int) -> dict[str, Any]:
    """The state of a run that has not begun."""
    lists: dict[str, Any] = {"failures": [], "slowest": [], "loosest": [], "lost": [], "relations": 0, "logs": {}}
    return {"seed": seed, "done": 0, "checked": 0, "seconds": 0.0, **{key: {} for key in COUNTERS}, **lists}


def count(state: dict[str, Any], key: str, value: str) -> None:
    state[key] = dict(Counter(state[key]) + Counter([value]))


def keep(state: dict[str, Any], key: str, value: float, label: str) -> None:
    """The largest few, with their labels."""
    state[key] = sorted([*state[key], [value, label]], key=lambda entry: -entry[0])[:LISTED]


def record(state: dict[str, Any], outcome: Outcome, question: Any, seconds: float) -> None:
    """One network into the state."""
    state["done"] += 1
    state["failures"] += [f"{outcome.label}: {failure}" for failure in outcome.failures]
    keep(state, "slowest", round(seconds, 2), outcome.label)
    if outcome.refused is not None:
        count(state, "refusals", outcome.refused)
        return
    state["checked"] += 1
    pair = f"{question.p}:{question.q}"
    for key, value in (
        ("rules", outcome.rule),
        ("terminations", outcome.terminations),
        ("formulations", str(question.formulation)),
        ("backends", str(question.backend)),
        ("norms", pair),
    ):
        count(state, key, value)
    if outcome.ratio is not None:
        total, number = state["logs"].get(pair, [0.0, 0])
        state["logs"][pair] = [total + math.log(max(outcome.ratio, 1e-300)), number + 1]
        keep(state, "loosest", outcome.ratio, outcome.label)
    if outcome.loss is not None and outcome.loss > 1.0 + 1e-6:
        keep(state, "lost", outcome.loss - 1.0, outcome.label)


def related(state: dict[str, Any], seed: int, index: int) -> None:
    """Invariances, orderings and dualities of one more network."""
    rng = np.random.default_rng([seed, index, 1])
    chain = metamorphic.random_hidden(rng)
    tests = (
        metamorphic.invariances(chain, rng),
        metamorphic.orderings(chain),
        metamorphic.dualities(chain),
        metamorphic.special_networks(rng),
    )
    for relation in tests[index // EVERY % len(tests)]:
        state["relations"] += 1
        if not relation.holds():
            state["failures"].append(f"seed {seed}, relations {index}: {relation}")


def main(argv: list[str] | None = None) -> int:
    """Run, and write fuzz.json and fuzz.md; the exit code is 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--restart", action="store_true", help="forget the networks that were done already")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    saved = args.out / "fuzz.json"
    state = fresh(args.seed)
    if saved.exists() and not args.restart:
        before = json.loads(saved.read_text())
        state = before if before["seed"] == args.seed else state
    deadline = time.monotonic() + 60.0 * args.minutes
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        while state["done"] < args.count and time.monotonic() < deadline:
            index, start = state["done"], time.monotonic()
            case = random_case(args.seed, index)
            outcome = check(case, Path(folder))
            record(state, outcome, case.question, time.monotonic() - start)
            if index % EVERY == 0:
                related(state, args.seed, index)
            for warning in caught:
                if issubclass(warning.category, RuntimeWarning):
                    count(
                        state, "warnings", f"{warning.message} ({Path(warning.filename).name}, line {warning.lineno})"
                    )
            caught.clear()
            state["seconds"] += time.monotonic() - start
            if state["done"] % EVERY == 0:
                save(state, args.out)
                print(f"{state['done']}/{args.count}: {len(state['failures'])} failures", flush=True)
    save(state, args.out)
    return 1 if state["failures"] else 0


def save(state: dict[str, Any], folder: Path) -> None:
    write_atomically(folder / "fuzz.json", json.dumps(state, indent=1) + "\n")
    write_atomically(folder / "fuzz.md", report(state))


def report(state: dict[str, Any]) -> str:
    """The state in words and tables."""
    refused = sum(state["refusals"].values())
    lines = [
        "# Random tiny networks against the exhaustive value",
        "",
        f"Seed {state['seed']}: {state['done']} networks, of which {refused} questions were refused as documented, and "
        f"{state['checked']} were answered; {state['relations']} relations between related networks; "
        f"{state['seconds'] / 3600:.1f} hours on one core.",
        "",
        f"**{len(state['failures'])} failures.**",
        "",
        *(f"- {failure}" for failure in state["failures"][:50]),
        "",
        "Checked of every answer: bound at least the exhaustive constant (in rational arithmetic where the weights are "
        "exact), witness at most the constant, bound at most the product bound, rows, certificate verified as JSON and "
        "from files, the floating-point proof and the exact one agree on true and on false multipliers.",
        "",
        "| norm | answers | bound / constant, geometric mean |",
        "|---|---|---|",
    ]
    for pair, (total, number) in sorted(state["logs"].items()):
        lines.append(f"| {pair} | {number} | {math.exp(total / max(number, 1)):.4f} |")
    for title, key in (("How it ended", "terminations"), ("Backend", "backends"), ("Formulation", "formulations")):
        parts = ", ".join(f"{name} {number}" for name, number in sorted(state[key].items(), key=lambda kv: -kv[1]))
        lines += ["", f"{title}: {parts}."]
    for title, key in (("Largest loss of the repair", "lost"), ("Slowest, seconds", "slowest")):
        lines += ["", f"{title}:", "", *(f"- {value:.3g}: {label}" for value, label in state[key][:10])]
    if state["warnings"]:
        lines += ["", "Warnings:", "", *(f"- {number}x {text}" for text, number in state["warnings"].items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
