"""A matrix inequality whose coefficients have rank two, read from the factors of a model.

S(y) = C + sum_j t_j (u_j r_j' + r_j u_j') with t = K y + k, u_j = e_j - alpha_j m_j and r_j = e_j - beta_j m_j: e_j is an
entry of a signal (or zero), m_j a row over several signals. Slope restrictions (e the activation's output, m its
input), balls (no m), tied multipliers (K not the identity) and any other product of two linear forms are of this shape:
4 l r = (l + r)^2 - (l - r)^2, and a square has e = 0 and alpha = beta = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.native.chain import Array, Exponents, triangular_factor
from lipmodel.model.terms import Factored

if TYPE_CHECKING:
    from lipmodel.model.forms import LinearForm, QuadraticForm
    from lipmodel.model.model import Model

Blocks = dict[int, Array]
NO_SIGNAL = -1
PROPORTIONAL = 1e-12  # relative distance up to which two rows count as multiples of one row


class NotReadable(Exception):  # noqa: N818 - why a model is not of the shape that is solved here
    """Why a model is not of the shape that this backend solves."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Coefficients u_j r_j' + r_j u_j' with e_j entry index[j] of `signal` (NO_SIGNAL: e_j = 0).

    alpha, beta: shape (n,). pre: m_j by signals, arrays of shape (n, size of the signal); empty where there is no m.
    """

    signal: int
    index: Array
    alpha: Array
    beta: Array
    pre: Blocks

    @property
    def size(self) -> int:
        return len(self.index)

    @property
    def curved(self) -> bool:
        """Whether m_j m_j' has a coefficient."""
        return bool(self.pre) and bool(np.any(self.alpha * self.beta))

    def covers(self, size: int) -> bool:
        """Whether e runs through a whole signal of this size in order."""
        return self.signal != NO_SIGNAL and np.array_equal(self.index, np.arange(size))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """min cost'y subject to S(y) >= 0 and y_i >= 0 where `nonnegative`; the bound is cost'y, or its root.

    sizes: of the signals. weights: K, CSR (rows, unknowns); shift: k. constant: blocks of C, {(a, b): array} with
    a <= b, each standing for its transpose too.
    """

    sizes: tuple[int, ...]
    rows: tuple[Rows, ...]
    weights: Any
    shift: Array
    constant: Mapping[tuple[int, int], Array]
    cost: Array
    nonnegative: Array
    root: bool

    @property
    def unknowns(self) -> int:
        return len(self.cost)

    @property
    def spans(self) -> list[slice]:
        """Where every group of rows stands in t."""
        ends = np.cumsum([0, *(rows.size for rows in self.rows)])
        return [slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True)]

    @property
    def varying(self) -> list[bool]:
        """Whether the weights of a group of rows depend on the unknowns."""
        return [self.weights[span].nnz > 0 for span in self.spans]

    def slack(self) -> set[int]:
        """Signals in which everything is constant: eliminating them gives the constant -V'V."""
        found = set(range(len(self.sizes)))
        for rows, varies in zip(self.rows, self.varying, strict=True):
            if varies:
                found -= {rows.signal, *rows.pre}
        return found

    @property
    def order(self) -> int:
        """Order of the matrix inequality, apart from constant slack."""
        slack = self.slack()
        return sum(size for s, size in enumerate(self.sizes) if s not in slack)


def binary_exponents(values: Array) -> Exponents:
    """e with |values| in [2^(e-1), 2^e); zero where the value is zero."""
    return np.asarray(np.frexp(values)[1], dtype=np.int64)


def form_of(model: Model) -> QuadraticForm:
    """The one matrix constraint of a model of the right shape. Raises NotReadable; reads no matrix."""
    if len(model.constraints) != 1 or len(model.matrix_constraints) != 1:
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
        prefer = self.at.get(getattr(term.rule.subject, "signal", None)) if term.rule is not None else None
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


def plain_rows(signal: int, size: int) -> Rows:
    """Twice the squares of a signal's entries."""
    zero = np.zeros(size)
    return Rows(signal=signal, index=np.arange(size), alpha=zero, beta=zero, pre={})


def without_signals(program: Program, gone: list[int]) -> Program:
    """The program without some signals, and without their rows and their blocks."""
    new = {s: i for i, s in enumerate(s for s in range(len(program.sizes)) if s not in gone)}
    new[NO_SIGNAL] = NO_SIGNAL
    kept = [rows.signal not in gone for rows in program.rows]
    mask = np.concatenate([np.full(rows.size, keep) for rows, keep in zip(program.rows, kept, strict=True)])
    return replace(
        program,
        sizes=tuple(size for s, size in enumerate(program.sizes) if s not in gone),
        rows=tuple(
            replace(rows, signal=new[rows.signal], pre={new[s]: m for s, m in rows.pre.items() if s in new})
            for rows, keep in zip(program.rows, kept, strict=True)
            if keep
        ),
        weights=program.weights[mask],
        shift=program.shift[mask],
        constant={(new[a], new[b]): block for (a, b), block in program.constant.items() if a in new and b in new},
    )


def compressed(upper: Blocks, lower: Blocks) -> tuple[Blocks, Blocks]:
    """Blocks with the same Gram matrix and no more rows than columns: R of a QR factorisation of all of them.

    upper, lower: two families of blocks with the same rows, stacked side by side.
    """
    parts = [*upper.values(), *lower.values()]
    count, columns = parts[0].shape[0], sum(part.shape[1] for part in parts)
    if count <= columns:
        return upper, lower
    stacked = np.hstack(parts)
    exponents = -np.max(np.frexp(stacked)[1], axis=0)  # columns of order one: no square overflows
    r = np.ldexp(triangular_factor(np.ldexp(stacked, exponents)), -exponents)
    pieces = np.split(r, np.cumsum([part.shape[1] for part in parts])[:-1], axis=1)
    found = [np.ascontiguousarray(piece) for piece in pieces]
    return dict(zip(upper, found, strict=False)), dict(zip(lower, found[len(upper) :], strict=True))


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


def _entries_of(block: Array) -> tuple[Array, Array] | None:
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
    units = [np.where(top > 0.0, 1.0 / np.where(top > 0.0, top, 1.0), 0.0) for top in tops]
    product, squares = np.zeros(count), [np.zeros(count), np.zeros(count)]
    for s in set(left) | set(right):
        l, r = (side[s] * unit[:, None] if s in side else None for side, unit in zip((left, right), units, strict=True))
        for side, m in enumerate((l, r)):
            squares[side] += 0.0 if m is None else np.einsum("ij,ij->i", m, m)
        product += 0.0 if l is None or r is None else np.einsum("ij,ij->i", l, r)
    take = tops[1] >= tops[0]  # m = r in these rows, else l
    bases = [np.where(take, squares[1], squares[0]), np.where(take, tops[1], tops[0])]
    ratio = np.where(bases[0] > 0.0, product / np.where(bases[0] > 0.0, bases[0], 1.0), 0.0)
    ratio = ratio * np.where(take, tops[0], tops[1]) / np.where(bases[1] > 0.0, bases[1], 1.0)
    m: Blocks = {}
    for s in sorted(set(left) | set(right)):
        l = left.get(s, np.zeros((1, 1)))
        r = right.get(s, np.zeros((1, 1)))
        big, small = np.where(take[:, None], r, l), np.where(take[:, None], l, r)
        allowed = PROPORTIONAL * np.where(take, tops[0], tops[1])
        if np.any(np.abs(small - ratio[:, None] * big) > allowed[:, None]):
            return None
        m[s] = big
    return m, np.where(take, ratio, 1.0), np.where(take, 1.0, ratio)
