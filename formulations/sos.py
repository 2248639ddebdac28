"""Sums of squares: the hierarchy of Putinar and Lasserre on the polynomial of a network's gradient."""

from __future__ import annotations

import lipmodel as lm


class SOS(lm.Formulation):
    """Sums of squares with correlative and term sparsity, any acyclic network, l_inf and l2 balls.

    L <= min lam, lam - pg(t, s) = sum of squares of degree 2 `order` on the product of the input ball, the slopes and
    the dual output ball (Lasserre 2001; for networks Latorre, Rolland & Cevher 2020, arXiv 2004.08688, and Chen,
    Lasserre, Magron & Pauwels 2020, arXiv 2002.03657). Order 1 exists for one hidden layer and is GeoLIP there.
    """

    name, norms, default_norm = "sos", {("inf", "1"), ("inf", "2"), ("2", "1"), ("2", "2")}, "inf"
    order: int = lm.option(0, help="half the degree of the squares; 0: the least that the network allows")
    sparsity: str = lm.option(
        "correlative", help="dense, correlative (cliques), or term (cliques taken apart into blocks)"
    )

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.SumOfSquares:
        if self.order < 0:
            raise lm.UsageError(f"order {self.order}: half a degree, or 0")
        program = lm.network_polynomials(system, spec)
        return lm.SumOfSquares(program=program, order=self.order, sparsity=self.sparsity)
