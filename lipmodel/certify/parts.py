"""From a tape to a system of increments: two inputs are subtracted, constants vanish, every activation is a signal.

Entries of activations whose slope is known are linear. Neurons that read nothing, or that nothing reads, by stored
zeros, do not move the output, and a certificate need not speak of them: it says which ones it speaks of, and all that
may matter must be among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipmodel.certify.kernel import System
from lipmodel.certify.tape import (
    MAX_DENSE,
    Mismatch,
    Number,
    Reading,
    Sparse,
    Step,
    Tape,
    Unreadable,
    composed,
    selection,
    total,
)

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slopes:
    """Of every entry of an activation: an interval that holds its slopes, and whether it counts as linear (alpha x)."""

    alpha: Sequence[Number]
    beta: Sequence[Number]
    linear: Array


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


def matched(tape: Tape, names: Sequence[str]) -> dict[int, str]:
    """The activations of a tape that have these names, and which; in the order of the names, each used once."""
    left = [k for k, step in enumerate(tape.steps) if step.kind == "activation"]
    found: dict[int, str] = {}
    for name in names:
        fitting = [k for k in left if tape.steps[k].name in (name, name.rpartition("#")[0])]
        if fitting:
            left.remove(fitting[0])
            found[fitting[0]] = name
    return found


@dataclass(eq=False)
class Increments:
    """A tape whose activations have been taken apart: `free[k]` has the entries of activation step k that are signals.

    slopes: per such step, of these entries.
    """

    tape: Tape
    output: int
    free: dict[int, Array]
    slopes: dict[int, tuple[list[float], list[float]]]

    @property
    def inputs(self) -> int:
        return self.tape.steps[0].size

    @property
    def outputs(self) -> int:
        return self.tape.steps[self.output].size

    def part(
        self,
        names: Sequence[str],
        kept: Mapping[str, Array],
        *,
        row: int | None = None,
        column: int | None = None,
    ) -> Part:
        """The system, of one output and/or input where a row and/or column is given.

        names: the activations that a certificate has multipliers for, in its order; kept: the entries of each that it
        speaks of, where it does not speak of all. Raises Mismatch where the file has others.
        """
        alive = self._alive(row, column)
        own, left = self.tape.steps, [k for k in self.free if alive[k].any()]
        found = {name: k for k, name in matched(self.tape, names).items()}
        for name in names:
            if name not in found:
                raise Mismatch(f"it has no activation {name!r} that matters, or fewer of them")
        order = [found[name] for name in names]
        more = [own[k].name for k in left if k not in order]
        if more:
            raise Mismatch(f"it has {len(more)} activations more: {', '.join(more[:5])}")
        index: list[list[int]] = [list(range(self.inputs)) if column is None else [column]]
        for name, k in zip(names, order, strict=True):
            place = {entry: n for n, entry in enumerate(self.free[k].tolist())}
            chosen = kept[name].tolist() if name in kept else list(place)
            if len(set(chosen)) != len(chosen) or not place.keys() >= set(chosen):
                raise Mismatch(f"its activation {name!r} has no such neurons")
            index.append([place[entry] for entry in chosen])
            lost = set(np.flatnonzero(alive[k]).tolist()) - set(index[-1])
            if lost:
                raise Mismatch(f"its activation {name!r} has {len(lost)} neurons more that matter")
        signals = {0: 0, **{k: n for n, k in enumerate(order, start=1)}}
        rows = [*index[1:], list(range(self.outputs)) if row is None else [row]]
        targets = [*(own[k].sources[0] for k in order), self.output]
        sliced = []
        for target, picked in zip(targets, rows, strict=True):
            form = self._form(target, picked)
            whole = {signals[s]: m for s, m in form.items() if s in signals}
            sliced.append({j: m.sliced(list(range(len(m.rows))), index[j]) for j, m in whole.items()})
        ends = [[[side[i] for i in picked] for side in self.slopes[k]] for k, picked in zip(order, rows, strict=False)]
        return Part(
            sizes=tuple(map(len, index)),
            pre=tuple(sliced[:-1]),
            alpha=tuple(tuple(low) for low, _ in ends),
            beta=tuple(tuple(high) for _, high in ends),
            output=sliced[-1],
        )

    def _form(self, target: int, rows: Sequence[int]) -> dict[int, Sparse]:
        """Entries of the value of a step as linear forms in the signals: step 0, the input, and the activations."""
        waiting = {target: selection(rows, self.tape.steps[target].size)}
        form: dict[int, Sparse] = {}
        for k in range(target, -1, -1):
            if k not in waiting:
                continue
            part, step = waiting.pop(k), self.tape.steps[k]
            if step.kind in ("input", "activation"):
                form[k] = part
                continue
            before = part if step.map is None else composed(part, step.map)
            for source in step.sources:
                waiting[source] = total(waiting[source], before) if source in waiting else before
        return form

    def _alive(self, row: int | None, column: int | None) -> dict[int, Array]:
        """Per activation, the neurons on a path of stored nonzeros from the input (column) to the output (row)."""
        steps = self.tape.steps
        moved: list[Array] = []
        for k, step in enumerate(steps):
            mask = np.zeros(step.size, dtype=bool)
            if k == 0 and step.kind == "input":
                mask[slice(None) if column is None else column] = True
            for source in step.sources:
                if step.map is None:
                    mask |= moved[source]
                else:
                    mask |= step.map.reach(moved[source])
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
                    wanted[source] |= step.map.reach_back(mask)
        return {k: moved[k] & wanted[k] for k, step in enumerate(steps) if step.kind == "activation"}


def increments(reading: Reading, slopes: Mapping[int, Slopes], moving: Sequence[int] | None = None) -> Increments:
    """The increments of a network whose activations, by step, have these slopes.

    moving: the input entries that are not the same for all inputs (None: all of them).
    """
    old = reading.tape.steps
    found = Increments(tape=Tape(limit=2 * reading.tape.limit), output=0, free={}, slopes={})
    new = found.tape
    at: list[int] = []
    for k, step in enumerate(old):
        sources = [at[s] for s in step.sources]
        if step.kind == "input":
            if moving is not None and not moving:
                at.append(new.still(step.size))
                continue
            at.append(new.add(Step("input", step.size if moving is None else len(moving))))
            if moving is not None and len(moving) < step.size:
                place = {entry: n for n, entry in enumerate(moving)}
                at[-1] = new.linear(at[-1], selection((place.get(i, -1) for i in range(step.size)), len(moving)))
        elif step.kind == "still":
            at.append(new.still(step.size))
        elif step.kind == "linear":
            assert step.map is not None
            at.append(new.linear(sources[0], step.map))
        elif step.kind == "sum":
            at.append(new.sum(sources))
        else:
            at.append(_split(found, sources[0], step, slopes[k]))
    found.output = at[reading.output]
    return found


def _split(found: Increments, source: int, step: Step, slopes: Slopes) -> int:
    """An activation as its free entries, a new signal, plus its linear ones."""
    tape, size = found.tape, step.size
    if tape.steps[source].kind == "still":
        return source
    free, fixed = np.flatnonzero(~slopes.linear), np.flatnonzero(slopes.linear).tolist()
    parts = []
    if len(free):
        pre = source if not fixed else tape.linear(source, selection(free.tolist(), size))
        signal = tape.add(Step("activation", len(free), (pre,), name=step.name))
        found.free[signal] = free
        found.slopes[signal] = (
            [float(slopes.alpha[i]) for i in free.tolist()],
            [float(slopes.beta[i]) for i in free.tolist()],
        )
        place = np.full(size, -1)
        place[free] = np.arange(len(free))
        parts.append(signal if not fixed else tape.linear(signal, selection(place.tolist(), len(free))))
    if fixed:
        parts.append(tape.linear(source, _diagonal(fixed, slopes.alpha, size)))
    return tape.sum(parts)


def _diagonal(entries: Sequence[int], values: Sequence[Number], size: int) -> Sparse:
    """The diagonal matrix with these entries of these (dyadic) values, zero elsewhere."""
    ratios = {i: values[i].as_integer_ratio() for i in entries}
    exponent = max(d.bit_length() - 1 for _, d in ratios.values())
    scaled = {i: n << (exponent - d.bit_length() + 1) for i, (n, d) in ratios.items()}
    return Sparse(size, exponent, [{i: (scaled[i], 0)} if scaled.get(i) else {} for i in range(size)])
