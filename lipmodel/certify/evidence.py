"""What a formulation may return besides a model: data that a rule of proof of its own turns into a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.spec import Norm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proved:
    """A proved bound, rounded up (inf: nothing is proved), and its proof as a certificate carries it."""

    bound: float
    proof: dict[str, Any]


class Evidence:
    """Evidence for a bound of one increment system; subclasses say by which rule, and prove it.

    claim: the bound that the evidence should give, in floating point, for reports; None where it is not known.
    """

    __slots__ = ()

    @property
    def claim(self) -> float | None:
        return None

    def describe(self) -> str:
        """What it is, in a line, with predicted sizes where they say something; for `inspect`."""
        return "evidence that a rule of its own turns into a bound"

    def prove(self, system: IncrementSystem, norms: tuple[Norm, Norm], deadline: float) -> Proved | None:
        """The proof, in floating point, of a bound of L_{p->q}; None where it fails.

        deadline: on the clock of `time.monotonic`, by which it should end.
        """
        raise NotImplementedError
