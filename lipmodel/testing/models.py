"""Models of networks with known optima, which the conformance suites and tests solve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.model.forms import LinearForm, Signal
from lipmodel.model.model import Model, inner
from lipmodel.model.qc import slope_restricted
from lipmodel.network.increments import IncrementSystem, SlopeRestricted
from lipmodel.network.linear import Diagonal, compose

if TYPE_CHECKING:
    from lipmodel.spec import Norm

Array = np.ndarray[Any, Any]
Problem = Callable[[], tuple[Model, float]]
"""Makes a model; the number is the bound that its optimum gives."""
PAIRS: tuple[tuple[Norm, Norm], ...] = (("2", "2"), ("inf", "1"), ("inf", "2"), ("2", "1"))


def decoupled(gains: Array, alpha: Array, beta: Array, splits: int = 1) -> IncrementSystem:
    """n independent chains y_i = a_i s_i ... s_i x_i with `splits` activations each; its constants are known.

    gains: the products of the weights, shape (n,); the weights themselves are of very different sizes.
    """
    n = len(gains)
    x = Signal(name="x", size=n)
    form, activations = LinearForm.of(x), []
    for k in range(splits):
        weights = Diagonal(values=2.0 ** np.round(8.0 * np.sin(1.0 + k + np.arange(n))))
        gains = gains / weights.values
        signal = Signal(name=f"w{k + 1}", size=n)
        pre = LinearForm(size=n, blocks={s: compose(weights, m) for s, m in form.blocks.items()})
        form = LinearForm.of(signal)
        activations.append(
            SlopeRestricted(name=f"layer{k + 1}", signal=signal, pre=pre, post=form, alpha=alpha, beta=beta)
        )
    output = {s: compose(Diagonal(values=gains), m) for s, m in form.blocks.items()}
    return IncrementSystem(
        signals=(x, *(a.signal for a in activations)),
        input=LinearForm.of(x, role="input"),
        activations=tuple(activations),
        output=LinearForm(size=n, blocks=output, role="output"),
    )


def lipsdp(system: IncrementSystem, *, tied: bool = False) -> Model:
    """rho |x|^2 - |y|^2 - sum t_j q_j >= 0, minimise rho; the bound is its root (Fazlyab et al. 2019, 1906.04893)."""
    m = Model("lipsdp")
    ball, price = m.ball(system.input, "2")
    form = ball - inner(system.output, system.output)
    for a in system.activations:
        form -= slope_restricted(a, m.multiplier(a, tied=tied))
    m.require(form >= 0)
    m.minimize(2 * price, bound="sqrt")
    return m


def mixed_norm(system: IncrementSystem, p: Norm, q: Norm) -> Model:
    """The program of Wang, Prakriya & Jha (2022, arXiv 2203.01212) for p in {2, inf}, q in {1, 2}."""
    m = Model("mixed-norm")
    dual = m.signal("dual", system.output.size)
    ball_in, price_in = m.ball(system.input, p)
    ball_out, price_out = m.ball(dual, "inf" if q == "1" else "2")
    form = ball_in + ball_out - 2 * inner(dual, system.output)
    for a in system.activations:
        form -= slope_restricted(a, m.multiplier(a))
    m.require(form >= 0)
    m.minimize(price_in + price_out)
    return m


_GAINS = np.array([3.0, -1.5, 0.25])
_SLOPES = {
    "relu": (np.zeros(3), np.ones(3)),
    "mixed-signs": (np.array([-1.0, -0.13, -0.5]), np.array([1.0, 1.13, 0.25])),
    "one-sign": (np.array([0.01, 0.5, 0.9]), np.ones(3)),
}


def _independent(slopes: str, p: Norm, q: Norm, splits: int) -> Problem:
    """Independent chains: the relaxation is exact, |a_i| max(|alpha|, |beta|)^splits each."""

    def problem() -> tuple[Model, float]:
        alpha, beta = _SLOPES[slopes]
        system = decoupled(_GAINS, alpha, beta, splits)
        each = np.abs(_GAINS) * np.maximum(np.abs(alpha), np.abs(beta)) ** splits
        if (p, q) == ("2", "2"):
            return lipsdp(system), float(each.max())
        return mixed_norm(system, p, q), float(each.sum() if (p, q) == ("inf", "1") else np.linalg.norm(each))

    return problem


def _tied() -> tuple[Model, float]:
    """One t for both neurons: rho = min over t of max_i (t a_i)^2 / (2 t - c_i^2)."""
    a, c = np.array([2.0, 0.5]), np.array([1.0, 3.0])
    system = decoupled(a * c, np.zeros(2), np.ones(2))
    x, w = system.signals
    pre = LinearForm(size=2, blocks={x: Diagonal(values=a)})
    (old,) = system.activations
    activation = SlopeRestricted(name=old.name, signal=w, pre=pre, post=old.post, alpha=old.alpha, beta=old.beta)
    output = LinearForm(size=2, blocks={w: Diagonal(values=c)}, role="output")
    tied = IncrementSystem(signals=system.signals, input=system.input, activations=(activation,), output=output)

    def rho(t: float) -> float:
        return float(np.max((t * a) ** 2 / (2.0 * t - c**2)))

    low, high = 4.5 + 1e-9, 100.0
    for _ in range(200):  # rho is convex
        left, right = low + (high - low) / 3.0, high - (high - low) / 3.0
        low, high = (low, right) if rho(left) <= rho(right) else (left, high)
    return lipsdp(tied, tied=True), math.sqrt(rho(low))


def _linear_map() -> tuple[Model, float]:
    """No activation: the spectral norm."""
    weights = np.random.default_rng(1).standard_normal((3, 5))
    x = Signal(name="x", size=5)
    output = weights @ LinearForm.of(x)
    system = IncrementSystem(
        signals=(x,),
        input=LinearForm.of(x, role="input"),
        activations=(),
        output=LinearForm(size=3, blocks=output.blocks, role="output"),
    )
    return lipsdp(system), float(np.linalg.norm(weights, 2))


NETWORK_PROBLEMS: dict[str, Problem] = {
    **{
        f"independent-{slopes}-{p}-{q}-depth{splits}": _independent(slopes, p, q, splits)
        for slopes in _SLOPES
        for p, q in PAIRS
        for splits in (1, 3)
    },
    "tied-multipliers": _tied,
    "linear-map": _linear_map,
}
