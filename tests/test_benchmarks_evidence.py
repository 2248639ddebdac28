"""The benchmarks that compare certificates with enumeration and a second opinion: they are right, and see faults."""

from __future__ import annotations

import ast
import copy
import itertools
import json
import pathlib
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from local_points import pieces

import lipmodel as lm

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import enumeration, opinions, second_opinion, shared_certificates  # noqa: E402
from benchmarks.cells import BENT, Bending, box, cross, halves, jacobians  # noqa: E402
from benchmarks.second_reader import NotAChainError, read_chain  # noqa: E402

ABSOLUTE = ROOT / "docs" / "examples" / "absolute.onnx"


def bending(seed: int, inputs: int, bent: int = 0, hidden: int = 5) -> Bending:
    rng = np.random.default_rng(seed)
    sizes = [inputs, hidden, 3, 2]
    weights = tuple(np.round(8 * rng.standard_normal((m, n))) / 8 for n, m in itertools.pairwise(sizes))
    biases = tuple(np.round(8 * rng.standard_normal(m)) / 8 for m in sizes[1:])
    return Bending(weights=weights, biases=biases, bent=(BENT[bent],) * 2)


# ------------------------------------------------------------------------------------------------------ enumeration


def test_a_box_is_cut_into_the_regions_of_an_arrangement():
    """Three lines in general position that meet pairwise inside a square leave seven regions, four planes a cube 15."""
    lines = [([1, 0], Fraction(1, 10)), ([0, 1], Fraction(1, 7)), ([1, 1], Fraction(-1, 5))]
    planes = [([1, 0, 0], Fraction(1, 9)), ([0, 1, 0], Fraction(1, 7)), ([0, 0, 1], Fraction(1, 5)),
              ([1, 1, 1], Fraction(-1, 10))]  # fmt: skip
    for cuts, size, regions in ((lines, 2, 7), (planes, 3, 15)):
        for start in (box([Fraction(-2)] * size, [Fraction(2)] * size), cross([Fraction(0)] * size, Fraction(9))):
            parts = [start]
            for a, b in cuts:
                parts = [half for p in parts for half in halves(p, [Fraction(x) for x in a], b) if half is not None]
            assert len(parts) == regions


def test_a_cut_that_only_touches_leaves_one_part_and_a_form_that_vanishes_cuts_nothing():
    square = box([Fraction(0)] * 2, [Fraction(1)] * 2)
    one, zero = Fraction(1), Fraction(0)
    assert halves(square, [one, one], zero) == (None, square)
    assert halves(square, [one, zero], -one) == (square, None)
    assert halves(square, [zero, zero], zero) == (None, square)


def test_cells_of_one_input_are_the_pieces():
    for seed in range(6):
        net = bending(seed, 1)
        cells = jacobians(net, box([Fraction(-2)], [Fraction(3)]), [[Fraction(1)]], [Fraction(0)])
        expected = pieces(list(net.weights), list(net.biases), -2.0, 3.0)
        assert {tuple(row[0] for row in cell) for cell in cells} == {tuple(v) for v in expected}


@pytest.mark.parametrize("bent", range(len(BENT)))
def test_every_jacobian_that_sampling_finds_is_one_of_a_cell(bent):
    rng = np.random.default_rng(bent)
    net = bending(bent, 3, bent)
    network = net.network()
    identity = [[Fraction(int(i == j)) for j in range(3)] for i in range(3)]
    cells = jacobians(net, box([Fraction(-1)] * 3, [Fraction(1)] * 3), identity, [Fraction(0)] * 3)
    known = np.array([[[float(x) for x in row] for row in cell] for cell in cells])
    step = 2.0**-20
    missed = 0
    for x in rng.uniform(-0.999, 0.999, size=(60, 3)):
        forward = np.stack([network.evaluate(x + step * e) for e in np.eye(3)], axis=1)
        backward = np.stack([network.evaluate(x - step * e) for e in np.eye(3)], axis=1)
        at = network.evaluate(x)[:, None]
        right, left = (forward - at) / step, (at - backward) / step
        if np.allclose(right, left, atol=1e-6):
            missed += not np.any(np.all(np.abs(known - right) < 1e-5, axis=(1, 2)))
    assert missed == 0
    assert len(cells) > 3


def test_the_local_truth_of_known_networks():
    absolute = Bending(
        weights=(np.array([[1.0], [-1.0]]), np.array([[1.0, 1.0]])), biases=(np.zeros(2), np.zeros(1)), bent=(BENT[0],)
    )
    about = enumeration.Subject("2", "2", "all")
    assert enumeration.local_truth(*enumeration.reached(absolute, lm.Box(-1.0, 2.0), "2"), about).value == 1.0
    net = bending(5, 3)
    held = lm.Box([0.25, -1.0, 0.5], [0.25, 1.0, 0.5])
    cells, free = enumeration.reached(net, held, "inf")
    assert free == 1
    assert all(len(row) == 1 for cell in cells for row in cell)
    point = lm.Box(0.5, 0.5).sized(3)
    nothing = enumeration.local_truth(*enumeration.reached(net, point, "inf"), about)
    assert nothing.value == 0.0
    assert not nothing.exceeded(0.0)


def test_a_bound_one_double_too_small_is_seen_exactly():
    exact = [[Fraction(3), Fraction(0)], [Fraction(0), Fraction(-2)]]
    matrix = np.array([[3.0, 0.0], [0.0, -2.0]])
    for p, q, norm in (("2", "2", 3.0), ("inf", "1", 5.0), ("1", "1", 3.0), ("inf", "inf", 3.0)):
        assert not enumeration.above(exact, matrix, norm, p, q)
        assert enumeration.above(exact, matrix, float(np.nextafter(norm, 0.0)), p, q)


def test_networks_are_checked_without_failures_and_a_run_goes_on(tmp_path):
    state = enumeration.fresh(3)
    for _ in range(4):
        enumeration.next_network(state)
    assert state["failures"] == []
    assert state["bounds"] >= state["answers"] > 20
    assert set(state["domains"]) >= {"global"}
    enumeration.save(state, tmp_path)
    again = enumeration.fresh(3)
    for _ in range(2):
        enumeration.next_network(again)
    (tmp_path / "enumeration.json").write_text(json.dumps(again))
    assert enumeration.main(["--seed", "3", "--bounds", str(state["bounds"]), "--out", str(tmp_path)]) == 0
    done = json.loads((tmp_path / "enumeration.json").read_text())
    assert (done["bounds"], done["networks"]) == (state["bounds"], state["networks"])
    assert "**0 failures.**" in (tmp_path / "enumeration.md").read_text()


def test_false_bounds_are_failures(monkeypatch):
    solve = lm.solve
    monkeypatch.setattr(enumeration.lm, "solve", lambda *a, **k: _lowered(solve(*a, **k)))
    state = enumeration.fresh(0)
    for _ in range(6):
        enumeration.next_network(state)
    assert sum("UNSOUND" in failure for failure in state["failures"]) > 3


def _lowered(result):
    return replace(result, bound=result.bound * (1.0 - 1e-7))


# --------------------------------------------------------------------------------------------------- second opinion


def by_hand(g: str, bound: float, t: str = "0x1.0p+1") -> dict:
    """The certificate of the worked example: on the edge at g = 2."""
    proof = {"rule": "lmi", "norms": ["2", "2"], "t": [[t, t]], "g": [g], "s": ["0x1.0p+0"], "bound": bound.hex()}
    claim = {"input_norm": "2", "output_norm": "2", "domain": "global", "outputs": "all", "bound": bound.hex()}
    lower = {"x": ["0x1.0p+0"], "y": ["0x0.0p+0"], "ratio": "0x1.0p+0"}
    return {"claim": {**claim, "lower_bound": "0x1.0p+0"}, "upper": proof, "lower": lower}


def verdict(layers, certificate) -> str:
    try:
        return second_opinion.check(layers, certificate)
    except second_opinion.DisagreesError as error:
        return str(error)


@pytest.mark.parametrize("exact", [0, 26])
def test_the_second_opinion_decides_the_worked_example(monkeypatch, exact):
    monkeypatch.setattr(second_opinion, "EXACT", exact)
    layers = read_chain(ABSOLUTE)
    assert verdict(layers, by_hand("0x1.2p+1", 1.5)) == "lmi"
    assert "below what the multipliers give" in verdict(layers, by_hand("0x1.2p+1", float(np.nextafter(1.5, 0.0))))
    assert "not positive semidefinite" in verdict(layers, by_hand("0x1.fp+0", 1.5))
    root = float(np.nextafter(np.sqrt(2.0), 2.0))
    if exact:
        assert verdict(layers, by_hand("0x1.0p+1", root)) == "lmi"  # singular, and decided exactly
        assert verdict(layers, by_hand("0x1.0p+0", 1.0, t="0x1.0p+0")) == "lmi"
    else:
        with pytest.raises(second_opinion.UndecidedError):
            second_opinion.check(layers, by_hand("0x1.0p+1", root))


def test_the_second_opinion_refuses_other_faults():
    layers = read_chain(ABSOLUTE)
    good = by_hand("0x1.2p+1", 1.5)
    for change in (
        lambda c: c["claim"].update(bound="0x1.4p+0"),
        lambda c: c["claim"].update(domain={"kind": "box"}),
        lambda c: c["upper"].update(t=[["0x1.0p+1"]]),
        lambda c: c["upper"].update(g=["-0x1.0p+1"]),
        lambda c: c["upper"].update(rule="product", bound="0x1.8p+0"),  # the product is 2
        lambda c: (c["claim"].update(lower_bound="0x1.2p+0"), c["lower"].update(ratio="0x1.2p+0")),
        lambda c: c["lower"].update(y=["0x1.0p+0"]),
    ):
        bad = copy.deepcopy(good)
        change(bad)
        assert verdict(layers, bad) not in ("lmi", "product"), bad


def test_rationals_and_balls_agree(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "net.onnx"
    seen = set()
    for _ in range(6):
        opinions.random_file(path, rng)
        layers = read_chain(path)
        r = lm.solve(path, "lipsdp-neuron", witness=False)
        for _, certificate in [("", r.certificate), *opinions.bent(r.certificate, rng)]:
            answers = []
            for exact in (0, 60):
                monkeypatch.setattr(second_opinion, "EXACT", exact)
                answers.append(verdict(layers, certificate))
            assert answers[0] == answers[1]
            seen.add(answers[0])
    assert {"lmi", "P is not positive semidefinite"} <= seen


def test_ball_arithmetic_does_not_decide_what_it_cannot():
    from flint import arb, arb_mat

    good = arb_mat([[arb(2), arb(1)], [arb(1), arb(2)]])
    assert second_opinion.positive_definite(good)
    assert not second_opinion.positive_definite(arb_mat([[arb(1), arb(2)], [arb(2), arb(1)]]))
    with pytest.raises(second_opinion.UndecidedError):
        second_opinion.positive_definite(arb_mat([[arb(1), arb(1)], [arb(1), arb(1)]]))
    n = 60
    line = [[arb(2 if i == j else -1 if abs(i - j) == 1 else 0) for j in range(n)] for i in range(n)]
    assert second_opinion.positive_definite(arb_mat(line))
    line[n - 1][n - 1] = arb("0.9")
    assert not second_opinion.positive_definite(arb_mat(line))


def test_square_roots_are_rounded_up():
    for x in (Fraction(9, 4), Fraction(2), Fraction(1, 3), Fraction(10**60 + 1), Fraction(1, 10**60), Fraction(0)):
        root = second_opinion.root_up(x)
        assert root * root >= x
        assert root * root <= x * (1 + Fraction(1, 2**90))
    assert second_opinion.root_up(Fraction(9, 4)) == Fraction(3, 2)


def test_norms_of_the_second_opinion_are_above_the_induced_ones():
    rng = np.random.default_rng(1)
    for _ in range(5):
        a = rng.standard_normal((3, 4))
        found = second_opinion.induced_norms(second_opinion.matrix_of(a))
        for (s, r), value in found.items():
            true = float(enumeration.induced(a[None], s, r)[0])
            assert float(value) >= true * (1.0 - 1e-12)
        assert float(found["2", "2"]) <= np.linalg.norm(a, 2) * (1.0 + 1e-12)


def test_the_second_opinion_shares_no_code():
    for name in ("second_opinion", "second_reader"):
        tree = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())
        modules = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
        modules += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [m for m in modules if m.startswith("lipmodel")]
        assert {m for m in modules if m.startswith("benchmarks")} <= {"benchmarks.second_reader"}


def test_the_reader_of_the_second_opinion_reads_what_a_runtime_computes(tmp_path):
    rng = np.random.default_rng(2)
    path = tmp_path / "net.onnx"
    for _ in range(8):
        opinions.random_file(path, rng)
        network, layers = lm.load(path), read_chain(path)
        x = rng.standard_normal(network.input_size)
        found = [float(v) for v in second_opinion.value(layers, [second_opinion.exact(v) for v in x])]
        assert found == pytest.approx(network.evaluate(x), rel=1e-9, abs=1e-12)


def test_branches_are_not_read(tmp_path):
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Add", ["a", "x"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]))
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(NotAChainError, match="branches"):
        read_chain(tmp_path / "net.onnx")


def test_both_agree_and_a_disagreement_is_seen(tmp_path, monkeypatch):
    assert opinions.main(["--random", "1", "--seed", "4", "--out", str(tmp_path)]) == 0
    assert "**0 disagreements.**" in (tmp_path / "second_opinion.md").read_text()
    monkeypatch.setattr(opinions.lm, "verify", lambda *a: None)
    assert opinions.main(["--random", "1", "--seed", "4", "--out", str(tmp_path)]) == 1


# ----------------------------------------------------------------------------------------- certificates of networks


def collection(folder: pathlib.Path) -> list[str]:
    rng = np.random.default_rng(7)
    shapes = {"a.onnx": (3, 4, 2), "b.onnx": (2, 3, 3, 1), "linear.onnx": (3, 2)}
    lines = ["path,verdict,hidden_units"]
    for name, sizes in shapes.items():
        lm.from_weights([rng.standard_normal((m, n)) for n, m in itertools.pairwise(sizes)]).save(folder / name)
        lines.append(f"{name},accept,{sum(sizes[1:-1])}")
    (folder / "index.csv").write_text("\n".join([*lines, "c.onnx,reject,3"]) + "\n")
    return list(shapes)


def test_every_certificate_of_a_collection_is_verified_and_bent(tmp_path, monkeypatch):
    names = collection(tmp_path)
    run = [str(tmp_path), "--out", str(tmp_path / "out")]
    assert shared_certificates.main(run) == 0
    state = json.loads((tmp_path / "out" / "shared_certificates.json").read_text())
    assert len(state["rows"]) == 3 * len(names)
    assert all(row["faults"] == [] and row["ulp"].startswith("refuted") for row in state["rows"].values())
    monkeypatch.setattr(shared_certificates, "refused", lambda path, certificate: "")
    assert shared_certificates.main([*run, "--restart"]) == 1


@pytest.mark.parametrize("formulation", ["product", "lipsdp-neuron"])
@pytest.mark.parametrize("field", sorted(shared_certificates.FIELDS))
def test_every_bent_field_is_refused(formulation, field):
    network = lm.from_weights([np.array([[1.0, 2.0], [0.5, -1.0]]), np.array([[1.0, -1.0]])])
    certificate = json.loads(json.dumps(lm.solve(network, formulation).certificate))
    assert shared_certificates.refused(network, certificate) == ""
    shared_certificates.FIELDS[field](certificate)
    assert shared_certificates.refused(network, certificate).startswith("refuted")


def test_a_bound_of_several_members_is_bent_in_all_that_attain_it():
    network = lm.from_weights([np.eye(2), np.eye(2)])
    certificate = lm.solve(network, "geolip", norm="inf", witness=False).certificate
    how, doubles = shared_certificates.threshold(network, certificate)
    assert how.startswith("refuted")
    assert doubles <= 4
