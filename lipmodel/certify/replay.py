"""The ranges of all pre-activations on a box or a ball, found again in exact arithmetic, and the slopes that they give.

Intervals are propagated through the tape; what is affine in the input is read off the domain itself; and where the
importer's range is smaller, the neuron is bounded by linear functions of earlier and earlier values (Zhang, Weng, Chen,
Hsieh & Daniel 2018, CROWN, arXiv 1811.00866). The importer's ranges and lines are hints: they choose which neurons and
which slopes of lines are tried, never what is true.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.certify import pullback
from lipmodel.certify.evaluation import Ends, activated, added, between
from lipmodel.certify.functions import pieces, slopes, values
from lipmodel.certify.pullback import Bounds, Rows, Split, Sums, Vector, root_up, vector
from lipmodel.certify.tape import Entry, Fixed, Kind, Reading, Sparse, Unreadable, composed, identity, total
from lipmodel.domain import Ball, Box

if TYPE_CHECKING:
    from lipmodel.certify.claims import Claim

Array = np.ndarray[Any, np.dtype[Any]]

BITS = 320
"""Bits of intervals."""
WRITTEN_OUT = 2_000_000
"""Entries of an affine form of the input beyond which it is not composed."""
AT_ONCE = 2_000_000
"""Coefficients of one value that are handled at a time."""
STEEPEST = 2.0**20
"""Slopes of lines that are not tried."""
RELU = Kind("Relu")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """A domain: a box around it, and for a ball of the norm 1 or 2 (norm "inf" for boxes) its radius * 2^-exponent."""

    box: Fixed
    norm: str

    @property
    def center(self) -> Fixed:
        return Fixed([(v, 0) for v, _ in self.box.entries], self.box.exponent)

    @property
    def radius(self) -> int:
        return self.box.entries[0][1]

    def reach(self, form: Sparse) -> Fixed:
        """How far M (x - centre) reaches, as intervals around zero."""
        found: list[Entry] = []
        for row in form.rows:
            sizes = {c: abs(v) + r for c, (v, r) in row.items()}
            if self.norm == "inf":
                far = sum(size * self.box.entries[c][1] for c, size in sizes.items())
            elif self.norm == "1":
                far = max(sizes.values(), default=0) * self.radius
            else:
                far = root_up(sum(size * size for size in sizes.values())) * self.radius
            found.append((0, far))
        extra = pullback.ROOT if self.norm == "2" else 0
        return Fixed(found, self.box.exponent + form.exponent + extra)


def region(domain: Box | Ball, norm: str) -> Region:
    """The domain in integers; norm: that of the ball."""
    if isinstance(domain, Box):
        ends = [(Fraction(a), Fraction(b)) for a, b in zip(domain.lo, domain.hi, strict=True)]
        return Region(box=_exactly(ends), norm="inf")
    radius = Fraction(domain.radius)
    ends = [(c - radius, c + radius) for c in map(Fraction, domain.center)]
    return Region(box=_exactly(ends), norm=norm)


def _exactly(ends: Sequence[Ends]) -> Fixed:
    exponent = max(v.denominator.bit_length() - 1 for pair in ends for v in pair)
    whole = [(int(a * 2**exponent), int(b * 2**exponent)) for a, b in ends]
    return Fixed([(a + b, b - a) for a, b in whole], exponent + 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lines:
    """slope_low v + low <= phi(v) <= slope_high v + high; slopes as integers over 2^places."""

    slope_low: Array
    slope_high: Array
    places: int
    low: Vector | None
    high: Vector | None


@dataclass(slots=True, kw_only=True, eq=False)
class Replay:
    """One pass through a tape.

    spans: intervals of the values of steps, None where they are unbounded; forms: of those that are affine in the
    input, their linear part (None: too large) and their value at the centre; claims: what the importer says. gaps:
    whether something was left out that the importer may have done.
    """

    reading: Reading
    region: Region
    claims: Mapping[int, Claim]
    spans: dict[int, Fixed | None] = field(default_factory=dict)
    forms: dict[int, tuple[Sparse | None, Fixed]] = field(default_factory=dict)
    lines: dict[int, Lines | None] = field(default_factory=dict)
    maps: dict[int, Split] = field(default_factory=dict)
    vectors: dict[tuple[str, int], Vector] = field(default_factory=dict)
    gaps: bool = False

    def run(self) -> None:
        """Find the spans of all pre-activations."""
        for k, step in enumerate(self.reading.tape.steps):
            if not step.known:
                raise Unreadable("a constant of which the value is not known")
            if step.kind == "input":
                self.forms[k] = identity(step.size), self.region.center
            elif step.kind == "activation":
                self._activate(k)
            elif all(s in self.forms for s in step.sources):
                self.forms[k] = self._form(k)
            else:
                inputs = [self.span(s) for s in step.sources]
                self.spans[k] = self._applied(k, inputs)

    def span(self, k: int) -> Fixed | None:
        """The interval of the value of a step."""
        if k not in self.spans:
            form, center = self.forms[k]
            if form is None:
                self.spans[k] = self._applied(k, [self.span(s) for s in self.reading.tape.steps[k].sources])
            else:
                self.spans[k] = center.added(self.region.reach(form)).rounded(BITS)
        return self.spans[k]

    def _form(self, k: int) -> tuple[Sparse | None, Fixed]:
        step = self.reading.tape.steps[k]
        center = self._applied(k, [self.forms[s][1] for s in step.sources])
        assert center is not None
        parts = [self.forms[s][0] for s in step.sources]
        form: Sparse | None = None
        known = [part for part in parts if part is not None]
        if step.kind == "still":
            form = Sparse(self.reading.inputs, 0, [{} for _ in range(step.size)])
        elif len(known) == len(parts) and step.kind == "linear":
            assert step.map is not None
            if sum(len(known[0].rows[c]) for row in step.map.rows for c in row) <= 20 * WRITTEN_OUT:
                form = composed(step.map, known[0])
        elif len(known) == len(parts):
            form = known[0]
            for part in known[1:]:
                form = total(form, part)
        if form is not None and form.entries > WRITTEN_OUT:
            form = None
        self.gaps |= form is None
        return form, center

    def _applied(self, k: int, inputs: Sequence[Fixed | None]) -> Fixed | None:
        """An affine step on intervals."""
        step = self.reading.tape.steps[k]
        known = [x for x in inputs if x is not None]
        if len(known) < len(inputs):
            return None
        if step.kind == "still":
            return step.shift or Fixed([(0, 0)] * step.size)
        if step.kind == "linear":
            assert step.map is not None
            known = [known[0].through(step.map)]
        return added([*known, step.shift]).rounded(BITS)

    def _activate(self, k: int) -> None:
        step = self.reading.tape.steps[k]
        source = step.sources[0]
        span, claim = self.span(source), self.claims.get(k)
        if span is None:
            self.spans[k], self.lines[k], self.gaps = None, None, True
            return
        if claim is not None and source not in self.forms:
            span = self._tightened(source, span, claim)
        self.spans[source] = span
        self.spans[k] = activated(step.kinds, span, BITS)
        hints = None if claim is None else claim.line_slopes()
        self.lines[k] = None if hints is None else lines(step.kinds, span, *hints)
        self.gaps |= claim is None or (hints is not None and self.lines[k] is None)

    def _tightened(self, source: int, span: Fixed, claim: Claim) -> Fixed:
        """The span, smaller where the importer says so and it is true."""
        assert claim.within is not None
        lo, hi = (side.tolist() for side in claim.within)
        ends = [span.ends(i) for i in range(len(lo))]
        wanted = [(i, 1) for i, (a, _) in enumerate(ends) if a < lo[i]]
        wanted += [(i, -1) for i, (_, b) in enumerate(ends) if b > hi[i]]
        if not wanted:
            return span
        try:
            found = self._lower(source, wanted)
        except Unreadable:
            self.gaps = True
            return span
        for (i, sign), bound in zip(wanted, found, strict=True):
            low, high = ends[i]
            ends[i] = (max(low, bound), high) if sign > 0 else (low, min(high, -bound))
        if any(low > high for low, high in ends):
            raise Unreadable("ranges that contradict each other")
        return between(ends, BITS)

    def _lower(self, target: int, wanted: Sequence[tuple[int, int]]) -> list[Fraction]:
        """Lower bounds of sign * (entry i of the target), for all (i, sign)."""
        size = self.reading.tape.steps[target].size
        widest = max(step.size for step in self.reading.tape.steps[: target + 1])
        batch = max(1, AT_ONCE // widest)
        found: list[Fraction] = []
        for first in range(0, len(wanted), batch):
            some = wanted[first : first + batch]
            unit = np.zeros((len(some), size))
            for row, (i, sign) in enumerate(some):
                unit[row, i] = sign
            found += self._back(target, Rows(unit, np.zeros(len(some), dtype=np.int64)))
        return found

    def _back(self, target: int, start: Rows) -> list[Fraction]:
        """Lower bounds of linear functions of the target."""
        bounds = Bounds(len(start.power))
        waiting: dict[int, list[Sums]] = {target: [Sums(start.coefficients.astype(np.int64), start.power)]}
        for k in range(target, -1, -1):
            if k not in waiting:
                continue
            rows, step = self._arrived(bounds, k, waiting.pop(k)), self.reading.tape.steps[k]
            if step.kind == "input":
                self._at_the_input(bounds, rows)
            elif step.kind == "still" or (step.kind == "activation" and self.lines.get(k) is None):
                bounds.gather(rows, self._vector("span", k, self.span(k)))
            elif step.kind == "activation":
                waiting.setdefault(step.sources[0], []).append(self._through_lines(bounds, k, rows))
            else:
                if step.shift is not None:
                    bounds.gather(rows, self._vector("shift", k, step.shift))
                if step.map is not None:
                    blur = self._blur(k)
                    if blur is not None:
                        bounds.gather(rows, blur)
                    waiting.setdefault(step.sources[0], []).append(pullback.pulled(rows, self._split(k)))
                else:
                    for s in step.sources:
                        waiting.setdefault(s, []).append(Sums(rows.coefficients.astype(np.int64), rows.power))
        return bounds.values

    def _arrived(self, bounds: Bounds, k: int, parts: Sequence[Sums]) -> Rows:
        """Functions of the value of step k, their coefficients short."""
        sums = pullback.added(parts)
        rows, rest = pullback.shortened(sums)
        if rest is not None or sums.slop:
            bounds.charge(rest, sums.slop, sums.power, self._vector("span", k, self.span(k)))
        return rows

    def _at_the_input(self, bounds: Bounds, rows: Rows) -> None:
        if self.region.norm == "inf":
            bounds.gather(rows, self._vector("span", 0, self.region.box))
            return
        bounds.gather(rows, self._vector("centre", 0, self.region.center))
        bounds.on_ball(rows, self.region.norm, self.region.radius, self.region.box.exponent)

    def _through_lines(self, bounds: Bounds, k: int, rows: Rows) -> Sums:
        found = self.lines[k]
        assert found is not None
        for offsets, part in ((found.low, np.maximum), (found.high, np.minimum)):
            if offsets is not None:
                bounds.gather(Rows(part(rows.coefficients, 0.0), rows.power), offsets)
        return Sums(pullback.scaled(rows, found.slope_low, found.slope_high), rows.power - found.places)

    def _vector(self, what: str, k: int, x: Fixed | None) -> Vector:
        if x is None:
            raise Unreadable("a value without bounds")
        if (what, k) not in self.vectors:
            self.vectors[what, k] = vector(x)
        return self.vectors[what, k]

    def _split(self, k: int) -> Split:
        if k not in self.maps:
            map = self.reading.tape.steps[k].map
            assert map is not None
            self.maps[k] = pullback.split(map)
        return self.maps[k]

    def _blur(self, k: int) -> Vector | None:
        """Intervals that hold what the radii of the entries of a map make of its argument."""
        if ("blur", k) not in self.vectors:
            step = self.reading.tape.steps[k]
            assert step.map is not None
            if not any(r for row in step.map.rows for _, r in row.values()):
                return None
            x = self.span(step.sources[0])
            if x is None:
                raise Unreadable("a value without bounds")
            size = [abs(v) + r for v, r in x.entries]
            far = [sum(r * size[c] for c, (_, r) in row.items()) for row in step.map.rows]
            self.vectors["blur", k] = vector(Fixed([(0, v) for v in far], x.exponent + step.map.exponent))
        return self.vectors["blur", k]


# ------------------------------------------------------------------------------------------------------------- lines


def lines(kinds: Sequence[Kind], x: Fixed, below: Array, above: Array) -> Lines | None:
    """Lines of about these slopes around functions of the entries of x; None where none are known."""
    hints = below, above
    steepest = max(float(np.abs(side).max(initial=0.0)) for side in hints)
    if not steepest <= STEEPEST:
        return None
    places = pullback.SLOPE - 1 - max(0, math.ceil(math.log2(max(steepest, 1.0))))
    whole = [np.rint(np.ldexp(side, places)).astype(np.int64) for side in hints]
    unit = Fraction(1, 1 << places)
    lows: list[Fraction] = []
    highs: list[Fraction] = []
    try:
        for i, kind in enumerate(kinds):
            a, b = int(whole[0][i]), int(whole[1][i])
            low, high = _offsets(kind, x.ends(i), a * unit, b * unit)
            lows.append(low)
            highs.append(high)
    except Unreadable:
        return None
    return Lines(
        slope_low=whole[0],
        slope_high=whole[1],
        places=places,
        low=vector(between([(v, v) for v in lows], pullback.VECTOR)) if any(lows) else None,
        high=vector(between([(v, v) for v in highs], pullback.VECTOR)) if any(highs) else None,
    )


def _offsets(kind: Kind, ends: Ends, below: Fraction, above: Fraction) -> Ends:
    """The largest a and the least b with below v + a <= phi(v) <= above v + b between the ends, or a little off."""
    lo, hi = ends
    found = pieces(kind)
    if found is not None:
        breaks, steep, offsets = found
        points = [lo, *(b for b in breaks if lo < b < hi), hi]
        at = []
        for v in points:
            k = sum(b < v for b in breaks)
            at.append((v, steep[k] * v + offsets[k]))
        return min(y - below * v for v, y in at), max(y - above * v for v, y in at)
    left, right = values(kind, lo, lo), values(kind, hi, hi)
    alpha, beta = slopes(kind, lo, hi)
    width = hi - lo
    low = _least(left[0] - below * lo, right[0] - below * hi, below - alpha, beta - below, width)
    high = -_least(above * lo - left[1], above * hi - right[1], beta - above, above - alpha, width)
    return low, high


def _least(left: Fraction, right: Fraction, fall: Fraction, rise: Fraction, width: Fraction) -> Fraction:
    """A lower bound of a function on [0, width] with these end values, whose slopes lie between -fall and rise."""
    if fall <= 0:
        return left
    if rise <= 0:
        return right
    t = min(max((left - right + rise * width) / (fall + rise), Fraction(0)), width)
    return max(left - fall * t, right - rise * (width - t))


# ------------------------------------------------------------------------------------------------------------ slopes


def unconfirmed(found: Replay, k: int, claim: Claim) -> list[int]:
    """The entries of activation step k that may have slopes which the importer's intervals do not hold."""
    step = found.reading.tape.steps[k]
    span = found.spans[step.sources[0]]
    alpha, beta = claim.alpha.tolist(), claim.beta.tolist()
    wrong = []
    for i, kind in enumerate(step.kinds):
        if span is None:
            own: tuple[Any, Any] = (step.alpha[i], step.beta[i])
        elif span.entries[i][1] == 0:
            continue  # it does not move
        elif kind == RELU:
            v, r = span.entries[i]
            own = (float(v >= r), float(v > -r))
        else:
            own = slopes(kind, *span.ends(i))
        if not (alpha[i] <= own[0] and own[1] <= beta[i]):
            wrong.append(i)
    return wrong
