"""MOSEK's own files (.ptf, .task, .jtask), written by MOSEK, which needs no licence for it: the standard form."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lipmodel.errors import BackendUnavailable, LipmodelError

if TYPE_CHECKING:
    from lipmodel.bridges.program import ConeProgram


def write_ptf(program: ConeProgram, unit: float, *, form: str, comments: Sequence[str]) -> bytes:
    """The text format."""
    return _written(program, unit, ".ptf")


def write_task(program: ConeProgram, unit: float, *, form: str, comments: Sequence[str]) -> bytes:
    """The binary format."""
    return _written(program, unit, ".task")


def write_jtask(program: ConeProgram, unit: float, *, form: str, comments: Sequence[str]) -> bytes:
    """The JSON format."""
    return _written(program, unit, ".jtask")


def _written(program: ConeProgram, unit: float, suffix: str) -> bytes:
    """The file, the right-hand sides of its equalities divided by `unit`.

    Raises BackendUnavailable where MOSEK's package is not installed, LipmodelError where it does not write.
    """
    try:
        import mosek
    except ImportError:
        message = f"{suffix} files are written by MOSEK: pip install 'lipmodel[mosek]' (no licence is needed for it)"
        raise BackendUnavailable(message) from None
    from lipmodel.backends.mosek import build_task
    from lipmodel.bridges.standard import StandardProgram

    standard = StandardProgram(geometric=replace(program, cost=program.cost / unit))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"problem{suffix}")
        try:
            with build_task(None, standard, names=_are_plain(program)) as task:
                task.writedata(path)
        except mosek.Error as error:
            raise LipmodelError(f"MOSEK does not write the file: {error}") from None
        with open(path, "rb") as stream:
            return stream.read()


def _are_plain(program: ConeProgram) -> bool:
    """Whether the variables' names, which come from the network, are fit for a file."""
    return all(re.fullmatch(r"[A-Za-z_][\w./:-]{0,80}", v.name, re.ASCII) for v in program.model.variables)
