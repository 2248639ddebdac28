"""Sums of squares for the gradient of a network on a bounded domain, with the slopes that its inputs can have.

The program is made by `certify/reachable.py`; here the Gram matrices of the three relaxations are chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.certify.evidence import Evidence, Proved
from lipmodel.errors import UsageError
from lipmodel.relaxations.signs import product_basis
from lipmodel.relaxations.solving import points
from lipmodel.relaxations.sos import Gram, relax_blocks

if TYPE_CHECKING:
    from lipmodel.backends.base import Backend
    from lipmodel.certify.polynomials import Monomial
    from lipmodel.certify.reachable import Reachable
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.spec import Norm, Spec

LEVELS = ("shor", "hr1", "hr2")
LARGEST = 80
"""Order of the large moment matrix up to which it is solved, within half a minute or so."""
STRUCTURED = 600
"""The same where all that varies are its diagonal and one weight for each neuron, which structured solvers take."""
Parts = tuple[tuple[Gram, ...], tuple[tuple[int, "Monomial"], ...]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reachability(Evidence):
    """A relaxation of the gradient on a domain: "shor", "hr1" or "hr2", each at most the one before.

    found: the program; grams and free: the relaxation of it. Nothing is solved yet.
    """

    found: Reachable
    grams: tuple[Gram, ...]
    free: tuple[tuple[int, Monomial], ...]
    backend: Backend | str | None = None
    tol: float = 1e-7

    def using(self, backend: Backend | str) -> Reachability:
        """The same, solved by this backend."""
        return replace(self, backend=backend)

    def describe(self) -> str:
        orders = sorted((len(g.basis) for g in self.grams), reverse=True)
        count = len(self.found.neurons)
        return (
            f"{count} neurons with slopes by the domain, a moment matrix of order {orders[0]}, "
            f"{len(orders) - 1} further multipliers of orders up to {max(orders[1:], default=0)}"
        )

    def prove(self, system: IncrementSystem, norms: tuple[Norm, Norm], deadline: float) -> Proved | None:
        """The bound by the first solver whose point proves one, decided in integers."""
        from lipmodel.certify.kernel import Rejected
        from lipmodel.certify.polynomials import sos_bound
        from lipmodel.ranges.norms import float_up

        program = self.found.program
        relaxed = relax_blocks(program, self.grams, self.free)
        model, variables = relaxed.model()
        for solved in points(model, self.backend, deadline, self.tol):
            proof = relaxed.proof(np.concatenate([solved.values[v] for v in variables]))
            try:
                bound = float_up(max(sos_bound(program, proof), Fraction(0)) + program.blur)
            except Rejected:
                continue
            if math.isfinite(bound):
                data = {**proof, "rule": "reachable", "norms": list(norms), "bound": bound.hex()}
                return Proved(bound=bound, proof=data, backend=solved.backend)
        return None


def reachability(system: IncrementSystem, spec: Spec, *, level: str, largest: int = 0) -> Reachability:
    """The relaxation of a level for a system on the domain of a spec, "shor", "hr1" or "hr2".

    largest: order of the large moment matrix up to which it is solved, 0 for the default. Raises UsageError where it is
    out of reach.
    """
    from lipmodel.certify.kernel import Rejected
    from lipmodel.certify.reachable import neurons_of, reachable_program
    from lipmodel.network.increments import exact_system

    if level not in LEVELS:
        raise UsageError(f"level {level!r}: choose among {', '.join(LEVELS)}")
    exact = exact_system(system)
    try:
        entries = {a.name: a.index for a in system.activations}
        known = neurons_of(system, exact, entries, _reading(system), spec.domain, spec.input_norm)
        found = reachable_program(exact, spec.norms, known)
    except Rejected as reason:
        raise UsageError(f"{reason}: geolip and lipsdp-neuron take such networks") from None
    grams, free = parts(found, level)
    flat = level == "shor" and max(map(len, found.program.objective.terms), default=0) <= 2
    limit = largest or (STRUCTURED if flat else LARGEST)
    if (order := max(len(g.basis) for g in grams)) > limit:
        raise UsageError(
            f"a moment matrix of order {order} is too large (up to {limit}): geolip does without (-o largest=N to try)"
        )
    return Reachability(found=found, grams=grams, free=free)


def _reading(system: IncrementSystem) -> Any:
    """The checker's own reading of the network, so that both make the same program. Raises UsageError."""
    from lipmodel.certify.source import read_again
    from lipmodel.certify.tape import Unreadable

    try:
        if system.network is None:
            raise Unreadable("the system was not made from a network")
        return read_again(system.network)
    except (Unreadable, OSError) as reason:
        raise UsageError(f"the biases could not be read: {reason}") from None


def parts(found: Reachable, level: str) -> Parts:
    """The Gram matrices, and the monomials of free multipliers by constraint.

    shor: one matrix of [1, t, sigma, xi] (with products of them for a polynomial of higher degree), numbers for the
    inequalities. hr1: also for the ranges of the pre-activations. hr2: also matrices of order two of {sigma_j, zeta_j}
    and {t_i, xi_i}, their localising ones, and what links zeta_j with the inputs.
    """
    program = found.program
    large = {(), *product_basis(program.objective.terms, found.where)}
    large |= {(xi,) for xi in found.inputs.values()} | {(neuron.slope,) for neuron in found.neurons}
    grams = [Gram(constraint=None, basis=tuple(sorted(large, key=lambda m: (len(m), m))))]
    numbers = [*found.box.values(), *(neuron.side for neuron in found.neurons)]
    free: list[tuple[int, Monomial]] = [(k, ()) for k in range(_spheres(found))]
    if level != "shor":
        numbers += [neuron.span for neuron in found.neurons if neuron.span is not None]
    grams += [Gram(constraint=k, basis=((),)) for k in numbers]
    if level == "hr2":
        for neuron in found.neurons:
            if neuron.value is None:
                continue
            sigma, zeta = neuron.slope, neuron.value
            small = ((), (sigma,), (zeta,))
            grams.append(Gram(constraint=None, basis=(*small, (sigma, zeta), (zeta, zeta))))
            grams += [Gram(constraint=k, basis=small) for k in (neuron.value_side, neuron.value_span)]
            assert neuron.value_is is not None
            assert neuron.square_is is not None
            free += [(neuron.value_is, ()), (neuron.value_is, (sigma,)), (neuron.square_is, ())]
        for i, xi in found.inputs.items():
            if i in found.directions and found.directions[i] in program.signs:
                t = found.directions[i]
                grams.append(Gram(constraint=None, basis=((), (t,), (xi,), (t, xi), (xi, xi))))
                grams.append(Gram(constraint=found.box[i], basis=((), (t,), (xi,))))
    return tuple(grams), tuple(free)


def _spheres(found: Reachable) -> int:
    """How many equalities the program has besides those of the values."""
    own = [n.value_is for n in found.neurons if n.value_is is not None]
    return min(own, default=len(found.program.zero))
