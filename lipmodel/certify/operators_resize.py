"""Resize and Upsample as the exact checker reads them: axis by axis, the nearest entry or a mean of two."""

from __future__ import annotations

import math
from fractions import Fraction
from math import prod

import numpy as np

from lipmodel.certify.operands import MAX_TENSOR, Array, Moving, Node, Value
from lipmodel.certify.tape import Unreadable

HALF = Fraction(1, 2)


def resize(node: Node) -> Value:
    x, given = node.moving(0), node.attributes
    rank, mode = len(x.shape), given["mode"]
    coordinates, nearest = "asymmetric", "floor"
    sizes: list[int] | None = None
    axes = list(range(rank))
    if node.op == "Upsample" and node.opset < 9:
        scales = [Fraction(v) for v in given["scales"]]
    elif node.op == "Upsample" or node.opset < 11:
        scales = [Fraction(v) for v in node.fixed(1).tolist()]
    else:
        coordinates, nearest = given["coordinate_transformation_mode"], given["nearest_mode"]
        axes = [a % rank for a in given.get("axes") or axes]
        stretched = given.get("keep_aspect_ratio_policy", "stretch") == "stretch"
        if given.get("antialias") or given.get("exclude_outside") or not stretched:
            raise Unreadable("Resize with antialias, exclude_outside or a fixed aspect ratio")
        if node.given(3) and node.fixed(3, "i").size:
            sizes = node.fixed(3, "i").tolist()
            scales = [Fraction(m, x.shape[a]) for m, a in zip(sizes, axes, strict=True)]
        else:
            scales = [Fraction(v) for v in node.fixed(2).tolist()]
    if len(scales) != len(axes) or min(scales) <= 0 or mode not in ("nearest", "linear"):
        raise Unreadable(f"{node.op} with mode {mode!r}, or scales that do not fit")
    for k, axis in enumerate(axes):
        n, scale = x.shape[axis], scales[k]
        count = math.floor(scale * n) if sizes is None else sizes[k]
        if prod(x.shape) // n * count > MAX_TENSOR or count < 1:
            raise Unreadable(f"{node.op} to a size that is too large, or to nothing")
        if count != n or scale != 1:
            sources = [_source(i, count, n, scale, coordinates) for i in range(count)]
            if mode == "nearest":
                index = np.clip([_rounded(v, nearest) for v in sources], 0, n - 1)
                x = node.select(x, np.take(x.at, index, axis=axis))
            else:
                x = _interpolated(node, x, axis, sources)
    return x


def _source(i: int, count: int, n: int, scale: Fraction, coordinates: str) -> Fraction:
    """Where entry i of `count` comes from on an axis of n entries."""
    if coordinates == "asymmetric":
        return i / scale
    if coordinates == "align_corners":
        return Fraction(i * (n - 1), count - 1) if count > 1 else Fraction(0)
    if coordinates == "pytorch_half_pixel" and count == 1:
        return -HALF
    middle = (i + HALF) / scale - HALF
    if coordinates == "half_pixel_symmetric":
        return middle + HALF * n - HALF * count / scale
    if coordinates not in ("half_pixel", "pytorch_half_pixel"):
        raise Unreadable(f"Resize with coordinates {coordinates!r}")
    return middle


def _rounded(v: Fraction, mode: str) -> int:
    if mode in ("floor", "ceil"):
        return math.floor(v) if mode == "floor" else math.ceil(v)
    if mode == "round_prefer_floor":
        return math.ceil(v - HALF)
    if mode == "round_prefer_ceil":
        return math.floor(v + HALF)
    raise Unreadable(f"Resize with nearest_mode {mode!r}")


def _interpolated(node: Node, x: Moving, axis: int, sources: list[Fraction]) -> Moving:
    """Between two neighbours; beyond the ends of the axis the outermost entry."""
    last = x.shape[axis] - 1
    pairs = [(math.floor(v), v - math.floor(v)) for v in sources]
    low, high = (np.clip([k + step for k, _ in pairs], 0, last) for step in (0, 1))
    shares = [Fraction(0) if a == b else upper for (_, upper), a, b in zip(pairs, low, high, strict=True)]
    weights = np.array([1 - u for u in shares] + shares, dtype=object)
    tables: list[Array] = [np.take(x.at, index, axis=axis) for index in (low, high)]
    shape = tables[0].shape
    lane = np.arange(len(sources)).reshape(-1, *[1] * (len(shape) - axis - 1))
    which = [np.broadcast_to(lane + start, shape).ravel() for start in (0, len(sources))]
    rows = np.tile(np.arange(prod(shape)), 2)
    columns = np.concatenate([table.ravel() for table in tables])
    return node.weighted(x, weights, np.concatenate(which), rows, columns, shape)
