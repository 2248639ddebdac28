"""Repair: from multipliers of any quality to a proved bound, never below enumeration, never above the closed forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from lipmodel.backends import backend
from lipmodel.backends.base import SolveOptions
from lipmodel.certify.extract import extract
from lipmodel.certify.kernel import decides_positive_semidefinite, exact_lmi
from lipmodel.certify.lmi import Multipliers, lmi_enclosure
from lipmodel.certify.repair import prove
from lipmodel.certify.rigor import proves_lmi
from lipmodel.elimination import (
    RULES,
    backward_sweep,
    choose_s,
    closed_forms,
    forward_multipliers,
    path_weights,
    scaled_blocks,
    top_eigenvalue,
)
from lipmodel.network.increments import chain_of, exact_system, float_system
from lipmodel.testing.backends import decoupled, lipsdp, mixed_norm
from lipmodel.testing.networks import KINDS, formal_constant, induced_norms, jacobians, random_system, slope_vertices

PAIRS = [("2", "2"), ("inf", "1"), ("inf", "2"), ("2", "1")]
ROUNDING = 1e-9


def model_of(system, p, q):
    return lipsdp(system) if (p, q) == ("2", "2") else mixed_norm(system, p, q)


def solved(system, p, q):
    """A solver's multipliers and its claim."""
    model = model_of(system, p, q)
    point = backend("clarabel").solve(model, SolveOptions())
    return extract(model, system, point.values)[0], model.bound_of(point.objective)


def shaped(system, values):
    """Multipliers of the right shapes with entries from values(shape)."""
    return Multipliers(
        t=tuple(values(a.size) for a in system.activations),
        g=values(system.input.size),
        s=values(system.output.size),
    )


def garbage(system, rng):
    """Named candidates, none of them any good."""
    wild = np.array([np.nan, np.inf, -np.inf, 0.0, -1.0, 1.0, 1e308, -1e308, 5e-324, 1e-300, 1e300])
    good = shaped(system, np.ones)
    wrong = [
        Multipliers(t=good.t[:-1], g=good.g, s=good.s),
        Multipliers(t=(*good.t, np.ones(3)), g=good.g, s=good.s),
        Multipliers(t=tuple(np.ones(x.size + 1) for x in good.t), g=good.g, s=good.s),
        Multipliers(t=tuple(np.ones((x.size, 1)) for x in good.t), g=good.g, s=good.s),
        Multipliers(t=good.t, g=np.ones(system.input.size + 1), s=good.s),
        Multipliers(t=good.t, g=good.g, s=np.zeros(0)),
    ]
    return {
        "nan": shaped(system, lambda n: np.full(n, np.nan)),
        "inf": shaped(system, lambda n: np.full(n, np.inf)),
        "zeros": shaped(system, np.zeros),
        "ones": good,
        "negative": shaped(system, lambda n: -rng.uniform(1.0, 2.0, size=n)),
        "huge": shaped(system, lambda n: rng.uniform(1.0, 2.0, size=n) * 1e307),
        "tiny": shaped(system, lambda n: rng.uniform(1.0, 2.0, size=n) * 1e-307),
        "spread": shaped(system, lambda n: 10.0 ** rng.uniform(-200.0, 200.0, size=n)),
        "wild": shaped(system, lambda n: rng.choice(wild, size=n)),
        "half-nan": shaped(system, lambda n: np.where(rng.random(n) < 0.5, np.nan, rng.uniform(0.1, 10.0, size=n))),
        **{f"wrong-shape-{k}": m for k, m in enumerate(wrong)},
    }


# -------------------------------------------------------------------------------- garbage


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_gives_a_proved_bound_no_worse_than_the_closed_forms(kind):
    system = random_system(kind, 11)
    matrices = float_system(system)
    formal = {pair: formal_constant(system, *pair) for pair in PAIRS}
    closed = {pair: prove(matrices, *pair).bound for pair in PAIRS}
    assert all(closed[pair] >= formal[pair] * (1.0 - ROUNDING) for pair in PAIRS)
    rng = np.random.default_rng(0)
    for pair, (name, candidate) in zip(itertools.cycle(PAIRS), garbage(system, rng).items(), strict=False):
        with np.errstate(all="ignore"):
            found = prove(matrices, *pair, [(name, candidate)])
        assert found is not None, name
        assert proves_lmi(matrices, found.multipliers), name
        assert found.bound >= formal[pair] * (1.0 - ROUNDING), name
        assert found.bound <= closed[pair] * (1.0 + 1e-9), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_proved_in_floating_point_is_proved_exactly(kind):
    system = random_system(kind, 12)
    matrices, exact = float_system(system), exact_system(system)
    damaged = garbage(system, np.random.default_rng(1))["half-nan"]
    for p, q in PAIRS:
        for candidate in (damaged, solved(system, p, q)[0]):
            m = prove(matrices, p, q, [("candidate", candidate)]).multipliers
            widened = Multipliers(t=m.t, g=m.g * (1.0 + 1e-9), s=m.s * (1.0 + 1e-9))
            assert decides_positive_semidefinite(exact_lmi(exact, widened))


def test_three_hundred_random_systems():
    rng = np.random.default_rng(2)
    looseness = []
    for seed in range(300):
        kind = KINDS[seed % len(KINDS)]
        inputs, outputs = (int(n) for n in rng.integers(1, 4, size=2))
        system = random_system(kind, 1000 + seed, inputs=inputs, outputs=outputs)
        if not system.output.blocks:
            continue  # all of it was dead: the network is constant
        p, q = PAIRS[int(rng.integers(4))]
        candidates = garbage(system, rng)
        name = list(candidates)[int(rng.integers(len(candidates)))]
        with np.errstate(all="ignore"):
            found = prove(float_system(system), p, q, [(name, candidates[name])])
        formal = formal_constant(system, p, q)
        where = f"{kind} {1000 + seed}, {inputs} inputs, {outputs} outputs, {p}->{q}, {name}"
        assert found is not None, where
        assert found.bound >= formal * (1.0 - ROUNDING), where
        assert math.isfinite(found.bound), where
        if formal > 0.0:
            looseness.append(found.bound / formal)
    assert np.median(looseness) < 1.5


# -------------------------------------------------------------------------------- good multipliers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_a_solvers_optimum_is_proved_almost_as_it_is(kind, p, q):
    system = random_system(kind, 13)
    matrices = float_system(system)
    multipliers, claim = solved(system, p, q)
    found = prove(matrices, p, q, [("solver", multipliers)], closed="doubt")
    assert found.bound <= claim * (1.0 + 1e-6)
    assert found.bound >= formal_constant(system, p, q) * (1.0 - ROUNDING)
    assert found.origin.startswith("solver")


@pytest.mark.parametrize("kind", ["chain", "mixed", "residual", "skips", "concat"])
def test_rough_multipliers_cost_little(kind):
    rng = np.random.default_rng(3)
    for p, q in PAIRS:
        system = random_system(kind, 14)
        multipliers, claim = solved(system, p, q)
        rough = Multipliers(
            t=tuple(t * np.exp(0.01 * rng.standard_normal(t.size)) for t in multipliers.t),
            g=multipliers.g * np.exp(0.01 * rng.standard_normal(multipliers.g.size)),
            s=multipliers.s * np.exp(0.01 * rng.standard_normal(multipliers.s.size)),
        )
        found = prove(float_system(system), p, q, [("rough", rough)], closed="doubt")
        assert found.bound <= claim * 1.05


@pytest.mark.parametrize(("kind", "p", "q"), [("mixed", "2", "2"), ("residual", "inf", "2"), ("scaled", "inf", "1")])
def test_one_missing_multiplier_does_not_spoil_the_others(kind, p, q):
    system = random_system(kind, 15)
    matrices = float_system(system)
    multipliers, claim = solved(system, p, q)
    closed = prove(matrices, p, q).bound
    for k, t in enumerate(multipliers.t):
        for j in range(t.size):
            damaged = t.copy()
            damaged[j] = -1.0
            layers = (*multipliers.t[:k], damaged, *multipliers.t[k + 1 :])
            candidate = Multipliers(t=layers, g=multipliers.g, s=multipliers.s)
            found = prove(matrices, p, q, [("damaged", candidate)])
            assert claim * (1.0 - 1e-6) <= found.bound <= closed * (1.0 + 1e-9)


def test_the_free_scale_of_the_multipliers_does_not_matter():
    system = random_system("mixed", 16)
    matrices = float_system(system)
    for p, q in PAIRS:
        m, _ = solved(system, p, q)
        bounds = []
        for c in (1.0, 2.0**-200, 2.0**200):
            scaled = Multipliers(t=tuple(c * t for t in m.t), g=c * m.g, s=m.s / c)
            bounds.append(prove(matrices, p, q, [("scaled", scaled)], closed="doubt").bound)
        np.testing.assert_allclose(bounds, bounds[0], rtol=1e-9)


def test_the_best_candidate_wins():
    system = random_system("residual", 17)
    matrices = float_system(system)
    best, claim = solved(system, "2", "2")
    candidates = [
        ("ones", shaped(system, np.ones)),
        ("solver", best),
        ("nan", shaped(system, lambda n: np.full(n, np.nan))),
    ]
    for order in (candidates, candidates[::-1]):
        assert prove(matrices, "2", "2", order).bound <= claim * (1.0 + 1e-6)


def test_independent_chains_are_proved_exactly():
    gains, alpha, beta = np.array([3.0, -2.0]), np.array([-1.0, 0.25]), np.array([0.5, 1.5])
    system = decoupled(gains, alpha, beta, 3)
    each = np.abs(gains) * np.maximum(np.abs(alpha), np.abs(beta)) ** 3
    for (p, q), value in zip(PAIRS, (each.max(), each.sum(), np.linalg.norm(each), np.linalg.norm(each)), strict=True):
        multipliers, _ = solved(system, p, q)
        assert prove(float_system(system), p, q, [("x", multipliers)]).bound == pytest.approx(value, rel=1e-6)


# -------------------------------------------------------------------------------- conditions


def test_a_past_deadline_still_gives_a_bound():
    system = random_system("skips", 18)
    found = prove(float_system(system), "inf", "2", deadline=-math.inf)
    assert found.bound >= formal_constant(system, "inf", "2") * (1.0 - ROUNDING)


def test_a_further_check_is_asked_and_heeded():
    system = random_system("chain", 19)
    matrices = float_system(system)
    seen = []
    assert prove(matrices, "2", "2", check=lambda m: seen.append(m) or False) is None
    assert seen
    accepted = prove(matrices, "2", "2", check=lambda m: True)
    assert accepted.bound == prove(matrices, "2", "2").bound


def test_an_output_weight_of_zero_beside_a_direct_path():
    """The activations do not matter; the constant is that of the direct path."""
    from lipmodel.model.forms import LinearForm, add_forms

    rng = np.random.default_rng(4)
    chain = chain_of([rng.standard_normal((3, 2)), np.zeros((2, 3))])
    direct = rng.standard_normal((2, 2)) @ chain.input
    both = add_forms([chain.output, direct])
    system = replace(chain, output=LinearForm(size=2, blocks=both.blocks, role="output"))
    weights = direct.blocks[chain.signals[0]].weights
    for p, q in PAIRS:
        expected = float(induced_norms(weights[None], p, q)[0])
        found = prove(float_system(system), p, q)
        assert found.bound >= expected * (1.0 - 1e-12)
        if (p, q) == ("2", "2"):
            assert found.bound == pytest.approx(expected, rel=1e-6)


def test_an_output_that_reads_nothing_is_an_error():
    from lipmodel.model.forms import LinearForm

    system = replace(random_system("chain", 0), output=LinearForm(size=2, blocks={}, role="output"))
    with pytest.raises(ValueError, match="the network is constant"):
        prove(float_system(system), "2", "2")


def test_a_network_that_is_zero_has_a_tiny_bound():
    system = chain_of([np.zeros((3, 2)), np.ones((2, 3))])
    found = prove(float_system(system), "2", "2")
    assert 0.0 <= found.bound < 1e-3


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-1.0, 1.0), (0.5, 2.0)])
def test_deep_networks_do_not_overflow(slopes):
    rng = np.random.default_rng(5)
    weights = [10.0 ** rng.uniform(-6.0, 6.0) * rng.standard_normal((4, 4)) for _ in range(40)]
    found = prove(float_system(chain_of(weights, *slopes)), "2", "2")
    gain = max(abs(slopes[0]), abs(slopes[1]))
    product = sum(math.log10(np.linalg.norm(w, 2)) for w in weights) + 39 * math.log10(gain)
    assert math.log10(found.bound) <= product + 1e-3
    all_active = np.linalg.norm(_product(weights, gain), 2)
    assert found.bound >= all_active * (1.0 - 1e-9)


def _product(weights, gain):
    result = weights[0]
    for w in weights[1:]:
        result = gain * (w @ result)
    return result


def test_the_input_block_of_two_signed_slopes_counts():
    """y = |w x|: without the block 2 A'diag(alpha beta t)A the inequality would be satisfied by almost nothing."""
    for weight in (1e-3, 1.0, 7.0):
        system = chain_of([np.array([[weight]]), np.array([[1.0]])], -1.0, 1.0)
        for p, q in PAIRS:
            found = prove(float_system(system), p, q)
            assert weight <= found.bound <= weight * (1.0 + 1e-5)


# -------------------------------------------------------------------------------- elimination


@pytest.mark.parametrize("kind", KINDS)
def test_the_sweep_is_the_schur_complement(kind):
    """diag(g, s) - N is what elimination of the activations leaves of the inequality's matrix."""
    system = random_system(kind, 20)
    matrices = float_system(system)
    blocks = scaled_blocks(matrices)
    for slack in (1.0, 1e-3):
        reduced = backward_sweep(blocks, None, 1e-10, slack=slack)
        n0, m = system.input.size, system.output.size
        t = tuple(x / (c * c) for x, c in zip(reduced.t, blocks.scale[1:], strict=True))
        g, s = np.full(n0, 3.0), np.full(m, 2.0 * blocks.scale_out**2)
        matrix = _dense(lmi_enclosure(matrices, Multipliers(t=t, g=g, s=s)))
        ends = np.r_[:n0, len(matrix) - m : len(matrix)]
        hidden = np.arange(n0, len(matrix) - m)
        inner = np.linalg.solve(matrix[np.ix_(hidden, hidden)], matrix[np.ix_(hidden, ends)])
        left = matrix[np.ix_(ends, ends)] - matrix[np.ix_(ends, hidden)] @ inner
        scale = np.concatenate([np.ones(n0), np.full(m, 1.0 / blocks.scale_out)])
        expected = np.diag(np.r_[g, s / blocks.scale_out**2]) - reduced.ends
        size = np.abs(reduced.ends).max()
        np.testing.assert_allclose(scale[:, None] * left * scale, expected, rtol=1e-6, atol=1e-6 * size)


def _dense(blocks):
    starts = np.concatenate([[0], np.cumsum(blocks.sizes)])
    matrix = np.zeros((starts[-1],) * 2)
    for (i, j), block in blocks.expanded().items():
        center = block.center
        matrix[starts[i] : starts[i + 1], starts[j] : starts[j + 1]] = center
        matrix[starts[j] : starts[j + 1], starts[i] : starts[i + 1]] = center.T
    return matrix


@pytest.mark.parametrize(("rule", "c"), RULES)
def test_closed_forms_of_chains_are_the_published_recursion(rule, c):
    """G = W Y W', Y+ = S (2 S - G)^-1 S from Y = I; the bound is sqrt(lmax(W_d Y W_d'))."""
    rng = np.random.default_rng(6)
    dims = [3, 6, 5, 4, 2]
    weights = [rng.standard_normal((b, a)) for a, b in pairwise(dims)]
    y = np.eye(3)
    for w in weights[:-1]:
        gram = w @ y @ w.T
        s = np.diag(choose_s(gram, rule, c))
        assert np.linalg.eigvalsh(2.0 * s - gram)[0] > 0.0
        y = s @ np.linalg.solve(2.0 * s - gram, s)
    value = math.sqrt(np.linalg.eigvalsh(weights[-1] @ y @ weights[-1].T)[-1])
    matrices = float_system(chain_of(weights))
    blocks = scaled_blocks(matrices)
    reduced = backward_sweep(blocks, forward_multipliers(blocks, rule, c, np.ones(3)), 1e-12)
    tight = (value / blocks.scale_out) ** 2
    slack = np.linalg.eigvalsh(np.diag([1.0, 1.0, 1.0, tight, tight]) - reduced.ends)[0]
    assert abs(slack) <= 1e-9  # g = 1 and s = value^2 are just feasible
    assert prove(matrices, "2", "2").bound <= value * (1.0 + 1e-9)


def test_the_choice_of_s_survives_degenerate_grams():
    for rule, c in RULES:
        for gram in (np.zeros((3, 3)), np.diag([1.0, 0.0, 0.0]), np.ones((3, 3)), np.diag([1e-200, 1.0, 1e150])):
            s = choose_s(gram, rule, c)
            assert np.all(np.isfinite(s) & (s > 0.0))
            assert np.linalg.eigvalsh(2.0 * np.diag(s) - gram)[0] >= -1e-12 * np.abs(gram).max()


@pytest.mark.parametrize("kind", ["chain", "mixed", "residual", "skips", "concat", "dead"])
def test_closed_forms_exist_and_path_weights_bound_every_path(kind):
    system = random_system(kind, 21)
    blocks = scaled_blocks(float_system(system))
    names = [name for name, t in closed_forms(blocks, "inf") if all(np.all(x > 0.0) for x in t)]
    assert len(names) >= len(RULES)
    columns = np.abs(jacobians(system, slope_vertices(system))).sum(axis=1).max(axis=0)
    weights = path_weights(blocks)
    assert weights.max() == 1.0
    scale = np.max(columns / np.maximum(weights, 1e-9))
    assert np.all(columns <= scale * weights * (1.0 + 1e-12))


@pytest.mark.parametrize("slopes", [(-1.0, 1.0), (-0.5, 1.0), (0.25, 1.0), (0.9, 1.0), (-2.0, 0.5)])
def test_the_sweep_reaches_the_product_of_norms_for_any_slopes(slopes):
    rng = np.random.default_rng(7)
    weights = [rng.standard_normal((5, 5)) for _ in range(6)]
    gain = max(map(abs, slopes))
    product = math.prod(np.linalg.norm(w, 2) for w in weights) * gain**5
    assert prove(float_system(chain_of(weights, *slopes)), "2", "2").bound <= product * (1.0 + 1e-4)


def test_closed_forms_measure_the_input_by_its_own_norm():
    """The l2 ball has equal weights; for the l_inf ball inputs that hardly matter get small ones."""
    rng = np.random.default_rng(9)
    first = rng.standard_normal((4, 3)) * np.array([1e3, 1.0, 1e-3])
    blocks = scaled_blocks(float_system(chain_of([first, rng.standard_normal((2, 4))])))
    for norm, start in (("2", np.ones(3)), ("inf", 1.0 / path_weights(blocks))):
        expected = forward_multipliers(blocks, *RULES[0], start)
        name, found = next(iter(closed_forms(blocks, norm)))
        assert name == f"{RULES[0][0]}({RULES[0][1]:g})"
        np.testing.assert_array_equal(found[0], expected[0])


def test_closed_forms_get_past_a_layer_that_nothing_reaches():
    rng = np.random.default_rng(10)
    weights = [np.zeros((3, 2)), rng.standard_normal((3, 3)), rng.standard_normal((2, 3))]
    blocks = scaled_blocks(float_system(chain_of(weights)))
    assert len(list(closed_forms(blocks, "2"))) == len(RULES)


def test_top_eigenvalues():
    rng = np.random.default_rng(8)
    matrix = rng.standard_normal((6, 6))
    matrix = matrix + matrix.T
    assert top_eigenvalue(matrix) == pytest.approx(np.linalg.eigvalsh(matrix)[-1])
    assert top_eigenvalue(np.zeros((0, 0))) == 0.0
    assert top_eigenvalue(np.array([[-3.0]])) == -3.0
    assert top_eigenvalue(np.full((2, 2), np.nan)) == math.inf
