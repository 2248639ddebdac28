"""Certificates of pairs of neurons, tampered with in every field."""

from __future__ import annotations

import copy
import json
import pathlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from pair_cases import random_coupling, read

import lipmodel as lm
from lipmodel.certify.kernel import Rejected, bound_squared, check_lmi
from lipmodel.certify.lmi import Multipliers
from lipmodel.certify.pairs import TRIANGLE, check_coupled, coupling_fault, read_couplings
from lipmodel.network.increments import chain_of, exact_system
from lipmodel.testing.networks import formal_constant

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="module")
def certified():
    """A network with a bound that needs its pairs, and its certificate as JSON values."""
    rng = np.random.default_rng(1)
    net = lm.from_weights([rng.standard_normal(size) for size in ((4, 2), (3, 4), (1, 3))])
    result = lm.solve(net, "lipsdp-pair", witness=False)
    data = json.loads(json.dumps(result.certificate))
    assert data["upper"]["rule"] == "lmi-pairs"
    assert lm.verify(net, data).bound == result.bound
    return net, data


def nudged(text, towards):
    return float(np.nextafter(float.fromhex(text), towards)).hex()


def refused(net, data):
    with pytest.raises(lm.Refuted):
        lm.verify(net, data)


def holds(net, data, formal):
    """What is left of a certificate is refused or true."""
    try:
        verdict = lm.verify(net, data)
    except lm.Refuted:
        return
    assert verdict.bound >= formal


def test_a_smaller_bound_is_refused(certified):
    net, data = certified
    bent = copy.deepcopy(data)
    for part in (bent["upper"], bent["claim"]):
        part["bound"] = nudged(part["bound"], 0.0)
    refused(net, bent)


def test_fields_that_are_missing_unknown_or_of_another_shape_are_refused(certified):
    net, data = certified
    for key in data["upper"]:
        bent = copy.deepcopy(data)
        del bent["upper"][key]
        refused(net, bent)
    for key, value in (("extra", 1), ("couplings", None), ("couplings", {}), ("rule", "lmi"), ("norms", ["1", "2"])):
        bent = copy.deepcopy(data)
        bent["upper"][key] = value
        refused(net, bent)
    first = data["upper"]["couplings"][0]
    for key in first:
        bent = copy.deepcopy(data)
        del bent["upper"]["couplings"][0][key]
        refused(net, bent)
    shapes = [(key, first[key][:-1]) for key in ("matrix", "plain", "flipped", "first", "second")]
    shapes += [(key, [*first[key], first[key][-1]]) for key in ("matrix", "plain", "flipped", "first", "second")]
    shapes += [("first", [0, 10**6]), ("first", [-1, 0]), ("first", [0, -1]), ("second", [7, 0])]
    shapes += [("first", [True, 0]), ("first", ["0", 0]), ("first", [0.0, 0]), ("first", first["second"])]
    shapes += [("matrix", ["nan", *first["matrix"][1:]]), ("matrix", ["inf", *first["matrix"][1:]]), ("extra", 1)]
    for key, value in shapes:
        bent = copy.deepcopy(data)
        bent["upper"]["couplings"][0][key] = value
        refused(net, bent)


def test_couplings_out_of_order_or_twice_are_refused(certified):
    net, data = certified
    bent = copy.deepcopy(data)
    c = bent["upper"]["couplings"][0]
    c["first"], c["second"] = c["second"], c["first"]
    refused(net, bent)
    bent = copy.deepcopy(data)
    bent["upper"]["couplings"].append(bent["upper"]["couplings"][0])
    refused(net, bent)


def test_couplings_that_are_dropped_or_moved_are_missed(certified):
    net, data = certified
    sizes = [sum(abs(float.fromhex(v)) for v in read(c["matrix"])) for c in data["upper"]["couplings"]]
    largest = int(np.argmax(sizes))
    bent = copy.deepcopy(data)
    del bent["upper"]["couplings"][largest]
    refused(net, bent)
    bent = copy.deepcopy(data)
    bent["upper"]["couplings"] = []
    refused(net, bent)


def test_every_number_of_a_coupling_counts(certified):
    """Each entry of M, N_1 and N_2 moved by one unit in the last place, doubled, negated: refused or still true."""
    net, data = certified
    formal = formal_constant(lm.increments(net), "2", "2")
    rng = np.random.default_rng(0)
    for number in rng.permutation(len(data["upper"]["couplings"]))[:2]:
        for key in ("matrix", "plain", "flipped"):
            for place in range(len(read(data["upper"]["couplings"][number][key]))):
                value = read(data["upper"]["couplings"][number][key])[place]
                options = [nudged(value, -np.inf), nudged(value, np.inf), (2 * float.fromhex(value)).hex()]
                options.append((-float.fromhex(value) - 1.0).hex())
                for changed in options:
                    bent = copy.deepcopy(data)
                    entries = list(read(bent["upper"]["couplings"][number][key]))
                    entries[place] = changed
                    bent["upper"]["couplings"][number][key] = entries
                    if key != "matrix" and float.fromhex(changed) < 0.0:
                        refused(net, bent)
                    else:
                        holds(net, bent, formal)


def test_a_diagonal_below_what_the_splitting_needs_is_refused(certified):
    """The diagonal of M is raised no further than it has to be: a little less is not shown to be valid."""
    net, data = certified
    count = 0
    for number, c in enumerate(data["upper"]["couplings"]):
        bent = copy.deepcopy(data)
        entries = list(read(c["matrix"]))
        for place, (i, j) in enumerate(TRIANGLE):
            if i == j:
                entries[place] = (float.fromhex(entries[place]) * (1.0 - 1e-3)).hex()
        bent["upper"]["couplings"][number]["matrix"] = entries
        with pytest.raises(lm.Refuted):
            lm.verify(net, bent)
        count += 1
    assert count > 0


def test_multipliers_with_the_wrong_ends_are_refused(certified):
    net, data = certified
    for key in ("g", "s"):
        bent = copy.deepcopy(data)
        bent["upper"][key] = [(float.fromhex(v) * (1.0 - 1e-6)).hex() for v in read(bent["upper"][key])]
        refused(net, bent)


def test_the_certificate_is_about_one_network(certified):
    _, data = certified
    other = lm.from_weights([np.ones((4, 2)), np.ones((3, 4)), np.ones((1, 3))])
    refused(other, data)
    bent = copy.deepcopy(data)
    bent["network"]["sha256"] = lm.solve(other, "product", witness=False).certificate["network"]["sha256"]
    refused(other, bent)


def test_without_its_couplings_the_inequality_fails(certified):
    net, data = certified
    upper = data["upper"]
    couplings = read_couplings(upper["couplings"], "couplings")
    system = exact_system(lm.increments(net))
    vectors = [np.array([float.fromhex(v) for v in read(part)]) for part in (*upper["t"], upper["g"], upper["s"])]
    m = Multipliers(t=tuple(vectors[:-2]), g=vectors[-2], s=vectors[-1])
    bound = float.fromhex(upper["bound"])
    check_coupled(system, m, couplings, "2", "2", bound)
    with pytest.raises(Rejected):
        check_lmi(system, m, "2", "2", bound)
    assert Fraction(bound) ** 2 >= bound_squared(m, "2", "2")
    with pytest.raises(Rejected, match="not a finite"):
        check_coupled(system, m, couplings, "2", "2", float("nan"))
    with pytest.raises(Rejected, match="bound no constant"):
        check_coupled(system, m, couplings, "1", "2", bound)


def test_neurons_of_a_group_have_no_couplings():
    rng = np.random.default_rng(13)
    c = random_coupling(rng)
    system = exact_system(chain_of([np.eye(2), np.ones((1, 2))]))
    m = Multipliers(t=(np.ones(2),), g=np.full(2, 1e3), s=np.full(1, 1e3))
    assert coupling_fault(system, [c]) is None
    grouped = replace(system, groups=((0, 0),))
    assert "acts in a group" in coupling_fault(grouped, [c])
    with pytest.raises(Rejected, match="acts in a group"):
        check_coupled(grouped, m, [c], "2", "2", 1e3)


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
def test_a_network_from_a_file():
    path = SHARED / "nets" / "exlipbab" / "abs_relu_0.onnx"
    result = lm.solve(path, "lipsdp-pair", options={"pairs": "layer"})
    neuron = lm.solve(path, "lipsdp-neuron")
    assert result.certificate["upper"]["rule"] == "lmi-pairs"
    assert result.lower_bound <= result.bound < neuron.bound * (1.0 - 1e-3)
    assert lm.verify(path, result.certificate).bound == result.bound
