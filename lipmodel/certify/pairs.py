"""Pair quadratic constraints, decided exactly: the inequality of a network with terms that couple two neurons.

For a neuron with w = s v, alpha <= s <= beta, the numbers p = w - alpha v and k = beta v - w have one sign. For two
neurons, zeta = (p_1, k_1, p_2, k_2) is therefore, up to its sign, nonnegative, or nonnegative after D = diag(1, 1, -1,
-1). Hence zeta' M zeta >= 0 on all increments where M = P_1 + N_1 and D M D = P_2 + N_2 with P_1, P_2 positive
semidefinite and N_1, N_2 nonnegative entry by entry (and, of order four, only then: Diananda 1962, Proc. Camb.
Philos. Soc. 58:17). Such forms may be subtracted from the inequality of the kernel, like 2 t p k is:

    P - sum_c E_c' M_c E_c >= 0,   E_c z = zeta of the two neurons,

for two neurons of any layers that act by themselves. Couplings by differences of neurons are not of this form and do
not hold for increments (Pauli, Koch, Berberich, Kohler & Allgower 2022, arXiv 2005.02929). Nothing here is decided in
floating point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lipmodel.certify.certificate import expect_keys, hex_vector, lmi_proof, read_vector
from lipmodel.certify.kernel import (
    Block,
    ExactSymmetric,
    Multipliers,
    Rejected,
    System,
    added,
    bound_squared,
    decides_positive_semidefinite,
    dyadic,
    exact_lmi,
    fault,
    gram,
)
from lipmodel.errors import Refuted

if TYPE_CHECKING:
    from lipmodel.certify.lmi import Multipliers as FloatMultipliers

TRIANGLE = tuple((i, j) for j in range(4) for i in range(j, 4))
"""The lower triangle of M, column by column: the order in which it is written down."""
BELOW = tuple((i, j) for i, j in TRIANGLE if i > j)
"""The entries of N_1 and N_2; those on the diagonal are zero, as P_1 and P_2 may contain them."""
FLIP = (1, 1, -1, -1)
Neuron = tuple[int, int]
"""The number of the activation, and of the neuron in it, both from zero."""
Square = list[list[Fraction]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupling:
    """M of one pair of neurons, first < second, with the nonnegative parts that show zeta' M zeta >= 0.

    matrix: the ten entries of M in the order of `TRIANGLE`; plain, flipped: the six of N_1 and of N_2, as `BELOW`.
    """

    first: Neuron
    second: Neuron
    matrix: tuple[float, ...]
    plain: tuple[float, ...]
    flipped: tuple[float, ...]


def check_coupled(
    system: System, multipliers: Multipliers, couplings: Sequence[Coupling], p: str, q: str, bound: float
) -> None:
    """Decide that `bound` is an upper bound of L_{p->q} by multipliers and couplings; raises Rejected if not."""
    if (reason := fault(system, multipliers) or coupling_fault(system, couplings)) is not None:
        raise Rejected(f"the multipliers do not fit the network: {reason}")
    if not (isinstance(bound, float) and math.isfinite(bound) and bound >= 0.0):
        raise Rejected(f"the bound {bound!r} is not a finite nonnegative number")
    if Fraction(bound) ** 2 < bound_squared(multipliers, p, q):
        raise Rejected(f"the bound {bound!r} is below what its multipliers give")
    for c in couplings:
        if not is_valid(c):
            raise Rejected(f"the coupling of neurons {c.first} and {c.second} does not hold on all increments")
    if not decides_positive_semidefinite(coupled_lmi(system, multipliers, couplings)):
        raise Rejected("the inequality with couplings fails, or is too close to failing, with these multipliers")


def coupling_fault(system: System, couplings: Sequence[Coupling]) -> str | None:
    """What keeps couplings from being about pairs of neurons of the system, or None."""
    seen = set()
    for c in couplings:
        for k, i in (c.first, c.second):
            if not (type(k) is int and type(i) is int and 0 <= k < len(system.pre) and 0 <= i < system.sizes[k + 1]):
                return f"there is no neuron {(k, i)!r}"
            if k < len(system.groups) and system.groups[k] is not None:
                return f"neuron {(k, i)!r} acts in a group: only neurons that act by themselves have couplings"
        if not c.first < c.second or (c.first, c.second) in seen:
            return f"the pair {c.first}, {c.second} is listed twice, or not in order"
        seen.add((c.first, c.second))
        parts = ((c.matrix, len(TRIANGLE)), (c.plain, len(BELOW)), (c.flipped, len(BELOW)))
        if any(len(part) != n or not all(type(v) is float and math.isfinite(v) for v in part) for part, n in parts):
            return f"the coupling of {c.first} and {c.second} is not made of finite float64 numbers"
    return None


def is_valid(c: Coupling) -> bool:
    """Whether zeta' M zeta >= 0 for all increments, by its nonnegative parts: N >= 0 and M - N >= 0, flipped too."""
    entries = dict(zip(TRIANGLE, map(Fraction, c.matrix), strict=True))
    for signs, part in (((1, 1, 1, 1), c.plain), (FLIP, c.flipped)):
        rest = {(i, j): signs[i] * signs[j] * v for (i, j), v in entries.items()}
        for place, v in zip(BELOW, map(Fraction, part), strict=True):
            if v < 0:
                return False
            rest[place] -= v
        if not semidefinite([[rest[max(i, j), min(i, j)] for j in range(4)] for i in range(4)]):
            return False
    return True


def semidefinite(matrix: Square) -> bool:
    """Whether a symmetric matrix of rationals is positive semidefinite: its factorisation L D L', exactly."""
    a = [row[:] for row in matrix]
    for k in range(len(a)):
        pivot, below = a[k][k], range(k + 1, len(a))
        if pivot < 0 or (pivot == 0 and any(a[i][k] for i in below)):
            return False
        for i in below if pivot else ():
            factor = a[i][k] / pivot
            for j in below:
                a[i][j] -= factor * a[k][j]
    return True


def coupled_lmi(system: System, multipliers: Multipliers, couplings: Sequence[Coupling]) -> ExactSymmetric:
    """The kernel's matrix P minus the sum of E' M E over the couplings, exact. Everything must fit."""
    base = exact_lmi(system, multipliers)
    neurons = sorted({n for c in couplings for n in (c.first, c.second)})
    if not neurons:
        return base
    weight = _weights(system, couplings, neurons)
    read = _read_by(system, neurons)
    weighted = {j: gram(weight, block) for j, block in read.items()}
    blocks = dict(base.blocks)
    for i, left in read.items():
        for j, right in weighted.items():
            if i >= j:
                term = gram(left, right)
                blocks[i, j] = added(blocks[i, j], term) if (i, j) in blocks else term
    return ExactSymmetric(diagonal=base.diagonal, blocks=blocks)


def _weights(system: System, couplings: Sequence[Coupling], neurons: list[Neuron]) -> Block:
    """G with (w; v)' G (w; v) = - sum zeta' M zeta, where w and v list those of the neurons; symmetric."""
    at, count = {n: a for a, n in enumerate(neurons)}, len(neurons)
    slopes, exponent = dyadic(s[k][i] for k, i in neurons for s in (system.alpha, system.beta))
    values, shift = dyadic(v for c in couplings for v in c.matrix)
    one, rows = 1 << exponent, [[0] * (2 * count) for _ in range(2 * count)]
    for number, c in enumerate(couplings):
        entries = dict(zip(TRIANGLE, values[10 * number : 10 * number + 10], strict=True))
        forms: list[tuple[tuple[int, int], tuple[int, int]]] = []  # p and k of each, as (place, factor) of w and of v
        for a in (at[c.first], at[c.second]):
            forms += [((a, one), (count + a, -slopes[2 * a])), ((a, -one), (count + a, slopes[2 * a + 1]))]
        for i in range(4):
            for j in range(4):
                entry = entries[max(i, j), min(i, j)]
                for row, left in forms[i]:
                    for column, right in forms[j]:
                        rows[row][column] -= left * entry * right
    return Block(mantissa=rows, exponent=2 * exponent + shift)


def _read_by(system: System, neurons: list[Neuron]) -> dict[int, Block]:
    """By signal, the matrix of (w; v) of the neurons on it, shape (2 neurons, size of the signal)."""
    blocks = {}
    for j in sorted({k + 1 for k, _ in neurons} | {j for k, _ in neurons for j in system.pre[k]}):
        zero = [0] * system.sizes[j]
        read = [(system.pre[k].get(j), i) for k, i in neurons]
        exponent = max((b.exponent for b, _ in read if b is not None), default=0)
        own = [[(1 << exponent) if k + 1 == j and i == c else 0 for c in range(len(zero))] for k, i in neurons]
        center = [zero if b is None else _shifted(b.mantissa[i], exponent - b.exponent) for b, i in read]
        radius = [zero if b is None or not b.radius else _shifted(b.radius[i], exponent - b.exponent) for b, i in read]
        known = all(b is None or not b.radius for b, _ in read)
        blocks[j] = Block(
            mantissa=own + center, exponent=exponent, radius=None if known else [zero for _ in neurons] + radius
        )
    return blocks


def _shifted(row: list[int], places: int) -> list[int]:
    return [v << places for v in row]


def coupled_proof(
    multipliers: FloatMultipliers, couplings: Sequence[Coupling], norms: tuple[str, str], bound: float
) -> dict[str, Any]:
    """The proof by multipliers and couplings, as a certificate carries it."""
    listed = [
        {
            "first": list(c.first),
            "second": list(c.second),
            "matrix": hex_vector(c.matrix),
            "plain": hex_vector(c.plain),
            "flipped": hex_vector(c.flipped),
        }
        for c in couplings
    ]
    return {**lmi_proof(multipliers, norms, bound), "rule": "lmi-pairs", "couplings": listed}


def read_couplings(data: Any, where: str) -> list[Coupling]:
    """The couplings behind `coupled_proof`. Raises Refuted."""
    if not isinstance(data, list):
        raise Refuted(f"{where}: expected a list of couplings")
    found = []
    for number, entry in enumerate(data):
        at = f"{where}[{number}]"
        expect_keys(entry, {"first", "second", "matrix", "plain", "flipped"}, at)
        places = []
        for side in ("first", "second"):
            place = entry[side]
            if not isinstance(place, list) or len(place) != 2 or any(type(v) is not int for v in place):
                raise Refuted(f"{at}.{side}: expected the numbers of an activation and of a neuron")
            places.append((place[0], place[1]))
        parts = [
            tuple(read_vector(entry[key], f"{at}.{key}", size).tolist())
            for key, size in (("matrix", len(TRIANGLE)), ("plain", len(BELOW)), ("flipped", len(BELOW)))
        ]
        matrix, plain, flipped = parts
        found.append(Coupling(first=places[0], second=places[1], matrix=matrix, plain=plain, flipped=flipped))
    return found
