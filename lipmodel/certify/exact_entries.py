"""Linear maps as lists of exact entries, and their entry norms in integers.

An entry is an integer times a common power of two, with an integer radius where the map is known up to an error. Leaves
are read as they are stored; compositions and sums are multiplied out in integers, sparse where they are sparse.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
from flint import fmpz_mat

from lipmodel.network.conv import Conv
from lipmodel.network.exact import ExactMatrix, dyadic_exponent, integers
from lipmodel.network.linear import Composition, Sum, Transposed
from lipmodel.ranges.conv_norms import conv_entry_norms
from lipmodel.ranges.enclosure import MatrixEnclosure
from lipmodel.ranges.norms import EntryNorms, Matrix, root_up

Array = np.ndarray[Any, Any]

_SPARSE_PRODUCTS = 300_000
"""Products of entries above which two matrices are multiplied as dense integer matrices, where that takes less time."""
_DENSE_ENTRIES = 20_000_000
_CHUNK = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExactEntries:
    """M_ij = (mid_k +- rad_k) 2^-exponent at (i, j) = (rows_k, cols_k), zero elsewhere; in row-major order, no repeats.

    mid, rad: Python integers, in arrays of dtype object, shape (number of entries,); rad is None where M is exact.
    """

    shape: tuple[int, int]
    exponent: int
    rows: Array
    cols: Array
    mid: Array
    rad: Array | None = None

    def magnitude(self) -> Array:
        size = abs(self.mid)
        return size if self.rad is None else size + self.rad

    def shifted(self, exponent: int) -> tuple[Array, Array | None]:
        """(mid, rad) over 2^-exponent, exponent at least the present one."""
        factor = 1 << (exponent - self.exponent)
        return self.mid * factor, None if self.rad is None else self.rad * factor


def exact_entries(matrix: Matrix | ExactEntries) -> ExactEntries:
    """The entries of a map or an enclosed matrix (entries are returned as they are)."""
    if isinstance(matrix, ExactEntries):
        return matrix
    if isinstance(matrix, Composition):
        if matrix.shape[0] < matrix.shape[1] and _is_exact(matrix):  # few rows stay few
            return reduce(_before, matrix.factors[1:], exact_entries(matrix.factors[0]))
        last = exact_entries(matrix.factors[-1])
        return reduce(lambda right, left: product(exact_entries(left), right), matrix.factors[-2::-1], last)
    if isinstance(matrix, Sum):
        return reduce(added, (exact_entries(term) for term in matrix.terms))
    enclosure = matrix if isinstance(matrix, MatrixEnclosure) else matrix.enclosure()
    return _stored(enclosure.center, enclosure.radius)


def _is_exact(matrix: Matrix) -> bool:
    if isinstance(matrix, Composition | Sum):
        return all(map(_is_exact, matrix.factors if isinstance(matrix, Composition) else matrix.terms))
    return getattr(matrix, "radius", None) is None


def _before(left: ExactEntries, matrix: Matrix) -> ExactEntries:
    """The product of entries with a map, factor by factor and term by term."""
    if isinstance(matrix, Composition):
        return reduce(_before, matrix.factors, left)
    if isinstance(matrix, Sum):
        return reduce(added, (_before(left, term) for term in matrix.terms))
    return product(left, exact_entries(matrix))


def exact_matrix(matrix: Matrix) -> ExactMatrix:
    """The same matrix, dense."""
    return _to_dense(exact_entries(matrix))


def exact_entry_norms(matrix: Matrix) -> EntryNorms:
    """The entry norms of a map or an enclosed matrix: sums in integers, square roots rounded up at 80 bits."""
    if isinstance(matrix, Conv):
        return conv_entry_norms(matrix)
    if isinstance(matrix, Transposed):
        return exact_entry_norms(matrix.map).transposed()
    entries = exact_entries(matrix)
    size = entries.magnitude()
    kept = np.flatnonzero(size)
    if not len(kept):
        return EntryNorms.constant(Fraction(0))
    size, rows, cols = size[kept], entries.rows[kept], entries.cols[kept]
    by_column = np.argsort(cols, kind="stable")
    square = size * size
    unit = Fraction(1, 1 << entries.exponent)

    def along(values: Array, axis: int) -> Array:
        """Sums of the nonempty rows (axis 1) or columns (axis 0)."""
        index, ordered = (rows, values) if axis == 1 else (cols[by_column], values[by_column])
        return np.asarray(np.add.reduceat(ordered, _starts(index)))

    row_sums, column_sums = along(size, 1), along(size, 0)
    max_column_2 = root_up(int(max(along(square, 0))) * unit * unit)
    max_row_2 = root_up(int(max(along(square, 1))) * unit * unit)
    single_rows, single_columns = len(row_sums) == len(size), len(column_sums) == len(size)
    return EntryNorms(
        max_entry=int(max(size)) * unit,
        max_column_sum=int(max(column_sums)) * unit,
        max_row_sum=int(max(row_sums)) * unit,
        max_column_2=max_column_2,
        max_row_2=max_row_2,
        frobenius=root_up(int(square.sum()) * unit * unit),
        row_sums_2=root_up(int((row_sums * row_sums).sum()) * unit * unit),
        column_sums_2=root_up(int((column_sums * column_sums).sum()) * unit * unit),
        total=int(size.sum()) * unit,
        spectral=max_column_2 if single_rows else max_row_2 if single_columns else None,
    )


def _starts(index: Array) -> Array:
    """Where runs of equal values begin."""
    return np.flatnonzero(np.concatenate([[True], index[1:] != index[:-1]]))


def _stored(center: Any, radius: Any) -> ExactEntries:
    parts = [_coordinates(center)] + ([] if radius is None else [_coordinates(radius)])
    exponent = max(dyadic_exponent(values) for _, _, values in parts)
    exact = [(rows, cols, np.array(integers(values, exponent), dtype=object)) for rows, cols, values in parts]
    rows, cols, mid = exact[0]
    shape = (int(center.shape[0]), int(center.shape[1]))
    if radius is None:
        return _collected(shape, exponent, rows, cols, mid, None)
    more_rows, more_cols, rad = exact[1]
    return _collected(
        shape,
        exponent,
        np.concatenate([rows, more_rows]),
        np.concatenate([cols, more_cols]),
        np.concatenate([mid, np.zeros(len(rad), dtype=object)]),
        np.concatenate([np.zeros(len(mid), dtype=object), rad]),
    )


def _coordinates(a: Any) -> tuple[Array, Array, Array]:
    sparse = bool(sp.issparse(a))
    if sparse:
        csr = sp.csr_array(a)
        rows = np.repeat(np.arange(csr.shape[0], dtype=np.int64), np.diff(csr.indptr))
        return rows, csr.indices.astype(np.int64), np.asarray(csr.data, dtype=np.float64)
    a = np.asarray(a, dtype=np.float64)
    rows, cols = np.nonzero(a)
    return rows, cols, a[rows, cols]


def _collected(
    shape: tuple[int, int], exponent: int, rows: Array, cols: Array, mid: Array, rad: Array | None
) -> ExactEntries:
    """Entries in order, those at one place added up."""
    key = rows * shape[1] + cols
    if len(key) and not bool(np.all(key[1:] > key[:-1])):
        order = np.argsort(key, kind="stable")
        starts = _starts(key[order])
        mid = np.add.reduceat(mid[order], starts)
        rad = None if rad is None else np.add.reduceat(rad[order], starts)
        rows, cols = rows[order][starts], cols[order][starts]
    return ExactEntries(shape=shape, exponent=exponent, rows=rows, cols=cols, mid=mid, rad=rad)


def added(a: ExactEntries, b: ExactEntries) -> ExactEntries:
    """A + B."""
    exponent = max(a.exponent, b.exponent)
    (a_mid, a_rad), (b_mid, b_rad) = a.shifted(exponent), b.shifted(exponent)
    rad = None
    if a_rad is not None or b_rad is not None:
        parts = [np.zeros(len(a_mid), dtype=object) if a_rad is None else a_rad]
        parts.append(np.zeros(len(b_mid), dtype=object) if b_rad is None else b_rad)
        rad = np.concatenate(parts)
    rows, cols = np.concatenate([a.rows, b.rows]), np.concatenate([a.cols, b.cols])
    return _collected(a.shape, exponent, rows, cols, np.concatenate([a_mid, b_mid]), rad)


def product(a: ExactEntries, b: ExactEntries) -> ExactEntries:
    """A B in integers: |error| <= |A| rad_B + rad_A (|B| + rad_B)."""
    (m, k), n = a.shape, b.shape[1]
    first = np.searchsorted(b.rows, np.arange(k + 1))
    count = (first[1:] - first[:-1])[a.cols]
    done = np.concatenate([[0], np.cumsum(count)])
    sizes = m * k, k * n, m * n
    if done[-1] > max(_SPARSE_PRODUCTS, sum(sizes) + m * k * n // 200) and max(sizes) <= _DENSE_ENTRIES:
        return _from_dense(_to_dense(a) @ _to_dense(b))
    exact = a.rad is None and b.rad is None
    size = b.magnitude()
    pieces = []
    cuts = np.searchsorted(done, np.arange(0, done[-1] + _CHUNK, _CHUNK))
    for start, stop in pairwise(np.unique(np.minimum(cuts, len(a.rows)))):
        left = np.repeat(np.arange(start, stop), count[start:stop])
        right = np.arange(len(left)) - (done[left] - done[start]) + first[a.cols[left]]
        mid = a.mid[left] * b.mid[right]
        rad = None
        if not exact:
            rad = np.zeros(len(left), dtype=object)
            if b.rad is not None:
                rad = rad + abs(a.mid[left]) * b.rad[right]
            if a.rad is not None:
                rad = rad + a.rad[left] * size[right]
        pieces.append(_collected((m, n), a.exponent + b.exponent, a.rows[left], b.cols[right], mid, rad))
    none = np.zeros(0, dtype=np.int64)
    empty = np.zeros(0, dtype=object)
    return _collected(
        (m, n),
        a.exponent + b.exponent,
        np.concatenate([none, *(p.rows for p in pieces)]),
        np.concatenate([none, *(p.cols for p in pieces)]),
        np.concatenate([empty, *(p.mid for p in pieces)]),
        None if exact else np.concatenate([empty, *(p.rad for p in pieces if p.rad is not None)]),
    )


def _to_dense(entries: ExactEntries) -> ExactMatrix:
    def filled(values: Array) -> fmpz_mat:
        flat = np.zeros(entries.shape[0] * entries.shape[1], dtype=object)
        flat[entries.rows * entries.shape[1] + entries.cols] = values
        return fmpz_mat(*entries.shape, flat.tolist())

    radius = None if entries.rad is None else filled(entries.rad)
    return ExactMatrix(mantissa=filled(entries.mid), exponent=entries.exponent, radius=radius)


def _from_dense(matrix: ExactMatrix) -> ExactEntries:
    m, n = matrix.shape
    mid = np.array([int(v) for v in matrix.mantissa.entries()], dtype=object)
    rad = None if matrix.radius is None else np.array([int(v) for v in matrix.radius.entries()], dtype=object)
    kept = np.flatnonzero(mid if rad is None else abs(mid) + rad)
    return ExactEntries(
        shape=(m, n),
        exponent=matrix.exponent,
        rows=kept // n,
        cols=kept % n,
        mid=mid[kept],
        rad=None if rad is None else rad[kept],
    )
