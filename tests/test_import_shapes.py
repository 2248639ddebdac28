"""Selections, reductions, resizing, transposed convolutions and folded constants, each against a run of the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import agrees, make, runtime, single

import lipmodel as lm
from lipmodel.errors import RefusedInput
from lipmodel.network.linear import Sparse, Transposed
from lipmodel.network.onnx_import import load

node = helper.make_node
INT = np.array


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def refusal(model: Any) -> str:
    with pytest.raises(RefusedInput) as error:
        load(model)
    return str(error.value)


SLICES = [
    ([1], [3], None, None),
    ([0, -2], [2, 100], [0, 2], None),
    ([-1], [-100], [1], [-1]),
    ([100, 1], [-100, 3], [-1, 1], [-2, 1]),
    ([2], [0], [1], [-1]),
    ([-3], [2**62], [1], [2]),
]


@pytest.mark.parametrize("case", SLICES)
def test_slice(case: Any) -> None:
    starts, ends, axes, steps = case
    weights = {"s": INT(starts), "e": INT(ends)}
    names = ["x", "s", "e"]
    if axes is not None:
        weights["a"] = INT(axes)
        names.append("a")
    if steps is not None:
        weights["t"] = INT(steps)
        names.append("t")
    agrees(make([node("Slice", names, ["y"])], weights, shape=(3, 4, 5)), rng_of(0))


def test_slice_before_operator_set_10() -> None:
    agrees(single("Slice", shape=(3, 4, 5), opset=9, starts=[1, -2], ends=[9, 2**31 - 1], axes=[0, 2]), rng_of(0))


@pytest.mark.parametrize("seed", range(40))
def test_slices_are_those_of_a_run(seed: int) -> None:
    rng = rng_of(seed)
    count = int(rng.integers(1, 4))
    axes = rng.permutation(3)[:count]
    steps = rng.choice([-3, -2, -1, 1, 2, 3], count)
    starts, ends = (rng.integers(-7, 8, count) for _ in range(2))
    model = make(
        [node("Slice", ["x", "s", "e", "a", "t"], ["y"])],
        {"s": starts, "e": ends, "a": axes, "t": steps},
        shape=(4, 5, 6),
    )
    expected = runtime(model, np.zeros((4, 5, 6)))
    if expected.size == 0:
        assert "no entries" in refusal(model)
    else:
        agrees(model, rng, run=runtime)


@pytest.mark.parametrize(
    ("opset", "attributes", "sizes"),
    [
        (11, {"split": [1, 3, 2], "axis": 1}, None),
        (11, {"axis": -1}, None),
        (13, {"axis": 1}, [1, 3, 2]),
        (13, {"axis": 1}, None),
        (18, {"axis": 1, "num_outputs": 3}, None),
    ],
)
def test_split(opset: int, attributes: dict[str, Any], sizes: list[int] | None) -> None:
    inputs, weights = (["x"], {}) if sizes is None else (["x", "s"], {"s": INT(sizes)})
    split = node("Split", inputs, ["a", "b", "c"], **attributes)
    nodes = [split, node("Neg", ["b"], ["d"]), node("Concat", ["c", "d", "a"], ["y"], axis=attributes["axis"])]
    agrees(make(nodes, weights, shape=(2, 6, 3), opset=opset), rng_of(0))


def test_an_uneven_split_by_number() -> None:
    nodes = [node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2), node("Concat", ["b", "a"], ["y"], axis=1)]
    agrees(make(nodes, shape=(2, 5), opset=18), rng_of(0))
    assert "5 entries into [2, 2]" in refusal(
        make([node("Split", ["x", "s"], ["y", "b"], axis=1)], {"s": INT([2, 2])}, shape=(2, 5))
    )


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("opset", [10, 11, 18])
def test_pad(mode: str, opset: int) -> None:
    pads = [0, 2, 1, 0, 1, 2]
    if opset < 11:
        model = single("Pad", shape=(2, 3, 4), opset=opset, mode=mode, pads=pads, value=0.5)
    else:
        weights = {"p": INT(pads), "v": np.array(0.5)}
        model = make([node("Pad", ["x", "p", "v"], ["y"], mode=mode)], weights, shape=(2, 3, 4), opset=opset)
    agrees(model, rng_of(0))


def test_padding_may_cut_wrap_and_name_axes() -> None:
    cut = make([node("Pad", ["x", "p"], ["y"])], {"p": INT([0, -1, 1, -1])}, shape=(2, 4))
    agrees(cut, rng_of(0), run=runtime)
    axes = {"p": INT([1, 2]), "a": INT([-1])}
    agrees(make([node("Pad", ["x", "p", "", "a"], ["y"])], axes, shape=(2, 4), opset=18), rng_of(0), run=runtime)
    wrap = make([node("Pad", ["x", "p"], ["y"], mode="wrap")], {"p": INT([0, 2, 0, 3])}, shape=(2, 4), opset=19)
    agrees(wrap, rng_of(0), run=runtime)


@pytest.mark.parametrize(
    ("op", "attributes", "weights"),
    [
        ("Expand", {}, {"s": INT([2, 1, 4])}),
        ("Expand", {}, {"s": INT([1, 1])}),
        ("Tile", {}, {"s": INT([2, 1, 3])}),
        ("Trilu", {"upper": 0}, {"k": INT(1)}),
        ("Trilu", {}, {}),
        ("GatherElements", {"axis": 1}, {"i": INT([[[0, -1, 2, 0]], [[1, 1, 0, 2]]])}),
        ("GatherND", {}, {"i": INT([[0, 1], [1, -1]])}),
        ("GatherND", {"batch_dims": 1}, {"i": INT([[[0], [2]], [[1], [1]]])}),
        ("Gather", {"axis": -1}, {"i": INT([[0, -1], [2, 2]])}),
    ],
)
def test_rearrangements(op: str, attributes: dict[str, Any], weights: dict[str, Any]) -> None:
    shape = (2, 3, 1) if op == "Expand" else (2, 3, 4)
    agrees(single(op, weights, shape=shape, **attributes), rng_of(0), run=runtime)


@pytest.mark.parametrize(
    ("op", "attributes"), [("DepthToSpace", {}), ("DepthToSpace", {"mode": "CRD"}), ("SpaceToDepth", {})]
)
def test_blocks(op: str, attributes: dict[str, Any]) -> None:
    agrees(single(op, shape=(2, 8, 4, 6), blocksize=2, **attributes), rng_of(0))


def test_where_with_a_constant_condition() -> None:
    rng = rng_of(0)
    mask = rng.random((3, 4)) < 0.5
    nodes = [node("Relu", ["x"], ["r"]), node("Where", ["m", "r", "c"], ["u"]), node("Where", ["m", "u", "x"], ["y"])]
    agrees(make(nodes, {"m": mask, "c": rng.standard_normal(4)}, shape=(3, 4)), rng)
    whole = make([node("Where", ["m", "x", "c"], ["y"])], {"m": np.ones((1, 1), bool), "c": np.ones(4)}, shape=(3, 4))
    assert lm.increments(agrees(whole, rng)).neurons == 0


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(("axes", "keep"), [(None, 1), ([1], 0), ([-1, 0], 1)])
def test_sums_and_means(op: str, opset: int, axes: list[int] | None, keep: int) -> None:
    late = opset >= 18 or (op == "ReduceSum" and opset >= 13)
    weights = {"a": INT(axes)} if axes is not None and late else {}
    attributes = {"axes": axes} if axes is not None and not late else {}
    network = agrees(single(op, weights, shape=(2, 3, 4), opset=opset, keepdims=keep, **attributes), rng_of(0))
    assert lm.increments(network).neurons == 0


def test_a_mean_of_three_is_enclosed() -> None:
    """1/3 is no binary number: the weight has a radius, and the proved bound is above sqrt(3)/3."""
    network = load(single("ReduceMean", shape=(1, 3), opset=13, axes=[1]))
    assert lm.solve(network, "product").bound >= 3.0**-0.5
    assert lm.solve(network, "product").bound <= 3.0**-0.5 * (1.0 + 1e-12)


TRANSPOSED = [
    {},
    {"strides": [2, 3]},
    {"strides": [2, 2], "pads": [1, 0, 1, 2]},
    {"strides": [3, 2], "output_padding": [2, 1]},
    {"dilations": [2, 1], "pads": [1, 1, 0, 0]},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"strides": [2, 2], "output_shape": [9, 8]},
    {"group": 2, "strides": [2, 1]},
]


@pytest.mark.parametrize("attributes", TRANSPOSED)
@pytest.mark.parametrize("biased", [False, True])
def test_transposed_convolution(attributes: dict[str, Any], biased: bool) -> None:
    rng = rng_of(1)
    groups = attributes.get("group", 1)
    weights = {"w": rng.standard_normal((4, 6 // groups, 3, 2))}
    if biased:
        weights["b"] = rng.standard_normal(6)
    model = single("ConvTranspose", weights, shape=(2, 4, 4, 4), type=TensorProto.FLOAT, **attributes)
    network = agrees(model, rng, run=runtime, rtol=1e-5)
    (map,) = (m for m in [op.map for _, op, _ in network.plan() if hasattr(op, "map")] if isinstance(m, Transposed))
    assert np.allclose(map.enclosure().dense().center @ np.ones(map.shape[1]), map.matvec(np.ones(map.shape[1])))


def test_the_norm_of_a_transposed_convolution_is_that_of_its_matrix() -> None:
    rng = rng_of(2)
    network = load(
        single("ConvTranspose", {"w": rng.standard_normal((2, 3, 3, 3))}, shape=(1, 2, 4, 4), strides=[2, 2])
    )
    (map,) = [op.map for _, op, _ in network.plan() if hasattr(op, "map")]
    exact = np.linalg.norm(map.enclosure().dense().center, 2)
    result = lm.solve(network, "product")
    assert exact * (1.0 - 1e-12) <= result.bound <= exact * (1.0 + 1e-6)
    assert lm.verify(network, result).bound == result.bound


RESIZES = [
    ("nearest", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, [1.0, 1.0, 2.0, 3.0]),
    ("nearest", {}, [1.0, 1.0, 1.5, 0.6]),
    ("nearest", {"coordinate_transformation_mode": "align_corners", "nearest_mode": "ceil"}, [1.0, 1.0, 2.0, 2.0]),
    ("nearest", {"nearest_mode": "round_prefer_ceil"}, [1.0, 1.0, 2.0, 2.0]),
    ("linear", {}, [1.0, 1.0, 2.0, 2.0]),
    ("linear", {"coordinate_transformation_mode": "align_corners"}, [1.0, 1.0, 2.0, 1.5]),
    ("linear", {"coordinate_transformation_mode": "asymmetric"}, [1.0, 1.0, 2.0, 0.5]),
    ("linear", {"coordinate_transformation_mode": "pytorch_half_pixel"}, [1.0, 1.0, 2.0, 0.25]),
]


@pytest.mark.parametrize("case", RESIZES)
def test_resize_by_scales(case: Any) -> None:
    mode, attributes, scales = case
    inputs = ["x", "", "s"]
    model = make([node("Resize", inputs, ["y"], mode=mode, **attributes)], shape=(1, 2, 4, 4))
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.FLOAT, [4], scales))
    agrees(model, rng_of(0), rtol=1e-6)


def test_resize_by_sizes_and_upsample() -> None:
    nodes = [node("Resize", ["x", "", "", "n"], ["y"], mode="linear")]
    agrees(make(nodes, {"n": INT([1, 2, 7, 3])}, shape=(1, 2, 4, 4)), rng_of(0), rtol=1e-6)
    up = make([node("Upsample", ["x", "s"], ["y"])], shape=(1, 2, 3, 4), opset=9)
    up.graph.initializer.append(helper.make_tensor("s", TensorProto.FLOAT, [4], [1.0, 1.0, 2.0, 3.0]))
    network = load(up)
    x = rng_of(0).standard_normal((1, 2, 3, 4))
    assert np.array_equal(network.evaluate(x), np.repeat(np.repeat(x, 2, axis=2), 3, axis=3).ravel())
    assert "cubic" in refusal(
        make([node("Resize", ["x", "", "", "n"], ["y"], mode="cubic")], {"n": INT([1, 2, 8, 8])}, shape=(1, 2, 4, 4))
    )


def test_shape_arithmetic_is_folded() -> None:
    """The idiom of exporters: batch from Shape, the rest -1, through Gather, Unsqueeze, Concat, Cast and integers."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["b"]),
        node("Mul", ["b", "one"], ["b1"]),
        node("Unsqueeze", ["b1", "axes"], ["b2"]),
        node("Size", ["x"], ["n"]),
        node("Div", ["n", "b"], ["rest"]),
        node("Sub", ["rest", "zero"], ["r1"]),
        node("Cast", ["r1"], ["r2"], to=TensorProto.FLOAT),
        node("Cast", ["r2"], ["r3"], to=TensorProto.INT64),
        node("Unsqueeze", ["r3", "axes"], ["r4"]),
        node("Concat", ["b2", "r4"], ["shape"], axis=0),
        node("Reshape", ["x", "shape"], ["y"]),
    ]
    weights = {"zero": INT(0), "one": INT(1), "axes": INT([0])}
    network = agrees(make(nodes, weights, shape=(2, 3, 4)), rng_of(0))
    assert network.output_shape == (2, 12)


def test_masks_from_comparisons_are_folded() -> None:
    nodes = [
        node("Range", ["zero", "four", "one"], ["r"]),
        node("Less", ["r", "two"], ["m"]),
        node("Not", ["m"], ["k"]),
        node("Equal", ["r", "zero"], ["e"]),
        node("Or", ["k", "e"], ["o"]),
        node("ConstantOfShape", ["n"], ["c"], value=helper.make_tensor("v", TensorProto.DOUBLE, [1], [2.5])),
        node("Where", ["o", "x", "c"], ["y"]),
    ]
    weights = {"zero": INT(0), "one": INT(1), "two": INT(2), "four": INT(4), "n": INT([4])}
    agrees(make(nodes, weights, shape=(1, 4)), rng_of(0))


def test_spectral_normalisation_left_unfolded() -> None:
    """W / sqrt(u' W W' u) computed in the file: folded, with the error of the division as a radius."""
    rng = rng_of(3)
    nodes = [
        node("Transpose", ["w"], ["wt"]),
        node("MatMul", ["wt", "u"], ["v"]),
        node("Mul", ["v", "v"], ["v2"]),
        node("ReduceSum", ["v2"], ["n2"], keepdims=0),
        node("Sqrt", ["n2"], ["n"]),
        node("Div", ["w", "n"], ["normed"]),
        node("Gemm", ["x", "normed"], ["y"], transB=1),
    ]
    weights = {"w": rng.standard_normal((3, 4)), "u": rng.standard_normal((3, 1))}
    network = agrees(make(nodes, weights, shape=(1, 4)), rng)
    exact = np.linalg.norm(weights["w"], 2) / np.linalg.norm(weights["w"].T @ weights["u"])
    assert exact * (1 - 1e-12) <= lm.solve(network, "product").bound <= exact * (1 + 1e-9)


@pytest.mark.parametrize(
    ("nodes", "weights", "words"),
    [
        ([node("Sqrt", ["w"], ["c"]), node("Mul", ["x", "c"], ["y"])], {"w": np.array([-1.0])}, "divides by zero"),
        ([node("Tan", ["x"], ["y"])], {}, "non-lipschitz"),
        ([node("Floor", ["x"], ["y"])], {}, "discontinuous"),
        ([node("Div", ["a", "b"], ["c"]), node("Reshape", ["x", "c"], ["y"])], {"a": INT([4]), "b": INT([0])}, "by 0"),
        ([node("ConstantOfShape", ["n"], ["c"]), node("Add", ["x", "c"], ["y"])], {"n": INT([2**40])}, "size-limit"),
        ([node("Tile", ["x", "n"], ["y"])], {"n": INT([1, 2**40])}, "size-limit"),
        ([node("Pad", ["x", "n"], ["y"])], {"n": INT([0, 0, 0, 2**40])}, "size-limit"),
        (
            [node("Range", ["a", "b", "c"], ["r"]), node("Gather", ["x", "r"], ["y"])],
            {"a": INT(0), "b": INT(2**40), "c": INT(1)},
            "size-limit",
        ),
        ([node("Expand", ["x", "n"], ["y"])], {"n": INT([2**40, 1])}, "size-limit"),
    ],
)
def test_what_cannot_be_folded_is_refused(nodes: list[Any], weights: dict[str, Any], words: str) -> None:
    assert words in refusal(make(nodes, weights))


def test_weights_of_a_resize_that_are_no_binary_floats_have_a_radius() -> None:
    network = load(
        make([node("Resize", ["x", "", "", "n"], ["y"], mode="linear")], {"n": INT([1, 1, 7])}, shape=(1, 1, 4))
    )
    maps = [op.map for _, op, _ in network.plan() if hasattr(op, "map")]
    assert any(isinstance(m, Sparse) and m.radius is not None for m in maps)


@pytest.mark.parametrize("attributes", TRANSPOSED)
def test_transposed_convolutions_are_written_and_read_back(attributes: dict[str, Any], tmp_path: Any) -> None:
    rng = rng_of(4)
    weights = {"w": rng.standard_normal((4, 6 // attributes.get("group", 1), 3, 2)).astype(np.float32)}
    network = load(single("ConvTranspose", weights, shape=(1, 4, 4, 4), type=TensorProto.FLOAT, **attributes))
    network.save(tmp_path / "net.onnx")
    again = load(tmp_path / "net.onnx", check=False)
    x = rng.standard_normal(network.input_size)
    assert np.array_equal(again.evaluate(x), network.evaluate(x))


@pytest.mark.parametrize("power", [2.0, 3.0, -1.0, 0.5])
def test_powers_of_constants_are_folded(power: float) -> None:
    nodes = [node("Pow", ["w", "p"], ["c"]), node("Mul", ["x", "c"], ["y"])]
    agrees(make(nodes, {"w": np.array([1.5, 2.0, 0.25, 3.0]), "p": np.array(power)}), rng_of(0))


def test_a_cast_between_the_formats_of_16_bits_is_refused() -> None:
    model = single("Cast", shape=(1, 3), type=TensorProto.FLOAT16, to=TensorProto.BFLOAT16)
    assert "rounded from FLOAT16 to BFLOAT16" in refusal(model)
