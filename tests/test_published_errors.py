"""Errors that were published as bounds: the wrong method reproduces the wrong number, and no formulation returns it.

Others have tests beside their methods: coupled multipliers (test_pairs, test_kernel_certificate), greedy SeqLip and
power iteration (test_estimates, test_seqlip), the recursion outside its domain (test_elimination), convolutions
(test_conv_norms, test_fourier), dropped monomials (test_lipopt), max pairs as independent relus (test_max_operators).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import lipmodel as lm
from lipmodel.formulation import formulation_class, formulation_names

NAMES = [name for name in formulation_names() if formulation_class(name).norms]


@functools.cache
def bound(key: str, name: str, norm: str = "2", outputs: str = "all") -> float | None:
    """The bound of a formulation for a network of `NETWORKS`, None where it does not apply (or takes too long here)."""
    if (key, name) == ("nonnegative", "sos"):
        return None
    try:
        r = lm.solve(NETWORKS[key](), name, norm=norm, outputs=outputs, witness=False)
    except lm.UsageError:
        return None
    assert r.assurance == "proved"
    return r.bound


def chain(*weights: Any, activation: Any = "relu") -> Any:
    return lm.from_weights([np.atleast_2d(np.asarray(w, dtype=np.float64)) for w in weights], activation=activation)


def random_chain(first: float) -> Any:
    rng = np.random.default_rng(4)
    w, v = rng.standard_normal((6, 3)), rng.standard_normal((2, 6))
    return chain(first * w, v)


def residual(*, rectified: bool) -> Any:
    """y = (1, -1) relu(z + (1, 1)' relu((1, 0) z) + (0, -10)), z = (x, 0): 2 x - relu(x - 10) for positive x."""
    weights = {"w0": [[1.0], [0.0]], "v": [[1.0, 0.0]], "w2": [[1.0], [1.0]], "wo": [[1.0, -1.0]]}
    stored = [numpy_helper.from_array(np.array(w, dtype=np.float32).T.copy(), name) for name, w in weights.items()]
    stored.append(numpy_helper.from_array(np.array([0.0, -10.0], dtype=np.float32), "b2"))
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["z"]),
        helper.make_node("MatMul", ["z", "v"], ["inner"]),
        helper.make_node("Relu", ["inner"], ["bent"]),
        helper.make_node("MatMul", ["bent", "w2"], ["branch"]),
        helper.make_node("Add", ["branch", "b2"], ["shifted"]),
        helper.make_node("Add", ["z", "shifted"], ["added"]),
        helper.make_node("Relu" if rectified else "Identity", ["added"], ["after"]),
        helper.make_node("MatMul", ["after", "wo"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "residual", ports[:1], ports[1:], stored)
    return lm.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def nonnegative() -> list[Any]:
    rng = np.random.default_rng(8)
    return [rng.random((6, 4)), rng.random((5, 6)), rng.random((1, 5))]


NETWORKS: dict[str, Any] = {
    "two relus": lambda: chain([[1.0], [-1.0]], [[1.0, -1.0]]),
    "selu": lambda: chain([[1.0]], [[1.0]], activation="selu"),
    "silu": lambda: chain([[1.0]], [[1.0]], activation="silu"),
    "gelu": lambda: chain([[1.0]], [[1.0]], activation="gelu"),
    "ones": lambda: chain(np.ones((2, 2))),
    "ones with relu": lambda: chain(np.ones((2, 2)), np.ones((2, 2))),
    "opposite": lambda: chain([[1.0]], [[1.0], [-1.0]]),
    "random": lambda: random_chain(1.0),
    "random, first layer ten times": lambda: random_chain(10.0),
    "residual": lambda: residual(rectified=True),
    "residual without its last relu": lambda: residual(rectified=False),
    "nonnegative": lambda: chain(*nonnegative()),
}


def applies(key: str, norm: str = "2", outputs: str = "all") -> list[tuple[str, float]]:
    found = [(name, bound(key, name, norm, outputs)) for name in NAMES]
    kept = [(name, value) for name, value in found if value is not None]
    assert len(kept) > 8, "most formulations take these networks"
    return kept


def test_the_norm_of_the_product_of_all_weights_is_no_lower_bound() -> None:
    """y = relu(x) - relu(-x) = x: all active gives 2, a pattern that no input has; the constant is 1."""
    net = NETWORKS["two relus"]()
    wrong = np.linalg.norm(np.array([[1.0, -1.0]]) @ np.array([[1.0], [-1.0]]), 2)
    assert wrong == 2.0
    r = lm.solve(net, "lipsdp-neuron")
    assert r.lower_bound is not None
    assert r.lower_bound == pytest.approx(1.0, rel=1e-12)
    assert r.lower_bound <= 1.0


@pytest.mark.parametrize(("key", "slope"), [("selu", 1.7580993463), ("silu", 1.0998393201), ("gelu", 1.1289041451)])
def test_slopes_of_activations_between_parts_count(key: str, slope: float) -> None:
    """Identity, activation, identity: the parts' constants multiply to 1, and slopes [0, 1] give nothing else."""
    for name, value in applies(key):
        # the scalar rule of eclipse-fast pays a little for slopes of both signs
        assert slope * (1.0 - 1e-9) <= value <= slope * (1.01 if name == "eclipse-fast" else 1.0 + 1e-6), name


def test_the_first_layer_counts() -> None:
    """A recursion that drops the first matrix does not see it multiplied by ten."""
    for name, value in applies("random, first layer ten times"):
        assert value == pytest.approx(10.0 * bound("random", name), rel=1e-5), name


def test_the_largest_row_norm_is_no_spectral_norm() -> None:
    wrong = float(np.linalg.norm(np.ones((2, 2)), axis=1).max())
    assert wrong == pytest.approx(1.4142, abs=1e-4)
    for key, truth in (("ones", 2.0), ("ones with relu", 4.0)):
        for name, value in applies(key):
            assert value >= truth, name
            assert value > wrong, name


def test_margins_need_the_dual_norm_of_the_outputs() -> None:
    """y = (x, -x): each output has constant 1, their difference 2, not 1."""
    for name, value in applies("opposite", "inf"):
        assert value == pytest.approx(1.0, rel=1e-6), name
    for name, value in applies("opposite", "2", "margin:0"):
        assert value == pytest.approx(2.0, rel=1e-6), name
        assert value >= 2.0, name


def test_halved_sums_on_nonnegative_networks() -> None:
    """With nonnegative weights the constant is ||W_d .. W_1||; a plotted Combettes-Pesquet bound was half of it."""
    truth = float(np.linalg.norm(functools.reduce(lambda a, b: b @ a, nonnegative()), 2))
    cp = bound("nonnegative", "combettes-pesquet")
    assert cp is not None
    assert 0.5 * cp < truth <= cp
    for name, value in applies("nonnegative"):
        assert value >= truth * (1.0 - 1e-12), name
    for name in ("k4", "lipsdp-neuron", "path-norm"):
        assert bound("nonnegative", name) == pytest.approx(truth, rel=1e-6), name


def test_the_relu_after_the_addition_counts() -> None:
    """Dropped, the block is the identity, with constant 1; between 1 and 2 the network doubles its input."""
    wrong = bound("residual without its last relu", "lipsdp-neuron")
    assert wrong == pytest.approx(1.0, rel=1e-6)
    r = lm.solve(NETWORKS["residual"](), "lipsdp-neuron")
    assert r.lower_bound == pytest.approx(2.0, rel=1e-9)
    found = [(name, bound("residual", name)) for name in NAMES]
    assert sum(value is not None for _, value in found) > 8
    for name, value in found:
        assert value is None or value >= 2.0 * (1.0 - 1e-12), name
