"""Operators that pick, repeat, pad, mask or add up entries, as the exact checker reads them.

Each is a table of positions: which entry of the input an entry of the output is, -1 for none.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import prod

import numpy as np

from lipmodel.certify.operands import (
    MAX_TENSOR,
    Array,
    Moving,
    Node,
    Value,
    constant,
    moved,
    positions,
    reals,
    tensor,
)
from lipmodel.certify.tape import Unreadable, selection


def _whole(node: Node, port: int) -> list[int] | None:
    """A constant list of integers, or one integer; None where it is left out."""
    return np.atleast_1d(node.fixed(port, "i")).tolist() if node.given(port) else None


def listed(node: Node, name: str, port: int) -> list[int] | None:
    """What is an attribute in older operator sets, and an input in newer ones."""
    value = node.attributes.get(name)
    return _whole(node, port) if value is None else list(value)


def axes_of(given: list[int] | None, rank: int) -> list[int]:
    found = list(range(rank)) if given is None else [a + rank if a < 0 else a for a in given]
    if len(set(found)) != len(found) or not set(found) <= set(range(rank)):
        raise Unreadable("axes that are not there, or that are repeated")
    return found


def _filled(node: Node, x: Value, at: Array, fill: Array) -> Value:
    """The entries of x at these positions, and those of `fill` (broadcast) where there is none."""
    if at.size > MAX_TENSOR:
        raise Unreadable(f"the operator {node.op} with a result that is too large")
    held = at >= 0
    if held.all():
        return moved(node, x, at)
    if not isinstance(x, Moving):
        if (fill.dtype.kind in "fO") != (x.dtype.kind in "fO"):
            raise Unreadable("entries of several types")
        return np.where(held, x.ravel()[np.maximum(at, 0)] if x.size else fill, fill)
    shift = constant(np.where(held, 0.0, fill)) if np.any(fill != 0) else None
    return node.apply(x, selection(at.ravel().tolist(), prod(x.shape)), at.shape, shift=shift)


def slice_(node: Node) -> Value:
    x = node.value(0)
    starts, ends = listed(node, "starts", 1), listed(node, "ends", 2)
    assert starts is not None
    assert ends is not None
    axes = axes_of(listed(node, "axes", 3) or list(range(len(starts))), len(x.shape))
    steps = _whole(node, 4) or [1] * len(starts)
    at = positions(x)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n = x.shape[axis]
        start, end = (v + n if v < 0 else v for v in (start, end))
        low, high = (0, n) if step > 0 else (-1, n - 1)
        taken = range(min(max(start, 0), high), min(max(end, low), high), step)
        at = np.take(at, np.array(taken, dtype=np.int64), axis=axis)
    return moved(node, x, at)


def split(node: Node) -> list[Value]:
    x, (axis,) = node.value(0), axes_of([node.attributes["axis"]], len(node.value(0).shape))
    n, count = x.shape[axis], node.outputs
    sizes = listed(node, "split", 1)
    if sizes is None:
        each = -(-n // count)
        sizes = [max(0, min(each, n - k * each)) for k in range(count)]
        if n % count and node.attributes.get("num_outputs") != count:
            raise Unreadable("a split into parts that are not equal")
    if len(sizes) != count or sum(sizes) != n or min(sizes) < 0:
        raise Unreadable("a split whose parts do not fit")
    ends = np.cumsum([0, *sizes]).tolist()
    at = positions(x)
    return [moved(node, x, np.take(at, np.arange(a, b), axis=axis)) for a, b in pairwise(ends)]


def expand(node: Node) -> Value:
    x = node.value(0)
    shape = np.broadcast_shapes(x.shape, tuple(_whole(node, 1) or ()))
    return _filled(node, x, np.broadcast_to(positions(x), shape), np.zeros(()))


def tile(node: Node) -> Value:
    x, repeats = node.value(0), _whole(node, 1) or []
    if len(repeats) != len(x.shape) or min(repeats, default=0) < 0 or prod(x.shape) * prod(repeats) > MAX_TENSOR:
        raise Unreadable("Tile with repeats that do not fit, or too many")
    return moved(node, x, np.tile(positions(x), repeats))


def pad(node: Node) -> Value:
    x, mode = node.value(0), node.attributes["mode"]
    pads = listed(node, "pads", 1) or []
    axes = axes_of(_whole(node, 3), len(x.shape))
    fill = np.array(node.attributes.get("value") or 0.0)
    if node.given(2):
        fill = np.asarray(node.fixed(2, "fOib")).reshape(())
    elif not isinstance(x, Moving) and x.dtype.kind in "ib":
        fill = np.zeros((), dtype=x.dtype)
    at = positions(x)
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        n = x.shape[axis]
        index = np.arange(-before, n + after)
        outside = (index < 0) | (index >= n)
        if mode == "constant":
            taken = np.take(at, np.where(outside, 0, index), axis=axis)
            at = np.where(outside.reshape(-1, *[1] * (at.ndim - axis - 1)), -1, taken)
            continue
        if min(before, after) < 0 or (mode == "reflect" and max(before, after) >= n):
            raise Unreadable("a padding by reflection that is negative, or longer than what it reflects")
        if mode == "reflect":
            index = np.abs((index + n - 1) % max(2 * n - 2, 1) - n + 1)
        elif mode == "edge":
            index = np.clip(index, 0, n - 1)
        elif mode == "wrap":
            index = index % n
        else:
            raise Unreadable(f"Pad with mode {mode!r}")
        at = np.take(at, index, axis=axis)
    return _filled(node, x, at, fill)


def where(node: Node) -> Value:
    """One of two tensors entry by entry, which of them being constant."""
    a, b = node.value(1), node.value(2)
    shape = np.broadcast_shapes(node.fixed(0, "b").shape, a.shape, b.shape)
    mask = np.broadcast_to(node.fixed(0, "b"), shape)
    if mask.all() or not mask.any():
        kept = a if mask.all() else b
        return moved(node, kept, np.broadcast_to(positions(kept), shape))
    sides = [np.where(m, np.broadcast_to(positions(v), shape), -1) for v, m in ((a, mask), (b, ~mask))]
    if not isinstance(a, Moving) and not isinstance(b, Moving):
        return _filled(node, a, sides[0], np.broadcast_to(b, shape))
    terms = []
    for value, at in zip((a, b), sides, strict=True):
        part = _filled(node, value, at, np.zeros(()))
        terms.append(part.step if isinstance(part, Moving) else node.tape.still(part.size, constant(part)))
    return Moving(node.tape.sum(terms), shape)


def blocks(node: Node) -> Value:
    """DepthToSpace and SpaceToDepth: pixel (i, j) of a block of size s is in another channel."""
    x, s = node.value(0), node.attributes["blocksize"]
    n, c, h, w = x.shape
    if node.op == "SpaceToDepth":
        if h % s or w % s:
            raise Unreadable("blocks that do not fit")
        b, out, y, z = np.indices((n, c * s * s, h // s, w // s))
        inner, pixel = out % c, out // c
        return moved(node, x, positions(x)[b, inner, y * s + pixel // s, z * s + pixel % s])
    if c % (s * s):
        raise Unreadable("blocks that do not fit")
    few = c // (s * s)
    b, out, y, z = np.indices((n, few, h * s, w * s))
    pixel = y % s * s + z % s
    inner = out * s * s + pixel if node.attributes.get("mode") == "CRD" else pixel * few + out
    return moved(node, x, positions(x)[b, inner, y // s, z // s])


def trilu(node: Node) -> Value:
    x = node.value(0)
    (k,) = _whole(node, 1) or [0]
    row, column = np.indices(x.shape[-2:])
    kept = column - row >= k if node.attributes["upper"] else column - row <= k
    if isinstance(x, Moving):
        return node.scale(x, [Fraction(v) for v in np.broadcast_to(kept, x.shape).astype(int).ravel().tolist()])
    return _filled(node, x, np.where(kept, positions(x), -1), np.zeros((), dtype=x.dtype))


def _index(node: Node, at: Array, n: int) -> Array:
    if np.any(at < -n) or np.any(at >= n):
        raise Unreadable(f"{node.op} of entries that are not there")
    return at % n


def gather(node: Node) -> Value:
    x, index, (axis,) = node.value(0), node.fixed(1, "i"), axes_of([node.attributes["axis"]], len(node.value(0).shape))
    return _filled(node, x, np.take(positions(x), _index(node, index, x.shape[axis]), axis=axis), np.zeros(()))


def gather_elements(node: Node) -> Value:
    x, index, (axis,) = node.value(0), node.fixed(1, "i"), axes_of([node.attributes["axis"]], len(node.value(0).shape))
    places: list[Array] = list(np.indices(index.shape))
    places[axis] = _index(node, index, x.shape[axis])
    return _filled(node, x, positions(x)[tuple(places)], np.zeros(()))


def gather_nd(node: Node) -> Value:
    x, index, batch = node.value(0), node.fixed(1, "i"), node.attributes.get("batch_dims") or 0
    if index.ndim < batch + 1 or x.shape[:batch] != index.shape[:batch]:
        raise Unreadable("GatherND whose batches do not fit")
    grid: list[Array] = list(np.indices(index.shape[:-1])[:batch])
    grid += [_index(node, index[..., k], x.shape[batch + k]) for k in range(index.shape[-1])]
    return _filled(node, x, positions(x)[tuple(grid)], np.zeros(()))


def reduced(node: Node) -> Value:
    """ReduceSum and ReduceMean."""
    x = node.value(0)
    given = listed(node, "axes", 1)
    if not given and node.attributes.get("noop_with_empty_axes"):
        return x
    axes = axes_of(given or None, len(x.shape))
    kept = [k for k in range(len(x.shape)) if k not in axes]
    lanes = positions(x).transpose([*kept, *axes]).reshape(prod(x.shape[k] for k in kept), -1)
    shape = tuple(1 if k in axes else d for k, d in enumerate(x.shape))
    if not node.attributes["keepdims"]:
        shape = tuple(x.shape[k] for k in kept)
    weight = Fraction(1, lanes.shape[1]) if node.op == "ReduceMean" else Fraction(1)
    if not isinstance(x, Moving):
        if x.dtype.kind not in "fO":
            raise Unreadable(f"arithmetic on integers ({node.op})")
        sums = [sum(lane, start=Fraction(0)) * weight for lane in reals(x.ravel())[lanes].tolist()]
        return reals(np.array(sums, dtype=object)).reshape(shape)
    rows = np.repeat(np.arange(len(lanes)), lanes.shape[1])
    ones = np.zeros(lanes.size, dtype=np.int64)
    weights = np.array([weight], dtype=object)
    return node.weighted(x, weights, ones, rows, lanes.ravel(), shape)


def shape(node: Node) -> Value:
    """Shape and Size."""
    dims = node.value(0).shape
    if node.op == "Size":
        return np.array(prod(dims), dtype=np.int64)
    end = node.attributes.get("end")
    return np.array(dims[node.attributes.get("start") or 0 : end], dtype=np.int64)


def constant_of_shape(node: Node) -> Value:
    shape, value = _whole(node, 0) or [], node.attributes["value"]
    if prod(shape) > MAX_TENSOR:
        raise Unreadable("a constant that is too large")
    return np.full(shape, 0.0 if value is None else tensor(value).reshape(()))
