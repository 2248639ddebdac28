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
from flint import arb, ctx

from lipmodel.activations.formula import evaluate_ball
from lipmodel.activations.scales import (
    LONGEST,
    ONE,
    PRECISION,
    UNIT,
    Quotient,
    Scale,
    Terms,
    TooLong,
    Undecided,
    Unsupported,
    add,
    constant,
    faster,
    multiply,
    normal,
    number_ball,
    number_sign,
    term,
)
from lipmodel.errors import UsageError

_KEPT = 12
"""Terms of a long sum that are kept exactly."""


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
    with ctx.workprec(PRECISION):
        expansion = _Expansion(variable=variable, threshold=threshold, order=order)
        try:
            return expansion.tail(expansion.expand(sympy.sympify(expression)))
        except (RecursionError, UsageError) as error:
            raise Unsupported(f"an expression that cannot be expanded ({error})") from None


@dataclass(slots=True, kw_only=True)
class _Expansion:
    """The rewriting of expressions on one half-line, and the remainder symbols met on the way."""

    variable: Any
    threshold: Fraction
    order: int
    remainders: dict[str, arb] = field(default_factory=dict)
    known: dict[Any, Quotient] = field(default_factory=dict)

    def tail(self, q: Quotient) -> Tail:
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

    def leading(self, q: Quotient) -> tuple[Scale, arb, Any]:
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
        try:
            return evaluate_ball(sympy.sstr(coefficient), self.remainders)
        except UsageError as error:
            raise Unsupported(f"{coefficient} cannot be enclosed") from error

    def remainder(self, values: arb) -> Any:
        """A new symbol for a function whose values lie in a ball."""
        if not values.is_finite():
            raise Undecided
        name = f"theta{len(self.remainders)}"
        self.remainders[name] = values
        return sympy.Symbol(name, real=True)

    def expand(self, e: Any) -> Quotient:
        if e not in self.known:
            self.known[e] = self._expand(e)
        return self.known[e]

    def _expand(self, e: Any) -> Quotient:
        if not e.has(self.variable):
            return constant(e)
        if e == self.variable:
            return Quotient({Scale(Fraction(1)): sympy.Integer(1)}, UNIT)
        if e.is_Add or e.is_Mul:
            combine = add if e.is_Add else multiply
            result = self.expand(e.args[0])
            for argument in e.args[1:]:
                result = self.combined(combine, result, self.expand(argument))
            return result
        if e.is_Pow and e.func is not sympy.exp:
            return self._power(*e.args)
        if isinstance(e, sympy.tanh | sympy.sinh | sympy.cosh):
            return self.hyperbolic(e)
        rule = _RULES.get(e.func)
        if rule is None:
            raise Unsupported(f"{e.func} has no expansion here")
        return rule(self, e.args[0])

    def combined(self, combine: Callable[[Quotient, Quotient], Quotient], a: Quotient, b: Quotient) -> Quotient:
        try:
            return self.shortened(combine(a, b))
        except TooLong:
            return self.absorbed(combine(self.absorbed(self.series(a)), self.absorbed(self.series(b))))

    def _power(self, base: Any, exponent: Any) -> Quotient:
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
        return multiply(term(scale**power, leading**exponent), series)

    def _whole_power(self, q: Quotient, n: int) -> Quotient:
        if n < 0:
            if not q.above:
                raise Unsupported("a division by zero")
            return self._whole_power(normal(q.below, q.above), -n)
        result = constant(sympy.Integer(1))
        for _ in range(n):
            result = multiply(result, q)
        return result

    def _relative(self, q: Quotient) -> tuple[Scale, Any, Quotient]:
        """(s, c, r) with q = c s (1 + r), c an exact number and r decaying."""
        if not q.above:
            raise Unsupported("a power or logarithm of zero")
        scale, _, exact = self.leading(q)
        if exact is None or number_sign(exact) == 0:
            raise Unsupported("an oscillating or vanishing base")
        ratio = multiply(q, term(scale ** Fraction(-1), 1 / exact))
        return scale, exact, add(ratio, constant(sympy.Integer(-1)))

    def split(self, q: Quotient) -> tuple[Terms, Any, Quotient]:
        """(terms that grow, constant, rest that decays) with exact coefficients in the first two."""
        growing: Terms = {}
        limit = sympy.Integer(0)
        for _ in range(16):
            if not q.above:
                return growing, limit, q
            scale, _, exact = self.leading(q)
            growth = scale.growth()
            if growth < 0:
                return growing, limit, q
            if exact is None:
                raise Unsupported("an oscillating argument")
            if growth == 0:
                limit += exact
            else:
                growing[scale] = growing.get(scale, 0) + exact
            q = add(q, term(scale, -exact))
        raise Unsupported("an argument of too many growing terms")

    def taylor(self, function: Callable[[Any], Any], z: Any, centre: Any, rest: Quotient) -> Quotient:
        """function(centre + rest) for a decaying rest: powers of it up to the order, and Lagrange's remainder."""
        derivative = function(z)
        if not rest.above:
            return constant(derivative.subs(z, centre))
        bounds = self.tail(rest).bounds
        assert bounds is not None
        coefficients = []
        for k in range(self.order + 1):
            coefficients.append(derivative.subs(z, centre) / sympy.factorial(k))
            derivative = sympy.diff(derivative, z)
        range_ = number_ball(centre) + bounds.union(arb(0))
        last = evaluate_ball(sympy.sstr(derivative.xreplace({z: sympy.Symbol("z", real=True)})), {"z": range_})
        theta = self.remainder(last / arb(int(sympy.factorial(self.order + 1))))
        result = Quotient({ONE: theta}, UNIT)
        rest = self.absorbed(self.shortened(self.series(rest)))
        for coefficient in reversed(coefficients):
            result = self.absorbed(add(multiply(result, rest), constant(coefficient)))
        return result

    def series(self, q: Quotient) -> Quotient:
        """The same function as a sum: its denominator, where it has several terms, in a geometric series."""
        if q.below == UNIT:
            return q
        below = Quotient(q.below, UNIT)
        scale, leading, rest = self._relative(below)
        inverse = self.taylor(lambda z: 1 / (1 + z), sympy.Dummy("z", real=True), sympy.Integer(0), rest)
        factor = multiply(Quotient(q.above, UNIT), term(scale ** Fraction(-1), 1 / leading))
        return multiply(factor, inverse)

    def shortened(self, q: Quotient) -> Quotient:
        """The same function; where a sum is long its smallest terms are united, and a long coefficient is enclosed."""
        above, below = self._concise(q.above), self._concise(q.below)
        if len(above) > _KEPT and below == UNIT:
            order = sorted(above, key=cmp_to_key(faster))
            kept = {scale: above[scale] for scale in order[:_KEPT]}
            scale, total, _ = self._dominant({s: above[s] for s in order[_KEPT:]})
            return add(Quotient(kept, UNIT), term(scale, self.remainder(total)))
        return Quotient(above, below)

    def absorbed(self, q: Quotient) -> Quotient:
        """The same sum; what is smaller than its largest term with a remainder is united with that term."""
        bounded = [s for s, c in q.above.items() if c.free_symbols]
        if q.below != UNIT or not bounded:
            return self.shortened(q)
        largest = min(bounded, key=cmp_to_key(faster))
        small = {s: c for s, c in q.above.items() if faster(largest, s) <= 0}
        if len(small) > 1:
            scale, total, _ = self._dominant(small)
            kept = {s: c for s, c in q.above.items() if s not in small}
            q = add(Quotient(kept, UNIT), term(scale, self.remainder(total)))
        return self.shortened(q)

    def _concise(self, terms: Terms) -> Terms:
        limits = {s: LONGEST if c.free_symbols else 4 * LONGEST for s, c in terms.items()}
        long = {s: c for s, c in terms.items() if c.count_ops() > limits[s]}
        return terms | {s: self.remainder(self.enclosure(c)) for s, c in long.items()}

    def hyperbolic(self, e: Any) -> Quotient:
        u = e.args[0]
        q = self.expand(u)
        growing, limit, rest = self.split(q)
        if not growing:
            return self.taylor(e.func, sympy.Dummy("z", real=True), limit, rest)
        if not isinstance(e, sympy.tanh):
            return self.expand(e.rewrite(sympy.exp))
        # With the exponential that decays, 1 - tanh(u)^2 has no difference of equal terms.
        side = self.sign(q)
        small = sympy.exp(-2 * side * u)
        return self.expand(side - 2 * side * small / (1 + small))

    def sign(self, q: Quotient) -> int:
        """The sign of a quotient on the half-line, Undecided if it is not proved to have one."""
        coefficient = self.leading(q)[1]
        if coefficient.contains(0):
            raise Undecided
        return 1 if coefficient > 0 else -1

    def exponential(self, u: Any) -> Quotient:
        q = self.expand(u)
        growing, limit, rest = self.split(q)
        if any(scale.rates for scale in growing):
            return self.vanishing_exponential(q)
        rates = []
        for scale, coefficient in growing.items():
            rates.append((scale.power, coefficient))
        scale = Scale(Fraction(0), tuple(sorted(rates, key=lambda item: item[0], reverse=True)))
        series = self.taylor(sympy.exp, sympy.Dummy("z", real=True), sympy.Integer(0), rest)
        return multiply(term(scale, sympy.exp(limit)), series)

    def vanishing_exponential(self, q: Quotient) -> Quotient:
        """exp(q) = theta exp(-x^2), 0 < theta < 1, for a q that tends to -inf faster than any power: q <= -x^2."""
        if self.sign(q) > 0:
            raise Unsupported("an iterated exponential that grows")
        scale, coefficient, _ = self.leading(q)
        square = (Scale(Fraction(2)) * scale ** Fraction(-1)).bound(self.threshold)
        if not square < coefficient.abs_lower():
            raise Undecided
        theta = self.remainder(arb(0).union(arb(1)))
        return term(Scale(Fraction(0), ((Fraction(2), sympy.Integer(-1)),)), theta)

    def logarithm(self, u: Any) -> Quotient:
        scale, leading, rest = self._relative(self.expand(u))
        if scale.power:
            raise Unsupported("a logarithm of x")
        if not number_ball(leading) > 0:
            raise Unsupported(f"log({u}) of what is not positive")
        series = self.taylor(lambda z: sympy.log(1 + z), sympy.Dummy("z", real=True), sympy.Integer(0), rest)
        exact = {Scale(degree): rate for degree, rate in scale.rates}
        return add(add(Quotient(exact, UNIT), constant(sympy.log(leading))), series)

    def oscillating(self, function: Callable[[Any], Any], u: Any) -> Quotient:
        growing, limit, rest = self.split(self.expand(u))
        if growing:
            return Quotient({ONE: self.remainder(arb(0, 1))}, UNIT)
        return self.taylor(function, sympy.Dummy("z", real=True), limit, rest)

    def error_function(self, u: Any) -> Quotient:
        q = self.expand(u)
        growing, limit, rest = self.split(q)
        if not growing:
            return self.taylor(sympy.erf, sympy.Dummy("z", real=True), limit, rest)
        side = self.sign(q)
        scale, coefficient, _ = self.leading(q)
        # erfc(v) = exp(-v^2) / (v sqrt(pi)) * theta with 1 - 1/(2 v^2) < theta < 1 for v > 0.
        smallest = coefficient.abs_lower() / (scale ** Fraction(-1)).bound(self.threshold).upper()
        theta = self.remainder((1 - 1 / (2 * smallest**2)).union(arb(1)))
        factor = multiply(self.expand(sympy.exp(-(u**2))), self._whole_power(q, -1))
        small = multiply(factor, Quotient({ONE: theta / sympy.sqrt(sympy.pi)}, UNIT))
        # For v = -u the factor 1/u carries the sign: erf(u) = -1 - exp(-u^2) / (u sqrt(pi)) * theta.
        return add(constant(sympy.Integer(side)), multiply(small, constant(sympy.Integer(-1))))

    def arctangent(self, u: Any) -> Quotient:
        q = self.expand(u)
        growing, limit, rest = self.split(q)
        if not growing:
            return self.taylor(sympy.atan, sympy.Dummy("z", real=True), limit, rest)
        inverse = self.taylor(sympy.atan, sympy.Dummy("z", real=True), sympy.Integer(0), self._whole_power(q, -1))
        quarter = constant(self.sign(q) * sympy.pi / 2)
        return add(quarter, multiply(inverse, constant(sympy.Integer(-1))))


_RULES: dict[Any, Callable[[_Expansion, Any], Quotient]] = {
    sympy.exp: _Expansion.exponential,
    sympy.log: _Expansion.logarithm,
    sympy.sin: lambda x, u: x.oscillating(sympy.sin, u),
    sympy.cos: lambda x, u: x.oscillating(sympy.cos, u),
    sympy.erf: _Expansion.error_function,
    sympy.erfc: lambda x, u: x.expand(1 - sympy.erf(u)),
    sympy.atan: _Expansion.arctangent,
    sympy.asinh: lambda x, u: x.expand(sympy.log(u + sympy.sqrt(u**2 + 1))),
}
