"""Plain text tables: aligned columns, no decoration, safe for any terminal and any pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

GAP = "  "
NARROWEST = 24
"""The last column is wrapped to what the others leave it, but not below this many characters."""


def printable(text: str) -> str:
    """The text with control characters and line ends escaped: names come from files, and terminals obey them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, width: int | None = None) -> list[str]:
    """Lines of a table with aligned columns; cells may have several lines.

    width: the last column is wrapped so that lines keep to it; None leaves lines as long as they are.
    """
    cells = [[_lines(cell) for cell in row] for row in (header, *rows)]
    columns = len(header)
    widths = [max(len(line) for row in cells for line in row[k]) for k in range(columns)]
    if width is not None:
        room = max(NARROWEST, width - sum(widths[:-1]) - len(GAP) * (columns - 1))
        cells = [[*row[:-1], [part for line in row[-1] for part in _wrapped(line, room)]] for row in cells]
        widths[-1] = min(widths[-1], room)
    result = []
    for number, row in enumerate(cells):
        for k in range(max(len(cell) for cell in row)):
            padded = (cell[k] if k < len(cell) else "" for cell in row)
            result.append(GAP.join(text.ljust(size) for text, size in zip(padded, widths, strict=True)).rstrip())
        if number == 0:
            result.append(GAP.join("-" * size for size in widths))
    return result


def facts(pairs: Iterable[tuple[str, str]], *, indent: str = "  ") -> list[str]:
    """Lines of names and values, the values aligned; a value may have several lines."""
    listed = [(name, _lines(value)) for name, value in pairs]
    size = max((len(name) for name, _ in listed), default=0)
    return [
        f"{indent}{name if k == 0 else '':<{size}}{GAP}{line}".rstrip()
        for name, lines in listed
        for k, line in enumerate(lines)
    ]


def _lines(cell: str) -> list[str]:
    return [printable(line) for line in cell.split("\n")]


def _wrapped(line: str, room: int) -> list[str]:
    return textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False) or [""]
