"""Rewritings of a network that cost nothing and change nothing: the function stays the same in exact arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np

from lipmodel.network.constants import Enclosed, add, multiply
from lipmodel.network.conv import Conv
from lipmodel.network.graph import Network
from lipmodel.network.linear import Composition, Dense, Diagonal, LinearMap, Selection, compose
from lipmodel.network.ops import Linear

Array = np.ndarray[Any, Any]


def simplify(network: Network) -> Network:
    """The network without dead nodes, without affine maps that do nothing, chains of affine maps merged where free.

    Requires a valid network; ensures a valid network of the same function, input and output shape.
    """
    return drop_dead(merge_affine(drop_dead(network)))


def drop_dead(network: Network) -> Network:
    """Without the nodes that the output does not depend on; the input stays."""
    alive = nx.ancestors(network.graph, network.output) | {network.output, network.input}
    graph = network.graph.copy()
    graph.remove_nodes_from([node for node in network.graph if node not in alive])
    return _with(network, graph)


def merge_affine(network: Network) -> Network:
    """With every affine node merged into its affine successor where that is its only use, and the product is free.

    Free means that no product of weights is formed (selections, sign changes, biases added exactly), but for a
    convolution whose channels are scaled: its kernel is scaled instead, with the rounding as a radius.
    Requires nothing; ensures that no identity without bias is left, but for one that gives the input another shape.
    """
    graph: nx.MultiDiGraph = network.graph.copy()
    for node in network.order():
        outer = graph.nodes[node]["op"]
        if not isinstance(outer, Linear):
            continue
        ((before, _, _),) = graph.in_edges(node, keys=True)
        inner = graph.nodes[before]["op"]
        if _is_identity(outer):
            if node == network.output:
                if before == network.input or graph.out_degree(before) > 1 or not isinstance(inner, Linear):
                    continue
                _replace(graph, before, node, inner)
            else:
                _bypass(graph, node, before)
        elif isinstance(inner, Linear) and graph.out_degree(before) == 1 and before != network.output:
            merged = _merged(outer, inner)
            if merged is not None:
                _replace(graph, before, node, merged)
    return _with(network, graph)


def _is_identity(op: Linear) -> bool:
    return op.bias is None and op.bias_radius is None and isinstance(op.map, Selection) and op.map.is_identity


def _replace(graph: nx.MultiDiGraph, before: str, node: str, op: Linear) -> None:
    """Let `node` do `op` on what feeds `before`, whose only use it is."""
    ((source, _, _),) = graph.in_edges(before, keys=True)
    graph.remove_node(before)
    graph.add_edge(source, node, key=0)
    graph.nodes[node]["op"] = op


def _bypass(graph: nx.MultiDiGraph, node: str, before: str) -> None:
    """Feed what `node` feeds from what it copies."""
    for _, user, port in list(graph.out_edges(node, keys=True)):
        graph.add_edge(before, user, key=port)
    graph.remove_node(node)


def _merged(outer: Linear, inner: Linear) -> Linear | None:
    """outer after inner as one affine map, or None where that would multiply (but for channels of a convolution)."""
    if isinstance(inner.map, Conv) and isinstance(outer.map, Diagonal):
        return _scaled_channels(outer, outer.map, inner, inner.map)
    map = _free_product(outer.map, inner.map)
    if map is None:
        return None
    bias = _enclosed(inner.bias, inner.bias_radius)
    if bias is not None:
        bias = _moved(outer.map, bias)
        if bias is None:
            return None
    own = _enclosed(outer.bias, outer.bias_radius)
    if bias is None or own is None:
        bias = bias or own
    else:
        total = add(bias, own)
        if total.radius is not None and bias.radius is None and own.radius is None:
            return None
        bias = total
    return Linear(map=map) if bias is None else Linear(map=map, bias=bias.values, bias_radius=bias.radius)


def _scaled_channels(outer: Linear, factors: Diagonal, inner: Linear, conv: Conv) -> Linear | None:
    """A convolution whose channels are scaled, such as by a BatchNormalization: its kernel is, enclosed."""
    shape = conv.output_shape
    parts = [factors.values] if factors.radius is None else [factors.values, factors.radius]
    channels = []
    for part in parts:
        each = part.reshape(shape[0], shape[1], -1)
        if not np.all(each == each[:1, :, :1]):
            return None
        channels.append(each[0, :, 0])
    like = (-1, *[1] * (conv.kernel.ndim - 1))
    factor = Enclosed(values=channels[0].reshape(like), radius=channels[1].reshape(like) if len(channels) > 1 else None)
    kernel = multiply(Enclosed(values=conv.kernel, radius=conv.radius), factor)
    if not kernel.is_finite:
        return None
    bias = _enclosed(inner.bias, inner.bias_radius)
    if bias is not None:
        bias = multiply(bias, Enclosed(values=factors.values, radius=factors.radius))
    own = _enclosed(outer.bias, outer.bias_radius)
    total = bias if own is None else own if bias is None else add(bias, own)
    map = replace(conv, kernel=np.ascontiguousarray(kernel.values), radius=kernel.radius)
    return Linear(map=map) if total is None else Linear(map=map, bias=total.values, bias_radius=total.radius)


def _free_product(outer: LinearMap, inner: LinearMap) -> LinearMap | None:
    dense = isinstance(outer, Dense) or isinstance(inner, Dense)
    if dense and outer.shape[0] * inner.shape[1] > 2 * (outer.entries + inner.entries):
        return None  # a small selection from much, or many copies of little, is better kept apart
    product = compose(outer, inner)
    grown = isinstance(product, Composition) and len(product.factors) > max(_factors(outer), _factors(inner))
    return None if grown else product


def _factors(map: LinearMap) -> int:
    return len(map.factors) if isinstance(map, Composition) else 1


def _moved(map: LinearMap, bias: Enclosed) -> Enclosed | None:
    """A bias carried through a map, where that needs no multiplication."""
    if isinstance(map, Selection):
        radius = None if bias.radius is None else map.matvec(bias.radius)
        return Enclosed(values=map.matvec(bias.values), radius=radius)
    if isinstance(map, Diagonal) and map.radius is None and bool(np.all(np.abs(map.values) == 1.0)):
        return Enclosed(values=map.values * bias.values, radius=bias.radius)
    return None


def _enclosed(bias: Array | None, radius: Array | None) -> Enclosed | None:
    if bias is None:
        return None
    return Enclosed(values=bias, radius=radius)


def _with(network: Network, graph: nx.MultiDiGraph) -> Network:
    return Network(graph=graph, input=network.input, output=network.output, source=network.source)
