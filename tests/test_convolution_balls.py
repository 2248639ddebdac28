"""Convolutions on balls: applied in integers without being written out, to the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from lipmodel.lower.balls import Balls, ball_map, object_array, split_matrix
from lipmodel.network.conv import Conv


@pytest.mark.parametrize("seed", range(24))
def test_a_convolution_gives_what_its_matrix_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 2]))
    spatial, taps = ([int(v) for v in rng.integers(*ends, 2)] for ends in ((3, 7), (1, 4)))
    strides, pads = ([int(v) for v in rng.integers(*ends, 2)] for ends in ((1, 3), (0, 2)))
    output = [max(1, (n + 2 * p - k) // s + 1) for n, p, k, s in zip(spatial, pads, taps, strides, strict=True)]
    kernel = rng.standard_normal((3 * groups, 2, *taps)) * 10.0 ** rng.integers(-8, 8, (3 * groups, 2, *taps))
    conv = Conv(
        kernel=kernel,
        radius=np.abs(kernel) * 1e-16 if seed % 2 else None,
        input_shape=(1, 2 * groups, *spatial),
        output_spatial=tuple(output),
        strides=tuple(strides),
        pads=tuple(pads),
        dilations=(1, 1),
        groups=groups,
    )
    size = conv.shape[1]
    middle = [int(v) for v in rng.integers(-(2**60), 2**60, 2 * size)]
    blur = rng.random((size, 2)) * 1e-9 if seed % 3 else None
    x = Balls(mid=object_array(middle, (size, 2)), exponent=70, radius=blur)
    found, matrix = ball_map(conv).apply(x), conv.enclosure()
    expected = split_matrix(matrix.center, matrix.radius).apply(x)
    exponent = max(found.exponent, expected.exponent)
    assert np.all(found.rescaled(exponent).mid == expected.rescaled(exponent).mid)
    assert (found.radius is None) == (expected.radius is None)
    if found.radius is not None:
        assert expected.radius is not None
        np.testing.assert_allclose(found.radius, expected.radius, rtol=1e-6)
