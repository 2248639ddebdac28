"""The product rule against exhaustive enumeration of slopes, and its certificates."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import pathlib
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp

from lipmodel.certify.product_rule import (
    ProductActivation,
    ProductSystem,
    check_product,
    exact_norms,
    product_bound,
    product_certificate,
    product_system,
)
from lipmodel.errors import Refuted, UsageError
from lipmodel.network.linear import (
    Composition,
    Dense,
    Diagonal,
    Selection,
    Sparse,
    compose,
    identity,
    total,
)
from lipmodel.ranges import norms
from lipmodel.ranges.norms import CLAIM_MARGIN, float_norms, float_up, induced_norm

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
PAIRS = list(itertools.product(("1", "2", "inf"), repeat=2))


# ------------------------------------------------------------------------------------------------ enumeration


def induced(a, p, q):
    """||A||_{p->q} in floating point, by enumeration of sign vectors where it is NP-hard."""
    order = {"1": 1, "2": 2, "inf": np.inf}
    dual = {"1": np.inf, "2": 2, "inf": 1}
    if p == "1":
        return np.linalg.norm(a, order[q], axis=0).max()
    if q == "inf":
        return np.linalg.norm(a, dual[p], axis=1).max()
    if p == q:
        return np.linalg.norm(a, 2)
    if p == "inf":
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=a.shape[1]))).T
        return np.linalg.norm(a @ signs, order[q], axis=0).max()
    return induced(a.T, "inf", "2")


def jacobians(system, slopes):
    """The linear map of the network for every choice of one of two slopes per neuron."""
    choices = [list(itertools.product(*zip(low, high, strict=True))) for low, high in slopes]
    for pattern in itertools.product(*choices):
        signals = [np.eye(system.input_size)]
        for activation, slope in zip(system.activations, pattern, strict=True):
            v = sum((m.matvec(signals[j]) for j, m in activation.pre.items()), np.zeros((activation.size, 1)))
            signals.append(np.array(slope)[:, None] * v)
        yield sum(m.matvec(signals[j]) for j, m in system.output.items())


def layer(pre, gain):
    gain = np.asarray(gain, dtype=float)
    return ProductActivation(pre=pre, gain=gain, size=len(gain))


def chain(weights, gain=1.0):
    maps = [Dense(weights=np.asarray(w, dtype=float)) for w in weights]
    layers = [layer({k: m}, np.full(m.shape[0], gain)) for k, m in enumerate(maps[:-1])]
    return ProductSystem(input_size=maps[0].shape[1], activations=tuple(layers), output={len(layers): maps[-1]})


def scatter(rows, start, size):
    """The map that writes a vector of `size` entries to the rows start, start + 1, ... of a longer one."""
    index = np.full(rows, -1)
    index[start : start + size] = np.arange(size)
    return Selection(index=index, size=size)


def some_map(rng, m, n):
    a = rng.standard_normal((m, n)) * 10.0 ** rng.uniform(-1, 1)
    kind = rng.integers(0, 4)
    if kind == 1:
        return Sparse(weights=sp.csr_array(a * (rng.random((m, n)) < 0.5)))
    if kind == 2:
        return Composition(
            factors=(Dense(weights=rng.standard_normal((m, 2))), Dense(weights=a[:2] if m > 1 else a.repeat(2, 0)))
        )
    if kind == 3 and m == n:
        return total([identity(m), Dense(weights=a)])
    return Dense(weights=a)


def random_system(rng):
    """Chains, residuals and concatenations of at most three layers; slopes of either sign, one interval per neuron."""
    sizes = [int(rng.integers(1, 4)) for _ in range(rng.integers(1, 4))]
    n = int(rng.integers(1, 4))
    known = [n]
    layers, slopes = [], []
    for size in sizes:
        pre = {len(known) - 1: some_map(rng, size, known[-1])}
        for j in range(len(known) - 1):
            if rng.random() < 0.3:
                pre[j] = some_map(rng, size, known[j])
        low = rng.uniform(-1.5, 1.0, size) if rng.random() < 0.5 else np.zeros(size)
        high = low + rng.uniform(0.1, 2.0, size) if rng.random() < 0.7 else np.maximum(low + 1.0, 1.0)
        layers.append(layer(pre, np.maximum(abs(low), abs(high))))
        slopes.append((low, high))
        known.append(size)
    m = int(rng.integers(1, 4))
    output = {len(known) - 1: some_map(rng, m, known[-1])}
    if rng.random() < 0.5 and len(known) > 1:  # a concatenation: two signals written to different rows
        j, k = len(known) - 1, int(rng.integers(0, len(known) - 1))
        rows = known[j] + known[k]
        output = {
            j: scatter(rows, 0, known[j]),
            k: compose(scatter(rows, known[j], known[k]), some_map(rng, known[k], known[k])),
        }
    return ProductSystem(input_size=n, activations=tuple(layers), output=output), slopes


def test_never_below_the_enumerated_maximum():
    rng = np.random.default_rng(0)
    for _ in range(60):
        system, slopes = random_system(rng)
        matrices = list(jacobians(system, slopes))
        for p, q in PAIRS:
            true = max(induced(j, p, q) for j in matrices)
            assert float_up(product_bound(system, p, q)) >= true * (1 - 1e-13), (p, q)


@pytest.mark.parametrize("scale", [1e-38, 1e38])
def test_extreme_scales(scale):
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(s) for s in ((4, 3), (4, 4), (2, 4))]
    for p, q in PAIRS:
        plain = product_bound(chain(weights), p, q)
        scaled = product_bound(chain([weights[0] * scale, weights[1], weights[2] / scale]), p, q)
        assert float(scaled / plain) == pytest.approx(1.0, rel=1e-11)
    deep = chain([np.full((2, 2), 1e150)] * 5)
    assert product_bound(deep, "2", "2") >= Fraction(2e150) ** 5
    assert float_up(product_bound(deep, "2", "2")) == math.inf


# ------------------------------------------------------------------------------------------------ values


def test_chains_are_at_most_the_product_of_norms():
    rng = np.random.default_rng(2)
    for sizes in [(4, 8, 1), (6, 7, 7, 3), (5, 20, 20, 20, 4)]:
        weights = [rng.standard_normal((b, a)) for a, b in itertools.pairwise(sizes)]
        for r in ("1", "2", "inf"):
            product = math.prod(induced(w, r, r) if r != "2" else np.linalg.norm(w, 2) for w in weights)
            bound = float_up(product_bound(chain(weights), r, r))
            assert bound <= product * (1 + 1e-11)
        assert float_up(product_bound(chain(weights, 0.5), "2", "2")) == pytest.approx(
            float_up(product_bound(chain(weights), "2", "2")) * 0.5 ** (len(weights) - 1), rel=1e-12
        )


def test_the_best_path_through_the_norms_is_taken():
    # 2->inf of the first layer and inf->2 of the second: sqrt 2, where the spectral norms give 2
    first, second = np.ones((2, 2)), np.array([[1.0, 0.0], [0.0, 0.0]])
    assert float_up(product_bound(chain([first, second]), "2", "2")) == pytest.approx(math.sqrt(2), rel=1e-12)


def test_one_linear_layer_is_its_norm():
    rng = np.random.default_rng(3)
    a = rng.standard_normal((3, 4))
    for p, q in PAIRS:
        bound = float_up(product_bound(chain([a]), p, q))
        assert bound == pytest.approx(induced_norm(Dense(weights=a), p, q), rel=1e-12)
    assert product_bound(ProductSystem(input_size=3, activations=(), output={}), "2", "2") == 0


def test_known_values():
    ones = np.ones((2, 2))
    assert 4.0 <= product_bound(chain([ones, ones]), "2", "2") <= 4 * (1 + Fraction(1, 10**11))  # not sqrt(2)^2
    # x + relu(W x), ||W|| = 2
    residual = ProductSystem(
        input_size=2,
        activations=(layer({0: Dense(weights=ones)}, np.ones(2)),),
        output={0: identity(2), 1: identity(2)},
    )
    assert float_up(product_bound(residual, "2", "2")) == pytest.approx(3.0, rel=1e-11)
    assert product_bound(residual, "inf", "inf") == 3


def test_concatenations_are_joined_by_the_norm():
    def branches(*output):
        pre = [layer({0: Dense(weights=np.eye(2) * c)}, np.ones(2)) for c in (3.0, 4.0, 12.0)]
        return ProductSystem(input_size=2, activations=tuple(pre), output=dict(output))

    apart = branches(*((k, scatter(6, 2 * (k - 1), 2)) for k in (1, 2, 3)))
    assert float_up(product_bound(apart, "2", "2")) == pytest.approx(13.0, rel=1e-11)
    assert product_bound(apart, "inf", "inf") == 12
    assert product_bound(apart, "1", "1") == 19
    # a branch over all rows, added to two that are apart
    star = branches(
        (1, identity(2)),
        (2, Selection(index=np.array([0, -1]), size=2)),
        (3, Selection(index=np.array([-1, 1]), size=2)),
    )
    assert float_up(product_bound(star, "2", "2")) == pytest.approx(3 + math.hypot(4, 12), rel=1e-11)
    assert product_bound(star, "inf", "inf") == 3 + 12
    # two and two that overlap, in different rows
    top, low = np.array([0, 1, -1]), np.array([-1, -1, 0])
    pairs = branches(
        (1, Selection(index=top, size=2)), (2, Selection(index=top, size=2)), (3, Selection(index=low, size=2))
    )
    assert product_bound(pairs, "inf", "inf") == 12
    assert float_up(product_bound(pairs, "2", "2")) == pytest.approx(math.hypot(3 + 4, 12), rel=1e-11)


def test_concatenation_under_gains_that_differ():
    gain = np.array([1.0, 1.0, 2.0, 2.0])
    pre = {0: scatter(4, 0, 2), 1: scatter(4, 2, 2)}
    system = ProductSystem(
        input_size=2,
        activations=(layer({0: Dense(weights=3 * np.eye(2))}, np.ones(2)), layer(pre, gain)),
        output={2: identity(4)},
    )
    assert float_up(product_bound(system, "2", "2")) == pytest.approx(math.hypot(1, 6), rel=1e-11)


def test_gains_are_folded_where_that_is_better():
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((5, 4)), rng.standard_normal((3, 5))
    gain = np.array([0.1, 2.0, 0.0, 0.3, 1.0])
    system = ProductSystem(
        input_size=4, activations=(layer({0: Dense(weights=a)}, gain),), output={1: Dense(weights=b)}
    )
    folded = np.linalg.norm(gain[:, None] * a, 2) * np.linalg.norm(b, 2)
    bound = float_up(product_bound(system, "2", "2"))
    assert bound <= folded * (1 + 1e-11)
    assert bound < 0.99 * np.linalg.norm(a, 2) * np.linalg.norm(b, 2) * 2.0
    assert product_bound(chain([a, b], gain=0.0), "2", "2") == 0


def test_a_doubling_graph_has_no_path_enumeration():
    double = total([identity(2), identity(2)])
    layers = tuple(layer({k: double}, np.ones(2)) for k in range(60))
    system = ProductSystem(input_size=2, activations=layers, output={60: identity(2)})
    assert product_bound(system, "2", "2") <= 2**60 * (1 + Fraction(1, 10**9))
    assert 2**60 <= product_bound(system, "inf", "inf") <= 2**60 * (1 + Fraction(1, 10**12))
    assert product_bound(chain([2 * np.eye(2)] * 60), "inf", "inf") == 2**60


def test_a_thousand_layers_and_many_branches():
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal((3, 3)) * 5 for _ in range(1000)]
    bound = product_bound(chain(weights), "inf", "inf", norm=float_norms(spectral_limit=0))
    logarithm = sum(math.log(abs(w).sum(1).max()) for w in weights)
    assert bound.numerator.bit_length() < 20_000
    size = (bound.numerator.bit_length() - bound.denominator.bit_length()) * math.log(2)
    assert 0.2 * logarithm < size <= logarithm + 1
    branches = [layer({0: identity(1)}, np.ones(1)) for _ in range(300)]
    summed = ProductSystem(input_size=1, activations=tuple(branches), output={k: identity(1) for k in range(301)})
    assert product_bound(summed, "2", "2") == 301
    joined = {k: scatter(300, k - 1, 1) for k in range(1, 301)}
    concatenated = ProductSystem(input_size=1, activations=tuple(branches), output=joined)
    assert float_up(product_bound(concatenated, "2", "2")) == pytest.approx(math.sqrt(300), rel=1e-12)


# ------------------------------------------------------------------------------------------------ certificates


def certificate(system, p, q):
    evaluator = float_norms(margin=CLAIM_MARGIN)
    bound = float_up(product_bound(system, p, q, evaluator))
    return bound, [value.hex() for value in evaluator.log]


@pytest.mark.parametrize("limit", [norms.EXPANSION_LIMIT, 0])
def test_every_certificate_is_accepted_by_the_exact_check(limit, monkeypatch):
    monkeypatch.setattr(norms, "EXPANSION_LIMIT", limit)
    rng = np.random.default_rng(6)
    for _ in range(15):
        system, _ = random_system(rng)
        for p, q in PAIRS:
            bound, claims = certificate(system, p, q)
            assert bound == float_up(product_bound(system, p, q))
            check_product(system, p, q, bound, claims)
            exact = product_bound(system, p, q, exact_norms(claims))
            assert exact <= Fraction(bound) <= exact * (1 + Fraction(1, 10**11)) + Fraction(5e-324)


def test_certificates_leave_out_what_they_do_not_need():
    rng = np.random.default_rng(12)
    for _ in range(6):
        system, _ = random_system(rng)
        for p, q in PAIRS:
            bound, claims = product_certificate(system, p, q)
            assert bound == float_up(product_bound(system, p, q))
            check_product(system, p, q, bound, claims)
    ones = chain([np.ones((4, 4))] * 3)  # the path through the norm inf is as good as any
    assert product_certificate(ones, "inf", "inf")[1] == ["inf"] * 2
    mixed = chain([rng.standard_normal((4, 4)) for _ in range(3)])
    _, claims = product_certificate(mixed, "2", "2")
    assert "inf" not in claims
    assert len(claims) == 3


def test_increment_systems():
    from lipmodel.network.increments import chain_of

    rng = np.random.default_rng(13)
    weights = [rng.standard_normal(s) for s in ((4, 3), (5, 4), (2, 5))]
    for alpha, beta, gain in ((0.0, 1.0, 1.0), (-0.5, 0.25, 0.5)):
        system = product_system(chain_of(weights, alpha=alpha, beta=beta))
        for p, q in PAIRS:
            assert product_bound(system, p, q) == product_bound(chain(weights, gain), p, q)


def test_shared_maps_need_no_shared_identity():
    rng = np.random.default_rng(7)
    a = Dense(weights=rng.standard_normal((3, 3)))

    def system(*maps):
        layers = tuple(layer({k: m}, np.ones(3)) for k, m in enumerate(maps[:-1]))
        return ProductSystem(input_size=3, activations=layers, output={len(layers): maps[-1]})

    bound, claims = certificate(system(a, a, a), "2", "2")
    assert len(claims) == 3
    check_product(system(*(Dense(weights=a.weights.copy()) for _ in range(3))), "2", "2", bound, claims)


def test_false_certificates_are_refuted():
    rng = np.random.default_rng(8)
    system = chain([rng.standard_normal(s) for s in ((6, 5), (6, 6), (4, 6))])
    bound, claims = certificate(system, "2", "2")
    check_product(system, "2", "2", bound, claims)
    check_product(system, "2", "2", math.inf, claims)
    check_product(system, "2", "2", bound * 2, claims)
    for wrong in (bound * (1 - 1e-9), 0.0, -1.0, math.nan):
        with pytest.raises(Refuted, match="not"):
            check_product(system, "2", "2", wrong, claims)
    for k in range(len(claims)):
        lower = [*claims]
        lower[k] = (float.fromhex(claims[k]) * (1 - 1e-9)).hex()
        with pytest.raises(Refuted, match="is not proved"):
            check_product(system, "2", "2", bound, lower)
        for text in ("nan", "-0x1p+3", "spectral", None, "0x1p+99999"):
            with pytest.raises(Refuted, match="is not a spectral norm"):
                check_product(system, "2", "2", bound, [*claims[:k], text, *claims[k + 1 :]])
    with pytest.raises(Refuted, match="lists only"):
        check_product(system, "2", "2", bound, claims[:-1])
    with pytest.raises(Refuted, match="lists 4"):
        check_product(system, "2", "2", bound, [*claims, claims[0]])
    with pytest.raises(Refuted):
        check_product(chain([np.full((6, 5), 9.0), np.eye(6), np.eye(6)]), "2", "2", bound, claims)


def test_claims_of_nothing_fall_back_to_sums():
    rng = np.random.default_rng(9)
    system = chain([rng.standard_normal((6, 6)), rng.standard_normal((6, 6))])
    bound, claims = certificate(system, "2", "2")
    exact = product_bound(system, "2", "2", exact_norms([math.inf] * len(claims)))
    assert (
        Fraction(bound)
        < exact
        <= math.prod(Fraction(np.linalg.norm(m.weights)) for m in (system.activations[0].pre[0], system.output[1]))
        * (1 + Fraction(1, 10**9))
    )
    with pytest.raises(Refuted):
        check_product(system, "2", "2", bound, ["inf"] * len(claims))


def test_a_claim_too_large_to_check_is_refuted_unless_sums_imply_it():
    rng = np.random.default_rng(10)
    system = chain([rng.standard_normal((6, 6)), np.ones((1, 6))])
    bound, claims = certificate(system, "2", "2")
    assert len(claims) == 1
    with pytest.raises(Refuted, match="too large"):
        product_bound(system, "2", "2", exact_norms(claims, spectral_limit=5))
    assert product_bound(system, "2", "2", exact_norms([1e3], spectral_limit=5)) > Fraction(bound)


def test_plain_norm_functions_serve_too():
    rng = np.random.default_rng(11)
    system, _ = random_system(rng)
    for p, q in PAIRS:
        plain = float_up(product_bound(system, p, q, norm=induced_norm))
        assert plain == pytest.approx(float_up(product_bound(system, p, q)), rel=1e-11)
        assert plain <= float_up(product_bound(system, p, q)) * (1 + 1e-13)
    with pytest.raises(ValueError, match="not an upper bound"):
        product_bound(system, "2", "2", norm=lambda *_: math.nan)


def test_infinite_gains_and_weights_prove_nothing():
    eye = Dense(weights=np.eye(2))
    for gain in ([1.0, math.inf], [math.inf, math.inf]):
        system = ProductSystem(input_size=2, activations=(layer({0: eye}, gain),), output={1: eye})
        assert product_bound(system, "2", "2") == math.inf
    broken = chain([np.array([[math.nan, 1.0], [0.0, 1.0]]), np.zeros((2, 2))])
    assert product_bound(broken, "2", "2") == math.inf
    for gain in ([1.0, -1.0], [1.0, math.nan], [1.0]):
        activation = ProductActivation(pre={0: eye}, gain=np.array(gain), size=2)
        with pytest.raises(ValueError, match="gains"):
            product_bound(ProductSystem(input_size=2, activations=(activation,), output={1: eye}), "2", "2")


def test_systems_that_do_not_fit_are_refused():
    eye = Dense(weights=np.eye(2))
    with pytest.raises(ValueError, match="does not fit"):
        product_bound(ProductSystem(input_size=2, activations=(), output={1: eye}), "2", "2")
    with pytest.raises(ValueError, match="does not fit"):
        product_bound(ProductSystem(input_size=3, activations=(), output={0: eye}), "2", "2")
    own = (layer({1: eye}, np.ones(2)),)
    with pytest.raises(ValueError, match="does not fit"):
        product_bound(ProductSystem(input_size=2, activations=own, output={1: eye}), "2", "2")
    with pytest.raises(UsageError):
        product_bound(chain([np.eye(2)]), "2", "three")


def test_structured_maps_count_as_what_they_are():
    # a diagonal with a zero and a sparse map with an empty row write to different rows
    diagonal = Diagonal(values=np.array([3.0, 0.0]))
    sparse = Sparse(weights=sp.csr_array(np.array([[0.0, 0.0], [0.0, 4.0]])))
    dense = Dense(weights=np.array([[0.0, 0.0], [0.0, 4.0]]))
    for other in (sparse, dense):
        layers = (layer({0: identity(2)}, np.ones(2)),)
        system = ProductSystem(input_size=2, activations=layers, output={0: diagonal, 1: other})
        assert product_bound(system, "2", "2") == 5
    inexact = Dense(weights=np.array([[0.0, 0.0], [0.0, 4.0]]), radius=np.full((2, 2), 1e-9))
    system = ProductSystem(input_size=2, activations=layers, output={0: diagonal, 1: inexact})
    assert product_bound(system, "2", "2") > 7


# ------------------------------------------------------------------------------------------------ known networks


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
def test_reference_values_of_the_product():
    spec = importlib.util.spec_from_file_location("reference_networks", SHARED / "oracles" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    checked = 0
    for path in sorted((SHARED / "oracles").glob("*.json")):
        for oracle in json.loads(path.read_text()).get("oracles", []):
            if oracle.get("quantity") != "product" or "recipe" not in oracle["network"]:
                continue
            if oracle["relation"] != "equal" or oracle["output"] != "all":
                continue
            network = generate.RECIPES[oracle["network"]["recipe"]](**oracle["network"]["args"])
            if network.Ws is None or network.act != "Relu":
                continue
            p, q = oracle["norm"]["input"], oracle["norm"]["output"]
            bound = float_up(product_bound(chain(network.Ws), p, q))
            assert bound <= oracle["value"] * (1 + oracle["rtol"]), oracle["id"]
            checked += 1
            if p == "2":  # the path through the 2-norm is the best of these networks
                assert bound == pytest.approx(oracle["value"], rel=oracle["rtol"]), oracle["id"]
    assert checked >= 20
