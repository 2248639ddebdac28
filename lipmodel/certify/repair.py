"""From any multipliers to a proved bound: repair, polish, prove.

Nothing here is trusted but the last step: `proves_lmi` decides, in rigorous floating point, whether repaired
multipliers satisfy the inequality, and the bound is computed from them in rational arithmetic, rounded up. A solver's
status, its objective and the rounding of everything before play no part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy.linalg as sla

from lipmodel.certify.kernel import bound_squared
from lipmodel.certify.lmi import FloatSystem, Multipliers
from lipmodel.certify.rigor import proves_lmi
from lipmodel.certify.roots import sqrt_up
from lipmodel.elimination import (
    Blocks,
    Reduced,
    backward_sweep,
    closed_form_bound,
    closed_forms,
    scaled_blocks,
    tied,
    top_eigenvalue,
)
from lipmodel.spec import Norm

Array = np.ndarray[Any, np.dtype[np.float64]]

MARGINS = (1e-10, 1e-12, 1e-8, 1e-6, 1e-4)
"""How far inside the cone the hidden pivots are kept; the best proved bound decides between them."""


FOREIGN = 1e-2
"""Relative loss in the repair from which on a closed form's point counts as another one."""
WIDENED = (5e-12, 5e-11, 5e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
"""By how much both ends of a feasible point are widened, so that rounding has room: the same share of the bound."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProvedMultipliers:
    """Multipliers that satisfy the inequality, proved; the bound they give, rounded up; where they came from."""

    multipliers: Multipliers
    bound: float
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trial:
    """Repaired multipliers, in the scaled signals, and the bound that they should give; goal: the one before repair."""

    estimate: float
    t: tuple[Array, ...]
    g: Array
    s: Array
    origin: str
    goal: float = math.inf


@np.errstate(all="ignore")  # the search is untrusted: what overflows is refused by the proof
def prove(
    system: FloatSystem,
    p: Norm,
    q: Norm,
    candidates: Iterable[tuple[str, Multipliers]] = (),
    *,
    closed: Literal["all", "doubt", "doubt-tied", "never"] = "all",
    deadline: float = math.inf,
    check: Callable[[Multipliers], bool] | None = None,
) -> ProvedMultipliers | None:
    """The best bound on L_{p->q} that the candidates, and the closed forms, give after repair.

    p in {2, inf}, q in {1, 2} (q = inf with one output, p = 1 with one input). candidates: named multipliers of any
    quality; non-finite, negative or missing entries are mended. closed: "all" tries the closed forms in any case;
    "doubt" only where a closed form by itself beats what the candidates prove, which cannot be after a true optimum;
    "doubt-tied" the same where multipliers are shared, when only closed forms that share theirs can be compared;
    "never" not at all.
    check: what must accept the multipliers besides the floating-point proof. None where nothing was proved (then a norm
    bound still is). Repair: block elimination of the inequality from the output back, raising multipliers where a pivot
    fails; then the least (g, s) by the Schur complement on the two ends (Fazlyab et al. 2019, arXiv 1906.04893, for the
    inequality).
    """
    blocks = scaled_blocks(system)
    best: ProvedMultipliers | None = None

    def attempt(trial: _Trial) -> float:
        """Prove a trial unless it cannot improve; the bound it gave, or infinity."""
        nonlocal best
        if best is not None and trial.estimate * blocks.scale_out >= best.bound * (1.0 - 1e-10):
            return math.inf
        found = _proved(system, blocks, trial, p, q, check)
        if found is None:
            return math.inf
        if best is None or found.bound < best.bound:
            best = found
        return found.bound

    for origin, m in candidates:
        for trial in _all_trials(blocks, m, p, q, origin):
            tight = trial.estimate <= trial.goal * (1.0 + 1e-9)
            if attempt(trial) <= trial.estimate * blocks.scale_out * (1.0 + 2e-9) and tight:
                break
            if best is not None and time.monotonic() > deadline:
                break
    wanted = closed == "all" or (best is None and closed != "never")
    if not wanted and best is not None and closed != "never":
        # a solver may be wrong about its optimum: a better point of its own feasible set gives it away
        wanted = closed_form_bound(blocks, p, q, tied=closed == "doubt-tied") * blocks.scale_out < best.bound
    if wanted and (best is None or time.monotonic() < deadline):
        trials = []
        for trial in _closed_trials(blocks, p, q):
            trials.append(trial)
            if time.monotonic() > deadline:
                break
        for trial in sorted(trials, key=lambda trial: trial.estimate):
            if math.isfinite(attempt(trial)):
                break
    return best


def prove_as_it_is(
    system: FloatSystem,
    p: Norm,
    q: Norm,
    m: Multipliers,
    origin: str,
    *,
    shares: Sequence[float] = WIDENED[:1],
    deadline: float = math.inf,
    check: Callable[[Multipliers], bool] | None = None,
) -> ProvedMultipliers | None:
    """The bound of multipliers that are feasible up to rounding, moved inside by the first share that is proved.

    Both ends are raised by a share of them, and the multipliers in between by less and less towards the output, which
    leaves no pivot near zero. None where the proof fails with every share, or at the first one after the deadline.
    """
    for share in shares:
        found = _as_it_is(system, p, q, m, origin, share, check)
        if found is not None or time.monotonic() > deadline:
            return found
    return None


def _as_it_is(
    system: FloatSystem,
    p: Norm,
    q: Norm,
    m: Multipliers,
    origin: str,
    share: float,
    check: Callable[[Multipliers], bool] | None,
) -> ProvedMultipliers | None:
    count = len(m.t)
    with np.errstate(all="ignore"):
        t = map(tied, system.groups, m.t) if system.groups else m.t
        wide = Multipliers(
            t=tuple(x * (1.0 + share * (1.0 - k / (count + 1))) for k, x in enumerate(t, start=1)),
            g=m.g * (1.0 + share),
            s=m.s * (1.0 + share),
        )
    if not _positive(wide) or not proves_lmi(system, wide):
        return None
    if check is not None and not check(wide):
        return None
    bound = sqrt_up(bound_squared(wide, p, q))
    return ProvedMultipliers(multipliers=wide, bound=bound, origin=origin) if math.isfinite(bound) else None


def _positive(m: Multipliers) -> bool:
    """Whether all multipliers are finite and positive."""
    return all(bool(np.all(np.isfinite(v)) and np.all(v > 0.0)) for v in (*m.t, m.g, m.s))


def prove_closed_form(
    system: FloatSystem,
    p: Norm,
    q: Norm,
    m: Multipliers,
    origin: str,
    *,
    deadline: float = math.inf,
    check: Callable[[Multipliers], bool] | None = None,
) -> ProvedMultipliers | None:
    """The bound of a closed form's own point: as it is, or repaired where that fails, but never made better.

    None where it is not a point (some number is not finite and positive), and where the repair costs more than 1 %:
    then it was not feasible.
    """
    if not _positive(m):
        return None
    found = prove_as_it_is(system, p, q, m, origin, shares=WIDENED, deadline=deadline, check=check)
    if found is not None:
        return found
    repaired = prove(system, p, q, [(origin, m)], closed="never", deadline=deadline, check=check)
    said = m.claim(p, q)
    if repaired is None or not repaired.bound <= said * (1.0 + FOREIGN):
        return None
    if repaired.bound < said < math.inf:
        # the repair has tuned both ends, which is another method: a larger g is feasible all the more
        raised = replace(repaired.multipliers, g=repaired.multipliers.g * (said / repaired.bound) ** 2)
        return prove_as_it_is(system, p, q, raised, origin, shares=WIDENED, check=check)
    return replace(repaired, origin=origin)


def _all_trials(blocks: Blocks, m: Multipliers, p: Norm, q: Norm, origin: str) -> Iterator[_Trial]:
    """The repaired versions of some multipliers, and last the multipliers as they are."""
    t = scaled_multipliers(blocks, m.t)
    if t is None or np.shape(m.g) != (blocks.sizes[0],) or np.shape(m.s) != (blocks.outputs,):
        return
    g, s = _sanitised(m.g), _sanitised(np.asarray(m.s) / blocks.scale_out / blocks.scale_out)
    goal = _price(g, s, p, q)
    for margin in MARGINS:
        reduced = backward_sweep(blocks, t, margin)
        if reduced is not None:
            for trial in _finish(reduced, p, q, g, s, f"{origin}, margin {margin:g}"):
                yield replace(trial, goal=goal)
    if all(np.all(x > 0.0) for x in t):
        yield _Trial(estimate=_price(g, s, p, q), t=tuple(t), g=g, s=s, origin=f"{origin}, as it is")


@np.errstate(over="ignore")
def _price(g: Array, s: Array, p: Norm, q: Norm) -> float:
    """The bound that the ends give, in the scaled signals."""
    left = float(g.max() if p == "2" else g.sum())
    right = float(s.max() if q == "2" else s.sum())
    return math.sqrt(left) * math.sqrt(right)


def scaled_multipliers(blocks: Blocks, t: Sequence[Array]) -> list[Array] | None:
    """t in the scaled signals, mended: wrong shapes give None, non-finite and negative entries zero."""
    if len(t) != len(blocks.pre) or any(np.shape(x) != (n,) for x, n in zip(t, blocks.sizes[1:], strict=True)):
        return None
    scaled = []
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for k, (x, c) in enumerate(zip(t, blocks.scale[1:], strict=True), start=1):
            y = np.asarray(x, dtype=np.float64) * c * c
            scaled.append(blocks.tied(k, np.where(np.isfinite(y) & (y > 0.0), y, 0.0)))
    positive = np.concatenate([x[x > 0.0] for x in scaled]) if scaled else np.ones(1)
    if positive.size == 0:
        return None
    # a layer without any multiplier is one that the output does not feel: it must not weigh on those before it
    return [x if np.any(x > 0.0) else np.full_like(x, 1e-13 * float(np.median(positive))) for x in scaled]


def _sanitised(x: Array) -> Array:
    x = np.asarray(x, dtype=np.float64)
    x = np.where(np.isfinite(x) & (x > 0.0), np.minimum(x, 1e200), 0.0)
    level = float(x.mean()) if x.size else 0.0
    return np.maximum(x, 1e-9 * level) if level > 0.0 else np.ones_like(x)


def _closed_trials(blocks: Blocks, p: Norm, q: Norm) -> Iterator[_Trial]:
    n0, m = blocks.sizes[0], blocks.outputs
    ones = np.ones(n0), np.ones(m)
    scratch = backward_sweep(blocks, None, 1e-10)
    if scratch is not None:
        yield from _finish(scratch, p, q, *ones, "sweep")
    if not blocks.pre:
        return
    for name, t in closed_forms(blocks, p):
        reduced = backward_sweep(blocks, t, 1e-8)
        if reduced is not None:
            yield from _finish(reduced, p, q, *ones, name)


def _finish(reduced: Reduced, p: Norm, q: Norm, g: Array, s: Array, origin: str) -> Iterator[_Trial]:
    """The least (g, s) with diag(g, s) >= N, along the candidate directions."""
    n0 = reduced.inputs
    size = np.sum(np.abs(reduced.ends), axis=1)
    rows_g, rows_s = _sanitised(size[:n0]), _sanitised(size[n0:])
    # an end that a solver left too small by a little (next to nothing, for a dead output) must not scale up all others
    least = (1.0 + 1e-6) * np.diag(reduced.ends)
    g, s = np.maximum(g, least[:n0]), np.maximum(s, least[n0:])
    flat_g, flat_s = np.ones(n0), np.ones(len(s))
    g_first = p == "2" or n0 == 1
    s_first = q == "2" or len(s) == 1
    starts = [(flat_g if g_first else g, flat_s if s_first else s)]
    if not (g_first and s_first):
        starts.append((flat_g if g_first else rows_g, flat_s if s_first else rows_s))
        starts.append((flat_g, flat_s))
    for g0, s0 in starts:
        trial = _scaled_ends(reduced, p, q, g0, s0, origin)
        if trial is not None:
            yield trial


def _scaled_ends(reduced: Reduced, p: Norm, q: Norm, g0: Array, s0: Array, origin: str) -> _Trial | None:
    """Minimise a b over a, b > 0 with diag(a g0, b s0) >= N: a(b) by a Schur complement, b by golden section."""
    n0 = reduced.inputs
    rg, rs = 1.0 / np.sqrt(g0), 1.0 / np.sqrt(s0)
    root = np.concatenate([rg, rs])
    with np.errstate(over="ignore", invalid="ignore"):
        n = root[:, None] * reduced.ends * root
    if not np.all(np.isfinite(n)):
        return None
    n00, n10, n11 = n[:n0, :n0], n[n0:, :n0], n[n0:, n0:]
    values, vectors = sla.eigh(n11, check_finite=False)
    turned = vectors.T @ n10
    least = max(float(values[-1]), 1e-290)
    floor = 1e-13 * float(np.abs(n00).max(initial=0.0)) + 1e-290
    top_of = _updated_top(n00, turned)

    def a_of(b: float) -> float:
        gap = b - values
        return math.inf if np.any(gap <= 0.0) else max(top_of(1.0 / gap), floor)

    def log_price(x: float) -> float:
        return math.log(a_of(_exp(x))) + x

    # without activations any balance of the two ends is as good as any other
    x = _golden(log_price, math.log(least), 60.0, 64 if n0 <= 150 else 44) if reduced.t else 0.0
    b = _exp(x)
    a = a_of(b)
    if not (math.isfinite(b) and math.isfinite(a) and a > 0.0):
        return None
    g, s = a * g0, b * s0
    price = _price(g, s, p, q)
    return _Trial(estimate=price, t=reduced.t, g=g, s=s, origin=origin) if math.isfinite(price) else None


def _exp(x: float) -> float:
    return math.exp(x) if x < 700.0 else math.inf


def _golden(f: Callable[[float], float], low: float, width: float, steps: int) -> float:
    """A minimiser of a unimodal function on [low, low + width] by golden section."""
    high, ratio = low + width, (math.sqrt(5.0) - 1.0) / 2.0
    x1, x2 = high - ratio * width, low + ratio * width
    f1, f2 = f(x1), f(x2)
    for _ in range(steps):
        if f1 <= f2:
            high, x2, f2 = x2, x1, f1
            x1 = high - ratio * (high - low)
            f1 = f(x1)
        else:
            low, x1, f1 = x1, x2, f2
            x2 = low + ratio * (high - low)
            f2 = f(x2)
    return x1 if f1 <= f2 else x2


def _updated_top(a: Array, w: Array) -> Callable[[Array], float]:
    """d -> largest eigenvalue of a + w' diag(d) w, d > 0: by a secular equation where w has few rows."""
    m, n = w.shape
    if 4 * m > n:
        return lambda d: top_eigenvalue(a + w.T @ (d[:, None] * w))
    values, vectors = sla.eigh(a, check_finite=False)
    turned = w @ vectors
    low0 = float(values[-1])

    def top(d: Array) -> float:
        scaled = np.sqrt(d)[:, None] * turned
        low, high = low0, low0 + float(np.sum(scaled * scaled))
        for _ in range(60):
            middle = 0.5 * (low + high)
            gap = middle - values
            # middle is above the spectrum iff I - scaled (middle - values)^-1 scaled' is nonnegative
            if gap[-1] > 0.0 and top_eigenvalue((scaled / gap) @ scaled.T) <= 1.0:
                high = middle
            else:
                low = middle
            if high - low <= 1e-15 * abs(high):
                break
        return high

    return top


def _proved(
    system: FloatSystem, blocks: Blocks, trial: _Trial, p: Norm, q: Norm, check: Callable[[Multipliers], bool] | None
) -> ProvedMultipliers | None:
    """Widen the ends until the proof goes through; a few roundings at first, more for badly conditioned networks."""
    delta = 4e-13
    while delta < 0.3:
        m = unscaled(blocks, trial, delta)
        if m is not None and proves_lmi(system, m) and (check is None or check(m)):
            return ProvedMultipliers(multipliers=m, bound=sqrt_up(bound_squared(m, p, q)), origin=trial.origin)
        delta *= 8.0
    return None


def unscaled(blocks: Blocks, trial: _Trial, delta: float) -> Multipliers | None:
    """The multipliers of the network itself, the ends widened by delta; None where they leave the range of floats."""
    # (g, t, s) -> (c g, c t, s / c) changes nothing; c = 2^out keeps the numbers in the middle of the range
    out = int(np.log2(blocks.scale_out))
    with np.errstate(over="ignore", under="ignore"):
        t = tuple(np.ldexp(x, out - 2 * int(np.log2(c))) for x, c in zip(trial.t, blocks.scale[1:], strict=True))
        g = np.ldexp(trial.g * (1.0 + delta), out)
        s = np.ldexp(trial.s * (1.0 + delta), out)
    flat = np.concatenate([g, *t])
    if not (np.all(np.isfinite(flat)) and np.all(flat > 0.0) and np.all(s > 0.0) and np.all(np.isfinite(s))):
        return None
    return Multipliers(t=t, g=g, s=s)
