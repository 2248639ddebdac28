"""Families: norm pairs that a formulation lacks, reached by exact reductions of the system.

q = inf is the largest over the output rows, p = 1 the largest over the input columns, margins are one linear output
each.
With one output (input) all output (input) norms agree. Nothing is lost.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from lipmodel.errors import UsageError
from lipmodel.network.increments import IncrementSystem, read_only
from lipmodel.network.linear import Selection, Sparse
from lipmodel.network.pruning import without_dead_neurons
from lipmodel.spec import Norm, Outputs, Spec

PREFERENCE: tuple[Norm, ...] = ("2", "1", "inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One program of a family: the output row and input column it looks at (None: all), and the norms it is built for.

    row: the output index (for margins the other output j); column: the input index.
    """

    row: int | None = None
    column: int | None = None
    norms: tuple[Norm, Norm]


def chosen_outputs(system: IncrementSystem, outputs: Outputs) -> IncrementSystem:
    """The system with the chosen outputs only; for margins, the matrix of all differences y_I - y_j."""
    m = system.output.size
    outputs.check(m)
    if outputs.kind == "all":
        return system
    if outputs.kind == "vector":
        return _living(system.restrict_output(Selection(index=np.array(outputs.indices), size=m)))
    import scipy.sparse as sp

    chosen = outputs.indices[0]
    others = margin_rows(outputs, m)
    rows = np.arange(len(others))
    data = np.concatenate([np.ones(len(others)), -np.ones(len(others))])
    coords = (np.concatenate([rows, rows]), np.concatenate([np.full(len(others), chosen), np.array(others)]))
    return _living(system.restrict_output(Sparse(weights=sp.csr_array((data, coords), shape=(len(others), m)))))


def _living(system: IncrementSystem) -> IncrementSystem:
    """The system without neurons that have become useless."""
    return read_only(without_dead_neurons(system))


def measured(spec: Spec) -> Spec:
    """The question for the matrix of chosen outputs: margins, each by itself, are the l_inf norm of all differences."""
    return replace(spec, output_norm="inf") if spec.outputs.kind == "margin" else spec


def margin_rows(outputs: Outputs, size: int) -> list[int]:
    """The other outputs of a margin, in order."""
    return [j for j in range(size) if j != outputs.indices[0]]


def row_labels(outputs: Outputs, size: int) -> list[int]:
    """The output index that every row of the restricted system stands for."""
    if outputs.kind == "all":
        return list(range(size))
    return list(outputs.indices) if outputs.kind == "vector" else margin_rows(outputs, size)


def members(system: IncrementSystem, spec: Spec, norms: Collection[tuple[str, str]], name: str) -> list[Member]:
    """The programs to solve for a formulation that has the given norm pairs. Raises UsageError if out of reach.

    system: with its outputs already chosen; spec: as `measured`.
    """
    p, q = spec.norms
    n, m = system.input.size, system.output.size
    for rows, columns in ((False, False), (True, False), (False, True), (True, True)):
        if (rows and q != "inf") or (columns and p != "1"):
            continue
        pair = _available(norms, p, q, inputs=1 if columns else n, outputs=1 if rows else m)
        if pair is not None:
            row_list = range(m) if rows else [None]
            column_list = range(n) if columns else [None]
            return [Member(row=r, column=c, norms=pair) for c in column_list for r in row_list]
    pairs = ", ".join(sorted(f"{a}:{b}" for a, b in norms))
    raise UsageError(
        f"the formulation {name!r} does not reach --norm {p}:{q} for {n} inputs and {m} outputs: it has {pairs}, and "
        "single outputs (q = inf, --outputs I, margin:I) and single inputs (p = 1) from those; product has all pairs"
    )


def _available(
    norms: Collection[tuple[str, str]], p: Norm, q: Norm, *, inputs: int, outputs: int
) -> tuple[Norm, Norm] | None:
    # where the norm of a side does not matter, that of the other one: a method may have one norm throughout
    first = q if outputs > 1 else p
    for a in (first, *PREFERENCE) if inputs == 1 else (p,):
        for b in (p, *PREFERENCE) if outputs == 1 else (q,):
            if (a, b) in norms:
                return (a, b)
    return None


def restricted(system: IncrementSystem, member: Member) -> IncrementSystem:
    """The member's own system, without neurons that have become useless."""
    if member.row is not None and system.output.size > 1:
        system = system.restrict_output(Selection(index=np.array([member.row]), size=system.output.size))
    if member.column is not None and system.input.size > 1:
        index = np.full(system.input.size, -1)
        index[member.column] = 0
        system = system.restrict_input(Selection(index=index, size=1))
    return system if member.row is None and member.column is None else _living(system)


def member_spec(spec: Spec, member: Member) -> Spec:
    """The question that the member's program is built for."""
    return replace(spec, input_norm=member.norms[0], output_norm=member.norms[1])
