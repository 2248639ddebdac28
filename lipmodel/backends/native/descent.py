"""Descent on the logarithm of the bound, by L-BFGS: what improves a first point at once, and what fits any memory.

The objective is the logarithm of the bound plus a barrier, weight (logdet of the diagonal - logdet of the matrix),
which does not depend on units; the weight falls from stage to stage. A step costs a factorisation and a gradient of
the chain or of the fronts, and no array of the square of all unknowns. It gives no lower bound.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lipmodel.backends.native.chain import Array, Status
from lipmodel.backends.native.follower import Barrier, Outcome
from lipmodel.backends.native.lbfgs import Pair, quasi_newton

STAGES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5)
"""Weights of the whole barrier: with the k-th, the logarithm of the bound is within about so much of its least."""

POWERS = (32.0, 1e5)  # least and largest power of the mean that stands for a largest eigenvalue
LONGEST = 3.0  # of a step, in any logarithm
SHOWN = 1e-6  # relative, of what is reported above the boundary
SLACK = (3e-8, 3e-7, 3e-6, 3e-5, 3e-4, 3e-3)  # the same of what is returned, until it is strictly feasible


@dataclass(frozen=True, slots=True, kw_only=True)
class Care:
    """How closely the stages are followed.

    settled: the next stage begins where the last `steps` steps have fallen by less than this share of the weight each,
    or by less than 1e-9. pairs: of L-BFGS. sharpness: times 1 / weight, the power of the mean.
    """

    settled: float
    steps: int
    pairs: int
    sharpness: float


QUICK = Care(settled=1e-3, steps=1, pairs=20, sharpness=30.0)
"""For a point from which another solver goes on."""
THOROUGH = Care(settled=1e-6, steps=10, pairs=60, sharpness=3.0)
"""For the last word."""
WORTHLESS = 1e-9  # a fall for which no step is worth its time


class Trial(Protocol):
    """A point of an objective: value is what descends, level the logarithm of the cost there."""

    @property
    def x(self) -> Array: ...
    @property
    def value(self) -> float: ...
    @property
    def level(self) -> float: ...


class Objective(Protocol):
    """The logarithm of a cost with its barrier, on an open set of vectors x of logarithms.

    y: a barrier's unknowns. neurons: how many there are.
    """

    @property
    def neurons(self) -> int: ...
    def variables(self, y: Array) -> Array | None:
        """The x of a strictly feasible y, up to the best scale of y; None where it cannot be computed."""

    def forward(self, x: Array, weight: float, power: float) -> Trial | None:
        """The trial at x, None outside the domain."""

    def gradient(self, found: Any) -> Array: ...
    def point(self, found: Any) -> Array:
        """The y of a trial, on the boundary of the feasible set."""

    def raised(self, y: Array, slack: float) -> Array:
        """y on the boundary raised by a share of it, which makes it strictly feasible."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Descent:
    """The y of the best trial, on the boundary, and how it ended; y is None where there was not even a first trial."""

    y: Array | None
    status: Status


def improvements(
    objective: Objective,
    x: Array,
    *,
    deadline: float = math.inf,
    first: float = STAGES[0],
    least: float = STAGES[-1],
    care: Care = QUICK,
) -> Iterator[Array]:
    """Minimise from x through the stages from the weight `first` down to `least`: every better y, on the boundary."""
    level = math.inf
    pairs: list[Pair] = []
    for stage in (stage for stage in STAGES if least <= stage <= first):
        for trial in _minimise(objective, x, stage, care, pairs, deadline):
            x = trial.x
            if trial.level < level:
                level = trial.level
                yield objective.point(trial)
            if time.monotonic() > deadline:
                return


def descend(
    objective: Objective,
    x: Array,
    *,
    deadline: float,
    report: Callable[[Array], bool],
    first: float = STAGES[0],
    least: float = STAGES[-1],
) -> Descent:
    """The last of the improvements.

    report(y), y on the boundary, is called after every improvement, and ends the descent where it returns False.
    """
    best: Array | None = None
    status: Status = "inaccurate"
    try:
        for better in improvements(objective, x, deadline=deadline, first=first, least=least):
            best = better
            if not report(best):
                return Descent(y=best, status="interrupted")
        if time.monotonic() > deadline:
            status = "time-limit"
    except KeyboardInterrupt:
        status = "interrupted"
    except (MemoryError, np.linalg.LinAlgError):
        status = "inaccurate"
    return Descent(y=best, status=status)


def _minimise(
    objective: Objective, x: Array, stage: float, care: Care, pairs: list[Pair], deadline: float
) -> Iterator[Trial]:
    """Trials of falling value for the whole weight `stage`, from the one at x on, until hardly anything is gained.

    pairs: steps and changes of the gradient, which is read and added to.
    """
    weight = stage / max(objective.neurons, 1)
    power = min(max(care.sharpness / stage, POWERS[0]), POWERS[1])
    trial = objective.forward(x, weight, power)
    if trial is None:
        return
    gradient = objective.gradient(trial)
    values = deque([trial.value], maxlen=care.steps + 1)
    enough = care.steps * max(care.settled * stage, WORTHLESS)
    yield trial
    while True:
        direction = _direction(pairs, gradient)
        slope = float(gradient @ direction)
        moved = None
        if slope < 0:
            moved = _searched(objective, trial, direction, slope, weight, power, deadline)
        if moved is None:
            if not pairs or time.monotonic() > deadline:
                return
            pairs.clear()
            continue
        after = objective.gradient(moved)
        step, change = moved.x - trial.x, after - gradient
        curvature = float(step @ change)
        if curvature > 1e-12 * np.linalg.norm(step) * np.linalg.norm(change):
            pairs.append((step, change, curvature))
            del pairs[: -care.pairs]
        trial, gradient = moved, after
        values.append(trial.value)
        yield trial
        if len(values) > care.steps and values[0] - trial.value < enough:
            return


def _direction(pairs: list[Pair], gradient: Array) -> Array:
    """The step of L-BFGS, no component longer than LONGEST; short where nothing is known yet."""
    rest = quasi_newton(pairs, -gradient, np.copy)
    if not pairs:
        rest *= 0.1 / max(float(np.abs(rest).max(initial=0.0)), 1e-12)
    longest = float(np.abs(rest).max(initial=0.0))
    return rest * (LONGEST / longest) if longest > LONGEST else rest


def _searched(
    objective: Objective, trial: Trial, direction: Array, slope: float, weight: float, power: float, deadline: float
) -> Trial | None:
    """The first of ever shorter steps at which the value has decreased enough (Armijo); None if there is none."""
    length = 1.0
    for _ in range(25):
        if time.monotonic() > deadline:
            return None
        moved = objective.forward(trial.x + length * direction, weight, power)
        if moved is None:
            length *= 0.3
            continue
        rise = moved.value - trial.value - length * slope
        if rise <= (1e-4 - 1) * length * slope:
            return moved
        length = min(max(-slope * length**2 / (2 * rise), 0.1 * length), 0.5 * length)
    return None


def improved(
    barrier: Barrier,
    objective: Objective,
    y: Array,
    *,
    deadline: float,
    report: Callable[[Array], bool],
    first: float = STAGES[0],
    least: float = STAGES[-1],
) -> Outcome:
    """Descend from the strictly feasible y; the result is strictly feasible too.

    report(y) is told of every improvement. A step is no iteration: the count of the result is zero.
    """
    value = float(barrier.cost @ y)
    try:
        x = objective.variables(y)
    except (KeyboardInterrupt, MemoryError) as error:
        status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "inaccurate"
        return Outcome(y=y, lower=0.0, status=status, iterations=0)
    if x is None:
        return Outcome(y=y, lower=0.0, status="inaccurate", iterations=0)

    def better(boundary: Array) -> bool:
        point = objective.raised(boundary, SHOWN)
        return not float(barrier.cost @ point) < value or report(point)

    found = descend(objective, x, deadline=deadline, report=better, first=first, least=least)
    point = y if found.y is None else _firm(barrier, objective, found.y, y)
    return Outcome(y=point, lower=0.0, status=found.status, iterations=0)


def tightened(barrier: Barrier, objective: Objective, y: Array) -> Array:
    """A strictly feasible point no worse than the strictly feasible y: its multipliers at the best scale."""
    x = objective.variables(y)
    trial = None if x is None else objective.forward(x, 0.0, POWERS[0])
    return y if trial is None else _firm(barrier, objective, objective.point(trial), y)


def _firm(barrier: Barrier, objective: Objective, boundary: Array, y: Array) -> Array:
    """A point on the boundary raised until it is strictly feasible, else y."""
    for slack in SLACK:
        point = objective.raised(boundary, slack)
        if float(barrier.cost @ point) < float(barrier.cost @ y) and barrier.factorize(point) is not None:
            return point
    return y
