"""geolip-triangle: polynomials in signs, exact on small networks; every field of the proof is looked at."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from random_networks import Chain, Phi, exceeds, formal_constant

import lipmodel as lm
from lipmodel.certify.kernel import Rejected
from lipmodel.certify.signs import sign_program, signs_bound
from lipmodel.errors import Refuted
from lipmodel.network.increments import exact_system

RELU, ABS = Phi(op="Relu", low=0.0, high=1.0), Phi(op="Abs", low=-1.0, high=1.0)
LEAKY = Phi(op="LeakyRelu", low=0.25, high=1.0, attributes=(("alpha", 0.25),))


def chain(seed: int, *sizes: int, phi: Phi = RELU) -> Chain:
    rng = np.random.default_rng(seed)
    weights = tuple(np.float32(rng.standard_normal((m, n))) for n, m in itertools.pairwise(sizes))
    return Chain(weights=weights, biases=(None,) * len(weights), phis=(*(phi,) * (len(weights) - 1), None))


def solved(net: Any, **question: Any) -> lm.Result:
    return lm.solve(net, "geolip-triangle", witness=False, **question)


@pytest.mark.parametrize("phi", [RELU, ABS, LEAKY], ids=lambda phi: phi.op)
@pytest.mark.parametrize("sizes", [(3, 8, 1), (4, 6, 2), (3, 4, 4, 1), (2, 3, 3, 2)], ids=str)
def test_never_below_the_formal_constant_and_mostly_equal(sizes: tuple[int, ...], phi: Phi) -> None:
    net = chain(3, *sizes, phi=phi)
    for norm in ("inf:1", "2:1", "inf:inf"):
        if len(sizes) == 4 and sizes[-1] > 1 and norm == "2:1":
            continue
        p, q = norm.split(":")
        formal = formal_constant(net.plan(), p, q)
        r = solved(net.network(), norm=norm)
        assert r.assurance == "proved"
        assert not exceeds(net.plan(), formal, r.bound, p, q)
        # triangles do not make every instance exact, but no network of these is off by more
        assert formal.value * (1 - 1e-12) <= r.bound <= formal.value * 1.002
        assert lm.verify(net.network(), json.dumps(r.to_json())).bound == r.bound


def test_exact_where_geolip_is_not() -> None:
    """Ten by ten: GeoLIP is above the largest vertex, the triangle inequalities close the gap."""
    gaps = []
    for seed in range(3):
        net = chain(seed, 10, 10, 1)
        formal = formal_constant(net.plan(), "inf", "1").value
        loose = lm.solve(net.network(), "geolip", norm="inf:1", witness=False).bound
        tight = solved(net.network(), norm="inf:1").bound
        without = solved(net.network(), norm="inf:1", options={"rounds": 0}).bound
        assert tight <= formal * (1 + 1e-9)
        assert without == pytest.approx(loose, rel=1e-6)
        gaps.append(loose / formal - 1)
    assert max(gaps) > 1e-3


def test_the_polynomial_and_boxes() -> None:
    """The largest value over signs is the largest norm over slopes; on a box the slopes are those over it."""
    rng = np.random.default_rng(5)
    w, v = rng.standard_normal((5, 3)), rng.standard_normal((1, 5))
    system = lm.increments(lm.from_weights([w, v]))
    whole = solved(lm.from_weights([w, v]), norm="inf:1")
    local = solved(lm.from_weights([w, v], [np.zeros(5), np.zeros(1)]), norm="inf:1", domain="box:0.1:0.2")
    assert local.bound <= whole.bound
    assert system.neurons == 5
    program, squared = sign_program(exact_system(system), "inf", "1")
    assert not squared
    signs = list(itertools.product((1, -1), repeat=8))
    values = [sum(c * math.prod(s[i] for i in m) for m, c in program.objective.terms.items()) for s in signs]
    slopes = itertools.product((0.0, 1.0), repeat=5)
    expected = max(np.abs((v * np.array(s)) @ w).sum() for s in slopes)
    assert float(Fraction(max(values), program.objective.unit)) == pytest.approx(expected)
    program, squared = sign_program(exact_system(system), "2", "1")
    assert squared
    values = [sum(c * math.prod(s[i] for i in m) for m, c in program.objective.terms.items()) for s in signs]
    slopes = itertools.product((0.0, 1.0), repeat=5)
    expected = max(np.linalg.norm((v * np.array(s)) @ w) for s in slopes)
    assert float(Fraction(max(values), program.objective.unit)) == pytest.approx(expected**2)


def test_linear_networks() -> None:
    r = solved(lm.from_weights([np.array([[3.0, -4.0]])]), norm="inf:1")
    assert r.bound == pytest.approx(7.0)
    assert solved(lm.from_weights([np.array([[3.0, -4.0]])]), norm="2:1").bound == pytest.approx(5.0)


def test_refusals() -> None:
    with pytest.raises(lm.UsageError, match=r"too large.*geolip"):
        solved(chain(0, 60, 60, 1).network(), norm="inf:1")
    with pytest.raises(lm.UsageError, match=r"monomials, more than.*geolip"):
        solved(chain(0, 20, 30, 30, 30, 1).network(), norm="inf:1")
    with pytest.raises(lm.UsageError, match="does not reach"):
        solved(chain(0, 3, 4, 2).network(), norm="inf:2")


def test_a_time_limit_leaves_a_bound() -> None:
    r = solved(chain(1, 12, 12, 1).network(), norm="inf:1", time_limit=0.02)
    assert np.isfinite(r.bound)


# ------------------------------------------------------------------------------------------------------- the exact rule


def proof_of(net: Chain) -> tuple[Any, dict[str, Any]]:
    r = solved(net.network(), norm="inf:1")
    data = r.to_json()
    assert data["certificate"]["upper"]["rule"] == "signs"
    assert data["certificate"]["upper"]["triangles"]
    return net.network(), data


def _lower(value: str) -> str:
    return float(np.nextafter(float.fromhex(value), -np.inf)).hex()


TAMPERED: dict[str, Callable[[dict[str, Any]], None]] = {
    "bound an ulp lower": lambda p: p.update(bound=_lower(p["bound"])),
    "a product forgotten": lambda p: (p["basis"].pop(), p.update(gram=p["gram"][: -len(p["basis"]) - 1])),
    "a product twice": lambda p: p["basis"].__setitem__(2, p["basis"][1]),
    "an unknown sign": lambda p: p["basis"].__setitem__(-1, [10**6]),
    "a sign squared": lambda p: p["basis"].__setitem__(-1, [1, 1]),
    "no number": lambda p: p["basis"].__setitem__(-1, ["0"]),
    "gram too short": lambda p: p["gram"].pop(),
    "gram no integer": lambda p: p["gram"].__setitem__(0, 0.5),
    "a smaller diagonal": lambda p: p["gram"].__setitem__(0, p["gram"][0] // 2),
    "another unit": lambda p: p.update(exponent=p["exponent"] + 1),
    "a unit that is none": lambda p: p.update(exponent=-1),
    "no triangles": lambda p: p.update(triangles=[]),
    "a negative weight": lambda p: p["triangles"][0].__setitem__(5, -1),
    "a wrong sign": lambda p: p["triangles"][0].__setitem__(3, -p["triangles"][0][3]),
    "a sign that is none": lambda p: p["triangles"][0].__setitem__(3, 2),
    "a product that is none": lambda p: p["triangles"][0].__setitem__(0, -1),
    "a triangle too long": lambda p: p["triangles"][0].append(0),
    "another norm": lambda p: p.update(norms=["2", "1"]),
    "an unknown key": lambda p: p.update(hint=1),
    "a missing key": lambda p: p.pop("triangles"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_tampering(how: str) -> None:
    net, data = proof_of(chain(0, 5, 8, 1))
    assert lm.verify(net, json.dumps(data)).bound == data["bound"]
    bent = copy.deepcopy(data)
    upper = bent["certificate"]["upper"]
    TAMPERED[how](upper)
    if "bound" in how:
        bent["bound"] = float.fromhex(upper["bound"])
        bent["certificate"]["claim"]["bound"] = upper["bound"]
    with pytest.raises(Refuted):
        lm.verify(net, json.dumps(bent["certificate"]))


def test_another_network_is_refuted() -> None:
    """The same proof for weights that are a hundredth larger."""
    _, data = proof_of(chain(0, 5, 8, 1))
    original = chain(0, 5, 8, 1)
    larger = Chain(
        weights=tuple(np.float32(1.01) * w for w in original.weights), biases=original.biases, phis=original.phis
    ).network()
    certificate = {**data["certificate"], "network": {**data["certificate"]["network"], "sha256": larger.source.sha256}}
    with pytest.raises(Refuted, match="below what its sum of squares gives"):
        lm.verify(larger, json.dumps(certificate))


def test_what_a_proof_forgets_is_counted() -> None:
    """With a vector of one product the bound is the sum of all coefficients, never less."""
    program, squared = sign_program(exact_system(lm.increments(chain(2, 3, 4, 1).network())), "inf", "1")
    total = Fraction(sum(map(abs, program.objective.terms.values())), program.objective.unit)
    proof = {"basis": [[]], "gram": [0], "exponent": 0, "triangles": []}
    assert Fraction(signs_bound(program, squared, proof)) >= total
    # a triangle inequality among them changes nothing: 1 + 1 + 1 + 1 >= 0
    assert Fraction(signs_bound(program, squared, {**proof, "triangles": [[0, 0, 0, 1, 1, 1]]})) >= total + 4


def test_what_is_no_proof() -> None:
    program, squared = sign_program(exact_system(lm.increments(chain(2, 3, 4, 1).network())), "inf", "1")
    proof = {"basis": [[]], "gram": [0], "exponent": 0, "triangles": []}
    for change, message in (
        ({"gram": [-1]}, "positive semidefinite"),
        ({"triangles": [[0, 0, 0, 1, 1, -1]]}, "negative"),
        ({"triangles": [[0, 0, 1, 1, 1, 1]]}, "not one of three products"),
        ({"basis": [[1, 0]]}, "ascending"),
    ):
        with pytest.raises(Rejected, match=message):
            signs_bound(program, squared, {**proof, **change})


def test_solvers_without_duals_are_refused() -> None:
    with pytest.raises(lm.UsageError, match="clarabel"):
        solved(chain(0, 3, 4, 1).network(), norm="inf:1", backend="scs")
