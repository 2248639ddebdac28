"""What may come of a file: a refusal with reasons, or a network that computes what the file says. Nothing else."""

from __future__ import annotations

import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from lipmodel.errors import RefusedInput
from lipmodel.network import check
from lipmodel.network.graph import Network
from lipmodel.network.onnx_file import read
from lipmodel.network.onnx_import import load

KINDS = {"file-format", "opset", "operator", "function", "control-flow", "graph", "inputs", "outputs", "shape", "dtype"}
KINDS |= {"attribute", "tensor-encoding", "external-data", "size-limit", "non-finite", "stochastic", "non-lipschitz"}
KINDS |= {"check"}
_TYPES = {TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """verdict: "refused", "disagreed" (refused as a run gave something else: one of the two readings is wrong),
    "accepted" (and compared), "overflow" (accepted, nothing finite to compare), "no runtime" (accepted, but the runtime
    refuses the file as a whole) or "failure"; what: kinds of reasons, or what is wrong.
    """

    verdict: str
    what: str = ""


def judge(content: bytes) -> Outcome:
    """Read a file; where it is accepted, run the whole of it with onnxruntime and compare."""
    try:
        network = load(content)
    except RefusedInput as refusal:
        if refusal.__cause__ is not None and "defect" in str(refusal):
            return _broken(refusal.__cause__)
        if "crashed" in str(refusal) or "is not done after" in str(refusal):
            return Outcome(verdict="failure", what=str(refusal))
        apart = [reason.message for reason in refusal.reasons if "the file gives" in reason.message]
        if apart:
            return Outcome(verdict="disagreed", what=apart[0])
        kinds = sorted({reason.kind for reason in refusal.reasons})
        return Outcome(verdict="refused" if kinds and KINDS.issuperset(kinds) else "failure", what=" ".join(kinds))
    except Exception as error:
        return _broken(error)
    return compared(network, content)


def _broken(error: BaseException) -> Outcome:
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
    return Outcome(verdict="failure", what=f"{type(error).__name__} at {place}: {error}"[:300])


def compared(network: Network, content: bytes) -> Outcome:
    """An accepted network against a run of the unchanged file."""
    model = onnx.ModelProto()
    model.ParseFromString(content)
    (entry,) = network.source.graph_inputs
    info = next(i for i in model.graph.input if i.name == entry.name)
    dtype = _TYPES.get(info.type.tensor_type.elem_type)
    if dtype is None:
        return Outcome(verdict="no runtime", what="type of the input")
    try:
        session = _session(content)
        runs = [(x, session.run(None, {info.name: x.reshape(network.input_shape)})) for x in _inputs(network, dtype)]
    except Exception as error:
        return Outcome(verdict="no runtime", what=str(error).splitlines()[0][:120] if str(error) else "")
    finite, limit = 0, float(np.finfo(np.float16 if dtype == np.float16 else np.float32).max) / 16
    for x, (found,) in runs:
        with np.errstate(all="ignore"):
            values = network.values(x.astype(np.float64), keep=None)
            ours = values[network.output]
            wanted = np.asarray(found, dtype=np.float64).ravel()
            if wanted.shape != ours.shape:
                return Outcome(verdict="failure", what=f"{wanted.size} outputs, read as {ours.size}")
            if any(not np.all(np.abs(v) < limit) for v in (wanted, *values.values())):
                continue
            finite += 1
            if not _agree(network, x, ours, wanted, dtype) and not _agrees_in_double(
                network, content, info.name, x, ours
            ):
                worst = int(np.argmax(np.abs(ours - wanted)))
                return Outcome(verdict="failure", what=f"output {worst} is {wanted[worst]!r}, read as {ours[worst]!r}")
    return Outcome(verdict="accepted" if finite else "overflow")


def _agree(network: Network, x: Any, ours: Any, wanted: Any, dtype: Any) -> bool:
    """Whether two results differ by rounding alone: at first sight, else by what rounding does to this network."""
    gap = np.abs(ours - wanted)
    roundoff = float(np.finfo(dtype).eps) / 2
    if np.all(gap <= 64 * roundoff * (1e-3 + np.abs(ours))):
        return True
    # runtimes round inside operators to single precision even where their tensors are double
    precision = check._Precision(roundoff=max(roundoff, 2.0**-24), smallest=2.0**-126)
    _, tolerance = check._with_tolerance(network, x.astype(np.float64), precision)
    return bool(np.all(gap <= 4 * tolerance))


def _agrees_in_double(network: Network, content: bytes, name: str, x: Any, ours: Any) -> bool:
    """Whether the file gives the same with all numbers in double precision: constants alone may overflow in single."""
    file = read(content)
    wide = check.widened(file.model, file)
    tensors = {name: x.astype(np.float64).reshape(network.input_shape)}
    for make in (check._onnxruntime, check._reference):
        with suppress(Exception):  # a runtime may not know an operator in double precision
            found = make(wide)(tensors)
            return bool(np.allclose(found, ours, rtol=1e-6, atol=1e-9 * float(np.max(np.abs(ours), initial=0.0))))
    return False


def _inputs(network: Network, dtype: Any) -> list[Any]:
    rng = np.random.default_rng(1)
    scales = (1.0, 8.0) if network.input_size < 10**6 else (1.0,)
    return [(scale * rng.standard_normal(network.input_size)).astype(np.float16).astype(dtype) for scale in scales]


def _session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
