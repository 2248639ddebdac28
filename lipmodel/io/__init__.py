"""Solver files: a model is written in scaled form, with a map beside it that leads a foreign solution back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipmodel.errors import UsageError

if TYPE_CHECKING:
    from lipmodel.model.model import Model

__all__ = ["FORMATS", "check_format", "write_problem"]

FORMATS: Mapping[str, str] = {".dat-s": "SDPA sparse"}
"""The suffixes that can be written, and what they stand for."""


def check_format(path: str | os.PathLike[str]) -> str:
    """The suffix of a solver file. Raises UsageError, naming the formats that there are, for any other."""
    name = Path(path).name
    for suffix in FORMATS:
        if name.endswith(suffix) and name != suffix:
            return suffix
    listed = ", ".join(f"NAME{suffix} ({title})" for suffix, title in FORMATS.items())
    raise UsageError(f"{path}: no format has this suffix; the formats of this version: {listed}")


def write_problem(model: Model, path: str | os.PathLike[str], header: Mapping[str, Any]) -> tuple[str, str]:
    """Write a model, scaled, to a solver file and its map to `path`.map.json; the two paths.

    header: what the map says about the origin of the model (network, spec, formulation, member), JSON values.
    Raises UsageError for an unknown suffix and where a file cannot be written, LipmodelError for a model too large.
    """
    import json

    from lipmodel.bridges.program import cone_program
    from lipmodel.bridges.scaling import prepare
    from lipmodel.io.sdpa import sdpa_file, unit_of
    from lipmodel.io.sidecar import problem_map
    from lipmodel.result import write_atomically

    check_format(path)
    prepared = prepare(model)
    program = cone_program(prepared.model)
    unit = unit_of(program)
    target = os.fspath(path)
    beside = f"{target}.map.json"
    link = problem_map(program, prepared.factors, unit, file=Path(target).name, header=header)
    write_atomically(target, sdpa_file(program, unit, comments=_comments(model, header, Path(beside).name)))
    write_atomically(beside, json.dumps(link, indent=1, allow_nan=False) + "\n")
    return target, beside


def _comments(model: Model, header: Mapping[str, Any], beside: str) -> list[str]:
    from lipmodel.spec import parse_domain

    spec, network = header.get("spec", {}), header.get("network", {})
    norms = f"{spec.get('input_norm', '?')}:{spec.get('output_norm', '?')}"
    domain = f", {parse_domain(spec['domain'])}" if spec.get("domain", "global") != "global" else ""
    return [
        f"lipmodel: {model.name}, norm {norms}, outputs {spec.get('outputs', '?')}{domain}",
        f"network sha256 {network.get('sha256', '?')}",
        f"scaled; {beside} leads a solution back",
    ]
