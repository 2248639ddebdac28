"""Bounds by entrywise moduli: K_3 and K_4, which keep the signs of products of layers, and the path norm."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import numpy as np

import lipmodel as lm

_CONVOLUTIONS = "explicit: products through convolutions are formed; implicit: they end there, in moduli; auto"
_POOLING = "explicit: max-pooling as linear maps and relus; implicit: as the larger of two rows of moduli; auto"


def pooled(
    system: lm.IncrementSystem, pooling: str, *, auto: str = "implicit"
) -> tuple[lm.IncrementSystem, Collection[int]]:
    """The system as its maxima are treated, and which activations are written as maxima. Raises UsageError."""
    if pooling not in ("auto", "explicit", "implicit"):
        raise lm.UsageError(f"pooling={pooling!r}: choose one of auto, explicit, implicit")
    chosen = auto if pooling == "auto" else pooling
    return lm.norms.with_maxima(system) if chosen == "implicit" else (system, ())


def substituted(
    system: lm.IncrementSystem, signed: tuple[bool, ...]
) -> tuple[dict[lm.Signal, lm.LinearForm], lm.LinearForm]:
    """Every v, and the output, over x and the e (in the place of the w), for w = c v + r e with |e| <= |v|."""
    forms: dict[lm.Signal, lm.LinearForm] = {}
    before: dict[lm.Signal, lm.LinearForm] = {}
    for act, keeps in zip(system.activations, signed, strict=True):
        before[act.signal] = act.pre.substitute(forms)
        c, r = lm.norms.split(act, signed=keeps)
        forms[act.signal] = c * before[act.signal] + r * lm.LinearForm.of(act.signal)
    return before, system.output.substitute(forms)


def entrywise(
    system: lm.IncrementSystem, signed: tuple[bool, ...], spec: lm.Spec, maxima: Collection[int] = ()
) -> lm.NormExpression:
    """||E||_{p->q} for |y| <= E |x|, from |v_k| <= E_k |x| with E_k = |F_k0| + sum_j |F_kj| E_j.

    Of a maximum of two, E_k is the larger of the two. For p = inf, E times the vector of ones is followed instead of E.
    """
    before, output = substituted(system, signed)
    moduli, norms = start(system, spec)
    for k, (signal, v) in enumerate(before.items(), start=1):
        bound = lm.norms.modulus(v).substitute(moduli)
        # the outer modulus of what is nonnegative keeps it as one matrix
        moduli[signal] = lm.norms.modulus(lm.norms.larger(bound) if k in maxima else bound)
    blocks = lm.norms.modulus(output).substitute(moduli).blocks.values()
    return sum((lm.norms.norm(block, *norms) for block in blocks), lm.norms.constant(0.0))


def start(system: lm.IncrementSystem, spec: lm.Spec) -> tuple[dict[lm.Signal, lm.LinearForm], tuple[str, str]]:
    """What bounds |x|, and the norms of a bound of |y| over that: for p = inf a single number times ones."""
    x, (p, q) = system.signals[0], spec.norms
    if p != "inf":
        return {}, (p, q)
    return {x: np.ones((x.size, 1)) @ lm.LinearForm.of(lm.Signal(name="largest", size=1))}, ("1", q)


class K4(lm.Formulation):
    """K_4 (after Pintore & Despres 2024, arXiv 2410.21053): the norm of an entrywise bound of all Jacobians.

    Every activation is split, w = c v + r e with |e| <= |v| entry by entry, c and r the middle and half the width of
    its slopes. With the linear part substituted, v_k = F_k0 x + sum_j F_kj e_j, and so |v_k| <= E_k |x| for
    E_k = |F_k0| + sum_j |F_kj| E_j; the bound is the norm of the output's E. Exact for weights >= 0.

    The paper treats chains in the norms 1 and inf; the formula is derived here, for graphs, any slopes and all pairs of
    norms. The increments of a maximum of two are (1 - s) b + s a: implicitly, E is the larger of those of a and b.
    """

    name, default_norm = "k4", "inf"
    norms: ClassVar = {(p, q) for p in lm.NORMS for q in lm.NORMS}
    convolutions: str = lm.option("auto", help=_CONVOLUTIONS)
    pooling: str = lm.option("auto", help=_POOLING)

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.NormExpression:
        system, maxima = pooled(system, self.pooling)
        lm.norms.require("k4", system, spec.norms)
        signed = lm.norms.signed(system, self.convolutions, maxima=maxima)
        return entrywise(system, signed, spec, maxima).with_rule("k4", signed=signed, maxima=maxima)


class K3(lm.Formulation):
    """K_3 (after Pintore & Despres 2024, arXiv 2410.21053): K_4 with norms taken before the sum, never below it.

    On a chain of d matrices, 2^(d-1) products of moduli of blocks, one for every subset of the layers between them.
    """

    name, default_norm = "k3", "inf"
    norms: ClassVar = {(p, q) for p in lm.NORMS for q in lm.NORMS}
    convolutions: str = lm.option("auto", help=_CONVOLUTIONS)
    pooling: str = lm.option("auto", help=_POOLING)

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.NormExpression:
        system, maxima = pooled(system, self.pooling)
        lm.norms.require("k3", system, spec.norms)
        signed = lm.norms.signed(system, self.convolutions, maxima=maxima)
        before, output = substituted(system, signed)
        known, norms = start(system, spec)
        x = system.signals[0]
        paths = {x: [known.get(x, lm.norms.modulus(lm.LinearForm.of(x)))]}

        def extended(form: lm.LinearForm) -> list[lm.LinearForm]:
            """The products of moduli along every path to a form."""
            blocks = lm.norms.modulus(form).blocks.items()
            return [
                lm.LinearForm(size=form.size, blocks={signal: block}).substitute({signal: path})
                for signal, block in blocks
                for path in paths[signal]
            ]

        for k, (signal, v) in enumerate(before.items(), start=1):
            paths[signal] = [lm.norms.larger(path) if k in maxima else path for path in extended(v)]
        terms = [lm.norms.norm(block, *norms) for path in extended(output) for block in path.blocks.values()]
        return sum(terms, lm.norms.constant(0.0)).with_rule("k3", signed=signed, maxima=maxima)


class PathNorm(lm.Formulation):
    """The path norm (Neyshabur, Tomioka & Srebro 2015, arXiv 1503.00036): || |W_d| ... |W_1| ||, and on graphs.

    Products of the moduli of weights and of the gains of neurons, added up along paths: from the norm inf to 1 all of
    them, from 1 to inf those between one input and one output; any pair of norms in between. Positive rescaling of
    neurons does not change it. Graphs: Gonon, Brisebarre, Riccietti & Gribonval 2024 (arXiv 2310.01225).
    """

    name, default_norm = "path-norm", "inf"
    norms: ClassVar = {(p, q) for p in lm.NORMS for q in lm.NORMS}
    pooling: str = lm.option("auto", help=_POOLING)

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.NormExpression:
        system, maxima = pooled(system, self.pooling)
        lm.norms.require("path-norm", system, spec.norms)
        unsigned = (False,) * len(system.activations)
        return entrywise(system, unsigned, spec, maxima).with_rule("path-norm", maxima=maxima)
