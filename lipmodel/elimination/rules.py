"""Rules for the diagonal S of one layer with Gram matrix G: 2 S - G is positive definite in each of them."""

from __future__ import annotations

import numpy as np

from lipmodel.elimination.blocks import Array, top_eigenvalue

RULES: tuple[tuple[str, float], ...] = (
    ("row-sum", 1.4),
    ("row-sum", 1.0),
    ("row-sum", 1.7),
    ("spectral", 1.0),
    ("spectral", 1.4),
    ("gershgorin", 1.0),
    ("gershgorin", 1.9),
)
"""Rules and their constants as the repair tries them, the best ones first."""


def choose_s(gram: Array, rule: str, c: float) -> Array:
    """The diagonal of S, shape (n,), for a Gram matrix G of shape (n, n).

    "spectral": lmax(G) I / c, 0 < c < 2 (c = 1: Xu & Sivaranjani 2024, arXiv 2404.04375; else Syed & Hu 2025, arXiv
    2503.14297). "gershgorin": the row sums of |G| over c, 0 < c < 2, and "shift": diag(G) / 2 + c |(G - diag G) / 2|_2
    for c > 1 (both Syed & Hu). "row-sum": lmax(Q^-1/2 G Q^-1/2) Q / c with Q the row sums of |G|, 0 < c < 2. Rows of
    zeros, which no bound feels, get a small positive entry. Raises ValueError for another rule or constant.
    """
    if rule not in ("spectral", "gershgorin", "row-sum", "shift"):
        raise ValueError(f"unknown rule {rule!r}: the rules are spectral, gershgorin, shift and row-sum")
    if not (1.0 < c < np.inf if rule == "shift" else 0.0 < c < 2.0):
        raise ValueError(f"{rule}({c:g}): the constant must be {'above 1' if rule == 'shift' else 'between 0 and 2'}")
    row_sums = np.sum(np.abs(gram), axis=1)
    floor = 1e-9 * float(row_sums.max(initial=0.0)) or 1e-12  # (a layer that nothing reaches)
    q = np.maximum(row_sums, floor)
    if rule == "gershgorin":
        return np.asarray(q / c)
    if rule == "spectral":
        return np.full(len(q), max(top_eigenvalue(gram), floor) / c)
    if rule == "shift":
        own = np.diag(gram)
        rest = gram - np.diag(own)
        spread = max(top_eigenvalue(rest), top_eigenvalue(-rest), floor)
        return np.asarray(0.5 * (own + c * spread))
    root = 1.0 / np.sqrt(q)
    return np.asarray(max(top_eigenvalue(root[:, None] * gram * root), 1e-9) * q / c)
