"""-logdet S(y) by block-sparse elimination over signals: Cholesky, gradient, exact Hessian, for any `Program`.

With P = S^-1 the gradient of logdet S in t_j is 2 u_j'P r_j, and the Hessian of -logdet S is
2 [(U'PU) o (R'PR) + (U'PR) o (R'PU)]; both are then contracted with K (t = K y + k). The gradient needs P on the fronts
of the elimination only (Takahashi, Fagan & Chen 1973), the Hessian all of it, row by row from the fronts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.linalg.blas import dtrmm, dtrsm
from scipy.linalg.lapack import dlauum, dtrtri

from lipmodel.backends.native.barrier import cholesky, hadamard, mirror
from lipmodel.backends.native.chain import Array, Mask
from lipmodel.backends.native.layout import Group, Index, Positions, Step, index, laid_out
from lipmodel.backends.native.program import Program

TRIANGULAR = 100  # order from which the triangular product of LAPACK is faster than a dense one


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

    def __init__(self, program: Program, guarded: Mask) -> None:
        """guarded: mask of the program's unknowns that get a logarithm of their own."""
        self.layout = layout = laid_out(program)
        self.unknowns, self.cost, self.root = layout.unknowns, layout.cost, program.root
        self.guarded = np.flatnonzero(guarded[self.unknowns])
        self.order = layout.order + len(self.guarded)
        self._transposed = sp.csr_array(layout.weights.T)
        self._pad = 1 if any(g.own is None for g in layout.bent) else 0
        self._matrix = np.zeros((layout.size, layout.size))
        self._inverse = np.zeros((layout.size, layout.size))

    def factorize(self, y: Array) -> Factor | None:
        """The factor of S(y), or None unless S(y) > 0 (numerically) and the guarded unknowns are positive."""
        if not np.all(np.isfinite(y)) or np.any(y[self.guarded] <= 0):
            return None
        matrix, diagonal = self._assembled(self.layout.weights @ y + self.layout.shift)
        pivots, spreads = [], []
        logdet = float(np.log(y[self.guarded]).sum())
        for step in self.layout.steps:
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
        matrix, diagonal = self._matrix, np.zeros(self.layout.size)
        for step in self.layout.steps:
            if not step.diagonal:
                matrix[step.own, step.own] = 0.0
            for run in step.runs:
                matrix[step.own, run] = 0.0
        for rows, columns, block in self.layout.constants:
            matrix[rows, columns] += block
        for group in self.layout.groups:
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
        for step in self.layout.steps:
            if not step.diagonal:
                np.einsum("ii->i", matrix[step.own, step.own])[...] += diagonal[step.own]
        return matrix, diagonal

    def complete(self, factor: Factor) -> Band:
        """P on the fronts, and the gradient of logdet S."""
        inverse, diagonal = self._inverse, np.empty(self.layout.size)
        transfers: list[Array] = [np.empty(0)] * len(self.layout.steps)
        owns: list[Array] = [np.empty(0)] * len(self.layout.steps)
        for k in range(len(self.layout.steps) - 1, -1, -1):
            step, pivot, spread = self.layout.steps[k], factor.pivots[k], factor.spreads[k]
            if step.diagonal:
                diagonal[step.own] = 1 / pivot**2
                if not step.runs:
                    continue
                transfer = spread / -pivot[:, None]
            else:
                root = dtrtri(pivot, lower=1)[0]
                own = _gram(root)
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
        gradient = np.zeros(len(self.layout.shift))
        for group in self.layout.groups:
            if group.varies:
                gradient[group.span] = _entries(group, inverse, diagonal)
        result = self._transposed @ gradient
        result[self.guarded] += 1 / factor.y[self.guarded]
        return Band(gradient=result, transfers=transfers, own=owns)

    def _whole_inverse(self, factor: Factor, band: Band) -> Array:
        """All of P, with a row and a column of zeros behind it where some rows have no e."""
        size = self.layout.size
        inverse = np.zeros((size + self._pad,) * 2) if self._pad else np.empty((size, size))
        for k in range(len(self.layout.steps) - 1, -1, -1):
            step, transfer, own = self.layout.steps[k], band.transfers[k], band.own[k]
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
        bent = sum(len(g.alpha) for g in self.layout.bent)
        count = bent + sum(len(g.alpha) for g in self.layout.plain)
        image = (
            np.zeros((self.layout.size + self._pad, bent)) if self._pad else np.empty((self.layout.size, bent))
        )  # P m
        at = 0
        places: list[tuple[Group, slice]] = []
        for group in (*self.layout.bent, *self.layout.plain):
            here = slice(at, at + len(group.alpha))
            places.append((group, here))
            at = here.stop
            for i, (rows, block, compressed) in enumerate(group.pre):
                if compressed is not None:
                    product = (compressed @ inverse[rows, : self.layout.size]).T
                else:
                    product = inverse[: self.layout.size, rows] @ block.T
                if i:
                    image[: self.layout.size, here] += product
                else:
                    image[: self.layout.size, here] = product
        own = np.concatenate([_positions(g.own, len(g.alpha), self.layout.size) for g, _ in places])
        alpha, beta = (
            np.concatenate([getattr(g, name) for g in self.layout.bent] or [np.zeros(0)]) for name in ("alpha", "beta")
        )
        result = np.empty((count, count))
        for group, here in places:
            mine = index(own[here])
            if group.pre:
                ahead = slice(here.start, bent)
                theirs = index(own[ahead])
                both = _product(group, image[:, ahead])
                hadamard(
                    _block(inverse, mine, theirs),
                    image[mine, ahead],
                    image[theirs, here].T,
                    both,
                    alpha[here],
                    beta[here],
                    alpha[ahead],
                    beta[ahead],
                    out=result[here, ahead],
                )
            else:
                base, right = _block(inverse, mine, index(own[:bent])), image[mine]
                cross = 4 * (base - right * alpha) * (base - right * beta)
                result[here, :bent], result[:bent, here] = cross, cross.T
                ahead = slice(here.start, count)
                result[here, ahead] = 4 * _block(inverse, mine, index(own[ahead])) ** 2
            rest = slice(here.stop, ahead.stop)
            result[rest, here] = result[here, rest].T
        result = self._contracted(result)
        result[self.guarded, self.guarded] += 1 / factor.y[self.guarded] ** 2
        return result

    def _contracted(self, hessian: Array) -> Array:
        """K' M K; the first `single` rows and unknowns belong to each other."""
        single, count = self.layout.single, len(self.cost)
        scale = self.layout.contraction[:single, :single].diagonal() if single else np.zeros(0)
        if np.any(scale != 1.0):
            hessian[:single] *= scale[:, None]
            hessian[:, :single] *= scale
        if single == count == len(hessian):
            return hessian
        rest = sp.csr_array(self.layout.contraction[single:, single:].T)
        result = np.empty((count, count))
        result[:single, :single] = hessian[:single, :single]
        result[single:, :single] = rest @ hessian[single:, :single]
        result[:single, single:] = result[single:, :single].T
        result[single:, single:] = rest @ (rest @ np.ascontiguousarray(hessian[single:, single:])).T
        return result


def _positions(own: Index | None, count: int, nowhere: int) -> Positions:
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
        for rows, left, _ in group.pre:
            for columns, right, _ in group.pre:
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


def _gram(root: Array) -> Array:
    """L'L for a lower triangular L."""
    if len(root) < TRIANGULAR:
        return np.asarray(root.T @ root)
    product = dlauum(root, lower=1)[0]
    mirror(product.T)
    return np.asarray(product)
