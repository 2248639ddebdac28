"""The conic program in geometric form: what general solvers and solver files receive.

minimise  c'y   subject to   C_k + sum_j y_j A_kj  positive semidefinite,   G y + h >= 0,   E y + f = 0,
                             A_k y + b_k  in second-order cones

Its dual in standard form has the very same data, read by columns (`bridges/standard.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import LipmodelError
from lipmodel.model.forms import QuadraticForm, Signal
from lipmodel.model.model import Model, values_of
from lipmodel.model.sets import PSD, Nonnegative, RotatedSecondOrder, SecondOrder, SparsePSD, Zero
from lipmodel.model.variables import Expression, Variable

Array = np.ndarray[Any, Any]
MAX_COEFFICIENTS = 60_000_000
_CONIC = (PSD, SparsePSD, Nonnegative, Zero, SecondOrder, RotatedSecondOrder)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PsdBlock:
    """One matrix inequality: entries of the lower triangle, row >= col, of the coefficient of variable `var`.

    var -1 is the constant. offsets: where every signal starts.
    """

    order: int
    row: Array
    col: Array
    var: Array
    value: Array
    offsets: Mapping[Signal, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SocBlock:
    """matrix @ y + rhs in the cone {(t, w): t >= |w|_2} or, rotated, {(u, v, w): 2 u v >= |w|_2^2, u, v >= 0}.

    matrix: CSR, (rows, n); rhs: (rows,).
    """

    matrix: Any
    rhs: Array
    rotated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConeProgram:
    """cost: (n,); psd: matrix inequalities; G y + h >= 0 and E y + f = 0 with CSR matrices (rows, n).

    y begins with the entries of the model's variables in their order; what follows are auxiliary variables of bridges.
    """

    model: Model
    cost: Array
    offset: float
    psd: tuple[PsdBlock, ...]
    ineq: Any
    ineq_rhs: Array
    eq: Any
    eq_rhs: Array
    soc: tuple[SocBlock, ...] = ()

    @property
    def size(self) -> int:
        return len(self.cost)

    def values(self, y: Array) -> Mapping[Variable, Array]:
        """Split a solution vector into the model's variables."""
        return values_of(self.model, y)


def too_large(model: Model) -> str | None:
    """Why the model cannot be expanded into coefficients, or None."""
    predicted = model.sizes().coefficients
    if predicted <= MAX_COEFFICIENTS:
        return None
    return (
        f"it would expand into about {predicted:,} coefficients, more than the limit of {MAX_COEFFICIENTS:,}; "
        "use the native backend or a closed-form formulation such as product"
    )


def reducible(model: Model) -> bool:
    """Whether a model that is too large may be small enough after the exact reductions, which cost a little."""
    return max(model.sizes().psd, default=0) ** 2 <= MAX_COEFFICIENTS


def cone_program(model: Model) -> ConeProgram:
    """Expand a model whose sets are conic into coefficients; `plan.compile_model` is what makes them so.

    Raises UsageError without an objective, LipmodelError for other sets and where the predicted size is out of reach.
    """
    if model.objective is None:
        model.check()
    for c in model.constraints:
        if not isinstance(c.set, _CONIC):
            raise LipmodelError(f"the constraint {c.set} of the model {model.name!r} has to be reformulated first")
    excess = too_large(model)
    if excess is not None:
        raise LipmodelError(f"the model {model.name!r} is out of reach of a general solver: {excess}")
    start: dict[Variable, int] = {}
    n = 0
    for v in model.variables:
        start[v] = n
        n += v.size
    psd = tuple(psd_block(f, start) for f in model.matrix_constraints if f.signals)
    cost, offset = rows([model.objective or Expression.number(0.0, 1)], start, n)
    linear = [(c.function, c.set) for c in model.constraints if isinstance(c.function, Expression)]
    signs = [Expression.of(v) for v in model.variables if v.nonnegative]
    g, h = rows([*signs, *(f for f, kind in linear if isinstance(kind, Nonnegative))], start, n)
    e, f = rows([f for f, kind in linear if isinstance(kind, Zero)], start, n)
    second = [(f, kind) for f, kind in linear if isinstance(kind, SecondOrder | RotatedSecondOrder)]
    return ConeProgram(
        model=model,
        cost=np.asarray(cost.todense()).ravel(),
        offset=float(offset[0]),
        psd=psd,
        ineq=g,
        ineq_rhs=h,
        eq=e,
        eq_rhs=f,
        soc=tuple(block for function, kind in second for block in _soc_blocks(function, kind, start, n)),
    )


def _soc_blocks(
    function: Expression, kind: SecondOrder | RotatedSecondOrder, start: Mapping[Variable, int], n: int
) -> list[SocBlock]:
    matrix, rhs = rows([function], start, n)
    size, rotated = kind.block or function.size, isinstance(kind, RotatedSecondOrder)
    return [
        SocBlock(matrix=matrix[at : at + size], rhs=rhs[at : at + size], rotated=rotated)
        for at in range(0, function.size, size)
    ]


def rows(expressions: list[Expression], start: Mapping[Variable, int], n: int) -> tuple[Any, Array]:
    """The expressions one below the other: matrix (rows, n), CSR, and constants."""
    none = np.zeros(0, dtype=np.int64)
    rows, cols, data, constants = [none], [none], [np.zeros(0)], [np.zeros(0)]
    at = 0
    for expression in expressions:
        for v, k in expression.coefficients.items():
            coo = sp.coo_array(k)
            rows.append(coo.coords[0] + at)
            cols.append(coo.coords[1] + start[v])
            data.append(coo.data)
        constants.append(expression.constant)
        at += expression.size
    entries = (np.concatenate(data), (np.concatenate(rows), np.concatenate(cols)))
    return sp.csr_array(entries, shape=(at, n)), np.concatenate(constants)


def psd_block(form: QuadraticForm, start: Mapping[Variable, int]) -> PsdBlock:
    """The coefficients of a form, of variables that start at `start`; ordered by variable, row and column."""
    offsets: dict[Signal, int] = {}
    order = 0
    for s in form.signals:
        offsets[s] = order
        order += s.size
    kind = np.int32 if order * order < 2**31 else np.int64
    places, variables, values = [np.zeros(0, dtype=kind)], [np.zeros(0, dtype=kind)], [np.zeros(0)]
    for term in form.terms:
        for t in term.triplets():
            r, c = offsets[t.block[0]] + t.row.astype(kind), offsets[t.block[1]] + t.col.astype(kind)
            places.append(np.maximum(r, c) * order + np.minimum(r, c))
            variables.append(t.index.astype(kind) + (0 if t.variable is None else start[t.variable]))
            values.append(t.value)
    # one row per variable, the constants first: to sort entries within rows costs much less than to sort all of them
    var = np.concatenate(variables) + 1
    shape = (int(var.max(initial=0)) + 1, max(order * order, 1))
    entries = sp.coo_array((np.concatenate(values), (var, np.concatenate(places))), shape=shape)
    del var, variables, places, values
    table = entries.tocsr()
    del entries
    table.sum_duplicates()
    table.eliminate_zeros()
    return PsdBlock(
        order=order,
        row=(table.indices // order).astype(np.int64),
        col=(table.indices % order).astype(np.int64),
        var=np.repeat(np.arange(-1, shape[0] - 1), np.diff(table.indptr)),
        value=table.data,
        offsets=offsets,
    )


def svec(block: PsdBlock, size: int, *, upper: bool) -> tuple[Any, Array]:
    """A matrix inequality as the scaled vector of a triangle: coefficients (rows, size), CSR, and constant (rows,).

    Entries off the diagonal are multiplied by sqrt 2. upper: column by column of the upper triangle, else of the lower.
    """
    r, c, n = block.row, block.col, block.order
    index = r * (r + 1) // 2 + c if upper else c * n - c * (c - 1) // 2 + (r - c)
    value = np.where(r == c, block.value, np.sqrt(2.0) * block.value)
    total = n * (n + 1) // 2
    constant = block.var < 0
    b = np.bincount(index[constant], weights=value[constant], minlength=total)
    rest = ~constant
    return sp.csr_array((value[rest], (index[rest], block.var[rest])), shape=(total, size)), b
