"""Piecewise linear networks of one input: every linear piece is visited, so nothing is left to search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lipmodel.lower.balls import Array
from lipmodel.lower.linearise import FloatProgram

CLOSE = 1e-11
"""Breaks this close to each other, relative to their size, are taken for one."""


def sweep(
    program: FloatProgram, scale: float, box: tuple[Array, Array] | None, stop: Callable[[], bool]
) -> tuple[Array, bool]:
    """A point in every piece, shape (1, k), and whether all pieces were reached.

    Every point knows where its piece ends; between two neighbouring pieces that do not touch another point is put.
    """
    far = scale * 10.0 ** np.arange(-2.0, 7.0)
    x = np.concatenate([-far[::-1], [1e-9 * scale], far])
    if box is not None:
        x = np.linspace(float(box[0][0]), float(box[1][0]), 19)
    known = np.zeros((3, 0))
    while len(x):
        left, right = _ends(program, x)
        known = np.concatenate([known, np.stack([left, x, right])], axis=1)
        known = known[:, np.argsort(known[1], kind="stable")]
        reached = np.maximum.accumulate(known[2])[:-1]
        begin = known[0, 1:]
        open_ = begin - reached > CLOSE * (scale + np.minimum(np.abs(begin), np.abs(reached)))
        x = 0.5 * (reached + begin)[open_]
        if box is None:
            ends = [2.0 * min(known[0, 0], -scale)] if np.isfinite(known[0, 0]) else []
            ends += [2.0 * max(known[2, -1], scale)] if np.isfinite(known[2, -1]) else []
            x = np.concatenate([x, [t for t in ends if abs(t) < 1e15 * scale]])
        if stop():
            return known[1:2], not len(x)
    return known[1:2], True


def _ends(program: FloatProgram, x: Array) -> tuple[Array, Array]:
    stack = program.forward(x[None, :])
    tangent = program.push(program.slopes(stack), np.ones((1, len(x))))[1]
    left, right = np.full(len(x), -np.inf), np.full(len(x), np.inf)
    for k in range(program.breaks.shape[1]):
        with np.errstate(all="ignore"):
            time = (program.breaks[:, [k]] - stack) / tangent
        time[~np.isfinite(time) | (program.jumps[:, k] == 0.0)[:, None]] = np.inf
        right = np.minimum(right, np.min(np.where(time >= 0, time, np.inf), axis=0, initial=np.inf))
        time[time == np.inf] = -np.inf
        left = np.maximum(left, np.max(np.where(time < 0, time, -np.inf), axis=0, initial=-np.inf))
    return x + left, x + right
