"""ECLipsE and ECLipsE-Fast: the covariance recursion with S chosen layer by layer."""

from __future__ import annotations

import lipmodel as lm

NORMS = {("2", "2"), ("2", "1"), ("inf", "2"), ("inf", "1")}


class ECLipsE(lm.Formulation):
    """ECLipsE (Xu & Sivaranjani, NeurIPS 2024, arXiv 2404.04375): per layer, the S that is best for the next map.

    With Y_0 = I, G_i = W_i Y_{i-1} W_i' and Y_i = S_i (2 S_i - G_i)^-1 S_i for slopes in [0, 1] (other slopes: see
    `lm.elimination`), L^2 <= lmax(W_d Y_{d-1} W_d'). Their program for layer i, the largest c with
    [Lam - c W_{i+1}'W_{i+1}, Lam K^1/2; K^1/2 Lam, I] >= 0, K = G_i / 4, reads Lam - Lam K Lam >= c W_{i+1}'W_{i+1};
    the left side is Y_i^-1 for Lam = 2 S_i^-1, so that 1/c is the least lmax(W_{i+1} Y_i W_{i+1}'). What is minimised
    here is that. Not in the paper, ours: Lam as S, general slopes, l_inf inputs (path weights) and l_1 outputs. Chains
    only: on graphs, the S that is best for the readers of a layer may spoil all that passes it by.
    """

    name, norms, default_norm = "eclipse", NORMS, "2"

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Multipliers:
        forms = [*(act.pre for act in system.activations), system.output]
        if any(list(form.blocks) != [before] for form, before in zip(forms, system.signals, strict=True)):
            raise lm.UsageError(
                "eclipse looks at one layer and the next, and this network has branches, skip connections or layers "
                "in several parts: s-opt, syed-hu and eclipse-fast take any graph"
            )
        return lm.elimination.Recursion(system, spec)(lm.elimination.best_s)


class ECLipsEFast(lm.Formulation):
    """ECLipsE-Fast (same paper): S_i = lmax(G_i) I, in closed form (their Lam_i = 2 I / lmax(G_i))."""

    name, norms, default_norm = "eclipse-fast", NORMS, "2"

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Multipliers:
        recursion = lm.elimination.Recursion(system, spec)
        return recursion(lambda gram, layer: lm.elimination.choose_s(gram, "spectral", 1.0))
