"""The scalar functions that the exact checker knows by itself, written down a second time in ball arithmetic.

A function is a row of curves between breaks. Of each curve two lists are complete: where the value, and where the slope
changes direction; between such places both are monotone, so that their ranges on an interval are found from its ends
and from these places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from flint import arb, fmpq

from lipmodel.certify.tape import Kind, Number, Unreadable

Place = tuple[Fraction, Fraction]
"""A point between two others."""
Ball = Callable[[arb], arb]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """A smooth function and its derivative on a stretch between breaks.

    extrema, turns: where the value, and where the slope changes direction, all of them. waves: in place of both, the
    offsets (a, b) of those of a wave of height and slope 1, at (2k + a) pi/2 and (2k + b) pi/2. bounds: of the value,
    approached far out.
    """

    value: Ball
    slope: Ball
    extrema: tuple[Place, ...] = ()
    turns: tuple[Place, ...] = ()
    waves: tuple[int, int] | None = None
    bounds: tuple[Number, Number] = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Function:
    """Curves from left to right; between them breaks, at some of which the function jumps.

    lines: (slope, intercept) of every curve, where all of them are straight.
    """

    curves: tuple[Curve, ...]
    breaks: tuple[Fraction, ...] = ()
    jumps: frozenset[Fraction] = frozenset()
    lines: tuple[tuple[Fraction, Fraction], ...] | None = None


ZERO: Place = (Fraction(0), Fraction(0))
HALF = arb(1) / 2


def _near(*digits: str) -> tuple[Place, ...]:
    """Points with these first 40 decimal places."""
    unit = Fraction(1, 10**40)
    return tuple((Fraction(d) - unit, Fraction(d) + unit) for d in digits)


def exact(value: Fraction | float) -> arb:
    """The ball of a number, as narrow as the working precision allows."""
    return arb(fmpq(*value.as_integer_ratio()))


def _sigmoid(x: arb) -> arb:
    return 1 / (1 + (-x).exp())


def _softplus(x: arb) -> arb:
    return x.exp().log1p()


def _sech_squared(x: arb) -> arb:
    return 1 / x.cosh() ** 2


def _normal(x: arb) -> arb:
    """The distribution function of the normal distribution."""
    return (-x * HALF.sqrt()).erfc() / 2


def _density(x: arb) -> arb:
    return (-x * x / 2).exp() / (2 * arb.pi()).sqrt()


def _rise(x: arb) -> arb:
    """Twice the argument of the hyperbolic tangent in the approximation of Gelu."""
    return 2 * (2 / arb.pi()).sqrt() * (x + arb(fmpq(44715, 10**6)) * x**3)


def _rise_slope(x: arb) -> arb:
    return 2 * (2 / arb.pi()).sqrt() * (1 + arb(fmpq(3 * 44715, 10**6)) * x**2)


def _mish_slope(x: arb) -> arb:
    plus = _softplus(x)
    return plus.tanh() + x * _sech_squared(plus) * _sigmoid(x)


SMOOTH: Mapping[str, Curve] = {
    "Tanh": Curve(value=lambda x: x.tanh(), slope=_sech_squared, turns=(ZERO,), bounds=(-1, 1)),
    "Sigmoid": Curve(value=_sigmoid, slope=lambda x: _sigmoid(x) * _sigmoid(-x), turns=(ZERO,), bounds=(0, 1)),
    "Softplus": Curve(value=_softplus, slope=_sigmoid),
    "LogSigmoid": Curve(value=lambda x: -_softplus(-x), slope=lambda x: _sigmoid(-x)),
    "Atan": Curve(value=lambda x: x.atan(), slope=lambda x: 1 / (1 + x * x), turns=(ZERO,)),
    "Asinh": Curve(value=lambda x: x.asinh(), slope=lambda x: 1 / (1 + x * x).sqrt(), turns=(ZERO,)),
    "Tanhshrink": Curve(value=lambda x: x - x.tanh(), slope=lambda x: x.tanh() ** 2, turns=(ZERO,)),
    "Erf": Curve(
        value=lambda x: x.erf(),
        slope=lambda x: 2 * (-x * x).exp() / arb.pi().sqrt(),
        turns=(ZERO,),
        bounds=(-1, 1),
    ),
    "Exp": Curve(value=lambda x: x.exp(), slope=lambda x: x.exp()),
    "Sin": Curve(value=lambda x: x.sin(), slope=lambda x: x.cos(), waves=(1, 0)),
    "Cos": Curve(value=lambda x: x.cos(), slope=lambda x: -x.sin(), waves=(0, 1)),
    "Gelu": Curve(
        value=lambda x: x * _normal(x),
        slope=lambda x: _normal(x) + x * _density(x),
        extrema=_near("-0.7517915246935644574579049467795240396645"),
        turns=_near("-1.4142135623730950488016887242096980785696", "1.4142135623730950488016887242096980785696"),
    ),
    "GeluTanh": Curve(
        value=lambda x: x * _sigmoid(_rise(x)),
        slope=lambda x: _sigmoid(_rise(x)) * (1 + x * _sigmoid(-_rise(x)) * _rise_slope(x)),
        extrema=_near("-0.7524614220710162584879544432889160906053"),
        turns=_near("-1.4185040087908283555480335455996426979241", "1.4185040087908283555480335455996426979241"),
    ),
    "Mish": Curve(
        value=lambda x: x * _softplus(x).tanh(),
        slope=_mish_slope,
        extrema=_near("-1.1924312145154952121375883404207394056007"),
        turns=_near("-2.2563763963607931200057485439501639062640", "1.4905711794854284592944189081979098211278"),
    ),
}
"""Smooth on the whole line, without parameters."""


def _line(slope: Fraction, intercept: Fraction) -> Curve:
    return Curve(value=lambda x: exact(slope) * x + exact(intercept), slope=lambda x: exact(slope))


def _lines(breaks: tuple[Fraction, ...], *lines: tuple[Fraction | int, Fraction | int]) -> Function:
    """Straight between breaks; it jumps where two lines do not meet."""
    rational = tuple((Fraction(s), Fraction(o)) for s, o in lines)
    met = zip(breaks, rational, rational[1:], strict=False)
    jumps = frozenset(b for b, (s, o), (t, p) in met if s * b + o != t * b + p)
    curves = tuple(_line(*line) for line in rational)
    return Function(curves=curves, breaks=breaks, jumps=jumps, lines=None if jumps else rational)


def _line_above(left: Curve, slope: Fraction) -> Function:
    return Function(curves=(left, _line(slope, Fraction(0))), breaks=(Fraction(0),))


def _relu_like(alpha: Fraction) -> Function:
    return _lines((Fraction(0),), (alpha, 0), (1, 0))


def _clip(min: Fraction | float, max: Fraction | float) -> Function:
    if not min < max:
        return _lines((), (0, Fraction(max)))
    ends = [(Fraction(v), end) for v, end in ((min, 0), (max, 1)) if math.isfinite(v)]
    lines: list[tuple[Fraction | int, Fraction | int]] = [(1, 0)]
    for v, end in ends:
        lines.insert(end * len(lines), (0, v))
    return _lines(tuple(v for v, _ in ends), *lines)


def _hard_sigmoid(alpha: Fraction, beta: Fraction) -> Function:
    if alpha == 0:
        return _lines((), (0, min(max(beta, Fraction(0)), Fraction(1))))
    zero, one = -beta / alpha, (1 - beta) / alpha
    if alpha > 0:
        return _lines((zero, one), (0, 0), (alpha, beta), (0, 1))
    return _lines((one, zero), (0, 1), (alpha, beta), (0, 0))


def _shrink(bias: Fraction, lambd: Fraction) -> Function:
    """x + bias below -lambd, then x - bias above lambd, else 0; the first that holds."""
    if lambd > 0:
        return _lines((-lambd, lambd), (1, bias), (0, 0), (1, -bias))
    return _lines((-lambd,), (1, bias), (1, -bias))


def _elu(alpha: Fraction, gamma: Fraction = Fraction(1)) -> Function:
    scale = gamma * alpha
    left = Curve(
        value=lambda x: exact(scale) * x.expm1(),
        slope=lambda x: exact(scale) * x.exp(),
        bounds=(min(-scale, Fraction(0)), max(-scale, Fraction(0))),
    )
    return _line_above(left, gamma)


def _celu(alpha: Fraction) -> Function:
    if alpha <= 0:
        raise Unreadable("Celu with alpha <= 0")
    left = Curve(
        value=lambda x: exact(alpha) * (x / exact(alpha)).expm1(),
        slope=lambda x: (x / exact(alpha)).exp(),
        bounds=(-alpha, Fraction(0)),
    )
    return _line_above(left, Fraction(1))


def _softsign() -> Function:
    left = Curve(value=lambda x: x / (1 - x), slope=lambda x: 1 / (1 - x) ** 2)
    right = Curve(value=lambda x: x / (1 + x), slope=lambda x: 1 / (1 + x) ** 2)
    return Function(curves=(left, right), breaks=(Fraction(0),))


def _hard_swish() -> Function:
    middle = Curve(value=lambda x: x * (x + 3) / 6, slope=lambda x: (2 * x + 3) / 6, extrema=_at(Fraction(-3, 2)))
    outer = _line(Fraction(0), Fraction(0)), _line(Fraction(1), Fraction(0))
    return Function(curves=(outer[0], middle, outer[1]), breaks=(Fraction(-3), Fraction(3)))


def _at(*points: Fraction) -> tuple[Place, ...]:
    return tuple((p, p) for p in points)


def _swish(beta: Fraction) -> Function:
    if beta == 0:
        return _lines((), (Fraction(1, 2), 0))

    def scaled(*places: Place) -> tuple[Place, ...]:
        pairs = (sorted((a / beta, b / beta)) for a, b in places)
        return tuple(sorted((a, b) for a, b in pairs))

    turn = "2.3993572805154676678327396972822838885229"
    curve = Curve(
        value=lambda x: x * _sigmoid(exact(beta) * x),
        slope=lambda x: _sigmoid(exact(beta) * x) * (1 + exact(beta) * x * _sigmoid(-exact(beta) * x)),
        extrema=scaled(*_near("-1.2784645427610737951093587390229801554394")),
        turns=scaled(*_near(f"-{turn}", turn)),
    )
    return Function(curves=(curve,))


FAMILIES: Mapping[str, Callable[..., Function]] = {
    "Relu": lambda: _relu_like(Fraction(0)),
    "LeakyRelu": lambda alpha: _relu_like(alpha),
    "ThresholdedRelu": lambda alpha: _lines((alpha,), (0, 0), (1, 0)),
    "Clip": _clip,
    "Abs": lambda: _lines((Fraction(0),), (-1, 0), (1, 0)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Shrink": _shrink,
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _elu,
    "Softsign": _softsign,
    "Swish": _swish,
}
"""By family, what its parameters make of it."""


@lru_cache(maxsize=4096)
def function(kind: Kind) -> Function:
    """The function of this family with these parameters. Raises Unreadable where there is none."""
    if kind.family in SMOOTH:
        return Function(curves=(SMOOTH[kind.family],))
    if kind.family not in FAMILIES:
        raise Unreadable(f"the function {kind.family}")
    parameters = {k: Fraction(v) if math.isfinite(v) else v for k, v in kind.parameters}
    return FAMILIES[kind.family](**parameters)
