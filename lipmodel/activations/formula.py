"""Formulas in one real variable that read the same in floats, in balls, in rationals and in sympy.

An `Expression` is text in the common subset of Python and sympy, e.g. ``alpha*expm1(x)``: rational constants, ``pi``,
``E``, the variable ``x``, named parameters, ``+ - * / **`` and the functions of `FUNCTIONS`. Text can be frozen, read
and compared; it is parsed once into a small tree, never executed. `Affine` is the exact special case.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.errors import UsageError

if TYPE_CHECKING:
    from flint import arb

Array = np.ndarray[Any, np.dtype[np.float64]]
Tree = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """slope * x + intercept with rational coefficients."""

    slope: Fraction
    intercept: Fraction = Fraction(0)

    def ball(self, x: arb) -> arb:
        from lipmodel.activations.balls import rational

        return rational(self.slope) * x + rational(self.intercept) if self.slope else rational(self.intercept)

    def floats(self, x: Array) -> Array:
        if not self.slope:
            return np.full_like(x, float(self.intercept))
        with np.errstate(over="ignore"):
            result: Array = x if self.slope == 1 else float(self.slope) * x
            return result + float(self.intercept) if self.intercept else result

    def fraction(self, x: Fraction) -> Fraction:
        return self.slope * x + self.intercept


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """A formula as text; `parameters` gives exact values to the names in it other than x."""

    text: str
    parameters: tuple[tuple[str, Fraction], ...] = ()

    def ball(self, x: arb) -> arb:
        """Enclosure of the value on a ball, at the working precision; not finite where it is not defined."""
        return evaluate_ball(self.text, {"x": x}, dict(self.parameters))

    def floats(self, x: Array) -> Array:
        """float64 evaluation; NaN or infinite where an intermediate result overflows."""
        program = parse(self.text)
        with np.errstate(all="ignore"):
            value = _Floats.run(program, {"x": x}, dict(self.parameters))
        return np.broadcast_to(np.asarray(value, dtype=np.float64), x.shape)

    def sympy(self, variable: Any) -> Any:
        """The same formula as a sympy expression of `variable`."""
        return _Sympy.run(parse(self.text), {"x": variable}, dict(self.parameters))


Formula = Affine | Expression


def evaluate_ball(text: str, names: Mapping[str, arb], parameters: Mapping[str, Fraction] | None = None) -> arb:
    """Enclosure of a formula whose names stand for the given balls."""
    return _Balls.run(parse(text), names, parameters or {})


def from_sympy(expression: Any, variable: Any) -> Expression:
    """The `Expression` of a sympy expression of `variable`; UsageError if it uses what no ball can evaluate.

    Common subexpressions of a long one are named (``t0 = exp(x); t0/(1 + t0)``), so that it is evaluated in linear
    time.
    """
    import sympy

    expression = sympy.sympify(expression).xreplace({variable: sympy.Symbol("x", real=True)})
    strangers = [str(a) for a in expression.atoms() if not (a.is_Rational or a in (sympy.pi, sympy.E) or str(a) == "x")]
    if strangers:
        raise UsageError(f"{_short(str(expression))!r} contains {', '.join(strangers)}, which has no real value")
    if expression.count_ops() <= 40:
        text = sympy.sstr(expression)
    else:
        names = sympy.numbered_symbols("t", real=True)
        bindings, (body,) = sympy.cse([expression], symbols=names)
        text = "; ".join([*(f"{name} = {sympy.sstr(value)}" for name, value in bindings), sympy.sstr(body)])
    parse(text)
    return Expression(text=text)


@lru_cache(maxsize=4096)
def parse(text: str) -> tuple[tuple[tuple[str, Tree], ...], Tree]:
    """(bindings, body) of a formula as trees of tuples; UsageError for anything outside the grammar."""
    try:
        statements = ast.parse(text.strip(), mode="exec").body
    except (SyntaxError, RecursionError) as error:
        raise UsageError(f"{_short(text)!r} is not a formula: {error}") from None
    bindings = []
    for statement in statements[:-1]:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                bindings.append((name, _tree(value, text)))
            case _:
                raise UsageError(f"{_short(text)!r} is not a formula")
    match statements[-1:]:
        case [ast.Expr(value=value)]:
            return tuple(bindings), _tree(value, text)
    raise UsageError(f"{_short(text)!r} is not a formula")


_OPERATORS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}


def _tree(node: ast.expr, text: str) -> Tree:
    match node:
        case ast.Constant(value=int(value)):
            return ("rational", Fraction(value))
        case ast.Constant(value=float(value)):
            return ("rational", Fraction(value))
        case ast.Name(id=name):
            return ("name", name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _tree(operand, text)
            return ("rational", -inner[1]) if inner[0] == "rational" else ("negative", inner)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _folded(_OPERATORS[type(op)], _tree(left, text), _tree(right, text))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            return ("call", name, _tree(argument, text))
        case ast.Call(func=ast.Name(id=name)):
            known = ", ".join(sorted(FUNCTIONS))
            raise UsageError(f"{name}(...) cannot be enclosed; one-argument functions known here: {known}")
    raise UsageError(f"{_short(text)!r} contains {ast.unparse(node)!r}, which is outside the grammar of formulas")


def _folded(op: str, left: Tree, right: Tree) -> Tree:
    """A node, folded where both sides are rational constants."""
    if left[0] == right[0] == "rational":
        a, b = left[1], right[1]
        if op == "+":
            return ("rational", a + b)
        if op == "-":
            return ("rational", a - b)
        if op == "*":
            return ("rational", a * b)
        if op == "/" and b:
            return ("rational", a / b)
        if op == "**" and b.denominator == 1 and abs(b) <= 64 and (a or b >= 0):
            return ("rational", a ** int(b))
    return (op, left, right)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


class _Algebra:
    """How a tree is evaluated in one kind of number."""

    def rational(self, value: Fraction) -> Any:
        raise NotImplementedError

    def constant(self, name: str) -> Any:
        raise NotImplementedError

    def function(self, name: str) -> Callable[[Any], Any]:
        raise NotImplementedError

    def power(self, base: Any, exponent: Any) -> Any:
        """base ** exponent, where exponent is a Fraction when it is rational."""
        raise NotImplementedError

    def run(self, program: Any, names: Mapping[str, Any], parameters: Mapping[str, Fraction]) -> Any:
        bindings, body = program
        scope = dict(names)
        for name, tree in bindings:
            scope[name] = self._walk(tree, scope, parameters)
        return self._walk(body, scope, parameters)

    def _walk(self, tree: Tree, names: Mapping[str, Any], parameters: Mapping[str, Fraction]) -> Any:
        match tree:
            case ("rational", value):
                return self.rational(value)
            case ("name", name):
                if name in names:
                    return names[name]
                if name in parameters:
                    return self.rational(parameters[name])
                return self.constant(name)
            case ("negative", inner):
                return -self._walk(inner, names, parameters)
            case ("call", name, inner):
                return self.function(name)(self._walk(inner, names, parameters))
            case ("**", base, exponent):
                known = _constant(exponent, parameters)
                return self.power(
                    self._walk(base, names, parameters),
                    self._walk(exponent, names, parameters) if known is None else known,
                )
        op, left, right = tree[0], self._walk(tree[1], names, parameters), self._walk(tree[2], names, parameters)
        if op == "+":
            return left + right
        if op == "-":
            return left - right
        return left * right if op == "*" else left / right


def _constant(tree: Tree, parameters: Mapping[str, Fraction]) -> Fraction | None:
    """The rational value of an exponent such as 3/2, p or p - 1; None for any other."""
    match tree:
        case ("rational", value):
            return Fraction(value)
        case ("name", name):
            return parameters.get(name)
        case ("negative", inner):
            value = _constant(inner, parameters)
            return None if value is None else -value
        case ("+" | "-" as op, left, right):
            a, b = _constant(left, parameters), _constant(right, parameters)
            return None if a is None or b is None else a + b if op == "+" else a - b
    return None


class _BallAlgebra(_Algebra):
    def rational(self, value: Fraction) -> arb:
        from lipmodel.activations.balls import rational

        return rational(value)

    def constant(self, name: str) -> arb:
        from flint import arb

        if name == "pi":
            return arb.pi()
        if name == "E":
            return arb.const_e()
        raise UsageError(f"the name {name!r} has no value in this formula")

    def function(self, name: str) -> Callable[[arb], arb]:
        special = _BALL_FUNCTIONS.get(name)
        if special is not None:
            return special
        from flint import arb

        method: Callable[[arb], arb] = getattr(arb, name)
        return method

    def power(self, base: arb, exponent: Fraction | arb) -> arb:
        from flint import arb, fmpq

        if not isinstance(exponent, Fraction):
            return (base.log() * exponent).exp()
        if exponent.denominator != 1:
            return base ** fmpq(exponent.numerator, exponent.denominator)
        n = exponent.numerator
        if n < 0:
            return 1 / self.power(base, -exponent)
        # Arb gives NaN (or, for even powers, a range that is too wide) where the base may vanish.
        if base.is_exact() or not base.contains(0) or not base.is_finite():
            return base**n
        if n % 2:
            return (base.lower() ** n).union(base.upper() ** n)
        return (base.abs_upper() ** n).union(arb(0)) if n else arb(1)


class _FloatAlgebra(_Algebra):
    def rational(self, value: Fraction) -> Any:
        return np.float64(float(value))

    def constant(self, name: str) -> Any:
        return {"pi": np.float64(math.pi), "E": np.float64(math.e)}[name]

    def function(self, name: str) -> Callable[[Any], Any]:
        return _float_functions()[name]

    def power(self, base: Any, exponent: Any) -> Any:
        if isinstance(exponent, Fraction) and exponent.denominator == 1 and abs(exponent) <= 3:
            whole = int(exponent)
            value = np.float64(1.0) if whole == 0 else base
            for _ in range(abs(whole) - 1):
                value = value * base
            return 1.0 / value if whole < 0 else value
        return np.power(base, float(exponent) if isinstance(exponent, Fraction) else exponent)


class _SympyAlgebra(_Algebra):
    def rational(self, value: Fraction) -> Any:
        import sympy

        return sympy.Rational(value.numerator, value.denominator)

    def constant(self, name: str) -> Any:
        import sympy

        return {"pi": sympy.pi, "E": sympy.E}[name]

    def function(self, name: str) -> Callable[[Any], Any]:
        import sympy

        special: dict[str, Callable[[Any], Any]] = {
            "sigmoid": lambda x: 1 / (1 + sympy.exp(-x)),
            "softplus": lambda x: sympy.log(1 + sympy.exp(x)),
            "expm1": lambda x: sympy.exp(x) - 1,
        }
        known: Callable[[Any], Any] = special.get(name) or getattr(sympy, name)
        return known

    def power(self, base: Any, exponent: Any) -> Any:
        return base ** (self.rational(exponent) if isinstance(exponent, Fraction) else exponent)


def _sigmoid_ball(x: arb) -> arb:
    # exp of a large positive argument overflows into a useless ball, of a large negative one it does not.
    if x < 0:
        e = x.exp()
        return e / (1 + e)
    return 1 / (1 + (-x).exp())


def _softplus_ball(x: arb) -> arb:
    return x + (-x).exp().log1p() if x > 0 else x.exp().log1p()


def _rint_ball(x: arb) -> arb:
    return (x - 0.5).ceil().union((x + 0.5).floor())  # at a tie either, whatever the rounding rule


_BALL_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sigmoid": _sigmoid_ball,
    "softplus": _softplus_ball,
    "rint": _rint_ball,
}

FUNCTIONS = frozenset(
    [
        "exp",
        "expm1",
        "log",
        "sqrt",
        "sin",
        "cos",
        "sinh",
        "cosh",
        "tanh",
        "sech",
        "asinh",
        "atan",
        "erf",
        "erfc",
        "sigmoid",
        "softplus",
        "floor",
        "ceil",
        "rint",
    ]
)
"""The functions of the grammar, each of one argument."""


@lru_cache(maxsize=1)
def _float_functions() -> dict[str, Callable[[Any], Any]]:
    from scipy import special

    functions: dict[str, Callable[[Any], Any]] = {
        name: getattr(np, name) for name in ("exp", "expm1", "log", "sqrt", "sin", "cos", "sinh", "cosh", "tanh")
    }
    functions |= {
        "floor": np.floor,
        "ceil": np.ceil,
        "rint": np.rint,
        "asinh": np.arcsinh,
        "atan": np.arctan,
        "erf": special.erf,
        "erfc": special.erfc,
        "sigmoid": special.expit,
        "sech": lambda x: 1.0 / np.cosh(x),
        "softplus": lambda x: np.logaddexp(0.0, x),
    }
    return functions


_Balls = _BallAlgebra()
_Floats = _FloatAlgebra()
_Sympy = _SympyAlgebra()
