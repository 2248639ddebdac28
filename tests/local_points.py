"""Random domains, points in them, and difference quotients: what tests of local domains share."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from lipmodel.spec import Ball, Box, Domain

Array = np.ndarray[Any, Any]
ORDER = {"1": 1, "2": 2, "inf": np.inf}


def random_domain(rng: np.random.Generator, size: int) -> Domain:
    """A box, sometimes with degenerate sides, or a ball, of any size."""
    scale = 10.0 ** rng.uniform(-3.0, 0.5)
    center = rng.standard_normal(size)
    if rng.random() < 0.5:
        return Ball(center, float(scale * rng.random()))
    half = scale * rng.random(size)
    if rng.random() < 0.3:
        half[rng.integers(size)] = 0.0
    return Box(center - half, center + half)


def points(domain: Any, norm: str, count: int, rng: np.random.Generator) -> Array:
    """Random points of a domain, many of them on its boundary, shape (inputs, count); inside up to rounding."""
    if isinstance(domain, Box):
        low, high = np.array(domain.lo)[:, None], np.array(domain.hi)[:, None]
        share = rng.random((len(low), count))
        return np.clip(low + (high - low) * np.where(rng.random(count) < 0.5, np.round(share), share), low, high)
    center = np.array(domain.center)
    gap = rng.standard_normal((len(center), count)) * (rng.random((len(center), count)) < 0.7)
    if norm == "inf":
        gap = np.where(rng.random(count) < 0.5, np.sign(gap), gap)
    length = np.maximum(np.linalg.norm(gap, ORDER[norm], axis=0), 1e-300)
    share = np.where(rng.random(count) < 0.5, 1.0, rng.random(count))
    return center[:, None] + gap / length * (share * domain.radius * (1.0 - 1e-15))


def quotients(net: Any, x: Array, p: str, q: str, rng: np.random.Generator) -> float:
    """About the largest difference quotient among pairs of columns of x, far and near, less what is mere rounding."""
    y = x[:, rng.permutation(x.shape[1])]
    near = x + (y - x) * 10.0 ** rng.uniform(-5.0, 0.0, x.shape[1])
    best = 0.0
    for other in (y, near):
        step = np.linalg.norm(other - x, ORDER[p], axis=0)
        first, second = net.evaluate(x), net.evaluate(other)
        moved = np.linalg.norm(second - first, ORDER[q], axis=0)
        moved -= 2.0**-46 * np.linalg.norm(np.abs(first) + np.abs(second), ORDER[q], axis=0)  # what rounding may add
        kept = step > 1e-7
        best = max(best, float(np.max(moved[kept] / step[kept], initial=0.0)))
    return best


def pieces(weights: list[Array], biases: list[Array], lo: float, hi: float) -> list[list[Fraction]]:
    """All slopes of a ReLU chain of one input on [lo, hi], in rational arithmetic, shape (pieces, outputs)."""
    grid = [Fraction(lo), Fraction(hi)]
    while True:
        values = [[t] for t in grid]
        crossing: list[Fraction] = []
        for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
            rows = [[Fraction(v) for v in row] for row in w.tolist()]
            offset = [Fraction(v) for v in b.tolist()]
            values = [[sum(a * c for a, c in zip(row, v, strict=True)) + o for row, o in zip(rows, offset, strict=True)]
                      for v in values]  # fmt: skip
            if k == len(weights) - 1:
                break
            for (s, a), (t, c) in pairwise(zip(grid, values, strict=True)):
                crossing += [s + (t - s) * u / (u - v) for u, v in zip(a, c, strict=True) if u * v < 0]
            if crossing:
                break
            values = [[max(e, Fraction(0)) for e in v] for v in values]
        if not crossing:
            steps = [(t - s, a, c) for (s, a), (t, c) in pairwise(zip(grid, values, strict=True))]
            return [[(v - u) / h for u, v in zip(a, c, strict=True)] for h, a, c in steps]
        grid = sorted({*grid, *crossing})


def squared(v: list[Fraction], norm: str) -> Fraction:
    if norm == "2":
        return sum((e * e for e in v), Fraction(0))
    return (sum(map(abs, v), Fraction(0)) if norm == "1" else max(map(abs, v))) ** 2
