"""Probes of the exact kernel: questions whose answers are computed here, in rationals, without it.

Each probe runs against a kernel module (the real one, or a mutated one) and gives a plain value, which must equal the
answer expected of it. Boundary cases decide: one unit in the last place, one grid unit, one entry.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from benchmarks.probes_inside import inside, matrices
from benchmarks.questions import Matrix, Probe, block, built, inequality, psd, verdict, with_arithmetic


@cache
def probes() -> tuple[Probe, ...]:
    """All probes, the quick ones first."""
    groups = (
        arithmetic(),
        inequalities(),
        faults(),
        bounds(),
        families(),
        quotients(),
        spectral(),
        matrices(),
        inside(),
    )
    return tuple(itertools.chain.from_iterable(groups))


def _values(b: Any) -> Any:
    unit = Fraction(1, 2**b.exponent)
    return tuple(None if part is None else [[v * unit for v in row] for row in part] for part in (b.mantissa, b.radius))


def arithmetic() -> Iterator[Probe]:
    """Dyadic numbers, and matrices of them, with and without radii, in both arithmetics."""
    yield Probe(
        "dyadic", lambda k: k.dyadic([0.5, 3.0, -0.375, 0.0, 2.0**-70]), _dyadic([0.5, 3.0, -0.375, 0.0, 2.0**-70])
    )
    yield Probe("dyadic integers", lambda k: (k.dyadic([4.0, -6.0]), k.dyadic([])), (([4, -6], 0), ([], 0)))
    a = [[0.5, -3.0, 0.0], [1.25, 2.0, -0.125]]
    b = [[1.0, 0.25, -7.0], [0.0, -1.5, 3.0]]
    ra = [[0.25, 0.0, 1.0], [0.5, 0.125, 0.0]]
    rb = [[0.0, 0.5, 0.25], [2.0, 0.0, 0.0625]]
    fa, fb, fra, frb = ([[Fraction(v) for v in row] for row in m] for m in (a, b, ra, rb))
    zero = [[Fraction(0)] * 3 for _ in range(2)]
    for (name, p), (other, q) in itertools.product(
        (("exact", None), ("blurred", ra)), (("exact", None), ("blurred", rb))
    ):
        rp, rq = (fra if p else zero), (frb if q else zero)
        plus = [[x + y for x, y in zip(u, v, strict=True)] for u, v in zip(fa, fb, strict=True)]
        rplus = [[x + y for x, y in zip(u, v, strict=True)] for u, v in zip(rp, rq, strict=True)]
        product_ = [[sum(fa[i][r] * fb[i][c] for i in range(2)) for c in range(3)] for r in range(3)]
        error = [
            [sum(abs(fa[i][r]) * rq[i][c] + rp[i][r] * (abs(fb[i][c]) + rq[i][c]) for i in range(2)) for c in range(3)]
            for r in range(3)
        ]
        blurred = bool(p or q)
        yield Probe(
            f"added {name} {other}",
            lambda k, p=p, q=q: _values(k.added(block(k, a, p), block(k, b, q))),
            (plus, rplus if blurred else None),
        )
        for fast in (True, False):
            yield Probe(
                f"gram {name} {other} {fast}",
                lambda k, p=p, q=q, fast=fast: with_arithmetic(
                    k, fast, lambda: _values(k.gram(block(k, a, p), block(k, b, q)))
                ),
                (product_, error if blurred else None),
            )
    factors = ([3, -2], 2)
    scaled = [[Fraction(f, 4) * v for v in row] for f, row in zip(factors[0], fa, strict=True)]
    rscaled = [[abs(Fraction(f, 4)) * v for v in row] for f, row in zip(factors[0], fra, strict=True)]
    yield Probe("scaled", lambda k: _values(k.scaled(factors, block(k, a, ra))), (scaled, rscaled))
    yield Probe("scaled exact", lambda k: _values(k.scaled(factors, block(k, a))), (scaled, None))
    for name, shape in {
        "empty row": lambda k: k.Block(mantissa=[[]], exponent=0),
        "ragged": lambda k: k.Block(mantissa=[[1, 2], [3]], exponent=0),
        "radius of another height": lambda k: k.Block(mantissa=[[1], [2]], exponent=0, radius=[[1]]),
        "radius of another width": lambda k: k.Block(mantissa=[[1], [2]], exponent=0, radius=[[1], [1, 2]]),
    }.items():
        yield Probe(f"block {name}", lambda k, shape=shape: verdict(k, lambda: shape(k)), "value error")
    yield Probe("block shape", lambda k: block(k, a, ra).shape, (2, 3))


def _dyadic(values: list[float]) -> tuple[list[int], int]:
    exponent = max(Fraction(v).denominator.bit_length() - 1 for v in values)
    return [int(Fraction(v) * 2**exponent) for v in values], exponent


RELU: dict[str, Any] = {
    "sizes": [1, 2],
    "pre": [{0: [[1.0], [-1.0]]}],
    "alpha": [[0.0, 0.0]],
    "beta": [[1.0, 1.0]],
    "output": {1: [[1.0, 1.0]]},
}
"""|x| as relu(x) + relu(-x): its constant is 1, and t = (2, 2), g = 2, s = 1 is on the edge of proving sqrt(2)."""

BENT: dict[str, Any] = {
    "sizes": [2, 2, 1],
    "pre": [{0: [[0.5, -3.0], [1.25, 2.0]]}, {0: [[0.75, 0.0]], 1: [[1.5, -0.25]]}],
    "alpha": [[-0.5, 0.25], [-1.0]],
    "beta": [[1.0, 0.75], [-0.125]],
    "output": {0: [[0.5, 0.0], [0.0, 1.0]], 2: [[1.0], [-2.0]]},
}
"""Slopes of both signs, skip connections, two outputs."""


def inequalities() -> Iterator[Probe]:
    """The matrix P against its definition, and the whole decision on both sides of the edge."""
    t, g, s = [[0.5, 2.0], [0.375]], [3.0, 0.25], [1.0, 8.0]

    def whole(k: Any, system: dict[str, Any]) -> Matrix:
        found = k.exact_lmi(built(k, system), k.Multipliers(t=t, g=g, s=s))
        sizes = [*system["sizes"], len(s)]
        starts = [0, *itertools.accumulate(sizes)]
        p = [[Fraction(0)] * starts[-1] for _ in range(starts[-1])]
        for i, (values, exponent) in enumerate(found.diagonal):
            for a, v in enumerate(values):
                p[starts[i] + a][starts[i] + a] += Fraction(v) / Fraction(2) ** exponent
        for (i, j), b in found.blocks.items():
            for a, c in itertools.product(range(sizes[i]), range(sizes[j])):
                value = Fraction(b.mantissa[a][c], 2**b.exponent)
                p[starts[i] + a][starts[j] + c] += value
                if i != j:
                    p[starts[j] + c][starts[i] + a] += value
        return p

    for name, system in (("bent", BENT), ("half bent", {**BENT, "alpha": [[0.0, 0.25], [-1.0]]})):
        expected = inequality(system, t, g, s)
        yield Probe(f"the matrix of the definition, {name}", lambda k, s=system: whole(k, s), expected)
    relu = inequality(RELU, [[2.0, 2.0]], [2.0], [1.0])
    assert psd(relu)
    assert not psd(inequality(RELU, [[2.0, 2.0]], [math.nextafter(2.0, 0.0)], [1.0]))
    for margin, accepted in ((1e-12, True), (1e-9, True), (-1e-15, False), (-1e-12, False), (-1e-3, False)):
        t_, g_, s_ = [[2.0, 2.0]], [2.0 * (1 + margin)], [1.0]
        assert psd(inequality(RELU, t_, g_, s_)) == accepted
        yield Probe(
            f"relu at {margin}",
            lambda k, m=(t_, g_, s_): verdict(k, lambda: _check(k, RELU, *m, 3.0)),
            None if accepted else "rejected",
        )
    rng = np.random.default_rng(5)
    for trial in range(12):
        stretch = float(rng.uniform(0.5, 2.0))
        t_ = [[8.0 * stretch, 16.0], [4.0]]
        low, high = 0.0, 4096.0
        for _ in range(60):  # the edge of g, in rationals
            middle = (low + high) / 2
            low, high = (low, middle) if psd(inequality(BENT, t_, [middle] * 2, s)) else (middle, high)
        for factor, accepted in ((1 + 1e-11, True), (1 - 1e-13, False)):
            g_ = [high * factor] * 2
            assert psd(inequality(BENT, t_, g_, s)) == accepted
            yield Probe(
                f"bent {trial} {factor}",
                lambda k, m=(t_, g_, s): verdict(k, lambda: _check(k, BENT, *m, 1e6)),
                None if accepted else "rejected",
            )


def _check(k: Any, system: dict[str, Any], t: Any, g: Any, s: Any, bound: Any, p: str = "2", q: str = "2") -> Any:
    return k.check_lmi(built(k, system), k.Multipliers(t=t, g=g, s=s), p, q, bound)


def faults() -> Iterator[Probe]:
    """What does not form an inequality, and what only just does."""
    good: dict[str, Any] = {"t": [[2.5, 2.5]], "g": [6.0], "s": [1.25]}
    cases: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [({}, {}, None)]
    cases += [
        ({}, {"t": t}, "t of activation 1 must be finite")
        for t in ([[-5e-324, 2.5]], [[2.5, math.nan]], [[math.inf, 2.0]])
    ]
    cases += [({}, {"g": g}, "g must be finite") for g in ([-5e-324], [math.nan], [math.inf])]
    cases += [({}, {"s": s}, "s must be finite and positive") for s in ([0.0], [-1.0], [math.inf], [math.nan])]
    cases += [({}, {"t": [[0.0, 2.5]]}, None), ({}, {"g": [0.0]}, None), ({}, {"s": [5e-324]}, None)]
    cases += [({}, {"t": t}, "1 activations need") for t in ([], [[2.5, 2.5], [1.0]])]
    cases += [
        ({}, {"t": [[2.5]]}, "t of activation 1 must be a"),
        ({}, {"t": [[2.5, 2]]}, "t of activation 1 must be a"),
    ]
    cases += [({}, {"g": [1.0, 1.0]}, "g must be a"), ({}, {"g": [6]}, "g must be a"), ({}, {"s": []}, "every signal")]
    cases += [({"sizes": [0, 2]}, {"g": []}, "every signal"), ({"sizes": [1, 0]}, {"t": [[]]}, "every signal")]
    cases += [({"sizes": []}, {}, "every signal"), ({"sizes": [1]}, {}, "0 activations need")]
    cases += [
        ({"pre": []}, {}, "1 activations need"),
        ({"alpha": []}, {}, "1 activations"),
        ({"beta": []}, {}, "1 activations"),
    ]
    cases += [({"alpha": [[0.0]]}, {}, "alpha of activation 1"), ({"beta": [[1.0]]}, {}, "beta of activation 1")]
    cases += [({"alpha": [[0.0, math.nan]]}, {}, "alpha of activation 1 must be finite")]
    cases += [({"alpha": [[-math.inf, 0.0]]}, {}, "alpha of activation 1 must be finite")]
    cases += [({"beta": [[math.inf, 1.0]]}, {}, "beta of activation 1 must be finite")]
    cases += [
        ({"alpha": [[1.0, -2.0]]}, {}, None),
        ({"alpha": [[0.0, math.nextafter(1.0, 2.0)]]}, {}, "activation 1 has a lower"),
    ]
    cases += [
        ({"pre": [{1: [[1.0, 0.0], [0.0, 1.0]]}]}, {}, "block 1 of form 1"),
        ({"pre": [{-1: [[1.0], [1.0]]}]}, {}, "block -1 of form 1"),
    ]
    cases += [
        ({"pre": [{0: [[1.0]]}]}, {}, "block 0 of form 1"),
        ({"pre": [{0: [[1.0, 1.0], [1.0, 1.0]]}]}, {}, "block 0 of form 1"),
    ]
    cases += [
        ({"output": {1: [[1.0]]}}, {}, "block 1 of form 2"),
        ({"output": {1: [[1.0, 1.0]] * 2}}, {}, "block 1 of form 2"),
    ]
    cases += [
        ({"output": {2: [[1.0]]}}, {}, "block 2 of form 2"),
        ({"pre": [{-1: [[1.0, 0.0], [0.0, 1.0]]}]}, {}, "block -1 of form 1"),
        ({"pre": [{}]}, {}, None),
    ]
    uneven, one = "a group of activation 1 has not one", {"groups": [[7, 7]]}
    cases += [(one, {}, None), ({"groups": [None]}, {"t": [[1.0, 2.0]]}, None), (one, {"t": [[1.0, 2.0]]}, uneven)]
    cases += [({"groups": [[7, 8]]}, {"t": [[1.0, 2.0]]}, None), ({"groups": [[7]]}, {}, uneven)]
    cases += [({"groups": [[7, 7, 7]]}, {}, uneven), ({"groups": [[]]}, {}, uneven)]
    two: dict[str, Any] = {"t": [[0.5, 2.0], [0.375]], "g": [3.0, 0.25], "s": [1.0, 8.0]}
    cases += [({**BENT, "groups": [None, [3]]}, two, None)]
    cases += [({**one, "alpha": [[0.0, 0.5]]}, {}, uneven), ({**one, "beta": [[1.0, 0.5]]}, {}, uneven)]
    for number, (changes, multipliers, expected) in enumerate(cases):
        system = {**RELU, **changes}
        chosen = {**good, **multipliers}
        yield Probe(
            f"fault {number}",
            lambda k, system=system, m=chosen, e=expected: (
                lambda found: found if e is None or found is None else found[: len(e)]
            )(k.fault(built(k, system), k.Multipliers(**m))),
            expected,
        )
    yield Probe(
        "fault before proof", lambda k: verdict(k, lambda: _check(k, RELU, [[2.5]], [9.0], [1.5], 9.0)), "rejected"
    )


def bounds() -> Iterator[Probe]:
    """The bound that the multipliers give, and comparisons to the last bit."""
    g, s = [2.0, 0.5, 1.25], [0.75, 3.0]
    table = {("2", "2"): 2.0 * 3.0, ("2", "1"): 2.0 * 3.75, ("inf", "2"): 3.75 * 3.0, ("inf", "1"): 3.75 * 3.75}
    for p, q in itertools.product(("1", "2", "inf", "3"), repeat=2):
        wide = Fraction(table[p, q]) if (p, q) in table else "rejected"
        one_in = Fraction(2) * {"2": 3, "1": Fraction(3.75)}[q] if p != "3" and q in ("1", "2") else "rejected"
        one_out = {"2": 2, "inf": Fraction(3.75)}[p] * Fraction(0.75) if q != "3" and p in ("2", "inf") else "rejected"
        for name, gs, ss, expected in (
            ("wide", g, s, wide),
            ("one input", g[:1], s, one_in),
            ("one output", g, s[:1], one_out),
        ):
            yield Probe(
                f"{name} {p} {q}",
                lambda k, gs=gs, ss=ss, p=p, q=q: verdict(
                    k, lambda: k.bound_squared(k.Multipliers(t=(), g=gs, s=ss), p, q)
                ),
                expected,
            )
    linear: dict[str, Any] = {"sizes": [1], "pre": [], "alpha": [], "beta": [], "output": {0: [[1.0]]}}
    still = {**linear, "output": {}}
    for name, system, g_, bound, expected in (
        ("equal", linear, [2.25], 1.5, None),
        ("one bit below", linear, [2.25], math.nextafter(1.5, 0.0), "rejected"),
        ("one bit above", linear, [2.25], math.nextafter(1.5, 2.0), None),
        ("infinite", linear, [2.25], math.inf, "rejected"),
        ("nan", linear, [2.25], math.nan, "rejected"),
        ("negative", linear, [2.25], -1.5, "rejected"),
        ("an integer", linear, [2.25], 2, "rejected"),
        ("false", linear, [0.81], 0.9, "rejected"),
        ("zero of nothing", still, [0.0], 0.0, None),
        ("minus one of nothing", still, [0.0], -1.0, "rejected"),
    ):
        yield Probe(
            f"bound {name}", lambda k, a=(system, [], g_, [1.0], bound): verdict(k, lambda: _check(k, *a)), expected
        )


def families() -> Iterator[Probe]:
    """Rows and columns, each exactly once."""
    rows, columns = [(0, None, 1.0), (1, None, 3.0), (2, None, 2.0)], [(None, 0, 5.0), (None, 1, 4.0)]
    both = [(r, c, float(r + 10 * c)) for r in range(3) for c in range(2)]
    for name, parts, p, q, expected in (
        ("rows", rows, "2", "inf", 3.0),
        ("columns", columns, "1", "2", 5.0),
        ("both", both, "1", "inf", 12.0),
        ("rows for 1:inf", rows, "1", "inf", 3.0),
        ("rows for another norm", rows, "2", "2", "rejected"),
        ("columns for another norm", columns, "2", "inf", "rejected"),
        ("both for 1:2", both, "1", "2", "rejected"),
        ("a row missing", rows[:2], "2", "inf", "rejected"),
        ("a row twice", [*rows, rows[0]], "2", "inf", "rejected"),
        ("a row twice, one missing", [rows[0], *rows[:2]], "2", "inf", "rejected"),
        ("a row too many", [*rows, (3, None, 0.0)], "2", "inf", "rejected"),
        ("a negative row", [*rows[:2], (-1, None, 0.0)], "2", "inf", "rejected"),
        ("a row that is true", [rows[0], (True, None, 3.0), rows[2]], "2", "inf", "rejected"),
        ("a row that is 1.0", [rows[0], (1.0, None, 3.0), rows[2]], "2", "inf", "rejected"),
        ("a column missing", columns[:1], "1", "2", "rejected"),
        ("a column too many", [*columns, (None, 2, 0.0)], "1", "2", "rejected"),
        ("rows and columns mixed", [*rows, *columns], "1", "inf", "rejected"),
        ("a pair missing", both[1:], "1", "inf", "rejected"),
        ("neither", [(None, None, 1.0)], "1", "inf", "rejected"),
        ("none", [], "1", "inf", "rejected"),
    ):  # fmt: skip
        yield Probe(
            f"largest {name}",
            lambda k, a=(parts, 3, 2, p, q): verdict(k, lambda: k.check_largest(*a)),
            expected,
        )


def quotients() -> Iterator[Probe]:
    """Difference quotients on either side of what is claimed."""
    step, change = [Fraction(3), Fraction(4)], [Fraction(6), Fraction(0), Fraction(8)]
    sizes = {"1": (7, 14), "2": (5, 10), "inf": (4, 8)}
    for p, q in itertools.product(sizes, repeat=2):
        ratio = Fraction(sizes[q][1], sizes[p][0])
        for lower, expected in ((float(ratio) * (1 - 1e-15), None), (float(ratio) * (1 + 1e-15), "rejected")):
            yield Probe(
                f"quotient {p} {q} {lower}",
                lambda k, a=(step, change, p, q, lower): verdict(k, lambda: k.check_quotient(*a)),
                expected,
            )
    zero, one = [Fraction(0)], [Fraction(1)]
    for name, a, expected in (
        ("equal", (step, change, "2", "2", 2.0), None),
        ("one bit above", (step, change, "2", "2", math.nextafter(2.0, 3.0)), "rejected"),
        ("zero", (one, zero, "2", "2", 0.0), None),
        ("nothing moves", (zero, one, "2", "2", 1.0), "rejected"),
        ("nothing moves, zero claimed", (zero, one, "2", "2", 0.0), "rejected"),
        ("negative", (one, one, "2", "2", -1.0), "rejected"),
        ("infinite", (one, one, "2", "2", math.inf), "rejected"),
        ("nan", (one, one, "2", "2", math.nan), "rejected"),
        ("a negative change", (one, [Fraction(-5)], "2", "2", 1.0), "rejected"),
        ("a negative step", ([Fraction(-1)], one, "2", "2", 1.0), "rejected"),
        ("no step at one place", ([*one, *zero], one, "2", "2", 1.0), None),
    ):
        yield Probe(f"quotient {name}", lambda k, a=a: verdict(k, lambda: k.check_quotient(*a)), expected)


def spectral() -> Iterator[Probe]:
    """Spectral norms: 5 for (3, 4), 2 for the 2 x 2 matrix of ones."""
    row, ones, nothing = [[3.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0, 0.0]]
    blur = [[0.0625, 0.0625], [0.0625, 0.0625]]
    for name, a, radius, t, expected in (
        ("row", row, None, 5.0 * (1 + 1e-13), True),
        ("row below", row, None, math.nextafter(5.0, 0.0), False),
        ("ones", ones, None, 2.0 * (1 + 1e-13), True),
        ("ones below", ones, None, math.nextafter(2.0, 0.0), False),
        ("column", [[3.0], [4.0]], None, 5.0 * (1 + 1e-13), True),
        ("column below", [[3.0], [4.0]], None, 4.99, False),
        ("zero", nothing, None, 0.0, True),
        ("blurred", ones, blur, 2.125 * (1 + 1e-12), True),
        ("blurred below", ones, blur, 2.124, False),
        ("infinite", ones, None, math.inf, False),
        ("nan", ones, None, math.nan, False),
        ("negative", nothing, None, -1.0, False),
    ):
        yield Probe(
            f"spectral {name}", lambda k, a=(a, radius), t=t: k.spectral_norm_at_most(block(k, *a), t), expected
        )
