"""The operators that the exact checker reads by itself, as steps of a tape, in exact arithmetic.

A handler takes a node and returns its outputs. What is not understood raises `Unreadable`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from lipmodel.certify import operators_folding as folding
from lipmodel.certify import operators_max as maxima
from lipmodel.certify import operators_moves as moves
from lipmodel.certify.functions import global_slopes, kind_of, values
from lipmodel.certify.intervals import between, ends, inverse, known
from lipmodel.certify.operands import (
    HOLDS,
    INT64,
    MAX_TENSOR,
    NARROW,
    ROUND_BITS,
    Array,
    Handler,
    Moving,
    Node,
    Value,
    constant,
    enclosed,
    moved,
    positions,
    rational,
    reals,
    tensor,
)
from lipmodel.certify.operators_resize import resize
from lipmodel.certify.operators_windows import average_pool, conv, conv_transpose
from lipmodel.certify.tape import Fixed, Kind, Unreadable, selection

OWN_DOMAIN = "lipmodel"
"""The operator domain of functions that ONNX has no operator for, as `Network.save` writes them."""
MAX_FOLDED = 500_000
"""Numbers, and products of numbers, that are computed from constants in one node."""


# ----------------------------------------------------------------------------------------------------- affine operators


def _contraction(node: Node, a: Value, a_at: Array, b: Value, b_at: Array) -> Value:
    """a b for (batches of) matrices given by the positions of their entries, at most one of them moving."""
    _real(node)
    if isinstance(a, Moving) and isinstance(b, Moving):
        raise Unreadable(f"the operator {node.op} of two tensors that move")
    shape = (*np.broadcast_shapes(a_at.shape[:-2], b_at.shape[:-2]), a_at.shape[-2], b_at.shape[-1])
    whole = (*shape, a_at.shape[-1])
    if a_at.shape[-1] != b_at.shape[-2] or prod(whole) > MAX_TENSOR:
        raise Unreadable("a matrix product that is too large, or that does not fit")
    if not isinstance(a, Moving) and not isinstance(b, Moving):
        _foldable(node, whole)
        return np.asarray(reals(a.ravel()[a_at]) @ reals(b.ravel()[b_at]))
    left, right = a_at[..., :, None, :], np.swapaxes(b_at, -1, -2)[..., None, :, :]
    port = 0 if isinstance(a, Moving) else 1
    x, w = node.moving(port), node.fixed(1 - port)
    at, weights = (left, right) if port == 0 else (right, left)
    rows = np.broadcast_to(np.arange(prod(shape)).reshape(*shape, 1), whole).ravel()
    columns, which = (np.broadcast_to(v, whole).ravel() for v in (at, weights))
    return node.weighted(x, w, which, rows, columns, shape)


def _foldable(node: Node, shape: Sequence[int]) -> None:
    """What is computed from constants alone is rational; Unreadable where that takes too long."""
    if prod(shape) > MAX_FOLDED:
        raise Unreadable(f"too much arithmetic on constants ({node.op})")


def _real(node: Node) -> None:
    if any(isinstance(v, np.ndarray) and v.dtype.kind not in "fO" for v in node.inputs):
        raise Unreadable(f"arithmetic on integers ({node.op})")


def _shaped(value: Value, shape: tuple[int, ...]) -> Value:
    return Moving(value.step, shape) if isinstance(value, Moving) else value.reshape(shape)


def _matmul(node: Node) -> Value:
    a, b = node.value(0), node.value(1)
    a_at, b_at = positions(a), positions(b)
    y = _contraction(node, a, a_at if a_at.ndim > 1 else a_at[None, :], b, b_at if b_at.ndim > 1 else b_at[:, None])
    shape = y.shape
    rows = shape[-2:-1] if a_at.ndim > 1 else ()
    columns = shape[-1:] if b_at.ndim > 1 else ()
    return _shaped(y, (*shape[:-2], *rows, *columns))


def _gemm(node: Node) -> Value:
    a, b = node.value(0), node.value(1)
    a_at, b_at = (positions(v).T if node.attributes[key] else positions(v) for v, key in ((a, "transA"), (b, "transB")))
    y = _multiplied(node, _contraction(node, a, a_at, b, b_at), np.array(node.attributes["alpha"]))
    if not node.given(2):
        return y
    return _total(node, [y, _multiplied(node, node.value(2), np.array(node.attributes["beta"]))], y.shape)


def _multiplied(node: Node, x: Value, factors: Array, *, divide: bool = False) -> Value:
    """x times (divided by) constants, broadcast against each other."""
    shape = np.broadcast_shapes(x.shape, factors.shape)
    if not isinstance(x, Moving):
        _foldable(node, shape)
        result = reals(x) / reals(factors) if divide else reals(x) * reals(factors)
        return reals(np.asarray(result))
    found = {v: inverse(known(v)) if divide else known(v) for v in set(factors.ravel().tolist())}
    return node.scale(node.broadcast(x, shape), [found[v] for v in np.broadcast_to(factors, shape).ravel().tolist()])


def _total(node: Node, terms: Sequence[Value], shape: tuple[int, ...]) -> Value:
    """The sum of tensors, each repeated to a shape."""
    if not any(isinstance(v, Moving) for v in terms):
        _foldable(node, shape)
        zero = rational(np.zeros(shape))
        return reals(np.asarray(sum((reals(v) for v in terms if not isinstance(v, Moving)), start=zero)))
    steps = []
    for v in terms:
        if isinstance(v, Moving):
            steps.append(node.broadcast(v, shape).step)
        else:
            steps.append(node.tape.still(prod(shape), constant(np.broadcast_to(v, shape))))
    return Moving(node.tape.sum(steps), shape)


def _of_integers(node: Node) -> Value | None:
    """Arithmetic on integers, which shapes are computed with; None for other operands."""
    terms = [v for v in node.inputs if isinstance(v, np.ndarray) and v.dtype.kind == "i"]
    if len(terms) < len(node.inputs):
        return None
    numbers: list[Any] = [v.astype(object) for v in terms]
    if node.op == "Div":  # rounded towards zero
        result = np.sign(numbers[0]) * np.sign(numbers[1]) * (abs(numbers[0]) // abs(numbers[1]))
    elif node.op == "Mul":
        result = prod(numbers)
    elif node.op in ("Sub", "Neg"):
        result = numbers[0] - numbers[1] if node.op == "Sub" else -numbers[0]
    else:
        result = sum(numbers)
    return np.array(result, dtype=np.int64)


def _sum(node: Node) -> Value:
    """Add, Sum and Sub."""
    whole = _of_integers(node)
    if whole is not None:
        return whole
    _real(node)
    terms = [node.value(port) for port in range(len(node.inputs))]
    if node.op == "Sub":
        terms[1] = _multiplied(node, terms[1], np.array(-1.0))
    return _total(node, terms, np.broadcast_shapes(*(v.shape for v in terms)))


def _times(node: Node) -> Value:
    """Mul and Div by constants, and Neg."""
    whole = _of_integers(node)
    if whole is not None:
        return whole
    _real(node)
    if node.op == "Neg":
        return _multiplied(node, node.value(0), np.array(-1.0))
    port = 1 if node.op == "Mul" and isinstance(node.value(1), Moving) else 0
    return _multiplied(node, node.value(port), node.fixed(1 - port), divide=node.op == "Div")


def _batch_normalization(node: Node) -> Value:
    if node.attributes.get("training_mode") or not node.attributes.get("spatial", 1):
        raise Unreadable("BatchNormalization in training mode or per entry")
    x, (gamma, beta, mean, variance) = node.moving(0), (node.fixed(port) for port in range(1, 5))
    factors, shifts = [], []
    for g, b, m, v in zip(*(rational(p).tolist() for p in (gamma, beta, mean, variance)), strict=True):
        total = v + Fraction(node.attributes["epsilon"])
        if total <= 0:
            raise Unreadable("a variance that is not positive")
        low, high = sorted(g * root for root in _inverse_root(total))
        least, most = sorted((b - m * low, b - m * high))
        factors.append((low, high))
        shifts.append((least, most))
    channel = np.broadcast_to(np.arange(len(factors)).reshape(-1, *[1] * (len(x.shape) - 2)), x.shape).ravel().tolist()
    return node.scale(x, [factors[k] for k in channel], Fixed(*enclosed([shifts[k] for k in channel])))


def _inverse_root(value: Fraction) -> tuple[Fraction, Fraction]:
    """An enclosure of value^(-1/2), exact where that is dyadic."""
    n, d = value.denominator, value.numerator  # the square of what is sought is n / d
    places = ROUND_BITS + max(0, (d.bit_length() - n.bit_length()) // 2)
    root = math.isqrt((n << 2 * places) // d)
    exact = root * root * d == n << 2 * places
    return Fraction(root, 1 << places), Fraction(root + (not exact), 1 << places)


# ------------------------------------------------------------------------------ operators that move entries, or nothing


def _layout(node: Node) -> Value:
    x = node.value(0)
    shape, at = x.shape, positions(x)
    if node.op == "Dropout" and node.given(2) and np.any(node.fixed(2, "b")):
        raise Unreadable("Dropout in training mode")
    if node.op == "Transpose":
        at = at.transpose(node.attributes["perm"] or None)
    elif node.op == "Flatten":
        axis = node.attributes["axis"]
        if not -len(shape) <= axis <= len(shape):
            raise Unreadable("Flatten along an axis that is not there")
        cut = axis if axis >= 0 else axis + len(shape)
        at = at.reshape(prod(shape[:cut]), prod(shape[cut:]))
    elif node.op == "Reshape":
        target = node.fixed(1, "i").tolist()
        copied = not node.attributes.get("allowzero")
        at = at.reshape([shape[k] if d == 0 and copied else d for k, d in enumerate(target)])
    elif node.op in ("Squeeze", "Unsqueeze"):
        axes = node.attributes.get("axes") or (node.fixed(1, "i").tolist() if node.given(1) else None)
        if node.op == "Squeeze":
            at = at.squeeze(None if axes is None else tuple(axes))
        else:
            at = np.expand_dims(at, tuple(axes or ()))
    return moved(node, x, at)


def _concat(node: Node) -> Value:
    values = [node.value(port) for port in range(len(node.inputs))]
    axis = node.attributes["axis"]
    fixed = [v for v in values if not isinstance(v, Moving)]
    if len(fixed) == len(values):
        if len({v.dtype.kind in "fO" for v in fixed}) > 1:
            raise Unreadable("constants of several types that are joined")
        return np.concatenate(fixed, axis=axis)
    owner = np.concatenate([np.full(v.shape, k) for k, v in enumerate(values)], axis=axis)
    steps = []
    for k, v in enumerate(values):
        index = np.full(owner.size, -1)
        index[np.flatnonzero(owner.ravel() == k)] = np.arange(prod(v.shape))
        steps.append(node.tape.linear(node.moving(k).step, selection(index.tolist(), prod(v.shape))))
    return Moving(node.tape.sum(steps), owner.shape)


def _cast(node: Node) -> Value:
    """To a type that has every number of the other, or, of constants, those that are cast."""
    x, to = node.value(0), node.attributes["to"]
    if node.types[0] == to or node.types[0] in HOLDS.get(to, ()):
        return x
    if isinstance(x, Moving) or to not in (*NARROW, INT64):
        raise Unreadable("Cast of a tensor to a type that has not all of its numbers")
    numbers = x.ravel().tolist()
    found = np.array([int(v) if to == INT64 else float(v) for v in numbers], dtype=NARROW.get(to, np.int64))
    if found.tolist() != numbers:
        raise Unreadable("Cast of a constant to a type that does not have it")
    return found.astype(np.int64 if to == INT64 else np.float64).reshape(x.shape)


def _constant(node: Node) -> Value:
    found = {key: value for key, value in node.attributes.items() if value is not None}
    if len(found) != 1 or not found.keys() <= {"value", "value_float", "value_floats", "value_int", "value_ints"}:
        raise Unreadable(f"a Constant given by {', '.join(found)}")
    ((key, value),) = found.items()
    if key == "value":
        return tensor(value)
    return np.array(value, dtype=np.float64 if "float" in key else np.int64)


# ---------------------------------------------------------------------------------------------------------- activations


def _activated(node: Node, kinds: Sequence[Kind]) -> Value:
    """Functions of the entries of the first input, one of them for all or one for each."""
    x = node.value(0)
    if not isinstance(x, Moving):
        return _of_constant(node, x, kinds)
    size = prod(x.shape)
    slopes = [global_slopes(kind) for kind in kinds] * (size if len(kinds) == 1 else 1)
    low, high = [a for a, _ in slopes], [b for _, b in slopes]
    each = kinds[0] if len(kinds) == 1 else kinds
    return Moving(node.tape.activation(x.step, node.name, low, high, each), x.shape)


def _of_constant(node: Node, x: Array, kinds: Sequence[Kind]) -> Value:
    """The same of a constant: a constant where it is rational, else enclosed."""
    _real(node)
    _foldable(node, x.shape)
    numbers = reals(x).ravel().tolist()
    each = list(kinds) * (len(numbers) if len(kinds) == 1 else 1)
    found = [values(kind, *ends(v)) for kind, v in zip(each, numbers, strict=True)]
    if node.op in folding.TRANSCENDENTAL or all(low == high for low, high in found):
        return reals(np.array([between(low, high) for low, high in found], dtype=object)).reshape(x.shape)
    return Moving(node.tape.still(x.size, Fixed(*enclosed(found))), x.shape)


def _activation(node: Node) -> Value:
    return _activated(node, [kind_of(node.op, node.attributes)])


def _prelu(node: Node) -> Value:
    slopes = np.broadcast_to(node.fixed(1), node.value(0).shape).ravel().tolist()
    return _activated(node, [Kind("LeakyRelu", (("alpha", v),)) for v in slopes])


def _clip(node: Node) -> Value:
    ends: list[Any] = [node.attributes.get(key) for key in ("min", "max")]
    if node.opset >= 11:
        ends = [node.fixed(port).reshape(()).item() if node.given(port) else None for port in (1, 2)]
    if ends == [None, None]:
        return node.value(0)
    least, most = (-math.inf if ends[0] is None else ends[0]), (math.inf if ends[1] is None else ends[1])
    return _activated(node, [Kind("Clip", (("min", least), ("max", most)))])


# fmt: off
_SCALAR = (
    "Abs", "Asinh", "Atan", "Celu", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish",
    "Relu", "Selu", "Shrink", "Sigmoid", "Sin", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
)
# fmt: on

OPERATORS: dict[str, Handler] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "BatchNormalization": _batch_normalization,
    "Constant": _constant,
    "ConstantOfShape": moves.constant_of_shape,
    "Concat": _concat,
    "Slice": moves.slice_,
    "Split": moves.split,
    "Expand": moves.expand,
    "Tile": moves.tile,
    "Pad": moves.pad,
    "Where": moves.where,
    "Trilu": moves.trilu,
    "Gather": moves.gather,
    "GatherElements": moves.gather_elements,
    "GatherND": moves.gather_nd,
    "Cast": _cast,
    "PRelu": _prelu,
    "Clip": _clip,
    **dict.fromkeys(("Add", "Sum", "Sub"), _sum),
    **dict.fromkeys(("Mul", "Div", "Neg"), _times),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), average_pool),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), moves.blocks),
    **dict.fromkeys(("ReduceSum", "ReduceMean"), moves.reduced),
    **dict.fromkeys(("Shape", "Size"), moves.shape),
    **dict.fromkeys(folding.COMPARISONS, folding.comparison),
    **dict.fromkeys(folding.LOGIC, folding.logic),
    **dict.fromkeys(folding.FUNCTIONS, folding.function),
    **dict.fromkeys(folding.BALLS, folding.enclosed_function),
    **maxima.OPERATORS,
    "Range": folding.range_,
    "Mod": folding.modulus,
    "Pow": folding.power,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Transpose"), _layout),
    **dict.fromkeys(_SCALAR, _activation),
}
"""The standard operators that are read, by operator type."""
own_operator: Handler = _activation
"""What is read of our own operator domain: functions by name, their parameters in hexadecimal."""
