"""Every operator that the importer takes, in its variants: the checker reads the same exact system by itself."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.defs import SchemaError, get_schema
from onnx_models import make
from operator_cases import CASES, DENSE, FOLDED, IMAGES, KERNEL, NORMAL, SCALARS, alone, node

import lipmodel as lm
from lipmodel.activations import register
from lipmodel.certify import operators_max, reader
from lipmodel.certify.evaluation import doubles, evaluate
from lipmodel.certify.operands import integers
from lipmodel.certify.operators import OPERATORS
from lipmodel.certify.operators_folding import BALLS, COMPARISONS, LOGIC
from lipmodel.certify.source import READER, Source, source_of
from lipmodel.certify.tape import Unreadable
from lipmodel.network import onnx_activations, onnx_ops
from lipmodel.network.constants import Enclosed, multiply
from lipmodel.network.increments import increments
from lipmodel.network.onnx_arithmetic import scaled
from lipmodel.spec import Spec


def model(case, opset=22):
    """The model of a case."""
    nodes, weights, shape = case
    arrays = {key: np.asarray(value) for key, value in weights.items()}
    return make(nodes, arrays, shape=shape, opset=opset)


def fits(case, opset) -> bool:
    """Whether all operators exist in an operator set, with these attributes and numbers of inputs and outputs."""
    for n in case[0]:
        try:
            schema = get_schema(n.op_type, opset, "")
        except SchemaError:
            return False
        if n.op_type not in {op for op, _ in onnx_ops.OPERATORS} or n.op_type not in OPERATORS:
            return False
        if not {a.name for a in n.attribute} <= schema.attributes.keys() or schema.deprecated:
            return False
        if not (schema.min_input <= len(n.input) <= schema.max_input and len(n.output) <= schema.max_output):
            return False
    return True


def sources(network) -> Source:
    source = source_of(network, Spec())
    assert not source.why, source.why
    return source


def assert_same(network, points=3, rtol=1e-9) -> None:
    """The same system, entry by entry, and the same values."""
    source, system = sources(network), increments(network)
    source.compare(system, None, None)
    rng = np.random.default_rng(1)
    for _ in range(points):
        x = rng.standard_normal(network.input_size)
        found = evaluate(source.reading.tape, doubles(x.tolist()))[source.reading.output]
        own = np.array([float(sum(map(Fraction, found.ends(i))) / 2) for i in range(network.output_size)])
        other = network.evaluate(x).ravel()
        np.testing.assert_allclose(own, other, rtol=rtol, atol=rtol * (1 + np.abs(other).max()))


ALL = {**CASES, **{f"folded-{name}": case for name, case in FOLDED.items()}}
NEWEST = {name: next((k for k in (22, 20, 17, 12, 10, 9) if fits(case, k)), 0) for name, case in ALL.items()}
ALL = {name: case for name, case in ALL.items() if NEWEST[name]}


ELSEWHERE = {"Exp", "Pow", *BALLS, *operators_max.OPERATORS}
"""Operators whose tests are in another file, or that need a bounded domain."""


def test_every_operator_that_is_read_is_among_the_cases():
    imported = {op for op, domain in onnx_ops.OPERATORS if not domain}
    assert {n.op_type for nodes, _, _ in ALL.values() for n in nodes} >= (OPERATORS.keys() & imported) - ELSEWHERE


@pytest.mark.parametrize("name", ALL)
def test_operators(name):
    nowhere = name.startswith("ConvTranspose") or name in ("AveragePool-ceil-lower", "Upsample-input")  # in no runtime
    assert_same(lm.load(model(ALL[name], NEWEST[name]), check=not nowhere))


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 13, 14, 18, 19, 23])
def test_operator_sets(opset):
    compared = 0
    for case in ALL.values():
        if fits(case, opset):
            try:
                network = lm.load(model(case, opset), check=False)
            except lm.RefusedInput:
                continue
            assert_same(network, points=1)
            compared += 1
    assert compared > 50


def test_whole_powers_of_constants():
    nodes = [node("Pow", ["a", "e"], ["c"]), node("Mul", ["x", "c"])]
    found = read(make(nodes, {"a": np.array([3.0, 0.5, -1.5]), "e": np.array([2.0, -3.0, 3.0])}, shape=(3,)))
    y = evaluate(found.tape, doubles([1.0, 1.0, 1.0]))[found.output]
    assert [y.ends(i) for i in range(3)] == [(9, 9), (8, 8), (Fraction(-27, 8), Fraction(-27, 8))]


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_of_operator_set_10(mode):
    case = alone("Resize", {"s": np.array([1.0, 1.0, 2.5, 0.5])}, (1, 2, 3, 4), mode=mode)
    assert_same(lm.load(model(case, 10), check=False))


# ---------------------------------------------------------------------------------------------------------- random nets


class Random:
    """A random graph on images of doubles under construction: the current tensor, its shape, nodes and weights."""

    def __init__(self, rng) -> None:
        self.rng, self.shape, self.name = (
            rng,
            (int(rng.integers(1, 3)), int(rng.integers(1, 4)), *map(int, rng.integers(3, 6, 2))),
            "x",
        )
        self.input, self.nodes, self.weights = self.shape, [], {}

    def weight(self, values) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def numbers(self, *shape) -> str:
        return self.weight(np.round(self.rng.standard_normal(shape), 2) + 0.25)

    def add(self, op, *more, shape=None, first=True, **attributes) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(node(op, [self.name, *more] if first else more, [name], **attributes))
        self.name, self.shape = name, shape or self.shape
        return name

    def pick(self, *choices):
        return choices[int(self.rng.integers(len(choices)))]

    def windows(self, taps) -> tuple[dict, tuple[int, ...]]:
        pads, strides = self.rng.integers(0, 2, 4).tolist(), self.rng.integers(1, 3, 2).tolist()
        n = [
            (d + p + q - k) // s + 1
            for d, p, q, k, s in zip(self.shape[2:], pads[:2], pads[2:], taps, strides, strict=True)
        ]
        return {"pads": pads, "strides": strides}, tuple(n)

    def step(self) -> None:
        b, c, h, w = self.shape
        kind, taps = int(self.rng.integers(10)), self.rng.integers(1, 3, 2).tolist()
        if kind == 0:
            geometry, output = self.windows(taps)
            out = int(self.rng.integers(1, 4))
            self.add("Conv", self.numbers(out, c, *taps), self.numbers(out), shape=(b, out, *output), **geometry)
        elif kind == 1:
            geometry, output = self.windows([2, 2])
            included = int(self.rng.integers(2))
            self.add("AveragePool", shape=(b, c, *output), kernel_shape=[2, 2], count_include_pad=included, **geometry)
        elif kind == 2:
            spread = self.weight(self.rng.random(c) + 0.1)
            self.add("BatchNormalization", *(self.numbers(c) for _ in range(3)), spread)
        elif kind == 3:
            self.add("Transpose", perm=[0, 1, 3, 2], shape=(b, c, w, h))
        elif kind == 4:
            index = self.rng.integers(-h, h, h)
            self.add("Gather", self.weight(index), axis=2)
        elif kind == 5:
            before = self.name
            self.add(self.pick("Tanh", "Relu", "Gelu", "Abs", "HardSwish"))
            self.add(self.pick("Add", "Sub"), before)
        elif kind == 6:
            self.add(self.pick("Mul", "Div", "Add", "Sub"), self.numbers(c, 1, 1))
        elif kind == 7:
            self.add(self.pick("Concat"), self.name, axis=1, shape=(b, 2 * c, h, w)) if c < 4 else self.add("Neg")
        elif kind == 8:
            held, a, n = self.name, self.numbers(c, 1, 1), self.numbers(1)
            folded = self.add(self.pick("Div", "Add", "Mul"), a, n, first=False)
            self.name = held
            self.add("Mul", folded)
        else:
            self.add("PRelu", self.numbers(c, 1, 1))

    def model(self):
        self.add(self.pick(*SCALARS.keys() - {"ThresholdedRelu", "Shrink"}))
        self.add("Flatten", shape=(self.shape[0], int(np.prod(self.shape[1:]))))
        self.add("Gemm", self.numbers(2, self.shape[1]), self.numbers(2), transB=1, shape=(self.shape[0], 2))
        self.nodes[-1].output[0] = "y"
        return make(self.nodes, self.weights, shape=self.input, opset=20)


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed):
    graph = Random(np.random.default_rng(seed))
    for _ in range(int(graph.rng.integers(2, 7))):
        graph.step()
    network = lm.load(graph.model(), check=False)
    assert_same(network, points=2, rtol=1e-7)


# -------------------------------------------------------------------------------------------------- types and encodings


def encoded(values, kind, field=None):
    """A tensor of an element type, its data in a field instead of bytes where one is named."""
    proto = helper.make_tensor("c", kind, values.shape, values.ravel().tolist())
    if field is None:
        proto = numpy_helper.from_array(numpy_helper.to_array(proto), "c")
        assert proto.HasField("raw_data")
    return proto


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"])
def test_floating_types_of_weights(kind, raw):
    number = getattr(TensorProto, kind)
    weights = encoded(np.array([[0.5, -1.3], [3.0, 1e-7]]), number, None if raw else "field")
    graph = helper.make_graph(
        [node("MatMul", ["x", "c"])],
        "test",
        [helper.make_tensor_value_info("x", number, (1, 2))],
        [helper.make_tensor_value_info("y", number, (1, 2))],
        [weights],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert_same(lm.load(content, check=False))


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("kind", ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL"])
def test_whole_types_of_constants(kind, raw):
    values = np.array([[1, 0, 1]]) if kind == "BOOL" else np.array([[3, 0, 100 if kind[0] == "U" else -100]])
    nodes = [node("Cast", ["c"], ["d"], to=TensorProto.DOUBLE), node("Mul", ["x", "d"])]
    content = make(nodes, shape=(2, 3))
    content.graph.initializer.append(encoded(values, getattr(TensorProto, kind), None if raw else "field"))
    assert_same(lm.load(content, check=False))


def test_weights_in_other_files(tmp_path):
    content = make(
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"])], {"w": DENSE, "b": DENSE[0]}, shape=(2, 4)
    )
    path = tmp_path / "net.onnx"
    onnx.save_model(content, path, save_as_external_data=True, location="net.bin", size_threshold=0)
    network = lm.load(path)
    assert_same(network)
    weights = (tmp_path / "net.bin").read_bytes()
    (tmp_path / "net.bin").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert source_of(network, Spec()).why == "bytes that are not those that the importer has read"
    stored = onnx.load_model(path, load_external_data=False)
    for location in ("../net.bin", "/net.bin"):
        for tensor in stored.graph.initializer:
            tensor.external_data[0].value = location
        with pytest.raises(Unreadable, match="external data"):
            reader.read(stored.SerializeToString(), network.source.sha256, folder=tmp_path)


def test_doubles_are_taken_exactly():
    rng = np.random.default_rng(3)
    extremes = [0.0, -0.0, 1.0, -1.5, 5e-324, -3e-320, 2.0**-1022, 1.7976931348623157e308, 2.0**60, 0.1, 3.0]
    for values in (extremes, [0.0], [4.0, -64.0], rng.standard_normal(300) * 2.0 ** rng.integers(-60, 60, 300), []):
        array = np.array(values, dtype=np.float64)
        found, exponent = integers(array)
        assert [(Fraction(v, 2**exponent), r) for v, r in found] == [(Fraction(v), 0) for v in array.tolist()]
    thirds = [Fraction(1, 3), Fraction(-2, 7), Fraction(3, 4), Fraction(10**40, 3)]
    found, exponent = integers(np.array(thirds, dtype=object))
    for (v, r), exact in zip(found, thirds, strict=True):
        assert abs(Fraction(v, 2**exponent) - exact) <= Fraction(r, 2**exponent) <= abs(exact) / 2**150


def test_casts_between_floating_types():
    for kind, to, same in (
        ("FLOAT", "DOUBLE", True),
        ("FLOAT16", "FLOAT", True),
        ("BFLOAT16", "FLOAT", True),
        ("FLOAT", "FLOAT", True),
    ):
        content = make([node("Cast", ["x"], to=getattr(TensorProto, to))], shape=(2, 3))
        content.graph.input[0].type.tensor_type.elem_type = getattr(TensorProto, kind)
        assert_same(lm.load(content, check=False))
        assert same
    for kind, to in (
        ("DOUBLE", "FLOAT"),
        ("FLOAT", "FLOAT16"),
        ("FLOAT16", "BFLOAT16"),
        ("BFLOAT16", "FLOAT16"),
        ("FLOAT", "INT64"),
    ):
        content = make([node("Cast", ["x"], to=getattr(TensorProto, to))], shape=(2, 3))
        content.graph.input[0].type.tensor_type.elem_type = getattr(TensorProto, kind)
        with pytest.raises(Unreadable, match="has not all of its numbers"):
            read(content)
    for values, to in (
        (np.array(0.1), "FLOAT16"),
        (np.array(1.5), "INT64"),
        (np.array(2**53 + 1), "DOUBLE"),
        (np.array(1), "BOOL"),
    ):
        nodes = [node("Cast", ["c"], ["d"], to=getattr(TensorProto, to)), node("Mul", ["x", "d"])]
        with pytest.raises(Unreadable, match="Cast of a"):
            read(make(nodes, {"c": values}, shape=(2, 3)))


def read(content):
    data = content.SerializeToString(deterministic=True)
    return reader.read(data, hashlib.sha256(data).hexdigest())


def test_functions_of_our_own_operator_domain(tmp_path):
    weights = [np.array([[1.0, -2.0], [0.5, 3.0], [0.1, 0.7]]), np.array([[1.0, 2.0, -0.3]])]
    for number, phi in enumerate(("swish", "quickgelu", "logsigmoid", "tanhshrink", "gelu", "mish", "relu6")):
        path = tmp_path / f"{number}.onnx"
        lm.from_weights(weights, activation=phi).save(path)
        assert_same(lm.load(path))
    for name, values in (
        ("Elu", {"alpha": 0.1}),
        ("HardSigmoid", {"alpha": 0.1, "beta": 0.3}),
        ("LeakyRelu", {"alpha": 0.1}),
    ):
        path = tmp_path / f"{name}.onnx"
        lm.from_weights(weights, activation=lm.activation(name, **values)).save(path)
        assert_same(lm.load(path))
    register("Own squash", "x/sqrt(1 + x**2)")
    path = tmp_path / "own.onnx"
    lm.from_weights(weights, activation="Own squash").save(path)
    assert source_of(lm.load(path), Spec()).why == "the operator Own squash"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (([node("Dropout", ["x"], ["d", "m"]), node("Cast", ["m"], to=11)], {}, (2, 3)), "a further output"),
        (alone("Dropout", {"r": np.array(0.5), "t": np.array(True)}), "training mode"),
        (alone("Gather", {"i": np.array([4])}, (3, 4)), "entries that are not there"),
        (alone("Flatten", None, (2, 3), axis=3), "an axis that is not there"),
        (alone("MatMul", {"w": DENSE}, (4, 3)), "does not fit"),
        (alone("Div", {"c": np.array([1.0, 0.0])}, (3, 2)), "an unusual way"),
        (([node("Mul", ["x", "x"])], {}, (3, 2)), "not a constant"),
        (([node("Div", ["c", "x"])], {"c": np.array(1.0)}, (3, 2)), "not a constant"),
        (([node("MatMul", ["x", "x"])], {}, (3, 3)), "two tensors that move"),
        (([node("Add", ["x", "i"])], {"i": np.array([1, 2])}, (3, 2)), "arithmetic on integers"),
        (alone("AveragePool", None, IMAGES, kernel_shape=[9, 9]), "larger than what they slide over"),
        (alone("AveragePool", None, IMAGES, kernel_shape=[1, 1], pads=[1, 0, 0, 0]), "a window in the padding"),
        (alone("AveragePool", None, IMAGES, kernel_shape=[2, 2], pads=[-1, 0, 0, 0]), "negative padding"),
        (alone("Conv", {"w": KERNEL}, IMAGES, group=2), "does not fit"),
        (alone("BatchNormalization", {**NORMAL, "v": [0.3, -4.0]}, IMAGES), "not positive"),
        (alone("Softmax"), "the operator Softmax"),
        (alone("Gelu", approximate="other"), "another Gelu"),
    ],
)
def test_what_is_not_read(case, message):
    with pytest.raises(Unreadable, match=message):
        read(model(case, 22 if case[0][0].op_type != "Dropout" else 13))


# ------------------------------------------------------------------------------------------------- bugs of the importer


def halved(handler):
    """The handler of an operator, its floating-point results halved."""
    half = Enclosed(values=np.array(0.5))

    def wrong(node):
        result = handler(node)
        results = [result] if isinstance(result, onnx_ops.Computed | onnx_ops.Fixed) else list(result)
        found = []
        for value in results:
            if isinstance(value, onnx_ops.Fixed) and value.real is not None:
                found.append(onnx_ops.Fixed(type=value.type, real=multiply(value.real, half)))
            elif isinstance(value, onnx_ops.Computed):
                found.append(scaled(node, value, half, ".wrong"))
            else:
                found.append(value)
        return found

    return wrong


INTEGERS = ("Constant-axes", "Cast-folded", "Shape", "Size", "Integers", "Range", "Mod")
HARMLESS = {
    *("HardSigmoid-flat", "Selu-flat", "Clip-point"),  # nothing moves
    *(f"folded-{name}" for name in (*COMPARISONS, *LOGIC, *INTEGERS)),  # no floating-point result, or a refused Cast
    *(
        f"folded-{name}" for name in ("Constant-activated", "Constant-smooth", "Constant-clipped", "Clip")
    ),  # biases and limits, which do not matter on the whole space
}


@pytest.mark.parametrize("name", [name for name in ALL if name not in HARMLESS])
def test_a_handler_that_halves_its_result_is_found_out(name, monkeypatch):
    case, opset = ALL[name], NEWEST[name]
    op = case[0][0].op_type
    monkeypatch.setitem(onnx_ops.OPERATORS, (op, ""), halved(onnx_ops.OPERATORS[op, ""]))
    network = lm.load(model(case, opset), check=False)
    with pytest.raises(lm.Refuted, match="the independent reader and the importer disagree about the network"):
        sources(network).compare(increments(network), None, None)


CURVED = [
    name for name in CASES if CASES[name][0][0].op_type in (*SCALARS, "PRelu", "Clip") and name != "Clip-defaults"
]


@pytest.mark.parametrize("name", CURVED)
def test_slopes_that_are_too_narrow_are_found_out(name, monkeypatch):
    case, opset = CASES[name], NEWEST[name]
    genuine = onnx_activations.scalar_activation

    def narrow(node, op, **params):
        found = genuine(node, op, **params)
        low, high = found.slopes()
        return replace(
            found, frozen=(low, float(np.nextafter(high, -np.inf))) if high > low else (low - 1.0, high - 1.0)
        )

    monkeypatch.setattr(onnx_activations, "scalar_activation", narrow)
    network = lm.load(model(case, opset), check=False)
    with pytest.raises(lm.Refuted, match="the slopes of activation"):
        source_of(network, Spec())


@pytest.mark.parametrize(
    ("op", "attributes"), [("ThresholdedRelu", {"alpha": 1.0}), ("Shrink", {}), ("Exp", {}), ("Celu", {"alpha": -1.0})]
)
def test_what_is_not_lipschitz_cannot_be_taken_for_something_that_is(op, attributes, monkeypatch):
    case = alone(op, **attributes)
    monkeypatch.setattr(onnx_activations, "scalar_activation", lambda *_, **__: lm.activation("Relu"))
    network = lm.load(model(case, NEWEST.get(op) or 13), check=False)
    with pytest.raises(lm.Refuted, match="the slopes of activation"):
        source_of(network, Spec())


@pytest.mark.parametrize("formulation", ["lipsdp-neuron", "product"])
def test_certificates_are_verified_by_the_reader_alone(tmp_path, formulation):
    nodes = [
        node("AveragePool", ["x"], ["p"], kernel_shape=[2, 2], pads=[1, 0, 0, 1]),
        node("Gelu", ["p"], ["g"]),
        node("Gather", ["g", "i"], ["t"], axis=3),
        node("Flatten", ["t"], ["f"]),
        node("Mul", ["a", "b"], ["w"]),
        node("Gemm", ["f", "w"]),
    ]
    weights = {"i": np.array([1, 0, 0]), "a": DENSE[:1], "b": np.arange(9.0)[:, None] / 4}
    path = tmp_path / "net.onnx"
    path.write_bytes(make(nodes, weights, shape=(1, 1, 3, 3), opset=20).SerializeToString())
    result = lm.solve(str(path), formulation, norm="2")
    certificate = result.to_json()["certificate"]
    verdict = lm.verify(str(path), certificate)
    assert verdict.read_by == READER
    assert verdict.bound == result.bound
