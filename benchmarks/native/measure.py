"""One program measured as the pipeline solves it: seconds of the solver and of the proof, iterates, gaps, the floor."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.linalg as sla

from benchmarks.native.cases import Case
from lipmodel.backends import backend
from lipmodel.backends.base import Availability, Point, Progress, SolveOptions
from lipmodel.certify.product_rule import product_system, prove_product
from lipmodel.certify.quick import quick_bound
from lipmodel.clock import Clock
from lipmodel.families import chosen_outputs, measured, members
from lipmodel.member import Run, solve_member
from lipmodel.model.model import Model
from lipmodel.network.increments import IncrementSystem
from lipmodel.pipeline import make_request

REPEATS, SHORT = 3, 1.0
"""Runs shorter than SHORT seconds are measured up to REPEATS times, and the fastest counts."""
MOMENTS = (0.01, 0.1, 0.3, 1.0)
"""Seconds at which the best bound so far is looked at."""


class CpuClock(Clock):
    """Counts seconds of this process instead of seconds of the world."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.process_time()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.process_time() - start


class Recorder:
    """The native backend, and what is to be known of its last run."""

    def __init__(self) -> None:
        self.inner = backend("native")
        self.name, self.description = self.inner.name, self.inner.description
        self.capabilities = self.inner.capabilities
        self.cpu = self.wall = 0.0
        self.trace: list[tuple[float, float]] = []  # CPU seconds, bound of the best feasible point
        self.model: Model | None = None
        self.point: Point | None = None

    def available(self) -> Availability:
        return self.inner.available()

    def refuses(self, model: Model) -> str | None:
        return self.inner.refuses(model)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        self.trace, self.model = [], model
        wall, cpu = time.perf_counter(), time.process_time()

        def progress(state: Progress) -> None:
            self.trace.append((time.process_time() - cpu, model.bound_of(max(state.objective, 0.0))))

        self.point = self.inner.solve(model, replace(options, progress=progress))
        self.cpu, self.wall = time.process_time() - cpu, time.perf_counter() - wall
        return self.point


@lru_cache(maxsize=64)
def floor(order: int) -> float:
    """CPU seconds of one dense Cholesky factorisation and inversion (potrf + potri) of this order, the best of 3."""
    a = np.eye(order) + 0.1 / order
    repeats = max(1, int(2e7 / order**3))  # the clock does not resolve the smallest orders
    times = []
    for _ in range(3):
        start = time.process_time()
        for _ in range(repeats):
            factor, _ = sla.lapack.dpotrf(a, lower=1)
            sla.lapack.dpotri(factor, lower=1)
        times.append((time.process_time() - start) / repeats)
    return max(min(times), 1e-7)


def measure(case: Case, repeats: int = REPEATS) -> tuple[dict[str, Any], Recorder]:
    """The row of a case, and the solver's last run (of the last member of a family)."""
    system = case.system()
    row, recorder = _solved(case, system, case.tolerances[0], repeats)
    for tol in case.tolerances[1:]:
        other, _ = _solved(case, system, tol, repeats)
        row |= {f"cpu to {tol:g}": other["cpu"], f"gap at {tol:g}": other["gap"]}
    widths = [a.size for a in system.activations]
    row |= {
        "network": case.name,
        "formulation": case.formulation,
        "norm": case.norm,
        "series": case.series,
        "anytime": case.anytime,
        "goals": sorted(case.goals),
        "neurons": system.neurons,
        "depth": len(widths),
        "width": max(widths, default=0),
        "order": system.order,
        "floor": floor(system.order),
        **_proved_first(case, system, repeats),
    }
    row["floors"] = row["cpu"] / row["members"] / row["floor"]
    return row, recorder


def _run(case: Case, system: IncrementSystem, tol: float, recorder: Recorder) -> tuple[Run, list[Any], Any]:
    request = make_request(system, case.formulation, norm=case.norm)
    spec = measured(request.spec)
    chosen = chosen_outputs(system, spec.outputs)
    run = Run(
        formulation=request.formulation,
        spec=spec,
        clock=CpuClock(started=time.monotonic(), limit=None),
        backend=recorder,
        tol=tol,
        assurance="proved",
        native={},
        verbose=False,
        say=lambda line: None,
        progress=None,
    )
    return run, members(chosen, spec, request.formulation.norms, request.formulation.name), chosen


def _solved(case: Case, system: IncrementSystem, tol: float, repeats: int) -> tuple[dict[str, Any], Recorder]:
    """Every member of the case's family, solved and proved; the fastest of a few runs."""
    recorder = Recorder()
    best: dict[str, Any] = {}
    for _ in range(repeats):
        run, family, chosen = _run(case, system, tol, recorder)
        row: dict[str, Any] = {"members": len(family), "cpu": 0.0, "wall": 0.0, "iterations": [], "terminations": []}
        worst = {"gap": 0.0, "loss": -math.inf, "bound": 0.0, "lower": 0.0}
        for member in family:
            part = solve_member(chosen, member, run, None)
            row["cpu"] += recorder.cpu
            row["wall"] += recorder.wall
            assert recorder.point is not None
            row["iterations"].append(recorder.point.iterations)
            row["terminations"].append(part.termination)
            lower, claim = part.lower or 0.0, part.claim or math.inf
            worst["gap"] = max(worst["gap"], 1.0 - lower / part.bound)
            worst["loss"] = max(worst["loss"], part.bound / claim - 1.0)
            worst |= {"bound": max(worst["bound"], part.bound), "lower": max(worst["lower"], lower)}
        row |= {**worst, "certify": run.clock.spent.get("certify", 0.0)}
        row["trace"] = [[round(seconds, 6), bound] for seconds, bound in recorder.trace] if len(family) == 1 else []
        row |= excesses(recorder.trace, worst["bound"]) if len(family) == 1 else {"excess": {}, "first point": None}
        certify = min(row["certify"], best.get("certify", math.inf))
        first = best.get("cpu of the first run", row["cpu"])  # what a later run takes over from it would show here
        best = {**(row if row["cpu"] < best.get("cpu", math.inf) else best), "certify": certify}
        best["cpu of the first run"] = first
        if row["cpu"] > SHORT:
            break
    return best, recorder


def excesses(trace: list[tuple[float, float]], bound: float) -> dict[str, Any]:
    """How far the best feasible point at each of the moments is above the final bound, relatively (None: no point)."""
    at = {}
    for moment in MOMENTS:
        known = [value for seconds, value in trace if seconds <= moment]
        at[f"{moment:g}"] = min(known) / bound - 1.0 if known and bound > 0.0 else None
    return {"excess": at, "first point": trace[0][0] if trace else None}


def _proved_first(case: Case, system: IncrementSystem, repeats: int) -> dict[str, float]:
    """CPU seconds of the two bounds that the pipeline proves before a solver starts: the quick one, and the product."""
    norms = measured(make_request(system, case.formulation, norm=case.norm).spec).norms
    best = {"first proved": math.inf, "product": math.inf}
    for _ in range(repeats):
        start = time.process_time()
        quick_bound(system, *norms)
        middle = time.process_time()
        prove_product(product_system(system), *norms)
        end = time.process_time()
        best = {
            "first proved": min(best["first proved"], middle - start),
            "product": min(best["product"], end - middle),
        }
        if end - start > SHORT:
            break
    return best
