"""What it costs to turn a model into a solver's data, beside the canonicalisation of CVXPY and PICOS.

    python -m benchmarks.compile [--sizes 100 300 1000] [--limit 120]

Every tool runs in a process of its own, on the same LipSDP problem of a ReLU network 64-N/2-N/2-10, and ends with the
data that it would give to Clarabel (PICOS: to CVXOPT). The unit is one product of dense N x N matrices in that very
process; peak memory is what the process takes at most beyond what it had before, in units of the data that comes out.
Writes results/compile.md.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

import lipmodel as lm
from lipmodel.formulation import formulation

Array = np.ndarray[Any, Any]
HERE = pathlib.Path(__file__).parent / "results"
REPEAT = 3
MEMORY = 8 << 30
"""Bytes that a tool may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds (the fewest of a few), of one matrix product, bytes of the data, bytes at the peak beyond the start."""

    seconds: float
    product: float
    data: int
    peak: int


def network_model(neurons: int) -> Any:
    """The LipSDP model of a random ReLU network 64-N/2-N/2-10."""
    rng = np.random.default_rng(neurons)
    sizes = [64, neurons // 2, neurons // 2, 10]
    weights = [rng.standard_normal((b, a)) / np.sqrt(a) for a, b in pairwise(sizes)]
    system = lm.increments(lm.from_weights(weights))
    return lm.build(system, formulation("lipsdp-neuron"), lm.Spec(input_norm="2", output_norm="2"))


def with_lipmodel(model: Any) -> list[Array]:
    from lipmodel.backends.conic import GENERAL
    from lipmodel.bridges.plan import compile_model
    from lipmodel.bridges.program import svec

    program = compile_model(model, GENERAL).program
    parts = [program.ineq, *(part for block in program.psd for part in svec(block, program.size, upper=True))]
    arrays = [program.cost, program.ineq_rhs]
    for part in parts:
        arrays += [part.data, part.indices, part.indptr] if hasattr(part, "indptr") else [part]
    return arrays


def with_cvxpy(model: Any) -> list[Array]:
    import cvxpy

    problem = lm.to_native(model, "cvxpy")
    data, _, _ = problem.get_problem_data(cvxpy.CLARABEL)
    return [data["A"].data, data["A"].indices, data["A"].indptr, data["b"], data["c"]]


def with_picos(model: Any) -> list[Array]:
    from picos.solvers import get_solver

    problem = lm.to_native(model, "picos")
    solver = get_solver("cvxopt")(problem.prepared(solver="cvxopt"))
    solver._load_problem()
    internal = solver.int
    parts = [internal[key] for key in ("c", "Gl", "hl")] + [m for key in ("Gs", "hs") for m in internal[key] or ()]
    arrays = [np.asarray(getattr(part, "V", part)) for part in parts if part is not None]
    indices = [np.asarray(part.I) for part in parts if hasattr(part, "I")]
    return arrays + indices


TOOLS: dict[str, Callable[[Any], list[Array]]] = {
    "lipmodel": with_lipmodel,
    "cvxpy": with_cvxpy,
    "picos": with_picos,
}


def measure(tool: str, neurons: int) -> Measured:
    """Time and memory of one tool, in this process; a small problem first brings in what is imported late."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    run = TOOLS[tool]
    run(network_model(20))
    matrix = np.random.default_rng(0).standard_normal((neurons, neurons))
    products, times = [], []
    for _ in range(REPEAT):
        products.append(_seconds(lambda: matrix @ matrix)[0])
    model = network_model(neurons)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, arrays = _seconds(lambda: run(model))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    data = sum(a.nbytes for a in arrays)
    times.append(seconds)
    del arrays
    while len(times) < REPEAT and seconds < 5.0:
        times.append(_seconds(lambda: run(model))[0])
    return Measured(seconds=min(times), product=min(products), data=data, peak=1024 * peak)


def _seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def in_process(tool: str, neurons: int, limit: float) -> Measured | str:
    """The measurement in a process of its own, or why there is none."""
    command = [sys.executable, "-m", "benchmarks.compile", "--worker", tool, str(neurons)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"more than {limit:.0f} s"
    if "MemoryError" in found.stderr:
        return f"more than {MEMORY >> 30} GiB"
    if found.returncode != 0:
        return (found.stderr.strip().splitlines() or [f"exit {found.returncode}"])[-1][:80]
    return Measured(**json.loads(found.stdout.splitlines()[-1]))


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one tool and size")
    parser.add_argument("--worker", nargs=2, metavar=("TOOL", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        found = measure(arguments.worker[0], int(arguments.worker[1]))
        print(json.dumps({name: getattr(found, name) for name in found.__dataclass_fields__}))
        return
    rows = []
    for neurons in arguments.sizes:
        for tool in TOOLS:
            rows.append(f"| {neurons} | {tool} | {_row(in_process(tool, neurons, arguments.limit))} |")
            print(rows[-1], flush=True)
    head = "| N | tool | model to data | in N x N products | data | peak / data |\n|---|---|---|---|---|---|\n"
    text = f"# Compile cost\n\n{_about(arguments)}\n\n{head}" + "\n".join(rows) + "\n"
    HERE.mkdir(exist_ok=True)
    (HERE / "compile.md").write_text(text, encoding="utf-8")


def _row(found: Measured | str) -> str:
    if isinstance(found, str):
        return f"{found} | | |"
    ratio, size = found.seconds / found.product, found.data / 1e6
    return f"{found.seconds:.3f} s | {ratio:.1f} | {size:.1f} MB | {found.peak / found.data:.1f}"


def _about(arguments: argparse.Namespace) -> str:
    sizes = " ".join(map(str, arguments.sizes))
    return (
        f"`python -m benchmarks.compile --sizes {sizes} --limit {arguments.limit:.0f}`: from the LipSDP model of a "
        "ReLU network 64-N/2-N/2-10 to what Clarabel gets (PICOS: CVXOPT), the fewest seconds of three. lipmodel "
        "includes scaling and the search for a plan; CVXPY and PICOS start from idiomatic problem objects that are "
        "built within the time. One matrix product is timed in the same process, on its cores."
    )


if __name__ == "__main__":
    main()
