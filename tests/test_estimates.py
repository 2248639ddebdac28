"""Estimates: what they are worth, that they are reproducible, and that they are never bounds."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.estimates import greedy_norm, power_norm, weibull_end
from lipmodel.network.linear import Dense

SHARED = Path(__file__).resolve().parents[2] / "shared"
DIGITS = SHARED / "nets" / "digits"
BELOW = ("sampled-gradients", "sampled-differences")
MATRICES = [np.ones((7, 1)), np.array([[9.0, 9.0, *[-3.1] * 5]])]


@pytest.fixture(scope="module")
def trap():
    """f(x) = 18 relu(x) - 15.5 relu(x - 1): the slope is 18 on (0, 1) and 2.5 beyond."""
    return lm.from_weights(MATRICES, [np.array([0.0, 0.0, *[-1.0] * 5]), np.zeros(1)])


@pytest.fixture(scope="module")
def net():
    rng = np.random.default_rng(5)
    sizes = [4, 8, 6, 3]
    weights = [rng.standard_normal((m, n)) / 2.0 for n, m in itertools.pairwise(sizes)]
    return lm.from_weights(weights, [0.3 * rng.standard_normal(len(w)) for w in weights])


def test_greedy_seqlip_is_below_the_truth(trap):
    result = lm.solve(trap, "seqlip", norm="2")
    found = lm.estimate(trap, "greedy-seqlip")
    assert found.value == pytest.approx(15.5, abs=1e-12)
    assert found.value < result.lower_bound <= result.bound
    assert found.kind == "may be below or above the truth"


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize(("seed", "printed"), [(0, 5.036085115417), (1, 5.019141774802), (4, 5.141067759676)])
def test_the_published_greedy_values_are_where_the_search_starts(seed, printed):
    """Tables of a later paper print |W_2 W_1|, the first step of greedy SeqLip; the constant is larger."""
    path = DIGITS / f"fnn2_seed{seed}.onnx"
    system = lm.increments(lm.load(path))
    after, before = (
        next(iter(form.blocks.values())).enclosure().dense().center
        for form in (system.output, system.activations[0].pre)
    )
    ends = np.zeros(len(before)), np.ones(len(before))
    assert greedy_norm(after[[7]], before, *ends, end=-math.inf) == pytest.approx(printed, rel=1e-9)
    greedy = lm.estimate(path, "greedy-seqlip", outputs=7).value
    proved = lm.solve(path, "seqlip", norm="2", outputs=7, witness=False).bound
    assert printed * (1.0 + 1e-3) < greedy <= proved


def test_greedy_is_a_local_maximum_for_any_slopes():
    rng = np.random.default_rng(2)
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (0.1, 1.5)):
        after, before = rng.standard_normal((3, 6)), rng.standard_normal((6, 4))
        ends = np.full(6, low), np.full(6, high)
        value = greedy_norm(after, before, *ends)
        vertices = [np.array([ends[(k >> j) & 1][j] for j in range(6)]) for k in range(64)]
        norms = [np.linalg.norm((after * v) @ before, 2) for v in vertices]
        assert value <= max(norms) * (1.0 + 1e-12)
        assert value == pytest.approx(min(norms, key=lambda n: abs(n - value)), rel=1e-12)
        k = int(np.argmin(np.abs(np.array(norms) - value)))
        assert all(norms[k ^ (1 << j)] <= value * (1.0 + 1e-9) for j in range(6))


def test_power_iteration_is_below_the_norm():
    rng = np.random.default_rng(1)
    below = 0
    for _ in range(20):
        matrix = rng.standard_normal((20, 30))
        value = power_norm(Dense(weights=matrix), rng, 3)
        norm = np.linalg.norm(matrix, 2)
        assert value <= norm * (1.0 + 1e-12)
        below += value < norm * 0.999
    assert below >= 15
    assert power_norm(Dense(weights=np.zeros((2, 2))), rng) == 0.0
    assert power_norm(Dense(weights=np.diag([3.0, 1.0])), rng, 60) == pytest.approx(3.0)


def test_a_product_of_power_iterations_can_be_below_the_constant():
    """A linear layer, where the product is the constant itself: what is too small is no bound."""
    matrix = np.random.default_rng(3).standard_normal((40, 40))
    net = lm.from_weights([matrix])
    found = lm.estimate(net, "power-product")
    truth = lm.solve(net, "product", norm="2")
    assert found.value < truth.lower_bound < truth.bound
    assert truth.bound == pytest.approx(np.linalg.norm(matrix, 2))


@pytest.mark.parametrize("name", BELOW)
@pytest.mark.parametrize(
    ("norm", "domain", "outputs"),
    [("2", "global", "all"), ("inf:1", "box:-1:1", "all"), ("2", "ball:0:0.5", "1"), ("1", "ball:0:0.5", "margin:0")],
)
def test_sampling_stays_below_what_is_proved(net, name, norm, domain, outputs):
    found = lm.estimate(net, name, norm=norm, domain=domain, outputs=outputs, seed=4)
    bound = lm.solve(net, "product", norm=norm, domain=domain, outputs=outputs, witness=False).bound
    assert 0.0 < found.value <= bound * (1.0 + 1e-9)
    assert found.kind == "from below"


def test_sampling_finds_the_slope_of_a_line_but_not_a_needle():
    line = lm.from_weights([np.array([[3.0, 4.0]])])
    assert lm.estimate(line, "sampled-gradients").value == pytest.approx(5.0)
    assert 4.0 < lm.estimate(line, "sampled-differences").value <= 5.0 * (1.0 + 1e-12)
    # slope 1000 on an interval of length 1e-9, at which no sample looks
    needle = lm.from_weights(
        [np.ones((2, 1)), np.array([[1000.0, -1000.0]])], [np.array([-0.3, -0.3 - 1e-9]), np.zeros(1)]
    )
    for name in (*BELOW, "clever"):
        assert lm.estimate(needle, name, domain="box:0:1").value < 1.0
    assert lm.solve(needle, "lipsdp-neuron", norm="2", domain="box:0:1", witness=False).bound >= 999.0


def test_clever_may_be_on_either_side(net):
    """Below where the largest gradients are rare, above where the fitted tail goes too far."""
    found = lm.estimate(net, "clever", domain="box:-1:1", seed=1)
    gradients = lm.estimate(net, "sampled-gradients", domain="box:-1:1", seed=1)
    assert found.value >= gradients.value  # the end point is beyond the samples that it is fitted to
    rng = np.random.default_rng(0)
    uniform = rng.uniform(size=(100, 256)).max(axis=1)
    assert weibull_end(uniform) == pytest.approx(1.0, abs=2e-3)
    values = [weibull_end((1.0 - rng.uniform(size=(100, 256)) ** 0.5).max(axis=1)) for _ in range(10)]
    assert min(values) < 1.0 < max(values)
    assert weibull_end(np.full(20, 2.5)) == 2.5


def test_clever_says_where_it_applies(net):
    with pytest.raises(lm.UsageError, match="bounded domain"):
        lm.estimate(net, "clever")


def test_estimates_are_reproducible_and_respect_the_time(net):
    for name in lm.ESTIMATES:
        first, again = (lm.estimate(net, name, domain="box:-1:1", seed=7, time_limit=60.0) for _ in range(2))
        assert first.value == again.value
        assert first.seed == 7
    quick = lm.estimate(net, "sampled-gradients", time_limit=1e-9)
    assert quick.value > 0.0
    with pytest.raises(lm.UsageError, match="batches"):
        lm.estimate(net, "clever", domain="box:-1:1", time_limit=1e-9)


def test_samples_lie_in_the_domain():
    from lipmodel.estimates import _points, _Question
    from lipmodel.lower.zone import zone
    from lipmodel.spec import parse_domain

    small = lm.from_weights([np.ones((1, 3))])
    for norm, text, order in (("2", "ball:1:0.5", 2), ("1", "ball:1:0.5", 1), ("inf", "ball:1:0.5", np.inf)):
        region = parse_domain(text).sized(3)
        spec = lm.Spec(input_norm=norm, output_norm="2", domain=region)
        asked = _Question(network=small, spec=spec, rng=np.random.default_rng(0), end=math.inf)
        points = _points(asked, zone(region, 3, norm), 2000)
        length = np.linalg.norm(points - 1.0, order, axis=0)
        assert length.max() <= 0.5
        assert length.max() > 0.49
        # evenly: the share within half the radius is an eighth
        assert np.mean(length < 0.25) == pytest.approx(0.125, abs=0.03)


def test_an_estimate_is_never_printed_as_a_bound(net):
    found = lm.estimate(net, "greedy-seqlip")
    assert str(found).startswith("estimate ")
    assert "≤" not in str(found)
    assert "<=" not in str(found)
    assert not hasattr(found, "bound")
    assert not set(lm.ESTIMATES) & set(formulation_names())


def formulation_names():
    from lipmodel.formulation import formulation_names

    return formulation_names()


def test_questions_that_do_not_apply_are_refused(net):
    with pytest.raises(lm.UsageError, match="known ones"):
        lm.estimate(net, "nonsense")
    for name in ("greedy-seqlip", "power-product"):
        with pytest.raises(lm.UsageError, match="2:2"):
            lm.estimate(net, name, norm="inf")
        with pytest.raises(lm.UsageError, match="2:2"):
            lm.estimate(net, name, outputs="margin:0")
    with pytest.raises(lm.UsageError, match="outputs"):
        lm.estimate(net, "sampled-gradients", outputs=3)
    assert lm.estimate(net, "clever", domain="box:0:0").value == 0.0


def test_greedy_needs_a_chain():
    from lipmodel.testing.networks import random_network

    with pytest.raises(lm.UsageError, match="chains"):
        lm.estimate(random_network("residual", 1), "greedy-seqlip")
    assert lm.estimate(random_network("residual", 1), "power-product").value > 0.0
