"""Small networks for the tests of the command line, and a way to run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import lipmodel as lm
from lipmodel.cli import main

MINE = '''
import os
import lipmodel as lm


class ByHand(lm.Formulation):
    """LipSDP with its slope restrictions stated by hand (for ReLU)."""

    name, norms, default_norm = "by-hand", {("2", "2")}, "2"
    loud: bool = lm.option(False, help="talk on stdout while building")

    def build(self, system, spec):
        if self.loud:
            print("noise from Python")
            os.write(1, b"noise from below Python\\n")
        m = lm.Model(self.name)
        ball, price = m.ball(system.input, "2")
        form = ball - lm.inner(system.output, system.output)
        for act in system.activations:
            form -= 2 * lm.inner(act.post, act.pre - act.post, weight=m.multiplier(act))
        m.require(form >= 0)
        m.minimize(2 * price, bound="sqrt")
        return m


class Capped(lm.Formulation):
    """LipSDP with an upper limit on its multipliers."""

    name, norms, default_norm = "capped", {("2", "2")}, "2"

    def build(self, system, spec):
        m = lm.Model(self.name)
        ball, price = m.ball(system.input, "2")
        form = ball - lm.inner(system.output, system.output)
        for act in system.activations:
            t = m.multiplier(act)
            form -= 2 * lm.inner(act.post, act.pre - act.post, weight=t)
            m.require(1e6 - t >= 0)
        m.require(form >= 0)
        m.minimize(2 * price, bound="sqrt")
        return m
'''


def run(capsys: pytest.CaptureFixture[str], *argv: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    capsys.readouterr()
    code = main([str(a) for a in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def write_nets(folder: Path) -> Path:
    """relu.onnx (3-4-2), one.onnx (one neuron, L = 6), huge.onnx (norms overflow), what is refused, and mine.py."""
    rng = np.random.default_rng(7)
    lm.from_weights([rng.normal(size=(4, 3)), rng.normal(size=(2, 4))]).save(folder / "relu.onnx")
    lm.from_weights([[[3.0]], [[-2.0]]]).save(folder / "one.onnx")
    lm.from_weights([[[1e200]], [[1e200]]]).save(folder / "huge.onnx")
    _save(folder / "exp.onnx", [helper.make_node("Exp", ["x"], ["y"], name="grows")], ["x"], ["y"])
    _save(folder / "sign.onnx", [helper.make_node("Sign", ["x"], ["y"], name="jumps")], ["x"], ["y"])
    branches = [
        helper.make_node("Add", ["x", "u"], ["y"], name="joined"),
        helper.make_node("Relu", ["x"], ["z"], name="\x1b[31mred\nline"),
    ]
    _save(folder / "two.onnx", branches, ["x", "u"], ["y", "z"])
    _save(folder / "twice.onnx", [helper.make_node("Mul", ["x", "u"], ["y"], name="product")], ["x", "u"], ["y"])
    (folder / "bad.onnx").write_bytes(b"not an ONNX file")
    (folder / "mine.py").write_text(MINE)
    return folder


def _save(path: Path, nodes: list[Any], inputs: list[str], outputs: list[str]) -> None:
    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2])

    graph = helper.make_graph(nodes, "g", [value(n) for n in inputs], [value(n) for n in outputs])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
