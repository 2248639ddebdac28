"""What the exact checker makes of bounds, norms and multipliers in a certificate, and of published mistakes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from exact_nets import Net, accepts, check, enumerated, multipliers_of, random_net

from lipmodel.certify.kernel import Rejected, bound_squared
from lipmodel.certify.lmi import Multipliers
from lipmodel.certify.rigor import proves_lmi
from lipmodel.certify.roots import sqrt_up

# ------------------------------------------------------------------------------------------------------ the certificate


@pytest.fixture
def certified() -> tuple[Net, Multipliers]:
    net = random_net(np.random.default_rng(9), depth=2, dag=True, inputs=3, outputs=2)
    return net, multipliers_of(net, margin=1e-8)


def test_the_bound_is_compared_exactly(certified):
    net, multipliers = certified
    for p, q in itertools.product(("2", "inf"), ("1", "2")):
        bound = check(net, multipliers, p, q)
        assert accepts(net, multipliers, p, q, math.nextafter(bound, math.inf))
        with pytest.raises(Rejected, match="below"):
            check(net, multipliers, p, q, math.nextafter(bound, 0.0))


@pytest.mark.parametrize("bound", [math.nan, math.inf, -math.inf, -1.0, 0.0])
def test_bounds_that_are_no_bounds(certified, bound):
    assert not accepts(*certified, bound=bound)


def test_norm_pairs_that_the_inequality_says_nothing_about(certified):
    net, multipliers = certified
    for p, q in (("1", "2"), ("2", "inf"), ("1", "inf"), ("3", "2"), ("2", "")):
        with pytest.raises(Rejected):
            bound_squared(multipliers, p, q)
        assert not accepts(net, multipliers, p, q, 1e300)


def test_single_entries_have_one_norm():
    net = random_net(np.random.default_rng(10), depth=1, inputs=1, outputs=1)
    multipliers = multipliers_of(net)
    assert len({check(net, multipliers, p, q) for p in ("1", "2", "inf") for q in ("1", "2", "inf")}) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, -5e-324])
def test_every_multiplier_must_be_a_nonnegative_number(certified, bad):
    net, multipliers = certified
    for field in ("t", "g", "s"):
        vectors = getattr(multipliers, field)
        vectors = vectors if field == "t" else (vectors,)
        for k, i in [(k, i) for k, v in enumerate(vectors) for i in range(len(v))]:
            spoiled = [v.copy() for v in vectors]
            spoiled[k][i] = bad
            changed = replace(multipliers, **{field: tuple(spoiled) if field == "t" else spoiled[0]})
            assert not proves_lmi(net.float_system(), changed)
            with pytest.raises(Rejected, match="must be finite"):
                check(net, changed, bound=1e300)
    zero = replace(multipliers, s=multipliers.s * np.array([1.0, 0.0]))
    assert not accepts(net, zero, bound=1e300)


def test_multipliers_of_another_shape(certified):
    net, multipliers = certified
    for changed in (
        replace(multipliers, t=multipliers.t[:1]),
        replace(multipliers, t=(multipliers.t[0][:-1], multipliers.t[1])),
        replace(multipliers, t=(np.diag(multipliers.t[0]), multipliers.t[1])),
        replace(multipliers, g=multipliers.g[:-1]),
        replace(multipliers, s=np.ones(3)),
    ):
        assert not proves_lmi(net.float_system(), changed)
        with pytest.raises(Rejected, match="do not fit"):
            check(net, changed, bound=1e300)


def test_a_tampered_certificate_is_refused_or_still_true(certified):
    net, multipliers = certified
    truth = enumerated(net)["2", "2"]
    rng = np.random.default_rng(11)
    refused = 0
    for _ in range(40):
        t = tuple(
            v * np.where(rng.random(len(v)) < 0.4, rng.choice([0.0, 0.5, 0.99, 1.01, 2.0, 1e9]), 1.0)
            for v in multipliers.t
        )
        changed = replace(multipliers, t=t, g=multipliers.g * rng.choice([0.5, 0.9, 1.0, 1.1]))
        bound = sqrt_up(bound_squared(changed, "2", "2"))
        if accepts(net, changed, bound=bound):
            assert bound >= truth * (1 - 1e-12)
        else:
            refused += 1
    assert refused > 10


# ------------------------------------------------------------------------------------------------- published mistakes


def test_coupled_multipliers_of_lipsdp_network_are_not_a_proof():
    """W1 = (1, 1)', W2 = (1, -1), relu: the coupled program claims 1.4e-5, the constant is 1."""
    net = Net(
        sizes=(1, 2),
        pre=({0: np.ones((2, 1))},),
        alpha=(np.zeros(2),),
        beta=(np.ones(2),),
        output={1: np.array([[1.0, -1.0]])},
    )
    assert enumerated(net)["2", "2"] == 1.0
    grid = np.exp(np.linspace(-12, 6, 25))
    for a, b in itertools.product(grid, grid):
        claim = Multipliers(t=(np.array([a, b]),), g=np.array([0.999**2]), s=np.ones(1))
        assert not proves_lmi(net.float_system(), claim)
    assert not accepts(net, Multipliers(t=(np.ones(2),), g=np.array([2e-10]), s=np.ones(1)), bound=1.4e-5)
    coupled = Multipliers(t=(np.array([[1e5, -1e5], [-1e5, 1e5]]),), g=np.array([2e-10]), s=np.ones(1))
    assert not proves_lmi(net.float_system(), coupled)
    assert not accepts(net, coupled, bound=1.4e-5)


def test_a_recursion_evaluated_where_it_is_not_defined_is_not_a_proof():
    """W1 = (1, 1)', W2 = (1, -1/2), S = 0.45 I: 2S - G is indefinite, the formula returns 0.4797, the constant is 1."""
    w1, w2 = np.ones((2, 1)), np.array([[1.0, -0.5]])
    net = Net(sizes=(1, 2), pre=({0: w1},), alpha=(np.zeros(2),), beta=(np.ones(2),), output={1: w2})
    s = 0.45 * np.eye(2)
    y = s @ np.linalg.inv(2 * s - w1 @ w1.T) @ s
    claimed = float(np.sqrt(np.linalg.eigvalsh(w2 @ y @ w2.T)[-1]))
    assert claimed == pytest.approx(0.4797, abs=1e-4)
    for claim in (claimed, 0.99):
        false = Multipliers(t=(np.full(2, claim**2 / 0.45),), g=np.array([claim**2]), s=np.ones(1))
        assert not proves_lmi(net.float_system(), false)
        assert not accepts(net, false)
    assert check(net, multipliers_of(net)) >= enumerated(net)["2", "2"] == 1.0


def test_a_curved_input_block_must_not_be_dropped():
    """Slopes [-1, 1]: 2 W'diag(alpha beta t)W is negative, and without it any g > 0 would do."""
    ones = np.ones(1)
    net = Net(sizes=(1, 1), pre=({0: 3.0 * np.eye(1)},), alpha=(-ones,), beta=(ones,), output={1: np.eye(1)})
    tight = Multipliers(t=(np.array([0.5 * (1 + 1e-9)]),), g=np.array([9.0 * (1 + 2e-9)]), s=ones)
    assert proves_lmi(net.float_system(), tight)
    assert check(net, tight) == pytest.approx(3.0, rel=1e-8)
    for t in np.exp(np.linspace(-20, 20, 41)):
        lower = Multipliers(t=(np.array([t]),), g=np.array([8.99]), s=ones)
        assert not proves_lmi(net.float_system(), lower)
        assert not accepts(net, lower)
