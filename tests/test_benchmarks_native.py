"""The benchmark of the native backend on tiny networks: its checks see faults, and its numbers are what they say."""

from __future__ import annotations

import json
import pathlib
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.native import __main__ as command  # noqa: E402
from benchmarks.native import competitors, gate, goals, measure, worker  # noqa: E402
from benchmarks.native.cases import Case, files, recipes  # noqa: E402
from benchmarks.native.systems import SHAPES, SLOPES, STYLES, convolutional, gaussian, random_case, residual  # noqa: E402
from lipmodel.backends import backend  # noqa: E402
from lipmodel.backends.base import SolveOptions  # noqa: E402
from lipmodel.bridges.program import cone_program, svec  # noqa: E402
from lipmodel.bridges.scaling import prepare  # noqa: E402
from lipmodel.testing.networks import formal_constant  # noqa: E402

LARGEST = 8


def test_the_random_suite_repeats_itself_and_draws_every_kind():
    cases = [random_case(seed, LARGEST) for seed in range(120)]
    assert {case.shape for case in cases} == set(SHAPES)
    assert {case.style for case in cases} == set(STYLES)
    assert {case.slopes for case in cases} == set(SLOPES)
    assert str(random_case(7, LARGEST)) == str(cases[7])
    first, again = (gate.model_of(c).sizes() for c in (cases[7], random_case(7, LARGEST)))
    assert first == again


def test_the_gate_passes_and_compares():
    found = gate.run_gate(8, 300, largest=4)
    assert found["failures"] == []
    assert found["largest gap"] <= 1e-6
    assert found["compared"] > 0


class Tampered:
    """The native backend, its point changed."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def solve(self, model: Any, options: SolveOptions) -> Any:
        return self.change(backend("native").solve(model, options))


def smaller(point: Any) -> Any:
    return replace(point, values={v: 0.9 * np.asarray(x) for v, x in point.values.items()})


def boastful(point: Any) -> Any:
    return replace(point, objective=0.9 * point.objective, lower=0.9 * point.lower)


def loose(point: Any) -> Any:
    return replace(point, lower=0.99 * point.lower)


def empty(point: Any) -> Any:
    return replace(point, values=None)


def broken(point: Any) -> Any:
    raise FloatingPointError("of the test")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (smaller, "not strictly feasible"),
        (boastful, "the proof loses"),
        (loose, "gap 5.0"),
        (empty, "no point"),
        (broken, "of the test"),
    ],
)
def test_the_gate_sees_what_is_wrong(change, words, monkeypatch):
    case = next(c for c in map(random_case, range(50)) if c.formulation == "lipsdp-neuron" and c.style == "plain")
    assert gate.examine(case).failure == ""
    monkeypatch.setattr(gate, "backend", lambda name: Tampered(change))
    assert words in gate.examine(case).failure


def test_networks_without_a_path_are_told_apart():
    system = gaussian([3, 4, 2], 0)
    assert gate.reaches_output(system)
    assert not gate.reaches_output(replace(system, output=0.0 * system.output))


def test_recipes_are_the_networks_they_name():
    system = residual(3, 4, 2, 3, 2, 0)
    assert (system.neurons, len(system.activations), len(system.output.blocks)) == (6, 3, 4)
    layers = convolutional((1, 1, 4, 4), [(1, 3, 2), (2, 3, 2)], 2, 0)
    assert [a.size for a in layers.activations] == [4, 2]
    for one in (system, layers):
        case = Case(name="small", system=lambda one=one: one)
        row, _ = measure.measure(case, repeats=1)
        assert row["bound"] >= formal_constant(one, "2", "2") * (1 - 1e-12)
    names = [case.name for case in recipes(0)]
    assert "50-50^40-50" in names
    assert "784-64^6-10" in names
    assert all(case.quick for case in files(ROOT / "examples"))


@pytest.fixture(scope="module")
def problem():
    """A small program solved: its model, and the bracket of its bound."""
    recorder = measure.Recorder()
    run, family, chosen = measure._run(Case(name="", system=lambda: None), gaussian([3, 4, 3, 2], 1), 1e-7, recorder)
    part = measure.solve_member(chosen, family[0], run, None)
    assert part.lower is not None
    return recorder.model, part.lower, part.bound


def test_the_worker_hands_over_the_same_problem(problem, tmp_path):
    program = cone_program(prepare(problem[0]).model)
    competitors._write(program, 1.0, tmp_path)
    data = worker.read(tmp_path)
    for upper in (True, False):
        expected, constant = svec(program.psd[0], program.size, upper=upper)
        coefficients, right = worker.triangle(data, upper=upper)
        assert abs(coefficients - expected).max() == 0.0
        assert np.array_equal(right, constant)
    y = np.random.default_rng(0).normal(size=program.size)
    coefficients, right = worker.full(data)
    matrix = (coefficients @ y + right).reshape(data["order"], data["order"])
    lower = np.zeros_like(matrix)
    np.add.at(lower, (data["row"], data["col"]), np.append(y, 1.0)[data["var"]] * data["value"])
    assert matrix == pytest.approx(lower + np.tril(lower, -1).T, abs=1e-12)


def raced(problem, monkeypatch, solvers, *, memory=8 << 30, **known):
    model, lower, bound = problem
    monkeypatch.setattr(competitors, "SOLVERS", solvers)
    field = competitors.Field(limit=20.0, memory=memory)
    field.known.update(known)
    return competitors.race(model, field, lower, bound)


def test_competitors_run_and_are_judged(problem, monkeypatch):
    right, rough = raced(problem, monkeypatch, ("clarabel", "scs 1e-2"))
    assert right["verdict"] == "correct"
    assert right["bound"] == pytest.approx(problem[2], rel=1e-6)
    assert right["cpu"] >= 0.0
    assert rough["verdict"] == "invalid"
    program = cone_program(prepare(problem[0]).model)

    def verdict(shift: float) -> str:
        value = (1 + shift) * right["bound"] ** 2  # the objective is the square of the bound
        answer = {"value": value, "lower": value, "finished": True, "status": "solved"}
        return competitors._judged(answer, program, problem[0], 1.0, *problem[1:])["verdict"]

    assert verdict(0.0) == "correct"
    assert verdict(1e-4) == "invalid"
    assert verdict(-1e-4) == "invalid"


def test_what_cannot_run_is_said_in_words(problem, monkeypatch):
    (absent,) = raced(problem, monkeypatch, ("cvxopt",), cvxopt="not installed")
    assert absent["verdict"] == "not installed"
    (small,) = raced(problem, monkeypatch, ("scs 1e-7",), memory=1 << 20)
    assert small["verdict"] in ("memory", "failed")
    field = competitors.Field(limit=1.0, memory=1, given_up={"csdp": [(6, 6), (15, 3)]})
    assert field.hopeless("csdp", 20, 10)
    assert not field.hopeless("csdp", 15, 10)
    assert not field.hopeless("sdpa", 20, 10)


@pytest.mark.parametrize("solver", ["csdp", "sdpa", "cvxopt"])
def test_optional_solvers_agree(solver, problem, monkeypatch):
    if competitors.versions()[solver] == "not installed":
        pytest.skip(f"{solver} is not installed")
    (found,) = raced(problem, monkeypatch, (solver,))
    assert found["verdict"] == "correct"
    assert found["bound"] == pytest.approx(problem[2], rel=5e-6)


def test_iterates_are_looked_at_in_time():
    trace = [(0.005, 3.0), (0.05, 2.0), (0.2, 1.5), (0.5, 1.0)]
    found = measure.excesses(trace, 1.0)
    assert found == {"excess": {"0.01": 2.0, "0.1": 1.0, "0.3": 0.5, "1": 0.0}, "first point": 0.005}
    assert measure.excesses([(0.05, 2.0)], 1.0)["excess"]["0.01"] is None


def row(**facts: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"network": "n", "formulation": "f", "norm": "2", "goals": [1, 2, 3, 4, 6, 7]}
    usual |= {"neurons": 300, "depth": 5, "width": 60, "cpu": 1.0, "floors": 100.0, "gap": 1e-7, "loss": 1e-12}
    usual |= {"iterations": [12], "terminations": ["optimal"], "series": "", "anytime": ""}
    usual |= {"first proved": 0.001, "product": 0.002}
    return usual | {"certify": 0.01, "excess": {"0.1": 0.01, "0.3": 0.01}} | facts


def verdicts(rows: list[dict[str, Any]], races: Any = None, failures: Any = ()) -> dict[str, bool]:
    found = {"failures": list(failures), "count": 5, "largest gap": 0.0}
    return {g["what"]: g["met"] for g in goals.judged(rows, races or {}, found, 60.0)}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"gap": 2e-6}, "gap of the proved bound"),
        ({"terminations": ["inaccurate"]}, "gap of the proved bound"),
        ({"floors": 121.0}, "floors, N 200-500"),
        ({"first proved": 0.011}, "ms to a proved bound, N ≤ 1000"),
        ({"certify": 0.16}, "certification / solve, N ≥ 300"),
        ({"loss": 1e-7}, "loss of the proof, relative"),
        ({"iterations": [21]}, "iterations (Hessians or rounds of ascent), median"),
    ],
)
def test_every_goal_can_be_missed(change, what):
    assert verdicts([row()])[what]
    assert not verdicts([row(**change)])[what]


def test_growth_and_competition():
    rows = [row(network=str(n), neurons=n, cpu=1e-6 * n**2.5, series="width") for n in (250, 500, 1000)]
    slope, steps, _ = goals.exponents(rows, "width")
    assert [slope, *steps] == pytest.approx([2.5] * 3)
    assert verdicts(rows)["exponent in width"]
    assert not verdicts([r | {"series": "depth"} for r in rows])["exponent in depth"]

    def against(seconds: float) -> dict[str, Any]:
        invalid = {"solver": "scs 1e-5", "verdict": "invalid", "cpu": 1e-9}
        return {
            goals.label(r): [{"solver": "csdp", "verdict": "correct", "cpu": seconds * r["cpu"]}, invalid] for r in rows
        }

    fast, slow = verdicts(rows, against(101.0)), verdicts(rows, against(0.5))
    assert [met for what, met in fast.items() if "times faster" in what] == [True] * 3
    assert [met for what, met in slow.items() if "times faster" in what] == [False] * 3
    assert not verdicts(rows, failures=[{}])["failures on random networks"]


def test_the_command_writes_its_tables(tmp_path, monkeypatch, capsys):
    tiny = Case(name="4-5-5-3", system=lambda: gaussian([4, 5, 5, 3], 0), quick=True, series="depth", anytime="acas")
    logits = replace(
        tiny, name="784-64-10", formulation="geolip", norm="inf:inf", goals=frozenset({5}), tolerances=(1e-6, 1e-4)
    )
    monkeypatch.setattr(command, "recipes", lambda seed: iter([tiny, logits]))
    monkeypatch.setattr(competitors, "SOLVERS", ("clarabel",))
    monkeypatch.setattr("benchmarks.native.report.SOLVERS", ("clarabel",))
    monkeypatch.setattr(command, "run_gate", lambda count, seed, say: gate.run_gate(count, seed, largest=3, say=say))
    command.main(["--quick", "--count", "3", "--time-limit", "5", "--out", str(tmp_path / "results")])
    found = json.loads((tmp_path / "results" / "native.json").read_text())
    first, family = found["programs"]
    assert (first["neurons"], first["members"], family["members"]) == (10, 1, 3)
    assert family["gap at 0.0001"] <= 1e-4
    assert first["cpu of the first run"] >= first["cpu"] > 0.0
    assert family["gap"] <= 1.01e-6
    assert found["races"]["4-5-5-3 lipsdp-neuron 2"][0]["verdict"] == "correct"
    assert found["gate"]["count"] == 3
    assert {"numpy", "BLAS", "clarabel"} <= set(found["machine"]["versions"])
    text = (tmp_path / "results" / "native.md").read_text()
    assert text in capsys.readouterr().out
    for title in ("Goals", "Random networks", "Programs", "Competitors", "Over time"):
        assert f"## {title}" in text


def test_only_the_wanted_goals():
    args = command.parsed(["--goals", "5"])
    assert {case.formulation for case in command.chosen(args)} == {"geolip"}
    with pytest.raises(SystemExit):
        command.parsed(["--goals", "8"])
