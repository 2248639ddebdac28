"""S by gradient: ever better multipliers of a model, and the best S of one layer for what it feeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from lipmodel.certify.lmi import Multipliers
from lipmodel.elimination.blocks import Array
from lipmodel.elimination.forward import Layer
from lipmodel.elimination.rules import choose_s

if TYPE_CHECKING:
    from lipmodel.model.model import Model
    from lipmodel.network.increments import IncrementSystem


def descent(model: Model, system: IncrementSystem) -> Iterator[Multipliers]:
    """Ever better multipliers of the system for a model of it, from a closed form on; they end where nothing is gained.

    The bound as a function of log S (see `Recursion`) and of the weights of the ends: its gradient by the adjoint of
    the recursion, a barrier that keeps 2 S - G definite and falls in stages, L-BFGS. model: one matrix inequality of
    balls, slope restrictions and the output, such as LipSDP or GeoLIP state; multipliers may be tied, the graph is any
    DAG. A step costs a few factorisations of every layer, hence time linear in depth. Raises UsageError for others.
    """
    from lipmodel.backends.native import improving_points
    from lipmodel.certify.extract import extract

    for values in improving_points(model):
        yield extract(model, system, values)[0]


def best_s(gram: Array, layer: Layer) -> Array:
    """The diagonal of S, shape (n,), for which the largest eigenvalue of F Y F' is least, F all that the layer feeds.

    Y is the covariance that S leaves behind. It is LipSDP of a network with this layer alone, and solved as such, to a
    relative 1e-7.
    """
    from lipmodel.backends.native.chain import ChainProblem
    from lipmodel.backends.native.core import solve_chain

    values, vectors = np.linalg.eigh(gram)
    used = values > 1e-15 * values[-1]
    if not np.any(used):  # nothing reaches this layer
        return choose_s(gram, "spectral", 1.0)
    found = solve_chain(
        ChainProblem(
            weights=(vectors[:, used] * np.sqrt(values[used]),),
            alpha=(layer.alpha,),
            beta=(layer.beta,),
            output=layer.feeds(),
            input_norm="2",
        ),
        tol=1e-7,
    )
    if found.status == "interrupted":
        raise KeyboardInterrupt
    return np.asarray(found.value / (found.t[0] * (layer.beta - layer.alpha) ** 2))
