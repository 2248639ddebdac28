"""Values of a tape at points and over intervals, in exact arithmetic, rounded outward where numbers grow long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from lipmodel.certify.functions import values
from lipmodel.certify.tape import Entry, Fixed, Kind, Reading, Tape, Unreadable

BITS = 1024
"""Bits of the values at a point."""

Ends = tuple[Fraction, Fraction]


def doubles(numbers: Sequence[float]) -> Fixed:
    """Finite doubles, exactly."""
    ratios = [float(v).as_integer_ratio() for v in numbers]
    exponent = max((d.bit_length() - 1 for _, d in ratios), default=0)
    return Fixed([(n << (exponent - d.bit_length() + 1), 0) for n, d in ratios], exponent)


def between(ends: Sequence[Ends], bits: int) -> Fixed:
    """Intervals, exactly where that takes no more than so many bits; else rounded outward."""
    places = max((v.denominator.bit_length() - 1 for pair in ends for v in pair), default=0)
    size = max((abs(v.numerator).bit_length() - v.denominator.bit_length() for p in ends for v in p if v), default=0)
    exponent = min(places, bits - size)
    if places == exponent and any(v.denominator & (v.denominator - 1) for pair in ends for v in pair):
        exponent = bits - size
    scale = Fraction(2) ** exponent
    whole = [(math.floor(low * scale), math.ceil(high * scale)) for low, high in ends]
    return Fixed([(a + b, b - a) for a, b in whole], exponent + 1)


def added(parts: Sequence[Fixed | None]) -> Fixed:
    """The sum of vectors; None is zero."""
    known = [part for part in parts if part is not None]
    total = known[0]
    for part in known[1:]:
        total = total.added(part)
    return total


def activated(kinds: Sequence[Kind], x: Fixed, bits: int) -> Fixed:
    """Functions of the entries of a vector. Raises Unreadable where one is not known."""
    if all(kind.family == "Relu" for kind in kinds):
        return Fixed([_relu(v, r) for v, r in x.entries], x.exponent + 1)
    return between([values(kind, *x.ends(i)) for i, kind in enumerate(kinds)], bits)


def _relu(v: int, r: int) -> Entry:
    """max(x, 0) on an interval, over half the unit."""
    if v >= r:
        return 2 * v, 2 * r
    high = max(v + r, 0)
    return high, high


def evaluate(tape: Tape, x: Fixed, last: int | None = None) -> list[Fixed]:
    """The values of all steps (up to the last one) at a point. Raises Unreadable where one is not known."""
    found: list[Fixed] = []
    for step in tape.steps if last is None else tape.steps[: last + 1]:
        if not step.known:
            raise Unreadable("a constant of which the value is not known")
        if step.kind == "input":
            value = x
        elif step.kind == "still":
            value = step.shift or Fixed([(0, 0)] * step.size)
        elif step.kind == "linear":
            assert step.map is not None
            value = added([found[step.sources[0]].through(step.map), step.shift])
        elif step.kind == "sum":
            value = added([*(found[s] for s in step.sources), step.shift])
        else:
            value = activated(step.kinds, found[step.sources[0]], BITS)
        found.append(value.rounded(BITS))
    return found


def pair_moduli(reading: Reading, x: Sequence[float], y: Sequence[float]) -> tuple[list[Fraction], list[Fraction]]:
    """|x - y| exactly, and lower bounds of |f(x) - f(y)|, entrywise; x, y: finite doubles."""
    ends = [evaluate(reading.tape, doubles(point), reading.output)[reading.output] for point in (x, y)]
    gap = ends[0].added(Fixed([(-v, r) for v, r in ends[1].entries], ends[1].exponent))
    unit = Fraction(2) ** -gap.exponent
    step = [abs(Fraction(float(a)) - Fraction(float(b))) for a, b in zip(x, y, strict=True)]
    return step, [max(abs(v) - r, 0) * unit for v, r in gap.entries]
