"""Ascent of ||J(x)|| with softened slopes: the way to good regions, however many inputs there are.

The Jacobian of a piecewise linear network is piecewise constant. With every step of a slope replaced by a logistic
function of the pre-activation it varies smoothly, and for the u, v that attain its norm the gradient costs four passes
through the graph. The width of the logistic functions shrinks to almost nothing on the way (graduated optimisation:
Blake and Zisserman 1987), so the end points belong to the network itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lipmodel.lower.attain import attaining, vector_norm
from lipmodel.lower.balls import Array
from lipmodel.lower.linearise import FloatProgram
from lipmodel.spec import Norm, dual

WIDE, NARROW = 3.0, 0.01
"""Width of the logistic functions at the start and at the end, relative to the size of the pre-activation."""
LONG, SHORT = 0.1, 0.001
"""Length of a step at the start and at the end, relative to the size of the point."""
MOMENTUM = 0.7


def ascend(
    program: FloatProgram,
    x: Array,
    p: Norm,
    q: Norm,
    *,
    steps: int,
    size: Array,
    rng: np.random.Generator,
    warmth: float = 1.0,
    box: tuple[Array, Array] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Array:
    """For every column of x (inputs, k) the point with the largest norm met on the way, same shape.

    size: (k,), the length scale of the steps; warmth: fraction of the schedule's starting width and step that is used;
    stop: asked now and then whether the time is over.
    """
    k = x.shape[1]
    v = attaining(rng.standard_normal((k, program.inputs)), p).T
    best, found = np.zeros(k), x.copy()
    heading = np.zeros(x.shape)
    spread = np.ones((program.neurons, k))
    for step in range(steps):
        if step % 8 == 7 and stop():
            break
        cooled = step / max(1, steps - 1)
        stack = program.forward(x)
        if step == 0:
            spread = _spread(program, stack)
        width = spread * warmth * WIDE * (NARROW / (warmth * WIDE)) ** cooled
        hard = program.slopes(stack)
        soft, bend = _softened(program, stack, hard, width)
        image, tangent = program.push(soft, v)
        back, cotangent = program.pull(soft, attaining(image.T, dual(q)).T)
        value = vector_norm(program.push(hard, v)[0].T, q)
        better = value > best
        best = np.where(better, value, best)
        found[:, better] = x[:, better]
        v = attaining(back.T, p).T
        bend = tangent * cotangent * bend
        if program.has_smooth:
            bend += program.bend(stack, tangent, cotangent)
        slope = program.pull(hard, None, bend)[0]
        heading = MOMENTUM * heading + (1.0 - MOMENTUM) * slope / _lengths(slope)
        length = size * warmth * LONG * (SHORT / (warmth * LONG)) ** cooled
        x = x + heading * (length / _lengths(heading))
        if box is not None:
            x = np.clip(x, box[0][:, None], box[1][:, None])
    return found


def _lengths(x: Array) -> Array:
    return np.asarray(np.maximum(np.linalg.norm(x, axis=0), 1e-300))


def _spread(program: FloatProgram, stack: Array) -> Array:
    """The size of the pre-activations at every point, layer by layer."""
    out = np.ones(stack.shape)
    for node in program.nodes:
        if node.neurons is not None:
            out[node.at] = np.sqrt(np.mean(stack[node.at] ** 2, axis=0)) + 1e-12
    return out


def _softened(program: FloatProgram, stack: Array, hard: Array, width: Array) -> tuple[Array, Array]:
    """Slopes with logistic steps, and the derivatives of these steps by the pre-activation."""
    soft = hard.copy()
    bend = np.zeros(stack.shape)
    for k in range(program.breaks.shape[1]):
        gap = stack - program.breaks[:, k, None]
        jump = program.jumps[:, k, None]
        step = 1.0 / (1.0 + np.exp(-np.clip(gap / width, -40.0, 40.0)))
        soft += jump * (step - (gap > 0))
        bend += jump * step * (1.0 - step) / width
    return soft, bend
