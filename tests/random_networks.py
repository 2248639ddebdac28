"""Random tiny networks that know their own formal constant, and that use nothing of lipmodel to compute it.

A `Plan` lists what a network does to increments: linear steps as small dense matrices and scalar nonlinearities as
slope intervals. The formal constant max ||C(s)||_{p->q} over all slopes s is attained where every slope is at an end of
its interval (the norm is convex in each), so for few neurons it is found by trying all of them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
PAIRS = tuple(itertools.product(("1", "2", "inf"), repeat=2))
MAX_NEURONS = 10


# ------------------------------------------------------------------------------------------ increments, independently


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One tensor: a sum of matrices times earlier tensors, or the scalar nonlinearity of an earlier tensor.

    terms: (position of an earlier tensor, matrix); low, high: ends of the slope intervals, never outside of them.
    """

    size: int
    terms: tuple[tuple[int, Array], ...] = ()
    low: Array | None = None
    high: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """steps[0] is the input, the last one the output; exact: whether the matrices are those of the network exactly."""

    steps: tuple[Step, ...]
    exact: bool = True

    @property
    def inputs(self) -> int:
        return self.steps[0].size

    @property
    def outputs(self) -> int:
        return self.steps[-1].size

    @property
    def neurons(self) -> int:
        """Neurons whose slope is not fixed."""
        return sum(int(np.sum(s.low < s.high)) for s in self.steps if s.low is not None)


def jacobians(plan: Plan) -> tuple[Array, Array]:
    """C(s) for all vertices s, shape (P, m, n), and the slopes of all neurons, shape (P, total)."""
    ends = [pair for s in plan.steps if s.low is not None for pair in zip(s.low, s.high, strict=True)]
    choices = [(a,) if a == b else (a, b) for a, b in ends]
    slopes = np.array(list(itertools.product(*choices)), dtype=np.float64).reshape(-1, len(choices))
    values = [np.broadcast_to(np.eye(plan.inputs), (len(slopes), plan.inputs, plan.inputs))]
    start = 0
    for step in plan.steps[1:]:
        value = np.zeros((len(slopes), step.size, plan.inputs))
        for k, matrix in step.terms:
            value = value + matrix @ values[k]
        if step.low is not None:
            value = slopes[:, start : start + step.size, None] * value
            start += step.size
        values.append(value)
    return values[-1], slopes


def induced(c: Array, p: str, q: str) -> Array:
    """||C||_{p->q} of a stack of matrices (P, m, n), by enumeration of signs where it is NP-hard."""
    order = {"1": 1, "2": 2, "inf": np.inf}
    dual = {"1": np.inf, "2": 2, "inf": 1}
    if p == "1":
        return np.linalg.norm(c, order[q], axis=1).max(axis=1)
    if q == "inf":
        return np.linalg.norm(c, dual[p], axis=2).max(axis=1)
    if p == q == "2":
        return np.linalg.svd(c, compute_uv=False)[:, 0]
    if p == "inf":
        return np.linalg.norm(c @ _signs(c.shape[2]), order[q], axis=1).max(axis=1)
    return induced(np.swapaxes(c, 1, 2), "inf", "2")


def _signs(n: int) -> Array:
    return np.array(list(itertools.product((1.0, -1.0), repeat=n))).T


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Formal:
    """The formal constant in floating point, and where it is attained: slopes, and an input direction."""

    value: float
    slopes: Array
    direction: Array


def formal_constant(plan: Plan, p: str, q: str, rows: Array | None = None) -> Formal:
    """max over s of ||R C(s)||_{p->q}, R the given functionals of the outputs (default: the identity)."""
    c, slopes = jacobians(plan)
    if rows is not None:
        c = rows @ c
    norms = induced(c, p, q)
    best = int(np.argmax(norms))
    return Formal(value=float(norms[best]), slopes=slopes[best], direction=_direction(c[best], p, q))


def _direction(c: Array, p: str, q: str) -> Array:
    """An input at which ||C x||_q / ||x||_p is the norm."""
    n = c.shape[1]
    candidates = [np.eye(n), _signs(n)]
    if p == "2":
        candidates += [np.linalg.svd(c)[2].T, c.T, c.T @ _signs(c.shape[0])]
    x = np.hstack(candidates)
    order = {"1": 1, "2": 2, "inf": np.inf}
    with np.errstate(all="ignore"):
        ratio = np.linalg.norm(c @ x, order[q], axis=0) / np.linalg.norm(x, order[p], axis=0)
    return np.asarray(x[:, int(np.argmax(np.nan_to_num(ratio, posinf=0.0)))])


def exceeds(plan: Plan, formal: Formal, bound: float, p: str, q: str, rows: Array | None = None) -> bool:
    """Whether, in rational arithmetic, the slopes and direction of `formal` prove that `bound` is too small."""
    slopes = iter(formal.slopes)
    values = [[Fraction(float(v)) for v in formal.direction]]
    for step in plan.steps[1:]:
        value = [Fraction(0)] * step.size
        for k, matrix in step.terms:
            for i, row in enumerate(matrix):
                value[i] += sum(Fraction(float(a)) * b for a, b in zip(row, values[k], strict=True) if a)
        if step.low is not None:
            value = [Fraction(float(next(slopes))) * v for v in value]
        values.append(value)
    y = values[-1]
    if rows is not None:
        y = [sum(Fraction(float(a)) * b for a, b in zip(row, y, strict=True)) for row in rows]
    return _squared(y, q) > Fraction(bound) ** 2 * _squared(values[0], p)


def _squared(v: list[Any], norm: str) -> Fraction:
    if norm == "2":
        return sum((x * x for x in v), Fraction(0))
    return (sum(map(abs, v), Fraction(0)) if norm == "1" else max(map(abs, v))) ** 2


# ------------------------------------------------------------------------------------------------------- activations


@dataclass(frozen=True, slots=True, kw_only=True)
class Phi:
    """A scalar nonlinearity: an ONNX operator, its attributes, constant inputs, and its slopes over the real line."""

    op: str
    low: float
    high: float
    attributes: tuple[tuple[str, Any], ...] = ()
    constants: tuple[float | None, ...] = ()
    opset: int = 13


def _inwards(low: float, high: float) -> tuple[float, float]:
    """Ends given by decimals, moved by an ulp to the inside, so that they are slopes for sure."""
    return float(np.nextafter(low, high)), float(np.nextafter(high, low))


def _f32(x: float) -> float:
    return float(np.float32(x))


FIXED = (
    Phi(op="Relu", low=0.0, high=1.0),
    Phi(op="Abs", low=-1.0, high=1.0),
    Phi(op="Tanh", low=0.0, high=1.0),
    Phi(op="Sigmoid", low=0.0, high=0.25),
    Phi(op="Softplus", low=0.0, high=1.0),
    Phi(op="HardSwish", low=-0.5, high=1.5, opset=14),
    Phi(op="Mish", **dict(zip(("low", "high"), _inwards(-0.11252612238946256, 1.0884981612517279))), opset=18),
    Phi(op="Gelu", **dict(zip(("low", "high"), _inwards(-0.1289041451851548, 1.1289041451851548))), opset=20),
    Phi(
        op="Gelu",
        attributes=(("approximate", "tanh"),),
        **dict(zip(("low", "high"), _inwards(-0.12899306865877177, 1.1289930686587718))),
        opset=20,
    ),
    Phi(op="Erf", low=0.0, high=float(np.nextafter(1.1283791670955126, 0))),
    Phi(op="Selu", low=0.0, high=float(np.nextafter(1.7580993463430304, 0))),
)


def random_phi(rng: np.random.Generator, *, plain: bool = False) -> Phi:
    """A random activation; plain: one of the common ones with slopes [0, 1]."""
    if plain:
        return FIXED[int(rng.choice([0, 2]))]
    kind = int(rng.integers(0, 18))
    if kind < 8:
        return FIXED[int(rng.integers(0, len(FIXED)))] if kind >= 4 else FIXED[kind % 2]
    if kind in (8, 9, 10):
        a = _f32(rng.choice([0.01, 0.2, 0.5, -0.3, -1.0, -1.5, 1.0, 2.0, 0.0]))
        return Phi(op="LeakyRelu", low=min(a, 1.0), high=max(a, 1.0), attributes=(("alpha", a),))
    if kind == 11:
        ends = [(0.0, 6.0), (-1.0, 1.0), (None, 0.5), (-0.25, None), (1.0, 1.0), (-2.0, -1.0)]
        low, high = ends[int(rng.integers(0, len(ends)))]
        return Phi(op="Clip", low=0.0, high=0.0 if low == high else 1.0, constants=(low, high))
    if kind == 12:
        a = _f32(rng.choice([1.0, 0.5, 2.0, -0.5, 0.0]))
        low, high = (0.0, max(1.0, a)) if a >= 0 else (a, 1.0)
        return Phi(op="Elu", low=low, high=high, attributes=(("alpha", a),))
    if kind == 13:
        a, b = _f32(rng.choice([0.2, -0.5, 1.0, 3.0])), _f32(rng.choice([0.5, 0.0]))
        return Phi(op="HardSigmoid", low=min(a, 0.0), high=max(a, 0.0), attributes=(("alpha", a), ("beta", b)))
    if kind == 14:
        a, g = float(rng.choice([0.5, 1.5])), float(rng.choice([1.0, 2.0]))
        return Phi(op="Selu", low=0.0, high=max(g, g * a), attributes=(("alpha", a), ("gamma", g)))
    if kind == 15:
        return Phi(op="Celu", low=0.0, high=1.0, attributes=(("alpha", _f32(rng.choice([1.0, 0.5, 2.0]))),))
    if kind == 16:
        return Phi(op="Softsign", low=0.0, high=1.0)
    return Phi(op="Elu", low=0.0, high=1.0)


# ------------------------------------------------------------------------------------------------------------ chains


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """Weights (n_k, n_{k-1}), biases, and an activation (or None) after every layer, the last included."""

    weights: tuple[Array, ...]
    biases: tuple[Array | None, ...]
    phis: tuple[Phi | None, ...]

    def plan(self) -> Plan:
        steps = [Step(size=int(self.weights[0].shape[1]))]
        for w, phi in zip(self.weights, self.phis, strict=True):
            n = int(w.shape[0])
            steps.append(Step(size=n, terms=((len(steps) - 1, np.asarray(w, dtype=np.float64)),)))
            if phi is not None:
                ends = {"low": np.full(n, phi.low), "high": np.full(n, phi.high)}
                steps.append(Step(size=n, terms=((len(steps) - 1, np.eye(n)),), **ends))
        return Plan(steps=tuple(steps))

    def network(self) -> Any:
        import lipmodel as lm

        phis = []
        for phi in self.phis:
            if phi is None:
                phis.append(None)
            elif phi.op == "Clip":
                given = {k: v for k, v in zip(("min", "max"), phi.constants, strict=True) if v is not None}
                phis.append(lm.activation("Clip", **{"min": -np.inf, "max": np.inf, **given}))
            else:
                phis.append(lm.activation(phi.op, **dict(phi.attributes)))
        return lm.from_weights(self.weights, self.biases, activation=phis)


def random_weights(rng: np.random.Generator, m: int, n: int, scale: float = 1.0) -> Array:
    """Gaussian, integer, nonnegative, sparse, of rank one, orthogonal; sometimes with zero rows or columns."""
    kind = int(rng.integers(0, 8))
    w = rng.standard_normal((m, n))
    if kind == 0:
        w = rng.integers(-2, 3, size=(m, n)).astype(float)
    elif kind == 1:
        w = np.abs(w)
    elif kind == 2:
        w = w * (rng.random((m, n)) < 0.5)
    elif kind == 3:
        w = np.outer(rng.standard_normal(m), rng.standard_normal(n))
    elif kind == 4:
        w = np.linalg.qr(rng.standard_normal((max(m, n), max(m, n))))[0][:m, :n]
    if rng.random() < 0.12:
        w[int(rng.integers(0, m))] = 0.0
    if rng.random() < 0.12:
        w[:, int(rng.integers(0, n))] = 0.0
    if rng.random() < 0.1 and m > 1:
        w[m - 1] = w[0]
    return w * scale


def random_scale(rng: np.random.Generator) -> float:
    return float(10.0 ** rng.uniform(-6, 6)) if rng.random() < 0.15 else 1.0


def random_chain(rng: np.random.Generator) -> Chain:
    """Depth 1 to 4, at most MAX_NEURONS neurons, mixed activations."""
    depth = int(rng.integers(1, 5))
    single = bool(rng.random() < 0.5)
    phi = random_phi(rng)
    dims, left = [int(rng.integers(1, 5))], MAX_NEURONS
    for k in range(depth - 1):
        dims.append(int(rng.integers(1, max(2, min(5, left - (depth - 2 - k)) + 1))))
        left -= dims[-1]
    dims.append(int(rng.integers(1, 4)))
    trailing = rng.random() < 0.15 and left >= dims[-1]
    kind = (np.float64, np.float32)[int(rng.integers(0, 2))]
    weights = [random_weights(rng, m, n, random_scale(rng)).astype(kind) for n, m in itertools.pairwise(dims)]
    if depth > 2 and dims[1] == dims[2] == dims[0] and rng.random() < 0.5:
        weights[1] = weights[0]
    phis: list[Phi | None] = []
    for k in range(depth):
        chosen = phi if single else random_phi(rng)
        phis.append(chosen if k < depth - 1 or trailing else None)
    if depth > 1 and rng.random() < 0.05:
        phis = [None] * depth
    biases = [rng.standard_normal(m).astype(kind) if rng.random() < 0.7 else None for m in dims[1:]]
    return Chain(weights=tuple(weights), biases=tuple(biases), phis=tuple(phis))


# -------------------------------------------------------------------------------------------------------- ONNX graphs


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
            alpha = float(rng.choice([1.0, 1.0, 0.5, -2.0, _f32(0.3)]))
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
        epsilon = _f32(1e-5)
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
