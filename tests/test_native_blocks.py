"""The block elimination of the native backend: its barrier, its ordering and fronts, and changes of units."""

from __future__ import annotations

import numpy as np
import pytest
from dense_algebra import is_definite
from native_programs import dense, random_program

from lipmodel.backends.native import blocks, ordering
from lipmodel.backends.native.blocks import BlockBarrier
from lipmodel.backends.native.ordering import Graph, fronts, minimum_fill
from lipmodel.backends.native.program import compressed
from lipmodel.backends.native.units import scaled


@pytest.fixture(params=[0.0, 6e5], ids=["many-fronts", "one-front"])
def overhead(request, monkeypatch):
    monkeypatch.setattr(ordering, "OVERHEAD", request.param)
    return request.param


@pytest.mark.parametrize("seed", range(24))
def test_factor_gradient_and_hessian_are_those_of_the_dense_formulas(seed, overhead, monkeypatch):
    monkeypatch.setattr(blocks, "TRIANGULAR", 1 if seed % 2 else 300)
    program = random_program(seed)
    rng = np.random.default_rng(seed)
    guarded = rng.random(program.unknowns) < 0.3
    barrier = BlockBarrier(program, guarded)
    terms, constant = dense(program)
    y = rng.uniform(1, 3, program.unknowns)
    matrix = constant + np.einsum("p,pab->ab", y, terms)
    found = barrier.factorize(y[barrier.unknowns])
    assert (found is not None) == is_definite(matrix)
    if found is None:
        return
    inverse = np.linalg.inv(matrix)
    folded = np.linalg.slogdet(matrix)[1] + np.log(y[guarded]).sum()
    band = barrier.complete(found)
    assert found.logdet == pytest.approx(folded, rel=1e-9, abs=1e-9)
    gradient = np.einsum("pab,ab->p", terms, inverse) + guarded / y
    assert band.gradient == pytest.approx(gradient[barrier.unknowns], rel=1e-9, abs=1e-10)
    image = np.einsum("ab,pbc->pac", inverse, terms)
    hessian = np.einsum("pab,qba->pq", image, image) + np.diag(guarded / y**2)
    expected = hessian[np.ix_(barrier.unknowns, barrier.unknowns)]
    assert barrier.hessian(found, band) == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_the_factorisation_tells_definite_from_indefinite(overhead):
    verdicts = set()
    for seed in range(40):
        program = random_program(seed)
        barrier = BlockBarrier(program, np.zeros(program.unknowns, dtype=bool))
        terms, constant = dense(program)
        y = np.random.default_rng(seed).uniform(0.0, 0.6, program.unknowns)
        expected = is_definite(constant + np.einsum("p,pab->ab", y, terms))
        assert (barrier.factorize(y[barrier.unknowns]) is not None) == expected
        verdicts.add(expected)
    assert verdicts == {True, False}


def test_a_guarded_unknown_must_be_positive_and_a_number():
    program = random_program(3)
    barrier = BlockBarrier(program, np.ones(program.unknowns, dtype=bool))
    y = np.full(program.unknowns, 5.0)
    assert barrier.factorize(y) is not None
    for bad in (0.0, -1.0, np.nan, np.inf):
        assert barrier.factorize(np.where(np.arange(y.size) == 2, bad, y)) is None


def reach(graph: Graph, order: list[int]) -> list[set[int]]:
    """Neighbours that come later at the time of elimination, by doing it."""
    around = {s: set(n) for s, n in enumerate(graph.neighbours)}
    found = []
    for s in order:
        later = around.pop(s)
        found.append(later)
        for i in later:
            around[i] = (around[i] | later) - {i, s}
    return found


def random_graph(seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12))
    joined = rng.random((count, count)) < 0.3
    joined = (joined | joined.T) & ~np.eye(count, dtype=bool)
    return Graph(
        sizes=tuple(int(n) for n in rng.integers(1, 200, count)),
        neighbours=tuple(frozenset(np.flatnonzero(row).tolist()) for row in joined),
        diagonal=tuple((rng.random(count) < 0.5).tolist()),
    )


@pytest.mark.parametrize("seed", range(20))
def test_fronts_are_those_of_the_elimination(seed, overhead):
    graph = random_graph(seed)
    steps = fronts(graph)
    order = [s for step in steps for s in step.signals]
    assert sorted(order) == list(range(len(graph.sizes)))
    later = dict(zip(order, reach(graph, order), strict=True))
    for step in steps:
        assert set().union(*(later[s] for s in step.signals)) <= set(step.signals) | set(step.later)
        assert sorted(step.later, key=order.index) == list(step.later)
        if step.diagonal:
            (s,) = step.signals
            assert graph.diagonal[s]
            assert not any(s in later[j] for j in order[: order.index(s)])
            assert set(step.later) == later[s]


def path_graph(sizes: list[int]) -> Graph:
    count = len(sizes)
    return Graph(
        sizes=tuple(sizes),
        neighbours=tuple(frozenset(j for j in (i - 1, i + 1) if 0 <= j < count) for i in range(count)),
        diagonal=(True,) * count,
    )


def test_a_chain_is_eliminated_without_fill_and_a_wide_layer_first(monkeypatch):
    monkeypatch.setattr(ordering, "OVERHEAD", 0.0)
    for order in (minimum_fill(path_graph([20] * 9)), minimum_fill(path_graph([300, 20, 20, 5]))):
        assert all(len(later) <= 1 for later in reach(path_graph([20] * len(order)), order))
    assert minimum_fill(path_graph([50, 2000, 10]))[0] == 1
    assert fronts(path_graph([50, 2000, 10]))[0].diagonal


def test_a_compressed_block_has_the_same_gram_matrix():
    rng = np.random.default_rng(0)
    upper, lower = (
        {3: rng.normal(size=(20, 4)) * 1e200},
        {1: rng.normal(size=(20, 2)) * 1e-200, 5: rng.normal(size=(20, 3))},
    )
    a, b = compressed(upper, lower)
    before, after = [*upper.values(), *lower.values()], [*a.values(), *b.values()]
    assert all(block.shape[0] == 9 for block in after)
    scales = [1e200, 1e-200, 1.0]
    old, new = (np.hstack([x / s for x, s in zip(part, scales, strict=True)]) for part in (before, after))
    assert new.T @ new == pytest.approx(old.T @ old, rel=1e-12, abs=1e-12)
    assert compressed({0: np.ones((2, 3))}, {})[0][0].shape == (2, 3)


def test_other_units_are_a_congruence():
    program = random_program(5)
    rng = np.random.default_rng(0)
    signals = [rng.integers(-3, 4, size) for size in program.sizes]
    powers = rng.integers(-2, 3, program.unknowns)
    changed, units = scaled(program, signals, powers)
    y = rng.uniform(1, 2, program.unknowns)
    matrices = []
    for item, point in ((program, np.ldexp(y, powers)), (changed, y)):
        terms, constant = dense(item)
        matrices.append(constant + np.einsum("p,pab->ab", point, terms))
    factor = np.ldexp(1.0, np.concatenate(signals))
    assert np.array_equal(matrices[1] == 0, matrices[0] == 0)
    assert matrices[1] == pytest.approx(matrices[0] * np.outer(factor, factor), rel=1e-12)
    assert np.ldexp(changed.cost @ y, units.power) == pytest.approx(program.cost @ np.ldexp(y, powers), rel=1e-14)
