"""The exact checker's own reading of an ONNX file: from bytes to a tape of exact linear maps and activations.

Written a second time, without the importer, so that a bug of one is not a bug of the other. The onnx package parses
the bytes and knows the attributes; all else is here and in `operators*.py`. What is not understood (another operator,
sparse tensors, functions of the file) raises `Unreadable`, which names it: then the importer has to be believed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lipmodel.certify.operands import BOOL, FLOAT, INT64, Array, Moving, Node, Value, constant, tensor
from lipmodel.certify.operators import OPERATORS, OWN_DOMAIN, own_operator
from lipmodel.certify.operators_folding import COMPARISONS
from lipmodel.certify.tape import Reading, Sparse, Step, Tape, Unreadable, living, selection


def read(
    content: bytes,
    sha256: str,
    *,
    folder: Path | None = None,
    graph_input: Any = None,
    graph_output: Any = None,
    rows: Sequence[dict[int, int]] | None = None,
) -> Reading:
    """The network in these bytes, whose sha256 it is; Unreadable where they hold what is not understood here.

    folder: where weights in other files are looked for; sha256 is then of the digests of the bytes and of these
    weights, ordered by their names. graph_input, graph_output: None where there is one, a name, or the names of those
    that are concatenated. rows: the outputs that are measured as combinations {output: integer}; None for all.
    """
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(content)
    versions = {e.version for e in model.opset_import if e.domain in ("", "ai.onnx")}
    if len(versions) != 1 or model.functions or model.graph.sparse_initializer:
        raise Unreadable("functions, sparse tensors, or several operator sets")
    outside: dict[str, bytes] = {}
    weights: dict[str, Callable[[], Array]] = {
        t.name: partial(_weight, t, folder, outside) for t in model.graph.initializer
    }
    found = _read(model.graph, versions.pop(), weights, graph_input, graph_output, rows)
    digest = hashlib.sha256(content)
    if outside:
        parts = [digest, *(hashlib.sha256(outside[name]) for name in sorted(outside))]
        digest = hashlib.sha256(b"".join(part.digest() for part in parts))
    if digest.hexdigest() != sha256:
        raise Unreadable("bytes that are not those that the importer has read")
    return found


def _weight(proto: Any, folder: Path | None, outside: dict[str, bytes]) -> Array:
    """A stored tensor; where its data is in another file, its bytes are kept by its name."""
    if not proto.data_location:
        return tensor(proto)
    given = {entry.key: entry.value for entry in proto.external_data}
    where = PurePosixPath(given.get("location", ""))
    if folder is None or where.is_absolute() or ".." in where.parts:
        raise Unreadable("external data")
    with open(folder / where, "rb") as stream:
        stream.seek(int(given.get("offset", 0)))
        outside[proto.name] = stream.read(int(given["length"]) if "length" in given else -1)
    inside = type(proto)(dims=proto.dims, data_type=proto.data_type, raw_data=outside[proto.name])
    return tensor(inside)


def _read(
    graph: Any, opset: int, weights: dict[str, Callable[[], Array]], graph_input: Any, graph_output: Any, rows: Any
) -> Reading:
    values: dict[str, Value] = {}
    tape = Tape()
    types = {i.name: i.type.tensor_type.elem_type for i in graph.input} | {
        t.name: t.data_type for t in graph.initializer
    }
    shapes = {i.name: shape(i) for i in graph.input if i.name not in weights}
    chosen = names(graph_input, list(shapes))
    entry = tape.add(Step("input", sum(prod(shapes[name]) for name in chosen)))
    tape.owned(chosen[0] if len(chosen) == 1 else "input")
    start = 0
    for name, dims in shapes.items():
        # graph inputs that are not chosen are held at zero
        values[name] = Moving(tape.still(prod(dims)), dims) if name not in chosen else Moving(entry, dims)
        tape.owned(name)
    for name in chosen if len(chosen) > 1 else ():
        size = prod(shapes[name])
        index = selection(range(start, start + size), tape.steps[entry].size)
        values[name] = Moving(tape.linear(entry, index), shapes[name])
        start += size
    outputs = names(graph_output, [o.name for o in graph.output])
    reads = Counter(key for node in graph.node for key in node.input) + Counter(o.name for o in graph.output)
    for name, node in needed(graph, outputs, {*values, *weights}):
        for key in node.input:
            if key in weights and key not in values:
                values[key] = weights[key]()
        if not values.keys() >= {*node.input} - {""}:
            raise Unreadable(f"what {node.op_type} reads is a further output of an operator, which is not known")
        _apply(node, name, opset, values, types, tape, alone=bool(node.input) and reads[node.input[0]] == 1)
        tape.owned(name)
    if not {*values, *weights} >= set(outputs):
        raise Unreadable("a graph output that is a further output of an operator")
    found = [values[name] if name in values else weights[name]() for name in outputs]
    steps = [v.step if isinstance(v, Moving) else tape.still(v.size, constant(v)) for v in found]
    sizes = [tape.steps[step].size for step in steps]
    last = steps[0]
    if len(steps) > 1:
        ends = np.cumsum([0, *sizes]).tolist()
        placed = []
        for step, a, b in zip(steps, ends, ends[1:], strict=False):
            index = selection([i - a if a <= i < b else -1 for i in range(ends[-1])], b - a)
            placed.append(tape.linear(step, index))
        last = tape.sum(placed)
    if rows is not None:
        table = Sparse(tape.steps[last].size, 0, [{i: (c, 0) for i, c in row.items()} for row in rows])
        last = tape.linear(last, table)
    return living(tape, last)


def names(choice: Any, available: list[str]) -> list[str]:
    """The graph inputs or outputs that are chosen: all where there is one, else those that are named."""
    picked = available if choice is None else [choice] if isinstance(choice, str) else list(choice)
    if not picked or (choice is None and len(available) != 1) or not set(picked) <= set(available):
        raise Unreadable("graph inputs or outputs that are not there")
    return picked


def shape(info: Any) -> tuple[int, ...]:
    """The shape of a graph input; a leading dimension that is not given is the batch, of one."""
    dims = info.type.tensor_type.shape.dim
    if any(not d.HasField("dim_value") for d in dims[1:]) or not info.type.tensor_type.HasField("shape"):
        raise Unreadable(f"the graph input {info.name!r} without a shape")
    return tuple(int(d.dim_value) if d.HasField("dim_value") else 1 for d in dims)


def needed(graph: Any, outputs: list[str], known: set[str]) -> list[tuple[str, Any]]:
    """The nodes that the outputs depend on, in an order in which they can be computed, each with a name."""
    producer = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    wanted: set[int] = set()
    pending = [producer[name] for name in outputs if name in producer]
    while pending:
        k = pending.pop()
        if k not in wanted:
            wanted.add(k)
            pending += [producer[name] for name in graph.node[k].input if name in producer]
    reads = {k: {name for name in graph.node[k].input if name} for k in wanted}
    if not all(keys <= producer.keys() | known for keys in reads.values()):
        raise Unreadable("a node that reads what is not there")
    sorter = TopologicalSorter({k: {producer[name] for name in keys & producer.keys()} for k, keys in reads.items()})
    order: list[int] = []
    try:
        sorter.prepare()
    except CycleError:
        raise Unreadable("a graph that is not acyclic") from None
    ready: list[int] = []
    while sorter.is_active():
        for k in sorter.get_ready():
            heappush(ready, k)
        order.append(heappop(ready))
        sorter.done(order[-1])
    return [(graph.node[k].name or f"{graph.node[k].op_type}_{k}", graph.node[k]) for k in order]


def _apply(
    node: Any, name: str, opset: int, values: dict[str, Value], types: dict[str, int], tape: Tape, *, alone: bool
) -> None:
    """Add the outputs of a node, as far as they are known, and their element types."""
    own = node.domain == OWN_DOMAIN
    handler = own_operator if own else OPERATORS.get(node.op_type)
    if handler is None or (node.domain not in ("", "ai.onnx") and not own):
        raise Unreadable(f"the operator {node.op_type}")
    given = _raw_attributes(node) if own else attributes(node, opset)
    inputs = tuple(values[key] if key else None for key in node.input)
    kinds = tuple(types[key] if key else 0 for key in node.input)
    try:
        result = handler(Node(name, node.op_type, opset, inputs, given, tape, kinds, len(node.output), alone))
    except (ValueError, IndexError, TypeError, ArithmeticError, AssertionError) as error:
        raise Unreadable(f"the operator {node.op_type} used in an unusual way ({error})") from None
    for key, value in zip(node.output, result if isinstance(result, list) else [result], strict=False):
        values[key], types[key] = value, _type(node.op_type, given, kinds)


def _type(op: str, given: dict[str, Any], kinds: tuple[int, ...]) -> int:
    """The element type of the outputs of an operator: mostly that of its first input."""
    if op == "Cast":
        return int(given["to"])
    if op == "Constant":
        if given["value"] is not None:
            return int(given["value"].data_type)
        return INT64 if given.get("value_int", given.get("value_ints")) is not None else FLOAT
    if op == "ConstantOfShape":
        return FLOAT if given["value"] is None else int(given["value"].data_type)
    if op in COMPARISONS:
        return BOOL
    return INT64 if op in ("Shape", "Size") else kinds[1 if op == "Where" else 0]


def attributes(node: Any, opset: int) -> dict[str, Any]:
    """The attributes of a node of a standard operator, with their defaults. Raises Unreadable for others."""
    import onnx

    given = _raw_attributes(node)
    found: dict[str, Any] = {}
    for key, formal in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
        default = formal.default_value
        value = onnx.helper.get_attribute_value(default) if default.name else None
        found[key] = given.pop(key, value.decode() if isinstance(value, bytes) else value)
    if given:
        raise Unreadable(f"the operator {node.op_type} with an attribute {min(given)}")
    return found


def _raw_attributes(node: Any) -> dict[str, Any]:
    import onnx

    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in given.items()}
