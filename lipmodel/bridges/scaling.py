"""Exact reductions that every solver profits from: balanced layers, input QR, output Gram.

Each takes a model and gives an equivalent one over the same variables; factors carry a point back. Nothing here is
trusted: bounds are proved from the multipliers on the original network. Without scaling, first-order and interior-point
solvers alike have declared the (always feasible) LipSDP inequality infeasible on ordinary trained networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.linalg as sla
import scipy.sparse as sp

from lipmodel.bridges.balance import balanced
from lipmodel.elimination import spectral_estimate
from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
from lipmodel.model.model import Constraint, Model
from lipmodel.model.sets import PSD, SparsePSD
from lipmodel.model.terms import Factored, Term, rescale_expression
from lipmodel.model.variables import Expression, Variable
from lipmodel.network.linear import Dense, Diagonal, LinearMap, Selection, Sparse, compose

Array = np.ndarray[Any, Any]
MAX_QR = 4_000_000
"""Entries above which a matrix is not factorised."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An equivalent, well-scaled model over the same variables, and the way back: y = factors * (its y).

    signals: by signal of the given model, its signal here and the matrix or diagonal S with signal = S @ signal here.
    """

    model: Model
    factors: Mapping[Variable, Array]
    signals: Mapping[Signal, tuple[Signal, Array]]


def prepare(model: Model) -> Prepared:
    """All reductions of this file, in order: output Gram, input QR, signal scaling, variable scaling.

    Forms that are to be (scaled) diagonally dominant keep their coordinates. Numbers that overflow scale nothing.
    """
    with np.errstate(all="ignore"):
        return _prepared(model)


def _prepared(model: Model) -> Prepared:
    kept = [c for c in model.constraints if not _is_psd(c)]
    changed = replace(model, constraints=[c for c in model.constraints if _is_psd(c)])
    changed = _with_forms(changed, [_output_gram(f) for f in changed.matrix_constraints])
    turned: dict[Signal, tuple[Signal, Array]] = {}
    reading: dict[Signal, list[Term]] = {}
    for term in (t for form in changed.matrix_constraints for t in form.terms):
        for s in term.signals:
            reading.setdefault(s, []).append(term)
    for signal, terms in reading.items():
        changed, basis = _input_qr(changed, signal, terms)
        if basis is not None:
            turned[signal] = basis
    changed, gains = _scaled_signals(changed, {s: basis for s, (_, basis) in turned.items()})
    ones = {s: (s, np.ones(s.size)) for form in model.matrix_constraints for s in form.signals}
    signals = {s: (new, basis * gains.get(new, 1.0)) for s, (new, basis) in {**ones, **turned}.items()}
    forms, others = iter(changed.constraints), iter(kept)
    constraints = [next(forms) if _is_psd(c) else next(others) for c in model.constraints]
    used = dict.fromkeys(s for c in constraints if isinstance(c.function, QuadraticForm) for s in c.function.signals)
    whole = replace(changed, constraints=constraints, signals=list(used))
    return replace(scaled_variables(whole), signals=signals)


def _is_psd(constraint: Constraint) -> bool:
    return isinstance(constraint.set, PSD | SparsePSD)


def _with_forms(
    model: Model, forms: list[QuadraticForm], renamed: Mapping[Signal, Signal] = MappingProxyType({})
) -> Model:
    """The model with other forms in the place of its own, in signals that may be `renamed`."""
    constraints = []
    for c, form in zip(model.constraints, forms, strict=True):
        kind = c.set
        if renamed and isinstance(kind, SparsePSD) and not isinstance(kind.cliques, str):
            cliques = tuple(tuple(renamed.get(s, s) for s in clique) for clique in kind.cliques)
            kind = replace(kind, cliques=cliques)
        constraints.append(replace(c, function=form, set=kind))
    signals = list(dict.fromkeys(s for f in forms for s in f.signals))
    return replace(model, constraints=constraints, signals=signals)


def _dense(m: LinearMap) -> Array:
    return np.asarray(m.enclosure().dense().center)


def _output_gram(form: QuadraticForm) -> QuadraticForm:
    """Replace -c |C z|^2 by -c |R z|^2, R the triangular factor of C, where C has more rows than columns."""
    terms: list[Term] = []
    for term in form.terms:
        if isinstance(term, Factored) and term.left is term.right and not term.weight.coefficients and term.size > 1:
            columns = sum(s.size for s in term.left.blocks)
            weight = term.weight.constant
            if 0 < columns < term.size and np.all(weight == weight[0]) and term.size * columns <= MAX_QR:
                stacked = np.hstack([_dense(m) for m in term.left.blocks.values()])
                r = sla.qr(stacked, mode="r", check_finite=False)[0][:columns]
                gram = _split_columns(r, term.left)
                term = replace(term, weight=Expression.number(weight[0], columns), left=gram, right=gram)
        terms.append(term)
    return QuadraticForm(terms=tuple(terms))


def _split_columns(matrix: Array, like: LinearForm) -> LinearForm:
    blocks, start = {}, 0
    for s in like.blocks:
        blocks[s] = Dense(weights=np.ascontiguousarray(matrix[:, start : start + s.size]))
        start += s.size
    return LinearForm(size=matrix.shape[0], blocks=blocks, role=like.role)


def _input_qr(model: Model, signal: Signal, read_by: Sequence[Term]) -> tuple[Model, tuple[Signal, Array] | None]:
    """Turn a wide signal that is measured by one scalar ball into the few coordinates that anything else reads.

    read_by: the terms with the signal, in whatever other coordinates. Also gives the new signal and the basis, shape
    (size, coordinates), where there are fewer.
    """
    blocks = _readers(read_by, signal)
    if not blocks:
        return model, None
    rows = np.vstack([_dense(m) for m in blocks])
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    # rows of unit length: what a layer reads must not vanish beside the larger weights of another
    rows = rows / np.where(size > 0.0, size, 1.0)
    # left and right of one activation read multiples of the same rows: the range is found by a pivoted QR
    q, r, _ = sla.qr(rows.T, mode="economic", pivoting=True, check_finite=False)
    diagonal = np.abs(np.diag(r))
    rank = int(np.count_nonzero(diagonal > 1e-13 * diagonal.max(initial=0.0)))
    if rank == 0 or rank >= signal.size:
        return model, None
    basis = np.ascontiguousarray(q[:, :rank])
    new = LinearForm.of(Signal(name=signal.name, size=rank))
    forms = []
    for form in model.matrix_constraints:
        terms: list[Term] = []
        for term in form.terms:
            if isinstance(term, Factored) and _is_scalar_ball(term, signal):
                ball = replace(new, role=term.left.role)
                term = replace(term, weight=term.weight[:1].spread(rank), left=ball, right=ball)
            elif isinstance(term, Factored):
                left = _turned(term.left, signal, basis, new.signals[0])
                right = left if term.right is term.left else _turned(term.right, signal, basis, new.signals[0])
                term = replace(term, left=left, right=right)
            terms.append(term)
        forms.append(QuadraticForm(terms=tuple(terms)))
    return _with_forms(model, forms, {signal: new.signals[0]}), (new.signals[0], basis)


def _readers(terms: Sequence[Term], signal: Signal) -> list[LinearMap]:
    """All matrices that act on the signal besides its ball; none where the signal has to stay as it is."""
    found: dict[int, LinearMap] = {}
    for term in terms:
        if not isinstance(term, Factored):
            return []
        if _is_scalar_ball(term, signal):
            # the coordinates that nothing reads are left with the ball alone, which must be convex by itself
            if not _is_nonnegative(term.weight):
                return []
            continue
        for side in (term.left, term.right):
            if signal in side.blocks:
                found[id(side.blocks[signal])] = side.blocks[signal]
    maps = list(found.values())
    if any(_is_identity(m) or m.entries > MAX_QR for m in maps) or sum(m.shape[0] for m in maps) >= 2 * signal.size:
        return []
    return maps


def _turned(form: LinearForm, signal: Signal, basis: Array, new: Signal) -> LinearForm:
    """The form with `signal` = basis @ new."""
    if signal not in form.blocks:
        return form
    blocks = {s: m for s, m in form.blocks.items() if s is not signal}
    blocks[new] = Dense(weights=form.blocks[signal].matvec(basis))
    return LinearForm(size=form.size, blocks=blocks, role=form.role)


def _is_nonnegative(weight: Expression) -> bool:
    """Whether the weight cannot be negative, by the signs of its coefficients."""
    signs = all(v.nonnegative and bool(np.all(k.data >= 0.0)) for v, k in weight.coefficients.items())
    return signs and bool(np.all(weight.constant >= 0.0))


def _is_identity(m: LinearMap) -> bool:
    return isinstance(m, Selection) and m.is_identity


def _is_scalar_ball(term: Factored, signal: Signal) -> bool:
    """weight * |signal|^2 with one weight for all entries."""
    for side in (term.left, term.right):
        if list(side.blocks) != [signal] or not _is_identity(side.blocks[signal]):
            return False
    same = bool(np.all(term.weight.constant == term.weight.constant[0]))
    for k in term.weight.coefficients.values():
        repeated = sp.csr_array(np.ones((k.shape[0], 1))) @ k[[0]]
        same = same and (k - repeated).count_nonzero() == 0
    return same


def _powers_of_two(values: Any) -> Array:
    """The powers of two next to positive numbers; one for all others."""
    x = np.asarray(values, dtype=np.float64)
    fine = np.isfinite(x) & (x > 0.0)
    return np.exp2(np.clip(np.round(np.log2(np.where(fine, x, 1.0))), -500, 500))


def _scaled_signals(model: Model, bases: Mapping[Signal, Array]) -> tuple[Model, dict[Signal, Array]]:
    """Scale every signal so that the multipliers of a closed form are of order one, where that is known.

    Elsewhere by the gains that its slope restrictions give it, and the form's constants to order one. bases: of the
    inputs that were turned. Also gives by what every signal was divided.
    """
    gains: dict[Signal, Array] = {}
    for form in model.matrix_constraints:
        for term in form.terms:
            if isinstance(term, Factored) and term.rule is not None and term.rule.kind == "slope":
                own = getattr(term.rule.subject, "signal", None)  # a term stated by hand may name no activation
                if own is not None:
                    gains[own] = _gain(term, own, gains)
    if len(model.matrix_constraints) == 1:
        found = balanced(model.matrix_constraints[0], gains, bases)
        if found is not None:
            units = {s: _powers_of_two(unit) for s, unit in found.items()}
            return _substituted(model, units), units
    scaled = _substituted(model, gains)
    level = 0.0
    for form in scaled.matrix_constraints:
        for term in form.terms:
            if isinstance(term, Factored) and np.any(term.weight.constant):
                left, right = _row_sizes(term.left), _row_sizes(term.right)
                spread = np.sqrt(term.size) if term.size > 1 and term.left is not term.right else 1.0
                level = max(level, float(np.max(np.abs(term.weight.constant) * left * right)) / spread)
    if level <= 0.0:
        return scaled, gains
    factor = _powers_of_two(1.0 / np.sqrt(level))
    scaled = _substituted(scaled, {s: np.full(s.size, factor) for s in scaled.signals})
    return scaled, {s: factor * gains.get(s, np.ones(s.size)) for s in scaled.signals}


def _gain(term: Factored, own: Signal, gains: Mapping[Signal, Array]) -> Array:
    """The size, per neuron, of an activation's signal where the signals before it have the sizes `gains`."""
    sides = [
        [compose(m, Diagonal(values=gains[s])) if s in gains else m for s, m in side.blocks.items() if s is not own]
        for side in (term.left, term.right)
    ]
    rows = np.maximum(*(_row_norms(side, term.size) for side in sides))
    top = float(rows.max(initial=0.0))
    rows = np.where(rows > 0.0, rows, top if top > 0.0 else 1.0)
    shape = Diagonal(values=1.0 / rows)
    return _powers_of_two(rows * max(sum(spectral_estimate(compose(shape, m)) for m in side) for side in sides))


def _row_sizes(form: LinearForm) -> Array:
    """The 2-norm of every row of the form's matrix, shape (size,)."""
    return _row_norms(form.blocks.values(), form.size)


def _row_norms(blocks: Iterable[LinearMap], size: int) -> Array:
    squares = np.zeros(size)
    for m in blocks:
        squares += np.asarray((abs(m.enclosure().center) ** 2).sum(axis=1)).ravel()
    return np.sqrt(squares)


def _substituted(model: Model, factors: Mapping[Signal, Array]) -> Model:
    """The model with every signal s replaced by factors[s] * s, entry by entry."""
    if all(np.all(factor == 1.0) for factor in factors.values()):
        return model

    def form(f: LinearForm) -> LinearForm:
        blocks = {s: _times(m, factors[s]) if s in factors else m for s, m in f.blocks.items()}
        return LinearForm(size=f.size, blocks=blocks, role=f.role)

    forms = []
    for quadratic in model.matrix_constraints:
        terms: list[Term] = []
        for term in quadratic.terms:
            if isinstance(term, Factored):
                left = form(term.left)
                term = replace(term, left=left, right=left if term.right is term.left else form(term.right))
            else:
                term = term.substitute({s: LinearForm.of(s) * c for s, c in factors.items()})
            terms.append(term)
        forms.append(QuadraticForm(terms=tuple(terms)))
    return _with_forms(model, forms)


def _times(m: LinearMap, c: Array) -> LinearMap:
    """m diag(c), expanded: everything after this reads coefficients."""
    center = m.enclosure().center
    if sp.issparse(center):
        return Sparse(weights=sp.csr_array(center @ sp.diags_array(c)))
    return Dense(weights=center * c)


def scaled_variables(model: Model) -> Prepared:
    """y = f y~ with powers of two f such that every variable's largest coefficient is of order one."""
    largest = {v: np.zeros(v.size) for v in model.variables}
    for c in model.constraints:
        if isinstance(c.function, QuadraticForm):
            for term in c.function.terms if _is_psd(c) else ():
                for v, top in _largest(term):
                    largest[v] = np.maximum(largest[v], top)
        else:
            for v, k in c.function.coefficients.items():
                largest[v] = np.maximum(largest[v], abs(sp.csr_array(k)).max(axis=0).toarray().ravel())
    factors = {v: 1.0 / _powers_of_two(top) for v, top in largest.items()}
    constraints: list[Constraint] = []
    for c in model.constraints:
        if isinstance(c.function, QuadraticForm):
            constraints.append(
                replace(c, function=QuadraticForm(terms=tuple(t.rescaled(factors) for t in c.function.terms)))
            )
        else:
            constraints.append(replace(c, function=rescale_expression(c.function, factors)))
    objective = None if model.objective is None else rescale_expression(model.objective, factors)
    scaled = replace(model, constraints=constraints, objective=objective)
    return Prepared(model=scaled, factors=factors, signals={})


def _largest(term: Term) -> Iterator[tuple[Variable, Array]]:
    """The largest modulus of the coefficients of every entry of the term's variables."""
    if isinstance(term, Factored):
        size = sp.diags_array(_row_sizes(term.left) * _row_sizes(term.right))
        for v, k in term.weight.coefficients.items():
            yield v, abs(sp.csr_array(size @ k)).max(axis=0).toarray().ravel()
        return
    for t in term.triplets():
        if t.variable is not None:
            top = np.zeros(t.variable.size)
            np.maximum.at(top, t.index, np.abs(t.value))
            yield t.variable, top
