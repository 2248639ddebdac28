"""The files that fuzzing starts from: small models of every kind, made here."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from onnx_models import make, single

node = helper.make_node


def _weights(*shape: int) -> Any:
    return np.random.default_rng(prod_key(shape)).standard_normal(shape)


def prod_key(shape: tuple[int, ...]) -> int:
    """A seed that is another one for another shape."""
    return int(sum(d * 31**k for k, d in enumerate(shape)))


def _perceptron(type: int) -> Any:
    nodes = [
        node("Flatten", ["x"], ["f"]),
        node("Gemm", ["f", "w", "b"], ["h"], transB=1),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "v"], ["m"]),
        node("Add", ["m", "c"], ["y"]),
    ]
    weights = {"w": _weights(5, 4), "b": _weights(5), "v": _weights(5, 3), "c": _weights(3)}
    return make(nodes, weights, shape=("batch", 2, 2), type=type)


def _residual() -> Any:
    nodes = [
        node("Conv", ["x", "k"], ["h"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["h", "s", "b", "m", "v"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("Add", ["r", "x"], ["a"]),
        node("GlobalAveragePool", ["a"], ["p"]),
        node("Flatten", ["p"], ["y"]),
    ]
    weights = {"k": _weights(2, 2, 3, 3), "s": _weights(2), "b": _weights(2), "m": _weights(2), "v": np.array([1.0, 2])}
    return make(nodes, weights, shape=(1, 2, 4, 4), type=TensorProto.FLOAT)


def _shape_arithmetic() -> Any:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axes"], ["u"]),
        node("Concat", ["u", "rest"], ["t"], axis=0),
        node("Reshape", ["x", "t"], ["y"]),
    ]
    return make(nodes, {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([2, -1])}, shape=(1, 6))


def _branches() -> Any:
    nodes = [
        node("Split", ["x"], ["a", "b"], axis=1),
        node("Sigmoid", ["a"], ["p"]),
        node("Tanh", ["b"], ["q"]),
        node("Concat", ["p", "q", "a"], ["c"], axis=1),
        node("Sub", ["c", "k"], ["y"]),
    ]
    return make(nodes, {"k": _weights(1, 6)}, opset=11)


def _constants() -> Any:
    tensor = helper.make_tensor("v", TensorProto.FLOAT, (4,), [0.5, -1.0, 2.0, 0.25])
    nodes = [
        node("Constant", [], ["c"], value=tensor),
        node("Constant", [], ["d"], value_float=2.0),
        node("Mul", ["c", "d"], ["e"]),
        node("Div", ["x", "e"], ["f"]),
        node("LeakyRelu", ["f"], ["g"], alpha=0.125),
        node("Clip", ["g", "d"], ["y"]),
    ]
    return make(nodes, type=TensorProto.FLOAT)


def _maxima() -> Any:
    nodes = [
        node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[1, 1]),
        node("Reshape", ["p", "s"], ["f"]),
        node("Max", ["f", "k"], ["m"]),
        node("Min", ["m", "f"], ["y"]),
    ]
    return make(nodes, {"s": np.array([1, -1]), "k": _weights(1, 4)}, shape=(1, 1, 3, 3), type=TensorProto.FLOAT)


def _sorted_pairs() -> Any:
    """GroupSort with groups of two, as exporters write it."""
    nodes = [
        node("Reshape", ["x", "pairs"], ["r"]),
        node("ReduceMax", ["r"], ["h"], axes=[2], keepdims=1),
        node("ReduceMin", ["r"], ["l"], axes=[2], keepdims=1),
        node("Concat", ["l", "h"], ["c"], axis=2),
        node("Flatten", ["c"], ["y"]),
    ]
    return make(nodes, {"pairs": np.array([1, -1, 2])}, shape=(1, 6), opset=13, type=TensorProto.FLOAT)


def _normalised_weights() -> Any:
    """Arithmetic on weights that an exporter did not fold."""
    nodes = [
        node("Mul", ["w", "w"], ["q"]),
        node("ReduceSum", ["q"], ["n"], keepdims=0),
        node("Sqrt", ["n"], ["s"]),
        node("Div", ["w", "s"], ["v"]),
        node("Transpose", ["v"], ["t"], perm=[1, 0]),
        node("Gemm", ["x", "t"], ["g"]),
        node("Range", ["zero", "three", "one"], ["i"]),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Add", ["g", "f"], ["y"]),
    ]
    weights = {"w": _weights(3, 4), "zero": np.array(0), "one": np.array(1), "three": np.array(3)}
    return make(nodes, weights, type=TensorProto.FLOAT)


def _control_flow() -> Any:
    branch = helper.make_graph(
        [node("Neg", ["x"], ["z"])], "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 4))]
    )
    nodes = [node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    return make(nodes, {"c": np.array(True)}, type=TensorProto.FLOAT)


def _function() -> Any:
    body = [node("Relu", ["a"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    return make([node("F", ["x"], ["y"], domain="local")], functions=[function])


def _sparse() -> Any:
    model = make([node("MatMul", ["x", "w"], ["y"])], shape=(1, 3), type=TensorProto.FLOAT)
    values = helper.make_tensor("w", TensorProto.FLOAT, (2,), [1.0, -2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, (2,), [0, 5])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 2]))
    return model


def _external() -> Any:
    model = make([node("MatMul", ["x", "w"], ["y"])], {"w": _weights(4, 3)}, type=TensorProto.FLOAT)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "48")):
        tensor.external_data.add(key=key, value=value)
    return model


@lru_cache(maxsize=1)
def models() -> dict[str, Any]:
    """The models by name."""
    pool = {"shape": (1, 2, 4, 4), "type": TensorProto.FLOAT}
    found = {
        "perceptron": _perceptron(TensorProto.FLOAT),
        "perceptron in double": _perceptron(TensorProto.DOUBLE),
        "residual": _residual(),
        "shape arithmetic": _shape_arithmetic(),
        "branches": _branches(),
        "constants": _constants(),
        "maxima": _maxima(),
        "transpose": single("Transpose", shape=(1, 2, 3), perm=[0, 2, 1]),
        "convolution": single(
            "Conv",
            {"w": _weights(2, 1, 3), "b": _weights(2)},
            shape=(1, 2, 9),
            type=TensorProto.FLOAT,
            group=2,
            strides=[2],
        ),
        "transposed convolution": single("ConvTranspose", {"w": _weights(2, 3, 2, 2)}, strides=[2, 2], **pool),
        "average": single("AveragePool", kernel_shape=[2, 2], pads=[1, 0, 0, 1], **pool),
        "pad": single("Pad", {"p": np.array([0, 0, 1, 0, 0, 0, 0, 2])}, **pool),
        "slice": single("Slice", {"a": np.array([3]), "b": np.array([0]), "c": np.array([1]), "d": np.array([-1])}),
        "gather": single("Gather", {"i": np.array([[0, 3], [1, -1]])}, axis=1),
        "reduce": single("ReduceMean", {"a": np.array([2, 3])}, opset=18, keepdims=0, **pool),
        "resize": single(
            "Resize", {"roi": np.zeros(0), "scales": np.array([1.0, 1, 2, 2])}, mode="nearest", opset=13, **pool
        ),
        "depth to space": single("DepthToSpace", shape=(1, 4, 2, 2), blocksize=2, type=TensorProto.FLOAT),
        "expand": single("Expand", {"s": np.array([3, 1])}),
        "where": make(
            [node("Where", ["c", "x", "k"], ["y"])], {"c": np.array([[True, False, True, True]]), "k": _weights(1, 4)}
        ),
        "softplus": single("Softplus", type=TensorProto.FLOAT),
        "gelu": single("Gelu", opset=20, type=TensorProto.FLOAT),
        "old style": single("Dropout", opset=8, type=TensorProto.FLOAT, ratio=0.25),
        "half": single("Relu", type=TensorProto.FLOAT16),
        "sorted pairs": _sorted_pairs(),
        "normalised weights": _normalised_weights(),
        "control flow": _control_flow(),
        "function": _function(),
        "sparse": _sparse(),
        "external": _external(),
        "softmax": single("Softmax", type=TensorProto.FLOAT, axis=1),
        "largest": make([node("TopK", ["x", "k"], ["y", "i"], axis=1)], {"k": np.array([2])}, type=TensorProto.FLOAT),
        "local response": single("LRN", size=3, **pool),
        "matrix product of computed tensors": make([node("MatMul", ["x", "x"], ["y"])], shape=(2, 2)),
        "power": single("Pow", {"e": np.array(2.0)}, type=TensorProto.FLOAT),
        "identity": make([], outputs=("x",)),
        "two inputs": make([node("Add", ["x", "u"], ["y"])], inputs={"x": (1, 3), "u": (1, 3)}),
    }
    return found


@lru_cache(maxsize=1)
def files() -> dict[str, bytes]:
    """The models as the bytes of files."""
    return {name: model.SerializeToString() for name, model in models().items()}
