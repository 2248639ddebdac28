"""Slope intervals of activations: known values, random secants, refusals, and derivation from expressions."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
import subprocess
import sys
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy
from flint import arb, ctx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lipmodel.activations import Activation, activation, register
from lipmodel.activations.balls import float_down, float_up
from lipmodel.activations.derive import derive
from lipmodel.activations.families import FAMILIES
from lipmodel.activations.formula import Affine, Expression, from_sympy
from lipmodel.activations.frozen import GLOBAL_SLOPES
from lipmodel.activations.library import names
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
LIPSCHITZ: list[tuple[str, dict[str, Any]]] = [
    ("Relu", {}),
    ("LeakyRelu", {}),
    ("LeakyRelu", {"alpha": -2.0}),
    ("PRelu", {"slope": 1.7}),
    ("ThresholdedRelu", {"alpha": 0.0}),
    ("Clip", {"min": -1.0, "max": 2.5}),
    ("Clip", {"max": 0.3}),
    ("Clip", {"min": 2.0, "max": -1.0}),
    ("Abs", {}),
    ("HardSigmoid", {}),
    ("HardSigmoid", {"alpha": -0.3, "beta": 0.1}),
    ("HardSigmoid", {"alpha": 0.0, "beta": 2.0}),
    ("HardSwish", {}),
    ("Softshrink", {"lambd": 0.7}),
    ("Elu", {}),
    ("Elu", {"alpha": 2.0}),
    ("Elu", {"alpha": -0.5}),
    ("Celu", {}),
    ("Celu", {"alpha": 0.03}),
    ("Selu", {}),
    ("Selu", {"alpha": 0.5, "gamma": -2.0}),
    ("Sigmoid", {}),
    ("Tanh", {}),
    ("Softplus", {}),
    ("LogSigmoid", {}),
    ("Softsign", {}),
    ("Atan", {}),
    ("Asinh", {}),
    ("Tanhshrink", {}),
    ("Erf", {}),
    ("Gelu", {}),
    ("Gelu", {"approximate": "tanh"}),
    ("Swish", {}),
    ("QuickGelu", {}),
    ("Swish", {"beta": -0.7}),
    ("Swish", {"beta": 1000.0}),
    ("Mish", {}),
    ("Sin", {}),
    ("Cos", {}),
]
LOCAL: list[tuple[str, dict[str, Any]]] = [
    ("Exp", {}),
    ("Log", {}),
    ("Sqrt", {}),
    ("Reciprocal", {}),
    *(("Pow", {"exponent": e}) for e in (0.0, 1.0, 2.0, 3.0, -1.0, -2.0, 0.5, 2.5, -0.5)),
    ("ThresholdedRelu", {"alpha": 1.0}),
    ("HardShrink", {}),
    ("Sign", {}),
    ("Floor", {}),
    ("Round", {}),
]
POINTS = st.one_of(
    st.floats(-8, 8),
    st.floats(-1e6, 1e6),
    st.sampled_from([0.0, 1.0, -1.0, 3.0, -3.0, 0.5, -0.5, 6.0, math.pi, 1e-300, -1e-12]),
)


def label(case: Any) -> str:
    return case if isinstance(case, str) else activation(case[0], **case[1]).label


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


# --------------------------------------------------------------------------------------------- derived by the user

REGISTERED: list[tuple[str, str, tuple[float, float]]] = [
    ("gauss", "x*exp(-x**2)", (-6, 6)),
    ("swish", "x/(1 + exp(-1.5*x))", (-12, 12)),
    ("spike", "x*exp(-(1000*(x - 1/3))**2)", (0.32, 0.345)),
    ("snake", "x + sin(2*x)**2/2", (-7, 7)),
    ("symlog", "sign(x)*log(1 + Abs(x))", (-50, 50)),
    ("piecewise", "Piecewise((exp(x) - 1, x < 0), (sin(x), x < 3), (sin(3), True))", (-10, 10)),
    ("clipped", "Min(Max(x**3, -x), 2 - x/2)", (-4, 4)),
    ("rational", "(x**5 + 1)/(x**4 + x + 3)", (-30, 30)),
    ("wiggle", "tanh(x)**2 + cos(x)", (-20, 20)),
    ("serf", "x*erf(log(1 + exp(x)))", (-20, 20)),
    ("power", "Abs(x)**(3/2)/(1 + Abs(x))", (-40, 40)),
    ("flat", "Piecewise((exp(-1/x), x > 0), (0, True))", (-3, 30)),
    ("stair", "Max(x, tanh(x)) + Abs(x**2 - 2)/(1 + x**2)", (-20, 20)),
]


@pytest.mark.parametrize(("name", "text", "span"), REGISTERED, ids=[r[0] for r in REGISTERED])
def test_registered_against_dense_samples(name: str, text: str, span: tuple[float, float]) -> None:
    """Slopes hold all sampled secants, and some come near them (high precision, an independent evaluator)."""
    f = register(f"user {name}", text)
    assert activation(f"USER_{name}") is f
    x = sympy.Symbol("x", real=True)
    g = sympy.lambdify(x, sympy.sympify(text, locals={"x": x}), "mpmath")
    alpha, beta = f.slopes()
    rng = np.random.default_rng(5)
    grid = np.union1d(np.linspace(*span, 1500), rng.uniform(*span, 300))
    with mpmath.workdps(40):
        values = [g(mpmath.mpf(float(t))) for t in grid]
        secants = np.array([float((v - u) / mpmath.mpf(float(t) - float(s))) for u, v, s, t in zip(
            values, values[1:], grid, grid[1:], strict=False
        )])  # fmt: skip
    assert secants.min() >= alpha - 1e-12 * abs(alpha)
    assert secants.max() <= beta + 1e-12 * abs(beta)
    assert secants.min() - alpha <= 2e-2 * (beta - alpha)
    assert beta - secants.max() <= 2e-2 * (beta - alpha)
    for _ in range(25):
        i, j = sorted(rng.integers(0, grid.size, 2))
        if i < j:
            low, high = f.slopes(float(grid[i]), float(grid[j]))
            assert secants[i:j].min() >= low - 1e-12 * abs(low)
            assert secants[i:j].max() <= high + 1e-12 * abs(high)
            assert alpha <= low
            assert high <= beta
            bottom, top = f.value_range(float(grid[i]), float(grid[j]))
            assert min(map(float, values[i:j])) >= bottom - 1e-12
            assert max(map(float, values[i:j])) <= top + 1e-12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x*exp(-x**2)", (-2 * math.exp(-1.5), 1.0)),
        ("x/(1 + exp(-1.5*x))", (-0.09983932012886692, 1.0998393201288669)),
        ("sqrt(1 + x**2)", (-1.0, 1.0)),
        ("x*atan(x)", (-math.pi / 2, math.pi / 2)),
        ("tanh(1000*x)", (0.0, 1000.0)),
        ("1e-20*tanh(x)", (0.0, 1e-20)),
        ("pi*Max(x, 0)", (0.0, math.pi)),
        ("sin(50*x)", (-50.0, 50.0)),
        ("x + exp(-(1000*(x - 0.25))**2)", (1 - 857.7638849607068, 1 + 857.7638849607068)),
    ],
)
def test_derived_global_slopes(text: str, expected: tuple[float, float]) -> None:
    assert activation(sympy.sympify(text)).slopes() == pytest.approx(expected, rel=1e-14, abs=1e-30)


@pytest.mark.parametrize(
    ("text", "interval", "reason"),
    [
        ("exp(x)", (-1.0, math.inf), "grows without bound as x -> inf"),
        ("x**2", (-math.inf, 0.0), "grows without bound"),
        ("x*log(x)", (0.0, 1.0), "x -> 0"),
        ("sqrt(Abs(x))", (-1.0, 1.0), "grows without bound as x -> 0"),
        ("1/x", (-1.0, 1.0), "unbounded near 0"),
        ("Piecewise((x, x < 1), (x + 1e-9, True))", (-math.inf, math.inf), "jumps by 1e-09 at 1"),
        ("Piecewise((1, Eq(x, 0)), (x, True))", (-1.0, 1.0), "its value at 0"),
        ("Heaviside(x)", (-1.0, 1.0), "jumps by 1 at 0"),
        ("sqrt(x**2 - 1)", (-2.0, 2.0), "not defined between -1 and 1"),
        ("Abs(x)/x", (-1.0, 1.0), "jumps by 2 at 0"),
    ],
)
def test_derived_refusals(text: str, interval: tuple[float, float], reason: str) -> None:
    f = activation(sympy.sympify(text))
    with pytest.raises(NotLipschitz) as caught:
        f.slopes(*interval)
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["floor(x)", "tan(x)", "Abs(sin(x**2))", "Mod(x, 2)"])
def test_registration_refuses_what_it_cannot_prove(text: str) -> None:
    with pytest.raises(NotLipschitz, match="is refused"):
        register("user refused", text)
    with pytest.raises(UsageError, match="unknown activation"):
        activation("user refused")


def test_registered_parameters_and_piecewise_linear() -> None:
    f = register("user leaky", "Max(alpha*x, x) + Min(x - beta, 0)", aliases=("ul",), alpha=0.25, beta=2.0)
    assert f.piecewise_linear
    assert f.params == (("alpha", 0.25), ("beta", 2.0))
    assert f.breakpoints == (0.0, 2.0)
    assert f.slopes() == (1.0, 2.0)
    assert f.exact(Fraction(1, 3)) == Fraction(1, 3) + Fraction(1, 3) - 2
    assert activation("UL", alpha=-3.0).slopes() == (-2.0, 2.0)
    assert activation("user-leaky") is f
    with pytest.raises(UsageError, match="no parameter gamma"):
        activation("ul", gamma=1.0)


# ---------------------------------------------------------------------------------------------- the frozen library

DERIVABLE = [c for c in LIPSCHITZ if c != ("Clip", {"max": 0.3}) and c[1].get("beta") != 1000.0] + [
    ("Exp", {}), ("Log", {}), ("Sqrt", {}), ("Pow", {"exponent": 3.0}), ("ThresholdedRelu", {"alpha": 1.0}),
    ("HardShrink", {}), ("Shrink", {"bias": 1.0, "lambd": -1.0}), ("Celu", {"alpha": -1.0}), ("Sign", {}),
]  # fmt: skip


@pytest.mark.parametrize("case", DERIVABLE, ids=label)
def test_library_is_what_its_expression_derives(case: Any) -> None:
    """Pieces, turning points, formulas and slopes of every family against a derivation from its sympy expression."""
    f = activation(case[0], **case[1])
    shape = derive(f.expression, dict(f.params), name=f.name)
    g = Activation(name="derived", expression=f.expression, pieces=shape.pieces, joints=shape.joints)
    assert dataclasses.replace(f, frozen=None, name="derived", params=()).breakpoints == pytest.approx(g.breakpoints)
    rng = np.random.default_rng(11)
    for k in range(12):
        lo, hi = np.sort(rng.normal(size=2) * 4) if k else (-math.inf, math.inf)
        try:
            ours = f.slopes(lo, hi)
        except NotLipschitz:
            with pytest.raises(NotLipschitz):
                g.slopes(lo, hi)
            continue
        assert g.slopes(lo, hi) == pytest.approx(ours, rel=1e-15, abs=1e-35)
    x = sympy.Symbol("x", real=True)
    locals_ = {"x": x} | {k: sympy.Rational(*v.as_integer_ratio()) for k, v in f.params}
    whole = sympy.sympify(f.expression, locals=locals_).xreplace({})
    for piece in f.pieces:
        samples = [Fraction(int(p), 64) for p in rng.integers(-400, 400, 60)]
        inside = [
            s for s in samples if (not piece.lower or s > piece.lower[1]) and (not piece.upper or s < piece.upper[0])
        ]
        value, slope = (track.formula for track in (piece.value, piece.slope))
        with ctx.workprec(300):
            for s in inside[:8]:
                exact = sympy.Rational(s.numerator, s.denominator)
                at = arb(s.numerator) / s.denominator
                reference = arb(str(sympy.N(whole.subs(x, exact), 60)))
                assert abs(value.ball(at) - reference) < 1e-50 * (1 + abs(reference))
                # The derivative of the value formula, by a Taylor expansion in balls: (f(s + h) - f(s - h)) / 2h.
                h = arb(2) ** -70
                quotient = (value.ball(at + h) - value.ball(at - h)) / (2 * h)
                assert abs(slope.ball(at) - quotient) < 1e-30 * (1 + abs(quotient))
    stored = [t.at for p in f.pieces for t in p.slope.turns]
    derived = [t.at for p in g.pieces for t in p.slope.turns]
    if f.name not in ("Sin", "Cos", "Pow"):
        assert len(stored) == len(derived)
        for a, b in zip(stored, derived, strict=True):
            assert a[0] <= b[1]
            assert b[0] <= a[1]
            assert a[1] - a[0] <= Fraction(3, 10**40) * max(1, abs(1 / Fraction(dict(f.params).get("beta", 1.0))))


@pytest.mark.parametrize("name", sorted(GLOBAL_SLOPES))
def test_frozen_intervals(name: str) -> None:
    """A stored interval is what the local rule gives on the whole line, and a derivation does not leave it."""
    f = activation(name)
    fresh = dataclasses.replace(f, frozen=None).slopes()
    assert f.slopes() == fresh == tuple(float.fromhex(h) for h in GLOBAL_SLOPES[name])
    if name != "Clip":
        shape = derive(f.expression, dict(f.params), name=name)
        derived = Activation(name=name, expression=f.expression, pieces=shape.pieces).slopes()
        assert derived == pytest.approx(fresh, rel=3e-16, abs=0)


def test_frozen_is_complete() -> None:
    for name in FAMILIES:
        try:
            dataclasses.replace(activation(name), frozen=None).slopes()
        except NotLipschitz:
            assert name not in GLOBAL_SLOPES
        else:
            assert name in GLOBAL_SLOPES
    assert set(names()) >= set(FAMILIES)


def test_normal_use_needs_no_sympy() -> None:
    code = (
        "import sys\n"
        "from lipmodel.activations import activation\n"
        "for n in ('relu', 'gelu', 'mish', 'selu', 'clip', 'sin'):\n"
        "    f = activation(n); f.slopes(); f.slopes(-1.0, 2.0); f(0.5); f.value_range(-1.0, 1.0)\n"
        "assert 'sympy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---------------------------------------------------------------------------------------------------- small parts


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([c for c in LIPSCHITZ if activation(c[0], **c[1]).piecewise_linear]), st.fractions(-9, 9))
def test_exact_values(case: Any, x: Fraction) -> None:
    f = activation(case[0], **case[1])
    value = f.exact(x)
    assert float(f(float(x))) == pytest.approx(float(value), abs=1e-12)
    with ctx.workprec(200):
        assert f.enclose(arb(x.numerator) / x.denominator).overlaps(arb(value.numerator) / value.denominator)


def test_formulas_round_trip_and_refuse_code() -> None:
    x = sympy.Symbol("z", real=True)
    e = sympy.diff(x * sympy.tanh(sympy.log(1 + sympy.exp(x))) ** 3, x, 2)
    formula = from_sympy(e, x)
    assert sympy.N(formula.sympy(x).subs(x, sympy.Rational(1, 3)), 30) == sympy.N(e.subs(x, sympy.Rational(1, 3)), 30)
    for text in ("__import__('os')", "x if x else 1", "x.real", "exp(x, x)", "[x]", "x = 1", ""):
        with pytest.raises(UsageError):
            Expression(text=text).ball(arb(1))
    assert Affine(slope=Fraction(1, 3)).ball(arb(3)).contains(1)


@settings(max_examples=200, deadline=None)
@given(st.fractions(), st.integers(-1200, 1200))
def test_outward_rounding(value: Fraction, exponent: int) -> None:
    value = value * Fraction(2) ** exponent
    low, high = float_down(value), float_up(value)
    assert (low == -math.inf or Fraction(low) <= value) and (high == math.inf or value <= Fraction(high))  # noqa: PT018
    assert high in (low, math.nextafter(low, math.inf))
