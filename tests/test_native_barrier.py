"""The barrier of a chain against dense algebra and finite differences, and its closed-form starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dense_algebra import is_definite
from native_chains import SLOPES, dense_inequality, gaussian

from lipmodel.backends.native import barrier, shallow
from lipmodel.backends.native.chain import ChainProblem, build_chain
from lipmodel.backends.native.descent import tightened
from lipmodel.backends.native.elimination import chain_barrier, elimination_order
from lipmodel.backends.native.recursion import Recursion
from lipmodel.backends.native.start import RULES, backward_sweep, closed_form

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
