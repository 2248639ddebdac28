"""What the import must refuse, with every reason; and unusual files that it must read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from onnx_models import agrees, make, single

import lipmodel as lm
from lipmodel.errors import RefusedInput, UsageError
from lipmodel.network import onnx_file
from lipmodel.network.onnx_import import load

node = helper.make_node


def reasons(model: Any, **kwargs: Any) -> dict[str, str]:
    """kind -> place and message."""
    with pytest.raises(RefusedInput) as error:
        load(model, **kwargs)
    assert error.value.exit_code == 3
    return {reason.kind: f"{reason.where}: {reason.message}" for reason in error.value.reasons}


def gemm(weights: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    return single("Gemm", weights or {"w": np.ones((4, 3))}, **kwargs)


REFUSED: dict[str, tuple[str, Any]] = {
    "unsupported operator": ("operator", lambda: single("LpNormalization")),
    "foreign domain": ("operator", lambda: make([node("Relu", ["x"], ["y"], domain="evil.corp")])),
    "operator of a later set": ("operator", lambda: single("Mish", opset=17)),
    "too old": ("opset", lambda: single("Relu", opset=6)),
    "too new": ("opset", lambda: single("Relu", opset=24)),
    "discontinuous": ("non-lipschitz", lambda: single("Floor")),
    "integer output": ("non-lipschitz", lambda: single("ArgMax")),
    "random": ("stochastic", lambda: make([node("RandomNormalLike", ["x"], ["y"])])),
    "rank-3 Gemm": ("shape", lambda: gemm(shape=(1, 1, 4))),
    "inner dimensions": ("shape", lambda: gemm({"w": np.ones((5, 3))})),
    "C that does not fit": ("shape", lambda: gemm({"w": np.ones((4, 3)), "c": np.ones((2, 3))})),
    "no broadcast": ("shape", lambda: single("Add", {"c": np.ones(3)})),
    "empty dimension": ("shape", lambda: single("Relu", shape=(1, 0))),
    "negative dimension": ("shape", lambda: single("Relu", shape=(1, -3))),
    "two symbolic dimensions": ("shape", lambda: single("Relu", shape=("N", "M"))),
    "no shape": ("shape", lambda: single("Relu", shape=None)),
    "huge input": ("size-limit", lambda: single("Relu", shape=(10**6, 10**6))),
    "huge broadcast": ("size-limit", lambda: single("Add", {"c": np.ones((10**5, 1))}, shape=(1, 10**5))),
    "unknown attribute": ("attribute", lambda: single("Relu", zzz=1)),
    "attribute of another type": ("attribute", lambda: single("LeakyRelu", alpha="0.1")),
    "missing attribute": ("attribute", lambda: single("Concat")),
    "unknown axis": ("attribute", lambda: single("Concat", axis=9)),
    "index out of range": ("attribute", lambda: single("Gather", {"i": np.array([4])}, axis=1)),
    "not a permutation": ("attribute", lambda: single("Transpose", perm=[0, 0])),
    "crossed limits": ("attribute", lambda: single("Clip", {"lo": np.array(2.0), "hi": np.array(-2.0)})),
    "no padding below zero": (
        "attribute",
        lambda: single("Conv", {"w": np.ones((1, 1, 3))}, shape=(1, 1, 9), pads=[-1, 0]),
    ),
    "groups": ("attribute", lambda: single("Conv", {"w": np.ones((2, 1, 3))}, shape=(1, 1, 9), group=7)),
    "dilation 0": ("attribute", lambda: single("Conv", {"w": np.ones((1, 1, 3))}, shape=(1, 1, 9), dilations=[0])),
    "kernel shape": ("attribute", lambda: single("Conv", {"w": np.ones((1, 1, 3))}, shape=(1, 1, 9), kernel_shape=[7])),
    "window too large": ("attribute", lambda: single("Conv", {"w": np.ones((1, 1, 3))}, shape=(1, 1, 2))),
    "two unknown dimensions": ("shape", lambda: single("Reshape", {"s": np.array([-1, -1])})),
    "reshape that does not fit": ("shape", lambda: single("Reshape", {"s": np.array([3, -1])})),
    "squeeze of a length": ("shape", lambda: single("Squeeze", {"a": np.array([1])})),
    "weight NaN": ("non-finite", lambda: gemm({"w": np.full((4, 3), np.nan)})),
    "weight infinite": ("non-finite", lambda: gemm({"w": np.full((4, 3), np.inf)})),
    "division by zero": ("non-finite", lambda: single("Div", {"c": np.array([1.0, 0.0, 1.0, 1.0])})),
    "overflow of constants": (
        "non-finite",
        lambda: make([node("Mul", ["c", "c"], ["d"]), node("Add", ["x", "d"], ["y"])], {"c": np.array(1e200)}),
    ),
    "negative variance": (
        "non-finite",
        lambda: single(
            "BatchNormalization",
            {"s": np.ones(4), "b": np.ones(4), "m": np.ones(4), "v": np.array([1.0, 1.0, -1.0, 1.0])},
        ),
    ),
    "variance plus epsilon zero": (
        "non-finite",
        lambda: single(
            "BatchNormalization", {"s": np.ones(4), "b": np.ones(4), "m": np.ones(4), "v": np.zeros(4)}, epsilon=0.0
        ),
    ),
    "training": (
        "stochastic",
        lambda: single("BatchNormalization", {k: np.ones(4) for k in ("s", "b", "m", "v")}, training_mode=1),
    ),
    "dropout in training": (
        "stochastic",
        lambda: single("Dropout", {"ratio": np.array(0.5), "training": np.array(True)}),
    ),
    "rounding of data": ("dtype", lambda: single("Cast", to=TensorProto.FLOAT)),
    "cast to integer": ("non-lipschitz", lambda: single("Cast", to=TensorProto.INT64)),
    "undefined input": ("graph", lambda: make([node("Add", ["x", "ghost"], ["y"])])),
    "defined twice": ("graph", lambda: make([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])])),
    "cycle": (
        "graph",
        lambda: make([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]),
    ),
    "too many inputs": ("graph", lambda: make([node("Relu", ["x", "x"], ["y"])])),
    "nameless part": ("graph", lambda: make([node("Split", ["x"], ["y", ""], axis=1)])),
    "undefined output": ("graph", lambda: make([node("Relu", ["x"], ["z"])])),
    "two inputs": ("inputs", lambda: make([node("Add", ["x", "u"], ["y"])], inputs={"x": (1, 3), "u": (1, 3)})),
    "two outputs": (
        "outputs",
        lambda: make([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["z"])], outputs=("y", "z")),
    ),
    "function": (
        "function",
        lambda: make(
            [node("F", ["x"], ["y"], domain="local")],
            functions=[
                helper.make_function(
                    "local", "F", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
                )
            ],
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    kind, build = REFUSED[case]
    assert kind in reasons(build())


def test_all_reasons_are_given_at_once() -> None:
    nodes = [
        node("Hardmax", ["x"], ["a"], name="first"),
        node("Relu", ["a"], ["b"], name="harmless"),
        node("LpNormalization", ["b"], ["c"], name="second"),
        node("Gemm", ["x", "w"], ["d"], name="third"),
        node("ArgMax", ["d"], ["e"], name="fourth"),
        node("Sum", ["c", "e"], ["y"], name="last"),
    ]
    with pytest.raises(RefusedInput) as error:
        load(make(nodes, {"w": np.ones((3, 3))}))
    places = [reason.where for reason in error.value.reasons]
    assert [p.split("'")[1] for p in places] == ["first", "second", "third", "fourth"]
    assert all(p in str(error.value) for p in places)


def test_reasons_of_old_files_name_the_operators_too() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("LpNormalization", ["a"], ["y"])]
    assert set(reasons(make(nodes, opset=3))) == {"opset", "operator"}


def test_operator_set_6_is_read_for_further_reasons() -> None:
    """It differs from 7 in broadcasting along an axis, which is left alone."""
    nodes = [
        node("Sub", ["x", "c"], ["a"], broadcast=1),
        node("Gemm", ["a", "w", "w"], ["y"], broadcast=1, name="second"),
        node("Add", ["a", "c"], ["z"], broadcast=1, axis=0),
    ]
    model = make(nodes, {"c": np.ones(4), "w": np.ones((4, 3))}, shape=(1, 1, 4), opset=6, outputs=("y", "z"))
    found = reasons(model, graph_output="all")
    assert set(found) == {"opset", "shape"}
    assert "second" in found["shape"]


def test_no_nodes_at_all() -> None:
    graph = make([], outputs=("x",))
    network = agrees(graph, np.random.default_rng(0))
    assert network.input == network.output


def test_an_attribute_has_one_value() -> None:
    model = single("LeakyRelu", alpha=0.5)
    model.graph.node[0].attribute[0].i = 3
    assert "several types" in reasons(model)["attribute"]
    model.graph.node[0].attribute[0].ClearField("f")
    assert "no value" in reasons(model)["attribute"]


def test_names_cannot_pretend_to_be_reasons() -> None:
    model = make([node("Nothing\n  - [graph] none", ["x"], ["y"], name="\x1b[2J")])
    with pytest.raises(RefusedInput) as error:
        load(model)
    assert len(str(error.value).splitlines()) == 2
    assert "\x1b" not in str(error.value)


def test_the_output_may_not_depend_on_the_input() -> None:
    network = load(make([node("Add", ["c", "c"], ["y"])], {"c": np.arange(3.0)}))
    np.testing.assert_array_equal(network.evaluate(np.ones(4)), [0.0, 2.0, 4.0])


def test_choice_of_inputs_and_outputs() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Add", ["a", "u"], ["s"]),
        node("Relu", ["s"], ["y"]),
        node("Neg", ["u"], ["z"]),
        node("LpNormalization", ["u"], ["never"]),
    ]
    weights = {"w": np.arange(6.0).reshape(2, 3) - 2.5}
    model = make(nodes, weights, inputs={"x": (1, 2), "u": (1, 3)}, outputs=("y", "z"))
    assert set(reasons(model)) == {"inputs", "outputs"}
    x, u, w = np.array([1.0, -2.0]), np.array([0.5, 3.0, -4.0]), weights["w"]

    def y(x: Any, u: Any) -> Any:
        return np.maximum(x @ w + u, 0.0)

    np.testing.assert_allclose(load(model, graph_input="x", graph_output="y").evaluate(x), y(x, 0.0))
    np.testing.assert_allclose(load(model, graph_input="u", graph_output=["z"]).evaluate(u), -u)
    both = load(model, graph_input="all", graph_output="all")
    assert (both.input_shape, both.output_shape) == ((5,), (6,))
    np.testing.assert_allclose(both.evaluate(np.r_[x, u]), np.r_[y(x, u), -u])
    turned = load(model, graph_input=["u", "x"], graph_output=["z", "y"])
    np.testing.assert_allclose(turned.evaluate(np.r_[u, x]), np.r_[-u, y(x, u)])
    for wrong in ("w", ["x", "x"], [], ["x", "nothing"]):
        with pytest.raises(UsageError):
            load(model, graph_input=wrong, graph_output="y")


def product_with_a_held_input() -> Any:
    return load(make([node("Mul", ["x", "u"], ["y"])], inputs={"x": (1, 3), "u": (1, 3)}), graph_input="x")


@pytest.mark.parametrize(
    "build",
    [
        lambda: load(make([node("Mul", ["x", "x"], ["y"])])),
        lambda: load(make([node("MatMul", ["x", "x"], ["y"])], shape=(3, 3))),
        lambda: load(make([node("Div", ["c", "x"], ["y"])], {"c": np.ones(4)})),
        product_with_a_held_input,  # held at an arbitrary constant, which is not a factor that could be read off
    ],
    ids=["product", "matrix product", "division", "held"],
)
def test_products_of_data_have_no_global_constant(build: Any) -> None:
    network = build()
    with pytest.raises(RefusedInput) as error:
        lm.solve(network)
    assert {reason.kind for reason in error.value.reasons} == {"non-lipschitz"}


def test_a_held_integer_cannot_be_a_shape() -> None:
    model = make([node("Reshape", ["x", "s"], ["y"])], inputs={"x": (1, 6)})
    model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.INT64, (2,)))
    assert set(reasons(model)) == {"inputs"}
    assert set(reasons(model, graph_input="x")) == {"inputs"}


def test_symbolic_batch_and_old_style_weights_and_disorder() -> None:
    nodes = [node("Relu", ["a"], ["y"]), node("Gemm", ["x", "w"], ["a"])]
    model = make(nodes, {"w": np.ones((4, 3))}, inputs={"x": ("batch", 4), "w": (4, 3)}, type=TensorProto.FLOAT)
    network = load(model)
    assert (network.input_shape, network.output_shape) == ((1, 4), (1, 3))
    assert network.source.graph_inputs[0].shape == ("batch", 4)
    assert network.source.parameters == 12


@pytest.mark.parametrize("type", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE])
@pytest.mark.parametrize("raw", [True, False])
def test_weights_are_taken_exactly(type: int, raw: bool) -> None:
    given = np.array([[0.1, -1.7, 3e-5], [1e-3, 2.0, -0.3], [1.0, 1 / 3, 5.0], [0.7, 0.0, -0.0]])
    if type == TensorProto.BFLOAT16:
        bits = (given.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        exact = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    else:
        dtype = {TensorProto.FLOAT16: np.float16, TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64}[type]
        exact = given.astype(dtype).astype(np.float64)
        bits = given.astype(dtype).view(np.uint16) if type == TensorProto.FLOAT16 else given.astype(dtype)
    if raw:
        tensor = helper.make_tensor("w", type, (4, 3), bits.tobytes(), raw=True)
    else:
        tensor = onnx.TensorProto(name="w", data_type=type, dims=(4, 3))
        field = {TensorProto.FLOAT: "float_data", TensorProto.DOUBLE: "double_data"}.get(type, "int32_data")
        getattr(tensor, field).extend(bits.ravel().tolist())
    info = [helper.make_tensor_value_info(n, type, s) for n, s in (("x", (1, 4)), ("y", (1, 3)))]
    graph = helper.make_graph([node("MatMul", ["x", "w"], ["y"])], "g", info[:1], info[1:], [tensor])
    network = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    for k in range(4):
        np.testing.assert_array_equal(network.evaluate(np.eye(4)[k]), exact[k])


def test_mixed_precisions_are_promoted() -> None:
    model = gemm({"w": np.full((4, 3), 0.1)}, type=TensorProto.FLOAT)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    np.testing.assert_array_equal(load(model).evaluate([1.0, 0, 0, 0]), [float(np.float32(0.1))] * 3)


def stored(**fields: Any) -> Any:
    """A Gemm whose weight is a tensor with these fields."""
    model = gemm(type=TensorProto.FLOAT)
    tensor = model.graph.initializer[0]
    tensor.Clear()
    tensor.name = "w"
    for key, value in ({"data_type": TensorProto.FLOAT, "dims": (4, 3)} | fields).items():
        if isinstance(value, (list, tuple)):
            getattr(tensor, key).extend(value)
        else:
            setattr(tensor, key, value)
    return model


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"raw_data": bytes(52)}, "tensor-encoding"),
        ({"raw_data": bytes(44)}, "tensor-encoding"),
        ({}, "tensor-encoding"),
        ({"float_data": [1.0] * 11}, "tensor-encoding"),
        ({"float_data": [1.0] * 12, "raw_data": bytes(48)}, "tensor-encoding"),
        ({"double_data": [1.0] * 12}, "tensor-encoding"),
        ({"dims": (-4, -3), "raw_data": bytes(48)}, "tensor-encoding"),
        ({"dims": (10**6, 10**7)}, "size-limit"),
        ({"data_type": 99, "raw_data": bytes(48)}, "dtype"),
        ({"data_type": TensorProto.COMPLEX64, "raw_data": bytes(96)}, "dtype"),
        ({"data_type": TensorProto.FLOAT16, "int32_data": [70000] * 12}, "tensor-encoding"),
        ({"data_type": TensorProto.INT64, "raw_data": bytes(96)}, "dtype"),
    ],
)
def test_badly_stored_weights(fields: dict[str, Any], kind: str) -> None:
    assert set(reasons(stored(**fields))) == {kind}


def test_unused_malformed_weights_do_not_matter() -> None:
    model = single("Relu")
    model.graph.initializer.append(onnx.TensorProto(name="unused", data_type=99, dims=(4,)))
    assert load(model).output_size == 4


@pytest.mark.parametrize("declared", [TensorProto.INT8, TensorProto.STRING])
def test_an_output_that_is_declared_as_something_else(declared: int) -> None:
    model = single("Relu")
    model.graph.output[0].type.tensor_type.elem_type = declared
    assert set(reasons(model)) == {"outputs"}
    model.graph.output[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    assert set(reasons(model)) == {"outputs"}


def test_an_input_that_is_listed_twice() -> None:
    """With two types, which must not meet in a handler."""
    model = single("Expand", {"s": np.array([3, 1])})
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.INT32, (1, 4)))
    assert "graph" in reasons(model)


def test_bytes_that_are_no_model(tmp_path: Path) -> None:
    whole = gemm().SerializeToString()
    for content in (b"", b"hello world", whole[:-7], whole + b"\0", whole + b"\xa2\x06\x01a"):
        assert set(reasons(content)) == {"file-format"}
        path = tmp_path / "net.onnx"
        path.write_bytes(content)
        assert set(reasons(path)) == {"file-format"}
    with pytest.raises(UsageError):
        load(tmp_path)


def external(folder: Path, **entries: str) -> Path:
    """net.onnx in `folder`, whose weight is said to lie where the entries say."""
    model = gemm(type=TensorProto.FLOAT)
    tensor = model.graph.initializer[0]
    array = numpy_helper.to_array(tensor)
    (folder / "weights.bin").write_bytes(bytes(8) + array.tobytes())
    external_data_helper.set_external_data(tensor, location="weights.bin", offset=8, length=48)
    for entry in list(tensor.external_data):
        if entry.key in entries:
            entry.value = entries[entry.key]
    for key in set(entries) - {"location", "offset", "length"}:
        tensor.external_data.add(key=key, value=entries[key])
    tensor.ClearField("raw_data")
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_is_read_and_bound_by_the_hash(tmp_path: Path) -> None:
    path = external(tmp_path)
    first = load(path)
    np.testing.assert_array_equal(first.evaluate(np.ones(4)), [4.0, 4.0, 4.0])
    assert first.source.sha256 == load(path).source.sha256
    (tmp_path / "weights.bin").write_bytes(bytes(8) + np.full(12, 2.0, dtype=np.float32).tobytes())
    second = load(path)
    np.testing.assert_array_equal(second.evaluate(np.ones(4)), [8.0, 8.0, 8.0])
    assert first.source.sha256 != second.source.sha256
    assert set(reasons(path.read_bytes())) == {"external-data"}


def test_external_data_is_counted_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path)
    monkeypatch.setattr(onnx_file, "MAX_UNPACKED", 11)
    monkeypatch.setattr(onnx_file, "_external", None)
    assert set(reasons(path)) == {"size-limit"}


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../weights.bin"},
        {"location": "sub/../weights.bin"},
        {"location": "..\\weights.bin"},
        {"location": "/etc/hostname"},
        {"location": ""},
        {"location": "net.onnx"},
        {"location": "sub"},
        {"location": "missing.bin"},
        {"location": "link.bin"},
        {"location": "hard.bin"},
        {"location": "sublink/other.bin"},
        {"offset": "-8"},
        {"offset": "9999999"},
        {"offset": "8.0"},
        {"length": "44"},
        {"length": "1000000000000"},
        {"__class__": "x"},
        {"checksum": "00"},
    ],
    ids=str,
)
def test_hostile_external_data(tmp_path: Path, entries: dict[str, str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(56))
    (folder / "sub").mkdir()
    (folder / "sub" / "other.bin").write_bytes(bytes(56))
    os.symlink(folder / "sub", folder / "sublink")
    path = external(folder, **entries)
    os.symlink("weights.bin", folder / "link.bin")
    (folder / "hard.bin").hardlink_to(folder / "sub" / "other.bin")
    assert set(reasons(path)) == {"external-data"}


@pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="folders cannot be opened here")
@pytest.mark.parametrize("where", ["weights.bin", "sub/weights.bin"])
def test_a_link_that_appears_after_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    path = external(folder, location=where)
    (folder / "sub" / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
    np.testing.assert_array_equal(load(path).evaluate(np.ones(4)), [4.0, 4.0, 4.0])
    looked = onnx_file._beside

    def swapped(model: Path, location: str) -> tuple[str, ...]:
        parts = looked(model, location)
        first = folder / parts[0]
        first.rename(tmp_path / "elsewhere")
        first.symlink_to(tmp_path / "elsewhere")
        return parts

    monkeypatch.setattr(onnx_file, "_beside", swapped)
    assert set(reasons(path)) == {"external-data"}
