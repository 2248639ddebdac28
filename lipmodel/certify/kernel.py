"""The exact checker: decides the inequality of a network in integers and rationals.

Every number that enters is a dyadic rational (a stored weight, a slope, a multiplier given as a double), or comes with
a dyadic radius. Floating point produces one thing, a factor R as a hint; whether P - R R' is diagonally dominant, and
hence P positive semidefinite, is decided in integers. No bound is trusted that is not derived here:

    P >= 0   implies   dy' diag(s)^-1 dy <= dx' diag(g) dx,   hence   L_{p->q}^2 <= (max or sum of g) (max or sum of s)

(Fazlyab, Robey, Hassani, Morari & Pappas 2019, arXiv 1906.04893; Wang, Prakriya & Jha 2022, arXiv 2203.01212).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from flint import fmpz, fmpz_mat

from lipmodel.certify.lmi import ExactSystem, Multipliers, elimination_order, fault
from lipmodel.errors import Refuted, UsageError
from lipmodel.network.exact import ExactMatrix, dyadic_exponent, integers

Array = np.ndarray[Any, np.dtype[Any]]

FACTOR_BITS = 56
"""The factor is rounded to multiples of 2^-56, which keeps what a double knows of it."""
GRID_BITS = 2 * FACTOR_BITS
"""Products of the factor, and the scaled matrix, are multiples of 2^-112."""


Dyadic = tuple[list[int], int]
"""Integers and an exponent e: the numbers integer * 2^-e."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExactSymmetric:
    """A real symmetric block matrix: diag(diagonal) + blocks, the blocks exact or with a radius.

    diagonal[i]: the dyadic entries of block i. blocks[i, j], i >= j, shape (len of i, len of j); absent blocks are
    zero. Blocks on the diagonal must be symmetric.
    """

    diagonal: tuple[Dyadic, ...]
    blocks: dict[tuple[int, int], ExactMatrix]


def check_lmi(system: ExactSystem, multipliers: Multipliers, p: str, q: str, bound: float) -> None:
    """Decide that `bound` is an upper bound of L_{p->q} by these multipliers; raises Refuted with the reason if not.

    p in {"2", "inf"} ("1" with one input entry); q in {"1", "2"} ("inf" with one output entry).
    """
    reason = fault(system, multipliers)
    if reason is not None:
        raise Refuted(f"the multipliers do not fit the network: {reason}")
    if not (isinstance(bound, float) and math.isfinite(bound) and bound >= 0.0):
        raise Refuted(f"the bound {bound!r} is not a finite nonnegative number")
    try:
        needed = bound_squared(multipliers, p, q)
    except UsageError as error:
        raise Refuted(str(error)) from error
    if Fraction(bound) ** 2 < needed:
        raise Refuted(f"the bound {bound!r} is below {sqrt_up(needed)!r}, which is what its multipliers give")
    if not decides_positive_semidefinite(exact_lmi(system, multipliers)):
        raise Refuted("the inequality of the network does not hold, or is too close to failing, with these multipliers")


def bound_squared(multipliers: Multipliers, p: str, q: str) -> Fraction:
    """The square of the bound on L_{p->q} that P >= 0 gives. Raises UsageError for a pair it says nothing about.

    ||dx||_2^2 max(g) or ||dx||_inf^2 sum(g) bounds dx' diag(g) dx; dy' diag(s)^-1 dy is at least ||dy||_2^2 / max(s) or
    ||dy||_1^2 / sum(s). With a single entry all norms agree.
    """
    g, s = ([Fraction(float(v)) for v in values] for values in (multipliers.g, multipliers.s))
    if p == "2" or (p in ("1", "inf") and len(g) == 1):
        left = max(g)
    elif p == "inf":
        left = sum(g, Fraction(0))
    else:
        raise UsageError(f"these multipliers bound no constant for input norm {p!r}: 2 or inf, or 1 column by column")
    if q == "2" or (q in ("1", "inf") and len(s) == 1):
        right = max(s)
    elif q == "1":
        right = sum(s, Fraction(0))
    else:
        raise UsageError(f"these multipliers bound no constant for output norm {q!r}: 1 or 2, or inf row by row")
    return left * right


def spectral_norm_at_most(A: ExactMatrix, t: float) -> bool:
    """Whether ||A||_2 <= t, decided exactly: [t I, A'; A, t I] >= 0. False where it is too close to call."""
    if not (math.isfinite(t) and t >= 0.0):
        return False
    m, n = A.shape
    diagonal = (_dyadic(np.full(n, t)), _dyadic(np.full(m, t)))
    return decides_positive_semidefinite(ExactSymmetric(diagonal=diagonal, blocks={(1, 0): A}))


def exact_lmi(system: ExactSystem, multipliers: Multipliers) -> ExactSymmetric:
    """The matrix P of the inequality, blocks 0..K and the output slack K+1. The system and multipliers must fit.

    (0, 0) = diag(g)   (k, k) = 2 diag(t_k)   (K+1, K+1) = diag(s)   (K+1, j) = -C_j
    (k, j) -= diag((alpha_k + beta_k) t_k) A_kj          (i, j) += 2 A_ki' diag(alpha_k beta_k t_k) A_kj
    """
    slack = len(system.sizes)
    blocks: dict[tuple[int, int], ExactMatrix] = {(slack, j): -block for j, block in system.output.items()}
    diagonal = [_dyadic(multipliers.g)]

    def add(key: tuple[int, int], term: ExactMatrix) -> None:
        blocks[key] = blocks[key] + term if key in blocks else term

    for k, form in enumerate(system.pre, start=1):
        alpha, beta, t = (_dyadic(v) for v in (system.alpha[k - 1], system.beta[k - 1], multipliers.t[k - 1]))
        diagonal.append((t[0], t[1] - 1))
        exponent = max(alpha[1], beta[1])
        lower, upper = ([v << (exponent - e) for v in values] for values, e in (alpha, beta))
        cross = [-(a + b) * c for a, b, c in zip(lower, upper, t[0], strict=True)]
        bend = [2 * a * b * c for a, b, c in zip(lower, upper, t[0], strict=True)]
        for j, block in form.items():
            add((k, j), _scaled_rows(cross, exponent + t[1], block))
        if any(bend):
            for j, right in form.items():
                weighted = _scaled_rows(bend, 2 * exponent + t[1], right)
                for i, left in form.items():
                    if i >= j:
                        add((i, j), _transposed(left) @ weighted)
    return ExactSymmetric(diagonal=(*diagonal, _dyadic(multipliers.s)), blocks=blocks)


def decides_positive_semidefinite(matrix: ExactSymmetric) -> bool:
    """Whether every symmetric matrix in the enclosure is positive semidefinite; False where it is too close to call.

    The matrix is scaled to a diagonal in [1/2, 2) by powers of two and rounded to the grid (with a radius). True only
    if the grid matrix minus R R' minus all radii is diagonally dominant, in integers, for a factor R of integers.
    """
    grid = _on_grid(matrix)
    if grid is None:
        return False
    shift = np.array([int(r) / 2**GRID_BITS for r in grid.radius]) + 2.0**-50 * math.sqrt(len(grid.radius))
    for _ in range(5):
        hint = _factor(grid, shift)
        if hint is None:
            return False
        lacking = _lacking(grid, hint)
        if all(v <= 0 for v in lacking):  # the decision, in integers
            return True
        shift = 2.0 * (shift + np.maximum([int(v) / 2**GRID_BITS for v in lacking], 0.0))
    return False


def sqrt_up(value: Fraction) -> float:
    """The smallest double >= sqrt(value), value >= 0; inf where there is none."""
    return _sqrt(value, up=True)


def sqrt_down(value: Fraction) -> float:
    """The largest double <= sqrt(value), value >= 0."""
    return _sqrt(value, up=False)


def _sqrt(value: Fraction, *, up: bool) -> float:
    if value < 0:
        raise ValueError(f"no square root of the negative number {value}")
    n, d = value.numerator, value.denominator
    # the root times 2^places has 53 or 54 bits; below the normal range doubles are multiples of 2^-1074
    places = min(1074, 53 - (n.bit_length() - d.bit_length()) // 2)
    while True:
        scaled_n, scaled_d = (n << 2 * places, d) if places >= 0 else (n, d << -2 * places)
        root = math.isqrt(scaled_n // scaled_d)
        if root < 2**53:
            break
        places -= 1
    if up and root * root * scaled_d < scaled_n:
        root += 1
    try:
        return math.ldexp(root, -places)
    except OverflowError:
        return math.inf if up else sys.float_info.max


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Grid:
    """A scaled matrix, rounded to multiples of 2^-GRID_BITS, its blocks in order of elimination.

    blocks[i, j], i >= j: integers, on the diagonal a list where nothing is off it; absent blocks are zero. floats: the
    same for the hint. spans[i]: where block i lies in a vector. radius: row sums of the entrywise errors, integers.
    """

    blocks: dict[tuple[int, int], list[Any] | fmpz_mat]
    floats: dict[tuple[int, int], Array]
    spans: list[slice]
    radius: list[Any]


def _on_grid(matrix: ExactSymmetric) -> _Grid | None:
    """The scaled matrix on the grid; None where it cannot be positive semidefinite."""
    sizes = [len(values) for values, _ in matrix.diagonal]
    for (i, j), block in matrix.blocks.items():
        if not 0 <= j <= i < len(sizes) or block.shape != (sizes[i], sizes[j]):
            raise ValueError(f"block ({i}, {j}) of shape {block.shape} does not fit sizes {sizes}")
        if i == j and block.mantissa != block.mantissa.transpose():
            raise ValueError(f"block ({i}, {i}) is not symmetric")
    scaling = _scaling(matrix, sizes)
    if scaling is None:
        return None
    powers, empty = scaling
    order = elimination_order(sizes, matrix.blocks)
    place = {block: position for position, block in enumerate(order)}
    radius: list[list[Any]] = [[fmpz(0)] * n for n in sizes]
    blocks: dict[tuple[int, int], list[Any] | fmpz_mat] = {}
    for (i, j), block in matrix.blocks.items():
        entries, rows, columns = _rounded(block, powers[i], powers[j])
        radius[i] = [a + b for a, b in zip(radius[i], rows, strict=True)]
        if i != j:
            radius[j] = [a + b for a, b in zip(radius[j], columns, strict=True)]
        a, b = place[i], place[j]
        blocks[max(a, b), min(a, b)] = entries if a >= b else entries.transpose()
    for i, (values, exponent) in enumerate(matrix.diagonal):
        own = [_shifted(v, 2 * e + GRID_BITS - exponent) for v, e in zip(values, powers[i], strict=True)]
        own = [1 << GRID_BITS if nothing else v for v, nothing in zip(own, empty[i], strict=True)]
        radius[i] = [r + 1 for r in radius[i]]
        key = (place[i], place[i])
        dense = blocks.get(key)
        blocks[key] = own if dense is None else dense + _diagonal_matrix(own)
    limit = 4 << GRID_BITS
    if any(max(flat) > limit or min(flat) < -limit for flat in map(_entries, blocks.values())):
        return None
    spans, start = [], 0
    for i in order:
        spans.append(slice(start, start + sizes[i]))
        start += sizes[i]
    floats = {key: _as_floats(block) for key, block in blocks.items()}
    return _Grid(blocks=blocks, floats=floats, spans=spans, radius=[r for i in order for r in radius[i]])


def _scaling(matrix: ExactSymmetric, sizes: list[int]) -> tuple[list[list[int]], list[list[bool]]] | None:
    """Exponents e with 2^(2 e_a) P_aa in [1/2, 2), and which rows are zero; None where P >= 0 is ruled out.

    A row of zeros is decoupled: any diagonal entry may be put there. A zero on the diagonal of another row rules P out.
    """
    powers, empty = [], []
    for i, (values, exponent) in enumerate(matrix.diagonal):
        own = matrix.blocks.get((i, i))
        common = exponent if own is None else max(exponent, own.exponent)
        entries = [v << (common - exponent) for v in values]
        if own is not None:
            entries = [v + (int(own.mantissa[a, a]) << (common - own.exponent)) for a, v in enumerate(entries)]
        if any(v < 0 for v in entries) or any(v == 0 and _is_occupied(matrix, i, a) for a, v in enumerate(entries)):
            return None
        powers.append([-((v.bit_length() - common) // 2) if v else 0 for v in entries])
        empty.append([v == 0 for v in entries])
    return powers, empty


def _is_occupied(matrix: ExactSymmetric, i: int, a: int) -> bool:
    """Whether row a of block row i has an entry, or an uncertain one, off the diagonal list."""
    for (j, k), block in matrix.blocks.items():
        for part in (block.mantissa, block.radius):
            if part is None:
                continue
            if j == i and any(part[a, b] != 0 for b in range(part.ncols())):
                return True
            if k == i and any(part[b, a] != 0 for b in range(part.nrows())):
                return True
    return False


def _rounded(block: ExactMatrix, rows: list[int], columns: list[int]) -> tuple[fmpz_mat, list[Any], list[Any]]:
    """2^rows_a M_ab 2^columns_b on the grid; sums over rows and over columns of the entrywise error, in grid units."""
    m, n = block.shape
    values = block.mantissa.entries()
    radii = None if block.radius is None else block.radius.entries()
    entries: list[Any] = []
    row_sums: list[Any] = []
    column_sums: list[Any] = [0] * n
    for a, power in enumerate(rows):
        places = [power + c + GRID_BITS - block.exponent for c in columns]
        row = values[a * n : (a + 1) * n]
        entries.extend([v << s if s >= 0 else v >> -s for v, s in zip(row, places, strict=True)])
        error = [1 if s < 0 and v != 0 else 0 for v, s in zip(row, places, strict=True)]
        if radii is not None:
            own = radii[a * n : (a + 1) * n]
            error = [e + _shifted(r, s) + 1 if r != 0 else e for e, r, s in zip(error, own, places, strict=True)]
        row_sums.append(sum(error))
        column_sums = [c + e for c, e in zip(column_sums, error, strict=True)]
    return fmpz_mat(m, n, entries), row_sums, column_sums


def _factor(grid: _Grid, shift: Array) -> list[dict[int, Array]] | None:
    """The hint: the Cholesky factor of P - diag(shift) as integers / 2^FACTOR_BITS, block column by block column.

    A vector stands for a diagonal block. None where a pivot is not positive.
    """
    remaining = dict(grid.floats)
    columns = []
    for j, span in enumerate(grid.spans):
        own = remaining.pop((j, j))
        try:
            with np.errstate(invalid="ignore"):
                diagonal = own.ndim == 1
                shifted = own - (shift[span] if diagonal else np.diag(shift[span]))
                root = _to_grid(np.sqrt(shifted) if diagonal else np.linalg.cholesky(shifted))
        except np.linalg.LinAlgError:
            return None
        if root is None or not bool(np.all((root if diagonal else np.diagonal(root)) > 0)):
            return None
        column = {j: root}
        for i in range(j + 1, len(grid.spans)):
            tile = remaining.pop((i, j), None)
            if tile is not None:
                rounded = _to_grid(tile / root if diagonal else np.linalg.solve(root, tile.T).T)
                if rounded is None:
                    return None
                column[i] = rounded
        below = [i for i in column if i != j]
        for position, a in enumerate(below):
            for b in below[: position + 1]:
                product = column[a] @ column[b].T
                old = remaining.get((a, b))
                if old is None:
                    remaining[a, b] = -product
                else:
                    remaining[a, b] = (np.diag(old) if old.ndim == 1 else old) - product
        columns.append({i: np.ldexp(part, FACTOR_BITS).astype(np.int64) for i, part in column.items()})
    return columns


def _to_grid(values: Array) -> Array | None:
    """Rounded to multiples of 2^-FACTOR_BITS; None where an entry is no number of the size a factor can have."""
    if not bool(np.all(np.abs(values) <= 4.0)):
        return None
    return np.ldexp(np.rint(np.ldexp(values, FACTOR_BITS)), -FACTOR_BITS)


def _lacking(grid: _Grid, columns: list[dict[int, Array]]) -> list[Any]:
    """Row by row, what the diagonal of E = P - R R' lacks to dominate |E| off it and all errors: exact grid units."""
    residual = dict(grid.blocks)

    def subtract(key: tuple[int, int], product: fmpz_mat) -> None:
        old = residual.get(key)
        residual[key] = -product if old is None else (_diagonal_matrix(old) if isinstance(old, list) else old) - product

    for j, column in enumerate(columns):
        parts = {i: _to_integers(part) for i, part in column.items() if part.ndim == 2}
        root = column[j]
        if root.ndim == 1:
            pivots = root.tolist()
            own = residual[j, j]
            if isinstance(own, list):
                residual[j, j] = [v - r * r for v, r in zip(own, pivots, strict=True)]
            else:
                subtract((j, j), _diagonal_matrix([r * r for r in pivots]))
            for i, part in parts.items():
                flat = [v * r for row in column[i].tolist() for v, r in zip(row, pivots, strict=True)]
                subtract((i, j), fmpz_mat(part.nrows(), part.ncols(), flat))
        else:
            transposed = parts[j].transpose()
            for i, part in parts.items():
                subtract((i, j), part * transposed)
        below = [i for i in parts if i != j]
        for position, a in enumerate(below):
            for b in below[: position + 1]:
                subtract((a, b), parts[a] * parts[b].transpose())
    lacking = list(grid.radius)
    for (i, j), block in residual.items():
        first, second = grid.spans[i].start, grid.spans[j].start
        if isinstance(block, list):
            for a, v in enumerate(block):
                lacking[first + a] -= v
            continue
        n = int(block.ncols())
        size = [abs(v) for v in block.entries()]
        for a in range(int(block.nrows())):
            lacking[first + a] += sum(size[a * n : (a + 1) * n])
            if i == j:
                lacking[first + a] -= size[a * n + a] + block[a, a]
        if i != j:
            for b in range(n):
                lacking[second + b] += sum(size[b::n])
    return lacking


def _dyadic(values: Array) -> Dyadic:
    exponent = dyadic_exponent(values)
    return integers(values, exponent), exponent


def _scaled_rows(factors: list[int], exponent: int, block: ExactMatrix) -> ExactMatrix:
    """diag(factors * 2^-exponent) block."""

    def scaled(part: fmpz_mat, by: list[int]) -> fmpz_mat:
        n, flat = int(part.ncols()), part.entries()
        return fmpz_mat(len(by), n, [c * v for a, c in enumerate(by) for v in flat[a * n : (a + 1) * n]])

    radius = None if block.radius is None else scaled(block.radius, [abs(c) for c in factors])
    return ExactMatrix(mantissa=scaled(block.mantissa, factors), exponent=block.exponent + exponent, radius=radius)


def _transposed(block: ExactMatrix) -> ExactMatrix:
    radius = None if block.radius is None else block.radius.transpose()
    return ExactMatrix(mantissa=block.mantissa.transpose(), exponent=block.exponent, radius=radius)


def _shifted(value: Any, places: int) -> Any:
    """value * 2^places, rounded down."""
    return value << places if places >= 0 else value >> -places


def _diagonal_matrix(values: list[Any]) -> fmpz_mat:
    n = len(values)
    flat = [0] * (n * n)
    flat[:: n + 1] = values
    return fmpz_mat(n, n, flat)


def _entries(block: list[Any] | fmpz_mat) -> list[Any]:
    return block if isinstance(block, list) else list(block.entries())


def _to_integers(values: Array) -> fmpz_mat:
    return fmpz_mat(int(values.shape[0]), int(values.shape[1]), values.ravel().tolist())


def _as_floats(block: list[Any] | fmpz_mat) -> Array:
    flat = np.array([int(v >> (GRID_BITS - 58)) for v in _entries(block)], dtype=np.float64) * 2.0**-58
    return flat if isinstance(block, list) else flat.reshape(int(block.nrows()), int(block.ncols()))
