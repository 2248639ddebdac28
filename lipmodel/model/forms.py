"""Signals, linear forms over signals, and quadratic forms: what a formulation is written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import UsageError
from lipmodel.model.variables import numbers
from lipmodel.network.linear import Dense, Diagonal, LinearMap, Sparse, collapse, compose, identity, total

if TYPE_CHECKING:
    from lipmodel.model.model import Constraint
    from lipmodel.model.terms import Term

Array = np.ndarray[Any, Any]
Role = Literal["input", "output", "dual"]

MAX_LEAVES = 48
"""Beyond this many stored factors a map is collapsed into one matrix, so that shared branches never multiply."""
MAX_COLLAPSED = 20_000_000
"""Entries above which a map is left as it is."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signal:
    """A named vector of increments: the input, the outputs of one layer of activations, or an auxiliary vector."""

    name: str
    size: int

    def __repr__(self) -> str:
        return f"{self.name}[{self.size}]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearForm:
    """A vector of linear forms over signals, sum_j M_j z_j, as block row {signal: LinearMap}; shape (size,).

    `role` marks the network's input and output and a model's dual signal; it is lost in arithmetic, so that a rule of
    certification is only ever attached to what it is about.
    """

    size: int
    blocks: Mapping[Signal, LinearMap]
    role: Role | None = None

    __array_ufunc__ = None

    def __post_init__(self) -> None:
        # read-only: what a formulation does with a form must not change the system that its bound is proved on
        object.__setattr__(self, "blocks", MappingProxyType(dict(self.blocks)))

    @classmethod
    def of(cls, signal: Signal, role: Role | None = None) -> LinearForm:
        """The signal itself."""
        return cls(size=signal.size, blocks={signal: identity(signal.size)}, role=role)

    @property
    def signals(self) -> tuple[Signal, ...]:
        return tuple(self.blocks)

    def __add__(self, other: LinearForm) -> LinearForm:
        return add_forms([self, _linear(other)])

    def __sub__(self, other: LinearForm) -> LinearForm:
        return add_forms([self, -_linear(other)])

    def __neg__(self) -> LinearForm:
        return LinearForm(size=self.size, blocks={s: -m for s, m in self.blocks.items()})

    def __mul__(self, factor: Any) -> LinearForm:
        """Multiplication by a number, or entry by entry by a vector of shape (size,). Raises UsageError."""
        if isinstance(factor, LinearForm):
            raise UsageError("a product of two linear forms is quadratic: write lm.inner(a, b)")
        values = numbers(factor, "what a linear form is multiplied by")
        if values.size not in (1, self.size):
            raise UsageError(f"{values.size} numbers do not fit a linear form of size {self.size}")
        values = np.broadcast_to(values, (self.size,))
        if not values.any():
            return LinearForm(size=self.size, blocks={})
        if bool(np.all(values == 1.0)):
            return LinearForm(size=self.size, blocks=self.blocks)
        return apply(Diagonal(values=np.array(values)), self)

    __rmul__ = __mul__

    def __rmatmul__(self, matrix: Any) -> LinearForm:
        """matrix @ form, the matrix dense or sparse of shape (k, size), or one row (size,). Raises UsageError."""
        if sp.issparse(matrix):
            return apply(Sparse(weights=sp.csr_array(matrix, dtype=np.float64)), self)
        weights = np.atleast_2d(np.asarray(matrix, dtype=np.float64))
        if weights.ndim != 2 or not np.all(np.isfinite(weights)):
            raise UsageError(f"what multiplies a linear form must be a finite matrix; its shape is {weights.shape}")
        return apply(Dense(weights=weights), self)

    def substitute(self, replacements: Mapping[Signal, LinearForm]) -> LinearForm:
        """Replace signals by forms; the role is kept (the vector it marks is still the same vector)."""
        if not any(s in replacements for s in self.blocks):
            return self
        parts = [
            apply(m, replacements[s]) if s in replacements else LinearForm(size=self.size, blocks={s: m})
            for s, m in self.blocks.items()
        ]
        merged = add_forms(parts)
        return LinearForm(size=self.size, blocks=merged.blocks, role=self.role)

    def value(self, point: Mapping[Signal, Array]) -> Array:
        """The value at a point {signal: vector}, shape (size,)."""
        result = np.zeros(self.size)
        for signal, m in self.blocks.items():
            result = result + m.matvec(np.asarray(point[signal], dtype=np.float64))
        return result

    def __repr__(self) -> str:
        return " + ".join(f"{_map_name(m)}·{s.name}" for s, m in self.blocks.items()) or "0"


def _map_name(m: LinearMap) -> str:
    return "I" if getattr(m, "is_identity", False) else f"{type(m).__name__}{m.shape[0]}x{m.shape[1]}"


def apply(m: LinearMap, form: LinearForm) -> LinearForm:
    """m @ form. Raises UsageError where the sizes do not fit."""
    if m.shape[1] != form.size:
        raise UsageError(f"a matrix of shape {m.shape} does not act on a form of size {form.size}")
    blocks = {s: _bounded(compose(m, b)) for s, b in form.blocks.items()}
    return LinearForm(size=m.shape[0], blocks=blocks)


def add_forms(forms: Sequence[LinearForm]) -> LinearForm:
    """The sum of forms of one size. Raises UsageError for different sizes."""
    sizes = {f.size for f in forms}
    if len(sizes) != 1:
        raise UsageError(f"cannot add linear forms of sizes {sorted(sizes)}")
    parts: dict[Signal, list[LinearMap]] = {}
    for form in forms:
        for signal, m in form.blocks.items():
            parts.setdefault(signal, []).append(m)
    return LinearForm(size=forms[0].size, blocks={s: _bounded(total(ms)) for s, ms in parts.items()})


def _linear(form: Any) -> LinearForm:
    if not isinstance(form, LinearForm):
        raise UsageError(f"expected a linear form (input, output, pre or post of an activation), got {_kind(form)}")
    return form


def _kind(value: Any) -> str:
    hint = " (as a form: LinearForm.of(signal))" if isinstance(value, Signal) else ""
    return f"a {type(value).__name__}{hint}"


def _bounded(m: LinearMap) -> LinearMap:
    return collapse(m) if m.leaves > MAX_LEAVES and m.entries <= MAX_COLLAPSED else m


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuadraticForm:
    """A sum of terms, each a quadratic form in the signals whose coefficients are affine in the variables."""

    terms: tuple[Term, ...] = ()

    __array_ufunc__ = None

    def __add__(self, other: QuadraticForm) -> QuadraticForm:
        return QuadraticForm(terms=self.terms + _terms(other))

    def __radd__(self, other: Any) -> QuadraticForm:
        if isinstance(other, int | float) and other == 0:
            return self  # so that sum() of forms works
        raise UsageError(f"a quadratic form can only be added to a quadratic form, not to {_kind(other)}")

    def __sub__(self, other: QuadraticForm) -> QuadraticForm:
        return self + (-1.0) * other

    def __neg__(self) -> QuadraticForm:
        return (-1.0) * self

    def __mul__(self, factor: float) -> QuadraticForm:
        if not isinstance(factor, int | float | np.floating | np.integer) or not np.isfinite(factor):
            raise UsageError(
                f"a quadratic form is multiplied by a finite number, not by {factor!r}; "
                "a variable goes into the weight of an inner product: lm.inner(a, b, weight=t)"
            )
        return QuadraticForm(terms=tuple(t.scaled(float(factor)) for t in self.terms))

    __rmul__ = __mul__

    def __ge__(self, bound: float) -> Constraint:
        from lipmodel.model.model import Constraint
        from lipmodel.model.sets import PSD

        if not (isinstance(bound, int | float | np.integer) and bound == 0):
            raise UsageError(f"write `form >= 0`: a quadratic form is compared with 0, not with {bound!r}")
        return Constraint(function=self, set=PSD())

    def __le__(self, bound: float) -> Constraint:
        return (-self) >= bound

    @property
    def signals(self) -> tuple[Signal, ...]:
        """All signals, in order of first appearance."""
        return tuple(dict.fromkeys(s for t in self.terms for s in t.signals))

    def value(self, values: Mapping[Any, Array], point: Mapping[Signal, Array]) -> float:
        """The value for variables `values` at the signal values `point`."""
        return float(sum(t.value(values, point) for t in self.terms))


def _terms(form: Any) -> tuple[Term, ...]:
    if not isinstance(form, QuadraticForm):
        raise UsageError(f"expected a quadratic form (ball, inner, quadratic constraint), got {_kind(form)}")
    return form.terms
