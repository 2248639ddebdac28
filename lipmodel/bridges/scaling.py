"""Exact reductions that every solver profits from: unit layer norms, input QR, output Gram.

Each takes a model and gives an equivalent one; `restore` carries a point back. Nothing here is trusted: bounds are
proved from the multipliers on the original network. Without scaling, first-order and interior-point solvers alike have
declared the (always feasible) LipSDP inequality infeasible on ordinary trained networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg as sla
import scipy.sparse as sp

from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
from lipmodel.model.model import Constraint, Model
from lipmodel.model.terms import Factored, Term, rescale_expression
from lipmodel.model.variables import Expression, Variable
from lipmodel.network.linear import Dense, Diagonal, Sparse

Array = np.ndarray[Any, Any]
MAX_QR = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An equivalent, well-scaled model over the same variables (by name), and the way back."""

    model: Model
    restore: Callable[[Mapping[Variable, Array]], dict[Variable, Array]]


def prepare(model: Model) -> Prepared:
    """All reductions of this file, in order: input QR, output Gram, signal scaling, variable scaling."""
    changed = _with_forms(model, [_output_gram(f) for f in model.matrix_constraints])
    for signal in list(changed.signals):
        changed = _input_qr(changed, signal)
    changed = _scaled_signals(changed)
    return _scaled_variables(model, changed)


def _with_forms(model: Model, forms: list[QuadraticForm]) -> Model:
    replacements = iter(forms)
    constraints = [
        replace(c, function=next(replacements)) if isinstance(c.function, QuadraticForm) else c
        for c in model.constraints
    ]
    signals = list(dict.fromkeys(s for f in forms for s in f.signals))
    return replace(model, constraints=constraints, signals=signals)


def _dense(m: Any) -> Array:
    center = m.enclosure().center
    return np.asarray(center.toarray() if sp.issparse(center) else center)


def _output_gram(form: QuadraticForm) -> QuadraticForm:
    """Replace -c |C z|^2 by -c |R z|^2, R the triangular factor of C, where C has more rows than columns."""
    terms: list[Term] = []
    for term in form.terms:
        if isinstance(term, Factored) and term.left is term.right and not term.weight.coefficients and term.size > 1:
            columns = sum(s.size for s in term.left.blocks)
            weight = term.weight.constant
            if columns < term.size and np.all(weight == weight[0]) and term.size * columns <= MAX_QR:
                stacked = np.hstack([_dense(m) for m in term.left.blocks.values()])
                r = sla.qr(stacked, mode="r", check_finite=False)[0][:columns]
                term = replace(term, weight=Expression.number(weight[0], columns), **_both(_split_columns(r, term.left)))
        terms.append(term)
    return QuadraticForm(terms=tuple(terms))


def _both(form: LinearForm) -> dict[str, LinearForm]:
    return {"left": form, "right": form}


def _split_columns(matrix: Array, like: LinearForm) -> LinearForm:
    blocks, start = {}, 0
    for s in like.blocks:
        blocks[s] = Dense(weights=np.ascontiguousarray(matrix[:, start : start + s.size]))
        start += s.size
    return LinearForm(size=matrix.shape[0], blocks=blocks, role=like.role)


def _input_qr(model: Model, signal: Signal) -> Model:
    """Turn a wide signal that is measured by one scalar ball into the few coordinates that anything else reads."""
    readers: list[Array] = []
    seen: set[int] = set()
    rows = 0
    for form in model.matrix_constraints:
        for term in form.terms:
            if not any(signal in pair for pair in term.pattern()):
                continue
            if not isinstance(term, Factored):
                return model
            if _is_scalar_ball(term, signal):
                continue
            for side in (term.left, term.right):
                block = side.blocks.get(signal)
                if block is None or id(block) in seen:
                    continue
                if getattr(block, "is_identity", False) or rows + block.shape[0] >= 2 * signal.size:
                    return model
                seen.add(id(block))
                if block.entries > MAX_QR:
                    return model
                readers.append(_dense(block))
                rows += block.shape[0]
    if not readers:
        return model
    stacked = np.vstack(readers)
    # left and right of one activation read multiples of the same rows: the range is found by a pivoted QR
    q, r, _ = sla.qr(stacked.T, mode="economic", pivoting=True, check_finite=False)
    diagonal = np.abs(np.diag(r))
    rank = int(np.count_nonzero(diagonal > 1e-13 * max(diagonal.max(initial=0.0), 1e-300)))
    if rank == 0 or rank >= signal.size:
        return model
    basis = np.ascontiguousarray(q[:, :rank])
    reduced = Signal(name=signal.name, size=rank)
    whole, new = Dense(weights=basis), LinearForm.of(reduced)
    forms = []
    for form in model.matrix_constraints:
        terms: list[Term] = []
        for term in form.terms:
            if isinstance(term, Factored) and _is_scalar_ball(term, signal):
                weight = term.weight[:1].spread(rank)
                ball = LinearForm.of(reduced, role=term.left.role)
                terms.append(replace(term, weight=weight, **_both(ball)))
            else:
                terms.append(_multiplied(term, signal, whole, new))
        forms.append(QuadraticForm(terms=tuple(terms)))
    return _with_forms(model, forms)


def _multiplied(term: Term, signal: Signal, basis: Dense, new: LinearForm) -> Term:
    if not isinstance(term, Factored):
        return term

    def one(form: LinearForm) -> LinearForm:
        if signal not in form.blocks:
            return form
        fresh = next(iter(new.blocks))
        blocks = {s: m for s, m in form.blocks.items() if s is not signal}
        blocks[fresh] = Dense(weights=form.blocks[signal].matvec(basis.weights))
        return LinearForm(size=form.size, blocks=blocks, role=form.role)

    left = one(term.left)
    return replace(term, left=left, right=left if term.right is term.left else one(term.right))


def _is_scalar_ball(term: Factored, signal: Signal) -> bool:
    """weight * |signal|^2 with one weight for all entries."""
    for side in (term.left, term.right):
        if list(side.blocks) != [signal] or not getattr(side.blocks[signal], "is_identity", False):
            return False
    same = bool(np.all(term.weight.constant == term.weight.constant[0]))
    for k in term.weight.coefficients.values():
        first = k[[0]]
        same = same and k.nnz == first.nnz * k.shape[0] and abs(k - sp.csr_array(np.ones((k.shape[0], 1))) @ first).max() == 0
    return same


def _power_of_two(value: float) -> float:
    if not np.isfinite(value) or value <= 0.0:
        return 1.0
    return float(2.0 ** np.clip(np.round(np.log2(value)), -500, 500))


def _scaled_signals(model: Model) -> Model:
    """Scale every signal by the gain its slope restrictions give it, and the constants of the form to order one."""
    from lipmodel.elimination import spectral_estimate

    gains: dict[Signal, float] = {}
    for form in model.matrix_constraints:
        for term in form.terms:
            if isinstance(term, Factored) and term.rule is not None and term.rule.kind == "slope":
                activation = term.rule.subject
                own = activation.signal
                reach = sum(
                    spectral_estimate(m) * gains.get(s, 1.0) for s, m in _pre_of(term, own).items()
                )
                gains[own] = _power_of_two(reach)
    scaled = _substituted(model, {s: g for s, g in gains.items() if g != 1.0})
    level = 0.0
    for form in scaled.matrix_constraints:
        for term in form.terms:
            if isinstance(term, Factored) and np.any(term.weight.constant):
                left, right = _row_sizes(term.left), _row_sizes(term.right)
                spread = np.sqrt(term.size) if term.size > 1 and term.left is not term.right else 1.0
                level = max(level, float(np.max(np.abs(term.weight.constant) * left * right)) / spread)
    if level <= 0.0:
        return scaled
    factor = _power_of_two(1.0 / np.sqrt(level))
    return _substituted(scaled, {s: factor for s in scaled.signals})


def _pre_of(term: Factored, own: Signal) -> dict[Signal, Any]:
    """The blocks that the larger of the two slope lines reads (other than the activation's own signal)."""
    sides = [{s: m for s, m in side.blocks.items() if s is not own} for side in (term.left, term.right)]
    sizes = [sum(float(np.abs(_row_sizes(LinearForm(size=term.size, blocks=b))).max(initial=0.0)) for b in [side]) for side in sides]
    return sides[0] if sizes[0] >= sizes[1] else sides[1]


def _row_sizes(form: LinearForm) -> Array:
    total = np.zeros(form.size)
    for m in form.blocks.values():
        center = m.enclosure().center
        squares = center.multiply(center).sum(axis=1) if sp.issparse(center) else np.sum(center * center, axis=1)
        total += np.asarray(squares).ravel()
    return np.sqrt(total)


def _substituted(model: Model, factors: Mapping[Signal, float]) -> Model:
    """The model with every signal s replaced by factors[s] * s."""
    if not factors:
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


def _times(m: Any, c: float) -> Any:
    center = m.enclosure().center
    if sp.issparse(center):
        return Sparse(weights=sp.csr_array(center * c))
    return Dense(weights=center * c) if not isinstance(m, Diagonal) else Diagonal(values=m.values * c)


def _scaled_variables(original: Model, model: Model) -> Prepared:
    """y = f y~ with powers of two f such that every variable's largest coefficient is of order one."""
    largest = {v: np.zeros(v.size) for v in model.variables}
    for form in model.matrix_constraints:
        for term in form.terms:
            if isinstance(term, Factored):
                size = _row_sizes(term.left) * _row_sizes(term.right)
                for v, k in term.weight.coefficients.items():
                    weighted = abs(sp.csr_array(sp.diags_array(size) @ k))
                    top = np.asarray(weighted.max(axis=0).todense()).ravel()
                    largest[v] = np.maximum(largest[v], top)
            else:
                for t in term.triplets():
                    if t.variable is not None:
                        np.maximum.at(largest[t.variable], t.index, np.abs(t.value))
    factors = {v: np.array([1.0 / _power_of_two(x) if x > 0 else 1.0 for x in top]) for v, top in largest.items()}
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

    def restore(values: Mapping[Variable, Array]) -> dict[Variable, Array]:
        return {v: factors[v] * np.asarray(values[v]) for v in original.variables}

    return Prepared(model=scaled, restore=restore)
