"""Exact decisions about matrices, spectral norms and square roots."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from exact_nets import exact, is_psd
from hypothesis import given, settings
from hypothesis import strategies as st

from lipmodel.certify.kernel import ExactSymmetric, decides_positive_semidefinite, spectral_norm_at_most
from lipmodel.certify.roots import sqrt_up


def dense(values, radius=None) -> ExactSymmetric:
    n = len(values)
    return ExactSymmetric(diagonal=(([0] * n, 0),), blocks={(0, 0): exact(values, radius)})


def test_small_matrices_by_hand():
    assert decides_positive_semidefinite(dense(np.eye(3)))
    assert decides_positive_semidefinite(dense(np.zeros((2, 2))))
    assert decides_positive_semidefinite(dense([[1.0, 0.999], [0.999, 1.0]]))
    assert not decides_positive_semidefinite(dense([[1.0, 1.0 + 2**-52], [1.0 + 2**-52, 1.0]]))
    assert not decides_positive_semidefinite(dense([[0.0, 1e-300], [1e-300, 1.0]]))
    assert not decides_positive_semidefinite(dense([[-1.0]]))
    assert not decides_positive_semidefinite(dense([[1e-300, 1.0], [1.0, 1e299]]))
    assert decides_positive_semidefinite(dense([[1e-300, 0.999], [0.999, 1e300]]))
    assert decides_positive_semidefinite(dense([[1.0, 0.5], [0.5, 1.0]], [[0.0, 0.499], [0.499, 0.0]]))
    assert not decides_positive_semidefinite(dense([[1.0, 0.5], [0.5, 1.0]], [[0.0, 0.501], [0.501, 0.0]]))
    assert not decides_positive_semidefinite(dense(np.zeros((1, 1)), np.full((1, 1), 1e-300)))
    with pytest.raises(ValueError, match="symmetric"):
        decides_positive_semidefinite(dense([[1.0, 0.5], [0.4, 1.0]]))
    with pytest.raises(ValueError, match="fit"):
        decides_positive_semidefinite(ExactSymmetric(diagonal=(([1], 0),), blocks=dense(np.eye(2)).blocks))


@pytest.mark.parametrize("kind", ["tiny", "projected", "perturbed"])
def test_no_hint_however_wrong_changes_the_decision(kind, monkeypatch):
    """Hubs of stars: indefinite, though all other rows are diagonally dominant; and matrices pushed below zero."""
    rng = np.random.default_rng(15)

    def false_cholesky(a):
        if kind == "tiny":
            return 1e-6 * np.eye(len(a))
        values, vectors = np.linalg.eigh(np.tril(a) + np.tril(a, -1).T)
        factor = genuine((vectors * np.maximum(values, 1e-9)) @ vectors.T)
        return factor * (1.001 if kind == "perturbed" else 1.0)

    genuine = np.linalg.cholesky
    monkeypatch.setattr(np.linalg, "cholesky", false_cholesky)
    if kind == "tiny":
        monkeypatch.setattr(np.linalg, "solve", lambda a, b: np.zeros_like(b))

    def cut(m, at, radius=None) -> ExactSymmetric:
        edges = [0, *at, len(m)]
        blocks = {}
        for i, j in itertools.combinations_with_replacement(range(len(edges) - 1), 2):
            rows, columns = slice(edges[j], edges[j + 1]), slice(edges[i], edges[i + 1])
            blocks[j, i] = exact(m[rows, columns], None if radius is None else radius[rows, columns])
        diagonal = tuple(([0] * (b - a), 0) for a, b in itertools.pairwise(edges))
        return ExactSymmetric(diagonal=diagonal, blocks=blocks)

    for leaves, hub in itertools.product((2, 5), (0, -1)):
        n = leaves + 3
        m = 1.01 * np.eye(n) + 0.001 * (np.ones((n, n)) - np.eye(n))
        m[hub, :] = m[:, hub] = 1.0 / leaves
        m[hub, hub] = 0.3 / leaves
        assert not is_psd([[Fraction(v) for v in row] for row in m.tolist()])
        for at in ((), (2,), (leaves,), (1, 3)):
            assert not decides_positive_semidefinite(cut(m, at))
    for _ in range(40):
        n = int(rng.integers(2, 7))
        b = rng.standard_normal((n, n))
        m = b @ b.T + np.eye(n)
        m = np.tril(m) + np.tril(m, -1).T
        m = m - (np.linalg.eigvalsh(m)[0] + 10.0 ** rng.uniform(-8, -1)) * np.eye(n)
        if np.all(np.diagonal(m) > 0):
            assert not decides_positive_semidefinite(cut(m, (n // 2,)))
    m = np.eye(4) + 1e-3 * (np.ones((4, 4)) - np.eye(4))
    for at in ((), (2,)):
        assert not decides_positive_semidefinite(cut(m, at, 0.6 * (np.ones((4, 4)) - np.eye(4))))


def test_matrices_at_the_edge_of_definiteness():
    rng = np.random.default_rng(12)
    accepted = indefinite = 0
    for _ in range(150):
        n = int(rng.integers(1, 8))
        b = rng.standard_normal((n, int(rng.integers(1, n + 1)))) * 10.0 ** rng.uniform(-3, 3, (n, 1))
        m = b @ b.T
        m = np.tril(m) + np.tril(m, -1).T
        m = m + float(rng.choice([-1, 1])) * 10.0 ** rng.uniform(-18, -9) * np.diag(np.diagonal(m))
        answer = decides_positive_semidefinite(dense(m))
        truth = is_psd([[Fraction(v) for v in row] for row in m.tolist()])
        assert truth or not answer
        d = 1 / np.sqrt(np.diagonal(m))
        if np.linalg.eigvalsh(d[:, None] * m * d)[0] > 1e-13:
            assert answer
        accepted += answer
        indefinite += not truth
    assert accepted > 30
    assert indefinite > 30


def test_spectral_norms_decided_exactly():
    ones = exact(np.ones((2, 2)))
    assert spectral_norm_at_most(ones, 2.0 * (1 + 1e-13))
    assert not spectral_norm_at_most(ones, math.nextafter(2.0, 0.0))
    assert not spectral_norm_at_most(ones, math.sqrt(2.0))  # the largest row norm
    row = exact([[3.0, 4.0]])
    assert spectral_norm_at_most(row, 5.0 * (1 + 1e-13))
    assert not spectral_norm_at_most(row, math.nextafter(5.0, 0.0))
    zero = exact(np.zeros((2, 3)))
    assert spectral_norm_at_most(zero, 0.0)
    assert spectral_norm_at_most(zero, 5e-324)
    for t in (math.nan, math.inf, -1.0, 0.0):
        assert not spectral_norm_at_most(ones, t)
    blurred = exact(np.ones((2, 2)), np.full((2, 2), 0.01))
    assert not spectral_norm_at_most(blurred, 2.019)
    assert spectral_norm_at_most(blurred, 2.0201)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_spectral_norms_of_random_matrices(scale):
    rng = np.random.default_rng(13)
    for shape in ((1, 7), (7, 1), (6, 4), (30, 50)):
        a = rng.standard_normal(shape)
        top = float(np.linalg.norm(a, 2)) * scale
        stored = exact(a * scale)
        assert spectral_norm_at_most(stored, top * (1 + 1e-11))
        assert not spectral_norm_at_most(stored, top * (1 - 1e-11))


fractions = st.builds(
    lambda n, d, e: Fraction(n, d) * Fraction(2) ** e,
    st.integers(0, 2**200),
    st.integers(1, 2**200),
    st.integers(-2200, 2000),
)


@settings(max_examples=300, deadline=None)
@given(fractions, fractions)
def test_square_roots_are_the_nearest_doubles_above(value, other):
    up = sqrt_up(value)
    if math.isfinite(up):
        assert Fraction(up) ** 2 >= value
        assert up == 0.0 or Fraction(math.nextafter(up, 0.0)) ** 2 < value
    else:
        assert Fraction(np.finfo(float).max) ** 2 < value
    low, high = sorted((value, other))
    assert sqrt_up(low) <= sqrt_up(high)


def test_square_roots_by_hand():
    assert sqrt_up(Fraction(0)) == 0.0
    assert sqrt_up(Fraction(9, 4)) == 1.5
    assert sqrt_up(Fraction(2)) == math.nextafter(1.414213562373095, 2.0)
    assert sqrt_up(Fraction(1, 2**2148)) == 5e-324
    assert sqrt_up(Fraction(1, 2**5000)) == 5e-324
    largest = np.finfo(float).max
    assert sqrt_up(Fraction(largest) ** 2) == largest
    assert sqrt_up(Fraction(largest) ** 2 + 1) == math.inf
    with pytest.raises(ValueError):
        sqrt_up(Fraction(-1))
