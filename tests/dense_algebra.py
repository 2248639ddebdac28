"""Definiteness in floating point and in rational arithmetic, and the optimum of a semidefinite program by Clarabel."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import scipy.sparse as sp


def is_definite(matrix: np.ndarray) -> bool:
    """Positive definite after scaling to a unit diagonal, in floating point."""
    diagonal = np.diag(matrix)
    if np.any(diagonal <= 0):
        return False
    return bool(np.linalg.eigvalsh(matrix / np.sqrt(np.outer(diagonal, diagonal)))[0] > 0)


def has_positive_pivots(matrix: list[list[Fraction]]) -> bool:
    """Positive definite in rational arithmetic; eliminates in place."""
    order = len(matrix)
    for k in range(order):
        if matrix[k][k] <= 0:
            return False
        for i in range(k + 1, order):
            factor = matrix[i][k] / matrix[k][k]
            if factor:
                for j in range(k + 1, order):
                    matrix[i][j] -= factor * matrix[k][j]
    return True


def semidefinite_optimum(
    terms: Sequence[np.ndarray], constant: np.ndarray, cost: np.ndarray, y: np.ndarray, positive: Sequence[int] = ()
) -> float | None:
    """min cost'y with sum_j y_j terms_j + constant >= 0 and some y_j >= 0, scaled by a feasible point y.

    None where the interior point code does not solve it.
    """
    import clarabel

    matrix = sum((a * term for a, term in zip(y, terms, strict=True)), constant)
    scale = 1 / np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))
    level = float(cost @ y)
    upper = np.triu_indices(len(matrix))
    order = np.lexsort(upper)
    rows, columns = upper[0][order], upper[1][order]
    weight = np.where(rows == columns, 1.0, np.sqrt(2.0))
    coefficients = [a * (term * scale)[rows, columns] * weight for a, term in zip(y, terms, strict=True)]
    signs = np.eye(y.size)[list(positive)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_rel = settings.tol_feas = 1e-9
    found = clarabel.DefaultSolver(
        sp.csc_matrix((y.size, y.size)),
        cost * y / level,
        sp.csc_matrix(np.vstack([-np.array(coefficients).T, -signs])),
        np.concatenate([(constant * scale)[rows, columns] * weight, np.zeros(len(signs))]),
        [clarabel.PSDTriangleConeT(len(matrix)), clarabel.NonnegativeConeT(len(signs))],
        settings,
    ).solve()
    return found.obj_val * level if str(found.status) == "Solved" else None
