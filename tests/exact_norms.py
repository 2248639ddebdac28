"""Induced norms by enumeration in rational arithmetic, and matrices of every kind."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np

PAIRS = list(itertools.product(("1", "2", "inf"), repeat=2))
EASY = [(p, q) for p, q in PAIRS if p == "1" or q == "inf"]
HARD = [("inf", "1"), ("inf", "2"), ("2", "1")]


def fractions(a):
    return [[Fraction(float(v)) for v in row] for row in np.atleast_2d(a)]


def size_squared(vector, norm):
    if norm == "1":
        return sum(abs(v) for v in vector) ** 2
    return sum(v * v for v in vector) if norm == "2" else max(abs(v) for v in vector) ** 2


def exact_square(a, p, q):
    """||A||_{p->q}^2 as a fraction, by enumeration of the extreme points; not for 2->2."""
    dual = {"1": "inf", "2": "2", "inf": "1"}
    columns = list(zip(*a, strict=True))
    if p == "1":
        return max(size_squared(c, q) for c in columns)
    if q == "inf":
        return max(size_squared(row, dual[p]) for row in a)
    if p == "inf":
        images = ([sum(s * v for s, v in zip(signs, row, strict=True)) for row in a] for signs in cube(len(columns)))
        return max(size_squared(y, q) for y in images)
    return exact_square(columns, "inf", "2")  # 2->1 is the adjoint of inf->2


def cube(n):
    return itertools.product((1, -1), repeat=n)


def is_semidefinite(a):
    """Whether a symmetric matrix of fractions is positive semidefinite, by elimination."""
    a = [list(row) for row in a]
    for k in range(len(a)):
        if a[k][k] < 0 or (a[k][k] == 0 and any(a[k][j] != 0 for j in range(k, len(a)))):
            return False
        for i in range(k + 1, len(a)):
            factor = a[i][k] / a[k][k] if a[k][k] else Fraction(0)
            for j in range(k, len(a)):
                a[i][j] -= factor * a[k][j]
    return True


def is_norm_at_most(a, p, q, bound):
    """Whether ||A||_{p->q} <= bound, decided exactly."""
    if (p, q) != ("2", "2"):
        return exact_square(a, p, q) <= bound * bound
    gram = [[sum(x * y for x, y in zip(r, s, strict=True)) for s in a] for r in a]
    return is_semidefinite(
        [[(bound * bound if i == j else 0) - v for j, v in enumerate(r)] for i, r in enumerate(gram)]
    )


def random_matrix(rng, kind):
    m, n = rng.integers(1, 6, 2)
    a = rng.standard_normal((m, n))
    if kind == "wide range":
        return a * 10.0 ** rng.uniform(-300, 300, (m, n))
    if kind == "subnormal":
        return a * 10.0 ** rng.uniform(-323, -305, (m, n))
    if kind in ("1e38", "1e-38"):
        return a * float(kind)
    if kind == "small integers":
        return rng.integers(-3, 4, (m, n)).astype(float)
    if kind == "grid":
        return rng.integers(-(2**24), 2**24, (m, n)) * 2.0**-24
    if kind == "sparse":
        return a * (rng.random((m, n)) < 0.3)
    if kind == "rank one":
        return np.outer(a[:, 0], a[0])
    return a


KINDS = ["normal", "wide range", "subnormal", "1e38", "1e-38", "small integers", "grid", "sparse", "rank one"]
