"""Norms of compositions, sums and convolutions, and the exact side of them."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
from exact_norms import KINDS, PAIRS, fractions, is_norm_at_most, random_matrix

from lipmodel.certify import exact_entries
from lipmodel.certify.exact_entries import exact_entry_norms, exact_matrix
from lipmodel.network.conv import Conv
from lipmodel.network.linear import Composition, Dense, Diagonal, Sparse, Sum
from lipmodel.ranges import norms
from lipmodel.ranges.enclosure import MatrixEnclosure
from lipmodel.ranges.norms import entry_norms, float_norms, float_up, induced_norm, root_up, round_up

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
                assert bound <= induced_norm(expanded, p, q)
                if map.radius is None or (p, q) != ("2", "2"):  # where entries are uncertain, the expansion proves less
                    assert induced_norm(expanded, p, q) <= bound * (1 + 1e-13)


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
