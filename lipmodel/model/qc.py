"""Quadratic constraints that hold for every pair of points of a network: the inequalities a formulation may use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import UsageError
from lipmodel.model.forms import LinearForm, QuadraticForm, Signal, add_forms, apply
from lipmodel.model.terms import Factored, Rule, lower_triangle
from lipmodel.model.variables import Expression, as_expression
from lipmodel.network.increments import SlopeRestricted
from lipmodel.network.linear import Selection

if TYPE_CHECKING:
    from lipmodel.model.model import Model


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


Neuron = tuple[SlopeRestricted, int]
"""An activation of the system and the number of a neuron in it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairTerms:
    """What the terms of pairs of neurons are about, so that they can be certified.

    couples: the pairs. weight: of the ten products of `zeta`, pair by pair, as stated; plain, flipped: the six entries
    below the diagonal of N_1 and of N_2.
    """

    couples: tuple[tuple[Neuron, Neuron], ...]
    weight: Expression
    plain: Expression
    flipped: Expression


def pairs(model: Model, couples: Sequence[tuple[Neuron, Neuron]]) -> QuadraticForm:
    """sum_c zeta_c' M_c zeta_c >= 0, zeta = (p_1, k_1, p_2, k_2) of two neurons, p = w - alpha v, k = beta v - w.

    couples: pairs ((activation, i), (activation, j)) of different neurons, of the same layer or not, that act by
    themselves (no groups). p and k of a neuron have one sign on increments, so that the form is nonnegative where both
    M and D M D, D = diag(1, 1, -1, -1), are a positive semidefinite plus an entrywise nonnegative matrix, which for
    order four is also necessary (Diananda 1962, Proc. Camb. Philos. Soc. 58:17). Adds to the model, per pair, the ten
    entries of M, two vectors of six nonnegative numbers, and two inequalities of order four. The constraint of one
    neuron is the case M = t (e_p e_k' + e_k e_p'). Raises UsageError.
    """
    checked = [_couple(c) for c in couples]
    if not checked:
        return QuadraticForm()
    if len({frozenset((a.signal, i) for a, i in c) for c in checked}) < len(checked):
        raise UsageError("a pair of neurons is listed twice")
    count = len(checked)
    cols, rows = lower_triangle(4)
    double, turned = np.where(rows == cols, 1.0, 2.0), np.where((rows < 2) == (cols < 2), 1.0, -1.0)
    entries = model.variable("M", 10 * count)
    plain = model.variable("N", 6 * count, nonnegative=True)
    flipped = model.variable("N_flipped", 6 * count, nonnegative=True)
    for c in range(count):
        for name, factors, nonnegative in (("P", double, plain), ("P_flipped", double * turned, flipped)):
            z = LinearForm.of(Signal(name=f"{name}_{c}", size=4))
            weight = _rest(c, count, factors, entries, nonnegative)
            cone = Factored(weight=weight, left=_chosen(z, rows), right=_chosen(z, cols), rule=Rule(kind="pair-cone"))
            model.require(QuadraticForm(terms=(cone,)) >= 0)
    zeta = signs([neuron for couple in checked for neuron in couple])
    every = 4 * np.repeat(np.arange(count), 10)
    weight = entries * np.tile(double, count)
    subject = PairTerms(couples=tuple(checked), weight=weight, plain=plain, flipped=flipped)
    left, right = (_chosen(zeta, every + np.tile(index, count)) for index in (rows, cols))
    return QuadraticForm(
        terms=(Factored(weight=weight, left=left, right=right, rule=Rule(kind="pair", subject=subject)),)
    )


def signs(neurons: Sequence[Neuron]) -> LinearForm:
    """(p_1, k_1, p_2, k_2, ...), p = w - alpha v and k = beta v - w of every neuron (activation, i) listed.

    On increments p and k of one neuron have one sign. Raises UsageError, also for neurons that act in groups.
    """
    places: dict[Signal, tuple[SlopeRestricted, list[tuple[int, int]]]] = {}
    for number, (activation, i) in enumerate(map(_neuron, neurons)):
        places.setdefault(activation.signal, (activation, []))[1].append((2 * number, i))
    parts = []
    for activation, at in places.values():
        row, neuron = (np.array(x) for x in zip(*at, strict=True))
        shape, ones = (2 * len(neurons), activation.size), np.ones(len(row))
        where = np.concatenate([row, row + 1]), np.concatenate([neuron, neuron])
        of_w = np.concatenate([ones, -ones])
        of_v = np.concatenate([-activation.alpha[neuron], activation.beta[neuron]])
        parts.append(sp.csr_array((of_w, where), shape=shape) @ activation.post)
        parts.append(sp.csr_array((of_v, where), shape=shape) @ activation.pre)
    if not parts:
        raise UsageError("no neuron is listed")
    return add_forms(parts)


def _couple(couple: Any) -> tuple[Neuron, Neuron]:
    """A pair of neurons, checked. Raises UsageError."""
    try:
        one, other = couple
    except (TypeError, ValueError):
        raise UsageError(f"a pair of neurons is ((activation, i), (activation, j)), not {couple!r:.200}") from None
    first, second = _neuron(one), _neuron(other)
    if first[0].signal is second[0].signal and first[1] == second[1]:
        raise UsageError("a pair is of two different neurons")
    return first, second


def _neuron(neuron: Any) -> Neuron:
    """A neuron, checked. Raises UsageError."""
    try:
        activation, index = neuron
    except (TypeError, ValueError):
        raise UsageError(f"a neuron is (activation, its number), not {neuron!r:.200}") from None
    if not isinstance(activation, SlopeRestricted):
        raise UsageError(f"a neuron belongs to an activation of the system, not to a {type(activation).__name__}")
    if activation.groups is not None:
        raise UsageError(f"the neurons of {activation.name!r} act in groups: they cannot be paired")
    whole = isinstance(index, int | np.integer) and not isinstance(index, bool)
    if not whole or not 0 <= index < activation.size:
        raise UsageError(f"{activation.name!r} has neurons 0 to {activation.size - 1}, not {index!r}")
    return activation, int(index)


def _rest(c: int, count: int, factors: Any, entries: Expression, nonnegative: Expression) -> Expression:
    """What is left of M, its triangle multiplied by factors, without N twice: of pair c of `count` pairs."""
    cols, rows = lower_triangle(4)
    starts = np.concatenate([[0], np.cumsum(rows > cols)])
    of_m = sp.csr_array((factors, 10 * c + np.arange(10), np.arange(11)), shape=(10, 10 * count))
    of_n = sp.csr_array((np.full(6, -2.0), 6 * c + np.arange(6), starts), shape=(10, 6 * count))
    (m,), (n,) = entries.coefficients, nonnegative.coefficients
    return Expression(size=10, coefficients={m: of_m, n: of_n}, constant=np.zeros(10))


def _chosen(form: LinearForm, rows: Any) -> LinearForm:
    return apply(Selection(index=np.asarray(rows), size=form.size), form)
