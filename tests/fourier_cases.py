"""Convolutional networks by hand, as matrices and as increment systems, and the largest norm over their slopes."""

from __future__ import annotations

import itertools
import math
import pathlib

import numpy as np
import pytest

from lipmodel.certify.fourier import check_fourier, read_fourier
from lipmodel.fourier.evidence import fourier_multipliers
from lipmodel.model.forms import LinearForm, Signal
from lipmodel.network.conv import Conv
from lipmodel.network.increments import IncrementSystem, SlopeRestricted
from lipmodel.network.linear import Dense, Diagonal, compose

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")


# ----------------------------------------------------------------------------------------------- networks by hand


def conv(kernel, shape, *, stride=1, pads=None, after=None, dilation=1, groups=1):
    """A convolution of (channels, *spatial), padded to the same size where nothing is said."""
    kernel = np.asarray(kernel, dtype=np.float64)
    taps = kernel.shape[2:]
    pads = tuple((k - 1) * dilation // 2 for k in taps) if pads is None else pads
    after = pads if after is None else after
    reached = [n + p + a - (k - 1) * dilation - 1 for n, p, a, k in zip(shape[1:], pads, after, taps, strict=True)]
    return Conv(
        kernel=kernel,
        input_shape=(1, *shape),
        output_spatial=tuple(r // stride + 1 for r in reached),
        strides=(stride,) * len(taps),
        pads=tuple(pads),
        dilations=(dilation,) * len(taps),
        groups=groups,
    )


def system_of(forms, output, size, slopes=(0.0, 1.0)):
    """The increment system in which activation k reads forms[k - 1], a map for each signal, 0 being the input."""
    signals = [Signal(name="x", size=size)]
    activations = []

    def form(blocks):
        rows = next(iter(blocks.values())).shape[0]
        return LinearForm(size=rows, blocks={signals[j]: m for j, m in blocks.items()})

    for k, blocks in enumerate(forms, start=1):
        pre = form(blocks)
        signal = Signal(name=f"w{k}", size=pre.size)
        ends = [np.broadcast_to(np.asarray(end, dtype=np.float64), pre.size).copy() for end in slopes]
        activations.append(
            SlopeRestricted(
                name=f"a{k}", signal=signal, pre=pre, post=LinearForm.of(signal), alpha=ends[0], beta=ends[1]
            )
        )
        signals.append(signal)
    last = form(output)
    return IncrementSystem(
        signals=tuple(signals),
        input=LinearForm.of(signals[0], role="input"),
        activations=tuple(activations),
        output=LinearForm(size=last.size, blocks=last.blocks, role="output"),
    )


def dense(m):
    return m.enclosure().dense().center


def formal_constant(system):
    """The largest norm over all choices of slopes at the ends of their intervals."""
    at = system.positions()
    choices = np.array(list(itertools.product((False, True), repeat=system.neurons)))
    maps, start = [np.broadcast_to(np.eye(system.input.size), (len(choices), *[system.input.size] * 2))], 0
    for a in system.activations:
        v = sum(dense(m) @ maps[at[s]] for s, m in a.pre.blocks.items())
        slopes = np.where(choices[:, start : start + a.size], a.beta, a.alpha)
        start += a.size
        maps.append(slopes[:, :, None] * v)
    y = sum(dense(m) @ maps[at[s]] for s, m in system.output.blocks.items())
    return float(np.linalg.norm(y, 2, axis=(1, 2)).max())


def proved(system, **options):
    found = fourier_multipliers(system, **options).prove(system, ("2", "2"), math.inf)
    assert found is not None
    return found


def verified(system, proof):
    """What a certificate's rule decides, without a file."""
    period, slots, multipliers, bound = read_fourier(proof)
    check_fourier(system, period, slots, multipliers, "2", bound)
    return bound


def random_system(seed):
    """A convolutional network of random shape."""
    rng = np.random.default_rng(seed)
    axes = int(rng.integers(1, 3))
    shape = (int(rng.integers(1, 3)), *(int(n) for n in rng.integers(3, 8, axes)))
    size = math.prod(shape)
    source, forms = 0, []
    for k in range(int(rng.integers(1, 4))):
        groups = shape[0] if rng.random() < 0.2 else 1
        channels = groups * int(rng.integers(1, 3))
        taps = tuple(int(t) for t in rng.integers(1, 4, axes))
        stride, dilation = (int(v) for v in rng.integers(1, 3, 2))
        pads, after = (tuple(int(p) for p in rng.integers(0, 3, axes)) for _ in range(2))
        room = [n + p + a - (t - 1) * dilation for n, p, a, t in zip(shape[1:], pads, after, taps, strict=True)]
        if min(room) < 1 or math.prod((r - 1) // stride + 1 for r in room) < 2:
            break
        kernel = rng.standard_normal((channels, shape[0] // groups, *taps))
        layer = conv(kernel, shape, stride=stride, pads=pads, after=after, dilation=dilation, groups=groups)
        blocks = {source: layer}
        if rng.random() < 0.5:
            gains = np.repeat(rng.standard_normal(channels), math.prod(layer.output_spatial))
            blocks = {source: compose(Diagonal(values=gains), layer)}
        forms.append(blocks)
        shape, source = (channels, *layer.output_spatial), k + 1
    if not forms:
        return random_system(seed + 1000)
    return system_of(forms, {source: Dense(weights=rng.standard_normal((2, math.prod(shape))))}, size)
