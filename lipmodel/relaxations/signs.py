"""Polynomials in signs, relaxed: moment matrices of products of signs, and triangle inequalities that they violate.

What is proved, and how, is in `certify/signs.py`. Here the matrix Q of the proof is found: the semidefinite program

    minimise  sum_a Q_aa + sum_k lambda_k   subject to   Q >= 0, lambda >= 0,  R = its constant

is solved, its dual X is a matrix of moments of the products, and the triangle inequalities that X violates most join
the program, round after round. Without them this is GeoLIP (Wang, Prakriya & Jha 2022, arXiv 2203.01212) for one hidden
layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.certify.evidence import Evidence, Proved
from lipmodel.certify.kernel import Rejected
from lipmodel.certify.polynomials import Layout, Monomial, Program, layout, multiply
from lipmodel.certify.signs import sign_program, signs_bound
from lipmodel.errors import UsageError
from lipmodel.network.increments import exact_system
from lipmodel.relaxations.sos import GRID_BITS, integers, lifted

if TYPE_CHECKING:
    from lipmodel.backends.base import Backend
    from lipmodel.model.model import Model
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.spec import Norm, Spec

Array = np.ndarray[Any, Any]

LARGEST = 64
"""Products in the vector of a proof up to which the program is solved: twice as many take a hundred times as long."""
VIOLATED = 1e-6
"""By how much a triangle inequality is violated that joins the program."""
PER_ROUND = 6
"""Triangle inequalities, for every product in the vector, that may join in a round."""
SETTLED = 1e-8
"""Relative improvement of the bound in a round below which there is no other."""
UNUSED = 1e-9
"""Weight of a triangle inequality below which it leaves the program."""
SOLVER = "clarabel"
"""The one that hands out the dual, which the triangle inequalities are separated by."""
Cut = tuple[int, int, int, int, int]
"""Numbers of three products in ascending order, and the signs e and f."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SignRelaxation(Evidence):
    """The largest value of a polynomial in signs, by a sum of squares and up to `rounds` rounds of triangles.

    squared: whether that is the square of the constant. basis: the products of signs in the vector of the proof.
    """

    program: Program
    squared: bool
    basis: tuple[Monomial, ...]
    rounds: int

    def describe(self) -> str:
        kind = "square of the constant" if self.squared else "constant"
        return (
            f"{kind}: a polynomial of {len(self.program.objective.terms):,} products of signs, one moment matrix of "
            f"order {len(self.basis)}, triangle inequalities in up to {self.rounds} rounds"
        )

    def using(self, backend: Backend | str) -> SignRelaxation:
        """Raises UsageError for every other solver than the one that hands out its dual."""
        name = backend if isinstance(backend, str) else backend.name
        if name != SOLVER:
            raise UsageError(f"triangle inequalities are separated by the dual that {SOLVER} hands out, not {name}")
        return self

    def prove(self, system: IncrementSystem, norms: tuple[Norm, Norm], deadline: float) -> Proved | None:
        """The least bound over all rounds, decided in integers."""
        if not self.program.objective.terms:
            return self._proved(norms, {"gram": [0] * _entries(len(self.basis)), "exponent": 0, "triangles": []})
        program = _Semidefinite(self.program, self.basis)
        best: Proved | None = None
        cuts: list[Cut] = []
        for _ in range(self.rounds + 1):
            found = program.solve(cuts, deadline)
            if found is None:
                break
            proved = self._proved(norms, program.proof(found, cuts))
            improved = proved is not None and (best is None or proved.bound < best.bound * (1.0 - SETTLED))
            if proved is not None and (best is None or proved.bound < best.bound):
                best = proved
            new = [] if found.moments is None else program.violated(found.moments, cuts)
            if not new or not improved or time.monotonic() > deadline:
                break
            cuts = [cut for cut, weight in zip(cuts, found.weights, strict=True) if weight > UNUSED] + new
        return best

    def _proved(self, norms: tuple[Norm, Norm], found: Mapping[str, Any]) -> Proved | None:
        proof = {"rule": "signs", "norms": list(norms), "basis": [list(m) for m in self.basis], **found}
        try:
            bound = signs_bound(self.program, self.squared, proof)
        except Rejected:
            return None
        if not math.isfinite(bound):
            return None
        return Proved(bound=bound, proof={**proof, "bound": bound.hex()}, backend=SOLVER)


def sign_relaxation(system: IncrementSystem, spec: Spec, *, rounds: int = 20, largest: int = LARGEST) -> SignRelaxation:
    """The relaxation of the constant of a system over the vertices of its slope box; nothing is solved yet.

    rounds: in which violated triangle inequalities join. largest: order of the moment matrix that is still solved.
    Raises UsageError where the polynomial or its matrix is too large, and for activations that act on vectors.
    """
    try:
        program, squared = sign_program(exact_system(system), *spec.norms)
    except Rejected as error:
        raise UsageError(f"{error}: geolip and lipsdp-neuron take such networks") from None
    basis = _basis(system, program, squared)
    if len(basis) > largest:
        raise UsageError(
            f"a moment matrix of {len(basis)} products of signs is too large (up to {largest}): geolip and "
            "lipsdp-neuron do without (-o largest=N to try)"
        )
    return SignRelaxation(program=program, squared=squared, basis=basis, rounds=int(rounds))


def _entries(order: int) -> int:
    return order * (order + 1) // 2


def _basis(system: IncrementSystem, program: Program, squared: bool) -> tuple[Monomial, ...]:
    """Products such that every one of the polynomial is a product of two of them, as few as can be had by layers.

    The signs of one activation on one side, all others on the other; of a square, the products of its root.
    """
    where = layout([s.size for s in system.signals], system.output.size)
    listed = program.objective.terms
    found = _roots(listed, [set(part) for part in where.slopes]) if squared else product_basis(listed, where)
    return tuple(sorted({()} | found, key=lambda m: (len(m), m)))


def product_basis(listed: Iterable[Monomial], where: Layout) -> set[Monomial]:
    """The signs of one activation on one side, all others on the other; the activation with which they are fewest."""
    found: list[set[Monomial]] = []
    for layer in [set(part) for part in where.slopes] or [set()]:
        sides = ((tuple(i for i in m if i in layer), tuple(i for i in m if i not in layer)) for m in listed)
        found.append({part for pair in sides for part in pair})
    return min(found, key=len)


def _roots(products: Mapping[Monomial, int], layers: Sequence[set[int]]) -> set[Monomial]:
    """Products of at most one sign of every layer that occur in a polynomial that is the square of such products."""
    found = {m for m in products if all(len(layer.intersection(m)) <= 1 for layer in layers)}
    signs = frozenset(i for m in products for i in m)
    for m in products:
        if not any(multiply(m, part, signs) in found for part in found):
            half = (len(m) + 1) // 2
            found |= {m[:half], m[half:]}
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """Q and the weights of the cuts, in units of the program; X where the solver gave it."""

    matrix: Array
    weights: Array
    moments: Array | None


class _Semidefinite:
    """The semidefinite program of a polynomial, its coefficients divided by a power of two, `unit`."""

    def __init__(self, program: Program, basis: Sequence[Monomial]) -> None:
        n, objective = len(basis), program.objective
        size = max(map(abs, objective.terms.values())).bit_length()
        # the coefficients of the program are those of the polynomial over 2^places, below one
        self.places = size - (objective.unit.bit_length() - 1)
        self.order = n
        self.cols, self.rows = np.tril_indices(n, -1)  # every pair once, the smaller number in `rows`
        numbers: dict[Monomial, int] = {}
        pairs = (multiply(basis[b], basis[a], program.signs) for a in range(n) for b in range(a))
        self.kind = np.array([numbers.setdefault(m, len(numbers)) for m in pairs], dtype=np.int64)
        self.target = np.zeros(len(numbers))
        self.constant = 0.0
        for m, c in objective.terms.items():
            if not m:
                self.constant = _scaled(c, size)
            elif m in numbers:
                self.target[numbers[m]] = _scaled(c, size)
        first = np.full(len(numbers), -1)
        first[self.kind[::-1]] = np.arange(len(self.kind))[::-1]
        self.first = first
        self.free = np.setdiff1d(np.arange(len(self.kind)), first)
        self.place = {(int(a), int(b)): k for k, (a, b) in enumerate(zip(self.rows, self.cols, strict=True))}

    def solve(self, cuts: Sequence[Cut], deadline: float) -> _Found | None:
        """Solve with these triangle inequalities; None where the solver finds nothing."""
        from lipmodel.backends import backend
        from lipmodel.backends.base import SolveOptions

        left = deadline - time.monotonic()
        if left <= 0.0:
            return None
        model, parts = self.model(cuts)
        options = SolveOptions(tol=1e-9, time_limit=left if math.isfinite(left) else None)
        point = backend(SOLVER).solve(model, options)
        if point.values is None:
            return None
        values = [np.zeros(0) if part is None else point.values[part] for part in parts]
        diagonal, rest, weights = values[0], values[1], np.maximum(values[2], 0.0)
        entries = self._entries(cuts)
        off = entries[0] + entries[1] @ rest + entries[2] @ weights
        matrix = np.diag(diagonal)
        matrix[self.rows, self.cols] = matrix[self.cols, self.rows] = off
        moments = None if point.duals is None else _correlations(point.duals.constraints[0])
        return _Found(matrix=matrix, weights=weights, moments=moments)

    def model(self, cuts: Sequence[Cut]) -> tuple[Model, tuple[Any, Any, Any]]:
        """The program, and its variables: the diagonal of Q, its entries that are free, the weights of the cuts."""
        import lipmodel as lm
        from lipmodel.model.forms import apply
        from lipmodel.network.linear import Selection

        m = lm.Model("signs")
        z = m.signal("products", self.order)
        diagonal = m.variable("eta", self.order)
        constant, by_rest, by_weights = self._entries(cuts)
        off = lm.Expression.number(constant, len(constant))
        price = diagonal.sum()
        rest = m.variable("theta", len(self.free)) if len(self.free) else None
        weights = m.variable("lambda", len(cuts), nonnegative=True) if cuts else None
        if rest is not None:
            off = off + by_rest @ rest
        if weights is not None:
            off = off + by_weights @ weights
            price = price + weights.sum()
        left, right = (apply(Selection(index=index, size=self.order), z) for index in (self.rows, self.cols))
        form = lm.inner(z, z, weight=diagonal) + lm.inner(left, right, weight=off * 2.0)
        m.require(form >= 0)
        m.minimize(price + self.constant)
        listed = [None if v is None else next(iter(v.coefficients)) for v in (diagonal, rest, weights)]
        return m, (listed[0], listed[1], listed[2])

    def proof(self, found: _Found, cuts: Sequence[Cut]) -> dict[str, Any]:
        """Q, moved along the identity until it is positive definite beyond rounding, and the weights, as integers."""
        exponent = max(0, GRID_BITS - self.places)
        gram = lifted(found.matrix)[np.tril_indices(self.order)]
        weights = integers(np.ldexp(found.weights, self.places), exponent)
        return {
            "gram": integers(np.ldexp(gram, self.places), exponent),
            "exponent": exponent,
            "triangles": [[*cut, weight] for cut, weight in zip(cuts, weights, strict=True) if weight],
        }

    def _entries(self, cuts: Sequence[Cut]) -> tuple[Array, Any, Any]:
        """The entries of Q off the diagonal as constant + (matrix) free entries + (matrix) weights of the cuts."""
        count = len(self.kind)
        constant = np.zeros(count)
        constant[self.first] = -0.5 * self.target
        own = (np.ones(len(self.free)), (self.free, np.arange(len(self.free))))
        moved = (-np.ones(len(self.free)), (self.first[self.kind[self.free]], np.arange(len(self.free))))
        by_rest = sp.csr_array(own, shape=(count, len(self.free))) + sp.csr_array(moved, shape=(count, len(self.free)))
        rows, cols, data = [], [], []
        for k, (a, b, c, e, f) in enumerate(cuts):
            for left, right, sign in ((a, b, e), (b, c, f), (a, c, e * f)):
                rows.append(int(self.first[self.kind[self.place[left, right]]]))
                cols.append(k)
                data.append(-0.5 * sign)
        by_weights = sp.csr_array((data, (rows, cols)), shape=(count, len(cuts)))
        return constant, by_rest, by_weights

    def violated(self, moments: Array, cuts: Sequence[Cut]) -> list[Cut]:
        """The triangle inequalities that the moments violate most, `PER_ROUND` for every product; none twice."""
        n = self.order
        sums = np.bincount(self.kind, weights=moments[self.rows, self.cols], minlength=len(self.target))
        means = sums / np.maximum(np.bincount(self.kind, minlength=len(self.target)), 1)
        x = np.eye(n)
        x[self.rows, self.cols] = x[self.cols, self.rows] = means[self.kind]
        a, b, c = _triples(n)
        known, found = set(cuts), []
        values = []
        for e in (1, -1):
            for f in (1, -1):
                value = 1.0 + e * x[a, b] + f * x[b, c] + e * f * x[a, c]
                worst = np.flatnonzero(value < -VIOLATED)
                values += [(float(value[k]), (int(a[k]), int(b[k]), int(c[k]), e, f)) for k in worst]
        for _, cut in sorted(values):
            if cut not in known:
                found.append(cut)
            if len(found) >= PER_ROUND * n:
                break
        return found


def _triples(n: int) -> tuple[Array, Array, Array]:
    """All a < b < c < n."""
    a, b, c = np.meshgrid(np.arange(n), np.arange(n), np.arange(n), indexing="ij", sparse=True)
    return np.nonzero((a < b) & (b < c))  # type: ignore[return-value]


def _correlations(moments: Array) -> Array:
    """Moments with a unit diagonal."""
    root = 1.0 / np.sqrt(np.maximum(np.diag(moments), 1e-300))
    return np.asarray(np.clip(root[:, None] * moments * root, -1.0, 1.0))


def _scaled(value: int, places: int) -> float:
    """value / 2^places, rounded."""
    shift = max(0, abs(value).bit_length() - 60)
    return math.ldexp(float(value >> shift), shift - places)
