"""Strictly feasible points of a program, and the units in which it is of order one.

One pass over the activations carries the covariance Y of the tensors that are still needed, from Y_0 = diag(kappa)^-1:
with G = H Y H' the one of an activation's input and S diagonal, 2 S - G > 0, every increment obeys w w' << Y+
(x'diag(kappa)x), and S gives the multipliers t = S^-1 (beta - alpha)^-2. Any S above a good one will do, so tied
multipliers are the smallest of what their neurons would have. What is left are the ends, where a largest eigenvalue
decides. Source: `lipmodel.elimination`, the same recursion without ties and units; as there, slopes and graph are
arbitrary. Programs without this structure get a point from a first phase on the barrier itself.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.linalg.blas import dtrsm

from lipmodel.backends.native.barrier import cholesky
from lipmodel.backends.native.blocks import BlockBarrier
from lipmodel.backends.native.chain import ABSENT, Array, Exponents, exponents, shift
from lipmodel.backends.native.follower import follow_path
from lipmodel.backends.native.program import NO_SIGNAL, Program, Rows, plain_rows
from lipmodel.backends.native.start import EXPENSIVE, MARGIN, RULES, Rule
from lipmodel.backends.native.structure import Structure, guarded, row_sums

PASSES = 12  # over a network whose activations share multipliers across layers
SMALL = tuple(10.0 ** (-k / 2) for k in range(28))  # weights of what is stated besides, relative to order one


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Units:
    """z_s = 2^signals[s] z_s' entry by entry, y = 2^unknowns y', cost'y = 2^power (scaled cost)'y'."""

    signals: tuple[Exponents, ...]
    unknowns: Exponents
    power: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Launch:
    """A program in scaled units, its barrier, and a strictly feasible point in the barrier's order of unknowns."""

    units: Units
    program: Program
    barrier: BlockBarrier
    y: Array


def scaled(program: Program, signals: Sequence[Exponents], unknowns: Exponents) -> tuple[Program, Units]:
    """The program in other units: a congruence by powers of two, and rows m of order one."""
    rows, level = [], []
    for group in program.rows:
        pre = {s: shift(m, signals[s][None, :]) for s, m in group.pre.items()}
        tops = [np.abs(m).max(axis=1, initial=0.0) for m in pre.values()]
        units = np.frexp(np.max(tops, axis=0))[1].astype(np.int64) if tops else np.zeros(group.size, dtype=np.int64)
        own = units if group.signal == NO_SIGNAL else signals[group.signal][group.index]
        rows.append(
            replace(
                group,
                alpha=shift(group.alpha, units - own),
                beta=shift(group.beta, units - own),
                pre={s: shift(m, -units[:, None]) for s, m in pre.items()},
            )
        )
        level.append(2 * own)
    moved = np.concatenate(level) if level else np.zeros(0, dtype=np.int64)
    weights = program.weights.copy()
    per_entry = np.repeat(moved, np.diff(weights.indptr))
    weights.data = shift(weights.data, per_entry + unknowns[weights.indices])
    priced = program.cost > 0.0
    power = int(np.max(exponents(program.cost[priced]) + unknowns[priced])) if priced.any() else 0
    constant = {
        (a, b): shift(block, signals[a][:, None] + signals[b][None, :]) for (a, b), block in program.constant.items()
    }
    changed = replace(
        program,
        rows=tuple(rows),
        weights=weights,
        shift=shift(program.shift, moved),
        constant=constant,
        cost=shift(program.cost, unknowns - power),
    )
    return changed, Units(signals=tuple(signals), unknowns=unknowns, power=power)


def launched(program: Program, structure: Structure | None, deadline: float) -> Launch | None:
    """The best closed form that is strictly feasible, else a point of the first phase; None where there is neither."""
    if structure is not None:
        guesses: list[_Guess] = []
        for rule in RULES:
            with contextlib.suppress(np.linalg.LinAlgError, FloatingPointError):
                found = _forward(program, structure, rule)
                guesses += [found] if found is not None else []
            work = sum(program.rows[g].size ** 3 for g in structure.activations)
            if guesses and (work > EXPENSIVE or time.monotonic() > deadline):
                break
        for guess in sorted(guesses, key=lambda guess: guess.level):
            start = _from_guess(program, structure, guess)
            if start is not None:
                return start
    return _first_phase(program, structure, deadline)


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Guess:
    signals: list[Exponents]
    unknowns: Array  # log2 of the unknowns; nan where nothing is known
    level: float  # log2 of the objective


def _from_guess(program: Program, structure: Structure, guess: _Guess) -> Launch | None:
    known = np.isfinite(guess.unknowns)
    free = np.zeros(program.unknowns, dtype=np.int64)
    if not known.all():
        unit, _ = scaled(program, guess.signals, free)
        free = -_tops(unit)
    powers = np.where(known, np.round(np.where(known, guess.unknowns, 0.0)).astype(np.int64), free)
    changed, units = scaled(program, guess.signals, powers)
    barrier = BlockBarrier(changed, guarded(program, structure))
    base = np.where(known, MARGIN * np.exp2(np.where(known, guess.unknowns - powers, 0.0)), 0.0)
    ends = structure.inputs if structure.slack else structure.duals
    raised = _users(program, ends.values())
    if structure.duals:
        base = np.where(raised, base, base / MARGIN)
    for excess in (1.02, 1.1, 2.0, 16.0):
        best: tuple[float, Array] | None = None
        for small in SMALL if not known.all() else (0.0,):
            y = np.where(raised, excess * base, np.where(known, base, small))[barrier.unknowns]
            factor = barrier.factorize(y)
            if factor is not None and (best is None or factor.logdet > best[0]):
                best = factor.logdet, y
        if best is not None:
            return Launch(units=units, program=changed, barrier=barrier, y=best[1])
    return None


def _users(program: Program, groups: object) -> Array:
    """Mask of the unknowns that occur in some groups of rows."""
    mask = np.zeros(program.unknowns, dtype=bool)
    for g in groups:  # type: ignore[attr-defined]
        mask[program.weights[program.spans[g]].indices] = True
    return mask


def _tops(program: Program) -> Exponents:
    """Binary exponent of the largest coefficient of every unknown in the matrix."""
    sizes = np.ones(len(program.shift))
    for rows, span in zip(program.rows, program.spans, strict=True):
        own = np.ones(rows.size) if rows.signal != NO_SIGNAL else np.zeros(rows.size)
        top = np.max([np.abs(m).max(axis=1) for m in rows.pre.values()], axis=0) if rows.pre else own
        sizes[span] = np.max(
            [own, np.abs(rows.alpha + rows.beta) * top, np.abs(rows.alpha * rows.beta) * top**2], axis=0
        )
    entries = abs(sp.csr_array(sp.diags_array(2 * sizes) @ program.weights))
    return np.asarray(np.frexp(entries.max(axis=0).toarray().ravel())[1], dtype=np.int64)


class _Shared:
    """log2 of multipliers that may be shared: every row asks for at most its own, a variable gives all of them less."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.spans = program.spans
        self.caps = np.full(program.unknowns, np.inf)
        self.values = np.full(program.unknowns, np.nan)
        self.settled = True

    def restart(self) -> None:
        self.values[:] = np.nan
        self.settled = True

    def reduced(self, group: int, wanted: Array) -> Array:
        """log2 of the weights of a group of rows, none of them above `wanted`, once its variables are set."""
        part = sp.csr_array(self.program.weights[self.spans[group]])
        rows = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        limit = self.caps.copy()
        np.minimum.at(limit, part.indices, wanted[rows] - np.log2(row_sums(part))[rows])
        used = np.unique(part.indices)
        known = np.isfinite(self.values[used])
        if np.any(known & (limit[used] < self.values[used] - 1e-12)):
            self.settled = False
            self.caps[used] = np.fmin(self.caps[used], limit[used])
        self.values[used] = np.fmin(self.values[used], limit[used])
        entries = np.log2(part.data) + self.values[part.indices]
        return _log_sums(entries, part.indptr)


def _log_sums(entries: Array, indptr: Array) -> Array:
    """log2 of the sum of 2^entries over every row of a CSR matrix without empty rows."""
    tops = np.maximum.reduceat(entries, indptr[:-1])
    spread = np.exp2(entries - np.repeat(tops, np.diff(indptr)))
    return np.asarray(tops + np.log2(np.add.reduceat(spread, indptr[:-1])))


def _forward(program: Program, structure: Structure, rule: Rule) -> _Guess | None:
    """The pass with one rule for S, repeated while multipliers that are shared across layers have to give way."""
    shared = _Shared(program)
    for _ in range(PASSES):
        shared.restart()
        found = _pass(program, structure, rule, shared)
        if found is None or shared.settled:
            return found
    return None


def _pass(program: Program, structure: Structure, rule: Rule, shared: _Shared) -> _Guess | None:
    signals: list[Exponents] = [np.zeros(size, dtype=np.int64) for size in program.sizes]
    inputs = list(structure.inputs)
    wanted = _path_weights(program, structure)
    start = []
    for s, g in structure.inputs.items():
        kappa = shared.reduced(g, wanted[s] - 1) + 1  # t of a ball is half of its weight
        signals[s] = -np.round(kappa / 2).astype(np.int64)
        start.append(np.exp2(-kappa - 2 * signals[s]))
    cover = np.diag(np.concatenate(start)) if start else np.zeros((0, 0))
    live = inputs
    last = {s: k for k, g in enumerate(structure.activations) for s in program.rows[g].pre}
    ends = {s for pair in program.constant for s in pair}
    for k, g in enumerate(structure.activations):
        rows = program.rows[g]
        joined = np.concatenate([signals[s] for s in live])
        operand = np.hstack([rows.pre[s] if s in rows.pre else np.zeros((rows.size, program.sizes[s])) for s in live])
        units = _row_units(operand, joined)
        operand = shift(operand, joined[None, :] - units[:, None])
        reach = operand @ cover
        gram = reach @ operand.T
        steep = np.frexp(np.maximum(np.abs(rows.alpha), np.abs(rows.beta)))[1].astype(np.int64)
        low, high = shift(np.minimum(rows.alpha, rows.beta), -steep), shift(np.maximum(rows.alpha, rows.beta), -steep)
        width = high - low
        floor = np.abs(gram).sum(axis=1)
        gram[np.diag_indices_from(gram)] += np.where(floor > 0.0, 0.0, max(1e-9 * float(floor.max(initial=0.0)), 1e-30))
        bounds = rule(gram)
        if not (np.all(np.isfinite(bounds)) and np.all(bounds > 0.0)):
            return None
        t = shared.reduced(g, -np.log2(bounds * width**2) - 2 * (units + steep)) + 2 * (units + steep)
        bounds = np.exp2(-t) / width**2
        pivot = cholesky(np.diag(2 * bounds) - gram)
        if pivot is None:
            return None
        half = dtrsm(1.0, pivot, np.hstack([reach, np.diag(bounds)]), lower=1)
        count = len(cover)
        full = half.T @ half
        full[:count, :count] += cover
        mixed = low[:, None] * (operand @ full[:count]) + width[:, None] * full[count:]
        corner = (mixed[:, :count] @ operand.T) * low + mixed[:, count:] * width
        cover = np.block([[full[:count, :count], mixed[:, :count].T], [mixed[:, :count], (corner + corner.T) / 2]])
        signals[rows.signal] = units + steep
        live = [*live, rows.signal]
        kept = [s for s in live if s in ends or last.get(s, -1) > k]
        if kept != live:
            mask = np.concatenate([np.full(program.sizes[s], s in kept) for s in live])
            cover, live = cover[np.ix_(mask, mask)], kept
        if not np.all(np.isfinite(cover)):
            return None
        cover = _normalised(program, signals, live, cover)
    return _at_the_ends(program, structure, shared, signals, live, cover)


def _row_units(operand: Array, columns: Exponents) -> Exponents:
    """Binary exponent of the largest entry of every row of operand 2^columns; zero for rows of zeros."""
    entries = exponents(operand)
    tops = np.max(np.where(entries == ABSENT, ABSENT, entries + columns[None, :]), axis=1, initial=ABSENT)
    return np.asarray(np.where(tops == ABSENT, 0, tops))


def _normalised(program: Program, signals: list[Exponents], live: list[int], cover: Array) -> Array:
    """The covariance in units in which its diagonal is of order one; `signals` follow."""
    units = np.frexp(np.sqrt(np.maximum(cover.diagonal(), 0.0)))[1].astype(np.int64)
    at = 0
    for s in live:
        signals[s] = signals[s] + units[at : at + program.sizes[s]]
        at += program.sizes[s]
    return shift(cover, -units[:, None] - units[None, :])


def _at_the_ends(
    program: Program, structure: Structure, shared: _Shared, signals: list[Exponents], live: list[int], cover: Array
) -> _Guess | None:
    """The weights of the other end, and the scale of all that comes before."""
    far = structure.slack or structure.duals
    joined = np.concatenate([signals[s] for s in live]) if live else np.zeros(0, dtype=np.int64)
    parts = []
    for d in far:
        blocks = [
            program.constant.get((s, d), program.constant[d, s].T if (d, s) in program.constant else None) for s in live
        ]
        parts.append(
            np.vstack(
                [
                    np.zeros((program.sizes[s], program.sizes[d])) if b is None else b
                    for s, b in zip(live, blocks, strict=True)
                ]
            ).T
        )
    coupling = np.vstack(parts)
    fixed = np.concatenate([2 * program.shift[shared.spans[g]] for g in far.values()])
    if structure.slack:
        coupling = coupling / np.sqrt(fixed)[:, None]
    power = int(_row_units(coupling, joined).max())
    coupling = shift(coupling, joined[None, :] - power)
    gram = coupling @ cover @ coupling.T
    if not np.all(np.isfinite(gram)) or not np.any(gram):
        return None
    values = shared.values
    inside = _users(program, [*structure.inputs.values(), *structure.activations])
    if structure.slack:
        values = np.where(inside, values + math.log2(float(np.linalg.eigvalsh(gram)[-1])) + 2 * power, values)
    else:
        sums = np.log2(np.maximum(np.abs(gram).sum(axis=1), 1e-9 * np.abs(gram).max()))
        at, sigma = 0, []
        for d, g in structure.duals.items():
            sigma.append(shared.reduced(g, sums[at : at + program.sizes[d]] - 1) + 1)
            at += program.sizes[d]
        root = np.exp2(-np.concatenate(sigma) / 2)
        raise_by = math.log2(float(np.linalg.eigvalsh(gram * root * root[:, None])[-1])) + 2 * power
        values = np.where(inside, shared.values, shared.values + raise_by)
        near, beyond = _price(program, values, inside), _price(program, values, ~inside)
        balance = (beyond - near) / 2 if math.isfinite(near) and math.isfinite(beyond) else 0.0
        values = np.where(inside, values + balance, values - balance)
        at = 0
        for d in structure.duals:
            weight = sigma.pop(0) + raise_by - balance
            signals[d] = -np.round(weight / 2).astype(np.int64)
        for s in range(len(signals)):
            if s not in structure.duals:
                signals[s] = signals[s] - round(balance / 2)
    if structure.slack:
        moved = round(math.log2(float(np.linalg.eigvalsh(gram)[-1])) / 2) + power
        signals = [unit if s in structure.slack else unit - moved for s, unit in enumerate(signals)]
        for d, g in structure.slack.items():
            signals[d] = -np.round(np.log2(2 * program.shift[shared.spans[g]]) / 2).astype(np.int64)
    known = np.where(np.isfinite(values), values, np.nan)
    return _Guess(signals=signals, unknowns=known, level=_price(program, known, np.isfinite(known)))


def _price(program: Program, values: Array, mask: Array) -> float:
    """log2 of the cost of some unknowns."""
    used = mask & (program.cost > 0.0) & np.isfinite(values)
    if not used.any():
        return -math.inf
    terms = np.log2(program.cost[used]) + values[used]
    return float(terms.max() + np.log2(np.exp2(terms - terms.max()).sum()))


def _path_weights(program: Program, structure: Structure) -> dict[int, Array]:
    """log2 of the sums over all paths from the inputs to the ends of moduli of weights and slopes, at most zero."""
    sums: dict[int, tuple[Array, int]] = {}

    def add(s: int, values: Array, power: int) -> None:
        old, level = sums.get(s, (np.zeros(program.sizes[s]), power))
        top = max(power, level)
        total = shift(old, level - top) + shift(values, power - top)
        unit = int(np.frexp(total.max(initial=0.0))[1])
        sums[s] = shift(total, -unit), top + unit

    for (a, b), block in program.constant.items():
        end = b if b in structure.duals or b in structure.slack else a
        add(a if end == b else b, np.abs(block).sum(axis=1 if end == b else 0), 0)
    for g in reversed(structure.activations):
        rows = program.rows[g]
        if rows.signal in sums:
            values, power = sums[rows.signal]
            above = values * np.maximum(np.abs(rows.alpha), np.abs(rows.beta))
            for s, m in rows.pre.items():
                add(s, above @ np.abs(m), power)
    found = {}
    for s in structure.inputs:
        values = sums[s][0] if s in sums else np.ones(program.sizes[s])
        top = float(values.max(initial=0.0)) or 1.0
        found[s] = np.log2(np.maximum(values / top, 1e-9))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# First phase


def _first_phase(program: Program, structure: Structure | None, deadline: float) -> Launch | None:
    """A strictly feasible point of any program: min s subject to S(y) + s diag(d) > 0, until s < 0."""
    zero = [np.zeros(size, dtype=np.int64) for size in program.sizes]
    powers = -_tops(scaled(program, zero, np.zeros(program.unknowns, dtype=np.int64))[0])
    changed, _ = scaled(program, zero, powers)
    relaxed = _relaxed(changed)
    barrier = BlockBarrier(relaxed, relaxed.nonnegative)
    start = np.ones(relaxed.unknowns)
    start[-1] = 4.0
    found = follow_path(
        barrier,
        start[barrier.unknowns],
        tol=1e-9,
        deadline=deadline,
        max_iterations=100,
        report=lambda iteration, value, lower, gap: lower <= 0.0,
        target=0.0,
        lower=-math.inf,
        fade=True,
    )
    point = np.empty(relaxed.unknowns)
    point[barrier.unknowns] = found.y
    if not point[-1] < 0.0:
        return None
    return _at_point(program, structure, point[:-2] / point[-2], powers)


def _relaxed(program: Program) -> Program:
    """min s subject to tau C + sum_j y_j A_j + s diag(d) > 0 with bounded y and tau > 0: a compact program.

    Its unknowns are (y, tau, s); y = 1, tau = 1, s = 4 is strictly feasible, and where s < 0 so is y / tau in the program.
    """
    count = program.unknowns
    masses = _row_masses(program, np.ones(count))
    rows, shifts, weights = list(program.rows), [], []
    columns = sp.csr_array(
        (np.concatenate([program.shift]), (np.arange(len(program.shift)), np.zeros(len(program.shift), dtype=int))),
        shape=(len(program.shift), 1),
    )
    weights.append(sp.hstack([program.weights, columns, sp.csr_array(columns.shape)], format="csr"))
    shifts.append(np.zeros(len(program.shift)))

    def add(group: Rows, unknown: int, factor: Array) -> None:
        entries = (factor, (np.arange(group.size), np.full(group.size, unknown)))
        rows.append(group)
        weights.append(sp.csr_array(entries, shape=(group.size, count + 2)))
        shifts.append(np.zeros(group.size))

    for (a, b), block in program.constant.items():
        size = program.sizes[a]
        ball = plain_rows(a, size)
        # e m' + m e' = u r' + r u' - 2 e e' with u = e + m, r = e
        add(replace(ball, alpha=-np.ones(size), pre={b: block / 2 if a == b else block}), count, np.ones(size))
        add(ball, count, -np.ones(size))
    for s, mass in enumerate(masses):
        add(plain_rows(s, program.sizes[s]), count + 1, mass / 2)
    free = np.flatnonzero(~program.nonnegative)
    walls = len(program.sizes)
    total = np.append(program.nonnegative.astype(float), [1.0, 0.0])
    bounds = sp.lil_array((1 + 2 * len(free), count + 2))
    bounds[0] = -total / (4.0 * total.sum())
    for i, unknown in enumerate(free):
        bounds[1 + 2 * i, unknown], bounds[2 + 2 * i, unknown] = 0.25, -0.25
    rows.append(plain_rows(walls, bounds.shape[0]))
    weights.append(sp.csr_array(bounds))
    shifts.append(np.full(bounds.shape[0], 0.5))
    return replace(
        program,
        sizes=(*program.sizes, bounds.shape[0]),
        rows=tuple(rows),
        weights=sp.csr_array(sp.vstack(weights, format="csr")),
        shift=np.concatenate(shifts),
        constant={},
        cost=np.append(np.zeros(count + 1), 1.0),
        nonnegative=np.append(program.nonnegative, [True, False]),
        root=False,
    )


def _row_masses(program: Program, y: Array) -> list[Array]:
    """Per signal the row sums of the moduli of the matrix at |y|, an upper bound; positive."""
    sums = [np.zeros(size) for size in program.sizes]
    for (a, b), block in program.constant.items():
        sums[a] += np.abs(block).sum(axis=1)
        if a != b:
            sums[b] += np.abs(block).sum(axis=0)
    t = abs(program.weights) @ np.abs(y) + np.abs(program.shift)
    for rows, span in zip(program.rows, program.spans, strict=True):
        weight, cross, curve = (
            t[span],
            np.abs(rows.alpha + rows.beta) * t[span],
            2 * np.abs(rows.alpha * rows.beta) * t[span],
        )
        total = sum((np.abs(m).sum(axis=1) for m in rows.pre.values()), np.zeros(rows.size))
        if rows.signal != NO_SIGNAL:
            np.add.at(sums[rows.signal], rows.index, 2 * weight + cross * total)
        else:
            cross = np.zeros(rows.size)
        for s, m in rows.pre.items():
            sums[s] += (cross + curve * total) @ np.abs(m)
    return [np.where(part > 0.0, part, 1.0) for part in sums]


def _at_point(program: Program, structure: Structure | None, y: Array, powers: Exponents) -> Launch | None:
    """The launch from a point y (in units 2^powers), in units in which it is of order one."""
    own = np.frexp(np.abs(y))[1].astype(np.int64)
    signals = [-(np.frexp(part)[1].astype(np.int64) // 2) for part in _row_masses(scaled_only(program, powers), y)]
    changed, units = scaled(program, signals, powers + own)
    barrier = BlockBarrier(changed, guarded(program, structure))
    start = np.ldexp(y, -own)[barrier.unknowns]
    return (
        Launch(units=units, program=changed, barrier=barrier, y=start) if barrier.factorize(start) is not None else None
    )


def scaled_only(program: Program, powers: Exponents) -> Program:
    """The program with its unknowns in units 2^powers and its signals as they are."""
    return scaled(program, [np.zeros(size, dtype=np.int64) for size in program.sizes], powers)[0]
