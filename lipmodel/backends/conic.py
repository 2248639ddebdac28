"""What backends for general conic programs share: the scaled program, checked options, and an honest point."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.backends.base import Point, SolveOptions, Termination
from lipmodel.errors import UsageError

if TYPE_CHECKING:
    from lipmodel.bridges.program import ConeProgram
    from lipmodel.bridges.scaling import Prepared
    from lipmodel.model.model import Model

Array = np.ndarray[Any, Any]
SETTLED = 1e-11
"""A gap this small, in units of the scaled cost, is none: what an optimum of zero is measured by."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A model ready for a conic solver: the scaled program, the unit of its cost, and the seconds that are left."""

    prepared: Prepared
    program: ConeProgram
    unit: float
    time_left: float | None
    tol: float

    @property
    def cost(self) -> Array:
        return self.program.cost / self.unit

    def is_finite(self) -> bool:
        """Whether all coefficients are in the range of floats."""
        p = self.program
        parts = (p.cost, p.ineq.data, p.ineq_rhs, p.eq.data, p.eq_rhs, *(block.value for block in p.psd))
        return all(bool(np.all(np.isfinite(part))) for part in parts)

    def point(
        self, x: Any, termination: Termination, objective: float, lower: float, *, iterations: int, message: str
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
            values=self.prepared.restore(self.program.values(values)),
            termination=termination,
            objective=self._in_model(objective),
            lower=self._in_model(lower),
            iterations=iterations,
            message=message,
        )

    def _in_model(self, value: float) -> float | None:
        number = float(value) * self.unit + self.program.offset
        return number if np.isfinite(number) else None


def task(model: Model, options: SolveOptions) -> Task:
    """Scale and expand a model. Raises LipmodelError where it is too large."""
    from lipmodel.bridges.program import cone_program
    from lipmodel.bridges.scaling import prepare

    started = time.monotonic()
    prepared = prepare(model)
    program = cone_program(prepared.model)
    left = None if options.time_limit is None else options.time_limit - (time.monotonic() - started)
    unit = float(np.abs(program.cost).max(initial=0.0)) or 1.0
    return Task(prepared=prepared, program=program, unit=unit, time_left=left, tol=options.tol)


def refusal(model: Model) -> str | None:
    """Why a solver that needs all coefficients cannot take the model, even reduced, or None."""
    from lipmodel.bridges.program import MAX_COEFFICIENTS, too_large
    from lipmodel.bridges.scaling import prepare

    excess = too_large(model)
    if excess is None or max(model.sizes().psd) ** 2 > MAX_COEFFICIENTS:
        return excess
    return too_large(prepare(model).model)


def check_options(backend: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The options, of the types of the solver's own defaults `known`. Raises UsageError, naming what there is."""
    checked = {}
    for key, value in given.items():
        if key not in known:
            raise UsageError(f"the backend {backend!r} has no option {key!r}; its options: {', '.join(sorted(known))}")
        kind = type(known[key])
        wrong = UsageError(f"option {key} of {backend!r}: {value!r} is not a {kind.__name__} (default {known[key]!r})")
        if kind is bool and value not in (True, False):
            raise wrong
        try:
            checked[key] = kind(value)
        except (TypeError, ValueError):
            raise wrong from None
    return checked
