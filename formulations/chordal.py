"""Chordal-LipSDP: the LipSDP inequality as one smaller inequality per clique of its sparsity pattern."""

from __future__ import annotations

import lipmodel as lm


class ChordalLipSDP(lm.Formulation):
    """LipSDP-Neuron by cliques: equal to it, with one matrix per pair of layers that meet instead of one for all.

    A chain of layers falls into pairs of neighbours that overlap in one layer; on any other graph the cliques are those
    of a chordal extension. Xue, Lindemann, Robey, Hassani, Pappas & Alur 2022 (arXiv 2204.00846), with tau = 0: their
    couplings between neurons (tau >= 1) do not hold for increments, as Pauli, Koch, Berberich, Kohler & Allgower 2022
    (arXiv 2005.02929) noted of LipSDP-Network, and are not here. Chordal sparsity of networks before: Newton &
    Papachristodoulou 2021 (L4DC, PMLR 144:715). The clique-tree form: Vandenberghe & Andersen 2015 (Found. Trends
    Optim. 1:241).
    """

    name, norms, default_norm = "chordal-lipsdp", {("2", "2")}, "2"
    merge: bool = lm.option(True, help="merge cliques where one larger matrix is predicted to cost less than two")

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Model:
        m = lm.Model(self.name)
        ball, price = m.ball(system.input, "2")  # rho |x|^2, price rho / 2
        form = ball - lm.inner(system.output, system.output)
        for act in system.activations:
            form -= lm.qc.slope_restricted(act, m.multiplier(act))
        m.require(form >= 0, cliques="auto", merge=self.merge)
        m.minimize(2 * price, bound="sqrt")
        return m
