"""Moves of the search for witness pairs: where to go from a point so that the slopes change for the better.

In a cell of a piecewise linear network the Jacobian is constant, so there is no gradient to follow; but for fixed u
and v the number u'Jv is affine in the slope of each neuron by itself, and what a change of that slope would gain is
read off the tangents and cotangents at the neuron. A move crosses the hyperplanes of chosen neurons and, as far as it
can, leaves all others on their sides: the shortest step in the norm in which a neuron counts by the inverse of its
distance (the metric of Dikin 1967).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipmodel.lower.attain import Attained, attain, attaining, vector_norm
from lipmodel.lower.balls import Array
from lipmodel.lower.linearise import FloatProgram
from lipmodel.spec import Norm, dual

Box = tuple[Array, Array]
"""Lower and upper ends, shape (inputs,) each."""

DENSE = 64
"""Jacobians with both sides longer than this are not formed."""
METRIC = 320
"""At most this many neurons shape the metric of a move."""
CENTRING = 3
"""Newton steps towards the analytic centre of a cell."""


@dataclass(slots=True, kw_only=True, eq=False)
class Point:
    """A visited input: value = ||J(x)||_{p->q} as found, attained by v, with the dual vector u.

    tried: how many single flips, visits: how many expansions have started here.
    """

    x: Array
    value: float
    v: Array
    u: Array
    tried: int = 0
    visits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flips:
    """Changes of one neuron's slope, the most promising first, and what is known at the point they start from.

    neuron, need, gain: which neuron, how far its pre-activation is from the break, the first-order gain; low, high:
    (neurons,), distances of all pre-activations from the breaks below and above; slopes: (neurons, 1); curving: the
    weights of the smooth neurons in the gradient of u'J(x)v.
    """

    neuron: Array
    need: Array
    gain: Array
    low: Array
    high: Array
    slopes: Array
    curving: Array


def local_norms(program: FloatProgram, x: Array, p: Norm, q: Norm, *, thorough: bool = False) -> tuple[Array, Attained]:
    """Pre-activations and ||J||_{p->q} at every column of x, shape (inputs, k)."""
    stack = program.forward(x)
    slopes = program.slopes(stack)
    if min(program.inputs, program.outputs) <= DENSE:
        return stack, attain(program.jacobians(slopes), p, q, thorough=thorough)
    if not thorough:
        return stack, _alternated(program, slopes, p, q, rounds=8, starts=1)
    found = [_alone(program, slopes[:, [k]], p, q) for k in range(x.shape[1])]
    return stack, Attained(
        value=np.array([f.value[0] for f in found]),
        v=np.array([f.v[0] for f in found]),
        u=np.array([f.u[0] for f in found]),
    )


def _alternated(program: FloatProgram, slopes: Array, p: Norm, q: Norm, *, rounds: int, starts: int) -> Attained:
    """Alternating ascent through the graph, for every column of slopes, from the best of `starts` random vectors."""
    k = slopes.shape[1]
    wide = np.repeat(slopes, starts, axis=1)
    v = attaining(np.random.default_rng(11).standard_normal((k * starts, program.inputs)), p)
    kept, value = v, np.zeros(k * starts)
    for _ in range(rounds):
        image = program.push(wide, v.T)[0].T
        now = vector_norm(image, q)
        if np.all(now <= value * (1.0 + 1e-13)):
            break
        kept = np.where((now > value)[:, None], v, kept)
        value = np.maximum(value, now)
        v = attaining(program.pull(wide, attaining(image, dual(q)).T)[0].T, p)
    best = np.argmax(value.reshape(k, starts), axis=1) + starts * np.arange(k)
    return _measured(program, slopes, kept[best], q)


def _measured(program: FloatProgram, slopes: Array, v: Array, q: Norm) -> Attained:
    image = program.push(slopes, v.T)[0].T
    return Attained(value=vector_norm(image, q), v=v, u=attaining(image, dual(q)))


def _alone(program: FloatProgram, slopes: Array, p: Norm, q: Norm) -> Attained:
    """The norm at one point of a network with many inputs and outputs, as well as it can be had."""
    if p == "1" or q == "inf":
        columns = p == "1" and (q != "inf" or program.inputs <= program.outputs)
        size = program.inputs if columns else program.outputs
        best, found = -1.0, np.zeros(0)
        width = max(1, min(256, 20_000_000 // max(program.inputs, program.outputs, program.neurons, 1)))
        for first in range(0, size, width):
            unit = np.eye(size, min(width, size - first), -first)
            images = (program.push if columns else program.pull)(slopes, unit)[0].T
            norms = vector_norm(images, q if columns else dual(p))
            top = int(np.argmax(norms))
            if norms[top] > best:
                best, found = float(norms[top]), (unit[:, top] if columns else attaining(images[top], p))
        return _measured(program, slopes, found[None, :], q)
    if (p, q) == ("2", "2"):
        from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

        v = np.random.default_rng(11).standard_normal(program.inputs)
        operator = LinearOperator(
            shape=(program.inputs, program.inputs),
            matvec=lambda t: program.pull(slopes, program.push(slopes, t.reshape(-1, 1))[0])[0][:, 0],
            dtype=np.float64,
        )
        try:
            _, vectors = eigsh(operator, k=1, v0=v, tol=1e-14, maxiter=300)
            return _measured(program, slopes, attaining(vectors[:, 0], p)[None, :], q)
        except ArpackError as error:
            if isinstance(error, ArpackNoConvergence) and error.eigenvectors.size:
                return _measured(program, slopes, attaining(error.eigenvectors[:, 0], p)[None, :], q)
    return _alternated(program, slopes, p, q, rounds=200, starts=12)


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
    return Flips(
        neuron=neuron[order],
        need=reach[neuron, which][order],
        gain=gains[order],
        low=np.min(np.where(finite & (reach < 0), -reach, np.inf), axis=1, initial=np.inf),
        high=np.min(np.where(finite & (reach >= 0), reach, np.inf), axis=1, initial=np.inf),
        slopes=slopes,
        curving=program.bend(stack, tangent, cotangent)[:, 0] if program.has_smooth else np.zeros(0),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cell:
    """The surroundings of a point in which the network is affine, as far as the rows tell.

    x: (inputs,), moved towards the middle; rows: (r, inputs), gradients of pre-activations; low, high: (r,), how far
    they are from their breaks at x; steps: (inputs, r), the rows through the inverse of the metric; gram = rows steps;
    shift: (r,), by how much moving x has changed the pre-activations; place: the row of a neuron (-1: none).
    """

    x: Array
    rows: Array
    low: Array
    high: Array
    steps: Array
    gram: Array
    shift: Array
    place: Array

    def across(self, neuron: Array, amount: Array) -> Array:
        """The shortest step that moves these pre-activations by these amounts, shape (inputs,)."""
        rows = self.place[neuron]
        gram = self.gram[np.ix_(rows, rows)]
        ridge = 1e-12 * np.trace(gram) / len(rows) + 1e-300
        inner = np.linalg.solve(gram + ridge * np.eye(len(rows)), amount - self.shift[rows])
        return np.asarray(self.steps[:, rows] @ inner)

    def towards(self, neuron: Array, amount: Array) -> Array:
        """One step for every neuron by itself, shape (inputs, len(neuron))."""
        rows = self.place[neuron]
        size = np.maximum(np.diag(self.gram)[rows], 1e-300)
        return np.asarray(self.steps[:, rows] * ((amount - self.shift[rows]) / size))

    def beyond(self, direction: Array, share: Array | float) -> Array:
        """For every direction the point between the first and the second break met, shape (inputs, k)."""
        speed = self.rows @ direction
        times = np.where(speed > 0, self.high[:, None] / speed, np.where(speed < 0, self.low[:, None] / -speed, np.inf))
        if len(times) < 2:
            first = np.min(times, axis=0, initial=np.inf)
            second = np.full(first.shape, np.inf)
        else:
            first, second = np.partition(times, 1, axis=0)[:2]
        first = np.where(np.isfinite(first), first, 1.0)
        second = np.where(np.isfinite(second), second, 3.0 * first)
        return np.asarray(self.x[:, None] + direction * (first + share * (second - first)))


def cell(program: FloatProgram, x: Array, known: Flips, wanted: Array, box: Box | None) -> Cell:
    """The cell around x, with rows for the neurons in `wanted` and for those nearest to their breaks."""
    distance = np.minimum(known.low, known.high)
    near = np.argsort(distance, kind="stable")[: max(0, metric_rows(program) - len(wanted))]
    chosen = np.unique(np.concatenate([wanted, near[np.isfinite(distance[near])]]))
    if program.inputs <= len(chosen):
        rows = program.push(known.slopes, np.eye(program.inputs))[1][chosen]
    else:
        inject = np.zeros((program.neurons, len(chosen)))
        inject[chosen, np.arange(len(chosen))] = 1.0
        rows = program.pull(known.slopes, None, inject)[0].T
    place = np.full(program.neurons, -1)
    place[chosen] = np.arange(len(chosen))
    low, high = known.low[chosen], known.high[chosen]
    complete = len(chosen) == np.count_nonzero(np.isfinite(distance))
    if box is not None and program.inputs <= len(chosen):
        rows = np.concatenate([rows, np.eye(program.inputs)])
        low, high = np.concatenate([low, x - box[0]]), np.concatenate([high, box[1] - x])
    start, shift = x, np.zeros(len(rows))
    for _ in range(CENTRING if complete and not program.has_smooth else 0):
        steps = _metric_steps(rows, low, high)
        move = steps @ (1.0 / low - 1.0 / high)
        speed = rows @ move
        with np.errstate(all="ignore"):
            room = np.min(np.where(speed > 0, high / speed, np.where(speed < 0, low / -speed, np.inf)), initial=np.inf)
        length = min(1.0, 0.7 * float(room))
        if not np.all(np.isfinite(move)) or not length > 0:
            break
        x, low, high, shift = x + length * move, low + length * speed, high - length * speed, shift + length * speed
    if not np.all(np.isfinite(x)) or np.any(low < 0) or np.any(high < 0):
        x, shift, low, high = start, 0.0 * shift, low + shift * -1.0, high + shift
    steps = _metric_steps(rows, low, high)
    return Cell(x=x, rows=rows, low=low, high=high, steps=steps, gram=rows @ steps, shift=shift, place=place)


def metric_rows(program: FloatProgram) -> int:
    """How many neurons shape the metric."""
    return int(np.clip(2_000_000 // program.inputs, 4, METRIC))


def _metric_steps(rows: Array, low: Array, high: Array) -> Array:
    """H^{-1} rows', H the Hessian of the logarithmic barrier of the cell, made definite; shape (inputs, r)."""
    m, n = rows.shape
    distance = np.minimum(low, high)
    typical = max(float(np.median(distance)), 1e-12) if m else 1.0
    floor = 1e-7 * typical
    weight = 1.0 / np.maximum(low, floor) ** 2 + 1.0 / np.maximum(high, floor) ** 2
    weight = np.maximum(weight, 1e-12 / typical**2)
    loose = 1e-6 * np.mean(np.sum(rows * rows, axis=1) * weight) + 1e-300
    if n <= m:
        core = rows.T @ (rows * weight[:, None]) + loose * np.eye(n)
        return np.asarray(np.linalg.solve(core, rows.T))
    core = rows @ rows.T + np.diag(loose / weight)
    core += 1e-13 * (np.trace(core) / m + 1e-300) * np.eye(m)
    return np.asarray(rows.T @ np.linalg.solve(core, np.diag(1.0 / weight)))


def climb(program: FloatProgram, known: Flips) -> Array:
    """The gradient of u'J(x)v through the smooth neurons, shape (inputs,)."""
    return program.pull(known.slopes, None, known.curving[:, None])[0][:, 0]


def centred(program: FloatProgram, x: Array, box: Box | None) -> Array:
    """x moved towards the middle of its cell, shape (inputs,)."""
    at_rest = Point(x=x, value=1.0, v=np.zeros(program.inputs), u=np.zeros(program.outputs))
    known = flips(program, at_rest)
    return cell(program, x, known, known.neuron[:0], box).x


def polish(program: FloatProgram, x: Array, p: Norm, q: Norm, box: Box | None) -> Array:
    """A local maximum of ||J(x)||_{p->q} near x in a smooth network, by a quasi-Newton method; shape (inputs,)."""
    from scipy.optimize import minimize

    def negative(point: Array) -> tuple[float, Array]:
        _, found = local_norms(program, point[:, None], p, q)
        here = Point(x=point, value=float(found.value[0]), v=found.v[0], u=found.u[0])
        return -here.value, -climb(program, flips(program, here))

    bounds = None if box is None else list(zip(box[0].tolist(), box[1].tolist(), strict=True))
    options = {"maxiter": 60, "ftol": 1e-15, "gtol": 1e-12}
    return np.asarray(minimize(negative, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x)


def chord(program: FloatProgram, x: Array, v: Array) -> tuple[float, float, float]:
    """How far x + t v stays in the cell of x, as (t_low, t_high), and the largest slope of a pre-activation along v."""
    stack = program.forward(x[:, None])
    tangent = program.push(program.slopes(stack), v[:, None])[1]
    live = (
        np.isfinite(program.breaks)
        & (program.jumps != 0.0)
        & (np.abs(tangent) > 1e-13 * np.max(np.abs(tangent), initial=1e-300))
    )
    steepest = float(np.max(np.abs(tangent), initial=0.0))
    times = ((program.breaks - stack) / np.where(tangent == 0, 1.0, tangent))[live]
    return (
        float(np.max(times[times < 0], initial=-np.inf)),
        float(np.min(times[times >= 0], initial=np.inf)),
        steepest,
    )
