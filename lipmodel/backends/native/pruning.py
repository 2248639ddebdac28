"""Dead neurons and unused entries of a program: taken out before it is solved, and given harmless multipliers after.

A neuron that no input reaches is zero: any multiplier that outweighs what it feeds will do, and an optimum would have
it infinite. An entry that nothing reads only costs: its best multiplier is zero. Neither optimum is attained, so that
no barrier method converges with them. Only unknowns that occur in such rows alone are taken out with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lipmodel.backends.native.chain import ABSENT, Array, Exponents, Mask, exponents, shift
from lipmodel.backends.native.program import NO_SIGNAL, Program, Rows, without_signals

NEGLIGIBLE = 40  # binary orders by which what is useless stays below what matters
FIRM = 30  # the same for a neuron that no input reaches above what it feeds: more would magnify errors of its weights
MODEST = 8  # the same between neurons that are dead alike
NOTHING = -120  # binary exponent of what remains of a program in which nothing matters
UNSET = 1 << 40
PASSES = 8  # over multipliers that are shared among dead neurons


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pruned:
    """A program without its dead entries.

    kept: masks of the entries of every signal; unknowns: mask. useless, unfed: rounds of rows that were taken out
    because nothing reads their entry, and because their entry reads nothing; the rows are those of the whole program.
    """

    program: Program
    kept: tuple[Mask, ...]
    unknowns: Mask
    useless: tuple[Exponents, ...]
    unfed: tuple[Exponents, ...]


def pruned(program: Program) -> Pruned:
    """Take out what is dead, and unknowns that occur nowhere."""
    alive = np.ones(len(program.shift), dtype=bool)
    kept = [np.ones(size, dtype=bool) for size in program.sizes]
    rounds: tuple[list[Exponents], list[Exponents]] = ([], [])
    removable = _removable(program)
    while True:
        found = False
        for unfed in (False, True):
            wanted = _dead(program, alive, kept, unfed=unfed) & removable[int(unfed)]
            gone = np.flatnonzero(_of_their_own(program, wanted, alive))
            if gone.size:
                found = True
                rounds[int(unfed)].append(gone)
                alive[gone] = False
                for rows, span in zip(program.rows, program.spans, strict=True):
                    here = gone[(gone >= span.start) & (gone < span.stop)] - span.start
                    if here.size:
                        kept[rows.signal][rows.index[here]] = False
        if not found:
            break
    changed = _restricted(program, kept)
    used = np.bincount(changed.weights.indices, minlength=program.unknowns) > 0
    changed = replace(
        changed,
        weights=changed.weights[:, np.flatnonzero(used)],
        cost=program.cost[used],
        nonnegative=program.nonnegative[used],
    )
    return Pruned(program=changed, kept=tuple(kept), unknowns=used, useless=tuple(rounds[0]), unfed=tuple(rounds[1]))


def _removable(program: Program) -> tuple[Mask, Mask]:
    """Rows whose weights may tend to zero, and those whose weights may grow without bound at no cost."""
    weights = program.weights
    filled = np.diff(weights.indptr) > 0
    row_of = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    free = filled.copy()
    free[row_of[weights.data <= 0.0]] = False
    plain = free & (program.shift == 0.0)
    free[row_of[program.cost[weights.indices] > 0.0]] = False
    return plain, free


def _dead(program: Program, alive: Mask, kept: Sequence[Mask], *, unfed: bool) -> Mask:
    """Rows that read nothing, or whose entry no row and no constant reads; of entries with one row only."""
    owners = [np.zeros(size, dtype=np.int64) for size in program.sizes]
    read = [np.zeros(size, dtype=bool) for size in program.sizes]
    reads = np.zeros(len(program.shift), dtype=bool)
    for rows, span in zip(program.rows, program.spans, strict=True):
        active = alive[span] & ((rows.alpha != 0.0) | (rows.beta != 0.0))
        if rows.signal != NO_SIGNAL:
            np.add.at(owners[rows.signal], rows.index, alive[span])
        for s, m in rows.pre.items():
            present = (m != 0.0) & kept[s] & active[:, None]
            read[s] |= present.any(axis=0)
            reads[span] |= present.any(axis=1)
    for (a, b), block in program.constant.items():
        present = (block != 0.0) & kept[a][:, None] & kept[b]
        read[a] |= present.any(axis=1)
        read[b] |= present.any(axis=0)
    wanted = np.zeros(len(program.shift), dtype=bool)
    for rows, span in zip(program.rows, program.spans, strict=True):
        if rows.signal != NO_SIGNAL:
            dead = ~reads[span] if unfed else ~read[rows.signal][rows.index]
            wanted[span] = dead & alive[span] & (owners[rows.signal][rows.index] == 1)
    return wanted


def _of_their_own(program: Program, rows: Mask, alive: Mask) -> Mask:
    """The largest part of some rows whose unknowns occur in no living row outside that part."""
    weights = program.weights
    row_of = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    while True:
        shared = np.zeros(program.unknowns, dtype=bool)
        shared[weights.indices[~rows[row_of] & alive[row_of]]] = True
        left = rows.copy()
        left[row_of[shared[weights.indices]]] = False
        if np.array_equal(left, rows):
            return np.asarray(left)
        rows = left


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


# ---------------------------------------------------------------------------------------------------------------------
# Back


def embedded(program: Program, found: Pruned, y: Array) -> Array:
    """All unknowns from those that were solved for: negligible where useless, large where nothing is fed in."""
    result = np.zeros(program.unknowns)
    result[found.unknowns] = y
    if not found.useless and not found.unfed:
        return result
    levels = _Levels(program, found, program.weights @ result + program.shift)
    for _ in range(PASSES):
        before = levels.unknowns.copy()
        for rows in reversed(found.useless):
            levels.lower(rows)
        for rows in reversed(found.unfed):
            levels.heighten(rows)
        if np.array_equal(before, levels.unknowns):
            break
    gone = levels.unknowns != UNSET
    result[gone] = shift(1.0, levels.unknowns[gone])
    return result


class _Levels:
    """Binary exponents of weights and unknowns, estimated where rows were taken out."""

    def __init__(self, program: Program, found: Pruned, t: Array) -> None:
        self.program, self.found = program, found
        self.t = exponents(t)  # of the weights of the rows
        self.unknowns = np.full(program.unknowns, UNSET)
        self.of = [np.full(size, ABSENT) for size in program.sizes]  # of the diagonal of the matrix
        for rows, span in zip(program.rows, program.spans, strict=True):
            if rows.signal != NO_SIGNAL:
                np.maximum.at(self.of[rows.signal], rows.index, self.t[span])
        living = [level[mask & (level != ABSENT)] for level, mask in zip(self.of, found.kept, strict=True)]
        if not found.unknowns.any():
            living = []
        self.least = min((int(level.min()) for level in living if level.size), default=NOTHING)
        self.steep = [exponents(np.maximum(np.abs(rows.alpha), np.abs(rows.beta))) for rows in program.rows]
        self.dead = [~mask for mask in found.kept]
        self.unfed = [np.zeros(size, dtype=bool) for size in program.sizes]
        for rows, here, _ in self._parts(np.concatenate([np.zeros(0, dtype=np.int64), *found.unfed])):
            self.unfed[rows.signal][rows.index[here]] = True

    def _parts(self, chosen: Exponents) -> list[tuple[Rows, Exponents, int]]:
        """Groups of rows with those of their rows that are chosen, and the number of the group."""
        found = []
        for g, (rows, span) in enumerate(zip(self.program.rows, self.program.spans, strict=True)):
            here = chosen[(chosen >= span.start) & (chosen < span.stop)] - span.start
            if here.size:
                found.append((rows, here, g))
        return found

    def _settle(self, chosen: Exponents, wanted: Exponents, *, raised: bool) -> None:
        """Set unknowns so that t is at most (at least, where raised) as wanted; then t and the diagonal from them."""
        part = self.program.weights[chosen]
        counts = np.diff(part.indptr)
        sizes = np.frexp(part.data)[1]
        share = np.repeat(wanted - np.ceil(np.log2(counts)).astype(np.int64), counts) - sizes
        old = self.unknowns[part.indices]
        self.unknowns[part.indices[old == UNSET]] = -UNSET if raised else UNSET
        (np.maximum if raised else np.minimum).at(self.unknowns, part.indices, share)
        self.t[chosen] = np.maximum.reduceat(self.unknowns[part.indices] + sizes, part.indptr[:-1])
        for rows, here, g in self._parts(chosen):
            self.of[rows.signal][rows.index[here]] = self.t[self.program.spans[g].start + here]

    def lower(self, chosen: Exponents) -> None:
        """Useless entries: negligible beside what they read, or beside everything."""
        wanted = []
        for rows, here, g in self._parts(chosen):
            bound = np.full(here.size, UNSET)
            for j, m in rows.pre.items():
                entries = exponents(m[here])
                room = np.where(self.dead[j], MODEST, NEGLIGIBLE) + rows.size.bit_length() + 4
                usable = (entries != ABSENT) & ~self.unfed[j] & (self.of[j] != ABSENT)
                allowed = np.where(usable, (self.of[j] - room)[None, :] - 2 * entries, UNSET)
                bound = np.minimum(bound, allowed.min(axis=1, initial=UNSET))
            bound = np.where(bound == UNSET, self.least - NEGLIGIBLE - len(self.t).bit_length(), bound)
            wanted.append(bound - 2 * np.maximum(self.steep[g][here], 0))
        self._settle(chosen, np.concatenate(wanted), raised=False)

    def heighten(self, chosen: Exponents) -> None:
        """Entries that read nothing: above all that they feed."""
        wanted = []
        for rows, here, _ in self._parts(chosen):
            s, need = rows.signal, np.full(here.size, ABSENT)
            columns = rows.index[here]
            for g, (reader, span) in enumerate(zip(self.program.rows, self.program.spans, strict=True)):
                if s in reader.pre:
                    firm = np.full(reader.size, FIRM)
                    if reader.signal != NO_SIGNAL:
                        firm[self.unfed[reader.signal][reader.index]] = MODEST
                    level = self.t[span] + 2 * self.steep[g] + firm + reader.size.bit_length() + 4
                    need = np.maximum(need, (2 * exponents(reader.pre[s][:, columns]) + level[:, None]).max(axis=0))
            for (a, b), whole in self.program.constant.items():
                if s in (a, b):
                    block = whole.T if a == s else whole
                    other = self.of[b if a == s else a]
                    level = FIRM + block.shape[0].bit_length() + 4 - other
                    need = np.maximum(need, (2 * exponents(block[:, columns]) + level[:, None]).max(axis=0))
            wanted.append(np.where(need < ABSENT // 2, 0, need))
        self._settle(chosen, np.concatenate(wanted), raised=True)
