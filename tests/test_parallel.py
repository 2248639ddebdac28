"""Families in processes: the same answers as in one, and nothing is lost to interrupts, exceptions or kills."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import numpy as np
import pytest

import lipmodel as lm
from lipmodel import pipeline
from lipmodel.machine import available_cores, available_memory
from lipmodel.parallel import forked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


def collect(items: range, work: Any, workers: int = 2, **callbacks: Any) -> tuple[dict[int, Any], list[Any]]:
    """Results by item, and all that was sent."""
    results: dict[int, Any] = {}
    sent: list[Any] = []
    given = {"received": sent.append, "finished": results.__setitem__, "interrupted": lambda: None, **callbacks}
    forked(items, work, workers=workers, **given)
    return results, sent


def test_every_item_is_done_once_by_the_processes() -> None:
    results, sent = collect(range(7), lambda item, send: (send(-item), os.getpid())[1])
    assert sorted(results) == list(range(7))
    assert sorted(sent) == sorted(-i for i in range(7))
    assert os.getpid() not in results.values()
    assert len(set(results.values())) <= 2
    assert collect(range(0), lambda item, send: item) == ({}, [])


def test_what_raises_or_is_killed_is_left_out() -> None:
    def work(item: int, send: Any) -> int:
        if item == 1:
            raise ValueError("no")
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    results, _ = collect(range(6), work, workers=1)
    assert results == {0: 0, 2: 2}  # the only process died at 3
    results, _ = collect(range(6), work, workers=3)
    assert set(results) == {0, 2, 4, 5}  # two processes are left to do the rest


def test_an_interrupt_reaches_the_work_and_begins_nothing_new() -> None:
    told = []

    def work(item: int, send: Any) -> str:
        try:
            send(item)
            time.sleep(30)
        except KeyboardInterrupt:
            return "stopped"
        return "slept"

    def received(item: int) -> None:
        if item == 0:
            os.kill(os.getpid(), signal.SIGINT)

    began = time.monotonic()
    results, _ = collect(range(8), work, received=received, interrupted=lambda: told.append(1))
    assert time.monotonic() - began < 10
    assert set(results.values()) == {"stopped"}
    assert len(results) <= 2
    assert told == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_is_raised() -> None:
    def work(item: int, send: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        send(item)
        time.sleep(30)

    def again() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        collect(range(2), work, received=lambda item: again() if item == 0 else None, interrupted=again)


def test_cores_and_memory_are_positive() -> None:
    assert available_cores() >= 1
    assert available_memory() > 2**20


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> lm.Network:
    """A network of six outputs, of which every one goes to a process."""
    monkeypatch.setattr(pipeline, "PAYS", 0.0)
    monkeypatch.setattr(pipeline, "WORKSPACE", 1e-9)
    rng = np.random.default_rng(0)
    return lm.from_weights([rng.standard_normal(s) for s in ((12, 4), (9, 12), (6, 9))], activation="relu")


def test_a_family_in_processes_gives_the_same_answer(wide: lm.Network) -> None:
    lines: list[str] = []
    states: list[Any] = []
    one = lm.solve(wide, "geolip", norm="inf", witness=False, jobs=1)
    two = lm.solve(wide, "geolip", norm="inf", witness=False, jobs=2, report=lines.append, progress=states.append)
    assert two.bound == one.bound
    assert two.per_output == one.per_output
    assert sorted(line.split("/")[0] for line in lines if "row" in line) == list("123456")
    assert all(state.values is None for state in states[1:])
    lm.verify(wide, two.certificate)
    with pytest.raises(lm.UsageError, match="jobs"):
        lm.solve(wide, jobs=0)


def test_an_interrupted_family_keeps_a_proved_bound(wide: lm.Network) -> None:
    whole = lm.solve(wide, "geolip", norm="inf", witness=False, jobs=1)
    seen: list[str] = []

    def interrupting(line: str) -> None:
        seen.append(line)
        if line.startswith("1/6"):
            os.kill(os.getpid(), signal.SIGINT)

    for jobs in (1, 2):
        seen.clear()
        result = lm.solve(wide, "geolip", norm="inf", witness=False, jobs=jobs, report=interrupting)
        assert result.termination == "interrupted"
        assert result.assurance == "proved"
        assert result.bound >= whole.bound * (1.0 - 1e-6)
        assert result.per_output is not None
        assert whole.per_output is not None
        assert result.per_output[0] == whole.per_output[0]  # what was proved by then is kept
        lm.verify(wide, result.certificate)


def test_a_member_whose_process_dies_is_solved_all_the_same(wide: lm.Network, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lm.solve(wide, "geolip", norm="inf", witness=False, jobs=1)
    here, plain = os.getpid(), pipeline.solve_member

    def dying(system: Any, member: Any, run: Any, limit: Any) -> Any:
        if os.getpid() != here and member.row in (2, 4):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(system, member, run, limit)

    monkeypatch.setattr(pipeline, "solve_member", dying)
    result = lm.solve(wide, "geolip", norm="inf", witness=False, jobs=2)
    assert result.bound == whole.bound
    assert result.termination == "optimal"
