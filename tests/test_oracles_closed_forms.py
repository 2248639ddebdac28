"""Known values of the bounds of the literature that need no solver: each to its tolerance, from both sides."""

from __future__ import annotations

from typing import Any

import pytest
from test_oracles import FOLDER, asked, oracles

import lipmodel as lm

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="no shared data beside the checkout")

METHODS = {
    "eclipse-fast": ("eclipse-fast",),
    "liplt": ("liplt", "combettes-pesquet"),
    "abs-dp": ("k4",),
    "abs-product": ("path-norm",),
    "seqlip": ("seqlip",),
}
FILES = ("gauss", "eclipse", "digits")
LARGEST = 400
"""Neurons of the networks that are asked in the ordinary suite."""


def cases() -> list[Any]:
    found = []
    for file in FILES:
        for oracle in oracles(file):
            for name in METHODS.get(oracle["quantity"], ()):
                if oracle["relation"] == "equal":
                    found.append(pytest.param(oracle, name, id=f"{oracle['id']}-{name}"))
    return found


def is_chain(system: lm.IncrementSystem) -> bool:
    forms = [*(a.pre for a in system.activations), system.output]
    return all(list(form.blocks) == [before] for form, before in zip(forms, system.signals, strict=True))


def reaches(oracle: dict[str, Any], name: str, largest: float) -> None:
    question = asked(oracle)
    if question is None:
        pytest.skip("not a network or a domain that is read")
    net, norm, outputs = question
    system = lm.increments(net)
    if system.neurons > largest:
        pytest.skip("a large network: run with -m slow")
    if name in ("combettes-pesquet", "seqlip") and not is_chain(system):
        pytest.skip("not a chain")
    r = lm.solve(net, name, norm=norm, outputs=outputs, witness=False)
    assert r.assurance == "proved"
    assert r.formulation == name
    assert r.bound == pytest.approx(oracle["value"], rel=max(oracle.get("rtol", 0.0), 1e-8) + 1e-8)


@pytest.mark.parametrize(("oracle", "name"), cases())
def test_known_values(oracle: dict[str, Any], name: str) -> None:
    reaches(oracle, name, LARGEST)


@pytest.mark.slow
@pytest.mark.parametrize(("oracle", "name"), cases())
def test_known_values_of_large_networks(oracle: dict[str, Any], name: str) -> None:
    reaches(oracle, name, float("inf"))
