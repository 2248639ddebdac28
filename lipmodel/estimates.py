"""Numbers in the literature that look like bounds and are none: greedy SeqLip, power iteration, sampling, CLEVER.

They are kept apart from everything proved: an estimate is never a `bound`, and is printed as an estimate only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lipmodel.errors import UsageError

if TYPE_CHECKING:
    from lipmodel.lower.linearise import FloatProgram
    from lipmodel.lower.zone import Zone
    from lipmodel.network.graph import Network
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.network.linear import LinearMap
    from lipmodel.spec import Norm, Spec

Array = np.ndarray[Any, Any]
Kind = Literal["from below", "may be below or above the truth"]

BATCHES, BATCH = 100, 256
"""How many samples are taken where the time suffices, and in how many batches."""
FEWEST = 10
"""Batches below which no distribution of their maxima is fitted."""
ENTRIES = 2_000_000
"""Numbers that the pre-activations of one batch may have."""
ITERATIONS = 10
"""Steps of power iteration, as the published code takes them."""
SCALES = (0.1, 100.0)
"""Between which the size of Gaussian samples of the whole space is drawn, evenly in its logarithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number that bounds nothing.

    kind: "from below" where it would be a lower bound but for rounding (a witness pair proves one); seconds: what it
    took; seed: of its samples; what: how it was found, in a line.
    """

    name: str
    value: float
    kind: Kind
    seconds: float
    seed: int
    what: str

    def __str__(self) -> str:
        return f"estimate {self.value:.6g} ({self.name}; {self.kind})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Question:
    """What is estimated: L_{p->q} of the chosen outputs over a domain, until `end` on the clock of time.monotonic."""

    network: Network
    spec: Spec
    rng: np.random.Generator
    end: float

    def system(self) -> IncrementSystem:
        """The increments of the chosen outputs."""
        from lipmodel.families import chosen_outputs
        from lipmodel.question import systems

        found = systems(self.network, self.spec.domain, self.spec.input_norm)
        return chosen_outputs(found.system if found.masked is None else found.masked, self.spec.outputs)

    def program(self) -> tuple[FloatProgram, Zone, Norm]:
        """The network ready for derivatives, where its points may be, and the output norm."""
        from lipmodel.lower.linearise import float_program
        from lipmodel.lower.witness import output_rows
        from lipmodel.lower.zone import zone

        rows, mode = output_rows(self.spec.outputs, self.network.output_size)
        where = zone(self.spec.domain, self.network.input_size, self.spec.input_norm)
        held = None if where.box is None else where.box[0] == where.box[1]
        return float_program(self.network, rows, held=held), where, "inf" if mode != "vector" else self.spec.output_norm


def estimate(
    net: Network | Any,
    name: str,
    *,
    norm: Any = "2",
    domain: Any = "global",
    outputs: Any = "all",
    time_limit: float = 10.0,
    seed: int = 0,
) -> Estimate:
    """An estimate of the Lipschitz constant by one of the methods in `ESTIMATES`: it bounds nothing.

    net: a path to an ONNX file, or a Network. norm, domain, outputs: as in `solve`. time_limit: seconds, after which no
    new samples are taken. seed: equal seeds take equal samples. Raises UsageError where the method does not apply.
    """
    from lipmodel.network.graph import Network
    from lipmodel.spec import Spec, norm_pair, parse_domain, parse_outputs

    if name not in _METHODS:
        raise UsageError(f"unknown estimate {name!r}: the known ones are {', '.join(_METHODS)}")
    began = time.monotonic()
    if not isinstance(net, Network):
        from lipmodel.network.doors import load

        net = load(net)
    p, q = norm_pair(norm)
    chosen = parse_outputs(outputs)
    chosen.check(net.output_size)
    region = parse_domain(domain).sized(net.input_size)
    spec = Spec(input_norm=p, output_norm=q, domain=region, outputs=chosen)
    method, kind, what = _METHODS[name]
    if region.is_point:
        value = 0.0
    else:
        rng = np.random.default_rng(seed)
        value = method(_Question(network=net, spec=spec, rng=rng, end=began + time_limit))
    return Estimate(name=name, value=value, kind=kind, seconds=time.monotonic() - began, seed=seed, what=what)


# ----------------------------------------------------------------------------------------------- layers and norms


def _greedy_seqlip(asked: _Question) -> float:
    """SeqLip with its maxima over slopes found by greedy changes of single slopes, from the upper slopes on."""
    value = 1.0
    for after, before, alpha, beta in _split_layers(_spectral(asked)):
        value *= greedy_norm(after, before, alpha, beta, asked.end)
    return value


def greedy_norm(after: Array, before: Array, alpha: Array, beta: Array, end: float = math.inf) -> float:
    """|G S A|_2 after changes of single slopes, from S = diag(beta) on, in order, as long as one helps.

    after: G, shape (r, n); before: A, shape (n, k). A local maximum: the largest over all slopes may lie above it.
    Greedy SeqLip as its authors run it (Virmaux & Scaman 2018, arXiv 1805.10965).
    """
    slopes, product = beta.copy(), (after * beta) @ before
    best, changed = float(np.linalg.norm(product, 2)), True
    while changed and time.monotonic() < end:
        changed = False
        for j in range(len(slopes)):
            other = alpha[j] + beta[j] - slopes[j]
            turned = product + (other - slopes[j]) * np.outer(after[:, j], before[j])
            value = float(np.linalg.norm(turned, 2))
            if value > best * (1.0 + 1e-12):
                slopes[j], product, best, changed = other, turned, value, True
    return best


def _split_layers(system: IncrementSystem) -> Iterator[tuple[Array, Array, Array, Array]]:
    """(G, A, alpha, beta) of every hidden layer: singular values shared between neighbours. Raises UsageError."""
    forms = [*(a.pre for a in system.activations), system.output]
    chained = all(set(form.blocks) == {signal} for form, signal in zip(forms, system.signals, strict=True))
    if not chained or not system.activations or any(a.groups is not None for a in system.activations):
        raise UsageError("greedy SeqLip is about chains of layers that act neuron by neuron")
    if max(a.size for a in system.activations) > 2000:
        raise UsageError("greedy SeqLip takes layers of up to 2000 neurons")
    weights = [next(iter(form.blocks.values())).enclosure().dense().center for form in forms]
    parts = [np.linalg.svd(w, full_matrices=False) for w in weights]
    for k, act in enumerate(system.activations):
        left, sizes, _ = parts[k]
        _, after, right = parts[k + 1]
        before = left * (sizes if k == 0 else np.sqrt(sizes))
        after = after if k + 2 == len(parts) else np.sqrt(after)
        yield after[:, None] * right, before, act.alpha, act.beta


def _power_product(asked: _Question) -> float:
    """The product rule with spectral norms from below: a few steps of power iteration from a random vector."""
    from lipmodel.certify.product_rule import product_bound, product_system

    def norm(map: LinearMap, p: Norm, q: Norm) -> Fraction | float:
        return Fraction(power_norm(map, asked.rng)) if p == q == "2" else math.inf

    return float(product_bound(product_system(_spectral(asked)), "2", "2", norm))


def power_norm(map: LinearMap, rng: np.random.Generator, iterations: int = ITERATIONS) -> float:
    """A number that is never above the spectral norm of a map, but for rounding: |M v| for a unit v."""
    v = rng.standard_normal(map.shape[1])
    for _ in range(iterations):
        v = map.rmatvec(map.matvec(v / max(float(np.linalg.norm(v)), 1e-300)))
    length = float(np.linalg.norm(v))
    return float(np.linalg.norm(map.matvec(v / length))) if 0.0 < length < math.inf else 0.0


def _spectral(asked: _Question) -> IncrementSystem:
    """The system, where the question is about Euclidean norms. Raises UsageError."""
    system = asked.system()
    p, q = asked.spec.norms
    alike = (p == "2" or system.input.size == 1) and (q == "2" or system.output.size == 1)
    if not alike or asked.spec.outputs.kind == "margin":
        raise UsageError("this estimate is about the norms 2:2, of all outputs at once")
    return system


# ------------------------------------------------------------------------------------------------------ sampling


def _sampled_gradients(asked: _Question) -> float:
    """The largest norm of the Jacobian at random points."""
    return max(_maxima(asked), default=0.0)


def _maxima(asked: _Question) -> Iterator[float]:
    """The largest norm of the Jacobian in each batch of random points; one batch in any case."""
    from lipmodel.lower.moves import local_norms

    program, where, q = asked.program()
    for points in _batches(asked, where, program.neurons):
        yield float(np.max(local_norms(program, points, asked.spec.input_norm, q)[1].value))


def _sampled_differences(asked: _Question) -> float:
    """The largest difference quotient between random points and others near and far."""
    from lipmodel.lower.attain import vector_norm

    _, where, q = asked.program()
    p, best = asked.spec.input_norm, 0.0
    rows = _functionals(asked)
    for x in _batches(asked, where, max(asked.network.output_size, asked.network.input_size)):
        y = _points(asked, where, x.shape[1])
        share = 10.0 ** asked.rng.uniform(-3.0, 0.0, x.shape[1])
        y = x + (y - x) * share
        change = asked.network.evaluate(y) - asked.network.evaluate(x)
        change = change if rows is None else rows @ change
        step = vector_norm((y - x).T, p)
        ratio = vector_norm(change.T, q)[step > 0] / step[step > 0]
        best = max(best, float(np.max(ratio[np.isfinite(ratio)], initial=0.0)))
    return best


def _functionals(asked: _Question) -> Array | None:
    """The chosen outputs as linear functionals, shape (rows, outputs), or None for all."""
    from lipmodel.lower.witness import output_rows

    rows, _ = output_rows(asked.spec.outputs, asked.network.output_size)
    if rows is None:
        return None
    found = np.zeros((len(rows), asked.network.output_size))
    for k, row in enumerate(rows):
        for i, value in row.items():
            found[k, i] = value
    return found


def _batches(asked: _Question, where: Zone, width: int) -> Iterator[Array]:
    """Random points, shape (inputs, k), batch by batch until the time is over."""
    size = max(2, min(BATCH, ENTRIES // max(width, 1)))
    for number in range(BATCHES):
        if number and time.monotonic() > asked.end:
            return
        yield _points(asked, where, size)


def _points(asked: _Question, where: Zone, count: int) -> Array:
    """Points drawn evenly from a bounded domain; Gaussian ones of random size on the whole space."""
    rng, n = asked.rng, asked.network.input_size
    if where.box is None:
        low, high = np.log(SCALES)
        return np.asarray(rng.standard_normal((n, count)) * np.exp(rng.uniform(low, high, count)))
    if not where.norm:
        return np.asarray(rng.uniform(where.box[0][:, None], where.box[1][:, None], (n, count)))
    radius = where.radius * rng.uniform(size=count) ** (1.0 / n)
    if where.norm == "2":
        gap = rng.standard_normal((n, count))
        gap /= np.maximum(np.linalg.norm(gap, axis=0), 1e-300)
    else:
        gap = rng.exponential(size=(n, count)) * np.where(rng.random((n, count)) < 0.5, -1.0, 1.0)
        gap /= np.maximum(np.abs(gap).sum(axis=0), 1e-300)
    return where.inside(where.center[:, None] + gap * radius)


def _clever(asked: _Question) -> float:
    """The end point of the distribution that fits the largest gradients of batches."""
    from lipmodel.spec import Global

    if isinstance(asked.spec.domain, Global):
        raise UsageError("CLEVER samples a bounded domain: --domain box:LO:HI or ball:X:EPS")
    maxima = np.array(list(_maxima(asked)))
    if len(maxima) < FEWEST:
        raise UsageError(f"CLEVER: only {len(maxima)} batches of samples in the time given, and {FEWEST} are needed")
    return weibull_end(maxima)


def weibull_end(maxima: Array) -> float:
    """The end point a of the reverse Weibull distribution exp(-((a - m) / s)^c), m < a, that fits best.

    Maximum likelihood, s and c profiled out, with c >= 1 and a at most ten times their spread above the largest: the
    likelihood is unbounded otherwise. Weng et al. 2018 (CLEVER, arXiv 1801.10578).
    """
    from scipy.optimize import brentq

    top, spread = float(maxima.max()), float(np.ptp(maxima))
    if not spread > 1e-12 * abs(top):
        return top

    def likelihood(end: float) -> float:
        logs = np.log((end - maxima) / spread)

        def slope(c: float) -> float:
            weight = np.exp(c * (logs - logs.max()))
            return float(weight @ logs / weight.sum()) - 1.0 / c - float(logs.mean())

        c = 1.0 if slope(1.0) >= 0.0 else 1e4 if slope(1e4) <= 0.0 else float(brentq(slope, 1.0, 1e4))
        scale = float(np.log(np.mean(np.exp(c * (logs - logs.max()))))) + c * float(logs.max())
        return math.log(c) - scale + (c - 1.0) * float(logs.mean())

    ends = top + spread * np.geomspace(1e-4, 10.0, 400)
    return float(max(ends, key=likelihood))


_METHODS: Mapping[str, tuple[Callable[[_Question], float], Kind, str]] = {
    "greedy-seqlip": (
        _greedy_seqlip,
        "may be below or above the truth",
        "SeqLip with a local maximum over slopes (Virmaux & Scaman 2018): below its own bound, and below L where tight",
    ),
    "power-product": (
        _power_product,
        "may be below or above the truth",
        f"product of spectral norms by {ITERATIONS} steps of power iteration, each from below",
    ),
    "sampled-gradients": (_sampled_gradients, "from below", "largest norm of the Jacobian at random points"),
    "sampled-differences": (_sampled_differences, "from below", "largest difference quotient of random pairs"),
    "clever": (
        _clever,
        "may be below or above the truth",
        "end point of a reverse Weibull distribution fitted to the largest gradients of batches (Weng et al. 2018)",
    ),
}
ESTIMATES: Mapping[str, str] = {name: what for name, (_, _, what) in _METHODS.items()}
"""The estimates by name, each with a line about it."""
