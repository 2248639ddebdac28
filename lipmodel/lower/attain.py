"""Where an induced norm is attained: directions v with ||J v||_q / ||v||_p as large as can be found, in floating point.

Exact (up to rounding) for 1->q (a column), p->inf (the dual vector of a row), 2->2 (a singular vector), and by
enumeration of signs where one side is small; otherwise alternating ascent from several starts, which finds a local
maximum (Boyd 1974, Linear Algebra Appl. 9:95; for inf->1 and inf->2 the norm is NP-hard).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lipmodel.lower.balls import Array
from lipmodel.spec import Norm, dual

ENUMERATED = 11
"""Sign vectors of at most this length (less one) are enumerated."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attained:
    """For each of k matrices: value = ||J v||_q with ||v||_p = 1, and u with ||u||_{q*} = 1, u'Jv = value.

    value: (k,), v: (k, n), u: (k, m).
    """

    value: Array
    v: Array
    u: Array


def vector_norm(x: Array, norm: Norm) -> Array:
    """Norms along the last axis."""
    if norm == "1":
        return np.asarray(np.sum(np.abs(x), axis=-1))
    if norm == "inf":
        return np.asarray(np.max(np.abs(x), axis=-1, initial=0.0))
    scale = np.max(np.abs(x), axis=-1, initial=0.0, keepdims=True)
    safe = np.where((scale > 0) & np.isfinite(scale), scale, 1.0)
    return np.asarray(np.sqrt(np.sum((x / safe) ** 2, axis=-1)) * safe[..., 0])


def attaining(x: Array, norm: Norm) -> Array:
    """Along the last axis: v with ||v||_norm = 1 and v'x = ||x||_dual(norm)."""
    if norm == "inf":
        return np.where(x < 0, -1.0, 1.0)
    if norm == "1":
        v = np.zeros(x.shape)
        best = np.argmax(np.abs(x), axis=-1, keepdims=True)
        np.put_along_axis(v, best, np.where(np.take_along_axis(x, best, axis=-1) < 0, -1.0, 1.0), axis=-1)
        return v
    length = vector_norm(x, "2")[..., None]
    even = np.full(x.shape, 1.0 / np.sqrt(max(1, x.shape[-1])))
    return np.where(length > 0, x / np.where(length > 0, length, 1.0), even)


@lru_cache(maxsize=16)
def sign_vectors(n: int) -> Array:
    """All sign vectors of length n up to sign: shape (2^(n-1), n)."""
    bits = (np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1
    return 1.0 - 2.0 * bits


def attain(jacobians: Array, p: Norm, q: Norm, *, thorough: bool = False) -> Attained:
    """Directions that attain ||J||_{p->q}, or nearly, for jacobians of shape (k, m, n).

    thorough: enumerate longer sign vectors, and start the ascent from more of them.
    """
    m, n = jacobians.shape[1:]
    if p == "1":
        columns = vector_norm(np.swapaxes(jacobians, 1, 2), q)
        best = np.argmax(columns, axis=1)
        v = np.zeros((len(jacobians), n))
        v[np.arange(len(v)), best] = 1.0
        return _finish(jacobians, v, q)
    if q == "inf" or m == 1:
        best = np.argmax(vector_norm(jacobians, dual(p)), axis=1)
        return _finish(jacobians, attaining(jacobians[np.arange(len(best)), best], p), q)
    if n == 1:
        return _finish(jacobians, np.ones((len(jacobians), 1)), q)
    if (p, q) == ("2", "2"):
        return _finish(jacobians, _singular(jacobians, thorough), q)
    limit = ENUMERATED if thorough else 6
    if p == "inf" and n <= limit:
        return _finish(jacobians, _best(jacobians, sign_vectors(n)[None], q), q)
    if q == "1" and (m <= limit or p == "2"):
        # ||J||_{p->1} = max over signs t of ||J't||_{p*}
        if m <= limit:
            t = _best(np.swapaxes(jacobians, 1, 2), sign_vectors(m)[None], dual(p))
        else:
            t = _ascent(np.swapaxes(jacobians, 1, 2), dual(p), thorough)
        images = np.matmul(t[:, None, :], jacobians)[:, 0, :]
        return _finish(jacobians, attaining(images, p), q)
    return _finish(jacobians, _ascent(jacobians, q, thorough), q)


def _finish(jacobians: Array, v: Array, q: Norm) -> Attained:
    image = np.matmul(jacobians, v[:, :, None])[:, :, 0]
    return Attained(value=vector_norm(image, q), v=v, u=attaining(image, dual(q)))


def _best(jacobians: Array, candidates: Array, q: Norm) -> Array:
    """For every matrix the best of the candidates, shape (k or 1, s, n)."""
    images = np.matmul(candidates, np.swapaxes(jacobians, 1, 2))
    best = np.argmax(vector_norm(images, q), axis=1)
    candidates = np.broadcast_to(candidates, (len(jacobians), *candidates.shape[1:]))
    return np.asarray(candidates[np.arange(len(best)), best])


def _singular(jacobians: Array, thorough: bool) -> Array:
    """Leading right singular vectors; squaring the smaller side is accurate enough to rank, not to finish."""
    m, n = jacobians.shape[1:]
    if thorough:
        return np.asarray(np.linalg.svd(jacobians, full_matrices=False)[2][:, 0, :])
    scale = np.max(np.abs(jacobians), axis=(1, 2), keepdims=True)
    scaled = jacobians / np.where(scale > 0, scale, 1.0)
    if m <= n:
        _, vectors = np.linalg.eigh(scaled @ np.swapaxes(scaled, 1, 2))
        return attaining(np.matmul(np.swapaxes(scaled, 1, 2), vectors[:, :, -1:])[:, :, 0], "2")
    _, vectors = np.linalg.eigh(np.swapaxes(scaled, 1, 2) @ scaled)
    return np.asarray(vectors[:, :, -1])


def _ascent(jacobians: Array, q: Norm, thorough: bool) -> Array:
    """Sign vectors v with ||Jv||_q large: alternating ascent from the best rows, a singular vector and fixed noise."""
    m = jacobians.shape[1]
    count = 8 if thorough else 2
    order = np.argsort(-vector_norm(jacobians, "1"), axis=1)[:, :count]
    rows = np.take_along_axis(jacobians, order[:, :, None], axis=1)
    noise = np.random.default_rng(7).standard_normal((count, m)) @ jacobians
    v = attaining(np.concatenate([rows, noise, _singular(jacobians, False)[:, None, :]], axis=1), "inf")
    value = np.zeros(v.shape[:2])
    for _ in range(60 if thorough else 12):
        image = np.matmul(v, np.swapaxes(jacobians, 1, 2))
        now = vector_norm(image, q)
        if np.all(now <= value * (1.0 + 1e-13)):
            break
        value = now
        v = attaining(np.matmul(attaining(image, dual(q)), jacobians), "inf")
    best = _best(jacobians, v, q)
    return np.array([_flipped(j, w, q) for j, w in zip(jacobians, best, strict=True)]) if thorough else best


def _flipped(jacobian: Array, v: Array, q: Norm) -> Array:
    """v after single sign changes, the best first, until none helps."""
    v = v.copy()
    image = jacobian @ v
    value = float(vector_norm(image, q))
    for _ in range(4 * len(v)):
        others = image - 2.0 * (jacobian * v).T
        sizes = vector_norm(others, q)
        best = int(np.argmax(sizes))
        if sizes[best] <= value * (1.0 + 1e-12):
            break
        v[best], image, value = -v[best], others[best], float(sizes[best])
    return v
