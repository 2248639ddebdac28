"""Mutated files, briefly: refused with reasons, or read as onnxruntime reads them (benchmarks/byte_fuzz.py: longer)."""

from __future__ import annotations

from random import Random
from typing import Any

import mutate
import oracle
import pytest
import seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_models import make

REFUSED = {"two inputs", "control flow", "function", "sparse", "external"}
FILES = list(seeds.files().values())


@pytest.mark.parametrize("name", seeds.files())
def test_seeds_are_read(name: str) -> None:
    outcome = oracle.judge(seeds.files()[name])
    assert outcome.verdict == ("refused" if name in REFUSED else "accepted"), outcome.what


@pytest.mark.parametrize("block", range(8))
def test_mutated_files(block: int) -> None:
    for index in range(60):
        random = Random(f"suite/{block}/{index}")
        content = mutate.mutated(random.choice(FILES), FILES, random)
        outcome = oracle.judge(content)
        assert outcome.verdict != "failure", f"{block}/{index}: {outcome.what}"


@settings(max_examples=60)
@given(st.sampled_from(list(seeds.models().values())), st.randoms(use_true_random=False), st.integers(1, 3))
def test_changed_models(model: Any, random: Random, times: int) -> None:
    changed = type(model).FromString(model.SerializeToString())
    for _ in range(times):
        mutate.change_model(changed, random)
    outcome = oracle.judge(changed.SerializeToString())
    assert outcome.verdict != "failure", outcome.what


OPERATORS = ("Relu", "Neg", "Tanh", "Abs", "Add", "Sub", "Concat", "Max", "MatMul", "Reshape", "Transpose", "Slice")


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    """A graph of operators put together without a thought for names, order, shapes or cycles."""
    names = st.sampled_from(["x", "a", "b", "c", "w", "s", "y", ""])
    nodes = []
    for _ in range(draw(st.integers(1, 5))):
        op = draw(st.sampled_from(OPERATORS))
        arity = draw(st.sampled_from([1, 1, 2, 2, 3, 0]))
        outputs = draw(st.lists(names, min_size=1, max_size=1))
        attributes = {"axis": draw(st.integers(-3, 3))} if op == "Concat" else {}
        nodes.append(helper.make_node(op, draw(st.lists(names, min_size=arity, max_size=arity)), outputs, **attributes))
    weights = {"w": [[1.0, -2.0], [0.5, 3.0]], "s": draw(st.lists(st.integers(-2, 4), min_size=1, max_size=3))}
    shape = draw(st.sampled_from([(1, 2), (2, 2), (1, 1, 4), ("N", 2), (0, 2), ("N", "M")]))
    opset = draw(st.sampled_from([5, 7, 9, 13, 17, 22, 30]))
    return make(nodes, weights, shape=shape, opset=opset, outputs=draw(st.sampled_from([("y",), ("a", "y"), ("x",)])))


@settings(max_examples=150)
@given(graphs())
def test_graphs_without_a_thought(model: Any) -> None:
    outcome = oracle.judge(model.SerializeToString())
    assert outcome.verdict != "failure", outcome.what
