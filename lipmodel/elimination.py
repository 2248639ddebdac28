"""Block elimination of an increment system: the recursion behind closed forms, starting points and the repair.

All of this is floating point and untrusted: it finds good multipliers, and `certify` proves what they give. Slopes are
arbitrary, the graph is any DAG. Sources: the covariance ("S") recursion generalises ECLipsE (Xu & Sivaranjani 2024,
arXiv 2404.04375) and the closed-form points of Syed & Hu (2025, arXiv 2503.14297); the backward sweep is the block LDL'
factorisation of the LipSDP matrix (Fazlyab et al. 2019, arXiv 1906.04893).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as sla

Array = np.ndarray[Any, np.dtype[np.float64]]

RULES: tuple[tuple[str, float], ...] = (
    ("row-sum", 1.4),
    ("row-sum", 1.0),
    ("row-sum", 1.7),
    ("spectral", 1.0),
    ("spectral", 1.4),
    ("gershgorin", 1.0),
    ("gershgorin", 1.9),
)
"""Rules for the diagonal S of the recursion and their constants, the best ones first."""


CHEAP = 3e7
"""Cubed sizes of the signals up to which all rules are tried where one is enough."""
SMALL = 32
"""Orders up to which all eigenvalues are found in less time than one is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """The matrices of an increment system, dense, signal 0 the input, signal k the k-th activation's output.

    pre[k-1][j]: (n_k, n_j) block of the k-th pre-activation; output[j]: (m, n_j); scale[k]: the power of two by which
    signal k was divided (1 for the input), scale_out the same for the output. groups: per activation, labels of the
    entries that share a multiplier (see `FloatSystem`).
    """

    sizes: tuple[int, ...]
    pre: tuple[dict[int, Array], ...]
    alpha: tuple[Array, ...]
    beta: tuple[Array, ...]
    output: dict[int, Array]
    outputs: int
    scale: tuple[float, ...]
    scale_out: float
    groups: tuple[Any, ...] = ()

    def tied(self, k: int, values: Array) -> Array:
        """Multipliers of activation k, or what bounds them from below: the largest of every group for all of it."""
        return tied(self.groups[k - 1], values) if self.groups else values


def tied(labels: Array | None, values: Array) -> Array:
    """Values, shape (n,), made the same all over a group: its largest one. None: every entry is by itself."""
    if labels is None:
        return values
    _, group = np.unique(labels, return_inverse=True)
    largest = np.full(int(group.max()) + 1, -np.inf)
    np.maximum.at(largest, group, values)
    return largest[group]


def scaled_blocks(system: Any) -> Blocks:
    """The blocks of a `FloatSystem` with every signal scaled to gain of order one, by powers of two (exact).

    Raises ValueError where the output reads no signal: such a network is constant, and there is nothing to scale.
    """
    if not system.output:
        raise ValueError("the output reads no signal: the network is constant")
    gains = [1.0]
    for pre, alpha, beta in zip(system.pre, system.alpha, system.beta, strict=True):
        slope = float(np.max(np.maximum(np.abs(alpha), np.abs(beta)), initial=0.0))
        reach = sum(_size(m.center) * gains[j] for j, m in pre.items())
        gains.append(_power_of_two(slope * reach))
    out = _power_of_two(sum(_size(m.center) * gains[j] for j, m in system.output.items()))
    pre_scaled = tuple(
        {j: m.center * (gains[j] / gains[k]) for j, m in pre.items()} for k, pre in enumerate(system.pre, start=1)
    )
    return Blocks(
        sizes=tuple(system.sizes),
        pre=pre_scaled,
        alpha=system.alpha,
        beta=system.beta,
        output={j: m.center * (gains[j] / out) for j, m in system.output.items()},
        outputs=next(iter(system.output.values())).shape[0],
        scale=tuple(gains),
        scale_out=out,
        groups=tuple(system.groups),
    )


def _size(a: Array) -> float:
    """A cheap estimate of the spectral norm, from below: ten power steps from the largest row."""
    if a.size == 0 or not np.any(a):
        return 0.0
    top = float(np.max(np.abs(a)))
    b = a / top
    x = b[int(np.argmax(np.sum(b * b, axis=1)))]
    for _ in range(10):
        x = b.T @ (b @ x)
        norm = float(np.linalg.norm(x))
        if norm == 0.0:
            return top
        x /= norm
    return top * float(np.linalg.norm(b @ x))


def spectral_estimate(m: Any) -> float:
    """A cheap estimate of the spectral norm of a LinearMap, without expanding it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(m.shape[1])
    value = 0.0
    for _ in range(12):
        norm = float(np.linalg.norm(x))
        if norm == 0.0 or not np.isfinite(norm):
            return value
        y = m.matvec(x / norm)
        value = float(np.linalg.norm(y))
        x = m.rmatvec(y)
    return value


def _power_of_two(value: float) -> float:
    if not np.isfinite(value) or value <= 0.0:
        return 1.0
    return float(2.0 ** np.clip(np.round(np.log2(value)), -900, 900))


def top_eigenvalue(a: Array) -> float:
    """The largest eigenvalue of a symmetric matrix (an estimate, like everything here)."""
    n = a.shape[0]
    if n == 0:
        return 0.0
    if n == 1:
        return float(a[0, 0])
    if not np.all(np.isfinite(a)):
        return float("inf")
    try:
        if n <= SMALL:
            return float(np.linalg.eigvalsh(a)[-1])
        return float(sla.eigh(a, eigvals_only=True, subset_by_index=[n - 1, n - 1], check_finite=False)[0])
    except (np.linalg.LinAlgError, ValueError):
        return float(np.linalg.eigvalsh(a)[-1])  # the subset driver fails on clustered spectra


def choose_s(gram: Array, rule: str, c: float) -> Array:
    """The diagonal of S for one layer with Gram matrix G = H Y H'; 2 S - G is positive definite for 0 < c < 2."""
    n = gram.shape[0]
    row_sums = np.sum(np.abs(gram), axis=1)
    floor = 1e-9 * float(row_sums.max(initial=0.0)) or 1e-12  # (a layer that nothing reaches)
    if rule == "gershgorin":
        return np.asarray(np.maximum(row_sums, floor) / c)
    if rule == "spectral":
        return np.full(n, max(top_eigenvalue(gram), floor) / c)
    q = np.maximum(row_sums, floor)
    root = 1.0 / np.sqrt(q)
    return np.asarray(max(top_eigenvalue(root[:, None] * gram * root), 1e-9) * q / c)


@np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore")
def forward_multipliers(blocks: Blocks, rule: str, c: float, start: Array) -> tuple[Array, ...] | None:
    """Multipliers t of a closed form, None where its recursion breaks down; start as in `forward_recursion`."""
    found = forward_recursion(blocks, rule, c, start)
    return None if found is None else found[0]


@np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore")
def forward_recursion(blocks: Blocks, rule: str, c: float, start: Array) -> tuple[tuple[Array, ...], Array] | None:
    """The covariance recursion from Y_0 = diag(start): multipliers t, and Y of the output, shape (m, m).

    start: shape (n0,), positive: 1/kappa for the input ball sum kappa_i x_i^2 <= 1; a common factor changes no bound.
    The invariant is u u' << Y for the increments of every tensor u that inputs of this ball give. None where it breaks
    down.
    """
    live: list[int] = [0]
    last_use = [0] * len(blocks.sizes)
    for k, pre in enumerate(blocks.pre, start=1):
        for j in pre:
            last_use[j] = max(last_use[j], k)
    for j in blocks.output:
        last_use[j] = len(blocks.sizes)
    cov = np.diag(np.asarray(start, dtype=np.float64))
    scales: list[Array] = []
    for k, pre in enumerate(blocks.pre, start=1):
        a, span = blocks.alpha[k - 1], blocks.beta[k - 1] - blocks.alpha[k - 1]
        h = np.hstack([pre[j] if j in pre else np.zeros((blocks.sizes[k], blocks.sizes[j])) for j in live])
        hy = h @ cov
        gram = hy @ h.T
        s = blocks.tied(k, choose_s(gram, rule, c))
        chol = _cholesky(np.diag(2.0 * s) - gram)
        if chol is None:
            return None
        r = sla.solve_triangular(chol, np.hstack([hy, np.diag(s)]), lower=True, check_finite=False)
        n = cov.shape[0]
        full = np.zeros((n + len(s), n + len(s)))
        full[:n, :n] = cov
        full += r.T @ r
        # w = alpha v + span w~, w~ the [0, 1] part that was appended
        rows = a[:, None] * (h @ full[:n, :]) + span[:, None] * full[n:, :]
        corner = (rows[:, :n] @ h.T) * a[None, :] + rows[:, n:] * span[None, :]
        cov = np.block([[full[:n, :n], rows[:, :n].T], [rows[:, :n], 0.5 * (corner + corner.T)]])
        scales.append(s)
        live.append(k)
        keep = [j for j in live if last_use[j] > k]
        if keep != live:
            index = _index_of(live, keep, blocks.sizes)
            cov, live = cov[np.ix_(index, index)], keep
        if not np.all(np.isfinite(cov)):
            return None
    out = np.hstack([blocks.output.get(j, np.zeros((blocks.outputs, blocks.sizes[j]))) for j in live])
    t = tuple(1.0 / (s * (b - a) ** 2) for s, a, b in zip(scales, blocks.alpha, blocks.beta, strict=True))
    return t, out @ cov @ out.T


def _index_of(live: Sequence[int], keep: Sequence[int], sizes: Sequence[int]) -> Array:
    parts, offset = [], 0
    for j in live:
        if j in keep:
            parts.append(np.arange(offset, offset + sizes[j]))
        offset += sizes[j]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _cholesky(a: Array) -> Array | None:
    if not np.all(np.isfinite(a)):
        return None
    factor, info = sla.lapack.dpotrf(a, lower=1, clean=1)
    diagonal = np.diag(factor)
    if info != 0 or not np.all(np.isfinite(diagonal)) or not np.all(diagonal > 0):
        return None
    return np.asarray(factor)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reduced:
    """What is left of the inequality when the hidden signals are eliminated: diag(g, s) >= N.

    t: the multipliers used (raised where the elimination needed it); ends: N, shape (n0 + m, n0 + m), x then output.
    """

    t: tuple[Array, ...]
    ends: Array
    inputs: int


@np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore")
def backward_sweep(blocks: Blocks, t: Sequence[Array] | None, margin: float, *, slack: float = 1.0) -> Reduced | None:
    """Eliminate the activations from the last to the first, raising t just enough that every pivot is definite.

    t: per activation, or None to choose it from scratch, which works for every network and any slopes. margin: how far
    below one the largest eigenvalue of (2T)^-1/2 G (2T)^-1/2 is kept for a given t. slack: how far above the least
    feasible t a chosen one is, relative to it, at least. On a chain slack -> 0 gives the product of the layers' norms.
    """
    count, m = len(blocks.pre), blocks.outputs
    dual = count + 1
    rows: dict[int, dict[int, Array]] = {k: {} for k in range(dual + 1)}  # rows[i][j], i >= j; the dual row is last

    def add(i: int, j: int, value: Array) -> None:
        i, j, value = (i, j, value) if i >= j else (j, i, value.T)
        rows[i][j] = rows[i][j] + value if j in rows[i] else value

    for j, block in blocks.output.items():
        add(dual, j, -block)
    used: list[Array] = [np.zeros(0)] * count
    for k in range(count, 0, -1):
        pre, a, b = blocks.pre[k - 1], blocks.alpha[k - 1], blocks.beta[k - 1]
        gram = -rows[k].pop(k, np.zeros((blocks.sizes[k], blocks.sizes[k])))
        lift = _lift(a, b)
        if t is None:
            tk = _chosen(gram, np.maximum(lift, slack))
        else:
            coupling = rows[dual].get(k, np.zeros((m, blocks.sizes[k])))
            tk = blocks.tied(k, _raised(gram, t[k - 1], lift, margin, np.linalg.norm(coupling, axis=0)))
        chol = _cholesky(np.diag(2.0 * tk) - gram)
        if chol is None:
            return None
        used[k - 1] = tk
        neighbours = list(pre)
        for j in neighbours:
            add(k, j, -((a + b) * tk)[:, None] * pre[j])
        curve = 2.0 * a * b * tk
        if np.any(curve):
            for p, i in enumerate(neighbours):
                for j in neighbours[: p + 1]:
                    add(i, j, pre[i].T @ (curve[:, None] * pre[j]))
        column = dict(rows[k])
        column.update({i: rows[i].pop(k).T for i in range(k + 1, dual + 1) if k in rows[i]})
        solved = {j: sla.solve_triangular(chol, block, lower=True, check_finite=False) for j, block in column.items()}
        keys = sorted(solved)
        for p, i in enumerate(keys):
            for j in keys[: p + 1]:
                add(i, j, -solved[i].T @ solved[j])
        rows[k] = {}
    n0 = blocks.sizes[0]
    ends = np.zeros((n0 + m, n0 + m))
    ends[:n0, :n0] = -rows[0].get(0, np.zeros((n0, n0)))
    ends[n0:, n0:] = -rows[dual].get(dual, np.zeros((m, m)))
    ends[n0:, :n0] = -rows[dual].get(0, np.zeros((m, n0)))
    ends[:n0, n0:] = ends[n0:, :n0].T
    ends = 0.5 * (ends + ends.T)
    return Reduced(t=tuple(used), ends=ends, inputs=n0) if np.all(np.isfinite(ends)) else None


def _lift(alpha: Array, beta: Array) -> Array:
    """How far above the least feasible t the best t of a neuron is, relative to it.

    With gram = c I and one slope interval, what a layer passes on to v'v is least, c max(alpha^2, beta^2), for
    2 t = c (1 + |alpha + beta| / (beta - alpha)).
    """
    span = np.maximum(beta - alpha, 1e-6 * np.maximum(np.abs(alpha), np.abs(beta)) + 1e-300)
    return np.asarray(np.abs(alpha + beta) / span)


def _chosen(gram: Array, lift: Array) -> Array:
    """The multipliers of one layer from scratch, 2 diag(t) - gram definite."""
    level = max(top_eigenvalue(gram), 1e-12 * float(np.max(np.abs(gram), initial=0.0)))
    return 0.5 * (level if level > 0.0 else 1.0) * (1.0 + lift)


def _raised(gram: Array, t: Array, lift: Array, margin: float, coupling: Array) -> Array:
    """t made large enough that 2 diag(t) - gram is definite; what is missing is guessed from the other neurons.

    coupling: how strongly every neuron acts on the output, shape (n,); a t that is too small there weighs 1/t.
    """
    n = gram.shape[0]
    top = float(np.max(np.abs(gram), initial=0.0))
    own = np.maximum(np.diag(gram), 0.0)
    given = np.isfinite(t) & (t > 0.0)
    # Neurons that feed nothing, or that nothing feeds, may carry any t: the others must not be measured by theirs.
    usual = float(np.median(t[given])) if np.any(given) else 0.0
    least = 1e-13 * max(usual, top) or 1.0
    used = given & (own > 0.0)
    ratio = min(float(np.median(t[used] / own[used])), 1e12) if np.any(used) else 0.0
    acting = given & (coupling > 0.0)
    felt = coupling * float(np.median(t[acting] / coupling[acting])) if np.any(acting) else 0.0 * coupling
    missing = np.maximum(own * np.maximum(ratio, 0.5 + 0.5 * np.maximum(lift, 1.0)), np.maximum(felt, least))
    t = np.maximum(np.where(given, t, missing), 0.5 * own * (1.0 + 1e-9))
    root = 1.0 / np.sqrt(2.0 * t)
    if not np.any(gram):
        return t
    if _cholesky((1.0 - margin) * np.eye(n) - root[:, None] * gram * root) is not None:
        return t
    level = top_eigenvalue(root[:, None] * gram * root)
    return t * (level / (1.0 - margin)) * (1.0 + 1e-14) if level > 1.0 - margin else t


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
    start = np.ones(blocks.sizes[0]) if p == "2" else 1.0 / path_weights(blocks)
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
    start = np.ones(blocks.sizes[0]) if input_norm == "2" else 1.0 / path_weights(blocks)
    for rule, c in RULES:
        t = forward_multipliers(blocks, rule, c, start)
        if t is not None and all(np.all(np.isfinite(x)) and np.all(x > 0) for x in t):
            yield f"{rule}({c:g})", t
    if any(np.any(np.abs(a + b) < b - a) for a, b in zip(blocks.alpha, blocks.beta, strict=True)):
        # slopes of both signs: the recursion, which shifts them to [0, 1], may lose against the product of norms
        tight = backward_sweep(blocks, None, 0.0, slack=1e-6)
        if tight is not None:
            yield "product", tight.t
