"""The proofs of one program: while its solver runs, of what the solver returns, and of closed forms."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lipmodel.backends.base import Progress
from lipmodel.certify.extract import extract
from lipmodel.certify.kernel import System
from lipmodel.certify.lmi import FloatSystem, Multipliers
from lipmodel.clock import Clock
from lipmodel.families import Member
from lipmodel.model.model import Model
from lipmodel.network.increments import IncrementSystem, exact_system, float_system

if TYPE_CHECKING:
    from lipmodel.certify.repair import ProvedMultipliers
    from lipmodel.model.terms import Term

CONFIRMED = 1e-4
"""A solver's optimum counts as confirmed if the bound proved from it is no worse than this, relatively."""
EXACT_ORDER = 250
"""Orders up to which the exact checker is asked as well. Small matrices are where its margins and those of the
floating-point proof, which grow with the order, come close; on large ones it would take longer than the solver."""
SHARE = 0.08
"""Share of the time since a solver started that proofs of its improvements may take."""
HEAD_START = 0.01
"""Seconds that such proofs may take in any case."""
WORTHWHILE = 1e-3
"""Relative improvement from which a better point is proved while its solver goes on."""
ON_THE_WAY = "on the way"
"""The origin of what was proved from a point of the solver before it ended."""

Comparison = Literal["doubt", "doubt-tied", "never"]


@dataclass(slots=True, kw_only=True, eq=False)
class Prover:
    """What is proved about one program.

    solved: what the program was built from, where that is not the system itself but the one with its dead neurons.
    best: the best multipliers proved so far. known: a bound that was proved otherwise. cache: of matrices that the
    members of a family share. seconds: what the proofs of a running solver's improvements took.
    """

    system: IncrementSystem
    member: Member
    clock: Clock
    cache: dict[int, Any]
    known: float = math.inf
    solved: IncrementSystem | None = None
    best: ProvedMultipliers | None = None
    seconds: float = 0.0
    _float: FloatSystem | None = None
    _exact: System | None = None

    @property
    def bound(self) -> float:
        """The best bound proved so far, inf where there is none."""
        return math.inf if self.best is None else self.best.bound

    def matrices(self) -> FloatSystem:
        """The system as floating-point enclosures."""
        if self._float is None:
            self._float = float_system(self.system, self.cache)
        return self._float

    def watch(self, model: Model) -> Callable[[Progress], Progress]:
        """What turns a solver's states into units of the constant, and proves its improvements on the way."""
        return partial(self._observe, model, time.monotonic())

    def _observe(self, model: Model, started: float, state: Progress) -> Progress:
        before = time.monotonic()
        claim = model.bound_of(state.objective)
        due = self.seconds <= HEAD_START + SHARE * (before - started)
        if state.values is not None and due and claim < self.bound * (1.0 - WORTHWHILE):
            with self.clock.stage("certify"):
                self._offer(model, state.values())
            self.seconds += time.monotonic() - before
        lower = max(0.0, model.bound_of(state.lower)) if math.isfinite(state.lower) else state.lower
        bound = min(self.bound, self.known)
        proved = bound if math.isfinite(bound) else None
        return Progress(iteration=state.iteration, objective=claim, lower=lower, seconds=state.seconds, bound=proved)

    def _offer(self, model: Model, values: Mapping[Any, Any]) -> None:
        """Prove a feasible point as it is."""
        from lipmodel.certify.repair import prove_as_it_is

        multipliers, own = self.read(model, values)
        p, q = self.member.norms
        if not own:
            self._keep(prove_as_it_is(self.matrices(), p, q, multipliers, ON_THE_WAY, check=self._check()))

    def read(self, model: Model, values: Mapping[Any, Any]) -> tuple[Multipliers, list[Term]]:
        """The multipliers of the system from the values of a model's variables, and the terms that follow no rule."""
        if self.solved is None:
            return extract(model, self.system, values)
        found, own = extract(model, self.solved, values)
        of = {a.name: t for a, t in zip(self.solved.activations, found.t, strict=True)}
        living = tuple(of[a.name][self.system.living[a.name]] for a in self.system.activations)
        return Multipliers(t=living, g=found.g, s=found.s), own

    def settle(
        self,
        candidates: list[tuple[str, Multipliers]],
        *,
        claim: float = math.inf,
        optimal: bool = False,
        feasible: bool = False,
        comparison: Comparison = "doubt",
        own: bool = False,
        deadline: float = math.inf,
        hurry: bool = False,
    ) -> ProvedMultipliers | None:
        """The best proved bound; closed forms join in unless a solver's optimum was confirmed.

        claim: the bound that the solver's objective says; optimal: whether it says that this is the optimum; feasible:
        whether its points satisfy the constraints and are no worse than closed forms, so that they are proved as they
        are, and that is all. own: whether the candidates' own bound is the answer, whatever else would give a better
        one. Confirmed: called optimal, proved to `CONFIRMED`, and no closed form of the same feasible set is better.
        hurry: whatever can be proved first is enough.
        """
        from lipmodel.certify.repair import prove, prove_as_it_is, prove_closed_form

        p, q = self.member.norms
        check = self._check()
        deadline = -math.inf if hurry else deadline
        if own:
            for origin, multipliers in candidates:
                found = prove_closed_form(self.matrices(), p, q, multipliers, origin, deadline=deadline, check=check)
                self._keep(found)
            if self.best is not None:
                return self.best
        for origin, multipliers in candidates if feasible else ():
            self._keep(prove_as_it_is(self.matrices(), p, q, multipliers, origin, check=check))
        if self.best is not None and (hurry or (feasible and self.bound <= claim * (1.0 + CONFIRMED))):
            return self.best
        if candidates:
            self._keep(prove(self.matrices(), p, q, candidates, closed=comparison, deadline=deadline, check=check))
        confirmed = optimal and self.bound <= claim * (1.0 + CONFIRMED)
        enough = self.best is not None and (hurry or comparison == "never")
        if not confirmed and not enough:
            self._keep(prove(self.matrices(), p, q, (), deadline=deadline, check=check))
        return self.best

    def _keep(self, found: ProvedMultipliers | None) -> None:
        if found is not None and found.bound < self.bound:
            self.best = found

    def _check(self) -> Callable[[Multipliers], bool] | None:
        """What `verify` will ask, of systems that are small enough."""
        return self._verifiable if self.system.order <= EXACT_ORDER else None

    def _verifiable(self, multipliers: Multipliers) -> bool:
        from lipmodel.certify.kernel import decides_positive_semidefinite, exact_lmi

        if self._exact is None:
            self._exact = exact_system(self.system)
        return decides_positive_semidefinite(exact_lmi(self._exact, multipliers))
