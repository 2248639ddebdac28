"""The primitive operations of a network, on flat float64 vectors in C order (or columns of them).

Whatever an ONNX file says comes down to these eight. Each knows its output size and evaluates itself in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.network.linear import LinearMap

if TYPE_CHECKING:
    from lipmodel.activations import Activation
    from lipmodel.network.vector import VectorFunction

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Op:
    """One primitive operation; the ports of its inputs are numbered 0, 1, ..."""

    def output_size(self, input_sizes: Sequence[int]) -> int:
        """The number of outputs; raises ValueError where the operation does not take inputs of these sizes."""
        raise NotImplementedError

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        """The value of the operation in floating point; inputs of shape (n,), or (n, k) for k vectors at once."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Input(Op):
    """The one input node of a network: the chosen graph inputs, flattened and concatenated."""

    shape: tuple[int, ...]

    def output_size(self, input_sizes: Sequence[int]) -> int:
        _require(len(input_sizes) == 0, "an Input takes no inputs")
        return int(np.prod(self.shape, dtype=np.int64))

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        raise ValueError("the value of an Input is given by the caller")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constant(Op):
    """A tensor that does not depend on the input (a graph input held fixed, a constant), shape (n,)."""

    values: Array

    def output_size(self, input_sizes: Sequence[int]) -> int:
        _require(len(input_sizes) == 0, "a Constant takes no inputs")
        return len(self.values)

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        return self.values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linear(Op):
    """y = M x + b, with |b - bias| <= bias_radius entrywise (both shape (m,); None means zero)."""

    map: LinearMap
    bias: Array | None = None
    bias_radius: Array | None = None

    def output_size(self, input_sizes: Sequence[int]) -> int:
        m, n = self.map.shape
        _require(tuple(input_sizes) == (n,), f"a Linear of shape {(m, n)} cannot take inputs of sizes {input_sizes}")
        _require(self.bias is None or len(self.bias) == m, f"a bias of {m} entries is needed")
        return m

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        y = self.map.matvec(inputs[0])
        return y if self.bias is None else _spread(y, self.bias)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Add(Op):
    """The sum of two or more inputs of equal sizes."""

    def output_size(self, input_sizes: Sequence[int]) -> int:
        _require(len(input_sizes) >= 2, "an Add takes two inputs or more")
        _require(len(set(input_sizes)) == 1, f"an Add cannot take inputs of sizes {input_sizes}")
        return input_sizes[0]

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        y = inputs[0]
        for x in inputs[1:]:
            y = _spread(y, x)
        return y


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Concat(Op):
    """Its inputs side by side: entry i of input `port` is entry positions[port][i] of the output."""

    positions: tuple[Array, ...]

    def output_size(self, input_sizes: Sequence[int]) -> int:
        sizes = tuple(len(p) for p in self.positions)
        _require(tuple(input_sizes) == sizes, f"a Concat of {sizes} entries cannot take inputs of sizes {input_sizes}")
        return sum(sizes)

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        widths = np.broadcast_shapes(*(np.shape(x)[1:] for x in inputs))
        y = np.empty((sum(len(p) for p in self.positions), *widths))
        for position, x in zip(self.positions, inputs, strict=True):
            y[position] = x if len(widths) == np.ndim(x) - 1 else x[:, None]
        return y


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One activation and the entries that it acts on."""

    activation: Activation
    index: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Elementwise(Op):
    """Scalar activations, entry by entry; the indices of the parts partition range(size)."""

    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return sum(len(part.index) for part in self.parts)

    def output_size(self, input_sizes: Sequence[int]) -> int:
        _require(
            tuple(input_sizes) == (self.size,), f"{self.size} activations cannot take inputs of sizes {input_sizes}"
        )
        return self.size

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        (x,) = inputs
        y = np.empty_like(x)
        for part in self.parts:
            y[part.index] = part.activation(x[part.index])
        return y


def elementwise(activation: Activation, size: int) -> Elementwise:
    """The same activation on every one of `size` entries."""
    return Elementwise(parts=(Part(activation=activation, index=np.arange(size)),))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grouped(Op):
    """A function of vectors, the same on every group of entries; groups: positions, shape (count, n), a partition."""

    function: VectorFunction
    groups: Array

    @property
    def size(self) -> int:
        return int(self.groups.size)

    def output_size(self, input_sizes: Sequence[int]) -> int:
        _require(tuple(input_sizes) == (self.size,), f"{self.size} entries in groups cannot be {input_sizes}")
        return self.size

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        return self.apply(self.function.value, inputs[0])

    def apply(self, function: Callable[..., Array], *columns: Array) -> Array:
        """A function of arrays of shape (groups, n, points), on flat vectors (size,) or columns (size, points)."""
        parts = [x[self.groups] if x.ndim == 2 else x[self.groups][:, :, None] for x in columns]
        y = np.empty((self.size, max(part.shape[2] for part in parts)))
        y[self.groups] = function(*parts)
        return y if any(x.ndim == 2 for x in columns) else y[:, 0]

    def labels(self) -> Array:
        """The number of the group of every entry, shape (size,)."""
        found = np.empty(self.size, dtype=np.int64)
        found[self.groups] = np.arange(len(self.groups))[:, None]
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product(Op):
    """The product of two inputs of equal sizes, entry by entry."""

    def output_size(self, input_sizes: Sequence[int]) -> int:
        same = len(input_sizes) == 2 and input_sizes[0] == input_sizes[1]
        _require(same, f"a Product cannot take inputs of sizes {input_sizes}")
        return input_sizes[0]

    def evaluate(self, inputs: Sequence[Array]) -> Array:
        x, y = inputs
        return np.asarray((x[:, None] if x.ndim < y.ndim else x) * (y[:, None] if y.ndim < x.ndim else y))


def _spread(x: Array, y: Array) -> Array:
    """x + y, where one of them may be a vector that is added to every column."""
    if x.ndim < y.ndim:
        x = x[:, None]
    elif y.ndim < x.ndim:
        y = y[:, None]
    return np.asarray(x + y)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
