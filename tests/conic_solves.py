"""Compiled programs solved with Clarabel, with their duals, for tests of what leads there and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import clarabel
import numpy as np
import scipy.sparse as sp

from lipmodel.backends.base import Capabilities
from lipmodel.bridges.plan import Compiled, ProgramDuals, compile_model
from lipmodel.bridges.program import ConeProgram, svec

Array = np.ndarray[Any, Any]
ALL = Capabilities(cones=frozenset({"psd", "soc", "nonnegative", "zero"}))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solved:
    status: str
    value: float
    y: Array
    duals: ProgramDuals


def solve_program(program: ConeProgram) -> Solved:
    """The optimum of a program without rotated cones."""
    n = program.size
    parts: list[tuple[Any, Any, Any]] = [
        (program.eq, program.eq_rhs, clarabel.ZeroConeT(program.eq.shape[0])),
        (program.ineq, program.ineq_rhs, clarabel.NonnegativeConeT(program.ineq.shape[0])),
    ]
    for cone in program.soc:
        assert not cone.rotated
        parts.append((cone.matrix, cone.rhs, clarabel.SecondOrderConeT(cone.matrix.shape[0])))
    for block in program.psd:
        parts.append((*svec(block, n, upper=True), clarabel.PSDTriangleConeT(block.order)))
    parts = [part for part in parts if part[0].shape[0]]
    matrix = sp.csc_matrix(sp.vstack([-a for a, _, _ in parts]))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    rhs = np.concatenate([b for _, b, _ in parts])
    unit = float(np.abs(program.cost).max(initial=0.0)) or 1.0
    cost, cones = program.cost / unit, [c for *_, c in parts]
    solution = clarabel.DefaultSolver(sp.csc_matrix((n, n)), cost, matrix, rhs, cones, settings).solve()
    return Solved(
        status=str(solution.status),
        value=unit * float(solution.obj_val) + program.offset,
        y=np.array(solution.x),
        duals=_duals(program, unit * np.array(solution.z)),
    )


def _duals(program: ConeProgram, z: Array) -> ProgramDuals:
    at = 0

    def take(count: int) -> Array:
        nonlocal at
        at += count
        return z[at - count : at]

    eq, ineq = take(program.eq.shape[0]), take(program.ineq.shape[0])
    soc = [take(cone.matrix.shape[0]) for cone in program.soc]
    psd = []
    for block in program.psd:
        triangle = take(block.order * (block.order + 1) // 2)
        columns, rows = np.tril_indices(block.order)
        dense = np.zeros((block.order, block.order))
        dense[rows, columns] = np.where(rows == columns, triangle, triangle / np.sqrt(2.0))
        psd.append(dense + np.triu(dense, 1).T)
    return ProgramDuals(psd=psd, ineq=ineq, eq=eq, soc=soc)


def optimum(model: Any, capabilities: Capabilities = ALL) -> tuple[Compiled, Solved]:
    """The model compiled and solved."""
    compiled = compile_model(model, capabilities)
    return compiled, solve_program(compiled.program)
