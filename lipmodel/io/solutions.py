"""Solutions that other solvers wrote: the vector that leads back to the model, and what the solver says about it.

Read are solution files of CSDP, result files of SDPA, MOSEK's .sol and JSON solutions, HiGHS's solution files, and
JSON, NPY, NPZ or MAT files that hold the vector (x or y) or the values of the model's variables by name. All numbers
are in the units of the solver file. Nothing in them is trusted.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from lipmodel.backends.base import Termination
from lipmodel.io.fields import read_json
from lipmodel.io.sidecar import Link
from lipmodel.io.text import MAX_JSON, Malformed, lines_of, refusing

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """What a file says. vector: the numbers that the map's `solution` is about, of whatever length, or None.

    primal, dual: the objectives of the problem in the file, without its constant, where they are there; said: how the
    solver ended.
    """

    solver: str
    vector: Array | None
    said: Termination = "inaccurate"
    primal: float | None = None
    dual: float | None = None
    notes: tuple[str, ...] = ()


def read_solution(path: str | os.PathLike[str], link: Link) -> Solution:
    """The solution in a file of any of the formats. Raises UsageError."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(512)
        if os.path.getsize(path) > MAX_JSON:
            raise Malformed("it is too large")
        if head.startswith((b"PK\x03\x04", b"\x93NUMPY", b"MATLAB 5.0")):
            return _from_arrays(_arrays(path, head), link, "values")
        text = head.decode("utf-8", "replace").lstrip()
        if text.startswith(("{", "[")):
            return _from_json(path, link)
        return _from_text(path, link)
    except (Malformed, OSError, MemoryError) as error:
        raise refusing(path, "a solution that is read here", error) from None


def _from_text(path: str | os.PathLike[str], link: Link) -> Solution:
    lines = lines_of(path, MAX_JSON)
    first = list(islice(lines, 4000))
    if not first:
        raise Malformed("it is empty")

    def everything() -> Iterator[str]:
        yield from first
        yield from lines

    if first[0].startswith("NAME ") and any(line.startswith("PROBLEM STATUS") for line in first[:3]):
        return _mosek(everything(), link)
    if first[0].startswith("Model status"):
        return _highs(everything(), link)
    if any(line.startswith("xVec") for line in first):
        return _sdpa(everything())
    words = first[0].split()
    if words and _number(words[0]) is not None:
        return Solution(solver="csdp", vector=_vector(words))
    raise Malformed("it is none of CSDP, SDPA, MOSEK, HiGHS, JSON, NPY, NPZ or MAT (the vector, or values by name)")


def _vector(words: list[str]) -> Array:
    try:
        return np.array([float(word) for word in words])
    except ValueError as error:
        raise Malformed(str(error)[:80]) from None


def _sdpa(lines: Iterator[str]) -> Solution:
    """An SDPA result file: xVec between braces, on as many lines as it takes."""
    phase, objectives = "", {"objValPrimal": "", "objValDual": ""}
    for line in lines:
        key, _, rest = line.partition("=")
        key = key.strip()
        if key == "phase.value":
            phase = rest.strip()
        elif key in objectives:
            objectives[key] = rest
        elif key == "xVec":
            content = [rest]
            while "}" not in content[-1]:
                more = next(lines, None)
                if more is None:
                    raise Malformed("xVec is cut off")
                content.append(more)
            words = " ".join(content).partition("}")[0].replace("{", " ").replace(",", " ").split()
            primal, dual = (_number(text) for text in objectives.values())
            said: Termination = "optimal" if phase == "pdOPT" else "inaccurate"
            return Solution(solver="sdpa", vector=_vector(words), said=said, primal=primal, dual=dual)
    raise Malformed("it has no xVec")


def _mosek(lines: Iterator[str], link: Link) -> Solution:
    """MOSEK's .sol: activities of variables in geometric form; multipliers of equalities in standard form."""
    section, facts = "", {"SOLUTION STATUS": "", "PRIMAL OBJECTIVE": "", "DUAL OBJECTIVE": ""}
    found: dict[str, list[str]] = {"VARIABLES": [], "CONSTRAINTS": [], "AFFINE CONIC CONSTRAINTS": []}
    names: list[str] = []
    extra = 0
    for line in lines:
        if line.startswith("INDEX"):
            extra = int("CONIC DUAL" in line)
        if not line.strip() or line.startswith("INDEX"):
            continue
        if not line[0].isdigit():
            key, colon, rest = line.partition(":")
            if colon:
                facts[key.strip()] = rest.strip()
            section = line.strip()
            continue
        words = line.split()  # names may have blanks in them: counted from the right
        if section == "VARIABLES" and len(words) >= 8 + extra:
            found[section].append(words[-5 - extra])
            names.append(words[1])
        elif section == "CONSTRAINTS" and len(words) >= 8:
            lower, upper = _vector(words[-2:])
            found[section].append(repr(float(lower - upper)))
        elif section == "AFFINE CONIC CONSTRAINTS" and len(words) >= 5:
            found[section].append(words[-1])
    if link.vector == "x":
        values = _ordered(names, found["VARIABLES"], link)
    else:
        values = [*found["CONSTRAINTS"], *found["AFFINE CONIC CONSTRAINTS"]]
    return Solution(
        solver="mosek",
        vector=_vector(values),
        said="optimal" if facts["SOLUTION STATUS"].endswith("OPTIMAL") else "inaccurate",
        primal=_number(facts["PRIMAL OBJECTIVE"]),
        dual=_number(facts["DUAL OBJECTIVE"]),
    )


def _highs(lines: Iterator[str], link: Link) -> Solution:
    """HiGHS's solution file: the status, then named values of columns."""
    content = [line.strip() for line in lines]
    status = content[1] if len(content) > 1 else ""
    objective = next((line.split()[1] for line in content if re.fullmatch(r"Objective\s+\S+", line)), "")
    at = next((i for i, line in enumerate(content) if re.fullmatch(r"# Columns \d{1,9}", line)), None)
    if at is None:
        raise Malformed("it has no columns")
    count = int(content[at].split()[2])
    pairs = [line.split() for line in content[at + 1 : at + 1 + count]]
    if any(len(pair) != 2 for pair in pairs):
        raise Malformed("a column without a value")
    values = _ordered([pair[0] for pair in pairs], [pair[1] for pair in pairs], link)
    said: Termination = "optimal" if status == "Optimal" else "inaccurate"
    number = _number(objective)
    return Solution(
        solver="highs", vector=_vector(values), said=said, primal=number, dual=number if said == "optimal" else None
    )


def _ordered(names: list[str], values: list[str], link: Link) -> list[str]:
    """The values in the order of the names x1, x2, ..., where these are the names; as they stand otherwise."""
    by_name = dict(zip(names, values, strict=True))
    wanted = [f"x{j + 1}" for j in range(link.size)] if len(names) <= link.size else []
    if not wanted or not set(names) <= set(wanted):
        return values
    return [by_name.get(name, "0") for name in wanted]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _from_json(path: str | os.PathLike[str], link: Link) -> Solution:
    data = read_json(path, finite=False)
    if isinstance(data, list):
        return Solution(solver="values", vector=_numbers(data, "the list"))
    if isinstance(data, dict) and isinstance(solutions := data.get("Task/solutions"), dict):
        return _mosek_json(solutions, link)
    if not isinstance(data, dict):
        raise Malformed("it is neither a list nor an object")
    inner = data.get("values")
    named = inner if isinstance(inner, dict) else data
    arrays = {k: _numbers(v, k) for k, v in named.items() if isinstance(v, list | float | int)}
    return _from_arrays(arrays, link, "values")


def _mosek_json(solutions: Mapping[str, Any], link: Link) -> Solution:
    """MOSEK's JSON solution, of the interior-point optimiser or else the basic one."""
    chosen = next((solutions[k] for k in ("interior", "basic") if isinstance(solutions.get(k), dict)), None)
    if chosen is None:
        raise Malformed("it has neither an interior nor a basic solution")
    if link.vector == "x":
        vector = _numbers(chosen.get("xx", []), "xx")
    else:
        parts = [chosen.get("y", []), *(chosen["doty"] if isinstance(chosen.get("doty"), list) else [])]
        vector = np.concatenate([_numbers(part, "y") for part in parts])
    optimal = str(chosen.get("solsta", "")).endswith("optimal")
    return Solution(solver="mosek", vector=vector, said="optimal" if optimal else "inaccurate")


def _numbers(value: Any, what: str) -> Array:
    """A number, or lists of numbers, as one vector."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise Malformed(f"{what} is not a list of numbers") from None
    if array.size == 0:
        return np.zeros(0)
    if array.dtype.kind not in "fiu":
        raise Malformed(f"{what} is not a list of numbers")
    return np.asarray(array.astype(np.float64).ravel())


def _arrays(path: str | os.PathLike[str], head: bytes) -> dict[str, Array]:
    """The arrays of an NPY, NPZ or MAT file. Raises Malformed."""
    try:
        if head.startswith(b"\x93NUMPY"):
            return {"x": _numbers(np.load(path, allow_pickle=False), "the array")}
        if head.startswith(b"MATLAB"):
            from scipy.io import loadmat

            loaded: Any = loadmat(os.fspath(path))
        else:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MAX_JSON:
                    raise Malformed("it is too large")
            loaded = np.load(path, allow_pickle=False)
        keys = [key for key in loaded if not key.startswith("__")]
        return {key: _numbers(_dense(loaded[key]), key) for key in keys if _is_numeric(loaded[key])}
    except (Malformed, OSError, MemoryError):
        raise
    except Exception as error:  # readers of binary formats fail in many ways on files that are none
        raise Malformed(f"{type(error).__name__}: {str(error)[:80]}") from None


def _dense(value: Any) -> Any:
    return value.toarray() if hasattr(value, "toarray") else value


def _is_numeric(value: Any) -> bool:
    return getattr(value, "dtype", np.dtype(object)).kind in "fiu"


def _from_arrays(arrays: Mapping[str, Array], link: Link, solver: str) -> Solution:
    """The vector by its name, or put together from the variables' values; a variable that is left out counts as 0."""
    known = {v.name: v for v in link.variables}
    if any(name in known for name in arrays):
        return _named({k: v for k, v in arrays.items() if k in known}, link, solver)
    for key in (link.vector, "x", "y"):
        if key in arrays:
            return Solution(solver=solver, vector=arrays[key])
    names = ", ".join([link.vector, *(v.name for v in link.variables)][:6])
    raise Malformed(f"it has neither the vector nor a variable of the map: {names}, ...")


def _named(arrays: Mapping[str, Array], link: Link, solver: str) -> Solution:
    vector = np.zeros(link.size)
    notes = []
    for v in link.variables:
        if v.name not in arrays:
            notes.append(f"the solution has no {v.name}: taken as 0")
            continue
        values = arrays[v.name]
        if len(values) == v.size:
            vector[link.offsets[v] : link.offsets[v] + v.size] = values
        else:
            notes.append(f"the solution has {len(values)} numbers for {v.name}, not {v.size}: taken as 0")
    return Solution(solver=solver, vector=link.sign * vector, notes=tuple(notes))


__all__ = ["Solution", "read_solution"]
