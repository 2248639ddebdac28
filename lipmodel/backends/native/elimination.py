"""The order in which a chain is eliminated, chosen by its widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipmodel.backends.native import barrier, shallow
from lipmodel.backends.native.chain import Array, Chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Elimination:
    """How S(y) is factored, and what follows from the factor; `factorize` gives None unless S(y) > 0.

    A factor has `logdet`, what `band_inverse` makes of it has `gradient`, both of logdet S(y).
    """

    factorize: Callable[[Chain, Array], Any]
    band_inverse: Callable[[Chain, Any], Any]
    hessian: Callable[[Chain, Any, Any], Array]


_FROM_INPUT = Elimination(factorize=barrier.factorize, band_inverse=barrier.band_inverse, hessian=barrier.hessian)
_NEURONS_FIRST = Elimination(factorize=shallow.factorize, band_inverse=shallow.band_inverse, hessian=shallow.hessian)


def elimination_order(chain: Chain) -> Elimination:
    """Layer by layer from the input, or the neurons of a single wide layer first."""
    rows, columns = chain.weights[0].shape
    wide = len(chain.weights) == 1 and columns + chain.output.shape[0] < 0.6 * rows
    return _NEURONS_FIRST if wide else _FROM_INPUT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChainBarrier:
    """-logdet of a chain's matrix inequality, as the path follower sees it; the unknowns are (t_1..t_L, eta)."""

    chain: Chain
    elimination: Elimination
    cost: Array
    root: bool = True

    @property
    def order(self) -> int:
        return self.chain.order

    def factorize(self, y: Array) -> Any:
        return self.elimination.factorize(self.chain, y)

    def complete(self, factor: Any) -> Any:
        return self.elimination.band_inverse(self.chain, factor)

    def hessian(self, factor: Any, band: Any) -> Array:
        return self.elimination.hessian(self.chain, factor, band)


def chain_barrier(chain: Chain) -> ChainBarrier:
    """The barrier of a chain, in the order of elimination that suits its widths."""
    cost = np.concatenate([np.zeros(chain.neurons), chain.cost])
    return ChainBarrier(chain=chain, elimination=elimination_order(chain), cost=cost)
