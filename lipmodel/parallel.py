"""Independent pieces of work in forked processes: for families of programs, which share one network.

A fork shares the network, its matrices and a formulation from the user's own file with every process, and copies
nothing. Where processes cannot be forked safely (not on Linux), all work is done in this process.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from lipmodel.child import end_with_parent

Send = Callable[[Any], None]
PATIENCE = 0.1
"""Seconds after which an interrupt is noticed at the latest."""


@dataclass(slots=True, eq=False)
class _Worker:
    process: Any
    pipe: Any
    item: int | None = None


def forked(
    items: Iterable[int],
    work: Callable[[int, Send], Any],
    *,
    workers: int,
    received: Callable[[Any], None],
    finished: Callable[[int, Any], None],
    interrupted: Callable[[], None],
    late: Callable[[], bool] = lambda: False,
    lost: Callable[[int, int | None], None] = lambda item, status: None,
) -> None:
    """work(item, send) for every item in `workers` processes.

    received: is given whatever `work` sends on its way; finished: an item and its result, as they come. An interrupt is
    passed on to every process, as KeyboardInterrupt inside `work`, no further item is begun, and `interrupted` is told.
    A second interrupt ends the processes and is raised. late: asked all the time whether it is time to end the
    processes, whatever they are doing. lost: told the item that a process died at, and its exit status. What a process
    does not finish, because it was ended, died or raised an exception, is left out.
    """
    waiting = deque(items)
    crew = [_started(work) for _ in range(min(workers, len(waiting)))]
    told = 0
    try:
        with _counted_interrupts() as interrupts:
            for worker in crew:
                _give(worker, waiting)
            while busy := {worker.pipe: worker for worker in crew if worker.item is not None}:
                for pipe in connection.wait(list(busy), timeout=PATIENCE):
                    _heard(busy[pipe], waiting, received, finished, lost)
                if late():
                    break
                if len(interrupts) > told:
                    told += 1
                    if told > 1:
                        raise KeyboardInterrupt
                    waiting.clear()
                    interrupted()
                    for worker in crew:
                        os.kill(worker.process.pid, signal.SIGINT)
    finally:
        for worker in crew:
            worker.pipe.close()
            worker.process.kill()
            worker.process.join()


@contextmanager
def _counted_interrupts() -> Iterator[list[int]]:
    """Interrupts are counted instead of raised, so that none falls into the middle of a message."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _started(work: Callable[[int, Send], Any]) -> _Worker:
    import multiprocessing

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    # no daemon, which could not have processes of its own; `forked` ends it, and else the system does (`_serve`)
    process = context.Process(target=_serve, args=(theirs, ours, work))
    with warnings.catch_warnings(), _no_interrupts():
        # a thread that draws progress does not live on in the child, which never draws
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    theirs.close()
    return _Worker(process=process, pipe=ours)


@contextmanager
def _no_interrupts(how: int = signal.SIG_BLOCK) -> Iterator[None]:
    """Interrupts wait until this is over; with SIG_UNBLOCK, they come again while it lasts."""
    before = signal.pthread_sigmask(how, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Any, other_end: Any, work: Callable[[int, Send], Any]) -> None:
    """The life of a process: work on what comes, until nothing comes any more. Interrupts reach it at work only."""
    os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which passes it on
    end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    other_end.close()

    def send(content: Any) -> None:
        with _no_interrupts():
            pipe.send(("sent", content))

    with suppress(EOFError, BrokenPipeError):
        while True:
            item = pipe.recv()
            try:
                with _no_interrupts(signal.SIG_UNBLOCK):
                    kind, answer = "done", work(item, send)
            except (Exception, KeyboardInterrupt):
                kind, answer = "failed", None
            pipe.send((kind, answer))


def _give(worker: _Worker, waiting: deque[int]) -> None:
    worker.item = waiting.popleft() if waiting else None
    if worker.item is not None:
        try:
            worker.pipe.send(worker.item)
        except OSError:
            worker.item = None


def _heard(
    worker: _Worker,
    waiting: deque[int],
    received: Callable[[Any], None],
    finished: Callable[[int, Any], None],
    lost: Callable[[int, int | None], None],
) -> None:
    """One message of a process, or its end."""
    try:
        kind, content = worker.pipe.recv()
    except (EOFError, OSError):
        item, worker.item = worker.item, None
        worker.process.join(timeout=1.0)
        if item is not None:
            lost(item, worker.process.exitcode)
        return
    if kind == "sent":
        received(content)
        return
    if kind == "done" and worker.item is not None:
        finished(worker.item, content)
    _give(worker, waiting)
