"""What a formulation may return besides a model: data that a rule of proof of its own turns into a bound."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipmodel.backends.base import Backend
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.spec import Domain, Norm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proved:
    """A proved bound, rounded up (inf: nothing is proved), and its proof as a certificate carries it.

    backend: the solver that helped to find it, if one did.
    """

    bound: float
    proof: dict[str, Any]
    backend: str | None = None


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

    def using(self, backend: Backend | str) -> Evidence:
        """The same evidence, found by this backend, for evidence that has to be found by a solver."""
        return self

    def prove(self, system: IncrementSystem, norms: tuple[Norm, Norm], deadline: float) -> Proved | None:
        """The proof, in floating point, of a bound of L_{p->q}; None where it fails.

        deadline: on the clock of `time.monotonic`, by which it should end.
        """
        raise NotImplementedError


OWN = {
    ("lipmodel.fourier.evidence", "FourierMultipliers"),
    ("lipmodel.metric_chains", "MetricChain"),
    ("lipmodel.relaxations.evidence", "Krivine"),
    ("lipmodel.relaxations.evidence", "SumOfSquares"),
}
"""Classes whose `prove` decides about the system and norms that it is given, whatever they were made for."""


def why_not(
    evidence: Evidence, found: Proved, system: IncrementSystem, norms: tuple[Norm, Norm], domain: Domain
) -> str | None:
    """Why the rule that a proof names does not prove its bound for a system on a domain; None where it does.

    Evidence may come from a user, or have been made for another question: what is printed is what a rule decides.
    """
    if (type(evidence).__module__, type(evidence).__qualname__) in OWN:
        return None
    from lipmodel.certify.certificate import choice
    from lipmodel.certify.kernel import Rejected
    from lipmodel.certify.rules import MEMBER_RULES, Subject
    from lipmodel.certify.source import Source, read_again
    from lipmodel.errors import LipmodelError

    try:
        proof = json.loads(json.dumps(found.proof, allow_nan=False))
        rule = choice(proof, MEMBER_RULES, "proof")
        reading = read_again(system.network) if proof["rule"] == "reachable" and system.network is not None else None
        subject = Subject(system=system, p=norms[0], q=norms[1], source=Source(reading=reading), domain=domain)
        proved = rule(subject, proof)
    except (LipmodelError, Rejected) as reason:
        return str(reason)
    except Exception as error:  # a proof may hold anything
        return f"{type(error).__name__}: {error}"
    return None if proved == found.bound else f"it states {found.bound!r}, and its proof {proved!r}"
