"""Hard chains as models, dead neurons among them: whichever elimination takes them, the values are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dense_algebra import is_definite
from native_chains import SLOPES, dense_matrix, gaussian, problem
from native_programs import FORMULATIONS, clarabel_optimum, dense, gap, is_exactly_definite, solved, unknowns

import lipmodel as lm
from lipmodel.backends.base import Point
from lipmodel.backends.native.chain import ChainProblem, all_alive
from lipmodel.backends.native.chains import NotAChain, read_chain
from lipmodel.backends.native.core import solve_chain
from lipmodel.backends.native.reading import read_program
from lipmodel.network.increments import chain_of, increments
from lipmodel.testing.networks import _Sketch


def model_of(p: ChainProblem) -> lm.Model:
    """A chain as a formulation states it, dead neurons included."""
    system = chain_of([*p.weights, p.output])
    activations = tuple(
        replace(a, alpha=low, beta=high) for a, low, high in zip(system.activations, p.alpha, p.beta, strict=True)
    )
    name = "neuron" if p.input_norm == "2" else "geolip-inf-2"
    return FORMULATIONS[name](replace(system, activations=activations))


def is_feasible(model: lm.Model, point: Point) -> bool:
    """Positive definite in floating point, in the program that the model is read as."""
    terms, constant = dense(read_program(model))
    return is_definite(constant + np.einsum("p,pab->ab", unknowns(model, point), terms))


def is_chain(model: lm.Model) -> bool:
    try:
        read_chain(model)
    except NotAChain:
        return False
    return True


def random_problem(seed: int, widest: int) -> ChainProblem:
    """Networks that are hard on a solver: bad scaling, heavy tails, dead or nonnegative neurons, mixed slopes."""
    rng = np.random.default_rng(seed)
    dims = [int(d) for d in rng.integers(1, widest, rng.integers(3, 7))]
    kind = ["gauss", "rows", "heavy", "sparse", "nonnegative", "dead", "layers", "all"][seed % 8]
    matrices = []
    for w in gaussian(rng, dims):
        if kind in ("rows", "all"):
            w = w * 10 ** rng.uniform(-4, 4, (w.shape[0], 1))
        if kind in ("heavy", "all"):
            w = w * np.abs(rng.standard_t(1.5, w.shape))
        if kind in ("sparse", "all"):
            w = w * (rng.random(w.shape) < 0.5)
        if kind == "nonnegative":
            w = np.abs(w)
        if kind in ("dead", "all"):
            w[rng.random(w.shape[0]) < 0.2] = 0
            w[:, rng.random(w.shape[1]) < 0.2] = 0
        if kind in ("layers", "all"):
            w = w * 10 ** rng.uniform(-3, 3)
        matrices.append(w)
    names = list(SLOPES)
    alpha, beta = [], []
    for d in dims[1:-1]:
        chosen = rng.integers(len(names), size=d) if rng.random() < 0.5 else np.full(d, rng.integers(len(names)))
        alpha.append(np.array([SLOPES[names[i]][0] for i in chosen]))
        beta.append(np.array([SLOPES[names[i]][1] for i in chosen]))
    return ChainProblem(
        weights=tuple(matrices[:-1]),
        alpha=tuple(alpha),
        beta=tuple(beta),
        output=matrices[-1],
        input_norm="2" if rng.random() < 0.5 else "inf",
    )


def is_constant(p: ChainProblem) -> bool:
    reach = np.ones(p.weights[0].shape[1])
    for w in p.weights:
        reach = (np.abs(np.sign(w)) @ reach > 0).astype(float)
    return not np.any(np.abs(np.sign(p.output)) @ reach)


def test_values_are_those_of_another_solver():
    compared = 0
    for seed in range(64):
        p = random_problem(seed, 7)
        model = model_of(p)
        point = solved(model)
        assert point.termination == "optimal", seed
        assert is_feasible(model, point), seed
        bound = model.bound_of(point.objective)
        if is_constant(p):
            assert bound < 1e-15
            continue
        assert gap(model, point) <= 1e-6, seed
        optimum = clarabel_optimum(read_program(model), unknowns(model, point))
        if optimum is not None:
            compared += 1
            assert bound == pytest.approx(model.bound_of(optimum), rel=1.5e-6), seed
            assert model.bound_of(point.lower) <= model.bound_of(optimum) * (1 + 5e-7), seed
    assert compared > 30


def test_hard_networks_are_solved_to_a_millionth():
    chains = 0
    for seed in range(1000, 1088):
        p = random_problem(seed, 21)
        model = model_of(p)
        point = solved(model)
        assert point.termination == "optimal", seed
        assert is_feasible(model, point), seed
        assert is_constant(p) or gap(model, point) <= 1e-6, seed
        assert is_constant(p) or point.iterations <= 80, seed
        assert is_chain(model) == all_alive(p), seed
        chains += is_chain(model)
    assert 40 < chains < 80


def test_solutions_are_feasible_in_exact_arithmetic():
    for seed in range(200, 248):
        model = model_of(random_problem(seed, 5))
        assert is_exactly_definite(read_program(model), unknowns(model, solved(model))), seed


@pytest.mark.parametrize("norm", ["2", "inf"])
@pytest.mark.parametrize("slopes", ["relu", "abs", "leaky"])
def test_dead_neurons_keep_the_value_and_get_multipliers(norm, slopes):
    rng = np.random.default_rng(18)
    first, second, third, output = gaussian(rng, [4, 6, 6, 6, 3])
    first[[0, 1]] = 0  # no input
    second[2] = 0
    second[2, [0, 1]] = 1.0  # fed by what no input reaches only
    third[:, 3] = 0  # read by nobody
    second[:, 5] = 0
    second[3, 5] = 1.0  # read by what nobody reads only
    output[:, 4] = 0
    model = model_of(problem([first, second, third, output], norm, slopes))
    point = solved(model)
    assert point.termination == "optimal"
    assert is_feasible(model, point)
    alive = [[2, 3, 4], [0, 1, 4, 5], [0, 1, 2, 3, 5]]
    living = problem(
        [first[alive[0]], second[np.ix_(alive[1], alive[0])], third[np.ix_(alive[2], alive[1])], output[:, alive[2]]],
        norm,
        slopes,
    )
    assert model.bound_of(point.objective) ** 2 == pytest.approx(solve_chain(living).value, rel=3e-6)


@pytest.mark.parametrize("norm", ["2", "inf"])
@pytest.mark.parametrize("unread", [[1], [0, 3], [0, 1, 2]])
def test_inputs_that_nothing_reads_keep_the_value(norm, unread):
    first, *rest = gaussian(np.random.default_rng(26), [4, 6, 5, 3])
    first[:, unread] = 0
    model = model_of(problem([first, *rest], norm))
    point = solved(model)
    assert point.termination == "optimal"
    assert not is_chain(model)
    assert is_feasible(model, point)
    living = problem([np.delete(first, unread, axis=1), *rest], norm)
    assert model.bound_of(point.objective) ** 2 == pytest.approx(solve_chain(living).value, rel=3e-6)


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_a_constant_network_has_the_value_zero_almost(norm):
    rng = np.random.default_rng(19)
    for dead in range(3):
        matrices = gaussian(rng, [3, 4, 4, 2])
        matrices[dead] = np.zeros_like(matrices[dead])
        for slopes in ("relu", "gelu"):
            model = model_of(problem(matrices, norm, slopes))
            point = solved(model)
            assert (point.termination, point.lower) == ("optimal", 0.0)
            assert 0 < model.bound_of(point.objective) < 1e-15
            assert is_exactly_definite(read_program(model), unknowns(model, point))


def test_neurons_of_slope_zero_are_dead():
    matrices = gaussian(np.random.default_rng(20), [3, 5, 4, 2])
    p = problem(matrices)
    beta = np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    model = model_of(replace(p, beta=(beta, p.beta[1])))
    point = solved(model)
    living = [matrices[0][beta > 0], matrices[1][:, beta > 0], matrices[2]]
    assert point.termination == "optimal"
    assert model.bound_of(point.objective) ** 2 == pytest.approx(solve_chain(problem(living)).value, rel=3e-6)
    assert is_exactly_definite(read_program(model), unknowns(model, point))


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_the_chain_solver_gives_no_point_that_is_not_feasible_where_neurons_are_dead(norm):
    for matrix, row in ((0, True), (1, True), (1, False), (2, False)):
        matrices = gaussian(np.random.default_rng(27), [3, 5, 4, 2])
        matrices[matrix][np.index_exp[1] if row else np.index_exp[:, 1]] = 0
        p = problem(matrices, norm)
        assert not all_alive(p)
        found = solve_chain(p)
        assert found.value == np.inf or is_definite(dense_matrix(p, found))


@pytest.mark.parametrize(("formulation", "norm"), [("lipsdp-neuron", "2"), ("geolip", "inf:2")])
def test_nothing_is_lost_in_the_proof_where_neurons_are_dead_by_cancellation(formulation, norm):
    s = _Sketch(28, 4)
    first = s.rng.standard_normal((8, 4)).astype(np.float32).astype(float)
    first[4:] = first[:4]
    second = s.rng.integers(-9, 10, (12, 8)).astype(float)
    second[:4, 4:] = -second[:4, :4]  # rows of the product that are zero up to its error bound
    node = s.activate(s.linear(s.linear(s.x, 8, weights=first), 12, weights=second))
    network = s.finish(s.linear(s.activate(s.linear(node, 10)), 3))
    model = FORMULATIONS["neuron"](increments(network))
    assert [a.size for a in increments(network).activations] == [12, 10]
    assert not is_chain(model)
    result = lm.solve(network, formulation, norm=norm, witness=False)
    assert (result.termination, result.assurance) == ("optimal", "proved")
    assert result.bound == pytest.approx(result.claim, rel=1e-8)
