"""Formulations: the shipped conformance suite on ours, and on ones with a mistake in them."""

from __future__ import annotations

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.formulation import formulation, formulation_class
from lipmodel.network.increments import chain_of
from lipmodel.testing.formulations import answer, formulation_checks
from lipmodel.testing.networks import KINDS, formal_constant, random_system

# others run it beside their own tests: liplt, k3, k4, path-norm, eclipse, syed-hu, s-opt, lipopt, pairs, sos
BUILT_IN = ("product", "lipsdp-neuron", "lipsdp-layer", "geolip", "geolip-triangle", "seqlip")
CHECKS = {str(check): check for check in formulation_checks()}
CLARABEL = backend("clarabel")


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """Formulations defined in a test are forgotten after it."""
    from lipmodel import formulation as module

    monkeypatch.setattr(module, "_REGISTERED", dict(module._REGISTERED))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_conformance(name, check):
    CHECKS[check](formulation(name))


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_formulations(kind):
    """neuron <= layer, geolip at 2 -> 2 is neuron, and one output makes geolip's 2 -> 1 the same again."""
    for seed in (5, 6):
        system = random_system(kind, seed)
        neuron, layer, geo = (
            answer(formulation(name), system, "2", "2", CLARABEL).claim
            for name in ("lipsdp-neuron", "lipsdp-layer", "geolip")
        )
        assert neuron <= layer * (1.0 + 1e-6)
        assert geo == pytest.approx(neuron, rel=1e-6)
        single = random_system(kind, seed, outputs=1)
        values = [answer(formulation("geolip"), single, p, q, CLARABEL).claim for p, q in (("2", "1"), ("2", "2"))]
        assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_norm_pairs_are_ordered():
    """A larger input ball and a larger output norm give larger bounds, by at most the root of the dimension."""
    for kind in ("one-layer", "skips"):
        system = random_system(kind, 7)
        n, m = system.input.size, system.output.size
        value = {
            (p, q): answer(formulation("geolip"), system, p, q, CLARABEL).claim for p, q in formulation("geolip").norms
        }
        slack = 1.0 + 1e-6
        for q in ("1", "2"):
            assert value["2", q] <= value["inf", q] * slack
            assert value["inf", q] <= np.sqrt(n) * value["2", q] * slack
        for p in ("2", "inf"):
            assert value[p, "2"] <= value[p, "1"] * slack
            assert value[p, "1"] <= np.sqrt(m) * value[p, "2"] * slack


def test_known_traps_are_not_undercut():
    """f(x) = relu(x) - relu(x - 10), whose constant 1 couplings between neurons would hide."""
    system = chain_of([np.array([[1.0], [1.0]]), np.array([[1.0, -1.0]])])
    for name in ("lipsdp-neuron", "lipsdp-layer"):
        found = answer(formulation(name), system, "2", "2", CLARABEL)
        assert found.claim == pytest.approx(1.0, abs=1e-6)
        assert found.proved >= 1.0


# -------------------------------------------------------------------------------- own formulations


def stated(**changes):
    """LipSDP with something changed."""
    options = {"factor": 1.0, "output": -1.0, "skip": 0, "sign": -1.0, "norm": "2", **changes}

    class Mine(lm.Formulation):
        """LipSDP, with a mistake."""

        name, norms = "mine", {("2", "2")}

        def build(self, system, spec):
            m = lm.Model(self.name)
            ball, price = m.ball(system.input, options["norm"])
            form = ball + options["output"] * lm.inner(system.output, system.output)
            for act in system.activations[options["skip"] :]:
                form += options["sign"] * lm.qc.slope_restricted(act, m.multiplier(act))
            m.require(form >= 0)
            m.minimize(2 * options["factor"] * price, bound="sqrt")
            return m

    return Mine()


def test_a_formulation_of_ones_own_conforms():
    for name in ("declaration", "enumeration-mixed", "enumeration-concat", "scaling", "repeatable"):
        CHECKS[name](stated())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 0.25}, "claims"),  # a wrong price
        ({"output": -0.25}, "claims"),  # a wrong weight on the output
        ({"sign": 1.0}, "found nothing|claims|proved"),  # the wrong sign of the constraints
        ({"skip": 1}, "found nothing|claims|proved"),  # an activation forgotten
    ],
)
def test_a_mistake_is_found_by_the_suite(changes, message):
    with pytest.raises(AssertionError, match=message):
        CHECKS["enumeration-mixed"](stated(**changes))


@pytest.mark.parametrize("changes", [{"factor": 0.25}, {"output": -0.25}, {"sign": 1.0}, {"skip": 1}, {"output": 1.0}])
def test_a_mistake_never_gives_a_false_proof(changes):
    from lipmodel.backends.base import SolveOptions
    from lipmodel.certify.extract import extract
    from lipmodel.certify.repair import prove
    from lipmodel.network.increments import float_system

    for kind in ("chain", "mixed", "residual"):
        system = random_system(kind, 8)
        model = stated(**changes).build(system, lm.Spec())
        point = CLARABEL.solve(model, SolveOptions())
        candidates = [] if point.values is None else [("mine", extract(model, system, point.values)[0])]
        found = prove(float_system(system), "2", "2", candidates)
        assert found.bound >= formal_constant(system, "2", "2") * (1.0 - 1e-9)
        assert found.bound <= prove(float_system(system), "2", "2").bound


def test_a_wrong_norm_is_a_usage_error():
    with pytest.raises(lm.UsageError, match="the norms are 1, 2 and inf"):
        stated(norm="l3").build(random_system("chain", 0), lm.Spec())


def test_a_formulation_from_a_file_runs_as_written(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GEOLIP)
    own = formulation(f"{path}:GeoLIP")
    system = random_system("residual", 1)
    for p, q in formulation("geolip").norms:
        expected = answer(formulation("geolip"), system, p, q, CLARABEL)
        assert answer(own, system, p, q, CLARABEL).claim == pytest.approx(expected.claim, rel=1e-9)


def test_options_become_fields(tmp_path):
    path = tmp_path / "options.py"
    path.write_text(OPTIONS)
    cls = formulation_class(str(path))
    assert formulation(cls, {"tied": "yes"}).options() == {"tied": True, "rounds": 3}
    assert formulation(cls, {"rounds": "5"}).options() == {"tied": False, "rounds": 5}
    for key, value, message in (
        ("tied", "perhaps", "not a bool"),
        ("rounds", "many", "not a int"),
        ("x", "1", "no option 'x'"),
    ):
        with pytest.raises(lm.UsageError, match=message):
            formulation(cls, {key: value})


GEOLIP = '''
import lipmodel as lm


class GeoLIP(lm.Formulation):
    """Mixed-norm SDP, stated by a user."""

    name, norms = "geolip", {("inf", "1"), ("inf", "2"), ("2", "1"), ("2", "2")}

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Model:
        m = lm.Model(self.name)
        dual = m.signal("dual", system.output.size)
        ball_in, price_in = m.ball(system.input, spec.input_norm)
        ball_out, price_out = m.ball(dual, lm.dual(spec.output_norm))
        form = ball_in + ball_out - 2 * lm.inner(dual, system.output)
        for act in system.activations:
            form -= lm.qc.slope_restricted(act, m.multiplier(act))
        m.require(form >= 0)
        m.minimize(price_in + price_out)
        return m
'''

OPTIONS = '''
import lipmodel as lm


class Tunable(lm.Formulation):
    """A formulation with options."""

    name, norms = "tunable", {("2", "2")}
    tied: bool = lm.option(False, help="one multiplier per layer")
    rounds: int = lm.option(3, help="how often")

    def build(self, system, spec):
        raise NotImplementedError
'''
