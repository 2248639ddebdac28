"""Models with pairs of neurons: first without the pairs, then with them, at once or in rounds of better models."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.errors import LipmodelError
from lipmodel.model.forms import LinearForm, QuadraticForm
from lipmodel.model.model import Model

if TYPE_CHECKING:
    from lipmodel.certify.kernel import System
    from lipmodel.certify.pair_search import CoupledMultipliers
    from lipmodel.families import Member
    from lipmodel.member import Part, Run
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.prover import Prover

Array = np.ndarray[Any, Any]

WIDENED = 0.1
"""By how much the ends are widened where moments are read off: near the optimum only a few directions would be left."""
BASE_SHARE = 0.4
"""Share of the time that the model without pairs may take."""
MAX_ORDER = 1000
"""Order of the inequality beyond which pairs are not used: they are checked as dense exact matrices."""
PROOF = 2e-8
"""Seconds of such a check, by the cube of the order; what is left for it by a time limit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """What is known after a round: the best bound proved so far, and moments at which its inequality is nearly tight.

    moments: from a linear form over the input and the activations to E[form form'], shape (size, size), of increments
    drawn so that those are frequent for which the inequality is close to failing. An estimate, in floating point.
    """

    bound: float
    moments: Callable[[LinearForm], Array]


def has_pairs(model: Model) -> bool:
    """Whether pairs of neurons are coupled in a model."""
    return any(t.rule is not None and t.rule.kind == "pair" for f in model.matrix_constraints for t in f.terms)


def without_pairs(model: Model) -> Model:
    """The model without the terms of pairs, and without what only they need."""
    kept = []
    for c in model.constraints:
        f = c.function
        if isinstance(f, QuadraticForm):
            terms = tuple(t for t in f.terms if t.rule is None or t.rule.kind not in ("pair", "pair-cone"))
            if not terms:
                continue
            c = replace(c, function=QuadraticForm(terms=terms))
        kept.append(c)
    forms = [c.function for c in kept if isinstance(c.function, QuadraticForm)]
    variables = {v for f in forms for t in f.terms for v in t.variables}
    variables |= {v for c in kept if not isinstance(c.function, QuadraticForm) for v in c.function.coefficients}
    variables |= set() if model.objective is None else set(model.objective.coefficients)
    used = {s for f in forms for s in f.signals}
    return replace(
        model,
        constraints=kept,
        variables=[v for v in model.variables if v in variables],
        signals=[s for s in model.signals if s in used],
    )


def by_rounds(model: Model, prover: Prover, member: Member, run: Run, time_limit: float | None) -> Part:
    """The best part of a model with pairs and of those that follow it; before them, of the model without its pairs."""
    from lipmodel.member import by_model

    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    share = None if time_limit is None else BASE_SHARE * time_limit
    part = by_model(without_pairs(model), prover, member, run, share)
    if prover.system.order > MAX_ORDER:
        run.say(f"order {prover.system.order} is above {MAX_ORDER}: no pairs of neurons")
        return part
    search = _Search(prover=prover, run=run, part=part, deadline=deadline)
    following: Model | None = model if has_pairs(model) else search.after(model)
    while following is not None and search.improved(following):
        following = search.after(following)
    return search.part


@dataclass(slots=True, kw_only=True, eq=False)
class _Search:
    """The rounds of one program: the best part so far, and the multipliers that prove it."""

    prover: Prover
    run: Run
    part: Part
    deadline: float
    count: int = 0
    point: CoupledMultipliers | None = None
    exact: System | None = None

    def system(self) -> System:
        from lipmodel.network.increments import exact_system

        if self.exact is None:
            self.exact = exact_system(self.prover.system)
        return self.exact

    def after(self, model: Model) -> Model | None:
        """The model of the next round, if there is to be one."""
        from lipmodel.certify.pair_search import CoupledMultipliers, moments

        if model.refine is None or self.run.interrupted or time.monotonic() > self.deadline:
            return None
        if self.point is None and self.prover.best is not None:
            best = self.prover.best
            self.point = CoupledMultipliers(multipliers=best.multipliers, couplings=(), bound=best.bound)
        if self.point is None:
            return None
        point = self.point
        try:
            with self.run.clock.stage("build"):
                covariance = moments(self.system(), point, WIDENED)
                state = State(bound=self.part.bound, moments=partial(_moments, covariance, self.prover.system))
                following = model.refine(state)
                if following is not None:
                    following.check()
        except LipmodelError:
            raise
        except Exception as error:  # what is proved by now must not be lost to it
            self.run.say(f"no round after {self.count} ({type(error).__name__}: {error})")
            return None
        return following

    def improved(self, model: Model) -> bool:
        """Solve one model and keep what it proves; whether another round makes sense."""
        from lipmodel.certify.pair_search import prove_coupled, read_point
        from lipmodel.certify.pairs import coupled_proof
        from lipmodel.choice import find_point

        run, prover, self.count = self.run, self.prover, self.count + 1
        left = None if math.isinf(self.deadline) else self.deadline - time.monotonic() - PROOF * prover.system.order**3
        if left is not None and left <= 0.0:
            self.part = replace(self.part, termination="time-limit")
            return False
        point, used = find_point(model, prover, run, left)
        if point.values is None:
            if point.termination != "closed-form":
                self.part = replace(self.part, termination=point.termination)
            return False
        norms = self.part.member.norms
        inner = None if prover.best is None else prover.best.multipliers
        found: CoupledMultipliers | None = None
        with run.clock.stage("certify"), run.finishing():
            mended = read_point(model, prover.system, point.values)
            found = prove_coupled(self.system(), norms, mended, inner, self.deadline)
        facts: dict[str, Any] = {
            "claim": None if point.objective is None else model.bound_of(point.objective),
            "lower": None if point.lower is None else max(0.0, model.bound_of(point.lower)),
            "termination": point.termination,
            "backend": None if used is None else used.name,
            "plan": point.plan,
        }
        if found is None:
            run.say(f"round {self.count}: the point of {facts['backend']} proves nothing")
            return False
        if found.bound < self.part.bound:
            self.point = found
            proof = coupled_proof(found.multipliers, found.couplings, norms, found.bound)
            self.part = replace(self.part, bound=found.bound, proof=proof, assumptions=(), instead="", **facts)
            prover.known = min(prover.known, found.bound)
        else:
            self.part = replace(self.part, **facts)
        run.say(f"round {self.count}: {len(mended.couplings)} pairs, {self.part.bound!r}")
        return point.termination in ("optimal", "inaccurate")


def _moments(covariance: Array, system: IncrementSystem, form: LinearForm) -> Array:
    """E[form form'] by the covariance of all signals."""
    starts = dict(zip(system.signals, np.cumsum([0, *(s.size for s in system.signals)]), strict=False))
    matrix = np.zeros((form.size, len(covariance)))
    for signal, m in form.blocks.items():
        matrix[:, starts[signal] : starts[signal] + signal.size] = m.enclosure().dense().center
    return np.asarray(matrix @ covariance @ matrix.T)
