"""The SDPA sparse format (Fujisawa, Kojima, Nakata & Yamashita, SDPA User's Manual), which CSDP and others read too.

    (P)  minimise  sum_j c_j x_j   subject to   sum_j F_j x_j - F_0  positive semidefinite
    (D)  maximise  <F_0, Y>        subject to   <F_j, Y> = c_j for every j,   Y positive semidefinite

A matrix inequality C + sum_j y_j A_j >= 0 is a block with F_j = A_j and F_0 = -C, and x = y. Linear rows G y + h >= 0
share one last block, diagonal, which the format marks by a negative size. Second-order cones are written as matrix
inequalities, equalities as pairs of inequalities.
(P) is the geometric form and (D) its standard form (with <F_0, Y> = -<C, Y>): one file states both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import LipmodelError
from lipmodel.io.text import Malformed, comment, floats, inside, lines_of, refusing, rows_text, table, whole

if TYPE_CHECKING:
    from lipmodel.bridges.program import ConeProgram

Array = np.ndarray[Any, Any]

_PUNCTUATION = str.maketrans(",(){}", "     ")
_NUMBER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SdpaProblem:
    """What a file says. cost: (m,); orders: of the blocks, negative for diagonal ones.

    Entries: matrix (0 for F_0), block, row <= col, all but the first counted from 1, and value; each entry once.
    """

    comments: tuple[str, ...] = ()
    cost: Array
    orders: tuple[int, ...]
    matrix: Array
    block: Array
    row: Array
    col: Array
    value: Array


def write(program: ConeProgram, unit: float, *, form: str, comments: Sequence[str]) -> bytes:
    """The file of a program, which states both forms."""
    return sdpa_bytes(sdpa_problem(program, unit, comments=comments))


def sdpa_problem(program: ConeProgram, unit: float, *, comments: Sequence[str] = ()) -> SdpaProblem:
    """The problem with its cost divided by `unit`.

    Raises LipmodelError for equalities and second-order cones, which bridges take away before.
    """
    if program.soc or program.eq.shape[0]:
        raise LipmodelError("an SDPA file holds matrix inequalities and inequalities, nothing else")
    orders = [block.order for block in program.psd]
    parts = [
        (block.var, block.row, block.col, np.where(block.var < 0, -block.value, block.value)) for block in program.psd
    ]
    if program.ineq.shape[0]:
        orders.append(-program.ineq.shape[0])
        coo = sp.coo_array(program.ineq)
        at = np.flatnonzero(program.ineq_rhs)
        where = np.concatenate([coo.coords[0], at])
        var = np.concatenate([coo.coords[1], np.full(len(at), -1)])
        parts.append((var, where, where, np.concatenate([coo.data, -program.ineq_rhs[at]])))
    number = np.repeat(np.arange(1, len(parts) + 1), [len(part[0]) for part in parts])
    var, row, col, value = (np.concatenate([part[k] for part in parts]) for k in range(4))
    kept = np.flatnonzero(value)
    var, number, row, col, value = (x[kept] for x in (var, number, row, col, value))
    order = np.lexsort((row, col, number, var))
    return SdpaProblem(
        comments=tuple(f'"{comment(text)}' for text in comments),
        cost=program.cost / unit,
        orders=tuple(orders),
        matrix=var[order] + 1,
        block=number[order],
        row=col[order] + 1,
        col=row[order] + 1,
        value=value[order],
    )


def sdpa_bytes(problem: SdpaProblem) -> bytes:
    """The file: comments, numbers of variables and blocks, their orders, costs, entries; numbers read back exactly."""
    lines = [*problem.comments, str(len(problem.cost)), str(len(problem.orders)), " ".join(map(str, problem.orders))]
    lines.append(" ".join(map(repr, problem.cost.tolist())))
    entries = rows_text((problem.matrix, problem.block, problem.row, problem.col, problem.value))
    return ("\n".join(lines) + "\n" + entries).encode()


def read_sdpa(path: str | os.PathLike[str]) -> SdpaProblem:
    """A problem in SDPA sparse format, gzipped or not. Raises UsageError."""
    try:
        return _parse(lines_of(path))
    except (Malformed, OSError, MemoryError) as error:
        raise refusing(path, "a problem in SDPA sparse format", error) from None


def _parse(lines: Iterator[str]) -> SdpaProblem:
    comments = []
    head = ""
    for line in lines:
        if line.startswith(('"', "*")):
            comments.append(line)
        elif line.strip():
            head = line
            break
    m = whole(_first(head), "the number of variables", low=1)
    count = whole(_first(next(lines, "")), "the number of blocks", low=1)
    words = next(lines, "").translate(_PUNCTUATION).split()[:count]
    if len(words) < count:
        raise Malformed(f"{count} orders of blocks are announced, and {len(words)} are there")
    orders = tuple(whole(word, "the order of a block", low=-(2**31)) for word in words)
    if 0 in orders:
        raise Malformed("a block of order 0")
    costs: list[str] = []
    while len(costs) < m:
        more = next(lines, None)
        if more is None:
            raise Malformed(f"{m} costs are announced, and {len(costs)} are there")
        costs += more.translate(_PUNCTUATION).split()
    rest = chain(costs[m:], chain.from_iterable(line.translate(_PUNCTUATION).split() for line in lines))
    matrix, block, row, col, value = table(rest, 4, "the entries")
    inside(matrix, 0, m, "the number of a matrix")
    inside(block, 1, count, "the number of a block")
    size = np.array(orders, dtype=np.int64)
    low, high = np.minimum(row, col), np.maximum(row, col)
    inside(low, 1, 2**31 - 1, "a row or column")
    if np.any(high > np.abs(size)[block - 1]):
        raise Malformed("an entry outside of its block")
    if np.any((size[block - 1] < 0) & (low != high)):
        raise Malformed("an entry off the diagonal of a diagonal block")
    order = np.lexsort((high, low, block, matrix))
    keys = [x[order] for x in (matrix, block, low, high)]
    if len(order) > 1 and bool(np.any(np.all([k[1:] == k[:-1] for k in keys], axis=0))):
        raise Malformed("an entry that is given twice")
    return SdpaProblem(
        comments=tuple(comments),
        cost=floats(costs[:m], "the costs"),
        orders=orders,
        matrix=matrix,
        block=block,
        row=low,
        col=high,
        value=value,
    )


def _first(line: str) -> str:
    """The number that a line begins with; what follows it is a remark."""
    found = _NUMBER.match(line.translate(_PUNCTUATION).strip())
    return found.group() if found else line.strip()
