"""Which backend solves a model, and what it gives back: a point or the reason why there is none."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from lipmodel.backends import backend as find_backend
from lipmodel.backends import backend_names
from lipmodel.backends.base import Backend, Installed, Point, Progress, SolveOptions
from lipmodel.certify.extract import sound_point
from lipmodel.errors import BackendUnavailable, UsageError
from lipmodel.model.model import Model
from lipmodel.prover import Prover

if TYPE_CHECKING:
    from lipmodel.member import Run

MAX_ORDER = 20_000
"""Orders of the matrix inequality beyond which no proof of it is attempted."""


def choose_backend(model: Model, without: Collection[str] = ()) -> tuple[Backend | None, list[tuple[str, str]]]:
    """The first backend that takes the model at its size, and why those before it do not; some may be left out."""
    refusals: list[tuple[str, str]] = []
    sizes: dict[bool, int] = {}
    for name in backend_names():
        if name in without:
            refusals.append((name, "it found no point"))
            continue
        candidate = find_backend(name, usable=False)
        if candidate.capabilities.on_request:
            refusals.append((name, "it is used where it is asked for"))
            continue
        state = candidate.available()
        if not isinstance(state, Installed):
            refusals.append((name, str(state)))
            continue
        refusal = _refusal(candidate, model)
        if refusal is not None:
            refusals.append((name, refusal))
            continue
        limit, structured = candidate.capabilities.max_order, candidate.capabilities.structured
        if structured not in sizes:
            sizes[structured] = _order(model, reduced=not structured)
        if sizes[structured] <= limit:
            return candidate, refusals
        refusals.append((name, f"order {sizes[structured]} is above {limit}, its limit unless it is asked for"))
    return None, refusals


def _order(model: Model, *, reduced: bool) -> int:
    """The order of the model's largest matrix inequality, as stated or after the exact reductions."""
    order = max(model.sizes().psd, default=0)
    if not reduced or order > MAX_ORDER:
        return order
    from lipmodel.bridges.scaling import prepare

    try:
        return max(prepare(model).model.sizes().psd, default=0)
    except Exception:  # a model that cannot be reduced is solved as it stands, or not at all
        return order


def _refusal(candidate: Backend, model: Model) -> str | None:
    """Why a backend does not take a model; one whose own check of it fails does not take it."""
    try:
        return candidate.refuses(model)
    except Exception as error:
        return f"its check of the model failed ({type(error).__name__}: {error})"


def find_point(model: Model, prover: Prover, run: Run, time_limit: float | None) -> tuple[Point, Backend | None]:
    """A solver's point and the solver, or none: a failure is a termination, never an exception.

    Where no backend was asked for, the next one is tried after one that finds nothing.
    """
    if run.backend is not None:
        refusal = _refusal(run.backend, model)
        if refusal is not None:
            raise UsageError(f"the backend {run.backend.name!r} does not take this model: {refusal}")
        return _solved(model, run.backend, prover, run, time_limit), run.backend
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    tried: list[str] = []
    while True:
        chosen, refusals = choose_backend(model, tried)
        if chosen is None:
            why = "; ".join(f"{name}: {reason}" for name, reason in refusals)
            run.say(f"no backend takes this model ({why}): closed-form multipliers instead")
            return Point(values=None, termination="failed" if tried else "closed-form", message=why), None
        left = None if time_limit is None else deadline - time.monotonic()
        point = _solved(model, chosen, prover, run, left)
        if point.values is not None or point.termination != "failed":
            return point, chosen
        tried.append(chosen.name)


def _solved(model: Model, chosen: Backend, prover: Prover, run: Run, time_limit: float | None) -> Point:
    """The point of one backend."""
    if run.interrupted:
        return Point(values=None, termination="interrupted")
    if time_limit is not None and time_limit < 1e-3:
        return Point(values=None, termination="time-limit")
    options = SolveOptions(
        tol=run.tol,
        time_limit=time_limit,
        verbose=run.verbose,
        native=run.native,
        progress=_watched(model, prover, run.progress),
    )
    with run.clock.stage("solve"):
        try:
            point = sound_point(model, chosen.solve(model, options))
        except (BackendUnavailable, UsageError):
            raise
        except KeyboardInterrupt:
            run.interrupted = True
            run.say("interrupted: proving what there is")
            return Point(values=None, termination="interrupted")
        except BaseException as error:  # a panic of a solver written in Rust is no Exception
            run.say(f"{chosen.name} failed ({type(error).__name__}: {error})")
            return Point(values=None, termination="failed", message=str(error))
    if point.termination == "interrupted":
        run.interrupted = True
        run.say("interrupted: proving what there is")
    return point


def _watched(
    model: Model, prover: Prover, progress: Callable[[Progress], None] | None
) -> Callable[[Progress], None] | None:
    """What a solver reports to, which proves its improvements and passes them on; None where nobody listens."""
    if progress is None:
        return None
    observe = prover.watch(model)
    return lambda state: progress(observe(state))
