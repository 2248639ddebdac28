"""Cutting an expression with Abs, Min, Max, sign and Piecewise into smooth branches on consecutive intervals.

Every non-smooth part switches where some function of x vanishes. All zeros of these functions are located, exactly
where they are roots of polynomials and in proved enclosures otherwise; between two neighbouring zeros each switch has
one position, which a single sample point decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import sympy
from flint import arb, ctx

from lipmodel.activations.asymptotics import Tail, tail
from lipmodel.activations.balls import ball, rational, rational_ends
from lipmodel.activations.formula import Expression, from_sympy
from lipmodel.activations.scales import Undecided, Unsupported, number_sign, vanishes
from lipmodel.activations.signs import Cell, Unresolved, merged, simplest, zero_cells
from lipmodel.errors import NotLipschitz, UsageError

X = sympy.Symbol("x", real=True)
_T = sympy.Symbol("t", positive=True)
_EPSILON = sympy.Rational(1, 2**140)
_SWITCHES = (sympy.Abs, sympy.sign, sympy.Heaviside, sympy.Max, sympy.Min, sympy.Piecewise)
_QUOTIENTS = {
    sympy.tan: lambda u: sympy.sin(u) / sympy.cos(u),
    sympy.cot: lambda u: sympy.cos(u) / sympy.sin(u),
    sympy.sec: lambda u: 1 / sympy.cos(u),
    sympy.csc: lambda u: 1 / sympy.sin(u),
    sympy.sech: lambda u: 1 / sympy.cosh(u),
    sympy.csch: lambda u: 1 / sympy.sinh(u),
    sympy.coth: lambda u: sympy.cosh(u) / sympy.sinh(u),
}
_STEPS = (sympy.floor, sympy.ceiling, sympy.frac, sympy.Mod)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A point between branches, where `function` has a zero: enclosed, and exact (a number of sympy) where known."""

    at: tuple[Fraction, Fraction]
    exact: Any = None
    function: Any = None

    def __str__(self) -> str:
        return f"{float((self.at[0] + self.at[1]) / 2):.12g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A smooth expression (None where there is no value) on the interval between two cuts, None for infinity."""

    left: Cut | None
    right: Cut | None
    expression: Any


def parsed(expression: Any, params: Iterable[str]) -> Any:
    """A sympy expression from one or from text, where the names of parameters are symbols whatever else they mean."""
    try:
        return sympy.sympify(expression, locals={name: sympy.Symbol(name) for name in params})
    except (sympy.SympifyError, TypeError, AttributeError, SyntaxError) as error:
        raise UsageError(f"{expression!r} is not an expression: {error}") from None


def prepare(expression: Any, params: Mapping[str, float]) -> Any:
    """The expression in X, with floats and parameters replaced by the rationals they are."""
    e = parsed(expression, params)
    free = [s for s in e.free_symbols if s.name not in params]
    if len(free) != 1:
        found = ", ".join(sorted(s.name for s in free)) or "none"
        raise UsageError(f"{e} needs exactly one free symbol, its variable; found: {found} (give parameters by name)")
    values = {s: sympy.Rational(*params[s.name].as_integer_ratio()) for s in e.free_symbols if s.name in params}
    for symbol in e.free_symbols:
        for kind in ("positive", "negative", "zero", "integer"):
            # sympy has already simplified by such an assumption, abs(x) to x for instance.
            assumed = getattr(symbol, f"is_{kind}")
            if assumed is not None and (symbol not in values or assumed != getattr(values[symbol], f"is_{kind}")):
                raise UsageError(f"the symbol {symbol} is declared {kind}={assumed}, but it takes other values too")
    e = e.xreplace({f: sympy.Rational(f) for f in e.atoms(sympy.Float)})
    if not isinstance(e, sympy.Expr):
        raise UsageError(f"{e} is not a real function")
    e = e.subs({**values, free[0]: X}, simultaneous=True)
    e = e.replace(
        lambda p: p.is_Pow and not isinstance(p, sympy.exp) and not p.exp.is_Rational,
        lambda p: sympy.exp(p.exp * sympy.log(p.base), evaluate=True),
    )
    for function, quotient in _QUOTIENTS.items():
        e = e.replace(function, quotient)
    for step in _STEPS:
        if e.has(step):
            raise NotLipschitz(f"it contains {step.__name__}, which jumps at infinitely many points")
    return e


def branches(
    e: Any, left: Cut | None = None, right: Cut | None = None, passed: frozenset[Any] = frozenset()
) -> Iterator[Branch]:
    """The smooth branches of an expression in X between two cuts, from left to right."""
    node = _switch(e, passed)
    if node is None:
        yield Branch(left=left, right=right, expression=e)
        return
    cuts: list[Cut] = []
    for function in _functions(node):
        for cut in zeros(function, left, right):
            _insert(cuts, cut)
    for a, b in pairwise([left, *cuts, right]):
        chosen = _position(node, sample(a, b))
        if chosen is None:
            yield Branch(left=a, right=b, expression=None)
        elif chosen == node:
            yield from branches(e, a, b, passed | {node})
        else:
            yield from branches(e.xreplace({node: chosen}), a, b, passed)


def continuous(e: Any) -> bool:
    """Whether all that switches in an expression is Abs, Max or Min of smooth parts: it is continuous, then."""
    kinds = (sympy.Abs, sympy.Max, sympy.Min)
    return all(isinstance(node, kinds) for node in sympy.postorder_traversal(e) if _switches(node))


def _switch(e: Any, passed: frozenset[Any]) -> Any:
    """The first innermost part of an expression whose behaviour may change with x."""
    return next((n for n in sympy.postorder_traversal(e) if _switches(n) and n not in passed), None)


def _switches(node: Any) -> bool:
    if not node.has(X):
        return False
    if isinstance(node, sympy.log):
        return not node.args[0].is_positive
    if node.is_Pow and not isinstance(node, sympy.exp):
        if node.exp.is_Integer:
            return bool(node.exp < 0 and not _nonzero(node.base))
        return not node.base.is_positive
    return isinstance(node, _SWITCHES)


def _nonzero(e: Any) -> bool:
    return bool(e.is_positive or e.is_negative)


def _functions(node: Any) -> list[Any]:
    """The functions at whose zeros a switch may change its position."""
    if isinstance(node, sympy.Max | sympy.Min):
        return [a - b for i, a in enumerate(node.args) for b in node.args[:i]]
    if isinstance(node, sympy.Piecewise):
        atoms = {r for _, condition in node.args for r in condition.atoms(sympy.core.relational.Relational)}
        return sorted({r.lhs - r.rhs for r in atoms if r.has(X)}, key=sympy.default_sort_key)
    return [node.args[0]]


def _position(node: Any, at: Fraction) -> Any:
    """What a switch is on the interval around a sample point: a smooth part, itself, or None where it has no value."""
    if isinstance(node, sympy.Max | sympy.Min):
        best = node.args[0]
        for other in node.args[1:]:
            if sign_at(other - best, at) == (1 if isinstance(node, sympy.Max) else -1):
                best = other
        return best
    if isinstance(node, sympy.Piecewise):
        for value, condition in node.args:
            held = condition.replace(
                lambda r: isinstance(r, sympy.core.relational.Relational) and r.has(X), lambda r: _holds(r, at)
            )
            if held == sympy.true:
                return value
            if held != sympy.false:
                raise UsageError(f"the condition {condition} is not a comparison of real expressions")
        return None
    sign = sign_at(node.args[0], at)
    if isinstance(node, sympy.Abs):
        return sign * node.args[0]
    if isinstance(node, sympy.sign):
        return sympy.Integer(sign)
    if isinstance(node, sympy.Heaviside):
        return sympy.Integer(sign > 0)
    if isinstance(node, sympy.log) or not node.exp.is_Integer:
        return node if sign > 0 else None
    return node


def _holds(relation: Any, at: Fraction) -> Any:
    sign = sign_at(relation.lhs - relation.rhs, at)
    table = {"<": sign < 0, "<=": sign < 0, ">": sign > 0, ">=": sign > 0, "==": sign == 0, "!=": sign != 0}
    if relation.rel_op not in table:
        raise UsageError(f"the condition {relation} is not a comparison of real expressions")
    return sympy.true if table[relation.rel_op] else sympy.false


def sample(left: Cut | None, right: Cut | None) -> Fraction:
    """A rational strictly between two cuts."""
    if left is not None and right is not None and left.at[1] >= right.at[0]:
        raise NotLipschitz(f"two switches near x = {left} are too close to be told apart")
    if left is None:
        return Fraction(0) if right is None else right.at[0] - 1
    return left.at[1] + 1 if right is None else (left.at[1] + right.at[0]) / 2


def sign_at(function: Any, at: Fraction) -> int:
    """The proved sign of an expression at a rational point; 0 only where it is identically zero."""
    if not function.has(X):
        return number_sign(sympy.sympify(function))
    formula = from_sympy(function, X)
    for precision in (128, 512, 2048):
        with ctx.workprec(precision):
            value = formula.ball(rational(at))
        if value > 0 or value < 0:
            return 1 if value > 0 else -1
    if sympy.expand(function) == 0:
        return 0
    raise NotLipschitz(f"the sign of {function} at {float(at):g} could not be determined")


def zeros(function: Any, left: Cut | None, right: Cut | None) -> list[Cut]:
    """All zeros of a function strictly between two cuts, exact or enclosed; NotLipschitz where that is not proved."""
    if not function.has(X):
        return []
    if function.is_rational_function(X):
        numerator = sympy.Poly(sympy.fraction(sympy.together(function))[0], X)
        found = _roots(numerator, function)
        if found is not None:
            return [cut for cut in found if _between(left, cut, right)]
    try:
        cells = _numerical_zeros(function, left, right)
    except (Unresolved, Unsupported, UsageError) as error:
        raise NotLipschitz(
            f"it switches where {function} = 0, and these places could not be located: {error}"
        ) from None
    cuts = []
    for cell in cells:
        at = _single(function, cell)
        exact = sympy.Rational(at[0].numerator, at[0].denominator) if at[0] == at[1] else None
        cut = Cut(at=at, exact=exact, function=function)
        if _between(left, cut, right):
            cuts.append(cut)
    return cuts


def _single(function: Any, cell: Cell) -> Cell:
    """A cell in which the function is proved to have at most one zero, narrowed to it where it is a simple rational.

    Several zeros could hide a branch between them that neither side shows. One derivative of constant sign on the cell
    leaves one zero, if all lower ones vanish at a common point of it (Taylor).
    """
    point = simplest(*cell)
    exact = sympy.Rational(point.numerator, point.denominator)
    derivative, order = function, 0
    while order < 8 and vanishes(derivative.subs(X, exact)):
        derivative, order = sympy.diff(derivative, X), order + 1
    if order == 0:
        derivative = sympy.diff(function, X)
    with ctx.workprec(256):
        steep = from_sympy(derivative, X).ball(ball(cell))
    if not steep.is_finite() or steep.contains(0):
        raise NotLipschitz(f"the zeros of {function} near x = {float(cell[0]):.6g} could not be told apart")
    return (point, point) if order else cell


def _roots(p: Any, function: Any) -> list[Cut] | None:
    """The real roots of a polynomial; None where its coefficients are not rational and it is not linear."""
    if p.is_zero:
        return []
    if p.domain.is_QQ or p.domain.is_ZZ:
        p = p.sqf_part()
        cells = [cell for cell, _ in p.intervals(eps=_EPSILON)]
        return [_root_cut(root, cell, function) for root, cell in zip(p.real_roots(), cells, strict=True)]
    if p.degree() == 1:
        slope, intercept = p.all_coeffs()
        root = -intercept / slope
        with ctx.workprec(256):
            ends = rational_ends(from_sympy(root, X).ball(arb(0)))
        return None if ends is None else [Cut(at=ends, exact=root, function=function)]
    return None


def _root_cut(root: Any, cell: tuple[Any, Any], function: Any) -> Cut:
    ends = (root, root) if root.is_Rational else cell
    lower, upper = (Fraction(int(e.p), int(e.q)) for e in map(sympy.Rational, ends))
    return Cut(at=(lower, upper), exact=root, function=function)


def _order(a: Cut, b: Cut) -> int:
    """-1, 0, 1 as a < b, a = b, a > b."""
    if a.at[1] < b.at[0]:
        return -1
    if b.at[1] < a.at[0]:
        return 1
    try:
        if a.exact is not None and b.exact is not None:
            return number_sign(sympy.sympify(a.exact - b.exact))
    except Unsupported:
        pass
    if a.function is not None and b.function is not None:
        ratio = sympy.expand(a.function / b.function)
        if ratio.is_number and ratio != 0:
            return 0
    raise NotLipschitz(f"two switches near x = {a} are too close to be told apart")


def _between(left: Cut | None, cut: Cut, right: Cut | None) -> bool:
    return (left is None or _order(left, cut) < 0) and (right is None or _order(cut, right) < 0)


def _insert(cuts: list[Cut], cut: Cut) -> None:
    for i, other in enumerate(cuts):
        order = _order(cut, other)
        if order <= 0:
            if order < 0:
                cuts.insert(i, cut)
            return
    cuts.append(cut)


def _numerical_zeros(function: Any, left: Cut | None, right: Cut | None) -> list[Cell]:
    f, df = from_sympy(function, X), from_sympy(sympy.diff(function, X), X)
    window = []
    for end, side in ((left, -1), (right, 1)):
        if end is not None and regular((f, df), end):
            window.append(end.at[0] if side < 0 else end.at[1])
            continue
        settled = settle(function, end, side)
        if settled is None:
            raise Unresolved(Fraction(0), "its sign far out, or near a singularity, could not be determined")
        window.append(settled[0])
    if window[0] >= window[1]:
        return []
    return zeros_in_window(function, window[0], window[1])


def factorings(e: Any) -> Iterator[list[Any]]:
    """Lists of functions of X such that all zeros of a smooth expression without poles are zeros of one in the list.

    Taking a product apart (a polynomial times an exponential, say) keeps each sign decidable on wide intervals. A
    second form is expanded, so that what cancels is gone, and has exponentials for tanh, because far out 1 -
    tanh(u)^2 is a difference of equal numbers in any precision.
    """
    if e.count_ops() > 2000:
        yield [e]
        return
    yield _factors(sympy.fraction(sympy.together(e))[0], expand=False)
    e = e.replace(sympy.tanh, lambda u: 1 - 2 / (sympy.exp(2 * u) + 1))
    yield _factors(sympy.fraction(sympy.together(e))[0], expand=True)


def _factors(e: Any, *, expand: bool) -> list[Any]:
    found: list[Any] = []
    for part in sympy.Mul.make_args(sympy.factor_terms(e)):
        base = part.base if part.is_Pow and not isinstance(part, sympy.exp) else part
        if not base.has(X) or _nonzero(base):
            continue
        if base.is_polynomial(X) and (base_poly := sympy.Poly(base, X)).domain in (sympy.ZZ, sympy.QQ):
            found += [f.as_expr() for f, _ in base_poly.factor_list()[1]]
        elif expand and (expanded := sympy.expand(base)) != base:
            found += _factors(expanded, expand=False)
        else:
            found.append(base)
    return list(dict.fromkeys(found))


def zeros_in_window(e: Any, lower: Fraction, upper: Fraction) -> list[Cell]:
    """Cells that hold every zero of a smooth expression without poles in a bounded window; Unresolved if not found."""
    failure = None
    for factoring in factorings(e):
        try:
            cells = []
            for f in factoring:
                cells += zero_cells(from_sympy(f, X), from_sympy(sympy.diff(f, X), X), lower, upper, None)
            return merged(cells)
        except Unresolved as error:
            failure = failure or error
    assert failure is not None
    raise failure


def regular(formulas: tuple[Expression, ...], end: Cut) -> bool:
    """Whether all of the formulas are finite at a cut."""
    with ctx.workprec(256):
        at = ball(end.at)
        return all(f.ball(at).is_finite() for f in formulas)


def towards(function: Any, end: Cut | None, side: int) -> Any:
    """A function of t, where t -> inf as x tends to an end of its interval (side -1 left, 1 right)."""
    if end is None:
        return function.subs(X, side * _T)
    if end.exact is None:
        raise Unsupported(f"the singularity near {end} is not known exactly")
    return function.subs(X, end.exact - side / _T)


def place(end: Cut | None, side: int, t: Fraction) -> Fraction:
    """An x such that all between it and the end lies beyond t; where the end is not rational, closer by a hair."""
    if end is None:
        return side * t
    return (end.at[1] if side > 0 else end.at[0]) - side / t


def approach(function: Any, end: Cut | None, side: int, t: Fraction, order: int = 4) -> Tail:
    """What is proved of a function between `place(end, side, t)` and the end."""
    return tail(towards(function, end, side), _T, t, order)


def settle(function: Any, end: Cut | None, side: int) -> tuple[Fraction, Fraction, int] | None:
    """(x, t, sign) such that the function has that constant sign between x and the end; None if none was proved."""
    for order in (4,) if end is None else (4, 9):
        for exponent in range(13 if end is None else 41):
            t = Fraction(2) ** exponent
            try:
                known = approach(function, end, side, t, order)
            except Undecided:
                continue
            except Unsupported:
                return None
            if known.sign or known.coefficient == 0:
                return place(end, side, t), t, known.sign
    return None
