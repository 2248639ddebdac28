"""Formulations from a user's file with mistakes in them: a clear error or a looser proved bound, never a false one."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_networks import FIXED, Chain, formal_constant

import lipmodel as lm
from lipmodel.certify.assumed import STATEMENT
from lipmodel.cli import main

SOUND = re.findall(
    r"\w+",
    """Right WrongSign Forgotten AllForgotten FreeSign OneForAll NegativeWeight FalseSlopes WrongNorm WrongNorms
    WrongDual HalfCoupling NoCoupling TwoDuals WrongPrice NegativePrice WrongSet Contradiction Capped InputForOutput
    OutputForInput InputPaired ForgedRole ForgedOutput ForgedRule EmptyRule Ghost Stated FalselyStated FalseOutput""",
)
"""Mistakes that end in a proved bound."""
REFUSED = {
    "NoObjective": "no objective",
    "ConstantObjective": "objective is a constant",
    "NoConstraint": "no matrix constraint",
    "TwoVariables": "product of two variables",
    "NotANumber": "finite",
    "WrongSize": "fit",
    "NoActivation": "not a LinearForm",
    "NotRequired": "form >= 0",
    "ReturnsNothing": "returned NoneType",
    "ReturnsTheClass": "returned ",
    "Raises": "ZeroDivisionError",
    "Exits": "SystemExit",
    "TooFewArguments": "TypeError",
    "ChangesSlopes": "read-only",
    "ChangesWeights": "read-only",
    "ChangesOutput": "read-only",
    "NoNorms": "norms",
    "StrangeNorms": "norm pair",
    "NormsAsText": "norm pair",
}
"""Mistakes that end in an error, and what its message says."""
NORMS = {"WrongNorm": "inf:2", "WrongNorms": "inf:1", "WrongDual": "2:1"}
BACKENDS = ("clarabel", "scs", None)


def chain(dims: list[int]) -> Chain:
    rng = np.random.default_rng(5)
    weights = tuple(rng.standard_normal((m, n)) for n, m in itertools.pairwise(dims))
    return Chain(weights=weights, biases=(None,) * len(weights), phis=(*[FIXED[0]] * (len(weights) - 1), None))


NET = chain([2, 3, 3, 2])
MINE = Path(__file__).with_name("bad_formulations.py")


def constant(norm: str) -> float:
    p, q = norm.split(":")
    return formal_constant(NET.plan(), p, q).value


@pytest.mark.parametrize("name", SOUND)
def test_a_mistake_gives_no_false_bound(name: str) -> None:
    network, norm = NET.network(), NORMS.get(name, "2:2")
    product = lm.solve(network, "product", norm=norm, witness=False).bound
    for backend in BACKENDS:
        result = lm.solve(network, f"{MINE}:{name}", norm=norm, backend=backend)
        assert result.assurance == "proved"
        assert result.certificate["assumptions"] == []
        assert constant(norm) * (1 - 1e-12) <= result.bound <= product * (1 + 1e-9), backend
        assert lm.verify(network, result).assumptions == ()


@pytest.mark.parametrize("name", SOUND)
def test_what_is_stated_by_hand_is_an_assumption(name: str) -> None:
    """With assurance "model" a bound may rest on what the formulation states, and then says so."""
    network, norm = NET.network(), NORMS.get(name, "2:2")
    result = lm.solve(network, f"{MINE}:{name}", norm=norm, backend="clarabel", assurance="model")
    verdict = lm.verify(network, json.dumps(result.to_json()))
    assert (result.assurance == "model") == bool(verdict.assumptions) == bool(result.certificate["assumptions"])
    assert set(verdict.assumptions) <= {STATEMENT}
    if result.assurance == "proved":
        assert result.bound >= constant(norm) * (1 - 1e-12)
    assert result.lower_bound is not None
    assert result.lower_bound <= min(result.bound, constant(norm) * (1 + 1e-9))


def test_true_statements_are_used() -> None:
    network = NET.network()
    right = lm.solve(network, f"{MINE}:Right", backend="clarabel")
    stated = lm.solve(network, f"{MINE}:Stated", backend="clarabel", assurance="model")
    assert stated.assurance == "model"
    assert stated.bound == pytest.approx(right.bound, rel=1e-5)
    assert "assumptions" in stated.certificate
    assert "model" in stated.sentence()


def test_a_false_statement_that_a_witness_contradicts_is_not_used() -> None:
    """Two points prove that the assumption is false: the bound is then proved without it, and the reason is said."""
    said: list[str] = []
    network = NET.network()
    result = lm.solve(network, f"{MINE}:FalseOutput", backend="clarabel", assurance="model", report=said.append)
    assert result.assurance == "proved"
    assert result.bound >= constant("2:2") * (1 - 1e-12)
    assert any("contradict" in line for line in said), said


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_with_an_error_of_their_own(name: str, tmp_path: Path, capsys: Any) -> None:
    network = NET.network()
    with pytest.raises(lm.UsageError, match=REFUSED[name]):
        lm.solve(network, f"{MINE}:{name}", backend="clarabel")
    network.save(tmp_path / "net.onnx")
    assert main(["solve", str(tmp_path / "net.onnx"), "-f", f"{MINE}:{name}", "-q"]) == 2
    captured = capsys.readouterr()
    assert "≤" not in captured.out
    assert "Traceback" not in captured.err
    # the network is as it was
    assert lm.solve(network, "lipsdp-neuron", witness=False).bound >= constant("2:2") * (1 - 1e-12)


@pytest.mark.parametrize("kind", ["nan", "negative", "zero", "tiny"])
def test_bad_multipliers(kind: str) -> None:
    network = NET.network()
    result = lm.solve(network, f"{MINE}:BadMultipliers", options={"kind": kind}, witness=False)
    product = lm.solve(network, "product", norm="2", witness=False).bound
    assert constant("2:2") * (1 - 1e-12) <= result.bound <= product * (1 + 1e-9)
    assert lm.verify(network, result).bound == result.bound


@pytest.mark.parametrize("kind", ["shape", "count", "text", "none", "objects", "lists"])
def test_multipliers_that_do_not_fit(kind: str) -> None:
    with pytest.raises(lm.UsageError, match="multipliers"):
        lm.solve(NET.network(), f"{MINE}:BadMultipliers", options={"kind": kind}, witness=False)


@pytest.mark.parametrize("value", [1e-9, 0.0, -1.0, float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("rule", ["product", "none", "lmi"])
def test_norm_expressions_that_are_too_small(value: float, rule: str) -> None:
    """A constant is no proof: the product rule is evaluated anew, or the expression is refused."""
    network = NET.network()
    for norm in ("2:2", "inf:1"):
        try:
            result = lm.solve(
                network, f"{MINE}:SmallNorm", norm=norm, options={"value": value, "rule": rule}, witness=False
            )
        except lm.UsageError:
            assert not value >= 0.0
            continue
        assert result.bound >= constant(norm) * (1 - 1e-12)
        assert lm.verify(network, result).bound == result.bound
