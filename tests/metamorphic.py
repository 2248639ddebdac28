"""What must hold between the bounds of related networks: invariances, proved orderings, duality, nested slopes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from random_networks import FIXED, Chain, Phi, formal_constant

import lipmodel as lm

Array = np.ndarray[Any, Any]
RELU, ABS, TANH = FIXED[0], FIXED[1], FIXED[2]
LEAKY = Phi(op="LeakyRelu", low=0.25, high=1.0, attributes=(("alpha", 0.25),))
BENT = Phi(op="LeakyRelu", low=-0.5, high=1.0, attributes=(("alpha", -0.5),))
SOLVED = 1e-5
"""What two solves of equal programs may differ by, relatively."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """left <= right, or (equal) both ways, up to `tolerance`."""

    name: str
    left: float
    right: float
    equal: bool = False
    tolerance: float = SOLVED

    def holds(self) -> bool:
        room = 1.0 + self.tolerance
        return self.left <= self.right * room and (not self.equal or self.right <= self.left * room)


def bound(chain: Chain, formulation: str, norm: str, outputs: str = "all") -> float:
    backend = None if formulation == "product" else "clarabel"
    network = chain.network()
    return lm.solve(network, formulation, norm=norm, outputs=outputs, backend=backend, tol=1e-8, witness=False).bound


def random_hidden(rng: np.random.Generator) -> Chain:
    """One to three hidden layers, one activation for all, no activation after the last layer."""
    dims = [int(rng.integers(2, 5)) for _ in range(int(rng.integers(3, 5)))]
    weights = tuple(rng.standard_normal((m, n)) for n, m in itertools.pairwise(dims))
    phi = (RELU, ABS, TANH, LEAKY, BENT)[int(rng.integers(0, 5))]
    return Chain(weights=weights, biases=(None,) * len(weights), phis=(*[phi] * (len(weights) - 1), None))


def changed(chain: Chain, **layers: Array) -> Chain:
    """The chain with some layers (w0, w1, ...) replaced."""
    weights = tuple(layers.get(f"w{k}", w) for k, w in enumerate(chain.weights))
    return replace(chain, weights=weights)


def invariances(chain: Chain, rng: np.random.Generator) -> Iterator[Relation]:
    """Networks that are the same but for a rewriting, and simple scalings."""
    w0, w1 = chain.weights[:2]
    n = int(w0.shape[0])
    order = rng.permutation(n)
    stretch = 2.0 ** rng.integers(-3, 4, size=n)
    dead = changed(
        chain, w0=np.vstack([w0, rng.standard_normal((1, w0.shape[1]))]), w1=np.hstack([w1, np.zeros((w1.shape[0], 1))])
    )
    twice = changed(chain, w0=np.vstack([w0, w0[:1]]), w1=np.hstack([0.25 * w1[:, :1], w1[:, 1:], 0.75 * w1[:, :1]]))
    rewritten = {
        "permuted neurons": (changed(chain, w0=w0[order], w1=w1[:, order]), True),
        "rescaled neurons": (changed(chain, w0=stretch[:, None] * w0, w1=w1 / stretch), chain.phis[0] is not TANH),
        "dead neuron": (dead, True),
        "split neuron": (twice, True),
        "signs of inputs": (changed(chain, w0=w0 * rng.choice([-1.0, 1.0], size=w0.shape[1])), True),
        "order of inputs": (changed(chain, w0=w0[:, rng.permutation(w0.shape[1])]), True),
        "identity layer": (
            Chain(
                weights=(w0, np.eye(n), *chain.weights[1:]),
                biases=(None, *chain.biases),
                phis=(None, *chain.phis),
            ),
            True,
        ),
    }
    for formulation, norm in (("lipsdp-neuron", "2:2"), ("geolip", "inf:1"), ("geolip", "inf:2")):
        first = bound(chain, formulation, norm)
        for name, (other, applies) in rewritten.items():
            if applies:
                yield Relation(
                    name=f"{name}, {formulation} {norm}", left=first, right=bound(other, formulation, norm), equal=True
                )
        scaled = bound(changed(chain, w0=10.0 * w0), formulation, norm)
        yield Relation(
            name=f"ten times the first layer, {formulation} {norm}", left=10 * first, right=scaled, equal=True
        )
    for norm in ("1:1", "2:2", "inf:inf", "2:1"):
        first = bound(chain, "product", norm)
        yield Relation(
            name=f"permuted, product {norm}",
            left=first,
            right=bound(rewritten["permuted neurons"][0], "product", norm),
            equal=True,
            tolerance=1e-10,
        )
        scaled = bound(changed(chain, w0=8.0 * w0), "product", norm)
        yield Relation(name=f"scaled, product {norm}", left=8 * first, right=scaled, equal=True, tolerance=1e-10)


def orderings(chain: Chain) -> Iterator[Relation]:
    """Inequalities between methods, norms, outputs and slopes that are theorems."""
    n, m = int(chain.weights[0].shape[1]), int(chain.weights[-1].shape[0])
    neuron, layer = bound(chain, "lipsdp-neuron", "2:2"), bound(chain, "lipsdp-layer", "2:2")
    yield Relation(name="neuron <= layer", left=neuron, right=layer)
    yield Relation(name="layer <= product", left=layer, right=bound(chain, "product", "2:2"), tolerance=1e-9)
    geolip = {norm: bound(chain, "geolip", norm) for norm in ("2:2", "2:1", "inf:2", "inf:1")}
    yield Relation(name="geolip 2:2 is neuron", left=neuron, right=geolip["2:2"], equal=True)
    for q in ("2", "1"):
        yield Relation(name=f"2:{q} <= inf:{q}", left=geolip[f"2:{q}"], right=geolip[f"inf:{q}"])
        yield Relation(name=f"inf:{q} <= sqrt n", left=geolip[f"inf:{q}"], right=math.sqrt(n) * geolip[f"2:{q}"])
    for p in ("2", "inf"):
        yield Relation(name=f"{p}:2 <= {p}:1", left=geolip[f"{p}:2"], right=geolip[f"{p}:1"])
        yield Relation(name=f"{p}:1 <= sqrt m", left=geolip[f"{p}:1"], right=math.sqrt(m) * geolip[f"{p}:2"])
    for norm, formulation in (("2:2", "lipsdp-neuron"), ("inf:2", "geolip")):
        whole = geolip[norm]
        for outputs in ("0", "1,0"):
            part = bound(chain, formulation, norm, outputs)
            yield Relation(name=f"outputs {outputs} of {norm}", left=part, right=whole)
        rows = bound(chain, formulation, f"{norm[:-2]}:inf")
        yield Relation(name=f"the largest output of {norm}", left=rows, right=whole)
    single = {norm: bound(chain, "geolip", norm, "0") for norm in ("2:1", "2:2", "2:inf", "inf:1", "inf:inf")}
    for a, b in (("2:1", "2:2"), ("2:1", "2:inf"), ("inf:1", "inf:inf")):
        yield Relation(name=f"one output, {a} is {b}", left=single[a], right=single[b], equal=True)


def dualities(chain: Chain) -> Iterator[Relation]:
    """The transposed network from q* to p*, and slopes in a smaller interval."""
    back = Chain(weights=tuple(w.T for w in chain.weights[::-1]), biases=chain.biases, phis=chain.phis)
    for norm, dual in (("2:2", "2:2"), ("inf:2", "2:1"), ("inf:1", "inf:1")):
        left, right = bound(chain, "geolip", norm), bound(back, "geolip", dual)
        yield Relation(name=f"{norm} and the transposed {dual}", left=left, right=right, equal=True)
    for norm, dual in (("1:1", "inf:inf"), ("2:2", "2:2"), ("1:2", "2:inf")):
        left, right = (formal_constant(c.plan(), *r.split(":")).value for c, r in ((chain, norm), (back, dual)))
        yield Relation(name=f"enumeration, {norm} and {dual}", left=left, right=right, equal=True, tolerance=1e-10)
    hidden = len(chain.weights) - 1
    nested = [replace(chain, phis=(*[phi] * hidden, None)) for phi in (LEAKY, RELU, BENT, ABS)]
    for small, large in itertools.pairwise(nested):
        for formulation, norm in (("lipsdp-neuron", "2:2"), ("geolip", "inf:1"), ("product", "1:2")):
            left, right = bound(small, formulation, norm), bound(large, formulation, norm)
            yield Relation(name=f"nested slopes, {formulation} {norm}", left=left, right=right)


def special_networks(rng: np.random.Generator) -> Iterator[Relation]:
    """Networks whose bounds are known: nonnegative weights, and one hidden layer with one output."""
    dims = [3, 4, 3, 2]
    weights = tuple(np.abs(rng.standard_normal((m, n))) for n, m in itertools.pairwise(dims))
    chain = Chain(weights=weights, biases=(None,) * 3, phis=(RELU, TANH, None))
    whole = np.linalg.multi_dot(weights[::-1])
    exact = float(np.linalg.norm(whole, 2))
    yield Relation(name="nonnegative", left=exact, right=bound(chain, "lipsdp-neuron", "2:2"), equal=True)
    small = Chain(
        weights=(rng.standard_normal((5, 3)), rng.standard_normal((1, 5))), biases=(None, None), phis=(RELU, None)
    )
    for norm, factor in (("2:2", math.sqrt(math.pi / 2.0)), ("inf:1", 1.7823)):
        formal = formal_constant(small.plan(), *norm.split(":")).value
        yield Relation(name=f"one layer, {norm}", left=bound(small, "geolip", norm), right=factor * formal)
