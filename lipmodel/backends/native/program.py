"""A matrix inequality whose coefficients have rank two.

S(y) = C + sum_j t_j (u_j r_j' + r_j u_j') with t = K y + k, u_j = e_j - alpha_j m_j and r_j = e_j - beta_j m_j: e_j is
an entry of a signal (or zero), m_j a row over several signals. Slope restrictions (e the activation's output, m its
input), balls (no m), tied multipliers (K not the identity) and any other product of two linear forms are of this
shape: 4 l r = (l + r)^2 - (l - r)^2, and a square has e = 0 and alpha = beta = 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lipmodel.backends.native.chain import Array, Exponents, Mask, triangular_factor

Blocks = dict[int, Array]
NO_SIGNAL = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Coefficients u_j r_j' + r_j u_j' with e_j entry index[j] of `signal` (NO_SIGNAL: e_j = 0).

    alpha, beta: shape (n,). pre: m_j by signals, arrays of shape (n, size of the signal); empty where there is no m.
    """

    signal: int
    index: Exponents
    alpha: Array
    beta: Array
    pre: Blocks

    @property
    def size(self) -> int:
        return len(self.index)

    @property
    def curved(self) -> bool:
        """Whether m_j m_j' has a coefficient."""
        return bool(self.pre) and bool(np.any(self.alpha * self.beta))

    def covers(self, size: int) -> bool:
        """Whether e runs through a whole signal of this size in order."""
        return self.signal != NO_SIGNAL and np.array_equal(self.index, np.arange(size))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """min cost'y subject to S(y) >= 0 and y_i >= 0 where `nonnegative`; the bound is cost'y, or its root.

    sizes: of the signals. weights: K, CSR (rows, unknowns); shift: k. constant: blocks of C, {(a, b): array} with
    a <= b, each standing for its transpose too.
    """

    sizes: tuple[int, ...]
    rows: tuple[Rows, ...]
    weights: Any
    shift: Array
    constant: Mapping[tuple[int, int], Array]
    cost: Array
    nonnegative: Mask
    root: bool

    @property
    def unknowns(self) -> int:
        return len(self.cost)

    @property
    def spans(self) -> list[slice]:
        """Where every group of rows stands in t."""
        ends = np.cumsum([0, *(rows.size for rows in self.rows)])
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]

    @property
    def varying(self) -> list[bool]:
        """Whether the weights of a group of rows depend on the unknowns."""
        return [self.weights[span].nnz > 0 for span in self.spans]

    def slack(self) -> set[int]:
        """Signals in which everything is constant: eliminating them gives the constant -V'V."""
        found = set(range(len(self.sizes)))
        for rows, varies in zip(self.rows, self.varying, strict=True):
            if varies:
                found -= {rows.signal, *rows.pre}
        return found

    @property
    def order(self) -> int:
        """Order of the matrix inequality, apart from constant slack."""
        slack = self.slack()
        return sum(size for s, size in enumerate(self.sizes) if s not in slack)


def plain_rows(signal: int, size: int) -> Rows:
    """Twice the squares of a signal's entries."""
    zero = np.zeros(size)
    return Rows(signal=signal, index=np.arange(size), alpha=zero, beta=zero, pre={})


def without_signals(program: Program, gone: list[int]) -> Program:
    """The program without some signals, and without their rows and their blocks."""
    new = {s: i for i, s in enumerate(s for s in range(len(program.sizes)) if s not in gone)}
    new[NO_SIGNAL] = NO_SIGNAL
    kept = [rows.signal not in gone for rows in program.rows]
    mask = np.concatenate([np.full(rows.size, keep) for rows, keep in zip(program.rows, kept, strict=True)])
    return replace(
        program,
        sizes=tuple(size for s, size in enumerate(program.sizes) if s not in gone),
        rows=tuple(
            replace(rows, signal=new[rows.signal], pre={new[s]: m for s, m in rows.pre.items() if s in new})
            for rows, keep in zip(program.rows, kept, strict=True)
            if keep
        ),
        weights=program.weights[mask],
        shift=program.shift[mask],
        constant={(new[a], new[b]): block for (a, b), block in program.constant.items() if a in new and b in new},
    )


def compressed(upper: Blocks, lower: Blocks) -> tuple[Blocks, Blocks]:
    """Blocks with the same Gram matrix and no more rows than columns: R of a QR factorisation of all of them.

    upper, lower: two families of blocks with the same rows, stacked side by side.
    """
    parts = [*upper.values(), *lower.values()]
    count, columns = parts[0].shape[0], sum(part.shape[1] for part in parts)
    if count <= columns:
        return upper, lower
    stacked = np.hstack(parts)
    exponents = -np.max(np.frexp(stacked)[1], axis=0)  # columns of order one: no square overflows
    r = np.ldexp(triangular_factor(np.ldexp(stacked, exponents)), -exponents)
    pieces = np.split(r, np.cumsum([part.shape[1] for part in parts])[:-1], axis=1)
    found = [np.ascontiguousarray(piece) for piece in pieces]
    return dict(zip(upper, found, strict=False)), dict(zip(lower, found[len(upper) :], strict=True))
