"""Sums of squares: certificates of Putinar as a conic program in Gram matrices, and back.

lam - objective = sum_k m_k' Q_k m_k g_k + sum_j h_j q_j, Q_k positive semidefinite, q_j any polynomials; m_k has the
monomials up to half the degree in one clique, squares of signs left out.

Sources: Lasserre 2001, SIAM J. Optim. 11:796; Waki, Kim, Kojima & Muramatsu 2006, SIAM J. Optim. 17:218 (cliques);
Wang, Magron & Lasserre 2021, TSSOS, arXiv 1912.08899 (blocks of terms).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, combinations_with_replacement, pairwise
from math import frexp
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.certify.polynomials import Exact, Monomial, multiply
from lipmodel.errors import UsageError
from lipmodel.relaxations.sparsity import Clique, chordal_cliques, coupling_graph

if TYPE_CHECKING:
    from lipmodel.certify.polynomials import Program
    from lipmodel.model.model import Model
    from lipmodel.model.variables import Variable

Array = np.ndarray[Any, Any]
MAX_ENTRIES = 600_000
"""Entries that all Gram matrices may have together."""
GRID_BITS = 54
"""Gram matrices are rounded to 2^-54 of the largest coefficient: what that loses is charged, and tiny."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gram:
    """The multiplier m'Qm of a constraint (None: of 1) in a basis of monomials."""

    constraint: int | None
    basis: tuple[Monomial, ...]

    @property
    def entries(self) -> int:
        return len(self.basis) * (len(self.basis) + 1) // 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SosRelaxation:
    """y = start + step @ x, x the variables of the model: Gram matrices by lower triangles, then free multipliers.

    signed: which of x are nonnegative. left @ x = rest: what of the identity is not solved for. cost @ x: its constant,
    in units of scale.
    """

    grams: tuple[Gram, ...]
    free: tuple[tuple[int, Monomial], ...]
    start: Array
    step: Any
    signed: Array
    left: Any
    rest: Array
    cost: Array
    scale: Fraction

    def model(self) -> tuple[Model, list[Variable]]:
        """The conic program, and its variables in the order of x, those that are nonnegative first."""
        from lipmodel.model.model import Model

        model = Model("sos")
        count = int(self.signed.sum())
        sizes = [("diagonal", count, True), ("free", self.step.shape[1] - count, False)]
        made = [model.variable(name, n, nonnegative=sign) for name, n, sign in sizes if n]
        variables = [next(iter(v.coefficients)) for v in made]
        at = 0
        for k, gram in enumerate(self.grams):
            rows = slice(at, at + gram.entries)
            at += gram.entries
            if gram.entries == 1 and gram.constraint is not None:
                continue  # never solved for: a variable of its own, which is nonnegative
            model.require(_form(f"m{k}", len(gram.basis), self.start[rows], self.step[rows], variables) >= 0)
        parts = np.cumsum([0, *(v.size for v in variables)])
        sides = [slice(a, b) for a, b in pairwise(parts)]
        if self.left.shape[0]:
            total = sum(
                (sp.csr_array(self.left[:, s]) @ e for s, e in zip(sides[1:], made[1:], strict=True)),
                sp.csr_array(self.left[:, sides[0]]) @ made[0],
            )
            model.require(total.equals(self.rest))
        cost = [self.cost[s][None, :] @ e for s, e in zip(sides, made, strict=True)]
        model.minimize(sum(cost[1:], cost[0]))
        return model, variables

    def proof(self, x: Array) -> dict[str, Any]:
        """The proof (without its bound) by a solver's x: Gram matrices shifted until they are positive definite."""
        y = self.start + self.step @ np.nan_to_num(np.asarray(x, dtype=np.float64))
        value = float(self.scale)
        exponent = max(0, GRID_BITS - frexp(value)[1])
        blocks, at = [], 0
        for gram in self.grams:
            matrix = _symmetric(y[at : at + gram.entries], len(gram.basis))
            at += gram.entries
            values = (lifted(matrix) * value)[np.tril_indices(len(matrix))]
            listed = {"basis": [list(m) for m in gram.basis], "gram": integers(values, exponent)}
            blocks.append({"constraint": gram.constraint, **listed, "exponent": exponent})
        equalities = []
        for j in sorted({j for j, _ in self.free}):
            chosen = [k for k, (i, _) in enumerate(self.free) if i == j]
            numbers = integers(y[at:][chosen] * value, exponent)
            monomials = [list(self.free[k][1]) for k in chosen]
            listed = {"monomials": monomials, "coefficients": numbers, "exponent": exponent}
            equalities.append({"constraint": j, **listed})
        return {"rule": "sos", "blocks": blocks, "equalities": equalities}


def lifted(matrix: Array) -> Array:
    """The matrix plus a multiple of the unit matrix with which it is positive definite beyond rounding."""
    least = float(np.linalg.eigvalsh(matrix)[0])
    margin = len(matrix) * (2.0**-46 * float(np.abs(np.diagonal(matrix)).max()) + 2.0 ** (1 - GRID_BITS))
    return np.asarray(matrix + max(0.0, margin - least) * np.eye(len(matrix)))


def integers(values: Array, exponent: int) -> list[int]:
    return [round(v) for v in np.ldexp(values, exponent).tolist()]


def _symmetric(lower: Array, n: int) -> Array:
    matrix = np.zeros((n, n))
    matrix[np.tril_indices(n)] = lower
    return matrix + np.tril(matrix, -1).T


def _form(name: str, n: int, start: Array, step: Any, variables: Sequence[Variable]) -> Any:
    """The quadratic form of one Gram matrix whose lower triangle, row by row, is start + step @ x."""
    from lipmodel.model.forms import LinearForm, QuadraticForm, Signal, apply
    from lipmodel.model.model import inner
    from lipmodel.model.terms import Coefficients, Triplets
    from lipmodel.model.variables import Expression
    from lipmodel.network.linear import Selection, Sparse

    signal = Signal(name=name, size=n)
    rows, cols = np.tril_indices(n)
    coo = sp.coo_array(step)
    place, column = coo.coords
    diagonal = variables[0]
    off = rows[place] != cols[place]
    centers = _centers(rows[place[off]], cols[place[off]], column[off])
    if centers is not None and bool(np.all(column < diagonal.size)):
        # what varies is the diagonal, and products of one entry with others: factors, which structured solvers read
        form, x = LinearForm.of(signal), Expression.of(diagonal)
        shape = (n, diagonal.size)
        weights = sp.csr_array((coo.data[~off], (rows[place[~off]], column[~off])), shape=shape) @ x
        fixed = _symmetric(start, n)
        half = sp.csr_array(np.tril(fixed, -1) * 2.0 + np.diag(np.diagonal(fixed)))
        total = inner(form, form, weight=weights) + inner(form, apply(Sparse(weights=half), form))
        if not centers:
            return total
        number = {k: i for i, k in enumerate(centers)}
        line = np.array([number[k] for k in column[off].tolist()])
        middle = np.array(list(centers.values()))
        other = rows[place[off]] + cols[place[off]] - middle[line]
        spokes = sp.csr_array((2.0 * coo.data[off], (line, other)), shape=(len(centers), n))
        picked = sp.csr_array(np.eye(diagonal.size)[list(centers)])
        hubs = apply(Selection(index=middle, size=n), form)
        return total + inner(hubs, apply(Sparse(weights=spokes), form), weight=picked @ x)
    known = np.flatnonzero(start)
    pair = (signal, signal)
    entries = [
        Triplets(
            block=pair,
            row=rows[known],
            col=cols[known],
            variable=None,
            index=np.full(len(known), -1),
            value=start[known],
        )
    ]
    first = 0
    for variable in variables:
        own = (column >= first) & (column < first + variable.size)
        index = column[own] - first
        first += variable.size
        r, c, v = rows[place[own]], cols[place[own]], coo.data[own]
        entries.append(Triplets(block=pair, row=r, col=c, variable=variable, index=index, value=v))
    return QuadraticForm(terms=(Coefficients(entries=tuple(e for e in entries if len(e.value))),))


def _centers(rows: Array, cols: Array, column: Array) -> dict[int, int] | None:
    """For every unknown off the diagonal one index that all of its places share; None where one has none."""
    common: dict[int, set[int]] = {}
    for r, c, k in zip(rows.tolist(), cols.tolist(), column.tolist(), strict=True):
        common[k] = common.get(k, {r, c}) & {r, c}
    return {k: min(found) for k, found in common.items()} if all(common.values()) else None


# ---------------------------------------------------------------------------------------------------- the relaxation


def least_order(program: Program) -> int:
    """The least order that the degrees of the objective and the constraints allow."""
    parts = (program.objective, *program.nonnegative, *program.zero)
    return max(1, *(-(-_degree(part) // 2) for part in parts))


def _degree(part: Exact) -> int:
    return max(map(len, part.terms), default=0)


def gram_blocks(
    program: Program, order: int, sparsity: str
) -> tuple[tuple[Gram, ...], tuple[tuple[int, Monomial], ...]]:
    """Gram matrices of an order, and the monomials of the free multipliers by constraint. Raises UsageError."""
    if order < (least := least_order(program)):
        raise UsageError(f"order {order} is below {least}, which the degrees of this program need")
    if sparsity == "dense":
        cliques: Sequence[Clique] = (tuple(range(program.size)),)
    else:
        cliques = chordal_cliques(coupling_graph(program)).cliques
    grams = [Gram(constraint=None, basis=_basis(c, order, program)) for c in cliques]
    free: dict[tuple[int, Monomial], None] = {}
    for k, g in enumerate(program.nonnegative):
        clique = _holding(g, cliques)
        grams.append(Gram(constraint=k, basis=_basis(clique, order - -(-_degree(g) // 2), program)))
    for k, h in enumerate(program.zero):
        clique = _holding(h, cliques)
        free |= {(k, m): None for m in _basis(clique, 2 * order - _degree(h), program)}
    if sparsity == "term":
        grams = _by_terms(program, grams)
        kept = _products(program, grams)
        free = {(k, m): None for k, m in free if _meets(m, program.zero[k], kept, program)}
    grams = [g for g in grams if g.basis]
    if (count := sum(g.entries for g in grams)) > MAX_ENTRIES:
        largest = max(len(g.basis) for g in grams)
        raise UsageError(
            f"order {order} has Gram matrices of orders up to {largest}, {count:,} entries: more than fits, and "
            "networks of this size need a formulation such as geolip"
        )
    return tuple(grams), tuple(free)


def _basis(clique: Iterable[int], degree: int, program: Program) -> tuple[Monomial, ...]:
    """The monomials up to a degree, each sign at most once."""
    listed = sorted(clique)
    found = [m for k in range(degree + 1) for m in combinations_with_replacement(listed, k)]
    return tuple(m for m in found if not any(a == b and a in program.signs for a, b in pairwise(m)))


def _holding(part: Exact, cliques: Sequence[Clique]) -> Clique:
    """The smallest clique with all variables of a constraint."""
    needed = {i for m in part.terms for i in m}
    return min((c for c in cliques if needed <= set(c)), key=len)


def _by_terms(program: Program, grams: Sequence[Gram]) -> list[Gram]:
    """Every Gram matrix taken apart into blocks that the support joins, again and again until it stays the same."""
    even = {multiply(m, m, program.signs) for g in grams if g.constraint is None for m in g.basis}
    support = set(program.objective.terms) | even
    while True:
        split: list[Gram] = []
        for gram in grams:
            factor = [()] if gram.constraint is None else list(program.nonnegative[gram.constraint].terms)
            blocks = _apart(program, gram.basis, factor, support)
            split += [Gram(constraint=gram.constraint, basis=block) for block in blocks]
        grown = support | _products(program, split)
        if grown == support:
            return split
        support = grown


def _apart(
    program: Program, basis: Sequence[Monomial], factor: Sequence[Monomial], support: set[Monomial]
) -> list[tuple[Monomial, ...]]:
    """The connected components of the graph that joins two monomials whose product, times the factor, is supported."""
    import networkx as nx

    graph = nx.empty_graph(len(basis))
    for a, b in combinations(range(len(basis)), 2):
        m = multiply(basis[a], basis[b], program.signs)
        if any(multiply(m, f, program.signs) in support for f in factor):
            graph.add_edge(a, b)
    return [tuple(basis[a] for a in sorted(group)) for group in nx.connected_components(graph)]


def _products(program: Program, grams: Iterable[Gram]) -> set[Monomial]:
    """All monomials that Gram matrices, times their constraints, reach."""
    found: set[Monomial] = set()
    for gram in grams:
        pairs = {multiply(a, b, program.signs) for k, a in enumerate(gram.basis) for b in gram.basis[: k + 1]}
        factor = [()] if gram.constraint is None else list(program.nonnegative[gram.constraint].terms)
        found |= {multiply(m, f, program.signs) for m in pairs for f in factor} if len(factor) > 1 else pairs
    return found


def _meets(m: Monomial, h: Exact, kept: set[Monomial], program: Program) -> bool:
    """Whether all products of a free multiplier with its constraint are reached by Gram matrices as well."""
    return all(multiply(m, f, program.signs) in kept for f in h.terms)


def relax(program: Program, order: int, sparsity: str) -> SosRelaxation:
    """The conic program of an order: one monomial after the other is solved for an entry of a Gram matrix.

    Raises UsageError where it is too large, or misses a monomial of the objective.
    """
    return relax_blocks(program, *gram_blocks(program, order, sparsity))


def relax_blocks(program: Program, grams: tuple[Gram, ...], free: tuple[tuple[int, Monomial], ...]) -> SosRelaxation:
    """The conic program with these Gram matrices and monomials of free multipliers by constraint.

    Raises UsageError where it misses a monomial of the objective.
    """
    scale = Fraction(max((abs(c) for m, c in program.objective.terms.items() if m), default=1), program.objective.unit)
    index: dict[Monomial, int] = {(): 0}
    rows: list[int] = []
    columns: list[int] = []
    data: list[float] = []
    pivot: dict[int, int] = {}
    diagonal: list[bool] = []
    one = Exact(terms={(): 1})

    def put(column: int, m: Monomial, g: Exact, times: float) -> None:
        for n, c in g.terms.items():
            rows.append(index.setdefault(multiply(m, n, program.signs), len(index)))
            columns.append(column)
            data.append(times * c / g.unit)

    column = 0
    for gram in grams:
        g = one if gram.constraint is None else program.nonnegative[gram.constraint]
        for a, m in enumerate(gram.basis):
            for b in range(a + 1):
                put(column, multiply(m, gram.basis[b], program.signs), g, 1.0 + (a != b))
                if gram.constraint is None and rows[-1]:
                    pivot.setdefault(rows[-1], column)
                diagonal.append(a == b)
                column += 1
    for k, m in free:
        put(column, m, program.zero[k], 1.0)
        diagonal.append(False)
        column += 1
    missing = [m for m in program.objective.terms if m not in index]
    if missing:
        raise UsageError(f"products of these squares miss {len(missing)} monomials of the objective")
    target = np.zeros(len(index))
    for m, c in program.objective.terms.items():
        target[index[m]] = -float(Fraction(c, program.objective.unit) / scale)
    matrix = sp.csr_array((data, (rows, columns)), shape=(len(index), column))
    return _solved_for(matrix, target, pivot, np.array(diagonal), grams, free, scale)


def _solved_for(
    matrix: Any,
    target: Array,
    pivot: Mapping[int, int],
    diagonal: Array,
    grams: tuple[Gram, ...],
    free: tuple[tuple[int, Monomial], ...],
    scale: Fraction,
) -> SosRelaxation:
    """The identity with one unknown of every monomial eliminated; a pivot is in no other equation."""
    count = matrix.shape[1]
    solved = np.array(sorted(pivot), dtype=np.int64)
    at = np.array([pivot[k] for k in solved.tolist()], dtype=np.int64)
    others = np.setdiff1d(np.arange(count), at)
    columns = sp.csc_array(matrix)
    weight = np.asarray(columns[:, at].sum(axis=0)).ravel()
    start = np.zeros(count)
    start[at] = target[solved] / weight
    inner_part = sp.coo_array(sp.diags_array(-1.0 / weight) @ sp.csr_array(columns[:, others])[solved])
    r, c = inner_part.coords
    own = np.arange(len(others))
    entries = (
        np.concatenate([inner_part.data, np.ones(len(others))]),
        (np.concatenate([at[r], others]), np.concatenate([c, own])),
    )
    step = sp.csr_array(entries, shape=(count, len(others)))
    signed = diagonal[others]
    signed[_on_diagonals(step, start, diagonal)] = True
    order = np.argsort(~signed, kind="stable")
    step, signed = sp.csr_array(step[:, order]), signed[order]
    unsolved = np.setdiff1d(np.arange(1, matrix.shape[0]), solved)
    left = sp.csr_array(sp.csr_array(matrix)[unsolved] @ step)
    return SosRelaxation(
        grams=grams,
        free=free,
        start=start,
        step=step,
        signed=signed,
        left=left,
        rest=target[unsolved] - sp.csr_array(matrix)[unsolved] @ start,
        cost=np.asarray((sp.csr_array(matrix)[[0]] @ step).todense()).ravel(),
        scale=scale,
    )


def _on_diagonals(step: Any, start: Array, diagonal: Array) -> Array:
    """The unknowns of which an entry on a diagonal is a positive multiple: they are nonnegative."""
    counts = np.diff(step.indptr)
    rows = np.flatnonzero(diagonal & (counts == 1) & (start == 0.0))
    places = step.indptr[rows]
    return np.asarray(step.indices[places[step.data[places] > 0.0]])
