"""Small files that would become large, and foreign code that stalls: refused in bounded time and memory."""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx_models import make, single

from lipmodel.errors import Reason, RefusedInput
from lipmodel.machine import CAN_FORK
from lipmodel.network import check, guard_process, onnx_file, onnx_import, onnx_ops
from lipmodel.network.onnx_import import load

node = helper.make_node


def kinds(model: Any) -> dict[str, str]:
    """kind -> message."""
    with pytest.raises(RefusedInput) as error:
        load(model)
    return {reason.kind: reason.message for reason in error.value.reasons}


def constants(*nodes: Any, shape: Any = (1, 1), **weights: Any) -> Any:
    """A model of constants, whose last one, c, is added to the input."""
    return make([*nodes, node("Add", ["x", "c"], ["y"])], {k: np.array(v) for k, v in weights.items()}, shape=shape)


def chain(op: str, count: int, first: str, last: str, **attributes: Any) -> list[Any]:
    names = [first, *(f"{last}{k}" for k in range(count - 1)), last]
    return [node(op, [a], [b], **attributes) for a, b in pairwise(names)]


BOMBS: dict[str, tuple[str, Any]] = {
    "power of integers": ("dtype", lambda: constants(node("Pow", ["a", "b"], ["c"]), a=3, b=10**12)),
    "negative power": ("dtype", lambda: constants(node("Pow", ["a", "b"], ["c"]), a=3, b=-1)),
    "constants again and again": (
        "size-limit",
        lambda: constants(node("ConstantOfShape", ["s"], ["b"]), *chain("Neg", 20, "b", "c"), s=[10**5]),
    ),
    "functions again and again": (
        "size-limit",
        lambda: constants(node("ConstantOfShape", ["s"], ["b"]), *chain("Sqrt", 20, "b", "c"), s=[10**3]),
    ),
    "resized axis": (
        "size-limit",
        lambda: single("Resize", {"r": np.zeros(0), "s": np.array([1.0, 1e6])}, shape=(1, 2), mode="nearest"),
    ),
    "tiles": ("size-limit", lambda: single("Tile", {"r": np.array([10**6, 10**6])})),
    "average of wide windows": (
        "size-limit",
        lambda: single("AveragePool", shape=(1, 1, 3000, 3000), kernel_shape=[1500, 1500]),
    ),
    "maximum of wide windows": (
        "size-limit",
        lambda: single("MaxPool", shape=(1, 1, 1000, 1000), kernel_shape=[100, 100]),
    ),
    "long window": ("size-limit", lambda: single("AveragePool", shape=(1, 1, 60_000), kernel_shape=[30_000])),
    "many computed tensors": (
        "size-limit",
        lambda: make(chain("Relu", 40, "x", "y"), shape=(1, 10**5)),
    ),
}


BOMBS |= {
    "dimensions of an input": ("size-limit", lambda: single("Relu", shape=(1,) * 100)),
    "dimensions of a weight": ("size-limit", lambda: single("Add", {"c": np.ones((1,) * 33)})),
    "dimensions of a result": ("size-limit", lambda: single("Reshape", {"s": np.ones(100, dtype=int)}, shape=(1, 1))),
    "padding of nothing": ("shape", lambda: single("Pad", {"p": np.array([-1, 2**60, 0, 0])}, shape=(1, 4))),
    "dimensions of an expansion": ("shape", lambda: single("Expand", {"s": np.ones(100, dtype=int)})),
}


@pytest.mark.parametrize("case", BOMBS)
def test_small_files_that_would_become_large(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_FOLDED", 10**6)
    monkeypatch.setattr(onnx_ops, "MAX_COMPUTED", 3 * 10**6)
    kind, build = BOMBS[case]
    assert kind in kinds(build())


def test_stored_tensors_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(
        [node("Gemm", ["x", "w"], ["a"]), node("Gemm", ["a", "v"], ["y"])], {"w": np.ones((4, 4)), "v": np.ones((4, 4))}
    )
    monkeypatch.setattr(onnx_file, "MAX_UNPACKED", 32)
    load(model)
    monkeypatch.setattr(onnx_file, "MAX_UNPACKED", 31)
    assert "32 entries" in kinds(model)["size-limit"]


def test_reading_ends_at_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_import, "PATIENCE", -1.0)
    assert "computing" in kinds(single("Relu"))["size-limit"]


def test_a_handler_that_breaks_off_is_no_bare_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(node: Any) -> Any:
        raise KeyError("a bug")

    monkeypatch.setitem(onnx_ops.OPERATORS, ("Relu", ""), broken)
    assert "KeyError: 'a bug'" in kinds(single("Relu"))["operator"]


@pytest.mark.parametrize("axes", [[0], None])
def test_sums_of_integers(axes: list[int] | None) -> None:
    """Over all axes too, where numpy gives a number and no array."""
    weights = {"s": np.array([1, 3])} | ({"a": np.array(axes)} if axes else {})
    total = node("ReduceSum", list(weights), ["n"], keepdims=0)
    nodes = [total, node("Unsqueeze", ["n", "zero"], ["t"]), node("Reshape", ["x", "t"], ["y"])]
    assert load(make(nodes, weights | {"zero": np.array([0])}, shape=(1, 4))).output_shape == (4,)


def slow() -> None:
    time.sleep(30.0)


@pytest.mark.skipif(not CAN_FORK, reason="processes cannot be forked here")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (slow, "not done"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "crashed"),
        (lambda: bytearray(1 << 62), "failed"),
    ],
)
def test_foreign_code_that_stalls_crashes_or_fails(call: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_process, "PATIENCE", 0.5 if call is slow else 30.0)
    reason = guard_process.limited(call)
    assert reason is not None
    assert reason.kind == "check"
    assert words in reason.message


@pytest.mark.skipif(not CAN_FORK, reason="processes cannot be forked here")
def test_a_runtime_that_crashes_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_onnxruntime", lambda model: lambda tensors: os.kill(os.getpid(), signal.SIGKILL))
    assert "crashed" in kinds(single("Relu").SerializeToString())["check"]


def test_files_and_large_networks_are_compared_in_a_process_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = single("Gemm", {"w": np.ones((4, 3))})
    calls = []
    monkeypatch.setattr(check, "limited", lambda call: calls.append(1) or call())
    load(model)
    assert not calls
    load(model.SerializeToString())
    assert calls == [1]  # somebody else's file
    monkeypatch.setattr(check, "SMALL", 5)
    load(model)
    assert calls == [1, 1]
    monkeypatch.setattr(check, "_disagreement", lambda *a: Reason(kind="check", where="", message="not the same"))
    assert kinds(model) == {"check": "not the same"}
