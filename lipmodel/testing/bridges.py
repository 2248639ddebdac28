"""What every bridge has to satisfy; for our own and for those of third parties.

from lipmodel.testing.bridges import check_bridge
check_bridge(MyBridge(), model, index)      # index: the constraint of the model that it is for
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lipmodel.bridges.base import Bridge
from lipmodel.bridges.plan import KINDS, shape_of
from lipmodel.bridges.program import psd_block, rows
from lipmodel.model.forms import QuadraticForm
from lipmodel.model.model import Constraint, Model, order_of
from lipmodel.model.variables import Variable

Array = np.ndarray[Any, Any]


def check_bridge(bridge: Bridge, model: Model, index: int, *, seed: int = 0) -> None:
    """Prediction, names, kinds and the way back of duals. Raises AssertionError.

    Duals: where the multipliers of the new constraints leave nothing of the new variables in the Lagrangian, they and
    the dual that is made of them give the same function of the model's own variables.
    """
    constraint = model.constraints[index]
    shape = shape_of(model)
    (part,) = (p for p in shape.parts if p.origin == index)
    assert part.kind in bridge.sources, f"{bridge.name} is not for {part.kind}"
    assert bridge.soundness in ("equivalent", "restriction", "relaxation")
    after = bridge.predict(shape, part, constraint)
    assert after is not None, f"{bridge.name} does not apply to this constraint"
    assert shape == shape_of(model), "predicting changes nothing"
    before = str(model)
    names = frozenset(v.name for v in model.variables)
    applied = bridge.apply(constraint, names)
    assert str(model) == before, "applying changes nothing"
    found = {KINDS[type(c.set)] for c in applied.constraints}
    assert found <= bridge.targets, f"{bridge.name} gives {found}, and declares {set(bridge.targets)}"
    assert found <= {p.kind for p in after.parts if p.origin == index}
    given = [v.name for v in applied.variables]
    assert len(set(given)) == len(given), "new variables have different names"
    assert not set(given) & names, "new variables have names of their own"
    new = sum(v.size for v in applied.variables)
    assert after.variables - shape.variables >= new - _absolute_values(bridge, new)
    _check_orders(after.parts, applied.constraints, index)
    _check_duals(constraint, applied.constraints, model.variables, applied.variables, applied.dual, seed)


def _absolute_values(bridge: Bridge, new: int) -> int:
    """Variables that are not predicted: of absolute values, whose signs are only known from the coefficients."""
    return new if "dd" in bridge.sources else 0


def _check_orders(parts: Sequence[Any], constraints: Sequence[Constraint], index: int) -> None:
    predicted = sorted(n for p in parts if p.origin == index and p.kind == "psd" for n in p.sizes)
    orders = sorted(order_of(c.function) for c in constraints if isinstance(c.function, QuadraticForm))
    assert predicted == orders, f"matrices of orders {predicted} were predicted, and are {orders}"


def _check_duals(
    constraint: Constraint,
    constraints: Sequence[Constraint],
    own: Sequence[Variable],
    new: Sequence[Variable],
    dual: Any,
    seed: int,
) -> None:
    maps = [affine_map(c, [*own, *new]) for c in constraints]
    count = sum(v.size for v in own)
    whole = np.vstack(maps)
    multipliers = np.random.default_rng(seed).standard_normal(len(whole))
    start = 0
    for c, m in zip(constraints, maps, strict=True):
        if isinstance(c.function, QuadraticForm):
            n = order_of(c.function)
            y = multipliers[start : start + n * n].reshape(n, n)
            multipliers[start : start + n * n] = (y @ y.T).ravel()
        start += len(m)
    extra = whole[:, 1 + count :]
    multipliers -= extra @ np.linalg.lstsq(extra, multipliers, rcond=None)[0] if extra.size else 0.0
    parts, start = [], 0
    for c, m in zip(constraints, maps, strict=True):
        y = multipliers[start : start + len(m)]
        parts.append(y.reshape((order_of(c.function),) * 2) if isinstance(c.function, QuadraticForm) else y)
        start += len(m)
    back = np.asarray(dual(parts))
    lagrangian = whole[:, : 1 + count].T @ multipliers
    np.testing.assert_allclose(
        affine_map(constraint, own).T @ back.ravel(), lagrangian, rtol=1e-8, atol=1e-8 * (1.0 + np.abs(whole).max())
    )


def affine_map(constraint: Constraint, variables: Sequence[Variable]) -> Array:
    """The function of a constraint, a whole matrix row by row or a vector, as a matrix acting on (1, variables)."""
    start, n = {}, 0
    for v in variables:
        start[v] = n
        n += v.size
    if not isinstance(constraint.function, QuadraticForm):
        matrix, constant = rows([constraint.function], start, n)
        return np.hstack([constant[:, None], matrix.toarray()])
    block = psd_block(constraint.function, start)
    dense = np.zeros((block.order, block.order, 1 + n))
    dense[block.row, block.col, 1 + block.var] = block.value
    dense[block.col, block.row, 1 + block.var] = block.value
    return dense.reshape(-1, 1 + n)
