"""The two-loop recursion of L-BFGS (Nocedal 1980, Math. Comp. 35), for vectors and for matrices of rows alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.linalg.blas import daxpy

from lipmodel.backends.native.chain import Array

Pair = tuple[Array, Array, float]
"""A step, the change of the gradient along it (of the function that falls), and the product of both."""


def quasi_newton(pairs: Sequence[Pair], slope: Array, initial: Callable[[Array], Array]) -> Array:
    """The direction for the downward (or, where the pairs are of the negative function, upward) slope.

    initial: the inverse of a first metric, scaled here by the last pair.
    """
    rest = np.array(slope, copy=True, order="C")
    weights = []
    for step, change, curvature in reversed(pairs):
        weight = float(np.vdot(step, rest)) / curvature
        _add(rest, -weight, change)
        weights.append(weight)
    rest = initial(rest)
    if pairs:
        _, change, curvature = pairs[-1]
        rest *= curvature / float(np.vdot(change, initial(change)))
    for (step, change, curvature), weight in zip(pairs, reversed(weights), strict=True):
        _add(rest, weight - float(np.vdot(change, rest)) / curvature, step)
    return rest


def _add(rows: Array, share: float, others: Array) -> None:
    """rows += share * others, both of them contiguous, without an array in between."""
    daxpy(others.ravel(), rows.ravel(), a=share)
