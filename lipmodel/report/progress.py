"""Progress of a solve on stderr: a live line on a terminal, plain lines when asked for elsewhere, or nothing.

What a solver reports on its way is not proved, and is never shown with the sign of a bound.
"""

from __future__ import annotations

import math
import re
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from lipmodel.report.tables import printable
from lipmodel.result import rounded

if TYPE_CHECKING:
    from lipmodel.backends.base import Progress

Mode = Literal["live", "plain", "silent"]

PERIOD = 2.0
"""Seconds between two plain lines of a solver's progress."""
_MEMBER = re.compile(r"\d+/\d+ ")
"""How the lines begin that count the members of a family: they replace each other in the live line."""


def choose_mode(*, quiet: bool, verbose: bool) -> Mode:
    """live on a terminal, silent elsewhere; -v gives plain lines (a solver's own log goes between them), -q nothing."""
    if quiet:
        return "silent"
    if verbose:
        return "plain"
    if not sys.stderr.isatty():
        return "silent"
    from rich.console import Console

    return "plain" if Console(stderr=True).is_dumb_terminal else "live"


class Display:
    """What is shown on stderr while something runs; a context manager, left before the answer is printed."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self._started = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> Self:
        if self.mode == "live":
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True, highlight=False),
                get_renderable=self._renderable,
                refresh_per_second=8,
                transient=True,
            )
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.__exit__(kind, error, trace)

    def _renderable(self) -> Any:
        """What a terminal shows at this moment."""
        raise NotImplementedError


class Reporter(Display):
    """Receives the messages and the progress of one solve."""

    def __init__(self, mode: Mode) -> None:
        super().__init__(mode)
        self._printed = -math.inf
        self._member = ""
        self._state = "reading the network"

    def say(self, line: str) -> None:
        """One message, such as why a formulation was chosen."""
        text = printable(line)
        if self._live is not None:
            if _MEMBER.match(text):
                self._member = text
            else:
                from rich.text import Text

                self._live.console.print(Text(text))
            self._state = "working"
        elif self.mode == "plain":
            print(text, file=sys.stderr, flush=True)

    def progress(self, state: Progress) -> None:
        """The state of a solver's iteration."""
        self._state = progress_line(state)
        now = time.monotonic()
        if self.mode == "plain" and now - self._printed >= PERIOD:
            self._printed = now
            print(f"{now - self._started:.1f} s: {self._state}", file=sys.stderr, flush=True)

    def _renderable(self) -> Any:
        from rich.text import Text

        parts = [f"{time.monotonic() - self._started:.1f} s", self._member, self._state]
        return Text("  " + " · ".join(p for p in parts if p), overflow="ellipsis", no_wrap=True)


def progress_line(state: Progress) -> str:
    """One line of a solver's progress: the bound proved so far, the solver's lower estimate of its optimum, the gap.

    Where the solver's own value is better than what is proved, or nothing is, it stands there as unproved.
    """
    parts = []
    if state.bound is not None and math.isfinite(state.bound):
        parts.append(f"proved {rounded(state.bound, up=True)}")
    if state.bound is None or state.objective < 0.999 * state.bound:
        parts.append(f"objective {state.objective:.6g} (unproved)")
    if math.isfinite(state.lower) and state.lower > 0.0:
        value = state.objective if state.bound is None else state.bound
        parts.append(f"lower estimate {state.lower:.6g}")
        if math.isfinite(value) and value > 0.0:
            parts.append(f"gap {max(0.0, (value - state.lower) / value):.1e}")
    return ", ".join(parts)
