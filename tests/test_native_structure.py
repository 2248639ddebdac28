"""The native backend on every structure: residual graphs, tied multipliers, l1 outputs, inequalities stated by hand."""

from __future__ import annotations

import importlib.util
import itertools
import pathlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from lipmodel_formulations.geolip import GeoLIP
from lipmodel_formulations.lipsdp import LipSDPLayer, LipSDPNeuron

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.backends.base import Point, SolveOptions
from lipmodel.backends.native import blocks, general, ordering
from lipmodel.backends.native.blocks import BlockBarrier
from lipmodel.backends.native.launch import launched
from lipmodel.backends.native.ordering import Graph, fronts, minimum_fill
from lipmodel.backends.native.program import NO_SIGNAL, Program, Rows, compressed, plain_rows
from lipmodel.backends.native.pruning import embedded, pruned
from lipmodel.backends.native.reading import read_program
from lipmodel.backends.native.structure import structure_of
from lipmodel.backends.native.units import scaled
from lipmodel.bridges.program import cone_program
from lipmodel.model.terms import Congruence
from lipmodel.network.increments import IncrementSystem, chain_of, increments
from lipmodel.network.linear import Dense
from lipmodel.network.ops import Add, Concat
from lipmodel.spec import Spec
from lipmodel.testing.networks import KINDS, MIXED, RELU, _Sketch, formal_constant, random_system

EXAMPLE = pathlib.Path(__file__).resolve().parents[1] / "examples" / "custom_formulation.py"


def grouped() -> Any:
    """The formulation of the example, multipliers shared by three neighbours."""
    if "custom_formulation" not in sys.modules:
        found = importlib.util.spec_from_file_location("custom_formulation", EXAMPLE)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules["custom_formulation"] = module
        found.loader.exec_module(module)
    return sys.modules["custom_formulation"].GroupedLipSDP(group=3)


FORMULATIONS: dict[str, Any] = {
    "neuron": lambda s: LipSDPNeuron().build(s, Spec(input_norm="2", output_norm="2")),
    "layer": lambda s: LipSDPLayer().build(s, Spec(input_norm="2", output_norm="2")),
    "grouped": lambda s: grouped().build(s, Spec(input_norm="2", output_norm="2")),
    **{
        f"geolip-{p}-{q}": lambda s, p=p, q=q: GeoLIP().build(s, Spec(input_norm=p, output_norm=q))
        for p, q in itertools.product(("2", "inf"), ("1", "2"))
    },
}


# ---------------------------------------------------------------------------------------------------------------------
# Dense algebra to compare with


def dense(program: Program) -> tuple[np.ndarray, np.ndarray]:
    """The coefficients of the unknowns, shape (unknowns, D, D), and the constant."""
    starts = np.cumsum([0, *program.sizes])
    order = int(starts[-1])
    terms = []
    for rows in program.rows:
        for j in range(rows.size):
            e, m = np.zeros(order), np.zeros(order)
            if rows.signal != NO_SIGNAL:
                e[starts[rows.signal] + rows.index[j]] = 1
            for s, block in rows.pre.items():
                m[starts[s] : starts[s + 1]] = block[j]
            u, r = e - rows.alpha[j] * m, e - rows.beta[j] * m
            terms.append(np.outer(u, r) + np.outer(r, u))
    stacked = np.array(terms).reshape(len(terms), order, order)
    constant = np.tensordot(program.shift, stacked, axes=1)
    for (a, b), block in program.constant.items():
        constant[starts[a] : starts[a + 1], starts[b] : starts[b + 1]] += block
        if a != b:
            constant[starts[b] : starts[b + 1], starts[a] : starts[a + 1]] += block.T
    return np.tensordot(program.weights.toarray(), stacked, axes=(0, 0)), constant


def random_program(seed: int) -> Program:
    """A program of random shape and weights, feasible or not: ties, rows without e, rows that read their own signal."""
    rng = np.random.default_rng(seed)
    sizes = [int(n) for n in rng.integers(2, 7, rng.integers(3, 8))]
    last = len(sizes) - 1
    rows, weights, shifts = [plain_rows(0, sizes[0])], [], []
    columns = [np.arange(sizes[0]) if seed % 2 else np.zeros(sizes[0], dtype=int)]
    for s in range(1, last):
        low = rng.choice([-1.0, -0.5, 0.0, 0.1], sizes[s]) * (seed % 3 != 1)
        read = [j for j in range(s) if j == s - 1 or rng.random() < 0.4] + ([s] if seed % 7 == 3 else [])
        rows.append(
            Rows(
                signal=s,
                index=np.arange(sizes[s]),
                alpha=low,
                beta=np.maximum(low + 0.3, rng.choice([0.8, 1.0], sizes[s])),
                pre={j: 0.3 * rng.normal(size=(sizes[s], sizes[j])) / np.sqrt(sizes[j]) for j in read},
            )
        )
        columns.append(np.arange(sizes[s]) if seed % 2 else rng.integers(0, 2, sizes[s]))
    if seed % 5 == 0:
        squares = {1: 0.1 * rng.normal(size=(2, sizes[1])), 0: 0.1 * rng.normal(size=(2, sizes[0]))}
        rows.append(
            Rows(signal=NO_SIGNAL, index=np.zeros(2, dtype=int), alpha=np.ones(2), beta=np.ones(2), pre=squares)
        )
        columns.append(np.arange(2))
    rows.append(plain_rows(last, sizes[last]))
    columns.append(np.arange(sizes[last]) if seed % 4 > 1 else np.zeros(0, dtype=int))
    count = 0
    for group, column in zip(rows, columns, strict=True):
        varies = len(column) > 0
        factor = rng.uniform(0.5, 2.0, group.size) * (-0.1 if group.signal == NO_SIGNAL else 1.0)
        entries = (factor[: len(column)], (np.arange(len(column)), count + column))
        weights.append(sp.csr_array(entries, shape=(group.size, 100)))
        shifts.append(np.zeros(group.size) if varies else np.full(group.size, 0.5))
        count += int(column.max()) + 1 if varies else 0
    coupled = [s for s in range(last) if s == last - 1 or rng.random() < 0.3]
    return Program(
        sizes=tuple(sizes),
        rows=tuple(rows),
        weights=sp.csr_array(sp.vstack(weights, format="csr")[:, :count]),
        shift=np.concatenate(shifts),
        constant={(s, last): 0.3 * rng.normal(size=(sizes[s], sizes[last])) / np.sqrt(sizes[s]) for s in coupled},
        cost=np.ones(count),
        nonnegative=np.ones(count, dtype=bool),
        root=False,
    )


def is_definite(matrix: np.ndarray) -> bool:
    """Positive definite after scaling to a unit diagonal, in floating point."""
    diagonal = np.diag(matrix)
    if np.any(diagonal <= 0):
        return False
    return bool(np.linalg.eigvalsh(matrix / np.sqrt(np.outer(diagonal, diagonal)))[0] > 0)


def is_exactly_definite(program: Program, y: np.ndarray) -> bool:
    """Positive definite in rational arithmetic, everything built from the stored doubles."""
    starts = [int(n) for n in np.cumsum([0, *program.sizes])]
    order = starts[-1]
    matrix = [[Fraction(0)] * order for _ in range(order)]
    dense_weights = program.weights.toarray()
    at = 0
    for rows in program.rows:
        for j in range(rows.size):
            t = sum(
                (Fraction(k) * Fraction(x) for k, x in zip(dense_weights[at], y.tolist(), strict=True)), Fraction(0)
            )
            t += Fraction(program.shift[at])
            at += 1
            m = {starts[s] + i: Fraction(x) for s, block in rows.pre.items() for i, x in enumerate(block[j].tolist())}
            e = {starts[rows.signal] + int(rows.index[j]): Fraction(1)} if rows.signal != NO_SIGNAL else {}
            sides = []
            for slope in (Fraction(rows.alpha[j]), Fraction(rows.beta[j])):
                side = dict(e)
                for i, x in m.items():
                    side[i] = side.get(i, Fraction(0)) - slope * x
                sides.append(side)
            for a, x in sides[0].items():
                for b, z in sides[1].items():
                    matrix[a][b] += t * x * z
                    matrix[b][a] += t * x * z
    for (a, b), block in program.constant.items():
        for i, row in enumerate(block.tolist()):
            for k, x in enumerate(row):
                matrix[starts[a] + i][starts[b] + k] += Fraction(x)
                if a != b:
                    matrix[starts[b] + k][starts[a] + i] += Fraction(x)
    for k in range(order):
        if matrix[k][k] <= 0:
            return False
        for i in range(k + 1, order):
            factor = matrix[i][k] / matrix[k][k]
            if factor:
                for j in range(k + 1, order):
                    matrix[i][j] -= factor * matrix[k][j]
    return True


# ---------------------------------------------------------------------------------------------------------------------
# The barrier


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


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def weighted(system: IncrementSystem, name: str) -> lm.Model:
    """Models with terms that no rule covers; every one of them bounds the constant."""
    m = lm.Model(name)
    price: Any
    if name == "scalar":
        dual = m.signal("dual", system.output.size)
        kappa = m.variable("kappa", system.input.size, nonnegative=True)
        rho = m.variable("rho", nonnegative=True)
        form = lm.inner(system.input, system.input, weight=kappa) - 2 * lm.inner(dual, system.output)
        form += lm.inner(dual, dual, weight=(2 * rho - kappa.sum()).spread(system.output.size))
    else:
        ball, price = m.ball(system.input, "inf" if name == "overlap" else "2")
        form = ball - lm.inner(system.output, system.output)
    rng = np.random.default_rng(7)
    common = m.variable("common", nonnegative=True) if name == "common" else None
    for act in system.activations:
        if name == "by-hand":
            t = m.multiplier(act)
            form -= lm.inner(act.post - act.alpha * act.pre, act.beta * act.pre - act.post, weight=2 * t)
        elif name == "overlap":
            k = rng.uniform(0.2, 3, (act.size, 2)) * (rng.random((act.size, 2)) < 0.7)
            k[:, 0] += 0.1
            form -= lm.qc.slope_restricted(act, k @ m.variable("theta", 2, nonnegative=True))
        elif name == "common":
            assert common is not None
            form -= lm.qc.slope_restricted(act, common.spread(act.size) + 0.1 * m.multiplier(act))
        elif name == "shifted":
            form -= lm.qc.slope_restricted(act, m.multiplier(act) + 0.5)
        elif name == "free":
            form -= lm.qc.slope_restricted(act, m.variable("t", act.size))
        else:
            form -= lm.qc.slope_restricted(act, m.multiplier(act))
            if name == "extra":
                form -= lm.inner(act.post, act.pre, weight=m.variable("s", act.size, nonnegative=True))
    m.require(form >= 0)
    if name == "scalar":
        m.minimize(rho)
    else:
        m.minimize(2 * price, bound="sqrt")
    return m


BY_HAND = ("by-hand", "overlap", "common", "shifted", "free", "extra", "scalar")


def expanded(model: lm.Model, y: np.ndarray) -> np.ndarray:
    """The matrix of the model's inequality at y, from its coefficients."""
    (block,) = cone_program(model).psd
    values = np.append(y, 1.0)[block.var] * block.value
    lower = np.zeros((block.order, block.order))
    np.add.at(lower, (block.row, block.col), values)
    return lower + np.tril(lower, -1).T


@pytest.mark.parametrize("name", [*FORMULATIONS, *BY_HAND])
@pytest.mark.parametrize("kind", ["mixed", "residual", "concat", "trailing"])
def test_a_program_is_the_inequality_of_its_model(name, kind):
    system = random_system(kind, 1, inputs=4, outputs=3)
    model = FORMULATIONS[name](system) if name in FORMULATIONS else weighted(system, name)
    program = read_program(model)
    y = np.random.default_rng(0).normal(size=program.unknowns)
    terms, constant = dense(program)
    matrix = constant + np.einsum("p,pab->ab", y, terms)
    expected = expanded(model, y)
    own = len(expected)
    if len(matrix) > own:  # slack, to be eliminated
        corner = matrix[own:, own:]
        matrix = matrix[:own, :own] - matrix[:own, own:] @ np.linalg.solve(corner, matrix[own:, :own])
    assert matrix == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert program.cost @ y == pytest.approx(float(model.objective.value(split(model, y))[0]))


def split(model: lm.Model, y: np.ndarray) -> dict[Any, np.ndarray]:
    ends = np.cumsum([v.size for v in model.variables])[:-1]
    return dict(zip(model.variables, np.split(y, ends), strict=True))


def test_slopes_stated_by_hand_are_recognised():
    system = random_system("residual", 2)
    for model in (FORMULATIONS["neuron"](system), weighted(system, "by-hand")):
        found = structure_of(read_program(model))
        assert found is not None
        assert len(found.activations) == len(system.activations)
        assert found.extra == ()
    assert structure_of(read_program(weighted(system, "extra"))).extra != ()
    assert structure_of(read_program(weighted(system, "shifted"))) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("linear", "constraints besides"),
        ("two", "constraints besides"),
        ("congruence", "not a sum of weighted products"),
        ("offset", "constant"),
        ("reward", "rewards"),
    ],
)
def test_models_of_another_shape_are_refused_with_the_reason(change, reason):
    system = random_system("residual", 0)
    model = FORMULATIONS["neuron"](system)
    kappa = model.variables[0]
    expression = lm.Expression.of(kappa) if hasattr(lm, "Expression") else model.objective
    if change == "linear":
        model.require(expression >= 1.0)
    elif change == "two":
        model.require(lm.inner(system.input, system.input, weight=expression.spread(system.input.size)) >= 0)
    elif change == "congruence":
        x = model.symmetric("X", system.input.size)
        term = Congruence(form=system.input, matrix=x)
        function = type(model.matrix_constraints[0])(terms=(*model.matrix_constraints[0].terms, term))
        model.constraints.clear()
        model.require(function >= 0)
    elif change == "offset":
        model.minimize(expression + 1.0, bound="sqrt")
    else:
        model.minimize(expression - model.variable("y", nonnegative=True), bound="sqrt")
    refusal = backend("native").refuses(model)
    assert refusal is not None
    assert reason in refusal
    with pytest.raises(lm.UsageError, match=reason):
        backend("native").solve(model, SolveOptions())
    assert backend("native").refuses(FORMULATIONS["neuron"](system)) is None


# ---------------------------------------------------------------------------------------------------------------------
# Solutions


def solved(model: lm.Model, **options: Any) -> Point:
    return backend("native").solve(model, SolveOptions(**{"tol": 1e-6, **options}))


def unknowns(model: lm.Model, point: Point) -> np.ndarray:
    assert point.values is not None
    return np.concatenate([point.values[v] for v in model.variables])


def gap(model: lm.Model, point: Point) -> float:
    assert point.objective is not None
    assert point.lower is not None
    return 1 - model.bound_of(max(point.lower, 0.0)) / model.bound_of(point.objective)


def clarabel_optimum(program: Program, y: np.ndarray) -> float | None:
    """The optimum from an interior point code on the dense inequality, scaled by a feasible point."""
    import clarabel

    terms, constant = dense(program)
    y = 1.05 * np.abs(y)
    matrix = constant + np.einsum("p,pab->ab", y, terms)
    scale = 1 / np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))
    level = float(program.cost @ y)
    upper = np.triu_indices(len(matrix))
    order = np.lexsort(upper)
    rows, columns = upper[0][order], upper[1][order]
    weight = np.where(rows == columns, 1.0, np.sqrt(2.0))
    coefficients = (terms * y[:, None, None] * scale)[:, rows, columns].T * weight[:, None]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_rel = settings.tol_feas = 1e-9
    positive = np.flatnonzero(program.nonnegative)
    found = clarabel.DefaultSolver(
        sp.csc_matrix((y.size, y.size)),
        program.cost * y / level,
        sp.csc_matrix(np.vstack([-coefficients, -np.eye(y.size)[positive]])),
        np.concatenate([(constant * scale)[rows, columns] * weight, np.zeros(positive.size)]),
        [clarabel.PSDTriangleConeT(len(matrix)), clarabel.NonnegativeConeT(positive.size)],
        settings,
    ).solve()
    return found.obj_val * level if str(found.status) == "Solved" else None


def hard_system(seed: int, widest: int = 9) -> IncrementSystem:
    """Graphs with branches, badly scaled, heavy tailed, sparse, nonnegative, dead; slopes of any sign."""
    s = _Sketch(seed, int(np.random.default_rng(seed).integers(1, widest)))
    rng = s.rng
    outputs = int(rng.integers(1, 6))
    choices = (RELU, MIXED, [("Tanh", {})], [("Abs", {})], [("LeakyRelu", {"alpha": 0.01})])[seed % 5]
    style = ("plain", "rows", "heavy", "sparse", "nonnegative", "layers", "dead")[seed % 7]

    def linear(node: str, rows: int) -> str:
        w = rng.standard_normal((rows, s.size(node))) / np.sqrt(s.size(node))
        if style == "rows":
            w = w * 10.0 ** rng.uniform(-4, 4, (rows, 1))
        elif style == "heavy":
            w = rng.standard_t(1.2, w.shape)
        elif style == "sparse":
            w = w * (rng.random(w.shape) < 0.3)
        elif style == "nonnegative":
            w = np.abs(w)
        elif style == "layers":
            w = w * 10.0 ** rng.uniform(-3, 3)
        elif style == "dead":
            w[rng.random(rows) < 0.2] = 0
            w[:, rng.random(w.shape[1]) < 0.2] = 0
        return s.linear(node, rows, weights=w)

    shape = ("residual", "closed", "concat", "skips", "chain")[(seed // 7) % 5]
    depth, width = int(rng.integers(1, 4)), int(rng.integers(2, widest))
    if shape in ("residual", "closed", "chain"):
        node = linear(s.x, width)
        for _ in range(depth):
            branch = linear(s.activate(linear(node, int(rng.integers(1, widest))), choices), width)
            node = branch if shape == "chain" else s.add(Add(), [node, branch])
            node = s.activate(node, choices) if shape == "closed" else node
        return increments(s.finish(linear(node, outputs)))
    seen = [s.x]
    for _ in range(depth):
        new = int(rng.integers(1, widest))
        if shape == "skips":
            parts = [linear(node, new) for node in seen]
            joined = s.add(Add(), parts) if len(parts) > 1 else parts[0]
        else:
            parts = seen[-2:]
            order = rng.permutation(sum(s.size(p) for p in parts))
            cuts = np.cumsum([s.size(p) for p in parts])[:-1]
            joined = s.add(Concat(positions=tuple(np.split(order, cuts))), parts) if len(parts) > 1 else parts[0]
            joined = linear(joined, new)
        seen.append(s.activate(joined, choices))
    return increments(s.finish(s.add(Add(), [linear(node, outputs) for node in seen])))


def hard_models(seeds: range, widest: int = 9) -> Iterator[tuple[str, lm.Model]]:
    names = list(FORMULATIONS)
    for seed in seeds:
        system = hard_system(seed, widest)
        if system.output.blocks:
            for name in (names[seed % 7], names[(seed + 3) % 7]):
                yield f"{seed} {name}", FORMULATIONS[name](system)


def is_zero(model: lm.Model, point: Point) -> bool:
    """Whether the optimum is zero: then no relative gap closes."""
    assert point.objective is not None
    return model.bound_of(point.objective) < 1e-12


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
# Dead, constant, narrow, extreme


def dead_system(*, constant: bool = False) -> IncrementSystem:
    """A residual network with neurons that nothing reaches and neurons that reach nothing, which stay in the system."""
    s = _Sketch(11, 3)
    first, branch, back, last = (s.rng.standard_normal(shape) for shape in ((6, 3), (5, 6), (6, 5), (2, 6)))
    first[1] = 0
    branch[:, 2] = 0
    branch[3] = 0
    back[:, 4] = 0
    back[1] = 0
    last[:, 5] = 0
    if constant:
        last[:, [0, 2, 3, 4]] = 0
    node = s.activate(s.linear(s.x, 6, weights=first))
    again = s.linear(s.activate(s.linear(node, 5, weights=branch), MIXED), 6, weights=back)
    node = s.activate(s.add(Add(), [node, again]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lipmodel.network.increments.without_dead_neurons", lambda system: system)
        return increments(s.finish(s.linear(node, 2, weights=last)))


@pytest.mark.parametrize("name", FORMULATIONS)
def test_dead_neurons_get_harmless_multipliers(name):
    model = FORMULATIONS[name](dead_system())
    program = read_program(model)
    small = pruned(program)
    tied = name in ("layer", "grouped")
    assert tied or sum(int((~mask).sum()) for mask in small.kept) >= 4
    point = solved(model)
    assert point.termination == "optimal"
    assert gap(model, point) <= 1e-6
    y = unknowns(model, point)
    terms, constant = dense(program)
    assert is_definite(constant + np.einsum("p,pab->ab", y, terms))
    again = solved(FORMULATIONS[name](dead_system()))
    assert again.objective == point.objective


@pytest.mark.parametrize("name", ["neuron", "geolip-2-1", "geolip-inf-1", "geolip-inf-2"])
def test_a_constant_network_has_the_value_zero_almost(name):
    model = FORMULATIONS[name](dead_system(constant=True))
    point = solved(model)
    assert point.termination == "optimal"
    assert is_zero(model, point)
    terms, constant = dense(read_program(model))
    assert is_definite(constant + np.einsum("p,pab->ab", unknowns(model, point), terms))


def test_entries_that_were_taken_out_come_back_feasible():
    for seed in range(6, 120, 7):  # the sparse ones and those with dead neurons
        for name in ("neuron", "grouped"):
            program = read_program(FORMULATIONS[name](hard_system(seed)))
            small = pruned(program)
            if not small.unknowns.any() or small.unknowns.all():
                continue
            start = launched(small.program, structure_of(small.program), np.inf)
            assert start is not None
            y = np.ldexp(start.point(start.y), start.units.unknowns)
            assert general.feasible(small.program, y)
            assert general.feasible(program, embedded(program, small, y))


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


@pytest.mark.parametrize("size", [1e-140, 1e-60, 1e60, 1e120])
def test_numbers_at_the_ends_of_the_double_range_do_no_harm(size):
    values = []
    for scale in (1.0, size):
        s = _Sketch(1, 3)
        first = s.activate(s.linear(s.x, 5, scale=scale))
        second = s.activate(s.linear(first, 5))
        system = increments(s.finish(s.add(Add(), [s.linear(second, 3), s.linear(first, 3)])))
        for name in ("layer", "geolip-inf-1"):
            model = FORMULATIONS[name](system)
            point = solved(model)
            assert gap(model, point) <= 1e-6
            values.append(model.bound_of(point.objective) / scale)
    assert values[2:] == pytest.approx(values[:2], rel=2e-6)


def test_a_hundred_blocks_neither_overflow_nor_underflow():
    s = _Sketch(2, 3)
    node = s.x
    for k in range(100):
        gain = 1e3 if k % 2 else 1e-3
        hidden = s.activate(s.linear(node, 3, scale=gain))
        node = s.activate(s.add(Add(), [node, s.linear(hidden, 3, scale=0.4 / gain)]))
    model = FORMULATIONS["neuron"](increments(s.finish(s.linear(node, 1))))
    point = solved(model, max_iterations=5)
    program = read_program(model)
    values = unknowns(model, point)
    fixed = replace(program, weights=program.weights[:, :0], shift=program.weights @ values + program.shift)
    assert is_definite(dense(fixed)[1])


def test_narrow_slopes_are_widened_and_give_no_lower_bound():
    s = _Sketch(3, 3)
    hidden = s.activate(s.linear(s.x, 4), [("LeakyRelu", {"alpha": 1.0 - 1e-9})])
    system = increments(s.finish(s.add(Add(), [s.linear(hidden, 2), s.linear(s.x, 2)])))
    model = FORMULATIONS["neuron"](system)
    point = solved(model)
    assert (point.termination, point.lower) == ("inaccurate", 0.0)
    assert model.bound_of(point.objective) == pytest.approx(formal_constant(system, "2", "2"), rel=1e-3)


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
