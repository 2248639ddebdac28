"""fourier-lipsdp on files: solved, verified, tampered with; real networks."""

from __future__ import annotations

import copy
import json
import math
import pathlib

import numpy as np
import onnx
import pytest
from fourier_cases import formal_constant
from onnx import helper
from onnx_models import make

import lipmodel as lm
from lipmodel.errors import Refuted
from lipmodel.fourier import torus
from lipmodel.fourier.stencils import pictures

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")


# ----------------------------------------------------------------------------------------------------------- files


def saved(folder, name="net", seed=21):
    """conv - relu - conv with a stride - leaky relu - dense - relu - dense, as a file."""
    rng = np.random.default_rng(seed)
    shapes = {"k1": (2, 1, 3, 3), "k2": (3, 2, 2, 2), "w1": (4, 12), "w2": (2, 4)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "k2"], ["c"], strides=[2, 2]),
        helper.make_node("LeakyRelu", ["c"], ["d"], alpha=0.0625),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "w1"], ["f"], transB=1),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "w2"], ["y"], transB=1),
    ]
    path = folder / f"{name}.onnx"
    onnx.save(make(nodes, weights, shape=(1, 1, 4, 4)), path)
    return path


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """A network, its file, and its result as JSON values, by the rule of the torus."""
    path = saved(tmp_path_factory.mktemp("fourier"))
    network = lm.load(path)
    result = lm.solve(network, "fourier-lipsdp", options={"pixels": False}, witness=False)
    assert result.certificate["upper"]["rule"] == "fourier-lmi"
    data = json.loads(json.dumps(result.certificate))
    return network, data, result.bound


def test_a_file_is_solved_and_verified(solved):
    network, data, bound = solved
    verdict = lm.verify(network, data)
    assert verdict.bound == bound
    assert "independent reader" in verdict.read_by
    assert lm.solve(network, "lipsdp-neuron", witness=False).bound <= bound
    assert lm.solve(network, "fourier-lipsdp", witness=False).bound <= bound
    assert bound < lm.solve(network, "product", witness=False).bound


def test_families_by_rows(solved):
    network, _, _ = solved
    result = lm.solve(network, "fourier-lipsdp", norm="2:inf", options={"pixels": False}, witness=False)
    assert {m["proof"]["rule"] for m in result.certificate["upper"]["members"]} == {"fourier-lmi"}
    assert lm.verify(network, result.certificate).bound == result.bound


def changed(data, place, value):
    other = copy.deepcopy(data)
    at = other["upper"]
    for key in place[:-1]:
        at = at[key]
    if value is None:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return other


def scaled(text, factor):
    return (float.fromhex(text) * factor).hex()


def test_every_field_of_a_proof_matters(solved):
    network, data, bound = solved
    upper = data["upper"]
    below = math.nextafter(bound, 0.0).hex()
    refused = [(["bound"], below), (["g"], scaled(upper["g"], 1 - 1e-6)), (["g"], (-1.0).hex()), (["g"], "nan")]
    refused += [([key], None) for key in upper]
    refused += [
        (["more"], 1),
        (["rule"], "fourier"),
        (["norms"], ["inf", "2"]),
        (["norms"], ["2", "inf"]),
        (["norms"], 2),
    ]
    refused += [(["period"], value) for value in (0, -1, 1.0, "1", True, 17, [1], 10**9)]
    refused += [(["s", 0], scaled(upper["s"][0], 1 - 1e-6)), (["s"], upper["s"][:1]), (["s", 1], "0x0p+0")]
    for field in ("slots", "t"):
        refused += [([field], upper[field][:-1]), ([field], [*upper[field], upper[field][0]]), ([field], "x")]
        refused += [([field, 0], upper[field][0][:-1]), ([field, 0], [*upper[field][0], "0x1p+0"])]
        for k, values in enumerate(upper[field]):
            for i, text in enumerate(values):
                refused += [([field, k, i], value) for value in (scaled(text, -1.0), "inf", "nan", 1.0, None)]
    for place, value in refused:
        with pytest.raises(Refuted):
            lm.verify(network, changed(data, place, value))


def test_other_multipliers_prove_what_is_true_or_nothing(solved):
    """Multipliers moved either way: refused, or the bound stands, and the bound is never below what is true."""
    network, data, bound = solved
    truth = lm.solve(network, "fourier-lipsdp", witness=True).lower_bound
    verdicts = []
    for field in ("slots", "t"):
        for k, values in enumerate(data["upper"][field]):
            for i, text in enumerate(values):
                for factor in (0.5, 1 - 1e-3, 1 + 1e-3, 2.0):
                    try:
                        lm.verify(network, changed(data, [field, k, i], scaled(text, factor)))
                    except Refuted:
                        verdicts.append(False)
                    else:
                        verdicts.append(True)
    assert not all(verdicts)
    assert truth <= bound
    lowered = changed(data, ["bound"], (truth * 0.999).hex())
    lowered["claim"]["bound"] = lowered["upper"]["bound"]
    with pytest.raises(Refuted):
        lm.verify(network, lowered)


def test_a_proof_of_another_network_is_refused(solved, tmp_path):
    _, data, _ = solved
    for seed in (22, 23):
        other = lm.load(saved(tmp_path, f"other{seed}", seed))
        moved = copy.deepcopy(data)
        moved["network"]["sha256"] = other.source.sha256
        own = lm.solve(other, "fourier-lipsdp", options={"pixels": False}, witness=False).bound
        if own > float.fromhex(data["claim"]["bound"]):
            with pytest.raises(Refuted):
                lm.verify(other, moved)
            return
    raise AssertionError("no network with a larger bound")


def test_on_a_box_slopes_are_those_of_the_box(tmp_path):
    """tanh at pixels far from zero is flat: the slopes of a channel are the extremes over its pixels."""
    rng = np.random.default_rng(5)
    weights = {"k": rng.uniform(0.25, 0.5, (2, 1, 3)), "w": rng.standard_normal((2, 8))}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], pads=[1, 1]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "w"], ["y"], transB=1),
    ]
    path = tmp_path / "tanh.onnx"
    onnx.save(make(nodes, weights, shape=(1, 1, 4)), path)
    network = lm.load(path)
    box = lm.Box(lo=(0.5, 0.5, 0.25, 0.125), hi=(1.0, 0.75, 0.5, 0.25))
    system = lm.increments(network, box)
    ends = system.activations[0].beta.reshape(2, 4)
    assert np.ptp(ends, axis=1).min() > 0.01  # they differ from pixel to pixel
    found = pictures(system)
    place = torus.least_torus(found)
    alpha, beta = torus.slot_slopes(system, 1, torus.slots_of(found.images[1], place), place)
    assert beta.tolist() == ends.max(axis=1).tolist()
    assert alpha.tolist() == [0.0, 0.0]
    result = lm.solve(network, "fourier-lipsdp", domain=box, options={"pixels": False})
    assert result.lower_bound <= result.bound
    assert result.bound < lm.solve(network, "fourier-lipsdp", options={"pixels": False}, witness=False).bound
    assert formal_constant(system) <= result.bound
    assert lm.verify(network, result.certificate).bound == result.bound


def test_batch_normalisation_and_its_error_go_into_the_stencil(tmp_path):
    rng = np.random.default_rng(8)
    weights = {"k": rng.standard_normal((2, 1, 3, 3)), "w": rng.standard_normal((2, 18))}
    weights |= {name: rng.uniform(0.5, 1.5, 2) for name in ("gain", "shift", "mean", "variance")}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "gain", "shift", "mean", "variance"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["d"]),
        helper.make_node("Conv", ["d", "k2"], ["e"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "w"], ["y"], transB=1),
    ]
    weights["k2"] = rng.standard_normal((2, 2, 3, 3))
    path = tmp_path / "normalised.onnx"
    onnx.save(make(nodes, weights, shape=(1, 1, 3, 3)), path)
    network = lm.load(path)
    assert len(pictures(lm.increments(network)).images) == 3
    result = lm.solve(network, "fourier-lipsdp", options={"pixels": False})
    assert lm.verify(network, result.certificate).bound == result.bound
    assert result.lower_bound <= lm.solve(network, "lipsdp-neuron", witness=False).bound <= result.bound


@needs_shared
@pytest.mark.parametrize(("name", "torus_bound"), [("cnn2_seed0", 8.6244), ("cnn3_seed0", 23.1825)])
def test_digit_networks(name, torus_bound):
    """One row of two convolutional networks for digits; LipLT 9.20 and 25.18, products 11.60 and 33.92."""
    network = lm.load(SHARED / "nets" / "digits" / f"{name}.onnx")
    options = {"outputs": "7", "witness": False}
    result = lm.solve(network, "fourier-lipsdp", options={"pixels": False}, **options)
    assert result.bound == pytest.approx(torus_bound, rel=1e-3)
    assert lm.verify(network, result.certificate).bound == result.bound
    closer = lm.solve(network, "fourier-lipsdp", **options)
    neuron = {"cnn2_seed0": 7.275525667637, "cnn3_seed0": 18.7}[name]
    assert neuron <= closer.bound < 0.97 * torus_bound


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limit"), [("oval21/base", 5.81), ("glipsdp/cnn_C3_CH8", 3.43), ("resnet/cifar_2b", 62.0)]
)
def test_large_networks(name, limit):
    network = lm.load(SHARED / "nets" / f"{name}.onnx")
    result = lm.solve(network, "fourier-lipsdp", witness=False, time_limit=120)
    assert result.bound <= limit
    assert result.certificate["upper"]["rule"] == "fourier-lmi"
    assert lm.verify(network, result.certificate).bound == result.bound
