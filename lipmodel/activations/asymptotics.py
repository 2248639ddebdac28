"""Proved behaviour of an expression on a whole half-line x >= R: leading term, limit, sign.

Every expression is rewritten exactly as a quotient of finite sums of terms c * x^a * exp(p(x)), where a is rational,
p a polynomial without constant term (rational exponents allowed), and c a number or a polynomial in remainder
symbols. A remainder symbol stands for a function of x whose values on the half-line are proved to lie in a ball:
Lagrange's remainder of a Taylor expansion, the factor of the asymptotic form of erfc, a sine that oscillates for
ever. Terms of one scale add up exactly, so what cancels does so symbolically; of different scales, all but the
largest are bounded relative to it on all of [R, inf), by their ratio at R once that ratio is shown to decrease from
there on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cmp_to_key
from typing import Any

import sympy
from flint import arb, ctx, fmpq

from lipmodel.activations.balls import rational
from lipmodel.activations.formula import evaluate_ball

_PRECISION = 256
_KEPT = 12
"""Terms of a long sum that are kept exactly."""
_LONGEST = 80
"""Operations in a constant that is still simplified, and in a coefficient that is still kept exactly."""
_LARGEST = 30_000
"""Work in one product of sums, in terms and operations; beyond, nothing is proved."""


class Undecided(Exception):  # noqa: N818 - neither an error nor a failure
    """Not proved on this half-line; a larger threshold may help."""


class Unsupported(Exception):  # noqa: N818
    """The expression is outside what this module can rewrite."""


@dataclass(frozen=True, slots=True)
class Scale:
    """x^power * exp(sum of rate * x^degree), degrees positive and decreasing, rates nonzero real numbers of sympy."""

    power: Fraction = Fraction(0)
    rates: tuple[tuple[Fraction, Any], ...] = ()

    def __mul__(self, other: Scale) -> Scale:
        rates: dict[Fraction, Any] = dict(self.rates)
        for degree, rate in other.rates:
            rates[degree] = rates.get(degree, sympy.Integer(0)) + rate
        kept = tuple((d, r) for d, r in sorted(rates.items(), reverse=True) if number_sign(r) != 0)
        return Scale(self.power + other.power, kept)

    def __pow__(self, exponent: Fraction) -> Scale:
        factor = sympy.Rational(exponent.numerator, exponent.denominator)
        return Scale(self.power * exponent, tuple((d, r * factor) for d, r in self.rates if exponent))

    def growth(self) -> int:
        """1 if it tends to infinity, -1 if to 0, 0 if it is 1."""
        if self.rates:
            return number_sign(self.rates[0][1])
        return (self.power > 0) - (self.power < 0)

    def bound(self, threshold: Fraction) -> arb:
        """A ball that contains (0, sup] for a decaying scale on x >= threshold; Undecided where it may increase.

        x s'(x)/s(x) = power + sum degree rate x^degree must be negative: the top term outweighs the positive ones at
        the threshold, hence beyond it.
        """
        r = rational(threshold)
        if self.rates:
            top, rate = self.rates[0]
            lower = [(d, number_ball(s) * rational(d)) for d, s in self.rates[1:]] + [
                (Fraction(0), rational(self.power))
            ]
            positive = sum((_power(r, d - top) * c for d, c in lower if not c < 0), arb(0))
            if not positive < -number_ball(rate) * rational(top):
                raise Undecided
        value = _power(r, self.power)
        for degree, rate in self.rates:
            value *= (number_ball(rate) * _power(r, degree)).exp()
        return value.union(arb(0))


Terms = dict[Scale, Any]
"""A finite sum: scale -> coefficient, a sympy expression in remainder symbols."""
ONE = Scale()


def _power(base: arb, exponent: Fraction) -> arb:
    return base ** fmpq(exponent.numerator, exponent.denominator)


def number_ball(number: Any) -> arb:
    """Enclosure of a real constant of sympy."""
    try:
        return evaluate_ball(sympy.sstr(number), {})
    except Exception as error:
        raise Unsupported(f"{number} cannot be enclosed") from error


def number_sign(number: Any) -> int:
    """The sign of a real constant of sympy, proved by a ball that excludes zero or by simplification to zero."""
    if number.is_Rational:
        return int(number.p > 0) - int(number.p < 0)
    with ctx.workprec(_PRECISION):
        enclosure = number_ball(number)
    if enclosure > 0:
        return 1
    if enclosure < 0:
        return -1
    if sympy.simplify(number) == 0:
        return 0
    raise Unsupported(f"the sign of {number} could not be decided")


def vanishes(number: Any) -> bool:
    """Whether a constant of sympy is proved to be 0."""
    try:
        return bool(number.is_number) and number_sign(number) == 0
    except Unsupported:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """expression(x) = C(x) * s(x) on x >= threshold, with s a scale and C(x) in `coefficient`.

    growth: whether s tends to infinity (1), is 1 (0) or tends to 0 (-1); limit: the exact limit of the expression,
    None if it is infinite or not known; bounds: encloses all its values on the half-line, None if it grows.
    """

    growth: int
    coefficient: arb
    limit: Any
    bounds: arb | None

    @property
    def sign(self) -> int:
        """The constant sign of the expression on the half-line, 0 if it is not proved to have one."""
        return 1 if self.coefficient > 0 else -1 if self.coefficient < 0 else 0


def tail(expression: Any, variable: Any, threshold: Fraction, order: int = 4) -> Tail:
    """What can be proved of a smooth expression for variable >= threshold (at least 1).

    variable: a positive symbol; order: the highest power that Taylor expansions keep exactly, so that as many
    cancellations are seen. Raises Undecided where a larger threshold may succeed, Unsupported where none will.
    """
    with ctx.workprec(_PRECISION):
        expansion = _Expansion(variable=variable, threshold=threshold, order=order)
        return expansion.tail(expansion.expand(sympy.sympify(expression)))


@dataclass(frozen=True, slots=True)
class _Quotient:
    above: Terms
    below: Terms


@dataclass(slots=True, kw_only=True)
class _Expansion:
    """The rewriting of expressions on one half-line, and the remainder symbols met on the way."""

    variable: Any
    threshold: Fraction
    order: int
    remainders: dict[str, arb] = field(default_factory=dict)
    known: dict[Any, _Quotient] = field(default_factory=dict)

    def tail(self, q: _Quotient) -> Tail:
        if not q.above:
            return Tail(growth=-1, coefficient=arb(0), limit=sympy.Integer(0), bounds=arb(0))
        scale, coefficient, exact = self.leading(q)
        growth = scale.growth()
        if growth > 0:
            return Tail(growth=1, coefficient=coefficient, limit=None, bounds=None)
        if growth == 0:
            return Tail(growth=0, coefficient=coefficient, limit=exact, bounds=coefficient)
        bounds = coefficient * scale.bound(self.threshold)
        return Tail(growth=-1, coefficient=coefficient, limit=sympy.Integer(0), bounds=bounds)

    def leading(self, q: _Quotient) -> tuple[Scale, arb, Any]:
        """(scale, enclosure of q / scale, its exact limit or None) of a quotient that is not identically 0."""
        top, above, exact_above = self._dominant(q.above)
        bottom, below, exact_below = self._dominant(q.below)
        if below.contains(0):
            raise Undecided
        exact = None if exact_above is None or exact_below is None else exact_above / exact_below
        return top * bottom ** Fraction(-1), above / below, exact

    def _dominant(self, terms: Terms) -> tuple[Scale, arb, Any]:
        best = next(iter(terms))
        for scale in terms:
            if (scale * best ** Fraction(-1)).growth() > 0:
                best = scale
        inverse = best ** Fraction(-1)
        lower = {scale * inverse: c for scale, c in terms.items() if scale != best}
        # Two spellings of one scale have the ratio 1; they belong together.
        top = terms[best] + lower.pop(ONE, 0)
        exact = None if top.free_symbols else top
        if exact is not None and number_sign(exact) == 0:
            rest = {scale: c for scale, c in terms.items() if (scale * inverse).growth() < 0}
            return self._dominant(rest) if rest else (ONE, arb(0), sympy.Integer(0))
        total = self.enclosure(top)
        for ratio, coefficient in lower.items():
            total += self.enclosure(coefficient) * ratio.bound(self.threshold)
        return best, total, exact

    def enclosure(self, coefficient: Any) -> arb:
        return evaluate_ball(sympy.sstr(coefficient), self.remainders)

    def remainder(self, values: arb) -> Any:
        """A new symbol for a function whose values lie in a ball."""
        if not values.is_finite():
            raise Undecided
        name = f"theta{len(self.remainders)}"
        self.remainders[name] = values
        return sympy.Symbol(name, real=True)

    def expand(self, e: Any) -> _Quotient:
        if e not in self.known:
            self.known[e] = self._expand(e)
        return self.known[e]

    def _expand(self, e: Any) -> _Quotient:
        if not e.has(self.variable):
            return _number(e)
        if e == self.variable:
            return _Quotient({Scale(Fraction(1)): sympy.Integer(1)}, _UNIT)
        if e.is_Add or e.is_Mul:
            combine = _add if e.is_Add else _multiply
            result = self.expand(e.args[0])
            for argument in e.args[1:]:
                result = self.shortened(combine(result, self.expand(argument)))
            return result
        if e.is_Pow and e.func is not sympy.exp:
            return self._power(*e.args)
        if isinstance(e, sympy.tanh | sympy.sinh | sympy.cosh):
            return self.expand(e.rewrite(sympy.exp))
        rule = _RULES.get(e.func)
        if rule is None:
            raise Unsupported(f"{e.func} has no expansion here")
        return rule(self, e.args[0])

    def _power(self, base: Any, exponent: Any) -> _Quotient:
        if exponent.has(self.variable):
            return self.expand(sympy.exp(exponent * sympy.log(base), evaluate=False))
        if not exponent.is_Rational:
            raise Unsupported(f"the power {exponent} is not rational")
        q = self.expand(base)
        if exponent.is_Integer:
            return self._whole_power(q, int(exponent))
        scale, leading, rest = self._relative(q)
        if not number_ball(leading) > 0:
            raise Unsupported(f"{base} is not positive")
        z = sympy.Dummy("z", real=True)
        power = Fraction(int(exponent.p), int(exponent.q))
        series = self.taylor(lambda z: (1 + z) ** exponent, z, sympy.Integer(0), rest)
        return _multiply(_term(scale**power, leading**exponent), series)

    def _whole_power(self, q: _Quotient, n: int) -> _Quotient:
        if n < 0:
            if not q.above:
                raise Unsupported("a division by zero")
            return self._whole_power(_normal(q.below, q.above), -n)
        result = _number(sympy.Integer(1))
        for _ in range(n):
            result = _multiply(result, q)
        return result

    def _relative(self, q: _Quotient) -> tuple[Scale, Any, _Quotient]:
        """(s, c, r) with q = c s (1 + r), c an exact number and r decaying."""
        if not q.above:
            raise Unsupported("a power or logarithm of zero")
        scale, _, exact = self.leading(q)
        if exact is None or number_sign(exact) == 0:
            raise Unsupported("an oscillating or vanishing base")
        ratio = _multiply(q, _term(scale ** Fraction(-1), 1 / exact))
        return scale, exact, _add(ratio, _number(sympy.Integer(-1)))

    def split(self, q: _Quotient) -> tuple[Terms, Any, _Quotient]:
        """(terms that grow, constant, rest that decays) with exact coefficients in the first two."""
        growing: Terms = {}
        constant = sympy.Integer(0)
        for _ in range(16):
            if not q.above:
                return growing, constant, q
            scale, _, exact = self.leading(q)
            growth = scale.growth()
            if growth < 0:
                return growing, constant, q
            if exact is None:
                raise Unsupported("an oscillating argument")
            if growth == 0:
                constant += exact
            else:
                growing[scale] = growing.get(scale, 0) + exact
            q = _add(q, _term(scale, -exact))
        raise Unsupported("an argument of too many growing terms")

    def taylor(self, function: Callable[[Any], Any], z: Any, centre: Any, rest: _Quotient) -> _Quotient:
        """function(centre + rest) for a decaying rest: powers of it up to the order, and Lagrange's remainder."""
        derivative = function(z)
        if not rest.above:
            return _number(derivative.subs(z, centre))
        bounds = self.tail(rest).bounds
        assert bounds is not None
        coefficients = []
        for k in range(self.order + 1):
            coefficients.append(derivative.subs(z, centre) / sympy.factorial(k))
            derivative = sympy.diff(derivative, z)
        range_ = number_ball(centre) + bounds.union(arb(0))
        last = evaluate_ball(sympy.sstr(derivative.xreplace({z: sympy.Symbol("z", real=True)})), {"z": range_})
        theta = self.remainder(last / arb(int(sympy.factorial(self.order + 1))))
        result = _Quotient({ONE: theta}, _UNIT)
        rest = self.shortened(rest)
        for coefficient in reversed(coefficients):
            result = self.shortened(_add(_multiply(result, rest), _number(coefficient)))
        return result

    def shortened(self, q: _Quotient) -> _Quotient:
        """The same function; where a sum is long its smallest terms are united, and a long coefficient is enclosed."""
        above, below = self._concise(q.above), self._concise(q.below)
        if len(above) > _KEPT and below == _UNIT:
            order = sorted(above, key=cmp_to_key(_faster))
            kept = {scale: above[scale] for scale in order[:_KEPT]}
            scale, total, _ = self._dominant({s: above[s] for s in order[_KEPT:]})
            return _add(_Quotient(kept, _UNIT), _term(scale, self.remainder(total)))
        return _Quotient(above, below)

    def _concise(self, terms: Terms) -> Terms:
        return {s: self.remainder(self.enclosure(c)) if c.count_ops() > _LONGEST else c for s, c in terms.items()}

    def exponential(self, u: Any) -> _Quotient:
        q = self.expand(u)
        growing, constant, rest = self.split(q)
        rates = []
        for scale, coefficient in growing.items():
            if scale.rates:
                raise Unsupported("an iterated exponential")
            rates.append((scale.power, coefficient))
        scale = Scale(Fraction(0), tuple(sorted(rates, key=lambda item: item[0], reverse=True)))
        series = self.taylor(sympy.exp, sympy.Dummy("z", real=True), sympy.Integer(0), rest)
        return _multiply(_term(scale, sympy.exp(constant)), series)

    def logarithm(self, u: Any) -> _Quotient:
        scale, leading, rest = self._relative(self.expand(u))
        if scale.power:
            raise Unsupported("a logarithm of x")
        if not number_ball(leading) > 0:
            raise Unsupported(f"log({u}) of what is not positive")
        series = self.taylor(lambda z: sympy.log(1 + z), sympy.Dummy("z", real=True), sympy.Integer(0), rest)
        exact = {Scale(degree): rate for degree, rate in scale.rates}
        return _add(_add(_Quotient(exact, _UNIT), _number(sympy.log(leading))), series)

    def oscillating(self, function: Callable[[Any], Any], u: Any) -> _Quotient:
        growing, constant, rest = self.split(self.expand(u))
        if growing:
            return _Quotient({ONE: self.remainder(arb(0, 1))}, _UNIT)
        return self.taylor(function, sympy.Dummy("z", real=True), constant, rest)

    def error_function(self, u: Any) -> _Quotient:
        q = self.expand(u)
        growing, constant, rest = self.split(q)
        if not growing:
            return self.taylor(sympy.erf, sympy.Dummy("z", real=True), constant, rest)
        scale, coefficient, _ = self.leading(q)
        if coefficient.contains(0):
            raise Undecided
        # erfc(v) = exp(-v^2) / (v sqrt(pi)) * theta with 1 - 1/(2 v^2) < theta < 1 for v > 0.
        smallest = coefficient.abs_lower() / (scale ** Fraction(-1)).bound(self.threshold).upper()
        theta = self.remainder((1 - 1 / (2 * smallest**2)).union(arb(1)))
        factor = _multiply(self.expand(sympy.exp(-(u**2))), self._whole_power(q, -1))
        small = _multiply(factor, _Quotient({ONE: theta / sympy.sqrt(sympy.pi)}, _UNIT))
        # For v = -u the factor 1/u carries the sign: erf(u) = -1 - exp(-u^2) / (u sqrt(pi)) * theta.
        return _add(_number(sympy.Integer(1 if coefficient > 0 else -1)), _multiply(small, _number(sympy.Integer(-1))))

    def arctangent(self, u: Any) -> _Quotient:
        q = self.expand(u)
        growing, constant, rest = self.split(q)
        if not growing:
            return self.taylor(sympy.atan, sympy.Dummy("z", real=True), constant, rest)
        positive = self.leading(q)[1]
        if positive.contains(0):
            raise Undecided
        inverse = self.taylor(sympy.atan, sympy.Dummy("z", real=True), sympy.Integer(0), self._whole_power(q, -1))
        side = sympy.pi / 2 if positive > 0 else -sympy.pi / 2
        return _add(_number(side), _multiply(inverse, _number(sympy.Integer(-1))))


_RULES: dict[Any, Callable[[_Expansion, Any], _Quotient]] = {
    sympy.exp: _Expansion.exponential,
    sympy.log: _Expansion.logarithm,
    sympy.sin: lambda x, u: x.oscillating(sympy.sin, u),
    sympy.cos: lambda x, u: x.oscillating(sympy.cos, u),
    sympy.erf: _Expansion.error_function,
    sympy.erfc: lambda x, u: x.expand(1 - sympy.erf(u)),
    sympy.atan: _Expansion.arctangent,
    sympy.asinh: lambda x, u: x.expand(sympy.log(u + sympy.sqrt(u**2 + 1))),
}

_UNIT: Terms = {ONE: sympy.Integer(1)}


def _faster(a: Scale, b: Scale) -> int:
    """-1 where a outgrows b."""
    return (b * a ** Fraction(-1)).growth()


def _number(value: Any) -> _Quotient:
    return _term(ONE, sympy.sympify(value))


def _term(scale: Scale, coefficient: Any) -> _Quotient:
    return _Quotient({scale: coefficient} if coefficient != 0 else {}, _UNIT)


def _collected(pairs: Any) -> Terms:
    sums: dict[Scale, Any] = {}
    for scale, coefficient in pairs:
        sums[scale] = sums.get(scale, sympy.Integer(0)) + coefficient
    expanded = ((scale, sympy.expand(c)) for scale, c in sums.items())
    return {scale: c for scale, c in expanded if c != 0}


def _size(terms: Terms) -> int:
    return sum(1 + int(c.count_ops()) for c in terms.values())


def _product(a: Terms, b: Terms) -> Terms:
    if _size(a) * _size(b) > _LARGEST:
        raise Unsupported("an expansion of too many terms")
    return _collected((s * t, c * d) for s, c in a.items() for t, d in b.items())


def _normal(above: Terms, below: Terms) -> _Quotient:
    """A quotient whose denominator, where it is a single exact term, has moved into the numerator."""
    if len(below) == 1:
        ((scale, coefficient),) = below.items()
        if not coefficient.free_symbols:
            inverse = {scale ** Fraction(-1): 1 / coefficient}
            return _Quotient(_product(above, inverse), _UNIT)
    return _Quotient(above, below)


def _multiply(a: _Quotient, b: _Quotient) -> _Quotient:
    return _normal(_product(a.above, b.above), _product(a.below, b.below))


def _add(a: _Quotient, b: _Quotient) -> _Quotient:
    if a.below == b.below:
        return _Quotient(_collected([*a.above.items(), *b.above.items()]), a.below)
    above = [*_product(a.above, b.below).items(), *_product(b.above, a.below).items()]
    return _normal(_collected(above), _product(a.below, b.below))
