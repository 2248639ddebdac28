"""Low-rank ascent on the primal side of a network: no Hessian, and no matrix larger than a layer.

With c and r the centre and the radius of the slopes, a neuron allows |w - c v| <= r |v|, an input |x_i| <= 1 (l_inf;
l_2: |x| <= 1), all signals being vectors of R^k. So unit vectors x_i and p_j, with w_j = c_j v_j + r_j |v_j| p_j, make
a primal feasible point of objective f^2, f = |V w_L|, and every one of rank at most k is made so. From k about
sqrt(2 unknowns) on, local maxima are global for almost all data (Burer, Monteiro 2003; Boumal, Voroninski, Bandeira
2016, arXiv 1606.04970); fewer columns do in practice. Where the gradient a_j of f in w_j points along p_j, the
multipliers of objective f^2 are t_j = f |a_j| / (2 r_j |v_j|), and f times the length of the gradient in x_i. Raised a
little they are strictly feasible: that is how a run ends. Steps are those of L-BFGS in the metric of the curvature of
single rows, in which one step alone is the block ascent known from Grothendieck's inequality.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lipmodel.backends.native.chain import (
    Array,
    Chain,
    Exponents,
    Status,
    relative_gap,
)
from lipmodel.backends.native.elimination import chain_barrier
from lipmodel.backends.native.follower import Barrier
from lipmodel.backends.native.lowrank import (
    MEMORY,
    Climb,
    Layer,
    Signals,
    pool_of,
    random_state,
    reading,
    signals_of,
)

COLUMNS = 16  # of the factor at the start
ROUND = (6, 100)  # steps between two attempts at feasible unknowns, of which each is a factorisation: at least, at most
PATIENCE = 6  # rounds that a run has in any case
CONVERGED = 1e-3  # residual, relative to the tolerance, at which only more columns can help
OVERHEAD = 1e6  # of a layer in one step, in floating-point operations
HESSIANS = 2.5  # that the path follower takes to divide the gap by ten


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ascended:
    """y: the best strictly feasible unknowns, None where there are none; lower: objective of a primal feasible point.

    status: "optimal", "time-limit", "iteration-limit", "interrupted", or "inaccurate": it does not pay to go on.
    """

    y: Array | None
    lower: float
    status: Status
    iterations: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dual:
    """What the multipliers of an ascent are for.

    owner: the unknown of every row of the factor. far: those of the rows of the output, None where it is measured by
    one length, whose square then is the objective. prices: of the unknowns. levels: layers that an unknown is away from
    the far end. factor, hessian: floating-point operations, and what takes as long, of a factorisation and of an
    iteration of the path follower. vector: the barrier's y from the unknowns, which it may scale.
    """

    signals: Signals
    owner: Exponents
    far: Exponents | None
    prices: Array
    levels: Array
    barrier: Barrier
    factor: float
    hessian: float
    lower: Callable[[float], float]  # the barrier's objective from f
    vector: Callable[[Array], Array]

    @property
    def share(self) -> float:
        """What the levels may be raised by, over the gap that comes of it."""
        return (2.0 if self.barrier.root else 1.0) / float(self.levels.max())

    def unknowns(self, climb: Climb) -> Array:
        """Those that belong to a factor; not feasible before they are raised."""
        y = np.zeros(len(self.prices))
        y[self.owner] = climb.multipliers() * (climb.state.f if self.far is None else 1.0)
        near = np.unique(self.owner[self.signals.inputs])
        y[near] /= self.prices[near]
        if self.far is not None:
            y[self.far] = climb.state.ends / self.prices[self.far]
        return y

    def raised(self, unknowns: Array, share: float) -> Array:
        """y with the multipliers of every layer raised by `share` more than those of the layers after it.

        In signals that take the factors up, the blocks off the diagonal shrink, and those on it do not.
        """
        return self.vector(unknowns * (1 + share * self.levels))


def chain_dual(chain: Chain) -> Dual:
    """The unknowns (t, eta) of a chain."""
    inputs = chain.weights[0].shape[1]
    sizes = [weight.shape for weight in chain.weights]
    last = slice(0, inputs)
    layers: list[Layer] = []
    for k, span in enumerate(chain.spans):
        radius, centre = (chain.beta[k] - chain.alpha[k]) / 2, (chain.beta[k] + chain.alpha[k]) / 2
        weight = chain.weights[k] if chain.sparse[k] is None else chain.sparse[k]
        here = slice(inputs + span.start, inputs + span.stop)
        layers.append(
            Layer(
                rows=here,
                reads=(reading(last, weight, (radius, None if k or chain.tied else np.sqrt(chain.cost))),),
                ratio=None if np.array_equal(centre, radius) else (centre / radius)[:, None],
                pool=None,
            )
        )
        last = here
    eta = np.zeros(inputs, dtype=np.int64) if chain.tied else np.arange(inputs)
    barrier = chain_barrier(chain)
    depth, fronts = len(layers), float(sum(n * n * max(n, m) for n, m in sizes))
    if depth == 1:  # its neurons may be eliminated first
        fronts = min(fronts, sizes[0][0] * float(sizes[0][1] + len(chain.output)) ** 2)
    return Dual(
        signals=signals_of(
            inputs,
            pool_of(eta),
            tuple(layers),
            (reading(last, chain.output),),
            pool_of(np.zeros(len(chain.output), dtype=np.int64)),
        ),
        owner=np.concatenate([chain.neurons + eta, np.arange(chain.neurons)]),
        far=None,
        prices=barrier.cost,
        levels=np.concatenate(
            [np.repeat(np.arange(depth, 0, -1), [n for n, _ in sizes]), np.full(chain.cost.size, depth + 1)]
        ),
        barrier=barrier,
        factor=fronts + 2 * depth * OVERHEAD,
        hessian=barrier.cost.size**3 + 45 * fronts + 10 * depth * OVERHEAD,
        lower=lambda f: f**2,
        vector=lambda y: y,
    )


@dataclass(slots=True, kw_only=True, eq=False)
class _Found:
    """The best feasible unknowns and the best primal value so far."""

    dual: Dual
    y: Array | None = None
    value: float = math.inf
    lower: float = 0.0

    @property
    def gap(self) -> float:
        """Relative, on the objective or its root."""
        return relative_gap(self.lower, self.value, root=self.dual.barrier.root)

    def attempt(self, unknowns: Array, tol: float, residual: float) -> None:
        """Raise the multipliers as little as makes them feasible; from a gap of `tol` on, less is not tried."""
        share = 0.9 * tol * self.dual.share
        if share < residual / 30:
            share = residual
        while share < 10:
            trial = self.dual.raised(unknowns, share)
            value = float(self.dual.barrier.cost @ trial)
            if not value < self.value:
                return
            if self.dual.barrier.factorize(trial) is not None:
                self.y, self.value = trial, value
                return
            share *= 6


def ascend(
    chain: Chain,
    *,
    tol: float,
    deadline: float,
    max_iterations: int,
    report: Callable[[int, Array, float, float], bool],
    alone: bool = False,
) -> Ascended:
    """Raise a primal feasible point, and derive feasible unknowns, until both agree to `tol` on the root of the cost.

    An iteration is a round of steps between two attempts at feasible unknowns; report(iterations, y, lower, gap)
    follows each that knows some, and ends the run where it returns False. alone: go on even where the path follower is
    expected to be faster from here. KeyboardInterrupt is caught.
    """
    return climbed(
        lambda: chain_dual(chain),
        tol=tol,
        deadline=deadline,
        max_iterations=max_iterations,
        report=report,
        alone=alone,
    )


def climbed(
    dual: Callable[[], Dual],
    *,
    tol: float,
    deadline: float,
    max_iterations: int,
    report: Callable[[int, Array, float, float], bool],
    alone: bool,
) -> Ascended:
    """`ascend` on any network."""
    found: _Found | None = None
    iterations = 0
    status: Status = "inaccurate"
    try:
        found = _Found(dual=dual())
        for _ in _rounds(found, tol, deadline, alone):
            iterations += 1
            if found.y is not None and not report(iterations, found.y, found.lower, found.gap):
                status = "interrupted"
            elif found.gap <= tol:
                status = "optimal"
            elif iterations >= max_iterations:
                status = "iteration-limit"
            else:
                continue
            break
    except TimeoutError:
        status = "time-limit"
    except KeyboardInterrupt:
        status = "interrupted"
    except MemoryError:
        status = "inaccurate"
    if found is None:
        return Ascended(y=None, lower=0.0, status=status, iterations=0)
    return Ascended(y=found.y, lower=found.lower, status=status, iterations=iterations)


def _rounds(found: _Found, tol: float, deadline: float, alone: bool) -> Iterator[None]:
    """Rounds of steps; ends where there is no step, or where it is no longer worth while."""
    s = found.dual.signals
    most = math.ceil(math.sqrt(2 * s.groups)) + 1
    climb = Climb(s=s, state=random_state(s, min(COLUMNS, most)))
    steps, residual, enough, enlarged = 0, 1.0, 0.5 * tol, False
    history: list[tuple[int, float]] = []
    fewest = int(min(max(ROUND[0], found.dual.factor / step_work(s, COLUMNS)), ROUND[1]))
    climbing = math.isfinite(climb.state.f) and climb.state.f > 0
    while climbing:
        late = False
        for _ in range(min(max(fewest, steps // 2), ROUND[1])):
            late = time.monotonic() > deadline
            if late:
                break
            climbing = climb.step()
            steps += 1
            residual = climb.residual
            if not climbing or residual < enough:
                break
        if steps:
            found.lower = max(found.lower, found.dual.lower(climb.state.f))
            found.attempt(found.dual.unknowns(climb), tol, residual)
        if late:
            raise TimeoutError
        yield
        history.append((steps, residual))
        columns = climb.state.factor.shape[1]
        if not alone and _slow(found.dual, history, found.gap / tol, columns):
            return
        enough = residual * min(0.3, max(tol / found.gap, 0.03))
        if climbing and residual > CONVERGED * tol:
            if not enlarged:
                climb.compress()
        elif columns < most:
            climb.enlarge()
            climbing = enlarged = True
        else:
            return


def _slow(dual: Dual, history: list[tuple[int, float]], excess: float, columns: int) -> bool:
    """Whether the path follower is expected to be faster from here, and has been given a fair share of the time.

    By counts of floating-point operations; history: steps and residuals; excess: of the gap over the tolerance.
    """
    steps, residual = history[-1]
    if len(history) < PATIENCE:
        return False
    before, larger = next(((n, r) for n, r in reversed(history) if n <= 0.6 * steps), history[0])
    speed = math.log(larger / residual) / (steps - before) if larger > residual > 0 else 0.0
    step = step_work(dual.signals, columns)
    left = math.log(max(excess, 2.0))
    other = (2 + HESSIANS * left / math.log(10)) * dual.hessian
    return bool(steps * step > 0.5 * other and left * step > speed * other)


def step_work(s: Signals, columns: int) -> float:
    """Floating-point operations of a step, and what takes as long."""
    products = sum(6 * part.work * columns for part in s.readings)
    return float(products + (sum(1 for _ in s.readings) + 2) * OVERHEAD + 16 * MEMORY * s.rows * columns)
