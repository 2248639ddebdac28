"""Solve the diagonal-multiplier program of a chain: prune, scale, start, follow the path, put all back, check."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lipmodel.backends.native.chain import (
    ABSENT,
    SHARES,
    Alive,
    Array,
    Chain,
    ChainProblem,
    ChainSolution,
    Exponents,
    Mask,
    Scaling,
    Status,
    alive_neurons,
    dense_weights,
    exponents,
    relative_gap,
    scaled_chain,
    shift,
    split,
    unscale,
    widened_slopes,
)
from lipmodel.backends.native.elimination import chain_barrier, elimination_order
from lipmodel.backends.native.follower import Outcome, Progress
from lipmodel.backends.native.memory import memory_limit
from lipmodel.backends.native.portfolio import solved_chain
from lipmodel.backends.native.start import Start, closed_form

NEGLIGIBLE = 40  # binary orders by which what is useless stays below what matters
FIRM = 60  # binary orders by which a neuron that no input reaches is held above what it feeds
NOTHING = -120  # binary exponent of eta for a network that is constant


def solve_chain(
    problem: ChainProblem,
    *,
    tol: float = 1e-6,
    time_limit: float | None = None,
    max_iterations: int = 200,
    memory: int | None = None,
    on_iterate: Callable[[Progress], bool | None] | None = None,
) -> ChainSolution:
    """The best strictly feasible multipliers of a chain, to a relative gap `tol` on sqrt(value).

    time_limit in seconds. memory: bytes, by default a share of what is available; where the path follower would take
    more, solvers that need less work alone. on_iterate is called once at the start, whenever a better point is known
    and once per iteration, and may return False to stop. KeyboardInterrupt is caught and returns the best point. BLAS
    runs on one thread. Never raises on a valid problem: at worst the closed form of the start comes back. Neurons that
    no input reaches, or that do not reach the output, get harmless multipliers.
    """
    began = time.monotonic()
    deadline = math.inf if time_limit is None else began + time_limit
    with single_thread(), np.errstate(all="ignore"):
        return _solve(problem, tol, began, deadline, max_iterations, memory_limit(memory), on_iterate)


@functools.cache
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def single_thread() -> Any:
    """Context: BLAS on one thread."""
    return _thread_pools().limit(limits=1, user_api="blas")


def _solve(
    problem: ChainProblem,
    tol: float,
    began: float,
    deadline: float,
    max_iterations: int,
    memory: int,
    on_iterate: Callable[[Progress], bool | None] | None,
) -> ChainSolution:
    tied = problem.input_norm == "2"
    weights = dense_weights(problem)
    alive = alive_neurons(problem, weights)
    keep = alive.both
    if not keep[0].any():
        t, eta = _embed(problem, weights, alive, None, np.zeros(0))
        if not _feasible(problem, weights, t, eta):
            return _solution(problem, *_infinite(problem), 0.0, "inaccurate", 0)
        return _solution(problem, t, eta, 0.0, "optimal", 0)
    slopes = [
        widened_slopes(low[mask], high[mask])
        for low, high, mask in zip(problem.alpha, problem.beta, keep[1:], strict=True)
    ]
    alpha, beta = [low for low, _, _ in slopes], [high for _, high, _ in slopes]
    widened = any(narrow for _, _, narrow in slopes)
    kept = [w[np.ix_(rows, columns)] for w, rows, columns in zip(weights, keep[1:], keep[:-1], strict=True)]
    start = closed_form(kept, alpha, beta, problem.output[:, keep[-1]], tied=tied)
    if start.y is None:
        return _solution(problem, *_infinite(problem), 0.0, "inaccurate", 0)

    def report(best: Outcome) -> bool:
        if on_iterate is None:
            return True
        if widened:
            best = replace(best, lower=0.0)
        value, power = float(cost @ best.y), _power(start)
        progress = Progress(
            iteration=best.iterations,
            value=float(shift(np.array(value), power)),
            lower=float(shift(np.array(best.lower), power)),
            gap=relative_gap(best.lower, value, root=True),
            elapsed=time.monotonic() - began,
            solution=lambda: _restored(problem, weights, alive, start, best),
        )
        return on_iterate(progress) is not False

    cost = chain_barrier(start.chain).cost
    outcome = solved_chain(
        start.chain,
        start.y,
        tol=tol,
        deadline=deadline,
        max_iterations=max_iterations,
        memory=memory,
        report=report,
    )
    if widened:
        outcome = replace(outcome, lower=0.0, status="inaccurate" if outcome.status == "optimal" else outcome.status)
    try:
        return _restored(problem, weights, alive, start, outcome)
    except KeyboardInterrupt:
        return _restored(problem, weights, alive, start, replace(outcome, status="interrupted"))


def _power(start: Start) -> int:
    """log2 of the objective's unit in the start's scaling."""
    level = 0 if start.chain.tied else 2 * int(start.scaling.signals[0].max())
    return 2 * start.scaling.output - level


def _restored(
    problem: ChainProblem, weights: list[Array], alive: Alive, start: Start, outcome: Outcome
) -> ChainSolution:
    """The outcome in the original signals, raised or moved towards the start as little as makes it feasible there."""
    assert start.inside is not None
    lower = float(shift(np.array(outcome.lower), _power(start)))
    status: Status = outcome.status
    for share in SHARES:
        if share > 1e-7:
            status = "inaccurate" if status == "optimal" else status
        for point in (_lifted(start.chain, outcome.y, share), (1 - share) * outcome.y + share * start.inside):
            eta = np.broadcast_to(point[start.chain.neurons :], start.scaling.signals[0].shape)
            t, eta = unscale(start.scaling, split(start.chain, point)[0], eta)
            t, eta = _embed(problem, weights, alive, t, eta)
            if _feasible(problem, weights, t, eta):
                return _solution(problem, t, eta, lower, status, outcome.iterations)
    return _solution(problem, *_infinite(problem), lower, "inaccurate", outcome.iterations)


def _lifted(chain: Chain, y: Array, share: float) -> Array:
    """y with eta raised by a share of it, and every layer by less than the one before it: no pivot is near zero."""
    depth = len(chain.spans) + 1
    lifts = [np.full(span.stop - span.start, 1 - k / depth) for k, span in enumerate(chain.spans, start=1)]
    return np.asarray(y * (1 + share * np.concatenate([*lifts, np.ones(chain.cost.size)])))


def _solution(
    problem: ChainProblem, t: Sequence[Array], eta: Array, lower: float, status: Status, iterations: int
) -> ChainSolution:
    value = float(eta.max() if problem.input_norm == "2" else eta.sum())
    return ChainSolution(
        t=tuple(t), eta=eta, value=value, lower=min(lower, value), status=status, iterations=iterations
    )


def _infinite(problem: ChainProblem) -> tuple[list[Array], Array]:
    """What comes back where no feasible point could be computed."""
    return [np.ones(low.size) for low in problem.alpha], np.full(problem.weights[0].shape[1], np.inf)


def _feasible(problem: ChainProblem, weights: list[Array], t: Sequence[Array], eta: Array) -> bool:
    """Block Cholesky of the whole inequality, dead neurons included, under a diagonal congruence by powers of two."""
    if not all(np.all(np.isfinite(part)) and np.all(part > 0) for part in (*t, eta)):
        return False
    tied = problem.input_norm == "2"
    signals: list[Exponents] = [-(exponents(part) // 2) for part in (eta, *t)]
    own = [exponents(np.maximum(np.abs(a), np.abs(b))) for a, b in zip(problem.alpha, problem.beta, strict=True)]
    scaling = Scaling(
        signals=tuple(signals), inputs=tuple(s - o for s, o in zip(signals[1:], own, strict=True)), output=0
    )
    chain = scaled_chain(weights, problem.alpha, problem.beta, problem.output, scaling, tied=tied, reduce=False)
    parts = [shift(tk, 2 * s) for tk, s in zip(t, signals[1:], strict=True)]
    parts.append(shift(eta, 2 * signals[0])[: 1 if tied else None])
    return elimination_order(chain).factorize(chain, np.concatenate(parts)) is not None


# ---------------------------------------------------------------------------------------------------------------------
# Dead neurons: their multipliers, from estimates of the diagonal of the matrix in binary exponents


def _embed(
    problem: ChainProblem, weights: list[Array], alive: Alive, t: Sequence[Array] | None, eta: Array
) -> tuple[list[Array], Array]:
    """Multipliers of all neurons from those of the living ones (None: there are none).

    A neuron that does not reach the output only costs, at most (beta - alpha)^2 t / 2 W_j'W_j on its inputs: t is
    negligible. A neuron that no input reaches is zero, and any t that outweighs what it feeds will do: t is large.
    """
    tied = problem.input_norm == "2"
    keep = alive.both
    levels: list[Exponents] = []  # binary exponents of eta, t_1, .., t_L
    for mask in keep:
        levels.append(np.zeros(mask.size, dtype=np.int64))
    if t is None:
        levels[0][:] = NOTHING
    elif tied:
        levels[0][:] = int(exponents(eta[:1])[0])
    else:
        levels[0][keep[0]] = exponents(eta)
        levels[0][~keep[0]] = int(levels[0][keep[0]].max()) - NEGLIGIBLE - int(keep[0].size).bit_length()
    for k, weight in enumerate(weights, start=1):
        if t is not None:
            levels[k][keep[k]] = exponents(t[k - 1])
        useless = alive.reached[k] & ~alive.useful[k]
        if useless.any():
            room = np.where(keep[k - 1] | (k == 1), NEGLIGIBLE, 8) + weight.shape[0].bit_length()
            entries = exponents(weight[useless])
            steep = 2 * _steepness(problem, k)[useless]
            usable = (entries != ABSENT) & alive.reached[k - 1]
            bound = np.where(usable, (levels[k - 1] - room)[None, :] - 2 * entries, 1 << 40).min(axis=1)
            levels[k][useless] = bound - steep
    for k in range(len(weights), 0, -1):
        unreached = ~alive.reached[k]
        if not unreached.any():
            continue
        if k == len(weights):
            entries = 2 * exponents(problem.output[:, unreached])
            firm = np.full(entries.shape[0], FIRM)
        else:
            fed = levels[k + 1] + 2 * _steepness(problem, k + 1)
            entries = 2 * exponents(weights[k][:, unreached]) + fed[:, None]
            firm = np.where(alive.reached[k + 1], FIRM, 8)
        fan = entries.shape[0].bit_length()
        need = (entries + firm[:, None] + fan).max(axis=0)
        levels[k][unreached] = np.where(need < ABSENT // 2, 0, need)
    full = [shift(np.ones(level.size), level) for level in levels]
    if t is not None:
        full[0] = np.full(keep[0].size, eta[0]) if tied else _placed(full[0], keep[0], eta)
        full[1:] = [_placed(values, mask, tk) for values, mask, tk in zip(full[1:], keep[1:], t, strict=True)]
    return full[1:], full[0]


def _placed(values: Array, mask: Mask, living: Array) -> Array:
    values[mask] = living
    return values


def _steepness(problem: ChainProblem, layer: int) -> Exponents:
    """Binary exponent of the largest slope of every neuron of a layer (1..L)."""
    return exponents(np.maximum(np.abs(problem.alpha[layer - 1]), np.abs(problem.beta[layer - 1])))
