"""What is checked of a point: its shapes, its numbers, and, where it is called optimal, the constraints."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lipmodel.backends.base import Backend, Point
from lipmodel.model.forms import QuadraticForm
from lipmodel.model.model import Model
from lipmodel.model.sets import Nonnegative, Zero

Array = np.ndarray[Any, Any]
TERMINATIONS = ("optimal", "inaccurate", "time-limit", "iteration-limit", "interrupted", "failed")
UNFINISHED = 1e-3
"""How far, relatively, a point may be from satisfying its constraints where the solver says it is optimal."""
SETTLED = 1e-9
"""Differences of objectives that are none, where the optimum is about zero."""


def tolerance_of(backend: Backend) -> float:
    """The relative accuracy that is asked of a backend."""
    return max(1e-6, 10.0 * backend.capabilities.precision)


def check_point(model: Model, point: Point, backend: Backend) -> None:
    """Shapes, finite numbers, an objective that is that of the values, and, if optimal, constraints that hold."""
    assert point.termination in TERMINATIONS, f"unknown termination {point.termination!r}"
    for value in (point.objective, point.lower):
        assert value is None or math.isfinite(value), "an objective is finite or absent"
    if point.values is None:
        assert point.termination != "optimal", "an optimum comes with a point"
        return
    assert set(point.values) == set(model.variables), "a point has all variables of the model, and no others"
    for v, x in point.values.items():
        assert np.shape(x) == (v.size,), f"{v!r} has a value of shape {np.shape(x)}"
        assert np.all(np.isfinite(x)), f"{v!r} has a value that is not finite"
    if point.termination != "optimal":
        return
    tolerance = tolerance_of(backend)
    assert model.objective is not None
    assert point.objective is not None, "an optimum comes with its objective"
    value = float(model.objective.value(point.values)[0])
    scale = max(abs(value), abs(point.objective))
    assert abs(value - point.objective) <= 10.0 * tolerance * scale + SETTLED, (
        f"objective {point.objective!r}, at the point {value!r}"
    )
    if point.lower is not None:
        assert point.lower <= point.objective + 10.0 * tolerance * scale + SETTLED, (
            "the lower estimate is below the objective"
        )
    _check_constraints(model, point.values)


def _check_constraints(model: Model, values: Any) -> None:
    for v in model.variables:
        if v.nonnegative:
            least = float(np.min(values[v]))
            assert least >= -UNFINISHED * float(np.max(np.abs(values[v]))) - 1e-9, f"{v!r} is negative: {least!r}"
    for c in model.constraints:
        if isinstance(c.function, QuadraticForm):
            if c.function.signals:
                _check_matrix(c.function, values)
        elif isinstance(c.set, Nonnegative | Zero):
            value, size = c.function.value(values), _moduli(c.function, values)
            wrong = np.abs(value) if isinstance(c.set, Zero) else -value
            assert np.all(wrong <= UNFINISHED * size + 1e-9), f"a vector is not {c.set}: {value!r}"


def _moduli(function: Any, values: Any) -> Array:
    total = np.abs(function.constant)
    for v, k in function.coefficients.items():
        total = total + abs(k) @ np.abs(values[v])
    return np.asarray(total)


def _check_matrix(form: QuadraticForm, values: Any) -> None:
    matrix, moduli = matrix_at(form, values), matrix_at(form, values, modulus=True)
    size = np.sqrt(np.maximum(np.diag(moduli), 1e-300))
    least = float(np.linalg.eigvalsh(matrix / np.outer(size, size))[0])
    assert least >= -UNFINISHED, f"a matrix inequality is violated: {least!r} of its own size"


def matrix_at(form: QuadraticForm, values: Any, *, modulus: bool = False) -> Array:
    """The symmetric matrix of a form at a point; with modulus=True the sum of the moduli of all contributions."""
    offsets, order = {}, 0
    for s in form.signals:
        offsets[s] = order
        order += s.size
    lower = np.zeros((order, order))
    for term in form.terms:
        for t in term.triplets():
            weight = t.value if t.variable is None else t.value * np.asarray(values[t.variable])[t.index]
            rows, cols = offsets[t.block[0]] + t.row, offsets[t.block[1]] + t.col
            np.add.at(lower, (np.maximum(rows, cols), np.minimum(rows, cols)), np.abs(weight) if modulus else weight)
    return lower + np.tril(lower, -1).T
