"""Maxima, minima and sorting: exact rewritings into affine maps and Relu, with as few of them as can be."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import agrees, make, runtime, single, sorted_pairs

import lipmodel as lm
from lipmodel.errors import RefusedInput
from lipmodel.network.onnx_import import load
from lipmodel.network.onnx_max import sorting_network

node = helper.make_node
Array = np.ndarray[Any, Any]


def neurons(network: Any) -> int:
    return lm.increments(network).neurons


@pytest.mark.parametrize("seed", range(60))
def test_max_pool_agrees_with_a_run_of_the_file(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 4))
    kernel = [int(v) for v in rng.integers(1, 4, d)]
    attributes: dict[str, Any] = {"kernel_shape": kernel}
    if rng.random() < 0.8:
        attributes["strides"] = [int(rng.integers(1, k + 2)) for k in kernel]
    if rng.random() < 0.3:
        attributes["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        attributes["strides"] = [min(s, k) for s, k in zip(attributes.get("strides", [1] * d), kernel, strict=True)]
    else:
        attributes["pads"] = [int(rng.integers(0, k)) for k in kernel * 2]
        attributes["dilations"] = [int(v) for v in rng.integers(1, 3, d)]
        attributes["ceil_mode"] = int(rng.random() < 0.4)
    shape = [int(rng.integers(1, 3)), 2, *(int(v) for v in rng.integers(5, 9, d))]
    agrees(single("MaxPool", shape=shape, opset=int(rng.choice([10, 13, 22])), **attributes), rng, run=runtime)


@pytest.mark.parametrize("opset", [8, 12, 18, 20])
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize(("axes", "keep"), [(None, 1), ([1], 1), ([-1, 1], 0), ([0, 2], 1)])
def test_reductions_agree_with_a_run_of_the_file(op: str, axes: list[int] | None, keep: int, opset: int) -> None:
    inputs, attributes, weights = ["x"], {"keepdims": keep}, {}
    if axes is not None and opset >= 18:
        inputs, weights = ["x", "axes"], {"axes": np.array(axes)}
    elif axes is not None:
        attributes["axes"] = axes
    model = make([node(op, inputs, ["y"], **attributes)], weights, shape=(2, 3, 4), opset=opset)
    agrees(model, np.random.default_rng(0))


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_top_k_agrees_with_a_run_of_the_file(axis: int, count: int, largest: int) -> None:
    nodes = [node("TopK", ["x", "k"], ["y", "i"], axis=axis, largest=largest)]
    agrees(make(nodes, {"k": np.array([count])}, shape=(5, 5, 6)), np.random.default_rng(0))


def test_the_indices_of_top_k_are_refused() -> None:
    nodes = [node("TopK", ["x", "k"], ["v", "i"]), node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]
    with pytest.raises(RefusedInput, match="output 1 of TopK"):
        load(make(nodes, {"k": np.array([2])}))


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_several_tensors_and_constants_broadcast(op: str) -> None:
    rng = np.random.default_rng(3)
    weights = {"a": np.array([0, 2]), "b": np.array([1]), "c": rng.standard_normal((3, 1)), "d": rng.standard_normal(4)}
    nodes = [
        node("Gather", ["x", "a"], ["u"], axis=1),
        node("Gather", ["x", "b"], ["v"], axis=1),
        node(op, ["u", "c", "v", "d", "u"], ["y"]),
    ]
    agrees(make(nodes, {**weights, "c": weights["c"][:2]}, shape=(2, 3, 4)), rng)


def test_a_maximum_of_constants_is_folded() -> None:
    weights = {"a": np.array([1.0, -2.0]), "b": np.array([0.5, 3.0])}
    nodes = [node("Max", ["a", "b"], ["m"]), node("Min", ["m", "a"], ["n"]), node("Mul", ["x", "m"], ["z"])]
    model = make([*nodes, node("Add", ["z", "n"], ["y"])], weights, shape=(1, 2))
    assert neurons(agrees(model, np.random.default_rng(0))) == 0


@pytest.mark.parametrize("n", range(1, 10))
def test_sorting_networks_sort(n: int) -> None:
    """By the 0-1 principle (Knuth): what sorts all vectors of zeros and ones sorts everything."""
    layers = list(sorting_network(n))
    assert all(len({i for pair in layer for i in pair}) == 2 * len(layer) for layer in layers)
    for bits in itertools.product((0, 1), repeat=n):
        lanes = list(bits)
        for i, j in itertools.chain.from_iterable(layers):
            lanes[i], lanes[j] = min(lanes[i], lanes[j]), max(lanes[i], lanes[j])
        assert lanes == sorted(bits)


@pytest.mark.parametrize(("n", "comparators"), [(2, 1), (3, 3), (4, 5), (8, 19)])
def test_sorting_networks_are_small(n: int, comparators: int) -> None:
    assert sum(map(len, sorting_network(n))) == comparators


@pytest.mark.parametrize("copies", [False, True])
def test_max_and_min_of_one_pair_share_one_relu(copies: bool) -> None:
    """Two independent ones make the square root of 2 of the constant 1 of a rearrangement."""
    for swapped in (False, True):
        model = sorted_pairs(6, swapped=swapped, copies=copies)
        network = agrees(model, np.random.default_rng(0))
        assert neurons(network) == 3
        assert lm.solve(network, "lipsdp-neuron").bound == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_sorting_is_a_contraction(size: int) -> None:
    model = make([node("TopK", ["x", "k"], ["y", ""])], {"k": np.array([size])}, shape=(1, size))
    network = load(model)
    result = lm.solve(network, "lipsdp-neuron")
    assert 1.0 <= result.bound <= 1.2
    assert lm.verify(network, result).bound == result.bound


def test_overlapping_windows_share_and_gain_the_square_root_of_three() -> None:
    """Windows of three, stride one: an entry lies in three windows, so the constant is not 1."""
    model = single("MaxPool", shape=(1, 1, 7), kernel_shape=[3])
    network = load(model)
    assert neurons(network) == 10  # two for each of five windows
    result = lm.solve(network, "lipsdp-neuron")
    assert result.lower_bound is not None
    assert result.lower_bound > 1.7
    assert result.bound >= np.sqrt(3.0) - 1e-9


def test_a_window_in_two_dimensions_is_swept_axis_by_axis() -> None:
    network = load(single("MaxPool", shape=(1, 1, 6, 6), kernel_shape=[3, 3]))
    # two comparators for each of 6 x 4 maxima along the rows, and two for each of the 4 x 4 of those
    assert neurons(network) == 2 * 24 + 2 * 16
    assert neurons(load(single("MaxPool", shape=(1, 1, 6, 6), kernel_shape=[2, 2], strides=[2, 2]))) == 27


@pytest.mark.parametrize(("op", "saved"), [("Relu", True), ("Sigmoid", True), ("Abs", False)])
def test_a_monotone_activation_waits_for_the_maximum(op: str, saved: bool) -> None:
    pool = node("MaxPool", ["r"], ["y"], kernel_shape=[4], strides=[4])
    model = make([node(op, ["x"], ["r"]), pool], shape=(1, 1, 8))
    network = agrees(model, np.random.default_rng(0))
    assert neurons(network) == 6 + (2 if saved else 8)


def test_an_activation_with_other_readers_stays() -> None:
    pool = node("MaxPool", ["r"], ["p"], kernel_shape=[4], strides=[4])
    nodes = [node("Relu", ["x"], ["r"]), pool, node("Concat", ["r", "p"], ["y"], axis=2)]
    model = make(nodes, shape=(1, 1, 8))
    network = agrees(model, np.random.default_rng(0))
    assert neurons(network) == 6 + 8


def test_what_cannot_be_read_is_refused() -> None:
    in_padding = single("MaxPool", shape=(1, 1, 4), kernel_shape=[2], pads=[3, 3], strides=[5])
    with pytest.raises(RefusedInput, match="padding alone"):
        load(in_padding)
    unsorted = [node("TopK", ["x", "k"], ["y", ""], sorted=0)]
    with pytest.raises(RefusedInput, match="without an order"):
        load(make(unsorted, {"k": np.array([2])}))
    with pytest.raises(RefusedInput, match="there are no 9 entries"):
        load(make([node("TopK", ["x", "k"], ["y", ""])], {"k": np.array([9])}))


@pytest.mark.parametrize("seed", range(8))
def test_bounds_of_networks_with_pools_are_above_what_sampling_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel, last = rng.standard_normal((2, 1, 3)), rng.standard_normal((6, 2))
    nodes = [
        node("Conv", ["x", "k"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2], strides=[2]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    network = load(make(nodes, {"k": kernel, "w": last}, shape=(1, 1, 8)))
    x = rng.standard_normal((8, 4000)) * 3.0
    step = rng.standard_normal((8, 4000)) * 1e-3
    moved = np.linalg.norm(network.evaluate(x + step) - network.evaluate(x), axis=0) / np.linalg.norm(step, axis=0)
    for name in ("product", "lipsdp-neuron", "lipsdp-layer"):
        assert lm.solve(network, name, norm="2").bound >= moved.max() * (1.0 - 1e-9)
