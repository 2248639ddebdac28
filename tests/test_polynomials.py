"""Polynomials and programs, the polynomial of a gradient, and the three rules of proof, against brute force."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lipmodel as lm
from lipmodel.certify import cube_maximum
from lipmodel.certify.cube_maximum import maximum_over_signs
from lipmodel.certify.kernel import Rejected
from lipmodel.certify.polynomials import (
    Exact,
    Program,
    decide,
    gradient_program,
    krivine_bound,
    layout,
    predicted_monomials,
    sos_bound,
)
from lipmodel.model.forms import LinearForm, Signal, apply
from lipmodel.network.increments import SlopeRestricted, chain_of, exact_system, float_system
from lipmodel.network.linear import Dense
from lipmodel.relaxations.sparsity import chordal_cliques, coupling_graph, variable_cliques
from lipmodel.testing.networks import KINDS, formal_constant, random_system

NAMES = ("x", "y", "z")
numbers = st.fractions(min_value=-4, max_value=4, max_denominator=8)
polynomials = st.dictionaries(
    st.lists(st.sampled_from(NAMES), max_size=3).map(lambda m: tuple(sorted(m))), numbers.filter(bool), max_size=5
).map(lambda terms: lm.Polynomial(terms=terms))
points = st.fixed_dictionaries(dict.fromkeys(NAMES, numbers))


def value(exact: Exact, point) -> Fraction:
    total = Fraction(0)
    for m, c in exact.terms.items():
        product = Fraction(c, exact.unit)
        for i in m:
            product *= point[i]
        total += product
    return total


def eliminated(exact: Exact, order) -> Fraction:
    return Fraction(maximum_over_signs(exact.terms, list(order)), exact.unit)


def largest(exact: Exact, size: int) -> Fraction:
    """The maximum over all signs."""
    return max(value(exact, x) for x in itertools.product((-1, 1), repeat=size))


# ------------------------------------------------------------------------------------------------------- polynomials


@given(polynomials, polynomials, points)
@settings(max_examples=60, deadline=None)
def test_arithmetic_is_that_of_values(a, b, point):
    at = {name: point[name] for name in NAMES}
    assert (a + b)(**at) == a(**at) + b(**at)
    assert (a - 2 * b)(**at) == a(**at) - 2 * b(**at)
    assert (a * b)(**at) == a(**at) * b(**at)
    assert (a**2 / 3)(**at) == a(**at) ** 2 / 3
    assert (1 - a)(**at) == 1 - a(**at)


@given(polynomials)
@settings(max_examples=40, deadline=None)
def test_sympy_and_back(a):
    assert lm.Polynomial.from_sympy(a.to_sympy()).terms == a.terms


def test_floats_are_taken_exactly():
    x = lm.Polynomial.variable("x")
    assert (0.1 * x + np.float32(0.1)).terms == {("x",): Fraction(0.1), (): Fraction(float(np.float32(0.1)))}
    assert lm.Polynomial.from_sympy("x/3 + 2").terms == {("x",): Fraction(1, 3), (): Fraction(2)}
    assert str(x**2 - 1) == "-1 + 1 x*x"
    assert (x - x).terms == {}


def test_what_is_no_polynomial():
    x = lm.Polynomial.variable("x")
    for wrong in (lambda: x + "a", lambda: x * float("nan"), lambda: x / 0, lambda: x**-1, lambda: x + np.inf):
        with pytest.raises(lm.UsageError):
            wrong()
    for text in ("sin(x)", "1/x", "sqrt(2)*x", "pi"):
        with pytest.raises((lm.UsageError, TypeError)):
            lm.Polynomial.from_sympy(text)


def test_programs_that_do_not_fit_together():
    x, y = map(lm.Polynomial.variable, "xy")
    for changes, message in (
        ({"ranges": {"x": (0, 1)}}, "no range for y"),
        ({"ranges": {"x": (0, 1), "y": (1, 0)}}, "empty"),
        ({"ranges": {"x": (0, 1), "y": (0, float("inf"))}}, "no finite number"),
        ({"vertices": frozenset("x")}, "more than the ends"),
        ({"vertices": frozenset("y"), "zero": [y - 1]}, "more than the ends"),
        ({"vertices": frozenset("w")}, "more than the ends"),
        ({"objective": 3}, "made of polynomials"),
    ):
        stated = {"objective": x**2 * y, "ranges": {"x": (0, 1), "y": (0, 1)}, **changes}
        with pytest.raises(lm.UsageError, match=message):
            lm.PolynomialProgram(**stated)


@given(polynomials, polynomials, st.lists(numbers, min_size=6, max_size=6), points)
@settings(max_examples=60, deadline=None)
def test_normalising_is_a_change_of_variables(a, b, ends, point):
    ranges = {n: (min(p), max(p)) for n, p in zip(NAMES, zip(ends[:3], ends[3:], strict=True), strict=True)}
    program = lm.PolynomialProgram(objective=a, ranges=ranges, nonnegative=[b]).normalised()
    old = {n: (lo + hi) / 2 + (hi - lo) / 2 * point[n] for n, (lo, hi) in ranges.items()}
    new = [point[n] for n in NAMES]
    assert value(program.objective, new) == a(**old)
    scaled = value(program.nonnegative[0], new)
    assert (scaled > 0) == (b(**old) > 0)
    assert (scaled == 0) == (b(**old) == 0)
    assert [value(g, new) for g in program.nonnegative[1:]] == [1 - v * v for v in new]


# --------------------------------------------------------------------------------------------- the gradient of networks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "q"), [("inf", "1"), ("2", "2"), ("inf", "2")])
def test_the_gradient_is_that_of_the_network(kind, p, q):
    """At random slopes its value is u'J t, with J multiplied out in floating point."""
    system = random_system(kind, 3)
    program, rng = gradient_program(exact_system(system), p, q), np.random.default_rng(1)
    where = layout([s.size for s in system.signals], system.output.size)
    for _ in range(3):
        x = rng.uniform(-1.0, 1.0, program.size)
        found = float(value(program.objective, [Fraction(v) for v in x]))
        t, u = x[list(where.inputs)], x[list(where.outputs)]
        values = [t]
        at, dense = system.positions(), float_system(system)
        for k, a in enumerate(system.activations):
            middle, radius = (a.alpha + a.beta) / 2, (a.beta - a.alpha) / 2
            s = middle + radius * x[list(where.slopes[k])]
            v = sum(np.asarray(dense.pre[k][at[j]].center) @ values[at[j]] for j in a.pre.blocks)
            values.append(s * v)
        y = sum(np.asarray(dense.output[at[j]].center) @ values[at[j]] for j in system.output.blocks)
        assert found == pytest.approx(float(u @ y), rel=1e-9, abs=1e-12 * float(np.abs(y).sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_its_maximum_over_signs_is_the_formal_constant(kind):
    system = random_system(kind, 5, inputs=2)
    program = gradient_program(exact_system(system), "inf", "1")
    found = float(eliminated(program.objective, variable_cliques(program, "correlative").order))
    assert found == pytest.approx(formal_constant(system, "inf", "1"), rel=1e-12)
    assert len(program.objective.terms) <= predicted_monomials(exact_system(system))


def test_named_as_documented():
    program = lm.network_polynomials(random_system("chain", 0), lm.Spec(input_norm="2", output_norm="1"))
    assert program.variables[:3] == ("t0", "t1", "t2")
    assert {"s1_0", "s2_0", "s3_0", "u0", "u1"} <= set(program.variables)
    assert not program.vertices & {"t0", "t1", "t2"}
    assert {"u0", "s1_0"} <= program.vertices


def test_errors_of_weights_are_charged():
    """Every network inside the radii is below the bound, and the largest one reaches it."""
    rng = np.random.default_rng(4)
    first, last, r = np.abs(rng.standard_normal((3, 2))), np.abs(rng.standard_normal((1, 3))), 0.25
    x = Signal(name="x", size=2)
    w = Signal(name="w", size=3)
    pre = apply(Dense(weights=first, radius=np.full((3, 2), r)), LinearForm.of(x))
    activation = SlopeRestricted(
        name="a", signal=w, pre=pre, post=LinearForm.of(w), alpha=np.full(3, -0.5), beta=np.full(3, 1.0)
    )
    blurred = lm.IncrementSystem(
        signals=(x, w),
        input=LinearForm.of(x, role="input"),
        activations=(activation,),
        output=apply(Dense(weights=last, radius=np.full((1, 3), r)), LinearForm.of(w)),
    )
    program = gradient_program(exact_system(blurred), "inf", "1")
    proof = {"rule": "elimination", "order": list(range(program.size))}
    bound = float(eliminated(program.objective, range(program.size)) + program.blur)
    assert decide(program, {**proof, "bound": math.nextafter(bound, math.inf).hex()}) >= bound
    with pytest.raises(Rejected):
        decide(program, {**proof, "bound": (bound * (1 - 1e-12)).hex()})
    for signs in itertools.product((-r, r), repeat=9):
        near = chain_of([first + np.reshape(signs[:6], (3, 2)), last + np.reshape(signs[6:], (1, 3))], -0.5, 1.0)
        assert formal_constant(near, "inf", "1") <= bound * (1 + 1e-12)
    assert bound == pytest.approx(float(((last + r) @ (first + r)).sum()), rel=1e-12)


def test_what_has_no_gradient_polynomial():
    system = chain_of([np.ones((2, 2)), np.ones((2, 2))])
    for norms in (("1", "1"), ("inf", "inf")):
        with pytest.raises(lm.UsageError, match="several inputs or outputs"):
            lm.network_polynomials(system, lm.Spec(input_norm=norms[0], output_norm=norms[1]))
    deep = chain_of([np.ones((30, 30))] * 6)
    with pytest.raises(lm.UsageError, match="monomials, more than"):
        lm.network_polynomials(deep, lm.Spec(input_norm="inf", output_norm="1"))


# ---------------------------------------------------------------------------------------------------------- the rules

multilinear = st.dictionaries(
    st.sets(st.integers(0, 5), max_size=4).map(lambda s: tuple(sorted(s))), st.integers(-1000, 1000).filter(bool)
)


def cube(terms, unit=1) -> Program:
    return Program(size=6, objective=Exact(terms=terms, unit=unit), signs=frozenset(range(6)))


@given(multilinear, st.permutations(range(6)))
@settings(max_examples=80, deadline=None)
def test_elimination_finds_the_maximum(terms, order):
    exact = Exact(terms=terms, unit=7)
    assert eliminated(exact, order) == largest(exact, 6)


@given(multilinear, st.permutations(range(6)), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_elimination_by_cases(terms, order, width):
    """Tables of a few variables only: the others are fixed, and all their signs tried."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cube_maximum, "TABLE_WIDTH", width)
        fixed, rest, _ = cube_maximum.plan(terms, order)
        assert sorted([*fixed, *rest]) == list(range(6))
        assert eliminated(Exact(terms=terms), order) == largest(Exact(terms=terms), 6)


@given(multilinear, st.integers(50, 300))
@settings(max_examples=40, deadline=None)
def test_elimination_rounds_up(terms, bits):
    """Coefficients that do not fit 64 bits."""
    exact = Exact(terms={m: c * 3**bits + 1 for m, c in terms.items()}, unit=3**bits)
    found, true = eliminated(exact, range(6)), largest(exact, 6)
    assert true <= found <= true + Fraction(sum(map(abs, terms.values())), 2**50)


def test_elimination_of_what_is_no_cube():
    square = Program(size=1, objective=Exact(terms={(0, 0): -1, (0,): 1}), signs=frozenset({0}))
    for program in (square, Program(size=1, objective=Exact(terms={(0,): 1}))):
        with pytest.raises(Rejected):
            decide(program, {"rule": "elimination", "order": [0], "bound": (1.0).hex()})
    wide = Exact(terms={tuple(range(40)): 1})
    with pytest.raises(Rejected, match="tables of"):
        eliminated(wide, range(40))
    with pytest.raises(Rejected, match="not every variable"):
        eliminated(wide, range(20))
    for order in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 4, 6]):
        with pytest.raises(Rejected, match="order"):
            decide(cube({(0,): 1}), {"rule": "elimination", "order": order, "bound": (1.0).hex()})


signed = st.sets(st.integers(0, 5), max_size=4).flatmap(
    lambda s: st.tuples(*(st.sampled_from((i + 1, -i - 1)) for i in sorted(s))).map(list)
)


@given(multilinear, st.lists(st.tuples(signed, st.integers(0, 1000)), max_size=8), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_any_products_with_weights_give_a_bound(terms, listed, exponent):
    """Whatever the weights are: what the identity leaves over is charged."""
    program = cube(terms, 3)
    proof = {"products": [p for p, _ in listed], "weights": [w for _, w in listed], "exponent": exponent}
    assert krivine_bound(program, proof) >= largest(program.objective, 6)


def gram_block(rng, basis, constraint=None, shift=20):
    n = len(basis)
    root = rng.integers(-9, 10, (n, n))
    gram = (root @ root.T) * (1 << shift) + np.eye(n, dtype=int)
    return {"constraint": constraint, "basis": basis, "gram": gram[np.tril_indices(n)].tolist(), "exponent": shift + 3}


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_any_squares_give_a_bound(seed):
    """On the square with a disc in it: sums of squares, times constraints, and free multiples of an equality."""
    rng = np.random.default_rng(seed)
    listed = [(), (0,), (1,), (0, 0), (0, 1), (1, 2), (0, 1, 2)]
    objective = Exact(terms={m: int(rng.integers(-50, 50)) for m in listed}, unit=8)
    disc = Exact(terms={(): 1, (0, 0): -1, (1, 1): -1})
    line = Exact(terms={(1,): 1, (2,): -2})
    program = Program(size=4, objective=objective, signs=frozenset({3}), nonnegative=(disc,), zero=(line,))
    blocks = [gram_block(rng, [[], [0], [2, 3]]), gram_block(rng, [[], [3]], 0)]
    free = {"constraint": 0, "monomials": [[], [0]], "coefficients": rng.integers(-9, 9, 2).tolist(), "exponent": 1}
    bound = sos_bound(program, {"blocks": blocks, "equalities": [free]})
    for angle in rng.uniform(0, 2 * np.pi, 50):
        z = Fraction(float(np.sin(angle) / 2) * 0.999)
        x = Fraction(float(np.cos(angle)) * 0.999)
        assert value(objective, (x, 2 * z, z, 1)) <= bound


def test_squares_of_signs_are_one():
    program = Program(size=2, objective=Exact(terms={(0, 1): 2}), signs=frozenset({0, 1}))
    gram = {"constraint": None, "basis": [[0], [1]], "gram": [1, -1, 1], "exponent": 0}
    with pytest.raises(Rejected, match="semidefinite"):  # singular: too close to call
        sos_bound(program, {"blocks": [gram], "equalities": []})
    gram["gram"], gram["exponent"] = [(1 << 20) + 1, -(1 << 20), (1 << 20) + 1], 20
    assert sos_bound(program, {"blocks": [gram], "equalities": []}) == 2 + Fraction(2, 1 << 20)


def forged(rule, **data):
    return {"rule": rule, **data, "bound": (0.5).hex()}


def test_forgeries_of_a_bound_below_the_maximum():
    """max x = 1 on [-1, 1]; each of these would prove 1/2 if one check were missing."""
    line = Program(size=2, objective=Exact(terms={(0,): 1}), signs=frozenset({0, 1}))
    square = {"constraint": None, "exponent": 0}
    minus = {**square, "basis": [[]], "gram": [-1]}
    indefinite = {**square, "basis": [[], [0]], "gram": [0, -1, 1]}
    for proof in (
        forged("krivine", products=[[1]], weights=[-1], exponent=0),  # x - (1 + x) = -1
        forged("krivine", products=[[]], weights=[-1], exponent=0),
        forged("krivine", products=[], weights=[], exponent=0),  # the rest not charged
        forged("sos", blocks=[], equalities=[]),
        forged("sos", blocks=[minus], equalities=[]),
        forged("sos", blocks=[indefinite], equalities=[]),
        forged("elimination", order=[0, 1]),
    ):
        with pytest.raises(Rejected):
            decide(line, proof)
    falling = Program(size=2, objective=Exact(terms={(0,): -1}), signs=frozenset({0, 1}))
    for proof in (
        forged("krivine", products=[], weights=[], exponent=0),
        forged("sos", blocks=[], equalities=[]),
    ):
        with pytest.raises(Rejected):
            decide(falling, proof)
    # max x^2 - y^2 = 1; what is a sign is decided by the program
    bent = Program(size=2, objective=Exact(terms={(0, 0): 1, (1, 1): -1}))
    tied = {**square, "basis": [[0], [1]], "gram": [1, -2, 4]}
    for proof in (
        forged("sos", blocks=[tied], equalities=[]),
        forged("sos", blocks=[], equalities=[{"constraint": 0, "monomials": [[]], "coefficients": [1], "exponent": 0}]),
        forged("elimination", order=[0, 1]),
        forged("krivine", products=[[1, -1]], weights=[1], exponent=0),
    ):
        with pytest.raises(Rejected):
            decide(bent, proof)
    # max x + y = sqrt 2 on the circle, whose variables are no signs
    circle = Exact(terms={(): 1, (0, 0): -1, (1, 1): -1})
    disc = Program(size=2, objective=Exact(terms={(0,): 1, (1,): 1}), zero=(circle,))
    twice = {"constraint": 0, "monomials": [[], []], "coefficients": [1, -1], "exponent": 0}
    for proof in (forged("sos", blocks=[], equalities=[twice]), forged("elimination", order=[0, 1])):
        with pytest.raises(Rejected):
            decide(disc, proof)


def test_spheres_are_no_cubes():
    """The l2 ball's variables keep their squares, and a sphere is an equation."""
    system = exact_system(chain_of([np.ones((2, 2)), np.ones((2, 2))]))
    program = gradient_program(system, "2", "2")
    assert program.signs == frozenset({2, 3})
    assert [sorted(h.terms.items()) for h in program.zero] == [
        [((), 1), ((0, 0), -1), ((1, 1), -1)],
        [((), 1), ((4, 4), -1), ((5, 5), -1)],
    ]
    single = exact_system(chain_of([np.ones((2, 1)), np.ones((1, 2))]))
    assert gradient_program(single, "2", "2").signs == frozenset(range(3))


def test_malformed_proofs_are_refused():
    program = lm.PolynomialProgram(
        objective=lm.Polynomial.variable("x") ** 2, ranges={"x": (-1, 1)}, nonnegative=[lm.Polynomial.variable("x")]
    )
    good = lm.SumOfSquares(program=program).bound().proof
    assert program.verify(good) >= 1.0
    block = good["blocks"][0]
    for wrong in (
        {},
        {**good, "rule": "magic"},
        {**good, "more": 1},
        {k: v for k, v in good.items() if k != "equalities"},
        {**good, "bound": 1.5},
        {**good, "bound": "nan"},
        {**good, "blocks": None},
        {**good, "blocks": [{**block, "constraint": 7}]},
        {**good, "blocks": [{**block, "constraint": -1}]},
        {**good, "blocks": [{**block, "constraint": True}]},
        {**good, "blocks": [{**block, "gram": block["gram"][:-1]}]},
        {**good, "blocks": [{**block, "gram": [*block["gram"][:-1], 1.5]}]},
        {**good, "blocks": [{**block, "gram": [-abs(v) - 1 for v in block["gram"]]}]},
        {**good, "blocks": [{**block, "basis": [[5]] * len(block["basis"])}]},
        {**good, "blocks": [{**block, "basis": [[-1]] * len(block["basis"])}]},
        {**good, "blocks": [{**block, "exponent": 10**9}]},
        {**good, "blocks": [{**block, "exponent": -1}]},
        {**good, "equalities": [{"constraint": 0, "monomials": [[]], "coefficients": [1], "exponent": 0}]},
    ):
        with pytest.raises(lm.Refuted):
            program.verify(wrong)
    with pytest.raises(lm.Refuted):
        program.verify([good])


# ----------------------------------------------------------------------------------------------------------- sparsity


@given(multilinear)
@settings(max_examples=60, deadline=None)
def test_cliques_cover_and_intersect(terms):
    program = cube(terms)
    found = chordal_cliques(coupling_graph(program))
    sets = [set(c) for c in found.cliques]
    assert all(any(set(m) <= c for c in sets) for m in terms)
    assert sorted(found.order) == list(range(6))
    for k in range(1, len(sets)):  # running intersection, in some order: the reverse of elimination
        later = sets[: len(sets) - k]
        earlier = set().union(*sets[len(sets) - k :])
        joint = later[-1] & earlier
        assert not joint or any(joint <= c for c in sets[len(sets) - k :])
