"""The numeric core of the native backend against dense algebra, exact arithmetic, another solver and known values."""

from __future__ import annotations

import importlib.util
import itertools
import json
import pathlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from lipmodel.backends.native import barrier, shallow
from lipmodel.backends.native.chain import ChainProblem, build_chain, split
from lipmodel.backends.native.core import solve_chain
from lipmodel.backends.native.descent import tightened
from lipmodel.backends.native.elimination import chain_barrier, elimination_order
from lipmodel.backends.native.recursion import Recursion
from lipmodel.backends.native.start import RULES, backward_sweep, closed_form

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
SLOPES = {
    "relu": (0.0, 1.0),
    "leaky": (0.01, 1.0),
    "gelu": (-0.13, 1.13),
    "abs": (-1.0, 1.0),
    "sigmoid": (0.0, 0.25),
    "falling": (-1.0, -0.2),
    "steep": (0.5, 3.0),
}


def gaussian(rng: np.random.Generator, dims: list[int]) -> list[np.ndarray]:
    return [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in itertools.pairwise(dims)]


def problem(matrices: list[Any], norm: str = "2", slopes: str | tuple[float, float] = "relu") -> ChainProblem:
    low, high = SLOPES[slopes] if isinstance(slopes, str) else slopes
    return ChainProblem(
        weights=tuple(matrices[:-1]),
        alpha=tuple(np.full(w.shape[0], low) for w in matrices[:-1]),
        beta=tuple(np.full(w.shape[0], high) for w in matrices[:-1]),
        output=matrices[-1],
        input_norm="2" if norm == "2" else "inf",
    )


def dense_inequality(p: ChainProblem) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Coefficients of (t, eta), the constant V'V, and the objective: the inequality is sum y_j A_j - V'V >= 0."""
    weights = [w.toarray() if sp.issparse(w) else w for w in p.weights]
    inputs, neurons = weights[0].shape[1], sum(w.shape[0] for w in weights)
    order = inputs + neurons
    pre = np.zeros((neurons, order))
    row, column = 0, 0
    for w in weights:
        pre[row : row + w.shape[0], column : column + w.shape[1]] = w
        row, column = row + w.shape[0], column + w.shape[1]
    post = np.hstack([np.zeros((neurons, inputs)), np.eye(neurons)])
    u = post - np.concatenate(p.alpha)[:, None] * pre
    r = post - np.concatenate(p.beta)[:, None] * pre
    terms = [np.outer(u[j], r[j]) + np.outer(r[j], u[j]) for j in range(neurons)]
    units = [np.diag(np.eye(order)[i]) for i in range(inputs)]
    terms += [np.sum(units, axis=0)] if p.input_norm == "2" else units
    gram = np.zeros((order, order))
    gram[column:, column:] = p.output.T @ p.output
    return terms, gram, np.concatenate([np.zeros(neurons), np.ones(len(terms) - neurons)])


def unknowns(p: ChainProblem, solution: Any) -> np.ndarray:
    return np.concatenate([*solution.t, solution.eta[:1] if p.input_norm == "2" else solution.eta])


def dense_matrix(p: ChainProblem, solution: Any) -> np.ndarray:
    terms, gram, _ = dense_inequality(p)
    return sum(y * term for y, term in zip(unknowns(p, solution), terms, strict=True)) - gram


def is_definite(matrix: np.ndarray) -> bool:
    """Positive definite after scaling to a unit diagonal, in floating point."""
    diagonal = np.diag(matrix)
    if np.any(diagonal <= 0):
        return False
    return bool(np.linalg.eigvalsh(matrix / np.sqrt(np.outer(diagonal, diagonal)))[0] > 0)


def is_exactly_definite(p: ChainProblem, solution: Any) -> bool:
    """Positive definite in rational arithmetic, everything built from the stored doubles."""
    weights = [[[Fraction(x) for x in row] for row in w.tolist()] for w in p.weights]
    layers = [len(weights[0][0]), *(len(w) for w in weights)]
    starts = np.cumsum([0, *layers])
    order = int(starts[-1])
    s = [[Fraction(0)] * order for _ in range(order)]
    for i, eta in enumerate(solution.eta.tolist()):
        s[i][i] += Fraction(eta)
    for k, w in enumerate(weights):
        for j, row in enumerate(w):
            t, low, high = (Fraction(float(x[k][j])) for x in (solution.t, p.alpha, p.beta))
            own = {int(starts[k + 1]) + j: Fraction(1)}
            inputs = {int(starts[k]) + i: x for i, x in enumerate(row)}
            u = own | {i: -low * x for i, x in inputs.items()}
            r = own | {i: -high * x for i, x in inputs.items()}
            for a, x in u.items():
                for b, y in r.items():
                    s[a][b] += t * x * y
                    s[b][a] += t * x * y
    rows = [[Fraction(x) for x in row] for row in p.output.tolist()]
    for row in rows:
        for a, x in enumerate(row):
            for b, y in enumerate(row):
                s[int(starts[-2]) + a][int(starts[-2]) + b] -= x * y
    for k in range(order):
        if s[k][k] <= 0:
            return False
        for i in range(k + 1, order):
            factor = s[i][k] / s[k][k]
            for j in range(k + 1, order):
                s[i][j] -= factor * s[k][j]
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Barrier


def random_chain(seed: int, dims: list[int], *, tied: bool, slopes: str) -> tuple[Any, np.ndarray]:
    """A chain of order one with slopes that differ from neuron to neuron, and a strictly feasible point."""
    rng = np.random.default_rng(seed)
    *weights, output = gaussian(rng, dims)
    if slopes == "relu":
        alpha = [np.zeros(d) for d in dims[1:-1]]
        beta = [rng.uniform(0.5, 1.2, d) for d in dims[1:-1]]
    else:
        alpha = [rng.uniform(-0.4, 0.4, d) for d in dims[1:-1]]
        beta = [a + rng.uniform(0.3, 1.2, a.size) for a in alpha]
    start = closed_form(weights, alpha, beta, output, tied=tied)
    assert start.inside is not None
    return start.chain, start.inside * rng.uniform(1.0, 1.1, start.inside.size)


def dense_terms(chain: Any) -> tuple[list[np.ndarray], np.ndarray]:
    p = ChainProblem(
        weights=chain.weights,
        alpha=chain.alpha,
        beta=chain.beta,
        output=chain.output,
        input_norm="2" if chain.tied else "inf",
    )
    terms, gram, _ = dense_inequality(p)
    return terms, gram


BARRIERS = [
    pytest.param([4, 6, 5, 3, 2], True, "relu", barrier, id="three layers, l2"),
    pytest.param([4, 6, 5, 3, 2], False, "relu", barrier, id="three layers, linf"),
    pytest.param([4, 6, 5, 3, 2], True, "mixed", barrier, id="mixed slopes, l2"),
    pytest.param([4, 6, 5, 3, 2], False, "mixed", barrier, id="mixed slopes, linf"),
    pytest.param([9, 4, 6, 1], True, "mixed", barrier, id="wide input reduced, l2"),
    pytest.param([9, 4, 6, 1], False, "mixed", barrier, id="wide input, linf"),
    pytest.param([2, 1, 1], False, "mixed", barrier, id="one neuron"),
    pytest.param([3, 14, 2], True, "relu", shallow, id="shallow, l2"),
    pytest.param([3, 14, 2], False, "mixed", shallow, id="shallow, linf"),
    pytest.param([3, 14, 2], True, "mixed", shallow, id="shallow, mixed slopes, l2"),
    pytest.param([3, 14, 2], False, "mixed", barrier, id="shallow shape, layer by layer"),
]


def upper(matrix: np.ndarray) -> np.ndarray:
    """The symmetric matrix with this upper triangle."""
    return np.triu(matrix) + np.triu(matrix, 1).T


@pytest.mark.parametrize(("dims", "tied", "slopes", "engine"), BARRIERS)
def test_gradient_and_hessian_are_those_of_the_dense_formulas(dims, tied, slopes, engine):
    chain, y = random_chain(1, dims, tied=tied, slopes=slopes)
    terms, gram = dense_terms(chain)
    inverse = np.linalg.inv(sum(a * term for a, term in zip(y, terms, strict=True)) - gram)
    factor = engine.factorize(chain, y)
    band = engine.band_inverse(chain, factor)
    assert factor.logdet == pytest.approx(-np.linalg.slogdet(inverse)[1], rel=1e-10)
    np.testing.assert_allclose(band.gradient, [np.sum(term * inverse) for term in terms], rtol=1e-9)
    dense = np.array([[np.sum(a * (inverse @ b @ inverse)) for b in terms] for a in terms])
    scale = np.sqrt(np.outer(np.diag(dense), np.diag(dense)))
    np.testing.assert_allclose(upper(engine.hessian(chain, factor, band)) / scale, dense / scale, atol=1e-9)


@pytest.mark.parametrize(("dims", "tied", "slopes", "engine"), BARRIERS)
def test_gradient_and_hessian_are_finite_differences(dims, tied, slopes, engine):
    chain, y = random_chain(2, dims, tied=tied, slopes=slopes)

    def gradient(at: np.ndarray) -> np.ndarray:
        return engine.band_inverse(chain, engine.factorize(chain, at)).gradient

    def logdet(at: np.ndarray) -> float:
        return engine.factorize(chain, at).logdet

    factor = engine.factorize(chain, y)
    band = engine.band_inverse(chain, factor)
    matrix = upper(engine.hessian(chain, factor, band))
    for direction in np.random.default_rng(3).normal(size=(4, y.size)) * y:
        h = 1e-5
        slope = (logdet(y + h * direction) - logdet(y - h * direction)) / (2 * h)
        assert slope == pytest.approx(float(band.gradient @ direction), rel=1e-6, abs=1e-6)
        change = (gradient(y + h * direction) - gradient(y - h * direction)) / (2 * h)
        expected = -(matrix @ direction) * y
        np.testing.assert_allclose(change * y, expected, atol=1e-6 * np.abs(expected).max())


def test_compressed_weights_give_the_same_hessian():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(130, 5)), np.where(rng.random((140, 130)) < 0.01, 1.0, 0.0)
    second[np.arange(130), np.arange(130)] = 1.0
    alpha, beta = [np.full(130, -0.1), np.full(140, -0.1)], [np.ones(130), np.ones(140)]
    chain = build_chain([first, second], alpha, beta, rng.normal(size=(2, 140)), cost=np.ones(1), tied=True)
    assert chain.sparse[1] is not None
    y = backward_sweep(chain)
    assert y is not None
    y = 1.5 * y
    factor = barrier.factorize(chain, y)
    band = barrier.band_inverse(chain, factor)
    compressed = upper(barrier.hessian(chain, factor, band))
    object.__setattr__(chain, "sparse", (None, None))
    np.testing.assert_allclose(compressed, upper(barrier.hessian(chain, factor, band)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dims", "tied", "slopes", "engine"), BARRIERS)
def test_the_factorisation_tells_definite_from_indefinite(dims, tied, slopes, engine):
    chain, y = random_chain(5, dims, tied=tied, slopes=slopes)
    terms, gram = dense_terms(chain)
    rng = np.random.default_rng(6)
    seen = set()
    for _ in range(60):
        trial = y * 10 ** rng.uniform(-1.0, 0.3, y.size)
        matrix = sum(a * term for a, term in zip(trial, terms, strict=True)) - gram
        smallest = np.linalg.eigvalsh(matrix)[0]
        if abs(smallest) < 1e-9:
            continue
        seen.add(smallest > 0)
        assert (engine.factorize(chain, trial) is not None) == (smallest > 0)
    assert False in seen
    assert engine.factorize(chain, -y) is None
    assert engine.factorize(chain, np.where(np.arange(y.size) == 0, np.nan, y)) is None


def test_the_metric_solves_and_multiplies_with_the_matrix_it_has_factored():
    rng = np.random.default_rng(7)
    root = rng.normal(size=(9, 9))
    matrix = root @ root.T * np.outer(scale := 10 ** rng.uniform(-6, 6, 9), scale)
    metric = barrier.factor_metric(matrix.copy())
    x = rng.normal(size=9) / scale
    np.testing.assert_allclose(metric.apply(x) / scale, matrix @ x / scale, rtol=1e-9)
    np.testing.assert_allclose(metric.refined(matrix @ x) * scale, x * scale, rtol=1e-7)


def test_a_singular_hessian_is_regularised_and_an_indefinite_one_refused():
    ones = np.ones((4, 4))
    assert barrier.factor_metric(ones.copy()) is not None
    assert barrier.factor_metric(ones - 2 * np.eye(4)) is None
    assert barrier.factor_metric(ones - 1.5 * np.diag([1, 0, 0, 0]) + np.diag([1, -0.5, 0, 0])) is None


# ---------------------------------------------------------------------------------------------------------------------
# Start


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("tied", [True, False])
def test_closed_forms_are_feasible_and_a_tightened_one_is_no_worse(slopes, tied):
    rng = np.random.default_rng(8)
    *weights, output = gaussian(rng, [5, 7, 6, 8, 3])
    weights = [w * 10 ** rng.uniform(-3, 3, (w.shape[0], 1)) for w in weights]
    low, high = SLOPES[slopes]
    alpha, beta = [np.full(w.shape[0], low) for w in weights], [np.full(w.shape[0], high) for w in weights]
    start = closed_form(weights, alpha, beta, output, tied=tied)
    for y in (start.y, backward_sweep(start.chain)):
        assert y is not None
        terms, gram = dense_terms(start.chain)
        raised = 1.001 * y
        raised[start.chain.neurons :] *= 1.001
        assert is_definite(sum(a * term for a, term in zip(raised, terms, strict=True)) - gram)
        cost = np.concatenate([np.zeros(start.chain.neurons), start.chain.cost])
        tight = tightened(chain_barrier(start.chain), Recursion(start.chain), raised)
        assert cost @ tight <= cost @ raised
        assert elimination_order(start.chain).factorize(start.chain, tight) is not None


def test_every_rule_gives_a_feasible_point():
    from lipmodel.backends.native import start as module

    rng = np.random.default_rng(9)
    *weights, output = gaussian(rng, [5, 8, 8, 3])
    alpha, beta = [np.full(8, -0.2)] * 2, [np.ones(8)] * 2
    for rule in RULES:
        found = module._forward(weights, alpha, beta, output, rule, tied=True)
        assert found is not None
        chain = module.scaled_chain(weights, alpha, beta, output, found.scaling, tied=True)
        y = np.concatenate([*found.t, found.eta[:1]])
        assert barrier.factorize(chain, np.append(y[:-1], 1.0001 * y[-1]) * 1.0001) is not None
        assert barrier.factorize(chain, np.append(y[:-1], 0.9 * y[-1]) * 0.9) is None or rule is not RULES[0]


# ---------------------------------------------------------------------------------------------------------------------
# Solutions


def clarabel_optimum(p: ChainProblem, solution: Any) -> float | None:
    """The optimum from an interior point code on the dense inequality, scaled by a feasible point."""
    import clarabel

    terms, gram, cost = dense_inequality(p)
    y = 1.05 * unknowns(p, solution)
    matrix = sum(a * term for a, term in zip(y, terms, strict=True)) - gram
    scale = 1 / np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))
    level = float(cost @ y)
    upper = np.triu_indices(gram.shape[0])
    order = np.lexsort(upper)
    rows, columns = upper[0][order], upper[1][order]
    weight = np.where(rows == columns, 1.0, np.sqrt(2.0))
    columns_of = np.array([a * (term * scale)[rows, columns] * weight for a, term in zip(y, terms, strict=True)]).T
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_rel = settings.tol_feas = 1e-9
    found = clarabel.DefaultSolver(
        sp.csc_matrix((y.size, y.size)),
        cost * y / level,
        sp.csc_matrix(-columns_of),
        -(gram * scale)[rows, columns] * weight,
        [clarabel.PSDTriangleConeT(gram.shape[0])],
        settings,
    ).solve()
    return found.obj_val * level if str(found.status) == "Solved" else None


def random_problem(seed: int, widest: int) -> ChainProblem:
    """Networks that are hard on a solver: bad scaling, heavy tails, dead or nonnegative neurons, mixed slopes."""
    rng = np.random.default_rng(seed)
    dims = [int(d) for d in rng.integers(1, widest, rng.integers(3, 7))]
    kind = ["gauss", "rows", "heavy", "sparse", "nonnegative", "dead", "layers", "all"][seed % 8]
    matrices = []
    for w in gaussian(rng, dims):
        if kind in ("rows", "all"):
            w = w * 10 ** rng.uniform(-4, 4, (w.shape[0], 1))
        if kind in ("heavy", "all"):
            w = w * np.abs(rng.standard_t(1.5, w.shape))
        if kind in ("sparse", "all"):
            w = w * (rng.random(w.shape) < 0.5)
        if kind == "nonnegative":
            w = np.abs(w)
        if kind in ("dead", "all"):
            w[rng.random(w.shape[0]) < 0.2] = 0
            w[:, rng.random(w.shape[1]) < 0.2] = 0
        if kind in ("layers", "all"):
            w = w * 10 ** rng.uniform(-3, 3)
        matrices.append(w)
    names = list(SLOPES)
    alpha, beta = [], []
    for d in dims[1:-1]:
        chosen = rng.integers(len(names), size=d) if rng.random() < 0.5 else np.full(d, rng.integers(len(names)))
        alpha.append(np.array([SLOPES[names[i]][0] for i in chosen]))
        beta.append(np.array([SLOPES[names[i]][1] for i in chosen]))
    return ChainProblem(
        weights=tuple(matrices[:-1]),
        alpha=tuple(alpha),
        beta=tuple(beta),
        output=matrices[-1],
        input_norm="2" if rng.random() < 0.5 else "inf",
    )


def is_constant(p: ChainProblem) -> bool:
    reach = np.ones(p.weights[0].shape[1])
    for w in p.weights:
        reach = (np.abs(np.sign(w)) @ reach > 0).astype(float)
    return not np.any(np.abs(np.sign(p.output)) @ reach)


def test_values_are_those_of_another_solver():
    compared = 0
    for seed in range(64):
        p = random_problem(seed, 7)
        r = solve_chain(p)
        assert is_definite(dense_matrix(p, r)), seed
        if is_constant(p):
            assert r.value < 1e-30
            continue
        assert r.status == "optimal", seed
        assert r.lower <= r.value <= r.lower * (1 + 2.1e-6), seed
        optimum = clarabel_optimum(p, r)
        if optimum is not None:
            compared += 1
            assert r.value == pytest.approx(optimum, rel=3e-6), seed
            assert r.lower <= optimum * (1 + 1e-6), seed
    assert compared > 30


def test_hard_networks_are_solved_to_a_millionth():
    for seed in range(1000, 1088):
        p = random_problem(seed, 21)
        r = solve_chain(p)
        assert r.status == "optimal", seed
        assert is_definite(dense_matrix(p, r)), seed
        assert is_constant(p) or r.lower <= r.value <= r.lower * (1 + 2.1e-6), seed
        assert is_constant(p) or r.iterations <= 80, seed


def test_solutions_are_feasible_in_exact_arithmetic():
    for seed in range(200, 248):
        p = random_problem(seed, 5)
        assert is_exactly_definite(p, solve_chain(p)), seed


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


@pytest.mark.parametrize("norm", ["2", "inf"])
@pytest.mark.parametrize("slopes", ["relu", "abs", "leaky"])
def test_dead_neurons_keep_the_value_and_get_multipliers(norm, slopes):
    rng = np.random.default_rng(18)
    first, second, third, output = gaussian(rng, [4, 6, 6, 6, 3])
    first[[0, 1]] = 0  # no input
    second[2] = 0
    second[2, [0, 1]] = 1.0  # fed by what no input reaches only
    third[:, 3] = 0  # read by nobody
    second[:, 5] = 0
    second[3, 5] = 1.0  # read by what nobody reads only
    output[:, 4] = 0
    p = problem([first, second, third, output], norm, slopes)
    r = solve_chain(p)
    assert r.status == "optimal"
    assert is_definite(dense_matrix(p, r))
    alive = [[2, 3, 4], [0, 1, 4, 5], [0, 1, 2, 3, 5]]
    pruned = [
        first[alive[0]],
        second[np.ix_(alive[1], alive[0])],
        third[np.ix_(alive[2], alive[1])],
        output[:, alive[2]],
    ]
    assert r.value == pytest.approx(solve_chain(problem(pruned, norm, slopes)).value, rel=3e-6)


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_a_constant_network_has_the_value_zero_almost(norm):
    rng = np.random.default_rng(19)
    for dead in range(3):
        matrices = gaussian(rng, [3, 4, 4, 2])
        matrices[dead] = np.zeros_like(matrices[dead])
        for slopes in ("relu", "gelu"):
            p = problem(matrices, norm, slopes)
            r = solve_chain(p)
            assert (r.status, r.lower) == ("optimal", 0.0)
            assert 0 < r.value < 1e-30
            assert is_exactly_definite(p, r)


def test_neurons_of_slope_zero_are_dead():
    matrices = gaussian(np.random.default_rng(20), [3, 5, 4, 2])
    p = problem(matrices)
    beta = np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    p = ChainProblem(weights=p.weights, alpha=p.alpha, beta=(beta, p.beta[1]), output=p.output, input_norm=p.input_norm)
    r = solve_chain(p)
    living = [matrices[0][beta > 0], matrices[1][:, beta > 0], matrices[2]]
    assert r.status == "optimal"
    assert r.value == pytest.approx(solve_chain(problem(living)).value, rel=3e-6)
    assert is_exactly_definite(p, r)


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


# ---------------------------------------------------------------------------------------------------------------------
# Known values


def onnx_matrices(path: pathlib.Path) -> list[np.ndarray]:
    """Weights of a file that is a plain chain of matrix products, additions and activations."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = {c.name: numpy_helper.to_array(c).astype(float) for c in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t).astype(float)
    harmless = {"Add", "Sub", "Relu", "Tanh", "Sigmoid", "Flatten", "Reshape", "Constant", "Identity"}
    matrices = []
    for node in graph.node:
        if node.op_type == "Gemm":
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            matrices.append(constants[node.input[1]] if transposed else constants[node.input[1]].T)
        elif node.op_type == "MatMul":
            left, right = node.input
            matrices.append(constants[left] if left in constants else constants[right].T)
        elif node.op_type not in harmless:
            pytest.skip(f"{path.name} is not a plain chain")
    return matrices


def known_values() -> list[Any]:
    if not SHARED.exists():
        return []
    cases = []
    for name in ("lipsdp", "gauss", "tiny", "stream", "digits", "eclipse", "chordal"):
        for oracle in json.loads((SHARED / "oracles" / f"{name}.json").read_text())["oracles"]:
            plain = oracle["quantity"] in ("lipsdp-neuron", "geolip") and oracle["relation"] == "equal"
            if plain and oracle["id"][:3] != "cnn":
                cases.append(pytest.param(oracle, id=oracle["id"]))
    return cases


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("oracle", known_values())
def test_known_values(oracle):
    network = oracle["network"]
    activation = "sigmoid" if "sigmoid" in oracle["id"] else "relu"
    if "file" in network:
        matrices = onnx_matrices(SHARED / network["file"])
    else:
        spec = importlib.util.spec_from_file_location("generate", SHARED / "oracles" / "generate.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        matrices = module.RECIPES[network["recipe"]](**network["args"]).Ws
    if oracle["output"] != "all":
        matrices[-1] = matrices[-1][[oracle["output"]]]
    r = solve_chain(problem(matrices, oracle["norm"]["input"], activation))
    assert r.status == "optimal"
    assert np.sqrt(r.value) == pytest.approx(oracle["value"], rel=1e-6 + oracle["rtol"])


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
def test_acas_xu_is_solved_to_its_known_value():
    matrices = onnx_matrices(SHARED / "nets" / "acasxu" / "1_1.onnx")
    r = solve_chain(problem(matrices))
    assert r.status == "optimal"
    assert np.sqrt(r.value) == pytest.approx(88258.82, rel=2e-6)
