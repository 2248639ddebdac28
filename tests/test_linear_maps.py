"""Constants with proved errors, and the rewritings of affine chains."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_models import make

from lipmodel.network import constants, ops
from lipmodel.network.constants import Enclosed
from lipmodel.network.graph import Network, Source
from lipmodel.network.linear import Composition, Dense, Diagonal, Selection, Sparse
from lipmodel.network.onnx_import import load
from lipmodel.network.passes import simplify

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=64)
SMALL = st.floats(min_value=-8.0, max_value=8.0, allow_subnormal=False)


def holds(result: Enclosed, exact: Fraction) -> bool:
    """Whether the first entry encloses an exact value; non-finite results claim nothing."""
    if not result.is_finite:
        return True
    radius = 0.0 if result.radius is None else float(result.radius.ravel()[0])
    return abs(exact - Fraction(float(result.values.ravel()[0]))) <= Fraction(radius)


def tight(result: Enclosed) -> bool:
    if result.radius is None or not result.is_finite:
        return True
    return bool(np.all(result.radius <= np.spacing(np.abs(result.values)) + 2.0**-999))


def one(value: float) -> Enclosed:
    return Enclosed(values=np.array([value]))


@settings(max_examples=400, deadline=None)
@given(FLOATS, FLOATS)
def test_arithmetic_encloses_the_exact_result(a: float, b: float) -> None:
    x, y = Fraction(a), Fraction(b)
    for result, exact in (
        (constants.add(one(a), one(b)), x + y),
        (constants.multiply(one(a), one(b)), x * y),
    ):
        assert holds(result, exact)
        assert tight(result)
    if b != 0.0:
        result = constants.reciprocal(one(b))
        assert holds(result, 1 / y)
        assert tight(result)


@settings(max_examples=300, deadline=None)
@given(SMALL, SMALL, SMALL, SMALL)
def test_errors_are_carried_along(a: float, b: float, s: float, t: float) -> None:
    """An exact point of two balls gives a point of the result."""
    ra, rb = 0.25, 2.0**-30
    x, y = (Fraction(v) + Fraction(r) * Fraction(u) / 8 for v, r, u in ((a, ra, s), (b, rb, t)))
    ball_a, ball_b = (Enclosed(values=np.array([v]), radius=np.array([r])) for v, r in ((a, ra), (b, rb)))
    assert holds(constants.add(ball_a, ball_b), x + y)
    assert holds(constants.multiply(ball_a, ball_b), x * y)
    if y != 0:
        assert holds(constants.reciprocal(ball_b), 1 / y)


def test_exact_results_are_known_to_be_exact() -> None:
    rng = np.random.default_rng(0)
    a = Enclosed(values=rng.standard_normal(50).astype(np.float32).astype(np.float64))
    b = Enclosed(values=rng.standard_normal(50).astype(np.float32).astype(np.float64))
    assert constants.multiply(a, b).radius is None
    assert constants.reciprocal(Enclosed(values=np.array([0.5, -4.0, 1.0, 2.0**100]))).radius is None
    thirds = constants.reciprocal(Enclosed(values=np.array([3.0, 4.0])))
    assert thirds.radius is not None
    assert thirds.radius[1] == 0.0 < thirds.radius[0] < 1e-16
    assert not constants.reciprocal(Enclosed(values=np.array([0.0]))).is_finite
    assert not constants.reciprocal(Enclosed(values=np.array([1.0]), radius=np.array([1.0]))).is_finite


def chain(size: int, *steps: Any) -> Network:
    """A chain of affine operations."""
    graph = nx.MultiDiGraph()
    graph.add_node("x", op=ops.Input(shape=(size,)), shape=(size,))
    before = "x"
    for k, op in enumerate(steps):
        graph.add_node(f"n{k}", op=op, shape=(op.map.shape[0],))
        graph.add_edge(before, f"n{k}", key=0)
        before = f"n{k}"
    source = Source(path=None, sha256="", graph_inputs=(), graph_outputs=(), parameters=0, opset=None, producer="test")
    return Network(graph=graph, input="x", output=before, source=source)


def affine(map: Any, bias: Any = None) -> ops.Linear:
    return ops.Linear(map=map, bias=bias)


def test_free_products_are_formed_and_others_not() -> None:
    rng = np.random.default_rng(0)
    w = Dense(weights=rng.standard_normal((4, 3)))
    turn = Selection(index=np.array([2, 0, 1]), size=3)
    flip = Diagonal(values=np.array([1.0, -1.0, 1.0, -1.0]))
    same = Selection(index=np.arange(4), size=4)
    network = chain(3, affine(turn), affine(w), affine(same), affine(same, rng.standard_normal(4)), affine(flip))
    simple = simplify(network)
    simple.validate()
    assert len(simple.graph) == 2
    assert simple.output == network.output
    x = rng.standard_normal((3, 5))
    np.testing.assert_allclose(simple.evaluate(x), network.evaluate(x), rtol=1e-14)
    assert isinstance(simple.op(simple.output).map, Dense)
    kept = simplify(chain(3, affine(w), affine(Dense(weights=np.ones((2, 4))))))
    assert len(kept.graph) == 3


def test_biases_are_not_rounded() -> None:
    eye = Selection(index=np.arange(1), size=1)
    scale = Dense(weights=np.array([[3.0]]))
    exact = simplify(chain(1, affine(scale, np.array([1.0])), affine(eye, np.array([2.0**-20]))))
    assert len(exact.graph) == 2
    rounded = simplify(chain(1, affine(scale, np.array([1.0])), affine(eye, np.array([2.0**-60]))))
    assert len(rounded.graph) == 3


def test_no_memory_is_spent_on_free_products() -> None:
    narrow = Selection(index=np.array([7, 123_456]), size=10**6)
    pick = simplify(chain(10**6, affine(narrow), affine(Dense(weights=np.ones((100, 2))))))
    assert len(pick.graph) == 3
    wide = Selection(index=np.zeros(10**6, dtype=np.int64), size=1)
    spread = simplify(chain(100, affine(Dense(weights=np.ones((1, 100)))), affine(wide)))
    assert len(spread.graph) == 3


def test_shared_and_final_nodes_are_kept() -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], name="n"),
        helper.make_node("Transpose", ["n"], ["t"], name="t"),
        helper.make_node("Add", ["n", "t"], ["y"], name="y"),
        helper.make_node("Relu", ["n"], ["dead"]),
    ]
    network = load(make(nodes, shape=(2, 2)))
    assert set(network.graph) == {"x", "n", "t", "y"}
    x = np.arange(4.0).reshape(2, 2)
    np.testing.assert_array_equal(network.evaluate(x), (-x - x.T).ravel())


def test_batched_products_are_sparse_and_exact() -> None:
    w = np.arange(1.0, 7.0).reshape(3, 2)
    network = load(make([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": w}, shape=(5, 3)))
    map = network.op(network.output).map
    assert isinstance(map, Sparse)
    assert map.entries == 30
    np.testing.assert_array_equal(map.enclosure().dense().center, np.kron(np.eye(5), w.T))


def test_products_of_constant_matrices_are_enclosed() -> None:
    """W = A B with a third in B: the weights that the graph computes are known up to a proved radius."""
    a, b = np.array([[0.1, 0.3], [1.0, -0.7]]), np.array([[1.0, 2.0], [5.0, 0.1]])
    nodes = [
        helper.make_node("Div", ["b", "three"], ["c"]),
        helper.make_node("MatMul", ["a", "c"], ["w"]),
        helper.make_node("Concat", ["w", "x"], ["j"], axis=0),
        helper.make_node("MatMul", ["j", "w"], ["y"]),
    ]
    network = load(make(nodes, {"a": a, "b": b, "three": np.array(3.0)}, shape=(1, 2)))
    network.validate()
    maps = [op.map for _, op, _ in network.plan() if isinstance(op, ops.Linear) and isinstance(op.map, Sparse)]
    enclosure = maps[-1].enclosure().dense()
    assert enclosure.radius is not None
    for i, j in np.ndindex(2, 2):
        exact = sum(Fraction(a[i, k]) * Fraction(b[k, j]) / 3 for k in range(2))
        for row in range(3):
            error = abs(Fraction(float(enclosure.center[2 * row + j, 2 * row + i])) - exact)
            assert error <= Fraction(float(enclosure.radius[2 * row + j, 2 * row + i])) < Fraction(1, 10**14)
    rough = [op for _, op, _ in network.plan() if isinstance(op, ops.Linear) and op.bias_radius is not None]
    assert len(rough) == 1


def test_scaled_products_of_doubles_are_not_rounded() -> None:
    rng = np.random.default_rng(0)
    gemm = helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.1)
    network = load(make([gemm], {"w": rng.standard_normal((3, 2))}, shape=(1, 3)))
    composed = [op.map for _, op, _ in network.plan() if isinstance(op, ops.Linear)]
    assert [type(m) for m in composed] == [Dense, Diagonal] or isinstance(composed[0], Composition)


@pytest.mark.parametrize("columns", [1, 4])
def test_columns_are_evaluated_independently(columns: int) -> None:
    rng = np.random.default_rng(columns)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Tanh", ["a"], ["t"]),
        helper.make_node("Tanh", ["c"], ["k"]),
        helper.make_node("Add", ["t", "k"], ["s"]),
        helper.make_node("Concat", ["s", "k", "a"], ["y"], axis=1),
    ]
    network = load(make(nodes, {"w": rng.standard_normal((4, 3)), "c": rng.standard_normal((1, 3))}))
    x = rng.standard_normal((4, columns))
    together = network.evaluate(x)
    for k in range(columns):
        np.testing.assert_allclose(together.reshape(9, columns)[:, k], network.evaluate(x[:, k]), atol=1e-14)
    with pytest.raises(ValueError, match="4 entries"):
        network.evaluate(np.ones(5))
