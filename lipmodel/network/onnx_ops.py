"""What handlers of ONNX operators see and return, and the registry of handlers.

A handler takes a `Node` and returns the value of its first output (or a list, one value per output). It adds primitive
operations to the graph, or raises a `Refusal` with the kind of reason and what was seen; the importer adds the place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NoReturn

import networkx as nx
import numpy as np
from onnx import TensorProto

from lipmodel.network.constants import Enclosed
from lipmodel.network.linear import LinearMap, Selection, identity
from lipmodel.network.onnx_file import FLOAT_TYPES, OnnxFile, Refusal, type_name
from lipmodel.network.ops import Constant, Elementwise, Linear, Op

Array = np.ndarray[Any, Any]

MAX_COMPUTED = 10**8
"""The largest number of entries of all computed tensors together."""
MAX_TENSOR = 10**7
"""The largest number of entries of one computed tensor."""
MAX_EXPANDED = 3 * 10**7
"""The largest number of entries of a matrix that an operator has to be expanded into."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Computed:
    """A tensor that a node of the graph computes; its shape may differ from the node's, never the order of entries."""

    node: str
    shape: tuple[int, ...]
    type: int

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def positions(self) -> Array:
        """The position of every entry in the flat vector, in the shape of the tensor."""
        return np.arange(self.size).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fixed:
    """A constant tensor: enclosed real numbers, or integers or booleans (an array in `whole`)."""

    type: int
    real: Enclosed | None = None
    whole: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.real.shape if self.real is not None else tuple(np.asarray(self.whole).shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def positions(self) -> Array:
        return np.arange(self.size).reshape(self.shape)

    def take(self, index: Array) -> Fixed:
        """The entries at `index` of the flattened tensor, in the shape of `index`."""
        if self.real is not None:
            return Fixed(type=self.type, real=self.real.take(index))
        return Fixed(type=self.type, whole=np.asarray(self.whole).ravel()[index])

    def reshaped(self, shape: tuple[int, ...]) -> Fixed:
        if self.real is not None:
            return Fixed(type=self.type, real=self.real.reshaped(shape))
        return Fixed(type=self.type, whole=np.asarray(self.whole).reshape(shape))


Value = Computed | Fixed


@dataclass(slots=True, kw_only=True, eq=False)
class Builder:
    """The graph under construction; shared: values that several handlers may want, by what they are."""

    graph: nx.MultiDiGraph = field(default_factory=nx.MultiDiGraph)
    computed: int = 0
    shared: dict[tuple[Any, ...], Computed] = field(default_factory=dict)

    def add(self, name: str, op: Op, arguments: Sequence[str], shape: tuple[int, ...]) -> str:
        """Add a node fed by `arguments` in port order; the key is `name`, made unique."""
        self.reserve(prod(shape))
        key, count = name, 1
        while key in self.graph:
            count += 1
            key = f"{name}#{count}"
        self.graph.add_node(key, op=op, shape=shape)
        for port, argument in enumerate(arguments):
            self.graph.add_edge(argument, key, key=port)
        return key

    def reserve(self, size: int) -> None:
        """Refuse, before anything is allocated, what the network would not fit in."""
        self.computed += size
        if size > MAX_TENSOR:
            raise Refusal("size-limit", f"a computed tensor of {size} entries; the limit is {MAX_TENSOR}")
        if self.computed > MAX_COMPUTED:
            raise Refusal("size-limit", f"the computed tensors have more than {MAX_COMPUTED} entries")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """One ONNX node as its handler sees it.

    attributes: checked against the operator's schema, with its defaults; inputs: None where an optional one is omitted;
    outputs: the names of the outputs ("" where one is not wanted).
    """

    name: str
    op_type: str
    opset: int
    attributes: dict[str, Any]
    inputs: tuple[Value | None, ...]
    outputs: tuple[str, ...]
    builder: Builder
    file: OnnxFile

    def refuse(self, kind: str, message: str, hint: str = "") -> NoReturn:
        raise Refusal(kind, message, hint)

    def has(self, port: int) -> bool:
        """Whether an optional input is given."""
        return port < len(self.inputs) and self.inputs[port] is not None

    def value(self, port: int) -> Value:
        """An input, constant or computed."""
        value = self.inputs[port] if port < len(self.inputs) else None
        if value is None:
            self.refuse("graph", f"input {port} is missing")
        return value

    def real(self, port: int) -> Value:
        """An input of a floating type."""
        value = self.value(port)
        if value.type not in FLOAT_TYPES:
            self.refuse(
                "dtype", f"input {port} is {type_name(value.type)}; only floating-point tensors are computed with"
            )
        return value

    def computed(self, port: int) -> Computed:
        """An input as a computed tensor; a constant becomes a node of the graph."""
        return self.as_computed(self.real(port))

    def fixed(self, port: int, what: str) -> Fixed:
        """An input that must be constant."""
        value = self.value(port)
        if isinstance(value, Computed):
            self.refuse("operator", f"the {what} is computed from the input; only a constant one is supported")
        return value

    def constant(self, port: int, what: str) -> Enclosed:
        """A constant input of a floating type."""
        fixed = self.fixed(port, what)
        if fixed.real is None:
            self.refuse("dtype", f"the {what} is {type_name(fixed.type)}, not a floating-point tensor")
        return fixed.real

    def scalar(self, port: int, what: str) -> float:
        """A constant input that is one floating-point number."""
        value = self.constant(port, what)
        if value.values.size != 1 or value.radius is not None:
            self.refuse("attribute", f"the {what} must be one stored number")
        return float(value.values.reshape(()))

    def integers(self, port: int, what: str) -> list[int]:
        """A constant input that is one integer or a list of them, of any integer type."""
        fixed = self.fixed(port, what)
        if fixed.whole is None or fixed.whole.dtype == np.bool_ or fixed.whole.ndim > 1:
            self.refuse(
                "attribute", f"the {what} must be a list of integers, not {type_name(fixed.type)} {fixed.shape}"
            )
        return [int(v) for v in fixed.whole.ravel()]

    def add(self, op: Op, arguments: Sequence[Computed], shape: tuple[int, ...], suffix: str = "") -> Computed:
        """Add an operation; the result has the widest type among its arguments."""
        key = self.builder.add(self.name + suffix, op, [a.node for a in arguments], shape)
        return Computed(node=key, shape=shape, type=widest(*(a.type for a in arguments)))

    def linear(
        self,
        x: Computed,
        map: LinearMap,
        shape: tuple[int, ...],
        bias: Enclosed | None = None,
        suffix: str = "",
    ) -> Computed:
        """Add y = map x + bias."""
        op = (
            Linear(map=map) if bias is None else Linear(map=map, bias=flat(bias.values), bias_radius=_flat(bias.radius))
        )
        return self.add(op, [x], shape, suffix)

    def elementwise(self, x: Computed, op: Elementwise) -> Computed:
        return self.add(op, [x], x.shape)

    def select(self, x: Computed, index: Array, suffix: str = "") -> Computed:
        """The entries of x at `index`, in the shape of `index`."""
        if index.size == x.size and np.array_equal(index.ravel(), np.arange(x.size)):
            return Computed(node=x.node, shape=tuple(index.shape), type=x.type)
        return self.linear(x, Selection(index=index.ravel(), size=x.size), tuple(index.shape), suffix=suffix)

    def broadcast(self, x: Computed, shape: tuple[int, ...], suffix: str = ".broadcast") -> Computed:
        """x repeated to a larger shape."""
        if prod(shape) == x.size:
            return Computed(node=x.node, shape=shape, type=x.type)
        self.builder.reserve(prod(shape))
        return self.select(x, np.broadcast_to(x.positions, shape), suffix)

    def as_computed(self, value: Value) -> Computed:
        """The value as a node of the graph."""
        if isinstance(value, Computed):
            return value
        if value.real is None:
            self.refuse("dtype", f"{type_name(value.type)} tensors are not computed with")
        op = Constant(values=flat(value.real.values))
        node = self.builder.add(f"{self.name}.constant", op, [], value.shape)
        result = Computed(node=node, shape=value.shape, type=value.type)
        if value.real.radius is None:
            return result
        bias = Enclosed(values=np.zeros(value.shape), radius=value.real.radius)
        return self.linear(result, identity(value.size), value.shape, bias, ".constant")


Handler = Callable[[Node], Value | Sequence[Value | None]]

OPERATORS: dict[tuple[str, str], Handler] = {}
"""The handlers, by operator type ("*" for all others) and domain ("" is the domain of ONNX itself)."""


def register_operator(op_type: str, domain: str = "") -> Callable[[Handler], Handler]:
    """Decorator: make a function the handler of an ONNX operator, in place of any earlier one.

    A file with an operator that no runtime knows cannot be compared with a run of it: `load` it with check=False.
    """

    def register(handler: Handler) -> Handler:
        OPERATORS[op_type, domain] = handler
        return handler

    return register


def flat(values: Array) -> Array:
    """A contiguous flat float64 copy."""
    return np.array(values, dtype=np.float64).ravel()


def _flat(values: Array | None) -> Array | None:
    return None if values is None else flat(values)


_WIDTH = {TensorProto.BFLOAT16: 0, TensorProto.FLOAT16: 1, TensorProto.FLOAT: 2, TensorProto.DOUBLE: 3}


def widest(*types: int) -> int:
    """The widest of some floating types: what mixed types are promoted to."""
    return max(types, key=lambda t: _WIDTH[t])


def is_float(type: int) -> bool:
    return type in FLOAT_TYPES


def broadcast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that tensors of these shapes are repeated to; a Refusal where there is none."""
    try:
        result = np.broadcast_shapes(*shapes)
    except ValueError:
        raise Refusal("shape", f"shapes {' and '.join(map(str, shapes))} do not broadcast") from None
    if prod(result) > MAX_TENSOR:
        raise Refusal("size-limit", f"a computed tensor of shape {result}; the limit is {MAX_TENSOR} entries")
    return tuple(int(d) for d in result)


def axis_of(axis: int, rank: int) -> int:
    """A possibly negative axis, made nonnegative; a Refusal where there is no such axis."""
    if not -rank <= axis < rank:
        raise Refusal("attribute", f"there is no axis {axis} in a tensor of {rank} dimensions")
    return axis % rank
