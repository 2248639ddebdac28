"""Matrices over the dyadic rationals: what maps are multiplied out in before the exact checker takes them.

Stored weights are binary floats, so a linear map built from them is an integer matrix times a power of two. What is not
dyadic (a division by three, a square root in batch normalisation) carries an integer radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import fmpz_mat

from lipmodel.certify.kernel import Block


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExactMatrix:
    """A real matrix M with |M - mantissa * 2^-exponent| <= radius * 2^-exponent entrywise; radius None means equal.

    mantissa, radius: flint.fmpz_mat of the same shape.
    """

    mantissa: fmpz_mat
    exponent: int
    radius: fmpz_mat | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.mantissa.nrows()), int(self.mantissa.ncols()))

    @classmethod
    def from_floats(cls, values: Any, radius: Any = None) -> ExactMatrix:
        """The exact value of a dense float64 matrix, shape (m, n), and of its radius where there is one."""
        values = np.atleast_2d(np.asarray(values, dtype=np.float64))
        parts = [values] if radius is None else [values, np.atleast_2d(np.asarray(radius, dtype=np.float64))]
        exponent = max(dyadic_exponent(part) for part in parts)
        mats = [_to_fmpz(part, exponent) for part in parts]
        return cls(mantissa=mats[0], exponent=exponent, radius=mats[1] if len(mats) == 2 else None)

    def __matmul__(self, other: ExactMatrix) -> ExactMatrix:
        radius = None
        if self.radius is not None:
            radius = self.radius * magnitude(other)
        if other.radius is not None:
            extra = absolute(self.mantissa) * other.radius
            radius = extra if radius is None else radius + extra
        return ExactMatrix(
            mantissa=self.mantissa * other.mantissa, exponent=self.exponent + other.exponent, radius=radius
        )

    def __add__(self, other: ExactMatrix) -> ExactMatrix:
        exponent = max(self.exponent, other.exponent)
        a, b = self.rescaled(exponent), other.rescaled(exponent)
        radius = a.radius if b.radius is None else b.radius if a.radius is None else a.radius + b.radius
        return ExactMatrix(mantissa=a.mantissa + b.mantissa, exponent=exponent, radius=radius)

    def __neg__(self) -> ExactMatrix:
        return ExactMatrix(mantissa=-self.mantissa, exponent=self.exponent, radius=self.radius)

    def block(self) -> Block:
        """The same matrix in plain integers, as the exact checker takes it."""
        mantissa, radius = (
            None if part is None else [[int(v) for v in row] for row in part.tolist()]
            for part in (self.mantissa, self.radius)
        )
        assert mantissa is not None
        return Block(mantissa=mantissa, exponent=self.exponent, radius=radius)

    def rescaled(self, exponent: int) -> ExactMatrix:
        """The same matrix over 2^-exponent, exponent at least the present one."""
        factor = 1 << (exponent - self.exponent)
        return ExactMatrix(
            mantissa=self.mantissa * factor,
            exponent=exponent,
            radius=None if self.radius is None else self.radius * factor,
        )


def dyadic_exponent(values: Any) -> int:
    """The least e >= 0 such that every value times 2^e is an integer."""
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or not np.any(values):
        return 0
    if not np.all(np.isfinite(values)):
        raise ValueError("non-finite values have no exact form")
    nonzero = values[values != 0]
    mantissa, exponent = np.frexp(nonzero)
    integers = np.abs(mantissa * 2.0**53).astype(np.int64)
    trailing = np.log2((integers & -integers).astype(np.float64)).astype(np.int64)
    return max(0, int(np.max(53 - exponent - trailing)))


def integers(values: Any, exponent: int) -> list[int]:
    """values * 2^exponent as Python integers, row by row; every product must be an integer."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    mantissa, power = np.frexp(flat)
    whole = (mantissa * 2.0**53).astype(np.int64)
    shift = power.astype(np.int64) - 53 + exponent
    if flat.size and bool(np.all(shift >= 0)) and int(shift.max(initial=0)) <= 9:
        return [int(v) for v in (whole << shift).tolist()]
    return [m << s if s >= 0 else m >> -s for m, s in zip(whole.tolist(), shift.tolist(), strict=True)]


def _to_fmpz(values: Any, exponent: int) -> fmpz_mat:
    return fmpz_mat(int(values.shape[0]), int(values.shape[1]), integers(values, exponent))


def absolute(m: fmpz_mat) -> fmpz_mat:
    """Entrywise absolute value."""
    return fmpz_mat(m.nrows(), m.ncols(), [abs(v) for v in m.entries()])


def magnitude(m: ExactMatrix) -> fmpz_mat:
    """Entrywise upper bound of the modulus, over the same exponent."""
    size = absolute(m.mantissa)
    return size if m.radius is None else size + m.radius
