"""A network as a tape of affine maps, sums and activations on flat vectors, in exact arithmetic.

What `reader.py` reads a file into. `parts.py` takes the increments from it, `replay.py` the ranges on a bounded domain,
`pairs.py` the values at two points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lipmodel.certify.kernel import Block, gram

Array = np.ndarray[Any, np.dtype[Any]]
Entry = tuple[int, int]
"""An integer and its radius."""
Number = float | Fraction


class Kind(NamedTuple):
    """A scalar function: an ONNX operator type and its parameters."""

    family: str
    parameters: tuple[tuple[str, float], ...] = ()


UNKNOWN = Kind("")
"""A function of which only the slopes are known."""

MAX_ENTRIES = 4_000_000
"""Stored entries of all maps together."""
MAX_DENSE = 30_000_000
"""Entries of all blocks of the system, written out."""
MAX_SPARSE_PRODUCTS = 1_000_000
"""Products of entries above which two maps are multiplied as dense matrices."""


class Unreadable(Exception):  # noqa: N818 - a verdict
    """The file holds what this reader does not understand, or too much of it; nothing is wrong with the file."""


class Mismatch(Exception):  # noqa: N818 - a verdict
    """The file is read, and it is not the network that a certificate speaks of."""


@dataclass(eq=False)
class Sparse:
    """A matrix of entries (integer +- radius) * 2^-exponent; rows[i] has the nonzero ones of row i by column."""

    columns: int
    exponent: int
    rows: list[dict[int, Entry]]

    @property
    def entries(self) -> int:
        return sum(map(len, self.rows))

    @cached_property
    def pattern(self) -> tuple[Array, Array]:
        """Row and column of every entry."""
        counts = [len(row) for row in self.rows]
        columns = np.fromiter((c for row in self.rows for c in row), dtype=np.int64, count=sum(counts))
        return np.repeat(np.arange(len(counts)), counts), columns

    def reach(self, mask: Array) -> Array:
        """The rows with an entry in a column of the mask."""
        rows, columns = self.pattern
        result = np.zeros(len(self.rows), dtype=bool)
        result[rows[mask[columns]]] = True
        return result

    def reach_back(self, mask: Array) -> Array:
        """The columns with an entry in a row of the mask."""
        rows, columns = self.pattern
        result = np.zeros(self.columns, dtype=bool)
        result[columns[mask[rows]]] = True
        return result

    def sliced(self, rows: list[int], columns: list[int]) -> Sparse:
        """These rows, and of them these columns."""
        if columns == list(range(self.columns)):
            return Sparse(self.columns, self.exponent, [self.rows[r] for r in rows])
        place = {c: k for k, c in enumerate(columns)}
        picked = [{place[c]: e for c, e in self.rows[r].items() if c in place} for r in rows]
        return Sparse(len(columns), self.exponent, picked)

    def block(self) -> Block:
        """The matrix, written out."""
        none = (0, 0)
        full = [[row.get(c, none) for c in range(self.columns)] for row in self.rows]
        blurred = any(e[1] for row in self.rows for e in row.values())
        return Block(
            mantissa=[[e[0] for e in row] for row in full],
            exponent=self.exponent,
            radius=[[e[1] for e in row] for row in full] if blurred else None,
        )


def identity(n: int) -> Sparse:
    return selection(range(n), n)


@dataclass(eq=False)
class Selected(Sparse):
    """A matrix that picks entries, as operators that move them have; one of weights never is."""


def selection(index: Iterable[int], columns: int) -> Sparse:
    """Row i is the unit row index_i, or zero where that is negative."""
    return Selected(columns, 0, [{int(c): (1, 0)} if c >= 0 else {} for c in index])


def total(a: Sparse, b: Sparse) -> Sparse:
    exponent = max(a.exponent, b.exponent)
    p, q = exponent - a.exponent, exponent - b.exponent
    rows = []
    for x, y in zip(a.rows, b.rows, strict=True):
        row = {c: (v << p, r << p) for c, (v, r) in x.items()}
        for c, (v, r) in y.items():
            old = row.get(c, (0, 0))
            row[c] = (old[0] + (v << q), old[1] + (r << q))
        rows.append(row)
    return Sparse(a.columns, exponent, rows)


def composed(a: Sparse, b: Sparse) -> Sparse:
    """a b: |error| <= |a| rad_b + rad_a (|b| + rad_b)."""
    exponent = a.exponent + b.exponent
    if sum(len(b.rows[c]) for row in a.rows for c in row) > MAX_SPARSE_PRODUCTS:
        return _composed_dense(a, b)
    rows = []
    for x in a.rows:
        if len(x) == 1:
            ((c, (v, r)),) = x.items()
            if (v, r) == (1, 0):
                rows.append(b.rows[c])
                continue
        row: dict[int, Entry] = {}
        for k, (v, r) in x.items():
            for c, (w, s) in b.rows[k].items():
                old = row.get(c, (0, 0))
                row[c] = (old[0] + v * w, old[1] + abs(v) * s + r * (abs(w) + s))
        rows.append(row)
    return Sparse(b.columns, exponent, rows)


def _composed_dense(a: Sparse, b: Sparse) -> Sparse:
    if max(len(a.rows), b.columns) * a.columns > MAX_DENSE:
        raise Unreadable("a product of large matrices")
    across = Sparse(len(a.rows), a.exponent, [{} for _ in range(a.columns)])
    for i, row in enumerate(a.rows):
        for c, entry in row.items():
            across.rows[c][i] = entry
    product = gram(across.block(), b.block())
    radii = product.radius or [[0] * b.columns] * len(a.rows)
    rows = [
        {c: (v, s) for c, (v, s) in enumerate(zip(row, other, strict=True)) if v or s}
        for row, other in zip(product.mantissa, radii, strict=True)
    ]
    return Sparse(b.columns, product.exponent, rows)


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """Numbers (integer +- radius) * 2^-exponent, one per entry of a vector."""

    entries: list[Entry]
    exponent: int = 0

    def over(self, exponent: int) -> Fixed:
        """The same numbers over 2^-exponent, exponent at least the present one."""
        shift = exponent - self.exponent
        return self if not shift else Fixed([(v << shift, r << shift) for v, r in self.entries], exponent)

    def added(self, other: Fixed) -> Fixed:
        exponent = max(self.exponent, other.exponent)
        pairs = zip(self.over(exponent).entries, other.over(exponent).entries, strict=True)
        return Fixed([(a + b, r + s) for (a, r), (b, s) in pairs], exponent)

    def through(self, map: Sparse) -> Fixed:
        """map times the vector: |error| <= |map| rad + rad_map (|x| + rad)."""
        x, entries = self.entries, []
        for row in map.rows:
            middle = radius = 0
            for c, (v, r) in row.items():
                at, error = x[c]
                middle += v * at
                if r or error:
                    radius += abs(v) * error + r * (abs(at) + error)
            entries.append((middle, radius))
        return Fixed(entries, self.exponent + map.exponent)

    def rounded(self, bits: int) -> Fixed:
        """Intervals of about so many bits that hold these, their ends rounded outward."""
        longest = max((abs(v).bit_length() for pair in self.entries for v in pair), default=0)
        excess = longest - bits
        if excess <= 0:
            return self
        ends = [((v - r) >> excess, -(-(v + r) >> excess)) for v, r in self.entries]
        return Fixed([(a + b, b - a) for a, b in ends], self.exponent - excess + 1)

    def ends(self, i: int) -> tuple[Fraction, Fraction]:
        """The least and the greatest value of entry i."""
        v, r = self.entries[i]
        unit = Fraction(2) ** -self.exponent
        return (v - r) * unit, (v + r) * unit


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operation on flat vectors: kind "input", "still" (a constant), "linear", "sum" or "activation".

    shift: what is added to the product or the sum, the value of a constant (None: zero); known: whether it is. alpha,
    beta, kinds: of an activation, its slopes on the whole line and what function it is, per entry.
    """

    kind: str
    size: int
    sources: tuple[int, ...] = ()
    map: Sparse | None = None
    name: str = ""
    alpha: tuple[Number, ...] = ()
    beta: tuple[Number, ...] = ()
    kinds: tuple[Kind, ...] = ()
    shift: Fixed | None = None
    known: bool = True


@dataclass(eq=False)
class Tape:
    """The steps of a network in the order in which they are computed.

    owners: the name of the graph input or node that a step belongs to; shared: steps that several nodes may want, by
    what they are.
    """

    steps: list[Step] = field(default_factory=list)
    entries: int = 0
    limit: int = MAX_ENTRIES
    owners: dict[int, str] = field(default_factory=dict)
    shared: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def owned(self, name: str) -> None:
        """Give the steps that have been added since the last such call to a node."""
        self.owners |= dict.fromkeys(range(len(self.owners), len(self.steps)), name)

    def add(self, step: Step) -> int:
        self.entries += step.map.entries if step.map is not None else step.size
        if self.entries > self.limit:
            raise Unreadable("too many weights to be read a second time")
        self.steps.append(step)
        return len(self.steps) - 1

    def linear(self, source: int, map: Sparse, *, shift: Fixed | None = None) -> int:
        """map x + shift."""
        before = self.steps[source]
        if before.kind == "still":
            value = None if before.shift is None else before.shift.through(map)
            return self.still(len(map.rows), _plus(value, shift), known=before.known)
        return self.add(Step("linear", len(map.rows), (source,), map, shift=shift))

    def still(self, size: int, value: Fixed | None = None, *, known: bool = True) -> int:
        """A constant vector, zero if no value is given."""
        return self.add(Step("still", size, shift=value, known=known))

    def sum(self, sources: Sequence[int]) -> int:
        moving = [s for s in sources if self.steps[s].kind != "still"]
        still = [self.steps[s] for s in sources if self.steps[s].kind == "still"]
        size, known = self.steps[sources[0]].size, all(s.known for s in still)
        shift: Fixed | None = None
        for step in still:
            shift = _plus(shift, step.shift)
        if not moving:
            return self.still(size, shift, known=known) if len(sources) > 1 else sources[0]
        if len(moving) == 1 and shift is None and known:
            return moving[0]
        return self.add(Step("sum", size, tuple(moving), shift=shift, known=known))

    def activation(
        self,
        source: int,
        name: str,
        alpha: Sequence[Number],
        beta: Sequence[Number],
        kinds: Kind | Sequence[Kind] = UNKNOWN,
    ) -> int:
        """Functions of single entries, with slopes between alpha and beta; kinds: one for all entries, or one each."""
        size = self.steps[source].size
        each = (kinds,) * size if isinstance(kinds, Kind) else tuple(kinds)
        if self.steps[source].kind == "still":
            return self._activated_constant(source, each)
        return self.add(
            Step("activation", size, (source,), name=name, alpha=tuple(alpha), beta=tuple(beta), kinds=each)
        )

    def _activated_constant(self, source: int, kinds: tuple[Kind, ...]) -> int:
        from lipmodel.certify.evaluation import BITS, activated

        before = self.steps[source]
        try:
            value = activated(kinds, before.shift or Fixed([(0, 0)] * before.size), BITS) if before.known else None
        except Unreadable:
            value = None
        return self.still(before.size, value, known=value is not None)


def _plus(a: Fixed | None, b: Fixed | None) -> Fixed | None:
    return a.added(b) if a is not None and b is not None else a if b is None else b


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A network as a tape, `output` being the step whose value is measured."""

    tape: Tape
    output: int

    @property
    def inputs(self) -> int:
        return self.tape.steps[0].size

    @property
    def outputs(self) -> int:
        return self.tape.steps[self.output].size


def living(tape: Tape, output: int) -> Reading:
    """Without the steps that the output does not depend on; the input stays."""
    alive = {0, output}
    for k in reversed(range(len(tape.steps))):
        if k in alive:
            alive.update(tape.steps[k].sources)
    place = {k: n for n, k in enumerate(sorted(alive))}
    steps = [replace(tape.steps[k], sources=tuple(place[s] for s in tape.steps[k].sources)) for k in place]
    return Reading(Tape(steps=steps, entries=tape.entries, limit=tape.limit), place[output])
