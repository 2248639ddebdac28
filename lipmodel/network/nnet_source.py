"""NNet files: the text format of the ACAS Xu networks (Julian 2016, github.com/sisl/NNet), relu chains in decimals.

The weights are about normalised inputs, and the file adds the means and ranges that lead there. The Lipschitz constant
in physical units is another one, by factors of thousands, so somebody has to say which is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lipmodel.errors import Reason, RefusedInput, UsageError

Array = np.ndarray[Any, Any]

MAX_BYTES = 2**29


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NNet:
    """weights: W_k of shape (n_k, n_{k-1}); biases: b_k; means, ranges: of every input, then of all outputs."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    means: Array
    ranges: Array

    @property
    def is_normalised(self) -> bool:
        """Whether the file says anything about a normalisation."""
        return bool(np.any(self.means != 0.0) or np.any(self.ranges != 1.0))


def read_nnet(path: Path) -> NNet:
    """Parse a file. Raises RefusedInput (file-format, non-finite, size-limit)."""

    def refuse(message: str, kind: str = "file-format", where: str = "") -> RefusedInput:
        return RefusedInput(str(path), [Reason(kind=kind, where=where, message=message)])

    try:
        if path.stat().st_size > MAX_BYTES:
            raise refuse(f"the file is larger than {MAX_BYTES >> 20} MiB", "size-limit")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise refuse("this is not an NNet file: it is not text") from None
    lines: list[tuple[int, list[float]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        plain = line.strip()
        if len(lines) == 2 and plain and not plain.startswith("//"):
            lines.append((number, []))  # a line that all readers skip, whatever it says
        elif plain and not plain.startswith("//"):
            try:
                lines.append((number, [float(v) for v in plain.rstrip(",").split(",")]))
            except ValueError:
                raise refuse("there is something else than numbers", where=f"line {number}") from None
    if len(lines) < 7:
        raise refuse("this is not an NNet file: it has fewer than 7 lines of numbers")
    sizes = [int(v) for v in lines[1][1]]
    if len(sizes) != int(lines[0][1][0]) + 1 or len(sizes) < 2 or min(sizes) < 1:
        raise refuse(f"{lines[0][1][0]:.0f} layers with the sizes {sizes}", where=f"line {lines[1][0]}")
    rows = [(n, m) for m, n in pairwise(sizes)]
    if len(lines) != 7 + 2 * sum(n for n, _ in rows):
        raise refuse(f"{len(lines)} lines of numbers where {7 + 2 * sum(n for n, _ in rows)} are needed")
    at = 7
    weights: list[Array] = []
    biases: list[Array] = []
    for n, m in rows:
        for count, width, into in ((n, m, weights), (n, 1, biases)):
            block = lines[at : at + count]
            wrong = next((number for number, values in block if len(values) != width), None)
            if wrong is not None:
                raise refuse(f"{width} numbers are needed", where=f"line {wrong}")
            into.append(np.array([values for _, values in block]))
            at += count
    means, ranges = _normalisation(lines[5][1], lines[6][1], sizes[0])
    found = NNet(weights=tuple(weights), biases=tuple(b[:, 0] for b in biases), means=means, ranges=ranges)
    numbers = [*found.weights, *found.biases, found.means, found.ranges]
    if not all(np.all(np.isfinite(v)) for v in numbers) or not np.all(ranges > 0.0):
        raise refuse("a number is NaN or infinite, or a range is not positive", "non-finite")
    return found


def _normalisation(means: list[float], ranges: list[float], inputs: int) -> tuple[Array, Array]:
    """Means and ranges of the inputs and of the outputs; none where the lines only hold a place."""
    if len(means) == len(ranges) == inputs + 1:
        return np.array(means), np.array(ranges)
    return np.zeros(inputs + 1), np.ones(inputs + 1)


def onnx_of(nnet: NNet, *, physical: bool) -> Any:
    """The ONNX model of the network itself, or, `physical`, with the normalisation of inputs and outputs around it."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    tensors: list[Any] = []
    last = "input"

    def then(op: str, name: str, *constants: Array, **attributes: Any) -> None:
        nonlocal last
        inputs = [last]
        for k, values in enumerate(constants):
            tensors.append(numpy_helper.from_array(np.asarray(values, dtype=np.float64), f"{name}.{k}"))
            inputs.append(f"{name}.{k}")
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        last = name

    inputs = nnet.weights[0].shape[1]
    if physical:
        then("Sub", "centred", nnet.means[None, :inputs])
        then("Div", "normalised", nnet.ranges[None, :inputs])
    for k, (weight, bias) in enumerate(zip(nnet.weights, nnet.biases, strict=True), start=1):
        then("Gemm", f"layer{k}", weight, bias, transB=1)
        if k < len(nnet.weights):
            then("Relu", f"activation{k}")
    if physical:
        then("Mul", "scaled", nnet.ranges[None, inputs:])
        then("Add", "shifted", nnet.means[None, inputs:])
    outputs = nnet.weights[-1].shape[0]
    graph = helper.make_graph(
        nodes,
        "nnet",
        [helper.make_tensor_value_info("input", TensorProto.DOUBLE, [1, inputs])],
        [helper.make_tensor_value_info(last, TensorProto.DOUBLE, [1, outputs])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="lipmodel")
