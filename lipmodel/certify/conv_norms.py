"""Spectral norms of convolutions decided in integers, frequency by frequency, without expanding the matrix.

The kernel is read as integers times a power of two, cosines and sines are enclosed, and the blocks of the torus
(`ranges.conv_symbol`) come out as integers with an error that is counted. For each block K the decision is whether
T^2 - K* K - L L* is diagonally dominant, in integers, L being the Cholesky factor that floating point suggests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from flint import fmpz_mat

from lipmodel.certify.exact_entries import exact_entry_norms
from lipmodel.certify.kernel import Block, spectral_norm_at_most
from lipmodel.network.conv import Conv, Pool
from lipmodel.network.exact import dyadic_exponent, integers
from lipmodel.network.linear import LinearMap
from lipmodel.ranges.conv_spectral import WORK_LIMIT, entry_bound, estimated_norm, uncertain_norm
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
from lipmodel.ranges.norms import Bound, times

Array = np.ndarray[Any, Any]

_LIMB = 6
"""Bits of a cosine that are multiplied at a time, so that sums of products fit 64 bits."""
_LIMBS = 9
_ROOM = Fraction(1, 2**36)
"""What is left, relatively, to the exact proof of a norm that floating point proposes."""
_CHUNK = 300_000


def structured_norm_at_most(map: LinearMap, t: Fraction) -> bool:
    """Whether the norms of the factors of a map, convolutions among them, prove ||map||_2 <= t; False where they fail.

    Floating point says how the convolutions share t; each share is then decided in integers, and so is their product.
    """
    factors = folded_factors(map)
    if factors is None:
        return False
    rest: Bound = Fraction(1)
    convs: list[IntegerSymbol] = []
    for factor in [plain(part) for part in factors]:
        if isinstance(factor, Conv):
            conv = integer_symbol(factor)
            if conv is None:
                return False
            convs.append(conv)
        elif isinstance(factor, Pool):
            rest = times(rest, averaging_norm(factor))
        else:
            rest = times(rest, entry_bound(exact_entry_norms(factor)))
    if not isinstance(rest, Fraction) or rest == 0 or not convs:
        return isinstance(rest, Fraction) and rest <= t
    likely = [conv.estimate() for conv in convs]
    expected = math.prod(likely, start=rest)
    if not 0 < expected <= t:
        return expected == 0 and any(conv.at_most(Fraction(0)) for conv in convs)
    t = min(t, 2 * expected)
    share = Fraction(float(t / expected) ** (1.0 / len(convs))) * (1 - Fraction(1, 2**48))
    shares = [t / rest] if len(convs) == 1 else [norm * share for norm in likely]
    return math.prod(shares, start=rest) <= t and all(c.at_most(s) for c, s in zip(convs, shares, strict=True))


def averaging_norm(map: Pool) -> Bound:
    """A bound of the spectral norm of average pooling: that of a small integer matrix for each direction."""
    factors = averaging_factors(map)
    bound: Bound = Fraction(1)
    for matrix, whole in factors or ():
        norm = Fraction(float(np.linalg.norm(matrix.astype(np.float64), 2))) * (1 + _ROOM)
        if not spectral_norm_at_most(Block(mantissa=matrix.tolist(), exponent=0), float(norm)):
            return entry_bound(exact_entry_norms(map))
        bound = times(bound, Fraction(float(norm)) / whole)
    return bound if factors else entry_bound(exact_entry_norms(map))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntegerSymbol:
    """A convolution whose kernel is (symbol.taps +- 1/2) 2^-exponent, up to a part whose norm is at most `uncertain`.

    symbol: None for a kernel of zeros; its taps are int64, at most 2^50. factor: what the choice of the frequencies
    costs.
    """

    symbol: Symbol | None
    factor: Fraction
    exponent: int
    uncertain: Fraction

    def estimate(self) -> Fraction:
        """The bound of the norm that floating point expects."""
        if self.symbol is None:
            return self.uncertain
        return Fraction(estimated_norm(self.symbol)) * self.factor / Fraction(2) ** self.exponent + self.uncertain

    def at_most(self, t: Fraction) -> bool:
        """Whether the spectral norm is at most t, decided in integers; False where it is too close to call."""
        if self.symbol is None:
            return self.uncertain <= t
        rows, columns, terms = self.symbol.taps.shape[1:]
        # each tap, of at most 2^50, is off by 1/2 and its cosine by less than 2^-53.9; floors take less than 1.1
        error = (5 * terms) // 8 + 2
        inexact = math.isqrt(2 * error * error * rows * columns) + 1
        bound = math.floor((t - self.uncertain) / self.factor * Fraction(2) ** self.exponent) - inexact
        return bound > 0 and all(
            _blocks_at_most(*_blocks(self.symbol, chosen), bound) for chosen in self.symbol.chunks(_CHUNK)
        )


def integer_symbol(map: Conv) -> IntegerSymbol | None:
    """The kernel of a convolution in integers, moved into the blocks of a torus; None where it has too many of them."""
    uncertain = Fraction(0) if map.radius is None else uncertain_norm(map)
    exponent = dyadic_exponent(map.kernel)
    kernel = np.array(integers(map.kernel, exponent), dtype=object).reshape(map.kernel.shape)
    moved = symbol_of(map, kernel)
    if moved is None:
        return IntegerSymbol(symbol=None, factor=Fraction(1), exponent=0, uncertain=uncertain)
    sampled = sampled_symbol(moved, WORK_LIMIT)
    if sampled is None:
        return None
    excess = int(abs(moved.taps).max()).bit_length() - min(50, 62 - _LIMB - (moved.taps.shape[-1] - 1).bit_length())
    taps = [v << -excess if excess <= 0 else (v + (1 << (excess - 1))) >> excess for v in moved.taps.ravel().tolist()]
    symbol = replace(sampled[0], taps=np.array(taps, dtype=np.int64).reshape(moved.taps.shape))
    return IntegerSymbol(symbol=symbol, factor=sampled[1], exponent=exponent - excess, uncertain=uncertain)


def _blocks(symbol: Symbol, chosen: slice) -> tuple[Array, Array]:
    """Real and imaginary parts of blocks, int64 in the units of the taps: (groups * chosen, rows, columns)."""
    angles = symbol.angles(chosen)
    groups, rows, columns, terms = symbol.taps.shape
    weights = symbol.taps.reshape(-1, terms)
    parts = []
    for table in twiddles(symbol.period):
        fixed = (table >> (TWIDDLE_BITS - _LIMB * _LIMBS))[angles]
        total = np.zeros((len(weights), angles.shape[1]), dtype=np.int64)
        for place in range(_LIMBS):
            digit = fixed >> (_LIMB * place)
            if place < _LIMBS - 1:
                digit &= (1 << _LIMB) - 1
            total = weights @ digit + (total >> _LIMB)
        total >>= _LIMB
        parts.append(np.moveaxis(total.reshape(groups, rows, columns, -1), -1, 1).reshape(-1, rows, columns))
    return parts[0], parts[1]


def _blocks_at_most(real: Array, imaginary: Array, bound: int) -> bool:
    """Whether every block has a norm of at most `bound`, decided in integers."""
    coarse = sum((np.right_shift(np.abs(part), 36) + 1) ** 2 for part in (real, imaginary))
    close = [k for k, size in enumerate(np.sum(coarse, axis=(1, 2)).tolist()) if (size << 72) > bound * bound]
    if not close:
        return True
    real, imaginary = real[close], imaginary[close]
    columns = real.shape[2]
    unit = bound.bit_length()
    scaled = np.ldexp(real.astype(np.float64), -unit) + 1j * np.ldexp(imaginary.astype(np.float64), -unit)
    gram = np.swapaxes(scaled.conj(), 1, 2) @ scaled
    square = (bound / 2**unit) ** 2
    shift = square * 2.0**-49 * (columns + 1) ** 1.5
    open_ = np.arange(len(close))
    for _ in range(4):
        try:
            factor = np.linalg.cholesky((square - shift) * np.eye(columns) - gram[open_])
        except np.linalg.LinAlgError:
            return False
        hints = np.rint(np.ldexp(factor.real, unit)), np.rint(np.ldexp(factor.imag, unit))
        left = [
            index
            for index, low, high in zip(open_.tolist(), *hints, strict=True)
            if not _dominates(real[index], imaginary[index], low, high, bound)
        ]
        if not left:
            return True
        open_ = np.array(left)
        shift *= 8.0
    return False


def _dominates(real: Array, imaginary: Array, low: Array, high: Array, bound: int) -> bool:
    """Whether bound^2 - K* K - L L* is diagonally dominant, K = real + i imaginary, L = low + i high; the decision."""
    columns = real.shape[1]
    a = fmpz_mat(len(real) + columns, columns, real.ravel().tolist() + [int(v) for v in low.T.ravel().tolist()])
    b = fmpz_mat(len(real) + columns, columns, imaginary.ravel().tolist() + [-int(v) for v in high.T.ravel().tolist()])
    at, bt = a.transpose(), b.transpose()
    sums = (at * a + bt * b).tolist()
    cross = at * b
    skew = (cross - cross.transpose()).tolist()
    square = bound * bound
    return all(
        square - row[k] >= sum(map(abs, row)) - abs(row[k]) + sum(map(abs, other))
        for k, (row, other) in enumerate(zip(sums, skew, strict=True))
    )
