"""From a model to a conic program: nothing is changed but the coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.backends.base import SolveOptions
from lipmodel.bridges import program as program_module
from lipmodel.bridges.program import cone_program, svec, too_large
from lipmodel.bridges.scaling import prepare
from lipmodel.errors import LipmodelError
from lipmodel.model.forms import LinearForm
from lipmodel.model.terms import Coefficients, Congruence
from lipmodel.network.increments import chain_of
from lipmodel.testing.backends import decoupled, lipsdp, mixed_norm
from lipmodel.testing.networks import KINDS, random_system

PAIRS = [("2", "2"), ("inf", "1"), ("inf", "2"), ("2", "1")]


def stated(system, p="2", q="2"):
    return lipsdp(system) if (p, q) == ("2", "2") else mixed_norm(system, p, q)


def assembled(program, y):
    """The matrices C + sum y_j A_j of a program."""
    matrices = []
    for block in program.psd:
        weights = np.where(block.var < 0, block.value, block.value * np.append(y, 0.0)[block.var])
        lower = sp.coo_array((weights, (block.row, block.col)), shape=(block.order,) * 2).toarray()
        matrices.append(lower + np.tril(lower, -1).T)
    return matrices


def optimum(model, name="clarabel"):
    point = backend(name).solve(model, SolveOptions())
    assert point.termination == "optimal"
    return model.bound_of(point.objective)


# -------------------------------------------------------------------------------- program


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_the_program_has_the_coefficients_of_the_form(kind, p, q):
    model = stated(random_system(kind, 0), p, q)
    program = cone_program(model)
    rng = np.random.default_rng(1)
    y = rng.standard_normal(program.size)
    values = program.values(y)
    assert all(values[v].shape == (v.size,) for v in model.variables)
    for form, block, matrix in zip(model.matrix_constraints, program.psd, assembled(program, y), strict=True):
        assert np.all(block.row >= block.col)
        assert np.all(np.diff(block.var * block.order**2 + block.row * block.order + block.col) > 0)
        point = {s: rng.standard_normal(s.size) for s in form.signals}
        z = np.concatenate([point[s] for s in form.signals])
        assert z @ matrix @ z == pytest.approx(form.value(values, point), rel=1e-9, abs=1e-9)
    assert program.cost @ y + program.offset == pytest.approx(model.objective.value(values)[0], rel=1e-12)
    np.testing.assert_allclose(program.ineq @ y + program.ineq_rhs, y[: program.ineq.shape[0]])


def test_linear_rows_follow_the_constraints():
    m = lm.Model("rows")
    z = m.signal("z", 1)
    u, v = m.variable("u", 2, nonnegative=True), m.variable("v", 2)
    m.require(lm.inner(z, z, weight=u.sum()) >= 0)
    m.require(v.equals(np.array([1.0, 2.0])))
    m.require(2.0 * u - v >= -1.0)
    m.require(v.sum() <= 7.0)
    m.minimize(u.sum() + 5.0)
    program = cone_program(m)
    y = np.array([1.0, -2.0, 3.0, 4.0])
    np.testing.assert_allclose(program.ineq @ y + program.ineq_rhs, [1.0, -2.0, 0.0, -7.0, 0.0])
    np.testing.assert_allclose(program.eq @ y + program.eq_rhs, [2.0, 2.0])
    assert program.offset == 5.0
    assert program.cost.tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("upper", [True, False])
def test_svec_keeps_inner_products(upper):
    program = cone_program(stated(random_system("skips", 1), "inf", "2"))
    (block,) = program.psd
    a, b = svec(block, program.size, upper=upper)
    rng = np.random.default_rng(2)
    for _ in range(3):
        y = rng.standard_normal(program.size)
        (matrix,) = assembled(program, y)
        vector = a @ y + b
        assert vector @ vector == pytest.approx(np.sum(matrix**2), rel=1e-12)
        rows, cols = np.tril_indices(block.order) if upper else np.triu_indices(block.order)[::-1]
        expected = np.where(rows == cols, 1.0, np.sqrt(2.0)) * matrix[rows, cols]
        np.testing.assert_allclose(vector, expected, rtol=1e-12, atol=1e-14)


def test_a_form_without_signals_is_no_block():
    model = stated(random_system("chain", 0))
    model.require(lm.QuadraticForm() >= 0)
    assert len(cone_program(model).psd) == 1


def test_a_model_that_is_too_large_is_refused_before_it_is_expanded(monkeypatch):
    model = stated(random_system("chain", 0))
    assert too_large(model) is None
    monkeypatch.setattr(program_module, "MAX_COEFFICIENTS", 10)
    assert "more than the limit of 10" in too_large(model)
    with pytest.raises(LipmodelError, match="out of reach of a general solver"):
        cone_program(model)
    for name in ("clarabel", "scs"):
        assert "native backend" in backend(name).refuses(model)


def test_a_wide_model_is_judged_by_its_reduced_size(monkeypatch):
    rng = np.random.default_rng(6)
    wide = lipsdp(chain_of([rng.standard_normal((3, 200)), rng.standard_normal((1, 3))], -0.5, 1.0))
    assert wide.sizes().coefficients > 100_000
    monkeypatch.setattr(program_module, "MAX_COEFFICIENTS", 100_000)
    assert too_large(wide) is not None
    assert too_large(prepare(wide).model) is None
    for name in ("clarabel", "scs"):
        assert backend(name).refuses(wide) is None
    assert optimum(wide) > 0.0


def test_the_same_statement_gives_the_same_program():
    programs = [cone_program(prepare(stated(random_system("skips", 3), "inf", "1")).model) for _ in range(4)]
    for other in programs[1:]:
        for name in ("row", "col", "var", "value"):
            np.testing.assert_array_equal(getattr(programs[0].psd[0], name), getattr(other.psd[0], name))


# -------------------------------------------------------------------------------- scaling


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_scaling_is_a_congruence(kind, p, q):
    """The restored point makes the model's matrix definite if and only if the scaled one is."""
    model = stated(random_system(kind, 5, inputs=4), p, q)
    prepared = prepare(model)
    program = cone_program(prepared.model)
    plain = cone_program(model)
    rng = np.random.default_rng(4)
    feasible = backend("clarabel").solve(model, SolveOptions()).values
    for share in (0.0, 0.5, 1.0, 1.5):
        inside = {v: feasible[v] * (1.0 + 0.1 * share) * np.exp(0.3 * (share > 1.0) * rng.normal()) for v in feasible}
        scaled = {v: inside[v] / prepared.factors[v] for v in inside}
        for v, x in scaled.items():
            np.testing.assert_array_equal(prepared.factors[v] * x, inside[v])
        y, x = (np.concatenate([values[v] for v in model.variables]) for values in (scaled, inside))
        least = [np.linalg.eigvalsh(m)[0] / np.abs(m).max() for m in (*assembled(program, y), *assembled(plain, x))]
        assert min(np.abs(least)) < 1e-9 or np.sign(least[0]) == np.sign(least[1])
        np.testing.assert_allclose(program.cost @ y, plain.cost @ x, rtol=1e-12)


@pytest.mark.parametrize("kind", ["chain", "mixed", "residual", "concat", "scaled"])
def test_scaled_coefficients_are_of_order_one(kind):
    for p, q in PAIRS:
        program = cone_program(prepare(stated(random_system(kind, 6), p, q)).model)
        for block in program.psd:
            largest = np.zeros(program.size)
            variable = block.var >= 0
            np.maximum.at(largest, block.var[variable], np.abs(block.value[variable]))
            assert np.all((largest > 0.1) & (largest < 4.0))
            constant = np.abs(block.value[~variable]).max(initial=0.0)
            assert 0.05 < constant < 4.0


def test_scale_factors_are_powers_of_two():
    factors = prepare(stated(random_system("scaled", 1), "inf", "1")).factors
    for x in factors.values():
        np.testing.assert_array_equal(np.frexp(x)[0], 0.5)


def test_neurons_of_very_different_sizes_are_scaled_one_by_one():
    system = decoupled(np.array([3.0, -1.5, 0.25]), np.zeros(3), np.ones(3), 4)
    program = cone_program(prepare(lipsdp(system)).model)
    sizes = np.abs(program.psd[0].value)
    assert sizes.max() < 4.0
    assert sizes.min() >= 2.0**-12
    weights = [m.enclosure().center for a in system.activations for m in a.pre.blocks.values()]
    assert max(abs(w).max() for w in weights) >= 2.0**6
    assert optimum(lipsdp(system)) == pytest.approx(3.0, rel=1e-7)


def test_a_wide_input_is_reduced_to_what_the_layers_read():
    rng = np.random.default_rng(7)
    weights = [rng.standard_normal((3, 40)), rng.standard_normal((2, 3))]
    model = lipsdp(chain_of(weights))
    prepared = prepare(model)
    assert model.sizes().psd == (43,)
    assert prepared.model.sizes().psd == (6,)
    kept = chain_of([np.linalg.qr(weights[0].T, mode="r").T, weights[1]])
    assert optimum(model) == pytest.approx(optimum(lipsdp(kept)), rel=1e-8)


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-0.5, 1.0), (0.25, 1.0)])
def test_rows_that_are_much_smaller_than_others_are_kept(slopes):
    """A layer of weights of size 1e-15 still matters if the next one multiplies by 1e15."""
    rng = np.random.default_rng(8)
    scale = np.array([1e-15, 1.0, 1e3])
    first, second = rng.standard_normal((3, 12)), rng.standard_normal((1, 3))
    plain = lipsdp(chain_of([first, second], *slopes))
    uneven = lipsdp(chain_of([scale[:, None] * first, second / scale], *slopes))
    assert prepare(uneven).model.sizes().psd == (6,)
    assert optimum(uneven) == pytest.approx(optimum(plain), rel=1e-6)


def test_directions_that_nothing_reads_still_need_a_nonnegative_ball():
    """Minimise k with k |x|^2 + 2 (r x)^2 >= 0: where r x = 0 it says k >= 0, although r alone would allow -2."""
    m = lm.Model("free ball")
    x = m.signal("x", 5)
    k = m.variable("k")
    row = np.array([[1.0, 0.0, 0.0, 0.0, 0.0]]) @ x
    m.require(lm.inner(x, x, weight=k.spread(5)) + 2 * lm.inner(row, row) >= 0)
    m.minimize(k + 1.0)
    assert optimum(m) == pytest.approx(1.0, abs=1e-6)


def test_an_l_inf_input_keeps_its_coordinates():
    model = mixed_norm(chain_of([np.ones((2, 9)), np.ones((1, 2))]), "inf", "1")
    assert prepare(model).model.sizes().psd == model.sizes().psd


def test_many_outputs_are_reduced_to_their_gram_matrix():
    rng = np.random.default_rng(9)
    system = chain_of([rng.standard_normal((3, 2)), rng.standard_normal((30, 3))])
    model = lipsdp(system)
    terms = [t for t in prepare(model).model.matrix_constraints[0].terms if t.rule.kind == "output-output"]
    assert [t.size for t in terms] == [3]
    smaller = chain_of(
        [system.activations[0].pre.blocks[system.signals[0]].weights, np.linalg.qr(_output(system), mode="r")]
    )
    assert optimum(model) == pytest.approx(optimum(lipsdp(smaller)), rel=1e-8)


def _output(system):
    (block,) = system.output.blocks.values()
    return block.enclosure().dense().center


def test_terms_of_every_kind_pass_through():
    """The same problem with its terms given as factors, by coefficients, or as a congruence."""
    rng = np.random.default_rng(10)
    matrix = rng.standard_normal((3, 3))
    matrix = 100.0 * (matrix + matrix.T)
    bounds = []
    for change in (
        lambda term: [term],
        lambda term: [Coefficients(entries=tuple(term.triplets()))],
        lambda t: t.split(),
    ):
        m = lm.Model("kinds")
        z = m.signal("z", 3)
        x = m.symmetric("X", 3)
        gram, data = Congruence(form=2.0 * z, matrix=x), (-1.0 * lm.inner(z, matrix @ z)).terms[0]
        terms = [*change(gram), *change(data)]
        m.require(lm.QuadraticForm(terms=tuple(terms)) >= 0)
        m.minimize(lm.Expression.of(x)[[0, 3, 5]].sum())
        bounds.append(optimum(m))
    np.testing.assert_allclose(bounds, np.trace(matrix) / 4.0, rtol=1e-6, atol=1e-6)


def test_preparing_leaves_the_model_alone():
    model = stated(random_system("residual", 2), "inf", "2")
    before, variables, signals = str(model), list(model.variables), list(model.signals)
    prepare(model)
    assert str(model) == before
    assert model.variables == variables
    assert model.signals == signals


def test_an_output_that_reads_nothing_is_harmless():
    system = random_system("chain", 0)
    m = lm.Model("nothing")
    ball, price = m.ball(system.input, "2")
    nothing = LinearForm(size=4, blocks={})
    m.require(ball - lm.inner(nothing, nothing) - lm.inner(system.input, system.input) >= 0)
    m.minimize(2 * price, bound="sqrt")
    assert optimum(m) == pytest.approx(1.0, rel=1e-6)
