"""Plans: what is found, what is refused, and that every way leads to the same optimum and back, with its duals."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from cli_nets import run, write_nets
from conic_solves import ALL, optimum, solve_program

import lipmodel as lm
from lipmodel.backends.base import Capabilities
from lipmodel.bridges import plan as plans
from lipmodel.bridges.base import Part, Shape
from lipmodel.bridges.cones import Arrow, Pairs, Unrotated
from lipmodel.bridges.plan import compile_model, plan_for, predicted_cost, reason_against, shape_of
from lipmodel.bridges.program import cone_program
from lipmodel.bridges.scaling import prepare
from lipmodel.errors import LipmodelError, UsageError
from lipmodel.model.sets import PSD, DiagonallyDominant, ScaledDiagonallyDominant, SparsePSD
from lipmodel.network.increments import chain_of
from lipmodel.testing.bridges import affine_map, check_bridge
from lipmodel.testing.networks import random_system


def capabilities(*cones, **more):
    return Capabilities(cones=frozenset(cones), **more)


def stated(system, p="2", q="2", **how):
    m = lm.Model("stated")
    if (p, q) == ("2", "2"):
        ball, price = m.ball(system.input, "2")
        form, price = ball - lm.inner(system.output, system.output), 2 * price
    else:
        dual = m.signal("dual", system.output.size)
        (ball, price), (other, price_out) = m.ball(system.input, p), m.ball(dual, lm.dual(q))
        form, price = ball + other - 2 * lm.inner(dual, system.output), price + price_out
    for act in system.activations:
        form -= lm.qc.slope_restricted(act, m.multiplier(act))
    m.require(form >= 0, **how)
    m.minimize(price, bound="sqrt" if (p, q) == ("2", "2") else "identity")
    return m


def cones_model():
    """Minimise 3 a + 2 b + c with 2 a b >= |(1, c)|^2, c >= |(0.5, d)|, a + d = 2, b >= 0.1."""
    m = lm.Model("cones")
    a, b, c, d = (m.variable(name) for name in "abcd")
    stacked = np.array([[1.0], [0.0], [0.0], [0.0]]) @ a + np.array([[0.0], [1.0], [0.0], [0.0]]) @ b
    stacked = stacked + np.array([0.0, 0.0, 1.0, 0.0]) + np.array([[0.0], [0.0], [0.0], [1.0]]) @ c
    m.require(stacked.in_cone(lm.RotatedSecondOrder()))
    second = np.array([[1.0], [0.0], [0.0]]) @ c + np.array([0.0, 0.5, 0.0]) + np.array([[0.0], [0.0], [1.0]]) @ d
    m.require(second.in_cone(lm.SecondOrder()))
    m.require((a + d).equals(2.0))
    m.require(b >= 0.1)
    m.minimize(3 * a + 2 * b + c)
    return m


# ----------------------------------------------------------------------------------------------- every bridge by itself


@pytest.mark.parametrize("kind", ["chain", "residual", "skips", "concat", "mixed"])
@pytest.mark.parametrize("given", [SparsePSD(merge=False), DiagonallyDominant(), ScaledDiagonallyDominant()])
def test_bridges_of_forms_keep_the_contract(kind, given):
    system = random_system(kind, 1)
    for pair in (("2", "2"), ("inf", "2")):
        model = stated(system, *pair)
        model = replace(model, constraints=[replace(model.constraints[0], set=given)])
        applied = 0
        for bridge in plans.bridges():
            (part,) = (p for p in shape_of(model).parts if p.origin == 0)
            if part.kind in bridge.sources and bridge.predict(shape_of(model), part, model.constraints[0]) is not None:
                check_bridge(bridge, model, 0, seed=3)
                applied += 1
        assert applied == 1


@pytest.mark.parametrize("seed", range(3))
def test_bridges_of_vectors_keep_the_contract(seed):
    model = cones_model()
    check_bridge(Unrotated(), model, 0, seed=seed)
    check_bridge(Arrow(), model, 1, seed=seed)
    check_bridge(Pairs(), model, 2, seed=seed)


def test_many_cones_in_one_vector_are_kept_apart():
    rng = np.random.default_rng(0)
    m = lm.Model("many")
    y = m.variable("y", 4)
    f = rng.standard_normal((6, 4)) @ y + rng.standard_normal(6)
    m.require(f.in_cone(lm.RotatedSecondOrder(block=3)))
    m.minimize(y.sum())
    check_bridge(Unrotated(), m, 0)
    program = cone_program(m)
    assert [b.matrix.shape for b in program.soc] == [(3, 4), (3, 4)]
    assert all(b.rotated for b in program.soc)
    turned = replace(m, constraints=list(Unrotated().apply(m.constraints[0], frozenset()).constraints))
    check_bridge(Arrow(), turned, 0)
    v, w = (affine_map(c, m.variables) @ np.append(1.0, rng.standard_normal(4)) for c in (*m.constraints, f >= 0.0))
    assert v.shape == w.shape
    with pytest.raises(UsageError, match="no vectors of 4"):
        f.in_cone(lm.SecondOrder(block=4))


def test_a_cone_and_its_reformulations_hold_the_same_points():
    """2 u v >= |w|^2 with u, v >= 0, whichever way it is said."""
    rng = np.random.default_rng(1)
    m = lm.Model("points")
    y = m.variable("y", 4)
    m.require(y.in_cone(lm.RotatedSecondOrder()))
    (soc,) = Unrotated().apply(m.constraints[0], frozenset()).constraints
    (psd,) = Arrow().apply(soc, frozenset()).constraints
    inside = 0
    for _ in range(400):
        x = rng.standard_normal(4) * np.array([1.0, 1.0, 0.7, 0.7])
        expected = x[0] >= 0 and x[1] >= 0 and 2 * x[0] * x[1] >= x[2] ** 2 + x[3] ** 2
        t, *w = affine_map(soc, m.variables) @ np.append(1.0, x)
        matrix = (affine_map(psd, m.variables) @ np.append(1.0, x)).reshape(4, 4)
        assert (t >= np.linalg.norm(w)) == expected
        assert (np.linalg.eigvalsh(matrix)[0] >= 0.0) == expected
        inside += expected
    assert 20 < inside < 380


# ------------------------------------------------------------------------------------------------ plans


@pytest.mark.parametrize(
    ("cones", "names"),
    [
        (("psd", "soc", "nonnegative", "zero"), ["unrotated"]),
        (("psd", "soc", "rsoc", "nonnegative", "zero"), []),
        (("psd", "nonnegative", "zero"), ["arrow matrices", "arrow matrices", "unrotated"]),
        (("psd", "soc", "nonnegative"), ["pairs of inequalities", "unrotated"]),
    ],
)
def test_every_set_of_cones_leads_to_the_same_optimum(cones, names):
    model = cones_model()
    compiled = compile_model(model, capabilities(*cones))
    assert sorted(step.bridge.name for step in compiled.plan.steps) == names
    assert {p.kind for p in compiled.plan.shape.parts} <= set(cones)
    if compiled.program.soc and compiled.program.soc[0].rotated:
        return
    found = solve_program(compiled.program)
    a, b, c, d = (compiled.values(found.y)[v][0] for v in model.variables)
    assert 2 * a * b >= 1 + c * c - 1e-7
    assert c >= np.hypot(0.5, d) - 1e-7
    assert a + d == pytest.approx(2.0, abs=1e-7)
    assert found.value == pytest.approx(solved_by_hand(), rel=1e-7)
    check_duals(model, compiled, found)


def solved_by_hand():
    """The same by a scan: d = 2 - a, c = |(0.5, d)| or larger, b as small as the first cone allows."""
    from scipy.optimize import minimize_scalar

    def value(a):
        c = np.hypot(0.5, 2.0 - a)
        return 3 * a + 2 * max(0.1, (1 + c * c) / (2 * a)) + c

    best = min(np.linspace(0.05, 5, 2000), key=value)
    return minimize_scalar(value, bounds=(best - 0.01, best + 0.01), method="bounded", options={"xatol": 1e-12}).fun


def check_duals(model, compiled, found, tol=1e-6):
    """The multipliers of the model's own constraints: stationary, in the dual cones, and with no gap."""
    duals = compiled.duals(found.duals)
    count = sum(v.size for v in model.variables)
    total = np.zeros(1 + count)
    for c, y in zip(model.constraints, duals.constraints, strict=True):
        total += affine_map(c, model.variables).T @ y.ravel()
        if y.ndim == 2:
            np.testing.assert_allclose(y, y.T, atol=1e-9)
            if isinstance(c.set, PSD | SparsePSD):
                assert np.linalg.eigvalsh(y)[0] >= -10 * tol * max(1.0, np.abs(y).max())
    start = 1
    for v in model.variables:
        if v.nonnegative:
            assert np.all(duals.signs[v] >= -tol)
            total[start : start + v.size] += duals.signs[v]
        start += v.size
    cost = np.concatenate([np.zeros(1), *(np.zeros(v.size) for v in model.variables)])
    start = 1
    for v in model.variables:
        if v in model.objective.coefficients:
            cost[start : start + v.size] = np.asarray(model.objective.coefficients[v].todense()).ravel()
        start += v.size
    unit = np.concatenate([compiled.factors[v] for v in model.variables])  # a solver is as accurate as its own units
    np.testing.assert_allclose(unit * total[1:], unit * cost[1:], atol=tol * (1.0 + np.abs(unit * cost[1:]).max()))
    assert model.objective.constant[0] - total[0] == pytest.approx(found.value, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("kind", ["one-layer", "chain", "residual", "skips", "concat", "mixed", "dead"])
@pytest.mark.parametrize("pair", [("2", "2"), ("inf", "1"), ("2", "1")])
@pytest.mark.parametrize("how", [{}, {"cliques": "auto", "merge": False}, {"cone": "dd"}, {"cone": "sdd"}])
def test_duals_of_networks_come_back(kind, pair, how):
    model = stated(random_system(kind, 2), *pair, **how)
    compiled, found = optimum(model)
    assert found.status in ("Solved", "AlmostSolved")
    check_duals(model, compiled, found)


def test_duals_come_back_through_an_input_that_was_turned():
    rng = np.random.default_rng(4)
    model = stated(chain_of([rng.standard_normal((3, 20)), rng.standard_normal((2, 3))]), cliques="auto", merge=False)
    compiled, found = optimum(model)
    assert sum(b.order for b in compiled.program.psd) < 20
    check_duals(model, compiled, found)


def test_a_relaxation_is_never_part_of_a_plan(monkeypatch):
    model = stated(random_system("chain", 0), cone="dd")
    bridge = plans.bridges()[2]
    assert bridge.sources == {"dd"}
    monkeypatch.setattr(plans, "bridges", lambda: (replace(bridge, soundness="relaxation"),))
    assert reason_against(model, ALL) is not None
    monkeypatch.setattr(plans, "bridges", lambda: (replace(bridge, soundness="restriction"),))
    assert reason_against(model, ALL) is None


def test_where_no_way_leads_the_reason_says_what_is_missing():
    model = stated(random_system("chain", 0))
    linear = capabilities("nonnegative", "zero")
    reason = reason_against(model, linear)
    assert "from PSD to what it takes (inequalities, equalities)" in reason
    with pytest.raises(LipmodelError, match="no reformulation leads"):
        compile_model(model, linear)
    assert reason_against(stated(random_system("chain", 0), cone="dd"), linear) is None
    assert "scaled diagonally dominant" in reason_against(stated(random_system("chain", 0), cone="sdd"), linear)


def test_the_standard_form_has_free_variables_or_pairs():
    model = cones_model()
    cones = ("psd", "soc", "rsoc", "nonnegative")
    free = compile_model(model, capabilities(*cones, "free", form="standard"))
    assert [kind for kind, _ in free.standard.cones] == ["nonnegative", "free", "rsoc", "soc"]
    pairs = compile_model(model, capabilities(*cones, form="standard"))
    assert [kind for kind, _ in pairs.standard.cones] == ["nonnegative", "rsoc", "soc"]
    assert "pairs of inequalities" in str(pairs.plan)
    assert str(pairs.plan).endswith("standard form")


def test_deep_networks_are_split_where_that_is_predicted_to_be_cheaper():
    rng = np.random.default_rng(5)
    sizes = [4, *[10] * 6, 2]
    deep = stated(chain_of([rng.standard_normal((b, a)) for a, b in pairwise(sizes)]))
    interior = plan_for(deep, capabilities("psd", "nonnegative"))
    assert [step.bridge.name for step in interior.steps] == ["cliques"]
    assert len(interior.rejected) == 1
    schur = plan_for(deep, capabilities("psd", "nonnegative", form="standard"))
    assert schur.steps == ()
    shallow = stated(chain_of([rng.standard_normal((5, 3)), rng.standard_normal((1, 5))]))
    assert plan_for(shallow, capabilities("psd", "nonnegative")).steps == ()
    text = dict(interior.lines())
    assert set(text) == {"scaled", "cliques", "predicted"}
    assert "variables" in text["cliques"]


def test_the_prediction_is_what_comes_out():
    for kind in ("chain", "residual", "skips"):
        for how in ({"cliques": "auto", "merge": False}, {"cone": "sdd"}):
            compiled = compile_model(stated(random_system(kind, 1), "inf", "2", **how), ALL)
            predicted = compiled.plan.shape
            found = shape_of(compiled.program.model)
            assert predicted.variables >= found.variables
            orders = [sorted(n for p in s.parts if p.kind == "psd" for n in p.sizes) for s in (predicted, found)]
            assert orders[0] == orders[1] == sorted(b.order for b in compiled.program.psd)


def test_costs_grow_with_the_program():
    part = Part(kind="psd", sizes=(20,), entries=400, origin=0)
    larger = replace(part, sizes=(40,), entries=1600)
    for kind in (
        capabilities("psd"),
        capabilities("psd", form="standard"),
        capabilities("psd", precision=1e-4),
    ):
        costs = [predicted_cost(Shape(variables=n, parts=(p,)), kind) for n, p in ((20, part), (20, larger))]
        assert 0.0 < costs[0] < costs[1]
        assert predicted_cost(Shape(variables=4000, parts=(part,)), kind) > costs[0]


def test_values_drop_what_bridges_added():
    model = stated(random_system("chain", 0), cliques="auto", merge=False)
    compiled, found = optimum(model)
    assert compiled.program.size > sum(v.size for v in model.variables)
    values = compiled.values(found.y)
    assert list(values) == model.variables
    assert model.objective.value(values)[0] == pytest.approx(found.value, rel=1e-9)
    assert list(compiled.factors)[: len(model.variables)] == model.variables
    assert len(compiled.program.model.variables) == len(compiled.factors)


def test_preparing_for_a_plan_leaves_dominant_forms_in_their_coordinates():
    rng = np.random.default_rng(6)
    model = stated(chain_of([rng.standard_normal((2, 9)), rng.standard_normal((1, 2))]), cone="dd")
    prepared = prepare(model)
    assert [s.size for s in prepared.model.matrix_constraints[0].signals] == [9, 2]
    assert prepared.model.sizes().dominant == (11,)
    assert prepared.model.sizes().psd == ()


def test_a_model_without_objective_is_refused_and_one_without_matrices_is_not():
    m = lm.Model("rows")
    y = m.variable("y", 2)
    m.require(y >= np.array([1.0, 2.0]))
    with pytest.raises(UsageError, match="no objective"):
        compile_model(m, ALL)
    m.minimize(y.sum() + 1.0)
    compiled, found = optimum(m)
    assert found.value == pytest.approx(4.0, abs=1e-7)
    check_duals(m, compiled, found)


# ------------------------------------------------------------------------------------------------ on the command line


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return write_nets(tmp_path_factory.mktemp("nets")) / "relu.onnx"


def test_inspect_prints_the_plan_for_a_backend(net, capsys):
    code, out, err = run(
        capsys, "inspect", net, "-f", "chordal-lipsdp", "-o", "merge=false", "-b", "clarabel", "--plan"
    )
    assert (code, err) == (0, "")
    for text in ("clarabel (", "scaled", "one matrix", "variables", "predicted"):
        assert text in out
    assert "equivalent" in out
    code, out, _ = run(capsys, "inspect", net, "-f", "chordal-lipsdp", "--plan")
    assert code == 0
    assert "reads the terms themselves" in out


def test_inspect_says_why_a_backend_cannot(net, capsys):
    code, out, _ = run(capsys, "inspect", net, "-f", "lipsdp-neuron", "-o", "cone=sdd", "-b", "native", "--plan")
    assert code == 0
    assert "native does not take this model" in out


def test_inspect_prints_plans_that_were_not_chosen(capsys, tmp_path):
    rng = np.random.default_rng(7)
    sizes = [4, *[10] * 6, 2]
    path = tmp_path / "deep.onnx"
    lm.from_weights([rng.standard_normal((b, a)) for a, b in pairwise(sizes)]).save(path)
    code, out, _ = run(capsys, "inspect", path, "-f", "lipsdp-neuron", "-b", "scs", "--plan")
    assert code == 0
    assert "not chosen" in out
    assert "scaled: about" in out


def test_inspect_prints_latex_and_nothing_else(net, capsys):
    code, out, err = run(capsys, "inspect", net, "-f", "geolip", "--norm", "inf:2", "--latex")
    assert (code, err) == (0, "")
    assert out.startswith(r"\begin{align*}")
    assert out.rstrip().endswith(r"\end{itemize}")
    assert run(capsys, "inspect", net, "-f", "product", "--latex")[0] == 2


def test_the_result_names_its_plan(net, capsys):
    code, out, _ = run(capsys, "solve", net, "-f", "chordal-lipsdp", "-o", "merge=false", "-b", "clarabel", "--json")
    assert code == 0
    saved = json.loads(out)
    assert saved["plan"] == "scaled -> one matrix"  # one layer is one clique
    assert lm.Result.from_json(saved).plan == saved["plan"]
    saved = json.loads(run(capsys, "solve", net, "-f", "lipsdp-neuron", "-b", "native", "--json")[1])
    assert saved["plan"] == "factors read"
    assert json.loads(run(capsys, "solve", net, "-f", "product", "--json")[1])["plan"] == ""


def test_many_constraints_do_not_make_the_search_long():
    m = lm.Model("many")
    y = m.variable("y", 40)
    for k in range(40):
        m.require(y[k].equals(float(k)))
        m.require((np.ones((3, 1)) @ y[k]).in_cone(lm.RotatedSecondOrder()))
    m.minimize(y.sum())
    plan = plan_for(m, capabilities("psd", "nonnegative"))
    assert len(plan.steps) == 40 + 2 * 40
    assert str(plan).count("arrow matrices") == 1
    split = lm.Model("split")
    rng = np.random.default_rng(8)
    for _ in range(6):
        system = chain_of([rng.standard_normal((30, 30)) for _ in range(5)])
        split.require(stated(system).matrix_constraints[0] >= 0)
    split.minimize(lm.Expression.of(split.variables[0]))
    plan = plan_for(split, capabilities("psd", "nonnegative", precision=1e-4))
    assert len(plan.rejected) <= plans.SHOWN
    assert len(plan.steps) > 0
