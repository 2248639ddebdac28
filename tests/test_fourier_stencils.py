"""Layers of pixels as stencils, and their frequencies as one circulant matrix."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import pytest
from fourier_cases import conv, dense, random_system, system_of

from lipmodel.certify.fourier import enclosed_factor
from lipmodel.fourier import search, torus
from lipmodel.fourier.evidence import by_image
from lipmodel.fourier.stencils import pictures
from lipmodel.fourier.tail import tail_of
from lipmodel.network.conv import Pool, valid_counts, window_sum
from lipmodel.network.linear import Dense, Diagonal, Selection, compose, identity, total

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")


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
