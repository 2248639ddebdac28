"""A proved bound within milliseconds: what there is to say before anything better is known.

||M||_2 <= min(||M||_F, sqrt(||M||_1 ||M||_inf)) multiplied along paths and added where branches meet. Every number is a
sum of at most 2^30 nonnegative terms, computed in floating point and then raised by more than its rounding error.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.network.conv import Conv
from lipmodel.network.linear import Composition, Dense, Diagonal, LinearMap, Selection, Sparse, Sum

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem

Array = np.ndarray[Any, Any]
RAISED = 1.0 + 2.0**-20
"""Above (1 + 2^-53)^k for every k <= 2^31: more roundings than any step here has."""
LARGEST = 1 << 30
TINY = 2.0**-500
"""What the norm of a map counts as at least, so that no underflow matters."""
LEAST = 2.0**-900
"""The same for whole paths."""


@np.errstate(all="ignore")
def quick_bound(system: IncrementSystem, p: str, q: str) -> float:
    """An upper bound of L_{p->q}; inf where a map is of a kind that is not looked at, or something overflows."""
    n, m = system.input.size, system.output.size
    lengths = {system.signals[0]: math.sqrt(n) * RAISED if p == "inf" else 1.0}
    for a in system.activations:
        lengths[a.signal] = max(_form(a.pre.blocks, lengths) * a.steepest * RAISED, LEAST)
    if not system.output.blocks:
        return 0.0
    bound = _form(system.output.blocks, lengths) * (math.sqrt(m) * RAISED if q == "1" else 1.0) * RAISED
    return bound if bound >= 0.0 else math.inf  # NaN


def _form(blocks: Any, lengths: Any) -> float:
    total = 0.0
    for signal, m in blocks.items():
        total = (total + _length(m) * lengths[signal]) * RAISED
    return max(total, LEAST)


def _length(m: LinearMap) -> float:
    """An upper bound of ||m||_2."""
    if isinstance(m, Composition):
        return max(math.prod(_length(factor) * RAISED for factor in m.factors), TINY)
    if isinstance(m, Sum):
        return sum(_length(term) for term in m.terms) * RAISED
    if isinstance(m, Selection):
        used = m.index[m.index >= 0]
        return math.sqrt(float(np.bincount(used).max())) * RAISED if used.size else 0.0
    if isinstance(m, Diagonal):
        size = np.abs(m.values) if m.radius is None else np.abs(m.values) + m.radius
        return float(size.max(initial=0.0)) * RAISED
    if isinstance(m, Conv) and m.kernel.size < LARGEST:
        size = np.abs(m.kernel) if m.radius is None else np.abs(m.kernel) + m.radius
        rows = size.reshape(len(size), -1).sum(axis=1)
        columns = size.reshape(m.groups, -1, *size.shape[1:]).sum(axis=(1, *range(3, size.ndim + 1)))
        return _mean(float(rows.max(initial=0.0)), float(columns.max(initial=0.0)))
    if isinstance(m, Dense | Sparse) and m.shape[0] * m.shape[1] < LARGEST:
        return _stored(abs(m.weights) if m.radius is None else abs(m.weights) + m.radius)
    return math.inf


def _stored(size: Any) -> float:
    """The same for a matrix of moduli, dense or sparse."""
    top = float(size.max()) if 0 not in size.shape else 0.0
    if not 0.0 < top < math.inf:
        return top
    scaled = size / top  # no square overflows, and what underflows is negligible beside RAISED
    squares = scaled * scaled if isinstance(scaled, np.ndarray) else scaled.multiply(scaled)
    frobenius = math.sqrt(float(squares.sum())) * RAISED
    sums = (float(np.asarray(scaled.sum(axis=axis)).max()) for axis in (0, 1))
    return max(top * min(frobenius, _mean(*sums)) * RAISED, TINY)


def _mean(a: float, b: float) -> float:
    return math.sqrt(a) * math.sqrt(b) * RAISED
