"""A solver call in a process of its own: for libraries that know no time limit, hold interrupts back, or may crash."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from lipmodel.machine import CAN_FORK

GRACE = 1.0
"""Seconds beyond its own time limit that a solver has for stopping by itself, which leaves a point."""
_STOP_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """How a call ended: "done" with its value, "raised" an error, "died" without a word, or "late"."""

    ended: Literal["done", "raised", "died", "late"]
    value: Any = None
    message: str = ""


def in_child(call: Callable[[], Any], *, seconds: float | None, quiet: bool) -> Outcome:
    """call() in a forked process that is killed after `seconds`, and by whatever interrupts this one.

    The value must be picklable. quiet: what it prints is dropped, else it goes to stderr. Where processes cannot be
    forked, the call is made here, without a time limit.
    """
    if not CAN_FORK:
        return _called(call)
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        # a thread that draws progress does not live on in the child, which never draws
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(ours)
        _serve(call, theirs, quiet=quiet)
    os.close(theirs)
    try:
        data = _received(ours, None if seconds is None else time.monotonic() + seconds)
    finally:
        os.close(ours)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if data is None:
        return Outcome(ended="late", message="stopped at the time limit")
    try:
        outcome: Outcome = pickle.loads(data)
    except Exception:  # cut off, or nothing at all
        code = os.waitstatus_to_exitcode(status)
        return Outcome(ended="died", message=f"the solver's process ended with status {code} and no answer")
    return outcome


def end_with_parent() -> None:
    """Let the system kill this process when the one that forked it ends, however it ends (on Linux)."""
    import ctypes

    ctypes.CDLL(None).prctl(_STOP_WITH_PARENT, signal.SIGKILL)


def _called(call: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(ended="done", value=call())
    except Exception as error:
        return Outcome(ended="raised", message=f"{type(error).__name__}: {error}")


def _serve(call: Callable[[], Any], pipe: int, *, quiet: bool) -> None:
    """The life of the child. It never returns: nothing of the parent's must be run a second time."""
    code = 1
    try:
        import ctypes

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
        end_with_parent()
        sink = os.open(os.devnull, os.O_WRONLY) if quiet else 2
        os.dup2(sink, 1)
        if quiet:
            os.dup2(sink, 2)
        data = pickle.dumps(_called(call))
        ctypes.CDLL(None).fflush(None)
        with os.fdopen(pipe, "wb") as stream:
            stream.write(data)
        code = 0
    finally:
        os._exit(code)


def _received(pipe: int, deadline: float | None) -> bytes | None:
    """All that the child writes, or None where it is not done by the deadline."""
    parts: list[bytes] = []
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0.0:
            return None
        ready, _, _ = select.select([pipe], [], [], left)
        if ready:
            part = os.read(pipe, 1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
