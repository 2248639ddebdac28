"""Networks by recipe, as increment systems: Gaussian chains, residual networks, convolutions, and the random suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from lipmodel.model.forms import LinearForm, Signal, add_forms, apply
from lipmodel.network.conv import Conv
from lipmodel.network.increments import IncrementSystem, SlopeRestricted, chain_of
from lipmodel.network.linear import Dense, Selection
from lipmodel.spec import Norm, as_norm

Array = np.ndarray[Any, Any]
Slopes = Callable[[int], tuple[Array, Array]]


def relu(size: int) -> tuple[Array, Array]:
    """The slopes of `size` ReLUs."""
    return np.zeros(size), np.ones(size)


class Sketch:
    """An increment system under construction."""

    def __init__(self, inputs: int) -> None:
        signal = Signal(name="x", size=inputs)
        self.signals = [signal]
        self.activations: list[SlopeRestricted] = []
        self.x = LinearForm.of(signal)

    def activate(self, pre: LinearForm, slopes: Slopes = relu) -> LinearForm:
        low, high = slopes(pre.size)
        signal = Signal(name=f"w{len(self.signals)}", size=pre.size)
        post = LinearForm.of(signal)
        self.signals.append(signal)
        self.activations.append(
            SlopeRestricted(
                name=f"layer{len(self.activations)}", signal=signal, pre=pre, post=post, alpha=low, beta=high
            )
        )
        return post

    def finish(self, output: LinearForm) -> IncrementSystem:
        return IncrementSystem(
            signals=tuple(self.signals),
            input=LinearForm.of(self.signals[0], role="input"),
            activations=tuple(self.activations),
            output=LinearForm(size=output.size, blocks=output.blocks, role="output"),
        )


def gaussian(dims: Sequence[int], seed: int, deviation: float | None = None) -> IncrementSystem:
    """A ReLU chain of these widths, weights of standard deviation `deviation` (default: 1 / sqrt(fan in))."""
    rng = np.random.default_rng(seed)
    return chain_of([rng.standard_normal((m, n)) * (deviation or 1 / np.sqrt(n)) for n, m in pairwise(dims)])


def residual(inputs: int, width: int, hidden: int, blocks: int, outputs: int, seed: int) -> IncrementSystem:
    """x + V relu(W x), `blocks` times, between two linear maps: width * blocks signals that all later blocks read."""
    rng = np.random.default_rng(seed)
    sketch = Sketch(inputs)

    def linear(size: int, form: LinearForm, scale: float = 1.0) -> LinearForm:
        weights = scale * rng.standard_normal((size, form.size)) / np.sqrt(form.size)
        return apply(Dense(weights=weights), form)

    node = linear(width, sketch.x)
    for _ in range(blocks):
        branch = linear(width, sketch.activate(linear(hidden, node)), 0.5)
        node = add_forms([node, branch])
    return sketch.finish(linear(outputs, node))


def conv(shape: tuple[int, ...], channels: int, taps: int, stride: int, rng: np.random.Generator) -> Conv:
    """A convolution of a (1, c, height, width) tensor with padding taps // 2, weights 1 / sqrt(fan in)."""
    spatial = tuple((n + 2 * (taps // 2) - taps) // stride + 1 for n in shape[2:])
    kernel = rng.standard_normal((channels, shape[1], taps, taps)) / np.sqrt(shape[1] * taps * taps)
    return Conv(
        kernel=kernel,
        input_shape=shape,
        output_spatial=spatial,
        strides=(stride, stride),
        pads=(taps // 2, taps // 2),
        dilations=(1, 1),
    )


def convolutional(
    shape: tuple[int, ...],
    layers: Sequence[tuple[int, int, int]],
    outputs: int,
    seed: int,
    slopes: Slopes = relu,
) -> IncrementSystem:
    """A chain of convolutions (channels, taps, stride) on a (1, c, height, width) input, and a dense layer."""
    rng = np.random.default_rng(seed)
    sketch = Sketch(prod(shape))
    node = sketch.x
    for channels, taps, stride in layers:
        linear = conv(shape, channels, taps, stride, rng)
        shape = linear.output_shape
        node = sketch.activate(apply(linear, node), slopes)
    weights = rng.standard_normal((outputs, node.size)) / np.sqrt(node.size)
    return sketch.finish(apply(Dense(weights=weights), node))


# ---------------------------------------------------------------------------------------------------------------------
# The random suite

STYLES = ("plain", "rows", "heavy", "sparse", "nonnegative", "layers", "dead", "all")
"""Gaussian; rows scaled by 1e-4..1e4; t distribution of 1.2 degrees; 70 % zeros; no negative weight; layers scaled by
1e-3..1e3; zero rows and zero columns; rows, layers and zeros together."""
SHAPES = ("chain", "deep", "wide", "residual", "closed", "skips", "concat", "conv")
SLOPES = ("relu", "leaky", "any", "abs", "negative", "narrow")
PROGRAMS = (
    ("lipsdp-neuron", "2", "2"),
    ("geolip", "inf", "2"),
    ("lipsdp-layer", "2", "2"),
    ("geolip", "2", "1"),
    ("geolip", "inf", "1"),
    ("lipsdp-neuron", "2", "2"),
    ("geolip", "inf", "scalar"),
)
"""Formulation, input norm, output norm; scalar: one output."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RandomCase:
    """A network of the suite, and the program that is asked of it."""

    seed: int
    shape: str
    style: str
    slopes: str
    formulation: str
    norms: tuple[Norm, Norm]
    system: IncrementSystem

    def __str__(self) -> str:
        program = f"{self.formulation} {self.norms[0]}:{self.norms[1]}"
        size = f"{self.system.input.size} inputs, {self.system.neurons} neurons, {self.system.output.size} outputs"
        return f"seed {self.seed}: {self.shape}, {self.style}, slopes {self.slopes}, {program}, {size}"


def random_case(seed: int, largest: int = 28) -> RandomCase:
    """One network of the suite: the same for the same arguments. Widths up to `largest`."""
    rng = np.random.default_rng([seed, 77])
    formulation, p, q = PROGRAMS[seed % len(PROGRAMS)]
    shape, style, kind = (str(rng.choice(names)) for names in (SHAPES, STYLES, SLOPES))
    width = int(np.exp(rng.uniform(0.0, np.log(largest)))) + 1
    inputs, outputs = int(rng.integers(1, largest + 1)), 1 if q == "scalar" else int(rng.integers(1, 11))
    slopes = _slopes(rng, kind)
    if shape == "conv":
        side = int(rng.integers(2, 6))
        layers = [(int(rng.integers(1, 4)), int(rng.choice([1, 3])), int(rng.integers(1, 3))) for _ in range(2)]
        system = convolutional((1, int(rng.integers(1, 3)), side, side), layers, outputs, seed, slopes)
        style = "plain"
    else:
        system = _random_graph(rng, shape, style, slopes, width, inputs, outputs)
    norms = (as_norm(p), as_norm("2" if q == "scalar" else q))
    return RandomCase(
        seed=seed, shape=shape, style=style, slopes=kind, formulation=formulation, norms=norms, system=system
    )


def _slopes(rng: np.random.Generator, kind: str) -> Slopes:
    def drawn(size: int) -> tuple[Array, Array]:
        low, high = np.zeros(size), np.ones(size)
        if kind == "leaky":
            low[:] = 0.01
        elif kind == "any":
            low, high = np.sort(rng.uniform(-1.5, 1.5, (2, size)), axis=0)
            high = np.maximum(high, low + 0.01)
        elif kind == "abs":
            low[:] = -1.0
        elif kind == "negative":
            low, high = np.full(size, -1.0), rng.choice([-0.2, 0.0, 0.1], size)
        elif kind == "narrow":
            low[:] = 0.9
        return low, high

    return drawn


def weights(rng: np.random.Generator, rows: int, columns: int, style: str) -> Array:
    """A random matrix of one of the `STYLES`."""
    w = rng.standard_normal((rows, columns)) / np.sqrt(columns)
    if style in ("rows", "all"):
        w = w * 10.0 ** rng.uniform(-4, 4, (rows, 1))
    if style == "heavy":
        w = rng.standard_t(1.2, w.shape) / np.sqrt(columns)
    if style in ("sparse", "all"):
        w = w * (rng.random(w.shape) < 0.3)
    if style == "nonnegative":
        w = np.abs(w)
    if style in ("layers", "all"):
        w = w * 10.0 ** rng.uniform(-3, 3)
    if style == "dead":
        w[rng.random(rows) < 0.2] = 0.0
        w[:, rng.random(columns) < 0.2] = 0.0
    return np.asarray(w)


def _random_graph(
    rng: np.random.Generator, shape: str, style: str, slopes: Slopes, width: int, inputs: int, outputs: int
) -> IncrementSystem:
    sketch = Sketch(inputs)

    def linear(form: LinearForm, size: int) -> LinearForm:
        return apply(Dense(weights=weights(rng, size, form.size, style)), form)

    node = sketch.x
    if shape in ("chain", "deep", "wide"):
        depth = int(rng.integers(6, 13) if shape == "deep" else 1 if shape == "wide" else rng.integers(1, 5))
        for _ in range(depth):
            size = 4 * width if shape == "wide" else max(1, int(rng.integers(max(1, width // 2), width + 1)))
            node = sketch.activate(linear(node, min(size, 10) if shape == "deep" else size), slopes)
        return sketch.finish(linear(node, outputs))
    if shape in ("residual", "closed"):
        node = linear(node, width)
        for _ in range(int(rng.integers(1, 4))):
            node = add_forms([node, linear(sketch.activate(linear(node, width), slopes), width)])
            node = sketch.activate(node, slopes) if shape == "closed" else node
        return sketch.finish(linear(node, outputs))
    seen = [node]
    for _ in range(int(rng.integers(1, 5))):
        size = int(rng.integers(1, width + 1))
        read = seen if shape == "skips" else seen[-2:]
        joined = add_forms([linear(form, size) for form in read])
        if shape == "concat" and joined.size > 2:
            index = np.sort(rng.permutation(joined.size)[: joined.size - 1])
            joined = apply(Selection(index=index, size=joined.size), joined)
        seen.append(sketch.activate(joined, slopes))
    return sketch.finish(add_forms([linear(form, outputs) for form in seen]))
