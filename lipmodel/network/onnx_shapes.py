"""Handlers of the ONNX operators that move entries about, or do nothing."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto

from lipmodel.network.constants import Enclosed
from lipmodel.network.onnx_file import constant_key, decode, type_name
from lipmodel.network.onnx_ops import (
    Computed,
    Fixed,
    Node,
    Value,
    axis_of,
    is_float,
    register_operator,
)
from lipmodel.network.ops import Concat

Array = np.ndarray[Any, Any]


def reshaped(x: Value, shape: tuple[int, ...]) -> Value:
    """The same entries in the same order, in another shape."""
    if isinstance(x, Fixed):
        return x.reshaped(shape)
    return Computed(node=x.node, shape=shape, type=x.type)


def gathered(node: Node, x: Value, index: Array) -> Value:
    """The entries of x at `index` (positions in the flat tensor), in the shape of `index`."""
    return x.take(index) if isinstance(x, Fixed) else node.select(x, index)


@register_operator("Constant")
def _constant(node: Node) -> Value:
    given = {name: value for name, value in node.attributes.items() if value is not None}
    if len(given) != 1:
        node.refuse("attribute", f"Constant needs one value, not {len(given)}")
    ((name, value),) = given.items()
    if name == "value":
        array = decode(value, node.file, constant_key(node.outputs[0]))
        return fixed_array(array, value.data_type)
    if name in ("value_float", "value_floats"):
        return fixed_array(np.array(value, dtype=np.float64), TensorProto.FLOAT)
    if name in ("value_int", "value_ints"):
        return fixed_array(np.array(value, dtype=np.int64), TensorProto.INT64)
    node.refuse("tensor-encoding" if name == "sparse_value" else "dtype", f"{name} is not supported")


def fixed_array(array: Array, type: int) -> Fixed:
    """A decoded tensor as a constant."""
    if is_float(type):
        return Fixed(type=type, real=Enclosed(values=array))
    return Fixed(type=type, whole=array)


@register_operator("Identity")
def _identity(node: Node) -> Value:
    return node.value(0)


@register_operator("Dropout")
def _dropout(node: Node) -> Value:
    if node.has(2):
        training = node.fixed(2, "training mode")
        if training.whole is None or training.whole.size != 1:
            node.refuse("attribute", "the training mode must be one boolean")
        if bool(training.whole.ravel()[0]):
            node.refuse("stochastic", "Dropout in training mode", "export the model for inference")
    return node.value(0)


_WIDENING = {
    (TensorProto.FLOAT16, TensorProto.FLOAT),
    (TensorProto.BFLOAT16, TensorProto.FLOAT),
    (TensorProto.FLOAT16, TensorProto.DOUBLE),
    (TensorProto.BFLOAT16, TensorProto.DOUBLE),
    (TensorProto.FLOAT, TensorProto.DOUBLE),
}
"""Casts that change no number; between the formats of 16 bits both lose some."""


@register_operator("Cast")
def _cast(node: Node) -> Value:
    x, to = node.value(0), int(node.attributes["to"])
    if isinstance(x, Computed):
        if not is_float(to):
            node.refuse("non-lipschitz", f"a computed tensor is cast to {type_name(to)}, which is not continuous")
        if x.type != to and (x.type, to) not in _WIDENING:
            node.refuse("dtype", f"a computed tensor is rounded from {type_name(x.type)} to {type_name(to)}")
        return Computed(node=x.node, shape=x.shape, type=to)
    return _cast_constant(node, x, to)


def _cast_constant(node: Node, x: Fixed, to: int) -> Fixed:
    values = x.real.values if x.real is not None else np.asarray(x.whole)
    if x.type == to:
        return x
    if x.real is not None and x.real.radius is not None:
        node.refuse("dtype", "a computed constant is rounded by a Cast")
    if is_float(to):
        narrow = {TensorProto.FLOAT16: np.float16, TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64}
        if to not in narrow:
            node.refuse("dtype", f"a constant is cast to {type_name(to)}")
        with np.errstate(over="ignore"):
            result = values.astype(narrow[to]).astype(np.float64)
    elif to == TensorProto.INT64:
        if values.size and float(np.max(np.abs(values))) >= 2.0**62:
            node.refuse("dtype", "a constant is beyond the range of INT64")
        result = values.astype(np.int64)
    else:
        node.refuse("dtype", f"a constant is cast to {type_name(to)}")
    if not np.array_equal(result, values):
        node.refuse("dtype", f"a constant is not exact in {type_name(to)}")
    return fixed_array(result, to)


@register_operator("Flatten")
def _flatten(node: Node) -> Value:
    x = node.value(0)
    axis, rank = int(node.attributes["axis"]), len(x.shape)
    if not -rank <= axis <= rank:
        node.refuse("attribute", f"there is no axis {axis} in a tensor of {rank} dimensions")
    axis += rank if axis < 0 else 0
    return reshaped(x, (prod(x.shape[:axis]), prod(x.shape[axis:])))


@register_operator("Reshape")
def _reshape(node: Node) -> Value:
    x = node.value(0)
    target = node.integers(1, "target shape")
    zero_is_zero = bool(node.attributes.get("allowzero", 0))
    if target.count(-1) > 1 or any(d < -1 for d in target):
        node.refuse("shape", f"the target shape {target} has more than one unknown dimension, or a negative one")
    shape = []
    for axis, d in enumerate(target):
        if d == 0 and not zero_is_zero:
            if axis >= len(x.shape):
                node.refuse("shape", f"the target shape {target} copies dimension {axis} of {x.shape}")
            d = x.shape[axis]
        shape.append(d)
    if -1 in shape:
        rest = prod(d for d in shape if d != -1)
        if rest == 0 or x.size % rest:
            node.refuse("shape", f"{x.size} entries do not fit the target shape {target}")
        shape[shape.index(-1)] = x.size // rest
    if prod(shape) != x.size:
        node.refuse("shape", f"{x.size} entries do not fit the target shape {target}")
    return reshaped(x, tuple(shape))


def _axes(node: Node, rank: int) -> list[int] | None:
    """The axes of Squeeze or Unsqueeze: an attribute before operator set 13, an input from there on."""
    axes = node.attributes.get("axes")
    if axes is None and node.has(1):
        axes = node.integers(1, "list of axes")
    if axes is None:
        return None
    result = sorted(axis_of(int(axis), rank) for axis in axes)
    if len(set(result)) != len(result):
        node.refuse("attribute", f"an axis is repeated in {list(axes)}")
    return result


@register_operator("Squeeze")
def _squeeze(node: Node) -> Value:
    x = node.value(0)
    axes = _axes(node, len(x.shape))
    if axes is None:
        axes = [axis for axis, d in enumerate(x.shape) if d == 1]
    if any(x.shape[axis] != 1 for axis in axes):
        node.refuse("shape", f"axes {axes} of a tensor of shape {x.shape} are not all of length 1")
    return reshaped(x, tuple(d for axis, d in enumerate(x.shape) if axis not in axes))


@register_operator("Unsqueeze")
def _unsqueeze(node: Node) -> Value:
    x = node.value(0)
    given = node.attributes.get("axes")
    given = node.integers(1, "list of axes") if given is None else given
    axes = _axes(node, len(x.shape) + len(given)) or []
    shape = list(x.shape)
    for axis in axes:
        shape.insert(axis, 1)
    return reshaped(x, tuple(shape))


@register_operator("Transpose")
def _transpose(node: Node) -> Value:
    x = node.value(0)
    order = node.attributes.get("perm")
    order = list(range(len(x.shape)))[::-1] if order is None else [int(axis) for axis in order]
    if sorted(order) != list(range(len(x.shape))):
        node.refuse("attribute", f"perm {order} is not a permutation of the {len(x.shape)} axes")
    return gathered(node, x, x.positions.transpose(order))


@register_operator("Concat")
def _concat(node: Node) -> Value:
    values = [node.value(port) for port in range(len(node.inputs))]
    rank = len(values[0].shape)
    axis = axis_of(int(node.attributes["axis"]), rank)
    shapes = {(*v.shape[:axis], *v.shape[axis + 1 :]) for v in values}
    if len(shapes) != 1 or any(len(v.shape) != rank for v in values):
        node.refuse(
            "shape", f"tensors of shapes {', '.join(str(v.shape) for v in values)} cannot be joined on axis {axis}"
        )
    if len(values) == 1:
        return values[0]
    if all(isinstance(v, Fixed) for v in values):
        return _concat_constants(node, [v for v in values if isinstance(v, Fixed)], axis)
    computed = [node.as_computed(v) for v in values]
    lengths = [v.shape[axis] for v in computed]
    shape = (*computed[0].shape[:axis], sum(lengths), *computed[0].shape[axis + 1 :])
    node.builder.reserve(prod(shape))
    pieces = np.split(np.arange(prod(shape)).reshape(shape), np.cumsum(lengths)[:-1], axis=axis)
    return node.add(Concat(positions=tuple(p.ravel() for p in pieces)), computed, shape)


def _concat_constants(node: Node, values: list[Fixed], axis: int) -> Fixed:
    if any(v.type != values[0].type for v in values):
        node.refuse("dtype", "constants of several types are joined")
    if values[0].real is None:
        whole = np.concatenate([np.asarray(v.whole) for v in values], axis=axis)
        return Fixed(type=values[0].type, whole=whole)
    parts = [v.real for v in values if v.real is not None]
    radius = None
    if any(p.radius is not None for p in parts):
        radii = [np.zeros(p.shape) if p.radius is None else p.radius for p in parts]
        radius = np.concatenate(radii, axis=axis)
    real = Enclosed(values=np.concatenate([p.values for p in parts], axis=axis), radius=radius)
    return Fixed(type=values[0].type, real=real)
