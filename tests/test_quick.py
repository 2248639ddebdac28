"""The bound that is known within milliseconds: above the constant, on every kind of network."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.certify.quick import quick_bound
from lipmodel.network.conv import Conv
from lipmodel.network.increments import chain_of
from lipmodel.network.linear import Composition, Dense, Diagonal, Selection, Sparse, Sum
from lipmodel.testing.networks import KINDS, formal_constant, random_system

PAIRS = [(p, q) for p in ("1", "2", "inf") for q in ("1", "2", "inf")]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_above_the_constant_and_not_far_above_on_tiny_networks(kind: str) -> None:
    for seed in range(4):
        system = random_system(kind, seed)
        for p, q in PAIRS:
            bound, exact = quick_bound(system, p, q), formal_constant(system, p, q)
            assert exact <= bound < math.inf
            assert bound <= 1e4 * exact + 1e-300


def test_lengths_are_above_the_exact_frobenius_norm_or_the_spectral_one() -> None:
    rng = np.random.default_rng(0)
    for scale in (1.0, 1e-170, 1e170):
        w = scale * rng.standard_normal((7, 5)) * 10.0 ** rng.integers(-9, 9, (7, 5))
        exact = sum((Fraction(float(x)) ** 2 for x in w.ravel()), Fraction(0))
        single = quick_bound(chain_of([w]), "2", "2")
        assert Fraction(single) ** 2 >= min(exact, Fraction(float(np.linalg.norm(w / scale, 2)) * scale) ** 2)


def test_nothing_is_lost_to_underflow_or_overflow() -> None:
    small = [np.full((2, 2), 1e-200)] * 3
    assert 0.0 < quick_bound(chain_of(small), "2", "2") <= 1e-250
    back = [np.full((2, 2), 1e-200)] * 3 + [np.full((2, 2), 1e300)] * 2
    assert quick_bound(chain_of(back), "2", "2") >= 32e0  # 2^5 1e-600 1e600, which no product of floats shows
    assert quick_bound(chain_of([np.full((2, 2), 1e200)] * 3), "2", "2") == math.inf


def test_every_kind_of_map_is_bounded() -> None:
    import scipy.sparse as sp

    rng = np.random.default_rng(1)
    dense = Dense(weights=rng.standard_normal((6, 8)), radius=np.full((6, 8), 1e-3))
    sparse = Sparse(weights=sp.csr_array(rng.standard_normal((6, 8)) * (rng.random((6, 8)) < 0.3)))
    conv = Conv(
        kernel=rng.standard_normal((4, 1, 3)),
        input_shape=(1, 2, 4),
        output_spatial=(4,),
        strides=(1,),
        pads=(1,),
        dilations=(1,),
        groups=2,
    )
    select = Selection(index=np.array([0, 0, 3, -1, 0, 5]), size=8)
    diagonal = Diagonal(values=rng.standard_normal(6))
    maps = [dense, sparse, conv, select, Composition(factors=(diagonal, dense)), Sum(terms=(dense, sparse))]
    from lipmodel.certify.quick import _length

    for m in maps:
        enclosure = m.enclosure().dense()
        worst = enclosure.center if enclosure.radius is None else np.abs(enclosure.center) + enclosure.radius
        assert _length(m) >= np.linalg.norm(worst, 2) * (1.0 - 1e-12) or _length(m) >= np.linalg.norm(
            enclosure.center, 2
        ) + np.linalg.norm(enclosure.radius)
        assert _length(m) < math.inf


def test_solve_reports_it_first() -> None:
    rng = np.random.default_rng(2)
    net = lm.from_weights([rng.standard_normal(s) for s in ((9, 4), (8, 9), (3, 8))], activation="tanh")
    states = []
    result = lm.solve(net, "lipsdp-neuron", witness=False, progress=states.append)
    bounds = [state.bound for state in states]
    assert bounds[0] == quick_bound(lm.increments(net), "2", "2")
    assert all(a >= b for a, b in itertools.pairwise(bounds))
    assert bounds[-1] >= result.bound
    assert bounds[1] == lm.solve(net, "product", norm="2", witness=False).bound
