"""Handlers of ConvTranspose, Resize and Upsample: what makes tensors larger."""

from __future__ import annotations

import math
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.network.conv import Conv
from lipmodel.network.linear import Sparse, Transposed
from lipmodel.network.onnx_arithmetic import added
from lipmodel.network.onnx_conv import per_axis, spatial_axes
from lipmodel.network.onnx_ops import MAX_TENSOR, Computed, Fixed, Node, Value, axis_of, register_operator

Array = np.ndarray[Any, Any]

MAX_LENGTH = 10**5
"""Entries of an axis that is resized; each is placed in exact fractions."""


@register_operator("ConvTranspose")
def _conv_transpose(node: Node) -> Value:
    """The transpose of the convolution that leads from the output's shape to the input's."""
    x, kernel = node.computed(0), node.constant(1, "kernel")
    spatial, d = spatial_axes(node, x.shape), len(x.shape) - 2
    groups = int(node.attributes["group"])
    if len(kernel.shape) != len(x.shape) or 0 in kernel.shape or kernel.shape[0] != x.shape[1]:
        node.refuse("shape", f"a kernel of shape {kernel.shape} does not fit a tensor of shape {x.shape}")
    if groups < 1 or x.shape[1] % groups:
        node.refuse("attribute", f"{groups} groups do not fit {x.shape[1]} channels")
    declared = node.attributes["kernel_shape"]
    if declared is not None and tuple(declared) != kernel.shape[2:]:
        node.refuse("attribute", f"kernel_shape is {declared}, the kernel has {list(kernel.shape[2:])}")
    strides, dilations = per_axis(node, "strides", d, 1), per_axis(node, "dilations", d, 1)
    extra = tuple(node.attributes["output_padding"] or [0] * d)
    if len(extra) != d or any(not 0 <= e < max(s, t) for e, s, t in zip(extra, strides, dilations, strict=False)):
        node.refuse("attribute", f"output_padding is {list(extra)}")
    reach = [(k - 1) * t + 1 for k, t in zip(kernel.shape[2:], dilations, strict=True)]
    full = [s * (n - 1) + e + r for s, n, e, r in zip(strides, spatial, extra, reach, strict=True)]
    before, output = _transposed_padding(node, spatial, strides, full)
    shape = (x.shape[0], kernel.shape[1] * groups, *output)
    if any(m < 1 for m in output):
        node.refuse("shape", f"the output would have the shape {shape}")
    node.builder.reserve(prod(shape))
    # what the convolution back meets of the input, group by group: (C_in, C_out / groups, k) is its own layout
    back = Conv(
        kernel=np.ascontiguousarray(kernel.values),
        radius=kernel.radius,
        input_shape=shape,
        output_spatial=spatial,
        strides=strides,
        pads=before,
        dilations=dilations,
        groups=groups,
    )
    if not node.has(2):
        return node.linear(x, Transposed(map=back), shape)
    bias = node.constant(2, "bias")
    if bias.shape != (shape[1],):
        node.refuse("shape", f"a bias of shape {bias.shape} for {shape[1]} channels")
    y = node.linear(x, Transposed(map=back), shape, suffix=".product")
    return added(node, [y, Fixed(type=x.type, real=bias.reshaped((-1, *[1] * d)))])


def _transposed_padding(
    node: Node, spatial: tuple[int, ...], strides: tuple[int, ...], full: list[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is cut off before, per axis, and the output; full: the output without any padding."""
    d, mode = len(spatial), node.attributes.get("auto_pad") or "NOTSET"
    wanted, pads = node.attributes["output_shape"], node.attributes["pads"]
    if wanted is not None:
        wanted = list(wanted)[-d:]
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(spatial, strides, strict=True)]
    if wanted is None:
        pads = [0] * (2 * d) if pads is None or mode == "VALID" else list(pads)
        if len(pads) != 2 * d or any(not 0 <= p <= MAX_TENSOR for p in pads) or mode not in ("NOTSET", "VALID"):
            node.refuse("attribute", f"pads is {pads}, auto_pad {mode!r}")
        return tuple(pads[:d]), tuple(f - p - q for f, p, q in zip(full, pads[:d], pads[d:], strict=True))
    total = [f - m for f, m in zip(full, wanted, strict=False)]
    if len(wanted) != d or any(t < 0 for t in total):
        node.refuse("attribute", f"output_shape {wanted} is not reached without padding, which gives {full}")
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return tuple(small if mode == "SAME_UPPER" else large), tuple(int(m) for m in wanted)


# --------------------------------------------------------------------------------------------------- Resize, Upsample


@register_operator("Upsample")
def _upsample(node: Node) -> Value:
    scales = list(node.attributes["scales"]) if node.opset < 9 else _numbers(node, 1, "scales")
    return _resized(node, node.computed(0), scales, None, "asymmetric", node.attributes["mode"] or "nearest", "floor")


@register_operator("Resize")
def _resize(node: Node) -> Value:
    x = node.computed(0)
    mode = node.attributes["mode"] or "nearest"
    if node.opset < 11:
        return _resized(node, x, _numbers(node, 1, "scales"), None, "asymmetric", mode, "floor")
    if node.attributes.get("antialias", 0) or node.attributes.get("exclude_outside", 0):
        node.refuse("attribute", "Resize with antialias or exclude_outside")
    if (node.attributes.get("keep_aspect_ratio_policy") or "stretch") != "stretch":
        node.refuse("attribute", "Resize that keeps the aspect ratio")
    rank = len(x.shape)
    axes = [axis_of(int(a), rank) for a in node.attributes.get("axes") or range(rank)]
    scales = _numbers(node, 2, "scales") if node.has(2) and node.value(2).size else None
    sizes = node.integers(3, "list of sizes") if node.has(3) and node.value(3).size else None
    if (scales is None) == (sizes is None) or len(scales or sizes or []) != len(axes):
        node.refuse("attribute", f"Resize needs scales or sizes, one number for each of {len(axes)} axes")
    full_scales: list[Any] = [1.0] * rank
    full_sizes = list(x.shape)
    for k, axis in enumerate(axes):
        if scales is not None:
            full_scales[axis] = scales[k]
        if sizes is not None:
            full_sizes[axis] = sizes[k]
    return _resized(
        node,
        x,
        full_scales,
        None if sizes is None else full_sizes,
        node.attributes["coordinate_transformation_mode"] or "half_pixel",
        mode,
        node.attributes["nearest_mode"] or "round_prefer_floor",
    )


def _numbers(node: Node, port: int, what: str) -> list[float]:
    given = node.constant(port, what)
    if given.radius is not None or given.values.ndim > 1:
        node.refuse("attribute", f"the {what} are not a list of stored numbers")
    return [float(v) for v in given.values.ravel()]


def _resized(
    node: Node, x: Computed, scales: list[float], sizes: list[int] | None, coordinates: str, mode: str, nearest: str
) -> Value:
    """One matrix along every axis that changes."""
    if len(scales) != len(x.shape) or any(not s > 0.0 for s in scales):
        node.refuse("attribute", f"scales {scales} of a tensor of shape {x.shape}")
    if mode not in ("nearest", "linear"):
        node.refuse("attribute", f"Resize with mode {mode!r}", "nearest and linear are read")
    for axis, length in enumerate(x.shape):
        out = sizes[axis] if sizes is not None else math.floor(Fraction(scales[axis]) * length)
        scale = Fraction(out, length) if sizes is not None else Fraction(scales[axis])
        if out < 1:
            node.refuse("shape", f"axis {axis} of a tensor of shape {x.shape} would have {out} entries")
        if out == length and scale == 1:
            continue
        shape = (*x.shape[:axis], out, *x.shape[axis + 1 :])
        if max(out, length) > MAX_LENGTH:
            node.refuse("size-limit", f"axis {axis} resized from {length} to {out} entries; the limit is {MAX_LENGTH}")
        node.builder.reserve(2 * prod(shape))
        origins = [_origin(node, k, out, length, scale, coordinates) for k in range(out)]
        if mode == "nearest":
            index = np.array([min(max(_nearest(node, v, nearest), 0), length - 1) for v in origins])
            x = node.select(x, np.take(x.positions, index, axis=axis))
            continue
        x = _interpolated(node, x, axis, origins, shape)
    return x


def _origin(node: Node, k: int, out: int, length: int, scale: Fraction, coordinates: str) -> Fraction:
    """Where an entry of the output lies in the input."""
    half = Fraction(1, 2)
    if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and out > 1):
        return (k + half) / scale - half
    if coordinates == "pytorch_half_pixel":
        return -half
    if coordinates == "asymmetric":
        return k / scale
    if coordinates == "align_corners":
        return Fraction(k * (length - 1), out - 1) if out > 1 else Fraction(0)
    if coordinates == "half_pixel_symmetric":
        exact = scale * length
        return Fraction(length, 2) * (1 - Fraction(out) / exact) + (k + half) / scale - half
    node.refuse("attribute", f"Resize with coordinates {coordinates!r}")


def _nearest(node: Node, v: Fraction, mode: str) -> int:
    if mode == "floor":
        return math.floor(v)
    if mode == "ceil":
        return math.ceil(v)
    if mode == "round_prefer_floor":
        return math.ceil(v - Fraction(1, 2))
    if mode == "round_prefer_ceil":
        return math.floor(v + Fraction(1, 2))
    node.refuse("attribute", f"Resize with nearest_mode {mode!r}")


def _interpolated(node: Node, x: Computed, axis: int, origins: list[Fraction], shape: tuple[int, ...]) -> Computed:
    """Linear interpolation along one axis; beyond its ends the outermost entry counts."""
    last = x.shape[axis] - 1
    low = [min(max(math.floor(v), 0), last) for v in origins]
    high = [min(max(math.floor(v) + 1, 0), last) for v in origins]
    upper = [v - math.floor(v) for v in origins]
    below, above = (np.take(x.positions, index, axis=axis).ravel() for index in (low, high))
    weights, radii = [], []
    for exact in ([1 - u for u in upper], upper):
        values = np.array([float(v) for v in exact])
        error = [abs(Fraction(f) - v) for f, v in zip(values.tolist(), exact, strict=True)]
        spread = np.array([float(np.nextafter(float(e), np.inf)) if e else 0.0 for e in error])
        like = (1,) * axis + (len(exact),) + (1,) * (len(shape) - axis - 1)
        weights.append(np.broadcast_to(values.reshape(like), shape).ravel())
        radii.append(np.broadcast_to(spread.reshape(like), shape).ravel())
    rows = np.tile(np.arange(prod(shape)), 2)
    columns = np.concatenate([below, above])

    def csr(entries: list[Array]) -> Any:
        return sp.csr_array((np.concatenate(entries), (rows, columns)), shape=(prod(shape), x.size))

    inexact = any(np.any(r) for r in radii)
    return node.linear(x, Sparse(weights=csr(weights), radius=csr(radii) if inexact else None), shape)
