"""Syed & Hu: closed-form feasible points of the LipSDP inequality, the best of a family."""

from __future__ import annotations

import math
from collections.abc import Iterator

import lipmodel as lm

RULES = {"sn": "spectral", "gc": "gershgorin", "shift": "shift"}
SCAN = {
    "sn": (0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8),
    "gc": (0.6, 1.0, 1.2, 1.4, 1.6, 1.8, 1.95),
    "shift": (1.01, 1.1, 1.25, 1.5, 2.0, 3.0),
}
NARROWED = 12  # steps of golden section around the best constant of the scan
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


class SyedHu(lm.Formulation):
    """Closed-form points of Syed & Hu (2025, arXiv 2503.14297) in the covariance recursion of `lm.elimination`.

    With the Gram matrix G of a layer, S = lmax(G) I / c (sn, 0 < c < 2; c = 1 is ECLipsE-Fast), S = diag(sum_j |G_ij|)
    / c (gc, 0 < c < 2) or S = diag(G) / 2 + c |(G - diag G) / 2|_2 I (shift, c > 1): 2 S - G is positive definite by
    the norm, by diagonal dominance, by the norm of the rest. The constant is the same for all layers; the best of a
    scan is narrowed by golden section. Derived here: these as rules for S (their multipliers are L^2 S^-1), general
    slopes, graphs, l_inf inputs (path weights) and l_1 outputs; formulas after a third-party implementation.
    """

    name, norms, default_norm = "syed-hu", {("2", "2"), ("2", "1"), ("inf", "2"), ("inf", "1")}, "2"
    member: str = lm.option("best", help="sn, gc or shift; best: the least bound of the three")
    c: float = lm.option(0.0, help="the constant of the member: below 2 for sn and gc, above 1 for shift; 0: the best")

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> Iterator[lm.Multipliers]:
        members = list(RULES) if self.member == "best" else [self.member]
        if members[0] not in RULES:
            raise lm.UsageError(f"the option member={self.member}: the members are {', '.join(RULES)} and best")
        for member in members if self.c else ():
            if not (1.0 < self.c < math.inf if member == "shift" else 0.0 < self.c < 2.0):
                raise lm.UsageError(f"the option c={self.c:g}: {member} has c {'> 1' if member == 'shift' else '< 2'}")
        return points(lm.elimination.Recursion(system, spec), spec, members, self.c)


def points(
    recursion: lm.elimination.Recursion, spec: lm.Spec, members: list[str], c: float
) -> Iterator[lm.Multipliers]:
    """The points of some members for one constant, or (c = 0) for all that the search for the best one tries."""
    for member in members:
        tried: dict[float, float] = {}

        def point(constant: float, member: str = member, tried: dict[float, float] = tried) -> lm.Multipliers:
            found = recursion(lambda gram, layer: lm.elimination.choose_s(gram, RULES[member], constant))
            tried[constant] = found.claim(*spec.norms)
            return found

        for constant in (c,) if c else SCAN[member]:
            yield point(constant)
        if c:
            continue
        best = min(tried, key=lambda x: tried[x])
        low = max((x for x in tried if x < best), default=best)
        high = min((x for x in tried if x > best), default=best)
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        yield point(left)
        yield point(right)
        for _ in range(NARROWED):
            if tried[left] <= tried[right]:
                high, right = right, left
                left = high - GOLDEN * (high - low)
                yield point(left)
            else:
                low, left = left, right
                right = low + GOLDEN * (high - low)
                yield point(right)
