"""Floating-point derivatives of a network at many points at once: what the search for witness pairs steers by.

Nothing here is a proof. A column is a point; the pre-activations of all scalar nonlinearities ("neurons") are stacked
in one array in topological order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import LipmodelError
from lipmodel.lower.balls import Array
from lipmodel.lower.neurons import Factors, Neurons, Vectors, factors, neurons, vectors
from lipmodel.network.linear import LinearMap
from lipmodel.network.ops import Add, Concat, Constant, Elementwise, Grouped, Input, Linear, Product

if TYPE_CHECKING:
    from lipmodel.lower.witness import Rows
    from lipmodel.network.graph import Network

EXPANDED = 8_000_000
"""Maps of more stored entries than this are applied, not expanded."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matrix:
    """A linear map ready to be applied to many columns, and its transpose."""

    forward: Any
    backward: Any

    def mul(self, x: Array) -> Array:
        return self.forward.matvec(x) if self.backward is None else np.asarray(self.forward @ x)

    def tmul(self, y: Array) -> Array:
        return self.forward.rmatvec(y) if self.backward is None else np.asarray(self.backward @ y)


def matrix(linear: LinearMap) -> Matrix:
    """The map as a dense or sparse matrix, or as itself where it is too large for that."""
    if linear.entries > EXPANDED:
        return Matrix(forward=linear, backward=None)
    return stored(linear.enclosure().center)


def stored(center: Any) -> Matrix:
    """A dense or sparse matrix; sparse ones that are small or full are made dense."""
    if sp.issparse(center):
        size = center.shape[0] * center.shape[1]
        if size <= 4096 or center.nnz * 8 >= size:
            center = center.toarray()
        else:
            return Matrix(forward=sp.csr_array(center), backward=sp.csr_array(center.T))
    center = np.asarray(center, dtype=np.float64)
    return Matrix(forward=center, backward=center.T)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """One operation: arguments are positions of earlier nodes; `at` is the place of its neurons in the stack."""

    arguments: tuple[int, ...]
    op: Any
    matrix: Matrix | None = None
    neurons: Neurons | Vectors | Factors | None = None
    at: slice = field(default_factory=lambda: slice(0, 0))
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FloatProgram:
    """A network with chosen output functionals, ready for derivatives; build it with `float_program`.

    inputs, outputs, neurons: sizes; breaks, jumps: (neurons, k) tables of all neurons (see `Neurons`); held: mask of
    inputs that cannot move (derivatives by them are zero), or None.
    """

    nodes: tuple[Node, ...]
    rows: Matrix | None
    inputs: int
    outputs: int
    neurons: int
    breaks: Array
    jumps: Array
    has_smooth: bool
    held: Array | None

    def forward(self, x: Array) -> Array:
        """Pre-activations at the points x, shape (inputs, k): shape (neurons, k)."""
        stack = np.empty((self.neurons, x.shape[1]))
        self._run(x, lambda node, v: self._activate(node, v, stack), affine=True)
        return stack

    def slopes(self, stack: Array) -> Array:
        """The slope of every neuron, same shape; at a break the slope on its left; for vectors see `Vectors`."""
        return self._each(stack, lambda n, v: n.slopes(v))

    def bend(self, stack: Array, tangent: Array, cotangent: Array) -> Array:
        """The gradient of u'J v by the pre-activations, as far as it is smooth; all of the same shape."""
        return self._each(stack, lambda n, v, t, c: n.bend(v, t, c), tangent, cotangent)

    def linearised(self, cell: Array, x: Array) -> Array:
        """Pre-activations at x if every neuron kept the affine piece that it has at the pre-activations `cell`.

        cell: (neurons, 1); x: (inputs, k); for piecewise linear networks.
        """
        slopes = self.slopes(cell)
        intercepts = self._each(cell, lambda n, v: n.values(v)) - slopes * cell
        stack = np.empty((self.neurons, x.shape[1]))

        def activate(node: Node, v: Array) -> Array:
            stack[node.at] = v
            return np.asarray(slopes[node.at] * v + intercepts[node.at])

        self._run(x, activate, affine=True)
        return stack

    def push(self, slopes: Array, t: Array) -> tuple[Array, Array]:
        """J t and the tangents of all pre-activations, for t of shape (inputs, k) and slopes (neurons, k or 1)."""
        stack = np.empty((self.neurons, t.shape[1]))

        def activate(node: Node, v: Array) -> Array:
            stack[node.at] = v
            assert node.neurons is not None
            return node.neurons.tangent(slopes[node.at], v)

        y = self._run(self._free(t), activate, affine=False)
        return (y if self.rows is None else self.rows.mul(y)), stack

    def pull(self, slopes: Array, u: Array | None, inject: Array | None = None) -> tuple[Array, Array]:
        """J'u and the cotangents of all post-activations, for u of shape (outputs, k), slopes (neurons, k or 1).

        inject: (neurons, k), cotangents added at the pre-activations; with u = None they are all there is.
        """
        columns = u.shape[1] if u is not None else inject.shape[1] if inject is not None else 0
        stack = np.zeros((self.neurons, columns))
        waiting: list[Array | None] = [None] * len(self.nodes)
        if u is not None:
            waiting[-1] = u if self.rows is None else self.rows.tmul(u)

        def send(to: int, value: Array) -> None:
            held = waiting[to]
            waiting[to] = value if held is None else held + value

        for place in range(len(self.nodes) - 1, -1, -1):
            node, c = self.nodes[place], waiting[place]
            if node.neurons is not None:
                if c is not None:
                    stack[node.at] = c if len(c) == node.at.stop - node.at.start else np.concatenate([c, c])
                    c = node.neurons.cotangent(slopes[node.at], c)
                if inject is not None:
                    c = inject[node.at] if c is None else c + inject[node.at]
            if c is None or isinstance(node.op, Input | Constant):
                continue
            if node.matrix is not None:
                send(node.arguments[0], node.matrix.tmul(c))
            elif isinstance(node.op, Product):
                for to, part in zip(node.arguments, np.split(c, 2), strict=True):
                    send(to, part)
            elif isinstance(node.op, Concat):
                for port, to in enumerate(node.arguments):
                    send(to, c[node.op.positions[port]])
            else:
                for to in node.arguments:
                    send(to, c)
            waiting[place] = None
        start = waiting[self._input]
        return (np.zeros((self.inputs, columns)) if start is None else self._free(start)), stack

    def jacobians(self, slopes: Array) -> Array:
        """The Jacobian at every point: slopes (neurons, k) -> (k, outputs, inputs); zero where it overflows."""
        out = self._jacobians(slopes)
        out[~np.all(np.isfinite(out), axis=(1, 2))] = 0.0
        return out

    def _jacobians(self, slopes: Array) -> Array:
        k = slopes.shape[1]
        if self.inputs <= self.outputs:

            def activate(node: Node, v: Array) -> Array:
                assert node.neurons is not None
                if isinstance(node.neurons, Vectors | Factors):
                    return node.neurons.tangent(np.repeat(slopes[node.at], self.inputs, axis=1), v)
                return np.asarray((v.reshape(-1, k, self.inputs) * slopes[node.at, :, None]).reshape(v.shape))

            y = self._run(np.tile(self._free(np.eye(self.inputs)), (1, k)), activate, affine=False)
            y = y if self.rows is None else self.rows.mul(y)
            return np.ascontiguousarray(y.reshape(self.outputs, k, self.inputs).transpose(1, 0, 2))
        u = np.tile(np.eye(self.outputs), (1, k))
        x, _ = self.pull(np.repeat(slopes, self.outputs, axis=1), u)
        return np.ascontiguousarray(x.reshape(self.inputs, k, self.outputs).transpose(1, 2, 0))

    def _free(self, t: Array) -> Array:
        return t if self.held is None else np.where(self.held[:, None], 0.0, t)

    @property
    def _input(self) -> int:
        return next(k for k, node in enumerate(self.nodes) if isinstance(node.op, Input))

    def _each(self, stack: Array, function: Any, *more: Array) -> Array:
        out = np.empty(stack.shape)
        for node in self.nodes:
            if node.neurons is not None:
                out[node.at] = function(node.neurons, stack[node.at], *(other[node.at] for other in more))
        return out

    @staticmethod
    def _activate(node: Node, v: Array, stack: Array) -> Array:
        stack[node.at] = v
        assert node.neurons is not None
        return node.neurons.values(v)

    def _run(self, x: Array, activate: Any, *, affine: bool) -> Array:
        values: list[Array] = []
        for node in self.nodes:
            inputs = [values[u] for u in node.arguments]
            op = node.op
            if isinstance(op, Input):
                y = x
            elif isinstance(op, Constant):
                column = op.values[:, None] if affine else np.zeros((len(op.values), 1))
                y = np.repeat(column, x.shape[1], axis=1)
            elif node.matrix is not None:
                y = node.matrix.mul(inputs[0])
                if affine and op.bias is not None:
                    y = y + op.bias[:, None]
            elif node.neurons is not None:
                y = activate(node, np.concatenate(inputs) if isinstance(op, Product) else inputs[0])
            elif isinstance(op, Concat):
                y = np.empty((node.size, x.shape[1]))
                for position, part in zip(op.positions, inputs, strict=True):
                    y[position] = part
            else:
                y = sum(inputs[1:], inputs[0])
            values.append(y)
        return values[-1]


def float_program(network: Network, rows: Rows | None = None, held: Array | None = None) -> FloatProgram:
    """Make a network, or linear functionals of its output, ready for derivatives; held: inputs that cannot move."""
    wanted = {network.output}
    order = network.order()
    for node in reversed(order):
        if node in wanted:
            wanted.update(network.arguments(node))
    order = [node for node in order if node in wanted and node != network.output] + [network.output]
    if network.input not in wanted:
        order.insert(0, network.input)
    place = {node: k for k, node in enumerate(order)}
    nodes: list[Node] = []
    count = 0
    for name in order:
        op = network.graph.nodes[name]["op"]
        arguments = tuple(place[u] for u in network.arguments(name))
        if isinstance(op, Linear):
            nodes.append(Node(arguments=arguments, op=op, matrix=matrix(op.map)))
        elif isinstance(op, Elementwise):
            nodes.append(Node(arguments=arguments, op=op, neurons=neurons(op), at=slice(count, count + op.size)))
            count += op.size
        elif isinstance(op, Grouped):
            nodes.append(Node(arguments=arguments, op=op, neurons=vectors(op), at=slice(count, count + op.size)))
            count += op.size
        elif isinstance(op, Product):
            size = network.size(name)
            nodes.append(Node(arguments=arguments, op=op, neurons=factors(size), at=slice(count, count + 2 * size)))
            count += 2 * size
        elif isinstance(op, Input | Constant | Add):
            nodes.append(Node(arguments=arguments, op=op))
        elif isinstance(op, Concat):
            nodes.append(Node(arguments=arguments, op=op, size=sum(len(p) for p in op.positions)))
        else:
            raise LipmodelError(f"the operation {type(op).__name__} has no derivative here, so no pair is searched for")
    chosen = None if rows is None else stored(_row_matrix(rows, network.output_size))
    tables = [node.neurons for node in nodes if node.neurons is not None]
    most = max([t.breaks.shape[1] for t in tables], default=0)
    return FloatProgram(
        nodes=tuple(nodes),
        rows=chosen,
        inputs=network.input_size,
        outputs=network.output_size if rows is None else len(rows),
        neurons=count,
        breaks=_stacked([t.breaks for t in tables], most, np.inf),
        jumps=_stacked([t.jumps for t in tables], most, 0.0),
        has_smooth=any(t.smooth for t in tables),
        held=held if held is not None and bool(np.any(held)) else None,
    )


def _row_matrix(rows: Rows, size: int) -> Array:
    out = np.zeros((len(rows), size))
    for k, row in enumerate(rows):
        for i, c in row.items():
            out[k, i] = c
    return out


def _stacked(tables: Sequence[Array], width: int, fill: float) -> Array:
    parts = [np.pad(t, ((0, 0), (0, width - t.shape[1])), constant_values=fill) for t in tables]
    return np.concatenate(parts, axis=0) if parts else np.zeros((0, width))


def jacobian_vector_product(network: Network, x: Array, v: Array) -> Array:
    """J(x) v in floating point; x, v: shape (input_size,); at a kink the slope on its left."""
    program = float_program(network)
    point = np.asarray(x, dtype=np.float64).reshape(-1, 1)
    slopes = program.slopes(program.forward(point))
    return program.push(slopes, np.asarray(v, dtype=np.float64).reshape(-1, 1))[0][:, 0]


def vector_jacobian_product(network: Network, x: Array, u: Array) -> Array:
    """J(x)' u in floating point; x: shape (input_size,), u: (output_size,); at a kink the slope on its left."""
    program = float_program(network)
    point = np.asarray(x, dtype=np.float64).reshape(-1, 1)
    slopes = program.slopes(program.forward(point))
    return program.pull(slopes, np.asarray(u, dtype=np.float64).reshape(-1, 1))[0][:, 0]
