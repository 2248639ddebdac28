"""Multipliers for images and the dense tail behind them, found by descent; floating point, and untrusted.

With g = 1 on the input, the images are eliminated frequency by frequency: v v' << G |dx|^2 for the rows v that read
them, G = sum over f of B(f) P(f)^-1 B(f)*, where P(f) is the inequality of LipSDP at that frequency (Fazlyab et al.
2019, arXiv 1906.04893). The tail is eliminated from the output back, which gives M with |dy|^2 <= v' M v. Hence
L^2 <= lmax(G M), and this is what descends, by the adjoint of both eliminations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.elimination import tied
from lipmodel.fourier.stencils import NoStencil, Pictures
from lipmodel.fourier.tail import Tail, row_matrices
from lipmodel.fourier.torus import Layout, Torus, layout_of, row_blocks, slot_slopes, stencil_blocks

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem

Array = np.ndarray[Any, Any]

CHUNK = 4_000_000
"""Entries of matrices, over frequencies, that are held at a time."""
START = 1.4
"""How far below the largest eigenvalue's multiple the first S of a layer is, as in closed forms with row sums."""
RIDGE = 1e-13
"""Of the mean of the diagonal of G, added to all of it, so that it has a factor even where it is singular."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pencil:
    """The inequality in its multipliers: P(t) = corner + sum t_j (u_j* r_j + r_j* u_j), frequency by frequency.

    u, r: shape (frequencies, multipliers, order), u None where all of it is the unit matrix at `first`; corner: shape
    (order, order). behind: None, or a matrix K, shape (frequencies, multipliers, multipliers), where signals with the
    corner 1 have been eliminated: then diag(t) K diag(t) is subtracted.
    """

    u: Array | None
    r: Array
    first: int
    corner: Array
    behind: Array | None = None

    @staticmethod
    def of(forms: Array, first: int, alpha: Array, beta: Array, corner: Array) -> Pencil:
        """forms: shape (frequencies, n, order), how the n neurons read; they stand at `first` in the order."""
        unit = np.zeros(forms.shape[1:])
        unit[:, first : first + len(alpha)] = np.eye(len(alpha))
        u = unit - alpha[:, None] * forms if np.any(alpha) else None
        return Pencil(u=u, r=unit - beta[:, None] * forms, first=first, corner=corner)

    @property
    def own(self) -> slice:
        """Where the neurons stand in the order."""
        return slice(self.first, self.first + self.r.shape[1])

    def leading(self, neurons: int, order: int, corner: Array) -> Pencil:
        """The inequality of the first neurons alone, with another corner."""
        u = None if self.u is None else self.u[:, :neurons, :order]
        return Pencil(u=u, r=self.r[:, :neurons, :order], first=self.first, corner=corner[:order, :order])

    def reads(self, span: slice, order: int) -> Array:
        """(beta - alpha) times what these neurons read of the signals before `order`, which does not contain them."""
        u = 0.0 if self.u is None else self.u[:, span, :order]
        return np.asarray(u - self.r[:, span, :order])

    def without_inputs(self) -> Pencil:
        """The same with what stands before the neurons eliminated, where that has the corner 1 and u is the unit."""
        if self.u is not None:
            return self
        inputs, rest = self.r[:, :, : self.first], self.r[:, :, self.first :]
        corner = self.corner[self.first :, self.first :]
        return Pencil(u=None, r=rest, first=0, corner=corner, behind=inputs @ np.swapaxes(inputs.conj(), 1, 2))

    def matrix(self, t: Array) -> Array:
        """P(t), shape (frequencies, order, order)."""
        scaled = t[:, None] * self.r
        if self.u is None:
            half = np.zeros((len(scaled), *self.corner.shape), dtype=scaled.dtype)
            half[:, self.own] = scaled
            if self.behind is not None:
                half -= 0.5 * t[:, None] * self.behind * t
        else:
            half = np.swapaxes(self.u.conj(), 1, 2) @ scaled
        return self.corner + half + np.swapaxes(half.conj(), 1, 2)

    def slope(self, t: Array, w: Array, weights: Array) -> Array:
        """The derivative at t of sum of weights tr(W P(t))."""
        if self.u is None:
            reads = self.r if self.behind is None else self.r - self.behind * t
            each = np.sum((reads * np.swapaxes(w[:, :, self.own], 1, 2)).real, axis=2)
        else:
            each = np.sum(((self.r @ w) * self.u.conj()).real, axis=2)
        return np.asarray(2.0 * (weights @ each))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Some of the frequencies: their pencil, how many each one stands for, and the rows that read its last slots.

    rows: shape (frequencies, m, slots that are read); those are the last of the order.
    """

    pencil: Pencil
    weights: Array
    rows: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """A point of the descent: value with the barrier, of this weight; level the logarithm of L^2.

    parts: what the gradient needs besides.
    """

    x: Array
    value: float
    level: float
    weight: float
    parts: tuple[Array, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objective:
    """log L^2 with a barrier in x = log t: t of the slots of images, then of the tail's neurons (of its groups).

    shifts: the number of frequencies; slots: how many t are of slots; rows: of v; group: for each neuron of the tail,
    the number of its t.
    """

    groups: tuple[Group, ...]
    tail: Pencil
    shifts: int
    slots: int
    rows: int
    group: Array
    start: Array

    @property
    def neurons(self) -> int:
        return len(self.start)

    def split(self, x: Array) -> tuple[Array, Array]:
        """The multipliers of the slots and of the tail."""
        t = np.exp(x)
        return t[: self.slots], t[self.slots :][self.group]

    def forward(self, x: Array, weight: float, power: float) -> Trial | None:
        """The trial at x, None where the inequality does not hold for any L."""
        slots, dense = self.split(x)
        gram, barrier = np.zeros((self.rows, self.rows)), 0.0
        with np.errstate(all="ignore"):
            try:
                for part in self.groups:
                    root = np.linalg.cholesky(part.pencil.matrix(slots))
                    logs = np.log(np.diagonal(root, axis1=1, axis2=2).real).sum(axis=1)
                    barrier += float(part.weights @ (np.log(2.0 * slots).sum() - 2.0 * logs)) / self.shifts
                    gram += _reached(part, root)
                p = self.tail.matrix(dense)[0]
                root = np.linalg.cholesky(p[self.rows :, self.rows :])
            except np.linalg.LinAlgError:
                return None
            barrier += float(np.log(2.0 * dense).sum() - 2.0 * np.log(np.diagonal(root)).sum())
            z = -np.linalg.solve(root.T, np.linalg.solve(root, p[self.rows :, : self.rows]))
            metric = -(p[: self.rows, : self.rows] + p[: self.rows, self.rows :] @ z)
            try:
                factor = np.linalg.cholesky(gram + RIDGE * np.trace(gram) / self.rows * np.eye(self.rows))
                values, vectors = np.linalg.eigh(factor.T @ (metric + metric.T) @ factor / 2.0)
            except np.linalg.LinAlgError:
                return None
            top = float(values[-1])
            if not (math.isfinite(top) and top > 0.0 and math.isfinite(barrier)):
                return None
            share = np.maximum(values / top, 0.0)
            level = math.log(top)
            value = level + math.log(float(np.sum(share**power))) / power + weight * barrier
        parts = (share**power / np.sum(share**power), values, factor @ vectors, metric, z)
        return Trial(x=x, value=value, level=level, weight=weight, parts=parts)

    def gradient(self, found: Trial) -> Array:
        """The gradient of a trial's value."""
        weight, (share, values, vectors, metric, z) = found.weight, found.parts
        slots, dense = self.split(found.x)
        used = share > 1e-16 * share.max()
        # by M: F V diag(share / lambda) V' F'; by G: M times that times M
        ends = vectors[:, used] * np.sqrt(share[used] / values[used])
        pull = metric @ (ends / np.sqrt(values[used]))
        by_slot = weight / slots
        for part in self.groups:
            inverse = np.linalg.inv(part.pencil.matrix(slots))
            last = part.rows.shape[2]
            x = inverse[:, :, -last:] @ (np.swapaxes(part.rows.conj(), 1, 2) @ pull)
            w = x @ np.swapaxes(x.conj(), 1, 2) + (weight / self.shifts) * inverse
            by_slot -= part.pencil.slope(slots, w, part.weights)
        whole = np.vstack([np.eye(self.rows), z]) @ ends
        w = whole @ whole.T
        hidden = self.tail.matrix(dense)[0][self.rows :, self.rows :]
        w[self.rows :, self.rows :] += weight * np.linalg.inv(hidden)
        by_neuron = weight / dense - self.tail.slope(dense, w[None], np.ones(1))
        grouped = np.bincount(self.group, weights=dense * by_neuron, minlength=len(self.start) - self.slots)
        return np.concatenate([slots * by_slot, grouped])

    def point(self, found: Trial) -> Array:
        """The logarithms of the multipliers."""
        return found.x


def objective(system: IncrementSystem, found: Pictures, tail: Tail, torus: Torus) -> Objective:
    """The objective of a system with images, and its start. Raises NoStencil where it does not fit."""
    layout = layout_of(found, torus)
    frequencies, weights = torus.frequencies()
    ends = [slot_slopes(system, k, s, torus) for k, s in layout.slots.items() if k]
    alpha, beta = (np.concatenate([end[i] for end in ends]) for i in (0, 1))
    corner = np.zeros((layout.size, layout.size))
    corner[: layout.inputs, : layout.inputs] = np.eye(layout.inputs)
    rows = row_matrices(tail, found)
    groups: list[Group] = []
    step = max(1, CHUNK // layout.size**2)
    last = layout.size - min(layout.starts[j] for j in rows)
    for chunk in np.array_split(np.arange(len(frequencies)), -(-len(frequencies) // step)):
        f = frequencies[chunk]
        forms = stencil_blocks(found, torus, layout, f)
        pencil = Pencil.of(forms, layout.inputs, alpha, beta, corner)
        reading = row_blocks(rows, found, torus, layout, f)[:, :, -last:]
        groups.append(Group(pencil=pencil, weights=weights[chunk].astype(float), rows=reading))
    t = _start([g.pencil for g in groups], layout, alpha, beta)
    gram = np.zeros((tail.rows, tail.rows))
    for part in groups:
        gram += _reached(part, np.linalg.cholesky(part.pencil.matrix(t)))
    if 0 not in rows:
        groups = [replace(part, pencil=part.pencil.without_inputs()) for part in groups]
    behind, dense, group = _tail(system, found, tail, gram)
    start = np.log(np.concatenate([t, dense]))
    if not bool(np.all(np.isfinite(start))):
        raise NoStencil("no first multipliers are found: the numbers are too large or too small")
    facts = {"shifts": torus.shifts, "slots": len(t), "rows": tail.rows}
    return Objective(groups=tuple(groups), tail=behind, group=group, start=start, **facts)


def _reached(part: Group, root: Array) -> Array:
    """The sum over frequencies of B P^-1 B*, from the Cholesky factors of P."""
    last = part.rows.shape[2]
    half = np.linalg.solve(root[:, -last:, -last:], np.swapaxes(part.rows.conj(), 1, 2))
    columns = (np.sqrt(part.weights)[:, None, None] * half).reshape(-1, half.shape[2])
    return np.asarray(columns.real.T @ columns.real + columns.imag.T @ columns.imag)


def _start(pencils: list[Pencil], layout: Layout, alpha: Array, beta: Array) -> Array:
    """First multipliers of the slots: layer by layer, S by row sums of what the layers before reach."""
    n0 = layout.inputs
    t = np.ones(layout.size - n0)
    for k, slots in layout.slots.items():
        if not k:
            continue
        span = slice(layout.starts[k] - n0, layout.starts[k] - n0 + slots.count)
        sums, grams = np.zeros(slots.count), []
        for pencil in pencils:
            known = layout.starts[k]
            grams.append(_gram(pencil, span, known, pencil.corner, t))
            sums = np.maximum(sums, np.abs(grams[-1]).sum(axis=2).max(axis=0))
        t[span] = _multipliers(grams, sums, alpha[span], beta[span])
    return t


def _gram(pencil: Pencil, span: slice, known: int, corner: Array, t: Array) -> Array:
    """The Gram matrix of what the neurons of `span` read, times beta - alpha; only signals before `known` are read."""
    reads = pencil.reads(span, known)
    before = pencil.leading(span.start, known, corner).matrix(t[: span.start])
    return np.asarray(reads @ np.linalg.solve(before, np.swapaxes(reads.conj(), 1, 2)))


def _multipliers(grams: list[Array], sums: Array, alpha: Array, beta: Array) -> Array:
    """t from the Gram matrices of (beta - alpha) v: 2 S - G definite for S = top Q / c, Q the row sums."""
    floor = 1e-9 * float(sums.max(initial=0.0)) or 1e-12
    q = np.maximum(sums, floor)
    root = 1.0 / np.sqrt(q)
    top = max(float(np.linalg.eigvalsh(root[:, None] * gram * root)[:, -1].max()) for gram in grams)
    return np.where(beta > alpha, START / (max(top, 1e-9) * q), 1.0)


def _tail(system: IncrementSystem, found: Pictures, tail: Tail, gram: Array) -> tuple[Pencil, Array, Array]:
    """The pencil of the tail, first multipliers of its groups for an output slack of 1, the group of each neuron."""
    starts = np.concatenate([[0], np.cumsum(tail.sizes)])
    count, outputs = int(starts[-1]), tail.forms[-1].size
    neurons = count - tail.rows
    forms = _tail_forms(tail, starts)
    behind = [system.activations[k - 1] for k in found.dense]
    alpha, beta = (np.concatenate([np.zeros(0), *(getattr(a, end) for a in behind)]) for end in ("alpha", "beta"))
    group, groups = np.zeros(0, dtype=np.int64), 0
    for a in behind:
        labels = np.arange(a.size) if a.groups is None else np.unique(a.groups, return_inverse=True)[1]
        group, groups = np.concatenate([group, groups + labels]), groups + int(labels.max()) + 1
    corner = np.zeros((count + outputs, count + outputs))
    corner[count:, count:] = np.eye(outputs)
    corner[count:, :count] = -forms[neurons:, :count]
    corner[:count, count:] = corner[count:, :count].T
    pencil = Pencil.of(forms[None, :neurons], tail.rows, alpha, beta, corner)
    # the first multipliers are those behind an input with the metric G^-1, as if the output were not there
    begun = corner[:count, :count].copy()
    begun[: tail.rows, : tail.rows] = np.linalg.inv(gram + RIDGE * np.trace(gram) / tail.rows * np.eye(tail.rows))
    t = np.ones(neurons)
    for i, a in enumerate(behind, start=1):
        known, span = int(starts[i]), slice(int(starts[i]) - tail.rows, int(starts[i + 1]) - tail.rows)
        g = _gram(pencil, span, known, begun, t)
        t[span] = tied(a.groups, _multipliers([g], np.abs(g).sum(axis=2)[0], a.alpha, a.beta))
    inverse = np.linalg.inv(pencil.leading(neurons, count, begun).matrix(t)[0])
    last = forms[neurons:, :count]
    first = np.ones(groups)
    first[group] = t * float(np.linalg.eigvalsh(last @ inverse @ last.T)[-1])
    return pencil, first, group


def _tail_forms(tail: Tail, starts: Array) -> Array:
    """How the dense activations, and the output, read v and each other, shape (their entries, order of the tail)."""
    outputs = tail.forms[-1].size
    result = np.zeros((int(starts[-1]) - tail.rows + outputs, int(starts[-1]) + outputs))
    top = 0
    for form in tail.forms:
        rows = slice(top, top + form.size)
        result[rows, form.rows] = np.eye(form.size, form.rows.stop - form.rows.start)
        for i, m in form.dense.items():
            result[rows, starts[i] : starts[i + 1]] = m.rmatvec(np.eye(m.shape[0])).T
        top += form.size
    return result
