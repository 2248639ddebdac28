"""The map beside a solver file: which number of the file is which entry of which variable, and what its optimum means.

y (model) = factor * x (file)        objective (model) = scale * objective (file) + offset
bound = objective, or its square root (bound: "sqrt")
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.errors import UsageError

if TYPE_CHECKING:
    from lipmodel.bridges.program import ConeProgram
    from lipmodel.model.variables import Variable

Array = np.ndarray[Any, Any]
SCHEMA = "lipmodel/map/1"


def problem_map(
    program: ConeProgram,
    factors: Mapping[Variable, Array],
    unit: float,
    *,
    file: str,
    header: Mapping[str, Any],
) -> dict[str, Any]:
    """The map of a program whose cost was divided by `unit`, as JSON values; factors: of `bridges.scaling.Prepared`."""
    variables, start = [], 0
    for v in program.model.variables:
        factor = np.asarray(factors[v], dtype=np.float64)
        same = factor.size > 0 and bool(np.all(factor == factor[0]))
        variables.append(
            {
                "name": v.name,
                "offset": start,
                "size": v.size,
                "order": v.order,
                "nonnegative": v.nonnegative,
                "factor": float(factor[0]) if same else factor.tolist(),
            }
        )
        start += v.size
    blocks: list[dict[str, Any]] = [
        {
            "kind": "psd",
            "order": block.order,
            "signals": [{"name": s.name, "offset": at, "size": s.size} for s, at in block.offsets.items()],
        }
        for block in program.psd
    ]
    own = sum(v.size for v in program.model.variables if v.nonnegative)
    counts = {
        "nonnegative-variables": own,
        "inequalities": program.ineq.shape[0] - own,
        "equalities": program.eq.shape[0],
        "equalities-negated": program.eq.shape[0],
    }
    if sum(counts.values()):
        blocks.append({"kind": "diagonal", "order": sum(counts.values()), "rows": _ranges(counts)})
    return {
        "schema": SCHEMA,
        "file": file,
        "format": "sdpa-sparse",
        **header,
        "objective": {"sense": "minimise", "scale": unit, "offset": program.offset, "bound": program.model.bound},
        "variables": variables,
        "blocks": blocks,
    }


def _ranges(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    rows, start = [], 0
    for kind, count in counts.items():
        if count:
            rows.append({"kind": kind, "offset": start, "size": count})
        start += count
    return rows


def read_map(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A map file. Raises UsageError where it cannot be read or is not one."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise UsageError(f"{path} is not a map: schema {found!r}, expected {SCHEMA!r}")
    return data


def restored(link: Mapping[str, Any], x: Array) -> dict[str, Array]:
    """The model's variables, by name, from the vector of a solver file, shape (n,). Raises UsageError for another n."""
    total = sum(v["size"] for v in link["variables"])
    if np.shape(x) != (total,):
        raise UsageError(f"the solution has shape {np.shape(x)}; the map is about {total} variables")
    return {
        v["name"]: np.asarray(v["factor"], dtype=np.float64) * x[v["offset"] : v["offset"] + v["size"]]
        for v in link["variables"]
    }


def bound_of(link: Mapping[str, Any], objective: float) -> float:
    """The bound that an objective value of the file would give, if it were proved."""
    stated = link["objective"]
    value = stated["scale"] * objective + stated["offset"]
    return math.sqrt(max(value, 0.0)) if stated["bound"] == "sqrt" else value
