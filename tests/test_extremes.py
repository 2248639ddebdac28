"""Numbers at the edge of the range of floats, and formulations that write where they should only read."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
import scipy.sparse as sp
from onnx import TensorProto, helper, numpy_helper

import lipmodel as lm
from lipmodel.ranges.enclosure import MatrixEnclosure


def test_a_sparse_product_keeps_what_underflows():
    # the center cancels to zero and the radius would underflow: the entry must not vanish from the product
    left = MatrixEnclosure(center=sp.csr_array((1, 1)), radius=sp.csr_array(np.array([[2.0**-852]])))
    right = MatrixEnclosure(center=sp.csr_array(np.array([[2.0**-479]])))
    product = left @ right
    assert product.dense().radius[0, 0] >= 2.0**-1074
    scaled = MatrixEnclosure(center=sp.csr_array(np.array([[2.0**-600]]))).scaled(2.0**-600)
    assert scaled.dense().radius[0, 0] > 0.0


@pytest.mark.parametrize("factors", [[2.0**-479, 2.0**1000, 2.0**1000], [2.0**-479, *[2.0**30] * 70]])
def test_no_bound_is_lost_to_underflow(factors, tmp_path):
    s = 2.0**-400
    p, q, r, t = (1 + 2.0**-40) * s, (1 + 2.0**-39) * s, (1 + 2.0**-40) * s, s
    tensors = [numpy_helper.from_array(np.array([r, t]).reshape(2, 1, 1), "K1")]
    tensors.append(numpy_helper.from_array(np.array([p, -q]).reshape(1, 2, 1), "K2"))
    nodes = [helper.make_node("Conv", ["x", "K1"], ["a"]), helper.make_node("Conv", ["a", "K2"], ["b0"])]
    for i, f in enumerate(factors):
        tensors.append(numpy_helper.from_array(np.array([f]), f"f{i}"))
        nodes.append(helper.make_node("Mul", [f"b{i}", f"f{i}"], [f"b{i + 1}"]))
    last = f"b{len(factors)}"
    ends = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [1, 1, 1]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    truth = abs(Fraction(p) * Fraction(r) - Fraction(q) * Fraction(t))
    for f in factors:
        truth *= Fraction(f)
    result = lm.solve(path, "product", witness=False)
    assert result.bound == np.inf or Fraction(result.bound) >= truth


def test_the_default_limits_of_old_clips_are_limits(tmp_path):
    nodes = [helper.make_node("Clip", ["x"], ["c"]), helper.make_node("Sub", ["c", "x"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [1, 1]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 10)], ir_version=5
    )
    path = tmp_path / "clip.onnx"
    onnx.save(model, path)
    assert lm.solve(path, "product", witness=False).bound >= 1.0


class Popping(lm.Formulation):
    name, norms = "popping", {("2", "2")}

    def build(self, system, spec):
        system.output.blocks.pop(system.signals[0], None)


class Writing(lm.Formulation):
    name, norms = "writing", {("2", "2")}

    def build(self, system, spec):
        system.activations[0].beta[:] = 0.5


@pytest.mark.parametrize("formulation", [Popping, Writing])
def test_a_formulation_cannot_change_the_system(formulation):
    net = lm.from_weights([np.eye(2), np.ones((1, 2))])
    with pytest.raises(lm.UsageError, match="failed in build"):
        lm.solve(net, formulation, witness=False)
