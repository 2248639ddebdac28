"""Variables and the affine expressions over them that weigh the terms of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from lipmodel.model.model import Constraint

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
    """A vector of affine functions of the variables, constant + sum_v K_v v, shape (size,); K_v is CSR (size, v.size)."""

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
        """A constant, broadcast to `size`."""
        values = np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), (size,)))
        if not np.all(np.isfinite(values)):
            raise ValueError("weights must be finite numbers")
        return cls(size=size, coefficients={}, constant=values)

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
        return self * -1.0 + other

    def __neg__(self) -> Expression:
        return self * -1.0

    def __mul__(self, factor: Any) -> Expression:
        """Multiplication by a number, or entry by entry by a vector."""
        if isinstance(factor, Expression):
            raise TypeError("a product of two variables is not linear; weights must be affine in the variables")
        values = np.asarray(factor, dtype=np.float64)
        if values.ndim == 0:
            values = np.full(self.size, float(values))
        scale = sp.diags_array(values)
        return Expression(
            size=self.size,
            coefficients={v: sp.csr_array(scale @ k) for v, k in self.coefficients.items()},
            constant=self.constant * values,
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Expression:
        return self * (1.0 / np.asarray(divisor, dtype=np.float64))

    def __rmatmul__(self, matrix: Any) -> Expression:
        k = sp.csr_array(np.atleast_2d(matrix)) if not sp.issparse(matrix) else sp.csr_array(matrix)
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
        return np.ones((1, self.size)) @ self

    def spread(self, size: int) -> Expression:
        """A single number repeated `size` times."""
        if self.size == size:
            return self
        if self.size != 1:
            raise ValueError(f"a weight of size {self.size} does not fit {size} entries")
        return np.ones((size, 1)) @ self

    def value(self, values: Mapping[Variable, Array]) -> Array:
        """The value at an assignment of the variables, shape (size,)."""
        result = self.constant.copy()
        for variable, k in self.coefficients.items():
            result = result + k @ np.asarray(values[variable], dtype=np.float64)
        return result

    def __ge__(self, bound: Any) -> Constraint:
        from lipmodel.model.model import Constraint, Nonnegative

        return Constraint(function=self - bound, set=Nonnegative())

    def __le__(self, bound: Any) -> Constraint:
        from lipmodel.model.model import Constraint, Nonnegative

        return Constraint(function=bound - self, set=Nonnegative())

    def equals(self, bound: Any) -> Constraint:
        """The equality self = bound (`==` is left alone)."""
        from lipmodel.model.model import Constraint, Zero

        return Constraint(function=self - bound, set=Zero())

    def __repr__(self) -> str:
        parts = [v.name for v in self.coefficients]
        if np.any(self.constant) or not parts:
            parts.append("const")
        return f"affine({', '.join(parts)})[{self.size}]"


def _same_size(a: Expression, b: Any) -> tuple[Expression, Expression]:
    if not isinstance(b, Expression):
        b = Expression.number(b, a.size)
    if a.size != b.size:
        a, b = a.spread(max(a.size, b.size)), b.spread(max(a.size, b.size))
    return a, b


def as_expression(value: Any, size: int) -> Expression:
    """A weight of the given size from a number, an array, a variable or an expression. Raises TypeError, ValueError."""
    if isinstance(value, Variable):
        value = Expression.of(value)
    if isinstance(value, Expression):
        return value.spread(size)
    return Expression.number(value, size)
