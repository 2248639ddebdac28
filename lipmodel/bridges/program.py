"""The conic program in geometric form: what general solvers and solver files receive.

    minimise  c'y   subject to   C_k + sum_j y_j A_kj  positive semidefinite,   G y + h >= 0,   E y + f = 0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import LipmodelError
from lipmodel.model.forms import QuadraticForm, Signal
from lipmodel.model.model import Model, Nonnegative, values_of
from lipmodel.model.variables import Expression, Variable

Array = np.ndarray[Any, Any]
MAX_COEFFICIENTS = 60_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PsdBlock:
    """One matrix inequality: lower-triangle entries (row >= col) of the coefficient of variable `var` (-1: constant)."""

    order: int
    row: Array
    col: Array
    var: Array
    value: Array
    offsets: Mapping[Signal, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConeProgram:
    """cost: (n,); psd: matrix inequalities; G y + h >= 0 and E y + f = 0 with CSR matrices (rows, n)."""

    model: Model
    cost: Array
    offset: float
    psd: tuple[PsdBlock, ...]
    ineq: Any
    ineq_rhs: Array
    eq: Any
    eq_rhs: Array

    @property
    def size(self) -> int:
        return len(self.cost)

    def values(self, y: Array) -> Mapping[Variable, Array]:
        """Split a solution vector into the model's variables."""
        return values_of(self.model, y)


def cone_program(model: Model) -> ConeProgram:
    """Expand a model into coefficients. Raises LipmodelError where the predicted size is out of reach."""
    model.check()
    predicted = model.sizes().coefficients
    if predicted > MAX_COEFFICIENTS:
        raise LipmodelError(
            f"the model {model.name!r} would expand into about {predicted:,} coefficients, more than the limit of "
            f"{MAX_COEFFICIENTS:,}: use the native backend or a closed-form formulation such as product"
        )
    start: dict[Variable, int] = {}
    n = 0
    for v in model.variables:
        start[v] = n
        n += v.size
    psd = tuple(_psd_block(f, start) for f in model.matrix_constraints)
    assert model.objective is not None
    cost, offset = _rows([model.objective], start, n)
    ineqs = [Expression.of(v) for v in model.variables if v.nonnegative]
    ineqs += [c.function for c in model.constraints if isinstance(c.function, Expression) and isinstance(c.set, Nonnegative)]
    eqs = [c.function for c in model.constraints if isinstance(c.function, Expression) and not isinstance(c.set, Nonnegative)]
    g, h = _rows(ineqs, start, n)
    e, f = _rows(eqs, start, n)
    return ConeProgram(
        model=model,
        cost=np.asarray(cost.todense()).ravel(),
        offset=float(offset[0]),
        psd=psd,
        ineq=g,
        ineq_rhs=h,
        eq=e,
        eq_rhs=f,
    )


def _rows(expressions: list[Expression], start: Mapping[Variable, int], n: int) -> tuple[Any, Array]:
    rows, cols, data, constants = [], [], [], []
    at = 0
    for expression in expressions:
        for v, k in expression.coefficients.items():
            coo = sp.coo_array(k)
            rows.append(coo.coords[0] + at)
            cols.append(coo.coords[1] + start[v])
            data.append(coo.data)
        constants.append(expression.constant)
        at += expression.size
    if not rows:
        return sp.csr_array((at, n)), np.concatenate(constants) if constants else np.zeros(0)
    matrix = sp.csr_array((np.concatenate(data), (np.concatenate(rows), np.concatenate(cols))), shape=(at, n))
    return matrix, np.concatenate(constants)


def _psd_block(form: QuadraticForm, start: Mapping[Variable, int]) -> PsdBlock:
    offsets: dict[Signal, int] = {}
    order = 0
    for s in form.signals:
        offsets[s] = order
        order += s.size
    rows, cols, variables, values = [], [], [], []
    for term in form.terms:
        for t in term.triplets():
            r, c = offsets[t.block[0]] + t.row, offsets[t.block[1]] + t.col
            rows.append(np.maximum(r, c))
            cols.append(np.minimum(r, c))
            variables.append(np.full(len(r), -1) if t.variable is None else t.index + start[t.variable])
            values.append(t.value)
    if not rows:
        empty = np.zeros(0, dtype=np.int64)
        return PsdBlock(order=order, row=empty, col=empty, var=empty, value=np.zeros(0), offsets=offsets)
    row, col, var, value = (np.concatenate(x) for x in (rows, cols, variables, values))
    key = (var.astype(np.int64) + 1) * (order * order) + row.astype(np.int64) * order + col
    unique, inverse = np.unique(key, return_inverse=True)
    summed = np.bincount(inverse, weights=value, minlength=len(unique))
    kept = summed != 0.0
    unique, summed = unique[kept], summed[kept]
    var, rest = unique // (order * order) - 1, unique % (order * order)
    return PsdBlock(order=order, row=rest // order, col=rest % order, var=var, value=summed, offsets=offsets)
