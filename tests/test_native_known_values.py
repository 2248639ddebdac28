"""The numeric core of the native backend against known values of published networks."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from native_chains import problem

from lipmodel.backends.native.core import solve_chain

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def onnx_matrices(path: pathlib.Path) -> list[np.ndarray]:
    """Weights of a file that is a plain chain of matrix products, additions and activations."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = {c.name: numpy_helper.to_array(c).astype(float) for c in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t).astype(float)
    harmless = {"Add", "Sub", "Relu", "Tanh", "Sigmoid", "Flatten", "Reshape", "Constant", "Identity"}
    matrices = []
    for node in graph.node:
        if node.op_type == "Gemm":
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            matrices.append(constants[node.input[1]] if transposed else constants[node.input[1]].T)
        elif node.op_type == "MatMul":
            left, right = node.input
            matrices.append(constants[left] if left in constants else constants[right].T)
        elif node.op_type not in harmless:
            pytest.skip(f"{path.name} is not a plain chain")
    return matrices


def known_values() -> list[Any]:
    if not SHARED.exists():
        return []
    cases = []
    for name in ("lipsdp", "gauss", "tiny", "stream", "digits", "eclipse", "chordal"):
        for oracle in json.loads((SHARED / "oracles" / f"{name}.json").read_text())["oracles"]:
            plain = oracle["quantity"] in ("lipsdp-neuron", "geolip") and oracle["relation"] == "equal"
            if plain and oracle["id"][:3] != "cnn":
                cases.append(pytest.param(oracle, id=oracle["id"]))
    return cases


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("oracle", known_values())
def test_known_values(oracle):
    network = oracle["network"]
    activation = "sigmoid" if "sigmoid" in oracle["id"] else "relu"
    if "file" in network:
        matrices = onnx_matrices(SHARED / network["file"])
    else:
        spec = importlib.util.spec_from_file_location("generate", SHARED / "oracles" / "generate.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        matrices = module.RECIPES[network["recipe"]](**network["args"]).Ws
    if oracle["output"] != "all":
        matrices[-1] = matrices[-1][[oracle["output"]]]
    r = solve_chain(problem(matrices, oracle["norm"]["input"], activation))
    assert r.status == "optimal"
    assert np.sqrt(r.value) == pytest.approx(oracle["value"], rel=1e-6 + oracle["rtol"])


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
def test_acas_xu_is_solved_to_its_known_value():
    matrices = onnx_matrices(SHARED / "nets" / "acasxu" / "1_1.onnx")
    r = solve_chain(problem(matrices))
    assert r.status == "optimal"
    assert np.sqrt(r.value) == pytest.approx(88258.82, rel=2e-6)
