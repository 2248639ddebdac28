"""Is a pattern of slopes reachable? A linear program finds a point deep in its cell, or there is none.

The last resort of the search in small piecewise linear networks: cells too thin for sampling are found all the same.
Only points come out of this; whether they are any good is measured exactly elsewhere.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

from lipmodel.lower.attain import attain
from lipmodel.lower.balls import Array
from lipmodel.lower.linearise import FloatProgram
from lipmodel.spec import Norm

LARGEST = 20_000
"""Neurons times inputs, at most, of a network in which patterns are realised."""


def improving_flips(program: FloatProgram, x: Array, p: Norm, q: Norm) -> list[tuple[float, Array, Array]]:
    """The patterns one slope away from that at x whose Jacobian is larger: (value, slopes, intercepts), best first."""
    stack = program.forward(x[:, None])[:, 0]
    slopes = program.slopes(stack[:, None])[:, 0]
    intercepts = program.intercepts(stack[:, None])[:, 0]
    reach = program.breaks - stack[:, None]
    neuron, which = np.nonzero(np.isfinite(program.breaks) & (program.jumps != 0.0))
    nearest = np.abs(reach[neuron, which]) <= np.min(np.abs(reach), axis=1, initial=np.inf)[neuron]
    neuron, which = neuron[nearest], which[nearest]
    change = np.where(reach[neuron, which] >= 0, 1.0, -1.0) * program.jumps[neuron, which]
    columns = np.arange(len(neuron) + 1)
    tried = np.repeat(slopes[:, None], len(columns), axis=1)
    tried[neuron, columns[1:]] += change
    value = attain(program.jacobians(tried), p, q).value
    out = []
    for k in np.argsort(-value[1:], kind="stable").tolist():
        if value[k + 1] <= value[0] * (1.0 + 1e-9):
            break
        offset = intercepts.copy()
        offset[neuron[k]] -= change[k] * program.breaks[neuron[k], which[k]]
        out.append((float(value[k + 1]), tried[:, k + 1], offset))
    return out


def realise(program: FloatProgram, slopes: Array, intercepts: Array, box: tuple[Array, Array] | None) -> Array | None:
    """A point well inside the cell where every neuron is slope * v + intercept, shape (inputs,); None: not found."""
    n = program.inputs
    start = np.zeros(n) if box is None else 0.5 * (box[0] + box[1])
    points = start[:, None] + np.concatenate([np.zeros((n, 1)), np.eye(n)], axis=1)
    stack = program.fixed(slopes[:, None], intercepts[:, None], points)
    gradient, value = stack[:, 1:] - stack[:, :1], stack[:, 0]
    low, high = program.cell_limits(slopes)
    size = np.maximum(np.linalg.norm(gradient, axis=1), 1e-12)
    rows = np.concatenate([np.column_stack([-gradient, size]), np.column_stack([gradient, size])])
    right = np.concatenate([value - low, high - value])
    kept = np.isfinite(right)
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * n
    if box is not None:
        bounds = [(float(a), float(b)) for a, b in zip(box[0] - start, box[1] - start, strict=True)]
    cost = np.zeros(n + 1)
    cost[n] = -1.0
    answer = linprog(cost, A_ub=rows[kept], b_ub=right[kept], bounds=[*bounds, (0.0, 1.0)], method="highs")
    if answer.x is None or not answer.x[n] > 0 or not np.all(np.isfinite(answer.x)):
        return None
    return np.asarray(start + answer.x[:n])
