"""Witness pairs: the quotient is exact where the network is, below the truth everywhere, and tight."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.sparse as sp
from witness_networks import (
    PAIRS,
    PIECEWISE,
    Vector,
    build,
    check_rounded_down,
    convolved,
    difference,
    rational,
    squared_norm,
    times,
)

from lipmodel.activations import activation
from lipmodel.errors import NotLipschitz, Refuted, UsageError
from lipmodel.lower.balls import LONGEST, Balls, object_array, split_matrix
from lipmodel.lower.scalar import pieces
from lipmodel.lower.witness import Witness, evaluate_pair, pair_program, root_down, witness_ratio
from lipmodel.network.conv import Conv
from lipmodel.network.linear import Composition, Dense, Diagonal, LinearMap, Selection, Sparse, Sum
from lipmodel.network.ops import Add, Concat, Constant, Elementwise, Input, Linear, Part, elementwise
from lipmodel.network.sources import from_weights
from lipmodel.spec import parse_outputs


def random_points(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    x = rng.standard_normal(n) * 10.0 ** rng.integers(-3, 3)
    return x, x + rng.standard_normal(n) * 10.0 ** rng.integers(-12, 1)


@pytest.mark.parametrize("seed", range(30))
def test_chains_are_evaluated_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, rng.integers(2, 6)).tolist()
    weights = [rng.standard_normal((b, a)) * 10.0 ** rng.integers(-8, 9) for a, b in pairwise(sizes)]
    biases = [rng.standard_normal(len(w)) for w in weights]
    act, reference = PIECEWISE[seed % len(PIECEWISE)]
    network = from_weights(weights, biases, activation=act)
    x, y = random_points(rng, sizes[0])
    values = []
    for point in (x, y):
        v = rational(point)
        for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
            v = [s + t for s, t in zip(times(w, v), rational(b), strict=True)]
            if k < len(weights) - 1:
                v = [reference(t) for t in v]
        values.append(v)
    for p, q in PAIRS:
        ratio = witness_ratio(network, x, y, p, q)
        check_rounded_down(ratio, difference(*values), difference(rational(x), rational(y)), p, q)


@pytest.mark.parametrize("seed", range(12))
def test_every_operation_is_evaluated_exactly(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    channels, height, width, outputs = 2, 4, 3, 3
    kernel = rng.standard_normal((outputs, channels, 3, 3))
    stride, pad = (1, 1) if seed % 2 else (2, 1)
    spatial = tuple((n + 2 * pad - 3) // stride + 1 for n in (height, width))
    conv = Conv(
        kernel=kernel,
        input_shape=(1, channels, height, width),
        output_spatial=spatial,
        strides=(stride, stride),
        pads=(pad, pad),
        dilations=(1, 1),
    )
    n, m = channels * height * width, outputs * spatial[0] * spatial[1]
    bias, scale = rng.standard_normal(m), rng.standard_normal(m)
    left, right = rng.standard_normal((4, m)), rng.standard_normal((m, m)) * (rng.random((m, m)) < 0.3)
    order = rng.permutation(m)
    chosen = rng.integers(-1, m, 4)
    prelu = rng.integers(0, len(PIECEWISE), m)
    held = rng.standard_normal(4)
    places = rng.permutation(8)
    parts = tuple(
        Part(activation=PIECEWISE[k][0], index=np.flatnonzero(prelu == k)) for k in range(len(PIECEWISE)) if k in prelu
    )
    maps: list[LinearMap] = [
        Composition(factors=(Dense(weights=left), Selection(index=order, size=m), Diagonal(values=scale))),
        Sum(terms=(Dense(weights=left), Selection(index=chosen, size=m))),
    ]
    network = build(
        [
            ("x", Input(shape=(n,)), []),
            ("conv", Linear(map=conv, bias=bias), ["x"]),
            ("prelu", Elementwise(parts=parts), ["conv"]),
            ("mixed", Linear(map=Sparse(weights=sp.csr_array(right))), ["prelu"]),
            ("residual", Add(), ["mixed", "conv", "prelu", "prelu"]),
            ("relu", elementwise(activation("Relu"), m), ["residual"]),
            ("a", Linear(map=maps[0]), ["relu"]),
            ("b", Linear(map=maps[1]), ["relu"]),
            ("held", Constant(values=held), []),
            ("sum", Add(), ["b", "held"]),
            ("abs", elementwise(activation("Abs"), 4), ["sum"]),
            ("y", Concat(positions=(places[:4], places[4:])), ["a", "abs"]),
        ],
        "y",
    )

    def reference(point: Any) -> Vector:
        v = convolved(kernel, (1, channels, height, width), stride, pad, rational(point))
        v = [s + t for s, t in zip(v, rational(bias), strict=True)]
        w = [PIECEWISE[k][1](t) for k, t in zip(prelu.tolist(), v, strict=True)]
        r = [a + b + 2 * c for a, b, c in zip(times(right, w), v, w, strict=True)]
        r = [max(t, Fraction(0)) for t in r]
        first = times(left, [Fraction(float(scale[k])) * r[k] for k in order])
        second = times(left, r)
        second = [s + (r[k] if k >= 0 else 0) + h for s, k, h in zip(second, chosen, rational(held), strict=True)]
        out = [Fraction(0)] * 8
        for at, value in zip(places, [*first, *(abs(t) for t in second)], strict=True):
            out[at] = value
        return out

    x, y = random_points(rng, n)
    change, step = difference(reference(x), reference(y)), difference(rational(x), rational(y))
    for p, q in PAIRS:
        check_rounded_down(witness_ratio(network, x, y, p, q), change, step, p, q)
    check_rounded_down(witness_ratio(network, x, y, "2", "1", "3,5"), [change[3], change[5]], step, "2", "1")
    margins = [change[2] - c for k, c in enumerate(change) if k != 2]
    check_rounded_down(witness_ratio(network, x, y, "1", "2", "margin:2"), margins, step, "1", "inf")
    rows = [{0: 0.1, 7: -3.0}, {2: 1e-20}]
    combined = [Fraction(0.1) * change[0] - 3 * change[7], Fraction(1e-20) * change[2]]
    check_rounded_down(evaluate_pair(network, x, y, "2", "2", rows=rows), combined, step, "2", "2")
    check_rounded_down(evaluate_pair(network, x, y, "2", "2", rows=rows, mode="each"), combined, step, "2", "inf")


@pytest.mark.parametrize("seed", range(40))
def test_matrices_act_exactly_on_integers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, n, c = rng.integers(1, 9, 3).tolist()
    weights = rng.standard_normal((m, n)) * 2.0 ** rng.integers(-500, 400, (m, n)).astype(float)
    weights[rng.random((m, n)) < 0.4] = 0.0
    weights[0, 0] = (5e-324, 1.7e308, -(2.0**-1050), 0.1)[seed % 4]
    x = rng.standard_normal((n, c)) * 2.0 ** rng.integers(-60, 60, (n, c)).astype(float)
    y = split_matrix(sp.csr_array(weights) if seed % 2 else weights).apply(Balls.from_floats(x))
    assert y.radius is None
    got = [[Fraction(v) / Fraction(2) ** y.exponent for v in row] for row in y.mid.tolist()]
    assert got == [[times([weights[i]], rational(x[:, j]))[0] for j in range(c)] for i in range(m)]


def test_long_numbers_are_shortened_with_a_proved_error() -> None:
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal((3, 3)) * 0.8 for _ in range(40)]
    network = from_weights(weights, activation=activation("LeakyRelu", alpha=-0.9))
    x, y = np.array([0.3, -1.1, 0.7]), np.array([0.31, -1.1, 0.68])
    change = pair_program(network).difference(x, y)
    assert change.radius is not None
    values = []
    for point in (x, y):
        v = rational(point)
        for k, w in enumerate(weights):
            v = times(w, v)
            v = [t if t > 0 else Fraction(-0.9) * t for t in v] if k < len(weights) - 1 else v
        values.append(v)
    truth = squared_norm(difference(*values), "2") / squared_norm(difference(rational(x), rational(y)), "2")
    assert truth > 0
    ratio = witness_ratio(network, x, y, "2", "2")
    assert Fraction(ratio) ** 2 <= truth <= Fraction(ratio * (1 + 1e-15)) ** 2


def test_what_is_cut_off_is_in_the_radius() -> None:
    rng = np.random.default_rng(4)
    for exponent in (900, 700, 10):
        values = [int(v) << 650 | int(v) * 3 + 1 for v in rng.integers(-(2**40), 2**40, 30)]
        before = Balls(mid=object_array(values, (30, 1)), exponent=exponent, radius=None)
        after = before.shortened()
        assert after.radius is not None
        assert max(v.bit_length() for v in after.mid[:, 0]) <= LONGEST
        for old, new, radius in zip(values, after.mid[:, 0], after.radius[:, 0], strict=True):
            error = abs(Fraction(old) / 2**exponent - Fraction(new) / Fraction(2) ** after.exponent)
            assert error <= Fraction(float(radius)) <= Fraction(2) ** (60 - exponent)
    short = Balls.from_floats(np.array([[0.5], [3.0]]))
    assert short.shortened() is short


SMOOTH: list[tuple[Any, Callable[[Any], Any]]] = [
    (activation("Tanh"), mpmath.tanh),
    (activation("Sigmoid"), lambda v: 1 / (1 + mpmath.exp(-v))),
    (activation("Softplus"), lambda v: mpmath.log(1 + mpmath.exp(v))),
    (activation("Erf"), mpmath.erf),
    (activation("Gelu"), lambda v: v * (1 + mpmath.erf(v / mpmath.sqrt(2))) / 2),
    (activation("Elu", alpha=1.5), lambda v: v if v > 0 else mpmath.mpf(1.5) * (mpmath.exp(v) - 1)),
    (activation("Swish"), lambda v: v / (1 + mpmath.exp(-v))),
    (activation("HardSwish"), lambda v: v * min(max(v / 6 + mpmath.mpf(1) / 2, 0), 1)),
]


@pytest.mark.parametrize(("act", "function"), SMOOTH, ids=[a.name for a, _ in SMOOTH])
def test_smooth_networks_are_below_the_truth_and_close(act: Any, function: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(11)
    weights = [rng.standard_normal(s) for s in ((5, 3), (4, 5), (2, 4))]
    biases = [rng.standard_normal(len(w)) for w in weights]
    network = from_weights(weights, biases, activation=act)
    with mpmath.workprec(600):
        for h in (1.0, 1e-7):
            x = rng.standard_normal(3)
            y = x + h * rng.standard_normal(3)
            values = []
            for point in (x, y):
                v = [mpmath.mpf(float(t)) for t in point]
                for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
                    v = [
                        mpmath.fdot(map(mpmath.mpf, map(float, row)), v) + float(c) for row, c in zip(w, b, strict=True)
                    ]
                    v = [function(t) for t in v] if k < 2 else v
                values.append(v)
            top = mpmath.norm([s - t for s, t in zip(*values, strict=True)], 2)
            truth = top / mpmath.norm([mpmath.mpf(float(s)) - float(t) for s, t in zip(x, y, strict=True)], 2)
            ratio = witness_ratio(network, x, y, "2", "2")
            assert ratio <= truth <= ratio * (1 + 1e-12)


def test_a_kink_is_not_mistaken_for_two_slopes() -> None:
    """relu(x) - relu(-x) = x: the Jacobian of a pattern would say 2 or 0, a pair says 1."""
    network = from_weights([[[1.0], [-1.0]], [[1.0, -1.0]]])
    rng = np.random.default_rng(0)
    pairs = [(-1.0, 1.0), (0.0, 1.0), (0.0, -1e-300), (3.0, 5.0)]
    pairs += [(float(a), float(b)) for a, b in rng.standard_normal((20, 2)) * 10.0 ** rng.integers(-9, 9, (20, 1))]
    for a, b in pairs:
        for p, q in PAIRS:
            assert witness_ratio(network, np.array([a]), np.array([b]), p, q) == 1.0


def test_the_pattern_with_all_neurons_active_may_be_out_of_reach() -> None:
    """||W2 W1|| = 2 is no lower bound of relu(x) + relu(1 - x - 2), whose slopes are -1, 0 and 1."""
    network = from_weights([[[1.0], [-1.0]], [[1.0, -1.0]]], [[0.0, -1.0], [0.0]])
    grid = np.linspace(-5, 5, 11)
    ratios = [witness_ratio(network, np.array([a]), np.array([b]), "2", "2") for a in grid for b in grid if a != b]
    assert max(ratios) == 1.0


def test_root_down_is_the_floor() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        top = int(rng.integers(1, 2**62)) ** int(rng.integers(1, 6)) << int(rng.integers(0, 300))
        bottom = int(rng.integers(1, 2**62)) ** int(rng.integers(1, 6)) << int(rng.integers(0, 300))
        root = root_down(top, bottom)
        assert Fraction(root) ** 2 <= Fraction(top, bottom) < Fraction(math.nextafter(root, math.inf)) ** 2
    assert root_down(0, 5) == 0.0
    assert root_down(49, 16) == 1.75
    assert root_down(4 << 400, 1) == 2.0**201
    assert root_down(1 << 3000, 1) == sys.float_info.max
    assert root_down(1, 1 << 3000) == 0.0


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-38, 1e38, 1e150, 1e300])
def test_extreme_weights_never_round_up(scale: float) -> None:
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal((3, 2)) * scale, rng.standard_normal((2, 3)) * scale]
    network = from_weights(weights)
    x, y = rng.standard_normal(2), rng.standard_normal(2)
    values = [times(weights[1], [max(v, Fraction(0)) for v in times(weights[0], rational(t))]) for t in (x, y)]
    truth = squared_norm(difference(*values), "2") / squared_norm(difference(rational(x), rational(y)), "2")
    ratio = witness_ratio(network, x, y, "2", "2")
    assert Fraction(ratio) ** 2 <= truth
    if 1e-150 < scale < 1e150:
        assert truth <= Fraction(ratio * (1 + 1e-15)) ** 2


def test_pieces_are_read_off_exactly() -> None:
    third = Fraction(1, 3)
    found = pieces(lambda v: max(Fraction(0), v - third), [float(third)])
    assert found.breaks == (third,)
    assert found.slopes == (Fraction(0), Fraction(1))
    with pytest.raises(NotLipschitz):
        pieces(lambda v: v if v > 1 else Fraction(0), [1.0])
    with pytest.raises(NotLipschitz):
        pieces(lambda v: v + (v > 1), [1.0])
    with pytest.raises(NotLipschitz):
        pieces(lambda v: abs(v) + (v == 0), [0.0])


def test_json_round_trip() -> None:
    witness = Witness(
        x=np.array([0.1, 5e-324, -0.0]),
        y=np.array([1.7e308, 1.0, 2.0]),
        p="inf",
        q="2",
        outputs=parse_outputs("0,2"),
        ratio=0.3,
    )
    text = json.loads(json.dumps(witness.as_json()))
    again = Witness.from_json(text)
    assert again.as_json() == witness.as_json()
    assert np.array_equal(again.x, witness.x)
    assert again.ratio == 0.3
    spoilt: list[Any] = [None, [], {}, {**text, "more": 1}, {k: v for k, v in text.items() if k != "ratio"}]
    changes: list[tuple[str, Any]] = [
        ("x", []),
        ("x", "0x1p0"),
        ("x", ["nan"]),
        ("x", ["0x1p0"]),
        ("y", [1.0, 2.0, 3.0]),
        ("y", ["0x1p99999", "0x1p0", "0x1p0"]),
        ("ratio", "inf"),
        ("ratio", None),
        ("input_norm", "3"),
        ("output_norm", []),
        ("outputs", "some"),
    ]
    for bad in [*spoilt, *({**text, key: value} for key, value in changes)]:
        with pytest.raises(Refuted):
            Witness.from_json(bad)


def test_requests_that_do_not_fit() -> None:
    network = from_weights([np.eye(2), np.ones((2, 2))])
    x, y = np.zeros(2), np.ones(2)
    assert witness_ratio(network, x, x, "2", "2") == 0.0
    for outputs in ("2", "margin:5"):
        with pytest.raises(UsageError):
            witness_ratio(network, x, y, "2", "2", outputs)
    with pytest.raises(UsageError):
        witness_ratio(from_weights([np.ones((1, 2))]), x, y, "2", "2", "margin:0")
    with pytest.raises(UsageError):
        witness_ratio(network, np.zeros(3), np.ones(3), "2", "2")
    with pytest.raises(UsageError):
        witness_ratio(network, x, np.array([1.0, math.inf]), "2", "2")
    with pytest.raises(UsageError):
        evaluate_pair(network, x, y, "2", "2", rows=[{3: 1.0}])
