"""SeDuMi's format, a MATLAB file with A, b, c and K (Sturm 1999, Optimization Methods and Software 11, 625-653).

    primal  minimise  c'x   subject to   A x = b, x in K
    dual    maximise  b'y   subject to   c - A'y in the dual cone of K

The dual is the geometric form, y and all: b = -cost, c the constants, A = -(coefficients); the primal is its standard
form, whose x holds the dual matrices. One file states both. K.f are equalities of the dual (free in the primal), K.l
inequalities, K.q and K.r second-order cones (K.r: 2 x_1 x_2 >= |x_3|^2 + ...), K.s matrices, each as the full vector of
its columns with both triangles.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from lipmodel.bridges.program import ConeProgram, PsdBlock

Array = np.ndarray[Any, Any]


def sedumi_data(program: ConeProgram, unit: float) -> dict[str, Any]:
    """A (n, N) CSC, b (n, 1), c (N, 1) sparse and K, the cost divided by `unit`."""
    n = program.size
    plain = [s for s in program.soc if not s.rotated]
    rotated = [s for s in program.soc if s.rotated]
    parts = [(program.eq, program.eq_rhs), (program.ineq, program.ineq_rhs)]
    parts += [(s.matrix, s.rhs) for s in (*plain, *rotated)]
    parts += [_full(block, n) for block in program.psd]
    sizes = {
        "f": [program.eq.shape[0]],
        "l": [program.ineq.shape[0]],
        "q": [s.matrix.shape[0] for s in plain],
        "r": [s.matrix.shape[0] for s in rotated],
        "s": [block.order for block in program.psd],
    }
    return {
        "A": sp.csc_matrix(-sp.vstack([matrix for matrix, _ in parts]).T),
        "b": -(program.cost / unit)[:, None],
        "c": sp.csc_matrix(np.concatenate([constants for _, constants in parts])[:, None]),
        "K": {key: np.array([size], dtype=np.float64) for key, size in sizes.items() if any(size)},
    }


def _full(block: PsdBlock, n: int) -> tuple[Any, Array]:
    """All entries of a matrix inequality, column by column: coefficients (order^2, n) and constants."""
    off = block.row != block.col
    row, col = np.concatenate([block.row, block.col[off]]), np.concatenate([block.col, block.row[off]])
    var, value = np.concatenate([block.var, block.var[off]]), np.concatenate([block.value, block.value[off]])
    at = col * block.order + row
    constant = var < 0
    b = np.zeros(block.order**2)
    b[at[constant]] = value[constant]
    rest = ~constant
    return sp.csr_array((value[rest], (at[rest], var[rest])), shape=(block.order**2, n)), b


def write(program: ConeProgram, unit: float, *, form: str, comments: Sequence[str]) -> bytes:
    """The file of a program, which states both forms: a MATLAB 5 file that is the same in every run."""
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, sedumi_data(program, unit), do_compression=True, oned_as="column")
    head = "MATLAB 5.0 MAT-file, " + "; ".join(comments)
    return head.encode("ascii", "replace")[:116].ljust(116) + stream.getvalue()[116:]
