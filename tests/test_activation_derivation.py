"""Activations derived from a sympy expression alone, and the frozen library derived again."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy
from activation_cases import LIPSCHITZ, label
from flint import arb, ctx

from lipmodel.activations import Activation, activation, register
from lipmodel.activations.asymptotics import tail
from lipmodel.activations.balls import outward
from lipmodel.activations.derive import derive
from lipmodel.activations.families import FAMILIES
from lipmodel.activations.formula import Affine, Expression, from_sympy
from lipmodel.activations.frozen import GLOBAL_SLOPES
from lipmodel.activations.library import names
from lipmodel.activations.scales import Undecided, Unsupported
from lipmodel.activations.signs import Unresolved, simplest, zero_cells
from lipmodel.errors import NotLipschitz, UsageError

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


def test_formulas_round_trip_and_refuse_code() -> None:
    x = sympy.Symbol("z", real=True)
    e = sympy.diff(x * sympy.tanh(sympy.log(1 + sympy.exp(x))) ** 3, x, 2)
    formula = from_sympy(e, x)
    assert sympy.N(formula.sympy(x).subs(x, sympy.Rational(1, 3)), 30) == sympy.N(e.subs(x, sympy.Rational(1, 3)), 30)
    for text in ("__import__('os')", "x if x else 1", "x.real", "exp(x, x)", "[x]", "x = 1", ""):
        with pytest.raises(UsageError):
            Expression(text=text).ball(arb(1))
    assert Affine(slope=Fraction(1, 3)).ball(arb(3)).contains(1)


T = sympy.Symbol("t", positive=True)


@pytest.mark.parametrize(
    ("text", "growth", "sign", "limit"),
    [
        ("sqrt(t**2 + 1) - t", -1, 1, 0),
        ("t*(atan(t) - pi/2)", 0, -1, -1),
        ("t*(sqrt(t**2 + t) - t) - t/2", 0, -1, sympy.Rational(-1, 8)),
        ("log(1 + exp(t)) - t", -1, 1, 0),
        ("erf(t) - 1", -1, -1, 0),
        ("t**3*exp(-t) - exp(-t/2)", -1, -1, 0),
        ("exp(t) - t**5", 1, 1, None),
        ("(exp(t) + t)/(exp(t) - t) - 1", -1, 1, 0),
        ("tanh(tanh(t))", 0, 1, sympy.tanh(1)),
        ("sin(t)/t + 2", 0, 1, 2),
        ("cos(t) + 2", 0, 1, None),
        ("t**(1/3) - (t + 1)**(1/3)", -1, -1, 0),
        ("t*sin(1/t)", 0, 1, 1),
        ("1 - tanh(t)**2 - 4*exp(-2*t)", -1, -1, 0),
        ("t - t", -1, 0, 0),
    ],
)
def test_tails(text: str, growth: int, sign: int, limit: Any) -> None:
    """Growth, sign, limit and bounds hold on the half-line from the first threshold at which they are proved."""
    e = sympy.sympify(text, locals={"t": T})
    for exponent in range(13):
        try:
            known = tail(e, T, Fraction(2) ** exponent)
        except Undecided:
            continue
        if known.sign == sign:
            break
    assert (known.growth, known.sign) == (growth, sign)
    assert known.limit == limit
    f = sympy.lambdify(T, e, "mpmath")
    with mpmath.workdps(2000):
        for factor in (1, 1.0625, 1.75, 4.5, 33.0):
            value = mpmath.mpf(f(mpmath.mpf(2) ** exponent * factor))
            assert value * sign > 0 or sign == 0
            if known.bounds is not None:
                low, high = outward(known.bounds)
                assert low <= value <= high


@pytest.mark.parametrize("text", ["t*log(t)", "exp(exp(t))", "besselj(0, t)", "sqrt(sin(t))"])
def test_tails_refuse_what_they_cannot_expand(text: str) -> None:
    with pytest.raises(Unsupported):
        tail(sympy.sympify(text, locals={"t": T}), T, Fraction(4))


def cells_of(text: str, lower: int, upper: int) -> list[tuple[Fraction, Fraction]]:
    x = sympy.Symbol("x", real=True)
    e = sympy.sympify(text, locals={"x": x})
    return zero_cells(from_sympy(e, x), from_sympy(sympy.diff(e, x), x), Fraction(lower), Fraction(upper), None)


def test_zero_cells() -> None:
    assert cells_of("x", -1, 3) == [(0, 0)]
    third, seven = cells_of("(x - 1/3)*(x - 7)", -1, 8)
    assert third[0] <= Fraction(1, 3) <= third[1] <= third[0] + Fraction(1, 2**120)
    assert seven == (7, 7)
    assert cells_of("x**2 + 1", -8, 8) == []
    assert cells_of("exp(x)", -1000, 1000) == []
    ((a, b),) = cells_of("x**2 - 2", 0, 2)
    assert a**2 <= 2 <= b**2
    assert b - a < Fraction(1, 2**120)
    (close, other) = cells_of("(x - 1)*(x - 1 - 1/2**60)", 0, 3)
    assert close == (1, 1)
    assert other[0] <= 1 + Fraction(1, 2**60) <= other[1]
    assert len(cells_of("sin(x)", -20, 20)) == 13
    with pytest.raises(Unresolved):
        cells_of("1/x", -1, 2)


def test_simplest_rationals() -> None:
    assert simplest(Fraction(-1, 7), Fraction(1, 9)) == 0
    assert simplest(Fraction(3, 10), Fraction(34, 100)) == Fraction(1, 3)
    assert simplest(Fraction(-34, 100), Fraction(-3, 10)) == Fraction(-1, 3)
    assert simplest(Fraction(22, 7), Fraction(22, 7)) == Fraction(22, 7)
    assert simplest(Fraction(5, 2), Fraction(9, 2)) == 3
