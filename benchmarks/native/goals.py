"""The goals, each with its target, what was measured and whether that meets it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

Row = dict[str, Any]


def judged(rows: list[Row], races: dict[str, list[Row]], gate: Row | None, limit: float) -> list[Row]:
    """One row per goal and part: goal, what, target, measured (in words), met (None: nothing to judge by)."""
    found = [
        *_gaps(rows, gate),
        *_competition(rows, races, limit),
        *_floors([row for row in rows if 3 in row["goals"]]),
        *_growth(rows),
        *_logits(rows),
        *_anytime([row for row in rows if 6 in row["goals"]]),
        *_certification([row for row in rows if 7 in row["goals"]]),
    ]
    return [row for row in found if row["met"] is not None]


def label(row: Row) -> str:
    """Network and program."""
    return f"{row['network']} {row['formulation']} {row['norm']}"


def _goal(number: int, what: str, target: str, measured: str, met: bool | None) -> Row:
    return {"goal": number, "what": what, "target": target, "measured": measured, "met": met}


def _worst(rows: Iterable[Row], value: Callable[[Row], float]) -> tuple[float, str, int]:
    """The largest value, where it was found, and of how many."""
    found = [(value(row), label(row)) for row in rows]
    return (*max(found), len(found)) if found else (math.nan, "", 0)


def _most(number: int, what: str, target: float, rows: Iterable[Row], value: Callable[[Row], float], form: str) -> Row:
    """A goal on the largest value of some rows."""
    largest, where, count = _worst(rows, value)
    measured = f"{largest:{form}} ({where}; {count} programs)"
    return _goal(number, what, f"≤ {target:g}", measured, largest <= target if count else None)


def _gaps(rows: list[Row], gate: Row | None) -> list[Row]:
    found = [_most(1, "gap of the proved bound", 1e-6, rows, lambda row: row["gap"], ".2e")]
    # the tolerance is that of the solver; the proof adds its own loss to it
    found[0]["met"] = found[0]["met"] and all(set(row["terminations"]) == {"optimal"} for row in rows)
    if gate is not None:
        failures = len(gate["failures"])
        measured = f"{failures} of {gate['count']} (largest gap {gate['largest gap']:.2e})"
        found.append(_goal(1, "failures on random networks", "0", measured, failures == 0))
    return found


def speedup(row: Row, races: dict[str, list[Row]]) -> tuple[float, str] | None:
    """How many times the seconds of native the best correct competitor took, and which it was."""
    right = [r for r in races.get(label(row), []) if r["verdict"] == "correct"]
    if not right:
        return None
    best = min(right, key=lambda r: r["cpu"])
    return best["cpu"] / row["cpu"], best["solver"]


def _competition(rows: list[Row], races: dict[str, list[Row]], limit: float) -> list[Row]:
    raced = [(row, speedup(row, races)) for row in rows if label(row) in races]
    found = []
    for least, target in ((200, 50.0), (500, 100.0)):
        ratios = [ratio[0] for row, ratio in raced if ratio is not None and row["neurons"] >= least]
        none = [row for row, ratio in raced if ratio is None and row["neurons"] >= least]
        mean = math.exp(float(np.mean(np.log(ratios)))) if ratios else math.nan
        words = f"{mean:.0f} over {len(ratios)}"
        words += f"; on {len(none)} more none finished in {limit:g} s or was tried" if none else ""
        what = f"times faster than the best free solver, N ≥ {least}, geometric mean"
        found.append(_goal(2, what, f"≥ {target:g}", words, mean >= target if ratios else None))
    slowest = min(((r[0], label(row)) for row, r in raced if r is not None and row["neurons"] >= 30), default=None)
    if slowest is not None:
        what = "times faster at N ≥ 30, least"
        found.append(_goal(2, what, "≥ 1", f"{slowest[0]:.1f} ({slowest[1]})", slowest[0] >= 1.0))
    return found


def _floors(rows: list[Row]) -> list[Row]:
    groups: list[tuple[str, float, Callable[[Row], bool]]] = [
        ("floors, depth ≥ 10, N ≥ 1000", 20.0, lambda r: r["depth"] >= 10 and r["neurons"] >= 1000),
        ("floors, 2-6 layers of width ≥ 200", 50.0, lambda r: 2 <= r["depth"] <= 6 and r["width"] >= 200),
        ("floors, N 200-500", 120.0, lambda r: 200 <= r["neurons"] <= 500),
    ]
    return [_most(3, what, target, filter(of, rows), lambda r: r["floors"], ".0f") for what, target, of in groups]


def exponents(rows: list[Row], series: str) -> tuple[float, list[float], str]:
    """Least-squares slope of log seconds over log N, the slopes between neighbours, and the sizes."""
    points = sorted({row["neurons"]: row["cpu"] for row in rows if row["series"] == series}.items())
    if len(points) < 2:
        return math.nan, [], ""
    n, t = np.log(np.array(points)).T
    steps = [float(x) for x in np.diff(t) / np.diff(n)]
    return float(np.polyfit(n, t, 1)[0]), steps, ", ".join(str(p[0]) for p in points)


def _growth(rows: list[Row]) -> list[Row]:
    found = []
    for series, target in (("width", 2.6), ("depth", 2.2)):
        slope, steps, sizes = exponents(rows, series)
        words = f"{slope:.2f} (N {sizes}; steps {', '.join(f'{x:.2f}' for x in steps)})"
        found.append(_goal(4, f"exponent in {series}", f"≤ {target:g}", words, slope <= target if steps else None))
    counts = [count for row in rows for count in row["iterations"] if count is not None]
    if counts:
        median = float(np.median(counts))
        what = "iterations (Hessians or rounds of ascent), median"
        found.append(_goal(4, what, "≤ 20", f"{median:g} (most {max(counts)})", median <= 20))
    return found


def _logits(rows: list[Row]) -> list[Row]:
    targets = [("784-64-10", "cpu to 0.0001", 0.5), ("784-64-10", "cpu", 2.0), ("784-256-10", "cpu to 0.0001", 2.0)]
    targets += [("784-256-10", "cpu", 8.0), ("784-64^6-10", "cpu", 4.0)]
    found = []
    for name, key, target in targets:
        for row in rows:
            if row["network"] == name and 5 in row["goals"]:
                what = f"GeoLIP {name}, ten logits, to {'1e-4' if key != 'cpu' else '1e-6'}"
                found.append(_goal(5, what, f"≤ {target:g} s", f"{row[key]:.2f} s", row[key] <= target))
    return found


def _anytime(rows: list[Row]) -> list[Row]:
    small = [row for row in rows if row["neurons"] <= 1000]
    first = _most(6, "ms to a proved bound, N ≤ 1000", 10.0, small, lambda r: 1e3 * r["first proved"], ".1f")
    found = [first]
    for kind, moment, target, name in (
        ("acas", "0.1", 0.1, "the size of ACAS Xu (or the network)"),
        ("mnist256x2", "0.3", 0.05, "784-256-256-10"),
    ):
        group = [row for row in rows if row["anytime"] == kind]
        what = f"excess over the final bound at {moment} s, {name}"
        found.append(_most(6, what, target, group, partial(_excess, moment=moment), ".2g"))
    return found


def _excess(row: Row, moment: str) -> float:
    value = row["excess"].get(moment)
    return math.inf if value is None else float(value)


def _certification(rows: list[Row]) -> list[Row]:
    large = [row for row in rows if row["neurons"] >= 300]
    return [
        _most(7, "certification / solve, N ≥ 300", 0.15, large, certification_share, ".2f"),
        _most(7, "loss of the proof, relative", 1e-8, rows, lambda r: r["loss"], ".1e"),
    ]


def certification_share(row: Row) -> float:
    """Seconds of the proof of the solver's point over those of the solver; the product bound is a bound of its own."""
    return float(row["certify"] / row["cpu"])
