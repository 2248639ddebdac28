"""Convolution and average pooling as linear maps: applied, transposed, expanded and exact, all the same."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.signal import correlate

from lipmodel.network.conv import Conv, Pool, valid_counts, window_sum
from lipmodel.ranges.enclosure import MatrixEnclosure


def random_conv(seed: int) -> Conv:
    rng = np.random.default_rng(seed)
    d, groups = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    channels, outputs = groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 3))

    def axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(v) for v in rng.integers(low, high, d))

    return Conv(
        kernel=rng.standard_normal((outputs, channels // groups, *axis(1, 4))),
        input_shape=(int(rng.integers(1, 3)), channels, *axis(1, 6)),
        output_spatial=axis(1, 5),
        strides=axis(1, 4),
        pads=axis(0, 3),
        dilations=axis(1, 3),
        groups=groups,
    )


def direct(conv: Conv, x: np.ndarray) -> np.ndarray:
    """The definition, entry by entry."""
    tensor = x.reshape(conv.input_shape)
    y = np.zeros(conv.output_shape)
    outputs, fan_in = conv.kernel.shape[:2]
    for at in np.ndindex(*conv.output_shape):
        b, o, p = at[0], at[1], at[2:]
        first = o // (outputs // conv.groups) * fan_in
        for c, *t in np.ndindex(*conv.kernel.shape[1:]):
            q = [
                i * s - pad + k * e
                for i, s, pad, k, e in zip(p, conv.strides, conv.pads, t, conv.dilations, strict=True)
            ]
            if all(0 <= i < n for i, n in zip(q, conv.input_shape[2:], strict=True)):
                y[at] += conv.kernel[(o, c, *t)] * tensor[(b, first + c, *q)]
    return y.ravel()


@pytest.mark.parametrize("seed", range(60))
def test_all_forms_of_a_convolution_agree(seed: int) -> None:
    conv = random_conv(seed)
    rng = np.random.default_rng(seed)
    m, n = conv.shape
    x, y = rng.standard_normal((n, 2)), rng.standard_normal((m, 3))
    enclosure = conv.enclosure()
    assert sp.issparse(enclosure.center)
    assert enclosure.is_exact
    assert enclosure.center.nnz == conv.entries
    assert set(np.unique(enclosure.center.data)) <= set(np.unique(conv.kernel))
    np.testing.assert_allclose(conv.matvec(x[:, 0]), direct(conv, x[:, 0]), atol=1e-12)
    np.testing.assert_allclose(conv.matvec(x), enclosure.center @ x, atol=1e-12)
    np.testing.assert_allclose(conv.rmatvec(y), enclosure.center.T @ y, atol=1e-12)
    np.testing.assert_allclose(conv.rmatvec(y[:, 0]), conv.rmatvec(y)[:, 0], atol=1e-12)
    exact = conv.exact()
    values = [float(Fraction(int(v), 2**exact.exponent)) for v in exact.mantissa.entries()]
    np.testing.assert_array_equal(np.reshape(values, conv.shape), enclosure.center.toarray())


def test_against_scipy() -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((6, 7)), rng.standard_normal((3, 2))
    conv = Conv(
        kernel=kernel[None, None],
        input_shape=(1, 1, 6, 7),
        output_spatial=(8, 8),
        strides=(1, 1),
        pads=(2, 1),
        dilations=(1, 1),
    )
    np.testing.assert_allclose(conv.matvec(x.ravel()), correlate(x, kernel, mode="full").ravel(), atol=1e-12)


def test_nothing_is_expanded_to_apply_a_large_convolution() -> None:
    conv = Conv(
        kernel=np.ones((8, 8, 3, 3)),
        input_shape=(1, 8, 64, 64),
        output_spatial=(64, 64),
        strides=(1, 1),
        pads=(1, 1),
        dilations=(1, 1),
    )
    assert conv.entries == 8 * 8 * (3 * 64 - 2) ** 2
    assert conv.matvec(np.ones(conv.shape[1])).max() == 72.0


def test_a_kernel_known_up_to_an_error() -> None:
    conv = random_conv(5)
    rough = Conv(
        kernel=conv.kernel,
        radius=1e-10 * np.abs(conv.kernel),
        input_shape=conv.input_shape,
        output_spatial=conv.output_spatial,
        strides=conv.strides,
        pads=conv.pads,
        dilations=conv.dilations,
        groups=conv.groups,
    )
    enclosure = rough.enclosure().dense()
    np.testing.assert_allclose(enclosure.radius, 1e-10 * np.abs(enclosure.center))


def contains(enclosure: MatrixEnclosure, row: int, column: int, value: Fraction) -> bool:
    dense = enclosure.dense()
    radius = 0.0 if dense.radius is None else float(dense.radius[row, column])
    return abs(Fraction(float(dense.center[row, column])) - value) <= Fraction(radius)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (3, 2)])
@pytest.mark.parametrize("padded", [False, True])
def test_average_pooling(kernel: tuple[int, ...], padded: bool) -> None:
    window = window_sum((2, 3, 5, 6), (3, 3), kernel, (2, 2), (1, 1), (1, 1))
    count = valid_counts(window, (1, 1) if padded else None)
    pool = Pool(window=window, count=count)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((pool.shape[1], 2)), rng.standard_normal((pool.shape[0], 2))
    enclosure = pool.enclosure()
    np.testing.assert_allclose(pool.matvec(x), enclosure.center @ x, atol=1e-13)
    np.testing.assert_allclose(pool.rmatvec(y), enclosure.center.T @ y, atol=1e-13)
    counts = np.broadcast_to(count, pool.output_shape).ravel().astype(int)
    exact_everywhere = all(c & (c - 1) == 0 for c in counts.tolist())
    assert enclosure.is_exact == exact_everywhere
    rows, columns = enclosure.center.nonzero()
    for row, column in zip(rows[::7].tolist(), columns[::7].tolist(), strict=True):
        assert contains(enclosure, row, column, Fraction(1, int(counts[row])))
    exact = pool.exact()
    assert (exact.radius is None) == exact_everywhere


def test_counts() -> None:
    window = window_sum((1, 1, 4), (3,), (3,), (2,), (1,), (1,))
    np.testing.assert_array_equal(valid_counts(window), [2, 3, 1])
    np.testing.assert_array_equal(valid_counts(window, (1,)), [3, 3, 2])
