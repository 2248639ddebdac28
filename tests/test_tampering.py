"""Certificates tampered with in every field: `verify` refuses, or what remains is still true.

Truth is decided by trying all slopes of tiny networks, independently of the code that proves bounds.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from random_networks import FIXED, Chain, Phi, Plan, exceeds, formal_constant
from soundness_checks import formal_of

import lipmodel as lm
from lipmodel.certify.assumed import STATEMENT
from lipmodel.cli import main

RELU, ABS = FIXED[0], FIXED[1]
BENT = Phi(op="LeakyRelu", low=-0.5, high=1.0, attributes=(("alpha", -0.5),))


class ByHand(lm.Formulation):
    """LipSDP whose slope restrictions are stated by hand."""

    name, norms = "by-hand", {("2", "2")}

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Model:
        m = lm.Model(self.name)
        ball, price = m.ball(system.input, "2")
        form = ball - lm.inner(system.output, system.output)
        for act in system.activations:
            form -= 2 * lm.inner(act.post, act.pre - act.post, weight=m.multiplier(act))
        m.require(form >= 0)
        m.minimize(2 * price, bound="sqrt")
        return m


def chain(dims: list[int], seed: int, *phis: Phi | None) -> Chain:
    rng = np.random.default_rng(seed)
    weights = tuple(rng.standard_normal((m, n)) for n, m in itertools.pairwise(dims))
    biases = tuple(rng.standard_normal(m) for m in dims[1:])
    return Chain(weights=weights, biases=biases, phis=(*phis, *[None] * (len(weights) - len(phis))))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """A network, the plan that decides what is true of it, and a result about it as JSON values."""

    network: lm.Network
    plan: Plan
    data: dict[str, Any]


CASES: dict[str, tuple[Chain, Any, dict[str, Any]]] = {
    "lmi": (chain([2, 3, 2], 1, RELU), "lipsdp-neuron", {"norm": "2"}),
    "lmi bent inf:1": (chain([2, 2, 2, 2], 2, BENT, ABS), "geolip", {"norm": "inf:1"}),
    "product": (chain([2, 2, 2], 3, RELU), "product", {"norm": "2"}),
    "rows": (chain([2, 2, 2], 4, RELU), "geolip", {"norm": "inf:inf"}),
    "columns": (chain([2, 2, 2], 5, RELU), "geolip", {"norm": "1:1"}),
    "margins": (chain([2, 2, 3], 6, RELU), "lipsdp-neuron", {"norm": "2", "outputs": "margin:1"}),
    "chosen outputs": (chain([2, 2, 3], 7, RELU), "lipsdp-neuron", {"norm": "2", "outputs": "2,0"}),
    "linear": (chain([2, 2], 8), "product", {"norm": "2:1"}),
    "assumptions": (chain([2, 2, 1], 9, RELU), ByHand, {"norm": "2", "assurance": "model"}),
}


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    made = {}
    for name, (net, formulation, arguments) in CASES.items():
        network = net.network()
        result = lm.solve(network, formulation, **arguments)
        made[name] = Sample(network=network, plan=net.plan(), data=json.loads(json.dumps(result.to_json())))
    return made


# ----------------------------------------------------------------------------------------------------------- mutations


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values, containers included."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(data)
    if not path:
        return value
    at(changed, path[:-1])[path[-1]] = value
    return changed


def other_values(value: Any) -> list[Any]:
    """What a value may be changed into."""
    if isinstance(value, bool):
        return [not value, int(value), "true", None]
    if isinstance(value, int | float):
        near = [math.nextafter(value, math.inf), math.nextafter(value, -math.inf), value * 0.5]
        return [*near, -value, 0, 1e308, value + 1, "nan", "inf", "-inf", str(value), None, [value], True]
    if isinstance(value, str) and value.lstrip("-").startswith("0x"):
        x = float.fromhex(value)
        near = [math.nextafter(x, math.inf), math.nextafter(x, -math.inf), x * 0.5, x * (1 - 1e-9)]
        numbers = [*near, -x, 0.0, 1e308, 5e-324, math.inf, math.nan]
        return [*(v.hex() for v in numbers), "0x", "0x1p99999", "", x, None, [value], [], {}]
    if isinstance(value, str):
        known = ["1", "2", "inf", "all", "0", "1,0", "margin:0", "lmi", "product", "largest", "real", "global"]
        known += ["proved", "model", "none", "optimal", "box:0:1", "*3", "*99999999999999999999"]
        return [v for v in [*known, "", value + " ", value.upper(), value[:-1], "\x00"] if v != value] + [None, 7, {}]
    if value is None:
        return [0, 1.0, "x", "0x1.0p+0", [], {}, True]
    if isinstance(value, list):
        changed = [[], [*value, *value[-1:]], value[:-1], value[::-1], value[1:], [value], {}, None, "x", 3]
        return [v for v in changed if v != value]
    fewer = [{k: v for k, v in value.items() if k != key} for key in value]
    renamed = [{(key.upper() if k == key else k): v for k, v in value.items()} for key in value]
    return [*fewer, *renamed, {**value, "extra": 1}, {}, [], None, "x"]


FREE = ({"timings"}, {"claim"}, {"gap"}, {"termination"}, {"backend"}, {"formulation"}, {"options"}, {"reason"})


def is_free(path: tuple[Any, ...]) -> bool:
    """What nothing is proved about, and a reader may therefore find changed."""
    if path[:1] == ("certificate",):
        return path[:2] == ("certificate", "formulation") and len(path) > 2
    return path in {("network", "path")} or {path[0]} in FREE if path else False


# --------------------------------------------------------------------------------------------------------------- truth


def still_true(sample: Sample, data: Any, verdict: Any) -> str | None:
    """What is false in a result that was accepted, or None."""
    assert isinstance(data, dict)
    claim = data["certificate"]["claim"] if "certificate" in data else data["claim"]
    p, q = claim["input_norm"], claim["output_norm"]
    formal, rows, norm = formal_of(sample.plan, p, q, claim["outputs"])
    for said in (verdict.bound, data.get("bound")):
        if (
            isinstance(said, int | float)
            and not verdict.assumptions
            and (said < formal.value * (1 - 1e-12) or exceeds(sample.plan, formal, float(said), p, norm, rows))
        ):
            return f"the bound {said!r} is below {formal.value!r}"
    for said in (verdict.lower_bound, data.get("lower_bound")):
        if isinstance(said, int | float) and said > formal.value * (1 + 1e-12):
            return f"the lower bound {said!r} is above {formal.value!r}"
    if "certificate" in data:
        expected = "model" if verdict.assumptions else "proved"
        if data["assurance"] != expected and verdict.bound is not None:
            return f"assurance {data['assurance']!r}"
        if (data["bound"], data["lower_bound"]) != (
            "inf" if verdict.bound is None else verdict.bound,
            verdict.lower_bound,
        ):
            return "the result says another bracket than its certificate"
        if data["network"]["sha256"] != sample.network.source.sha256:
            return "another network"
        for row in data["per_output"] or []:
            own = row_constant(sample.plan, p, claim["outputs"], row["output"])
            if row["bound"] < own * (1 - 1e-12):
                return f"the bound of output {row['output']} is below {own!r}"
    if any(text != STATEMENT for text in verdict.assumptions):
        return f"the assumption reads {verdict.assumptions!r}"
    return None


def row_constant(plan: Plan, p: str, outputs: str, row: int) -> float:
    """The formal constant of one output, or of its margin."""
    eye = np.eye(plan.outputs)
    functional = eye[row]
    if outputs.startswith("margin:"):
        functional = eye[int(outputs.removeprefix("margin:"))] - eye[row]
    return formal_constant(plan, p, "inf", functional[None, :]).value


def judge(sample: Sample, data: Any, text: str | None = None) -> bool:
    """Whether a changed result is refused; fails where it is accepted and false."""
    given = json.dumps(data) if text is None else text
    try:
        verdict = lm.verify(sample.network, given.encode())
    except lm.Refuted:
        return True
    problem = still_true(sample, data, verdict)
    assert problem is None, problem
    return False


@pytest.mark.parametrize("name", CASES)
def test_every_field_of_a_result(samples: dict[str, Sample], name: str) -> None:
    sample = samples[name]
    assert not judge(sample, sample.data)
    wrong, refused = [], 0
    for path in leaves(sample.data):
        for value in other_values(at(sample.data, path)):
            try:
                was_refused = judge(sample, replaced(sample.data, path, value))
            except Exception as error:
                wrong.append(f"{path} = {value!r}: {type(error).__name__}: {error}")
                continue
            refused += was_refused
            if was_refused and is_free(path):
                wrong.append(f"{path} = {value!r} is refused, and nothing depends on it")
    assert not wrong, "\n".join([f"{len(wrong)} changes:", *wrong[:40]])
    assert refused > 300


# -------------------------------------------------------------------------------------------- changes that fit together


def with_bound(data: dict[str, Any], factor: float) -> dict[str, Any]:
    """Every place that states the bound (the members' too) changed alike."""
    changed = copy.deepcopy(data)
    upper = changed["certificate"]["upper"]
    for proof in [upper, *(member["proof"] for member in upper.get("members", []))]:
        proof["bound"] = (float.fromhex(proof["bound"]) * factor).hex()
    changed["certificate"]["claim"]["bound"] = upper["bound"]
    changed["bound"] = float.fromhex(upper["bound"])
    for row in changed["per_output"] or []:
        row["bound"] *= factor
    lower = changed["lower_bound"]
    changed["exact"] = lower is not None and changed["bound"] - lower <= 1e-9 * changed["bound"]
    return changed


def with_lower(data: dict[str, Any], lower: float) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    changed["certificate"]["claim"]["lower_bound"] = changed["certificate"]["lower"]["ratio"] = lower.hex()
    changed["lower_bound"] = lower
    changed["exact"] = changed["bound"] - lower <= 1e-9 * changed["bound"]
    return changed


@pytest.mark.parametrize("name", CASES)
def test_another_bound_everywhere(samples: dict[str, Sample], name: str) -> None:
    sample = samples[name]
    for factor in (0.0, -1.0, 1e-300, 0.5, 0.999, 1.0 - 2.0**-53, -2.0, 1e300):
        changed = with_bound(sample.data, factor)
        refused = judge(sample, changed)
        assert refused or factor > 0.99, factor
    # a looser bound is still true
    assert not judge(sample, with_bound(sample.data, 2.0))


@pytest.mark.parametrize("name", CASES)
def test_another_lower_bound_everywhere(samples: dict[str, Sample], name: str) -> None:
    sample = samples[name]
    lower, bound = sample.data["lower_bound"], sample.data["bound"]
    for value in (math.nextafter(lower, math.inf), bound, 2.0 * bound, -1.0, lower * (1 + 1e-9)):
        assert judge(sample, with_lower(sample.data, value)), value
    for value in (lower * 0.5, 0.0):
        assert not judge(sample, with_lower(sample.data, value)), value


@pytest.mark.parametrize("name", CASES)
def test_another_question(samples: dict[str, Sample], name: str) -> None:
    """The claim, the result's spec and the witness ask for something else, and the proof is left as it is."""
    sample = samples[name]
    outputs = ["all", "0", "1", *(f"margin:{i}" for i in range(sample.plan.outputs))]
    for p, q, chosen in itertools.product(("1", "2", "inf"), ("1", "2", "inf"), outputs):
        changed = copy.deepcopy(sample.data)
        for place in (changed["spec"], changed["certificate"]["claim"], changed["certificate"]["lower"]):
            place.update(input_norm=p, output_norm=q, outputs=chosen)
        judge(sample, changed)
        changed.update(lower_bound=None, exact=False)
        changed["certificate"]["lower"] = changed["certificate"]["claim"]["lower_bound"] = None
        judge(sample, changed)
        upper = changed["certificate"]["upper"]
        for proof in [upper, *(member["proof"] for member in upper.get("members", []))]:
            if "norms" in proof:
                proof["norms"] = [p, q]
        judge(sample, changed)


@pytest.mark.parametrize("name", ["lmi", "product", "rows", "columns", "margins"])
def test_another_network(samples: dict[str, Sample], name: str) -> None:
    """A certificate about a steeper network of the same shape, its hash changed to fit."""
    sample, (net, _, _) = samples[name], CASES[name]
    steeper = Chain(weights=(4.0 * net.weights[0], *net.weights[1:]), biases=net.biases, phis=net.phis)
    other = Sample(network=steeper.network(), plan=steeper.plan(), data=sample.data)
    assert judge(other, sample.data)
    changed = copy.deepcopy(sample.data)
    changed["network"]["sha256"] = changed["certificate"]["network"]["sha256"] = other.network.source.sha256
    assert judge(other, changed)
    changed.update(lower_bound=None, exact=False)
    changed["certificate"]["lower"] = changed["certificate"]["claim"]["lower_bound"] = None
    assert judge(other, changed)


def test_members_of_families(samples: dict[str, Sample]) -> None:
    for name in ("rows", "columns", "margins"):
        data = samples[name].data
        members = data["certificate"]["upper"]["members"]
        swapped = [{**members[0], "proof": members[1]["proof"]}, {**members[1], "proof": members[0]["proof"]}]
        nested = [{**members[0], "proof": data["certificate"]["upper"]}, *members[1:]]
        twice = [members[0], members[0]]
        for changed in (members[:1], [*members, members[0]], twice, nested, swapped, members[::-1]):
            judged = judge(samples[name], replaced(data, ("certificate", "upper", "members"), changed))
            assert judged or changed is swapped or changed == members[::-1]
        # one proof does not stand for the family
        single = members[0]["proof"]
        changed = with_bound(data, 1.0)
        changed["certificate"]["upper"], changed["per_output"] = single, None
        changed["certificate"]["claim"]["bound"] = single["bound"]
        changed["bound"] = float.fromhex(single["bound"])
        assert judge(samples[name], changed)


def test_assumptions_may_not_be_dropped_or_added(samples: dict[str, Sample]) -> None:
    sample = samples["assumptions"]
    assert sample.data["assurance"] == "model"
    changed = replaced(sample.data, ("certificate", "assumptions"), [])
    assert judge(sample, changed)
    changed["assurance"] = "proved"
    assert judge(sample, changed)
    proved = samples["lmi"]
    assumed = replaced(proved.data, ("certificate", "assumptions"), sample.data["certificate"]["assumptions"])
    assert judge(proved, assumed)
    nothing = replaced(proved.data, ("certificate", "assumptions"), [{"statement": STATEMENT, "terms": []}])
    assert judge(proved, nothing)


def test_huge_vectors_are_refused_at_once(samples: dict[str, Sample]) -> None:
    data = samples["assumptions"].data
    path = ("certificate", "assumptions", 0, "terms", 0, "weight")
    for count in ("50000000", "999999", "9" * 5000):
        assert judge(samples["assumptions"], replaced(data, path, [f"*{count}", "0x1.0p+0"]))
    path = ("certificate", "upper", "spectral")
    assert judge(samples["product"], replaced(samples["product"].data, path, ["*50000000", "0x1.0p+0"]))


def repeated_keys(data: Any, path: tuple[Any, ...] = ()) -> Iterator[str]:
    """The JSON text with one key of one object repeated, for every object."""
    for place in leaves(data):
        value = at(data, place)
        if isinstance(value, dict) and value:
            key = next(iter(value))
            marked = replaced(data, place, {**value, "\u0001": value[key]})
            yield json.dumps(marked).replace('"\\u0001"', json.dumps(key))


@pytest.mark.parametrize("name", ["lmi", "product", "rows", "assumptions"])
def test_repeated_keys_in_the_text(samples: dict[str, Sample], name: str) -> None:
    texts = list(repeated_keys(samples[name].data))
    assert len(texts) > 5
    for text in texts:
        json.loads(text)
        with pytest.raises(lm.Refuted, match="twice"):
            lm.verify(samples[name].network, text)


def test_another_choice_of_graph_input(tmp_path: Path) -> None:
    """A file with two inputs: a certificate about one is none about the other, and remembers which it is about."""
    path = tmp_path / "two.onnx"
    nodes = [
        helper.make_node("Gemm", ["a", "w"], ["h"], name="first"),
        helper.make_node("Gemm", ["b", "v"], ["k"], name="second"),
        helper.make_node("Add", ["h", "k"], ["s"], name="sum"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    weights = [numpy_helper.from_array(s * np.array([[1.0, 2.0], [3.0, 4.0]]), n) for n, s in (("w", 1.0), ("v", 10.0))]
    ports = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [1, 2]) for name in "aby"]
    graph = helper.make_graph(nodes, "two", ports[:2], ports[2:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    networks = {name: lm.load(path, graph_input=name) for name in ("a", "b", "all")}
    for name, network in networks.items():
        for given in (network, path):
            chosen = None if given is network else name
            result = lm.solve(given, "lipsdp-neuron", graph_input=chosen)
            text = json.dumps(result.to_json())
            assert lm.verify(path, text).bound == lm.verify(network, text).bound == result.bound
            for other in {"a", "b", "all"} - {name}:
                with pytest.raises(lm.Refuted):
                    lm.verify(networks[other], text)
            for wrong in (None, "c", "A", ["a"], [name], ["b", "a"], [], 3, {"a": 1}):
                changed = replaced(json.loads(text), ("certificate", "network", "graph_input"), wrong)
                assert judged_as(path, changed), wrong
    steep = json.loads(json.dumps(lm.solve(networks["a"], "lipsdp-neuron").to_json()))
    assert judged_as(path, replaced(steep, ("certificate", "network", "graph_input"), "b"))


def judged_as(path: Path, data: Any) -> bool:
    try:
        lm.verify(path, json.dumps(data))
    except lm.Refuted:
        return True
    return False


def test_text_that_is_no_certificate(samples: dict[str, Sample]) -> None:
    sample = samples["lmi"]
    text = json.dumps(sample.data)
    broken = [text[: len(text) // 2], text + "}", "", "[]", "null", "3", '{"certificate": null}', "{}", "[" * 100_000]
    broken += [text.replace(f'"bound": {sample.data["bound"]!r}', f'"bound": {word}') for word in ("NaN", "Infinity")]
    broken.append(text.replace("proved", "proved\ud800"))
    for given in broken:
        with pytest.raises(lm.Refuted):
            lm.verify(sample.network, given.encode("utf-8", "surrogatepass"))
    with pytest.raises(lm.Refuted):
        lm.verify(sample.network, b"\xff\xfe\x00")


def test_the_command_ends_with_six(samples: dict[str, Sample], tmp_path: Any, capsys: Any) -> None:
    sample = samples["lmi"]
    sample.network.save(tmp_path / "net.onnx")
    saved = tmp_path / "result.json"
    changes: list[tuple[tuple[Any, ...], Any]] = [
        (("bound",), sample.data["bound"] * 0.5),
        (("certificate", "upper", "s"), []),
        (("certificate", "upper", "rule"), "sos"),
        (("certificate", "network", "sha256"), "0" * 64),
        (("certificate", "network", "graph_input"), "nothing"),
        (("certificate", "claim", "outputs"), "7"),
        (("assurance",), {}),
        (("certificate", "lower", "x"), ["0x0p+0", "0x0p+0"]),
    ]
    saved.write_text(json.dumps(sample.data))
    assert main(["verify", str(tmp_path / "net.onnx"), str(saved)]) == 0
    for path, value in changes:
        saved.write_text(json.dumps(replaced(sample.data, path, value)))
        assert main(["verify", str(tmp_path / "net.onnx"), str(saved)]) == 6, path
        assert capsys.readouterr().err.startswith("refuted: "), path
