"""Dual path follower for diagonal multipliers: every iterate is strictly feasible, so every iterate is a bound.

Minimises c'y - mu logdet S(y) for mu -> 0 with the exact Hessian. A linear offset makes any start central; a
second-order predictor follows the path; correctors are quasi-Newton steps that reuse the factored Hessian. With M the
Hessian, a = grad logdet S, P = S^-1 and d = M^-1 a - M^-1 c / m, the matrix m (P - P A(d) P) satisfies every equality
of the primal problem, and is feasible there exactly where S(y - d) > 0: one block Cholesky gives the lower bound
c'y - m (n - a'd).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lipmodel.backends.native.barrier import Metric, factor_metric
from lipmodel.backends.native.chain import Array, Status

# shares of mu that a prediction may take off, and the decrement that it may have to be accepted, or to be extended
SHARES = (
    0.98, 0.96, 0.93, 0.89, 0.83, 0.75, 0.66, 0.57, 0.48, 0.4,
    0.33, 0.27, 0.2, 0.15, 0.1, 0.06, 0.03, 0.01, 0.003, 0.001,
)  # fmt: skip
PATIENCE = ((4.5, 2.25), (1.5, 0.8), (0.9, 0.5))
CENTRAL = 0.9  # decrement above which an iterate is brought back by a line search before the path is followed on
CORRECTED = 0.3  # decrement at which the correctors stop
CORRECTORS = 6
IDLE = 8  # iterations without progress before less is asked of a step


class Barrier(Protocol):
    """min cost'y subject to S(y) > 0, S affine: what there is to know about -logdet S, by one elimination or another.

    A factor has `logdet`, what `complete` makes of it has `gradient`, both of logdet S(y); order: of S; root: whether
    the bound is the root of the objective.
    """

    @property
    def cost(self) -> Array: ...
    @property
    def order(self) -> int: ...
    @property
    def root(self) -> bool: ...
    def factorize(self, y: Array) -> Any:
        """None unless S(y) > 0."""

    def complete(self, factor: Any) -> Any: ...
    def hessian(self, factor: Any, band: Any) -> Array:
        """Of -logdet S, shape (unknowns, unknowns); the caller may overwrite it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What `on_iterate` is told: objective and lower bound so far, their relative gap on the bound, seconds elapsed."""

    iteration: int
    value: float
    lower: float
    gap: float
    elapsed: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """The best point of a run, in the barrier's own units; `status` as in ChainSolution."""

    y: Array
    lower: float
    status: Status
    iterations: int


class _Stop(Exception):  # noqa: N818 - not an error: it ends the run from inside a step
    def __init__(self, status: Status) -> None:
        self.status = status


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """The problem and the best that is known about it."""

    barrier: Barrier
    deadline: float
    target: float
    best: Array
    value: float
    lower: float
    fade: bool

    @property
    def cost(self) -> Array:
        return self.barrier.cost

    def factor(self, y: Array) -> Any:
        """The factor at y, None unless S(y) > 0; remembers y where it is the best feasible point so far."""
        if time.monotonic() > self.deadline:
            raise _Stop("time-limit")
        factor = self.barrier.factorize(y)
        if factor is not None and float(self.cost @ y) < self.value:
            self.best, self.value = y.copy(), float(self.cost @ y)
            if self.value < self.target:
                raise _Stop("optimal")
        return factor

    def point(self, y: Array) -> _Point | None:
        """y with its factor and gradient, None unless S(y) > 0."""
        factor = self.factor(y)
        return None if factor is None else self.complete(y, factor)

    def complete(self, y: Array, factor: Any) -> _Point:
        band = self.barrier.complete(factor)
        return _Point(y=y, factor=factor, band=band, gradient=band.gradient)

    def gap(self) -> float:
        """Relative gap on the bound."""
        if self.lower >= self.value:
            return 0.0
        ratio = max(self.lower, 0.0) / self.value if self.value > 0.0 else 0.0
        return 1 - (math.sqrt(ratio) if self.barrier.root else ratio)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Point:
    y: Array
    factor: Any
    band: Any
    gradient: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Path:
    """The path through a nearly central point: linear'y - logdet S, linear = cost / mu + offset, as mu falls."""

    point: _Point
    metric: Metric
    mu: float
    offset: Array
    newton: Array  # the step to the path at this mu
    price: Array  # M^-1 cost / mu
    tangent: Array  # what y loses per share of mu, and of the offset, taken off


def follow_path(
    barrier: Barrier,
    y: Array,
    *,
    tol: float,
    deadline: float,
    max_iterations: int,
    report: Callable[[int, float, float, float], bool],
    target: float = -math.inf,
    lower: float = 0.0,
    fade: bool = False,
) -> Outcome:
    """Follow the central path from the strictly feasible y until the bound is known to the relative tolerance `tol`.

    report(iterations, value, lower, gap) is called once per Hessian; the run ends where it returns False, and as soon
    as the objective is below `target`. lower: a lower bound on the objective that is known beforehand. fade: let the
    offset shrink with mu, which a start far from the path needs; near it a constant one takes fewer iterations.
    """
    value = float(barrier.cost @ y)
    run = _Run(barrier=barrier, deadline=deadline, target=target, best=y.copy(), value=value, lower=lower, fade=fade)
    status: Status = "inaccurate"
    iterations = 0
    try:
        for _ in _iterate(run, y):
            iterations += 1
            if not report(iterations, run.value, run.lower, run.gap()):
                status = "interrupted"
            elif run.gap() <= tol:
                status = "optimal"
            elif iterations >= max_iterations:
                status = "iteration-limit"
            else:
                continue
            break
    except _Stop as stop:
        status = stop.status
    except KeyboardInterrupt:
        status = "interrupted"
    except MemoryError:
        status = "inaccurate"
    if run.gap() <= tol:
        status = "optimal"
    return Outcome(y=run.best, lower=run.lower, status=status, iterations=iterations)


def _iterate(run: _Run, y: Array) -> Iterator[None]:
    """One Hessian per step; ends where no step makes progress any more."""
    point = run.point(y)
    if point is None:
        return
    mu = float(run.cost @ y) / run.barrier.order
    offset = point.gradient - run.cost / mu  # y minimises cost'y / mu + offset'y - logdet S
    rung, patience, watch = 0, 0, _Watch()
    while patience < len(PATIENCE):
        metric = factor_metric(run.barrier.hessian(point.factor, point.band))
        if metric is None:
            return
        ascent, price = metric.refined(point.gradient), metric.refined(run.cost)
        pure = point.gradient - run.cost / mu
        if pure @ (ascent - price / mu) < 0.49:
            offset = np.zeros_like(offset)
        _bound_below(run, point, metric, mu, ascent, price)
        yield
        aside = metric.solve(offset)
        newton = ascent - price / mu - aside
        decrement = math.sqrt(max(float(newton @ (pure - offset)), 0.0))
        step = None
        if decrement <= CENTRAL:
            path = _Path(
                point=point,
                metric=metric,
                mu=mu,
                offset=offset,
                newton=newton,
                price=price / mu,
                tangent=price / mu - aside if run.fade else price / mu,
            )
            step = _predict(run, path, rung, *PATIENCE[patience])
        if step is not None:
            rung, moved = step
            mu *= 1 - SHARES[rung]
            offset = offset * (1 - SHARES[rung]) if run.fade else offset
            point = _correct(run, moved, metric, run.cost / mu + offset)
        else:
            centred = _line_search(run, point, newton, run.cost / mu + offset)
            point = point if centred is None else centred
            if centred is None:
                patience += 1
        if watch.idle(run.gap(), mu):
            patience += 1


@dataclass(slots=True, kw_only=True)
class _Watch:
    """Whether a run still gets anywhere: gap or mu has fallen by a tenth within a few iterations."""

    gap: float = math.inf
    mu: float = math.inf
    idle_for: int = 0

    def idle(self, gap: float, mu: float) -> bool:
        if gap < 0.9 * self.gap or mu < 0.9 * self.mu:
            self.gap, self.mu, self.idle_for = min(gap, self.gap), min(mu, self.mu), 0
        else:
            self.idle_for = (self.idle_for + 1) % IDLE
            return self.idle_for == 0
        return False


def _bound_below(run: _Run, point: _Point, metric: Metric, mu: float, ascent: Array, price: Array) -> None:
    """The primal feasible point of this Hessian, at the barrier parameter that gives most."""
    value = float(run.cost @ point.y)
    for level in (0.4 * mu, mu, 2 * mu):
        step = ascent - price / level
        # what the solve leaves of the primal equalities, priced at multipliers of the present size
        residual = metric.apply(step) - (point.gradient - run.cost / level)
        slack = run.barrier.order - float(point.gradient @ step) + 2 * float(np.abs(residual) @ np.abs(point.y))
        bound = value - level * slack
        if bound > run.lower and run.barrier.factorize(point.y - step) is not None:
            run.lower = bound


def _line_search(run: _Run, point: _Point, direction: Array, linear: Array) -> _Point | None:
    """Towards the minimum of linear'y - logdet S along a Newton direction, never beyond; None if it does not fall."""
    slope = float((linear - point.gradient) @ direction)
    if not slope < 0:
        return None
    low, low_slope = 0.0, slope
    high, high_slope = math.inf, math.nan
    found: _Point | None = None
    step = 1.0
    for _ in range(12):
        trial = run.point(point.y + step * direction)
        at = math.nan if trial is None else float((linear - trial.gradient) @ direction)
        if at <= 0:
            low, low_slope, found = step, at, trial
            if at > 0.1 * slope:
                break
        else:
            high, high_slope = step, at
        if math.isinf(high):
            step = 2 * low
        elif math.isnan(high_slope):
            step = low + (high - low) * (0.5 if low else 0.3)
        else:
            secant = low + (high - low) * low_slope / (low_slope - high_slope)
            step = min(max(0.98 * secant, low + 0.1 * (high - low)), high - 0.05 * (high - low))
        if high - low < 1e-3 * low:
            break
    return found


def _predict(run: _Run, path: _Path, rung: int, accept: float, extend: float) -> tuple[int, _Point] | None:
    """The farthest point of the second-order prediction whose decrement, in the metric behind it, is below `accept`.

    The search starts one rung above the last, and climbs on from a decrement below `extend`.
    """
    point, tangent = path.point, path.tangent
    width = 1e-3
    ahead, behind = run.point(point.y + width * tangent), run.point(point.y - width * tangent)
    bend = np.zeros_like(tangent)
    if ahead is not None and behind is not None:
        bend = path.metric.solve((ahead.gradient - 2 * point.gradient + behind.gradient) / width**2) / 2 - path.price

    def attempt(index: int) -> tuple[float, _Point] | None:
        share = SHARES[index]
        trial = run.point(point.y + path.newton - share * tangent + share**2 * bend)
        if trial is None:
            return None
        offset = path.offset * (1 - share) if run.fade else path.offset
        decrement = _decrement(path.metric, run.cost / ((1 - share) * path.mu) + offset - trial.gradient)
        return (decrement, trial) if decrement < accept else None

    index = max(rung - 1, 0)
    found = attempt(index)
    while found is None and index + 1 < len(SHARES):
        index += 1
        found = attempt(index)
    while found is not None and found[0] < extend and index > 0:
        further = attempt(index - 1)
        if further is None:
            break
        found, index = further, index - 1
    return None if found is None else (index, found[1])


def _decrement(metric: Metric, force: Array) -> float:
    return math.sqrt(max(float(force @ metric.solve(force)), 0.0))


def _correct(run: _Run, point: _Point, metric: Metric, linear: Array) -> _Point:
    """A few L-BFGS steps towards the minimum of linear'y - logdet S, from the inverse of an earlier Hessian."""
    pairs: list[tuple[Array, Array]] = []
    force = linear - point.gradient
    for _ in range(CORRECTORS):
        if _decrement(metric, force) < CORRECTED:
            break
        direction = -_quasi_newton(metric, pairs, force)
        moved = _descend(run, point, direction, linear, float(force @ direction))
        if moved is None:
            break
        after = linear - moved.gradient
        pairs.append((moved.y - point.y, after - force))
        point, force = moved, after
    return point


def _descend(run: _Run, point: _Point, direction: Array, linear: Array, slope: float) -> _Point | None:
    """The first of a few halved steps at which linear'y - logdet S has decreased enough (Armijo)."""
    step = 1.0
    for _ in range(5):
        y = point.y + step * direction
        factor = run.factor(y)
        if factor is not None:
            change = step * float(linear @ direction) - (factor.logdet - point.factor.logdet)
            if change <= 1e-3 * step * slope:
                return run.complete(y, factor)
        step /= 2
    return None


def _quasi_newton(metric: Metric, pairs: list[tuple[Array, Array]], force: Array) -> Array:
    """Two-loop recursion of L-BFGS (Nocedal 1980, Math. Comp. 35)."""
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
