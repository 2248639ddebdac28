"""Slope intervals of activations: known values, random secants, refusals, and derivation from expressions."""

from __future__ import annotations

import itertools
import json
import math
import pathlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sympy
from activation_cases import LIPSCHITZ, LOCAL, label
from flint import arb, ctx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lipmodel.activations import Activation, activation, register
from lipmodel.activations.balls import float_down, float_up
from lipmodel.errors import NotLipschitz, UsageError

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
ORACLE = SHARED / "oracles" / "activations.json"
NAMED: dict[str, tuple[str, dict[str, float]]] = {
    "leaky_relu_0.01": ("LeakyRelu", {}),
    "leaky_relu_-2": ("LeakyRelu", {"alpha": -2}),
    "hardtanh_-1_1": ("HardTanh", {}),
    "hard_sigmoid_0.2_0.5": ("HardSigmoid", {}),
    "elu_1": ("Elu", {}),
    "elu_2": ("Elu", {"alpha": 2}),
    "celu_2": ("Celu", {"alpha": 2}),
    "selu_onnx": ("Selu", {}),
    "softshrink_0.5": ("Softshrink", {}),
}
POINTS = st.one_of(
    st.floats(-8, 8),
    st.floats(-1e6, 1e6),
    st.sampled_from([0.0, 1.0, -1.0, 3.0, -3.0, 0.5, -0.5, 6.0, math.pi, 1e-300, -1e-12]),
)


def oracle() -> dict[str, Any]:
    functions: dict[str, Any] = json.loads(ORACLE.read_text())["functions"] if ORACLE.exists() else {}
    return functions


def ball_value(f: Activation, x: float | Fraction, precision: int = 400) -> arb:
    with ctx.workprec(precision):
        return f.enclose(arb(x) if isinstance(x, float) else arb(int(x.numerator)) / arb(int(x.denominator)))


def secant(f: Activation, x: float, y: float) -> arb:
    with ctx.workprec(2400):
        return (f.enclose(arb(y)) - f.enclose(arb(x))) / (arb(y) - arb(x))


# ---------------------------------------------------------------------------------------------------- known values


@pytest.mark.skipif(not ORACLE.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("name", sorted(oracle()) or ["none"])
def test_oracle(name: str) -> None:
    """Every global and local example: the interval holds the known one and is no wider than rounding explains."""
    family, params = NAMED.get(name, (name, {}))
    f = activation(family, **params)
    entry = oracle()[name]
    examples = [("-inf", "inf", *entry["global"]), *entry["local_examples_l_u_alpha_beta"]]
    assert len(examples) == 7
    for lo, hi, *expected in examples:
        outer = [float(lo), float(hi)]
        if lo != "-inf":
            outer = [float_down(Fraction(lo)), float_up(Fraction(hi))]
        alpha, beta = f.slopes(*outer)
        known = [Fraction(e) for e in expected]
        slack = [Fraction(10) ** -28 * abs(k) for k in known]
        assert Fraction(alpha) <= known[0] + slack[0]
        assert Fraction(beta) >= known[1] - slack[1]
        assert known[0] - Fraction(alpha) <= Fraction(10) ** -12 * abs(known[0])
        assert Fraction(beta) - known[1] <= Fraction(10) ** -12 * abs(known[1])


@pytest.mark.skipif(not ORACLE.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "mish"])
def test_minima_of_the_nonmonotone(name: str) -> None:
    at, value = json.loads(ORACLE.read_text())["function_minima"][name]
    low, high = activation(name).value_range()
    assert high == math.inf
    assert low == pytest.approx(float(value), rel=1e-15)
    assert Fraction(low) <= Fraction(value) + Fraction(10) ** -20
    assert activation(name).value_range(float(at) - 1, float(at) + 1)[0] == low


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("relu", {}, (0.0, 1.0)),
        ("Tanh", {}, (0.0, 1.0)),
        ("Sigmoid", {}, (0.0, 0.25)),
        ("leaky_relu", {"alpha": 0.01}, (0.01, 1.0)),
        ("LeakyRelu", {"alpha": -2}, (-2.0, 1.0)),
        ("PRelu", {"slope": 3.5}, (1.0, 3.5)),
        ("Relu6", {}, (0.0, 1.0)),
        ("Clip", {}, (1.0, 1.0)),
        ("Clip", {"min": 3.0, "max": 3.0}, (0.0, 0.0)),
        ("HardSwish", {}, (-0.5, 1.5)),
        ("HardSigmoid", {"alpha": 0.25}, (0.0, 0.25)),
        ("Elu", {"alpha": -0.5}, (-0.5, 1.0)),
        ("Elu", {"alpha": 3.0}, (0.0, 3.0)),
        ("Selu", {"alpha": 0.5, "gamma": 2.0}, (0.0, 2.0)),
        ("Swish", {"beta": 0.0}, (0.5, 0.5)),
        ("Shrink", {"bias": 0.0, "lambd": -1.0}, (1.0, 1.0)),
        ("Sin", {}, (-1.0, 1.0)),
    ],
)
def test_exact_where_exact(name: str, params: dict[str, float], expected: tuple[float, float]) -> None:
    slopes = activation(name, **params).slopes()
    assert slopes == expected
    assert [math.copysign(1, s) for s in slopes if s == 0] == [1.0 for s in slopes if s == 0]


def test_local_rule_at_breakpoints_and_points() -> None:
    relu = activation("Relu")
    assert relu.slopes(0.0, 1.0) == (1.0, 1.0)
    assert relu.slopes(-1.0, 0.0) == (0.0, 0.0)
    assert relu.slopes(-5e-324, 1.0) == (0.0, 1.0)
    assert relu.slopes(0.0, 0.0) == (0.0, 1.0)
    tanh = activation("Tanh")
    assert tanh.slopes(0.0, 0.0) == (1.0, 1.0)
    assert tanh.slopes(1e6, 1e300) == (0.0, 5e-324)
    assert tanh.slopes(-math.inf, -1e5)[0] == 0.0
    assert activation("ThresholdedRelu").slopes(-3.0, 0.999) == (0.0, 0.0)
    assert activation("Floor").slopes(0.25, 0.75) == (0.0, 0.0)
    assert activation("Sin").slopes(1e300, 1e301) == (-1.0, 1.0)


# ------------------------------------------------------------------------------------------------------- soundness


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(LIPSCHITZ + LOCAL), POINTS, POINTS, st.lists(st.floats(0, 1), min_size=2, max_size=4))
def test_secants_lie_inside(case: Any, a: float, b: float, fractions: list[float]) -> None:
    f = activation(case[0], **case[1])
    lo, hi = min(a, b), max(a, b)
    try:
        alpha, beta = f.slopes(lo, hi)
    except NotLipschitz:
        assert case in LOCAL
        assume(False)
    assert alpha <= beta
    inside = sorted({lo, hi, *(min(max(lo + t * (hi - lo), lo), hi) for t in fractions)})
    for x, y in itertools.pairwise(inside):
        quotient = secant(f, x, y)
        assert quotient.is_finite()
        assert not quotient > arb(beta)
        assert not quotient < arb(alpha)
    if case in LIPSCHITZ:
        wide = f.slopes()
        assert wide[0] <= alpha
        assert beta <= wide[1]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(LIPSCHITZ), POINTS, st.floats(0, 10))
def test_slopes_are_tight(case: Any, lo: float, width: float) -> None:
    """Both ends of the interval are derivatives that are attained: some short secant comes close."""
    f = activation(case[0], **case[1])
    hi = lo + max(width, 1e-3)
    if f.name == "HardSigmoid":  # its breakpoints are not doubles: no double may lie between them and an end
        assume(all(abs(b - end) > 1e-8 for b in f.breakpoints for end in (lo, hi)))
    alpha, beta = f.slopes(lo, hi)
    spots = [lo, hi, *(b for b in f.breakpoints if lo < b < hi)]
    for piece in f.pieces:
        middles = [float(t.at[0]) for t in piece.slope.turns if lo < t.at[0] and t.at[1] < hi]
        spots += [m for m in middles if math.isfinite(m)]
    if case[0] in ("Sin", "Cos"):
        spots += [k * math.pi / 2 for k in range(math.ceil(2 * lo / math.pi), math.floor(2 * hi / math.pi) + 1)]
    reached = []
    for spot in spots:
        step = max(1e-9, abs(spot) * 1e-12) * min(1.0, 30.0 / abs(dict(f.params).get("beta", 1.0)))
        near = {max(spot - step, lo), min(spot + step, hi)} - {spot}
        reached += [float(secant(f, *sorted((spot, end)))) for end in near]
    assert min(reached) - alpha <= 1e-4 * max(1.0, abs(alpha))
    assert beta - max(reached) <= 1e-4 * max(1.0, abs(beta))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(LIPSCHITZ + LOCAL), POINTS, st.floats(0, 3), st.floats(0, 1))
def test_values_lie_inside(case: Any, lo: float, width: float, t: float) -> None:
    """Balls and value ranges contain point values; floats agree with them."""
    f = activation(case[0], **case[1])
    hi = lo + width
    x = min(lo + t * width, hi)
    value = ball_value(f, x)
    assume(value.is_finite())
    with ctx.workprec(120):
        wide = f.enclose(arb(lo).union(arb(hi)))
    assert not wide.is_finite() or wide.overlaps(value)
    try:
        low, high = f.value_range(lo, hi)
    except NotLipschitz:
        assume(False)
    assert not value < arb(low)
    assert not value > arb(high)
    if f.jumps is None:
        assert float(f(x)) == pytest.approx(float(value), rel=1e-12, abs=1e-14 * (1 + abs(x)))


@pytest.mark.parametrize("case", LIPSCHITZ + LOCAL, ids=label)
def test_arrays_agree_with_numbers(case: Any) -> None:
    f = activation(case[0], **case[1])
    rng = np.random.default_rng(7)
    lo = np.concatenate([rng.normal(size=12) * 3, [0.0, -1.0, 2.0, 0.25]])
    hi = np.concatenate([lo[:12] + np.abs(rng.normal(size=12)), [0.0, 0.0, 2.5, 0.75]])
    if case in LOCAL:
        lo, hi = np.full(9, 0.625), np.linspace(0.625, 0.875, 9)
        if case[0] == "HardShrink":
            lo, hi = -lo / 4, hi / 4
        if case[0] == "Round":
            lo, hi = lo - 0.5, hi - 0.5
    alpha, beta = f.slopes(lo.reshape(-1, 1), hi.reshape(-1, 1))
    assert alpha.shape == beta.shape == (lo.size, 1)
    scalars = [f.slopes(float(a), float(b)) for a, b in zip(lo, hi, strict=True)]
    assert list(zip(alpha.ravel(), beta.ravel(), strict=True)) == scalars


def test_floats_are_sane() -> None:
    x = np.array([[-1e308, -1e4, -30.0, -1.0], [0.0, 1.0, 1e4, 1e308]])
    for case in LIPSCHITZ:
        f = activation(case[0], **case[1])
        with np.errstate(all="ignore"):
            finite_product = np.abs(x) * max(np.abs(f.slopes())) < 1e308
        with np.errstate(all="raise", under="ignore"):
            assert np.all(np.isfinite(f(x)[finite_product])), f.label
            assert np.all(np.isfinite(f.derivative(x))), f.label
        assert f(x).shape == x.shape
        assert np.isnan(f(np.nan))


def test_against_the_onnx_reference() -> None:
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    attributes = {"Gelu": {"approximate": "tanh"}, "Pow": {}, "PRelu": {}, "Clip": {}}
    x = np.random.default_rng(3).normal(size=200) * 3
    local_only = {"Log", "Sqrt", "Pow"}
    done = 0
    for case in LIPSCHITZ + LOCAL:
        f = activation(case[0], **case[1])
        op = "Gelu" if f.name == "GeluTanh" else f.name
        if not onnx.defs.has(op) or op == "Swish":
            continue
        inputs, extra = ["x"], {}
        if op in ("PRelu", "Pow"):
            inputs, extra = ["x", "p"], {"p": np.array([f.params[0][1]])}
        if op == "Clip":
            known = {k: v for k, v in f.params if math.isfinite(v)}
            inputs = ["x", "min" if "min" in known else "", "max" if "max" in known else ""]
            extra = {k: np.array(v) for k, v in known.items()}
        params = attributes.get(op, dict(f.params)) if op != "Gelu" or f.name == "GeluTanh" else {}
        node = onnx.helper.make_node(op, inputs, ["y"], **params)
        values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in ["x", *extra]]
        result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, None)
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "g", values, [result]), opset_imports=[onnx.helper.make_opsetid("", 22)]
        )
        at = np.abs(x) + 0.01 if op in local_only else x
        expected = reference.ReferenceEvaluator(model).run(None, {"x": at, **extra})[0]
        np.testing.assert_allclose(f(at), expected, rtol=1e-6, atol=1e-6, err_msg=f.label)
        done += 1
    assert done > 35


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "params", "interval", "reason"),
    [
        ("Exp", {}, (-math.inf, math.inf), "grows without bound as x -> inf"),
        ("Exp", {}, (0.0, 1000.0), "grows without bound"),
        ("Log", {}, (-math.inf, math.inf), "not defined for x <= 0"),
        ("Log", {}, (0.0, 1.0), "grows without bound as x -> 0"),
        ("Sqrt", {}, (0.0, 1.0), "grows without bound as x -> 0"),
        ("Reciprocal", {}, (-1.0, 1.0), "pole at 0"),
        ("Pow", {"exponent": 2.0}, (-math.inf, 0.0), "grows without bound"),
        ("Pow", {"exponent": 0.5}, (-1.0, 1.0), "not defined for x < 0"),
        ("ThresholdedRelu", {"alpha": 1.0}, (-math.inf, math.inf), "jumps by 1 at 1"),
        ("ThresholdedRelu", {"alpha": -0.5}, (-1.0, 0.0), "jumps by -0.5 at -0.5"),
        ("ThresholdedRelu", {"alpha": 1.0}, (1.0, 2.0), "jumps by 1 at 1"),
        ("Sign", {}, (-1.0, 1.0), "jumps by 2 at 0"),
        ("Floor", {}, (-math.inf, math.inf), "jumps at every integer"),
        ("Ceil", {}, (0.5, 1.5), "jumps at 1"),
        ("Round", {}, (0.0, 0.5), "jumps at 0.5"),
        ("Celu", {"alpha": -1.0}, (-math.inf, math.inf), "because alpha < 0"),
        ("Shrink", {"bias": 0.0, "lambd": 0.5}, (-math.inf, math.inf), "jumps by 0.5 at -0.5"),
        ("Shrink", {"bias": 1.0, "lambd": -1.0}, (-math.inf, math.inf), "jumps by -2 at 1"),
    ],
)
def test_refusals(name: str, params: dict[str, float], interval: tuple[float, float], reason: str) -> None:
    with pytest.raises(NotLipschitz) as caught:
        activation(name, **params).slopes(*interval)
    assert reason in str(caught.value)
    assert caught.value.exit_code == 3
    with pytest.raises(NotLipschitz):
        activation(name, **params).slopes(np.array([interval[0], 0.1]), np.array([interval[1], 0.2]))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: activation("Relux"), "did you mean relu"),
        (lambda: activation("Relu", alpha=1.0), "no parameter alpha"),
        (lambda: activation("Elu", alpha=math.nan), "not finite"),
        (lambda: activation("Elu", alpha="big"), "not a number"),
        (lambda: activation("Celu", alpha=0.0), "divides by alpha"),
        (lambda: activation("Clip", min=math.nan), "Clip"),
        (lambda: activation("Gelu", approximate="erf"), "'none' or 'tanh'"),
        (lambda: activation(activation("Relu"), alpha=1.0), "has its parameters already"),
        (lambda: activation("Relu").slopes(1.0, 0.0), "lo <= hi"),
        (lambda: activation("Tanh").slopes(math.nan, 0.0), "lo <= hi"),
        (lambda: activation("Relu").slopes(np.full(20, np.nan), np.linspace(0, 1, 20)), "lo <= hi"),
        (lambda: activation("Tanh").exact(Fraction(1)), "no exact rational values"),
        (lambda: register("relu", "x"), "name of the library"),
        (lambda: register("two", "x*y"), "exactly one free symbol"),
        (lambda: register("airy", "airyai(x)"), "cannot be enclosed"),
        (lambda: register("text", "x +"), "not an expression"),
        (lambda: register("complex", "I*x"), "no real value"),
        (lambda: register("half", sympy.Abs(sympy.Symbol("u", positive=True))), "declared positive"),
    ],
)
def test_usage_errors(call: Any, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert reason in str(caught.value)


# ---------------------------------------------------------------------------------------------------- small parts


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([c for c in LIPSCHITZ if activation(c[0], **c[1]).piecewise_linear]), st.fractions(-9, 9))
def test_exact_values(case: Any, x: Fraction) -> None:
    f = activation(case[0], **case[1])
    value = f.exact(x)
    assert float(f(float(x))) == pytest.approx(float(value), abs=1e-12)
    with ctx.workprec(200):
        assert f.enclose(arb(x.numerator) / x.denominator).overlaps(arb(value.numerator) / value.denominator)


@settings(max_examples=200, deadline=None)
@given(st.fractions(), st.integers(-1200, 1200))
def test_outward_rounding(value: Fraction, exponent: int) -> None:
    value = value * Fraction(2) ** exponent
    low, high = float_down(value), float_up(value)
    assert (low == -math.inf or Fraction(low) <= value) and (high == math.inf or value <= Fraction(high))  # noqa: PT018
    assert high in (low, math.nextafter(low, math.inf))
