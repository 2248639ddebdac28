"""Sparse polynomials over named variables, and programs that maximise one over a semialgebraic set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lipmodel.errors import UsageError

if TYPE_CHECKING:
    from lipmodel.certify.polynomials import Exact, Program
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.spec import Spec

Powers = tuple[str, ...]
"""The variables of a monomial in ascending order, each as often as its power; () is 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Polynomial:
    """sum_m terms[m] m with rational coefficients; numbers (floats are taken exactly) mix with polynomials.

    terms: nonzero coefficients by monomial, a sorted tuple of names: ("x", "x", "y") is x^2 y. Raises UsageError for
    what is no polynomial.
    """

    terms: Mapping[Powers, Fraction]

    @classmethod
    def variable(cls, name: str) -> Polynomial:
        """The variable of that name."""
        return cls(terms={(name,): Fraction(1)})

    @classmethod
    def number(cls, value: Any) -> Polynomial:
        """A constant."""
        return cls(terms={(): c} if (c := _rational(value)) else {})

    @classmethod
    def combination(cls, weights: Iterable[Any], parts: Iterable[Polynomial], constant: Any = 0) -> Polynomial:
        """sum_k weights_k parts_k + constant."""
        total = dict(cls.number(constant).terms)
        for weight, part in zip(weights, parts, strict=True):
            w = _rational(weight)
            for m, c in part.terms.items() if w else ():
                total[m] = total.get(m, Fraction(0)) + w * c
        return cls(terms={m: c for m, c in total.items() if c})

    @classmethod
    def from_sympy(cls, expression: Any) -> Polynomial:
        """From a sympy expression; its symbols are the variables, floats are taken exactly."""
        import sympy

        expression = sympy.sympify(expression)
        symbols = sorted(expression.free_symbols, key=lambda s: s.name)
        if not symbols:
            return cls.number(_from_sympy(expression))
        try:
            found = sympy.Poly(expression, *symbols)
            return cls(
                terms={
                    tuple(s.name for s, k in zip(symbols, powers, strict=True) for _ in range(k)): _from_sympy(c)
                    for powers, c in found.terms()
                    if c != 0
                }
            )
        except (sympy.PolynomialError, TypeError, ValueError) as error:
            raise UsageError(f"{expression} is no polynomial with rational coefficients: {error}") from None

    def to_sympy(self) -> Any:
        """The same as a sympy expression."""
        import sympy

        return sympy.Add(
            *(
                sympy.Mul(sympy.Rational(c.numerator, c.denominator), *(sympy.Symbol(name) for name in m))
                for m, c in self.terms.items()
            )
        )

    @property
    def variables(self) -> tuple[str, ...]:
        """The names that occur, sorted."""
        return tuple(sorted({name for m in self.terms for name in m}))

    @property
    def degree(self) -> int:
        return max(map(len, self.terms), default=0)

    def __call__(self, **values: Any) -> Fraction:
        """The exact value at a point."""
        point = {name: _rational(v) for name, v in values.items()}
        return sum(
            (c * math.prod((point[i] for i in m), start=Fraction(1)) for m, c in self.terms.items()), Fraction(0)
        )

    def __add__(self, other: Any) -> Polynomial:
        return Polynomial.combination((1, 1), (self, _polynomial(other)))

    __radd__ = __add__

    def __neg__(self) -> Polynomial:
        return Polynomial.combination((-1,), (self,))

    def __sub__(self, other: Any) -> Polynomial:
        return Polynomial.combination((1, -1), (self, _polynomial(other)))

    def __rsub__(self, other: Any) -> Polynomial:
        return _polynomial(other) - self

    def __mul__(self, other: Any) -> Polynomial:
        total: dict[Powers, Fraction] = {}
        for n, w in _polynomial(other).terms.items():
            for m, v in self.terms.items():
                key = tuple(sorted(m + n)) if m and n else m or n
                total[key] = total.get(key, Fraction(0)) + v * w
        return Polynomial(terms={m: c for m, c in total.items() if c})

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Polynomial:
        if not (d := _rational(divisor)):
            raise UsageError("a polynomial is divided by zero")
        return self * (1 / d)

    def __pow__(self, power: int) -> Polynomial:
        if not isinstance(power, int) or power < 0:
            raise UsageError(f"a polynomial to the power {power!r}")
        result = Polynomial.number(1)
        for _ in range(power):
            result = result * self
        return result

    def __str__(self) -> str:
        ordered = sorted(self.terms.items(), key=lambda item: (len(item[0]), item[0]))
        return " + ".join(f"{c} {'*'.join(m)}".strip() for m, c in ordered) or "0"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolynomialProgram:
    """Maximise a polynomial over a box and a semialgebraic set: nonnegative >= 0 and zero = 0 entrywise.

    ranges: a finite interval for every variable. vertices: variables in whose interval the objective is affine and that
    occur in no constraint, so that only the two ends matter. boxes: whether the ranges of the others are constraints
    that a proof may use, beside what they say about leftovers. blur: what the objective that is meant may be larger by
    than the one stated. Raises UsageError where this does not fit together.
    """

    objective: Polynomial
    ranges: Mapping[str, tuple[Any, Any]]
    nonnegative: Sequence[Polynomial] = ()
    zero: Sequence[Polynomial] = ()
    vertices: frozenset[str] = field(default_factory=frozenset)
    boxes: bool = True
    blur: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        parts = (self.objective, *self.nonnegative, *self.zero)
        if not all(isinstance(part, Polynomial) for part in parts):
            raise UsageError("a program is made of polynomials: make variables with lm.Polynomial.variable(name)")
        missing = {name for part in parts for name in part.variables} - set(self.ranges)
        if missing:
            raise UsageError(f"no range for {', '.join(sorted(missing))}: every variable needs a finite interval")
        for name, (low, high) in self.ranges.items():
            if not _rational(low) <= _rational(high):
                raise UsageError(f"the range of {name} is empty: [{low}, {high}]")
        held = {name for part in (*self.nonnegative, *self.zero) for name in part.variables}
        bent = {name for m in self.objective.terms for name in set(m) if m.count(name) > 1}
        wrong = self.vertices - set(self.ranges) | self.vertices & (held | bent)
        if wrong:
            raise UsageError(f"more than the ends of the range of {', '.join(sorted(wrong))} matter")

    @property
    def variables(self) -> tuple[str, ...]:
        """All variables in the order of the proofs."""
        return tuple(self.ranges)

    def verify(self, proof: Mapping[str, Any]) -> float:
        """The bound of the maximum that a proof states, if it proves it, in exact arithmetic. Raises Refuted."""
        from lipmodel.certify.kernel import Rejected
        from lipmodel.certify.polynomials import RULES, decide
        from lipmodel.errors import Refuted

        if not isinstance(proof, Mapping) or proof.get("rule") not in RULES:
            raise Refuted("a proof about a polynomial is a mapping with one of the rules " + ", ".join(RULES))
        try:
            return decide(self.normalised(), proof)
        except Rejected as reason:
            raise Refuted(str(reason)) from None

    def normalised(self) -> Program:
        """The same with variables in [-1, 1], by number, in integers; the squares of the ranges are constraints."""
        from lipmodel.certify.polynomials import Exact, Program

        at = {name: k for k, name in enumerate(self.variables)}
        new = {}
        for name, (low, high) in self.ranges.items():
            a, b = _rational(low), _rational(high)
            new[at[name]] = ((a + b) / 2, (b - a) / 2)
        changed = [_substituted(part, at, new) for part in (self.objective, *self.nonnegative, *self.zero)]
        boxes = [Exact(terms={(): 1, (k, k): -1}) for name, k in at.items() if self.boxes and name not in self.vertices]
        count = 1 + len(self.nonnegative)
        return Program(
            size=len(at),
            objective=changed[0],
            signs=frozenset(at[name] for name in self.vertices),
            nonnegative=(*map(_unscaled, changed[1:count]), *boxes),
            zero=tuple(map(_unscaled, changed[count:])),
            blur=self.blur,
        )


def network_polynomials(system: IncrementSystem, spec: Spec) -> PolynomialProgram:
    """The polynomial of the gradient of a network with its set, whose maximum bounds L_{p->q} (the formal constant).

    Variables: t0, t1, .. in the input ball, s1_0, .. the slopes of activation 1 mapped to [-1, 1], and u0, .. in the
    dual output ball where there are several outputs. Raises UsageError for activations on vectors, for p = 1 (q = inf)
    with several inputs (outputs) and for polynomials that are too large.

    Source: Latorre, Rolland & Cevher 2020, arXiv 2004.08688.
    """
    program, names = network_program(system, spec)
    return PolynomialProgram(
        objective=_named(program.objective, names),
        ranges=dict.fromkeys(names, (-1, 1)),
        zero=[_named(h, names) for h in program.zero],
        vertices=frozenset(names[i] for i in program.signs),
        boxes=False,
        blur=program.blur,
    )


def network_program(system: IncrementSystem, spec: Spec) -> tuple[Program, list[str]]:
    """`network_polynomials` in integers, and the names of its variables."""
    from lipmodel.certify.kernel import Rejected
    from lipmodel.certify.polynomials import gradient_program, layout
    from lipmodel.network.increments import exact_system

    exact = exact_system(system)
    try:
        program = gradient_program(exact, *spec.norms)
    except Rejected as reason:
        raise UsageError(f"{reason}: this network is out of reach of polynomial optimisation") from None
    where = layout(exact.sizes, system.output.size)
    names = [f"t{k}" for k in range(len(where.inputs))]
    names += [f"s{layer}_{k}" for layer, slopes in enumerate(where.slopes, start=1) for k in range(len(slopes))]
    return program, names + [f"u{k}" for k in range(len(where.outputs))]


def _named(exact: Exact, names: Sequence[str]) -> Polynomial:
    terms = {tuple(sorted(names[i] for i in m)): Fraction(c, exact.unit) for m, c in exact.terms.items()}
    return Polynomial(terms=terms)


def _substituted(part: Polynomial, at: Mapping[str, int], new: Mapping[int, tuple[Fraction, Fraction]]) -> Exact:
    """The polynomial in the new variables, x = middle + radius * x', as integers over one denominator."""
    from lipmodel.certify.polynomials import Exact

    total: dict[tuple[int, ...], Fraction] = {}
    for powers, c in part.terms.items():
        expanded: list[tuple[tuple[int, ...], Fraction]] = [((), c)]
        for k in sorted(at[name] for name in powers):
            middle, radius = new[k]
            kept = [(m, v * middle) for m, v in expanded] if middle else []
            expanded = kept + [((*m, k), v * radius) for m, v in expanded]
        for m, v in expanded:
            total[m] = total.get(m, Fraction(0)) + v
    unit = math.lcm(*(v.denominator for v in total.values()))
    return Exact(terms={m: int(v * unit) for m, v in total.items() if v}, unit=unit)


def _unscaled(part: Exact) -> Exact:
    """A constraint with coefficients of about one: scaling by a positive number changes nothing."""
    from lipmodel.certify.polynomials import Exact

    return Exact(terms=part.terms, unit=1 << (max(map(abs, part.terms.values()), default=1).bit_length() - 1))


def _polynomial(value: Any) -> Polynomial:
    return value if isinstance(value, Polynomial) else Polynomial.number(value)


def _rational(value: Any) -> Fraction:
    try:
        return value if isinstance(value, Fraction) else Fraction(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{value!r} is no finite number") from None


def _from_sympy(value: Any) -> Fraction:
    if value.is_Float:
        return Fraction(float(value))
    if value.is_Rational:
        return Fraction(int(value.p), int(value.q))
    raise TypeError(f"{value} is no rational number")
