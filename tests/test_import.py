"""The import of ONNX operators, each against a run of the file with random attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import agrees, make, runtime, single

import lipmodel as lm
from lipmodel.errors import RefusedInput, UsageError
from lipmodel.network.conv import Conv, Pool
from lipmodel.network.graph import Network
from lipmodel.network.linear import Dense, Diagonal
from lipmodel.network.onnx_import import load, register_operator
from lipmodel.network.onnx_ops import OPERATORS
from lipmodel.network.ops import Concat, Constant, Elementwise, Linear

node = helper.make_node


def kinds(model: Any, **kwargs: Any) -> set[str]:
    with pytest.raises(RefusedInput) as error:
        load(model, **kwargs)
    return {reason.kind for reason in error.value.reasons}


def maps(network: Network) -> list[Any]:
    return [op.map for _, op, _ in network.plan() if isinstance(op, Linear)]


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def integers(rng: np.random.Generator, low: int, high: int, count: int) -> list[int]:
    return [int(v) for v in rng.integers(low, high, count)]


UNARY = [
    ("Relu", {}),
    ("LeakyRelu", {}),
    ("LeakyRelu", {"alpha": -2.0}),
    ("Elu", {"alpha": 0.7}),
    ("Selu", {}),
    ("Selu", {"alpha": 0.5, "gamma": 2.0}),
    ("Sigmoid", {}),
    ("Tanh", {}),
    ("Softplus", {}),
    ("Softsign", {}),
    ("HardSigmoid", {}),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.1}),
    ("HardSwish", {}),
    ("Gelu", {}),
    ("Gelu", {"approximate": "tanh"}),
    ("Mish", {}),
    ("Erf", {}),
    ("Abs", {}),
    ("Neg", {}),
    ("Identity", {}),
    ("Celu", {"alpha": 2.0}),
    ("Atan", {}),
    ("Asinh", {}),
    ("Sin", {}),
    ("Cos", {}),
    ("Shrink", {"lambd": 0.5, "bias": 0.5}),
    ("Dropout", {}),
    ("Flatten", {}),
]


@pytest.mark.parametrize(("op", "attributes"), UNARY, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("type", [TensorProto.DOUBLE, TensorProto.FLOAT])
def test_unary(op: str, attributes: dict[str, Any], type: int) -> None:
    model = single(op, shape=(2, 3), opset=20, type=type, **attributes)
    rounded = type == TensorProto.FLOAT or op in ("Erf", "Gelu", "HardSwish")  # onnx.reference rounds these
    agrees(model, rng_of(0), rtol=2e-5 if rounded else 1e-9)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 23])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_arithmetic_with_constants(op: str, opset: int) -> None:
    rng = rng_of(opset)
    for x_shape, c_shape in [((2, 3), (3,)), ((2, 3), ()), ((2, 1), (4, 1, 3)), ((3,), (2, 3)), ((1, 4), (1, 4))]:
        c = rng.standard_normal(c_shape)
        for inputs in (["x", "c"], ["c", "x"]):
            model = make([node(op, inputs, ["y"])], {"c": c}, shape=x_shape, opset=opset)
            network = agrees(model, rng)
            if op == "Div" and inputs[0] == "c":
                with pytest.raises(RefusedInput, match="pole"):
                    lm.increments(network)


@pytest.mark.parametrize("seed", range(60))
def test_gemm(seed: int) -> None:
    rng = rng_of(seed)
    m, k, n = integers(rng, 1, 4, 3)
    attributes: dict[str, Any] = {}
    if rng.random() < 0.5:
        attributes["alpha"] = float(rng.choice([0.0, 0.5, -1.0, 0.1]))
    if rng.random() < 0.5:
        attributes["beta"] = float(rng.choice([0.0, 2.0, 0.3]))
    a_transposed, b_transposed = (bool(v) for v in rng.integers(0, 2, 2))
    if a_transposed:
        attributes["transA"] = 1
    if b_transposed:
        attributes["transB"] = 1
    shapes = [(k, m) if a_transposed else (m, k), (n, k) if b_transposed else (k, n)]
    left = bool(rng.integers(0, 2))
    weights = {"w": rng.standard_normal(shapes[0 if left else 1])}
    inputs = ["w", "x"] if left else ["x", "w"]
    third = int(rng.integers(0, 3))
    if third:
        weights["c"] = rng.standard_normal([(m, n), (n,), (1, 1), (m, 1)][rng.integers(0, 4)])
        inputs.append("c")
    shape = shapes[1 if left else 0]
    agrees(make([node("Gemm", inputs, ["y"], **attributes)], weights, shape=shape, opset=13), rng)


def test_gemm_bias_may_be_computed() -> None:
    rng = rng_of(1)
    nodes = [node("Relu", ["x"], ["r"]), node("Gemm", ["x", "w", "r"], ["y"], alpha=0.3, beta=-0.7)]
    agrees(make(nodes, {"w": rng.standard_normal((4, 4))}, shape=(3, 4)), rng)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3,), (3, 4)),
        ((4, 3), (3,)),
        ((3,), (3,)),
        ((1, 3), (3, 4)),
        ((5, 3), (3, 4)),
        ((2, 5, 3), (3, 4)),
        ((2, 5, 3), (2, 3, 4)),
        ((5, 3), (2, 3, 4)),
        ((2, 1, 5, 3), (4, 3, 2)),
        ((1, 1, 3), (3, 2)),
        ((3,), (2, 3, 4)),
        ((2, 4, 3), (3,)),
    ],
)
@pytest.mark.parametrize("computed", [0, 1])
def test_matmul(left: tuple[int, ...], right: tuple[int, ...], computed: int) -> None:
    rng = rng_of(len(left) + 3 * len(right))
    x_shape, c_shape = (left, right) if computed == 0 else (right, left)
    inputs = ["x", "c"] if computed == 0 else ["c", "x"]
    agrees(make([node("MatMul", inputs, ["y"])], {"c": rng.standard_normal(c_shape)}, shape=x_shape), rng)


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
@pytest.mark.parametrize("shape", [(2, 3), (1, 3, 4), (2, 3, 2, 2)])
def test_batch_normalization(shape: tuple[int, ...], opset: int) -> None:
    rng = rng_of(opset)
    weights = {"s": rng.standard_normal(3), "b": rng.standard_normal(3), "m": rng.standard_normal(3)}
    weights["v"] = rng.uniform(0.01, 2.0, 3)
    model = single("BatchNormalization", weights, shape=shape, opset=opset, type=TensorProto.FLOAT, epsilon=1e-3)
    network = agrees(model, rng, run=runtime, rtol=2e-5)
    (map,) = maps(network)
    assert isinstance(map, Diagonal)
    s, v, eps = (np.asarray(a, dtype=np.float32).astype(float) for a in (weights["s"], weights["v"], 1e-3))
    exact = np.repeat(np.tile(s / np.sqrt(v + eps), shape[0]), int(np.prod(shape[2:])))
    assert map.radius is not None
    assert np.all(np.abs(map.values - exact) <= 4e-16 * np.abs(exact))
    assert np.all(map.radius <= 2.0**-52 * np.abs(exact))


@pytest.mark.parametrize("seed", range(120))
def test_conv(seed: int) -> None:
    rng = rng_of(seed)
    d = int(rng.integers(1, 4))
    groups = int(rng.integers(1, 4))
    channels, outputs = groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 3))
    kernel, spatial = integers(rng, 1, 4, d), integers(rng, 6, 9, d)
    attributes: dict[str, Any] = {"group": groups}
    if rng.random() < 0.6:
        attributes["strides"] = integers(rng, 1, 4, d)
    if rng.random() < 0.5:
        attributes["dilations"] = integers(rng, 1, 3, d)
    if rng.random() < 0.5:
        attributes["pads"] = integers(rng, 0, 3, 2 * d)
    elif rng.random() < 0.7:
        attributes["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"]))
    if rng.random() < 0.5:
        attributes["kernel_shape"] = kernel
    weights = {"w": rng.standard_normal((outputs, channels // groups, *kernel))}
    if rng.random() < 0.5:
        weights["b"] = rng.standard_normal(outputs)
    model = single("Conv", weights, shape=(int(rng.integers(1, 3)), channels, *spatial), **attributes)
    assert isinstance(maps(agrees(model, rng))[0], Conv)


@pytest.mark.parametrize("seed", range(80))
def test_average_pool(seed: int) -> None:
    rng = rng_of(seed)
    d, opset = int(rng.integers(1, 4)), int(rng.choice([7, 10, 13, 19, 22]))
    kernel = integers(rng, 2, 4, d)
    attributes: dict[str, Any] = {"kernel_shape": kernel}
    if rng.random() < 0.7:
        attributes["strides"] = [int(rng.integers(1, k + 1)) for k in kernel]
    if rng.random() < 0.5:
        attributes["pads"] = [int(rng.integers(0, k)) for k in (*kernel, *kernel)]
    elif rng.random() < 0.5:
        attributes["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    if rng.random() < 0.5:
        attributes["count_include_pad"] = int(rng.integers(0, 2))
    if opset >= 10 and rng.random() < 0.5:
        attributes["ceil_mode"] = int(rng.integers(0, 2))
    if opset >= 19 and "auto_pad" not in attributes and rng.random() < 0.5:
        attributes["dilations"] = integers(rng, 1, 3, d)
    shape = (int(rng.integers(1, 3)), 2, *integers(rng, 6, 9, d))
    model = single("AveragePool", shape=shape, opset=opset, type=TensorProto.FLOAT, **attributes)
    network = agrees(model, rng, run=runtime, rtol=2e-6)
    (map,) = maps(network)
    assert isinstance(map, Pool)


@pytest.mark.parametrize("spatial", [(5,), (4, 3), (2, 3, 2)])
def test_global_average_pool(spatial: tuple[int, ...]) -> None:
    agrees(single("GlobalAveragePool", shape=(2, 3, *spatial)), rng_of(0))


@pytest.mark.parametrize("seed", range(20))
def test_prelu(seed: int) -> None:
    rng = rng_of(seed)
    shape = (2, 3, 4)
    slope = rng.standard_normal([(), (4,), (3, 1), (1, 3, 4), (2, 3, 4)][seed % 5])
    if seed % 2:
        slope = np.sign(slope)
    network = agrees(single("PRelu", {"s": slope}, shape=shape, opset=16), rng)
    op = network.op(network.output)
    assert isinstance(op, Elementwise)
    assert len(op.parts) == len(np.unique(slope))


@pytest.mark.parametrize("bounds", [(-0.5, 1.0), (None, 0.25), (-0.75, None), (None, None)])
def test_clip(bounds: tuple[float | None, float | None]) -> None:
    low, high = bounds
    weights = {key: np.array(v) for key, v in (("lo", low), ("hi", high)) if v is not None}
    inputs = ["x", "lo" if low is not None else "", "hi" if high is not None else ""]
    agrees(make([node("Clip", inputs, ["y"])], weights, opset=13), rng_of(0))
    attributes = {key: v for key, v in (("min", low), ("max", high)) if v is not None}
    agrees(single("Clip", opset=9, type=TensorProto.FLOAT, **attributes), rng_of(0), rtol=1e-6)


@pytest.mark.parametrize("opset", [7, 11, 13, 21, 23])
def test_reshaping(opset: int) -> None:
    rng = rng_of(opset)
    shape = (2, 1, 3, 4)
    for target in ([6, 4], [-1], [0, 0, 12], [2, -1, 2], [24, 1], [0, -1]):
        agrees(single("Reshape", {"s": np.array(target)}, shape=shape, opset=opset), rng)
    for axis in range(-4 if opset >= 11 else 0, 5):
        agrees(single("Flatten", shape=shape, opset=opset, axis=axis), rng)
    for order in ([3, 1, 0, 2], [0, 1, 2, 3], [1, 0, 3, 2], None):
        attributes = {} if order is None else {"perm": order}
        agrees(single("Transpose", shape=shape, opset=opset, **attributes), rng)
    for axes in ([1], [1, 4], [0, 5], [-1] if opset >= 11 else [2]):
        for op in ("Unsqueeze", "Squeeze"):
            first = node(
                "Unsqueeze", ["x"] if opset < 13 else ["x", "a"], ["u"], **({"axes": axes} if opset < 13 else {})
            )
            last = node("Squeeze", ["u"] if opset < 13 else ["u", "a"], ["y"], **({"axes": axes} if opset < 13 else {}))
            nodes = [first, last] if op == "Squeeze" else [first, node("Identity", ["u"], ["y"])]
            agrees(make(nodes, {"a": np.array(axes)} if opset >= 13 else {}, shape=shape, opset=opset), rng)
    agrees(single("Squeeze", shape=(1, 3, 1), opset=opset), rng)


def test_gather() -> None:
    rng = rng_of(0)
    for axis, index in ((0, [1, 1, -1]), (1, [[2, 0], [0, 0]]), (-1, 3)):
        agrees(single("Gather", {"i": np.array(index)}, shape=(2, 3, 4), axis=axis), rng)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_residuals_and_branches(axis: int) -> None:
    rng = rng_of(axis + 5)
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="first"),
        node("Tanh", ["a"], ["t"]),
        node("Add", ["t", "x"], ["r"], name="residual"),
        node("Sub", ["x", "r"], ["d"]),
        node("Add", ["d", "d"], ["dd"]),
        node("Sum", ["dd", "t", "x"], ["s"]),
        node("Concat", ["s", "c", "x", "s"], ["y"], axis=axis),
    ]
    network = agrees(make(nodes, {"w": rng.standard_normal((4, 4)), "c": np.ones((2, 3, 4))}, shape=(2, 3, 4)), rng)
    assert {"first", "residual"} <= set(network.graph)
    assert any(isinstance(op, Concat) for _, op, _ in network.plan())


def test_branches_broadcast_against_each_other() -> None:
    nodes = [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("Sub", ["x", "t"], ["y"])]
    assert agrees(make(nodes, shape=(1, 3)), rng_of(0)).output_shape == (3, 3)


def test_a_subtraction_of_itself_is_zero() -> None:
    network = load(make([node("Sub", ["x", "x"], ["y"])]))
    np.testing.assert_array_equal(network.evaluate([1.0, 2.0, 3.0, 4.0]), np.zeros(4))


def test_constants_are_folded_exactly_or_enclosed() -> None:
    nodes = [
        node("Constant", [], ["c"], value_floats=[0.1, 0.2, 0.3, 1.0]),
        node("Add", ["c", "one"], ["d"]),
        node("Div", ["d", "three"], ["e"]),
        node("Mul", ["x", "e"], ["y"]),
    ]
    network = load(make(nodes, {"one": np.array(1.0), "three": np.array(3.0)}, type=TensorProto.FLOAT))
    (map,) = maps(network)
    from fractions import Fraction

    for k, c in enumerate(np.array([0.1, 0.2, 0.3, 1.0], dtype=np.float32).astype(float)):
        exact = (Fraction(float(c)) + 1) / 3
        radius = 0.0 if map.radius is None else map.radius[k]
        assert abs(exact - Fraction(float(map.values[k]))) <= Fraction(float(radius)) <= Fraction(1, 2**50)


def test_activations_of_constants_stay_in_the_graph() -> None:
    nodes = [node("Tanh", ["c"], ["t"]), node("Add", ["x", "t"], ["y"])]
    network = agrees(make(nodes, {"c": np.array([[1.0, -1.0, 0.5, 2.0]])}), rng_of(0))
    assert any(isinstance(op, Constant) for _, op, _ in network.plan())


def test_third_parties_can_register_operators() -> None:
    @register_operator("Twice", "org.example")
    def twice(call: Any) -> Any:
        x = call.computed(0)
        return call.linear(x, Diagonal(values=np.full(x.size, 2.0)), x.shape)

    try:
        model = make([node("Twice", ["x"], ["y"], domain="org.example")])
        np.testing.assert_array_equal(load(model, check=False).evaluate([1.0, 2.0, 3.0, 4.0]), [2.0, 4.0, 6.0, 8.0])
        assert kinds(model) == {"check"}
    finally:
        del OPERATORS["Twice", "org.example"]
    assert kinds(model) == {"operator"}


def test_a_false_handler_is_found_out() -> None:
    honest = OPERATORS["Relu", ""]
    try:
        register_operator("Relu")(lambda call: call.computed(0))
        assert kinds(single("Relu")) == {"check"}
        register_operator("Relu")(lambda call: honest(call) if call.real(0).size > 4 else call.computed(0))
        assert kinds(single("Relu", type=TensorProto.FLOAT)) == {"check"}
    finally:
        OPERATORS["Relu", ""] = honest
    assert load(single("Relu")).output_size == 4


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_a_small_mistake_is_found_out(scale: float) -> None:
    """One weight of a float32 network off by 2e-4 of the largest."""
    rng = rng_of(3)
    weights = {"v": scale * rng.standard_normal((4, 30)), "w": scale * rng.standard_normal((30, 5))}
    nodes = [node("MatMul", ["x", "v"], ["a"]), node("Relu", ["a"], ["r"]), node("MatMul", ["r", "w"], ["y"])]
    honest = OPERATORS["MatMul", ""]

    def wrong(call: Any) -> Any:
        result = honest(call)
        op = call.builder.graph.nodes[result.node]["op"]
        if isinstance(op.map, Dense) and op.map.shape == (5, 30):
            changed = op.map.weights.copy()
            changed[2, 7] += 2e-4 * np.abs(changed).max()
            call.builder.graph.nodes[result.node]["op"] = Linear(map=Dense(weights=changed))
        return result

    model = make(nodes, weights, type=TensorProto.FLOAT)
    load(model)
    try:
        OPERATORS["MatMul", ""] = wrong
        assert kinds(model) == {"check"}
    finally:
        OPERATORS["MatMul", ""] = honest


@pytest.mark.parametrize("opset", [7, 9, 14])
def test_without_onnxruntime(opset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipmodel.network.check.find_spec", lambda name: None)
    rng = rng_of(opset)
    weights = {key: rng.uniform(0.5, 2.0, 3) for key in ("s", "b", "m", "v")}
    model = single("BatchNormalization", weights, shape=(2, 3, 4), opset=opset, type=TensorProto.FLOAT)
    agrees(model, rng, run=runtime, rtol=1e-6)
    load(single("Conv", {"w": np.ones((2, 1, 3))}, shape=(1, 1, 9), opset=opset, type=TensorProto.FLOAT16))
    honest = OPERATORS["Relu", ""]
    try:
        register_operator("Relu")(lambda call: call.computed(0))
        assert kinds(single("Relu", opset=opset)) == {"check"}
    finally:
        OPERATORS["Relu", ""] = honest


def test_unknown_tensor_names_are_a_usage_error() -> None:
    with pytest.raises(UsageError):
        load(single("Relu"), graph_input="z")
    with pytest.raises(UsageError):
        load("there-is-no-such-file.onnx")
