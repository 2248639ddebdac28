"""Sliding windows as the exact checker reads them: Conv, AveragePool and GlobalAveragePool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import numpy as np

from lipmodel.certify.operands import Array, Node, Value, constant
from lipmodel.certify.tape import MAX_ENTRIES, Fixed, Unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Per spatial axis: entries of the input, taps, distance of windows and of taps, padding, number of windows."""

    spatial: tuple[int, ...]
    taps: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    count: tuple[int, ...]

    def met(self, tap: Sequence[int]) -> tuple[list[Array], list[Array]]:
        """Per axis: the windows of which this tap meets the input, and the entries that it meets there."""
        windows, entries = [], []
        for n, m, t, s, d, p in zip(
            self.spatial, self.count, tap, self.strides, self.dilations, self.before, strict=True
        ):
            at = np.arange(m) * s + t * d - p
            inside = np.flatnonzero((at >= 0) & (at < n))
            windows.append(inside)
            entries.append(at[inside])
        return windows, entries

    def counted(self, *, padding: bool) -> Array:
        """How many taps of every window lie in the input, or in the padded input."""
        result: Any = np.ones((), dtype=np.int64)
        for n, m, k, s, d, q, p in zip(
            self.spatial, self.count, self.taps, self.strides, self.dilations, self.after, self.before, strict=True
        ):
            first, end = (0, p + n + q) if padding else (p, p + n)
            hits = [sum(first <= w * s + t * d < end for t in range(k)) for w in range(m)]
            result = np.multiply.outer(result, np.array(hits))
        return np.asarray(result)


def padding(
    node: Node, spatial: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The padding before and after, per axis, for windows that reach over `spans` entries."""
    rank, mode = len(spatial), node.attributes["auto_pad"]
    if mode == "NOTSET":
        pads = list(node.attributes["pads"] or [0] * 2 * rank)
        if len(pads) != 2 * rank or min(pads) < 0:
            raise Unreadable("a negative padding, or one that does not fit")
        return pads[:rank], pads[rank:]
    if mode == "VALID":
        return [0] * rank, [0] * rank
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise Unreadable(f"auto_pad {mode!r}")
    missing = [max(0, (-(-n // s) - 1) * s + span - n) for n, s, span in zip(spatial, strides, spans, strict=True)]
    less = [v // 2 for v in missing]
    more = [v - u for u, v in zip(less, missing, strict=True)]
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def windows_of(node: Node, spatial: tuple[int, ...], taps: tuple[int, ...]) -> Windows:
    """The windows of a convolution or pooling node with so many taps per axis."""
    strides, dilations = (tuple(node.attributes.get(key) or [1] * len(spatial)) for key in ("strides", "dilations"))
    if min(*strides, *dilations, *taps) < 1 or not spatial:
        raise Unreadable(f"the operator {node.op} without spatial axes, or with windows of no size")
    spans = [(k - 1) * d + 1 for k, d in zip(taps, dilations, strict=True)]
    before, after = padding(node, spatial, spans, strides)
    ceil, count = bool(node.attributes.get("ceil_mode")), []
    for n, s, p, q, span in zip(spatial, strides, before, after, spans, strict=True):
        free = n + p + q - span
        if free < 0:
            raise Unreadable("windows that are larger than what they slide over")
        last = -(-free // s) if ceil else free // s
        begins_behind = ceil and last * s >= n + p
        count.append(last if begins_behind else last + 1)
    return Windows(
        spatial=spatial,
        taps=taps,
        strides=strides,
        dilations=dilations,
        before=tuple(before),
        after=tuple(after),
        count=tuple(count),
    )


def _met(windows: Windows, out: Array, inside: Array) -> Iterator[tuple[tuple[int, ...], Array, Array, list[Array]]]:
    """For every tap: positions of outputs and inputs that it joins, (batch, channels, places), and which windows."""
    for tap in product(*map(range, windows.taps)):
        places, sources = windows.met(tap)
        if all(len(p) for p in places):
            heads = [np.arange(k) for k in out.shape[:2]], [np.arange(k) for k in inside.shape[:2]]
            at = out[np.ix_(*heads[0], *places)], inside[np.ix_(*heads[1], *sources)]
            yield tap, at[0].reshape(*out.shape[:2], -1), at[1].reshape(*inside.shape[:2], -1), places


def _joined(windows: Windows, w: Array, groups: int, out: Array, inside: Array) -> tuple[Array, Array, Array]:
    """All that a kernel joins, group by group: which weight, and the positions of the output and the input."""
    weight = np.arange(w.size).reshape(w.shape)
    parts: list[list[Array]] = [[np.zeros(0, dtype=np.int64)] for _ in range(3)]
    for tap, a, b, _ in _met(windows, out, inside):
        at: tuple[Any, ...] = (slice(None), slice(None), *tap)
        which = weight[at].reshape(1, groups, -1, w.shape[1], 1)
        rows, columns = a.reshape(len(a), groups, -1, 1, a.shape[-1]), b.reshape(len(b), groups, 1, -1, b.shape[-1])
        for part, found in zip(parts, np.broadcast_arrays(which, rows, columns), strict=True):
            part.append(found.ravel())
    first, second, third = (np.concatenate(part) for part in parts)
    return first, second, third


def conv(node: Node) -> Value:
    x, w, groups = node.moving(0), node.fixed(1), node.attributes["group"]
    if len(x.shape) < 3 or len(x.shape) != w.ndim or w.shape[1] * groups != x.shape[1] or w.shape[0] % groups:
        raise Unreadable("a convolution whose kernel does not fit")
    windows = windows_of(node, x.shape[2:], w.shape[2:])
    shape = (x.shape[0], w.shape[0], *windows.count)
    if w.size * prod(windows.count) * x.shape[0] > 2 * MAX_ENTRIES:
        raise Unreadable("a convolution that is too large")
    which, rows, columns = _joined(windows, w, groups, np.arange(prod(shape)).reshape(shape), x.at)
    return node.weighted(x, w, which, rows, columns, shape, _bias(node, shape))


def conv_transpose(node: Node) -> Value:
    """Entry i of the input adds its multiple of the kernel to the output from i * stride - padding on."""
    x, w, groups = node.moving(0), node.fixed(1), node.attributes["group"]
    if len(x.shape) < 3 or len(x.shape) != w.ndim or w.shape[0] != x.shape[1] or x.shape[1] % groups:
        raise Unreadable("a convolution whose kernel does not fit")
    spatial, taps, rank = x.shape[2:], w.shape[2:], w.ndim - 2
    strides, dilations = (tuple(node.attributes[key] or [1] * rank) for key in ("strides", "dilations"))
    more = node.attributes["output_padding"] or [0] * rank
    whole = [
        (n - 1) * s + (k - 1) * d + 1 + e for n, k, s, d, e in zip(spatial, taps, strides, dilations, more, strict=True)
    ]
    before, output = _cropped(node, spatial, strides, whole)
    if min(*strides, *dilations, *output) < 1 or w.size * prod(spatial) * x.shape[0] > 2 * MAX_ENTRIES:
        raise Unreadable("a transposed convolution that is too large, or without an output")
    shape = (x.shape[0], w.shape[1] * groups, *output)
    # the convolution that leads back reads from the output what this one adds to it
    back = Windows(
        spatial=output, taps=taps, strides=strides, dilations=dilations, before=before, after=(0,) * rank, count=spatial
    )
    which, columns, rows = _joined(back, w, groups, x.at, np.arange(prod(shape)).reshape(shape))
    return node.weighted(x, w, which, rows, columns, shape, _bias(node, shape))


def _cropped(
    node: Node, spatial: Sequence[int], strides: Sequence[int], whole: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is cut off in front of the whole output, and what is left of it, per axis."""
    rank, mode, wanted = len(spatial), node.attributes["auto_pad"], node.attributes["output_shape"]
    if not wanted and mode in ("NOTSET", "VALID"):
        pads = node.attributes["pads"] if mode == "NOTSET" else None
        pads = pads or [0] * 2 * rank
        if len(pads) != 2 * rank or min(pads) < 0:
            raise Unreadable("a negative padding, or one that does not fit")
        return tuple(pads[:rank]), tuple(n - p - q for n, p, q in zip(whole, pads[:rank], pads[rank:], strict=True))
    sizes = list(wanted)[-rank:] if wanted else [n * s for n, s in zip(spatial, strides, strict=True)]
    cut = [n - m for n, m in zip(whole, sizes, strict=True)]
    if min(cut) < 0:
        raise Unreadable("a transposed convolution with an output that it does not reach")
    return tuple(c // 2 if mode == "SAME_UPPER" else c - c // 2 for c in cut), tuple(sizes)


def _bias(node: Node, shape: tuple[int, ...]) -> Fixed | None:
    """The third input, one number per channel."""
    if not node.given(2):
        return None
    return constant(np.broadcast_to(node.fixed(2).reshape(-1, *[1] * (len(shape) - 2)), shape))


def average_pool(node: Node) -> Value:
    x = node.moving(0)
    spatial = x.shape[2:]
    if node.op == "GlobalAveragePool":
        attributes: dict[str, Any] = {"auto_pad": "VALID"}
        windows = windows_of(replace(node, attributes=attributes), spatial, spatial)
    else:
        windows = windows_of(node, spatial, tuple(node.attributes["kernel_shape"]))
    shape = (*x.shape[:2], *windows.count)
    if prod(shape) * prod(windows.taps) > 2 * MAX_ENTRIES:
        raise Unreadable("a pooling that is too large")
    counts = windows.counted(padding=bool(node.attributes.get("count_include_pad")))
    if not counts.all():
        raise Unreadable("the average over a window in the padding")
    number = np.arange(counts.size).reshape(counts.shape)
    parts: list[list[Array]] = [[], [], []]
    for _, out, inside, places in _met(windows, np.arange(prod(shape)).reshape(shape), x.at):
        for part, found in zip(parts, (out, inside, number[np.ix_(*places)].ravel()), strict=True):
            part.append(np.broadcast_to(found, out.shape).ravel())
    rows, columns, which = (np.concatenate(part) for part in parts)
    weights = np.array([Fraction(1, c) for c in counts.ravel().tolist()], dtype=object)
    return node.weighted(x, weights, which, rows, columns, shape)
