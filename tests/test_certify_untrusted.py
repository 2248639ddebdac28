"""Whatever a solution or a map says: a proved bound, or one clear error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import Problem, make_problem, read_json, saved, small_net, spoilt

import lipmodel as lm
from lipmodel.cli import main
from lipmodel.foreign import certify_solution
from lipmodel.io.sidecar import read_map

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("problem"))


# --- Never trusted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", ["nan", "inf", "short", "long", "empty", "negative", "huge", "tiny", "zero", "random"]
)
def test_bad_vectors_still_give_a_proved_bound(fault: str, problem: Problem, tmp_path: Path) -> None:
    x, rng = problem.x, np.random.default_rng(0)
    vectors: Mapping[str, Any] = {
        "nan": np.where(np.arange(len(x)) == 1, np.nan, x),
        "inf": np.where(np.arange(len(x)) == 1, -np.inf, x),
        "short": x[:-1],
        "long": np.append(x, 1.0),
        "empty": x[:0],
        "negative": -x,
        "huge": 1e300 * x,
        "tiny": 1e-300 * x,
        "zero": 0.0 * x,
        "random": rng.normal(size=len(x)) * 10.0 ** rng.uniform(-9.0, 9.0, size=len(x)),
    }
    path, told = tmp_path / "x.json", []
    path.write_text(json.dumps({"x": np.asarray(vectors[fault]).tolist()}))
    result = certify_solution(problem.net, path, problem.map, witness=False, report=told.append)
    assert result.assurance == "proved"
    assert math.isfinite(result.bound)
    assert result.bound >= problem.bound * (1.0 - 1e-6)
    assert result.bound >= problem.lower
    lost = {"nan", "inf", "short", "long", "empty"}
    assert (result.termination == "failed") == (fault in lost)
    assert any("closed-form multipliers instead" in line for line in told) == (fault in lost)


def test_missing_and_misshapen_variables_are_told(problem: Problem, tmp_path: Path) -> None:
    link = read_map(problem.map)
    kappa, first, *rest = link.variables
    path, told = tmp_path / "x.json", []
    path.write_text(json.dumps({kappa.name: float(problem.x[0]), first.name: [1.0], "nobody": 3.0}))
    result = certify_solution(problem.net, path, problem.map, witness=False, report=told.append)
    assert result.bound >= problem.bound * (1.0 - 1e-6)
    assert told[0] == f"the solution has 1 numbers for {first.name}, not {first.size}: taken as 0"
    assert told[1:] == [f"the solution has no {v.name}: taken as 0" for v in rest]


FILES: dict[str, bytes] = {
    "empty": b"",
    "words": b"the optimum is 3\n",
    "binary": bytes(range(256)),
    "json without numbers": b'{"status": "solved"}',
    "json words": b'{"x": ["a", "b"]}',
    "json nested": b'{"x": [[1, 2], [3]]}',
    "broken json": b'{"x": [1,',
    "deep json": b"[" * 100_000,
    "sdpa cut off": b"objValPrimal = 1\nxVec = \n{1.0, 2.0\n",
    "sdpa words": b"xVec = \n{1.0, two}\n",
    "npz that is none": b"PK\x03\x04 and nothing else",
    "npy that is none": b"\x93NUMPY\x01\x00",
    "npy of objects": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    + b" " * 50
    + b"\n",
    "mat that is none": b"MATLAB 5.0 MAT-file" + b" " * 120,
    "highs without columns": b"Model status\nOptimal\n",
    "mosek json without solutions": b'{"Task/solutions": {}}',
    "gzip": b"\x1f\x8b\x08\x00",
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_solution(
    name: str, problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.sol"
    path.write_bytes(FILES[name])
    assert main(["certify", str(problem.net), "--solution", str(path), "--map", str(problem.map)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "is not a solution that is read here" in captured.err
    assert captured.err.count("\n") == 1


def test_another_network_is_refused(problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = saved(small_net(4), tmp_path)
    (tmp_path / "x.json").write_text(json.dumps(problem.x.tolist()))
    assert main(["certify", str(other), "--solution", str(tmp_path / "x.json"), "--map", str(problem.map)]) == 2
    assert "is about another network" in capsys.readouterr().err


def test_spoilt_maps_are_refused_or_sound(problem: Problem, tmp_path: Path) -> None:
    """Whatever stands in any place of a map: a usage error, or a bound that is above the witnessed lower bound."""
    network = lm.load(problem.net)
    (tmp_path / "x.json").write_text(json.dumps(problem.x.tolist()))
    refused = proved = 0
    for changed in spoilt(read_json(problem.map), first=2, every=7):
        (tmp_path / "m.json").write_text(json.dumps(changed))
        try:
            result = certify_solution(network, tmp_path / "x.json", tmp_path / "m.json", witness=False)
        except lm.LipmodelError as error:
            assert error.exit_code in (2, 3)  # noqa: PT017
            refused += 1
            continue
        proved += 1
        if result.spec == lm.Spec():
            assert result.bound >= problem.lower
    assert refused > 60
    assert proved > 30


def test_maps_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    for content in ("{", "[]", '{"schema": "lipmodel/result/1"}', '{"schema": "lipmodel/map/1"}', "\xff"):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(lm.UsageError, match="is not a map"):
            read_map(path)
    with pytest.raises(lm.UsageError, match="cannot read"):
        read_map(tmp_path / "none.json")
