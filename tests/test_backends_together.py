"""Every formulation on every backend: the same bounds; and whatever happens to a solver, a proved bound."""

from __future__ import annotations

import itertools
import os
import signal
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.backends import backend, backend_names
from lipmodel.backends.base import Installed, Missing, Point, SolveOptions
from lipmodel.backends.conic import Task
from lipmodel.child import in_child
from lipmodel.machine import CAN_FORK
from lipmodel.network.increments import chain_of
from lipmodel.testing.backends import mixed_norm
from lipmodel.testing.programs import PROGRAMS

FORMULATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "lipsdp-neuron": ("lipsdp-neuron", {}),
    "lipsdp-layer": ("lipsdp-layer", {}),
    "chordal-lipsdp": ("chordal-lipsdp", {}),
    "geolip": ("geolip", {}),
    "lipsdp-neuron-dd": ("lipsdp-neuron", {"cone": "dd"}),
    "lipsdp-neuron-sdd": ("lipsdp-neuron", {"cone": "sdd"}),
    "geolip-dd": ("geolip", {"cone": "dd"}),
    "geolip-sdd": ("geolip", {"cone": "sdd"}),
}
WIDE = [np.random.default_rng(k).standard_normal(shape) for k, shape in enumerate([(12, 6), (12, 12), (8, 12)])]
LINEAR = ("lipsdp-neuron-dd", "geolip-dd")
FIRST_ORDER = {"scs"}
HERE = [name for name in backend_names() if isinstance(backend(name, usable=False).available(), Installed)]


@lru_cache(maxsize=4)
def network(kind: str) -> lm.Network:
    rng = np.random.default_rng(3)
    if kind == "chain":
        return lm.from_weights([rng.standard_normal((4, 3)), rng.standard_normal((3, 4)), rng.standard_normal((2, 3))])
    if kind == "abs":
        return lm.from_weights([rng.standard_normal((4, 2)), rng.standard_normal((1, 4))], activation="abs")
    dims = [6, 12, 10, 12, 8, 4]
    return lm.from_weights([rng.standard_normal((b, a)) / np.sqrt(a) for a, b in itertools.pairwise(dims)])


@lru_cache(maxsize=64)
def reference(kind: str, stated: str) -> lm.Result:
    formulation, options = FORMULATIONS[stated]
    return lm.solve(network(kind), formulation, backend="clarabel", options=options, witness=False)


def agree(kind: str, stated: str, name: str) -> None:
    formulation, options = FORMULATIONS[stated]
    beyond = {"native": stated.endswith("dd"), "highs": stated not in LINEAR}
    if beyond.get(name, False):
        with pytest.raises(lm.UsageError, match="does not take this model"):
            lm.solve(network(kind), formulation, backend=name, options=options, witness=False)
        return
    result = lm.solve(network(kind), formulation, backend=name, options=options, witness=False)
    expected, close = reference(kind, stated), 1e-2 if name in FIRST_ORDER else 1e-5
    assert (result.assurance, result.backend) == ("proved", name)
    assert result.bound == pytest.approx(expected.bound, rel=close)
    if result.termination == "optimal":  # else the claim is not one
        assert result.claim == pytest.approx(expected.claim, rel=close)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("stated", FORMULATIONS)
def test_bounds_agree(stated, name):
    agree("chain", stated, name)


@pytest.mark.parametrize("name", HERE)
def test_bounds_agree_on_another_activation(name):
    agree("abs", "lipsdp-neuron-dd" if name == "highs" else "lipsdp-neuron", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("stated", FORMULATIONS)
def test_bounds_agree_on_a_deeper_network(stated, name):
    agree("deep", stated, name)


# -------------------------------------------------------------------------------- trouble


def troubled(name: str, **settings: Any) -> lm.Result:
    """A solve of the small network, whose bound is proved, verified and no worse than the product bound."""
    chain = network("chain")
    options = {"cone": "dd"} if name == "highs" else {}
    result = lm.solve(chain, "geolip", norm="inf:2", backend=name, options=options, witness=False, **settings)
    assert result.assurance == "proved"
    assert result.bound <= lm.solve(chain, "product", norm="inf:2", witness=False).bound * (1.0 + 1e-9)
    assert lm.verify(chain, result).bound == result.bound
    return result


@pytest.mark.parametrize("name", HERE)
def test_one_iteration(name):
    result = troubled(name, backend_options={"max_iterations": 1})
    assert result.termination in ("iteration-limit", "inaccurate", "failed", "optimal")


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("seconds", [1e-9, 0.05])
def test_no_time(seconds, name):
    troubled(name, time_limit=seconds)


@pytest.mark.parametrize("name", [name for name in HERE if name != "native"])
def test_a_point_of_nothing_but_nan(name, monkeypatch):
    point = Task.point

    def spoiled(self: Task, x: Any, *rest: Any, **more: Any) -> Point:
        return point(self, np.asarray(x) * np.nan, *rest, **more)

    monkeypatch.setattr(Task, "point", spoiled)
    assert troubled(name).termination == "failed"


@pytest.mark.parametrize("name", HERE)
def test_what_is_feasible_is_called_infeasible(name, monkeypatch):
    monkeypatch.setattr(
        type(backend(name)),
        "solve",
        lambda self, model, options: Point(values=None, termination="failed", message="primal infeasible"),
    )
    assert troubled(name).claim is None


@pytest.mark.skipif(not CAN_FORK, reason="solvers run in processes of their own only where these can be forked")
@pytest.mark.parametrize("name", [name for name in HERE if name in ("clarabel", "sdpa", "copt", "cvxpy", "picos")])
@pytest.mark.parametrize("end", ["killed", "left", "stuck", "raised"])
def test_what_becomes_of_the_process_of_a_solver(end, name, monkeypatch):
    import importlib
    import time

    def ending(*given: Any, **more: Any) -> Any:
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "left":
            os._exit(0)
        if end == "stuck":
            time.sleep(3600)
        raise MemoryError("no memory is left")

    module = importlib.import_module(f"lipmodel.backends.{name}")
    monkeypatch.setattr(module, "_solved", ending)
    monkeypatch.setattr(module, "GRACE", 0.0, raising=False)
    monkeypatch.setattr(module, "SLOW", 0.0, raising=False)
    result = troubled(name, time_limit=1.0 if end == "stuck" else None)
    assert result.termination == ("time-limit" if end == "stuck" else "failed")


@pytest.mark.skipif(not CAN_FORK, reason="processes cannot be forked")
def test_calls_in_a_child():
    assert in_child(lambda: np.arange(1_000_000).sum(), seconds=None, quiet=True).value == 499999500000
    raised = in_child(lambda: 1 / 0, seconds=None, quiet=True)
    assert (raised.ended, raised.message) == ("raised", "ZeroDivisionError: division by zero")
    assert in_child(lambda: os._exit(7), seconds=None, quiet=True).message.startswith("the solver's process ended with")
    assert in_child(lambda: signal.pause(), seconds=0.1, quiet=True).ended == "late"
    assert in_child(lambda: os.getppid(), seconds=5.0, quiet=False).value == os.getpid()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.skipif(not CAN_FORK, reason="processes cannot be forked")
def test_an_interrupt_ends_the_child(monkeypatch):
    import select

    children = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: children.append(fork()) or children[-1])

    def interrupted(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(select, "select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_child(signal.pause, seconds=None, quiet=True)
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], 0)


@pytest.mark.skipif(not CAN_FORK, reason="processes cannot be forked")
@pytest.mark.parametrize("name", HERE)
def test_a_process_that_is_forked_after_a_solve_can_solve(name):
    """No pool of threads is left behind for which a forked process would wait for ever."""
    model = mixed_norm(chain_of([w / 3.0 for w in WIDE]), "inf", "2")
    if backend(name).refuses(model) is not None:
        model = PROGRAMS["absolute-values"].problem()[0]
    here = backend(name).solve(model, SolveOptions()).objective
    there = in_child(lambda: backend(name).solve(model, SolveOptions()).objective, seconds=60.0, quiet=True)
    assert there.ended == "done"
    assert there.value == pytest.approx(here, rel=1e-6)


def test_clarabel_answers_the_same_from_a_process_of_its_own(monkeypatch):
    from lipmodel.backends import clarabel

    here = reference("chain", "geolip")
    monkeypatch.setattr(clarabel, "SLOW", 0.0)
    there = lm.solve(network("chain"), "geolip", backend="clarabel", witness=False)
    assert (there.bound, there.claim, there.termination) == (here.bound, here.claim, here.termination)


# -------------------------------------------------------------------------------- which one


def test_backends_on_request_are_never_chosen():
    on_request = [name for name in backend_names() if backend(name, usable=False).capabilities.on_request]
    assert set(on_request) == {"mosek", "sdpa", "cvxopt", "copt", "cvxpy", "picos"}


@pytest.mark.skipif("highs" not in HERE, reason="HiGHS is not installed")
def test_a_linear_program_goes_to_highs():
    result = lm.solve(network("chain"), "geolip", norm="inf:2", options={"cone": "dd"}, witness=False)
    assert result.backend == "highs"
    assert lm.solve(network("chain"), "geolip", norm="inf:2", witness=False).backend == "native"


def test_a_linear_program_goes_to_clarabel_without_highs(monkeypatch):
    monkeypatch.setattr(type(backend("highs", usable=False)), "available", lambda self: Missing(extra="highs"))
    assert (
        lm.solve(network("chain"), "geolip", norm="inf:2", options={"cone": "dd"}, witness=False).backend == "clarabel"
    )
