"""The values of a network as polynomials: one variable per bent neuron, described by inequalities of degree two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.errors import UsageError
from lipmodel.model.polynomials import Polynomial, PolynomialProgram

if TYPE_CHECKING:
    from lipmodel.activations import Activation
    from lipmodel.domain import Ball, Box
    from lipmodel.network.graph import Network
    from lipmodel.network.linear import LinearMap

Array = np.ndarray[Any, Any]
Signal = list[Polynomial]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetworkValues:
    """What a network computes on a box or a ball, exactly: polynomials and the set that they live on.

    inputs: x0, x1, ..; neurons: by name of the node, the values of its activations (a variable where the function is
    bent on the domain, else the affine function that it is); outputs: the network's, affine in all these. ranges,
    nonnegative, zero: the set, as in `PolynomialProgram`.
    """

    inputs: Signal
    neurons: Mapping[str, Signal]
    outputs: Signal
    ranges: Mapping[str, tuple[float, float]]
    nonnegative: Sequence[Polynomial]
    zero: Sequence[Polynomial]

    def maximise(
        self, objective: Polynomial, *, nonnegative: Sequence[Polynomial] = (), zero: Sequence[Polynomial] = ()
    ) -> PolynomialProgram:
        """The program that maximises a polynomial in inputs, neurons and outputs, with more constraints if given."""
        return PolynomialProgram(
            objective=objective,
            ranges=self.ranges,
            nonnegative=(*self.nonnegative, *nonnegative),
            zero=(*self.zero, *zero),
        )


def network_values(network: Network, domain: Box | Ball, norm: str = "inf") -> NetworkValues:
    """The values of a network with ReLU and leaky ReLU activations on a bounded domain; norm: that of a ball.

    y = max(v, a v) with 0 <= a < 1 is (y - v)(y - a v) = 0, y >= v, y >= a v. Raises UsageError for other activations,
    for an unbounded domain and for weights that are not exactly known; RefusedInput where the ranges refuse.

    Source: Raghunathan, Steinhardt & Liang 2018, arXiv 1811.01057; Chen et al. 2020, arXiv 2002.03657.
    """
    from lipmodel.domain import Ball, Box
    from lipmodel.network import ops
    from lipmodel.network.increments import ranges_over

    domain = domain.sized(network.input_size)
    if not isinstance(domain, Box | Ball):
        raise UsageError("the values of a network are bounded on a box or a ball only")
    found = ranges_over(network, domain, norm)
    state = _State(ranges={}, nonnegative=[], zero=[])
    inputs = state.inputs(domain, norm)
    signals: dict[str, Signal] = {}
    neurons: dict[str, Signal] = {}
    for node in network.order():
        op = network.graph.nodes[node]["op"]
        given = [signals[u] for u in network.arguments(node)]
        if isinstance(op, ops.Input):
            signals[node] = inputs
        elif isinstance(op, ops.Constant):
            signals[node] = [Polynomial.number(float(v)) for v in op.values]
        elif isinstance(op, ops.Linear):
            signals[node] = _affine(op.map, op.bias, op.bias_radius, given[0], node)
        elif isinstance(op, ops.Add):
            signals[node] = [Polynomial.combination([1] * len(parts), parts) for parts in zip(*given, strict=True)]
        elif isinstance(op, ops.Concat):
            placed = [pair for at, part in zip(op.positions, given, strict=True) for pair in zip(at, part, strict=True)]
            signals[node] = [part for _, part in sorted(placed, key=lambda pair: int(pair[0]))]
        elif isinstance(op, ops.Elementwise):
            values = list(given[0])
            lo, hi = found[node]
            for part in op.parts:
                for i in part.index.tolist():
                    values[i] = state.bent(part.activation, given[0][i], f"{node}_{i}", float(lo[i]), float(hi[i]))
            signals[node] = neurons[node] = values
        else:
            raise UsageError(f"node {node!r}: {type(op).__name__} has no description by polynomials here")
    return NetworkValues(
        inputs=inputs,
        neurons=neurons,
        outputs=signals[network.output],
        ranges=state.ranges,
        nonnegative=state.nonnegative,
        zero=state.zero,
    )


@dataclass(slots=True, kw_only=True, eq=False)
class _State:
    """The variables and constraints so far."""

    ranges: dict[str, tuple[float, float]]
    nonnegative: list[Polynomial]
    zero: list[Polynomial]

    def inputs(self, domain: Box | Ball, norm: str) -> Signal:
        from lipmodel.domain import Box

        if isinstance(domain, Box):
            ends = list(zip(domain.lo, domain.hi, strict=True))
        else:
            reach = [
                (Fraction(c) - Fraction(domain.radius), Fraction(c) + Fraction(domain.radius)) for c in domain.center
            ]
            ends = [(_down(a), -_down(-b)) for a, b in reach]
        names = [f"x{i}" for i in range(len(ends))]
        self.ranges.update(zip(names, ends, strict=True))
        variables = [Polynomial.variable(name) for name in names]
        if not isinstance(domain, Box) and norm == "2":
            squares = [(x - c) ** 2 for x, c in zip(variables, domain.center, strict=True)]
            self.nonnegative.append(Fraction(domain.radius) ** 2 - Polynomial.combination([1] * len(squares), squares))
        elif not isinstance(domain, Box) and norm == "1":
            raise UsageError("an l1 ball has no description by few polynomials: give a box or an l2 ball")
        return variables

    def bent(self, activation: Activation, v: Polynomial, name: str, lo: float, hi: float) -> Polynomial:
        """The value of an activation at v in [lo, hi]."""
        alpha = Fraction(dict(activation.params)["alpha"]) if activation.name == "LeakyRelu" else Fraction(0)
        if activation.name not in ("Relu", "LeakyRelu") or not 0 <= alpha < 1:
            raise UsageError(f"{activation.label} has no description by polynomials here: Relu and LeakyRelu have")
        if lo >= 0.0 or hi <= 0.0:
            return v if lo >= 0.0 else alpha * v
        if not (math.isfinite(lo) and math.isfinite(hi)):
            raise UsageError(f"{name}: its range is not known")
        y = Polynomial.variable(name)
        self.ranges[name] = (_down(alpha * Fraction(lo)), hi)
        self.nonnegative += [y - v, y - alpha * v]
        self.zero.append((y - v) * (y - alpha * v))
        return y


def _down(value: Fraction) -> float:
    """The largest double that is at most a fraction."""
    near = float(value)
    return near if Fraction(near) <= value else math.nextafter(near, -math.inf)


def _affine(map: LinearMap, bias: Array | None, radius: Array | None, given: Signal, node: str) -> Signal:
    from lipmodel.certify.exact_entries import exact_entries

    entries = exact_entries(map)
    if entries.rad is not None or (radius is not None and bool(np.any(radius))):
        raise UsageError(f"node {node!r}: its weights are known up to an error only")
    rows: list[tuple[list[Fraction], Signal]] = [([], []) for _ in range(map.shape[0])]
    for r, c, v in zip(entries.rows.tolist(), entries.cols.tolist(), entries.mid.tolist(), strict=True):
        rows[r][0].append(Fraction(int(v), 1 << entries.exponent))
        rows[r][1].append(given[c])
    constants = [0.0] * len(rows) if bias is None else [float(b) for b in bias]
    return [Polynomial.combination(w, parts, b) for (w, parts), b in zip(rows, constants, strict=True)]
