"""Proofs in floating point: positive semidefinite block matrices, and what follows from them.

The test of a matrix P known up to entrywise errors. Scale P to a diagonal in [1/2, 2) by powers of two, which is
exact. Take any factor R in floating point (a Cholesky factor of P - diag(shift)), form the residual E = P - R R' and
bound by the standard model everything that rounding did to it. If what is left of E is diagonally dominant, E is
positive semidefinite, and with it P = R R' + E. Nothing is assumed of the factorization; of matrix products only that
every entry is a sum, in some order, of products, each operation with relative error at most 2^-53 (so not Strassen, and
not a reduced precision). Rump 2006 (BIT 46:433), Higham 2002 (sections 3.1, 3.5). A NaN, an overflow or any doubt ends
in "not proved".
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.linalg import blas, eigvalsh, lapack
from scipy.sparse.linalg import ArpackError, eigsh

from lipmodel.certify.kernel import elimination_order
from lipmodel.certify.lmi import (
    BlockSymmetric,
    FloatSystem,
    Multipliers,
    contraction,
    lmi_enclosure,
)
from lipmodel.ranges.enclosure import INFLATE, TINY, Array, MatrixEnclosure, U, gamma

TILE = 64
"""Largest tile: error constants grow with the length of the sums, so long sums are cut into short ones."""
GENEROUS = 40.0
"""How much more than the least imaginable the diagonal is shifted at first, which mostly decides at once."""
MODERATE = 200
"""Exponents up to which a matrix is scaled by multiplication."""
UNDERFLOW = 2.0**-577
"""Per entry of a row: far above what underflow can do to a matrix with diagonal in [1/2, 2)."""

_REFUSALS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, MemoryError)


def proves_lmi(system: FloatSystem, multipliers: Multipliers) -> bool:
    """Whether the inequality P >= 0 of the system holds with these multipliers, proved in floating point.

    True implies dy' diag(s)^-1 dy <= dx' diag(g) dx for every pair of inputs. Never raises.
    """
    try:
        return proves_positive_semidefinite(lmi_enclosure(system, multipliers))
    except _REFUSALS:
        return False


def proves_positive_semidefinite(blocks: BlockSymmetric) -> bool:
    """Whether every symmetric matrix in the enclosure is positive semidefinite, proved in floating point.

    Never raises.
    """
    try:
        with np.errstate(all="ignore"):
            scaled = _scaled(blocks)
            return scaled is not None and _is_proved(scaled)
    except _REFUSALS:
        return False


def spectral_norm_upper(M: MatrixEnclosure, *, limit: int = 2500) -> float | None:
    """A proved upper bound of ||M||_2, about 1e-12 above it; None where min(M.shape) > limit or the proof fails.

    M: dense or sparse, shape (m, n), any scale. Proves T I - M M' >= 0 (or M' M, the smaller of the two).
    """
    if min(M.shape) > limit or min(M.shape) == 0:
        return 0.0 if min(M.shape) == 0 else None
    try:
        with np.errstate(all="ignore"):
            return _spectral_norm_upper(M)
    except _REFUSALS:
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tiles:
    """A scaled matrix in tiles, in order of elimination: tiles[i, j], i >= j, zero tiles left out.

    spans[i]: where tile i lies in a vector; radius: row sums of the entrywise errors.
    """

    tiles: dict[tuple[int, int], Array]
    spans: list[slice]
    radius: Array


def _scaled(blocks: BlockSymmetric) -> _Tiles | None:
    """E P E with a diagonal in [1/2, 2), E powers of two; None where P cannot be positive semidefinite."""
    starts = np.concatenate([[0], np.cumsum(blocks.sizes)])
    total = int(starts[-1])
    diagonal, error, sums = np.zeros(total), np.zeros(total), np.zeros(total)
    parts: dict[tuple[int, int], tuple[Array, Array | None]] = {}
    for i, own in blocks.diagonals.items():
        if own.shape != (blocks.sizes[i],) or (i, i) in blocks.blocks:
            raise ValueError(f"the diagonal of block {i} does not fit")
        diagonal[_span(starts, i)] = own
        sums[_span(starts, i)] = np.abs(own)
    for (i, j), block in blocks.blocks.items():
        rows, columns = _span(starts, i), _span(starts, j)
        center, radius = parts[i, j] = _symmetric(i, j, block.dense(), blocks.sizes)
        size = np.abs(center) if radius is None else np.abs(center) + radius
        sums[rows] += size.sum(axis=1)
        sums[columns] += size.sum(axis=0)
        if i == j:
            diagonal[rows] = np.diagonal(center)
            error[rows] = 0.0 if radius is None else np.diagonal(radius)
    empty = sums == 0  # rows of zeros, of which nothing can go wrong: decoupled, they may have any diagonal
    diagonal[empty] = 1.0
    if not bool(np.all(diagonal - error > 0)) or not bool(np.all(np.isfinite(sums))):
        return None
    exponent = -(np.frexp(diagonal)[1] // 2)
    scaled: dict[tuple[int, int], Array] = {}
    rad = np.zeros(total)
    for (i, j), (center, radius) in parts.items():
        rows, columns = _span(starts, i), _span(starts, j)
        entries = _shifted(center, exponent[rows], exponent[columns])
        small = (center != 0) & (np.abs(entries) < 2.0**-300)  # out of the way of underflow, and into the error
        entries[small] = 0.0
        if not bool(np.all(np.abs(entries) <= 4.0)):
            return None
        scaled[i, j] = entries
        bound = np.where(small, 2.0**-299, 0.0)
        if radius is not None:
            error_of = _shifted(radius, exponent[rows], exponent[columns]) * INFLATE
            bound += np.where(radius != 0, error_of + 2.0**-600, 0.0)
        if not bool(np.all(bound <= 4.0)):
            return None
        rad[rows] += bound.sum(axis=1)
        if i != j:
            rad[columns] += bound.sum(axis=0)
    units = np.ldexp(diagonal, 2 * exponent)  # exact: an entry of [1/2, 2)
    for i in range(len(blocks.sizes)):
        rows = _span(starts, i)
        if (i, i) in scaled:
            scaled[i, i][empty[rows], empty[rows]] = 1.0
    return _tiled(scaled, units, starts, rad * INFLATE)


def _shifted(values: Array, rows: Array, columns: Array) -> Array:
    """values[i, j] 2^(rows_i + columns_j); what underflows on the way is below 2^-800 afterwards."""
    if max(int(np.abs(rows).max(initial=0)), int(np.abs(columns).max(initial=0))) > MODERATE:
        return np.asarray(np.ldexp(values, rows[:, None] + columns[None, :]))
    result = values * np.ldexp(1.0, rows)[:, None]  # products with powers of two are exact, and faster
    result *= np.ldexp(1.0, columns)
    return np.asarray(result)


def _symmetric(i: int, j: int, block: MatrixEnclosure, sizes: tuple[int, ...]) -> tuple[Array, Array | None]:
    """Center and radius of a block, checked; diagonal blocks mirrored from the lower triangle."""
    if not 0 <= j <= i < len(sizes) or block.shape != (sizes[i], sizes[j]):
        raise ValueError(f"block ({i}, {j}) of shape {block.shape} does not fit sizes {sizes}")
    center = np.asarray(block.center, dtype=np.float64)
    radius = None if block.radius is None else np.asarray(block.radius, dtype=np.float64)
    if radius is not None and (radius.shape != center.shape or not bool(np.all(radius >= 0))):
        raise ValueError(f"block ({i}, {j}) has no valid radius")
    return (center, radius) if i != j else (_mirrored(center), None if radius is None else _mirrored(radius))


def _mirrored(lower: Array) -> Array:
    return np.tril(lower) + np.tril(lower, -1).T


def _span(starts: Array, i: int) -> slice:
    return slice(int(starts[i]), int(starts[i + 1]))


def _tiled(scaled: dict[tuple[int, int], Array], diagonal: Array, starts: Array, radius: Array) -> _Tiles:
    """Cut blocks into tiles, leave out zero tiles, and sort by order of elimination.

    diagonal: of the whole matrix, for blocks on it that have no entries besides.
    """
    cuts: list[tuple[int, int, int]] = []  # block, first and last entry within it
    for i in range(len(starts) - 1):
        size = int(starts[i + 1] - starts[i])
        pieces = -(-size // TILE)
        edges = [size * k // pieces for k in range(pieces + 1)]
        cuts.extend((i, a, b) for a, b in pairwise(edges))
    of_block: dict[int, list[int]] = defaultdict(list)
    for index, (i, _, _) in enumerate(cuts):
        of_block[i].append(index)
    tiles: dict[tuple[int, int], Array] = {}
    for (i, j), entries in scaled.items():
        for a in of_block[i]:
            for b in of_block[j]:
                tile = entries[cuts[a][1] : cuts[a][2], cuts[b][1] : cuts[b][2]]
                if b <= a and (a == b or bool(np.any(tile))):
                    tiles[a, b] = tile
    for index, (i, a, b) in enumerate(cuts):
        if (i, i) not in scaled:
            tiles[index, index] = np.diag(diagonal[starts[i] + a : starts[i] + b])
    order = elimination_order([b - a for _, a, b in cuts], tiles)
    place = {index: position for position, index in enumerate(order)}
    moved = {}
    for (a, b), tile in tiles.items():
        p, q = place[a], place[b]
        moved[max(p, q), min(p, q)] = tile if p >= q else tile.T
    spans, rows, start = [], [], 0
    for index in order:
        i, a, b = cuts[index]
        spans.append(slice(start, start + b - a))
        rows.append(np.arange(starts[i] + a, starts[i] + b))
        start += b - a
    return _Tiles(tiles=moved, spans=spans, radius=radius[np.concatenate(rows)])


def _is_proved(matrix: _Tiles) -> bool:
    """The residual test, with the shift of the diagonal adapted to what the residual turns out to need."""
    row_sums = np.zeros(len(matrix.radius))
    for (i, j), tile in matrix.tiles.items():
        size = np.abs(tile)
        row_sums[matrix.spans[i]] += size.sum(axis=1)
        if i != j:
            row_sums[matrix.spans[j]] += size.sum(axis=0)
    known = matrix.radius * (1.0 + 2.0**-28)  # needed whatever the factor
    generous = _residual(matrix, known + GENEROUS * gamma(TILE) * row_sums, row_sums)
    if generous is not None and _suffices(*generous):
        return True
    shift = known + gamma(TILE) * row_sums
    for _ in range(5):
        outcome = _residual(matrix, shift, row_sums)
        if outcome is None:
            return False
        surplus, need = outcome
        if _suffices(surplus, need):
            return True
        shift = np.maximum(shift, known + 1.25 * (need - matrix.radius) + 2.0 * np.abs(surplus - shift))
    return False


def _suffices(surplus: Array, need: Array) -> bool:
    """The decision: the residual is diagonally dominant, whatever rounding did."""
    return bool(np.all(np.isfinite(need))) and bool(np.all(surplus >= need))


def _residual(matrix: _Tiles, shift: Array, row_sums: Array) -> tuple[Array, Array] | None:
    """Row by row, a lower bound of E_ii and an upper bound of sum_{j != i} |E_ij|, where E = P - R R'.

    R is the Cholesky factor of P - diag(shift), tile by tile, right-looking; None where a pivot is not positive.
    """
    spans = matrix.spans
    remaining = dict(matrix.tiles)
    updates: dict[tuple[int, int], int] = defaultdict(int)
    diagonal, outside, modulus = np.zeros_like(shift), np.zeros_like(shift), np.zeros_like(shift)
    for j, span in enumerate(spans):
        own = remaining.pop((j, j)) - np.diag(shift[span])
        below = [i for i in range(j + 1, len(spans)) if (i, j) in remaining]
        pivots = np.diagonal(own).copy()
        is_diagonal = np.count_nonzero(own) == np.count_nonzero(pivots)
        if is_diagonal:
            root = np.sqrt(pivots)
            factor, residual = np.diag(root), np.diag(pivots - root * root)
        else:
            factor, info = lapack.dpotrf(own, lower=1, clean=1)
            root = np.diagonal(factor)
            if info != 0:
                return None
            residual = own - factor @ factor.T
        if not bool(np.all(root > 0)) or not bool(np.all(np.isfinite(factor))):
            return None
        diagonal[span] += np.diagonal(residual)
        size = np.abs(residual)
        np.fill_diagonal(size, 0.0)
        outside[span] += size.sum(axis=1)
        columns = {j: factor}
        for i in below:
            tile = remaining.pop((i, j))
            if is_diagonal:
                columns[i] = tile / root
                residual = tile - columns[i] * root
            else:
                columns[i] = blas.dtrsm(1.0, factor, tile, side=1, lower=1, trans_a=1)
                residual = tile - columns[i] @ factor.T
            size = np.abs(residual)
            outside[spans[i]] += size.sum(axis=1)
            outside[span] += size.sum(axis=0)
        column_sums = sum(np.abs(c).sum(axis=0) for c in columns.values())
        for i, column in columns.items():
            modulus[spans[i]] += np.abs(column) @ column_sums
        for position, a in enumerate(below):
            for b in below[: position + 1]:
                product = columns[a] @ columns[b].T
                remaining[a, b] = remaining[a, b] - product if (a, b) in remaining else -product
                updates[a, b] += 1
    # a product entry takes part in its own sum (a tile wide), in the updates of its tile, the shift and the residual
    longest = max(s.stop - s.start for s in spans) + max(updates.values(), default=0) + 4
    rounding = gamma(longest) * (modulus + row_sums + shift)
    need = (outside + rounding + matrix.radius + len(shift) * UNDERFLOW) * INFLATE
    return (diagonal + shift) * (1.0 - 4.0 * U), need


def _spectral_norm_upper(M: MatrixEnclosure) -> float | None:
    wide = M if M.shape[0] <= M.shape[1] else M.transpose()
    largest = max(float(abs(wide.center).max()), 0.0 if wide.radius is None else float(abs(wide.radius).max()))
    if not math.isfinite(largest):
        return None
    if largest == 0.0:
        return 0.0
    unit = math.frexp(largest)[1]
    gram = _gram(_in_units(wide, unit))
    size = gram.shape[0]
    uncertain = np.zeros((size, size)) if gram.radius is None else gram.radius
    estimate = max(_largest_eigenvalue(gram.center), float(np.max(np.diagonal(gram.center))))
    error = float(np.max(uncertain.sum(axis=1)))
    excess = max(2.0 * error, 16.0 * U * estimate)
    while excess <= 1e-3 * estimate + 4.0 * error:
        square = estimate + excess
        gap = square * np.eye(size) - gram.center
        radius = uncertain + np.diag(2.0 * U * np.abs(np.diagonal(gap)))
        block = MatrixEnclosure(center=gap, radius=radius * INFLATE)
        if proves_positive_semidefinite(BlockSymmetric(sizes=(size,), blocks={(0, 0): block})):
            norm = math.ldexp(math.nextafter(math.sqrt(square), math.inf), unit)
            return norm if norm > 2.0**-1000 else math.nextafter(norm, math.inf)
        excess *= 2.0
    return None


def _in_units(M: MatrixEnclosure, unit: int) -> MatrixEnclosure:
    """2^-unit M; entries far below the largest, where products would underflow, become part of the error."""

    def kept(values: Array) -> Array:
        scaled = np.ldexp(values, -unit)
        return np.where(np.abs(scaled) < 2.0**-300, 0.0, scaled)

    def lost(values: Array) -> Array:
        return np.where((values != 0) & (np.abs(np.ldexp(values, -unit)) < 2.0**-300), 2.0**-299, 0.0)

    def raised(values: Array) -> Array:
        return np.where(values != 0, np.ldexp(values, -unit) * INFLATE + 2.0**-600, 0.0)

    radius = _entrywise(lost, M.center)
    if M.radius is not None:
        radius = (radius + _entrywise(raised, M.radius)) * INFLATE
    elif radius.max() == 0.0:
        radius = None
    return MatrixEnclosure(center=_entrywise(kept, M.center), radius=radius)


def _entrywise(function: Callable[[Array], Array], a: Any) -> Any:
    if not hasattr(a, "tocsr"):
        return function(np.asarray(a, dtype=np.float64))
    result = a.tocsr(copy=True)
    result.data = function(result.data)
    return result


def _gram(M: MatrixEnclosure) -> MatrixEnclosure:
    """Enclosure of M M', dense; M may be sparse."""
    if not M.is_sparse:
        return contraction(M.transpose(), M.transpose())
    size = abs(M.center)
    terms = int(np.diff(M.center.indptr).max())  # no entry sums more products than a row has entries
    radius = gamma(terms + 2) * (size @ size.T).toarray()
    if M.radius is not None:
        radius += (M.radius @ (size + M.radius).T + size @ M.radius.T).toarray()
    return MatrixEnclosure(center=(M.center @ M.center.T).toarray(), radius=radius * INFLATE + TINY)


def _largest_eigenvalue(symmetric: Array) -> float:
    """An estimate, from which a proof starts."""
    n = len(symmetric)
    if n > 400:
        start = np.random.default_rng(0).standard_normal(n)
        try:
            return float(eigsh(symmetric, k=1, which="LA", v0=start, return_eigenvectors=False)[0])
        except ArpackError:
            pass
    try:
        return float(eigvalsh(symmetric, subset_by_index=[n - 1, n - 1])[0])
    except np.linalg.LinAlgError:  # the subset driver fails on clustered spectra
        return float(np.linalg.eigvalsh(symmetric)[-1])
