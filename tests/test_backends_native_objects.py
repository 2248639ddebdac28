"""Models as problems of CVXPY and PICOS: the same variables, signs, constraints and matrices, in the model's units."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.backends.base import Installed, SolveOptions
from lipmodel.formulation import formulation
from lipmodel.model.forms import QuadraticForm
from lipmodel.model.terms import Coefficients, Congruence
from lipmodel.testing.backends import lipsdp, mixed_norm
from lipmodel.testing.networks import random_system
from lipmodel.testing.points import matrix_at
from lipmodel.testing.programs import PROGRAMS

LANGUAGES = ["cvxpy", "picos"]


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    state = backend(request.param, usable=False).available()
    if not isinstance(state, Installed):
        pytest.skip(str(state))
    return request.param


def stated(name: str, options: dict[str, Any]) -> Any:
    system = random_system("residual", 1)
    return formulation(name, options).build(system, lm.Spec(input_norm="2", output_norm="2"))


def mixed_terms() -> Any:
    """All kinds of terms, several signals, blocks in both orders."""
    m = lm.Model("terms")
    rng = np.random.default_rng(7)
    a, b = m.signal("b", 3), m.signal("a", 2)
    t, u = m.variable("t", 4, nonnegative=True), m.variable("u")
    x = m.symmetric("X", 2)
    left, right = rng.standard_normal((4, 3)) @ a, rng.standard_normal((4, 2)) @ b
    form = lm.inner(left, right, weight=2.0 * t + 1.0) + lm.inner(left - right, left, weight=t * np.arange(4.0))
    twisted = Congruence(form=rng.standard_normal((2, 2)) @ b, matrix=x)
    form += lm.inner(a, a, weight=u.spread(3)) + QuadraticForm(terms=(twisted,))
    listed = tuple(entry for term in form.terms[:1] for entry in term.triplets())
    form += QuadraticForm(terms=(Coefficients(entries=listed),))
    m.require(form >= 0)
    m.minimize(u + t.sum())
    return m


MODELS = {
    "lipsdp": lambda: lipsdp(random_system("chain", 0)),
    "tied": lambda: lipsdp(random_system("mixed", 1), tied=True),
    "geolip": lambda: mixed_norm(random_system("residual", 0), "inf", "1"),
    "terms": mixed_terms,
    "matrix-variable": lambda: PROGRAMS["matrix-variable"].problem()[0],
}


def values_at_random(model: Any, problem: Any, language: str) -> dict[Any, Any]:
    """A random point, put into the problem's variables too."""
    rng = np.random.default_rng(11)
    values = {v: np.abs(rng.standard_normal(v.size)) for v in model.variables}
    for v, x in values.items():
        matrix = x
        if v.order is not None:
            matrix = np.zeros((v.order, v.order))
            cols, rows = np.triu_indices(v.order)
            matrix[rows, cols] = matrix[cols, rows] = x
        if language == "cvxpy":
            problem.var_dict[v.name].value = matrix
        else:
            problem.variables[v.name].value = matrix
    return values


@pytest.mark.parametrize("name", MODELS)
def test_the_matrix_is_that_of_the_model(name, language):
    model = MODELS[name]()
    problem = lm.to_native(model, language)
    values = values_at_random(model, problem, language)
    forms = [c.function for c in model.constraints if isinstance(c.function, QuadraticForm)]
    if language == "cvxpy":
        found = [c.args[0].value for c in problem.constraints]
        objective = problem.objective.value
    else:
        found = [np.array(c.psd.value) for c in problem.constraints.values() if hasattr(c, "psd")]
        objective = float(problem.objective.value)
    assert len(found) == len(forms)
    for matrix, form in zip(found, forms, strict=True):
        expected = matrix_at(form, values)
        assert np.allclose(matrix, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())
    assert objective == pytest.approx(float(model.objective.value(values)[0]), rel=1e-12)


def test_names_signs_and_shapes_are_the_models(language):
    model = MODELS["terms"]()
    problem = lm.to_native(model, language)
    found = problem.var_dict if language == "cvxpy" else problem.variables
    assert set(found) == {"t", "u", "X"}
    if language == "cvxpy":
        assert found["t"].is_nonneg()
        assert not found["u"].is_nonneg()
        assert found["X"].attributes["symmetric"]
        assert found["X"].shape == (2, 2)
    else:
        assert found["t"].bound_constraint is not None
        assert found["u"].bound_constraint is None
        assert found["X"].shape == (2, 2)


@pytest.mark.parametrize("name", PROGRAMS)
def test_solved_by_hand(name, language):
    """What a user does with the object: solve it with the language's own words."""
    model, expected = PROGRAMS[name].problem()
    problem = lm.to_native(model, language)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if language == "cvxpy":
            value = problem.solve(solver="CLARABEL")
        else:
            value = problem.solve(solver="cvxopt", rel_ipm_opt_tol=1e-8, primals=None, duals=None).value
    assert model.bound_of(float(value)) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [("chordal-lipsdp", {}), ("lipsdp-neuron", {"cone": "dd"}), ("lipsdp-neuron", {"cone": "sdd"})],
)
def test_sets_that_a_language_lacks_are_reformulated(name, options, language):
    model = stated(name, options)
    problem = lm.to_native(model, language)
    expected = backend("clarabel").solve(model, SolveOptions()).objective
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if language == "cvxpy":
            value = problem.solve(solver="CLARABEL")
        else:
            value = problem.solve(solver="cvxopt", rel_ipm_opt_tol=1e-8, primals=None, duals=None).value
    assert float(value) == pytest.approx(expected, rel=1e-4)


def test_only_languages_have_objects():
    with pytest.raises(lm.UsageError, match="choose cvxpy or picos"):
        lm.to_native(MODELS["lipsdp"](), "clarabel")


def test_the_solver_is_always_named(language, monkeypatch):
    """Left alone, both languages pick an installed MOSEK and stop at its missing licence."""
    told = []
    if language == "cvxpy":
        import cvxpy as tool

        def solve(self: Any, *rest: Any, solver: Any = None, **more: Any) -> Any:
            told.append(solver)
            return original(self, *rest, solver=solver, **more)
    else:
        import picos as tool

        def solve(self: Any, **options: Any) -> Any:
            told.append(self.options.solver)
            return original(self, **options)

    original = tool.Problem.solve
    monkeypatch.setattr(tool.Problem, "solve", solve)
    from lipmodel import child

    monkeypatch.setattr(child, "CAN_FORK", False)
    for native in ({}, {"solver": "SCS"} if language == "cvxpy" else {"solver": "CVXOPT"}):
        point = backend(language).solve(MODELS["lipsdp"](), SolveOptions(native=native))
        assert point.values is not None
    assert told == (["CLARABEL", "SCS"] if language == "cvxpy" else ["cvxopt", "cvxopt"])


def test_unknown_solvers_and_keywords_are_named(language):
    model = MODELS["lipsdp"]()
    with pytest.raises(lm.UsageError, match=r"(?i)nosuch.*choose with solver="):
        backend(language).solve(model, SolveOptions(native={"solver": "NoSuch"}))
    with pytest.raises(lm.UsageError, match="no_such_keyword"):
        backend(language).solve(model, SolveOptions(native={"no_such_keyword": 3}))


@pytest.mark.skipif("MOSEKLM_LICENSE_FILE" in os.environ, reason="there may be a MOSEK licence here")
def test_a_solver_without_a_licence_is_said_so(language):
    pytest.importorskip("mosek")
    from lipmodel.backends.base import Unlicensed

    if not isinstance(backend("mosek", usable=False).available(), Unlicensed):
        pytest.skip("there is a MOSEK licence here")
    with pytest.raises(lm.BackendUnavailable, match=r"(?i)mosek.*licen"):
        backend(language).solve(MODELS["lipsdp"](), SolveOptions(native={"solver": "MOSEK"}))


def test_nothing_is_printed(language):
    """Neither warnings nor banners of these packages reach stdout, nor stderr."""
    code = (
        "import lipmodel as lm, numpy as np\n"
        "net = lm.from_weights([np.arange(6.0).reshape(3, 2), np.ones((1, 3))])\n"
        f"lm.solve(net, 'geolip', norm='inf:2', backend={language!r}, witness=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_gpl_packages_are_imported_in_their_own_file_only():
    from pathlib import Path

    root = Path(lm.__file__).parent
    for package in ("picos", "cvxopt", "sdpap"):
        own = {"picos": "picos.py", "cvxopt": "cvxopt.py", "sdpap": "sdpa.py"}[package]
        for path in root.rglob("*.py"):
            text = path.read_text()
            if path != root / "backends" / own:
                assert f"import {package}\n" not in text, path
                assert f"from {package} import" not in text, path
                assert f"from {package}." not in text, path
