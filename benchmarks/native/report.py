"""The tables: goals, programs, competitors, iterates over time."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

from benchmarks.native.competitors import SOLVERS
from benchmarks.native.goals import exponents, label, speedup
from benchmarks.native.measure import MOMENTS

Row = dict[str, Any]
COLUMNS = (
    "network", "program", "N", "order", "bound", "gap", "seconds", "iterations", "floors", "first", "product",
    "certify", "loss", "faster",
)  # fmt: skip


def machine(solvers: dict[str, str]) -> Row:
    """Processor, cores, memory and versions."""
    import scipy.linalg  # noqa: F401 - so that its own BLAS is loaded, and listed

    blas = {f"{pool['internal_api']} {pool.get('version')} ({pool.get('architecture')})" for pool in threadpool_info()}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "scipy", "lipmodel")},
            "BLAS": ", ".join(sorted(blas)) or "unknown",
            **solvers,
        },
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def markdown(results: Row) -> str:
    """The report of a run."""
    here, rows, races = results["machine"], results["programs"], results["races"]
    lines = [
        "# The native backend",
        "",
        f"{here['date']}, {here['processor']}, {here['cores']} cores, {here['memory GiB']} GiB, {here['system']}. "
        + ", ".join(f"{k} {v}" for k, v in here["versions"].items()),
        "",
        f"`python -m benchmarks.native {results['command']}`. One thread; CPU seconds of this process, the fastest of "
        "up to three runs where one takes less than a second.",
        "",
        "## Goals",
        "",
        *_table(
            ("goal", "what", "target", "measured", "met"),
            [(g["goal"], g["what"], g["target"], g["measured"], "yes" if g["met"] else "NO") for g in results["goals"]],
        ),
        "",
        *_gate(results["gate"]),
        "## Programs",
        "",
        "N: neurons; order: of the inequality; floors: seconds in units of one dense potrf + potri of that order; "
        "first, product: seconds of the two bounds that are proved before a solver starts; certify: of the proof of "
        "its point; faster: than the best competitor whose value is correct.",
        "",
        *_table(
            COLUMNS,
            [_program(row, races) for row in rows],
        ),
        "",
    ]
    if races:
        lines += ["## Competitors", "", *_competitors(rows, races, results), ""]
    if any(row["excess"] for row in rows):
        lines += ["## Over time", "", "Excess of the best feasible point over the final bound.", ""]
        head = ("network", "program", "first point", *(f"{m:g} s" for m in MOMENTS))
        lines += [*_table(head, [_moments(row) for row in rows if row["excess"]]), ""]
    slopes = [(s, *exponents(rows, s)) for s in sorted({row["series"] for row in rows} - {""})]
    if slopes:
        lines += ["## Growth", ""]
        body = [(s, n, f"{fit:.2f}", ", ".join(f"{x:.2f}" for x in steps)) for s, fit, steps, n in slopes if steps]
        lines += _table(("series", "N", "exponent", "between neighbours"), body)
    return "\n".join(lines).rstrip() + "\n"


def _table(head: tuple[str, ...], body: list[tuple[Any, ...]]) -> list[str]:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *body)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _gate(gate: Row | None) -> list[str]:
    if gate is None:
        return []
    lines = [
        "## Random networks",
        "",
        f"{gate['count']} from seed {gate['seed']}: {len(gate['failures'])} failures; largest gap "
        f"{gate['largest gap']:.2e}, largest loss of the proof {gate['largest loss']:.1e}, iterations median "
        f"{gate['median iterations']:g}, most {gate['most iterations']}; {gate['zero']} networks are constant; "
        f"{gate['compared']} compared with Clarabel, whose optimum a proved bound refutes {gate['refuted']} times; "
        f"{gate['seconds']:.0f} s solving, {gate['proof seconds']:.0f} s proving.",
        "",
    ]
    lines += [f"- {failure['label']}: {failure['failure']}" for failure in gate["failures"]]
    return lines + ([""] if gate["failures"] else [])


def _program(row: Row, races: dict[str, list[Row]]) -> tuple[Any, ...]:
    counts = row["iterations"]
    faster = speedup(row, races)
    return (
        row["network"],
        f"{row['formulation']} {row['norm']}" + (f" ({row['members']})" if row["members"] > 1 else ""),
        row["neurons"],
        row["order"],
        f"{row['bound']:.8g}",
        f"{row['gap']:.0e}",
        f"{row['cpu']:.3f}" + (f" ({row['cpu to 0.0001']:.3f} to 1e-4)" if "cpu to 0.0001" in row else ""),
        counts[0] if len(counts) == 1 else f"{min(counts)}-{max(counts)}",
        f"{row['floors']:.0f}",
        f"{row['first proved']:.4f}",
        f"{row['product']:.4f}",
        f"{row['certify']:.3f}",
        f"{row['loss']:.0e}",
        "" if faster is None else f"{faster[0]:.1f}x {faster[1]}",
    )


def _competitors(rows: list[Row], races: dict[str, list[Row]], results: Row) -> list[str]:
    body = []
    for row in rows:
        if label(row) in races:
            by_name = {r["solver"]: r for r in races[label(row)]}
            cells = [_cell(by_name[solver]) for solver in SOLVERS]
            body.append(
                (row["network"], f"{row['formulation']} {row['norm']}", row["neurons"], f"{row['cpu']:.3f}", *cells)
            )
    intro = (
        f"The same scaled inequality, each solver in a process of its own with one thread, {results['time limit']:g} s "
        f"and {results['memory'] / 2**30:.0f} GiB; CPU seconds of the solve alone, one run. Not quite alike: native "
        "stops at a relative gap of 1e-6 and its fastest run counts; interior point solvers run to about 1e-8, their "
        "default. A solver that did not finish two problems of at most three quarters of the size is not tried. In "
        "brackets what does not count: a value above the proved bound by more than 1e-5 or below the estimate of the "
        "optimum by more than 1e-6."
    )
    return [intro, "", *_table(("network", "program", "N", "native", *SOLVERS), body)]


def _cell(row: Row) -> str:
    if row["verdict"] == "correct":
        return f"{row['cpu']:.2f}"
    if row["verdict"] == "invalid":
        return f"({row['cpu']:.2f}, off by {row['error']:.0e})"
    return str(row["verdict"])


def _moments(row: Row) -> tuple[Any, ...]:
    first = "" if row["first point"] is None else f"{1e3 * row['first point']:.1f} ms"
    values = [row["excess"][f"{m:g}"] for m in MOMENTS]
    cells = ["" if v is None else f"{max(v, 0.0):.1e}" for v in values]
    return (row["network"], f"{row['formulation']} {row['norm']}", first, *cells)
