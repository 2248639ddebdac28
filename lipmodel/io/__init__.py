"""Solver files: a model is written in scaled form, with a map beside it that leads a foreign solution back."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipmodel.io.formats import Format, format_of, known_formats

if TYPE_CHECKING:
    from lipmodel.bridges.program import ConeProgram
    from lipmodel.model.model import Model

__all__ = ["Format", "format_of", "known_formats", "unit_of", "write_problem"]


def unit_of(program: ConeProgram) -> float:
    """The power of two that the cost is divided by in a file, so that its largest entry is of order one."""
    import numpy as np

    largest = float(np.abs(program.cost).max(initial=0.0))
    return 2.0 ** round(math.log2(largest)) if largest > 0.0 else 1.0


def write_problem(
    model: Model, path: str | os.PathLike[str], header: Mapping[str, Any], *, form: str | None = None
) -> tuple[str, str]:
    """Write a model, scaled, to a solver file and its map to `path`.map.json; the two paths.

    header: what the map says about the origin of the model (network, spec, formulation, member), JSON values; form:
    "geometric" or "standard" where the format has both (default: its usual one).
    Raises UsageError for an unknown suffix, a form or a set that the format lacks, and where a file cannot be written;
    LipmodelError for a model too large, or out of the range of floats.
    """
    from functools import partial

    import numpy as np

    from lipmodel.bridges.plan import compile_model
    from lipmodel.errors import LipmodelError, UsageError
    from lipmodel.io.linear import not_linear
    from lipmodel.io.model_json import model_bytes
    from lipmodel.io.sidecar import map_text, problem_map
    from lipmodel.io.text import packed
    from lipmodel.result import write_atomically

    chosen = format_of(path)
    stated = chosen.form(form)
    target = os.fspath(path)
    beside = f"{target}.map.json"
    about = partial(problem_map, model, file=Path(target).name, format=chosen, form=stated, header=header)
    if chosen.name == "model":
        content = model_bytes(model, header)
        link = about(None, {}, 1.0)
    else:
        if "psd" not in chosen.cones and model.psd_forms:
            raise UsageError(not_linear(chosen.suffix))
        with np.errstate(all="ignore"):  # what overflows is found right below
            compiled = compile_model(model, chosen.capabilities(stated))
        program, unit = compiled.program, unit_of(compiled.program)
        if not _is_finite(program):
            raise LipmodelError(f"the model {model.name!r} cannot be written: coefficients out of the range of floats")
        content = chosen.write(program, unit, stated, _comments(model, header, Path(beside).name))
        link = about(program, compiled.factors, unit)
    write_atomically(target, packed(content, target))
    write_atomically(beside, map_text(link) + "\n")
    return target, beside


def _is_finite(program: ConeProgram) -> bool:
    import numpy as np

    parts = [program.cost, program.ineq.data, program.ineq_rhs, program.eq.data, program.eq_rhs]
    parts += [block.value for block in program.psd]
    parts += [part for block in program.soc for part in (block.matrix.data, block.rhs)]
    return all(bool(np.all(np.isfinite(part))) for part in parts)


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
