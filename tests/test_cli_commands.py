"""The commands verify, inspect, formulations and backends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_nets import run, write_nets

import lipmodel as lm
from lipmodel.backends import _REGISTERED as BACKENDS
from lipmodel.cli import main


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nets(tmp_path_factory.mktemp("nets"))


@pytest.fixture(scope="module")
def saved(nets: Path) -> Path:
    """A saved result for relu.onnx."""
    path = nets / "relu.json"
    assert main(["solve", str(nets / "relu.onnx"), "-f", "lipsdp-neuron", "-q", "--save", str(path)]) == 0
    return path


# ---------------------------------------------------------------- verify


def test_verify_accepts_what_solve_writes(nets: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "verify", nets / "relu.onnx", saved)
    assert (code, err) == (0, "")
    first, out = out.split("\n", 1)
    assert first == "network read by: the independent reader"
    match = re.fullmatch(r"verified: (\S+) ≤ L\(2→2\) ≤ (\S+)   \(exact arithmetic, sha256 ([0-9a-f]{64})\)\n", out)
    assert match
    result = json.loads(saved.read_text())
    assert float(match[1]) <= result["lower_bound"]
    assert float(match[2]) >= result["bound"]
    assert match[3] == result["network"]["sha256"]
    code, out, _ = run(capsys, "verify", nets / "relu.onnx", saved, "--json")
    assert code == 0
    verdict = json.loads(out)
    assert verdict["verified"] is True
    assert verdict["read_by"] == "the independent reader"
    assert (verdict["bound"], verdict["lower_bound"]) == (result["bound"], result["lower_bound"])
    bare = nets / "bare.json"
    bare.write_text(json.dumps(result["certificate"]))
    assert run(capsys, "verify", nets / "relu.onnx", bare)[0] == 0


def _smaller_bound(data: dict[str, Any]) -> None:
    lower = (0.5 * data["bound"]).hex()
    data["bound"] *= 0.5
    data["lower_bound"] = None
    data["certificate"]["claim"].update(bound=lower, lower_bound=None)
    data["certificate"]["lower"] = None
    data["certificate"]["upper"]["bound"] = lower


TAMPERED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a smaller bound": _smaller_bound,
    "another network": lambda d: d["certificate"]["network"].update(sha256="0" * 64),
    "no certificate": lambda d: d.update(certificate=None),
    "no proof": lambda d: d["certificate"].update(upper=None),
    "an unknown rule": lambda d: d["certificate"]["upper"].update(rule="trust me"),
    "an unknown key": lambda d: d["certificate"].update(extra=1),
    "a bound of the result alone": lambda d: d.update(bound=0.5 * d["bound"]),
    "negative multipliers": lambda d: d["certificate"]["upper"].update(g=["-0x1.0p+0"] * 3),
    "a list for a name": lambda d: d["certificate"]["upper"].update(rule=[1]),
    "an unhashable norm": lambda d: d["certificate"]["claim"].update(input_norm=[]),
}


@pytest.mark.parametrize("fault", TAMPERED)
def test_tampered_certificates_exit_with_6(
    fault: str, nets: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(saved.read_text())
    TAMPERED[fault](data)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data))
    code, out, err = run(capsys, "verify", nets / "relu.onnx", path)
    assert (code, out) == (6, "")
    assert err.startswith("refuted: ")
    code, out, _ = run(capsys, "verify", nets / "relu.onnx", path, "--json")
    assert code == 6
    verdict = json.loads(out)
    assert verdict["verified"] is False
    assert verdict["reason"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b'{"a": 1, "a": 2}', b'{"bound": NaN}', b"[" * 100_000]
)
def test_malformed_certificates_exit_with_6(
    content: bytes, nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    code, out, err = run(capsys, "verify", nets / "relu.onnx", path)
    assert (code, out) == (6, "")
    assert err.startswith("refuted: ")


def test_another_network_is_refuted(nets: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "verify", nets / "one.onnx", saved)
    assert code == 6
    assert "another network" in err


def test_a_check_that_breaks_off_proves_nothing(
    nets: Path, saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise TypeError("unhashable")

    monkeypatch.setattr("lipmodel.certify.verify.verify", broken)
    code, out, err = run(capsys, "verify", nets / "relu.onnx", saved)
    assert (code, out) == (6, "")
    assert "refuted: " in err
    assert "TypeError" in err


# ---------------------------------------------------------------- inspect


def test_inspect_shows_the_network(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "inspect", nets / "relu.onnx")
    assert (code, err) == (0, "")
    sha = lm.load(nets / "relu.onnx").source.sha256
    for text in (sha, "operator set", "1 x 3, 3 numbers", "1 x 2, 2 numbers", "4 (Relu 4)", "parameters   20"):
        assert text in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("layer", "activation1"))]
    assert [row[1] for row in rows] == ["Linear", "Elementwise", "Linear"]
    assert rows[0][-4:] == ["dense", "4", "x", "3"]
    assert "Relu, slopes in [0, 1]" in out


def test_inspect_shows_what_a_formulation_states(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", nets / "relu.onnx", "-f", "geolip", "--norm", "inf:inf")
    assert code == 0
    for text in ("problem L(inf→inf)", "2, one per output row, each norm inf:2", "model geolip", "[slope]", "backend"):
        assert text in out
    assert "\nplan\n" not in out
    code, out, _ = run(capsys, "inspect", nets / "relu.onnx", "--plan", "--norm", "2")
    assert code == 0
    for text in (
        "chosen",
        "model lipsdp-neuron",
        "\nplan\n",
        "1. increments",
        "input 3, activations 4, output 2",
        "factors",
    ):
        assert text in out
    code, out, _ = run(capsys, "inspect", nets / "relu.onnx", "--plan", "--norm", "2", "-b", "clarabel")
    assert code == 0
    for text in ("clarabel (", "scaled", "predicted", "operations"):
        assert text in out
    assert run(capsys, "inspect", nets / "relu.onnx", "--plan", "-b", "nonsense")[0] == 2
    code, out, _ = run(capsys, "inspect", nets / "relu.onnx", "-f", "product", "--plan")
    assert code == 0
    assert "none is needed" in out
    assert "product rule" in out
    assert run(capsys, "inspect", nets / "relu.onnx", "-f", "lipsdp-neuron", "--norm", "inf:1")[0] == 2
    assert run(capsys, "inspect", nets / "relu.onnx", "--outputs", "7")[0] == 2


def test_inspect_says_why_a_backend_was_not_chosen(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", nets / "relu.onnx", "-f", f"{nets / 'mine.py'}:ByHand", "-o", "loud=no")
    assert code == 0
    assert re.search(r"backend +native", out)
    assert "[stated by hand]" in out
    code, out, _ = run(capsys, "inspect", nets / "relu.onnx", "-f", f"{nets / 'mine.py'}:Capped")
    assert code == 0
    assert re.search(r"backend +clarabel", out)
    assert re.search(r"not chosen +native: it has constraints besides one matrix inequality", out)


def test_inspect_shows_a_network_that_lacks_a_choice(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "inspect", nets / "two.onnx")
    assert (code, err) == (0, "")
    last = out.splitlines()[-1]
    assert "--graph-input NAME (or all) among x (1 x 2), u (1 x 2)" in last
    assert "--graph-output NAME (or all) among y (1 x 2), z (1 x 2)" in last
    assert "\x1b" not in out  # names come from the file; a terminal must not obey them
    assert "\\x1b[31mred\\nline" in out
    assert run(capsys, "inspect", nets / "two.onnx", "-f", "product")[0] == 3
    chosen = ["--graph-input", "all", "--graph-output", "y"]
    code, out, _ = run(capsys, "inspect", nets / "two.onnx", *chosen, "-f", "product")
    assert code == 0
    assert "to solve it" not in out


def test_inspect_shows_a_network_that_lacks_a_bounded_domain(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "inspect", nets / "exp.onnx")
    assert (code, err) == (0, "")
    assert "slopes unbounded" in out
    assert "a bounded domain would be needed" in out
    assert "grows" in out
    code, out, _ = run(capsys, "inspect", nets / "twice.onnx", "--graph-input", "all")
    assert code == 0
    assert "product of its inputs" in out
    assert "--domain box" in out


@pytest.mark.parametrize("name", ["bad.onnx", "missing.onnx", "sign.onnx"])
def test_inspect_refuses_what_solve_refuses(name: str, nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "inspect", nets / name)
    assert (code, out) == (3, "")
    assert err == run(capsys, "solve", nets / name)[2]


# ---------------------------------------------------------------- formulations, backends


def test_formulations(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "formulations")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines() if line and not line.startswith(("-", " "))}
    assert "all nine pairs" in rows["product"]
    assert "inf:1 inf:2" in rows["geolip"]
    assert "arXiv" in rows["lipsdp-neuron"]
    code, out, _ = run(capsys, "formulations", "geolip")
    assert code == 0
    assert "NeurIPS 2022" in out
    assert "--norm inf" in out
    assert "cone" in out
    assert "diagonally dominant" in out
    assert "no options" in run(capsys, "formulations", "product")[1]
    code, out, _ = run(capsys, "formulations", f"{nets / 'mine.py'}:ByHand")
    assert code == 0
    assert "-o loud=" in out
    assert "bool, default False" in out
    assert "talk on stdout while building" in out


def test_backends(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run(capsys, "backends")
    assert (code, err) == (0, "")
    for name in ("native", "clarabel", "scs"):
        assert re.search(rf"^{name} +installed", out, re.MULTILINE)
    code, out, _ = run(capsys, "backends", "clarabel")
    assert code == 0
    assert "psd" in out
    assert "licence" in out

    class Broken:
        name = "broken"

        def __init__(self) -> None:
            raise OSError("a library is missing")

    monkeypatch.setitem(BACKENDS, "broken", Broken)
    code, out, _ = run(capsys, "backends")
    assert code == 0
    assert "broken: OSError: a library is missing" in out
    assert "clarabel" in out
