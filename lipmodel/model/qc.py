"""Quadratic constraints that hold for every pair of points of a network: the inequalities a formulation may use."""

from __future__ import annotations

from typing import Any

import numpy as np

from lipmodel.errors import UsageError
from lipmodel.model.forms import QuadraticForm
from lipmodel.model.terms import Factored, Rule
from lipmodel.model.variables import Expression, as_expression
from lipmodel.network.increments import SlopeRestricted


def slope_restricted(activation: Any, multiplier: Any) -> QuadraticForm:
    """2 sum_j t_j (w_j - alpha_j v_j)(beta_j v_j - w_j) >= 0, for w = phi(v) with slopes in [alpha, beta].

    multiplier: t, one entry per neuron (shape (size,)) or a single one; only diagonal multipliers are valid for
    activations that act on different increments (Fazlyab, Robey, Hassani, Morari & Pappas 2019, arXiv 1906.04893, with
    the correction of Pauli, Koch, Berberich, Kohler & Allgower 2022, arXiv 2005.02929). Where neurons act in groups
    (`activation.groups`, of Softmax for example) it holds for the sums over groups only, so that t must be the same all
    over a group, as that of `Model.multiplier` is. Raises UsageError.
    """
    if not isinstance(activation, SlopeRestricted):
        kind = type(activation).__name__
        raise UsageError(f"slope_restricted is about an activation of the system (system.activations), not a {kind}")
    v, w = activation.pre, activation.post
    weight = as_expression(multiplier, activation.signal.size) * 2.0
    if activation.groups is not None and not _even(weight, activation.groups):
        raise UsageError(
            f"the neurons of {activation.name!r} act in groups (activation.groups), and each group has one multiplier: "
            "use m.multiplier(activation)"
        )
    above = w - activation.alpha * v
    below = activation.beta * v - w
    return QuadraticForm(
        terms=(Factored(weight=weight, left=above, right=below, rule=Rule(kind="slope", subject=activation)),)
    )


def _even(weight: Expression, groups: np.ndarray[Any, Any]) -> bool:
    """Whether an expression is the same all over every group."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    like = first[group]
    same = all((k != k[like]).nnz == 0 for k in weight.coefficients.values())
    return same and bool(np.array_equal(weight.constant, weight.constant[like]))
