"""Norms of products of layers: LipLT on any graph, Combettes-Pesquet on chains (the same number there)."""

from __future__ import annotations

from typing import ClassVar

import lipmodel as lm


class LipLT(lm.Formulation):
    """LipLT (Fazlyab, Entesari, Roy & Chellappa 2023, arXiv 2310.00116), on any graph and for any pair of norms.

    Every activation is split, w = c v + r e with |e| <= |v| entry by entry, c and r the middle and half the width of
    its slopes. With the linear part substituted, v_k = F_k0 x + sum_j F_kj e_j, and so |v_k| <= m_k |x| for
    m_k = ||F_k0|| + sum_j ||F_kj|| m_j. Where p and q differ, both are tried in between. Products of layers too
    large to be formed end at an activation, where c = 0. Activations on vectors are split in the norm 2 only. The paper
    has one slope interval for all neurons.
    """

    name, default_norm = "liplt", "2"
    norms: ClassVar = {(p, q) for p in lm.NORMS for q in lm.NORMS}

    between: str = lm.option("own", help="norms between layers; own: those of the question; all: the best of 1, 2, inf")

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.NormExpression:
        if self.between not in ("own", "all"):
            raise lm.UsageError(f"between={self.between!r}: choose own or all")
        between = lm.NORMS if self.between == "all" else tuple(dict.fromkeys(spec.norms))
        signed = lm.norms.signed(system, between=between)
        forms: dict[lm.Signal, lm.LinearForm] = {}  # every w over x and the e, which take the place of the w
        bounds = {system.signals[0]: {spec.input_norm: lm.norms.constant(1.0)}}  # bounds[j][s]: of |e_j|_s / |x|_p

        def reach(form: lm.LinearForm, s: str) -> lm.NormExpression:
            paths = [
                lm.norms.minimum(*(lm.norms.norm(block, r, s) * bound for r, bound in bounds[signal].items()))
                for signal, block in form.blocks.items()
            ]
            return sum(paths, lm.norms.constant(0.0))

        for act, keeps in zip(system.activations, signed, strict=True):
            v, e = act.pre.substitute(forms), lm.LinearForm.of(act.signal)
            gain = dict.fromkeys(spec.norms, 1.0)
            if keeps or act.groups is None:
                c, r = lm.norms.split(act, signed=keeps)
                forms[act.signal] = c * v + r * e
            else:  # acts on vectors: one gain for each norm
                gain = {s: float(act.gain_in(s).max()) for s in between}
            bounds[act.signal] = {s: gain[s] * reach(v, s) for s in gain}
        return reach(system.output.substitute(forms), spec.output_norm).with_rule(
            "liplt", signed=signed, between=between
        )


class CombettesPesquet(LipLT):
    """Combettes & Pesquet 2020 (arXiv 1903.01014): the sum over subsets of layers of products of norms, for chains.

    2^-(d-1) sum over subsets J of the layers' interfaces of the product of the norms of the blocks between them, for
    slopes in [0, 1]. That sum is what LipLT computes in d (d + 1) / 2 norms, so this is LipLT where it is defined:
    on chains.
    """

    name, default_norm = "combettes-pesquet", "2"
    norms: ClassVar = {(p, q) for p in lm.NORMS for q in lm.NORMS}

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.NormExpression:
        if not lm.norms.is_chain(system):
            raise lm.UsageError("combettes-pesquet is defined for chains of layers: use liplt, which takes any graph")
        return super().build(system, spec)
