"""The errors of lipmodel: one small hierarchy, each with the exit code the command line ends with.

Every message says what was seen, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LipmodelError(Exception):
    """Base class of every error that lipmodel raises on purpose."""

    exit_code = 2


class UsageError(LipmodelError):
    """A request that cannot be understood or does not fit together (an unknown norm, option or formulation)."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One reason to refuse a network: what kind, where (node or tensor), what was seen, and the way out."""

    kind: str
    where: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f" ({self.hint})" if self.hint else ""
        text = f"[{self.kind}] {place}{self.message}{hint}"
        # names come from files, and one that holds a line end must not look like another reason
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class RefusedInput(LipmodelError):  # noqa: N818 - the word of the documentation
    """A network that lipmodel does not accept; `reasons` lists everything that is wrong with it, not just the first."""

    exit_code = 3

    def __init__(self, source: str, reasons: Sequence[Reason]) -> None:
        self.source = source
        self.reasons = tuple(reasons)
        count = len(self.reasons)
        head = f"{source} is refused, for {count} reason{'s' if count != 1 else ''}:"
        super().__init__("\n".join([head, *(f"  - {r}" for r in self.reasons)]))


class NotLipschitz(LipmodelError):  # noqa: N818 - the word of the field
    """An activation whose slopes are unbounded, or which jumps, on the requested interval."""

    exit_code = 3


class BackendUnavailable(LipmodelError):  # noqa: N818
    """A solver that is not installed, or installed without a licence; the message says how to get it."""

    exit_code = 4


class NothingProved(LipmodelError):  # noqa: N818
    """No bound could be proved at the requested assurance."""

    exit_code = 5


class Refuted(LipmodelError):  # noqa: N818
    """A certificate that is false, malformed, of an unknown rule, or about another network."""

    exit_code = 6


class SoundnessError(LipmodelError):
    """A witnessed lower bound above a proved bound: a defect of lipmodel; the message carries what reproduces it."""

    exit_code = 70
