"""LiPopt: against enumeration, the published tables and their mistakes, and certificates tampered with."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import math
import pathlib

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.certify.kernel import Rejected
from lipmodel.certify.polynomials import decide, gradient_program, krivine_bound
from lipmodel.cli import main
from lipmodel.formulation import formulation
from lipmodel.network.increments import chain_of, exact_system
from lipmodel.relaxations import krivine
from lipmodel.relaxations.solving import points
from lipmodel.relaxations.sparsity import variable_cliques
from lipmodel.testing.formulations import formulation_checks
from lipmodel.testing.networks import KINDS, formal_constant, random_network, random_system

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
EXACT = 1e-9
PUBLISHED = 1e-6


@functools.cache
def recipes():
    spec = importlib.util.spec_from_file_location("certdnn_recipes", SHARED / "oracles" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def table(depth):
    """Rows of the published table by (n, s, seed)."""
    listed = json.loads((SHARED / "oracles" / "certdnn.json").read_text())["tables"][depth - 1]
    rows = [dict(zip(listed["columns"], row, strict=True)) for row in listed["rows"]]
    return {(row["n"], row["s"], row["seed"]): row for row in rows}


def band(n, s, seed, depth=1):
    """The weights of a network of the benchmark."""
    return recipes().certdnn(n, s, seed, depth).Ws


def program_of(weights):
    return lm.network_polynomials(chain_of(weights), lm.Spec(input_norm="inf", output_norm="1"))


def bound(program, level=0, **more):
    return lm.Krivine(program=program, level=level, **more).bound()


# ---------------------------------------------------------------------------------------------------------- soundness


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [11, 12])
def test_the_maximum_is_the_formal_constant(kind, seed):
    """Any graph, slopes of either sign, several outputs; by elimination."""
    network = random_network(kind, seed)
    result = lm.solve(network, "lipopt", norm="inf:1", witness=False)
    true = formal_constant(random_system(kind, seed), "inf", "1")
    assert true * (1 - 1e-12) <= result.bound <= true * (1 + EXACT)
    assert lm.verify(network, result).bound == result.bound


@pytest.mark.parametrize("kind", KINDS)
def test_levels_decrease_to_the_maximum(kind):
    network = random_network(kind, 13, inputs=2, outputs=1)
    system = random_system(kind, 13, inputs=2, outputs=1)
    program = lm.network_polynomials(system, lm.Spec(input_norm="inf", output_norm="1"))
    degree = program.objective.degree
    true = formal_constant(system, "inf", "1")
    before = math.inf
    for level in (degree, degree + 1):
        result = lm.solve(network, "lipopt", norm="inf:1", options={"level": level}, witness=False)
        assert true * (1 - 1e-12) <= result.bound <= before * (1 + PUBLISHED)
        assert lm.verify(network, result).bound == result.bound
        before = result.bound
    with pytest.raises(lm.UsageError, match="below the degree"):
        krivine.relax(program.normalised(), [tuple(range(len(program.variables)))], degree - 1)


def test_products_of_a_whole_block_are_exact():
    """The linear program itself, with as many factors as a clique has variables, is the maximum."""
    for seed in range(3):
        system = random_system("one-layer", seed, inputs=2, outputs=1)
        program = lm.network_polynomials(system, lm.Spec(input_norm="inf", output_norm="1"))
        target = program.normalised()
        cliques = variable_cliques(target, "correlative")
        relaxed = krivine.relax(target, cliques.cliques, cliques.width + 1)
        found = solved(target, relaxed)
        assert found == pytest.approx(formal_constant(system, "inf", "1"), rel=PUBLISHED)


def solved(target, relaxed, backend=None):
    """The bound that a linear program proves."""
    model, variable = relaxed.model()
    point = next(points(model, backend, math.inf, 1e-9))
    return float(krivine_bound(target, krivine.rounded_weights(relaxed, point.values[variable])))


@pytest.mark.parametrize("norm", ["inf", "1:inf", "1:1", "inf:1"])
def test_rows_and_columns(norm):
    network = random_network("residual", 21)
    p, _, q = norm.partition(":")
    result = lm.solve(network, "lipopt", norm=norm, witness=False)
    assert result.bound == pytest.approx(formal_constant(random_system("residual", 21), p, q or p), rel=EXACT)
    assert lm.verify(network, result).bound == result.bound


def test_a_bounded_domain_uses_its_slopes():
    network = random_network("chain", 4)
    local = lm.solve(network, "lipopt", norm="inf:1", domain="box:-1:2")
    whole = lm.solve(network, "lipopt", norm="inf:1")
    assert 0.0 < local.lower_bound <= local.bound < whole.bound
    assert lm.verify(network, local).bound == local.bound


def test_norms_out_of_reach():
    for norm in ("2", "inf:2"):
        with pytest.raises(lm.UsageError, match="does not reach"):
            lm.solve(random_network("chain", 1), "lipopt", norm=norm)
    with pytest.raises(lm.UsageError, match="level -1"):
        lm.solve(random_network("chain", 1), "lipopt", options={"level": -1})
    with pytest.raises(lm.UsageError, match="sparsity"):
        lm.solve(random_network("chain", 1), "lipopt", options={"sparsity": "none"})


def test_a_level_that_does_not_fit_says_so():
    rng = np.random.default_rng(1)
    program = program_of([rng.standard_normal((40, 40)), rng.standard_normal((1, 40))])
    with pytest.raises(lm.UsageError, match=r"level 4 would have up to [0-9,]+ products"):
        bound(program, 4)
    described = lm.Krivine(program=program).describe()
    assert "1,640 monomials, degree 2, 80 variables" in described
    assert "linear program of level 3" in described


def test_sparsity_changes_the_size_and_the_bound_only_upward():
    program = program_of([np.diag([1.0, 2.0, -1.0]) + np.diag([0.5, -1.0], 1), np.array([[1.0, 1.0, -2.0]])])
    target = program.normalised()
    dense, sparse = (variable_cliques(target, s) for s in ("dense", "correlative"))
    sizes = [len(krivine.relax(target, c.cliques, 2).constant) for c in (dense, sparse)]
    assert sizes[1] < sizes[0]
    values = [solved(target, krivine.relax(target, c.cliques, 2)) for c in (dense, sparse)]
    assert values[0] <= values[1] * (1 + PUBLISHED)


@pytest.mark.parametrize("backend", ["highs", "clarabel", "scs"])
def test_backends_agree(backend):
    if backend == "highs":
        pytest.importorskip("highspy")
    network = random_network("one-layer", 8, outputs=1)
    result = lm.solve(network, "lipopt", norm="inf:1", options={"level": 2}, backend=backend, witness=False)
    expected = lm.solve(network, "lipopt", norm="inf:1", options={"level": 2}, backend="clarabel", witness=False)
    assert result.backend == backend
    assert result.bound == pytest.approx(expected.bound, rel=1e-4)
    assert lm.verify(network, result).bound == result.bound


CHECKS = {str(check): check for check in formulation_checks()}


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check):
    CHECKS[check](formulation("lipopt"))


def test_products_need_a_cube():
    x = lm.Polynomial.variable("x")
    program = lm.PolynomialProgram(objective=x - x**2, ranges={"x": (0, 1)})
    with pytest.raises(lm.UsageError, match="degree one in every variable"):
        bound(program)


def test_a_time_limit_too_short_for_the_maximum():
    """Elimination is not begun where it would not end in time; nothing else is proved then, and an error says so."""
    rng = np.random.default_rng(1)
    program = program_of([rng.standard_normal((18, 18)), rng.standard_normal((1, 18))])
    with pytest.raises(lm.LipmodelError, match="no solver found a point"):
        lm.Krivine(program=program).bound(time_limit=1e-6)


# ---------------------------------------------------------------------------------------------------- published values


@needs_shared
@pytest.mark.parametrize(
    ("n", "s"), [(10, 4), (10, 8), (10, 12), (10, 16), (10, 20), (20, 8), (20, 16), (40, 10), (80, 10)]
)
def test_one_hidden_layer_is_exact(n, s):
    for (a, b, seed), row in table(1).items():
        if (a, b) == (n, s):
            found = bound(program_of(band(n, s, seed))).bound
            if row["fgl"] is not None:
                assert found == pytest.approx(row["fgl"], rel=EXACT)
            assert found <= row["pub_lp3"] * (1 + PUBLISHED)
            if s > 4:
                assert found <= row["pub_lp4"] * (1 + PUBLISHED)
            assert found <= row["geolip_upper"] * (1 + PUBLISHED)


@needs_shared
@pytest.mark.parametrize(("n", "s"), [(5, 4), (5, 20), (10, 4), (10, 8), (15, 8), (20, 4), (20, 8), (40, 10)])
def test_two_hidden_layers_are_exact(n, s):
    for (a, b, seed), row in table(2).items():
        if (a, b) == (n, s):
            found = bound(program_of(band(n, s, seed, 2))).bound
            if row["fgl"] is not None:
                assert found == pytest.approx(row["fgl"], rel=EXACT)
            for key in ("pub_lp3", "pub_lp4"):
                assert row[key] is None or found <= row[key] * (1 + PUBLISHED)


@needs_shared
@pytest.mark.parametrize(("n", "s", "depth"), [(10, 4, 1), (10, 20, 1), (20, 24, 1), (5, 12, 2), (10, 12, 2)])
def test_level_three_is_the_published_one(n, s, depth):
    row = table(depth)[n, s, 0]
    target = program_of(band(n, s, 0, depth)).normalised()
    relaxed = krivine.relax(target, variable_cliques(target, "correlative").cliques, 3)
    assert solved(target, relaxed) == pytest.approx(row["pub_lp3"], rel=PUBLISHED)


@needs_shared
@pytest.mark.parametrize("seed", range(10))
def test_the_published_level_four_drops_monomials(seed):
    """(10, 10, 1) with 4 nonzeros a row: the inputs at the ends are in no product of four variables, and were lost."""
    weights = band(10, 4, seed)
    lost = [w.copy() for w in weights]
    lost[0][:, [0, 9]] = 0.0  # what the products of exactly four variables leave of the objective
    dropped, whole = program_of(lost), program_of(weights)
    exact = bound(whole).bound
    wrong = bound(dropped).bound
    row = table(1).get((10, 4, seed))
    if row is not None:
        assert wrong == pytest.approx(row["pub_lp4"], rel=PUBLISHED)
        assert exact == pytest.approx(row["fgl"], rel=EXACT)
    assert wrong < exact * 0.99
    # a certificate of the wrong value is refused, and what it does prove is above the maximum
    target, truncated = whole.normalised(), dropped.normalised()
    relaxed = krivine.relax(truncated, variable_cliques(truncated, "correlative").cliques, 2)
    model, variable = relaxed.model()
    found = next(points(model, None, math.inf, 1e-9))
    proof = krivine.rounded_weights(relaxed, found.values[variable])
    assert float(krivine_bound(truncated, proof)) == pytest.approx(wrong, rel=PUBLISHED)
    assert float(krivine_bound(target, proof)) >= exact
    with pytest.raises(Rejected, match="proves less"):
        decide(target, {**proof, "bound": float(krivine_bound(truncated, proof)).hex()})


@needs_shared
def test_below_the_semidefinite_bound_on_bands():
    for n, s in ((80, 20), (40, 20)):
        row = table(1)[n, s, 0]
        assert bound(program_of(band(n, s, 0))).bound == pytest.approx(row["pub_lp4"], rel=PUBLISHED)


# ----------------------------------------------------------------------------------------------------------- tampering


@pytest.fixture(scope="module")
def certified():
    network = random_network("one-layer", 31, outputs=1)
    results = {
        rule: json.loads(json.dumps(lm.solve(network, "lipopt", norm="inf", options={"level": level}).to_json()))
        for rule, level in (("krivine", 2), ("elimination", 0))
    }
    for rule, result in results.items():
        assert proof_in(result)["rule"] == rule
    return network, results


def proof_in(result):
    """The proof in a certificate, inside the family or not."""
    upper = result["certificate"]["upper"]
    return upper["members"][0]["proof"] if upper["rule"] == "largest" else upper


def refused(network, result):
    try:
        lm.verify(network, result)
    except lm.Refuted:
        return True
    return False


def with_bound(result, value):
    changed = copy.deepcopy(result)
    for part in (proof_in(changed), changed["certificate"]["upper"], changed["certificate"]["claim"], changed):
        part["bound"] = value.hex() if part is not changed else value
    return changed


@pytest.mark.parametrize("rule", ["krivine", "elimination"])
def test_a_bound_below_the_truth_is_refused(certified, rule):
    network, results = certified
    result = results[rule]
    assert proof_in(result)["rule"] == rule
    assert not refused(network, result)
    bound_now = float.fromhex(proof_in(result)["bound"])
    assert refused(network, with_bound(result, math.nextafter(bound_now, 0.0)))
    assert refused(network, with_bound(result, bound_now * 0.9))


def test_every_weight_matters(certified):
    """Less of a weight, a factor turned round, a product left out: not the same bound any more, or refused."""
    network, results = certified
    result = results["krivine"]
    proof = proof_in(result)
    heavy = int(np.argmax(proof["weights"]))
    changes = [
        ("weights", heavy, 0),
        ("weights", heavy, -1),
        ("weights", heavy, proof["weights"][heavy] // 2),
        ("weights", heavy, float(proof["weights"][heavy])),
        ("weights", heavy, True),
        ("products", heavy, [-f for f in proof["products"][heavy]]),
        ("products", heavy, []),
        ("products", heavy, [0]),
        ("products", heavy, [1000]),
        ("products", heavy, [1, 1]),
        ("products", heavy, [1, -1]),
        ("products", heavy, "all"),
    ]
    for key, place, value in changes:
        changed = copy.deepcopy(result)
        proof_in(changed)[key][place] = value
        assert refused(network, changed), (key, value)
    others = (
        ("exponent", proof["exponent"] + 1),
        ("exponent", -1),
        ("exponent", 10**7),
        ("weights", proof["weights"][:-1]),
        ("products", None),
        ("norms", ["2", "1"]),
        ("norms", ["inf", "3"]),
        ("rule", "elimination"),
        ("rule", "sos"),
        ("rule", "lmi"),
    )
    for key, value in others:
        changed = copy.deepcopy(result)
        proof_in(changed)[key] = value
        assert refused(network, changed), (key, value)
    for key in proof:
        changed = copy.deepcopy(result)
        del proof_in(changed)[key]
        assert refused(network, changed), key


def test_orders_of_elimination_are_hints_only(certified):
    network, results = certified
    result = results["elimination"]
    order = proof_in(result)["order"]
    changed = copy.deepcopy(result)
    proof_in(changed)["order"] = order[::-1]
    assert not refused(network, changed)
    for wrong in (order[:-1], [*order[:-1], order[0]], [float(i) for i in order], [*order, len(order)], None):
        proof_in(changed)["order"] = wrong
        assert refused(network, changed)


def test_another_network_is_refused(certified):
    _, results = certified
    for result in results.values():
        with pytest.raises(lm.Refuted):
            lm.verify(random_network("one-layer", 32, outputs=1), result)


def test_activations_on_vectors_are_refused():
    """Softmax acts with a matrix of slopes; multiplying scalar slopes would be wrong."""
    weights = [np.eye(3), np.ones((1, 3))]
    network = lm.from_weights(weights, activation="relu")
    result = lm.solve(network, "lipopt", norm="inf")
    assert not refused(network, result)
    system = exact_system(chain_of(weights))
    grouped = type(system)(
        **{**{f: getattr(system, f) for f in ("sizes", "pre", "alpha", "beta", "output")}, "groups": (np.zeros(3),)}
    )
    with pytest.raises(Rejected, match="act on vectors"):
        gradient_program(grouped, "inf", "1")


def write_chain(path):
    """A 3-4-2 ReLU network as a file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(2)
    weights = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal((4, 2))}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["u"]),
        helper.make_node("Relu", ["u"], ["v"]),
        helper.make_node("MatMul", ["v", "b"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [1, k]) for n, k in (("x", 3), ("y", 2))]
    stored = [numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], initializer=stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(path))


def test_on_the_command_line(tmp_path, capsys):
    path, saved = tmp_path / "net.onnx", tmp_path / "result.json"
    write_chain(path)
    assert main(["solve", str(path), "-f", "lipopt", "-o", "level=2", "--save", str(saved)]) == 0
    assert main(["verify", str(path), str(saved)]) == 0
    assert main(["inspect", str(path), "-f", "lipopt"]) == 0
    assert "tables of" in capsys.readouterr().out
