"""The contract of terms, as one check for all of them, and random terms to run it on.

@pytest.mark.parametrize("term", random_terms(0), ids=str)
def test_my_term(term): check_term(term)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.model.forms import LinearForm, Signal, add_forms, apply
from lipmodel.model.qc import slope_restricted
from lipmodel.model.terms import Coefficients, Congruence, Factored, Term, Triplets
from lipmodel.model.variables import Expression, Variable
from lipmodel.network.linear import Dense, Diagonal, LinearMap, Selection, Sparse, compose, total
from lipmodel.testing.networks import random_system

Array = np.ndarray[Any, Any]
Point = Mapping[Signal, Array]
Values = Mapping[Variable, Array]


def check_term(term: Term, seed: int = 0) -> None:
    """Whether all methods of a term speak of the same quadratic form. Raises AssertionError.

    `value` is what the others are compared with: it must be quadratic in the signals and affine in the variables.
    """
    rng = np.random.default_rng(seed)
    point = {s: rng.standard_normal(s.size) for s in term.signals}
    values = {v: rng.standard_normal(v.size) for v in term.variables}
    value = term.value(values, point)
    _close(term.value(values, {s: 2.0 * z for s, z in point.items()}), 4.0 * value, "value is quadratic in the signals")
    zero, twice = ({v: c * y for v, y in values.items()} for c in (0.0, 2.0))
    affine = 2.0 * value - term.value(zero, point)
    _close(term.value(twice, point), affine, "value is affine in the variables")
    assert isinstance(term.exact, bool), "exact is True or False"
    _check_pattern(term)
    _check_triplets(term, values, point, value)
    _check_adjoint(term, values, point, value, rng)
    _check_split(term, values, point, value)
    _close(term.scaled(-0.75).value(values, point), -0.75 * value, "scaled multiplies the value")
    _check_substitute(term, values, point, value, rng)
    _check_rescaled(term, values, point, value, rng)


def _check_pattern(term: Term) -> None:
    signals = set(term.signals)
    assert len(signals) == len(term.signals), "every signal is named once"
    pairs = term.pattern()
    assert all({a, b} <= signals for a, b in pairs), "the pattern is about the term's signals"
    assert len({frozenset(pair) for pair in pairs}) == len(pairs), "a pair occurs in one order only"


def _check_triplets(term: Term, values: Values, point: Point, value: float) -> None:
    pairs = term.pattern()
    for t in term.triplets():
        a, b = t.block
        assert t.block in pairs, "triplets stay inside the pattern"
        assert len(t.row) == len(t.col) == len(t.index) == len(t.value), "triplets have one length"
        assert np.all((t.row >= 0) & (t.row < a.size) & (t.col >= 0) & (t.col < b.size)), "entries lie in their block"
        assert a is not b or np.all(t.row >= t.col), "a diagonal block is listed by its lower triangle"
        if t.variable is None:
            assert np.all(t.index == -1), "constants have the index -1"
        else:
            assert t.variable in term.variables, "coefficients belong to the term's variables"
            assert np.all((t.index >= 0) & (t.index < t.variable.size)), (
                "coefficients belong to entries of the variable"
            )
    order, offsets = _offsets(term.signals)
    z = np.concatenate([point[s] for s in term.signals]) if order else np.zeros(0)
    _close(float(z @ _matrix(term, values, offsets, order) @ z), value, "triplets give the value")


def _check_adjoint(term: Term, values: Values, point: Point, value: float, rng: np.random.Generator) -> None:
    rank_one = {(a, b): np.outer(point[a], point[b]) for a in term.signals for b in term.signals}
    _close(_paired(term, values, rank_one), value, "the adjoint at z z' gives the value")
    order, offsets = _offsets(term.signals)
    factor = rng.standard_normal((order, 2))
    y = factor @ factor.T
    spans = {s: slice(at, at + s.size) for s, at in offsets.items()}
    signals = term.signals
    halves = {(a, b): y[spans[a], spans[b]] for i, a in enumerate(signals) for b in signals[i:]}
    expected = float(np.sum(y * _matrix(term, values, offsets, order)))
    _close(_paired(term, values, halves), expected, "the adjoint is the transpose of the triplets")


def _paired(term: Term, values: Values, moments: Mapping[tuple[Signal, Signal], Array]) -> float:
    gradient, constant = term.adjoint(moments)
    assert set(gradient) <= set(term.variables), "the adjoint is about the term's variables"
    return constant + sum(float(gradient[v] @ values[v]) for v in gradient)


def _check_split(term: Term, values: Values, point: Point, value: float) -> None:
    parts = term.split()
    pairs = {frozenset(pair) for pair in term.pattern()}
    for part in parts:
        own = {frozenset(pair) for pair in part.pattern()}
        assert len(own) <= 1, "a part touches one pair of signals"
        assert own <= pairs, "a part stays inside the pattern"
    _close(sum(part.value(values, point) for part in parts), value, "the parts add up to the term")


def _check_substitute(term: Term, values: Values, point: Point, value: float, rng: np.random.Generator) -> None:
    stranger = Signal(name="stranger", size=2)
    unchanged = term.substitute({stranger: LinearForm.of(stranger) * 3.0})
    _close(unchanged.value(values, point), value, "other signals do not matter")
    for signal in term.signals:
        new = [Signal(name=f"new{k}", size=2) for k in range(2)]
        form = add_forms([rng.standard_normal((signal.size, 2)) @ LinearForm.of(s) for s in new])
        moved = {**{s: z for s, z in point.items() if s is not signal}, **{s: rng.standard_normal(2) for s in new}}
        replaced = term.substitute({signal: form})
        assert signal not in replaced.signals, "a replaced signal is gone"
        expected = term.value(values, {**moved, signal: form.value(moved)})
        _close(replaced.value(values, moved), expected, "substitute replaces a signal")
        assert replaced.rule is term.rule, "a rule stays what it is in other signals"
        order, offsets = _offsets(replaced.signals)
        z = np.concatenate([moved[s] for s in replaced.signals]) if order else np.zeros(0)
        assembled = _matrix(replaced, values, offsets, order)
        _close(float(z @ assembled @ z), expected, "triplets follow a substitution")


def _check_rescaled(term: Term, values: Values, point: Point, value: float, rng: np.random.Generator) -> None:
    factors = {v: 2.0 ** rng.integers(-3, 4, size=v.size) for v in term.variables}
    once = term.rescaled(factors)
    smaller = {v: values[v] / factors[v] for v in term.variables}
    _close(once.value(smaller, point), value, "rescaled changes the variables")
    _close(once.rescaled(factors).value({v: smaller[v] / factors[v] for v in smaller}, point), value, "twice as well")
    order, offsets = _offsets(term.signals)
    z = np.concatenate([point[s] for s in term.signals]) if order else np.zeros(0)
    _close(float(z @ _matrix(once, smaller, offsets, order) @ z), value, "triplets follow a change of variables")
    rank_one = {(a, b): np.outer(point[a], point[b]) for a in term.signals for b in term.signals}
    _close(_paired(once, smaller, rank_one), value, "the adjoint follows a change of variables")


def _offsets(signals: Sequence[Signal]) -> tuple[int, dict[Signal, int]]:
    offsets, start = {}, 0
    for s in signals:
        offsets[s] = start
        start += s.size
    return start, offsets


def _matrix(term: Term, values: Values, offsets: Mapping[Signal, int], order: int) -> Array:
    """The symmetric matrix of the term at some values of the variables, from its triplets."""
    lower = np.zeros((order, order))
    for t in term.triplets():
        weight = t.value if t.variable is None else t.value * values[t.variable][t.index]
        np.add.at(lower, (offsets[t.block[0]] + t.row, offsets[t.block[1]] + t.col), weight)
    return lower + lower.T - np.diag(np.diag(lower))


def _close(found: float, expected: float, what: str) -> None:
    assert abs(found - expected) <= 1e-9 * (1.0 + abs(expected)), f"{what}: {found!r} instead of {expected!r}"


def random_terms(seed: int) -> list[Term]:
    """Terms of every kind, with maps of every kind in them and weights with and without constants."""
    rng = np.random.default_rng(seed)
    a, b, c = (Signal(name=name, size=size) for name, size in (("a", 3), ("b", 4), ("c", 2)))
    t = Variable(name="t", size=5, nonnegative=True)
    u = Variable(name="u", size=2)
    x = Variable(name="X", size=6, order=3)
    many = Expression(size=5, coefficients={t: _sparse(rng, 5, 5), u: _sparse(rng, 5, 2)}, constant=rng.normal(size=5))
    plain = LinearForm.of(a)
    wide = _form(rng, 5, (a, b, c))
    other = _form(rng, 5, (b, a))
    terms: list[Term] = [
        Factored(weight=many, left=wide, right=other),
        Factored(weight=many, left=wide, right=wide),
        Factored(weight=Expression.of(t), left=_form(rng, 5, (a,)), right=_form(rng, 5, (b,))),
        Factored(weight=Expression.number(-2.0, 3), left=plain, right=_form(rng, 3, (a, c))),
        Factored(weight=Expression.of(u)[:1].spread(3), left=plain, right=plain),
        Factored(weight=Expression.number(0.0, 5), left=wide, right=other),
        Factored(weight=many, left=LinearForm(size=5, blocks={}), right=other),
        Congruence(form=_form(rng, 3, (a, b)), matrix=x),
        Congruence(form=LinearForm.of(a), matrix=x, scale=-0.5),
        Congruence(form=_form(rng, 3, (c,)), matrix=x, weights=rng.uniform(0.5, 2.0, size=6)),
        Coefficients(entries=tuple(Factored(weight=many, left=wide, right=other).triplets())),
        Coefficients(entries=(_entries(rng, (a, a), u), _entries(rng, (a, b), None))),
    ]
    for activation in random_system("skips", seed).activations:
        multiplier = Variable(name="m", size=activation.size, nonnegative=True)
        terms.extend(slope_restricted(activation, multiplier).terms)
    return terms


def _form(rng: np.random.Generator, size: int, signals: Sequence[Signal]) -> LinearForm:
    return add_forms([apply(_map(rng, size, s.size), LinearForm.of(s)) for s in signals])


def _map(rng: np.random.Generator, m: int, n: int) -> LinearMap:
    """A map of a random kind."""
    dense = Dense(weights=rng.standard_normal((m, n)))
    kind = rng.integers(5)
    if kind == 0:
        return Sparse(weights=_sparse(rng, m, n))
    if kind == 1:
        return Selection(index=rng.integers(-1, n, size=m), size=n)
    if kind == 2:
        return compose(Diagonal(values=rng.standard_normal(m)), dense)
    if kind == 3:
        return total([dense, compose(dense, Selection(index=rng.permutation(n), size=n))])
    return dense


def _sparse(rng: np.random.Generator, m: int, n: int) -> Any:
    return sp.csr_array(rng.standard_normal((m, n)) * (rng.random((m, n)) < 0.5))


def _entries(rng: np.random.Generator, block: tuple[Signal, Signal], variable: Variable | None) -> Triplets:
    a, b = block
    row, col = rng.integers(a.size, size=4), rng.integers(b.size, size=4)
    if a is b:
        row, col = np.maximum(row, col), np.minimum(row, col)
    index = np.full(4, -1) if variable is None else rng.integers(variable.size, size=4)
    return Triplets(block=block, row=row, col=col, variable=variable, index=index, value=rng.standard_normal(4))
