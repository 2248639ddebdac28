"""Linear programs of Krivine and Handelman: certificates by products of the inequalities 1 +- x_i >= 0.

For polynomials of degree one in every variable, products of distinct variables suffice: the hierarchy of Sherali &
Adams (1990). Source: Latorre, Rolland & Cevher 2020 (LiPopt), arXiv 2004.08688.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from math import comb, frexp, ldexp, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import UsageError
from lipmodel.relaxations.sparsity import Clique, covering

if TYPE_CHECKING:
    from lipmodel.certify.polynomials import Monomial, Program
    from lipmodel.model.model import Model

Array = np.ndarray[Any, Any]
MAX_GENERATORS = 600_000
"""Columns that the linear program may have."""
GRID_BITS = 44
"""Weights are rounded to 2^-44 of the largest one: what that loses is charged, and tiny."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Family:
    """Generators of the same shape on many sets of variables.

    sets: shape (N, k). patterns: per generator, the signs of the factors of every product that it adds up.
    coefficients: shape (generators, 2^k), by subset of the k variables. Generator p on set n has the number
    n len(patterns) + p.
    """

    sets: Array
    patterns: tuple[tuple[tuple[int, ...], ...], ...]
    coefficients: Array

    @property
    def size(self) -> int:
        return len(self.sets) * len(self.patterns)

    def products(self, number: int) -> list[list[int]]:
        """The products of a generator, +-(i + 1) for 1 +- x_i."""
        variables = self.sets[number // len(self.patterns)].tolist()
        return [
            [e * (i + 1) for e, i in zip(signs, variables, strict=True)]
            for signs in self.patterns[number % len(self.patterns)]
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearRelaxation:
    """min lam, lam - objective = sum_k c_k generator_k, c >= 0, as columns of coefficients by monomial.

    matrix: shape (monomials without 1, generators); constant: the coefficient of 1 in every generator. target: minus
    the objective, in units of scale, its largest coefficient.
    """

    families: tuple[Family, ...]
    matrix: Any
    constant: Array
    target: Array
    scale: Fraction

    def model(self) -> tuple[Model, Any]:
        """The linear program in units of the scale, and its variable."""
        from lipmodel.model.model import Model

        model = Model("krivine")
        weights = model.variable("c", self.matrix.shape[1], nonnegative=True)
        model.require((self.matrix @ weights).equals(self.target))
        model.minimize(self.constant[None, :] @ weights)
        return model, next(iter(weights.coefficients))


def families_of(cliques: Sequence[Clique], level: int, support: Collection[Monomial]) -> tuple[Family, ...]:
    """The generators of a level: products of `level` variables of every clique, or of all of a smaller one.

    Three variables whose product is not in the support give the products in pairs that cancel it: the products of two
    variables, and the triangle inequalities 1 + a xy + b xz + ab yz >= 0. Raises UsageError where they are too many.
    """
    rough = sum(comb(len(c), min(level, len(c))) for c in cliques)
    if rough > MAX_GENERATORS:
        raise UsageError(_too_many(level, rough * 2**level))
    chosen = dict.fromkeys(s for c in cliques for s in combinations(c, min(level, len(c))))
    triangles = [s for s in chosen if len(s) == 3 and s not in support]
    whole = dict.fromkeys(s for s in chosen if len(s) != 3 or s in support)
    whole |= dict.fromkeys(pair for s in triangles for pair in combinations(s, 2))
    found = [_products([s for s in whole if len(s) == k]) for k in sorted(set(map(len, whole)))]
    if triangles:
        found.append(_triangles(triangles))
    if (count := sum(f.size for f in found)) > MAX_GENERATORS:
        raise UsageError(_too_many(level, count))
    return tuple(found)


def _too_many(level: int, count: int) -> str:
    return (
        f"level {level} would have up to {count:,} products, more than {MAX_GENERATORS:,}: networks of this size "
        "need a formulation such as geolip"
    )


def _products(sets: Sequence[Clique]) -> Family:
    """All products of the factors 1 +- x_i."""
    k = len(sets[0])
    patterns = tuple(product((1, -1), repeat=k))
    coefficients = [[prod(signs[i] for i in s) for s in _subsets(k)] for signs in patterns]
    return Family(
        sets=np.array(sets).reshape(len(sets), k),
        patterns=tuple((signs,) for signs in patterns),
        coefficients=np.array(coefficients, dtype=np.float64),
    )


def _triangles(sets: Sequence[Clique]) -> Family:
    """(1 + x)(1 + a y)(1 + b z) + (1 - x)(1 - a y)(1 - b z) = 2 (1 + a xy + b xz + ab yz)."""
    signs = list(product((1, -1), repeat=2))
    weights = [{(): 1, (0, 1): a, (0, 2): b, (1, 2): a * b} for a, b in signs]
    return Family(
        sets=np.array(sets),
        patterns=tuple(((1, a, b), (-1, -a, -b)) for a, b in signs),
        coefficients=np.array([[2.0 * w.get(s, 0) for s in _subsets(3)] for w in weights]),
    )


def _subsets(k: int) -> list[tuple[int, ...]]:
    return [s for n in range(k + 1) for s in combinations(range(k), n)]


def relax(program: Program, cliques: Sequence[Clique], level: int) -> LinearRelaxation:
    """The linear program of a level. Raises UsageError where it is too large or misses a monomial."""
    terms = program.objective.terms
    if not covering(terms, cliques):
        raise UsageError("a monomial of the objective is in no clique")
    if max(map(len, terms), default=0) > level:
        raise UsageError(f"level {level} is below the degree of the objective")
    families = families_of(cliques, level, terms)
    index: dict[Monomial, int] = {m: k for k, m in enumerate(m for m in terms if m)}
    parts: list[tuple[Array, Array, Array]] = []
    constants: list[Array] = []
    start = 0
    for family in families:
        constants.append(np.tile(family.coefficients[:, 0], len(family.sets)))
        used = np.asarray(family.coefficients.any(axis=0))
        used[0] = False
        subsets = [s for s, is_used in zip(_subsets(family.sets.shape[1]), used, strict=True) if is_used]
        listed = [list(map(tuple, family.sets[:, list(s)].tolist())) for s in subsets]
        own = np.array([[index.setdefault(m, len(index)) for m in column] for column in listed])
        coefficients = family.coefficients[:, used]
        at, kind = np.nonzero(coefficients)
        columns = start + np.arange(len(family.sets))[:, None] * len(family.patterns) + at
        values = np.broadcast_to(coefficients[at, kind], columns.shape)
        parts.append((own[kind].T.ravel(), columns.ravel(), values.ravel()))
        start += family.size
    rows, columns, data = (np.concatenate([part[k] for part in parts]) for k in range(3))
    scale = max((abs(c) for m, c in terms.items() if m), default=1)
    target = np.zeros(len(index))
    for m, c in terms.items():
        if m:
            target[index[m]] = -float(Fraction(c, scale))
    return LinearRelaxation(
        families=families,
        matrix=sp.csr_array((data, (rows, columns)), shape=(len(index), start)),
        constant=np.concatenate(constants),
        target=target,
        scale=Fraction(scale, program.objective.unit),
    )


def rounded_weights(relaxed: LinearRelaxation, weights: Array) -> dict[str, Any]:
    """The proof (without its bound) by a solver's weights: clipped, rounded to a grid, the tiny ones left out."""
    c = np.nan_to_num(np.asarray(weights, dtype=np.float64), posinf=0.0)
    value = float(relaxed.scale)
    exponent = max(0, GRID_BITS - frexp(value)[1])
    kept = np.flatnonzero(c > 2.0**-GRID_BITS)
    products: list[list[int]] = []
    counts: list[int] = []
    ends = np.cumsum([family.size for family in relaxed.families])
    for k in kept.tolist():
        count = round(ldexp(float(c[k]) * value, exponent))
        own = int(np.searchsorted(ends, k, side="right"))
        family = relaxed.families[own]
        found = family.products(k - (int(ends[own]) - family.size)) if count else []
        products += found
        counts += [count] * len(found)
    return {"rule": "krivine", "products": products, "weights": counts, "exponent": exponent}
