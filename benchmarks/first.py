"""The same programs on every backend, one thread, in one run: bounds, times, and ratios to the best and to the floor.

    python -m benchmarks.first [--time-limit 60] [--nets FOLDER] [--out benchmarks/results]

Networks come from recipes (and, with --nets, from ONNX files below a folder). The floor is one dense Cholesky
factorisation and inversion (LAPACK potrf + potri) of a matrix of the order of the inequality. Writes first.json and
first.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg as sla
from threadpoolctl import threadpool_limits

import lipmodel as lm
from lipmodel.result import write_atomically

BACKENDS = {"native": 6000, "clarabel": 110, "scs": 600}
"""Backends, and the order of the inequality beyond which they are left out (memory)."""
PROGRAMS = (("lipsdp-neuron", "2"), ("geolip", "inf:2"))


def gaussian(dims: list[int], seed: int) -> lm.Network:
    """Weights N(0, 1) / sqrt(fan in), ReLU."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((m, n)) / np.sqrt(n) for n, m in pairwise(dims)]
    return lm.from_weights(weights, activation="relu")


def recipes() -> dict[str, Any]:
    """The networks of the benchmark."""
    return {
        "digits 64-32-32-10 (trained)": lm.load(Path(__file__).parent.parent / "examples" / "digits.onnx"),
        "gauss 2-10-30-20-2": gaussian([2, 10, 30, 20, 2], 0),
        "gauss 10-50x5-10": gaussian([10, 50, 50, 50, 50, 50, 10], 1),
        "gauss 64-128-128-10": gaussian([64, 128, 128, 10], 2),
        "gauss 20-20x20-5": gaussian([20, *[20] * 20, 5], 3),
    }


def floor(order: int) -> float:
    """Seconds of potrf + potri at this order, the best of three."""
    a = np.eye(order) + 0.1 / order
    times = []
    for _ in range(3):
        start = time.perf_counter()
        factor, _ = sla.lapack.dpotrf(a, lower=1)
        sla.lapack.dpotri(factor, lower=1)
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-6)


def measure(name: str, net: Any, limit: float) -> list[dict[str, Any]]:
    """One row per program and backend."""
    rows = []
    system = lm.increments(net)
    with threadpool_limits(limits=1):
        base = floor(system.order)
    product = {norm: lm.solve(net, "product", norm=norm, witness=False).bound for _, norm in PROGRAMS}
    for formulation, norm in PROGRAMS:
        found = []
        for backend in (name for name, largest in BACKENDS.items() if system.order <= largest):
            result = lm.solve(net, formulation, norm=norm, backend=backend, time_limit=limit, witness=False)
            found.append(
                {
                    "network": name,
                    "activations": system.neurons,
                    "order": system.order,
                    "formulation": formulation,
                    "norm": norm,
                    "backend": backend,
                    "bound": result.bound,
                    "product": product[norm],
                    "termination": result.termination,
                    "gap": result.gap,
                    "solve": result.timings.solve,
                    "certify": result.timings.certify,
                    "floors": result.timings.solve / base,
                }
            )
        best = min(row["bound"] for row in found)
        others = [r["solve"] for r in found if r["backend"] != "native" and r["bound"] <= best * (1.0 + 1e-5)]
        for row in found:
            row["excess"] = row["bound"] / best - 1.0
            row["native is faster by"] = min(others) / row["solve"] if row["backend"] == "native" and others else None
        rows.extend(found)
    return rows


def markdown(rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# First benchmark",
        "",
        f"{machine['date']}, {machine['processor']}, one thread, Python {machine['python']}; "
        + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()),
        "",
        "`solve`, `certify` in seconds; `floors`: solve time in units of one dense potrf + potri of the same order;",
        "`excess`: of the proved bound over the best; `faster`: against the best other backend within 1e-5 of it.",
        "",
        "| network | neurons | program | backend | proved bound | excess | solve | certify | floors | faster | ended |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        faster = "" if r["native is faster by"] is None else f"{r['native is faster by']:.0f}x"
        cells = [r["network"], r["activations"], f"{r['formulation']} {r['norm']}", r["backend"], f"{r['bound']:.8g}"]
        cells += [f"{r['excess']:.0e}", f"{r['solve']:.3f}", f"{r['certify']:.3f}", f"{r['floors']:.0f}"]
        lines.append("| " + " | ".join(map(str, [*cells, faster, r["termination"]])) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for each program and backend")
    parser.add_argument("--nets", type=Path, default=None, help="also every .onnx file below this folder that solves")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    args = parser.parse_args()
    networks: dict[str, Any] = recipes()
    if args.nets is not None:
        networks.update({str(p.relative_to(args.nets)): lm.load(p) for p in sorted(args.nets.rglob("*.onnx"))})
    rows: list[dict[str, Any]] = []
    for name, net in networks.items():
        rows.extend(measure(name, net, args.time_limit))
        print(
            f"{name}: " + ", ".join(f"{r['backend']} {r['solve']:.2f} s" for r in rows if r["network"] == name),
            flush=True,
        )
    machine = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "scipy", "clarabel", "scs")},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "first.json", json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    write_atomically(args.out / "first.md", markdown(rows, machine))
    print(markdown(rows, machine))


if __name__ == "__main__":
    main()
