"""The summary of a network that `inspect` prints."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.network.linear import Composition, LinearMap, Selection, Sum
from lipmodel.network.ops import Add, Concat, Constant, Elementwise, Grouped, Input, Linear, Product
from lipmodel.report.tables import facts, printable, table
from lipmodel.result import rounded

if TYPE_CHECKING:
    from pathlib import Path

    from lipmodel.network.graph import Network
    from lipmodel.network.ops import Op

_SHOWN = 3
"""Activations of one node that are named; a PRelu may have a different one for every entry."""


def network_summary(network: Network, *, width: int | None = None) -> list[str]:
    """What was read: the file, shapes, sizes and a table of the nodes in topological order."""
    source = network.source
    ops = [network.op(node) for node in network.order()]
    kinds: Counter[str] = Counter()
    for op in ops:
        if isinstance(op, Elementwise):
            for part in op.parts:
                kinds[part.activation.name] += len(part.index)
        elif isinstance(op, Grouped):
            kinds[op.function.name] += op.size
    count = sum(kinds.values())
    named = f" ({', '.join(f'{k} {n}' for k, n in kinds.items())})" if count else ""
    written = "ONNX, no operator set" if source.opset is None else f"ONNX, operator set {source.opset}"
    if source.producer:
        written += f", producer {printable(source.producer)}"
    head = facts(
        [
            ("sha256", source.sha256),
            ("format", written),
            ("graph", _ports("inputs", source.graph_inputs) + "; " + _ports("outputs", source.graph_outputs)),
            ("input", f"{_shape(network.input_shape)}, {_count(network.input_size, 'number')}"),
            ("output", f"{_shape(network.output_shape)}, {_count(network.output_size, 'number')}"),
            ("parameters", str(source.parameters)),
            ("activations", f"{count}{named}"),
        ]
    )
    rows = []
    for node in network.order():
        op = network.op(node)
        stored = _parameters(op)
        shape = _shape(network.shape(node))
        rows.append((printable(node), type(op).__name__, shape, str(stored or ""), printable(detail(op))))
    header = ("node", "operation", "shape", "parameters", "detail")
    return [printable(source.path or "a network made in Python"), *head, "", *table(header, rows, width=width)]


def file_summary(path: Path) -> list[str]:
    """What can be said of an ONNX file whose operations have no increments: its ports and operators."""
    from lipmodel.network.onnx_file import read

    file = read(path)
    graph = file.model.graph
    sets = ", ".join(f"{printable(e.domain) or 'ai.onnx'} {e.version}" for e in file.model.opset_import)
    weights = {t.name for t in graph.initializer}
    operators = Counter(printable(node.op_type) for node in graph.node)
    producer = printable(file.model.producer_name)
    return [
        printable(str(path)),
        *facts(
            [
                ("sha256", file.sha256()),
                ("format", f"ONNX, operator set {sets}, producer {producer or 'not stated'}"),
                ("inputs", ", ".join(printable(i.name) for i in graph.input if i.name not in weights)),
                ("outputs", ", ".join(printable(o.name) for o in graph.output)),
                ("operators", ", ".join(f"{name} {n}" for name, n in sorted(operators.items()))),
            ]
        ),
    ]


def _ports(what: str, infos: Any) -> str:
    return f"{what} {', '.join(printable(str(info)) for info in infos)}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _parameters(op: Op) -> int:
    if not isinstance(op, Linear):
        return 0
    return _stored(op.map) + (0 if op.bias is None else len(op.bias))


def _stored(m: LinearMap) -> int:
    """Numbers that a map stores."""
    if isinstance(m, Composition | Sum):
        return sum(_stored(part) for part in (m.factors if isinstance(m, Composition) else m.terms))
    for name in ("weights", "kernel", "values"):
        array = getattr(m, name, None)
        if array is not None:
            return int(array.size)
    return 0


def detail(op: Op) -> str:
    """What an operation does, in a few words."""
    if isinstance(op, Linear):
        bias = "" if op.bias is None or not np.any(op.bias) else ", bias"
        return _map_text(op.map) + bias
    if isinstance(op, Elementwise):
        return _activations(op)
    if isinstance(op, Grouped):
        low, high = op.function.slopes(op.groups.shape[1])
        counted = f"{len(op.groups)} group{'' if len(op.groups) == 1 else 's'} of {op.groups.shape[1]}"
        return f"{op.function.label}, {counted}, slopes in [{rounded(low, up=False)}, {rounded(high, up=True)}]"
    if isinstance(op, Concat):
        return f"{len(op.positions)} parts"
    if isinstance(op, Constant):
        return "held constant"
    if isinstance(op, Input):
        return "the input"
    if isinstance(op, Product):
        return "product of its inputs"
    return "sum of its inputs" if isinstance(op, Add) else ""


def _map_text(m: LinearMap) -> str:
    if isinstance(m, Composition):
        return " after ".join(_map_text(f) for f in m.factors)
    if isinstance(m, Sum):
        return " plus ".join(f"({_map_text(t)})" for t in m.terms)
    rows, columns = m.shape
    if isinstance(m, Selection):
        return "identity" if m.is_identity else f"selection {rows} of {columns}"
    taps = getattr(m, "taps", None)
    if taps is not None:
        stride = "x".join(map(str, m.strides))  # type: ignore[attr-defined]
        return f"convolution {rows} x {columns}, kernel {'x'.join(map(str, taps))}, stride {stride}"
    return f"{type(m).__name__.lower()} {rows} x {columns}"


def _activations(op: Elementwise) -> str:
    from lipmodel.errors import NotLipschitz

    distinct: dict[str, Any] = {}
    for part in op.parts:
        distinct.setdefault(part.activation.label, part.activation)
    names = list(distinct)[:_SHOWN]
    more = f" and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else ""
    try:
        pairs = [activation.slopes() for activation in distinct.values()]
    except NotLipschitz:
        slopes = "slopes unbounded"
    else:
        low, high = rounded(min(a for a, _ in pairs), up=False), rounded(max(b for _, b in pairs), up=True)
        slopes = f"slopes in [{low}, {high}]"
    return f"{', '.join(names)}{more}, {slopes}"
