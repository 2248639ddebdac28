"""The model: linear and quadratic forms, terms, expressions, and what a user is told who makes a mistake."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

import lipmodel as lm
from lipmodel.model.forms import MAX_LEAVES, LinearForm, Signal, add_forms, apply
from lipmodel.model.model import Constraint
from lipmodel.model.sets import Nonnegative, Zero
from lipmodel.model.terms import Coefficients, Congruence, Factored
from lipmodel.model.variables import Expression, Variable
from lipmodel.network.increments import chain_of
from lipmodel.network.linear import Dense
from lipmodel.spec import Spec
from lipmodel.testing.networks import KINDS, random_system
from lipmodel.testing.terms import check_term, random_terms

GAUSS = np.random.default_rng(0)


def two_layers():
    return chain_of([GAUSS.standard_normal((4, 3)), GAUSS.standard_normal((2, 4))])


def stated(system):
    """GeoLIP for inf -> 1."""
    return lm_formulation("geolip").build(system, Spec(input_norm="inf", output_norm="1"))


def lm_formulation(name):
    from lipmodel.formulation import formulation

    return formulation(name)


# -------------------------------------------------------------------------------- terms


@pytest.mark.parametrize("seed", range(4))
def test_every_term_obeys_the_contract(seed):
    terms = random_terms(seed)
    assert {type(t) for t in terms} == {Factored, Congruence, Coefficients}
    for term in terms:
        check_term(term, seed)


def broken(term, **methods):
    """A term of a class that differs in some methods."""
    fields = [f.name for f in dataclasses.fields(term)]
    kind = type("Broken", (type(term),), {"__slots__": (), **methods})
    return kind(**{name: getattr(term, name) for name in fields})


@pytest.mark.parametrize(
    "methods",
    [
        {"value": lambda self, values, point: 2.0 * Factored.value(self, values, point)},
        {"value": lambda self, values, point: abs(Factored.value(self, values, point))},
        {"split": lambda self: Factored.split(self)[1:]},
        {"split": lambda self: (self,)},
        {"scaled": lambda self, factor: self},
        {"rescaled": lambda self, factors: self},
        {"substitute": lambda self, replacements: self},
        {"pattern": lambda self: frozenset(list(Factored.pattern(self))[1:])},
        {"adjoint": lambda self, moments: (Factored.adjoint(self, moments)[0], 0.0)},
        {"triplets": lambda self: list(Factored.triplets(self))[1:]},
    ],
)
def test_the_contract_test_finds_a_wrong_method(methods):
    term = random_terms(0)[0]
    check_term(term)
    with pytest.raises(AssertionError):
        check_term(broken(term, **methods))


def test_sizes_of_a_term_must_agree():
    a, b = (LinearForm.of(Signal(name=n, size=k)) for n, k in (("a", 3), ("b", 2)))
    with pytest.raises(lm.UsageError, match="of one size, not of 3, 3 and 2"):
        Factored(weight=Expression.number(1.0, 3), left=a, right=b)
    with pytest.raises(lm.UsageError, match="no symmetric matrix for a linear form of size 3"):
        Congruence(form=a, matrix=Variable(name="X", size=3, order=2))


def test_a_substituted_coefficient_term_is_factored_out_and_back():
    z, u = Signal(name="z", size=2), Signal(name="u", size=1)
    term = Coefficients(
        entries=tuple(lm.inner(LinearForm.of(z), LinearForm.of(z), weight=[2.0, 3.0]).terms[0].triplets())
    )
    replaced = term.substitute({z: np.array([[1.0], [-4.0]]) @ LinearForm.of(u)})
    assert replaced.value({}, {u: np.array([1.0])}) == 2.0 + 3.0 * 16.0


# -------------------------------------------------------------------------------- forms


def test_linear_forms_compute_like_matrices():
    a, b = Signal(name="a", size=3), Signal(name="b", size=2)
    x, y = LinearForm.of(a), LinearForm.of(b)
    point = {a: GAUSS.standard_normal(3), b: GAUSS.standard_normal(2)}
    m, n = GAUSS.standard_normal((4, 3)), GAUSS.standard_normal((4, 2))
    v = GAUSS.standard_normal(4)
    form = v * (m @ x - 2.0 * (sp.csr_array(n) @ y)) + (-(m @ x))
    expected = v * (m @ point[a] - 2.0 * n @ point[b]) - m @ point[a]
    np.testing.assert_allclose(form.value(point), expected, rtol=1e-14)
    np.testing.assert_allclose((m[0] @ x).value(point), [m[0] @ point[a]], rtol=1e-14)
    assert (0.0 * form).blocks == {}
    np.testing.assert_array_equal((0.0 * form).value(point), np.zeros(4))
    np.testing.assert_allclose(apply(Dense(weights=m), x).value(point), m @ point[a], rtol=1e-14)


def test_arithmetic_loses_a_role_and_substitution_keeps_it():
    x = LinearForm.of(Signal(name="x", size=2), role="input")
    assert (1.0 * x).role is None
    assert (-x).role is None
    assert (x + x).role is None
    u = LinearForm.of(Signal(name="u", size=2))
    assert x.substitute({x.signals[0]: 3.0 * u}).role == "input"


def test_forms_of_many_branches_are_collapsed_to_one_matrix():
    signal = Signal(name="a", size=2)
    form = LinearForm.of(signal)
    for _ in range(10):
        form = (GAUSS.standard_normal((2, 2)) @ form) + (GAUSS.standard_normal((2, 2)) @ form)
    assert form.blocks[signal].leaves <= MAX_LEAVES
    point = {signal: np.array([1.0, -1.0])}
    expected = form.blocks[signal].enclosure().center @ point[signal]
    np.testing.assert_allclose(form.value(point), expected)


def test_the_signals_of_a_form_come_in_order_of_first_appearance():
    signals = [Signal(name=f"s{k}", size=1) for k in range(9, -1, -1)]
    forms = [LinearForm.of(s) for s in signals]
    assert lm.inner(add_forms(forms), forms[3]).signals == tuple(signals)
    assert lm.inner(forms[3], add_forms(forms)).signals[0] is signals[3]
    summed = sum(lm.inner(f, f) for f in forms)
    assert summed.signals == tuple(signals)


@pytest.mark.parametrize("kind", KINDS)
def test_slope_restrictions_hold_for_admissible_increments(kind):
    system = random_system(kind, 1)
    rng = np.random.default_rng(3)
    for act in system.activations:
        m = lm.Model("qc")
        t = m.multiplier(act)
        form = lm.qc.slope_restricted(act, t)
        values = {m.variables[0]: rng.uniform(0.5, 2.0, size=act.size)}
        point = {s: rng.standard_normal(s.size) for s in (*act.pre.signals, act.signal)}
        v, w = act.pre.value(point), point[act.signal]
        expected = 2.0 * np.sum(values[m.variables[0]] * (w - act.alpha * v) * (act.beta * v - w))
        assert form.value(values, point) == pytest.approx(expected, rel=1e-12)
        for share in (0.0, 0.3, 1.0):
            slopes = act.alpha + share * (act.beta - act.alpha)
            assert form.value(values, {**point, act.signal: slopes * v}) >= -1e-12
        outside = act.beta + 1.0
        if np.any(v != 0.0):
            assert form.value(values, {**point, act.signal: outside * v}) < 0.0


def test_products_of_input_output_and_dual_carry_rules_and_others_none():
    system = two_layers()
    m = lm.Model("rules")
    dual = m.signal("dual", 2)
    kinds = {
        "ball-input": lm.inner(system.input, system.input),
        "ball-dual": lm.inner(dual, dual),
        "output-dual": lm.inner(dual, system.output),
        "output-output": lm.inner(system.output, system.output),
        "slope": lm.qc.slope_restricted(system.activations[0], 1.0),
    }
    for kind, form in kinds.items():
        assert form.terms[0].rule.kind == kind
        assert (-3.0 * form).terms[0].rule.kind == kind
    other = m.signal("other", 2)
    for form in (lm.inner(dual, other), lm.inner(2 * dual, system.output), lm.inner(dual, -system.output)):
        assert form.terms[0].rule is None


# -------------------------------------------------------------------------------- expressions


def test_expressions_are_affine():
    m = lm.Model("expressions")
    t, u = m.variable("t", 3), m.variable("u")
    k = GAUSS.standard_normal((2, 3))
    e = (k @ (2.0 * t - np.array([1.0, 2.0, 3.0]))) / 4.0 + u - 1.0
    values = {m.variables[0]: GAUSS.standard_normal(3), m.variables[1]: np.array([0.5])}
    expected = k @ (2.0 * values[m.variables[0]] - [1.0, 2.0, 3.0]) / 4.0 + 0.5 - 1.0
    np.testing.assert_allclose(e.value(values), expected)
    np.testing.assert_allclose((3.0 - e).value(values), 3.0 - expected)
    np.testing.assert_allclose(sum([e, e]).value(values), 2.0 * expected)
    np.testing.assert_allclose(t[[2, 0]].value(values), values[m.variables[0]][[2, 0]])
    np.testing.assert_allclose(t[1].value(values), values[m.variables[0]][[1]])
    np.testing.assert_allclose(t.sum().value(values), [values[m.variables[0]].sum()])
    np.testing.assert_allclose((u * np.array([1.0, -2.0])).value(values), [0.5, -1.0])
    np.testing.assert_allclose((u + np.array([1.0, -2.0])).value(values), [1.5, -1.5])
    np.testing.assert_allclose((np.ones(3) @ t).value(values), [values[m.variables[0]].sum()])


def test_comparisons_are_constraints():
    m = lm.Model("comparisons")
    t = m.variable("t", 2)
    values = {m.variables[0]: np.array([3.0, -1.0])}
    for constraint, kind, expected in (
        (t >= 1.0, Nonnegative, [2.0, -2.0]),
        (t <= 1.0, Nonnegative, [-2.0, 2.0]),
        (t.equals([3.0, 0.0]), Zero, [0.0, -1.0]),
    ):
        assert isinstance(constraint, Constraint)
        assert isinstance(constraint.set, kind)
        np.testing.assert_allclose(constraint.function.value(values), expected)
    with pytest.raises(lm.UsageError, match="no truth value"):
        bool(t >= 1.0)


# -------------------------------------------------------------------------------- model


def test_variables_get_names_of_their_own():
    m = lm.Model("names")
    for _ in range(3):
        m.variable("t", 2)
    m.variable("t_2")
    m.symmetric("t", 2)
    names = [v.name for v in m.variables]
    assert names == ["t", "t_2", "t_3", "t_2_2", "t_4"]


def test_tied_multipliers_are_one_variable():
    system = two_layers()
    m = lm.Model("tied")
    t = m.multiplier(system.activations[0], tied=True)
    assert t.size == 4
    assert m.variables[0].size == 1
    assert m.variables[0].nonnegative
    np.testing.assert_array_equal(t.value({m.variables[0]: np.array([2.5])}), np.full(4, 2.5))


@pytest.mark.parametrize(("norm", "size", "price"), [("2", 1, 0.5 * 3.0), ("inf", 3, 0.5 * (3.0 + 4.0 + 5.0))])
def test_a_ball_and_its_price(norm, size, price):
    m = lm.Model("ball")
    form, expression = m.ball(LinearForm.of(Signal(name="x", size=3), role="input"), norm)
    assert m.variables[0].size == size
    kappa = np.array([3.0, 4.0, 5.0])[:size]
    assert expression.value({m.variables[0]: kappa})[0] == price
    x = np.array([1.0, -2.0, 0.5])
    value = form.value({m.variables[0]: kappa}, {form.signals[0]: x})
    assert value == pytest.approx(np.sum(kappa * x**2))


def test_the_objective_gives_the_bound():
    m = lm.Model("bound")
    m.minimize(m.variable("rho"), bound="sqrt")
    assert m.bound_of(9.0) == 3.0
    assert m.bound_of(-1e-12) == 0.0
    m.minimize(m.variable("rho"))
    assert m.bound_of(9.0) == 9.0


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_predicted_from_above(kind):
    from lipmodel.bridges.program import cone_program

    system = random_system(kind, 2)
    model = stated(system)
    sizes, program = model.sizes(), cone_program(model)
    assert sizes.variables == program.size
    assert sizes.psd == tuple(block.order for block in program.psd)
    assert sizes.psd == (system.input.size + system.neurons + system.output.size,)
    assert sizes.coefficients >= 0.5 * sum(len(block.value) for block in program.psd)


def test_a_model_prints_itself():
    text = str(stated(two_layers()))
    for part in (
        "model geolip",
        "dual[2]",
        "t_layer1[4] >= 0",
        "minimize",
        "0.5 sum kappa",
        "[slope]",
        "[output-dual]",
    ):
        assert part in text
    m = lm.Model("empty")
    assert "signals    none" in str(m)
    m.require(m.variable("u", 2).equals(1.0))
    m.require(lm.QuadraticForm(terms=(Congruence(form=m.signal("z", 2), matrix=m.symmetric("X", 2)),)) >= 0)
    m.minimize(m.variable("rho"), bound="sqrt")
    for part in ("u + -1 zero", "X (I·z)   [stated by hand]", "sqrt of the optimum"):
        assert part in str(m)


# -------------------------------------------------------------------------------- mistakes


def mistakes():
    """Name, what the user writes, and what the message says."""
    x = LinearForm.of(Signal(name="x", size=3), role="input")
    y = LinearForm.of(Signal(name="y", size=2))
    form = lm.inner(x, x)
    m = lm.Model("mistakes")
    t, s = m.variable("t", 3), m.variable("s", 2)
    act = two_layers().activations[0]
    return {
        "inner-sizes": (lambda: lm.inner(x, y), "sizes 3 and 2"),
        "inner-not-a-form": (lambda: lm.inner(x, np.ones(3)), "two linear forms"),
        "inner-signal": (lambda: lm.inner(act.signal, act.signal), "two linear forms"),
        "inner-weight-size": (lambda: lm.inner(x, x, weight=s), "size 2 does not fit 3"),
        "inner-weight-numbers": (lambda: lm.inner(x, x, weight=[1.0, 2.0]), "2 numbers do not fit 3"),
        "inner-weight-nan": (lambda: lm.inner(x, x, weight=np.nan), "must be finite"),
        "inner-weight-text": (lambda: lm.inner(x, x, weight="one"), "number"),
        "inner-weight-matrix": (lambda: lm.inner(x, x, weight=np.eye(3)), r"shape \(3, 3\)"),
        "inner-weight-symmetric": (lambda: lm.inner(x, x, weight=lm.Model("s").symmetric("X", 2)), "matrix variable"),
        "ball-norm": (lambda: m.ball(x, "3"), "the norms are 1, 2 and inf"),
        "ball-l1": (lambda: m.ball(x, "1"), "one program per column"),
        "ball-of-array": (lambda: m.ball(np.ones(3), "2"), "not a ndarray"),
        "slope-multiplier-size": (lambda: lm.qc.slope_restricted(act, s), "size 2 does not fit 4"),
        "slope-no-activation": (lambda: lm.qc.slope_restricted(x, t), "system.activations"),
        "slope-no-multiplier": (lambda: lm.qc.slope_restricted(act, None), "must be"),
        "product-of-variables": (lambda: t * t, "product of two variables"),
        "form-times-variable": (lambda: form * t, "weight=t"),
        "variable-times-form": (lambda: t * form, "not a QuadraticForm"),
        "linear-times-variable": (lambda: x * t, "multiplied by"),
        "variable-times-linear": (lambda: t * x, "not a LinearForm"),
        "linear-times-linear": (lambda: x * x, "lm.inner"),
        "form-times-nan": (lambda: form * np.nan, "finite number"),
        "linear-times-inf": (lambda: x * np.inf, "must be finite"),
        "linear-times-vector": (lambda: x * np.ones(2), "2 numbers do not fit"),
        "variable-times-vector": (lambda: t * np.ones(2), "does not fit"),
        "divided-by-zero": (lambda: t / 0.0, "divided by zero"),
        "divided-by-variable": (lambda: t / t, "divided by"),
        "sum-of-sizes": (lambda: t + s, "does not fit"),
        "forms-of-sizes": (lambda: x + y, r"sizes \[2, 3\]"),
        "form-plus-number": (lambda: x + 1.0, "expected a linear form"),
        "form-plus-signal": (lambda: x + act.signal, "LinearForm.of"),
        "matrix-shape": (lambda: np.eye(2) @ x, r"\(2, 2\) does not act on a form of size 3"),
        "sparse-shape": (lambda: sp.csr_array(np.eye(2)) @ x, r"\(2, 2\) does not act on a form of size 3"),
        "matrix-nan": (lambda: np.full((3, 3), np.nan) @ x, "finite matrix"),
        "matrix-on-variable": (lambda: np.eye(2) @ t, r"\(2, 2\) does not act on an expression of size 3"),
        "quadratic-plus-number": (lambda: form + 1.0, "expected a quadratic form"),
        "number-plus-quadratic": (lambda: 1.0 + form, "only be added to a quadratic form"),
        "quadratic-plus-linear": (lambda: form - x, "LinearForm"),
        "compared-with-one": (lambda: form >= 1.0, "form >= 0"),
        "compared-with-form": (lambda: form >= lm.inner(x, x), "form >= 0"),
        "below-one": (lambda: form <= 1.0, "form >= 0"),
        "require-true": (lambda: m.require(True), "require expects a constraint"),
        "require-equality-of-forms": (lambda: m.require(t == 0.0), "equals"),
        "minimize-a-form": (lambda: m.minimize(form), "not a QuadraticForm"),
        "minimize-a-constraint": (lambda: m.minimize(t >= 0.0), "not a Constraint"),
        "minimize-a-vector": (lambda: m.minimize(t), r"take its \.sum\(\)"),
        "minimize-unknown-map": (lambda: m.minimize(t.sum(), bound="square"), "'identity' or 'sqrt'"),
        "variable-size": (lambda: m.variable("v", 0), "positive whole number"),
        "variable-fraction": (lambda: m.variable("v", 2.5), "positive whole number"),
        "signal-size": (lambda: m.signal("v", -1), "size of signal 'v'"),
    }


@pytest.mark.parametrize("name", mistakes())
def test_a_mistake_is_named(name):
    action, message = mistakes()[name]
    with pytest.raises(lm.UsageError, match=message):
        action()


def test_an_incomplete_model_lists_what_is_missing():
    with pytest.raises(lm.UsageError, match=r"no objective.*no matrix constraint"):
        lm.Model("nothing").check()
    m = lm.Model("constant")
    z = m.signal("z", 1)
    m.require(lm.inner(z, z) >= 0)
    m.minimize(1.0)
    with pytest.raises(lm.UsageError, match="objective is a constant"):
        m.check()
    m.minimize(m.variable("u"))
    m.check()
    empty = lm.Model("empty")
    empty.require(lm.QuadraticForm() >= 0)
    empty.minimize(empty.variable("u"))
    with pytest.raises(lm.UsageError, match="no matrix constraint"):
        empty.check()
