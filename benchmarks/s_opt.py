"""S-opt measured: cost against depth, and the bound over time against the optimum of the same program.

    python -m benchmarks.s_opt [--out benchmarks/results/s_opt.md] [--nets FOLDER] [--seconds 10]

CPU seconds of this process, on one thread of BLAS: on a machine that is shared, wall-clock time says nothing.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.backends.base import SolveOptions
from lipmodel.formulation import formulation
from lipmodel.network.increments import chain_of

DEPTHS = (10, 20, 50, 100, 200)
WIDTHS = (20, 50, 100)
STEPS = 6
"""Improvements of the descent over which its cost is averaged."""
MARKS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""CPU seconds at which the anytime curve is read."""
NETS = ("lipsdp/mnist", "acasxu/1_1", "eclipse/mnist_3x100", "mnistfc/256x2")


def chain(depth: int, width: int, seed: int = 0) -> lm.IncrementSystem:
    """Standard normal weights over the root of their columns, ReLU, as many inputs as neurons, ten outputs."""
    rng = np.random.default_rng(seed)
    dims = [width] * (depth + 1) + [10]
    return chain_of([rng.standard_normal((m, n)) / math.sqrt(n) for n, m in itertools.pairwise(dims)])


def stream(system: lm.IncrementSystem) -> Iterator[tuple[float, float]]:
    """(CPU seconds since the start, best bound) of every improvement."""
    started, best = time.process_time(), math.inf
    for found in formulation("s-opt").build(system, lm.Spec()):
        best = min(best, found.claim("2", "2"))
        yield time.process_time() - started, best


def closed(name: str, system: lm.IncrementSystem) -> tuple[float, float]:
    """(CPU seconds, bound) of a closed form."""
    started = time.process_time()
    found = formulation(name).build(system, lm.Spec())
    return time.process_time() - started, found.claim("2", "2")


def depths(width: int) -> list[tuple[int, float, float, float, float]]:
    """Per depth: seconds of ECLipsE-Fast, to the first improvement, per improvement after it; ECLipsE-Fast / S-opt."""
    rows = []
    for depth in DEPTHS:
        system = chain(depth, width)
        fast, above = closed("eclipse-fast", system)
        points = [point for point, _ in zip(stream(system), range(STEPS + 2), strict=False)]
        step = (points[-1][0] - points[1][0]) / (len(points) - 2)
        rows.append((depth, fast, points[1][0], step, above / points[-1][1]))
    return rows


def exponent(depth: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of the least-squares line in logarithms."""
    return float(np.polyfit(np.log(depth), np.log(seconds), 1)[0])


def curve(path: Path, seconds: float) -> tuple[float, float, float, list[str], float, float]:
    """Native's optimum and its seconds; ECLipsE-Fast over it; the excess of S-opt at the marks, at the end; seconds."""
    system = lm.increments(lm.load(path))
    model = formulation("lipsdp-neuron").build(system, lm.Spec())
    started = time.process_time()
    point = backend("native").solve(model, SolveOptions(tol=1e-6))
    native = time.process_time() - started
    assert point.lower is not None
    optimum = model.bound_of(point.lower)
    _, above = closed("eclipse-fast", system)
    at: dict[float, float] = {}
    spent, best = 0.0, math.inf
    for spent, best in stream(system):
        for mark in MARKS:
            if spent <= mark:
                at[mark] = best
        if spent > seconds:
            break
    cells = []
    for mark in MARKS:
        value = at.get(mark)
        done = spent <= mark and mark != min(m for m in MARKS if spent <= m)
        cells.append("ended" if done else "–" if value is None else f"{value / optimum - 1.0:.1e}")
    return optimum, native, above / optimum, cells, best / optimum - 1.0, spent


def report(nets: Path, seconds: float) -> str:
    """All measurements, as Markdown."""
    lines = [
        "# S-opt",
        "",
        "`python -m benchmarks.s_opt`. CPU seconds of one process and one thread of BLAS, single runs on a machine",
        "that was shared with other work: caches and clock are not this process's alone, the last digits mean little.",
        "",
        "## Cost against depth",
        "",
        "Gaussian ReLU chains, 2:2. first: to the first improvement, with reading the model and a closed form; step:",
        f"per improvement, over the {STEPS} after it; gained: ECLipsE-Fast's bound over S-opt's after these steps.",
        "",
        "| width | layers | eclipse-fast | first | step | gained |",
        "|---|---|---|---|---|---|",
    ]
    slopes = []
    for width in WIDTHS:
        rows = depths(width)
        for depth, fast, first, step, gained in rows:
            lines.append(f"| {width} | {depth} | {fast:.4f} | {first:.3f} | {step:.4f} | {gained:.3g} |")
            print(lines[-1], flush=True)
        ends = [row[0] for row in rows]
        found = [exponent(ends, [row[k] for row in rows]) for k in (1, 2, 3)]
        slopes.append(f"| {width} | {found[0]:.2f} | {found[1]:.2f} | {found[2]:.2f} |")
        print(slopes[-1], flush=True)
    lines += [
        "",
        "Exponents in depth, by least squares:",
        "",
        "| width | eclipse-fast | first | step |",
        "|---|---|---|---|",
    ]
    lines += slopes
    lines += [
        "",
        "## The bound over time",
        "",
        "Excess over the optimum of LipSDP-Neuron (native's lower estimate, tolerance 1e-6) after so many CPU seconds.",
        "",
        "| network | optimum | native, s | eclipse-fast | "
        + " | ".join(f"{m:g} s" for m in MARKS)
        + " | end | after, s |",
        "|" + "---|" * (6 + len(MARKS)),
    ]
    for net in NETS:
        path = nets / f"{net}.onnx"
        if not path.exists():
            print(f"{path}: not there, left out", flush=True)
            continue
        optimum, native, above, cells, end, spent = curve(path, seconds)
        shown = " | ".join(cells)
        lines.append(
            f"| {net} | {optimum:.6g} | {native:.2f} | {above:.3g} times | {shown} | {end:.1e} | {spent:.1f} |"
        )
        print(lines[-1], flush=True)
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the tables there (Markdown)")
    parser.add_argument("--nets", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "nets")
    parser.add_argument("--seconds", type=float, default=10.0, help="CPU seconds of every anytime curve")
    args = parser.parse_args()
    next(stream(chain(2, 4)))  # imports are nobody's time, and only libraries that are loaded can be limited
    closed("eclipse-fast", chain(2, 4))
    with threadpool_limits(1, user_api="blas"):
        text = report(args.nets, args.seconds)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
