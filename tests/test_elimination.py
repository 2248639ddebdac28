"""The covariance recursion: published formulas, any rule for S, published errors, depth, and what is minimised."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.backends.base import SolveOptions
from lipmodel.elimination.forward import least_cover
from lipmodel.formulation import formulation
from lipmodel.network.increments import chain_of
from lipmodel.testing.networks import KINDS, formal_constant, random_system, rescaled

RULES = (("spectral", 1.0), ("spectral", 1.6), ("gershgorin", 1.9), ("shift", 1.2), ("row-sum", 1.4))
PAIRS = [("2", "2"), ("2", "1"), ("inf", "2"), ("inf", "1")]
SLOPES = [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (-0.7, 0.2), (0.25, 3.0)]


def gaussian(dims, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((m, n)) / np.sqrt(n) for n, m in itertools.pairwise(dims)]


def rule(name, c):
    return lambda gram, layer: lm.elimination.choose_s(gram, name, c)


def bound(system, choose, p="2", q="2"):
    return lm.elimination.Recursion(system, lm.Spec(input_norm=p, output_norm=q))(choose).claim(p, q)


def formula(weights, choose, alpha=0.0, beta=1.0):
    """sqrt lmax(W_d Y_{d-1} W_d') as the papers write it, with dense inverses."""
    *hidden, last = weights
    y = np.eye(weights[0].shape[1])
    for w in hidden:
        g = w @ y @ w.T
        s = np.diag(choose(g))
        carried = alpha * g + (beta - alpha) * s
        y = alpha * alpha * g + carried.T @ np.linalg.inv(2 * s - g) @ carried
    return math.sqrt(np.linalg.eigvalsh(last @ y @ last.T)[-1])


# ---------------------------------------------------------------------------------------------------------------------
# The formula


@pytest.mark.parametrize(("name", "c"), RULES)
@pytest.mark.parametrize("slopes", SLOPES)
def test_chains_have_the_bound_of_the_formula(name, c, slopes):
    weights = gaussian([4, 6, 5, 7, 3])
    expected = formula(weights, lambda g: lm.elimination.choose_s(g, name, c), *slopes)
    assert bound(chain_of(weights, *slopes), rule(name, c)) == pytest.approx(expected, rel=1e-10)


def test_rules_for_s_are_the_published_ones():
    gram = np.array([[4.0, -1.0], [-1.0, 2.0]])
    top = 3.0 + math.sqrt(2.0)
    choose = lm.elimination.choose_s
    np.testing.assert_allclose(choose(gram, "spectral", 1.0), [top, top])
    np.testing.assert_allclose(choose(gram, "spectral", 1.6), [top / 1.6, top / 1.6])
    np.testing.assert_allclose(choose(gram, "gershgorin", 1.5), [5.0 / 1.5, 3.0 / 1.5])
    np.testing.assert_allclose(choose(gram, "shift", 1.2), [2.0 + 1.2 * 0.5, 1.0 + 1.2 * 0.5])


@pytest.mark.parametrize(("name", "c"), RULES)
def test_rules_make_the_pivot_definite(name, c):
    rng = np.random.default_rng(0)
    for n, rank in ((1, 1), (3, 1), (6, 6), (9, 4)):
        half = rng.standard_normal((n, rank))
        for gram in (half @ half.T, np.diag(rng.uniform(1.0, 2.0, n)), np.ones((n, n)), np.abs(half @ half.T)):
            pivot = 2.0 * np.diag(lm.elimination.choose_s(gram, name, c)) - gram
            assert np.linalg.eigvalsh(pivot)[0] > 0.0
    assert np.all(lm.elimination.choose_s(np.zeros((2, 2)), name, c) > 0.0)


@pytest.mark.parametrize(
    ("name", "c"),
    [("spectral", 2.0), ("spectral", 0.0), ("gershgorin", 2.1), ("shift", 1.0), ("shift", math.inf), ("x", 1.0)],
)
def test_constants_and_rules_that_prove_nothing_are_refused(name, c):
    with pytest.raises(ValueError, match=r"constant|unknown rule"):
        lm.elimination.choose_s(np.eye(2), name, c)


# ---------------------------------------------------------------------------------------------------------------------
# Soundness, by exhaustive enumeration


@pytest.mark.parametrize("kind", KINDS)
def test_no_rule_is_below_the_largest_of_all_slope_patterns(kind):
    for seed in (0, 1):
        system = random_system(kind, seed)
        for p, q in PAIRS:
            formal = formal_constant(system, p, q)
            for name, c in RULES:
                assert bound(system, rule(name, c), p, q) >= formal * (1.0 - 1e-9), (name, seed, p, q)


@pytest.mark.parametrize("kind", KINDS)
def test_any_diagonal_that_covers_is_sound(kind):
    """Not only rules that anybody published: random S, raised until 2 S - G is definite."""
    rng = np.random.default_rng(1)

    def choose(gram, layer):
        shape = rng.uniform(0.1, 1.0, len(gram))
        root = 1.0 / np.sqrt(shape)
        return shape * (rng.uniform(0.51, 3.0) * np.linalg.eigvalsh(gram * root * root[:, None])[-1] + 1e-9)

    system = random_system(kind, 2)
    for p, q in PAIRS:
        formal = formal_constant(system, p, q)
        for _ in range(20):
            assert bound(system, choose, p, q) >= formal * (1.0 - 1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Published errors


def test_an_indefinite_pivot_is_refused_where_the_formula_is_below_the_constant():
    """W_1 = (1, 1)', W_2 = (1, -1/2), S = 0.45 I: lmax(G) = 2 > 2 * 0.45, the formula gives 0.4797; truly it is 1."""
    weights = [np.array([[1.0], [1.0]]), np.array([[1.0, -0.5]])]
    assert formula(weights, lambda g: np.full(2, 0.45)) == pytest.approx(0.4797, abs=1e-4)
    system = chain_of(weights)
    assert formal_constant(system, "2", "2") == 1.0
    with pytest.raises(lm.UsageError, match=r"layer 1 .* not positive definite"):
        bound(system, lambda gram, layer: np.full(2, 0.45 * gram[0, 0]))
    assert bound(system, lambda gram, layer: np.full(2, 1.01 * gram[0, 0])) >= 1.0


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_values_that_are_no_multipliers_are_refused(value):
    with pytest.raises(lm.UsageError, match="layer 2"):
        bound(
            chain_of(gaussian([3, 3, 3, 3])),
            lambda gram, layer: np.full(3, 10.0 if layer.number == 1 else value),
        )
    with pytest.raises(lm.UsageError, match="layer 1"):
        bound(chain_of(gaussian([3, 3, 3])), lambda gram, layer: np.full(2, 10.0))


@pytest.mark.parametrize(("name", "c"), RULES)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_no_layer_is_dropped(name, c, at):
    """A recursion that starts at the second layer does not feel the first: ten times its weights is ten times L."""
    weights = gaussian([4, 5, 6, 2])
    before = bound(chain_of(weights), rule(name, c))
    weights[at] = 10.0 * weights[at]
    assert bound(chain_of(weights), rule(name, c)) == pytest.approx(10.0 * before, rel=1e-10)
    dropped = formula([np.eye(5), *gaussian([4, 5, 6, 2])[1:]], lambda g: lm.elimination.choose_s(g, name, c))
    assert dropped != pytest.approx(before, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Depth and units


def test_layers_of_very_different_size():
    """Powers of two on the layers that cancel change nothing, however far they carry the covariance."""
    weights = gaussian([5, *(6 for _ in range(40)), 2])
    expected = bound(chain_of(weights), rule("spectral", 1.0))
    swung = [np.ldexp(w, (300, -300)[k % 2]) if k < 40 else w for k, w in enumerate(weights)]
    assert bound(chain_of(swung), rule("spectral", 1.0)) == pytest.approx(expected, rel=1e-9)
    residual = random_system("residual", 3)
    before = bound(residual, rule("row-sum", 1.4))
    for power in (-200, 200):
        after = bound(rescaled(residual, inputs=2.0**power), rule("row-sum", 1.4))
        assert after == pytest.approx(2.0**power * before, rel=1e-10)


def test_thousands_of_layers_neither_overflow_nor_underflow():
    """Covariances that shrink by 2^-4000 against the products of the layers' norms."""
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    layers = [np.eye(2), *(np.diag([2.0, 0.5]) @ turn if k % 2 else turn.T @ np.diag([0.5, 2.0]) for k in range(3000))]
    found = bound(chain_of([*layers, np.ones((1, 2))]), rule("row-sum", 1.4))
    assert 1.0 < found < math.inf
    shorter = bound(chain_of([*layers[:1501], np.ones((1, 2))]), rule("row-sum", 1.4))
    assert math.log(found) == pytest.approx(2.0 * math.log(shorter), rel=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# The ends


@pytest.mark.parametrize("m", [1, 2, 5, 12])
def test_the_slack_of_an_l1_output_is_the_optimum_of_its_program(m):
    """For a linear network the l2 -> l1 program is min (kappa + sum sigma) / 2 over diag(sigma) >> W W' / kappa."""
    rng = np.random.default_rng(m)
    weights = rng.standard_normal((m, 4))
    cover = least_cover(weights @ weights.T, "1")
    assert np.linalg.eigvalsh(np.diag(cover) - weights @ weights.T)[0] >= -1e-9
    best = lm.solve(lm.from_weights([weights]), "geolip", norm="2:1", backend="clarabel", witness=False).claim
    assert math.sqrt(cover.sum()) == pytest.approx(best, rel=1e-6)


def test_the_slack_of_a_degenerate_output():
    for ends in (np.zeros((3, 3)), np.diag([1.0, 0.0, 0.0]), np.ones((3, 3))):
        cover = least_cover(ends, "1")
        assert np.linalg.eigvalsh(np.diag(cover) - ends)[0] >= -1e-12
        assert np.sqrt(cover.sum()) <= np.sqrt(np.linalg.norm(np.abs(ends), 1) * 3) + 1e-6


def test_norms_and_networks_without_a_statement_are_refused():
    system = chain_of(gaussian([3, 4, 2]))
    for p, q in (("1", "2"), ("2", "inf")):
        with pytest.raises(lm.UsageError, match="no statement"):
            lm.elimination.Recursion(system, lm.Spec(input_norm=p, output_norm=q))


# ---------------------------------------------------------------------------------------------------------------------
# The best S for what a layer feeds


@pytest.mark.parametrize("slopes", SLOPES)
def test_the_best_s_of_a_layer_is_lipsdp_of_that_layer(slopes):
    """What a layer feeds is seen; the value is that of LipSDP-Neuron, and no rule is better."""
    first, second = gaussian([4, 6, 3], seed=3)
    seen = []

    def choose(gram, layer):
        np.testing.assert_allclose(gram / gram[0, 0], (first @ first.T) / (first @ first.T)[0, 0])
        np.testing.assert_allclose(layer.feeds() / layer.feeds()[0, 0], second / second[0, 0])
        seen.append(layer.number)
        return lm.elimination.best_s(gram, layer)

    system = chain_of([first, second], *slopes)
    found = bound(system, choose)
    assert seen == [1]
    model = formulation("lipsdp-neuron").build(system, lm.Spec())
    best = model.bound_of(backend("clarabel").solve(model, SolveOptions()).objective)
    assert found == pytest.approx(best, rel=1e-5)
    for name, c in RULES:
        assert found <= bound(system, rule(name, c)) * (1.0 + 1e-9)


def test_what_a_layer_feeds_on_a_graph_is_everything_that_reads_it():
    system = random_system("skips", 0)
    feeds = {}

    def choose(gram, layer):
        feeds[layer.number] = layer.feeds()
        return lm.elimination.choose_s(gram, "row-sum", 1.4)

    bound(system, choose)
    at = system.positions()
    for k in range(1, len(system.signals)):
        forms = [*(a.pre for a in system.activations), system.output]
        blocks = [m.enclosure().dense().center for f in forms for s, m in f.blocks.items() if at[s] == k]
        expected = np.vstack(blocks)
        assert feeds[k].shape == expected.shape
        ratio = feeds[k][np.abs(expected) > 0] / expected[np.abs(expected) > 0]
        np.testing.assert_allclose(ratio, ratio[0])
