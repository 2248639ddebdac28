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
    vertices = list(itertools.product(*choices))
    slopes = np.array(vertices, dtype=np.float64).reshape(len(vertices), len(choices))
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


def _within(op: str, low: float, high: float, **fields: Any) -> Phi:
    """Slopes known by decimals: the ends are moved by an ulp to the inside, so that they are slopes for sure."""
    return Phi(op=op, low=float(np.nextafter(low, high)), high=float(np.nextafter(high, low)), **fields)


def float32(x: float) -> float:
    return float(np.float32(x))


FIXED = (
    Phi(op="Relu", low=0.0, high=1.0),
    Phi(op="Abs", low=-1.0, high=1.0),
    Phi(op="Tanh", low=0.0, high=1.0),
    Phi(op="Sigmoid", low=0.0, high=0.25),
    Phi(op="Softplus", low=0.0, high=1.0),
    Phi(op="HardSwish", low=-0.5, high=1.5, opset=14),
    _within("Mish", -0.11252612238946256, 1.0884981612517279, opset=18),
    _within("Gelu", -0.1289041451851548, 1.1289041451851548, opset=20),
    _within("Gelu", -0.12899306865877177, 1.1289930686587718, opset=20, attributes=(("approximate", "tanh"),)),
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
        a = float32(rng.choice([0.01, 0.2, 0.5, -0.3, -1.0, -1.5, 1.0, 2.0, 0.0]))
        return Phi(op="LeakyRelu", low=min(a, 1.0), high=max(a, 1.0), attributes=(("alpha", a),))
    if kind == 11:
        ends = [(0.0, 6.0), (-1.0, 1.0), (None, 0.5), (-0.25, None), (1.0, 1.0), (-2.0, -1.0)]
        low, high = ends[int(rng.integers(0, len(ends)))]
        return Phi(op="Clip", low=0.0, high=0.0 if low == high else 1.0, constants=(low, high))
    if kind == 12:
        a = float32(rng.choice([1.0, 0.5, 2.0, -0.5, 0.0]))
        low, high = (0.0, max(1.0, a)) if a >= 0 else (a, 1.0)
        return Phi(op="Elu", low=low, high=high, attributes=(("alpha", a),))
    if kind == 13:
        a, b = float32(rng.choice([0.2, -0.5, 1.0, 3.0])), float32(rng.choice([0.5, 0.0]))
        return Phi(op="HardSigmoid", low=min(a, 0.0), high=max(a, 0.0), attributes=(("alpha", a), ("beta", b)))
    if kind == 14:
        a, g = float(rng.choice([0.5, 1.5])), float(rng.choice([1.0, 2.0]))
        return Phi(op="Selu", low=0.0, high=max(g, g * a), attributes=(("alpha", a), ("gamma", g)))
    if kind == 15:
        return Phi(op="Celu", low=0.0, high=1.0, attributes=(("alpha", float32(rng.choice([1.0, 0.5, 2.0]))),))
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
