"""The product of the layers' norms."""

from __future__ import annotations

from typing import ClassVar

import lipmodel as lm


class Product(lm.Formulation):
    """The AutoLip rule (Virmaux & Scaman 2018, arXiv 1805.10965) on any graph and for any pair of norms.

    Norms are multiplied along chains and added where branches meet; between layers the best of the norms 1, 2 and inf
    is taken. Always available, and linear in the size of the network but for the spectral norms.
    """

    name, default_norm = "product", "2"
    norms: ClassVar = {(p, q) for p in lm.NORMS for q in lm.NORMS}

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.NormExpression:
        bounds = {system.signals[0]: {spec.input_norm: lm.norms.constant(1.0)}}  # bounds[s][r]: of |s|_r / |x|_p

        def reach(form: lm.LinearForm, r: str) -> lm.NormExpression:
            paths = [
                lm.norms.minimum(*(lm.norms.norm(block, k, r) * bound for k, bound in bounds[signal].items()))
                for signal, block in form.blocks.items()
            ]
            return sum(paths, lm.norms.constant(0.0))

        for act in system.activations:
            bounds[act.signal] = {r: float(act.gain_in(r).max()) * reach(act.pre, r) for r in lm.NORMS}
        return reach(system.output, spec.output_norm).with_rule("product")
