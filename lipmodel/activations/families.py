"""The frozen families of activations: for each ONNX operator its pieces, as a function of its exact parameters.

Every family carries the sympy expression that it was derived from. Points where a derivative turns are decimal
strings of 40 digits, enclosed by one unit of their last digit. The test suite derives every family again from its
expression.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from lipmodel.activations.formula import Affine, Expression
from lipmodel.activations.shapes import (
    INF,
    ONE,
    ZERO,
    Number,
    Shape,
    affine_piece,
    constant,
    decimal,
    exact,
    piecewise_affine,
    smooth,
    whole,
)
from lipmodel.activations.spec import Joint
from lipmodel.activations.tracks import Lattice, Limit, Piece, Track, Turn
from lipmodel.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of activations; `defaults` are those of ONNX, whose attributes are float32."""

    expression: str
    defaults: tuple[tuple[str, float], ...] = ()
    build: Callable[..., Shape]


def _relu_like(slope: Fraction) -> Shape:
    return piecewise_affine([ZERO], [(slope, 0), (1, 0)])


def _thresholded_relu(alpha: Fraction) -> Shape:
    return piecewise_affine([alpha], [(0, 0), (1, 0)])


def _clip(min: Number, max: Number) -> Shape:
    if math.isnan(min) or math.isnan(max) or min == INF or max == -INF:
        raise UsageError(f"Clip to [{min}, {max}] has no finite value")
    if min >= max:
        return piecewise_affine([], [(0, max)])
    breaks = [Fraction(b) for b in (min, max) if math.isfinite(b)]
    maps: list[tuple[Number, Number]] = [(1, 0)]
    if math.isfinite(min):
        maps.insert(0, (0, min))
    if math.isfinite(max):
        maps.append((0, max))
    return piecewise_affine(breaks, maps)


def _hard_sigmoid(alpha: Fraction, beta: Fraction) -> Shape:
    if alpha == 0:
        return piecewise_affine([], [(0, min(max(beta, ZERO), ONE))])
    zero, one = -beta / alpha, (1 - beta) / alpha
    if alpha > 0:
        return piecewise_affine([zero, one], [(0, 0), (alpha, beta), (0, 1)])
    return piecewise_affine([one, zero], [(0, 1), (alpha, beta), (0, 0)])


def _hard_swish() -> Shape:
    middle = Piece(
        lower=exact(-3),
        upper=exact(3),
        value=Track(formula=Expression(text="x*(x/6 + 1/2)"), turns=(Turn(at=exact(Fraction(-3, 2))),)),
        slope=Track(formula=Affine(slope=Fraction(1, 3), intercept=Fraction(1, 2))),
    )
    return Shape(pieces=(affine_piece(0, 0, None, exact(-3)), middle, affine_piece(1, 0, exact(3), None)))


def _shrink(bias: Fraction, lambd: Fraction) -> Shape:
    if lambd > 0:
        return piecewise_affine([-lambd, lambd], [(1, bias), (0, 0), (1, -bias)], at_breaks=ZERO)
    # With lambd <= 0 the first condition x < -lambd wins, then x > lambd; only x = 0 = lambd meets neither.
    return piecewise_affine([-lambd], [(1, bias), (1, -bias)], at_breaks=-lambd - bias if lambd else ZERO)


def _sign() -> Shape:
    return piecewise_affine([ZERO], [(0, -1), (0, 1)], at_breaks=ZERO)


def _elu_like(scale: str, parameters: dict[str, Fraction], slope: Fraction) -> Shape:
    """scale*(exp(x) - 1) on x < 0 and slope*x on x > 0."""
    left = smooth(
        f"{scale}*expm1(x)",
        f"{scale}*exp(x)",
        parameters=parameters,
        slopes=(0, None),
        values=(Expression(text=f"-{scale}", parameters=tuple(parameters.items())), None),
        upper=exact(0),
    )
    return Shape(pieces=(left, affine_piece(slope, 0, exact(0), None)))


def _celu(alpha: Fraction) -> Shape:
    if alpha == 0:
        raise UsageError("Celu divides by alpha, which is 0")
    grows = "its derivative exp(x/alpha) grows without bound as x -> -inf, because alpha < 0"
    left = smooth(
        "alpha*expm1(x/alpha)",
        "exp(x/alpha)",
        parameters={"alpha": alpha},
        slopes=(0 if alpha > 0 else grows, None),
        values=(constant(-alpha) if alpha > 0 else -INF, None),
        upper=exact(0),
    )
    return Shape(pieces=(left, affine_piece(1, 0, exact(0), None)))


def _softsign() -> Shape:
    left = smooth("x/(1 - x)", "1/(1 - x)**2", slopes=(0, None), values=(-1, None), upper=exact(0))
    right = smooth("x/(1 + x)", "1/(1 + x)**2", slopes=(None, 0), values=(None, 1), lower=exact(0))
    return Shape(pieces=(left, right))


def _swish(beta: Fraction) -> Shape:
    if beta == 0:
        return piecewise_affine([], [(Fraction(1, 2), 0)])
    turn = "2.3993572805154676678327396972822838885229"
    up = beta > 0
    return Shape(
        pieces=(
            smooth(
                "x*sigmoid(beta*x)",
                "sigmoid(beta*x)*(1 + beta*x*sigmoid(-beta*x))",
                parameters={"beta": beta},
                slope_turns=sorted(decimal(sign + turn, 1 / beta) for sign in ("", "-")),
                value_turns=[decimal("-1.2784645427610737951093587390229801554395", 1 / beta)],
                slopes=(0, 1) if up else (1, 0),
                values=(0, INF) if up else (-INF, 0),
            ),
        )
    )


_U = "sqrt(2/pi)*(x + 8943/200000*x**3)"
_DU = "sqrt(2/pi)*(1 + 26829/200000*x**2)"
_GELU = {
    "slope_turns": [decimal(s + "1.4142135623730950488016887242096980785697") for s in ("-", "")],
    "value_turns": [decimal("-0.7517915246935644574579049467795240396645")],
    "slopes": (0, 1),
    "values": (0, INF),
}
_GELU_TANH = _GELU | {
    "slope_turns": [decimal(s + "1.4185040087908283555480335455996426979242") for s in ("-", "")],
    "value_turns": [decimal("-0.7524614220710162584879544432889160906054")],
}
_MISH = _GELU | {
    "slope_turns": [
        decimal("-2.2563763963607931200057485439501639062640"),
        decimal("1.4905711794854284592944189081979098211278"),
    ],
    "value_turns": [decimal("-1.1924312145154952121375883404207394056007")],
}
_HALF_PI = Expression(text="pi/2")
_HALF_TURN = Expression(text="pi")


def _wave(
    value: str, slope: str, value_offset: str, slope_offset: str, values: tuple[int, int], slopes: tuple[int, int]
) -> Shape:
    # There is no limit at infinity: the lattice already gives the whole range there, and 0 lies in it.
    tracks = [
        Track(
            formula=Expression(text=text),
            lattice=Lattice(
                offset=Expression(text=offset), spacing=_HALF_TURN, values=(float(extremes[0]), float(extremes[1]))
            ),
            left=constant(0),
            right=constant(0),
        )
        for text, offset, extremes in ((value, value_offset, values), (slope, slope_offset, slopes))
    ]
    return Shape(pieces=(Piece(value=tracks[0], slope=tracks[1]),))


def _exp() -> Shape:
    grows = "its derivative exp(x) grows without bound as x -> inf"
    return Shape(pieces=(smooth("exp(x)", "exp(x)", slopes=(0, grows), values=(0, INF)),))


def _undefined_below_zero(strict: bool) -> Joint:
    return Joint(at=(-INF, ZERO), gap=True, refusal=f"it is not defined for x {'<=' if strict else '<'} 0")


def _pole() -> Joint:
    return Joint(at=exact(0), refusal="it has a pole at 0")


def _log() -> Shape:
    grows = "its derivative 1/x grows without bound as x -> 0"
    piece = smooth("log(x)", "1/x", slopes=(grows, 0), values=(-INF, INF), lower=exact(0))
    return Shape(pieces=(piece,), joints=(_undefined_below_zero(True),))


def _reciprocal() -> Shape:
    return _pow(Fraction(-1))


def _sqrt() -> Shape:
    return _pow(Fraction(1, 2))


def _pow(exponent: Fraction) -> Shape:
    if exponent == 0:
        return piecewise_affine([], [(0, 1)])
    if exponent == 1:
        return piecewise_affine([], [(1, 0)])
    known = {"p": exponent}
    whole = exponent.denominator == 1
    odd = whole and exponent.numerator % 2 == 1
    far = "its derivative grows without bound as abs(x) -> inf"
    near = "its derivative grows without bound as x -> 0"
    if whole and exponent > 0:
        zero = [exact(0)]
        lowest = -INF if odd else INF
        piece = smooth(
            "x**p",
            "p*x**(p - 1)",
            parameters=known,
            slope_turns=zero,
            value_turns=zero,
            slopes=(far, far),
            values=(lowest, INF),
        )
        return Shape(pieces=(piece,))
    at_zero: Limit | int = INF if exponent < 0 else None
    right = smooth(
        "x**p",
        "p*x**(p - 1)",
        parameters=known,
        slopes=(near if exponent < 1 else None, 0 if exponent < 1 else far),
        values=(at_zero, 0 if exponent < 0 else INF),
        lower=exact(0),
    )
    if not whole:
        return Shape(pieces=(right,), joints=(_undefined_below_zero(exponent < 0),))
    left = smooth(
        "x**p",
        "p*x**(p - 1)",
        parameters=known,
        slopes=(0, near),
        values=(0, -INF if odd else INF),
        upper=exact(0),
    )
    return Shape(pieces=(left, right), joints=(_pole(),))


def _steps(value: str, offset: str) -> Callable[[], Shape]:
    def build() -> Shape:
        track = Track(formula=Expression(text=value), left=-INF, right=INF)
        flat = Track(formula=constant(0), left=constant(0), right=constant(0))
        jumps = Lattice(offset=Expression(text=offset), spacing=Expression(text="1"), values=(0.0,))
        return Shape(pieces=(Piece(value=track, slope=flat),), jumps=jumps)

    return build


def _float32(text: str) -> float:
    """The float32 nearest to a decimal, as ONNX stores its attributes."""
    return float(struct.unpack("f", struct.pack("f", float(text)))[0])


FAMILIES: dict[str, Family] = {
    "Relu": Family(expression="Max(x, 0)", build=lambda: _relu_like(ZERO)),
    "LeakyRelu": Family(
        expression="Piecewise((alpha*x, x < 0), (x, True))",
        defaults=(("alpha", _float32("0.01")),),
        build=lambda alpha: _relu_like(alpha),
    ),
    "PRelu": Family(
        expression="Piecewise((slope*x, x < 0), (x, True))",
        defaults=(("slope", 0.25),),
        build=lambda slope: _relu_like(slope),
    ),
    "ThresholdedRelu": Family(
        expression="Piecewise((x, x > alpha), (0, True))", defaults=(("alpha", 1.0),), build=_thresholded_relu
    ),
    "Clip": Family(expression="Min(max, Max(min, x))", defaults=(("min", -INF), ("max", INF)), build=_clip),
    "Abs": Family(expression="Abs(x)", build=lambda: piecewise_affine([ZERO], [(-1, 0), (1, 0)])),
    "HardSigmoid": Family(
        expression="Max(0, Min(1, alpha*x + beta))",
        defaults=(("alpha", _float32("0.2")), ("beta", 0.5)),
        build=_hard_sigmoid,
    ),
    "HardSwish": Family(expression="x*Max(0, Min(1, x/6 + 1/2))", build=_hard_swish),
    "Shrink": Family(
        expression="Piecewise((x + bias, x < -lambd), (x - bias, x > lambd), (0, True))",
        defaults=(("bias", 0.0), ("lambd", 0.5)),
        build=_shrink,
    ),
    "Elu": Family(
        expression="Piecewise((alpha*(exp(x) - 1), x < 0), (x, True))",
        defaults=(("alpha", 1.0),),
        build=lambda alpha: _elu_like("alpha", {"alpha": alpha}, ONE),
    ),
    "Celu": Family(expression="Max(0, x) + Min(0, alpha*(exp(x/alpha) - 1))", defaults=(("alpha", 1.0),), build=_celu),
    "Selu": Family(
        expression="gamma*Piecewise((alpha*(exp(x) - 1), x < 0), (x, True))",
        defaults=(("alpha", _float32("1.67326319217681884765625")), ("gamma", _float32("1.05070102214813232421875"))),
        build=lambda alpha, gamma: _elu_like("gamma*alpha", {"alpha": alpha, "gamma": gamma}, gamma),
    ),
    "Sigmoid": Family(
        expression="1/(1 + exp(-x))",
        build=whole("sigmoid(x)", "sigmoid(x)*sigmoid(-x)", slope_turns=[exact(0)], slopes=(0, 0), values=(0, 1)),
    ),
    "Tanh": Family(
        expression="tanh(x)",
        build=whole("tanh(x)", "sech(x)**2", slope_turns=[exact(0)], slopes=(0, 0), values=(-1, 1)),
    ),
    "Softplus": Family(
        expression="log(1 + exp(x))",
        build=whole("softplus(x)", "sigmoid(x)", slopes=(0, 1), values=(0, INF)),
    ),
    "LogSigmoid": Family(
        expression="-log(1 + exp(-x))",
        build=whole("-softplus(-x)", "sigmoid(-x)", slopes=(1, 0), values=(-INF, 0)),
    ),
    "Softsign": Family(expression="x/(1 + Abs(x))", build=_softsign),
    "Atan": Family(
        expression="atan(x)",
        build=whole(
            "atan(x)",
            "1/(1 + x**2)",
            slope_turns=[exact(0)],
            slopes=(0, 0),
            values=(Expression(text="-pi/2"), _HALF_PI),
        ),
    ),
    "Asinh": Family(
        expression="asinh(x)",
        build=whole("asinh(x)", "1/sqrt(1 + x**2)", slope_turns=[exact(0)], slopes=(0, 0), values=(-INF, INF)),
    ),
    "Tanhshrink": Family(
        expression="x - tanh(x)",
        build=whole("x - tanh(x)", "tanh(x)**2", slope_turns=[exact(0)], slopes=(1, 1), values=(-INF, INF)),
    ),
    "Erf": Family(
        expression="erf(x)",
        build=whole("erf(x)", "2/sqrt(pi)*exp(-x**2)", slope_turns=[exact(0)], slopes=(0, 0), values=(-1, 1)),
    ),
    "Gelu": Family(
        expression="x*(1 + erf(x/sqrt(2)))/2",
        build=whole("x*erfc(-x/sqrt(2))/2", "erfc(-x/sqrt(2))/2 + x*exp(-x**2/2)/sqrt(2*pi)", **_GELU),
    ),
    "GeluTanh": Family(
        expression="x*(1 + tanh(sqrt(2/pi)*(x + 44715*x**3/1000000)))/2",
        build=whole(
            f"x*sigmoid(2*{_U})",
            f"sigmoid(2*{_U})*(1 + x*sigmoid(-2*{_U})*2*{_DU})",
            **_GELU_TANH,
        ),
    ),
    "Swish": Family(expression="x/(1 + exp(-beta*x))", defaults=(("beta", 1.0),), build=_swish),
    "Mish": Family(
        expression="x*tanh(log(1 + exp(x)))",
        build=whole("x*tanh(softplus(x))", "tanh(softplus(x)) + x*sech(softplus(x))**2*sigmoid(x)", **_MISH),
    ),
    "Sin": Family(expression="sin(x)", build=lambda: _wave("sin(x)", "cos(x)", "pi/2", "0", (1, -1), (1, -1))),
    "Cos": Family(expression="cos(x)", build=lambda: _wave("cos(x)", "-sin(x)", "0", "pi/2", (1, -1), (-1, 1))),
    "Exp": Family(expression="exp(x)", build=_exp),
    "Log": Family(expression="log(x)", build=_log),
    "Sqrt": Family(expression="sqrt(x)", build=_sqrt),
    "Reciprocal": Family(expression="1/x", build=_reciprocal),
    "Pow": Family(expression="x**exponent", defaults=(("exponent", 2.0),), build=_pow),
    "Sign": Family(expression="sign(x)", build=_sign),
    "Floor": Family(expression="floor(x)", build=_steps("floor(x)", "0")),
    "Ceil": Family(expression="ceiling(x)", build=_steps("ceil(x)", "0")),
    "Round": Family(expression="floor(x + 1/2)", build=_steps("rint(x)", "1/2")),
}
