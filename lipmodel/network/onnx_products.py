"""Handlers of what has a Lipschitz constant on bounded domains only: powers, and products of tensors that vary.

Mul, Div, MatMul and Gemm with one constant operand are affine (`onnx_arithmetic`); these are called from there.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import LipmodelError, NotLipschitz
from lipmodel.network.linear import Sparse
from lipmodel.network.onnx_ops import MAX_TENSOR, Computed, Fixed, Node, Value, broadcast_shape
from lipmodel.network.ops import Elementwise, Part, Product, elementwise

Array = np.ndarray[Any, Any]


def _activation(node: Node, name: str, **params: float) -> Any:
    from lipmodel.activations import activation

    try:
        return activation(name, **params)
    except NotLipschitz as error:
        node.refuse("non-lipschitz", str(error))
    except LipmodelError as error:
        node.refuse("attribute", str(error))


def multiplied(node: Node, a: Computed, b: Computed, suffix: str = "") -> Computed:
    """a b, broadcast against each other; one activation where that is what they make."""
    shape = broadcast_shape(a.shape, b.shape)
    for x, gate in ((a, b), (b, a)) if a.shape == b.shape else ():
        known = _gated(node, x, gate)
        if known is not None:
            return node.add(elementwise(known, x.size), [x], shape, suffix)
    left, right = (node.broadcast(x, shape, f"{suffix}.{side}") for x, side in ((a, "left"), (b, "right")))
    return node.add(Product(), [left, right], shape, suffix)


def _gated(node: Node, x: Computed, gate: Computed) -> Any:
    """The activation that x times the gate is: a square, x sigmoid(x), x tanh(softplus(x)); None if it is none."""
    if gate.node == x.node:
        return _activation(node, "Pow", exponent=2.0)
    names: list[str] = []
    graph, at = node.builder.graph, gate.node
    while at != x.node and len(names) < 2:
        op = graph.nodes[at]["op"]
        if not isinstance(op, Elementwise) or len(op.parts) != 1:
            return None
        names.append(op.parts[0].activation.name)
        (at,) = graph.predecessors(at)
    if at == x.node and names == ["Sigmoid"]:
        return _activation(node, "Swish", beta=1.0)
    return _activation(node, "Mish") if at == x.node and names == ["Tanh", "Softplus"] else None


def reciprocal(node: Node, x: Computed, suffix: str = "") -> Computed:
    """1 / x."""
    return node.add(elementwise(_activation(node, "Reciprocal"), x.size), [x], x.shape, suffix)


def contracted(node: Node, a: Computed, a_at: Array, b: Computed, b_at: Array, shape: tuple[int, ...]) -> Computed:
    """The product of two (batches of) computed matrices: all products of entries, then sums.

    a_at (..., M, K), b_at (..., K, N): the position in the flat tensor of every entry; shape: of the result.
    """
    terms = a_at.shape[-1]
    every = (*shape, terms)
    if prod(every) > MAX_TENSOR:
        node.refuse("size-limit", f"a product that expands to {prod(every)} terms; the limit is {MAX_TENSOR}")
    left = np.broadcast_to(a_at[..., :, None, :], every)
    right = np.broadcast_to(np.swapaxes(b_at, -1, -2)[..., None, :, :], every)
    products = node.add(Product(), [node.select(a, left, ".left"), node.select(b, right, ".right")], every, ".products")
    rows = np.repeat(np.arange(prod(shape)), terms)
    ones = sp.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(prod(shape), len(rows)))
    return node.linear(products, Sparse(weights=ones), shape)


def powers(node: Node, x: Computed, exponent: Fixed) -> Value:
    """x to constant powers."""
    real = np.asarray(exponent.whole, dtype=np.float64) if exponent.real is None else exponent.real.values
    if exponent.real is not None and exponent.real.radius is not None:
        node.refuse("attribute", "the exponent is the rounded result of a computation")
    shape = broadcast_shape(x.shape, real.shape)
    x = node.broadcast(x, shape)
    values, which = np.unique(np.broadcast_to(real, shape).ravel(), return_inverse=True)
    if len(values) == 1 and values[0] == 1.0:
        return x
    if np.any(values == 0.0):
        node.refuse("attribute", "a power with the exponent 0")
    parts = [
        Part(activation=_activation(node, "Pow", exponent=float(v)), index=np.flatnonzero(which == k))
        for k, v in enumerate(values)
    ]
    return node.add(Elementwise(parts=tuple(parts)), [x], shape)
