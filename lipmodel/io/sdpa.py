"""The SDPA sparse format (Fujisawa, Kojima, Nakata & Yamashita, SDPA User's Manual), which CSDP reads too.

    minimise  sum_j c_j x_j   subject to   sum_j F_j x_j - F_0  positive semidefinite

A matrix inequality C + sum_j y_j A_j >= 0 is a block with F_j = A_j and F_0 = -C. Linear rows G y + h >= 0 and both
directions of equalities E y + f = 0 share one last block, diagonal, which the format marks by a negative size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from lipmodel.bridges.program import ConeProgram

Array = np.ndarray[Any, Any]
CHUNK = 200_000


def unit_of(program: ConeProgram) -> float:
    """The power of two that the cost is divided by in the file, so that its largest entry is of order one."""
    largest = float(np.abs(program.cost).max(initial=0.0))
    return 2.0 ** round(math.log2(largest)) if largest > 0.0 else 1.0


def linear_rows(program: ConeProgram) -> tuple[Any, Array]:
    """The rows of the diagonal block, matrix (rows, n) and constants: inequalities, equalities, equalities negated."""
    matrix = sp.csr_array(sp.vstack([program.ineq, program.eq, -program.eq]))
    return matrix, np.concatenate([program.ineq_rhs, program.eq_rhs, -program.eq_rhs])


def sdpa_file(program: ConeProgram, unit: float, *, comments: Sequence[str] = ()) -> bytes:
    """The file: comments, numbers of variables and blocks, their orders, cost / unit, entries by matrix and block.

    Numbers are written so that they read back exactly.
    """
    matrix, constants = linear_rows(program)
    orders = [block.order for block in program.psd] + ([-len(constants)] if len(constants) else [])
    lines = [f'"{_comment(text)}' for text in comments]
    lines += [str(program.size), str(len(orders)), " ".join(map(str, orders))]
    lines.append(" ".join(repr(c) for c in (program.cost / unit).tolist()))
    parts = ["\n".join(lines), "\n"]
    columns = _entries(program, matrix, constants)
    order = np.lexsort(columns[3::-1])
    for start in range(0, len(order), CHUNK):
        rows = zip(*(column[order[start : start + CHUNK]].tolist() for column in columns), strict=True)
        parts.append("".join(f"{m} {b} {i} {j} {v!r}\n" for m, b, i, j, v in rows))
    return "".join(parts).encode()


def _entries(program: ConeProgram, matrix: Any, constants: Array) -> tuple[Array, ...]:
    """Matrix number (0: F_0), block number, row, column and value of every entry; counted from 1, row <= column."""
    parts: list[tuple[Array, ...]] = []
    for number, block in enumerate(program.psd, start=1):
        value = np.where(block.var < 0, -block.value, block.value)
        parts.append((block.var + 1, np.full(len(value), number), block.col + 1, block.row + 1, value))
    if len(constants):
        number = len(program.psd) + 1
        coo = sp.coo_array(matrix)
        rows, columns = coo.coords
        parts.append((columns + 1, np.full(coo.nnz, number), rows + 1, rows + 1, coo.data))
        at = np.flatnonzero(constants)
        parts.append((np.zeros(len(at), dtype=np.int64), np.full(len(at), number), at + 1, at + 1, -constants[at]))
    joined = tuple(np.concatenate([part[k] for part in parts]) for k in range(5))
    kept = joined[4] != 0.0
    return tuple(column[kept] for column in joined)


def _comment(text: str) -> str:
    """One line of printable ASCII: readers of the format differ in what else they accept."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:200]
