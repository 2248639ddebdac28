"""Small float32 networks and what is stated about them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from onnx_models import make

import lipmodel as lm
from lipmodel.certify.execution import float32_error
from lipmodel.certify.execution_graph import outputs
from lipmodel.certify.execution_values import PLACES
from lipmodel.network.onnx_import import load
from lipmodel.spec import Box, Spec

FLOAT = TensorProto.FLOAT
BIG = 2.0**24


def f32(values: Any) -> Any:
    return np.asarray(values, dtype=np.float32)


def network(nodes: list[Any], weights: dict[str, Any] | None = None, **kwargs: Any) -> lm.Network:
    kwargs.setdefault("type", FLOAT)
    return load(make(nodes, weights, **kwargs))


def node(op: str, *inputs: str, to: str = "y", name: str = "", **attributes: Any) -> Any:
    return helper.make_node(op, list(inputs), [to], name=name or f"the_{op}", **attributes)


def errors(net: lm.Network, lo: Any, hi: Any) -> list[Fraction]:
    """The proved error of every output."""
    found = outputs(net, Box(lo, hi).sized(net.input_size))
    return [Fraction(e, 2**PLACES) for x in found for e in x.error.ravel()]


def eps(net: lm.Network, lo: Any, hi: Any, **kwargs: Any) -> float:
    return float32_error(net, Spec(domain=Box(lo, hi).sized(net.input_size), **kwargs))


def chain(weights: list[Any], biases: list[Any], *, gemm: bool, **kwargs: Any) -> lm.Network:
    """Affine layers with ReLU between them; weights (outputs, inputs)."""
    nodes, stored, last = [], {}, "x"
    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        end = "y" if k + 1 == len(weights) else f"v{k}"
        stored |= {f"w{k}": f32(w) if gemm else f32(w).T, f"b{k}": f32(b)}
        if gemm:
            nodes.append(node("Gemm", last, f"w{k}", f"b{k}", to=end, transB=1))
        else:
            nodes += [node("MatMul", last, f"w{k}", to=f"u{k}"), node("Add", f"u{k}", f"b{k}", to=end)]
        if end != "y":
            nodes.append(node("Relu", end, to=f"r{k}"))
            last = f"r{k}"
    return network(nodes, stored, shape=(1, np.shape(weights[0])[1]), **kwargs)
