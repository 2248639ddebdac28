"""The formats of solver files: each a destination that declares what it holds, as a backend declares what it solves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lipmodel.errors import UsageError

if TYPE_CHECKING:
    from lipmodel.backends.base import Capabilities
    from lipmodel.bridges.program import ConeProgram

Form = Literal["geometric", "standard"]

_EVERYTHING = frozenset({"psd", "soc", "rsoc", "nonnegative", "zero", "free"})
_LINEAR = frozenset({"nonnegative", "zero", "free"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A kind of file. cones: what it holds, in a backend's words; forms: what it can state, the usual one first.

    writer: MODULE:FUNCTION, a function (ConeProgram, unit of its cost, form=, comments=) -> bytes;
    solved: the form that its solvers work in, by which reformulations are compared (None: the one that is written);
    y: how the solvers of a format that states both forms at once call the vector y of the geometric one; None where the
    forms are different files. text: whether it may be gzipped (NAME.EXT.gz).
    """

    suffix: str
    name: str
    title: str
    writer: str
    cones: frozenset[str]
    forms: tuple[Form, ...] = ("geometric",)
    solved: Form | None = None
    y: str | None = None
    text: bool = True

    def form(self, asked: str | None) -> Form:
        """The form that is meant. Raises UsageError for one that the format does not have."""
        for form in self.forms:
            if asked in (None, form):
                return form
        raise UsageError(f"--form {asked}: a {self.suffix} file holds the {' or the '.join(self.forms)} form")

    def capabilities(self, form: Form) -> Capabilities:
        """What a problem has to be brought to."""
        from lipmodel.backends.base import Capabilities

        return Capabilities(cones=self.cones, form=self.solved or form)

    def write(self, program: ConeProgram, unit: float, form: Form, comments: Sequence[str]) -> bytes:
        """The file. Raises UsageError, LipmodelError for what the format cannot hold."""
        from importlib import import_module

        module, _, name = self.writer.partition(":")
        content: bytes = getattr(import_module(module), name)(program, unit, form=form, comments=comments)
        return content

    def returned(self, form: Form) -> tuple[str, int]:
        """Which vector of a solution leads back, x or y, and its sign: y (model, scaled) = sign * vector.

        In standard form it holds the multipliers of the equalities, which are minus y.
        """
        if self.y is not None:
            return self.y, 1
        return ("x", 1) if form == "geometric" else ("y", -1)


_BUILT_IN = (
    Format(
        suffix=".dat-s",
        name="sdpa-sparse",
        title="SDPA sparse",
        writer="lipmodel.io.sdpa:write",
        cones=frozenset({"psd", "nonnegative"}),
        forms=("geometric", "standard"),
        solved="standard",
        y="x",
    ),
    Format(
        suffix=".cbf",
        name="cbf",
        title="Conic Benchmark Format",
        writer="lipmodel.io.cbf:write",
        cones=_EVERYTHING,
        forms=("geometric", "standard"),
    ),
    Format(
        suffix=".mat",
        name="sedumi",
        title="SeDuMi, MATLAB",
        writer="lipmodel.io.sedumi:write",
        cones=_EVERYTHING,
        forms=("geometric", "standard"),
        solved="standard",
        y="y",
        text=False,
    ),
    *(
        Format(
            suffix=suffix,
            name=f"mosek-{suffix[1:]}",
            title=f"MOSEK, {title}",
            writer=f"lipmodel.io.mosek_files:write_{suffix[1:]}",
            cones=_EVERYTHING,
            forms=("standard",),
        )
        for suffix, title in ((".ptf", "text"), (".task", "binary"), (".jtask", "JSON"))
    ),
    Format(suffix=".mps", name="mps", title="linear programs", writer="lipmodel.io.linear:write_mps", cones=_LINEAR),
    Format(suffix=".lp", name="lp", title="linear programs", writer="lipmodel.io.linear:write_lp", cones=_LINEAR),
    Format(suffix=".model.json", name="model", title="lipmodel's own, factors kept", writer="", cones=_EVERYTHING),
)


@lru_cache(maxsize=1)
def known_formats() -> Mapping[str, Format]:
    """The formats by suffix: the built-in ones, then those of the entry points `lipmodel.formats` (each a Format)."""
    found = {f.suffix: f for f in _BUILT_IN}
    for entry in entry_points(group="lipmodel.formats"):
        try:
            other = entry.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(f"the format {entry.name!r} is announced as {entry.value}, but: {error}") from error
        found.setdefault(other.suffix, other)
    return found


def format_of(path: str | os.PathLike[str]) -> Format:
    """The format that the suffix of a file names. Raises UsageError, naming the formats that there are."""
    name = Path(path).name
    bare = name.removesuffix(".gz")
    for suffix, found in known_formats().items():
        if bare.endswith(suffix) and bare != suffix:
            if bare != name and not found.text:
                raise UsageError(f"{path}: {suffix} files are compressed as they are: write {bare}")
            return found
    listed = ", ".join(f"NAME{suffix} ({f.title})" for suffix, f in known_formats().items())
    raise UsageError(f"{path}: no format has this suffix; there are {listed}; .gz may follow (but for .mat)")
