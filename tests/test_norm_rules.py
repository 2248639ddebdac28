"""The rules for norm expressions: their two arithmetics, the exact check, and certificates tampered with."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
from random_networks import FIXED, Phi
from test_tampering import Sample, at, chain, is_free, judge, leaves, other_values, replaced, with_bound

import lipmodel as lm
from lipmodel.certify import norm_arithmetic, norm_rules, norm_treatment
from lipmodel.certify.exact_entries import ExactEntries, exact_entries
from lipmodel.certify.norm_arithmetic import ExactArithmetic, FloatArithmetic
from lipmodel.certify.norm_recursions import Choices, SignedForms, absolute_bound, liplt_bound
from lipmodel.certify.norm_rules import NORM_RULES, check_norm_rule, prove_expression, read_choices, refusal
from lipmodel.certify.product_rule import exact_norms
from lipmodel.errors import Refuted
from lipmodel.formulation import formulation
from lipmodel.network.conv import Conv, Pool, valid_counts, window_sum
from lipmodel.network.increments import chain_of
from lipmodel.network.linear import Composition, Dense, Diagonal, Selection, Sparse, Transposed, compose, total
from lipmodel.ranges.norms import float_up
from lipmodel.testing.networks import random_system

FLOAT, EXACT = FloatArithmetic(), ExactArithmetic()
RELU, ABS = FIXED[0], FIXED[1]
BENT = Phi(op="LeakyRelu", low=-0.5, high=1.0, attributes=(("alpha", -0.5),))


# --------------------------------------------------------------------------------------------------------- arithmetic


def lower_and_upper(matrix):
    """The ends of an enclosure, dense, in fractions."""
    if isinstance(matrix, ExactEntries):
        ends = np.zeros((2, *matrix.shape), dtype=object)
        rad = matrix.rad if matrix.rad is not None else 0 * matrix.mid
        unit = Fraction(1, 1 << matrix.exponent)
        ends[0][matrix.rows, matrix.cols] = [v * unit for v in matrix.mid - rad]
        ends[1][matrix.rows, matrix.cols] = [v * unit for v in matrix.mid + rad]
        return ends
    e = matrix.dense()
    center, radius = (
        np.vectorize(Fraction, otypes=[object])(v)
        for v in (e.center, np.zeros(e.shape) if e.radius is None else e.radius)
    )
    return np.array([center - radius, center + radius])


def fractions(a):
    return np.vectorize(Fraction, otypes=[object])(np.asarray(a, dtype=np.float64))


def contains(matrix, value):
    low, high = lower_and_upper(matrix)
    return bool(np.all(low <= value) and np.all(value <= high))


@pytest.mark.parametrize("arithmetic", [FLOAT, EXACT], ids=["float", "exact"])
@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1.0, 1e20, 1e150])
def test_enclosures_enclose(arithmetic, scale, monkeypatch):
    monkeypatch.setattr(norm_arithmetic, "MANTISSA_BITS", 60)
    rng = np.random.default_rng(0)
    for density in (1.0, 0.4):
        a, b, c = (rng.standard_normal((4, 4)) * (rng.random((4, 4)) < density) for _ in range(3))
        a *= scale
        maps = [Dense(weights=m) if density == 1.0 else Sparse(weights=sp.csr_array(m)) for m in (a, b, c)]
        read = [arithmetic.read(m) for m in maps]
        product = arithmetic.product(read[0], read[1])
        exact = fractions(a) @ fractions(b)
        assert contains(product, exact)
        exact_sum = exact + fractions(c) + fractions(a)
        summed = arithmetic.total([product, read[2], read[0]])
        assert contains(summed, exact_sum)
        for values in (np.full(4, 0.5), rng.standard_normal(4)):
            assert contains(arithmetic.scaled(values, summed), fractions(values)[:, None] * exact_sum)
            assert contains(arithmetic.scaled_columns(summed, values), exact_sum * fractions(values))
        upper = arithmetic.upper(summed)
        assert lower_and_upper(upper)[0].tolist() == lower_and_upper(upper)[1].tolist()
        assert np.all(lower_and_upper(upper)[0] >= abs(exact_sum))
        deep = product
        for _ in range(6):
            deep, exact = arithmetic.product(read[1], deep), fractions(b) @ exact
        assert contains(deep, exact)


def test_vectors_with_zeros_meet_sparse_matrices_without_expanding_them():
    """Dense results carry a tiny error everywhere, which must not make sparse matrices dense."""
    rng = np.random.default_rng(13)
    dense, wide = (
        rng.standard_normal((3, 4)) * (rng.random((3, 4)) < 0.5),
        sp.random_array((4, 60_000), density=1e-3, rng=rng),
    )
    large = Sparse(weights=sp.csr_array(wide))
    vector = FLOAT.read(Dense(weights=np.eye(4)[:1]))
    for _ in range(3):
        vector = FLOAT.upper(
            FLOAT.product(vector, FLOAT.read(Dense(weights=rng.standard_normal((4, 4)) * [0, 1, 1, 1])))
        )
    assert FLOAT.product(vector, FLOAT.read(large)).shape == (1, 60_000)
    whole = FLOAT.product(FLOAT.read(Dense(weights=dense)), vector_of_zeros())
    square = Sparse(weights=sp.csr_array(sp.eye_array(20_000)))  # 20000 x 20000 is refused where it would be expanded
    assert FLOAT.product(FLOAT.product(whole, FLOAT.ones(4, 20_000)), FLOAT.read(square)).shape == (3, 20_000)
    scaled = FLOAT.scaled_columns(FLOAT.product(whole, FLOAT.ones(4, 20_000)), rng.standard_normal(20_000))
    assert scaled.shape == (3, 20_000)


def vector_of_zeros():
    return FLOAT.product(
        FLOAT.read(Dense(weights=np.diag([1.0, 0.0, 1.0, 0.0]))),
        FLOAT.read(Dense(weights=np.diag([0.0, 1.0, 0.5, 0.3]))),
    )


@pytest.mark.parametrize("scale", [1e-290, 1e-200, 1.0, 1e200])
def test_scaling_by_different_numbers_encloses(scale):
    rng = np.random.default_rng(14)
    a = rng.standard_normal((5, 4)) * scale * (rng.random((5, 4)) < 0.7)
    radius = rng.random((5, 4)) * scale * 1e-9 * (rng.random((5, 4)) < 0.5)
    for rows in (rng.standard_normal(5), rng.standard_normal(5) * 1e-30, np.array([0.0, 1.0, -1.0, 2.0, 0.3])):
        for kind in (Dense, Sparse):
            made = (a, radius) if kind is Dense else (sp.csr_array(a), sp.csr_array(radius))
            e = FLOAT.read(kind(weights=made[0], radius=made[1]))
            low, high = lower_and_upper(FLOAT.scaled(rows, e))
            for sign in (-1, 1):
                exact = fractions(rows)[:, None] * (fractions(a) + sign * fractions(radius))
                assert np.all(low <= exact)
                assert np.all(exact <= high)
            turned = FLOAT.scaled_columns(FLOAT.read(Dense(weights=a.T, radius=radius.T)), rows)
            low, high = lower_and_upper(turned)
            assert np.all(low <= exact.T)
            assert np.all(high >= exact.T)


def some_conv(rng, *, groups=1, radius=False):
    kernel = rng.standard_normal((4, 2 // groups, 3, 2))
    return Conv(
        kernel=kernel,
        input_shape=(1, 2, 5, 4),
        output_spatial=(3, 4),
        strides=(2, 1),
        pads=(1, 1),
        dilations=(1, 1),
        groups=groups,
        radius=abs(kernel) * 1e-3 if radius else None,
    )


@pytest.mark.parametrize("arithmetic", [FLOAT, EXACT], ids=["float", "exact"])
def test_maps_are_applied_with_their_moduli(arithmetic):
    rng = np.random.default_rng(1)
    leaves_ = [
        Dense(weights=rng.standard_normal((3, 5))),
        Dense(weights=rng.standard_normal((3, 5)), radius=rng.random((3, 5)) * 1e-3),
        Dense(weights=rng.standard_normal((3, 5)) * 10.0 ** rng.integers(-30, 30, (3, 5))),
        some_conv(rng),
        some_conv(rng, groups=2),
        some_conv(rng, radius=True),
        Transposed(map=some_conv(rng)),
    ]
    for leaf in leaves_:
        m, n = leaf.shape
        e = leaf.enclosure().dense()
        size = abs(fractions(e.center)) + (0 if e.radius is None else fractions(e.radius))
        for columns in (1, 3):
            x, y = rng.random((n, columns)), rng.random((columns, m))
            after = lower_and_upper(arithmetic.apply(leaf, arithmetic.read(Dense(weights=x))))[1]
            before = lower_and_upper(arithmetic.apply_back(arithmetic.read(Dense(weights=y)), leaf))[1]
            for found, exact in ((after, size @ fractions(x)), (before, fractions(y) @ size)):
                assert np.all(found >= exact)
                slack = Fraction(1, 2**45) if arithmetic is FLOAT else Fraction(1, 2**60)
                assert np.all(found - exact <= slack * exact.max())


def test_moduli_of_maps_keep_their_structure():
    rng = np.random.default_rng(2)
    conv, dense = some_conv(rng, radius=True), Dense(weights=rng.standard_normal((4, 3)))
    window = window_sum((1, 2, 4, 4), (2, 2), (2, 2), (2, 2), (0, 0), (1, 1))
    pool = Pool(window=window, count=valid_counts(window))
    pick = Selection(index=np.array([2, -1, 0]), size=4)
    scale = Diagonal(values=rng.standard_normal(4))
    sparse = Sparse(weights=sp.csr_array(rng.standard_normal((4, 4)) * (rng.random((4, 4)) < 0.5)))
    kept = {conv: Conv, dense: Dense, pool: Pool, pick: Selection, scale: Diagonal, sparse: Sparse}
    kept[Transposed(map=conv)] = Transposed
    kept[compose(scale, dense)] = Composition
    others = [
        compose(sparse, dense),
        total([sparse, scale]),
        compose(pick, compose(sparse, dense)),
        compose(compose(sparse, sparse), scale),
    ]
    for m in [*kept, *others]:
        turned = m.modulus()
        assert m not in kept or isinstance(turned, kept[m])
        assert turned.shape == m.shape
        a, b = m.enclosure().dense(), turned.enclosure().dense()
        slack = sum(np.zeros(m.shape) if e.radius is None else e.radius for e in (a, b))
        assert np.all(abs(abs(a.center) - b.center) <= slack + 1e-15)
        assert np.all(b.center >= 0)
        again = turned.modulus().enclosure().dense()
        assert np.array_equal(again.center, b.center)


# --------------------------------------------------------------------------------------------------- the exact check


def stated(name, system, p, q):
    return prove_expression(formulation(name).build(system, lm.Spec(input_norm=p, output_norm=q)), system, (p, q))


def check(system, found, bound=None, **changes):
    proof = {**found.proof, **changes}
    norms = tuple(proof["norms"])
    given = found.bound if bound is None else bound
    choices = read_choices(proof["rule"], system, proof)
    check_norm_rule(proof["rule"], system, norms, choices, given, proof["spectral"])


@pytest.mark.parametrize("name", NORM_RULES)
def test_one_ulp_below_what_is_recomputed_is_refused(name):
    rng = np.random.default_rng(3)
    system = chain_of([rng.standard_normal(s) for s in ((4, 3), (5, 4), (2, 5))])
    for pair in (("1", "1"), ("inf", "inf"), ("1", "inf"), ("2", "2"), ("inf", "1")):
        found = stated(name, system, *pair)
        choices = read_choices(name, system, found.proof)
        forms = SignedForms(system=system, choices=choices, arithmetic=EXACT)
        recursion = NORM_RULES[name].recursion
        exact = float_up(recursion(forms, *pair, exact_norms(found.proof["spectral"])))
        check(system, found, exact)
        assert exact <= found.bound <= exact * (1 + 1e-12)
        with pytest.raises(Refuted, match="proves"):
            check(system, found, math.nextafter(exact, 0.0))
        for wrong in (0.0, -1.0, math.nan):
            with pytest.raises(Refuted, match="proves"):
                check(system, found, wrong)
        check(system, found, 2.0 * found.bound)


@pytest.mark.parametrize("name", NORM_RULES)
def test_spectral_norms_are_checked_one_by_one(name):
    rng = np.random.default_rng(4)
    system = chain_of([rng.standard_normal(s) for s in ((4, 3), (5, 4), (2, 5))])
    found = stated(name, system, "2", "2")
    claims = found.proof["spectral"]
    assert claims
    for k, claim in enumerate(claims):
        lower = [*claims]
        lower[k] = (float.fromhex(claim) * (1 - 1e-9)).hex()
        with pytest.raises(Refuted, match="is not proved"):
            check(system, found, spectral=lower)
        with pytest.raises(Refuted):
            check(system, found, spectral=[*claims[:k], *claims[k + 1 :]])
        with pytest.raises(Refuted, match="proves"):
            check(system, found, spectral=[*claims[:k], "inf", *claims[k + 1 :]])
    with pytest.raises(Refuted, match=f"lists {len(claims) + 1}"):
        check(system, found, spectral=[*claims, claims[0]])


@pytest.mark.parametrize("name", ["liplt", "k3", "k4"])
def test_what_is_unsigned_has_to_be_a_list_of_activations(name):
    rng = np.random.default_rng(5)
    system = chain_of([rng.standard_normal(s) for s in ((4, 3), (5, 4), (2, 5))])
    found = stated(name, system, "inf", "inf")
    for wrong in ([0], [3], [-1], [1, 1], [2, 1], [1.0], [True], ["1"], [None], [[1]]):
        with pytest.raises(Refuted, match="numbers of activations"):
            check(system, found, unsigned=wrong)
    for other in ([1], [2], [1, 2]):  # sound, but another number
        with pytest.raises(Refuted, match="proves"):
            check(system, found, unsigned=other)
        check(system, found, 100.0 * found.bound, unsigned=other)


def test_the_norms_in_between_have_to_be_norms():
    rng = np.random.default_rng(5)
    system = chain_of([rng.standard_normal(s) for s in ((4, 3), (5, 4), (2, 5))])
    found = stated("liplt", system, "inf", "inf")
    assert found.proof["between"] == ["inf"]
    for wrong in ([], ["0"], ["inf", "inf"], "inf", None, [2], [["2"]], ["1", "2", "inf", "1"]):
        with pytest.raises(Refuted, match=r"proof.between"):
            check(system, found, between=wrong)
    for other in (["1"], ["1", "inf"], ["1", "2", "inf"]):  # sound, but they need spectral norms
        with pytest.raises(Refuted, match="lists only 0"):
            check(system, found, between=other)
    check(system, stated("liplt", system, "1", "inf"), between=["inf", "1"])  # the order does not matter


def test_other_networks_and_other_rules_are_refused():
    rng = np.random.default_rng(6)
    weights = [rng.standard_normal(s) for s in ((4, 3), (5, 4), (2, 5))]
    system, steeper = chain_of(weights), chain_of([weights[0], 1.001 * weights[1], weights[2]])
    wider = chain_of(weights, alpha=-0.001)
    for name in NORM_RULES:
        for pair in (("2", "2"), ("inf", "inf")):
            found = stated(name, system, *pair)
            for other in (steeper, wider):
                if (name, other) != ("path-norm", wider):  # which knows only the gain
                    with pytest.raises(Refuted):
                        check(other, found)
    k3 = stated("k3", system, "inf", "inf")
    with pytest.raises(Refuted, match="use k4"):
        check(random_system("residual", 0), k3)
    assert refusal("k4", random_system("residual", 0), ("2", "2")) is None


def test_large_exponents_and_tiny_weights():
    rng = np.random.default_rng(7)
    for scale in (1e-250, 1e-38, 1e38, 1e200):
        weights = [rng.standard_normal(s) for s in ((4, 3), (5, 4), (2, 5))]
        system, other = chain_of(weights), chain_of([weights[0] * scale, weights[1], weights[2] / scale])
        for name in NORM_RULES:
            found = stated(name, other, "inf", "inf")
            check(other, found)
            assert found.bound == pytest.approx(stated(name, system, "inf", "inf").bound, rel=1e-10)
    overflow = chain_of([np.full((2, 2), 1e200)] * 3)
    assert stated("k4", overflow, "inf", "inf").bound == math.inf
    assert stated("liplt", overflow, "2", "2").bound == math.inf


@pytest.mark.parametrize("name", ["liplt", "k4"])
def test_deep_networks_lose_no_digits(name):
    """Thirty layers, on which entrywise errors of floating point grow to 1e-4 of the products."""
    rng = np.random.default_rng(9)
    weights = [rng.standard_normal((12, 12)) / 4.0 for _ in range(30)]
    system = chain_of(weights)
    floats = SignedForms(system=system, choices=Choices(between=("2",)), arithmetic=FLOAT)
    assert floats.uncertainty() > 1e-8
    exact = SignedForms(system=system, choices=Choices(between=("2",)), arithmetic=EXACT)
    centers = {
        (k, j): lower_and_upper(exact.read(m))[0].astype(float)
        for k, f in enumerate(exact.forms, 1)
        for j, m in f.items()
    }
    last = len(exact.forms)
    if name == "liplt":
        reached = {0: 1.0}
        for k in range(1, last + 1):
            norms = {j: np.linalg.norm(centers[k, j], 2) * (0.5 if j else 1.0) for j in range(k)}
            reached[k] = sum(norms[j] * reached[j] for j in norms)
        expected = reached[last]
    else:
        sums = {0: np.eye(12)}
        for k in range(1, last + 1):
            sums[k] = sum(np.abs(centers[k, j]) @ sums[j] * (0.5 if j else 1.0) for j in range(k))
        expected = np.linalg.norm(sums[last], 2)
    found = stated(name, system, "2", "2")
    assert found.bound == pytest.approx(expected, rel=1e-11)
    check(system, found)


@pytest.mark.parametrize("depth", [2, 6, 10])
def test_uncertain_weights_are_accepted_by_the_exact_check(depth):
    """A radius in the weights grows with the depth, and is charged row by row."""
    rng = np.random.default_rng(10)
    first = rng.standard_normal((8, 20))
    for size in (1e-16, 1e-12, 1e-6):
        system = chain_of([first, *(rng.standard_normal((8, 8)) / 2.0 for _ in range(depth))])
        a = system.activations[0]
        uncertain = Dense(weights=first, radius=np.abs(first) * size)
        pre = lm.LinearForm(size=8, blocks={system.signals[0]: uncertain})
        system = replace(system, activations=(replace(a, pre=pre), *system.activations[1:]))
        for name in ("liplt", "k4", "path-norm"):
            for pair in (("2", "2"), ("inf", "inf")):
                found = stated(name, system, *pair)
                check(system, found)
                largest = chain_of(
                    [
                        first * (1 + size),
                        *(
                            next(iter(form.blocks.values())).weights
                            for form in (*(b.pre for b in system.activations[1:]), system.output)
                        ),
                    ]
                )
                assert found.bound >= stated(name, largest, *pair).bound * (1 - 1e-9)


def test_products_that_are_too_large_are_refused_on_both_sides(monkeypatch):
    rng = np.random.default_rng(11)
    system = chain_of([rng.standard_normal(s) for s in ((4, 3), (5, 4), (2, 5))])
    for name in NORM_RULES:
        found = stated(name, system, "inf", "inf")
        with monkeypatch.context() as patch:
            patch.setattr(norm_rules, "LARGEST_PRODUCT", 10)
            if name == "path-norm":
                check(system, found)
                continue
            with pytest.raises(Refuted, match="too large to be formed"):
                check(system, found)
            with pytest.raises(lm.UsageError, match="convolutions=auto"):
                stated(name, system, "inf", "inf")
            check(system, found, 100.0 * found.bound, unsigned=[1, 2])


def test_products_end_where_they_would_take_too_long(monkeypatch):
    rng = np.random.default_rng(12)
    system = chain_of([rng.standard_normal((6, 6)) for _ in range(6)])
    assert norm_treatment.signed(system) == (True,) * 5
    monkeypatch.setattr(norm_treatment, "LARGEST", 35)
    assert norm_treatment.signed(system) == (False,) * 5
    monkeypatch.setattr(norm_treatment, "LARGEST", 36)
    monkeypatch.setattr(norm_treatment, "BUDGET", 2e-5)
    some = norm_treatment.signed(system)
    assert True in some
    assert False in some
    for name in ("liplt", "k4", "k3"):
        check(system, stated(name, system, "inf", "inf"))


def test_mantissas_that_are_cut_stay_proofs(monkeypatch):
    monkeypatch.setattr(norm_arithmetic, "MANTISSA_BITS", 100)
    rng = np.random.default_rng(8)
    system = chain_of([rng.standard_normal((4, 4)) for _ in range(9)])
    for name in ("liplt", "k4", "path-norm"):
        for pair in (("inf", "inf"), ("2", "2"), ("1", "2")):
            check(system, stated(name, system, *pair))


def test_both_recursions_agree_on_a_graph():
    for kind in ("residual", "skips", "concat", "mixed"):
        system = random_system(kind, 4)
        for recursion in (liplt_bound, absolute_bound):
            values = []
            for arithmetic in (FLOAT, EXACT):
                from lipmodel.ranges.norms import float_norms

                evaluator = float_norms() if arithmetic is FLOAT else exact_norms(["inf"] * 100)
                forms = SignedForms(system=system, choices=Choices(between=("inf",)), arithmetic=arithmetic)
                values.append(recursion(forms, "inf", "inf", evaluator))
            assert values[1] <= values[0] <= values[1] * (1 + Fraction(1, 10**12))


# ------------------------------------------------------------------------------------------- certificates as a whole

CASES = {
    "liplt": (chain([2, 3, 2], 1, RELU), "liplt", "2"),
    "liplt bent inf:1": (chain([2, 2, 2, 2], 2, BENT, ABS), "liplt", "inf:1"),
    "combettes-pesquet": (chain([2, 2, 2, 1], 3, RELU, RELU), "combettes-pesquet", "1"),
    "k4": (chain([2, 2, 2, 2], 4, BENT, RELU), "k4", "inf"),
    "k4 2:2": (chain([2, 3, 2], 5, RELU), "k4", "2"),
    "k3": (chain([2, 2, 2, 2], 6, RELU, RELU), "k3", "2"),
    "path-norm": (chain([2, 2, 2], 7, RELU), "path-norm", "inf:1"),
}


@pytest.fixture(scope="module")
def samples():
    made = {}
    for name, (net, formulation_name, norm) in CASES.items():
        network = net.network()
        result = lm.solve(network, formulation_name, norm=norm, time_limit=10.0)
        made[name] = Sample(network=network, plan=net.plan(), data=json.loads(json.dumps(result.to_json())))
        assert made[name].data["certificate"]["upper"]["rule"] in NORM_RULES
    return made


@pytest.mark.parametrize("name", CASES)
def test_every_field_of_a_proof(samples, name):
    sample = samples[name]
    assert not judge(sample, sample.data)
    wrong, refused = [], 0
    inside = [path for path in leaves(sample.data) if path[:2] == ("certificate", "upper")]
    for path in inside:
        for value in other_values(at(sample.data, path)):
            try:
                refused += judge(sample, replaced(sample.data, path, value))
            except Exception as error:
                wrong.append(f"{path} = {value!r}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join([f"{len(wrong)} changes:", *wrong[:40]])
    assert refused > 60
    assert not any(is_free(path) for path in inside)


@pytest.mark.parametrize("name", CASES)
def test_another_bound_everywhere(samples, name):
    for factor in (0.0, -1.0, 0.5, 0.999, 1.0 - 1e-9):
        assert judge(samples[name], with_bound(samples[name].data, factor)), factor
    assert not judge(samples[name], with_bound(samples[name].data, 2.0))


@pytest.mark.parametrize("name", CASES)
def test_rules_are_not_exchanged(samples, name):
    """A proof under the name of another rule is refused, or what it says is true."""
    data = samples[name].data
    for rule in (*NORM_RULES, "product", "masked-product", "lmi", "largest"):
        changed = replaced(data, ("certificate", "upper", "rule"), rule)
        judge(samples[name], changed)
        for keys in ({"unsigned": []}, {}):
            proof = {k: v for k, v in data["certificate"]["upper"].items() if k != "unsigned"}
            judge(samples[name], replaced(data, ("certificate", "upper"), {**proof, **keys, "rule": rule}))
    assert exact_entries(exact_entries(Dense(weights=np.eye(2)))).shape == (2, 2)
