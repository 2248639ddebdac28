"""Networks that do not come from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from lipmodel.errors import UsageError
from lipmodel.network.graph import Network, Source, TensorInfo
from lipmodel.network.linear import Dense
from lipmodel.network.ops import Input, Linear, Op, elementwise

if TYPE_CHECKING:
    from lipmodel.activations import Activation

Array = np.ndarray[Any, Any]


def from_weights(
    weights: Sequence[Any],
    biases: Sequence[Any] | None = None,
    *,
    activation: str | Activation | Sequence[str | Activation | None] = "relu",
) -> Network:
    """The chain x -> W_d phi_{d-1}( ... phi_1(W_1 x + b_1) ... ) + b_d.

    weights: W_k of shape (n_k, n_{k-1}), taken exactly (float16, float32, float64, integers up to 2^53); biases: b_k of
    shape (n_k,) or None; activation: one for all hidden layers, or one per hidden layer (or per layer, the last then
    following the output; None for none). The input has the shape (1, n_0). Raises UsageError where shapes do not fit.
    """
    matrices = [_exact(w, 2, f"weight {k}") for k, w in enumerate(weights, start=1)]
    if not matrices:
        raise UsageError("at least one weight matrix is needed")
    for k, (before, after) in enumerate(pairwise(matrices), start=1):
        if after.shape[1] != before.shape[0]:
            raise UsageError(f"weight {k + 1} has shape {after.shape}; weight {k} has {before.shape[0]} rows")
    offsets = _biases(matrices, biases)
    layers = _activations(len(matrices), activation)
    graph = nx.MultiDiGraph()
    last = _add(graph, "input", Input(shape=(1, int(matrices[0].shape[1]))), None, int(matrices[0].shape[1]))
    for k, (matrix, offset, phi) in enumerate(zip(matrices, offsets, layers, strict=True), start=1):
        size = int(matrix.shape[0])
        last = _add(graph, f"layer{k}", Linear(map=Dense(weights=matrix), bias=offset), last, size)
        if phi is not None:
            last = _add(graph, f"activation{k}", elementwise(phi, size), last, size)
    return finished(graph, "input", last)


def finished(graph: nx.MultiDiGraph, input: str, output: str) -> Network:
    """A network made in Python, identified by the file that saving it writes.

    graph: as in `Network`. Raises ValueError where it is not valid, LipmodelError where no file can hold it.
    """
    from lipmodel.network.onnx_export import OPSET, parameters, to_bytes

    source = Source(
        path=None,
        sha256="",
        graph_inputs=(TensorInfo(name=input, shape=graph.nodes[input]["shape"]),),
        graph_outputs=(TensorInfo(name="output", shape=graph.nodes[output]["shape"]),),
        parameters=0,
        opset=OPSET,
        producer="lipmodel",
    )
    network = Network(graph=graph, input=input, output=output, source=source)
    network.validate()
    model = to_bytes(network)
    identified = replace(source, sha256=hashlib.sha256(model).hexdigest(), parameters=parameters(model))
    return replace(network, source=identified, model=model)


def _add(graph: nx.MultiDiGraph, name: str, op: Op, before: str | None, size: int) -> str:
    graph.add_node(name, op=op, shape=(1, size))
    if before is not None:
        graph.add_edge(before, name, key=0)
    return name


def _exact(values: Any, ndim: int, what: str) -> Array:
    given = np.asarray(values)
    if given.dtype.kind not in "fiu" or given.dtype.itemsize > 8 or given.ndim != ndim or given.size == 0:
        raise UsageError(f"{what} must be a nonempty real array of {ndim} dimensions, not {given.dtype} {given.shape}")
    array = given.astype(np.float64)
    if not np.all(np.isfinite(array)):
        raise UsageError(f"{what} contains NaN or infinity")
    if given.dtype.kind in "iu" and bool(np.any((given > 2**53) | (given < -(2**53)))):
        raise UsageError(f"{what} contains integers beyond 2^53")
    return np.ascontiguousarray(array)


def _biases(matrices: list[Array], biases: Sequence[Any] | None) -> list[Array | None]:
    if biases is None:
        return [None] * len(matrices)
    if len(biases) != len(matrices):
        raise UsageError(f"{len(biases)} biases for {len(matrices)} weights")
    offsets: list[Array | None] = []
    for k, (matrix, b) in enumerate(zip(matrices, biases, strict=True), start=1):
        offset = None if b is None else _exact(b, 1, f"bias {k}")
        if offset is not None and len(offset) != matrix.shape[0]:
            raise UsageError(f"bias {k} has {len(offset)} entries for {matrix.shape[0]} rows")
        offsets.append(offset)
    return offsets


def _activations(layers: int, given: str | Activation | Sequence[str | Activation | None]) -> list[Activation | None]:
    """One activation, or None, per layer."""
    from lipmodel.activations import Activation, activation

    if isinstance(given, (str, Activation)):
        chosen: list[str | Activation | None] = [given] * (layers - 1)
    else:
        chosen = list(given)
    if len(chosen) not in (layers - 1, layers):
        raise UsageError(f"{len(chosen)} activations for {layers} layers, {layers - 1} of them hidden")
    chosen += [None] * (layers - len(chosen))
    return [None if a is None else activation(a) for a in chosen]
