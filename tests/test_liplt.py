"""LipLT and Combettes-Pesquet: published values, the sum over subsets of layers, enumeration of slopes, duality."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from exact_norms import fractions

import lipmodel as lm
from lipmodel.certify.norm_recursions import centres, deviations
from lipmodel.certify.norm_rules import check_norm_rule, prove_expression, read_choices
from lipmodel.formulation import formulation
from lipmodel.network.increments import chain_of
from lipmodel.testing.formulations import formulation_checks
from lipmodel.testing.networks import KINDS, formal_constant, random_system

SHARED = Path(__file__).resolve().parents[2] / "shared"
PAIRS = list(itertools.product(("1", "2", "inf"), repeat=2))
CHECKS = {str(check): check for check in formulation_checks()}


def proved(system, name, p, q, **options):
    """The bound of a formulation's rule, and its proof, accepted by the exact side."""
    spec = lm.Spec(input_norm=p, output_norm=q)
    found = prove_expression(formulation(name, options).build(system, spec), system, (p, q))
    proof = found.proof
    choices = read_choices(proof["rule"], system, proof)
    check_norm_rule(proof["rule"], system, (p, q), choices, found.bound, proof["spectral"])
    return found.bound


def random_chain(rng, *, depth=4, ends=None):
    """A chain with slopes of its own for every neuron, of either sign."""
    sizes = rng.integers(1, 4, depth + 1)
    if ends is not None:
        sizes[0], sizes[-1] = ends
    system = chain_of([rng.standard_normal((m, n)) for n, m in itertools.pairwise(sizes)])
    activations = []
    for a in system.activations:
        low = rng.uniform(-1.5, 1.0, a.size)
        activations.append(replace(a, alpha=low, beta=low + rng.uniform(0.1, 2.0, a.size)))
    return replace(system, activations=tuple(activations))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ["liplt", "combettes-pesquet"])
def test_conformance(name, check):
    CHECKS[check](formulation(name))


# ----------------------------------------------------------------------------------------------------------- values


def exact_norm(matrix, norm):
    """The norm 1 or inf of rows of fractions."""
    sums = [sum(map(abs, line)) for line in (matrix if norm == "inf" else zip(*matrix, strict=True))]
    return max(sums)


def times(a, b):
    return [
        [sum((x * y for x, y in zip(row, column, strict=True)), Fraction(0)) for column in zip(*b, strict=True)]
        for row in a
    ]


def subset_sum(weights, norm):
    """2^-(d-1) sum over J of ||W_d..W_{j+1}|| .. ||W_j..W_1||, in fractions."""
    matrices, d = [fractions(w) for w in weights], len(weights)
    total = Fraction(0)
    for cuts in itertools.product((False, True), repeat=d - 1):
        value, block = Fraction(1), matrices[0]
        for cut, matrix in zip(cuts, matrices[1:], strict=True):
            if cut:
                value, block = value * exact_norm(block, norm), matrix
            else:
                block = times(matrix, block)
        total += value * exact_norm(block, norm)
    return total / 2 ** (d - 1)


def test_it_is_the_sum_over_subsets_of_layers():
    rng = np.random.default_rng(0)
    for sizes in [(3, 2), (3, 4, 2), (2, 3, 3, 4), (4, 3, 5, 2, 3), (2, 3, 2, 3, 2, 2)]:
        weights = [rng.standard_normal((m, n)) for n, m in itertools.pairwise(sizes)]
        for norm in ("1", "inf"):
            expected = subset_sum(weights, norm)
            for name in ("liplt", "combettes-pesquet"):
                bound = proved(chain_of(weights), name, norm, norm)
                assert expected <= Fraction(bound) <= expected * (1 + Fraction(1, 10**12))


def test_the_spectral_sum_over_subsets():
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(s) for s in ((5, 4), (6, 5), (4, 6), (3, 4))]
    total = 0.0
    for cuts in itertools.product((False, True), repeat=3):
        value, block = 1.0, weights[0]
        for cut, w in zip(cuts, weights[1:], strict=True):
            value, block = (value * np.linalg.norm(block, 2), w) if cut else (value, w @ block)
        total += value * np.linalg.norm(block, 2)
    assert proved(chain_of(weights), "liplt", "2", "2") == pytest.approx(total / 8, rel=1e-11)


def test_averaged_activations_have_weights():
    """Slopes in [1 - 2a, 1]: each of the a and 1 - a of Combettes & Pesquet."""
    rng = np.random.default_rng(2)
    first, second = rng.standard_normal((4, 3)), rng.standard_normal((2, 4))
    for a in (0.25, 0.5, 0.75, 1.0):
        system = chain_of([first, second], alpha=1.0 - 2.0 * a, beta=1.0)
        whole = np.linalg.norm(second @ first, 2)
        apart = np.linalg.norm(second, 2) * np.linalg.norm(first, 2)
        assert proved(system, "liplt", "2", "2") == pytest.approx((1 - a) * whole + a * apart, rel=1e-11)


def oracles():
    found = []
    for name in ("digits", "gauss", "eclipse"):
        path = SHARED / "oracles" / f"{name}.json"
        listed = json.loads(path.read_text())["oracles"] if path.exists() else []
        chosen = [o for o in listed if o["quantity"] == "liplt" and o["relation"] == "equal"]
        found += [pytest.param(o, id=o["id"]) for o in chosen[:: max(1, len(chosen) // 16)]]
    return found


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("oracle", oracles())
def test_known_values(oracle):
    from test_oracles import asked

    question = asked(oracle)
    assert question is not None
    net, norm, outputs = question
    p = norm.split(":")[0]
    if outputs != "all":  # one output, for which every output norm is the same
        r = lm.solve(net, "liplt", norm=norm, outputs=outputs, witness=False)
        lm.verify(net, r.certificate)
        bound = r.bound
    else:
        bound = proved(lm.increments(net), "liplt", p, p)
    assert bound == pytest.approx(oracle["value"], rel=max(oracle.get("rtol", 0.0), 1e-9))


# ---------------------------------------------------------------------------------------------------------- soundness


def test_never_below_the_enumerated_maximum():
    rng = np.random.default_rng(3)
    for _ in range(10):
        system = random_chain(rng, depth=int(rng.integers(1, 5)))
        for p, q in PAIRS:
            assert proved(system, "liplt", p, q) >= formal_constant(system, p, q) * (1 - 1e-12), (p, q)


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_are_never_below_the_enumerated_maximum(kind):
    for seed in (2, 3):
        system = random_system(kind, seed)
        for p, q in PAIRS:
            formal = formal_constant(system, p, q) * (1 - 1e-12)
            unsigned = lm.norms.constant(0.0).with_rule("liplt", signed=(False,) * len(system.activations))
            assert prove_expression(unsigned, system, (p, q)).bound >= formal
            assert proved(system, "liplt", p, q) >= formal


def test_between_the_product_of_all_weights_and_the_product_of_norms():
    rng = np.random.default_rng(4)
    for _ in range(5):
        weights = [rng.standard_normal(s) for s in ((4, 3), (5, 4), (3, 5))]
        for norm, order in (("1", 1), ("2", 2), ("inf", np.inf)):
            bound = proved(chain_of(weights), "liplt", norm, norm)
            assert bound >= np.linalg.norm(weights[2] @ weights[1] @ weights[0], order) * (1 - 1e-12)
            assert bound <= np.prod([np.linalg.norm(w, order) for w in weights]) * (1 + 1e-11)


def test_nothing_is_lost_where_products_end():
    """Without signed products it is the product of norms, and never below what it is with them."""
    rng = np.random.default_rng(5)
    for _ in range(5):
        system = random_chain(rng)
        for norm in ("1", "2", "inf"):
            none = lm.norms.constant(0.0).with_rule("liplt", signed=(False,) * len(system.activations))
            product = 1.0
            folded = [a.pre.blocks[s] for a, s in zip(system.activations, system.signals, strict=False)]
            gains = [np.ones(system.input.size), *(a.gain for a in system.activations)]
            for map, gain in zip([*folded, *system.output.blocks.values()], gains, strict=True):
                product *= np.linalg.norm(map.weights * gain, {"1": 1, "2": 2, "inf": np.inf}[norm])
            assert prove_expression(none, system, (norm, norm)).bound == pytest.approx(product, rel=1e-11)


def test_more_norms_in_between_only_help():
    rng = np.random.default_rng(12)
    for _ in range(4):
        system = random_chain(rng)
        product = formulation("product")
        for p, q in PAIRS:
            bound = proved(system, "liplt", p, q, between="all")
            assert formal_constant(system, p, q) * (1 - 1e-12) <= bound <= proved(system, "liplt", p, q) * (1 + 1e-11)
            stated = lm.norms.constant(0.0).with_rule("liplt", signed=(False,) * 3, between=lm.NORMS)
            unsigned = prove_expression(stated, system, (p, q)).bound
            assert unsigned <= product.build(system, lm.Spec(input_norm=p, output_norm=q)).evaluate() * (1 + 1e-11)
    with pytest.raises(lm.UsageError, match="choose own or all"):
        formulation("liplt", {"between": "some"}).build(system, lm.Spec())


def test_transposed_networks_have_the_dual_bound():
    rng = np.random.default_rng(6)
    dual = {"1": "inf", "2": "2", "inf": "1"}
    for _ in range(5):
        weights = [rng.standard_normal(s) for s in ((4, 3), (5, 4), (2, 5))]
        turned = [w.T for w in weights[::-1]]
        for p, q in PAIRS:
            one, other = (
                proved(chain_of(w), "liplt", *n) for w, n in ((weights, (p, q)), (turned, (dual[q], dual[p])))
            )
            if p == q:
                assert one == pytest.approx(other, rel=1e-10)


def test_branches_side_by_side_are_joined_by_the_norm():
    """A concatenation of branches with the constants 3 and 4 before an unsigned activation: 5, not 7."""
    x, parts = lm.Signal(name="x", size=2), []
    signals, joined = [x], []
    for k, slope in enumerate((3.0, 4.0)):
        signal = lm.Signal(name=f"w{k}", size=2)
        parts.append(chain_of([slope * np.eye(2), np.eye(2)]).activations[0])
        parts[-1] = replace(parts[-1], name=f"a{k}", signal=signal, post=lm.LinearForm.of(signal),
                            pre=slope * lm.LinearForm.of(x))  # fmt: skip
        place = np.zeros((4, 2))
        place[2 * k : 2 * k + 2] = np.eye(2)
        joined.append(place @ lm.LinearForm.of(signal))
        signals.append(signal)
    whole = joined[0] + joined[1]
    output = lm.LinearForm(size=4, blocks=whole.blocks, role="output")
    system = lm.IncrementSystem(
        signals=tuple(signals), input=lm.LinearForm.of(x, role="input"), activations=tuple(parts), output=output
    )
    unsigned = lm.norms.constant(0.0).with_rule("liplt", signed=(False, False))
    assert prove_expression(unsigned, system, ("2", "2")).bound == pytest.approx(5.0, rel=1e-11)
    # half of it goes straight on, and is one map
    assert proved(system, "liplt", "2", "2") == pytest.approx(5.0, rel=1e-11)
    assert proved(system, "liplt", "inf", "inf") == 4.0
    assert proved(system, "liplt", "1", "1") == 7.0


def test_middles_and_radii_enclose_the_slopes():
    rng = np.random.default_rng(7)
    for scale in (1e-300, 1e-17, 1.0, 1e17, 1e300):
        system = random_chain(rng)
        for a in system.activations:
            changed = replace(a, alpha=a.alpha * scale, beta=a.beta * scale + rng.uniform(0.0, 1e-3, a.size) * scale)
            c = centres(changed)
            for low, high, middle, r in zip(changed.alpha, changed.beta, c, deviations(changed, c), strict=True):
                needed = max(Fraction(high) - Fraction(middle), Fraction(middle) - Fraction(low))
                assert needed <= Fraction(r) <= needed * (1 + Fraction(1, 2**51))


# ------------------------------------------------------------------------------------------------------ formulation


def test_the_formulation_states_what_the_rule_computes():
    rng = np.random.default_rng(8)
    systems = [random_chain(rng), *(random_system(kind, 1) for kind in ("residual", "skips", "concat", "mixed"))]
    for system in systems:
        for p, q in PAIRS:
            built = formulation("liplt").build(system, lm.Spec(input_norm=p, output_norm=q))
            assert built.evaluate() == pytest.approx(prove_expression(built, system, (p, q)).bound, rel=1e-10)


def test_combettes_pesquet_is_liplt_on_chains_and_refused_elsewhere():
    rng = np.random.default_rng(9)
    system = random_chain(rng)
    for p, q in PAIRS:
        assert proved(system, "combettes-pesquet", p, q) == proved(system, "liplt", p, q)
    with pytest.raises(lm.UsageError, match="use liplt"):
        formulation("combettes-pesquet").build(random_system("residual", 0), lm.Spec())


def test_deep_chains():
    rng = np.random.default_rng(10)
    weights = [rng.standard_normal((2, 2)) for _ in range(40)]
    bound = proved(chain_of(weights), "liplt", "inf", "inf")
    assert 0.0 < bound < np.prod([np.linalg.norm(w, np.inf) for w in weights])
