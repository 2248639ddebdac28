"""Diagonally dominant and scaled diagonally dominant restrictions: feasible, ordered, and never below the truth."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conic_solves import optimum

import lipmodel as lm
from lipmodel.backends.base import Capabilities
from lipmodel.bridges import dominance
from lipmodel.bridges.dominance import dominance_scaling
from lipmodel.bridges.plan import compile_model
from lipmodel.bridges.program import psd_block
from lipmodel.errors import LipmodelError, UsageError
from lipmodel.model.sets import DiagonallyDominant, ScaledDiagonallyDominant
from lipmodel.network.increments import chain_of
from lipmodel.testing.backends import lipsdp, mixed_norm
from lipmodel.testing.networks import KINDS, formal_constant, random_network, random_system

LINEAR = Capabilities(cones=frozenset({"nonnegative"}))
PAIRS = [("2", "2"), ("inf", "1"), ("inf", "2"), ("2", "1")]


def in_cone(model, kind):
    return replace(model, constraints=[replace(model.constraints[0], set=kind)])


def three(model):
    """The optima for psd, sdd and dd, as bounds."""
    kinds = (model.constraints[0].set, ScaledDiagonallyDominant(), DiagonallyDominant())
    found = [optimum(in_cone(model, kind))[1] for kind in kinds]
    assert all(f.status in ("Solved", "AlmostSolved") for f in found)
    return [model.bound_of(f.value) for f in found]


def stated(system, p, q):
    return lipsdp(system) if (p, q) == ("2", "2") else mixed_norm(system, p, q)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_the_cones_are_ordered_and_above_the_enumeration(kind, p, q):
    system = random_system(kind, 1)
    psd, sdd, dd = three(stated(system, p, q))
    assert formal_constant(system, p, q) <= psd * (1.0 + 1e-6)
    assert psd <= sdd * (1.0 + 1e-6)
    assert sdd <= dd * (1.0 + 1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-0.5, 1.0), (0.25, 1.0), (-1.0, 1.0), (-2.0, 0.5)])
def test_the_linear_program_is_no_worse_than_the_norm_of_the_product_of_moduli(seed, slopes):
    rng = np.random.default_rng(seed)
    sizes = [4, 6, 5, 3]
    weights = [rng.standard_normal((b, a)) for a, b in pairwise(sizes)]
    product = np.linalg.multi_dot([np.abs(w) for w in weights[::-1]])
    s, r = abs(slopes[0] + slopes[1]), abs(slopes[0] * slopes[1])
    gain = ((s + np.sqrt(s * s + 4 * r)) / 2) ** (len(weights) - 1)
    system = chain_of(weights, *slopes)
    exact = {
        ("2", "2"): np.linalg.norm(product, 2),
        ("inf", "1"): product.sum(),
        ("inf", "2"): np.linalg.norm(product.sum(axis=1)),
        ("2", "1"): np.linalg.norm(product.sum(axis=0)),
    }
    for (p, q), value in exact.items():
        model = in_cone(stated(system, p, q), DiagonallyDominant())
        assert model.bound_of(optimum(model)[1].value) <= value * gain * (1.0 + 1e-6)


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-1.0, 1.0)])
def test_units_of_neurons_do_not_matter(slopes):
    """Rows of very different sizes that the next layer undoes: the same program in other units."""
    rng = np.random.default_rng(9)
    units = np.array([1e-15, 1e-6, 1.0, 1e9])
    first, second = rng.standard_normal((4, 3)), rng.standard_normal((2, 4))
    for kind in (DiagonallyDominant(), ScaledDiagonallyDominant()):
        plain, other = (
            in_cone(lipsdp(chain_of(weights, *slopes)), kind)
            for weights in ([first, second], [units[:, None] * first, second / units])
        )
        values = [optimum(m)[1].value for m in (plain, other)]
        assert values[1] == pytest.approx(values[0], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_scaling_makes_the_comparison_matrix_of_a_feasible_point_dominant(kind):
    """What the linear program finds is dominant in the coordinates of the scaling, by the entries themselves."""
    system = random_system(kind, 2)
    for p, q in PAIRS:
        model = in_cone(stated(system, p, q), DiagonallyDominant())
        compiled, found = optimum(model)
        form = model.matrix_constraints[0]
        d = np.concatenate([dominance_scaling(form)[0][s] for s in form.signals])
        assert np.all(d > 0.0)
        start, n = {}, 0
        for v in model.variables:
            start[v] = n
            n += v.size
        y = np.concatenate([compiled.values(found.y)[v] for v in model.variables])
        block = psd_block(form, start)
        matrix = np.zeros((block.order, block.order))
        np.add.at(matrix, (block.row, block.col), block.value * np.append(y, 1.0)[block.var])
        scaled = d[:, None] * (matrix + np.tril(matrix, -1).T) * d
        slack = 2 * np.diag(scaled) - np.abs(scaled).sum(axis=1)
        assert np.all(slack >= -1e-6 * np.abs(scaled).max())


def test_a_form_without_rules_is_dominant_in_its_own_coordinates():
    """min t with [t, 2; 2, t] + X, |X| dominated: t = 2, and with a free entry its modulus is a variable."""
    m = lm.Model("plain")
    z = m.signal("z", 2)
    t, u = m.variable("t"), m.variable("u")
    one, two = (np.eye(2)[[k]] @ z for k in range(2))
    m.require(lm.inner(z, z, weight=t.spread(2)) + 2 * lm.inner(one, two, weight=u) >= 0, cone="dd")
    m.require(u >= 3.0)
    m.minimize(t)
    compiled, found = optimum(m)
    assert found.value == pytest.approx(3.0, rel=1e-7)
    assert [v.name for v in compiled.program.model.variables] == ["t", "u", "size"]
    m.constraints[0] = replace(m.constraints[0], set=ScaledDiagonallyDominant())
    assert optimum(m)[1].value == pytest.approx(3.0, rel=1e-7)


def test_entries_of_known_sign_need_no_variable():
    system = random_system("chain", 0)
    compiled = compile_model(in_cone(lipsdp(system), DiagonallyDominant()), LINEAR)
    assert compiled.program.size == sum(v.size for v in compiled.model.variables)
    assert compiled.program.psd == ()
    assert compiled.program.soc == ()
    mixed = compile_model(in_cone(lipsdp(random_system("mixed", 0)), DiagonallyDominant()), LINEAR)
    assert mixed.program.size > sum(v.size for v in mixed.model.variables)


@pytest.mark.parametrize(("kind", "limit"), [("dd", "MAX_PAIRS"), ("sdd", "MAX_CONES")])
def test_what_is_too_large_is_refused(kind, limit, monkeypatch):
    monkeypatch.setattr(dominance, limit, 3)
    cone = {"dd": DiagonallyDominant(), "sdd": ScaledDiagonallyDominant()}[kind]
    model = in_cone(lipsdp(random_system("chain", 0)), cone)
    with pytest.raises(LipmodelError, match="products of different coordinates"):
        optimum(model)


@pytest.mark.parametrize("formulation", ["lipsdp-neuron", "geolip"])
@pytest.mark.parametrize("kind", ["chain", "residual", "mixed", "dead"])
def test_solves_prove_what_the_cones_give(formulation, kind):
    net = random_network(kind, 4)
    claims, bounds = [], []
    for cone in ("psd", "sdd", "dd"):
        backend = "clarabel"
        result = lm.solve(net, formulation, norm="2:2", options={"cone": cone}, backend=backend)
        assert result.assurance == "proved"
        assert result.lower_bound <= result.bound
        claims.append(result.claim)
        bounds.append(result.bound)
    assert claims[0] <= claims[1] * (1 + 1e-6)
    assert claims[1] <= claims[2] * (1 + 1e-6)
    assert bounds[0] <= min(bounds) * (1 + 1e-6)
    assert bounds[2] <= claims[2] * (1 + 1e-6)  # a multiplier that is dominant proves at least this


def test_tied_multipliers_are_feasible_too():
    result = lm.solve(random_network("chain", 1), "lipsdp-layer", options={"cone": "dd"}, backend="clarabel")
    assert result.termination == "optimal"
    assert result.bound <= result.claim * (1 + 1e-6)


def test_backends_that_read_the_structure_do_not_take_another_cone():
    with pytest.raises(UsageError, match="does not take this model"):
        lm.solve(random_network("chain", 0), "lipsdp-neuron", options={"cone": "dd"}, backend="native")


def test_an_unknown_cone_is_refused():
    with pytest.raises(UsageError, match="psd, dd, sdd"):
        lm.solve(random_network("chain", 0), "geolip", options={"cone": "copositive"})


@pytest.mark.parametrize("seed", range(3))
def test_a_nonnegative_chain_has_the_norm_of_its_product(seed):
    """With W >= 0 and slopes [0, 1] the constant is that of the linear network, and dominance loses nothing."""
    rng = np.random.default_rng(seed)
    weights = [rng.random((b, a)) for a, b in ((3, 5), (5, 4), (4, 2))]
    product = np.linalg.multi_dot(weights[::-1])
    net = lm.from_weights(weights)
    result = lm.solve(net, "lipsdp-neuron", options={"cone": "dd"}, backend="clarabel")
    assert result.bound == pytest.approx(np.linalg.norm(product, 2), rel=1e-6)
    assert result.bound >= np.linalg.norm(product, 2) * (1 - 1e-12)
