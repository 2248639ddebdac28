"""A network as a graph of primitive operations."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from lipmodel.network.ops import Input, Op

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """The name and the shape of a graph input or output as the file declares them ("N" or "?" where not fixed)."""

    name: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} ({' x '.join(map(str, self.shape)) or 'scalar'})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Where a network comes from.

    sha256: of the ONNX file (for a network made in Python, of the file that `Network.save` writes). Where weights lie
    in other files: of the concatenated digests (32 bytes each) of the ONNX file and of every external tensor that the
    network uses, in the order of the names of the tensors. graph_input, graph_output: the names that were chosen where
    the file has several, in order (one name by itself), else None.
    """

    path: str | None
    sha256: str
    graph_inputs: tuple[TensorInfo, ...]
    graph_outputs: tuple[TensorInfo, ...]
    parameters: int
    opset: int | None
    producer: str
    graph_input: str | tuple[str, ...] | None = None
    graph_output: str | tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """A directed acyclic graph of primitive operations, from one input node to one output node.

    graph: nodes carry `op` (an `Op`) and `shape` (the tensor shape of the output); the key of an edge u -> v is the
    input port of v that u feeds. A tensor is a flat vector in C order. `model` holds an ONNX file of exactly this
    network where there is one; whoever changes the graph drops it.
    """

    graph: nx.MultiDiGraph
    input: str
    output: str
    source: Source
    model: bytes | None = field(default=None, repr=False)

    def op(self, node: str) -> Op:
        """The operation of a node."""
        op: Op = self.graph.nodes[node]["op"]
        return op

    def shape(self, node: str) -> tuple[int, ...]:
        """The tensor shape of the output of a node."""
        shape: tuple[int, ...] = self.graph.nodes[node]["shape"]
        return shape

    def size(self, node: str) -> int:
        """The number of entries of the output of a node."""
        return prod(self.shape(node))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.shape(self.input)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.shape(self.output)

    @property
    def input_size(self) -> int:
        return self.size(self.input)

    @property
    def output_size(self) -> int:
        return self.size(self.output)

    def order(self) -> list[str]:
        """The nodes in a topological order."""
        return list(nx.topological_sort(self.graph))

    def arguments(self, node: str) -> list[str]:
        """The nodes that feed the input ports 0, 1, ... of a node."""
        edges = sorted(self.graph.in_edges(node, keys=True), key=lambda edge: edge[2])
        return [u for u, _, _ in edges]

    def evaluate(self, x: Any) -> Array:
        """The output at x, flat, shape (output_size,), computed in float64 without error bounds.

        x: flat or of `input_shape`; or (input_size, k), k >= 2, for k points at once, which gives (output_size, k).
        Raises ValueError where its size is another.
        """
        return self.values(x)[self.output]

    def values(self, x: Any, keep: frozenset[str] | None = frozenset()) -> dict[str, Array]:
        """The values at x (as in `evaluate`) of the output node and of the nodes in `keep`, None meaning all nodes."""
        start = np.asarray(x, dtype=np.float64)
        if start.size == self.input_size:
            start = start.ravel()
        elif start.ndim != 2 or start.shape[0] != self.input_size:
            raise ValueError(f"the input has {self.input_size} entries, not {start.shape}")
        plan = self.plan()
        pending = Counter(u for _, _, arguments in plan for u in arguments)
        values: dict[str, Array] = {}
        for node, op, arguments in plan:
            values[node] = start if isinstance(op, Input) else op.evaluate([values[u] for u in arguments])
            for u in arguments:
                pending[u] -= 1
                if keep is not None and pending[u] == 0 and u != self.output and u not in keep:
                    del values[u]
        output = values[self.output]
        if output.ndim < start.ndim:  # a constant output
            values[self.output] = np.repeat(output[:, None], start.shape[1], axis=1)
        return values

    def plan(self) -> list[tuple[str, Op, list[str]]]:
        """(node, operation, arguments) in a topological order."""
        return [(node, self.op(node), self.arguments(node)) for node in self.order()]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ONNX file of this network; loading it gives the same network.

        The file is written beside its destination and then moved there. Raises LipmodelError where a factor of the
        network is not a binary float and the network was not read from a file.
        """
        from lipmodel.network.onnx_export import to_bytes

        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(to_bytes(self))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def validate(self) -> None:
        """Raise ValueError unless the graph is what the class says: one input, ports 0..k-1, sizes that fit."""
        if not nx.is_directed_acyclic_graph(self.graph):
            raise ValueError("the graph has a cycle")
        inputs = [v for v, op in self.graph.nodes(data="op") if isinstance(op, Input)]
        if inputs != [self.input] or self.output not in self.graph:
            raise ValueError(f"the input nodes are {inputs}, not only {self.input!r}, or {self.output!r} is missing")
        for node in self.graph.nodes:
            ports = sorted(port for _, _, port in self.graph.in_edges(node, keys=True))
            if ports != list(range(len(ports))):
                raise ValueError(f"the input ports of {node!r} are {ports}")
            size = self.op(node).output_size([self.size(u) for u in self.arguments(node)])
            if size != self.size(node):
                raise ValueError(f"{node!r} has {size} outputs, which is not the shape {self.shape(node)}")
