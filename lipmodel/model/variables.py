"""Variables and the affine expressions over them that weigh the terms of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import UsageError

if TYPE_CHECKING:
    from lipmodel.model.model import Constraint
    from lipmodel.model.sets import VectorSet

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Variable:
    """A named decision variable: a vector of `size` numbers, or, with `order` n, a symmetric n x n matrix.

    A matrix is stored as its lower triangle, column by column, so `size` = n (n + 1) / 2.
    """

    name: str
    size: int
    nonnegative: bool = False
    order: int | None = None

    def __repr__(self) -> str:
        shape = f"S^{self.order}" if self.order is not None else str(self.size)
        return f"{self.name}[{shape}]{' >= 0' if self.nonnegative else ''}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expression:
    """A vector of affine functions of the variables, constant + sum_v K_v v, shape (size,).

    coefficients: {v: K_v}, CSR of shape (size, v.size). A single number meets a vector entry by entry. Whatever is not
    affine, not finite or not of a fitting size raises UsageError.
    """

    size: int
    coefficients: Mapping[Variable, Any]
    constant: Array

    __array_ufunc__ = None

    @classmethod
    def of(cls, variable: Variable) -> Expression:
        """The variable itself."""
        return cls(
            size=variable.size,
            coefficients={variable: sp.csr_array(sp.eye_array(variable.size))},
            constant=np.zeros(variable.size),
        )

    @classmethod
    def number(cls, value: Any, size: int) -> Expression:
        """A constant: one number for all of the `size` entries, or one for each."""
        values = numbers(value, "a weight")
        if values.size not in (1, size):
            raise UsageError(f"{values.size} numbers do not fit {size} entries")
        return cls(size=size, coefficients={}, constant=np.array(np.broadcast_to(values, (size,))))

    def __add__(self, other: Any) -> Expression:
        a, b = _same_size(self, other)
        merged = dict(a.coefficients)
        for variable, k in b.coefficients.items():
            merged[variable] = merged[variable] + k if variable in merged else k
        return Expression(size=a.size, coefficients=merged, constant=a.constant + b.constant)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Expression:
        a, b = _same_size(self, other)
        return a + b * -1.0

    def __rsub__(self, other: Any) -> Expression:
        difference: Expression = self - other
        return -difference

    def __neg__(self) -> Expression:
        return self * -1.0

    def __mul__(self, factor: Any) -> Expression:
        """Multiplication by a number, or entry by entry by a vector."""
        if isinstance(factor, Expression | Variable):
            raise UsageError("a product of two variables is not linear: weights must be affine in the variables")
        a, b = _same_size(self, numbers(factor, "what an expression in the variables is multiplied by"))
        scale = sp.diags_array(b.constant)
        return Expression(
            size=a.size,
            coefficients={v: sp.csr_array(scale @ k) for v, k in a.coefficients.items()},
            constant=a.constant * b.constant,
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Expression:
        values = numbers(divisor, "what an expression in the variables is divided by")
        if not np.all(values):
            raise UsageError("an expression in the variables is divided by zero")
        return self * (1.0 / values)

    def __rmatmul__(self, matrix: Any) -> Expression:
        """matrix @ expression, the matrix dense or sparse of shape (k, size), or one row of shape (size,)."""
        k = sp.csr_array(matrix if sp.issparse(matrix) else np.atleast_2d(np.asarray(matrix, dtype=np.float64)))
        if k.shape[1] != self.size:
            raise UsageError(f"a matrix of shape {k.shape} does not act on an expression of size {self.size}")
        return Expression(
            size=int(k.shape[0]),
            coefficients={v: sp.csr_array(k @ c) for v, c in self.coefficients.items()},
            constant=np.asarray(k @ self.constant),
        )

    def __getitem__(self, index: Any) -> Expression:
        rows = np.atleast_1d(np.arange(self.size)[index])
        return Expression(
            size=len(rows),
            coefficients={v: sp.csr_array(k[rows]) for v, k in self.coefficients.items()},
            constant=self.constant[rows],
        )

    def sum(self) -> Expression:
        """The sum of the entries, size 1."""
        return self.__rmatmul__(np.ones((1, self.size)))

    def spread(self, size: int) -> Expression:
        """A single number repeated `size` times; an expression of that size as it is."""
        if self.size == size:
            return self
        if self.size != 1:
            raise UsageError(f"an expression of size {self.size} does not fit {size} entries")
        return self.__rmatmul__(np.ones((size, 1)))

    def value(self, values: Mapping[Variable, Array]) -> Array:
        """The value at an assignment of the variables, shape (size,)."""
        result = self.constant.copy()
        for variable, k in self.coefficients.items():
            result = result + k @ np.asarray(values[variable], dtype=np.float64)
        return result

    def __ge__(self, bound: Any) -> Constraint:
        from lipmodel.model.model import Constraint
        from lipmodel.model.sets import Nonnegative

        return Constraint(function=self - bound, set=Nonnegative())

    def __le__(self, bound: Any) -> Constraint:
        from lipmodel.model.model import Constraint
        from lipmodel.model.sets import Nonnegative

        return Constraint(function=bound - self, set=Nonnegative())

    def equals(self, bound: Any) -> Constraint:
        """The equality self = bound (`==` is left alone)."""
        from lipmodel.model.model import Constraint
        from lipmodel.model.sets import Zero

        return Constraint(function=self - bound, set=Zero())

    def in_cone(self, kind: VectorSet) -> Constraint:
        """The constraint that the vector lies in a set such as `lm.SecondOrder()`. Raises UsageError."""
        from lipmodel.model.model import Constraint
        from lipmodel.model.sets import RotatedSecondOrder, SecondOrder

        if isinstance(kind, SecondOrder | RotatedSecondOrder):
            block, least = kind.block or self.size, 2 + isinstance(kind, RotatedSecondOrder)
            if block < least or self.size % block:
                raise UsageError(f"{self.size} entries are no vectors of {block} entries {kind}")
        return Constraint(function=self, set=kind)

    def __repr__(self) -> str:
        parts = [v.name for v in self.coefficients]
        if np.any(self.constant) or not parts:
            parts.append("const")
        return f"affine({', '.join(parts)})[{self.size}]"


def numbers(value: Any, what: str) -> Array:
    """A finite number (shape ()) or vector (shape (n,)) as float64. Raises UsageError, naming `what` was meant."""
    try:
        values = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"{what} must be a number or a vector of numbers, not a {type(value).__name__}") from None
    if values.ndim > 1:
        raise UsageError(f"{what} must be a number or a vector of numbers, not an array of shape {values.shape}")
    if not np.all(np.isfinite(values)):
        raise UsageError(f"{what} must be finite")
    return values


def _same_size(a: Expression, b: Any) -> tuple[Expression, Expression]:
    if isinstance(b, Variable):
        b = as_expression(b, b.size)
    if not isinstance(b, Expression):
        values = numbers(b, "what meets an expression in the variables")
        b = Expression.number(values, values.size)
    size = a.size if b.size == 1 else b.size
    return a.spread(size), b.spread(size)


def as_expression(value: Any, size: int) -> Expression:
    """A weight of the given size from a number, an array, a variable or an expression. Raises UsageError."""
    if isinstance(value, Variable):
        if value.order is not None:
            raise UsageError(f"the matrix variable {value.name!r} is no weight: it belongs in a Congruence term")
        value = Expression.of(value)
    if isinstance(value, Expression):
        return value.spread(size)
    return Expression.number(value, size)
