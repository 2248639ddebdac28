"""Handlers of the scalar nonlinearities of ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lipmodel.errors import LipmodelError, NotLipschitz
from lipmodel.network.onnx_folding import FUNCTIONS, fold_function
from lipmodel.network.onnx_ops import Fixed, Node, Value, broadcast_shape, register_operator
from lipmodel.network.ops import Elementwise, Part, elementwise

if TYPE_CHECKING:
    from lipmodel.activations import Activation

OWN_DOMAIN = "lipmodel"
"""The operator domain of activations that ONNX does not have."""

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "LeakyRelu": ("alpha",),
    "Elu": ("alpha",),
    "Selu": ("alpha", "gamma"),
    "Celu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "Sigmoid": (),
    "Tanh": (),
    "Softplus": (),
    "Softsign": (),
    "HardSigmoid": ("alpha", "beta"),
    "HardSwish": (),
    "Gelu": ("approximate",),
    "Mish": (),
    "Erf": (),
    "Abs": (),
    "Atan": (),
    "Asinh": (),
    "Sin": (),
    "Cos": (),
    "Exp": (),
    "Log": (),
    "Sqrt": (),
    "Reciprocal": (),
    "Shrink": ("lambd", "bias"),
}
"""Unary operators, and the attributes that their activations take."""


def scalar_activation(node: Node, name: str, **params: float | str) -> Activation:
    """The activation of this name and these parameters; a Refusal where there is none."""
    from lipmodel.activations import activation

    try:
        return activation(name, **params)
    except NotLipschitz as error:
        node.refuse("non-lipschitz", str(error))
    except LipmodelError as error:
        node.refuse("attribute", str(error))


def _unary(node: Node) -> Value:
    if isinstance(node.value(0), Fixed) and node.op_type in FUNCTIONS:
        return fold_function(node)
    params = {name: node.attributes[name] for name in _PARAMETERS[node.op_type]}
    x = node.computed(0)
    return node.elementwise(x, elementwise(scalar_activation(node, node.op_type, **params), x.size))


for _op_type in _PARAMETERS:
    register_operator(_op_type)(_unary)


@register_operator("*", OWN_DOMAIN)
def _own(node: Node) -> Value:
    """An activation that ONNX has no operator for, as `Network.save` writes it: by name, parameters and expression."""
    x = node.computed(0)
    params: dict[str, float | str] = {}
    for name, text in node.attributes.items():
        try:
            params[name] = float.fromhex(text)
        except (ValueError, OverflowError, TypeError, AttributeError):
            params[name] = str(text)
    expression = params.pop("expression", None)
    found = scalar_activation(node, node.op_type, **params)
    if expression != found.expression:
        node.refuse("operator", f"{node.op_type} is {expression} in the file, and {found.expression} here")
    return node.elementwise(x, elementwise(found, x.size))


@register_operator("PRelu")
def _prelu(node: Node) -> Value:
    x, slope = node.computed(0), node.constant(1, "slope")
    if broadcast_shape(x.shape, slope.shape) != x.shape:
        node.refuse("shape", f"a slope of shape {slope.shape} does not fit a tensor of shape {x.shape}")
    if slope.radius is not None:
        node.refuse("attribute", "the slope is the rounded result of a computation")
    values, which = np.unique(np.broadcast_to(slope.values, x.shape).ravel(), return_inverse=True)
    order = np.argsort(which, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(which, minlength=len(values)))[:-1])
    parts = [
        Part(activation=scalar_activation(node, "PRelu", slope=float(value)), index=index)
        for value, index in zip(values, groups, strict=True)
    ]
    return node.elementwise(x, Elementwise(parts=tuple(parts)))


@register_operator("Clip")
def _clip(node: Node) -> Value:
    x = node.computed(0)
    if node.opset < 11:
        # The defaults are the largest float32 numbers; in real arithmetic they are limits like any other.
        low, high = float(node.attributes["min"]), float(node.attributes["max"])
    else:
        low = node.scalar(1, "minimum") if node.has(1) else -np.inf
        high = node.scalar(2, "maximum") if node.has(2) else np.inf
    if not low <= high:
        node.refuse("attribute", f"Clip from {low} to {high}")
    if low == -np.inf and high == np.inf:
        return x
    return node.elementwise(x, elementwise(scalar_activation(node, "Clip", min=low, max=high), x.size))
