"""Maxima of two entries, recognised in an increment system and written as such instead of as linear maps and relus.

Max-pooling is imported as max(a, b) = b + relu(a - b), and so are Max, Min, TopK and sorting. On increments the relu is
w = s (a - b) with s in [0, 1], hence

    m = b + w = s a + (1 - s) b        and        m' = a - w = (1 - s) a + s b,        |m|, |m'| <= max(|a|, |b|),

the increments of the maximum and of the minimum. Both are exact, so w may be replaced by m - b or by a - m' wherever it
is read, entry by entry, whichever cancels more: the choice decides how good a bound is, never whether it holds. After
that a tournament reads nothing but the winners of the round before.

The rows of a - b are written over *atoms*, signals or what one map makes of others, with coefficients that are small
integers: sums are exact, and neither convolutions nor the windows are expanded.

Source: Pintore & Despres 2024 (arXiv 2410.21053) call this the implicit treatment of max-pooling; derived here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.model.forms import LinearForm, Signal, add_forms, apply
from lipmodel.network.linear import Composition, Dense, Diagonal, LinearMap, Selection, Sparse, Sum
from lipmodel.ranges.enclosure import MatrixEnclosure

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem, SlopeRestricted

Array = np.ndarray[Any, Any]
Rows = dict[int, Any]
"""A vector over atoms: by atom its coefficients, sparse (CSR, small integers)."""

LARGEST_COEFFICIENT = 2.0**20
"""Sums of products of integers up to this size are exact in binary64, far beyond any number of them that fits."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WithMaxima:
    """A system whose maxima are written as such, and which activations (by number from 1) they are.

    The signal of a maximum has two halves, m and m'; its pre is (a, b), one above the other. |m| and |m'| are at most
    the larger of |a| and |b|, entry by entry.
    """

    system: IncrementSystem
    maxima: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Larger(LinearMap):
    """(max(A, B), max(A, B)), entry by entry, for a map whose rows are A above B."""

    map: LinearMap

    @property
    def shape(self) -> tuple[int, int]:
        return self.map.shape

    def enclosure(self) -> MatrixEnclosure:
        e = self.map.enclosure().dense()
        half = np.roll(np.arange(self.shape[0]), self.shape[0] // 2)
        radius = None if e.radius is None else np.maximum(e.radius, e.radius[half])
        return MatrixEnclosure(center=np.maximum(e.center, e.center[half]), radius=radius)


def with_maxima(system: IncrementSystem, wanted: Collection[int] | None = None) -> WithMaxima:
    """The system with those of the wanted activations (None: all of them) that are maxima of two written as such."""
    if wanted is not None and not wanted:
        return WithMaxima(system=system, maxima=frozenset())
    rewriting = _Rewriting(dictionary=_row_dictionary(system))
    activations: list[SlopeRestricted] = []
    signals = [system.signals[0]]
    found = set()
    for k, a in enumerate(system.activations, start=1):
        rows = rewriting.rows(a.pre)
        sides = _sides(a, rows) if wanted is None or k in wanted else None
        if sides is None:
            activations.append(replace(a, pre=rewriting.form(a.pre, rows)))
            signals.append(a.signal)
            continue
        signal = Signal(name=a.signal.name, size=2 * a.size)
        pairs = LinearForm(size=2 * a.size, blocks=rewriting.written(sides.stacked, 2 * a.size).blocks)
        pair = replace(a, signal=signal, pre=pairs, post=LinearForm.of(signal), index=None)
        activations.append(replace(pair, alpha=np.zeros(signal.size), beta=np.ones(signal.size)))
        signals.append(signal)
        rewriting.replaced[a.signal] = signal, sides
        found.add(k)
    if not found:
        return WithMaxima(system=system, maxima=frozenset())
    output = rewriting.form(system.output, rewriting.rows(system.output))
    changed = replace(
        system,
        signals=tuple(signals),
        activations=tuple(activations),
        output=LinearForm(size=output.size, blocks=output.blocks, role="output"),
        complete=None,
        network=None,
    )
    return WithMaxima(system=changed, maxima=frozenset(found))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sides:
    """v = a - b, every entry of a and of b being one entry of an atom: (atom, column) of either, shape (size,)."""

    a: tuple[Array, Array]
    b: tuple[Array, Array]
    widths: Mapping[int, int]

    @property
    def stacked(self) -> Rows:
        """(a, b)."""
        atom, column = (np.concatenate(pair) for pair in zip(self.a, self.b, strict=True))
        return _placed(atom, column, np.arange(len(atom)), np.ones(len(atom)), len(atom), self.widths)


def _sides(activation: SlopeRestricted, rows: Rows) -> _Sides | None:
    """The two sides of a maximum, or None: slopes in [0, 1], and one +1 and one -1 in every row."""
    if activation.groups is not None or not (np.all(activation.alpha >= 0.0) and np.all(activation.beta <= 1.0)):
        return None
    found = {}
    parts = [(atom, sp.coo_array(matrix)) for atom, matrix in rows.items()]
    for name, sign in (("a", 1.0), ("b", -1.0)):
        at, atoms, columns = [], [], []
        for atom, coo in parts:
            chosen = coo.data == sign
            at.append(coo.coords[0][chosen])
            columns.append(coo.coords[1][chosen])
            atoms.append(np.full(int(chosen.sum()), atom))
        if not at or not np.array_equal(np.sort(np.concatenate(at)), np.arange(activation.size)):
            return None
        order = np.argsort(np.concatenate(at))
        found[name] = np.concatenate(atoms)[order], np.concatenate(columns)[order]
    if sum(matrix.nnz for matrix in rows.values()) != 2 * activation.size:
        return None
    return _Sides(a=found["a"], b=found["b"], widths={atom: matrix.shape[1] for atom, matrix in rows.items()})


def _placed(atom: Array, column: Array, row: Array, value: Array, size: int, widths: Mapping[int, int]) -> Rows:
    """Rows with the given coefficients."""
    found = {}
    for t in np.unique(atom).tolist():
        here = atom == t
        found[t] = _csr(sp.csr_array((value[here], (row[here], column[here])), shape=(size, widths[t])))
    return found


def _csr(matrix: Any) -> Any:
    csr = sp.csr_array(matrix, copy=True)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    csr.sort_indices()
    return csr


def _added(terms: list[Rows]) -> Rows:
    total: Rows = {}
    for term in terms:
        for atom, matrix in term.items():
            total[atom] = total[atom] + matrix if atom in total else matrix
    clean = {atom: _csr(matrix) for atom, matrix in total.items()}
    return {atom: matrix for atom, matrix in sorted(clean.items()) if matrix.nnz}


@dataclass(eq=False)
class _Rewriting:
    """Atoms, numbered as they are met, and the maxima so far."""

    dictionary: Mapping[int, tuple[Sparse, LinearMap]]
    replaced: dict[Signal, tuple[Signal, _Sides]] = field(default_factory=dict)
    atoms: list[Signal | tuple[LinearMap, Rows]] = field(default_factory=list)
    _numbers: dict[Any, int] = field(default_factory=dict)

    def rows(self, form: LinearForm) -> Rows:
        """A form over atoms, no maximum being read as a relu any more."""
        return self._without_relus(self._raw(list(form.blocks.items()), form.size))

    def _raw(self, terms: list[tuple[Signal, LinearMap]], size: int) -> Rows:
        """Terms map @ signal; what has a map in common that is no small integers is added up before that map acts."""
        own: list[Rows] = []
        shared: dict[Any, tuple[Any, LinearMap, list[tuple[Signal, LinearMap]]]] = {}
        pending = list(terms)
        while pending:
            signal, map = pending.pop(0)
            if isinstance(map, Sum):
                pending = [*((signal, term) for term in map.terms), *pending]
                continue
            outer, heavy, inner = self._peeled(map)
            if heavy is None:
                own.append({self._number(signal): outer})
                continue
            rest = inner if inner is not None else Selection(index=np.arange(signal.size), size=signal.size)
            key = (_key(heavy), _bytes(outer))
            shared.setdefault(key, (outer, heavy, []))[2].append((signal, rest))
        for outer, heavy, inside in shared.values():
            behind = self._without_relus(self._raw(inside, heavy.shape[1]))
            if behind:
                own.append({self._number((heavy, behind)): outer})
        return _added(own)

    def _peeled(self, map: LinearMap) -> tuple[Any, LinearMap | None, LinearMap | None]:
        """(outer, heavy, inner) with map = outer heavy inner, outer of small integers; None is the identity."""
        factors = list(map.factors) if isinstance(map, Composition) else [map]
        outer = _csr(sp.eye_array(map.shape[0]))
        while factors:
            heavy = factors.pop(0)
            if id(heavy) in self.dictionary:
                signs, heavy = self.dictionary[id(heavy)]
                return _csr(outer @ signs.weights), heavy, _composed(factors)
            matrix = _small_integers(heavy)
            product = None if matrix is None else _csr(outer @ matrix)
            if product is None or np.abs(product.data).max(initial=0.0) > LARGEST_COEFFICIENT:
                return outer, heavy, _composed(factors)
            outer = product
        return outer, None, None

    def _number(self, atom: Signal | tuple[LinearMap, Rows]) -> int:
        key: Any = id(atom)
        if isinstance(atom, tuple):
            key = (_key(atom[0]), tuple((t, _bytes(matrix)) for t, matrix in atom[1].items()))
        if key not in self._numbers:
            self._numbers[key] = len(self.atoms)
            self.atoms.append(atom)
        return self._numbers[key]

    def _without_relus(self, rows: Rows) -> Rows:
        """m - b or a - m' for w, in the order of the activations, so that what is read by later ones is known."""
        for signal, (pair, sides) in self.replaced.items():
            reader = rows.get(self._number(signal))
            if reader is None:
                continue
            coo = sp.coo_array(reader)
            (row, entry), value = coo.coords, coo.data
            half = signal.size
            (to_a, at_a), (to_b, at_b) = ((atom[entry], column[entry]) for atom, column in (sides.a, sides.b))
            as_least = (_at(rows, to_a, row, at_a) * value < 0.0) & ~(_at(rows, to_b, row, at_b) * value > 0.0)
            number = self._number(pair)
            instead = _placed(
                np.concatenate([np.full(len(row), number), np.where(as_least, to_a, to_b)]),
                np.concatenate([entry + half * as_least, np.where(as_least, at_a, at_b)]),
                np.concatenate([row, row]),
                np.concatenate([np.where(as_least, -value, value), np.where(as_least, value, -value)]),
                reader.shape[0],
                {**sides.widths, number: pair.size},
            )
            rows = _added([{t: m for t, m in rows.items() if t != self._number(signal)}, instead])
        return rows

    def form(self, form: LinearForm, rows: Rows) -> LinearForm:
        """The form that rows say; the given one where it reads no maximum."""
        if not any(signal in self.replaced for signal in form.blocks):
            return form
        return self.written(rows, form.size)

    def written(self, rows: Rows, size: int) -> LinearForm:
        """Rows as a form over signals."""
        terms = []
        for number, matrix in rows.items():
            atom = self.atoms[number]
            if isinstance(atom, Signal):
                terms.append(apply(_map(matrix), LinearForm.of(atom)))
            else:
                heavy, inside = atom
                inner = self.written(inside, heavy.shape[1])
                terms.append(apply(_acting(matrix, heavy), inner))
        return add_forms(terms) if terms else LinearForm(size=size, blocks={})


def _at(rows: Rows, atom: Array, row: Array, column: Array) -> Array:
    """The coefficients at places."""
    found = np.zeros(len(row))
    for t in np.unique(atom).tolist():
        if t in rows:
            here = np.flatnonzero(atom == t)
            found[here] = np.asarray(rows[t][row[here], column[here]]).reshape(-1)
    return found


def _composed(factors: list[LinearMap]) -> LinearMap | None:
    return None if not factors else factors[0] if len(factors) == 1 else Composition(factors=tuple(factors))


def _small_integers(map: LinearMap) -> Any:
    """The matrix of a map with few entries, all small integers; None for any other."""
    if not isinstance(map, Selection | Diagonal | Sparse) or getattr(map, "radius", None) is not None:
        return None
    matrix = sp.csr_array(map.enclosure().center)
    whole = np.all(matrix.data == np.round(matrix.data)) and np.abs(matrix.data).max(initial=0.0) <= LARGEST_COEFFICIENT
    return _csr(matrix) if whole else None


def _key(map: LinearMap) -> Any:
    """The same for maps that are the same; other maps have other keys, which costs what might have cancelled."""
    if isinstance(map, Selection):
        return "selection", map.size, map.index.tobytes()
    if isinstance(map, Diagonal) and map.radius is None:
        return "diagonal", map.values.tobytes()
    return id(map)


def _bytes(matrix: Any) -> Any:
    return matrix.shape, matrix.indptr.tobytes(), matrix.indices.tobytes(), matrix.data.tobytes()


def _map(matrix: Any) -> LinearMap:
    """Small integers as a map, a selection where they are one."""
    count = np.diff(matrix.indptr)
    if np.all(count <= 1) and np.all(matrix.data == 1.0):
        index = np.full(matrix.shape[0], -1)
        index[count == 1] = matrix.indices
        return Selection(index=index, size=matrix.shape[1])
    return Sparse(weights=sp.csr_array(matrix, dtype=np.float64))


def _acting(matrix: Any, heavy: LinearMap) -> LinearMap:
    """outer heavy; rows of a stored matrix that are only copied or negated stay a stored matrix."""
    copies = bool(np.all(np.diff(matrix.indptr) == 1) and np.all(np.abs(matrix.data) == 1.0))
    if copies and isinstance(heavy, Dense) and heavy.radius is None:
        return Dense(weights=matrix.data[:, None] * heavy.weights[matrix.indices])
    return _map(matrix) @ heavy


def _row_dictionary(system: IncrementSystem) -> Mapping[int, tuple[Sparse, LinearMap]]:
    """Stored matrices that have rows in common, as +-1 times the rows of one: {id: (signs, all rows, each once)}."""
    leaves: dict[int, dict[int, Dense]] = {}
    pending = [map for form in (*(a.pre for a in system.activations), system.output) for map in form.blocks.values()]
    while pending:
        map = pending.pop(0)
        if isinstance(map, Composition | Sum):
            pending = [*(map.factors if isinstance(map, Composition) else map.terms), *pending]
        elif isinstance(map, Dense) and map.radius is None:
            leaves.setdefault(map.shape[1], {})[id(map)] = map
    known: dict[int, tuple[Sparse, LinearMap]] = {}
    for alike in leaves.values():
        numbers: dict[bytes, int] = {}  # of rows, in the order (and with the sign) in which they are met
        rows: list[Array] = []
        read = {}
        for key, leaf in alike.items() if len(alike) > 1 else ():
            signs, place = np.zeros(leaf.shape[0]), np.zeros(leaf.shape[0], dtype=np.int64)
            for i, row in enumerate(leaf.weights + 0.0):  # + 0: one zero, not two
                if not row.any():
                    continue
                name, turned = row.tobytes(), (0.0 - row).tobytes()
                signs[i] = -1.0 if name not in numbers and turned in numbers else 1.0
                if name not in numbers and turned not in numbers:
                    numbers[name] = len(rows)
                    rows.append(row)
                place[i] = numbers[name] if name in numbers else numbers[turned]
            read[key] = signs, place
        if len(rows) == sum(int(np.count_nonzero(signs)) for signs, _ in read.values()):
            continue
        all_rows = Dense(weights=np.array(rows))
        for key, (signs, place) in read.items():
            matrix = sp.csr_array((signs, (np.arange(len(place)), place)), shape=(len(place), len(rows)))
            known[key] = Sparse(weights=_csr(matrix)), all_rows
    return known
