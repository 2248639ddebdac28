"""shor, hr1, hr2: never below the exact constant on a box, by the cells of small networks; every field is looked at."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import pathlib
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.certify.polynomials import sos_bound
from lipmodel.certify.reachable import neurons_of, reachable_program
from lipmodel.certify.source import read_again
from lipmodel.cli import main
from lipmodel.errors import Refuted
from lipmodel.network.increments import exact_system
from lipmodel.relaxations.reachable import reachability

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import cells  # noqa: E402

SHARED = ROOT.parent / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
LEVELS = ("shor", "hr1", "hr2")
CLOSE = 1e-6


def module(name: str, path: pathlib.Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


RELU, ABS, LEAKY, FALLING, CLIP = cells.BENT
CONCAVE = cells.Bent(name="LeakyRelu", parameters=(("alpha", 2.0),), breaks=(0.0,), slopes=(2.0, 1.0))


def net_of(seed: int, *sizes: int, bent: Any = RELU, bias: float = 1.0) -> Any:
    """Weights and biases that are multiples of 1/16."""
    rng = np.random.default_rng(seed)
    weights = tuple(np.round(16 * rng.standard_normal((m, n))) / 16 for n, m in itertools.pairwise(sizes))
    biases = tuple(np.round(16 * bias * rng.standard_normal(m)) / 16 for m in sizes[1:])
    return cells.Bending(weights=weights, biases=biases, bent=(bent,) * (len(sizes) - 2))


def exact_constant(net: Any, lo: float, hi: float, p: str) -> float:
    """The largest norm of the Jacobians of all cells in the box [lo, hi]^n, for one output."""
    n = net.weights[0].shape[1]
    unit = [[Fraction(int(i == j)) for j in range(n)] for i in range(n)]
    start = cells.box([Fraction(lo)] * n, [Fraction(hi)] * n)
    rows = [row for (row,) in cells.jacobians(net, start, unit, [Fraction(0)] * n)]
    if p == "inf":
        return float(max(sum(map(abs, row), Fraction(0)) for row in rows))
    return float(max(sum((v * v for v in row), Fraction(0)) for row in rows)) ** 0.5


def solved(net: Any, name: str, **question: Any) -> lm.Result:
    return lm.solve(net, name, **{"norm": "inf:1", "witness": False, "jobs": 1, **question})


# --------------------------------------------------------------------------------------------------------- soundness


@pytest.mark.parametrize("bent", [RELU, ABS, LEAKY, FALLING, CLIP, CONCAVE], ids=lambda b: f"{b.name}{b.parameters}")
@pytest.mark.parametrize("p", ["inf", "2"])
def test_never_below_the_exact_constant_on_a_box(bent: Any, p: str) -> None:
    """And hr2 <= hr1 <= shor <= geolip with the slopes of the box, to the solver's tolerance."""
    for seed, reach in itertools.product(range(2), (0.25, 1.0)):
        made = net_of(seed, 2, 5, 1, bent=bent)
        net, domain = made.network(), f"box:{-reach}:{reach}"
        true = exact_constant(made, -reach, reach, p)
        bounds = [solved(net, name, norm=f"{p}:1", domain=domain) for name in ("geolip", *LEVELS)]
        for r in bounds:
            assert r.bound >= true * (1 - 1e-12)
            assert lm.verify(net, json.dumps(r.to_json())).bound == r.bound
        for looser, tighter in itertools.pairwise(bounds):
            assert tighter.bound <= looser.bound * (1 + CLOSE)


def test_biases_make_a_difference() -> None:
    """Two neurons of the same direction, one of them active wherever the other one is, cancel there."""
    w = [np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([[1.0, -2.0]])]
    for bias, true, most in ((1.0, 2.0, 3.0), (-1.0, 4.0, 4.0 * (1 + CLOSE))):
        net = lm.from_weights(w, [np.array([bias, -bias]), np.zeros(1)])
        assert solved(net, "geolip", domain="box:-1:1").bound >= 4.0
        assert true <= solved(net, "hr2", domain="box:-1:1").bound <= most
    for seed in (0, 1):
        net = net_of(seed, 3, 6, 1).network()
        assert solved(net, "hr2", domain="box:-0.5:0.5").bound < solved(net, "geolip", domain="box:-0.5:0.5").bound


@pytest.mark.parametrize("sizes", [(2, 3, 3, 1), (2, 2, 2, 2, 1)], ids=str)
def test_more_layers(sizes: tuple[int, ...]) -> None:
    """The first layer's slopes are those that inputs have, the others' any; still above the cells."""
    for seed in range(2):
        made = net_of(seed, *sizes)
        net = made.network()
        true = exact_constant(made, -0.5, 0.5, "inf")
        for name in LEVELS:
            r = solved(net, name, domain="box:-0.5:0.5")
            assert true * (1 - 1e-12) <= r.bound
            assert lm.verify(net, json.dumps(r.to_json())).bound == r.bound


def test_rows_balls_fixed_inputs_and_several_outputs() -> None:
    made = net_of(3, 3, 5, 2)
    net = made.network()
    for domain in ("ball:0:0.5", lm.Box(lo=(-0.5, 0.25, -0.5), hi=(0.5, 0.25, 0.5)), "box:0:0"):
        for norm in ("inf:inf", "2:inf", "inf:1", "1:inf", "1:1"):
            for name in ("shor", "hr2"):
                r = solved(net, name, norm=norm, domain=domain)
                below = lm.solve(net, "product", norm=norm, domain=domain).lower_bound or 0.0
                assert r.bound >= below
                assert lm.verify(net, json.dumps(r.to_json())).bound == r.bound


def test_everywhere_it_is_geolip() -> None:
    for seed, p in itertools.product(range(3), ("inf", "2")):
        net = net_of(seed, 3, 7, 1).network()
        loose = solved(net, "geolip", norm=f"{p}:1").bound
        for name in LEVELS:
            assert solved(net, name, norm=f"{p}:1").bound == pytest.approx(loose, rel=2e-6)


def test_inputs_inside_the_box_satisfy_the_program() -> None:
    """The polynomials themselves, at inputs with the signs of their pre-activations: constraints hold, and the
    objective is the directional derivative."""
    made = net_of(5, 3, 6, 1)
    net, box = made.network(), lm.Box(lo=(-1.0, 0.25, -0.5), hi=(0.5, 1.0, 0.75))
    system = lm.increments(net, box, "inf")
    exact = exact_system(system)
    entries = {a.name: a.index for a in system.activations}
    known = neurons_of(system, exact, entries, read_again(net), box, "inf")
    found = reachable_program(exact, ("inf", "1"), known)
    assert len(found.neurons) == system.neurons
    assert all(n.value is not None for n in found.neurons)
    rng = np.random.default_rng(0)
    w, b, v = made.weights[0], made.biases[0], made.weights[1][0]
    middle, radius = np.add(box.lo, box.hi) / 2, np.subtract(box.hi, box.lo) / 2
    for _ in range(20):
        xi = rng.integers(-64, 65, 3) / 64
        pre = w @ (middle + radius * xi) + b
        point = [Fraction(0)] * found.program.size
        t = rng.choice([-1, 1], 3)
        for i, k in enumerate(found.where.inputs):
            point[k] = Fraction(int(t[i]))
        for i, k in found.inputs.items():
            point[k] = Fraction(xi[i])
        for n, place in zip(found.neurons, entries[system.activations[0].name].tolist(), strict=True):
            point[n.slope] = Fraction(1 if pre[place] > 0 else -1)
            assert n.value is not None
            reach = sum(abs(Fraction(x)) for x in w[place] * radius)
            point[n.value] = (Fraction(pre[place]) - Fraction(w[place] @ middle + b[place])) / reach

        def value(part: Any, point: list[Fraction] = point) -> Fraction:
            total = Fraction(0)
            for m, c in part.terms.items():
                product = Fraction(c, part.unit)
                for i in m:
                    product *= point[i]
                total += product
            return total

        assert all(abs(x) <= 1 for x in point)
        assert all(value(g) >= 0 for g in found.program.nonnegative)
        assert all(value(h) == 0 for h in found.program.zero)
        assert value(found.program.objective) == Fraction(float((v * (pre > 0)) @ w @ t))


def test_weights_that_are_not_exact() -> None:
    """An error widens the side of the kink, and values of the pre-activation are not defined by an equation."""
    net, box = net_of(5, 2, 3, 1).network(), lm.Box(lo=(-1.0,) * 2, hi=(1.0,) * 2)
    system = lm.increments(net, box, "inf")
    exact = exact_system(system)
    known = neurons_of(system, exact, {a.name: a.index for a in system.activations}, read_again(net), box, "inf")
    blurred = replace(known, listed=tuple(replace(neuron, error=Fraction(1, 8)) for neuron in known.listed))
    found = reachable_program(exact, ("inf", "1"), blurred)
    assert found.neurons
    assert not found.program.zero
    for neuron, own in zip(found.neurons, blurred.listed, strict=True):
        assert neuron.value is None
        assert neuron.span is None
        side = found.program.nonnegative[neuron.side]
        scale = Fraction(side.terms[()], side.unit) / own.error
        assert scale > 0
        assert Fraction(side.terms[(neuron.slope,)], side.unit) == scale * own.middle


@needs_shared
def test_directions_are_of_both_signs() -> None:
    """A relaxation over t in [0, 1]^n is below a gradient; over [-1, 1]^n it is above."""
    recipes = module("certdnn_recipes_shor", SHARED / "oracles" / "generate.py")
    made = recipes.certdnn(10, 10, 1)
    net = lm.load(made.build("recipe")[0])
    (w, v), (b, _) = made.Ws, made.bs
    x = np.random.default_rng(0).uniform(-10, 10, (5000, 10))
    gradients = ((x @ w.T + b > 0) * v[0]) @ w
    sampled = np.abs(gradients).sum(axis=1).max()
    domain = lm.Box(lo=(-10.0,) * 10, hi=(10.0,) * 10)
    system = lm.increments(net, domain, "inf")
    spec = lm.Spec(input_norm="inf", output_norm="1", domain=domain)
    right = reachability(system, spec, level="shor")
    proved = right.prove(system, ("inf", "1"), float("inf"))
    assert proved is not None
    assert proved.bound >= sampled
    # t = (1 + t') / 2 with t' in [-1, 1]: half the objective, and half of it at t = 1
    program = right.found.program
    directions = set(right.found.where.inputs)
    terms: dict[Any, int] = {}
    for m, c in program.objective.terms.items():
        for n in (m, tuple(i for i in m if i not in directions)):
            terms[n] = terms.get(n, 0) + c
    halved = replace(program.objective, terms=terms, unit=2 * program.objective.unit)
    wrong = replace(right, found=replace(right.found, program=replace(program, objective=halved)))
    lower = wrong.prove(system, ("inf", "1"), float("inf"))
    assert lower is not None
    assert lower.bound < sampled
    certificate = solved(net, "shor", domain="box:-10:10").to_json()["certificate"]
    certificate["upper"] = lower.proof
    certificate["claim"]["bound"] = lower.proof["bound"]
    with pytest.raises(Refuted):
        lm.verify(net, json.dumps(certificate))


# --------------------------------------------------------------------------------------------------------- refusals


def test_refusals() -> None:
    net = net_of(0, 3, 4, 2).network()
    with pytest.raises(lm.UsageError, match="does not reach"):
        solved(net, "shor", norm="2:2", domain="box:-1:1")
    with pytest.raises(lm.UsageError, match=r"order 11 is too large \(up to 4\)"):
        solved(net_of(0, 3, 4, 1).network(), "shor", domain="box:-9:9", options={"largest": 4})
    box = lm.Box(lo=(-1.0,) * 3, hi=(1.0,) * 3)
    system = replace(lm.increments(net, box, "inf"), network=None)
    with pytest.raises(lm.UsageError, match="biases could not be read"):
        reachability(system, lm.Spec(input_norm="inf", output_norm="1", domain=box), level="shor")
    with pytest.raises(lm.UsageError, match="level"):
        reachability(system, lm.Spec(input_norm="inf", output_norm="1"), level="hr3")


# ---------------------------------------------------------------------------------------------------- the exact rule


def _lower(value: str) -> str:
    return float(np.nextafter(float.fromhex(value), -np.inf)).hex()


def _block(p: dict[str, Any], k: int) -> dict[str, Any]:
    return p["blocks"][k]


TAMPERED: dict[str, Callable[[dict[str, Any]], None]] = {
    "bound lower": lambda p: p.update(bound=_lower(p["bound"])),
    "a product forgotten": lambda p: (
        _block(p, 0)["basis"].pop(),
        _block(p, 0).update(gram=_block(p, 0)["gram"][: -len(_block(p, 0)["basis"]) - 1]),
    ),
    "an unknown variable": lambda p: _block(p, 0)["basis"].__setitem__(-1, [10**6]),
    "gram too short": lambda p: _block(p, 0)["gram"].pop(),
    "gram no integer": lambda p: _block(p, 0)["gram"].__setitem__(0, 0.5),
    "a smaller diagonal": lambda p: _block(p, 0)["gram"].__setitem__(0, _block(p, 0)["gram"][0] // 2),
    "another unit": lambda p: _block(p, 0).update(exponent=_block(p, 0)["exponent"] + 1),
    "a negative multiplier": lambda p: next(b for b in p["blocks"] if b["constraint"] is not None).update(gram=[-1]),
    "another constraint": lambda p: next(b for b in p["blocks"] if b["constraint"] is not None).update(constraint=None),
    "no such constraint": lambda p: next(b for b in p["blocks"] if b["constraint"] is not None).update(constraint=999),
    "no multipliers": lambda p: p.update(blocks=p["blocks"][:1]),
    "no squares": lambda p: p.update(blocks=p["blocks"][1:]),
    "another equality": lambda p: p["equalities"][0].update(constraint=p["equalities"][-1]["constraint"] + 1),
    "half a coefficient": lambda p: p["equalities"][0].update(
        coefficients=[c // 2 + 10**15 for c in p["equalities"][0]["coefficients"]]
    ),
    "no equalities": lambda p: p.update(equalities=[]),
    "another rule": lambda p: p.update(rule="sos"),
    "another norm": lambda p: p.update(norms=["2", "1"]),
    "an unknown key": lambda p: p.update(hint=1),
    "a missing key": lambda p: p.pop("equalities"),
}


@pytest.fixture(scope="module")
def proof() -> tuple[Any, Any, dict[str, Any]]:
    made = net_of(1, 3, 6, 1)
    r = solved(made.network(), "hr2", domain="box:-0.5:0.5")
    data = json.loads(json.dumps(r.to_json()))["certificate"]
    assert data["upper"]["rule"] == "reachable"
    assert data["upper"]["equalities"]
    return made, made.network(), data


@pytest.mark.parametrize("how", TAMPERED)
def test_tampering(how: str, proof: tuple[Any, Any, dict[str, Any]]) -> None:
    _, net, data = proof
    assert lm.verify(net, json.dumps(data)).bound == float.fromhex(data["claim"]["bound"])
    bent = copy.deepcopy(data)
    TAMPERED[how](bent["upper"])
    bent["claim"]["bound"] = bent["upper"]["bound"]
    with pytest.raises(Refuted):
        lm.verify(net, json.dumps(bent))


def test_other_biases_and_boxes_are_refuted(proof: tuple[Any, Any, dict[str, Any]]) -> None:
    """A proof uses the biases and the box: it says nothing about others."""
    made, net, data = proof
    moved = replace(made, biases=(made.biases[0] / 2, made.biases[1])).network()
    named = {**data["network"], "sha256": moved.source.sha256}
    with pytest.raises(Refuted):
        lm.verify(moved, json.dumps({**data, "network": named}))
    for lo in (-0.75, -0.625):
        domain = {**data["claim"]["domain"], "lo": [lo.hex()] * 3}
        with pytest.raises(Refuted):
            lm.verify(net, json.dumps({**data, "claim": {**data["claim"], "domain": domain}}))
    with pytest.raises(Refuted):
        lm.verify(net, json.dumps({**data, "claim": {**data["claim"], "domain": "global"}}))


def test_what_a_proof_forgets_is_charged() -> None:
    net, box = net_of(2, 2, 3, 1).network(), lm.Box(lo=(-1.0,) * 2, hi=(1.0,) * 2)
    found = reachability(
        lm.increments(net, box, "inf"), lm.Spec(input_norm="inf", output_norm="1", domain=box), level="shor"
    ).found
    terms = found.program.objective.terms
    assert sos_bound(found.program, {"blocks": [], "equalities": []}) == Fraction(
        sum(map(abs, terms.values())), found.program.objective.unit
    )


def test_from_the_command_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    made = net_of(4, 3, 6, 1)
    layers = []
    for k, (w, b) in enumerate(zip(made.weights, made.biases, strict=True)):
        layers += [onnx.numpy_helper.from_array(w.astype(np.float32), f"w{k}")]
        layers += [onnx.numpy_helper.from_array(b.astype(np.float32), f"b{k}")]
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "w0", "b0"], ["h"], transB=1),
        onnx.helper.make_node("Relu", ["h"], ["r"]),
        onnx.helper.make_node("Gemm", ["r", "w1", "b1"], ["y"], transB=1),
    ]
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, k]) for n, k in (("x", 3), ("y", 1))]
    graph = onnx.helper.make_graph(nodes, "biased", ends[:1], ends[1:], layers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    path, saved = tmp_path / "net.onnx", tmp_path / "proof.json"
    onnx.save(model, path)
    true = exact_constant(made, -0.5, 0.5, "inf")
    for name in LEVELS:
        asked = ["solve", str(path), "-f", name, "--domain", "box:-0.5:0.5", "--save", str(saved)]
        assert main(asked) == 0
        assert json.loads(saved.read_text())["bound"] >= true * (1 - 1e-12)
        assert main(["verify", str(path), str(saved)]) == 0
    assert "verified" in capsys.readouterr().out.lower()
