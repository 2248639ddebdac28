"""Small ONNX models for the tests of the import, and runs of them that do not use lipmodel."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lipmodel.network.graph import Network
from lipmodel.network.onnx_import import load


def make(
    nodes: list[Any],
    weights: dict[str, Any] | None = None,
    *,
    shape: Any = (1, 4),
    opset: int = 17,
    type: int = TensorProto.DOUBLE,
    inputs: dict[str, Any] | None = None,
    outputs: tuple[str, ...] = ("y",),
    **fields: Any,
) -> Any:
    """A model from x (or `inputs`: name -> shape) to y; floating weights get the type of the model."""
    tensors = []
    dtype = {TensorProto.DOUBLE: np.float64, TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}[type]
    for name, value in (weights or {}).items():
        array = np.asarray(value)
        tensors.append(numpy_helper.from_array(array.astype(dtype) if array.dtype.kind == "f" else array, name))
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, type, s) for n, s in (inputs or {"x": shape}).items()],
        [helper.make_tensor_value_info(name, type, None) for name in outputs],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **fields)


def single(op_type: str, weights: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """A model of one node: x, then the weights, in this order."""
    known = {key: kwargs.pop(key) for key in ("shape", "opset", "type") if key in kwargs}
    node = helper.make_node(op_type, ["x", *(weights or {})], ["y"], name="op", **kwargs)
    return make([node], weights, **known)


def reference(model: Any, x: Any) -> Any:
    """What onnx.reference computes at x."""
    return ReferenceEvaluator(model).run(None, {model.graph.input[0].name: np.asarray(x)})[0]


def runtime(model: Any, x: Any) -> Any:
    """What onnxruntime computes at x."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {model.graph.input[0].name: x})[0]


def agrees(model: Any, rng: np.random.Generator, *, run: Any = reference, rtol: float = 1e-9) -> Network:
    """Load a model, compare with a run at random inputs of several sizes, and return the network."""
    network = load(model)
    info = model.graph.input[0].type.tensor_type
    shape = tuple(d.dim_value or 1 for d in info.shape.dim)
    for scale in (1.0, 30.0, 0.01):
        x = (scale * rng.standard_normal(shape)).astype(np.float32)
        expected = run(model, x.astype(np.float64 if info.elem_type == TensorProto.DOUBLE else np.float32))
        assert network.output_shape == np.shape(expected)
        size = 1.0 + float(np.abs(expected).max(initial=0.0))
        np.testing.assert_allclose(network.evaluate(x), np.ravel(expected), rtol=rtol, atol=rtol * size)
    return network


def sorted_pairs(size: int, *, swapped: bool = False, copies: bool = False) -> Any:
    """MaxMin on pairs of neighbours."""
    weights = {"even": np.arange(0, size, 2), "odd": np.arange(1, size, 2)}
    again = ["even2", "odd2"] if copies else ["u", "v"]
    nodes = [
        helper.make_node("Gather", ["x", "even"], ["u"], axis=1),
        helper.make_node("Gather", ["x", "odd"], ["v"], axis=1),
    ]
    if copies:
        nodes += [
            helper.make_node("Gather", ["x", "even"], ["even2"], axis=1),
            helper.make_node("Gather", ["x", "odd"], ["odd2"], axis=1),
        ]
    nodes += [
        helper.make_node("Max", ["u", "v"], ["a"]),
        helper.make_node("Min", again[::-1] if swapped else again, ["b"]),
        helper.make_node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    return make(nodes, weights, shape=(1, size))
