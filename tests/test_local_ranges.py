"""Ranges of pre-activations over boxes and balls: intervals in integers, affine forms, relaxations."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from activation_cases import LIPSCHITZ, label
from local_points import ORDER, Array, points, random_domain
from witness_networks import build

import lipmodel as lm
from lipmodel.activations import activation
from lipmodel.network.linear import Dense, Diagonal
from lipmodel.network.ops import Add, Elementwise, Input, Linear, elementwise
from lipmodel.network.slopes import SMALL, slopes
from lipmodel.ranges.local import pre_activation_ranges
from lipmodel.ranges.relaxation import _lines
from lipmodel.ranges.spans import Span, around, between, down, intersection, span_matrix
from lipmodel.spec import Ball, Box
from lipmodel.testing.networks import KINDS, random_network

# --- Intervals in integers ------------------------------------------------------------------------------------------


def test_down_is_the_next_double_below() -> None:
    rng = np.random.default_rng(1)
    for _ in range(3000):
        value = int(rng.integers(-(2**62), 2**62)) >> int(rng.integers(0, 62))
        value <<= int(rng.integers(0, 200))
        exponent = int(rng.integers(-300, 1300))
        exact = Fraction(value) / Fraction(2) ** exponent
        found = down(value, exponent)
        assert found == -math.inf or (Fraction(found) <= exact)
        if math.isfinite(found):
            above = math.nextafter(found, math.inf)
            assert above == math.inf or Fraction(above) > exact
        else:
            assert exact < -(2**1023)
    assert down(0, 5) == 0.0


def test_maps_hold_every_product() -> None:
    rng = np.random.default_rng(2)
    for trial in range(40):
        m, n = (int(v) for v in rng.integers(1, 9, size=2))
        weights = rng.standard_normal((m, n)) * 10.0 ** rng.uniform(-6.0, 6.0, (m, n))
        radius = np.abs(weights) * 1e-3 * rng.random((m, n)) if trial % 2 else None
        lo = rng.standard_normal(n) * 10.0 ** rng.uniform(-200.0 * (trial % 3 == 0), 3.0, n)
        hi = lo + np.abs(rng.standard_normal(n))
        y = span_matrix(Dense(weights=weights, radius=radius)).apply(between(lo, hi))
        for _ in range(20):
            x = np.where(rng.random(n) < 0.5, lo, hi)
            side = 0.0 if radius is None else np.where(rng.random((m, n)) < 0.5, -1.0, 1.0) * radius
            exact = [
                sum((Fraction(w) + Fraction(s)) * Fraction(v) for w, s, v in zip(row, more, x.tolist(), strict=True))
                for row, more in zip(weights.tolist(), np.broadcast_to(side, (m, n)).tolist(), strict=True)
            ]
            low, high = y.limits()
            assert all(Fraction(a) <= v <= Fraction(b) for a, v, b in zip(low, exact, high, strict=True))


def test_spans_round_and_meet() -> None:
    rng = np.random.default_rng(3)
    mid = np.array([int(v) << 300 for v in rng.integers(-(10**9), 10**9, 20)], dtype=object) + 12345
    wide = Span(mid=mid, rad=np.array([int(v) for v in rng.integers(0, 10**6, 20)], dtype=object), exponent=310)
    short = wide.rounded()
    back = short.over(wide.exponent) if short.exponent <= wide.exponent else short
    assert max(v.bit_length() for v in short.mid) <= 192
    assert np.all(back.mid - back.rad <= wide.mid - wide.rad)
    assert np.all(back.mid + back.rad >= wide.mid + wide.rad)
    a, b = between(np.array([0.0, 0.0]), np.array([2.0, 1.0])), around(np.array([2.0, 3.0]), np.array([1.0, 1.0]))
    low, high = intersection(a, b).limits()
    assert low.tolist() == [1.0, 0.0]
    assert high.tolist() == [2.0, 1.0]


# --- Ranges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_hold_every_pre_activation(kind: str) -> None:
    rng = np.random.default_rng(4)
    for seed in range(12):
        net = random_network(kind, seed)
        domain, norm = random_domain(rng, 3), str(rng.choice(list(ORDER)))
        ranges, reasons = pre_activation_ranges(net, domain, norm)
        assert not reasons
        values = net.values(points(domain, norm, 300, rng), None)
        for name, (lo, hi) in ranges.items():
            v = values[net.arguments(name)[0]].reshape(len(lo), -1)
            slack = 1e-12 * (1.0 + np.max(np.abs(v), axis=1))
            assert np.all(np.min(v, axis=1) >= lo - slack)
            assert np.all(np.max(v, axis=1) <= hi + slack)


def test_the_first_layers_read_the_domain_itself() -> None:
    rng = np.random.default_rng(5)
    w, v = rng.standard_normal((6, 4)), rng.standard_normal((5, 6))
    nodes: Any = [
        ("x", Input(shape=(4,)), []),
        ("a", Linear(map=Dense(weights=w), bias=np.ones(6)), ["x"]),
        ("d", Linear(map=Diagonal(values=np.arange(1.0, 7.0))), ["a"]),
        ("s", Add(), ["a", "d"]),
        ("b", Linear(map=Dense(weights=v)), ["s"]),
        ("r", elementwise(activation("Relu"), 5), ["b"]),
    ]
    net = build(nodes, "r")
    whole = v @ ((1.0 + np.arange(1.0, 7.0))[:, None] * w)
    shift = v @ (1.0 + np.arange(1.0, 7.0))
    center = rng.standard_normal(4)
    for norm, dual in (("1", np.inf), ("2", 2), ("inf", 1)):
        (lo, hi), *_ = pre_activation_ranges(net, Ball(center, 0.5), norm)[0].values()
        reach = 0.5 * np.linalg.norm(whole, dual, axis=1)
        assert np.allclose(lo, whole @ center + shift - reach, rtol=1e-12, atol=1e-12)
        assert np.allclose(hi, whole @ center + shift + reach, rtol=1e-12, atol=1e-12)


def test_ranges_touch_breakpoints_exactly() -> None:
    """A neuron that only just stays on one side of its kink is stable; one ulp further it is not."""
    net = lm.from_weights([np.array([[3.0]]), np.array([[1.0]])], [np.array([-0.3]), None])
    edge = 0.3 / 3.0  # below a tenth of the double 0.3
    edge = edge if 3 * Fraction(edge) >= Fraction(0.3) else math.nextafter(edge, 1.0)
    assert lm.increments(net, Box(edge, 1.0)).neurons == 0
    assert lm.increments(net, Box(math.nextafter(edge, 0.0), 1.0)).neurons == 1


def test_interval_weights_widen_the_ranges() -> None:
    def network(radius: Array | None) -> Any:
        w = Dense(weights=np.array([[1.0, -1.0]]), radius=radius)
        nodes: Any = [
            ("x", Input(shape=(2,)), []),
            ("a", Linear(map=w, bias=np.zeros(1), bias_radius=None if radius is None else np.array([0.5])), ["x"]),
            ("r", elementwise(activation("Relu"), 1), ["a"]),
        ]
        return build(nodes, "r")

    for domain in (Box([1.0, -1.0], [2.0, 0.0]), Ball([1.5, -0.5], 0.5)):
        exact = pre_activation_ranges(network(None), domain, "2")[0]["r"]
        wide = pre_activation_ranges(network(np.array([[0.125, 0.25]])), domain, "2")[0]["r"]
        assert wide[0][0] <= exact[0][0] - 0.5 - 0.125
        assert wide[1][0] >= exact[1][0] + 0.5 + 0.125


def test_mixed_activations_in_one_node() -> None:
    parts = elementwise(activation("Relu"), 2).parts[0], elementwise(activation("Tanh"), 2).parts[0]
    both = Elementwise(parts=(parts[0], type(parts[1])(activation=parts[1].activation, index=np.array([2, 3]))))
    nodes: Any = [
        ("x", Input(shape=(2,)), []),
        ("a", Linear(map=Dense(weights=np.array([[1.0, 0], [0, 1], [1, 1], [1, -1]]))), ["x"]),
        ("r", both, ["a"]),
        ("y", Linear(map=Dense(weights=np.ones((1, 4)))), ["r"]),
    ]
    system = lm.increments(build(nodes, "y"), Box([1.0, -2.0], [2.0, -1.0]))
    (layer,) = system.activations
    assert layer.size == 2  # the two ReLUs are stable
    assert np.all(layer.beta <= 1.0)
    assert np.all(layer.alpha > 0.0)


# --- Relaxations ----------------------------------------------------------------------------------------------------


def fractions(values: Any) -> list[Any]:
    return [fractions(v) if isinstance(v, list) else Fraction(v) for v in values]


def exact_pre_activations(weights: list[Array], biases: list[Array], x: list[Fraction]) -> list[list[Fraction]]:
    """The pre-activations of a ReLU chain at x, in rational arithmetic."""
    found: list[list[Fraction]] = []
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        rows, offset = fractions(w.tolist()), fractions(b.tolist())
        v = [sum((a * c for a, c in zip(row, x, strict=True)), o) for row, o in zip(rows, offset, strict=True)]
        found.append(v)
        x = [max(e, Fraction(0)) for e in v]
    return found


def test_relaxed_ranges_hold_in_rational_arithmetic_and_are_smaller() -> None:
    rng = np.random.default_rng(14)
    gained = 0
    for trial in range(60):
        sizes = [int(v) for v in rng.integers(2, 8, size=5)]
        scale = 10.0 ** rng.uniform(-1.0, 1.0) if trial % 4 else 10.0 ** rng.uniform(-60.0, 60.0)
        weights = [scale * rng.standard_normal(s) for s in zip(sizes[1:], sizes, strict=False)]
        biases = [scale * rng.standard_normal(n) for n in sizes[1:]]
        net = lm.from_weights(weights, biases)
        norm = ("1", "2", "inf")[trial % 3]
        center = rng.standard_normal(sizes[0])
        domain: Any = random_domain(rng, sizes[0]) if trial % 2 else Box(center - 1.0, center + 1.0)
        plain, _ = pre_activation_ranges(net, domain, norm, relaxed=False)
        ranges, _ = pre_activation_ranges(net, domain, norm)
        for (a, b), (lo, hi) in zip(plain.values(), ranges.values(), strict=True):
            assert np.all(a <= lo)
            assert np.all(lo <= hi)
            assert np.all(hi <= b)
            gained += bool(np.any(a < lo) or np.any(hi < b))
        for x in points(domain, norm, 40, rng).T:
            if domain.contains(x, norm):
                exact = exact_pre_activations(weights, biases, fractions(x.tolist()))
                for values, (lo, hi) in zip(exact, ranges.values(), strict=True):
                    assert all(Fraction(p) <= v <= Fraction(q) for p, v, q in zip(lo, values, hi, strict=True))
    assert gained > 30


def test_ranges_do_not_depend_on_the_order_of_additions() -> None:
    rng = np.random.default_rng(15)
    weights = [rng.standard_normal(s) for s in ((40, 30), (40, 40), (40, 40), (3, 40))]
    biases = [rng.standard_normal(n) for n in (40, 40, 40)]
    domain = Ball(rng.standard_normal(30), 0.05)
    first = lm.from_weights(weights, [*biases, None])
    expected = pre_activation_ranges(first, domain, "2")[0]
    order = rng.permutation(30)
    moved = lm.from_weights([np.asfortranarray(weights[0][:, order]), *weights[1:]], [*biases, None])
    other = pre_activation_ranges(moved, Ball(np.array(domain.center)[order], 0.05), "2")[0]
    for (a, b), (c, d) in zip(expected.values(), other.values(), strict=True):
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)


@pytest.mark.parametrize("case", LIPSCHITZ, ids=label)
def test_lines_hold_their_activation(case: Any) -> None:
    rng = np.random.default_rng(16)
    phi = activation(case[0], **case[1])
    lo = rng.standard_normal(40) * 10.0 ** rng.uniform(-3.0, 2.0, 40)
    hi = lo + 10.0 ** rng.uniform(-6.0, 2.0, 40)
    hi[:3] = lo[:3]
    lines = _lines(elementwise(phi, 40), lo, hi)
    assert lines is not None
    for share in (*rng.random(60), 0.0, 1.0):
        v = np.clip(lo + share * (hi - lo), lo, hi)
        y = phi(v)
        slack = 1e-12 * (1.0 + np.abs(y) + np.abs(v) * (1.0 + np.abs(lines.slope_low) + np.abs(lines.slope_high)))
        assert np.all(lines.slope_low * v + lines.low <= y + slack)
        assert np.all(y <= lines.slope_high * v + lines.high + slack)


def test_extreme_weights_leave_the_intervals() -> None:
    for scale in (1e-290, 1e290):
        weights = [scale * np.eye(2), np.array([[1.0, -1.0], [1.0, 1.0]]), np.ones((1, 2))]
        net = lm.from_weights(weights, [np.zeros(2), np.full(2, -0.5 * scale), None])
        ranges, reasons = pre_activation_ranges(net, Box(-1.0, 1.0).sized(2), "2")
        assert not reasons
        (a, b), (lo, hi) = ranges.values()
        assert np.all(a <= -scale)
        assert np.all(b >= scale)
        assert np.all(lo <= np.array([-1.5, -0.5]) * scale)
        assert np.all(hi >= np.array([0.5, 1.5]) * scale)


def test_overflowing_ranges_are_honest() -> None:
    net = lm.from_weights([np.array([[1e300]]), np.array([[1e300]]), np.ones((1, 1))], [None, np.array([1.0]), None])
    ranges, _ = pre_activation_ranges(net, Box(-1e10, 1e10), "2")
    assert list(ranges.values())[1][1][0] == math.inf
    exp = lm.from_weights([np.array([[1000.0]]), np.ones((1, 1)), np.ones((1, 1))], activation="Exp")
    with pytest.raises(lm.RefusedInput):
        lm.solve(exp, domain=Box(-1.0, 1.0))


def test_slopes_too_small_to_compute_with_are_rounded_outward() -> None:
    op = elementwise(activation("Sigmoid"), 3)
    alpha, beta = slopes(op, (np.array([-700.0, -700.0, -700.0]), np.array([-600.0, 0.0, -700.0])))
    assert alpha.tolist() == [0.0, 0.0, 0.0]
    assert beta[0] == SMALL
    assert beta[1] >= 0.25
    assert beta[2] == 0.0  # its argument cannot move
    leaky = elementwise(activation("LeakyRelu", alpha=1e-70), 2)
    alpha, beta = slopes(leaky, (np.array([-2.0, -2.0]), np.array([-1.0, 1.0])))
    assert alpha[0] == beta[0] == 1e-70  # known exactly
    assert (alpha[1], beta[1]) == (0.0, 1.0)


def test_relaxations_count_the_radius_of_weights_and_biases() -> None:
    rng = np.random.default_rng(17)
    for _ in range(10):
        sizes = (4, 6, 5, 3)
        weights = [rng.standard_normal(s) for s in zip(sizes[1:], sizes, strict=False)]
        radii = [0.05 * rng.random(w.shape) for w in weights]
        nodes: Any = [("x", Input(shape=(4,)), [])]
        for k, (w, r) in enumerate(zip(weights, radii, strict=True)):
            before = nodes[-1][0]
            map_ = Dense(weights=w, radius=r)
            nodes.append((f"a{k}", Linear(map=map_, bias=np.ones(len(w)), bias_radius=np.full(len(w), 0.1)), [before]))
            nodes.append((f"r{k}", elementwise(activation("Relu"), len(w)), [f"a{k}"]))
        domain = Ball(rng.standard_normal(4), 0.7)
        ranges, _ = pre_activation_ranges(build(nodes, "r2"), domain, "2")
        for _ in range(100):
            worst = rng.random() < 0.7
            signs = [np.sign(rng.standard_normal(w.shape)) if not worst else np.full(w.shape, rng.choice([-1.0, 1.0]))
                     for w in weights]  # fmt: skip
            value = points(domain, "2", 20, rng)
            for k, (w, r, s) in enumerate(zip(weights, radii, signs, strict=True)):
                value = (w + s * r) @ value + 1.0 + 0.1 * s[:, :1]
                lo, hi = ranges[f"r{k}"]
                assert np.all(value >= lo[:, None] - 1e-9)
                assert np.all(value <= hi[:, None] + 1e-9)
                value = np.maximum(value, 0.0)
