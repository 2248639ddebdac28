"""From a point and a direction to pairs of doubles on which the network is affine, or nearly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np

from lipmodel.lower.balls import Array
from lipmodel.lower.linearise import FloatProgram
from lipmodel.lower.moves import Box, centred, chord
from lipmodel.lower.zone import Zone

Pair = tuple[Array, Array]
LONG = (2.0**-4, 2.0**-12)
"""Steps across many affine pieces, relative to the point."""


def proposals(program: FloatProgram, x: Array, v: Array, zone: Zone, *, exact: bool) -> Iterator[Pair]:
    """Pairs along v near x, the likeliest first; exact: whether all weights are known exactly."""
    box = zone.box
    if box is not None:
        v = np.where(box[0] < box[1], v, 0.0)
    near = _along(program, x, v, zone, exact)
    if not exact:
        # in a large network the errors of its weights may hide what a step of one affine piece does
        yield from islice(near, 1)
        for h in LONG:
            pair = _rounded(x, h * max(1.0, float(np.max(np.abs(x)))), v, box)
            if np.all(np.isfinite(pair)) and not np.array_equal(*pair):
                yield pair
    yield from near
    if program.neurons and not program.has_smooth:
        yield from _along(program, centred(program, x, box), v, zone, exact)
    if box is not None:
        # at a corner of the domain no direction may be left to go both ways
        for pull in (1e-3, 1e-6, 1e-9):
            yield from _along(program, x + pull * (0.5 * (box[0] + box[1]) - x), v, zone, exact)


def _along(program: FloatProgram, x: Array, v: Array, zone: Zone, exact: bool) -> Iterator[Pair]:
    box = zone.box
    low, high, steepest = chord(program, x, v)
    size = max(1.0, float(np.max(np.abs(x))))
    low, high = max(low, -size), min(high, size)
    if box is not None:
        low, high = _inside(x, v, low, high, box)
        room = zone.room(x, v)
        low, high = max(low, -room), min(high, room)
    if not high > low:
        low, high = -1e-9 * size, 1e-9 * size
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    lengths = [(middle, 0.9 * half), (middle, half / 64.0), (0.0, min(-low, high) / 2.0)]
    if program.has_smooth:
        # between the curvature that a long step meets and the errors of weights that are not exact
        short = (2.0**-24 if exact else 2.0**-17) / max(steepest, 1e-300)
        lengths = [(float(np.clip(0.0, low + t, high - t)), t) for t in (short, 16.0 * short, short / 16.0)]
        lengths = [(c, t) for c, t in lengths if 2.0 * t < high - low] or [(middle, 0.9 * half)]
    for center, h in lengths:
        pair = _rounded(x + center * v, h, v, box)
        if np.all(np.isfinite(pair)) and not np.array_equal(*pair):
            yield pair


def _inside(x: Array, v: Array, low: float, high: float, box: Box) -> tuple[float, float]:
    for bound, outward in zip(box, (-1.0, 1.0), strict=True):
        times = (bound - x)[v != 0] / v[v != 0]
        low = max(low, float(np.max(times[times < 0], initial=-np.inf)))
        high = min(high, float(np.min(times[times > 0], initial=np.inf)))
        leaving = outward * v[x == bound]
        if np.any(leaving > 0):
            high = min(high, 0.0)
        if np.any(leaving < 0):
            low = max(low, 0.0)
    return low, high


def _rounded(center: Array, h: float, v: Array, box: Box | None) -> Pair:
    """center -+ h v on a grid of doubles on which sums and sign vectors times h are exact."""
    top = float(np.max(np.abs(center))) + 2.0 * h
    if not math.isfinite(top):
        return center, center
    grid = math.ldexp(1.0, max(math.frexp(top)[1] - 52, -1000))
    h = max(round(h / grid), 1.0) * grid
    middle = np.round(center / grid) * grid
    step = np.round(h * v / grid) * grid
    a, b = middle - step, middle + step
    return (a, b) if box is None else (np.clip(a, *box), np.clip(b, *box))
