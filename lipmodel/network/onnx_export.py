"""Network -> ONNX: the file that `Network.save` writes.

Every tensor of the file is a matrix of one row, so that flat vectors stay what they are; numbers are float32 where all
of them are float32 numbers and float64 otherwise; the same network always gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lipmodel.errors import LipmodelError
from lipmodel.network.conv import Conv, Pool, valid_counts
from lipmodel.network.graph import Network
from lipmodel.network.linear import Composition, Dense, Diagonal, LinearMap, Selection, Sparse, Sum, Transposed
from lipmodel.network.onnx_activations import OWN_DOMAIN
from lipmodel.network.onnx_file import FLOAT_TYPES
from lipmodel.network.ops import Add, Concat, Constant, Elementwise, Grouped, Input, Linear, Op, Product
from lipmodel.network.vector import LRN, LayerNormalization, RMSNormalization

if TYPE_CHECKING:
    from lipmodel.activations import Activation

Array = np.ndarray[Any, Any]

OPSET = 20
RMS_OPSET = 23
_IR_VERSION = 9
_MAX_DENSE = 10**7


def to_bytes(network: Network) -> bytes:
    """The ONNX file of a network; the file it was read from where there is one.

    Raises LipmodelError where a number of the network is known only up to a radius, and no file can hold it.
    """
    if network.model is not None:
        return network.model
    writer = _Writer(wide=not _fits_float32(network))
    for node in network.order():
        arguments = [writer.names[u] for u in network.arguments(node)]
        writer.names[node] = writer.write(node, network.op(node), arguments, network.size(node))
    result = writer.names[network.output]
    if network.output_shape != (1, network.output_size) or result not in writer.computed:
        result = writer.reshape(result, network.output_shape, "output")
    graph = helper.make_graph(
        writer.nodes,
        "network",
        [helper.make_tensor_value_info(writer.source, writer.type, network.input_shape)],
        [helper.make_tensor_value_info(result, writer.type, network.output_shape)],
        writer.weights,
    )
    domains = sorted({n.domain for n in writer.nodes if n.domain})
    model = helper.make_model(
        graph,
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", writer.opset), *(helper.make_opsetid(d, 1) for d in domains)],
        producer_name="lipmodel",
    )
    return bytes(model.SerializeToString(deterministic=True))


def parameters(model: bytes) -> int:
    """The number of floating-point weights in a file that `to_bytes` made."""
    weights = onnx.load_from_string(model).graph.initializer
    return sum(prod(t.dims) for t in weights if t.data_type in FLOAT_TYPES)


@dataclass(slots=True, kw_only=True, eq=False)
class _Writer:
    """The ONNX graph under construction; `names` maps nodes of the network to tensors of shape (1, size)."""

    wide: bool
    source: str = "input"
    names: dict[str, str] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    computed: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)

    @property
    def opset(self) -> int:
        """The first operator set that has all that is used, from `OPSET` on."""
        return RMS_OPSET if any(n.op_type == "RMSNormalization" for n in self.nodes) else OPSET

    @property
    def type(self) -> int:
        return int(TensorProto.DOUBLE if self.wide else TensorProto.FLOAT)

    def unique(self, name: str) -> str:
        count, candidate = 1, name
        while candidate in self.used:
            count += 1
            candidate = f"{name}#{count}"
        self.used.add(candidate)
        return candidate

    def emit(self, op_type: str, inputs: Sequence[str], name: str, domain: str = "", **attributes: Any) -> str:
        output = self.unique(name)
        node = helper.make_node(op_type, list(inputs), [output], name=output, domain=domain or None, **attributes)
        self.nodes.append(node)
        self.computed.add(output)
        return output

    def tensor(self, values: Array, name: str) -> str:
        """A weight: floating-point in the type of the file, integers as INT64."""
        key = self.unique(name)
        if values.dtype.kind == "f":
            values = values.astype(np.float64 if self.wide else np.float32)
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), key))
        return key

    def reshape(self, x: str, shape: tuple[int, ...], name: str) -> str:
        target = self.tensor(np.array(shape, dtype=np.int64), f"{name}.shape")
        return self.emit("Reshape", [x, target], name)

    def write(self, node: str, op: Op, arguments: list[str], size: int) -> str:
        if isinstance(op, Input):
            self.source = self.unique(node)
            return self.source if op.shape == (1, size) else self.reshape(self.source, (1, size), f"{node}.flat")
        if isinstance(op, Constant):
            return self.tensor(op.values.reshape(1, -1), node)
        if isinstance(op, Linear):
            return self.affine(op, arguments[0], node)
        if isinstance(op, Add):
            total = arguments[0]
            for other in arguments[1:]:
                total = self.emit("Add", [total, other], node)
            return total
        if isinstance(op, Concat):
            joined = self.emit("Concat", arguments, f"{node}.joined", axis=1)
            return self.gather(joined, np.argsort(np.concatenate(op.positions), kind="stable"), node)
        if isinstance(op, Elementwise):
            return self.activate(op, arguments[0], node)
        if isinstance(op, Product):
            return self.emit("Mul", arguments, node)
        if isinstance(op, Grouped):
            return self.group(op, arguments[0], node)
        raise LipmodelError(f"{type(op).__name__} ({node}) cannot be written as ONNX")

    def affine(self, op: Linear, x: str, name: str) -> str:
        if op.bias_radius is not None and np.any(op.bias_radius):
            raise _inexact(name)
        if isinstance(op.map, Dense):
            bias = [] if op.bias is None else [self.tensor(op.bias, f"{name}.bias")]
            return self.emit("Gemm", [x, self.tensor(op.map.weights, f"{name}.weight"), *bias], name, transB=1)
        y = self.apply(op.map, x, name)
        if op.bias is None:
            return y
        return self.emit("Add", [y, self.tensor(op.bias.reshape(1, -1), f"{name}.bias")], name)

    def apply(self, map: LinearMap, x: str, name: str) -> str:
        """map x."""
        if isinstance(map, Composition):
            for factor in reversed(map.factors):
                x = self.apply(factor, x, name)
            return x
        if isinstance(map, Sum):
            y = self.apply(map.terms[0], x, name)
            for term in map.terms[1:]:
                y = self.emit("Add", [y, self.apply(term, x, name)], name)
            return y
        if isinstance(map, Selection):
            return self.select(map, x, name)
        if isinstance(map, Diagonal) and not _rough(map.radius):
            return self.emit("Mul", [x, self.tensor(map.values.reshape(1, -1), f"{name}.factor")], name)
        if isinstance(map, Conv) and not _rough(map.radius):
            return self.convolve(map, x, name)
        if isinstance(map, Transposed) and isinstance(map.map, Conv) and not _rough(map.map.radius):
            return self.convolve_back(map.map, x, name)
        if isinstance(map, Pool):
            return self.pool(map, x, name)
        if isinstance(map, Dense):
            return self.emit("Gemm", [x, self.tensor(map.weights, f"{name}.weight")], name, transB=1)
        if isinstance(map, Sparse) and map.radius is None and prod(map.shape) <= _MAX_DENSE:
            return self.apply(Dense(weights=map.weights.toarray()), x, name)
        raise _inexact(name)

    def select(self, map: Selection, x: str, name: str) -> str:
        if np.any(map.index < 0):
            zero = self.tensor(np.zeros((1, 1)), f"{name}.zero")
            x = self.emit("Concat", [x, zero], f"{name}.padded", axis=1)
        return self.gather(x, np.where(map.index < 0, map.size, map.index), name)

    def gather(self, x: str, index: Array, name: str) -> str:
        return self.emit("Gather", [x, self.tensor(index.astype(np.int64), f"{name}.index")], name, axis=1)

    def convolve(self, map: Conv, x: str, name: str) -> str:
        inside = self.reshape(x, map.input_shape, f"{name}.tensor")
        kernel = self.tensor(map.kernel, f"{name}.kernel")
        attributes = _geometry(map, name)
        y = self.emit("Conv", [inside, kernel], f"{name}.convolved", group=map.groups, **attributes)
        return self.reshape(y, (1, map.shape[0]), name)

    def convolve_back(self, map: Conv, x: str, name: str) -> str:
        """The transposed convolution."""
        inside = self.reshape(x, map.output_shape, f"{name}.tensor")
        kernel = self.tensor(map.kernel, f"{name}.kernel")
        after, extra = [], []
        for (m, s, k, d), p, n in zip(map._axes(), map.pads, map._spatial, strict=True):
            rest = s * (m - 1) + (k - 1) * d + 1 - p - n
            after.append(max(rest, 0))
            extra.append(max(-rest, 0))
        y = self.emit(
            "ConvTranspose",
            [inside, kernel],
            f"{name}.convolved",
            group=map.groups,
            strides=list(map.strides),
            dilations=list(map.dilations),
            pads=[*map.pads, *after],
            output_padding=extra,
        )
        return self.reshape(y, (1, map.shape[1]), name)

    def pool(self, map: Pool, x: str, name: str) -> str:
        window = map.window
        attributes = _geometry(window, name)
        after = tuple(attributes["pads"][len(window.pads) :])
        include = np.array_equal(map.count, valid_counts(window, after))
        if not include and not np.array_equal(map.count, valid_counts(window)):
            raise LipmodelError(f"{name}: this average pooling cannot be written as ONNX")
        inside = self.reshape(x, window.input_shape, f"{name}.tensor")
        kernel = [int(k) for k in window.taps]
        y = self.emit(
            "AveragePool",
            [inside],
            f"{name}.pooled",
            kernel_shape=kernel,
            count_include_pad=int(include),
            **attributes,
        )
        return self.reshape(y, (1, map.shape[0]), name)

    def activate(self, op: Elementwise, x: str, name: str) -> str:
        if all(_slope(part.activation) is not None for part in op.parts) and len(op.parts) > 1:
            slopes = np.empty((1, op.size))
            for part in op.parts:
                slopes[0, part.index] = _slope(part.activation)
            return self.emit("PRelu", [x, self.tensor(slopes, f"{name}.slope")], name)
        if len(op.parts) == 1:
            return self.scalar(op.parts[0].activation, x, name)
        pieces = [
            self.scalar(part.activation, self.gather(x, part.index, f"{name}.part"), f"{name}.part")
            for part in op.parts
        ]
        joined = self.emit("Concat", pieces, f"{name}.joined", axis=1)
        order = np.argsort(np.concatenate([part.index for part in op.parts]), kind="stable")
        return self.gather(joined, order, name)

    def group(self, op: Grouped, x: str, name: str) -> str:
        """A function of vectors on the rows of a matrix."""
        params: dict[str, Any] = {f.name: getattr(op.function, f.name) for f in fields(op.function)}
        if any(float(np.float32(v)) != v for v in params.values()):
            raise LipmodelError(f"{name}: {op.function.label} cannot be written as ONNX")
        count, n = op.groups.shape
        shape = (count, n, 1, 1) if isinstance(op.function, LRN) else (count, n)
        ones = []
        if isinstance(op.function, LayerNormalization | RMSNormalization):
            ones = [self.tensor(np.ones(n), f"{name}.scale")]
        if not isinstance(op.function, LRN):
            params["axis"] = 1
        rows = self.reshape(self.gather(x, op.groups.ravel(), f"{name}.rows"), shape, f"{name}.matrix")
        y = self.emit(op.function.name, [rows, *ones], f"{name}.values", **params)
        y = self.reshape(y, (1, op.size), f"{name}.flat")
        return self.gather(y, np.argsort(op.groups.ravel(), kind="stable"), name)

    def scalar(self, activation: Activation, x: str, name: str) -> str:
        """The same activation on all of x."""
        params = dict(activation.params)
        slope = _slope(activation)
        if slope is not None and not _is_standard(activation):
            return self.emit("PRelu", [x, self.tensor(np.array([[slope]]), f"{name}.slope")], name)
        if activation.name == "Clip":
            limits = [(limit, float(params.get(limit, default))) for limit, default in _LIMITS]
            inputs = [self.tensor(np.array(v), f"{name}.{limit}") if np.isfinite(v) else "" for limit, v in limits]
            return self.emit("Clip", [x, *inputs] if inputs[1] else [x, *filter(None, inputs[:1])], name)
        if activation.name == "GeluTanh":
            return self.emit("Gelu", [x], name, approximate="tanh")
        if _is_standard(activation):
            attributes: dict[str, Any] = dict(params)
            return self.emit(activation.name, [x], name, **attributes)
        texts: dict[str, Any] = {key: float(v).hex() for key, v in params.items()}
        return self.emit(activation.name, [x], name, OWN_DOMAIN, expression=activation.expression, **texts)


_LIMITS = (("min", -np.inf), ("max", np.inf))


def _slope(activation: Activation) -> float | None:
    """The slope of a (parametric, leaky) rectifier on the negative side; None for other activations."""
    if activation.name == "Relu":
        return 0.0
    if activation.name in ("LeakyRelu", "PRelu"):
        ((_, slope),) = activation.params
        return float(slope)
    return None


def _is_standard(activation: Activation) -> bool:
    """Whether ONNX has the operator, and its attributes hold the parameters exactly (they are float32)."""
    try:
        schema = onnx.defs.get_schema(activation.name, OPSET, "")
    except onnx.defs.SchemaError:
        return False
    params = dict(activation.params)
    known = set(params) <= set(schema.attributes) and schema.max_input == 1
    return known and all(float(np.float32(v)) == v for v in params.values())


def _geometry(map: Conv, name: str) -> dict[str, Any]:
    after = []
    for m, s, k, d, p, n in zip(
        map.output_spatial, map.strides, map.taps, map.dilations, map.pads, map.input_shape[2:], strict=True
    ):
        reach = (k - 1) * d + 1
        q = max(0, (m - 1) * s + reach - p - n)
        if (n + p + q - reach) // s + 1 != m:
            raise LipmodelError(f"{name}: the windows of this convolution cannot be written as ONNX")
        after.append(q)
    ints = {"strides": map.strides, "dilations": map.dilations, "pads": (*map.pads, *after)}
    return {key: [int(v) for v in values] for key, values in ints.items()}


def _rough(radius: Array | None) -> bool:
    return radius is not None and bool(np.any(radius))


def _inexact(name: str) -> LipmodelError:
    return LipmodelError(
        f"{name}: its factors are not binary floats (batch normalisation, a division), or are too many, "
        "so that no ONNX file holds them exactly; keep the file that the network was read from"
    )


def _fits_float32(network: Network) -> bool:
    """Whether every number of the network is a float32 number."""
    for node in network.graph.nodes:
        op = network.op(node)
        arrays: list[Array] = []
        if isinstance(op, Constant):
            arrays = [op.values]
        elif isinstance(op, Linear):
            arrays = [*_numbers(op.map), *([] if op.bias is None else [op.bias])]
        elif isinstance(op, Elementwise):
            slopes = [_slope(part.activation) or 0.0 for part in op.parts]
            limits = [v for part in op.parts if part.activation.name == "Clip" for _, v in part.activation.params]
            arrays = [np.array([*slopes, *limits], dtype=np.float64)]
        with np.errstate(over="ignore"):
            if not all(np.array_equal(a.astype(np.float32), a) for a in arrays):
                return False
    return True


def _numbers(map: LinearMap) -> list[Array]:
    if isinstance(map, (Composition, Sum)):
        return [a for part in (map.factors if isinstance(map, Composition) else map.terms) for a in _numbers(part)]
    if isinstance(map, Dense):
        return [map.weights]
    if isinstance(map, Sparse):
        return [map.weights.data]
    if isinstance(map, Diagonal):
        return [map.values]
    if isinstance(map, Transposed):
        return _numbers(map.map)
    return [map.kernel] if isinstance(map, Conv) else []
