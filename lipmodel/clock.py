"""Where the seconds of a command go, and how many are left."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Clock:
    """Seconds spent by stage, and the deadline of the whole command."""

    started: float
    limit: float | None
    spent: dict[str, float] = field(default_factory=dict)
    _nested: list[float] = field(default_factory=list)

    @property
    def deadline(self) -> float:
        return math.inf if self.limit is None else self.started + self.limit

    def left(self) -> float:
        return self.deadline - time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside under this name, except what an inner stage counts."""
        start = time.monotonic()
        self._nested.append(0.0)
        try:
            yield
        finally:
            whole = time.monotonic() - start
            self.spent[name] = self.spent.get(name, 0.0) + whole - self._nested.pop()
            if self._nested:
                self._nested[-1] += whole
