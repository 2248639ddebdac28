"""Softmax, LogSoftmax, normalisations and LRN: what is claimed of them, and how they are read."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from flint import arb, ctx
from onnx import TensorProto, helper
from onnx_models import agrees, make, runtime, single
from vector_cases import FUNCTIONS, LABELS, NORMS, sandwich

import lipmodel as lm
from lipmodel.errors import NotLipschitz, RefusedInput
from lipmodel.lower.linearise import float_program
from lipmodel.network.onnx_import import load
from lipmodel.network.ops import Grouped
from lipmodel.network.vector import LRN, LayerNormalization, LogSoftmax, RMSNormalization, Softmax, VectorFunction

Array = np.ndarray[Any, Any]
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def jacobian(function: VectorFunction, v: Array) -> Array:
    """J at the point v, shape (n, n)."""
    n = len(v)
    return function.tangent(np.repeat(v[None, :, None], n, axis=2), np.eye(n)[None])[0]


def points(rng: np.random.Generator, n: int, count: int) -> Array:
    """Points at many scales, some of them with zeros or equal entries, shape (count, n)."""
    v = rng.standard_normal((count, n)) * 10.0 ** rng.uniform(-2.0, 1.5, (count, 1))
    v[::3] *= rng.random(v[::3].shape) < 0.5
    v[1::7] = v[1::7, :1]
    return v


# ------------------------------------------------------------------------------------------------- facts of functions


@pytest.mark.parametrize("function", FUNCTIONS, ids=LABELS)
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_derivatives_are_those_of_the_values(function: VectorFunction, n: int) -> None:
    rng, h = np.random.default_rng(n), 1e-6
    for v in points(rng, n, 20):
        found = jacobian(function, v)
        steps = h * np.eye(n)[None]
        ahead, behind = (function.value(v[None, :, None] + sign * steps)[0] for sign in (1.0, -1.0))
        np.testing.assert_allclose((ahead - behind) / (2 * h), found, atol=2e-6 * max(1.0, np.abs(found).max()))
        back = function.cotangent(np.repeat(v[None, :, None], n, axis=2), np.eye(n)[None])[0]
        np.testing.assert_allclose(back, found.T, atol=1e-12 * max(1.0, np.abs(found).max()))


@pytest.mark.parametrize("function", FUNCTIONS, ids=LABELS)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 12])
def test_norms_and_slopes_of_jacobians_are_within_what_is_claimed(function: VectorFunction, n: int) -> None:
    alpha, beta = function.slopes(n)
    gains = {"2": max(-alpha, beta), **function.gains(n)}
    for v in points(np.random.default_rng(n), n, 400):
        found = jacobian(function, v)
        for norm, order in NORMS.items():
            assert np.linalg.norm(found, order) <= gains[norm] * (1 + 1e-9) + 1e-12
        if alpha == 0.0:
            values = np.linalg.eigvalsh(found)
            np.testing.assert_allclose(found, found.T, atol=1e-12 * max(1.0, beta))
            assert values[0] >= -1e-9 * max(1.0, beta)
            assert values[-1] <= beta * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("function", FUNCTIONS, ids=LABELS)
def test_the_inequality_of_a_group_holds_on_increments(function: VectorFunction) -> None:
    rng = np.random.default_rng(1)
    for n in (2, 4, 7):
        alpha, beta = function.slopes(n)
        v = points(rng, n, 300)
        other = np.concatenate([points(rng, n, 150), v[150:] + 0.1 * rng.standard_normal((150, n))])
        dv = (v - other)[:, :, None]
        dw = function.value(v[:, :, None]) - function.value(other[:, :, None])
        form = np.sum((dw - alpha * dv) * (beta * dv - dw), axis=1)
        assert np.all(form >= -1e-9 * (1 + beta**2) * np.sum(dv * dv, axis=1))


@pytest.mark.parametrize(
    ("function", "n", "v"),
    [
        (Softmax(), 4, [0.0, 0.0, -40.0, -40.0]),
        (LogSoftmax(), 5, [50.0, 0.0, 0.0, 0.0, 0.0]),
        (LayerNormalization(epsilon=0.125), 4, [0.0] * 4),
        (RMSNormalization(epsilon=0.0625), 4, [0.0] * 4),
    ],
    ids=lambda x: x.label if isinstance(x, VectorFunction) else "",
)
def test_the_two_norm_is_attained(function: VectorFunction, n: int, v: list[float]) -> None:
    assert np.linalg.norm(jacobian(function, np.array(v)), 2) == pytest.approx(function.slopes(n)[1], rel=1e-12)


def test_the_gains_of_lrn_are_those_of_its_derivation() -> None:
    for b in (0.25, 0.75, 1.0, 2.5, 6.0):
        for m in (1, 3, 5, 11):
            function = LRN(size=m, alpha=1.0, beta=b, bias=1.0)
            s, a = np.meshgrid(np.linspace(0.0, 1.0, 1001), np.linspace(0.0, 1.0, 1001))
            a = a * np.sqrt(s)
            rest = 2 * b * a * np.sqrt(m - 1) * np.sqrt(np.maximum(s - a * a, 0.0))
            row = np.max((1 - s) ** b * (np.abs(1 - 2 * b * a * a) + rest))
            assert row <= function.gains(m)["inf"] <= row * 1.001
            corner = np.max(b * s * (1 - s) ** b)
            assert 1 + (m - 1) * corner <= function.gains(m)["1"] <= (1 + (m - 1) * corner) * 1.001
            assert 1.0 <= function.slopes(m)[1] <= np.sqrt(function.gains(m)["1"] * function.gains(m)["inf"]) * 1.001
            # a positive bias only scales: in units of bias^-beta the constants are the same for every alpha and bias
            other = LRN(size=m, alpha=7.0, beta=b, bias=0.25)
            assert other.slopes(m)[1] == pytest.approx(function.slopes(m)[1] * 4.0**b, rel=1e-9)


@pytest.mark.parametrize(
    "given",
    [
        {"alpha": -1.0, "beta": 0.75, "bias": 1.0},
        {"alpha": 1.0, "beta": -0.5, "bias": 1.0},
        {"alpha": 1.0, "beta": 0.75, "bias": 0.0},
        {"alpha": 1.0, "beta": 0.75, "bias": -1.0},
        {"alpha": 1.0, "beta": float("inf"), "bias": 1.0},
        {"alpha": 1.0, "beta": float("nan"), "bias": 1.0},
    ],
)
def test_lrn_without_a_constant_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(NotLipschitz):
        LRN(size=3, **given)


@pytest.mark.parametrize("epsilon", [0.0, -1e-5, float("nan"), float("inf")])
def test_normalisations_without_a_positive_epsilon_are_refused(epsilon: float) -> None:
    for kind in (LayerNormalization, RMSNormalization):
        with pytest.raises(NotLipschitz):
            kind(epsilon=epsilon)


@pytest.mark.parametrize("function", FUNCTIONS, ids=LABELS)
def test_ball_arithmetic_encloses_the_values(function: VectorFunction) -> None:
    rng = np.random.default_rng(2)
    with ctx.workprec(200):
        for n in (1, 3, 6):
            for v in points(rng, n, 20):
                balls = function.balls([arb(float(x)) for x in v])
                wide = function.balls([arb(float(x), 1e-6) for x in v])
                nearby = v + 1e-6 * rng.uniform(-1.0, 1.0, n)
                moved = function.balls([arb(float(x)) for x in nearby])
                values = function.value(v[None, :, None])[0, :, 0]
                np.testing.assert_allclose([float(y) for y in balls], values, rtol=1e-10, atol=1e-11)
                assert all(w.contains(y) for w, y in zip(wide, balls, strict=True))
                assert all(w.contains(y) for w, y in zip(wide, moved, strict=True))


@pytest.mark.parametrize("function", FUNCTIONS, ids=LABELS)
def test_values_are_within_the_limits(function: VectorFunction) -> None:
    rng = np.random.default_rng(3)
    for n in (1, 2, 5):
        center, radius = 4.0 * rng.standard_normal((50, n)), rng.random((50, n)) * 10.0 ** rng.uniform(-2, 1, (50, 1))
        low, high = function.limits(center - radius, center + radius)
        for _ in range(10):
            v = center + radius * rng.uniform(-1.0, 1.0, (50, n)).round(rng.integers(0, 3))
            values = function.value(v[:, :, None])[:, :, 0]
            assert np.all(low - 1e-14 <= values)
            assert np.all(values <= high + 1e-14)


# ------------------------------------------------------------------------------------------------------------- import


@pytest.mark.parametrize("opset", [7, 11, 13, 18, 23])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -3])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_agrees_with_a_run_of_the_file(op: str, axis: int | None, opset: int) -> None:
    if opset < 11 and axis is not None and axis < 0:
        pytest.skip("negative axes came with operator set 11")
    attributes = {} if axis is None else {"axis": axis}
    network = agrees(single(op, shape=(2, 3, 4), opset=opset, **attributes), np.random.default_rng(0), run=runtime)
    chosen = (1 if opset < 13 else -1) if axis is None else axis
    length = (2, 3, 4)[chosen] if opset >= 13 else int(np.prod((2, 3, 4)[chosen % 3 :]))
    (node,) = [o for o in map(network.op, network.order()) if isinstance(o, Grouped)]
    assert node.groups.shape == (24 // length, length)


@pytest.mark.parametrize("axis", [None, 1, -2])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization_agrees_with_a_run_of_the_file(axis: int | None, bias: bool) -> None:
    rng = np.random.default_rng(4)
    shape = (2, 3, 4)[-1 if axis is None else axis :]
    weights = {"scale": rng.standard_normal(shape)} | ({"bias": rng.standard_normal(shape)} if bias else {})
    attributes: dict[str, Any] = {"epsilon": 0.01} | ({} if axis is None else {"axis": axis})
    agrees(single("LayerNormalization", weights, shape=(2, 3, 4), **attributes), rng)


def test_the_other_normalisations_agree_with_a_run_of_the_file() -> None:
    rng = np.random.default_rng(5)
    weights = {"scale": rng.standard_normal(4), "bias": rng.standard_normal(4)}
    agrees(single("InstanceNormalization", weights, shape=(2, 4, 3, 2), epsilon=0.01), rng)
    attributes = {"epsilon": 0.01, "num_groups": 2}
    # the standard has its sums in single precision, even here
    agrees(single("GroupNormalization", weights, shape=(2, 4, 3, 2), opset=21, **attributes), rng, rtol=1e-6)
    single_ = {"scale": rng.standard_normal(3)}
    agrees(single("RMSNormalization", single_, shape=(2, 4, 3), opset=23, epsilon=0.01), rng)


@pytest.mark.parametrize("size", [1, 3, 9])
def test_lrn_agrees_with_a_run_of_the_file(size: int) -> None:
    for given in ({}, {"alpha": 2.0, "beta": 1.25, "bias": 0.5}):
        model = single("LRN", shape=(2, 5, 3, 2), type=TensorProto.FLOAT, size=size, **given)
        agrees(model, np.random.default_rng(6), run=runtime, rtol=1e-4)


@pytest.mark.parametrize("size", [2, 4])
def test_windows_of_an_even_size_are_those_of_the_standard(size: int, tmp_path: pathlib.Path) -> None:
    """No runtime has them (onnx.reference fills in the first channels only), so that they are read on request alone."""
    path = tmp_path / "net.onnx"
    path.write_bytes(single("LRN", shape=(1, 5, 1, 2), size=size, alpha=2.0, bias=0.5).SerializeToString())
    with pytest.raises(RefusedInput) as refused:
        load(path)
    assert [reason.kind for reason in refused.value.reasons] == ["check"]
    x = np.random.default_rng(0).standard_normal((5, 2))
    expected = np.empty((5, 2))
    for c in range(5):
        window = range(max(0, c - (size - 1) // 2), min(4, c + -(-(size - 1) // 2)) + 1)
        expected[c] = x[c] / (0.5 + 2.0 / size * sum(x[j] ** 2 for j in window)) ** 0.75
    np.testing.assert_allclose(load(path, check=False).evaluate(x), expected.ravel(), rtol=1e-12)


@pytest.mark.parametrize(
    ("op", "weights", "attributes"),
    [
        ("LRN", {}, {"size": 3, "bias": 0.0}),
        ("LRN", {}, {"size": 3, "alpha": -1.0}),
        ("LRN", {}, {"size": 3, "beta": -0.25}),
        ("LayerNormalization", {"scale": np.ones(4)}, {"epsilon": 0.0}),
        ("InstanceNormalization", {"scale": np.ones(3), "bias": np.ones(3)}, {"epsilon": -1.0}),
    ],
)
def test_what_has_no_constant_is_refused_with_the_name_of_the_node(
    op: str, weights: dict[str, Any], attributes: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(single(op, weights, shape=(1, 3, 2, 4), **attributes).SerializeToString())
    with pytest.raises(RefusedInput) as refused:
        load(path)
    (reason,) = refused.value.reasons
    assert reason.kind == "non-lipschitz"
    assert "'op'" in reason.where


def test_a_network_with_groups_is_written_and_read_again(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(7)
    for function in (Softmax(), LogSoftmax(), FUNCTIONS[2], FUNCTIONS[3], FUNCTIONS[5]):
        network = sandwich(rng, function, outputs=2, groups=2)
        network.save(tmp_path / "net.onnx")
        again = load(tmp_path / "net.onnx", check=not isinstance(function, LRN))
        x = rng.standard_normal(network.input_size)
        np.testing.assert_allclose(again.evaluate(x), network.evaluate(x), rtol=1e-12)
        assert lm.increments(again).neurons == lm.increments(network).neurons
    with pytest.raises(lm.LipmodelError, match="cannot be written"):
        sandwich(rng, RMSNormalization(epsilon=0.1), outputs=2, groups=2)


# --------------------------------------------------------------------------------------------------------- real files


def test_inspect_counts_and_names_vector_nonlinearities(tmp_path: pathlib.Path) -> None:
    from lipmodel.cli.summary import network_summary
    from lipmodel.result import describe

    path = tmp_path / "net.onnx"
    path.write_bytes(single("Softmax", shape=(2, 5)).SerializeToString())
    network = load(path)
    text = "\n".join(network_summary(network, width=200))
    assert "Softmax 10" in text
    assert "2 groups of 5, slopes in [0, 0.5]" in text
    assert describe(network)["activations"] == 10
    assert "the operator Softmax" in lm.verify(path, lm.solve(path, "product")).read_by


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("name", ["marabou/softmax-last-layer", "omlt/gemm"])
def test_networks_that_end_in_a_softmax(name: str) -> None:
    network = load(SHARED / "nets" / f"{name}.onnx")
    result = lm.solve(network, "product", time_limit=20.0)
    assert result.lower_bound is not None
    assert 0.0 < result.lower_bound <= result.bound < np.inf
    assert lm.verify(network, result).bound == result.bound


def test_a_model_of_float_weights_with_every_function() -> None:
    rng = np.random.default_rng(17)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        node("LRN", ["c"], ["n"], size=3, name="lrn"),
        node("Relu", ["n"], ["r"]),
        node("Flatten", ["r"], ["f"]),
        node("MatMul", ["f", "w"], ["m"]),
        node("LayerNormalization", ["m", "scale", "bias"], ["l"], epsilon=0.01),
        node("Softmax", ["l"], ["y"]),
    ]
    weights = {
        "k": rng.standard_normal((4, 2, 3, 3)),
        "w": rng.standard_normal((64, 3)),
        "scale": rng.standard_normal(3),
        "bias": rng.standard_normal(3),
    }
    network = agrees(make(nodes, weights, shape=(1, 2, 4, 4), type=TensorProto.FLOAT), rng, run=runtime, rtol=1e-3)
    for p, q in (("2", "2"), ("inf", "inf"), ("1", "1")):
        result = lm.solve(network, "product", norm=f"{p}:{q}", time_limit=5.0)
        x = rng.standard_normal((32, 200)) * 0.01
        program = float_program(network)
        norms = [np.linalg.norm(j, NORMS[p]) for j in program.jacobians(program.slopes(program.forward(x)))]
        assert result.bound >= max(norms) * (1 - 1e-9)
        assert lm.verify(network, result).bound == result.bound


def test_the_order_of_neurons_within_a_network_is_that_of_its_positions() -> None:
    op = Grouped(function=Softmax(), groups=np.array([[3, 0], [1, 2]]))
    np.testing.assert_array_equal(op.labels(), [0, 1, 1, 0])
    x = np.array([1.0, 5.0, 5.0, 1.0])
    np.testing.assert_allclose(op.evaluate([x]), 0.5)
    np.testing.assert_allclose(op.evaluate([np.stack([x, -x], axis=1)]), 0.5)
    with pytest.raises(ValueError, match="groups"):
        op.output_size([3])
