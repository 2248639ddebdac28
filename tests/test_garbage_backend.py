"""Backends that return garbage, lie, raise or are interrupted: a bound is proved, as good as the closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from random_networks import FIXED, Chain, Phi, formal_constant

import lipmodel as lm
from lipmodel import backends
from lipmodel.backends.base import Capabilities, Installed, Point

Array = np.ndarray[Any, Any]
RELU, ABS = FIXED[0], FIXED[1]
BENT = Phi(op="LeakyRelu", low=-0.5, high=1.0, attributes=(("alpha", -0.5),))
NETS = {"relu": ([3, 4, 3, 2], (RELU, RELU)), "bent": ([2, 3, 3, 2], (BENT, ABS)), "one": ([2, 4, 1], (RELU,))}


def net_of(name: str) -> Chain:
    dims, phis = NETS[name]
    rng = np.random.default_rng(len(dims) + len(name))
    weights = tuple(rng.standard_normal((m, n)) for n, m in itertools.pairwise(dims))
    return Chain(weights=weights, biases=(None,) * len(weights), phis=(*phis, None))


class Panic(BaseException):
    """What a panic in a solver written in Rust arrives as."""


Answer = Callable[[Any, Any], Any]
"""From a model and options to whatever the backend returns."""


@pytest.fixture
def garbage() -> Iterator[Callable[[Answer], None]]:
    """Registers a backend "garbage" that answers as it is told; taken back after the test."""

    def register(answer: Answer) -> None:
        class Garbage:
            name, description = "garbage", "anything at all"
            capabilities = Capabilities(cones=frozenset({"psd"}))

            def available(self) -> Any:
                return Installed()

            def refuses(self, model: Any) -> str | None:
                return None

            def solve(self, model: Any, options: Any) -> Any:
                return answer(model, options)

        lm.register_backend(Garbage)  # type: ignore[type-abstract]

    yield register
    backends._REGISTERED.pop("garbage", None)


def filled(value: float) -> Answer:
    return lambda model, options: Point(
        values={v: np.full(v.size, value) for v in model.variables}, termination="optimal", objective=1e-12, lower=1e-12
    )


def mixed(seed: int, scale: float = 1.0, holes: tuple[float, ...] = ()) -> Answer:
    def answer(model: Any, options: Any) -> Point:
        rng = np.random.default_rng(seed)
        values = {}
        for v in model.variables:
            values[v] = scale * np.exp(3.0 * rng.standard_normal(v.size)) * np.sign(rng.random(v.size) - 0.2)
            for hole in holes:
                values[v][rng.integers(0, v.size)] = hole
        return Point(values=values, termination="inaccurate", objective=-1.0, lower=math.nan)

    return answer


def shaped(make: Callable[[Any], Any]) -> Answer:
    return lambda model, options: Point(
        values={v: make(v) for v in model.variables}, termination="optimal", objective=0.0
    )


def lying(factor: float, claim: float) -> Answer:
    """A true solution, moved away, with a claim about the optimum that is false."""

    def answer(model: Any, options: Any) -> Point:
        point = backends.backend("clarabel").solve(model, options)
        assert point.values is not None
        values = {v: factor * np.asarray(x) * np.linspace(1.0, 3.0, v.size) for v, x in point.values.items()}
        return replace(point, values=values, objective=claim, lower=claim, termination="optimal")

    return answer


def returning(value: Any) -> Answer:
    return lambda model, options: value


def raising(error: BaseException) -> Answer:
    def answer(model: Any, options: Any) -> Any:
        raise error

    return answer


def missing(model: Any, options: Any) -> Point:
    return Point(values={}, termination="optimal", objective=1.0)


def stranger(model: Any, options: Any) -> Point:
    return Point(values={"t": np.ones(3)}, termination="optimal", objective=1.0)


ANSWERS: dict[str, Answer] = {
    "zeros": filled(0.0),
    "ones": filled(1.0),
    "negative": filled(-1.0),
    "huge": filled(1e300),
    "largest": filled(1.7e308),
    "tiny": filled(1e-300),
    "subnormal": filled(5e-324),
    "nan": filled(math.nan),
    "inf": filled(math.inf),
    "-inf": filled(-math.inf),
    **{f"random {k}": mixed(k) for k in range(6)},
    "random and tiny": mixed(7, 1e-40),
    "random and huge": mixed(8, 1e40),
    "random with holes": mixed(9, 1.0, (math.nan, math.inf, 0.0)),
    "wrong sizes": shaped(lambda v: np.ones(v.size + 1)),
    "matrices": shaped(lambda v: np.ones((v.size, v.size))),
    "numbers": shaped(lambda v: 1.0),
    "texts": shaped(lambda v: "many"),
    "nothings": shaped(lambda v: None),
    "objects": shaped(lambda v: np.array([None] * v.size, dtype=object)),
    "complex": shaped(lambda v: np.ones(v.size) * 1j),
    "lists": shaped(lambda v: [1.0] * v.size),
    "missing": missing,
    "strange keys": stranger,
    "not a mapping": returning(Point(values=[1.0, 2.0], termination="optimal", objective=1.0)),  # type: ignore[arg-type]
    "nothing": returning(None),
    "a tuple": returning((1, 2)),
    "no values": returning(Point(values=None, termination="failed")),
    "no values, optimal": returning(Point(values=None, termination="optimal", objective=1e-9, lower=1e-9)),
    "an unknown termination": returning(Point(values=None, termination="wonderful", objective=1.0)),  # type: ignore[arg-type]
    "an objective that is text": returning(Point(values=None, termination="optimal", objective="1")),  # type: ignore[arg-type]
    "an error": raising(ValueError("a numerical difficulty")),
    "a type error": raising(TypeError()),
    "no memory": raising(MemoryError()),
    "recursion": raising(RecursionError()),
    "an interrupt": raising(KeyboardInterrupt()),
    "a panic": raising(Panic("a Rust panic")),
    "an exit": raising(SystemExit(0)),
    "arithmetic": raising(ZeroDivisionError("x")),
    "an assertion": raising(AssertionError("x")),
    "lying low": lying(1.0, 1e-6),
    "lying high": lying(1.0, 1e6),
    "lying low, small": lying(1e-8, 1e-6),
    "lying high, large": lying(1e8, 1e12),
    "lying nan": lying(1.0, math.nan),
    "lying inf": lying(3.0, math.inf),
    "lying -inf": lying(3.0, -math.inf),
}

QUESTIONS = {
    "relu": (("lipsdp-layer", "2:inf"),),
    "bent": (("lipsdp-neuron", "2:2"), ("geolip", "inf:1")),
    "one": (("geolip", "inf:inf"),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The formal constant; the product bound; the bound proved when no solver has time for anything."""

    formal: float
    product: float
    closed: float


@pytest.fixture(scope="module")
def references() -> dict[tuple[str, str, str], Reference]:
    table = {}
    for name, questions in QUESTIONS.items():
        chain = net_of(name)
        network = chain.network()
        for formulation, norm in questions:
            p, q = norm.split(":")
            table[name, formulation, norm] = Reference(
                formal=formal_constant(chain.plan(), p, q).value,
                product=lm.solve(network, "product", norm=norm, witness=False).bound,
                closed=lm.solve(network, formulation, norm=norm, time_limit=1e-6, witness=False).bound,
            )
    return table


@pytest.mark.parametrize("what", ANSWERS)
def test_garbage(what: str, garbage: Any, references: dict[tuple[str, str, str], Reference]) -> None:
    garbage(ANSWERS[what])
    # one that claims a false optimum above all closed forms keeps them from being tuned, not from being used
    room = 1.05 if what.startswith("lying high") else 1.0 + 1e-9
    for (name, formulation, norm), known in references.items():
        network = net_of(name).network()
        result = lm.solve(network, formulation, norm=norm, backend="garbage", witness=False)
        where = f"{name} {formulation} {norm}"
        assert result.assurance == "proved", where
        assert result.bound >= known.formal * (1.0 - 1e-12), where
        assert result.bound <= known.product * (1.0 + 1e-9), where
        assert result.bound <= known.closed * room, where
        assert lm.verify(network, result).bound == result.bound, where
        assert result.gap is None or 0.0 <= result.gap <= 1.0, where
        assert "≤" in result.sentence()
        assert lm.Result.from_json(result.to_json()).to_json() == result.to_json()


@pytest.mark.parametrize("state", [None, "ready", Installed, lm.UsageError("x")])
def test_a_backend_that_does_not_know_its_state(state: Any, garbage: Any) -> None:
    """A broken backend that is asked for by name is an error in plain words; one that is not, is passed over."""
    garbage(filled(1.0))

    def available(self: Any) -> Any:
        if isinstance(state, Exception):
            raise state
        return state

    backends._REGISTERED["garbage"].available = available  # type: ignore[method-assign]
    network = net_of("one").network()
    with pytest.raises(lm.LipmodelError):
        lm.solve(network, "geolip", backend="garbage", witness=False)
    assert lm.solve(network, "geolip", witness=False).assurance == "proved"


def test_an_interrupt_in_a_family(garbage: Any) -> None:
    """One interrupt ends the solving of all members, and every one of them is still proved."""
    calls = []

    def answer(model: Any, options: Any) -> Any:
        calls.append(model.name)
        raise KeyboardInterrupt

    garbage(answer)
    network = net_of("relu").network()
    result = lm.solve(network, "geolip", norm="1:inf", backend="garbage", witness=False)
    assert len(calls) == 1
    assert result.termination == "interrupted"
    assert result.assurance == "proved"
    assert lm.verify(network, result).bound == result.bound
    assert result.bound <= lm.solve(network, "product", norm="1:inf", witness=False).bound * (1 + 1e-9)
