"""Is a pattern of slopes reachable? A linear program finds a point deep in its cell, or there is none.

The last resort of the search in small piecewise linear networks: cells too thin for sampling are found all the same.
Only points come out of this; whether they are any good is measured exactly elsewhere.
"""

from __future__ import annotations

import numpy as np

from lipmodel.lower.attain import attain
from lipmodel.lower.balls import Array
from lipmodel.lower.linearise import FloatProgram
from lipmodel.spec import Norm

LARGEST = 20_000
"""Neurons times inputs, at most, of a network in which patterns are realised."""
PAIRED = 40
"""Changes of slope that are also tried two at a time."""


def improving_flips(program: FloatProgram, x: Array, p: Norm, q: Norm, *, pairs: bool = False) -> Array:
    """The patterns one slope (or two) away from that at x whose Jacobian is larger, best first.

    A pattern is given by pre-activations that have it; shape (neurons, k).
    """
    stack = program.forward(x[:, None])
    reach = np.where(program.jumps != 0.0, program.breaks - stack, np.inf)
    above = np.where(reach >= 0, reach, np.inf)
    below = np.where(reach < 0, reach, -np.inf)
    neurons, moves = [], []
    for step, sign in ((np.min(above, axis=1, initial=np.inf), 1.0), (np.max(below, axis=1, initial=-np.inf), -1.0)):
        some = np.flatnonzero(np.isfinite(step))
        past = reach[some] - step[some, None]
        room = np.min(np.where(sign * past > 0, np.abs(past), 2.0), axis=1, initial=2.0)
        neurons.append(some)
        moves.append(step[some] + sign * 0.5 * room)
    neuron, move = np.concatenate(neurons), np.concatenate(moves)
    tried = np.repeat(stack, len(neuron) + 1, axis=1)
    tried[neuron, np.arange(1, len(neuron) + 1)] += move
    value = _values(program, tried, p, q)
    least = value[0] * (1.0 + 1e-9)
    if pairs:
        top = np.argsort(-value[1:], kind="stable")[:PAIRED]
        first, second = np.triu_indices(len(top), 1)
        first, second = top[first], top[second]
        distinct = neuron[first] != neuron[second]
        first, second = first[distinct], second[distinct]
        tried = np.repeat(stack, len(first), axis=1)
        tried[neuron[first], np.arange(len(first))] += move[first]
        tried[neuron[second], np.arange(len(first))] += move[second]
        value = _values(program, tried, p, q)
    order = np.argsort(-value, kind="stable")
    return np.asarray(tried[:, order[value[order] > least]])


def _values(program: FloatProgram, tried: Array, p: Norm, q: Norm) -> Array:
    slopes = program.slopes(tried)
    parts = [slopes[:, k : k + 256] for k in range(0, slopes.shape[1], 256)]
    return np.concatenate([np.zeros(0), *(attain(program.jacobians(part), p, q).value for part in parts)])


def realise(program: FloatProgram, pattern: Array, box: tuple[Array, Array] | None) -> Array | None:
    """A point well inside the cell of a pattern, shape (inputs,); None where there is none, or none was found."""
    from scipy.optimize import linprog

    n = program.inputs
    start = np.zeros(n) if box is None else 0.5 * (box[0] + box[1])
    points = start[:, None] + np.concatenate([np.zeros((n, 1)), np.eye(n)], axis=1)
    stack = program.linearised(pattern[:, None], points)
    gradient, value = stack[:, 1:] - stack[:, :1], stack[:, 0]
    reach = np.where(program.jumps != 0.0, program.breaks, np.inf)
    low = np.max(np.where(reach < pattern[:, None], reach, -np.inf), axis=1, initial=-np.inf)
    high = np.min(np.where(reach >= pattern[:, None], reach, np.inf), axis=1, initial=np.inf)
    size = np.maximum(np.linalg.norm(gradient, axis=1), 1e-12)
    rows = np.concatenate([np.column_stack([-gradient, size]), np.column_stack([gradient, size])])
    right = np.concatenate([value - low, high - value])
    kept = np.isfinite(right)
    if not np.all(np.isfinite(rows[kept])):
        return None
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * n
    if box is not None:
        bounds = [(float(a), float(b)) for a, b in zip(box[0] - start, box[1] - start, strict=True)]
    cost = np.zeros(n + 1)
    cost[n] = -1.0
    answer = linprog(cost, A_ub=rows[kept], b_ub=right[kept], bounds=[*bounds, (0.0, 1.0)], method="highs")
    if answer.x is None or not answer.x[n] > 0 or not np.all(np.isfinite(answer.x)):
        return None
    return np.asarray(start + answer.x[:n])
