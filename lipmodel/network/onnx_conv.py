"""Handlers of Conv, AveragePool and GlobalAveragePool."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from lipmodel.network.conv import Conv, Pool, valid_counts, window_sum
from lipmodel.network.onnx_arithmetic import added
from lipmodel.network.onnx_ops import MAX_TENSOR, Fixed, Node, Value, register_operator

Array = np.ndarray[Any, Any]

MAX_PRODUCTS = 10**9
"""Entries of all windows of one channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Windows:
    """The geometry of sliding windows, per spatial axis."""

    output: tuple[int, ...]
    strides: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilations: tuple[int, ...]


def windows_of(node: Node, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> _Windows:
    """The geometry that the attributes of a convolution or pooling node give."""
    d = len(spatial)
    strides = per_axis(node, "strides", d, 1)
    dilations = per_axis(node, "dilations", d, 1)
    reach = tuple((k - 1) * step + 1 for k, step in zip(kernel, dilations, strict=True))
    before, after = _padding(node, spatial, reach, strides)
    spans = [n + p + q - r for n, p, q, r in zip(spatial, before, after, reach, strict=True)]
    if any(span < 0 for span in spans):
        node.refuse("attribute", f"a window of {reach} does not fit the padded input {spatial}")
    if node.attributes.get("ceil_mode", 0):
        output = [-(-span // s) + 1 for span, s in zip(spans, strides, strict=True)]
        # A window that would start in the padding after the input is left out.
        output = [
            m - 1 if (m - 1) * s >= n + p else m for m, s, n, p in zip(output, strides, spatial, before, strict=True)
        ]
    else:
        output = [span // s + 1 for span, s in zip(spans, strides, strict=True)]
    if prod(output) * prod(kernel) > MAX_PRODUCTS or any(
        m * k > MAX_TENSOR for m, k in zip(output, kernel, strict=True)
    ):
        node.refuse("size-limit", f"windows of shape {kernel} at {prod(output)} positions")
    return _Windows(output=tuple(output), strides=strides, before=before, after=after, dilations=dilations)


def per_axis(node: Node, name: str, d: int, default: int) -> tuple[int, ...]:
    given = node.attributes.get(name)
    values = tuple(given) if given is not None else (default,) * d
    if len(values) != d or any(not 1 <= v <= MAX_TENSOR for v in values):
        node.refuse("attribute", f"{name} is {list(values)}; {d} positive integers are needed")
    return values


def _padding(
    node: Node, spatial: tuple[int, ...], reach: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The padding before and after, per axis."""
    d = len(spatial)
    mode = node.attributes.get("auto_pad") or "NOTSET"
    pads = node.attributes.get("pads")
    pads = [0] * (2 * d) if pads is None else pads
    if len(pads) != 2 * d or any(not 0 <= p <= MAX_TENSOR for p in pads):
        node.refuse("attribute", f"pads is {list(pads)}; {2 * d} integers, none negative, are needed")
    if mode == "NOTSET":
        return tuple(pads[:d]), tuple(pads[d:])
    if any(pads):
        node.refuse("attribute", f"both auto_pad {mode} and pads are given")
    if mode == "VALID":
        return (0,) * d, (0,) * d
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        node.refuse("attribute", f"auto_pad is {mode!r}")
    total = [max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(spatial, strides, reach, strict=True)]
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def spatial_axes(node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not 3 <= len(shape) <= 5:
        node.refuse("shape", f"{node.op_type} takes one to three spatial axes, not a tensor of shape {shape}")
    return shape[2:]


def _guard(node: Node, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        if prod(shape) > MAX_TENSOR:
            node.refuse("size-limit", f"a computed tensor of shape {shape}; the limit is {MAX_TENSOR} entries")


@register_operator("Conv")
def _conv(node: Node) -> Value:
    x, kernel = node.computed(0), node.constant(1, "kernel")
    spatial = spatial_axes(node, x.shape)
    groups = int(node.attributes["group"])
    if len(kernel.shape) != len(x.shape) or 0 in kernel.shape:
        node.refuse("shape", f"a kernel of shape {kernel.shape} does not fit a tensor of shape {x.shape}")
    if groups < 1 or x.shape[1] % groups or kernel.shape[0] % groups or kernel.shape[1] * groups != x.shape[1]:
        message = f"{groups} groups do not fit {x.shape[1]} channels and a kernel of shape {kernel.shape}"
        node.refuse("attribute" if groups != 1 else "shape", message)
    declared = node.attributes["kernel_shape"]
    if declared is not None and tuple(declared) != kernel.shape[2:]:
        node.refuse("attribute", f"kernel_shape is {declared}, the kernel has {list(kernel.shape[2:])}")
    windows = windows_of(node, spatial, kernel.shape[2:])
    shape = (x.shape[0], kernel.shape[0], *windows.output)
    padded = tuple(n + p + q for n, p, q in zip(spatial, windows.before, windows.after, strict=True))
    _guard(node, shape, (*x.shape[:2], *padded))
    map = Conv(
        kernel=np.ascontiguousarray(kernel.values),
        radius=kernel.radius,
        input_shape=x.shape,
        output_spatial=windows.output,
        strides=windows.strides,
        pads=windows.before,
        dilations=windows.dilations,
        groups=groups,
    )
    if not node.has(2):
        return node.linear(x, map, shape)
    bias = node.constant(2, "bias")
    if bias.shape != (shape[1],):
        node.refuse("shape", f"a bias of shape {bias.shape} for {shape[1]} channels")
    y = node.linear(x, map, shape, suffix=".product")
    return added(node, [y, Fixed(type=x.type, real=bias.reshaped((-1, *[1] * len(spatial))))])


@register_operator("AveragePool")
def _average_pool(node: Node) -> Value:
    x = node.computed(0)
    spatial = spatial_axes(node, x.shape)
    kernel = per_axis(node, "kernel_shape", len(spatial), 1)
    windows = windows_of(node, spatial, kernel)
    shape = (*x.shape[:2], *windows.output)
    padded = tuple(n + p + q for n, p, q in zip(spatial, windows.before, windows.after, strict=True))
    _guard(node, shape, (*x.shape[:2], *padded), kernel)
    window = window_sum(x.shape, windows.output, kernel, windows.strides, windows.before, windows.dilations)
    count = valid_counts(window, windows.after if node.attributes["count_include_pad"] else None)
    if not np.all(count > 0):
        node.refuse("attribute", "a window that lies in the padding alone has no average")
    return node.linear(x, Pool(window=window, count=count), shape)


@register_operator("GlobalAveragePool")
def _global_average_pool(node: Node) -> Value:
    x = node.computed(0)
    spatial = spatial_axes(node, x.shape)
    d = len(spatial)
    window = window_sum(x.shape, (1,) * d, spatial, (1,) * d, (0,) * d, (1,) * d)
    return node.linear(x, Pool(window=window, count=valid_counts(window)), (*x.shape[:2], *(1,) * d))
