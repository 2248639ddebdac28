"""SeqLip: the norms of neighbouring layers multiplied together with the activations between them."""

from __future__ import annotations

from typing import Any

import numpy as np

import lipmodel as lm

Array = np.ndarray[Any, Any]
WIDEST = 1000
"""Neurons of a layer beyond which dense metrics are not worth their cost."""


class SeqLip(lm.Formulation):
    """SeqLip (Virmaux & Scaman 2018, arXiv 1805.10965), certified, for chains with any slopes in [alpha, beta].

    W_i = U_i Sig_i V_i'. The singular values are split evenly between the two activations that they lie between:
    L <= prod_i max_S |Sig_{i+1}^(1/2) V_{i+1}' S U_i Sig_i^(1/2)|_2 over diagonal slopes S, with all of Sig_1 and of
    Sig_d at the two ends. That is the chain of metrics M_i = (W_{i+1}' W_{i+1})^(1/2). With one hidden layer it is the
    largest |W_2 S W_1|_2. Layers wider than `exact_up_to` have their maximum bounded by the two-layer LipSDP (Fazlyab
    et al. 2019, arXiv 1906.04893). The paper's greedy maximisation is no bound; it is an estimate (`lm.estimate`).
    """

    name, norms, default_norm = "seqlip", {("2", "2")}, "2"
    exact_up_to: int = lm.option(50, help="neurons of a layer up to which its maximum over all slopes is exact")

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.MetricChain | lm.NormExpression:
        forms = [*(act.pre for act in system.activations), system.output]
        for form, signal in zip(forms, system.signals, strict=True):
            if set(form.blocks) != {signal}:
                raise lm.UsageError(
                    "seqlip is about chains of layers, and here some paths skip a layer "
                    "(as do those through neurons that are affine on a bounded domain)"
                )
        for act in system.activations:
            if act.groups is not None:
                raise lm.UsageError(f"seqlip: {act.name} acts on vectors, not neuron by neuron")
            if act.size > WIDEST:
                raise lm.UsageError(f"seqlip: {act.name} has {act.size} neurons, and more than {WIDEST} cost too much")
        blocks = [form.blocks[signal] for form, signal in zip(forms, system.signals, strict=True)]
        if len(blocks) == 1:
            return lm.norms.norm(blocks[0], "2", "2").with_rule("product")
        metrics = tuple(_root_of_gram(block.enclosure().dense().center) for block in blocks[1:-1])
        return lm.MetricChain(metrics=metrics, exact_up_to=self.exact_up_to)


def _root_of_gram(weights: Array) -> Array:
    """(W' W)^(1/2)."""
    _, sizes, right = np.linalg.svd(weights, full_matrices=False)
    return np.asarray((right.T * sizes) @ right)
