"""The error of every operator in float32, against rationals and against numpy."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from float32_machine import nearest, rationals
from float32_nets import FLOAT, errors, f32, network, node
from onnx import TensorProto, helper, numpy_helper
from onnx_models import make, reference

from lipmodel.certify.execution_graph import outputs
from lipmodel.certify.execution_values import (
    PLACES,
    ROUNDINGS,
    Executed,
    added,
    anywhere,
    contracted,
    exactly,
    gathered,
    rectified,
    scaled,
    units,
)
from lipmodel.network.onnx_import import load
from lipmodel.spec import Box


def cases() -> dict[str, tuple[list[Any], dict[str, Any], tuple[int, ...]]]:
    rng = np.random.default_rng(3)

    def r(*shape: int) -> Any:
        return f32(rng.standard_normal(shape))

    residual = [node("Gemm", "x", "w", "b", to="u"), node("Relu", "u", to="v"), node("Add", "v", "x")]
    branches = [
        node("MatMul", "x", "w", to="u"),
        node("LeakyRelu", "x", to="v", alpha=0.3),
        node("Concat", "u", "v", to="c", axis=1),
        node("Transpose", "c", to="t"),
        node("Sub", "t", "s"),
    ]
    pooled = [
        node("Conv", "x", "k", "b", to="u", strides=[2, 1], pads=[1, 0, 1, 2], dilations=[1, 2], group=2),
        node("Relu", "u", to="v"),
        node("Flatten", "v", to="f"),
        node("Gemm", "f", "w", to="y", transB=1),
    ]
    return {
        "residual": (residual, {"w": r(3, 3), "b": r(3)}, (1, 3)),
        "branches": (branches, {"w": r(3, 3), "s": r(6, 1)}, (1, 3)),
        "convolution": (pooled, {"k": r(4, 1, 3, 2), "b": r(4), "w": r(3, 24)}, (1, 2, 4, 3)),
        "same": (
            [node("Conv", "x", "k", auto_pad="SAME_UPPER", strides=[2])],
            {"k": r(2, 2, 3)},
            (1, 2, 5),
        ),
        "alpha and beta": (
            [node("Gemm", "x", "w", "b", alpha=0.7, beta=-1.3, transA=1)],
            {"w": r(3, 2), "b": r(2)},
            (3, 1),
        ),
        "from the left": ([node("MatMul", "w", "x", to="u"), node("Neg", "u")], {"w": r(2, 3)}, (3, 1)),
        "normalised": (
            [
                node("Sub", "x", "m", to="u"),
                node("Div", "u", "s", to="v"),
                node("Mul", "t", "v", to="w"),
                node("Sub", "a", "w"),
            ],
            {"m": r(3), "s": r(3), "t": r(3), "a": r(1)},
            (1, 3),
        ),
        "sums": ([node("Sum", "x", "a", "x", to="u"), node("Relu", "u")], {"a": r(3)}, (1, 3)),
        "shapes": (
            [
                node("Unsqueeze", "x", "one", to="a"),
                node("Reshape", "a", "s", to="b"),
                node("Squeeze", "b", "one", to="c"),
                node("Identity", "c", to="d"),
                node("MatMul", "d", "w"),
            ],
            {"one": np.array([1]), "s": np.array([3, 1, 2]), "w": r(2, 2)},
            (1, 6),
        ),
        "constant": (
            [helper.make_node("Constant", [], ["c"], value_floats=[1.5, -2.25, 1.0 / 3.0]), node("Add", "x", "c")],
            {},
            (1, 3),
        ),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_the_error_of_every_operator_covers_what_numpy_computes(name):
    """Without slack for errors that are not there: the worst of the samples is above a hundredth of what is allowed."""
    nodes, weights, shape = cases()[name]
    model = make(nodes, weights, shape=shape, type=FLOAT)
    wide = make(nodes, weights, shape=shape, type=TensorProto.DOUBLE)
    for tensor in wide.graph.initializer:  # the same numbers
        if tensor.data_type == TensorProto.DOUBLE:
            tensor.CopyFrom(numpy_helper.from_array(f32(weights[tensor.name]).astype(np.float64), tensor.name))
    for made in wide.graph.node:
        for attribute in made.attribute if made.op_type == "Constant" else ():
            values = f32(attribute.floats).astype(np.float64)
            made.CopyFrom(helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(values)))
    net = load(model)
    (result,) = outputs(net, Box(-2.0, 3.0).sized(net.input_size))
    low, high, allowed = (np.ravel(v / 2**PLACES).astype(np.float64) for v in (result.low, result.high, result.error))
    rng, worst = np.random.default_rng(1), 0.0
    for _ in range(200):
        x = f32(rng.uniform(-2, 3, shape))
        truth = np.ravel(reference(wide, x.astype(np.float64)))
        found = np.ravel(reference(model, x)).astype(np.float64)
        rounding = 1e-13 * np.abs(truth).max()
        assert np.all((low - rounding <= truth) & (truth <= high + rounding))
        gap = np.abs(found - truth) - rounding
        assert np.all(gap <= allowed)
        worst = max(worst, float(np.max(gap / allowed)))
    assert worst > 0.01


@pytest.mark.parametrize("seed", range(8))
def test_affine_maps_enclose_what_they_should_and_little_more(seed):
    """Ranges, errors, masses and counts of one matrix product, against rationals; scales far apart."""
    rng = np.random.default_rng(seed)
    m, n = int(rng.integers(1, 6)), int(rng.integers(1, 300))
    w = f32(rng.standard_normal((m, n)) * 2.0 ** rng.uniform(-8, 8, (m, n)) * (rng.random((m, n)) < 0.8))
    low = units(f32(rng.standard_normal(n) * 2.0 ** rng.uniform(-9, 9)))
    width, carried = (units(np.abs(f32(rng.standard_normal(n)) * 2.0 ** rng.uniform(-20, 3))) for _ in range(2))
    x = Executed(low=low, high=low + width, carried=carried, mass=abs(low), depth=low * 0 + 3)
    y = contracted(x, w.astype(np.float64), lambda v, a: a @ v)
    exact = rationals(w)
    for i, row in enumerate(exact):
        ends = [sorted((a * u, a * v)) for a, u, v in zip(row, x.low, x.high, strict=True)]
        least, greatest = sum(e[0] for e in ends), sum(e[1] for e in ends)
        mass = sum(abs(a) * v for a, v in zip(row, x.magnitude, strict=True))
        error = sum(abs(a) * v for a, v in zip(row, x.error, strict=True))
        slack = mass / 2**14
        assert least - slack <= y.low[i] <= least
        assert greatest <= y.high[i] <= greatest + slack
        assert mass <= y.mass[i] <= mass + slack
        assert error <= y.carried[i] <= error + slack + 2**60
        assert y.depth[i] == sum(a != 0 for a in row)
        assert y.error[i] >= y.carried[i] + Fraction(y.depth[i], ROUNDINGS - y.depth[i]) * y.mass[i]


def test_weights_of_very_different_sizes_are_rounded_to_both_sides():
    """1 and 2^-60 do not fit into a common grid of 30 bits, and two of the latter count more than what is cut off x."""
    w, x = np.array([[1.0, 2.0**-60, 2.0**-60]]), 2.0 - 2.0**-23
    y = contracted(exactly(np.full(3, x)), w, lambda v, a: a @ v)
    exact = (1 + Fraction(2, 2**60)) * Fraction(x)
    assert y.low[0] <= exact * 2**PLACES <= y.high[0]
    assert exact * 2**PLACES <= y.mass[0]


FLUSHED: dict[str, tuple[list[Any], dict[str, Any], float, float]] = {
    "a weight": ([node("MatMul", "x", "w")], {"w": f32([[2.0**-127]])}, 1.0, 2.0**-127),
    "an operand": ([node("MatMul", "x", "w")], {"w": f32([[2.0**9]])}, 2.0**-127, 2.0**-118),
    "a product": ([node("MatMul", "x", "w")], {"w": f32([[2.0**-64]])}, 2.0**-63, 2.0**-127),
    "a product before its factor": (
        [node("Gemm", "x", "w", alpha=2.0**64)],
        {"w": f32([[2.0**-90]])},
        2.0**-61,
        2.0**-87,
    ),
    "a sum": ([node("Add", "x", "c")], {"c": f32([-(2.0**-126)])}, 1.5 * 2.0**-126, 2.0**-127),
    "a sign": ([node("Neg", "x")], {}, 2.0**-127, 2.0**-127),
    "a maximum": ([node("Relu", "x")], {}, 2.0**-127, 2.0**-127),
    "a slope": ([node("LeakyRelu", "x", alpha=2.0**-64)], {}, -(2.0**-63), 2.0**-127),
    "a multiple": ([node("Mul", "x", "c")], {"c": f32([2.0**-64])}, 2.0**-63, 2.0**-127),
    "a quotient": ([node("Div", "x", "c")], {"c": f32([2.0**64])}, 2.0**-63, 2.0**-127),
    "a dividend": ([node("Div", "x", "c")], {"c": f32([2.0**-9])}, 2.0**-127, 2.0**-118),
}
"""A number below 2^-126 that may become zero, and what is lost with it."""


@pytest.mark.parametrize("name", FLUSHED)
def test_subnormal_numbers_may_become_zero(name):
    nodes, weights, x, lost = FLUSHED[name]
    net = network(nodes, weights, shape=(1, 1))
    assert abs(net.evaluate(np.array([x]))[0]) == lost
    (error,) = errors(net, x, x)
    assert lost <= error <= 2**40 * Fraction(lost)


def test_values_cover_rational_arithmetic():
    """Sums, multiples, quotients and (leaky) ReLU of random intervals: ends, and the errors of one operation."""
    rng = np.random.default_rng(5)
    one = 2**PLACES
    for k in range(300):
        ends = np.sort(f32(rng.standard_normal(2) * 2.0 ** rng.uniform(-9, 9)))
        x = gathered([anywhere([float(ends[0])], [float(ends[1])])], np.array([0]))
        carried = int(Fraction(float(f32(abs(rng.standard_normal()) * 2.0 ** rng.uniform(-30, 1)))) * one)
        x = Executed(low=x.low, high=x.high, carried=x.carried + carried, mass=x.mass + carried, depth=x.depth + k % 4)
        c, slope = Fraction(float(f32(rng.standard_normal()))), Fraction(float(f32(rng.uniform(0, 2))))
        real = Fraction(float((ends[0], ends[1], rng.uniform(*ends))[int(rng.integers(3))]))
        error = Fraction(x.error[0], one)
        computed = nearest(real + error * Fraction(float(rng.choice([-1.0, 1.0, rng.uniform(-1, 1)]))))
        if abs(computed - real) > error:
            continue
        constant = np.array([float(c)])
        leaky = [v if v >= 0 else slope * v for v in (real, computed)]
        for y, truth, found in (
            (added(x, exactly(constant)), real + c, nearest(computed + c)),
            (added(exactly(constant), x), real + c, nearest(computed + c)),
            (scaled(x, constant), real * c, nearest(computed * c)),
            (scaled(x, constant, divide=True), real / c, nearest(computed / c)),
            (rectified(x), max(real, Fraction(0)), max(computed, Fraction(0))),
            (rectified(x, float(slope)), leaky[0], nearest(leaky[1])),
        ):
            assert y.low[0] <= truth * one <= y.high[0]
            assert abs(found - truth) * one <= y.error[0]
            assert abs(found) * one <= (y.mass if y.depth[0] == 0 else y.magnitude)[0]


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    "how", [{"pads": [1, 2, 0, 1]}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID", "strides": [2, 3]}]
)
def test_a_convolution_has_the_error_of_its_matrix(group, how):
    """Number for number: the taps that fall on the padding are no terms."""
    rng = np.random.default_rng(group)
    k = rng.integers(-3, 4, (4, 4 // group, 2, 3)).astype(np.float32)
    convolution = network(
        [node("Conv", "x", "k", to="u", group=group, **how), node("Flatten", "u")], {"k": k}, shape=(1, 4, 5, 6)
    )
    columns = [convolution.evaluate(column) for column in np.eye(120)]
    dense = network([node("Flatten", "x", to="u"), node("MatMul", "u", "w")], {"w": f32(columns)}, shape=(1, 4, 5, 6))
    assert errors(convolution, -1.0, 2.0) == errors(dense, -1.0, 2.0)
