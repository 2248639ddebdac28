"""Maxima written as such: recognised wherever they come from, the same network, bounds never below the truth."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_models import make
from test_liplt import random_chain
from test_tampering import at, leaves, other_values, replaced

import lipmodel as lm
from lipmodel.certify import norm_recursions
from lipmodel.certify.maxima import LARGEST_COEFFICIENT, Larger, with_maxima
from lipmodel.certify.norm_arithmetic import ExactArithmetic, FloatArithmetic
from lipmodel.certify.norm_rules import NORM_RULES, check_norm_rule, prove_expression, read_choices
from lipmodel.errors import Refuted
from lipmodel.formulation import formulation
from lipmodel.network.increments import chain_of
from lipmodel.network.linear import Absolute, Dense
from lipmodel.testing.networks import formal_constant

SHARED = Path(__file__).resolve().parents[2] / "shared"
PAIRS = list(itertools.product(("1", "2", "inf"), repeat=2))
NAMES = ("k4", "k3", "path-norm")
node = helper.make_node


def windowed(rng, *middle, inputs=6, channels=2, last, positive=False):
    """A convolution of the input (1, 1, inputs), the nodes from "c" to "z", and a dense layer of `last` entries."""
    draw = rng.random if positive else rng.standard_normal
    return make(
        [
            node("Conv", ["x", "k"], ["c"], name="c"),
            *middle,
            node("Flatten", ["z"], ["f"], name="f"),
            node("Gemm", ["f", "w"], ["y"], transB=1, name="y"),
        ],
        {"k": draw((channels, 1, 3)), "l": draw((1, channels, 2)), "w": draw((2, last))},
        shape=(1, 1, inputs),
    )


def pool(source, target, kernel=2, stride=2, **more):
    return node("MaxPool", [source], [target], kernel_shape=[kernel], strides=[stride], name=target, **more)


def relu(source, target):
    return node("Relu", [source], [target], name=target)


def sorted_layer(rng):
    """GroupSort of all four entries, and the least of them once more."""
    return make(
        [
            node("Gemm", ["x", "a"], ["h"], transB=1, name="h"),
            node("TopK", ["h", "four"], ["s", "i"], name="s"),
            node("Gemm", ["s", "b"], ["y"], transB=1, name="y"),
        ],
        {"a": rng.standard_normal((4, 3)), "b": rng.standard_normal((2, 4)), "four": np.array([4], dtype=np.int64)},
        shape=(1, 3),
    )


def max_min(rng):
    """MaxMin of pairs of entries, twice."""
    nodes, last = [], "x"
    for k in "ab":
        nodes += [
            node("Gemm", [last, k], [f"h{k}"], transB=1, name=f"h{k}"),
            node("Split", [f"h{k}"], [f"l{k}", f"r{k}"], axis=1, name=f"split{k}"),
            node("Max", [f"l{k}", f"r{k}"], [f"u{k}"], name=f"u{k}"),
            node("Min", [f"l{k}", f"r{k}"], [f"d{k}"], name=f"d{k}"),
            node("Concat", [f"u{k}", f"d{k}"], [f"z{k}"], axis=1, name=f"z{k}"),
        ]
        last = f"z{k}"
    nodes.append(node("Gemm", [last, "w"], ["y"], transB=1, name="y"))
    shapes = {"a": (4, 3), "b": (4, 4), "w": (2, 4)}
    return make(nodes, {name: rng.standard_normal(shape) for name, shape in shapes.items()}, shape=(1, 3), opset=13)


def maxout(rng):
    return make(
        [
            *(node("Gemm", ["x", k], [f"h{k}"], transB=1, name=f"h{k}") for k in "abc"),
            node("Max", ["ha", "hb", "hc"], ["m"], name="m"),
            relu("m", "r"),
            node("Gemm", ["r", "w"], ["y"], transB=1, name="y"),
        ],
        {**{k: rng.standard_normal((3, 3)) for k in "abc"}, "w": rng.standard_normal((2, 3))},
        shape=(1, 3),
    )


def least_and_largest(rng):
    return make(
        [
            node("Gemm", ["x", "a"], ["h"], transB=1, name="h"),
            node("ReduceMax", ["h"], ["u"], axes=[1], name="u"),
            node("ReduceMin", ["h"], ["d"], axes=[1], name="d"),
            node("Concat", ["u", "d"], ["z"], axis=1, name="z"),
            node("Gemm", ["z", "w"], ["y"], transB=1, name="y"),
        ],
        {"a": rng.standard_normal((5, 3)), "w": rng.standard_normal((2, 2))},
        shape=(1, 3),
    )


def models():
    """By name: a function of a generator, and how many entries of activations are maxima, and are not."""
    both = [relu("c", "r"), pool("r", "p"), node("Concat", ["p", "r"], ["z"], axis=2, name="z")]
    twice = [pool("c", "p", 2, 1), node("Conv", ["p", "l"], ["d"], name="d"), pool("d", "z", 2, 1)]
    return {
        "pool, relu": (lambda r: windowed(r, pool("c", "p"), relu("p", "z"), last=4), 4, 4),
        "relu, pool": (lambda r: windowed(r, relu("c", "p"), pool("p", "z"), last=4), 4, 4),
        "relu read twice": (lambda r: windowed(r, *both, channels=1, last=6), 2, 4),
        "overlapping": (lambda r: windowed(r, pool("c", "p", 2, 1), relu("p", "z"), last=6), 6, 6),
        "threes": (lambda r: windowed(r, pool("c", "z", 3, 1), channels=1, last=2), 4, 0),
        "padded": (lambda r: windowed(r, pool("c", "z", 3, 2, pads=[1, 1]), channels=1, last=2), 3, 0),
        "pool, convolution, pool": (lambda r: windowed(r, *twice, last=1), 7, 0),
        "of the input": (lambda r: make([pool("x", "y", 2, 1)], shape=(1, 1, 5)), 4, 0),
        "GroupSort": (sorted_layer, 5, 0),
        "MaxMin": (max_min, 4, 0),
        "maxout": (maxout, 6, 3),
        "least and largest": (least_and_largest, 6, 0),
    }


MODELS = models()
CHAINS = ("pool, relu", "relu, pool", "overlapping", "pool, convolution, pool", "of the input", "MaxMin")
"""Those of which every round of maxima reads the one before it, and nothing else: k3 takes these."""


def proved(system, name, p, q, **options):
    """The bound of a formulation, after the exact check of its proof."""
    built = formulation(name, options).build(system, lm.Spec(input_norm=p, output_norm=q))
    found = prove_expression(built, system, (p, q))
    assert built.evaluate() == pytest.approx(found.bound, rel=1e-9)
    choices = read_choices(name, system, found.proof)
    check_norm_rule(name, system, (p, q), choices, found.bound, found.proof["spectral"])
    return found.bound


# --------------------------------------------------------------------------------------------------------- rewriting


def same_network(system, rng, trials=5):
    """For random slopes: every form of the system with maxima has the value that it has without."""
    found = with_maxima(system)
    for _ in range(trials):
        x = rng.standard_normal(system.input.size)
        here, there = {system.signals[0]: x}, {found.system.signals[0]: x}
        for k, (old, new) in enumerate(zip(system.activations, found.system.activations, strict=True), start=1):
            v = old.pre.value(here)
            s = np.where(rng.random(old.size) < 0.5, rng.choice([0.0, 1.0], old.size), rng.random(old.size))
            s = old.alpha + s * (old.beta - old.alpha)
            here[old.signal] = s * v
            u = new.pre.value(there)
            if k in found.maxima:
                a, b = np.split(u, 2)
                assert np.allclose(a - b, v, rtol=0, atol=1e-9 * (1 + abs(a).max() + abs(b).max()))
                there[new.signal] = np.concatenate([(1 - s) * b + s * a, s * b + (1 - s) * a])
            else:
                assert np.allclose(u, v, rtol=1e-9, atol=1e-9 * (1 + abs(v).max(initial=0.0)))
                there[new.signal] = s * u
        before, after = system.output.value(here), found.system.output.value(there)
        assert np.allclose(before, after, rtol=1e-9, atol=1e-9 * (1 + abs(before).max()))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_maxima_are_recognised_and_the_network_stays_the_same(name):
    rng = np.random.default_rng(0)
    model, maxima, others = MODELS[name]
    system = lm.increments(lm.load(model(rng)))
    found = same_network(system, rng)
    sizes = [a.size for a in system.activations]
    assert sum(sizes[k - 1] for k in found.maxima) == maxima
    assert sum(sizes) == maxima + others
    forms = [*(a.pre for a in found.system.activations), found.system.output]
    if name in CHAINS:
        for k, form in enumerate(forms, start=1):
            assert tuple(form.blocks) == (found.system.signals[k - 1],), k
    some = with_maxima(system, {1})
    assert some.maxima == ({1} & found.maxima)
    assert with_maxima(system, set()).system is system


@pytest.mark.parametrize("rows", [[0], [1, 0]])
def test_parts_of_networks(rows):
    """Chosen outputs and inputs: other maps, the same maxima."""
    rng = np.random.default_rng(1)
    for name in MODELS:
        system = lm.increments(lm.load(MODELS[name][0](rng)))
        n, m = system.input.size, system.output.size
        part = system.restrict_output(Dense(weights=np.eye(m)[[r % m for r in rows]]))
        part = part.restrict_input(Dense(weights=rng.standard_normal((n, 2))))
        assert len(same_network(part, rng, trials=2).maxima) == len(with_maxima(system).maxima)


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("name", ["cnn_max_mninst3", "conv_mp1"])
def test_real_networks(name):
    rng = np.random.default_rng(2)
    net = lm.load(SHARED / "nets" / "marabou" / f"{name}.onnx")
    assert same_network(lm.increments(net), rng, trials=2).maxima == {1, 2}
    with pytest.raises(lm.UsageError, match="chains"):
        lm.solve(net, "k3", norm="inf", witness=False, options={"pooling": "explicit"})
    for formulation_name in NAMES:
        r = lm.solve(net, formulation_name, norm="inf", time_limit=20.0)
        assert r.lower_bound <= r.bound
        assert lm.verify(net, r.certificate).bound == r.bound
        if formulation_name != "k3":
            explicit = lm.solve(net, formulation_name, norm="inf", witness=False, options={"pooling": "explicit"})
            assert r.bound < 0.6 * explicit.bound


def test_what_is_no_maximum_of_two_stays_what_it_is():
    rng = np.random.default_rng(3)
    halves = [rng.standard_normal((2, 3)), np.array([[1.0, -1.0]])]
    steep = chain_of(halves, alpha=0.25, beta=1.25)
    plain = [random_chain(rng, depth=3), chain_of([np.array([[1.0, -1.0], [1.0, -2.0]]), halves[1]])]
    for system in (steep, *plain, lm.increments(lm.load(make([relu("x", "y")])))):
        assert with_maxima(system).system is system
        for name in NAMES:
            assert proved(system, name, "inf", "inf", pooling="implicit") == proved(
                system, name, "inf", "inf", pooling="explicit"
            )
            stated = lm.norms.constant(0.0).with_rule(name, maxima=(1,))
            with pytest.raises(lm.UsageError, match="no maximum of two: activation 1"):
                prove_expression(stated, system, ("inf", "inf"))
    with pytest.raises(lm.UsageError, match="pooling='both'"):
        formulation("k4", {"pooling": "both"}).build(steep, lm.Spec())


def test_slopes_outside_0_and_1_are_no_maximum():
    system = lm.increments(lm.load(MODELS["maxout"][0](np.random.default_rng(4))))
    first = system.activations[0]
    for change in ({"alpha": first.alpha - 2.0**-40}, {"beta": first.beta + 2.0**-40}):
        other = replace(system, activations=(replace(first, **change), *system.activations[1:]))
        assert 1 not in with_maxima(other).maxima
    narrow = replace(first, alpha=first.alpha + 0.25, beta=first.beta - 0.25)
    narrow = replace(system, activations=(narrow, *system.activations[1:]))
    assert 1 in same_network(narrow, np.random.default_rng(5)).maxima


def test_large_coefficients_are_left_alone():
    """What might not add up exactly is no small integer."""
    for factor in (0.5, 2.0 * LARGEST_COEFFICIENT, 1.0 + 2.0**-52):
        model = make(
            [node("Mul", ["x", "c"], ["h"], name="h"), pool("h", "z"), node("Mul", ["z", "c"], ["y"], name="y")],
            {"c": np.array([factor])},
            shape=(1, 1, 4),
        )
        system = lm.increments(lm.load(model))
        assert same_network(system, np.random.default_rng(6)).maxima == {1}
        assert proved(system, "k4", "inf", "inf") == pytest.approx(factor * factor, rel=1e-12)


# --------------------------------------------------------------------------------------------------------- soundness


@pytest.mark.parametrize("name", MODELS)
def test_never_below_the_enumerated_maximum(name):
    """Of all slopes of the relus that maxima are imported as, which is more than all their selections."""
    for seed in range(3):
        system = lm.increments(lm.load(MODELS[name][0](np.random.default_rng(seed))))
        for p, q in PAIRS:
            least = formal_constant(system, p, q) * (1 - 1e-12)
            k4, k3, paths = (
                proved(system, rule, p, q, pooling="implicit") if name in CHAINS or rule != "k3" else None
                for rule in NAMES
            )
            assert least <= proved(system, "k4", p, q, convolutions="implicit")
            assert least <= k4 <= paths * (1 + 1e-11)
            assert k3 is None or k4 <= k3 * (1 + 1e-11)
            if name in ("GroupSort", "MaxMin", "least and largest"):  # for both ends of a pair, 2 max(a, b) > a + b
                continue
            assert paths <= proved(system, "path-norm", p, q, pooling="explicit") * (1 + 1e-11)


def test_selections_by_hand():
    """conv - relu - overlapping pool - dense, by its selections and slopes, without the importer."""
    rng = np.random.default_rng(7)
    kernel, dense = rng.standard_normal((1, 1, 3)), rng.standard_normal((2, 3))
    nodes = [
        node("Conv", ["x", "k"], ["c"], name="c"),
        relu("c", "r"),
        pool("r", "p", 2, 1),
        node("Flatten", ["p"], ["f"], name="f"),
        node("Gemm", ["f", "w"], ["y"], transB=1, name="y"),
    ]
    net = lm.load(make(nodes, {"k": kernel, "w": dense}, shape=(1, 1, 6)))
    conv = np.array([[kernel[0, 0, j - i] if 0 <= j - i < 3 else 0.0 for j in range(6)] for i in range(4)])
    largest = {"1": 0.0, "inf": 0.0}
    for chosen in itertools.product((0, 1), repeat=3):
        rows = conv[np.arange(3) + np.array(chosen)]
        for slopes in itertools.product((0.0, 1.0), repeat=3):
            jacobian = dense @ (np.array(slopes)[:, None] * rows)
            largest["1"] = max(largest["1"], np.linalg.norm(jacobian, 1))
            largest["inf"] = max(largest["inf"], np.linalg.norm(jacobian, np.inf))
    for norm, least in largest.items():
        for name in NAMES:
            r = lm.solve(net, name, norm=norm, time_limit=10.0)
            assert least * (1 - 1e-12) <= r.bound
            assert lm.verify(net, r.certificate).bound == r.bound


@pytest.mark.parametrize("name", ["pool, relu", "relu, pool", "overlapping", "threes", "pool, convolution, pool"])
def test_nonnegative_networks_are_exact(name):
    """For p in {1, inf} one choice in every window is the best for all outputs."""
    rng = np.random.default_rng(8)
    shapes = {
        "pool, relu": ([pool("c", "p"), relu("p", "z")], 2, 4),
        "relu, pool": ([relu("c", "p"), pool("p", "z")], 2, 4),
        "overlapping": ([pool("c", "p", 2, 1), relu("p", "z")], 2, 6),
        "threes": ([pool("c", "z", 3, 1)], 1, 2),
        "pool, convolution, pool": (
            [pool("c", "p", 2, 1), node("Conv", ["p", "l"], ["d"], name="d"), pool("d", "z", 2, 1)],
            2,
            1,
        ),
    }
    middle, channels, last = shapes[name]
    system = lm.increments(lm.load(windowed(rng, *middle, channels=channels, last=last, positive=True)))
    assert with_maxima(system).maxima
    for p, q in itertools.product(("1", "inf"), ("1", "2", "inf")):
        exact = formal_constant(system, p, q)
        for rule in ("k4", "path-norm"):
            assert proved(system, rule, p, q) == pytest.approx(exact, rel=1e-11), (rule, p, q)


def test_sums_instead_of_maxima_where_there_is_no_time_for_all_of_e(monkeypatch):
    monkeypatch.setattr(norm_recursions, "WORK", 0)
    for name in MODELS:
        system = lm.increments(lm.load(MODELS[name][0](np.random.default_rng(9))))
        for p, q in PAIRS:
            least = formal_constant(system, p, q) * (1 - 1e-12)
            for rule in NAMES:
                if rule != "k3" or name in CHAINS:
                    built = formulation(rule).build(system, lm.Spec(input_norm=p, output_norm=q))
                    found = prove_expression(built, system, (p, q))
                    assert least <= found.bound
                    choices = read_choices(rule, system, found.proof)
                    check_norm_rule(rule, system, (p, q), choices, found.bound, found.proof["spectral"])


def test_large_maps_are_applied(monkeypatch):
    for name in MODELS:
        system = lm.increments(lm.load(MODELS[name][0](np.random.default_rng(10))))
        with monkeypatch.context() as patch:
            patch.setattr(norm_recursions, "EXPANDED", 0)
            for p, q in (("inf", "inf"), ("1", "1"), ("2", "2")):
                built = formulation("path-norm").build(system, lm.Spec(input_norm=p, output_norm=q))
                found = prove_expression(built, system, (p, q))
                assert found.bound >= formal_constant(system, p, q) * (1 - 1e-12)
                choices = read_choices("path-norm", system, found.proof)
                check_norm_rule("path-norm", system, (p, q), choices, found.bound, found.proof["spectral"])


@pytest.mark.parametrize("arithmetic", [FloatArithmetic(), ExactArithmetic()], ids=["float", "exact"])
def test_the_larger_half(arithmetic):
    rng = np.random.default_rng(11)
    for density in (1.0, 0.3, 0.0):
        a = rng.random((6, 4)) * (rng.random((6, 4)) < density)
        expected = np.tile(np.maximum(a[:3], a[3:]), (2, 1))
        read = arithmetic.upper(arithmetic.read(Dense(weights=a)))
        assert np.array_equal(dense(arithmetic.larger(read)), expected)
        assert np.array_equal(dense(arithmetic.halves_exchanged(read)), a[:, [2, 3, 0, 1]])
        assert np.array_equal(Larger(map=Absolute(map=Dense(weights=-a))).enclosure().center, expected)


def dense(matrix):
    if hasattr(matrix, "mid"):
        found = np.zeros(matrix.shape)
        found[matrix.rows, matrix.cols] = [v / 2**matrix.exponent for v in matrix.mid]
        return found
    return matrix.dense().center


def test_radii_of_the_larger_half():
    """max moves by no more than what it is taken of."""
    a, r = np.array([[1.0, 5.0], [2.0, 1.0]]), np.array([[0.5, 0.25], [0.125, 3.0]])
    e = Larger(map=Dense(weights=a, radius=r)).enclosure()
    assert e.center.tolist() == [[2.0, 5.0]] * 2
    assert e.radius.tolist() == [[0.5, 3.0]] * 2


# -------------------------------------------------------------------------------------------------------- certificates


def test_the_choice_of_maxima_is_checked():
    system = lm.increments(lm.load(MODELS["pool, relu"][0](np.random.default_rng(12))))
    for name in NAMES:
        built = formulation(name).build(system, lm.Spec(input_norm="inf", output_norm="inf"))
        found = prove_expression(built, system, ("inf", "inf"))
        assert found.proof["maxima"] == [1]

        def check(bound=found.bound, *, name=name, found=found, **changes):
            proof = {**found.proof, **changes}
            choices = read_choices(name, system, proof)
            check_norm_rule(name, system, ("inf", "inf"), choices, bound, proof["spectral"])

        check()
        with pytest.raises(Refuted, match="proves"):
            check(found.bound * (1 - 1e-9))
        for wrong in ([0], [3], [1, 1], [2, 1], [True], [1.0], ["1"], 1, None, {}):
            with pytest.raises(Refuted, match=r"proof.maxima: expected"):
                check(maxima=wrong)
        for wrong in ([2], [1, 2]):
            with pytest.raises(Refuted, match=r"proof.maxima: no maximum of two: activation 2"):
                check(math.inf, maxima=wrong)
        with pytest.raises(Refuted, match=r"proves|chains"):
            check(maxima=[])


@pytest.mark.parametrize(("name", "norm"), [("k4", "inf"), ("k3", "2"), ("path-norm", "1"), ("k4", "2:1")])
def test_every_field_of_a_proof(name, norm):
    net = lm.load(MODELS["MaxMin"][0](np.random.default_rng(13)))
    p, _, q = norm.partition(":")
    system = lm.increments(net)
    least = formal_constant(system, p, q or p) * (1 - 1e-12)
    data = json.loads(json.dumps(lm.solve(net, name, norm=norm, witness=False).to_json()))
    assert data["certificate"]["upper"]["rule"] in NORM_RULES
    refused = 0
    for path in [path for path in leaves(data) if path[:2] == ("certificate", "upper")]:
        for value in other_values(at(data, path)):
            try:
                verdict = lm.verify(net, json.dumps(replaced(data, path, value)).encode())
            except Refuted:
                refused += 1
            else:
                assert verdict.bound >= least, (path, value)
    assert refused > 60


def test_nothing_is_unrolled():
    """Two convolutions of 16 channels on 64 x 64 pixels and two poolings: 100,000 comparators, one vector."""
    rng = np.random.default_rng(14)
    nodes = [
        node("Conv", ["x", "a"], ["c"], pads=[1, 1, 1, 1], name="c"),
        relu("c", "r"),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2], name="p"),
        node("Conv", ["p", "b"], ["d"], pads=[1, 1, 1, 1], name="d"),
        relu("d", "s"),
        node("MaxPool", ["s"], ["t"], kernel_shape=[3, 3], strides=[2, 2], name="t"),
        node("GlobalAveragePool", ["t"], ["g"], name="g"),
        node("Flatten", ["g"], ["f"], name="f"),
        node("Gemm", ["f", "w"], ["y"], transB=1, name="y"),
    ]
    weights = {
        "a": rng.standard_normal((16, 3, 3, 3)),
        "b": rng.standard_normal((16, 16, 3, 3)),
        "w": rng.standard_normal((10, 16)),
    }
    net = lm.load(make(nodes, weights, shape=(1, 3, 64, 64)))
    found = with_maxima(lm.increments(net))
    assert len(found.maxima) > 4
    values = {
        pooling: lm.solve(net, "path-norm", norm="inf", witness=False, options={"pooling": pooling}).bound
        for pooling in ("implicit", "explicit")
    }
    assert values["implicit"] < 0.2 * values["explicit"]
    product = np.prod([np.abs(weights[k]).reshape(16, -1).sum(axis=1).max() for k in "ab"])
    assert values["implicit"] <= product * np.abs(weights["w"]).sum(axis=1).max() * (1 + 1e-11)
