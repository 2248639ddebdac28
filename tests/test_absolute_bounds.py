"""K_3, K_4 and the path norm: exact references, enumeration of slopes, orderings, convolutions, max-pooling."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_models import make
from test_liplt import exact_norm, proved, random_chain, times

import lipmodel as lm
from lipmodel.certify import norm_recursions
from lipmodel.certify.norm_rules import SUBSETS, SUBSETS_SPECTRAL, prove_expression
from lipmodel.formulation import formulation
from lipmodel.network.increments import chain_of
from lipmodel.testing.formulations import formulation_checks
from lipmodel.testing.networks import KINDS, formal_constant, random_system

SHARED = Path(__file__).resolve().parents[2] / "shared"
PAIRS = list(itertools.product(("1", "2", "inf"), repeat=2))
ORDER = {"1": 1, "2": 2, "inf": np.inf}
CHECKS = {str(check): check for check in formulation_checks()}
NAMES = ("k4", "k3", "path-norm")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_conformance(name, check):
    CHECKS[check](formulation(name))


# ------------------------------------------------------------------------------------------------- exact references


def exactly(weights):
    return [[[Fraction(v) for v in row] for row in w.tolist()] for w in weights]


def moduli(matrix):
    return [[abs(v) for v in row] for row in matrix]


def subsets(weights):
    """2^-(d-1) |W_d..W_{j+1}| .. |W_j..W_1| for every subset J of the layers in between, in fractions."""
    matrices, d = exactly(weights), len(weights)
    for cuts in itertools.product((False, True), repeat=d - 1):
        blocks = [matrices[0]]
        for cut, matrix in zip(cuts, matrices[1:], strict=True):
            blocks = [*blocks, matrix] if cut else [*blocks[:-1], times(matrix, blocks[-1])]
        value = moduli(blocks[0])
        for block in blocks[1:]:
            value = times(moduli(block), value)
        yield [[v / 2 ** (d - 1) for v in row] for row in value]


SIZES = [(3, 2), (3, 4, 2), (2, 3, 3, 4), (4, 3, 5, 2, 3), (2, 3, 2, 3, 2, 2)]


def near(bound, exact):
    return exact <= Fraction(bound) <= exact * (1 + Fraction(1, 10**12))


def test_k4_is_the_norm_of_the_subset_sum_and_k3_the_sum_of_their_norms():
    rng = np.random.default_rng(0)
    for sizes in SIZES:
        weights = [rng.standard_normal((m, n)) for n, m in itertools.pairwise(sizes)]
        system = chain_of(weights)
        parts = list(subsets(weights))
        whole = [[sum(column) for column in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
        for norm in ("1", "inf"):
            assert near(proved(system, "k4", norm, norm), exact_norm(whole, norm))
            assert near(proved(system, "k3", norm, norm), sum(exact_norm(part, norm) for part in parts))
        assert near(proved(system, "k4", "1", "inf"), max(map(max, whole)))
        assert near(proved(system, "k4", "inf", "1"), sum(map(sum, whole)))
        floats = np.array([[float(v) for v in row] for row in whole])
        assert proved(system, "k4", "2", "2") == pytest.approx(np.linalg.norm(floats, 2), rel=1e-11)
        assert proved(system, "k4", "inf", "2") == pytest.approx(np.linalg.norm(floats.sum(axis=1)), rel=1e-12)
        assert proved(system, "k4", "2", "1") == pytest.approx(np.linalg.norm(floats.sum(axis=0)), rel=1e-12)


def test_the_path_norm_is_the_norm_of_the_product_of_moduli():
    rng = np.random.default_rng(1)
    for sizes in SIZES:
        weights = [rng.standard_normal((m, n)) for n, m in itertools.pairwise(sizes)]
        product = exactly([np.abs(weights[0])])[0]
        for w in exactly(weights[1:]):
            product = times(moduli(w), product)
        for norm in ("1", "inf"):
            assert near(proved(chain_of(weights), "path-norm", norm, norm), exact_norm(product, norm))
        assert near(proved(chain_of(weights), "path-norm", "inf", "1"), sum(map(sum, product)))
        assert near(proved(chain_of(weights), "path-norm", "1", "inf"), max(map(max, product)))


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize(("quantity", "name"), [("abs-dp", "k4"), ("abs-product", "path-norm")])
def test_known_values(quantity, name):
    from test_oracles import asked

    listed = json.loads((SHARED / "oracles" / "gauss.json").read_text())["oracles"]
    chosen = [o for o in listed if o["quantity"] == quantity and o["relation"] == "equal"][::5]
    assert chosen
    for oracle in chosen:
        net, norm, _ = asked(oracle)
        r = lm.solve(net, name, norm=norm, witness=False)
        assert r.bound == pytest.approx(oracle["value"], rel=max(oracle.get("rtol", 0.0), 1e-9)), oracle["id"]
        lm.verify(net, r.certificate)


# ---------------------------------------------------------------------------------------------------------- soundness


def test_never_below_the_enumerated_maximum():
    rng = np.random.default_rng(2)
    for _ in range(12):
        system = random_chain(rng, depth=int(rng.integers(1, 5)))
        for p, q in PAIRS:
            least = formal_constant(system, p, q) * (1 - 1e-12)
            k4, k3, paths = (proved(system, name, p, q) for name in NAMES)
            assert least <= k4 <= k3 * (1 + 1e-11)
            assert k4 <= paths * (1 + 1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_are_never_below_the_enumerated_maximum(kind):
    for seed in (2, 3):
        system = random_system(kind, seed)
        for p, q in PAIRS:
            least = formal_constant(system, p, q) * (1 - 1e-12)
            assert least <= proved(system, "k4", p, q, convolutions="explicit")
            assert least <= proved(system, "path-norm", p, q)


def test_products_may_end_anywhere():
    """Whatever the choice of activations at which products end, it is sound, and never better than none."""
    rng = np.random.default_rng(3)
    system = random_chain(rng, depth=4)
    for p, q in PAIRS:
        least, best = formal_constant(system, p, q) * (1 - 1e-12), proved(system, "k4", p, q)
        for signed in itertools.product((False, True), repeat=3):
            for rule in ("k4", "k3", "liplt"):
                stated = lm.norms.constant(0.0).with_rule(rule, signed=signed)
                bound = prove_expression(stated, system, (p, q)).bound
                assert least <= bound
                assert rule == "liplt" or best <= bound * (1 + 1e-11)


# ----------------------------------------------------------------------------------------------------------- orderings


def test_the_order_of_the_bounds():
    """For p in {1, inf}: FGL <= K_4 <= K_3 <= K_1 <= K_*, and K_4 <= the product of moduli."""
    rng = np.random.default_rng(4)
    for sizes in SIZES[1:]:
        weights = [rng.standard_normal((m, n)) for n, m in itertools.pairwise(sizes)]
        system = chain_of(weights)
        for norm in ("1", "inf"):
            values = [proved(system, name, norm, norm) for name in ("k4", "k3", "liplt")]
            chain = [
                formal_constant(system, norm, norm),
                *values,
                np.prod([np.linalg.norm(w, ORDER[norm]) for w in weights]),
            ]
            assert all(a <= b * (1 + 1e-11) for a, b in itertools.pairwise(chain)), chain
            assert values[0] <= proved(system, "path-norm", norm, norm) * (1 + 1e-11)


def test_nonnegative_networks_are_exact():
    """All weights in [0, 1]: the constant is ||W_d..W_1||, and no bound here may be below it, or above."""
    rng = np.random.default_rng(5)
    for sizes in SIZES:
        weights = [rng.random((m, n)) for n, m in itertools.pairwise(sizes)]
        product = weights[0]
        for w in weights[1:]:
            product = w @ product
        system = chain_of(weights)
        for p, q in PAIRS:
            if (p, q) in (("inf", "2"), ("inf", "1"), ("2", "1")):
                expected = formal_constant(chain_of([product]), p, q)
            else:
                expected = np.linalg.norm(product, ORDER[p]) if p == q else formal_constant(chain_of([product]), p, q)
            assert proved(system, "k4", p, q) == pytest.approx(expected, rel=1e-11)
            assert proved(system, "path-norm", p, q) == pytest.approx(expected, rel=1e-11)


def test_averages_of_nonnegative_weights_are_not_below_the_constant():
    """Two layers of nonnegative weights: K_1 averages the constant ||W_2 W_1|| and ||W_2|| ||W_1||."""
    rng = np.random.default_rng(6)
    first, second = rng.random((5, 3)), rng.random((2, 5))
    whole, apart = np.linalg.norm(second @ first, 2), np.linalg.norm(second, 2) * np.linalg.norm(first, 2)
    bound = proved(chain_of([first, second]), "combettes-pesquet", "2", "2")
    assert bound == pytest.approx((whole + apart) / 2, rel=1e-11)
    assert bound > whole


def test_signs_up_to_similarity_change_nothing():
    """diag(+-1) between layers with |.| or linear slopes: nonnegative up to signs is exact for slopes that allow it."""
    rng = np.random.default_rng(7)
    weights = [rng.random(s) for s in ((4, 3), (5, 4), (2, 5))]
    flips = [rng.choice([-1.0, 1.0], 4), rng.choice([-1.0, 1.0], 5)]
    turned = [flips[0][:, None] * weights[0], flips[1][:, None] * weights[1] * flips[0], weights[2] * flips[1]]
    for p, q in PAIRS:
        assert proved(chain_of(turned), "k4", p, q) == pytest.approx(proved(chain_of(weights), "k4", p, q), rel=1e-11)


def test_transposed_networks_have_the_dual_bound():
    rng = np.random.default_rng(8)
    dual = {"1": "inf", "2": "2", "inf": "1"}
    weights = [rng.standard_normal(s) for s in ((4, 3), (5, 4), (2, 5))]
    turned = [w.T for w in weights[::-1]]
    for p, q in PAIRS:
        for name in NAMES:
            there, back = proved(chain_of(weights), name, p, q), proved(chain_of(turned), name, dual[q], dual[p])
            assert there == pytest.approx(back, rel=1e-11), (name, p, q)


def test_rescaled_neurons_change_neither_the_path_norm_nor_k4():
    """Positive factors that are powers of two, so that nothing rounds; a product of norms changes."""
    rng = np.random.default_rng(9)
    weights = [rng.standard_normal(s) for s in ((4, 3), (5, 4), (2, 5))]
    d = [2.0 ** rng.integers(-8, 9, 4), 2.0 ** rng.integers(-8, 9, 5)]
    changed = [d[0][:, None] * weights[0], d[1][:, None] * weights[1] / d[0], weights[2] / d[1]]
    for p, q in PAIRS:
        for name in ("k4", "path-norm"):
            before, after = proved(chain_of(weights), name, p, q), proved(chain_of(changed), name, p, q)
            assert before == pytest.approx(after, rel=1e-12)
    assert proved(chain_of(changed), "liplt", "inf", "inf") != pytest.approx(
        proved(chain_of(weights), "liplt", "inf", "inf")
    )


def test_the_path_norm_is_the_best_rescaled_product():
    """The least product of norms over rescalings, at D_i^-1 = diag(|W_i|..|W_1| 1)."""
    rng = np.random.default_rng(10)
    weights = [rng.standard_normal(s) for s in ((4, 3), (5, 4), (2, 5))]
    first = np.abs(weights[0]).sum(axis=1)
    second = np.abs(weights[1]) @ first
    scaled = [weights[0] / first[:, None], weights[1] * first / second[:, None], weights[2] * second]
    product = np.prod([np.linalg.norm(w, np.inf) for w in scaled])
    assert proved(chain_of(weights), "path-norm", "inf", "inf") == pytest.approx(product, rel=1e-12)


# ------------------------------------------------------------------------------------------- convolutions and pooling


def convolutional(rng, *, pool=None):
    """Two convolutions, a pooling between them where asked for, and a dense layer, as an ONNX model."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"], pads=[1, 1, 1, 1], name="c"),
        helper.make_node("Relu", ["c"], ["r"], name="r"),
    ]
    last = "r"
    if pool is not None:
        nodes.append(helper.make_node(pool, [last], ["p"], kernel_shape=[2, 2], strides=[2, 2], name="p"))
        last = "p"
    side = 4 if pool is None else 2
    nodes += [
        helper.make_node("Conv", [last, "b"], ["d"], pads=[1, 1, 1, 1], name="d"),
        helper.make_node("Relu", ["d"], ["s"], name="s"),
        helper.make_node("Flatten", ["s"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1, name="y"),
    ]
    weights = {
        "a": rng.standard_normal((2, 1, 3, 3)),
        "b": rng.standard_normal((2, 2, 3, 3)),
        "w": rng.standard_normal((3, 2 * side * side)),
    }
    return lm.load(make(nodes, weights, shape=(1, 1, 4, 4)))


@pytest.mark.parametrize("pool", [None, "AveragePool", "MaxPool"])
def test_convolutions_explicit_and_implicit(pool):
    rng = np.random.default_rng(11)
    net = convolutional(rng, pool=pool)
    for p, q in PAIRS:
        values = []
        for treatment in ("explicit", "implicit", "auto"):
            searched = (p, q, treatment) == ("inf", "inf", "explicit")
            r = lm.solve(net, "k4", norm=f"{p}:{q}", options={"convolutions": treatment}, witness=searched)
            assert not searched or r.lower_bound <= r.bound
            assert lm.verify(net, r.certificate).bound == r.bound
            values.append(r.bound)
        explicit, implicit, auto = values
        assert auto == explicit < implicit
    paths = lm.solve(net, "path-norm", norm="inf:inf", witness=False).bound
    implicit = lm.solve(net, "k4", norm="inf:inf", options={"convolutions": "implicit"}, witness=False).bound
    assert implicit <= paths * (1 + 1e-11)


@pytest.mark.parametrize("pool", [None, "AveragePool", "MaxPool"])
def test_large_maps_are_applied_instead_of_expanded(pool, monkeypatch):
    rng = np.random.default_rng(12)
    net = convolutional(rng, pool=pool)
    system = lm.increments(net)
    before = {(name, *pair): proved(system, name, *pair) for name in ("k4", "path-norm") for pair in PAIRS}
    monkeypatch.setattr(norm_recursions, "EXPANDED", 0)
    for (name, p, q), value in before.items():
        after = proved(system, name, p, q)
        assert after == pytest.approx(value, rel=1e-11) or (after > value and pool is not None)
    monkeypatch.setattr(norm_recursions, "WORK", 0)
    for (name, p, q), value in before.items():
        after = proved(system, name, p, q)
        assert after >= value * (1 - 1e-11)
        # towards the input, a maximum is bounded by a sum
        summed = pool == "MaxPool" and p != "inf"
        assert summed or (p, q) in (("1", "2"), ("2", "2"), ("2", "inf"), ("1", "inf")) or after <= value * 1.5


# ------------------------------------------------------------------------------------------------------ formulations


@pytest.mark.parametrize("name", NAMES)
def test_the_formulation_states_what_the_rule_computes(name):
    rng = np.random.default_rng(13)
    systems = [random_chain(rng)]
    if name != "k3":
        systems += [random_system(kind, 1) for kind in ("residual", "skips", "concat", "mixed")]
    for system in systems:
        for p, q in PAIRS:
            built = formulation(name).build(system, lm.Spec(input_norm=p, output_norm=q))
            assert built.evaluate() == pytest.approx(prove_expression(built, system, (p, q)).bound, rel=1e-10)


def test_k3_says_what_it_does_not_take():
    rng = np.random.default_rng(14)
    k3 = formulation("k3")
    for pair, most in ((("inf", "inf"), SUBSETS), (("2", "2"), SUBSETS_SPECTRAL)):
        spec = lm.Spec(input_norm=pair[0], output_norm=pair[1])
        short, long = (chain_of([rng.standard_normal((2, 2)) for _ in range(n)]) for n in (most, most + 1))
        assert formulation("k4").build(long, spec) is not None
        bound = prove_expression(k3.build(short, spec), short, pair).bound
        assert bound >= proved(short, "k4", *pair) * (1 - 1e-12)
        with pytest.raises(lm.UsageError, match=f"2\\^{most} norms.*use k4"):
            k3.build(long, spec)
    with pytest.raises(lm.UsageError, match=r"chains.*use k4"):
        k3.build(random_system("residual", 0), lm.Spec())
    with pytest.raises(lm.UsageError, match="explicit"):
        formulation("k4", {"convolutions": "both"}).build(short, lm.Spec())


@pytest.mark.parametrize("name", NAMES)
def test_activations_on_vectors_are_refused(name):
    rng = np.random.default_rng(15)
    net = lm.load(
        make(
            [
                helper.make_node("Gemm", ["x", "w"], ["h"], transB=1, name="h"),
                helper.make_node("Softmax", ["h"], ["y"], name="soft"),
            ],
            {"w": rng.standard_normal((3, 4))},
        )
    )
    with pytest.raises(lm.UsageError, match="'soft' acts on vectors: use liplt"):
        lm.solve(net, name, norm="inf")
    for norm in ("2", "inf", "1", "inf:2"):
        r = lm.solve(net, "liplt", norm=norm, time_limit=10.0)
        assert lm.verify(net, r.certificate).bound == r.bound >= r.lower_bound


def test_bounded_domains_make_the_bounds_smaller():
    rng = np.random.default_rng(16)
    net = convolutional(rng)
    for name in ("k4", "path-norm", "liplt"):
        whole = lm.solve(net, name, norm="inf", witness=False).bound
        near = lm.solve(net, name, norm="inf", domain="box:1:1.02", time_limit=20.0)
        assert near.lower_bound <= near.bound < whole
        assert lm.verify(net, near.certificate).bound == near.bound


def test_slopes_replaced_by_wider_ones_never_help():
    rng = np.random.default_rng(17)
    system = random_chain(rng)
    wider = replace(
        system, activations=tuple(replace(a, alpha=a.alpha - 0.25, beta=a.beta + 0.5) for a in system.activations)
    )
    for p, q in PAIRS:
        for name in NAMES:
            assert proved(system, name, p, q) <= proved(wider, name, p, q) * (1 + 1e-11)
