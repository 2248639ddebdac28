"""A backend for lipmodel in one file: a primal-dual interior-point method for semidefinite programs, in NumPy.

It follows the central path in the HKM direction (Helmberg, Rendl, Vanderbei & Wolkowicz 1996, SIAM J. Optim. 6:342) of

    minimise <C, X>  subject to  <A_i, X> = b_i,  X positive semidefinite, in blocks

which is the standard form of lipmodel's programs: the multipliers y of its equations are minus the model's variables.
"""

from __future__ import annotations

import time

import numpy as np
import scipy.linalg as sla

from lipmodel.backends.base import BackendOption, Capabilities, Installed
from lipmodel.backends.conic import refusal
from lipmodel.backends.running import Answer, solve_conic
from lipmodel.backends.settings import MAX_ITERATIONS


class HKM:
    """What lipmodel asks of a backend: a name, its abilities, and `available`, `refuses` and `solve`."""

    name = "hkm"
    description = "primal-dual interior point (NumPy), small models"
    capabilities = Capabilities(
        cones=frozenset({"psd", "nonnegative"}),  # whatever else a model has is reformulated first
        form="standard",
        max_order=40,
        on_request=True,
        precision=1e-6,
        licence="Apache-2.0",
        options=(MAX_ITERATIONS, BackendOption(name="accuracy", default=1e-9, help="relative gap to stop at")),
    )

    def available(self):
        return Installed(version="1.0")

    def refuses(self, model):
        return refusal(model, self.capabilities)

    def solve(self, model, options):
        return solve_conic(self, model, options, run, known={})


def run(work, settings):
    """work: the program to solve, and the seconds left; settings: checked options. Returns y and both objectives."""
    blocks, b = data(work.standard), work.standard.rhs
    deadline = np.inf if work.time_left is None else time.monotonic() + work.time_left
    limit, ended, iteration = settings.max_iterations or 80, "iteration-limit", 0
    best = (np.inf, np.zeros(len(b)), 0.0)
    with np.errstate(all="ignore"):
        for iteration, (error, y, primal) in enumerate(follow(blocks, b)):
            best = min(best, (error, y, primal), key=lambda found: found[0])
            if error <= settings.own["accuracy"]:
                ended = "optimal"
            elif not error <= 1e6 * best[0]:
                ended = "inaccurate"  # it diverges: the best point so far is the answer
            elif time.monotonic() > deadline:
                ended = "time-limit"
            elif iteration < limit:
                continue
            break
        else:
            ended = "inaccurate"  # the numbers have run out
    error, y, primal = best
    if error > 1e-2 and ended in ("optimal", "inaccurate"):
        ended = "failed"  # nothing near a solution was ever seen: there is none, as a rule
    return Answer(x=-y, termination=ended, objective=-float(b @ y), lower=-primal, iterations=iteration)


def follow(blocks, b):
    """(error, y, primal objective) of one iterate after the other, until a matrix can no longer be factorised."""
    size = 100.0 * max(1.0, np.abs(b).max(), *(np.abs(c).max(initial=0.0) for c, _ in blocks))
    x, s = ([size * np.eye(len(c)) for c, _ in blocks] for _ in range(2))
    y, total = np.zeros(len(b)), sum(len(c) for c, _ in blocks)
    while True:
        missing = b - sum(np.tensordot(a, xk) for (_, a), xk in zip(blocks, x, strict=True))
        slack = [c - np.tensordot(y, a, 1) - sk for (c, a), sk in zip(blocks, s, strict=True)]
        gap = product(x, s)
        primal, dual = product([c for c, _ in blocks], x), float(b @ y)
        off = np.linalg.norm(missing) / (1.0 + np.linalg.norm(b)) + max(np.abs(r).max() for r in slack) / size
        yield max(gap, abs(primal - dual)) / (1e-3 + abs(primal) + abs(dual)) + off, y.copy(), primal
        try:
            inverse = [np.linalg.inv(sk) for sk in s]
            schur = 1e-300 * np.eye(len(b))
            for (_, a), xk, si in zip(blocks, x, inverse, strict=True):
                schur += a.reshape(len(b), -1) @ (xk @ a @ si).reshape(len(b), -1).T
            parts = (blocks, x, inverse, missing, slack, 0.5 * (schur + schur.T))
            _, dx, ds = direction(0.0, *parts)
            a1, a2 = step(x, dx), step(s, ds)
            left = product(moved(x, dx, a1), moved(s, ds, a2))
            dy, dx, ds = direction(min(1.0, max(left / gap, 0.0) ** 2 + 1e-3) * gap / total, *parts)
            a1, a2 = 0.95 * step(x, dx), 0.95 * step(s, ds)
        except (np.linalg.LinAlgError, ValueError):
            return
        x, s, y = moved(x, dx, a1), moved(s, ds, a2), y + a2 * dy


def direction(centre, blocks, x, inverse, missing, slack, schur):
    """The HKM direction (dy, dX, dS) towards X S = centre I."""
    target = [centre * si - xk for xk, si in zip(x, inverse, strict=True)]
    pull = zip(blocks, x, inverse, slack, target, strict=True)
    dy = np.linalg.solve(schur, missing + sum(np.tensordot(a, xk @ r @ si - t) for (_, a), xk, si, r, t in pull))
    ds = [r - np.tensordot(dy, a, 1) for (_, a), r in zip(blocks, slack, strict=True)]
    dx = [t - xk @ d @ si for xk, si, d, t in zip(x, inverse, ds, target, strict=True)]
    return dy, [0.5 * (d + d.T) for d in dx], ds


def moved(points, directions, length):
    return [point + length * d for point, d in zip(points, directions, strict=True)]


def product(left, right):
    return sum(float(np.tensordot(a, b)) for a, b in zip(left, right, strict=True))


def step(points, directions):
    """How far one may go, at most 1/0.95, before a matrix is no longer positive definite."""
    least = 0.0
    for point, direction in zip(points, directions, strict=True):
        root = sla.cholesky(point, lower=True)
        half = sla.solve_triangular(root, direction, lower=True)
        least = min(least, float(np.linalg.eigvalsh(sla.solve_triangular(root, half.T, lower=True))[0]))
    return 1.0 / max(0.95, -least)


def data(standard):
    """(C, A) of every block, shapes (m, m) and (variables, m, m); a row of the linear part is a block of order one."""
    count = len(standard.rhs)
    blocks = []
    for block in standard.psd:
        whole = np.zeros((count + 1, block.order, block.order))
        # entries of the lower triangle (row >= col) of A_var, or of C where var is -1: that is, of the last one here
        np.add.at(whole, (block.var, block.row, block.col), block.value)
        whole += np.tril(whole, -1).transpose(0, 2, 1)
        blocks.append((whole[-1], whole[:-1]))
    for row, cost in zip(standard.columns.toarray().T, standard.cost, strict=True):
        blocks.append((np.full((1, 1), cost), row[:, None, None]))
    return blocks
