"""Sums of squares: against enumeration and other formulations, programs of a user's own, certificates tampered with."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from test_lipopt import PUBLISHED, band, needs_shared, proof_in, refused, table, with_bound

import lipmodel as lm
from lipmodel.backends import backend as find_backend
from lipmodel.backends.base import Installed
from lipmodel.errors import RefusedInput
from lipmodel.formulation import formulation
from lipmodel.network.increments import chain_of
from lipmodel.relaxations.sos import gram_blocks
from lipmodel.testing.formulations import formulation_checks
from lipmodel.testing.networks import KINDS, formal_constant, random_network, random_system

CHECKS = {str(check): check for check in formulation_checks()}
X, Y = lm.Polynomial.variable("x"), lm.Polynomial.variable("y")


def solve(network, norm, **options):
    result = lm.solve(network, "sos", norm=norm, options=options, witness=False)
    proof = result.certificate["upper"]
    assert proof["rule"] in ("sos", "largest"), "the solver's point proved nothing"
    assert lm.verify(network, result).bound == result.bound
    return result.bound


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("norm", ["inf:1", "inf:2", "2:1", "2", "inf", "1:2"])
@pytest.mark.parametrize("seed", [1, 2])
def test_one_hidden_layer_against_enumeration(norm, seed):
    network, system = random_network("one-layer", seed, inputs=2), random_system("one-layer", seed, inputs=2)
    p, _, q = norm.partition(":")
    true = formal_constant(system, p, q or p)
    assert true * (1 - 1e-12) <= solve(network, norm) <= 1.6 * true


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("chain", "mixed", "skips", "scaled")])
def test_graphs_against_enumeration(kind):
    network, system = (make(kind, 6, inputs=2, outputs=1) for make in (random_network, random_system))
    true = formal_constant(system, "inf", "1")
    for sparsity in ("correlative", "term"):
        assert true * (1 - 1e-12) <= solve(network, "inf:1", sparsity=sparsity) <= 1.2 * true


def test_order_one_is_geolip():
    """One hidden layer, one output: the first order and the mixed-norm program are dual to each other."""
    for seed, norm in itertools.product(range(3), ("inf:1", "2:1")):
        network = random_network("one-layer", seed, outputs=1)
        geolip = lm.solve(network, "geolip", norm=norm, witness=False).bound
        assert solve(network, norm, order=1) == pytest.approx(geolip, rel=1e-5)


@pytest.mark.parametrize("backend", ["clarabel", "scs", "mosek", "cvxopt", "sdpa"])
def test_orders_decrease_to_the_maximum(backend):
    solver = find_backend(backend, usable=False)
    if not isinstance(solver.available(), Installed):
        pytest.skip(f"{backend} is {solver.available()}")
    for seed in range(2):
        system = random_system("one-layer", seed, inputs=2, outputs=1)
        program = lm.network_polynomials(system, lm.Spec(input_norm="inf", output_norm="1"))
        true = formal_constant(system, "inf", "1")
        found = [lm.SumOfSquares(program=program, order=k, backend=backend).bound() for k in (1, 2)]
        assert true * (1 - 1e-12) <= found[1].bound <= found[0].bound * (1 + 1e-5)
        assert found[1].bound <= true * 1.001
        assert {f.backend for f in found} == {backend}


@pytest.mark.parametrize("check", ["declaration", "enumeration-linear", "repeatable"])
def test_conformance(check):
    """Those of the shipped checks whose networks are shallow: squares of order 3 take minutes."""
    CHECKS[check](formulation("sos"))


def test_sparse_and_dense():
    weights = [np.diag([1.0, 2.0, -1.0]) + np.diag([0.5, -1.0], 1), np.array([[1.0, 1.0, -2.0]])]
    program = lm.network_polynomials(chain_of(weights), lm.Spec(input_norm="inf", output_norm="1"))
    true = formal_constant(chain_of(weights), "inf", "1")
    values = {
        s: lm.SumOfSquares(program=program, order=2, sparsity=s).bound().bound for s in ("dense", "correlative", "term")
    }
    assert true * (1 - 1e-12) <= values["dense"] <= values["correlative"] * (1 + PUBLISHED)
    assert values["correlative"] <= values["term"] * (1 + PUBLISHED)
    target = program.normalised()
    sizes = [sum(g.entries for g in gram_blocks(target, 2, s)[0]) for s in ("dense", "correlative", "term")]
    assert sizes[0] > sizes[1] >= sizes[2]


@needs_shared
@pytest.mark.parametrize(("n", "s"), [(10, 4), (10, 20), (20, 40), (40, 80), (80, 10), (80, 80)])
def test_order_one_on_the_benchmark(n, s):
    """Tighter than the published SHOR where that is a bound, and above the maximum."""
    program = lm.network_polynomials(chain_of(band(n, s, 0)), lm.Spec(input_norm="inf", output_norm="1"))
    found, row = lm.SumOfSquares(program=program, order=1).bound().bound, table(1)[n, s, 0]
    assert row["geolip_lower"] <= found <= row["geolip_upper"] * (1 + 1e-6)
    assert row["fgl"] is None or found >= row["fgl"]


@needs_shared
def test_order_two_is_exact_where_published_bounds_are_not():
    row = table(1)[10, 8, 0]
    program = lm.network_polynomials(chain_of(band(10, 8, 0)), lm.Spec(input_norm="inf", output_norm="1"))
    found = lm.SumOfSquares(program=program, order=2).bound().bound
    assert row["fgl"] * (1 - 1e-9) <= found <= row["fgl"] * (1 + 1e-6) < row["pub_hr2"]


def test_what_is_asked_wrongly():
    network = random_network("chain", 1)
    for options, message in (
        ({"order": 1}, "order 1 is below 2"),
        ({"order": -1}, "order -1"),
        ({"sparsity": "none"}, "sparsity 'none'"),
        ({"order": 9}, "Gram matrices of orders up to"),
    ):
        with pytest.raises(lm.UsageError, match=message):
            lm.solve(network, "sos", options=options)
    with pytest.raises(lm.UsageError, match="does not take this relaxation"):
        lm.solve(network, "sos", backend="highs")


@pytest.mark.parametrize("backend", ["clarabel", "scs", "native"])
def test_backends(backend):
    network = random_network("one-layer", 4, outputs=1)
    result = lm.solve(network, "sos", norm="inf:1", backend=backend, witness=False)
    assert result.backend == backend
    assert result.bound == pytest.approx(solve(network, "inf:1"), rel=1e-4)


def test_sizes_are_predicted():
    network = random_system("chain", 2, outputs=1)
    program = lm.network_polynomials(network, lm.Spec(input_norm="inf", output_norm="1"))
    described = lm.SumOfSquares(program=program).describe()
    grams, free = gram_blocks(program.normalised(), 2, "correlative")
    assert f"{len(grams)} Gram matrices of orders up to {max(len(g.basis) for g in grams)}" in described
    assert f"{sum(g.entries for g in grams):,} entries" in described
    assert not free


# ------------------------------------------------------------------------------------------------ programs of one's own


@pytest.mark.parametrize(
    ("objective", "ranges", "more", "true", "order"),
    [
        (X * Y - X**2, {"x": (-1, 2), "y": (0, 3)}, {"nonnegative": [4 - X**2 - Y**2]}, 2 * math.sqrt(2) - 2, 1),
        (-(X**4) + X**2, {"x": (-2, 2)}, {}, 0.25, 2),
        (X + Y, {"x": (-1, 1), "y": (-1, 1)}, {"zero": [X**2 + Y**2 - 1]}, math.sqrt(2), 1),
        (X**2 * Y**2 * (3 - X**2 - Y**2) - 1, {"x": (-2, 2), "y": (-2, 2)}, {}, 0.0, 4),  # minus Motzkin's
        (-X, {"x": (3, 5)}, {}, -3.0, 1),
        (lm.Polynomial.number(7), {"x": (0, 1)}, {}, 7.0, 1),
        (X * Y, {"x": (-1, 3), "y": (-2, 1)}, {"vertices": frozenset("xy")}, 3.0, 1),
    ],
)
def test_known_maxima(objective, ranges, more, true, order):
    program = lm.PolynomialProgram(objective=objective, ranges=ranges, **more)
    proved = lm.SumOfSquares(program=program, order=order).bound()
    assert true - 1e-12 <= proved.bound <= true + 2e-5
    assert program.verify(proved.proof) == proved.bound
    below = {**proved.proof, "bound": math.nextafter(proved.bound, -math.inf).hex()}
    with pytest.raises(lm.Refuted):
        program.verify(below)


def test_random_programs_bound_what_is_sampled():
    rng = np.random.default_rng(7)
    for _ in range(5):
        monomials = [lm.Polynomial.number(1), X, Y, X * Y, X**2, Y**2, X**2 * Y, X * Y**2]
        objective = lm.Polynomial.combination(rng.standard_normal(8), monomials)
        program = lm.PolynomialProgram(
            objective=objective, ranges={"x": (-1, 2), "y": (-0.5, 1.5)}, nonnegative=[2 - X - Y], zero=[]
        )
        grid = itertools.product(np.linspace(-1, 2, 61), np.linspace(-0.5, 1.5, 41))
        points = [(a, b) for a, b in grid if a + b <= 2]
        seen = max(float(objective(x=a, y=b)) for a, b in points)
        first, second = (lm.SumOfSquares(program=program, order=k).bound().bound for k in (2, 3))
        assert seen <= second <= first + 1e-6
        assert second <= seen + 0.02


def test_an_empty_set_gives_any_bound_but_never_an_error():
    program = lm.PolynomialProgram(objective=X, ranges={"x": (-1, 1)}, nonnegative=[X - 2])
    try:
        proved = lm.SumOfSquares(program=program, order=1).bound()
    except lm.LipmodelError:
        return
    assert program.verify(proved.proof) == proved.bound


@functools.cache
def small_network():
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal((3, 2)), rng.standard_normal((3, 3)), rng.standard_normal((2, 3))]
    return lm.from_weights(weights, [rng.standard_normal(len(w)) for w in weights], activation="relu")


@pytest.mark.parametrize("activation", ["relu", lm.activation("LeakyRelu", alpha=0.25)])
def test_the_range_of_a_network_on_a_box(activation):
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal((3, 2)), rng.standard_normal((2, 3))]
    network = lm.from_weights(weights, [rng.standard_normal(3), rng.standard_normal(2)], activation=activation)
    values = lm.network_values(network, lm.Box([-1.0, 0.0], [1.0, 0.5]))
    x = np.vstack([rng.uniform(-1.0, 1.0, (1, 4000)), rng.uniform(0.0, 0.5, (1, 4000))])
    y = network.evaluate(x)
    for objective, seen in (
        (values.outputs[0], y[0]),
        (-values.outputs[1], -y[1]),
        (y_square(values), y[0] ** 2 - y[1]),
    ):
        program = values.maximise(objective)
        bounds = [lm.SumOfSquares(program=program, order=k).bound() for k in (1, 2)]
        for found in bounds:
            assert program.verify(found.proof) == found.bound
        assert seen.max() <= bounds[1].bound <= bounds[0].bound + 1e-6
        assert bounds[1].bound <= seen.max() + 0.1


def y_square(values):
    return values.outputs[0] ** 2 - values.outputs[1]


def test_values_fulfil_their_description():
    """At the values that a network takes every constraint holds, and every variable is in its range."""
    network = small_network()
    values = lm.network_values(network, lm.Box([-1.0, -1.0], [1.0, 1.0]))
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.integers(-64, 65, 2) / 64
        point = {"x0": x[0], "x1": x[1]}
        for name in list(values.ranges)[2:]:  # y = max(v, 0), read off the first of its two inequalities y - v >= 0
            index = list(values.ranges)[2:].index(name)
            v = lm.Polynomial.variable(name) - values.nonnegative[2 * index]
            point[name] = max(v(**point), 0)
        assert all(g(**point) >= 0 for g in values.nonnegative)
        assert all(h(**point) == 0 for h in values.zero)
        assert all(lo <= point[name] <= hi for name, (lo, hi) in values.ranges.items())
        y = [float(o(**point)) for o in values.outputs]
        assert y == pytest.approx(network.evaluate(x).tolist(), rel=1e-12)


def test_a_ball_is_smaller_than_its_box():
    network = small_network()
    ball, box = lm.Ball([0.0, 0.0], 1.0), lm.Box([-1.0, -1.0], [1.0, 1.0])
    values = [lm.network_values(network, d, norm) for d, norm in ((ball, "2"), (ball, "inf"), (box, "inf"))]
    found = [lm.SumOfSquares(program=v.maximise(v.outputs[0]), order=1).bound().bound for v in values]
    assert found[0] < found[1] == pytest.approx(found[2], rel=1e-6)


def test_more_can_be_required():
    """A decrease condition: the largest growth of x'x after one step of a network, outside of a small disc."""
    rng = np.random.default_rng(1)
    w = [0.5 * rng.standard_normal((3, 2)), 0.5 * rng.standard_normal((2, 3))]
    network = lm.from_weights(w, [np.zeros(3), np.zeros(2)])
    values = lm.network_values(network, lm.Box([-1.0, -1.0], [1.0, 1.0]))
    before, after = (sum((v**2 for v in part), lm.Polynomial.number(0)) for part in (values.inputs, values.outputs))
    program = values.maximise(after - before, nonnegative=[before - 0.25])
    proved = lm.SumOfSquares(program=program, order=1).bound()
    x = rng.uniform(-1, 1, (2, 4000))
    x = x[:, (x**2).sum(axis=0) >= 0.25]
    assert ((network.evaluate(x) ** 2).sum(axis=0) - (x**2).sum(axis=0)).max() <= proved.bound < 0.0


def test_the_example_runs():
    path = pathlib.Path(__file__).resolve().parents[1] / "examples" / "polynomial_range.py"
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    for line in lines:
        proved, seen = float(line.split("<=")[1].split()[0]), float(line.rsplit(maxsplit=1)[1])
        assert seen <= proved


def test_what_has_no_values():
    box = lm.Box([-1.0], [1.0])
    smooth = lm.from_weights([np.ones((1, 1)), np.ones((1, 1))], activation="tanh")
    with pytest.raises(lm.UsageError, match="Relu and LeakyRelu"):
        lm.network_values(smooth, box)
    bent = lm.from_weights([np.ones((1, 1)), np.ones((1, 1))])
    with pytest.raises(lm.UsageError, match="l1 ball"):
        lm.network_values(bent, lm.Ball([0.0], 1.0), "1")
    with pytest.raises((lm.UsageError, RefusedInput)):
        lm.network_values(bent, lm.Spec().domain)


# ----------------------------------------------------------------------------------------------------------- tampering


@pytest.fixture(scope="module")
def certified():
    """Results whose proofs have Gram matrices alone, and equalities as well."""
    network = random_network("one-layer", 31, inputs=2, outputs=1)
    made = {}
    for norm in ("inf:1", "2:1"):
        made[norm] = json.loads(json.dumps(lm.solve(network, "sos", norm=norm, options={"order": 2}).to_json()))
        assert proof_in(made[norm])["rule"] == "sos"
        assert bool(proof_in(made[norm])["equalities"]) == (norm == "2:1")
    return network, made


@pytest.mark.parametrize("norm", ["inf:1", "2:1"])
def test_a_bound_below_the_proof_is_refused(certified, norm):
    network, made = certified
    result = made[norm]
    assert not refused(network, result)
    now = float.fromhex(proof_in(result)["bound"])
    assert refused(network, with_bound(result, math.nextafter(now, 0.0)))
    assert refused(network, with_bound(result, now * 0.9))


@pytest.mark.parametrize("norm", ["inf:1", "2:1"])
def test_every_field_matters(certified, norm):
    network, made = certified
    result = made[norm]
    block = proof_in(result)["blocks"][0]
    peak = int(np.argmax([abs(v) for v in block["gram"]]))
    changes = [
        ("gram", [*block["gram"][:peak], block["gram"][peak] - (1 << 40), *block["gram"][peak + 1 :]]),
        ("gram", [*block["gram"][:peak], -block["gram"][peak], *block["gram"][peak + 1 :]]),
        ("gram", [*block["gram"][:peak], 0, *block["gram"][peak + 1 :]]),
        ("gram", block["gram"][:-1]),
        ("gram", [float(v) for v in block["gram"]]),
        ("gram", None),
        ("basis", block["basis"][:-1]),
        ("basis", [block["basis"][-1], *block["basis"][:-1]]),
        ("basis", [[99]] * len(block["basis"])),
        ("basis", [[1, 0]] * len(block["basis"])),
        ("constraint", 0),
        ("exponent", block["exponent"] + 1),
        ("exponent", "1"),
    ]
    for key, value in changes:
        changed = copy.deepcopy(result)
        proof_in(changed)["blocks"][0][key] = value
        assert refused(network, changed), key
    proof = proof_in(result)
    for key, value in (
        ("blocks", proof["blocks"][1:] if len(proof["blocks"]) > 1 else []),
        ("blocks", None),
        ("equalities", [{"constraint": 3, "monomials": [[]], "coefficients": [1], "exponent": 0}]),
        ("equalities", None),
        ("rule", "krivine"),
        ("norms", ["inf", "2", "2"]),
        ("norms", None),
    ):
        changed = copy.deepcopy(result)
        proof_in(changed)[key] = value
        assert refused(network, changed), key
    for key in proof:
        changed = copy.deepcopy(result)
        del proof_in(changed)[key]
        assert refused(network, changed), key


def test_free_multipliers_are_checked(certified):
    network, made = certified
    result = made["2:1"]
    free = proof_in(result)["equalities"][0]
    peak = int(np.argmax([abs(v) for v in free["coefficients"]]))
    changes = [
        ("coefficients", [*free["coefficients"][:peak], 0, *free["coefficients"][peak + 1 :]]),
        ("coefficients", free["coefficients"][:-1]),
        ("monomials", [free["monomials"][0]] * len(free["monomials"])),
        ("constraint", 1),
        ("exponent", free["exponent"] + 1),
    ]
    for key, value in changes:
        changed = copy.deepcopy(result)
        proof_in(changed)["equalities"][0][key] = value
        assert refused(network, changed), key


def test_a_proof_for_another_norm_or_network_is_refused(certified):
    network, made = certified
    swapped = copy.deepcopy(made["inf:1"])
    proof_in(swapped).update(proof_in(made["2:1"]))
    assert refused(network, swapped)
    with pytest.raises(lm.Refuted):
        lm.verify(random_network("one-layer", 33, inputs=2, outputs=1), made["inf:1"])
