"""The slopes of nonlinear operations, everywhere or between the ends of proved ranges."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from lipmodel.errors import NotLipschitz
from lipmodel.network.ops import Grouped

Array = np.ndarray[Any, Any]

SMALL = 2.0**-200
"""Local slopes that are smaller, but neither zero nor known exactly, are rounded away from the inside."""


def linear_everywhere(op: Any) -> Array:
    """Which entries of a nonlinear operation are linear functions on the whole line."""
    if isinstance(op, Grouped):
        alpha, beta = slopes(op)
        return np.asarray(alpha == beta)
    linear = np.zeros(sum(len(part.index) for part in op.parts), dtype=bool)
    for part in op.parts:
        with suppress(NotLipschitz):
            alpha, beta = part.activation.slopes()
            linear[part.index] = alpha == beta
    return linear


def slopes(op: Any, within: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
    """The slope intervals of a nonlinear operation, one per entry, its arguments in [lo, hi] = within if given.

    An entry whose argument cannot move has the slope 0, and so has a group none of whose arguments can. Raises
    NotLipschitz.
    """
    if isinstance(op, Grouped):
        ends = op.function.slopes(op.groups.shape[1])
        moving = np.ones(len(op.groups)) if within is None else np.any((within[0] < within[1])[op.groups], axis=1)
        live = moving[op.labels()]
        return live * ends[0], live * ends[1]
    size = sum(len(part.index) for part in op.parts)
    alpha, beta = np.zeros(size), np.zeros(size)
    for part in op.parts:
        if within is None:
            alpha[part.index], beta[part.index] = part.activation.slopes()
            continue
        moving = part.index[within[0][part.index] < within[1][part.index]]
        if len(moving):
            alpha[moving], beta[moving] = part.activation.slopes(within[0][moving], within[1][moving])
    return (alpha, beta) if within is None else outward(alpha, beta)


def outward(alpha: Array, beta: Array) -> tuple[Array, Array]:
    """Slopes too small to compute with (in the tails of smooth activations) moved outward to zero, or to SMALL."""
    alpha, beta = alpha.copy(), beta.copy()
    thin = (alpha != beta) & (np.minimum(np.abs(alpha), np.abs(beta)) < SMALL)
    low, high = thin & (np.abs(alpha) < SMALL), thin & (np.abs(beta) < SMALL)
    alpha[low] = np.where(alpha[low] < 0.0, -SMALL, 0.0)
    beta[high] = np.where(beta[high] > 0.0, SMALL, 0.0)
    return alpha, beta
