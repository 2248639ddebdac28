"""Moves of the search for witness pairs: where to go from a point so that the slopes change for the better.

In a cell of a piecewise linear network the Jacobian is constant, so there is no gradient to follow; but for fixed u and v
the number u'Jv is affine in the slope of each neuron by itself, and what a change of that slope would gain is read off
the tangents and cotangents at the neuron. A move crosses the hyperplanes of chosen neurons and, as far as it can, leaves
all others on their sides: the shortest step in the norm in which a neuron counts by the inverse of its distance
(the metric of Dikin 1967).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipmodel.lower.attain import Attained, attain, attaining, vector_norm
from lipmodel.lower.balls import Array
from lipmodel.lower.linearise import FloatProgram
from lipmodel.spec import Norm, dual

DENSE = 64
"""Jacobians with both sides longer than this are not formed."""
METRIC = 320
"""At most this many neurons shape the metric of a move."""


@dataclass(slots=True, kw_only=True, eq=False)
class Point:
    """A visited input: value = ||J(x)||_{p->q} as found, attained by v, with the dual vector u; `tried` flips so far."""

    x: Array
    value: float
    v: Array
    u: Array
    tried: int = 0
    visits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flips:
    """Changes of one neuron's slope, the most promising first: which neuron, how far its pre-activation has to move to
    reach the break, and the first-order gain. `gradient` is that of the smooth part (zero where there is none)."""

    neuron: Array
    need: Array
    gain: Array
    distance: Array
    slopes: Array
    curving: Array


def local_norms(program: FloatProgram, x: Array, p: Norm, q: Norm, *, thorough: bool = False) -> tuple[Array, Attained]:
    """Pre-activations and ||J||_{p->q} at every column of x, shape (inputs, k)."""
    stack = program.forward(x)
    slopes = program.slopes(stack)
    if min(program.inputs, program.outputs) <= DENSE:
        return stack, attain(program.jacobians(slopes), p, q, thorough=thorough)
    k = x.shape[1]
    rng = np.random.default_rng(11)
    v = attaining(rng.standard_normal((k, program.inputs)), p)
    value = np.zeros(k)
    u = np.zeros((k, program.outputs))
    for _ in range(80 if thorough else 8):
        image = program.push(slopes, v.T)[0].T
        now = vector_norm(image, q)
        u = attaining(image, dual(q))
        if np.all(now <= value * (1.0 + 1e-12)):
            break
        value, kept = now, v
        v = attaining(program.pull(slopes, u.T)[0].T, p)
    image = program.push(slopes, kept.T)[0].T
    return stack, Attained(value=vector_norm(image, q), v=kept, u=attaining(image, dual(q)))


def flips(program: FloatProgram, point: Point) -> Flips:
    """All single changes of slope at a point."""
    stack = program.forward(point.x[:, None])
    slopes = program.slopes(stack)
    tangent = program.push(slopes, point.v[:, None])[1]
    cotangent = program.pull(slopes, point.u[:, None])[1]
    reach = program.breaks - stack
    finite = np.isfinite(program.breaks) & (program.jumps != 0.0)
    change = np.where(reach >= 0, program.jumps, -program.jumps)
    weight = (tangent * cotangent)[:, 0]
    gain = change * weight[:, None]
    neuron, which = np.nonzero(finite)
    gains = gain[neuron, which]
    order = np.argsort(-gains, kind="stable")
    distance = np.min(np.where(finite, np.abs(reach), np.inf), axis=1, initial=np.inf)
    curving = weight * program.curvatures(stack)[:, 0] if program.has_smooth else np.zeros(0)
    return Flips(
        neuron=neuron[order],
        need=reach[neuron, which][order],
        gain=gains[order],
        distance=distance,
        slopes=slopes,
        curving=curving,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metric:
    """Shortest steps that move chosen pre-activations by given amounts; `place` gives the row of a neuron (-1: none)."""

    steps: Array
    gram: Array
    place: Array

    def step(self, neuron: Array, amount: Array) -> Array:
        """The step that moves the neurons by the amounts, shape (inputs,)."""
        rows = self.place[neuron]
        gram = self.gram[np.ix_(rows, rows)]
        ridge = 1e-12 * np.trace(gram) / len(rows)
        return self.steps[:, rows] @ np.linalg.solve(gram + ridge * np.eye(len(rows)), amount)

    def singles(self, neuron: Array, amount: Array) -> Array:
        """One step for every neuron by itself, shape (inputs, len(neuron))."""
        rows = self.place[neuron]
        size = np.maximum(np.diag(self.gram)[rows], 1e-300)
        return self.steps[:, rows] * (amount / size)


def metric(program: FloatProgram, known: Flips, wanted: Array) -> Metric:
    """The metric at a point, for moving the neurons in `wanted`."""
    near = np.argsort(known.distance, kind="stable")[: max(0, METRIC - len(wanted))]
    chosen = np.unique(np.concatenate([wanted, near[np.isfinite(known.distance[near])]]))
    if program.inputs <= len(chosen):
        rows = program.push(known.slopes, np.eye(program.inputs))[1][chosen]
    else:
        inject = np.zeros((program.neurons, len(chosen)))
        inject[chosen, np.arange(len(chosen))] = 1.0
        rows = program.pull(known.slopes, None, inject)[0].T
    distance = known.distance[chosen]
    typical = np.median(distance) if len(distance) else 1.0
    distance = np.clip(distance, 1e-6 * max(typical, 1e-12), 1e6 * max(typical, 1e-12))
    spread = distance**2
    loose = 1e-6 * np.mean(np.sum(rows * rows, axis=1) / spread) + 1e-300
    if program.inputs <= len(chosen):
        core = rows.T @ (rows / spread[:, None]) + loose * np.eye(program.inputs)
        steps = np.linalg.solve(core, rows.T)
    else:
        core = rows @ rows.T + np.diag(loose * spread)
        core += 1e-13 * (np.trace(core) / len(chosen) + 1e-300) * np.eye(len(chosen))
        steps = rows.T @ np.linalg.solve(core, np.diag(spread))
    place = np.full(program.neurons, -1)
    place[chosen] = np.arange(len(chosen))
    return Metric(steps=steps, gram=rows @ steps, place=place)


def climb(program: FloatProgram, known: Flips) -> Array:
    """The gradient of u'J(x)v through the smooth neurons, shape (inputs,)."""
    return program.pull(known.slopes, None, known.curving[:, None])[0][:, 0]


def chord(program: FloatProgram, x: Array, v: Array) -> tuple[float, float, float]:
    """How far x + t v stays in the cell of x, as (t_low, t_high), and the largest slope of a pre-activation along v."""
    stack = program.forward(x[:, None])
    tangent = program.push(program.slopes(stack), v[:, None])[1]
    live = np.isfinite(program.breaks) & (program.jumps != 0.0) & (np.abs(tangent) > 1e-13 * np.max(np.abs(tangent), initial=1e-300))
    steepest = float(np.max(np.abs(tangent), initial=0.0))
    times = ((program.breaks - stack) / np.where(tangent == 0, 1.0, tangent))[live]
    return (
        float(np.max(times[times < 0], initial=-np.inf)),
        float(np.min(times[times >= 0], initial=np.inf)),
        steepest,
    )
