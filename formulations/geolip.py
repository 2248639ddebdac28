"""GeoLIP: the mixed-norm semidefinite program."""

from __future__ import annotations

import lipmodel as lm


class GeoLIP(lm.Formulation):
    """Mixed-norm SDP of Wang, Prakriya & Jha (NeurIPS 2022, arXiv 2203.01212), any depth, p in {2, inf}, q in {1, 2}.

    For s in the unit ball of the dual output norm and increments z of the network,
    2 s'y <= sum kappa_i x_i^2 + sum sigma_i s_i^2 - sum t_j q_j(z), hence L <= (price of kappa + price of sigma).
    """

    name, norms, default_norm = "geolip", {("inf", "1"), ("inf", "2"), ("2", "1"), ("2", "2")}, "inf"
    cone: str = lm.option(
        "psd", help="psd; dd (diagonally dominant, a linear program) or sdd (scaled, second-order cones): looser"
    )

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Model:
        m = lm.Model(self.name)
        dual = m.signal("dual", system.output.size)  # unit ball of the dual output norm
        ball_in, price_in = m.ball(
            system.input, spec.input_norm
        )  # sum kappa_i x_i^2, price half the sum (inf), half kappa (2)
        ball_out, price_out = m.ball(dual, lm.dual(spec.output_norm))
        form = ball_in + ball_out - 2 * lm.inner(dual, system.output)
        for act in system.activations:
            form -= lm.qc.slope_restricted(act, m.multiplier(act))  # 2 sum t (w - alpha v)(beta v - w)
        m.require(form >= 0, cone=self.cone)
        m.minimize(price_in + price_out)
        return m
