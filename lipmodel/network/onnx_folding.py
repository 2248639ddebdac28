"""Handlers of the ONNX operators that only constants go through: shapes, ranges, comparisons, arithmetic on them.

Integers are exact. Floating-point results are the real numbers that the graph says, enclosed where they are no binary
floats; a comparison or rounding that the enclosure does not decide is refused. Nothing is run by a reference runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto

from lipmodel.network import constants
from lipmodel.network.constants import Enclosed
from lipmodel.network.onnx_arithmetic import fixed, integers
from lipmodel.network.onnx_file import decode, type_name
from lipmodel.network.onnx_nodes import unsupported_operator
from lipmodel.network.onnx_ops import MAX_TENSOR, Computed, Fixed, Node, Value, broadcast_shape, register_operator
from lipmodel.network.onnx_products import powers
from lipmodel.network.onnx_shapes import fixed_array

Array = np.ndarray[Any, Any]

MAX_BALLS = 10**6
"""Entries of a constant beyond which no ball arithmetic is done on it."""
BALL = 100
"""What a ball counts as among the constants of a file: it takes as long."""


def whole(array: Any) -> Fixed:
    """An INT64 constant."""
    return Fixed(type=TensorProto.INT64, whole=np.asarray(array, dtype=np.int64))


# -------------------------------------------------------------------------------------------------- shapes and ranges


@register_operator("Shape")
def _shape(node: Node) -> Value:
    rank = len(node.value(0).shape)
    start, end = node.attributes.get("start", 0) or 0, node.attributes.get("end")
    return whole(node.value(0).shape[slice(int(start), rank if end is None else int(end))])


@register_operator("Size")
def _size(node: Node) -> Value:
    return whole(prod(node.value(0).shape))


@register_operator("ConstantOfShape")
def _constant_of_shape(node: Node) -> Value:
    shape = tuple(node.integers(0, "shape"))
    if any(d < 0 for d in shape):
        node.refuse("shape", f"a tensor of shape {shape}")
    if prod(shape) > MAX_TENSOR:
        node.refuse("size-limit", f"a constant of shape {shape}; the limit is {MAX_TENSOR} entries")
    given = node.attributes.get("value")
    if given is None:
        return Fixed(type=TensorProto.FLOAT, real=Enclosed(values=np.zeros(shape)))
    value = decode(given, node.file, f"{node.outputs[0]} (ConstantOfShape)")
    if value.size != 1:
        node.refuse("attribute", f"the value has {value.size} entries")
    return fixed_array(np.full(shape, value.reshape(())), given.data_type)


@register_operator("Range")
def _range(node: Node) -> Value:
    ends = [node.fixed(port, what) for port, what in enumerate(("start", "limit", "step"))]
    if any(e.whole is None or e.whole.dtype == np.bool_ for e in ends):
        numbers = [node.scalar(port, what) for port, what in enumerate(("start", "limit", "step"))]
        if any(not v.is_integer() for v in numbers):
            node.refuse("dtype", "a Range of numbers that are not whole")
        start, limit, step = map(int, numbers)
    else:
        start, limit, step = (_one(node, e) for e in ends)
    if step == 0:
        node.refuse("attribute", "a Range with step 0")
    count = max(0, -((start - limit) // step) if step > 0 else -((limit - start) // -step))
    if count > MAX_TENSOR:
        node.refuse("size-limit", f"a Range of {count} entries; the limit is {MAX_TENSOR}")
    found = np.array([start + k * step for k in range(count)], dtype=np.int64)
    return (
        Fixed(type=ends[0].type, whole=found)
        if ends[0].whole is not None
        else fixed_array(found.astype(np.float64), ends[0].type)
    )


def _one(node: Node, value: Fixed) -> int:
    array = np.asarray(value.whole)
    if array.size != 1:
        node.refuse("attribute", f"one number is needed, not {array.size}")
    return int(array.reshape(()))


# ------------------------------------------------------------------------------------------------------ comparisons


def _all_fixed(node: Node) -> list[Fixed]:
    """The inputs, all of them constant; a Refusal for an operator that tensors that vary cannot go through."""
    found = []
    for port in range(len(node.inputs)):
        value = node.value(port)
        if isinstance(value, Computed):
            raise unsupported_operator(node.op_type)
        found.append(value)
    return found


_COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "Equal": np.equal,
    "Less": np.less,
    "Greater": np.greater,
    "LessOrEqual": np.less_equal,
    "GreaterOrEqual": np.greater_equal,
}
_LOGIC: dict[str, Callable[..., Array]] = {
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Not": np.logical_not,
}


def _compare(node: Node) -> Value:
    a, b = _all_fixed(node)
    broadcast_shape(a.shape, b.shape)
    if (a.real is None) != (b.real is None):
        node.refuse("dtype", f"{type_name(a.type)} and {type_name(b.type)} are compared")
    left, right = (np.asarray(v.whole) if v.real is None else _exactly(node, v) for v in (a, b))
    return Fixed(type=TensorProto.BOOL, whole=_COMPARISONS[node.op_type](left, right))


def _decide(node: Node) -> Value:
    given = _all_fixed(node)
    broadcast_shape(*(v.shape for v in given))
    if any(v.whole is None or v.whole.dtype != np.bool_ for v in given):
        node.refuse("dtype", f"{node.op_type} of {', '.join(type_name(v.type) for v in given)}")
    return Fixed(type=TensorProto.BOOL, whole=np.asarray(_LOGIC[node.op_type](*(v.whole for v in given))))


def _exactly(node: Node, value: Fixed) -> Array:
    if value.real is None or value.real.radius is not None:
        node.refuse("dtype", f"{node.op_type} of a constant that is only known between bounds")
    return value.real.values


for _name in _COMPARISONS:
    register_operator(_name)(_compare)
for _name in _LOGIC:
    register_operator(_name)(_decide)


# ------------------------------------------------------------------------------------------------------- functions


_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.rint,
    "Sign": np.sign,
}


def _rounding(node: Node) -> Value:
    (x,) = _all_fixed(node)
    if x.real is None:
        return Fixed(type=x.type, whole=np.sign(np.asarray(x.whole)) if node.op_type == "Sign" else x.whole)
    return fixed_array(_ROUNDINGS[node.op_type](_exactly(node, x)), x.type)


for _name in _ROUNDINGS:
    register_operator(_name)(_rounding)


@register_operator("Mod")
def _mod(node: Node) -> Value:
    a, b = _all_fixed(node)
    broadcast_shape(a.shape, b.shape)
    if a.whole is None or b.whole is None or node.attributes.get("fmod", 0) or np.any(np.asarray(b.whole) == 0):
        node.refuse("dtype", "Mod of constants that are not integers, with fmod, or by 0")
    return Fixed(type=a.type, whole=np.asarray(a.whole) % np.asarray(b.whole))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Sqrt": lambda x: x.sqrt(),
    "Exp": lambda x: x.exp(),
    "Log": lambda x: x.log(),
    "Sin": lambda x: x.sin(),
    "Cos": lambda x: x.cos(),
    "Tan": lambda x: x.tan(),
    "Reciprocal": lambda x: 1 / x,
    "Abs": abs,
}
"""What is folded where it is applied to a constant, in ball arithmetic."""


def fold_function(node: Node) -> Fixed:
    """A function of one constant, enclosed."""
    (x,) = _all_fixed(node)
    if x.real is None:
        node.refuse("dtype", f"{node.op_type} of {type_name(x.type)}")
    if x.size > MAX_BALLS:
        node.refuse("size-limit", f"{node.op_type} of {x.size} constants; the limit is {MAX_BALLS}")
    node.file.constants.fold(BALL * x.size)
    return fixed(node, x.type, constants.pointwise(FUNCTIONS[node.op_type], x.real))


register_operator("Tan")(fold_function)


@register_operator("Pow")
def _pow(node: Node) -> Value:
    x, power_of_x = node.value(0), node.value(1)
    if isinstance(x, Computed) and isinstance(power_of_x, Fixed):
        return powers(node, node.computed(0), power_of_x)
    base, exponent = _all_fixed(node)
    shape = broadcast_shape(base.shape, exponent.shape)
    if base.whole is not None and exponent.whole is not None:
        if exponent.size and not 0 <= np.asarray(exponent.whole).min() <= np.asarray(exponent.whole).max() <= 64:
            node.refuse("dtype", "a power of integers that is not between 0 and 64")
        whole_powers = np.asarray(base.whole).astype(object) ** np.asarray(exponent.whole).astype(object)
        return integers(node, np.broadcast_to(whole_powers, shape), base.type)
    if base.real is None or prod(shape) > MAX_BALLS:
        node.refuse("dtype", f"a power of {type_name(base.type)} constants")
    node.file.constants.fold(BALL * prod(shape))
    power = exponent.real or Enclosed(values=np.asarray(exponent.whole).astype(np.float64))
    if power.radius is None and np.all(power.values == np.round(power.values)) and np.abs(power.values).max() <= 64:
        whole_power = np.broadcast_to(power.values, shape)
        real = constants.pointwise(
            lambda x, y: x ** int(float(y.mid())), base.real.broadcast(shape), Enclosed(values=whole_power)
        )
    else:
        real = constants.pointwise(lambda x, y: x**y, base.real.broadcast(shape), power.broadcast(shape))
    return fixed(node, base.type, real)
