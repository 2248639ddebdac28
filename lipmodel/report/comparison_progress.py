"""A comparison while it runs, on stderr: a table that fills on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from lipmodel.report.comparison import seconds
from lipmodel.report.progress import Display, Mode, progress_line
from lipmodel.report.tables import printable
from lipmodel.result import rounded

if TYPE_CHECKING:
    from lipmodel.backends.base import Progress
    from lipmodel.comparison import Entry


class ComparisonReporter(Display):
    """Receives the messages of a comparison and the states of its methods."""

    def __init__(self, mode: Mode) -> None:
        super().__init__(mode)
        self._entries: dict[int, Entry] = {}
        self._running: tuple[int, float, str] | None = None
        self._message = "reading the network"

    def say(self, line: str) -> None:
        """One message, such as what a method says about itself."""
        self._message = printable(line)
        if self.mode == "plain":
            print(self._message, file=sys.stderr, flush=True)

    def watch(self, number: int, entry: Entry, state: Progress | None) -> None:
        """A method that waits, runs, or is over; state: of its solver, while it runs."""
        begun = entry.status == "running"
        if state is not None and self._running is not None:
            self._running = (number, self._running[1], progress_line(state))
            return
        self._entries[number] = entry
        self._running = (number, time.monotonic(), "") if begun else None
        self._message = "" if begun else self._message
        if self.mode == "plain" and entry.status not in ("waiting", "running"):
            print(self._told(entry), file=sys.stderr, flush=True)

    def _told(self, entry: Entry) -> str:
        if entry.result is None:
            return f"{printable(entry.label)}: {entry.status}"
        note = f" ({printable(entry.note)})" if entry.note else ""
        bound = rounded(entry.bound, up=True)
        return f"{printable(entry.label)}: {bound} {entry.result.assurance}, {seconds(entry.seconds)} s{note}"

    def _renderable(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        table = Table(box=None, pad_edge=False)
        for header, side in (("method", "left"), ("bound", "right"), ("time (s)", "right"), ("", "left")):
            table.add_column(header, justify=side, no_wrap=True)  # type: ignore[arg-type]
        for entry in self._entries.values():
            took, state, style = "", str(entry.status), "dim"
            if entry.status == "running" and self._running is not None:
                took, state, style = seconds(now - self._running[1]), self._running[2] or "running", "bold"
            elif entry.result is not None:
                took, state, style = seconds(entry.seconds), entry.note, ""
            bound = "" if entry.result is None else rounded(entry.bound, up=True)
            table.add_row(*(Text(printable(cell), style=style) for cell in (entry.label, bound, took, state)))
        line = " · ".join(part for part in (f"{now - self._started:.1f} s", self._message) if part)
        return Group(table, Text(line, overflow="ellipsis", no_wrap=True))
