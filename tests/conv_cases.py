"""Convolutions for the tests of their norms."""

from __future__ import annotations

import numpy as np

from lipmodel.network.conv import Conv
from lipmodel.network.linear import Diagonal


def conv(kernel, image, *, strides=None, pads=None, after=None, dilations=None, groups=1, batch=1, radius=None):
    kernel = np.asarray(kernel, dtype=float)
    d = len(image)
    strides, dilations = strides or (1,) * d, dilations or (1,) * d
    pads = pads if pads is not None else (0,) * d
    after = after if after is not None else pads
    axes = zip(image, pads, after, kernel.shape[2:], dilations, strides, strict=True)
    return Conv(
        kernel=kernel,
        radius=radius,
        input_shape=(batch, kernel.shape[1] * groups, *image),
        output_spatial=tuple((n + p + q - (k - 1) * e - 1) // s + 1 for n, p, q, k, e, s in axes),
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=groups,
    )


def dense_norm(map):
    """The spectral norm of the expanded matrix, of the moduli plus the radius where there is one."""
    e = map.enclosure().dense()
    return (
        float(np.linalg.norm(e.center, 2)) if e.radius is None else float(np.linalg.norm(abs(e.center) + e.radius, 2))
    )


def some_conv(rng):
    while True:
        d = int(rng.choice([1, 2, 2, 2, 3]))
        groups = int(rng.choice([1, 1, 2, 3]))
        outputs, fan_in = groups * int(rng.integers(1, 4)), int(rng.integers(1, 4))
        top = 9 if d < 3 else 5
        image, taps = tuple(map(int, rng.integers(2, top, d))), tuple(map(int, rng.integers(1, 5, d)))
        strides, dilations = tuple(map(int, rng.integers(1, 4, d))), tuple(map(int, rng.integers(1, 3, d)))
        pads, after = tuple(map(int, rng.integers(0, 4, d))), tuple(map(int, rng.integers(0, 4, d)))
        kernel = rng.standard_normal((outputs, fan_in, *taps))
        if rng.random() < 0.3:
            kernel = np.abs(kernel)  # the norm is near frequency zero
        map_ = conv(kernel, image, strides=strides, pads=pads, after=after, dilations=dilations, groups=groups)
        if min(map_.output_spatial) >= 1:
            return map_


def per_channel(shape, values, radius=None):
    def spread(channel):
        return np.broadcast_to(np.asarray(channel).reshape(1, -1, *(1,) * (len(shape) - 2)), shape).ravel().copy()

    return Diagonal(values=spread(values), radius=None if radius is None else spread(radius))
