"""The scalar functions of the independent reader: slopes on the line and on intervals, values, places of extrema."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, arb_series, ctx

from lipmodel.activations import activation
from lipmodel.certify.curves import FAMILIES, SMOOTH, exact, function
from lipmodel.certify.functions import global_slopes, kind_of, pieces, slopes, values
from lipmodel.certify.tape import Kind, Unreadable
from lipmodel.errors import NotLipschitz

PARAMETERS = {
    "LeakyRelu": [{"alpha": v} for v in (0.01, -0.5, 0.0, 1.0, 3.0)],
    "ThresholdedRelu": [{"alpha": v} for v in (0.0, 1.0, -2.5)],
    "Clip": [
        {"min": -1.0, "max": 0.7},
        {"min": 0.3, "max": math.inf},
        {"min": -math.inf, "max": 0.1},
        {"min": 1.0, "max": 1.0},
        {"min": 2.0, "max": -1.0},
    ],
    "HardSigmoid": [{"alpha": 0.2, "beta": 0.5}, {"alpha": -0.3, "beta": 2.0}, {"alpha": 0.0, "beta": 0.4}],
    "Shrink": [{"bias": b, "lambd": c} for b, c in ((0.5, 0.5), (0.0, 0.5), (0.0, -1.0), (0.25, -1.0), (0.0, 0.0))],
    "Elu": [{"alpha": v} for v in (1.0, 2.5, 0.0, -0.75, 0.1)],
    "Celu": [{"alpha": v} for v in (1.0, 0.3, 4.0)],
    "Selu": [
        {"alpha": 1.6732631921768188, "gamma": 1.0507010221481323},
        {"alpha": -0.5, "gamma": 2.0},
        {"alpha": 1.5, "gamma": -0.25},
        {"alpha": 0.1, "gamma": 0.3},
    ],
    "Swish": [{"beta": v} for v in (1.0, 1.702, -0.4, 0.0)],
}
KINDS = [
    Kind(family, tuple(sorted(parameters.items())))
    for family in sorted({*SMOOTH, *FAMILIES})
    for parameters in PARAMETERS.get(family, [{}])
]


def library(kind: Kind):
    """The same function as the importer knows it."""
    return activation(kind.family, **dict(kind.parameters))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_slopes_on_the_line_lie_inside_what_the_importer_says(kind):
    low, high = global_slopes(kind)
    try:
        alpha, beta = library(kind).slopes()
    except NotLipschitz:
        assert (low, high) == (-math.inf, math.inf) or kind.family == "Exp"
        return
    assert alpha <= low <= high <= beta
    assert low - Fraction(alpha) <= 4 * Fraction(math.ulp(alpha)), "the importer's is not wider than it has to be"
    assert Fraction(beta) - high <= 4 * Fraction(math.ulp(beta))
    assert (low == high) == (alpha == beta)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_ranges_on_intervals_lie_inside_what_the_importer_says(kind):
    rng, phi, jumped = np.random.default_rng(3), library(kind), 0
    points = sorted(
        {*map(float, rng.uniform(-4, 4, 12)), *map(float, rng.uniform(-60, 60, 4)), 0.0, 0.5, 1.0, 3.0, -3.0}
    )
    places = [p for curve in function(kind).curves for p in (*curve.extrema, *curve.turns)]
    points += [float(a) for a, _ in places] + [float(b) for b in function(kind).breaks]
    for a in points:
        for b in points:
            if a > b:
                continue
            lo, hi = Fraction(a), Fraction(b)
            try:
                alpha, beta = phi.slopes(a, b)
            except NotLipschitz:
                jumped += 1
                with pytest.raises(Unreadable):
                    slopes(kind, lo, hi)
                continue
            low, high = slopes(kind, lo, hi)
            assert alpha <= low <= high <= beta
            assert max(low - Fraction(alpha), Fraction(beta) - high) <= 1e-13 * (1 + abs(alpha) + abs(beta))
            least, most = values(kind, lo, hi)
            bottom, top = phi.value_range(a, b)
            tiny = (1 + abs(least) + abs(most)) / 2**200
            assert Fraction(bottom) - tiny <= least <= most <= Fraction(top) + tiny
            assert max(least - Fraction(bottom), Fraction(top) - most) <= 1e-13 * (1 + abs(bottom) + abs(top))
    assert bool(jumped) == bool(function(kind).jumps)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_values_at_points(kind):
    phi = library(kind)
    for x in [0.0, 0.5, -3.0, 3.0, *np.random.default_rng(8).uniform(-6, 6, 30).tolist()]:
        if Fraction(x) not in function(kind).jumps:
            least, most = values(kind, Fraction(x), Fraction(x))
            assert most - least <= abs(least) / 2**250
            assert exact(least).union(exact(most)).overlaps(phi.enclose(arb(x)))


@pytest.mark.parametrize("kind", [k for k in KINDS if pieces(k) is not None], ids=str)
def test_piecewise_linear_functions_are_exact(kind):
    breaks, slopes_, intercepts = pieces(kind)
    phi = library(kind)
    assert len(slopes_) == len(intercepts) == len(breaks) + 1
    for x in [*breaks, *(Fraction(v) for v in np.random.default_rng(1).uniform(-5, 5, 50).tolist())]:
        sides = {
            k for k in range(len(slopes_)) if (k == 0 or breaks[k - 1] <= x) and (k == len(breaks) or x <= breaks[k])
        }
        found = {slopes_[k] * x + intercepts[k] for k in sides}
        assert found == {phi.exact(x)}
        assert values(kind, x, x) == (phi.exact(x),) * 2


def derivatives(f, x: arb, order: int) -> list[arb]:
    """f(x), f'(x), ... by Taylor arithmetic on the definition, without any formula for a derivative."""
    coefficients = f(arb_series([x, 1], order + 1))
    found = [coefficients[k] for k in range(order + 1)]
    return [c * math.factorial(k) for k, c in enumerate(found)]


def gelu(x):
    return x * (1 + (x / arb(2).sqrt()).erf()) / 2


def gelu_tanh(x):
    u = (2 / arb.pi()).sqrt() * (x + arb(44715) / 1000000 * x * x * x)
    return x / (1 + (-2 * u).exp())  # (1 + tanh u) / 2


def swish(x):
    return x / (1 + (-x).exp())


def mish(x):
    e = x.exp()  # tanh(log t) = (t^2 - 1) / (t^2 + 1) with t = 1 + e
    return x - 2 * x / (e * e + 2 * e + 2) if x[0] > 1 else x * e * (e + 2) / (e * e + 2 * e + 2)


DEFINITIONS = {"Gelu": gelu, "GeluTanh": gelu_tanh, "Swish": swish, "Mish": mish}


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_slopes_that_have_no_closed_form_are_proved(name):
    """Between the stored places f and f' are monotone on [-14, 14]: the next derivative changes its sign only there.

    Further out |f'| on the left and |f' - 1| on the right are below (1 + 2 |x|^3) exp(-|x|), as logistic functions and
    normal distributions are; that is less than 0.005, so the extrema of f' are those at the places.
    """
    f = DEFINITIONS[name]
    kind = Kind("Swish", (("beta", 1.0),)) if name == "Swish" else Kind(name)
    (curve,) = function(kind).curves
    reach = Fraction(14)
    with ctx.workprec(400):
        for order, places in ((1, curve.extrema), (2, curve.turns)):
            where = sorted(places)
            assert all(b - a <= Fraction(2, 10**40) for a, b in where)
            signs = [one_sign(f, order, a, b) for a, b in gaps(where, -reach, reach)]
            assert all(a * b == -1 for a, b in itertools.pairwise(signs)), (name, order)
        low, high = global_slopes(kind)
        found = [derivatives(f, turn(f, a, b), 1)[1] for a, b in sorted(curve.turns)]
        assert exact(low) < found[0] < -0.08
        assert 1.08 < found[1] < exact(high)
        assert found[0] - exact(low) < arb("3e-40")
        assert exact(high) - found[1] < arb("3e-40")
        for x in (14, 30, 100):
            tail = (1 + 2 * arb(x) ** 3) * arb(-x).exp()
            assert abs(derivatives(f, arb(-x), 1)[1]) < tail < arb("0.005")
            assert abs(derivatives(f, arb(x), 1)[1] - 1) < tail


def turn(f, a: Fraction, b: Fraction) -> arb:
    """A smaller ball around the point of [a, b] at which the second derivative changes its sign."""
    rises = derivatives(f, exact(a), 2)[2] < 0
    for _ in range(100):
        middle = (a + b) / 2
        a, b = (middle, b) if (derivatives(f, exact(middle), 2)[2] < 0) == rises else (a, middle)
    assert (derivatives(f, exact(a), 2)[2] < 0) == rises
    assert (derivatives(f, exact(b), 2)[2] > 0) == rises
    return exact(a).union(exact(b))


def gaps(places, lo, hi):
    """The stretches of [lo, hi] between places."""
    ends = [lo, *(v for place in places for v in place), hi]
    return list(zip(ends[::2], ends[1::2], strict=True))


def one_sign(f, order: int, lo: Fraction, hi: Fraction) -> int:
    """The sign that the derivative has on all of [lo, hi], by bisection; an error where it has not one."""
    signs, pending = set(), [(lo, hi)]
    while pending:
        a, b = pending.pop()
        whole = exact(a).union(exact(b))
        try:
            d, slope = derivatives(f, whole, order + 1)[order:]
        except ValueError:  # a denominator that may vanish, for all that is known of so wide a ball
            d = slope = arb.nan()
        if d > 0 or d < 0:
            signs.add(1 if d > 0 else -1)
        else:
            ends = [derivatives(f, exact(v), order)[order] for v in (a, b)]
            monotone = slope > 0 or slope < 0
            if monotone and all(e > 0 for e in ends):
                signs.add(1)
            elif monotone and all(e < 0 for e in ends):
                signs.add(-1)
            else:
                assert b - a > Fraction(1, 10**9), (float(a), float(b))
                pending += [(a, (a + b) / 2), ((a + b) / 2, b)]
    assert len(signs) == 1
    return signs.pop()


def test_slopes_with_a_closed_form():
    with ctx.workprec(300):
        tail = arb(-1).exp() / arb.pi().sqrt()
        low, high = map(exact, global_slopes(Kind("Gelu")))
        assert low < arb(1).erfc() / 2 - tail
        assert (1 + arb(1).erf()) / 2 + tail < high
        assert 2 / arb.pi().sqrt() < exact(global_slopes(Kind("Erf"))[1])


def test_where_nothing_is_known():
    for op, attributes in (
        ("Log", {}),
        ("Elu", {}),
        ("Elu", {"alpha": "nan"}),
        ("Elu", {"alpha": "x"}),
        ("Gelu", {"approximate": "other"}),
    ):
        with pytest.raises(Unreadable):
            kind_of(op, attributes)
    with pytest.raises(Unreadable, match="very large"):
        values(Kind("Exp"), Fraction(0), Fraction(10**5))
    assert slopes(Kind("Tanh"), Fraction(10**6), Fraction(10**7)) == (0, Fraction(1, 2**8192))
    with pytest.raises(Unreadable, match="alpha <= 0"):
        slopes(Kind("Celu", (("alpha", -1.0),)), Fraction(0), Fraction(1))
    assert kind_of("Swish", {"beta": (1.702).hex()}) == Kind("Swish", (("beta", 1.702),))
    assert kind_of("Gelu", {"approximate": "tanh"}) == Kind("GeluTanh")
