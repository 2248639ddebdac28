"""Dual path follower for diagonal multipliers: every iterate is strictly feasible, so every iterate is a bound.

Minimises cost'y - mu logdet S(y) for mu -> 0 with the exact Hessian M of -logdet S. Any strictly feasible y is the
minimiser of (cost / mu + offset)'y - logdet S for one offset, at every mu: so each iterate stands on a path of its own,
at the mu that makes its offset least, and the path is followed by its Taylor series of order three, from two gradients
besides. Nothing is corrected: what a prediction misses goes into the next offset, which mu -> 0 makes negligible.
With a = grad logdet S, P = S^-1 and d = M^-1 a - M^-1 cost / m, the matrix m (P - P A(d) P) satisfies every equality of
the primal problem, and is feasible there exactly where S(y - d) > 0: one block Cholesky gives the lower bound
cost'y - m (n - a'd).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from lipmodel.backends.native.barrier import Metric, factor_metric
from lipmodel.backends.native.chain import Array, Status, relative_gap

ACCEPTED = (4.5, 1.5, 0.9)  # decrements that a prediction may have; the next where one before gets nowhere
AIM, POOR = 2.0, 1.1  # the decrement that strides aim at, and the one below which another attempt is made to get there
GROWTH = 5.0  # the decrement of a prediction grows like this power of the stride
STRIDE = 0.7  # the first, in units of log mu
ROUGH = 0.3  # decrement of the sample from which the second order is not believed: it is mostly rounding there
SHORT = 0.1  # stride below which a point this near to the central path is taken onto it first
NEAR, CENTRAL, FAR = 0.1, 0.25, 9.0  # squared lengths of the offset
SAMPLE = 0.15  # of a stride, where the remainder of the second order is measured
DIFFERENCE = 5e-3  # length, in the metric of M, of the step of the difference quotient
SPOILT = 50.0  # growth of the squared length of the offset in one step that only rounding explains
BEND = (0.2, 8.0)
LEVELS = (0.25, 0.5, 1.0, 2.0)  # of mu, at which a lower bound is tried
ATTEMPTS = 12
FADING = 0.3  # of the objective: once n mu is below this an offset longer than one is made to vanish
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
        """Of -logdet S, shape (unknowns, unknowns): the upper triangle counts, the caller may overwrite it all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What `on_iterate` is told: objective and lower bound so far, their relative gap on the bound, seconds elapsed.

    solution: computes the best feasible point so far, a ChainSolution or a Solution.
    """

    iteration: int
    value: float
    lower: float
    gap: float
    elapsed: float
    solution: Callable[[], Any] | None = None


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
        return relative_gap(self.lower, self.value, root=self.barrier.root)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Point:
    y: Array
    factor: Any
    band: Any
    gradient: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Path:
    """y(x) = y + terms_1 x + terms_2 x^2 + .., the minimisers of (cost / mu + offset)'y - logdet S at mu exp(-stride).

    x = (1 - exp(-bend stride)) / bend: 1 makes it the share of mu that is taken off, 0 would make it the stride. fade:
    the offset shrinks with mu.
    """

    point: _Point
    metric: Metric
    mu: float
    offset: Array
    fade: bool
    bend: float
    terms: tuple[Array, ...]

    def length(self, stride: float) -> float:
        """x."""
        return (1 - math.exp(-self.bend * stride)) / self.bend


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Step:
    """A prediction: the step back to the path there, by the metric behind it, and its length."""

    point: _Point
    stride: float
    newton: Array
    decrement: float


def follow_path(
    barrier: Barrier,
    y: Array,
    *,
    tol: float,
    deadline: float,
    max_iterations: int,
    report: Callable[[int, Array, float, float], bool],
    target: float = -math.inf,
    lower: float = 0.0,
    fade: bool = False,
) -> Outcome:
    """Follow the central path from the strictly feasible y until the bound is known to the relative tolerance `tol`.

    report(iterations, best point, lower, gap) is called once per Hessian; the run ends where it returns False, and as
    soon as the objective is below `target`. lower: a lower bound on the objective that is known beforehand. fade: let
    the offset shrink with mu from the start, not just where it does not vanish by itself.
    """
    value = float(barrier.cost @ y)
    run = _Run(barrier=barrier, deadline=deadline, target=target, best=y.copy(), value=value, lower=lower, fade=fade)
    status: Status = "inaccurate"
    iterations = 0
    try:
        for _ in _iterate(run, y):
            iterations += 1
            if not report(iterations, run.best, run.lower, run.gap()):
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
    mu, stride, patience, watch, last = math.inf, STRIDE, 0, _Watch(), math.inf
    while patience < len(ACCEPTED):
        metric = factor_metric(run.barrier.hessian(point.factor, point.band))
        if metric is None:
            return
        ascent, price = metric.refined(point.gradient), metric.refined(run.cost)
        mu = _level(run, point, mu, ascent, price)
        distance = float((point.gradient - run.cost / mu) @ (ascent - price / mu))
        if distance < FAR:
            _bound_below(run, point, metric, mu, ascent, price)
        yield
        step = None
        spoilt = distance > SPOILT * max(last, 1.0)
        if not spoilt:
            home, newton, level, last = point, ascent - price / mu, mu, distance
        if not spoilt and (stride > SHORT or not NEAR < distance < FAR):
            step = _predict(run, _path(run, point, metric, mu, ascent, price), stride, ACCEPTED[patience])
        if step is not None:
            point = step.point
            mu *= math.exp(-step.stride)
            stride = step.stride * _stretch(step.decrement)
        else:
            mu, last = level, math.inf
            centred = _line_search(run, home, newton, run.cost / mu)
            point = home if centred is None else centred
            patience += centred is None
            stride = max(STRIDE / 2, stride)
        if watch.idle(run.gap(), mu):
            patience += 1


def _level(run: _Run, point: _Point, mu: float, ascent: Array, price: Array) -> float:
    """The mu for which the point has the least offset in the metric of M; none above `mu` far from the central path."""
    rise, slope = float(run.cost @ ascent), float(run.cost @ price)
    if not (rise > 0 and 0 < slope < math.inf):
        return min(mu, float(run.cost @ point.y) / run.barrier.order)
    nearest = slope / rise
    central = float((point.gradient - run.cost / nearest) @ (ascent - price / nearest)) < CENTRAL
    return nearest if central else min(mu, nearest)


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
    """The primal feasible point of this Hessian, at the least barrier parameter tried that gives one."""
    value = float(run.cost @ point.y)
    # what the solves leave of the primal equalities, priced at multipliers of the present size
    left, left_price = metric.apply(ascent) - point.gradient, metric.apply(price) - run.cost
    for share in LEVELS:
        level = share * mu
        step = ascent - price / level
        slack = run.barrier.order - float(point.gradient @ step)
        slack += 2 * float(np.abs(left - left_price / level) @ np.abs(point.y))
        bound = value - level * slack
        if bound > run.lower and run.barrier.factorize(point.y - step) is not None:
            run.lower = bound
            break


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


def _path(run: _Run, point: _Point, metric: Metric, mu: float, ascent: Array, price: Array) -> _Path:
    """The path through a point to second order, parametrised such that it bends at a right angle to itself."""
    offset = point.gradient - run.cost / mu
    near = mu * run.barrier.order < FADING * run.value
    fade = run.fade or (near and float(offset @ (ascent - price / mu)) > 1)
    # M tangent = force: what d/dx takes off cost / mu + offset, reversed
    force, tangent = run.cost / mu, price / mu
    if fade:
        force, tangent = force - offset, 2 * tangent - ascent
    size = float(force @ tangent)
    bend = 1.0
    terms: tuple[Array, ...] = (-tangent,)
    width = DIFFERENCE / math.sqrt(size) if size > 0 else 0.0
    behind = run.point(point.y - width * tangent) if width else None
    if behind is not None:
        curvature = 2 * ((behind.gradient - point.gradient) / width - force) / width
        second = metric.solve(curvature - 2 * run.cost / mu)
        bend = min(max(1 + float(force @ second) / size, BEND[0]), BEND[1])
        terms = (-tangent, (second - (bend - 1) * tangent) / 2)
    return _Path(point=point, metric=metric, mu=mu, offset=offset, fade=fade, bend=bend, terms=terms)


def _predicted(run: _Run, path: _Path, stride: float) -> _Step | None:
    """The prediction at mu exp(-stride), None where it is not feasible."""
    x = path.length(stride)
    point = run.point(path.point.y + sum(x**k * term for k, term in enumerate(path.terms, start=1)))
    if point is None:
        return None
    share = math.exp(-stride)
    force = run.cost / (path.mu * share) + (share * path.offset if path.fade else path.offset) - point.gradient
    newton = path.metric.solve(force)
    return _Step(point=point, stride=stride, newton=newton, decrement=math.sqrt(max(float(force @ newton), 0.0)))


def _predict(run: _Run, path: _Path, stride: float, accepted: float) -> _Step | None:
    """The farthest prediction found that is feasible and whose decrement, in the metric behind it, is `accepted`."""
    sample = _predicted(run, path, SAMPLE * stride)
    if sample is None or sample.decrement > ROUGH:
        path = replace(path, bend=1.0, terms=path.terms[:1])
        sample = _predicted(run, path, SAMPLE * stride)
    if sample is not None:
        order = len(path.terms) + 1
        path = replace(path, terms=(*path.terms, -sample.newton / path.length(sample.stride) ** order))
    best: _Step | None = None
    for _ in range(ATTEMPTS):
        step = _predicted(run, path, stride)
        if step is not None and step.decrement < accepted:
            best = step
            if step.decrement > POOR:
                break
        elif best is not None:
            break
        stride *= 0.6 if step is None else _stretch(step.decrement)
    return best


def _stretch(decrement: float) -> float:
    """The factor on a stride that should bring its decrement to the aim."""
    return float(min(max((AIM / max(decrement, 1e-9)) ** (1 / GROWTH), 0.5), 2.0))
