"""The exact checker: decides bounds of networks in integers and rationals, and imports nothing else of lipmodel.

Every number that enters is a dyadic rational (a stored weight, a slope, a multiplier given as a double), or comes with
a dyadic radius. Floating point produces one thing, a factor R as a hint; whether P - R R' is diagonally dominant, and
hence P positive semidefinite, is decided in integers. No bound is trusted that is not derived here:

    P >= 0   implies   dy' diag(s)^-1 dy <= dx' diag(g) dx,   hence   L_{p->q}^2 <= (max or sum of g) (max or sum of s)

for increments z = (x, w_1, ..., w_K) of a network, v_k = sum_j A_kj z_j, w_k = S_k v_k with S_k diagonal, its entries
between alpha_k and beta_k, y = sum_j C_j z_j; multipliers t, g >= 0, s > 0; and P by blocks, the slack being the last
(in a group of entries S_k is a matrix with (w - alpha v)'(beta v - w) >= 0 for their sum: t, alpha, beta are one there)

    (0, 0) = diag(g)   (k, k) = 2 diag(t_k)   (slack, slack) = diag(s)   (slack, j) = -C_j
    (k, j) -= diag((alpha_k + beta_k) t_k) A_kj          (i, j) += 2 A_ki' diag(alpha_k beta_k t_k) A_kj

(Fazlyab, Robey, Hassani, Morari & Pappas 2019, arXiv 1906.04893; Wang, Prakriya & Jha 2022, arXiv 2203.01212).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, product
from typing import Any

import numpy as np

try:
    from flint import fmpz_mat
except ImportError:  # the same products, slower
    fmpz_mat = None

Array = np.ndarray[Any, np.dtype[Any]]
Vector = Sequence[float] | Array
Rows = list[list[int]]
"""An integer matrix, row by row, with at least one row and one column."""
Dyadic = tuple[list[int], int]
"""Integers and an exponent e: the numbers integer * 2^-e."""

FACTOR_BITS = 56
"""The factor is rounded to multiples of 2^-56, which keeps what a double knows of it."""
GRID_BITS = 2 * FACTOR_BITS
"""Products of the factor, and the scaled matrix, are multiples of 2^-112."""


class Rejected(Exception):  # noqa: N818 - a verdict
    """What was claimed is not proved; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """A real matrix M with |M - mantissa * 2^-exponent| <= radius * 2^-exponent entrywise; radius None means equal."""

    mantissa: Rows
    exponent: int
    radius: Rows | None = None

    def __post_init__(self) -> None:
        m, n = self.shape
        parts = [self.mantissa, self.radius or self.mantissa]
        if n == 0 or any(len(part) != m or any(len(row) != n for row in part) for part in parts):
            raise ValueError("a block is a matrix, its radius a matrix of the same shape, neither of them empty")

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.mantissa), len(self.mantissa[0])


def dyadic(values: Iterable[float]) -> Dyadic:
    """Finite doubles as integers over one power of two."""
    ratios = [float(v).as_integer_ratio() for v in values]
    exponent = max((d.bit_length() - 1 for _, d in ratios), default=0)
    return [n << (exponent - d.bit_length() + 1) for n, d in ratios], exponent


def added(a: Block, b: Block) -> Block:
    """a + b."""
    exponent = max(a.exponent, b.exponent)
    a, b = (scaled(([1 << (exponent - x.exponent)] * x.shape[0], exponent - x.exponent), x) for x in (a, b))
    radius = _sum(a.radius, b.radius) if a.radius and b.radius else a.radius or b.radius
    return Block(mantissa=_sum(a.mantissa, b.mantissa), exponent=exponent, radius=radius)


def scaled(factors: Dyadic, a: Block) -> Block:
    """diag(factors) a."""
    values, exponent = factors
    radius = a.radius and [[abs(c) * v for v in row] for c, row in zip(values, a.radius, strict=True)]
    mantissa = [[c * v for v in row] for c, row in zip(values, a.mantissa, strict=True)]
    return Block(mantissa=mantissa, exponent=a.exponent + exponent, radius=radius)


def gram(a: Block, b: Block) -> Block:
    """a' b: |error| <= |a|' rad_b + rad_a' (|b| + rad_b)."""
    left, right, radius = _transposed(a.mantissa), b.mantissa, None
    if a.radius or b.radius:
        zero = [[0] * b.shape[1]] * b.shape[0]
        radius = _product(_absolute(left), b.radius or zero)
        if a.radius:
            radius = _sum(radius, _product(_transposed(a.radius), _sum(_absolute(right), b.radius or zero)))
    return Block(mantissa=_product(left, right), exponent=a.exponent + b.exponent, radius=radius)


def _product(a: Rows, b: Rows) -> Rows:
    if fmpz_mat is not None:
        return [[int(v) for v in row] for row in (fmpz_mat(a) * fmpz_mat(b)).tolist()]
    columns = _transposed(b)
    return [[sum(v * w for v, w in zip(row, column, strict=True)) for column in columns] for row in a]


def _transposed(a: Rows) -> Rows:
    return [list(column) for column in zip(*a, strict=True)]


def _absolute(a: Rows) -> Rows:
    return [[abs(v) for v in row] for row in a]


def _sum(a: Rows, b: Rows, sign: int = 1) -> Rows:
    """a + sign b."""
    return [[v + sign * w for v, w in zip(x, y, strict=True)] for x, y in zip(a, b, strict=True)]


# -------------------------------------------------------------------------------------------------- the rules of proof


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class System:
    """A network in increments: signal 0 is the input, signal k >= 1 what activation k returns.

    sizes: n_0, ..., n_K. pre[k-1][j]: block A_kj, shape (n_k, n_j), j < k. alpha[k-1], beta[k-1]: slopes, n_k doubles.
    output[j]: block C_j, shape (m, n_j). Absent blocks are zero. groups[k-1]: n_k labels, None (or no groups at all)
    where every entry acts by itself.
    """

    sizes: tuple[int, ...]
    pre: tuple[dict[int, Block], ...]
    alpha: tuple[Vector, ...]
    beta: tuple[Vector, ...]
    output: dict[int, Block]
    groups: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Multipliers:
    """Doubles: t >= 0, n_k of them per activation; g >= 0 per input; s > 0 per output."""

    t: tuple[Vector, ...]
    g: Vector
    s: Vector


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExactSymmetric:
    """A real symmetric block matrix: diag(diagonal) + blocks, the blocks exact or with a radius.

    diagonal[i]: the dyadic entries of block i. blocks[i, j], i >= j, shape (len of i, len of j); absent blocks are
    zero. Blocks on the diagonal must be symmetric.
    """

    diagonal: tuple[Dyadic, ...]
    blocks: dict[tuple[int, int], Block]


def check_lmi(system: System, multipliers: Multipliers, p: str, q: str, bound: float) -> None:
    """Decide that `bound` is an upper bound of L_{p->q} by these multipliers; raises Rejected with the reason if not.

    p in {"2", "inf"} ("1" with one input entry); q in {"1", "2"} ("inf" with one output entry).
    """
    if (reason := fault(system, multipliers)) is not None:
        raise Rejected(f"the multipliers do not fit the network: {reason}")
    if not (isinstance(bound, float) and math.isfinite(bound) and bound >= 0.0):
        raise Rejected(f"the bound {bound!r} is not a finite nonnegative number")
    if Fraction(bound) ** 2 < bound_squared(multipliers, p, q):
        raise Rejected(f"the bound {bound!r} is below what its multipliers give")
    if not decides_positive_semidefinite(exact_lmi(system, multipliers)):
        raise Rejected("the inequality of the network fails, or is too close to failing, with these multipliers")


def fault(system: Any, multipliers: Any) -> str | None:
    """What keeps these from forming an inequality (shapes, signs, non-finite values), or None."""
    sizes, count, outputs = system.sizes, len(system.sizes) - 1, len(multipliers.s)
    if count < 0 or min(*sizes, outputs) < 1:
        return "every signal, and the output, must have at least one entry"
    if not len(system.pre) == len(system.alpha) == len(system.beta) == len(multipliers.t) == count:
        return f"{count} activations need as many pre-activations, slopes and multipliers"
    vectors = [("g", multipliers.g, sizes[0], 0.0), ("s", multipliers.s, outputs, 5e-324)]
    kinds = (("t", multipliers.t, 0.0), ("alpha", system.alpha, -math.inf), ("beta", system.beta, -math.inf))
    for k, n in enumerate(sizes[1:]):
        vectors += [(f"{name} of activation {k + 1}", values[k], n, least) for name, values, least in kinds]
    for name, values, size, least in vectors:
        if len(values) != size or not all(isinstance(v, float) for v in values):
            return f"{name} must be a float64 vector of {size} entries"
        if not all(math.isfinite(v) and v >= least for v in values):
            return f"{name} must be finite{'' if least < 0 else ' and positive' if least else ' and nonnegative'}"
    for k in range(count):
        if any(a > b for a, b in zip(system.alpha[k], system.beta[k], strict=True)):
            return f"activation {k + 1} has a lower slope above its upper slope"
    for k, labels in enumerate(system.groups):
        own = zip(labels if labels is not None else (), system.alpha[k], system.beta[k], multipliers.t[k], strict=False)
        if labels is not None and (len(labels) != sizes[k + 1] or len(set(own)) != len(set(labels))):
            return f"a group of activation {k + 1} has not one multiplier and one pair of slopes"
    for k, form in enumerate([*system.pre, system.output], start=1):
        rows = sizes[k] if k <= count else outputs
        for j, block in form.items():
            if not 0 <= j < k or block.shape != (rows, sizes[j]):
                return f"block {j} of form {k} has shape {block.shape} or reads a signal that comes later"
    return None


def bound_squared(multipliers: Any, p: str, q: str) -> Fraction:
    """The square of the bound on L_{p->q} that P >= 0 gives. Raises Rejected for a pair it says nothing about.

    ||dx||_2^2 max(g) or ||dx||_inf^2 sum(g) bounds dx' diag(g) dx; dy' diag(s)^-1 dy is at least ||dy||_2^2 / max(s) or
    ||dy||_1^2 / sum(s). With a single entry all norms agree.
    """
    g, s = ([float(v) for v in values] for values in (multipliers.g, multipliers.s))
    if p == "2" or (p in ("1", "inf") and len(g) == 1):
        left = Fraction(max(g))
    elif p == "inf":
        left = sum(map(Fraction, g), Fraction(0))
    else:
        raise Rejected(f"these multipliers bound no constant for input norm {p!r}: 2 or inf, or 1 column by column")
    if q == "2" or (q in ("1", "inf") and len(s) == 1):
        right = Fraction(max(s))
    elif q == "1":
        right = sum(map(Fraction, s), Fraction(0))
    else:
        raise Rejected(f"these multipliers bound no constant for output norm {q!r}: 1 or 2, or inf row by row")
    return left * right


def exact_lmi(system: System, multipliers: Any) -> ExactSymmetric:
    """The matrix P of the inequality, blocks 0..K and the output slack K+1. The system and multipliers must fit."""
    slack = len(system.sizes)
    blocks = {(slack, j): scaled(([-1] * block.shape[0], 0), block) for j, block in system.output.items()}
    diagonal = [dyadic(multipliers.g)]

    def add(key: tuple[int, int], term: Block) -> None:
        blocks[key] = added(blocks[key], term) if key in blocks else term

    for k, form in enumerate(system.pre, start=1):
        alpha, beta, t = (dyadic(v) for v in (system.alpha[k - 1], system.beta[k - 1], multipliers.t[k - 1]))
        diagonal.append((t[0], t[1] - 1))
        exponent = max(alpha[1], beta[1])
        lower, upper = ([v << (exponent - e) for v in values] for values, e in (alpha, beta))
        cross = [-(a + b) * c for a, b, c in zip(lower, upper, t[0], strict=True)]
        bend = [2 * a * b * c for a, b, c in zip(lower, upper, t[0], strict=True)]
        for j, block in form.items():
            add((k, j), scaled((cross, exponent + t[1]), block))
        for i, j in product(form, form) if any(bend) else ():
            if i >= j:
                add((i, j), gram(form[i], scaled((bend, 2 * exponent + t[1]), form[j])))
    return ExactSymmetric(diagonal=(*diagonal, dyadic(multipliers.s)), blocks=blocks)


def check_largest(parts: Sequence[tuple[Any, Any, float]], rows: int, columns: int, p: str, q: str) -> float:
    """The bound of L_{p->q} by proved bounds (row, column, bound) of single outputs (q = inf) and/or inputs (p = 1).

    An index None stands for all at once. Raises Rejected unless every row and column is covered exactly once.
    """
    axes: list[list[int | None]] = []
    for axis, (name, size, norm, needed) in enumerate((("row", rows, q, "inf"), ("column", columns, p, "1"))):
        single = [part[axis] for part in parts if part[axis] is not None]
        if not all(type(i) is int and 0 <= i < size for i in single):
            raise Rejected(f"a {name} among {single[:5]!r} does not exist")
        if single and norm != needed:
            raise Rejected(f"single {name}s prove nothing for the norm {norm}")
        axes.append(list(range(size)) if single else [None])
    if axes == [[None], [None]]:
        raise Rejected("neither rows nor columns")
    found = [(row, column) for row, column, _ in parts]
    if len(found) != len(set(found)) or set(found) != set(product(*axes)):
        raise Rejected("the rows and columns are not each covered exactly once")
    return max(bound for _, _, bound in parts)


def check_quotient(step: Sequence[Fraction], change: Sequence[Fraction], p: str, q: str, lower: float) -> None:
    """Decide ||dy||_q >= lower ||dx||_p > 0 for |dx| = step and |dy| >= change >= 0, entrywise. Raises Rejected."""

    def squared(values: Sequence[Fraction], norm: str) -> Fraction:
        if norm == "2":
            return sum((v * v for v in values), Fraction(0))
        return {"1": sum(values, Fraction(0)), "inf": max(values)}[norm] ** 2

    if not (0.0 <= lower < math.inf and min(*step, *change) >= 0 and any(step)):
        raise Rejected("a lower bound is a finite nonnegative number, for two points that differ")
    if Fraction(lower) ** 2 * squared(step, p) > squared(change, q):
        raise Rejected(f"the difference quotient is below {lower!r}")


def spectral_norm_at_most(A: Block, t: float) -> bool:
    """Whether ||A||_2 <= t, decided exactly: [t I, A'; A, t I] >= 0. False where it is too close to call."""
    if not (math.isfinite(t) and t >= 0.0):
        return False
    diagonal = tuple(dyadic([t] * n) for n in reversed(A.shape))
    return decides_positive_semidefinite(ExactSymmetric(diagonal=diagonal, blocks={(1, 0): A}))


# ----------------------------------------------------------------------------------- positive semidefinite, in integers

Tile = Any
"""A block on the grid: `Rows`, or on the diagonal the list of its diagonal entries where nothing is off it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Grid:
    """A scaled matrix in units of 2^-GRID_BITS, block i in spans[i]; radius: row sums of the entrywise errors."""

    tiles: dict[tuple[int, int], Tile]
    spans: list[slice]
    radius: list[int]


def decides_positive_semidefinite(matrix: ExactSymmetric) -> bool:
    """Whether every symmetric matrix in the enclosure is positive semidefinite; False where it is too close to call.

    The matrix is scaled to a diagonal in [1/2, 2) and rounded to the grid (with a radius). True only if the grid matrix
    minus R R' minus all radii is diagonally dominant, in integers, for a factor R of integers.
    """
    if (grid := _on_grid(matrix)) is None:
        return False
    try:
        floats = {k: (np.array(v, dtype=object) / 2**GRID_BITS).astype(np.float64) for k, v in grid.tiles.items()}
    except OverflowError:  # no semidefinite matrix with this diagonal has such an entry
        return False
    shift = np.array([r / 2**GRID_BITS for r in grid.radius]) + 2.0**-50 * math.sqrt(len(grid.radius))
    for _ in range(5):
        if (hint := _factor(floats, grid.spans, shift)) is None:
            return False
        lacking = _lacking(grid, hint)
        if all(v <= 0 for v in lacking):  # the decision, in integers
            return True
        shift = 2.0 * (shift + [max(v, 0) / 2**GRID_BITS for v in lacking])
    return False


def _on_grid(matrix: ExactSymmetric) -> _Grid | None:
    """The scaled matrix on the grid; None where it cannot be positive semidefinite."""
    sizes = [len(values) for values, _ in matrix.diagonal]
    for (i, j), block in matrix.blocks.items():
        if not 0 <= j <= i < len(sizes) or block.shape != (sizes[i], sizes[j]):
            raise ValueError(f"block ({i}, {j}) of shape {block.shape} does not fit sizes {sizes}")
        if i == j and block.mantissa != _transposed(block.mantissa):
            raise ValueError(f"block ({i}, {i}) is not symmetric")
    order = elimination_order(sizes, matrix.blocks)
    place = {block: position for position, block in enumerate(order)}
    tiles: dict[tuple[int, int], Tile] = {}
    powers: list[list[int]] = []
    for i in range(len(sizes)):
        if (scaling := _scaling(matrix, i)) is None:
            return None
        powers.append([e for e, _ in scaling])
        tiles[place[i], place[i]] = [v for _, v in scaling]
    radius = [[1] * n for n in sizes]  # what rounding the diagonal down can cost
    for (i, j), block in matrix.blocks.items():
        places = [[e + f + GRID_BITS - block.exponent for f in powers[j]] for e in powers[i]]
        tile, errors = _rounded(block, places)
        radius[i] = [a + sum(row) for a, row in zip(radius[i], errors, strict=True)]
        if i != j:
            radius[j] = [a + sum(column) for a, column in zip(radius[j], _transposed(errors), strict=True)]
        a, b = place[i], place[j]
        tiles[max(a, b), min(a, b)] = tile if a > b else _transposed(tile) if a < b else _sum(_dense(tiles[a, a]), tile)
    ends = list(accumulate(sizes[i] for i in order))
    spans = [slice(end - sizes[i], end) for i, end in zip(order, ends, strict=True)]
    return _Grid(tiles=tiles, spans=spans, radius=[r for i in order for r in radius[i]])


def _scaling(matrix: ExactSymmetric, i: int) -> list[tuple[int, int]] | None:
    """For every row of block i: e with 2^(2 e) P_aa in [1/2, 2), and its entry of the diagonal list on the grid.

    A row of zeros is decoupled, so any entry may be put on its diagonal. None where a zero on the diagonal of another
    row, or a negative entry, rules P >= 0 out.
    """
    (values, exponent), own = matrix.diagonal[i], matrix.blocks.get((i, i))
    common = exponent if own is None else max(exponent, own.exponent)
    result: list[tuple[int, int]] = []
    for a, v in enumerate(values):
        full = v << (common - exponent)
        if own is not None:
            full += own.mantissa[a][a] << (common - own.exponent)
        if full < 0 or (full == 0 and _is_used(matrix, i, a)):
            return None
        e = -((full.bit_length() - common) // 2) if full else 0
        result.append((e, _shifted(v, 2 * e + GRID_BITS - exponent) if full else 1 << GRID_BITS))
    return result


def _is_used(matrix: ExactSymmetric, i: int, a: int) -> bool:
    """Whether row a of block row i has an entry, or an uncertain one, off the diagonal list."""
    parts = ((j, k, part) for (j, k), b in matrix.blocks.items() for part in (b.mantissa, b.radius or b.mantissa))
    return any((j == i and any(part[a])) or (k == i and any(row[a] for row in part)) for j, k, part in parts)


def _rounded(block: Block, places: Rows) -> tuple[Rows, Rows]:
    """M_ab 2^places_ab rounded down, M without its exponent, and the entrywise error, both in integers."""

    def shifted(part: Rows, sign: int) -> Rows:
        pairs = (zip(row, at, strict=True) for row, at in zip(part, places, strict=True))
        return [[sign * _shifted(sign * v, s) for v, s in row] for row in pairs]

    down = shifted(block.mantissa, 1)
    errors = _sum(shifted(block.mantissa, -1), down, -1)
    return down, _sum(errors, shifted(block.radius, -1)) if block.radius else errors


def _factor(floats: dict[tuple[int, int], Array], spans: list[slice], shift: Array) -> list[dict[int, Array]] | None:
    """The hint: the Cholesky factor of P - diag(shift) as integers / 2^FACTOR_BITS, block column by block column.

    A vector stands for a diagonal block. None where a pivot is not positive. Nothing here has to be right.
    """
    remaining, columns = dict(floats), []
    for j, span in enumerate(spans):
        own = remaining.pop((j, j))
        column: dict[int, Array] = {}
        try:
            with np.errstate(all="ignore"):
                vector = own.ndim == 1
                root = np.sqrt(own - shift[span]) if vector else np.linalg.cholesky(own - np.diag(shift[span]))
                column[j] = root = _to_grid(root)
                for i in [i for i, k in remaining if k == j]:
                    tile = remaining.pop((i, j))
                    column[i] = _to_grid(tile / root if vector else np.linalg.solve(root, tile.T).T)
        except (np.linalg.LinAlgError, OverflowError):
            return None
        if not bool(np.all((root if vector else np.diagonal(root)) > 0)):
            return None
        for a, b in product(column, column):
            if a >= b > j:
                old = remaining.get((a, b), np.zeros(1))
                remaining[a, b] = (np.diag(old) if a == b and old.ndim == 1 else old) - column[a] @ column[b].T
        columns.append({i: np.ldexp(part, FACTOR_BITS).astype(np.int64) for i, part in column.items()})
    return columns


def _to_grid(values: Array) -> Array:
    """Rounded to multiples of 2^-FACTOR_BITS. Raises OverflowError where an entry has not the size of a factor's."""
    if not np.all(np.abs(values) <= 4.0):
        raise OverflowError
    return np.asarray(np.ldexp(np.rint(np.ldexp(values, FACTOR_BITS)), -FACTOR_BITS))


def _lacking(grid: _Grid, columns: list[dict[int, Array]]) -> list[int]:
    """Row by row, what the diagonal of E = P - R R' lacks to dominate |E| off it and all errors: exact grid units."""
    residual = dict(grid.tiles)
    for j, column in enumerate(columns):
        parts = {i: part.tolist() for i, part in column.items()}
        for a, b in product(parts, parts):
            if a < b:
                continue
            if column[b].ndim == 2:
                term = _product(parts[a], _transposed(parts[b]))
            elif a == j:
                term = [r * r for r in parts[j]]
            else:
                term = [[v * r for v, r in zip(row, parts[j], strict=True)] for row in parts[a]]
            residual[a, b] = _minus(residual.get((a, b)), term)
    lacking = list(grid.radius)
    for (i, j), tile in residual.items():
        first, second = grid.spans[i].start, grid.spans[j].start
        for a, row in enumerate(tile):
            lacking[first + a] += sum(map(abs, row)) if isinstance(row, list) else -row
            if i == j and isinstance(row, list):
                lacking[first + a] -= abs(row[a]) + row[a]
        for b, column_entries in enumerate(zip(*tile, strict=True) if i != j else ()):
            lacking[second + b] += sum(map(abs, column_entries))
    return lacking


def elimination_order(sizes: Sequence[int], pairs: Iterable[tuple[int, int]]) -> list[int]:
    """An order in which to eliminate the blocks of a block-sparse symmetric matrix: greedily, least work first."""
    both = {(i, j) for pair in pairs for i, j in (pair, pair[::-1])}
    neighbours = {i: {j for k, j in both if k == i != j} for i in range(len(sizes))}
    order = []
    while neighbours:
        i = min(neighbours, key=lambda b: (sizes[b] * sum(sizes[j] for j in neighbours[b]) ** 2, b))
        order.append(i)
        front = neighbours.pop(i)
        neighbours.update({j: (neighbours[j] | front) - {i, j} for j in front})
    return order


def _minus(a: Tile | None, b: Tile) -> Tile:
    """a - b, an absent a being zero."""
    if a is None:
        return [[-v for v in row] for row in b]
    if not isinstance(a[0], list) and not isinstance(b[0], list):
        return [v - w for v, w in zip(a, b, strict=True)]
    return _sum(_dense(a), _dense(b), -1)


def _dense(tile: Tile) -> Rows:
    size = range(len(tile))
    return tile if isinstance(tile[0], list) else [[v if a == b else 0 for b in size] for a, v in enumerate(tile)]


def _shifted(value: int, places: int) -> int:
    """value * 2^places, rounded down."""
    return value << places if places >= 0 else value >> -places
