"""A network as a tape of linear maps, sums and activations on flat vectors, in exact arithmetic, and its system.

What `reader.py` reads a file into, and where the system of increments for the kernel comes from. Biases vanish, as
constants do not move. Neurons that read nothing or that nothing reads do not move the output, and a certificate does
not speak of them; which ones it leaves out is seen from its sizes, and allowed only if stored zeros show them dead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lipmodel.certify.kernel import Block, System, gram

Array = np.ndarray[Any, np.dtype[Any]]
Entry = tuple[int, int]
"""An integer and its radius."""

MAX_ENTRIES = 1_500_000
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


def selection(index: Iterable[int], columns: int) -> Sparse:
    """Row i is the unit row index_i, or zero where that is negative."""
    return Sparse(columns, 0, [{int(c): (1, 0)} if c >= 0 else {} for c in index])


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
class Step:
    """One operation on flat vectors: kind "input", "still" (nothing moves), "linear", "sum" or "activation".

    opaque: a map of which only the whole is looked at when dead neurons are sought (a convolution).
    """

    kind: str
    size: int
    sources: tuple[int, ...] = ()
    map: Sparse | None = None
    opaque: bool = False
    name: str = ""
    alpha: tuple[float, ...] = ()
    beta: tuple[float, ...] = ()


@dataclass(eq=False)
class Tape:
    """The steps of a network in the order in which they are computed."""

    steps: list[Step] = field(default_factory=list)
    entries: int = 0

    def add(self, step: Step) -> int:
        self.entries += step.map.entries if step.map is not None else step.size
        if self.entries > MAX_ENTRIES:
            raise Unreadable("too many weights to be read a second time")
        self.steps.append(step)
        return len(self.steps) - 1

    def linear(self, source: int, map: Sparse, *, opaque: bool = False) -> int:
        if self.steps[source].kind == "still":
            return self.still(len(map.rows))
        return self.add(Step("linear", len(map.rows), (source,), map, opaque))

    def still(self, size: int) -> int:
        return self.add(Step("still", size))

    def sum(self, sources: Sequence[int]) -> int:
        moving = [s for s in sources if self.steps[s].kind != "still"]
        if len(moving) < 2:
            return moving[0] if moving else sources[0]
        return self.add(Step("sum", self.steps[moving[0]].size, tuple(moving)))

    def activation(self, source: int, name: str, alpha: Sequence[float], beta: Sequence[float]) -> int:
        """w = S v, S diagonal between alpha and beta; entries of which the slope is known stay linear."""
        size = self.steps[source].size
        if self.steps[source].kind == "still":
            return source
        free = [i for i in range(size) if alpha[i] != beta[i]]
        fixed = {i: alpha[i] for i in range(size) if alpha[i] == beta[i]}
        parts = []
        if free:
            pre = source if not fixed else self.linear(source, selection(free, size))
            low, high = (tuple(float(v[i]) for i in free) for v in (alpha, beta))
            parts.append(self.add(Step("activation", len(free), (pre,), name=name, alpha=low, beta=high)))
            if fixed:
                place = {i: k for k, i in enumerate(free)}
                parts[0] = self.linear(parts[0], selection((place.get(i, -1) for i in range(size)), len(free)))
        if fixed:
            ratios = {i: v.as_integer_ratio() for i, v in fixed.items()}
            exponent = max(d.bit_length() - 1 for _, d in ratios.values())
            scaled = {i: n << (exponent - d.bit_length() + 1) for i, (n, d) in ratios.items()}
            rows = [{i: (scaled[i], 0)} if scaled.get(i) else {} for i in range(size)]
            parts.append(self.linear(source, Sparse(size, exponent, rows)))
        return self.sum(parts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """A system of increments as in `kernel.System`, its blocks sparse."""

    sizes: tuple[int, ...]
    pre: tuple[dict[int, Sparse], ...]
    alpha: tuple[tuple[float, ...], ...]
    beta: tuple[tuple[float, ...], ...]
    output: dict[int, Sparse]

    def system(self) -> System:
        """The same for the kernel. Raises Unreadable where it is too large to be written out."""
        forms = [*self.pre, self.output]
        if sum(len(m.rows) * m.columns for form in forms for m in form.values()) > MAX_DENSE:
            raise Unreadable("too large a system to be read a second time")
        pre = [{j: m.block() for j, m in form.items()} for form in forms]
        return System(sizes=self.sizes, pre=tuple(pre[:-1]), alpha=self.alpha, beta=self.beta, output=pre[-1])


@dataclass(eq=False)
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

    def part(
        self, names: Sequence[str], sizes: Sequence[int], *, row: int | None = None, column: int | None = None
    ) -> Part:
        """The increments, of one output and/or input where a row and/or column is given.

        names, sizes: the activations that a certificate has multipliers for, in its order. Raises Mismatch where the
        file has others.
        """
        whole, part = self._alive(None, None), self._alive(row, column)
        own = {k: s for k, s in enumerate(self.tape.steps) if s.kind == "activation"}
        left = [k for k in own if part[k].any()]
        order = []
        for name in names:
            found = [k for k in left if own[k].name in (name, name.rpartition("#")[0])]
            if not found:
                raise Mismatch(f"it has no activation {name!r} that matters, or fewer of them")
            left.remove(found[0])
            order.append(found[0])
        if left:
            raise Mismatch(f"it has {len(left)} activations more: {', '.join(own[k].name for k in left[:5])}")
        kept: list[list[int]] = [list(range(self.inputs)) if column is None else [column]]
        for k, size in zip(order, sizes, strict=True):
            masks = [np.ones(own[k].size, dtype=bool), whole[k], part[k]]
            fitting = [mask for mask in masks if int(mask.sum()) == size]
            if not fitting:
                counts = " or ".join(str(int(mask.sum())) for mask in masks)
                raise Mismatch(f"its activation {own[k].name!r} has {counts} neurons, not {size}")
            kept.append(np.flatnonzero(fitting[0]).tolist())
        signals = {0: 0, **{k: n for n, k in enumerate(order, start=1)}}
        rows = [*kept[1:], list(range(self.outputs)) if row is None else [row]]
        forms = [self._forms[self.tape.steps[k].sources[0]] for k in order] + [self._forms[self.output]]
        sliced = [
            {signals[s]: m.sliced(index, kept[signals[s]]) for s, m in form.items() if s in signals}
            for form, index in zip(forms, rows, strict=True)
        ]
        return Part(
            sizes=tuple(map(len, kept)),
            pre=tuple(sliced[:-1]),
            alpha=tuple(tuple(own[k].alpha[i] for i in index) for k, index in zip(order, kept[1:], strict=True)),
            beta=tuple(tuple(own[k].beta[i] for i in index) for k, index in zip(order, kept[1:], strict=True)),
            output=sliced[-1],
        )

    @cached_property
    def _forms(self) -> list[dict[int, Sparse]]:
        """Every value as a linear form in the signals: step 0, the input, and the activations."""
        forms: list[dict[int, Sparse]] = []
        for k, step in enumerate(self.tape.steps):
            if step.kind in ("input", "activation"):
                forms.append({k: identity(step.size)})
            elif step.kind == "linear":
                assert step.map is not None
                forms.append({s: composed(step.map, m) for s, m in forms[step.sources[0]].items()})
            else:
                sums: dict[int, Sparse] = {}
                for source in step.sources:
                    for s, m in forms[source].items():
                        sums[s] = total(sums[s], m) if s in sums else m
                forms.append(sums)
        return forms

    def _alive(self, row: int | None, column: int | None) -> dict[int, Array]:
        """Per activation, the neurons on a path of stored nonzeros from the input (column) to the output (row)."""
        steps = self.tape.steps
        moved: list[Array] = []
        for k, step in enumerate(steps):
            mask = np.zeros(step.size, dtype=bool)
            if k == 0:
                mask[slice(None) if column is None else column] = True
            for source in step.sources:
                if step.map is None:
                    mask |= moved[source]
                else:
                    mask |= moved[source].any() if step.opaque else step.map.reach(moved[source])
            moved.append(mask)
        wanted = [np.zeros(step.size, dtype=bool) for step in steps]
        wanted[self.output][slice(None) if row is None else row] = True
        for k in reversed(range(len(steps))):
            step = steps[k]
            mask = wanted[k] & moved[k] if step.kind == "activation" else wanted[k]
            for source in step.sources:
                if step.map is None:
                    wanted[source] |= mask
                else:
                    wanted[source] |= mask.any() if step.opaque else step.map.reach_back(mask)
        return {k: moved[k] & wanted[k] for k, step in enumerate(steps) if step.kind == "activation"}
