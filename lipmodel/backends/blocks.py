"""Quadratic forms block by block, factors kept: what a modelling language is given instead of coefficients.

The matrix of a form has one block for each pair of signals, a sum of products left' diag(weight) right.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import scipy.sparse as sp

from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
from lipmodel.model.sets import Nonnegative, Zero
from lipmodel.model.terms import Congruence, Factored, Term, lower_triangle
from lipmodel.model.variables import Expression, Variable

if TYPE_CHECKING:
    from lipmodel.backends.base import Capabilities
    from lipmodel.bridges.standard import StandardProgram
    from lipmodel.model.model import Model

Array = np.ndarray[Any, Any]
DENSE = 0.4
"""Share of nonzero entries from which a matrix is handed over as a dense one."""


class Language(Protocol):
    """What a modelling language has to offer. Vectors and matrices are expressions of it, or constants."""

    def constant(self, values: Any) -> Any:
        """A dense vector or matrix, or a sparse matrix."""

    def vector(self, variable: Variable) -> Any:
        """The variable; of a matrix, the lower triangle, column by column."""

    def matrix(self, variable: Variable) -> Any: ...
    def product(self, left: Any, right: Any) -> Any:
        """A matrix times a matrix or a vector."""

    def multiple(self, number: Any, matrix: Any) -> Any:
        """A vector of one entry times a constant matrix."""

    def entrywise(self, values: Array, matrix: Any) -> Any: ...
    def diagonal(self, vector: Any) -> Any: ...
    def transpose(self, matrix: Any) -> Any: ...
    def shaped(self, vector: Any, rows: int, cols: int) -> Any:
        """A vector of rows * cols entries as a matrix, row by row."""

    def blocks(self, rows: list[list[Any]]) -> Any: ...


def affine(e: Expression, language: Language) -> Any:
    """The expression as a vector of the language."""
    total: Any = None
    for v, k in e.coefficients.items():
        vector, multiple = language.vector(v), _multiple_of_identity(k)
        if multiple is None:
            part = language.product(language.constant(_handy(k)), vector)
        else:
            part = vector if multiple == 1.0 else -vector if multiple == -1.0 else multiple * vector
        total = part if total is None else total + part
    if total is None:
        return language.constant(e.constant)
    return total + language.constant(e.constant) if np.any(e.constant) else total


def matrix_of(form: QuadraticForm, language: Language) -> Any:
    """The matrix of a form, one block for each pair of signals, a sum of left' diag(weight) right."""
    signals = form.signals
    place = {signal: k for k, signal in enumerate(signals)}
    upper: dict[tuple[int, int], Any] = {}
    for term in form.terms:
        for a, b, piece in _pieces(term, place, language):
            at = (place[a], place[b])
            upper[at] = upper[at] + piece if at in upper else piece
    count = range(len(signals))
    for i in count:
        for j in count[i:]:
            if (i, j) not in upper:
                upper[i, j] = language.constant(np.zeros((signals[i].size, signals[j].size)))
    if len(signals) == 1:
        return upper[0, 0]
    return language.blocks([[upper[i, j] if i <= j else language.transpose(upper[j, i]) for j in count] for i in count])


def _pieces(term: Term, place: Mapping[Signal, int], language: Language) -> Iterator[tuple[Signal, Signal, Any]]:
    """Contributions to the blocks (a, b) with a before b, or a = b, in the order of the signals."""
    if isinstance(term, Congruence):
        middle = language.matrix(term.matrix)
        if term.weights is not None:
            middle = language.entrywise(_symmetric(term.weights, term.form.size), middle)
        middle = middle if term.scale == 1.0 else float(term.scale) * middle
        centers = _centers(term.form)
        for a, b in _pairs(centers, place):
            yield a, b, _between(centers[a], middle, centers[b], language)
    elif isinstance(term, Factored):
        lefts = _centers(term.left)
        rights = lefts if term.right is term.left else _centers(term.right)
        same = rights is lefts
        for a, b in _pairs(dict.fromkeys((*lefts, *rights)), place):
            if a is b and a in lefts and a in rights and _are_multiples(lefts[a], rights[a]):
                yield a, b, _weighted(lefts[a], term.weight, rights[a], language)
                continue
            if a in lefts and b in rights:
                yield a, b, _weighted(lefts[a], term.weight * (1.0 if same else 0.5), rights[b], language)
            if a in rights and b in lefts and not same:
                yield a, b, _weighted(rights[a], term.weight * 0.5, lefts[b], language)
    else:
        yield from _coefficients(term, place, language)


def _weighted(left: Any, weight: Expression, right: Any, language: Language) -> Any:
    """left' diag(weight) right; of one number for all rows, that number times left' right."""
    if not weight.coefficients:
        # dense: a sparse block does not meet dense ones in every language
        return language.constant((left.T @ sp.diags_array(weight.constant) @ right).toarray())
    if _is_one_number(weight):
        product = sp.csr_array(left.T @ right)
        if _multiple_of_identity(product) is None:
            return language.multiple(affine(weight[:1], language), language.constant(product.toarray()))
    outer, inner = _multiple_of_identity(left), _multiple_of_identity(right)
    if outer is not None:
        weight, left = weight * outer, None
    if inner is not None:
        weight, right = weight * inner, None
    return _between(left, language.diagonal(affine(weight, language)), right, language)


def _between(left: Any, middle: Any, right: Any, language: Language) -> Any:
    """left' middle right, where None and the identity are left out."""
    if left is not None and _multiple_of_identity(left) != 1.0:
        middle = language.product(language.constant(_handy(sp.csr_array(left.T))), middle)
    if right is not None and _multiple_of_identity(right) != 1.0:
        middle = language.product(middle, language.constant(_handy(right)))
    return middle


def _pairs(signals: Mapping[Signal, Any], place: Mapping[Signal, int]) -> Iterator[tuple[Signal, Signal]]:
    for a in signals:
        for b in signals:
            if place[a] <= place[b]:
                yield a, b


def _coefficients(term: Term, place: Mapping[Signal, int], language: Language) -> Iterator[tuple[Signal, Signal, Any]]:
    for t in term.triplets():
        (a, b), row, col, value, index = t.block, t.row, t.col, t.value, t.index
        if place[a] > place[b]:
            a, b, row, col = b, a, col, row
        if a is b:  # one triangle is listed
            off = np.flatnonzero(row != col)
            row, col = np.concatenate([row, col[off]]), np.concatenate([col, row[off]])
            value, index = np.concatenate([value, value[off]]), np.concatenate([index, index[off]])
        place_of, size = row * b.size + col, a.size * b.size
        if t.variable is None:
            summed = np.bincount(place_of, weights=value, minlength=size)
            yield a, b, language.constant(summed.reshape(a.size, b.size))
        else:
            k = sp.csr_array((value, (place_of, index)), shape=(size, t.variable.size))
            entries = Expression(size=size, coefficients={t.variable: k}, constant=np.zeros(size))
            yield a, b, language.shaped(affine(entries, language), a.size, b.size)


def _centers(form: LinearForm) -> dict[Signal, Any]:
    return {s: sp.csr_array(m.enclosure().center) for s, m in form.blocks.items()}


def _symmetric(triangle: Array, order: int) -> Array:
    """A symmetric matrix from its lower triangle, column by column."""
    cols, rows = lower_triangle(order)
    matrix = np.zeros((order, order))
    matrix[rows, cols] = matrix[cols, rows] = triangle
    return matrix


def _handy(m: Any) -> Any:
    """A matrix as modelling languages like it: dense, or a sparse matrix (not an array) where that is small."""
    return m.toarray() if m.nnz > DENSE * m.shape[0] * m.shape[1] else sp.csr_matrix(m)


def _is_one_number(weight: Expression) -> bool:
    """Whether all entries of an expression are the same."""
    if not bool(np.all(weight.constant == weight.constant[0])):
        return False
    ones = np.ones((weight.size, 1))
    return all((k - sp.csr_array(ones) @ k[[0]]).count_nonzero() == 0 for k in weight.coefficients.values())


def _multiple_of_identity(m: Any) -> float | None:
    """c where the sparse matrix is c times the identity, else None."""
    n = m.shape[0]
    if m.shape[1] != n or n == 0 or m.nnz != n:
        return None
    diagonal = m.diagonal()
    return float(diagonal[0]) if diagonal[0] != 0.0 and bool(np.all(diagonal == diagonal[0])) else None


def _are_multiples(left: Any, right: Any) -> bool:
    """Whether both are multiples of the identity: then left' W right is symmetric for diagonal W."""
    return _multiple_of_identity(left) is not None and _multiple_of_identity(right) is not None


def reformulated(model: Model, capabilities: Capabilities) -> Model:
    """The model in sets that a language has, in its own units. Raises LipmodelError where no bridge leads there."""
    from lipmodel.bridges.plan import apply_plan, find_plan, shape_of

    return apply_plan(model, find_plan(model, shape_of(model), capabilities))[0]


def sorted_duals(model: Model, duals: Sequence[Any]) -> tuple[list[Array | None], dict[str, Array]]:
    """The duals of the model's constraints, in their order, as `dual_objective` takes them."""
    matrices: list[Array | None] = []
    vectors: dict[str, list[Array]] = {"nonnegative": [], "free": []}
    for c, dual in zip(model.constraints, duals, strict=True):
        if isinstance(c.function, QuadraticForm):
            if c.function.signals:
                matrices.append(None if dual is None else np.asarray(dual, dtype=np.float64))
        elif isinstance(c.set, Nonnegative | Zero):
            vector = np.full(c.function.size, np.nan) if dual is None else np.ravel(np.asarray(dual, dtype=np.float64))
            vectors["nonnegative" if isinstance(c.set, Nonnegative) else "free"].append(vector)
    return matrices, {kind: np.concatenate(parts) for kind, parts in vectors.items() if parts}


def dual_objective(standard: StandardProgram, matrices: Sequence[Array | None], vectors: Mapping[str, Array]) -> float:
    """Minus the objective of the standard form at the duals of a geometric program: a lower estimate of its optimum.

    matrices: one (order, order) per block; vectors: by "nonnegative" and "free", whose sign languages disagree on: that
    of "free" which leaves the smaller residual is taken. nan where a dual is missing, or there are second-order cones.
    """
    p = standard.geometric
    if p.soc:
        return float("nan")
    total, left = 0.0, np.array(standard.rhs, dtype=np.float64)
    for block, dual in zip(standard.psd, matrices, strict=True):
        if dual is None or np.shape(dual) != (block.order, block.order):
            return float("nan")
        weight = block.value * np.where(block.row == block.col, 1.0, 2.0) * dual[block.row, block.col]
        constant = block.var < 0
        total += float(weight[constant].sum())
        np.subtract.at(left, block.var[~constant], weight[~constant])
    signs = p.ineq.shape[0] - len(vectors.get("nonnegative", ()))
    if len(vectors.get("nonnegative", ())):
        u = vectors["nonnegative"]
        left -= p.ineq[signs:].T @ u
        total += float(p.ineq_rhs[signs:] @ u)
    if p.eq.shape[0]:
        v = vectors.get("free")
        if v is None or len(v) != p.eq.shape[0]:
            return float("nan")
        pull = p.eq.T @ v
        sign = 1.0 if np.linalg.norm(left - pull) <= np.linalg.norm(left + pull) else -1.0
        total += sign * float(p.eq_rhs @ v)
    return -total


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of a modelling language."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
