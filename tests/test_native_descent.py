"""Descent on the covariance recursions: gradients, feasibility, depth, limits of time and memory."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from lipmodel_formulations.geolip import GeoLIP
from lipmodel_formulations.lipsdp import LipSDPLayer, LipSDPNeuron

import lipmodel as lm
from lipmodel import machine
from lipmodel.backends import backend
from lipmodel.backends.base import Progress, SolveOptions
from lipmodel.backends.native import memory, portfolio
from lipmodel.backends.native.chain import Chain, ChainProblem
from lipmodel.backends.native.core import solve_chain
from lipmodel.backends.native.descent import STAGES, Objective, descend, improved
from lipmodel.backends.native.elimination import chain_barrier
from lipmodel.backends.native.follower import Outcome, follow_path
from lipmodel.backends.native.graph import GraphRecursion, NotCovered
from lipmodel.backends.native.launch import Launch, launched
from lipmodel.backends.native.reading import read_program
from lipmodel.backends.native.recursion import Recursion
from lipmodel.backends.native.start import closed_form
from lipmodel.backends.native.structure import structure_of
from lipmodel.network.increments import IncrementSystem, chain_of
from lipmodel.spec import Spec
from lipmodel.testing.networks import random_system

SLOPES = {"relu": (0.0, 1.0), "leaky": (0.1, 1.0), "abs": (-1.0, 1.0), "falling": (-0.7, 0.2)}
FORMULATIONS: dict[str, Callable[[IncrementSystem], Any]] = {
    "neuron": lambda s: LipSDPNeuron().build(s, Spec(input_norm="2", output_norm="2")),
    "layer": lambda s: LipSDPLayer().build(s, Spec(input_norm="2", output_norm="2")),
    "geolip-inf-2": lambda s: GeoLIP().build(s, Spec(input_norm="inf", output_norm="2")),
    "geolip-2-1": lambda s: GeoLIP().build(s, Spec(input_norm="2", output_norm="1")),
    "geolip-inf-1": lambda s: GeoLIP().build(s, Spec(input_norm="inf", output_norm="1")),
}


def gaussian(dims: list[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((m, n)) / np.sqrt(n) for n, m in itertools.pairwise(dims)]


def problem(weights: list[np.ndarray], norm: Any = "2", slopes: str = "relu") -> ChainProblem:
    *hidden, output = weights
    low, high = SLOPES[slopes]
    return ChainProblem(
        weights=tuple(hidden),
        alpha=tuple(np.full(len(w), low) for w in hidden),
        beta=tuple(np.full(len(w), high) for w in hidden),
        output=output,
        input_norm=norm,
    )


def started(weights: list[np.ndarray], *, tied: bool = True, slopes: str = "relu") -> tuple[Chain, np.ndarray]:
    p = problem(weights, "2", slopes)
    start = closed_form(list(p.weights), p.alpha, p.beta, p.output, tied=tied)
    assert start.inside is not None
    return start.chain, start.inside


def launch(model: lm.Model) -> tuple[Launch, GraphRecursion]:
    program = read_program(model)
    structure = structure_of(program)
    assert structure is not None
    start = launched(program, structure, math.inf)
    assert start is not None
    return start, GraphRecursion(start, structure)


def check_gradient(objective: Objective, x: np.ndarray, weight: float) -> None:
    found = objective.forward(x, weight, 20.0)
    gradient = objective.gradient(found)
    assert np.abs(gradient).max() > 1e-3
    for direction in np.random.default_rng(1).normal(size=(6, x.size)):
        h = 1e-5
        ahead, behind = (objective.forward(x + s * h * direction, weight, 20.0) for s in (1, -1))
        slope = (ahead.value - behind.value) / (2 * h)
        assert slope == pytest.approx(float(gradient @ direction), rel=1e-6, abs=1e-7)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients and points


@pytest.mark.parametrize("weight", [0.0, 0.03])
@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_of_a_chain_is_that_of_finite_differences(tied, slopes, weight):
    chain, y = started(gaussian([4, 6, 5, 7, 3]), tied=tied, slopes=slopes)
    recursion = Recursion(chain)
    x = recursion.variables(y)
    assert x is not None
    check_gradient(recursion, x + np.random.default_rng(0).uniform(0.0, 0.1, x.size), weight)


@pytest.mark.parametrize("weight", [0.0, 0.03])
@pytest.mark.parametrize("name", FORMULATIONS)
@pytest.mark.parametrize("kind", ["residual", "concat"])
def test_the_gradient_of_a_graph_is_that_of_finite_differences(kind, name, weight):
    start, recursion = launch(FORMULATIONS[name](random_system(kind, 3, outputs=2)))
    x = recursion.variables(start.y)
    assert x is not None
    check_gradient(recursion, x + np.random.default_rng(0).uniform(0.0, 0.05, x.size), weight)


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_point_of_a_trial_lies_on_the_boundary(tied, slopes):
    chain, y = started(gaussian([4, 6, 5, 7, 3]), tied=tied, slopes=slopes)
    recursion, barrier = Recursion(chain), chain_barrier(chain)
    x = recursion.variables(y)
    assert x is not None
    found = recursion.forward(x, 0.0, 20.0)
    assert found is not None
    point = recursion.point(found)
    assert barrier.cost @ point == pytest.approx(math.exp(found.level), rel=1e-12)
    assert barrier.cost @ point < barrier.cost @ y
    assert barrier.factorize(recursion.raised(point, 1e-8)) is not None
    assert barrier.factorize(recursion.raised(point, -1e-6)) is None


@pytest.mark.parametrize("name", FORMULATIONS)
def test_the_point_of_a_graph_lies_on_the_boundary(name):
    start, recursion = launch(FORMULATIONS[name](random_system("residual", 4, outputs=2)))
    x = recursion.variables(start.y)
    assert x is not None
    found = recursion.forward(x, 0.0, 20.0)
    assert found is not None
    point = recursion.point(found)
    assert start.barrier.factorize(recursion.raised(point, 1e-7)) is not None
    assert start.barrier.factorize(recursion.raised(point, -1e-5)) is None


def test_outside_the_domain_there_is_no_trial():
    chain, y = started(gaussian([4, 6, 5, 3]))
    recursion = Recursion(chain)
    x = recursion.variables(y)
    assert x is not None
    assert recursion.forward(x - 5.0, 0.0, 20.0) is None
    assert recursion.variables(np.full(y.size, np.nan)) is None


def test_terms_stated_besides_have_no_recursion():
    model = FORMULATIONS["neuron"](random_system("residual", 5, outputs=2))
    program = read_program(model)
    structure = structure_of(program)
    assert structure is not None
    start = launched(program, structure, math.inf)
    assert start is not None
    besides = type(structure)(
        inputs=structure.inputs,
        duals=structure.duals,
        slack=structure.slack,
        activations=structure.activations[:-1],
        extra=structure.activations[-1:],
    )
    with pytest.raises(NotCovered):
        GraphRecursion(start, besides)


# ---------------------------------------------------------------------------------------------------------------------
# Descent


def optimum(chain: Chain, y: np.ndarray) -> float:
    found = follow_path(
        chain_barrier(chain), y, tol=1e-8, deadline=math.inf, max_iterations=200, report=lambda *_: True
    )
    assert found.status == "optimal"
    return math.sqrt(found.lower)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("slopes", SLOPES)
def test_every_improvement_is_feasible_and_the_last_is_near_the_optimum(slopes, tied):
    chain, y = started(gaussian([6, 9, 8, 9, 8, 3], seed=2), tied=tied, slopes=slopes)
    barrier = chain_barrier(chain)
    seen: list[np.ndarray] = []

    def report(better: np.ndarray) -> bool:
        seen.append(better)
        return True

    found = improved(barrier, Recursion(chain), y, deadline=math.inf, report=report)
    assert found.status == "inaccurate"
    assert found.lower == 0.0
    assert all(barrier.factorize(point) is not None for point in (*seen, found.y))
    values = [float(barrier.cost @ point) for point in seen]
    assert values == sorted(values, reverse=True)
    best = optimum(chain, y)
    assert best <= math.sqrt(barrier.cost @ found.y) < 1.005 * best < math.sqrt(barrier.cost @ y)


@pytest.mark.parametrize("name", FORMULATIONS)
@pytest.mark.parametrize("kind", ["residual", "concat"])
def test_descent_on_graphs_comes_near_the_optimum(kind, name):
    start, recursion = launch(FORMULATIONS[name](random_system(kind, 6, outputs=2)))
    barrier = start.barrier
    found = improved(barrier, recursion, start.y, deadline=math.inf, report=lambda y: True)
    assert barrier.factorize(found.y) is not None
    limits: dict[str, Any] = {"tol": 1e-7, "deadline": math.inf, "max_iterations": 200, "report": lambda *_: True}
    best = follow_path(barrier, recursion.raised(found.y, 0.01), **limits)
    assert best.status == "optimal"
    assert best.lower <= barrier.cost @ found.y < 1.02 * best.lower


def test_a_change_of_one_layer_carries_the_later_ones_with_it():
    chain, y = started(gaussian([8] * 61 + [2], seed=5))
    barrier = chain_barrier(chain)
    found = improved(barrier, Recursion(chain), y, deadline=math.inf, report=lambda y: True, least=0.1)
    best = optimum(chain, found.y)
    assert math.sqrt(barrier.cost @ y) > 4 * best
    assert math.sqrt(barrier.cost @ found.y) < 1.1 * best


def test_a_thousand_layers_neither_overflow_nor_underflow():
    weights = gaussian([3] * 1001 + [2], seed=7)
    weights = [w * (1e1 if k % 3 else 1e-3) for k, w in enumerate(weights)]
    chain, y = started(weights)
    barrier = chain_barrier(chain)
    began = time.monotonic()
    found = improved(barrier, Recursion(chain), y, deadline=began + 2.0, report=lambda y: True)
    assert found.status in ("time-limit", "inaccurate")
    assert barrier.factorize(found.y) is not None
    assert barrier.cost @ found.y < 1e-2 * (barrier.cost @ y)


@pytest.mark.parametrize("way", ["return", "raise", "time", "gradient"])
def test_a_descent_that_is_stopped_gives_its_best_point(way, monkeypatch):
    chain, y = started(gaussian([6, 9, 8, 9, 8, 3], seed=2))
    barrier, recursion = chain_barrier(chain), Recursion(chain)
    calls = itertools.count()

    def report(better: np.ndarray) -> bool:
        if next(calls) < 3 or way in ("time", "gradient"):
            return True
        if way == "raise":
            raise KeyboardInterrupt
        return False

    original = Recursion.gradient

    def gradient(self: Recursion, found: Any) -> np.ndarray:
        if way == "gradient" and next(calls) > 8:
            raise MemoryError
        return original(self, found)

    monkeypatch.setattr(Recursion, "gradient", gradient)
    deadline = time.monotonic() + (0.01 if way == "time" else 100.0)
    found = improved(barrier, recursion, y, deadline=deadline, report=report)
    expected = {"return": "interrupted", "raise": "interrupted", "time": "time-limit", "gradient": "inaccurate"}
    assert found.status == expected[way]
    assert barrier.factorize(found.y) is not None
    assert barrier.cost @ found.y < barrier.cost @ y


def test_without_a_first_trial_there_is_nothing():
    class Nowhere:
        neurons = 1

        def forward(self, x: np.ndarray, weight: float, power: float) -> None:
            return None

    found = descend(Nowhere(), np.zeros(1), deadline=math.inf, report=lambda _: True, least=STAGES[0])  # type: ignore[arg-type]
    assert (found.y, found.status) == (None, "inaccurate")


# ---------------------------------------------------------------------------------------------------------------------
# In the solver: first points, limits of time and memory


@pytest.mark.parametrize("name", FORMULATIONS)
def test_the_start_is_reported_at_once_and_every_report_has_a_feasible_point(name):
    model = FORMULATIONS[name](chain_of(gaussian([4, 6, 6, 2])))
    program = read_program(model)
    seen: list[tuple[Progress, float]] = []

    def listen(state: Progress) -> None:
        assert state.values is not None
        values = state.values()
        assert set(values) == set(model.variables)
        y = np.concatenate([values[v] for v in model.variables])
        from lipmodel.backends.native.general import feasible

        assert feasible(program, y)
        seen.append((state, float(program.cost @ y)))

    point = backend("native").solve(model, SolveOptions(progress=listen))
    assert point.termination == "optimal"
    assert seen[0][0].iteration == 0
    assert math.isfinite(seen[0][0].objective)
    for state, cost in seen:
        assert cost == pytest.approx(state.objective, rel=1e-5)
    assert seen[-1][0].objective == pytest.approx(point.objective, rel=1e-8)


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_without_memory_a_chain_is_solved_without_its_hessian(norm, monkeypatch):
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the path follower was used")

    p = problem(gaussian([8, 20, 20, 20, 3], seed=3), norm)
    best = solve_chain(p)
    monkeypatch.setattr(portfolio, "follow_path", refused)
    found = solve_chain(p, memory=1)
    assert best.value * (1 - 1e-5) <= found.value < 1.02 * best.value
    assert found.lower <= best.value * (1 + 1e-5)
    gap = 1 - math.sqrt(found.lower / found.value)
    assert (found.status == "optimal") == (gap <= 1e-6)


def test_without_memory_a_program_ends_without_a_lower_bound():
    model = FORMULATIONS["geolip-2-1"](random_system("residual", 8, outputs=2))
    found = backend("native").solve(model, SolveOptions(native={"memory": 1}))
    assert found.termination in ("inaccurate", "optimal")
    assert found.lower is not None
    assert found.objective is not None
    if found.termination == "optimal":
        assert model.bound_of(found.lower) >= (1 - 1e-6) * model.bound_of(found.objective)


@pytest.mark.parametrize("name", ["neuron", "layer"])
def test_memory_that_runs_out_falls_back_on_descent(name, monkeypatch):
    model = FORMULATIONS[name](random_system("residual", 8, outputs=2))
    best = backend("native").solve(model, SolveOptions())

    def exhausted(barrier: Any, y: np.ndarray, **_: Any) -> Outcome:
        return Outcome(y=y, lower=0.0, status="inaccurate", iterations=0)

    monkeypatch.setattr(portfolio, "follow_path", exhausted)
    found = backend("native").solve(model, SolveOptions())
    assert found.objective is not None
    assert best.objective is not None
    assert best.objective * (1 - 1e-5) <= found.objective < 1.05 * best.objective


def test_a_solve_whose_time_is_over_still_gives_a_feasible_point():
    p = problem(gaussian([20] + [40] * 20 + [5]))
    found = solve_chain(p, time_limit=0.0)
    assert found.status == "time-limit"
    assert math.isfinite(found.value)
    model = FORMULATIONS["layer"](chain_of(gaussian([20] + [20] * 10 + [5])))
    point = backend("native").solve(model, SolveOptions(time_limit=0.0))
    assert point.termination == "time-limit"
    assert point.values is not None


def test_the_option_memory_is_checked():
    model = FORMULATIONS["neuron"](chain_of(gaussian([3, 4, 2])))
    assert backend("native").solve(model, SolveOptions(native={"memory": 10**9})).termination == "optimal"
    assert backend("native").solve(model, SolveOptions(native={"memory": 0})).termination == "optimal"
    with pytest.raises(lm.UsageError, match="memory"):
        backend("native").solve(model, SolveOptions(native={"memory": "much"}))


def test_the_memory_of_the_system_is_read(tmp_path, monkeypatch):
    assert machine.available_memory() > 0
    assert memory.memory_limit(None) == pytest.approx(0.6 * machine.available_memory(), rel=0.2)
    assert memory.memory_limit(123) == 123
    two, own = tmp_path / "two", tmp_path / "own"
    (two / "a" / "b").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    (two / "a" / "b" / "memory.max").write_text("max\n")
    (two / "a" / "b" / "memory.current").write_text("100\n")
    (two / "a" / "memory.max").write_text("1000\n")
    (two / "a" / "memory.current").write_text("400\n")
    (two / "a" / "memory.stat").write_text("anon 5\ninactive_file 50\n")
    assert list(machine._groups(two, own)) == [650]
    one = tmp_path / "one"
    (one / "memory").mkdir(parents=True)
    own.write_text("4:memory:/elsewhere\n3:cpuset:/\n")
    (one / "memory" / "memory.limit_in_bytes").write_text("2000\n")
    (one / "memory" / "memory.usage_in_bytes").write_text("500\n")
    assert list(machine._groups(one, own)) == [1500]
    monkeypatch.setattr(machine, "_system", lambda: iter(()))
    monkeypatch.setattr(machine, "_groups", lambda: iter(()))
    assert machine.available_memory() == machine.FALLBACK


def test_the_follower_is_left_out_for_large_programs_only():
    chain, _ = started(gaussian([20] + [40] * 20 + [5]))
    assert 8 * 5 * 801**2 < memory.chain_bytes(chain) < 1e8
    program = read_program(FORMULATIONS["neuron"](random_system("residual", 8, outputs=2)))
    assert 0 < memory.program_bytes(program) < 1e6


@pytest.mark.parametrize("name", ["neuron", "geolip-2-1"])
@pytest.mark.parametrize("error", [MemoryError, np.linalg.LinAlgError, KeyboardInterrupt])
def test_a_failure_between_two_solvers_keeps_the_point(error, name, monkeypatch):
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(portfolio._Best, "ascend", failing)
    point = backend("native").solve(FORMULATIONS[name](chain_of(gaussian([4, 6, 6, 2]))), SolveOptions())
    assert point.termination == ("interrupted" if error is KeyboardInterrupt else "inaccurate")
    assert point.values is not None
    assert point.objective is not None
    assert math.isfinite(point.objective)
