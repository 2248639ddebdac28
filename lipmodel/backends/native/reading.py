"""From a model to a program: every product of two linear forms as rows of rank two, constants as blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.native.chain import Array, Exponents, shift
from lipmodel.backends.native.program import NO_SIGNAL, Blocks, Program, Rows, compressed, plain_rows
from lipmodel.backends.native.units import binary_exponents
from lipmodel.model.terms import Factored

if TYPE_CHECKING:
    from lipmodel.model.forms import LinearForm, QuadraticForm
    from lipmodel.model.model import Model

PROPORTIONAL = 1e-12  # relative distance up to which two rows count as multiples of one row


class NotReadable(Exception):  # noqa: N818 - why a model is not of the shape that is solved here
    """Why a model is not of the shape that this backend solves."""


def form_of(model: Model) -> QuadraticForm:
    """The one matrix constraint of a model of the right shape. Raises NotReadable; reads no matrix."""
    if len(model.constraints) != 1 or len(model.psd_forms) != 1:
        raise NotReadable("it has constraints besides one matrix inequality")
    form = model.matrix_constraints[0]
    for term in form.terms:
        if not isinstance(term, Factored):
            raise NotReadable("it has a term that is not a sum of weighted products of linear forms")
    if any(v.order is not None for v in model.variables):
        raise NotReadable("it has a matrix variable")
    objective = model.objective
    if objective is None or np.any(objective.constant):
        raise NotReadable("its objective has a constant")
    if any(np.any(k.data < 0.0) for k in objective.coefficients.values()):
        raise NotReadable("its objective rewards a variable")
    return form


def read_program(model: Model) -> Program:
    """The program of a model; its unknowns are the model's variables one after the other. Raises NotReadable."""
    form = form_of(model)
    reader = _Reader(model, form)
    for term in form.terms:
        assert isinstance(term, Factored)
        reader.add(term)
    return reader.program()


class _Reader:
    """Collects rows and constants term by term."""

    def __init__(self, model: Model, form: QuadraticForm) -> None:
        self.model = model
        self.at = {signal: i for i, signal in enumerate(form.signals)}
        self.sizes = [signal.size for signal in form.signals]
        self.starts, self.unknowns = {}, 0
        for v in model.variables:
            self.starts[v] = self.unknowns
            self.unknowns += v.size
        self.rows: list[Rows] = []
        self.weights: list[Any] = []
        self.shifts: list[Array] = []
        self.constant: dict[tuple[int, int], Array] = {}

    def program(self) -> Program:
        objective = self.model.objective
        assert objective is not None
        cost, nonnegative = np.zeros(self.unknowns), np.zeros(self.unknowns, dtype=bool)
        for v, start in self.starts.items():
            nonnegative[start : start + v.size] = v.nonnegative
            if v in objective.coefficients:
                cost[start : start + v.size] = np.asarray(objective.coefficients[v].todense()).ravel()
        none = sp.csr_array((0, self.unknowns))
        return Program(
            sizes=tuple(self.sizes),
            rows=tuple(self.rows),
            weights=sp.csr_array(sp.vstack(self.weights, format="csr")) if self.weights else none,
            shift=np.concatenate(self.shifts) if self.shifts else np.zeros(0),
            constant=self.constant,
            cost=cost,
            nonnegative=nonnegative,
            root=self.model.bound == "sqrt",
        )

    def add(self, term: Factored) -> None:
        left = self._blocks(term.left)
        right = left if term.right is term.left else self._blocks(term.right)
        parts = [k for k in term.weight.coefficients.values() if k.nnz and np.any(k.data)]
        if not parts:
            self._add_constant(term.weight.constant, left, right)
            return
        weights = sp.csr_array((term.size, self.unknowns))
        for v, k in term.weight.coefficients.items():
            entries = sp.coo_array(k)
            moved = (entries.coords[0], entries.coords[1] + self.starts[v])
            weights = weights + sp.csr_array((entries.data, moved), shape=weights.shape)
        weights.sum_duplicates()
        weights.eliminate_zeros()
        subject = None if term.rule is None else getattr(term.rule.subject, "signal", None)
        prefer = None if subject is None else self.at.get(subject)
        for rows, factor in _canonical(left, right, prefer):
            self.rows.append(rows)
            self.weights.append(sp.csr_array(sp.diags_array(factor) @ weights))
            self.shifts.append(factor * term.weight.constant)

    def _blocks(self, form: LinearForm) -> Blocks:
        found = {}
        for signal, m in form.blocks.items():
            center = m.enclosure().center
            found[self.at[signal]] = np.asarray(center.toarray() if sp.issparse(center) else center, dtype=np.float64)
        return found

    def _add_constant(self, weight: Array, left: Blocks, right: Blocks) -> None:
        """sum_j weight_j l_j r_j; minus squares become a slack signal, whose Schur complement they are."""
        common = _common_rows(left, right, len(weight))
        if common is None:
            for a, l in left.items():
                for b, r in right.items():
                    self._add_block(a, b, 0.5 * (l.T * weight) @ r)
                    self._add_block(b, a, 0.5 * (r.T * weight) @ l)
            return
        m, c, d = common
        weight = weight * c * d
        if not m or not np.any(weight):
            return
        if np.all(weight <= 0.0):
            self._add_slack({s: np.sqrt(-weight)[:, None] * block for s, block in m.items()})
            return
        for a, l in m.items():
            for b, r in m.items():
                self._add_block(a, b, (l.T * weight) @ r)

    def _add_block(self, a: int, b: int, block: Array) -> None:
        """Add a block to C; of the pair (a, b), (b, a) with a > b only the transposed one is kept."""
        if a > b or not np.any(block):
            return
        self.constant[a, b] = self.constant[a, b] + block if (a, b) in self.constant else block

    def _add_slack(self, squares: Blocks) -> None:
        """-|V z|^2 as the coupling V with a signal whose own block is the identity."""
        reduced = compressed(squares, {})[0]
        size = next(iter(reduced.values())).shape[0]
        d = len(self.sizes)
        self.sizes.append(size)
        for s, block in reduced.items():
            self._add_block(s, d, block.T)
        self.rows.append(plain_rows(d, size))
        self.weights.append(sp.csr_array((size, self.unknowns)))
        self.shifts.append(np.full(size, 0.5))


# ---------------------------------------------------------------------------------------------------------------------
# Products of two forms as rows


def _canonical(left: Blocks, right: Blocks, prefer: int | None) -> list[tuple[Rows, Array]]:
    """sum_j w_j l_j r_j as rows, each group with the factors by which w becomes t."""
    count = next(iter({**left, **right}.values())).shape[0] if left or right else 0
    candidates = sorted(set(left) & set(right), key=lambda s: (s != prefer, -s))
    for s in candidates:
        own = _entries_of(left[s]), _entries_of(right[s])
        if own[0] is None or own[1] is None or not np.array_equal(own[0][0], own[1][0]):
            continue
        index, a = own[0]
        b = own[1][1]
        common = _common_rows(
            {k: m for k, m in left.items() if k != s}, {k: m for k, m in right.items() if k != s}, count
        )
        if common is None:
            continue
        m, c, d = common
        rows = Rows(signal=s, index=index, alpha=-c / a, beta=-d / b, pre=m)
        return [(rows, a * b / 2.0)]
    common = _common_rows(left, right, count)
    if common is not None:
        m, c, d = common
        return [(_squares(m, count), c * d / 2.0)] if m else []
    both = sorted(set(left) | set(right))
    zero = np.zeros((1, 1))
    plus = {s: left.get(s, zero) + right.get(s, zero) for s in both}
    minus = {s: left.get(s, zero) - right.get(s, zero) for s in both}
    return [(_squares(plus, count), np.full(count, 0.125)), (_squares(minus, count), np.full(count, -0.125))]


def _squares(m: Blocks, count: int) -> Rows:
    one = np.ones(count)
    return Rows(signal=NO_SIGNAL, index=np.zeros(count, dtype=np.int64), alpha=one, beta=one, pre=m)


def _entries_of(block: Array) -> tuple[Exponents, Array] | None:
    """(index, values) of a block with one nonzero per row, all in different columns; None for other blocks."""
    nonzero = block != 0.0
    if not np.all(nonzero.sum(axis=1) == 1):
        return None
    index = nonzero.argmax(axis=1)
    return (index, block[np.arange(len(index)), index]) if len(np.unique(index)) == len(index) else None


def _common_rows(left: Blocks, right: Blocks, count: int) -> tuple[Blocks, Array, Array] | None:
    """m, c, d with l_j = c_j m_j and r_j = d_j m_j; None where the rows are not multiples of one another."""
    one, zero = np.ones(count), np.zeros(count)
    if left is right:
        return left, one, one
    if not left:
        return right, zero, one
    if not right:
        return left, one, zero
    tops = [np.max([np.abs(m).max(axis=1) for m in side.values()], axis=0) for side in (left, right)]
    units = [binary_exponents(top) for top in tops]
    product, squares = np.zeros(count), [np.zeros(count), np.zeros(count)]
    for s in set(left) | set(right):
        sides = zip((left, right), units, strict=True)
        l, r = (shift(side[s], -unit[:, None]) if s in side else None for side, unit in sides)
        for i, part in enumerate((l, r)):
            squares[i] += 0.0 if part is None else np.einsum("ij,ij->i", part, part)
        product += 0.0 if l is None or r is None else np.einsum("ij,ij->i", l, r)
    take = tops[1] >= tops[0]  # m = r in these rows, else l
    square = np.where(take, squares[1], squares[0])
    ratio = np.where(square > 0.0, product / np.where(square > 0.0, square, 1.0), 0.0)
    ratio = shift(ratio, np.where(take, units[0] - units[1], units[1] - units[0]))
    base: Blocks = {}
    for s in sorted(set(left) | set(right)):
        l = left.get(s, np.zeros((1, 1)))
        r = right.get(s, np.zeros((1, 1)))
        big, small = np.where(take[:, None], r, l), np.where(take[:, None], l, r)
        allowed = PROPORTIONAL * np.where(take, tops[0], tops[1])
        if np.any(np.abs(small - ratio[:, None] * big) > allowed[:, None]):
            return None
        base[s] = big
    return base, np.where(take, ratio, 1.0), np.where(take, 1.0, ratio)
