"""Progress and tables: what is shown, where, and that it is never taken for a bound."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import pytest

from lipmodel.backends.base import Progress
from lipmodel.cli.common import stdout_for_the_answer
from lipmodel.report.progress import Reporter, choose_mode, progress_line
from lipmodel.report.tables import facts, printable, table


def test_progress_is_never_shown_as_a_bound() -> None:
    line = progress_line(Progress(iteration=3, objective=2.0, lower=1.5, seconds=0.1))
    assert line == "objective 2 (unproved), lower estimate 1.5, gap 2.5e-01"
    proved = progress_line(Progress(iteration=3, objective=2.0, lower=1.5, seconds=0.1, bound=2.0000001))
    assert proved == "proved 2.00001, lower estimate 1.5, gap 2.5e-01"
    ahead = progress_line(Progress(iteration=3, objective=1.9, lower=1.5, seconds=0.1, bound=2.0))
    assert ahead == "proved 2, objective 1.9 (unproved), lower estimate 1.5, gap 2.5e-01"
    assert progress_line(Progress(iteration=0, objective=3.0, lower=0.0, seconds=0.0, bound=3.0)) == "proved 3"
    assert "lower" not in progress_line(Progress(iteration=1, objective=math.inf, lower=-math.inf, seconds=0.0))
    assert "gap" not in progress_line(Progress(iteration=1, objective=math.inf, lower=0.0, seconds=0.0))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_line_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_mode(quiet=False, verbose=False) == "silent"  # piped
    assert choose_mode(quiet=False, verbose=True) == "plain"
    assert choose_mode(quiet=True, verbose=False) == "silent"
    terminal = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    assert choose_mode(quiet=False, verbose=False) == "live"
    assert choose_mode(quiet=True, verbose=False) == "silent"
    with Reporter("live") as reporter:
        reporter.say("formulation [red]x[/red]: a reason")
        reporter.say("2/7 row 1: 3.5")
        reporter.progress(Progress(iteration=3, objective=2.0, lower=1.5, seconds=0.1))
        reporter._live.refresh()
    text = terminal.getvalue()
    assert "formulation [red]x[/red]: a reason\n" in text  # names are no markup
    assert "2/7 row 1: 3.5 · objective 2 (unproved)" in text
    assert "≤" not in text
    monkeypatch.setenv("TERM", "dumb")
    assert choose_mode(quiet=False, verbose=False) == "plain"


def test_plain_lines_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Reporter("plain") as reporter:
        reporter.say("a message")
        for k in range(100):
            reporter.progress(Progress(iteration=k, objective=2.0, lower=1.5, seconds=0.0))
    assert stream.getvalue().startswith("a message\n")
    assert len(stream.getvalue().splitlines()) == 2
    with Reporter("silent") as reporter:
        reporter.say("nothing")
        reporter.progress(Progress(iteration=0, objective=1.0, lower=0.0, seconds=0.0))
    assert "nothing" not in stream.getvalue()


def test_tables_align_wrap_and_escape() -> None:
    lines = table(("a", "text"), [("x\ny", "one two three four five six seven eight"), ("long", "\x1b[31m")], width=32)
    assert lines[0] == "a     text"
    assert all(len(line) <= 32 for line in lines)
    assert lines[2].startswith("x     one two")
    assert lines[3].startswith("y     ")
    assert lines[-1] == "long  \\x1b[31m"
    assert printable("α ≤ β\u202e") == "α ≤ β\\u202e"
    assert facts([("a", "1\n2"), ("bcd", "3")]) == ["  a    1", "       2", "  bcd  3"]


def test_what_is_printed_meanwhile_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with stdout_for_the_answer():
        print("noise")
        subprocess.run([sys.executable, "-c", "print('deeper noise')"], check=True)
    print("answer")
    out, err = capfd.readouterr()
    assert out == "answer\n"
    assert "deeper noise" in err
    with pytest.raises(ZeroDivisionError), stdout_for_the_answer():
        raise ZeroDivisionError
    print("still here")
    assert capfd.readouterr().out == "still here\n"
