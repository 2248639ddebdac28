"""MPS (free format) and LP files for linear programs: minimise cost'x subject to G x + h >= 0 and E x + f = 0.

Columns are x1, x2, ..., rows r1, r2, ... (inequalities, then equalities), the objective is obj. A row that only says
that one variable is nonnegative is written as its bound; variables without one are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import UsageError
from lipmodel.io.text import comment

if TYPE_CHECKING:
    from lipmodel.bridges.program import ConeProgram

Array = np.ndarray[Any, Any]
WIDTH = 200
"""Characters after which a line of an LP file is continued on the next; some readers stop at 255."""


def not_linear(what: str) -> str:
    """Why such a file cannot hold a problem with cones."""
    return (
        f"the problem is a semidefinite program, and a {what} file holds linear programs: -o cone=dd is the linear "
        "restriction of lipsdp-neuron and geolip; .dat-s, .cbf and .mat files hold the problem as it is"
    )


def _rows(program: ConeProgram) -> tuple[Any, Array, int, Array]:
    """Rows (matrix, right-hand sides, how many of them are inequalities) and which variables are nonnegative."""
    if program.psd or program.soc:
        raise UsageError(not_linear("MPS or LP"))
    ineq = sp.csr_array(program.ineq)
    ineq.eliminate_zeros()
    single = np.flatnonzero((np.diff(ineq.indptr) == 1) & (program.ineq_rhs == 0.0))
    single = single[ineq.data[ineq.indptr[single]] > 0.0]
    nonnegative = np.zeros(program.size, dtype=bool)
    nonnegative[ineq.indices[ineq.indptr[single]]] = True
    rest = np.setdiff1d(np.arange(ineq.shape[0]), single)
    matrix = sp.csr_array(sp.vstack([ineq[rest], program.eq]))
    rhs = 0.0 - np.concatenate([program.ineq_rhs[rest], program.eq_rhs])  # without negative zeros
    return matrix, rhs, len(rest), nonnegative


def write_mps(program: ConeProgram, unit: float, *, form: str, comments: Sequence[str]) -> bytes:
    """The program as a free-format MPS file, its cost divided by `unit`. Raises UsageError unless it is linear."""
    matrix, rhs, inequalities, nonnegative = _rows(program)
    parts = [*(f"* {comment(text)}" for text in comments), "NAME lipmodel", "ROWS", " N obj"]
    parts += [f" {'G' if i < inequalities else 'E'} r{i + 1}" for i in range(matrix.shape[0])]
    parts.append("COLUMNS")
    columns = sp.csc_array(matrix)
    for j, cost in enumerate((program.cost / unit).tolist()):
        held = slice(columns.indptr[j], columns.indptr[j + 1])
        values = columns.data[held].tolist()
        entries = [(f"r{i + 1}", v) for i, v in zip(columns.indices[held].tolist(), values, strict=True)]
        if cost != 0.0 or not entries:
            entries.insert(0, ("obj", cost))
        parts += [f" x{j + 1} {row} {value!r}" for row, value in entries]
    parts.append("RHS")
    parts += [f" RHS r{i + 1} {value!r}" for i, value in enumerate(rhs.tolist()) if value != 0.0]
    parts.append("BOUNDS")
    parts += [f" FR BND x{j + 1}" for j in np.flatnonzero(~nonnegative).tolist()]
    return ("\n".join([*parts, "ENDATA"]) + "\n").encode()


def write_lp(program: ConeProgram, unit: float, *, form: str, comments: Sequence[str]) -> bytes:
    """The program as an LP file, its cost divided by `unit`. Raises UsageError unless it is linear."""
    matrix, rhs, inequalities, nonnegative = _rows(program)
    parts = [*(f"\\ {comment(text)}" for text in comments), "Minimize"]
    cost = sp.csr_array((program.cost / unit)[None, :])
    parts += _wrapped(" obj:", _sum(cost, 0))
    parts.append("Subject To")
    for i, value in enumerate(rhs.tolist()):
        relation = ">=" if i < inequalities else "="
        parts += _wrapped(f" r{i + 1}:", [*_sum(matrix, i), f"{relation} {value!r}"])
    parts.append("Bounds")
    parts += [f" x{j + 1} free" for j in np.flatnonzero(~nonnegative).tolist()]
    return ("\n".join([*parts, "End"]) + "\n").encode()


def _sum(matrix: Any, row: int) -> list[str]:
    """The terms of a row."""
    held = slice(matrix.indptr[row], matrix.indptr[row + 1])
    terms = zip(matrix.indices[held].tolist(), matrix.data[held].tolist(), strict=True)
    return [f"{'-' if v < 0.0 else '+'} {abs(v)!r} x{j + 1}" for j, v in terms] or ["0 x1"]


def _wrapped(head: str, words: Sequence[str]) -> list[str]:
    lines, line = [], head
    for word in words:
        if len(line) + len(word) > WIDTH:
            lines.append(line)
            line = " "
        line += f" {word}"
    return [*lines, line]
