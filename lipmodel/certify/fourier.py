"""The rule `fourier-lmi`: the inequality of a convolutional network, decided frequency by frequency in ball arithmetic.

The images of the network lie on a torus (`lipmodel.fourier`), with multipliers t >= 0 that are constant on slots. On
the increments z of the network, extended by zeros,

    sum over f of z(f)* P(f) z(f) = |dx|^2 - sum of t (w - alpha v)(beta v - w) 2 <= |dx|^2,     P(f) = I on the input,

(Fazlyab et al. 2019, arXiv 1906.04893, whose matrix the Fourier transform takes apart). If all P(f) are positive
definite, the rows v = sum over f of B(f) z(f) of what reads the images obey v v' << G |dx|^2 with G = sum of
B(f) P(f)^-1 B(f)*. For any F with F F' >> G, then, v = F u with |u| <= |dx|, and what is left is a dense network with
the input u, whose inequality the kernel decides.

Everything is decided in balls (Johansson 2017, Arb, IEEE Trans. Comput. 66:1281); floating point supplies hints only: a
Cholesky factor of P(f), whose remainder is diagonally dominant; approximate solutions V of P V = E, for any of which

    E* P^-1 E = V* E + R* V + R* P^-1 R,    R = E - P V,    R* P^-1 R << m diag(R* S^2 R) / mu  where  P >> mu S^-2;

and F.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from flint import acb, acb_mat, arb, arb_mat, ctx

from lipmodel.certify.certificate import expect_keys, read_float, read_vector
from lipmodel.certify.exact_entries import exact_entries
from lipmodel.certify.kernel import Multipliers, Rejected, check_lmi
from lipmodel.errors import Refuted
from lipmodel.fourier.search import Pencil
from lipmodel.fourier.stencils import NoStencil, Pictures, pictures
from lipmodel.fourier.tail import Tail, increments_behind, tail_of
from lipmodel.fourier.torus import (
    LONGEST,
    Layout,
    Torus,
    layout_of,
    least_torus,
    phase_pairs,
    require_size,
    slot_slopes,
    stencil_blocks,
)
from lipmodel.network.increments import exact_system

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem

Array = np.ndarray[Any, Any]

BITS = 128
"""Of the balls."""
CHUNK = 300_000
"""Entries of matrices of balls that are held at a time, about 200 bytes each."""
MAX_LAYERS = 1000
"""Activations that a proof may have multipliers for."""
RAISED = 2.0**-38
"""By how much F F' is above G, relative to the diagonal, so that floating point can factor it."""


def enclosed_factor(
    system: IncrementSystem, found: Pictures, tail: Tail, torus: Torus, t: Mapping[int, Array]
) -> Array:
    """F, shape (rows, rows), with v v' << F F' |dx|^2 for the rows v of the tail; decided in balls.

    found: the images of the system; t: multipliers >= 0 of the slots of every image but the input, finite doubles of
    the right number. The torus must fit the images. Raises Rejected where the inequality fails at some frequency, or is
    too close to failing.
    """
    with ctx.workprec(BITS):
        return _factor(_gram(system, found, tail, torus, t))


def check_fourier(
    system: IncrementSystem, period: int, slots: Sequence[Array], multipliers: Multipliers, q: str, bound: float
) -> None:
    """Decide that `bound` is an upper bound of L_{2->q} by these multipliers; raises Rejected with the reason if not.

    period: of the multipliers, in pixels; slots: t >= 0 for every activation that is an image, finite doubles;
    multipliers: of the rest of the network, with a single g, for all of the input u.
    """
    found = pictures(system)
    if not found.images:
        raise Rejected("the network does not begin with layers of pixels that are all treated alike")
    torus = least_torus(found, period)
    try:
        tail = tail_of(system, found)
        require_size(found, torus)
    except NoStencil as reason:
        raise Rejected(str(reason)) from None
    layout = layout_of(found, torus)
    wanted = [s.count for k, s in layout.slots.items() if k]
    if [len(t) for t in slots] != wanted:
        raise Rejected(f"the layers of pixels need {wanted} multipliers, not {[len(t) for t in slots]}")
    if not all(np.all(np.isfinite(t)) and np.all(t >= 0.0) for t in slots):
        raise Rejected("multipliers must be finite and nonnegative")
    images = [k for k in layout.slots if k]
    factor = enclosed_factor(system, found, tail, torus, dict(zip(images, slots, strict=True)))
    whole = Multipliers(t=multipliers.t, g=np.full(tail.rows, multipliers.g[0]), s=multipliers.s)
    check_lmi(exact_system(increments_behind(system, found, tail, factor)), whole, "2", q, bound)


def read_fourier(proof: dict[str, Any]) -> tuple[int, list[Array], Multipliers, float]:
    """The period, the multipliers of the images, those of the rest (a single g), and the bound. Raises Refuted."""
    expect_keys(proof, {"rule", "norms", "period", "slots", "t", "g", "s", "bound"}, "proof")
    period = proof["period"]
    if type(period) is not int or not 1 <= period <= LONGEST:
        raise Refuted(f"proof.period: expected an integer from 1 to {LONGEST}")
    for name in ("slots", "t"):
        # every list may stand for MAX_REPEATED numbers in a few bytes
        if not isinstance(proof[name], list) or len(proof[name]) > MAX_LAYERS:
            raise Refuted(f"proof.{name}: expected a list of at most {MAX_LAYERS} lists of numbers")
    slots = [read_vector(v, f"proof.slots[{k}]") for k, v in enumerate(proof["slots"])]
    t = tuple(read_vector(v, f"proof.t[{k}]") for k, v in enumerate(proof["t"]))
    g, s = read_float(proof["g"], "proof.g"), read_vector(proof["s"], "proof.s")
    return period, slots, Multipliers(t=t, g=np.array([g]), s=s), read_float(proof["bound"], "proof.bound")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Inequality:
    """What P(f) is made of: exact stencils, slopes and multipliers of all slots, and the same in floating point."""

    found: Pictures
    torus: Torus
    layout: Layout
    alpha: Array
    beta: Array
    t: Array
    approximate: Pictures

    def hints(self, frequencies: Array) -> Array:
        """P(f) in floating point, shape (count, order, order)."""
        n0 = self.layout.inputs
        corner = np.zeros((self.layout.size, self.layout.size))
        corner[:n0, :n0] = np.eye(n0)
        forms = stencil_blocks(self.approximate, self.torus, self.layout, frequencies)
        return Pencil.of(forms, n0, self.alpha, self.beta, corner).matrix(self.t)

    def balls(self, frequencies: Array, waves: _Waves) -> list[acb_mat]:
        """Enclosures of P(f)."""
        n0, n = self.layout.inputs, self.layout.size
        forms = np.full((len(frequencies), n - n0, n), acb(0), dtype=object)
        for (k, j), taps in self.found.stencils.items():
            rows, columns = self.layout.slots[k], self.layout.slots[j]
            top, left = self.layout.starts[k] - n0, self.layout.starts[j]
            for r, c, listed in phase_pairs(taps, rows, columns, self.torus):
                blocks = waves.summed(np.array([taps[d].ravel() for d in listed]).T, np.array(listed), frequencies)
                at_rows = top + np.arange(rows.channels) * len(rows.residues) + r
                at_columns = left + np.arange(columns.channels) * len(columns.residues) + c
                shape = (rows.channels, columns.channels, len(frequencies))
                forms[:, at_rows[:, None], at_columns] = np.moveaxis(blocks.reshape(shape), 2, 0)
        alpha, beta, t = (_balls(v) for v in (self.alpha, self.beta, self.t))
        diagonal = np.concatenate([_balls(np.ones(n0)), 2 * t])
        crossing, bend = -(alpha + beta) * t, 2 * alpha * beta * t
        bent = bool(np.any(self.alpha * self.beta))
        result = []
        for form in forms:
            half = crossing[:, None] * form
            p = np.full((n, n), acb(0), dtype=object)
            p[n0:] = half
            p[:, n0:] += _conjugated(half).T
            if bent:
                left_factor = acb_mat(n, n - n0, (_conjugated(form).T * bend).ravel().tolist())
                p = p + _entries(left_factor * acb_mat(n - n0, n, form.ravel().tolist()))
            p[range(n), range(n)] += diagonal
            result.append(acb_mat(n, n, p.ravel().tolist()))
        return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waves:
    """exp(2 pi i k / N) for all k, by axis."""

    tables: tuple[Array, ...]

    @staticmethod
    def on(torus: Torus) -> _Waves:
        def table(side: int) -> Array:
            found = np.empty(side, dtype=object)
            found[:] = [acb(arb(2 * k) / side).exp_pi_i() for k in range(side)]
            return found

        return _Waves(tables=tuple(table(side) for side in torus.sides))

    def summed(self, values: Array, places: Array, frequencies: Array) -> Array:
        """sum over d of values[:, d] exp(2 pi i f d / N), shape (rows, frequencies); places: (count, axes)."""
        phases = np.full((len(places), len(frequencies)), acb(1), dtype=object)
        for axis, table in enumerate(self.tables):
            phases = phases * table[np.outer(places[:, axis], frequencies[:, axis]) % len(table)]
        flat = phases.ravel().tolist()
        left = arb_mat(*values.shape, values.ravel().tolist())
        parts = (left * arb_mat(*phases.shape, [getattr(w, name) for w in flat]) for name in ("real", "imag"))
        real, imaginary = (part.entries() for part in parts)
        result = np.empty(len(real), dtype=object)
        result[:] = [acb(a, b) for a, b in zip(real, imaginary, strict=True)]
        return result.reshape(values.shape[0], len(frequencies))


def _gram(system: IncrementSystem, approximate: Pictures, tail: Tail, torus: Torus, t: Mapping[int, Array]) -> arb_mat:
    """An enclosure of a matrix that is at least G, shape (rows, rows)."""
    found = pictures(system, exact=True)
    layout = layout_of(found, torus)
    ends = [slot_slopes(system, k, s, torus) for k, s in layout.slots.items() if k]
    inequality = _Inequality(
        found=found,
        torus=torus,
        layout=layout,
        alpha=np.concatenate([end[0] for end in ends]),
        beta=np.concatenate([end[1] for end in ends]),
        t=np.concatenate([t[k] for k in layout.slots if k]),
        approximate=approximate,
    )
    waves = _Waves.on(torus)
    rows = _rows(tail, found)
    frequencies, weights = torus.frequencies()
    total = arb_mat(tail.rows, tail.rows)
    step = max(1, CHUNK // layout.size**2)
    for chunk in np.array_split(np.arange(len(frequencies)), -(-len(frequencies) // step)):
        f = frequencies[chunk]
        reading, used = _reading(rows, found, layout, waves, f)
        hints = inequality.hints(f)
        for weight, p, hint, b in zip(weights[chunk], inequality.balls(f, waves), hints, reading, strict=True):
            inner = _inverse_at_least(p, hint, used)
            total += int(weight) * (b * inner * b.conjugate().transpose()).real
    return total / torus.shifts


def _rows(tail: Tail, found: Pictures) -> dict[int, Array]:
    """The rows that read images, exactly, by image: balls, shape (rows, size of the signal)."""
    result: dict[int, Array] = {}
    for form in tail.forms:
        for j, m in form.images.items():
            matrix = result.setdefault(j, np.full((tail.rows, m.shape[1]), arb(0), dtype=object))
            entries = exact_entries(m)
            radii = [0] * len(entries.mid) if entries.rad is None else entries.rad.tolist()
            unit = arb(2) ** -entries.exponent
            values = [arb(v) * unit + arb(0, arb(r) * unit) for v, r in zip(entries.mid.tolist(), radii, strict=True)]
            matrix[entries.rows + form.rows.start, entries.cols] = values
            if not found.images[j].present[entries.cols].all():
                raise Rejected("an input that no convolution reads is read later")
    return result


def _reading(
    rows: Mapping[int, Array], found: Pictures, layout: Layout, waves: _Waves, frequencies: Array
) -> tuple[list[acb_mat], Array]:
    """B(f) without the columns of slots that nothing reads, and which those columns are."""
    columns: list[Array] = []
    used: list[int] = []
    for j, matrix in sorted(rows.items()):
        of, place = layout.slots[j].of, found.images[j].place
        alike: dict[bytes, list[int]] = {}  # slots with the same pixels
        for slot in np.unique(of[of >= 0]).tolist():
            alike.setdefault(place[of == slot].tobytes(), []).append(slot)
        for listed in alike.values():
            here = [np.flatnonzero(of == slot) for slot in listed]
            values = np.concatenate([matrix[:, entries] for entries in here])
            columns.extend(np.split(waves.summed(values, place[here[0]], frequencies), len(listed)))
            used.extend(layout.starts[j] + slot for slot in listed)
    stacked = np.array(columns, dtype=object)  # (used, rows, frequencies)
    shape = (stacked.shape[1], stacked.shape[0])
    return [acb_mat(*shape, stacked[:, :, f].T.ravel().tolist()) for f in range(len(frequencies))], np.array(used)


def _inverse_at_least(p: acb_mat, hint: Array, used: Array) -> acb_mat:
    """An enclosure of a matrix that is at least E* P^-1 E, E the columns `used` of the identity."""
    scale, mu = _definite(p, hint)
    n, m = len(hint), len(used)
    unit = np.zeros((n, m))
    unit[used, range(m)] = 1.0
    approximate = np.full((n, m), np.nan)
    with np.errstate(all="ignore"), suppress(np.linalg.LinAlgError):
        approximate = np.linalg.solve(hint, unit)
    if not bool(np.all(np.isfinite(approximate))):
        raise Rejected("the inequality at some frequency is singular")
    v, e = (acb_mat(n, m, a.ravel().tolist()) for a in (approximate.astype(complex), unit))
    rest = e - p * v
    left = _entries(rest) * scale[:, None]
    squares = [sum((x.real**2 + x.imag**2 for x in column), arb(0)) for column in left.T]
    more = acb_mat(m, m)
    for i, square in enumerate(squares):
        more[i, i] = acb(m * square / mu)
    return v.conjugate().transpose() * e + rest.conjugate().transpose() * v + more


def _definite(p: acb_mat, hint: Array) -> tuple[Array, arb]:
    """Powers of two S, as floats, and mu > 0 with P >> mu S^-2. Raises Rejected where P is not that definite."""
    n = len(hint)
    least, root = 0.0, None
    with np.errstate(all="ignore"), suppress(np.linalg.LinAlgError):
        scale = 2.0 ** -np.rint(0.5 * np.log2(np.abs(np.diagonal(hint))))
        scaled = scale[:, None] * hint * scale
        if np.all(np.isfinite(scaled)):
            least = float(np.linalg.eigvalsh(scaled)[0])
            root = np.linalg.cholesky(scaled - 0.75 * least * np.eye(n)) / scale[:, None]
    if root is None or not least > 0.0 or not np.all(np.isfinite(root)):
        raise Rejected("the inequality fails at some frequency, or is too close to failing")
    mu = arb(least / 2.0)
    factor = acb_mat(n, n, root.ravel().tolist())
    rest = _entries(p - factor * factor.conjugate().transpose())
    for i, row in enumerate(rest):
        outside = sum((abs(x) * scale[j] for j, x in enumerate(row) if j != i), arb(0))
        if not (row[i].real * scale[i] - outside) * scale[i] >= mu:  # the decision
            raise Rejected("the inequality at some frequency is not proved to be definite")
    return scale, mu


def _factor(gram: arb_mat) -> Array:
    """F with F F' >> G for all G in the enclosure. Raises Rejected where none is found."""
    n = gram.nrows()
    center = np.array([float(x.mid()) for x in gram.entries()]).reshape(n, n)
    diagonal = np.diagonal(center)
    if not (np.all(np.isfinite(center)) and diagonal.max() > 0.0):
        raise Rejected("what the rest of the network reads is not bounded")
    scale = 2.0 ** -np.rint(0.5 * np.log2(np.maximum(diagonal, 2.0**-80 * diagonal.max())))
    scaled = scale[:, None] * (center + center.T) / 2.0 * scale
    try:
        root = np.linalg.cholesky(scaled + RAISED * np.eye(n)) / scale[:, None]
    except np.linalg.LinAlgError:
        raise Rejected("what the rest of the network reads is not bounded by a factor") from None
    factor = arb_mat(n, n, root.ravel().tolist())
    rest = np.array((factor * factor.transpose() - gram).entries(), dtype=object).reshape(n, n)
    rest = (rest + rest.T) / 2  # what is enclosed is symmetric
    for i, row in enumerate(rest):
        outside = sum((abs(x) * scale[j] for j, x in enumerate(row) if j != i), arb(0))
        if not row[i] * scale[i] >= outside:  # the decision
            raise Rejected("the bound of what the rest of the network reads is not proved")
    return np.asarray(root)


def _balls(values: Array) -> Array:
    result = np.empty(len(values), dtype=object)
    result[:] = [arb(v) for v in values.tolist()]
    return result


def _entries(matrix: acb_mat) -> Array:
    result: Array = np.empty(matrix.nrows() * matrix.ncols(), dtype=object)
    result[:] = matrix.entries()
    return result.reshape(matrix.nrows(), matrix.ncols())


_conjugated = np.frompyfunc(lambda x: x.conjugate(), 1, 1)
