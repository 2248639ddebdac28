"""Files made to mislead or to hurt: every verdict, in bounded time and memory."""

from __future__ import annotations

import csv
import importlib.util
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from lipmodel.child import in_child
from lipmodel.cli import main
from lipmodel.errors import RefusedInput
from lipmodel.machine import CAN_FORK
from lipmodel.network.onnx_import import load

SHARED = Path(__file__).resolve().parents[2] / "shared"
pytestmark = pytest.mark.skipif(not (SHARED / "hostile").exists(), reason="no shared data beside the checkout")

MEMORY = 1 << 30
SECONDS = 5


def table() -> list[Any]:
    path = SHARED / "hostile" / "manifest.csv"
    if not path.exists():
        return []
    with open(path, newline="") as stream:
        return [pytest.param(row, id=row["case"]) for row in csv.DictReader(stream)]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files with the links and folders that a repository cannot hold."""
    spec = importlib.util.spec_from_file_location("prepare", SHARED / "hostile" / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Path(module.prepare(tmp_path_factory.mktemp("hostile")))


def read(path: Path) -> list[tuple[str, str]]:
    """Kinds and words of the reasons to refuse a file; the limits are on the processor and on what is mapped."""
    with open("/proc/self/statm") as stream:
        mapped = int(stream.read().split()[0]) * resource.getpagesize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    try:
        load(path)
    except RefusedInput as refused:
        return [(reason.kind, str(reason)) for reason in refused.reasons]
    return []


@pytest.mark.skipif(not CAN_FORK, reason="processes cannot be forked here, and the limits are for one process")
@pytest.mark.parametrize("row", table())
def test_verdict_in_bounded_time_and_memory(row: dict[str, str], suite: Path) -> None:
    outcome = in_child(lambda: read(suite / row["file"]), seconds=120.0, quiet=True)
    assert outcome.ended == "done", outcome.message
    kinds = {kind for kind, _ in outcome.value}
    if row["expected"] == "accept":
        assert not kinds
    elif row["expected"] == "accept-local":
        assert kinds <= {"non-lipschitz"}
    elif row["expected"] == "either":
        assert kinds <= {row["reason"]}
    else:
        assert row["reason"] in kinds
        assert "check" not in kinds


LOCAL = [param for param in table() if param.values[0]["expected"] == "accept-local"]


@pytest.mark.parametrize("row", LOCAL)
def test_no_global_constant(row: dict[str, str], suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(suite / row["file"])
    assert main(["inspect", path]) == 0
    assert main(["solve", path, "-q"]) == 3
    assert "non-lipschitz" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["ext_dotdot", "w_nan", "g_ssa_dup", "bomb_pad", "file_truncated", "fn_recursive"])
def test_the_command_ends_with_3_and_lists_reasons(case: str, suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = next(param.values[0] for param in table() if param.values[0]["case"] == case)
    assert main(["solve", str(suite / row["file"]), "--json", "-q"]) == 3
    captured = capsys.readouterr()
    assert f"[{row['reason']}]" in captured.err
    assert not captured.out or json.loads(captured.out)


ACCEPTED = [param for param in table() if param.values[0]["expected"] == "accept"]


@pytest.mark.parametrize("row", ACCEPTED)
def test_what_is_accepted_is_what_onnxruntime_runs(row: dict[str, str], suite: Path) -> None:
    import numpy as np
    import onnxruntime

    path = suite / row["file"]
    network = load(path, check=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (info,) = (i for i in session.get_inputs() if i.name == network.source.graph_inputs[0].name)
    dtype = np.float64 if info.type == "tensor(double)" else np.float32
    x = np.random.default_rng(0).standard_normal(network.input_shape).astype(dtype)
    (y,) = session.run(None, {info.name: x})
    expected = y.astype(np.float64).ravel()
    finite = np.isfinite(expected)  # weights near 1e38 overflow in single precision
    assert finite.any() or row["case"] == "w_huge_1e38"
    np.testing.assert_allclose(network.evaluate(x)[finite], expected[finite], rtol=1e-5, atol=1e-6)
