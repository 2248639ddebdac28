"""Probes of what the kernel does inside: positive semidefinite or not, and the steps of that decision."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from benchmarks.questions import Matrix, Probe, block, psd, verdict, with_arithmetic

SMALL = Fraction(1, 1024)


def _symmetric(k: Any, m: Matrix, cuts: tuple[int, ...], lists: bool, radius: Matrix | None = None) -> Any:
    """A symmetric matrix cut into blocks; lists: its diagonal in lists, and zero blocks left out."""
    edges = [0, *cuts, len(m)]
    blocks: dict[tuple[int, int], Any] = {}
    diagonal = []
    for j, (c, d) in enumerate(itertools.pairwise(edges)):
        values = [m[a][a] if lists else Fraction(0) for a in range(c, d)]
        exponent = max(v.denominator.bit_length() - 1 for v in values)
        diagonal.append(([int(v * 2**exponent) for v in values], exponent))
        for i, (a, b) in enumerate(itertools.pairwise(edges)):
            if i < j:
                continue
            part = [[m[r][s] if not (lists and r == s) else Fraction(0) for s in range(c, d)] for r in range(a, b)]
            rad = None if radius is None else [row[c:d] for row in radius[a:b]]
            if not lists or rad is not None or any(any(row) for row in part):
                blocks[i, j] = block(k, part, rad)
    return k.ExactSymmetric(diagonal=tuple(diagonal), blocks=blocks)


def matrices() -> Iterator[Probe]:
    """Positive semidefinite or not: tiny matrices by hand, and random ones on both sides of the edge."""
    one, nil = Fraction(1), Fraction(0)
    hand: list[tuple[str, Matrix, Matrix | None, bool]] = [
        ("identity", [[one, nil], [nil, one]], None, True),
        ("zero", [[nil] * 2] * 2, None, True),
        ("a zero row", [[one, nil], [nil, nil]], None, True),
        ("zero with an entry", [[nil, one / 2**300], [one / 2**300, one]], None, False),
        ("zero with an entry below", [[one, one / 2**300], [one / 2**300, nil]], None, False),
        (
            "zero with one entry of two",
            [[nil, nil, one / 8], [nil, one, nil], [one / 8, nil, one]],
            None,
            False,
        ),
        (
            "zero with the other entry of two",
            [[one, nil, one / 8], [nil, one, nil], [one / 8, nil, nil]],
            None,
            False,
        ),
        ("negative", [[-one]], None, False),
        ("negative, small", [[one, nil], [nil, -one / 2**400]], None, False),
        ("just indefinite", [[one, one + one / 2**60], [one + one / 2**60, one]], None, False),
        ("just definite", [[one, one - one / 2**44], [one - one / 2**44, one]], None, True),
        ("minus just definite", [[one, one / 2**44 - one], [one / 2**44 - one, one]], None, True),
        ("an entry beyond all floats", [[one, one * 2**1200], [one * 2**1200, one]], None, False),
        ("scales", [[one / 2**301, one * 31 / 32], [one * 31 / 32, one * 2**301]], None, True),
        ("scales, indefinite", [[one / 2**301, one * 33 / 32], [one * 33 / 32, one * 2**301]], None, False),
        ("radius", [[one, one / 2], [one / 2, one]], [[nil, one / 2 - SMALL], [one / 2 - SMALL, nil]], True),
        (
            "radius too large",
            [[one, one / 2], [one / 2, one]],
            [[nil, one / 2 + SMALL], [one / 2 + SMALL, nil]],
            False,
        ),
        (
            "radius on the diagonal",
            [[one, nil], [nil, one]],
            [[1 - SMALL, nil], [nil] * 2],
            True,
        ),
        (
            "radius on it too large",
            [[one, nil], [nil, one]],
            [[1 + SMALL, nil], [nil] * 2],
            False,
        ),
        (
            "radius on the last too large",
            [[one, nil], [nil, one]],
            [[nil] * 2, [nil, 1 + SMALL]],
            False,
        ),
        ("radius of nothing", [[nil]], [[one / 2**300]], False),
        (
            "radius of nothing off it",
            [[nil, nil], [nil, one]],
            [[nil, one / 2**300], [one / 2**300, nil]],
            False,
        ),
    ]
    for name, m, radius, expected in hand:
        for cuts, lists in itertools.product([(c,) if c else () for c in range(len(m))], (False, True)):
            yield Probe(
                f"matrix {name} {cuts} {lists}",
                lambda k, a=(m, cuts, lists, radius): k.decides_positive_semidefinite(_symmetric(k, *a)),
                expected,
            )
    rng = np.random.default_rng(3)
    for trial in range(40):
        n = int(rng.integers(2, 6))
        b = rng.integers(-8, 9, (n, n)) * 2.0 ** rng.integers(-4, 5, (n, 1))
        full = [[Fraction(float(v)) for v in row] for row in b @ b.T]
        sign, size = (1, 2**36) if trial % 2 else (-1, 2**50)
        m = [
            [v + (sign * max(v, Fraction(1)) / size if i == j else 0) for j, v in enumerate(row)]
            for i, row in enumerate(full)
        ]
        expected = psd(m)
        if trial % 2 == 0 and expected:
            continue  # a full factor: not on the edge
        cuts = [(), (1,), (n - 1,), (1, n - 1)][trial % 4] if n > 2 else [(), (1,)][trial % 2]
        for lists, fast in itertools.product((False, True), repeat=2):
            yield Probe(
                f"matrix {trial} {lists} {fast}",
                lambda k, a=(m, cuts, lists), fast=fast: with_arithmetic(
                    k, fast, lambda: k.decides_positive_semidefinite(_symmetric(k, *a))
                ),
                expected,
            )
    star = [[one if i == j else one / 4 if 0 in (i, j) else nil for j in range(5)] for i in range(5)]
    star[0][0] = one / 8
    yield Probe("a star", lambda k: k.decides_positive_semidefinite(_symmetric(k, star, (1, 3), True)), psd(star))
    for name, changed in (("asymmetric", {(0, 0): [[1.0, 0.5], [0.25, 1.0]]}), ("upper", {(0, 1): [[1.0, 1.0]] * 2})):
        yield Probe(f"matrix {name}", lambda k, c=changed: verdict(k, lambda: _decided(k, c)), "value error")
    for name, changed in (("tall", {(1, 0): [[0.5, 0.5]] * 3}), ("outside", {(2, 0): [[0.5, 0.5]] * 2})):
        yield Probe(f"matrix {name}", lambda k, c=changed: verdict(k, lambda: _decided(k, c)), "value error")
    yield Probe("matrix before", lambda k: verdict(k, lambda: _decided(k, {(0, -1): [[0.5, 0.5]] * 2})), "value error")


def _decided(k: Any, blocks: dict[tuple[int, int], Any]) -> bool:
    diagonal = (([1, 1], 0), ([1, 1], 0))
    built = {key: block(k, values) for key, values in blocks.items()}
    return bool(k.decides_positive_semidefinite(k.ExactSymmetric(diagonal=diagonal, blocks=built)))


def inside() -> Iterator[Probe]:
    """The steps of the decision, to the last unit of the grid: no hint, however wrong, may change it."""
    rng = np.random.default_rng(8)
    order = {
        "chain": ([3, 2, 4, 1], [(1, 0), (2, 1), (3, 2)]),
        "hub": ([1, 5, 5, 5], [(1, 0), (2, 0), (3, 0), (2, 2)]),
        "full": ([2, 2, 2], [(1, 0), (2, 0), (2, 1)]),
        "wide hub": ([9, 1, 1, 2], [(1, 0), (2, 0), (3, 0)]),
    }
    for name, (sizes, pairs) in order.items():
        yield Probe(f"order {name}", lambda k, a=(sizes, pairs): k.elimination_order(*a), _order(sizes, pairs))
    for trial in range(6):
        sizes = [2, 1, 3][: 2 + trial % 2]
        n = sum(sizes)
        spans = [slice(e - s, e) for s, e in zip(sizes, itertools.accumulate(sizes), strict=True)]
        p = rng.integers(-50, 51, (n, n))
        p = np.tril(p) + np.tril(p, -1).T
        r = np.tril(rng.integers(-5, 6, (n, n)))
        diagonal = trial % 3 == 0
        if diagonal:
            p[spans[0], spans[0]] = np.diag(np.diagonal(p[spans[0], spans[0]]))
            r[spans[0], spans[0]] = np.diag(np.diagonal(r[spans[0], spans[0]]))
        if trial in (2, 3):
            p[spans[-1], spans[0]] = p[spans[0], spans[-1]].T * 0
            p[spans[0], spans[-1]] = 0
        radius = rng.integers(0, 9, n).tolist()
        e = p - r @ r.T
        expected = [int(radius[i] + np.abs(e[i]).sum() - abs(e[i, i]) - e[i, i]) for i in range(n)]
        yield Probe(f"lacking {trial}", lambda k, a=(p, r, spans, radius, diagonal): _lacking(k, *a), expected)
    values = [[Fraction(5, 3).limit_denominator(2**20), Fraction(-7, 2**130)], [Fraction(3, 2**121), Fraction(-9, 8)]]
    values[0][0] = Fraction(round(values[0][0] * 2**125), 2**125)
    radii = [[Fraction(0), Fraction(3, 2**115)], [Fraction(1, 2**119), Fraction(0)]]
    for radius_ in (None, radii):
        for size in (0, 30, -30):
            diagonal_ = [[Fraction(2) ** (2 * size), Fraction(5)], [Fraction(3, 2**90), Fraction(7)]]
            yield Probe(
                f"grid {size} {radius_ is not None}",
                lambda k, a=(values, radius_, diagonal_): _grid(k, *a),
                _gridded(values, radius_, diagonal_),
            )
    yield Probe("factor", _factored, True)
    yield Probe("factor with fill", _filled, True)
    unit = 1 << 112
    for name, answers, expected in (
        ("nothing lacks", [[0, 0]], (True, 1)),
        ("one lacks", [[-unit, 1]] * 9, (False, 5)),
        ("all lack", [[1, 1]] * 9, (False, 5)),
        ("nothing lacks at last", [[unit, -unit], [0, -1]], (True, 2)),
    ):
        yield Probe(f"rounds: {name}", lambda k, a=answers: _rounds(k, a)[:2], expected)
    start = 3 / unit + 2.0**-50 * math.sqrt(2.0)
    expected_shifts = [[start, start], [2.0 * (start + 1.0), 2.0 * start]]
    yield Probe("shifts", lambda k: _rounds(k, [[unit, -unit], [0, -1]])[2], expected_shifts)
    for name, run, answer in (
        ("dense", lambda k: (k._dense([1, 2]), k._dense([[1, 3], [4, 2]])), ([[1, 0], [0, 2]], [[1, 3], [4, 2]])),
        ("minus", lambda k: k._minus([5, 6], [1, 2]), [4, 4]),
        ("minus of nothing", lambda k: k._minus(None, [[1, -2], [0, 3]]), [[-1, 2], [0, -3]]),
        ("minus a list", lambda k: k._minus([[5, 1], [1, 6]], [1, 2]), [[4, 1], [1, 4]]),
        ("minus from a list", lambda k: k._minus([5, 6], [[1, 1], [1, 2]]), [[4, -1], [-1, 4]]),
        ("shifted", lambda k: [k._shifted(v, s) for v, s in ((5, -1), (-5, -1), (5, 0), (5, 2))], [2, -3, 5, 20]),
    ):
        yield Probe(name, run, answer)
    whole = (([17, 3], 3), {(0, 0): [[-2.0, 0.0], [0.0, 0.0]]})  # 17/8 - 2 and 3/8
    powers = [(1, 17 << 111), (1, 3 << 111)]
    yield Probe("scaling", lambda k: k._scaling(_one_block(k, *whole), 0), powers)
    fine = (([1, 1], 0), {(0, 0): [[-0.875, 0.0], [0.0, 0.0]]})
    yield Probe(
        "scaling of a finer block", lambda k: k._scaling(_one_block(k, *fine), 0), [(1, 4 << 112), (0, 1 << 112)]
    )


def _one_block(k: Any, diagonal: Any, blocks: dict[tuple[int, int], Any]) -> Any:
    return k.ExactSymmetric(diagonal=(diagonal,), blocks={key: block(k, values) for key, values in blocks.items()})


def _rounds(k: Any, answers: list[list[int]]) -> tuple[bool, int, list[list[float]]]:
    """The decision, the number of hints and their shifts, where what the diagonal lacks is given."""
    shifts: list[list[float]] = []
    saved = k._factor, k._lacking, k._on_grid

    def factor(floats: Any, spans: Any, shift: Any) -> list[Any]:
        shifts.append([float(v) for v in shift])
        return []

    k._factor, k._lacking = factor, lambda grid, hint: answers[len(shifts) - 1]
    k._on_grid = lambda matrix: k._Grid(tiles={(0, 0): [1 << 112, 1 << 112]}, spans=[slice(0, 2)], radius=[3, 3])
    try:
        return k.decides_positive_semidefinite(None), len(shifts), shifts
    finally:
        k._factor, k._lacking, k._on_grid = saved


def _filled(k: Any) -> bool:
    """A factor with blocks that the matrix has not."""
    rng = np.random.default_rng(2)
    p = np.eye(6)
    p[1:, 0] = p[0, 1:] = rng.uniform(0.1, 0.3, 5)
    spans = [slice(0, 1), slice(1, 4), slice(4, 6)]
    floats = {(0, 0): p[:1, :1], (1, 0): p[1:4, :1], (2, 0): p[4:, :1], (1, 1): np.ones(3), (2, 2): p[4:, 4:]}
    columns = k._factor(floats, spans, np.full(6, 2.0**-40))
    r = np.zeros((6, 6))
    for j, column in enumerate(columns):
        for i, part in column.items():
            r[spans[i], spans[j]] = part / 2.0**k.FACTOR_BITS
    return bool(np.abs(r @ r.T - p + 2.0**-40 * np.eye(6)).max() < 1e-14)


def _order(sizes: list[int], pairs: list[tuple[int, int]]) -> list[int]:
    near = {i: {j for a, b in pairs for i_, j in ((a, b), (b, a)) if i_ == i != j} for i in range(len(sizes))}
    order = []
    while near:
        work = {b: sizes[b] * sum(sizes[j] for j in near[b]) ** 2 for b in near}
        i = min(near, key=lambda b: (work[b], b))
        order.append(i)
        front = near.pop(i)
        for j in front:
            near[j] = (near[j] | front) - {i, j}
    return order


def _lacking(k: Any, p: Any, r: Any, spans: list[slice], radius: list[int], diagonal: bool) -> Any:
    tiles: dict[tuple[int, int], Any] = {}
    columns = []
    for j, b in enumerate(spans):
        column = {}
        for i, a in enumerate(spans):
            if i >= j and (i == j or np.any(p[a, b])):
                tiles[i, j] = p[a, b].tolist()
            if i >= j:
                column[i] = r[a, b]
        if diagonal and j == 0:
            tiles[0, 0], column[0] = np.diagonal(p[b, b]).tolist(), np.diagonal(r[b, b])
        columns.append(column)
    return [int(v) for v in k._lacking(k._Grid(tiles=tiles, spans=spans, radius=radius), columns)]


def _grid(k: Any, values: Matrix, radius: Matrix | None, diagonal: list[list[Fraction]]) -> Any:
    lists = []
    for row in diagonal:
        exponent = max(v.denominator.bit_length() - 1 for v in row)
        lists.append(([int(v * 2**exponent) for v in row], exponent))
    grid = k._on_grid(k.ExactSymmetric(diagonal=tuple(lists), blocks={(1, 0): block(k, values, radius)}))
    return grid.tiles, grid.radius, grid.spans


def _gridded(values: Matrix, radius: Matrix | None, diagonal: list[list[Fraction]]) -> Any:
    """The expected grid: the diagonal brought into [1/2, 2) by powers of two, entries rounded down, errors up."""

    def power(v: Fraction) -> int:
        whole = v.numerator.bit_length() - (v.denominator.bit_length() - 1)  # the place of the leading bit
        return -(whole // 2)

    unit = Fraction(2) ** 112
    e = [[power(v) for v in row] for row in diagonal]
    tiles: dict[tuple[int, int], Any] = {
        (i, i): [math.floor(v * Fraction(4) ** f * unit) for v, f in zip(diagonal[i], e[i], strict=True)]
        for i in (0, 1)
    }
    errors = [[1, 1], [1, 1]]
    table = []
    for a in range(2):
        row = []
        for c in range(2):
            factor = Fraction(2) ** (e[1][a] + e[0][c]) * unit
            exact = values[a][c] * factor
            row.append(math.floor(exact))
            error = math.ceil(exact) - math.floor(exact)
            error += 0 if radius is None else math.ceil(radius[a][c] * factor)
            errors[1][a] += error
            errors[0][c] += error
        table.append(row)
    tiles[1, 0] = table
    return tiles, [*errors[0], *errors[1]], [slice(0, 2), slice(2, 4)]


def _factored(k: Any) -> bool:
    """The hint reproduces the matrix to what a double knows, and is refused where it is none."""
    rng = np.random.default_rng(1)
    b = rng.standard_normal((5, 5))
    p = b @ b.T / 8 + np.diag([1.0, 1.0, 0.5, 0.5, 0.5])
    p[:2, :2] = np.diag([1.5, 1.25])
    shift = np.full(5, 2.0**-40)
    spans = [slice(0, 2), slice(2, 5)]
    floats = {(0, 0): np.array([1.5, 1.25]), (1, 0): p[2:, :2], (1, 1): p[2:, 2:]}
    columns = k._factor(floats, spans, shift)
    r = np.zeros((5, 5))
    r[:2, :2] = np.diag(columns[0][0])
    r[2:, :2], r[2:, 2:] = columns[0][1], columns[1][1]
    r = r / 2.0**k.FACTOR_BITS
    close = bool(np.abs(r @ r.T - p + np.diag(shift)).max() < 1e-14)
    integers = all(part.dtype == np.int64 for column in columns for part in column.values())
    refused = [
        k._factor({(0, 0): np.array([-1.0])}, spans[:1], np.zeros(1)),
        k._factor({(0, 0): np.array([[1.0, 2.0], [2.0, 1.0]])}, spans[:1], np.zeros(2)),
        k._factor({(0, 0): np.array([400.0, 1.0])}, spans[:1], np.zeros(2)),
        k._factor({(0, 0): np.array([0.0, 1.0])}, spans[:1], np.zeros(2)),
    ]
    return close and integers and refused == [None] * 4
