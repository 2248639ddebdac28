"""The low-rank ascent on graphs: gradients, feasibility on both sides, known values, what it does not take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from native_programs import FORMULATIONS, dense, weighted

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.backends.base import SolveOptions
from lipmodel.backends.native import ascent, ascent_graph, general, lowrank, portfolio
from lipmodel.backends.native.ascent import Ascended
from lipmodel.backends.native.ascent_graph import NotLowRank, ascend_program, program_dual
from lipmodel.backends.native.core import single_thread
from lipmodel.backends.native.follower import follow_path
from lipmodel.backends.native.launch import Launch, launched
from lipmodel.backends.native.program import Program, Rows, plain_rows
from lipmodel.backends.native.reading import read_program
from lipmodel.backends.native.structure import Structure, structure_of
from lipmodel.network.conv import Conv
from lipmodel.network.increments import increments
from lipmodel.testing.networks import KINDS, MIXED, _Sketch, random_system

Start = tuple[Launch, Structure]


def start_of(program: Program) -> Start:
    structure = structure_of(program)
    assert structure is not None
    start = launched(program, structure, math.inf)
    assert start is not None
    return start, structure


def small_start(name: str, kind: str, seed: int = 3, outputs: int = 3) -> Start:
    """As `solve_program` comes to it: neurons that do nothing are gone, and signals reduced."""
    found: list[Start] = []

    def take(start: Launch, structure: Structure, **_: Any) -> Any:
        found.append((start, structure))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(general, "solved_program", take)
        general.solve_program(read_program(FORMULATIONS[name](random_system(kind, seed, outputs=outputs))))
    return found[0]


def two_ended(seed: int, *, free: bool, slopes: str = "mixed") -> Program:
    """Two inputs, two activations with shared multipliers, two far ends: dual signals (free) or constant slack.

    Signals: 0 and 5 are the far ends, 1 and 4 the inputs, 2 and 3 the activations.
    """
    rng = np.random.default_rng(seed)
    sizes = (2, 3, 5, 4, 3, 3)

    def block(rows: int, columns: int) -> np.ndarray:
        return rng.normal(size=(sizes[rows], sizes[columns]))

    def activation(s: int, *reads: int) -> Rows:
        low = rng.uniform(-1, 0.5, sizes[s]) if slopes == "mixed" else np.zeros(sizes[s])
        high = low + rng.uniform(0.2, 1.5, sizes[s]) if slopes == "mixed" else np.ones(sizes[s])
        pre = {r: block(s, r) for r in reads}
        return Rows(signal=s, index=np.arange(sizes[s]), alpha=low, beta=high, pre=pre)

    groups = [
        (plain_rows(1, 3), [0, 0, 0]),
        (plain_rows(4, 3), [1, 2, 1]),
        (activation(2, 4, 1), [3, 4, 3, 4, 4]),
        (activation(3, 1, 2), [5, 6, 7, 5]),
        (plain_rows(0, 2), [8, 8]),
        (plain_rows(5, 3), [9, 10, 11]),
    ]
    owner = np.array([u for _, own in groups for u in own])
    entries = np.where(np.isin(owner, (3, 4)), rng.uniform(0.5, 2, owner.size), np.where(owner < 3, 0.5, 1.0))
    shift = np.zeros(owner.size)
    if not free:
        shift[owner >= 8] = rng.uniform(0.3, 1.0, int(np.sum(owner >= 8)))
        entries[owner >= 8] = 0
    weights = sp.csr_array((entries, (np.arange(owner.size), owner)), shape=(owner.size, 12))
    cost = np.array([1.0, 0.7, 1.3, 0, 0, 0, 0, 0, 0.5, 1.0, 2.0, 1.5])
    weights.eliminate_zeros()
    unknowns = 12 if free else 8
    return Program(
        sizes=sizes,
        rows=tuple(rows for rows, _ in groups),
        weights=sp.csr_array(weights[:, :unknowns]),
        shift=shift,
        constant={(0, 2): block(0, 2), (0, 3): block(0, 3), (3, 5): block(3, 5), (1, 5): block(1, 5)},
        cost=cost[:unknowns],
        nonnegative=np.ones(unknowns, dtype=bool),
        root=not free,
    )


def starts() -> Iterator[Any]:
    for free, slopes in itertools.product((True, False), ("mixed", "relu")):
        yield pytest.param(
            lambda f=free, s=slopes: start_of(two_ended(1, free=f, slopes=s)), id=f"ends-{free}-{slopes}"
        )
    for name, kind in itertools.product(FORMULATIONS, KINDS):
        yield pytest.param(lambda n=name, k=kind: small_start(n, k), id=f"{name}-{kind}")


STARTS = list(starts())


def run(start: Start, tol: float = 1e-6, **changed: Any) -> Ascended:
    limits: dict[str, Any] = {"deadline": math.inf, "max_iterations": 1000, "report": lambda *_: True, "alone": True}
    with single_thread(), np.errstate(all="ignore"):
        return ascend_program(*start, tol=tol, **(limits | changed))


def gap(launch: Launch, found: Ascended) -> float:
    assert found.y is not None
    ratio = found.lower / float(launch.barrier.cost @ found.y)
    return 1 - (math.sqrt(ratio) if launch.barrier.root else ratio)


def smallest_eigenvalue(launch: Launch, y: np.ndarray) -> float:
    """Of the whole inequality at y, assembled from its definition and scaled to a unit diagonal."""
    terms, constant = dense(launch.program)
    matrix = constant + np.einsum("p,pab->ab", launch.point(y), terms)
    root = 1 / np.sqrt(np.diag(matrix))
    return float(np.linalg.eigvalsh(matrix * root * root[:, None])[0])


def random_factor(s: lowrank.Signals, columns: int) -> np.ndarray:
    factor = np.random.default_rng(2).normal(size=(s.rows, columns))
    return factor / lowrank.norms(s, factor)[:, None]


@pytest.mark.parametrize("start", STARTS)
def test_gradient(start):
    s = program_dual(*start()).signals
    factor, move = random_factor(s, 3), np.random.default_rng(1).normal(size=(s.rows, 3))
    gradient, _ = lowrank.gradient(s, lowrank.evaluate(s, factor))
    ahead, behind = (lowrank.evaluate(s, factor + h * move).f for h in (1e-6, -1e-6))
    assert (ahead - behind) / 2e-6 == pytest.approx(float(np.vdot(gradient, move)), rel=1e-6)


@pytest.mark.parametrize("start", STARTS)
def test_factors_are_primal_feasible(start):
    """Signals of any factor, built here from the program's own rows, meet every price, and have the value of f."""
    launch, structure = start()
    program, spans = launch.program, launch.program.spans
    dual = program_dual(launch, structure)
    factor = random_factor(dual.signals, 4)
    f = lowrank.evaluate(dual.signals, factor).f
    signals: list[Any] = [None] * len(program.sizes)
    at = 0
    for s, g in structure.inputs.items():
        part = program.weights[spans[g]]
        signals[s] = np.sqrt(program.cost[part.indices] / part.data / 2)[:, None] * factor[at : at + program.sizes[s]]
        at += program.sizes[s]
    for g in structure.activations:
        rows, part = program.rows[g], program.weights[spans[g]]
        v = sum(m @ signals[s] for s, m in rows.pre.items())
        centre, radius = (rows.alpha + rows.beta) / 2, (rows.beta - rows.alpha) / 2
        room = np.bincount(part.indices, part.data * radius**2 * (v**2).sum(axis=1), program.unknowns)[part.indices]
        push = np.sqrt(room / part.data)[:, None] * factor[at : at + rows.size]
        signals[rows.signal] = centre[:, None] * v + push
        at += rows.size
    for d, g in (structure.duals or structure.slack).items():
        output = sum(
            (block if b == d else block.T).T @ signals[a if b == d else b]
            for (a, b), block in program.constant.items()
            if d in (a, b)
        )
        weight = 2 * program.shift[spans[g]]
        if structure.duals:
            part = program.weights[spans[g]]
            squares = np.zeros(program.unknowns)
            for other in structure.duals:  # entries of one unknown may stand in several signals
                assert other == d or not set(program.weights[spans[structure.duals[other]]].indices) & set(part.indices)
            np.add.at(squares, part.indices, (output**2).sum(axis=1) / part.data)
            weight = 2 * part.data * np.sqrt(squares / (2 * program.cost.clip(1e-300)))[part.indices]
        signals[d] = -output / weight[:, None]
    stacked = np.vstack(signals)
    terms, constant = dense(program)
    used = np.einsum("pab,ak,bk->p", terms, stacked, stacked)
    scale = float(np.abs(program.cost).max())
    assert np.all(used <= program.cost + 1e-10 * scale)
    objective = -float(np.einsum("ab,ak,bk->", constant, stacked, stacked))
    assert objective == pytest.approx(2 * f if structure.duals else f**2, rel=1e-9)
    assert objective == pytest.approx(launch.objective(dual.lower(f)), rel=1e-9)


@pytest.mark.parametrize("start", STARTS)
def test_both_sides_meet_where_the_path_follower_ends(start):
    launch, structure = start()
    found = run((launch, structure))
    assert found.status == "optimal"
    assert 0 <= gap(launch, found) <= 1e-6
    assert smallest_eigenvalue(launch, found.y) > 0
    limits: dict[str, Any] = {"tol": 1e-8, "deadline": math.inf, "max_iterations": 100, "report": lambda *_: True}
    with single_thread(), np.errstate(all="ignore"):
        other = follow_path(launch.barrier, launch.y, fade=not launch.barrier.root, **limits)
    assert other.status == "optimal"
    assert found.lower == pytest.approx(float(launch.barrier.cost @ other.y), rel=3e-6)
    assert found.lower <= float(launch.barrier.cost @ other.y) * (1 + 1e-9)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-9])
@pytest.mark.parametrize("free", [True, False])
def test_tolerance(free, tol):
    start = start_of(two_ended(2, free=free))
    found = run(start, tol)
    assert found.status == "optimal"
    assert gap(start[0], found) <= tol


def test_without_a_balance_between_the_ends():
    launch, structure = start_of(two_ended(3, free=True))
    assert launch.balance is not None
    balanced = run((launch, structure))
    plain = Launch(
        units=launch.units,
        program=launch.program,
        barrier=general.BlockBarrier(launch.program, np.zeros(launch.program.unknowns, dtype=bool)),
        y=np.zeros(launch.program.unknowns),
    )
    found = run((plain, structure))
    assert found.status == "optimal"
    assert gap(plain, found) <= 1e-6
    assert found.lower == pytest.approx(launch.objective(balanced.lower), rel=3e-6)


def sketch_model(name: str, seed: int, width: int, depth: int) -> lm.Model:
    s = _Sketch(seed, width)
    node = s.linear(s.x, width)
    for _ in range(depth):
        branch = s.linear(s.activate(s.linear(node, width), MIXED), width, scale=0.4)
        node = s.activate(s.add(lm.network.ops.Add(), [node, branch]))
    model = FORMULATIONS[name](increments(s.finish(s.linear(node, 3))))
    assert isinstance(model, lm.Model)
    return model


@pytest.mark.parametrize("name", FORMULATIONS)
def test_residual_networks_end_without_the_path_follower(monkeypatch, name):
    model = sketch_model(name, 4, 10, 4)
    expected = backend("native").solve(model, SolveOptions(tol=1e-8))

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the path follower ran")

    monkeypatch.setattr(portfolio, "follow_path", refuse)
    found = backend("native").solve(model, SolveOptions(tol=1e-6))
    assert found.termination == "optimal"
    assert expected.lower is not None
    assert expected.lower * (1 - 1e-9) <= found.objective <= expected.objective * (1 + 3e-6)


def test_gives_way_to_the_path_follower(monkeypatch):
    """Where Hessians are cheap the run ends early, with a point to go on from, and the two together are optimal."""
    monkeypatch.setattr(ascent, "OVERHEAD", 1e9)
    monkeypatch.setattr(ascent, "HESSIANS", 0.0)
    monkeypatch.setattr(ascent, "PATIENCE", 2)
    model = sketch_model("neuron", 5, 10, 6)
    program = read_program(model)
    found = run(start_of(program), 1e-10, alone=False)
    assert found.status == "inaccurate"
    assert found.iterations < run(start_of(program), 1e-10).iterations
    point = backend("native").solve(model, SolveOptions(tol=1e-8))
    assert point.termination == "optimal"
    assert point.lower is not None
    assert model.bound_of(point.lower) >= model.bound_of(point.objective) * (1 - 1e-8)


@pytest.mark.parametrize(
    ("name", "reason"), [("overlap", "several unknowns"), ("common", "several unknowns"), ("extra", "besides")]
)
def test_what_it_does_not_take(name, reason):
    program = read_program(weighted(random_system("residual", 2), name))
    launch, structure = start_of(program)
    with pytest.raises(NotLowRank, match=reason):
        run((launch, structure))
    assert general.solve_program(program).status == "optimal"


def test_multipliers_with_a_price_or_shared_and_neurons_without_an_input():
    launch, structure = start_of(two_ended(6, free=False))
    priced = replace(launch.program, cost=np.ones(launch.program.unknowns))
    with pytest.raises(NotLowRank, match="price"):
        program_dual(replace(launch, program=priced), structure)
    weights = launch.program.weights.toarray()
    weights[:, 3] += weights[:, 5]
    weights[:, 5] = 0
    shared = replace(launch.program, weights=sp.csr_array(weights))
    with pytest.raises(NotLowRank, match="across"):
        program_dual(replace(launch, program=shared), structure)
    rows = list(launch.program.rows)
    rows[structure.activations[0]] = replace(rows[2], pre={s: 0 * m for s, m in rows[2].pre.items()})
    with pytest.raises(NotLowRank, match="nothing"):
        program_dual(replace(launch, program=replace(launch.program, rows=tuple(rows))), structure)


def test_levels_fall_along_every_edge():
    launch, structure = small_start("neuron", "skips")
    levels, program = program_dual(launch, structure).levels, launch.program
    of = {g: levels[program.weights[program.spans[g]].indices] for g in range(len(program.rows))}
    owner = {program.rows[g].signal: g for g in (*structure.activations, *structure.inputs.values())}
    for g in structure.activations:
        assert all(of[owner[s]].min() > of[g].max() for s in program.rows[g].pre)
    assert of[structure.activations[-1]].min() == 1


def convolutional(stride: int = 1) -> lm.Model:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 2, 3, 3)) / 4
    s = _Sketch(0, 2 * 14 * 14)
    conv = Conv(
        kernel=kernel,
        input_shape=(1, 2, 14, 14),
        output_spatial=(14 // stride, 14 // stride),
        strides=(stride, stride),
        pads=(1, 1),
        dilations=(1, 1),
    )
    node = s.activate(s.add(lm.network.ops.Linear(map=conv), [s.x]))
    model = FORMULATIONS["geolip-inf-1"](increments(s.finish(s.linear(node, 2))))
    assert isinstance(model, lm.Model)
    return model


def test_sparse_blocks_are_used_as_such(monkeypatch):
    start = start_of(read_program(convolutional(2)))
    monkeypatch.setattr(ascent_graph, "SPARSE_DENSITY", 0.05)
    assert any(sp.issparse(part.matrix) for part in program_dual(*start).signals.readings)
    one = run(start)
    monkeypatch.setattr(ascent_graph, "SPARSE_DENSITY", 0.0)
    assert not any(sp.issparse(part.matrix) for part in program_dual(*start).signals.readings)
    two = run(start)
    assert one.status == two.status == "optimal"
    assert one.lower == pytest.approx(two.lower, rel=3e-6)


def test_limits():
    start = start_of(read_program(sketch_model("neuron", 7, 9, 4)))
    late = run(start, deadline=-math.inf)
    assert (late.y, late.status, late.iterations) == (None, "time-limit", 0)
    short = run(start, max_iterations=2)
    assert (short.status, short.iterations) == ("iteration-limit", 2)
    assert smallest_eigenvalue(start[0], short.y) > 0
    cost = start[0].barrier.cost
    seen: list[tuple[int, float, float]] = []

    def follow(iterations: int, y: np.ndarray, lower: float, gap: float) -> bool:
        seen.append((iterations, float(cost @ y), lower))
        return iterations < 3

    stopped = run(start, report=follow)
    assert stopped.status == "interrupted"
    assert float(cost @ stopped.y) == seen[-1][1]
    assert all(a[1] >= b[1] and a[2] <= b[2] <= b[1] for a, b in itertools.pairwise(seen))

    def interrupt(*_: Any) -> bool:
        raise KeyboardInterrupt

    broken = run(start, report=interrupt)
    assert broken.status == "interrupted"
    assert smallest_eigenvalue(start[0], broken.y) > 0
