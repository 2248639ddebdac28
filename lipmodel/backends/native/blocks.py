"""-logdet S(y) by block-sparse elimination over signals: Cholesky, gradient, exact Hessian, for any `Program`.

With P = S^-1 the gradient of logdet S in t_j is 2 u_j'P r_j, and the Hessian of -logdet S is
2 [(U'PU) o (R'PR) + (U'PR) o (R'PU)]; both are then contracted with K (t = K y + k). The gradient needs P on the fronts
of the elimination only (Takahashi, Fagan & Chen 1973), the Hessian all of it, row by row from the fronts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.linalg.blas import dtrmm, dtrsm
from scipy.linalg.lapack import dtrtri

from lipmodel.backends.native.barrier import cholesky, hadamard
from lipmodel.backends.native.chain import SPARSE_DENSITY, Array
from lipmodel.backends.native.ordering import Graph, fronts, minimum_fill
from lipmodel.backends.native.program import NO_SIGNAL, Program, Rows, without_signals

Index = slice | Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One front: the positions it eliminates and the runs of later positions that it reaches."""

    own: slice
    runs: tuple[slice, ...]
    parts: tuple[slice, ...]  # where the runs stand in the later part of the front
    diagonal: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Rows with their place in t and in the matrix; e at positions `own`, m over slices of positions."""

    span: slice
    own: Index | None
    alpha: Array
    beta: Array
    slope_sum: Array
    slope_product: Array
    pre: tuple[tuple[slice, Array, Any], ...]  # positions, the block, and the block once more, compressed, or None
    curved: bool
    varies: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factor:
    """The block Cholesky factor of S(y): pivots (roots where diagonal) and, per front, L^-1 times the later columns."""

    y: Array
    pivots: list[Array]
    spreads: list[Array]
    logdet: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Band:
    """The gradient of logdet S, and what the whole inverse is made of: P[k, later] = transfers[k] P[later, later]."""

    gradient: Array
    transfers: list[Array]
    own: list[Array]  # P[k, k], where the pivot is diagonal without diag(1 / pivot)


class BlockBarrier:
    """-logdet of a program's matrix, minus the logarithms of unknowns whose sign it does not imply.

    Unknowns are those of the program in the order `unknowns`. Not reentrant: it owns its workspaces.
    """

    def __init__(self, program: Program, guarded: Array) -> None:
        """guarded: mask of the program's unknowns that get a logarithm of their own."""
        program = _folded(program)
        graph = graph_of(program)
        found = fronts(graph)
        starts, end = {}, 0
        for front in found:
            for s in front.signals:
                starts[s] = end
                end += program.sizes[s]
        self.size = end
        self.steps = [_step(program, starts, front) for front in found]
        groups = [
            _group(program, starts, *item) for item in zip(program.rows, program.spans, program.varying, strict=True)
        ]
        self.groups = groups
        self.constants = [_placed(program, starts, pair, block) for pair, block in program.constant.items()]
        self.bent = sorted((g for g in groups if g.varies and g.pre), key=_place)
        self.plain = sorted((g for g in groups if g.varies and not g.pre), key=_place)
        spans = [g.span for g in (*self.bent, *self.plain)]
        rows = np.concatenate([np.arange(s.start, s.stop) for s in spans]) if spans else np.zeros(0, dtype=np.int64)
        self.unknowns, self.single = _arranged(program.weights[rows])
        self.contraction = sp.csr_array(program.weights[rows][:, self.unknowns])
        self.weights = sp.csr_array(program.weights[:, self.unknowns])
        self.back = sp.csr_array(self.weights.T)
        self.shift = program.shift
        self.guarded = np.flatnonzero(guarded[self.unknowns])
        self.cost = program.cost[self.unknowns]
        self.order = program.order + len(self.guarded)
        self.root = program.root
        self.pad = 1 if any(g.own is None for g in self.bent) else 0
        self._matrix = np.zeros((self.size, self.size))
        self._inverse = np.zeros((self.size, self.size))

    def factorize(self, y: Array) -> Factor | None:
        """The factor of S(y), or None unless S(y) > 0 (numerically) and the guarded unknowns are positive."""
        if not np.all(np.isfinite(y)) or np.any(y[self.guarded] <= 0):
            return None
        matrix, diagonal = self._assembled(self.weights @ y + self.shift)
        pivots, spreads = [], []
        logdet = float(np.log(y[self.guarded]).sum())
        for step in self.steps:
            if step.diagonal:
                values = diagonal[step.own]
                if not np.all(values > 0):
                    return None
                pivot = np.sqrt(values)
                spread = _later(matrix, step) / pivot[:, None]
                logdet += float(np.log(values).sum())
            else:
                factor = cholesky(matrix[step.own, step.own])
                if factor is None:
                    return None
                pivot = factor
                spread = dtrsm(1.0, pivot, _later(matrix, step), lower=1) if step.runs else np.zeros((0, 0))
                logdet += 2 * float(np.log(pivot.diagonal()).sum())
            pivots.append(pivot)
            spreads.append(spread)
            if step.runs:
                update = spread.T @ spread
                for i, (run, part) in enumerate(zip(step.runs, step.parts, strict=True)):
                    for other, piece in zip(step.runs[i:], step.parts[i:], strict=True):
                        matrix[run, other] -= update[part, piece]
        return Factor(y=y, pivots=pivots, spreads=spreads, logdet=logdet) if np.isfinite(logdet) else None

    def _assembled(self, t: Array) -> tuple[Array, Array]:
        """S, its upper triangle in the order of elimination; diagonal entries of diagonal pivots stand apart."""
        matrix, diagonal = self._matrix, np.zeros(self.size)
        for step in self.steps:
            if not step.diagonal:
                matrix[step.own, step.own] = 0.0
            for run in step.runs:
                matrix[step.own, run] = 0.0
        for rows, columns, block in self.constants:
            matrix[rows, columns] += block
        for group in self.groups:
            own, weight = group.own, t[group.span]
            scale = -group.slope_sum * weight
            if own is not None:
                diagonal[own] += 2 * weight
                for columns, block, _ in group.pre:
                    _add_cross(matrix, own, columns, block * scale[:, None])
            if group.curved:
                curve = 2 * group.slope_product * weight
                for rows, left, _ in group.pre:
                    scaled = left.T * curve
                    for columns, right, _ in group.pre:
                        if rows.start <= columns.start:
                            matrix[rows, columns] += scaled @ right
        for step in self.steps:
            if not step.diagonal:
                np.einsum("ii->i", matrix[step.own, step.own])[...] += diagonal[step.own]
        return matrix, diagonal

    def complete(self, factor: Factor) -> Band:
        """P on the fronts, and the gradient of logdet S."""
        inverse, diagonal = self._inverse, np.empty(self.size)
        transfers: list[Array] = [np.empty(0)] * len(self.steps)
        owns: list[Array] = [np.empty(0)] * len(self.steps)
        for k in range(len(self.steps) - 1, -1, -1):
            step, pivot, spread = self.steps[k], factor.pivots[k], factor.spreads[k]
            if step.diagonal:
                diagonal[step.own] = 1 / pivot**2
                if not step.runs:
                    continue
                transfer = spread / -pivot[:, None]
            else:
                root = dtrtri(pivot, lower=1)[0]
                own = root.T @ root
                transfer = dtrmm(-1.0, root, spread, lower=1, trans_a=1) if step.runs else spread
            if step.runs:
                cross = transfer @ _gathered(inverse, step.runs)
                for run, part in zip(step.runs, step.parts, strict=True):
                    inverse[step.own, run] = cross[:, part]
                    inverse[run, step.own] = cross[:, part].T
            if step.diagonal:
                diagonal[step.own] += np.einsum("ij,ij->i", cross, transfer)
                owns[k] = cross
            else:
                if step.runs:
                    own += cross @ transfer.T
                inverse[step.own, step.own] = owns[k] = own
                diagonal[step.own] = own.diagonal()
            transfers[k] = transfer
        gradient = np.zeros(len(self.shift))
        for group in self.groups:
            if group.varies:
                gradient[group.span] = _entries(group, inverse, diagonal)
        result = self.back @ gradient
        result[self.guarded] += 1 / factor.y[self.guarded]
        return Band(gradient=result, transfers=transfers, own=owns)

    def _whole_inverse(self, factor: Factor, band: Band) -> Array:
        """All of P, with a row and a column of zeros behind it where some rows have no e."""
        size = self.size
        inverse = np.zeros((size + self.pad,) * 2) if self.pad else np.empty((size, size))
        for k in range(len(self.steps) - 1, -1, -1):
            step, transfer, own = self.steps[k], band.transfers[k], band.own[k]
            after = slice(step.own.stop, size)
            if step.runs:
                rows = inverse[step.own, after]
                np.matmul(transfer[:, step.parts[0]], inverse[step.runs[0], after], out=rows)
                for run, part in zip(step.runs[1:], step.parts[1:], strict=True):
                    rows += transfer[:, part] @ inverse[run, after]
            else:
                inverse[step.own, after] = 0.0
            inverse[after, step.own] = inverse[step.own, after].T
            block = inverse[step.own, step.own]
            if not step.diagonal:
                block[...] = own
            else:
                block[...] = own @ transfer.T if step.runs else 0.0
                np.einsum("ii->i", block)[...] += 1 / factor.pivots[k] ** 2
        return inverse

    def hessian(self, factor: Factor, band: Band) -> Array:
        """The Hessian of -logdet S at y, shape (unknowns, unknowns)."""
        inverse = self._whole_inverse(factor, band)
        bent = sum(len(g.alpha) for g in self.bent)
        count = bent + sum(len(g.alpha) for g in self.plain)
        image = np.zeros((self.size + self.pad, bent)) if self.pad else np.empty((self.size, bent))  # P m
        at = 0
        places: list[tuple[Group, slice]] = []
        for group in (*self.bent, *self.plain):
            here = slice(at, at + len(group.alpha))
            places.append((group, here))
            at = here.stop
            for i, (rows, block, compressed) in enumerate(group.pre):
                if compressed is not None:
                    product = (compressed @ inverse[rows, : self.size]).T
                else:
                    product = inverse[: self.size, rows] @ block.T
                if i:
                    image[: self.size, here] += product
                else:
                    image[: self.size, here] = product
        own = np.concatenate([_positions(g.own, len(g.alpha), self.size) for g, _ in places])
        alpha, beta = (
            np.concatenate([getattr(g, name) for g in self.bent] or [np.zeros(0)]) for name in ("alpha", "beta")
        )
        result = np.empty((count, count))
        for group, here in places:
            mine = _index(own[here])
            if group.pre:
                ahead = slice(here.start, bent)
                theirs = _index(own[ahead])
                both = _product(group, image[:, ahead])
                panel = hadamard(
                    _block(inverse, mine, theirs),
                    image[mine, ahead],
                    image[theirs, here].T,
                    both,
                    alpha[here],
                    beta[here],
                    alpha[ahead],
                    beta[ahead],
                )
            else:
                base, right = _block(inverse, mine, _index(own[:bent])), image[mine]
                cross = 4 * (base - right * alpha) * (base - right * beta)
                result[here, :bent], result[:bent, here] = cross, cross.T
                ahead = slice(here.start, count)
                panel = 2 * _block(inverse, mine, _index(own[ahead]))
                panel *= panel
            result[here, ahead] = panel
            rest = slice(here.stop, ahead.stop)
            result[rest, here] = panel[:, here.stop - here.start :].T
        result = self._contracted(result)
        result[self.guarded, self.guarded] += 1 / factor.y[self.guarded] ** 2
        return result

    def _contracted(self, hessian: Array) -> Array:
        """K' M K; the first `single` rows and unknowns belong to each other."""
        single, count = self.single, len(self.cost)
        scale = self.contraction[:single, :single].diagonal() if single else np.zeros(0)
        if np.any(scale != 1.0):
            hessian[:single] *= scale[:, None]
            hessian[:, :single] *= scale
        if single == count == len(hessian):
            return hessian
        rest = sp.csr_array(self.contraction[single:, single:].T)
        result = np.empty((count, count))
        result[:single, :single] = hessian[:single, :single]
        result[single:, :single] = rest @ hessian[single:, :single]
        result[:single, single:] = result[single:, :single].T
        result[single:, single:] = rest @ (rest @ np.ascontiguousarray(hessian[single:, single:])).T
        return result


# ---------------------------------------------------------------------------------------------------------------------
# From a program to positions


def graph_of(program: Program) -> Graph:
    """Which signals meet in the matrix of a program."""
    around: list[set[int]] = [set() for _ in program.sizes]
    diagonal = [True] * len(program.sizes)

    def meet(a: int, b: int) -> None:
        if a == b:
            diagonal[a] = False
        else:
            around[a].add(b)
            around[b].add(a)

    for a, b in program.constant:
        meet(a, b)
    for rows in program.rows:
        read = [s for s, m in rows.pre.items() if np.any(m)]
        if rows.signal != NO_SIGNAL and np.any(rows.alpha + rows.beta):
            for s in read:
                meet(rows.signal, s)
        if rows.curved:
            for a in read:
                for b in read:
                    meet(a, b)
    return Graph(sizes=program.sizes, neighbours=tuple(frozenset(n) for n in around), diagonal=tuple(diagonal))


def _folded(program: Program) -> Program:
    """The program with constant slack that would be eliminated before what it couples eliminated once and for all."""
    slack = {d for d in program.slack() if all(d not in pair or pair[0] != pair[1] for pair in program.constant)}
    if not slack:
        return program
    place = {s: i for i, s in enumerate(minimum_fill(graph_of(program)))}
    constant = dict(program.constant)
    folded = []
    for d in sorted(slack):
        coupled = [pair for pair in constant if d in pair]
        others = [a if b == d else b for a, b in coupled]
        if any(place[s] < place[d] or s in slack for s in others):
            continue
        folded.append(d)
        weight = np.zeros(program.sizes[d])
        for rows, span in zip(program.rows, program.spans, strict=True):
            if rows.signal == d:
                np.add.at(weight, rows.index, 2 * program.shift[span])
        blocks = {
            s: constant.pop(pair) if pair[0] == s else constant.pop(pair).T
            for s, pair in zip(others, coupled, strict=True)
        }
        for a, left in blocks.items():
            for b, right in blocks.items():
                if a <= b:
                    block = -(left / weight) @ right.T
                    constant[a, b] = constant[a, b] + block if (a, b) in constant else block
    return without_signals(replace(program, constant=constant), folded)


def _step(program: Program, starts: Mapping[int, int], front: Any) -> Step:
    own = slice(starts[front.signals[0]], starts[front.signals[-1]] + program.sizes[front.signals[-1]])
    runs: list[slice] = []
    for s in front.later:
        here = slice(starts[s], starts[s] + program.sizes[s])
        if runs and runs[-1].stop == here.start:
            runs[-1] = slice(runs[-1].start, here.stop)
        else:
            runs.append(here)
    ends = np.cumsum([0, *(run.stop - run.start for run in runs)])
    parts = tuple(slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True))
    return Step(own=own, runs=tuple(runs), parts=parts, diagonal=front.diagonal)


def _group(program: Program, starts: Mapping[int, int], rows: Rows, span: slice, varies: bool) -> Group:
    pre = []
    for s, block in rows.pre.items():
        if not np.any(block):
            continue
        sparse = block.size >= 1 << 14 and np.count_nonzero(block) <= SPARSE_DENSITY * block.size
        pre.append((slice(starts[s], starts[s] + program.sizes[s]), block, sp.csr_array(block) if sparse else None))
    return Group(
        span=span,
        own=None if rows.signal == NO_SIGNAL else _index(starts[rows.signal] + rows.index),
        alpha=rows.alpha,
        beta=rows.beta,
        slope_sum=rows.alpha + rows.beta,
        slope_product=rows.alpha * rows.beta,
        pre=tuple(pre),
        curved=rows.curved and bool(pre),
        varies=varies,
    )


def _placed(
    program: Program, starts: Mapping[int, int], pair: tuple[int, int], block: Array
) -> tuple[slice, slice, Array]:
    a, b = (slice(starts[s], starts[s] + program.sizes[s]) for s in pair)
    return (a, b, block) if a.start <= b.start else (b, a, np.ascontiguousarray(block.T))


def _place(group: Group) -> int:
    if group.own is None:
        return 1 << 60
    return int(group.own.start) if isinstance(group.own, slice) else int(group.own.min(initial=1 << 60))


def _arranged(weights: Any) -> tuple[Array, int]:
    """An order of the unknowns, and how many of the first belong to one row each, in the order of the rows."""
    per_row, per_column = np.diff(weights.indptr), np.bincount(weights.indices, minlength=weights.shape[1])
    order: list[int] = []
    single = 0
    for row in range(weights.shape[0]):
        if per_row[row] != 1 or per_column[weights.indices[weights.indptr[row]]] != 1:
            break
        order.append(int(weights.indices[weights.indptr[row]]))
        single += 1
    rest = np.setdiff1d(np.arange(weights.shape[1]), order)
    return np.concatenate([np.array(order, dtype=np.int64), rest]), single


# ---------------------------------------------------------------------------------------------------------------------
# Index arithmetic


def _index(positions: Array) -> Index:
    """A slice where the positions are consecutive."""
    count = len(positions)
    if count and np.array_equal(positions, np.arange(positions[0], positions[0] + count)):
        return slice(int(positions[0]), int(positions[0]) + count)
    return positions


def _positions(own: Index | None, count: int, nowhere: int) -> Array:
    if own is None:
        return np.full(count, nowhere)
    return np.arange(own.start, own.stop) if isinstance(own, slice) else own


def _block(matrix: Array, rows: Index, columns: Index) -> Array:
    if isinstance(rows, slice) or isinstance(columns, slice):
        return np.asarray(matrix[rows, columns])
    return np.asarray(matrix[np.ix_(rows, columns)])


def _later(matrix: Array, step: Step) -> Array:
    """The columns of a front behind its pivot."""
    if len(step.runs) == 1:
        return np.asarray(matrix[step.own, step.runs[0]])
    if not step.runs:
        return np.zeros((step.own.stop - step.own.start, 0))
    return np.concatenate([matrix[step.own, run] for run in step.runs], axis=1)


def _gathered(matrix: Array, runs: tuple[slice, ...]) -> Array:
    if len(runs) == 1:
        return np.asarray(matrix[runs[0], runs[0]])
    return np.concatenate([np.concatenate([matrix[a, b] for b in runs], axis=1) for a in runs])


def _add_cross(matrix: Array, own: Index, columns: slice, block: Array) -> None:
    """Add e m' + m e' to the upper triangle."""
    first = own.start if isinstance(own, slice) else int(own[0])
    if columns.start <= first < columns.stop:
        matrix[own, columns] += block
        matrix[columns, own] += block.T
    elif first < columns.start:
        matrix[own, columns] += block
    else:
        matrix[columns, own] += block.T


def _entries(group: Group, inverse: Array, diagonal: Array) -> Array:
    """2 u_j'P r_j for the rows of a group."""
    entries = np.zeros(len(group.alpha)) if group.own is None else diagonal[group.own].copy()
    if group.own is not None and np.any(group.slope_sum):
        cross = sum(np.einsum("ij,ji->i", block, inverse[rows, group.own]) for rows, block, _ in group.pre)
        entries -= group.slope_sum * cross
    if group.curved:
        square = np.zeros(len(entries))
        for _, (rows, left, _unused) in enumerate(group.pre):
            for columns, right, _also in group.pre:
                square += np.einsum("ij,ij->i", left @ inverse[rows, columns], right)
        entries += group.slope_product * square
    return np.asarray(2 * entries)


def _product(group: Group, image: Array) -> Array:
    """m' times a matrix with one row per position."""
    parts = [
        block @ image[rows] if compressed is None else np.asarray(compressed @ image[rows])
        for rows, block, compressed in group.pre
    ]
    return np.asarray(sum(parts[1:], parts[0]))
