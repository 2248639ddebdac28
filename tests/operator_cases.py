"""Small graphs with the operators that the checker reads by itself, in their variants, for its tests."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

IMAGES = (1, 2, 6, 5)
RNG = np.random.default_rng(17)
KERNEL = np.round(RNG.standard_normal((4, 2, 3, 2)), 3)
DENSE = np.round(RNG.standard_normal((4, 3)), 2)
COLUMN = np.array([[0.3], [-1.7], [5.0]])


def vector(*numbers):
    return np.array(numbers)


def node(op, inputs, outputs=("y",), **attributes):
    return helper.make_node(op, list(inputs), list(outputs), name=f"{op}_{outputs[0]}", **attributes)


def alone(op, weights=None, shape=(2, 4), **attributes):
    """One operator of x and weights."""
    weights = weights or {}
    return [node(op, ["x", *weights], **attributes)], weights, shape


PADDED = {"pads": [1, 0, 2, 1], "strides": [2, 1]}
GEOMETRIES = {
    "plain": {},
    "pads": PADDED,
    "upper": {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
    "lower": {"auto_pad": "SAME_LOWER", "strides": [1, 2]},
    "valid": {"auto_pad": "VALID", "strides": [2, 2]},
}
POOLS = {
    **GEOMETRIES,
    "included": {**PADDED, "count_include_pad": 1},
    "ceil": {**PADDED, "ceil_mode": 1, "strides": [3, 2]},
    "ceil-included": {"ceil_mode": 1, "count_include_pad": 1, "pads": [1, 1, 0, 1], "strides": [2, 3]},
    "ceil-lower": {"auto_pad": "SAME_LOWER", "ceil_mode": 1, "strides": [2, 2]},
    "dilated": {"dilations": [2, 1], "pads": [1, 1, 1, 1]},
    "dilated-ceil": {
        "dilations": [2, 2],
        "ceil_mode": 1,
        "count_include_pad": 1,
        "pads": [1, 0, 1, 1],
        "strides": [2, 2],
    },
}
SCALARS = {
    "Relu": {},
    "LeakyRelu": {"alpha": -0.3},
    "Elu": {"alpha": 1.7},
    "Selu": {},
    "Celu": {"alpha": 0.6},
    "ThresholdedRelu": {"alpha": 0.0},
    "Sigmoid": {},
    "Tanh": {},
    "Softplus": {},
    "Softsign": {},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.1},
    "HardSwish": {},
    "Gelu": {},
    "Mish": {},
    "Erf": {},
    "Abs": {},
    "Atan": {},
    "Asinh": {},
    "Sin": {},
    "Cos": {},
    "Shrink": {"bias": 0.75, "lambd": 0.75},
}
NORMAL = {"s": [1.5, -0.7], "b": [0.1, 2.0], "m": [0.3, -1.0], "v": [0.3, 4.0]}

CASES = {
    **{op: alone(op, **attributes) for op, attributes in SCALARS.items()},
    "Gelu-tanh": alone("Gelu", approximate="tanh"),
    "Elu-negative": alone("Elu", alpha=-0.5),
    "Elu-shallow": alone("Elu", alpha=0.1),
    "Selu-flat": alone("Selu", gamma=0.0),
    "Selu-mirrored": alone("Selu", gamma=-1.5, alpha=0.7),
    "LeakyRelu-linear": alone("LeakyRelu", alpha=1.0),
    "HardSigmoid-flat": alone("HardSigmoid", alpha=0.0),
    "HardSigmoid-falling": alone("HardSigmoid", alpha=-0.25),
    "Shrink-nothing": alone("Shrink", bias=0.0, lambd=-1.0),
    "PRelu": alone("PRelu", {"slope": [0.25, 1.0, -0.5, 2.0]}),
    "PRelu-channels": alone("PRelu", {"slope": np.array([[[0.1]], [[1.0]]])}, IMAGES),
    "Clip-inputs": alone("Clip", {"min": np.array(-1.0), "max": np.array(0.3)}),
    "Clip-attributes": alone("Clip", min=-0.1, max=6.0),
    "Clip-defaults": alone("Clip"),
    "Clip-above": ([node("Clip", ["x", "", "m"])], {"m": np.array(0.5)}, (2, 4)),
    "Clip-point": alone("Clip", {"min": np.array(0.5), "max": np.array(0.5)}),
    **{f"Conv-{k}": alone("Conv", {"w": KERNEL}, IMAGES, **v) for k, v in GEOMETRIES.items()},
    "Conv-groups": alone(
        "Conv", {"w": KERNEL[:, :1], "b": vector(0.1, 0.2, -3.0, 4.0)}, IMAGES, group=2, dilations=[1, 2]
    ),
    "Conv-one-axis": alone("Conv", {"w": KERNEL[:, :, 0]}, (1, 2, 7), pads=[1, 0]),
    "Conv-three-axes": alone("Conv", {"w": KERNEL[:, :, None]}, (1, 2, 2, 4, 3)),
    "Conv-batch": alone("Conv", {"w": KERNEL}, (3, 2, 4, 4), strides=[1, 2]),
    **{f"AveragePool-{k}": alone("AveragePool", None, IMAGES, kernel_shape=[3, 2], **v) for k, v in POOLS.items()},
    "AveragePool-one-axis": alone("AveragePool", None, (2, 3, 9), kernel_shape=[4], strides=[3], pads=[2, 1]),
    "AveragePool-three-axes": alone("AveragePool", None, (1, 1, 3, 4, 5), kernel_shape=[2, 3, 2], count_include_pad=1),
    "GlobalAveragePool": alone("GlobalAveragePool", None, IMAGES),
    "GlobalAveragePool-one-axis": alone("GlobalAveragePool", None, (2, 3, 7)),
    **{
        f"ConvTranspose-{number}": alone(
            "ConvTranspose", {"w": KERNEL.swapaxes(0, 1)[:, :3]}, (1, 2, 3, 4), **attributes
        )
        for number, attributes in enumerate(
            (
                {},
                {"strides": [2, 3], "pads": [1, 0, 2, 1], "output_padding": [1, 2]},
                {"strides": [2, 2], "dilations": [2, 1], "pads": [0, 1, 1, 0]},
                {"strides": [2, 2], "output_shape": [6, 7]},
                {"strides": [3, 2], "auto_pad": "SAME_UPPER"},
                {"strides": [2, 1], "auto_pad": "SAME_LOWER"},
                {"auto_pad": "VALID"},
            )
        )
    },
    "ConvTranspose-groups": alone(
        "ConvTranspose", {"w": KERNEL, "b": vector(0.5, 1.0, -1.0, 2.0)}, (2, 4, 3, 2), group=2, strides=[2, 1]
    ),
    "Upsample-attribute": alone("Upsample", None, (1, 1, 3, 2), scales=[1.0, 1.0, 2.0, 3.0]),
    "Upsample-input": alone("Upsample", {"s": vector(1.0, 1.0, 2.0, 1.5)}, (1, 1, 3, 4), mode="linear"),
    **{
        f"Resize-{number}": (
            [node("Resize", ["x", "", "", "s"] if "mode" in attributes else ["x", "", "s"], **attributes)],
            {"s": vector(1, 1, 5, 3) if "mode" in attributes else vector(1.0, 1.0, 1.7, 0.6)},
            (1, 1, 3, 4),
        )
        for number, attributes in enumerate(
            [
                {},
                {"mode": "linear"},
                {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
                {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
                {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
                {"coordinate_transformation_mode": "half_pixel_symmetric", "nearest_mode": "ceil"},
                {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
                {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
                {"mode": "nearest", "coordinate_transformation_mode": "align_corners"},
            ]
        )
    },
    "Resize-axes": (
        [node("Resize", ["x", "", "", "s"], mode="linear", axes=[2])],
        {"s": vector(7)},
        (1, 1, 3, 4),
    ),
    "BatchNormalization": alone("BatchNormalization", NORMAL, IMAGES, epsilon=1e-3),
    "BatchNormalization-flat": alone("BatchNormalization", NORMAL, (3, 2)),
    "MatMul": alone("MatMul", {"w": DENSE}),
    "MatMul-left": ([node("MatMul", ["w", "x"])], {"w": DENSE.T}, (4, 2)),
    "MatMul-batches": alone("MatMul", {"w": np.stack([DENSE, -2 * DENSE])[:, None]}, (2, 3, 2, 4)),
    "MatMul-vector": alone("MatMul", {"w": DENSE[:, 0]}, (2, 4)),
    "Gemm": alone("Gemm", {"w": DENSE, "c": DENSE[:1]}, alpha=0.3, beta=-2.0),
    "Gemm-turned": ([node("Gemm", ["w", "x", "c"], transA=1, transB=1)], {"w": DENSE, "c": COLUMN}, (2, 4)),
    "Gemm-moving-term": (
        [node("Relu", ["x"], ["r"]), node("Gemm", ["x", "w", "r"], beta=0.5)],
        {"w": DENSE @ DENSE.T},
        (2, 4),
    ),
    "Add": alone("Add", {"c": COLUMN}, (3, 4)),
    "Add-grows": alone("Add", {"c": COLUMN}, (4,)),
    "Sum": ([node("Relu", ["x"], ["r"]), node("Sum", ["x", "c", "r", "x"])], {"c": COLUMN}, (3, 4)),
    "Sub": ([node("Tanh", ["x"], ["r"]), node("Sub", ["r", "x"])], {}, (3, 4)),
    "Sub-from": ([node("Sub", ["c", "x"])], {"c": COLUMN}, (3, 4)),
    "Mul": alone("Mul", {"c": COLUMN}, (3, 4)),
    "Mul-left": ([node("Mul", ["c", "x"])], {"c": COLUMN}, (4,)),
    "Div": alone("Div", {"c": COLUMN}, (3, 4)),
    "Neg": alone("Neg"),
    "Transpose": alone("Transpose", None, (2, 3, 4)),
    "Transpose-perm": alone("Transpose", None, (2, 3, 4), perm=[2, 0, 1]),
    "Flatten": alone("Flatten", None, (2, 3, 4)),
    "Flatten-negative": alone("Flatten", None, (2, 3, 4), axis=-1),
    "Flatten-all": alone("Flatten", None, (2, 3, 4), axis=3),
    "Reshape": alone("Reshape", {"t": vector(0, -1, 2)}, (2, 3, 4)),
    "Reshape-allowzero": alone("Reshape", {"t": vector(4, -1)}, (2, 3, 4), allowzero=1),
    "Squeeze-attribute": alone("Squeeze", None, (1, 3, 1), axes=[0]),
    "Squeeze-input": alone("Squeeze", {"a": vector(-1)}, (1, 3, 1)),
    "Squeeze-all": alone("Squeeze", None, (1, 3, 1)),
    "Unsqueeze-attribute": alone("Unsqueeze", None, (2, 3), axes=[0, 2]),
    "Unsqueeze-input": alone("Unsqueeze", {"a": vector(-1, 1)}, (2, 3)),
    "Gather": alone("Gather", {"i": vector(2, 0, 2)}, (3, 4)),
    "Gather-axis": alone("Gather", {"i": np.array([[1, -1], [0, 0]])}, (3, 4, 2), axis=1),
    "Gather-scalar": alone("Gather", {"i": np.array(1)}, (3, 4), axis=-1),
    "Gather-int32": alone("Gather", {"i": np.array([1, 1], dtype=np.int32)}, (3, 4)),
    "Concat": ([node("Relu", ["x"], ["r"]), node("Concat", ["x", "c", "r"], axis=1)], {"c": COLUMN}, (3, 4)),
    "Concat-negative": ([node("Concat", ["x", "x"], axis=-2)], {}, (3, 4)),
    "Slice": alone("Slice", {"s": vector(1, -2), "e": vector(100, -1)}, (3, 4)),
    "Slice-axes": alone("Slice", {"s": vector(-1), "e": vector(-9), "a": vector(-1), "t": vector(-2)}, (3, 4)),
    "Slice-clamped": alone(
        "Slice", {"s": vector(9, -9), "e": vector(0, 9), "a": vector(1, 0), "t": vector(-1, 2)}, (3, 4)
    ),
    "Slice-attributes": alone("Slice", None, (3, 4), starts=[0, -2], ends=[2, 9], axes=[0, 1]),
    "Split-attribute": (
        [node("Split", ["x"], ["a", "b"], axis=1, split=[1, 3]), node("Concat", ["b", "a"], axis=1)],
        {},
        (3, 4),
    ),
    "Split-input": ([node("Split", ["x", "s"], ["a", "y"], axis=-1)], {"s": vector(3, 1)}, (3, 4)),
    "Split-equal": ([node("Split", ["x"], ["a", "b"], axis=1), node("Sub", ["a", "b"])], {}, (3, 4)),
    "Split-uneven": ([node("Split", ["x"], ["y", "b"], num_outputs=2)], {}, (3, 4)),
    "Expand": alone("Expand", {"s": vector(2, 1, 4)}, (3, 1)),
    "Tile": alone("Tile", {"r": vector(2, 3)}, (3, 2)),
    "Pad-attributes": alone("Pad", None, (3, 4), pads=[0, 1, 2, 0], value=0.3),
    "Pad-input": alone("Pad", {"p": vector(1, 0, -1, 2), "v": np.array(-0.7)}, (3, 4)),
    "Pad-axes": ([node("Pad", ["x", "p", "", "a"])], {"p": vector(2, 1), "a": vector(-1)}, (3, 4)),
    "Pad-reflect": alone("Pad", {"p": vector(1, 3, 2, 2)}, (3, 4), mode="reflect"),
    "Pad-edge": alone("Pad", {"p": vector(1, 5, 0, 2)}, (3, 4), mode="edge"),
    "Pad-wrap": alone("Pad", {"p": vector(1, 2, 0, 4)}, (3, 4), mode="wrap"),
    "Where": (
        [node("Tanh", ["x"], ["h"]), node("Where", ["m", "x", "h"])],
        {"m": np.array([[True], [False], [True]])},
        (3, 4),
    ),
    "Where-constant": (
        [node("Where", ["m", "c", "x"])],
        {"m": np.array([True, False, False, True]), "c": COLUMN},
        (1, 4),
    ),
    "Where-all": ([node("Where", ["m", "x", "c"])], {"m": np.array([[True]]), "c": COLUMN}, (3, 1)),
    "Trilu": alone("Trilu", {"k": np.array(1)}, (2, 3, 4)),
    "Trilu-lower": alone("Trilu", None, (3, 4), upper=0),
    "DepthToSpace": alone("DepthToSpace", None, (1, 8, 2, 3), blocksize=2),
    "DepthToSpace-columns": alone("DepthToSpace", None, (1, 8, 2, 3), blocksize=2, mode="CRD"),
    "SpaceToDepth": alone("SpaceToDepth", None, (2, 2, 4, 6), blocksize=2),
    "GatherElements": alone("GatherElements", {"i": np.array([[0, -1], [2, 2]])}, (3, 4), axis=1),
    "GatherND": alone("GatherND", {"i": np.array([[0, 1], [-1, 2]])}, (3, 4, 2)),
    "GatherND-batches": alone("GatherND", {"i": np.array([[[1]], [[3]], [[0]]])}, (3, 4, 2), batch_dims=1),
    "ReduceSum": alone("ReduceSum", {"a": vector(-1)}, (3, 4, 2)),
    "ReduceSum-attribute": alone("ReduceSum", None, (3, 4, 2), axes=[0, 2], keepdims=0),
    "ReduceSum-nothing": alone("ReduceSum", None, (3, 4), noop_with_empty_axes=1),
    "ReduceMean": alone("ReduceMean", {"a": vector(0, 1)}, (3, 4, 2), keepdims=0),
    "ReduceMean-attribute": alone("ReduceMean", None, (3, 4, 2), axes=[1]),
    "ReduceMean-all": alone("ReduceMean", None, (3, 4)),
    "Identity": alone("Identity"),
    "Dropout": alone("Dropout"),
    "Dropout-mask": ([node("Dropout", ["x"], ["y", "mask"])], {}, (2, 4)),
    "Dropout-inputs": alone("Dropout", {"ratio": np.array(0.3), "training": np.array(False)}),
    "Cast-same": alone("Cast", to=TensorProto.DOUBLE),
}


def fixed(*nodes, **weights):
    """x times a constant that these nodes compute as c, plus x."""
    return [*nodes, node("Mul", ["x", "c"], ["p"]), node("Add", ["p", "x"])], weights, (3, 3)


FOLDED = {
    "Add": fixed(node("Add", ["a", "b"], ["c"]), a=COLUMN, b=COLUMN.T),
    "Sum": fixed(node("Sum", ["a", "b", "a"], ["c"]), a=COLUMN, b=np.array(1e-30)),
    "Sub": fixed(node("Sub", ["a", "b"], ["c"]), a=COLUMN, b=np.array([0.25, 1e10, 3.0])),
    "Mul": fixed(node("Mul", ["a", "b"], ["c"]), a=COLUMN, b=COLUMN.T),
    "Div": fixed(node("Div", ["a", "b"], ["c"]), a=COLUMN, b=vector(3.0, 7.0, -0.1)),
    "Div-exact": fixed(node("Div", ["a", "b"], ["c"]), a=COLUMN, b=vector(2.0, -0.25, 1.0)),
    "Neg": fixed(node("Neg", ["a"], ["c"]), a=COLUMN),
    "MatMul": fixed(node("MatMul", ["a", "b"], ["c"]), a=DENSE[:3], b=DENSE[1:].T.copy()),
    "Gemm": fixed(
        node("Gemm", ["a", "b", "d"], ["c"], alpha=0.3, beta=-0.7, transB=1), a=DENSE[:3], b=DENSE[1:], d=COLUMN
    ),
    "Reshape": fixed(node("Reshape", ["a", "t"], ["c"]), a=COLUMN, t=vector(1, 3)),
    "Transpose": fixed(node("Transpose", ["a"], ["c"]), a=COLUMN),
    "Flatten": fixed(node("Flatten", ["a"], ["c"], axis=0), a=COLUMN),
    "Unsqueeze": fixed(
        node("Squeeze", ["a", "t"], ["s"]), node("Unsqueeze", ["s", "z"], ["c"]), a=COLUMN, t=vector(1), z=vector(0)
    ),
    "Concat": fixed(
        node("Div", ["a", "n"], ["d"]), node("Concat", ["a", "d", "a"], ["c"], axis=1), a=COLUMN, n=np.array(3.0)
    ),
    "Gather": fixed(node("Gather", ["a", "i"], ["c"]), a=COLUMN, i=vector(2, 0, 0)),
    "Shape": (
        [node("Shape", ["x"], ["s"]), node("Gather", ["s", "i"], ["n"]), node("Reshape", ["x", "n"])],
        {"i": vector(1, 0)},
        (3, 4),
    ),
    "Size": (
        [node("Size", ["x"], ["s"]), node("Unsqueeze", ["s", "i"], ["n"]), node("Reshape", ["x", "n"])],
        {"i": vector(0)},
        (3, 4),
    ),
    "ConstantOfShape": fixed(
        node("ConstantOfShape", ["s"], ["z"], value=numpy_helper.from_array(vector(0.3))),
        node("Add", ["z", "a"], ["c"]),
        s=vector(1, 3),
        a=COLUMN,
    ),
    "Integers": (
        [
            node("Shape", ["x"], ["s"]),
            node("Mul", ["s", "i"], ["m"]),
            node("Div", ["m", "j"], ["d"]),
            node("Sub", ["d", "k"], ["n"]),
            node("Reshape", ["x", "n"]),
        ],
        {"i": vector(3, 4), "j": vector(2, -5), "k": vector(1, -7)},
        (2, 4),
    ),
    "ReduceSum": fixed(
        node("Div", ["a", "n"], ["d"]), node("ReduceSum", ["d", "t"], ["c"]), a=COLUMN, n=vector(3.0, 7.0), t=vector(1)
    ),
    "ReduceMean": fixed(node("ReduceMean", ["a"], ["c"], axes=[0]), a=COLUMN),
    "Slice": fixed(node("Slice", ["a", "s", "e"], ["c"]), a=COLUMN, s=vector(1), e=vector(2)),
    "Pad": fixed(node("Pad", ["a", "s", "v"], ["c"]), a=COLUMN[:2], s=vector(1, 0, 0, 0), v=np.array(0.1)),
    "Where": fixed(
        node("Where", ["m", "a", "b"], ["c"]), m=np.array([[True], [False], [False]]), a=COLUMN, b=np.array(0.1)
    ),
    "Trilu": fixed(node("Trilu", ["a"], ["c"]), a=COLUMN @ COLUMN.T),
    "Cast": fixed(node("Cast", ["a"], ["c"], to=TensorProto.DOUBLE), a=vector(1, -3, 2)),
    "Cast-bool": fixed(node("Cast", ["a"], ["c"], to=TensorProto.DOUBLE), a=np.array([True, False, True])),
    "Cast-folded": fixed(
        node("Add", ["a", "a"], ["s"]),
        node("Cast", ["s"], ["i"], to=TensorProto.INT64),
        node("Cast", ["i"], ["c"], to=TensorProto.DOUBLE),
        a=vector(1.5, 2.0, -1.0),
    ),
    "Identity": fixed(node("Identity", ["a"], ["d"]), node("Dropout", ["d"], ["c"]), a=COLUMN),
    "Constant": fixed(node("Constant", [], ["f"], value=numpy_helper.from_array(COLUMN)), node("Neg", ["f"], ["c"])),
    "Constant-axes": fixed(
        node("Constant", [], ["t"], value_ints=[3, 1]), node("Reshape", ["a", "t"], ["c"]), a=COLUMN.T
    ),
    "Constant-activated": (
        [node("Relu", ["a"], ["r"]), node("Add", ["x", "r"], ["s"]), node("Tanh", ["s"])],
        {"a": COLUMN},
        (3, 4),
    ),
    "Constant-smooth": (
        [node("Gelu", ["a"], ["r"]), node("Add", ["x", "r"], ["s"]), node("Tanh", ["s"])],
        {"a": COLUMN},
        (3, 4),
    ),
    "Constant-clipped": (
        [node("Clip", ["a", "m"], ["r"]), node("Add", ["x", "r"], ["s"]), node("Tanh", ["s"])],
        {"a": COLUMN, "m": np.array(0.1)},
        (3, 4),
    ),
    "Constant-output": ([node("Concat", ["a", "x"], axis=1)], {"a": COLUMN}, (3, 1)),
    "Clip": ([node("Add", ["a", "a"], ["m"]), node("Clip", ["x", "m"])], {"a": np.array(0.1)}, (3, 4)),
    "PRelu": (
        [node("Mul", ["a", "b"], ["s"]), node("PRelu", ["x", "s"])],
        {"a": np.array(0.5), "b": vector(0.25, 2.0, 3.0)},
        (2, 3),
    ),
    "Conv": ([node("Div", ["w", "b"], ["k"]), node("Conv", ["x", "k"])], {"w": KERNEL, "b": np.array(3.0)}, IMAGES),
    "MatMul-weights": (
        [node("MatMul", ["v", "w"], ["k"]), node("MatMul", ["x", "k"])],
        {"v": DENSE, "w": DENSE.T},
        (2, 4),
    ),
    "Gemm-weights": (
        [node("Div", ["w", "b"], ["k"]), node("Gemm", ["x", "k"], alpha=0.1)],
        {"w": DENSE, "b": np.array(0.3)},
        (2, 4),
    ),
    "BatchNormalization": (
        [node("Div", ["v", "n"], ["d"]), node("BatchNormalization", ["x", "s", "b", "m", "d"])],
        {**NORMAL, "n": np.array(7.0)},
        IMAGES,
    ),
    **{
        f"{op}": fixed(
            node(op, ["a", "b"], ["m"]),
            node("Where", ["m", "a", "b"], ["c"]),
            a=COLUMN,
            b=vector(0.3, 5.0, -2.0),
        )
        for op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
    },
    **{
        op: fixed(
            node("Less", ["a", "z"], ["m"]),
            node("Less", ["b", "z"], ["n"]),
            node(op, ["m", "n"] if op != "Not" else ["m"], ["k"]),
            node("Where", ["k", "a", "b"], ["c"]),
            a=COLUMN,
            b=vector(0.3, 5.0, -2.0),
            z=np.array(0.0),
        )
        for op in ("And", "Or", "Xor", "Not")
    },
    **{op: fixed(node(op, ["a"], ["c"]), a=vector(0.5, -1.5, 2.7)) for op in ("Floor", "Ceil", "Round", "Sign")},
    "Reciprocal": fixed(node("Reciprocal", ["a"], ["c"]), a=vector(0.5, -1.5, 2.7)),
    "Range": fixed(
        node("Range", ["s", "e", "d"], ["i"]),
        node("Gather", ["a", "i"], ["c"]),
        a=COLUMN,
        s=np.array(2),
        e=np.array(-1),
        d=np.array(-1),
    ),
    "Mod": fixed(
        node("Mod", ["i", "n"], ["j"]), node("Gather", ["a", "j"], ["c"]), a=COLUMN, i=vector(7, -1, 5), n=vector(3)
    ),
}
