"""Maxima, minima and sorting: the checker's own reading has the system that the importer has, and finds its bugs."""

from __future__ import annotations

import csv
import itertools
import json
import pathlib
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import make, single, sorted_pairs
from operator_cases import CASES, SCALARS

import lipmodel as lm
from lipmodel.certify.evaluation import doubles, evaluate
from lipmodel.certify.kernel import System
from lipmodel.certify.operators_max import sorting_layers
from lipmodel.certify.source import READER, source_of
from lipmodel.network import onnx_import, onnx_max
from lipmodel.network.increments import dense_entries, exact_system, increments
from lipmodel.spec import Spec

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
node = helper.make_node


def assert_same(network, points=2) -> System:
    """The same system, entry by entry, and the same values; the system."""
    source, system = source_of(network, Spec()), increments(network)
    assert not source.why, source.why
    source.compare(system, None, None)
    rng = np.random.default_rng(1)
    for _ in range(points):
        x = np.round(rng.standard_normal(network.input_size), 1)  # with ties
        found = evaluate(source.reading.tape, doubles(x.tolist()))[source.reading.output]
        own = np.array([float(sum(found.ends(i)) / 2) for i in range(network.output_size)])
        other = network.evaluate(x).ravel()
        np.testing.assert_allclose(own, other, rtol=1e-9, atol=1e-9 * (1 + np.abs(other).max()))
    return source.exact(system, None, None)


# -------------------------------------------------------------------------------------------------------- one by one


def random_pool(seed: int):
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 4))
    kernel = [int(v) for v in rng.integers(1, 5 - d // 2, d)]
    attributes = {"kernel_shape": kernel}
    if rng.random() < 0.8:
        attributes["strides"] = [int(rng.integers(1, k + 2)) for k in kernel]
    if rng.random() < 0.3:
        attributes["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        attributes["strides"] = [min(s, k) for s, k in zip(attributes.get("strides", [1] * d), kernel, strict=True)]
    else:
        attributes["pads"] = [int(rng.integers(0, k)) for k in kernel * 2]
        attributes["dilations"] = [int(v) for v in rng.integers(1, 3, d)]
        attributes["ceil_mode"] = int(rng.random() < 0.4)
    shape = [
        int(rng.integers(1, 3)),
        int(rng.integers(1, 3)),
        *(int(v) for v in rng.integers(7 if d == 1 else 5, 10 - d, d)),
    ]
    return single("MaxPool", shape=shape, opset=int(rng.choice([10, 13, 22])), **attributes)


@pytest.mark.parametrize("seed", range(40))
def test_pools(seed):
    assert_same(lm.load(random_pool(seed), check=False))


def test_a_pool_of_operator_set_7_and_one_over_everything():
    for model in (
        single("MaxPool", shape=(1, 2, 5, 4), opset=7, kernel_shape=[3, 2], pads=[1, 0, 1, 1]),
        single("GlobalMaxPool", shape=(2, 2, 3, 4)),
        single("GlobalMaxPool", shape=(2, 1, 5)),
    ):
        assert_same(lm.load(model, check=False))  # onnx.reference has two of these wrong


@pytest.mark.parametrize("opset", [8, 18])
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize(("axes", "keep"), [(None, 1), ([1], 1), ([-1, 1], 0), ([0, 2], 1), ([2], 0)])
def test_reductions(op, axes, keep, opset):
    inputs, attributes, weights = ["x"], {"keepdims": keep}, {}
    if axes is not None and opset >= 18:
        inputs, weights = ["x", "axes"], {"axes": np.array(axes)}
    elif axes is not None:
        attributes["axes"] = axes
    assert_same(lm.load(make([node(op, inputs, ["y"], **attributes)], weights, shape=(2, 3, 4), opset=opset)))


def test_a_reduction_over_no_axis():
    nodes = [node("ReduceMax", ["x", "a"], ["r"], noop_with_empty_axes=1), node("Relu", ["r"], ["y"])]
    system = assert_same(lm.load(make(nodes, {"a": np.array([], dtype=np.int64)}, shape=(2, 3), opset=20)))
    assert system.sizes == (6, 6)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 2), (3, 2), (5, 1), (5, 5), (6, 4), (9, 3)])
def test_sorting(n, count, largest):
    for axis, shape in ((0, (n, 2)), (1, (2, n, 2)), (-1, (2, n))):
        nodes = [node("TopK", ["x", "k"], ["y", ""], axis=axis, largest=largest)]
        assert_same(lm.load(make(nodes, {"k": np.array([count])}, shape=shape)))
    if largest:
        assert_same(lm.load(make([node("TopK", ["x"], ["y", ""], k=count)], shape=(2, n), opset=9)))


@pytest.mark.parametrize("n", [*range(1, 11), 13])
def test_sorting_layers_sort(n):
    """By the 0-1 principle (Knuth): what sorts all vectors of zeros and ones sorts everything."""
    layers = list(sorting_layers(n))
    assert all(len({i for pair in layer for i in pair}) == 2 * len(layer) for layer in layers)
    vectors = np.array(list(itertools.product((0, 1), repeat=n)))
    for i, j in itertools.chain.from_iterable(layers):
        vectors[:, [i, j]] = np.sort(vectors[:, [i, j]], axis=1)
    assert bool((np.diff(vectors, axis=1) >= 0).all())


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_several_tensors_and_constants(op):
    rng = np.random.default_rng(3)
    weights = {"a": np.array([0, 2]), "b": np.array([1]), "c": rng.standard_normal((2, 1)), "d": rng.standard_normal(4)}
    nodes = [
        node("Gather", ["x", "a"], ["u"], axis=1),
        node("Gather", ["x", "b"], ["v"], axis=1),
        node("Tanh", ["v"], ["w"]),
        node(op, ["u", "c", "v", "d", "u", "w"], ["y"]),
    ]
    assert_same(lm.load(make(nodes, weights, shape=(2, 3, 4))))
    assert_same(lm.load(make([node(op, ["x", "d"], ["y"])], weights)))
    assert_same(lm.load(make([node(op, ["x"], ["y"])])))


def test_maxima_of_constants():
    weights = {"a": np.array([1.0, -2.0]), "b": np.array([0.5, 3.0]), "s": np.array([1, 7]), "t": np.array([2, 1])}
    nodes = [
        node("Max", ["a", "b"], ["m"]),
        node("Min", ["m", "a"], ["n"]),
        node("ReduceMax", ["m"], ["r"]),
        node("Min", ["s", "t"], ["shape"]),
        node("Reshape", ["x", "t"], ["z"]),
        node("Expand", ["z", "shape"], ["e"]),
        node("Mul", ["e", "m"], ["p"]),
        node("Mul", ["p", "r"], ["q"]),
        node("Add", ["q", "n"], ["y"]),
    ]
    system = assert_same(lm.load(make(nodes, weights, shape=(1, 2))))
    assert system.sizes == (2,)


# --------------------------------------------------------------------------------------------- what is done only once


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_max_and_min_of_one_pair_share_one_relu(copies, swapped):
    assert assert_same(lm.load(sorted_pairs(6, copies=copies, swapped=swapped))).sizes == (6, 3)


@pytest.mark.parametrize("names", [("Gemm_9", "Gemm_10"), ("b", "a"), ("a", "a/b"), ("a", "ab")])
def test_pairs_from_two_layers_are_in_the_order_of_their_names(names):
    rng = np.random.default_rng(0)
    weights = {"v": rng.standard_normal((4, 3)), "w": rng.standard_normal((4, 3)), "c": rng.standard_normal(3)}
    nodes = [
        node("Gemm", ["x", "v", "c"], ["p"], name=names[0]),
        node("MatMul", ["x", "w"], ["q"], name=names[1]),
        node("Max", ["p", "q"], ["a"]),
        node("Min", ["q", "p"], ["b"]),
        node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    assert assert_same(lm.load(make(nodes, weights))).sizes == (4, 3)


@pytest.mark.parametrize("name", CASES)
def test_what_counts_as_a_copy(name):
    """Whatever an operator does to entries: the same of them meet, and are known to have met."""
    nodes, weights, shape = CASES[name]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    for n in copies:
        n.output[:] = ["result" if o == "y" else o for o in n.output]
    more = [
        node("Flatten", ["result"], ["f"], axis=0),
        node("Flatten", ["x"], ["input"], axis=0),
        node("Gather", ["input", "first"], ["g"], axis=1),
        node("Gather", ["f", "first"], ["h"], axis=1),
        node("Max", ["f", "g"], ["high"]),
        node("Min", ["g", "f"], ["low"]),
        node("Max", ["f", "h"], ["own"]),
        node("Concat", ["high", "low", "own"], ["y"], axis=1),
    ]
    known = {**{key: np.asarray(value) for key, value in weights.items()}, "first": np.array([0])}
    for opset in (17, 22, 12, 10, 9):
        try:
            network = lm.load(make(copies + more, known, shape=shape, opset=opset), check=False)
        except lm.RefusedInput:
            continue
        assert_same(network, points=1)
        return
    pytest.skip("an operator that is in none of these operator sets")


def test_names_that_give_no_order_are_not_guessed_about():
    nodes = [
        node("Tanh", ["x"], ["p"], name="a"),
        node("Sin", ["x"], ["q"], name="a-b"),
        node("Max", ["p", "q"], ["y"]),
    ]
    assert source_of(lm.load(make(nodes)), Spec()).why == "Max of tensors whose names are no order"


def test_a_permutation_among_the_weights_is_no_copy():
    weights = {"w": np.eye(4)[[1, 0, 3, 2]]}
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Max", ["x", "p"], ["y"])]
    assert assert_same(lm.load(make(nodes, weights))).sizes == (4, 4)
    nodes = [node("Gather", ["x", "i"], ["p"], axis=1), node("Max", ["x", "p"], ["y"])]
    assert assert_same(lm.load(make(nodes, {"i": np.array([1, 0, 3, 2])}))).sizes == (4, 2)


def test_nodes_of_one_name_and_an_activation_that_goes_behind_a_maximum():
    nodes = [
        node("Relu", ["x"], ["r"], name="act"),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2], name="pool"),
        node("Relu", ["p"], ["s"], name="act"),
        node("AveragePool", ["s"], ["y"], kernel_shape=[2], name="mean"),
    ]
    assert assert_same(lm.load(make(nodes, shape=(1, 1, 6)))).sizes == (6, 5, 5, 5)


# ------------------------------------------------------------------------------------------------- monotone functions

POOL = {"kernel_shape": [2, 3], "strides": [1, 2]}


@pytest.mark.parametrize("op", [*SCALARS, "Clip", "PRelu"])
def test_functions_before_a_maximum(op):
    for number, more in enumerate(([], [node("Concat", ["r", "p"], ["y"], axis=3)])):
        last = "p" if more else "y"
        weights = {"slope": np.array(0.25)} if op == "PRelu" else {}
        after = node("MaxPool", ["r"], [last], **POOL)
        nodes = [node(op, ["x", *weights], ["r"], **SCALARS.get(op, {})), after, *more]
        if more:
            nodes[-1] = node("Concat", ["r", "r"], ["z"], axis=3)
            nodes += [node("Flatten", ["z"], ["f"]), node("Flatten", ["p"], ["g"])]
            nodes += [node("Concat", ["f", "g"], ["y"], axis=1)]
        network = lm.load(make(nodes, weights, shape=(1, 1, 3, 5), opset=22), check=False)
        system = assert_same(network)
        assert op != "Relu" or system.sizes[-1] == (4 if number == 0 else system.sizes[-1])


@pytest.mark.parametrize("op", ["GlobalMaxPool", "ReduceMax", "ReduceMin", "Max", "TopK"])
def test_a_relu_before_other_maxima(op):
    inputs = {"Max": ["r", "x"], "TopK": ["r", "k"]}.get(op, ["r"])
    nodes = [node("Relu", ["x"], ["r"]), node(op, inputs, ["y", ""] if op == "TopK" else ["y"])]
    assert_same(lm.load(make(nodes, {"k": np.array([2])}, shape=(1, 2, 5)), check=False))


def test_slopes_of_several_kinds_stay_where_they_are():
    weights = {"slope": np.array([[0.25], [0.5]])}
    nodes = [node("PRelu", ["x", "slope"], ["r"]), node("MaxPool", ["r"], ["y"], kernel_shape=[2])]
    assert assert_same(lm.load(make(nodes, weights, shape=(1, 2, 4)))).sizes == (8, 8, 6)


# ------------------------------------------------------------------------------------------------------- random graphs


def random_graph(seed: int):
    """Moving, bending, comparing and adding tensors of one shape, and what comes before, in a random order."""
    rng = np.random.default_rng(seed)
    shape = (1, int(rng.integers(1, 3)), int(rng.integers(4, 7)))
    nodes, weights, known = [], {}, ["x"]

    def weight(values) -> str:
        weights[f"w{len(weights)}"] = np.asarray(values)
        return f"w{len(weights) - 1}"

    def picked() -> str:
        return known[int(rng.integers(max(0, len(known) - 4), len(known)))]

    def add(op, *inputs, outputs=1, **attributes) -> None:
        name = f"t{len(nodes)}"
        names = [name, *[""] * (outputs - 1)]
        nodes.append(node(op, inputs, names, name=f"{op}_{len(nodes)}", **attributes))
        known.append(name)

    for _ in range(int(rng.integers(4, 10))):
        kind = int(rng.integers(9))
        if kind < 3:
            add(str(rng.choice(["Max", "Min"])), *(picked() for _ in range(int(rng.integers(1, 4)))))
        elif kind == 3:
            add(str(rng.choice(["Max", "Min"])), picked(), weight(np.round(rng.standard_normal(shape[1:]), 2)))
        elif kind == 4:
            add("MaxPool", picked(), kernel_shape=[3], pads=[1, 1])
        elif kind == 5:
            add("TopK", picked(), weight([shape[2]]), outputs=2, largest=int(rng.integers(2)))
        elif kind == 6:
            add(str(rng.choice(["Relu", "Sigmoid", "Abs"])), picked())
        elif kind == 7:
            index = rng.permutation(shape[2]) if rng.random() < 0.5 else rng.integers(0, shape[2], shape[2])
            add("Gather", picked(), weight(index), axis=2)
        else:
            add("MatMul", picked(), weight(np.round(rng.standard_normal((shape[2], shape[2])), 1)))
    last = "Max" if rng.random() < 0.5 else "Sub"
    nodes.append(node(last, [known[-1], known[-2]], ["y"]))
    return make(nodes, weights, shape=shape, opset=17)


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed):
    assert_same(lm.load(random_graph(seed), check=False))


# ---------------------------------------------------------------------------------------------- bugs of the importer


def bent(monkeypatch, how: str) -> None:
    """A bug in the importer."""
    genuine = onnx_max.extremum
    if how == "a window shifted by one":
        line = onnx_max._line
        monkeypatch.setattr(onnx_max, "_line", lambda n, m, k, s, before, d: line(n, m, k, s, before - 1, d))
    elif how == "a window of one entry less":
        line = onnx_max._line
        monkeypatch.setattr(onnx_max, "_line", lambda *a: line(*a)[:, :-1])
    elif how == "a minimum for a maximum":
        monkeypatch.setattr(onnx_max, "extremum", lambda *a, least=False: genuine(*a, least=not least))
    elif how == "no sharing":
        part = onnx_max._positive_part

        def alone(node, *a):
            node.builder.shared.clear()
            return part(node, *a)

        monkeypatch.setattr(onnx_max, "_positive_part", alone)
    elif how == "the first entry of a window":
        monkeypatch.setattr(onnx_max, "extremum", lambda node, x, table, **_: node.select(x, table.max(axis=1)))
    elif how == "a comparator that is missing":
        layers = onnx_max.sorting_network
        monkeypatch.setattr(onnx_max, "sorting_network", lambda n: list(layers(n))[:-1])
    elif how == "half a gain":
        placed = onnx_max._placed
        monkeypatch.setattr(onnx_max, "_placed", lambda n, x, rows, signs, size: placed(n, x, rows, signs / 2, size))
    elif how == "a function that is not monotone behind the maximum":
        before = onnx_max._before_activation

        def any_function(node, x):
            op = node.builder.graph.nodes[x.node]["op"]
            ((source, _, _),) = node.builder.graph.in_edges(x.node, keys=True)
            return (replace(x, node=source), op) if type(op).__name__ == "Elementwise" else before(node, x)

        monkeypatch.setattr(onnx_max, "_before_activation", any_function)


def pool(**attributes):
    nodes = [node("Abs", ["x"], ["r"]), node("MaxPool", ["r"], ["p"], **attributes), node("Relu", ["p"], ["y"])]
    return make(nodes, shape=(1, 1, 6))


SORT = make([node("TopK", ["x", "k"], ["y", ""])], {"k": np.array([4])}, shape=(1, 4))
STRIDED = pool(kernel_shape=[2], strides=[2])
BUGS = {
    "a window shifted by one": STRIDED,
    "a window of one entry less": STRIDED,
    "a minimum for a maximum": STRIDED,
    "no sharing": sorted_pairs(6),
    "the first entry of a window": STRIDED,
    "a comparator that is missing": SORT,
    "half a gain": SORT,
    "a function that is not monotone behind the maximum": STRIDED,
}
STILL_TRUE = {"a minimum for a maximum"}


@pytest.mark.parametrize("how", BUGS)
def test_a_bug_of_the_importer_cannot_hide(tmp_path, monkeypatch, how):
    path = tmp_path / "net.onnx"
    path.write_bytes(BUGS[how].SerializeToString())
    honest = lm.solve(str(path), "lipsdp-neuron", norm="2")
    assert lm.verify(str(path), json.dumps(honest.to_json())).read_by == READER
    bent(monkeypatch, how)
    monkeypatch.setattr(onnx_import, "check_against_runtime", lambda *a, **k: None)
    for formulation in ("lipsdp-neuron", "product"):
        false = lm.solve(str(path), formulation, norm="2")
        data = json.loads(json.dumps(false.to_json()))["certificate"]
        data["lower"] = data["claim"]["lower_bound"] = None
        if formulation != "product" and how in STILL_TRUE:
            # the reader's matrices are what is decided about, and for them the claim holds as well
            verdict = lm.verify(str(path), data)
            assert verdict.read_by == READER
            assert verdict.bound >= honest.lower_bound
            continue
        with pytest.raises(lm.Refuted, match=r"disagree about the network|inequality of the network fails"):
            lm.verify(str(path), data)


# --------------------------------------------------------------------------------------------------- whole questions


def test_certificates_of_a_network_with_pools_are_read_by_the_reader_alone(tmp_path):
    rng = np.random.default_rng(5)
    nodes = [
        node("Conv", ["x", "k"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2], strides=[2]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    weights = {"k": rng.standard_normal((2, 1, 3)), "w": rng.standard_normal((6, 2))}
    path = tmp_path / "net.onnx"
    path.write_bytes(make(nodes, weights, shape=(1, 1, 8)).SerializeToString())
    box = lm.Box(lo=(-0.25,) * 8, hi=(0.75,) * 8)
    for name, options in (("lipsdp-neuron", {}), ("product", {"norm": "inf"}), ("lipsdp-neuron", {"domain": box})):
        result = lm.solve(str(path), name, **({"norm": "2"} | options))
        verdict = lm.verify(str(path), json.dumps(result.to_json()))
        assert verdict.read_by == READER
        assert verdict.bound == result.bound


def shared_nets() -> list[tuple[str, int]]:
    with open(SHARED / "nets" / "index.csv", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["verdict"] == "accept"]
    names = ("MaxPool:", "GlobalMaxPool:", "Max:", "Min:", "ReduceMax:", "ReduceMin:", "TopK:")
    return [(r["path"], int(r["bytes"])) for r in rows if any(k.startswith(names) for k in r["operators"].split())]


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
def test_the_shared_networks_with_maxima_are_read():
    compared = 0
    for name, size in shared_nets():
        if size > 300_000:
            continue
        network = lm.load(SHARED / "nets" / name, check=False)
        system = increments(network)
        source = source_of(network, Spec())
        if "too large" in source.why:
            continue
        assert not source.why, (name, source.why)
        source.compare(system, None, None)
        if dense_entries(system) < 30_000:
            assert source.exact(system, None, None).sizes == exact_system(system).sizes
        compared += 1
    assert compared >= 12
