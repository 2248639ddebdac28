"""`--float32`: what is stated about execution in float32 holds, and nothing else is stated."""

from __future__ import annotations

import itertools
import json
import math
import pathlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from float32_machine import Machine, machines, nearest, rationals
from float32_nets import BIG, FLOAT, chain, eps, errors, f32, network, node
from onnx import TensorProto, helper, numpy_helper
from onnx_models import make

import lipmodel as lm
from lipmodel.certify.execution import STATEMENT
from lipmodel.certify.execution_values import ROUNDINGS
from lipmodel.cli import main
from lipmodel.network.onnx_import import load
from lipmodel.spec import Outputs

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


# ------------------------------------------------------------------------------------------------------ known examples


def test_a_shift_by_two_to_the_24_is_1_lipschitz_and_jumps_by_2_in_float32():
    net = network(
        [node("Add", "x", "c", to="u"), node("Relu", "u", to="v"), node("Sub", "v", "c")], {"c": f32([BIG])}, shape=(1,)
    )
    result = lm.solve(net, domain="box:0:2", norm="inf", float32=True)
    error = float.fromhex(result.certificate["float_execution"]["eps"])
    assert result.bound == 1.0
    x, y = f32(1.0), np.nextafter(f32(1.0), f32(2.0))
    jump, step = ((v + f32(BIG)) - f32(BIG) for v in (y, x))
    quotient = float(jump - step) / (float(y) - float(x))
    assert quotient > 1.6e7
    assert float(jump - step) <= result.bound * (float(y) - float(x)) + 2.0 * error
    assert 1.0 <= error <= 10.0


@pytest.mark.parametrize("gemm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_sum_whose_roundings_all_go_the_same_way_is_within_the_error_and_close_to_it(gemm, bias):
    """2^24 + 1 + 1 + ... is 2^24 when it is added from the left, whether 2^24 is a bias or a product."""
    n = 12
    w, b, x = (np.ones((1, n)), [BIG], np.ones(n)) if bias else ([[BIG, *[1.0] * (n - 1)]], [0.0], np.ones(n))
    total = f32(b[0])
    for v, c in zip(x, w[0], strict=True):
        total = f32(total + f32(f32(c) * f32(v)))
    lost = BIG * (not bias) + float(np.sum(x)) - (not bias) - (float(total) - BIG * bias)
    (error,) = errors(chain([w], [b], gemm=gemm), 1.0, 1.0)
    assert lost == (n if bias else n - 1)
    assert lost <= error <= lost + 3


def test_a_residual_may_be_added_within_the_sum_that_it_meets():
    """The value that is added first to the products of a matrix loses what every one of them loses."""
    n = 9
    nodes = [node("MatMul", "x", "w", to="u"), node("MatMul", "x", "big", to="v"), node("Add", "v", "u")]
    big = np.zeros((n, 1))
    big[0] = BIG
    (error,) = errors(network(nodes, {"w": np.ones((n, 1)), "big": big}, shape=(1, n)), 1.0, 1.0)
    total = f32(BIG)
    for _ in range(n):
        total = f32(total + f32(1.0))
    assert BIG + n - float(total) == n
    assert n <= error


def test_two_matrix_products_may_be_one_sum():
    """All products of both in one accumulator, beginning with the largest."""
    n = 6
    nodes = [node("MatMul", "x", "big", to="u"), node("MatMul", "x", "w", to="v"), node("Sub", "u", "v")]
    big = np.ones((n, 1))
    big[0] = BIG
    (error,) = errors(network(nodes, {"w": -np.ones((n, 1)), "big": big}, shape=(1, n)), 1.0, 1.0)
    total = f32(BIG)
    for _ in range(2 * n - 1):
        total = f32(total + f32(1.0))
    assert BIG + 2 * n - 1 - float(total) == 2 * n - 1
    assert 2 * n - 1 <= error


def test_a_factor_is_one_rounding_more_whatever_it_is_applied_to():
    rng, worst = np.random.default_rng(0), Fraction(0)
    for _ in range(40):
        factor, weight, x = (Fraction(float(v)) for v in f32(rng.uniform(1, 1.2, 3)))
        net = network([node("Gemm", "x", "w", alpha=float(factor))], {"w": f32([[float(weight)]])}, shape=(1, 1))
        (error,) = errors(net, float(x), float(x))
        exact = factor * weight * x
        for first, last in ((factor * weight, x), (factor * x, weight), (weight * x, factor)):
            lost = abs(nearest(nearest(first) * last) - exact)
            worst = max(worst, lost * ROUNDINGS / exact)
            assert lost <= error
    assert worst > Fraction(11, 10)


def test_nothing_is_lost_where_nothing_is_computed():
    assert eps(network([node("Flatten", "x")], shape=(1, 2, 2)), -1.0, 1.0) == 0.0


def test_a_neuron_that_is_never_active_has_no_error():
    net = chain([[[1.0]], [[1.0]]], [[-9.0], [0.0]], gemm=True)
    assert eps(net, -1.0, 1.0) < 1e-35
    assert eps(net, -1.0, 10.0) > 1e-7


def test_the_recursion_on_a_hand_computed_example():
    """y = 2 relu(x + 1) on [0, 3]: gamma_2 (3 + 1) after the first layer, then 2 e_1 + gamma_1 2 (4 + e_1)."""
    net = chain([[[1.0]], [[2.0]]], [[1.0], [0.0]], gemm=True)
    gamma = [Fraction(k, ROUNDINGS - k) for k in range(3)]
    first = gamma[2] * (3 + 1)
    expected = 2 * first + gamma[2] * 2 * (4 + first)
    (error,) = errors(net, 0.0, 3.0)
    assert expected <= error <= expected * (1 + Fraction(1, 2**20)) + Fraction(1, 2**100)


# ------------------------------------------------------------------------------------------- chains on every machine


def exact_chain(weights: list[Any], biases: list[Any], x: list[Fraction]) -> list[Fraction]:
    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = [sum((a * v for a, v in zip(row, x, strict=True)), c) for row, c in zip(w, b, strict=True)]
        if k + 1 < len(weights):
            x = [max(v, Fraction(0)) for v in x]
    return x


def machine_chain(machine: Machine, weights: list[Any], biases: list[Any], x: list[Fraction]) -> list[Fraction]:
    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        apart = bool(machine.rng.integers(2))
        sums = [machine.dot(row, x, *([] if apart else [c])) for row, c in zip(w, b, strict=True)]
        x = [machine.plus(v, c) for v, c in zip(sums, b, strict=True)] if apart else sums
        if k + 1 < len(weights):
            x = machine.relu(x)
    return x


KINDS = {"plain": (0, 0), "unequal": (0, 12), "large": (24, 4), "tiny": (-30, 3), "subnormal": (-120, 10)}
"""Exponents (of 2) of the weights of a layer: their middle and spread."""


@pytest.mark.parametrize("gemm", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_no_machine_leaves_the_error_of_a_random_chain(seed, kind, gemm):
    rng = np.random.default_rng([seed, len(kind), gemm])
    dims = [int(rng.integers(1, 6)) for _ in range(int(rng.integers(2, 5)))]
    middle, spread = KINDS[kind]

    def numbers(*shape: int) -> Any:
        values = rng.standard_normal(shape) * 2.0 ** (middle + spread * rng.uniform(-1, 1, shape))
        return f32(np.where(rng.random(shape) < 0.15, 0.0, values))

    weights = [numbers(m, n) for n, m in itertools.pairwise(dims)]
    biases = [numbers(m) for m in dims[1:]]
    lo = rng.uniform(-3, 0, dims[0]) * 2.0 ** (spread * rng.uniform(-1, 1))
    hi = lo + rng.uniform(0, 4, dims[0])
    net = chain(weights, biases, gemm=gemm)
    allowed = errors(net, lo, hi)
    exact_w, exact_b = rationals(weights), rationals(biases)
    for _ in range(4):
        x = f32(np.where(rng.random(dims[0]) < 0.2, hi, rng.uniform(lo, hi)))
        x = np.where(x > hi, np.nextafter(x, f32(-np.inf)), np.where(x < lo, np.nextafter(x, f32(np.inf)), x))
        point = rationals(x)
        truth = exact_chain(exact_w, exact_b, point)
        for machine in machines(rng):
            found = machine_chain(machine, exact_w, exact_b, point)
            assert all(abs(a - b) <= e for a, b, e in zip(found, truth, allowed, strict=True))


def test_the_machine_rounds_as_numpy_does():
    rng = np.random.default_rng(0)
    for _ in range(300):
        a, b = (f32(rng.standard_normal() * 2.0 ** rng.uniform(-75, 60)) for _ in range(2))
        assert float(nearest(Fraction(float(a)) * Fraction(float(b)))) == float(a * b)
        assert float(nearest(Fraction(float(a)) + Fraction(float(b)))) == float(a + b)


def test_norms_and_chosen_outputs():
    rng = np.random.default_rng(2)
    net = chain([rng.standard_normal((4, 3)), rng.standard_normal((3, 4))], [np.ones(4), np.ones(3)], gemm=True)
    e = errors(net, -1.0, 1.0)

    def stated(q: str, outputs: Any = None) -> float:
        return eps(net, -1.0, 1.0, output_norm=q, **({} if outputs is None else {"outputs": outputs}))

    assert Fraction(math.nextafter(stated("1"), 0.0)) < sum(e) <= Fraction(stated("1"))
    assert Fraction(math.nextafter(stated("inf"), 0.0)) < max(e) <= Fraction(stated("inf"))
    assert Fraction(math.nextafter(stated("2"), 0.0)) ** 2 < sum(v * v for v in e) <= Fraction(stated("2")) ** 2
    two = Outputs(kind="vector", indices=(2, 0))
    assert Fraction(math.nextafter(stated("1", two), 0.0)) < e[2] + e[0] <= Fraction(stated("1", two))
    margin = Outputs(kind="margin", indices=(1,))
    for q in ("1", "2", "inf"):
        assert Fraction(math.nextafter(stated(q, margin), 0.0)) < e[1] + max(e[0], e[2]) <= Fraction(stated(q, margin))


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("domain", ["global", "ball:0:1"])
def test_there_is_no_statement_without_a_box(domain):
    net = chain([[[1.0]]], [[0.0]], gemm=True)
    with pytest.raises(lm.UsageError, match="needs a box"):
        lm.solve(net, domain=domain, float32=True)


def test_every_node_that_is_not_covered_is_named():
    nodes = [
        node("Tanh", "x", to="u", name="first"),
        node("Relu", "u", to="v"),
        node("Sigmoid", "x", to="w", name="second"),
        node("Add", "v", "w"),
    ]
    with pytest.raises(lm.RefusedInput) as caught:
        lm.solve(network(nodes), domain="box:0:1", float32=True)
    assert [(r.kind, r.where) for r in caught.value.reasons] == [("float32", "first"), ("float32", "second")]


BN = {name: np.ones(4) for name in ("g", "b", "m", "v")}
UNCOVERED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "batch normalisation": ([node("BatchNormalization", "x", *BN)], BN, "BatchNormalization are not covered"),
    "a negative slope": ([node("LeakyRelu", "x", alpha=-0.5)], {}, "negative slope"),
    "computed weights": (
        [node("Add", "a", "a", to="w"), node("MatMul", "x", "w")],
        {"a": np.ones((4, 2))},
        "not stored in the file",
    ),
    "a subnormal divisor": ([node("Div", "x", "a")], {"a": f32([2.0**-130])}, "subnormal"),
    "an overflow in between": (
        [node("MatMul", "x", "w")],
        {"w": f32([[2e38], [-2e38], [0.0], [0.0]])},
        "may overflow",
    ),
    "an overflow in the factor": (
        [node("Gemm", "x", "w", alpha=1e-20)],
        {"w": f32(np.full((4, 1), 3e38))},
        "may overflow",
    ),
    "an overflow of the input": (
        [node("Add", "x", "x", to="u"), node("Mul", "u", "a")],
        {"a": f32([3e38])},
        "overflow",
    ),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_what_is_not_covered_is_refused(name):
    nodes, weights, message = UNCOVERED[name]
    with pytest.raises(lm.RefusedInput, match=message):
        eps(network(nodes, weights), 1.0, 1.5)


def test_sums_just_below_the_overflow_are_covered():
    net = network([node("MatMul", "x", "w")], {"w": f32([[1e38], [-1e38], [0.0], [0.0]])})
    assert 1e31 < eps(net, 1.0, 1.5) < 1e33
    with pytest.raises(lm.RefusedInput, match="may overflow"):
        eps(net, 1.0, 1.72)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_other_formats_are_refused(kind):
    net = network([node("MatMul", "x", "w")], {"w": np.ones((4, 2))}, type=kind)
    with pytest.raises(lm.RefusedInput, match="not of type float32"):
        eps(net, 0.0, 1.0)


def test_a_graph_input_that_is_held_constant_is_refused(tmp_path):
    model = make([node("Add", "x", "z")], inputs={"x": (1, 2), "z": (1, 2)}, type=FLOAT)
    path = tmp_path / "two.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(lm.RefusedInput, match="'z'"):
        eps(load(path, graph_input="x"), 0.0, 1.0)
    assert eps(load(path, graph_input="all"), 0.0, 1.0) > 0.0
    with pytest.raises(lm.RefusedInput, match="not at hand"):
        eps(load(model, graph_input="all"), 0.0, 1.0)
    before = load(path, graph_input="all")
    path.write_bytes(make([node("Sub", "x", "z")], inputs={"x": (1, 2), "z": (1, 2)}, type=FLOAT).SerializeToString())
    with pytest.raises(lm.RefusedInput, match="has changed"):
        eps(before, 0.0, 1.0)


def test_constants_of_another_format_are_refused():
    wide = numpy_helper.from_array(np.array([1.0, 2.0, 3.0, 4.0]))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=wide, name="wide"),
        helper.make_node("Cast", ["c"], ["d"], to=FLOAT, name="cast"),
        node("Add", "x", "d"),
    ]
    with pytest.raises(lm.RefusedInput, match="stored as DOUBLE"):
        eps(network(nodes), 0.0, 1.0)


# --------------------------------------------------------------------------------------------------------- certificates


@pytest.fixture(scope="module")
def solved() -> tuple[lm.Network, dict[str, Any]]:
    """A linear network, whose constant is the same on every box, and a certificate on [-1, 1]^2."""
    net = chain([[[1.0, 2.0], [-1.0, 3.0]]], [[1.0, 2.0]], gemm=True)
    result = lm.solve(net, domain="box:-1:1", norm="inf:2", float32=True)
    return net, json.loads(json.dumps(result.certificate))


def test_a_certificate_is_verified_with_its_statement(solved):
    net, data = solved
    assert set(data["float_execution"]) == {"format", "eps", "statement"}
    verdict = lm.verify(net, data)
    assert verdict.float32_eps == float.fromhex(data["float_execution"]["eps"]) == eps(net, -1.0, 1.0)
    assert verdict.to_json()["float32_eps"] == verdict.float32_eps
    without = {**data, "float_execution": None}
    assert lm.verify(net, without).float32_eps is None


def changed(data: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**data, "float_execution": {**data["float_execution"], **fields}}


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "float16"},
        {"format": None},
        {"statement": STATEMENT[:-1]},
        {"statement": ""},
        {"eps": "0x0.0p+0"},
        {"eps": "-0x1.0p+0"},
        {"eps": 1.0},
        {"eps": "inf"},
        {"eps": None},
        {"more": 1},
    ],
)
def test_a_changed_block_is_refuted(solved, fields):
    net, data = solved
    with pytest.raises(lm.Refuted, match="float_execution"):
        lm.verify(net, changed(data, **fields))


def test_a_smaller_eps_is_refuted_and_a_larger_one_is_true(solved):
    net, data = solved
    error = float.fromhex(data["float_execution"]["eps"])
    with pytest.raises(lm.Refuted, match="which the operators of the file give"):
        lm.verify(net, changed(data, eps=math.nextafter(error, 0.0).hex()))
    assert lm.verify(net, changed(data, eps=math.nextafter(error, 1.0).hex())).float32_eps > error


def test_a_missing_key_or_block_is_refuted(solved):
    net, data = solved
    for block in ({}, [], "float32", {"format": "float32"}, True):
        with pytest.raises(lm.Refuted, match="float_execution"):
            lm.verify(net, {**data, "float_execution": block})
    with pytest.raises(lm.Refuted, match="float_execution"):
        lm.verify(net, {k: v for k, v in data.items() if k != "float_execution"})


def test_another_box_domain_or_norm_is_refuted(solved):
    net, data = solved
    claim = {**data["claim"], "lower_bound": None}
    wider = {"kind": "box", "lo": [(-1.0).hex()] * 2, "hi": [(1.0).hex(), math.nextafter(1.0, 2.0).hex()]}
    smaller = {"kind": "box", "lo": [(-1.0).hex()] * 2, "hi": [(0.5).hex()] * 2}
    wide = {"kind": "box", "lo": [(-1.0).hex()] * 2, "hi": [(2.0).hex()] * 2}
    for domain in (wider, wide):
        with pytest.raises(lm.Refuted, match="which the operators of the file give"):
            lm.verify(net, {**data, "lower": None, "claim": {**claim, "domain": domain}})
    assert lm.verify(net, {**data, "lower": None, "claim": {**claim, "domain": smaller}}).float32_eps
    with pytest.raises(lm.Refuted, match="needs a box"):
        lm.verify(net, {**data, "lower": None, "claim": {**claim, "domain": "global"}})


def test_nothing_follows_without_a_bound(solved):
    net, data = solved
    with pytest.raises(lm.Refuted, match="without a bound"):
        lm.verify(net, {**data, "upper": None, "claim": {**data["claim"], "bound": None}})


def test_a_statement_about_another_network_is_refuted():
    covered = chain([[[1.0, 2.0]]], [[0.0]], gemm=True)
    block = lm.solve(covered, domain="box:-1:1", float32=True).certificate["float_execution"]
    net = network([node("MatMul", "x", "w", to="u"), node("Tanh", "u")], {"w": f32([[1.0], [2.0]])}, shape=(1, 2))
    data = dict(lm.solve(net, domain="box:-1:1").certificate)
    assert data["float_execution"] is None
    with pytest.raises(lm.Refuted, match="Tanh are not covered"):
        lm.verify(net, {**data, "float_execution": block})


# --------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def saved(tmp_path) -> pathlib.Path:
    path = tmp_path / "net.onnx"
    chain([[[1.0, 2.0], [-1.0, 3.0]], [[1.0, 1.0]]], [[1.0, 2.0], [0.0]], gemm=False).save(path)
    return path


def test_solve_and_verify_print_the_statement(saved, tmp_path, capsys):
    result = str(tmp_path / "r.json")
    assert main(["solve", str(saved), "--domain", "box:-1:1", "--float32", "--save", result, "-q"]) == 0
    line, answer = capsys.readouterr().out.splitlines()
    assert line.startswith("executed in float32 (2→2, box:-1:1): ‖F(x) − F(y)‖ ≤ ")
    assert " ≤ L(2→2, box:-1:1) ≤ " in answer
    certificate = json.loads(pathlib.Path(result).read_text())["certificate"]
    bound, twice = line.partition("≤ ")[2].split(" ‖x − y‖ + ")
    assert float(bound) >= float.fromhex(certificate["claim"]["bound"])
    assert float(twice) >= 2.0 * float.fromhex(certificate["float_execution"]["eps"]) > 0.99 * float(twice)
    assert main(["verify", str(saved), result]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"float32: {STATEMENT}" in printed
    assert line in printed
    assert main(["verify", str(saved), result, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["float32_eps"] > 0.0
    assert main(["solve", str(saved), "--domain", "box:-1:1", "--float32", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["certificate"]["float_execution"] == certificate["float_execution"]


def test_without_a_box_nothing_is_printed(saved, capsys):
    assert main(["solve", str(saved), "--float32"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--domain box:LO:HI" in captured.err


# --------------------------------------------------------------------------------------------------- real networks


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize(
    ("name", "radius"),
    [("acasxu/1_1", 0.2), ("mnistfc/256x2", 0.05), ("digits/cnn2_seed0", 0.1), ("resnet/cifar_2b", 0.01)],
)
def test_onnxruntime_stays_within_the_error_of_real_networks(name, radius):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = SHARED / "nets" / f"{name}.onnx"
    net = load(path)
    lo, hi = np.full(net.input_size, -radius), np.full(net.input_size, radius)
    allowed = np.array(errors(net, lo, hi), dtype=np.float64)
    rng = np.random.default_rng(0)
    points = f32(rng.uniform(lo, hi, (6, net.input_size)))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (fed,) = session.get_inputs()
    found = np.array(
        [np.ravel(session.run(None, {fed.name: x.reshape(net.input_shape)})[0]) for x in points], dtype=float
    )
    truth = np.array([net.evaluate(x.astype(np.float64)) for x in points])
    assert np.all(np.abs(found - truth) <= allowed + 1e-9 * np.abs(truth).max())
    assert np.abs(found - truth).max() > 0.0


def test_a_bound_on_assumptions_says_nothing_about_float32():
    """What a formulation states by itself is not proved, so no unconditional statement may follow from it."""
    rng = np.random.default_rng(5)
    net = chain([rng.standard_normal(s) for s in ((4, 3), (2, 4))], [0.1 * np.ones(4), np.ones(2)], gemm=True)
    stated = f"{pathlib.Path(__file__).with_name('bad_formulations.py')}:Stated"
    said: list[str] = []
    asked = {"domain": "box:-1:1", "norm": "2", "backend": "clarabel", "float32": True}
    result = lm.solve(net, stated, assurance="model", report=said.append, **asked)
    assert result.assurance == "model"
    assert result.certificate["float_execution"] is None
    assert any("nothing is stated about execution in float32" in line for line in said)
    proved = lm.solve(net, **{**asked, "backend": None}).to_json()
    forged = result.to_json()
    forged["certificate"]["float_execution"] = proved["certificate"]["float_execution"]
    with pytest.raises(lm.Refuted, match="rests on assumptions"):
        lm.verify(net, json.dumps(forged))
