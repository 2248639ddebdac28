"""Witness pairs of networks whose weights are known to a radius only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from witness_networks import build

from lipmodel.activations import activation
from lipmodel.lower.witness import witness_ratio
from lipmodel.network.graph import Network
from lipmodel.network.linear import Dense, Diagonal
from lipmodel.network.ops import Input, Linear, Op, elementwise


@pytest.mark.parametrize("name", ["Relu", "Tanh", "HardSigmoid"])
def test_weights_known_to_a_radius(name: str) -> None:
    """No admissible choice of weights gives less than the ratio; and little is lost although the steps are short."""
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((6, 4)), rng.standard_normal((3, 6))
    scale, shift = rng.uniform(0.5, 2.0, 6), rng.standard_normal(6)
    for size in (2.0**-47, 1e-4):
        spread, blur = scale * size, np.abs(shift) * size

        def network(values: Any, radius: Any, bias: Any, bias_radius: Any) -> Network:
            return build(
                [
                    ("x", Input(shape=(4,)), []),
                    ("first", Linear(map=Dense(weights=first)), ["x"]),
                    (
                        "norm",
                        Linear(map=Diagonal(values=values, radius=radius), bias=bias, bias_radius=bias_radius),
                        ["first"],
                    ),
                    ("act", elementwise(activation(name), 6), ["norm"]),
                    ("y", Linear(map=Dense(weights=second)), ["act"]),
                ],
                "y",
            )

        x = rng.standard_normal(4)
        y = x + 1e-6 * rng.standard_normal(4)
        ratio = witness_ratio(network(scale, spread, shift, blur), x, y, "2", "2")
        others = []
        for _ in range(40):
            sign, other = (rng.choice([-1.0, 1.0, 0.3], 6) * 0.9 for _ in range(2))
            values, bias = scale + sign * spread, shift + other * blur
            assert np.all(np.abs(values - scale) <= spread)
            assert np.all(np.abs(bias - shift) <= blur)
            others.append(witness_ratio(network(values, None, bias, None), x, y, "2", "2"))
        assert ratio <= min(others)
        assert ratio >= max(others) * (1 - (1e-5 if size < 1e-10 else 0.01))


def blurred(scale: float, scale_radius: float, bias: float, bias_radius: float, name: str = "Relu") -> Network:
    """x -> act(s x + b) with s and b known to a radius."""
    diagonal = Diagonal(values=np.array([scale]), radius=np.array([scale_radius]))
    affine = Linear(map=diagonal, bias=np.array([bias]), bias_radius=np.array([bias_radius]))
    nodes: list[tuple[str, Op, Sequence[str]]] = [
        ("x", Input(shape=(1,)), []),
        ("affine", affine, ["x"]),
        ("y", elementwise(activation(name), 1), ["affine"]),
    ]
    return build(nodes, "y")


@pytest.mark.parametrize("swapped", [False, True])
def test_blurred_weights_across_a_kink(swapped: bool) -> None:
    """The least quotient over all admissible weights is known by hand."""

    def ratio(network: Network, a: float, b: float) -> float:
        ends = (np.array([b]), np.array([a])) if swapped else (np.array([a]), np.array([b]))
        return witness_ratio(network, *ends, "2", "2")

    # relu(s) - relu(-s) over 2, s >= 0.75; both points on one side; the slope of neither side is that of the pair
    assert 0.375 * (1 - 1e-8) <= ratio(blurred(1.0, 0.25, 0.0, 0.0), -1.0, 1.0) <= 0.375
    assert 0.75 * (1 - 1e-8) <= ratio(blurred(1.0, 0.25, 0.0, 0.0), 1.0, 2.0) <= 0.75
    assert 0.75 * (1 - 1e-8) <= ratio(blurred(1.0, 0.25, 8.0, 0.5), 1.0, 2.0) <= 0.75
    assert ratio(blurred(1.0, 0.25, -8.0, 0.5), 1.0, 2.0) == 0.0
    # the bias decides where the kink is: (relu(0.3 s + b) - relu(0.1 s + b)) / 0.2 is least at s = 0.9, b = -0.2
    assert ratio(blurred(1.0, 0.1, 0.0, 0.2), 0.1, 0.3) <= 0.35
    assert ratio(blurred(1.0, 0.1, 0.0, 0.01), 0.1, 0.3) >= 0.9 * (1 - 1e-8)
    # |s x + b| with b in [-1, 1] is even between the points for some b, so nothing is proved
    assert ratio(blurred(1.0, 0.1, 0.0, 1.0, "Abs"), 0.1, 0.3) == 0.0
    # |s x|: the difference of moduli, not the modulus of the difference
    assert ratio(blurred(1.0, 0.25, 0.0, 0.0, "Abs"), -1.0, 1.0) == 0.0
    assert ratio(blurred(1.0, 0.25, 0.0, 0.0, "Abs"), -1.0, 3.0) <= 0.375


@pytest.mark.parametrize("seed", range(15))
def test_blurred_weights_in_two_layers(seed: int) -> None:
    """Long steps over many kinks: below what every sampled choice of admissible weights gives."""
    rng = np.random.default_rng(seed)
    first, second, third = (rng.standard_normal(s) for s in ((6, 3), (6, 6), (2, 6)))
    scale, shift = rng.uniform(0.5, 2.0, (2, 6)), rng.standard_normal((2, 6))
    size = (1e-2, 1e-3, 1e-4)[seed % 3]
    name = ("Relu", "Abs", "Tanh")[seed // 3 % 3]

    def network(values: Any, biases: Any, radius: float) -> Network:
        blur = [(radius * scale[k], radius * np.abs(shift[k])) if radius else (None, None) for k in range(2)]
        maps = [Diagonal(values=values[k], radius=blur[k][0]) for k in range(2)]
        return build(
            [
                ("x", Input(shape=(3,)), []),
                ("l1", Linear(map=Dense(weights=first)), ["x"]),
                ("n1", Linear(map=maps[0], bias=biases[0], bias_radius=blur[0][1]), ["l1"]),
                ("a1", elementwise(activation(name), 6), ["n1"]),
                ("l2", Linear(map=Dense(weights=second)), ["a1"]),
                ("n2", Linear(map=maps[1], bias=biases[1], bias_radius=blur[1][1]), ["l2"]),
                ("a2", elementwise(activation(name), 6), ["n2"]),
                ("y", Linear(map=Dense(weights=third)), ["a2"]),
            ],
            "y",
        )

    for step in (2.0, 1e-2):
        x = rng.standard_normal(3)
        y = x + step * rng.standard_normal(3)
        ratio = witness_ratio(network(scale, shift, size), x, y, "2", "2")
        for _ in range(12):
            sign, other = (rng.choice([-0.99, 0.99], (2, 6)) for _ in range(2))
            sample = network(scale * (1 + size * sign), shift + np.abs(shift) * size * other, 0.0)
            assert ratio <= witness_ratio(sample, x, y, "2", "2")
