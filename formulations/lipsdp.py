"""LipSDP: the quadratic-constraint semidefinite program for the Euclidean norm."""

from __future__ import annotations

import lipmodel as lm


class LipSDPNeuron(lm.Formulation):
    """LipSDP-Neuron (Fazlyab, Robey, Hassani, Morari & Pappas 2019, arXiv 1906.04893): one multiplier per neuron.

    If rho |x|^2 - |y|^2 - sum t_j q_j(z) >= 0 for all signals, then |y|^2 <= rho |x|^2 on increments: L <= sqrt(rho).
    """

    name, norms, default_norm = "lipsdp-neuron", {("2", "2")}, "2"
    tied = False
    cone: str = lm.option(
        "psd", help="psd; dd (diagonally dominant, a linear program) or sdd (scaled, second-order cones): looser"
    )

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Model:
        m = lm.Model(self.name)
        ball, price = m.ball(system.input, "2")  # rho |x|^2, price rho / 2
        form = ball - lm.inner(system.output, system.output)
        for act in system.activations:
            form -= lm.qc.slope_restricted(act, m.multiplier(act, tied=self.tied))
        m.require(form >= 0, cone=self.cone)
        m.minimize(2 * price, bound="sqrt")
        return m


class LipSDPLayer(LipSDPNeuron):
    """LipSDP-Layer (same paper): one multiplier per layer; looser, with fewer unknowns."""

    name, norms, default_norm = "lipsdp-layer", {("2", "2")}, "2"
    tied = True
