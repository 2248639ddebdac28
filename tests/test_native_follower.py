"""The path follower of the native backend by itself, from starts near and far, and the dense algebra it stands on."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np
import pytest

from lipmodel.backends.native import barrier
from lipmodel.backends.native.chain import Chain
from lipmodel.backends.native.elimination import ChainBarrier, chain_barrier
from lipmodel.backends.native.follower import Outcome, follow_path
from lipmodel.backends.native.start import closed_form

SLOPES = {"relu": (0.0, 1.0), "abs": (-1.0, 1.0), "gelu": (-0.13, 1.13), "steep": (0.5, 3.0)}


def started(
    dims: list[int], slopes: tuple[float, float], *, tied: bool = True, seed: int = 0
) -> tuple[ChainBarrier, np.ndarray]:
    """The barrier of a Gaussian chain, and a point inside: the closed form, raised."""
    rng = np.random.default_rng(seed)
    *weights, output = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in itertools.pairwise(dims)]
    alpha, beta = ([np.full(w.shape[0], slope) for w in weights] for slope in slopes)
    start = closed_form(weights, alpha, beta, output, tied=tied)
    assert start.y is not None
    problem = chain_barrier(start.chain)
    y = 1.3 * start.y
    y[start.chain.neurons :] *= 1.03
    assert problem.factorize(y) is not None
    return problem, y


def followed(problem: ChainBarrier, y: np.ndarray, **options: Any) -> Outcome:
    limits: dict[str, Any] = {"tol": 1e-6, "deadline": math.inf, "max_iterations": 200, "report": lambda *_: True}
    with np.errstate(all="ignore"):
        return follow_path(problem, y, **(limits | options))


def value(problem: ChainBarrier, outcome: Outcome) -> float:
    """The objective of a result, which must be feasible."""
    assert problem.factorize(outcome.y) is not None
    found = float(problem.cost @ outcome.y)
    assert outcome.lower <= found
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("dims", [[3, 5, 2], [6, 9, 7, 8, 3], [2, *[8] * 12, 2], [4, 60, 2]], ids=str)
def test_the_gap_closes_within_few_hessians_and_every_report_is_a_bound(dims, slopes, tied):
    problem, y = started(dims, SLOPES[slopes], tied=tied)
    seen: list[tuple[int, float, float, float]] = []

    def report(iteration: int, best: np.ndarray, lower: float, gap: float) -> bool:
        assert problem.factorize(best) is not None
        seen.append((iteration, float(problem.cost @ best), lower, gap))
        return True

    found = followed(problem, y, report=report)
    best = value(problem, found)
    assert found.status == "optimal"
    assert 1 - math.sqrt(found.lower / best) <= 1e-6
    assert found.iterations <= 20
    assert [step[0] for step in seen] == list(range(1, found.iterations + 1))
    for before, after in itertools.pairwise(seen):
        assert after[1] <= before[1]
        assert after[2] >= before[2]
    assert seen[-1][3] <= 1e-6 < seen[0][3]
    exact = value(problem, followed(problem, y, tol=1e-9))
    assert all(lower <= exact * (1 + 1e-12) and exact <= upper * (1 + 3e-9) for _, upper, lower, _ in seen)


@pytest.mark.parametrize("seed", range(6))
def test_any_strictly_feasible_point_will_do(seed):
    problem, y = started([5, 8, 9, 7, 3], SLOPES["relu"], seed=seed)
    best = value(problem, followed(problem, y))
    # the feasible set is convex, and a cone but for the constant
    middle = (y / 1.29 + 1e3 * np.append(y[:-1], 1e5 * y[-1])) / 2
    for start in (1e4 * y, y / 1.29, np.append(y[:-1], 1e8 * y[-1]), middle):
        for fade in (False, True):
            found = followed(problem, start, fade=fade)
            assert found.status == "optimal"
            assert value(problem, found) == pytest.approx(best, rel=3e-6)


def test_forty_layers_do_not_take_forty_hessians():
    problem, y = started([10] * 42, SLOPES["relu"])
    found = followed(problem, y)
    assert found.status == "optimal"
    assert value(problem, found) < 0.01 * float(problem.cost @ y)
    assert found.iterations <= 30


@pytest.mark.parametrize("width", [1e-5, 1e-4, 1e-3])
def test_rounding_does_not_lead_astray(width):
    """With narrow slopes the Hessian is nearly singular, and differences of gradients are mostly rounding."""
    problem, y = started([3, 4, 4, 2], (0.5 * (1 - width / 2), 0.5 * (1 + width / 2)), seed=21)
    found = followed(problem, y)
    best = value(problem, found)
    assert found.status in ("optimal", "inaccurate", "iteration-limit")
    assert best * (1 - 1e-3) < found.lower


def test_limits_give_the_best_point_so_far():
    problem, y = started([5, 9, 9, 3], SLOPES["gelu"], tied=False)
    late = followed(problem, y, deadline=time.monotonic() - 1)
    assert (late.status, late.iterations, late.lower) == ("time-limit", 0, 0.0)
    np.testing.assert_array_equal(late.y, y)
    limited = followed(problem, y, max_iterations=2)
    assert (limited.status, limited.iterations) == ("iteration-limit", 2)
    stopped = followed(problem, y, report=lambda iteration, *_: iteration < 3)
    assert (stopped.status, stopped.iterations) == ("interrupted", 3)

    def interrupt(*_: Any) -> bool:
        raise KeyboardInterrupt

    assert followed(problem, y, report=interrupt).status == "interrupted"
    best = value(problem, followed(problem, y))
    assert best <= value(problem, stopped) <= value(problem, limited) < float(problem.cost @ y)
    early = followed(problem, y, target=1.5 * best)
    assert early.status == "optimal"
    assert best < value(problem, early) < 1.5 * best
    known = followed(problem, y, lower=best * (1 - 1e-4), tol=1e-3)
    assert known.status == "optimal"
    assert known.lower >= best * (1 - 1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Dense algebra, in pieces that fit in cache


def test_of_a_hessian_only_the_upper_triangle_counts():
    rng = np.random.default_rng(1)
    size = 2 * barrier.PANEL + 37
    root = rng.normal(size=(size, size + 5)) * 10 ** rng.uniform(-3, 3, (size, 1))
    matrix = root @ root.T
    right = rng.normal(size=size)
    expected = np.linalg.solve(matrix, right)
    metric = barrier.factor_metric(np.triu(matrix) + np.tril(np.full((size, size), np.nan), -1))
    assert metric is not None
    scale = np.sqrt(np.diag(matrix))
    np.testing.assert_allclose(metric.refined(right) * scale, expected * scale, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(metric.apply(expected) / scale, right / scale, atol=1e-9)


def test_a_matrix_is_mirrored_from_its_upper_triangle():
    for size in (1, barrier.PANEL, barrier.PANEL + 1, 3 * barrier.PANEL - 5):
        matrix = np.random.default_rng(size).normal(size=(size, size))
        expected = np.triu(matrix) + np.triu(matrix, 1).T
        barrier.mirror(matrix)
        np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("alpha", [0.0, -0.3])
@pytest.mark.parametrize("beta", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_products_of_two_pairs_of_slopes(monkeypatch, alpha, beta, chunk):
    monkeypatch.setattr(barrier, "CHUNK", chunk)
    rng = np.random.default_rng(2)
    p, right, left, both = rng.normal(size=(4, 5, 12))
    a, b = np.full(5, alpha), np.full(5, beta)
    a_ahead, b_ahead = np.full(12, alpha), np.full(12, beta)

    def product(low: float, high: float) -> np.ndarray:
        return p - high * right - low * left + low * high * both

    out = np.empty((5, 12))
    barrier.hadamard(p, right, left, both, a, b, a_ahead, b_ahead, out=out)
    expected = 2 * (product(alpha, alpha) * product(beta, beta) + product(alpha, beta) * product(beta, alpha))
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


def test_the_hessian_of_a_deep_chain_takes_one_matrix_of_its_size():
    import tracemalloc

    problem, y = started([8] * 66, SLOPES["relu"])
    chain: Chain = problem.chain
    factor = problem.factorize(y)
    band = problem.complete(factor)
    tracemalloc.start()
    matrix = problem.hessian(factor, band)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert matrix.shape == (chain.neurons + 1,) * 2
    assert peak < 1.5 * matrix.nbytes
