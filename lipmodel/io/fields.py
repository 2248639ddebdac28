"""JSON that was written by somebody: values are asked for by name and kind, and what is not so is Malformed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipmodel.certify.certificate import read_vector
from lipmodel.errors import Refuted
from lipmodel.io.text import MAX_JSON, Malformed, lines_of

Array = np.ndarray[Any, Any]
LARGEST = 2**31


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object; where: how messages call it, with a dot at the end. All methods raise Malformed."""

    data: Mapping[str, Any]
    where: str = ""

    def get(self, key: str, *kinds: type) -> Any:
        """The value, of one of these types exactly (a truth value is no number)."""
        value = self.data.get(key)
        if type(value) not in kinds:
            raise Malformed(f"{self.where}{key} is missing or of the wrong kind")
        return value

    def inner(self, key: str) -> Fields:
        return Fields(self.get(key, dict), f"{self.where}{key}.")

    def items(self, key: str) -> Iterator[Fields]:
        """The objects of a list."""
        for number, item in enumerate(self.get(key, list)):
            where = f"{self.where}{key}[{number}]"
            if type(item) is not dict:
                raise Malformed(f"{where} is of the wrong kind")
            yield Fields(item, f"{where}.")

    def number(self, key: str) -> float:
        value = self.get(key, float, int)
        if not -1e300 < value < 1e300:
            raise Malformed(f"{self.where}{key} is out of range")
        return float(value)

    def count(self, key: str, *, least: int = 0, below: int = LARGEST) -> int:
        """A whole number, least <= it < below."""
        value: int = self.get(key, int)
        if not least <= value < below:
            raise Malformed(f"{self.where}{key} is not a whole number from {least} to {below - 1}")
        return value

    def choice(self, key: str, choices: Sequence[str]) -> Any:
        value = self.get(key, str)
        if value not in choices:
            raise Malformed(f"{self.where}{key} is {value[:40]!r}, not one of {', '.join(choices)}")
        return value

    def whole_numbers(self, key: str, size: int | None = None, *, least: int = 0, below: int = LARGEST) -> Array:
        """A list of whole numbers as int64, as many as `size` says."""
        values = self.get(key, list)
        if size is not None and len(values) != size:
            raise Malformed(f"{self.where}{key} has {len(values)} entries, not {size}")
        if not all(type(v) is int and least <= v < below for v in values):
            raise Malformed(f"{self.where}{key} is not a list of whole numbers from {least} to {below - 1}")
        return np.array(values, dtype=np.int64)

    def floats(self, key: str, size: int | None = None) -> Array:
        """A list of finite numbers, or one number for all of `size`."""
        value = self.get(key, list, float, int)
        values = value if isinstance(value, list) else [value]
        if not all(type(v) in (int, float) and -1e300 < v < 1e300 for v in values):
            raise Malformed(f"{self.where}{key} is not made of numbers")
        if size is not None and len(values) not in (1, size):
            raise Malformed(f"{self.where}{key} has {len(values)} numbers, not {size}")
        return np.array(values, dtype=np.float64)

    def hex_floats(self, key: str, size: int) -> Array:
        """`size` finite hexadecimal floats, one repeated one written as ["*n", value]."""
        try:
            return read_vector(self.data.get(key), f"{self.where}{key}", size)
        except Refuted as error:
            raise Malformed(str(error)) from None


def read_json(path: str | os.PathLike[str], *, finite: bool = True, limit: int | None = MAX_JSON) -> Any:
    """The content of a JSON file, gzipped or not; finite: without NaN and Infinity; limit: in bytes.

    Raises Malformed, OSError.
    """
    try:
        return json.loads("\n".join(lines_of(path, limit)), parse_constant=_not_finite if finite else float)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is no valid JSON: {error}") from None


def _not_finite(name: str) -> float:
    raise ValueError(f"the number {name}")
