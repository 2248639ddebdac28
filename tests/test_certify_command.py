"""The way back: what other solvers return for an exported problem becomes a proved bound, whatever it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import (
    Problem,
    conv_net,
    export_of,
    known_solution,
    make_problem,
    needs_csdp,
    needs_sdpa,
    read_json,
    run_csdp,
    run_sdpa,
    saved,
    small_net,
)
from scipy.io import savemat

import lipmodel as lm
from lipmodel.cli import main
from lipmodel.foreign import certify_solution
from lipmodel.io.sidecar import Link, read_map
from lipmodel.testing.networks import random_network

Array = np.ndarray[Any, Any]


# --- Real solvers ---------------------------------------------------------------------------------------------------

LOOPS: list[tuple[str, dict[str, Any], str]] = [
    ("lipsdp-neuron", {}, "chain"),
    ("lipsdp-layer", {}, "mixed"),
    ("lipsdp-neuron", {"outputs": "1"}, "residual"),
    ("geolip", {"norm": "inf:2"}, "skips"),
    ("geolip", {"norm": "inf", "outputs": "0"}, "concat"),
    ("geolip", {"norm": "inf:1"}, "dead"),
    ("lipsdp-layer", {}, "dead"),
    ("lipsdp-neuron", {"domain": "box:-0.5:0.5"}, "residual"),
    ("lipsdp-neuron", {}, "convolution"),
    ("geolip", {"norm": "inf:2"}, "convolution"),
    ("chordal-lipsdp", {"options": {"merge": False}}, "chain"),
    ("chordal-lipsdp", {"options": {"merge": False}}, "concat"),
    ("lipsdp-neuron", {"options": {"cone": "sdd"}}, "chain"),
]


def network(kind: str, folder: Path) -> Path:
    return conv_net(folder / "net.onnx") if kind == "convolution" else saved(random_network(kind, 1), folder)


@needs_csdp
@pytest.mark.parametrize(("name", "asked", "kind"), LOOPS)
def test_csdp_comes_home(name: str, asked: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """export, csdp, certify: the bound is that of solving in process."""
    net = network(kind, tmp_path)
    path, beside = export_of(net, tmp_path / "p.dat-s", name, **asked)
    result = certify_solution(net, run_csdp(path), beside, witness=False)
    expected = lm.solve(net, name, tol=1e-8, witness=False, **asked)
    assert result.bound <= expected.bound * (1.0 + 1e-6)
    if name != "lipsdp-layer":  # CSDP does not say that it is done, so that closed forms with more multipliers join in
        assert result.bound == pytest.approx(expected.bound, rel=1e-6)
    assert (result.assurance, result.backend, result.formulation) == ("proved", "foreign: csdp", name)
    assert result.spec == expected.spec
    assert result.claim == pytest.approx(expected.claim, rel=1e-5)
    result.save(tmp_path / "r.json")
    assert lm.verify(net, tmp_path / "r.json").bound == result.bound


@needs_sdpa
@pytest.mark.parametrize(("name", "asked", "kind"), [LOOPS[0], LOOPS[3], LOOPS[8]])
def test_sdpa_comes_home(name: str, asked: dict[str, Any], kind: str, tmp_path: Path) -> None:
    net = network(kind, tmp_path)
    path, beside = export_of(net, tmp_path / "p.dat-s", name, **asked)
    result = certify_solution(net, run_sdpa(path), beside, witness=False)
    expected = lm.solve(net, name, tol=1e-8, witness=False, **asked)
    assert result.bound == pytest.approx(expected.bound, rel=1e-6)
    assert result.backend == "foreign: sdpa"
    assert result.gap is not None
    assert result.gap < 1e-5


@pytest.mark.parametrize("suffix", [".mps", ".lp.gz"])
@pytest.mark.parametrize(("name", "asked"), [("lipsdp-neuron", {}), ("geolip", {"norm": "inf:2"})])
def test_highs_comes_home(suffix: str, name: str, asked: dict[str, Any], tmp_path: Path) -> None:
    """The linear restriction, solved by HiGHS from the file."""
    highspy = pytest.importorskip("highspy", reason="highspy is not installed")
    net = network("chain", tmp_path)
    path, beside = export_of(net, tmp_path / f"p{suffix}", name, options={"cone": "dd"}, **asked)
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.readModel(str(path))
    solver.run()
    solver.writeSolution(str(tmp_path / "p.sol"), 0)
    result = certify_solution(net, tmp_path / "p.sol", beside, witness=False)
    expected = lm.solve(net, name, backend="clarabel", options={"cone": "dd"}, tol=1e-8, witness=False, **asked)
    assert expected.claim is not None
    assert result.claim == pytest.approx(expected.claim, rel=1e-5)
    assert result.bound == pytest.approx(expected.bound, rel=1e-6)
    assert (result.backend, result.termination) == ("foreign: highs", "optimal")


# --- Files by hand --------------------------------------------------------------------------------------------------


def write_solution(kind: str, path: Path, link: Link, x: Array) -> None:
    """A solution file of some kind."""
    named = {v.name: (link.sign * x[link.offsets[v] : link.offsets[v] + v.size]) for v in link.variables}
    lists = {name: values.tolist() for name, values in named.items()}
    texts = {
        "csdp": " ".join(f"{v:.18e}" for v in x) + " \n1 1 1 1 1.0\n2 1 1 1 1.0\n",
        "sdpa": "phase.value  = pdOPT\nobjValPrimal = +1.0\nxVec = \n{"
        + ",\n".join(map(repr, x.tolist()))
        + "}\nxMat = \n",
        "json vector": json.dumps({"status": "solved", link.vector: x.tolist()}),
        "json list": json.dumps(x.tolist()),
        "json values": json.dumps({"values": lists}),
        "json named": json.dumps(lists),
        "mosek json": json.dumps(
            {"Task/solutions": {"interior": {"solsta": "optimal", "xx": x.tolist(), "y": x.tolist()}}}
        ),
    }
    if kind in texts:
        path.write_text(texts[kind])
    elif kind == "mat":
        savemat(path, {link.vector: x[:, None], "K": {"s": 2.0}})
    elif kind == "npy":
        np.save(path, x)
    elif kind == "npz vector":
        np.savez(path, **{link.vector: x, "other": np.zeros(3)})
    else:
        assert kind == "npz named"
        np.savez(path, **named)


KINDS = [
    "csdp", "sdpa", "json vector", "json list", "json values", "json named", "mosek json", "mat", "npy", "npz vector",
    "npz named",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".dat-s", ".cbf", ".model.json"])
def test_solutions_of_every_kind(kind: str, suffix: str, tmp_path: Path) -> None:
    net = saved(small_net(3), tmp_path)
    form = {"form": "standard"} if suffix == ".cbf" else {}
    _, beside = export_of(net, tmp_path / f"p{suffix}", **form)
    link = read_map(beside)
    path = tmp_path / ("solution.npz" if kind.startswith("npz") else "solution.npy" if kind == "npy" else "solution")
    write_solution(kind, path, link, known_solution(net, link))
    told: list[str] = []
    result = certify_solution(net, path, beside, witness=False, report=told.append)
    expected = lm.solve(net, "lipsdp-neuron", backend="clarabel", tol=1e-8, witness=False)
    assert result.bound == pytest.approx(expected.bound, rel=1e-6)
    assert told == []
    assert (
        result.backend == f"foreign: {kind if kind in ('csdp', 'sdpa') else 'mosek' if 'mosek' in kind else 'values'}"
    )


@pytest.mark.parametrize("form", ["geometric", "standard"])
def test_mosek_solution_files(form: str, tmp_path: Path) -> None:
    """A .sol file that MOSEK itself writes, after it has read the exported file; the numbers are put there by hand."""
    mosek = pytest.importorskip("mosek", reason="mosek is not installed")
    net = saved(small_net(3), tmp_path)
    path, beside = export_of(net, tmp_path / "p.cbf", form=form)
    link = read_map(beside)
    x = known_solution(net, link)
    with mosek.Task() as task:
        task.readdata(str(path))
        variables, rows = task.getnumvar(), sum(task.getaccn(k) for k in range(task.getnumacc()))
        kinds, zeros = [mosek.stakey.bas] * variables, [0.0] * variables
        levels, duals = zeros, np.zeros(rows)
        if form == "geometric":
            levels = x.tolist()
        else:
            duals[: len(x)] = x
        task.putsolutionnew(mosek.soltype.itr, [], kinds, [], [], levels, [], [], [], zeros, zeros, [], duals)
        task.writesolution(mosek.soltype.itr, str(tmp_path / "p.sol"))
        task.writejsonsol(str(tmp_path / "p.json"))
    expected = lm.solve(net, "lipsdp-neuron", backend="clarabel", tol=1e-8, witness=False)
    for name in ("p.sol", "p.json"):
        result = certify_solution(net, tmp_path / name, beside, witness=False)
        assert result.bound == pytest.approx(expected.bound, rel=1e-6)
        assert result.backend == "foreign: mosek"


MOSEK_SOL = """\
NAME                : lipmodel
PROBLEM STATUS      : PRIMAL_AND_DUAL_FEASIBLE
SOLUTION STATUS     : OPTIMAL
OBJECTIVE NAME      : OBJ
PRIMAL OBJECTIVE    : {primal}
DUAL OBJECTIVE      : {primal}

CONSTRAINTS
INDEX      NAME         AT ACTIVITY       LOWER LIMIT        UPPER LIMIT        DUAL LOWER         DUAL UPPER
{rows}

SYMMETRIC MATRIX VARIABLES
INDEX      NAME         I         J         PRIMAL                   DUAL
0          BARX1        0         0         1.7                      1
"""


def test_constraints_of_a_mosek_solution(tmp_path: Path) -> None:
    """Multipliers of equalities are the dual of the lower limit less that of the upper one."""
    net = saved(small_net(3), tmp_path)
    _, beside = export_of(net, tmp_path / "p.cbf", form="standard")
    link = read_map(beside)
    y = known_solution(net, link)
    parts = [(max(v, 0.0), max(-v, 0.0)) for v in y.tolist()]
    rows = "\n".join(f"{i} c{i} EQ 1 1 1 {low!r} {up!r}" for i, (low, up) in enumerate(parts))
    file = read_json(beside)["objective"]
    bound = lm.solve(net, "lipsdp-neuron", backend="clarabel", tol=1e-8, witness=False).bound
    (tmp_path / "p.sol").write_text(MOSEK_SOL.format(primal=-(bound**2) / file["scale"], rows=rows))
    result = certify_solution(net, tmp_path / "p.sol", beside, witness=False)
    assert result.bound == pytest.approx(bound, rel=1e-6)
    assert result.gap == pytest.approx(0.0, abs=1e-6)
    assert result.termination in ("optimal", "inaccurate")


# --- The command ----------------------------------------------------------------------------------------------------

MINE = '''
import lipmodel as lm


class ByHand(lm.Formulation):
    """LipSDP with one inequality that nobody but the author knows."""

    name, norms, default_norm = "by-hand", {("2", "2")}, "2"

    def build(self, system, spec):
        m = lm.Model(self.name)
        ball, price = m.ball(system.input, "2")
        form = ball - lm.inner(system.output, system.output)
        for act in system.activations:
            form -= lm.qc.slope_restricted(act, m.multiplier(act))
        form -= lm.inner(act.post, act.pre, weight=m.variable("mine", nonnegative=True).spread(act.size))
        m.require(form >= 0)
        m.minimize(2 * price, bound="sqrt")
        return m
'''


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("problem"))


def test_the_command_prints_what_solve_prints(
    problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(json.dumps(problem.x.tolist()))
    argv = ["certify", str(problem.net), "--solution", str(tmp_path / "x.json"), "--map", str(problem.map)]
    assert main([*argv, "--save", str(tmp_path / "r.json")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "≤ L(2→2) ≤" in out
    assert "proved, lipsdp-neuron, foreign: values," in out
    assert main(["verify", str(problem.net), str(tmp_path / "r.json")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("verified:")
    assert main([*argv, "--json"]) == 0
    result = lm.Result.from_json(json.loads(capsys.readouterr().out))
    assert result.bound == pytest.approx(problem.bound, rel=1e-6)
    assert result.lower_bound is not None
    assert result.lower_bound <= result.bound
    assert result.formulation == "lipsdp-neuron"


def test_notes_go_to_stderr(problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text(json.dumps(problem.x[1:].tolist()))
    argv = ["certify", str(problem.net), "--solution", str(tmp_path / "x.json"), "--map", str(problem.map)]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "closed-form multipliers instead" in err
    assert out.count("\n") == 1
    assert main([*argv, "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_formulations_from_files_come_home_without_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The map holds the multipliers by their rules; a term of no rule is left out of the proof, and that is told."""
    (tmp_path / "mine.py").write_text(MINE)
    net = saved(small_net(3), tmp_path)
    _, beside = export_of(net, tmp_path / "p.dat-s", f"{tmp_path / 'mine.py'}:ByHand")
    (tmp_path / "mine.py").unlink()
    link = read_map(beside)
    plain = read_map(export_of(net, tmp_path / "q.dat-s")[1])
    x = np.zeros(link.size)
    values = known_solution(net, plain)
    for v in plain.variables:
        (own,) = (u for u in link.variables if u.name == v.name)
        part = values[plain.offsets[v] : plain.offsets[v] + v.size] * plain.factors[v]
        x[link.offsets[own] : link.offsets[own] + own.size] = part / link.factors[own]
    (tmp_path / "x.json").write_text(json.dumps(x.tolist()))
    argv = ["certify", str(net), "--solution", str(tmp_path / "x.json"), "--map", str(beside), "--json"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "1 term of 'by-hand' without a rule" in err
    expected = lm.solve(net, "lipsdp-neuron", backend="clarabel", tol=1e-8, witness=False)
    result = lm.Result.from_json(json.loads(out))
    assert result.bound == pytest.approx(expected.bound, rel=1e-6)
    assert (result.formulation, result.assurance) == ("by-hand", "proved")


def test_chosen_graph_outputs_are_in_the_map(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=(3, 3)).astype(np.float32), name) for name in ("A", "B")]
    nodes = [
        helper.make_node("Gemm", ["x", "A"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
        helper.make_node("Gemm", ["y", "B"], ["z"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in "xyz"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    net = tmp_path / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), net)
    _, beside = export_of(net, tmp_path / "p.dat-s", graph_output="z")
    link = read_map(beside)
    assert link.graph_output == "z"
    (tmp_path / "x.json").write_text(json.dumps([0.5] * link.size))
    result = certify_solution(net, tmp_path / "x.json", beside)
    assert result.certificate is not None
    assert result.certificate["network"]["graph_output"] == "z"
    assert result.bound >= (result.lower_bound or 0.0) > 0.0
