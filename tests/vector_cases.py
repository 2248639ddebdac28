"""Networks with nonlinearities of vectors, and what sampling says of their constants."""

from __future__ import annotations

from typing import Any

import numpy as np

from lipmodel.lower.linearise import float_program
from lipmodel.network.linear import Dense
from lipmodel.network.ops import Add, Grouped, Linear
from lipmodel.network.vector import LRN, LayerNormalization, LogSoftmax, RMSNormalization, Softmax, VectorFunction
from lipmodel.testing.networks import _Sketch

Array = np.ndarray[Any, Any]
NORMS = {"1": 1, "2": 2, "inf": np.inf}
PAIRS = [(p, q) for p in NORMS for q in NORMS]
FUNCTIONS: list[VectorFunction] = [
    Softmax(),
    LogSoftmax(),
    LayerNormalization(epsilon=0.125),
    RMSNormalization(epsilon=0.0625),
    LRN(size=3, alpha=2.0**-13, beta=0.75, bias=1.0),
    LRN(size=5, alpha=4.0, beta=0.75, bias=0.5),
    LRN(size=4, alpha=20.0, beta=1.75, bias=2.0),
    LRN(size=9, alpha=3.0, beta=5.0, bias=1.0),
    LRN(size=2, alpha=1.0, beta=0.0, bias=1.0),
    LRN(size=3, alpha=1.0, beta=0.25, bias=0.125),
]
LABELS = [f.label for f in FUNCTIONS]
CASES = [FUNCTIONS[k] for k in (0, 1, 2, 3, 5, 6)]
FORMULATIONS = ("product", "lipsdp-neuron", "lipsdp-layer", "chordal-lipsdp", "geolip")


def sandwich(rng: np.random.Generator, function: VectorFunction, *, outputs: int, groups: int = 1, n: int = 4) -> Any:
    """x -> linear -> Relu -> linear -> function on interleaved groups -> linear, with a branch around the function."""
    sketch = _Sketch(int(rng.integers(1000)), 3)
    before = sketch.linear(sketch.activate(sketch.linear(sketch.x, 5)), n * groups)
    positions = rng.permutation(n * groups).reshape(groups, n)
    inner = sketch.add(Grouped(function=function, groups=positions), [before])
    return sketch.finish(sketch.add(Add(), [sketch.linear(inner, outputs), sketch.linear(before, outputs, 0.1)]))


def sampled(network: Any, p: str, q: str, rng: np.random.Generator, count: int = 300) -> float:
    """The largest difference quotient over short steps, in floating point: below the constant, but for rounding."""
    best, n = 0.0, network.input_size
    program = float_program(network)
    x = rng.standard_normal((n, count)) * 10.0 ** rng.uniform(-1.5, 1.0, count)
    jacobians = program.jacobians(program.slopes(program.forward(x)))
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * n)).reshape(n, -1)
    for j in jacobians:
        if p == "2":
            directions = np.linalg.svd(j)[2].T
        else:
            directions = np.eye(n) if p == "1" else signs
        best = max(best, float(np.linalg.norm(j @ directions, NORMS[q], axis=0).max()))
    return best


def plain(function: VectorFunction, n: int, before: Array | None = None, after: Array | None = None) -> Any:
    """after @ function(before @ x)."""
    before, after = np.eye(n) if before is None else before, np.eye(n) if after is None else after
    sketch = _Sketch(0, before.shape[1])
    inner = sketch.add(Linear(map=Dense(weights=np.asarray(before, dtype=np.float64))), [sketch.x])
    inner = sketch.add(Grouped(function=function, groups=np.arange(n)[None]), [inner])
    return sketch.finish(sketch.add(Linear(map=Dense(weights=np.asarray(after, dtype=np.float64))), [inner]))
