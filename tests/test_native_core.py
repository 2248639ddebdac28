"""The numeric core of the native backend against dense algebra, exact arithmetic and another solver."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from dense_algebra import is_definite
from native_chains import (
    SLOPES,
    clarabel_optimum,
    dense_inequality,
    dense_matrix,
    gaussian,
    is_exactly_definite,
    problem,
    unknowns,
)

from lipmodel.backends.native.chain import ChainProblem, build_chain, split
from lipmodel.backends.native.core import solve_chain

# ---------------------------------------------------------------------------------------------------------------------
# Solutions


def test_a_point_just_below_the_optimum_is_not_feasible_in_exact_arithmetic():
    p = problem(gaussian(np.random.default_rng(10), [3, 4, 4, 2]))
    r = solve_chain(p, tol=1e-8)
    terms, gram, _ = dense_inequality(p)
    y = unknowns(p, r)
    y[-1] *= 1 - 1e-5
    matrix = sum(a * term for a, term in zip(y, terms, strict=True)) - gram
    assert not is_definite(matrix)


@pytest.mark.parametrize("norm", ["2", "inf"])
@pytest.mark.parametrize("slopes", ["relu", "gelu"])
def test_scaling_a_layer_scales_the_value_and_permuting_neurons_keeps_it(norm, slopes):
    rng = np.random.default_rng(11)
    matrices = gaussian(rng, [4, 6, 5, 3])
    reference = solve_chain(problem(matrices, norm, slopes)).value
    scaled = [matrices[0] * 2.0**40, matrices[1] * 2.0**-25, matrices[2] * 3.0]
    assert solve_chain(problem(scaled, norm, slopes)).value == pytest.approx(reference * 2.0**30 * 9, rel=3e-6)
    order = rng.permutation(6)
    permuted = [matrices[0][order], matrices[1][:, order], matrices[2]]
    assert solve_chain(problem(permuted, norm, slopes)).value == pytest.approx(reference, rel=3e-6)
    units = 10.0 ** rng.uniform(-4, 4, 6)
    rescaled = [matrices[0] * units[:, None], matrices[1] / units, matrices[2]]
    assert solve_chain(problem(rescaled, norm, slopes)).value == pytest.approx(reference, rel=3e-6)


def test_sparse_weights_are_those_of_the_dense_arrays():
    matrices = gaussian(np.random.default_rng(12), [4, 6, 5, 3])
    dense = solve_chain(problem(matrices))
    compressed = solve_chain(problem([sp.csr_array(matrices[0]), sp.csc_matrix(matrices[1]), matrices[2]]))
    assert compressed.value == dense.value


@pytest.mark.parametrize("dims", [[40, 6, 5, 2], [3, 6, 5, 30], [30, 4, 25], [3, 40, 2], [1, 1, 1], [2, 1, 30, 1]])
@pytest.mark.parametrize("norm", ["2", "inf"])
@pytest.mark.parametrize("slopes", ["relu", "gelu"])
def test_surplus_inputs_outputs_and_neurons(dims, norm, slopes):
    p = problem(gaussian(np.random.default_rng(13), dims), norm, slopes)
    r = solve_chain(p)
    assert r.status == "optimal"
    assert r.eta.shape == (dims[0],)
    assert [t.size for t in r.t] == dims[1:-1]
    assert is_definite(dense_matrix(p, r))
    optimum = clarabel_optimum(p, r)
    assert optimum is None or r.value == pytest.approx(optimum, rel=3e-6)


def test_exact_values():
    two_relu = problem([np.array([[1.0], [1.0]]), np.array([[1.0, -1.0]])])
    assert solve_chain(two_relu).value == pytest.approx(1.0, rel=3e-6)
    identity = [np.eye(5)] * 4
    assert solve_chain(problem(identity)).value == pytest.approx(1.0, rel=3e-6)
    assert solve_chain(problem(identity, slopes="sigmoid")).value == pytest.approx(0.25**6, rel=3e-6)
    # a nonnegative network has all its neurons active at once: the constant is the norm of the product
    rng = np.random.default_rng(14)
    matrices = [np.abs(w) for w in gaussian(rng, [4, 6, 7, 3])]
    product = matrices[2] @ matrices[1] @ matrices[0]
    assert solve_chain(problem(matrices)).value == pytest.approx(np.linalg.norm(product, 2) ** 2, rel=3e-6)
    row = problem([*matrices[:2], matrices[2][:1]], "inf")
    assert solve_chain(row).value == pytest.approx(product[0].sum() ** 2, rel=3e-6)


def test_no_value_is_below_a_vertex_of_the_slopes():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        matrices = gaussian(rng, [3, 4, 4, 2])
        low, high = SLOPES[list(SLOPES)[seed % len(SLOPES)]]
        r = solve_chain(problem(matrices, "2", (low, high)))
        for _ in range(20):
            slopes = [np.where(rng.random(4) < 0.5, low, high) for _ in range(2)]
            jacobian = matrices[2] @ (slopes[1][:, None] * matrices[1]) @ (slopes[0][:, None] * matrices[0])
            assert np.linalg.norm(jacobian, 2) ** 2 <= r.value * (1 + 1e-9)


def test_forty_layers_neither_overflow_nor_underflow():
    for gain in (1e3, 1e-3):
        matrices = gaussian(np.random.default_rng(15), [4] * 44)
        plain = solve_chain(problem(matrices))
        r = solve_chain(problem([gain * w for w in matrices]))
        assert plain.status == r.status == "optimal"
        assert np.log10(r.value) == pytest.approx(np.log10(plain.value) + 86 * np.log10(gain), abs=1e-5)
        assert all(np.all(np.isfinite(t)) and np.all(t > 0) for t in r.t)


@pytest.mark.parametrize("size", [1e200, 1e-200, 1e-310])
def test_numbers_at_the_ends_of_the_double_range_do_no_harm(size):
    rng = np.random.default_rng(16)
    matrices = gaussian(rng, [3, 5, 4, 2])
    r = solve_chain(problem([w * size for w in matrices]))
    assert r.status in ("optimal", "inaccurate")
    assert r.status == "optimal" or r.value == np.inf or r.value > 0
    units = 10.0 ** rng.uniform(-100, 100, 5)
    moved = [matrices[0] * units[:, None], matrices[1] / units, matrices[2]]
    r = solve_chain(problem(moved))
    assert r.value == pytest.approx(solve_chain(problem(matrices)).value, rel=3e-6)


def test_a_point_that_doubles_cannot_hold_is_given_as_infinite():
    matrices = [1e200 * w for w in gaussian(np.random.default_rng(17), [3, 4, 2])]
    r = solve_chain(problem(matrices))
    assert (r.status, r.value) == ("inaccurate", np.inf)


@pytest.mark.parametrize("width", [0.0, 1e-9, 1e-6, 1e-4, 1e-2])
def test_narrow_slopes_approach_the_linear_network(width):
    matrices = gaussian(np.random.default_rng(21), [3, 4, 4, 2])
    linear = 0.25 * matrices[2] @ matrices[1] @ matrices[0]
    p = problem(matrices, "2", (0.5 * (1 - width / 2), 0.5 * (1 + width / 2)))
    r = solve_chain(p)
    exact = np.linalg.norm(linear, 2) ** 2
    assert exact <= r.value <= exact * (1 + 10 * width + 2e-4)
    assert is_exactly_definite(p, r)
    assert r.lower <= r.value
    assert r.status == "optimal" if width >= 1e-4 else r.status in ("inaccurate", "iteration-limit")


# ---------------------------------------------------------------------------------------------------------------------
# Limits


def test_a_time_limit_gives_the_best_point_so_far():
    p = problem(gaussian(np.random.default_rng(22), [5, 20, 20, 20, 3]), "inf", "gelu")
    r = solve_chain(p, time_limit=0.0)
    assert (r.status, r.lower, r.iterations) == ("time-limit", 0.0, 0)
    assert is_definite(dense_matrix(p, r))
    assert r.value >= solve_chain(p).value * (1 - 3e-6)


def test_iterations_are_limited_and_bounds_only_improve():
    p = problem(gaussian(np.random.default_rng(23), [5, 9, 9, 9, 9, 3]))
    seen: list[Any] = []
    final = solve_chain(p, on_iterate=seen.append)
    assert sorted({state.iteration for state in seen}) == list(range(final.iterations + 1))
    for before, after in itertools.pairwise(seen):
        assert after.iteration >= before.iteration
        assert after.value <= before.value
        assert after.lower >= before.lower
        assert after.elapsed >= before.elapsed
    assert seen[-1].gap <= 1e-6 < seen[0].gap
    assert seen[-1].value == pytest.approx(final.value, rel=1e-9)
    limited = solve_chain(p, max_iterations=2)
    assert (limited.status, limited.iterations) == ("iteration-limit", 2)
    assert final.value < limited.value <= seen[1].value
    assert is_definite(dense_matrix(p, limited))


@pytest.mark.parametrize("way", ["return", "raise"])
def test_an_interrupted_run_gives_the_best_point_so_far(way):
    p = problem(gaussian(np.random.default_rng(24), [5, 9, 9, 3]), "inf")

    def stop(state: Any) -> bool | None:
        if state.iteration == 2 and way == "raise":
            raise KeyboardInterrupt
        return False if state.iteration == 2 else None

    r = solve_chain(p, on_iterate=stop)
    assert (r.status, r.iterations) == ("interrupted", 2)
    assert is_definite(dense_matrix(p, r))


def test_the_tolerance_is_on_the_bound():
    p = problem(gaussian(np.random.default_rng(25), [5, 9, 9, 3]))
    best = solve_chain(p, tol=1e-8).value
    for tol in (1e-2, 1e-4, 1e-7):
        r = solve_chain(p, tol=tol)
        assert 1 - np.sqrt(r.lower / r.value) <= tol
        assert np.sqrt(r.value / best) - 1 <= tol


@pytest.mark.parametrize(
    "change",
    [
        {"weights": ()},
        {"weights": (np.ones((3, 2)),)},
        {"alpha": (np.zeros(3), np.zeros(5))},
        {"alpha": (np.zeros(4), np.full(3, 2.0))},
        {"beta": (np.full(4, np.inf), np.ones(3))},
        {"weights": (np.full((4, 2), np.nan), np.ones((3, 4)))},
        {"output": np.ones((2, 4))},
        {"output": np.full((2, 3), np.inf)},
        {"input_norm": "1"},
    ],
)
def test_data_that_do_not_fit_are_refused(change):
    fields: dict[str, Any] = {
        "weights": (np.ones((4, 2)), np.ones((3, 4))),
        "alpha": (np.zeros(4), np.zeros(3)),
        "beta": (np.ones(4), np.ones(3)),
        "output": np.ones((2, 3)),
        "input_norm": "2",
    }
    ChainProblem(**fields)
    with pytest.raises(ValueError):
        ChainProblem(**(fields | change))


def test_the_vector_of_unknowns_splits_into_layers():
    chain = build_chain(
        [np.ones((3, 2)), np.ones((2, 3))],
        [np.zeros(3), np.zeros(2)],
        [np.ones(3), np.ones(2)],
        np.ones((1, 2)),
        cost=np.ones(1),
        tied=True,
    )
    t, eta = split(chain, np.arange(6.0))
    assert [part.tolist() for part in t] == [[0, 1, 2], [3, 4]]
    assert eta.tolist() == [5, 5]
