"""A program in other units: powers of two, which round nothing, with exponents apart, which do not overflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.native.chain import Array, Exponents, exponents, shift
from lipmodel.backends.native.program import NO_SIGNAL, Program


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Units:
    """y = 2^unknowns y' for the scaled y', and cost'y = 2^power (scaled cost)'y'."""

    unknowns: Exponents
    power: int


def binary_exponents(values: Array) -> Exponents:
    """e with |values| in [2^(e-1), 2^e); zero where the value is zero."""
    return np.asarray(np.frexp(values)[1], dtype=np.int64)


def no_units(program: Program) -> list[Exponents]:
    """Exponents of zero for all signals."""
    return [np.zeros(size, dtype=np.int64) for size in program.sizes]


def scaled(program: Program, signals: Sequence[Exponents], unknowns: Exponents) -> tuple[Program, Units]:
    """The program in z = 2^signals z', y = 2^unknowns y': a congruence, with rows m of order one."""
    rows, level = [], []
    for group in program.rows:
        pre = {s: shift(m, signals[s][None, :]) for s, m in group.pre.items()}
        tops = [np.abs(m).max(axis=1, initial=0.0) for m in pre.values()]
        units = binary_exponents(np.max(tops, axis=0)) if tops else np.zeros(group.size, dtype=np.int64)
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
    weights.data = shift(weights.data, np.repeat(moved, np.diff(weights.indptr)) + unknowns[weights.indices])
    priced = program.cost > 0.0
    power = int(np.max(exponents(program.cost[priced]) + unknowns[priced])) if priced.any() else 0
    changed = replace(
        program,
        rows=tuple(rows),
        weights=weights,
        shift=shift(program.shift, moved),
        constant={
            (a, b): shift(block, signals[a][:, None] + signals[b][None, :])
            for (a, b), block in program.constant.items()
        },
        cost=shift(program.cost, unknowns - power),
    )
    return changed, Units(unknowns=unknowns, power=power)


def coefficient_exponents(program: Program) -> Exponents:
    """Binary exponent of the largest coefficient of every unknown in the matrix."""
    sizes = np.ones(len(program.shift))
    for rows, span in zip(program.rows, program.spans, strict=True):
        own = np.full(rows.size, 0.0 if rows.signal == NO_SIGNAL else 1.0)
        top = np.max([np.abs(m).max(axis=1) for m in rows.pre.values()], axis=0) if rows.pre else np.zeros(rows.size)
        cross, square = np.abs(rows.alpha + rows.beta) * top, np.abs(rows.alpha * rows.beta) * top**2
        sizes[span] = np.max([own, cross, square], axis=0)
    if not len(sizes):
        return np.zeros(program.unknowns, dtype=np.int64)
    entries = abs(sp.csr_array(sp.diags_array(2 * sizes) @ program.weights))
    return binary_exponents(entries.max(axis=0).toarray().ravel())


def row_masses(program: Program, y: Array) -> list[Array]:
    """Per signal the row sums of moduli of the matrix at |y|, an upper bound; one where that is zero."""
    sums = [np.zeros(size) for size in program.sizes]
    for (a, b), block in program.constant.items():
        sums[a] += np.abs(block).sum(axis=1)
        if a != b:
            sums[b] += np.abs(block).sum(axis=0)
    t = abs(program.weights) @ np.abs(y) + np.abs(program.shift)
    for rows, span in zip(program.rows, program.spans, strict=True):
        weight = t[span]
        cross, curve = np.abs(rows.alpha + rows.beta) * weight, 2 * np.abs(rows.alpha * rows.beta) * weight
        total = sum((np.abs(m).sum(axis=1) for m in rows.pre.values()), np.zeros(rows.size))
        if rows.signal == NO_SIGNAL:
            cross = np.zeros(rows.size)
        else:
            np.add.at(sums[rows.signal], rows.index, 2 * weight + cross * total)
        for s, m in rows.pre.items():
            sums[s] += (cross + curve * total) @ np.abs(m)
    return [np.where(part > 0.0, part, 1.0) for part in sums]
