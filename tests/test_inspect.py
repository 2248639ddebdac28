"""What `inspect` adds to a summary: a graph for Graphviz, and what every formulation would cost."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_models import make

from lipmodel.cli import main
from lipmodel.network.onnx_import import load
from lipmodel.report.dot import network_dot

node = helper.make_node


def residual() -> object:
    nodes = [
        node("Gemm", ["x", "w"], ["a"], name='layer "one"'),
        node("Relu", ["a"], ["b"], name="rectified"),
        node("Add", ["b", "x"], ["y"], name="sum"),
    ]
    return make(nodes, {"w": np.eye(4)})


def test_every_node_and_every_edge_is_there() -> None:
    network = load(residual())
    text = network_dot(network)
    assert len(re.findall(r"^  n\d+ \[", text, re.MULTILINE)) == len(network.order())
    edges = sum(len(network.arguments(v)) for v in network.order())
    assert len(re.findall(r"^  n\d+ -> n\d+ ", text, re.MULTILINE)) == edges
    assert 'layer \\"one\\"' in text
    assert text.count("{") == text.count("}")


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_draws_it() -> None:
    drawn = subprocess.run(["dot", "-Tsvg"], input=network_dot(load(residual())), capture_output=True, text=True)
    assert drawn.returncode == 0
    assert "rectified" in drawn.stdout


def test_inspect_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).resolve().parents[1] / "examples" / "digits.onnx"
    assert main(["inspect", str(example), "--dot", str(tmp_path / "net.dot")]) == 0
    assert (tmp_path / "net.dot").read_text().startswith("digraph network {")
    assert "parameters" in capsys.readouterr().out
    assert main(["inspect", str(example), "--dot", str(tmp_path / "none" / "net.dot")]) == 2


def test_inspect_says_what_every_formulation_would_cost(capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).resolve().parents[1] / "examples" / "digits.onnx"
    assert main(["inspect", str(example)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^lipsdp-neuron +2:2 +1 +native +65 variables, order 128$", shown, re.MULTILINE)
    assert re.search(r"^geolip +inf:inf +10 +native +129 variables, order 129$", shown, re.MULTILINE)
    assert re.search(r"^product +2:2 +1 +closed form +\d+ norms, sums and products$", shown, re.MULTILINE)
    assert re.search(r"^does not apply +because$", shown, re.MULTILINE)
    assert re.search(r"^fourier-lipsdp +fourier-lipsdp: no layer consists of pixels", shown, re.MULTILINE)
