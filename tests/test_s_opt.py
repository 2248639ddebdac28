"""S-opt: reaches LipSDP-Neuron, is anytime, deep, and invariant under what the program is invariant under."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path

import numpy as np
import pytest
from test_closed_form_multipliers import CHECKS, names, rescaled_chain

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.backends.base import SolveOptions
from lipmodel.certify.lmi import Multipliers
from lipmodel.certify.repair import prove_closed_form
from lipmodel.formulation import formulation
from lipmodel.network.increments import chain_of, float_system
from lipmodel.testing.networks import KINDS, formal_constant, random_network, random_system

SHARED = Path(__file__).resolve().parents[2] / "shared"
PAIRS = [("2", "2"), ("2", "1"), ("inf", "2"), ("inf", "1")]
REACHED = 1e-4


def gaussian(dims, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((m, n)) / np.sqrt(n) for n, m in itertools.pairwise(dims)]


def stream(system, p="2", q="2"):
    return formulation("s-opt").build(system, lm.Spec(input_norm=p, output_norm=q))


def best(system, p="2", q="2"):
    return min((m.claim(p, q) for m in stream(system, p, q)), default=math.inf)


def optimum(system, p="2", q="2"):
    """Of the same program, by the native solver to its tolerance, from below."""
    model = formulation("geolip").build(system, lm.Spec(input_norm=p, output_norm=q))
    point = backend("native").solve(model, SolveOptions(tol=1e-7))
    assert point.termination == "optimal"
    return model.bound_of(point.lower)


# ---------------------------------------------------------------------------------------------------------------------
# The optimum


QUICK = ("declaration", "repeatable", "enumeration-one-layer", "enumeration-residual", "enumeration-concat", "scaling")


@pytest.mark.parametrize(
    "check", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CHECKS]
)
def test_conformance(check):
    CHECKS[check](formulation("s-opt"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_is_reached_on_every_graph_in_every_norm(kind):
    system = random_system(kind, 3)
    matrices = float_system(system)
    for p, q in PAIRS:
        found = min(stream(system, p, q), key=lambda m: m.claim(p, q))
        value, least = found.claim(p, q), optimum(system, p, q)
        assert least * (1.0 - 1e-7) <= value <= least * (1.0 + REACHED)
        proved = prove_closed_form(matrices, p, q, found, "s-opt")
        assert proved.bound == pytest.approx(value, rel=1e-8)
        assert proved.bound >= formal_constant(system, p, q) * (1.0 - 1e-9)


@pytest.mark.parametrize(
    ("dims", "slopes"),
    [([8, 16, 16, 1], (0.1, 1.0)), ([4, 6, 6, 6, 6, 6, 3], (-1.0, 1.0)), ([30, 40, 10], (0.0, 1.0))],
)
def test_deeper_chains_reach_it_too(dims, slopes):
    system = chain_of(gaussian(dims, 1), *slopes)
    least = optimum(system)
    assert least * (1.0 - 1e-7) <= best(system) <= least * (1.0 + REACHED)


@pytest.mark.slow
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("dims", [[6, *([10] * 20), 3], [5, *([12] * 8), 5], [20, *([20] * 20), 10]])
def test_twenty_layers(dims, slopes):
    test_deeper_chains_reach_it_too(dims, slopes)


@pytest.mark.parametrize("kind", KINDS)
def test_no_closed_form_of_the_family_is_below(kind):
    system = random_system(kind, 5)
    value = best(system)
    for name in names(system):
        found = formulation(name).build(system, lm.Spec())
        found = [found] if isinstance(found, Multipliers) else list(found)
        assert value <= min(m.claim("2", "2") for m in found) * (1.0 + 1e-4)
    rows = lm.elimination.Recursion(system, lm.Spec())
    for c in (1.0, 1.4, 1.7):
        row_sum = rows(lambda gram, layer, c=c: lm.elimination.choose_s(gram, "row-sum", c))
        assert value <= row_sum.claim("2", "2") * (1.0 + 1e-4)


def test_a_thousand_layers_neither_overflow_nor_underflow():
    weights = gaussian([4, *([4] * 1100), 2], 2)
    closed = lm.elimination.Recursion(chain_of(weights), lm.Spec())
    first = closed(lambda gram, layer: lm.elimination.choose_s(gram, "row-sum", 1.4)).claim("2", "2")
    found = [m.claim("2", "2") for m in itertools.islice(stream(chain_of(weights)), 12)]
    assert all(0.0 < value < math.inf for value in found)
    assert min(found) < 1e-3 * first


# ---------------------------------------------------------------------------------------------------------------------
# Invariance


def test_neurons_may_be_permuted_and_rescaled():
    weights = gaussian([5, 8, 8, 3], 3)
    values = [best(chain_of(w)) for w in (weights, rescaled_chain(weights, 0), rescaled_chain(weights, 1))]
    assert max(values) <= min(values) * (1.0 + 1e-5)


def test_scales_of_input_output_and_first_layer():
    weights = gaussian([5, 8, 8, 3], 3)
    before = best(chain_of(weights))
    assert best(chain_of([10.0 * weights[0], *weights[1:]])) == pytest.approx(10.0 * before, rel=1e-5)
    assert best(chain_of([*weights[:-1], 1e-3 * weights[-1]])) == pytest.approx(1e-3 * before, rel=1e-5)


def test_a_dead_neuron_changes_nothing():
    first, second = gaussian([4, 6, 2], 5)
    before = best(chain_of([first, second]))
    dead = [np.vstack([first, np.ones((1, 4))]), np.hstack([second, np.zeros((2, 1))])]
    net = lm.from_weights(dead)
    assert lm.solve(net, "s-opt", norm="2", witness=False).bound == pytest.approx(before, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Anytime


def test_the_stream_falls_and_every_member_of_it_is_feasible():
    system = chain_of(gaussian([6, *([12] * 6), 4], 2))
    matrices = float_system(system)
    points = list(stream(system))
    values = [m.claim("2", "2") for m in points]
    assert len(values) > 20
    assert all(after < before for before, after in itertools.pairwise(values[1:]))
    for m in (points[0], points[1], points[len(points) // 2], points[-1]):
        proved = prove_closed_form(matrices, "2", "2", m, "s-opt")
        assert proved.bound == pytest.approx(m.claim("2", "2"), rel=1e-8)


def test_drawing_one_point_leaves_the_drawers_settings_alone():
    with np.errstate(all="raise"):
        points = stream(chain_of(gaussian([6, 12, 12, 4], 2)))
        next(points)
        assert np.geterr()["over"] == "raise"
        next(points)
        assert set(np.geterr().values()) == {"raise"}


def test_a_time_limit_ends_the_stream_with_a_proved_bound():
    net = lm.from_weights(gaussian([30, *([30] * 60), 10], 4))
    seconds = time.process_time()
    r = lm.solve(net, "s-opt", norm="2", time_limit=1.0, witness=False)
    assert r.termination == "time-limit"
    assert r.assurance == "proved"
    assert r.bound == pytest.approx(r.claim, rel=1e-6)
    assert time.process_time() - seconds < 30.0
    closed = lm.solve(net, "eclipse-fast", norm="2", witness=False)
    assert r.bound < closed.bound


def test_an_interrupt_keeps_what_was_found():
    class Interrupted(lm.Formulation):
        """S-opt, and somebody who does not wait for its end."""

        name, norms = "interrupted", {("2", "2")}

        def build(self, system, spec):
            yield from itertools.islice(stream(system), 8)
            raise KeyboardInterrupt

    net = lm.from_weights(gaussian([6, *([12] * 6), 4], 2))
    r = lm.solve(net, Interrupted, norm="2", witness=False)
    values = [m.claim("2", "2") for m in itertools.islice(stream(lm.increments(net)), 8)]
    assert r.termination == "interrupted"
    assert r.assurance == "proved"
    assert r.bound == pytest.approx(min(values), rel=1e-8)


def test_models_that_no_descent_takes_are_refused():
    system = random_system("chain", 0)
    model = formulation("geolip", {"cone": "dd"}).build(system, lm.Spec())
    with pytest.raises(lm.UsageError, match="descent does not take"):
        next(lm.elimination.descent(model, system))


def test_tied_multipliers_reach_lipsdp_layer():
    system = chain_of(gaussian([4, 6, 6, 2], 6))
    model = formulation("lipsdp-layer").build(system, lm.Spec())
    value = min(m.claim("2", "2") for m in lm.elimination.descent(model, system))
    point = backend("native").solve(model, SolveOptions(tol=1e-7))
    assert value == pytest.approx(model.bound_of(point.objective), rel=REACHED)


def test_families_and_domains():
    net = random_network("mixed", 4, inputs=3, outputs=3)
    rows = lm.solve(net, "s-opt", norm="2:inf", witness=False)
    geo = lm.solve(net, "geolip", norm="2:inf", witness=False)
    assert rows.bound == pytest.approx(geo.bound, rel=REACHED)
    box = lm.solve(net, "s-opt", norm="2", domain="box:-0.1:0.1", witness=False)
    assert box.bound <= lm.solve(net, "s-opt", norm="2", witness=False).bound * (1.0 + 1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Real networks


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("lipsdp/random", 36.4822298),
        ("lipsdp/mnist", 24.3663491),
        ("acasxu/1_1", 88258.82),
        ("digits/fnn3_seed0", 15.5813985),
    ],
)
def test_real_networks(file, value):
    path = SHARED / "nets" / f"{file}.onnx"
    r = lm.solve(path, "s-opt", norm="2", witness=False)
    assert r.assurance == "proved"
    assert value * (1.0 - 1e-6) <= r.bound <= value * (1.0 + REACHED)
    assert lm.verify(path, r.certificate)
