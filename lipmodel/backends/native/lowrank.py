"""Low-rank primal feasible points of a network, the function that they maximise, and steps up.

With c and r the centre and the radius of the slopes, a multiplier t with weights K_j stands for
sum_j K_j (|w_j - c_j v_j|^2 - r_j^2 |v_j|^2) <= 0, the price of a ball for sum_i K_i |x_i|^2 <= 1/2, all signals being
vectors of R^k. In signals and inputs that take up the numbers K and r, unit vectors x and p, one for each such group
of rows, make w = c / r v + |v| p, and the network's output then is a value of the primal problem.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.native.chain import SPARSE_DENSITY, Array, Exponents
from lipmodel.backends.native.lbfgs import Pair, quasi_newton

MEMORY = 8  # pairs of L-BFGS
SMALLEST = 1e-4  # share of a step below which a line search gives up
NOUGHT = 1e-150  # length that a vanishing signal counts as
COMPRESSED = 1 / SPARSE_DENSITY  # what an entry of a compressed matrix costs, in entries of a dense one
VAGUE = 1e-15  # relative size of signals below which they do not fix a multiplier


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Rows that are measured by groups, together one vector each."""

    group: Exponents
    count: int
    first: Exponents  # a row of every group

    def sums(self, values: Array) -> Array:
        """Of every row's group."""
        if self.count == 1:
            return np.full(values.size, values.sum())
        return np.asarray(np.bincount(self.group, values, self.count)[self.group])


def pool_of(labels: Exponents) -> Pool | None:
    """Rows of the same label together; None where all labels differ."""
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    return None if first.size == group.size else Pool(group=group, count=first.size, first=first)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """A matrix on some consecutive rows of the signals, and its transpose."""

    rows: slice
    matrix: Any
    back: Any

    @property
    def work(self) -> float:
        """Entries, those of compressed matrices by what they cost."""
        return float(self.matrix.size if isinstance(self.matrix, np.ndarray) else COMPRESSED * self.matrix.nnz)


def reading(rows: slice, matrix: Any, gains: tuple[Array | None, Array | None] = (None, None)) -> Reading:
    """A matrix, dense or compressed, with its rows and its columns times some gains."""
    for axis, gain in enumerate(gains):
        if gain is not None:
            factor = np.expand_dims(gain, 1 - axis)
            matrix = sp.csr_array(matrix.multiply(factor)) if sp.issparse(matrix) else matrix * factor
    return Reading(rows=rows, matrix=matrix, back=matrix.T)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """v = sum of matrices times signals before, w = ratio v + |v| p; ratio None is one, pool None every row alone."""

    rows: slice
    reads: tuple[Reading, ...]
    ratio: Array | None
    pool: Pool | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signals:
    """A network as a map from the factor (rows of x, then of p, as the signals) to f, the length of its output.

    Where the output is pooled by groups f is the sum of their lengths.
    """

    inputs: slice
    input_pool: Pool | None
    layers: tuple[Layer, ...]
    output: tuple[Reading, ...]
    output_pool: Pool | None
    pools: tuple[tuple[slice, Pool], ...]  # of the factor
    rows: int
    groups: int

    @property
    def readings(self) -> Iterator[Reading]:
        for layer in self.layers:
            yield from layer.reads
        yield from self.output


def signals_of(
    inputs: int,
    input_pool: Pool | None,
    layers: tuple[Layer, ...],
    output: tuple[Reading, ...],
    output_pool: Pool | None,
) -> Signals:
    """inputs: rows of x."""
    spans = [(slice(0, inputs), input_pool), *((layer.rows, layer.pool) for layer in layers)]
    return Signals(
        inputs=slice(0, inputs),
        input_pool=input_pool,
        layers=layers,
        output=output,
        output_pool=output_pool,
        pools=tuple((span, pool) for span, pool in spans if pool is not None),
        rows=spans[-1][0].stop,
        groups=sum(span.stop - span.start if pool is None else pool.count for span, pool in spans),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """A factor with unit rows, f there, and what the gradient needs."""

    factor: Array
    f: float
    output: Array
    ends: Array  # lengths of the output's groups, for every row
    before: Array  # v of all layers; the rows of x are not used
    lengths: Array  # |v|, of groups for every row


def _lengths(rows: Array, pool: Pool | None) -> Array:
    squares = np.einsum("ij,ij->i", rows, rows)
    return np.asarray(np.sqrt(squares if pool is None else pool.sums(squares)))


def norms(s: Signals, rows: Array) -> Array:
    """Lengths of the rows of a factor, of their groups where they are measured by groups."""
    squares = np.einsum("ij,ij->i", rows, rows)
    for span, pool in s.pools:
        squares[span] = pool.sums(squares[span])
    lengths = np.sqrt(squares)
    return np.asarray(np.maximum(lengths, 1e-30 * float(lengths.max())))


def evaluate(s: Signals, factor: Array) -> State:
    """f, and all on the way, at a factor."""
    signals, before = np.empty_like(factor), np.empty_like(factor)
    signals[s.inputs] = factor[s.inputs]
    lengths = np.empty(s.rows)
    for layer in s.layers:
        here, ratio = layer.rows, layer.ratio
        before[here] = v = _read(layer.reads, signals)
        lengths[here] = length = np.maximum(_lengths(v, layer.pool), NOUGHT)
        w = np.multiply(length[:, None], factor[here], out=signals[here])
        w += v if ratio is None else ratio * v
    output = _read(s.output, signals)
    ends = np.maximum(_lengths(output, s.output_pool), NOUGHT)
    f = float((ends if s.output_pool is None else ends[s.output_pool.first]).sum())
    return State(factor=factor, f=f, output=output, ends=ends, before=before, lengths=lengths)


def _read(reads: tuple[Reading, ...], signals: Array) -> Array:
    total = reads[0].matrix @ signals[reads[0].rows]
    for reading in reads[1:]:
        total += reading.matrix @ signals[reading.rows]
    return np.asarray(total)


def gradient(s: Signals, state: State) -> tuple[Array, Array]:
    """Gradient of f in the factor, and the lengths of that in w, by groups for every row."""
    found = np.zeros_like(state.factor)  # at first in the signals
    push = np.zeros(s.rows)
    force = state.output / state.ends[:, None]
    for reading in s.output:
        found[reading.rows] += reading.back @ force
    for layer in reversed(s.layers):
        here, ratio = layer.rows, layer.ratio
        force, lengths = found[here], state.lengths[here]
        along = np.einsum("ij,ij->i", force, state.factor[here])
        along = (along if layer.pool is None else layer.pool.sums(along)) / lengths
        change = along[:, None] * state.before[here]
        change += force if ratio is None else ratio * force
        for reading in layer.reads:
            found[reading.rows] += reading.back @ change
        push[here] = _lengths(force, layer.pool)
        force *= lengths[:, None]
    return found, push


def _tangent(s: Signals, factor: Array, vector: Array) -> Array:
    """The part of a vector along the spheres."""
    inner = np.einsum("ij,ij->i", vector, factor)
    for span, pool in s.pools:
        inner[span] = pool.sums(inner[span])
    return np.asarray(vector - inner[:, None] * factor)


def random_state(s: Signals, columns: int) -> State:
    """A random factor."""
    factor = np.random.default_rng(0).standard_normal((s.rows, columns))
    return evaluate(s, factor / norms(s, factor)[:, None])


@dataclass(slots=True, kw_only=True, eq=False)
class Climb:
    """L-BFGS on the spheres; `metric` is the block curvature, the length of every row of the gradient."""

    s: Signals
    state: State
    pairs: list[Pair] = field(default_factory=list)
    gradient: Array = field(init=False)
    push: Array = field(init=False)
    slope: Array = field(init=False)  # the gradient along the spheres
    metric: Array = field(init=False)

    def __post_init__(self) -> None:
        self._differentiate()

    def _differentiate(self) -> None:
        self.gradient, self.push = gradient(self.s, self.state)
        self.slope = _tangent(self.s, self.state.factor, self.gradient)
        self.metric = norms(self.s, self.gradient)[:, None]

    @property
    def residual(self) -> float:
        """Length of the slope in the metric, relative to f."""
        return math.sqrt(float(np.vdot(self.slope, self.slope / self.metric)) / self.state.f)

    def step(self) -> bool:
        """One step up; False where there is none in floating point."""
        before, slope, metric = self.state, self.slope, self.metric
        direction = self._direction()
        rise = float(np.vdot(slope, direction))
        if not rise > 0:
            self.pairs.clear()
            direction = slope / metric
            rise = float(np.vdot(slope, direction))
        longest = float(norms(self.s, direction).max())
        share = min(1.0, 2 / longest) if longest > 0 else 1.0
        while True:
            moved = before.factor + share * direction
            moved /= norms(self.s, moved)[:, None]
            after = evaluate(self.s, moved)
            if after.f >= before.f + 1e-4 * share * rise - 1e-15 * before.f:
                break
            share /= 3
            if share < SMALLEST:
                if not self.pairs:
                    return False
                self.pairs.clear()
                return self.step()
        self.state = after
        self._differentiate()
        change, bend = moved - before.factor, slope - self.slope
        curvature = float(np.vdot(change, bend))
        if curvature > 1e-10 * math.sqrt(float(np.vdot(change, change)) * float(np.vdot(bend, bend))):
            self.pairs.append((change, bend, curvature))
            del self.pairs[:-MEMORY]
        return bool(after.f > 0) and math.isfinite(after.f)

    def _direction(self) -> Array:
        """Along the spheres, by the pairs so far."""
        metric = self.metric
        return _tangent(self.s, self.state.factor, quasi_newton(self.pairs, self.slope, lambda rows: rows / metric))

    def enlarge(self) -> None:
        """Twice the columns, to leave a point that is no maximum of a larger rank."""
        factor = self.state.factor
        noise = np.random.default_rng(factor.shape[1]).standard_normal(factor.shape)
        factor = np.hstack([factor, 0.1 * noise / norms(self.s, noise)[:, None]])
        factor /= norms(self.s, factor)[:, None]
        self.pairs.clear()
        self.state = evaluate(self.s, factor)
        self._differentiate()

    def compress(self) -> None:
        """Drop the columns, in principal axes, that carry less than what is missing from the maximum."""
        values, axes = np.linalg.eigh(self.state.factor.T @ self.state.factor)
        keep = values > (0.3 * self.residual) ** 2 * values[-1]
        count = max(int(keep.sum()) + 2, 4)
        if count > 0.8 * keep.size:
            return
        axes = axes[:, -count:]
        factor = self.state.factor @ axes
        factor /= norms(self.s, factor)[:, None]
        self.pairs = [(change @ axes, bend @ axes, curvature) for change, bend, curvature in self.pairs]
        self.state = evaluate(self.s, factor)
        self._differentiate()

    def multipliers(self) -> Array:
        """For the objective f, of the group of every row: |gradient in w| / (2 |v|), and |gradient in x|."""
        found = self.metric[:, 0].copy()
        for layer in self.s.layers:
            a, v = self.push[layer.rows], self.state.lengths[layer.rows]
            found[layer.rows] = (a + VAGUE**2 * a.max()) / (2 * (v + VAGUE * v.max()))
        return found
