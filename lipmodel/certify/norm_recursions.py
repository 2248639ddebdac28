"""Three recursions over an increment system that keep the signs of products of layers: LipLT, K_3 and K_4.

Every activation is split, w = c v + d with |d| <= r |v| entry by entry, c and r the middle and half the width of its
slope interval, and the linear part is substituted: v_k = F_k0 x + sum_j F_kj d_j with F_kj = A_kj + sum_i A_ki
diag(c_i) F_ij. Any c is sound with r = max(beta - c, c - alpha). Where products would be too large, c = 0 and r is the
gain: the activation is *unsigned*, and products of matrices end there.

    liplt   m_k = ||F_k0|| + sum_j ||F_kj diag(r_j)|| m_j                    norms of what is left of the layers
    k4      E_k = |F_k0| + sum_j |F_kj| diag(r_j) E_j, ||E||                 the norm of a sum over paths
    k3      sum over paths of || |F_kj| diag(r_j) |F_ji| ... |F_h0| ||       the sum over paths of norms

Sources: Combettes & Pesquet 2020 (arXiv 1903.01014), whose sum over subsets of layers is liplt on a chain; Fazlyab,
Entesari, Roy & Chellappa 2023 (LipLT, arXiv 2310.00116); k3 and k4 after Pintore & Despres 2024 (arXiv 2410.21053), the
formulas derived here. With every activation unsigned, k4 is the path norm (Neyshabur, Tomioka & Srebro 2015, arXiv
1503.00036).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.certify.norm_arithmetic import Arithmetic, Matrix, applicable
from lipmodel.certify.product_rule import plan_of, written_rows
from lipmodel.network.conv import Pool
from lipmodel.network.linear import Composition, Diagonal, LinearMap, Sum, compose
from lipmodel.ranges.enclosure import MatrixEnclosure
from lipmodel.ranges.norms import (
    Bound,
    MapNorms,
    NormEvaluator,
    expansion,
    float_up,
    plus,
    rational,
    root_up,
    round_up,
    times,
)
from lipmodel.spec import Norm

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem, SlopeRestricted

Array = np.ndarray[Any, Any]
Block = LinearMap | Matrix
"""A map of the network as it is, or what an arithmetic has made of several."""

EXPANDED = 1_000_000
"""Entries above which a map is applied, where it can be, instead of being expanded."""
WORK = 500_000_000
"""Products of entries up to which all rows (or columns) of E are computed; beyond, only sums of them."""


def centres(activation: SlopeRestricted) -> Array:
    """The middle of every slope interval, as doubles, shape (size,)."""
    return np.asarray(0.5 * activation.alpha + 0.5 * activation.beta)


def deviations(activation: SlopeRestricted, centre: Array) -> Array:
    """r >= max(beta - c, c - alpha) for every entry, rounded up, shape (size,)."""
    triples = np.stack([activation.alpha, activation.beta, centre])
    if bool(np.all(triples == triples[:, :1])):
        distinct, place = triples[:, :1], np.zeros(activation.size, dtype=np.int64)
    else:
        distinct, place = np.unique(triples, axis=1, return_inverse=True)
    radii = [float_up(max(Fraction(b) - Fraction(c), Fraction(c) - Fraction(a))) for a, b, c in distinct.T.tolist()]
    return np.array(radii)[place.reshape(-1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What is free in a recursion, sound whatever it is.

    unsigned: the activations, by number from 1, at which products end; maxima: those that are written as maxima of two
    (`lipmodel.certify.maxima`), unsigned as well; between: the norms that liplt tries at every activation, the best of
    which is used.
    """

    unsigned: frozenset[int] = frozenset()
    maxima: frozenset[int] = frozenset()
    between: tuple[Norm, ...] = ()


@dataclass(eq=False)
class SignedForms:
    """The forms F of a system, its chosen maxima written as such, for one choice of unsigned activations."""

    system: IncrementSystem
    choices: Choices
    arithmetic: Arithmetic

    def radii(self, k: int, norm: Norm) -> Array:
        """r with ||d||_norm <= ||diag(r) v||_norm for activation k."""
        a = self.system.activations[k - 1]
        if k in self.choices.unsigned:
            return a.gain_in(norm)
        return deviations(a, centres(a))

    @cached_property
    def forms(self) -> list[dict[int, Block]]:
        """F_kj by k - 1 and j; the output comes last."""
        system, arithmetic = self.system, self.arithmetic
        at = system.positions()
        inner: dict[int, dict[int, Matrix]] = {}  # diag(c_i) F_ij
        forms: list[dict[int, Block]] = []
        for k, form in enumerate([*(a.pre for a in system.activations), system.output], start=1):
            own = {at[signal]: map for signal, map in form.blocks.items()}
            through: dict[int, list[Matrix]] = {}
            for i in sorted(own.keys() & inner.keys()):
                left = arithmetic.read(own[i])
                for j, block in inner[i].items():
                    through.setdefault(j, []).append(arithmetic.product(left, block))
            found: dict[int, Block] = dict(own)
            for j, terms in through.items():
                found[j] = arithmetic.total([*terms, arithmetic.read(own[j])] if j in own else terms)
            forms.append(dict(sorted(found.items())))
            if k <= len(system.activations) and k not in self.choices.unsigned:
                c = centres(system.activations[k - 1])
                if c.any():
                    inner[k] = {j: arithmetic.scaled(c, self.read(block)) for j, block in found.items()}
        return forms

    def written(self, k: int) -> list[Array]:
        """For every block of form k, the rows that it may write to, read off the stored maps, shape (rows,), bool."""
        forms = [*(a.pre for a in self.system.activations), self.system.output]
        own = {self.system.positions()[signal]: written_rows(map) for signal, map in forms[k - 1].blocks.items()}
        nothing = np.zeros(forms[k - 1].size, dtype=bool)
        through = {i: rows for i, rows in own.items() if i > 0 and i not in self.choices.unsigned}
        return [
            np.any([own.get(j, nothing), *(rows for i, rows in through.items() if j in self.forms[i - 1])], axis=0)
            for j in self.forms[k - 1]
        ]

    def uncertainty(self) -> float:
        """The largest relative error of a product (in the Frobenius norm), in floating point; inf on overflow."""
        worst = 0.0
        for block in (block for form in self.forms for block in form.values()):
            if isinstance(block, MatrixEnclosure) and block.radius is not None:
                error, size = (float(np.linalg.norm(_entries(part))) for part in (block.radius, block.center))
                if not math.isfinite(size):
                    return math.inf
                worst = max(worst, error / max(size, 1e-250))
        return worst

    def read(self, block: Block) -> Matrix:
        return self.arithmetic.read(block) if isinstance(block, LinearMap) else block


def _entries(matrix: Any) -> Array:
    return np.asarray(matrix.data if sp.issparse(matrix) else matrix)


# ------------------------------------------------------------------------------------------------------------ liplt


def liplt_bound(signed: SignedForms, p: Norm, q: Norm, evaluator: NormEvaluator) -> Bound:
    """The bound of L_{p->q} by norms of the forms; the signals between are measured in the chosen norms."""
    reached: list[dict[Norm, Bound]] = [{p: Fraction(1)}]
    for k, form in enumerate(signed.forms, start=1):
        wanted = (q,) if k == len(signed.forms) else signed.choices.between
        parts: dict[Norm, list[Bound]] = {s: [] for s in wanted}
        for j, block in form.items():
            between = _scaled_norms(signed, j, block, evaluator)
            for s in wanted:
                parts[s].append(min(times(bound, between(r, s)) for r, bound in reached[j].items()))
        combined = plan_of(signed.written(k))
        reached.append({s: round_up(combined(parts[s], s)) for s in wanted})
    return reached[-1][q]


def _scaled_norms(signed: SignedForms, j: int, block: Block, evaluator: NormEvaluator) -> Any:
    """Norms ||F diag(r_j)||_{r->s}; a radius that is the same everywhere stays a factor."""
    if j == 0:
        return evaluator.of(block)
    known: list[tuple[Array, Bound, MapNorms]] = []

    def between(r: Norm, s: Norm) -> Bound:
        radii = signed.radii(j, r)
        found = next((entry for entry in known if np.array_equal(entry[0], radii)), None)
        if found is None:
            if np.all(radii == radii[0]):
                found = radii, rational(float(radii[0])), evaluator.of(block)
            elif isinstance(block, LinearMap):
                found = radii, Fraction(1), evaluator.of(compose(block, Diagonal(values=radii)))
            else:
                found = radii, Fraction(1), evaluator.of(signed.arithmetic.scaled_columns(block, radii))
            known.append(found)
        _, factor, norms = found
        return times(factor, norms(r, s))

    return between


# ------------------------------------------------------------------------------------------------------- k3 and k4


@dataclass(eq=False)
class Moduli:
    """What the moduli |F| of the forms do to nonnegative matrices, rounded up."""

    signed: SignedForms

    def __post_init__(self) -> None:
        self.arithmetic = self.signed.arithmetic
        self.radii = [self.signed.radii(k, "inf") for k in range(1, len(self.signed.forms))]
        self._known: dict[int, tuple[Block, Matrix]] = {}

    def after(self, block: Block, x: Matrix) -> Matrix:
        """|F| X."""
        if isinstance(block, LinearMap) and expansion(block) > EXPANDED:
            if isinstance(block, Composition | Pool):
                for factor in reversed(_factors(block)):
                    x = self.after(factor, x)
                return x
            if isinstance(block, Sum):
                return self._sum([self.after(term, x) for term in block.terms])
            if applicable(block):
                return self.arithmetic.apply(block, x)
        return self.arithmetic.upper(self.arithmetic.product(self._upper(block), x))

    def before(self, y: Matrix, block: Block) -> Matrix:
        """Y |F|."""
        if isinstance(block, LinearMap) and expansion(block) > EXPANDED:
            if isinstance(block, Composition | Pool):
                for factor in _factors(block):
                    y = self.before(y, factor)
                return y
            if isinstance(block, Sum):
                return self._sum([self.before(y, term) for term in block.terms])
            if applicable(block):
                return self.arithmetic.apply_back(y, block)
        return self.arithmetic.upper(self.arithmetic.product(y, self._upper(block)))

    def _upper(self, block: Block) -> Matrix:
        known = self._known.get(id(block))
        if known is None:
            known = self._known[id(block)] = (block, self.arithmetic.upper(self.signed.read(block)))
        return known[1]

    def _sum(self, terms: list[Matrix]) -> Matrix:
        return self.arithmetic.upper(self.arithmetic.total(terms))

    def taken(self, k: int, x: Matrix) -> Matrix:
        """X = (A, B) -> (max(A, B), max(A, B)) where activation k is a maximum; X itself elsewhere."""
        return self.arithmetic.larger(x) if k in self.signed.choices.maxima else x

    def taken_before(self, y: Matrix, k: int) -> Matrix:
        """(Y, Z) -> (Y + Z, Y + Z), which is no less than Y and Z after the maximum: max(A, B) <= A + B."""
        if k not in self.signed.choices.maxima:
            return y
        return self._sum([y, self.arithmetic.halves_exchanged(y)])

    def bent(self, k: int, x: Matrix) -> Matrix:
        """diag(r_k) X."""
        return self.arithmetic.upper(self.arithmetic.scaled(self.radii[k - 1], x))

    def bent_before(self, y: Matrix, k: int) -> Matrix:
        """Y diag(r_k)."""
        return self.arithmetic.upper(self.arithmetic.scaled_columns(y, self.radii[k - 1]))

    def forward(self, x: Matrix) -> Iterator[Matrix]:
        """E X."""
        reached: dict[int, Matrix] = {0: x}
        for k, form in enumerate(self.signed.forms, start=1):
            terms = [self.after(block, reached[j] if j == 0 else self.bent(j, reached[j])) for j, block in form.items()]
            reached[k] = self.taken(k, self._sum(terms))
        yield reached[len(self.signed.forms)]

    def backward(self, y: Matrix) -> Iterator[Matrix]:
        """Y E."""
        waiting: dict[int, list[Matrix]] = {len(self.signed.forms): [y]}
        for k in range(len(self.signed.forms), 0, -1):
            if k not in waiting:
                continue
            own = self.taken_before(self._sum(waiting.pop(k)), k)
            for j, block in self.signed.forms[k - 1].items():
                part = self.before(own, block)
                waiting.setdefault(j, []).append(part if j == 0 else self.bent_before(part, j))
        yield self._sum(waiting[0])

    def paths_forward(self, x: Matrix, j: int = 0) -> Iterator[Matrix]:
        """The products along all paths from signal j to the output, applied to X."""
        for k in range(j + 1, len(self.signed.forms) + 1):
            if j in self.signed.forms[k - 1]:
                part = self.taken(k, self.after(self.signed.forms[k - 1][j], x))
                if k == len(self.signed.forms):
                    yield part
                else:
                    yield from self.paths_forward(self.bent(k, part), k)

    def paths_backward(self, y: Matrix, k: int | None = None) -> Iterator[Matrix]:
        """The products along all paths from the input to form k (the output), after Y."""
        k = len(self.signed.forms) if k is None else k
        y = self.taken_before(y, k)
        for j, block in self.signed.forms[k - 1].items():
            part = self.before(y, block)
            if j == 0:
                yield part
            else:
                yield from self.paths_backward(self.bent_before(part, j), j)


def _factors(block: Composition | Pool) -> tuple[LinearMap, ...]:
    """Maps whose moduli have a product above that of the map."""
    if isinstance(block, Composition):
        return block.factors
    scale = np.nextafter(1.0 / np.broadcast_to(block.count, block.output_shape).ravel(), np.inf)
    return Diagonal(values=scale), block.window


def absolute_bound(signed: SignedForms, p: Norm, q: Norm, evaluator: NormEvaluator, *, apart: bool = False) -> Bound:
    """The bound of L_{p->q} by the sum E over all paths of products of moduli; apart: by the sum of their norms.

    Moduli being monotone, inputs bounded in the norm inf are worst at the vector of ones, and an output in the norm 1
    is a sum: those pairs need one vector instead of E. Where all of E would take too long, its norm is bounded by
    ||E||_1 and ||E||_inf.

    A maximum takes the larger of two rows of E. That is no linear map: it passes all columns of E at once, or bounds of
    all |v| for one bound of |x| (p = inf: by ones), from the input on; towards the input only max(a, b) <= a + b does.
    """
    system = signed.system
    n, m = system.input.size, system.output.size
    moduli, arithmetic = Moduli(signed), signed.arithmetic
    pair: tuple[Norm, Norm] = (p, q)
    bent = bool(signed.choices.maxima)
    ahead = p == "inf" or (q != "1" and n < m) or (bent and n * work(signed) <= WORK)
    summed = bent and ahead and p != "inf" and q == "1"
    if p == "inf":
        pair, start = ("1", q), arithmetic.ones(n, 1)
    elif q == "1":
        pair, start = (p, "inf"), arithmetic.identity(n) if summed else arithmetic.ones(1, m)
    elif (n if bent else min(m, n)) * work(signed) > WORK:
        return _by_sums(signed, p, q, evaluator, apart=apart)
    else:
        start = arithmetic.identity(n if ahead else m)
    if apart:
        parts = moduli.paths_forward(start) if ahead else moduli.paths_backward(start)
    else:
        parts = moduli.forward(start) if ahead else moduli.backward(start)
    total: Bound = Fraction(0)
    for part in parts:
        if summed:
            part = arithmetic.upper(arithmetic.product(arithmetic.ones(1, m), part))
        total = round_up(plus(total, _monotone_norm(part, *pair, evaluator)))
    return total


def _by_sums(signed: SignedForms, p: Norm, q: Norm, evaluator: NormEvaluator, *, apart: bool) -> Bound:
    """The same from ||E||_1 and ||E||_inf alone."""
    one, most = (absolute_bound(signed, r, r, evaluator, apart=apart) for r in ("1", "inf"))
    if p == q == "2":
        return round_up(root_up(times(one, most)))
    return one if (p, q) == ("1", "2") else most if (p, q) == ("2", "inf") else min(one, most)


def work(signed: SignedForms) -> int:
    """The products of entries that one column of E costs."""
    return sum(expansion(b) if isinstance(b, LinearMap) else _count(b) for form in signed.forms for b in form.values())


def _count(matrix: Matrix) -> int:
    return int(matrix.shape[0] * matrix.shape[1])


_ENTRY_NORMS: Mapping[tuple[str, str], str] = {
    ("1", "1"): "max_column_sum",
    ("1", "2"): "max_column_2",
    ("1", "inf"): "max_entry",
    ("2", "inf"): "max_row_2",
    ("inf", "inf"): "max_row_sum",
}


def _monotone_norm(matrix: Matrix, p: Norm, q: Norm, evaluator: NormEvaluator) -> Bound:
    """The norm of a nonnegative matrix."""
    if (p, q) == ("2", "2"):
        return evaluator(matrix, p, q)
    bound: Bound = getattr(evaluator.entry_norms(matrix), _ENTRY_NORMS[p, q])
    return bound
