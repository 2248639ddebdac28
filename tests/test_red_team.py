"""Attacks on the rules of proof beyond multipliers and the product rule: changed, malformed and outsized certificates.

Every change of every value of a proof is put to `verify` twice: with the bound that the proof states, and with a bound
below the constant, which is known from enumerating all slopes. What is accepted must be true, what is not is refused.
"""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from soundness_checks import formal_of
from test_tampering import ABS, BENT, RELU, Sample, at, chain, judge, leaves, other_values, replaced

import lipmodel as lm
from lipmodel.certify import polynomials, signs
from lipmodel.certify.certificate import parse
from lipmodel.certify.kernel import Rejected
from lipmodel.domain import Global
from lipmodel.errors import Refuted
from lipmodel.network.increments import exact_system
from lipmodel.question import systems

CASES: dict[str, tuple[Any, str, dict[str, Any], str]] = {
    "liplt": (chain([2, 3, 2], 21, BENT), "liplt", {"norm": "2"}, "liplt"),
    "liplt inf:1": (chain([2, 2, 2], 22, RELU), "liplt", {"norm": "inf:1"}, "liplt"),
    "k3": (chain([2, 2, 2, 2], 23, BENT, ABS), "k3", {"norm": "2"}, "k3"),
    "k4": (chain([2, 3, 2], 24, RELU), "k4", {"norm": "inf:inf"}, "k4"),
    "path-norm": (chain([2, 3, 2], 25, RELU), "path-norm", {"norm": "2:1"}, "path-norm"),
    "seqlip": (chain([2, 2, 2, 2], 26, RELU, BENT), "seqlip", {"norm": "2"}, "metric-chain"),
    "seqlip tree": (chain([3, 3, 2], 27, RELU), "seqlip", {"norm": "2"}, "metric-chain"),
    "signs inf:1": (chain([2, 3, 2], 28, RELU), "geolip-triangle", {"norm": "inf:1"}, "signs"),
    "signs 2:1": (chain([2, 3, 1], 29, BENT), "geolip-triangle", {"norm": "2:1"}, "signs"),
    "elimination": (chain([2, 2, 2, 1], 30, RELU, BENT), "lipopt", {"norm": "inf:1"}, "elimination"),
    "krivine": (chain([2, 3, 1], 31, BENT), "lipopt", {"norm": "inf:1", "options": {"level": 2}}, "krivine"),
    "sos": (chain([2, 2, 2], 32, RELU), "sos", {"norm": "2:2"}, "sos"),
    "reachable": (chain([2, 2, 1], 33, RELU), "hr1", {"norm": "2"}, "reachable"),
    "largest": (chain([2, 2, 2], 34, RELU), "seqlip", {"norm": "2:inf"}, "largest"),
}
"""Network, formulation, arguments of `solve`, and the rule that the proof is to have."""
MORE_NUMBERS = (10**4000, 2**60, -(2**60), 10**18, 4096)


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    made = {}
    for name, (net, formulation, arguments, rule) in CASES.items():
        network = net.network()
        if rule == "reachable":  # a domain that holds all kinks, and points of all cells
            arguments = {**arguments, "domain": lm.Box((-50.0,) * 2, (50.0,) * 2)}
        result = lm.solve(network, formulation, witness=False, time_limit=10.0, **arguments)
        assert result.certificate is not None
        assert result.certificate["upper"]["rule"] == rule, name
        made[name] = Sample(network=network, plan=net.plan(), data=json.loads(json.dumps(result.to_json())))
    return made


def changes(value: Any) -> list[Any]:
    """What a value of a proof is changed into."""
    found = other_values(value)
    if isinstance(value, int) and not isinstance(value, bool):
        found = [v for v in found if type(v) is not float] + [value - 1, 2 * value, *MORE_NUMBERS]
    if isinstance(value, list) and len(value) > 1:
        found += [[*value[1:], value[0]], [value[0]] * len(value), [*value, *value]]
    return found


def stated(data: dict[str, Any], upper: Any, bound: float | None) -> Any:
    """The certificate of a result with another proof, and another bound wherever it is stated."""
    certificate = copy.deepcopy(data["certificate"])
    certificate["upper"] = upper = copy.deepcopy(upper)
    if bound is not None:
        for proof in [upper, *(m["proof"] for m in upper.get("members", []) if isinstance(m, dict) and "proof" in m)]:
            if isinstance(proof, dict) and isinstance(proof.get("bound"), str):
                proof["bound"] = bound.hex()
        certificate["claim"]["bound"] = bound.hex()
    return certificate


@pytest.mark.parametrize("name", CASES)
def test_every_value_of_a_proof(samples: dict[str, Sample], name: str) -> None:
    """A sample of all changes: refused with a reason, or accepted and true; below the constant always refused."""
    sample, upper = samples[name], samples[name].data["certificate"]["upper"]
    claim = sample.data["certificate"]["claim"]
    below = formal_of(sample.plan, claim["input_norm"], claim["output_norm"], "all")[0].value * 0.999
    assert not judge(sample, stated(sample.data, upper, None))
    assert judge(sample, stated(sample.data, upper, below))
    listed = [(path, value) for path in leaves(upper) for value in changes(at(upper, path))]
    wrong, refused = [], 0
    for path, value in random.Random(0).sample(listed, min(len(listed), 150)):
        changed = replaced(upper, path, value)
        try:
            refused += judge(sample, stated(sample.data, changed, None))
            if isinstance(changed, dict) and not judge(sample, stated(sample.data, changed, below)):
                wrong.append(f"{path} = {str(value)[:80]}: accepted below the constant")
        except Exception as error:
            wrong.append(f"{path} = {str(value)[:80]}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong[:20])
    assert refused > 50


# ------------------------------------------------------------------------------------ evidence that proves nothing


class Liar(lm.Evidence):
    """A bound with a proof of something else, or of nothing."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def prove(self, system: lm.IncrementSystem, norms: Any, deadline: float) -> lm.Proved:
        if self.kind == "other bound":
            true = lm.Krivine(program=lm.network_polynomials(system, SPEC)).prove(system, norms, deadline)
            assert true is not None
            return replace(true, bound=1e-9)
        small = {"rule": "product", "norms": list(norms), "spectral": [], "bound": (1e-9).hex()}
        proofs: dict[str, Any] = {"too small": small, "none": {}, "not JSON": {"rule": {1}}}
        return lm.Proved(bound=1e-9, proof=proofs[self.kind])


SPEC = lm.Spec(input_norm="inf", output_norm="1")


class Evil(lm.Formulation):
    """Evidence that was made for another question, or changed, or that lies."""

    name, norms = "evil", {("inf", "1")}
    kind: str = lm.option("none", help="what is wrong")

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> Any:
        if self.kind == "other norms":
            return lm.sign_relaxation(system, replace(spec, input_norm="2"))
        if self.kind == "not the square":
            return replace(lm.sign_relaxation(system, spec), squared=True)
        if self.kind == "other domain":
            return lm.reachability(system, replace(spec, domain=lm.Box((3.0, 3.0), (3.001, 3.001))), level="shor")
        return Liar(self.kind)


@pytest.mark.parametrize(
    "kind", ["too small", "none", "not JSON", "other bound", "other norms", "not the square", "other domain"]
)
def test_evidence_that_does_not_prove_its_bound(kind: str) -> None:
    """What `prove` returns is decided by the rule that it names before it is printed."""
    net = chain([2, 4, 2], 40, RELU)
    network, said = net.network(), []
    truth = formal_of(net.plan(), "inf", "1", "all")[0].value
    result = lm.solve(
        network,
        Evil(kind=kind),
        norm="inf:1",
        domain=lm.Box((-50.0,) * 2, (50.0,) * 2) if kind == "other domain" else "global",
        witness=False,
        report=said.append,
    )
    assert result.bound >= truth * (1 - 1e-12)
    assert lm.verify(network, result).bound == result.bound
    assert any("does not prove its bound" in line for line in said)


# ------------------------------------------------------------------------------------- what costs more than it should


def wide_program() -> polynomials.Program:
    """The gradient polynomial, in 30 variables, of a network."""
    net = chain([6, 9, 9, 6], 41, RELU, RELU)
    system = exact_system(systems(net.network(), Global(), "inf").system)
    return polynomials.gradient_program(system, "inf", "1")


def test_products_of_many_factors_are_not_expanded() -> None:
    """A product has a monomial for every subset of its factors: 25 of them would take gigabytes."""
    program = wide_program()
    proof = {"products": [list(range(1, 26))], "weights": [1], "exponent": 0}
    with pytest.raises(Rejected, match="factors"):
        polynomials.krivine_bound(program, proof)
    proof["products"] = [list(range(1, 11))]
    assert polynomials.krivine_bound(program, proof) > 0


def test_monomials_of_a_high_degree_are_refused() -> None:
    program = wide_program()
    block = {"constraint": None, "basis": [[0] * 1000], "gram": [1], "exponent": 0}
    with pytest.raises(Rejected, match="degree"):
        polynomials.sos_bound(program, {"blocks": [block], "equalities": []})


def test_parts_of_an_identity_with_too_many_monomials(monkeypatch: pytest.MonkeyPatch) -> None:
    program = wide_program()
    block = {"constraint": None, "basis": [[], [0], [1]], "gram": [1, 0, 1, 0, 0, 1], "exponent": 0}
    proof = {"blocks": [block] * 10, "equalities": []}
    assert polynomials.sos_bound(program, proof) > 0
    monkeypatch.setattr(polynomials, "MAX_HELD", 9)
    with pytest.raises(Rejected, match="monomials"):
        polynomials.sos_bound(program, proof)


def test_a_sum_of_squares_beyond_the_range_of_doubles_proves_nothing() -> None:
    net = chain([2, 3, 1], 29, BENT)
    system = exact_system(systems(net.network(), Global(), "2").system)
    proof = {"basis": [[]], "gram": [10**1000], "exponent": 0, "triangles": []}
    assert signs.signs_bound(*signs.sign_program(system, "2", "1"), proof) == np.inf


def test_an_object_with_many_keys_is_read_in_linear_time() -> None:
    data = {str(k): 0 for k in range(300_000)}
    assert parse(json.dumps(data)) == data
    with pytest.raises(Refuted, match="twice"):
        parse('{"a": 1, "b": 2, "a": 1}')


def test_mappings_nested_too_deeply_are_refused() -> None:
    data: Any = {}
    for _ in range(100_000):
        data = {"certificate": data}
    with pytest.raises(Refuted):
        lm.verify(chain([2, 2], 1).network(), data)
