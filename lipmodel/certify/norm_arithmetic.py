"""Two arithmetics for one recursion over matrices: enclosed in floating point, and in integers for the exact check.

Both know products, sums and upper bounds of entrywise moduli. Stored maps with many entries are never expanded: their
moduli are applied to nonnegative matrices of few columns, rounded up.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from lipmodel.certify.exact_entries import ExactEntries, added, exact_entries, product
from lipmodel.network.conv import Conv
from lipmodel.network.exact import dyadic_exponent, integers
from lipmodel.network.linear import Dense, LinearMap, Transposed
from lipmodel.ranges.enclosure import INFLATE, TINY, MatrixEnclosure, gamma
from lipmodel.ranges.norms import canonical

Array = np.ndarray[Any, Any]
Matrix = Any
"""What an arithmetic computes with: a `MatrixEnclosure`, or `ExactEntries`."""

MANTISSA_BITS = 256
"""Integers longer than this are cut, and what is cut off goes into the radius."""
_LEAST = 2.0**-470
"""Smaller moduli keep a sparse matrix from being multiplied as one (see `MatrixEnclosure`)."""
APPLIED_BITS = 96
"""Bits to which maps and vectors are rounded up before a map that is not expanded is applied."""


class Arithmetic(Protocol):
    """Enclosures of matrices and what is done with them; `upper` and `apply` give upper bounds, without a radius."""

    def read(self, map: LinearMap) -> Matrix:
        """The expanded matrix of a map."""

    def identity(self, n: int) -> Matrix:
        """The identity of R^n."""

    def ones(self, m: int, n: int) -> Matrix:
        """The m x n matrix of ones."""

    def product(self, a: Matrix, b: Matrix) -> Matrix:
        """A B."""

    def total(self, terms: list[Matrix]) -> Matrix:
        """The sum of one or more matrices."""

    def scaled(self, values: Array, a: Matrix) -> Matrix:
        """diag(values) A."""

    def scaled_columns(self, a: Matrix, values: Array) -> Matrix:
        """A diag(values)."""

    def upper(self, a: Matrix) -> Matrix:
        """An upper bound of |A|, entry by entry."""

    def larger(self, a: Matrix) -> Matrix:
        """(A, B), nonnegative and without a radius, one above the other -> (max(A, B), max(A, B))."""

    def halves_exchanged(self, a: Matrix) -> Matrix:
        """(A, B), side by side, without a radius -> (B, A)."""

    def apply(self, leaf: LinearMap, x: Matrix) -> Matrix:
        """An upper bound of |leaf| X, for a stored map that is not expanded and X >= 0."""

    def apply_back(self, y: Matrix, leaf: LinearMap) -> Matrix:
        """An upper bound of Y |leaf|, for Y >= 0."""


# ------------------------------------------------------------------------------------------------- floating point


class FloatArithmetic:
    """Matrices with proved rounding errors."""

    def read(self, map: LinearMap) -> MatrixEnclosure:
        return canonical(map.enclosure())

    def identity(self, n: int) -> MatrixEnclosure:
        return MatrixEnclosure(center=sp.csr_array(sp.eye_array(n)))

    def ones(self, m: int, n: int) -> MatrixEnclosure:
        return MatrixEnclosure(center=np.ones((m, n)))

    def product(self, a: MatrixEnclosure, b: MatrixEnclosure) -> MatrixEnclosure:
        if a.is_sparse != b.is_sparse:
            a, b = (replace(m, radius=_lifted(m.radius, m.center)) if not m.is_sparse else m for m in (a, b))
        return a @ b

    def total(self, terms: list[MatrixEnclosure]) -> MatrixEnclosure:
        if any(not term.is_sparse for term in terms):
            terms = [term.dense() for term in terms]
        return reduce(lambda a, b: a + b, terms)

    def scaled(self, values: Array, a: MatrixEnclosure) -> MatrixEnclosure:
        return a.scaled(float(values[0])) if _uniform(values) else _scaled(a, values, axis=0)

    def scaled_columns(self, a: MatrixEnclosure, values: Array) -> MatrixEnclosure:
        return a.scaled(float(values[0])) if _uniform(values) else _scaled(a, values, axis=1)

    def upper(self, a: MatrixEnclosure) -> MatrixEnclosure:
        size = abs(a.center)
        if a.radius is not None:
            size = size + a.radius
            if a.is_sparse:
                size.data = np.nextafter(size.data, np.inf)
            else:
                size = np.nextafter(size, np.inf)
        return MatrixEnclosure(center=size if a.is_sparse else _lifted(size, size))

    def larger(self, a: MatrixEnclosure) -> MatrixEnclosure:
        assert a.radius is None
        if a.is_sparse:
            center = sp.csr_array(a.center)
            return MatrixEnclosure(center=sp.csr_array(center.maximum(center[_exchanged(a.shape[0])])))
        return MatrixEnclosure(center=np.maximum(a.center, a.center[_exchanged(a.shape[0])]))

    def halves_exchanged(self, a: MatrixEnclosure) -> MatrixEnclosure:
        assert a.radius is None
        center = sp.csr_array(a.center) if a.is_sparse else a.center
        return MatrixEnclosure(center=center[:, _exchanged(a.shape[1])])

    def apply(self, leaf: LinearMap, x: MatrixEnclosure) -> MatrixEnclosure:
        return self._applied(leaf, x.dense().center, back=False)

    def apply_back(self, y: MatrixEnclosure, leaf: LinearMap) -> MatrixEnclosure:
        return self._applied(leaf, y.dense().center.T, back=True).transpose()

    def _applied(self, leaf: LinearMap, columns: Array, *, back: bool) -> MatrixEnclosure:
        with np.errstate(over="ignore"):
            size = [np.abs(part) for part in _stored(leaf)]
            whole = _like(leaf, size[0] if len(size) == 1 else np.nextafter(size[0] + size[1], np.inf))
            values = whole.rmatvec(columns) if back else whole.matvec(columns)
            values = values * (1.0 + gamma(_summands(leaf, back=back) + 6)) + TINY
        return MatrixEnclosure(center=np.ascontiguousarray(values))


def _scaled(a: MatrixEnclosure, values: Array, *, axis: int) -> MatrixEnclosure:
    """diag(values) A (axis 0) or A diag(values) (axis 1), entry by entry."""
    center, radius = _multiplied(a.center, values, axis)
    if a.radius is not None:
        grown, error = _multiplied(a.radius, np.abs(values), axis)
        radius = radius + grown + error
    return MatrixEnclosure(center=center, radius=radius * INFLATE)


def _multiplied(matrix: Any, values: Array, axis: int) -> tuple[Any, Any]:
    """The stored entries times the number of their row or column, and a bound of the rounding errors."""
    if sp.issparse(matrix):
        csr = sp.csr_array(matrix)
        index = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr)) if axis == 0 else csr.indices
        entries, factors = csr.data, values[index]
    else:
        entries, factors = matrix, values[:, None] if axis == 0 else values
    product = entries * factors
    error = np.abs(product) * 2.0**-52
    error[(np.abs(product) < 2.0**-900) & (entries != 0.0) & (factors != 0.0)] = TINY
    if not sp.issparse(matrix):
        return product, error
    found = (sp.csr_array((data, csr.indices, csr.indptr), shape=csr.shape) for data in (product, error))
    return next(found), next(found)


def _lifted(size: Array | None, center: Array) -> Array | None:
    """Upper bounds of moduli, the tiny among them raised, as products with sparse matrices want them; or None."""
    if size is None or 0.0 < float(np.abs(center).max(initial=0.0)) < 2.0**-380:
        return size
    return np.where((size > 0.0) & (size < _LEAST), _LEAST, size)


# ------------------------------------------------------------------------------------------------------- integers


class ExactArithmetic:
    """Integer matrices over a power of two; mantissas are cut to `MANTISSA_BITS` with a radius."""

    def read(self, map: LinearMap) -> ExactEntries:
        return exact_entries(map)

    def identity(self, n: int) -> ExactEntries:
        at = np.arange(n)
        return ExactEntries(shape=(n, n), exponent=0, rows=at, cols=at, mid=np.full(n, 1, dtype=object))

    def ones(self, m: int, n: int) -> ExactEntries:
        rows, cols = np.divmod(np.arange(m * n), n)
        return ExactEntries(shape=(m, n), exponent=0, rows=rows, cols=cols, mid=np.full(m * n, 1, dtype=object))

    def product(self, a: ExactEntries, b: ExactEntries) -> ExactEntries:
        return _cut(product(a, b))

    def total(self, terms: list[ExactEntries]) -> ExactEntries:
        return _cut(reduce(added, terms))

    def scaled(self, values: Array, a: ExactEntries) -> ExactEntries:
        return self._scaled(a, values, a.rows)

    def scaled_columns(self, a: ExactEntries, values: Array) -> ExactEntries:
        return self._scaled(a, values, a.cols)

    def _scaled(self, a: ExactEntries, values: Array, index: Array) -> ExactEntries:
        exponent = dyadic_exponent(values)
        factors = np.array(integers(values, exponent), dtype=object)[index]
        rad = None if a.rad is None else a.rad * abs(factors)
        return _cut(replace(a, exponent=a.exponent + exponent, mid=a.mid * factors, rad=rad))

    def upper(self, a: ExactEntries) -> ExactEntries:
        return _raised(replace(a, mid=a.magnitude(), rad=None), MANTISSA_BITS)

    def larger(self, a: ExactEntries) -> ExactEntries:
        assert a.rad is None
        key = np.concatenate([a.rows, _exchanged(a.shape[0])[a.rows]]) * a.shape[1] + np.tile(a.cols, 2)
        mid = np.concatenate([a.mid, a.mid])
        order = np.argsort(key, kind="stable")
        key, mid = key[order], mid[order]
        starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])
        if len(key):
            mid = np.maximum.reduceat(mid, starts)
        rows, cols = np.divmod(key[starts], a.shape[1])
        return replace(a, rows=rows, cols=cols, mid=mid)

    def halves_exchanged(self, a: ExactEntries) -> ExactEntries:
        assert a.rad is None
        cols = _exchanged(a.shape[1])[a.cols]
        order = np.lexsort((cols, a.rows))
        return replace(a, rows=a.rows[order], cols=cols[order], mid=a.mid[order])

    def apply(self, leaf: LinearMap, x: ExactEntries) -> ExactEntries:
        return _applied_exactly(leaf, x, back=False)

    def apply_back(self, y: ExactEntries, leaf: LinearMap) -> ExactEntries:
        return _transposed(_applied_exactly(leaf, _transposed(y), back=True))


def _exchanged(n: int) -> Array:
    """The numbers from 0 to n - 1, n even, the second half first."""
    return np.roll(np.arange(n), n // 2)


def enclosed(a: ExactEntries) -> MatrixEnclosure:
    """The same matrix in floating point. Raises OverflowError."""
    unit = 1 << a.exponent
    center = np.array([v / unit for v in a.mid.tolist()], dtype=np.float64)
    radius = np.abs(center) * 2.0**-52 + TINY
    if a.rad is not None:
        radius += np.array([v / unit for v in a.rad.tolist()], dtype=np.float64) * (1.0 + 2.0**-50)
    parts = [sp.csr_array((values, (a.rows, a.cols)), shape=a.shape) for values in (center, radius)]
    if len(a.rows) > 0.3 * a.shape[0] * a.shape[1]:
        parts = [part.toarray() for part in parts]
    return MatrixEnclosure(center=parts[0], radius=parts[1])


def _cut(a: ExactEntries) -> ExactEntries:
    """Fewer bits, rounded down; what that loses is in the radius."""
    drop = _excess(a, MANTISSA_BITS)
    if drop <= 0:
        return a
    rad = np.full(len(a.mid), 1, dtype=object) if a.rad is None else (a.rad >> drop) + 2
    return replace(a, exponent=a.exponent - drop, mid=a.mid >> drop, rad=rad)


def _raised(a: ExactEntries, bits: int) -> ExactEntries:
    """Fewer bits of nonnegative entries without a radius, rounded up."""
    drop = _excess(a, bits)
    return a if drop <= 0 else replace(a, exponent=a.exponent - drop, mid=-((-a.mid) >> drop))


def _excess(a: ExactEntries, bits: int) -> int:
    """Bits that the longest integer has too many, as far as the exponent allows them to be cut."""
    longest = 0 if not len(a.mid) else int(max(a.magnitude())).bit_length()
    return min(longest - bits, a.exponent)


def _transposed(a: ExactEntries) -> ExactEntries:
    order = np.lexsort((a.rows, a.cols))
    rad = None if a.rad is None else a.rad[order]
    return replace(a, shape=a.shape[::-1], rows=a.cols[order], cols=a.rows[order], mid=a.mid[order], rad=rad)


def _applied_exactly(leaf: LinearMap, x: ExactEntries, *, back: bool) -> ExactEntries:
    """|leaf| X, or |leaf|' X: both in parts of a few bits, whose products floating point sums without rounding."""
    x = _raised(x, APPLIED_BITS)
    stored = _stored(leaf)
    exponent = max(dyadic_exponent(part) for part in stored)
    parts = [abs(np.array(integers(part, exponent), dtype=object)) for part in stored]
    kernel: Array = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    drop = min(int(max(kernel.tolist())).bit_length() - APPLIED_BITS, exponent)
    if drop > 0:
        kernel, exponent = np.asarray(-((-kernel) >> drop)), exponent - drop
    width = (53 - max(1, _summands(leaf, back=back)).bit_length()) // 2
    whole = np.zeros(x.shape, dtype=object)
    whole[x.rows, x.cols] = x.mid
    shape = (leaf.shape[1] if back else leaf.shape[0], x.shape[1])
    total = np.zeros(shape, dtype=object)
    columns = _parts(whole, width)
    for a, part in enumerate(_parts(kernel, width)):
        map = _like(leaf, part.reshape(stored[0].shape))
        for b, column in enumerate(columns):
            values = map.rmatvec(column) if back else map.matvec(column)
            total += values.reshape(shape).astype(np.int64).astype(object) << (width * (a + b))
    rows, cols = np.nonzero(total)
    return _raised(
        ExactEntries(shape=shape, exponent=exponent + x.exponent, rows=rows, cols=cols, mid=total[rows, cols]),
        MANTISSA_BITS,
    )


def _parts(values: Array, width: int) -> list[Array]:
    """Nonnegative integers as float64 integers below 2^width, least significant first."""
    parts = []
    while values.any():
        parts.append((values & ((1 << width) - 1)).astype(np.float64))
        values = values >> width
    return parts


# ----------------------------------------------------------------------------------- maps that are not expanded


def _stored(leaf: LinearMap) -> list[Array]:
    """The numbers of a leaf, and their radii where it has some."""
    if isinstance(leaf, Transposed):
        return _stored(leaf.map)
    values, radius = (leaf.kernel, leaf.radius) if isinstance(leaf, Conv) else (leaf.weights, leaf.radius)  # type: ignore[attr-defined]
    return [values] if radius is None else [values, radius]


def _like(leaf: LinearMap, values: Array) -> LinearMap:
    """A map with other numbers in the same places."""
    if isinstance(leaf, Transposed):
        return Transposed(map=_like(leaf.map, values))
    if isinstance(leaf, Conv):
        return replace(leaf, kernel=values, radius=None)
    assert isinstance(leaf, Dense)
    return Dense(weights=values)


def _summands(leaf: LinearMap, *, back: bool) -> int:
    """The most products that are added up in one entry of leaf X, or of leaf' X."""
    if isinstance(leaf, Transposed):
        return _summands(leaf.map, back=not back)
    if not isinstance(leaf, Conv):
        return leaf.shape[0] if back else leaf.shape[1]
    channels = leaf.kernel.shape[0] // leaf.groups if back else leaf.kernel.shape[1]
    return int(channels * np.prod(leaf.taps))


def applicable(leaf: LinearMap) -> bool:
    """Whether a map can be applied without being expanded: dense matrices and (transposed) convolutions."""
    return isinstance(leaf.map if isinstance(leaf, Transposed) else leaf, Dense | Conv)


def _uniform(values: Array) -> bool:
    return len(values) > 0 and bool(np.all(values == values[0]))
