"""Solver files: the format, the signs, the map that leads a solution back, and CSDP's word on the optimum."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.backends.base import SolveOptions
from lipmodel.bridges.program import cone_program
from lipmodel.bridges.scaling import prepare
from lipmodel.cli import main
from lipmodel.families import chosen_outputs
from lipmodel.io import check_format, write_problem
from lipmodel.io.sidecar import bound_of, read_map, restored
from lipmodel.spec import Norm, parse_outputs

Array = np.ndarray[Any, Any]
CSDP = shutil.which("csdp")
needs_csdp = pytest.mark.skipif(CSDP is None, reason="csdp is not installed (Debian: coinor-csdp)")


def read_sdpa(path: Path) -> tuple[Array, list[list[Array]]]:
    """An independent reader: c, and for every block the matrices F_0, F_1, .., F_m."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith(('"', "*"))]
    m, blocks = int(lines[0]), int(lines[1])
    orders = [int(v) for v in lines[2].split()]
    assert len(orders) == blocks
    c = np.array([float(v) for v in lines[3].split()])
    assert len(c) == m
    matrices = [[np.zeros((abs(n), abs(n))) for _ in range(m + 1)] for n in orders]
    seen = set()
    for line in lines[4:]:
        number, block, i, j = (int(v) for v in line.split()[:4])
        assert i <= j
        assert orders[block - 1] > 0 or i == j
        assert (number, block, i, j) not in seen
        seen.add((number, block, i, j))
        matrix = matrices[block - 1][number]
        matrix[i - 1, j - 1] = matrix[j - 1, i - 1] = float(line.split()[4])
    return c, matrices


def csdp(path: Path) -> tuple[float, Array]:
    """CSDP's objective in the units of the file, and its x."""
    assert CSDP is not None
    solution = path.with_suffix(".sol")
    done = subprocess.run([CSDP, path.name, solution.name], cwd=path.parent, capture_output=True, text=True, timeout=60)
    assert "Success" in done.stdout, done.stdout
    x = np.array([float(v) for v in solution.read_text().splitlines()[0].split()])
    match = re.search(r"Primal objective value:\s*(\S+)", done.stdout)
    assert match
    return float(match[1]), x


def small_net(seed: int, activation: Any = "relu", sizes: tuple[int, ...] = (3, 5, 4, 2)) -> lm.Network:
    rng = np.random.default_rng(seed)
    return lm.from_weights([rng.normal(size=(b, a)) for a, b in pairwise(sizes)], activation=activation)


def stated(net: lm.Network, name: str, norms: tuple[Norm, Norm], outputs: str = "all") -> lm.Model:
    """The model of a formulation for some outputs of a network."""
    from lipmodel.formulation import formulation

    system = chosen_outputs(lm.increments(net), parse_outputs(outputs))
    model = lm.build(system, formulation(name), lm.Spec(input_norm=norms[0], output_norm=norms[1]))
    assert isinstance(model, lm.Model)
    return model


def smallest_eigenvalue(model: lm.Model, values: Any) -> float:
    """Of the model's first matrix inequality at some values of its variables, expanded from its quadratic form."""
    form = model.matrix_constraints[0]
    signals = form.signals
    starts = np.cumsum([0, *(s.size for s in signals)])
    n = int(starts[-1])

    def at(z: Array) -> float:
        return form.value(values, {s: z[a : a + s.size] for s, a in zip(signals, starts, strict=False)})

    matrix = np.zeros((n, n))
    unit = np.eye(n)
    for i in range(n):
        for j in range(n):
            matrix[i, j] = (at(unit[i] + unit[j]) - at(unit[i] - unit[j])) / 4.0
    return float(np.linalg.eigvalsh(matrix)[0])


def test_the_file_is_the_scaled_program(tmp_path: Path) -> None:
    model = stated(small_net(1), "geolip", ("inf", "1"))
    path, beside = write_problem(model, tmp_path / "net.dat-s", {"formulation": {"name": "geolip"}})
    assert (path, beside) == (str(tmp_path / "net.dat-s"), str(tmp_path / "net.dat-s.map.json"))
    c, matrices = read_sdpa(Path(path))
    program = cone_program(prepare(model).model)
    link = read_map(beside)
    assert np.array_equal(c * link["objective"]["scale"], program.cost)
    rng = np.random.default_rng(0)
    x = rng.uniform(size=len(c))
    dense = np.zeros((program.psd[0].order,) * 2)
    block = program.psd[0]
    weight = np.where(block.var < 0, 1.0, x[np.maximum(block.var, 0)]) * block.value
    np.add.at(dense, (block.row, block.col), weight)
    dense = dense + np.tril(dense, -1).T
    psd, linear = (sum(x[k] * f[k + 1] for k in range(len(x))) - f[0] for f in matrices)
    np.testing.assert_allclose(psd, dense, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(np.diag(linear), program.ineq @ x + program.ineq_rhs, rtol=1e-13)


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
    path, beside = write_problem(m, tmp_path / "rows.dat-s", {})
    cost, matrices = read_sdpa(Path(path))
    link = read_map(beside)
    assert [block["kind"] for block in link["blocks"]] == ["psd", "diagonal"]
    assert [(r["kind"], r["size"]) for r in link["blocks"][1]["rows"]] == [
        ("nonnegative-variables", 2),
        ("inequalities", 2),
        ("equalities", 2),
        ("equalities-negated", 2),
    ]
    assert path.endswith("rows.dat-s")
    assert link["objective"]["offset"] == -1.0
    names = [v["name"] for v in link["variables"]]
    factor = {v["name"]: np.asarray(v["factor"]) for v in link["variables"]}
    point = {"a": 2.0, "b": 1.0, "c": 3.0, "d": 6.0}
    x = np.array([point[n] / float(factor[n]) for n in names])
    linear = np.diag(sum(x[k] * f for k, f in enumerate(matrices[1][1:])) - matrices[1][0])
    rows = {r["kind"]: linear[r["offset"] : r["offset"] + r["size"]] for r in link["blocks"][1]["rows"]}
    np.testing.assert_allclose(rows["nonnegative-variables"] > 0.0, True)
    np.testing.assert_allclose(np.sort(rows["inequalities"]), [3.0, 4.0])
    np.testing.assert_allclose(rows["equalities"], 0.0, atol=1e-15)
    np.testing.assert_allclose(rows["equalities-negated"], 0.0, atol=1e-15)
    assert link["objective"]["scale"] * float(cost @ x) + link["objective"]["offset"] == pytest.approx(6.003)
    assert {k: float(v[0]) for k, v in restored(link, x).items()} == point


@needs_csdp
def test_csdp_reads_rows_of_every_kind(tmp_path: Path) -> None:
    m = lm.Model("rows")
    u, v = m.signal("u", 1), m.signal("v", 1)
    a, b = m.variable("a"), m.variable("b", nonnegative=True)
    m.require(lm.inner(u, u, weight=a) + lm.inner(v, v, weight=b) + 2 * lm.inner(u, v) >= 0)
    m.require(b <= 2.0)
    m.minimize(40.0 * a + 3.0)  # a b >= 1, so a = 1/2 at b = 2
    path, beside = write_problem(m, tmp_path / "rows.dat-s", {})
    objective, x = csdp(Path(path))
    link = read_map(beside)
    assert bound_of(link, objective) == pytest.approx(23.0, rel=1e-6)
    assert restored(link, x)["a"][0] == pytest.approx(0.5, rel=1e-5)


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
    objective, x = csdp(tmp_path / "net.dat-s")
    model = stated(net, name, norms, outputs)
    point = backend("clarabel").solve(model, SolveOptions(tol=1e-8))
    assert point.objective is not None
    expected = model.bound_of(point.objective)
    assert bound_of(link, objective) == pytest.approx(expected, rel=1e-6)
    # CSDP's own point, led back, is a feasible point of the model as the formulation states it, with that objective
    by_name = restored(link, x)
    values = {v: by_name[v.name] for v in model.variables}
    assert model.objective is not None
    assert model.bound_of(float(model.objective.value(values)[0])) == pytest.approx(expected, rel=1e-5)
    assert smallest_eigenvalue(model, values) > -1e-6 * max(1.0, max(np.abs(v).max() for v in values.values()))


def test_the_map_says_what_the_file_is_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = small_net(5)
    net.save(tmp_path / "net.onnx")
    out = tmp_path / "p.dat-s"
    assert (
        main(["export", str(tmp_path / "net.onnx"), "-f", "geolip", "--norm", "inf", "--outputs", "1", str(out)]) == 0
    )
    assert capsys.readouterr().out == f"wrote {out} and {out}.map.json\n"
    link = json.loads((tmp_path / "p.dat-s.map.json").read_text())
    assert link["schema"] == "lipmodel/map/1"
    assert (link["file"], link["format"]) == ("p.dat-s", "sdpa-sparse")
    assert link["network"]["sha256"] == lm.load(tmp_path / "net.onnx").source.sha256
    assert link["spec"] == {"input_norm": "inf", "output_norm": "inf", "domain": "global", "outputs": "1"}
    assert link["formulation"] == {"name": "geolip", "options": {}}
    assert link["member"]["norms"] == ["inf", "2"]
    assert (link["objective"]["sense"], link["objective"]["bound"]) == ("minimise", "identity")
    assert math.frexp(link["objective"]["scale"])[0] == 0.5  # a power of two: nothing is rounded
    sizes = [(v["offset"], v["size"]) for v in link["variables"]]
    assert sizes[0][0] == 0
    assert all(b[0] == a[0] + a[1] for a, b in pairwise(sizes))
    signals = link["blocks"][0]["signals"]
    assert link["blocks"][0]["order"] == sum(s["size"] for s in signals)
    assert {s["name"] for s in signals} == {"dual", "x", "w1", "w2"}
    for v in link["variables"]:
        assert all(math.frexp(f)[0] == 0.5 for f in np.atleast_1d(v["factor"]))


def test_numbers_read_back_exactly(tmp_path: Path) -> None:
    third = 1.0 / 3.0
    m = lm.Model("thirds")
    u = m.signal("u", 1)
    k = m.variable("k", nonnegative=True)
    m.require(lm.inner(u, u, weight=k) - third * lm.inner(u, u) >= 0)
    m.minimize(k)
    path, beside = write_problem(m, tmp_path / "t.dat-s", {})
    c, matrices = read_sdpa(Path(path))
    link = read_map(beside)
    scale = matrices[0][0][0, 0] / third
    assert math.frexp(scale)[0] == 0.5
    # at the optimum k = 1/3, the file's inequality is tight
    x = third / float(np.asarray(link["variables"][0]["factor"]))
    assert x * matrices[0][1][0, 0] == matrices[0][0][0, 0]
    assert bound_of(link, float(c[0]) * x) == third


def test_other_suffixes_name_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = small_net(5)
    net.save(tmp_path / "net.onnx")
    for name in ("p.mat", "p.cbf", "p.dat-s.gz", "p", ".dat-s"):
        assert main(["export", str(tmp_path / "net.onnx"), "-f", "geolip", str(tmp_path / name)]) == 2
        assert ".dat-s (SDPA sparse)" in capsys.readouterr().err
        with pytest.raises(lm.UsageError):
            check_format(name)
    assert check_format("a/b.dat-s") == ".dat-s"


def test_families_and_closed_forms_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_net(5).save(tmp_path / "net.onnx")
    out = str(tmp_path / "p.dat-s")
    assert main(["export", str(tmp_path / "net.onnx"), "-f", "geolip", "--norm", "inf", out]) == 2
    assert "--outputs I" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "net.onnx"), "-f", "product", out]) == 2
    assert "product" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "net.onnx"), "-f", "geolip", str(tmp_path / "no" / "p.dat-s")]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx"]


def test_files_are_replaced_as_a_whole(tmp_path: Path) -> None:
    model = stated(small_net(1), "lipsdp-neuron", ("2", "2"))
    path = tmp_path / "p.dat-s"
    path.write_text("old")
    write_problem(model, path, {})
    first = path.read_bytes()
    write_problem(model, path, {})
    assert path.read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.dat-s", "p.dat-s.map.json"]


def test_maps_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    for content in ("{", "[]", '{"schema": "lipmodel/result/1"}'):
        path.write_text(content)
        with pytest.raises(lm.UsageError):
            read_map(path)
    with pytest.raises(lm.UsageError, match="cannot read"):
        read_map(tmp_path / "none.json")
    with pytest.raises(lm.UsageError, match="2 variables"):
        restored({"variables": [{"name": "a", "offset": 0, "size": 2, "factor": 1.0}]}, np.zeros(3))
