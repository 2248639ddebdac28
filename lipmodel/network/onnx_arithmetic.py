"""Handlers of the affine ONNX operators: sums, products with constants, Gemm, MatMul, BatchNormalization."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.network import constants
from lipmodel.network.constants import Enclosed
from lipmodel.network.linear import Dense, Diagonal, LinearMap, Sparse, identity
from lipmodel.network.onnx_ops import (
    MAX_EXPANDED,
    Computed,
    Fixed,
    Node,
    Value,
    axis_of,
    broadcast_shape,
    flat,
    register_operator,
    widest,
)
from lipmodel.network.onnx_products import contracted, multiplied, reciprocal
from lipmodel.network.ops import Add

Array = np.ndarray[Any, Any]


def scaled(node: Node, x: Value, factor: Enclosed, suffix: str = "") -> Value:
    """x times a constant, broadcast against each other."""
    shape = broadcast_shape(x.shape, factor.shape)
    if isinstance(x, Fixed):
        return fixed(node, x.type, constants.multiply(_real(node, x), factor))
    x = node.broadcast(x, shape)
    factor = factor.broadcast(shape)
    if not factor.is_finite:
        node.refuse("non-finite", "a factor is not finite")
    if factor.radius is None and bool(np.all(factor.values == 1.0)):
        return x
    radius = None if factor.radius is None else flat(factor.radius)
    return node.linear(x, Diagonal(values=flat(factor.values), radius=radius), shape, suffix=suffix)


def added(node: Node, values: Sequence[Value]) -> Value:
    """The sum of tensors, broadcast against each other; the constants among them become a bias."""
    shape = broadcast_shape(*(v.shape for v in values))
    kept = [node.broadcast(v, shape) for v in values if isinstance(v, Computed)]
    terms = [_real(node, v) for v in values if isinstance(v, Fixed)]
    bias = reduce(constants.add, terms) if terms else None
    if not kept:
        assert bias is not None
        return fixed(node, widest(*(v.type for v in values)), bias)
    x = kept[0] if len(kept) == 1 else node.add(Add(), kept, shape, "" if bias is None else ".sum")
    if bias is None:
        return x
    if not bias.is_finite:
        node.refuse("non-finite", "a sum of constants is not finite")
    return node.linear(x, identity(x.size), shape, bias.broadcast(shape))


def negated(node: Node, x: Value, suffix: str = "") -> Value:
    return scaled(node, x, Enclosed(values=np.array(-1.0)), suffix)


def fixed(node: Node, type: int, real: Enclosed) -> Fixed:
    """A constant result; a Refusal where it is not finite."""
    if not real.is_finite:
        node.refuse("non-finite", "arithmetic on constants overflows, or divides by zero")
    return Fixed(type=type, real=real)


def _real(node: Node, x: Fixed) -> Enclosed:
    if x.real is None:
        node.refuse("dtype", f"{node.op_type} of integers and floating-point tensors")
    return x.real


def _of_integers(node: Node) -> Fixed | None:
    """The result where all operands are integer constants, else None."""
    values = [v for v in node.inputs if isinstance(v, Fixed) and v.whole is not None]
    if not values or len(values) != len(node.inputs):
        return None
    wholes = [np.asarray(v.whole) for v in values]
    if any(w.dtype == np.bool_ for w in wholes):
        node.refuse("dtype", f"{node.op_type} of booleans")
    broadcast_shape(*(w.shape for w in wholes))
    if node.op_type == "Div" and np.any(wholes[1] == 0):
        node.refuse("non-finite", "a division of integers by 0")
    found = reduce(_INTEGER[node.op_type], [w.astype(object) for w in wholes[1:]], wholes[0].astype(object))
    return integers(node, found if node.op_type != "Neg" else -found, values[0].type)


def _truncated(a: Array, b: Array) -> Array:
    """Division of integers, rounded towards zero."""
    return np.asarray(np.sign(a) * np.sign(b) * (abs(a) // abs(b)), dtype=object)


_INTEGER: dict[str, Callable[[Array, Array], Array]] = {
    "Add": operator.add,
    "Sum": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Neg": operator.mul,
    "Div": _truncated,
}


def integers(node: Node, values: Array, type: int) -> Fixed:
    """Python integers as an INT64 constant; a Refusal where they do not fit."""
    flat = [int(v) for v in np.asarray(values, dtype=object).ravel().tolist()]
    if any(not -(2**63) <= v < 2**63 for v in flat):
        node.refuse("dtype", "arithmetic on integers overflows")
    return Fixed(type=type, whole=np.array(flat, dtype=np.int64).reshape(np.shape(values)))


@register_operator("Add")
def _add(node: Node) -> Value:
    return _of_integers(node) or added(node, [node.real(0), node.real(1)])


@register_operator("Sum")
def _sum(node: Node) -> Value:
    return _of_integers(node) or added(node, [node.real(port) for port in range(len(node.inputs))])


@register_operator("Sub")
def _sub(node: Node) -> Value:
    return _of_integers(node) or added(node, [node.real(0), negated(node, node.real(1), ".negated")])


@register_operator("Neg")
def _neg(node: Node) -> Value:
    return _of_integers(node) or negated(node, node.real(0))


@register_operator("Mul")
def _mul(node: Node) -> Value:
    found = _of_integers(node)
    if found is not None:
        return found
    a, b = node.real(0), node.real(1)
    if isinstance(a, Computed) and isinstance(b, Computed):
        return multiplied(node, a, b)
    return scaled(node, a, _real(node, b)) if isinstance(b, Fixed) else scaled(node, b, _real(node, a))  # type: ignore[arg-type]


@register_operator("Div")
def _div(node: Node) -> Value:
    found = _of_integers(node)
    if found is not None:
        return found
    a, b = node.real(0), node.real(1)
    if isinstance(b, Computed):
        inverse = reciprocal(node, b, ".reciprocal")
        return multiplied(node, a, inverse) if isinstance(a, Computed) else scaled(node, inverse, _real(node, a))
    divisor = _real(node, b)
    if bool(np.any(divisor.values == 0.0)):
        node.refuse("non-finite", "a division by a constant that contains 0")
    return scaled(node, a, constants.reciprocal(divisor))


@register_operator("Gemm")
def _gemm(node: Node) -> Value:
    a, b = node.real(0), node.real(1)
    if len(a.shape) != 2 or len(b.shape) != 2:
        node.refuse("shape", f"Gemm takes matrices, not tensors of shapes {a.shape} and {b.shape}")
    a_at = a.positions.T if node.attributes["transA"] else a.positions
    b_at = b.positions.T if node.attributes["transB"] else b.positions
    alpha, beta = float(node.attributes["alpha"]), float(node.attributes["beta"])
    more = node.has(2) and beta != 0.0
    product = contraction(node, a, a_at, b, b_at, alpha, ".product" if more else "")
    if not more:
        return product
    c = scaled(node, node.real(2), Enclosed(values=np.array(beta)), ".scaled")
    if broadcast_shape(product.shape, c.shape) != product.shape:
        node.refuse("shape", f"a term of shape {c.shape} does not fit a product of shape {product.shape}")
    return added(node, [product, c])


@register_operator("MatMul")
def _matmul(node: Node) -> Value:
    a, b = node.real(0), node.real(1)
    if not a.shape or not b.shape:
        node.refuse("shape", "MatMul takes no scalars")
    a_at = a.positions if len(a.shape) > 1 else a.positions[None, :]
    b_at = b.positions if len(b.shape) > 1 else b.positions[:, None]
    product = contraction(node, a, a_at, b, b_at, 1.0, "")
    rows = product.shape[-2:-1] if len(a.shape) > 1 else ()
    columns = product.shape[-1:] if len(b.shape) > 1 else ()
    shape = product.shape[:-2] + rows + columns
    if isinstance(product, Fixed):
        return product.reshaped(shape)
    return Computed(node=product.node, shape=shape, type=product.type)


def contraction(node: Node, a: Value, a_at: Array, b: Value, b_at: Array, alpha: float, suffix: str) -> Value:
    """alpha times the product of two (batches of) matrices.

    a_at (..., M, K), b_at (..., K, N): the position in the flat tensor of every entry of the matrices.
    """
    if a_at.shape[-1] != b_at.shape[-2]:
        node.refuse("shape", f"the inner dimensions {a_at.shape[-1]} and {b_at.shape[-2]} differ")
    batch = broadcast_shape(a_at.shape[:-2], b_at.shape[:-2])
    shape = (*batch, a_at.shape[-2], b_at.shape[-1])
    factor = Enclosed(values=np.array(alpha))
    if isinstance(a, Fixed) and isinstance(b, Fixed):
        product = _product(_real(node, a), np.broadcast_to(a_at, (*batch, *a_at.shape[-2:])), _real(node, b), b_at)
        return scaled(node, fixed(node, widest(a.type, b.type), product), factor)
    if isinstance(a, Computed) and isinstance(b, Computed):
        return scaled(node, contracted(node, a, a_at, b, b_at, shape), factor, ".alpha")
    x, other = (a, b) if isinstance(a, Computed) else (b, a)
    assert isinstance(x, Computed)
    assert isinstance(other, Fixed)
    weights = _real(node, other)
    folded = constants.multiply(weights, factor)
    exact = folded.is_finite and (folded.radius is None) == (weights.radius is None)
    if exact and folded.radius is None:
        weights, factor = folded, Enclosed(values=np.array(1.0))
    if x is a:
        at = a_at[..., :, None, :]
        taken = weights.take(np.swapaxes(b_at, -1, -2)[..., None, :, :])
    else:
        at = np.swapaxes(b_at, -1, -2)[..., None, :, :]
        taken = weights.take(a_at[..., :, None, :])
    map = _matrix(node, at, taken, (*shape, a_at.shape[-1]), x.size)
    product_type = widest(a.type, b.type)
    y = node.linear(x, map, shape, suffix=suffix)
    y = Computed(node=y.node, shape=shape, type=product_type)
    return scaled(node, y, factor, ".alpha")


def _product(a: Enclosed, a_at: Array, b: Enclosed, b_at: Array) -> Enclosed:
    """The products of constant matrices, batch by batch."""
    batch = a_at.shape[:-2]
    b_at = np.broadcast_to(b_at, (*batch, *b_at.shape[-2:]))
    parts = [constants.matmul(a.take(a_at[k]), b.take(b_at[k])) for k in np.ndindex(batch)]
    shape = (*batch, a_at.shape[-2], b_at.shape[-1])
    if not parts:
        return Enclosed(values=np.zeros(shape))
    radius = None
    if any(p.radius is not None for p in parts):
        radius = np.stack([np.zeros(p.shape) if p.radius is None else p.radius for p in parts]).reshape(shape)
    return Enclosed(values=np.stack([p.values for p in parts]).reshape(shape), radius=radius)


def _matrix(node: Node, at: Array, weights: Enclosed, shape: tuple[int, ...], columns: int) -> LinearMap:
    """The matrix whose row (..., i, j) has weights[..., i, j, k] in column at[..., i, j, k]; shape (..., M, N, K)."""
    rows, terms = prod(shape[:-1]), shape[-1]
    if rows * terms > MAX_EXPANDED and weights.values.size != rows * terms:
        node.refuse("size-limit", f"a product that expands to {rows * terms} weights; the limit is {MAX_EXPANDED}")
    if terms == columns and weights.values.size == rows * terms and at.size == columns and weights.radius is None:
        matrix = np.empty((rows, columns))
        matrix[:, at.ravel()] = weights.values.reshape(rows, terms)
        return Dense(weights=matrix)
    index = np.broadcast_to(at, shape).reshape(-1)
    pointers = np.arange(0, rows * terms + 1, terms)

    def csr(values: Array) -> Any:
        data = np.array(np.broadcast_to(values, shape)).reshape(-1)
        matrix = sp.csr_array((data, index.copy(), pointers.copy()), shape=(rows, columns))
        matrix.sort_indices()
        return matrix

    return Sparse(weights=csr(weights.values), radius=None if weights.radius is None else csr(weights.radius))


def reduced_axes(node: Node, rank: int) -> list[int]:
    """The axes of a reduction, in order: an attribute, or an input in later operator sets; all where none is given."""
    axes = node.attributes.get("axes")
    if axes is None and node.has(1):
        axes = node.integers(1, "list of axes")
    if axes is None or not len(axes):
        axes = [] if node.attributes.get("noop_with_empty_axes", 0) else range(rank)
    return sorted({axis_of(int(a), rank) for a in axes})


def _reduce(node: Node) -> Value:
    """ReduceSum and ReduceMean."""
    x = node.value(0)
    axes, keep = reduced_axes(node, len(x.shape)), bool(node.attributes["keepdims"])
    if not axes:
        return x
    kept = tuple(1 if k in axes else d for k, d in enumerate(x.shape))
    shape = kept if keep else tuple(d for k, d in enumerate(x.shape) if k not in axes)
    if isinstance(x, Fixed) and x.whole is not None:
        total = np.asarray(np.asarray(x.whole).astype(object).sum(axis=tuple(axes)), dtype=object).reshape(shape)
        if node.op_type == "ReduceMean":
            node.refuse("dtype", "ReduceMean of integers")
        return integers(node, total, x.type)
    x = node.real(0)
    count = prod(x.shape[k] for k in axes)
    part = constants.reciprocal(Enclosed(values=np.array(float(count))))
    mean = node.op_type == "ReduceMean"
    if isinstance(x, Fixed):
        summed = fixed(node, x.type, constants.total(_real(node, x), tuple(axes)).reshaped(shape))
        return scaled(node, summed, part) if mean else summed
    places = np.broadcast_to(np.arange(prod(kept)).reshape(kept), x.shape).ravel()
    node.builder.reserve(x.size)
    ones = sp.csr_array((np.ones(x.size), (places, np.arange(x.size))), shape=(prod(kept), x.size))
    y = node.linear(x, Sparse(weights=ones), shape, suffix=".total" if mean else "")
    return scaled(node, y, part) if mean else y


register_operator("ReduceSum")(_reduce)
register_operator("ReduceMean")(_reduce)


@register_operator("BatchNormalization")
def _batch_normalization(node: Node) -> Value:
    if node.attributes.get("training_mode", 0) or any(node.outputs[1:]):
        node.refuse("stochastic", "BatchNormalization in training mode", "export the model for inference")
    if not node.attributes.get("spatial", 1):
        node.refuse("attribute", "BatchNormalization with spatial = 0 is not supported")
    x = node.computed(0)
    if len(x.shape) < 2:
        node.refuse("shape", f"BatchNormalization takes tensors of two dimensions or more, not {x.shape}")
    channels = x.shape[1]
    parts = [node.constant(port, what) for port, what in enumerate(("scale", "B", "mean", "variance"), start=1)]
    if any(p.shape != (channels,) for p in parts):
        node.refuse("shape", f"the parameters have shapes {[p.shape for p in parts]}; there are {channels} channels")
    factor, bias = normalisation(node, *parts, epsilon=float(node.attributes["epsilon"]))
    channel = np.broadcast_to(np.arange(channels).reshape(-1, *[1] * (len(x.shape) - 2)), x.shape)
    y = scaled(node, x, factor.take(channel), ".scaled")
    return added(node, [y, Fixed(type=x.type, real=bias.take(channel))])


def normalisation(
    node: Node, gamma: Enclosed, beta: Enclosed, mean: Enclosed, variance: Enclosed, *, epsilon: float
) -> tuple[Enclosed, Enclosed]:
    """Enclosures of gamma / sqrt(variance + epsilon) and of beta - mean times that, per channel."""
    total = constants.add(variance, Enclosed(values=np.array(epsilon)))
    if not np.all(total.values - (0.0 if total.radius is None else total.radius) > 0.0):
        node.refuse("non-finite", "the variance plus epsilon is not positive")
    added_epsilon = np.full(variance.shape, epsilon)
    parts = (gamma, variance, Enclosed(values=added_epsilon))
    factor = constants.pointwise(lambda g, v, e: g / (v + e).sqrt(), *parts)
    bias = constants.pointwise(lambda b, m, g, v, e: b - m * (g / (v + e).sqrt()), beta, mean, *parts)
    return factor, bias
