"""Translation-invariant multipliers of a convolutional network: found by descent, proved by the rule `fourier-lmi`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lipmodel.certify.certificate import hex_vector, lmi_proof
from lipmodel.certify.evidence import Evidence, Proved
from lipmodel.errors import UsageError
from lipmodel.fourier.stencils import NoStencil, Pictures, pictures
from lipmodel.fourier.tail import Tail, increments_behind, tail_of
from lipmodel.fourier.torus import LONGEST, Torus, layout_of, least_torus, require_size

if TYPE_CHECKING:
    from lipmodel.certify.repair import ProvedMultipliers
    from lipmodel.network.increments import IncrementSystem, SlopeRestricted
    from lipmodel.spec import Norm

Array = np.ndarray[Any, Any]

PROOF = 2e-5
"""Seconds that the proof takes, for every entry of the matrices at all frequencies; generously."""
KEPT = 0.8
"""Share of the time, where it is limited, that is kept for the proof at most."""
FIRST, LEAST = 3.0, 1e-4
"""Weights of the barrier: of the first stage, and of the last."""
WIDENED = 1e-11
"""By how much the input end of the tail is widened: F is computed anew by whoever verifies, and rounded otherwise."""
EXACT_ORDER = 250
"""Order of an inequality up to which the exact kernel is asked before the proof is written."""
PIXELS = 2000
"""Order of the unrolled inequality up to which it is used: on the image itself the bound is smaller than on a torus."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FourierMultipliers(Evidence):
    """One multiplier for each channel (and phase of the period), the same at every pixel; see `fourier_multipliers`.

    system: what the rest was made from. values: the claim, once it is known.
    """

    system: IncrementSystem
    found: Pictures
    tail: Tail
    torus: Torus
    period: int
    pixels: bool
    values: dict[str, float] = field(default_factory=dict)

    @property
    def claim(self) -> float | None:
        return self.values.get("claim")

    def describe(self) -> str:
        layout = layout_of(self.found, self.torus)
        count = len(self.torus.frequencies()[0])
        order = sum(self.tail.sizes) + self.tail.forms[-1].size
        sides = "x".join(map(str, self.torus.sides))
        return (
            f"{len(self.found.images) - 1} layers of pixels on a torus of {sides}: {count} Hermitian matrices of order "
            f"{layout.size}, and a dense matrix of order {order} behind them"
        )

    def _seconds(self) -> float:
        """What the proof will take."""
        return PROOF * len(self.torus.frequencies()[0]) * layout_of(self.found, self.torus).size ** 2

    def prove(self, system: IncrementSystem, norms: tuple[Norm, Norm], deadline: float) -> Proved | None:
        """Multipliers by descent, then their proof, pixel by pixel or frequency by frequency."""
        if system is not self.system:  # the pictures of another system say nothing about this one
            return fourier_multipliers(system, period=self.period, pixels=self.pixels).prove(system, norms, deadline)
        from lipmodel.backends.native.descent import THOROUGH, improvements
        from lipmodel.fourier.search import objective

        began = time.monotonic()
        try:
            search = objective(system, self.found, self.tail, self.torus)
        except (NoStencil, np.linalg.LinAlgError):
            return None
        until = deadline - min(self._seconds(), KEPT * (deadline - began)) if math.isfinite(deadline) else math.inf
        goal = cast("Any", search)  # it has what a descent asks for
        steps = improvements(goal, search.start, deadline=until, first=FIRST, least=LEAST, care=THOROUGH)
        best = search.start
        with suppress(KeyboardInterrupt):  # what there is by then is proved
            for better in steps:
                best = better
        trial = search.forward(best, 0.0, 1.0)
        if trial is None:
            return None
        level = math.exp(trial.level)
        self.values["claim"] = math.sqrt(level)
        slots, dense = search.split(best)
        t = by_image(self.found, self.torus, slots)
        unrolled = self._unrolled(system, t, dense, level, norms) if self.pixels and system.order <= PIXELS else None
        if unrolled is not None and unrolled.bound <= math.sqrt(level) * (1.0 + WIDENED):
            return unrolled
        return self._by_frequency(system, t, dense, level, norms) or unrolled

    def _by_frequency(
        self, system: IncrementSystem, t: Mapping[int, Array], dense: Array, level: float, norms: tuple[Norm, Norm]
    ) -> Proved | None:
        """The proof by the rule `fourier-lmi`."""
        from lipmodel.certify.fourier import enclosed_factor
        from lipmodel.certify.kernel import Rejected, bound_squared
        from lipmodel.certify.lmi import Multipliers
        from lipmodel.certify.roots import sqrt_up

        try:
            factor = enclosed_factor(system, self.found, self.tail, self.torus, t)
        except Rejected:
            return None
        behind = increments_behind(system, self.found, self.tail, factor)
        found = _proved(behind, _pieces(dense, behind.activations), level, norms)
        if found is None:
            return None
        m = found.multipliers
        g = float(np.max(m.g)) * (1.0 + WIDENED)
        bound = sqrt_up(bound_squared(Multipliers(t=m.t, g=np.full(len(m.g), g), s=m.s), *norms))
        proof = {
            "rule": "fourier-lmi",
            "norms": list(norms),
            "period": self.period,
            "slots": [hex_vector(t[k]) for k in sorted(t)],
            "t": [hex_vector(v) for v in m.t],
            "g": g.hex(),
            "s": hex_vector(m.s),
            "bound": bound.hex(),
        }
        return Proved(bound=bound, proof=proof)

    def _unrolled(
        self, system: IncrementSystem, t: Mapping[int, Array], dense: Array, level: float, norms: tuple[Norm, Norm]
    ) -> Proved | None:
        """The proof by the ordinary inequality, with the multiplier of its slot for each neuron: never looser."""
        slots = layout_of(self.found, self.torus).slots
        others = self.found.dense
        pieces = _pieces(dense, [system.activations[k - 1] for k in others])
        each = {**{k: level * t[k][slots[k].of] for k in t}, **dict(zip(others, pieces, strict=True))}
        found = _proved(system, [each[k] for k in sorted(each)], level, norms)
        if found is None:
            return None
        return Proved(bound=found.bound, proof=lmi_proof(found.multipliers, norms, found.bound))


def fourier_multipliers(system: IncrementSystem, *, period: int = 1, pixels: bool = True) -> FourierMultipliers:
    """Multipliers of LipSDP that repeat every `period` pixels, for the convolutional layers that a network begins with.

    system: begins with convolutions (strides, dilations, groups, factors per channel, residual connections, average
    pooling with equal weights); all layers behind them are dense, with a multiplier per neuron. Euclidean norms.
    pixels: prove small networks by the unrolled inequality with the same multipliers, which gives a smaller bound than
    the torus. Raises UsageError with the reason where no layer is of this kind, or what follows is too large.
    (Multipliers: Fazlyab et al. 2019, arXiv 1906.04893.)
    """
    if not 1 <= period <= LONGEST:
        raise UsageError(f"period {period}: a number of pixels from 1 to {LONGEST}")
    found = pictures(system)
    try:
        if not found.images:
            reasons = [f"{system.activations[k - 1].name!r}: {why}" for k, why in found.why.items()]
            first = reasons[0] if reasons else "there is none"
            raise NoStencil(f"no layer consists of pixels that are all treated alike ({first})")
        tail, torus = tail_of(system, found), least_torus(found, period)
        require_size(found, torus)
    except NoStencil as reason:
        raise UsageError(f"fourier-lipsdp: {reason}") from None
    return FourierMultipliers(system=system, found=found, tail=tail, torus=torus, period=period, pixels=pixels)


def by_image(found: Pictures, torus: Torus, slots: Array) -> Mapping[int, Array]:
    """Multipliers of all slots of activations as one vector for each image."""
    layout = layout_of(found, torus)
    n0 = layout.inputs
    return {k: slots[layout.span(k).start - n0 : layout.span(k).stop - n0] for k in layout.slots if k}


def _pieces(dense: Array, activations: Sequence[SlopeRestricted]) -> list[Array]:
    """Multipliers of some activations, from one vector."""
    ends = np.cumsum([0, *(a.size for a in activations)])
    return [dense[a:b] for a, b in pairwise(ends)]


def _proved(
    system: IncrementSystem, t: Sequence[Array], level: float, norms: tuple[Norm, Norm]
) -> ProvedMultipliers | None:
    """Multipliers for ends `level` of the input and 1 of the output, repaired and proved; None where that fails."""
    from lipmodel.certify.kernel import decides_positive_semidefinite, exact_lmi
    from lipmodel.certify.lmi import Multipliers
    from lipmodel.certify.repair import prove
    from lipmodel.network.increments import exact_system, float_system

    given = Multipliers(t=tuple(t), g=np.full(system.input.size, level), s=np.ones(system.output.size))
    exact = exact_system(system) if system.order <= EXACT_ORDER else None

    def check(m: Multipliers) -> bool:
        return exact is None or decides_positive_semidefinite(exact_lmi(exact, m))

    return prove(float_system(system), *norms, [("fourier-lipsdp", given)], closed="doubt", check=check)
