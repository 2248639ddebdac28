"""Solve the diagonal-multiplier program of a chain: scale, start, follow the path, put all back, check."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lipmodel.backends.native.chain import (
    SHARES,
    Array,
    Chain,
    ChainProblem,
    ChainSolution,
    Exponents,
    Scaling,
    Status,
    dense_weights,
    exponents,
    relative_gap,
    scaled_chain,
    shift,
    split,
    unscale,
    widened_slopes,
)
from lipmodel.backends.native.descent import THOROUGH, improvements
from lipmodel.backends.native.elimination import chain_barrier, elimination_order
from lipmodel.backends.native.follower import Outcome, Progress
from lipmodel.backends.native.memory import memory_limit
from lipmodel.backends.native.portfolio import solved_chain
from lipmodel.backends.native.recursion import Recursion
from lipmodel.backends.native.start import Start, closed_form


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
    runs on one thread. Never raises on a valid problem: at worst the closed form of the start comes back. Where not all
    neurons are alive (`chain.all_alive`) no optimum is attained, and the value may be infinite.
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
    weights, start, widened = _started(problem)
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
            solution=lambda: _restored(problem, weights, start, best),
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
        return _restored(problem, weights, start, outcome)
    except KeyboardInterrupt:
        return _restored(problem, weights, start, replace(outcome, status="interrupted"))


def _started(problem: ChainProblem) -> tuple[list[Array], Start, bool]:
    """Dense weights, the closed form from which to start, and whether slopes were widened."""
    weights = dense_weights(problem)
    slopes = [widened_slopes(low, high) for low, high in zip(problem.alpha, problem.beta, strict=True)]
    alpha, beta = [low for low, _, _ in slopes], [high for _, high, _ in slopes]
    start = closed_form(weights, alpha, beta, problem.output, tied=problem.input_norm == "2")
    return weights, start, any(narrow for _, _, narrow in slopes)


def chain_descent(problem: ChainProblem) -> Iterator[ChainSolution]:
    """The closed form of the start, then ever better points by descent alone, on the boundary of the feasible set."""
    _, start, _ = _started(problem)
    if start.y is None:
        return
    recursion = Recursion(start.chain)
    x = recursion.variables(start.y)
    for y in itertools.chain([start.y], () if x is None else improvements(recursion, x, care=THOROUGH)):
        yield _solution(problem, *_unscaled(start, y), 0.0, "inaccurate", 0)


def _unscaled(start: Start, y: Array) -> tuple[list[Array], Array]:
    """t and eta of the original signals."""
    eta = np.broadcast_to(y[start.chain.neurons :], start.scaling.signals[0].shape)
    return unscale(start.scaling, split(start.chain, y)[0], eta)


def _power(start: Start) -> int:
    """log2 of the objective's unit in the start's scaling."""
    level = 0 if start.chain.tied else 2 * int(start.scaling.signals[0].max())
    return 2 * start.scaling.output - level


def _restored(problem: ChainProblem, weights: list[Array], start: Start, outcome: Outcome) -> ChainSolution:
    """The outcome in the original signals, raised or moved towards the start as little as makes it feasible there."""
    assert start.inside is not None
    lower = float(shift(np.array(outcome.lower), _power(start)))
    status: Status = outcome.status
    for share in SHARES:
        if share > 1e-7:
            status = "inaccurate" if status == "optimal" else status
        for point in (_lifted(start.chain, outcome.y, share), (1 - share) * outcome.y + share * start.inside):
            t, eta = _unscaled(start, point)
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
    """Block Cholesky of the whole inequality, under a diagonal congruence by powers of two."""
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
