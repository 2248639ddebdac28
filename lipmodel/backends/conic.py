"""What backends for general conic programs share: the scaled program and an honest point."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.backends.base import Capabilities, Point, Progress, SolveOptions, Termination

if TYPE_CHECKING:
    from lipmodel.bridges.plan import Compiled, ProgramDuals
    from lipmodel.bridges.program import ConeProgram
    from lipmodel.bridges.standard import StandardProgram
    from lipmodel.model.model import Model

Array = np.ndarray[Any, Any]
SETTLED = 1e-11
"""A gap this small, in units of the scaled cost, is none: what an optimum of zero is measured by."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A model ready for a conic solver: the program, the unit of its cost, and the seconds that are left."""

    compiled: Compiled
    unit: float
    time_left: float | None
    tol: float

    @property
    def program(self) -> ConeProgram:
        """What the solver gets; auxiliary variables are at the end."""
        return self.compiled.program

    @property
    def cost(self) -> Array:
        return self.program.cost / self.unit

    @property
    def standard(self) -> StandardProgram:
        """The dual in standard form, with the scaled cost."""
        from lipmodel.bridges.standard import StandardProgram

        return StandardProgram(geometric=replace(self.program, cost=self.cost))

    def is_finite(self) -> bool:
        """Whether all coefficients are in the range of floats."""
        p = self.program
        parts = [p.cost, p.ineq.data, p.ineq_rhs, p.eq.data, p.eq_rhs, *(block.value for block in p.psd)]
        parts += [part for block in p.soc for part in (block.matrix.data, block.rhs)]
        return all(bool(np.all(np.isfinite(part))) for part in parts)

    def point(
        self,
        x: Any,
        termination: Termination,
        objective: float,
        lower: float,
        *,
        iterations: int,
        message: str,
        duals: ProgramDuals | None = None,
    ) -> Point:
        """The model's point from a solver's vector and its primal and dual objective, in units of the scaled cost.

        "optimal" is what has a gap within the tolerance, whatever the solver called it.
        """
        values = np.asarray(x, dtype=np.float64)
        finished = termination in ("optimal", "inaccurate")
        if termination == "failed" or values.shape != (self.program.size,) or not bool(np.all(np.isfinite(values))):
            ended: Termination = "failed" if finished else termination
            return Point(values=None, termination=ended, iterations=iterations, message=message)
        if finished:
            gap = abs(objective - lower)
            termination = "optimal" if gap <= self.tol * abs(objective) + SETTLED else "inaccurate"
        return Point(
            values=self.compiled.values(values),
            termination=termination,
            objective=self._in_model(objective),
            lower=self._in_model(lower),
            iterations=iterations,
            message=message,
            plan=str(self.compiled.plan),
            duals=None if duals is None else self.compiled.duals(_times(self.unit, duals)),
        )

    def progress(self, *, iteration: int, objective: float, lower: float, seconds: float) -> Progress:
        """A state of the solver, from its primal and dual objective in units of the scaled cost."""
        values = [float(value) * self.unit + self.program.offset for value in (objective, lower)]
        return Progress(iteration=iteration, objective=values[0], lower=values[1], seconds=seconds)

    def _in_model(self, value: float) -> float | None:
        number = float(value) * self.unit + self.program.offset
        return number if np.isfinite(number) else None


def _times(unit: float, duals: ProgramDuals) -> ProgramDuals:
    """The duals for a cost in the units of the model."""
    return replace(
        duals,
        psd=[unit * y for y in duals.psd],
        ineq=unit * duals.ineq,
        eq=unit * duals.eq,
        soc=[unit * w for w in duals.soc],
    )


GENERAL = Capabilities(cones=frozenset({"psd", "nonnegative", "zero"}))


def task(model: Model, options: SolveOptions, capabilities: Capabilities = GENERAL) -> Task:
    """The model in the cones and the form of a solver. Raises LipmodelError where it is too large or no plan exists."""
    from lipmodel.bridges.plan import compile_model

    started = time.monotonic()
    compiled = compile_model(model, capabilities)
    left = None if options.time_limit is None else options.time_limit - (time.monotonic() - started)
    unit = float(np.abs(compiled.program.cost).max(initial=0.0)) or 1.0
    return Task(compiled=compiled, unit=unit, time_left=left, tol=options.tol)


def refusal(model: Model, capabilities: Capabilities = GENERAL) -> str | None:
    """Why a solver that needs all coefficients cannot take the model, even reduced, or None."""
    from lipmodel.bridges.plan import reason_against

    return reason_against(model, capabilities)
