"""Matrix inequalities by cliques: equal to the whole ones, on every kind of graph, and what must not be added."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from conic_solves import ALL, optimum

import lipmodel as lm
from lipmodel.bridges.chordal import clique_tree, completed, split_form
from lipmodel.bridges.plan import compile_model
from lipmodel.errors import UsageError
from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
from lipmodel.model.model import inner
from lipmodel.model.sets import PSD, SparsePSD
from lipmodel.model.terms import Congruence
from lipmodel.network.increments import chain_of
from lipmodel.testing.backends import lipsdp
from lipmodel.testing.networks import KINDS, formal_constant, random_network, random_system


def form_of(edges, sizes):
    """A form whose products are the given pairs of signals."""
    signals = {name: Signal(name=name, size=size) for name, size in sizes.items()}
    forms = {name: LinearForm.of(s) for name, s in signals.items()}
    total = QuadraticForm()
    for f in forms.values():
        total += inner(f, f, weight=10.0)
    rng = np.random.default_rng(len(edges))
    for a, b in edges:
        matrix = rng.standard_normal((signals[a].size, signals[b].size))
        total += inner(forms[a], matrix @ forms[b])
    return total, signals


def with_cliques(model, **how):
    split = lm.Model(model.name)
    split.require(model.matrix_constraints[0] >= 0, **{"cliques": "auto", **how})
    split.minimize(model.objective, bound=model.bound)
    return split


GRAPHS = {
    "chain": ("ab", "bc", "cd", "de"),
    "star": ("ab", "ac", "ad", "ae"),
    "cycle": ("ab", "bc", "cd", "de", "ea"),
    "two cycles": ("ab", "bc", "cd", "da", "de", "eb"),
    "apart": ("ab", "cd"),
    "complete": ("ab", "ac", "bc"),
    "nothing": (),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("merge", [True, False])
def test_the_tree_is_a_clique_tree_of_a_chordal_extension(name, merge):
    form, signals = form_of(GRAPHS[name], {"a": 30, "b": 20, "c": 40, "d": 25, "e": 35})
    tree = clique_tree(form, SparsePSD(merge=merge))
    for a, b in GRAPHS[name]:
        assert any({signals[a], signals[b]} <= set(c) for c in tree.cliques)
    assert {s for c in tree.cliques for s in c} == set(signals.values())
    for s in signals.values():
        graph = nx.Graph()
        holding = [k for k, c in enumerate(tree.cliques) if s in c]
        graph.add_nodes_from(holding)
        graph.add_edges_from((k, tree.parent[k]) for k in holding if tree.parent[k] in holding)
        assert nx.is_connected(graph), "every signal's cliques are joined (running intersection)"
    for k, above in enumerate(tree.parent):
        assert above < k
        assert set(tree.shared[k]) == (set(tree.cliques[k]) & set(tree.cliques[above]) if above >= 0 else set())
    extended = nx.Graph((a, b) for c in tree.cliques for i, a in enumerate(c) for b in c[:i])
    extended.add_nodes_from(signals.values())
    assert nx.is_chordal(extended)
    if not merge:
        maximal = {frozenset(c) for c in nx.find_cliques(extended)}
        assert {frozenset(c) for c in tree.cliques} == maximal


def test_the_extension_fills_in_little():
    """The cycle a b c d: an edge between the small signals, not between the large ones."""
    form, signals = form_of(("ab", "bc", "cd", "da"), {"a": 50, "b": 2, "c": 50, "d": 3})
    tree = clique_tree(form, SparsePSD(merge=False))
    assert sorted(tree.orders) == [55, 55]
    assert set(tree.shared[1]) == {signals["b"], signals["d"]}


def test_small_cliques_are_merged_and_large_ones_are_not():
    small, _ = form_of(GRAPHS["chain"], dict.fromkeys("abcde", 2))
    assert len(clique_tree(small, SparsePSD()).cliques) == 1
    large, _ = form_of(GRAPHS["chain"], dict.fromkeys("abcde", 40))
    assert len(clique_tree(large, SparsePSD()).cliques) == 4
    assert len(clique_tree(small, SparsePSD(merge=False)).cliques) == 4
    assert len(clique_tree(small, PSD()).cliques) == 1


@pytest.mark.parametrize("name", GRAPHS)
def test_the_parts_add_up_to_the_form_whatever_the_overlaps_are(name):
    form, signals = form_of(GRAPHS[name], dict.fromkeys("abcde", 2))
    m = lm.Model("parts")
    tree = clique_tree(form, SparsePSD(merge=False))
    overlaps = [m.symmetric("x", sum(s.size for s in shared)) if shared else None for shared in tree.shared]
    parts = split_form(form, tree, overlaps)
    rng = np.random.default_rng(0)
    values = {v: rng.standard_normal(v.size) for v in overlaps if v is not None}
    point = {s: rng.standard_normal(s.size) for s in signals.values()}
    for part, clique in zip(parts, tree.cliques, strict=True):
        assert set(part.signals) == set(clique)
    assert sum(p.value(values, point) for p in parts) == pytest.approx(form.value({}, point), rel=1e-10)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_matrix_known_on_its_cliques_is_completed(name):
    form, _ = form_of(GRAPHS[name], {"a": 2, "b": 3, "c": 1, "d": 2, "e": 2})
    tree = clique_tree(form, SparsePSD(merge=False))
    n = sum(s.size for s in form.signals)
    factor = np.random.default_rng(1).standard_normal((n, n))
    whole = factor @ factor.T
    place, at = {}, 0
    for s in form.signals:
        place[s] = np.arange(at, at + s.size)
        at += s.size
    index = [np.concatenate([place[s] for s in c]) for c in tree.cliques]
    parts = [whole[np.ix_(i, i)] for i in index]
    found = completed(form.signals, tree.cliques, tree, parts)
    for i, part in zip(index, parts, strict=True):
        np.testing.assert_allclose(found[np.ix_(i, i)], part, rtol=1e-10, atol=1e-10)
    assert np.linalg.eigvalsh(found)[0] > 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_the_optimum_is_that_of_the_whole_inequality(kind, seed):
    system = random_system(kind, seed)
    whole = lipsdp(system)
    model = with_cliques(whole, merge=False)
    values = [m.bound_of(optimum(m)[1].value) for m in (whole, model)]
    assert values[1] == pytest.approx(values[0], rel=1e-6)
    assert values[1] >= formal_constant(system, "2", "2") * (1.0 - 1e-6)


def test_a_skip_connection_joins_what_it_skips():
    """x -> w1 -> w2 -> w3 -> y with x added before w2: the first clique has three signals."""
    rng = np.random.default_rng(7)
    chain = chain_of([rng.standard_normal(shape) for shape in ((2, 2), (3, 2), (3, 3), (1, 3))])
    one, two, three = chain.activations
    skipped = two.pre + rng.standard_normal((3, 2)) @ chain.input
    system = replace(chain, activations=(one, replace(two, pre=skipped), three))
    tree = clique_tree(lipsdp(system).matrix_constraints[0], SparsePSD(merge=False))
    assert sorted(tree.orders) == [6, 7]
    model = with_cliques(lipsdp(system), merge=False)
    first, second = (optimum(m)[1].value for m in (lipsdp(system), model))
    assert second == pytest.approx(first, rel=1e-7)


def test_given_cliques_are_used_and_have_to_cover():
    rng = np.random.default_rng(6)
    system = chain_of([rng.standard_normal(shape) for shape in ((4, 3), (4, 4), (4, 4), (1, 4))])
    one, two, three = (a.post for a in system.activations)
    model = with_cliques(lipsdp(system), cliques=[(system.input, one, two), (two, three)], merge=False)
    compiled = compile_model(model, ALL)
    assert sorted(b.order for b in compiled.program.psd) == [8, 11]
    assert optimum(model)[1].value == pytest.approx(optimum(lipsdp(system))[1].value, rel=1e-7)
    with pytest.raises(UsageError, match=r"no clique holds both .*w2.* and .*w3|no clique holds both .*w3.* and .*w2"):
        with_cliques(lipsdp(system), cliques=[(system.input, one, two), (three,)])
    with pytest.raises(UsageError, match="group of signals"):
        with_cliques(lipsdp(system), cliques=[("x", "w1")])
    with pytest.raises(UsageError, match="'auto'"):
        with_cliques(lipsdp(system), cliques="all")
    with pytest.raises(UsageError, match="needs no cliques"):
        with_cliques(lipsdp(system), cone="dd")


def test_given_cliques_survive_an_input_that_is_turned():
    rng = np.random.default_rng(8)
    system = chain_of([rng.standard_normal((3, 30)), rng.standard_normal((3, 3)), rng.standard_normal((1, 3))])
    one, two = (a.post for a in system.activations)
    model = with_cliques(lipsdp(system), cliques=[(system.input, one), (one, two)], merge=False)
    compiled = compile_model(model, ALL)
    assert [b.order for b in compiled.program.psd] == [6, 6]
    assert optimum(model)[1].value == pytest.approx(optimum(lipsdp(system))[1].value, rel=1e-7)


def test_congruences_and_coefficients_are_split_too():
    rng = np.random.default_rng(9)
    m = lm.Model("kinds")
    a, b, c = (m.signal(name, 3) for name in "abc")
    x = m.symmetric("X", 3)
    bound = m.variable("t", nonnegative=True)
    form = sum((inner(f, f, weight=bound.spread(3)) for f in (a, b, c)), QuadraticForm())
    form += QuadraticForm(terms=(Congruence(form=a + rng.standard_normal((3, 3)) @ b, matrix=x),))
    form -= 2 * inner(b, rng.standard_normal((3, 3)) @ c)
    bounds = []
    for how in ({}, {"cliques": "auto", "merge": False}):
        m = lm.Model("kinds")
        m.require(form >= 0, **how)
        m.require(lm.Expression.of(x) >= -3.0)
        m.require(lm.Expression.of(x) <= 3.0)
        m.require(lm.Expression.of(x)[[0, 3, 5]].sum() >= 2.0)
        m.minimize(bound)
        compiled, found = optimum(m)
        bounds.append(found.value)
        orders = [block.order for block in compiled.program.psd]
    assert orders == [6, 6]
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-7)


# ------------------------------------------------------------------------------------------------ the formulation


@pytest.mark.parametrize("kind", ["chain", "residual", "skips", "mixed", "trailing"])
@pytest.mark.parametrize("backend", ["native", "clarabel"])
def test_the_certified_bound_equals_lipsdp_neuron(kind, backend):
    net = random_network(kind, 3)
    whole = lm.solve(net, "lipsdp-neuron", backend="native", tol=1e-8)
    split = lm.solve(net, "chordal-lipsdp", backend=backend, tol=1e-8, options={"merge": False})
    assert split.assurance == "proved"
    assert split.bound == pytest.approx(whole.bound, rel=1e-6)
    assert split.lower_bound <= split.bound
    assert split.plan == ("factors read" if backend == "native" else "scaled -> cliques") or kind != "chain"


def test_a_deep_chain_is_certified_as_a_whole():
    """Errors of the blocks grow with depth; what is proved is the assembled inequality."""
    rng = np.random.default_rng(10)
    sizes = [3, *[6] * 12, 1]
    weights = [rng.standard_normal((b, a)) * np.sqrt(2.0 / a) for a, b in pairwise(sizes)]
    net = lm.from_weights(weights)
    whole = lm.solve(net, "lipsdp-neuron")
    split = lm.solve(net, "chordal-lipsdp", backend="clarabel")
    assert split.bound == pytest.approx(whole.bound, rel=1e-6)
    assert json.loads(json.dumps(split.to_json()))["plan"] == "scaled -> cliques"


def witness():
    """f(x) = relu(x) - relu(x - 10): its constant is 1."""
    return lm.from_weights([np.ones((2, 1)), np.array([[1.0, -1.0]])], [np.array([0.0, -10.0]), np.zeros(1)])


class Coupled(lm.Formulation):
    """The couplings of tau >= 1: (dw_i - dw_j) ((dv_i - dv_j) - (dw_i - dw_j)) >= 0, which increments violate."""

    name, norms, default_norm = "coupled", {("2", "2")}, "2"

    def build(self, system, spec):
        m = lm.Model(self.name)
        ball, price = m.ball(system.input, "2")
        form = ball - lm.inner(system.output, system.output)
        for act in system.activations:
            form -= lm.qc.slope_restricted(act, m.multiplier(act))
            d = np.array([[1.0, -1.0]])
            weight = m.variable("coupling", 1, nonnegative=True)
            form -= 2 * lm.inner(d @ act.post, d @ act.pre - d @ act.post, weight=weight)
        m.require(form >= 0, cliques="auto")
        m.minimize(2 * price, bound="sqrt")
        return m


def test_couplings_between_neurons_are_not_sound_and_never_proved():
    result = lm.solve(witness(), Coupled(), backend="clarabel")
    assert result.claim < 0.1  # what tau >= 1 would have one believe
    assert result.bound >= 1.0
    assert result.lower_bound == pytest.approx(1.0, rel=1e-6)
    assert lm.solve(witness(), "chordal-lipsdp").bound == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("value", [1, 0])
def test_the_formulation_has_no_couplings(value):
    with pytest.raises(UsageError, match="no option 'tau'"):
        lm.solve(witness(), "chordal-lipsdp", options={"tau": value})


def test_importing_the_package_does_not_import_the_bridges():
    code = (
        "import sys, lipmodel as lm; lm.Model; print(sum(name.startswith('lipmodel.bridges') for name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "0"


def test_twenty_layers_are_solved_to_the_tolerance():
    """In units of norm one the optimum of a deep network is tiny; those of a closed form make it of order one."""
    rng = np.random.default_rng(26)
    sizes = [3, *[6] * 20, 2]
    net = lm.from_weights([rng.standard_normal((b, a)) * np.sqrt(2.0 / a) for a, b in pairwise(sizes)])
    split = lm.solve(net, "chordal-lipsdp", backend="clarabel")
    assert split.termination == "optimal"
    assert split.bound == pytest.approx(lm.solve(net, "lipsdp-neuron", tol=1e-8).bound, rel=1e-6)
