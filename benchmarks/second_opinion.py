"""A second opinion on certificates: an independent checker for chains, written from the mathematics alone.

It builds the inequality P >= 0 (Fazlyab, Robey, Hassani, Morari & Pappas 2019, arXiv 1906.04893; all norms: Wang,
Prakriya & Jha 2022, arXiv 2203.01212) and decides it by an exact LDL' factorisation in rationals, or for larger
networks by elimination of one layer after the other in ball arithmetic. Products of norms (Virmaux & Scaman 2018, arXiv
1805.10965) are computed once more from norms of its own. Bounds and witnesses are decided in rationals. Nothing here
uses anything of lipmodel; `benchmarks/opinions.py` compares the two.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb, arb_mat, ctx, fmpq, fmpq_mat

from benchmarks.second_reader import Layer, exact, matrix_of, nonzero

EXACT = 26
"""Orders up to which P is factored in rationals."""
LEAF = 24
"""Orders up to which a matrix of balls is factored entry by entry."""
BITS = 256
ROOM = Fraction(1, 2**43)
"""By how much, relatively, a spectral norm in floating point is raised before it is proved."""


class DisagreesError(Exception):
    """The certificate is not proved."""


class UndecidedError(Exception):
    """Neither proved nor refuted."""


# ------------------------------------------------------------------------------------------------------ the inequality


@dataclass(frozen=True, slots=True)
class Chain:
    """Increments: v_k = maps[k] z_k, z_{k+1} = S_k v_k with slopes in ends[k], y = maps[-1] z_K. No dead neurons."""

    maps: list[fmpq_mat]
    ends: list[tuple[fmpq, fmpq]]


def chain_of(layers: list[Layer], rows: fmpq_mat, row: int | None, column: int | None) -> Chain:
    """The increments of chosen outputs, of one row and column if given, without neurons on no path of nonzeros."""
    if row is not None:
        rows = _part(rows, [row], range(rows.ncols()))
    columns = range(layers[0].matrix.ncols()) if column is None else [column]
    maps, pattern = [layer.matrix for layer in layers], [layer.present for layer in layers]
    maps[-1], pattern[-1] = rows * maps[-1], nonzero(rows) @ pattern[-1]
    maps[0], pattern[0] = _part(maps[0], range(maps[0].nrows()), columns), pattern[0][:, list(columns)]
    reached = [np.ones(maps[0].ncols(), dtype=bool)]
    for present in pattern[:-1]:
        reached.append(present @ reached[-1])
    wanted = [np.ones(maps[-1].nrows(), dtype=bool)]
    for present in reversed(pattern):
        wanted.insert(0, wanted[0] @ present)
    kept = [np.flatnonzero(r & w).tolist() for r, w in zip(reached[1:], wanted[1:-1], strict=True)]
    small = [
        _part(m, r, c)
        for m, r, c in zip(maps, [*kept, range(maps[-1].nrows())], [range(maps[0].ncols()), *kept], strict=True)
    ]
    return Chain(small, [(layer.alpha, layer.beta) for layer in layers[:-1]])


def _part(m: fmpq_mat, rows: Any, columns: Any) -> fmpq_mat:
    rows, columns = list(rows), list(columns)
    return fmpq_mat(len(rows), len(columns), [m[i, j] for i in rows for j in columns])


def decides(chain: Chain, t: list[list[fmpq]], g: list[fmpq], s: list[fmpq]) -> bool:
    """Whether P >= 0, decided in rationals for small P; else whether balls prove P > 0. Raises UndecidedError."""
    sizes = [chain.maps[0].ncols(), *(m.nrows() for m in chain.maps)]
    if [len(g), *map(len, t), len(s)] != sizes or min([*g, *s, *(x for v in t for x in v), fmpq(0)]) < 0:
        raise DisagreesError(
            f"multipliers of sizes {[len(g), *map(len, t), len(s)]} for a chain of sizes {sizes}, or negative"
        )
    diagonal = [g, *([2 * x for x in v] for v in t), s]
    below = [_weighted(m, [-(a + b) * x for x in v])
             for m, v, (a, b) in zip(chain.maps[:-1], t, chain.ends, strict=True)]  # fmt: skip
    below.append(-1 * chain.maps[-1])
    bent: list[fmpq_mat | None] = [None] * len(diagonal)
    for k, (m, v, (a, b)) in enumerate(zip(chain.maps[:-1], t, chain.ends, strict=True)):
        if a * b != 0:
            bent[k] = m.transpose() * _weighted(m, [2 * a * b * x for x in v])
    if sum(sizes) <= EXACT:
        return _exactly(diagonal, bent, below)
    return _eliminated(diagonal, bent, below)


def _weighted(m: fmpq_mat, weights: list[fmpq]) -> fmpq_mat:
    """diag(weights) m."""
    lines = [[w * x for x in line] for w, line in zip(weights, m.tolist(), strict=True)]
    return fmpq_mat(m.nrows(), m.ncols(), [x for line in lines for x in line])


def _exactly(diagonal: list[list[fmpq]], bent: list[fmpq_mat | None], below: list[fmpq_mat]) -> bool:
    """LDL' of the whole matrix in rationals; a zero pivot must have a zero column."""
    starts = np.concatenate([[0], np.cumsum([len(d) for d in diagonal])]).tolist()
    n = starts[-1]
    p = [[fmpq(0)] * n for _ in range(n)]
    for k, d in enumerate(diagonal):
        for i, x in enumerate(d):
            p[starts[k] + i][starts[k] + i] += x
        extra = bent[k]
        if extra is not None:
            for i in range(len(d)):
                for j in range(len(d)):
                    p[starts[k] + i][starts[k] + j] += extra[i, j]
        if k < len(below):
            for i in range(below[k].nrows()):
                for j in range(below[k].ncols()):
                    p[starts[k + 1] + i][starts[k] + j] = p[starts[k] + j][starts[k + 1] + i] = below[k][i, j]
    for k in range(n):
        pivot = p[k][k]
        if pivot < 0 or (pivot == 0 and any(p[i][k] != 0 for i in range(k + 1, n))):
            return False
        for i in range(k + 1, n):
            if p[i][k] != 0:
                factor = p[i][k] / pivot
                for j in range(k + 1, i + 1):
                    p[i][j] -= factor * p[j][k]
                    p[j][i] = p[i][j]
    return True


def _eliminated(diagonal: list[list[fmpq]], bent: list[fmpq_mat | None], below: list[fmpq_mat]) -> bool:
    """Schur complements of one layer after the other, in balls."""
    ctx.prec = BITS
    carried: arb_mat | None = None
    for k, d in enumerate(diagonal):
        plain = carried is None and bent[k] is None
        if plain:
            if any(x <= 0 for x in d):
                return False
        else:
            block = arb_mat([[arb(d[i]) if i == j else arb(0) for j in range(len(d))] for i in range(len(d))])
            if carried is not None:
                block = block + carried
            extra = bent[k]
            if extra is not None:
                block = block + arb_mat(extra)
            if not positive_definite(block):
                return False
        if k == len(below):
            break
        b = arb_mat(below[k])
        if plain:
            scaled = arb_mat([[arb(x / y) for x, y in zip(line, d, strict=True)] for line in below[k].tolist()])
            carried = -(scaled * b.transpose())
        else:
            carried = -(b * block.solve(b.transpose()))
    return True


def positive_definite(a: arb_mat) -> bool:
    """Whether every symmetric matrix in balls is positive definite; False if none is. Raises UndecidedError."""
    n = a.nrows()
    lines = a.tolist()
    if n > LEAF:
        h = n // 2
        corner = arb_mat([line[:h] for line in lines[:h]])
        if not positive_definite(corner):
            return False
        side = arb_mat([line[:h] for line in lines[h:]])
        return positive_definite(arb_mat([line[h:] for line in lines[h:]]) - side * corner.solve(side.transpose()))
    for k in range(n):
        pivot = lines[k][k]
        if pivot < 0:
            return False
        if not pivot > 0:
            raise UndecidedError(f"a pivot {pivot}")
        for i in range(k + 1, n):
            factor = lines[i][k] / pivot
            for j in range(k + 1, n):
                lines[i][j] -= factor * lines[k][j]
    return True


# -------------------------------------------------------------------------------------------------------- certificates


def rows_of(outputs: str, m: int) -> tuple[fmpq_mat, bool]:
    """The functionals of the outputs, and whether each counts by itself."""
    if outputs.startswith("margin:"):
        i = int(outputs.removeprefix("margin:"))
        return matrix_of(np.array([np.eye(m)[i] - np.eye(m)[j] for j in range(m) if j != i])), True
    return matrix_of(np.eye(m) if outputs == "all" else np.eye(m)[[int(i) for i in outputs.split(",")]]), False


def numbers(data: Any) -> list[fmpq]:
    """A vector of a certificate, exactly."""
    if len(data) == 2 and isinstance(data[0], str) and data[0].startswith("*"):
        data = [data[1]] * int(data[0][1:])
    return [exact(float.fromhex(x)) for x in data]


def check(layers: list[Layer], certificate: dict[str, Any]) -> str:
    """By which rules the bound of a certificate is proved; its witness is checked too.

    Raises DisagreesError, UndecidedError.
    """
    claim, upper = certificate["claim"], certificate["upper"]
    rows, each = rows_of(claim["outputs"], layers[-1].matrix.nrows())
    p, q = claim["input_norm"], "inf" if each else claim["output_norm"]
    if claim["bound"] != upper["bound"] or claim["domain"] != "global":
        raise DisagreesError("the claim is not what the proof is about")
    if upper["rule"] == "largest":
        places = [(m["row"], m["column"]) for m in upper["members"]]
        by_row, by_column = places[0][0] is not None, places[0][1] is not None
        if (by_row and q != "inf") or (by_column and p != "1"):
            raise DisagreesError("rows need an output norm inf, columns an input norm 1")
        listed = range(rows.nrows()) if by_row else [None]
        across = range(layers[0].matrix.ncols()) if by_column else [None]
        if sorted(places, key=str) != sorted(itertools.product(listed, across), key=str):
            raise DisagreesError("the members are not every row and column once")
        if max(float.fromhex(m["proof"]["bound"]) for m in upper["members"]) > float.fromhex(upper["bound"]):
            raise DisagreesError("a member is above the whole")
        found = sorted({prove(layers, rows, p, q, m["proof"], m["row"], m["column"]) for m in upper["members"]})
        rule = f"largest of {' and '.join(found)}"
    else:
        rule = prove(layers, rows, p, q, upper, None, None)
    if certificate["lower"] is not None:
        check_witness(layers, rows, q, certificate)
    return rule


def prove(
    layers: list[Layer], rows: fmpq_mat, p: str, q: str, proof: dict[str, Any], row: int | None, column: int | None
) -> str:
    """The bound of one program by the quadratic-constraint inequality. Raises DisagreesError, UndecidedError."""
    chain = chain_of(layers, rows, row, column)
    if any(m.nrows() == 0 for m in chain.maps):
        return "constant"  # no path of nonzeros leads through: every bound is one
    a, b = proof["norms"]
    if (a != p and chain.maps[0].ncols() > 1) or (b != q and chain.maps[-1].nrows() > 1):
        raise DisagreesError("other norms")
    if proof["rule"] == "product":
        if product(chain, a, b) > Fraction(float.fromhex(proof["bound"])):
            raise DisagreesError("the product of norms is above the bound")
        return "product"
    if proof["rule"] != "lmi":
        raise UndecidedError(f"the rule {proof['rule']}")
    if a == "1" or b == "inf":
        raise DisagreesError(f"no inequality for the norms {a}, {b}")
    t, g, s = [numbers(v) for v in proof["t"]], numbers(proof["g"]), numbers(proof["s"])
    bound = exact(float.fromhex(proof["bound"]))
    left = max(g) if a == "2" else sum(g, fmpq(0))
    right = max(s) if b == "2" else sum(s, fmpq(0))
    if bound < 0 or bound * bound < left * right:
        raise DisagreesError("the bound is below what the multipliers give")
    if not decides(chain, t, g, s):
        raise DisagreesError("P is not positive semidefinite")
    return "lmi"


def fraction(x: fmpq) -> Fraction:
    return Fraction(int(x.p), int(x.q))


def product(chain: Chain, p: str, q: str) -> Fraction:
    """Norms multiplied along the chain, the best of l1, l2, linf between layers."""
    reached: dict[str, Fraction] = {p: Fraction(1)}
    for m, (a, b) in zip(chain.maps, [*chain.ends, (fmpq(0), fmpq(1))], strict=True):
        norms = induced_norms(m)
        gain = max(abs(fraction(x)) for x in (a, b))
        reached = {r: gain * min(size * norms[s, r] for s, size in reached.items()) for r in ("1", "2", "inf")}
    return reached[q]


def induced_norms(m: fmpq_mat) -> dict[tuple[str, str], Fraction]:
    """Upper bounds of all nine induced norms, those that are hard from the others."""
    lines = [[abs(fraction(x)) for x in line] for line in m.tolist()]
    if not lines or not lines[0]:
        return {(s, r): Fraction(0) for s in ("1", "2", "inf") for r in ("1", "2", "inf")}
    columns = list(zip(*lines, strict=True))
    rows_1, columns_1 = [sum(v) for v in lines], [sum(v) for v in columns]
    rows_2, columns_2 = ([root_up(sum(x * x for x in v)) for v in a] for a in (lines, columns))
    two = min(root_up(sum(x * x for v in lines for x in v)), root_up(max(rows_1) * max(columns_1)))
    if min(len(lines), len(columns)) > 1:
        two = min(two, spectral(m) or two)
    root_m, root_n = root_up(Fraction(len(lines))), root_up(Fraction(len(columns)))
    inf_2 = min(root_up(sum(x * x for x in rows_1)), root_n * two)
    two_1 = min(root_up(sum(x * x for x in columns_1)), root_m * two)
    return {
        ("1", "1"): max(columns_1),
        ("1", "2"): max(columns_2),
        ("1", "inf"): max(max(v) for v in lines),
        ("2", "inf"): max(rows_2),
        ("inf", "inf"): max(rows_1),
        ("2", "2"): two,
        ("inf", "2"): inf_2,
        ("2", "1"): two_1,
        ("inf", "1"): min(sum(rows_1), root_m * inf_2, root_n * two_1),
    }


def spectral(m: fmpq_mat) -> Fraction | None:
    """A number that is proved to be at least the spectral norm: t^2 I - M M' > 0. None if that is not proved."""
    m = m if m.nrows() <= m.ncols() else m.transpose()
    value = float(np.linalg.norm(np.array([[float(fraction(x)) for x in v] for v in m.tolist()]), 2))
    t = Fraction(value) * (1 + ROOM)
    ctx.prec = BITS
    a = arb_mat(m)
    square = arb(fmpq(t.numerator, t.denominator)) ** 2
    shift = arb_mat([[square if i == j else arb(0) for j in range(m.nrows())] for i in range(m.nrows())])
    try:
        return t if positive_definite(shift - a * a.transpose()) else None
    except UndecidedError:
        return None


def root_up(square: Fraction | int) -> Fraction:
    """A fraction that is at least the square root: the root itself where it has few bits, or 2^-100 of it above."""
    x = Fraction(square)
    if x == 0:
        return x
    shift = max(0, 200 - (x.numerator.bit_length() - x.denominator.bit_length()))
    shift += shift % 2
    return Fraction(math.isqrt(-(-(x.numerator << shift) // x.denominator) - 1) + 1, 1 << shift // 2)


def check_witness(layers: list[Layer], rows: fmpq_mat, q: str, certificate: dict[str, Any]) -> None:
    """|f(x) - f(y)| >= ratio |x - y|, in rationals or balls."""
    lower, claim = certificate["lower"], certificate["claim"]
    x, y = numbers(lower["x"]), numbers(lower["y"])
    ratio = exact(float.fromhex(claim["lower_bound"]))
    if ratio < 0 or float.fromhex(lower["ratio"]) != float.fromhex(claim["lower_bound"]):
        raise DisagreesError("another ratio")
    ctx.prec = BITS
    first, second = value(layers, x), value(layers, y)
    moved = [sum((r * (a - b) for r, a, b in zip(line, first, second, strict=True)), fmpq(0)) for line in rows.tolist()]
    step = [a - b for a, b in zip(x, y, strict=True)]
    if all(v == 0 for v in step) or not _norm2(moved, q) >= ratio * ratio * _norm2(step, claim["input_norm"]):
        raise DisagreesError("the witness does not show its ratio")


def value(layers: list[Layer], x: list[fmpq]) -> list[Any]:
    """f(x), rationals where the network is piecewise linear, else balls."""
    z: list[Any] = list(x)
    for layer in layers:
        if all(isinstance(v, fmpq) for v in z):
            z = (layer.matrix * fmpq_mat(len(z), 1, z) + layer.offset).entries()
        else:
            column = arb_mat(layer.matrix) * arb_mat([[v] for v in z]) + arb_mat(layer.offset)
            z = column.entries()
        if layer.name == "Tanh":
            z = [arb(v).tanh() for v in z]
        elif layer.name == "Sigmoid":
            z = [1 / (1 + (-arb(v)).exp()) for v in z]
        elif layer.name:
            bent = layer.alpha if layer.alpha != 1 and layer.beta == 1 else layer.beta
            if any(not (v > 0 or v <= 0) for v in z):
                raise UndecidedError("a kink inside a ball")
            z = [v if v > 0 else bent * v for v in z]
    return z


def _norm2(v: list[Any], norm: str) -> Any:
    """The square of a norm."""
    if norm == "2":
        return sum((x * x for x in v), fmpq(0))
    size = [abs(x) for x in v]
    total = size[0]
    for x in size[1:]:
        total = total + x if norm == "1" else (total.max(x) if isinstance(total, arb) else max(total, x))
    return total * total
