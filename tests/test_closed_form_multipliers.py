"""ECLipsE, ECLipsE-Fast, Syed-Hu: their own numbers, proved as they are, on any depth and graph; known values."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.certify import repair
from lipmodel.certify.lmi import Multipliers
from lipmodel.certify.repair import prove_as_it_is, prove_closed_form
from lipmodel.certify.rigor import proves_lmi
from lipmodel.formulation import formulation
from lipmodel.network.increments import chain_of, float_system
from lipmodel.testing.formulations import formulation_checks
from lipmodel.testing.networks import KINDS, formal_constant, random_network, random_system

SHARED = Path(__file__).resolve().parents[2] / "shared"
NAMES = ("eclipse-fast", "eclipse", "syed-hu")
PAIRS = [("2", "2"), ("2", "1"), ("inf", "2"), ("inf", "1")]
CHECKS = {str(check): check for check in formulation_checks()}


def gaussian(dims, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((m, n)) / np.sqrt(n) for n, m in itertools.pairwise(dims)]


def eclipse_fast(weights):
    """Algorithm 1 of Xu & Sivaranjani with Lambda_i = 2 I / lmax, dense."""
    gram = weights[0] @ weights[0].T
    for w in weights[1:]:
        lam = 2.0 / np.linalg.eigvalsh(gram)[-1]
        inverse = lam * np.eye(len(gram)) - lam * gram * lam / 4.0
        gram = w @ np.linalg.inv(inverse) @ w.T
    return math.sqrt(np.linalg.eigvalsh(gram)[-1])


def names(system):
    """Those that take the system: ECLipsE has chains only."""
    forms = [*(a.pre for a in system.activations), system.output]
    chain = all(list(f.blocks) == [before] for f, before in zip(forms, system.signals, strict=True))
    return NAMES if chain else [name for name in NAMES if name != "eclipse"]


def test_eclipse_refuses_graphs():
    with pytest.raises(lm.UsageError, match="skip connections"):
        built("eclipse", random_system("residual", 0))


def built(name, system, p="2", q="2", **options):
    """What the formulation gives, of a stream the best."""
    found = formulation(name, options).build(system, lm.Spec(input_norm=p, output_norm=q))
    return found if isinstance(found, Multipliers) else min(found, key=lambda m: m.claim(p, q))


@cache
def generator():
    spec = importlib.util.spec_from_file_location("oracle_recipes", SHARED / "oracles" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------------------------------------
# Conformance and soundness


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_conformance(name, check):
    CHECKS[check](formulation(name))


@pytest.mark.parametrize("kind", KINDS)
def test_every_point_is_proved_as_it_is_and_none_is_below_the_constant(kind):
    """On all graphs and norm pairs: the proved bound is the formula's own, and at least the formal constant."""
    for seed in (5, 6):
        system = random_system(kind, seed)
        matrices = float_system(system)
        for p, q in PAIRS:
            formal = formal_constant(system, p, q)
            for name in names(system):
                multipliers = built(name, system, p, q)
                found = prove_closed_form(matrices, p, q, multipliers, name)
                assert found is not None
                assert found.origin == name
                assert found.bound >= formal * (1.0 - 1e-9)
                assert found.bound == pytest.approx(multipliers.claim(p, q), rel=1e-8)
                assert proves_lmi(matrices, found.multipliers)


@pytest.mark.parametrize("kind", KINDS)
def test_orderings_of_the_family(kind):
    """LipSDP-Neuron below everything; ECLipsE-Fast is SN(1), so Syed-Hu's best is no worse."""
    for seed in (7, 8):
        system = random_system(kind, seed)
        model = formulation("lipsdp-neuron").build(system, lm.Spec())
        neuron = model.bound_of(backend("clarabel").solve(model, lm_options()).objective)
        values = {name: built(name, system).claim("2", "2") for name in names(system)}
        assert all(value >= neuron * (1.0 - 1e-6) for value in values.values())
        assert values["syed-hu"] <= values["eclipse-fast"] * (1.0 + 1e-12)
        single = built("syed-hu", system, member="sn", c=1.0).claim("2", "2")
        assert single == pytest.approx(values["eclipse-fast"], rel=1e-12)


def lm_options():
    from lipmodel.backends.base import SolveOptions

    return SolveOptions()


def test_eclipse_fast_is_below_the_product_of_spectral_norms():
    for seed in range(20):
        dims = np.random.default_rng(seed).integers(1, 9, size=5)
        weights = gaussian(dims, seed)
        product = math.prod(np.linalg.norm(w, 2) for w in weights)
        assert built("eclipse-fast", chain_of(weights)).claim("2", "2") <= product * (1.0 + 1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# The method's own number


@pytest.mark.parametrize("depth", [1, 3, 40])
@pytest.mark.parametrize("seed", [0, 1])
def test_eclipse_fast_reports_its_formula(depth, seed):
    """Neither an improved number nor a loosened one, and not below the formula by more than its rounding."""
    weights = gaussian([5, *([12] * depth), 3], seed)
    expected = eclipse_fast(weights)
    r = lm.solve(lm.from_weights(weights), "eclipse-fast", norm="2", witness=False)
    assert r.bound == pytest.approx(expected, rel=1e-8)
    assert r.bound >= expected * (1.0 - 1e-12)
    assert r.claim == pytest.approx(expected, rel=1e-10)
    assert r.assurance == "proved"
    assert r.termination == "closed-form"


@pytest.mark.parametrize("name", NAMES)
def test_deep_networks_are_proved_as_they_are(name):
    weights = gaussian([6, *([10] * 60), 2], 3)
    r = lm.solve(lm.from_weights(weights), name, norm="2", witness=False)
    assert r.bound == pytest.approx(r.claim, rel=1e-8)
    assert r.bound >= r.claim * (1.0 - 1e-12)


def boundary(share):
    """A system, and the point of ECLipsE-Fast with its ends too small by a share of them."""
    system = chain_of(gaussian([4, 8, 8, 3], 1))
    m = built("eclipse-fast", system)
    return float_system(system), Multipliers(t=m.t, g=m.g * (1.0 - share), s=m.s)


def test_a_point_that_is_off_by_rounding_is_moved_inside_by_as_little_as_it_takes():
    for share in (0.0, 1e-12, 1e-10, 1e-8, 1e-6):
        matrices, m = boundary(share)
        found = prove_closed_form(matrices, "2", "2", m, "mine")
        assert found is not None
        assert found.origin == "mine"
        excess = found.bound / m.claim("2", "2") - 1.0
        assert 0.0 < excess <= 200.0 * share + 1e-11
        assert (prove_as_it_is(matrices, "2", "2", m, "mine") is None) == (share > 1e-11)


def test_a_point_that_is_far_off_is_repaired_by_itself(monkeypatch):
    """No other closed form takes its place, though one of them would be better; but what is infeasible is refused."""
    matrices, m = boundary(1e-3)
    best = repair.prove(matrices, "2", "2", [])
    found = prove_closed_form(matrices, "2", "2", m, "mine")
    assert found is not None
    assert found.origin == "mine"
    assert found.bound == pytest.approx(m.claim("2", "2"), rel=2e-3)
    assert found.bound > 1.01 * best.bound
    matrices, m = boundary(0.9)
    assert prove_closed_form(matrices, "2", "2", m, "mine") is None
    # where only the repair gets through, and finds better ends, the number remains the method's own
    matrices, m = boundary(0.0)
    loose = Multipliers(t=m.t, g=4.0 * m.g, s=m.s)
    once = []

    def first_fails(*arguments, **named):
        once.append(arguments)
        return None if len(once) == 1 else prove_as_it_is(*arguments, **named)

    monkeypatch.setattr(repair, "prove_as_it_is", first_fails)
    found = prove_closed_form(matrices, "2", "2", loose, "mine")
    assert found.bound == pytest.approx(loose.claim("2", "2"), rel=1e-9)
    assert proves_lmi(matrices, found.multipliers)


def test_nothing_is_proved_from_nothing():
    matrices, m = boundary(0.0)
    nothing = Multipliers(t=tuple(np.full_like(t, np.nan) for t in m.t), g=m.g, s=m.s)
    assert prove_closed_form(matrices, "2", "2", nothing, "mine") is None

    class Nothing(lm.Formulation):
        """Multipliers that are no numbers."""

        name, norms = "nothing", {("2", "2")}

        def build(self, system, spec):
            return Multipliers(
                t=tuple(np.full(a.size, np.nan) for a in system.activations),
                g=np.ones(system.input.size),
                s=np.ones(system.output.size),
            )

    net = lm.from_weights(gaussian([4, 8, 8, 3], 1))
    r = lm.solve(net, Nothing, norm="2", witness=False)
    assert r.assurance == "proved"
    assert r.bound >= lm.solve(net, "lipsdp-neuron", norm="2", witness=False).bound * (1.0 - 1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Invariances and options


def rescaled_chain(weights, seed):
    """The same ReLU network with neurons in another order and multiplied by positive numbers."""
    rng = np.random.default_rng(seed)
    weights = [w.copy() for w in weights]
    for k in range(len(weights) - 1):
        order = rng.permutation(len(weights[k]))
        factor = rng.uniform(0.2, 5.0, len(order))
        weights[k] = weights[k][order] * factor[:, None]
        weights[k + 1] = weights[k + 1][:, order] / factor
    return weights


def test_what_is_invariant_under_rescaling_of_neurons():
    """Weighted row sums are not, a multiple of the identity is not: another order of the neurons changes nothing."""
    weights = gaussian([4, 6, 6, 2], 2)
    for name in NAMES:
        before = built(name, chain_of(weights)).claim("2", "2")
        turned = [weights[0][::-1], weights[1][::-1, ::-1], weights[2][:, ::-1]]
        assert built(name, chain_of(turned)).claim("2", "2") == pytest.approx(before, rel=1e-6)
    changed = chain_of(rescaled_chain(weights, 0))
    before, after = (built("eclipse-fast", s).claim("2", "2") for s in (chain_of(weights), changed))
    assert after > 1.2 * before


def test_the_members_and_constants_of_syed_hu():
    system = chain_of(gaussian([4, 9, 9, 2], 4))
    best = built("syed-hu", system).claim("2", "2")
    for member, constants in (("sn", (0.7, 1.0, 1.5, 1.9)), ("gc", (0.5, 1.0, 1.99)), ("shift", (1.05, 1.5, 4.0))):
        tuned = built("syed-hu", system, member=member).claim("2", "2")
        assert best <= tuned * (1.0 + 1e-12)
        for c in constants:
            assert tuned <= built("syed-hu", system, member=member, c=c).claim("2", "2") * (1.0 + 1e-3)
    assert best < 0.95 * built("eclipse-fast", system).claim("2", "2")


@pytest.mark.parametrize(
    "options", [{"member": "x"}, {"member": "sn", "c": 2.0}, {"member": "gc", "c": -1.0}, {"member": "shift", "c": 1.0}]
)
def test_options_that_prove_nothing_are_refused(options):
    with pytest.raises(lm.UsageError, match="option"):
        formulation("syed-hu", options).build(chain_of(gaussian([2, 3, 1])), lm.Spec())


def test_single_inputs_and_outputs_and_margins_are_reached():
    net = random_network("chain", 3, inputs=3, outputs=3)
    for name in NAMES:
        rows = lm.solve(net, name, norm="2:inf", witness=False)
        all_of_them = lm.solve(net, name, norm="2", witness=False)
        assert rows.bound <= all_of_them.bound * (1.0 + 1e-6)
        assert len(rows.per_output) == 3
        assert lm.solve(net, name, norm="2", outputs="margin:0", witness=False).bound > 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Certificates


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["chain", "mixed", "residual"])
def test_certificates_are_verified_and_lower_bounds_refuted(name, kind, tmp_path):
    net = random_network(kind, 9)
    path = tmp_path / "net.onnx"
    net.save(path)
    if name not in names(lm.increments(lm.load(path))):
        pytest.skip("a graph")
    r = lm.solve(path, name, norm="2", witness=False)
    certificate = json.loads(json.dumps(r.certificate))
    assert certificate["upper"]["rule"] == "lmi"
    assert lm.verify(path, certificate)
    lower = copy.deepcopy(certificate)
    ulp = math.nextafter(r.bound, 0.0).hex()
    lower["upper"]["bound"] = lower["claim"]["bound"] = ulp
    with pytest.raises(lm.Refuted):
        lm.verify(path, lower)
    # the points lie on the boundary of what is feasible: the far end may not shrink by more than the margin
    less = copy.deepcopy(certificate)
    less["upper"]["s"] = [(float.fromhex(x) * (1.0 - 1e-6)).hex() for x in less["upper"]["s"]]
    with pytest.raises(lm.Refuted):
        lm.verify(path, less)


# ---------------------------------------------------------------------------------------------------------------------
# Known values


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize(("layers", "fast", "own"), [(2, 0.92, 0.84), (5, 0.905, 0.81), (10, 0.915, 0.83)])
def test_published_ratios_to_the_product(layers, fast, own):
    """Nonnegative networks of 80 neurons per layer; ratios to the product read off a figure by its authors, to 0.01."""
    made = generator().RECIPES["eclipse_nonneg"](layers=layers, width=80)
    net = lm.load(made.build("recipe")[0])
    product, exact = made.known["product"]["2->2"], made.known["exact"]["2->2"]
    for name, ratio in (("eclipse-fast", fast), ("eclipse", own)):
        r = lm.solve(net, name, norm="2", witness=False)
        assert r.bound >= exact
        assert r.bound / product == pytest.approx(ratio, abs=0.015)
    # and on these ECLipsE is next to the exact constant
    assert r.bound <= exact * 1.001
