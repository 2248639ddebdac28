"""Evidence for chains of layers: a metric after every hidden layer, and each factor between two of them maximised."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.certify.certificate import hex_vector
from lipmodel.certify.evidence import Evidence, Proved
from lipmodel.errors import UsageError

if TYPE_CHECKING:
    from lipmodel.certify.metric_chain import Factor
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.slope_trees import Layer, Tree
    from lipmodel.spec import Norm

Array = np.ndarray[Any, Any]

RIDGE = 1e-10
"""What is added to a metric, in units of its largest eigenvalue: the exact check of a singular one cannot succeed."""
GRID = 50
"""Bits of the largest entry of a metric's factor that are kept, which keeps the integers of the checker short."""
MARGINS = (1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)
"""How much the square of a factor is raised, relatively, until the exact check accepts it."""
LEAST = 2.0**-900
"""The square of a factor at least, which is proved to be positive."""
SHARE = 0.9
"""Share of the time that maximising the factors may take."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MetricChain(Evidence):
    """|y|_2 <= f_1 ... f_{d-1} |x|_2 for a chain, f_i the largest |S W_i x|_{M_i} / |x|_{M_{i-1}} over all slopes S.

    metrics: M_1, ..., M_{d-2}, positive semidefinite, of the shapes (n_i, n_i), one after every hidden layer but the
    last; M_0 = I, and M_{d-1} = W_d' W_d is the output itself. What is proved is about rounded ones, which the
    certificate lists. exact_up_to: neurons of a layer up to which f_i is the maximum over all slopes (by branch and
    bound; Virmaux & Scaman 2018, arXiv 1805.10965, enumerate); wider ones get the two-layer LipSDP (Fazlyab et al.
    2019, arXiv 1906.04893). The exact checker itself decides every factor. Raises UsageError for other systems.
    """

    metrics: tuple[Array, ...]
    exact_up_to: int = 0

    def describe(self) -> str:
        """The number of factors and the largest metric."""
        widths = ", ".join(str(len(m)) for m in self.metrics) or "none"
        return f"{len(self.metrics) + 1} factors, each maximised over slopes, between metrics of orders {widths}"

    def prove(self, system: IncrementSystem, norms: tuple[Norm, Norm], deadline: float) -> Proved | None:
        """Maximise every factor, then have the exact checker decide; None where it does not."""
        from lipmodel.certify.kernel import Rejected
        from lipmodel.certify.metric_chain import RULE, chain_factors
        from lipmodel.network.increments import exact_system
        from lipmodel.ranges.norms import float_up, root_up
        from lipmodel.slope_trees import tree

        self._fits(system, norms)
        roots = [_root(metric) for metric in self.metrics]
        entries = [root[np.triu_indices(len(root))] for root in roots]
        try:
            layers, factors = _layers(system, roots), chain_factors(exact_system(system), entries)
        except (Rejected, np.linalg.LinAlgError):
            return None
        parts: list[_Part] = []
        for factor, layer in zip(factors, layers, strict=True):
            part = None if time.monotonic() > deadline else _decided(factor, tree(layer))
            if part is None:
                return None
            parts.append(part)
        small = [k for k, layer in enumerate(layers) if layer.size <= self.exact_up_to]
        with suppress(KeyboardInterrupt):  # what is proved by then is the answer
            for done, k in enumerate(small):
                left = SHARE * (deadline - time.monotonic()) / (len(small) - done)
                parts[k] = _branched(factors[k], parts[k], left)
        bound = float_up(root_up(math.prod(Fraction(part.square) for part in parts)))
        proof = {
            "rule": RULE,
            "norms": ["2", "2"],
            "squares": [part.square.hex() for part in parts],
            "metrics": [hex_vector(values) for values in entries],
            "trees": [part.proof for part in parts],
            "bound": bound.hex(),
        }
        return Proved(bound=bound, proof=proof)

    def _fits(self, system: IncrementSystem, norms: tuple[Norm, Norm]) -> None:
        if norms != ("2", "2"):
            raise UsageError(f"a chain of metrics is about the norms 2:2, not {':'.join(norms)}")
        forms = [*(a.pre for a in system.activations), system.output]
        chained = all(set(form.blocks) == {signal} for form, signal in zip(forms, system.signals, strict=True))
        if not chained or not system.activations or any(a.groups is not None for a in system.activations):
            raise UsageError("a chain of metrics is about chains of layers that act neuron by neuron")
        shapes = [(a.size, a.size) for a in system.activations[:-1]]
        if [np.shape(metric) for metric in self.metrics] != shapes:
            raise UsageError(f"the metrics of a chain have the shapes {shapes}, one for each hidden layer but the last")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """A factor that the exact checker has accepted: its square, by this tree; seconds: that took."""

    square: float
    tree: Tree
    proof: dict[str, Any]
    seconds: float


def _decided(factor: Factor, tree: Tree) -> _Part | None:
    """The tree with the least square that the exact checker accepts for it; None where it accepts none."""
    from lipmodel.certify.metric_chain import decides_factor

    started = time.monotonic()
    proof = tree.to_json()
    for margin in MARGINS:
        square = max(tree.square * (1.0 + margin), LEAST)
        if not math.isfinite(square):
            return None
        if decides_factor(factor, square, proof):
            return _Part(square=square, tree=tree, proof=proof, seconds=time.monotonic() - started)
    return None


def _branched(factor: Factor, part: _Part, seconds: float) -> _Part:
    """The factor maximised within some seconds, half of them for the proof; the part itself where that fails."""
    from lipmodel.slope_trees import MOST_LEAVES

    if part.tree.solved or seconds <= 2.0 * part.seconds:
        return part
    part.tree.branch(time.monotonic() + 0.5 * seconds, int(min(MOST_LEAVES, 0.5 * seconds / part.seconds)))
    better = _decided(factor, part.tree)
    return part if better is None else better


def _root(metric: Array) -> Array:
    """R, upper triangular, with R'R near the metric, its entries multiples of a power of two."""
    if not bool(np.all(np.isfinite(metric))):
        raise UsageError("a metric of a chain is not finite")
    metric = 0.5 * (metric + metric.T)
    top = float(np.linalg.norm(metric, 2))
    ridge = RIDGE * top if top > 0.0 else 1.0
    try:
        root = np.linalg.cholesky(metric + ridge * np.eye(len(metric))).T
    except np.linalg.LinAlgError:
        raise UsageError("a metric of a chain is not positive semidefinite") from None
    unit = math.frexp(float(np.abs(root).max()))[1] - GRID
    return np.asarray(np.ldexp(np.rint(np.ldexp(root, -unit)), unit))


def _layers(system: IncrementSystem, roots: list[Array]) -> list[Layer]:
    """What is to be maximised for every factor: G_i S W_i R_{i-1}^-1, in units where the matrices have norms near 1."""
    from scipy.linalg import solve_triangular

    from lipmodel.slope_trees import Layer

    forms = [*(a.pre for a in system.activations), system.output]
    weights = [next(iter(form.blocks.values())).enclosure().dense().center for form in forms]
    found = []
    for k, act in enumerate(system.activations):
        before = weights[k] if k == 0 else solve_triangular(roots[k - 1], weights[k].T, trans="T").T
        after = roots[k] if k < len(roots) else weights[-1]
        (before, right), (after, left) = _scaled(_narrowed(before.T).T), _scaled(_narrowed(after))
        units = ((right * left) ** 2, left**2)
        found.append(Layer(after=after, before=before, alpha=act.alpha, beta=act.beta, units=units))
    return found


def _narrowed(matrix: Array) -> Array:
    """A matrix with the same Gram matrix and no more rows than columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else np.asarray(np.linalg.qr(matrix, mode="r"))


def _scaled(matrix: Array) -> tuple[Array, float]:
    """The matrix over a power of two near its norm, and that power."""
    top = float(np.linalg.norm(matrix, 2))
    unit = 2.0 ** math.frexp(top)[1] if top > 0.0 else 1.0
    return matrix / unit, unit
