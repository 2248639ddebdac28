"""Every format: the same numbers as the program, for its own reader and for those of others; hostile files."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from exported import HEADER, block_values, linear_program, program_of, small_net, stated, with_everything
from scipy.io import loadmat

import lipmodel as lm
from lipmodel.bridges.program import ConeProgram
from lipmodel.bridges.standard import StandardProgram
from lipmodel.io import format_of, known_formats, write_problem
from lipmodel.io.cbf import CbfProblem, cbf_bytes, geometric_cbf, read_cbf, standard_cbf
from lipmodel.io.sdpa import SdpaProblem, read_sdpa, sdpa_bytes, sdpa_problem
from lipmodel.io.sedumi import write as write_sedumi
from lipmodel.io.sidecar import read_map

Array = np.ndarray[Any, Any]


def programs() -> list[ConeProgram]:
    return [
        program_of(stated(small_net(1), "lipsdp-neuron", ("2", "2"))),
        program_of(stated(small_net(2, "tanh"), "geolip", ("inf", "1"))),
        linear_program(),
        with_everything(),
    ]


def equal(a: Any, b: Any) -> bool:
    """Whether two problems that were read or written agree in every number."""
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if isinstance(x, tuple) and x and isinstance(x[0], np.ndarray):
            same = len(x) == len(y) and all(np.array_equal(u, v) for u, v in zip(x, y, strict=True))
        else:
            same = np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
        if not same:
            return False
    return True


# --- Round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("zipped", [False, True])
def test_sdpa_reads_what_it_writes(number: int, zipped: bool, tmp_path: Path) -> None:
    problem = sdpa_problem(programs()[number], 0.5, comments=["a (remark), 1.5", "another"])
    content = sdpa_bytes(problem)
    path = tmp_path / "p.dat-s.gz"
    path.write_bytes(gzip.compress(content) if zipped else content)
    found = read_sdpa(path)
    assert equal(found, problem)
    assert sdpa_bytes(found) == content


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("form", ["geometric", "standard"])
def test_cbf_reads_what_it_writes(number: int, form: str, tmp_path: Path) -> None:
    program = programs()[number]
    if form == "geometric":
        problem = geometric_cbf(program, 0.5, comments=["a remark"])
    else:
        problem = standard_cbf(StandardProgram(geometric=program), 0.5, comments=["a remark"])
    content = cbf_bytes(problem)
    path = tmp_path / "p.cbf"
    path.write_bytes(content)
    found = read_cbf(path)
    assert equal(found, problem)
    assert cbf_bytes(found) == content


def test_sdpa_is_read_as_others_write_it(tmp_path: Path) -> None:
    path = tmp_path / "p.dat-s"
    path.write_text(
        '"Example 1: mDim = 2\n* another remark\n'
        "2 = mDIM\n 2 = nBLOCK\n (2, -2) = bLOCKsTRUCT\n{1.0,\n +3.0e0}\n"
        "0 1 1 2 -1.0\n{1, 1, 1, 1, 1}\n2 1 2 2 1.0, 1 2 1 1 1\n2 2 2 2 1\n\n"
    )
    p = read_sdpa(path)
    assert p.comments == ('"Example 1: mDim = 2', "* another remark")
    assert p.orders == (2, -2)
    assert p.cost.tolist() == [1.0, 3.0]
    rows = list(zip(*(c.tolist() for c in (p.matrix, p.block, p.row, p.col, p.value)), strict=True))
    assert rows == [(0, 1, 1, 2, -1.0), (1, 1, 1, 1, 1.0), (2, 1, 2, 2, 1.0), (1, 2, 1, 1, 1.0), (2, 2, 2, 2, 1.0)]
    lower = tmp_path / "q.dat-s"
    lower.write_text("1\n1\n2\n1\n1 1 2 1 4.0\n")
    q = read_sdpa(lower)
    assert (q.row.tolist(), q.col.tolist()) == ([1], [2])


# --- The same numbers as the program --------------------------------------------------------------------------------


def sdpa_blocks(problem: SdpaProblem, x: Array) -> list[Array]:
    """sum_j x_j F_j - F_0 of every block, dense."""
    weights = np.concatenate([[-1.0], x])
    result = []
    for number, order in enumerate(problem.orders, start=1):
        kept = problem.block == number
        dense = np.zeros((abs(order),) * 2)
        at = (problem.col[kept] - 1, problem.row[kept] - 1)
        np.add.at(dense, at, weights[problem.matrix[kept]] * problem.value[kept])
        result.append(dense + np.tril(dense, -1).T)
    return result


@pytest.mark.parametrize("number", range(2))
def test_sdpa_blocks_are_the_inequalities(number: int) -> None:
    program = programs()[number]
    problem = sdpa_problem(program, 2.0)
    assert np.array_equal(problem.cost * 2.0, program.cost)
    x = np.random.default_rng(0).normal(size=program.size)
    *blocks, last = sdpa_blocks(problem, x)
    for found, expected in zip(blocks, block_values(program, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)
    assert problem.orders[-1] == -program.ineq.shape[0]
    np.testing.assert_allclose(np.diag(last), program.ineq @ x + program.ineq_rhs, rtol=1e-12, atol=1e-12)


def test_sdpa_files_hold_cones_and_equalities_only_rewritten(tmp_path: Path) -> None:
    for part in (replace(programs()[0], soc=with_everything().soc), linear_program()):
        with pytest.raises(lm.LipmodelError, match="nothing else"):
            sdpa_problem(part, 1.0)
    m = lm.Model("cones")
    u = m.signal("u", 1)
    t, w = m.variable("t"), m.variable("w", 3)
    m.require(lm.inner(u, u, weight=t) - 2.0 * lm.inner(u, u) >= 0)
    m.require(w.in_cone(lm.SecondOrder()))
    m.require((w[1] + t).equals(5.0))
    m.minimize(t + w[0])
    path, beside = write_problem(m, tmp_path / "p.dat-s", HEADER)
    orders = read_sdpa(path).orders
    assert sorted(orders) == [-2, 1, 3]  # the equality as a pair, the inequality, the cone as an arrow
    assert read_map(beside).size == 4


@pytest.mark.parametrize("number", range(4))
def test_sedumi_states_the_program(number: int, tmp_path: Path) -> None:
    program = programs()[number]
    path = tmp_path / "p.mat"
    content = write_sedumi(program, 2.0, form="standard", comments=["network abc"])
    path.write_bytes(content)
    assert content.startswith(b"MATLAB 5.0 MAT-file, network abc")
    assert write_sedumi(program, 2.0, form="standard", comments=["network abc"]) == content
    data = loadmat(path)
    a, b, c = sp.csc_array(data["A"]), data["b"].ravel(), np.asarray(data["c"].todense()).ravel()
    cones = {k: data["K"][0, 0][k].ravel().astype(int) for k in data["K"].dtype.names}
    assert np.array_equal(-2.0 * b, program.cost)
    y = np.random.default_rng(0).normal(size=program.size)
    slack = c - a.T @ y
    at = 0

    def take(count: int) -> Array:
        nonlocal at
        at += count
        return slack[at - count : at]

    np.testing.assert_allclose(take(int(cones.get("f", [0])[0])), program.eq @ y + program.eq_rhs, atol=1e-12)
    np.testing.assert_allclose(take(int(cones.get("l", [0])[0])), program.ineq @ y + program.ineq_rhs, atol=1e-12)
    for key, rotated in (("q", False), ("r", True)):
        blocks = [s for s in program.soc if s.rotated == rotated]
        assert list(cones.get(key, [])) == [s.matrix.shape[0] for s in blocks]
        for s in blocks:
            np.testing.assert_allclose(take(s.matrix.shape[0]), s.matrix @ y + s.rhs, atol=1e-12)
    matrices = block_values(program, y)
    assert list(cones.get("s", [])) == [len(m) for m in matrices]
    for m in matrices:
        np.testing.assert_allclose(take(m.size), m.ravel(order="F"), atol=1e-12)
    assert at == len(slack)


# --- Formats --------------------------------------------------------------------------------------------------------


def test_suffixes_name_formats() -> None:
    for suffix, found in known_formats().items():
        assert format_of(f"a/b{suffix}") is found
        if found.text:
            assert format_of(f"b{suffix}.gz") is found
    with pytest.raises(lm.UsageError, match=r"write b\.mat"):
        format_of("b.mat.gz")
    for name in ("p", ".cbf", ".gz", "p.dat", "p.json", "p.cbf.bz2"):
        with pytest.raises(lm.UsageError, match="no format has this suffix"):
            format_of(name)


def test_others_bring_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point names a Format, and its writer gets a program in the cones that the format has."""
    import sys
    from types import ModuleType

    from lipmodel.io import Format
    from lipmodel.io import formats as module

    theirs = ModuleType("theirs")

    def write(program: ConeProgram, unit: float, *, form: str, comments: list[str]) -> bytes:
        assert not program.eq.shape[0]
        return f"{form} {program.size} {len(comments)}".encode()

    theirs.write = write  # type: ignore[attr-defined]
    theirs.FORMAT = Format(  # type: ignore[attr-defined]
        suffix=".ours", name="ours", title="ours", writer="theirs:write", cones=frozenset({"psd", "nonnegative"})
    )
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    entry = EntryPoint(name="ours", value="theirs:FORMAT", group="lipmodel.formats")
    monkeypatch.setattr("lipmodel.io.formats.entry_points", lambda group: [entry])
    module.known_formats.cache_clear()
    try:
        model = stated(small_net(1), "lipsdp-neuron", ("2", "2"))
        path, beside = write_problem(model, tmp_path / "p.ours.gz", HEADER)
        assert gzip.decompress(Path(path).read_bytes()) == b"geometric 10 3"
        assert read_map(beside).file == "p.ours.gz"
    finally:
        module.known_formats.cache_clear()


def test_forms(tmp_path: Path) -> None:
    model = stated(small_net(1), "lipsdp-neuron", ("2", "2"))
    written = {}
    for suffix in (".dat-s", ".mat", ".cbf", ".cbf.gz"):
        for form in ("geometric", "standard"):
            write_problem(model, tmp_path / f"p{suffix}", HEADER, form=form)
            written[suffix, form] = (tmp_path / f"p{suffix}").read_bytes()
    assert written[".dat-s", "geometric"] == written[".dat-s", "standard"]
    assert written[".mat", "geometric"] == written[".mat", "standard"]
    assert written[".cbf", "geometric"] != written[".cbf", "standard"]
    for form in ("geometric", "standard"):
        unpacked = gzip.decompress(written[".cbf.gz", form])
        assert unpacked.replace(b"p.cbf.gz", b"p.cbf") == written[".cbf", form]
    with pytest.raises(lm.UsageError, match="--form standard"):
        write_problem(model, tmp_path / "q.model.json", HEADER, form="standard")


# --- Hostile files --------------------------------------------------------------------------------------------------

SDPA_FAULTS = {
    "empty": "",
    "binary": "\x00\x01\x02",
    "words": "hello\nworld\n",
    "many variables": "2000000000\n1\n2\n1\n",
    "too many variables": "99999999999\n1\n2\n1\n",
    "no variables": "0\n1\n2\n\n",
    "many blocks": "1\n2000000000\n2\n1\n",
    "order zero": "1\n1\n0\n1\n",
    "costs cut off": "2\n1\n2\n1\n",
    "nan": "1\n1\n2\nnan\n",
    "infinite entry": "1\n1\n2\n1\n1 1 1 1 inf\n",
    "entry cut off": "1\n1\n2\n1\n1 1 1 1\n",
    "matrix out of range": "1\n1\n2\n1\n2 1 1 1 1\n",
    "block out of range": "1\n1\n2\n1\n1 2 1 1 1\n",
    "block zero": "1\n1\n2\n1\n1 0 1 1 1\n",
    "row out of range": "1\n1\n2\n1\n1 1 1 3 1\n",
    "row zero": "1\n1\n2\n1\n1 1 0 1 1\n",
    "off a diagonal block": "1\n1\n-2\n1\n1 1 1 2 1\n",
    "twice": "1\n1\n2\n1\n1 1 1 2 1\n1 1 2 1 1\n",
    "float index": "1\n1\n2\n1\n1 1 1.5 2 1\n",
    "huge index": "1\n1\n2\n1\n1 1 1 99999999999999999999999 1\n",
}


@pytest.mark.parametrize("fault", SDPA_FAULTS)
def test_faults_of_sdpa_files(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "p.dat-s"
    path.write_bytes(SDPA_FAULTS[fault].encode("latin-1"))
    with pytest.raises(lm.UsageError, match="SDPA"):
        read_sdpa(path)


HEAD = "VER\n4\n\nOBJSENSE\nMIN\n\n"
CBF_FAULTS = {
    "empty": "",
    "no version": "OBJSENSE\nMIN\n",
    "version 9": "VER\n9\n",
    "sense": "VER\n4\nOBJSENSE\nBEST\n",
    "unknown section": HEAD + "INT\n1\n0\n",
    "unknown cone": HEAD + "VAR\n1 1\nEXP 1\n",
    "cones do not add up": HEAD + "VAR\n3 1\nF 2\n",
    "many matrices": HEAD + "PSDVAR\n2000000000\n2\n",
    "entries cut off": HEAD + "VAR\n1 1\nF 1\nOBJACOORD\n2\n0 1.0\n",
    "many entries": HEAD + "VAR\n1 1\nF 1\nOBJACOORD\n2000000000000\n0 1.0\n",
    "twice": HEAD + "VAR\n1 1\nF 1\nVAR\n1 1\nF 1\n",
    "index": HEAD + "VAR\n1 1\nF 1\nOBJACOORD\n1\n1 1.0\n",
    "negative index": HEAD + "VAR\n1 1\nF 1\nOBJACOORD\n1\n-1 1.0\n",
    "width": HEAD + "VAR\n1 1\nF 1\nOBJACOORD\n1\n0 1.0 2.0\n",
    "no matrix": HEAD + "VAR\n1 1\nF 1\nOBJFCOORD\n1\n0 0 0 1.0\n",
    "upper triangle": HEAD + "PSDVAR\n1\n2\nOBJFCOORD\n1\n0 0 1 1.0\n",
    "outside of the matrix": HEAD + "PSDVAR\n1\n2\nOBJFCOORD\n1\n0 2 1 1.0\n",
    "not finite": HEAD + "OBJBCOORD\nnan\n",
}


@pytest.mark.parametrize("fault", CBF_FAULTS)
def test_faults_of_cbf_files(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "p.cbf"
    path.write_text(CBF_FAULTS[fault])
    with pytest.raises(lm.UsageError, match="CBF"):
        read_cbf(path)


@pytest.mark.parametrize("read", [read_sdpa, read_cbf])
def test_faults_of_any_file(read: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(lm.UsageError, match="cannot read"):
        read(tmp_path / "none")
    with pytest.raises(lm.UsageError, match="cannot read"):
        read(tmp_path)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(np.random.default_rng(0).bytes(9000).hex().encode())[:-40])
    with pytest.raises(lm.UsageError, match="gzip"):
        read(tmp_path / "cut.gz")
    (tmp_path / "latin").write_bytes(b"\xff\xfe1\n")
    with pytest.raises(lm.UsageError, match="no text file"):
        read(tmp_path / "latin")


def test_files_larger_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a small gzipped file unpacks into is counted while it is read."""
    monkeypatch.setattr("lipmodel.io.text.MAX_BYTES", 10_000)
    path = tmp_path / "p.dat-s.gz"
    path.write_bytes(gzip.compress(b"1\n1\n2\n1\n" + b"\n" * 50_000))
    assert path.stat().st_size < 1_000
    with pytest.raises(lm.UsageError, match="larger than what is read"):
        read_sdpa(path)
    monkeypatch.setattr("lipmodel.io.text.MAX_NUMBERS", 9)
    path.write_text("1\n1\n2\n1\n1 1 1 1 1.0\n1 1 2 2 1.0\n")
    with pytest.raises(lm.UsageError, match="more than 9 numbers"):
        read_sdpa(path)


def test_a_problem_by_hand_is_written(tmp_path: Path) -> None:
    """The readers' types are values like others: what somebody makes is written and read."""
    problem = CbfProblem(var=(("F", 1),), con=(("L-", 1),), objb=0.1, obja=(np.array([0]), np.array([1.0])))
    (tmp_path / "p.cbf").write_bytes(cbf_bytes(problem))
    assert equal(read_cbf(tmp_path / "p.cbf"), problem)
