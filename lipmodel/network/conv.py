"""Convolution and average pooling as linear maps that are not expanded.

Both act on flat vectors that are (batch, channels, n_1, ..., n_d) tensors in C order, d >= 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.network.constants import Enclosed, reciprocal
from lipmodel.network.linear import LinearMap
from lipmodel.ranges.enclosure import MatrixEnclosure

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conv(LinearMap):
    """Convolution as neural networks use the word (cross-correlation), zero padding, without bias.

    y[b, o, p] is the sum over c and t of kernel[o, c, t] x[b, c', p * strides - pads + t * dilations], where c' is
    channel c of the group of o, and x is zero outside.

    kernel: (outputs, channels / groups, k_1, ..., k_d) float64; radius: an entrywise error of it, or None;
    input_shape: (batch, channels, n_1, ..., n_d); output_spatial: (m_1, ..., m_d); pads: the padding before, per axis
    (what is needed after follows from the output).
    """

    kernel: Array
    input_shape: tuple[int, ...]
    output_spatial: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    radius: Array | None = None

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(batch, outputs, m_1, ..., m_d)."""
        return (self.input_shape[0], int(self.kernel.shape[0]), *self.output_spatial)

    @property
    def shape(self) -> tuple[int, int]:
        return (prod(self.output_shape), prod(self.input_shape))

    @property
    def entries(self) -> int:
        inside = prod(int(np.count_nonzero(hit >= 0)) for hit in self._hits())
        return int(self.input_shape[0] * self.kernel.shape[0] * self._fan_in * inside)

    @property
    def taps(self) -> tuple[int, ...]:
        """The spatial shape of the kernel."""
        return tuple(int(k) for k in self.kernel.shape[2:])

    def matvec(self, x: Array) -> Array:
        columns = np.asarray(x, dtype=np.float64)
        stacked = columns.reshape(prod(self.input_shape), -1).T.reshape(-1, self.groups, self._fan_in, *self._spatial)
        padded = np.zeros((*stacked.shape[:3], *self._padded))
        padded[self._inside] = stacked
        outputs, positions = self.kernel.shape[0] // self.groups, prod(self.output_spatial)
        y = np.zeros((len(stacked), self.groups, outputs, positions))
        if positions < prod(self.taps):
            kernel = self.kernel.reshape(self.groups, outputs, -1)
            for position, met in enumerate(self._receptive_fields()):
                values = padded[met].reshape(len(stacked), self.groups, -1, 1)
                y[..., position] = (kernel @ values)[..., 0]
        else:
            for tap, window in self._windows():
                values = padded[window].reshape(len(stacked), self.groups, self._fan_in, positions)
                y += self._tap(tap) @ values
        return np.ascontiguousarray(y.reshape(-1, self.shape[0]).T).reshape((self.shape[0], *columns.shape[1:]))

    def rmatvec(self, y: Array) -> Array:
        columns = np.asarray(y, dtype=np.float64)
        outputs, positions = self.kernel.shape[0] // self.groups, prod(self.output_spatial)
        stacked = columns.reshape(self.shape[0], -1).T.reshape(-1, self.groups, outputs, positions)
        padded = np.zeros((len(stacked), self.groups, self._fan_in, *self._padded))
        if positions < prod(self.taps):
            kernel = np.swapaxes(self.kernel.reshape(self.groups, outputs, -1), -1, -2)
            for position, met in enumerate(self._receptive_fields()):
                values = kernel @ stacked[..., position, None]
                padded[met] += values.reshape(*padded.shape[:3], *self.taps)
        else:
            for tap, window in self._windows():
                values = np.swapaxes(self._tap(tap), -1, -2) @ stacked
                padded[window] += values.reshape(*values.shape[:3], *self.output_spatial)
        x = padded[self._inside].reshape(-1, self.shape[1])
        return np.ascontiguousarray(x.T).reshape((self.shape[1], *columns.shape[1:]))

    def enclosure(self) -> MatrixEnclosure:
        """CSR; every entry is one entry of the kernel, so nothing is rounded."""
        rows, columns, which = self._triplets()

        def csr(values: Array) -> Any:
            return sp.csr_array(sp.coo_array((values.ravel()[which], (rows, columns)), shape=self.shape))

        return MatrixEnclosure(center=csr(self.kernel), radius=None if self.radius is None else csr(self.radius))

    def modulus(self) -> LinearMap:
        return replace(self, kernel=np.abs(self.kernel))

    @property
    def _spatial(self) -> tuple[int, ...]:
        return self.input_shape[2:]

    @property
    def _fan_in(self) -> int:
        return int(self.kernel.shape[1])

    @property
    def _padded(self) -> tuple[int, ...]:
        """The spatial shape of the padded input, as far as windows or entries reach."""
        reach = ((m - 1) * s + (k - 1) * d + 1 for m, s, k, d in self._axes())
        return tuple(max(r, p + n) for r, p, n in zip(reach, self.pads, self._spatial, strict=True))

    @property
    def _inside(self) -> tuple[Any, ...]:
        return (..., *(slice(p, p + n) for p, n in zip(self.pads, self._spatial, strict=True)))

    def _axes(self) -> Iterator[tuple[int, int, int, int]]:
        return zip(self.output_spatial, self.strides, self.taps, self.dilations, strict=True)

    def _tap(self, tap: tuple[int, ...]) -> Array:
        """The weights of one position of the kernel, (groups, outputs per group, inputs per group)."""
        at: tuple[Any, ...] = (slice(None), slice(None), *tap)
        return np.asarray(self.kernel[at]).reshape(self.groups, -1, self._fan_in)

    def _windows(self) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
        """For every position of the kernel, what it meets in the padded input."""
        for tap in product(*(range(k) for k in self.taps)):
            starts = zip(tap, self._axes(), strict=True)
            yield tap, (..., *(slice(t * d, t * d + (m - 1) * s + 1, s) for t, (m, s, _, d) in starts))

    def _receptive_fields(self) -> Iterator[tuple[Any, ...]]:
        """For every position of the output, what the kernel meets in the padded input."""
        for position in product(*(range(m) for m in self.output_spatial)):
            starts = zip(position, self._axes(), strict=True)
            yield (..., *(slice(p * s, p * s + (k - 1) * d + 1, d) for p, (_, s, k, d) in starts))

    def _hits(self) -> list[Array]:
        """Per axis, (m, k): the input position that an output position meets through a tap, -1 in the padding."""
        result = []
        for (m, s, k, d), p, n in zip(self._axes(), self.pads, self._spatial, strict=True):
            at = np.arange(m)[:, None] * s - p + np.arange(k)[None, :] * d
            result.append(np.where((at >= 0) & (at < n), at, -1))
        return result

    def _triplets(self) -> tuple[Array, Array, Array]:
        """Rows, columns, and positions in the flat kernel, of all entries."""
        batch, channels = self.input_shape[:2]
        outputs, fan_in = int(self.kernel.shape[0]), self._fan_in
        pixels_out, pixels_in, volume = prod(self.output_spatial), prod(self._spatial), prod(self.taps)
        per_group = outputs // self.groups
        b = np.arange(batch)[:, None, None, None]
        o = np.arange(outputs)[None, :, None, None]
        c = np.arange(fan_in)[None, None, :, None]
        hits = self._hits()
        rows, columns, which = [], [], []
        for number, tap in enumerate(product(*(range(k) for k in self.taps))):
            met = [hit[:, t] for hit, t in zip(hits, tap, strict=True)]
            valid = [np.flatnonzero(at >= 0) for at in met]
            if any(v.size == 0 for v in valid):
                continue
            p = np.ravel_multi_index(np.ix_(*valid), self.output_spatial).ravel()
            q = np.ravel_multi_index(np.ix_(*(at[v] for at, v in zip(met, valid, strict=True))), self._spatial).ravel()
            full = (batch, outputs, fan_in, p.size)
            rows.append(np.broadcast_to((b * outputs + o) * pixels_out + p, full).ravel())
            columns.append(np.broadcast_to((b * channels + o // per_group * fan_in + c) * pixels_in + q, full).ravel())
            which.append(np.broadcast_to((o * fan_in + c) * volume + number, full).ravel())
        if not rows:
            empty = np.zeros(0, dtype=np.int64)
            return empty, empty, empty
        return np.concatenate(rows), np.concatenate(columns), np.concatenate(which)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool(LinearMap):
    """Average pooling: the sum over a window, divided by an integer that may depend on the position.

    window: the sum, a depthwise Conv whose kernel is all ones; count: (m_1, ..., m_d) positive integers as float64.
    """

    window: Conv
    count: Array

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.window.output_shape

    @property
    def shape(self) -> tuple[int, int]:
        return self.window.shape

    @property
    def entries(self) -> int:
        return self.window.entries

    def matvec(self, x: Array) -> Array:
        y = self.window.matvec(x)
        return np.asarray((y.T / self._counts()).T)

    def rmatvec(self, y: Array) -> Array:
        return self.window.rmatvec((np.asarray(y).T / self._counts()).T)

    def enclosure(self) -> MatrixEnclosure:
        """CSR of the factors 1 / count, with the error of the division where there is one."""
        rows, columns, _ = self.window._triplets()
        inverse = reciprocal(Enclosed(values=self._counts()))

        def csr(values: Array) -> Any:
            return sp.csr_array(sp.coo_array((values[rows], (rows, columns)), shape=self.shape))

        return MatrixEnclosure(
            center=csr(inverse.values), radius=None if inverse.radius is None else csr(inverse.radius)
        )

    def modulus(self) -> LinearMap:
        return self

    def _counts(self) -> Array:
        return np.broadcast_to(self.count, self.output_shape).ravel()


def window_sum(
    input_shape: tuple[int, ...],
    output_spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
) -> Conv:
    """The sum over a sliding window, channel by channel."""
    return Conv(
        kernel=np.ones((input_shape[1], 1, *kernel)),
        input_shape=input_shape,
        output_spatial=output_spatial,
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=input_shape[1],
    )


def valid_counts(window: Conv, after: tuple[int, ...] | None = None) -> Array:
    """How many taps of a window lie in the input (with the padding `after` given: in the padded input), (m_1, ...)."""
    counts = []
    for axis, ((m, s, k, d), p, n) in enumerate(zip(window._axes(), window.pads, window._spatial, strict=True)):
        at = np.arange(m)[:, None] * s - p + np.arange(k)[None, :] * d
        inside = (at >= 0) & (at < n) if after is None else at < n + after[axis]
        counts.append(inside.sum(axis=1).astype(np.float64))
    return reduce(np.multiply.outer, counts)
