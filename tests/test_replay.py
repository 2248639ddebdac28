"""Recorded points instead of solvers: everything behind a solver, in no time; and records that lie or do not fit.

The points are those of `python tests/test_replay.py`, which records them again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.backends.base import SolveOptions
from lipmodel.backends.replay import Recorder, Replay
from lipmodel.testing.backends import lipsdp, mixed_norm
from lipmodel.testing.networks import random_system

RECORDED = Path(__file__).with_name("recorded_points.json")
QUESTIONS: dict[str, dict[str, Any]] = {
    "neuron": {"formulation": "lipsdp-neuron"},
    "layer": {"formulation": "lipsdp-layer"},
    "chordal": {"formulation": "chordal-lipsdp"},
    "mixed": {"formulation": "geolip", "norm": "inf:1"},
    "rows": {"formulation": "geolip", "norm": "2:inf"},
    "columns": {"formulation": "geolip", "norm": "1:2"},
    "margin": {"formulation": "geolip", "norm": "inf", "outputs": "margin:0"},
    "linear": {"formulation": "lipsdp-neuron", "options": {"cone": "dd"}},
    "box": {"formulation": "geolip", "norm": "inf:2", "domain": "box:-1:1"},
}


def network() -> lm.Network:
    first = [[1.0, -2.0, 0.5], [0.25, 1.5, -1.0], [-0.75, 0.5, 2.0], [1.25, 1.0, 1.0]]
    second = [[0.5, -1.0, 1.5, 0.25], [-1.0, 0.75, 0.5, 1.0], [2.0, 0.25, -0.5, -1.5]]
    third = [[1.0, -0.5, 0.25], [0.75, 1.0, -1.25]]
    return lm.from_weights([first, second, third], biases=[[0.1] * 4, [-0.2] * 3, [0.0] * 2])


def answer(question: str, backend: Any) -> lm.Result:
    return lm.solve(network(), **QUESTIONS[question], backend=backend, jobs=1, witness=False)


def record() -> None:
    recorder = Recorder("clarabel")
    for question in QUESTIONS:
        answer(question, recorder)
    recorder.save(RECORDED)


@pytest.fixture(scope="module")
def replay() -> Replay:
    return Replay.read(RECORDED)


@pytest.mark.parametrize("question", QUESTIONS)
def test_recorded_points_are_proved_and_verified(question, replay):
    net = network()
    result = lm.solve(net, **QUESTIONS[question], backend=replay, jobs=1)
    assert (result.assurance, result.backend, result.termination) == ("proved", "replay", "optimal")
    assert result.lower_bound is not None
    assert result.lower_bound <= result.bound <= max(result.claim, result.bound) * (1.0 + 1e-9)
    if QUESTIONS[question].get("options") is None:
        assert result.bound == pytest.approx(result.claim, rel=1e-5)
    assert lm.verify(net, result).bound == result.bound


def test_no_solver_is_loaded():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_replay as t\n"
        "t.answer('mixed', t.Replay.read(t.RECORDED))\n"
        "assert not {'clarabel', 'scs', 'cvxpy', 'highspy', 'mosek'} & set(sys.modules), sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], check=True)


def test_the_answer_is_that_of_the_solver(tmp_path):
    recorder = Recorder("clarabel")
    first = answer("mixed", recorder)
    recorder.save(tmp_path / "points.json")
    second = answer("mixed", Replay.read(tmp_path / "points.json"))
    for name in ("bound", "claim", "gap", "termination"):
        assert getattr(first, name) == getattr(second, name)


def test_a_record_of_the_native_backend_keeps_its_promise(tmp_path):
    recorder = Recorder("native")
    first = answer("neuron", recorder)
    recorder.save(tmp_path / "points.json")
    replay = Replay.read(tmp_path / "points.json")
    assert replay.capabilities.feasible
    assert answer("neuron", replay).bound == pytest.approx(first.bound, rel=1e-9)


def test_models_are_told_apart():
    """By what they state: other numbers, signs, sizes or objectives are another model; another name is not."""
    models = [lipsdp(random_system("chain", 0)), lipsdp(random_system("chain", 1)), lipsdp(random_system("mixed", 0))]
    models += [mixed_norm(random_system("chain", 0), "inf", "2"), mixed_norm(random_system("chain", 0), "2", "1")]
    models += [lipsdp(random_system("chain", 0), tied=True)]
    for k, model in enumerate(models):
        recorder = Recorder("clarabel")
        recorder.solve(model, SolveOptions())
        replay = Replay({"schema": "lipmodel/replay/1", "points": recorder.records})
        for other_number, other in enumerate(models):
            assert (replay.refuses(other) is None) == (k == other_number)
            assert (replay.solve(other, SolveOptions()).values is None) == (k != other_number)
    again = lipsdp(random_system("chain", 0))
    again.name = "another name"
    recorder = Recorder("clarabel")
    recorder.solve(models[0], SolveOptions())
    assert Replay({"schema": "lipmodel/replay/1", "points": recorder.records}).refuses(again) is None


@pytest.mark.parametrize(
    "change",
    [
        {"termination": "wonderful"},
        {"values": {}},
        {"values": {"kappa": ["0x1p0"]}},
        {"objective": "inf"},
        {"objective": 3},
        {"lower": "much"},
    ],
)
def test_records_that_do_not_fit_are_no_points(change):
    model = mixed_norm(random_system("chain", 0), "inf", "2")
    recorder = Recorder("clarabel")
    recorder.solve(model, SolveOptions())
    record_ = recorder.records[0] | change
    point = Replay({"schema": "lipmodel/replay/1", "points": [record_]}).solve(model, SolveOptions())
    assert (point.values, point.termination) == (None, "failed")
    assert "does not fit" in point.message


def test_a_record_that_lies_is_still_only_a_point(tmp_path):
    recorder = Recorder("clarabel")
    truth = answer("neuron", recorder)
    for entry in recorder.records:
        entry["objective"] = entry["lower"] = (1e-6).hex()
        entry["values"] = {name: [(0.01 * float.fromhex(x)).hex() for x in v] for name, v in entry["values"].items()}
    result = answer("neuron", Replay({"schema": "lipmodel/replay/1", "points": recorder.records}))
    assert result.assurance == "proved"
    assert result.bound >= truth.bound * (1.0 - 1e-5)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "lipmodel/replay/1"}', '{"schema": 3}', "\x00"])
def test_files_that_are_none(text, tmp_path):
    path = tmp_path / "points.json"
    path.write_text(text)
    with pytest.raises(lm.UsageError, match="recorded points"):
        Replay.read(path)
    with pytest.raises(lm.UsageError):
        Replay.read(tmp_path / "missing.json")
    broken = {"schema": "lipmodel/replay/1", "points": [{"model": "x", "weight": "y"}]}
    with pytest.raises(lm.UsageError):
        Replay(broken)


def test_numbers_are_kept_exactly(tmp_path):
    model = lipsdp(random_system("chain", 0))
    recorder = Recorder("clarabel")
    point = recorder.solve(model, SolveOptions())
    recorder.save(tmp_path / "points.json")
    assert json.loads((tmp_path / "points.json").read_text())["backend"] == "clarabel"
    read = Replay.read(tmp_path / "points.json").solve(model, SolveOptions())
    assert all(np.array_equal(read.values[v], point.values[v]) for v in model.variables)
    assert (read.objective, read.lower, read.iterations) == (point.objective, point.lower, point.iterations)


if __name__ == "__main__":
    record()
