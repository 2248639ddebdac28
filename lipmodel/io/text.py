"""Text files of solvers: read with limits, plain or gzipped, line by line; numbers that read back exactly."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lipmodel.errors import UsageError

Array = np.ndarray[Any, Any]

MAX_BYTES = 1 << 32
"""Bytes, after decompression, that are read of one file."""
MAX_JSON = 1 << 28
"""The same for maps and solutions, which are kept as a whole."""
MAX_LINE = 1 << 28
"""Bytes that one line may have."""
MAX_NUMBERS = 300_000_000
"""Numbers that are kept of one file: five for each coefficient that the writers may write."""
CHUNK = 200_000

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


class Malformed(Exception):  # noqa: N818 - turned into a UsageError that names the file
    """What is wrong with a file, and where."""


def lines_of(path: str | os.PathLike[str], limit: int | None = None) -> Iterator[str]:
    """The lines of a text file of at most `limit` bytes, gzipped or not, without their ends.

    Raises Malformed, OSError.
    """
    most = MAX_BYTES if limit is None else limit
    total = 0
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        while True:
            try:
                line = stream.readline(MAX_LINE)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise Malformed(f"it is no complete gzip file: {error}") from None
            if not line:
                return
            total += len(line)
            if total > most or len(line) == MAX_LINE:
                raise Malformed(f"it is larger than what is read ({most} bytes, {MAX_LINE} of one line)")
            try:
                yield line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise Malformed("it is no text file") from None


def refusing(path: str | os.PathLike[str], what: str, error: Exception) -> UsageError:
    """The error of a file that is not what it should be, or cannot be read."""
    if isinstance(error, OSError):
        return UsageError(f"cannot read {path}: {error.strerror or error}")
    if isinstance(error, MemoryError):
        return UsageError(f"{path} is too large to be read in the memory that there is")
    return UsageError(f"{path} is not {what}: {error}")


def whole(text: str, what: str, *, low: int = 0, high: int = 2**31 - 1) -> int:
    """An integer in [low, high]. Raises Malformed, naming `what` was expected."""
    if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
        raise Malformed(f"{what} must be a whole number from {low} to {high}, not {text[:40]!r}")
    return int(text)


def floats(words: Iterable[str], what: str) -> Array:
    """Finite numbers as float64. Raises Malformed."""
    try:
        values = np.fromiter((float(word) for word in words), dtype=np.float64)
    except ValueError as error:
        raise Malformed(f"{what}: {str(error)[:80]}") from None
    if not np.all(np.isfinite(values)):
        raise Malformed(f"{what}: a number that is not finite")
    return values


def table(words: Iterable[str], integers: int, what: str) -> tuple[Array, ...]:
    """Rows of `integers` whole numbers and one real number each, int64 and float64. Raises Malformed."""
    width = integers + 1
    columns: list[list[Array]] = [[] for _ in range(width)]
    held: list[str] = []

    def put() -> None:
        for k in range(integers):
            try:
                columns[k].append(np.fromiter((int(word) for word in held[k::width]), dtype=np.int64))
            except (ValueError, OverflowError):
                raise Malformed(f"{what}: entries must begin with {integers} whole numbers") from None
        columns[integers].append(floats(held[integers::width], what))
        held.clear()

    for count, word in enumerate(words):
        held.append(word)
        if count >= MAX_NUMBERS:
            raise Malformed(f"{what}: more than {MAX_NUMBERS} numbers")
        if len(held) == CHUNK * width:
            put()
    if len(held) % width:
        raise Malformed(f"{what}: the last entry is cut off ({len(held) % width} of {width} numbers)")
    put()
    return tuple(np.concatenate(column) for column in columns)


def inside(values: Array, low: int, high: int, what: str) -> None:
    """Raises Malformed unless all values lie in [low, high]."""
    if values.size and not (low <= int(values.min()) and int(values.max()) <= high):
        raise Malformed(f"{what} must be a number from {low} to {high}")


def rows_text(columns: Iterable[Array]) -> str:
    """Columns of numbers as lines, every number such that it reads back exactly."""
    arrays = tuple(columns)
    parts = []
    for start in range(0, len(arrays[0]), CHUNK):
        rows = zip(*(column[start : start + CHUNK].tolist() for column in arrays), strict=True)
        parts.append("".join(" ".join(map(repr, row)) + "\n" for row in rows))
    return "".join(parts)


def comment(text: str) -> str:
    """One line of printable ASCII: readers of the formats differ in what else they accept."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:200]


def packed(data: bytes, path: str | os.PathLike[str]) -> bytes:
    """The bytes to write: gzipped, the same in every run, where the name ends in .gz."""
    return gzip.compress(data, mtime=0) if Path(path).name.endswith(".gz") else data
