"""The maximum over all signs of a polynomial of degree one in every variable, by eliminating one after the other.

Eliminating x from c(..) + x b(..) leaves the table of |b| over the variables that x occurs with; with a good order the
tables stay small where the polynomial is sparse (Bertele & Brioschi 1972, Nonserial Dynamic Programming). Where they do
not, some variables are fixed first, and all their signs tried. Tables are of 64-bit integers and never overflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from lipmodel.certify.kernel import Rejected

Array = np.ndarray[Any, np.dtype[Any]]
Monomial = tuple[int, ...]
Terms = Mapping[Monomial, int]

TABLE_WIDTH = 20
"""Variables of the largest table, 8 MiB; with more, some variables are fixed."""
MAX_ENTRIES = 2**34
"""Entries of all tables together, all signs of the fixed variables counted: minutes."""
BITS = 61
"""The moduli of all coefficients add up to less than 2^61, so that sums of two entries fit 64 bits."""


def maximum_over_signs(terms: Terms, order: Sequence[int]) -> int:
    """A whole number that is at least the maximum, and the maximum itself up to the rounding to 61 bits.

    order: every variable once, first eliminated first; no monomial has a variable twice. Raises Rejected where a
    variable is missing, or the tables would be too large.
    """
    if not set(chain.from_iterable(terms)) <= set(order):
        raise Rejected("not every variable is eliminated")
    fixed, rest, entries = plan(terms, order)
    if entries > MAX_ENTRIES:
        raise Rejected(f"tables of {entries:,} entries, more than {MAX_ENTRIES:,}")
    shift = max(0, sum(map(abs, terms.values())).bit_length() - BITS)
    near = {m: (c + (1 << shift >> 1)) >> shift for m, c in terms.items()}
    rounded = sum(abs(c - (near[m] << shift)) for m, c in terms.items())
    return (_by_cases(near, fixed, rest) << shift) + rounded


def plan(terms: Terms, order: Sequence[int]) -> tuple[list[int], list[int], int]:
    """Which variables to fix, the order of the others, and the entries of all tables for all signs of the fixed."""
    fixed: list[int] = []
    while True:
        rest = [v for v in order if v not in fixed]
        scopes = _scopes(terms, rest)
        wide = [scope for scope in scopes if len(scope) > TABLE_WIDTH]
        entries = sum(1 << len(scope) for scope in scopes) << len(fixed)
        if not wide or entries > MAX_ENTRIES:
            return fixed, rest, entries
        counts: dict[int, int] = {}
        for v in chain.from_iterable(wide):
            counts[v] = counts.get(v, 0) + 1
        fixed.append(max(counts, key=lambda v: (counts[v], v)))


def _scopes(terms: Terms, order: Sequence[int]) -> list[set[int]]:
    """The variables of the table that every elimination leaves; variables that are not in the order are fixed."""
    own = set(order)
    around: dict[int, set[int]] = {v: set() for v in order}
    for m in terms:
        group = own.intersection(m)
        for v in group:
            around[v] |= group
    scopes = []
    for v in order:
        scope = around.pop(v) - {v}
        for i in scope:
            around[i] |= scope
            around[i].discard(v)
        scopes.append(scope)
    return scopes


def _by_cases(terms: Terms, fixed: Sequence[int], order: Sequence[int]) -> int:
    """The maximum, all signs of the fixed variables tried."""
    if not fixed:
        return _eliminated(terms, order)
    found = []
    for sign in (1, -1):
        case: dict[Monomial, int] = {}
        for m, c in terms.items():
            inside = fixed[0] in m
            key = tuple(i for i in m if i != fixed[0]) if inside else m
            case[key] = case.get(key, 0) + (sign * c if inside else c)
        found.append(_by_cases(case, fixed[1:], order))
    return max(found)


def _eliminated(terms: Terms, order: Sequence[int]) -> int:
    rest, unread = 0, dict(terms)
    tables: list[tuple[Monomial, Array]] = []
    for v in order:
        linear = {tuple(i for i in m if i != v): unread.pop(m) for m in [m for m in unread if v in m]}
        used = [t for t in tables if v in t[0]]
        tables = [t for t in tables if v not in t[0]]
        scope = tuple(sorted({i for m in chain(linear, (t[0] for t in used)) for i in m} - {v}))
        slope = _table(linear, scope)
        if used:
            down, up = (_side(used, v, scope, side) for side in (0, 1))
            best = np.maximum(down - slope, up + slope)
        else:
            best = np.abs(slope)
        kept = tuple(i for i, n in zip(scope, best.shape, strict=True) if n > 1)
        if kept:
            tables.append((kept, best.reshape((2,) * len(kept))))
        else:
            rest += int(best.reshape(()))
    return rest + unread.get((), 0)


def _side(used: Sequence[tuple[Monomial, Array]], v: int, scope: Monomial, side: int) -> Array:
    """The sum of some tables where a variable is -1 (side 0) or 1, with the axes of the scope."""
    total: Array = np.zeros((1,) * len(scope), dtype=np.int64)
    for own, table in used:
        place = tuple(slice(None) if i in own else None for i in scope)
        total = total + np.take(table, side, axis=own.index(v))[place]
    return total


def _table(terms: Terms, scope: Monomial) -> Array:
    """The values of a polynomial of degree one at all signs of the scope, -1 before 1 on every axis.

    Axes on which it does not depend have one entry.
    """
    if not scope:
        return np.array(terms.get((), 0), dtype=np.int64)
    first, rest = scope[0], scope[1:]
    without = _table({m: c for m, c in terms.items() if first not in m}, rest)
    factor = {tuple(i for i in m if i != first): c for m, c in terms.items() if first in m}
    if not factor:
        return without[None]
    slope = _table(factor, rest)
    return np.stack([without - slope, without + slope])
