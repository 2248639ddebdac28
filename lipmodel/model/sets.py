"""The sets of constraints function-in-set: cones of quadratic forms and of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipmodel.model.forms import Signal

Cliques = tuple[tuple["Signal", ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PSD:
    """Quadratic forms that are nonnegative for all values of the signals."""

    def __str__(self) -> str:
        return "positive semidefinite"


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsePSD:
    """The same cone, to be taken apart into one matrix per clique of signals.

    cliques: "auto" for those of a chordal extension of the form's own pattern, or tuples of signals that cover it;
    merge: whether cliques are merged where one larger matrix is predicted to cost less than two.
    """

    cliques: str | Cliques = "auto"
    merge: bool = True

    def __str__(self) -> str:
        how = "of its pattern" if isinstance(self.cliques, str) else f"{len(self.cliques)} given"
        return f"positive semidefinite, by cliques ({how})"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagonallyDominant:
    """Forms whose matrix, scaled by a fixed positive diagonal, is diagonally dominant: a cone inside PSD, linear.

    Ahmadi & Majumdar 2019, SIAM J. Appl. Algebra Geometry 3:193 (arXiv 1706.02586).
    """

    def __str__(self) -> str:
        return "diagonally dominant"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledDiagonallyDominant:
    """Forms that are sums of nonnegative forms in two coordinates each: between diagonal dominance and PSD.

    Boman, Chen, Parekh & Toledo 2005, Linear Algebra Appl. 405:239; Ahmadi & Majumdar 2019 (arXiv 1706.02586).
    """

    def __str__(self) -> str:
        return "scaled diagonally dominant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nonnegative:
    """Vectors with nonnegative entries."""

    def __str__(self) -> str:
        return "nonnegative"


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero:
    """The zero vector."""

    def __str__(self) -> str:
        return "zero"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondOrder:
    """Vectors (t, w) with t >= |w|_2; with `block` n, one after the other of n entries each."""

    block: int | None = None

    def __str__(self) -> str:
        return "in the second-order cone" + ("" if self.block is None else f" of every {self.block} entries")


@dataclass(frozen=True, slots=True, kw_only=True)
class RotatedSecondOrder:
    """Vectors (u, v, w) with 2 u v >= |w|_2^2, u, v >= 0; with `block` n, one after the other of n entries each."""

    block: int | None = None

    def __str__(self) -> str:
        return "in the rotated second-order cone" + ("" if self.block is None else f" of every {self.block} entries")


FormSet = PSD | SparsePSD | DiagonallyDominant | ScaledDiagonallyDominant
VectorSet = Nonnegative | Zero | SecondOrder | RotatedSecondOrder
CONES: dict[str, FormSet] = {"psd": PSD(), "dd": DiagonallyDominant(), "sdd": ScaledDiagonallyDominant()}
"""What `require(form >= 0, cone=...)` is told."""
