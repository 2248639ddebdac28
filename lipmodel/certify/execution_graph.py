"""The operators of an ONNX file as float32 arithmetic executes them on a box, node by node, exactly as they are stored.

Covered are chains, branches and residuals of affine operators and (leaky) ReLU. Everything else has no error bound that
the standard or IEEE 754 would give, and is refused by the name of its node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.certify import reader
from lipmodel.certify.execution_values import (
    Contract,
    Executed,
    Unfit,
    added,
    anywhere,
    contracted,
    exactly,
    gathered,
    negated,
    rectified,
    scaled,
)
from lipmodel.certify.operands import FLOAT, HOLDS, Node, tensor
from lipmodel.certify.operators import OPERATORS
from lipmodel.certify.operators_windows import padding
from lipmodel.certify.tape import Tape, Unreadable
from lipmodel.errors import Reason, RefusedInput
from lipmodel.spec import Box

if TYPE_CHECKING:
    from lipmodel.network.graph import Network

Array = np.ndarray[Any, Any]
Value = Executed | Array
"""A tensor, or a constant one as it is stored (float64 for float32 numbers, else integers)."""


def outputs(network: Network, box: Box) -> list[Executed]:
    """The outputs of a network and their execution for all float32 inputs in the box, in the order of the claim.

    Raises RefusedInput with every node that is not covered.
    """
    import onnx

    named, content = network.source, network.model
    label = named.path or "the network"
    if content is None and named.path is not None and Path(named.path).is_file():
        content = Path(named.path).read_bytes()
    if content is None:
        raise _refused(label, [_reason("", "the file that it was read from is not at hand")])
    if hashlib.sha256(content).hexdigest() != named.sha256:
        raise _refused(label, [_reason("", "its weights are in other files, or the file has changed")])
    model = onnx.ModelProto()
    model.ParseFromString(content)
    reasons: list[Reason] = []
    try:
        result = _run(model, box, named.graph_input, named.graph_output, reasons)
    except (Unfit, Unreadable) as error:
        reasons.append(_reason("", str(error)))
    if not reasons and sum(prod(x.shape) for x in result) != network.output_size:
        reasons.append(_reason("", "the outputs have another size than the importer finds"))
    if reasons:
        raise _refused(label, reasons)
    return result


def _refused(label: str, reasons: Sequence[Reason]) -> RefusedInput:
    return RefusedInput(label, list(reasons))


def _reason(where: str, message: str) -> Reason:
    return Reason(kind="float32", where=where, message=message, hint="leave out --float32 for the bound alone")


def _run(model: Any, box: Box, graph_input: Any, graph_output: Any, reasons: list[Reason]) -> list[Executed]:
    """The outputs; what stands in the way is added to the reasons, and then there are none."""
    graph = model.graph
    (opset,) = {e.version for e in model.opset_import if e.domain in ("", "ai.onnx")}
    stored = {t.name: t for t in graph.initializer}
    infos = {i.name: i for i in graph.input if i.name not in stored}
    values: dict[str, Value | None] = {}
    start = 0
    for name in reader.names(graph_input, list(infos)):
        shape = reader.shape(infos[name])
        if infos[name].type.tensor_type.elem_type != FLOAT:
            raise Unfit(f"the graph input {name!r} is not of type float32")
        ends = slice(start, start + prod(shape))
        x = anywhere(box.lo[ends], box.hi[ends])
        values[name] = gathered([x], np.arange(prod(shape)).reshape(shape))
        start = ends.stop
    wanted = reader.names(graph_output, [o.name for o in graph.output])

    def value(name: str) -> Value | None:
        if name not in values and name in stored:
            values[name] = _stored(stored[name])
        if name not in values:
            raise Unfit(f"the value of {name!r} is not known")
        return values[name]

    for where, node in reader.needed(graph, wanted, {*infos, *stored}):
        values[node.output[0]] = None
        try:
            inputs = [value(key) if key else None for key in node.input]
            if all(v is not None or not key for v, key in zip(inputs, node.input, strict=True)):
                values[node.output[0]] = _executed(node, where, opset, inputs)
        except (Unfit, Unreadable) as error:
            reasons.append(_reason(where, str(error)))
    if reasons:
        return []
    return [_known(value(name)) for name in wanted]


def _known(value: Value | None) -> Executed:
    """A tensor, of which a constant is one that is known exactly."""
    if value is None or isinstance(value, Executed):
        assert value is not None
        return value
    if value.dtype.kind != "f":
        raise Unfit("integers are computed with")
    return exactly(value)


def _stored(proto: Any) -> Array:
    import onnx

    if proto.data_type in HOLDS and proto.data_type != FLOAT:
        name = onnx.TensorProto.DataType.Name(proto.data_type)
        raise Unfit(f"the tensor {proto.name!r} is stored as {name}: what reads it is not executed in float32")
    return tensor(proto)


# ------------------------------------------------------------------------------------------------------- the operators


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Node:
    """One node: its inputs (None where one is left out) and its attributes with defaults."""

    name: str
    op: str
    opset: int
    inputs: tuple[Value | None, ...]
    attributes: dict[str, Any]

    def tensor(self, port: int) -> Executed:
        """An input that is a tensor."""
        return _known(self.inputs[port])

    def weights(self, port: int) -> Array:
        """An input that is stored in the file, as float32 numbers."""
        w = self.inputs[port]
        if isinstance(w, Executed):
            raise Unfit(f"{self.op} by numbers that are not stored in the file")
        if w is None or w.dtype.kind != "f":
            raise Unfit(f"{self.op} of integers")
        return w

    def pair(self) -> tuple[int, int]:
        """The ports of a tensor and of stored numbers that it is multiplied by."""
        return (0, 1) if not isinstance(self.inputs[1], Executed) else (1, 0)

    def given(self, port: int) -> bool:
        return port < len(self.inputs) and self.inputs[port] is not None


def _executed(node: Any, name: str, opset: int, inputs: Sequence[Value | None]) -> Value:
    if node.domain not in ("", "ai.onnx") or node.op_type not in HANDLERS:
        raise Unfit(f"the rounding errors of {node.op_type} are not covered")
    attributes = reader.attributes(node, opset)
    try:
        return HANDLERS[node.op_type](
            _Node(name=name, op=node.op_type, opset=opset, inputs=tuple(inputs), attributes=attributes)
        )
    except (ValueError, IndexError, TypeError, ArithmeticError, AssertionError) as error:
        raise Unfit(f"{node.op_type} is used in an unusual way ({error})") from None


def _layout(node: _Node) -> Value:
    """Operators that give entries another place or another shape: the checker's own reading of positions."""
    count = len(node.inputs) if node.op == "Concat" else 1
    data, rest = node.inputs[:count], node.inputs[count:]

    def moved(inputs: Sequence[Array | None]) -> Array:
        result = OPERATORS[node.op](Node(node.name, node.op, node.opset, tuple(inputs), node.attributes, Tape()))
        assert isinstance(result, np.ndarray)
        return result

    constants = [v for v in rest if not isinstance(v, Executed)]
    if len(constants) < len(rest):
        raise Unfit(f"{node.op} by numbers that are not stored in the file")
    if not any(isinstance(v, Executed) for v in data):
        return moved([*(v for v in data if not isinstance(v, Executed)), *constants])
    parts = [node.tensor(port) for port in range(count)]
    starts = np.cumsum([0, *(prod(part.shape) for part in parts)]).tolist()
    places = [np.arange(a, b).reshape(part.shape) for part, a, b in zip(parts, starts, starts[1:], strict=False)]
    return gathered(parts, moved([*places, *constants]))


def _sum(node: _Node) -> Value:
    terms = [node.tensor(port) for port in range(len(node.inputs))]
    if node.op == "Sub":
        terms[1] = negated(terms[1])
    result = terms[0]
    for term in terms[1:]:
        result = added(result, term)
    return result


def _times(node: _Node) -> Value:
    if node.op == "Neg":
        return negated(node.tensor(0))
    port, other = (0, 1) if node.op == "Div" else node.pair()
    return scaled(node.tensor(port), node.weights(other), divide=node.op == "Div")


def _matmul(node: _Node) -> Value:
    port, other = node.pair()
    contract: Contract = np.matmul if port == 0 else lambda x, w: np.matmul(w, x)
    return contracted(node.tensor(port), node.weights(other), contract)


def _gemm(node: _Node) -> Value:
    port, other = node.pair()
    turned = [bool(node.attributes[key]) for key in ("transA", "transB")]

    def contract(x: Array, w: Array) -> Array:
        a, b = (m.T if turn else m for m, turn in zip((x, w) if port == 0 else (w, x), turned, strict=True))
        product_: Array = a @ b
        return product_

    y = contracted(node.tensor(port), node.weights(other), contract, node.attributes["alpha"])
    if not node.given(2):
        return y
    c, beta = node.tensor(2), node.attributes["beta"]
    return added(y, c if beta == 1.0 else scaled(c, np.array(beta)))


def _conv(node: _Node) -> Value:
    x, w = node.tensor(0), node.weights(1)
    y = contracted(x, w, _convolution(node, x.shape, w.shape))
    if not node.given(2):
        return y
    return added(y, exactly(node.weights(2).reshape(-1, *[1] * (len(x.shape) - 2))))


def _convolution(node: _Node, x_shape: Sequence[int], w_shape: Sequence[int]) -> Contract:
    """The convolution (cross-correlation) of a node: (batch, channels, ...) with (filters, channels / group, ...)."""
    groups, each, taps = node.attributes["group"], w_shape[0] // node.attributes["group"], w_shape[2:]
    strides, dilations = (node.attributes[key] or [1] * len(taps) for key in ("strides", "dilations"))
    spans = [(k - 1) * d + 1 for k, d in zip(taps, dilations, strict=True)]
    operator = Node(node.name, node.op, node.opset, (), node.attributes, Tape())
    margins = list(zip(*padding(operator, x_shape[2:], spans, strides), strict=True))
    padded = [n + p + q for n, (p, q) in zip(x_shape[2:], margins, strict=True)]
    count = [(n - span) // s + 1 for n, span, s in zip(padded, spans, strides, strict=True)]

    def contract(x: Array, w: Array) -> Array:
        read, filters = np.pad(x, [(0, 0), (0, 0), *margins]), w.reshape(groups, each, w_shape[1], *taps)
        result = np.zeros((x_shape[0], groups, each, prod(count)), dtype=np.int64)
        for tap in product(*map(range, taps)):
            starts = [t * d for t, d in zip(tap, dilations, strict=True)]
            window = [slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, count, strides, strict=True)]
            index: Any = (..., *tap)
            met = read[(slice(None), slice(None), *window)].reshape(x_shape[0], groups, w_shape[1], -1)
            result += np.matmul(filters[index], met)
        return result.reshape(x_shape[0], w_shape[0], *count)

    return contract


def _relu(node: _Node) -> Value:
    slope = 0.0 if node.op == "Relu" else node.attributes["alpha"]
    if slope < 0.0:
        raise Unfit(f"{node.op} with a negative slope is not covered")
    return rectified(node.tensor(0), slope)


def _constant(node: _Node) -> Value:
    proto = node.attributes["value"]
    if proto is not None:
        return _stored(proto)
    result = OPERATORS["Constant"](Node(node.name, node.op, node.opset, (), node.attributes, Tape()))
    assert isinstance(result, np.ndarray)
    return result


HANDLERS: dict[str, Callable[[_Node], Value]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "Constant": _constant,
    **dict.fromkeys(("Add", "Sum", "Sub"), _sum),
    **dict.fromkeys(("Mul", "Div", "Neg"), _times),
    **dict.fromkeys(("Relu", "LeakyRelu"), _relu),
    **dict.fromkeys(
        ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Transpose", "Concat"),
        _layout,
    ),
}
