"""Backends: the shipped conformance suite, on our backends and on ones that are wrong, and what is special to each."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.backends import backend, backend_names
from lipmodel.backends.base import Backend, BackendOption, Capabilities, Installed, Point, SolveOptions, Unlicensed
from lipmodel.backends.conic import task
from lipmodel.backends.settings import check_options, distribution_state, read_settings
from lipmodel.network.increments import chain_of
from lipmodel.testing.backends import backend_checks, decoupled, lipsdp, mixed_norm, parametrize_with_checks
from lipmodel.testing.networks import random_system

CHECKS = backend_checks()
CONIC = ("conduct", "linear", "cone", "matrix")
WEAK_ROWS = "rows of linear programs are not scaled, and this solver does not scale them enough"
SPLITS = "it splits free variables, and loses accuracy where rows have no interior"


@parametrize_with_checks("native", "clarabel", "highs", "cvxopt")
def test_conformance(backend, check):
    check(backend)


@parametrize_with_checks("scs", expected_failures={"badly-scaled-rows": WEAK_ROWS})
def test_conformance_of_scs(backend, check):
    check(backend)


@parametrize_with_checks("sdpa", expected_failures={"absolute-values": SPLITS, "badly-scaled-rows": WEAK_ROWS})
def test_conformance_of_sdpa(backend, check):
    check(backend)


@parametrize_with_checks("mosek", "copt", "cvxpy", "picos", tags=CONIC)
def test_conformance_on_conic_programs(backend, check):
    check(backend)


@pytest.mark.slow
@parametrize_with_checks("mosek", "copt", "cvxpy", "picos", tags=["network"])
def test_conformance_on_networks(backend, check):
    check(backend)


def test_every_backend_is_in_the_suite():
    assert set(backend_names()) >= {
        *("native", "highs", "clarabel", "scs", "mosek", "sdpa", "cvxopt", "copt", "cvxpy", "picos")
    }
    assert backend_names()[:4] == ["native", "highs", "clarabel", "scs"]


def test_checks_have_names_tags_and_versions():
    names = [str(check) for check in CHECKS]
    assert len(set(names)) == len(names)
    assert len([c for c in CHECKS if c.since == 2]) >= 30
    first = {str(c) for c in backend_checks(version=1)}
    assert {"declaration", "tied-multipliers", "matrix-variable", "infeasible", "time-limit", "scaled-inf-1"} <= first
    assert "off-diagonal" not in first
    assert all(c.tags for c in CHECKS)
    linear = {str(c) for c in backend_checks(tags=["linear"])}
    assert linear >= {"vertex", "equalities"}
    assert not linear & {"off-diagonal", "declaration"}


def test_expected_failures_are_strict_and_known():
    marked = parametrize_with_checks("clarabel", expected_failures={"vertex": "pretended"})
    (case,) = [c for c in marked.args[1] if c.id == "clarabel-vertex"]
    (mark,) = case.marks
    assert mark.name == "xfail"
    assert mark.kwargs["strict"] is True
    with pytest.raises(lm.UsageError, match="no-such-check"):
        parametrize_with_checks("clarabel", expected_failures={"no-such-check": "x"})


# -------------------------------------------------------------------------------- backends that are wrong


class Wrong:
    """Clarabel with one thing done wrong."""

    name = "wrong"
    description = "a backend that does one thing wrong"
    capabilities = Capabilities(cones=frozenset({"psd", "nonnegative", "zero"}))

    def __init__(self, change):
        self.change = change

    def available(self):
        return Installed()

    def refuses(self, model):
        return None

    def solve(self, model, options):
        return self.change(model, backend("clarabel").solve(model, dataclasses.replace(options, native={})))


def with_values(change):
    def changed(model, point):
        if point.values is None:
            return point
        return dataclasses.replace(point, values={v: change(v, x) for v, x in point.values.items()})

    return changed


def mutating(model, point):
    model.variables.append(lm.Model("m").symmetric("extra", 2))
    return point


def printing(model, point):
    os.write(1, b"Hello from the solver\n")
    return point


FAULTS = {
    "unchanged": (lambda model, point: point, {"unknown-option"}),
    "objective": (
        lambda model, point: dataclasses.replace(
            point, objective=None if point.objective is None else 1.01 * point.objective
        ),
        {"tied-multipliers", "linear-map", "two-blocks"},
    ),
    "nan": (with_values(lambda v, x: np.where(np.arange(x.size) == 0, np.nan, x)), {"tied-multipliers", "chain-2-2"}),
    "shape": (with_values(lambda v, x: x[:-1]), {"tied-multipliers", "one-iteration"}),
    "sign": (with_values(lambda v, x: -x), {"tied-multipliers", "matrix-variable"}),
    "shrunk": (with_values(lambda v, x: 0.9 * x), {"tied-multipliers", "equality-row"}),
    "missing": (lambda model, point: dataclasses.replace(point, values={}), {"tied-multipliers", "time-limit"}),
    "boast": (lambda model, point: dataclasses.replace(point, termination="optimal"), {"infeasible", "unbounded"}),
    "invented": (lambda model, point: dataclasses.replace(point, termination="fine"), {"linear-map", "short-time"}),
    "lower": (lambda model, point: dataclasses.replace(point, lower=1e9), {"tied-multipliers", "gap"}),
    "printing": (printing, {"silent"}),
    "forgetful": (lambda model, point: dataclasses.replace(point, lower=None), {"gap"}),
    "doubled": (with_values(lambda v, x: 2.0 * x), {"off-diagonal", "vertex", "norm-of-constants", "all-cones"}),
    "mutating": (mutating, {"tied-multipliers"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_suite_finds_a_wrong_backend(fault):
    change, expected = FAULTS[fault]
    wrong = Wrong(change)
    assert isinstance(wrong, Backend)
    failed = set()
    for check in CHECKS:
        if str(check) in expected:
            with pytest.raises(AssertionError):
                check(wrong)
            failed.add(str(check))
    assert failed == expected


def test_a_general_backend_may_not_refuse_a_small_model():
    refusing = Wrong(lambda model, point: point)
    refusing.refuses = lambda model: "not today"
    with pytest.raises(AssertionError, match="a general backend may not refuse"):
        next(c for c in CHECKS if str(c) == "linear-map")(refusing)


# -------------------------------------------------------------------------------- clarabel and scs


@pytest.mark.parametrize("name", ["clarabel", "scs"])
def test_deep_networks_keep_their_accuracy(name):
    """The optimum, in units of the scaled problem, is tiny: absolute tolerances would stop far too early."""
    rng = np.random.default_rng(12)
    depth, width = (12, 5) if name == "clarabel" else (5, 5)
    dims = [3, *[width] * depth, 2]
    system = chain_of([rng.standard_normal((b, a)) for a, b in pairwise(dims)])
    model = lipsdp(system)
    point = backend(name).solve(model, SolveOptions())
    assert point.termination == "optimal"
    assert abs(point.objective - point.lower) <= 1e-6 * point.objective


@pytest.mark.parametrize("name", ["clarabel", "scs"])
def test_the_tolerance_decides_what_is_optimal(name):
    model = mixed_norm(random_system("residual", 1), "inf", "2")
    rough = backend(name).solve(model, SolveOptions(max_iterations=12 if name == "clarabel" else 60))
    assert rough.termination in ("iteration-limit", "optimal")
    point = backend(name).solve(model, SolveOptions(tol=1e-6))
    assert point.termination == "optimal"
    assert abs(point.objective - point.lower) <= 1e-6 * abs(point.objective) + 1e-9
    assert point.iterations > rough.iterations
    assert point.message


@pytest.mark.parametrize(
    ("status", "lower", "termination"),
    [
        ("optimal", 1.0 - 1e-9, "optimal"),
        ("optimal", 0.99, "inaccurate"),
        ("inaccurate", 1.0 + 1e-9, "optimal"),
        ("inaccurate", 0.99, "inaccurate"),
        ("optimal", np.nan, "inaccurate"),
        ("time-limit", 1.0, "time-limit"),
        ("iteration-limit", 1.0, "iteration-limit"),
        ("failed", 1.0, "failed"),
    ],
)
def test_the_gap_decides_what_is_called_optimal(status, lower, termination):
    work = task(lipsdp(random_system("chain", 0)), SolveOptions(tol=1e-6))
    x = np.ones(work.program.size)
    point = work.point(x, status, 1.0, lower, iterations=7, message="text")
    assert (point.termination, point.iterations, point.message) == (termination, 7, "text")
    if termination == "failed":
        assert point.values is None
        assert point.objective is None
        return
    assert point.objective == pytest.approx(work.unit + work.program.offset)
    assert (point.lower is None) == bool(np.isnan(lower))
    for wrong in (x[:-1], np.full_like(x, np.nan)):
        nothing = work.point(wrong, status, 1.0, lower, iterations=0, message="")
        assert nothing.values is None
        assert nothing.objective is None
        assert nothing.termination == (status if status.endswith("limit") else "failed")


@pytest.mark.parametrize("name", ["clarabel", "scs"])
def test_building_counts_towards_the_time_limit(name, monkeypatch):
    from lipmodel.bridges import plan

    class Clock:
        now = 0.0

        @staticmethod
        def monotonic():
            Clock.now += 0.5
            return Clock.now

    monkeypatch.setattr("lipmodel.backends.conic.time", Clock)
    seen = []
    monkeypatch.setattr(plan, "prepare", lambda model, prepare=plan.prepare: seen.append(model) or prepare(model))
    point = backend(name).solve(lipsdp(random_system("chain", 0)), SolveOptions(time_limit=0.4))
    assert len(seen) == 1
    assert point.values is None
    assert point.termination == "time-limit"


@pytest.mark.parametrize("name", ["clarabel", "scs"])
def test_coefficients_out_of_range_are_a_failure_and_no_crash(name):
    huge = decoupled(np.array([1e300, 1e-300]), np.zeros(2), np.ones(2), 2)
    m = lm.Model("overflow")
    z = m.signal("z", 1)
    u = m.variable("u")
    m.require(lm.inner(1e300 * z, 1e300 * z, weight=u) - lm.inner(z, z) >= 0)
    m.minimize(u)
    for model in (m, lipsdp(huge)):
        with np.errstate(all="ignore"):
            point = backend(name).solve(model, SolveOptions())
        assert isinstance(point, Point)
        assert point.values is None or all(np.all(np.isfinite(x)) for x in point.values.values())


@pytest.mark.parametrize("name", ["clarabel", "scs"])
def test_native_options_reach_the_solver(name):
    model = mixed_norm(random_system("mixed", 0), "inf", "2")
    few = {"clarabel": {"max_iter": 3}, "scs": {"max_iters": "5"}}[name]
    point = backend(name).solve(model, SolveOptions(native=few))
    assert point.iterations <= 5
    assert point.termination != "optimal"


def test_options_are_checked_against_the_defaults():
    known = {"tol": 1e-8, "steps": 3, "loud": False, "method": "a"}
    given = {"tol": 1, "steps": "4", "loud": True, "method": "b"}
    assert check_options("x", given, known) == {"tol": 1.0, "steps": 4, "loud": True, "method": "b"}
    with pytest.raises(lm.UsageError, match="'x' has no option 'tolerance'; its options: loud, method, steps, tol"):
        check_options("x", {"tolerance": 1}, known)
    for key, value in (("tol", "tight"), ("steps", None), ("loud", "maybe")):
        with pytest.raises(lm.UsageError, match=f"option {key} of 'x'.*default"):
            check_options("x", {key: value}, known)


ABILITIES = Capabilities(
    cones=frozenset({"psd"}),
    options=(
        BackendOption(name="max_iterations", default=0, help="at most"),
        BackendOption(name="method", default="a", help="one of two", choices=("a", "b")),
        BackendOption(name="loud", default=False, help="or not"),
    ),
)


def settings_of(native, known=None, **options):
    return read_settings("x", ABILITIES, SolveOptions(native=native, **options), known)


def test_settings_are_split_into_the_backends_own_and_the_solvers():
    known = {"tol": 1e-8, "loud": True}
    found = settings_of({"tol": "1e-3", "method": "b", "max_iterations": 4.0}, known)
    assert found.own == {"max_iterations": 4, "method": "b", "loud": False}
    assert found.passed == {"tol": 1e-3}
    assert settings_of({}, known, max_iterations=9).max_iterations == 9
    assert settings_of({"max_iterations": 3}, known, max_iterations=9).max_iterations == 3
    assert settings_of({"anything": object}).passed == {"anything": object}


@pytest.mark.parametrize(
    ("native", "message"),
    [
        ({"tolerance": 1}, "'x' has no option 'tolerance'; its options: loud, max_iterations, method, tol"),
        ({"method": "c"}, "option method of 'x': 'c' is none of a, b"),
        ({"max_iterations": "many"}, "option max_iterations.*not a int.*default 0"),
        ({"max_iterations": 2.5}, "option max_iterations.*2.5 is not a int"),
        ({"max_iterations": float("inf")}, "option max_iterations"),
        ({"loud": "perhaps"}, "option loud.*not a bool"),
        ({"tol": None}, "option tol.*not a float"),
    ],
)
def test_settings_that_are_wrong(native, message):
    with pytest.raises(lm.UsageError, match=message):
        settings_of(native, {"tol": 1e-8})


def test_the_three_states():
    missing = distribution_state("no_such_package", "no-such-package", "extra")
    assert str(missing) == "missing: pip install 'lipmodel[extra]'"
    assert isinstance(distribution_state("numpy", "numpy", "x"), Installed)
    assert distribution_state("json", "no-such-distribution", "x") == Installed()
    assert str(Unlicensed(reason="no file")) == "unlicensed: no file"


def test_asking_for_the_states_imports_no_solver():
    code = (
        "import sys\n"
        "from lipmodel.backends import backend, backend_names\n"
        "for name in backend_names():\n"
        "    if name != 'mosek':\n"
        "        backend(name, usable=False).available()\n"
        "assert not {'clarabel', 'scs', 'cvxpy', 'picos', 'cvxopt', 'highspy', 'coptpy', 'sdpap'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
