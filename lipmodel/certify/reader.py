"""The exact checker's own reading of an ONNX file: from bytes to a tape of exact linear maps and activations.

Written a second time, without the importer, so that a bug of one is not a bug of the other. The onnx package parses
the bytes and knows the attributes; all else is here and in `operators.py`. What is not understood (another operator,
external data, arithmetic on constants) raises `Unreadable`, which names it: then the importer has to be believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from lipmodel.certify.operators import OPERATORS, Moving, Node, Value, tensor
from lipmodel.certify.tape import Reading, Sparse, Step, Tape, Unreadable, selection


def read(
    content: bytes,
    sha256: str,
    *,
    graph_input: Any = None,
    graph_output: Any = None,
    rows: Sequence[dict[int, int]] | None = None,
) -> Reading:
    """The network in these bytes, whose sha256 it is; Unreadable where they hold what is not understood here.

    graph_input, graph_output: None where there is one, a name, or the names of those that are concatenated. rows: the
    outputs that are measured as combinations {output: integer}; None for all.
    """
    import onnx

    if hashlib.sha256(content).hexdigest() != sha256:
        raise Unreadable("external data")
    model = onnx.ModelProto()
    model.ParseFromString(content)
    versions = {e.version for e in model.opset_import if e.domain in ("", "ai.onnx")}
    if len(versions) != 1 or model.functions or model.graph.sparse_initializer:
        raise Unreadable("functions, sparse tensors, or several operator sets")
    return _read(model.graph, versions.pop(), graph_input, graph_output, rows)


def _read(graph: Any, opset: int, graph_input: Any, graph_output: Any, rows: Any) -> Reading:
    values: dict[str, Value] = {}
    tape = Tape()
    weights = {t.name: t for t in graph.initializer}
    shapes = {i.name: _shape(i) for i in graph.input if i.name not in weights}
    chosen = _names(graph_input, list(shapes))
    entry = tape.add(Step("input", sum(prod(shapes[name]) for name in chosen)))
    start = 0
    for name, shape in shapes.items():
        values[name] = Moving(tape.still(prod(shape)), shape) if name not in chosen else Moving(entry, shape)
    for name in chosen if len(chosen) > 1 else ():
        size = prod(shapes[name])
        index = selection(range(start, start + size), tape.steps[entry].size)
        values[name] = Moving(tape.linear(entry, index), shapes[name])
        start += size
    outputs = _names(graph_output, [o.name for o in graph.output])
    for name, node in _needed(graph, outputs, {*values, *weights}):
        for key in node.input:
            if key in weights and key not in values:
                values[key] = tensor(weights[key])
        values[node.output[0]] = _apply(node, name, opset, values, tape)
    found = [values[name] if name in values else tensor(weights[name]) for name in outputs]
    steps = [v.step if isinstance(v, Moving) else tape.still(v.size) for v in found]
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
    return Reading(tape, last)


def _names(choice: Any, names: list[str]) -> list[str]:
    picked = names if choice is None else [choice] if isinstance(choice, str) else list(choice)
    if not picked or (choice is None and len(names) != 1) or not set(picked) <= set(names):
        raise Unreadable("graph inputs or outputs that are not there")
    return picked


def _shape(info: Any) -> tuple[int, ...]:
    dims = info.type.tensor_type.shape.dim
    if any(not d.HasField("dim_value") for d in dims[1:]) or not info.type.tensor_type.HasField("shape"):
        raise Unreadable(f"the graph input {info.name!r} without a shape")
    return tuple(int(d.dim_value) if d.HasField("dim_value") else 1 for d in dims)


def _needed(graph: Any, outputs: list[str], known: set[str]) -> list[tuple[str, Any]]:
    """The nodes that the outputs depend on, in an order in which they can be computed, each with a name."""
    producer = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    needed: set[int] = set()
    pending = [producer[name] for name in outputs if name in producer]
    while pending:
        k = pending.pop()
        if k not in needed:
            needed.add(k)
            pending += [producer[name] for name in graph.node[k].input if name in producer]
    order: list[int] = []
    done = set(known) | {""}
    while len(order) < len(needed):
        ready = [k for k in sorted(needed - set(order)) if done.issuperset(graph.node[k].input)]
        if not ready:
            raise Unreadable("a graph that is not acyclic")
        order += ready
        done |= {name for k in ready for name in graph.node[k].output}
    return [(graph.node[k].name or f"{graph.node[k].op_type}_{k}", graph.node[k]) for k in order]


def _apply(node: Any, name: str, opset: int, values: dict[str, Value], tape: Tape) -> Value:
    import onnx

    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        raise Unreadable(f"the operator {node.op_type}")
    if any(node.output[1:]):
        raise Unreadable(f"the operator {node.op_type} with several outputs")
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    attributes: dict[str, Any] = {}
    for key, formal in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
        default = formal.default_value
        value = given.pop(key, onnx.helper.get_attribute_value(default) if default.name else None)
        attributes[key] = value.decode() if isinstance(value, bytes) else value
    if given:
        raise Unreadable(f"the operator {node.op_type} with an attribute {min(given)}")
    inputs = tuple(values[key] if key else None for key in node.input)
    try:
        return OPERATORS[node.op_type](Node(name, node.op_type, opset, inputs, attributes, tape))
    except (ValueError, IndexError, TypeError, ArithmeticError, AssertionError) as error:
        raise Unreadable(f"the operator {node.op_type} used in an unusual way ({error})") from None
