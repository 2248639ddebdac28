"""The rule of metric chains: what it decides, leaf by leaf, and every way in which a proof may be changed."""

from __future__ import annotations

import copy
import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from metric_chain_cases import SLOPES, check, prove, weights
from test_tampering import ABS, BENT, RELU, Sample, at, chain, judge, leaves, other_values, replaced, with_bound

import lipmodel as lm
from lipmodel.certify import metric_chain as rule
from lipmodel.certify.certificate import read_vector
from lipmodel.certify.kernel import Block, Rejected, System, gram
from lipmodel.errors import Refuted
from lipmodel.metric_chains import MetricChain
from lipmodel.network.exact import ExactMatrix
from lipmodel.network.increments import chain_of
from lipmodel.slope_trees import TIGHT, Layer, tree
from lipmodel.testing.networks import formal_constant


def test_metrics_of_any_kind_prove_only_what_is_true():
    rng = np.random.default_rng(3)
    for seed in range(6):
        system = chain_of(weights([2, 3, 3, 2], seed))
        formal = formal_constant(system, "2", "2")
        wishart = (lambda a: a @ a.T)(rng.standard_normal((3, 3)))
        for metric in (np.eye(3), np.zeros((3, 3)), np.diag([1.0, 1e-6, 1e6]), wishart):
            found = MetricChain(metrics=(metric,), exact_up_to=5).prove(system, ("2", "2"), math.inf)
            assert found is not None
            assert found.bound >= formal * (1.0 - 1e-12)
    with pytest.raises(lm.UsageError, match="semidefinite"):
        MetricChain(metrics=(np.diag([1.0, -1.0, 1.0]),)).prove(system, ("2", "2"), math.inf)


@pytest.mark.parametrize("first", [True, False])
def test_a_factor_is_decided_just_above_its_value_and_not_below(first):
    """Both forms of a leaf: over inputs, and over outputs for the first layer."""
    rng = np.random.default_rng(11)
    for n, m, r, (low, high) in [
        (5, 4, 2, SLOPES[0]),
        (4, 6, 3, SLOPES[1]),
        (6, 3, 3, SLOPES[2]),
        (3, 7, 7, SLOPES[3]),
    ]:
        w, g = rng.standard_normal((n, m)), rng.standard_normal((r, n))
        root = np.eye(m) if first else np.triu(rng.standard_normal((m, m))) + 3.0 * np.eye(m)
        layer = Layer(after=g, before=w @ np.linalg.inv(root), alpha=np.full(n, low), beta=np.full(n, high))
        exact = [ExactMatrix.from_floats(x).block() for x in (w, g, root)]
        before = None if first else gram(exact[2], exact[2])
        factor = rule.Factor(weights=exact[0], after=exact[1], before=before, alpha=layer.alpha, beta=layer.beta)
        found = tree(layer)
        relaxed = found.value
        assert rule.decides_factor(factor, relaxed * (1.0 + 1e-9), found.to_json())
        assert not rule.decides_factor(factor, relaxed * (1.0 - 1e-7), found.to_json())
        found.branch(math.inf)
        truth = max(layer.square(np.array(s)) for s in itertools.product((low, high), repeat=n))
        assert truth * (1.0 - 1e-12) <= found.value <= truth * (1.0 + 2 * TIGHT)
        assert rule.decides_factor(factor, truth * (1.0 + 1e-8), found.to_json())
        assert not rule.decides_factor(factor, truth * (1.0 - 1e-8), found.to_json())
        full = every_vertex(n)
        assert rule.decides_factor(factor, truth * (1.0 + 1e-9), full)
        assert not rule.decides_factor(factor, truth * (1.0 - 1e-9), full)


def every_vertex(n: int, j: int = 0):
    if j == n:
        return {"t": []}
    return {"neuron": j, "low": every_vertex(n, j + 1), "high": every_vertex(n, j + 1)}


def test_multipliers_that_are_too_small_prove_nothing():
    """Free neurons with f^2 K indefinite, or a zero square: the eliminated form must not be believed."""
    one = Block(mantissa=[[1]], exponent=0)
    factor = rule.Factor(weights=one, after=one, before=None, alpha=[0.0], beta=[1.0])
    assert rule.decides_factor(factor, 1.0001, {"t": [(1.0).hex()]})
    for t in (0.0, 0.1, 0.4999, 1e300):
        assert not rule.decides_factor(factor, 1.0001, {"t": [t.hex()]})
    assert not rule.decides_factor(factor, 1.0001, {"t": [(-1.0).hex()]})
    system = System(sizes=(1, 1), pre=({0: one},), alpha=([0.0],), beta=([1.0],), output={1: one})
    for square in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(Rejected, match="finite positive"):
            rule.check_chain(system, [], [square], [{"t": [(1.0).hex()]}], 1.0)


def test_radii_are_counted():
    """A weight that is only known to lie in an interval: the largest of it decides."""
    w = Block(mantissa=[[100]], exponent=0, radius=[[1]])
    one = Block(mantissa=[[1]], exponent=0)
    for weights_, after in ((w, one), (one, w)):
        for before in (None, one):
            factor = rule.Factor(weights=weights_, after=after, before=before, alpha=[0.0], beta=[1.0])
            assert rule.decides_factor(factor, 101.0**2 * (1.0 + 1e-9), every_vertex(1))
            assert not rule.decides_factor(factor, 101.0**2 * (1.0 - 1e-9), every_vertex(1))


# --------------------------------------------------------------------------------------------------------- tampering

CASES = {
    "one layer": (chain([2, 3, 2], 1, RELU), {}),
    "two layers": (chain([2, 2, 2, 2], 2, BENT, ABS), {}),
    "rows": (chain([2, 2, 2], 4, RELU), {"norm": "2:inf"}),
}


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    made = {}
    for name, (net, arguments) in CASES.items():
        network = net.network()
        result = lm.solve(network, "seqlip", **{"norm": "2", **arguments})
        made[name] = Sample(network=network, plan=net.plan(), data=json.loads(json.dumps(result.to_json())))
    return made


@pytest.mark.parametrize("name", CASES)
def test_every_field_of_the_proof(samples, name):
    sample = samples[name]
    assert not judge(sample, sample.data)
    start, refused = ("certificate", "upper"), 0
    for path in leaves(at(sample.data, start)):
        for value in other_values(at(sample.data, (*start, *path))):
            refused += judge(sample, replaced(sample.data, (*start, *path), value))
    assert refused > 100
    for factor in (0.0, -1.0, 0.5, 0.999, 1.0 - 1e-10):
        assert judge(sample, with_bound(sample.data, factor))
    assert not judge(sample, with_bound(sample.data, 2.0))


def branched():
    """A system whose first factor has a tree with several leaves, and its proof."""
    system = chain_of(weights([8, 12, 3], 3))
    _, proof = prove(system)
    assert "neuron" in proof["trees"][0]
    return system, proof


def changed(proof, key, value):
    return {**copy.deepcopy(proof), key: value}


def test_a_tree_that_forgets_something_is_refused():
    system, proof = branched()
    root = proof["trees"][0]
    low, high, j = root["low"], root["high"], root["neuron"]
    for bad in (
        low,
        {"neuron": j, "low": low, "high": low},
        {"neuron": j, "low": low},
        {"neuron": j, "low": low, "high": high, "extra": 1},
        {"neuron": True, "low": low, "high": high},
        {"neuron": -1, "low": low, "high": high},
        {"neuron": 12, "low": low, "high": high},
        {"neuron": float(j), "low": low, "high": high},
        {"neuron": j, "low": {"neuron": j, "low": low, "high": low}, "high": high},
        {"t": []},
        {},
        None,
        [],
    ):
        with pytest.raises((Rejected, Refuted)):
            check(system, changed(proof, "trees", [bad]))
    other = (j + 1) % 12
    with pytest.raises((Rejected, Refuted)):
        check(system, changed(proof, "trees", [{"neuron": other, "low": low, "high": high}]))


def test_numbers_that_do_not_fit_are_refused():
    system, proof = branched()
    square, bound = float.fromhex(proof["squares"][0]), float.fromhex(proof["bound"])
    with pytest.raises(Rejected, match="below the product"):
        check(system, changed(proof, "bound", math.nextafter(bound, 0.0).hex()))
    lower = copy.deepcopy(proof)
    lower["squares"], lower["bound"] = [(square * (1.0 - 1e-9)).hex()], (bound * (1.0 - 4e-10)).hex()
    with pytest.raises(Rejected, match="factor 1"):
        check(system, lower)
    with pytest.raises(Rejected, match="metrics"):
        check(system, changed(proof, "metrics", [["0x1p+0"]]))
    with pytest.raises(Rejected, match="hidden layers"):
        check(system, changed(proof, "squares", proof["squares"] * 2))


def test_a_smaller_metric_must_be_paid_for():
    system = chain_of(weights([3, 4, 4, 2], 6))
    _, proof = prove(system)
    half = [(0.5 * float.fromhex(v)).hex() for v in proof["metrics"][0]]
    with pytest.raises(Rejected, match="factor 2"):
        check(system, changed(proof, "metrics", [half]))
    double = [(2.0 * float.fromhex(v)).hex() for v in proof["metrics"][0]]
    with pytest.raises(Rejected, match="factor 1"):
        check(system, changed(proof, "metrics", [double]))
    first, second = (float.fromhex(v) for v in proof["squares"])
    traded = {**changed(proof, "metrics", [double]), "squares": [(4.0 * first).hex(), (second / 4.0).hex()]}
    traded["trees"] = [scaled_tree(tree, 4.0**k) for k, tree in zip((1, 0), proof["trees"], strict=True)]
    check(system, traded)  # the same statement in other units
    assert Fraction(float.fromhex(traded["bound"])) ** 2 >= Fraction(4.0 * first) * Fraction(second / 4.0)


def scaled_tree(node, factor):
    if "t" in node:
        values = read_vector(node["t"], "t", None) if node["t"] else []
        return {"t": [(factor * float(v)).hex() for v in values]}
    return {**node, "low": scaled_tree(node["low"], factor), "high": scaled_tree(node["high"], factor)}


def test_a_bottomless_tree_is_refused(samples):
    sample = samples["one layer"]
    text = json.dumps(replaced(sample.data, ("certificate", "upper", "trees"), "HERE"))
    for depth in (50, 100_000):
        tree = '{"neuron": 0, "low": ' * depth + '{"t": []}' + ', "high": {"t": []}}' * depth
        with pytest.raises(Refuted):
            lm.verify(sample.network, text.replace('"HERE"', f"[{tree}]"))


def test_another_network_is_refused():
    system, proof = branched()
    other = weights([8, 12, 3], 3)
    other[0][0, 0] += 1e-3
    with pytest.raises(Rejected):
        check(chain_of([1.001 * w for w in weights([8, 12, 3], 3)]), proof)
    with pytest.raises(Rejected):
        check(chain_of(weights([8, 12, 12, 3], 3)), proof)
    with pytest.raises(Rejected):
        check(chain_of(weights([8, 12, 3], 3), -1.0, 1.0), proof)
    check(system, proof)
