"""The Conic Benchmark Format, version 4 (Friberg 2016, "CBLIB 2014", Math. Prog. Comp. 8; MOSEK's file reference).

Geometric form: free scalar variables x = y, rows in CON (cones L+, L=, Q, QR), matrix inequalities in PSDCON:

    minimise  c'x   subject to   A x + b in the cones,   sum_j x_j H_ij + D_i positive semidefinite

Standard form: matrix variables in PSDVAR, a vector variable in VAR (cones L+, F, Q, QR), one equality per entry of y:

    minimise  <C, X> + c'x   subject to   <A_j, X> + (a x)_j - c_j = 0   for every j

Matrices are given by their lower triangles, indices are counted from 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.bridges.standard import StandardProgram
from lipmodel.io.text import Malformed, comment, floats, inside, lines_of, refusing, rows_text, table, whole

if TYPE_CHECKING:
    from lipmodel.bridges.program import ConeProgram, PsdBlock

Array = np.ndarray[Any, Any]
Cones = tuple[tuple[str, int], ...]

CONES = {"F", "L+", "L-", "L=", "Q", "QR"}
_OF_CONE = {"nonnegative": "L+", "zero": "L=", "free": "F", "soc": "Q", "rsoc": "QR"}

_COORDINATES = {"objf": 3, "obja": 1, "f": 4, "a": 2, "b": 1, "h": 4, "d": 3}
"""The sections OBJFCOORD, OBJACOORD, FCOORD, ...: how many indices stand before a value."""


def _none(integers: int) -> Any:
    def make() -> tuple[Array, ...]:
        return (*(np.zeros(0, dtype=np.int64) for _ in range(integers)), np.zeros(0))

    return field(default_factory=make)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CbfProblem:
    """What a file says; var, con: (cone, size) in order; psdvar, psdcon: orders; objb: the constant of the objective.

    Coordinates are columns of indices and one of values: objf (psdvar, row, col), obja (var), f (con, psdvar, row,
    col), a (con, var), b (con), h (psdcon, var, row, col), d (psdcon, row, col), with row >= col.
    """

    comments: tuple[str, ...] = ()
    version: int = 4
    sense: str = "MIN"
    psdvar: tuple[int, ...] = ()
    var: Cones = ()
    psdcon: tuple[int, ...] = ()
    con: Cones = ()
    objb: float | None = None
    objf: tuple[Array, ...] = _none(3)
    obja: tuple[Array, ...] = _none(1)
    f: tuple[Array, ...] = _none(4)
    a: tuple[Array, ...] = _none(2)
    b: tuple[Array, ...] = _none(1)
    h: tuple[Array, ...] = _none(4)
    d: tuple[Array, ...] = _none(3)


def write(program: ConeProgram, unit: float, *, form: str, comments: Sequence[str]) -> bytes:
    """The file of a program, in geometric or standard form."""
    if form == "geometric":
        return cbf_bytes(geometric_cbf(program, unit, comments=comments))
    return cbf_bytes(standard_cbf(StandardProgram(geometric=program), unit, comments=comments))


def geometric_cbf(program: ConeProgram, unit: float, *, comments: Sequence[str] = ()) -> CbfProblem:
    """The problem in geometric form, its cost divided by `unit`."""
    cones = [("nonnegative", program.ineq.shape[0]), ("zero", program.eq.shape[0])]
    cones += [("rsoc" if s.rotated else "soc", s.matrix.shape[0]) for s in program.soc]
    matrix = sp.vstack([program.ineq, program.eq, *(s.matrix for s in program.soc)])
    constants = np.concatenate([program.ineq_rhs, program.eq_rhs, *(s.rhs for s in program.soc)])
    return CbfProblem(
        comments=tuple(f"#{comment(text)}" for text in comments),
        var=(("F", program.size),),
        psdcon=tuple(block.order for block in program.psd),
        con=tuple((_OF_CONE[kind], size) for kind, size in cones if size),
        obja=_vector(program.cost / unit),
        a=_matrix(matrix),
        b=_vector(constants),
        h=_blocks(program.psd, constant=False),
        d=_blocks(program.psd, constant=True),
    )


def standard_cbf(standard: StandardProgram, unit: float, *, comments: Sequence[str] = ()) -> CbfProblem:
    """The problem in standard form, the right-hand sides of its equalities divided by `unit`."""
    number, var, row, col, value = _blocks(standard.psd, constant=False)
    order = np.lexsort((col, row, number, var))
    return CbfProblem(
        comments=tuple(f"#{comment(text)}" for text in comments),
        psdvar=tuple(block.order for block in standard.psd),
        var=tuple((_OF_CONE[kind], size) for kind, size in standard.cones),
        con=(("L=", len(standard.rhs)),),
        objf=_blocks(standard.psd, constant=True),
        obja=_vector(standard.cost),
        f=tuple(column[order] for column in (var, number, row, col, value)),
        a=_matrix(standard.columns),
        b=_vector(-standard.rhs / unit),
    )


def _vector(values: Array) -> tuple[Array, Array]:
    at = np.flatnonzero(values)
    return at, values[at]


def _matrix(matrix: Any) -> tuple[Array, Array, Array]:
    """Rows, columns and values, row by row."""
    coo = sp.coo_array(matrix)
    rows, columns = (index.astype(np.int64) for index in coo.coords)
    order = np.lexsort((columns, rows))
    order = order[coo.data[order] != 0.0]
    return rows[order], columns[order], coo.data[order]


def _blocks(blocks: Sequence[PsdBlock], *, constant: bool) -> tuple[Array, ...]:
    """(block, row, col, value) of the constants, or (block, variable, row, col, value) of the coefficients."""
    parts: list[tuple[Array, ...]] = [(np.zeros(0, dtype=np.int64),) * 4 + (np.zeros(0),)]
    for at, block in enumerate(blocks):
        kept = np.flatnonzero(((block.var < 0) == constant) & (block.value != 0.0))
        parts.append((np.full(len(kept), at), *(x[kept] for x in (block.var, block.row, block.col, block.value))))
    number, var, row, col, value = (np.concatenate([part[k] for part in parts]) for k in range(5))
    order = np.lexsort((col, row, var, number))
    columns = (number, row, col, value) if constant else (number, var, row, col, value)
    return tuple(column[order] for column in columns)


def cbf_bytes(problem: CbfProblem) -> bytes:
    """The file; numbers read back exactly, sections that would be empty are left out."""
    parts = ["".join(f"{line}\n" for line in problem.comments)]
    parts.append(f"VER\n{problem.version}\n\nOBJSENSE\n{problem.sense}\n\n")
    for name, orders, cones in (("VAR", problem.psdvar, problem.var), ("CON", problem.psdcon, problem.con)):
        if orders:
            parts.append(f"PSD{name}\n{len(orders)}\n" + "".join(f"{n}\n" for n in orders) + "\n")
        if cones:
            total = sum(size for _, size in cones)
            parts.append(f"{name}\n{total} {len(cones)}\n" + "".join(f"{k} {n}\n" for k, n in cones) + "\n")
    for key in _COORDINATES:
        columns = getattr(problem, key)
        if len(columns[-1]):
            parts.append(f"{key.upper()}COORD\n{len(columns[-1])}\n{rows_text(columns)}\n")
        if key == "obja" and problem.objb is not None:
            parts.append(f"OBJBCOORD\n{problem.objb!r}\n\n")
    return "".join(parts).encode()


def read_cbf(path: str | os.PathLike[str]) -> CbfProblem:
    """A problem in CBF, gzipped or not, without integer variables and power or exponential cones. Raises UsageError."""
    try:
        return _parse(lines_of(path))
    except (Malformed, OSError, MemoryError) as error:
        raise refusing(path, "a problem in CBF that is read here", error) from None


def _parse(lines: Iterator[str]) -> CbfProblem:
    comments: list[str] = []

    def content() -> Iterator[str]:
        for line in lines:
            if line.startswith("#"):
                comments.append(line)
            elif line.strip():
                yield line.strip()

    found: dict[str, Any] = {}
    stream = content()

    def following(what: str) -> str:
        line = next(stream, None)
        if line is None:
            raise Malformed(f"it ends where {what} should follow")
        return line

    for keyword in stream:
        key = keyword.lower().removesuffix("coord")
        if key in found:
            raise Malformed(f"two sections {keyword}")
        if "ver" not in found and keyword != "VER":
            raise Malformed("it does not begin with VER")
        if keyword == "VER":
            found[key] = whole(following("a version"), "the version", low=1, high=4)
        elif keyword == "OBJSENSE":
            found[key] = following("MIN or MAX")
            if found[key] not in ("MIN", "MAX"):
                raise Malformed(f"the sense {found[key][:40]!r} of the objective")
        elif keyword in ("PSDVAR", "PSDCON"):
            count = whole(following("a number"), keyword)
            found[key] = tuple(whole(following("an order"), "an order", low=1) for _ in range(count))
        elif keyword in ("VAR", "CON"):
            found[key] = _cones(following, keyword)
        elif keyword == "OBJBCOORD":
            found[key] = float(floats([following("a number")], keyword)[0])
        elif keyword.endswith("COORD") and key in _COORDINATES:
            found[key] = _coordinates(following, keyword, _COORDINATES[key])
        else:
            raise Malformed(f"the section {keyword[:40]!r}, which is not read")
    if "ver" not in found or "objsense" not in found:
        raise Malformed("VER and OBJSENSE are needed")
    version, sense = found.pop("ver"), found.pop("objsense")
    known = {f.name for f in fields(CbfProblem)}
    problem = CbfProblem(
        comments=tuple(comments), version=version, sense=sense, **{k: v for k, v in found.items() if k in known}
    )
    _check(problem)
    return problem


def _cones(following: Any, keyword: str) -> Cones:
    """The lines after VAR or CON: the numbers of scalars and of cones, then the cones."""
    words = following("two numbers").split()
    if len(words) != 2:
        raise Malformed(f"{keyword} needs two numbers")
    total, count = whole(words[0], keyword), whole(words[1], keyword)
    cones: list[tuple[str, int]] = []
    for _ in range(count):
        words = following("a cone").split()
        if len(words) != 2 or words[0] not in CONES:
            raise Malformed(f"the cone {' '.join(words)[:40]!r}; those that are read: {', '.join(sorted(CONES))}")
        cones.append((words[0], whole(words[1], "the size of a cone", low=1)))
    if sum(size for _, size in cones) != total:
        raise Malformed(f"the cones of {keyword} have not {total} entries together")
    return tuple(cones)


def _coordinates(following: Any, keyword: str, integers: int) -> tuple[Array, ...]:
    count = whole(following("a number"), keyword, high=2**62)

    def words() -> Iterator[str]:
        for _ in range(count):
            entry = following(f"an entry of {keyword}").split()
            if len(entry) != integers + 1:
                raise Malformed(f"an entry of {keyword} has {integers + 1} numbers, not {len(entry)}")
            yield from entry

    return table(words(), integers, keyword)


def _check(problem: CbfProblem) -> None:
    """Raises Malformed where an index is outside of what it counts."""
    variables = sum(size for _, size in problem.var)
    rows = sum(size for _, size in problem.con)
    inside(problem.obja[0], 0, variables - 1, "a variable of OBJACOORD")
    inside(problem.a[0], 0, rows - 1, "a row of ACOORD")
    inside(problem.a[1], 0, variables - 1, "a variable of ACOORD")
    inside(problem.b[0], 0, rows - 1, "a row of BCOORD")
    inside(problem.f[0], 0, rows - 1, "a row of FCOORD")
    inside(problem.h[1], 0, variables - 1, "a variable of HCOORD")
    blocks = [
        (problem.objf[:3], problem.psdvar, "OBJFCOORD"),
        (problem.f[1:4], problem.psdvar, "FCOORD"),
        ((problem.h[0], *problem.h[2:4]), problem.psdcon, "HCOORD"),
        (problem.d[:3], problem.psdcon, "DCOORD"),
    ]
    for (number, row, col), orders, keyword in blocks:
        inside(number, 0, len(orders) - 1, f"a matrix of {keyword}")
        inside(np.minimum(row, col), 0, 2**31, f"an index of {keyword}")
        size = np.array(orders, dtype=np.int64)
        if row.size and np.any((row >= size[number]) | (col > row)):
            raise Malformed(f"an entry of {keyword} that is not in a lower triangle")
