"""Matrices known up to an entrywise error: what floating-point proofs compute with.

Every stored weight is a binary float, hence exact; what is computed from weights (products of layers, divisions, batch
normalisation) is not. A `MatrixEnclosure` carries the computed matrix together with a proved entrywise error bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import LipmodelError

U = 2.0**-53
"""Unit roundoff of binary64."""
INFLATE = 1.0 + 2.0**-30
"""Covers the evaluation, in round-to-nearest, of a sum of up to 2^21 nonnegative terms (Rump 2006, BIT 46:433)."""
TINY = 2.0**-1000
"""Added per entry of a dense product for underflow; sparse products refuse entries that could underflow."""

Array = np.ndarray[Any, np.dtype[np.float64]]


def gamma(k: int) -> float:
    """k u / (1 - k u), rounded up: the relative error of k roundings (Higham 2002, section 3.1); k <= 2^30."""
    return k * U * (1.0 + 2.0**-20)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatrixEnclosure:
    """A real matrix M with |M - center| <= radius entrywise; radius None means that center is M exactly.

    center: (m, n) float64, dense or CSR; radius: the same kind and shape, nonnegative, or None.
    """

    __array_ufunc__ = None

    center: Any
    radius: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.center.shape[0]), int(self.center.shape[1]))

    @property
    def is_sparse(self) -> bool:
        return bool(sp.issparse(self.center))

    @property
    def is_exact(self) -> bool:
        return self.radius is None

    def dense(self) -> MatrixEnclosure:
        """The same enclosure with dense arrays."""
        if not self.is_sparse:
            return self
        return MatrixEnclosure(center=_dense(self.center), radius=None if self.radius is None else _dense(self.radius))

    def transpose(self) -> MatrixEnclosure:
        return MatrixEnclosure(center=self.center.T, radius=None if self.radius is None else self.radius.T)

    def magnitude(self) -> Any:
        """Entrywise upper bound of |M| (rounded up)."""
        if self.radius is None:
            return abs(self.center)
        return (abs(self.center) + self.radius) * INFLATE

    def __matmul__(self, other: MatrixEnclosure) -> MatrixEnclosure:
        """Enclosure of the product of two enclosed matrices, by the standard model of rounding.

        The error of every computed entry is at most gamma_{k+2} (|A||B|)_ij, k the inner dimension, whatever the order
        of summation. A product in which every sum has at most one term is a scaled selection; when one factor has only
        entries 0 and +-1, it is exact.
        """
        if (self.is_sparse or other.is_sparse) and min(self._least(), other._least()) < 2.0**-480:
            return self._expanded() @ other._expanded()  # a sparse product drops the entries that underflow
        center = self.center @ other.center
        if self.is_exact and other.is_exact and (_selects_rows(self.center) or _selects_rows(other.center.T)):
            return MatrixEnclosure(center=center)
        k = int(self.center.shape[1])
        a, b = abs(self.center), abs(other.center)
        radius = gamma(k + 2) * (a @ b)
        if self.radius is not None:
            radius = radius + self.radius @ other.magnitude()
        if other.radius is not None:
            radius = radius + a @ other.radius
        return MatrixEnclosure(center=center, radius=_inflated(radius))

    def __add__(self, other: MatrixEnclosure) -> MatrixEnclosure:
        center = self.center + other.center
        radius = 2.0 * U * abs(center)
        if self.radius is not None:
            radius = radius + self.radius
        if other.radius is not None:
            radius = radius + other.radius
        if self.is_exact and other.is_exact and _exact_sum(self.center, other.center, center):
            return MatrixEnclosure(center=center)
        return MatrixEnclosure(center=center, radius=radius * INFLATE)

    def _least(self) -> float:
        """The smallest nonzero modulus among centers and radii (1 where there is none)."""
        return min(_smallest(self.center), 1.0 if self.radius is None else _smallest(self.radius))

    def _expanded(self) -> MatrixEnclosure:
        """`dense`, within reason. Raises LipmodelError."""
        if self.is_sparse and self.shape[0] * self.shape[1] > 100_000_000:
            raise LipmodelError(
                f"a sparse matrix of shape {self.shape} has entries below 2^-480, whose products underflow unseen, and "
                "is too large to be expanded: rescale the weights of the network"
            )
        return self.dense()

    def scaled(self, factor: float) -> MatrixEnclosure:
        """factor * M; exact for powers of two (up to underflow, which is covered)."""
        if self.is_sparse and factor != 0.0 and self._least() * min(abs(factor), 1.0) < 2.0**-900:
            return self._expanded().scaled(factor)
        center = self.center * factor
        mantissa, _ = np.frexp(abs(factor))
        if factor == 0.0 or (
            mantissa == 0.5 and self.is_exact and bool(np.all(_data(center) / factor == _data(self.center)))
        ):
            return MatrixEnclosure(center=center)
        radius = 2.0 * U * abs(center)
        if self.radius is not None:
            radius = radius + abs(factor) * self.radius
        return MatrixEnclosure(center=center, radius=_inflated(radius))


def _dense(a: Any) -> Array:
    return np.ascontiguousarray(a.toarray() if sp.issparse(a) else a, dtype=np.float64)


def _data(a: Any) -> Array:
    return np.asarray(a.data if sp.issparse(a) else a, dtype=np.float64)


def _inflated(radius: Any) -> Any:
    """radius rounded up, with room for underflow where entries may have underflowed (dense ones)."""
    return radius * INFLATE if sp.issparse(radius) else radius * INFLATE + TINY


def _smallest(a: Any) -> float:
    data = np.abs(_data(a))
    data = data[data > 0]
    return float(data.min()) if data.size else 1.0


def _selects_rows(a: Any) -> bool:
    """Every row has at most one nonzero and it is +-1: products with `a` on the left copy rows, exactly."""
    if sp.issparse(a):
        csr = sp.csr_array(a)
        csr.sum_duplicates()
        return bool(
            np.all(np.abs(csr.data[csr.data != 0]) == 1.0)
            and np.all(np.bincount(_rows(csr), weights=csr.data != 0, minlength=1) <= 1)
        )
    return bool(np.all(np.count_nonzero(a, axis=1) <= 1) and np.all((a == 0) | (np.abs(a) == 1)))


def _rows(csr: Any) -> Any:
    return np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))


def _exact_sum(a: Any, b: Any, s: Any) -> bool:
    """Whether a + b was computed without rounding (TwoSum: Knuth), entry by entry."""
    if sp.issparse(a) or sp.issparse(b):
        overlap = sp.csr_array(a != 0).multiply(sp.csr_array(b != 0))
        return bool(overlap.nnz == 0)
    t = s - a
    error = (a - (s - t)) + (b - t)
    return bool(np.all(error == 0))
