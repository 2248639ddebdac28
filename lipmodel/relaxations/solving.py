"""A point of a relaxation from whichever backend takes it; nothing depends on its being right."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lipmodel.errors import BackendUnavailable, UsageError

if TYPE_CHECKING:
    import numpy as np

    from lipmodel.backends.base import Backend, Point
    from lipmodel.model.model import Model
    from lipmodel.model.variables import Variable

    Array = np.ndarray[Any, Any]

SHARE = 0.7
"""Of the time that is left, what a solver may take; the rest is for the proof."""
INTERIOR = {"solver": "ipm", "run_crossover": "off"}
"""How HiGHS solves highly degenerate programs: several times faster, and no vertex is needed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solved:
    """Values of the model's variables, and how they were found."""

    values: Mapping[Variable, Array]
    point: Point
    backend: str


def points(model: Model, backend: Backend | str | None, deadline: float, tol: float) -> Iterator[Solved]:
    """Points of backends, one after the other, until the deadline (on the clock of `time.monotonic`).

    Without a backend, those that take the model are asked in turn. Raises UsageError where the one asked for does not.
    """
    from lipmodel.backends import backend as find_backend
    from lipmodel.choice import choose_backend

    if backend is not None:
        chosen = find_backend(backend)
        if (refusal := chosen.refuses(model)) is not None:
            raise UsageError(f"the backend {chosen.name!r} does not take this relaxation: {refusal}")
        if (only := _asked(model, chosen, deadline, tol)) is not None:
            yield only
        return
    tried: list[str] = []
    while time.monotonic() < deadline:
        next_one, _ = choose_backend(model, tried)
        if next_one is None:
            return
        if (found := _asked(model, next_one, deadline, tol)) is not None:
            yield found
        tried.append(next_one.name)


def _asked(model: Model, backend: Backend, deadline: float, tol: float) -> Solved | None:
    from lipmodel.backends.base import SolveOptions
    from lipmodel.certify.extract import sound_point

    left = deadline - time.monotonic()
    if left <= 0.0:
        return None
    limit = None if math.isinf(left) else SHARE * left
    native = INTERIOR if backend.name == "highs" else {}
    try:
        point = sound_point(model, backend.solve(model, SolveOptions(tol=tol, time_limit=limit, native=native)))
    except (BackendUnavailable, UsageError):
        raise
    except Exception:  # a solver that breaks off has found nothing
        return None
    if point.values is None:
        return None
    return Solved(values=point.values, point=point, backend=backend.name)
