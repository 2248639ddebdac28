"""S-opt: the diagonals S of the covariance recursion by gradient, anytime, in time linear in depth."""

from __future__ import annotations

from collections.abc import Iterator

import lipmodel as lm


class SOpt(lm.Formulation):
    """The best diagonals S of the elimination recursion, by descent: ever better multipliers, until nothing is won.

    The recursion (see `lm.elimination`) is the block LDL' factorisation of the matrix of LipSDP-Neuron (Fazlyab et al.
    2019, arXiv 1906.04893) with T_i = rho S_i^-1, so that the least of its bound over all S is the optimum of that
    program; for other norms, of GeoLIP's (Wang, Prakriya & Jha 2022, arXiv 2203.01212), which is stated here: kappa and
    sigma on the ends, multipliers t. Derived here: the gradient by the adjoint of the recursion, a barrier that keeps
    2 S - G definite, L-BFGS, on any graph and for any slopes. It starts from a closed form and has no lower estimate.
    """

    name, norms, default_norm = "s-opt", {("2", "2"), ("2", "1"), ("inf", "2"), ("inf", "1")}, "2"

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> Iterator[lm.Multipliers]:
        m = lm.Model(self.name)
        dual = m.signal("dual", system.output.size)  # unit ball of the dual output norm
        ball_in, price_in = m.ball(system.input, spec.input_norm)
        ball_out, price_out = m.ball(dual, lm.dual(spec.output_norm))
        form = ball_in + ball_out - 2 * lm.inner(dual, system.output)
        for act in system.activations:
            form -= lm.qc.slope_restricted(act, m.multiplier(act))
        m.require(form >= 0)
        m.minimize(price_in + price_out)
        return lm.elimination.descent(m, system)
