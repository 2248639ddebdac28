"""`lipmodel export`: the file and its map, and CSDP's word on the optimum."""

from __future__ import annotations

import math
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import HEADER, block_values, bound_of, needs_csdp, program_of, read_json, run_csdp, small_net, stated

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.backends.base import SolveOptions
from lipmodel.cli import main
from lipmodel.io import known_formats, write_problem
from lipmodel.io.sdpa import read_sdpa
from lipmodel.io.sidecar import read_map, values_of
from lipmodel.spec import Norm

Array = np.ndarray[Any, Any]


def optimum(path: Path) -> tuple[Array, float]:
    """CSDP's x, and its objective in the units of the file."""
    x = np.array([float(v) for v in run_csdp(path).read_text().splitlines()[0].split()])
    return x, float(read_sdpa(path).cost @ x)


def smallest_eigenvalue(model: lm.Model, values: Any) -> float:
    """Of the model's first matrix inequality at some values of its variables, expanded from its quadratic form."""
    form = model.matrix_constraints[0]
    signals = form.signals
    starts = np.cumsum([0, *(s.size for s in signals)])
    n = int(starts[-1])

    def at(z: Array) -> float:
        return form.value(values, {s: z[a : a + s.size] for s, a in zip(signals, starts, strict=False)})

    unit = np.eye(n)
    matrix = [[(at(unit[i] + unit[j]) - at(unit[i] - unit[j])) / 4.0 for j in range(n)] for i in range(n)]
    return float(np.linalg.eigvalsh(np.array(matrix))[0])


def test_rows_of_every_kind(tmp_path: Path) -> None:
    """A matrix inequality, variables of both signs, inequalities and equalities, at a point of each."""
    m = lm.Model("rows")
    u, v = m.signal("u", 1), m.signal("v", 1)
    a, b = m.variable("a", nonnegative=True), m.variable("b", nonnegative=True)
    c, d = m.variable("c"), m.variable("d")
    m.require(lm.inner(u, u, weight=a) + lm.inner(v, v, weight=b) + 2 * lm.inner(u, v) >= 0)
    m.require(c <= 7.0)
    m.require(c >= 0.0)
    m.require((a + 2.0 * b).equals(4.0))
    m.require((d - 2.0 * c).equals(0.0))
    m.minimize(3.0 * a + b - 1.0 + 0.001 * c)
    path, beside = write_problem(m, tmp_path / "rows.dat-s", HEADER)
    assert path.endswith("rows.dat-s")
    file, link = read_sdpa(path), read_map(beside)
    assert file.orders == (2, -8)  # the matrix; two signs, two inequalities, two equalities in both directions
    assert link.offset == -1.0
    assert [block["kind"] for block in read_json(beside)["blocks"]] == ["psd", "nonnegative"]
    point = {"a": 2.0, "b": 1.0, "c": 3.0, "d": 6.0}
    x = np.array([point[v.name] / float(link.factors[v][0]) for v in link.variables])
    diagonal = np.zeros(8)
    last = file.block == 2
    weights = np.concatenate([[-1.0], x])[file.matrix[last]]
    np.add.at(diagonal, file.row[last] - 1, weights * file.value[last])
    np.testing.assert_allclose(diagonal[:2] > 0.0, True)
    np.testing.assert_allclose(np.sort(diagonal[2:4]), [3.0, 4.0])
    np.testing.assert_allclose(diagonal[4:], 0.0, atol=1e-15)
    assert link.scale * float(file.cost @ x) + link.offset == pytest.approx(6.003)
    assert {v.name: float(value[0]) for v, value in values_of(link, x).items()} == point


@needs_csdp
def test_csdp_reads_rows_of_every_kind(tmp_path: Path) -> None:
    m = lm.Model("rows")
    u, v = m.signal("u", 1), m.signal("v", 1)
    a, b = m.variable("a"), m.variable("b", nonnegative=True)
    m.require(lm.inner(u, u, weight=a) + lm.inner(v, v, weight=b) + 2 * lm.inner(u, v) >= 0)
    m.require(b <= 2.0)
    m.minimize(40.0 * a + 3.0)  # a b >= 1, so a = 1/2 at b = 2
    path, beside = write_problem(m, tmp_path / "rows.dat-s", HEADER)
    x, objective = optimum(Path(path))
    link = read_map(beside)
    assert bound_of(link, objective) == pytest.approx(23.0, rel=1e-6)
    assert values_of(link, x)[link.variables[0]][0] == pytest.approx(0.5, rel=1e-5)


@needs_csdp
@pytest.mark.parametrize(
    ("name", "norms", "outputs", "activation"),
    [
        ("lipsdp-neuron", ("2", "2"), "all", "relu"),
        ("lipsdp-layer", ("2", "2"), "0,1", "tanh"),
        ("geolip", ("inf", "1"), "1", "relu"),
        ("geolip", ("inf", "2"), "all", "leakyrelu"),
        ("geolip", ("2", "1"), "all", "relu"),
    ],
)
def test_csdp_finds_the_same_optimum(
    name: str, norms: tuple[Norm, Norm], outputs: str, activation: str, tmp_path: Path
) -> None:
    net = small_net(3, activation)
    net.save(tmp_path / "net.onnx")
    argv = ["export", str(tmp_path / "net.onnx"), "-f", name, "--norm", ":".join(norms), "--outputs", outputs]
    assert main([*argv, str(tmp_path / "net.dat-s")]) == 0
    link = read_map(tmp_path / "net.dat-s.map.json")
    x, objective = optimum(tmp_path / "net.dat-s")
    model = stated(net, name, norms, outputs)
    point = backend("clarabel").solve(model, SolveOptions(tol=1e-8))
    assert point.objective is not None
    expected = model.bound_of(point.objective)
    assert bound_of(link, objective) == pytest.approx(expected, rel=1e-6)
    # CSDP's own point, led back, is a feasible point of the model as the formulation states it, with that objective
    by_name = {v.name: value for v, value in values_of(link, x).items()}
    values = {v: by_name[v.name] for v in model.variables}
    assert model.objective is not None
    assert model.bound_of(float(model.objective.value(values)[0])) == pytest.approx(expected, rel=1e-5)
    assert smallest_eigenvalue(model, values) > -1e-6 * max(1.0, max(np.abs(v).max() for v in values.values()))


def test_the_map_says_what_the_file_is_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = small_net(5)
    net.save(tmp_path / "net.onnx")
    out = tmp_path / "p.dat-s"
    argv = ["export", str(tmp_path / "net.onnx"), "-f", "geolip", "--norm", "inf", "--outputs", "1", str(out)]
    assert main(argv) == 0
    assert capsys.readouterr().out == f"wrote {out} and {out}.map.json\n"
    link = read_json(tmp_path / "p.dat-s.map.json")
    assert link["schema"] == "lipmodel/map/2"
    assert (link["file"], link["format"], link["form"]) == ("p.dat-s", "sdpa-sparse", "geometric")
    assert link["network"]["sha256"] == lm.load(tmp_path / "net.onnx").source.sha256
    assert link["spec"] == {"input_norm": "inf", "output_norm": "inf", "domain": "global", "outputs": "1"}
    assert link["formulation"] == {"name": "geolip", "options": {"cone": "psd"}}
    assert link["member"]["norms"] == ["inf", "2"]
    assert (link["objective"]["sense"], link["objective"]["bound"]) == ("minimise", "identity")
    assert math.frexp(link["objective"]["scale"])[0] == 0.5  # a power of two: nothing is rounded
    sizes = [(v["offset"], v["size"]) for v in link["variables"]]
    assert sizes[0][0] == 0
    assert all(b[0] == a[0] + a[1] for a, b in pairwise(sizes))
    assert link["solution"] == {"vector": "x", "size": sum(n for _, n in sizes), "sign": 1}
    signals = link["blocks"][0]["signals"]
    assert link["blocks"][0]["order"] == sum(s["size"] for s in signals)
    assert {s["name"] for s in signals} == {"dual", "x", "w1", "w2"}
    for v in link["variables"]:
        assert all(math.frexp(f)[0] == 0.5 for f in np.atleast_1d(v["factor"]))
    rules = [(term["rule"], term["activation"]) for term in link["multipliers"]]
    layers = [("slope", f"activation{k}") for k in (1, 2)]
    assert rules == [("ball-input", None), ("ball-dual", None), ("output-dual", None), *layers]
    assert link["own_terms"] == 0


@pytest.mark.parametrize(
    ("suffix", "form", "solution"),
    [
        (".dat-s", "standard", ("x", 1)),
        (".mat", "geometric", ("y", 1)),
        (".mat", "standard", ("y", 1)),
        (".cbf", "geometric", ("x", 1)),
        (".cbf", "standard", ("y", -1)),
    ],
)
def test_the_map_says_which_vector_leads_back(
    suffix: str, form: str, solution: tuple[str, int], tmp_path: Path
) -> None:
    model = stated(small_net(1), "lipsdp-neuron", ("2", "2"))
    _, beside = write_problem(model, tmp_path / f"p{suffix}", HEADER, form=form)
    link = read_map(beside)
    assert (link.vector, link.sign, link.form) == (*solution, form)


def test_numbers_read_back_exactly(tmp_path: Path) -> None:
    third = 1.0 / 3.0
    m = lm.Model("thirds")
    u = m.signal("u", 1)
    k = m.variable("k", nonnegative=True)
    m.require(lm.inner(u, u, weight=k) - third * lm.inner(u, u) >= 0)
    m.minimize(k)
    path, beside = write_problem(m, tmp_path / "t.dat-s", HEADER)
    file, link = read_sdpa(path), read_map(beside)
    entries = dict(zip(zip(file.matrix.tolist(), file.block.tolist(), strict=True), file.value.tolist(), strict=True))
    scale = entries[0, 1] / third
    assert math.frexp(scale)[0] == 0.5
    # at the optimum k = 1/3, the file's inequality is tight
    x = third / float(link.factors[link.variables[0]][0])
    assert x * entries[1, 1] == entries[0, 1]
    assert bound_of(link, float(file.cost[0]) * x) == third


def test_the_file_is_the_scaled_program(tmp_path: Path) -> None:
    model = stated(small_net(1), "geolip", ("inf", "1"))
    path, beside = write_problem(model, tmp_path / "net.dat-s", HEADER)
    assert (path, beside) == (str(tmp_path / "net.dat-s"), str(tmp_path / "net.dat-s.map.json"))
    file, program = read_sdpa(path), program_of(model)
    assert np.array_equal(file.cost * read_map(beside).scale, program.cost)
    assert file.comments[0] == '"lipmodel: geolip, norm 2:2, outputs all'
    assert "net.dat-s.map.json" in file.comments[2]
    x = np.random.default_rng(0).uniform(size=program.size)
    kept = file.block == 1
    dense = np.zeros((program.psd[0].order,) * 2)
    weights = np.concatenate([[-1.0], x])[file.matrix[kept]]
    np.add.at(dense, (file.col[kept] - 1, file.row[kept] - 1), weights * file.value[kept])
    np.testing.assert_allclose(dense, np.tril(block_values(program, x)[0]), rtol=1e-13, atol=1e-13)


def test_other_suffixes_name_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_net(5).save(tmp_path / "net.onnx")
    for name in ("p.txt", "p.mat.gz", "p", ".dat-s"):
        assert main(["export", str(tmp_path / "net.onnx"), "-f", "geolip", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert "write " in error or all(f"NAME{suffix} (" in error for suffix in known_formats())
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_every_format_is_written_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_net(5).save(tmp_path / "net.onnx")
    argv = ["export", str(tmp_path / "net.onnx"), "-f", "lipsdp-neuron"]
    names = ["p.dat-s", "p.dat-s.gz", "p.cbf", "p.cbf.gz", "p.mat", "p.model.json", "p.model.json.gz"]
    for name in names:
        assert main([*argv, str(tmp_path / name)]) == 0
        assert read_map(tmp_path / f"{name}.map.json").file == name
        assert re.fullmatch(r"wrote \S+ and \S+\n", capsys.readouterr().out)
    for name in names:
        assert ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")
    assert main([*argv, str(tmp_path / "q.cbf"), "--form", "standard"]) == 0
    assert read_map(tmp_path / "q.cbf.map.json").form == "standard"
    assert main([*argv, str(tmp_path / "q.mps")]) == 2
    assert "cone=dd" in capsys.readouterr().err
    assert not (tmp_path / "q.mps").exists()


def test_mosek_files_need_its_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_net(5).save(tmp_path / "net.onnx")
    argv = ["export", str(tmp_path / "net.onnx"), "-f", "lipsdp-neuron", str(tmp_path / "p.ptf")]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "mosek", None)
        assert main(argv) == 4
    assert "lipmodel[mosek]" in capsys.readouterr().err
    assert not (tmp_path / "p.ptf").exists()
    pytest.importorskip("mosek", reason="mosek is not installed")
    for suffix in (".ptf", ".task", ".jtask.gz"):
        assert main([*argv[:-1], str(tmp_path / f"p{suffix}")]) == 0
        link = read_map(tmp_path / f"p{suffix}.map.json")
        assert (link.form, link.vector, link.sign) == ("standard", "y", -1)


def test_linear_restrictions_are_written_as_linear_programs(tmp_path: Path) -> None:
    small_net(5).save(tmp_path / "net.onnx")
    argv = ["export", str(tmp_path / "net.onnx"), "-f", "lipsdp-neuron", "-o", "cone=dd"]
    for suffix in (".mps", ".lp", ".dat-s"):
        assert main([*argv, str(tmp_path / f"p{suffix}")]) == 0
    assert read_map(tmp_path / "p.mps.map.json").size == read_map(tmp_path / "p.lp.map.json").size
    assert all(order < 0 for order in read_sdpa(tmp_path / "p.dat-s").orders)


def test_families_and_closed_forms_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_net(5).save(tmp_path / "net.onnx")
    out = str(tmp_path / "p.dat-s")
    assert main(["export", str(tmp_path / "net.onnx"), "-f", "geolip", "--norm", "inf", out]) == 2
    assert "--outputs I" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "net.onnx"), "-f", "product", out]) == 2
    assert "product" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "net.onnx"), "-f", "geolip", str(tmp_path / "no" / "p.dat-s")]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx"]


def test_what_overflows_is_not_written(tmp_path: Path) -> None:
    lm.from_weights([[[1e200]], [[1e200]]]).save(tmp_path / "huge.onnx")
    with pytest.raises(lm.LipmodelError, match="out of the range of floats"):
        lm.export(tmp_path / "huge.onnx", "lipsdp-neuron", tmp_path / "p.dat-s")
    assert [p.name for p in tmp_path.iterdir()] == ["huge.onnx"]


def test_files_are_replaced_as_a_whole(tmp_path: Path) -> None:
    model = stated(small_net(1), "lipsdp-neuron", ("2", "2"))
    path = tmp_path / "p.dat-s"
    path.write_text("old")
    write_problem(model, path, HEADER)
    first = path.read_bytes()
    write_problem(model, path, HEADER)
    assert path.read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.dat-s", "p.dat-s.map.json"]
