"""The backward sweep: block LDL' of the LipSDP matrix (Fazlyab et al. 2019, arXiv 1906.04893), raising multipliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from lipmodel.elimination.blocks import Array, Blocks, cholesky, top_eigenvalue


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
        chol = cholesky(np.diag(2.0 * tk) - gram)
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
    if cholesky((1.0 - margin) * np.eye(n) - root[:, None] * gram * root) is not None:
        return t
    level = top_eigenvalue(root[:, None] * gram * root)
    return t * (level / (1.0 - margin)) * (1.0 + 1e-14) if level > 1.0 - margin else t
