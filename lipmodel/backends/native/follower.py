"""Dual path follower for the multipliers of a chain: every iterate is strictly feasible, so every iterate is a bound.

Minimises c'y - mu logdet S(y) for mu -> 0 with the exact Hessian. A linear offset makes any start central; a second-order predictor
follows the path; correctors are quasi-Newton steps that reuse the factored Hessian. With M the Hessian, a = grad logdet S, P = S^-1,
d = M^-1 a - M^-1 c / m, the matrix m (P - P A(d) P) satisfies every equality of the primal problem, and is feasible there exactly when
S(y - d) > 0: one block Cholesky gives a lower bound c'y - m (n - a'd) of the optimum.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipmodel.backends.native.barrier import Metric, factor_metric
from lipmodel.backends.native.chain import Array, Chain
from lipmodel.backends.native.elimination import Elimination, elimination_order

LADDER = (
    0.98,
    0.96,
    0.93,
    0.89,
    0.83,
    0.75,
    0.66,
    0.57,
    0.48,
    0.40,
    0.33,
    0.27,
    0.2,
    0.15,
    0.1,
    0.06,
    0.03,
    0.01,
    0.003,
    0.001,
)
CENTRAL = 0.9  # decrement above which an iterate is brought back by a line search before the path is followed on
CORRECTED = 0.3  # decrement at which the correctors stop
CORRECTORS = 6
PATIENCE = (
    (4.5, 2.25),
    (1.5, 0.8),
    (0.9, 0.5),
)  # largest decrement of an accepted prediction, and the one to climb below


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What `on_iterate` is told: the objective at the best feasible point, its lower bound, and their relative gap on the bound."""

    iteration: int
    value: float
    lower: float
    gap: float
    elapsed: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """The best point of a run, in the chain's own units; `status` as in ChainSolution."""

    y: Array
    value: float
    lower: float
    status: str
    iterations: int


class _Stop(Exception):  # noqa: N818 - not an error: it ends the run from inside a step
    def __init__(self, status: str) -> None:
        self.status = status


@dataclass(slots=True, kw_only=True, eq=False)
class _State:
    """One run. `point` and `factor`, `band` belong together."""

    chain: Chain
    elimination: Elimination
    cost: Array
    deadline: float
    best: Array
    best_value: float
    lower: float = 0.0

    def factor(self, y: Array) -> Any:
        """The factor at y, None unless S(y) > 0; remembers y where it is the best feasible point so far."""
        if time.monotonic() > self.deadline:
            raise _Stop("time-limit")
        factor = self.elimination.factorize(self.chain, y)
        if factor is not None:
            value = float(self.cost @ y)
            if value < self.best_value:
                self.best, self.best_value = y.copy(), value
        return factor

    def gap(self) -> float:
        """Relative gap on the square root of the objective."""
        return 1 - math.sqrt(max(self.lower, 0.0) / self.best_value) if self.lower < self.best_value else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Point:
    y: Array
    factor: Any
    band: Any

    @property
    def gradient(self) -> Array:
        gradient: Array = self.band.gradient
        return gradient


def follow_path(
    chain: Chain,
    y: Array,
    *,
    tol: float,
    deadline: float,
    max_iterations: int,
    report: Callable[[int, float, float, float], bool],
) -> Outcome:
    """Follow the central path from the strictly feasible y until the bound is known to the relative tolerance `tol`.

    report(iterations, value, lower, gap) is called once per Hessian; the run ends where it returns False.
    """
    cost = np.concatenate([np.zeros(chain.neurons), chain.cost])
    state = _State(
        chain=chain,
        elimination=elimination_order(chain),
        cost=cost,
        deadline=deadline,
        best=y.copy(),
        best_value=float(cost @ y),
    )
    status, iterations = "inaccurate", 0
    try:
        for iterations, _ in enumerate(_iterate(state, y), start=1):
            gap = state.gap()
            if not report(iterations, state.best_value, state.lower, gap):
                status = "interrupted"
                break
            if gap <= tol:
                status = "optimal"
                break
            if iterations >= max_iterations:
                status = "iteration-limit"
                break
    except _Stop as stop:
        status = stop.status
    except KeyboardInterrupt:
        status = "interrupted"
    except (MemoryError, FloatingPointError, np.linalg.LinAlgError):
        status = "inaccurate"
    if status == "inaccurate" and state.gap() <= tol:
        status = "optimal"
    return Outcome(y=state.best, value=state.best_value, lower=state.lower, status=status, iterations=iterations)


def _iterate(state: _State, y: Array) -> Iterator[None]:
    """One Hessian per step; ends where no step makes progress any more."""
    chain, cost = state.chain, state.cost
    point = _evaluate(state, y)
    if point is None:
        return
    mu = float(cost @ y) / chain.order
    offset = point.gradient - cost / mu
    rung, patience, watch = 0, 0, _Watch()
    while True:
        matrix = state.elimination.hessian(chain, point.factor, point.band)
        metric = factor_metric(matrix)
        if metric is None:
            return
        ascent, price, pull = metric.solve(np.column_stack([point.gradient, cost, offset])).T
        pure = point.gradient - cost / mu
        if pure @ (ascent - price / mu) < 0.49 and np.any(offset):
            offset, pull = np.zeros_like(offset), np.zeros_like(pull)
        _lower_bound(state, point, mu, ascent, price)
        yield
        if watch.idle(state, mu):
            patience += 1
            if patience == len(PATIENCE):
                return
        newton = ascent - price / mu - pull
        decrement = math.sqrt(max(float(newton @ (pure - offset)), 0.0))
        step = None
        if decrement <= CENTRAL:
            accept, climb = PATIENCE[patience]
            step = _predict(state, point, metric, newton, price / mu, offset, mu, rung, accept, climb)
        if step is not None:
            point, mu, rung = step
            point = _correct(state, point, metric, cost / mu + offset)
        else:
            moved = _line_search(state, point, newton, cost / mu + offset)
            if moved is None:
                patience += 1
                if patience == len(PATIENCE):
                    return
            else:
                point = moved


@dataclass(slots=True, kw_only=True)
class _Watch:
    """Whether a run still gets anywhere: the gap or the barrier parameter has fallen by a tenth within a few iterations."""

    gap: float = math.inf
    mu: float = math.inf
    idle_for: int = 0

    def idle(self, state: _State, mu: float) -> bool:
        gap = state.gap()
        if gap < 0.9 * self.gap or mu < 0.9 * self.mu:
            self.gap, self.mu, self.idle_for = min(gap, self.gap), min(mu, self.mu), 0
            return False
        self.idle_for += 1
        if self.idle_for < 8:
            return False
        self.idle_for = 0
        return True


def _evaluate(state: _State, y: Array) -> _Point | None:
    factor = state.factor(y)
    return (
        None if factor is None else _Point(y=y, factor=factor, band=state.elimination.band_inverse(state.chain, factor))
    )


def _lower_bound(state: _State, point: _Point, mu: float, ascent: Array, price: Array) -> None:
    """The primal feasible point of this Hessian, at the barrier parameter that gives most."""
    value = float(state.cost @ point.y)
    slack = state.chain.order - float(point.gradient @ ascent)
    for factor in (0.4, 1.0, 2.0):
        level = factor * mu
        candidate = value - (level * slack + float(point.gradient @ price))
        if (
            candidate > state.lower
            and state.elimination.factorize(state.chain, point.y - ascent + price / level) is not None
        ):
            state.lower = candidate


def _line_search(state: _State, point: _Point, direction: Array, linear: Array) -> _Point | None:
    """Towards the minimum of linear'y - logdet S along a Newton direction, never beyond it."""
    slope = float((linear - point.gradient) @ direction)
    if not slope < 0:
        return None
    low, low_slope, high, high_slope = 0.0, slope, math.inf, math.nan
    best: _Point | None = None
    step = 1.0
    for _ in range(12):
        trial = _evaluate(state, point.y + step * direction)
        if trial is None:
            high, high_slope = step, math.nan
        else:
            at = float((linear - trial.gradient) @ direction)
            if at > 0.0:
                high, high_slope = step, at
            else:
                low, low_slope, best = step, at, trial
                if at > 0.1 * slope:
                    break
        if math.isinf(high):
            step = 2 * low
        elif math.isnan(high_slope):
            step = low + (high - low) * (0.5 if low else 0.3)
        else:
            secant = low + (high - low) * low_slope / (low_slope - high_slope)
            step = min(max(secant * 0.98, low + 0.1 * (high - low)), high - 0.05 * (high - low))
        if high - low < 1e-3 * low:
            break
    return best


def _predict(
    state: _State,
    point: _Point,
    metric: Metric,
    newton: Array,
    tangent: Array,
    offset: Array,
    mu: float,
    rung: int,
    accept: float,
    climb: float,
) -> tuple[_Point, float, int] | None:
    """The farthest point of the second-order prediction that the stale metric still finds near the path."""
    width = 1e-3
    ahead, behind = _evaluate(state, point.y + width * tangent), _evaluate(state, point.y - width * tangent)
    bend = np.zeros_like(newton)
    if ahead is not None and behind is not None:
        curvature = (ahead.gradient - 2 * point.gradient + behind.gradient) / width**2
        bend = metric.solve(curvature) / 2 - tangent

    def attempt(index: int) -> tuple[float, _Point] | None:
        share = LADDER[index]
        trial = _evaluate(state, point.y + newton - share * tangent + share**2 * bend)
        if trial is None:
            return None
        force = state.cost / ((1 - share) * mu) + offset - trial.gradient
        return math.sqrt(max(float(force @ metric.solve(force)), 0.0)), trial

    index = max(rung - 1, 0)
    found = None
    while index < len(LADDER):
        found = attempt(index)
        if found is not None and found[0] < accept:
            break
        found = None
        index += 1
    if found is None:
        return None
    while index > 0 and found[0] < climb:
        further = attempt(index - 1)
        if further is None or further[0] >= accept:
            break
        found, index = further, index - 1
    return found[1], (1 - LADDER[index]) * mu, index


def _correct(state: _State, point: _Point, metric: Metric, linear: Array) -> _Point:
    """A few L-BFGS steps towards the minimum of linear'y - logdet S, from the inverse of an earlier Hessian."""
    pairs: list[tuple[Array, Array]] = []
    force = linear - point.gradient
    for _ in range(CORRECTORS):
        if float(force @ metric.solve(force)) < CORRECTED**2:
            break
        direction = -_quasi_newton(metric, pairs, force)
        moved = _descend(state, point, direction, linear, float(force @ direction))
        if moved is None:
            break
        after = linear - moved.gradient
        pairs.append((moved.y - point.y, after - force))
        point, force = moved, after
    return point


def _descend(state: _State, point: _Point, direction: Array, linear: Array, slope: float) -> _Point | None:
    """The first of a few halved steps at which linear'y - logdet S has decreased enough (Armijo)."""
    step = 1.0
    for _ in range(5):
        y = point.y + step * direction
        factor = state.factor(y)
        if factor is not None:
            change = step * float(linear @ direction) - (factor.logdet - point.factor.logdet)
            if change <= 1e-3 * step * slope:
                return _Point(y=y, factor=factor, band=state.elimination.band_inverse(state.chain, factor))
        step /= 2
    return None


def _quasi_newton(metric: Metric, pairs: list[tuple[Array, Array]], force: Array) -> Array:
    """Two-loop recursion of L-BFGS (Nocedal 1980)."""
    rest = force.copy()
    weights = []
    for step, change in reversed(pairs):
        weight = float(step @ rest) / float(step @ change)
        rest -= weight * change
        weights.append(weight)
    result = metric.solve(rest)
    for (step, change), weight in zip(pairs, reversed(weights), strict=True):
        result += (weight - float(change @ result) / float(step @ change)) * step
    return result
