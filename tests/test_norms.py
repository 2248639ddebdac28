"""Induced norms against exact enumeration in rational arithmetic: never below, tight where the norm is computable."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
from exact_norms import EASY, KINDS, PAIRS, cube, exact_square, fractions, is_norm_at_most, random_matrix, size_squared

from lipmodel.errors import UsageError
from lipmodel.network.linear import Dense, Diagonal, Selection, Sparse
from lipmodel.ranges.enclosure import MatrixEnclosure
from lipmodel.ranges.norms import float_up, induced_norm, root_up

# ------------------------------------------------------------------------------------------------ soundness


@pytest.mark.parametrize("kind", KINDS)
def test_never_below_the_exact_norm(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for _ in range(25):
        a = random_matrix(rng, kind)
        exact = fractions(a)
        forms = [Dense(weights=a), Sparse(weights=sp.csr_array(a)), MatrixEnclosure(center=a)]
        for p, q in PAIRS:
            for form in forms:
                bound = induced_norm(form, p, q)
                assert is_norm_at_most(exact, p, q, Fraction(bound)), (a, p, q, bound)


def test_the_references_agree_with_numpy():
    a = np.array([[1.0, -2.0], [3.0, 0.5], [0.0, 1.0]])
    square = {("1", "1"): 4.0**2, ("2", "inf"): 9.25, ("inf", "2"): 9.0 + 6.25 + 1.0, ("inf", "1"): 3 + 2.5 + 1}
    square["inf", "1"] **= 2
    for (p, q), value in square.items():
        assert exact_square(fractions(a), p, q) == Fraction(value)
    top = np.linalg.norm(a, 2)
    assert is_norm_at_most(fractions(a), "2", "2", Fraction(top * (1 + 1e-12)))
    assert not is_norm_at_most(fractions(a), "2", "2", Fraction(top * (1 - 1e-12)))


def test_never_below_any_matrix_of_an_enclosure():
    rng = np.random.default_rng(5)
    for _ in range(12):
        m, n = rng.integers(1, 4, 2)
        center = rng.standard_normal((m, n)) * 10.0 ** rng.uniform(-200, 200)
        radius = np.abs(center) * rng.choice([0.0, 1e-16, 1e-3, 1.0], (m, n))
        dense = MatrixEnclosure(center=center, radius=radius)
        sparse = MatrixEnclosure(center=sp.csr_array(center), radius=sp.csr_array(radius))
        for p, q in PAIRS:
            bounds = [Fraction(induced_norm(e, p, q)) for e in (dense, sparse)]
            for signs in itertools.islice(cube(m * n), 64):
                pattern = np.array(signs).reshape(m, n)
                pairs = zip(fractions(center), fractions(radius), pattern.tolist(), strict=True)
                corner = [[c + s * r for c, r, s in zip(*rows, strict=True)] for rows in pairs]
                assert all(is_norm_at_most(corner, p, q, bound) for bound in bounds)


def test_repeated_sparse_entries_are_added_up():
    matrix = sp.csr_array(
        (np.array([1.0, 1.0, -3.0, 1e-17]), np.array([0, 0, 1, 1]), np.array([0, 3, 4])), shape=(2, 2)
    )
    exact = [[Fraction(2), Fraction(-3)], [Fraction(0), Fraction(1e-17)]]
    for p, q in PAIRS:
        bound = induced_norm(Sparse(weights=matrix), p, q)
        assert is_norm_at_most(exact, p, q, Fraction(bound))
        assert bound <= 5.000001
    assert matrix.nnz == 4, "the stored matrix was changed"
    rounded = sp.csr_array((np.array([1.0, 2.0**-53]), np.array([0, 0]), np.array([0, 2])), shape=(1, 1))
    for p, q in PAIRS:
        assert induced_norm(Sparse(weights=rounded), p, q) > 1.0  # 1 + 2^-53, which is not a double


def test_a_power_iteration_stopped_early_is_below_and_the_bound_is_not():
    a = np.diag([1.0, 1.0 + 1e-9, 0.5])
    v = np.ones(3)
    for _ in range(5):
        v = a @ v
        v /= np.linalg.norm(v)
    assert np.linalg.norm(a @ v) < 1.0 + 1e-9
    mixed = a @ np.array([[1.0, 1, 0], [1, -1, 0], [0, 0, 1]])
    for matrix in (a, mixed):
        assert is_norm_at_most(fractions(matrix), "2", "2", Fraction(induced_norm(Dense(weights=matrix), "2", "2")))


def test_the_spectral_norm_is_not_the_largest_row():
    ones = Dense(weights=np.ones((2, 2)))
    assert 2.0 <= induced_norm(ones, "2", "2") <= 2.0 * (1 + 1e-12)
    assert math.sqrt(2) <= induced_norm(ones, "2", "inf") <= math.sqrt(2) * (1 + 1e-15)


# ------------------------------------------------------------------------------------------------ tightness


def numpy_norm(a, p, q):
    order = {"1": 1, "2": 2, "inf": np.inf}
    dual = {"1": np.inf, "2": 2, "inf": 1}
    if p == "1":
        return np.linalg.norm(a, order[q], axis=0).max()
    return np.linalg.norm(a, dual[p], axis=1).max() if q == "inf" else np.linalg.norm(a, 2)


@pytest.mark.parametrize("scale", [1.0, 1e38, 1e-38, 1e-300])
def test_tight_where_the_norm_is_computable(scale):
    rng = np.random.default_rng(1)
    for m, n in [(1, 1), (3, 2), (40, 60), (700, 30), (30, 700)]:
        a = rng.standard_normal((m, n))
        for p, q in [*EASY, ("2", "2")]:
            for form in (Dense(weights=a * scale), Sparse(weights=sp.csr_array(a * scale))):
                assert induced_norm(form, p, q) <= numpy_norm(a, p, q) * (1 + 1e-12) * scale


def test_long_sums_stay_tight():
    rng = np.random.default_rng(2)
    a = rng.random((2, 300_000))
    total = [math.fsum(row) for row in a]
    for form in (Dense(weights=a), Sparse(weights=sp.csr_array(a)), Sparse(weights=sp.csr_array(a.T))):
        row, column = ("1", "1") if form.shape[1] == 2 else ("inf", "inf"), ("1", "inf")
        assert max(total) <= induced_norm(form, *row) <= max(total) * (1 + 1e-12)
        assert induced_norm(form, *column) == a.max()


@pytest.mark.parametrize("axis", [0, 1])
def test_one_row_or_column_is_exact_for_every_pair(axis):
    rng = np.random.default_rng(3)
    for size in (1, 5, 9):
        v = rng.standard_normal(size) * 10.0 ** rng.uniform(-30, 30, size)
        a = v[None, :] if axis == 0 else v[:, None]
        for p, q in PAIRS:
            kind = {"1": "inf", "2": "2", "inf": "1"}[p] if axis == 0 else q
            exact = size_squared([Fraction(x) for x in v], kind)
            bound = Fraction(induced_norm(Dense(weights=a), p, q))
            assert exact <= bound * bound <= exact * (1 + Fraction(1, 10**14))


def test_hard_pairs_are_exact_for_nonnegative_matrices_and_at_most_the_equivalences():
    rng = np.random.default_rng(4)
    for m, n in [(4, 6), (30, 8), (12, 12)]:
        a = rng.standard_normal((m, n))
        sums = abs(a)
        for matrix in (a, sums):
            got = {pair: induced_norm(Dense(weights=matrix), *pair) for pair in PAIRS}
            two = np.linalg.norm(matrix, 2)
            slack = 1 + 1e-12
            assert got["inf", "1"] <= min(sums.sum(), math.sqrt(m * n) * two) * slack
            assert got["inf", "2"] <= min(np.linalg.norm(sums.sum(1)), math.sqrt(n) * two) * slack
            assert got["2", "1"] <= min(np.linalg.norm(sums.sum(0)), math.sqrt(m) * two) * slack
        assert got["inf", "1"] >= sums.sum() * (1 - 1e-14)


def test_orthogonal_matrices_use_the_spectral_norm():
    hadamard = np.array([[1.0]])
    for _ in range(4):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    n = len(hadamard)
    dense = Dense(weights=hadamard)
    assert induced_norm(dense, "2", "2") <= math.sqrt(n) * (1 + 1e-12)
    assert induced_norm(dense, "inf", "2") <= n * (1 + 1e-12)  # row sums alone give n^1.5
    assert induced_norm(dense, "inf", "1") <= n**1.5 * (1 + 1e-12)  # row sums alone give n^2


def test_selections_and_diagonals_are_exact():
    rng = np.random.default_rng(6)
    for _ in range(20):
        size = int(rng.integers(1, 6))
        selection = Selection(index=rng.integers(-1, size, int(rng.integers(1, 6))), size=size)
        values = rng.standard_normal(size)
        for map in (selection, Diagonal(values=values)):
            dense = map.enclosure().dense().center
            exact = fractions(dense)
            for p, q in PAIRS:
                bound = Fraction(induced_norm(map, p, q))
                assert is_norm_at_most(exact, p, q, bound)
                if bound:
                    assert not is_norm_at_most(exact, p, q, bound * (1 - Fraction(1, 10**14)))
    wide = Selection(index=np.repeat(np.arange(3), 50_000), size=3)
    assert induced_norm(wide, "2", "2") == float_up(root_up(Fraction(50_000)))
    assert induced_norm(Diagonal(values=np.array([2.0, -3.0])), "2", "2") == 3.0
    inexact = Diagonal(values=np.array([2.0, -3.0]), radius=np.array([0.0, 0.5]))
    assert 3.5 <= induced_norm(inexact, "2", "2") <= 3.5 * (1 + 1e-15)


def test_integers_are_added_without_rounding():
    a = np.array([[3.0, -4.0], [0.0, 1.0]])
    assert [induced_norm(Dense(weights=a), p, q) for p, q in EASY] == [
        5.0,
        float_up(root_up(Fraction(17))),
        4.0,
        5.0,
        7.0,
    ]
    assert induced_norm(Dense(weights=a), "inf", "1") == 8.0


def test_degenerate_matrices():
    for p, q in PAIRS:
        assert induced_norm(Dense(weights=np.zeros((3, 2))), p, q) == 0.0
        assert induced_norm(Sparse(weights=sp.csr_array((3, 2))), p, q) == 0.0
        assert induced_norm(Dense(weights=np.zeros((0, 2))), p, q) == 0.0
        assert induced_norm(Dense(weights=np.zeros((2, 0))), p, q) == 0.0
        assert induced_norm(Dense(weights=np.array([[5e-324]])), p, q) == 5e-324
        for bad in (math.nan, math.inf):
            assert induced_norm(Dense(weights=np.array([[1.0, bad], [0.0, 1.0]])), p, q) == math.inf
    huge = Dense(weights=np.full((2, 2), 1.7e308))
    assert induced_norm(huge, "1", "inf") == 1.7e308
    assert induced_norm(huge, "inf", "inf") == math.inf
    with pytest.raises(UsageError):
        induced_norm(huge, "3", "2")


def test_beyond_the_spectral_limit():
    rng = np.random.default_rng(7)
    a = rng.standard_normal((6, 8))
    bound = induced_norm(Dense(weights=a), "2", "2", spectral_limit=5)
    cheap = min(np.linalg.norm(a), math.sqrt(abs(a).sum(0).max() * abs(a).sum(1).max()))
    assert bound == pytest.approx(cheap, rel=1e-12)
    assert induced_norm(Dense(weights=a), "2", "2", spectral_limit=6) < bound


def test_large_sparse_matrices_are_never_expanded():
    n, k = 40_000, 25
    rng = np.random.default_rng(8)
    columns = (np.arange(n)[:, None] + np.arange(k)[None, :] * 7) % n
    data = rng.standard_normal((n, k))
    matrix = sp.csr_array((data.ravel(), columns.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    map = Sparse(weights=matrix)
    rows = abs(data).sum(1).max()
    assert rows <= induced_norm(map, "inf", "inf") <= rows * (1 + 1e-13)
    cheap = math.sqrt(rows * abs(matrix).sum(axis=0).max())
    assert induced_norm(map, "2", "2") == pytest.approx(cheap, rel=1e-12)
