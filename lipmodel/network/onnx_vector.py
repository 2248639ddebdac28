"""Handlers of the nonlinearities of ONNX that act on vectors: Softmax, normalisations, LRN."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from lipmodel.errors import NotLipschitz
from lipmodel.network.onnx_arithmetic import added, scaled
from lipmodel.network.onnx_ops import Computed, Fixed, Node, Value, axis_of, broadcast_shape, register_operator
from lipmodel.network.ops import Grouped
from lipmodel.network.vector import LRN, LayerNormalization, LogSoftmax, RMSNormalization, Softmax, VectorFunction

Array = np.ndarray[Any, Any]


def grouped(node: Node, x: Computed, function: VectorFunction, groups: Array, suffix: str = "") -> Computed:
    """The function on groups of entries of x; groups: positions, shape (count, n)."""
    return node.add(Grouped(function=function, groups=np.ascontiguousarray(groups)), [x], x.shape, suffix)


def _softmax(node: Node) -> Value:
    """Along an axis; before operator set 13 over all axes from that one on."""
    x = node.computed(0)
    rank = len(x.shape)
    axis = int(node.attributes["axis"])
    function = Softmax() if node.op_type == "Softmax" else LogSoftmax()
    if node.opset >= 13:
        axis = axis_of(axis, rank)
        return grouped(node, x, function, np.moveaxis(x.positions, axis, -1).reshape(-1, x.shape[axis]))
    axis = axis if axis == rank else axis_of(axis, rank)
    return grouped(node, x, function, x.positions.reshape(prod(x.shape[:axis]), -1))


register_operator("Softmax")(_softmax)
register_operator("LogSoftmax")(_softmax)


@register_operator("LRN")
def _lrn(node: Node) -> Value:
    x = node.computed(0)
    if len(x.shape) < 2:
        node.refuse("shape", f"LRN takes tensors of two dimensions or more, not {x.shape}")
    given = {key: float(node.attributes[key]) for key in ("alpha", "beta", "bias")}
    size = int(node.attributes["size"])
    if size < 1:
        node.refuse("attribute", f"a window of {size} channels")
    try:
        function = LRN(size=size, **given)
    except NotLipschitz as error:
        node.refuse("non-lipschitz", f"{error}; it is not supported on a domain")
    return grouped(node, x, function, np.moveaxis(x.positions, 1, -1).reshape(-1, x.shape[1]))


def _normalised(node: Node, x: Computed, kind: type[LayerNormalization | RMSNormalization], groups: Array) -> Computed:
    """The normalisation itself, before the scale and the bias."""
    try:
        function = kind(epsilon=float(node.attributes["epsilon"]))
    except NotLipschitz as error:
        node.refuse("non-lipschitz", f"{error}; it is not supported on a domain")
    return grouped(node, x, function, groups, ".normalised")


def _layer(node: Node) -> Value:
    """LayerNormalization and RMSNormalization: over all axes from one on, then scale and bias."""
    if any(node.outputs[1:]):
        node.refuse("operator", f"the mean and deviation that {node.op_type} gives are not supported")
    x = node.computed(0)
    axis = axis_of(int(node.attributes["axis"]), len(x.shape))
    kind = LayerNormalization if node.op_type == "LayerNormalization" else RMSNormalization
    y: Value = _normalised(node, x, kind, x.positions.reshape(prod(x.shape[:axis]), -1))
    for port, what in enumerate(("scale", "bias"), start=1):
        if node.has(port):
            term = node.constant(port, what)
            if broadcast_shape(x.shape, term.shape) != x.shape:
                node.refuse("shape", f"a {what} of shape {term.shape} does not fit a tensor of shape {x.shape}")
            y = scaled(node, y, term, ".scaled") if port == 1 else added(node, [y, Fixed(type=x.type, real=term)])
    return y


register_operator("LayerNormalization")(_layer)
register_operator("RMSNormalization")(_layer)


def _channels(node: Node) -> Value:
    """InstanceNormalization and GroupNormalization: over all positions of one channel, or of a group of channels."""
    x = node.computed(0)
    if len(x.shape) < 2:
        node.refuse("shape", f"{node.op_type} takes tensors of two dimensions or more, not {x.shape}")
    channels = x.shape[1]
    count = channels if node.op_type == "InstanceNormalization" else int(node.attributes["num_groups"])
    if count < 1 or channels % count:
        node.refuse("attribute", f"{count} groups of {channels} channels")
    y: Value = _normalised(node, x, LayerNormalization, x.positions.reshape(x.shape[0] * count, -1))
    per_group = node.op_type == "GroupNormalization" and node.opset < 21
    size = count if per_group else channels
    which = np.broadcast_to(np.arange(channels).reshape(-1, *[1] * (len(x.shape) - 2)), x.shape)
    which = which // (channels // count) if per_group else which
    for port, what in enumerate(("scale", "bias"), start=1):
        term = node.constant(port, what)
        if term.shape != (size,):
            node.refuse("shape", f"the {what} has shape {term.shape}, not {(size,)}")
        term = term.take(which)
        y = scaled(node, y, term, ".scaled") if port == 1 else added(node, [y, Fixed(type=x.type, real=term)])
    return y


register_operator("InstanceNormalization")(_channels)
register_operator("GroupNormalization")(_channels)
