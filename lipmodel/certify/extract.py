"""From what a backend returned to the multipliers that are certified, and to what the model assumed beyond them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from lipmodel.backends.base import Point, Termination
from lipmodel.certify.lmi import Multipliers
from lipmodel.model.model import Model
from lipmodel.model.terms import Factored, Term
from lipmodel.model.variables import Variable
from lipmodel.network.increments import IncrementSystem

Array = np.ndarray[Any, Any]


def sound_point(model: Model, returned: Any) -> Point:
    """What a backend returned, reduced to what may be read: whatever else it is, is left out.

    values: float64 vectors for all variables of the model, of their sizes (any numbers), else None. objective, lower:
    finite, else None. An unknown termination counts as "failed".
    """
    terminations: tuple[Termination, ...] = get_args(Termination)
    said = getattr(returned, "termination", None)
    return Point(
        values=_vectors(model, getattr(returned, "values", None)),
        termination=next((t for t in terminations if isinstance(said, str) and t == said), "failed"),
        objective=_finite(getattr(returned, "objective", None)),
        lower=_finite(getattr(returned, "lower", None)),
        message=str(getattr(returned, "message", "")),
        plan=str(getattr(returned, "plan", "")),
    )


def _vectors(model: Model, values: Any) -> dict[Variable, Array] | None:
    if not isinstance(values, Mapping):
        return None
    vectors: dict[Variable, Array] = {}
    for variable in model.variables:
        try:
            vector = np.asarray(values.get(variable))
        except (TypeError, ValueError):
            return None
        if vector.dtype.kind not in "fiu" or vector.shape != (variable.size,):
            return None
        vectors[variable] = vector.astype(np.float64)
    return vectors


def _finite(value: Any) -> float | None:
    number = isinstance(value, int | float | np.floating | np.integer) and math.isfinite(value)
    return float(value) if number else None


def extract(model: Model, system: IncrementSystem, values: Mapping[Variable, Array]) -> tuple[Multipliers, list[Term]]:
    """The multipliers (t, g, s) of the kernel's inequality, read off the rules of the terms, and the terms of no rule.

    The multipliers are the model's own evaluated weights, of whatever sign; they are mended and proved later. Several
    matrix constraints are added up. Terms of no rule are what the formulation stated by itself.
    """
    t = {a.signal: np.zeros(a.size) for a in system.activations}
    g = np.zeros(system.input.size)
    s = np.zeros(system.output.size)
    coupling = np.zeros(system.output.size)
    squares = np.zeros(system.output.size)
    own: list[Term] = []
    for form in model.matrix_constraints:
        for term in form.terms:
            rule = term.rule
            if rule is not None and rule.kind in ("pair", "pair-cone"):
                continue  # proved by a rule of their own, or left out
            if rule is None or not isinstance(term, Factored):
                own.append(term)
                continue
            weight = term.weight.value(values)
            if rule.kind == "slope" and getattr(rule.subject, "signal", None) in t:
                t[rule.subject.signal] -= 0.5 * weight
            elif rule.kind == "ball-input" and len(weight) == len(g):
                g += weight
            elif rule.kind == "ball-dual" and len(weight) == len(s):
                s += weight
            elif rule.kind == "output-dual" and len(weight) == len(s):
                coupling -= 0.5 * weight
            elif rule.kind == "output-output" and len(weight) == len(s):
                squares -= weight
            else:
                own.append(term)
    return Multipliers(t=tuple(t[a.signal] for a in system.activations), g=g, s=_slack(s, coupling, squares)), own


def _slack(s: Array, coupling: Array, squares: Array) -> Array:
    """s of the inequality: with sigma d^2 - 2 c d y it is sigma / c^2, with - c y^2 it is 1 / c."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if np.any(coupling):
            return np.asarray(np.where(coupling != 0.0, s / coupling**2, 0.0))
        return np.asarray(np.where(squares > 0.0, 1.0 / squares, 0.0))
