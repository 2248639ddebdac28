"""The exact checker: the inequality against its definition, and bounds against enumeration."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from exact_nets import Net, accepts, check, defined_lmi, enumerated, is_psd, multipliers_of, random_net
from scipy.optimize import minimize

from lipmodel.certify.kernel import bound_squared, exact_lmi
from lipmodel.certify.lmi import Multipliers, lmi_enclosure
from lipmodel.certify.rigor import proves_lmi
from lipmodel.certify.roots import sqrt_up

# --------------------------------------------------------------------------------------------------- the matrix itself


def test_both_arithmetics_give_the_matrix_of_the_definition():
    rng = np.random.default_rng(0)
    for trial in range(40):
        net = random_net(rng, scale=float(rng.choice([1, 5])))
        multipliers = Multipliers(
            t=tuple(rng.uniform(0, 1, n) * 10.0 ** rng.uniform(-9, 9, n) for n in net.sizes[1:]),
            g=rng.uniform(0, 1, net.sizes[0]),
            s=rng.uniform(0.1, 1, net.outputs),
        )
        if trial % 4 == 0 and multipliers.t:
            multipliers.t[0][0] = 0.0
        expected = defined_lmi(net, multipliers)
        lmi = exact_lmi(net.exact_system(), multipliers)
        enclosure = lmi_enclosure(net.float_system(), multipliers)
        sizes = (*net.sizes, net.outputs)
        assert enclosure.sizes == sizes
        blocks = enclosure.expanded()
        starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        for i, j in itertools.combinations_with_replacement(range(len(sizes)), 2):
            block, bounds = lmi.blocks.get((j, i)), blocks.get((j, i))
            for a, b in itertools.product(range(sizes[j]), range(sizes[i])):
                truth = expected[starts[j] + a][starts[i] + b]
                value = Fraction(0) if block is None else Fraction(block.mantissa[a][b]) / 2**block.exponent
                if i == j and a == b:
                    value += Fraction(lmi.diagonal[i][0][a]) / Fraction(2) ** lmi.diagonal[i][1]
                assert value == truth
                if bounds is None:
                    assert truth == 0
                    continue
                radius = 0.0 if bounds.radius is None else float(bounds.radius[a, b])
                assert abs(Fraction(float(bounds.center[a, b])) - truth) <= Fraction(radius)
                assert radius <= 1e-10 * max(1e-300, float(np.abs(bounds.center).max()))


def test_cross_terms_of_slopes_zero_one_have_one_rounding():
    net = random_net(np.random.default_rng(1), depth=1, dag=False)
    net = replace(net, alpha=(np.zeros(net.sizes[1]),), beta=(np.ones(net.sizes[1]),))
    multipliers = multipliers_of(net)
    block = lmi_enclosure(net.float_system(), multipliers).blocks[1, 0]
    assert np.all(block.radius <= 2.1 * 2.0**-53 * np.abs(block.center) + 1e-290)


# ----------------------------------------------------------------------------------------------- accepting and refusing


def test_never_an_indefinite_matrix_and_no_miss_at_a_margin_of_1e9():
    """Both proofs around the threshold, decided by rational elimination."""
    rng = np.random.default_rng(2)
    tried = refused = 0
    for _ in range(60):
        net = random_net(rng)
        for margin in (1e-6, 1e-9, 1e-12, 1e-15, 0.0, -1e-15, -1e-12, -1e-9, -1e-4):
            multipliers = multipliers_of(net, margin=margin)
            if multipliers is None or multipliers.g[0] < 1e-100:
                continue
            tried += 1
            floating, exact = proves_lmi(net.float_system(), multipliers), accepts(net, multipliers)
            assert exact or not floating
            if margin >= 1e-9:
                assert floating
                assert exact
            if margin <= 1e-12:
                truth = is_psd(defined_lmi(net, multipliers))
                assert truth or not exact
                refused += not truth
    assert tried > 300
    assert refused > 60


@pytest.mark.parametrize(
    "layers", [(1e-30, 1e30), (1e30, 1e-30), (1e-30, 1e-30), (1e15, 1e15, 1e-30), (1e-20, 1e20, 1e20)]
)
def test_layers_of_any_scale(layers):
    rng = np.random.default_rng(3)
    net = random_net(rng, depth=len(layers) - 1, scale=0.0, dag=False, outputs=2)
    net = replace(
        net,
        pre=tuple({j: a * c for j, a in form.items()} for form, c in zip(net.pre, layers, strict=False)),
        output={j: a * layers[-1] for j, a in net.output.items()},
    )
    multipliers = multipliers_of(net)
    assert proves_lmi(net.float_system(), multipliers)
    check(net, multipliers)
    lowered = replace(multipliers, g=multipliers.g * (1 - 1e-7))
    assert not proves_lmi(net.float_system(), lowered)
    assert not accepts(net, lowered)


def test_multipliers_over_sixty_binary_orders():
    rng = np.random.default_rng(4)
    net = random_net(rng, depth=2, dag=False, scale=0.0)
    orders = tuple(np.ldexp(1.0, rng.integers(-30, 31, n)) for n in net.sizes[1:])
    # neuron j counted in units of orders_j: the same function, so multipliers scale with orders^-2
    pre = [{0: orders[0][:, None] * net.pre[0][0]}, {1: orders[1][:, None] * net.pre[1][1] / orders[0]}]
    scaled = replace(net, pre=tuple(pre), output={2: net.output[2] / orders[1]})
    m = multipliers_of(net)
    m = replace(m, t=tuple(t / o**2 for t, o in zip(m.t, orders, strict=True)))
    spread = np.concatenate(m.t)
    assert spread.max() / spread.min() > 2.0**60
    assert proves_lmi(scaled.float_system(), m)
    assert check(scaled, m) == check(net, multipliers_of(net))


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_wider_network_with_every_kind_of_slope(scale):
    rng = np.random.default_rng(5)
    net = random_net(rng, depth=3, width=40, scale=scale, inputs=90, outputs=12, dag=True)
    multipliers = multipliers_of(net)
    assert proves_lmi(net.float_system(), multipliers)
    check(net, multipliers)
    lowered = multipliers_of(net, margin=-1e-8)
    assert not proves_lmi(net.float_system(), lowered)
    assert not accepts(net, lowered)


def test_uncertain_weights_hold_for_every_weight_they_allow():
    rng = np.random.default_rng(6)
    needed = 0
    for _ in range(25):
        sharp = random_net(rng, depth=int(rng.integers(1, 3)), width=2, inputs=1)
        net = replace(sharp, radius=1e-6)
        for margin in (1e-7, 1e-3):
            multipliers = multipliers_of(net, margin=margin)
            floating, exact = proves_lmi(net.float_system(), multipliers), accepts(net, multipliers)
            assert exact or not floating
            needed += accepts(sharp, multipliers) and not exact
            for _ in range(8 if exact else 0):
                forms = [
                    {j: a + 0.999e-6 * np.abs(a) * rng.choice([-1, 1], a.shape) for j, a in form.items()}
                    for form in (*net.pre, net.output)
                ]
                blurred = replace(sharp, pre=tuple(forms[:-1]), output=forms[-1])
                assert is_psd(defined_lmi(blurred, multipliers))
    assert needed > 5  # the radius decided


def test_both_arithmetics_contain_the_matrix_of_every_weight_they_allow():
    rng = np.random.default_rng(14)
    for _ in range(30):
        sharp = random_net(rng, depth=2, width=2, inputs=2)
        net = replace(sharp, radius=1e-3)
        multipliers = multipliers_of(net)
        lmi = exact_lmi(net.exact_system(), multipliers)
        enclosure = lmi_enclosure(net.float_system(), multipliers)
        starts = np.concatenate([[0], np.cumsum(enclosure.sizes)]).tolist()
        forms = [
            {j: a + 0.999e-3 * np.abs(a) * rng.choice([-1, 1], a.shape) for j, a in form.items()}
            for form in (*net.pre, net.output)
        ]
        truth = defined_lmi(replace(sharp, pre=tuple(forms[:-1]), output=forms[-1]), multipliers)
        for (i, j), block in enclosure.expanded().items():
            whole = lmi.blocks.get((i, j))
            for a, b in itertools.product(range(enclosure.sizes[i]), range(enclosure.sizes[j])):
                value = truth[starts[i] + a][starts[j] + b]
                radius = 0.0 if block.radius is None else float(block.radius[a, b])
                assert abs(Fraction(float(block.center[a, b])) - value) <= Fraction(radius)
                if i == j and a == b:
                    value -= Fraction(lmi.diagonal[i][0][a]) / Fraction(2) ** lmi.diagonal[i][1]
                center, error = (0, 0) if whole is None else (whole.mantissa[a][b], whole.radius[a][b])
                unit = 1 if whole is None else Fraction(2) ** -whole.exponent
                assert abs(int(center) * unit - value) <= int(error) * unit


def test_dead_neurons_with_a_multiplier_of_zero():
    w = np.array([[1.0, 2.0], [3.0, 4.0]])
    out = np.array([[1.0, 0.0]])
    ones = np.ones(2)
    net = Net(sizes=(2, 2), pre=({0: w},), alpha=(0 * ones,), beta=(ones,), output={1: out})
    multipliers = Multipliers(t=(np.array([1.0, 0.0]),), g=np.full(2, 5.1), s=np.ones(1))
    assert proves_lmi(net.float_system(), multipliers)
    check(net, multipliers)
    alive = replace(net, output={1: np.array([[1.0, 1e-30]])})
    assert not proves_lmi(alive.float_system(), multipliers)
    assert not accepts(alive, multipliers)


# ----------------------------------------------------------------------------------------------- bounds and enumeration


def polished(net: Net, pair: tuple[str, str], rng) -> Multipliers:
    """Multipliers near the optimum of the relaxation: the bounds with the best chance of being too small."""
    n0, m, hidden = net.sizes[0], net.outputs, sum(net.sizes[1:])
    cuts = np.cumsum(net.sizes[1:])[:-1]

    def build(x):
        stretch = np.split(x[:hidden], cuts) if hidden else None
        g0 = np.exp(x[hidden : hidden + n0]) if pair[0] == "inf" else None
        s = np.exp(x[hidden + n0 :]) if pair[1] == "1" else None
        return multipliers_of(net, margin=1e-9, g0=g0, s=s, stretch=stretch)

    def price(x):
        multipliers = build(np.clip(x, -6, 6))
        return 1e6 if multipliers is None else math.log(float(bound_squared(multipliers, *pair)))

    x0 = 0.1 * rng.standard_normal(hidden + n0 + m)
    best = minimize(price, x0, method="Powell", options={"maxfev": 250, "xtol": 1e-3, "ftol": 1e-5})
    return build(np.clip(best.x, -6, 6))


def test_no_bound_is_below_the_largest_vertex_of_the_slopes():
    rng = np.random.default_rng(7)
    tight = proofs = 0
    for trial in range(48):
        net = random_net(rng, depth=trial % 4, width=2, scale=0.3)
        truth = enumerated(net)
        pair = [("2", "2"), ("2", "1"), ("inf", "2"), ("inf", "1")][(trial // 4) % 4]
        multipliers = polished(net, pair, rng)
        if not accepts(net, multipliers, *pair):
            continue
        proofs += 1
        for p, q in truth:
            bound = check(net, multipliers, p, q)
            assert bound >= truth[p, q] * (1 - 1e-12)
            assert not accepts(net, multipliers, p, q, truth[p, q] * (1 - 1e-9))
        tight += sqrt_up(bound_squared(multipliers, *pair)) <= 1.2 * truth[pair]
    assert proofs >= 46
    assert tight >= 40


def test_no_activation_at_all_is_the_norm_of_the_matrix():
    rng = np.random.default_rng(8)
    for _ in range(10):
        net = random_net(rng, depth=0)
        top = float(np.linalg.norm(net.output[0], 2))
        ones = np.ones(net.sizes[0]), np.ones(net.outputs)
        above, below = ((top * (1 + e)) ** 2 for e in (1e-10, -1e-10))
        assert check(net, Multipliers(t=(), g=above * ones[0], s=ones[1])) == pytest.approx(top, rel=1e-9)
        assert not accepts(net, Multipliers(t=(), g=below * ones[0], s=ones[1]))
        assert not proves_lmi(net.float_system(), Multipliers(t=(), g=below * ones[0], s=ones[1]))
