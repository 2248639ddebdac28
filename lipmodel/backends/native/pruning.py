"""Dead neurons and unused entries of a program: taken out before it is solved, and given harmless multipliers after.

A neuron that no input reaches is zero: any multiplier that outweighs what it feeds will do, and an optimum would have
it infinite. A neuron that does not reach the output only costs: its best multiplier is zero. Both leave the interior,
so that no barrier can converge. Only unknowns that are a neuron's own are taken out with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lipmodel.backends.native.chain import ABSENT, Array, Exponents, Mask, exponents, shift
from lipmodel.backends.native.program import NO_SIGNAL, Program, Rows, without_signals
from lipmodel.backends.native.structure import Structure

NEGLIGIBLE = 40  # binary orders by which what is useless stays below what matters
FIRM = 60  # binary orders by which a neuron that no input reaches is held above what it feeds
PASSES = 8
UNSET = 1 << 40
NOTHING = -120  # binary exponent of what remains of a program in which nothing matters


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pruned:
    """A program without its dead entries. kept: masks by signal; unknowns: mask; fed: entries that some input reaches."""

    program: Program
    kept: tuple[Mask, ...]
    unknowns: Mask
    fed: tuple[Mask, ...]


def pruned(program: Program, structure: Structure | None) -> Pruned:
    """Take out what is dead, and unknowns that occur nowhere."""
    kept = [np.ones(size, dtype=bool) for size in program.sizes]
    fed = list(kept)
    if structure is not None and not structure.extra:
        kept, fed = _without_dead(program, structure)
    changed = _restricted(program, kept)
    used = np.bincount(changed.weights.indices, minlength=program.unknowns) > 0
    changed = replace(
        changed,
        weights=changed.weights[:, np.flatnonzero(used)],
        cost=program.cost[used],
        nonnegative=program.nonnegative[used],
    )
    return Pruned(program=changed, kept=tuple(kept), unknowns=used, fed=tuple(fed))


def _without_dead(program: Program, structure: Structure) -> tuple[list[Mask], list[Mask]]:
    """Masks of the entries that stay, and of those that some input reaches.

    What is dead but shares its unknowns with what is not must stay, and what it reads or feeds stays alive with it.
    """
    groups = (*structure.inputs.values(), *structure.duals.values(), *structure.activations)
    stays = [np.zeros(size, dtype=bool) for size in program.sizes]
    while True:
        reached, useful = _reached(program, structure, stays), _useful(program, structure, stays)
        removable = np.zeros(len(program.shift), dtype=bool)
        for unfed in (True, False):
            wanted = np.zeros(len(program.shift), dtype=bool)
            for g in groups:
                s = program.rows[g].signal
                wanted[program.spans[g]] = ~reached[s] if unfed else reached[s] & ~useful[s]
            removable |= _of_their_own(program, wanted)
        before = [mask.copy() for mask in stays]
        for g in groups:
            s = program.rows[g].signal
            stays[s] |= ~(reached[s] & useful[s]) & ~removable[program.spans[g]]
        if all(np.array_equal(a, b) for a, b in zip(before, stays, strict=True)):
            break
    kept = [np.ones(size, dtype=bool) for size in program.sizes]
    for g in groups:
        kept[program.rows[g].signal] = ~removable[program.spans[g]]
    if _is_constant(program, structure, reached) and not any(kept[program.rows[g].signal].any() for g in structure.activations):
        kept = [np.zeros(size, dtype=bool) for size in program.sizes]
    return kept, reached


def _of_their_own(program: Program, rows: Mask) -> Mask:
    """The largest part of some rows whose unknowns occur in no row outside that part."""
    weights = program.weights
    row_of = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    rows = rows & (np.diff(weights.indptr) > 0)
    while True:
        shared = np.zeros(program.unknowns, dtype=bool)
        shared[weights.indices[~rows[row_of]]] = True
        left = rows.copy()
        left[row_of[shared[weights.indices]]] = False
        if np.array_equal(left, rows):
            return np.asarray(left)
        rows = left


def _active(program: Program, group: int) -> Mask:
    rows = program.rows[group]
    return np.asarray((rows.alpha != 0.0) | (rows.beta != 0.0))


def _reached(program: Program, structure: Structure, stays: Sequence[Mask]) -> list[Mask]:
    """Entries on a path of nonzero weights from an input or from dead entries that stay; all inputs."""
    reached = [np.ones(size, dtype=bool) for size in program.sizes]
    for g in structure.activations:
        rows = program.rows[g]
        hit = np.zeros(rows.size, dtype=bool)
        for s, m in rows.pre.items():
            hit |= (m[:, reached[s]] != 0.0).any(axis=1)
        reached[rows.signal] = hit & _active(program, g) | stays[rows.signal]
    for d in structure.duals:
        hit = np.zeros(program.sizes[d], dtype=bool)
        for s, block in _couplings(program, d).items():
            hit |= (block[:, reached[s]] != 0.0).any(axis=1)
        reached[d] = hit | stays[d]
    return reached


def _is_constant(program: Program, structure: Structure, reached: Sequence[Mask]) -> bool:
    """Whether no path leads from the inputs to the far ends."""
    far = (*structure.duals, *structure.slack)
    return not any((m[:, reached[s]] != 0.0).any() for d in far for s, m in _couplings(program, d).items())


def _useful(program: Program, structure: Structure, stays: Sequence[Mask]) -> list[Mask]:
    """Entries on a path of nonzero weights to an output or to dead entries that stay; all of the far ends."""
    useful = [np.zeros(size, dtype=bool) for size in program.sizes]
    for d in (*structure.duals, *structure.slack):
        useful[d][:] = True
        for s, block in _couplings(program, d).items():
            useful[s] |= (block != 0.0).any(axis=0)
    for g in reversed(structure.activations):
        rows = program.rows[g]
        mask = useful[rows.signal] & _active(program, g) | stays[rows.signal]
        for s, m in rows.pre.items():
            useful[s] |= (m[mask] != 0.0).any(axis=0)
    return useful


def _couplings(program: Program, d: int) -> dict[int, Array]:
    """The constant blocks of a signal with others, rows for its own entries."""
    found = {}
    for (a, b), block in program.constant.items():
        if d in (a, b):
            found[a if b == d else b] = block.T if b == d else block
    return found


def _restricted(program: Program, kept: Sequence[Mask]) -> Program:
    """The program on some entries of its signals; their rows go with them."""
    if all(mask.all() for mask in kept):
        return program
    rows, chosen = [], []
    for group in program.rows:
        mask = np.ones(group.size, dtype=bool) if group.signal == NO_SIGNAL else kept[group.signal][group.index]
        chosen.append(mask)
        place = None if group.signal == NO_SIGNAL else np.cumsum(kept[group.signal]) - 1
        rows.append(
            replace(
                group,
                index=group.index[mask] if place is None else place[group.index[mask]],
                alpha=group.alpha[mask],
                beta=group.beta[mask],
                pre={s: np.ascontiguousarray(m[np.ix_(mask, kept[s])]) for s, m in group.pre.items()},
            )
        )
    mask = np.concatenate(chosen)
    empty = [s for s, part in enumerate(kept) if not part.any()]
    small = replace(
        program,
        sizes=tuple(int(part.sum()) for part in kept),
        rows=tuple(rows),
        weights=program.weights[mask],
        shift=program.shift[mask],
        constant={
            (a, b): np.ascontiguousarray(block[np.ix_(kept[a], kept[b])]) for (a, b), block in program.constant.items()
        },
    )
    return without_signals(small, empty) if empty else small


def embedded(program: Program, structure: Structure | None, found: Pruned, y: Array) -> Array:
    """All unknowns from those that were solved for: negligible where useless, large where nothing is fed in."""
    result = np.zeros(program.unknowns)
    result[found.unknowns] = y
    if structure is None or all(mask.all() for mask in found.kept):
        return result
    levels = _Levels(program, structure, found, program.weights @ result + program.shift)
    for _ in range(PASSES):  # multipliers shared by several layers may move what was settled before
        before = levels.least.copy(), levels.most.copy()
        for g in structure.activations:
            levels.lower(program.rows[g])
        for g in reversed(structure.activations):
            levels.raise_(program.rows[g])
        if np.array_equal(before[0], levels.least) and np.array_equal(before[1], levels.most):
            break
    result[levels.least < UNSET] = shift(1.0, levels.least[levels.least < UNSET])
    result[levels.most > ABSENT] = shift(1.0, levels.most[levels.most > ABSENT] + 1)
    return result


class _Levels:
    """Binary exponents of t for the entries of every signal, estimated where they were taken out.

    least, most: those of the unknowns that were taken out with useless entries, and with entries that nothing feeds.
    """

    def __init__(self, program: Program, structure: Structure, found: Pruned, t: Array) -> None:
        self.program, self.structure, self.found = program, structure, found
        spans = program.spans
        self.least = np.full(program.unknowns, UNSET)
        self.most = np.full(program.unknowns, ABSENT)
        self.groups = {program.rows[g].signal: g for g in structure.activations}
        self.balls = {**structure.inputs, **structure.duals, **structure.slack}
        self.of = {s: exponents(t[spans[g]]) for s, g in (*self.balls.items(), *self.groups.items())}
        self.steep = {s: _steepness(program.rows[g]) for s, g in self.groups.items()}
        inside = [self.of[s][found.kept[s]] for s in structure.inputs]
        alive = int(np.concatenate(inside).max(initial=NOTHING)) if inside else NOTHING
        for s in self.balls:
            gone = ~found.kept[s]
            base = int(self.of[s][~gone].max()) if (~gone).any() else alive
            self._settle(s, gone, np.full(gone.size, base - NEGLIGIBLE - int(gone.size).bit_length()), raised=False)

    def _settle(self, s: int, gone: Mask, wanted: Exponents, *, raised: bool) -> None:
        """Set unknowns so that t is at most (at least, where raised) as wanted, and t from the unknowns."""
        rows = np.flatnonzero(gone)
        if not rows.size:
            return
        g = self.groups[s] if s in self.groups else self.balls[s]
        part = self.program.weights[self.program.spans[g]][rows]
        if not part.nnz:
            return
        counts = np.diff(part.indptr)
        sizes = np.frexp(part.data)[1]
        share = np.repeat(wanted[rows] - np.ceil(np.log2(counts)).astype(np.int64), counts) - sizes
        target = self.most if raised else self.least
        (np.maximum if raised else np.minimum).at(target, part.indices, share)
        self.of[s][rows] = np.maximum.reduceat(target[part.indices] + sizes, part.indptr[:-1])

    def lower(self, rows: Rows) -> None:
        """Useless entries: negligible beside what they read."""
        s, found = rows.signal, self.found
        useless = ~found.kept[s] & found.fed[s]
        if not useless.any():
            return
        bound = np.full(rows.size, UNSET)
        for j, m in rows.pre.items():
            entries = exponents(m)
            room = np.where(found.kept[j] | (j in self.balls), NEGLIGIBLE, 8) + rows.size.bit_length() + 4
            usable = (entries != ABSENT) & found.fed[j][None, :]
            allowed = np.where(usable, (self.of[j] - room)[None, :] - 2 * entries, UNSET)
            bound = np.minimum(bound, allowed.min(axis=1))
        self._settle(s, useless, bound - 2 * self.steep[s], raised=False)

    def raise_(self, rows: Rows) -> None:
        """Entries that nothing feeds: above all that they feed."""
        s, found = rows.signal, self.found
        unfed = ~found.kept[s] & ~found.fed[s]
        if not unfed.any():
            return
        need = np.full(unfed.size, ABSENT)
        for g in self.structure.activations:
            reader = self.program.rows[g]
            if s in reader.pre:
                firm = np.where(found.fed[reader.signal], FIRM, 8) + reader.size.bit_length() + 4
                level = self.of[reader.signal] + 2 * self.steep[reader.signal] + firm
                need = np.maximum(need, (2 * exponents(reader.pre[s]) + level[:, None]).max(axis=0))
        for d in (*self.structure.duals, *self.structure.slack):
            block = _couplings(self.program, d).get(s)
            if block is not None:
                level = FIRM + block.shape[0].bit_length() + 4 - self.of[d]
                need = np.maximum(need, (2 * exponents(block) + level[:, None]).max(axis=0))
        self._settle(s, unfed, np.where(need < ABSENT // 2, 0, need), raised=True)


def _steepness(rows: Rows) -> Exponents:
    """Binary exponent of the largest slope of every row."""
    return exponents(np.maximum(np.abs(rows.alpha), np.abs(rows.beta)))
