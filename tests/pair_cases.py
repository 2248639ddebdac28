"""Couplings of two neurons for the tests of pairs, and models with them solved."""

from __future__ import annotations

import numpy as np

from lipmodel.backends import backend
from lipmodel.backends.base import SolveOptions
from lipmodel.certify.pair_search import mended, prove_coupled, read_point
from lipmodel.certify.pairs import BELOW, FLIP, TRIANGLE, check_coupled
from lipmodel.network.increments import exact_system

FLIPS = np.outer(FLIP, FLIP)


def square(entries, places=TRIANGLE):
    matrix = np.zeros((4, 4))
    for (i, j), v in zip(places, entries, strict=True):
        matrix[i, j] = matrix[j, i] = v
    return matrix


def coupling(matrix, plain, flipped, first=(0, 0), second=(0, 1)):
    below = [np.array([part[i, j] for i, j in BELOW]) for part in (plain, flipped)]
    return mended(first, second, np.array([matrix[i, j] for i, j in TRIANGLE]), *below)


def random_coupling(rng, first=(0, 0), second=(0, 1)):
    """A random M with M = P1 + N1 for random P1, N1, and N2 what is left over; mended where that is not enough."""
    half = rng.standard_normal((4, rng.integers(1, 4)))
    plain = np.abs(rng.standard_normal((4, 4))) * (rng.random((4, 4)) < 0.5)
    plain = np.tril(plain, -1) + np.tril(plain, -1).T
    matrix = half @ half.T + plain
    flipped = np.maximum(matrix * FLIPS, 0.0) * rng.random()
    return coupling(matrix, plain, flipped - np.diag(np.diag(flipped)), first, second)


def solved(model, tol=1e-7):
    return backend("clarabel").solve(model, SolveOptions(tol=tol))


def proved_by(model, system, p="2", q="2"):
    """(claim, what is proved) of a model with pairs, without anything else that a solve would do."""
    point = solved(model)
    exact = exact_system(system)
    found = prove_coupled(exact, (p, q), read_point(model, system, point.values), None)
    assert found is not None
    check_coupled(exact, found.multipliers, found.couplings, p, q, found.bound)
    return point.objective, found


def read(part):
    return [part[1]] * int(part[0][1:]) if part and part[0].startswith("*") else part
