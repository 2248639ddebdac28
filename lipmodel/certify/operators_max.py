"""Maxima, minima and sorting as the exact checker reads them: affine maps and Relu.

    max(a, b) = b + relu(a - b)        min(a, b) = a - relu(a - b)

with one relu for both, which whoever asks for that pair shares. Of more entries it is a tournament: in every round
neighbours of the list meet, entries in descending order of position at first; the encounters are in lexicographic order
whatever lists they occur in, entries without an opponent behind them. What is sorted goes through Batcher's network
(Batcher 1968, "Sorting networks and their applications"). A monotone function that the maximum alone reads is applied
behind it: max(phi(a), phi(b)) = phi(max(a, b)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from lipmodel.certify.functions import global_slopes
from lipmodel.certify.operands import MAX_TENSOR, Array, Handler, Moving, Node, Value, constant, positions, rational
from lipmodel.certify.operators_moves import axes_of, listed
from lipmodel.certify.operators_windows import Windows, windows_of
from lipmodel.certify.tape import Kind, Selected, Sparse, Step, Unreadable, selection

RELU = Kind("Relu")
NOBODY = -1
"""In a list of entries: none."""


# ---------------------------------------------------------------------------------------------------------- tournaments


def _relu(node: Node, x: Moving) -> Moving:
    alpha, beta = global_slopes(RELU)
    size = prod(x.shape)
    return Moving(node.tape.activation(x.step, node.name, [alpha] * size, [beta] * size, RELU), x.shape)


def _lead(node: Node, x: Moving, first: Array, second: Array) -> Moving:
    """relu(x[first] - x[second]), once for all who ask for it."""
    key = ("lead", x.step, first.tobytes(), second.tobytes())
    if key not in node.tape.shared:
        rows = [{a: (1, 0), b: (-1, 0)} for a, b in zip(first.tolist(), second.tolist(), strict=True)]
        difference = node.apply(x, Sparse(prod(x.shape), 0, rows), (len(rows),))
        node.tape.shared[key] = _relu(node, difference).step
    return Moving(node.tape.shared[key], (len(first),))


def _corrected(node: Node, x: Moving, start: Array, gain: Moving, signs: Sequence[dict[int, int]]) -> Moving:
    """x[start], plus gains with signs: {which: sign} for every entry."""
    map = Sparse(prod(gain.shape), 0, [{k: (s, 0) for k, s in row.items()} for row in signs])
    terms = [node.select(x, start).step, node.tape.linear(gain.step, map)]
    return Moving(node.tape.sum(terms), (len(start),))


def extremum(node: Node, x: Moving, lists: Array, *, least: bool = False) -> Moving:
    """The greatest (least) entry of x in every list of positions, of which there are as many as rows."""
    if lists.size > MAX_TENSOR or not (lists >= 0).any(axis=1).all():
        raise Unreadable(f"the operator {node.op} of nothing, or of too much")
    lists = -np.sort(-lists, axis=1)
    while lists.shape[1] > 1:
        odd = lists.shape[1] % 2
        left, right = lists[:, ::2], np.pad(lists, ((0, 0), (0, odd)), constant_values=NOBODY)[:, 1::2]
        met = np.stack([left, np.where(right == left, NOBODY, right)], axis=-1).reshape(-1, 2)
        codes, place = np.unique(met @ [prod(x.shape) + 1, 1], return_inverse=True)
        seen = np.zeros((len(codes), 2), dtype=np.int64)
        seen[place.ravel()] = met
        # encounters, entries alone, and none at all
        rank = np.where(seen[:, 0] < 0, 2, np.where(seen[:, 1] < 0, 1, 0))
        order = np.lexsort((seen[:, 1], seen[:, 0], rank))
        number = np.empty(len(order), dtype=np.int64)
        number[order] = np.arange(len(order))
        number[rank == 2] = NOBODY
        a, b = seen[order][np.sort(rank) < 2].T
        count = int(np.count_nonzero(rank == 0))
        x = _round(node, x, a, b, count, least) if count else node.select(x, a)
        lists = number[place.ravel()].reshape(left.shape)
    return node.select(x, lists[:, 0])


def _round(node: Node, x: Moving, a: Array, b: Array, count: int, least: bool) -> Moving:
    """The winners of `count` encounters a_i, b_i, followed by the other a_i."""
    start = a if least else np.concatenate([b[:count], a[count:]])
    signs = [{i: -1 if least else 1} if i < count else {} for i in range(len(a))]
    return _corrected(node, x, start, _lead(node, x, a[:count], b[:count]), signs)


# --------------------------------------------------------------------------------------------------- monotone functions


def _before(node: Node, x: Moving) -> tuple[Moving, Step | None]:
    """What a monotone function that nothing else reads is applied to, and the function; x itself otherwise."""
    step = node.tape.steps[x.step]
    if step.kind != "activation" or not node.alone or len(set(step.kinds)) > 1 or not step.alpha[0] >= 0:
        return x, None
    return Moving(step.sources[0], x.shape), step


def _behind(node: Node, x: Moving, step: Step | None, shape: tuple[int, ...]) -> Moving:
    if step is None:
        return Moving(x.step, shape)
    size = prod(shape)
    ends = [step.alpha[0]] * size, [step.beta[0]] * size
    return Moving(node.tape.activation(x.step, node.name, *ends, step.kinds[0]), shape)


# -------------------------------------------------------------------------------------------------------------- pooling


def max_pool(node: Node) -> Value:
    """Axis by axis, the last one first: the maximum over a window is the maximum over its rows of their maxima."""
    whole = node.moving(0)
    windows = windows_of(node, whole.shape[2:], tuple(node.attributes["kernel_shape"]))
    tables = [_taps(windows, axis) for axis in range(len(windows.spatial))]
    used = [np.unique(table[table >= 0]) for table in tables]
    x, function = _before(node, whole)
    at = x.at[np.ix_(*map(range, x.shape[:2]), *used)]
    for axis in reversed(range(len(tables))):
        lanes = np.moveaxis(at, 2 + axis, -1)
        if prod(lanes.shape[:-1]) * tables[axis].size > MAX_TENSOR:
            raise Unreadable("a pooling that is too large")
        inside = np.where(tables[axis] < 0, 0, np.searchsorted(used[axis], tables[axis]))
        lists = np.where(tables[axis] < 0, NOBODY, lanes[..., inside])
        x = extremum(node, x, lists.reshape(-1, tables[axis].shape[1]))
        at = np.moveaxis(x.at.reshape(lists.shape[:-1]), -1, 2 + axis)
    return _behind(node, node.select(x, at), function, (*whole.shape[:2], *windows.count))


def _taps(windows: Windows, axis: int) -> Array:
    """The entries of an axis that every window along it reads, one row per window."""
    n, taps, count = windows.spatial[axis], windows.taps[axis], windows.count[axis]
    if taps * count > MAX_TENSOR:
        raise Unreadable("a pooling that is too large")
    first = np.arange(count) * windows.strides[axis] - windows.before[axis]
    at = first[:, None] + np.arange(taps) * windows.dilations[axis]
    return np.where((at < 0) | (at >= n), NOBODY, at)


def global_max_pool(node: Node) -> Value:
    return _reduced(node, list(range(2, len(node.value(0).shape))), keep=True, least=False)


def reduced(node: Node) -> Value:
    """ReduceMax and ReduceMin."""
    given = listed(node, "axes", 1)
    if not given and node.attributes.get("noop_with_empty_axes"):
        return node.value(0)
    axes = axes_of(given or None, len(node.value(0).shape))
    return _reduced(node, axes, keep=bool(node.attributes["keepdims"]), least=node.op == "ReduceMin")


def _reduced(node: Node, axes: list[int], *, keep: bool, least: bool) -> Value:
    value, rank = node.value(0), len(node.value(0).shape)
    if not axes:
        return value
    others = [k for k in range(rank) if k not in axes]
    shape = tuple(1 if k in axes else d for k, d in enumerate(value.shape) if keep or k not in axes)
    lists = positions(value).transpose(*others, *sorted(axes)).reshape(prod(value.shape[k] for k in others), -1)
    if not isinstance(value, Moving):
        numbers, pick = rational(_stored(node, value).ravel()), min if least else max
        return _numbers((pick(lane) for lane in numbers[lists].tolist()), shape)
    x, function = _before(node, value)
    return _behind(node, extremum(node, x, lists, least=least), function, shape)


# -------------------------------------------------------------------------------------------------------------- sorting


def top_k(node: Node) -> Value:
    """The greatest (least) entries along an axis, in order."""
    x, (axis,) = node.moving(0), axes_of([node.attributes["axis"]], len(node.value(0).shape))
    count = node.attributes["k"] if node.opset < 10 else int(node.fixed(1, "i").reshape(()))
    n, largest = x.shape[axis], bool(node.attributes.get("largest", 1))
    if not 0 < count <= n or not node.attributes.get("sorted", 1):
        raise Unreadable("TopK without an order, or of entries that are not there")
    lanes = np.moveaxis(x.at, axis, -1)
    if count == 1:
        best = extremum(node, x, lanes.reshape(-1, n), least=not largest)
        return Moving(best.step, tuple(1 if k == axis else d for k, d in enumerate(x.shape)))
    flat = Moving(x.step, (prod(x.shape),))
    everything = np.arange(prod(x.shape))
    for pairs in sorting_layers(n):
        low, high = (lanes[..., list(side)].ravel() for side in zip(*pairs, strict=True))
        signs: list[dict[int, int]] = [{} for _ in everything]
        for k, (i, j) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            signs[i], signs[j] = {k: -1}, {k: 1}
        flat = _corrected(node, flat, everything, _lead(node, flat, low, high), signs)
    taken = np.arange(n)[::-1][:count] if largest else np.arange(count)
    return node.select(flat, np.moveaxis(lanes[..., taken], -1, axis))


def sorting_layers(n: int) -> Iterator[list[tuple[int, int]]]:
    """Rounds of encounters (i, j), the lesser entry going to place i < j, after which n entries ascend.

    Runs of `half` entries are merged two by two: first each entry of one with its match in the other, then, closer and
    closer, the entries left over with those of the next group.
    """
    half = 1
    while half < n:
        gap = half
        while gap:
            odd = int(gap < half)
            pairs = [
                (i, i + gap)
                for i in range(n - gap)
                if i % (2 * half) // gap % 2 == odd and i // (2 * half) == (i + gap) // (2 * half)
            ]
            if pairs:
                yield pairs
            gap //= 2
        half *= 2


# --------------------------------------------------------------------------------------------------- of several tensors


def extreme(node: Node) -> Value:
    """Max and Min of any number of tensors: the constants among them are one."""
    least = node.op == "Min"
    values = [node.value(port) for port in range(len(node.inputs))]
    shape = np.broadcast_shapes(*(v.shape for v in values))
    pick: Callable[..., Any] = min if least else max
    fixed = [v for v in values if not isinstance(v, Moving)]
    moving = [v for v in values if isinstance(v, Moving)]
    if not moving and all(v.dtype.kind == "i" for v in fixed):
        columns = (np.broadcast_to(v, shape).ravel().tolist() for v in fixed)
        return np.array(list(map(pick, zip(*columns, strict=True))), dtype=np.int64).reshape(shape)
    limit: Array | None = None
    if fixed:
        columns = (rational(np.broadcast_to(_stored(node, v), shape)).ravel().tolist() for v in fixed)
        limit = _numbers(map(pick, zip(*columns, strict=True)), shape)
    if not moving:
        assert limit is not None
        return limit
    x, lists = _pooled(node, moving, shape)
    best = Moving(extremum(node, x, lists, least=least).step, shape)
    return best if limit is None else _limited(node, best, limit, least)


def _stored(node: Node, value: Array) -> Array:
    if value.dtype.kind not in "fO":
        raise Unreadable(f"{node.op} of integers")
    return value


def _numbers(numbers: Iterable[Fraction], shape: tuple[int, ...]) -> Array:
    found = np.empty(prod(shape), dtype=object)
    found[:] = list(numbers)
    return found.reshape(shape)


def _limited(node: Node, x: Moving, limit: Array, least: bool) -> Moving:
    """max(x, c) = c + relu(x - c) and min(x, c) = c - relu(c - x)."""
    sign = Fraction(-1 if least else 1)
    signs = [sign] * prod(x.shape)
    part = _relu(node, node.scale(x, signs, constant(-sign * limit)))
    terms = [node.scale(part, signs).step, node.tape.still(limit.size, constant(limit))]
    return Moving(node.tape.sum(terms), x.shape)


def _pooled(node: Node, values: Sequence[Moving], shape: tuple[int, ...]) -> tuple[Moving, Array]:
    """The tensors that these are copied from, end to end by the names of their nodes, and which entries meet where."""
    found = [_origin(node, v, shape) for v in values]
    steps = _by_name(node, {step for step, _ in found})
    sizes = [node.tape.steps[step].size for step in steps]
    starts = np.cumsum([0, *sizes]).tolist()
    place = dict(zip(steps, starts, strict=False))
    lists = np.stack([place[step] + index for step, index in found], axis=1)
    if len(steps) == 1:
        return Moving(steps[0], (sizes[0],)), lists
    key = ("pooled", *steps)
    if key not in node.tape.shared:
        parts = []
        for step, (a, b) in zip(steps, pairwise(starts), strict=True):
            index = [i - a if a <= i < b else -1 for i in range(starts[-1])]
            parts.append(node.tape.linear(step, selection(index, b - a)))
        node.tape.shared[key] = node.tape.sum(parts)
    return Moving(node.tape.shared[key], (starts[-1],)), lists


def _origin(node: Node, x: Moving, shape: tuple[int, ...]) -> tuple[int, Array]:
    """The step that the entries of x, repeated to a shape, are copied from, and which they are."""
    step, index = x.step, np.broadcast_to(x.at, shape).ravel()
    while isinstance(map := node.tape.steps[step].map, Selected) and node.tape.steps[step].shift is None:
        rows = [map.rows[i] for i in index.tolist()]
        if not all(rows):
            break
        index = np.array([next(iter(row)) for row in rows], dtype=np.int64)
        (step,) = node.tape.steps[step].sources
    return step, index


def _by_name(node: Node, steps: set[int]) -> list[int]:
    """In the order of the names of their nodes, which may be followed by what begins with # or a point."""
    names = sorted((node.tape.owners.get(step, ""), step) for step in steps)
    for (a, _), (b, _) in pairwise(names):
        if a == b or (b.startswith(a) and b[len(a)] <= "."):
            raise Unreadable(f"{node.op} of tensors whose names are no order")
    return [step for _, step in names]


OPERATORS: Mapping[str, Handler] = {
    "MaxPool": max_pool,
    "GlobalMaxPool": global_max_pool,
    "ReduceMax": reduced,
    "ReduceMin": reduced,
    "TopK": top_k,
    "Max": extreme,
    "Min": extreme,
}
