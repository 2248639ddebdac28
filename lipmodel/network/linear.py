"""Linear maps that keep their structure: what stands between the nonlinearities of a network.

A `LinearMap` is never expanded unless somebody asks. It can be applied (`matvec`, `rmatvec`), enclosed in floating
point (`enclosure`) and written down exactly (`exact`). Weights are binary floats, so leaves are exact; compositions are
enclosed with a proved error. Convolution and pooling are in `conv.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import scipy.sparse as sp
from flint import fmpz_mat

from lipmodel.network.exact import ExactMatrix, dyadic_exponent, integers
from lipmodel.ranges.enclosure import MatrixEnclosure

Array = np.ndarray[Any, Any]


class LinearMap:
    """A linear map from R^n to R^m; subclasses are immutable.

    Subclasses give `shape` and `enclosure`, and where they can do better than a matrix, the rest as well.
    """

    __slots__ = ()
    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        raise NotImplementedError

    @property
    def entries(self) -> int:
        """Predicted number of stored entries of the expanded matrix; costs nothing."""
        return self.shape[0] * self.shape[1]

    @property
    def leaves(self) -> int:
        """Number of stored leaves that an evaluation passes through (shared ones counted as often as they are met)."""
        return 1

    def enclosure(self) -> MatrixEnclosure:
        """The matrix with a proved entrywise error; leaves are exact. Dense or CSR, whichever is natural."""
        raise NotImplementedError

    def matvec(self, x: Array) -> Array:
        """M x for x of shape (n,) or (n, k), in floating point."""
        return np.asarray(self.enclosure().center @ x)

    def rmatvec(self, y: Array) -> Array:
        """M' y for y of shape (m,) or (m, k), in floating point."""
        return np.asarray(self.enclosure().center.T @ y)

    def exact(self) -> ExactMatrix:
        """The matrix in exact arithmetic (dense)."""
        e = self.enclosure().dense()
        return ExactMatrix.from_floats(e.center, e.radius)

    def apply_exact(self, other: ExactMatrix) -> ExactMatrix:
        """M other, in exact arithmetic."""
        return self.exact() @ other

    def modulus(self) -> LinearMap:
        """The entrywise moduli; stored maps, scalings and selections keep their structure, others are expanded."""
        return Absolute(map=self)

    def __matmul__(self, other: LinearMap) -> LinearMap:
        if not isinstance(other, LinearMap):
            return NotImplemented  # a linear form on the right knows what to do
        return compose(self, other)

    def __add__(self, other: LinearMap) -> LinearMap:
        return total([self, other])

    def __neg__(self) -> LinearMap:
        return Diagonal(values=np.full(self.shape[0], -1.0)) @ self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dense(LinearMap):
    """A stored matrix, shape (m, n), float64, with an entrywise radius where it is not exact."""

    weights: Array
    radius: Array | None = None

    def __post_init__(self) -> None:
        _require_binary64(self.weights, self.radius)

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.weights.shape[0]), int(self.weights.shape[1]))

    def enclosure(self) -> MatrixEnclosure:
        return MatrixEnclosure(center=self.weights, radius=self.radius)

    def __neg__(self) -> LinearMap:
        return Dense(weights=-self.weights, radius=self.radius)

    def modulus(self) -> LinearMap:
        return Dense(weights=np.abs(self.weights), radius=self.radius)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sparse(LinearMap):
    """A stored sparse matrix (CSR, float64), with an entrywise radius where it is not exact."""

    weights: Any
    radius: Any = None

    def __post_init__(self) -> None:
        _require_binary64(self.weights, self.radius)

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.weights.shape[0]), int(self.weights.shape[1]))

    @property
    def entries(self) -> int:
        return int(self.weights.nnz)

    def enclosure(self) -> MatrixEnclosure:
        radius = None if self.radius is None else _view(self.radius)
        return MatrixEnclosure(center=_view(self.weights), radius=radius)

    def modulus(self) -> LinearMap:
        csr = _view(self.weights)
        return Sparse(weights=abs(csr), radius=self.radius) if csr.has_canonical_format else Absolute(map=self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection(LinearMap):
    """Every output is one of the inputs, or zero: y_i = x[index_i], 0 where index_i = -1.

    Identity, permutation, slice, broadcast, zero padding, and the scatter of a concatenation are all this.
    """

    index: Array
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self.index), self.size)

    @property
    def entries(self) -> int:
        return len(self.index)

    @property
    def is_identity(self) -> bool:
        return len(self.index) == self.size and bool(np.array_equal(self.index, np.arange(self.size)))

    def enclosure(self) -> MatrixEnclosure:
        kept = np.flatnonzero(self.index >= 0)
        matrix = sp.csr_array((np.ones(len(kept)), (kept, self.index[kept])), shape=self.shape)
        return MatrixEnclosure(center=matrix)

    def matvec(self, x: Array) -> Array:
        y = np.asarray(x)[np.maximum(self.index, 0)]
        y[self.index < 0] = 0.0
        return y

    def apply_exact(self, other: ExactMatrix) -> ExactMatrix:
        def gather(m: fmpz_mat) -> fmpz_mat:
            n = int(m.ncols())
            flat = m.entries()
            zero = [0] * n
            rows: list[Any] = []
            for i in self.index.tolist():
                rows.extend(flat[i * n : (i + 1) * n] if i >= 0 else zero)
            return fmpz_mat(len(self.index), n, rows)

        radius = None if other.radius is None else gather(other.radius)
        return ExactMatrix(mantissa=gather(other.mantissa), exponent=other.exponent, radius=radius)

    def modulus(self) -> LinearMap:
        return self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Diagonal(LinearMap):
    """y_i = values_i x_i, shape (n,), with a radius per entry where the factor is not a binary float."""

    values: Array
    radius: Array | None = None

    def __post_init__(self) -> None:
        _require_binary64(self.values, self.radius)

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self.values), len(self.values))

    @property
    def entries(self) -> int:
        return len(self.values)

    def enclosure(self) -> MatrixEnclosure:
        radius = None if self.radius is None else sp.csr_array(sp.diags_array(self.radius))
        return MatrixEnclosure(center=sp.csr_array(sp.diags_array(self.values)), radius=radius)

    def matvec(self, x: Array) -> Array:
        return np.asarray((self.values * np.asarray(x).T).T)

    def rmatvec(self, y: Array) -> Array:
        return self.matvec(y)

    def apply_exact(self, other: ExactMatrix) -> ExactMatrix:
        own = [self.values] if self.radius is None else [self.values, self.radius]
        exponent = max(dyadic_exponent(part) for part in own)
        factors = integers(self.values, exponent)
        n = other.shape[1]

        def rows(scale: Sequence[int], m: fmpz_mat) -> fmpz_mat:
            flat = m.entries()
            return fmpz_mat(len(scale), n, [c * v for i, c in enumerate(scale) for v in flat[i * n : (i + 1) * n]])

        radius = None
        if other.radius is not None:
            radius = rows([abs(c) for c in factors], other.radius)
        if self.radius is not None:
            own_radius = integers(self.radius, exponent)
            size = fmpz_mat(other.shape[0], n, [abs(v) for v in other.mantissa.entries()])
            if other.radius is not None:
                size = size + other.radius
            extra = rows(own_radius, size)
            radius = extra if radius is None else radius + extra
        return ExactMatrix(mantissa=rows(factors, other.mantissa), exponent=exponent + other.exponent, radius=radius)

    def modulus(self) -> LinearMap:
        return Diagonal(values=np.abs(self.values), radius=self.radius)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transposed(LinearMap):
    """The transpose of a map that is not expanded (a transposed convolution)."""

    map: LinearMap

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.map.shape
        return (n, m)

    @property
    def entries(self) -> int:
        return self.map.entries

    def matvec(self, x: Array) -> Array:
        return self.map.rmatvec(x)

    def rmatvec(self, y: Array) -> Array:
        return self.map.matvec(y)

    def modulus(self) -> LinearMap:
        return Transposed(map=self.map.modulus())

    def enclosure(self) -> MatrixEnclosure:
        e = self.map.enclosure()
        turned = [None if m is None else sp.csr_array(m.T) if sp.issparse(m) else m.T for m in (e.center, e.radius)]
        return MatrixEnclosure(center=turned[0], radius=turned[1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Composition(LinearMap):
    """factors[0] @ factors[1] @ ...: the last factor acts first."""

    factors: tuple[LinearMap, ...]

    @property
    def leaves(self) -> int:
        return sum(f.leaves for f in self.factors)

    @property
    def shape(self) -> tuple[int, int]:
        return (self.factors[0].shape[0], self.factors[-1].shape[1])

    @property
    def entries(self) -> int:
        m, n = self.shape
        fan = 1.0
        for factor in self.factors:
            fan *= max(1.0, factor.entries / max(1, factor.shape[0]))
        return int(min(m * n, m * fan))

    def enclosure(self) -> MatrixEnclosure:
        return reduce(lambda right, left: left.enclosure() @ right, self.factors[-2::-1], self.factors[-1].enclosure())

    def matvec(self, x: Array) -> Array:
        for factor in reversed(self.factors):
            x = factor.matvec(x)
        return x

    def rmatvec(self, y: Array) -> Array:
        for factor in self.factors:
            y = factor.rmatvec(y)
        return y

    def exact(self) -> ExactMatrix:
        return reduce(lambda right, left: left.apply_exact(right), self.factors[-2::-1], self.factors[-1].exact())

    def apply_exact(self, other: ExactMatrix) -> ExactMatrix:
        return reduce(lambda right, left: left.apply_exact(right), self.factors[::-1], other)

    def modulus(self) -> LinearMap:
        first, last = self.factors[0], self.factors[-1]
        if isinstance(first, Selection | Diagonal):  # every row of the product is a multiple of one row
            return compose(first.modulus(), reduce(compose, self.factors[1:]).modulus())
        if isinstance(last, Diagonal):
            return compose(reduce(compose, self.factors[:-1]).modulus(), last.modulus())
        return Absolute(map=self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sum(LinearMap):
    """The sum of maps of one shape (branches that meet)."""

    terms: tuple[LinearMap, ...]

    @property
    def leaves(self) -> int:
        return sum(t.leaves for t in self.terms)

    @property
    def shape(self) -> tuple[int, int]:
        return self.terms[0].shape

    @property
    def entries(self) -> int:
        m, n = self.shape
        return min(m * n, sum(t.entries for t in self.terms))

    def enclosure(self) -> MatrixEnclosure:
        parts = [t.enclosure() for t in self.terms]
        if any(not p.is_sparse for p in parts):
            parts = [p.dense() for p in parts]
        return reduce(lambda a, b: a + b, parts)

    def matvec(self, x: Array) -> Array:
        return np.asarray(sum(t.matvec(x) for t in self.terms))

    def rmatvec(self, y: Array) -> Array:
        return np.asarray(sum(t.rmatvec(y) for t in self.terms))

    def exact(self) -> ExactMatrix:
        return reduce(lambda a, b: a + b, (t.exact() for t in self.terms))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Absolute(LinearMap):
    """The entrywise moduli of a map, which is expanded once, when that is asked for; made by `LinearMap.modulus`."""

    map: LinearMap
    _expanded: list[MatrixEnclosure] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        return self.map.shape

    def enclosure(self) -> MatrixEnclosure:
        if not self._expanded:
            from lipmodel.ranges.norms import canonical

            e = canonical(self.map.enclosure())
            self._expanded.append(MatrixEnclosure(center=abs(e.center), radius=e.radius))
        return self._expanded[0]

    def modulus(self) -> LinearMap:
        return self


def _require_binary64(*arrays: Any) -> None:
    """Error bounds are those of binary64: whoever makes a map converts its numbers first. Raises TypeError."""
    wrong = [a.dtype for a in arrays if a is not None and a.dtype != np.float64]
    if wrong:
        raise TypeError(f"a linear map is made of float64 numbers, not {wrong[0]}: convert them exactly first")


def _view(m: Any) -> Any:
    """A sparse matrix of its own over the same (read-only) buffers: rebinding its attributes changes nothing here."""
    csr = sp.csr_array(m)
    return sp.csr_array((csr.data, csr.indices, csr.indptr), shape=csr.shape, copy=False)


def identity(n: int) -> Selection:
    """The identity of R^n."""
    return Selection(index=np.arange(n), size=n)


def compose(left: LinearMap, right: LinearMap) -> LinearMap:
    """left @ right, folded where that is exact and free."""
    if left.shape[1] != right.shape[0]:
        raise ValueError(f"cannot compose maps of shapes {left.shape} and {right.shape}")
    if isinstance(left, Selection):
        if left.is_identity:
            return right
        if isinstance(right, Selection):
            index = np.where(left.index >= 0, right.index[np.maximum(left.index, 0)], -1)
            return Selection(index=index, size=right.size)
        if isinstance(right, Dense) and right.radius is None and len(left.index) <= 2 * right.shape[0]:
            return Dense(weights=left.matvec(right.weights))
    if isinstance(right, Selection):
        if right.is_identity:
            return left
        if isinstance(left, Dense) and left.radius is None and right.size <= 2 * left.shape[1]:
            weights = np.zeros((left.shape[0], right.size))
            kept = np.flatnonzero(right.index >= 0)
            if len(np.unique(right.index[kept])) == len(kept):
                weights[:, right.index[kept]] = left.weights[:, kept]
                return Dense(weights=weights)
    if isinstance(left, Diagonal) and left.radius is None and bool(np.all(np.abs(left.values) == 1.0)):
        if isinstance(right, Dense):
            return Dense(weights=left.values[:, None] * right.weights, radius=right.radius)
        if isinstance(right, Diagonal):
            return Diagonal(values=left.values * right.values, radius=right.radius)
    factors: list[LinearMap] = []
    for part in (left, right):
        factors.extend(part.factors if isinstance(part, Composition) else [part])
    return Composition(factors=tuple(factors))


def total(terms: Sequence[LinearMap]) -> LinearMap:
    """The sum of maps of one shape, flattened."""
    if len({t.shape for t in terms}) != 1:
        raise ValueError(f"cannot add maps of shapes {sorted({t.shape for t in terms})}")
    counts: dict[int, int] = {}
    distinct: dict[int, LinearMap] = {}
    for term in terms:
        for part in term.terms if isinstance(term, Sum) else (term,):
            distinct[id(part)] = part
            counts[id(part)] = counts.get(id(part), 0) + 1
    size = terms[0].shape[0]
    flat = [
        part if counts[key] == 1 else compose(Diagonal(values=np.full(size, float(counts[key]))), part)
        for key, part in distinct.items()
    ]
    return flat[0] if len(flat) == 1 else Sum(terms=tuple(flat))


def collapse(a: LinearMap) -> LinearMap:
    """The same map as one stored matrix with a proved radius."""
    e = a.enclosure()
    if e.is_sparse and sp.csr_array(e.center).nnz < 0.3 * e.shape[0] * e.shape[1]:
        return Sparse(weights=sp.csr_array(e.center), radius=None if e.radius is None else sp.csr_array(e.radius))
    e = e.dense()
    return Dense(weights=e.center, radius=e.radius)
