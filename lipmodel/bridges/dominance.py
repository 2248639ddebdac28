"""Diagonal dominance and scaled diagonal dominance: restrictions of a matrix inequality to linear and conic rows.

A form is kept in coordinates z = diag(d) z~ in which it can be diagonally dominant. The scaling d is that of a closed
form: with |W| in the place of the weights, nonnegative d for the input and d_w = b |W| d for a layer, b the larger root
of x^2 - |alpha + beta| x - |alpha beta|, one sweep back gives multipliers with which every row is dominant. So the
linear program is feasible for every network and norm pair, and on a chain from l2 to l2 its optimum is at most the
spectral norm of the product of the |W| and the slopes b (d the Perron vector of that product).

Dominance as linear rows and as a sum of 2 x 2 matrices: Ahmadi & Majumdar 2019, SIAM J. Appl. Algebra Geometry 3:193
(arXiv 1706.02586). That scaled dominance does not depend on d is Boman, Chen, Parekh & Toledo 2005.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.bridges.base import Applied, Part, Shape, Soundness, free_name
from lipmodel.bridges.program import psd_block
from lipmodel.errors import LipmodelError
from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
from lipmodel.model.model import Constraint
from lipmodel.model.sets import Nonnegative, RotatedSecondOrder
from lipmodel.model.terms import Factored, Term, all_variables
from lipmodel.model.variables import Expression, Variable

Array = np.ndarray[Any, Any]
MAX_PAIRS = 2_000_000
"""Products of two coordinates beyond which a form is not made dominant."""
MAX_CONES = 50_000
"""The same for scaled dominance, which takes a second-order cone for each."""
ROUNDS = 60
LITTLE = 1e-3
"""What an entry that nothing reaches gets, beside the smallest of those that something does reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dominance:
    """Bridge: diagonal dominance as linear rows, with a variable for every absolute value whose sign can change."""

    name: str = "dominance as rows"
    sources: frozenset[str] = frozenset({"dd"})
    targets: frozenset[str] = frozenset({"nonnegative"})
    soundness: Soundness = "equivalent"
    source: str = "Ahmadi & Majumdar 2019"

    def predict(self, shape: Shape, part: Part, constraint: Constraint) -> Shape | None:
        order, pairs = sum(part.sizes), _pairs(part)
        rows = Part(kind="nonnegative", sizes=(order,), entries=2 * part.entries + pairs, origin=part.origin)
        return shape.replaced(part, [rows])

    def apply(self, constraint: Constraint, taken: frozenset[str]) -> Applied:
        entries = _entries(constraint, MAX_PAIRS)
        at, unknown = entries.incidence, np.flatnonzero(entries.sign == 0.0)
        known = sp.diags_array(entries.sign) @ entries.pairs
        rows = entries.diagonal - at @ known
        constant = entries.diagonal_constant - at @ (entries.sign * entries.pairs_constant)
        total = entries.expression(rows, constant)
        variables: tuple[Variable, ...] = ()
        constraints: list[Constraint] = []
        if len(unknown):
            size = Variable(name=free_name("size", taken), size=len(unknown))
            variables = (size,)
            total = total - sp.csr_array(at[:, unknown]) @ Expression.of(size)
            value = entries.expression(sp.csr_array(entries.pairs[unknown]), entries.pairs_constant[unknown])
            constraints = [
                Constraint(function=Expression.of(size) + sign * value, set=Nonnegative()) for sign in (1.0, -1.0)
            ]
        constraints.insert(0, Constraint(function=entries.scale * total, set=Nonnegative()))

        def dual(duals: Sequence[Array]) -> Array:
            u = entries.scale * duals[0]
            off = -entries.sign * (at.T @ u)
            if len(unknown):
                off[unknown] = duals[1] - duals[2]
            return entries.matrix(u, 0.5 * off)

        return Applied(constraints=tuple(constraints), variables=variables, dual=dual)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledDominance:
    """Bridge: P = sum of [p, P_ij; P_ij, q] over its products, each one rotated cone p q >= P_ij^2."""

    name: str = "scaled dominance as cones"
    sources: frozenset[str] = frozenset({"sdd"})
    targets: frozenset[str] = frozenset({"rsoc", "nonnegative"})
    soundness: Soundness = "equivalent"
    source: str = "Boman et al. 2005; Ahmadi & Majumdar 2019"

    def predict(self, shape: Shape, part: Part, constraint: Constraint) -> Shape | None:
        order, pairs = sum(part.sizes), _pairs(part)
        rows = Part(kind="nonnegative", sizes=(order,), entries=part.entries + 2 * pairs, origin=part.origin)
        cones = Part(kind="rsoc", sizes=(3,) * pairs, entries=part.entries + 2 * pairs, origin=part.origin)
        return shape.replaced(part, [rows, cones], variables=2 * pairs)

    def apply(self, constraint: Constraint, taken: frozenset[str]) -> Applied:
        entries = _entries(constraint, MAX_CONES)
        pairs = entries.pairs.shape[0]
        share = Variable(name=free_name("share", taken), size=2 * pairs)
        n = len(entries.d)
        ends = sp.csr_array((np.ones(2 * pairs), (np.concatenate([entries.row, entries.col]), np.arange(2 * pairs))),
                            shape=(n, 2 * pairs))  # fmt: skip
        rows = entries.expression(entries.diagonal, entries.diagonal_constant) - ends @ Expression.of(share)
        constraints = [Constraint(function=entries.scale * rows, set=Nonnegative())]
        if pairs:
            value = np.sqrt(2.0) * entries.expression(entries.pairs, entries.pairs_constant)
            size = np.sqrt(entries.scale[entries.row] * entries.scale[entries.col])
            unit = np.concatenate([entries.scale[entries.row], entries.scale[entries.col]])
            parts = (unit * Expression.of(share), size * value)
            cone = _interleaved(*parts)
            constraints.append(Constraint(function=cone, set=RotatedSecondOrder(block=3)))

        def dual(duals: Sequence[Array]) -> Array:
            off = size * np.sqrt(2.0) * duals[1].reshape(-1, 3)[:, 2] if pairs else np.zeros(0)
            return entries.matrix(entries.scale * duals[0], 0.5 * off)

        return Applied(constraints=tuple(constraints), variables=(share,), dual=dual)


def _interleaved(shares: Expression, values: Expression) -> Expression:
    """(p_1, q_1, v_1, p_2, q_2, v_2, ..) from (p, q), one after the other, and v."""
    k = values.size
    place = np.concatenate([3 * np.arange(k), 3 * np.arange(k) + 1])
    spread = sp.csr_array((np.ones(2 * k), (place, np.arange(2 * k))), shape=(3 * k, 2 * k))
    last = sp.csr_array((np.ones(k), (3 * np.arange(k) + 2, np.arange(k))), shape=(3 * k, k))
    cones: Expression = spread @ shares + last @ values
    return cones


def _pairs(part: Part) -> int:
    """At most how many products of different coordinates the form has."""
    order = sum(part.sizes)
    return min(part.entries, order * (order - 1) // 2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Entries:
    """A form in scaled coordinates, entry by entry: matrices over all its variables, one after the other.

    diagonal: (n, variables), pairs: (k, variables), of entries (row, col), row > col, with the constants beside them.
    sign: 1 or -1 where no values of the variables can change it, else 0. scale: by which the rows are multiplied.
    """

    variables: tuple[Variable, ...]
    d: Array
    scale: Array
    row: Array
    col: Array
    diagonal: Any
    diagonal_constant: Array
    pairs: Any
    pairs_constant: Array
    sign: Array

    @property
    def incidence(self) -> Any:
        """(n, k): which pairs a row has."""
        k = np.arange(len(self.row))
        at = (np.concatenate([self.row, self.col]), np.concatenate([k, k]))
        return sp.csr_array((np.ones(2 * len(k)), at), shape=(len(self.d), len(k)))

    def expression(self, matrix: Any, constant: Array) -> Expression:
        columns, start, coefficients = sp.csc_array(matrix), 0, {}
        for v in self.variables:
            part = sp.csr_array(columns[:, start : start + v.size])
            if part.nnz:
                coefficients[v] = part
            start += v.size
        return Expression(size=len(constant), coefficients=coefficients, constant=np.asarray(constant))

    def matrix(self, diagonal: Array, off: Array) -> Array:
        """The symmetric matrix in the form's own coordinates."""
        dense = np.diag(diagonal)
        dense[self.row, self.col] = dense[self.col, self.row] = off
        return np.asarray(self.d[:, None] * dense * self.d)


def _entries(constraint: Constraint, limit: int) -> _Entries:
    """Raises LipmodelError where the form has more than `limit` products."""
    form = constraint.function
    assert isinstance(form, QuadraticForm)
    variables, start, n = all_variables(form.terms), {}, 0
    for v in variables:
        start[v] = n
        n += v.size
    block = psd_block(form, start)
    scaling, typical = dominance_scaling(form)
    d = np.concatenate([scaling[s] for s in form.signals])
    value = block.value * d[block.row] * d[block.col]
    on = block.row == block.col
    key = block.row * block.order + block.col
    unique, index = np.unique(key[~on], return_inverse=True)
    if len(unique) > limit:
        raise LipmodelError(
            f"the form has {len(unique):,} products of different coordinates, and the limit of this cone is {limit:,}: "
            "use cone=psd, or a closed-form formulation such as product"
        )
    free = np.array([not v.nonnegative for v in variables for _ in range(v.size)] + [False])
    lowest, highest = np.zeros(len(unique)), np.zeros(len(unique))
    off_var, off_value = block.var[~on], value[~on]
    wild = free[off_var]
    np.minimum.at(lowest, index, np.where(wild, -np.inf, off_value))
    np.maximum.at(highest, index, np.where(wild, np.inf, off_value))
    diagonal, diagonal_constant = _matrix(block.row[on], block.var[on], value[on], (block.order, n))
    pairs, pairs_constant = _matrix(index, off_var, off_value, (len(unique), n))
    given = np.concatenate([typical[s] for s in form.signals]) * d * d
    return _Entries(
        variables=variables,
        d=d,
        scale=1.0 / np.where(np.isfinite(given) & (given > 0.0), given, 1.0),
        row=unique // block.order,
        col=unique % block.order,
        diagonal=diagonal,
        diagonal_constant=diagonal_constant,
        pairs=pairs,
        pairs_constant=pairs_constant,
        sign=np.where(lowest >= 0.0, 1.0, np.where(highest <= 0.0, -1.0, 0.0)),
    )


def _matrix(row: Array, var: Array, value: Array, shape: tuple[int, int]) -> tuple[Any, Array]:
    constant = var < 0
    c = np.bincount(row[constant], weights=value[constant], minlength=shape[0])
    rest = ~constant
    return sp.csr_array((value[rest], (row[rest], var[rest])), shape=shape), c


# ---------------------------------------------------------------------------------------------------------------------
# The scaling of a closed form


def dominance_scaling(form: QuadraticForm) -> tuple[dict[Signal, Array], dict[Signal, Array]]:
    """Positive d, by signal, with which the form can be diagonally dominant, and its diagonal at that closed form.

    Read off the rules of the terms; signals that no rule is about keep ones.
    """
    terms = [t for t in form.terms if isinstance(t, Factored) and t.rule is not None]
    layers = [_Layer(term.rule.subject) for term in terms if term.rule is not None and term.rule.kind == "slope"]
    balls = {s: t for t in terms if _kind(t).startswith("ball") for s in t.signals}
    ends = [t for t in terms if _kind(t).startswith("output")]
    d = {s: np.ones(s.size) for s in form.signals}
    typical = {s: np.ones(s.size) for s in form.signals}
    for _ in range(ROUNDS):
        pulls = _sweep(d, typical, layers, ends)
        change = 0.0
        for signal, term in balls.items():
            pull = pulls[signal]
            top = float(np.linalg.norm(pull))
            if top <= 0.0:
                continue
            if _is_one_weight(term):
                wanted = _filled(pull / top, 1.0)
                change = max(change, float(np.max(np.abs(wanted - d[signal]))))
                d[signal] = wanted
                typical[signal] = np.full(signal.size, np.max(pull / wanted))
            else:
                typical[signal] = _filled(pull / d[signal], 1.0)
        if change <= 1e-9:
            break
    return d, typical


def _kind(term: Term) -> str:
    return "" if term.rule is None else term.rule.kind


class _Layer:
    """The slope restriction of one layer: |W| of what it reads, and the constants of its rows."""

    def __init__(self, activation: Any) -> None:
        self.signal: Signal = activation.signal
        self.reads = _absolute(activation.pre)
        self.sum = np.abs(activation.alpha + activation.beta)
        self.product = np.abs(activation.alpha * activation.beta)
        self.gain = 0.5 * (self.sum + np.sqrt(self.sum**2 + 4.0 * self.product))


def _absolute(form: LinearForm) -> dict[Signal, Any]:
    return {s: abs(m.enclosure().center) for s, m in form.blocks.items()}


def _sweep(
    d: dict[Signal, Array], typical: dict[Signal, Array], layers: Sequence[_Layer], ends: Sequence[Factored]
) -> Mapping[Signal, Array]:
    """Layers get their d from those before, and their multipliers from those behind; what the ends have to carry."""
    sums = []
    for layer in layers:
        u = np.asarray(sum(m @ d[s] for s, m in layer.reads.items()) + np.zeros(layer.signal.size))
        d[layer.signal] = _filled(layer.gain * u, LITTLE)
        sums.append(u)
    pulls = {s: np.zeros(s.size) for s in d}
    for term in ends:
        left, right = _absolute(term.left), _absolute(term.right)
        weight = np.abs(term.weight.constant)
        for one, other in ((left, right), (right, left)):
            far = weight * sum(m @ d[s] for s, m in other.items())
            for s, m in one.items():
                pulls[s] += 0.5 * (m.T @ far)
    for layer, u in zip(reversed(layers), reversed(sums), strict=True):
        own = d[layer.signal]
        t = pulls[layer.signal] / (2.0 * own - layer.sum * u)
        typical[layer.signal] = _filled(2.0 * t, 1.0)
        for s, m in layer.reads.items():
            pulls[s] += m.T @ (t * (layer.sum * own + 2.0 * layer.product * u))
    return pulls


def _filled(values: Array, share: float) -> Array:
    """The values, and a share of the smallest positive one in the place of zeros; ones where there is none."""
    positive = values[values > 0.0]
    return np.where(values > 0.0, values, share * positive.min() if positive.size else 1.0)


def _is_one_weight(term: Factored) -> bool:
    """Whether one variable weighs all entries."""
    return all(v.size == 1 for v in term.weight.coefficients)
