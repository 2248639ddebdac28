"""LipSDP with couplings of two neurons that do hold for increments."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

import lipmodel as lm

Array = np.ndarray[Any, Any]
Neuron = tuple[Any, int]
Couple = tuple[Neuron, Neuron]

ALL = 200
"""Pairs up to which all of them are used at once where no choice is made."""
WORTHWHILE = 1e-4
"""Relative improvement by a round from which there is another one."""


class LipSDPPair(lm.Formulation):
    """The LipSDP inequality with a constraint for every pair of neurons, complete for pairs, as cutting planes.

    p = w - alpha v and k = beta v - w of a neuron have one sign. For two neurons, zeta = (p_1, k_1, p_2, k_2) therefore
    satisfies zeta' M zeta >= 0 if (and only if) M and D M D, D = diag(1, 1, -1, -1), are copositive, which for order
    four is semidefinite plus nonnegative (Diananda 1962). These terms join the constraints of single neurons (Fazlyab,
    Robey, Hassani, Morari & Pappas 2019, arXiv 1906.04893) in the program for mixed norms (Wang, Prakriya & Jha 2022,
    arXiv 2203.01212). The couplings of LipSDP-Network, by differences of neurons, do not hold for increments (Pauli,
    Koch, Berberich, Kohler & Allgower 2022, arXiv 2005.02929); these do. Never above lipsdp-neuron.
    """

    name, norms, default_norm = "lipsdp-pair", {("2", "2"), ("inf", "1"), ("inf", "2"), ("2", "1")}, "2"
    pairs: str = lm.option("auto", help="all; layer (of one layer); or auto: the most correlated ones, in rounds")
    batch: int = lm.option(0, help="pairs that a round adds (0: two for every neuron)")
    rounds: int = lm.option(5, help="rounds at most")

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Model:
        if self.pairs not in ("auto", "all", "layer"):
            raise lm.UsageError(f"pairs={self.pairs!r}: choose all, layer or auto")
        neurons = [(a, i) for a in system.activations if a.groups is None for i in range(a.size)]
        couples = list(combinations(neurons, 2))
        if self.pairs == "layer":
            couples = [(one, other) for one, other in couples if one[0] is other[0]]
        if self.pairs != "auto" or len(couples) <= ALL:
            return self.stated(system, spec, couples)
        batch = self.batch if self.batch > 0 else 2 * len(neurons)
        used = np.zeros(len(couples), dtype=bool)
        bounds: list[float] = []

        def refine(state: lm.State) -> lm.Model | None:
            slow = len(bounds) > 1 and state.bound > bounds[-1] * (1.0 - WORTHWHILE)
            if slow or len(bounds) == self.rounds or used.all():
                return None
            bounds.append(state.bound)
            scores = np.where(used, -1.0, correlations(state, neurons))
            used[np.argsort(-scores, kind="stable")[:batch]] = True
            return stated(used)

        def stated(chosen: Array) -> lm.Model:
            m = self.stated(system, spec, [couples[k] for k in np.flatnonzero(chosen)])
            m.refine = refine
            return m

        return stated(used)

    def stated(self, system: lm.IncrementSystem, spec: lm.Spec, couples: list[Couple]) -> lm.Model:
        m = lm.Model(self.name)
        dual = m.signal("dual", system.output.size)  # unit ball of the dual output norm
        ball_in, price_in = m.ball(system.input, spec.input_norm)
        ball_out, price_out = m.ball(dual, lm.dual(spec.output_norm))
        form = ball_in + ball_out - 2 * lm.inner(dual, system.output)
        for act in system.activations:
            form -= lm.qc.slope_restricted(act, m.multiplier(act))
        m.require(form - lm.qc.pairs(m, couples) >= 0)
        m.minimize(price_in + price_out)
        return m


def correlations(state: lm.State, neurons: list[Neuron]) -> Array:
    """For all pairs, the largest modulus of a correlation of p or k of one neuron with p or k of the other."""
    moments = state.moments(lm.qc.signs(neurons))
    size = np.sqrt(np.maximum(np.diag(moments), 1e-300))
    between = np.abs(moments / np.outer(size, size)).reshape(len(neurons), 2, len(neurons), 2).max(axis=(1, 3))
    return np.asarray(between[np.triu_indices(len(neurons), 1)])
