"""What a bridge is: one way to say that a function lies in a set by functions in other sets.

As in MathOptInterface (Legat, Dowson, Garcia & Lubin 2022, arXiv 2002.03447): a bridge takes one constraint of a model
and gives constraints in sets that more solvers know, perhaps with new variables. It says what that costs before it is
done, whether it is exact, and carries what a solver returns back: of a point the new variables are dropped, and the
duals of the new constraints become the dual of the one they replace.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from lipmodel.model.model import Constraint
    from lipmodel.model.variables import Variable

Array = np.ndarray[Any, Any]
Soundness = Literal["equivalent", "restriction", "relaxation"]
"""restriction: fewer feasible points, hence a larger bound, which stays one; relaxation: more, hence no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Constraints of one kind and origin: orders of matrices or sizes of vectors, about how many coefficients.

    kind: "psd", "sparse-psd", "dd", "sdd", "soc", "rsoc", "nonnegative" or "zero". origin: the index of the model's
    constraint that it comes from, -1 for the signs of variables. split: its matrices are not to be split (again).
    touching: how many variables every matrix has, where that is not all of them.
    """

    kind: str
    sizes: tuple[int, ...]
    entries: int
    origin: int
    split: bool = False
    touching: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The predicted size of a model: scalar variables and constraints by kind."""

    variables: int
    parts: tuple[Part, ...]

    def replaced(self, part: Part, by: Sequence[Part], *, variables: int = 0) -> Shape:
        """The shape with one part replaced by others, and new variables."""
        at = self.parts.index(part)
        parts = (*self.parts[:at], *by, *self.parts[at + 1 :])
        return replace(self, variables=self.variables + variables, parts=parts)

    def __str__(self) -> str:
        found = [f"{self.variables} variables"]
        for kind in dict.fromkeys(p.kind for p in self.parts):
            sizes = [n for p in self.parts if p.kind == kind for n in p.sizes]
            found.append(f"{NAMES[kind]} {_summary(kind, sizes)}")
        return ", ".join(found) + f", about {sum(p.entries for p in self.parts)} coefficients"


NAMES = {
    "psd": "PSD order",
    "sparse-psd": "PSD by cliques, order",
    "dd": "diagonally dominant order",
    "sdd": "scaled diagonally dominant order",
    "soc": "second-order cones",
    "rsoc": "rotated second-order cones",
    "nonnegative": "inequalities",
    "zero": "equalities",
}
_SHOWN = 6


def _summary(kind: str, sizes: list[int]) -> str:
    if kind in ("nonnegative", "zero"):
        return str(sum(sizes))
    if len(sizes) <= _SHOWN:
        return " + ".join(map(str, sizes))
    return f"{len(sizes)} of up to {max(sizes)}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Applied:
    """What replaces a constraint: constraints and new variables; dual: from their duals to that of the constraint.

    Duals are symmetric matrices in the order of a form's signals, and vectors for expressions.
    """

    constraints: tuple[Constraint, ...]
    variables: tuple[Variable, ...]
    dual: Callable[[Sequence[Array]], Array]


class Bridge(Protocol):
    """A reformulation of one constraint. Bridges are values: they keep no state between predict and apply."""

    @property
    def name(self) -> str: ...
    @property
    def sources(self) -> frozenset[str]:
        """The kinds of part that it replaces."""

    @property
    def targets(self) -> frozenset[str]: ...
    @property
    def soundness(self) -> Soundness: ...
    @property
    def source(self) -> str:
        """Where it is from: authors, year, identifier; "" for what needs none."""

    def predict(self, shape: Shape, part: Part, constraint: Constraint) -> Shape | None:
        """The shape afterwards, without doing it; None where it does not apply or gains nothing.

        constraint: the model's own constraint that the part comes from, reformulated or not.
        """

    def apply(self, constraint: Constraint, taken: frozenset[str]) -> Applied:
        """Do it; taken: the names of variables that are in use."""


def free_name(name: str, taken: Container[str]) -> str:
    """The name, with a number where it is taken."""
    return next(n for n in chain([name], (f"{name}_{k}" for k in count(2))) if n not in taken)
