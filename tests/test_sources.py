"""Networks made in Python, and the files that they are saved to."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import make, single

from lipmodel.activations import activation, register
from lipmodel.errors import LipmodelError, RefusedInput, UsageError
from lipmodel.network import ops
from lipmodel.network.conv import Conv, Pool, valid_counts, window_sum
from lipmodel.network.graph import Network
from lipmodel.network.linear import Dense, Diagonal, Selection, Sparse, Sum, compose
from lipmodel.network.onnx_import import load
from lipmodel.network.sources import finished, from_weights


def chain(rng: np.random.Generator, dtype: Any = np.float64) -> tuple[list[Any], list[Any]]:
    sizes = (3, 5, 4, 2)
    weights = [rng.standard_normal((m, n)).astype(dtype) for n, m in pairwise(sizes)]
    return weights, [rng.standard_normal(m).astype(dtype) for m in sizes[1:]]


def saved(network: Network, path: Path) -> Network:
    """The network after saving and loading; also checks the hash, and that saving again gives the same file."""
    network.save(path)
    again = load(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == again.source.sha256
    other = path.with_name("again.onnx")
    again.save(other)
    assert other.read_bytes() == path.read_bytes()
    assert {p.name for p in path.parent.iterdir()} == {path.name, "again.onnx"}
    return again


def same(a: Network, b: Network, rng: np.random.Generator) -> None:
    assert (a.input_shape, a.output_shape) == (b.input_shape, b.output_shape)
    for scale in (1.0, 20.0):
        x = scale * rng.standard_normal((a.input_size, 3))
        np.testing.assert_allclose(a.evaluate(x), b.evaluate(x), rtol=1e-12, atol=1e-12 * scale)


ACTIVATIONS = [
    "relu",
    "tanh",
    "abs",
    "sigmoid",
    "softplus",
    "silu",
    "gelu",
    "mish",
    "relu6",
    "LeakyRelu",
    "elu",
    "swish",
]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_from_weights(name: str, dtype: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(len(name))
    weights, biases = chain(rng, dtype)
    network = from_weights(weights, biases, activation=name)
    phi, x = activation(name), rng.standard_normal(3)
    (w1, w2, w3), (b1, b2, b3) = ([a.astype(np.float64) for a in arrays] for arrays in (weights, biases))
    expected = w3 @ phi(w2 @ phi(w1 @ x + b1) + b2) + b3
    np.testing.assert_allclose(network.evaluate(x), expected, rtol=1e-13)
    again = saved(network, tmp_path / "net.onnx")
    assert again.source.sha256 == network.source.sha256
    limits = 4 if name == "relu6" else 0
    assert again.source.parameters == network.source.parameters == 15 + 20 + 8 + 5 + 4 + 2 + limits
    for old, new in zip(network.plan(), again.plan(), strict=True):
        if isinstance(old[1], ops.Linear):
            np.testing.assert_array_equal(old[1].map.weights, new[1].map.weights)
            np.testing.assert_array_equal(old[1].bias, new[1].bias)


def test_activations_per_layer(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights, _ = chain(rng)
    network = from_weights(weights, activation=[activation("LeakyRelu", alpha=0.1), None, "tanh"])
    w1, w2, w3 = weights
    x = rng.standard_normal(3)
    v = w1 @ x
    np.testing.assert_allclose(network.evaluate(x), np.tanh(w3 @ (w2 @ np.where(v > 0, v, 0.1 * v))))
    same(network, saved(network, tmp_path / "net.onnx"), rng)
    assert from_weights([np.eye(2)]).output_size == 2


def test_hash_depends_on_every_weight() -> None:
    weights, biases = chain(np.random.default_rng(0))
    hashes = {from_weights(weights, biases).source.sha256, from_weights(weights).source.sha256}
    hashes.add(from_weights(weights, biases, activation="tanh").source.sha256)
    for arrays in (weights, biases):
        for array in arrays:
            array.flat[-1] = np.nextafter(array.flat[-1], 10)
            hashes.add(from_weights(weights, biases).source.sha256)
    assert len(hashes) == 9


@pytest.mark.parametrize(
    ("weights", "kwargs"),
    [
        ([], {}),
        ([np.ones((2, 3)), np.ones((2, 3))], {}),
        ([np.ones(3)], {}),
        ([np.ones((0, 3))], {}),
        ([np.full((2, 2), np.nan)], {}),
        ([np.ones((2, 2), dtype=complex)], {}),
        ([np.full((2, 2), 2**53 + 1)], {}),
        ([np.ones((2, 2))], {"biases": []}),
        ([np.ones((2, 2))], {"biases": [np.ones(3)]}),
        ([np.ones((2, 2))] * 3, {"activation": ["relu"]}),
        ([np.ones((2, 2))] * 3, {"activation": "no such thing"}),
    ],
)
def test_from_weights_refuses(weights: Any, kwargs: Any) -> None:
    with pytest.raises(UsageError):
        from_weights(weights, **kwargs)


def test_a_registered_activation_is_saved_with_its_expression(tmp_path: Path) -> None:
    register("Bump", "x*exp(-x**2)")
    weights, biases = chain(np.random.default_rng(1))
    network = from_weights(weights, biases, activation="bump")
    again = saved(network, tmp_path / "net.onnx")
    same(network, again, np.random.default_rng(2))
    register("Bump", "2*x*exp(-x**2)")
    with pytest.raises(RefusedInput, match="Bump is"):
        load(tmp_path / "net.onnx")


def build(steps: list[tuple[str, Any, list[str]]], shape: tuple[int, ...]) -> Network:
    """A network made by hand: (name, operation, arguments)."""
    graph = nx.MultiDiGraph()
    graph.add_node("x", op=ops.Input(shape=shape), shape=shape)
    for name, op, arguments in steps:
        size = op.output_size([int(np.prod(graph.nodes[a]["shape"])) for a in arguments])
        graph.add_node(name, op=op, shape=(1, size))
        for port, argument in enumerate(arguments):
            graph.add_edge(argument, name, key=port)
    return finished(graph, "x", steps[-1][0])


def test_every_kind_of_operation_can_be_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    conv = Conv(
        kernel=rng.standard_normal((4, 1, 3, 2)),
        input_shape=(1, 2, 5, 4),
        output_spatial=(3, 3),
        strides=(2, 1),
        pads=(1, 0),
        dilations=(1, 1),
        groups=2,
    )
    window = window_sum((1, 4, 3, 3), (2, 2), (2, 2), (1, 1), (0, 0), (1, 1))
    pool = Pool(window=window, count=valid_counts(window))
    sparse = Sparse(weights=Selection(index=np.arange(5), size=16).enclosure().center)
    select = Selection(index=np.array([3, -1, 0, 0, 15]), size=16)
    parts = (
        ops.Part(activation=activation("relu"), index=np.array([0, 2])),
        ops.Part(activation=activation("tanh"), index=np.array([4, 1])),
        ops.Part(activation=activation("LeakyRelu", alpha=0.3), index=np.array([3])),
    )
    slopes = tuple(
        ops.Part(activation=activation("PRelu", slope=s), index=np.array([i])) for i, s in enumerate(rng.random(5))
    )
    network = build(
        [
            ("conv", ops.Linear(map=conv, bias=rng.standard_normal(36)), ["x"]),
            ("pool", ops.Linear(map=pool), ["conv"]),
            ("select", ops.Linear(map=select, bias=rng.standard_normal(5)), ["pool"]),
            ("sparse", ops.Linear(map=Sum(terms=(sparse, compose(Diagonal(values=rng.random(5)), select)))), ["pool"]),
            ("mixed", ops.Elementwise(parts=parts), ["select"]),
            ("slopes", ops.Elementwise(parts=slopes), ["sparse"]),
            ("constant", ops.Constant(values=rng.random(5)), []),
            ("sum", ops.Add(), ["mixed", "slopes", "constant", "mixed"]),
            ("join", ops.Concat(positions=(np.array([1, 3, 5, 7, 9]), np.array([8, 6, 4, 2, 0]))), ["sum", "constant"]),
            ("out", ops.Linear(map=Dense(weights=rng.standard_normal((2, 10)))), ["join"]),
        ],
        (2, 5, 4),
    )
    same(network, saved(network, tmp_path / "net.onnx"), rng)


def test_identity_and_constant_networks_can_be_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for network in (
        load(make([], outputs=("x",), shape=(2, 2))),
        load(single("Flatten", shape=(2, 3))),
        load(make([helper.make_node("Neg", ["c"], ["y"])], {"c": np.ones((2, 2))})),
    ):
        folder = tmp_path / str(id(network))
        folder.mkdir()
        same(network, saved(network, folder / "net.onnx"), rng)


def test_an_imported_network_is_saved_as_the_file_it_came_from(tmp_path: Path) -> None:
    weights = {"s": np.ones(3), "b": np.ones(3), "m": np.ones(3), "v": np.array([0.1, 0.2, 0.3])}
    model = single("BatchNormalization", weights, shape=(1, 3), type=TensorProto.FLOAT)
    same(load(model), saved(load(model), tmp_path / "net.onnx"), np.random.default_rng(0))


def test_a_choice_is_saved_where_it_can_be(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Add", ["x", "u"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
    model = make([*nodes, helper.make_node("Neg", ["u"], ["z"])], inputs={"x": (1, 3), "u": (1, 3)}, outputs=("y", "z"))
    network = load(model, graph_input="all", graph_output="all")
    same(network, saved(network, tmp_path / "net.onnx"), rng)
    third = make(
        [helper.make_node("Div", ["x", "c"], ["y"]), nodes[0]], {"c": np.array(3.0)}, inputs={"x": (1, 3), "u": (1, 3)}
    )
    with pytest.raises(LipmodelError, match="binary floats"):
        load(third, graph_input="x").save(tmp_path / "third.onnx")
    assert not (tmp_path / "third.onnx").exists()
