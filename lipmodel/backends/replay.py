"""Points that were recorded, instead of a solver: everything behind a solver can be run again, in no time.

    recorder = Recorder("clarabel")
    lm.solve(net, "geolip", backend=recorder)
    recorder.save("points.json")
    lm.solve(net, "geolip", backend=Replay.read("points.json"))     # the same answer, and no solver runs

A point is found by what the model states, not by its name. It is trusted as little as a solver's. Families are recorded
with jobs=1: what other processes solve is not seen here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from lipmodel.backends.base import Availability, Backend, Capabilities, Installed, Point, SolveOptions, Termination
from lipmodel.errors import UsageError
from lipmodel.model.forms import QuadraticForm

if TYPE_CHECKING:
    from lipmodel.model.model import Model

SCHEMA = "lipmodel/replay/1"
CLOSE = 1e-9
"""Relative difference of two sums of coefficients that are the same up to the order in which a library adds."""


class Recorder:
    """A backend that passes models on to another one, and remembers the points that come back."""

    def __init__(self, backend: str | Backend) -> None:
        from lipmodel.backends import backend as find_backend

        self.solver = find_backend(backend)
        self.name = self.solver.name
        self.description = f"records what {self.name} returns"
        self.capabilities: Capabilities = self.solver.capabilities
        self.records: list[dict[str, Any]] = []

    def available(self) -> Availability:
        return self.solver.available()

    def refuses(self, model: Model) -> str | None:
        return self.solver.refuses(model)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        point = self.solver.solve(model, options)
        key, weight = _identity(model)
        self.records.append({"model": key, "weight": weight.hex(), **_written(model, point)})
        return point

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all points as JSON, numbers in hexadecimal. Raises UsageError."""
        from lipmodel.result import write_atomically

        content = {"schema": SCHEMA, "backend": self.name, "feasible": self.capabilities.feasible}
        write_atomically(path, json.dumps({**content, "points": self.records}, indent=1) + "\n")


class Replay:
    """A backend that answers with recorded points, and has none for a model that it has never seen."""

    name = "replay"
    description = "recorded points, no solver"

    def __init__(self, recorded: Mapping[str, Any]) -> None:
        """recorded: what `Recorder.save` writes. Raises UsageError where it is something else."""
        if not isinstance(recorded, Mapping) or recorded.get("schema") != SCHEMA:
            raise UsageError(f"not recorded points: expected the schema {SCHEMA!r}")
        self.capabilities = Capabilities(
            cones=frozenset({"psd", "soc", "rsoc", "nonnegative", "zero"}),
            on_request=True,
            feasible=bool(recorded.get("feasible", False)),
        )
        try:
            self.points: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
            for record in recorded["points"]:
                entry = (float.fromhex(record["weight"]), record)
                self.points.setdefault(record["model"], []).append(entry)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"not recorded points: {type(error).__name__}: {error}") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Replay:
        """The recorded points of a file. Raises UsageError."""
        try:
            return cls(json.loads(Path(path).read_text()))
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read recorded points from {path}: {error}") from error

    def available(self) -> Availability:
        return Installed()

    def refuses(self, model: Model) -> str | None:
        return None if self._found(model) is not None else "no point was recorded for it"

    def solve(self, model: Model, options: SolveOptions) -> Point:
        record = self._found(model)
        if record is None:
            return Point(values=None, termination="failed", message="no point was recorded for this model")
        return _read(model, record)

    def _found(self, model: Model) -> Mapping[str, Any] | None:
        key, weight = _identity(model)
        for other, record in self.points.get(key, ()):
            if abs(weight - other) <= CLOSE * max(abs(weight), abs(other)):
                return record
        return None


def _identity(model: Model) -> tuple[str, float]:
    """A digest of the shape of what the model states, and a weighted sum of its coefficients."""
    digest = hashlib.sha256()
    weight = 0.0
    index = {v: k for k, v in enumerate(model.variables)}

    def take(*what: Any) -> None:
        digest.update(repr(what).encode())

    for v in model.variables:
        take(v.name, v.size, v.nonnegative, v.order)
    functions = [model.objective, *(c.function for c in model.constraints)]
    take(model.bound, [str(c.set) for c in model.constraints])
    for number, function in enumerate(functions):
        if isinstance(function, QuadraticForm):
            place = {s: k for k, s in enumerate(function.signals)}
            take(number, [s.size for s in function.signals])
            for t in (t for term in function.terms for t in term.triplets()):
                entries = np.abs(t.value) * (1.0 + np.sin(t.row + 3.0 * t.col + 7.0 * t.index))
                weight += (1.0 + place[t.block[0]] + 2.0 * place[t.block[1]]) * float(entries.sum())
        elif function is not None:
            take(number, sorted(index[v] for v in function.coefficients))
            for k in (*function.coefficients.values(), function.constant):
                weight += (1.0 + number) * float(abs(k).sum())
    return digest.hexdigest(), weight


def _written(model: Model, point: Point) -> dict[str, Any]:
    values = None
    if point.values is not None:
        values = {v.name: [float(x).hex() for x in point.values[v]] for v in model.variables}
    numbers = {"objective": point.objective, "lower": point.lower}
    return {
        "values": values,
        "termination": point.termination,
        **{name: None if value is None else float(value).hex() for name, value in numbers.items()},
        "iterations": point.iterations,
        "message": point.message,
    }


def _read(model: Model, record: Mapping[str, Any]) -> Point:
    """The point of a record; whatever does not fit the model makes it a failed one."""
    try:
        termination = record["termination"]
        if termination not in get_args(Termination):
            raise ValueError(termination)
        values = None
        if record["values"] is not None:
            values = {v: np.array([float.fromhex(x) for x in record["values"][v.name]]) for v in model.variables}
            if any(x.shape != (v.size,) for v, x in values.items()):
                raise ValueError("the sizes of the variables")
        numbers = {
            name: None if record[name] is None else float.fromhex(record[name]) for name in ("objective", "lower")
        }
        if any(x is not None and not math.isfinite(x) for x in numbers.values()):
            raise ValueError("an objective that is not finite")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return Point(values=None, termination="failed", message=f"the recorded point does not fit ({error})")
    return Point(
        values=values,
        termination=termination,
        objective=numbers["objective"],
        lower=numbers["lower"],
        iterations=record.get("iterations"),
        message=str(record.get("message", "")),
    )
