"""Convolutional networks on a torus: stencils, multipliers that repeat, and the rule that checks them by frequency."""

from __future__ import annotations

import math
import pathlib
import time

import numpy as np
import pytest
from flint import acb, acb_mat, arb, ctx
from fourier_cases import conv, formal_constant, proved, random_system, system_of, verified

import lipmodel as lm
from lipmodel.certify.fourier import check_fourier, enclosed_factor
from lipmodel.certify.kernel import Rejected
from lipmodel.errors import UsageError
from lipmodel.fourier import search, torus
from lipmodel.fourier.evidence import by_image, fourier_multipliers
from lipmodel.fourier.stencils import pictures
from lipmodel.fourier.tail import tail_of
from lipmodel.network.linear import Dense, Diagonal, Selection, compose, identity

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")


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


def test_evidence_made_for_another_network_is_about_the_one_that_is_asked():
    """The pictures of a network with a smaller kernel must not prove anything about a larger one."""
    small = random_system(21)
    large = small.restrict_output(Diagonal(values=np.full(small.output.size, 8.0)))
    evidence = fourier_multipliers(small, pixels=False)
    found = evidence.prove(large, ("2", "2"), math.inf)
    own = fourier_multipliers(large, pixels=False).prove(large, ("2", "2"), math.inf)
    assert found is not None
    assert own is not None
    assert found.bound == own.bound
    assert found.bound > 7.0 * evidence.prove(small, ("2", "2"), math.inf).bound
