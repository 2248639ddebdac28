"""Convolutional networks on a torus: stencils, multipliers that repeat, and the rule that checks them by frequency."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pathlib
import time

import numpy as np
import onnx
import pytest
from flint import acb, acb_mat, arb, ctx
from onnx import helper
from onnx_models import make

import lipmodel as lm
from lipmodel.certify.fourier import check_fourier, enclosed_factor, read_fourier
from lipmodel.certify.kernel import Rejected
from lipmodel.errors import Refuted, UsageError
from lipmodel.fourier import search, torus
from lipmodel.fourier.evidence import by_image, fourier_multipliers
from lipmodel.fourier.stencils import pictures
from lipmodel.fourier.tail import tail_of
from lipmodel.model.forms import LinearForm, Signal
from lipmodel.network.conv import Conv, Pool, valid_counts, window_sum
from lipmodel.network.increments import IncrementSystem, SlopeRestricted
from lipmodel.network.linear import Dense, Diagonal, Selection, compose, identity, total

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
    """A convolutional network of random shape, and the number of its images."""
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


# ---------------------------------------------------------------------------------------------------- the stencils


def torus_error(system, period=1):
    """The largest difference between what images read of each other and what their blocks over frequencies say."""
    found = pictures(system)
    place = torus.least_torus(found, period)
    layout = torus.layout_of(found, place)
    shape = [n // q for n, q in zip(place.sides, place.period, strict=True)]
    every = np.indices(shape).reshape(len(shape), -1).T
    blocks = torus.stencil_blocks(found, place, layout, every)
    rng = np.random.default_rng(0)
    z = {k: rng.standard_normal(len(image.channel)) * image.present for k, image in found.images.items()}
    sides = np.array(place.sides)
    hat = np.zeros((len(every), layout.size), dtype=complex)
    for k, image in found.images.items():
        waves = np.exp(-2j * np.pi * ((image.place / sides) @ every.T)) / math.sqrt(place.shifts)
        for i in np.flatnonzero(image.present):
            hat[:, layout.starts[k] + layout.slots[k].of[i]] += z[k][i] * waves[i]
    transformed = np.einsum("frc,fc->fr", blocks, hat)
    at, worst = system.positions(), 0.0
    for k, image in found.images.items():
        if not k:
            continue
        v = sum(m.matvec(z[at[s]]) for s, m in system.activations[k - 1].pre.blocks.items())
        waves = np.exp(2j * np.pi * ((image.place / sides) @ every.T)) / math.sqrt(place.shifts)
        rows = layout.starts[k] - layout.inputs + layout.slots[k].of
        back = np.array([waves[i] @ transformed[:, rows[i]] for i in range(len(v))])
        worst = max(worst, float(np.abs(back - v).max()))
    return worst


@pytest.mark.parametrize("seed", range(40))
def test_stencils_on_the_torus_are_the_matrices(seed):
    system = random_system(seed)
    assert len(pictures(system).images) == len(system.activations) + 1
    for period in (1, 2, 3):
        assert torus_error(system, period) < 1e-11


def test_three_axes_permuted_inputs_padding_and_residuals():
    rng = np.random.default_rng(1)
    cube = conv(rng.standard_normal((2, 1, 2, 1, 3)), (1, 3, 2, 4))
    assert torus_error(system_of([{0: cube}], {1: identity(cube.shape[0])}, cube.shape[1])) < 1e-11
    # channels last, then a padding that is a map of its own, then a convolution without any
    swap = np.arange(2 * 12).reshape(4, 3, 2).transpose(2, 0, 1)
    padded = np.full((2, 6, 5), -1)
    padded[:, 1:5, 2:5] = swap
    first = conv(rng.standard_normal((3, 2, 3, 3)), (2, 6, 5), pads=(0, 0))
    read = compose(first, Selection(index=padded.ravel(), size=24))
    second = conv(rng.standard_normal((3, 3, 3, 3)), (3, 4, 3))
    forms = [{0: read}, {1: second}, {1: identity(36), 2: second}]
    assert torus_error(system_of(forms, {3: identity(36)}, 24)) < 1e-11
    # two ways from one signal
    both = total([identity(36), second])
    assert torus_error(system_of([{0: read}, {1: both}], {2: identity(36)}, 24)) < 1e-11
    # a branch with a stride, and another way to get to the same pixels
    forms = [{0: conv(rng.standard_normal((2, 1, 3, 3)), (1, 6, 6))}]
    forms += [{1: conv(rng.standard_normal((2, 2, 3, 3)), (2, 6, 6), stride=2)}]
    across = conv(rng.standard_normal((2, 2, 1, 1)), (2, 6, 6), stride=2)
    forms += [{1: across, 2: conv(rng.standard_normal((2, 2, 3, 3)), (2, 3, 3))}]
    system = system_of(forms, {3: identity(18)}, 36)
    assert len(pictures(system).images) == 4
    assert torus_error(system) < 1e-11


def test_average_pooling_before_a_convolution_where_nothing_is_cropped():
    rng = np.random.default_rng(2)
    first = conv(rng.standard_normal((2, 1, 3, 3)), (1, 6, 6))
    window = window_sum((1, 2, 6, 6), (3, 3), (2, 2), (2, 2), (0, 0), (1, 1))
    pool = Pool(window=window, count=valid_counts(window))
    second = conv(rng.standard_normal((2, 2, 3, 3)), (2, 3, 3))
    system = system_of([{0: first}, {1: compose(second, pool)}], {2: identity(18)}, 36)
    assert len(pictures(system).images) == 3
    assert torus_error(system) < 1e-11


def test_what_is_no_stencil_is_not_taken_for_one():
    rng = np.random.default_rng(3)
    a, b = conv(rng.standard_normal((1, 1, 3)), (1, 6)), conv(rng.standard_normal((1, 1, 3)), (1, 6))
    crop = Selection(index=np.arange(4), size=6)
    short = conv(rng.standard_normal((1, 1, 3)), (1, 4))
    overlapping = window_sum((1, 1, 6), (6,), (3,), (1,), (1,), (1,))
    cases = {
        "two linear maps": compose(b, a),  # padding between them
        "cropped": compose(short, crop),
        "weights at the border": Pool(window=overlapping, count=valid_counts(overlapping)),
        "differ within a channel": compose(Diagonal(values=rng.standard_normal(6)), a),
        "Dense": Dense(weights=rng.standard_normal((6, 6))),
        "been moved": compose(b, Selection(index=np.array([1, 0, 2, 3, 4, 5]), size=6)),
        "the same": compose(Selection(index=np.array([0, 1, 1, 2]), size=6), a),
        "read nothing": compose(Selection(index=np.array([0, -1, 1, 2]), size=6), a),
    }
    for words, m in cases.items():
        found = pictures(system_of([{0: conv([[[1.0]]], (1, 6))}, {1: m}], {2: identity(m.shape[0])}, 6))
        assert 2 not in found.images
        assert words in found.why[2]


# --------------------------------------------------------------------------- the torus as one dense matrix


def circulant_gram(system, t):
    """What rows reach through the images on the torus, without any Fourier transform: one dense inequality."""
    found = pictures(system)
    tail = tail_of(system, found)
    place = torus.least_torus(found)
    layout = torus.layout_of(found, place)
    sides = place.sides
    index = {}
    for k, image in found.images.items():
        spacing = image.spacing
        for c in range(image.channels):
            first = image.place[image.present][0] % np.array(spacing)
            for step in np.ndindex(*(n // s for n, s in zip(sides, spacing, strict=True))):
                where = tuple(int(o + s * d) for o, s, d in zip(first, step, spacing, strict=True))
                index[k, c, where] = len(index)
    forms = np.zeros((len(index), len(index)))
    for (k, j), taps in found.stencils.items():
        for (number, c, where), row in index.items():
            if number != k:
                continue
            for d, matrix in taps.items():
                met = tuple((a + b) % n for a, b, n in zip(where, d, sides, strict=True))
                for e in range(matrix.shape[1]):
                    forms[row, index[j, e, met]] += matrix[c, e]
    alpha, beta, weight = np.zeros(len(index)), np.zeros(len(index)), np.zeros(len(index))
    p = np.zeros((len(index), len(index)))
    for (k, c, where), row in index.items():
        if k == 0:
            p[row, row] = 1.0
            continue
        slots = layout.slots[k]
        here = tuple(w % q for w, q in zip(where, place.period, strict=True))
        phase = [tuple(r) for r in slots.residues.tolist()].index(here)
        slot = c * len(slots.residues) + phase
        weight[row] = t[k][slot]
        alpha[row], beta[row] = (end[slot] for end in torus.slot_slopes(system, k, slots, place))
    unit = np.eye(len(index))
    u, r = unit - alpha[:, None] * forms, unit - beta[:, None] * forms
    p += u.T @ (weight[:, None] * r) + r.T @ (weight[:, None] * u)
    rows = np.zeros((tail.rows, len(index)))
    for form in tail.forms:
        for j, m in form.images.items():
            image = found.images[j]
            for i in range(m.shape[1]):
                rows[form.rows, index[j, int(image.channel[i]), tuple(image.place[i].tolist())]] = dense(m)[:, i]
    return rows @ np.linalg.inv(p) @ rows.T


@pytest.mark.parametrize("seed", [0, 3, 5, 8, 12])
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-0.5, 1.0)])
def test_the_frequencies_are_the_circulant_matrix(seed, slopes):
    system = random_system(seed)
    system = system_of(
        [{system.positions()[s]: m for s, m in a.pre.blocks.items()} for a in system.activations],
        {system.positions()[s]: m for s, m in system.output.blocks.items()},
        system.input.size,
        slopes,
    )
    found = pictures(system)
    tail, place = tail_of(system, found), torus.least_torus(found)
    goal = search.objective(system, found, tail, place)
    t = by_image(found, place, goal.split(goal.start)[0])
    expected = circulant_gram(system, t)
    factor = enclosed_factor(system, found, tail, place, t)
    assert np.allclose(factor @ factor.T, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    assert np.linalg.eigvalsh(factor @ factor.T - expected)[0] > -1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-0.25, 1.0)])
def test_the_gradient_is_that_of_the_value(seed, slopes):
    system = random_system(seed)
    rng = np.random.default_rng(seed)
    last = system.signals[-1].size
    layers = [{system.positions()[s]: m for s, m in a.pre.blocks.items()} for a in system.activations]
    layers.append({len(layers): Dense(weights=rng.standard_normal((4, last)))})
    output = {len(layers): Dense(weights=rng.standard_normal((3, 4)))}
    system = system_of(layers, output, system.input.size, slopes)
    found = pictures(system)
    goal = search.objective(system, found, tail_of(system, found), torus.least_torus(found))
    trial = goal.forward(goal.start, 0.01, 40.0)
    gradient = goal.gradient(trial)
    direction = rng.standard_normal(len(gradient))
    ahead, behind = (goal.forward(goal.start + h * direction, 0.01, 40.0) for h in (1e-5, -1e-5))
    assert (ahead.value - behind.value) / 2e-5 == pytest.approx(gradient @ direction, rel=1e-5, abs=1e-8)


# ------------------------------------------------------------------------------------------------------- soundness


def small_systems():
    rng = np.random.default_rng(7)

    def kernel(*shape):
        return rng.standard_normal(shape)

    line = conv(kernel(2, 1, 3), (1, 4))
    yield "one layer", [{0: line}], {1: Dense(weights=kernel(2, 8))}, 4
    strided = conv(kernel(2, 2, 2), (2, 4), stride=2, pads=(0,))
    yield "strides", [{0: line}, {1: strided}], {2: Dense(weights=kernel(2, 4))}, 4
    square = conv(kernel(1, 1, 2, 2), (1, 3, 3), pads=(0, 0), after=(1, 1))
    yield "even kernel", [{0: square}], {1: Dense(weights=kernel(2, 9))}, 9
    same = conv(kernel(1, 1, 3), (1, 4))
    yield "residual", [{0: same}, {0: identity(4), 1: same}], {2: Dense(weights=kernel(2, 4))}, 4
    yield "dense behind", [{0: same}, {1: Dense(weights=kernel(3, 4))}], {2: Dense(weights=kernel(2, 3))}, 4
    rows = {1: Dense(weights=kernel(2, 4)), 2: Dense(weights=kernel(2, 3))}
    yield "skip to the end", [{0: same}, {1: Dense(weights=kernel(3, 4))}], rows, 4
    dilated = conv(kernel(1, 1, 2), (1, 5), dilation=2, pads=(1,))
    yield "dilated", [{0: dilated}], {1: identity(dilated.shape[0])}, 5


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-1.0, 1.0), (0.125, 1.0), (-0.125, 0.5)])
@pytest.mark.parametrize("case", list(small_systems()), ids=lambda case: case[0])
def test_never_below_the_truth(case, slopes):
    _, forms, output, size = case
    system = system_of(forms, output, size, slopes)
    truth = formal_constant(system)
    on_torus, on_image = proved(system, pixels=False), proved(system)
    assert on_torus.proof["rule"] == "fourier-lmi"
    assert on_image.proof["rule"] == "lmi"
    assert truth <= on_image.bound <= on_torus.bound * (1 + 1e-9)
    assert verified(system, on_torus.proof) == on_torus.bound


def test_longer_periods_are_tighter_where_the_torus_is_the_same():
    rng = np.random.default_rng(11)
    layers = [conv(rng.standard_normal((1, 1, 3)), (1, 5)) for _ in range(2)]
    system = system_of([{0: layers[0]}, {1: layers[1]}], {2: Dense(weights=rng.standard_normal((2, 5)))}, 5)
    found = [fourier_multipliers(system, period=period, pixels=False) for period in (1, 2, 3, 6)]
    assert {evidence.torus.sides for evidence in found} == {(6,)}
    one, two, three, six = (evidence.prove(system, ("2", "2"), math.inf).bound for evidence in found)
    assert formal_constant(system) <= six * (1 + 1e-12)
    assert six <= min(two, three) * (1 + 1e-4)
    assert max(two, three) <= one * (1 + 1e-4)
    assert six < one * 0.999


def test_layers_of_any_scale():
    """Scaling layers by powers of two whose product is 1 changes nothing, up to rounding."""
    rng = np.random.default_rng(3)
    kernels, rows = [rng.standard_normal(shape) for shape in ((2, 1, 3), (2, 2, 3))], rng.standard_normal((2, 10))
    bounds = []
    for a, b, c in ((0, 0, 0), (30, -30, 0), (-100, 70, 30), (100, 100, -200), (300, -300, 0)):
        layers = [conv(2.0**e * k, (k.shape[1], 5)) for e, k in zip((a, b), kernels, strict=True)]
        system = system_of([{0: layers[0]}, {1: layers[1]}], {2: Dense(weights=2.0**c * rows)}, 5)
        found = proved(system, pixels=False)
        assert verified(system, found.proof) == found.bound
        bounds.append(found.bound)
    assert bounds == pytest.approx([bounds[0]] * len(bounds), rel=1e-6)


# ----------------------------------------------------------------------------------------------------------- traps


def test_flipped_kernels_are_another_network():
    """The transform of a kernel without the conjugate belongs to another network: here its value is below the truth."""
    rng = np.random.default_rng(1)
    kernel, rows = rng.standard_normal((2, 1, 3)), rng.standard_normal((1, 8))
    system = system_of([{0: conv(kernel, (1, 4))}], {1: Dense(weights=rows)}, 4)
    flipped = system_of([{0: conv(kernel[:, :, ::-1], (1, 4))}], {1: Dense(weights=rows)}, 4)
    truth = formal_constant(system)
    assert proved(flipped).bound < 0.95 * truth
    wrong = proved(flipped, pixels=False).proof
    with pytest.raises(Rejected):
        verified(system, wrong)
    assert truth <= proved(system).bound < 1.2 * truth


def test_flattening_in_another_order_is_another_network():
    rng = np.random.default_rng(4)
    layer, rows = conv(rng.standard_normal((2, 1, 3)), (1, 4)), rng.standard_normal((1, 8))
    system = system_of([{0: layer}], {1: Dense(weights=rows)}, 4)
    other = rows.reshape(1, 2, 4).transpose(0, 2, 1).reshape(1, 8)
    last = Selection(index=np.arange(8).reshape(2, 4).T.ravel(), size=8)  # channels last
    same = system_of([{0: layer}], {1: compose(Dense(weights=other), last)}, 4)
    wrong = system_of([{0: layer}], {1: Dense(weights=other)}, 4)
    bounds = [proved(s, pixels=False).bound for s in (system, same, wrong)]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-9)
    assert abs(bounds[0] - bounds[2]) > 0.01
    small, large = sorted([(bounds[0], system), (bounds[2], wrong)], key=lambda pair: pair[0])
    proof = proved(small[1], pixels=False).proof
    with pytest.raises(Rejected):
        verified(large[1], proof)


def test_padding_needs_the_slope_zero(monkeypatch):
    """Padded positions of a torus have slope 0: with the slopes of a steep LeakyReLU there, a value below the truth."""
    rng = np.random.default_rng(50)
    kernels = [rng.standard_normal((1, 1, 3)) for _ in range(2)]
    rows = Dense(weights=rng.standard_normal((1, 3)))
    slopes = (0.9, 1.0)
    system = system_of([{0: conv(kernels[0], (1, 3))}, {1: conv(kernels[1], (1, 3))}], {2: rows}, 3, slopes)
    truth = formal_constant(system)
    assert proved(system).bound >= truth
    found = pictures(system)
    place = torus.least_torus(found)
    for k in (1, 2):
        alpha, beta = torus.slot_slopes(system, k, torus.slots_of(found.images[k], place), place)
        assert (alpha, beta) == (0.0, 1.0)
    monkeypatch.setattr(search, "slot_slopes", lambda system, k, slots, place: (np.full(1, 0.9), np.ones(1)))
    assert fourier_multipliers(system, pixels=False).prove(system, ("2", "2"), math.inf) is None  # nothing is proved
    goal = search.objective(system, found, tail_of(system, found), place)
    from lipmodel.backends.native.descent import improvements

    *_, best = improvements(goal, goal.start)
    assert math.exp(goal.forward(best, 0.0, 1.0).level / 2) < 0.8 * truth


def test_slopes_of_a_channel_are_the_least_and_the_greatest_over_its_pixels():
    rng = np.random.default_rng(6)
    layer = conv(rng.standard_normal((2, 1, 1)), (1, 3), pads=(0,))  # a torus without padding
    alpha = np.array([0.5, 0.25, 0.75, -0.5, 0.1, 0.2])
    beta = np.array([1.0, 2.0, 1.5, 0.5, 0.75, 0.25])
    system = system_of([{0: layer}], {1: Dense(weights=rng.standard_normal((2, 6)))}, 3, (alpha, beta))
    found = pictures(system)
    place = torus.least_torus(found)
    assert place.sides == (3,)
    ends = torus.slot_slopes(system, 1, torus.slots_of(found.images[1], place), place)
    assert ends[0].tolist() == [0.25, -0.5]
    assert ends[1].tolist() == [2.0, 0.75]
    assert formal_constant(system) <= proved(system, pixels=False).bound
    wider = torus.Torus(sides=(4,), period=(1,))
    ends = torus.slot_slopes(system, 1, torus.slots_of(found.images[1], wider), wider)
    assert ends[0].tolist() == [0.0, -0.5]


@pytest.mark.parametrize(("side", "expected"), [(4, 1.618), (8, 1.879), (16, 1.969)])
def test_a_skip_is_not_moved_by_the_padding(side, expected):
    """x + conv(relu(conv(x))), kernels a shift and its negative: without their common phase the bound would be 1."""
    shift = np.zeros((1, 1, 3))
    shift[0, 0, 2] = 1.0
    there, back = conv(shift, (1, side)), conv(-shift, (1, side))
    system = system_of([{0: there}], {0: identity(side), 1: back}, side)
    bound = proved(system).bound
    if side <= 8:
        assert formal_constant(system) == pytest.approx(expected, abs=1e-3)
    assert expected - 1e-3 <= bound <= 2.0 + 1e-9


# -------------------------------------------------------------------------------------------------------- refusals


def test_networks_without_images_are_refused_with_the_reason():
    with pytest.raises(UsageError, match="Dense"):
        lm.solve(lm.from_weights([np.eye(3), np.ones((1, 3))]), "fourier-lipsdp")
    whole = conv(np.ones((2, 1, 4)), (1, 4), pads=(0,))
    with pytest.raises(UsageError, match="one pixel"):
        fourier_multipliers(system_of([{0: whole}], {1: Dense(weights=np.ones((1, 2)))}, 4))
    with pytest.raises(UsageError, match="period"):
        fourier_multipliers(system_of([{0: conv(np.ones((1, 1, 3)), (1, 4))}], {1: identity(4)}, 4), period=0)
    long = conv(np.ones((1, 1, 3)), (1, 1500))
    with pytest.raises(UsageError, match="too large"):
        fourier_multipliers(system_of([{0: long}], {1: identity(1500)}, 1500))


def test_periods_that_need_too_much_memory_are_refused():
    layer = conv(np.ones((16, 1, 3, 3)), (1, 32, 32))
    system = system_of([{0: layer}], {1: Dense(weights=np.ones((1, layer.shape[0])))}, 1024)
    with pytest.raises(UsageError, match="too many"):
        fourier_multipliers(system, period=16)
    with pytest.raises(Rejected, match="too many"):
        check_fourier(system, 16, [np.ones(4096)], lm.Multipliers(t=(), g=np.ones(1), s=np.ones(1)), "2", 1e9)


def test_an_input_that_is_only_read_by_dense_layers_is_refused():
    part = Selection(index=np.arange(4), size=6)
    layer = compose(conv(np.ones((1, 1, 3)), (1, 4)), part)
    rows = Dense(weights=np.ones((1, 6)))
    system = system_of([{0: layer}], {0: rows, 1: Dense(weights=np.ones((1, 4)))}, 6)
    assert fourier_multipliers(system).prove(system, ("2", "2"), math.inf) is None
    with pytest.raises(Rejected, match="no convolution"):
        check_fourier(system, 1, [np.ones(1)], lm.Multipliers(t=(), g=np.ones(1), s=np.ones(1)), "2", 1e9)


def test_multipliers_that_are_too_small_are_rejected():
    rng = np.random.default_rng(9)
    layers = [conv(rng.standard_normal(shape), (shape[1], 5)) for shape in ((2, 1, 3), (2, 2, 3))]
    system = system_of([{0: layers[0]}, {1: layers[1]}], {2: Dense(weights=rng.standard_normal((2, 10)))}, 5)
    found = pictures(system)
    tail, place = tail_of(system, found), torus.least_torus(found)
    goal = search.objective(system, found, tail, place)
    slots = goal.split(goal.start)[0]
    enclosed_factor(system, found, tail, place, by_image(found, place, slots))
    for bad in (slots * np.array([1.0, 1.0, 30.0, 30.0]), slots * 0.0, slots * 1e300):
        with pytest.raises(Rejected):
            enclosed_factor(system, found, tail, place, by_image(found, place, bad))


# ----------------------------------------------------------------------------------------------------------- files


def saved(folder, name="net", seed=21):
    """conv - relu - conv with a stride - leaky relu - dense - relu - dense, as a file."""
    rng = np.random.default_rng(seed)
    shapes = {"k1": (2, 1, 3, 3), "k2": (3, 2, 2, 2), "w1": (4, 12), "w2": (2, 4)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "k2"], ["c"], strides=[2, 2]),
        helper.make_node("LeakyRelu", ["c"], ["d"], alpha=0.0625),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "w1"], ["f"], transB=1),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "w2"], ["y"], transB=1),
    ]
    path = folder / f"{name}.onnx"
    onnx.save(make(nodes, weights, shape=(1, 1, 4, 4)), path)
    return path


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """A network, its file, and its result as JSON values, by the rule of the torus."""
    path = saved(tmp_path_factory.mktemp("fourier"))
    network = lm.load(path)
    result = lm.solve(network, "fourier-lipsdp", options={"pixels": False}, witness=False)
    assert result.certificate["upper"]["rule"] == "fourier-lmi"
    data = json.loads(json.dumps(result.certificate))
    return network, data, result.bound


def test_a_file_is_solved_and_verified(solved):
    network, data, bound = solved
    verdict = lm.verify(network, data)
    assert verdict.bound == bound
    assert "independent reader" in verdict.read_by
    assert lm.solve(network, "lipsdp-neuron", witness=False).bound <= bound
    assert lm.solve(network, "fourier-lipsdp", witness=False).bound <= bound
    assert bound < lm.solve(network, "product", witness=False).bound


def test_families_by_rows(solved):
    network, _, _ = solved
    result = lm.solve(network, "fourier-lipsdp", norm="2:inf", options={"pixels": False}, witness=False)
    assert {m["proof"]["rule"] for m in result.certificate["upper"]["members"]} == {"fourier-lmi"}
    assert lm.verify(network, result.certificate).bound == result.bound


def changed(data, place, value):
    other = copy.deepcopy(data)
    at = other["upper"]
    for key in place[:-1]:
        at = at[key]
    if value is None:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return other


def scaled(text, factor):
    return (float.fromhex(text) * factor).hex()


def test_every_field_of_a_proof_matters(solved):
    network, data, bound = solved
    upper = data["upper"]
    below = math.nextafter(bound, 0.0).hex()
    refused = [(["bound"], below), (["g"], scaled(upper["g"], 1 - 1e-6)), (["g"], (-1.0).hex()), (["g"], "nan")]
    refused += [([key], None) for key in upper]
    refused += [
        (["more"], 1),
        (["rule"], "fourier"),
        (["norms"], ["inf", "2"]),
        (["norms"], ["2", "inf"]),
        (["norms"], 2),
    ]
    refused += [(["period"], value) for value in (0, -1, 1.0, "1", True, 17, [1], 10**9)]
    refused += [(["s", 0], scaled(upper["s"][0], 1 - 1e-6)), (["s"], upper["s"][:1]), (["s", 1], "0x0p+0")]
    for field in ("slots", "t"):
        refused += [([field], upper[field][:-1]), ([field], [*upper[field], upper[field][0]]), ([field], "x")]
        refused += [([field, 0], upper[field][0][:-1]), ([field, 0], [*upper[field][0], "0x1p+0"])]
        for k, values in enumerate(upper[field]):
            for i, text in enumerate(values):
                refused += [([field, k, i], value) for value in (scaled(text, -1.0), "inf", "nan", 1.0, None)]
    for place, value in refused:
        with pytest.raises(Refuted):
            lm.verify(network, changed(data, place, value))


def test_other_multipliers_prove_what_is_true_or_nothing(solved):
    """Multipliers moved either way: refused, or the bound stands, and the bound is never below what is true."""
    network, data, bound = solved
    truth = lm.solve(network, "fourier-lipsdp", witness=True).lower_bound
    verdicts = []
    for field in ("slots", "t"):
        for k, values in enumerate(data["upper"][field]):
            for i, text in enumerate(values):
                for factor in (0.5, 1 - 1e-3, 1 + 1e-3, 2.0):
                    try:
                        lm.verify(network, changed(data, [field, k, i], scaled(text, factor)))
                    except Refuted:
                        verdicts.append(False)
                    else:
                        verdicts.append(True)
    assert not all(verdicts)
    assert truth <= bound
    lowered = changed(data, ["bound"], (truth * 0.999).hex())
    lowered["claim"]["bound"] = lowered["upper"]["bound"]
    with pytest.raises(Refuted):
        lm.verify(network, lowered)


def test_a_proof_of_another_network_is_refused(solved, tmp_path):
    _, data, _ = solved
    for seed in (22, 23):
        other = lm.load(saved(tmp_path, f"other{seed}", seed))
        moved = copy.deepcopy(data)
        moved["network"]["sha256"] = other.source.sha256
        own = lm.solve(other, "fourier-lipsdp", options={"pixels": False}, witness=False).bound
        if own > float.fromhex(data["claim"]["bound"]):
            with pytest.raises(Refuted):
                lm.verify(other, moved)
            return
    raise AssertionError("no network with a larger bound")


def test_on_a_box_slopes_are_those_of_the_box(tmp_path):
    """tanh at pixels far from zero is flat: the slopes of a channel are the extremes over its pixels."""
    rng = np.random.default_rng(5)
    weights = {"k": rng.uniform(0.25, 0.5, (2, 1, 3)), "w": rng.standard_normal((2, 8))}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], pads=[1, 1]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "w"], ["y"], transB=1),
    ]
    path = tmp_path / "tanh.onnx"
    onnx.save(make(nodes, weights, shape=(1, 1, 4)), path)
    network = lm.load(path)
    box = lm.Box(lo=(0.5, 0.5, 0.25, 0.125), hi=(1.0, 0.75, 0.5, 0.25))
    system = lm.increments(network, box)
    ends = system.activations[0].beta.reshape(2, 4)
    assert np.ptp(ends, axis=1).min() > 0.01  # they differ from pixel to pixel
    found = pictures(system)
    place = torus.least_torus(found)
    alpha, beta = torus.slot_slopes(system, 1, torus.slots_of(found.images[1], place), place)
    assert beta.tolist() == ends.max(axis=1).tolist()
    assert alpha.tolist() == [0.0, 0.0]
    result = lm.solve(network, "fourier-lipsdp", domain=box, options={"pixels": False})
    assert result.lower_bound <= result.bound
    assert result.bound < lm.solve(network, "fourier-lipsdp", options={"pixels": False}, witness=False).bound
    assert formal_constant(system) <= result.bound
    assert lm.verify(network, result.certificate).bound == result.bound


def test_batch_normalisation_and_its_error_go_into_the_stencil(tmp_path):
    rng = np.random.default_rng(8)
    weights = {"k": rng.standard_normal((2, 1, 3, 3)), "w": rng.standard_normal((2, 18))}
    weights |= {name: rng.uniform(0.5, 1.5, 2) for name in ("gain", "shift", "mean", "variance")}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "gain", "shift", "mean", "variance"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["d"]),
        helper.make_node("Conv", ["d", "k2"], ["e"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "w"], ["y"], transB=1),
    ]
    weights["k2"] = rng.standard_normal((2, 2, 3, 3))
    path = tmp_path / "normalised.onnx"
    onnx.save(make(nodes, weights, shape=(1, 1, 3, 3)), path)
    network = lm.load(path)
    assert len(pictures(lm.increments(network)).images) == 3
    result = lm.solve(network, "fourier-lipsdp", options={"pixels": False})
    assert lm.verify(network, result.certificate).bound == result.bound
    assert result.lower_bound <= lm.solve(network, "lipsdp-neuron", witness=False).bound <= result.bound


@needs_shared
@pytest.mark.parametrize(("name", "torus_bound"), [("cnn2_seed0", 8.6244), ("cnn3_seed0", 23.1825)])
def test_digit_networks(name, torus_bound):
    """One row of two convolutional networks for digits; LipLT 9.20 and 25.18, products 11.60 and 33.92."""
    network = lm.load(SHARED / "nets" / "digits" / f"{name}.onnx")
    options = {"outputs": "7", "witness": False}
    result = lm.solve(network, "fourier-lipsdp", options={"pixels": False}, **options)
    assert result.bound == pytest.approx(torus_bound, rel=1e-3)
    assert lm.verify(network, result.certificate).bound == result.bound
    closer = lm.solve(network, "fourier-lipsdp", **options)
    neuron = {"cnn2_seed0": 7.275525667637, "cnn3_seed0": 18.7}[name]
    assert neuron <= closer.bound < 0.97 * torus_bound


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limit"), [("oval21/base", 5.81), ("glipsdp/cnn_C3_CH8", 3.43), ("resnet/cifar_2b", 62.0)]
)
def test_large_networks(name, limit):
    network = lm.load(SHARED / "nets" / f"{name}.onnx")
    result = lm.solve(network, "fourier-lipsdp", witness=False, time_limit=120)
    assert result.bound <= limit
    assert result.certificate["upper"]["rule"] == "fourier-lmi"
    assert lm.verify(network, result.certificate).bound == result.bound


# ------------------------------------------------------------------------------------------------ time and trust


def test_an_interrupt_leaves_what_was_found(monkeypatch):
    from lipmodel.backends.native import descent

    system = system_of([{0: conv([[[1.0, -2.0, 0.5]]], (1, 4))}], {1: identity(4)}, 4)

    def interrupted(goal, start, **_):
        yield start
        raise KeyboardInterrupt

    monkeypatch.setattr(descent, "improvements", interrupted)
    assert formal_constant(system) <= proved(system, pixels=False).bound < math.inf


def test_time_that_is_over_leaves_the_first_point():
    system = random_system(4)
    evidence = fourier_multipliers(system, pixels=False)
    found = evidence.prove(system, ("2", "2"), time.monotonic() - 1.0)
    assert found is not None
    assert verified(system, found.proof) == found.bound


def test_balls_enclose_and_compare_as_the_checker_assumes():
    third = arb(1) / 3
    assert third.contains(arb(1) / 3)
    assert not third >= third  # not certain
    assert arb(1.0, 0.5) > arb(0.25)
    assert not arb(1.0, 0.5) > arb(0.75)
    assert not arb("nan") >= arb(0)
    with ctx.workprec(30):
        assert float(arb(0.1)) == 0.1  # doubles are taken as they are, whatever the precision
        assert arb(0.1).is_exact()
        assert acb_mat(1, 1, [0.1 + 0.2j])[0, 0].imag.is_exact()
    assert abs(acb(arb(0, 1), arb(0, 1))) < 1.5
