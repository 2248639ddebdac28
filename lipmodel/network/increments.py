"""Networks as increment systems: what is left of a network when two of its inputs are subtracted.

Biases vanish. Every nonlinearity contributes one signal w with w_j = s_j v_j, s_j in [alpha_j, beta_j]; everything in
between is linear. Any directed acyclic graph of affine and elementwise operations takes this (Lur'e) form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.domain import Box, Global
from lipmodel.errors import NotLipschitz
from lipmodel.model.forms import LinearForm, Signal, add_forms, apply
from lipmodel.network.linear import Dense, Diagonal, LinearMap, Selection
from lipmodel.network.pruning import without_dead_neurons
from lipmodel.network.slopes import linear_everywhere, outward, slopes

if TYPE_CHECKING:
    from lipmodel.domain import Domain
    from lipmodel.network.graph import Network

Array = np.ndarray[Any, Any]

BOUNDED = "a bounded domain would be needed: --domain box:LO:HI or ball:X:EPS"
"""What helps where slopes are unbounded on the whole space."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlopeRestricted:
    """One layer of activations: post = phi(pre) entry by entry, slopes in [alpha, beta], all of shape (size,).

    signal: the vector w of post-activation increments; post is that signal; alpha < beta everywhere (activations that
    are linear have been eliminated).
    groups: None, or the number of the group of every entry where phi acts on vectors (Softmax, LayerNormalization). An
    increment is then S v with a matrix S for each group, and (w - alpha v)'(beta v - w) >= 0 holds for the sum over the
    group, so that its entries share one multiplier (and alpha and beta). gains: for such phi, by norm, bounds of |S|_1
    and |S|_inf, shape (size,). index: which entries of the node these neurons are, where that is known.
    """

    name: str
    signal: Signal
    pre: LinearForm
    post: LinearForm
    alpha: Array
    beta: Array
    groups: Array | None = None
    gains: Mapping[str, Array] = field(default_factory=dict)
    index: Array | None = None

    @property
    def size(self) -> int:
        return self.signal.size

    @property
    def gain(self) -> Array:
        """The largest modulus of every neuron's slopes, shape (size,)."""
        return self.gain_in("2")

    def gain_in(self, norm: str) -> Array:
        """g >= 0 with |w|_norm <= |diag(g) v|_norm, shape (size,)."""
        return self.gains[norm] if norm in self.gains else np.maximum(np.abs(self.alpha), np.abs(self.beta))

    def part(self, index: Array, signal: Signal, pre: LinearForm) -> SlopeRestricted:
        """Only these neurons, groups whole or not at all."""
        return replace(
            self,
            signal=signal,
            pre=pre,
            post=LinearForm.of(signal),
            alpha=self.alpha[index],
            beta=self.beta[index],
            groups=None if self.groups is None else self.groups[index],
            gains={norm: gain[index] for norm, gain in self.gains.items()},
            index=None if self.index is None else self.index[index],
        )

    @property
    def steepest(self) -> float:
        """The largest modulus of all slopes."""
        return float(self.gain.max(initial=0.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IncrementSystem:
    """Input, activations in topological order and output, all linear forms over the signals (input, w_1, .., w_k).

    complete: the system with its dead neurons, where there were some; living: by name of the activation, which of its
    neurons there are these. network: the one whose increments these are, for what its biases say.
    """

    signals: tuple[Signal, ...]
    input: LinearForm
    activations: tuple[SlopeRestricted, ...]
    output: LinearForm
    complete: IncrementSystem | None = None
    living: Mapping[str, Array] = field(default_factory=dict)
    network: Network | None = None

    @property
    def neurons(self) -> int:
        """Number of scalar activations."""
        return sum(a.size for a in self.activations)

    @property
    def order(self) -> int:
        """Order of the matrix inequality: input, neurons and outputs."""
        return self.input.size + self.neurons + self.output.size

    def restrict_output(self, matrix: LinearMap) -> IncrementSystem:
        """The system whose output is matrix @ output (rows, combinations, margins)."""
        output = apply(matrix, self.output)
        form = LinearForm(size=output.size, blocks=output.blocks, role="output")
        complete = None if self.complete is None else self.complete.restrict_output(matrix)
        return read_only(replace(self, output=form, complete=complete))

    def restrict_input(self, matrix: LinearMap) -> IncrementSystem:
        """The system with input matrix @ x' for a new input x' (columns: one input coordinate at a time)."""
        old = self.signals[0]
        signal = Signal(name=old.name, size=matrix.shape[1])
        new = {old: apply(matrix, LinearForm.of(signal))}
        activations = tuple(replace(a, pre=a.pre.substitute(new)) for a in self.activations)
        changed = replace(
            self,
            signals=(signal, *self.signals[1:]),
            input=LinearForm.of(signal, role="input"),
            activations=activations,
            output=self.output.substitute(new),
            complete=None if self.complete is None else self.complete.restrict_input(matrix),
        )
        return read_only(changed)

    def positions(self) -> Mapping[Signal, int]:
        """The index of every signal: 0 for the input, k for the k-th activation."""
        return {s: i for i, s in enumerate(self.signals)}


def increments(
    network: Network, domain: Domain | None = None, norm: str = "2", *, keep_stable: bool = False
) -> IncrementSystem:
    """The increment system of a network over a domain (default: the whole input space); norm: that of a ball.

    On a box or a ball the slopes are those over the proved ranges of the pre-activations, neurons that are affine there
    are eliminated, and inputs that cannot move are taken out. keep_stable: leave the neurons that are affine on the
    domain (but not everywhere) in, with alpha = beta: a weaker system, on which norms multiply better.

    Raises RefusedInput, listing every node whose activation is not Lipschitz; UsageError where the domain does not fit.
    """
    domain = Global() if domain is None else domain.sized(network.input_size)
    if isinstance(domain, Global):
        return _increments(network, {}, keep_stable=False)
    return local_increments(network, domain, ranges_over(network, domain, norm), keep_stable=keep_stable)


def ranges_over(network: Network, domain: Domain, norm: str) -> Mapping[str, tuple[Array, Array]]:
    """Proved ranges of the pre-activations of every nonlinear node over a box or a ball. Raises RefusedInput."""
    from lipmodel.errors import RefusedInput
    from lipmodel.ranges.local import pre_activation_ranges

    ranges, reasons = pre_activation_ranges(network, domain, norm)
    if reasons:
        raise RefusedInput(network.source.path or "the network", reasons)
    return ranges


def local_increments(
    network: Network, domain: Domain, ranges: Mapping[str, tuple[Array, Array]], *, keep_stable: bool = False
) -> IncrementSystem:
    """`increments` over a box or a ball on which the pre-activations of every nonlinear node lie in `ranges`."""
    if domain.is_point:
        x = Signal(name="x", size=network.input_size)
        nothing = LinearForm(size=network.output_size, blocks={}, role="output")
        return IncrementSystem(signals=(x,), input=LinearForm.of(x, role="input"), activations=(), output=nothing)
    system = _increments(network, ranges, keep_stable=keep_stable)
    if not isinstance(domain, Box):
        return system
    free = np.flatnonzero(np.array(domain.lo) < np.array(domain.hi))
    if len(free) == network.input_size:
        return system
    index = np.full(network.input_size, -1)
    index[free] = np.arange(len(free))
    return read_only(without_dead_neurons(system.restrict_input(Selection(index=index, size=len(free)))))


def _increments(network: Network, ranges: Mapping[str, tuple[Array, Array]], *, keep_stable: bool) -> IncrementSystem:
    from lipmodel.errors import Reason, RefusedInput
    from lipmodel.network import ops

    x = Signal(name="x", size=network.input_size)
    signals = [x]
    activations: list[SlopeRestricted] = []
    forms: dict[str, LinearForm] = {}
    reasons: list[Reason] = []
    for node in network.order():
        op = network.graph.nodes[node]["op"]
        inputs = [forms[u] for u in network.arguments(node)]
        if isinstance(op, ops.Input):
            form = LinearForm.of(x)
        elif isinstance(op, ops.Constant):
            form = LinearForm(size=len(op.values), blocks={})
        elif isinstance(op, ops.Linear):
            form = apply(op.map, inputs[0])
        elif isinstance(op, ops.Add):
            form = add_forms(inputs)
        elif isinstance(op, ops.Concat):
            form = concatenated(op.positions, inputs)
        else:
            nonlinear = _multiplied if isinstance(op, ops.Product) else _activated
            try:
                form, found = nonlinear(
                    node, op, inputs, len(activations) + 1, ranges.get(node), keep_stable=keep_stable
                )
            except NotLipschitz as error:
                hint = "a smaller domain would be needed" if ranges else BOUNDED
                reasons.append(Reason(kind="non-lipschitz", where=f"node {node!r}", message=str(error), hint=hint))
                form, found = LinearForm(size=inputs[0].size, blocks={}), []
            activations += found
            signals += [activation.signal for activation in found]
        forms[node] = form
    if reasons:
        raise RefusedInput(network.source.path or "the network", reasons)
    output = forms[network.output]
    system = _pruned(
        IncrementSystem(
            signals=tuple(signals),
            input=LinearForm.of(x, role="input"),
            activations=tuple(activations),
            output=LinearForm(size=output.size, blocks=output.blocks, role="output"),
            network=network,
        )
    )
    return read_only(without_dead_neurons(system))


def read_only(system: IncrementSystem) -> IncrementSystem:
    """The system, its arrays made read-only: a formulation that writes into them would change what is proved."""
    forms = [system.output, *(a.pre for a in system.activations)]
    pending: list[Any] = [m for form in forms for m in form.blocks.values()]
    pending += [array for a in system.activations for array in (a.alpha, a.beta, *a.gains.values())]
    pending += [a.groups for a in system.activations if a.groups is not None]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
        elif isinstance(value, tuple):
            pending.extend(value)
        elif isinstance(value, LinearMap):
            pending.extend(getattr(value, f.name) for f in fields(value))  # type: ignore[arg-type]
        else:
            pending.extend(getattr(value, name) for name in ("data", "indices", "indptr") if hasattr(value, name))
    return system


def concatenated(positions: tuple[Array, ...], inputs: list[LinearForm]) -> LinearForm:
    """Forms side by side: entry i of the k-th is entry positions[k][i] of the result."""
    size = sum(len(p) for p in positions)
    parts = []
    for place, form in zip(positions, inputs, strict=True):
        index = np.full(size, -1)
        index[place] = np.arange(len(place))
        parts.append(apply(Selection(index=index, size=len(place)), form))
    return add_forms(parts)


def _activated(
    node: str, op: Any, inputs: list[LinearForm], number: int, within: tuple[Array, Array] | None, *, keep_stable: bool
) -> tuple[LinearForm, list[SlopeRestricted]]:
    """The value of a nonlinear node: linear where the slope is known, a new signal elsewhere."""
    (pre,) = inputs
    if not pre.blocks:
        return LinearForm(size=pre.size, blocks={}), []  # a function of a constant does not move
    alpha, beta = slopes(op, within)
    fixed = linear_everywhere(op) if keep_stable else alpha == beta
    grouping = partial(_grouping, op)
    return _restricted(node, pre, number, alpha, beta, fixed, grouping)


def _multiplied(
    node: str, op: Any, inputs: list[LinearForm], number: int, within: tuple[Array, Array] | None, *, keep_stable: bool
) -> tuple[LinearForm, list[SlopeRestricted]]:
    """The value of a product x y: its increments are (mean of y) dx + (mean of x) dy, the means within the ranges.

    Hence two scalar multiplications, of x with slopes between the ends of y and of y with those of x. Raises
    NotLipschitz on the whole space.
    """
    if within is None or not bool(np.all(np.isfinite(within))):
        raise NotLipschitz("a product of two tensors that vary has no Lipschitz constant where they are unbounded")
    form = LinearForm(size=inputs[0].size, blocks={})
    found: list[SlopeRestricted] = []
    ends = [np.split(end, 2) for end in within]
    for k, pre in enumerate(inputs):
        alpha, beta = outward(*(side[1 - k] for side in ends))
        if not pre.blocks:
            continue
        fixed = np.zeros(pre.size, dtype=bool) if keep_stable else alpha == beta
        part, signals = _restricted(f"{node} ({k})", pre, number + len(found), alpha, beta, fixed)
        form = add_forms([form, part]) if form.blocks else part
        found += signals
    return form, found


def _restricted(
    name: str,
    pre: LinearForm,
    number: int,
    alpha: Array,
    beta: Array,
    fixed: Array,
    grouping: Callable[[Array], dict[str, Any]] = lambda index: {},
) -> tuple[LinearForm, list[SlopeRestricted]]:
    """What has the slopes alpha to beta: linear where they are fixed, a new signal elsewhere."""
    if fixed.all():
        return apply(_scaling(alpha), pre), []
    free = np.flatnonzero(~fixed)
    signal = Signal(name=f"w{number}", size=len(free))
    seen = pre if len(free) == pre.size else apply(Selection(index=free, size=pre.size), pre)
    activation = SlopeRestricted(
        name=name,
        signal=signal,
        pre=seen,
        post=LinearForm.of(signal),
        alpha=alpha[free],
        beta=beta[free],
        index=free,
        **grouping(free),
    )
    if not fixed.any():
        return activation.post, [activation]
    index = np.full(pre.size, -1)
    index[free] = np.arange(len(free))
    scattered = apply(Selection(index=index, size=len(free)), activation.post)
    return scattered + apply(_scaling(np.where(fixed, alpha, 0.0)), pre), [activation]


def _scaling(values: Array) -> LinearMap:
    """The diagonal map; as a selection, which folds into matrices without rounding, where it only masks."""
    if bool(np.all((values == 0.0) | (values == 1.0))):
        return Selection(index=np.where(values == 1.0, np.arange(len(values)), -1), size=len(values))
    return Diagonal(values=values)


def _grouping(op: Any, index: Array) -> dict[str, Any]:
    """The groups of some entries of an operation on vectors, and their gains; nothing for an elementwise one."""
    from lipmodel.network.ops import Grouped

    if not isinstance(op, Grouped):
        return {}
    gains = op.function.gains(op.groups.shape[1])
    return {"groups": op.labels()[index], "gains": {norm: np.full(len(index), g) for norm, g in gains.items()}}


def _pruned(system: IncrementSystem) -> IncrementSystem:
    """Drop activations that the output does not depend on."""
    needed = set(system.output.blocks)
    kept: list[SlopeRestricted] = []
    for activation in reversed(system.activations):
        if activation.signal in needed:
            kept.append(activation)
            needed.update(activation.pre.blocks)
    kept.reverse()
    return replace(system, activations=tuple(kept), signals=(system.signals[0], *(a.signal for a in kept)))


def dense_entries(system: IncrementSystem) -> int:
    """Predicted number of entries of all blocks of the system, expanded."""
    forms = [a.pre for a in system.activations] + [system.output]
    return sum(m.entries for f in forms for m in f.blocks.values())


def float_system(system: IncrementSystem, cache: dict[int, Any] | None = None) -> Any:
    """The system's matrices with proved errors (certify.lmi.FloatSystem).

    cache: shared between the members of a family, which have most matrices in common.
    """
    from lipmodel.certify.lmi import FloatSystem

    known = {} if cache is None else cache

    def dense(m: LinearMap) -> Any:
        if id(m) not in known:
            known[id(m)] = (m, m.enclosure().dense())  # the map is kept, so that its id stays its own
        return known[id(m)][1]

    at = system.positions()
    return FloatSystem(
        sizes=tuple(s.size for s in system.signals),
        pre=tuple({at[s]: dense(m) for s, m in a.pre.blocks.items()} for a in system.activations),
        alpha=tuple(a.alpha for a in system.activations),
        beta=tuple(a.beta for a in system.activations),
        groups=tuple(a.groups for a in system.activations),
        output={at[s]: dense(m) for s, m in system.output.blocks.items()},
    )


def exact_system(system: IncrementSystem) -> Any:
    """The system's matrices in exact arithmetic (certify.kernel.System)."""
    from lipmodel.certify.kernel import System

    at = system.positions()
    return System(
        sizes=tuple(s.size for s in system.signals),
        pre=tuple({at[s]: m.exact().block() for s, m in a.pre.blocks.items()} for a in system.activations),
        alpha=tuple(a.alpha for a in system.activations),
        beta=tuple(a.beta for a in system.activations),
        groups=tuple(a.groups for a in system.activations),
        output={at[s]: m.exact().block() for s, m in system.output.blocks.items()},
    )


def chain_of(weights: list[Array], alpha: float = 0.0, beta: float = 1.0) -> IncrementSystem:
    """The increment system of a plain chain of matrices with one slope interval (for tests and benchmarks)."""
    x = Signal(name="x", size=weights[0].shape[1])
    signals, activations = [x], []
    form = LinearForm.of(x)
    for k, w in enumerate(weights[:-1]):
        signal = Signal(name=f"w{k + 1}", size=w.shape[0])
        pre = apply(Dense(weights=np.asarray(w, dtype=np.float64)), form)
        form = LinearForm.of(signal)
        activations.append(
            SlopeRestricted(
                name=f"layer{k + 1}",
                signal=signal,
                pre=pre,
                post=form,
                alpha=np.full(signal.size, float(alpha)),
                beta=np.full(signal.size, float(beta)),
            )
        )
        signals.append(signal)
    output = apply(Dense(weights=np.asarray(weights[-1], dtype=np.float64)), form)
    return IncrementSystem(
        signals=tuple(signals),
        input=LinearForm.of(x, role="input"),
        activations=tuple(activations),
        output=LinearForm(size=output.size, blocks=output.blocks, role="output"),
    )
