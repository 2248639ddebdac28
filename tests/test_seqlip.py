"""SeqLip: exact maxima over slopes, soundness, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from metric_chain_cases import SLOPES, prove, weights
from random_networks import exceeds, random_chain
from soundness_checks import formal_of

import lipmodel as lm
from lipmodel.certify import metric_chain as rule
from lipmodel.certify.kernel import Rejected
from lipmodel.certify.rules import RULES, Subject
from lipmodel.certify.source import Source
from lipmodel.errors import Refuted
from lipmodel.metric_chains import MetricChain
from lipmodel.network.increments import chain_of, exact_system
from lipmodel.testing.networks import formal_constant, random_system

GREEDY_TRAP = [np.ones((7, 1)), np.array([[9.0, 9.0, *[-3.1] * 5]])]


def seqlip_by_enumeration(matrices: list[np.ndarray], low: float, high: float) -> float:
    """The product over hidden layers of the largest |St V' S U St|, as the paper states it."""
    parts = [np.linalg.svd(w, full_matrices=False) for w in matrices]
    value = 1.0
    for k in range(len(matrices) - 1):
        u, s, _ = parts[k]
        _, r, v = parts[k + 1]
        left = (r if k + 2 == len(matrices) else np.sqrt(r))[:, None] * v
        right = u * (s if k == 0 else np.sqrt(s))
        value *= max(
            np.linalg.norm((left * np.array(d)) @ right, 2)
            for d in itertools.product((low, high), repeat=matrices[k].shape[0])
        )
    return value


# ----------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("dims", [[3, 6, 2], [5, 4, 1], [2, 5, 4, 3], [4, 3, 3, 5, 2], [6, 2, 6, 2, 3]])
def test_it_is_the_product_of_the_maxima_over_slopes(dims, slopes):
    for seed in (1, 2):
        matrices = weights(dims, seed)
        bound, _ = prove(chain_of(matrices, *slopes))
        assert bound == pytest.approx(seqlip_by_enumeration(matrices, *slopes), rel=2e-9)


@pytest.mark.parametrize("slopes", SLOPES)
def test_with_one_hidden_layer_nothing_is_lost(slopes):
    for seed in range(3):
        system = chain_of(weights([3, 8, 2], seed), *slopes)
        formal = formal_constant(system, "2", "2")
        assert formal * (1.0 - 1e-12) <= prove(system)[0] <= formal * (1.0 + 1e-9)


def test_without_branching_each_factor_is_the_relaxation_of_two_layers():
    matrices = weights([8, 12, 3], 3)
    system = chain_of(matrices)
    loose, proof = prove(system, exact_up_to=0)
    assert [set(t) for t in proof["trees"]] == [{"t"}]
    net = lm.from_weights(matrices)
    assert loose == pytest.approx(lm.solve(net, "lipsdp-neuron", norm="2", witness=False).bound, rel=1e-6)
    assert prove(system)[0] < loose * (1.0 - 1e-4)


def test_no_time_gives_no_answer_and_little_time_a_looser_one():
    from lipmodel.formulation import formulation

    matrices = weights([24, 24, 24], 5)
    system = chain_of(matrices)
    evidence = formulation("seqlip").build(system, lm.Spec())
    assert evidence.prove(system, ("2", "2"), -math.inf) is None
    best = evidence.prove(system, ("2", "2"), math.inf)
    some = evidence.prove(system, ("2", "2"), time.monotonic() + 0.4)
    assert best is not None
    assert some is None or some.bound >= best.bound * (1.0 - 1e-9)


def test_an_interrupt_keeps_what_is_proved(monkeypatch):
    from lipmodel import slope_trees

    def interrupted(self, deadline, most):
        raise KeyboardInterrupt

    system = chain_of(weights([8, 12, 3], 3))
    loose, _ = prove(system, exact_up_to=0)
    monkeypatch.setattr(slope_trees.Tree, "branch", interrupted)
    assert prove(system)[0] == loose


def test_the_greedy_trap():
    net = lm.from_weights(GREEDY_TRAP, [np.array([0.0, 0.0, *[-1.0] * 5]), np.zeros(1)])
    result = lm.solve(net, "seqlip", norm="2")
    assert 18.0 <= result.bound <= 18.0 * (1.0 + 1e-9)
    assert result.lower_bound == pytest.approx(18.0)
    assert lm.verify(net, result).bound == result.bound


def test_extreme_and_degenerate_weights():
    for scale in (1e-30, 1e30):
        matrices = [w * scale for w in weights([3, 4, 4, 2], 7)]
        formal = formal_constant(chain_of(matrices), "2", "2")
        assert formal * (1.0 - 1e-12) <= prove(chain_of(matrices))[0] <= 3.0 * formal
    narrow = weights([3, 5, 1, 5, 2], 8)
    narrow[0][2] = 0.0
    narrow[2][:, 0] = np.round(narrow[2][:, 0])
    formal = formal_constant(chain_of(narrow), "2", "2")
    assert formal * (1.0 - 1e-12) <= prove(chain_of(narrow))[0]
    nothing = chain_of([np.zeros((3, 2)), np.ones((2, 3)), np.ones((1, 2))])
    assert prove(nothing)[0] < 1e-100


def test_a_linear_network_and_families():
    linear = lm.from_weights([np.array([[1.0, 2.0], [3.0, 4.0]])])
    assert lm.solve(linear, "seqlip", norm="2").bound == pytest.approx(np.linalg.norm([[1, 2], [3, 4]], 2))
    matrices = weights([3, 5, 4], 9)
    net = lm.from_weights(matrices)
    for norm in ("2:inf", "1:2", "1:inf"):
        result = lm.solve(net, "seqlip", norm=norm)
        p, q = norm.split(":")
        formal = formal_constant(chain_of(matrices), p, q)
        assert formal * (1.0 - 1e-12) <= result.bound <= formal * (1.0 + 1e-9)
        assert {m["proof"]["rule"] for m in result.certificate["upper"]["members"]} == {"metric-chain"}
        assert lm.verify(net, result).bound == result.bound


# --------------------------------------------------------------------------------------------------------- soundness


@pytest.mark.parametrize("seed", range(30))
def test_never_below_the_formal_constant_of_a_random_chain(seed):
    case = random_chain(np.random.default_rng(seed))
    net, plan = case.network(), case.plan()
    formal, rows, norm = formal_of(plan, "2", "2", "all")
    for exact_up_to in (0, 20):
        result = lm.solve(net, "seqlip", norm="2", witness=False, options={"exact_up_to": exact_up_to})
        assert result.bound >= formal.value * (1.0 - 1e-12)
        assert not exceeds(plan, formal, result.bound, "2", norm, rows)
        assert lm.verify(net, result).bound == result.bound


def test_slopes_on_a_bounded_domain():
    """Smooth activations keep a slope of their own on a box: the chain stays one, with smaller slopes."""
    matrices = weights([3, 6, 5, 2], 12)
    net = lm.from_weights(matrices, activation="tanh")
    everywhere = lm.solve(net, "seqlip", norm="2", witness=False).bound
    local = lm.solve(net, "seqlip", norm="2", domain="box:0.2:0.4")
    formal = formal_constant(lm.increments(net, local.spec.domain), "2", "2")
    assert formal * (1.0 - 1e-12) <= local.bound < 0.999 * everywhere
    assert local.certificate["upper"]["rule"] == "metric-chain"
    assert lm.verify(net, local).bound == local.bound


# ---------------------------------------------------------------------------------------------------------- refusals


def test_graphs_that_are_no_chains_are_refused():
    from lipmodel.formulation import formulation

    for kind in ("residual", "skips", "concat"):
        with pytest.raises(lm.UsageError, match="chains of layers"):
            formulation("seqlip").build(random_system(kind, 1), lm.Spec())
        with pytest.raises(Rejected, match="not a chain"):
            rule.chain_factors(exact_system(random_system(kind, 1)), [])
        with pytest.raises(lm.UsageError, match="chains of layers"):
            MetricChain(metrics=()).prove(random_system(kind, 1), ("2", "2"), math.inf)


def test_what_acts_on_vectors_is_refused():
    from lipmodel.formulation import formulation

    system = chain_of(weights([2, 3, 2], 1))
    grouped = replace(system, activations=(replace(system.activations[0], groups=np.zeros(3, dtype=np.int64)),))
    with pytest.raises(lm.UsageError, match="acts on vectors"):
        formulation("seqlip").build(grouped, lm.Spec())
    with pytest.raises(lm.UsageError, match="neuron by neuron"):
        MetricChain(metrics=()).prove(grouped, ("2", "2"), math.inf)
    with pytest.raises(Rejected, match="neuron by neuron"):
        rule.chain_factors(exact_system(grouped), [])
    _, proof = prove(system)
    RULES["metric-chain"](Subject(system=system, p="2", q="2", source=Source(reading=None)), proof)
    with pytest.raises(Refuted, match="neuron by neuron"):
        RULES["metric-chain"](Subject(system=grouped, p="2", q="2", source=Source(reading=None)), proof)


def test_other_norms_and_metrics_that_do_not_fit_are_refused():
    system = chain_of(weights([2, 3, 3, 2], 1))
    with pytest.raises(lm.UsageError, match="2:2"):
        MetricChain(metrics=(np.eye(3),)).prove(system, ("inf", "2"), math.inf)
    with pytest.raises(lm.UsageError, match="shapes"):
        MetricChain(metrics=(np.eye(2),)).prove(system, ("2", "2"), math.inf)
    with pytest.raises(lm.UsageError, match="finite"):
        MetricChain(metrics=(np.full((3, 3), np.nan),)).prove(system, ("2", "2"), math.inf)
    with pytest.raises(lm.UsageError, match="does not reach"):
        lm.solve(lm.from_weights(weights([2, 3, 2], 1)), "seqlip", norm="inf")


def test_wide_layers_are_refused_before_anything_is_computed():
    from lipmodel.formulation import formulation

    wide = chain_of([np.ones((1001, 1)), np.ones((1, 1001))])
    with pytest.raises(lm.UsageError, match="1001 neurons"):
        formulation("seqlip").build(wide, lm.Spec())


# -------------------------------------------------------------------------------------------------------- real files

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("seed", range(5))
def test_digits_networks_have_their_known_constant(seed):
    """64-32-1: the exact constants (by another method, with rational witnesses); published tables print less."""
    known = (5.080241887, 5.226306707, 5.003317165, 5.562464695, 5.177308562)
    published = (5.036085115, 5.019141775, 4.865165221, 5.455441214, 5.141067760)
    path = SHARED / "nets" / "digits" / f"fnn2_seed{seed}.onnx"
    result = lm.solve(path, "seqlip", norm="2", outputs=7, witness=False)
    assert result.bound == pytest.approx(known[seed], rel=1e-9)
    assert result.bound > published[seed] * 1.005
    assert lm.verify(path, result).bound == result.bound


def seqlip_oracles():
    path = SHARED / "oracles" / "gauss.json"
    listed = json.loads(path.read_text())["oracles"] if path.exists() else []
    return [pytest.param(o, id=o["id"]) for o in listed if o["quantity"] == "seqlip"]


@pytest.mark.parametrize("oracle", seqlip_oracles())
def test_known_values(oracle):
    from test_oracles import network

    net = network(json.dumps(oracle["network"], sort_keys=True))
    result = lm.solve(net, "seqlip", norm="2", witness=False)
    assert result.bound == pytest.approx(oracle["value"], rel=1e-8)
    assert result.certificate["upper"]["rule"] == "metric-chain"
    assert lm.verify(net, result).bound == result.bound
