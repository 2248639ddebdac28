"""Free semidefinite solvers on the scaled inequality that lipmodel would hand them, and whether they are right."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.bridges.program import ConeProgram, cone_program, too_large
from lipmodel.bridges.scaling import prepare
from lipmodel.io.sdpa import sdpa_bytes, sdpa_problem
from lipmodel.model.model import Model

SOLVERS = ("csdp", "sdpa", "cvxopt", "clarabel", "scs 1e-5", "scs 1e-7")
ABOVE, BELOW = 1e-5, 1e-6
"""How far a correct bound may be above the proved bound and below the estimate of the optimum, relatively."""
TRIES, SMALLER = 2, 0.75
"""Problems on which a solver may run out of time or memory before it is spared those that are this much larger."""
SINGLE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")


def versions() -> dict[str, str]:
    """Version of every solver, or "not installed"."""
    found = {}
    for name, package in (("sdpa", "sdpa-python"), ("cvxopt", "cvxopt"), ("clarabel", "clarabel"), ("scs", "scs")):
        try:
            found[name] = version(package) if importlib.util.find_spec(_module(name)) else "not installed"
        except PackageNotFoundError:
            found[name] = "installed"
    if found["sdpa"] == "not installed" and shutil.which("sdpa"):
        found["sdpa"] = "program"
    found["csdp"] = "not installed"
    if shutil.which("csdp"):
        told = subprocess.run(["csdp"], capture_output=True, text=True, check=False, timeout=20.0).stdout
        found["csdp"] = next((line.split()[-1] for line in told.splitlines() if line.startswith("CSDP")), "installed")
    return found


def _module(name: str) -> str:
    return "sdpap" if name == "sdpa" else name


@dataclass(slots=True, kw_only=True)
class Field:
    """The solvers that take part. given_up: by solver, the sizes (order, unknowns) at which it did not finish."""

    limit: float
    memory: int
    known: dict[str, str] = field(default_factory=versions)
    given_up: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def hopeless(self, solver: str, order: int, unknowns: int) -> bool:
        """Whether it did not finish `TRIES` smaller problems."""
        smaller = [1 for o, u in self.given_up.get(solver, []) if o <= SMALLER * order and u <= SMALLER * unknowns]
        return len(smaller) >= TRIES


def race(model: Model, field: Field, lower: float, bound: float) -> list[dict[str, Any]]:
    """One row per solver; lower, bound: what is known of the optimum, as bounds.

    verdict: "correct", "invalid" (its value is not the optimum), or why there is none.
    """
    prepared = prepare(model).model
    excess = too_large(prepared)
    if excess is not None:
        return [_row(solver, "too large to expand") for solver in SOLVERS]
    program = cone_program(prepared)
    if len(program.psd) != 1 or program.eq.shape[0]:
        return [_row(solver, "not one inequality") for solver in SOLVERS]
    unit = float(np.abs(program.cost).max(initial=0.0)) or 1.0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        _write(program, unit, Path(folder))
        for solver in SOLVERS:
            if field.known[solver.split()[0]] == "not installed":
                rows.append(_row(solver, "not installed"))
            elif field.hopeless(solver, program.psd[0].order, program.size):
                rows.append(_row(solver, "not tried: smaller ones did not finish"))
            else:
                rows.append(_judged(_run(solver, Path(folder), field), program, model, unit, lower, bound))
                if rows[-1]["verdict"] in ("time limit", "memory"):
                    field.given_up.setdefault(solver, []).append((program.psd[0].order, program.size))
    return rows


def _row(solver: str, verdict: str, **facts: Any) -> dict[str, Any]:
    return {"solver": solver, "verdict": verdict, "bound": None, "cpu": None, "wall": None, **facts}


def _write(program: ConeProgram, unit: float, folder: Path) -> None:
    (block,) = program.psd
    g = sp.coo_array(program.ineq)
    np.savez(
        folder / "problem.npz",
        c=program.cost / unit,
        order=block.order,
        row=block.row,
        col=block.col,
        var=block.var,
        value=block.value,
        G_data=g.data,
        G_row=g.coords[0],
        G_col=g.coords[1],
        h=program.ineq_rhs,
    )
    (folder / "problem.dat-s").write_bytes(sdpa_bytes(sdpa_problem(program, unit)))


def _run(solver: str, folder: Path, field: Field) -> dict[str, Any]:
    """The solver's answer, or a row that says why there is none."""
    worker = Path(__file__).with_name("worker.py")
    command = [sys.executable, str(worker), solver, str(folder), str(field.limit), str(field.memory)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **SINGLE},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=3.0 * field.limit + 60.0)
    except subprocess.TimeoutExpired:
        return _row(solver, "time limit")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    answers = [line for line in out.splitlines() if line.startswith("ANSWER ")]
    if answers:
        return {"solver": solver, **json.loads(answers[-1].removeprefix("ANSWER "))}
    if process.returncode == -signal.SIGXCPU:
        return _row(solver, "time limit")
    full = any(word in err.lower() for word in ("memory", "alloc")) or process.returncode == -signal.SIGKILL
    last = err.strip().splitlines()[-1:] or [f"exit {process.returncode}"]
    return _row(solver, "memory" if full else "failed", status=last[0][:200])


def _judged(
    row: dict[str, Any], program: ConeProgram, model: Model, unit: float, lower: float, bound: float
) -> dict[str, Any]:
    """The row with the bound that the solver's value stands for, and whether it is one."""
    if "verdict" in row:
        return row
    value, own = row.pop("value"), row.pop("lower")
    row["bound"] = None if value is None else model.bound_of(value * unit + program.offset)
    row["own lower"] = None if own is None else model.bound_of(own * unit + program.offset)
    row["error"] = None if row["bound"] is None else row["bound"] / bound - 1.0
    if not row.pop("finished") or row["bound"] is None or not np.isfinite(row["bound"]):
        row["verdict"] = "time limit" if "time" in str(row["status"]).lower() else "failed"
    else:
        fine = lower * (1.0 - BELOW) <= row["bound"] <= bound * (1.0 + ABOVE)
        row["verdict"] = "correct" if fine else "invalid"
    return row
