"""Operators that have a Lipschitz constant on bounded domains only: roots, powers, products of tensors that vary."""

from __future__ import annotations

import csv
import pathlib
from typing import Any

import numpy as np
import pytest
from cli_nets import run
from onnx import TensorProto, helper
from onnx_models import agrees, make, runtime

import lipmodel as lm
from lipmodel.domain import parse_domain
from lipmodel.errors import RefusedInput
from lipmodel.lower.linearise import float_program, jacobian_vector_product, vector_jacobian_product
from lipmodel.lower.moves import Point, climb, flips, local_norms
from lipmodel.lower.witness import witness_ratio
from lipmodel.network.onnx_import import load
from lipmodel.network.ops import Product
from lipmodel.ranges.spans import around, between, times

node = helper.make_node
Array = np.ndarray[Any, Any]
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
NORMS = {"1": 1, "2": 2, "inf": np.inf}


def saved(model: Any, tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def jacobian_norms(network: Any, x: Array, p: str, q: str) -> Array:
    """||J||_{p->q} at the columns of x, in floating point (p = 2 = q, or p = 1, or q = inf)."""
    program = float_program(network)
    jacobians = program.jacobians(program.slopes(program.forward(x)))
    if (p, q) == ("2", "2"):
        return np.linalg.norm(jacobians, 2, axis=(1, 2))
    if p == "1":
        return np.linalg.norm(jacobians, NORMS[q], axis=1).max(axis=1)
    dual = {"1": np.inf, "2": 2, "inf": 1}[p]
    return np.linalg.norm(jacobians, dual, axis=2).max(axis=1)


def layered(rng: np.random.Generator, middle: list[Any], size: int, out: int, **weights: Any) -> Any:
    """x -> Gemm to `a` -> the given nodes, from a to b -> Gemm; double precision."""
    first = rng.standard_normal((size, 3)) * 0.5
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["a"], transB=1, name="first"),
        *middle,
        node("Gemm", ["b", "w2"], ["y"], transB=1, name="last"),
    ]
    known = {"w1": first, "b1": 2.5 + 0.2 * rng.standard_normal(size), "w2": rng.standard_normal((2, out)), **weights}
    return make(nodes, known, shape=(1, 3))


def several(rng: np.random.Generator) -> dict[str, Any]:
    """Networks by what they are about; their arguments are near 2.5 on small boxes around 0."""
    return {
        **{op: layered(rng, [node(op, ["a"], ["b"], name="op")], 4, 4) for op in ("Exp", "Log", "Sqrt", "Reciprocal")},
        "Sin": layered(rng, [node("Sin", ["a"], ["b"], name="op")], 4, 4),
        "Cos": layered(rng, [node("Cos", ["a"], ["b"], name="op")], 4, 4),
        **{
            f"Pow {e}": layered(rng, [node("Pow", ["a", "e"], ["b"], name="op")], 4, 4, e=np.array(float(e)))
            for e in (2, 3, -1, 0.5, 2.5)
        },
        "Pow by entry": layered(
            rng, [node("Pow", ["a", "e"], ["b"], name="op")], 4, 4, e=np.array([[2.0, 0.5, 2.0, -2.0]])
        ),
        "square": layered(rng, [node("Mul", ["a", "a"], ["b"], name="op")], 4, 4),
        "Mul": layered(
            rng,
            [node("Relu", ["a"], ["r"]), node("Tanh", ["a"], ["t"]), node("Mul", ["r", "t"], ["b"], name="op")],
            4,
            4,
        ),
        "Mul, broadcast": layered(
            rng,
            [
                node("ReduceSum", ["a", "axes"], ["s"], keepdims=1),
                node("Mul", ["s", "a"], ["b"], name="op"),
            ],
            4,
            4,
            axes=np.array([1]),
        ),
        "Div": layered(rng, [node("Sigmoid", ["a"], ["s"]), node("Div", ["a", "s"], ["b"], name="op")], 4, 4),
        "constant by tensor": layered(rng, [node("Div", ["c", "a"], ["b"], name="op")], 4, 4, c=np.array([[1.0] * 4])),
        "MatMul": layered(
            rng,
            [
                node("Reshape", ["a", "left"], ["l"]),
                node("Sigmoid", ["a"], ["s"]),
                node("Reshape", ["s", "right"], ["r"]),
                node("MatMul", ["l", "r"], ["m"], name="op"),
                node("Reshape", ["m", "flat"], ["b"]),
            ],
            6,
            4,
            left=np.array([2, 3]),
            right=np.array([3, 2]),
            flat=np.array([1, 4]),
        ),
        "Gemm": layered(
            rng,
            [
                node("Reshape", ["a", "left"], ["l"]),
                node("Gemm", ["l", "l", "c"], ["m"], transB=1, alpha=0.5, beta=2.0, name="op"),
                node("Reshape", ["m", "flat"], ["b"]),
            ],
            6,
            4,
            left=np.array([2, 3]),
            flat=np.array([1, 4]),
            c=np.array([1.0, -1.0]),
        ),
        "attention": layered(
            rng,
            [
                node("Reshape", ["a", "rows"], ["l"]),
                node("Transpose", ["l"], ["t"], perm=[1, 0]),
                node("MatMul", ["l", "t"], ["scores"], name="op"),
                node("Softmax", ["scores"], ["p"], axis=-1),
                node("MatMul", ["p", "l"], ["m"]),
                node("Reshape", ["m", "flat"], ["b"]),
            ],
            6,
            6,
            rows=np.array([3, 2]),
            flat=np.array([1, 6]),
        ),
    }


CASES = several(np.random.default_rng(0))


@pytest.mark.parametrize("name", CASES)
def test_values_agree_with_a_run_of_the_file(name: str) -> None:
    rng = np.random.default_rng(1)
    network = load(CASES[name])
    x = 0.2 * rng.standard_normal((1, 3))
    np.testing.assert_allclose(network.evaluate(x), runtime(CASES[name], x).ravel(), rtol=1e-10)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("Sin", "Cos")])
def test_a_global_request_is_refused_with_the_node_and_the_way_out(name: str) -> None:
    with pytest.raises(RefusedInput) as refused:
        lm.solve(load(CASES[name]))
    assert {reason.kind for reason in refused.value.reasons} == {"non-lipschitz"}
    assert any("'op" in reason.where for reason in refused.value.reasons)
    assert all("--domain box" in reason.hint for reason in refused.value.reasons)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("p", "q", "formulation"), [("2", "2", "lipsdp-neuron"), ("inf", "inf", None), ("1", "1", "product")]
)
def test_bounds_on_boxes_hold_and_are_verified(name: str, p: str, q: str, formulation: str | None) -> None:
    rng = np.random.default_rng(2)
    network = load(CASES[name])
    bounds = []
    for radius in (0.3, 0.02, 1e-5):
        result = lm.solve(network, formulation, norm=f"{p}:{q}", domain=f"box:{-radius}:{radius}", time_limit=5.0)
        corners = rng.choice([-radius, radius], (3, 100))
        x = np.concatenate([radius * rng.uniform(-1.0, 1.0, (3, 100)), corners], axis=1)
        assert result.assurance == "proved"
        assert result.bound >= jacobian_norms(network, x, p, q).max() * (1 - 1e-9)
        assert result.lower_bound is not None
        assert 0.0 < result.lower_bound <= result.bound
        assert lm.verify(network, result).bound == result.bound
        bounds.append(result)
    assert bounds[2].bound <= bounds[1].bound * (1 + 1e-6) <= bounds[0].bound * (1 + 1e-5)
    if formulation == "lipsdp-neuron" and name != "attention":
        # on a tiny box all slopes are nearly known (but for Softmax), so that bound and witness have to meet
        assert bounds[2].lower_bound == pytest.approx(bounds[2].bound, rel=1e-2)


def test_balls_are_domains_too() -> None:
    network = load(CASES["Mul"])
    rng = np.random.default_rng(3)
    result = lm.solve(network, "lipsdp-neuron", domain=lm.Ball(center=(0.0, 0.0, 0.0), radius=0.1), time_limit=5.0)
    x = rng.standard_normal((3, 200))
    x *= 0.1 * rng.random(200) / np.linalg.norm(x, axis=0)
    assert result.bound >= jacobian_norms(network, x, "2", "2").max() * (1 - 1e-9)
    assert lm.verify(network, result).bound == result.bound


def product_of_halves() -> Any:
    """x y of two inputs."""
    nodes = [
        node("Split", ["x", "sizes"], ["a", "b"], axis=1),
        node("Mul", ["a", "b"], ["y"], name="op"),
    ]
    return make(nodes, {"sizes": np.array([1, 1])}, shape=(1, 2))


def test_a_product_of_two_inputs_has_its_known_constant() -> None:
    network = load(product_of_halves())
    for norm, value in (("2", 8.0**0.5), ("inf", 4.0), ("1", 2.0)):
        result = lm.solve(network, "product" if norm == "1" else None, norm=norm, domain="box:1:2", time_limit=5.0)
        assert value * (1 - 1e-9) <= result.bound
        assert result.lower_bound == pytest.approx(value, rel=1e-3)
        if norm == "inf":
            assert result.bound == pytest.approx(value, rel=1e-6)
    # the two slopes do not know of each other: on a box around the origin the corner still counts
    corner = lm.solve(network, "lipsdp-neuron", domain="box:-1:1", time_limit=5.0)
    assert 2.0**0.5 * (1 - 1e-9) <= corner.bound <= 2.0**0.5 * 1.01


def test_a_square_is_one_neuron_and_not_a_product() -> None:
    network = load(CASES["square"])
    assert not any(isinstance(network.op(v), Product) for v in network.order())
    system = lm.increments(network, parse_domain("box:-0.1:0.1"))
    assert system.neurons == 4


@pytest.mark.parametrize(
    ("names", "activation", "swapped"),
    [(["Sigmoid"], "Swish", False), (["Sigmoid"], "Swish", True), (["Softplus", "Tanh"], "Mish", False)],
)
def test_gates_that_make_a_known_activation_have_its_constant(names: list[str], activation: str, swapped: bool) -> None:
    chain = [node(op, ["x" if k == 0 else f"g{k}"], [f"g{k + 1}"]) for k, op in enumerate(names)]
    factors = [f"g{len(names)}", "x"] if swapped else ["x", f"g{len(names)}"]
    network = agrees(make([*chain, node("Mul", factors, ["y"], name="op")], shape=(2, 3)), np.random.default_rng(0))
    (found,) = lm.increments(network).activations
    alpha, beta = lm.activation(activation).slopes()
    assert (set(found.alpha.tolist()), set(found.beta.tolist())) == ({alpha}, {beta})


def test_gates_of_something_else_stay_products() -> None:
    for middle in (
        [node("Neg", ["a"], ["n"]), node("Sigmoid", ["n"], ["s"]), node("Mul", ["a", "s"], ["b"], name="op")],
        [node("Tanh", ["a"], ["t"]), node("Sigmoid", ["t"], ["s"]), node("Mul", ["a", "s"], ["b"], name="op")],
        [node("Tanh", ["a"], ["t"]), node("Mul", ["a", "t"], ["b"], name="op")],
    ):
        network = load(layered(np.random.default_rng(0), middle, 4, 4))
        assert any(isinstance(network.op(v), Product) for v in network.order())


@pytest.mark.parametrize(
    ("name", "domain"),
    [("Log", "box:-9:9"), ("Sqrt", "box:-9:9"), ("Reciprocal", "box:-9:9"), ("Pow 0.5", "box:-9:9")],
)
def test_a_domain_with_a_pole_is_refused(name: str, domain: str) -> None:
    with pytest.raises(RefusedInput) as refused:
        lm.solve(load(CASES[name]), domain=domain)
    assert {reason.kind for reason in refused.value.reasons} == {"non-lipschitz"}


def test_unusual_powers(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(4)
    agrees(layered(rng, [node("Pow", ["a", "e"], ["b"], name="op")], 4, 4, e=np.array(1.0)), rng)
    agrees(layered(rng, [node("Pow", ["a", "e"], ["b"], name="op")], 4, 4, e=np.array([2], dtype=np.int64)), rng)
    for middle, weights in (
        ([node("Pow", ["a", "e"], ["b"], name="op")], {"e": np.array(0.0)}),
        ([node("Pow", ["c", "a"], ["b"], name="op")], {"c": np.array(2.0)}),
        ([node("Pow", ["a", "a"], ["b"], name="op")], {}),
        ([node("Tan", ["a"], ["b"], name="op")], {}),
    ):
        with pytest.raises(RefusedInput) as refused:
            load(saved(layered(rng, middle, 4, 4, **weights), tmp_path))
        assert "'op'" in refused.value.reasons[0].where


@pytest.mark.parametrize("op", ["Sign", "Floor", "Ceil", "Round", "ArgMax", "Hardmax"])
def test_what_jumps_is_refused_on_any_domain(op: str, tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(5)
    with pytest.raises(RefusedInput) as refused:
        lm.solve(saved(layered(rng, [node(op, ["a"], ["b"], name="op")], 4, 4), tmp_path), domain="box:-1:1")
    assert any(reason.kind == "non-lipschitz" and "'op'" in reason.where for reason in refused.value.reasons)


def test_comparisons_of_computed_tensors_are_refused(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(6)
    middle = [
        node("Less", ["a", "c"], ["l"], name="op"),
        node("Cast", ["l"], ["b"], to=TensorProto.DOUBLE),
    ]
    with pytest.raises(RefusedInput) as refused:
        load(saved(layered(rng, middle, 4, 4, c=np.array(0.5)), tmp_path))
    assert refused.value.reasons[0].kind == "non-lipschitz"


# --------------------------------------------------------------------------------------------------------- arithmetic


def test_products_of_intervals_are_the_smallest() -> None:
    rng = np.random.default_rng(7)
    lo, hi = np.sort(rng.standard_normal((2, 2, 200)).round(2), axis=0)
    found = times(between(lo[0], hi[0]), between(lo[1], hi[1]))
    low, high = found.limits()
    ends = np.array([a * b for a in (lo[0], hi[0]) for b in (lo[1], hi[1])])
    np.testing.assert_allclose(low, ends.min(axis=0), atol=1e-14)
    np.testing.assert_allclose(high, ends.max(axis=0), atol=1e-14)
    point = times(around(np.array([0.5])), around(np.array([-3.0])))
    assert (int(point.rad[0]), point.mid[0] / 2**point.exponent) == (0, -1.5)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("Sin", "Cos", "Exp")])
def test_witnesses_and_derivatives(name: str) -> None:
    rng = np.random.default_rng(8)
    network = load(CASES[name])
    x, v, u = 0.1 * rng.standard_normal(3), rng.standard_normal(3), rng.standard_normal(2)
    for h in (0.1, 1e-4):
        y = x + h * v
        rough = np.linalg.norm(network.evaluate(x) - network.evaluate(y)) / np.linalg.norm(x - y)
        assert witness_ratio(network, x, y, "2", "2") == pytest.approx(rough, rel=1e-13 / h + 1e-9)
    h = 1e-6
    rough_ = (network.evaluate(x + h * v) - network.evaluate(x - h * v)) / (2 * h)
    np.testing.assert_allclose(jacobian_vector_product(network, x, v), rough_, rtol=1e-4, atol=1e-6)
    assert vector_jacobian_product(network, x, u) @ v == pytest.approx(u @ rough_, rel=1e-4, abs=1e-6)
    program = float_program(network)
    _, found = local_norms(program, x[:, None], "2", "2")
    gradient = climb(program, flips(program, Point(x=x, value=float(found.value[0]), v=found.v[0], u=found.u[0])))
    for k in range(3):
        values = [
            float(local_norms(program, (x + sign * 1e-5 * np.eye(3)[k])[:, None], "2", "2")[1].value[0])
            for sign in (1.0, -1.0)
        ]
        assert gradient[k] == pytest.approx((values[0] - values[1]) / 2e-5, rel=2e-3, abs=2e-4)


def test_products_behind_weights_that_are_not_binary_floats() -> None:
    """Differences are then carried along by themselves."""
    rng = np.random.default_rng(9)
    middle = [
        node("BatchNormalization", ["a", "g", "g", "g", "v"], ["n"]),
        node("Relu", ["a"], ["r"]),
        node("Mul", ["n", "r"], ["b"], name="op"),
    ]
    network = load(layered(rng, middle, 4, 4, g=rng.random(4), v=rng.random(4) + 0.5))
    x = 0.1 * rng.standard_normal(3)
    y = x + 1e-6 * rng.standard_normal(3)
    rough = np.linalg.norm(network.evaluate(x) - network.evaluate(y)) / np.linalg.norm(x - y)
    assert witness_ratio(network, x, y, "2", "2") == pytest.approx(rough, rel=1e-6)
    result = lm.solve(network, "lipsdp-neuron", domain="box:-0.1:0.1", time_limit=5.0)
    assert result.lower_bound is not None
    assert result.lower_bound <= result.bound
    lm.verify(network, result)


def test_tampering_with_a_bound_on_a_box_is_refused() -> None:
    network = load(CASES["Mul"])
    result = lm.solve(network, "lipsdp-neuron", domain="box:-0.1:0.1", time_limit=5.0)
    data = result.to_json()["certificate"]
    lm.verify(network, data)
    data["claim"]["domain"] = lm.solve(network, "product", domain="box:-0.2:0.2").to_json()["certificate"]["claim"][
        "domain"
    ]
    with pytest.raises(lm.LipmodelError):
        lm.verify(network, data)


def test_a_product_is_written_and_read_again(tmp_path: pathlib.Path) -> None:
    from lipmodel.testing.networks import _Sketch

    sketch = _Sketch(0, 3)
    a, b = sketch.linear(sketch.x, 4), sketch.activate(sketch.linear(sketch.x, 4))
    network = sketch.finish(sketch.linear(sketch.add(Product(), [a, b]), 2))
    network.save(tmp_path / "net.onnx")
    x = np.random.default_rng(0).standard_normal(3)
    np.testing.assert_allclose(load(tmp_path / "net.onnx").evaluate(x), network.evaluate(x), rtol=1e-13)
    columns = np.stack([x, -x], axis=1)
    np.testing.assert_allclose(network.evaluate(columns)[:, 1], network.evaluate(-x), rtol=1e-13)
    with pytest.raises(ValueError, match="Product"):
        Product().output_size([3, 4])


# ---------------------------------------------------------------------------------------------------- the command line


def test_inspect_shows_it_and_solve_refuses_it_globally(tmp_path: pathlib.Path, capsys: Any) -> None:
    path = saved(CASES["Mul"], tmp_path)
    code, out, _ = run(capsys, "inspect", path)
    assert code == 0
    assert "product of its inputs" in out
    assert "--domain box" in out
    code, _, err = run(capsys, "solve", path)
    assert code == 3
    assert "non-lipschitz" in err
    assert "--domain box" in err
    code, out, _ = run(capsys, "solve", path, "--domain", "box:-0.1:0.1", "--time-limit", "5")
    assert code == 0
    assert "proved" in out


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
def test_the_local_networks_of_the_shared_collection(capsys: Any) -> None:
    with open(SHARED / "nets" / "index.csv", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["verdict"] == "accept-local"]
    assert rows
    for row in rows:
        path = SHARED / "nets" / next(iter(row.values()))
        code, _, _ = run(capsys, "inspect", path)
        assert code == 0
        network = load(path)
        with pytest.raises(RefusedInput) as refused:
            lm.solve(network)
        assert {reason.kind for reason in refused.value.reasons} == {"non-lipschitz"}
        if network.input_size > 200:
            continue
        result = lm.solve(network, "product", domain="box:0.49:0.51", time_limit=5.0)
        x = np.random.default_rng(0).uniform(0.49, 0.51, (network.input_size, 50))
        assert result.bound >= jacobian_norms(network, x, "2", "2").max() * (1 - 1e-9)
        assert lm.verify(network, result).bound == result.bound
