"""Descent on the logarithm of the bound, by L-BFGS: what improves a first point at once, and what fits any memory.

The objective is the logarithm of the bound plus a barrier, weight (logdet of the diagonal - logdet of the matrix),
which does not depend on units; the weight falls from stage to stage. A step costs a factorisation and a gradient of
the chain or of the fronts, and no array of the square of all unknowns. It gives no lower bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lipmodel.backends.native.chain import Array, Status
from lipmodel.backends.native.follower import Barrier, Outcome
from lipmodel.backends.native.lbfgs import Pair, quasi_newton

STAGES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5)
"""Weights of the whole barrier: with the k-th, the logarithm of the bound is within about so much of its least."""

SETTLED = 1e-3  # share of a weight by which a step must fall, or the next stage begins
POWERS = (32.0, 1e5)  # least and largest power of the mean that stands for a largest eigenvalue
PAIRS = 20  # of L-BFGS
LONGEST = 3.0  # of a step, in any logarithm
SHOWN = 1e-6  # relative, of what is reported above the boundary
SLACK = (3e-8, 3e-7, 3e-6, 3e-5, 3e-4, 3e-3)  # the same of what is returned, until it is strictly feasible


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


def descend(
    objective: Objective,
    x: Array,
    *,
    deadline: float,
    report: Callable[[Array], bool],
    first: float = STAGES[0],
    least: float = STAGES[-1],
) -> Descent:
    """Minimise from x through the stages from the weight `first` down to `least`.

    report(y), y on the boundary, is called after every improvement, and ends the descent where it returns False.
    """
    best: Array | None = None
    level = math.inf
    status: Status = "inaccurate"
    pairs: list[Pair] = []
    try:
        for stage in (stage for stage in STAGES if least <= stage <= first):
            power = min(max(30 / stage, POWERS[0]), POWERS[1])
            for trial in _minimise(objective, x, stage / objective.neurons, power, SETTLED * stage, pairs, deadline):
                x = trial.x
                if trial.level < level:
                    best, level = objective.point(trial), trial.level
                    if not report(best):
                        status = "interrupted"
                if time.monotonic() > deadline:
                    status = "time-limit"
                if status != "inaccurate":
                    return Descent(y=best, status=status)
    except KeyboardInterrupt:
        status = "interrupted"
    except (MemoryError, np.linalg.LinAlgError):
        status = "inaccurate"
    return Descent(y=best, status=status)


def _minimise(
    objective: Objective,
    x: Array,
    weight: float,
    power: float,
    settled: float,
    pairs: list[Pair],
    deadline: float,
) -> Iterator[Trial]:
    """Trials of falling value, from the one at x on, until a step falls by less than `settled`.

    pairs: steps and changes of the gradient, which is read and added to.
    """
    trial = objective.forward(x, weight, power)
    if trial is None:
        return
    gradient = objective.gradient(trial)
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
            del pairs[:-PAIRS]
        fall = trial.value - moved.value
        trial, gradient = moved, after
        yield trial
        if fall < settled:
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
