"""Models and programs of every structure, dense and exact algebra to compare with, and another solver."""

from __future__ import annotations

import importlib.util
import itertools
import pathlib
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.sparse as sp
from dense_algebra import has_positive_pivots, semidefinite_optimum
from lipmodel_formulations.geolip import GeoLIP
from lipmodel_formulations.lipsdp import LipSDPLayer, LipSDPNeuron

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.backends.base import Point, SolveOptions
from lipmodel.backends.native.program import NO_SIGNAL, Program, Rows, plain_rows
from lipmodel.network.increments import IncrementSystem, increments
from lipmodel.network.ops import Add, Concat
from lipmodel.spec import Spec
from lipmodel.testing.networks import MIXED, RELU, _Sketch

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
    return has_positive_pivots(matrix)


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
    terms, constant = dense(program)
    positive = np.flatnonzero(program.nonnegative)
    return semidefinite_optimum(terms, constant, program.cost, 1.05 * np.abs(y), positive)


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
