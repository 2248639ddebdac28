"""A question of one's own about a network, as a polynomial: proved ranges, and a statement about two outputs at once.

    python examples/polynomial_range.py

ReLU is a set described by polynomials, y (y - v) = 0, y >= 0, y >= v, so whatever can be said by polynomials in a
network's inputs, neurons and outputs can be bounded by sums of squares. The solver only finds the proof: it is checked
in exact arithmetic, and can be checked again by whoever has the same network.
"""

from __future__ import annotations

import numpy as np

import lipmodel as lm

rng = np.random.default_rng(3)
weights = [rng.standard_normal((4, 2)), rng.standard_normal((4, 4)), rng.standard_normal((2, 4))]
biases = [rng.standard_normal(4), rng.standard_normal(4), rng.standard_normal(2)]
net = lm.from_weights(weights, biases)
values = lm.network_values(net, lm.Box([-1.0, -1.0], [1.0, 1.0]))
y0, y1 = values.outputs
samples = net.evaluate(rng.uniform(-1.0, 1.0, (2, 20_000)))

for name, objective, seen in (
    ("y0", y0, samples[0].max()),
    ("-y0", -y0, -samples[0].min()),
    ("y0^2 - y1", y0**2 - y1, (samples[0] ** 2 - samples[1]).max()),
):
    program = values.maximise(objective)
    for order in (1, 2):
        relaxation = lm.SumOfSquares(program=program, order=order)
        proved = relaxation.bound()
        assert program.verify(proved.proof) == proved.bound
        print(f"{name:>9} <= {proved.bound:.6f}   order {order}; seen in samples: {seen:.6f}")
