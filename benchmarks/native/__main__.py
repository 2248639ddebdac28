"""The native backend against its goals, one thread: gaps, other solvers, the floor, growth, logits, anytime, proofs.

    python -m benchmarks.native [--quick] [--goals 1,3] [--nets FOLDER ...] [--time-limit 120] [--count 1000]

Networks come from recipes (and, with --nets, from ONNX files below folders). Solvers that are not installed are listed
as such. Writes native.json and native.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read when BLAS is loaded

from threadpoolctl import threadpool_limits  # noqa: E402

from benchmarks.native.cases import Case, files, recipes  # noqa: E402
from benchmarks.native.competitors import Field, race  # noqa: E402
from benchmarks.native.gate import run_gate  # noqa: E402
from benchmarks.native.goals import judged, label  # noqa: E402
from benchmarks.native.measure import measure  # noqa: E402
from benchmarks.native.report import machine, markdown  # noqa: E402
from lipmodel.model.model import Model  # noqa: E402
from lipmodel.result import write_atomically  # noqa: E402

GOALS = frozenset(range(1, 8))


def chosen(args: argparse.Namespace) -> list[Case]:
    """The cases that serve the wanted goals."""
    cases = [case for case in recipes(args.seed) if case.quick or not args.quick]
    cases += [case for folder in args.nets for case in files(folder)]
    return [case for case in cases if case.goals & args.goals]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, written down after every step."""
    field = Field(limit=args.time_limit, memory=int(args.memory * 2**30))
    results: dict[str, Any] = {
        "machine": machine(field.known),
        "command": args.command,
        "time limit": field.limit,
        "memory": field.memory,
        "programs": [],
        "races": {},
        "gate": None,
    }
    raced: list[tuple[int, str, Model, float, float]] = []
    cases = chosen(args)
    if cases:
        measure(min(cases, key=lambda case: case.system().order), repeats=1)  # imports are not measured
    for case in cases:
        row, recorder = measure(case)
        results["programs"].append(row)
        print(f"{label(row)}: {row['cpu']:.3f} s, {row['floors']:.0f} floors, gap {row['gap']:.1e}", flush=True)
        if 2 in args.goals & case.goals and recorder.model is not None and row["members"] == 1:
            raced.append((row["order"], label(row), recorder.model, row["lower"], row["bound"]))
        save(results, args)
    if 1 in args.goals and args.count > 0:
        results["gate"] = run_gate(args.count, args.seed, say=print)
        save(results, args)
    for _, name, model, lower, bound in sorted(raced, key=lambda entry: entry[0]):
        results["races"][name] = race(model, field, lower, bound)
        words = (f"{r['solver']} {r['verdict']}" for r in results["races"][name] if r["verdict"] != "not installed")
        print(f"{name}: {', '.join(words)}", flush=True)
        save(results, args)
    save(results, args)
    return results


def save(results: dict[str, Any], args: argparse.Namespace) -> None:
    results["goals"] = judged(results["programs"], results["races"], results["gate"], results["time limit"])
    if args.out is not None:
        write_atomically(args.out / "native.json", json.dumps(results, indent=1) + "\n")
        write_atomically(args.out / "native.md", markdown(results))


def goal_numbers(text: str) -> frozenset[int]:
    numbers = frozenset(int(part) for part in text.split(","))
    if not numbers <= GOALS:
        raise argparse.ArgumentTypeError(f"goals are numbers from 1 to 7, not {text!r}")
    return numbers


def parsed(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.native", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small networks and short limits: a few minutes")
    parser.add_argument("--goals", type=goal_numbers, default=GOALS, help="only these, such as 1,3,5")
    parser.add_argument("--nets", type=Path, nargs="+", default=[], help="also the .onnx files below these folders")
    parser.add_argument("--time-limit", type=float, default=None, help="seconds for each competitor (120; quick: 5)")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB for each competitor (8)")
    parser.add_argument("--count", type=int, default=None, help="random networks of goal 1 (1000; quick: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the recipes and the random networks")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "results", help="folder")
    args = parser.parse_args(argv)
    args.time_limit = args.time_limit or (5.0 if args.quick else 120.0)
    args.count = (100 if args.quick else 1000) if args.count is None else args.count
    args.command = described(args)
    return args


def described(args: argparse.Namespace) -> str:
    """The options that matter to the results, folders by name only: no path of this machine is written down."""
    words = ["--quick"] if args.quick else []
    words += [f"--goals {','.join(map(str, sorted(args.goals)))}"] if args.goals != GOALS else []
    words += [f"--nets {' '.join(folder.name for folder in args.nets)}"] if args.nets else []
    return " ".join([*words, f"--time-limit {args.time_limit:g} --count {args.count} --seed {args.seed}"])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parsed(sys.argv[1:] if argv is None else argv)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with threadpool_limits(limits=1):
        results = run(args)
    print(markdown(results))
    print(f"{time.perf_counter() - start:.0f} s")
    return results


if __name__ == "__main__":
    main()
