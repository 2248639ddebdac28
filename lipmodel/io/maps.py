"""Linear maps as JSON, each as what it is: matrices, selections, diagonals, convolutions and what is made of them.

Numbers are hexadecimal floats; a map that occurs several times is written once and meant by its number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.io.fields import LARGEST, Fields
from lipmodel.io.text import Malformed
from lipmodel.network.conv import Conv, Pool
from lipmodel.network.linear import (
    Composition,
    Dense,
    Diagonal,
    LinearMap,
    Selection,
    Sparse,
    Sum,
    collapse,
)

Array = np.ndarray[Any, Any]


def hex_floats(values: Any) -> list[str]:
    """Hexadecimal floats, in C order; one repeated number is written once as ["*n", value]."""
    texts = [float(v).hex() for v in np.asarray(values, dtype=np.float64).ravel().tolist()]
    return [f"*{len(texts)}", texts[0]] if len(texts) > 3 and len(set(texts)) == 1 else texts


def csr_json(matrix: Any) -> dict[str, Any]:
    """A CSR matrix, array by array."""
    return {
        "shape": list(matrix.shape),
        "starts": matrix.indptr.tolist(),
        "columns": matrix.indices.tolist(),
        "values": hex_floats(matrix.data),
    }


def csr_of(item: Fields, shape: tuple[int, int] | None = None) -> Any:
    """The CSR matrix behind `csr_json`, of a given shape if there is one. Raises Malformed."""
    size = item.whole_numbers("shape", 2)
    m, n = int(size[0]), int(size[1])
    if shape is not None and (m, n) != shape:
        raise Malformed(f"{item.where}shape is {m} x {n}, not {shape[0]} x {shape[1]}")
    starts = item.whole_numbers("starts", m + 1)
    columns = item.whole_numbers("columns", below=max(n, 1))
    if int(starts[0]) != 0 or int(starts[-1]) != len(columns) or bool(np.any(np.diff(starts) < 0)):
        raise Malformed(f"{item.where}starts does not fit its columns")
    kind = np.int32 if max(m, n, len(columns)) < LARGEST - 1 else np.int64
    arrays = (item.hex_floats("values", len(columns)), columns.astype(kind), starts.astype(kind))
    return sp.csr_array(arrays, shape=(m, n))


@dataclass(slots=True, eq=False)
class MapWriter:
    """Numbers maps in the order in which they are met, parts before what is made of them."""

    written: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[int, tuple[LinearMap, int]] = field(default_factory=dict)

    def number(self, m: LinearMap) -> int:
        if id(m) not in self._known:
            entry = self._entry(m)
            self._known[id(m)] = (m, len(self.written))  # the map is kept, so that its id stays its own
            self.written.append(entry)
        return self._known[id(m)][1]

    def _entry(self, m: LinearMap) -> dict[str, Any]:
        if isinstance(m, Dense):
            radius = None if m.radius is None else hex_floats(m.radius)
            return {"kind": "dense", "shape": list(m.shape), "weights": hex_floats(m.weights), "radius": radius}
        if isinstance(m, Sparse):
            radii = None if m.radius is None else csr_json(sp.csr_array(m.radius))
            return {"kind": "sparse", "weights": csr_json(sp.csr_array(m.weights)), "radius": radii}
        if isinstance(m, Selection):
            return {"kind": "selection", "size": m.size, "index": m.index.tolist()}
        if isinstance(m, Diagonal):
            radius = None if m.radius is None else hex_floats(m.radius)
            return {"kind": "diagonal", "size": len(m.values), "values": hex_floats(m.values), "radius": radius}
        if isinstance(m, Composition):
            return {"kind": "composition", "of": [self.number(f) for f in m.factors]}
        if isinstance(m, Sum):
            return {"kind": "sum", "of": [self.number(t) for t in m.terms]}
        if isinstance(m, Conv):
            return {
                "kind": "convolution",
                "shape": list(m.kernel.shape),
                "kernel": hex_floats(m.kernel),
                "radius": None if m.radius is None else hex_floats(m.radius),
                "input_shape": list(m.input_shape),
                "output_spatial": list(m.output_spatial),
                "strides": list(m.strides),
                "pads": list(m.pads),
                "dilations": list(m.dilations),
                "groups": m.groups,
            }
        if isinstance(m, Pool):
            window = self.number(m.window)
            return {
                "kind": "average-pooling",
                "of": [window],
                "shape": list(m.count.shape),
                "count": hex_floats(m.count),
            }
        return self._entry(collapse(m))  # a kind that somebody else made


def read_maps(items: list[Fields]) -> list[LinearMap]:
    """The maps behind a `MapWriter`. Raises Malformed."""
    maps: list[LinearMap] = []
    for item in items:
        kind = item.choice("kind", list(_READERS))
        m = _READERS[kind](item, maps)
        if not all(0 < n < LARGEST for n in m.shape):
            raise Malformed(f"{item.where[:-1]} is empty or too large")
        maps.append(m)
    return maps


def _array(item: Fields, key: str, shape: tuple[int, ...]) -> Array:
    return item.hex_floats(key, prod(shape)).reshape(shape)


def _radius(item: Fields, shape: tuple[int, ...]) -> Array | None:
    if item.data.get("radius") is None:
        return None
    radius = _array(item, "radius", shape)
    if np.any(radius < 0.0):
        raise Malformed(f"{item.where}radius has a negative entry")
    return radius


def _shape(item: Fields, key: str, axes: int | None = None, *, least: int = 1) -> tuple[int, ...]:
    numbers = tuple(item.whole_numbers(key, axes, least=least).tolist())
    if prod(numbers) >= LARGEST:
        raise Malformed(f"{item.where}{key} is too large")
    return numbers


def _dense(item: Fields, maps: list[LinearMap]) -> LinearMap:
    shape = _shape(item, "shape", 2)
    return Dense(weights=_array(item, "weights", shape), radius=_radius(item, shape))


def _sparse(item: Fields, maps: list[LinearMap]) -> LinearMap:
    weights = csr_of(item.inner("weights"))
    if item.data.get("radius") is None:
        return Sparse(weights=weights)
    radius = csr_of(item.inner("radius"), weights.shape)
    if np.any(radius.data < 0.0):
        raise Malformed(f"{item.where}radius has a negative entry")
    return Sparse(weights=weights, radius=radius)


def _selection(item: Fields, maps: list[LinearMap]) -> LinearMap:
    size = item.count("size", least=1)
    return Selection(index=item.whole_numbers("index", least=-1, below=size), size=size)


def _diagonal(item: Fields, maps: list[LinearMap]) -> LinearMap:
    size = item.count("size", least=1)
    return Diagonal(values=item.hex_floats("values", size), radius=_radius(item, (size,)))


def _parts(item: Fields, maps: list[LinearMap]) -> tuple[LinearMap, ...]:
    parts = tuple(maps[i] for i in item.whole_numbers("of", below=len(maps)).tolist())
    if not parts:
        raise Malformed(f"{item.where}of is empty")
    return parts


def _composition(item: Fields, maps: list[LinearMap]) -> LinearMap:
    factors = _parts(item, maps)
    if any(a.shape[1] != b.shape[0] for a, b in pairwise(factors)):
        raise Malformed(f"{item.where}of: the shapes of the factors do not fit")
    return Composition(factors=factors)


def _sum(item: Fields, maps: list[LinearMap]) -> LinearMap:
    terms = _parts(item, maps)
    if len({t.shape for t in terms}) != 1:
        raise Malformed(f"{item.where}of: the terms have different shapes")
    return Sum(terms=terms)


def _convolution(item: Fields, maps: list[LinearMap]) -> LinearMap:
    shape, input_shape = _shape(item, "shape"), _shape(item, "input_shape")
    axes = len(shape) - 2
    groups = item.count("groups", least=1)
    if axes < 1 or len(input_shape) != axes + 2:
        raise Malformed(f"{item.where}shape: a kernel has one axis more than its space, twice over")
    if shape[0] % groups or shape[1] * groups != input_shape[1]:
        raise Malformed(f"{item.where}groups does not fit the channels")
    strides, dilations = _shape(item, "strides", axes), _shape(item, "dilations", axes)
    pads, output = _shape(item, "pads", axes, least=0), _shape(item, "output_spatial", axes)
    if max(*strides, *dilations, *pads) > 2**20:
        raise Malformed(f"{item.where}strides, dilations or pads are too large")
    return Conv(
        kernel=_array(item, "kernel", shape),
        input_shape=input_shape,
        output_spatial=output,
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=groups,
        radius=_radius(item, shape),
    )


def _pooling(item: Fields, maps: list[LinearMap]) -> LinearMap:
    (window, *rest), shape = _parts(item, maps), _shape(item, "shape")
    if rest or not isinstance(window, Conv) or shape != window.output_spatial:
        raise Malformed(f"{item.where}of is not the window sum of its counts")
    count = _array(item, "count", shape)
    if np.any(count < 1.0) or np.any(count != np.floor(count)):
        raise Malformed(f"{item.where}count is not made of positive whole numbers")
    return Pool(window=window, count=count)


_READERS: dict[str, Callable[[Fields, list[LinearMap]], LinearMap]] = {
    "dense": _dense,
    "sparse": _sparse,
    "selection": _selection,
    "diagonal": _diagonal,
    "composition": _composition,
    "sum": _sum,
    "convolution": _convolution,
    "average-pooling": _pooling,
}
