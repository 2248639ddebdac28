"""Claims about norms of convolutions: known values, published mistakes, certificates and what tampers with them."""

from __future__ import annotations

import itertools
import json
import math
import pathlib
from fractions import Fraction

import numpy as np
import pytest
from conv_cases import conv, per_channel
from onnx import helper
from onnx_models import make, single

import lipmodel as lm
from lipmodel.certify import conv_norms as exact
from lipmodel.certify.conv_norms import structured_norm_at_most
from lipmodel.certify.product_rule import (
    ProductActivation,
    ProductSystem,
    check_product,
    exact_norms,
    product_bound,
    prove_product,
)
from lipmodel.errors import Refuted
from lipmodel.network.linear import Dense, compose
from lipmodel.network.onnx_import import load
from lipmodel.ranges import conv_spectral
from lipmodel.ranges.conv_spectral import blocks_of, estimated_norm, structured_norm
from lipmodel.ranges.conv_symbol import symbol_of
from lipmodel.ranges.norms import CLAIM_MARGIN, float_norms, induced_norm

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")


# ---------------------------------------------------------------------------------------------- published mistakes


def tensor_norm_estimate(kernel, rng, steps=200):
    """Higher-order power iteration on the 4-way tensor: a local maximum."""
    vectors = [rng.standard_normal(n) for n in kernel.shape]
    for _ in range(steps):
        for axis in range(4):
            others = [v for a, v in enumerate(vectors) if a != axis]
            value = np.moveaxis(kernel, axis, 0)
            for v in others:
                value = np.tensordot(value, v, axes=([1], [0]))
            vectors[axis] = value / np.linalg.norm(value)
    return abs(np.einsum("oihw,o,i,h,w", kernel, *vectors))


def test_trap_power_iteration_on_the_tensor_norm_is_below_the_norm():
    kernel = np.zeros((2, 2, 3, 3))
    kernel[0, 0] = 1.0
    a = np.array([1.0, -1.0, 1.0])
    kernel[1, 1] = 0.95 * np.outer(a, a)
    rng = np.random.default_rng(0)
    wrong = [3.0 * tensor_norm_estimate(kernel, rng) for _ in range(40)]
    assert min(wrong) == pytest.approx(8.55, abs=1e-6)
    circular = conv(kernel, (60, 60), pads=(1, 1))
    bound = structured_norm(circular)
    assert bound >= 8.97  # the supremum over all images is 9
    assert bound > min(wrong)
    symbol = symbol_of(circular, kernel)
    assert any(not np.any(frequency) for frequency in symbol.frequencies)  # the frequency 0, where the norm is 9
    assert bound >= 9


def test_trap_largest_row_norm_is_not_the_norm():
    map = conv(np.ones((2, 2, 1, 1)), (3, 3))
    assert math.sqrt(2) == pytest.approx(induced_norm(map, "2", "inf"))
    assert 2.0 <= structured_norm(map) <= 2.0 * (1 + 1e-9)
    assert not structured_norm_at_most(map, Fraction(math.sqrt(2)) * (1 + Fraction(1, 10**6)))


# ------------------------------------------------------------------------------------------------ known values


def oracle_kernels():
    entries = json.loads((SHARED / "oracles" / "conv.json").read_text())["oracles"]
    grouped = {}
    for entry in entries:
        key = json.dumps(entry["network"], sort_keys=True)
        grouped.setdefault(key, {"network": entry["network"], "values": {}})["values"][
            entry["quantity"], entry["norm"]["input"], entry["norm"]["output"]
        ] = entry["value"]
    return list(grouped.values())


CONVS = [(3, 4, 3, 8), (3, 8, 8, 8), (5, 4, 4, 10), (3, 16, 4, 8), (1, 6, 5, 6)]


def oracle_conv(recipe, args):
    """The kernels that the known values are about: N(0, 1) rounded to float32, or integers / 8."""
    if recipe == "conv_int":
        k, n = args["k"], args["n"]
        kernel = np.random.RandomState(args["seed"]).randint(-16, 17, size=(args["co"], args["ci"], k, k)) / 8.0
    else:
        rng = np.random.default_rng(0)
        for index, (k, co, ci, n) in enumerate(CONVS):  # noqa: B007 - the last ones are the kernel's
            kernel = rng.standard_normal((co, ci, k, k)).astype(np.float32).astype(np.float64)
            if index == args["index"]:
                break
            rng.standard_normal(10 * (co + ci + 2 * k))
    return conv(kernel, (n, n), pads=((k - 1) // 2,) * 2)


@needs_shared
def test_known_values():
    seen = 0
    for known in oracle_kernels():
        if known["network"].get("recipe") is None:
            continue
        map, values = oracle_conv(known["network"]["recipe"], known["network"]["args"]), known["values"]
        bound = structured_norm(map)
        for (quantity, p, q), value in values.items():
            if quantity == "exact":
                assert induced_norm(map, p, q) == pytest.approx(value, rel=1e-9)
                if (p, q) == ("2", "2"):
                    assert float(bound) >= value * (1 - 1e-12)
                    assert not structured_norm_at_most(map, Fraction(value) * (1 - Fraction(1, 10**9)))
            elif quantity not in ("circular norm", "tensor norm by higher-order power iteration"):
                assert float(bound) <= value * (1 + 1e-7), quantity  # some of the values are those of float32 kernels
            if quantity == "circular norm, padded torus":
                assert float(bound) == pytest.approx(value, rel=1e-9)
            seen += 1
        assert structured_norm_at_most(map, bound)
    assert seen >= 30


# ---------------------------------------------------------------------------------------------------- certificates


def network_of(maps, out):
    layers = tuple(
        ProductActivation(pre={k: map}, gain=np.ones(map.shape[0]), size=map.shape[0]) for k, map in enumerate(maps)
    )
    return ProductSystem(input_size=maps[0].shape[1], activations=layers, output={len(maps): out})


def test_product_certificates_of_convolutions_too_large_for_the_matrix():
    rng = np.random.default_rng(11)
    first = conv(rng.standard_normal((2, 2, 3, 3)), (36, 36), pads=(1, 1))
    gain = per_channel(first.output_shape, rng.standard_normal(2), np.full(2, 1e-12))
    second = compose(conv(rng.standard_normal((2, 2, 2, 2)), (36, 36), pads=(1, 1), after=(0, 0)), gain)
    out = Dense(weights=rng.standard_normal((1, 2592)))
    system = network_of([first, second], out)
    proved = prove_product(system, "2", "2")
    parts = [structured_norm(first), structured_norm(second), Fraction(float(np.linalg.norm(out.weights)))]
    assert proved.bound == pytest.approx(float(math.prod(parts)), rel=1e-9)
    claims = proved.claims()
    assert sum(float.fromhex(claim) < math.inf for claim in claims) == 2
    check_product(system, "2", "2", proved.bound, claims)
    for k, claim in enumerate(claims):
        value = float.fromhex(claim)
        if math.isinf(value):
            continue
        for factor in (1 - 1e-9, 0.5, 0.0):
            lowered = [*claims[:k], (value * factor).hex(), *claims[k + 1 :]]
            with pytest.raises(Refuted):
                check_product(system, "2", "2", proved.bound, lowered)
        with pytest.raises(Refuted):
            check_product(system, "2", "2", proved.bound, [*claims[:k], "inf", *claims[k + 1 :]])
        with pytest.raises(Refuted):
            check_product(system, "2", "2", proved.bound, [*claims[:k], *claims[k + 1 :]])
    with pytest.raises(Refuted):
        check_product(system, "2", "2", proved.bound * (1 - 1e-10), claims)
    other = conv(first.kernel * 1.001, (36, 36), pads=(1, 1))
    with pytest.raises(Refuted):
        check_product(network_of([other, second], out), "2", "2", proved.bound, claims)


def test_never_below_the_enumerated_maximum():
    """Tiny networks with every choice of slopes, norms from the torus alone on both sides."""
    rng = np.random.default_rng(14)
    for _ in range(25):
        n, channels = int(rng.integers(2, 5)), int(rng.integers(1, 3))
        k, stride = int(rng.integers(1, 4)), int(rng.integers(1, 3))
        first = conv(rng.standard_normal((channels, 1, k)), (n,), pads=(k // 2,), after=((k - 1) // 2,))
        shape = first.output_shape
        second = conv(rng.standard_normal((2, channels, 2)), shape[2:], pads=(1,), strides=(stride,))
        second = compose(per_channel(second.output_shape, rng.standard_normal(2)), second)
        system = network_of([first], second)
        a, b = first.enclosure().dense().center, second.enclosure().dense().center
        true = max(np.linalg.norm(b @ np.diag(s) @ a, 2) for s in itertools.product((0.0, 1.0), repeat=len(a)))
        evaluator = float_norms(spectral_limit=0, margin=CLAIM_MARGIN)
        bound = product_bound(system, "2", "2", evaluator)
        assert bound >= true * (1 - 1e-13)
        verified = product_bound(system, "2", "2", exact_norms(evaluator.log, spectral_limit=0))
        assert true * (1 - 1e-13) <= verified <= bound * (1 + Fraction(1, 10**12))


def test_wrong_hints_prove_nothing(monkeypatch):
    """Floating point only suggests: with estimates and factors that are wrong, nothing false is accepted."""
    map = conv(np.random.default_rng(12).standard_normal((3, 3, 3, 3)), (6, 6), pads=(1, 1))
    torus = Fraction(estimated_norm(symbol_of(map, map.kernel)))
    low = torus * (1 - Fraction(1, 10**6))
    monkeypatch.setattr(exact, "estimated_norm", lambda symbol: 1e-3)
    assert not structured_norm_at_most(map, low)
    monkeypatch.setattr(exact, "estimated_norm", lambda symbol: estimated_norm(symbol) * (1 - 1e-5))
    assert not structured_norm_at_most(map, low)
    assert structured_norm_at_most(map, torus * (1 + Fraction(1, 10**6)))
    cholesky = np.linalg.cholesky
    monkeypatch.setattr(np.linalg, "cholesky", lambda a: cholesky(a + 1e-3 * np.eye(a.shape[-1]) * abs(a).max()))
    assert not structured_norm_at_most(map, low)
    monkeypatch.setattr(np.linalg, "cholesky", lambda a: np.zeros_like(a))
    assert not structured_norm_at_most(map, low)
    assert not conv_spectral._is_proved(*blocks_of(symbol_of(map, map.kernel), slice(None)), float(low))


def test_solve_and_verify_an_onnx_file(tmp_path):
    rng = np.random.default_rng(13)
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["u"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["u", "g", "o", "o", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["y"]),
    ]
    weights = {"a": rng.standard_normal((2, 2, 3, 3)), "g": np.array([0.7, -1.3]), "o": np.zeros(2), "v": np.ones(2)}
    path = tmp_path / "net.onnx"
    path.write_bytes(make(nodes, weights, shape=(1, 2, 36, 36)).SerializeToString())
    result = lm.solve(str(path), "product")
    kernel = weights["a"] * weights["g"][:, None, None, None] / math.sqrt(1 + 1e-5)
    torus = float(structured_norm(conv(kernel, (36, 36), pads=(1, 1))))
    assert result.bound == pytest.approx(torus / 36, rel=1e-6)
    assert lm.verify(path, json.dumps(result.to_json())).bound == result.bound
    data = result.to_json()
    spectral = data["certificate"]["upper"]["spectral"]
    (k,) = [k for k, v in enumerate(spectral) if v != "inf" and float.fromhex(v) > 1.0]
    spectral[k] = (float.fromhex(spectral[k]) * (1 - 1e-9)).hex()
    with pytest.raises(Refuted):
        lm.verify(path, json.dumps(data))


def test_trap_overlapping_max_pooling_has_a_gain():
    """An increment at one pixel reaches three windows: the gain of max pooling with k = 3, stride 1 is sqrt 3 there."""
    network = load(single("MaxPool", shape=(1, 1, 7), kernel_shape=[3], strides=[1]).SerializeToString())
    assert lm.solve(network, "product").bound >= math.sqrt(3)
