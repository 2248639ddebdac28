"""The native backend on every structure: residual graphs, tied multipliers, l1 outputs, inequalities stated by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from dense_algebra import is_definite
from native_programs import (
    BY_HAND,
    FORMULATIONS,
    clarabel_optimum,
    dense,
    gap,
    hard_models,
    is_exactly_definite,
    is_zero,
    solved,
    unknowns,
    weighted,
)

import lipmodel as lm
from lipmodel.backends.native import general
from lipmodel.backends.native.launch import launched
from lipmodel.backends.native.reading import read_program
from lipmodel.network.increments import chain_of, increments
from lipmodel.network.linear import Dense
from lipmodel.network.ops import Add
from lipmodel.testing.networks import KINDS, MIXED, _Sketch, formal_constant, random_system


def test_values_are_those_of_another_solver():
    compared = 0
    for label, model in hard_models(range(70), 7):
        point = solved(model)
        program = read_program(model)
        if is_zero(model, point) or sum(program.sizes) > 24:
            continue
        optimum = clarabel_optimum(program, unknowns(model, point))
        if optimum is not None:
            ratio = model.bound_of(point.objective) / model.bound_of(optimum)
            assert -5e-7 < ratio - 1 < 1.5e-6, label
            assert model.bound_of(point.lower) / model.bound_of(optimum) - 1 < 5e-7, label
            compared += 1
    assert compared >= 40


def test_hard_models_are_solved_to_a_millionth_and_are_feasible():
    zero = 0
    for label, model in hard_models(range(200, 320)):
        point = solved(model)
        assert point.termination == "optimal", label
        y = unknowns(model, point)
        terms, constant = dense(read_program(model))
        assert np.all(y >= 0), label
        assert is_definite(constant + np.einsum("p,pab->ab", y, terms)), label
        zero += is_zero(model, point)
        assert is_zero(model, point) or gap(model, point) <= 1e-6, label
    assert zero < 30


def test_solutions_are_feasible_in_exact_arithmetic():
    for _, model in hard_models(range(7, 28), 4):
        program = read_program(model)
        if sum(program.sizes) <= 16:
            assert is_exactly_definite(program, unknowns(model, solved(model)))


def test_a_point_just_below_the_optimum_is_not_feasible_in_exact_arithmetic():
    model = FORMULATIONS["layer"](random_system("residual", 3))
    program = read_program(model)
    y = unknowns(model, solved(model, tol=1e-7))
    assert is_exactly_definite(program, y)
    assert not is_exactly_definite(program, (1 - 1e-3) * y)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("kind", ["chain", "residual", "concat"])
def test_models_stated_by_hand(name, kind):
    model = weighted(random_system(kind, 4, inputs=3, outputs=1 if name == "scalar" else 2), name)
    point = solved(model)
    assert gap(model, point) <= 1e-6
    y = unknowns(model, point)
    program = read_program(model)
    terms, constant = dense(program)
    assert is_definite(constant + np.einsum("p,pab->ab", y, terms))
    optimum = clarabel_optimum(program, y)
    assert optimum is None or model.bound_of(point.objective) == pytest.approx(model.bound_of(optimum), rel=2e-6)


def test_multipliers_that_no_network_of_this_gain_has_are_not_found():
    system = chain_of([np.eye(3) * 4.0, np.eye(3) * 4.0, np.eye(3) * 4.0, np.ones((1, 3))])
    m = lm.Model("one for all")
    ball, price = m.ball(system.input, "2")
    t = m.variable("t", nonnegative=True)
    form = ball - lm.inner(system.output, system.output)
    for act in system.activations:
        form -= lm.qc.slope_restricted(act, t.spread(act.size))
    m.require(form >= 0)
    m.minimize(2 * price, bound="sqrt")
    point = solved(m)
    assert (point.values, point.termination) == (None, "failed")
    assert "feasible" in point.message


# ---------------------------------------------------------------------------------------------------------------------
# What is known of the values


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_are_ordered_and_above_the_formal_constant(kind):
    system = random_system(kind, 5, inputs=3, outputs=2)
    value = {name: (m := build(system)).bound_of(solved(m).objective) for name, build in FORMULATIONS.items()}
    slack = 1 + 2e-6
    assert value["neuron"] <= value["grouped"] * slack
    assert value["neuron"] <= value["layer"] * slack
    assert value["geolip-2-2"] == pytest.approx(value["neuron"], rel=3e-6)
    for p in ("2", "inf"):
        assert value[f"geolip-{p}-2"] <= value[f"geolip-{p}-1"] * slack
        assert value[f"geolip-{p}-1"] <= value[f"geolip-{p}-2"] * np.sqrt(2) * slack
        for q in ("1", "2"):
            assert formal_constant(system, p, q) <= value[f"geolip-{p}-{q}"] * (1 + 1e-9)


@pytest.mark.parametrize("p", ["2", "inf"])
def test_with_one_output_all_output_norms_agree(p):
    system = random_system("residual", 8, outputs=1)
    values = [(m := FORMULATIONS[f"geolip-{p}-{q}"](system)).bound_of(solved(m).objective) for q in ("1", "2")]
    assert values[0] == pytest.approx(values[1], rel=2e-6)


@pytest.mark.parametrize("name", ["neuron", "geolip-inf-2"])
@pytest.mark.parametrize("dims", [[4, 7, 6, 5, 3], [3, 40, 2], [30, 6, 2]])
def test_a_chain_has_the_value_of_the_chain_solver(name, dims):
    rng = np.random.default_rng(1)
    system = chain_of([rng.normal(size=(b, a)) for a, b in itertools.pairwise(dims)], -0.1, 1.1)
    model = FORMULATIONS[name](system)
    found = general.solve_program(read_program(model))
    assert found.status == "optimal"
    assert model.bound_of(found.value) == pytest.approx(model.bound_of(solved(model).objective), rel=2e-6)


@pytest.mark.parametrize("name", ["layer", "geolip-inf-1"])
def test_a_residual_network_scales_with_its_output(name):
    system = random_system("residual", 6, outputs=3)
    model = FORMULATIONS[name](system)
    other = FORMULATIONS[name](system.restrict_output(Dense(weights=7.0 * np.eye(3)[[2, 0, 1]])))
    values = [m.bound_of(solved(m, tol=1e-8).objective) for m in (model, other)]
    assert values[1] == pytest.approx(7.0 * values[0], rel=1e-7)


def test_a_linear_network_has_its_norm():
    a = np.random.default_rng(3).normal(size=(3, 5))
    s = _Sketch(0, 5)
    system = increments(s.finish(s.linear(s.x, 3, weights=a)))
    assert system.activations == ()
    values = {n: (m := build(system)).bound_of(solved(m, tol=1e-8).objective) for n, build in FORMULATIONS.items()}
    assert values["neuron"] == pytest.approx(np.linalg.norm(a, 2), rel=1e-7)
    assert values["geolip-2-2"] == pytest.approx(np.linalg.norm(a, 2), rel=1e-7)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=5))).T
    assert values["geolip-inf-2"] >= np.linalg.norm(a @ signs, axis=0).max()
    assert values["geolip-inf-1"] >= np.abs(a @ signs).sum(axis=0).max()


def test_wide_inputs_and_many_outputs_are_reduced():
    rng = np.random.default_rng(4)
    s = _Sketch(4, 60)
    hidden = s.activate(s.linear(s.x, 6), MIXED)
    both = s.add(Add(), [s.linear(hidden, 4), s.linear(s.x, 4)])
    out = s.linear(s.activate(both), 50, weights=rng.normal(size=(50, 4)))
    system = increments(s.finish(out))
    for name in ("neuron", "layer", "geolip-2-2"):
        model = FORMULATIONS[name](system)
        start = launched(general._reduced(read_program(model)), None, np.inf)
        assert start is not None
        assert start.barrier.layout.size <= 2 * (6 + 4) + 10
        assert gap(model, solved(model)) <= 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Limits, and the pipeline


@pytest.mark.parametrize("name", ["layer", "geolip-inf-1"])
def test_a_time_limit_gives_the_best_point_so_far(name):
    model = FORMULATIONS[name](random_system("residual", 9, outputs=3))
    point = solved(model, time_limit=0.0)
    assert (point.termination, point.lower, point.iterations) == ("time-limit", 0.0, 0)
    terms, constant = dense(read_program(model))
    assert is_definite(constant + np.einsum("p,pab->ab", unknowns(model, point), terms))
    assert point.objective >= solved(model).objective * (1 - 3e-6)


def test_a_first_phase_out_of_time_gives_no_point():
    point = solved(weighted(random_system("residual", 9), "shifted"), time_limit=0.0)
    assert (point.values, point.termination) == (None, "time-limit")


@pytest.mark.parametrize("name", ["grouped", "geolip-2-1"])
def test_iterations_are_limited_and_progress_only_improves(name):
    model = FORMULATIONS[name](random_system("concat", 9, outputs=3))
    seen: list[Any] = []
    final = solved(model, progress=seen.append)
    assert sorted({state.iteration for state in seen}) == list(range(final.iterations + 1))
    for before, after in itertools.pairwise(seen):
        assert after.objective <= before.objective
        assert after.lower >= before.lower
        assert after.seconds >= before.seconds
    assert seen[-1].objective == pytest.approx(final.objective, rel=1e-8)
    limited = solved(model, max_iterations=1)
    assert (limited.termination, limited.iterations) == ("iteration-limit", 1)
    assert final.objective * (1 - 1e-5) < limited.objective <= seen[1].objective * (1 + 1e-9)


def test_an_interrupted_run_gives_the_best_point_so_far():
    model = FORMULATIONS["layer"](random_system("residual", 9))

    def stop(state: Any) -> None:
        if state.iteration == 2:
            raise KeyboardInterrupt

    point = solved(model, progress=stop)
    assert (point.termination, point.iterations) == ("interrupted", 2)
    terms, constant = dense(read_program(model))
    assert is_definite(constant + np.einsum("p,pab->ab", unknowns(model, point), terms))


def test_the_tolerance_is_on_the_bound():
    for name in ("layer", "geolip-inf-1"):
        model = FORMULATIONS[name](random_system("residual", 9, outputs=3))
        best = model.bound_of(solved(model, tol=1e-8).objective)
        for tol in (1e-2, 1e-4):
            point = solved(model, tol=tol)
            assert gap(model, point) <= tol
            assert model.bound_of(point.objective) / best - 1 <= tol


@pytest.mark.parametrize(("formulation", "norm"), [("lipsdp-layer", "2"), ("geolip", "inf:1"), ("geolip", "2:1")])
def test_the_pipeline_proves_what_the_backend_finds(formulation, norm):
    s = _Sketch(5, 4)
    node = s.linear(s.x, 6)
    for _ in range(2):
        node = s.add(Add(), [node, s.linear(s.activate(s.linear(node, 8), MIXED), 6)])
    result = lm.solve(s.finish(s.linear(node, 3)), formulation, norm=norm)
    assert (result.backend, result.termination, result.assurance) == ("native", "optimal", "proved")
    assert result.bound == pytest.approx(result.claim, rel=1e-6)
    assert result.gap <= 2e-6
    assert result.lower_bound <= result.bound
