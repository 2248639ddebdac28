"""Known values: relaxations are reached, true constants never undercut (data beside the checkout, where present)."""

from __future__ import annotations

import importlib.util
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import lipmodel as lm

SHARED = Path(__file__).resolve().parents[2] / "shared"
FOLDER = SHARED / "oracles"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="no shared data beside the checkout")

REACHED = {"lipsdp-neuron": "lipsdp-neuron", "lipsdp-layer": "lipsdp-layer", "geolip": "geolip", "product": "product"}
BELOW = {"fgl", "exact", "certified-lower"}
FILES = (
    "tiny", "lipsdp", "gauss", "stream", "digits", "mixed", "eclipse", "chordal", "closed_form", "certdnn",
    "exlipbab", "lipbab", "real_networks", "sdpnn",
)  # fmt: skip


@cache
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("oracle_generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def network(key: str) -> Any:
    described = json.loads(key)
    if "file" in described:
        return lm.load(SHARED / described["file"])
    made = generator().RECIPES[described["recipe"]](**described["args"])
    model, _ = made.build("recipe")
    return lm.load(model)


@cache
def oracles(name: str) -> list[dict[str, Any]]:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text())["oracles"] if path.exists() else []


def asked(oracle: dict[str, Any]) -> tuple[Any, str, Any] | None:
    """(network, norm, outputs) of an oracle that this version can be asked about; None for the others."""
    norms = oracle.get("norm", {})
    pair = (str(norms.get("input")), str(norms.get("output")))
    output = oracle.get("output", "all")
    if oracle["domain"]["kind"] != "global" or any(n not in ("1", "2", "inf") for n in pair):
        return None
    if isinstance(output, dict) or oracle["status"] == "unverified":
        return None
    try:
        net = network(json.dumps(oracle["network"], sort_keys=True))
    except (lm.RefusedInput, KeyError, TypeError):
        return None
    return net, ":".join(pair), output


def cases(quantities: Any, most: int) -> list[Any]:
    found = []
    for name in FILES:
        listed = [o for o in oracles(name) if o["quantity"] in quantities and o["relation"] in ("equal", "at-least")]
        stride = max(1, math.ceil(len(listed) / most))
        found += [pytest.param(o, id=o["id"]) for o in listed[::stride]]
    return found


def reaches(oracle: dict[str, Any], backend: str | None, slack: float) -> None:
    question = asked(oracle)
    if question is None:
        pytest.skip("beyond this version")
    net, norm, outputs = question
    if backend in ("clarabel", "scs") and lm.increments(net).order > 70:
        pytest.skip("too large for this backend in a test")
    try:
        r = lm.solve(net, REACHED[oracle["quantity"]], norm=norm, outputs=outputs, backend=backend, witness=False)
    except lm.UsageError as error:
        pytest.skip(str(error))
    value, rtol = oracle["value"], max(oracle.get("rtol", 0.0), 0.0) + slack
    assert r.assurance == "proved"
    # where the product bound is smaller, it is the one reported
    assert max(r.bound, r.claim or 0.0) >= value * (1.0 - max(oracle.get("rtol", 0.0), 1e-9))
    assert r.bound <= value * (1.0 + rtol), (r.bound, value)


# The product here takes the best norm between layers, so it may be below the published product of spectral norms.
RELAXATIONS = {q for q in REACHED if q != "product"}


@pytest.mark.parametrize("oracle", cases(RELAXATIONS, 8))
def test_relaxations_are_reached(oracle: dict[str, Any]) -> None:
    if oracle["relation"] != "equal" or asked(oracle) is None or lm.increments(asked(oracle)[0]).neurons > 200:
        pytest.skip("not an equality of a network of this size")
    reaches(oracle, None if oracle["quantity"] == "lipsdp-layer" else "native", 2e-6)


@pytest.mark.parametrize("backend", ["clarabel", "scs"])
@pytest.mark.parametrize("oracle", cases(RELAXATIONS, 2))
def test_relaxations_are_reached_by_other_solvers(oracle: dict[str, Any], backend: str) -> None:
    reaches(oracle, backend, 2e-6 if backend == "clarabel" else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("oracle", cases(RELAXATIONS, 10**6))
def test_every_relaxation(oracle: dict[str, Any]) -> None:
    reaches(oracle, None, 2e-6)


@pytest.mark.parametrize("oracle", cases(BELOW, 25))
def test_no_bound_is_below_a_true_constant(oracle: dict[str, Any]) -> None:
    question = asked(oracle)
    if question is None or lm.increments(question[0]).neurons > 64:
        pytest.skip("beyond this version, or large")
    net, norm, outputs = question
    r = lm.solve(net, norm=norm, outputs=outputs)
    assert r.bound >= oracle["value"] * (1.0 - 1e-9)
    if oracle["quantity"] in ("fgl", "exact") and r.lower_bound is not None:
        assert r.lower_bound <= oracle["value"] * (1.0 + 1e-9)


@pytest.mark.parametrize("oracle", cases({"product"}, 4))
def test_the_product_is_no_worse_than_published(oracle: dict[str, Any]) -> None:
    question = asked(oracle)
    if question is None:
        pytest.skip("beyond this version")
    net, norm, outputs = question
    r = lm.solve(net, "product", norm=norm, outputs=outputs, witness=False)
    assert r.bound <= oracle["value"] * (1.0 + max(oracle.get("rtol", 0.0), 1e-9))
