"""Dead neurons leave the increment system before anything is built from it, and nothing else does."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.families import Member, restricted
from lipmodel.model.forms import LinearForm, apply
from lipmodel.network.conv import Conv
from lipmodel.network.increments import chain_of
from lipmodel.network.linear import Dense
from lipmodel.network.pruning import without_dead_neurons


def network(dead: bool = True) -> tuple[lm.Network, list[np.ndarray]]:
    """4-8-6-3 with neurons that read nothing (1, 2 of layer 1) and that nothing reads (4 of layer 1, 0 of layer 2)."""
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(s) for s in ((8, 4), (6, 8), (3, 6))]
    if dead:
        weights[0][[1, 2]] = 0.0
        weights[1][:, 4] = 0.0
        weights[2][:, 0] = 0.0
    return lm.from_weights(weights, activation="relu"), weights


def constant(weights: list[np.ndarray]) -> float:
    """The largest norm of W_3 D_2 W_2 D_1 W_1 over all diagonal D of zeros and ones: an upper bound of the constant."""
    first, second, third = weights
    best = 0.0
    for a in itertools.product((0.0, 1.0), repeat=len(first)):
        inner = second @ (np.array(a)[:, None] * first)
        for b in itertools.product((0.0, 1.0), repeat=len(second)):
            best = max(best, float(np.linalg.norm(third @ (np.array(b)[:, None] * inner), 2)))
    return best


def test_dead_neurons_are_dropped_and_the_others_kept() -> None:
    net, weights = network()
    system = lm.increments(net)
    assert [a.size for a in system.activations] == [5, 5]
    kept = system.activations[0].pre.blocks[system.signals[0]].enclosure().dense().center
    assert np.array_equal(kept, weights[0][[0, 3, 5, 6, 7]])
    assert [a.size for a in lm.increments(network(dead=False)[0]).activations] == [8, 6]


def test_death_spreads_through_layers() -> None:
    _, weights = network(dead=False)
    weights[0][:] = 0.0
    weights[0][3] = 1.0
    weights[1][[0, 1], 3] = 0.0  # these two read dead neurons only
    assert [a.size for a in lm.increments(lm.from_weights(weights, activation="relu")).activations] == [1, 4]


def test_a_network_that_is_dead_altogether_is_constant() -> None:
    _, weights = network()
    weights[1][:] = 0.0
    net = lm.from_weights(weights, activation="relu")
    system = lm.increments(net)
    assert system.activations == ()
    assert not system.output.blocks
    assert lm.solve(net, "lipsdp-neuron", witness=False).bound == 0.0


def test_a_row_of_a_family_drops_what_only_other_rows_read() -> None:
    _, weights = network(dead=False)
    weights[2][1, :4] = 0.0
    system = lm.increments(lm.from_weights(weights, activation="relu"))
    sizes = [restricted(system, Member(row=r, norms=("2", "2"))).activations[1].size for r in range(3)]
    assert sizes == [6, 2, 6]


@pytest.mark.parametrize("backend", ["native", "clarabel", "scs"])
def test_bounds_are_those_of_the_living_network_and_verify(backend: str) -> None:
    net, weights = network()
    small = [weights[0][[0, 3, 5, 6, 7]], weights[1][1:][:, [0, 3, 5, 6, 7]], weights[2][:, 1:]]
    exact = constant(small)
    assert constant(weights) == pytest.approx(exact, rel=1e-12)
    result = lm.solve(net, "lipsdp-neuron", backend=backend)
    living = lm.solve(lm.from_weights(small, activation="relu"), "lipsdp-neuron", backend=backend, witness=False)
    assert result.bound == pytest.approx(living.bound, rel=1e-6)
    assert result.bound >= exact
    assert result.termination == "optimal"
    lm.verify(net, result.certificate)


def test_tied_multipliers_are_those_of_the_layer_with_its_dead_neurons() -> None:
    """LipSDP-Layer is defined with them; what is proved is the inequality of the living ones."""
    net, weights = network()
    system = lm.increments(net)
    assert system.complete is not None
    assert [a.size for a in system.complete.activations] == [8, 6]
    assert [list(system.living[a.name]) for a in system.activations] == [[0, 3, 5, 6, 7], [1, 2, 3, 4, 5]]
    tied = lm.solve(net, "lipsdp-layer", backend="native", witness=False)
    whole = lm.solve(chained(weights), "lipsdp-layer", backend="native", witness=False)
    assert tied.claim is not None
    assert whole.claim is not None
    assert tied.claim == pytest.approx(whole.claim, rel=1e-6)
    lm.verify(net, tied.certificate)
    for outputs in ("1", "margin:0"):
        lm.verify(net, lm.solve(net, "lipsdp-layer", outputs=outputs, witness=False).certificate)


def chained(weights: list[np.ndarray]) -> lm.Network:
    """The same with dead weights of 1e-12 in place of zeros, which no pruning finds."""
    return lm.from_weights([np.where(w == 0.0, 1e-12, w) for w in weights], activation="relu")


def test_a_convolution_keeps_its_structure() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((2, 1, 3, 3))
    kernel[0] = 0.0
    conv = Conv(
        kernel=kernel, input_shape=(1, 1, 4, 4), output_spatial=(2, 2), strides=(1, 1), pads=(0, 0), dilations=(1, 1)
    )
    chain = chain_of([conv.enclosure().dense().center, rng.standard_normal((2, 8))])
    a = chain.activations[0]
    kept = replace(chain, activations=(replace(a, pre=apply(conv, chain.input)),))
    assert without_dead_neurons(kept) is kept
    assert without_dead_neurons(chain).activations[0].size == 4
    silent = replace(conv, kernel=np.zeros_like(kernel))
    unread = replace(kept, output=LinearForm(size=2, blocks={chain.signals[0]: Dense(weights=np.ones((2, 16)))}))
    assert without_dead_neurons(unread).activations == ()
    # whether a convolution is zero is not looked at: it keeps its place
    quiet = replace(chain, activations=(replace(a, pre=apply(silent, chain.input)),))
    assert without_dead_neurons(quiet) is quiet
