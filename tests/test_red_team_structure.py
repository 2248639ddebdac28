"""Attacks on what is read off the structure of a network: stencils of images, couplings of neurons, spectral claims.

A proof over frequencies is about stencils, not about the matrices of the network, so that a map that is not the stencil
it was taken for would make a false bound. Maps that crop, pad and repeat at random are compared entry by entry; values
of certificates are changed one by one, and what is accepted must be true.
"""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from fourier_cases import conv, dense, formal_constant, proved, system_of, verified
from onnx import helper
from onnx_models import make
from test_red_team import changes, stated, wide_program
from test_tampering import RELU, Sample, at, chain, judge, leaves, replaced

import lipmodel as lm
from lipmodel.certify.fourier import read_fourier
from lipmodel.certify.kernel import Rejected
from lipmodel.certify.polynomials import krivine_bound
from lipmodel.errors import Refuted
from lipmodel.fourier.stencils import pictures
from lipmodel.fourier.torus import LONGEST
from lipmodel.network.increments import IncrementSystem
from lipmodel.network.linear import LinearMap, Selection, compose, identity, total
from lipmodel.network.pruning import without_dead_neurons

Shape = tuple[int, ...]


def stencil_faults(system: IncrementSystem) -> list[str]:
    """Where the stencils that are read off a system differ from its matrices, entry by entry on the lattice."""
    found, at_signal = pictures(system), system.positions()
    wrong = []
    for k, image in found.images.items():
        if not k:
            continue
        blocks = {at_signal[s]: dense(m) for s, m in system.activations[k - 1].pre.blocks.items()}
        for j, matrix in blocks.items():
            source, taps = found.images[j], found.stencils.get((k, j), {})
            there = {
                (int(c), *p): i
                for i, (c, p) in enumerate(zip(source.channel, source.place.tolist(), strict=True))
                if c >= 0
            }
            expected = np.zeros_like(matrix)
            for row, (o, place) in enumerate(zip(image.channel.tolist(), image.place.tolist(), strict=True)):
                for d, weights in taps.items():
                    for c, w in enumerate(weights[o].tolist()):
                        column = there.get((c, *(a + b for a, b in zip(place, d, strict=True))))
                        if column is not None:
                            expected[row, column] += w
            if np.abs(expected - matrix).max() > 1e-12:
                wrong.append(f"image {k} reads signal {j} otherwise")
    return wrong


def window(rng: np.random.Generator, shape: Shape) -> tuple[Selection, Shape]:
    """A crop, a crop with zeros in its place, or zeros around; of some channels, which may be repeated."""
    grid = np.arange(math.prod(shape)).reshape(shape)
    kind = rng.integers(4)
    cut = tuple(
        slice(int(a), int(n - b)) for n, a, b in zip(shape[1:], *rng.integers(0, 2, (2, len(shape) - 1)), strict=True)
    )
    if kind == 0:
        grid = grid[:, *cut]
    elif kind == 1:
        holed = np.full_like(grid, -1)
        holed[:, *cut] = grid[:, *cut]
        grid = holed
    elif kind == 2:
        widths = [(0, 0), *rng.integers(0, 3, (len(shape) - 1, 2)).tolist()]
        grid = np.pad(grid, widths, constant_values=-1)
    if kind == 3 or rng.random() < 0.3:
        grid = grid[rng.integers(0, shape[0], int(rng.integers(1, 4)))]
        if rng.random() < 0.5:
            holed = grid.copy()
            holed[int(rng.integers(len(grid)))][cut] = -1
            grid = holed
    return Selection(index=grid.ravel(), size=math.prod(shape)), grid.shape


def read_at_random(rng: np.random.Generator, shape: Shape) -> tuple[LinearMap, Shape] | None:
    """Convolutions with a window before, between or behind them."""
    axes, size = len(shape) - 1, math.prod(shape)
    result: LinearMap = identity(size)
    for _ in range(int(rng.integers(1, 3))):
        if rng.random() < 0.5:
            moved, shape = window(rng, shape)
            result = compose(moved, result)
        taps = tuple(rng.integers(1, 3, axes).tolist()) if rng.random() < 0.4 else (1,) * axes
        stride = int(rng.integers(1, 3)) if rng.random() < 0.3 else 1
        pads = tuple(rng.integers(0, 2, axes).tolist()) if rng.random() < 0.3 else (0,) * axes
        if 0 in shape or min(n + 2 * p - t for n, p, t in zip(shape[1:], pads, taps, strict=True)) < 0:
            return None
        layer = conv(rng.standard_normal((int(rng.integers(1, 3)), shape[0], *taps)), shape, stride=stride, pads=pads)
        result, shape = compose(layer, result), (layer.kernel.shape[0], *layer.output_spatial)
    return result, shape


def holed_system(seed: int, most: int = 4) -> IncrementSystem | None:
    """A system whose forms read the input and each other through windows."""
    rng = np.random.default_rng(seed)
    axes = int(rng.integers(1, 3))
    shapes: list[Shape] = [(int(rng.integers(1, 3)), *rng.integers(2, 6, axes).tolist())]
    forms: list[dict[int, LinearMap]] = []
    for _ in range(int(rng.integers(1, most))):
        made = read_at_random(rng, shapes[j := int(rng.integers(len(shapes)))])
        if made is None:
            continue
        m, shape = made
        again = read_at_random(rng, shapes[j])
        if again is not None and again[1] == shape and rng.random() < 0.5:
            m = total([m, again[0]])
        forms.append({j: m})
        shapes.append(shape)
    if not forms:
        return None
    size = math.prod(shapes[-1])
    return system_of(forms, {len(forms): identity(size)}, math.prod(shapes[0]), (0.5, 1.0))


def test_stencils_are_the_matrices_whatever_is_cropped() -> None:
    systems = [s for s in map(holed_system, range(600)) if s is not None]
    assert not [fault for s in systems for fault in stencil_faults(s)]
    assert sum(len(pictures(s).stencils) for s in systems) > 200


def test_entries_that_are_no_pixels_are_not_read_as_zeros() -> None:
    """The convolution that says what the pixels of the input are reads less of it, or something else."""
    part = compose(conv([[[2.0]]], (1, 2)), Selection(index=np.array([1, 2]), size=4))
    for other in (conv([[[3.0]]], (1, 4)), compose(conv([[[3.0]]], (1, 2)), Selection(index=np.array([0, 3]), size=4))):
        found = pictures(
            system_of(
                [{0: part}, {0: other}], {1: identity(2), 2: Selection(index=np.array([0, 1]), size=other.shape[0])}, 4
            )
        )
        assert 2 not in found.images
        assert "not among the pixels" in found.why[2]


def holed_proofs() -> list[tuple[float, float]]:
    """Constants and proved bounds of small systems with windows."""
    result = []
    for seed in range(150):
        system = holed_system(seed, most=3)
        system = None if system is None else without_dead_neurons(system)
        if system is None or system.neurons > 10 or not pictures(system).images:
            continue
        try:
            found = proved(system, pixels=False)
        except (AssertionError, lm.LipmodelError):
            continue
        if found.proof["rule"] == "fourier-lmi":
            assert verified(system, found.proof) == found.bound
            result.append((formal_constant(system), found.bound))
    return result


def test_bounds_of_cropped_networks_are_not_below_their_constants() -> None:
    pairs = holed_proofs()
    assert len(pairs) > 8
    assert all(bound >= truth * (1 - 1e-12) for truth, bound in pairs)


BORDER = np.pad(np.zeros((2, 2)), 1, constant_values=1.0).reshape(1, -1)


@pytest.mark.parametrize("between", [0, 1], ids=["after an activation", "after a convolution"])
def test_a_convolution_with_one_tap_behind_a_crop_and_a_padding(between: int) -> None:
    """y reads z - w at the border, where w is zero; were w a pixel of its own there, it would be s z, 1/2 <= s <= 1."""
    weights = {
        "k": np.ones((1, 1, 1, 1)),
        "c": np.hstack([BORDER, -BORDER]),
        "first": np.array([1, 1]),
        "last": np.array([3, 3]),
        "axes": np.array([2, 3]),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "k"], ["a"]),
        node("LeakyRelu", ["a"], ["z"], alpha=0.5),
        *([node("Conv", ["z", "k"], ["q"])] if between else []),
        node("Slice", ["q" if between else "z", "first", "last", "axes"], ["s"]),
        node("Pad", ["s", "pads"], ["p"]),
        node("Conv", ["p", "k"], ["b"]),
        node("LeakyRelu", ["b"], ["w"], alpha=0.5),
        *[node("Flatten", [name], [name + "f"]) for name in "zw"],
        node("Concat", ["zf", "wf"], ["h"], axis=1),
        node("Gemm", ["h", "c"], ["y"], transB=1),
    ]
    network = lm.load(make(nodes, weights, shape=(1, 1, 4, 4)))
    for pixels in (False, True):
        result = lm.solve(network, "fourier-lipsdp", norm="2", options={"pixels": pixels})
        assert result.bound >= math.sqrt(12.0)
        assert lm.verify(network, result).bound == result.bound


# ------------------------------------------------------------------------------------------------- changed certificates


@pytest.fixture(scope="module")
def coupled() -> Sample:
    net = chain([2, 3, 2], 61, RELU)
    network = net.network()
    result = lm.solve(network, "lipsdp-pair", norm="2", witness=False, time_limit=10.0)
    assert result.certificate is not None
    assert result.certificate["upper"]["rule"] == "lmi-pairs"
    return Sample(network=network, plan=net.plan(), data=json.loads(json.dumps(result.to_json())))


def test_every_value_of_a_proof_with_couplings(coupled: Sample) -> None:
    """Refused with a reason, or accepted and true; below the constant always refused."""
    from soundness_checks import formal_of

    upper = coupled.data["certificate"]["upper"]
    below = formal_of(coupled.plan, "2", "2", "all")[0].value * 0.999
    assert not judge(coupled, stated(coupled.data, upper, None))
    listed = [(path, value) for path in leaves(upper) for value in changes(at(upper, path))]
    refused = 0
    for path, value in random.Random(1).sample(listed, min(len(listed), 250)):
        changed = replaced(upper, path, value)
        refused += judge(coupled, stated(coupled.data, changed, None))
        if isinstance(changed, dict):
            assert judge(coupled, stated(coupled.data, changed, below)), f"{path} = {str(value)[:80]}"
    assert refused > 100


def test_short_certificates_that_stand_for_many_numbers() -> None:
    proof: dict[str, Any] = {
        **dict.fromkeys(("bound", "g"), "0x1p+0"),
        **{key: [] for key in ("slots", "t", "s")},
        "rule": "fourier-lmi",
        "norms": ["2", "2"],
        "period": LONGEST,
    }
    for key in ("slots", "t"):
        with pytest.raises(Refuted, match="at most"):
            read_fourier({**proof, key: [["*100000", "0x1p+0"]] * 100_000})


def test_products_with_weights_of_thousands_of_digits_are_not_expanded() -> None:
    """Every term of a product holds its weight: a few of them would take gigabytes."""
    proof = {"products": [list(range(1, 21))], "weights": [10**4000], "exponent": 0}
    with pytest.raises(Rejected, match="too many terms"):
        krivine_bound(wide_program(), proof)
