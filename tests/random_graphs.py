"""Random tiny ONNX models, built side by side with the plan of what they do to increments."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from random_networks import MAX_NEURONS, Phi, Plan, Step, float32, random_phi, random_scale, random_weights

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tensor:
    """A tensor of the graph under construction: its name, its step, its shape."""

    name: str
    step: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


class Graph:
    """An ONNX graph and its plan, built side by side."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], double: bool) -> None:
        self.rng, self.dtype = rng, np.float64 if double else np.float32
        self.steps = [Step(size=int(np.prod(shape)))]
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.exact, self.opset, self.left = True, 13, MAX_NEURONS
        self.input = Tensor(name="x", step=0, shape=shape)

    def constant(self, values: Any, integer: bool = False) -> tuple[str, Array]:
        """A stored tensor: its name, and its exact values."""
        array = np.asarray(values, dtype=np.int64 if integer else self.dtype)
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name, array.astype(np.float64)

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def step(self, name: str, shape: tuple[int, ...], *terms: tuple[Tensor, Array], **ends: Any) -> Tensor:
        self.steps.append(Step(size=int(np.prod(shape)), terms=tuple((t.step, m) for t, m in terms), **ends))
        return Tensor(name=name, step=len(self.steps) - 1, shape=shape)

    def same(self, t: Tensor) -> Tensor:
        """Identity, Dropout, or a reshape there and back."""
        kind = int(self.rng.integers(0, 3))
        if kind == 0:
            name = self.node("Identity", [t.name])
        elif kind == 1:
            name = self.node("Dropout", [t.name])
        else:
            flat = self.node("Reshape", [t.name, self.constant([-1], integer=True)[0]])
            name = self.node("Reshape", [flat, self.constant(t.shape, integer=True)[0]])
        return self.step(name, t.shape, (t, np.eye(t.size)))

    def dense(self, t: Tensor, rows: int, weights: Array | None = None) -> Tensor:
        """Gemm with alpha and beta and transposes, or MatMul and Add; t of shape (1, n)."""
        n, rng = t.size, self.rng
        w = random_weights(rng, rows, n, random_scale(rng)) if weights is None else weights
        if rng.random() < 0.6:
            alpha = float(rng.choice([1.0, 1.0, 0.5, -2.0, float32(0.3)]))
            beta = float(rng.choice([1.0, 0.5, 0.0, -1.0]))
            trans = int(rng.integers(0, 2))
            name, stored = self.constant(w if trans else w.T)
            bias = [self.constant(rng.standard_normal(rows))[0]] if rng.random() < 0.7 else []
            out = self.node("Gemm", [t.name, name, *bias], alpha=alpha, beta=beta, transB=trans)
            self.exact &= alpha in (1.0, 0.5, -2.0)
            matrix = alpha * (stored if trans else stored.T)
        else:
            name, stored = self.constant(w.T)
            out, matrix = self.node("MatMul", [t.name, name]), stored.T
            if rng.random() < 0.6:
                out = self.node("Add", [out, self.constant(rng.standard_normal((1, rows)))[0]])
        return self.step(out, (1, rows), (t, matrix))

    def activation(self, t: Tensor, phi: Phi | None = None) -> Tensor:
        """A scalar nonlinearity where the budget of neurons allows it, PRelu among them."""
        rng = self.rng
        if t.size > self.left:
            return t
        if phi is None and rng.random() < 0.12:
            return self._prelu(t)
        phi = random_phi(rng) if phi is None else phi
        ends = {"low": np.full(t.size, phi.low), "high": np.full(t.size, phi.high)}
        names = [t.name]
        for value in phi.constants:
            names.append("" if value is None else self.constant(value)[0])
        self.opset = max(self.opset, phi.opset)
        self.left -= t.size if phi.low < phi.high else 0
        name = self.node(phi.op, names, **dict(phi.attributes))
        return self.step(name, t.shape, (t, np.eye(t.size)), **ends)

    def _prelu(self, t: Tensor) -> Tensor:
        channels = t.shape[1]
        slope = self.rng.choice([0.25, 0.1, -0.5, 1.0, 0.0, 2.0, -1.0], size=channels)
        name, stored = self.constant(slope.reshape(channels, *[1] * (len(t.shape) - 2)))
        values = np.broadcast_to(stored[None], t.shape).ravel()
        ends = {"low": np.minimum(values, 1.0), "high": np.maximum(values, 1.0)}
        self.left -= t.size
        return self.step(self.node("PRelu", [t.name, name]), t.shape, (t, np.eye(t.size)), **ends)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b or a - b."""
        sign = -1.0 if self.rng.random() < 0.3 else 1.0
        name = self.node("Sub" if sign < 0 else "Add", [a.name, b.name])
        return self.step(name, a.shape, (a, np.eye(a.size)), (b, sign * np.eye(b.size)))

    def concat(self, a: Tensor, b: Tensor) -> Tensor:
        """Along axis 1; the batch is one, so the entries of a come first."""
        shape = (a.shape[0], a.shape[1] + b.shape[1], *a.shape[2:])
        upper = np.vstack([np.eye(a.size), np.zeros((b.size, a.size))])
        lower = np.vstack([np.zeros((a.size, b.size)), np.eye(b.size)])
        return self.step(self.node("Concat", [a.name, b.name], axis=1), shape, (a, upper), (b, lower))

    def scaled(self, t: Tensor) -> Tensor:
        """A product or quotient with constants per channel, Neg, or batch normalisation."""
        kind, channels = int(self.rng.integers(0, 4)), t.shape[1]
        tail = [1] * (len(t.shape) - 2)
        if kind == 0:
            return self.step(self.node("Neg", [t.name]), t.shape, (t, -np.eye(t.size)))
        if kind == 3:
            return self._normalised(t)
        values = self.rng.choice([0.5, -3.0, 0.1, 2.0, 7.0], size=(channels, *tail))
        name, stored = self.constant(values)
        factor = stored if kind == 1 else 1.0 / stored
        self.exact &= kind == 1
        diagonal = np.diag(np.broadcast_to(factor[None], t.shape).ravel())
        return self.step(self.node("Mul" if kind == 1 else "Div", [t.name, name]), t.shape, (t, diagonal))

    def _normalised(self, t: Tensor) -> Tensor:
        channels, rng = t.shape[1], self.rng
        parts = [rng.standard_normal(channels), rng.standard_normal(channels), rng.standard_normal(channels)]
        named = [self.constant(v) for v in [*parts, rng.random(channels) + 0.1]]
        epsilon = float32(1e-5)
        name = self.node("BatchNormalization", [t.name, *(n for n, _ in named)], epsilon=epsilon)
        factor = named[0][1] / np.sqrt(named[3][1] + epsilon)
        self.exact = False
        diagonal = np.diag(np.repeat(factor, t.size // channels))
        return self.step(name, t.shape, (t, diagonal))

    def conv(self, t: Tensor, channels: int, kernel: tuple[int, int], stride: int, pad: int, group: int = 1) -> Tensor:
        """Cross-correlation with zero padding, written out entry by entry."""
        _, c, h, w = t.shape
        size = (channels, c // group, *kernel)
        values = self.rng.standard_normal(size) * (self.rng.random(size) < 0.8) * random_scale(self.rng)
        name, k = self.constant(values)
        bias = [self.constant(self.rng.standard_normal(channels))[0]] if self.rng.random() < 0.5 else []
        out = self.node(
            "Conv", [t.name, name, *bias], kernel_shape=kernel, strides=[stride] * 2, pads=[pad] * 4, group=group
        )
        rows, cols = ((n + 2 * pad - s) // stride + 1 for n, s in zip((h, w), kernel, strict=True))
        m = np.zeros((channels, rows, cols, c, h, w))
        per = channels // group
        for o, i, j in itertools.product(range(channels), range(rows), range(cols)):
            for ci, di, dj in itertools.product(range(c // group), range(kernel[0]), range(kernel[1])):
                a, b = i * stride + di - pad, j * stride + dj - pad
                if 0 <= a < h and 0 <= b < w:
                    m[o, i, j, (o // per) * (c // group) + ci, a, b] += k[o, ci, di, dj]
        return self.step(out, (1, channels, rows, cols), (t, m.reshape(channels * rows * cols, t.size)))

    def pool(self, t: Tensor, window: int, stride: int) -> Tensor:
        """AveragePool without padding, or GlobalAveragePool (window 0)."""
        _, c, h, w = t.shape
        if window == 0:
            name, size, step, rows, cols = self.node("GlobalAveragePool", [t.name]), (h, w), (1, 1), 1, 1
        else:
            name = self.node("AveragePool", [t.name], kernel_shape=[window] * 2, strides=[stride] * 2)
            size, step = (window, window), (stride, stride)
            rows, cols = (h - window) // stride + 1, (w - window) // stride + 1
        m = np.zeros((c, rows, cols, c, h, w))
        for ch, i, j in itertools.product(range(c), range(rows), range(cols)):
            a, b = i * step[0], j * step[1]
            m[ch, i, j, ch, a : a + size[0], b : b + size[1]] = 1.0 / (size[0] * size[1])
        self.exact &= (size[0] * size[1]) in (1, 2, 4, 8)
        return self.step(name, (1, c, rows, cols), (t, m.reshape(c * rows * cols, t.size)))

    def flatten(self, t: Tensor) -> Tensor:
        return self.step(self.node("Flatten", [t.name]), (1, t.size), (t, np.eye(t.size)))

    def finish(self, t: Tensor) -> tuple[Any, Plan]:
        """The model, and the plan whose last step is the output."""
        kind = TensorProto.DOUBLE if self.dtype is np.float64 else TensorProto.FLOAT
        out = self.node("Identity", [t.name])
        self.step(out, t.shape, (t, np.eye(t.size)))
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", kind, self.input.shape)],
            [helper.make_tensor_value_info(out, kind, t.shape)],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return model, Plan(steps=tuple(self.steps), exact=self.exact)


def random_graph(rng: np.random.Generator) -> tuple[Any, Plan]:
    """A model with residual sums, concatenations, branches, tied weights; images now and then."""
    double = bool(rng.random() < 0.5)
    if rng.random() < 0.25:
        return _random_images(rng, double)
    g = Graph(rng, (1, int(rng.integers(1, 5))), double)
    t = g.input
    for _ in range(int(rng.integers(1, 4))):
        t = _block(g, t)
    if rng.random() < 0.75 or t.size > 4:
        t = g.dense(t, int(rng.integers(1, 4)))
    if rng.random() < 0.2:
        t = g.activation(t)
    return g.finish(t)


def _block(g: Graph, t: Tensor) -> Tensor:
    rng = g.rng
    width = int(rng.integers(1, 5))
    kind = int(rng.integers(0, 8))
    if kind == 0:  # residual
        inner = g.activation(g.dense(t, t.size if rng.random() < 0.5 else width))
        inner = inner if inner.size == t.size else g.dense(inner, t.size)
        t = g.add(t, inner)
        return g.activation(t) if rng.random() < 0.4 else t
    if kind == 1:  # two branches that meet
        a, b = g.activation(g.dense(t, width)), g.dense(t, width)
        return g.add(a, g.activation(b) if rng.random() < 0.6 else b)
    if kind == 2:  # dense connection
        return g.concat(t, g.activation(g.dense(t, int(rng.integers(1, 3)))))
    if kind == 3:  # branches side by side
        return g.concat(g.activation(g.dense(t, int(rng.integers(1, 3)))), g.activation(g.dense(t, 1)))
    if kind == 4:  # the same weights twice
        w = random_weights(rng, t.size, t.size)
        return g.activation(g.dense(g.activation(g.dense(t, t.size, w)), t.size, w))
    if kind == 5:
        t = g.scaled(t)
        return g.add(t, t) if rng.random() < 0.2 else g.same(t)
    if kind == 6:  # an activation of the tensor itself, and the tensor beside it
        return g.add(t, g.activation(t))
    return g.activation(g.dense(t, width))


def _random_images(rng: np.random.Generator, double: bool) -> tuple[Any, Plan]:
    c, h, w = int(rng.integers(1, 3)), int(rng.integers(2, 4)), int(rng.integers(1, 4))
    g = Graph(rng, (1, c, h, w), double)
    t = g.input
    for _ in range(int(rng.integers(1, 3))):
        _, c, h, w = t.shape
        kernel = (int(rng.integers(1, min(3, h) + 1)), int(rng.integers(1, min(3, w) + 1)))
        kind = int(rng.integers(0, 5))
        if kind == 0 and h >= 2 and w >= 2:
            t = g.pool(t, 2, int(rng.integers(1, 3)))
        elif kind == 1 and c == 2:
            t = g.conv(t, 2, kernel, int(rng.integers(1, 3)), 0, group=2)
        elif kind == 2:
            inner = g.activation(g.conv(t, c, (3, 3), 1, 1))
            t = g.add(t, inner)
        else:
            t = g.conv(t, int(rng.integers(1, 3)), kernel, int(rng.integers(1, 3)), int(rng.integers(0, 2)))
        if rng.random() < 0.3:
            t = g.scaled(t)
        t = g.activation(t)
    if rng.random() < 0.2:
        t = g.pool(t, 0, 1)
    t = g.dense(g.flatten(t), int(rng.integers(1, 4)))
    return g.finish(g.activation(t) if rng.random() < 0.2 else t)
