"""One solve of a conic program: settings, compilation, the solver, and an honest point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lipmodel.backends.base import Backend, Point, SolveOptions, Termination
from lipmodel.backends.conic import Task, task
from lipmodel.backends.settings import Settings, read_settings

if TYPE_CHECKING:
    from lipmodel.bridges.plan import ProgramDuals
    from lipmodel.model.model import Model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What a solver says about a conic program: y of shape (n,) or None, objectives in units of the scaled cost.

    duals: of the constraints, for the scaled cost, where the solver's are read.
    """

    x: Any
    termination: Termination
    objective: float = float("nan")
    lower: float = float("nan")
    iterations: int | None = None
    message: str = ""
    duals: ProgramDuals | None = None


def solve_conic(
    backend: Backend,
    model: Model,
    options: SolveOptions,
    run: Callable[[Task, Settings], Answer],
    known: Mapping[str, Any] | None = None,
) -> Point:
    """Compile the model for the backend, let `run` call its solver, and read the answer.

    known: the solver's own settings with defaults, see `read_settings`. Raises UsageError for wrong settings and
    whatever `run` raises; a program that is out of time or out of the range of floats never reaches it.
    """
    settings = read_settings(backend.name, backend.capabilities, options, known)
    work = task(model, options, backend.capabilities)
    if work.time_left is not None and work.time_left <= 0.0:
        return Point(values=None, termination="time-limit", message="no time left to solve in")
    if not work.is_finite():
        return Point(values=None, termination="failed", message="coefficients out of the range of floats")
    answer = run(work, settings)
    if answer.x is None:
        # a solver that is done and has nothing to show for it has failed
        ended: Termination = "failed" if answer.termination in ("optimal", "inaccurate") else answer.termination
        return Point(values=None, termination=ended, iterations=answer.iterations, message=answer.message)
    return work.point(
        answer.x,
        answer.termination,
        answer.objective,
        answer.lower,
        iterations=answer.iterations or 0,
        message=answer.message,
        duals=answer.duals,
    )
