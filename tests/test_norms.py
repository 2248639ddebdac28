"""Induced norms against exact enumeration in rational arithmetic: never below, tight where the norm is computable."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp

from lipmodel.certify import exact_entries
from lipmodel.certify.exact_entries import exact_entry_norms, exact_matrix
from lipmodel.errors import UsageError
from lipmodel.network.conv import Conv
from lipmodel.network.linear import Composition, Dense, Diagonal, Selection, Sparse, Sum
from lipmodel.ranges import norms
from lipmodel.ranges.enclosure import MatrixEnclosure
from lipmodel.ranges.norms import entry_norms, float_norms, float_up, induced_norm, root_up, round_up

PAIRS = list(itertools.product(("1", "2", "inf"), repeat=2))
EASY = [(p, q) for p, q in PAIRS if p == "1" or q == "inf"]
HARD = [("inf", "1"), ("inf", "2"), ("2", "1")]


# ------------------------------------------------------------------------------------------------ exact references


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


# ------------------------------------------------------------------------------------------------ compositions and sums


def some_composition(rng):
    sizes = rng.integers(1, 5, 4)
    matrices = [rng.standard_normal((a, b)) for a, b in itertools.pairwise(sizes)]
    maps = [Dense(weights=matrices[0]), Sparse(weights=sp.csr_array(matrices[1])), Dense(weights=matrices[2])]
    exact = fractions(matrices[0])
    for factor in matrices[1:]:
        columns = list(zip(*fractions(factor), strict=True))
        exact = [[sum(x * y for x, y in zip(row, c, strict=True)) for c in columns] for row in exact]
    return Composition(factors=tuple(maps)), exact


@pytest.mark.parametrize("limit", [norms.EXPANSION_LIMIT, 0])
def test_compositions_and_sums(limit, monkeypatch):
    monkeypatch.setattr(norms, "EXPANSION_LIMIT", limit)
    rng = np.random.default_rng(9)
    for _ in range(10):
        composition, exact = some_composition(rng)
        other = rng.standard_normal(composition.shape)
        summed = Sum(terms=(composition, Dense(weights=other)))
        sum_exact = [[x + y for x, y in zip(*rows, strict=True)] for rows in zip(exact, fractions(other), strict=True)]
        for p, q in PAIRS:
            assert is_norm_at_most(exact, p, q, Fraction(induced_norm(composition, p, q)))
            assert is_norm_at_most(sum_exact, p, q, Fraction(induced_norm(summed, p, q)))


def test_large_compositions_take_the_best_norms_between_factors(monkeypatch):
    rng = np.random.default_rng(10)
    factors = tuple(Dense(weights=rng.standard_normal((5, 5))) for _ in range(4))
    composition = Composition(factors=factors)
    expanded = induced_norm(composition, "2", "inf")
    monkeypatch.setattr(norms, "EXPANSION_LIMIT", 0)
    best = math.inf
    for path in itertools.product(("1", "2", "inf"), repeat=3):
        stops = ("2", *path, "inf")
        steps = zip(reversed(factors), itertools.pairwise(stops), strict=True)
        best = min(best, math.prod(induced_norm(f, r, s) for f, (r, s) in steps))
    assert induced_norm(composition, "2", "inf") == pytest.approx(best, rel=1e-12)
    assert expanded < best
    terms = Sum(terms=factors)
    assert induced_norm(terms, "1", "1") == pytest.approx(sum(induced_norm(f, "1", "1") for f in factors), rel=1e-12)


# ------------------------------------------------------------------------------------------------ convolutions


def some_convolution(rng, scale=1.0):
    d, groups = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    channels, outputs = groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 3))
    taps, strides, dilations = (tuple(int(v) for v in rng.integers(1, 4, d)) for _ in range(3))
    pads, image, result = (tuple(int(v) for v in rng.integers(low, 5, d)) for low in (0, 1, 1))
    kernel = rng.standard_normal((outputs, channels // groups, *taps)) * scale * (rng.random(taps) < 0.8)
    return Conv(
        kernel=kernel,
        radius=np.abs(kernel) * 0.125 if rng.random() < 0.3 else None,
        input_shape=(int(rng.integers(1, 3)), channels, *image),
        output_spatial=result,
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=groups,
    )


def test_convolutions_are_what_their_expansions_are():
    rng = np.random.default_rng(13)
    for scale in (1.0, 1e-38, 1e38):
        for _ in range(40):
            map = some_convolution(rng, scale)
            expanded = map.enclosure()
            assert entry_norms(map) == exact_entry_norms(expanded)
            for p, q in PAIRS:
                bound = induced_norm(map, p, q)
                assert bound <= induced_norm(expanded, p, q) <= bound * (1 + 1e-13)


def test_large_convolutions_are_never_expanded():
    class Unexpanded(Conv):
        __slots__ = ()

        def enclosure(self):
            raise AssertionError("expanded")

    kernel = np.random.default_rng(14).integers(-3, 4, (8, 8, 3, 3)).astype(float)
    shape = {"input_shape": (1, 8, 500, 500), "output_spatial": (500, 500)}
    map = Unexpanded(kernel=kernel, strides=(1, 1), pads=(1, 1), dilations=(1, 1), **shape)
    assert map.entries > 100_000_000
    assert induced_norm(map, "inf", "inf") == abs(kernel).sum(axis=(1, 2, 3)).max()
    assert induced_norm(map, "1", "1") == abs(kernel).sum(axis=(0, 2, 3)).max()
    assert induced_norm(map, "1", "inf") == 3.0
    assert (
        induced_norm(map, "2", "2") <= math.sqrt(induced_norm(map, "1", "1") * induced_norm(map, "inf", "inf")) + 1e-9
    )
    broken = Unexpanded(kernel=kernel * math.nan, strides=(1, 1), pads=(1, 1), dilations=(1, 1), **shape)
    assert induced_norm(broken, "2", "2") == math.inf


# ------------------------------------------------------------------------------------------------ the exact side


@pytest.mark.parametrize("kind", KINDS)
def test_exact_entry_norms_are_at_most_the_floating_point_ones(kind):
    rng = np.random.default_rng(20 + KINDS.index(kind))
    for k in range(20):
        a = random_matrix(rng, kind)
        radius = np.abs(a) * 2.0**-20 if k % 3 == 2 else None
        map = Dense(weights=a, radius=radius)
        if k % 2:
            map = Sparse(weights=sp.csr_array(a), radius=None if radius is None else sp.csr_array(radius))
        rounded, exact = entry_norms(map), exact_entry_norms(map)
        for name in exact.__slots__:
            upper, value = getattr(rounded, name), getattr(exact, name)
            if value is None or upper is None:
                assert value is upper
            else:
                assert value <= upper <= value * (1 + Fraction(1, 10**13))


def test_squares_off_the_grid_are_not_taken_for_exact():
    rng = np.random.default_rng(15)
    for _ in range(20):
        map = Dense(weights=rng.integers(-(2**24), 2**24, (3, 700)) * 2.0**-24)
        rounded, exact = entry_norms(map), exact_entry_norms(map)
        assert rounded.max_row_sum == exact.max_row_sum
        assert rounded.max_row_2 >= exact.max_row_2
        assert rounded.frobenius >= exact.frobenius


@pytest.mark.parametrize("chunk", [3, 2_000_000])
@pytest.mark.parametrize("dense", [True, False])
def test_exact_products_and_sums(chunk, dense, monkeypatch):
    monkeypatch.setattr(exact_entries, "_CHUNK", chunk)
    if dense:
        monkeypatch.setattr(exact_entries, "_SPARSE_PRODUCTS", 0)
    rng = np.random.default_rng(11)
    for _ in range(10):
        composition, exact = some_composition(rng)
        m, n = composition.shape
        gain = Diagonal(values=rng.standard_normal(m), radius=rng.random(m))
        inexact = Composition(factors=(gain, *composition.factors))
        summed = Sum(terms=(composition, inexact))
        got = exact_matrix(summed)
        for i, j in itertools.product(range(m), range(n)):
            unit = Fraction(1, 1 << got.exponent)
            mid, rad = int(got.mantissa[i, j]) * unit, int(got.radius[i, j]) * unit
            assert mid == exact[i][j] * (1 + Fraction(float(gain.values[i])))
            assert rad == abs(exact[i][j]) * Fraction(float(gain.radius[i]))
        plain = exact_matrix(composition)
        assert plain.radius is None
        assert int(plain.mantissa[0, 0]) == exact[0][0] * (1 << plain.exponent)


def test_rational_rounding():
    rng = np.random.default_rng(12)
    previous = Fraction(0), Fraction(0)
    for x in sorted(
        Fraction(int(v), int(w)) * Fraction(2) ** int(e)
        for v, w, e in zip(
            rng.integers(1, 10**9, 300), rng.integers(1, 10**9, 300), rng.integers(-1200, 1200, 300), strict=True
        )
    ):
        up, root = round_up(x), root_up(x)
        assert x <= up <= x * (1 + Fraction(1, 2**63))
        assert x <= root * root <= x * (1 + Fraction(1, 2**78))
        assert (up, root) >= previous
        previous = up, root
        value = float_up(x)
        assert math.isinf(value) or (Fraction(value) >= x > Fraction(math.nextafter(value, 0.0)))
    assert root_up(Fraction(9, 4)) == Fraction(3, 2)
    assert round_up(math.inf) == root_up(math.inf) == float_up(math.inf) == math.inf


def test_one_evaluator_expands_each_map_once():
    class Counted(Dense):
        __slots__ = ()
        calls = 0

        def enclosure(self):
            Counted.calls += 1
            return MatrixEnclosure(center=self.weights)

    map = Counted(weights=np.arange(9.0).reshape(3, 3))
    evaluator = float_norms()
    values = {pair: evaluator(map, *pair) for pair in PAIRS}
    assert Counted.calls == 2  # once for the sums, once for the spectral norm
    assert len(evaluator.log) == 1
    assert {pair: float_up(v) for pair, v in values.items()} == {pair: induced_norm(map, *pair) for pair in PAIRS}
