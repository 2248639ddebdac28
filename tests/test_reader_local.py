"""Bounded domains and witnesses by the checker's own reading: ranges that hold, and importers that are found out."""

from __future__ import annotations

import copy
import json
import math
import pathlib
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from local_points import points, random_domain
from random_graphs import random_graph
from scipy import sparse

import lipmodel as lm
from lipmodel.activations import activation
from lipmodel.certify import pullback
from lipmodel.certify.claims import claims_of
from lipmodel.certify.evaluation import between, doubles, evaluate, pair_moduli
from lipmodel.certify.parts import matched
from lipmodel.certify.pullback import Bounds, Rows, Sums, vector
from lipmodel.certify.replay import Replay, region
from lipmodel.certify.source import READER, _reading, source_of
from lipmodel.certify.tape import Fixed, Kind, Reading, Sparse, Step, Tape, Unreadable, selection
from lipmodel.errors import RefusedInput
from lipmodel.lower import witness
from lipmodel.network import increments, onnx_activations, onnx_import, onnx_ops
from lipmodel.ranges.local import pre_activation_ranges
from lipmodel.spec import Ball, Box, Global, Spec

DOMAINS: list[tuple[Any, str]] = [
    (Box(-1.0, 1.0), "2"),
    (Ball([0.1] * 3, 0.5), "2"),
    (Ball([0.1] * 3, 0.7), "1"),
    (Ball([0.1] * 3, 0.05), "inf"),
]


def chain(path: pathlib.Path, rng: np.random.Generator, act: str = "Relu", depth: int = 2, width: int = 5) -> str:
    sizes = [3, *[width] * depth, 2]
    weights = [rng.standard_normal(s) for s in zip(sizes[1:], sizes, strict=False)]
    file = str(path / "net.onnx")
    lm.from_weights(weights, [rng.standard_normal(n) for n in sizes[1:]], activation=act).save(file)
    return file


def saved(path: pathlib.Path, model: Any) -> str:
    file = path / "graph.onnx"
    file.write_bytes(model.SerializeToString())
    return str(file)


# --- Arithmetic -----------------------------------------------------------------------------------------------------


def random_fixed(rng: np.random.Generator, n: int) -> Fixed:
    spread = 10 ** int(rng.integers(0, 40))
    values = [int(v * spread) for v in rng.standard_normal(n)]
    radii = [int(v * spread) if rng.random() < 0.7 else 0 for v in rng.random(n)]
    return Fixed(list(zip(values, radii, strict=True)), int(rng.integers(-50, 200)))


def fraction(value: int, power: int) -> Fraction:
    return value * Fraction(2) ** power


def test_rounded_intervals_hold_the_exact_ones_and_keep_zeros() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        x = random_fixed(rng, 6)
        x.entries[0] = (x.entries[0][1], x.entries[0][1])  # begins at zero
        y = x.rounded(40)
        for i in range(6):
            (a, b), (low, high) = x.ends(i), y.ends(i)
            assert low <= a <= b <= high
        assert y.ends(0)[0] == 0
        assert max(abs(v).bit_length() for pair in y.entries for v in pair) <= 42
        again = between([x.ends(i) for i in range(6)], 60)
        assert all(again.ends(i)[0] <= x.ends(i)[0] <= x.ends(i)[1] <= again.ends(i)[1] for i in range(6))
    exact = [(Fraction(1, 4), Fraction(3)), (Fraction(-5, 8), Fraction(-5, 8))]
    assert [between(exact, 60).ends(i) for i in range(2)] == exact
    third = between([(Fraction(1, 3), Fraction(1, 3))], 60).ends(0)
    assert third[0] < Fraction(1, 3) < third[1]


def random_sums(rng: np.random.Generator, count: int, n: int, bits: int) -> Sums:
    size = 2.0 ** rng.integers(1, bits, (count, 1))
    values = np.trunc(size * rng.uniform(-1.0, 1.0, (count, n))).astype(np.int64)
    values[rng.random(count) < 0.15] = 0
    return Sums(values, rng.integers(-60, 60, count).astype(np.int64))


def test_what_is_rounded_off_coefficients_is_accounted_for() -> None:
    rng = np.random.default_rng(2)
    for trial in range(80):
        parts = [random_sums(rng, 4, 5, 61) for _ in range(1 + trial % 3)]
        parts[0] = Sums(parts[0].values, parts[0].power, int(rng.integers(0, 5)))
        whole = pullback.added(parts)
        short, rest = pullback.shortened(whole)
        assert np.abs(short.coefficients).max() <= 2**pullback.SHORT
        for i in range(4):
            for j in range(5):
                true = sum(fraction(int(p.values[i, j]), int(p.power[i])) for p in parts)
                near = fraction(int(whole.values[i, j]), int(whole.power[i]))
                unit = fraction(1, int(whole.power[i]))
                uncertain = parts[0].slop * fraction(1, int(parts[0].power[i]))
                assert abs(near - true) + uncertain <= whole.slop * unit
                off = abs(fraction(int(short.coefficients[i, j]), int(short.power[i])) - near)
                assert off == (0 if rest is None else int(rest[i, j])) * unit


def random_rows(rng: np.random.Generator, n: int) -> Rows:
    coefficients = rng.integers(-(2**16), 2**16 + 1, (3, n)).astype(np.float64)
    return Rows(coefficients, rng.integers(-9, 9, 3).astype(np.int64))


def test_maps_are_pulled_back_up_to_their_slop() -> None:
    rng = np.random.default_rng(3)
    exact = 0
    for trial in range(60):
        m, n = (int(v) for v in rng.integers(1, 7, 2))
        bits = int(rng.integers(1, 20)) if trial % 2 else int(rng.integers(20, 140))
        whole = [[int(v) * 2**bits // 2**30 + 1 for v in row] for row in rng.integers(-(2**30), 2**30, (m, n))]
        map = Sparse(n, int(rng.integers(-20, 90)), [{c: (v, 0) for c, v in enumerate(row)} for row in whole])
        rows = random_rows(rng, m)
        got = pullback.pulled(rows, pullback.split(map))
        exact += got.slop == 0
        for i in range(3):
            for j in range(n):
                true = sum(int(rows.coefficients[i, k]) * whole[k][j] for k in range(m))
                near = fraction(int(got.values[i, j]), int(got.power[i]))
                gap = abs(fraction(true, int(rows.power[i]) - map.exponent) - near)
                assert gap <= got.slop * fraction(1, int(got.power[i]))
    assert 20 < exact < 60


def test_sparse_maps_are_split_like_dense_ones() -> None:
    rng = np.random.default_rng(13)
    index = rng.permutation(60)
    ready = pullback.split(selection(index.tolist(), 60))
    assert sparse.issparse(ready.first)
    rows = Rows(rng.integers(-9, 9, (2, 60)).astype(np.float64), np.zeros(2, dtype=np.int64))
    got = pullback.pulled(rows, ready)
    expected = np.zeros((2, 60))
    expected[:, index] = rows.coefficients
    assert np.array_equal(got.values * 2.0 ** got.power[:, None], expected)


def test_functions_of_intervals_and_of_balls() -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        n = int(rng.integers(1, 6))
        x, rows = random_fixed(rng, n), random_rows(rng, n)
        bounds, charged = Bounds(3), Bounds(3)
        bounds.gather(rows, vector(x))
        rest = rng.integers(0, 2**40, (3, n))
        charged.charge(rest, 3, rows.power, vector(x))
        for i in range(3):
            row, unit = rows.coefficients[i].astype(int).tolist(), fraction(1, int(rows.power[i]))
            least = sum(min(c * v for v in x.ends(j)) for j, c in enumerate(row)) * unit
            size = sum(abs(c) * max(map(abs, x.ends(j))) for j, c in enumerate(row)) * unit
            assert least - size * Fraction(1, 2**70) <= bounds.values[i] <= least
            most = sum((int(rest[i, j]) + 3) * max(map(abs, x.ends(j))) for j in range(n)) * unit
            assert most <= -charged.values[i] <= most * (1 + Fraction(1, 2**15))
        for norm, dual in (("1", max), ("2", lambda v: math.sqrt(sum(c * c for c in v)))):
            ball = Bounds(3)
            ball.on_ball(rows, norm, 5, 3)
            for i in range(3):
                reach = dual([abs(c) for c in rows.coefficients[i]]) * 5 / 8 * 2.0 ** int(rows.power[i])
                assert reach * (1 - 1e-12) <= -float(ball.values[i]) <= reach * (1 + 1e-12)


# --- Values ---------------------------------------------------------------------------------------------------------


def layer(rows: list[list[Fraction]], bias: list[Fraction], x: list[Fraction], last: bool) -> list[Fraction]:
    v = [sum((a * c for a, c in zip(row, x, strict=True)), b) for row, b in zip(rows, bias, strict=True)]
    return v if last else [max(e, Fraction(0)) for e in v]


def test_piecewise_linear_networks_are_evaluated_exactly(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal(s) for s in ((4, 3), (4, 4), (2, 4))]
    biases = [rng.standard_normal(n) for n in (4, 4, 2)]
    lm.from_weights(weights, biases).save(tmp_path / "net.onnx")
    reading = _reading(lm.load(tmp_path / "net.onnx"), Spec())
    rows = [[[Fraction(v) for v in row] for row in w.tolist()] for w in weights]
    offsets = [[Fraction(v) for v in b.tolist()] for b in biases]
    x, y = rng.standard_normal(3).tolist(), rng.standard_normal(3).tolist()
    values = []
    for point in (x, y):
        v = [Fraction(e) for e in point]
        for k in range(3):
            v = layer(rows[k], offsets[k], v, k == 2)
        values.append(v)
    step, change = pair_moduli(reading, x, y)
    assert step == [abs(Fraction(a) - Fraction(b)) for a, b in zip(x, y, strict=True)]
    assert change == [abs(a - b) for a, b in zip(*values, strict=True)]


def test_values_of_random_graphs_agree_with_the_importer(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(6)
    compared = 0
    for _ in range(60):
        model, _ = random_graph(rng)
        try:
            net = lm.load(saved(tmp_path, model), check=False)
            reading = _reading(net, Spec())
        except (RefusedInput, Unreadable):
            continue
        x, y = rng.standard_normal((2, net.input_size))
        value = evaluate(reading.tape, doubles(x.tolist()), reading.output)[reading.output]
        own = np.array([float(sum(value.ends(i)) / 2) for i in range(reading.outputs)])
        assert np.allclose(own, net.evaluate(x), rtol=1e-9, atol=1e-9)
        known = witness.pair_moduli(net, x, y)
        assert known is not None
        _, change = pair_moduli(reading, x.tolist(), y.tolist())
        assert np.allclose([float(v) for v in change], [float(v) for v in known[1]], rtol=1e-12, atol=1e-14)
        compared += 1
    assert compared > 45


def test_constants_go_through_activations_and_sums() -> None:
    tape = Tape()
    x = tape.add(Step("input", 2))
    c = tape.still(2, doubles([1.5, -2.0]))
    relu = tape.activation(c, "r", [0.0] * 2, [1.0] * 2, Kind("Relu"))
    double = tape.linear(relu, Sparse(2, 0, [{0: (2, 0)}, {1: (2, 0)}]), shift=doubles([0.25, 0.25]))
    assert tape.steps[double].kind == "still"
    total = tape.sum([x, double, c])
    assert tape.steps[total].kind == "sum"
    values = evaluate(tape, doubles([1.0, 1.0]))
    assert [values[double].ends(i)[0] for i in range(2)] == [Fraction(13, 4), Fraction(1, 4)]
    assert [values[total].ends(i) for i in range(2)] == [(Fraction(23, 4),) * 2, (Fraction(-3, 4),) * 2]
    lost = tape.sum([x, tape.activation(c, "u", [0.0] * 2, [1.0] * 2, Kind("no such function"))])
    assert not tape.steps[lost].known
    with pytest.raises(Unreadable, match="constant of which the value is not known"):
        evaluate(tape, doubles([1.0, 1.0]))


# --- Ranges ---------------------------------------------------------------------------------------------------------


def replayed(net: Any, domain: Any, norm: str, *, squeeze: float = 1.0, rng: Any = None) -> tuple[Replay, Reading]:
    """The replay with the importer's ranges as hints, squeezed to their middle, and lines of any slope with an rng."""
    reading = _reading(net, Spec())
    ranges, _ = pre_activation_ranges(net, domain, norm)
    claims = claims_of(net, ranges, None)
    hints: dict[int, Any] = {}
    for k, name in matched(reading.tape, list(claims)).items():
        lo, hi = claims[name].within  # type: ignore[misc]
        middle = 0.5 * lo + 0.5 * hi
        within = (middle + squeeze * (lo - middle), middle + squeeze * (hi - middle)) if squeeze < 1.0 else (lo, hi)
        slopes = claims[name].line_slopes()
        if rng is not None and slopes is not None:
            slopes = tuple(s + rng.standard_normal(len(s)) * (rng.random(len(s)) < 0.5) for s in slopes)
        hints[k] = SimpleNamespace(within=within, line_slopes=lambda s=slopes: s)
    found = Replay(reading=reading, region=region(domain, norm), claims=hints)
    found.run()
    return found, reading


def assert_holds(found: Replay, reading: Reading, domain: Any, norm: str, rng: np.random.Generator, count: int) -> None:
    before = [s.sources[0] for s in reading.tape.steps if s.kind == "activation"]
    for x in points(domain, norm, count, rng).T:
        if not domain.contains(x, norm):
            continue
        values = evaluate(reading.tape, doubles(x.tolist()))
        for k in before:
            span = found.spans[k]
            for i in range(reading.tape.steps[k].size if span is not None else 0):
                (low, high), (a, b) = values[k].ends(i), span.ends(i)  # type: ignore[union-attr]
                assert a <= high
                assert low <= b


ACTS = ["Relu", "LeakyRelu", "Abs", "Tanh", "Sigmoid", "Elu", "Gelu", "Softplus", "Sin", "HardSwish"]


@pytest.mark.parametrize("act", ACTS)
def test_own_ranges_hold_whatever_the_hints_say(act: str, tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(7)
    for trial in range(6):
        net = lm.load(chain(tmp_path, rng, act, depth=3))
        domain, norm = DOMAINS[trial % 4]
        squeeze = (1.0, 0.5, 0.0)[trial % 3]
        found, reading = replayed(net, domain.sized(3), norm, squeeze=squeeze, rng=rng if trial % 2 else None)
        assert_holds(found, reading, domain.sized(3), norm, rng, 12)


def test_own_ranges_hold_for_weights_of_any_size(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(14)
    for trial in range(12):
        sizes = [3, 5, 5, 5, 2]
        scale = [10.0 ** rng.uniform(-60.0, 60.0) for _ in sizes[1:]]
        pairs = zip(sizes[1:], sizes, strict=False)
        weights = [s * rng.standard_normal(shape) for s, shape in zip(scale, pairs, strict=True)]
        reach = np.cumprod(scale)
        biases = [r * rng.standard_normal(n) for r, n in zip(reach, sizes[1:], strict=True)]
        file = str(tmp_path / "net.onnx")
        lm.from_weights(weights, biases, activation=("Relu", "Abs")[trial % 2]).save(file)
        domain, norm = DOMAINS[trial % 4]
        found, reading = replayed(lm.load(file, check=False), domain.sized(3), norm, squeeze=(1.0, 0.2)[trial % 2])
        assert_holds(found, reading, domain.sized(3), norm, rng, 10)


def test_own_ranges_of_random_graphs(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(8)
    done = 0
    for trial in range(40):
        model, _ = random_graph(rng)
        net = lm.load(saved(tmp_path, model), check=False)
        norm, domain = ("1", "2", "inf")[trial % 3], random_domain(rng, net.input_size)
        try:
            found, reading = replayed(net, domain, norm, squeeze=0.3, rng=rng if trial % 2 else None)
        except Unreadable:
            continue
        assert_holds(found, reading, domain, norm, rng, 6)
        done += 1
    assert done > 30


def test_own_ranges_are_those_of_the_importer(tmp_path: pathlib.Path) -> None:
    """Not only true, but as small, else certificates would not be confirmed."""
    rng = np.random.default_rng(9)
    inside = total = 0
    for trial in range(8):
        net = lm.load(chain(tmp_path, rng, depth=4, width=8))
        domain, norm = DOMAINS[trial % 4]
        found, reading = replayed(net, domain.sized(3), norm)
        assert not found.gaps
        for k, hint in found.claims.items():
            span = found.spans[reading.tape.steps[k].sources[0]]
            for i, (lo, hi) in enumerate(zip(*hint.within, strict=True)):  # type: ignore[misc]
                low, high = span.ends(i)  # type: ignore[union-attr]
                assert low >= lo - 1e-9
                assert high <= hi + 1e-9
                inside += bool(lo <= low and high <= hi)
                total += 1
    assert inside >= 0.99 * total


@pytest.mark.parametrize("act", ["Relu", "LeakyRelu", "Abs", "Tanh", "Sigmoid", "Selu", "Mish", "Swish"])
def test_certificates_on_bounded_domains_are_read_independently(act: str, tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(10)
    for k, (domain, norm) in enumerate(DOMAINS):
        file = chain(tmp_path, rng, act, depth=1 + k % 3)
        for formulation in (None, "product"):
            result = lm.solve(file, formulation, norm=norm, domain=domain, witness=k == 0)
            verdict = lm.verify(file, json.dumps(result.to_json()))
            assert verdict.read_by == READER
            assert verdict.bound == result.bound


def test_random_graphs_on_bounded_domains_are_read_independently(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(11)
    verdicts = []
    for trial in range(25):
        model, _ = random_graph(rng)
        file = saved(tmp_path, model)
        p, q = ("1", "2", "inf")[trial % 3], ("1", "2", "inf")[trial // 3 % 3]
        domain = random_domain(rng, lm.load(file, check=False).input_size)
        result = lm.solve(file, [None, "product"][trial % 2], norm=(p, q), domain=domain, time_limit=1.0, witness=False)
        verdicts.append(lm.verify(file, result.certificate).read_by)
    assert verdicts.count(READER) >= 22, verdicts


def test_points_fixed_inputs_and_choices_of_outputs(tmp_path: pathlib.Path) -> None:
    file = chain(tmp_path, np.random.default_rng(12))
    domains: list[Any] = [Box(0.5, 0.5), Ball(0.25, 0.0), Box([-1.0, 0.5, 0.0], [1.0, 0.5, 0.5])]
    for domain in domains:
        for outputs in ("all", "1", "margin:0"):
            result = lm.solve(file, norm="2", domain=domain, outputs=outputs, witness=False)
            assert lm.verify(file, result.certificate).read_by == READER


# --- Importers with bugs --------------------------------------------------------------------------------------------


def squeezed(monkeypatch: Any, by: Any) -> None:
    """Ranges of the importer, (lo, hi) to by(lo, hi)."""
    genuine = increments.ranges_over

    def ranges(network: Any, *arguments: Any) -> Any:
        return {name: by(lo, hi) for name, (lo, hi) in genuine(network, *arguments).items()}

    for module in ("lipmodel.question", "lipmodel.network.increments"):
        monkeypatch.setattr(f"{module}.ranges_over", ranges)


def assert_found_out(file: str, domain: Any, norm: str = "2", formulation: Any = None) -> None:
    """What an importer with a bug proves is refused (its witness is left out, which would give it away as well)."""
    result = lm.solve(file, formulation, norm=norm, domain=domain, witness=False)
    with pytest.raises(lm.Refuted, match=r"disagree|inequality of the network fails"):
        lm.verify(file, json.loads(json.dumps(result.to_json()))["certificate"])


@pytest.mark.parametrize("formulation", [None, "product"])
@pytest.mark.parametrize("case", range(4))
def test_ranges_that_are_too_narrow(case: int, formulation: Any, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    domain, norm = DOMAINS[case]
    file = chain(tmp_path, np.random.default_rng(20 + case), depth=3)
    squeezed(monkeypatch, lambda lo, hi: (0.65 * lo + 0.35 * hi, 0.35 * lo + 0.65 * hi))
    assert_found_out(file, domain, norm, formulation)


@pytest.mark.parametrize("sign", [0.0, -1.0])
def test_biases_that_are_lost_or_of_the_wrong_sign(sign: float, tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(30)
    sizes = [3, 6, 6, 2]
    weights = [rng.standard_normal(s) for s in zip(sizes[1:], sizes, strict=False)]
    biases = [2.0 * rng.standard_normal(n) for n in sizes[1:]]
    file, wrong = str(tmp_path / "net.onnx"), str(tmp_path / "wrong.onnx")
    lm.from_weights(weights, biases).save(file)
    lm.from_weights(weights, [sign * b for b in biases]).save(wrong)
    honest = lm.solve(file, norm="2", domain=Box(-0.2, 0.2), witness=False)
    assert lm.verify(file, honest.certificate).read_by == READER
    true = lm.load(file)
    mistaken = replace(lm.load(wrong), source=true.source, model=true.model)  # the importer's idea of the first file
    result = lm.solve(mistaken, norm="2", domain=Box(-0.2, 0.2), witness=False)
    with pytest.raises(lm.Refuted, match="disagree"):
        lm.verify(mistaken, result.certificate)


def test_weights_and_activations_that_are_mistaken(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    file = chain(tmp_path, np.random.default_rng(31), depth=2)
    monkeypatch.setattr(onnx_import, "check_against_runtime", lambda *a, **k: None)
    gemm = onnx_ops.OPERATORS["Gemm", ""]

    def halved(node: Any) -> Any:
        node.attributes["alpha"] = 0.5
        return gemm(node)

    with monkeypatch.context() as patch:
        patch.setitem(onnx_ops.OPERATORS, ("Gemm", ""), halved)
        for formulation in (None, "product"):
            assert_found_out(file, Box(-1.0, 1.0), formulation=formulation)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_activations, "scalar_activation", lambda *a, **k: activation("LeakyRelu", alpha=0.25))
        assert_found_out(file, Box(-1.0, 1.0))


def test_a_witness_is_evaluated_independently(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    """Weights doubled on import: the upper bound is far too large, hence true; the lower bound is not."""
    rng = np.random.default_rng(32)
    file = str(tmp_path / "net.onnx")
    lm.from_weights([rng.standard_normal((4, 3)), rng.standard_normal((2, 4))], [np.ones(4), None]).save(file)
    monkeypatch.setattr(onnx_import, "check_against_runtime", lambda *a, **k: None)
    gemm = onnx_ops.OPERATORS["Gemm", ""]

    def doubled(node: Any) -> Any:
        node.attributes["alpha"] = 2.0
        return gemm(node)

    monkeypatch.setitem(onnx_ops.OPERATORS, ("Gemm", ""), doubled)
    result = lm.solve(file, "lipsdp-neuron", norm="2")
    assert result.lower_bound is not None
    certificate = json.loads(json.dumps(result.to_json()))["certificate"]
    with pytest.raises(lm.Refuted, match="difference quotient is below"):
        lm.verify(file, certificate)
    honest = copy.deepcopy(certificate)
    honest["lower"] = honest["claim"]["lower_bound"] = None
    assert lm.verify(file, honest).bound == result.bound


def test_a_bug_of_the_replay_is_not_an_error_of_the_certificate(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    file = chain(tmp_path, np.random.default_rng(33))
    result = lm.solve(file, norm="2", domain=Box(-1.0, 1.0))
    monkeypatch.setattr(Replay, "run", lambda self: 1 // 0)
    verdict = lm.verify(file, result.certificate)
    assert verdict.read_by == "the importer (the reader broke off: ZeroDivisionError)"


def test_what_cannot_be_replayed_is_said(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    """Ranges of the importer that are narrower by a hair, as other roundings would make them, are no contradiction."""
    file = chain(tmp_path, np.random.default_rng(34), "Tanh", depth=1)
    squeezed(monkeypatch, lambda lo, hi: (lo + 1e-10 * (hi - lo), hi - 1e-10 * (hi - lo)))
    result = lm.solve(file, norm="2", domain=Ball([0.1] * 3, 0.5))
    said = lm.verify(file, result.certificate).read_by
    assert said.startswith("the importer (the ranges of ")
    assert said.endswith(" neurons could not be replayed)")


def test_a_global_question_needs_no_ranges(tmp_path: pathlib.Path) -> None:
    net = lm.load(chain(tmp_path, np.random.default_rng(35)))
    assert source_of(net, Spec(domain=Global())).read_by == READER
