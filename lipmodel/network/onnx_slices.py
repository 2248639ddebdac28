"""Handlers of the ONNX operators that pick, repeat, pad and rearrange entries: all of them one selection each."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from lipmodel.network.constants import Enclosed
from lipmodel.network.onnx_arithmetic import added, scaled
from lipmodel.network.onnx_file import type_name
from lipmodel.network.onnx_ops import (
    Computed,
    Fixed,
    Node,
    Value,
    axis_of,
    broadcast_shape,
    register_operator,
)
from lipmodel.network.onnx_shapes import gathered

Array = np.ndarray[Any, Any]


def _picked(node: Node, x: Value, at: Array) -> Value:
    """The entries of x at these positions; a Refusal where there are none, or too many."""
    if at.size == 0 and isinstance(x, Computed):
        node.refuse("shape", "the result has no entries")
    node.builder.reserve(at.size)
    return gathered(node, x, at)


def _along(positions: Array, axis: int, index: Array) -> Array:
    return np.take(positions, index, axis=axis)


# --------------------------------------------------------------------------------------------------------- Slice, Split


@register_operator("Slice")
def _slice(node: Node) -> Value:
    x = node.value(0)
    rank = len(x.shape)
    if node.opset < 10:
        starts, ends = list(node.attributes["starts"]), list(node.attributes["ends"])
        axes = node.attributes["axes"]
        steps = [1] * len(starts)
    else:
        starts, ends = node.integers(1, "list of starts"), node.integers(2, "list of ends")
        axes = node.integers(3, "list of axes") if node.has(3) else None
        steps = node.integers(4, "list of steps") if node.has(4) else [1] * len(starts)
    axes = list(range(len(starts))) if axes is None else [int(a) for a in axes]
    if not len(starts) == len(ends) == len(axes) == len(steps):
        node.refuse("attribute", f"{len(starts)} starts, {len(ends)} ends, {len(axes)} axes, {len(steps)} steps")
    chosen = [axis_of(a, rank) for a in axes]
    if len(set(chosen)) != len(chosen) or 0 in steps:
        node.refuse("attribute", f"an axis of {axes} is repeated, or a step of {steps} is 0")
    at = x.positions
    for start, end, axis, step in zip(starts, ends, chosen, steps, strict=True):
        length = x.shape[axis]
        start, end = (v + length if v < 0 else v for v in (start, end))
        low, high = (0, length) if step > 0 else (-1, length - 1)  # the end may lie just before the first entry
        start, end = min(max(start, 0), high), min(max(end, low), high)
        at = _along(at, axis, np.arange(start, end, step))
    return _picked(node, x, at)


@register_operator("Split")
def _split(node: Node) -> Sequence[Value | None]:
    x = node.value(0)
    axis = axis_of(int(node.attributes["axis"]), len(x.shape))
    length, count = x.shape[axis], len(node.outputs)
    sizes = node.attributes.get("split")
    if sizes is None and node.has(1):
        sizes = node.integers(1, "list of sizes")
    if sizes is None:
        parts = node.attributes.get("num_outputs")
        if parts is not None and parts != count:
            node.refuse("attribute", f"num_outputs is {parts}, and there are {count} outputs")
        if parts is None and length % count:
            node.refuse("shape", f"{length} entries cannot be split into {count} equal parts")
        each = -(-length // count)
        sizes = [each] * (count - 1) + [length - each * (count - 1)]
    if len(sizes) != count or sum(sizes) != length or min(sizes) < 0:
        node.refuse("attribute", f"a split of {length} entries into {list(sizes)} for {count} outputs")
    ends = np.cumsum([0, *sizes]).tolist()
    results: list[Value | None] = []
    for name, a, b in zip(node.outputs, ends, ends[1:], strict=False):
        results.append(_picked(node, x, _along(x.positions, axis, np.arange(a, b))) if name else None)
    return results


# ------------------------------------------------------------------------------------------------- Expand, Tile, Pad


@register_operator("Expand")
def _expand(node: Node) -> Value:
    x = node.value(0)
    shape = broadcast_shape(x.shape, tuple(_sizes(node, 1, "shape")))
    return _picked(node, x, np.broadcast_to(x.positions, shape))


@register_operator("Tile")
def _tile(node: Node) -> Value:
    x, repeats = node.value(0), _sizes(node, 1, "list of repeats")
    if len(repeats) != len(x.shape):
        node.refuse("shape", f"{len(repeats)} repeats of a tensor of {len(x.shape)} dimensions")
    node.builder.reserve(x.size * prod(repeats))
    return _picked(node, x, np.tile(x.positions, repeats))


def _sizes(node: Node, port: int, what: str) -> list[int]:
    values = node.integers(port, what)
    if any(v < 0 for v in values):
        node.refuse("shape", f"the {what} is {values}")
    return values


@register_operator("Pad")
def _pad(node: Node) -> Value:
    x, rank = node.value(0), len(node.value(0).shape)
    mode = node.attributes["mode"] or "constant"
    pads = list(node.attributes["pads"]) if node.opset < 11 else node.integers(1, "list of pads")
    axes = list(range(rank))
    if node.has(3):
        axes = [axis_of(a, rank) for a in node.integers(3, "list of axes")]
    if len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        node.refuse("attribute", f"{len(pads)} pads for {len(axes)} axes")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        node.refuse("attribute", f"mode is {mode!r}")
    at = x.positions
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        length = at.shape[axis]
        cut = slice(max(0, -before), length - max(0, -after))
        at = at[(slice(None),) * axis + (cut,)]
        widths = [(0, 0)] * rank
        widths[axis] = (max(0, before), max(0, after))
        if not any(widths[axis]):
            continue
        if at.size == 0:
            node.refuse("shape", f"padding {pads} leaves nothing of a tensor of shape {x.shape}")
        if mode != "constant" and at.shape[axis] <= (max(widths[axis]) if mode == "reflect" else 0):
            node.refuse("attribute", f"{mode} padding of {widths[axis]} on an axis of {at.shape[axis]} entries")
        node.builder.reserve(at.size // at.shape[axis] * (at.shape[axis] + sum(widths[axis])))
        if mode == "constant":
            at = np.pad(at, widths, constant_values=-1)
        else:
            at = np.pad(at, widths, mode=mode)  # type: ignore[arg-type]
    if mode != "constant" or np.all(at >= 0):
        return _picked(node, x, at)
    return _filled(node, x, at)


def _filled(node: Node, x: Value, at: Array) -> Value:
    """The entries of x at these positions, and the padding value at -1."""
    padding = np.zeros(())
    if node.opset < 11:
        padding = np.array(node.attributes["value"])
    elif node.has(2):
        given = node.fixed(2, "padding value")
        padding = np.asarray(given.whole if given.real is None else given.real.values).reshape(-1)[:1].reshape(())
    if isinstance(x, Fixed):
        inside = x.take(np.maximum(at, 0))
        if inside.real is None:
            return Fixed(type=x.type, whole=np.where(at >= 0, np.asarray(inside.whole), padding.astype(np.int64)))
        radius = None if inside.real.radius is None else np.where(at >= 0, inside.real.radius, 0.0)
        return Fixed(type=x.type, real=Enclosed(values=np.where(at >= 0, inside.real.values, padding), radius=radius))
    node.builder.reserve(at.size)
    y = node.select(x, at, "" if padding == 0.0 else ".inside")
    if padding == 0.0:
        return y
    if not np.isfinite(padding):
        node.refuse("non-finite", "the padding is not finite")
    return added(node, [y, Fixed(type=x.type, real=Enclosed(values=np.where(at >= 0, 0.0, padding)))])


# -------------------------------------------------------------------------------------------- Where, and rearrangements


@register_operator("Where")
def _where(node: Node) -> Value:
    condition = node.fixed(0, "condition")
    if condition.whole is None or condition.whole.dtype != np.bool_:
        node.refuse("dtype", f"the condition is {type_name(condition.type)}")
    a, b = node.value(1), node.value(2)
    shape = broadcast_shape(condition.shape, a.shape, b.shape)
    mask = np.broadcast_to(condition.whole, shape)
    if isinstance(a, Fixed) and isinstance(b, Fixed):
        return _chosen_constant(node, mask, a, b)
    if mask.all() or not mask.any():
        kept = a if mask.all() else b
        return _picked(node, kept, np.broadcast_to(kept.positions, shape))
    parts = [scaled(node, v, Enclosed(values=m), f".{k}") for k, v, m in _masked(mask, a, b)]
    return added(node, parts)


def _masked(mask: Array, a: Value, b: Value) -> list[tuple[str, Value, Array]]:
    return [("first", a, mask.astype(np.float64)), ("second", b, (~mask).astype(np.float64))]


def _chosen_constant(node: Node, mask: Array, a: Fixed, b: Fixed) -> Fixed:
    if a.type != b.type:
        node.refuse("dtype", f"{type_name(a.type)} and {type_name(b.type)} are mixed")
    if a.real is None or b.real is None:
        return Fixed(type=a.type, whole=np.where(mask, np.asarray(a.whole), np.asarray(b.whole)))
    radius = None
    if a.real.radius is not None or b.real.radius is not None:
        radii = [np.zeros(v.shape) if v.radius is None else v.radius for v in (a.real, b.real)]
        radius = np.where(mask, *radii)
    return Fixed(type=a.type, real=Enclosed(values=np.where(mask, a.real.values, b.real.values), radius=radius))


def _blocks(node: Node) -> Value:
    """DepthToSpace and SpaceToDepth."""
    x, size = node.value(0), int(node.attributes["blocksize"])
    if len(x.shape) != 4 or size < 1:
        node.refuse("shape", f"{node.op_type} with blocks of {size} of a tensor of shape {x.shape}")
    n, c, h, w = x.shape
    if node.op_type == "SpaceToDepth":
        if h % size or w % size:
            node.refuse("shape", f"blocks of {size} do not fit a tensor of shape {x.shape}")
        at = x.positions.reshape(n, c, h // size, size, w // size, size).transpose(0, 3, 5, 1, 2, 4)
        return _picked(node, x, at.reshape(n, c * size * size, h // size, w // size))
    if c % (size * size):
        node.refuse("shape", f"blocks of {size} do not fit {c} channels")
    rest = c // (size * size)
    if node.attributes.get("mode", "DCR") == "CRD":
        at = x.positions.reshape(n, rest, size, size, h, w).transpose(0, 1, 4, 2, 5, 3)
    else:
        at = x.positions.reshape(n, size, size, rest, h, w).transpose(0, 3, 4, 1, 5, 2)
    return _picked(node, x, at.reshape(n, rest, h * size, w * size))


register_operator("DepthToSpace")(_blocks)
register_operator("SpaceToDepth")(_blocks)


@register_operator("Trilu")
def _trilu(node: Node) -> Value:
    x = node.value(0)
    if len(x.shape) < 2:
        node.refuse("shape", f"Trilu of a tensor of shape {x.shape}")
    k = node.integers(1, "diagonal")[0] if node.has(1) else 0
    keep = np.triu(np.ones(x.shape[-2:]), k) if node.attributes["upper"] else np.tril(np.ones(x.shape[-2:]), k)
    if isinstance(x, Fixed) and x.whole is not None:
        return Fixed(type=x.type, whole=np.where(keep > 0.0, x.whole, x.whole.dtype.type(0)))
    return scaled(node, node.real(0), Enclosed(values=np.broadcast_to(keep, x.shape)))


# ------------------------------------------------------------------------------------------------------------- Gather


def _index(node: Node) -> Array:
    indices = node.fixed(1, "index")
    if indices.whole is None or indices.whole.dtype == np.bool_:
        node.refuse("dtype", f"the index is {type_name(indices.type)}")
    return np.asarray(indices.whole)


def _wrapped(node: Node, index: Array, length: int) -> Array:
    if index.size and (index.min() < -length or index.max() >= length):
        node.refuse("attribute", f"an index is outside the {length} entries of its axis")
    return index % length


@register_operator("Gather")
def _gather(node: Node) -> Value:
    x, index = node.value(0), _index(node)
    axis = axis_of(int(node.attributes["axis"]), len(x.shape))
    size = prod((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))
    node.builder.reserve(size)
    return _picked(node, x, np.take(x.positions, _wrapped(node, index, x.shape[axis]), axis=axis))


@register_operator("GatherElements")
def _gather_elements(node: Node) -> Value:
    x, index = node.value(0), _index(node)
    axis = axis_of(int(node.attributes["axis"]), len(x.shape))
    if index.ndim != len(x.shape) or any(
        m > n for k, (m, n) in enumerate(zip(index.shape, x.shape, strict=True)) if k != axis
    ):
        node.refuse("shape", f"an index of shape {index.shape} into a tensor of shape {x.shape}")
    at = x.positions[tuple(slice(None) if k == axis else slice(0, m) for k, m in enumerate(index.shape))]
    return _picked(node, x, np.take_along_axis(at, _wrapped(node, index, x.shape[axis]), axis=axis))


@register_operator("GatherND")
def _gather_nd(node: Node) -> Value:
    x, index = node.value(0), _index(node)
    batch = int(node.attributes.get("batch_dims", 0) or 0)
    if not index.ndim or not 0 <= batch < min(index.ndim, len(x.shape)) or index.shape[:batch] != x.shape[:batch]:
        node.refuse("shape", f"an index of shape {index.shape} into a tensor of shape {x.shape}")
    depth = index.shape[-1]
    if not 1 <= depth <= len(x.shape) - batch:
        node.refuse("shape", f"an index of {depth} numbers into a tensor of shape {x.shape}")
    lead = np.ix_(*(range(d) for d in index.shape[:batch]))
    rest = index.ndim - 1 - batch
    places = [np.asarray(v).reshape(*v.shape, *[1] * rest) for v in lead]
    places += [_wrapped(node, index[..., k], x.shape[batch + k]) for k in range(depth)]
    return _picked(node, x, x.positions[tuple(places)])
