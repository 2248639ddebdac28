"""Which solver works on a program, and for how long: every one starts from the best point of those before it."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lipmodel.backends.native.ascent import Ascended, ascend
from lipmodel.backends.native.chain import Array, Chain
from lipmodel.backends.native.descent import STAGES, Objective, improved, tightened
from lipmodel.backends.native.elimination import chain_barrier
from lipmodel.backends.native.follower import Barrier, Outcome, follow_path
from lipmodel.backends.native.memory import chain_bytes, program_bytes
from lipmodel.backends.native.recursion import Recursion

if TYPE_CHECKING:
    from lipmodel.backends.native.launch import Launch
    from lipmodel.backends.native.structure import Structure

Report = Callable[[Outcome], bool]

LARGE = 200  # neurons from which a descent before the path follower saves more than it costs
FIRST, LAST = 0.3, STAGES[-1]  # weights of the barrier at which descent ends, before the path follower and alone
DEEP = 64  # layers from which ascent alone is slow more often than not
CLOSE = 0.03  # relative gap of the objective below which descent is left out
PASSES = 100  # forward passes of descent: the time that ascent is given on a deep network at first
FAST = 0.3  # share of the gap that may be left after twice the time, where ascent has to be fast
INSIDE = 0.01  # by which one end is raised where the path follower takes over, near the boundary as the point is
ZERO = 1e-40  # of the objective at the start: one as small as this is zero, and no relative gap would ever close


@dataclass(slots=True, kw_only=True, eq=False)
class _Best:
    """The best strictly feasible point and the best lower bound so far, and who is told of them."""

    barrier: Barrier
    objective: Objective | None
    y: Array
    deadline: float
    tell: Report
    lower: float = 0.0
    iterations: int = 0

    @property
    def value(self) -> float:
        return float(self.barrier.cost @ self.y)

    def report(self, iterations: int, y: Array, lower: float) -> bool:
        """Take in a point, a lower bound, and a count of iterations since the last `settle`; False ends the run."""
        self.lower = max(self.lower, lower)
        if float(self.barrier.cost @ y) < self.value:
            self.y = y
        return self.tell(self.outcome(iterations))

    def outcome(self, iterations: int = 0) -> Outcome:
        return Outcome(y=self.y, lower=self.lower, status="inaccurate", iterations=self.iterations + iterations)

    def settle(self, outcome: Outcome) -> Outcome:
        """Take in how a solver ended; the outcome of all so far."""
        self.lower = max(self.lower, outcome.lower)
        if float(self.barrier.cost @ outcome.y) < self.value:
            self.y = outcome.y
        self.iterations += outcome.iterations
        return replace(outcome, y=self.y, lower=self.lower, iterations=self.iterations)

    def ascend(
        self,
        solver: Callable[..., Ascended],
        *,
        tol: float,
        max_iterations: int,
        patient: bool = True,
        alone: bool = False,
    ) -> Outcome:
        """The low-rank ascent. patient: until it stops by itself, not just for a while and while the gap falls fast."""
        began = time.monotonic()
        deadline = self.deadline
        if not patient and self.objective is not None:
            self.objective.variables(self.y)
            now = time.monotonic()
            deadline = min(deadline, now + PASSES * (now - began))
        gaps: list[tuple[float, float]] = []
        slow = False

        def report(iterations: int, y: Array, lower: float, gap: float) -> bool:
            nonlocal slow
            now = time.monotonic() - began
            gaps.append((now, gap))
            slow = not patient and any(2 * then < now and gap > FAST * before for then, before in gaps)
            return self.report(iterations, y, lower) and not slow

        found = solver(tol=tol, deadline=deadline, max_iterations=max_iterations, report=report, alone=alone)
        y = self.y if found.y is None else found.y
        given_up = (slow and found.status == "interrupted") or (
            found.status == "time-limit" and time.monotonic() <= self.deadline
        )
        status = "inaccurate" if given_up else found.status
        return self.settle(Outcome(y=y, lower=found.lower, status=status, iterations=found.iterations))

    def descend(self, least: float, first: float = STAGES[0]) -> Outcome:
        """Down the stages of descent from the weight `first` to `least`, where it is not nearly there."""
        if self.objective is None or self.lower > (1 - CLOSE) * self.value:
            return self.outcome()
        found = improved(
            self.barrier,
            self.objective,
            self.y,
            deadline=self.deadline,
            report=lambda y: self.report(0, y, 0.0),
            first=first,
            least=least,
        )
        return self.settle(found)

    def follow(self, *, tol: float, max_iterations: int, fade: bool, target: float = -math.inf) -> Outcome:
        """The path follower, from a point a little further inside where the best one is near the boundary."""
        found = follow_path(
            self.barrier,
            self.y if self.objective is None else self.objective.raised(self.y, INSIDE),
            tol=tol,
            deadline=self.deadline,
            max_iterations=max(max_iterations - self.iterations, 1),
            report=lambda iterations, y, lower, gap: self.report(iterations, y, lower),
            target=target,
            lower=self.lower,
            fade=fade,
        )
        return self.settle(found)

    def finished(self, outcome: Outcome) -> Outcome:
        """The outcome of all, its multipliers at their best scale where there is time for it."""
        if outcome.status != "optimal" and self.objective is not None and time.monotonic() <= self.deadline:
            self.y = tightened(self.barrier, self.objective, self.y)
        return replace(outcome, y=self.y)


def solved_chain(
    chain: Chain, y: Array, *, tol: float, deadline: float, max_iterations: int, memory: int, report: Report
) -> Outcome:
    """The best point from the strictly feasible y on, to the relative gap `tol` on the root of the objective.

    memory: bytes that may be taken; the path follower is left out where it would take more. report is called at once
    and after every iteration, and ends the run where it returns False.
    """
    best = _Best(barrier=chain_barrier(chain), objective=Recursion(chain), y=y, deadline=deadline, tell=report)
    try:
        return best.finished(_chain_outcome(chain, best, tol, max_iterations, memory))
    except KeyboardInterrupt:
        return replace(best.outcome(), status="interrupted")
    except (MemoryError, np.linalg.LinAlgError):
        return best.outcome()


def _chain_outcome(chain: Chain, best: _Best, tol: float, max_iterations: int, memory: int) -> Outcome:
    if not best.report(0, best.y, 0.0):
        return replace(best.outcome(), status="interrupted")
    dense = chain_bytes(chain) <= memory
    patient = dense and len(chain.spans) < DEEP
    solver = functools.partial(ascend, chain)
    outcome = best.ascend(solver, tol=tol, max_iterations=max_iterations, patient=patient)
    if outcome.status == "inaccurate" and (chain.neurons >= LARGE or not dense):
        outcome = best.descend(FIRST)
    if outcome.status != "inaccurate":
        return outcome
    if dense:
        outcome = best.follow(tol=tol, max_iterations=max_iterations, fade=False)
    else:
        outcome = best.ascend(solver, tol=tol, max_iterations=max_iterations, alone=True)
    return best.descend(LAST, first=FIRST) if outcome.status == "inaccurate" else outcome


def solved_program(
    start: Launch,
    structure: Structure | None,
    *,
    tol: float,
    deadline: float,
    max_iterations: int,
    memory: int,
    report: Report,
) -> Outcome:
    """The same for any other program; the gap is on the objective or its root, as the program has it."""
    from lipmodel.backends.native.ascent_graph import NotLowRank, ascend_program
    from lipmodel.backends.native.graph import GraphRecursion, NotCovered

    barrier = start.barrier
    best = _Best(barrier=barrier, objective=None, y=start.y, deadline=deadline, tell=report)
    try:
        with contextlib.suppress(NotCovered):
            best.objective = None if structure is None else GraphRecursion(start, structure)
        if not best.report(0, start.y, 0.0):
            return replace(best.outcome(), status="interrupted")
        outcome = best.outcome()
        dense = program_bytes(start.program) <= memory
        if structure is not None:
            with contextlib.suppress(NotLowRank):
                solver = functools.partial(ascend_program, start, structure)
                outcome = best.ascend(solver, tol=tol, max_iterations=max_iterations, alone=not dense)
        if outcome.status == "inaccurate" and dense:
            fade = structure is None or bool(structure.extra) or not barrier.root
            outcome = best.follow(tol=tol, max_iterations=max_iterations, fade=fade, target=ZERO * best.value)
        if outcome.status == "inaccurate":
            outcome = best.descend(LAST)
        return best.finished(outcome)
    except KeyboardInterrupt:
        return replace(best.outcome(), status="interrupted")
    except (MemoryError, np.linalg.LinAlgError):
        return best.outcome()
