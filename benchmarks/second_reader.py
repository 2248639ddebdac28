"""Chains read from ONNX files with the onnx package alone, in rationals: what the second opinion is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from flint import fmpq, fmpq_mat
from onnx import numpy_helper

WIDEST = 1000
"""Entries of a tensor up to which a network is read: its matrices are dense."""


class NotAChainError(Exception):
    """The network is none that the second opinion reads."""


@dataclass(frozen=True, slots=True)
class Layer:
    """w = phi(M z + c), phi with slopes in [alpha, beta]; the last layer has no phi.

    present: where M is not zero by stored zeros, of the product of several matrices before it is multiplied out.
    """

    matrix: fmpq_mat
    offset: fmpq_mat
    present: np.ndarray[Any, np.dtype[np.bool_]]
    name: str = ""
    alpha: fmpq = field(default_factory=fmpq)
    beta: fmpq = field(default_factory=fmpq)


def exact(x: Any) -> fmpq:
    return fmpq(*float(x).as_integer_ratio())


def matrix_of(a: np.ndarray[Any, Any]) -> fmpq_mat:
    return fmpq_mat(a.shape[0], a.shape[1], [exact(x) for x in a.ravel().tolist()])


def nonzero(m: fmpq_mat) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where the entries of a matrix are not zero."""
    return np.array([[x != 0 for x in line] for line in m.tolist()], dtype=bool).reshape(m.nrows(), m.ncols())


def identity(n: int) -> fmpq_mat:
    """Raises NotAChainError where that would be a matrix of millions of rationals."""
    if n > WIDEST:
        raise NotAChainError(f"more than {WIDEST} entries in a tensor")
    return matrix_of(np.eye(n))


SLOPES: dict[str, tuple[fmpq, fmpq]] = {
    "Relu": (fmpq(0), fmpq(1)),
    "Tanh": (fmpq(0), fmpq(1)),
    "Sigmoid": (fmpq(0), fmpq(1, 4)),
}
SHAPING = {"Flatten", "Identity", "Reshape", "Dropout", "Squeeze", "Unsqueeze"}


def read_chain(path: Path) -> list[Layer]:
    """The layers of a network that is one path of affine layers and activations. Raises NotAChainError."""
    graph = onnx.load(path).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and [a.name for a in node.attribute] == ["value"]:
            stored[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    inputs = [i for i in graph.input if i.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise NotAChainError("several inputs or outputs")
    dims = inputs[0].type.tensor_type.shape.dim
    if any(d.dim_value <= 0 for d in dims[1:]) or not dims:
        raise NotAChainError("an input of unknown shape")
    shape = tuple(d.dim_value if d.dim_value > 0 else 1 for d in dims)
    n = int(np.prod(shape))
    current, matrix, offset, present, layers = inputs[0].name, identity(n), fmpq_mat(n, 1), np.eye(n, dtype=bool), []
    while current != graph.output[0].name:
        readers = [node for node in graph.node if current in node.input]
        if len(readers) != 1 or list(readers[0].input).count(current) != 1:
            raise NotAChainError("branches")
        node = readers[0]
        others = [stored[name] for name in node.input if name != current and name in stored]
        if len(others) + 1 != sum(name != "" for name in node.input):
            raise NotAChainError(f"{node.op_type} of data")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in SLOPES or node.op_type == "LeakyRelu":
            low, high = SLOPES.get(node.op_type, (fmpq(0), fmpq(1)))
            if node.op_type == "LeakyRelu":
                a = exact(np.float32(attributes.get("alpha", 0.01)))
                low, high = min(a, fmpq(1)), max(a, fmpq(1))
            if low == high:
                raise NotAChainError("an activation that is linear")
            layers.append(Layer(matrix, offset, present, node.op_type, low, high))
            n = int(np.prod(shape))
            matrix, offset, present = identity(n), fmpq_mat(n, 1), np.eye(n, dtype=bool)
        elif node.op_type in SHAPING:
            shape = _reshaped(node, shape, others, attributes)
        else:
            m, c, shape = _affine(node, current, shape, others, attributes)
            if m is None:
                offset = offset + c
            else:
                matrix, offset, present = m * matrix, m * offset + c, nonzero(m) @ present
        current = node.output[0]
    return [*layers, Layer(matrix, offset, present)]


def _reshaped(node: Any, shape: tuple[int, ...], others: list[Any], attributes: dict[str, Any]) -> tuple[int, ...]:
    size = int(np.prod(shape))
    if node.op_type in ("Identity", "Dropout"):
        return shape
    if node.op_type == "Flatten":
        axis = attributes.get("axis", 1)
        return int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))
    if node.op_type == "Reshape":
        wanted = [int(d) for d in (others[0] if others else attributes["shape"])]
        wanted = [shape[k] if d == 0 else d for k, d in enumerate(wanted)]
        known = int(np.prod([d for d in wanted if d >= 0]))
        return tuple(size // known if d < 0 else d for d in wanted)
    axes = [int(d) for d in (others[0] if others else attributes.get("axes", []))]
    dummy = np.zeros(shape)
    if node.op_type == "Unsqueeze":
        return np.expand_dims(dummy, tuple(axes)).shape
    return np.squeeze(dummy, tuple(axes) or None).shape


def _affine(
    node: Any, current: str, shape: tuple[int, ...], others: list[Any], attributes: dict[str, Any]
) -> tuple[fmpq_mat | None, fmpq_mat, tuple[int, ...]]:
    """(M, c, shape) of x -> M x + c; None for the identity. Raises NotAChainError."""
    first = node.input[0] == current
    size = int(np.prod(shape))
    zero = fmpq_mat(size, 1)
    if node.op_type in ("Add", "Sub", "Mul", "Div") and len(others) == 1:
        constant = np.asarray(others[0], dtype=np.float64)
        if np.broadcast_shapes(shape, constant.shape) != shape or not np.all(np.isfinite(constant)):
            raise NotAChainError(f"{node.op_type} with a constant of another shape")
        values = [exact(x) for x in np.broadcast_to(constant, shape).ravel().tolist()]
        if node.op_type in ("Add", "Sub"):
            if node.op_type == "Sub" and not first:
                raise NotAChainError("a constant less the data")
            sign = 1 if node.op_type == "Add" else -1
            return None, fmpq_mat(size, 1, [sign * v for v in values]), shape
        if node.op_type == "Div" and (not first or any(v == 0 for v in values)):
            raise NotAChainError("a quotient")
        scaled = identity(size)
        for k, v in enumerate(values):
            scaled[k, k] = v if node.op_type == "Mul" else 1 / v
        return scaled, zero, shape
    if node.op_type == "MatMul":
        w = np.asarray(others[0], dtype=np.float64)
        if not first or w.ndim != 2 or int(np.prod(shape[:-1])) != 1 or shape[-1] != w.shape[0]:
            raise NotAChainError("a MatMul that is no layer")
        return matrix_of(w.T), fmpq_mat(w.shape[1], 1), (*shape[:-1], w.shape[1])
    if node.op_type == "Gemm":
        w = np.asarray(others[0], dtype=np.float64)
        w = w if attributes.get("transB", 0) else w.T
        if not first or attributes.get("transA", 0) or len(shape) != 2 or shape[0] != 1 or shape[1] != w.shape[1]:
            raise NotAChainError("a Gemm that is no layer")
        c = np.zeros((1, len(w))) if len(others) == 1 else np.asarray(others[1], dtype=np.float64)
        bias = np.broadcast_to(c, (1, len(w))).ravel()
        one, two = (exact(np.float32(attributes.get(key, 1.0))) for key in ("alpha", "beta"))
        m = matrix_of(w)
        return (m if one == 1 else m * one), fmpq_mat(len(w), 1, [two * exact(x) for x in bias.tolist()]), (1, len(w))
    raise NotAChainError(f"the operator {node.op_type}")
