"""Problem data of the diagonal-multiplier program of a chain of layers, and its exact rescaling by powers of two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Exponents = NDArray[np.int64]
Mask = NDArray[np.bool_]

Status = Literal["optimal", "time-limit", "iteration-limit", "interrupted", "inaccurate", "failed"]

ABSENT = -(1 << 40)  # the binary exponent of zero: below any exponent that a sum of double exponents can reach
NARROW = 1e-5  # relative width of a slope interval below which its multiplier swamps the rest of the matrix
SHARES = (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0)
"""How far a result is moved towards a point inside, until it is feasible in the original numbers."""
SPARSE_DENSITY = 0.02  # below this a compressed product beats a dense one by more than the ratio of their flop rates


def relative_gap(lower: float, value: float, *, root: bool) -> float:
    """Between a value and a lower bound of the objective, on the objective or its root; in [0, 1]."""
    if lower >= value:
        return 0.0
    ratio = max(lower, 0.0) / value if value > 0.0 else 0.0
    return 1 - (math.sqrt(ratio) if root else ratio)


def widened_slopes(low: Array, high: Array) -> tuple[Array, Array, bool]:
    """Slope intervals, those too narrow for double precision widened about their centre, and whether there were any.

    With c the centre and r the radius a neuron adds 2 t ((w - c v)^2 - r^2 v^2): a multiplier for a larger radius is
    one for a smaller radius too, at the same t. A bound from below is not carried over.
    """
    least = NARROW * np.maximum(np.abs(low), np.abs(high))
    narrow = high - low < least
    centre = low + (high - low) / 2
    return np.where(narrow, centre - least / 2, low), np.where(narrow, centre + least / 2, high), bool(narrow.any())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChainProblem:
    """min c'eta s.t. [diag(eta) on x0] + sum_j t_j (u_j r_j' + r_j u_j') - V'V >= 0, V acting on the last layer.

    weights: W_1..W_L, W_k of shape (n_k, n_{k-1}), dense or SciPy sparse; v_k = W_k w_{k-1} enters the activations of
    layer k. alpha, beta: slopes of every neuron, alpha <= beta, any signs; u_j = e_j - alpha_j W_k[j, :] and
    r_j = e_j - beta_j W_k[j, :]. output: V, shape (m, n_L). input_norm: "2" is eta = rho 1 with objective rho, "inf" is
    eta in R^n0 with objective sum(eta). sqrt(objective) bounds the Lipschitz constant from that norm to the 2-norm.

    Raises ValueError for shapes that do not fit, numbers that are not finite, or alpha > beta.
    Source: Fazlyab, Robey, Hassani, Morari, Pappas 2019 (arXiv 1906.04893) for "2"; Wang, Prakriya, Jha 2022
    (arXiv 2203.01212) for "inf".
    """

    weights: tuple[Any, ...]
    alpha: tuple[Array, ...]
    beta: tuple[Array, ...]
    output: Array
    input_norm: Literal["2", "inf"]

    def __post_init__(self) -> None:
        if not self.weights or not len(self.weights) == len(self.alpha) == len(self.beta):
            raise ValueError("a chain needs at least one hidden layer, and slopes for every one")
        if self.input_norm not in ("2", "inf"):
            raise ValueError(f"unknown input norm {self.input_norm!r}")
        width = self.weights[0].shape[1]
        for index, (weight, low, high) in enumerate(zip(self.weights, self.alpha, self.beta, strict=True), start=1):
            if weight.ndim != 2 or weight.shape[1] != width:
                raise ValueError(f"W_{index} has shape {weight.shape}, expected (n, {width})")
            width = weight.shape[0]
            if low.shape != (width,) or high.shape != (width,):
                raise ValueError(f"layer {index} needs {width} slopes")
            if not (np.all(low <= high) and np.all(np.isfinite(low)) and np.all(np.isfinite(high))):
                raise ValueError(f"layer {index} needs finite slopes alpha <= beta")
            if not np.all(np.isfinite(weight.data if hasattr(weight, "tocsr") else weight)):
                raise ValueError(f"W_{index} is not finite")
        if self.output.ndim != 2 or self.output.shape[1] != width or not np.all(np.isfinite(self.output)):
            raise ValueError(f"V has shape {self.output.shape}, expected finite numbers and (m, {width})")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChainSolution:
    """The best strictly feasible point found (block Cholesky of the whole matrix in floating point).

    t: multipliers, one array per layer. eta: shape (n0,). value: c'eta there; sqrt(value) is the bound on the constant.
    lower: objective of a primal feasible point (in floating point, no proof), or 0. iterations: Hessians factored.
    status: "optimal", "time-limit", "iteration-limit", "interrupted", or "inaccurate": it stopped short for numerical
    reasons. Only then value may be inf, with t and eta of no meaning: the point is not representable in doubles.
    """

    t: tuple[Array, ...]
    eta: Array
    value: float
    lower: float
    status: Status
    iterations: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """The same program with dense data of order one; the unknowns are (t_1..t_L, eta), eta one number where tied."""

    weights: tuple[Array, ...]
    sparse: tuple[Any, ...]  # the weight once more, compressed, where that is the faster operand
    alpha: tuple[Array, ...]
    beta: tuple[Array, ...]
    slope_sum: tuple[Array, ...]
    slope_product: tuple[Array, ...]
    curved: tuple[
        bool, ...
    ]  # some alpha * beta is not zero: the layer adds 2 W' diag(alpha beta t) W to the block before
    output: Array
    output_gram: Array
    input_gram: Array  # W_1 W_1' where eta is a single number and layer 1 is not curved, else empty
    cost: Array  # objective coefficients of eta
    tied: bool
    spans: tuple[slice, ...]  # where each layer's neurons stand in the vector of unknowns
    neurons: int
    order: int  # of the matrix inequality


def build_chain(
    weights: Sequence[Array],
    alpha: Sequence[Array],
    beta: Sequence[Array],
    output: Array,
    *,
    cost: Array,
    tied: bool,
) -> Chain:
    """Derived data of a chain that is scaled already; weights (n_k, n_{k-1}), output (m, n_L), cost (1,) or (n0,)."""
    widths = [weight.shape[0] for weight in weights]
    ends = np.cumsum([0, *widths])
    products = tuple(low * high for low, high in zip(alpha, beta, strict=True))
    curved = tuple(bool(np.any(product)) for product in products)
    first = np.ascontiguousarray(weights[0])
    return Chain(
        weights=(first, *(np.ascontiguousarray(weight) for weight in weights[1:])),
        sparse=tuple(_compressed(weight) for weight in weights),
        alpha=tuple(alpha),
        beta=tuple(beta),
        slope_sum=tuple(low + high for low, high in zip(alpha, beta, strict=True)),
        slope_product=products,
        curved=curved,
        output=output,
        output_gram=output.T @ output,
        input_gram=first @ first.T if tied and not curved[0] else np.zeros((0, 0)),
        cost=cost,
        tied=tied,
        spans=tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(ends)),
        neurons=int(ends[-1]),
        order=int(ends[-1]) + first.shape[1],
    )


def _compressed(weight: Array) -> Any:
    if weight.size < 1 << 14 or np.count_nonzero(weight) > SPARSE_DENSITY * weight.size:
        return None
    from scipy.sparse import csr_array

    return csr_array(weight)


def split(chain: Chain, y: Array) -> tuple[list[Array], Array]:
    """(t_1..t_L), eta of shape (n0,), from the vector of unknowns."""
    tail = y[chain.neurons :]
    return [y[span] for span in chain.spans], np.broadcast_to(
        tail, (chain.weights[0].shape[1],)
    ) if chain.tied else tail


def all_alive(problem: ChainProblem) -> bool:
    """Whether every input and neuron lies on a path from the inputs to the output, of nonzero weights and slopes."""
    connected = [bool(np.all((problem.output != 0).any(axis=0)))]
    for weight, low, high in zip(problem.weights, problem.alpha, problem.beta, strict=True):
        present = weight != 0
        connected += [bool(np.all(present.sum(axis=axis) > 0)) for axis in (0, 1)]
        connected.append(bool(np.all((low != 0) | (high != 0))))
    return all(connected)


def dense_weights(problem: ChainProblem) -> list[Array]:
    """The weights as dense float64 arrays."""
    arrays = (weight.toarray() if hasattr(weight, "toarray") else weight for weight in problem.weights)
    return [np.asarray(array, dtype=np.float64) for array in arrays]


# ---------------------------------------------------------------------------------------------------------------------
# Scaling by powers of two, with exponents apart: no product of layer gains is ever formed


def exponents(values: Array) -> Exponents:
    """Binary exponent e of every entry, |value| in [2^(e-1), 2^e); ABSENT where the entry is zero."""
    mantissa, exponent = np.frexp(values)
    return np.where(mantissa == 0, ABSENT, exponent.astype(np.int64))


def shift(values: Array | float, amount: Exponents | int) -> Array:
    """values * 2^amount; amounts beyond the range of doubles saturate to zero or infinity."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.ldexp(values, np.clip(amount, -4000, 4000, dtype=np.int64).astype(np.int32)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scaling:
    """x = 2^signals[0] x', w_k = 2^signals[k] w_k', v_k = 2^inputs[k-1] v_k', V = 2^output V' in the scaled signals."""

    signals: tuple[Exponents, ...]  # layers 0..L
    inputs: tuple[Exponents, ...]  # layers 1..L
    output: int


def scaled_weight(weight: Array, columns: Exponents, rows: Exponents) -> Array:
    """The weight between scaled signals: W[i, j] 2^(columns[j] - rows[i])."""
    return shift(weight, columns[None, :] - rows[:, None])


def triangular_factor(matrix: Array) -> Array:
    """R of the QR factorisation of a tall matrix: R'R = matrix' matrix."""
    return np.asarray(np.linalg.qr(matrix, mode="r"), dtype=np.float64)


def scaled_chain(
    weights: Sequence[Array],
    alpha: Sequence[Array],
    beta: Sequence[Array],
    output: Array,
    scaling: Scaling,
    *,
    tied: bool,
    reduce: bool = True,
) -> Chain:
    """The chain in scaled signals. The map is a congruence, and exact but for the triangular factors that drop surplus
    inputs (input norm 2) and surplus outputs where `reduce` asks for it."""
    columns = scaling.signals
    scaled = [
        scaled_weight(weight, columns[k], rows)
        for k, (weight, rows) in enumerate(zip(weights, scaling.inputs, strict=True))
    ]
    gains = [rows - signal for rows, signal in zip(scaling.inputs, columns[1:], strict=True)]
    last = shift(output, (columns[-1] - scaling.output)[None, :])
    if reduce and last.shape[0] > last.shape[1]:
        last = triangular_factor(last)
    if reduce and tied and scaled[0].shape[1] > scaled[0].shape[0]:
        scaled[0] = np.ascontiguousarray(triangular_factor(scaled[0].T).T)
    return build_chain(
        scaled,
        [shift(a, gain) for a, gain in zip(alpha, gains, strict=True)],
        [shift(b, gain) for b, gain in zip(beta, gains, strict=True)],
        last,
        cost=np.ones(1) if tied else shift(np.ones(columns[0].size), -2 * (columns[0] - columns[0].max())),
        tied=tied,
    )


def unscale(scaling: Scaling, t: Sequence[Array], eta: Array) -> tuple[list[Array], Array]:
    """Multipliers and eta of the original signals."""
    level = 2 * scaling.output
    return (
        [shift(tk, level - 2 * signal) for tk, signal in zip(t, scaling.signals[1:], strict=True)],
        shift(eta, level - 2 * scaling.signals[0]),
    )
