"""Boxes and balls: ranges hold what can occur, bounds hold every difference quotient, witnesses stay inside."""

from __future__ import annotations

import copy
import json
import math
import pathlib
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from local_points import ORDER, pieces, points, quotients, random_domain, squared
from random_graphs import random_graph

import lipmodel as lm
from lipmodel.activations import activation
from lipmodel.errors import Refuted, UsageError
from lipmodel.lower import search, witness_ratio
from lipmodel.spec import Ball, Box, Domain, Global, Spec, parse_domain
from lipmodel.testing.networks import KINDS, random_network

PAIRS = tuple(product(("1", "2", "inf"), repeat=2))
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


# --- What a domain is -----------------------------------------------------------------------------------------------


def test_domains_are_read(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.array([[0.5, -2.0], [3.0, 0.1]], dtype=np.float32))
    third = float(np.float32(0.1))
    assert parse_domain("global") == Global()
    assert parse_domain(" box:-1:1") == Box(-1.0, 1.0)
    assert parse_domain("box:0,1:2") == Box([0.0, 1.0], [2.0, 2.0])
    assert parse_domain(f"box:{file}:4").lo == (0.5, -2.0, 3.0, third)
    assert parse_domain(f"ball:{file}:0.25") == Ball((0.5, -2.0, 3.0, third), 0.25)
    assert parse_domain("ball:0:1e-3").sized(3) == Ball((0.0, 0.0, 0.0), 1e-3)
    assert Box(-0.0, 0).lo == (0.0,)
    assert math.copysign(1.0, Box(-0.0, 0).lo[0]) == 1.0
    assert Box(np.zeros((2, 2)), 1).sized(4).hi == (1.0,) * 4
    assert str(Box(-1, 1).sized(7)) == "box:-1:1"
    assert str(Ball(np.arange(9), 0.5)) == "ball:[9]:0.5"
    assert Box(1, 1).is_point
    assert Ball(0, 0).is_point
    assert not Box([0, 0], [0, 1]).is_point


@pytest.mark.parametrize(
    "text",
    ["", "box", "box:1", "box:1:0", "box:0:inf", "box:nan:1", "box:0,1:1,2,3", "box:a:b", "box:0:1:2", "ball:0",
     "ball::1", "ball:0:-1", "ball:0:inf", "ball:0:1,2", "sphere:0:1", "ball:missing.npy:1", "Box(0, 1)"],
)  # fmt: skip
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_domain(text)


@pytest.mark.parametrize(
    "values", [True, "1", None, 1j, [], [[1.0], [1.0, 2.0]], 2**53 + 1, np.array([True]), np.array([np.nan])]
)
def test_ends_are_doubles(values: Any) -> None:
    with pytest.raises(UsageError):
        Box(values, 2**60)


def test_sizes_must_fit(tmp_path: pathlib.Path) -> None:
    net = random_network("chain", 0)
    for domain in (Box([0, 0], [1, 1]), Ball([0.0] * 4, 1.0)):
        with pytest.raises(UsageError, match="the network has 3 inputs"):
            lm.solve(net, domain=domain)
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot be read"):
        parse_domain(f"box:{tmp_path / 'object.npy'}:1")


def test_the_json_form_is_exact_and_strict() -> None:
    for domain in (Global(), Box([0.1, -3.0], [0.3, 1e300]), Box(-1, 1).sized(500), Ball([0.1] * 4, 1e-17)):
        spec = Spec(domain=domain)
        assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert Box(-1, 1).sized(500).to_json()["lo"] == ["*500", "-0x1.0000000000000p+0"]
    good = Box([0.0, 1.0], [1.0, 2.0]).to_json()
    for change in (
        {"kind": "cube"},
        {"lo": [1, 2]},
        {"hi": ["inf", "0x1p+0"]},
        {"more": 0},
        {"lo": ["*9999999999", "0x1p+0"]},
    ):
        with pytest.raises(UsageError):
            parse_domain({**good, **change})
    with pytest.raises(UsageError):
        parse_domain({"kind": "box", "lo": good["lo"]})


def test_membership_is_decided_exactly() -> None:
    box = Box([0.0, 0.1], [1.0, 0.1])
    assert box.contains(np.array([1.0, 0.1]), "2")
    assert not box.contains(np.array([np.nextafter(1.0, 2.0), 0.1]), "2")
    assert not box.contains(np.array([math.nan, 0.1]), "2")
    rng = np.random.default_rng(0)
    for norm in ORDER:
        ball = Ball(rng.standard_normal(5), 0.3)
        inside = 0
        for _ in range(200):
            gap = rng.standard_normal(5)
            x = np.array(ball.center) + gap / np.linalg.norm(gap, ORDER[norm]) * 0.3
            exact = [abs(Fraction(float(a)) - Fraction(c)) for a, c in zip(x, ball.center, strict=True)]
            size = {"1": sum(exact) ** 2, "2": sum(g * g for g in exact), "inf": max(exact) ** 2}[norm]
            assert ball.contains(x, norm) == (size <= Fraction(0.3) ** 2)
            inside += ball.contains(x, norm)
        assert 0 < inside < 200


# --- Bounds ---------------------------------------------------------------------------------------------------------


def test_networks_of_one_input_against_all_their_pieces() -> None:
    rng = np.random.default_rng(6)
    tight = 0
    for trial in range(60):
        sizes = [1, *(int(v) for v in rng.integers(2, 6, size=1 + trial % 2)), int(rng.integers(1, 3))]
        weights = [np.round(4 * rng.standard_normal(s)) / 4 for s in zip(sizes[1:], sizes, strict=False)]
        biases = [np.round(4 * rng.standard_normal(n)) / 4 for n in sizes[1:]]
        lo, hi = sorted(np.round(8 * rng.standard_normal(2)) / 8)
        if lo == hi:
            continue
        net = lm.from_weights(weights, biases)
        q = str(rng.choice(list(ORDER)))
        domain = Box(lo, hi) if trial % 3 else Ball((lo + hi) / 2, (hi - lo) / 2)
        r = lm.solve(
            net, [None, "product", "lipsdp-neuron" if q == "2" else "geolip"][trial % 3], norm=f"2:{q}", domain=domain
        )
        found = pieces(weights, biases, float(lo), float(hi))
        truth = max(squared(v, q) for v in found)
        assert Fraction(r.bound) ** 2 >= truth
        if r.lower_bound is not None:
            assert Fraction(r.lower_bound) ** 2 <= truth
            tight += float(truth) > 0 and r.lower_bound >= math.sqrt(truth) * (1.0 - 1e-9)
    assert tight > 30


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_every_quotient_inside_and_witnesses_lie_inside(kind: str) -> None:
    rng = np.random.default_rng(7)
    for seed, (p, q) in enumerate(PAIRS):
        net, domain = random_network(kind, 100 + seed), random_domain(rng, 3)
        formulation = "product" if seed % 3 == 0 else None
        r = lm.solve(net, formulation, norm=(p, q), domain=domain, time_limit=2.0, witness=seed % 4 == 0)
        assert r.assurance == "proved"
        whole = lm.solve(net, r.formulation, norm=(p, q), witness=False)
        assert r.bound <= whole.bound * (1.0 + 2e-6)
        x = points(domain, p, 200, rng)
        assert quotients(net, x, p, q, rng) <= r.bound * (1.0 + 1e-8) + 1e-9
        if r.lower_bound is not None:
            pair = r.certificate["lower"]
            for name in ("x", "y"):
                assert domain.contains(np.array([float.fromhex(v) for v in pair[name]]), p)
        assert lm.verify(net, r.certificate).bound == r.bound


SMOOTH = ("Tanh", "Gelu", "Swish", "Selu", "Mish", "Sin", "Sigmoid", "HardSwish")


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_activations_have_local_slopes(name: str) -> None:
    rng = np.random.default_rng(8)
    for trial in range(3):
        weights = [rng.standard_normal(s) for s in ((4, 3), (3, 4), (2, 3))]
        net = lm.from_weights(weights, [rng.standard_normal(4), rng.standard_normal(3), None], activation=name)
        domain = random_domain(rng, 3)
        p, q = PAIRS[int(rng.integers(9))]
        r = lm.solve(net, norm=(p, q), domain=domain, time_limit=2.0, witness=trial == 0)
        assert quotients(net, points(domain, p, 300, rng), p, q, rng) <= r.bound * (1.0 + 1e-8) + 1e-9
        whole = lm.solve(net, norm=(p, q), witness=False)
        assert r.bound <= whole.bound * (1.0 + 2e-6)
        assert lm.verify(net, r.certificate).bound == r.bound, trial


def test_slopes_of_published_traps() -> None:
    """SiLU on [-2.5, -2.3] has slopes down to -0.0998, not 0: the minimum of its derivative lies inside."""
    net = lm.from_weights([np.eye(1), np.eye(1)], activation="Swish")
    r = lm.solve(net, domain=Box(-2.5, -2.3))
    assert 0.0998393201288 <= r.bound <= 0.0998393201289
    assert r.lower_bound is not None
    assert r.lower_bound > 0.0998


def test_larger_domains_have_larger_bounds() -> None:
    rng = np.random.default_rng(9)
    for seed in range(8):
        net = random_network(KINDS[seed % len(KINDS)], seed)
        center, half = rng.standard_normal(3), rng.random(3)
        p, q = PAIRS[seed]
        bounds = [
            lm.solve(net, norm=(p, q), domain=domain, witness=False, tol=1e-7).bound
            for scale in (0.01, 0.1, 1.0, 10.0)
            for domain in (Ball(center, scale),)
        ]
        assert all(a <= b * (1.0 + 1e-6) for a, b in pairwise(bounds))
        low = lm.solve(net, norm=(p, q), domain=Box(center - half, center + half), witness=False).bound
        high = lm.solve(net, norm=(p, q), domain=Box(center - 2 * half, center + 2 * half), witness=False).bound
        assert low <= high * (1.0 + 1e-6)


def test_where_all_neurons_are_stable_the_answer_is_the_norm_of_the_jacobian() -> None:
    rng = np.random.default_rng(10)
    weights = [rng.standard_normal(s) for s in ((30, 12), (30, 30), (20, 30), (5, 20))]
    biases = [rng.standard_normal(n) for n in (30, 30, 20)]
    net = lm.from_weights(weights, [*biases, None])
    x = rng.standard_normal(12)
    value, jacobian = x, np.eye(12)
    for w, b in zip(weights, [*biases, np.zeros(5)], strict=True):
        value, jacobian = w @ value + b, w @ jacobian
        if len(value) != 5:
            jacobian, value = (value > 0)[:, None] * jacobian, np.maximum(value, 0.0)
    for p, q in (("2", "2"), ("1", "2"), ("2", "inf"), ("inf", "inf"), ("1", "1")):
        r = lm.solve(net, norm=(p, q), domain=Ball(x, 1e-6))
        dual = {"1": np.inf, "2": 2, "inf": 1}
        exact = (
            np.linalg.norm(jacobian, 2)
            if (p, q) == ("2", "2")
            else np.linalg.norm(jacobian, ORDER[q], axis=0).max()
            if p == "1"
            else np.linalg.norm(jacobian, dual[p], axis=1).max()
        )
        assert r.formulation == "product"
        assert exact * (1.0 - 1e-13) <= r.bound <= exact * (1.0 + 1e-12), (p, q)
        assert r.exact
        assert lm.verify(net, r.certificate).bound == r.bound


def test_inputs_that_cannot_move_do_not_count() -> None:
    rng = np.random.default_rng(11)
    net = random_network("chain", 3, inputs=4)
    lo, hi = rng.standard_normal(4), np.zeros(4)
    hi[:] = lo
    hi[[1, 3]] += 0.5
    system = lm.increments(net, Box(lo, hi))
    assert system.input.size == 2
    for p, q in PAIRS:
        r = lm.solve(net, norm=(p, q), domain=Box(lo, hi), witness=False)
        assert quotients(net, points(Box(lo, hi), p, 300, rng), p, q, rng) <= r.bound * (1.0 + 1e-8)
        wide = lm.solve(net, norm=(p, q), domain=Box(lo - 1e-9, hi + 1e-9), witness=False)
        assert r.bound <= wide.bound * (1.0 + 1e-6)


@pytest.mark.parametrize("domain", [Box(0.5, 0.5), Ball(0.25, 0.0), Box([1, 2, 3], [1, 2, 3])])
def test_on_one_point_the_constant_is_zero(domain: Domain) -> None:
    net = random_network("mixed", 1)
    for formulation in (None, "product", "geolip", "lipsdp-neuron"):
        r = lm.solve(net, formulation, domain=domain)
        assert (r.bound, r.assurance, r.lower_bound) == (0.0, "proved", None)
        assert lm.verify(net, r.certificate).bound == 0.0


def test_a_network_that_is_lipschitz_on_bounded_sets_only() -> None:
    net = lm.from_weights([np.array([[1.0], [2.0]]), np.ones((1, 2))], activation="Exp")
    with pytest.raises(lm.RefusedInput):
        lm.solve(net)
    r = lm.solve(net, domain=Box(-1.0, 1.0))
    truth = math.e + 2.0 * math.exp(2.0)
    assert truth <= r.bound <= truth * (1.0 + 1e-5)
    assert r.lower_bound is not None
    assert truth * 0.99 <= r.lower_bound <= truth
    log = lm.from_weights([np.array([[1.0]]), np.ones((1, 1))], activation="Log")
    assert 4.0 <= lm.solve(log, domain=Box(0.25, 9.0)).bound <= 4.0 * (1.0 + 1e-6)
    with pytest.raises(lm.RefusedInput, match="node"):
        lm.solve(log, domain=Box(-1.0, 1.0))
    with pytest.raises(lm.RefusedInput):
        lm.solve(log, domain=Ball(0.0, 1.0))
    jump = lm.from_weights([np.array([[1.0]]), np.ones((1, 1))], activation=activation("ThresholdedRelu", alpha=1.0))
    assert 1.0 <= lm.solve(jump, domain=Box(1.5, 2.0)).bound <= 1.0 + 1e-9
    assert lm.solve(jump, domain=Box(-1.5, 0.5)).bound == 0.0
    with pytest.raises(lm.RefusedInput, match="jump"):
        lm.solve(jump, domain=Box(0.5, 1.0))


@pytest.mark.parametrize("seed", range(3))
def test_random_graphs_with_convolutions_and_all_operators(seed: int, tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(100 + seed)
    for trial in range(12):
        model, _ = random_graph(rng)
        net = lm.load(model)
        p, q = PAIRS[int(rng.integers(9))]
        domain = random_domain(rng, net.input_size)
        r = lm.solve(net, [None, "product"][trial % 2], norm=(p, q), domain=domain, time_limit=1.0, witness=trial == 0)
        x = points(domain, p, 200, rng)
        assert quotients(net, x, p, q, rng) <= r.bound * (1.0 + 1e-7) + 1e-9
        assert lm.verify(net, r.certificate).bound == r.bound


# --- Certificates ---------------------------------------------------------------------------------------------------


def test_a_domain_cannot_be_tampered_with() -> None:
    net = random_network("chain", 5)
    small, large = Box(-0.01, 0.01).sized(3), Box(-2.0, 2.0).sized(3)
    r = lm.solve(net, norm="2", domain=small)
    assert r.lower_bound is not None
    assert lm.solve(net, norm="2", domain=large).bound > 1.01 * r.bound
    good = json.loads(json.dumps(r.certificate))
    assert lm.verify(net, good).spec.domain == small
    short = {"kind": "box", "lo": [(-0.01).hex()], "hi": [(0.01).hex()]}
    wrong: list[Any] = [
        "global",
        "box:-0.01:0.01",
        large.to_json(),
        short,
        Ball(0.0, 2.0).sized(3).to_json(),
        None,
        7,
        {},
    ]
    wrong.append(Box([-0.01, -0.01, 0.005], [0.01] * 3).to_json())  # the witness is outside, or the slopes are others
    wrong.append({**small.to_json(), "norm": "2"})
    wrong.append(Box([-0.01] * 4, [0.01] * 4).to_json())
    for domain in wrong:
        bad = copy.deepcopy(good)
        bad["claim"]["domain"] = domain
        with pytest.raises(Refuted):
            lm.verify(net, bad)
    outside = copy.deepcopy(good)
    outside["lower"]["x"][0] = (0.5).hex()
    with pytest.raises(Refuted, match="outside the domain"):
        lm.verify(net, outside)
    result = json.loads(json.dumps(r.to_json()))
    assert lm.verify(net, result).bound == r.bound
    result["spec"]["domain"] = large.to_json()
    with pytest.raises(Refuted):
        lm.verify(net, result)


def test_the_masked_product_belongs_to_local_claims() -> None:
    rng = np.random.default_rng(12)
    weights = [rng.standard_normal(s) for s in ((20, 5), (20, 20), (3, 20))]
    net = lm.from_weights(weights, [rng.standard_normal(20), rng.standard_normal(20), None])
    r = lm.solve(net, "product", norm="2", domain=Box(-0.3, 0.3), witness=False)
    assert r.certificate["upper"]["rule"] == "masked-product"
    bad = json.loads(json.dumps(r.certificate))
    bad["claim"]["domain"] = "global"
    with pytest.raises(Refuted, match="masked-product"):
        lm.verify(net, bad)
    bad = json.loads(json.dumps(r.certificate))
    bad["claim"]["bound"] = bad["upper"]["bound"] = (r.bound * 0.99).hex()
    with pytest.raises(Refuted):
        lm.verify(net, bad)


# --- Witnesses ------------------------------------------------------------------------------------------------------


def test_searches_stay_in_balls_and_find_what_boxes_find() -> None:
    rng = np.random.default_rng(13)
    weights = [rng.standard_normal((12, 6)), rng.standard_normal((3, 12))]
    net = lm.from_weights(weights, [rng.standard_normal(12), None])
    for p, q in PAIRS:
        for radius in (1e-9, 0.3, 20.0):
            ball = Ball(rng.standard_normal(6), radius)
            found = search(net, p, q, domain=ball, time_limit=0.05)
            assert found is not None
            assert ball.contains(found.x, p)
            assert ball.contains(found.y, p)
            assert witness_ratio(net, found.x, found.y, p, q) == found.ratio
            if radius == 1e-9:
                assert found.ratio >= lm.solve(net, norm=(p, q), domain=ball, witness=False).bound * 0.5
    assert search(net, "2", "2", domain=Ball(0.0, 0.0)) is None
    assert search(net, "2", "2", domain=Box(1.0, 1.0)) is None


# --- Other commands -------------------------------------------------------------------------------------------------


def test_export_and_inspect_take_domains(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lipmodel.cli import main

    net = random_network("chain", 6)
    path = tmp_path / "net.onnx"
    net.save(path)
    _, beside = lm.export(path, "lipsdp-neuron", tmp_path / "p.dat-s", domain=Ball(0.0, 0.3))
    assert json.loads(pathlib.Path(beside).read_text())["spec"]["domain"] == Ball(0.0, 0.3).sized(3).to_json()
    assert main(["inspect", str(path), "--domain", "box:-0.01:0.01", "-f", "lipsdp-neuron"]) == 0
    out = capsys.readouterr().out
    assert "on box:-0.01:0.01" in out
    assert main(["solve", str(path), "--domain", "ball:0:0.25", "--save", str(tmp_path / "r.json")]) == 0
    assert "ball:0:0.25) ≤" in capsys.readouterr().out
    assert main(["verify", str(path), str(tmp_path / "r.json")]) == 0
    assert "ball:0:0.25" in capsys.readouterr().out


# --- Known values ---------------------------------------------------------------------------------------------------


def _known() -> list[Any]:
    found = []
    for name in ("local", "lipbab", "real_networks"):
        path = SHARED / "oracles" / f"{name}.json"
        for oracle in json.loads(path.read_text())["oracles"] if path.exists() else []:
            if oracle["domain"].get("lower") is not None and oracle["quantity"] in ("exact", "local-lipsdp"):
                found.append(pytest.param(oracle, id=oracle["id"]))
    return found


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("oracle", _known())
def test_known_local_values(oracle: dict[str, Any]) -> None:
    norm, domain = oracle["norm"], Box(oracle["domain"]["lower"], oracle["domain"]["upper"])
    path = SHARED / oracle["network"]["file"]
    pair = (norm["input"], norm["output"])
    r = lm.solve(path, norm=pair, outputs=oracle.get("output", "all"), domain=domain, time_limit=5.0)
    if oracle["quantity"] == "local-lipsdp":
        assert r.bound <= oracle["value"] * (1.0 + 3e-6)
        return
    low, high = oracle["value"] if isinstance(oracle["value"], list) else [oracle["value"]] * 2
    assert r.bound >= low * (1.0 - 1e-9)
    assert r.lower_bound is None or r.lower_bound <= high * (1.0 + 1e-9)
