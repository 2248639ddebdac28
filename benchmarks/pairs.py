"""What constraints on pairs of neurons gain: gaps to the formal constant on small networks, bounds of real ones.

    python -m benchmarks.pairs [--count 20] [--nets DIRECTORY] [--seconds 120]

The formal constant is the largest norm of the Jacobian over all slopes, by enumeration; no bound that ignores biases
can be below it. All networks have standard normal weights. Of the networks in a directory (shared with the developers,
not shipped) the bounds with and without pairs are listed. Every certificate is verified. Writes results/pairs.md.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import lipmodel as lm
from lipmodel.result import write_atomically
from lipmodel.testing.networks import formal_constant

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "nets"
CLASSES: tuple[tuple[tuple[int, ...], str, str], ...] = (
    ((8, 8, 1), "relu", "2"),
    ((3, 5, 5, 1), "relu", "2"),
    ((3, 5, 5, 2), "relu", "2"),
    ((3, 5, 5, 1), "abs", "2"),
    ((3, 5, 5, 1), "relu", "inf:1"),
    ((2, 4, 4, 3, 1), "relu", "2"),
)
"""Sizes, activation and norm of the networks that are enumerated."""
REAL = (
    "exlipbab/abs_relu_0.onnx", "exlipbab/abs_relu_2.onnx", "exlipbab/abs_relu_4.onnx", "exlipbab/iris_gs2.onnx",
    "exlipbab/abalone_relu.onnx", "arch/single_pendulum.onnx",
)  # fmt: skip


def solved(net: Any, formulation: str, norm: str, **arguments: Any) -> tuple[float, float, list[str]]:
    """(proved bound, seconds, what was said on the way), the certificate verified."""
    started, lines = time.perf_counter(), []
    result = lm.solve(net, formulation, norm=norm, witness=False, report=lines.append, **arguments)
    seconds = time.perf_counter() - started
    verdict = lm.verify(net, result.certificate)
    if result.assurance != "proved" or verdict.bound != result.bound:
        raise AssertionError(f"{formulation} on {net}: {result.assurance}, {verdict.bound} of {result.bound}")
    return result.bound, seconds, lines


def gaps(sizes: tuple[int, ...], activation: str, norm: str, count: int, seed: int) -> str:
    """A row of the table: the gaps of all formulations over `count` networks."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float]]] = {"neuron": [], "layer": [], "all": []}
    for _ in range(count):
        net = lm.from_weights([rng.standard_normal((m, n)) for n, m in pairwise(sizes)], activation=activation)
        system = lm.increments(net)
        p, q = norm.split(":") if ":" in norm else (norm, norm)
        formal = formal_constant(system, p, q)
        for name in found:
            if name == "neuron":
                bound, seconds, _ = solved(net, "geolip", norm)
            else:
                bound, seconds, _ = solved(net, "lipsdp-pair", norm, options={"pairs": name})
            if bound < formal * (1.0 - 1e-12):
                raise AssertionError(f"{name}: {bound!r} is below the formal constant {formal!r}")
            found[name].append((max(0.0, bound / formal - 1.0), seconds))
    cells = [f"{'-'.join(map(str, sizes))} {activation}", norm, str(count)]
    for name in found:
        values = np.array([gap for gap, _ in found[name]])
        mean = float(np.expm1(np.mean(np.log1p(values))))
        cells.append(f"{100 * mean:.4f} / {100 * values.max():.4f}")
    cells += [f"{np.median([s for _, s in found[name]]):.2f}" for name in ("neuron", "all")]
    return "| " + " | ".join(cells) + " |"


def real(path: Path, name: str, seconds: float) -> str:
    """A row of the table of real networks."""
    net = lm.load(path)
    neuron, before, _ = solved(net, "lipsdp-neuron", "2")
    pair, after, lines = solved(net, "lipsdp-pair", "2", time_limit=seconds)
    rounds = [line for line in lines if line.startswith("round") and " pairs, " in line]
    used = rounds[-1].split(": ")[1].split(" pairs")[0] if rounds else "none"
    gain = 100.0 * (1.0 - pair / neuron)
    return f"| {name} | {neuron:.6g} | {pair:.6g} | {gain:.3f} | {used} | {len(rounds)} | {before:.1f} | {after:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="networks of every class")
    parser.add_argument("--nets", type=Path, default=SHARED, help="a directory with the real networks")
    parser.add_argument("--seconds", type=float, default=120.0, help="time limit for a real network")
    arguments = parser.parse_args()
    lines = [
        "# Constraints on pairs of neurons",
        "",
        f"`python -m benchmarks.pairs --count {arguments.count} --seconds {arguments.seconds:g}`, one thread. Every",
        "bound was proved, and its certificate verified.",
        "",
        "Gap to the formal constant in percent, geometric mean / largest, over networks with standard normal weights:",
        "`neuron` is the inequality without pairs, `layer` with the pairs of every layer, `all` with all of them.",
        "Seconds are medians of a whole solve, and depend on what else the machine does.",
        "",
        "| network | norm | count | neuron | layer | all | s neuron | s all |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, (sizes, activation, norm) in enumerate(CLASSES):
        lines.append(gaps(sizes, activation, norm, arguments.count, number))
        print(lines[-1], flush=True)
    present = [name for name in REAL if (arguments.nets / name).exists()]
    if present:
        lines += [
            "",
            f"Real networks, 2:2, `lipsdp-pair` with a limit of {arguments.seconds:g} seconds:",
            "",
            "| network | lipsdp-neuron | lipsdp-pair | gain in % | pairs | rounds | s | s |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for name in present:
        lines.append(real(arguments.nets / name, name, arguments.seconds))
        print(lines[-1], flush=True)
    (HERE / "results").mkdir(exist_ok=True)
    write_atomically(HERE / "results" / "pairs.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
