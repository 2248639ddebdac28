"""Handlers of MaxPool, Max, Min, ReduceMax, ReduceMin, TopK and their like: affine maps and Relu, exactly.

    max(a, b) = b + relu(a - b)        min(a, b) = a - relu(a - b)

with one relu for both of them, whoever asks for it: two independent ones would make sqrt 2 of the Lipschitz constant 1.
Larger windows are tournaments, in which windows that overlap share what they have in common; sorting is a network of
comparators (Batcher 1968). Where a monotone activation is followed by a maximum alone, the maximum comes first:
max(phi(a), phi(b)) = phi(max(a, b)), which leaves one activation for a whole window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.network.constants import Enclosed
from lipmodel.network.linear import Diagonal, Selection, Sparse, identity
from lipmodel.network.onnx_arithmetic import added, fixed, reduced_axes
from lipmodel.network.onnx_conv import per_axis, spatial_axes, windows_of
from lipmodel.network.onnx_ops import Computed, Fixed, Node, Value, axis_of, broadcast_shape, register_operator
from lipmodel.network.ops import Add, Concat, Elementwise, Linear, elementwise

Array = np.ndarray[Any, Any]


def _positive_part(node: Node, x: Computed, first: Array, second: Array) -> Computed:
    """relu(x[first] - x[second]), shape (len(first),): made once for every pair of lists."""
    known = node.builder.shared
    key = ("comparators", x.node, first.tobytes(), second.tobytes())
    if key not in known:
        node.builder.reserve(2 * len(first))
        rows = np.repeat(np.arange(len(first)), 2)
        columns = np.stack([first, second], axis=1).ravel()
        signs = np.tile([1.0, -1.0], len(first))
        map = Sparse(weights=sp.csr_array((signs, (rows, columns)), shape=(len(first), x.size)))
        difference = node.linear(x, map, (len(first),), suffix=".difference")
        known[key] = node.elementwise(difference, _relu(len(first)))
    found: Computed = known[key]
    return found


def _relu(size: int) -> Elementwise:
    from lipmodel.activations import activation

    return elementwise(activation("Relu"), size)


def _placed(node: Node, x: Computed, rows: Array, signs: Array, size: int) -> Computed:
    """The vector of `size` entries that has signs * x at `rows` and is 0 elsewhere."""
    if not np.all(signs == 1.0):
        x = node.linear(x, Diagonal(values=signs), x.shape, suffix=".sign")
    index = np.full(size, -1)
    index[rows] = np.arange(len(rows))
    return node.linear(x, Selection(index=index, size=x.size), (size,), suffix=".placed")


def extremum(node: Node, x: Computed, table: Array, *, least: bool = False) -> Computed:
    """The largest (least) of the entries of x, flattened, that each row of the table lists; -1 is no entry.

    table: (W, r), at least one entry in each row. The result has shape (W,).
    """
    table = np.sort(table, axis=1)[:, ::-1]  # no entries last
    while table.shape[1] > 1:
        if table.shape[1] % 2:
            table = np.column_stack([table, np.full(len(table), -1)])
        a, b = table[:, 0::2], table[:, 1::2]
        b = np.where(b == a, -1, b)
        paired = b >= 0
        pairs, of_pair = np.unique(a[paired] * x.size + b[paired], return_inverse=True)
        lone = ~paired & (a >= 0)
        singles, of_single = np.unique(a[lone], return_inverse=True)
        table = np.full(a.shape, -1)
        table[paired], table[lone] = of_pair, len(pairs) + of_single
        if len(pairs):
            x = _round(node, x, pairs // x.size, pairs % x.size, singles, least=least)
        else:
            x = node.select(x, singles)
    return node.select(x, table[:, 0])


def _round(node: Node, x: Computed, first: Array, second: Array, kept: Array, *, least: bool) -> Computed:
    """One round: the extrema of x[first] and x[second], followed by x[kept]."""
    part = _positive_part(node, x, first, second)
    size = len(first) + len(kept)
    start = node.select(x, np.concatenate([first if least else second, kept]), ".start")
    gain = _placed(node, part, np.arange(len(first)), np.full(len(first), -1.0 if least else 1.0), size)
    return node.add(Add(), [start, gain], (size,), ".round")


def _before_activation(node: Node, x: Computed) -> tuple[Computed, Elementwise | None]:
    """What a monotone activation that only this node reads is applied to, and the activation; x itself otherwise."""
    graph = node.builder.graph
    op = graph.nodes[x.node]["op"]
    if not isinstance(op, Elementwise) or len(op.parts) != 1 or not _reads_alone(node):
        return x, None
    low, _ = op.parts[0].activation.slopes()
    if not low >= 0.0:
        return x, None
    ((before, _, _),) = graph.in_edges(x.node, keys=True)
    return Computed(node=before, shape=x.shape, type=x.type), op


def _reads_alone(node: Node) -> bool:
    """Whether nothing else in the file reads the first input of this node."""
    graph = node.file.model.graph
    proto = next(p for p in graph.node if node.outputs[0] in p.output)
    name = proto.input[0]
    readers = sum(list(p.input).count(name) for p in graph.node)
    return readers == 1 and all(o.name != name for o in graph.output)


def _after_activation(node: Node, x: Computed, op: Elementwise | None, shape: tuple[int, ...]) -> Computed:
    x = Computed(node=x.node, shape=shape, type=x.type)
    return x if op is None else node.elementwise(x, elementwise(op.parts[0].activation, x.size))


# -------------------------------------------------------------------------------------------------------------- pooling


@register_operator("MaxPool")
def _max_pool(node: Node) -> Sequence[Value | None]:
    """One axis after the other: never more comparators than window by window, and fewer where windows overlap."""
    whole = node.computed(0)
    spatial = spatial_axes(node, whole.shape)
    kernel = per_axis(node, "kernel_shape", len(spatial), 1)
    windows = windows_of(node, spatial, kernel)
    node.builder.reserve(prod(whole.shape[:2]) * max(prod(windows.output), 1))
    lines = [
        _line(n, out, k, step, before, dilation)
        for n, out, k, step, before, dilation in zip(
            spatial, windows.output, kernel, windows.strides, windows.before, windows.dilations, strict=True
        )
    ]
    if any((line < 0).all(axis=1).any() for line in lines):
        node.refuse("attribute", "a window that lies in the padding alone has no maximum")
    x, activation = _before_activation(node, whole)
    used = [np.unique(line[line >= 0]) for line in lines]
    at = x.positions[np.ix_(*(range(d) for d in x.shape[:2]), *used)]
    for axis in reversed(range(len(spatial))):
        line = lines[axis]
        place = np.where(line >= 0, np.searchsorted(used[axis], line), -1)
        swept = np.moveaxis(at, 2 + axis, -1)
        node.builder.reserve(swept.size // swept.shape[-1] * place.size)
        table = np.where(place >= 0, swept[..., np.maximum(place, 0)], -1)
        x = extremum(node, x, table.reshape(-1, line.shape[1]))
        at = np.moveaxis(np.arange(x.size).reshape(table.shape[:-1]), -1, 2 + axis)
    x = node.select(x, at)
    return [_after_activation(node, x, activation, (*whole.shape[:2], *windows.output)), None]


def _line(length: int, output: int, kernel: int, stride: int, before: int, dilation: int) -> Array:
    """The entries of one axis that every window reads, -1 for padding: (output, kernel)."""
    at = np.arange(output)[:, None] * stride - before + np.arange(kernel)[None, :] * dilation
    return np.where((at >= 0) & (at < length), at, -1)


@register_operator("GlobalMaxPool")
def _global_max_pool(node: Node) -> Value:
    x = node.computed(0)
    spatial_axes(node, x.shape)
    return _reduced(node, range(2, len(x.shape)), keep=True, least=False)


# ------------------------------------------------------------------------------------------------- along axes, and sort


def _reduced(node: Node, axes: Sequence[int], *, keep: bool, least: bool) -> Value:
    value = node.real(0)
    shape = tuple(1 if k in axes else d for k, d in enumerate(value.shape))
    final = shape if keep else tuple(d for k, d in enumerate(value.shape) if k not in axes)
    if isinstance(value, Fixed):
        real = _stored(node, value)
        found = (np.min if least else np.max)(real, axis=tuple(axes), keepdims=keep)
        return fixed(node, value.type, Enclosed(values=np.asarray(found)))
    if not axes:
        return value
    x, activation = _before_activation(node, value)
    others = [k for k in range(len(shape)) if k not in axes]
    table = x.positions.transpose(*others, *axes).reshape(prod(final), -1)
    return _after_activation(node, extremum(node, x, table, least=least), activation, final)


def _reduce(node: Node) -> Value:
    chosen = reduced_axes(node, len(node.real(0).shape))
    return _reduced(node, chosen, keep=bool(node.attributes["keepdims"]), least=node.op_type == "ReduceMin")


register_operator("ReduceMax")(_reduce)
register_operator("ReduceMin")(_reduce)


@register_operator("TopK")
def _top_k(node: Node) -> Sequence[Value | None]:
    """The k largest (smallest) entries along an axis, in order; their indices move in jumps and are not supported."""
    x = node.computed(0)
    axis = axis_of(int(node.attributes["axis"]), len(x.shape))
    if node.opset >= 10 and node.fixed(1, "number of entries").shape != (1,):
        node.refuse("shape", f"the number of entries has shape {node.fixed(1, 'number of entries').shape}, not (1,)")
    count = int(node.attributes["k"]) if node.opset < 10 else node.integers(1, "number of entries")[0]
    if not 0 < count <= x.shape[axis]:
        node.refuse("attribute", f"there are no {count} entries on an axis of {x.shape[axis]}")
    if not node.attributes.get("sorted", 1):
        node.refuse("attribute", "TopK without an order (sorted = 0)", "export it with sorted = 1")
    lanes = np.moveaxis(x.positions, axis, -1)
    if count == 1:
        table = lanes.reshape(-1, x.shape[axis])
        best = extremum(node, x, table, least=not node.attributes.get("largest", 1))
        return [Computed(node=best.node, shape=(*x.shape[:axis], 1, *x.shape[axis + 1 :]), type=x.type), None]
    flat = Computed(node=x.node, shape=(x.size,), type=x.type)
    for layer in sorting_network(x.shape[axis]):
        low, high = (lanes[..., list(side)].ravel() for side in zip(*layer, strict=True))
        part = _positive_part(node, flat, low, high)
        # the smaller of a pair goes to the lower place: x[low] - relu and x[high] + relu
        twice = node.select(part, np.tile(np.arange(part.size), 2), ".both")
        signs = np.repeat([-1.0, 1.0], part.size)
        gain = _placed(node, twice, np.concatenate([low, high]), signs, flat.size)
        flat = node.add(Add(), [flat, gain], flat.shape, ".sorted")
    order = range(x.shape[axis])
    chosen = list(order[:count] if not node.attributes.get("largest", 1) else order[::-1][:count])
    return [node.select(flat, np.moveaxis(lanes[..., chosen], -1, axis)), None]


def sorting_network(n: int) -> Iterator[list[tuple[int, int]]]:
    """Layers of comparators (i, j), i < j, that sort n entries in ascending order.

    Source: Batcher 1968, "Sorting networks and their applications" (odd-even merge sort; the fewest for n up to 4).
    """
    span = 1
    while span < n:
        step = span
        while step:
            layer = [
                (i + j, i + j + step)
                for i in range(step % span, n - step, 2 * step)
                for j in range(min(step, n - i - step))
                if (i + j) // (2 * span) == (i + j + step) // (2 * span)
            ]
            if layer:
                yield layer
            step //= 2
        span *= 2


# --------------------------------------------------------------------------------------------------- of several tensors


def _extreme(node: Node) -> Value:
    """Max and Min of any number of tensors: the constants among them together are one."""
    least = node.op_type == "Min"
    values = [node.value(port) for port in range(len(node.inputs))]
    if all(isinstance(v, Fixed) and v.whole is not None for v in values):
        wholes = [np.asarray(v.whole) for v in values if isinstance(v, Fixed)]
        broadcast_shape(*(w.shape for w in wholes))
        combined = wholes[0]
        for w in wholes[1:]:
            combined = (np.minimum if least else np.maximum)(combined, w)
        return Fixed(type=values[0].type, whole=combined)
    values = [node.real(port) for port in range(len(node.inputs))]
    shape = broadcast_shape(*(v.shape for v in values))
    if node.opset < 8 and any(v.shape != shape for v in values):
        node.refuse("shape", f"{node.op_type} of tensors of shapes {', '.join(str(v.shape) for v in values)}")
    moving = [node.broadcast(v, shape) for v in values if isinstance(v, Computed)]
    limits = [_stored(node, v) for v in values if isinstance(v, Fixed)]
    limit = None
    for stored in limits:
        limit = stored if limit is None else (np.minimum if least else np.maximum)(limit, stored)
    if not moving:
        assert limit is not None
        return fixed(node, values[0].type, Enclosed(values=np.broadcast_to(limit, shape)))
    x = _joined(node, moving, shape, least=least)
    return x if limit is None else _limited(node, x, np.broadcast_to(limit, shape), least=least)


register_operator("Max")(_extreme)
register_operator("Min")(_extreme)


def _stored(node: Node, value: Fixed) -> Array:
    if value.real is None or value.real.radius is not None:
        node.refuse("dtype", f"{node.op_type} of a constant that is not a stored floating-point tensor")
    return value.real.values


def _joined(node: Node, values: list[Computed], shape: tuple[int, ...], *, least: bool) -> Computed:
    """The entrywise extremum of tensors of one shape; entries of one tensor are compared there, not as copies."""
    roots = [_root(node, v) for v in values]
    names = sorted({name for name, _ in roots})
    sizes = [prod(node.builder.graph.nodes[name]["shape"]) for name in names]
    starts = dict(zip(names, np.cumsum([0, *sizes]).tolist(), strict=False))
    table = np.stack([starts[name] + index for name, index in roots], axis=1)
    if len(names) == 1:
        x = Computed(node=names[0], shape=(sizes[0],), type=values[0].type)
    else:
        known, key = node.builder.shared, ("joined", *names)
        if key not in known:
            ends = [starts[name] + size for name, size in zip(names, sizes, strict=True)]
            positions = tuple(np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True))
            node.builder.reserve(sum(sizes))
            tensors = [
                Computed(node=name, shape=(size,), type=values[0].type) for name, size in zip(names, sizes, strict=True)
            ]
            known[key] = node.add(Concat(positions=positions), tensors, (sum(sizes),), ".joined")
        x = known[key]
    x = extremum(node, x, table, least=least)
    return Computed(node=x.node, shape=shape, type=x.type)


def _root(node: Node, x: Computed) -> tuple[str, Array]:
    """The tensor that the entries of x are copied from, and which they are."""
    graph, name, index = node.builder.graph, x.node, np.arange(x.size)
    while True:
        op = graph.nodes[name]["op"]
        if not isinstance(op, Linear) or op.bias is not None or not isinstance(op.map, Selection):
            return name, index
        further = op.map.index[index]
        if np.any(further < 0):
            return name, index
        index = further
        ((name, _, _),) = graph.in_edges(name, keys=True)


def _limited(node: Node, x: Computed, limit: Array, *, least: bool) -> Computed:
    """max(x, c) = c + relu(x - c) and min(x, c) = c - relu(c - x) for a constant c."""
    sign = -1.0 if least else 1.0
    c = Fixed(type=x.type, real=Enclosed(values=limit))
    below = Enclosed(values=-sign * limit)
    moved = node.linear(x, Diagonal(values=np.full(x.size, sign)) if least else identity(x.size), x.shape, below)
    part = node.elementwise(moved, _relu(x.size))
    signed = node.linear(part, Diagonal(values=np.full(x.size, sign)), x.shape, suffix=".sign") if least else part
    result = added(node, [signed, c])
    assert isinstance(result, Computed)
    return result
