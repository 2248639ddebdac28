"""Spectral norms of convolutions, proved on a torus without expanding the matrix, against the expanded matrix."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from conv_cases import conv, dense_norm, per_channel, some_conv

from lipmodel.certify import conv_norms as exact
from lipmodel.certify.conv_norms import integer_symbol, structured_norm_at_most
from lipmodel.network.conv import Conv, Pool, valid_counts, window_sum
from lipmodel.network.linear import Composition, Dense, Diagonal, Selection, Transposed, compose
from lipmodel.ranges import conv_spectral
from lipmodel.ranges.conv_spectral import blocks_of, estimated_norm, structured_norm
from lipmodel.ranges.conv_symbol import (
    TWIDDLE_BITS,
    averaging_factors,
    folded_factors,
    sampled_symbol,
    symbol_of,
    twiddles,
)

# --------------------------------------------------------------------------------------------- against the matrix


def test_never_below_the_matrix_and_not_far_above_it():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(150):
        map = some_conv(rng)
        true, bound = dense_norm(map), structured_norm(map)
        assert bound >= true * (1 - 1e-13), (map, true, float(bound))
        if true:
            ratios.append(float(bound) / true)
    assert max(ratios) < 4.0
    assert np.median(ratios) < 1.1


def test_both_sides_agree_and_the_exact_one_refuses_what_is_below_the_torus():
    rng = np.random.default_rng(1)
    for _ in range(40):
        map = some_conv(rng)
        bound = structured_norm(map)
        assert structured_norm_at_most(map, bound)
        if bound:
            torus = Fraction(estimated_norm(symbol_of(map, map.kernel)))
            assert structured_norm_at_most(map, torus * (1 + Fraction(1, 10**11)))
            assert not structured_norm_at_most(map, torus * (1 - Fraction(1, 10**12)))
            assert not structured_norm_at_most(map, Fraction(dense_norm(map)) * (1 - Fraction(1, 10**9)))
            assert not structured_norm_at_most(map, Fraction(0))


def test_the_torus_holds_the_matrix():
    """The matrix is a part of the one on the torus, and of that on every larger torus."""
    rng = np.random.default_rng(2)
    for _ in range(60):
        map = some_conv(rng)
        symbol = symbol_of(map, map.kernel)
        if symbol is None:
            assert not np.any(map.enclosure().dense().center)
            continue
        real, imaginary = blocks_of(symbol, slice(None))
        norms = np.linalg.norm(real + 1j * imaginary, 2, axis=(1, 2))
        assert norms.max() == pytest.approx(estimated_norm(symbol), rel=1e-12)
        assert norms.max() >= dense_norm(map) * (1 - 1e-13)
        # a torus that is larger by any amount holds it as well
        sizes = [m if m == 1 else m + int(rng.integers(0, 5)) for m in symbol.torus]
        angles = np.stack(np.meshgrid(*[2 * np.pi * np.arange(m) / m for m in sizes], indexing="ij"), -1)
        phase = np.exp(1j * angles.reshape(-1, len(sizes)) @ symbol.shifts.T)
        assert np.linalg.norm(np.einsum("grct,ft->gfrc", symbol.taps, phase), 2, axis=(2, 3)).max() >= (
            dense_norm(map) * (1 - 1e-13)
        )


@pytest.mark.parametrize(
    ("map", "exactly"),
    [
        (conv(np.arange(12.0).reshape(4, 3, 1, 1), (7, 5)), True),  # one matrix at every pixel
        (conv(np.arange(12.0).reshape(4, 3, 1, 1), (7, 5), strides=(2, 3)), True),
        (conv(np.arange(48.0).reshape(2, 6, 2, 2), (8, 6), strides=(2, 2)), True),  # windows that do not overlap
        (conv(np.arange(60.0).reshape(2, 2, 3, 5), (3, 5)), True),  # a dense layer
        (conv(np.arange(60.0).reshape(2, 2, 3, 5), (3, 9)), False),
        (conv(np.ones((1, 1, 3, 3)), (1, 1), pads=(1, 1)), True),  # eight taps meet nothing
        (conv(np.ones((1, 1, 3)), (2,), pads=(5,), after=(5,)), False),  # more padding than image
        (conv(np.ones((1, 1, 2)), (5,), dilations=(7,), pads=(4,)), False),
    ],
)
def test_shapes_at_the_edge(map, exactly):
    true, bound = dense_norm(map), float(structured_norm(map))
    assert bound >= true * (1 - 1e-13)
    assert structured_norm_at_most(map, structured_norm(map))
    if exactly:
        assert bound == pytest.approx(true, rel=1e-9)


def test_zero_huge_tiny_and_broken_kernels():
    zero = conv(np.zeros((2, 2, 3, 3)), (5, 5), pads=(1, 1))
    assert structured_norm(zero) == 0
    assert structured_norm_at_most(zero, Fraction(0))
    uncertain = conv(np.zeros((2, 2, 3, 3)), (5, 5), pads=(1, 1), radius=np.full((2, 2, 3, 3), 0.5))
    assert structured_norm(uncertain) == 9
    assert structured_norm_at_most(uncertain, Fraction(9))
    assert not structured_norm_at_most(uncertain, Fraction(9) - Fraction(1, 10**12))
    nothing = conv(np.ones((1, 1, 1)), (3,), pads=(-3,), after=(3,))  # what it meets is padding alone
    assert structured_norm(nothing) == dense_norm(nothing) == 0.0
    kernel = np.random.default_rng(3).standard_normal((3, 2, 3, 3))
    plain = structured_norm(conv(kernel, (5, 5), pads=(1, 1)))
    for power in (-900, -140, 140, 900):
        map = conv(np.ldexp(kernel, power), (5, 5), pads=(1, 1))
        assert structured_norm(map) == plain * Fraction(2) ** power
        assert structured_norm_at_most(map, structured_norm(map))
        assert structured_norm_at_most(map, Fraction(2) ** 3000)
    mixed = kernel * 10.0 ** np.random.default_rng(4).uniform(-300, 3, kernel.shape)
    map = conv(mixed, (5, 5), pads=(1, 1))
    assert structured_norm(map) >= dense_norm(map) * (1 - 1e-13)
    assert structured_norm_at_most(map, structured_norm(map))
    for bad in (math.nan, math.inf):
        kernel[0, 0, 0, 0] = bad
        assert structured_norm(conv(kernel, (5, 5), pads=(1, 1))) == math.inf


def test_cosines_are_enclosed():
    for period in (1, 2, 3, 7, 24, 1089):
        cosines, sines = twiddles(period)
        angles = 2 * np.pi * np.arange(period) / period
        assert np.abs(np.ldexp(cosines.astype(float), -TWIDDLE_BITS) - np.cos(angles)).max() < 1e-14
        assert np.abs(np.ldexp(sines.astype(float), -TWIDDLE_BITS) - np.sin(angles)).max() < 1e-14
        unit = 1 << TWIDDLE_BITS  # cos^2 + sin^2 = 1, far beyond floating point
        assert all(
            abs(c * c + s * s - unit * unit) <= 8 * unit for c, s in zip(cosines.tolist(), sines.tolist(), strict=True)
        )


def test_integer_blocks_have_the_error_that_is_counted():
    rng = np.random.default_rng(5)
    for _ in range(20):
        map = some_conv(rng)
        found = integer_symbol(map)
        if found is None or found.symbol is None:
            continue
        symbol, terms = found.symbol, found.symbol.taps.shape[-1]
        real, imaginary = exact._blocks(symbol, slice(0, 3))
        taps = symbol_of(map, map.kernel).taps
        with_angle = np.moveaxis(symbol.angles(slice(0, 3)), 0, 1)
        turns = np.longdouble(2) * np.longdouble("3.14159265358979323846264338327950288") * with_angle / symbol.period
        for part, wave in ((real, np.cos), (imaginary, np.sin)):
            expected = np.einsum("grct,ft->gfrc", taps.astype(np.longdouble), wave(turns))
            gap = part.reshape(expected.shape) - np.ldexp(expected, found.exponent)
            assert np.abs(gap).max() <= (5 * terms) // 8 + 2


# ------------------------------------------------------------------------------------------------- fewer frequencies


def test_fewer_frequencies_with_the_factor_of_their_number():
    rng = np.random.default_rng(6)
    for _ in range(60):
        map = some_conv(rng)
        symbol = symbol_of(map, map.kernel)
        if symbol is None:
            continue
        sampled = sampled_symbol(symbol, symbol.work // 2)
        if sampled is None:
            continue
        fewer, factor = sampled
        assert fewer.work <= symbol.work // 2
        assert factor * Fraction(estimated_norm(fewer)) >= dense_norm(map) * (1 - 1e-12)


def test_coarse_frequencies_alone_prove_nothing(monkeypatch):
    """Trap: on the grid of S = 3 frequencies the symbol 1 + e^{i t} - e^{2 i t} is below its supremum."""
    kernel = np.array([[[1.0, 1.0, -1.0]]])
    map = conv(kernel, (40,), pads=(1,))
    true = dense_norm(map)
    symbol = symbol_of(map, kernel)
    coarse = np.abs(np.fft.fft(kernel[0, 0], 3)).max()
    assert coarse < true
    sampled = sampled_symbol(symbol, symbol.work // 8)
    assert sampled is not None
    fewer, factor = sampled
    assert len(fewer.frequencies) < len(symbol.frequencies) // 4
    assert factor * Fraction(estimated_norm(fewer)) >= true
    for module in (conv_spectral, exact):
        monkeypatch.setattr(module, "WORK_LIMIT", symbol.work // 8)
    bound = structured_norm(map)
    assert true <= bound < 2.0 * true
    assert structured_norm_at_most(map, bound)
    assert not structured_norm_at_most(map, Fraction(true) * (1 - Fraction(1, 10**9)))
    for module in (conv_spectral, exact):
        monkeypatch.setattr(module, "WORK_LIMIT", 1)
    assert structured_norm(map) == math.inf
    assert not structured_norm_at_most(map, bound)


# ------------------------------------------------------------------------------------------------------ other maps


def test_transposed_convolutions_and_selections():
    rng = np.random.default_rng(7)
    for _ in range(30):
        map = some_conv(rng)
        turned = Transposed(map=map)
        assert structured_norm(turned) == structured_norm(map)
        order = Selection(index=rng.permutation(map.shape[1]), size=map.shape[1])
        both = compose(map, order)
        assert structured_norm(both) == structured_norm(map)
        assert structured_norm_at_most(both, structured_norm(both))
        twice = Selection(index=np.arange(map.shape[0]).repeat(2), size=map.shape[0])
        bound = structured_norm(compose(twice, map))
        assert bound >= np.linalg.norm(compose(twice, map).enclosure().dense().center, 2) * (1 - 1e-13)


def test_diagonals_of_channels_go_into_the_kernel():
    rng = np.random.default_rng(8)
    for _ in range(60):
        map = some_conv(rng)
        for on_outputs, turned in product((True, False), (True, False)):
            shape = map.output_shape if on_outputs else map.input_shape
            values = rng.standard_normal(shape[1]) * 10.0 ** rng.uniform(-2, 2, shape[1])
            gain = per_channel(shape, values, abs(values) * 1e-9 if rng.random() < 0.5 else None)
            leaf = Transposed(map=map) if turned else map
            whole = compose(gain, leaf) if on_outputs is not turned else compose(leaf, gain)
            assert len(folded_factors(whole)) == 1
            e = whole.enclosure().dense()
            true, bound = float(np.linalg.norm(e.center, 2)), structured_norm(whole)
            assert true * (1 - 1e-13) <= bound <= max(4.0 * true, 0.0)
            assert structured_norm_at_most(whole, bound)
            assert not structured_norm_at_most(whole, Fraction(true) * (1 - Fraction(1, 10**7))) or true == 0
            (folded,) = folded_factors(whole)
            center, radius = (
                m.toarray() if hasattr(m, "toarray") else m
                for m in (folded.enclosure().center, folded.enclosure().radius)
            )
            # every matrix in the enclosure of the factors is in that of the folded map
            spread = 0.0 if e.radius is None else e.radius
            assert np.all(np.abs(center - e.center) <= radius + spread)


def test_diagonals_that_vary_within_a_channel_stay_factors():
    map = conv(np.ones((2, 2, 3, 3)), (4, 4), pads=(1, 1))
    values = np.ones(32)
    values[3] = 5.0
    whole = compose(Diagonal(values=values), map)
    assert len(folded_factors(whole)) == 2
    assert structured_norm(whole) == 5 * structured_norm(map)
    assert structured_norm_at_most(whole, structured_norm(whole))
    assert folded_factors(Dense(weights=np.eye(2))) is None
    assert structured_norm(Dense(weights=np.eye(2))) == math.inf
    assert not structured_norm_at_most(Dense(weights=np.eye(2)), Fraction(5))


def test_radius_is_counted():
    rng = np.random.default_rng(9)
    for _ in range(30):
        map = some_conv(rng)
        loose = Conv(**{f: getattr(map, f) for f in Conv.__slots__ if f != "radius"}, radius=abs(map.kernel) * 0.25)
        bound = structured_norm(loose)
        for sign in (1.0, -1.0, np.sign(rng.standard_normal(map.kernel.shape))):
            worse = Conv(
                **{f: getattr(map, f) for f in Conv.__slots__ if f not in ("radius", "kernel")},
                kernel=map.kernel + sign * loose.radius,
            )
            assert bound >= dense_norm(worse) * (1 - 1e-13)
        assert structured_norm_at_most(loose, bound)
        if bound:
            assert not structured_norm_at_most(loose, Fraction(structured_norm(map)) * (1 - Fraction(1, 10**6)))


def test_compositions_share_the_claim():
    rng = np.random.default_rng(10)
    for _ in range(10):
        first = conv(rng.standard_normal((3, 2, 3, 3)), (6, 6), pads=(1, 1))
        second = conv(rng.standard_normal((2, 3, 2, 2)), (6, 6), strides=(2, 2))
        whole = Composition(factors=(second, first))
        bound = structured_norm(whole)
        assert bound == structured_norm(first) * structured_norm(second)
        assert bound >= np.linalg.norm(whole.enclosure().dense().center, 2)
        assert structured_norm_at_most(whole, bound)
        assert not structured_norm_at_most(whole, bound * (1 - Fraction(1, 10**9)))


# --------------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("include_pad", [True, False])
@pytest.mark.parametrize(
    ("image", "taps", "strides", "pads"),
    [
        ((9, 9), (3, 3), (2, 2), (0, 0)),
        ((8, 7), (2, 3), (1, 2), (1, 0)),
        ((6,), (4,), (4,), (1,)),
        ((4, 5, 4), (2, 2, 3), (1, 2, 1), (0, 1, 1)),
        ((5, 5), (5, 5), (1, 1), (0, 0)),
    ],
)
def test_average_pooling_is_exact(image, taps, strides, pads, include_pad):
    output = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(image, pads, taps, strides, strict=True))
    window = window_sum((1, 2, *image), output, taps, strides, pads, (1,) * len(image))
    pool = Pool(window=window, count=valid_counts(window, pads if include_pad else None))
    true, bound = np.linalg.norm(pool.enclosure().dense().center, 2), structured_norm(pool)
    assert true * (1 - 1e-13) <= bound <= true * (1 + 1e-9)
    assert structured_norm_at_most(pool, bound)
    assert not structured_norm_at_most(pool, Fraction(float(true)) * (1 - Fraction(1, 10**9)))
    kronecker = np.ones((1, 1))
    for matrix, whole in averaging_factors(pool):
        kronecker = np.kron(kronecker, matrix.astype(float) / whole)
    assert np.allclose(np.kron(np.eye(2), kronecker), pool.enclosure().dense().center, rtol=1e-14)


def test_counts_that_do_not_factor_fall_back_on_sums():
    window = window_sum((1, 1, 4, 4), (2, 2), (2, 2), (2, 2), (0, 0), (1, 1))
    pool = Pool(window=window, count=np.array([[4.0, 4.0], [4.0, 3.0]]))
    assert averaging_factors(pool) is None
    bound = structured_norm(pool)
    assert bound >= np.linalg.norm(pool.enclosure().dense().center, 2) * (1 - 1e-13)
    assert structured_norm_at_most(pool, bound)
