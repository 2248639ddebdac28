"""The command line: answers, JSON, exit codes, and what goes to which stream."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_nets import run, write_nets

import lipmodel as lm
from lipmodel.backends import _REGISTERED as BACKENDS
from lipmodel.backends.base import Capabilities, Missing, Unlicensed
from lipmodel.cli import main, parser
from lipmodel.cli.common import key_values, plain_value

COMMANDS = ["solve", "compare", "verify", "inspect", "export", "certify", "formulations", "backends"]
ANSWER = re.compile(r"(\S+) ≤ L\((\S+)→(\S+?)(, outputs \S+)?\) ≤ (\S+)   proved, ([\w-]+), (?:([\w-]+), )?\d+\.\d\d s")


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nets(tmp_path_factory.mktemp("nets"))


@pytest.fixture(scope="module")
def saved(nets: Path) -> Path:
    """A saved result for relu.onnx."""
    path = nets / "relu.json"
    assert main(["solve", str(nets / "relu.onnx"), "-f", "lipsdp-neuron", "-q", "--save", str(path)]) == 0
    return path


# ---------------------------------------------------------------- the command line itself


def test_help_names_every_command_and_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert list(commands.choices) == COMMANDS
    for name, sub in commands.choices.items():
        assert name in out
        assert all(action.help for action in sub._actions), name
        assert "examples:" in (sub.epilog or "")
        code, text, _ = run(capsys, name, "--help")
        assert code == 0
        assert f"lipmodel {name}" in text


def test_help_and_version_load_nothing_heavy() -> None:
    script = (
        "import sys; from lipmodel.cli import main; codes = main(['--help']), main(['--version']); "
        "heavy = {'numpy', 'scipy', 'onnx', 'sympy', 'networkx', 'rich', 'flint', 'clarabel', 'dataclasses'}; "
        "print('loaded', sorted(heavy & set(sys.modules)), codes)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(f"lipmodel {lm.__version__}\nloaded [] (0, 0)\n")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["compare"],
        ["compare", "NET", "--time-limit", "0"],
        ["compare", "NET", "--format", "xml"],
        ["certify", "NET"],
        ["solve"],
        ["solve", "NET", "--nonsense"],
        ["solve", "NET", "-q", "-v"],
        ["solve", "NET", "--tol", "small"],
        ["solve", "NET", "--tol", "2"],
        ["solve", "NET", "--time-limit", "-1"],
        ["solve", "NET", "--time-limit", "nan"],
        ["solve", "NET", "--assurance", "numeric"],
        ["solve", "NET", "-f", "no-such-formulation"],
        ["solve", "NET", "-f", "./no-such-file.py:Name"],
        ["solve", "NET", "-b", "no-such-backend"],
        ["solve", "NET", "-o", "key"],
        ["solve", "NET", "-f", "geolip", "-o", "key=1"],
        ["solve", "NET", "--backend-option", "=1"],
        ["solve", "NET", "--norm", "3"],
        ["solve", "NET", "--norm", "1:2:inf"],
        ["solve", "NET", "--outputs", "2"],
        ["solve", "NET", "--outputs", "margin:"],
        ["solve", "NET", "--domain", "box:1:0"],
        ["solve", "NET", "--domain", "box:0"],
        ["solve", "NET", "--domain", "box:0:1,2,3,4,5,6,7,8"],
        ["solve", "NET", "--domain", "ball:0:-1"],
        ["solve", "NET", "--domain", "ball:no-such-file.npy:1"],
        ["solve", "NET", "--graph-output", "no-such-tensor"],
        ["solve", "NET", "--save", "no-such-folder/r.json"],
        ["export", "NET", "out.dat-s"],
        ["verify", "NET"],
        ["verify", "NET", "no-such-file.json"],
        ["formulations", "no-such-formulation"],
        ["backends", "no-such-backend"],
    ],
)
def test_usage_errors_exit_with_2(argv: list[str], nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *(nets / "relu.onnx" if a == "NET" else a for a in argv))
    assert code == 2
    assert out == ""
    assert err.strip()
    assert "Traceback" not in err


def test_the_destination_is_checked_before_the_work(
    nets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipmodel.pipeline.solve", lambda *a, **k: pytest.fail("solved before the check"))
    code, _, err = run(capsys, "solve", nets / "relu.onnx", "--save", nets / "nowhere" / "r.json")
    assert code == 2
    assert "nowhere" in err
    assert run(capsys, "solve", nets / "relu.onnx", "--save", nets)[0] == 2


def test_pairs_and_plain_values() -> None:
    assert key_values(["a=1", "b=x=y"], "-o") == {"a": "1", "b": "x=y"}
    with pytest.raises(lm.UsageError, match="twice"):
        key_values(["a=1", "a=2"], "-o")
    values = [plain_value(t) for t in ("true", "False", "3", "1e-3", "text")]
    assert values == [True, False, 3, 1e-3, "text"]
    assert [type(v) for v in values] == [bool, bool, int, float, str]


# ---------------------------------------------------------------- solve


def test_the_answer_is_the_last_line_and_stderr_is_quiet_when_piped(
    nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "solve", nets / "one.onnx", "-f", "lipsdp-neuron")
    assert (code, err) == (0, "")
    match = ANSWER.fullmatch(out.splitlines()[-1])
    assert match
    assert float(match[1]) <= 6.0 <= float(match[5]) < 6.001
    assert (match[2], match[3], match[6]) == ("2", "2", "lipsdp-neuron")


def test_a_choice_made_for_the_user_is_announced(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "solve", nets / "one.onnx", "--norm", "inf:2")
    assert code == 0
    assert ANSWER.fullmatch(out.strip())
    assert err.startswith("formulation geolip: ")
    assert len(err.splitlines()) == 1
    assert run(capsys, "solve", nets / "one.onnx", "-q")[2] == ""
    code, out, err = run(capsys, "solve", nets / "one.onnx", "--json")
    assert err == ""
    assert json.loads(out)["reason"].startswith("formulation lipsdp-neuron: ")


def test_verbose_speaks_on_stderr_only(nets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["solve", str(nets / "relu.onnx"), "--norm", "inf", "-f", "geolip", "-b", "clarabel", "-v", "--json"]
    capfd.readouterr()
    assert main(argv) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["per_output"][1]["output"] == 1
    assert "2/2 row 1: " in err
    assert "Clarabel" in err  # the solver's own log


def test_json_has_the_keys_of_the_contract(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "solve", nets / "relu.onnx", "-f", "lipsdp-neuron", "-b", "clarabel", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["schema"] == "lipmodel/result/1"
    assert set(data["network"]) == {"path", "sha256", "inputs", "outputs", "activations", "parameters"}
    assert (data["network"]["inputs"], data["network"]["outputs"], data["network"]["activations"]) == (3, 2, 4)
    assert data["spec"] == {"input_norm": "2", "output_norm": "2", "domain": "global", "outputs": "all"}
    assert (data["formulation"], data["backend"], data["assurance"]) == ("lipsdp-neuron", "clarabel", "proved")
    assert data["termination"] == "optimal"
    assert 0.0 < data["lower_bound"] <= data["bound"]
    assert abs(data["claim"] - data["bound"]) < 1e-4 * data["bound"]
    assert 0.0 <= data["gap"] < 1e-4
    assert isinstance(data["exact"], bool)
    assert data["per_output"] is None
    assert set(data["timings"]) == {"import", "build", "solve", "certify", "lower", "total"}
    assert all(v >= 0.0 for v in data["timings"].values())
    assert lm.Result.from_json(data).bound == data["bound"]
    assert float.fromhex(data["certificate"]["claim"]["bound"]) == data["bound"]


def test_outputs_and_margins_reach_the_answer(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "solve", nets / "relu.onnx", "-f", "product", "--outputs", "margin:0")
    assert code == 0
    match = ANSWER.fullmatch(out.strip())
    assert match
    assert match[4] == ", outputs margin:0"
    code, out, _ = run(capsys, "solve", nets / "relu.onnx", "-f", "product", "--outputs", "1", "--json")
    assert json.loads(out)["spec"]["outputs"] == "1"


def test_graph_inputs_and_outputs_are_chosen(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "solve", nets / "two.onnx")
    assert code == 3
    assert "[inputs]" in err
    assert "[outputs]" in err
    both = ["--graph-input", "x", "--graph-input", "u", "--graph-output", "y"]
    code, out, _ = run(capsys, "solve", nets / "two.onnx", *both, "-f", "product", "--json")
    assert code == 0
    assert json.loads(out)["bound"] == pytest.approx(math.sqrt(2.0))
    only = ["--graph-input", "u", "--graph-output", "all", "-f", "product", "--json"]
    code, out, _ = run(capsys, "solve", nets / "two.onnx", *only)
    assert code == 0
    assert (json.loads(out)["network"]["inputs"], json.loads(out)["network"]["outputs"]) == (2, 4)
    assert json.loads(out)["bound"] == pytest.approx(1.0)


def test_a_formulation_from_a_file_and_its_noise(nets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = f"{nets / 'mine.py'}:ByHand"
    capfd.readouterr()
    assert main(["solve", str(nets / "relu.onnx"), "-f", name, "-o", "loud=yes", "-q", "--json"]) == 0
    out, err = capfd.readouterr()
    data = json.loads(out)
    assert (data["formulation"], data["options"], data["assurance"]) == ("by-hand", {"loud": True}, "proved")
    assert err.count("noise from") == 2


def test_the_assurance_model_lists_its_assumptions(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, path = f"{nets / 'mine.py'}:ByHand", nets / "model.json"
    code, out, _ = run(capsys, "solve", nets / "relu.onnx", "-f", name, "--assurance", "model", "--save", path)
    assert code == 0
    assert "   model, by-hand, " in out
    code, out, _ = run(capsys, "verify", nets / "relu.onnx", path)
    assert code == 0
    *assumptions, read_by, last = out.splitlines()
    assert read_by.startswith("network read by: ")
    assert assumptions
    assert all(line.startswith("assuming: ") for line in assumptions)
    assert last.startswith("verified under these assumptions: ")


def test_a_result_that_cannot_be_saved_is_still_printed(
    nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, path: Any) -> None:
        raise lm.UsageError("cannot write: no space left on device")

    monkeypatch.setattr(lm.Result, "save", full)
    code, out, err = run(capsys, "solve", nets / "one.onnx", "-f", "product", "--save", tmp_path / "r.json")
    assert code == 2
    assert ANSWER.fullmatch(out.strip())
    assert "no space left" in err


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bad.onnx", "[file-format]"),
        ("missing.onnx", "no such file"),
        ("", "directory"),
        ("exp.onnx", "[non-lipschitz]"),
    ],
)
@pytest.mark.parametrize("command", ["solve", "export", "verify"])
def test_refused_networks_exit_with_3(
    command: str, name: str, words: str, nets: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest: dict[str, list[Any]] = {
        "solve": ["-f", "product"],
        "export": ["-f", "geolip", nets / "out.dat-s"],
        "verify": [saved],
    }
    code, out, err = run(capsys, command, nets / name, *rest[command])
    if command == "verify" and name == "exp.onnx":
        assert code == 6  # another network, whatever it is
        return
    assert code == 3
    assert out == ""
    assert words in err
    assert "refused, for 1 reason" in err
    assert not (nets / "out.dat-s").exists()


@pytest.mark.parametrize("state", [Missing(extra="dummy"), Unlicensed(reason="no licence file")])
def test_unusable_backends_exit_with_4(state: Any, nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Dummy:
        name, description = "dummy", "a solver that cannot be used"
        capabilities = Capabilities(cones=frozenset({"psd"}))

        def available(self) -> Any:
            return state

        def refuses(self, model: Any) -> None:
            return None

        def solve(self, model: Any, options: Any) -> Any:
            raise AssertionError("an unusable solver was used")

    lm.register_backend(Dummy)
    try:
        code, out, err = run(capsys, "solve", nets / "relu.onnx", "-b", "dummy")
        assert (code, out) == (4, "")
        assert "dummy" in err
        code, out, _ = run(capsys, "backends")
        assert code == 0
        assert str(state).partition(":")[0] in out
        assert str(state) in run(capsys, "backends", "dummy")[1]
        assert str(state) in run(capsys, "backends", "dummy")[1]
    finally:
        del BACKENDS["dummy"]


def test_nothing_proved_exits_with_5_and_no_unproved_bound(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for formulation in ("product", "lipsdp-neuron"):
        code, out, err = run(capsys, "solve", nets / "huge.onnx", "-f", formulation)
        assert code == 5
        assert "no bound proved" in out
        assert ") ≤" not in out
        assert "no bound could be proved" in err
    code, out, _ = run(capsys, "solve", nets / "huge.onnx", "-f", "product", "--json")
    assert code == 5
    assert json.loads(out)["bound"] == "inf"
    assert json.loads(out)["assurance"] in ("none", "numeric")


def test_a_claim_without_a_proof_never_carries_the_sign_of_a_bound(
    nets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = lm.Result(
        spec=lm.Spec(), network={}, formulation="custom", backend="scs", bound=math.inf, assurance="numeric",
        termination="optimal", claim=1.25,
    )  # fmt: skip
    monkeypatch.setattr("lipmodel.pipeline.solve", lambda *a, **k: claimed)
    code, out, _ = run(capsys, "solve", nets / "relu.onnx")
    assert code == 5
    assert "1.25" in out
    assert "unproved" in out
    assert "≤" not in out


def test_unexpected_errors_exit_with_70(
    nets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("two lines\nof text")

    monkeypatch.setattr("lipmodel.pipeline.solve", broken)
    code, out, err = run(capsys, "solve", nets / "relu.onnx")
    assert (code, out) == (70, "")
    assert len(err.splitlines()) == 1
    assert "RuntimeError: two lines of text" in err
    assert "report" in err
    code, _, err = run(capsys, "solve", nets / "relu.onnx", "-v")
    assert code == 70
    assert "Traceback" in err


def test_an_interrupt_exits_with_130(
    nets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("lipmodel.pipeline.solve", interrupted)
    code, out, err = run(capsys, "solve", nets / "relu.onnx")
    assert (code, out) == (130, "")
    assert "interrupted" in err


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = "import sys; from lipmodel.cli import main; sys.exit(main(['formulations']))"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 141
    assert err == b""


def test_the_signs_of_an_answer_survive_any_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["--help"]) == 0
    sys.stdout.flush()
    assert "L(2→2)" in raw.getvalue().decode("utf-8")


def test_an_interrupt_does_not_cut_the_answer_in_two(
    nets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = lm.Result.sentence

    def interrupted(result: lm.Result) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return plain(result)

    monkeypatch.setattr(lm.Result, "sentence", interrupted)
    code, out, _ = run(capsys, "solve", nets / "relu.onnx", "--save", tmp_path / "r.json")
    assert code == 0
    assert "≤ L(2→2) ≤" in out
    assert (tmp_path / "r.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
