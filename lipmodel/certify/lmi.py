"""The quadratic-constraint inequality of a network as a block matrix, from the system and its multipliers.

For increments z = (x, w_1, ..., w_K) of a network in Lur'e form, v_k = sum_j A_kj z_j, w_k = s_k v_k with slopes s_k in
[alpha_k, beta_k], y = sum_j C_j z_j, and multipliers t >= 0, g >= 0, s > 0, the matrix

    P = [ E0' diag(g) E0 + sum_j t_j (u_j r_j' + r_j u_j')    -C'     ]     u_j = (row j of w) - alpha_j (row j of v)
        [ -C                                                  diag(s) ]     r_j = (row j of w) - beta_j  (row j of v)

being positive semidefinite implies dy' diag(s)^-1 dy <= dx' diag(g) dx for all pairs of inputs (Fazlyab, Robey,
Hassani, Morari & Pappas 2019, arXiv 1906.04893; other norms: Wang, Prakriya & Jha 2022, arXiv 2203.01212). By blocks:

    (0, 0) += diag(g)        (k, k) += 2 diag(t_k)                         (k, j) -= diag((alpha_k + beta_k) t_k) A_kj
    (K+1, K+1) = diag(s)     (i, j) += 2 A_ki' diag(alpha_k beta_k t_k) A_kj        (K+1, j) = -C_j
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from lipmodel.certify import kernel
from lipmodel.certify.kernel import fault
from lipmodel.ranges.enclosure import INFLATE, TINY, Array, MatrixEnclosure, U


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FloatSystem:
    """A network in Lur'e form, its blocks known up to an entrywise error.

    Signal 0 is the input, signal k >= 1 the post-activation of activation k; all are increments.
    sizes: the sizes n_0, ..., n_K. pre[k-1][j]: block A_kj, shape (n_k, n_j), j < k. alpha[k-1], beta[k-1]: slopes,
    shape (n_k,). output[j]: block C_j, shape (m, n_j). Absent blocks are zero. groups[k-1]: labels of entries that act
    as one vector and share a multiplier, shape (n_k,), or None (no groups at all: none anywhere).
    """

    sizes: tuple[int, ...]
    pre: tuple[dict[int, MatrixEnclosure], ...]
    alpha: tuple[Array, ...]
    beta: tuple[Array, ...]
    output: dict[int, MatrixEnclosure]
    groups: tuple[Array | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Multipliers(kernel.Multipliers):
    """What is certified: t >= 0 per activation, shape (n_k,); g >= 0 per input, (n_0,); s > 0 per output, (m,)."""

    t: tuple[Array, ...]
    g: Array
    s: Array

    def claim(self, p: str, q: str) -> float:
        """The bound on L_{p->q} that they give if they satisfy the inequality, in floating point; p = 1 like 2."""
        with np.errstate(all="ignore"):
            left = np.sum(self.g) if p == "inf" else np.max(self.g, initial=0.0)
            right = np.sum(self.s) if q == "1" else np.max(self.s, initial=0.0)
            return float(np.sqrt(left) * np.sqrt(right))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockSymmetric:
    """A real symmetric block matrix known up to an entrywise error.

    blocks[i, j], i >= j: dense enclosure of shape (sizes[i], sizes[j]); absent blocks are zero. Of a diagonal block
    only the lower triangle counts. diagonals[i]: the block (i, i) where it is diagonal and exact; it has no other.
    """

    sizes: tuple[int, ...]
    blocks: dict[tuple[int, int], MatrixEnclosure]
    diagonals: dict[int, Array] = field(default_factory=dict)

    def expanded(self) -> dict[tuple[int, int], MatrixEnclosure]:
        """All blocks alike."""
        return {**self.blocks, **{(i, i): MatrixEnclosure(center=np.diag(d)) for i, d in self.diagonals.items()}}


def lmi_enclosure(system: FloatSystem, multipliers: Multipliers) -> BlockSymmetric:
    """The matrix P of the inequality with a proved entrywise error, blocks 0..K and the output slack K+1.

    Entries that overflow come out non-finite, which every proof refuses. Raises ValueError where `fault` finds one.
    """
    reason = fault(system, multipliers)
    if reason is not None:
        raise ValueError(reason)
    slack = len(system.sizes)
    parts: dict[tuple[int, int], list[MatrixEnclosure]] = defaultdict(list)
    with np.errstate(all="ignore"):
        for j, block in system.output.items():
            dense = block.dense()
            parts[slack, j].append(MatrixEnclosure(center=-dense.center, radius=dense.radius))
        for k, form in enumerate(system.pre, start=1):
            alpha, beta, t = system.alpha[k - 1], system.beta[k - 1], multipliers.t[k - 1]
            form = {j: block.dense() for j, block in form.items()}
            cross = _times(*_sum(-alpha, -beta), t)
            for j, block in form.items():
                parts[k, j].append(_scaled_rows(cross, block))
            bent = np.flatnonzero((alpha != 0) & (beta != 0) & (t != 0))
            if bent.size == 0:
                continue
            product = alpha[bent] * beta[bent]
            curvature = _times(product, 2.0 * U * np.abs(product) + TINY, 2.0 * t[bent])
            rows = {j: _rows(block, bent) for j, block in form.items()}
            weighted = {j: _scaled_rows(curvature, block) for j, block in rows.items()}
            for i in rows:
                for j in rows:
                    if i >= j:
                        parts[i, j].append(contraction(rows[i], weighted[j]))
        diagonals = dict(enumerate((multipliers.g, *(2.0 * t for t in multipliers.t), multipliers.s)))
        for k in [k for k in diagonals if (k, k) in parts]:
            parts[k, k].insert(0, MatrixEnclosure(center=np.diag(diagonals.pop(k))))
        blocks = {key: reduce(lambda a, b: a + b, terms) for key, terms in parts.items()}
    return BlockSymmetric(sizes=(*system.sizes, len(multipliers.s)), blocks=blocks, diagonals=diagonals)


def contraction(left: MatrixEnclosure, right: MatrixEnclosure, *, chunk: int = 128) -> MatrixEnclosure:
    """Enclosure of left' right, shapes (k, m) and (k, n), dense; summed in chunks, which keeps the error small."""
    k = left.shape[0]
    pieces = (slice(start, start + chunk) for start in range(0, k, chunk))
    product = reduce(lambda a, b: a + b, (_rows(left, rows).transpose() @ _rows(right, rows) for rows in pieces))
    if product.radius is None:
        return product
    # a column without entries gives exact zeros: the allowance for underflow must not blur the sparsity of P
    radius = product.radius * np.outer(np.any(left.magnitude() != 0, axis=0), np.any(right.magnitude() != 0, axis=0))
    return MatrixEnclosure(center=product.center, radius=radius)


def _times(factor: Array, error: Array, t: Array) -> tuple[Array, Array]:
    """factor * t and its error, where `factor` is known up to `error`; exact for factors 0 and +-1."""
    center = factor * t
    exact = (error == 0) & ((factor == 0) | (np.abs(factor) == 1.0))
    radius = 2.0 * U * np.abs(center) + error * t + np.where(t != 0, TINY, 0.0)
    return center, np.where(exact, 0.0, radius * INFLATE)


def _scaled_rows(scale: tuple[Array, Array], block: MatrixEnclosure) -> MatrixEnclosure:
    """Enclosure of diag(scale) block; exact zeros stay exact zeros."""
    center, error = scale[0][:, None], scale[1][:, None]
    size = block.magnitude()
    product = center * block.center
    radius = 2.0 * U * np.abs(product) + error * size
    if block.radius is not None:
        radius = radius + np.abs(center) * block.radius
    present = (size != 0) & ((center != 0) | (error != 0))
    return MatrixEnclosure(center=product, radius=(radius + np.where(present, TINY, 0.0)) * INFLATE)


def _sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b and its error, zero where nothing was rounded (TwoSum: Knuth)."""
    total = a + b
    back = total - a
    rounded = (a - (total - back)) + (b - back) != 0
    return total, np.where(rounded, 2.0 * U * np.abs(total), 0.0)


def _rows(block: MatrixEnclosure, rows: Any) -> MatrixEnclosure:
    return MatrixEnclosure(center=block.center[rows], radius=None if block.radius is None else block.radius[rows])
