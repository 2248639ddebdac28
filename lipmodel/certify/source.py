"""Who reads the network that a certificate is about: the checker itself where it can, the importer elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipmodel.certify.kernel import System
from lipmodel.certify.tape import Mismatch, Part, Reading, Sparse, Unreadable
from lipmodel.errors import Refuted
from lipmodel.families import margin_rows
from lipmodel.network.increments import IncrementSystem, exact_system
from lipmodel.spec import Global, Outputs, Spec

if TYPE_CHECKING:
    from lipmodel.network.graph import Network

READER = "the independent reader"


@dataclass(slots=True, kw_only=True, eq=False)
class Source:
    """Where exact matrices come from: `reading` where the file could be read a second time, else the importer.

    why: what the importer has to be believed for, "" if nothing.
    """

    reading: Reading | None
    why: str = ""

    @property
    def read_by(self) -> str:
        """As a verdict says it."""
        return f"the importer ({self.why})" if self.why else READER

    def exact(self, system: IncrementSystem, row: int | None, column: int | None) -> System:
        """The exact matrices of a system (a member of a family: of one row and/or column).

        The checker's own reading where there is one; it must have the shape that the importer's has. Raises Refuted.
        """
        try:
            part = self._part(system, row, column)
            if part is not None:
                return part.system()
        except Unreadable as reason:
            self.reading, self.why = None, str(reason)
        found: System = exact_system(system)
        return found

    def compare(self, system: IncrementSystem, row: int | None, column: int | None) -> None:
        """Raise Refuted unless the importer's matrices are those of the checker's own reading, where there is one."""
        part = self._part(system, row, column)
        if part is None:
            return
        at = system.positions()
        for k, a in enumerate(system.activations):
            if tuple(map(float, a.alpha)) != part.alpha[k] or tuple(map(float, a.beta)) != part.beta[k]:
                raise _disagree(f"the slopes of activation {a.name!r}")
            _compare({at[s]: m for s, m in a.pre.blocks.items()}, part.pre[k], f"the weights before {a.name!r}")
        _compare({at[s]: m for s, m in system.output.blocks.items()}, part.output, "the weights of the output")

    def _part(self, system: IncrementSystem, row: int | None, column: int | None) -> Part | None:
        if self.reading is None:
            return None
        names, sizes = [a.name for a in system.activations], [a.size for a in system.activations]
        row = row if self.reading.outputs > 1 else None
        column = column if self.reading.inputs > 1 else None
        try:
            part = self.reading.part(names, sizes, row=row, column=column)
        except Mismatch as found:
            shape = ", ".join(f"{a.name} with {a.size} neurons" for a in system.activations[:20])
            raise _disagree(f"the importer finds the activations {shape or 'none'}; the reader says: {found}") from None
        outputs = self.reading.outputs if row is None else 1
        if part.sizes[0] != system.input.size or outputs != system.output.size:
            raise _disagree(
                f"{system.input.size} inputs and {system.output.size} outputs, or {part.sizes[0]} and {outputs}"
            )
        return part


def source_of(network: Network, spec: Spec) -> Source:
    """The source for a network whose outputs are those of a spec."""
    from lipmodel.certify.reader import read

    if not isinstance(spec.domain, Global):
        return Source(reading=None, why="a bounded domain")
    named, content = network.source, network.model
    try:
        if content is None and named.path is not None:
            content = Path(named.path).read_bytes()
        if content is None:
            raise Unreadable("no file")
        rows = _rows(spec.outputs, network.output_size)
        found = read(content, named.sha256, graph_input=named.graph_input, graph_output=named.graph_output, rows=rows)
    except (Unreadable, OSError) as reason:
        return Source(reading=None, why=str(reason))
    except Exception as error:  # a file may hold anything; the verdict says that it was not read twice
        return Source(reading=None, why=f"the reader broke off: {type(error).__name__}")
    return Source(reading=found)


def _rows(outputs: Outputs, size: int) -> Sequence[dict[int, int]] | None:
    if outputs.kind == "all":
        return None
    if outputs.kind == "vector":
        return [{i: 1} for i in outputs.indices]
    return [{outputs.indices[0]: 1, j: -1} for j in margin_rows(outputs, size)]


def _compare(maps: dict[int, Any], own: dict[int, Sparse], what: str) -> None:
    """Whether every entry of the importer's maps encloses what the reader has."""
    from lipmodel.certify.exact_entries import exact_entries

    for j in {*maps, *own}:
        mine = {} if j not in own else {(r, c): e for r, row in enumerate(own[j].rows) for c, e in row.items()}
        exponent = own[j].exponent if j in own else 0
        theirs: dict[tuple[int, int], tuple[int, int]] = {}
        common = exponent
        if j in maps:
            entries = exact_entries(maps[j])
            common = max(exponent, entries.exponent)
            mid, rad = entries.shifted(common)
            radii = [0] * len(mid) if rad is None else rad.tolist()
            places = zip(entries.rows.tolist(), entries.cols.tolist(), strict=True)
            theirs = dict(zip(places, zip(mid.tolist(), radii, strict=True), strict=True))
        shift = common - exponent
        for place in {*mine, *theirs}:
            (v, r), (w, s) = mine.get(place, (0, 0)), theirs.get(place, (0, 0))
            if abs((v << shift) - w) + (r << shift) > s:
                raise _disagree(f"{what}, signal {j}, entry {place}")


def _disagree(what: str) -> Refuted:
    return Refuted(f"the independent reader and the importer disagree about the network: {what}")
