"""Random tiny networks through the whole public pipeline, against the exhaustive value.

`python -m benchmarks.fuzz` runs ten thousand of them.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metamorphic import dualities, invariances, orderings, random_hidden, special_networks
from random_graphs import random_graph
from random_networks import FIXED, PAIRS, Chain, Phi, exceeds, formal_constant, random_chain
from soundness_checks import check, random_case

import lipmodel as lm

RELU, SELU = FIXED[0], FIXED[-1]
BLOCK = 10


@pytest.mark.parametrize("block", range(10))
def test_random_networks(block: int, tmp_path: Path) -> None:
    """Bound above, witness below, verified, no crash; see `soundness_checks`."""
    _check_block(1, block, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(100))
def test_more_random_networks(block: int, tmp_path: Path) -> None:
    _check_block(2, block, tmp_path)


def _check_block(seed: int, block: int, folder: Path) -> None:
    outcomes = [check(random_case(seed, index), folder) for index in range(BLOCK * block, BLOCK * (block + 1))]
    wrong = [f"{o.label}\n  " + "\n  ".join(o.failures) for o in outcomes if o.failures]
    assert not wrong, "\n".join(wrong)
    assert any(o.refused is None for o in outcomes)


def test_the_checks_see_what_is_wrong() -> None:
    """The exhaustive value is attained: anything smaller is exposed in rational arithmetic, anything larger is not."""
    rng = np.random.default_rng(0)
    for k in range(12):
        plan = random_chain(rng).plan() if k % 2 else random_graph(rng)[1]
        for p, q in PAIRS:
            formal = formal_constant(plan, p, q)
            assert formal.value == 0.0 or exceeds(plan, formal, formal.value * (1 - 1e-9), p, q)
            assert not exceeds(plan, formal, formal.value * (1 + 1e-9), p, q)


EXPONENTS = (-1060, -1000, -500, -300, -130, -60, 0, 60, 130, 300, 500, 900, 1015)


@pytest.mark.parametrize("seed", range(8))
def test_scales_up_to_the_ends_of_the_float_range(seed: int) -> None:
    """Layers scaled by powers of two: a bound that is finite is true, in rational arithmetic, and verified."""
    rng = np.random.default_rng([3, seed])
    chain = random_chain(rng)
    weights = [w.astype(np.float64) for w in chain.weights]
    if seed % 3 == 0:
        scaled = [np.ldexp(w, rng.integers(-300, 300, size=(len(w), 1))) for w in weights]
    else:
        scaled = [np.ldexp(w, int(rng.choice(EXPONENTS))) for w in weights]
    chain = replace(chain, weights=tuple(np.clip(w, -1e308, 1e308) for w in scaled), biases=(None,) * len(weights))
    tame = [w / max(float(np.abs(w).max()), 1e-290) for w in scaled]
    p, q = PAIRS[int(rng.integers(0, 9))]
    direction = formal_constant(replace(chain, weights=tuple(tame)).plan(), p, q)
    for formulation, backend in (("product", None), ("geolip", None), ("geolip", "clarabel")):
        network = chain.network()
        result = lm.solve(network, formulation, norm=f"{p}:{q}", backend=backend)
        if np.isfinite(result.bound):
            assert not exceeds(chain.plan(), direction, result.bound, p, q)
        assert (result.assurance == "proved") == bool(np.isfinite(result.bound))
        lm.verify(network, json.dumps(result.to_json()))


@pytest.mark.parametrize("seed", range(3))
def test_rewritten_networks_have_the_same_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    _hold(invariances(random_hidden(rng), rng))


@pytest.mark.parametrize("seed", range(3))
def test_orderings_that_are_theorems(seed: int) -> None:
    _hold(orderings(random_hidden(np.random.default_rng(10 + seed))))


@pytest.mark.parametrize("seed", range(3))
def test_transposes_and_nested_slopes(seed: int) -> None:
    _hold(dualities(random_hidden(np.random.default_rng(20 + seed))))


@pytest.mark.parametrize("seed", range(3))
def test_networks_with_known_bounds(seed: int) -> None:
    _hold(special_networks(np.random.default_rng(seed)))


def _hold(relations: Any) -> None:
    found = list(relations)
    wrong = [str(r) for r in found if not r.holds()]
    assert not wrong, "\n".join(wrong)
    assert found


# ------------------------------------------------------------------------------------------- errors that were published


def chain_of(*weights: Any, phis: tuple[Phi | None, ...] | None = None) -> Chain:
    matrices = tuple(np.atleast_2d(np.asarray(w, dtype=float)) for w in weights)
    given = (*[RELU] * (len(matrices) - 1), None) if phis is None else phis
    return Chain(weights=matrices, biases=(None,) * len(matrices), phis=given)


def digits() -> Chain:
    rng = np.random.default_rng(3)
    return chain_of(rng.standard_normal((6, 5)), rng.standard_normal((4, 6)), rng.standard_normal((3, 4)))


TRAPS: dict[str, tuple[Chain, str, float]] = {
    # coupled multipliers (LipSDP-Network): a value of 1e-5 was published where the constant is 1
    "coupled neurons": (chain_of([[1], [1]], [[1, -1]]), "2:2", 1.0),
    # the recursion evaluated outside its domain: 0.4797
    "indefinite pivot": (chain_of([[1], [1]], [[1, -0.5]]), "2:2", 1.0),
    # greedy SeqLip: 15.5
    "greedy": (chain_of(np.ones((7, 1)), [[9, 9, -3.1, -3.1, -3.1, -3.1, -3.1]]), "2:2", 18.0),
    # the product of two parts without the slope of the activation between them: 1
    "steep activation": (chain_of([[1]], [[1]], phis=(SELU, None)), "2:2", 1.758099),
    # the largest row norm instead of the spectral norm: 1.414
    "row norm": (chain_of(np.ones((2, 2))), "2:2", 2.0),
    # the wrong dual norm of a functional: half
    "dual norm": (chain_of([[1, -1]]), "inf:inf", 2.0),
    # slopes of the absolute value taken as [0, 1]
    "absolute value": (chain_of([[1], [1]], [[1, -1]], phis=(FIXED[1], None)), "2:2", 2.0),
    # layer norms for which solvers call an LMI infeasible that never is
    "layer norms": (chain_of([[26, 0], [0, 1]], [[2.4, 0], [0, 1]], [[51, 0], [0, 2]], [[254, 1]]), "2:2", 808329.0),
}


@pytest.mark.parametrize("name", TRAPS)
def test_published_errors(name: str) -> None:
    chain, norm, least = TRAPS[name]
    network = chain.network()
    formal = formal_constant(chain.plan(), *norm.split(":")).value
    assert formal >= least * (1 - 1e-5)
    for formulation, backend in itertools.product(
        ("product", "lipsdp-neuron", "lipsdp-layer", "geolip"), (None, "scs")
    ):
        if formulation == "product" and backend:
            continue
        try:
            result = lm.solve(network, formulation, norm=norm, backend=backend)
        except lm.UsageError:
            assert norm.startswith("inf")
            continue
        assert formal * (1 - 1e-12) <= result.bound <= 1e9
        # without biases some of these networks are constant, and no pair of points is a witness
        assert result.lower_bound is None or result.lower_bound <= formal * (1 + 1e-12)


def test_the_first_layer_counts() -> None:
    chain = digits()
    ten = Chain(weights=(10.0 * chain.weights[0], *chain.weights[1:]), biases=chain.biases, phis=chain.phis)
    for formulation, norm in (("product", "1:inf"), ("lipsdp-neuron", "2:2"), ("geolip", "inf:1")):
        one, other = (lm.solve(c.network(), formulation, norm=norm, witness=False).bound for c in (chain, ten))
        assert other == pytest.approx(10.0 * one, rel=1e-5)
        assert other >= formal_constant(ten.plan(), *norm.split(":")).value * (1 - 1e-12)


def test_cancellation_is_not_a_lower_bound() -> None:
    """relu(x) - relu(-x) = x: the constant is 1, the formal one 2 (independent slopes at the kink)."""
    chain = chain_of([[1], [-1]], [[1, -1]])
    result = lm.solve(chain.network(), "lipsdp-neuron")
    assert result.lower_bound == 1.0
    assert 2.0 <= result.bound <= 2.0 * (1 + 1e-6)


@pytest.mark.parametrize("index", [201, 387, 638, 657])
def test_outputs_that_leave_neurons_without_a_reader(index: int, tmp_path: Path) -> None:
    """Of chosen outputs the importer and the independent reader see the same living neurons."""
    outcome = check(random_case(777, index), tmp_path)
    assert not outcome.failures, outcome.failures
