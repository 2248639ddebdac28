"""Proved spectral norms of convolutions in floating point: every frequency of a torus, all roundings accounted for.

For the block K of a frequency, K* K <= T^2 is proved by a Cholesky factor L of T^2 - K* K, whatever it is: if the
residual T^2 - K* K - L L* is diagonally dominant by more than the rounding errors in it, it is positive semidefinite.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from lipmodel.network.conv import Conv, Pool
from lipmodel.network.linear import LinearMap
from lipmodel.ranges.conv_norms import conv_entry_norms
from lipmodel.ranges.conv_symbol import (
    TWIDDLE_BITS,
    Symbol,
    averaging_factors,
    folded_factors,
    plain,
    sampled_symbol,
    symbol_of,
    twiddles,
)
from lipmodel.ranges.enclosure import INFLATE, TINY, MatrixEnclosure, U, gamma
from lipmodel.ranges.norms import Bound, EntryNorms, entry_norms, root_up, times

Array = np.ndarray[Any, Any]

WORK_LIMIT = 6_000_000_000
"""Multiplications, about, that the exact check of one convolution may take: some thirty seconds."""
ROOM = 2.0**-34
"""By how much, relatively, a norm is raised above its estimate: what proofs in both arithmetics need."""
_CHUNK = 1_000_000


def structured_norm(map: LinearMap) -> Bound:
    """A proved bound of the spectral norm of a map that contains convolutions; inf where it contains none.

    The product over the factors of a composition; nothing is expanded.
    """
    factors = folded_factors(map)
    bound: Bound = math.inf if factors is None else Fraction(1)
    for factor in [plain(part) for part in factors or ()]:
        if isinstance(factor, Conv):
            bound = times(bound, conv_norm(factor))
        elif isinstance(factor, Pool):
            bound = times(bound, averaging_norm(factor))
        else:
            bound = times(bound, entry_bound(entry_norms(factor)))
    return bound


def entry_bound(norms: EntryNorms) -> Bound:
    """What sums of moduli say about the spectral norm."""
    bounds = [norms.frobenius, root_up(times(norms.max_column_sum, norms.max_row_sum))]
    return min(bounds if norms.spectral is None else [norms.spectral, *bounds])


def averaging_norm(map: Pool) -> Bound:
    """The spectral norm of average pooling, direction by direction; from sums of moduli where counts do not factor."""
    from lipmodel.certify.rigor import spectral_norm_upper

    factors = averaging_factors(map)
    bound: Bound = 1 + Fraction(ROOM)
    for matrix, whole in factors or ():
        norm = spectral_norm_upper(MatrixEnclosure(center=matrix.astype(np.float64)))
        bound = times(bound, math.inf if norm is None else Fraction(norm) / whole)
    return bound if factors and isinstance(bound, Fraction) else entry_bound(entry_norms(map))


def conv_norm(map: Conv) -> Bound:
    """A proved bound of the spectral norm of a convolution: its largest symbol on a torus, plus what is uncertain."""
    if not (np.all(np.isfinite(map.kernel)) and (map.radius is None or np.all(np.isfinite(map.radius)))):
        return math.inf
    uncertain = Fraction(0) if map.radius is None else uncertain_norm(map)
    unit = math.frexp(float(np.abs(map.kernel).max(initial=0.0)))[1]
    with np.errstate(all="ignore"):
        symbol = symbol_of(map, np.ldexp(map.kernel, -unit))
    if symbol is None:
        return uncertain
    sampled = sampled_symbol(symbol, WORK_LIMIT)
    if sampled is None:
        return math.inf
    value = symbol_norm_upper(sampled[0])
    return math.inf if value is None else value * sampled[1] * Fraction(2) ** unit + uncertain


def uncertain_norm(map: Conv) -> Fraction:
    """A bound of the spectral norm of a convolution with the radius for a kernel, whatever the signs; exact sums."""
    assert map.radius is not None
    norms = conv_entry_norms(replace(map, kernel=map.radius, radius=None))
    bound = root_up(times(norms.max_column_sum, norms.max_row_sum))
    assert isinstance(bound, Fraction)
    return bound


# --------------------------------------------------------------------------------------------------- the largest symbol


def estimated_norm(symbol: Symbol) -> float:
    """The largest spectral norm of the blocks, in floating point: where proofs start.

    Blocks whose Gram matrix cannot have the largest eigenvalue, by the Frobenius norms of its powers, are passed over.

    Source: Delattre, Barthelemy, Araujo & Allauzen, Gram iteration (2023, arXiv 2305.16173).
    """
    best = 0.0
    for chosen in symbol.chunks(_CHUNK):
        real, imaginary = blocks_of(symbol, chosen)
        gram = _gram(real + 1j * imaginary)
        power, exponent = gram, np.ones(len(gram))
        scale = np.zeros(len(gram))  # gram^exponent = power * e^scale
        for _ in range(4):
            size = np.linalg.norm(power, axis=(1, 2))
            size[size == 0.0] = 1.0
            power = power / size[:, None, None]
            scale = 2.0 * (scale + np.log(size))
            power, exponent = power @ power, 2.0 * exponent
        with np.errstate(divide="ignore"):
            upper = np.exp((np.log(np.linalg.norm(power, axis=(1, 2))) + scale) / exponent)
        for index in np.argsort(-upper):
            if upper[index] * (1.0 + 1e-9) <= best:
                break
            best = max(best, float(np.linalg.eigvalsh(gram[index])[-1]))
    return math.sqrt(max(best, 0.0))


def blocks_of(symbol: Symbol, chosen: slice) -> tuple[Array, Array]:
    """Real and imaginary parts of the blocks of some frequencies, rounded: (groups * chosen, rows, columns)."""
    angles = symbol.angles(chosen)
    groups, rows, columns, terms = symbol.taps.shape
    weights = symbol.taps.astype(np.float64).reshape(-1, terms)
    parts = []
    for table in twiddles(symbol.period):
        values = weights @ np.ldexp(table.astype(np.float64), -TWIDDLE_BITS)[angles]
        parts.append(np.moveaxis(values.reshape(groups, rows, columns, -1), -1, 1).reshape(-1, rows, columns))
    return parts[0], parts[1]


def symbol_norm_upper(symbol: Symbol) -> Fraction | None:
    """A proved bound of the largest spectral norm of the blocks, taps at most 1; None where the proof fails."""
    terms = symbol.taps.shape[-1]
    # twiddles and products are rounded once each, sums as often as there are terms
    spread = gamma(terms + 4) * np.abs(symbol.taps).sum(axis=-1) + TINY
    error = math.sqrt(2.0 * float((spread * spread).sum(axis=(1, 2)).max())) * INFLATE
    estimate = estimated_norm(symbol)
    room = ROOM
    while room <= 2.0**-10:
        bound = estimate * (1.0 + room)
        if all(_is_proved(*blocks_of(symbol, chosen), bound) for chosen in symbol.chunks(_CHUNK)):
            return Fraction(bound) + Fraction(error)
        room *= 8.0
    return None


def _is_proved(real: Array, imaginary: Array, bound: float) -> bool:
    """Whether every block K has ||K||_2 <= bound, proved; blocks are given as their parts, (number, rows, columns)."""
    columns = real.shape[2]
    square = math.nextafter(bound * bound, 0.0)
    gram = _gram(real + 1j * imaginary)
    # the columns of S below have norms of at most `bound`: what rounding can cost
    shift = square * gamma(2 * (real.shape[1] + columns) + 20) * 2.25 * columns
    try:
        factor = np.linalg.cholesky((square - shift) * np.eye(columns) - gram)
    except np.linalg.LinAlgError:
        return False
    # K* K + L L* = S* S, S having K above L*
    a = np.concatenate([real, np.swapaxes(factor.real, 1, 2)], axis=1)
    b = np.concatenate([imaginary, -np.swapaxes(factor.imag, 1, 2)], axis=1)
    at, bt = np.swapaxes(a, 1, 2), np.swapaxes(b, 1, 2)
    sums = at @ a + bt @ b
    cross = at @ b
    diagonal = np.diagonal(sums, axis1=1, axis2=2)
    moduli = np.abs(sums) + np.abs(cross - np.swapaxes(cross, 1, 2))
    moduli[:, range(columns), range(columns)] = 0.0
    sizes = np.abs(a) + np.abs(b)
    rounding = np.einsum("fnc,fn->fc", sizes, sizes.sum(axis=2))
    need = moduli.sum(axis=2) + gamma(2 * a.shape[1] + 6) * rounding * INFLATE + columns * TINY
    surplus = (square - diagonal) * (1.0 - 4.0 * U)
    return bool(np.all(surplus >= need * INFLATE))


def _gram(blocks: Array) -> Array:
    return np.asarray(np.swapaxes(blocks.conj(), 1, 2) @ blocks)
