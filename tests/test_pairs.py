"""Pair constraints: which couplings hold, the exact matrix, soundness against enumeration, known values."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from pair_cases import coupling, proved_by, random_coupling, read, solved, square

import lipmodel as lm
from lipmodel.certify.kernel import Block, Rejected
from lipmodel.certify.lmi import Multipliers
from lipmodel.certify.pair_search import CoupledMultipliers, mended, prove_coupled
from lipmodel.certify.pairs import (
    BELOW,
    FLIP,
    TRIANGLE,
    Coupling,
    check_coupled,
    coupled_lmi,
    coupling_fault,
    is_valid,
    semidefinite,
)
from lipmodel.formulation import formulation
from lipmodel.network.increments import chain_of, exact_system
from lipmodel.testing.formulations import formulation_checks
from lipmodel.testing.networks import formal_constant, random_network, random_system

CHECKS = {str(check): check for check in formulation_checks()}
PAIR = formulation("lipsdp-pair")
NORMS = sorted(PAIR.norms)


def test_semidefinite_in_rationals():
    rng = np.random.default_rng(0)
    for _ in range(200):
        half = rng.integers(-2, 3, size=(4, int(rng.integers(1, 5))))
        matrix = half @ half.T
        as_fractions = [[Fraction(int(v), 7) for v in row] for row in matrix]
        assert semidefinite(as_fractions)
        k = int(rng.integers(4))
        if np.linalg.matrix_rank(matrix) < 4:
            vector = np.linalg.svd(matrix)[2][-1]
            if abs(vector[k]) > 1e-3:  # the least change in a direction of the null space is seen
                as_fractions[k][k] -= Fraction(1, 10**30)
                assert not semidefinite(as_fractions)
    assert not semidefinite([[Fraction(0), Fraction(1)], [Fraction(1), Fraction(5)]])


def test_valid_couplings_are_nonnegative_on_increments():
    rng = np.random.default_rng(1)
    for _ in range(60):
        c = random_coupling(rng)
        assert is_valid(c)
        zeta = np.abs(rng.standard_normal((500, 4))) * (rng.random((500, 4)) < 0.6)
        zeta *= np.where(rng.random((500, 1)) < 0.5, 1.0, FLIP)
        values = np.einsum("ki,ij,kj->k", zeta, square(c.matrix), zeta)
        assert values.min() >= -1e-12


def test_the_coupling_by_differences_is_not_valid():
    """(w_1 - w_2) ((v_1 - v_2) - (w_1 - w_2)) = (p_1 - p_2) (k_1 - k_2) for slopes in [0, 1] is of either sign."""
    matrix = np.zeros((4, 4))
    for i, j, v in ((0, 1, 0.5), (0, 3, -0.5), (2, 1, -0.5), (2, 3, 0.5)):
        matrix[i, j] = matrix[j, i] = v
    rng = np.random.default_rng(2)
    entries = tuple(float(matrix[i, j]) for i, j in TRIANGLE)
    for _ in range(200):
        plain, flipped = (tuple((rng.random(6) * (rng.random(6) < 0.5)).tolist()) for _ in range(2))
        assert not is_valid(Coupling(first=(0, 0), second=(0, 1), matrix=entries, plain=plain, flipped=flipped))
    c = mended((0, 0), (0, 1), np.array(entries), np.array([0.5, 0, 0, 0, 0, 0.5]), np.array([0.5, 0, 0, 0, 0, 0.5]))
    assert c is not None
    assert min(np.diag(square(c.matrix))) > 0.1  # it took more than rounding


def test_one_neuron_is_a_special_case():
    plain = np.zeros((4, 4))
    plain[0, 1] = plain[1, 0] = 3.0
    entries = tuple(float(plain[i, j]) for i, j in TRIANGLE)
    part = tuple(float(plain[i, j]) for i, j in BELOW)
    assert is_valid(Coupling(first=(0, 0), second=(0, 1), matrix=entries, plain=part, flipped=part))


def test_mending_refuses_what_is_of_no_use():
    zero, six = np.zeros(10), np.zeros(6)
    assert mended((0, 0), (0, 1), zero, six, six) is None
    assert mended((0, 0), (0, 1), np.full(10, np.nan), six, six) is None
    assert mended((0, 0), (0, 1), np.full(10, np.inf), six, six) is None


def test_mending_puts_the_pair_in_order():
    rng = np.random.default_rng(3)
    c = random_coupling(rng, first=(1, 0), second=(0, 2))
    assert (c.first, c.second) == ((0, 2), (1, 0))
    assert is_valid(c)


def test_the_exact_matrix_is_what_it_says():
    """z' (P - P_coupled) z = sum zeta' M zeta, in rationals, on random graphs with slopes of either sign."""
    rng = np.random.default_rng(4)
    for kind in ("mixed", "residual", "skips", "concat", "trailing"):
        system = exact_system(random_system(kind, 2))
        neurons = [(k, i) for k, n in enumerate(system.sizes[1:]) for i in range(n)]
        chosen = rng.permutation(len(neurons))[:6]
        pairs = [tuple(sorted((neurons[a], neurons[b]))) for a, b in itertools.combinations(sorted(chosen), 2)]
        couplings = [random_coupling(rng, *pair) for pair in pairs]
        t = tuple(rng.random(n) for n in system.sizes[1:])
        outputs = next(iter(system.output.values())).shape[0]
        m = Multipliers(t=t, g=rng.random(system.sizes[0]) + 0.5, s=rng.random(outputs) + 0.5)
        assert coupling_fault(system, couplings) is None
        z = [[Fraction(int(v)) for v in rng.integers(-3, 4, n)] for n in system.sizes]
        z.append([Fraction(0)] * outputs)
        difference = form(coupled_lmi(system, m, []), z) - form(coupled_lmi(system, m, couplings), z)
        assert difference == sum(zeta_form(system, c, z) for c in couplings)


def form(matrix, z):
    """z' M z of exact blocks, in rationals."""
    total = Fraction(0)
    for (values, exponent), part in zip(matrix.diagonal, z, strict=True):
        total += sum(Fraction(v, 2**exponent) * x * x for v, x in zip(values, part, strict=True))
    for (i, j), block in matrix.blocks.items():
        unit = Fraction(2) ** -block.exponent
        own = sum(
            v * x * y for row, x in zip(block.mantissa, z[i], strict=True) for v, y in zip(row, z[j], strict=True)
        )
        total += unit * own * (1 if i == j else 2)
    return total


def zeta_form(system, c, z):
    zeta = []
    for k, i in (c.first, c.second):
        v = Fraction(0)
        for j, block in system.pre[k].items():
            v += (
                sum(Fraction(e) * x for e, x in zip(block.mantissa[i], z[j], strict=True))
                * Fraction(2) ** -block.exponent
            )
        w = z[k + 1][i]
        zeta += [w - Fraction(float(system.alpha[k][i])) * v, Fraction(float(system.beta[k][i])) * v - w]
    entries = dict(zip(TRIANGLE, map(Fraction, c.matrix), strict=True))
    return sum(entries[max(a, b), min(a, b)] * zeta[a] * zeta[b] for a in range(4) for b in range(4))


def test_radii_of_weights_are_carried_along():
    """The enclosure with radii contains the matrix of every network within them."""
    system = exact_system(chain_of([np.array([[1.0, 2.0], [-1.0, 0.5]]), np.array([[1.0, -1.0]])]))
    rng = np.random.default_rng(5)
    c = random_coupling(rng)
    m = Multipliers(t=(np.ones(2),), g=np.ones(2), s=np.ones(1))
    block = system.pre[0][0]
    shift = 8
    wide = Block(
        mantissa=[[v << shift for v in row] for row in block.mantissa],
        exponent=block.exponent + shift,
        radius=[[3, 0], [1, 2]],
    )
    enclosed = coupled_lmi(replace(system, pre=({0: wide},)), m, [c])
    for signs in itertools.product((-1, 0, 1), repeat=4):
        moved = [[v + s * r for v, s, r in zip(*rows, strict=True)] for rows in zip(
            wide.mantissa, (signs[:2], signs[2:]), wide.radius, strict=True
        )]  # fmt: skip
        moved_block = Block(mantissa=moved, exponent=wide.exponent)
        exact = coupled_lmi(replace(system, pre=({0: moved_block},)), m, [c])
        for place, found in exact.blocks.items():
            held = enclosed.blocks[place]
            common = max(found.exponent, held.exponent)
            for a, row in enumerate(found.mantissa):
                for b, v in enumerate(row):
                    radius = 0 if held.radius is None else held.radius[a][b]
                    gap = abs((v << (common - found.exponent)) - (held.mantissa[a][b] << (common - held.exponent)))
                    assert gap <= radius << (common - held.exponent)


@pytest.mark.parametrize("kind", ["one-layer", "mixed", "residual", "skips", "concat", "trailing"])
def test_random_couplings_never_prove_less_than_enumeration(kind):
    """Couplings that have nothing to do with the network, and any t: whatever is proved is true."""
    rng = np.random.default_rng(6)
    proved = 0
    for seed in range(3):
        system = random_system(kind, seed)
        exact = exact_system(system)
        neurons = [(k, i) for k, n in enumerate(exact.sizes[1:]) for i in range(n)]
        base = lm.solve(random_network(kind, seed), "geolip", norm="2", witness=False)
        t = tuple(np.array([float.fromhex(v) for v in read(part)]) for part in base.certificate["upper"]["t"])
        for scale in (1e-4, 1e-2, 1e-1):
            a, b = sorted(rng.permutation(len(neurons))[:2])
            c = random_coupling(rng, neurons[a], neurons[b])
            small = replace(
                c, **{key: tuple(scale * v for v in getattr(c, key)) for key in ("matrix", "plain", "flipped")}
            )
            small = coupling(
                square(small.matrix), square(small.plain, BELOW), square(small.flipped, BELOW), neurons[a], neurons[b]
            )
            m = Multipliers(t=t, g=np.ones(exact.sizes[0]), s=np.ones(system.output.size))
            for p, q in NORMS:
                found = prove_coupled(exact, (p, q), CoupledMultipliers(multipliers=m, couplings=(small,)), m)
                if found is not None:
                    proved += 1
                    assert found.bound >= formal_constant(system, p, q)
    assert proved > 10


@pytest.mark.parametrize("kind", ["one-layer", "mixed", "residual", "skips", "trailing", "dead"])
def test_between_enumeration_and_lipsdp(kind):
    """FGL <= pairs <= pairs of one layer <= neurons, for all norm pairs, any slopes and graphs."""
    for seed in (3, 4):
        net = random_network(kind, seed)
        system = lm.increments(net)
        p, q = NORMS[(seed + len(kind)) % len(NORMS)]
        found = {
            name: lm.solve(net, "lipsdp-pair", norm=f"{p}:{q}", options={"pairs": name}, witness=False)
            for name in ("all", "layer")
        }
        neuron = lm.solve(net, "geolip", norm=f"{p}:{q}", witness=False).bound
        assert formal_constant(system, p, q) <= found["all"].bound
        assert found["all"].bound <= found["layer"].bound * (1.0 + 1e-6)
        assert found["layer"].bound <= neuron
        for result in found.values():
            assert lm.verify(net, result.certificate).bound == result.bound


@pytest.mark.parametrize("check", ["declaration", "enumeration-one-layer", "enumeration-skips", "repeatable"])
def test_conformance(check):
    CHECKS[check](formulation("lipsdp-pair", {"pairs": "layer"}) if check != "declaration" else PAIR)


class LipSDPNetwork(lm.Formulation):
    """The coupled inequality as it was published, which does not hold for increments."""

    name, norms = "lipsdp-network", {("2", "2")}

    def build(self, system, spec):
        m = lm.Model(self.name)
        ball, price = m.ball(system.input, "2")
        form = ball - lm.inner(system.output, system.output)
        for act in system.activations:
            form -= lm.qc.slope_restricted(act, m.multiplier(act))
            i, j = np.triu_indices(act.size, 1)
            between = np.zeros((len(i), act.size))
            between[np.arange(len(i)), i], between[np.arange(len(i)), j] = 1.0, -1.0
            w, v = between @ act.post, between @ act.pre
            form -= 2 * lm.inner(w, v - w, weight=m.variable("coupling", len(i), nonnegative=True))
        m.require(form >= 0)
        m.minimize(2 * price, bound="sqrt")
        return m


def coupled_claim(net):
    model = LipSDPNetwork().build(lm.increments(net), lm.Spec())
    point = solved(model)
    return model.bound_of(point.objective)


def test_the_witness_against_couplings_by_differences():
    """f(x) = relu(x) - relu(x - 10): its constant is 1, which those couplings undercut and pairs do not."""
    net = lm.from_weights(
        [np.array([[1.0], [1.0]]), np.array([[1.0, -1.0]])], biases=[np.array([0.0, -10.0]), np.zeros(1)]
    )
    assert coupled_claim(net) < 1e-3
    by_hand = lm.solve(net, LipSDPNetwork())
    assert by_hand.assurance == "proved"
    assert by_hand.bound >= 1.0
    result = lm.solve(net, "lipsdp-pair")
    assert 1.0 <= result.bound <= 1.0 + 1e-6
    system = exact_system(lm.increments(net))
    matrix = np.zeros((4, 4))
    for i, j, v in ((0, 1, 0.5), (0, 3, -0.5), (2, 1, -0.5), (2, 3, 0.5)):
        matrix[i, j] = matrix[j, i] = v
    part = (0.5, 0.0, 0.0, 0.0, 0.0, 0.5)
    bad = Coupling(
        first=(0, 0), second=(0, 1), matrix=tuple(float(matrix[i, j]) for i, j in TRIANGLE), plain=part, flipped=part
    )
    m = Multipliers(t=(np.full(2, 1e-3),), g=np.full(1, 1e-3), s=np.full(1, 1e3))
    with pytest.raises(Rejected, match="does not hold on all increments"):
        check_coupled(system, m, [bad], "2", "2", 2.0)


def test_couplings_by_differences_undercut_and_pairs_do_not():
    rng = np.random.default_rng(7)
    undercut = 0
    for _ in range(20):
        net = lm.from_weights([rng.standard_normal((5, 2)), rng.standard_normal((1, 5))])
        system = lm.increments(net)
        formal = formal_constant(system, "2", "2")
        undercut += coupled_claim(net) < formal * (1.0 - 1e-6)
        model = PAIR.build(system, lm.Spec())
        claim, found = proved_by(model, system)
        assert formal <= found.bound <= formal * 1.01
        assert claim >= formal * (1.0 - 1e-6)
    assert undercut >= 10


def test_the_gap_to_enumeration_closes():
    """On small networks the pairs of all layers give the formal constant to a few digits, those of one layer not."""
    rng = np.random.default_rng(1)
    worst = {"neuron": 0.0, "layer": 0.0, "all": 0.0}
    for _ in range(2):
        net = lm.from_weights([rng.standard_normal(size) for size in ((5, 3), (5, 5), (1, 5))])
        system = lm.increments(net)
        formal = formal_constant(system, "2", "2")
        bounds = {"neuron": lm.solve(net, "lipsdp-neuron", witness=False).bound}
        for name in ("layer", "all"):
            bounds[name] = lm.solve(net, "lipsdp-pair", options={"pairs": name}, witness=False).bound
        worst = {name: max(worst[name], bounds[name] / formal - 1.0) for name in worst}
    assert worst["neuron"] > 0.01
    assert worst["layer"] < 0.5 * worst["neuron"]
    assert 0.0 <= worst["all"] < 1e-3
