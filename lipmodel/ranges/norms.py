"""Proved upper bounds of induced matrix norms ||M||_{p->q}, p and q among 1, 2, inf.

Five of the nine are maxima over rows or columns, the spectral norm is proved, and the three that are NP-hard
(inf->1, inf->2, 2->1) are bounded by sums of moduli and by equivalence with the spectral norm.

The nine norms follow from ten numbers (`EntryNorms` and the spectral norm) by one table in rational arithmetic, which
serves the floating-point bounds below and the exact checker alike: only the ten numbers are computed differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.network.conv import Conv
from lipmodel.network.linear import Composition, LinearMap, Sum, Transposed
from lipmodel.ranges.enclosure import INFLATE, TINY, MatrixEnclosure, gamma
from lipmodel.spec import NORMS, Norm, as_norm

Array = np.ndarray[Any, Any]
Matrix = LinearMap | MatrixEnclosure
Bound = Fraction | float
"""A proved upper bound: a nonnegative rational, or math.inf where nothing is proved."""

EXPANSION_LIMIT = 5_000_000
"""Entries above which a composition or a sum is bounded part by part instead of being expanded."""
SPECTRAL_LIMIT = 2000
"""The smaller dimension above which no spectral norm is proved from the matrix; convolutions need no matrix."""
CLAIM_MARGIN = 2.0**-41
"""A relative margin that lets `kernel.spectral_norm_at_most` decide a claim (small matrices need about 3e-14)."""
_BLOCK = 256
_GRID = 2.0**24


# ---------------------------------------------------------------------------------------------- rational arithmetic


def round_up(x: Bound, bits: int = 64) -> Bound:
    """The least number with a mantissa of `bits` bits that is at least x >= 0: keeps fractions short; monotone in x."""
    if not isinstance(x, Fraction) or x == 0:
        return x
    shift = bits - 1 - _binade(x)
    return _ceil(x, shift) / (Fraction(2) ** shift)


def root_up(x: Bound, bits: int = 80) -> Bound:
    """The least number with a mantissa of `bits` bits that is at least the square root of x >= 0; monotone in x."""
    if not isinstance(x, Fraction) or x == 0:
        return x
    shift = bits - 1 - _binade(x) // 2
    square = _ceil(x, 2 * shift)
    root = math.isqrt(square)
    return (root + (root * root < square)) / (Fraction(2) ** shift)


def _binade(x: Fraction) -> int:
    """The integer e with 2^e <= x < 2^(e + 1)."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if x.numerator << max(-e, 0) >= x.denominator << max(e, 0) else e - 1


def _ceil(x: Fraction, shift: int) -> int:
    """x * 2^shift, rounded up to an integer."""
    up, down = max(shift, 0), max(-shift, 0)
    return -((-x.numerator << up) // (x.denominator << down))


def times(a: Bound, b: Bound) -> Bound:
    """a b; infinite as soon as one factor is."""
    return a * b if isinstance(a, Fraction) and isinstance(b, Fraction) else math.inf


def plus(a: Bound, b: Bound) -> Bound:
    """a + b; infinite as soon as one term is."""
    return a + b if isinstance(a, Fraction) and isinstance(b, Fraction) else math.inf


def rational(x: Bound) -> Bound:
    """A bound as a fraction where it is finite. Raises ValueError for NaN and negative numbers."""
    if isinstance(x, Fraction):
        return x
    if not x >= 0:
        raise ValueError(f"{x!r} is not an upper bound of a norm")
    return x if math.isinf(x) else Fraction(x)


def float_up(x: Bound) -> float:
    """The least binary64 number that is at least x."""
    try:
        value = float(x)
    except OverflowError:
        return math.inf
    return math.nextafter(value, math.inf) if isinstance(x, Fraction) and Fraction(value) < x else value


# ------------------------------------------------------------------------------------------------- the ten numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryNorms:
    """What the moduli |M_ij| of an m x n matrix say about it: upper bounds, all rational (or infinite).

    `row_sums_2` is the 2-norm of the vector of row sums, `total` the sum of all moduli; `spectral` is the spectral norm
    where the pattern gives it (at most one nonzero in every row, or in every column), else None.
    """

    max_entry: Bound
    max_column_sum: Bound
    max_row_sum: Bound
    max_column_2: Bound
    max_row_2: Bound
    frobenius: Bound
    row_sums_2: Bound
    column_sums_2: Bound
    total: Bound
    spectral: Bound | None = None

    @classmethod
    def constant(cls, value: Bound) -> EntryNorms:
        """Every number equal to `value`: zero matrices, and matrices about which nothing is known."""
        return cls(**{field.name: value for field in fields(cls)})

    def transposed(self) -> EntryNorms:
        """The entry norms of the transpose."""
        return replace(
            self,
            max_column_sum=self.max_row_sum,
            max_row_sum=self.max_column_sum,
            max_column_2=self.max_row_2,
            max_row_2=self.max_column_2,
            row_sums_2=self.column_sums_2,
            column_sums_2=self.row_sums_2,
        )


def entry_norms(matrix: Matrix) -> EntryNorms:
    """The entry norms of a map or an enclosed matrix, from floating-point sums with the rounding accounted for.

    Sparse matrices stay sparse, convolutions are not expanded. Sums of moduli that are multiples of a common power of
    two are exact.
    """
    if isinstance(matrix, Conv):
        from lipmodel.ranges.conv_norms import conv_entry_norms

        return conv_entry_norms(matrix)
    if isinstance(matrix, Transposed):
        return entry_norms(matrix.map).transposed()
    enclosure = canonical(matrix if isinstance(matrix, MatrixEnclosure) else matrix.enclosure())
    if 0 in enclosure.shape:
        return EntryNorms.constant(Fraction(0))
    size, k = abs(enclosure.center), 0
    if enclosure.radius is not None:
        with np.errstate(over="ignore"):
            size, k = size + enclosure.radius, 1
    peak = float((size.data if _is_sparse(size) else size).max(initial=0.0))
    if not math.isfinite(peak):
        return EntryNorms.constant(math.inf)
    if peak == 0.0:
        return EntryNorms.constant(Fraction(0))
    top, exponent = math.frexp(peak)
    scale = Fraction(2) ** exponent
    a = _scaled_down(size, exponent)
    rows, row_depth = _sums(a, 1)
    columns, column_depth = _sums(a, 0)
    squared = a.copy() if _is_sparse(a) else a * a
    if _is_sparse(a):
        squared.data = a.data * a.data
    rows_2, row_2_depth = _sums(squared, 1)
    columns_2, column_2_depth = _sums(squared, 0)
    total, total_depth = _sums(rows[None, :], 1)
    # on a grid of 2^-24 (2^-12 before squaring) sums below 2^28 are exact in every order
    exact = k == 0 and _on_grid(a, _GRID) and float(total[0]) <= 2.0**28
    exact_2 = exact and _on_grid(a, 2.0**12)

    def sums(values: Array, depth: int) -> Fraction:
        return _risen(float(values.max()), 0 if exact else k + depth) * scale

    def roots(values: Array, depth: int) -> Bound:
        return root_up(_risen(float(values.max()), 0 if exact_2 else 2 * k + 1 + depth) * scale * scale)

    def length(values: Array, depth: int) -> Bound:
        square, more = _sums((values * values)[None, :], 1)
        fits = exact and _on_grid(values, 2.0**12) and float(square[0]) <= 2.0**28
        return root_up(_risen(float(square[0]), 0 if fits else 2 * (k + depth) + 1 + more) * scale * scale)

    max_column_sum, max_row_sum = sums(columns, column_depth), sums(rows, row_depth)
    max_column_2 = min(max_column_sum, roots(columns_2, column_2_depth))
    max_row_2 = min(max_row_sum, roots(rows_2, row_2_depth))
    square, more = _sums(rows_2[None, :], 1)
    spectral = max_column_2 if _single(a, 1) else max_row_2 if _single(a, 0) else None
    return EntryNorms(
        max_entry=_risen(top, k) * scale,
        max_column_sum=max_column_sum,
        max_row_sum=max_row_sum,
        max_column_2=max_column_2,
        max_row_2=max_row_2,
        frobenius=roots(square, row_2_depth + more),
        row_sums_2=length(rows, row_depth),
        column_sums_2=length(columns, column_depth),
        total=sums(total, row_depth + total_depth),
        spectral=spectral,
    )


def _is_sparse(a: Any) -> bool:
    return bool(sp.issparse(a))


def canonical(enclosure: MatrixEnclosure) -> MatrixEnclosure:
    """The same enclosure in CSR form without repeated entries (whose sum may round)."""
    if not enclosure.is_sparse:
        return enclosure
    center, radius = sp.csr_array(enclosure.center), enclosure.radius
    if not center.has_canonical_format:
        moduli = sp.csr_array((np.abs(center.data), center.indices.copy(), center.indptr.copy()), shape=center.shape)
        repeated = int(moduli.nnz)
        moduli.sum_duplicates()
        center = center.copy()
        center.sum_duplicates()
        repeated -= int(moduli.nnz)
        if repeated:
            moduli.data = moduli.data * (gamma(repeated + 2) * INFLATE) + TINY
            radius = moduli if radius is None else (moduli + sp.csr_array(radius)) * INFLATE
    if radius is not None:
        radius = sp.csr_array(radius)
        if not radius.has_canonical_format:
            radius = radius.copy()
            radius.sum_duplicates()
            radius.data = radius.data * INFLATE
    return MatrixEnclosure(center=center, radius=radius)


def _scaled_down(size: Any, exponent: int) -> Any:
    """size * 2^-exponent, rounded up where it underflows; CSR without stored zeros if sparse."""
    data = size.data if _is_sparse(size) else size
    scaled = np.ldexp(data, -exponent)
    lost = np.ldexp(scaled, exponent) != data
    if lost.any():
        scaled[lost] = np.nextafter(scaled[lost], np.inf)
    if not _is_sparse(size):
        return np.ascontiguousarray(scaled)
    csr = sp.csr_array((scaled, size.indices, size.indptr), shape=size.shape)
    if not np.all(scaled > 0):
        csr = csr.copy()
        csr.eliminate_zeros()
    return csr


def _sums(a: Any, axis: int) -> tuple[Array, int]:
    """Sums of nonnegative entries along an axis, by blocks, and the most additions that an entry goes through."""
    depth = 0
    if not _is_sparse(a):
        while a.shape[axis] > 1:
            depth += min(_BLOCK, a.shape[axis]) - 1
            a = np.add.reduceat(a, np.arange(0, a.shape[axis], _BLOCK), axis=axis)
        return a.sum(axis=axis), depth
    compressed = sp.csr_array(a) if axis == 1 else sp.csc_array(a)
    values, ends = compressed.data, compressed.indptr.astype(np.int64)
    while int(np.diff(ends).max(initial=0)) > 1:
        lengths = np.diff(ends)
        depth += min(_BLOCK, int(lengths.max())) - 1
        blocks = -(-lengths // _BLOCK)
        within = np.arange(int(blocks.sum())) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        values = np.add.reduceat(values, np.repeat(ends[:-1], blocks) + _BLOCK * within)
        ends = np.concatenate([[0], np.cumsum(blocks)])
    out = np.zeros(len(ends) - 1)
    out[np.diff(ends) == 1] = values
    return out, depth


def _risen(value: float, roundings: int) -> Fraction:
    """What a sum computed as `value` can be at most when every term went through that many roundings.

    The terms are at most 1, and fewer than 2^50; the last summand covers every underflow.
    """
    x = Fraction(value)
    return x if roundings == 0 else x * (1 + Fraction(gamma(roundings + 1))) + Fraction(1, 2**900)


def _on_grid(a: Any, grid: float) -> bool:
    """Whether every entry is a multiple of 1 / grid, a power of two."""
    data = (a.data if _is_sparse(a) else a) * grid
    return bool(np.all(data == np.floor(data)))


def _single(a: Any, axis: int) -> bool:
    """Whether no row (axis 1) or no column (axis 0) has more than one nonzero."""
    if not _is_sparse(a):
        return int(np.count_nonzero(a, axis=axis).max(initial=0)) <= 1
    counts = np.diff(a.indptr) if axis == 1 else np.bincount(a.indices, minlength=1)
    return int(counts.max(initial=0)) <= 1


# ---------------------------------------------------------------------------------------------------- the nine norms


def least_norm(norms: EntryNorms, shape: tuple[int, int], p: Norm, q: Norm, spectral: Callable[[], Bound]) -> Bound:
    """The least bound of ||M||_{p->q} that the entry norms and the spectral norm give; M is m x n.

    `spectral` is asked only if the pair depends on it (p, q in {2->2, inf->2, 2->1, inf->1}) and both dimensions exceed
    one: otherwise the entry norms are the answer.
    """
    if p == "1":
        return {"1": norms.max_column_sum, "2": norms.max_column_2, "inf": norms.max_entry}[q]
    if q == "inf":
        return {"2": norms.max_row_2, "inf": norms.max_row_sum}[p]
    m, n = shape
    two = min(norms.frobenius, root_up(times(norms.max_column_sum, norms.max_row_sum)))
    if min(m, n) > 1:
        two = min(two, spectral())
    if p == "2" and q == "2":
        return two
    root_m, root_n = root_up(Fraction(m)), root_up(Fraction(n))
    inf_2 = min(norms.row_sums_2, times(root_n, two))
    two_1 = min(norms.column_sums_2, times(root_m, two))
    if q == "2":
        return inf_2
    if p == "2":
        return two_1
    return min(norms.total, times(root_m, inf_2), times(root_n, two_1))


class NormEvaluator:
    """Induced norms of maps, from a way to compute entry norms and a way to prove spectral norms.

    `log` lists the spectral norms in the order in which they were asked for (one for each `of`, inf where none was
    proved or none was needed), so that a certificate can carry them as hints.
    """

    def __init__(
        self, entries: Callable[[Matrix], EntryNorms], spectral: Callable[[Matrix, EntryNorms], Bound]
    ) -> None:
        self._entries = entries
        self._spectral = spectral
        self._known: dict[int, tuple[Matrix, EntryNorms]] = {}
        self._maps: dict[int, MapNorms] = {}
        self.log: list[float] = []

    def again(self) -> NormEvaluator:
        """An evaluator with an empty log that remembers what this one has computed."""
        other = NormEvaluator(self._entries, self._spectral)
        other._known = self._known
        return other

    def of(self, matrix: Matrix) -> MapNorms:
        """The nine norms of one map."""
        return MapNorms(self, matrix)

    def __call__(self, matrix: Matrix, p: Norm, q: Norm) -> Bound:
        """A proved bound of ||M||_{p->q}; each map is expanded once."""
        known = self._maps.get(id(matrix))
        if known is None:
            known = self._maps[id(matrix)] = self.of(matrix)
        return known(p, q)

    def entry_norms(self, matrix: Matrix) -> EntryNorms:
        known = self._known.get(id(matrix))
        if known is None:
            known = self._known[id(matrix)] = (matrix, self._entries(matrix))
        return known[1]

    def spectral(self, matrix: Matrix) -> Bound:
        norms = self.entry_norms(matrix)
        value = self._spectral(matrix, norms)
        self.log.append(float_up(value))
        return value if norms.spectral is None else min(value, norms.spectral)


class MapNorms:
    """The nine norms of one map, computed when asked for."""

    def __init__(self, evaluator: NormEvaluator, matrix: Matrix) -> None:
        self._evaluator, self._matrix = evaluator, matrix
        self._two: Bound | None = None
        self._parts: tuple[MapNorms, ...] = ()
        self._bounds: dict[tuple[Norm, Norm], Bound] = {}
        if isinstance(matrix, Composition | Sum) and expansion(matrix) > EXPANSION_LIMIT:
            from lipmodel.ranges.conv_symbol import folded_factors

            parts = matrix.terms if isinstance(matrix, Sum) else folded_factors(matrix) or matrix.factors
            self._parts = tuple(evaluator.of(part) for part in parts)

    def __call__(self, p: Norm, q: Norm) -> Bound:
        """A proved bound of ||M||_{p->q}."""
        if (p, q) not in self._bounds:
            self._bounds[p, q] = self._bound(p, q)
        return self._bounds[p, q]

    def _bound(self, p: Norm, q: Norm) -> Bound:
        if not self._parts:
            norms = self._evaluator.entry_norms(self._matrix)
            return least_norm(norms, self._matrix.shape, p, q, self._spectral)
        if isinstance(self._matrix, Sum):
            total: Bound = Fraction(0)
            for part in self._parts:
                total = plus(total, part(p, q))
            return total
        reached: dict[Norm, Bound] = {p: Fraction(1)}
        for part in self._parts[:0:-1]:
            reached = {r: _best(reached, part, r) for r in NORMS}
        return _best(reached, self._parts[0], q)

    def _spectral(self) -> Bound:
        if self._two is None:
            self._two = self._evaluator.spectral(self._matrix)
        return self._two


def _best(reached: dict[Norm, Bound], part: MapNorms, q: Norm) -> Bound:
    return round_up(min(times(bound, part(r, q)) for r, bound in reached.items()))


def expansion(matrix: Matrix) -> int:
    """Predicted number of entries of the largest matrix that appears when a map is expanded."""
    if isinstance(matrix, Composition):
        last = len(matrix.factors) - 1
        partial = [Composition(factors=matrix.factors[k:]).entries for k in range(last)]
        return max(partial + [expansion(f) for f in matrix.factors])
    if isinstance(matrix, Sum):
        return max([matrix.entries] + [expansion(t) for t in matrix.terms])
    return 0 if isinstance(matrix, MatrixEnclosure) else matrix.entries


def float_norms(*, spectral_limit: int = SPECTRAL_LIMIT, margin: float = 0.0) -> NormEvaluator:
    """Norms proved in floating point; spectral norms up to min(m, n) = spectral_limit.

    margin: by how much, relatively, every spectral norm is raised, so that an exact check has room (`CLAIM_MARGIN`).
    """
    proved: dict[int, Bound] = {}

    def spectral(matrix: Matrix, norms: EntryNorms) -> Bound:
        if norms.spectral is not None or not isinstance(norms.frobenius, Fraction):
            return math.inf
        if id(matrix) not in proved:
            raised = times(_spectral(matrix, spectral_limit), 1 + Fraction(margin))
            proved[id(matrix)] = rational(float_up(raised))  # a certificate carries it as a float
        return proved[id(matrix)]

    return NormEvaluator(entry_norms, spectral)


def _spectral(matrix: Matrix, limit: int) -> Bound:
    from lipmodel.certify.rigor import spectral_norm_upper
    from lipmodel.ranges.conv_spectral import structured_norm

    structured = math.inf if isinstance(matrix, MatrixEnclosure) else structured_norm(matrix)
    if min(matrix.shape) > limit:
        return structured
    enclosure = canonical(matrix if isinstance(matrix, MatrixEnclosure) else matrix.enclosure())
    if enclosure.is_sparse and matrix.shape[0] * matrix.shape[1] <= max(1_000_000, 8 * enclosure.center.nnz):
        enclosure = enclosure.dense()  # whose products are cut into short sums: a tighter proof
    value = spectral_norm_upper(enclosure, limit=limit)
    return structured if value is None else min(structured, rational(value))


def induced_norm(matrix: Matrix, p: Any, q: Any, *, spectral_limit: int = SPECTRAL_LIMIT) -> float:
    """A proved upper bound of ||M||_{p->q}, M of shape (m, n), rounded up; inf for a matrix that is not finite.

    Tight to a few roundings for 1->q, p->inf and matrices of one row or column; for 2->2 as tight as the proof of the
    spectral norm, which is tried up to min(m, n) = `spectral_limit`, and by frequencies for convolutions of every size;
    else sqrt(||M||_{1->1} ||M||_{inf->inf}) or the Frobenius norm. The NP-hard inf->1, inf->2 and 2->1 are bounded by
    sums of moduli and by multiples of the spectral norm. Compositions and sums too large to expand are bounded by their
    factors and terms. Raises UsageError for an unknown norm.

    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), section 6.2; Rump, BIT 46 (2006) 433.
    """
    return float_up(float_norms(spectral_limit=spectral_limit)(matrix, as_norm(p), as_norm(q)))
