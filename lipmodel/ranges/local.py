"""Proved ranges of every pre-activation over a box or a ball: what local slopes are read from.

Intervals are propagated through the graph in integers, rounded outward to a fixed precision, so that whoever checks a
certificate finds the same numbers. Where a value is still affine in the input, its range over the domain is taken from
the affine form itself: with an l2 ball of radius eps, w'x + b lies in w'c + b +- eps ||w||_2.

Sources: interval bound propagation (Moore 1966; for networks Gowal et al. 2018, arXiv 1810.12715), with the first
layers of a ball as in Weng et al. 2018 (arXiv 1804.09699).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.domain import Ball, Box, Domain
from lipmodel.errors import NotLipschitz, Reason
from lipmodel.model.forms import LinearForm, Signal, add_forms, apply
from lipmodel.network import ops
from lipmodel.network.linear import Composition, LinearMap, Sum
from lipmodel.ranges.spans import Ready, Span, add, around, between, image, place, scattered, times

if TYPE_CHECKING:
    from lipmodel.activations import Activation
    from lipmodel.network.graph import Network

Array = np.ndarray[Any, Any]
Interval = tuple[Array, Array]

EXPANDED = 4_000_000
"""Entries of an affine form of the input beyond which it is not written out: its range is then propagated."""
HALVES = 64
"""Fractional bits of square roots."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """A domain in integers: a box around it, and how far a linear functional reaches from its centre.

    norm: "inf" for a box (radii in `box.rad`), else that of the ball, whose radius is `radius` * 2^-exponent.
    """

    box: Span
    norm: str
    radius: int = 0
    exponent: int = 0

    @property
    def center(self) -> Span:
        return Span(mid=self.box.mid, rad=0 * self.box.rad, exponent=self.box.exponent)

    def reach(self, linear: LinearMap, ready: Ready) -> Span | None:
        """Intervals around 0 that hold M (x - centre) for all x of the domain; None where M is too large for that."""
        if self.norm == "inf" and not isinstance(linear, Composition | Sum):
            around_zero = Span(mid=0 * self.box.mid, rad=self.box.rad, exponent=self.box.exponent)
            return image(linear, around_zero, ready)
        if linear.entries > EXPANDED:
            return None
        from lipmodel.certify.exact_entries import exact_entries

        found = exact_entries(linear)
        size, exponent = found.magnitude(), found.exponent
        if self.norm == "inf":
            size, exponent = size * self.box.rad[found.cols], exponent + self.box.exponent
        rows, starts = np.unique(found.rows, return_index=True)
        rad = np.zeros(linear.shape[0], dtype=object)
        if len(rows):
            if self.norm == "inf":
                rad[rows] = np.add.reduceat(size, starts)
            elif self.norm == "1":
                rad[rows] = np.maximum.reduceat(size, starts) * self.radius
            else:
                squares = np.add.reduceat(size * size, starts).tolist()
                roots = [math.isqrt((v << 2 * HALVES) - 1) + 1 if v else 0 for v in squares]
                rad[rows] = np.array(roots, dtype=object) * self.radius
        if self.norm != "inf":
            exponent += self.exponent + (HALVES if self.norm == "2" else 0)
        return Span(mid=0 * rad, rad=rad, exponent=exponent).rounded()


def region(domain: Box | Ball, norm: str) -> Region:
    """The domain in integers; norm: that of the ball."""
    if isinstance(domain, Box):
        return Region(box=between(np.array(domain.lo), np.array(domain.hi)), norm="inf")
    box = around(np.array(domain.center), np.full(len(domain.center), domain.radius))
    return Region(box=box, norm=norm, radius=int(box.rad[0]), exponent=box.exponent)


@dataclass(slots=True, kw_only=True, eq=False)
class Propagation:
    """The state of one pass through a graph.

    spans: intervals of the values of nodes, None where they are unbounded; points, forms: for nodes that are affine in
    the input, their values at the centre and their linear parts; ranges: the answer; reasons: what must be refused.
    """

    network: Network
    region: Region
    spans: dict[str, Span | None] = field(default_factory=dict)
    points: dict[str, Span] = field(default_factory=dict)
    forms: dict[str, LinearForm] = field(default_factory=dict)
    ranges: dict[str, Interval] = field(default_factory=dict)
    reasons: list[Reason] = field(default_factory=list)
    ready: Ready = field(default_factory=dict)

    def run(self, tighten: Callable[[str, Interval], Interval] | None = None) -> None:
        """Visit all nodes; tighten: asked for a smaller range of a pre-activation, may give the same one."""
        x = Signal(name="x", size=self.network.input_size)
        for node, op, arguments in self.network.plan():
            if isinstance(op, ops.Elementwise | ops.Grouped):
                self._activate(node, op, arguments[0], tighten)
                continue
            if isinstance(op, ops.Product):
                self._multiply(node, arguments)
                continue
            if isinstance(op, ops.Input):
                self.points[node], self.forms[node] = self.region.center, LinearForm.of(x)
                self.spans[node] = self.region.box
            elif all(u in self.forms for u in arguments):
                self.forms[node] = _linear_part(op, [self.forms[u] for u in arguments])
                self.points[node] = _applied(op, [self.points[u] for u in arguments], self.ready)
            else:
                known = [self.span(u) for u in arguments]
                whole = [s for s in known if s is not None]
                self.spans[node] = _applied(op, whole, self.ready) if len(whole) == len(known) else None

    def span(self, node: str) -> Span | None:
        """The interval of the value of a node."""
        if node not in self.spans:
            point, form = self.points[node], self.forms[node]
            total: Span | None = point
            for linear in form.blocks.values():
                reach = self.region.reach(linear, self.ready)
                total = None if reach is None else add([point, reach]).rounded()
            if total is None:
                inputs = [self.span(u) for u in self.network.arguments(node)]
                total = _applied(self.network.op(node), [s for s in inputs if s is not None], self.ready)
            self.spans[node] = total
        return self.spans[node]

    def _multiply(self, node: str, arguments: list[str]) -> None:
        """A product; its range is that of one factor, then that of the other."""
        size = self.network.size(node)
        factors = [self.span(u) for u in arguments]
        known = [s for s in factors if s is not None]
        limits = [(np.full(size, -np.inf), np.full(size, np.inf)) if s is None else s.limits() for s in factors]
        self.ranges[node] = (np.concatenate([lo for lo, _ in limits]), np.concatenate([hi for _, hi in limits]))
        self.spans[node] = times(*known).rounded() if len(known) == 2 else None

    def _activate(
        self,
        node: str,
        op: ops.Elementwise | ops.Grouped,
        argument: str,
        tighten: Callable[[str, Interval], Interval] | None,
    ) -> None:
        span = self.span(argument)
        lo, hi = (np.full(op.size, -np.inf), np.full(op.size, np.inf)) if span is None else span.limits()
        constant = argument in self.forms and not self.forms[argument].blocks
        if tighten is not None and not constant and isinstance(op, ops.Elementwise):
            lo, hi = tighten(node, (lo, hi))
            if bool(np.all(np.isfinite(lo) & np.isfinite(hi))):
                self.spans[argument] = between(lo, hi)
        self.ranges[node] = (lo, hi)
        low, high = np.full(op.size, -np.inf), np.full(op.size, np.inf)
        if isinstance(op, ops.Grouped):
            low[op.groups], high[op.groups] = op.function.limits(lo[op.groups], hi[op.groups])
        for part in op.parts if isinstance(op, ops.Elementwise) else ():
            try:
                low[part.index], high[part.index] = value_ranges(part.activation, lo[part.index], hi[part.index])
            except NotLipschitz as error:
                self.reasons.append(
                    Reason(kind="non-lipschitz", where=f"node {node!r}", message=str(error), hint="a smaller domain")
                )
        bounded = bool(np.all(np.isfinite(low) & np.isfinite(high)))
        self.spans[node] = between(low, high) if bounded else None
        if constant and bounded:
            self.points[node] = between(low, high)
            self.forms[node] = LinearForm(size=op.size, blocks={})


def pre_activation_ranges(
    network: Network, domain: Domain, norm: str, *, relaxed: bool = True
) -> tuple[Mapping[str, Interval], list[Reason]]:
    """For every nonlinear node doubles (lo, hi), shape (size,), between which its argument lies on the domain.

    domain: a box or a ball with one number per input; norm: the input norm. relaxed: with linear relaxations, where
    those do not take too long. Infinite where nothing is known. Also the reasons to refuse the network: nodes that are
    not defined somewhere in their range.
    """
    from lipmodel.ranges.relaxation import Relaxation

    assert isinstance(domain, Box | Ball)
    state = Propagation(network=network, region=region(domain, norm))
    state.run(Relaxation(state=state).tighten if relaxed else None)
    return state.ranges, state.reasons


def value_ranges(activation: Activation, lo: Array, hi: Array) -> Interval:
    """Proved bounds of the values of an activation over intervals. Raises NotLipschitz where it is not defined."""
    pairs, inverse = np.unique(np.stack([lo, hi], axis=1), axis=0, return_inverse=True)
    if activation.name == "Relu":
        found = np.maximum(pairs, 0.0)
    else:
        found = np.array([activation.value_range(float(a), float(b)) for a, b in pairs]).reshape(-1, 2)
    both = found[inverse.ravel()]
    return both[:, 0], both[:, 1]


def _linear_part(op: ops.Op, forms: list[LinearForm]) -> LinearForm:
    if isinstance(op, ops.Constant):
        return LinearForm(size=len(op.values), blocks={})
    if isinstance(op, ops.Linear):
        return apply(op.map, forms[0])
    if isinstance(op, ops.Add):
        return add_forms(forms)
    assert isinstance(op, ops.Concat)
    from lipmodel.network.increments import concatenated

    return concatenated(op.positions, forms)


def _applied(op: ops.Op, inputs: list[Span], ready: Ready) -> Span:
    """An affine operation on intervals."""
    if isinstance(op, ops.Constant):
        return around(op.values)
    if isinstance(op, ops.Linear):
        y = image(op.map, inputs[0], ready)
        return y if op.bias is None else add([y, around(op.bias, op.bias_radius)]).rounded()
    if isinstance(op, ops.Add):
        return add(inputs).rounded()
    assert isinstance(op, ops.Concat)
    return place(inputs, op.positions) if inputs else scattered([], [], 0)
