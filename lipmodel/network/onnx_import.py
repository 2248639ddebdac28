"""ONNX -> Network.

Every node is read by the handler of its operator, and nothing is skipped or guessed: what cannot be read exactly is
refused, with all reasons at once, and what was read is compared with a run of the file.

A symbolic leading dimension is the batch and becomes 1; a fixed one is part of the input. Operator sets 7 to 23.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from lipmodel.errors import LipmodelError, Reason, RefusedInput, UsageError
from lipmodel.network import (
    onnx_activations,
    onnx_arithmetic,
    onnx_conv,
    onnx_folding,
    onnx_max,
    onnx_nodes,
    onnx_resize,
    onnx_shapes,
    onnx_slices,
    onnx_vector,
)
from lipmodel.network.check import check_against_runtime
from lipmodel.network.graph import Network, Source, TensorInfo
from lipmodel.network.linear import Selection, identity
from lipmodel.network.onnx_file import MAX_RANK, OnnxFile, Refusal, decode, read, type_name
from lipmodel.network.onnx_ops import (
    MAX_TENSOR,
    OPERATORS,
    Builder,
    Computed,
    Fixed,
    Handler,
    Node,
    Value,
    is_float,
    register_operator,
)
from lipmodel.network.onnx_shapes import fixed_array
from lipmodel.network.ops import Concat, Constant, Input, Linear
from lipmodel.network.passes import simplify

__all__ = ["OPSETS", "load", "register_operator"]

OPSETS = range(7, 24)
"""The operator sets that are read."""
_OPSET_HINT = f"operator sets {OPSETS[0]} to {OPSETS[-1]} are read; onnx.version_converter converts others"
PATIENCE = 120.0
"""Seconds of computing for all nodes; every single one is bounded by what tensors may hold."""

_HANDLERS = (
    onnx_activations,
    onnx_arithmetic,
    onnx_conv,
    onnx_folding,
    onnx_max,
    onnx_resize,
    onnx_shapes,
    onnx_slices,
    onnx_vector,
)


@dataclass(slots=True, kw_only=True, eq=False)
class _Import:
    """The state of one import; `values` holds None where a reason is on record, a Refusal where use would be one."""

    file: OnnxFile
    opset: int
    builder: Builder = field(default_factory=Builder)
    values: dict[str, Value | Refusal | None] = field(default_factory=dict)
    reasons: list[Reason] = field(default_factory=list)
    parameters: int = 0

    @property
    def graph(self) -> Any:
        return self.file.model.graph

    @property
    def functions(self) -> frozenset[tuple[str, str]]:
        return frozenset((onnx_nodes.plain(f.domain), f.name) for f in self.file.model.functions)

    def refuse(self, kind: str, where: str, message: str, hint: str = "") -> None:
        self.reasons.append(Reason(kind=kind, where=where, message=message, hint=hint))


def load(
    source: str | os.PathLike[str] | bytes | Any,
    *,
    graph_input: str | Sequence[str] | None = None,
    graph_output: str | Sequence[str] | None = None,
    check: bool = True,
) -> Network:
    """Read a network from an ONNX file (a path, its bytes, or an onnx.ModelProto).

    graph_input, graph_output: the names of the tensors to regard as input and output, "all" for the concatenation of
    all, None where there is one; graph inputs that are not chosen are held at zero. check: compare with a run of the
    file (onnxruntime where it is installed, else onnx.reference) on random inputs.

    Raises RefusedInput with every reason, UsageError where there is no such file or tensor.
    """
    file = read(source)
    try:
        return _load(file, graph_input, graph_output, check)
    except MemoryError:
        reason = Reason(kind="size-limit", where="", message="the network does not fit into the memory of this machine")
        raise RefusedInput(file.label, [reason]) from None
    except LipmodelError:
        raise
    except Exception as error:  # whatever a file makes a handler do, nobody gets a bare exception
        message = f"reading it broke off ({type(error).__name__}: {error}): a defect of lipmodel, please report it"
        raise RefusedInput(file.label, [Reason(kind="operator", where="", message=message)]) from error


def _load(
    file: OnnxFile, graph_input: str | Sequence[str] | None, graph_output: str | Sequence[str] | None, check: bool
) -> Network:
    model = file.model
    state = _Import(file=file, opset=_opset(model))
    if state.opset not in OPSETS:
        state.refuse("opset", "", _opset_message(model), _OPSET_HINT)
    inputs = _chosen(state, "input", _graph_inputs(state.graph), graph_input)
    outputs = _chosen(state, "output", list(state.graph.output), graph_output)
    state.reasons.extend(onnx_nodes.check_names(state.graph))
    order: list[int] = []
    try:
        order = onnx_nodes.needed(state.graph, [o.name for o in outputs])
    except Refusal as refusal:
        state.reasons.append(refusal.at("graph"))
    shapes = _read_inputs(state, inputs)
    _read_weights(state, order, [o.name for o in outputs])
    if state.opset in OPSETS:
        start = time.process_time()
        for index in order:
            if time.process_time() - start > PATIENCE:
                state.refuse("size-limit", "graph", f"more than {PATIENCE:.0f} s of computing to read the nodes")
                break
            _read_node(state, index)
    else:
        _name_unsupported(state, order)
    result = _read_outputs(state, outputs)
    if state.reasons or result is None:
        raise RefusedInput(file.label, state.reasons)
    network = _network(state, result, inputs, outputs)
    if len(_graph_inputs(model.graph)) == len(model.graph.output) == 1 and not file.external:
        network = replace(network, model=file.content)
    if check:
        names = {"chosen": [i.name for i in inputs], "outputs": [o.name for o in outputs]}
        check_against_runtime(network, file, inputs=shapes, order=order, **names)
    return network


def _network(state: _Import, output: str, inputs: list[Any], outputs: list[Any]) -> Network:
    model = state.file.model
    source = Source(
        path=None if state.file.path is None else str(state.file.path),
        sha256=state.file.sha256(),
        graph_inputs=tuple(_info(i) for i in _graph_inputs(model.graph)),
        graph_outputs=tuple(_info(o) for o in model.graph.output),
        parameters=state.parameters,
        opset=state.opset,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        graph_input=_choice(inputs, _graph_inputs(model.graph)),
        graph_output=_choice(outputs, list(model.graph.output)),
    )
    (entry,) = (v for v, op in state.builder.graph.nodes(data="op") if isinstance(op, Input))
    network = simplify(Network(graph=state.builder.graph, input=entry, output=output, source=source))
    network.validate()
    return network


def _choice(chosen: list[Any], available: list[Any]) -> str | tuple[str, ...] | None:
    """What `Source` says of a choice among graph inputs or outputs."""
    names = tuple(str(v.name) for v in chosen)
    return None if len(available) == 1 else names[0] if len(names) == 1 else names


def _opset(model: Any) -> int:
    versions = {e.version for e in model.opset_import if onnx_nodes.is_standard(e.domain)}
    return int(versions.pop()) if len(versions) == 1 else 0


def _opset_message(model: Any) -> str:
    versions = sorted(e.version for e in model.opset_import if onnx_nodes.is_standard(e.domain))
    if not versions:
        return "no operator set is imported"
    return f"operator set {' and '.join(map(str, versions))} is not supported"


def _graph_inputs(graph: Any) -> list[Any]:
    """The graph inputs that are not weights (before IR version 4, weights are listed as inputs too)."""
    weights = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return list({i.name: i for i in graph.input if i.name not in weights}.values())


def _info(value: Any) -> TensorInfo:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return TensorInfo(name=value.name, shape=("?",))
    dims = value.type.tensor_type.shape.dim
    shape = tuple(int(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
    return TensorInfo(name=value.name, shape=shape)


def _chosen(state: _Import, what: str, available: list[Any], choice: str | Sequence[str] | None) -> list[Any]:
    """The graph inputs or outputs that are chosen; where the choice is missing, a reason, and all of them."""
    names = {v.name: v for v in available}
    if not available:
        state.refuse(f"{what}s", "graph", f"there is no graph {what}")
        return []
    if choice is None:
        if len(available) > 1:
            listed = ", ".join(str(_info(v)) for v in available)
            hint = f"choose with graph_{what} (--graph-{what} NAME, or all)"
            state.refuse(f"{what}s", "graph", f"there are {len(available)} graph {what}s: {listed}", hint)
        return available
    if choice == "all" and "all" not in names:
        return available
    chosen = [choice] if isinstance(choice, str) else list(choice)
    unknown = [name for name in chosen if name not in names]
    if unknown or not chosen or len(set(chosen)) != len(chosen):
        raise UsageError(f"{chosen} is not a choice among the graph {what}s of {state.file.label}: {sorted(names)}")
    return [names[name] for name in chosen]


def _read_inputs(state: _Import, chosen: list[Any]) -> dict[str, tuple[int, ...]]:
    """Add the input node and the graph inputs; their shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    picked = {info.name for info in chosen}
    for info in _graph_inputs(state.graph):
        try:
            shapes[info.name] = _input_shape(info)
        except Refusal as refusal:
            state.values[info.name] = refusal
            if info.name in picked:
                state.values[info.name] = None
                state.reasons.append(refusal.at(f"input {info.name!r}"))
    sizes = {name: prod(shapes[name]) for name in (info.name for info in chosen) if name in shapes}
    try:
        if sum(sizes.values()) > MAX_TENSOR:
            raise Refusal("size-limit", f"the input has {sum(sizes.values())} entries; the limit is {MAX_TENSOR}")
        _add_inputs(state, chosen, shapes, sizes)
    except Refusal as refusal:
        state.reasons.append(refusal.at("inputs"))
        state.values.update(dict.fromkeys(shapes))
    return shapes


def _add_inputs(state: _Import, chosen: list[Any], shapes: dict[str, tuple[int, ...]], sizes: dict[str, int]) -> None:
    types = {i.name: int(i.type.tensor_type.elem_type) for i in _graph_inputs(state.graph)}
    single = len(chosen) == 1
    whole = shapes.get(chosen[0].name, ()) if single else (sum(sizes.values()),)
    entry = state.builder.add(chosen[0].name if single and chosen else "input", Input(shape=whole), [], whole)
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    for name, shape in shapes.items():
        key = entry
        if name not in sizes:
            key = state.builder.add(name, Constant(values=np.zeros(prod(shape))), [], shape)
        elif not single:
            index = np.arange(starts[name], starts[name] + sizes[name])
            key = state.builder.add(name, Linear(map=Selection(index=index, size=whole[0])), [entry], shape)
        state.values[name] = Computed(node=key, shape=shape, type=types[name])


def _input_shape(info: Any) -> tuple[int, ...]:
    if not info.type.HasField("tensor_type"):
        raise Refusal("inputs", f"it is a {info.type.WhichOneof('value') or 'value of no type'}, not a tensor")
    tensor = info.type.tensor_type
    if not is_float(tensor.elem_type):
        raise Refusal("inputs", f"it is {type_name(tensor.elem_type)}, not a floating-point tensor")
    if not tensor.HasField("shape"):
        raise Refusal("shape", "its shape is not given")
    if len(tensor.shape.dim) > MAX_RANK:
        raise Refusal("size-limit", f"it has {len(tensor.shape.dim)} dimensions; the limit is {MAX_RANK}")
    shape = []
    for axis, (dim, name) in enumerate(zip(tensor.shape.dim, _info(info).shape, strict=True)):
        if not dim.HasField("dim_value"):
            if axis > 0:
                raise Refusal("shape", f"dimension {axis} ({name}) is symbolic; only a leading one may be: the batch")
            shape.append(1)
        elif dim.dim_value <= 0:
            raise Refusal("shape", f"dimension {axis} is {dim.dim_value}")
        else:
            shape.append(int(dim.dim_value))
    if prod(shape) > MAX_TENSOR:
        raise Refusal("size-limit", f"it has {prod(shape)} entries; the limit is {MAX_TENSOR}")
    return tuple(shape)


def _read_weights(state: _Import, order: list[int], outputs: list[str]) -> None:
    """Decode the initializers that are used."""
    used = {name for index in order for name in state.graph.node[index].input} | set(outputs)
    for tensor in state.graph.initializer:
        if tensor.name not in used:
            continue
        try:
            array = decode(tensor, state.file, tensor.name)
            state.values[tensor.name] = fixed_array(array, tensor.data_type)
            state.parameters += array.size if is_float(tensor.data_type) else 0
        except Refusal as refusal:
            state.values[tensor.name] = None
            state.reasons.append(refusal.at(f"tensor {tensor.name!r}"))
    for sparse in state.graph.sparse_initializer:
        if sparse.values.name in used:
            state.values[sparse.values.name] = None
            where = f"tensor {sparse.values.name!r}"
            state.refuse("tensor-encoding", where, "sparse tensors are not supported", "store it as a dense tensor")


def _name_unsupported(state: _Import, order: list[int]) -> None:
    """What would be refused in any operator set; set 6 differs from 7 in broadcasting along an axis alone."""
    for index in order:
        proto = state.graph.node[index]
        if _handler(state, proto) is None:
            state.reasons.append(onnx_nodes.unsupported(proto, state.functions).at(onnx_nodes.label(proto, index)))
        elif state.opset == OPSETS[0] - 1 and not onnx_nodes.broadcasts_along_axis(proto):
            with suppress(KeyError):  # an attribute that came with set 7
                _read_node(state, index)


def _handler(state: _Import, proto: Any) -> Handler | None:
    """The handler of a node; functions of the model hide operators."""
    if (onnx_nodes.plain(proto.domain), proto.op_type) in state.functions:
        return None
    domain = "" if onnx_nodes.is_standard(proto.domain) else proto.domain
    return OPERATORS.get((proto.op_type, domain)) or OPERATORS.get(("*", domain))


def _read_node(state: _Import, index: int) -> None:
    proto = state.graph.node[index]
    outputs = [name for name in proto.output if name]
    state.values.update(dict.fromkeys(outputs))
    try:
        results = _apply(state, proto, index)
    except Refusal as refusal:
        state.reasons.append(refusal.at(onnx_nodes.label(proto, index)))
        return
    if results is None:
        return
    for port, name in enumerate(proto.output):
        value = results[port] if port < len(results) else None
        missing = Refusal("operator", f"output {port} of {proto.op_type} ({name!r}) is not supported")
        if name:
            state.values[name] = missing if value is None else value


def _apply(state: _Import, proto: Any, index: int) -> Sequence[Value | None] | None:
    """The values of the outputs of one node; None where an input is unknown for a reason already on record."""
    standard = onnx_nodes.is_standard(proto.domain)
    handler = _handler(state, proto)
    if handler is None:
        raise onnx_nodes.unsupported(proto, state.functions)
    attributes = onnx_nodes.attributes(proto, state.opset) if standard else onnx_nodes.raw_attributes(proto)
    inputs: list[Value | None] = []
    for name in proto.input:
        value = state.values.get(name) if name else None
        if isinstance(value, Refusal):
            raise Refusal(value.kind, f"it needs {name!r}: {value.message}", value.hint)
        if name and value is None:
            return None
        inputs.append(value)
    node = Node(
        name=proto.name or f"{proto.op_type}_{index}",
        op_type=proto.op_type,
        opset=state.opset,
        attributes=attributes,
        inputs=tuple(inputs),
        outputs=tuple(proto.output),
        builder=state.builder,
        file=state.file,
    )
    result = handler(node)
    results = [result] if isinstance(result, (Computed, Fixed)) else list(result)
    if proto.op_type != "Constant":  # stored tensors are counted where they are decoded
        state.file.constants.fold(sum(v.size for v in results if isinstance(v, Fixed)))
    if any(v is not None and len(v.shape) > MAX_RANK for v in results):
        raise Refusal("size-limit", f"the result has more than {MAX_RANK} dimensions")
    if any(isinstance(v, Computed) and v.size == 0 for v in results):
        raise Refusal("shape", "the result has no entries")
    if proto.op_type == "Constant" and isinstance(result, Fixed) and is_float(result.type):
        state.parameters += result.size
    return results


def _read_outputs(state: _Import, chosen: list[Any]) -> str | None:
    """The node whose value is the chosen output; None where there is a reason to refuse."""
    values: list[Computed] = []
    for info in chosen:
        value = state.values.get(info.name)
        where = f"output {info.name!r}"
        declared = info.type.tensor_type.elem_type
        if info.type.WhichOneof("value") not in (None, "tensor_type") or (declared and not is_float(declared)):
            what = type_name(declared) if declared else f"a {info.type.WhichOneof('value')}"
            state.refuse("outputs", where, f"it is declared as {what}, not as a floating-point tensor")
        elif isinstance(value, Refusal):
            state.reasons.append(Refusal("outputs", value.message).at(where))
        elif not is_float(elem_type := info.type.tensor_type.elem_type if value is None else value.type):
            if elem_type or value is not None:
                state.refuse("outputs", where, f"it is {type_name(elem_type)}, not a floating-point tensor")
        elif value is not None:
            try:
                values.append(_output(state, info.name, value))
            except Refusal as refusal:
                state.reasons.append(refusal.at(where))
    if state.reasons or len(values) != len(chosen):
        return None
    if len(values) == 1:
        return _shaped(state, chosen[0].name, values[0])
    bounds = np.cumsum([0, *(v.size for v in values)])
    positions = tuple(np.arange(a, b) for a, b in pairwise(bounds.tolist()))
    return state.builder.add("output", Concat(positions=positions), [v.node for v in values], (int(bounds[-1]),))


def _output(state: _Import, name: str, value: Value) -> Computed:
    node = Node(
        name=name,
        op_type="",
        opset=state.opset,
        attributes={},
        inputs=(),
        outputs=(),
        builder=state.builder,
        file=state.file,
    )
    return node.as_computed(value)


def _shaped(state: _Import, name: str, value: Computed) -> str:
    """The node of a value, with its shape; a node of its own where one tensor is needed in two shapes."""
    attributes = state.builder.graph.nodes[value.node]
    if attributes["shape"] == value.shape:
        return value.node
    if not isinstance(attributes["op"], Input):
        attributes["shape"] = value.shape
        return value.node
    return state.builder.add(name, Linear(map=identity(value.size)), [value.node], value.shape)
