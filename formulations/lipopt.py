"""LiPopt: linear programs of polynomial optimisation."""

from __future__ import annotations

import lipmodel as lm


class LiPopt(lm.Formulation):
    """Krivine's certificates of the gradient polynomial, Latorre, Rolland & Cevher (ICLR 2020, arXiv 2004.08688).

    pg(t, s) = sum over all paths of weights and slopes, of degree one in every variable, on the cube of the input
    directions t and the slopes s. L <= min lam, lam - pg = sum c_k prod (1 +- x_i), c >= 0, products of `level`
    variables of one clique of the sparsity graph. Every monomial of pg takes part, whatever products there are. From
    the size of the cliques on, the value is max pg, found by eliminating variables without a linear program.
    """

    name, norms, default_norm = "lipopt", {("inf", "1")}, "inf"
    level: int = lm.option(0, help="factors of a product, at least the depth; 0: the maximum where it is cheap")
    sparsity: str = lm.option("correlative", help="correlative: products inside cliques; dense: all products")

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Krivine:
        if self.level < 0:
            raise lm.UsageError(f"level {self.level}: a number of factors, or 0")
        return lm.Krivine(program=lm.network_polynomials(system, spec), level=self.level, sparsity=self.sparsity)
