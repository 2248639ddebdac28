"""Closed-form feasible points of a program with activations between two ends.

One pass over the activations carries the covariance Y of the tensors that are still needed, from Y_0 = diag(kappa)^-1:
with G = H Y H' the one of an activation's input and S diagonal, 2 S - G > 0, every increment obeys
w w' << Y+ x'diag(kappa)x, and S gives the multipliers t = S^-1 (beta - alpha)^-2. Any S above a good one will do, so
tied multipliers are the least of what their neurons would have. What is left are the ends, where a largest eigenvalue
decides. The recursion is the one of `lipmodel.elimination`, with ties, and in units of its own at every signal, so that
no depth overflows (for slopes [0, 1] and scalar S: ECLipsE-Fast, Xu, Sivaranjani 2024, arXiv 2404.04375).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.linalg.blas import dtrsm

from lipmodel.backends.native.barrier import cholesky
from lipmodel.backends.native.chain import ABSENT, Array, Exponents, Mask, exponents, shift
from lipmodel.backends.native.program import Blocks, Program
from lipmodel.backends.native.start import RULES, Rule
from lipmodel.backends.native.structure import Structure
from lipmodel.backends.native.units import binary_exponents, no_units

PASSES = 12  # over a network whose activations share multipliers across layers
THIN = 1e-9  # what is missing or unused at an end has this share of the largest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Guess:
    """Units of the signals, log2 of the unknowns (nan for what is stated besides) and of the objective.

    The point is on the boundary: the weights of the far end (of the inputs, where the other end is constant) need a
    little more.
    """

    signals: list[Exponents]
    unknowns: Array
    level: float


def guesses(program: Program, structure: Structure) -> Iterator[Guess]:
    """The points of the rules, in order, as they are asked for."""
    for rule in RULES:
        with contextlib.suppress(np.linalg.LinAlgError):
            guess = _forward(program, structure, rule)
            if guess is not None:
                yield guess


def users(program: Program, groups: Iterable[int]) -> Mask:
    """Mask of the unknowns that occur in some groups of rows."""
    mask = np.zeros(program.unknowns, dtype=bool)
    for g in groups:
        mask[program.weights[program.spans[g]].indices] = True
    return mask


class _Shared:
    """log2 of unknowns that rows may share: every row asks for at most so much, and gets no more."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.spans = program.spans
        self.caps = np.full(program.unknowns, np.inf)
        self.values = np.full(program.unknowns, np.nan)
        self.settled = True

    def restart(self) -> None:
        """Begin another pass, knowing the least that any row has asked for."""
        self.values[:] = np.nan
        self.settled = True

    def reduced(self, group: int, wanted: Array) -> Array:
        """log2 of the weights of a group of rows, none of them above `wanted`, once its unknowns are set."""
        part = sp.csr_array(self.program.weights[self.spans[group]])
        rows = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        limit = self.caps.copy()
        np.minimum.at(limit, part.indices, wanted[rows] - np.log2(np.asarray(part.sum(axis=1)).ravel())[rows])
        used = np.unique(part.indices)
        if np.any(limit[used] < self.values[used] - 1e-12):
            self.settled = False  # an earlier layer has used more
            self.caps[used] = np.fmin(self.caps[used], limit[used])
        self.values[used] = np.fmin(self.values[used], limit[used])
        return _log_sums(np.log2(part.data) + self.values[part.indices], part.indptr)


def _log_sums(entries: Array, indptr: Exponents) -> Array:
    """log2 of the sum of 2^entries over every row of a CSR matrix without empty rows."""
    tops = np.maximum.reduceat(entries, indptr[:-1])
    spread = np.exp2(entries - np.repeat(tops, np.diff(indptr)))
    return np.asarray(tops + np.log2(np.add.reduceat(spread, indptr[:-1])))


def _forward(program: Program, structure: Structure, rule: Rule) -> Guess | None:
    """The pass with one rule for S, repeated while unknowns shared across layers have to give way."""
    shared = _Shared(program)
    for _ in range(PASSES):
        shared.restart()
        state = _State(program, structure, shared)
        if not all(state.advance(k, rule) for k in range(len(structure.activations))):
            return None
        guess = _at_the_ends(program, structure, shared, state)
        if guess is None or shared.settled:
            return guess
    return None


class _State:
    """The covariance of the signals that are still read, each entry in its own unit."""

    def __init__(self, program: Program, structure: Structure, shared: _Shared) -> None:
        self.program, self.structure, self.shared = program, structure, shared
        self.signals = no_units(program)
        wanted = _path_weights(program, structure)
        start = []
        for s, g in structure.inputs.items():
            kappa = shared.reduced(g, wanted[s] - 1) + 1  # the t of a ball is half of its weight
            self.signals[s] = -np.round(kappa / 2).astype(np.int64)
            start.append(np.exp2(-kappa - 2 * self.signals[s]))
        self.live = list(structure.inputs)
        self.cover = np.diag(np.concatenate(start))
        self.last = {s: k for k, g in enumerate(structure.activations) for s in program.rows[g].pre}
        self.last.update({s: len(structure.activations) for pair in program.constant for s in pair})

    def operand(self, blocks: Blocks, rows: int) -> tuple[Array, Exponents]:
        """Blocks side by side over the living signals in their units, every row divided by a unit of its own."""
        sizes = self.program.sizes
        joined = np.hstack([blocks[s] if s in blocks else np.zeros((rows, sizes[s])) for s in self.live])
        columns = np.concatenate([self.signals[s] for s in self.live])
        entries = exponents(joined)
        tops = np.max(np.where(entries == ABSENT, ABSENT, entries + columns[None, :]), axis=1, initial=ABSENT)
        units = np.where(tops == ABSENT, 0, tops)
        return shift(joined, columns[None, :] - units[:, None]), units

    def advance(self, k: int, rule: Rule) -> bool:
        """Append the k-th activation; False where a pivot fails."""
        g = self.structure.activations[k]
        rows = self.program.rows[g]
        operand, units = self.operand(rows.pre, rows.size)
        steep = binary_exponents(np.maximum(np.abs(rows.alpha), np.abs(rows.beta)))
        low = shift(np.minimum(rows.alpha, rows.beta), -steep)
        width = shift(np.maximum(rows.alpha, rows.beta), -steep) - low
        reach = operand @ self.cover
        gram = reach @ operand.T
        sums = np.abs(gram).sum(axis=1)
        gram[np.diag_indices_from(gram)] += np.where(sums > 0.0, 0.0, max(THIN * float(sums.max()), 1e-30))
        bounds = rule(gram)
        if not (np.all(np.isfinite(bounds)) and np.all(bounds > 0.0)):
            return False
        level = 2 * (units + steep)
        t = self.shared.reduced(g, -np.log2(bounds * width**2) - level) + level
        bounds = np.exp2(-t) / width**2
        pivot = cholesky(np.diag(2 * bounds) - gram)
        if pivot is None:
            return False
        # w = low v + width w~ with w~ of slopes [0, 1]; R K R' is added to the covariance of all that is live
        kept = [s for s in self.live if self.last.get(s, -1) > k]
        mask = np.concatenate([np.full(self.program.sizes[s], s in kept) for s in self.live])
        reach = reach[:, mask]
        spread = dtrsm(1.0, pivot, reach, lower=1)
        own = dtrsm(1.0, pivot, gram * low + np.diag(width * bounds), lower=1)
        mixed = low[:, None] * reach + own.T @ spread
        corner = own.T @ own + gram * low * low[:, None]
        self.cover = np.block([[self.cover[np.ix_(mask, mask)] + spread.T @ spread, mixed.T], [mixed, corner]])
        self.signals[rows.signal] = units + steep
        self.live = [*kept, rows.signal]
        return self._normalise()

    def _normalise(self) -> bool:
        """Units in which the diagonal of the covariance is of order one."""
        if not np.all(np.isfinite(self.cover)):
            return False
        units = binary_exponents(np.sqrt(np.maximum(self.cover.diagonal(), 0.0)))
        self.cover = shift(self.cover, -units[:, None] - units[None, :])
        at = 0
        for s in self.live:
            self.signals[s] = self.signals[s] + units[at : at + self.program.sizes[s]]
            at += self.program.sizes[s]
        return True


def _at_the_ends(program: Program, structure: Structure, shared: _Shared, state: _State) -> Guess | None:
    """The weights of the far end, and the scale of all that comes before."""
    far = structure.slack or structure.duals
    parts = []
    for d in far:
        blocks = {a if b == d else b: m.T if b == d else m for (a, b), m in program.constant.items() if d in (a, b)}
        parts.append(state.operand(blocks, program.sizes[d]))
    power = max(int(units.max()) for _, units in parts)
    coupling = np.vstack([shift(part, (units - power)[:, None]) for part, units in parts])
    if structure.slack:
        fixed = np.concatenate([2 * program.shift[shared.spans[g]] for g in far.values()])
        coupling = coupling / np.sqrt(fixed)[:, None]
    gram = coupling @ state.cover @ coupling.T
    if not np.all(np.isfinite(gram)) or not np.any(gram):
        return None
    inside = users(program, [*structure.inputs.values(), *structure.activations])
    signals = state.signals
    if structure.slack:
        raised = math.log2(float(np.linalg.eigvalsh(gram)[-1])) + 2 * power
        for d, g in far.items():
            signals[d] = -np.round(np.log2(2 * program.shift[shared.spans[g]]) / 2).astype(np.int64)
        values = np.where(inside, shared.values + raised, shared.values)
        moved = round(raised / 2)
    else:
        sums = np.log2(np.maximum(np.abs(gram).sum(axis=1), THIN * np.abs(gram).max()))
        shapes = np.split(sums, np.cumsum([program.sizes[d] for d in far])[:-1])
        sigma = [shared.reduced(g, shape - 1) + 1 for g, shape in zip(far.values(), shapes, strict=True)]
        root = np.exp2(-np.concatenate(sigma) / 2)
        raised = math.log2(float(np.linalg.eigvalsh(gram * root * root[:, None])[-1])) + 2 * power
        values = np.where(inside, shared.values, shared.values + raised)
        # (kappa, t, sigma) and (c kappa, c t, sigma / c) are equally feasible: the best c makes the prices equal
        near, beyond = _price(program, values, inside), _price(program, values, ~inside)
        balance = (beyond - near) / 2 if math.isfinite(near) and math.isfinite(beyond) else 0.0
        values = np.where(inside, values + balance, values - balance)
        for d, shape in zip(far, sigma, strict=True):
            signals[d] = -np.round((shape + raised - balance) / 2).astype(np.int64)
        moved = round(balance / 2)
    signals = [unit if s in far else unit - moved for s, unit in enumerate(signals)]
    return Guess(signals=signals, unknowns=values, level=_price(program, values, np.isfinite(values)))


def _price(program: Program, values: Array, mask: Mask) -> float:
    """log2 of the cost of some unknowns."""
    used = mask & (program.cost > 0.0) & np.isfinite(values)
    if not used.any():
        return -math.inf
    terms = np.log2(program.cost[used]) + values[used]
    return float(terms.max() + np.log2(np.exp2(terms - terms.max()).sum()))


def _path_weights(program: Program, structure: Structure) -> dict[int, Array]:
    """log2 of the sums over all paths from the inputs to the far end of moduli of weights and slopes; at most zero."""
    sums: dict[int, tuple[Array, int]] = {}

    def add(s: int, values: Array, power: int) -> None:
        old, level = sums.get(s, (np.zeros(program.sizes[s]), power))
        top = max(power, level)
        total = shift(old, level - top) + shift(values, power - top)
        unit = int(np.frexp(total.max(initial=0.0))[1])
        sums[s] = shift(total, -unit), top + unit

    for (a, b), block in program.constant.items():
        if b in structure.duals or b in structure.slack:
            add(a, np.abs(block).sum(axis=1), 0)
        else:
            add(b, np.abs(block).sum(axis=0), 0)
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
        found[s] = np.log2(np.maximum(values / (float(values.max()) or 1.0), THIN))
    return found
