"""Floating-point proofs, against exact rational arithmetic and adversarial matrices."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp

from lipmodel.certify import rigor
from lipmodel.certify.kernel import elimination_order
from lipmodel.certify.lmi import BlockSymmetric, FloatSystem, Multipliers, contraction
from lipmodel.certify.rigor import proves_lmi, proves_positive_semidefinite, spectral_norm_upper
from lipmodel.ranges.enclosure import MatrixEnclosure


def is_psd(matrix) -> bool:
    """Exact decision by symmetric elimination in rationals."""
    m = [[Fraction(v) for v in row] for row in matrix]
    n = len(m)
    for k in range(n):
        pivot = m[k][k]
        if pivot < 0 or (pivot == 0 and any(m[k][j] for j in range(k, n))):
            return False
        if pivot == 0:
            continue
        for i in range(k + 1, n):
            factor = m[i][k] / pivot
            if factor:
                for j in range(k, n):
                    m[i][j] -= factor * m[k][j]
    return True


def blocks_of(matrix, cuts=(), radius=None) -> BlockSymmetric:
    """A dense symmetric matrix cut into blocks; blocks of zeros are left out."""
    edges = [0, *sorted(cuts), len(matrix)]
    blocks = {}
    for i, j in itertools.combinations_with_replacement(range(len(edges) - 1), 2):
        rows, columns = slice(edges[j], edges[j + 1]), slice(edges[i], edges[i + 1])
        part = matrix[rows, columns]
        error = None if radius is None else radius[rows, columns]
        if np.any(part) or (error is not None and np.any(error)):
            blocks[j, i] = MatrixEnclosure(center=part, radius=error)
    return BlockSymmetric(sizes=tuple(b - a for a, b in itertools.pairwise(edges)), blocks=blocks)


def proved(matrix, cuts=(), radius=None) -> bool:
    return proves_positive_semidefinite(blocks_of(np.asarray(matrix, dtype=float), cuts, radius))


def random_psd(rng, n, rank):
    b = rng.standard_normal((n, rank)) * 10.0 ** rng.uniform(-2, 2, (n, 1))
    m = b @ b.T
    return (m + m.T) / 2


def scaled_gap(matrix) -> float:
    """The least eigenvalue after scaling the diagonal to one."""
    d = 1.0 / np.sqrt(np.diagonal(matrix))
    return float(np.linalg.eigvalsh(d[:, None] * matrix * d)[0])


def test_nothing_indefinite_is_proved_and_nothing_with_a_margin_is_missed():
    rng = np.random.default_rng(0)
    accepted = indefinite = 0
    for trial in range(250):
        n = int(rng.integers(1, 8))
        m = random_psd(rng, n, int(rng.integers(1, n + 1)))
        shift = float(rng.choice([-1.0, 1.0])) * 10.0 ** rng.uniform(-17, -6)
        m = m + shift * np.diag(np.diagonal(m))
        if trial % 3 == 0:
            scale = np.ldexp(1.0, rng.integers(-100, 100, n)) * rng.uniform(0.5, 2, n)
            m = scale[:, None] * m * scale
            m = (m + m.T) / 2
        cuts = sorted(set(rng.integers(1, n, 2).tolist())) if n > 2 else ()
        answer, truth = proved(m, cuts), is_psd(m.tolist())
        assert truth or not answer
        if truth and scaled_gap(m) > 1e-12:
            assert answer
        accepted += answer
        indefinite += not truth
    assert accepted > 50
    assert indefinite > 50


def test_gram_matrices_made_indefinite_by_rounding_alone():
    rng = np.random.default_rng(1)
    indefinite = completed = 0
    for _ in range(60):
        n = int(rng.integers(4, 11))
        b = rng.standard_normal((n, n - 2))
        m = b @ b.T
        m = np.tril(m) + np.tril(m, -1).T
        if is_psd(m.tolist()):
            continue
        indefinite += 1
        assert not proved(m)
        nudged = m + 4e-16 * n * np.diag(np.diagonal(m))
        assert is_psd(nudged.tolist()) or not proved(nudged)
        try:
            np.linalg.cholesky(m)
            completed += 1
        except np.linalg.LinAlgError:
            pass
    assert indefinite > 30
    assert completed > 0  # the naive test accepts some of them


def test_exactly_singular_matrices_and_their_neighbours():
    for values in ([[1, 1], [1, 1]], [[1, -2, 1], [-2, 4, -2], [1, -2, 1]], [[2, -1, -1], [-1, 2, -1], [-1, -1, 2]]):
        m = np.array(values, dtype=float)
        for k in range(len(m)):
            below = m.copy()
            below[k, k] = np.nextafter(below[k, k], -math.inf)
            assert not proved(below)
        assert proved(m + 1e-13 * np.diag(np.diagonal(m)))


def test_radius_is_taken_at_its_worst():
    rng = np.random.default_rng(2)
    accepted = refused = 0
    for _ in range(60):
        n = 3
        m = random_psd(rng, n, n)
        d = np.sqrt(np.diagonal(m))
        radius = rng.uniform(0, 1, (n, n)) * np.outer(d, d) * 10.0 ** rng.uniform(-3, 0) * max(scaled_gap(m), 0)
        radius = np.tril(radius) + np.tril(radius, -1).T
        answer = proved(m, (1,), radius)
        corners = []
        pairs = [(i, j) for i in range(n) for j in range(i + 1)]
        for signs in itertools.product([-1, 1], repeat=len(pairs)):
            corner = [[Fraction(v) for v in row] for row in m.tolist()]
            for sign, (i, j) in zip(signs, pairs, strict=True):
                corner[i][j] += sign * Fraction(radius[i, j])
                corner[j][i] = corner[i][j]
            corners.append(is_psd(corner))
        assert all(corners) or not answer
        accepted += answer
        refused += not all(corners)
    assert accepted > 10
    assert refused > 3
    pair = np.array([[1.0, 0.5], [0.5, 1.0]])
    off = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert proved(pair, (1,), off * (0.5 - 1e-8))
    assert not proved(pair, (1,), off * (0.5 + 1e-12))


@pytest.mark.parametrize("n", [63, 64, 65, 200, 333])
def test_margin_on_both_sides_for_many_tiles(n):
    rng = np.random.default_rng(n)
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    eigenvalues = rng.uniform(0.5, 1.5, n)
    eigenvalues[0] = 0.0
    m = (q * eigenvalues) @ q.T
    m = (m + m.T) / 2
    cuts = (n // 5, n // 2)
    assert proved(m + 1e-10 * np.eye(n), cuts)
    assert not proved(m - 1e-10 * np.eye(n), cuts)


def test_block_sparse_matrices_with_fill():
    rng = np.random.default_rng(4)
    sizes = [130, 7, 40, 3, 70]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    n = int(starts[-1])
    for pairs in ([(1, 0), (2, 1), (3, 2), (4, 3)], [(1, 0), (2, 0), (3, 0), (4, 0)], [(2, 0), (3, 1), (4, 2), (4, 1)]):
        m = np.diag(rng.uniform(1, 3, n))
        for i, j in pairs:
            part = rng.standard_normal((sizes[i], sizes[j]))
            m[starts[i] : starts[i + 1], starts[j] : starts[j + 1]] = part
            m[starts[j] : starts[j + 1], starts[i] : starts[i + 1]] = part.T
        least = np.linalg.eigvalsh(m)[0]
        m = m + (1e-9 - least) * np.eye(n)
        blocks = blocks_of(m, starts[1:-1].tolist())
        assert set(blocks.blocks) == set(pairs) | {(i, i) for i in range(5)}
        assert proves_positive_semidefinite(blocks)
        assert not proved(m - 2e-9 * np.eye(n), starts[1:-1].tolist())


def test_rows_of_zeros_are_harmless_but_a_lone_zero_on_the_diagonal_is_not():
    m = np.array([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
    assert proved(m, (1,))
    assert proved(np.zeros((3, 3)))
    for i in range(3):
        if i != 1:
            spoiled = m.copy()
            spoiled[1, i] = spoiled[i, 1] = 1e-200
            assert not proved(spoiled)
    radius = np.zeros((3, 3))
    radius[1, 1] = 1e-300
    assert not proved(m, (), radius)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_entries_are_refused_wherever_they_are(bad):
    good = np.diag([4.0, 5.0, 6.0, 7.0])
    assert proved(good, (2,))
    for i in range(4):
        for j in range(i + 1):
            spoiled = good.copy()
            spoiled[i, j] = spoiled[j, i] = bad
            assert not proved(spoiled, (2,))
            assert not proved(spoiled)
            radius = np.zeros((4, 4))
            radius[i, j] = radius[j, i] = bad
            assert not proved(good, (2,), radius)


def test_a_cholesky_factor_full_of_nan_proves_nothing():
    m = np.full((5, 5), math.nan)
    assert not proved(m)
    assert not proved(np.diag([1.0, 2.0, math.nan]))


def star(leaves, idle, *, first: bool):
    """A hub, idle rows beside it, leaves: indefinite, though every row but the hub is diagonally dominant."""
    n = leaves + idle + 1
    m = 1.01 * np.eye(n) + 0.001 * (np.ones((n, n)) - np.eye(n))
    m[0, 1 + idle :] = m[1 + idle :, 0] = 1.0 / leaves
    m[0, 0] = 0.3 / leaves
    return m if first else m[::-1, ::-1]


@pytest.fixture(params=["tiny", "projected", "perturbed", "unshifted", "nan"])
def false_factor(request, monkeypatch):
    """A factorization that never fails and is wrong in some way."""
    genuine = rigor.lapack.dpotrf

    def false(a, **options):
        n = len(a)
        if request.param == "tiny":
            return 1e-6 * np.eye(n), 0
        if request.param == "nan":
            return np.full((n, n), math.nan), 0
        values, vectors = np.linalg.eigh(np.tril(a) + np.tril(a, -1).T)
        lifted = (vectors * np.maximum(values, 1e-9)) @ vectors.T + (1e-12 if request.param == "unshifted" else 0) * a
        factor, info = genuine(lifted, **options)
        return (factor * (1.001 if request.param == "perturbed" else 1.0), 0) if info == 0 else (np.eye(n), 0)

    monkeypatch.setattr(rigor.lapack, "dpotrf", false)
    if request.param == "tiny":
        monkeypatch.setattr(rigor.blas, "dtrsm", lambda scale, a, b, **options: np.zeros_like(b))
    return request.param


def test_no_factor_however_wrong_proves_an_indefinite_matrix(false_factor):
    rng = np.random.default_rng(11)
    for first, leaves, idle in itertools.product((True, False), (2, 5), (2, 7)):
        m = star(leaves, idle, first=first)
        assert not is_psd(m.tolist())
        for cut in (0, 2, leaves, idle + 1):
            assert not proved(m, (cut,) if cut else ())
    for _ in range(60):
        n = int(rng.integers(2, 8))
        m = random_psd(rng, n, n)
        m = m - (scaled_gap(m) + 10.0 ** rng.uniform(-8, -1)) * np.diag(np.diagonal(m))
        assert not proved(m, (n // 2,))
        assert not proved(m)
    uncertain = np.eye(4) + 1e-3 * (np.ones((4, 4)) - np.eye(4))
    radius = 0.6 * (np.ones((4, 4)) - np.eye(4))
    for cuts in ((), (2,)):
        assert not proved(uncertain, cuts, radius)


def test_rounding_of_the_residual_is_part_of_the_proof(monkeypatch):
    """[[1, b], [b, fl(b^2)]] is indefinite where b^2 was rounded down, and its residual vanishes in floating point."""
    rng = np.random.default_rng(12)
    tried = 0
    for b in rng.uniform(0.75, 1.0, 400):
        m = np.array([[1.0, b], [b, b * b]])
        if is_psd(m.tolist()):
            continue
        tried += 1
        factor = np.array([[1.0, 0.0], [b, 2.0**-40]])
        monkeypatch.setattr(rigor.lapack, "dpotrf", lambda a, factor=factor, **options: (factor, 0))
        assert not proved(m)
    assert tried > 100


def test_only_the_lower_triangle_of_a_diagonal_block_counts():
    good = np.array([[1.0, 99.0], [0.5, 1.0]])
    bad = np.array([[1.0, 0.5], [99.0, 1.0]])
    assert proved(good)
    assert not proved(bad)
    tall = np.array([[0.0, 0.9], [0.1, 0.0]])
    assert proved(np.eye(2), (), tall)
    assert not proved(np.eye(2), (), 12 * tall)


def test_malformed_blocks_are_refused_not_raised():
    eye = MatrixEnclosure(center=np.eye(2))
    assert not proves_positive_semidefinite(BlockSymmetric(sizes=(3,), blocks={(0, 0): eye}))
    assert not proves_positive_semidefinite(BlockSymmetric(sizes=(2, 2), blocks={(0, 0): eye, (0, 1): eye}))
    negative = MatrixEnclosure(center=np.eye(2), radius=-np.eye(2))
    assert not proves_positive_semidefinite(BlockSymmetric(sizes=(2,), blocks={(0, 0): negative}))
    system = FloatSystem(sizes=(2,), pre=(), alpha=(), beta=(), output={0: eye})
    assert proves_lmi(system, Multipliers(t=(), g=np.full(2, 2.0), s=np.ones(2)))
    for g, s in (
        (np.full(3, 2.0), np.ones(2)),
        (np.full(2, math.nan), np.ones(2)),
        (np.full(2, math.inf), np.ones(2)),
        (np.full(2, 2.0), np.zeros(2)),
        (np.full(2, 2.0), -np.ones(2)),
        (np.array([2.0, -1e-9]), np.ones(2)),
        (np.full((2, 1), 2.0), np.ones(2)),
    ):
        assert not proves_lmi(system, Multipliers(t=(), g=g, s=s))
    assert not proves_lmi(system, Multipliers(t=(np.ones(1),), g=np.full(2, 2.0), s=np.ones(2)))


@pytest.mark.parametrize("exponent", [-900, -500, 0, 500, 900])
def test_scales_near_the_ends_of_the_range(exponent):
    pair = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert proved(np.ldexp(pair, exponent))
    assert not proved(np.ldexp(np.array([[1.0, 1.0 + 1e-15], [1.0 + 1e-15, 1.0]]), exponent))
    mixed = np.array([[math.ldexp(1.0, exponent), 0.5], [0.5, math.ldexp(1.0, -exponent)]])
    assert proved(mixed)


def test_contraction_contains_the_exact_product():
    rng = np.random.default_rng(5)
    a = rng.standard_normal((300, 3)) * 10.0 ** rng.uniform(-30, 30, (300, 1))
    b = rng.standard_normal((300, 2)) / 10.0 ** rng.uniform(-30, 30, (300, 1))
    a[:, 1] = 0.0
    product = contraction(MatrixEnclosure(center=a), MatrixEnclosure(center=b))
    for i in range(3):
        for j in range(2):
            exact = sum(Fraction(x) * Fraction(y) for x, y in zip(a[:, i].tolist(), b[:, j].tolist(), strict=True))
            error = abs(exact - Fraction(product.center[i, j]))
            assert error <= Fraction(product.radius[i, j])
    assert not np.any(product.radius[1])


def test_elimination_order_takes_the_ends_of_a_chain_first():
    order = elimination_order([784, 50, 50, 50, 10], [(1, 0), (2, 1), (3, 2), (4, 3)])
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert order.index(0) < order.index(1)  # wide and diagonal: eliminating it first leaves no fill
    star = elimination_order([5, 500, 500, 500], [(1, 0), (2, 0), (3, 0)])
    assert star[-1] == 0 or star[-2] == 0


# --------------------------------------------------------------------------------------------------- spectral norms


def norm_at_most(a, t) -> bool:
    """Exact: t^2 I - A'A >= 0."""
    n = a.shape[1]
    rows = [[Fraction(v) for v in row] for row in a.tolist()]
    square = Fraction(t) ** 2
    gram = [[(square if i == j else 0) - sum(r[i] * r[j] for r in rows) for j in range(n)] for i in range(n)]
    return is_psd(gram)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-250, 1e250])
def test_spectral_norm_is_above_the_exact_one_and_close_to_it(scale):
    rng = np.random.default_rng(6)
    for shape in ((1, 1), (1, 6), (6, 1), (3, 5), (5, 3), (6, 6)):
        for _ in range(4):
            a = rng.standard_normal(shape) * scale
            bound = spectral_norm_upper(MatrixEnclosure(center=a))
            assert bound is not None
            assert norm_at_most(a, bound)
            assert not norm_at_most(a, bound * (1.0 - 1e-13))


def test_spectral_norm_of_structured_matrices():
    def bound(a):
        return spectral_norm_upper(MatrixEnclosure(center=np.asarray(a, dtype=float)))

    assert bound(np.zeros((3, 4))) == 0.0
    assert 2.0 <= bound(np.ones((2, 2))) < 2.0 * (1 + 1e-14)  # not the largest row norm, sqrt 2
    assert 300.0 <= bound(np.ones((300, 300))) < 300.0 * (1 + 1e-12)
    assert 5.0 <= bound([[3.0, 4.0]]) < 5.0 * (1 + 1e-14)
    assert 1.0 <= bound(np.diag([1.0, 1e-160, 1e-200, 0.0])) < 1 + 1e-13
    assert bound(np.full((2, 2), 5e-324)) >= 1e-323
    assert bound([[1.7e308]]) is None or bound([[1.7e308]]) >= 1.7e308
    assert bound([[math.nan]]) is None
    assert bound([[math.inf, 1.0]]) is None
    assert spectral_norm_upper(MatrixEnclosure(center=np.ones((5, 5))), limit=4) is None


def test_spectral_norm_of_an_equal_top_cluster():
    q, _ = np.linalg.qr(np.random.default_rng(7).standard_normal((80, 80)))
    bound = spectral_norm_upper(MatrixEnclosure(center=q))
    assert bound is not None
    assert bound * (1 + 1e-14) >= 1.0
    assert bound < 1.0 + 3e-12


def test_spectral_norm_beyond_the_dense_eigenvalue_solver():
    rng = np.random.default_rng(8)
    a = rng.standard_normal((450, 500))
    bound = spectral_norm_upper(MatrixEnclosure(center=a))
    top = float(np.linalg.norm(a, 2))
    assert bound is not None
    assert top * (1 - 1e-14) <= bound <= top * (1 + 5e-12)


def test_spectral_norm_of_sparse_matrices_agrees_with_dense():
    for shape in ((40, 300), (300, 40)):
        s = sp.csr_array(sp.random_array(shape, density=0.05, rng=np.random.default_rng(9)))
        sparse = spectral_norm_upper(MatrixEnclosure(center=s))
        dense = spectral_norm_upper(MatrixEnclosure(center=s.toarray()))
        assert sparse is not None
        assert dense is not None
        assert sparse == pytest.approx(dense, rel=1e-12)
        assert sparse >= np.linalg.norm(s.toarray(), 2) * (1 - 1e-14)


@pytest.mark.parametrize("sparse", [False, True])
def test_small_terms_lost_in_a_long_sum_are_covered(sparse):
    count = 100_000
    row = np.full((1, count + 1), 2.0**-27)
    row[0, 0] = 1.0
    bound = spectral_norm_upper(MatrixEnclosure(center=sp.csr_array(row) if sparse else row))
    assert bound is not None
    assert Fraction(bound) ** 2 >= 1 + Fraction(count, 2**54)
    assert bound < 1.0 + 1e-10


@pytest.mark.parametrize("sparse", [False, True])
def test_spectral_norm_covers_the_radius(sparse):
    rng = np.random.default_rng(10)
    a = rng.standard_normal((3, 3))
    radius = np.abs(rng.standard_normal((3, 3))) * 1e-3
    kind = sp.csr_array if sparse else np.asarray
    bound = spectral_norm_upper(MatrixEnclosure(center=kind(a), radius=kind(radius)))
    assert bound is not None
    worst = 0.0
    for signs in itertools.product([-1, 1], repeat=9):
        worst = max(worst, float(np.linalg.norm(a + np.reshape(signs, (3, 3)) * radius, 2)))
    assert worst <= bound * (1 + 1e-14)
    assert bound <= worst * 1.01
    tiny = spectral_norm_upper(MatrixEnclosure(center=kind(np.zeros((2, 2))), radius=kind(np.full((2, 2), 1e-9))))
    assert tiny is None or tiny >= 2e-9
