"""Every import is compared with a run of the file: a network that was read wrongly must not get further.

The file is run by onnxruntime where that is installed, in its own precision (single or double). What rounding can do
there is estimated by evaluating the network again with errors of that size put in at every operation. Where the
difference is larger, or the precision another, the file is run with all its numbers in double precision, by onnxruntime
or else by onnx.reference, and that decides.

A runtime is foreign code, which a file can crash although all that it gets are operators that were understood and
tensors that were counted. So files are run in a process of its own with limits on time and memory. Only for models that
this program has made itself, and small ones, would that cost more than it is worth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod, sqrt
from typing import Any

import numpy as np
import onnx
import scipy.sparse as sp
from onnx import TensorProto, numpy_helper

from lipmodel.errors import Reason, RefusedInput
from lipmodel.network.conv import Conv, Pool
from lipmodel.network.graph import Network
from lipmodel.network.guard_process import limited
from lipmodel.network.linear import Composition, Dense, Diagonal, LinearMap, Selection, Sparse, Sum, Transposed
from lipmodel.network.onnx_activations import OWN_DOMAIN
from lipmodel.network.onnx_file import FLOAT_TYPES, OnnxFile, constant_key, decode
from lipmodel.network.onnx_nodes import is_standard
from lipmodel.network.ops import Add, Elementwise, Grouped, Input, Linear, Op

Array = np.ndarray[Any, Any]
Runner = Callable[[Mapping[str, Array]], Array]

SCALES = (1.0, 2.0**-4, 2.0**5)
"""The standard deviations of the random inputs."""
_DTYPES = {TensorProto.DOUBLE: np.float64, TensorProto.FLOAT: np.float32}
"""The types that a file is run in as they are; a run in half precision would tell too little."""
SMALL = 5 * 10**6
"""Entries of all tensors, computed or constant, up to which onnxruntime runs own models in this process."""
SLIGHT = 2 * 10**4
"""The same for onnx.reference."""
QUICK = 5 * 10**8
"""Products of one evaluation up to which it is made in this process."""
_DOUBLE_ROUNDOFF = 2.0**-42
"""Room for approximations of transcendental functions in runtimes."""


_SINGLE = frozenset({"Erf", "Gelu", "GeluTanh", "HardSwish"})
"""Activations that double precision runs still round to float32: onnx.reference the values of erf, function bodies of
ONNX their constants."""


_STASHING = {"LayerNormalization": 17, "GroupNormalization": 21, "RMSNormalization": 23}
"""Operators with an attribute for the precision of their sums, and the operator sets from which they have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Precision:
    roundoff: float
    smallest: float


def check_against_runtime(
    network: Network,
    file: OnnxFile,
    *,
    inputs: Mapping[str, tuple[int, ...]],
    chosen: Sequence[str],
    outputs: Sequence[str],
    order: Sequence[int],
) -> None:
    """Compare a network with runs of the file that it was read from, on random inputs.

    inputs: the shapes of the graph inputs; chosen, outputs: those that are the input and output of the network, in
    order; order: the nodes that it was read from. Raises RefusedInput (check) where they disagree, or where nothing can
    run the file.
    """
    entries = file.constants.stored + file.constants.folded + sum(network.size(node) for node in network.graph)
    products = sum(op.map.entries for _, op in network.graph.nodes(data="op") if isinstance(op, Linear))
    here = not file.foreign and entries <= SMALL and products <= QUICK

    def compare() -> Reason | None:
        within = limited if here and entries > SLIGHT else _here
        return _disagreement(network, file, inputs, chosen, outputs, order, within)

    reason = compare() if here else limited(compare)
    if reason is not None:
        raise RefusedInput(file.label, [reason])


def _here(call: Callable[[], Reason | None]) -> Reason | None:
    return call()


def _disagreement(
    network: Network,
    file: OnnxFile,
    inputs: Mapping[str, tuple[int, ...]],
    chosen: Sequence[str],
    outputs: Sequence[str],
    order: Sequence[int],
    within: Callable[[Callable[[], Reason | None]], Reason | None],
) -> Reason | None:
    """What is wrong, or None; onnx.reference is called by `within`."""
    model = part_of(file, outputs=outputs, order=order)
    if any(node.domain == OWN_DOMAIN for node in model.graph.node):
        return None  # what these operators mean is defined here alone
    used = {i.name for i in model.graph.input}
    shapes = {name: shape for name, shape in inputs.items() if name in used}
    types = _float_types(model)
    failures: list[str] = []
    runs: list[tuple[str, Runner, _Precision]] = []
    if types <= _DTYPES.keys():
        single = TensorProto.FLOAT in types
        coarse = _Precision(roundoff=2.0**-24 if single else 2.0**-53, smallest=2.0**-126 if single else 2.0**-1022)
        _try(failures, runs, "onnxruntime", coarse, lambda: _onnxruntime(model))
    scales = SCALES[:1] if _is_large(network) else SCALES
    samples = [_sample(network, inputs, chosen, scale) for scale in scales]
    if _compare(network, samples, shapes, runs, failures) is None:
        return None
    fine = _Precision(roundoff=_DOUBLE_ROUNDOFF, smallest=2.0**-1000)
    wide = widened(model, file)
    runs = []
    _try(failures, runs, "onnxruntime in double precision", fine, lambda: _onnxruntime(wide))
    if _compare(network, samples, shapes, runs, failures) is None:
        return None
    runs = []
    _try(failures, runs, "onnx.reference in double precision", fine, lambda: _reference(wide))
    return within(lambda: _compare(network, samples, shapes, runs, failures))


def _is_large(network: Network) -> bool:
    """Whether one random input, evaluated twice, has to do."""
    return sum(network.size(node) for node in network.graph) > 3 * 10**6


def _try(
    failures: list[str],
    runs: list[tuple[str, Runner, _Precision]],
    name: str,
    precision: _Precision,
    make: Callable[[], Runner | None],
) -> None:
    try:
        runner = make()
    except Exception as error:  # a runtime may fail in any way, and then cannot judge
        failures.append(f"{name}: {_first_line(error)}")
        return
    if runner is not None:
        runs.append((name, runner, precision))


def _compare(
    network: Network,
    samples: list[tuple[Array, dict[str, Array]]],
    shapes: Mapping[str, tuple[int, ...]],
    runs: list[tuple[str, Runner, _Precision]],
    failures: list[str],
) -> Reason | None:
    """What is wrong, or None where a run agrees on every input."""
    for name, run, precision in runs:
        compared = 0
        # roots and logarithms may have values at positive inputs only
        moduli = [(np.abs(x), {key: np.abs(t) for key, t in tensors.items()}) for x, tensors in samples]
        for number, (x, tensors) in enumerate([*samples, *moduli]):
            if compared and number >= len(samples):
                return None
            try:
                y = run({key: tensors[key].reshape(shape) for key, shape in shapes.items()})
            except Exception as error:  # a runtime may fail in any way, and then cannot judge
                failures.append(f"{name}: {_first_line(error)}")
                break
            with np.errstate(all="ignore"):
                ours, tolerance = _with_tolerance(network, x, precision)
                if not np.all(np.isfinite(ours)):
                    continue
                compared += 1
                if y.shape != ours.shape:
                    return _reason(f"run by {name}, the file gives {y.size} outputs, and this reading {ours.size}")
                wrong = ~(np.abs(y - ours) <= tolerance)
            if np.any(wrong):
                i = int(np.flatnonzero(wrong)[0])
                return _reason(f"run by {name}, the file gives {y[i]:.17g} in output {i}, this reading {ours[i]:.17g}")
        else:
            return None if compared else _reason("its values overflow on all inputs that were tried")
    return _reason("no runtime can run the file: " + ("; ".join(failures) or "none is installed"))


def _reason(message: str) -> Reason:
    hint = "the import can be had without this comparison: check=False"
    return Reason(kind="check", where="", message=message, hint=hint)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _sample(
    network: Network, inputs: Mapping[str, tuple[int, ...]], chosen: Sequence[str], scale: float
) -> tuple[Array, dict[str, Array]]:
    """A random input that every floating type holds exactly, and the graph inputs that it stands for."""
    rng = np.random.default_rng(20240501)
    x = rng.standard_normal(network.input_size).astype(np.float16).astype(np.float64) * scale
    tensors = {name: np.zeros(prod(shape)) for name, shape in inputs.items()}
    start = 0
    for name in chosen:
        size = prod(inputs[name])
        tensors[name] = x[start : start + size]
        start += size
    return x, tensors


def _with_tolerance(network: Network, x: Array, precision: _Precision) -> tuple[Array, Array]:
    """The output at x, and how far rounding errors of some precision are likely to move it, per entry."""
    plan = network.plan()
    pending = Counter(u for _, _, arguments in plan for u in arguments)
    rng = np.random.default_rng(7)
    runs = 1 if _is_large(network) else 4
    exact: dict[str, Array] = {}
    noisy: dict[str, Array] = {}
    for node, op, arguments in plan:
        inputs = [exact[u] for u in arguments]
        entry = isinstance(op, Input)
        exact[node] = x if entry else op.evaluate(inputs)
        size = _error_size(op, exact[node], inputs, precision)
        noise = size[:, None] * rng.uniform(-1.0, 1.0, (len(size), runs))
        moved = exact[node] if entry else op.evaluate([noisy[u] for u in arguments])
        noisy[node] = (moved if moved.ndim == 2 else moved[:, None]) + noise
        for u in arguments:
            pending[u] -= 1
            if pending[u] == 0 and u != network.output:
                del exact[u], noisy[u]
    y = exact[network.output]
    spread = np.max(np.abs(noisy[network.output] - y[:, None]), axis=1, initial=0.0)
    floor = 8.0 * (precision.roundoff * np.max(np.abs(y), initial=0.0) + precision.smallest)
    return y, 12.0 * spread + floor


def _error_size(op: Op, value: Array, inputs: Sequence[Array], precision: _Precision) -> Array:
    """The likely size of the rounding error of one operation, from the sum of the moduli of its terms."""
    size, arguments = np.abs(value), [np.abs(v) for v in inputs]
    growth = 2.0
    if isinstance(op, Linear):
        size = _modulus(op.map).matvec(arguments[0]) + (0.0 if op.bias is None else np.abs(op.bias))
        growth = 2.0 + sqrt(op.map.entries / max(1, op.map.shape[0]))
    elif isinstance(op, Add):
        size = np.asarray(sum(arguments))
    elif isinstance(op, Elementwise):
        # Runtimes approximate smooth functions to an absolute accuracy near 1, not a relative one near 0.
        for part in op.parts:
            if not part.activation.piecewise_linear:
                size[part.index] += 1.0 + arguments[0][part.index]
            if part.activation.name in _SINGLE:
                size[part.index] *= max(1.0, 2.0**-24 / precision.roundoff)
    elif isinstance(op, Grouped):
        # what errors of the arguments, relative to the largest of a group, turn into: means and sums cancel
        top = np.empty(op.size)
        top[op.groups] = np.max(arguments[0][op.groups], axis=1, keepdims=True)
        signs = np.random.default_rng(3).choice([-1.0, 1.0], (op.size, 4))
        spread = op.apply(op.function.tangent, inputs[0][:, None], top[:, None] * signs)
        size = size + 1.0 + np.max(np.abs(spread), axis=1)
    return growth * precision.roundoff * size + precision.smallest


def _modulus(map: LinearMap) -> LinearMap:
    """A map with entries at least the moduli of a map's, of the same structure."""
    if isinstance(map, Dense):
        return Dense(weights=np.abs(map.weights))
    if isinstance(map, Sparse):
        return Sparse(weights=abs(map.weights))
    if isinstance(map, Conv):
        return replace(map, kernel=np.abs(map.kernel), radius=None)
    if isinstance(map, Transposed):
        return Transposed(map=_modulus(map.map))
    if isinstance(map, Composition):
        return Composition(factors=tuple(_modulus(f) for f in map.factors))
    if isinstance(map, Sum):
        return Sum(terms=tuple(_modulus(t) for t in map.terms))
    if isinstance(map, Diagonal):
        return Diagonal(values=np.abs(map.values))
    return map if isinstance(map, (Selection, Pool)) else _expanded_modulus(map)


def _expanded_modulus(map: LinearMap) -> LinearMap:
    center: Any = map.enclosure().center
    return Sparse(weights=abs(sp.csr_array(center))) if sp.issparse(center) else Dense(weights=np.abs(center))


def part_of(file: OnnxFile, *, outputs: Sequence[str], order: Sequence[int]) -> Any:
    """The model with only the nodes in `order` and these outputs, its external data inside."""
    graph = file.model.graph
    part = onnx.ModelProto()
    part.ir_version = file.model.ir_version
    part.opset_import.extend(file.model.opset_import)
    part.graph.name = graph.name or "graph"
    part.graph.node.extend(graph.node[i] for i in order)
    used = {name for i in order for name in graph.node[i].input} | set(outputs)
    weights = [t for t in graph.initializer if t.name in used]
    part.graph.initializer.extend(weights)
    names = {t.name for t in weights}
    part.graph.input.extend(i for i in graph.input if i.name in used and i.name not in names)
    declared = {o.name: o for o in graph.output}
    part.graph.output.extend(declared[name] for name in outputs)
    for tensor in part.graph.initializer:
        _inline(tensor, tensor.name, file)
    for node in part.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _inline(attribute.t, constant_key(node.output[0]), file)
    return part


def _inline(tensor: Any, key: str, file: OnnxFile) -> None:
    if tensor.data_location == TensorProto.EXTERNAL:
        tensor.raw_data = file.external[key]
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def widened(model: Any, file: OnnxFile) -> Any:
    """The model with every floating-point number and type in double precision."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for info in (*wide.graph.input, *wide.graph.output):
        if info.type.tensor_type.elem_type in FLOAT_TYPES:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in wide.graph.initializer:
        _widen(tensor, file)
    opset = max((e.version for e in wide.opset_import if is_standard(e.domain)), default=0)
    for node in wide.graph.node:
        if opset >= _STASHING.get(node.op_type, opset + 1):
            # the precision of its sums, single by default
            kept = [attribute for attribute in node.attribute if attribute.name != "stash_type"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("stash_type", TensorProto.DOUBLE)])
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t, file)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOAT_TYPES:
                attribute.i = TensorProto.DOUBLE
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                numbers = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                tensor = numpy_helper.from_array(np.array(numbers, dtype=np.float64))
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
    return wide


def _widen(tensor: Any, file: OnnxFile) -> None:
    if tensor.data_type in FLOAT_TYPES:
        tensor.CopyFrom(numpy_helper.from_array(decode(tensor, file, tensor.name), tensor.name))


def _float_types(model: Any) -> set[int]:
    types = {t.data_type for t in model.graph.initializer}
    types |= {i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)}
    types |= {a.t.data_type for node in model.graph.node for a in node.attribute if a.HasField("t")}
    return types & set(FLOAT_TYPES)


def _onnxruntime(model: Any) -> Runner | None:
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = 4
    dtypes = {i.name: _DTYPES[i.type.tensor_type.elem_type] for i in model.graph.input}
    names = [o.name for o in model.graph.output]

    def run(tensors: Mapping[str, Array]) -> Array:
        feeds = {name: tensor.astype(dtypes[name]) for name, tensor in tensors.items()}
        return _flat(session.run(names, feeds, quiet))

    return run


def _reference(model: Any) -> Runner:
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class BatchNormalization(OpRun):  # type: ignore[misc]
        """For inference; onnx.reference takes operator sets 9 to 13 for training."""

        op_domain = ""

        def _run(self, x: Array, s: Array, b: Array, m: Array, v: Array, epsilon: float, **_: Any) -> tuple[Array]:
            scale, shift, mean, variance = (a.reshape(-1, *[1] * (x.ndim - 2)) for a in (s, b, m, v))
            return (scale * (x - mean) / np.sqrt(variance + epsilon) + shift,)

    evaluator = ReferenceEvaluator(model, new_ops=[BatchNormalization])
    names = [o.name for o in model.graph.output]

    def run(tensors: Mapping[str, Array]) -> Array:
        with np.errstate(all="ignore"):
            return _flat(evaluator.run(names, dict(tensors)))

    return run


def _flat(results: Sequence[Any]) -> Array:
    return np.concatenate([np.asarray(r, dtype=np.float64).ravel() for r in results])
