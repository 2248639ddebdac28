"""Random graphs in which scalar, vector and product nonlinearities meet: no bound is below what sampling finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from vector_cases import FORMULATIONS, FUNCTIONS, NORMS

import lipmodel as lm
from lipmodel.activations import activation
from lipmodel.domain import Ball, Box
from lipmodel.errors import RefusedInput, UsageError
from lipmodel.lower.linearise import float_program
from lipmodel.network.ops import Add, Grouped, Product, elementwise
from lipmodel.testing.networks import _Sketch

Array = np.ndarray[Any, Any]


def drawn(rng: np.random.Generator, local: bool) -> Any:
    """A graph of two to four nonlinearities or maps, each of something before it, with a branch to the output."""
    sketch = _Sketch(int(rng.integers(10**6)), int(rng.integers(1, 4)))
    pool = [sketch.x]
    for _ in range(int(rng.integers(2, 5))):
        source, kind = pool[rng.integers(len(pool))], int(rng.integers(6 if local else 4))
        if kind == 0:
            pool.append(sketch.linear(source, int(rng.integers(2, 6))))
        elif kind == 1:
            pool.append(sketch.activate(sketch.linear(source, int(rng.integers(2, 6)))))
        elif kind in (2, 3):
            count, n = int(rng.integers(1, 3)), int(rng.integers(1, 4))
            # with zeros, so that entries of groups are without input, and groups dead
            weights = rng.standard_normal((count * n, sketch.size(source)))
            weights *= rng.random(weights.shape) < 0.6
            op = Grouped(
                function=FUNCTIONS[rng.integers(len(FUNCTIONS))], groups=rng.permutation(count * n).reshape(count, n)
            )
            pool.append(sketch.add(op, [sketch.linear(source, count * n, weights=weights)]))
        elif kind == 4:
            n, other = int(rng.integers(1, 4)), pool[rng.integers(len(pool))]
            pool.append(sketch.add(Product(), [sketch.linear(source, n), sketch.linear(other, n)]))
        else:
            n, name = int(rng.integers(1, 4)), ("Exp", "Pow", "Sin")[rng.integers(3)]
            pool.append(sketch.add(elementwise(activation(name), n), [sketch.linear(source, n, 0.4)]))
    outputs = int(rng.integers(1, 4))
    last = sketch.linear(pool[-1], outputs)
    branch = rng.standard_normal((outputs, sketch.size(pool[-2])))
    branch *= rng.random(branch.shape) < 0.4
    return sketch.finish(sketch.add(Add(), [last, sketch.linear(pool[-2], outputs, weights=branch)]))


def steepest(network: Any, x: Array, p: str, q: str) -> float:
    """The largest ||J v||_q / ||v||_p at the points x and directions v that attain, or nearly, the norm."""
    program, n = float_program(network), network.input_size
    best = 0.0
    for j in program.jacobians(program.slopes(program.forward(x))):
        if p == "2":
            v = np.linalg.svd(j)[2].T
        else:
            v = np.eye(n) if p == "1" else np.array(np.meshgrid(*[[-1.0, 1.0]] * n)).reshape(n, -1)
        best = max(best, float(np.linalg.norm(j @ v, NORMS[q], axis=0).max()))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_bounds_of_random_graphs_hold_and_are_verified(seed: int) -> None:
    rng = np.random.default_rng(seed)
    local = bool(rng.random() < 0.6)
    network = drawn(rng, local)
    p, q = (list(NORMS)[rng.integers(3)] for _ in range(2))
    n, domain = network.input_size, "global"
    center, radius = rng.standard_normal(n), float(10.0 ** rng.uniform(-3.0, 0.0))
    x: Array = rng.standard_normal((n, 200)) * 10.0 ** rng.uniform(-2.0, 1.5, 200)
    if local:
        steps = rng.uniform(-1.0, 1.0, (n, 200))
        steps[:, :60] = np.sign(steps[:, :60])
        ball = rng.random() < 0.4
        if ball:
            steps *= (1 - 1e-9) / np.maximum(1.0, np.linalg.norm(steps, NORMS[p], axis=0))
        box = Box(lo=tuple(center - radius), hi=tuple(center + radius))
        domain = Ball(center=tuple(center), radius=radius) if ball else box
        x = np.clip(center[:, None] + radius * steps, (center - radius)[:, None], (center + radius)[:, None])
    least = steepest(network, x, p, q)
    for formulation in ("product", FORMULATIONS[rng.integers(len(FORMULATIONS))]):
        try:
            result = lm.solve(network, formulation, norm=f"{p}:{q}", domain=domain, time_limit=2.0)
        except UsageError as error:
            assert "does not reach --norm" in str(error)  # noqa: PT017 - the only reason there may be
            continue
        except RefusedInput as refused:
            assert {reason.kind for reason in refused.reasons} == {"non-lipschitz"}  # noqa: PT017 - out of range
            continue
        assert result.bound >= least * (1 - 1e-7) - 1e-12
        assert result.lower_bound is None or result.lower_bound <= result.bound
        assert lm.verify(network, result).bound == result.bound
