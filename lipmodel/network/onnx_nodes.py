"""The nodes of an ONNX file before any handler sees them: names, order, schemas, attributes, words for refusals."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
from onnx import AttributeProto

from lipmodel.errors import Reason
from lipmodel.network.onnx_file import Refusal


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_DISCONTINUOUS = _words(
    "And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil DynamicQuantizeLinear "
    "Equal Floor Greater GreaterOrEqual Hardmax IsInf IsNaN Less LessOrEqual Mod NonMaxSuppression "
    "NonZero Not OneHot Or QuantizeLinear Round Sign TreeEnsemble TreeEnsembleClassifier "
    "TreeEnsembleRegressor Unique Xor"
)
_UNBOUNDED = _words("Acos Acosh Asin Atanh Cosh Log Pow Reciprocal Sinh Sqrt Tan")

_FIELDS = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
}
_BESIDES = frozenset({"name", "type", "doc_string", "ref_attr_name"})
"""Fields of an attribute that are no values."""


def label(node: Any, index: int) -> str:
    """How messages name a node."""
    name = f"node {node.name!r}" if node.name else f"node {index}"
    output = next((o for o in node.output if o), None)
    return f"{name} ({node.op_type}{f' to {output!r}' if output and not node.name else ''})"


def is_standard(domain: str) -> bool:
    return domain in ("", "ai.onnx")


def plain(domain: str) -> str:
    """The domain, the two names of the standard one made the same."""
    return "" if is_standard(domain) else domain


def broadcasts_along_axis(node: Any) -> bool:
    """Whether a node of an operator set before 7 aligns shapes in the way that was given up then."""
    names = {attribute.name for attribute in node.attribute}
    return {"axis", "broadcast"} <= names


def unsupported(node: Any, functions: frozenset[tuple[str, str]]) -> Refusal:
    """Why a node that no handler is registered for is refused."""
    name = node.op_type if is_standard(node.domain) else f"{node.domain}::{node.op_type}"
    if (plain(node.domain), node.op_type) in functions:
        return Refusal("function", f"{name} is a function of the model", "inline the functions")
    if is_standard(node.domain):
        return unsupported_operator(node.op_type)
    if node.domain == "ai.onnx.ml" and node.op_type in _DISCONTINUOUS:
        return Refusal("non-lipschitz", f"{name} is discontinuous")
    return Refusal("operator", f"the operator {name} is not supported")


def unsupported_operator(name: str) -> Refusal:
    """Why a standard operator is refused, on a tensor that varies."""
    if name in _CONTROL_FLOW:
        return Refusal("control-flow", f"{name} is control flow")
    if name in _RANDOM:
        return Refusal("stochastic", f"{name} is random")
    if name in _DISCONTINUOUS:
        return Refusal("non-lipschitz", f"{name} is discontinuous")
    if name in _UNBOUNDED:
        return Refusal("non-lipschitz", f"{name} has no global Lipschitz constant, and is not supported on a domain")
    return Refusal("operator", f"the operator {name} is not supported")


def attributes(node: Any, opset: int) -> dict[str, Any]:
    """The attributes of a standard operator, checked against its schema, with the defaults of that schema.

    Raises Refusal (operator, attribute, graph) where the operator set has no such operator, an attribute is unknown,
    repeated, missing or of another type, or the numbers of inputs and outputs do not fit.
    """
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        raise Refusal("operator", f"operator set {opset} has no operator {node.op_type}") from None
    _check_arity(node, schema)
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        expected = schema.attributes.get(attribute.name)
        if expected is None:
            raise Refusal("attribute", f"{node.op_type} has no attribute {attribute.name!r}")
        if attribute.name in found:
            raise Refusal("attribute", f"the attribute {attribute.name!r} is repeated")
        if attribute.type != int(expected.type) or attribute.ref_attr_name:
            raise Refusal("attribute", f"the attribute {attribute.name!r} has not the type {expected.type.name}")
        found[attribute.name] = _value(attribute)
    for name, expected in schema.attributes.items():
        if name not in found:
            if expected.required:
                raise Refusal("attribute", f"the attribute {name!r} is missing")
            default = expected.default_value
            found[name] = _value(default) if default.name else None
    return found


def raw_attributes(node: Any) -> dict[str, Any]:
    """The attributes of an operator without a schema."""
    return {attribute.name: _value(attribute) for attribute in node.attribute}


def _value(attribute: Any) -> Any:
    field = _FIELDS.get(attribute.type)
    if field is not None and not attribute.HasField(field):
        raise Refusal("attribute", f"the attribute {attribute.name!r} has no value")
    if len({descriptor.name for descriptor, _ in attribute.ListFields()} - _BESIDES) > 1:
        raise Refusal("attribute", f"the attribute {attribute.name!r} has values of several types")
    value = onnx.helper.get_attribute_value(attribute)
    numbers: Sequence[float] = ()
    if attribute.type == AttributeProto.FLOAT:
        numbers = (value,)
    elif attribute.type == AttributeProto.FLOATS:
        numbers = value = list(value)
    elif attribute.type == AttributeProto.INTS:
        value = [int(v) for v in value]
    elif attribute.type == AttributeProto.STRING:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise Refusal("attribute", f"the attribute {attribute.name!r} is not text") from None
    if any(v != v or abs(v) == float("inf") for v in numbers):
        raise Refusal("non-finite", f"the attribute {attribute.name!r} is not finite")
    return value


def _check_arity(node: Any, schema: Any) -> None:
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise Refusal("graph", f"{node.op_type} does not take {len(node.input)} inputs")
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise Refusal("graph", f"{node.op_type} does not give {len(node.output)} outputs")
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    for port, name in enumerate(node.output):
        if not name and schema.outputs[min(port, len(schema.outputs) - 1)].option == variadic:
            # a part of a list has no default, and onnxruntime writes to where it should be
            raise Refusal("graph", f"output {port} of {node.op_type} has no name")
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for port, name in enumerate(node.input):
        formal = schema.inputs[min(port, len(schema.inputs) - 1)]
        if not name and formal.option != optional:
            raise Refusal("graph", f"the input {formal.name!r} of {node.op_type} is missing")


def check_names(graph: Any) -> list[Reason]:
    """What is wrong with the names of tensors: defined twice, or never."""
    reasons: list[Reason] = []
    defined: set[str] = set()
    weights: set[str] = set()

    def define(name: str, where: str, known: set[str]) -> None:
        if name in known:
            reasons.append(Reason(kind="graph", where=where, message=f"the tensor {name!r} is defined twice"))
        known.add(name)
        defined.add(name)

    for name in [*(t.name for t in graph.initializer), *(t.values.name for t in graph.sparse_initializer)]:
        define(name, "initializers", weights)
    inputs: set[str] = set()
    for info in graph.input:
        define(info.name, "graph inputs", inputs)
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            define(name, label(node, index), defined)
    for index, node in enumerate(graph.node):
        for name in dict.fromkeys(filter(None, node.input)):
            if name not in defined:
                message = f"the input {name!r} is not defined anywhere"
                reasons.append(Reason(kind="graph", where=label(node, index), message=message))
    for info in graph.output:
        if info.name not in defined:
            reasons.append(Reason(kind="graph", where=f"output {info.name!r}", message="it is not defined anywhere"))
    return reasons


def needed(graph: Any, outputs: Iterable[str]) -> list[int]:
    """The indices of the nodes that some outputs depend on, in an order in which they can be computed.

    Keeps the order of the file where that is possible. Raises Refusal (graph) where there is a cycle.
    """
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    stack, keep = [producer[name] for name in outputs if name in producer], set[int]()
    while stack:
        i = stack.pop()
        if i not in keep:
            keep.add(i)
            stack.extend(producer[name] for name in graph.node[i].input if name in producer)
    waiting: dict[int, int] = {}
    users: dict[int, list[int]] = {i: [] for i in keep}
    for i in keep:
        before = {producer[name] for name in graph.node[i].input if name in producer}
        waiting[i] = len(before)
        for j in before:
            users[j].append(i)
    ready = [i for i in keep if waiting[i] == 0]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for j in users[i]:
            waiting[j] -= 1
            if waiting[j] == 0:
                heapq.heappush(ready, j)
    if len(order) != len(keep):
        cyclic = sorted(keep.difference(order))
        names = ", ".join(label(graph.node[i], i) for i in cyclic[:10])
        raise Refusal("graph", f"{len(cyclic)} nodes are on a cycle or behind one: {names}")
    return order
