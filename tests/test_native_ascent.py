"""The low-rank ascent of the native backend: gradients, feasibility on both sides, known values, degenerate cases."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from lipmodel.backends.native import ascent, lowrank
from lipmodel.backends.native.ascent import Ascended, ascend, chain_dual
from lipmodel.backends.native.chain import Chain, build_chain
from lipmodel.backends.native.core import single_thread
from lipmodel.backends.native.elimination import chain_barrier
from lipmodel.backends.native.follower import follow_path
from lipmodel.backends.native.start import closed_form

SLOPES = {"relu": (0.0, 1.0), "leaky": (0.1, 1.0), "abs": (-1.0, 1.0), "steep": (0.4, 1.5), "falling": (-1.0, -0.2)}
Network = tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], np.ndarray]


def network(seed: int, dims: list[int], slopes: str = "relu") -> Network:
    rng = np.random.default_rng(seed)
    *weights, output = (rng.normal(size=(b, a)) / np.sqrt(a) for a, b in itertools.pairwise(dims))
    if slopes == "mixed":
        alpha = [rng.uniform(-0.8, 0.5, d) for d in dims[1:-1]]
        beta = [a + rng.uniform(0.1, 1.5, a.size) for a in alpha]
    else:
        low, high = SLOPES[slopes]
        alpha, beta = [np.full(d, low) for d in dims[1:-1]], [np.full(d, high) for d in dims[1:-1]]
    return weights, alpha, beta, output


def chain_of(net: Network, norm: str) -> Chain:
    weights, alpha, beta, output = net
    return closed_form(weights, alpha, beta, output, tied=norm == "2").chain


def run(chain: Chain, tol: float = 1e-6, **changed: Any) -> Ascended:
    limits: dict[str, Any] = {"deadline": math.inf, "max_iterations": 1000, "report": lambda *_: True, "alone": True}
    with single_thread(), np.errstate(all="ignore"):
        return ascend(chain, tol=tol, **(limits | changed))


def value(chain: Chain, found: Ascended) -> float:
    assert found.y is not None
    return float(chain_barrier(chain).cost @ found.y)


def smallest_eigenvalue(chain: Chain, y: np.ndarray) -> float:
    """Of the whole inequality at y, assembled from its definition and scaled to a unit diagonal."""
    inputs, count = chain.weights[0].shape[1], chain.neurons
    pre = np.zeros((count, inputs + count))
    column = 0
    for span, weight in zip(chain.spans, chain.weights, strict=True):
        pre[span, column : column + weight.shape[1]] = weight
        column += weight.shape[1]
    post = np.hstack([np.zeros((count, inputs)), np.eye(count)])
    u = post - np.concatenate(chain.alpha)[:, None] * pre
    r = post - np.concatenate(chain.beta)[:, None] * pre
    t = y[:count, None]
    matrix = u.T @ (t * r) + r.T @ (t * u)
    matrix[:inputs, :inputs] += np.diag(np.broadcast_to(y[count:], inputs))
    last = matrix[-chain.output.shape[1] :, -chain.output.shape[1] :]
    last -= chain.output.T @ chain.output
    root = 1 / np.sqrt(np.diag(matrix))
    return float(np.linalg.eigvalsh(matrix * root * root[:, None])[0])


@pytest.mark.parametrize("slopes", [*SLOPES, "mixed"])
@pytest.mark.parametrize("norm", ["2", "inf"])
def test_gradient(norm, slopes):
    s = chain_dual(chain_of(network(3, [5, 7, 6, 4], slopes), norm)).signals
    rng = np.random.default_rng(1)
    factor, move = rng.normal(size=(2, s.rows, 3))
    gradient, _ = lowrank.gradient(s, lowrank.evaluate(s, factor))
    ahead, behind = (lowrank.evaluate(s, factor + h * move).f for h in (1e-6, -1e-6))
    assert (ahead - behind) / 2e-6 == pytest.approx(float(np.vdot(gradient, move)), rel=1e-6)


@pytest.mark.parametrize("slopes", [*SLOPES, "mixed"])
@pytest.mark.parametrize("norm", ["2", "inf"])
def test_factors_are_primal_feasible(norm, slopes):
    """Signals of any factor obey every constraint of the neurons, whatever their slopes, in the chain's own weights."""
    chain = chain_of(network(4, [6, 5, 7, 3], slopes), norm)
    s = chain_dual(chain).signals
    factor = np.random.default_rng(2).normal(size=(s.rows, 4))
    factor /= lowrank.norms(s, factor)[:, None]
    state = lowrank.evaluate(s, factor)
    signal = factor[s.inputs] * (1.0 if chain.tied else np.sqrt(chain.cost)[:, None])
    lengths = (signal**2).sum(axis=1)
    assert lengths.sum() == pytest.approx(1.0) if chain.tied else lengths == pytest.approx(chain.cost)
    for k, weight in enumerate(chain.weights):
        v = weight @ signal
        centre, radius = (chain.alpha[k] + chain.beta[k]) / 2, (chain.beta[k] - chain.alpha[k]) / 2
        signal = centre[:, None] * v + (radius * np.linalg.norm(v, axis=1))[:, None] * factor[s.layers[k].rows]
        within = np.einsum("ij,ij->i", signal - chain.alpha[k][:, None] * v, chain.beta[k][:, None] * v - signal)
        assert np.all(within >= -1e-12)
    assert state.f == pytest.approx(float(np.linalg.norm(chain.output @ signal)))


@pytest.mark.parametrize("slopes", [*SLOPES, "mixed"])
@pytest.mark.parametrize("norm", ["2", "inf"])
@pytest.mark.parametrize("dims", [[9, 14, 1], [14, 9, 4], [6, 8, 8, 5], [4, 7, 9, 6, 8, 3]])
def test_both_sides_meet(dims, norm, slopes):
    chain = chain_of(network(5, dims, slopes), norm)
    found = run(chain)
    assert found.status == "optimal"
    assert found.lower <= value(chain, found) <= found.lower * (1 + 2.1e-6)
    assert smallest_eigenvalue(chain, found.y) > 0


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_agrees_with_the_path_follower(norm):
    weights, alpha, beta, output = network(6, [8, 12, 10, 12, 4], "mixed")
    tied = norm == "2"
    start = closed_form(weights, alpha, beta, output, tied=tied)
    limits: dict[str, Any] = {"tol": 1e-8, "deadline": math.inf, "max_iterations": 100, "report": lambda *_: True}
    with single_thread():
        other = follow_path(chain_barrier(start.chain), start.inside, **limits)
    found = run(start.chain, 1e-8)
    assert found.status == other.status == "optimal"
    assert found.lower == pytest.approx(float(chain_barrier(start.chain).cost @ other.y), rel=3e-8)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-8, 1e-10])
def test_tolerance(tol):
    chain = chain_of(network(7, [10, 12, 8, 3]), "inf")
    found = run(chain, tol)
    assert found.status == "optimal"
    assert 1 - math.sqrt(found.lower / value(chain, found)) <= tol


def bound(net: Network, norm: str) -> float:
    """In the units of the network."""
    weights, alpha, beta, output = net
    start = closed_form(weights, alpha, beta, output, tied=norm == "2")
    power = 2 * start.scaling.output - (0 if norm == "2" else 2 * int(start.scaling.signals[0].max()))
    return math.sqrt(math.ldexp(value(start.chain, run(start.chain)), power))


def test_known_values():
    """Where all weights are nonnegative the relaxation is exact, and the network at its steepest is linear."""
    weights, alpha, beta, output = network(8, [5, 7, 6, 4])
    weights, output = [np.abs(w) for w in weights], np.abs(output)
    whole = output @ weights[1] @ weights[0]
    net = (weights, alpha, beta, output)
    assert bound(net, "2") == pytest.approx(np.linalg.norm(whole, 2), rel=2e-6)
    one = (weights, alpha, beta, output[:1])
    assert bound(one, "inf") == pytest.approx(whole[0].sum(), rel=2e-6)
    scaled = ([1e-3 * weights[0], 1e5 * weights[1]], alpha, beta, 1e3 * output)
    assert bound(scaled, "2") == pytest.approx(1e5 * np.linalg.norm(whole, 2), rel=2e-6)


def test_independent_paths():
    """The signals of all paths but the steepest vanish, and with them what fixes their multipliers."""
    rates = np.array([0.3, 1.0, 0.7])
    diagonal = [np.diag(np.array([4.0, 1.0, 0.5])), np.diag(np.array([0.25, 2.0, 1.0]))]
    alpha, beta = [np.zeros(3)] * 2, [np.ones(3)] * 2
    assert bound((diagonal, alpha, beta, np.diag(rates)), "2") == pytest.approx(2.0, rel=2e-6)


@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("norm", ["2", "inf"])
def test_too_few_columns_become_more(monkeypatch, norm, columns):
    """A rank too small for the optimum gets stuck below it; every such point is left for a larger rank."""
    chain = chain_of(network(9, [20, 24, 20, 5]), norm)
    expected = run(chain).lower
    monkeypatch.setattr(ascent, "COLUMNS", columns)
    found = run(chain)
    assert found.status == "optimal"
    assert found.lower == pytest.approx(expected, rel=3e-6)


def test_limits():
    chain = chain_of(network(10, [30, 30, 30, 4]), "2")
    late = run(chain, deadline=-math.inf)
    assert (late.y, late.status, late.iterations) == (None, "time-limit", 0)
    short = run(chain, max_iterations=2)
    assert (short.status, short.iterations) == ("iteration-limit", 2)
    assert smallest_eigenvalue(chain, short.y) > 0
    seen: list[tuple[int, float, float]] = []

    def follow(iterations: int, y: np.ndarray, lower: float, gap: float) -> bool:
        seen.append((iterations, float(chain_barrier(chain).cost @ y), lower))
        return iterations < 4

    stopped = run(chain, report=follow)
    assert stopped.status == "interrupted"
    assert value(chain, stopped) == seen[-1][1]
    assert [k for k, *_ in seen] == list(range(seen[0][0], 5))
    assert all(a[1] >= b[1] and a[2] <= b[2] <= b[1] for a, b in itertools.pairwise(seen))

    def interrupt(*_: Any) -> bool:
        raise KeyboardInterrupt

    broken = run(chain, report=interrupt)
    assert broken.status == "interrupted"
    assert smallest_eigenvalue(chain, broken.y) > 0


def test_time_limit_keeps_the_last_point(monkeypatch):
    chain = chain_of(network(11, [30, 30, 30, 4]), "2")
    clock = itertools.count()
    monkeypatch.setattr(ascent.time, "monotonic", lambda: float(next(clock)))
    found = run(chain, deadline=20.0)
    assert found.status == "time-limit"
    assert smallest_eigenvalue(chain, found.y) > 0


def test_gives_way_to_the_path_follower(monkeypatch):
    """Where Hessians are cheap the run ends early, with a point to go on from."""
    chain = chain_of(network(12, [20] * 12), "2")
    monkeypatch.setattr(ascent, "OVERHEAD", 1e9)
    monkeypatch.setattr(ascent, "HESSIANS", 0.0)
    monkeypatch.setattr(ascent, "PATIENCE", 2)
    found = run(chain, 1e-10, alone=False)
    assert found.status == "inaccurate"
    assert found.iterations < run(chain, 1e-10).iterations
    assert smallest_eigenvalue(chain, found.y) > 0


def test_scaling_of_deep_and_of_extreme_chains():
    """No product of gains is formed: with sixty layers, or gains of 1e200, f is of order one."""
    for seed, depth, gain in ((13, 60, 1e-3), (14, 20, 1e200), (15, 20, 1e-200)):
        weights, alpha, beta, output = network(seed, [3, *[3] * depth, 2])
        start = closed_form([gain * w for w in weights], alpha, beta, output, tied=False)
        s = chain_dual(start.chain).signals
        factor = np.random.default_rng(0).normal(size=(s.rows, 8))
        factor /= lowrank.norms(s, factor)[:, None]
        state = lowrank.evaluate(s, factor)
        assert 1e-15 < state.f < 1e6
        assert np.all(np.isfinite(lowrank.gradient(s, state)[1]))


def test_sparse_weights_are_used_as_such():
    weights, alpha, beta, output = network(16, [150, 150, 150, 2])
    keep = np.random.default_rng(0).random((150, 150)) < 0.01
    np.fill_diagonal(keep, True)
    chain = build_chain([w * keep for w in weights], alpha, beta, output, cost=np.ones(150), tied=False)
    assert all(sparse is not None for sparse in chain.sparse)
    dense = build_chain([w * keep for w in weights], alpha, beta, output, cost=np.ones(150), tied=False)
    object.__setattr__(dense, "sparse", (None, None))
    one, two = run(chain), run(dense)
    assert one.status == two.status == "optimal"
    assert one.lower == pytest.approx(two.lower, rel=3e-6)
