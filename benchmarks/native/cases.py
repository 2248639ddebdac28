"""What is measured: networks by recipe, and files, each with the program asked of it and the goals it serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lipmodel as lm
from benchmarks.native.systems import Sketch, Slopes, convolutional, gaussian, residual
from lipmodel.model.forms import apply
from lipmodel.network.increments import IncrementSystem
from lipmodel.network.linear import Dense

MAX_ORDER = 3500
"""Order of the inequality beyond which a file is left out: the dense Hessian and the proof grow out of proportion."""
ALL = frozenset({1, 2, 3, 4, 6, 7})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One program of the benchmark.

    series: the family whose growth is measured, with the depth or width it stands for; quick: part of --quick; goals:
    what it counts for; tolerances: to which it is solved.
    """

    name: str
    system: Callable[[], IncrementSystem]
    formulation: str = "lipsdp-neuron"
    norm: str = "2"
    goals: frozenset[int] = ALL
    series: str = ""
    anytime: str = ""
    quick: bool = False
    tolerances: tuple[float, ...] = (1e-6,)


def signed(dims: list[int], seed: int) -> IncrementSystem:
    """A chain of Gaussian weights whose neurons have slope intervals of any sign."""
    rng = np.random.default_rng(seed)
    sketch = Sketch(dims[0])

    def slopes(size: int) -> Any:
        low, high = np.sort(rng.uniform(-1.2, 1.2, (2, size)), axis=0)
        return low, np.maximum(high, low + 0.05)

    drawn: Slopes = slopes
    node = sketch.x
    for n in dims[1:-1]:
        node = sketch.activate(_linear(rng, n, node), drawn)
    return sketch.finish(_linear(rng, dims[-1], node))


def _linear(rng: np.random.Generator, rows: int, form: Any) -> Any:
    return apply(Dense(weights=rng.standard_normal((rows, form.size)) / np.sqrt(form.size)), form)


def digits() -> IncrementSystem:
    """The trained network of the examples."""
    path = Path(__file__).resolve().parents[2] / "examples" / "digits.onnx"
    return lm.increments(lm.load(path))


def recipes(seed: int) -> Iterator[Case]:
    """The networks that come from recipes."""

    def chain(*dims: int, deviation: float | None = None, **facts: Any) -> Case:
        name = "-".join(map(str, _folded(dims)))
        return Case(name=name, system=lambda: gaussian(dims, seed, deviation), **facts)

    yield Case(name="digits 64-32-32-10 (trained)", system=digits, quick=True)
    yield Case(name="digits 64-32-32-10 (trained)", system=digits, formulation="geolip", norm="inf:2", quick=True)
    yield chain(2, 10, 30, 20, 2, quick=True)
    yield chain(2, 10, 30, 20, 2, formulation="geolip", norm="inf:2", quick=True)
    yield chain(20, *[20] * 10, 20, quick=True)
    yield chain(5, *[50] * 6, 5, anytime="acas", quick=True)
    for width in (50, 100, 200):
        yield chain(width, *[width] * 5, 10, series="width", quick=width < 200)
    for depth in (5, 10, 20, 40, 80):
        yield chain(50, *[50] * depth, 50, series="depth", quick=depth <= 20)
    yield chain(20, *[20] * 100, 20)
    yield chain(2, *[50] * 40, 2, deviation=0.5)
    yield chain(100, *[100] * 10, 10)
    yield chain(250, *[250] * 5, 250)
    yield chain(150, *[150] * 3, 10, quick=True)
    yield chain(784, 256, 256, 10, anytime="mnist256x2")
    yield chain(784, *[256] * 4, 10)
    yield chain(784, *[256] * 6, 10)
    yield chain(784, 64, 10, quick=True)
    yield chain(784, 256, 10, quick=True)
    yield chain(784, 512, 10)
    for width in (250, 500, 1000, 2000):
        yield chain(50, width, 10, series="one wide layer", quick=width <= 500)
    yield chain(10, *[50] * 5, 10, formulation="geolip", norm="inf:2", quick=True)
    yield chain(64, 128, 128, 10, formulation="geolip", norm="inf:2")
    yield chain(20, *[20] * 20, 5, formulation="geolip", norm="inf:2", quick=True)
    yield chain(20, 50, 50, 10, formulation="geolip", norm="2:1", quick=True)
    yield chain(20, 50, 50, 10, formulation="geolip", norm="inf:1", quick=True)
    yield chain(50, *[50] * 5, 10, formulation="lipsdp-layer", quick=True)
    yield Case(name="30-80-80-80-5, slopes of any sign", system=lambda: signed([30, 80, 80, 80, 5], seed), quick=True)
    yield Case(name="residual 32, 4 blocks of 64", system=lambda: residual(32, 32, 64, 4, 10, seed), quick=True)
    yield Case(name="residual 64, 5 blocks of 128", system=lambda: residual(64, 64, 128, 5, 10, seed))
    small, large = [(4, 3, 2), (8, 3, 2)], [(8, 3, 2), (16, 3, 2)]
    yield Case(name="conv 1x12x12", system=lambda: convolutional((1, 1, 12, 12), small, 10, seed), quick=True)
    yield Case(name="conv 3x16x16", system=lambda: convolutional((1, 3, 16, 16), large, 10, seed))
    logits: dict[str, Any] = {"formulation": "geolip", "norm": "inf:inf", "goals": frozenset({1, 5})}
    yield chain(784, 64, 10, tolerances=(1e-6, 1e-4), quick=True, **logits)
    yield chain(784, 256, 10, tolerances=(1e-6, 1e-4), **logits)
    yield chain(784, *[64] * 6, 10, **logits)


def _folded(dims: tuple[int, ...]) -> list[str]:
    """Widths, runs of equal ones as 50^5."""
    runs: list[list[int]] = []
    for n in dims[1:-1]:
        if runs and runs[-1][0] == n:
            runs[-1][1] += 1
        else:
            runs.append([n, 1])
    return [str(dims[0]), *(f"{n}^{k}" if k > 1 else str(n) for n, k in runs), str(dims[-1])]


def files(folder: Path) -> Iterator[Case]:
    """LipSDP-Neuron of every network below a folder that is accepted, has activations and is not too large."""
    for path in sorted(folder.rglob("*.onnx")):
        try:
            system = lm.increments(lm.load(path))
        except lm.LipmodelError:
            continue
        if system.neurons < 2 or system.order > MAX_ORDER or not system.output.blocks:
            continue

        def loaded(system: IncrementSystem = system) -> IncrementSystem:
            return system

        small = system.neurons == 300 and len(system.activations) == 6
        wide = system.neurons == 512 and len(system.activations) == 2 and system.input.size == 784
        yield Case(
            name=f"{folder.name}/{path.relative_to(folder)}",
            system=loaded,
            anytime="acas" if small else "mnist256x2" if wide else "",
            quick=True,
        )
