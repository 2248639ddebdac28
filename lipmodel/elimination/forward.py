"""The covariance recursion: from a rule for the diagonals S to multipliers of the whole system, and its bound.

Invariant: u u' << Y for the increments of the signals that are still read, for all inputs of the ball
x'diag(kappa)x <= 1, Y_0 = diag(kappa)^-1. An activation with input v = H u, G = H Y H', slopes [0, 1] and any diagonal
S with 2 S - G > 0 joins with

    Y <- blkdiag(Y, 0) + R (2 S - G)^-1 R',   R = [Y H'; S],

other slopes by w = alpha v + (beta - alpha) w~. It is the block LDL' factorisation of the LipSDP matrix (Fazlyab et al.
2019, arXiv 1906.04893) with multipliers T = rho S^-1 (beta - alpha)^-2, rho the largest eigenvalue of the output's
covariance, so that its least value over all S is the optimum of that program. Special cases: ECLipsE (Xu & Sivaranjani
2024, arXiv 2404.04375, whose Lambda is 2 S^-1) and the closed-form points of Syed & Hu (2025, arXiv 2503.14297).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg as sla

from lipmodel.certify.lmi import Multipliers
from lipmodel.elimination.blocks import Array, Blocks, cholesky, scaled_blocks, top_eigenvalue
from lipmodel.elimination.rules import RULES, choose_s
from lipmodel.elimination.sweep import backward_sweep
from lipmodel.errors import UsageError

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.spec import Spec

CHEAP = 3e7
"""Cubed sizes of the signals up to which all rules are tried where one is enough."""
FAR = 32
"""Binary exponents of a covariance beyond which its signal gets another unit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """The k-th activation of a recursion, as a rule for S sees it.

    number: k, from 1. alpha, beta: slopes, shape (n_k,).
    """

    number: int
    alpha: Array
    beta: Array
    blocks: Blocks

    def feeds(self) -> Array:
        """The matrix of all that reads the output of this activation, up to a power of two, shape (r, n_k)."""
        blocks, k = self.blocks, self.number
        readers = [(pre[k], scale) for pre, scale in zip(blocks.pre, blocks.scale[1:], strict=True) if k in pre]
        if k in blocks.output:
            readers.append((blocks.output[k], blocks.scale_out))
        level = max(scale for _, scale in readers)
        return np.vstack([block * (scale / level) for block, scale in readers])


Choose = Callable[[Array, Layer], Array]
"""A rule: from the Gram matrix G, shape (n, n), and the layer to the diagonal of S, shape (n,), 2 S - G > 0.

Both in units of order one (a power of four), so that no depth overflows: S must grow in proportion to G.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Covariance:
    """What a recursion gives, in scaled signals.

    t: S^-1 (beta - alpha)^-2 of every activation, times 2^-2 units of it. ends: the output's covariance, shape (m, m),
    divided by 2^(2 unit).
    """

    t: tuple[Array, ...]
    units: tuple[int, ...]
    ends: Array
    unit: int


class IndefiniteError(ArithmeticError):
    """2 S - G is not positive definite, or the recursion has left the range of doubles; the argument is the layer."""


@np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore")
def covariance(blocks: Blocks, choose: Choose, start: Array) -> Covariance:
    """The recursion from Y_0 = diag(start), shape (n0,), positive. Raises IndefiniteError."""
    live: list[int] = [0]
    units = [0] * len(blocks.sizes)
    last_use = [0] * len(blocks.sizes)
    for k, pre in enumerate(blocks.pre, start=1):
        for j in pre:
            last_use[j] = max(last_use[j], k)
    for j in blocks.output:
        last_use[j] = len(blocks.sizes)
    cov = np.diag(np.asarray(start, dtype=np.float64))
    weights: list[Array] = []
    inputs: list[int] = []
    for k, pre in enumerate(blocks.pre, start=1):
        alpha, beta = blocks.alpha[k - 1], blocks.beta[k - 1]
        span = beta - alpha
        h, unit = _operand(blocks, pre, live, units, blocks.sizes[k])
        hy = h @ cov
        gram = hy @ h.T
        layer = Layer(number=k, alpha=alpha, beta=beta, blocks=blocks)
        s = blocks.tied(k, np.asarray(choose(gram, layer), dtype=np.float64))
        usable = s.shape == span.shape and np.all(np.isfinite(s)) and np.all(s > 0.0)
        chol = cholesky(np.diag(2.0 * s) - gram) if usable else None
        if chol is None:
            raise IndefiniteError(k)
        keep = [j for j in live if last_use[j] > k]
        if keep != live:
            index = _index_of(live, keep, blocks.sizes)
            cov, kept = cov[np.ix_(index, index)], hy[:, index]
        else:
            kept = hy
        # w = alpha v + span w~, w~ the [0, 1] part that is appended; v itself has the covariances hy and gram
        r = sla.solve_triangular(
            chol, np.hstack([kept, alpha * gram + np.diag(span * s)]), lower=True, check_finite=False
        )
        n = len(cov)
        rest = r.T @ r
        rest[:n, :n] += cov
        rest[n:, :n] += alpha[:, None] * kept
        rest[:n, n:] = rest[n:, :n].T
        rest[n:, n:] += alpha[:, None] * gram * alpha
        cov, live = rest, [*keep, k]
        top = float(np.max(np.diag(cov)[n:], initial=0.0))
        if not np.all(np.isfinite(cov)):
            raise IndefiniteError(k)
        shift = round(np.log2(top) / 2) if top > 0.0 else 0
        if abs(shift) > FAR:
            root = np.ldexp(np.ones(len(cov)), np.where(np.arange(len(cov)) < n, 0, -shift))
            cov = root[:, None] * cov * root
        else:
            shift = 0
        units[k] = unit + shift
        weights.append(1.0 / (s * span**2))
        inputs.append(unit)
    out, unit = _operand(blocks, blocks.output, live, units, blocks.outputs)
    return Covariance(t=tuple(weights), units=tuple(inputs), ends=out @ cov @ out.T, unit=unit)


def _operand(
    blocks: Blocks, form: dict[int, Array], live: Sequence[int], units: Sequence[int], rows: int
) -> tuple[Array, int]:
    """A linear form over the live signals in their units, divided by 2^unit; and that unit."""
    unit = max((units[j] for j in form), default=0)
    parts = [np.ldexp(form[j], units[j] - unit) if j in form else np.zeros((rows, blocks.sizes[j])) for j in live]
    return np.hstack(parts), unit


def _index_of(live: Sequence[int], keep: Sequence[int], sizes: Sequence[int]) -> Array:
    parts, offset = [], 0
    for j in live:
        if j in keep:
            parts.append(np.arange(offset, offset + sizes[j]))
        offset += sizes[j]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# For formulations


class Recursion:
    """The covariance recursion of one system and question; called with a rule for S, it gives multipliers.

    Norm pairs p in {2, inf} and q in {1, 2}. The l2 ball has equal weights kappa; those of the l_inf ball are the sums
    over all paths to the outputs of the moduli of weights and slopes. Raises UsageError for other norms, and for a
    system whose output reads no signal.
    """

    def __init__(self, system: IncrementSystem, spec: Spec) -> None:
        from lipmodel.network.increments import float_system

        self.norms = spec.norms
        if self.norms[0] not in ("2", "inf") or self.norms[1] not in ("1", "2"):
            raise UsageError(f"the recursion has no statement for the norm pair {':'.join(self.norms)}")
        if not system.output.blocks:
            raise UsageError("the output reads no signal: the network is constant")
        self.blocks = scaled_blocks(float_system(system))
        self.kappa = _kappa(self.blocks, self.norms[0])

    def __call__(self, choose: Choose) -> Multipliers:
        """The multipliers of S = diag(choose(gram, layer)) for every layer: t = rho S^-1 (beta - alpha)^-2, g, s.

        They lie on the boundary of the feasible set. Raises UsageError where 2 S - G is not positive definite (with an
        indefinite one the formula would still give a number, which may be below the constant) or overflows.
        """
        from lipmodel.backends.native.core import single_thread

        blocks = self.blocks
        try:
            with single_thread():  # blocks are small, and the pools of NumPy and SciPy fight each other
                found = covariance(blocks, choose, 1.0 / self.kappa)
        except IndefiniteError as error:
            raise UsageError(
                f"layer {error.args[0]} of the recursion: 2 S - G is not positive definite, which proves nothing"
            ) from None
        # (g, t, s) and (c g, c t, s / c) are equally feasible: c keeps all of them near one
        half = found.unit + int(np.log2(blocks.scale_out))
        slack = least_cover(found.ends, self.norms[1])
        scales = [unit + int(np.log2(scale)) for unit, scale in zip(found.units, blocks.scale[1:], strict=True)]
        with np.errstate(over="ignore", under="ignore"):
            return Multipliers(
                t=tuple(np.ldexp(t, half - 2 * scale) for t, scale in zip(found.t, scales, strict=True)),
                g=np.ldexp(self.kappa, half),
                s=np.ldexp(slack, half),
            )


def _kappa(blocks: Blocks, input_norm: str) -> Array:
    return np.ones(blocks.sizes[0]) if input_norm == "2" else path_weights(blocks)


def least_cover(ends: Array, output_norm: str) -> Array:
    """e, shape (m,), with diag(e) >> ends: of least maximum (q = 2), or of a sum close to the least (q = 1).

    For q = 1 this is the dual of the semidefinite relaxation of max-cut, solved on the primal side by coordinate-wise
    ascent over unit vectors (Burer & Monteiro 2003, Math. Program. 95:329), then scaled so that it covers.
    """
    m = len(ends)
    if output_norm != "1" or m == 1:
        return np.full(m, max(top_eigenvalue(ends), np.finfo(np.float64).tiny))
    values, vectors = np.linalg.eigh(0.5 * (ends + ends.T))
    rows = vectors * np.sqrt(np.maximum(values, 0.0))
    floor = 1e-12 * max(float(np.trace(ends)) / m, np.finfo(np.float64).tiny)
    unit = np.eye(m)
    best = np.full(m, max(float(values[-1]), floor))
    for _ in range(500):
        pulled = rows @ (rows.T @ unit)
        size = np.maximum(np.linalg.norm(pulled, axis=1), floor)
        root = 1.0 / np.sqrt(size)
        cover = max(top_eigenvalue(root[:, None] * ends * root), 1e-12) * size
        settled = cover.sum() > best.sum() * (1.0 - 1e-13)
        best = cover if cover.sum() < best.sum() else best
        if settled and best.sum() <= (1.0 + 1e-10) * float(np.sum(unit * pulled)):
            break
        unit = pulled / size[:, None]
    return best


# ---------------------------------------------------------------------------------------------------------------------
# For the repair


def forward_multipliers(blocks: Blocks, rule: str, c: float, start: Array) -> tuple[Array, ...] | None:
    """Multipliers t of a closed form, None where its recursion breaks down; start as in `forward_recursion`."""
    found = forward_recursion(blocks, rule, c, start)
    return None if found is None else found[0]


def forward_recursion(blocks: Blocks, rule: str, c: float, start: Array) -> tuple[tuple[Array, ...], Array] | None:
    """The covariance recursion from Y_0 = diag(start): multipliers t, and Y of the output, shape (m, m).

    start: shape (n0,), positive: 1/kappa for the input ball sum kappa_i x_i^2 <= 1; a common factor changes no bound.
    None where it breaks down.
    """
    try:
        found = covariance(blocks, lambda gram, layer: choose_s(gram, rule, c), start)
    except IndefiniteError:
        return None
    with np.errstate(over="ignore", under="ignore"):
        t = tuple(np.ldexp(x, -2 * unit) for x, unit in zip(found.t, found.units, strict=True))
        return t, np.ldexp(found.ends, 2 * found.unit)


def path_weights(blocks: Blocks) -> Array:
    """Per input, the sum over all paths to the outputs of the moduli of weights and slopes; largest one, least 1e-9."""
    sums = {j: np.sum(np.abs(m), axis=0) for j, m in blocks.output.items()}
    for k in range(len(blocks.pre), 0, -1):
        if k in sums:
            above = sums.pop(k) * np.maximum(np.abs(blocks.alpha[k - 1]), np.abs(blocks.beta[k - 1]))
            for j, m in blocks.pre[k - 1].items():
                sums[j] = sums.get(j, 0.0) + above @ np.abs(m)
    weights = np.asarray(sums.get(0, np.zeros(blocks.sizes[0])))
    top = float(weights.max(initial=0.0))
    return np.maximum(weights / top, 1e-9) if 0.0 < top < np.inf else np.ones(blocks.sizes[0])


def closed_form_bound(blocks: Blocks, p: str, q: str, *, tied: bool = False) -> float:
    """The least bound on L_{p->q} that the rules give by themselves, in the scaled output; inf where none does.

    tied: only the rules with one multiplier for a whole layer. Of a large system only the first rule is tried.
    """
    rules = [(rule, c) for rule, c in RULES if rule == "spectral" or not tied]
    if sum(float(size) ** 3 for size in blocks.sizes) > CHEAP:
        rules = rules[:1]
    start = 1.0 / _kappa(blocks, p)
    price = 1.0 if p == "2" else float(np.sum(1.0 / start))
    least = float("inf")
    for rule, c in rules:
        found = forward_recursion(blocks, rule, c, start)
        if found is not None and np.all(np.isfinite(found[1])):
            top = top_eigenvalue(found[1])
            reach = min(blocks.outputs * top, float(np.sum(np.abs(found[1])))) if q == "1" else top
            least = min(least, float(np.sqrt(price * max(reach, 0.0))))
    return least


def closed_forms(blocks: Blocks, input_norm: str) -> Iterator[tuple[str, tuple[Array, ...]]]:
    """The multipliers of the closed forms, best first, each named by its rule.

    The l2 ball has equal weights kappa; for the l_inf ball, where they are free, the path weights are a good guess.
    """
    start = 1.0 / _kappa(blocks, input_norm)
    for rule, c in RULES:
        t = forward_multipliers(blocks, rule, c, start)
        if t is not None and all(np.all(np.isfinite(x)) and np.all(x > 0) for x in t):
            yield f"{rule}({c:g})", t
    if any(np.any(np.abs(a + b) < b - a) for a, b in zip(blocks.alpha, blocks.beta, strict=True)):
        # slopes of both signs: the recursion, which shifts them to [0, 1], may lose against the product of norms
        tight = backward_sweep(blocks, None, 0.0, slack=1e-6)
        if tight is not None:
            yield "product", tight.t
