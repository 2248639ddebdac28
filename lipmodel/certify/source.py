"""Who reads the network that a certificate is about: the checker itself where it can, the importer elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.certify.claims import Claim, claims_of, confirm_global, confirm_local, disagree, samples_of
from lipmodel.certify.evaluation import pair_moduli
from lipmodel.certify.kernel import System
from lipmodel.certify.parts import Increments, Part, Slopes, increments, matched
from lipmodel.certify.tape import Mismatch, Reading, Sparse, Step, Unreadable
from lipmodel.errors import Refuted
from lipmodel.families import margin_rows
from lipmodel.network.increments import IncrementSystem, exact_system
from lipmodel.spec import Box, Domain, Global, Outputs, Spec

if TYPE_CHECKING:
    from lipmodel.network.graph import Network

Array = np.ndarray[Any, np.dtype[Any]]

READER = "the independent reader"


@dataclass(slots=True, kw_only=True, eq=False)
class Source:
    """Where exact matrices come from: `reading` where the file could be read a second time, else the importer.

    plain: its increments; masked: those with the neurons left in that are linear on a bounded domain only. why: what
    the importer has to be believed for, "" if nothing; why_witness: the same for a witness.
    """

    reading: Reading | None
    plain: Increments | None = None
    masked: Increments | None = None
    why: str = ""
    why_witness: str = ""

    @property
    def read_by(self) -> str:
        """As a verdict says it."""
        if self.why:
            return f"the importer ({self.why})"
        return READER if not self.why_witness else f"{READER}; for the witness the importer ({self.why_witness})"

    def moduli(self, network: Network, spec: Spec, x: Array, y: Array) -> tuple[list[Fraction], list[Fraction]]:
        """|x - y| exactly, and proved lower bounds of the moduli of the difference of the chosen outputs at x and y."""
        if self.reading is not None:
            if self.reading.inputs != len(x):
                raise disagree(f"{len(x)} inputs, or {self.reading.inputs}")
            try:
                return pair_moduli(self.reading, x.tolist(), y.tolist())
            except Exception as reason:
                self.why_witness = _said(reason)
        from lipmodel.lower import witness

        rows, _ = witness.output_rows(spec.outputs, network.output_size)
        found = witness.pair_moduli(network, x, y, rows=rows)
        if found is None:
            raise Refuted("the two points of a witness are the same")
        return found

    def exact(self, system: IncrementSystem, row: int | None, column: int | None) -> System:
        """The exact matrices of a system (a member of a family: of one row and/or column).

        The checker's own reading where there is one; it must have the shape that the importer's has. Raises Refuted.
        """
        part = self._part(self.plain, system, row, column)
        if part is not None:
            try:
                return part.system()
            except Unreadable as reason:
                self._give_up(reason)
        found: System = exact_system(system)
        return found

    def compare(self, system: IncrementSystem, row: int | None, column: int | None, *, masked: bool = False) -> None:
        """Raise Refuted unless the importer's matrices are those of the checker's own reading, where there is one."""
        part = self._part(self.masked if masked else self.plain, system, row, column)
        if part is None:
            return
        at = system.positions()
        for k, a in enumerate(system.activations):
            if tuple(map(float, a.alpha)) != part.alpha[k] or tuple(map(float, a.beta)) != part.beta[k]:
                raise disagree(f"the slopes of activation {a.name!r}")
            _compare({at[s]: m for s, m in a.pre.blocks.items()}, part.pre[k], f"the weights before {a.name!r}")
        _compare({at[s]: m for s, m in system.output.blocks.items()}, part.output, "the weights of the output")

    def entries(self, system: IncrementSystem) -> Mapping[str, Array | None]:
        """Which entries of its node every activation of a system has, by name: as read, or as the importer says."""
        found = {a.name: a.index for a in system.activations}
        if self.plain is not None:
            for name, entries in _kept(self.plain, system).items():
                own = found[name]
                if own is not None and not np.array_equal(own, entries):
                    raise disagree(f"the neurons of activation {name!r}")
        return found

    def _give_up(self, reason: Exception) -> None:
        self.plain, self.masked, self.why = None, None, _said(reason)

    def _part(
        self, own: Increments | None, system: IncrementSystem, row: int | None, column: int | None
    ) -> Part | None:
        if own is None:
            return None
        row = row if own.outputs > 1 else None
        column = column if own.inputs > 1 else None
        try:
            kept = _kept(own, system)
            part = own.part([a.name for a in system.activations], kept, row=row, column=column)
        except Mismatch as found:
            shape = ", ".join(f"{a.name} with {a.size} neurons" for a in system.activations[:20])
            raise disagree(f"the importer finds the activations {shape or 'none'}; the reader says: {found}") from None
        except Exception as reason:
            self._give_up(reason)
            return None
        outputs = own.outputs if row is None else 1
        if part.sizes[0] != system.input.size or outputs != system.output.size:
            raise disagree(
                f"{system.input.size} inputs and {system.output.size} outputs, or {part.sizes[0]} and {outputs}"
            )
        return part


def _kept(own: Increments, system: IncrementSystem) -> dict[str, Array]:
    """Which entries of its node every activation of a system has. Raises Mismatch."""
    free = {name: own.free[k] for k, name in matched(own.tape, [a.name for a in system.activations]).items()}
    kept = {}
    for a in system.activations:
        entries = free.get(a.name, np.zeros(0, dtype=np.int64))
        living = system.living.get(a.name, np.arange(a.size))
        if a.name in free and (len(living) != a.size or living.max(initial=-1) >= len(entries)):
            raise Mismatch(f"its activation {a.name!r} has {len(entries)} neurons")
        kept[a.name] = entries[living] if a.name in free else entries
    return kept


def source_of(network: Network, spec: Spec, ranges: Mapping[str, Any] | None = None) -> Source:
    """The source for a network whose outputs are those of a spec; ranges: the importer's, on a bounded domain.

    Raises Refuted where the importer's slopes are not those of the file.
    """
    reading = None
    try:
        reading = _reading(network, spec)
        domain = spec.domain
        samples = None if isinstance(domain, Global) else samples_of(domain, spec.input_norm)
        claims = claims_of(network, ranges, samples)
        found = matched(reading.tape, list(claims))
        of = {k: claims[name] for k, name in found.items()}
        apart = set(claims) - set(found.values())
        if network.source.path is None and any(len(claims[name].op.parts) > 1 for name in apart):
            # a network that was built in memory: a file has one node for each kind
            raise Unreadable("a layer with activations of several kinds")
        if isinstance(domain, Global):
            confirm_global(reading, of)
        elif not domain.is_point:
            assert samples is not None
            confirm_local(reading, domain, spec.input_norm, of, samples)
        moving = _moving(domain)
        slopes = [
            {k: _slopes(step, of.get(k), masked) for k, step in _activations(reading)} for masked in (False, True)
        ]
        plain = increments(reading, slopes[0], moving)
        masked = None if ranges is None else increments(reading, slopes[1], moving)
    except Refuted:
        raise
    except Exception as reason:  # a file may hold anything; the verdict says that it was not read twice
        return Source(reading=reading, why=_said(reason))
    return Source(reading=reading, plain=plain, masked=masked)


def _said(reason: Exception) -> str:
    """Why the importer has to be believed; a bug of the reader is called one."""
    known = isinstance(reason, Unreadable | OSError)
    return str(reason) if known else f"the reader broke off: {type(reason).__name__}"


def _reading(network: Network, spec: Spec) -> Reading:
    return read_again(network, _rows(spec.outputs, network.output_size))


def read_again(network: Network, rows: Sequence[dict[int, int]] | None = None) -> Reading:
    """The independent reader's view of a network; rows: combinations of outputs. Raises Unreadable, OSError."""
    from lipmodel.certify.reader import read

    named, content = network.source, network.model
    if content is None and named.path is not None:
        content = Path(named.path).read_bytes()
    if content is None:
        raise Unreadable("no file")
    folder = None if named.path is None else Path(named.path).parent
    chosen = {"graph_input": named.graph_input, "graph_output": named.graph_output}
    return read(content, named.sha256, folder=folder, rows=rows, **chosen)


def _activations(reading: Reading) -> list[tuple[int, Step]]:
    return [(k, step) for k, step in enumerate(reading.tape.steps) if step.kind == "activation"]


def _moving(domain: Domain) -> list[int] | None:
    """The inputs that are not the same all over the domain."""
    if isinstance(domain, Box):
        return [i for i, (a, b) in enumerate(zip(domain.lo, domain.hi, strict=True)) if a < b]
    return [] if domain.is_point else None


def _slopes(step: Step, claim: Claim | None, masked: bool) -> Slopes:
    """The slopes to count with: the importer's, which have been found to enclose the checker's own."""
    alpha, beta = (step.alpha, step.beta) if claim is None else (claim.alpha.tolist(), claim.beta.tolist())
    known = (step.alpha, step.beta) if masked else (alpha, beta)
    return Slopes(alpha=alpha, beta=beta, linear=np.array([a == b for a, b in zip(*known, strict=True)], dtype=bool))


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
                raise disagree(f"{what}, signal {j}, entry {place}")
