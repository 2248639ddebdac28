"""What the importer says of the slopes of a network, and whether the checker's own reading confirms it.

On the whole space the slopes of every activation must hold those of the function in the file; on a box or a ball those
that it has on ranges found again (`replay.py`). There the importer's values at a few points are looked at as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.certify.evaluation import Ends, doubles, evaluate
from lipmodel.certify.replay import Replay, region, unconfirmed
from lipmodel.certify.tape import Fixed, Reading, Unreadable
from lipmodel.errors import Refuted
from lipmodel.network.ops import Elementwise
from lipmodel.network.slopes import slopes
from lipmodel.spec import Ball, Box

if TYPE_CHECKING:
    from lipmodel.network.graph import Network

Array = np.ndarray[Any, np.dtype[Any]]

GROSS, ROUNDING = 1e-3, 1e-9
"""Differences of values that rounding does not explain: relative to the largest of a layer, and of all layers."""
ROOM, SHORT = 0.25, 2.0**-10
"""By how much of its width, and of the largest value of the layer, a range may be too narrow before this counts as a
contradiction: coefficients are rounded to few bits, and where that happens may make so much of a difference."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Claim:
    """What the importer says of an activation: slopes alpha, beta of all entries, on arguments `within` (lo, hi).

    at: its arguments at the sample points, in floating point, shape (size, points).
    """

    op: Elementwise
    alpha: Array
    beta: Array
    within: tuple[Array, Array] | None = None
    at: Array | None = None

    def line_slopes(self) -> tuple[Array, Array] | None:
        """The slopes of the lines that the importer takes below and above the activation, None where it takes none."""
        from lipmodel.ranges.relaxation import _lines

        assert self.within is not None
        found = _lines(self.op, *self.within)
        return None if found is None else (found.slope_low, found.slope_high)


def claims_of(
    network: Network, ranges: Mapping[str, tuple[Array, Array]] | None, samples: Array | None
) -> dict[str, Claim]:
    """The claims by name of the activation; samples: shape (inputs, points)."""
    floats = {} if samples is None else network.values(samples, None)
    claims = {}
    for node in network.order():
        op = network.op(node)
        if not isinstance(op, Elementwise):
            continue
        within = None if ranges is None else ranges[node]
        alpha, beta = slopes(op, within)
        at = None if samples is None else floats[network.arguments(node)[0]].reshape(op.size, -1)
        claims[node] = Claim(op=op, alpha=alpha, beta=beta, within=within, at=at)
    return claims


def samples_of(domain: Box | Ball, norm: str) -> Array:
    """Some points of a domain, shape (inputs, points): its middle, and points near its boundary."""
    rng = np.random.default_rng(0)
    if isinstance(domain, Box):
        lo, hi = np.array(domain.lo), np.array(domain.hi)
        corner = np.where(rng.random(len(lo)) < 0.5, lo, hi)
        return np.stack([np.clip(0.5 * lo + 0.5 * hi, lo, hi), lo, hi, corner], axis=1)
    center = np.array(domain.center)
    found = [center]
    for sign in (-1.0, 1.0):
        step = rng.standard_normal(len(center))
        length = {"1": np.abs(step).sum(), "2": np.sqrt(step @ step), "inf": np.abs(step).max()}[norm]
        point = center + sign * step * (0.999 * domain.radius / length)
        found += [point] if domain.contains(point, norm) else []
    return np.stack(found, axis=1)


def confirm_global(reading: Reading, claims: Mapping[int, Claim]) -> None:
    """Raise Refuted unless the claimed slopes hold those of the functions in the file on the whole line."""
    for k, claim in claims.items():
        step = reading.tape.steps[k]
        _same_size(reading, k, claim)
        ends = zip(step.alpha, claim.alpha.tolist(), step.beta, claim.beta.tolist(), strict=True)
        if not all(a <= low and high <= b for low, a, high, b in ends):
            raise disagree(f"the slopes of activation {step.name!r}")


def confirm_local(reading: Reading, domain: Box | Ball, norm: str, claims: Mapping[int, Claim], samples: Array) -> None:
    """Find the claimed slopes again on a bounded domain; claims by step, samples: points at which they were taken.

    Raises Refuted where the claims contradict what the file says; Unreadable where they may be true and were not found.
    """
    for k, claim in claims.items():
        _same_size(reading, k, claim)
    for point in range(samples.shape[1]):
        values = evaluate(reading.tape, doubles(samples[:, point].tolist()))
        _check_values({k: values[reading.tape.steps[k].sources[0]] for k in claims}, claims, reading, point)
    found = Replay(reading=reading, region=region(domain, norm), claims=claims)
    found.run()
    wrong = {k: unconfirmed(found, k, claim) for k, claim in claims.items()}
    for k, entries in wrong.items():
        span, name = found.spans[reading.tape.steps[k].sources[0]], reading.tape.steps[k].name
        if span is None or found.gaps or not entries:
            continue
        largest = _nearest(max(abs(end) for i in range(len(span.entries)) for end in span.ends(i)))
        for i in entries:
            if _far_outside(span.ends(i), largest, claims[k], i):
                raise disagree(f"the range of neuron {i} before activation {name!r}")
    count = sum(map(len, wrong.values()))
    if count:
        raise Unreadable(f"the ranges of {count} neurons could not be replayed")


def _far_outside(ends: Ends, largest: float, claim: Claim, i: int) -> bool:
    """Whether a range exceeds the claimed one by more than different roundings explain."""
    assert claim.within is not None
    lo, hi = (float(side[i]) for side in claim.within)
    low, high = map(_nearest, ends)
    return max(lo - low, high - hi) > ROOM * (hi - lo) + SHORT * largest


def _check_values(exact: Mapping[int, Fixed], claims: Mapping[int, Claim], reading: Reading, point: int) -> None:
    """Whether values at a point lie in the claimed ranges, and are what the importer computes there."""
    middles: dict[int, Array] = {}
    for k, claim in claims.items():
        assert claim.within is not None
        ends = [exact[k].ends(i) for i in range(len(claim.alpha))]
        for i, (lo, hi) in enumerate(zip(*(side.tolist() for side in claim.within), strict=True)):
            if ends[i][1] < lo or ends[i][0] > hi:
                raise disagree(f"the range of neuron {i} before activation {reading.tape.steps[k].name!r}")
        middles[k] = np.array([_nearest((low + high) / 2) for low, high in ends])
    most = max((np.abs(v).max(initial=0.0) for v in middles.values()), default=0.0)
    for k, claim in claims.items():
        assert claim.at is not None
        with np.errstate(all="ignore"):
            gap, size = np.abs(claim.at[:, point] - middles[k]), np.abs(middles[k]).max(initial=0.0)
            if bool(np.any((gap > GROSS * size) & (gap > ROUNDING * most))):
                raise disagree(f"the values before activation {reading.tape.steps[k].name!r}")


def _nearest(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _same_size(reading: Reading, k: int, claim: Claim) -> None:
    if len(claim.alpha) != reading.tape.steps[k].size:
        raise disagree(f"the size of activation {reading.tape.steps[k].name!r}")


def disagree(what: str) -> Refuted:
    """A verdict on two readings of one file."""
    return Refuted(f"the independent reader and the importer disagree about the network: {what}")
