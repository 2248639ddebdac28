"""Bridges between the cones of vectors and of forms: rotated to plain second-order, second-order to matrix, equalities.

Second-order cones as matrices: t >= |w| if and only if [t, w'; w, t I] is positive semidefinite (Alizadeh & Goldfarb
2003, Math. Program. 95:3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.bridges.base import Applied, Part, Shape, Soundness
from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
from lipmodel.model.model import Constraint
from lipmodel.model.sets import PSD, Nonnegative, RotatedSecondOrder, SecondOrder
from lipmodel.model.terms import Factored
from lipmodel.model.variables import Expression
from lipmodel.network.linear import Selection

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrotated:
    """Bridge: 2 u v >= |w|^2 as (u + v) / sqrt 2 >= |((u - v) / sqrt 2, w)|."""

    name: str = "unrotated"
    sources: frozenset[str] = frozenset({"rsoc"})
    targets: frozenset[str] = frozenset({"soc"})
    soundness: Soundness = "equivalent"
    source: str = ""

    def predict(self, shape: Shape, part: Part, constraint: Constraint) -> Shape | None:
        entries = part.entries + part.entries // 2
        return shape.replaced(part, [Part(kind="soc", sizes=part.sizes, entries=entries, origin=part.origin)])

    def apply(self, constraint: Constraint, taken: frozenset[str]) -> Applied:
        function = constraint.function
        assert isinstance(function, Expression)
        assert isinstance(constraint.set, RotatedSecondOrder)
        turn = _turn(function.size, constraint.set.block or function.size)
        turned = Constraint(function=turn @ function, set=SecondOrder(block=constraint.set.block))
        # the turn is symmetric and its own inverse, and both cones are their own duals
        return Applied(constraints=(turned,), variables=(), dual=lambda duals: np.asarray(turn @ duals[0]))


def _turn(size: int, block: int) -> Any:
    """The symmetric orthogonal matrix that turns the first two entries of every block by half a right angle."""
    half = np.sqrt(0.5)
    turn = sp.block_diag([np.array([[half, half], [half, -half]]), sp.eye_array(block - 2)])
    return sp.csr_array(sp.kron(sp.eye_array(size // block), turn))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """Bridge: t >= |w| as the matrix [t, w'; w, t I], one for every block."""

    name: str = "arrow matrices"
    sources: frozenset[str] = frozenset({"soc"})
    targets: frozenset[str] = frozenset({"psd"})
    soundness: Soundness = "equivalent"
    source: str = "Alizadeh & Goldfarb 2003"

    def predict(self, shape: Shape, part: Part, constraint: Constraint) -> Shape | None:
        entries = part.entries * 2
        return shape.replaced(
            part, [Part(kind="psd", sizes=part.sizes, entries=entries, origin=part.origin, split=True)]
        )

    def apply(self, constraint: Constraint, taken: frozenset[str]) -> Applied:
        function = constraint.function
        assert isinstance(function, Expression)
        assert isinstance(constraint.set, SecondOrder)
        block = constraint.set.block or function.size
        parts = [function[at : at + block] for at in range(0, function.size, block)]

        def dual(duals: Sequence[Array]) -> Array:
            return np.concatenate([np.append(np.trace(y), 2.0 * y[0, 1:]) for y in duals])

        return Applied(
            constraints=tuple(Constraint(function=_arrow(part), set=PSD()) for part in parts), variables=(), dual=dual
        )


def _arrow(vector: Expression) -> QuadraticForm:
    """t |z|^2 + 2 z_0 sum_i w_i z_i, the form of [t, w'; w, t I]."""
    n = vector.size
    z = LinearForm.of(Signal(name="z", size=n))
    square = Factored(weight=vector[0].spread(n), left=z, right=z)
    if n == 1:
        return QuadraticForm(terms=(square,))
    (signal,) = z.signals
    first = LinearForm(size=n - 1, blocks={signal: Selection(index=np.zeros(n - 1, dtype=np.int64), size=n)})
    rest = LinearForm(size=n - 1, blocks={signal: Selection(index=np.arange(1, n), size=n)})
    return QuadraticForm(terms=(square, Factored(weight=2.0 * vector[1:], left=first, right=rest)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Bridge: equalities as pairs of inequalities: in standard form, free variables as differences of signed ones."""

    name: str = "pairs of inequalities"
    sources: frozenset[str] = frozenset({"zero"})
    targets: frozenset[str] = frozenset({"nonnegative"})
    soundness: Soundness = "equivalent"
    source: str = ""

    def predict(self, shape: Shape, part: Part, constraint: Constraint) -> Shape | None:
        sizes = (2 * sum(part.sizes),)
        return shape.replaced(
            part, [Part(kind="nonnegative", sizes=sizes, entries=2 * part.entries, origin=part.origin)]
        )

    def apply(self, constraint: Constraint, taken: frozenset[str]) -> Applied:
        function = constraint.function
        assert isinstance(function, Expression)
        both = tuple(Constraint(function=f, set=Nonnegative()) for f in (function, -function))
        return Applied(constraints=both, variables=(), dual=lambda duals: duals[0] - duals[1])
