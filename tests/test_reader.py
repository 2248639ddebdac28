"""The checker's own reading of ONNX files: the same exact system as the importer's, block by block, or a refusal."""

from __future__ import annotations

import csv
import json
import pathlib

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import make, single
from random_graphs import random_graph

import lipmodel as lm
from lipmodel.certify import evaluation, operators
from lipmodel.certify.kernel import System
from lipmodel.certify.reader import read
from lipmodel.certify.source import READER, source_of
from lipmodel.certify.tape import Mismatch, Unreadable
from lipmodel.errors import RefusedInput
from lipmodel.families import Member, chosen_outputs, restricted
from lipmodel.network import onnx_import, onnx_ops
from lipmodel.network.increments import dense_entries, exact_system, increments
from lipmodel.spec import Spec, parse_outputs

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def part_of(network, system, row=None, column=None):
    source = source_of(network, Spec())
    if source.plain is None:
        raise Unreadable(source.why)
    return source._part(source.plain, system, row, column)


def assert_within(own: System, other: System) -> bool:
    """The reader's blocks lie inside the importer's (and are equal where these are exact); whether all are equal."""
    assert own.sizes == other.sizes
    assert [list(v) for v in own.alpha] == [v.tolist() for v in other.alpha]
    assert [list(v) for v in own.beta] == [v.tolist() for v in other.beta]
    equal = True
    for mine, theirs in zip([*own.pre, own.output], [*other.pre, other.output], strict=True):
        for j in {*mine, *theirs}:
            shape = (mine if j in mine else theirs)[j].shape
            (a, ra, ea), (b, rb, eb) = (_padded(blocks.get(j), shape) for blocks in (mine, theirs))
            common = max(ea, eb)
            for x, rx, y, ry in zip(a, ra, b, rb, strict=True):
                for v, p, w, q in zip(x, rx, y, ry, strict=True):
                    gap = abs((v << common - ea) - (w << common - eb)) + (p << common - ea)
                    assert gap <= q << common - eb
                    equal &= gap == 0
    return equal


def _padded(block, shape):
    zero = [[0] * shape[1]] * shape[0]
    return (zero, zero, 0) if block is None else (block.mantissa, block.radius or zero, block.exponent)


def test_random_graphs_and_the_members_of_their_families():
    rng = np.random.default_rng(4)
    read_ones = compared = 0
    for _ in range(120):
        model, _ = random_graph(rng)
        try:
            network = lm.load(model, check=False)
            system = increments(network)
        except RefusedInput:
            continue
        try:
            assert_within(part_of(network, system).system(), exact_system(system))
        except Unreadable:
            continue
        read_ones += 1
        for row, column in ((0, None), (None, system.input.size - 1), (system.output.size - 1, 0)):
            row, column = (row if system.output.size > 1 else None), (column if system.input.size > 1 else None)
            member = restricted(system, Member(row=row, column=column, norms=("2", "2")))
            if member.activations or member.output.blocks:
                compared += 1
                assert_within(part_of(network, member, row, column).system(), exact_system(member))
    assert read_ones > 50
    assert compared > 120


def test_choices_of_outputs():
    rng = np.random.default_rng(6)
    weights = [rng.standard_normal((4, 3)), rng.standard_normal((3, 4))]
    network = lm.from_weights(weights, activation="relu")
    for outputs in ("all", "1", "2,0", "margin:1"):
        spec = Spec(outputs=parse_outputs(outputs))
        source = source_of(network, spec)
        system = chosen_outputs(increments(network), spec.outputs)
        assert source.reading is not None
        assert assert_within(source.exact(system, None, None), exact_system(system))
        source.compare(system, None, None)


WEIGHTS = {"w": np.arange(1.0, 17.0).reshape(4, 4) / 8 - 1.0}
LAYERS = [
    single("Gemm", WEIGHTS, alpha=0.75, transB=1),
    single("Gemm", WEIGHTS, alpha=0.1),
    make([helper.make_node("Gemm", ["w", "x"], ["y"], transA=1, transB=1)], WEIGHTS),
    make([helper.make_node("MatMul", ["w", "x"], ["y"])], WEIGHTS, shape=(4, 3)),
    make([helper.make_node("Sub", ["w", "x"], ["y"])], WEIGHTS),
    make([helper.make_node("Sub", ["x", "h"], ["y"]), helper.make_node("Relu", ["x"], ["h"])][::-1]),
    make([helper.make_node("Div", ["x", "c"], ["y"])], {"c": np.array([2.0, 3.0, -7.0, 0.1])}),
    make([helper.make_node("Mul", ["c", "x"], ["y"])], {"c": np.array([[0.3], [0.0]])}),
    single("PRelu", {"slope": np.array([0.25, 1.0, -0.5, 2.0])}),
    single("LeakyRelu", alpha=1.5),
    single("HardSigmoid", alpha=-0.25),
    single("Elu", alpha=2.5),
    single("Clip", {"min": np.array(-1.0), "max": np.array(2.0)}),
    single("Clip", opset=7, min=0.0, max=6.0),
    single("Transpose", perm=[2, 0, 1], shape=(2, 3, 4)),
    single("Unsqueeze", {"axes": np.array([0, -1])}),
    make(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Concat", ["x", "w", "r"], ["y"], axis=0)], WEIGHTS
    ),
    single(
        "BatchNormalization",
        {"s": np.array([1.5, -0.7]), "b": np.ones(2), "m": np.ones(2), "v": np.array([0.3, 4.0])},
        shape=(1, 2, 3),
        epsilon=1e-3,
    ),
    *(
        single("Conv", {"w": np.arange(24.0).reshape(4, 1, 3, 2) / 8}, shape=(1, 2, 7, 5), group=2, **attributes)
        for attributes in (
            {"pads": [1, 0, 2, 1], "strides": [2, 1]},
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            {"auto_pad": "SAME_LOWER", "dilations": [2, 1]},
            {"auto_pad": "VALID"},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_single_operators(number):
    network = lm.load(LAYERS[number])
    system = increments(network)
    assert_within(part_of(network, system).system(), exact_system(system))


def test_several_graph_inputs_and_outputs(tmp_path):
    nodes = [
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
        helper.make_node("Abs", ["a"], ["z"]),
    ]
    model = make(nodes, inputs={"a": (1, 3), "b": (1, 3)}, outputs=("y", "z"))
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    for inputs, outputs in (("a", "y"), ("b", "y"), ("all", "all"), (["b", "a"], ["z", "y"])):
        network = lm.load(path, graph_input=inputs, graph_output=outputs)
        system = increments(network)
        assert assert_within(part_of(network, system).system(), exact_system(system))


def test_what_is_not_understood_is_named_and_the_importer_believed(tmp_path, monkeypatch):
    model = make(
        [helper.make_node("AveragePool", ["x"], ["h"], kernel_shape=[2]), helper.make_node("Relu", ["h"], ["y"])],
        shape=(1, 2, 4),
    )
    path = tmp_path / "pool.onnx"
    path.write_bytes(model.SerializeToString())
    result = lm.solve(str(path), "lipsdp-neuron", norm="2")
    certificate = json.dumps(result.to_json())
    assert lm.verify(str(path), certificate).read_by == READER
    genuine = operators.OPERATORS["AveragePool"]

    def broken(node):
        raise KeyError("a bug")

    monkeypatch.setitem(operators.OPERATORS, "AveragePool", broken)
    assert lm.verify(str(path), certificate).read_by == "the importer (the reader broke off: KeyError)"
    monkeypatch.delitem(operators.OPERATORS, "AveragePool")
    verdict = lm.verify(str(path), certificate)
    assert verdict.read_by == "the importer (the operator AveragePool)"
    assert verdict.to_json()["read_by"] == verdict.read_by
    monkeypatch.setitem(operators.OPERATORS, "AveragePool", genuine)
    monkeypatch.setattr(evaluation, "doubles", broken)
    assert lm.verify(str(path), certificate).read_by == (
        f"{READER}; for the witness the importer (the reader broke off: KeyError)"
    )
    with pytest.raises(Unreadable, match="not those that the importer has read"):
        read(path.read_bytes(), "0" * 64)


def dense_net(tmp_path, op="Gemm"):
    rng = np.random.default_rng(2)
    weights = {"u": rng.standard_normal((3, 3)), "v": rng.standard_normal((3, 3))}
    nodes = [
        helper.make_node(op, ["x", "u"], ["g"]),
        helper.make_node("Relu", ["g"], ["h"], name="act"),
        helper.make_node(op, ["h", "v"], ["y"]),
    ]
    path = tmp_path / "net.onnx"
    path.write_bytes(make(nodes, weights, shape=(1, 3), type=TensorProto.FLOAT).SerializeToString())
    return str(path)


@pytest.mark.parametrize("formulation", ["lipsdp-neuron", "geolip", "product"])
def test_a_bug_of_the_importer_cannot_hide(tmp_path, monkeypatch, formulation):
    """Weights halved on import: the bound is a quarter of what it should be, and the importer agrees with itself."""
    path = dense_net(tmp_path)
    honest = lm.solve(path, formulation, norm="2")
    assert lm.verify(path, json.dumps(honest.to_json())).read_by == READER
    genuine = onnx_ops.OPERATORS["Gemm", ""]

    def halved(node):
        node.attributes["alpha"] = 0.5
        return genuine(node)

    monkeypatch.setitem(onnx_ops.OPERATORS, ("Gemm", ""), halved)
    monkeypatch.setattr(onnx_import, "check_against_runtime", lambda *a, **k: None)
    false = lm.solve(path, formulation, norm="2")
    assert false.bound < 0.3 * honest.bound
    data = json.loads(json.dumps(false.to_json()))["certificate"]
    data["lower"] = data["claim"]["lower_bound"] = None
    with pytest.raises(lm.Refuted, match=r"inequality of the network fails|disagree about the network"):
        lm.verify(path, data)


def test_activations_that_the_importer_loses_or_mistakes(tmp_path, monkeypatch):
    path = dense_net(tmp_path)
    network = lm.load(path)
    system = increments(network)
    source = source_of(network, Spec())
    assert source.plain is not None
    assert source.plain.part(["act"], {}).sizes == (3, 3)
    with pytest.raises(Mismatch, match="'act' has 1 neurons more that matter"):
        source.plain.part(["act"], {"act": np.array([0, 2])})
    with pytest.raises(Mismatch, match="no such neurons"):
        source.plain.part(["act"], {"act": np.array([0, 1, 2, 3])})
    with pytest.raises(Mismatch, match="no activation 'other'"):
        source.plain.part(["other"], {})
    with pytest.raises(Mismatch, match="1 activations more: act"):
        source.plain.part([], {})
    with pytest.raises(lm.Refuted, match=r"the importer finds the activations none; the reader says: it has 1 act"):
        source.exact(_linear(system), None, None)
    genuine = onnx_ops.OPERATORS["Relu", ""]

    def flat(node):
        return genuine(node) if node.name != "act" else node.computed(0)

    monkeypatch.setitem(onnx_ops.OPERATORS, ("Relu", ""), flat)
    monkeypatch.setattr(onnx_import, "check_against_runtime", lambda *a, **k: None)
    result = lm.solve(path, "product", norm="2")
    data = json.loads(json.dumps(result.to_json()))["certificate"]
    data["lower"] = data["claim"]["lower_bound"] = None
    with pytest.raises(lm.Refuted, match=r"disagree about the network: the importer finds the activations none"):
        lm.verify(path, data)


def _linear(system):
    from dataclasses import replace

    return replace(system, activations=(), signals=system.signals[:1])


def accepted_nets() -> list[tuple[str, int]]:
    with open(SHARED / "nets" / "index.csv", encoding="utf-8") as stream:
        return [(row["path"], int(row["bytes"])) for row in csv.DictReader(stream) if row["verdict"] == "accept"]


def compare_shared(limit_bytes: int, limit_entries: int) -> tuple[int, int, list[str]]:
    """How many files were read and compared, how many the importer reads, and why the others were not."""
    compared, imported, others = 0, 0, []
    for name, size in accepted_nets():
        if size > limit_bytes:
            continue
        try:
            network = lm.load(SHARED / "nets" / name, check=False)
            system = increments(network)
        except RefusedInput:
            continue
        if dense_entries(system) > limit_entries:
            continue
        imported += 1
        try:
            own = part_of(network, system).system()
        except Unreadable as reason:
            others.append(f"{name}: {reason}")
            continue
        assert_within(own, exact_system(system))
        compared += 1
    return compared, imported, others


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
def test_the_small_files_of_the_shared_networks():
    compared, imported, others = compare_shared(60_000, 100_000)
    assert compared >= 0.85 * imported, others


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
def test_all_shared_networks():
    compared, imported, others = compare_shared(50_000_000, 3_000_000)
    print(f"{compared} of {imported} read", *others, sep="\n")
    assert compared >= 0.85 * imported, others
