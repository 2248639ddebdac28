"""Relaxations of polynomial programs as evidence: solved when a bound is asked for, and proved in integers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.certify.evidence import Evidence, Proved
from lipmodel.errors import LipmodelError, UsageError
from lipmodel.relaxations.solving import points
from lipmodel.relaxations.sparsity import Cliques, variable_cliques

if TYPE_CHECKING:
    from lipmodel.backends.base import Backend
    from lipmodel.certify.polynomials import Program
    from lipmodel.model.polynomials import PolynomialProgram
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.spec import Norm

SPARSITIES = ("correlative", "term", "dense")
ELIMINATED = 2.0**29
"""Entries of all tables up to which a maximum over signs is computed by elimination rather than bounded: seconds."""
ENTRY = 1e-8
"""Seconds for one of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relaxation(Evidence):
    """A relaxation of a polynomial program: `prove` is about a network's gradient, `bound` about any program.

    sparsity: "correlative" (products only inside the cliques of variables that occur together), "term" (Gram matrices
    also taken apart into blocks; for sums of squares) or "dense". backend: the solver, None to choose one.
    """

    program: PolynomialProgram
    sparsity: str = "correlative"
    backend: Backend | str | None = None
    tol: float = 1e-7

    def __post_init__(self) -> None:
        if self.sparsity not in SPARSITIES:
            raise UsageError(f"sparsity {self.sparsity!r}: choose among {', '.join(SPARSITIES)}")

    def using(self, backend: Backend | str) -> Relaxation:
        """The same, solved by this backend."""
        return replace(self, backend=backend)

    def prove(self, system: IncrementSystem, norms: tuple[Norm, Norm], deadline: float) -> Proved | None:
        """A bound of L_{p->q} by the polynomial of the gradient, whatever program this relaxation was made for."""
        from lipmodel.certify.kernel import Rejected
        from lipmodel.certify.polynomials import gradient_program
        from lipmodel.network.increments import exact_system

        try:
            target = gradient_program(exact_system(system), *norms)
        except Rejected as reason:
            raise UsageError(str(reason)) from None
        for found in self._attempts(deadline):
            if (proved := _decided(target, found)) is not None:
                return replace(proved, proof={**proved.proof, "norms": list(norms)})
        return None

    def bound(self, time_limit: float | None = None) -> Proved:
        """A proved bound of the program's maximum, and its proof for `PolynomialProgram.verify`.

        Raises LipmodelError where nothing could be proved.
        """
        deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        target = self.program.normalised()
        for found in self._attempts(deadline):
            if (proved := _decided(target, found)) is not None:
                return proved
        raise LipmodelError("no solver found a point of this relaxation that proves a bound: try another order")

    def _attempts(self, deadline: float) -> Iterator[Attempt]:
        """Proofs without a bound, best first; the next is drawn where one proves nothing."""
        raise NotImplementedError

    def describe(self) -> str:
        """The predicted sizes, in a line."""
        target = self.program.normalised()
        count, degree = len(target.objective.terms), _degree(target)
        listed = sorted(map(len, variable_cliques(target, self.sparsity).cliques), reverse=True)
        polynomial = f"polynomial of {count:,} monomials, degree {degree}, {target.size} variables"
        return f"{polynomial}, {len(listed)} cliques of at most {listed[0]}: {self._method(target)}"

    def _method(self, target: Program) -> str:
        """What is solved, with its predicted size."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """A proof whose bound is not known yet, and the solver behind it."""

    proof: Mapping[str, Any]
    backend: str | None = None


def _decided(target: Program, found: Attempt) -> Proved | None:
    """The bound that a proof gives, by the rule that `verify` decides by; None where it gives none."""
    from lipmodel.certify.kernel import Rejected
    from lipmodel.certify.polynomials import RULES
    from lipmodel.ranges.norms import float_up

    try:
        value = float_up(RULES[found.proof["rule"]][1](target, found.proof) + target.blur)
    except Rejected:
        return None
    if not math.isfinite(value):
        return None
    return Proved(bound=value, proof={**found.proof, "bound": value.hex()}, backend=found.backend)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Krivine(Relaxation):
    """The hierarchy of Krivine and Handelman (Sherali-Adams) at a level: a linear program.

    level: how many factors 1 +- x_i a product has, at least the degree. From the size of the largest clique on, the
    value is the maximum itself, and found by eliminating variables instead; 0 chooses this where it is cheap, else the
    largest level up to degree + 1 that fits.

    Source: Latorre, Rolland & Cevher 2020 (LiPopt), arXiv 2004.08688; products inside cliques as there.
    """

    level: int = 0

    def _method(self, target: Program) -> str:
        from lipmodel.relaxations.krivine import families_of

        cliques = variable_cliques(target, self.sparsity)
        level = self._level(target, cliques, math.inf)
        if level is None:
            from lipmodel.certify.cube_maximum import plan

            return f"its maximum, by tables of {plan(target.objective.terms, cliques.order)[2]:,} entries"
        count = sum(family.size for family in families_of(cliques.cliques, level, target.objective.terms))
        return f"linear program of level {level} with {count:,} weights"

    def _level(self, target: Program, cliques: Cliques, seconds: float) -> int | None:
        """The level of the linear program, None for elimination in the seconds that are left."""
        from lipmodel.certify.cube_maximum import MAX_ENTRIES, plan
        from lipmodel.relaxations.krivine import families_of

        if target.signs != frozenset(range(target.size)):
            raise UsageError("products of 1 +- x_i need an objective over a box, of degree one in every variable")
        exact = cliques if len(cliques.cliques) > 1 else variable_cliques(target, "correlative")
        limit = ELIMINATED if self.level == 0 else MAX_ENTRIES if self.level > exact.width else 0.0
        if limit and plan(target.objective.terms, exact.order)[2] <= min(limit, seconds / ENTRY):
            return None
        if self.level:
            return self.level
        degree = _degree(target)
        try:
            families_of(cliques.cliques, degree + 1, target.objective.terms)
        except UsageError:
            return degree
        return degree + 1

    def _attempts(self, deadline: float) -> Iterator[Attempt]:
        from lipmodel.relaxations.krivine import relax, rounded_weights

        target = self.program.normalised()
        cliques = variable_cliques(target, self.sparsity)
        level = self._level(target, cliques, deadline - time.monotonic())
        if level is None:
            yield Attempt(proof={"rule": "elimination", "order": list(cliques.order)})
            return
        relaxed = relax(target, cliques.cliques, level)
        model, variable = relaxed.model()
        for solved in points(model, self.backend, deadline, self.tol):
            yield Attempt(proof=rounded_weights(relaxed, solved.values[variable]), backend=solved.backend)


def _degree(target: Program) -> int:
    return max(map(len, target.objective.terms), default=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SumOfSquares(Relaxation):
    """The hierarchy of Putinar and Lasserre: sums of squares of degree 2 order, a semidefinite program.

    order: at least half of every degree; 0 is the least one.

    Sources: Lasserre 2001, SIAM J. Optim. 11:796; Waki, Kim, Kojima & Muramatsu 2006, SIAM J. Optim. 17:218 (cliques);
    Wang, Magron & Lasserre 2021, TSSOS, arXiv 1912.08899 (blocks of terms).
    """

    order: int = 0

    def _method(self, target: Program) -> str:
        from lipmodel.relaxations.sos import gram_blocks

        order, sparsity = self._chosen(target)
        grams, free = gram_blocks(target, order, sparsity)
        orders, entries = [len(g.basis) for g in grams], sum(g.entries for g in grams)
        matrices = f"{len(orders)} Gram matrices of orders up to {max(orders)}, {entries:,} entries"
        return f"squares of order {order}, {matrices}, {len(free):,} free coefficients"

    def _chosen(self, target: Program) -> tuple[int, str]:
        """The order and the sparsity: without inequalities one matrix of order 1 is as good as one for a clique."""
        from lipmodel.relaxations.sos import least_order

        order = self.order or least_order(target)
        return order, "dense" if order == 1 and not target.nonnegative else self.sparsity

    def _attempts(self, deadline: float) -> Iterator[Attempt]:
        from lipmodel.relaxations.sos import relax

        target = self.program.normalised()
        relaxed = relax(target, *self._chosen(target))
        model, variables = relaxed.model()
        for solved in points(model, self.backend, deadline, self.tol):
            values = [solved.values[v] for v in variables]
            yield Attempt(proof=relaxed.proof(np.concatenate(values)), backend=solved.backend)
