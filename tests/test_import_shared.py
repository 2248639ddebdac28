"""The import on real networks, where they lie beside the checkout: every verdict, and every reason."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from lipmodel.errors import RefusedInput
from lipmodel.network.onnx_import import load
from lipmodel.network.ops import Elementwise

SHARED = Path(__file__).resolve().parents[2] / "shared"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")


def table(path: str, key: str) -> list[Any]:
    """The rows of a CSV file, as test parameters; none where the file is absent."""
    if not (SHARED / path).exists():
        return []
    with open(SHARED / path, newline="") as stream:
        return [pytest.param(row, id=row[key]) for row in csv.DictReader(stream)]


def kinds(path: Path) -> set[str]:
    """The kinds of reason that a file is refused for; empty where it is read."""
    try:
        load(path)
    except RefusedInput as refused:
        return {reason.kind for reason in refused.reasons}
    return set()


def operators(row: dict[str, str]) -> set[str]:
    return {entry.rsplit(":", 1)[0] for entry in row["operators"].split()}


def dimensions(text: str) -> tuple[int, ...]:
    """A shape of the table, with 1 for a symbolic dimension."""
    return () if text == "scalar" else tuple(int(d) if d.isdigit() else 1 for d in text.split("x"))


COUNTED_OTHERWISE = {"Clip", "GlobalMaxPool", "Max", "MaxPool", "Min", "Pow", "Sqrt"}
"""A Clip without limits is no nonlinearity; maxima take several Relus for an output; powers are not in the table."""
NETS = [p for p in table("nets/index.csv", "path") if p.values[0]["verdict"]]


@pytest.mark.parametrize("row", NETS)
def test_real_networks(row: dict[str, str]) -> None:
    path = SHARED / "nets" / row["path"]
    found = kinds(path)
    if row["verdict"] in ("accept", "accept-local"):
        assert not found
    elif row["verdict"] == "reject":
        assert row["reason"] in found
    assert "check" not in found
    if not found:
        network = load(path, check=False)
        assert network.input_shape == dimensions(row["input_shape"])
        if row["output_shape"] != "?":
            assert network.output_shape == dimensions(row["output_shape"])
        hidden = sum(op.size for _, op, _ in network.plan() if isinstance(op, Elementwise))
        if row["hidden_units"] and not COUNTED_OTHERWISE & operators(row):
            assert hidden == int(row["hidden_units"])
