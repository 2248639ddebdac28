"""`lipmodel compare`: its table in four forms, its picture, its exit codes, and what goes to which stream."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_nets import run, write_nets

import lipmodel as lm
from lipmodel.comparison import Comparison, Entry
from lipmodel.report import plots
from lipmodel.report.comparison import COLUMNS, csv_text, markdown, text
from lipmodel.report.comparison_progress import ComparisonReporter
from lipmodel.result import Result
from lipmodel.spec import Spec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")

MINE = Path(__file__).with_name("compare_formulations.py")
FEW = ("-f", "product", "-f", "lipsdp-neuron", "-f", "geolip", "--norm", "2", "--time-limit", "20")


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nets(tmp_path_factory.mktemp("nets"))


def entry(method: str, bound: float, seconds: float, backend: str | None = None, instead: str = "") -> Entry:
    result = Result(
        spec=Spec(),
        network={},
        formulation=method,
        backend=backend,
        bound=bound,
        assurance="proved",
        termination="optimal",
        instead=instead,
    )
    return Entry(method=method, backend=backend, status="answered", result=result, seconds=seconds)


def comparison(*entries: Entry, lower: float | None = 1.0, **facts: Any) -> Comparison:
    given: dict[str, Any] = {
        "network": {"path": "net.onnx", "inputs": 3, "activations": 4, "outputs": 2},
        "spec": Spec(),
        "entries": tuple(sorted(entries, key=lambda e: (e.result is None, e.bound))),
        "witness": None if lower is None else SimpleNamespace(ratio=lower),
        "witness_seconds": 0.5,
        "estimates": (),
        "no_estimates": (),
        "time_limit": 120.0,
        "seconds": 3.0,
        "interrupted": False,
    }
    return Comparison(**{**given, **facts})


# ---------------------------------------------------------------- the table


def test_the_table(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "compare", nets / "relu.onnx", *FEW)
    assert code == 0
    head, blank, header, _, *rows = out.splitlines()
    assert re.fullmatch(r"relu\.onnx \(3 inputs, 4 activations, 2 outputs\): L\(2→2\) in \d+\.\d s of 20 s", head), head
    assert blank == ""
    assert header.split() == ["method", "bound", "assurance", "ratio", "time", "(s)", "note"]
    assert [row.split()[0] for row in rows[-2:]] == ["product", "lower"]
    bounds = [float(re.split(r"\s{2,}", row)[1]) for row in rows]
    assert bounds[:-1] == sorted(bounds[:-1])
    assert bounds[-1] <= bounds[0]
    assert "≤" not in out
    # progress is told in plain lines, where there is no terminal
    assert re.search(r"^product: \S+ proved, \S+ s$", err, re.MULTILINE)
    assert re.search(r"^lipsdp-neuron \(native\): \S+ proved", err, re.MULTILINE)
    assert run(capsys, "compare", nets / "relu.onnx", "-f", "product", "-q")[2] == ""


def test_bounds_are_rounded_up_and_the_lower_bound_down() -> None:
    shown = text(comparison(entry("a", 1.00000001, 0.1), entry("b", 2.0, 0.1), lower=0.99999999))
    a, b, lower = shown.splitlines()[-3:]
    assert a.split()[1] == "1.00001"
    assert (b.split()[1], b.split()[3]) == ("2", "2.0000")
    assert lower.split()[2] == "0.999999"
    assert "no witness found" in text(comparison(entry("a", 1.0, 0.1), lower=None)).splitlines()[-1]


def test_what_has_no_bound_is_below_the_table_with_its_reason() -> None:
    left = [
        Entry(method="slow", status="did not fit", reason="no answer within 3 s", seconds=3.0),
        Entry(method="odd", status="not applicable", reason="it is\nnot \x1b[31mfor this"),
    ]
    lines = text(comparison(entry("a", 2.0, 0.1), *left), width=40).splitlines()
    place = lines.index("not in the table")
    assert lines[place - 2].startswith("lower bound")
    assert lines[place + 1] == "  slow  did not fit: no answer within 3"
    assert lines[place + 3] == "  odd   not applicable: it is not"
    assert "\\x1b[31mfor this" in "".join(lines)
    assert all(len(line) <= 40 for line in lines[place:])
    rows = markdown(comparison(entry("a", 2.0, 0.1), *left)).splitlines()
    assert "- slow: did not fit: no answer within 3 s" in rows


def test_notes_say_what_a_bound_is_not() -> None:
    stopped = entry("a", 2.0, 0.1, instead="product")
    assert stopped.result is not None
    stopped = replace(stopped, result=replace(stopped.result, termination="time-limit", gap=0.25))
    assert stopped.note == "product instead, time limit, gap 2.5e-01"


def test_markdown(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "compare", nets / "relu.onnx", *FEW, "--format", "md")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert lines[0] == "| method | bound | assurance | ratio | time (s) | note |"
    assert {line.count("|") for line in lines} == {7}
    assert lines[-1].startswith("| lower bound |")
    assert len(lines) == 2 + 3 + 1
    tricky = markdown(comparison(entry("a|b<i>*", 2.0, 0.1)))
    assert r"a\|b\<i\>\*" in tricky


def test_csv(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "compare", nets / "relu.onnx", *FEW, "--norm", "inf:1", "--format", "csv")
    assert code == 0
    header, *rows = csv.reader(io.StringIO(out))
    assert tuple(header) == COLUMNS
    found = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(found)[-1] == "lower bound"
    assert found["lipsdp-neuron"]["bound"] == ""
    assert found["lipsdp-neuron"]["termination"] == "not applicable"
    assert "2:2" in found["lipsdp-neuron"]["note"]
    exact = lm.solve(nets / "relu.onnx", "product", norm="inf:1", witness=False).bound
    assert float(found["product"]["bound"]) == exact
    assert float(found["geolip"]["ratio"]) == 1.0
    assert found["geolip"]["backend"] == "native"
    assert float(found["lower bound"]["bound"]) <= float(found["geolip"]["bound"])
    assert float(found["lower bound"]["ratio"]) <= 1.0
    quoted = csv_text(comparison(entry("a", 0.1 + 0.2, 0.1), Entry(method='b,"c"', status="failed", reason="x,\ny")))
    assert list(csv.reader(io.StringIO(quoted)))[1][2] == repr(0.1 + 0.2)
    assert list(csv.reader(io.StringIO(quoted)))[2][0] == 'b,"c"'


def test_every_element_of_the_json_is_verified(nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("compare", nets / "relu.onnx", *FEW, "-f", f"{MINE}:Declines", "--format", "json")
    code, out, err = run(capsys, *given)
    assert code == 0
    results = json.loads(out)
    assert [r["schema"] for r in results] == ["lipmodel/result/1"] * 3
    assert [r["bound"] for r in results] == sorted(r["bound"] for r in results)
    assert len({r["lower_bound"] for r in results}) == 1
    assert "declines: not applicable: this network is none of mine" in err
    for k, result in enumerate(results):
        path = tmp_path / f"{k}.json"
        path.write_text(json.dumps(result))
        code, said, _ = run(capsys, "verify", nets / "relu.onnx", path)
        assert code == 0, said
        assert "verified: " in said
        result["bound"] = math.nextafter(result["bound"], 0.0)
        path.write_text(json.dumps(result))
        assert run(capsys, "verify", nets / "relu.onnx", path)[0] == 6


def test_estimates_stand_in_a_table_of_their_own(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("compare", nets / "relu.onnx", "-f", "product", "--estimates", "--time-limit", "30")
    code, out, _ = run(capsys, *given)
    assert code == 0
    before, _, after = out.partition("estimates (not bounds)")
    assert "greedy-seqlip" not in before
    assert "greedy-seqlip" in after
    assert "product" in before
    code, out, _ = run(capsys, *given, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert any(row["termination"] == "estimate" for row in rows)
    assert all(row["bound"] == "" for row in rows if row["termination"] == "estimate")
    code, out, _ = run(capsys, *given, "--format", "json")
    assert [r["formulation"] for r in json.loads(out)] == ["product"]


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["NET", "-f", "no-such"], 2, "unknown formulation 'no-such'"),
        (["NET", "-f", "lipsdp-neuron", "--norm", "inf:1"], 2, "none of the formulations applies"),
        (["NET", "-b", "no-such"], 2, "unknown backend"),
        (["NET", "--norm", "3"], 2, "unknown norm"),
        (["NET", "--outputs", "9"], 2, "outputs 0 to 1"),
        (["NET", "--plot", "bounds.txt"], 2, ".svg"),
        (["NET", "--plot", "no-such-folder/bounds.svg"], 2, "no directory"),
        (["NET", "--time-limit", "nan"], 2, "time limit"),
        (["MISSING"], 3, "no such file"),
        (["EXP"], 3, "refused"),
        (["HUGE", "-f", "product"], 5, "no method has a proved bound"),
        (["NET", "-f", f"{MINE}:Leaves"], 5, "no method has a proved bound"),
    ],
)
def test_exit_codes(argv: list[str], code: int, message: str, nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"NET": "relu.onnx", "MISSING": "nowhere.onnx", "EXP": "exp.onnx", "HUGE": "huge.onnx"}
    given = [str(nets / files[a]) if a in files else a for a in argv]
    found, out, err = run(capsys, "compare", *given)
    assert found == code, err
    assert message in err
    assert out == "" or code == 5


def test_a_missing_solver_exits_with_4(
    nets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lipmodel.backends import _REGISTERED
    from lipmodel.backends.base import Missing

    absent = type("Absent", (), {"name": "absent", "available": lambda self: Missing(extra="absent")})
    monkeypatch.setitem(_REGISTERED, "absent", absent)
    assert run(capsys, "compare", nets / "relu.onnx", "-b", "absent")[0] == 4
    code, out, _ = run(capsys, "compare", nets / "relu.onnx", "-b", "absent", "-b", "native", "-f", "lipsdp-neuron")
    assert code == 0
    assert "every model (absent)  not applicable: the backend 'absent' is not installed" in out


def test_files_of_users(nets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What a formulation prints never reaches stdout, and what it does to its process harms no other."""
    mine = [f"{MINE}:{name}" for name in ("Loud", "Exits", "Killed")]
    argv = [arg for name in ("product", *mine) for arg in ("-f", name)]
    from lipmodel.cli import main

    capfd.readouterr()
    assert main(["compare", str(nets / "relu.onnx"), *argv, "--time-limit", "20", "-q", "--format", "csv"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert {row["method"]: row["termination"] for row in rows} == {
        "product": "closed-form",
        "loud": "optimal",
        "exits": "failed",
        "killed": "failed",
        "lower bound": "witness",
    }


def test_a_file_that_exits_when_it_is_read(nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    code, out, err = run(capsys, "compare", nets / "relu.onnx", "-f", f"{tmp_path / 'leaves.py'}:Any")
    assert (code, out) == (2, "")
    assert "does not run" in err


def test_ctrl_c_prints_what_is_there(nets: Path) -> None:
    argv = ["-f", "product", "-f", f"{MINE}:Deaf", "--time-limit", "300"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lipmodel.cli", "compare", str(nets / "relu.onnx"), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("product: "):
            break
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert ", interrupted" in out.splitlines()[0]
    assert re.search(r"^product +\d", out, re.MULTILINE)
    assert re.search(r"^  deaf +did not fit: interrupted", out, re.MULTILINE)


# ---------------------------------------------------------------- while it runs


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_table_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipmodel.backends.base import Progress

    terminal = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", terminal)
    waiting = [Entry(method="product"), Entry(method="[red]x[/red]"), Entry(method="late")]
    with ComparisonReporter("live") as reporter:
        for number, method in enumerate(waiting):
            reporter.watch(number, method, None)
        reporter.watch(0, entry("product", 3.0000001, 0.25), None)
        reporter.watch(1, replace(waiting[1], status="running"), None)
        reporter.watch(1, waiting[1], Progress(iteration=3, objective=2.0, lower=1.5, seconds=0.1))
        reporter._live.refresh()
        reporter.say("searching for a witness")
    shown = terminal.getvalue()
    assert re.search(r"product +3\.00001 +0\.250", shown)
    assert re.search(r"\[red\]x\[/red\].*objective 2 \(unproved\)", shown)
    assert re.search(r"late +.*waiting", shown)


# ---------------------------------------------------------------- the picture


def _crowded() -> Comparison:
    methods = [entry(f"method-{k}", 3.0 * 1.3 ** (k % 7), 10.0 ** (-3 + 0.4 * k)) for k in range(9)]
    tied = [entry("tied-semidefinite", 3.0 + 1e-6 * k, 1.0 + 0.02 * k, backend=f"solver{k}") for k in range(5)]
    return comparison(*methods, *tied, entry("late", 9.0, 30.0, instead="product"), lower=2.75)


@pytest.mark.parametrize("suffix", plots.SUFFIXES)
def test_the_picture_is_drawn_in_every_format(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra `plot`")
    path = tmp_path / f"bounds{suffix}"
    plots.plot(_crowded(), path)
    start = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing temporary is left


def test_no_label_covers_another(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra `plot`")
    from matplotlib.text import Text

    drawn = plots.figure(_crowded())
    drawn.canvas.draw()
    (axes,) = drawn.axes
    boxes = {t.get_text(): Text.get_window_extent(t).extents for t in axes.texts}  # without their lines
    assert len(boxes) == 16
    assert "lower bound 2.75" in boxes
    assert "tied-semidefinite (solver3)" in boxes
    names = list(boxes)
    for k, a in enumerate(names):
        for b in names[:k]:
            assert plots._overlap(tuple(boxes[a]), boxes[b]) == 0.0, (a, b)
    assert axes.get_title() == "net.onnx: L(2→2)"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [t.get_text() for t in axes.get_legend().get_texts()] == [
        "without a solver", "with a solver", "another bound instead",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "lower"),
    [((1e-300, 1e300), None), ((2.0,), 2.0), ((0.0,), None), ((0.0, 1.0), 0.0), ((5.0, 5.0), 4.999)],
)
def test_pictures_of_extremes(bounds: tuple[float, ...], lower: float | None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra `plot`")
    entries = [entry(f"m{k}", bound, 0.0) for k, bound in enumerate(bounds)]
    plots.plot(comparison(*entries, lower=lower), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_the_command_draws(nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra `plot`")
    path = tmp_path / "b.svg"
    assert run(capsys, "compare", nets / "relu.onnx", *FEW, "-q", "--plot", path)[0] == 0
    assert path.read_bytes().startswith(b"<?xml")


def test_without_matplotlib_there_is_one_error_before_any_work(
    nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else plain(name))
    code, out, err = run(capsys, "compare", nets / "relu.onnx", "--plot", tmp_path / "b.svg")
    assert (code, out) == (2, "")
    assert err == "lipmodel: --plot needs matplotlib: pip install 'lipmodel[plot]'\n"
