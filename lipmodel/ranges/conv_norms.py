"""Entry norms of a convolution from its kernel, in integers, without expanding the matrix.

A row of the matrix is an output channel at an output position; what it contains depends only on which taps of the
kernel fall inside the input there. Positions with the same taps have the same rows, and a convolution has few such
classes, so the sums over rows (and likewise over columns) are small exact computations however large the image is.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np

from lipmodel.network.conv import Conv
from lipmodel.network.exact import dyadic_exponent, integers
from lipmodel.ranges.norms import EntryNorms, root_up

Array = np.ndarray[Any, Any]


def conv_entry_norms(map: Conv) -> EntryNorms:
    """The entry norms of a convolution; exact but for the square roots, which are rounded up at 80 bits."""
    kernel = [map.kernel] if map.radius is None else [map.kernel, map.radius]
    if 0 in map.shape:
        return EntryNorms.constant(Fraction(0))
    if not all(bool(np.all(np.isfinite(part))) for part in kernel):
        return EntryNorms.constant(math.inf)
    exponent = max(dyadic_exponent(part) for part in kernel)
    whole = [np.array(integers(np.abs(part), exponent), dtype=object).reshape(part.shape) for part in kernel]
    size = whole[0] if map.radius is None else whole[0] + whole[1]
    rows, columns = _classes(map)
    # moduli, squares and indicators of the nonzeros, summed over the inputs (rows) or outputs (columns) of each group
    grouped = size.reshape(map.groups, -1, *size.shape[1:])
    powers = [grouped, grouped * grouped, (grouped != 0).astype(object)]
    row_sums, row_squares, row_counts = (_summed(power.sum(axis=2), rows) for power in powers)
    column_sums, column_squares, column_counts = (_summed(power.sum(axis=1), columns) for power in powers)
    if not row_sums or max(value for value, _ in row_sums) == 0:
        return EntryNorms.constant(Fraction(0))
    used = np.logical_or.reduce([taps for taps, _ in rows])
    batch = map.input_shape[0]
    unit = Fraction(1, 1 << exponent)

    def largest(sums: list[tuple[int, int]]) -> int:
        return max(value for value, _ in sums)

    def weighted(sums: list[tuple[int, int]], power: int) -> int:
        return batch * sum(int(value**power) * times for value, times in sums)

    max_column_2 = root_up(largest(column_squares) * unit * unit)
    max_row_2 = root_up(largest(row_squares) * unit * unit)
    single = max_column_2 if largest(row_counts) <= 1 else max_row_2 if largest(column_counts) <= 1 else None
    return EntryNorms(
        max_entry=int(size[:, :, used].max()) * unit,
        max_column_sum=largest(column_sums) * unit,
        max_row_sum=largest(row_sums) * unit,
        max_column_2=max_column_2,
        max_row_2=max_row_2,
        frobenius=root_up(weighted(row_squares, 1) * unit * unit),
        row_sums_2=root_up(weighted(row_sums, 2) * unit * unit),
        column_sums_2=root_up(weighted(column_sums, 2) * unit * unit),
        total=weighted(row_sums, 1) * unit,
        spectral=single,
    )


Classes = list[tuple[Array, int]]
"""Which taps take part (bool, the spatial shape of the kernel), and at how many positions."""


def _classes(map: Conv) -> tuple[Classes, Classes]:
    """The classes of output positions and of input positions."""
    outputs: list[Classes] = []
    inputs: list[Classes] = []
    sizes = zip(map.output_spatial, map.input_shape[2:], map.taps, map.strides, map.pads, map.dilations, strict=True)
    for m, n, k, stride, pad, dilation in sizes:
        at = np.arange(m)[:, None] * stride - pad + np.arange(k)[None, :] * dilation
        inside = (at >= 0) & (at < n)
        touched = np.zeros((n, k), dtype=bool)
        touched[at[inside], np.nonzero(inside)[1]] = True
        outputs.append(_counted(inside))
        inputs.append(_counted(touched))
    return _crossed(outputs), _crossed(inputs)


def _counted(taps: Array) -> Classes:
    patterns, counts = np.unique(taps, axis=0, return_counts=True)
    return [(pattern, int(count)) for pattern, count in zip(patterns, counts, strict=True)]


def _crossed(axes: list[Classes]) -> Classes:
    """Classes in several dimensions from those of each axis."""
    result: Classes = []
    for choice in product(*axes):
        pattern = np.ones((), dtype=bool)
        for taps, _ in choice:
            pattern = np.multiply.outer(pattern, taps)
        result.append((pattern, math.prod(count for _, count in choice)))
    return result


def _summed(channels: Array, classes: Classes) -> list[tuple[int, int]]:
    """(sum over the taps that take part, at how many positions) for every channel and class.

    channels: integers, shape (groups, channels per group, *taps).
    """
    flat = channels.reshape(-1, *channels.shape[2:])
    return [(int(value), times) for taps, times in classes for value in flat[:, taps].sum(axis=1)]
