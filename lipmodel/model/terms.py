"""The kinds of term a quadratic form is made of; each keeps its structure until a backend asks for coefficients.

`Factored` = sum_i weight_i(y) left_i(z) right_i(z) and `Congruence` = form(z)' X form(z) carry the whole field;
`Coefficients` is the fallback for matrices somebody already has. All obey one contract (`Term`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import UsageError
from lipmodel.model.forms import LinearForm, Signal, apply
from lipmodel.model.variables import Expression, Variable
from lipmodel.network.linear import LinearMap, Selection

Array = np.ndarray[Any, Any]
Pair = tuple[Signal, Signal]
DENSE = 0.2
"""Share of nonzeros from which a matrix is multiplied as a dense one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rule:
    """Why a term may stand in a proof: a norm ball, a slope restriction, the coupling with the output.

    subject: the activation of a slope restriction, the dual signal of a dual ball or coupling, the
    pairs of pair constraints (and `pair-cone` for what makes those valid); None otherwise.
    """

    kind: Literal["ball-input", "ball-dual", "slope", "output-dual", "output-output", "pair", "pair-cone"]
    subject: Any = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Triplets:
    """Entries of one block of a symmetric matrix: entry (row, col) of block (a, b) gets value * variable[index].

    variable None (index -1): the constant. Every entry off the diagonal is given once: block (a, b) stands for (b, a)
    too, and of a block (a, a) only the lower triangle is listed, row >= col.
    """

    block: Pair
    row: Array
    col: Array
    variable: Variable | None
    index: Array
    value: Array

    @property
    def times(self) -> Array:
        """How often every entry counts in the quadratic form: twice off the diagonal, once on it."""
        a, b = self.block
        return np.where(self.row == self.col, 1.0, 2.0) if a is b else np.full(len(self.value), 2.0)


class Term(Protocol):
    """The contract of every term (one test suite covers them all)."""

    @property
    def rule(self) -> Rule | None: ...
    @property
    def exact(self) -> bool:
        """Whether the linear forms are known exactly (no matrix in them has a radius)."""

    @property
    def variables(self) -> tuple[Variable, ...]: ...
    @property
    def signals(self) -> tuple[Signal, ...]:
        """In order of first appearance."""

    def scaled(self, factor: float) -> Term: ...
    def pattern(self) -> frozenset[Pair]:
        """The pairs of signals whose products occur, each pair in one order; (a, a) for squares."""

    def split(self) -> tuple[Term, ...]:
        """The same sum as terms that each touch one pair of signals."""

    def value(self, values: Mapping[Variable, Array], point: Mapping[Signal, Array]) -> float: ...
    def triplets(self) -> Iterator[Triplets]: ...
    def adjoint(self, moments: Mapping[Pair, Array]) -> tuple[dict[Variable, Array], float]:
        """Gradient of <term, Y> in the variables, and its constant, for the blocks Y = E[z_a z_b']."""

    def substitute(self, replacements: Mapping[Signal, LinearForm]) -> Term:
        """The term in other signals: every s in `replacements` becomes replacements[s]."""

    def rescaled(self, factors: Mapping[Variable, Array]) -> Term:
        """The term in other variables: every v in `factors` becomes factors[v] * v, entry by entry."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factored:
    """sum_i weight_i(y) left_i(z) right_i(z): scaled Grams, balls, slope restrictions, inner products.

    weight: Expression, left, right: LinearForm, all of one size.
    """

    weight: Expression
    left: LinearForm
    right: LinearForm
    rule: Rule | None = None

    def __post_init__(self) -> None:
        if not self.weight.size == self.left.size == self.right.size:
            sizes = f"{self.weight.size}, {self.left.size} and {self.right.size}"
            raise UsageError(f"the weight and both sides of a product must be of one size, not of {sizes}")

    @property
    def size(self) -> int:
        return self.left.size

    @property
    def variables(self) -> tuple[Variable, ...]:
        return tuple(self.weight.coefficients)

    @property
    def signals(self) -> tuple[Signal, ...]:
        return tuple(dict.fromkeys((*self.left.blocks, *self.right.blocks)))

    @property
    def exact(self) -> bool:
        return all(m.enclosure().is_exact for f in (self.left, self.right) for m in f.blocks.values())

    def scaled(self, factor: float) -> Factored:
        return replace(self, weight=self.weight * factor)

    def pattern(self) -> frozenset[Pair]:
        return frozenset(_ordered(a, b) for a in self.left.blocks for b in self.right.blocks)

    def split(self) -> tuple[Term, ...]:
        return tuple(
            Factored(
                weight=self.weight,
                left=LinearForm(size=self.size, blocks={a: m}),
                right=LinearForm(size=self.size, blocks={b: k}),
                rule=self.rule if len(self.left.blocks) == len(self.right.blocks) == 1 else None,
            )
            for a, m in self.left.blocks.items()
            for b, k in self.right.blocks.items()
        )

    def value(self, values: Mapping[Variable, Array], point: Mapping[Signal, Array]) -> float:
        return float(np.sum(self.weight.value(values) * self.left.value(point) * self.right.value(point)))

    def triplets(self) -> Iterator[Triplets]:
        lefts = _centers(self.left)
        rights = lefts if self.right is self.left else _centers(self.right)
        constant = bool(np.any(self.weight.constant))
        for a, left in lefts.items():
            for b, right in rights.items():
                if constant:
                    yield _gram(a, b, left, right, self.weight.constant)
                if not self.weight.coefficients:
                    continue
                entry, rows, cols, products = _row_products(left, right)
                if a is b:
                    # (l r' + r l') / 2 is symmetric: both (i, j) and (j, i) fold onto the lower triangle.
                    rows, cols = np.maximum(rows, cols), np.minimum(rows, cols)
                    block, halves = (a, a), np.where(rows == cols, products, 0.5 * products)
                else:
                    block, halves = _ordered(a, b), 0.5 * products
                    if block[0] is b:
                        rows, cols = cols, rows
                yield from _weighted(block, entry, rows, cols, halves, self.weight)

    def adjoint(self, moments: Mapping[Pair, Array]) -> tuple[dict[Variable, Array], float]:
        diagonal = np.zeros(self.size)
        for a, m in self.left.blocks.items():
            for b, k in self.right.blocks.items():
                y = _moment(moments, a, b)
                left_y = m.matvec(y)
                diagonal += np.sum(left_y * _dense(k), axis=1)
        gradient = {v: np.asarray(k.T @ diagonal) for v, k in self.weight.coefficients.items()}
        return gradient, float(self.weight.constant @ diagonal)

    def substitute(self, replacements: Mapping[Signal, LinearForm]) -> Term:
        left = self.left.substitute(replacements)
        right = left if self.right is self.left else self.right.substitute(replacements)
        return replace(self, left=left, right=right)

    def rescaled(self, factors: Mapping[Variable, Array]) -> Term:
        return replace(self, weight=rescale_expression(self.weight, factors))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Congruence:
    """scale * form(z)' X form(z) with a symmetric matrix variable X of the form's size (overlaps, pair constraints).

    weights: factors of the entries of X's lower triangle, which a change of variables brings.
    """

    form: LinearForm
    matrix: Variable
    scale: float = 1.0
    rule: Rule | None = None
    weights: Array | None = None

    def __post_init__(self) -> None:
        if self.matrix.order != self.form.size:
            raise UsageError(f"{self.matrix!r} is no symmetric matrix for a linear form of size {self.form.size}")

    @property
    def variables(self) -> tuple[Variable, ...]:
        return (self.matrix,)

    @property
    def signals(self) -> tuple[Signal, ...]:
        return self.form.signals

    @property
    def exact(self) -> bool:
        return all(m.enclosure().is_exact for m in self.form.blocks.values())

    def scaled(self, factor: float) -> Congruence:
        return replace(self, scale=self.scale * factor)

    def pattern(self) -> frozenset[Pair]:
        signals = list(self.form.blocks)
        return frozenset(_ordered(a, b) for i, a in enumerate(signals) for b in signals[i:])

    def split(self) -> tuple[Term, ...]:
        return Coefficients(entries=tuple(self.triplets())).split()

    def _symmetric(self, values: Mapping[Variable, Array]) -> Array:
        n = self.form.size
        entries = np.asarray(values[self.matrix]) * (1.0 if self.weights is None else self.weights)
        x = np.zeros((n, n))
        cols, rows = lower_triangle(n)
        x[rows, cols] = entries
        return x + np.tril(x, -1).T

    def value(self, values: Mapping[Variable, Array], point: Mapping[Signal, Array]) -> float:
        f = self.form.value(point)
        return self.scale * float(f @ self._symmetric(values) @ f)

    def triplets(self) -> Iterator[Triplets]:
        n = self.form.size
        cols, rows = lower_triangle(n)
        weight = Expression.of(self.matrix) * (self.scale if self.weights is None else self.scale * self.weights)
        # f' X f = sum_{i>=j} X_ij (2 - [i=j]) f_i f_j, a factored term over the entries of the triangle.
        factor = np.where(rows == cols, 1.0, 2.0)
        left, right = (apply(Selection(index=index, size=n), self.form) for index in (rows, cols))
        yield from Factored(weight=weight * factor, left=left, right=right).triplets()

    def adjoint(self, moments: Mapping[Pair, Array]) -> tuple[dict[Variable, Array], float]:
        n = self.form.size
        gram = np.zeros((n, n))
        for a, m in self.form.blocks.items():
            for b, k in self.form.blocks.items():
                gram += m.matvec(_moment(moments, a, b)) @ _dense(k).T
        cols, rows = lower_triangle(n)
        gradient = self.scale * np.where(rows == cols, gram[rows, cols], gram[rows, cols] + gram[cols, rows])
        return {self.matrix: gradient if self.weights is None else gradient * self.weights}, 0.0

    def substitute(self, replacements: Mapping[Signal, LinearForm]) -> Term:
        return replace(self, form=self.form.substitute(replacements))

    def rescaled(self, factors: Mapping[Variable, Array]) -> Term:
        if self.matrix not in factors:
            return self
        weights = factors[self.matrix] * (1.0 if self.weights is None else self.weights)
        return replace(self, weights=weights)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coefficients:
    """A quadratic form given by its coefficients: what is left when a structure cannot be kept."""

    entries: tuple[Triplets, ...]
    rule: Rule | None = None

    @property
    def variables(self) -> tuple[Variable, ...]:
        return tuple(dict.fromkeys(t.variable for t in self.entries if t.variable is not None))

    @property
    def signals(self) -> tuple[Signal, ...]:
        return tuple(dict.fromkeys(s for t in self.entries for s in t.block))

    @property
    def exact(self) -> bool:
        return False

    def scaled(self, factor: float) -> Coefficients:
        return replace(self, entries=tuple(replace(t, value=t.value * factor) for t in self.entries))

    def pattern(self) -> frozenset[Pair]:
        return frozenset(t.block for t in self.entries)

    def split(self) -> tuple[Term, ...]:
        blocks = dict.fromkeys(t.block for t in self.entries)
        return tuple(Coefficients(entries=tuple(t for t in self.entries if t.block == b)) for b in blocks)

    def value(self, values: Mapping[Variable, Array], point: Mapping[Signal, Array]) -> float:
        result = 0.0
        for t in self.entries:
            a, b = t.block
            weight = t.value if t.variable is None else t.value * np.asarray(values[t.variable])[t.index]
            result += float(np.sum(t.times * weight * np.asarray(point[a])[t.row] * np.asarray(point[b])[t.col]))
        return result

    def triplets(self) -> Iterator[Triplets]:
        yield from self.entries

    def adjoint(self, moments: Mapping[Pair, Array]) -> tuple[dict[Variable, Array], float]:
        gradient: dict[Variable, Array] = {}
        constant = 0.0
        for t in self.entries:
            a, b = t.block
            y = _moment(moments, a, b)[t.row, t.col]
            if t.variable is None:
                constant += float(np.sum(t.times * t.value * y))
            else:
                g = gradient.setdefault(t.variable, np.zeros(t.variable.size))
                np.add.at(g, t.index, t.times * t.value * y)
        return gradient, constant

    def substitute(self, replacements: Mapping[Signal, LinearForm]) -> Term:
        if not any(s in replacements for s in self.signals):
            return self
        parts = [_factored(t).substitute(replacements).triplets() for t in self.entries]
        return replace(self, entries=tuple(t for part in parts for t in part))

    def rescaled(self, factors: Mapping[Variable, Array]) -> Term:
        def one(t: Triplets) -> Triplets:
            if t.variable is None or t.variable not in factors:
                return t
            return replace(t, value=t.value * factors[t.variable][t.index])

        return replace(self, entries=tuple(one(t) for t in self.entries))


def lower_triangle(n: int) -> tuple[Array, Array]:
    """(cols, rows) of the lower triangle, column by column."""
    cols, rows = np.triu_indices(n)
    return cols, rows


def rescale_expression(e: Expression, factors: Mapping[Variable, Array]) -> Expression:
    """The expression after the change of variables v = factors[v] * v~, in the new variables."""
    changed = {
        v: sp.csr_array(k @ sp.diags_array(factors[v])) if v in factors else k for v, k in e.coefficients.items()
    }
    return Expression(size=e.size, coefficients=changed, constant=e.constant)


def _ordered(a: Signal, b: Signal) -> Pair:
    return (a, b) if (a.name, id(a)) <= (b.name, id(b)) else (b, a)


def _moment(moments: Mapping[Pair, Array], a: Signal, b: Signal) -> Array:
    if (a, b) in moments:
        return moments[(a, b)]
    return moments[(b, a)].T


def _dense(m: LinearMap) -> Array:
    return np.asarray(m.enclosure().dense().center)


def _centers(form: LinearForm) -> dict[Signal, Any]:
    return {s: sp.csr_array(m.enclosure().center) for s, m in form.blocks.items()}


def _factored(t: Triplets) -> Factored:
    """The same entries as products of selected entries of the two signals."""
    a, b = t.block
    n, value = len(t.value), t.times * t.value
    weight = Expression.number(value, n)
    if t.variable is not None:
        k = sp.csr_array((value, (np.arange(n), t.index)), shape=(n, t.variable.size))
        weight = Expression(size=n, coefficients={t.variable: k}, constant=np.zeros(n))
    left = LinearForm(size=n, blocks={a: Selection(index=t.row, size=a.size)})
    right = LinearForm(size=n, blocks={b: Selection(index=t.col, size=b.size)})
    return Factored(weight=weight, left=left, right=right)


def _row_products(left: Any, right: Any) -> tuple[Array, Array, Array, Array]:
    """For every i and every pair of nonzeros of row i of `left` and `right`: (i, col left, col right, product)."""
    nl, nr = np.diff(left.indptr), np.diff(right.indptr)
    counts = nl * nr
    entry = np.repeat(np.arange(left.shape[0]), counts)
    if entry.size == 0:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty, np.zeros(0)
    position = np.arange(entry.size) - np.repeat(np.cumsum(counts) - counts, counts)
    a = left.indptr[entry] + position // nr[entry]
    b = right.indptr[entry] + position % nr[entry]
    return entry, left.indices[a], right.indices[b], left.data[a] * right.data[b]


def _gram(a: Signal, b: Signal, left: Any, right: Any, weight: Array) -> Triplets:
    """sum_i weight_i left_i right_i without variables: one product of matrices, of which every entry comes once."""
    scaled = sp.csr_array(sp.diags_array(weight) @ left)
    if min(left.nnz, right.nnz) > DENSE * max(left.shape[0] * min(left.shape[1], right.shape[1]), 1):
        product = sp.coo_array(scaled.toarray().T @ right.toarray())
    else:
        product = sp.coo_array(scaled.T @ right)
    (rows, cols), values = product.coords, product.data
    if a is b:
        rows, cols = np.maximum(rows, cols), np.minimum(rows, cols)
        block, values = (a, a), np.where(rows == cols, values, 0.5 * values)
    else:
        block, values = _ordered(a, b), 0.5 * values
        if block[0] is b:
            rows, cols = cols, rows
    return Triplets(block=block, row=rows, col=cols, variable=None, index=np.full(len(values), -1), value=values)


def _weighted(
    block: Pair, entry: Array, rows: Array, cols: Array, products: Array, weight: Expression
) -> Iterator[Triplets]:
    def make(variable: Variable, index: Array, r: Array, c: Array, v: Array) -> Triplets:
        return Triplets(block=block, row=r, col=c, variable=variable, index=index, value=v)

    for variable, k in weight.coefficients.items():
        each = np.diff(k.indptr)
        if np.all(each == 1):
            yield make(variable, k.indices[entry], rows, cols, products * k.data[entry])
            continue
        counts = each[entry]
        if not counts.any():
            continue
        spread = np.repeat(np.arange(len(entry)), counts)
        position = np.arange(len(spread)) - np.repeat(np.cumsum(counts) - counts, counts)
        at = k.indptr[entry[spread]] + position
        yield make(variable, k.indices[at], rows[spread], cols[spread], products[spread] * k.data[at])


def all_variables(terms: Sequence[Term]) -> tuple[Variable, ...]:
    """The variables of several terms, in order of first appearance."""
    return tuple(dict.fromkeys(v for t in terms for v in t.variables))
