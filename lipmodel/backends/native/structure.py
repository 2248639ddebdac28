"""What a program is made of: the ends, the activations between them in order, and what was stated besides.

An end is a signal with a ball of its own: inputs are read by activations or by the output, dual signals and constant
slack couple with what the output reads. Between them every signal is the output of one activation. Of such a program
strictly feasible points are known, useless neurons can be dropped, and most signs follow from the inequality itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipmodel.backends.native.chain import Mask
from lipmodel.backends.native.program import NO_SIGNAL, Program, Rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Structure:
    """Numbers of groups of rows and of signals.

    inputs, duals, slack: {signal: group of its ball}. activations: groups in topological order. extra: groups stated
    besides, whose weights may be small.
    """

    inputs: dict[int, int]
    duals: dict[int, int]
    slack: dict[int, int]
    activations: tuple[int, ...]
    extra: tuple[int, ...]


def structure_of(program: Program) -> Structure | None:
    """The structure of a program, or None where it has none."""
    varying, spans = program.varying, program.spans
    balls: dict[int, int] = {}
    owners: dict[int, int] = {}
    extra: list[int] = []
    for g, (rows, varies, span) in enumerate(zip(program.rows, varying, spans, strict=True)):
        ball = rows.signal != NO_SIGNAL and not rows.pre and rows.covers(program.sizes[rows.signal])
        if ball and rows.signal not in balls:
            balls[rows.signal] = g
        elif not varies:
            return None
        elif _is_activation(program, rows) and rows.signal not in owners:
            owners[rows.signal] = g
        else:
            extra.append(g)
        if varies and np.any(program.shift[span]):
            return None
    for s in sorted(set(balls) & set(owners)):
        g = balls.pop(s)
        if not varying[g]:
            return None
        extra.append(g)
    if set(balls) | set(owners) != set(range(len(program.sizes))):
        return None
    activations = _topological(program, owners)
    if activations is None:
        return None
    slack = {s: g for s, g in balls.items() if not varying[g]}
    read = {s for g in activations for s in program.rows[g].pre}
    inputs = {s: g for s, g in balls.items() if s in read}
    ends = [s for s in balls if s not in read and s not in slack]
    if not inputs and ends:
        inputs[ends[0]] = balls[ends[0]]  # without activations the two ends are alike
    duals = {s: balls[s] for s in ends if s not in inputs}
    far = set(duals) | set(slack)
    if any((a in far) == (b in far) for a, b in program.constant) or read & far or bool(duals) == bool(slack):
        return None
    found = Structure(inputs=inputs, duals=duals, slack=slack, activations=activations, extra=tuple(sorted(extra)))
    return found if _has_plain_weights(program, found) else None


def _is_activation(program: Program, rows: Rows) -> bool:
    if not rows.pre or rows.signal in rows.pre or rows.signal == NO_SIGNAL:
        return False
    return rows.covers(program.sizes[rows.signal]) and not np.any(rows.alpha == rows.beta)


def _topological(program: Program, owners: dict[int, int]) -> tuple[int, ...] | None:
    """Activations after those that they read; None where they go round in circles."""
    order: list[int] = []
    done: set[int] = set()
    pending = sorted(owners)
    while pending:
        ready = [s for s in pending if all(j in done or j not in owners for j in program.rows[owners[s]].pre)]
        if not ready:
            return None
        order += [owners[s] for s in ready]
        done.update(ready)
        pending = [s for s in pending if s not in done]
    return tuple(order)


def _has_plain_weights(program: Program, structure: Structure) -> bool:
    """Nonnegative weights, none of them zero, and no unknown in two of: inputs, duals, activations, what is besides."""
    spans = program.spans
    kinds = (structure.inputs.values(), structure.duals.values(), structure.activations, structure.extra)
    users: list[set[int]] = []
    for groups in kinds:
        picked = [program.weights[spans[g]] for g in groups]
        users.append({int(i) for part in picked for i in part.indices})
        if groups is structure.extra:
            continue
        for part in picked:
            if np.any(part.data < 0.0) or np.any(np.diff(part.indptr) == 0):
                return False
    return sum(len(u) for u in users) == len(set().union(*users))


def guarded(program: Program, structure: Structure | None) -> Mask:
    """The nonnegative unknowns whose sign does not follow from S(y) > 0.

    Without other terms S > 0 gives t > 0 for every activation and every ball (let the other ends be zero, and all
    activations run along one of their slopes), so that y_i > 0 follows where some row has no other unknown.
    """
    if structure is None or structure.extra:
        return np.asarray(program.nonnegative)
    alone = np.diff(program.weights.indptr) == 1
    starts = program.weights.indptr[:-1][alone]
    implied = np.zeros(program.unknowns, dtype=bool)
    implied[program.weights.indices[starts]] = True
    return np.asarray(program.nonnegative & ~implied)
