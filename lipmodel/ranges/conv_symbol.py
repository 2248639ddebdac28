"""Convolutions as families of small matrices, one per frequency of a torus, and maps that reduce to convolutions.

A convolution with stride s in a direction maps the s phases of its input to its output at shifts that do not depend on
the position (the polyphase form). On a torus of s M input and M output positions it is block diagonal in the Fourier
basis, with the blocks

    symbol(theta) = sum_u taps[u] exp(i <theta, u>),        theta in 2 pi / M_1 Z x ... x 2 pi / M_d Z.

Zero padding is the torus restricted: where M is so large that whatever the windows meet outside the input falls, modulo
s M, outside the input again, the matrix of the convolution is a submatrix of the one on the torus. Its spectral norm is
therefore at most the largest of the norms of the symbols, for every padding, stride, dilation and kernel.

Source: Sedghi, Gupta & Long (2019, arXiv 1805.10408) for circular convolution; the reduction of zero padding, strides
and dilation to it is derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from flint import arb, ctx, fmpq

from lipmodel.network.constants import Enclosed, multiply
from lipmodel.network.conv import Conv, Pool
from lipmodel.network.linear import Composition, Diagonal, LinearMap, Transposed
from lipmodel.ranges.norms import root_up

Array = np.ndarray[Any, Any]

TWIDDLE_BITS = 60
"""Cosines and sines are known to within 2 units of 2^-60."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Symbol:
    """The blocks of a convolution in the Fourier basis, for each of its different groups.

    taps: (groups, rows, columns, terms), rows >= columns, entries of the kernel as they were given or zero; shifts:
    (terms, d) integers; torus: (M_1, ..., M_d), 1 in a direction in which nothing is shifted; frequencies: one of every
    pair (theta, -theta) in units of 2 pi / M, (number, d).
    """

    taps: Array
    shifts: Array
    torus: tuple[int, ...]
    frequencies: Array

    @property
    def period(self) -> int:
        """All angles are multiples of 2 pi / period."""
        return math.lcm(*self.torus)

    @property
    def work(self) -> int:
        """Multiplications that a proof takes, up to a constant."""
        groups, rows, columns, _ = self.taps.shape
        return int(groups * len(self.frequencies) * (rows + columns) * columns * columns)

    def angles(self, chosen: slice) -> Array:
        """The angles <theta, u> of some frequencies in units of 2 pi / period, (terms, chosen), reduced."""
        steps = np.array([self.period // m for m in self.torus], dtype=np.int64)
        return np.asarray((self.shifts @ (self.frequencies[chosen] * steps).T) % self.period)

    def chunks(self, entries: int) -> list[slice]:
        """The frequencies, so many at a time that their blocks have about that many entries."""
        size = max(1, entries // max(1, math.prod(self.taps.shape[:3])))
        return [slice(start, start + size) for start in range(0, len(self.frequencies), size)]


@lru_cache(maxsize=16)
def twiddles(period: int) -> tuple[Array, Array]:
    """cos and sin of the multiples of 2 pi / period, int64 in units of 2^-60, each within 2 units; (period,)."""
    with ctx.workprec(TWIDDLE_BITS + 30):

        def whole(x: Any) -> int:
            if not float(x.rad()) < 2.0**-70:
                raise ArithmeticError(f"a cosine is known to {x.rad()} only")
            mantissa, exponent = (int(v) for v in (x * 2**TWIDDLE_BITS).mid().man_exp())
            return mantissa << exponent if exponent >= 0 else mantissa >> -exponent

        angles = [fmpq(2 * k, period) for k in range(period)]
        tables = [[whole(f(angle)) for angle in angles] for f in (arb.cos_pi_fmpq, arb.sin_pi_fmpq)]
    cosines, sines = (np.array(table, dtype=np.int64) for table in tables)
    return cosines, sines


def symbol_of(map: Conv, kernel: Array) -> Symbol | None:
    """The blocks of a convolution with this kernel on the smallest torus that holds it; None for the zero map.

    kernel: any numbers in the shape of `map.kernel`, float64 or object, which are only moved.
    """
    if 0 in map.shape or not np.any(kernel):
        return None
    taps: list[list[int]] = []
    strides: list[int] = []
    torus: list[int] = []
    for (m, s, k, d), pad, n in zip(map._axes(), map.pads, map._spatial, strict=True):
        at = np.arange(m)[:, None] * s - pad + np.arange(k)[None, :] * d
        inside = (at >= 0) & (at < n)
        if not inside.any():
            return None
        used = np.flatnonzero(inside.any(axis=0))
        met = at[:, used]
        low, high = at[inside].min(), at[inside].max()
        taps.append(used.tolist())
        # at a single position nothing is shifted, whatever the stride is called
        strides.append(s if m > 1 else k * d)
        # positions below `low` must not come back at `high` or below it, nor those above `high` at `low` or above it
        torus.append(max(m, -(-int(max(high - met.min(), met.max() - low) + 1) // s)))
    outputs, fan_in = map.kernel.shape[0] // map.groups, map.kernel.shape[1]
    grouped = kernel.reshape(map.groups, outputs, fan_in, *map.taps)
    different = {tuple(part.ravel().tolist()): part for part in grouped} if map.groups > 1 else {(): grouped[0]}
    stacked = np.stack(list(different.values()))
    spatial = stacked.reshape(len(stacked), outputs, fan_in, -1)
    phases: dict[tuple[int, ...], int] = {}
    shifts: dict[tuple[int, ...], int] = {}
    placed: list[tuple[int, int, Array]] = []
    for tap in product(*taps):
        split = [divmod(t * d, s) for t, d, s in zip(tap, map.dilations, strides, strict=True)]
        phase = phases.setdefault(tuple(r for _, r in split), len(phases))
        shift = shifts.setdefault(tuple(u for u, _ in split), len(shifts))
        placed.append((phase, shift, spatial[:, :, :, np.ravel_multi_index(tap, map.taps)]))
    blocks = np.zeros((len(stacked), outputs, len(phases), fan_in, len(shifts)), dtype=kernel.dtype)
    for phase, shift, weights in placed:
        blocks[:, :, phase, :, shift] = weights
    blocks = blocks.reshape(len(stacked), outputs, -1, len(shifts))
    if blocks.shape[1] < blocks.shape[2]:
        blocks = np.swapaxes(blocks, 1, 2)
    moved = np.array(list(shifts), dtype=np.int64)
    sizes = tuple(size if np.ptp(moved[:, axis]) else 1 for axis, size in enumerate(torus))
    return Symbol(taps=np.ascontiguousarray(blocks), shifts=moved, torus=sizes, frequencies=_half(sizes))


def sampled_symbol(symbol: Symbol, limit: int) -> tuple[Symbol, Fraction] | None:
    """Fewer frequencies where a proof on all of them takes more work than `limit`, and the factor that this costs.

    A trigonometric polynomial of degree n is at most sqrt(S / (S - 2 n)) times its largest modulus at S > 2 n equal
    steps: it is its own convolution with the product of the Dirichlet kernels of lengths S and S - 2 n, divided by
    S - 2 n, and Cauchy-Schwarz bounds the sum of the moduli of that. So are u* K v for all unit vectors u, v, and with
    them the norm of K, in each direction; n is half the largest difference of two shifts, rounded up. The number of
    frequencies then does not depend on the image. None where even the least number is too many.

    Source: Pfister & Bresler (2018), as used for convolutions by Araujo, Negrevergne, Chevaleyre & Atif, LipBound
    (2021, arXiv 2006.08391), there with Frobenius norms in place of spectral ones.
    """
    if symbol.work <= limit:
        return symbol, Fraction(1)
    spans = [2 * -(-int(np.ptp(symbol.shifts[:, axis])) // 2) for axis in range(len(symbol.torus))]
    each = symbol.work // len(symbol.frequencies)
    for samples in range(max(symbol.torus) - 1, min(spans), -1):
        sizes = [min(size, max(samples, span + 1)) for size, span in zip(symbol.torus, spans, strict=True)]
        if (math.prod(sizes) + math.prod(2 - size % 2 for size in sizes)) // 2 * each <= limit:
            fewer = replace(symbol, torus=tuple(sizes), frequencies=_half(sizes))
            pairs = zip(sizes, symbol.torus, spans, strict=True)
            square = math.prod((Fraction(s, s - n) for s, size, n in pairs if s < size), start=Fraction(1))
            factor = root_up(square)
            assert isinstance(factor, Fraction)
            return fewer, factor
    return None


def _half(torus: Sequence[int]) -> Array:
    """One of each pair of opposite frequencies; the symbols of a pair are conjugate and have the same norm."""
    every = np.indices(torus).reshape(len(torus), -1).T
    opposite = np.ravel_multi_index(tuple(((-every) % np.array(torus)).T), tuple(torus))
    return np.asarray(every[np.arange(len(every)) <= opposite], dtype=np.int64)


# ---------------------------------------------------------------------------------------- what reduces to convolutions


def folded_factors(map: LinearMap) -> list[LinearMap] | None:
    """The factors of a map with the diagonals that convolutions can take over multiplied into their kernels.

    None where no factor is a convolution or a pooling. What is multiplied is enclosed, with a radius where it rounds.
    """
    parts = map.factors if isinstance(map, Composition) else (map,)
    if not any(isinstance(plain(part), Conv | Pool) for part in parts):
        return None
    found: list[LinearMap] = []
    for part in parts:
        before = found[-1] if found else None
        merged: LinearMap | None = None
        if isinstance(before, Diagonal) and isinstance(plain(part), Conv):
            merged = _with_gain(part, before, on_columns=False)
        elif isinstance(part, Diagonal) and before is not None and isinstance(plain(before), Conv):
            merged = _with_gain(before, part, on_columns=True)
        if merged is None:
            found.append(part)
        else:
            found[-1] = merged
    return found


def plain(map: LinearMap) -> LinearMap:
    """What a transpose transposes: a map of the same spectral norm."""
    return map.map if isinstance(map, Transposed) else map


def _with_gain(map: LinearMap, gain: Diagonal, *, on_columns: bool) -> LinearMap | None:
    """map diag(gain) (or diag(gain) map) of a convolution or its transpose; None if it varies within a channel."""
    conv = plain(map)
    assert isinstance(conv, Conv)
    on_inputs = on_columns is not isinstance(map, Transposed)
    batch, channels, outputs = conv.input_shape[0], conv.input_shape[1], conv.kernel.shape[0]
    size = channels if on_inputs else outputs
    entry = np.arange(len(gain.values)).reshape(batch, size, -1)
    if entry.size == 0:
        return None
    chosen = Enclosed(values=gain.values, radius=gain.radius).take(entry[0, :, 0])
    every = chosen.reshaped((1, size, 1)).broadcast(entry.shape)
    uncertain = np.zeros(entry.shape) if gain.radius is None else gain.radius.reshape(entry.shape)
    if not np.array_equal(every.values, gain.values.reshape(entry.shape)):
        return None
    if every.radius is not None and not np.array_equal(every.radius, uncertain):
        return None
    index = np.repeat(np.arange(outputs)[:, None], conv.kernel.shape[1], axis=1)
    if on_inputs:
        by_group = np.repeat(np.arange(channels).reshape(conv.groups, 1, -1), outputs // conv.groups, axis=1)
        index = by_group.reshape(index.shape)
    factor = chosen.take(index.reshape(*index.shape, *(1,) * len(conv.taps)))
    product = multiply(Enclosed(values=conv.kernel, radius=conv.radius), factor)
    scaled = replace(conv, kernel=product.values, radius=product.radius)
    return scaled if conv is map else Transposed(map=scaled)


def averaging_factors(map: Pool) -> list[tuple[Array, int]] | None:
    """Integer matrices A_a and integers c_a: the average pooling of one channel is the product of the A_a / c_a.

    The product is that of Kronecker, one factor for each direction, so norms multiply. None where the sizes of the
    windows are not a product over the directions.
    """
    window, count = map.window, map.count
    if not np.all(window.kernel == 1.0) or window.radius is not None:
        return None
    if not np.all(count >= 1) or float(count.max()) ** count.ndim >= 2.0**53:
        return None
    corner = (0,) * count.ndim
    lines = [np.moveaxis(count, axis, 0).reshape(count.shape[axis], -1)[:, 0] for axis in range(count.ndim)]
    grid = np.ones(())
    for line in lines:
        grid = np.multiply.outer(grid, line)
    if not np.array_equal(grid, count * count[corner] ** (count.ndim - 1)):
        return None
    result = []
    for axis, ((m, s, k, d), pad, n) in enumerate(zip(window._axes(), window.pads, window._spatial, strict=True)):
        sizes = [int(v) for v in lines[axis]]
        whole = math.lcm(*sizes)
        at = np.arange(m)[:, None] * s - pad + np.arange(k)[None, :] * d
        matrix = np.zeros((m, n), dtype=object)
        for row, column in zip(*np.nonzero((at >= 0) & (at < n)), strict=True):
            matrix[row, at[row, column]] += whole // sizes[row]
        result.append((matrix, whole))
    # the lines have the count of the corner in each of them, which belongs there once only
    matrix, whole = result[0]
    result[0] = (matrix * int(count[corner]) ** (count.ndim - 1), whole)
    return result
