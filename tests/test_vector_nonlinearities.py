"""Networks with Softmax, LogSoftmax, normalisations and LRN: bounds of networks, their proofs and witnesses."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from vector_cases import CASES, FORMULATIONS, FUNCTIONS, LABELS, PAIRS, plain, sampled, sandwich

import lipmodel as lm
from lipmodel.certify.kernel import Multipliers, Rejected, check_lmi, fault
from lipmodel.certify.lmi import Multipliers as FloatMultipliers
from lipmodel.certify.repair import prove, prove_as_it_is
from lipmodel.domain import Box, parse_domain
from lipmodel.elimination import tied
from lipmodel.errors import Refuted, UsageError
from lipmodel.lower.linearise import float_program, jacobian_vector_product, vector_jacobian_product
from lipmodel.lower.moves import Point, climb, flips, local_norms
from lipmodel.lower.witness import witness_ratio
from lipmodel.network.increments import exact_system, float_system
from lipmodel.network.linear import Dense
from lipmodel.network.ops import Grouped, Linear, elementwise
from lipmodel.network.vector import LayerNormalization, LogSoftmax, Softmax, VectorFunction
from lipmodel.testing.networks import _Sketch

Array = np.ndarray[Any, Any]


# ------------------------------------------------------------------------------------------------------ whole networks


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.label)
@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_no_bound_is_below_what_sampling_finds(function: VectorFunction, p: str, q: str) -> None:
    rng = np.random.default_rng(10 * len(p) + len(q))
    network = sandwich(rng, function, outputs=2, groups=1 + len(q) % 2)
    least = sampled(network, p, q, rng)
    ended = []
    for name in FORMULATIONS:
        try:
            result = lm.solve(network, name, norm=f"{p}:{q}", time_limit=5.0)
        except UsageError:
            continue  # a pair of norms that the formulation does not reach
        ended.append(name)
        assert result.assurance == "proved"
        assert result.bound >= least * (1 - 1e-9)
        assert result.lower_bound is None or result.lower_bound <= result.bound
        verdict = lm.verify(network, result)
        assert verdict.bound == result.bound
        assert verdict.read_by.startswith("the importer")
    assert "product" in ended


@pytest.mark.parametrize("backend", ["native", "clarabel", "scs"])
def test_backends_agree_on_groups(backend: str) -> None:
    network = sandwich(np.random.default_rng(8), Softmax(), outputs=2, groups=2)
    best = lm.solve(network, "lipsdp-neuron", time_limit=10.0).bound
    found = lm.solve(network, "lipsdp-neuron", backend=backend, time_limit=10.0)
    assert found.backend == backend
    assert found.bound == pytest.approx(best, rel=1e-4)


def test_known_constants_are_found() -> None:
    softmax = lm.solve(plain(Softmax(), 4), "lipsdp-neuron", time_limit=5.0)
    assert softmax.bound == pytest.approx(0.5, rel=1e-6)
    assert softmax.lower_bound == pytest.approx(0.5, rel=1e-3)
    for norm, value in (("1", 4.0), ("2", 5.0**0.5), ("inf", 2.0)):
        assert lm.solve(plain(LogSoftmax(), 5), "product", norm=norm).bound == pytest.approx(value, rel=1e-9)
    layer = lm.solve(plain(LayerNormalization(epsilon=0.0625), 4), "lipsdp-neuron", time_limit=5.0)
    assert layer.bound == pytest.approx(4.0, rel=1e-6)
    assert layer.lower_bound == pytest.approx(4.0, rel=1e-3)


def test_the_gain_of_each_norm_is_used_in_products() -> None:
    rng = np.random.default_rng(9)
    for function in CASES:
        network = sandwich(rng, function, outputs=2)
        for p, q in PAIRS:
            result = lm.solve(network, "product", norm=f"{p}:{q}")
            assert result.bound >= sampled(network, p, q, rng, 100) * (1 - 1e-9)
            lm.verify(network, result)


# ----------------------------------------------------------------------------------- one multiplier for a whole group


def cross() -> Any:
    """x -> (x, 0) -> Softmax -> the second entry: its slope is p_1 p_2, at most 1/4; entry by entry it would be 0."""
    return plain(Softmax(), 2, np.array([[1.0], [0.0]]), np.array([[0.0, 1.0]]))


def test_a_group_lives_or_dies_as_a_whole() -> None:
    network = cross()
    (activation,) = lm.increments(network).activations
    assert activation.size == 2
    assert activation.groups is not None
    for formulation in FORMULATIONS:
        result = lm.solve(network, formulation, time_limit=5.0, norm="2")
        assert result.lower_bound == pytest.approx(0.25, rel=1e-3)
        assert result.bound >= 0.25
    # of two groups the one that the output does not read is dead, and only that
    both = plain_groups(np.array([[1.0, 0.0, 0.0, 0.0]]))
    (activation,) = lm.increments(both).activations
    assert activation.size == 2
    assert len(set(np.asarray(activation.groups).tolist())) == 1


def plain_groups(after: Array) -> Any:
    sketch = _Sketch(0, 4)
    positions = np.array([[0, 2], [1, 3]])
    inner = sketch.add(Grouped(function=Softmax(), groups=positions), [sketch.linear(sketch.x, 4)])
    return sketch.finish(sketch.linear(inner, len(after), weights=after))


def test_multipliers_that_differ_within_a_group_would_prove_too_much() -> None:
    """Why the kernel has to refuse them: entry by entry, the inequality bounds a network by less than its constant."""
    before, after = np.array([[1.0], [0.0], [0.5]]), np.array([[0.0, 1.0, 0.0]])
    network = plain(Softmax(), 3, before, after)
    system = exact_system(lm.increments(network))
    true = witness_ratio(network, np.array([-0.01]), np.array([0.01]), "2", "2")
    assert true > 0.03
    t = np.array([1e-6, 1.0, 1e-6])
    g, s, claim = np.array([1e-3]), np.array([0.6]), 0.025
    check_lmi(dataclasses.replace(system, groups=()), Multipliers(t=(t,), g=g, s=s), "2", "2", claim)
    with pytest.raises(Rejected, match="group"):
        check_lmi(system, Multipliers(t=(t,), g=g, s=s), "2", "2", claim)


def test_the_kernel_wants_one_pair_of_slopes_for_a_group() -> None:
    system = exact_system(lm.increments(plain(Softmax(), 3)))
    fine = Multipliers(t=(np.ones(3),), g=np.ones(3), s=np.ones(3))
    assert fault(system, fine) is None
    for name, value in (("alpha", -0.25), ("beta", 0.75)):
        other = np.array(getattr(system, name)[0])
        other[1] = value
        assert "group" in str(fault(dataclasses.replace(system, **{name: (other,)}), fine))
    assert "group" in str(fault(dataclasses.replace(system, groups=(np.zeros(2),)), fine))
    apart = dataclasses.replace(system, groups=(np.array([0, 1, 0]),))
    assert fault(apart, Multipliers(t=(np.array([1.0, 2.0, 1.0]),), g=np.ones(3), s=np.ones(3))) is None


@pytest.mark.parametrize("formulation", ["lipsdp-neuron", "geolip"])
def test_tampering_with_one_multiplier_of_a_group_is_refused(formulation: str) -> None:
    rng = np.random.default_rng(11)
    refused = 0
    for function in CASES:
        network = sandwich(rng, function, outputs=2, groups=2)
        norm = "2:1" if formulation == "geolip" else "2:2"
        result = lm.solve(network, formulation, norm=norm, time_limit=5.0)
        data = json.loads(json.dumps(result.to_json()["certificate"]))
        if data["upper"]["rule"] != "lmi":
            continue
        lm.verify(network, data)
        (k,) = [i for i, a in enumerate(lm.increments(network).activations) if a.groups is not None]
        t = np.array([float.fromhex(v) for v in expanded(data["upper"]["t"][k], 8)])
        for factor in (1.0 + 2.0**-52, 1.5, 0.0):
            changed = t.copy()
            changed[3] *= factor
            data["upper"]["t"][k] = [float(v).hex() for v in changed]
            with pytest.raises(Refuted, match="group"):
                lm.verify(network, data)
        refused += 1
    assert refused >= 4


def expanded(written: list[Any], size: int) -> list[str]:
    """The numbers of a vector in a certificate, where a repeated one may be written once."""
    return [written[1]] * size if written[0] == f"*{size}" else written


def test_repair_projects_multipliers_to_the_maximum_of_a_group() -> None:
    labels = np.array([4, 1, 4, 1, 7])
    np.testing.assert_array_equal(tied(labels, np.array([1.0, 5.0, 3.0, 2.0, 0.0])), [3.0, 5.0, 3.0, 5.0, 0.0])
    values = np.array([1.0, 2.0])
    assert tied(None, values) is values
    rng = np.random.default_rng(12)
    for seed in range(8):
        network = sandwich(rng, CASES[seed % len(CASES)], outputs=2, groups=2)
        system = lm.increments(network)
        matrices, best = float_system(system), lm.solve(network, "lipsdp-neuron", time_limit=5.0).bound
        given = FloatMultipliers(
            t=tuple(10.0 ** rng.uniform(-3.0, 3.0, a.size) for a in system.activations), g=np.ones(3), s=np.ones(2)
        )
        given.t[0][0], given.t[1][1] = np.nan, -1.0
        for closed in ("all", "doubt"):
            found = prove(matrices, "2", "2", [("wild", given)], closed=closed)
            assert found is not None
            assert found.bound >= sampled(network, "2", "2", rng, 50) * (1 - 1e-9)
            assert found.bound >= best * (1 - 1e-3)
            check_lmi(exact_system(system), found.multipliers, "2", "2", found.bound)
        assert prove_as_it_is(matrices, "2", "2", given, "wild") is None


def test_a_feasible_point_with_uneven_multipliers_is_evened_out_before_it_is_proved() -> None:
    system = lm.increments(plain(Softmax(), 3))
    t = np.array([2.0, 2.0 + 1e-12, 2.0])
    found = prove_as_it_is(
        float_system(system), "2", "2", FloatMultipliers(t=(t,), g=np.full(3, 4.0), s=np.full(3, 4.0)), "point"
    )
    assert found is not None
    assert len(set(found.multipliers.t[0].tolist())) == 1


def test_models_have_one_multiplier_per_group_and_statements_too() -> None:
    network = sandwich(np.random.default_rng(13), Softmax(), outputs=2, groups=2)
    relus, softmax = lm.increments(network).activations
    m = lm.Model("m")
    assert m.multiplier(relus).size == relus.size
    weight = m.multiplier(softmax)
    assert weight.size == 8
    assert [v.size for v in m.variables] == [relus.size, 2]
    lm.qc.slope_restricted(softmax, weight)
    lm.qc.slope_restricted(softmax, m.multiplier(softmax, tied=True))
    lm.qc.slope_restricted(softmax, 1.0)
    with pytest.raises(UsageError, match=r"m\.multiplier"):
        lm.qc.slope_restricted(softmax, m.variable("t", 8, nonnegative=True))
    with pytest.raises(UsageError, match=r"m\.multiplier"):
        lm.qc.slope_restricted(softmax, np.arange(8.0))


# ----------------------------------------------------------------------------------------------- domains and witnesses


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.label)
def test_bounds_on_a_box_hold_and_are_no_larger(function: VectorFunction) -> None:
    rng = np.random.default_rng(14)
    network = sandwich(rng, function, outputs=2, groups=2)
    for domain in ("box:-0.5:0.5", "box:0.25:0.5"):
        result = lm.solve(network, "lipsdp-neuron", domain=domain, time_limit=5.0)
        lo, hi = (float(v) for v in domain.split(":")[1:])
        x = rng.uniform(lo, hi, (3, 300))
        program = float_program(network)
        norms = np.linalg.norm(program.jacobians(program.slopes(program.forward(x))), 2, axis=(1, 2))
        assert result.bound >= norms.max() * (1 - 1e-9)
        assert result.bound <= lm.solve(network, "lipsdp-neuron", time_limit=5.0).bound * (1 + 1e-5)
        assert lm.verify(network, result).bound == result.bound


def test_what_follows_a_softmax_has_a_range_on_a_box() -> None:
    sketch = _Sketch(0, 3)
    inner = sketch.add(Grouped(function=Softmax(), groups=np.arange(3)[None]), [sketch.x])
    inner = sketch.add(Linear(map=Dense(weights=np.eye(3))), [inner])
    network = sketch.finish(sketch.add(elementwise(lm.activation("Relu"), 3), [inner]))
    # probabilities are not negative, so that the Relu behind them is linear on any box
    (activation,) = lm.increments(network, parse_domain("box:-1:1")).activations
    assert activation.groups is not None


def test_a_group_that_cannot_move_is_taken_out_on_a_box() -> None:
    weights = np.zeros((4, 4))
    weights[[0, 2], 0] = 1.0
    weights[[1, 3], 1] = 1.0
    sketch = _Sketch(0, 4)
    inner = sketch.linear(sketch.x, 4, weights=weights)
    inner = sketch.add(Grouped(function=Softmax(), groups=np.array([[0, 2], [1, 3]])), [inner])
    network = sketch.finish(inner)
    domain = Box(lo=(0.0, 1.0, 0.0, 0.0), hi=(1.0, 1.0, 1.0, 1.0))
    (activation,) = lm.increments(network, domain).activations
    assert activation.size == 2


@pytest.mark.parametrize("function", FUNCTIONS, ids=LABELS)
def test_witnesses_are_evaluated_with_proof(function: VectorFunction) -> None:
    rng = np.random.default_rng(15)
    network = sandwich(rng, function, outputs=2, groups=2)
    for h in (1.0, 1e-3, 1e-6):
        x = rng.standard_normal(3)
        y = x + h * rng.standard_normal(3)
        ratio = witness_ratio(network, x, y, "2", "2")
        rough = np.linalg.norm(network.evaluate(x) - network.evaluate(y)) / np.linalg.norm(x - y)
        assert ratio == pytest.approx(rough, rel=1e-13 / h + 1e-9)
    assert witness_ratio(network, x, x, "2", "2") == 0.0


@pytest.mark.parametrize("function", FUNCTIONS, ids=LABELS)
def test_the_search_has_the_right_derivatives(function: VectorFunction) -> None:
    rng = np.random.default_rng(16)
    network = sandwich(rng, function, outputs=2, groups=2)
    x, v, u = rng.standard_normal(3), rng.standard_normal(3), rng.standard_normal(2)
    h = 1e-6
    rough = (network.evaluate(x + h * v) - network.evaluate(x - h * v)) / (2 * h)
    np.testing.assert_allclose(jacobian_vector_product(network, x, v), rough, rtol=1e-4, atol=1e-6)
    assert vector_jacobian_product(network, x, u) @ v == pytest.approx(u @ rough, rel=1e-4, abs=1e-6)
    program = float_program(network)
    _, found = local_norms(program, x[:, None], "2", "2")
    here = Point(x=x, value=float(found.value[0]), v=found.v[0], u=found.u[0])
    gradient = climb(program, flips(program, here))
    for k in range(3):
        ahead, behind = (
            float(local_norms(program, (x + sign * 1e-5 * np.eye(3)[k])[:, None], "2", "2")[1].value[0])
            for sign in (1.0, -1.0)
        )
        assert gradient[k] == pytest.approx((ahead - behind) / 2e-5, rel=2e-3, abs=2e-5)
