"""A comparison of bounds as a table for the terminal, for Markdown and as CSV.

Only proved bounds stand in the column of bounds, rounded up; the lower bound, rounded down, is the last line. What has
no bound is listed below with its reason, and estimates stand in a table of their own.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lipmodel.report.tables import facts, printable, table
from lipmodel.result import rounded
from lipmodel.spec import Global

if TYPE_CHECKING:
    from lipmodel.comparison import Comparison, Entry

HEADER = ("method", "bound", "assurance", "ratio", "time (s)", "note")
COLUMNS = ("method", "backend", "bound", "assurance", "ratio", "seconds", "termination", "note")
LOWER = "lower bound"
WIDTH = 100
"""Characters of a line where there is no terminal that says how many it has."""


def subject(comparison: Comparison) -> str:
    """What was bounded, such as `L(2→2, outputs 3)`."""
    spec = comparison.spec
    where = "" if spec.outputs.kind == "all" else f", outputs {spec.outputs}"
    where += "" if isinstance(spec.domain, Global) else f", {spec.domain}"
    return f"L({spec.input_norm}→{spec.output_norm}{where})"


def title(comparison: Comparison) -> str:
    """The network, the question, and the time in one line."""
    network = comparison.network
    path = network["path"]
    name = "network" if path is None else printable(Path(path).name)
    sizes = f"{network['inputs']} inputs, {network['activations']} activations, {network['outputs']} outputs"
    stopped = ", interrupted" if comparison.interrupted else ""
    time = f"{comparison.seconds:.1f} s of {comparison.time_limit:g} s{stopped}"
    return f"{name} ({sizes}): {subject(comparison)} in {time}"


def text(comparison: Comparison, *, width: int | None = None) -> str:
    """The table for a terminal, of `width` characters."""
    lines = [title(comparison), "", *table(HEADER, _rows(comparison), width=width)]
    if comparison.estimates or comparison.no_estimates:
        lines += ["", "estimates (not bounds)"]
        lines += (
            table(("estimate", "value", "what it is", "time (s)"), _estimates(comparison))
            if (comparison.estimates)
            else ["none"]
        )
    without = [*_reasons(comparison.skipped), *(_reason(f"estimate {n}", why) for n, why in comparison.no_estimates)]
    if without:
        lines += ["", "not in the table"]
        room = (width or WIDTH) - max(len(name) for name, _ in without) - 4
        lines += facts((name, "\n".join(textwrap.wrap(why, max(room, 24)))) for name, why in without)
    return "\n".join(lines)


def markdown(comparison: Comparison) -> str:
    """The table as GitHub shows it."""
    lines = [f"**{_escaped(title(comparison))}**", "", *_pipes(HEADER, _rows(comparison), "lrlrrl")]
    if comparison.estimates:
        lines += ["", "Estimates (not bounds):", ""]
        lines += _pipes(("estimate", "value", "what it is", "time (s)"), _estimates(comparison), "lrlr")
    without = [*_reasons(comparison.skipped), *(_reason(f"estimate {n}", why) for n, why in comparison.no_estimates)]
    if without:
        lines += ["", "Not in the table:", "", *(f"- {_escaped(name)}: {_escaped(why)}" for name, why in without)]
    return "\n".join(lines)


def csv_text(comparison: Comparison) -> str:
    """Comma-separated values, every number in full precision; what has no bound leaves that cell empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in comparison.entries:
        result = entry.result
        name, backend = printable(entry.method), printable(entry.backend or "")
        if result is None:
            row = [name, backend, "", "", "", repr(entry.seconds), entry.status, _plain(entry.reason)]
        else:
            ratio = repr(_ratio(entry.bound, comparison.best))
            row = [name, backend, repr(entry.bound), result.assurance, ratio, repr(entry.seconds), result.termination]
            row.append(_plain(entry.note))
        writer.writerow(row)
    for estimate in comparison.estimates:
        note = f"estimate, not a bound: {estimate.value!r} ({estimate.kind})"
        writer.writerow([estimate.name, "", "", "", "", repr(estimate.seconds), "estimate", note])
    lower = comparison.lower_bound
    if lower is not None:
        ratio = repr(_ratio(lower, comparison.best))
        writer.writerow([LOWER, "", repr(lower), "proved", ratio, repr(comparison.witness_seconds), "witness", ""])
    return stream.getvalue()


def skipped(comparison: Comparison) -> list[str]:
    """A line for everything that has no bound, with the reason."""
    return [f"{name}: {why}" for name, why in _reasons(comparison.skipped)]


def seconds(value: float) -> str:
    """A duration with three digits or so."""
    return f"{value:.3f}" if value < 1.0 else f"{value:.2f}" if value < 100.0 else f"{value:.0f}"


def _rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    best, lower = comparison.best, comparison.lower_bound
    for entry in comparison.answered:
        assert entry.result is not None
        ratio = _factor(_ratio(entry.bound, best))
        bound = rounded(entry.bound, up=True)
        yield entry.label, bound, entry.result.assurance, ratio, seconds(entry.seconds), _plain(entry.note)
    if lower is not None:
        exact = "meets the best bound" if any(result.exact for result in comparison.results) else ""
        ratio = _factor(_ratio(lower, best))
        yield LOWER, rounded(lower, up=False), "proved", ratio, seconds(comparison.witness_seconds), exact
    else:
        yield LOWER, "", "", "", seconds(comparison.witness_seconds), "no witness found"


def _estimates(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for estimate in comparison.estimates:
        yield estimate.name, f"{estimate.value:.6g}", estimate.kind, seconds(estimate.seconds)


def _ratio(value: float, best: float) -> float:
    if value == best:
        return 1.0
    return value / best if best > 0.0 else float("inf")


def _factor(ratio: float) -> str:
    return f"{ratio:.4f}" if 1e-3 <= ratio < 10.0 else f"{ratio:.4g}"


def _reasons(entries: Iterable[Entry]) -> list[tuple[str, str]]:
    return [_reason(entry.label, f"{entry.status}: {entry.reason}") for entry in entries]


def _reason(name: str, why: str) -> tuple[str, str]:
    return printable(name), _plain(why)


def _plain(message: str) -> str:
    """A message in one printable line."""
    return printable(" ".join(message.split()))


def _pipes(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], sides: str) -> list[str]:
    marks = ["---:" if side == "r" else "---" for side in sides]
    lines = [header, marks, *([_escaped(printable(cell)) for cell in row] for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _escaped(cell: str) -> str:
    """Nothing in it is read as Markdown or HTML."""
    for sign in "\\`*_|[]<>":
        cell = cell.replace(sign, f"\\{sign}")
    return cell
