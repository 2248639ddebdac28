"""One solver on one problem, in a process of its own: `python worker.py SOLVER FOLDER SECONDS BYTES`, JSON on stdout.

FOLDER has the problem twice, as arrays (problem.npz) and in the SDPA sparse format (problem.dat-s):

    minimise  c'y   subject to   C + sum_j y_j A_j  positive semidefinite,   G y + h >= 0

Nothing of lipmodel is imported. SECONDS are of CPU: a solver that takes much longer is killed by SIGXCPU. What is
measured, CPU and wall, is the solver's own call, without reading and setting up; "value" is c'y of its point, "lower"
what its dual point says.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

Problem = dict[str, Any]
Answer = dict[str, Any]


def timed(limit: float, call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of a call and its seconds; the process ends (SIGXCPU) a while after `limit` seconds of CPU."""
    end = int(time.process_time() + 1.1 * limit) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (end, end + 5))
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def read(folder: Path) -> Problem:
    data = np.load(folder / "problem.npz")
    problem: Problem = {key: data[key] for key in data.files}
    shape = (len(problem["h"]), len(problem["c"]))
    problem["G"] = sp.csr_array((problem.pop("G_data"), (problem.pop("G_row"), problem.pop("G_col"))), shape=shape)
    problem["order"] = int(problem["order"])
    return problem


def triangle(problem: Problem, *, upper: bool) -> tuple[Any, Any]:
    """The inequality as the scaled vector of a triangle: coefficients (rows, unknowns) and constant."""
    row, col, var, value, n = (problem[key] for key in ("row", "col", "var", "value", "order"))
    index = row * (row + 1) // 2 + col if upper else col * n - col * (col - 1) // 2 + (row - col)
    value = np.where(row == col, value, np.sqrt(2.0) * value)
    total, fixed = n * (n + 1) // 2, var < 0
    constant = np.bincount(index[fixed], weights=value[fixed], minlength=total)
    return sp.csr_array((value[~fixed], (index[~fixed], var[~fixed])), shape=(total, len(problem["c"]))), constant


def full(problem: Problem) -> tuple[Any, Any]:
    """The inequality entry by entry, column by column: coefficients (order^2, unknowns) and constant."""
    row, col, var, value, n = (problem[key] for key in ("row", "col", "var", "value", "order"))
    off = row != col
    index = np.concatenate([row + n * col, col[off] + n * row[off]])
    var, value = np.concatenate([var, var[off]]), np.concatenate([value, value[off]])
    fixed = var < 0
    constant = np.bincount(index[fixed], weights=value[fixed], minlength=n * n)
    return sp.csc_array((value[~fixed], (index[~fixed], var[~fixed])), shape=(n * n, len(problem["c"]))), constant


def clarabel(problem: Problem, limit: float) -> Answer:
    import clarabel

    coefficients, constant = triangle(problem, upper=True)
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.time_limit = False, limit
    settings.tol_gap_rel = settings.tol_gap_abs = settings.tol_feas = 1e-8
    if hasattr(settings, "max_threads"):
        settings.max_threads = 1
    matrix = sp.csc_matrix(sp.vstack([-problem["G"], -coefficients]))
    right = np.concatenate([problem["h"], constant])
    cones = [clarabel.NonnegativeConeT(len(problem["h"])), clarabel.PSDTriangleConeT(problem["order"])]
    n = len(problem["c"])
    solve = lambda: clarabel.DefaultSolver(  # noqa: E731
        sp.csc_matrix((n, n)), problem["c"], matrix, right, cones, settings
    ).solve()
    found, seconds = timed(limit, solve)
    status = str(found.status)
    answer = {"status": status, "value": found.obj_val, "lower": found.obj_val_dual, "iterations": found.iterations}
    return {**answer, **seconds, "finished": status in ("Solved", "AlmostSolved")}


def scs(problem: Problem, limit: float, accuracy: float) -> Answer:
    import scs

    coefficients, constant = triangle(problem, upper=False)
    matrix = sp.csc_matrix(sp.vstack([-problem["G"], -coefficients]))
    data = {"A": matrix, "b": np.concatenate([problem["h"], constant]), "c": problem["c"]}
    cone = {"l": len(problem["h"]), "s": [problem["order"]]}
    options = {"eps_abs": accuracy, "eps_rel": accuracy, "max_iters": 10**8, "verbose": False}
    found, seconds = timed(limit, lambda: scs.SCS(data, cone, time_limit_secs=limit, **options).solve())
    info = found["info"]
    answer = {"status": info["status"], "value": info["pobj"], "lower": info["dobj"], "iterations": info["iter"]}
    return {**answer, **seconds, "finished": info["status"] == "solved"}


def cvxopt(problem: Problem, limit: float) -> Answer:
    from cvxopt import matrix, solvers, spmatrix  # type: ignore[import-not-found]

    coefficients, constant = full(problem)
    joined = sp.coo_array(sp.vstack([-problem["G"], -coefficients]))
    g = spmatrix(joined.data.tolist(), joined.coords[0].tolist(), joined.coords[1].tolist(), joined.shape)
    right = matrix(np.concatenate([problem["h"], constant]))
    dims = {"l": len(problem["h"]), "q": [], "s": [problem["order"]]}
    solvers.options["show_progress"] = False
    found, seconds = timed(limit, lambda: solvers.conelp(matrix(problem["c"]), g, right, dims))
    answer = {"status": found["status"], "value": found["primal objective"], "lower": found["dual objective"]}
    return {**answer, **seconds, "iterations": found["iterations"], "finished": found["status"] == "optimal"}


def sdpa(problem: Problem, limit: float, folder: Path) -> Answer:
    try:
        from sdpap.param import param  # type: ignore[import-not-found]
        from sdpap.sdpacall import sdpacall  # type: ignore[import-not-found]
        from sdpap.symcone import SymCone  # type: ignore[import-not-found]
    except ImportError:
        return sdpa_program(folder, limit)
    # min <C, X> + h'z subject to <A_j, X> + (G'z)_j = c_j: the optimum is minus that of the problem
    coefficients, constant = full(problem)
    matrix = sp.csc_matrix(sp.vstack([problem["G"], coefficients]).T)
    right = sp.csc_matrix(np.concatenate([problem["h"], constant])[:, None])
    cone = SymCone(l=len(problem["h"]), s=(problem["order"],))
    option = param({"print": "no", "numThreads": 1})
    cost = sp.csc_matrix(problem["c"][:, None])
    found, seconds = timed(limit, lambda: sdpacall.solve_sdpa(matrix, cost, right, cone, option))
    y, info = np.asarray(found[1].todense()).ravel(), found[3]
    answer = {"status": info["phasevalue"], "value": float(-problem["c"] @ y), "iterations": info["iteration"]}
    answer |= {"lower": -float(info["primalObj"]), "finished": info["phasevalue"] in ("pdOPT", "pdFEAS")}
    return {**answer, **seconds}


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def program(command: list[str], folder: Path, limit: float) -> tuple[str, dict[str, float]]:
    wall, cpu = time.perf_counter(), children()
    end = int(limit) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (end, end + 5))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGXCPU:
        os.kill(os.getpid(), signal.SIGXCPU)
    return done.stdout, {"cpu": children() - cpu, "wall": time.perf_counter() - wall}


def number_after(text: str, label: str) -> float | None:
    for line in text.splitlines():
        if line.strip().startswith(label):
            return float(line.split("=" if "=" in line else ":")[1].split()[0])
    return None


def csdp(folder: Path, limit: float) -> Answer:
    text, seconds = program([shutil.which("csdp") or "csdp", "problem.dat-s"], folder, limit)
    own = number_after(text, "Total time")  # without reading the file
    if own is not None:
        seconds = {key: min(value, own) for key, value in seconds.items()}
    status = next((line for line in text.splitlines() if line.startswith(("Success", "Partial", "Failure"))), "failed")
    if status == "failed" and "Declaring" in text:
        status = next(line for line in text.splitlines() if "Declaring" in line)
    value, lower = number_after(text, "Dual objective value"), number_after(text, "Primal objective value")
    count = [line.split()[1] for line in text.splitlines() if line.startswith("Iter:")]
    answer = {"status": status, "value": value, "lower": lower, "iterations": int(count[-1]) if count else None}
    return {**answer, **seconds, "finished": status.startswith(("Success", "Partial")) and value is not None}


def sdpa_program(folder: Path, limit: float) -> Answer:
    command = [shutil.which("sdpa") or "sdpa", "-ds", "problem.dat-s", "-o", "sdpa.out", "-numThreads", "1"]
    text, seconds = program(command, folder, limit)
    written = folder / "sdpa.out"
    text += written.read_text() if written.exists() else ""
    phase = next((line.split("=")[1].strip() for line in text.splitlines() if line.startswith("phase.value")), "failed")
    value, lower = number_after(text, "objValPrimal"), number_after(text, "objValDual")
    answer = {"status": phase, "value": value, "lower": lower, "iterations": None}
    return {**answer, **seconds, "finished": phase in ("pdOPT", "pdFEAS") and value is not None}


def main() -> None:
    solver, folder, limit, memory = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if solver == "csdp":
        answer = csdp(folder, limit)
    else:
        problem = read(folder)
        if solver == "clarabel":
            answer = clarabel(problem, limit)
        elif solver.startswith("scs"):
            answer = scs(problem, limit, float(solver.split()[1]))
        elif solver == "cvxopt":
            answer = cvxopt(problem, limit)
        else:
            answer = sdpa(problem, limit, folder)
    print("ANSWER " + json.dumps(answer, default=float))


if __name__ == "__main__":
    main()
