"""Models with pairs of neurons: solved, refined in rounds, exported, refused; what is proved of them."""

from __future__ import annotations

import copy
import itertools
import json
import pathlib
from dataclasses import replace

import numpy as np
import pytest
from pair_cases import proved_by, solved

import lipmodel as lm
from lipmodel.certify.lmi import Multipliers
from lipmodel.certify.pair_search import CoupledMultipliers, moments, prove_coupled, read_point, to_float
from lipmodel.certify.pairs import coupled_lmi
from lipmodel.formulation import formulation
from lipmodel.io.sidecar import read_map
from lipmodel.network.increments import chain_of, exact_system
from lipmodel.rounds import has_pairs, without_pairs
from lipmodel.testing.networks import formal_constant, random_network, random_system

PAIR = formulation("lipsdp-pair")


def pair_model(system, couples, sign=-1.0, factor=1.0):
    m = lm.Model("pairs")
    ball, price = m.ball(system.input, "2")
    form = ball - lm.inner(system.output, system.output)
    for act in system.activations:
        form -= lm.qc.slope_restricted(act, m.multiplier(act))
    form += (sign * factor) * lm.qc.pairs(m, couples)
    m.require(form >= 0)
    m.minimize(2 * price, bound="sqrt")
    return m


def test_a_model_of_ones_own_is_proved_with_its_pairs():
    """Other forms of the inequality, and multiples of the pair terms, are read just as well."""
    rng = np.random.default_rng(8)
    system = chain_of([rng.standard_normal((4, 3)), rng.standard_normal((1, 4))])
    act = system.activations[0]
    couples = [((act, i), (act, j)) for i, j in itertools.combinations(range(4), 2)]
    values = []
    for factor in (1.0, 0.25):
        model = pair_model(system, couples[::-1], factor=factor)
        claim, found = proved_by(model, system)
        assert found.bound == pytest.approx(model.bound_of(claim), rel=1e-6)
        assert found.couplings
        values.append(found.bound)
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_the_wrong_sign_proves_nothing_false():
    system = random_system("one-layer", 1)
    act = system.activations[0]
    model = pair_model(system, [((act, 0), (act, 1))], sign=1.0)
    point = solved(model)
    if point.values is not None:
        found = prove_coupled(exact_system(system), ("2", "2"), read_point(model, system, point.values), None)
        assert found is None or found.bound >= formal_constant(system, "2", "2")


def test_without_pairs_is_the_model_before():
    system = random_system("mixed", 1)
    spec = lm.Spec()
    model = PAIR.build(system, spec)
    assert has_pairs(model)
    bare = without_pairs(model)
    assert not has_pairs(bare)
    assert str(bare).splitlines()[1:] == str(formulation("geolip").build(system, spec)).splitlines()[1:]


def test_rounds_reach_what_all_pairs_give():
    rng = np.random.default_rng(9)
    net = lm.from_weights([rng.standard_normal((8, 4)), rng.standard_normal((1, 8))])
    whole = lm.solve(net, "lipsdp-pair", options={"pairs": "all"}, witness=False).bound

    class Few(type(PAIR)):
        """Rounds of four pairs."""

        name = ""

        def build(self, system, spec):
            act = system.activations[0]
            couples = [((act, i), (act, j)) for i, j in itertools.combinations(range(8), 2)]
            seen.append(0)

            def refine(state):
                assert state.bound <= bounds[-1]
                gram = state.moments(lm.qc.signs([(act, i) for i in range(8)]))
                assert gram.shape == (16, 16)
                assert np.linalg.eigvalsh(gram)[0] >= -1e-9 * np.trace(gram)
                bounds.append(state.bound)
                seen.append(seen[-1] + 7)
                if seen[-1] > 28:
                    return None
                model = self.stated(system, spec, couples[: seen[-1]])
                model.refine = refine
                return model

            model = self.stated(system, spec, [])
            model.refine = refine
            return model

    seen, bounds, lines = [], [np.inf], []
    result = lm.solve(net, Few(), report=lines.append, witness=False)
    assert bounds[1:] == sorted(bounds[1:], reverse=True)
    assert len(bounds) == 6
    assert sum(line.startswith("round") for line in lines) == 4
    assert result.bound == pytest.approx(whole, rel=1e-6)
    assert result.termination == "optimal"
    assert lm.verify(net, result.certificate).bound == result.bound


def test_cutting_planes_choose_pairs_that_matter():
    rng = np.random.default_rng(2)
    net = lm.from_weights([rng.standard_normal((22, 4)), rng.standard_normal((1, 22))])
    system = lm.increments(net)
    model = PAIR.build(system, lm.Spec())
    assert model.refine is not None
    assert not has_pairs(model)
    lines = []
    result = lm.solve(net, "lipsdp-pair", options={"batch": 16, "rounds": 1}, report=lines.append, witness=False)
    neuron = lm.solve(net, "lipsdp-neuron", witness=False).bound
    assert result.bound < neuron
    assert next(line for line in lines if line.startswith("round")).startswith("round 1: 16 pairs")
    assert lm.verify(net, result.certificate).bound == result.bound


def test_moments_are_those_of_a_covariance():
    system = random_system("one-layer", 0)
    exact = exact_system(system)
    t = tuple(np.full(n, 10.0) for n in exact.sizes[1:])
    m = Multipliers(t=t, g=np.full(exact.sizes[0], 1e3), s=np.full(2, 1e3))
    point = CoupledMultipliers(multipliers=m, couplings=())
    covariance = moments(exact, point, 0.1)
    assert np.linalg.eigvalsh(covariance)[0] > 0.0
    wide = Multipliers(t=t, g=1.1 * m.g, s=1.1 * m.s)
    whole = to_float(coupled_lmi(exact, wide, []))
    np.testing.assert_allclose(np.linalg.inv(whole)[: len(covariance), : len(covariance)], covariance, rtol=1e-6)


def test_families_are_proved_member_by_member():
    net = random_network("one-layer", 5)
    system = lm.increments(net)
    for norm in ("inf:inf", "1:1"):
        result = lm.solve(net, "lipsdp-pair", norm=norm, options={"pairs": "layer"}, witness=False)
        p, q = norm.split(":")
        rules = {m["proof"]["rule"] for m in result.certificate["upper"]["members"]}
        assert rules <= {"lmi-pairs", "lmi", "product"}
        assert formal_constant(system, p, q) <= result.bound
        assert result.bound <= lm.solve(net, "geolip", norm=norm, witness=False).bound
        assert lm.verify(net, result.certificate).bound == result.bound


def test_on_a_box():
    rng = np.random.default_rng(10)
    weights = [rng.standard_normal(size) for size in ((6, 3), (5, 6), (1, 5))]
    net = lm.from_weights(weights, biases=[rng.standard_normal(len(w)) for w in weights], activation="tanh")
    domain = lm.Box(np.full(3, -0.3), np.full(3, 0.4))
    result = lm.solve(net, "lipsdp-pair", domain=domain)
    assert result.certificate["upper"]["rule"] == "lmi-pairs"
    assert result.lower_bound <= result.bound <= lm.solve(net, "lipsdp-neuron", domain=domain).bound
    assert lm.verify(net, result.certificate).bound == result.bound


def test_without_time_the_bound_is_that_of_neurons():
    net = random_network("mixed", 1)
    result = lm.solve(net, "lipsdp-pair", time_limit=1e-3, witness=False)
    assert formal_constant(lm.increments(net), "2", "2") <= result.bound < np.inf
    assert lm.verify(net, result.certificate).bound == result.bound


def test_a_solver_that_answers_garbage_costs_nothing(monkeypatch):
    from lipmodel.backends.clarabel import Clarabel

    net = random_network("residual", 2)
    neuron = lm.solve(net, "geolip", norm="2", witness=False).bound
    true = Clarabel.solve
    rng = np.random.default_rng(11)

    def garbage(self, model, options):
        point = true(self, model, options)
        if not has_pairs(model):
            return point
        wrong = {v: x + rng.standard_normal(x.shape) * rng.choice([1e-3, 1.0, np.nan]) for v, x in point.values.items()}
        return replace(point, values=wrong)

    monkeypatch.setattr(Clarabel, "solve", garbage)
    for _ in range(2):
        result = lm.solve(net, "lipsdp-pair", backend="clarabel", witness=False)
        assert formal_constant(lm.increments(net), "2", "2") <= result.bound <= neuron


def test_other_solvers_find_the_same():
    net = random_network("one-layer", 1)
    clarabel = lm.solve(net, "lipsdp-pair", witness=False)
    scs = lm.solve(net, "lipsdp-pair", backend="scs", witness=False)
    assert (clarabel.backend, scs.backend) == ("clarabel", "scs")
    assert scs.bound == pytest.approx(clarabel.bound, rel=1e-4)
    with pytest.raises(lm.UsageError, match="does not take this model"):
        lm.solve(net, "lipsdp-pair", backend="native")


def test_a_refinement_that_fails_keeps_what_is_proved():
    net = random_network("one-layer", 1)

    class Failing(type(PAIR)):
        """A second round that breaks off."""

        name = ""

        def build(self, system, spec):
            m = self.stated(system, spec, [])

            def refine(state):
                raise ValueError("no more ideas")

            m.refine = refine
            return m

    lines = []
    result = lm.solve(net, Failing(), report=lines.append, witness=False)
    assert any("no more ideas" in line for line in lines)
    assert result.bound == pytest.approx(lm.solve(net, "geolip", norm="2", witness=False).bound, rel=1e-9)


def test_pairs_beside_inequalities_stated_by_hand():
    """A bound under assumptions and one by pairs do not mix: the better one is reported, with what it rests on."""
    rng = np.random.default_rng(1)
    net = lm.from_weights([rng.standard_normal(size) for size in ((4, 2), (3, 4), (1, 3))])

    class Both(type(PAIR)):
        """Pairs, and the restriction of single neurons once more, without its rule."""

        name = ""

        def build(self, system, spec):
            m = lm.Model("both")
            ball, price = m.ball(system.input, "2")
            form = ball - lm.inner(system.output, system.output)
            for act in system.activations:
                form -= lm.qc.slope_restricted(act, m.multiplier(act))
                form -= 2 * lm.inner(act.post, act.pre - act.post, weight=m.multiplier(act))
            act = system.activations[0]
            couples = [((act, i), (act, j)) for i, j in itertools.combinations(range(4), 2)]
            m.require(form - lm.qc.pairs(m, couples) >= 0)
            m.minimize(2 * price, bound="sqrt")
            return m

    for assurance in ("proved", "model"):
        result = lm.solve(net, Both(), norm="2", assurance=assurance, witness=False)
        assert formal_constant(lm.increments(net), "2", "2") <= result.bound
        assert lm.verify(net, result.certificate).bound == result.bound
        assert bool(result.certificate["assumptions"]) == (result.assurance == "model")


def test_statements_that_make_no_sense_are_refused():
    system = random_system("mixed", 1)
    a, m = system.activations[0], lm.Model("x")
    for couples, message in (
        ([((a, 0), (a, 0))], "two different neurons"),
        ([((a, 0), (a, a.size))], "has neurons 0 to"),
        ([((a, 0), (a, True))], "has neurons 0 to"),
        ([((a, 0), (a, 1)), ((a, 1), (a, 0))], "twice"),
        ([(a, 0)], "a neuron is"),
        ([((a, 0),)], "a pair of neurons is"),
        ([((a.post, 0), (a, 1))], "a neuron belongs to"),
    ):
        with pytest.raises(lm.UsageError, match=message):
            lm.qc.pairs(m, couples)
    with pytest.raises(lm.UsageError, match="choose all, layer or auto"):
        lm.solve(random_network("mixed", 1), "lipsdp-pair", options={"pairs": "none"})
    with pytest.raises(lm.UsageError, match="no neuron"):
        lm.qc.signs([])


def test_export_of_one_model(tmp_path):
    net = random_network("one-layer", 2)
    path, _ = lm.export(net, "lipsdp-pair", tmp_path / "p.dat-s", options={"pairs": "all"})
    assert pathlib.Path(path).stat().st_size > 0
    rng = np.random.default_rng(12)
    wide = lm.from_weights([rng.standard_normal((30, 2)), rng.standard_normal((1, 30))])
    with pytest.raises(lm.UsageError, match="rounds"):
        lm.export(wide, "lipsdp-pair", tmp_path / "q.dat-s")


def test_a_solution_from_elsewhere_comes_back_with_its_pairs(tmp_path):
    rng = np.random.default_rng(1)
    net = lm.from_weights([rng.standard_normal(size) for size in ((4, 2), (3, 4), (1, 3))])
    net.save(tmp_path / "net.onnx")
    _, beside = lm.export(tmp_path / "net.onnx", "lipsdp-pair", tmp_path / "p.dat-s", options={"pairs": "all"})
    link = read_map(beside)
    system = lm.increments(lm.load(tmp_path / "net.onnx"))
    model = PAIR.build(system, lm.Spec())
    by_name = {v.name: value for v, value in solved(model).values.items()}
    vector = np.zeros(link.size)
    for v in link.variables:
        vector[link.offsets[v] : link.offsets[v] + v.size] = link.sign * by_name[v.name] / link.factors[v]
    np.save(tmp_path / "x.npy", vector)
    result = lm.certify_solution(tmp_path / "net.onnx", tmp_path / "x.npy", beside, witness=False)
    expected = lm.solve(net, "lipsdp-pair", witness=False).bound
    assert result.certificate["upper"]["rule"] == "lmi-pairs"
    assert result.bound == pytest.approx(expected, rel=1e-6)
    assert result.bound < lm.solve(net, "lipsdp-neuron", witness=False).bound * (1.0 - 1e-4)
    data = json.loads(pathlib.Path(beside).read_text())
    for change in (
        {"activation": "none", "index": 0},
        {**data["pairs"][0]["neurons"][0], "index": 99},
        {**data["pairs"][0]["neurons"][0], "index": -1},
    ):
        bent = copy.deepcopy(data)
        bent["pairs"][0]["neurons"][0] = change
        (tmp_path / "bent.json").write_text(json.dumps(bent))
        with pytest.raises(lm.UsageError, match="no neuron"):
            lm.certify_solution(tmp_path / "net.onnx", tmp_path / "x.npy", tmp_path / "bent.json", witness=False)
    bent = copy.deepcopy(data)  # two neurons of another pair: what is proved from it is proved for that one
    bent["pairs"][0]["neurons"][:2] = bent["pairs"][0]["neurons"][1::-1]
    bent["pairs"][0]["neurons"][2:4] = [bent["pairs"][0]["neurons"][2]] * 2
    (tmp_path / "bent.json").write_text(json.dumps(bent))
    other = lm.certify_solution(tmp_path / "net.onnx", tmp_path / "x.npy", tmp_path / "bent.json", witness=False)
    assert other.bound >= formal_constant(system, "2", "2")
