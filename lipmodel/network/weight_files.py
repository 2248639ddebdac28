"""Weights in `.npz` and `.mat` files: lists of matrices, and of biases where there are some."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipmodel.errors import Reason, RefusedInput

Array = np.ndarray[Any, Any]

MAX_ENTRIES = 10**8
_LISTS = {"weights": "weights", "biases": "biases", "bias": "biases"}
_NUMBERED = re.compile(r"(?P<kind>w|weight|weights|b|bias|biases)_?(?P<number>\d+)", re.IGNORECASE)
_PLAIN = re.compile(r"arr_(?P<number>\d+)")


def read_weights(path: Path) -> tuple[list[Array], list[Array] | None]:
    """Weights and biases (None where there are none) of a file. Raises RefusedInput, naming what there is.

    Read are: `weights` and `biases`, a cell or object list each; W1, b1, W2, ... (also weight_1, bias_1); arr_0, ...,
    as `numpy.savez` names what has no name: the weights alone.
    """
    found = _npz(path) if path.suffix.lower() == ".npz" else _mat(path)
    weights, biases = _sorted(found)
    if not weights:
        names = ", ".join(sorted(found)) or "nothing"
        raise _refused(path, f"no weights are found in {names}; they are looked for as weights, or W1, W2, ...")
    if biases and len(biases) != len(weights):
        raise _refused(path, f"{len(biases)} biases for {len(weights)} weights")
    flat = [np.ravel(b) for b in biases] if biases else None
    return [np.atleast_2d(w) for w in weights], flat


def _refused(path: Path, message: str, kind: str = "file-format") -> RefusedInput:
    return RefusedInput(str(path), [Reason(kind=kind, where="", message=message)])


def _npz(path: Path) -> dict[str, Any]:
    """Arrays by name; nothing is unpickled, and what a file unpacks to is limited before it is unpacked."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > 8 * MAX_ENTRIES:
            raise _refused(path, f"it unpacks to {unpacked} bytes; the limit is {8 * MAX_ENTRIES}", "size-limit")
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise _refused(path, f"this is not an .npz file of plain arrays: {error}") from None


def _mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        data: Mapping[str, Any] = loadmat(path)
    except Exception as error:  # the reader of a format this old raises whatever it meets
        raise _refused(path, f"this is not a MATLAB file before version 7.3: {error}") from None
    return {name: value for name, value in data.items() if not name.startswith("__")}


def _sorted(found: Mapping[str, Any]) -> tuple[list[Array], list[Array]]:
    lists: dict[str, list[Array]] = {"weights": [], "biases": []}
    numbered: dict[str, dict[int, Array]] = {"weights": {}, "biases": {}}
    plain: dict[int, Array] = {}
    for name, value in found.items():
        if name.lower() in _LISTS:
            array = np.asarray(value)
            lists[_LISTS[name.lower()]] = list(array.ravel()) if array.dtype == object else [array]
        elif match := _NUMBERED.fullmatch(name):
            kind = "weights" if match["kind"].lower().startswith("w") else "biases"
            numbered[kind][int(match["number"])] = np.asarray(value)
        elif match := _PLAIN.fullmatch(name):
            plain[int(match["number"])] = np.asarray(value)
    result = [lists[kind] or [v for _, v in sorted(numbered[kind].items())] for kind in ("weights", "biases")]
    return result[0] or [v for _, v in sorted(plain.items())], result[1]
