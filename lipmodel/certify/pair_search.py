"""From a solver's point of a model with pair terms to a proved bound: mend the couplings, find the ends, prove.

Nothing here is trusted: whether couplings hold, and with them the inequality, is decided by `pairs` and the kernel.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg as sla

from lipmodel.certify.extract import extract
from lipmodel.certify.kernel import ExactSymmetric, System, bound_squared, decides_positive_semidefinite, dyadic
from lipmodel.certify.lmi import Multipliers
from lipmodel.certify.pairs import BELOW, FLIP, TRIANGLE, Coupling, coupled_lmi, coupling_fault, is_valid
from lipmodel.certify.repair import _finish as least_ends
from lipmodel.certify.roots import sqrt_up
from lipmodel.elimination import Reduced
from lipmodel.model.qc import PairTerms
from lipmodel.model.terms import Factored

if TYPE_CHECKING:
    from lipmodel.model.model import Model
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.spec import Norm

Array = np.ndarray[Any, np.dtype[np.float64]]

INWARD = (0.0, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2)
"""Shares of strictly feasible multipliers that are added where a solver's own leave the inequality."""
ROWS, COLUMNS = (np.array(index) for index in zip(*TRIANGLE, strict=True))
LOWER = tuple(np.array(index) for index in zip(*BELOW, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoupledMultipliers:
    """Multipliers and valid couplings, and the bound they were proved to give (inf: nothing), rounded up."""

    multipliers: Multipliers
    couplings: tuple[Coupling, ...]
    bound: float = math.inf


def read_point(model: Model, system: IncrementSystem, values: Mapping[Any, Array]) -> CoupledMultipliers:
    """The multipliers of a model's point, and its couplings, mended until they are valid."""
    multipliers, _ = extract(model, system, values)
    number = {a.signal: k for k, a in enumerate(system.activations)}
    found: dict[tuple[tuple[int, int], tuple[int, int]], Coupling] = {}
    for form in model.matrix_constraints:
        for term in form.terms:
            subject = None if term.rule is None else term.rule.subject
            if not isinstance(term, Factored) or not isinstance(subject, PairTerms):
                continue
            stated, used = subject.weight.value(values), -term.weight.value(values)
            # the term may have been multiplied by a number, and its parts with it
            size = float(np.dot(stated, stated))
            factor = float(np.dot(stated, used)) / size if size > 0.0 else 0.0
            parts = [factor * e.value(values).reshape(-1, 6) for e in (subject.plain, subject.flipped)]
            entries = (used / np.where(np.tile(ROWS == COLUMNS, len(subject.couples)), 1.0, 2.0)).reshape(-1, 10)
            for couple, entry, plain, flipped in zip(subject.couples, entries, *parts, strict=True):
                if any(a.signal not in number for a, _ in couple):
                    continue
                first, second = ((number[a.signal], i) for a, i in couple)
                c = mended(first, second, entry, plain, flipped)
                if c is not None:
                    found[c.first, c.second] = c
    return CoupledMultipliers(multipliers=multipliers, couplings=tuple(found.values()))


def mended(
    first: tuple[int, int], second: tuple[int, int], entries: Array, plain: Array, flipped: Array
) -> Coupling | None:
    """The valid coupling next to given numbers: the diagonal of M is raised until both parts are semidefinite.

    None where the numbers are of no use, and where M is next to nothing.
    """
    parts = [np.maximum(part, 0.0) for part in (plain, flipped)]
    if not all(np.all(np.isfinite(part)) for part in (entries, *parts)):
        return None
    matrix, hidden = _square(TRIANGLE, entries), [_square(BELOW, part) for part in parts]
    if first > second:
        turn = [2, 3, 0, 1]
        first, second, matrix = second, first, matrix[np.ix_(turn, turn)]
        hidden = [part[np.ix_(turn, turn)] for part in hidden]
    signs = np.array(FLIP, dtype=np.float64)
    rests = matrix - hidden[0], matrix * np.outer(signs, signs) - hidden[1]
    level = float(np.abs(matrix).max())
    if level < 1e-280:
        return None
    size = np.maximum(np.diag(matrix), 1e-12 * level)
    root = np.sqrt(size)
    least = min(float(np.linalg.eigvalsh(rest / np.outer(root, root))[0]) for rest in rests)
    raised = max(0.0, -least) * (1.0 + 1e-9) + 1e-15
    while raised < 1e14:
        full = matrix + np.diag(raised * size)
        c = Coupling(
            first=first,
            second=second,
            matrix=tuple(full[ROWS, COLUMNS].tolist()),
            plain=tuple(hidden[0][LOWER].tolist()),
            flipped=tuple(hidden[1][LOWER].tolist()),
        )
        if is_valid(c):
            return c
        raised *= 4.0
    return None


def _square(places: Sequence[tuple[int, int]], entries: Array) -> Array:
    """The symmetric matrix of order four with these entries."""
    matrix = np.zeros((4, 4))
    for (i, j), v in zip(places, entries, strict=True):
        matrix[i, j] = matrix[j, i] = v
    return matrix


def prove_coupled(
    exact: System,
    norms: tuple[Norm, Norm],
    point: CoupledMultipliers,
    inner: Multipliers | None,
    deadline: float = math.inf,
) -> CoupledMultipliers | None:
    """The best bound on L_{p->q} that can be proved from a point; None if there is none, or a coupling does not hold.

    inner: strictly feasible multipliers, a small share of which is added where the point leaves the inequality. The
    ends (g, s) are found anew, by the Schur complement of the hidden signals.
    """
    if coupling_fault(exact, point.couplings) is not None or not all(map(is_valid, point.couplings)):
        return None
    best: CoupledMultipliers | None = None
    given = [np.where(np.isfinite(t) & (t > 0.0), t, 0.0) for t in point.multipliers.t]
    for share in INWARD:
        if share > 0.0 and inner is None:
            break
        t = tuple(given if inner is None else [a + share * b for a, b in zip(given, inner.t, strict=True)])
        found = _proved(exact, norms, replace(point.multipliers, t=t), point.couplings)
        if found is not None and (best is None or found.bound < best.bound):
            best = found
        close = best is not None and best.bound <= point.multipliers.claim(*norms) * (1.0 + 1e-7)
        if close or time.monotonic() > deadline:
            break
    return best


def _proved(
    exact: System, norms: tuple[Norm, Norm], m: Multipliers, couplings: tuple[Coupling, ...]
) -> CoupledMultipliers | None:
    """The bound of given t and couplings, with the least ends, widened until the exact decision accepts them."""
    slack = len(exact.sizes)
    bare = coupled_lmi(exact, replace(m, g=np.zeros_like(m.g), s=np.zeros_like(m.s)), couplings)
    try:
        ends = _ends(to_float(bare), exact.sizes[0], len(m.s))
    except OverflowError:
        return None
    if ends is None:
        return None
    reduced = Reduced(t=m.t, ends=ends, inputs=exact.sizes[0])
    with np.errstate(all="ignore"):
        trials = sorted(least_ends(reduced, *norms, _positive(m.g), _positive(m.s), "pairs"), key=lambda x: x.estimate)
    for trial in trials[:1]:
        delta = 1e-12
        while delta < 0.1:
            wide = Multipliers(t=m.t, g=trial.g * (1.0 + delta), s=trial.s * (1.0 + delta))
            whole = replace(bare, diagonal=(dyadic(wide.g), *bare.diagonal[1:slack], dyadic(wide.s)))
            if decides_positive_semidefinite(whole):
                bound = sqrt_up(bound_squared(wide, *norms))
                return CoupledMultipliers(multipliers=wide, couplings=couplings, bound=bound)
            delta *= 8.0
    return None


def _positive(x: Array) -> Array:
    """Mended ends, as a direction to search in."""
    x = np.where(np.isfinite(x) & (x > 0.0), x, 0.0)
    return np.maximum(x, 1e-9 * x.mean()) if np.any(x) else np.ones_like(x)


def to_float(matrix: ExactSymmetric) -> Array:
    """The matrix in floating point, its radii left out."""
    sizes = [len(values) for values, _ in matrix.diagonal]
    at = np.concatenate([[0], np.cumsum(sizes)])
    full = np.zeros((at[-1], at[-1]))
    for (i, j), block in matrix.blocks.items():
        up, down = 1 << max(0, -block.exponent), 1 << max(0, block.exponent)
        part = np.array([[v * up / down for v in row] for row in block.mantissa])
        full[at[i] : at[i + 1], at[j] : at[j + 1]] = part
        full[at[j] : at[j + 1], at[i] : at[i + 1]] = part.T
    own = [v * (1 << max(0, -e)) / (1 << max(0, e)) for values, e in matrix.diagonal for v in values]
    full[np.diag_indices(len(own))] += own
    return full


def _ends(matrix: Array, inputs: int, outputs: int) -> Array | None:
    """N of diag(g, s) >= N: the Schur complement of the hidden signals; None where their block is not definite."""
    hidden = slice(inputs, len(matrix) - outputs)
    ends = np.r_[np.arange(inputs), np.arange(len(matrix) - outputs, len(matrix))]
    own, cross = matrix[hidden, hidden], matrix[hidden, ends]
    rest = -matrix[np.ix_(ends, ends)]
    if not len(own):
        return np.asarray(rest)
    diagonal = np.diag(own)
    if not np.all(diagonal > 0.0):
        return None
    root = 1.0 / np.sqrt(diagonal)
    try:
        factor = sla.cholesky(own * np.outer(root, root) - 1e-13 * np.eye(len(own)), lower=True)
    except (np.linalg.LinAlgError, ValueError):
        return None
    half = sla.solve_triangular(factor, root[:, None] * cross, lower=True)
    return np.asarray(rest + half.T @ half)


def moments(exact: System, m: CoupledMultipliers, widened: float) -> Array:
    """(P + widened ends)^-1, scaled to be a covariance: which increments (x, w) come closest to violating P >= 0."""
    wide = Multipliers(t=m.multipliers.t, g=m.multipliers.g * (1.0 + widened), s=m.multipliers.s * (1.0 + widened))
    full = to_float(coupled_lmi(exact, wide, m.couplings))
    keep = len(full) - len(wide.s)
    return np.asarray(np.linalg.pinv(full, hermitian=True)[:keep, :keep])
