"""What other programs read in the files: MOSEK, SDPA-Python and HiGHS, compared with the program number by number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from exported import HEADER, block_values, conv_net, linear_program, small_net, stated, with_everything
from scipy.optimize import linprog

import lipmodel as lm
from lipmodel.bridges.plan import compile_model
from lipmodel.bridges.program import ConeProgram
from lipmodel.bridges.standard import StandardProgram
from lipmodel.io import format_of, known_formats, write_problem
from lipmodel.io.cbf import cbf_bytes, geometric_cbf, standard_cbf
from lipmodel.io.formats import Form
from lipmodel.io.linear import write_lp, write_mps
from lipmodel.io.sdpa import sdpa_bytes, sdpa_problem
from lipmodel.io.sedumi import sedumi_data
from lipmodel.io.text import packed
from lipmodel.testing.networks import random_network

Array = np.ndarray[Any, Any]


CASES = {
    "everything": None,
    "lipsdp-neuron residual": ("residual", "lipsdp-neuron", ("2", "2"), {}),
    "lipsdp-neuron convolution": ("convolution", "lipsdp-neuron", ("2", "2"), {}),
    "geolip skips": ("skips", "geolip", ("inf", "2"), {}),
    "geolip convolution": ("convolution", "geolip", ("inf", "1"), {}),
    "chordal chain": ("chain", "chordal-lipsdp", ("2", "2"), {"merge": False}),
    "chordal concat": ("concat", "chordal-lipsdp", ("2", "2"), {"merge": False}),
    "sdd chain": ("chain", "lipsdp-neuron", ("2", "2"), {"cone": "sdd"}),
    "dd residual": ("residual", "geolip", ("2", "1"), {"cone": "dd"}),
}


def case_program(case: str, suffix: str, form: Form, folder: Path) -> ConeProgram:
    """What the file of a case holds."""
    asked = CASES[case]
    if asked is None:
        return with_everything()
    kind, name, norms, options = asked
    net = lm.load(conv_net(folder / "net.onnx")) if kind == "convolution" else random_network(kind, 1)
    capabilities = known_formats()[suffix].capabilities(form)
    return compile_model(stated(net, name, norms, **options), capabilities).program


@pytest.mark.parametrize("case", CASES)
def test_mosek_reads_the_geometric_form(case: str, tmp_path: Path) -> None:
    """Number by number, by MOSEK's own reader (which needs no licence)."""
    mosek = pytest.importorskip("mosek", reason="mosek is not installed")
    p = case_program(case, ".cbf", "geometric", tmp_path)
    path = tmp_path / "p.cbf"
    path.write_bytes(cbf_bytes(geometric_cbf(p, 2.0)))
    x = np.random.default_rng(0).normal(size=p.size)
    with mosek.Task() as task:
        task.readdata(str(path))
        assert task.getnumvar() == p.size
        assert [str(task.getvarbound(j)[0]) for j in range(p.size)] == ["boundkey.fr"] * p.size
        assert np.array_equal(np.array(task.getclist(list(range(p.size)))) * 2.0, p.cost)
        rows, cols, values = task.getafeftrip()
        f = sp.csr_array((values, (rows, cols)), shape=(task.getnumafe(), p.size))
        g = np.array(task.getafegslice(0, task.getnumafe()))
        found = []
        for number in range(task.getnumacc()):
            kind = str(task.getdomaintype(task.getaccdomain(number))).removeprefix("domaintype.")
            index = np.array(task.getaccafeidxlist(number))
            found.append((kind, (f @ x + g)[index] + np.array(task.getaccb(number))))
    expected = [("rplus", p.ineq @ x + p.ineq_rhs), ("rzero", p.eq @ x + p.eq_rhs)]
    expected += [("rquadratic_cone" if s.rotated else "quadratic_cone", s.matrix @ x + s.rhs) for s in p.soc]
    for m in block_values(p, x):
        cols, rows = np.triu_indices(len(m))
        expected.append(("svec_psd_cone", np.where(rows == cols, 1.0, np.sqrt(2.0)) * m[rows, cols]))
    for kind, values in expected:
        if len(values):
            match = [i for i, (k, v) in enumerate(found) if k == kind and len(v) == len(values)]
            near = [i for i in match if np.allclose(found[i][1], values, rtol=1e-12, atol=1e-12)]
            assert near, (kind, [found[i] for i in match], values)
            found.pop(near[0])
    assert not found


@pytest.mark.parametrize("case", CASES)
def test_mosek_reads_the_standard_form(case: str, tmp_path: Path) -> None:
    mosek = pytest.importorskip("mosek", reason="mosek is not installed")
    p = case_program(case, ".cbf", "standard", tmp_path)
    standard = StandardProgram(geometric=p)
    path = tmp_path / "p.cbf"
    path.write_bytes(cbf_bytes(standard_cbf(standard, 2.0)))
    rng = np.random.default_rng(1)
    x = rng.normal(size=len(standard.cost))
    with mosek.Task() as task:
        task.readdata(str(path))
        assert task.getnumvar() == len(x)
        assert [task.getdimbarvarj(j) for j in range(task.getnumbarvar())] == [b.order for b in p.psd]
        assert np.array_equal(task.getclist(list(range(len(x)))), standard.cost)
        rows, cols, values = task.getafeftrip()
        f = sp.csr_array((values, (rows, cols)), shape=(task.getnumafe(), len(x)))
        (equalities,) = (
            k for k in range(task.getnumacc()) if str(task.getdomaintype(task.getaccdomain(k))).endswith("rzero")
        )
        index = np.array(task.getaccafeidxlist(equalities))
        g = np.array(task.getafegslice(0, task.getnumafe()))[index]
        np.testing.assert_allclose((f @ x)[index], standard.columns @ x, rtol=1e-12, atol=1e-12)
        assert np.array_equal((g + np.array(task.getaccb(equalities))) * -2.0, standard.rhs)
        place = {int(row): k for k, row in enumerate(index)}
        _, rows, numbers, i, j, values = task.getafebarfblocktriplet()
        found = {(n, place[r], a, b): v for r, n, a, b, v in zip(rows, numbers, i, j, values, strict=True)}
        assert found == _coefficients(p, constant=False)
        _, numbers, i, j, values = task.getbarcblocktriplet()
        found = {(n, -1, a, b): v for n, a, b, v in zip(numbers, i, j, values, strict=True)}
        assert found == _coefficients(p, constant=True)


def _coefficients(p: ConeProgram, *, constant: bool) -> dict[tuple[int, ...], float]:
    """(block, variable, row, column) of all entries of the lower triangles."""
    result = {}
    for number, block in enumerate(p.psd):
        kept = (block.var < 0) == constant
        index = zip(*(x[kept].tolist() for x in (block.var, block.row, block.col)), strict=True)
        result.update(zip(((number, *i) for i in index), block.value[kept].tolist(), strict=True))
    return result


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("suffix", [".ptf", ".task", ".jtask", ".ptf.gz", ".task.gz", ".jtask.gz"])
def test_mosek_reads_its_own_files(case: str, suffix: str, tmp_path: Path) -> None:
    """What MOSEK wrote and reads again is the standard form, number by number."""
    mosek = pytest.importorskip("mosek", reason="mosek is not installed")
    p = case_program(case, suffix.removesuffix(".gz"), "standard", tmp_path)
    strange = suffix.endswith(".gz")
    if strange:  # names that are left out
        variables = [replace(v, name=v.name + " \n") for v in p.model.variables]
        p = replace(p, model=replace(p.model, variables=variables))
    standard = StandardProgram(geometric=p)
    path = tmp_path / f"p{suffix}"
    path.write_bytes(packed(format_of(path).write(p, 2.0, "standard", []), path))
    with mosek.Task() as task:
        task.readdata(str(path))
        assert (task.getnumcon(), task.getnumbarvar()) == (p.size, len(p.psd))
        assert (task.getconname(0) == "") == strange
        low, high = (np.array(v) for v in task.getconboundslice(0, p.size)[1:])
        assert np.array_equal(low * 2.0, standard.rhs)
        assert np.array_equal(high * 2.0, standard.rhs)
        assert np.array_equal(task.getclist(list(range(len(standard.cost)))), standard.cost)
        rows, cols, values = task.getatrip()
        found = sp.csc_array((values, (rows, cols)), shape=(p.size, len(standard.cost)))
        assert (found != standard.columns).nnz == 0
        _, *index, values = task.getbarablocktriplet()
        entries = {(n, v, i, j): value for v, n, i, j, value in zip(*index, values, strict=True)}
        assert entries == _coefficients(p, constant=False)
        _, *index, values = task.getbarcblocktriplet()
        entries = {(n, -1, i, j): value for n, i, j, value in zip(*index, values, strict=True)}
        assert entries == _coefficients(p, constant=True)
        kinds = [str(task.getdomaintype(task.getaccdomain(k))) for k in range(task.getnumacc())]
        assert kinds == [f"domaintype.{'r' * s.rotated}quadratic_cone" for s in p.soc]


@pytest.mark.parametrize("case", [case for case in CASES if case != "everything"])
def test_sdpa_python_reads_the_sdpa_file(case: str, tmp_path: Path) -> None:
    sdpap = pytest.importorskip("sdpap", reason="sdpa-python is not installed")
    p = case_program(case, ".dat-s", "geometric", tmp_path)
    path = tmp_path / "p.dat-s"
    problem = sdpa_problem(p, 1.0, comments=["remark"])
    path.write_bytes(sdpa_bytes(problem))
    # it reads the file as (D) in SeDuMi's form: the very numbers of the .mat file
    a, b, c, cones, rows = sdpap.importsdpa(str(path))
    assert (rows.f, rows.l, rows.s) == (p.size, 0, ())
    assert (cones.f, cones.l, list(cones.s)) == (0, p.ineq.shape[0], [block.order for block in p.psd])
    data = sedumi_data(p, 1.0)
    for found, expected in ((a, data["A"]), (b, sp.csc_array(data["b"])), (c, data["c"])):
        assert found.shape == expected.shape
        assert (sp.csc_array(found) != sp.csc_array(expected)).nnz == 0


# --- Linear programs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "write"), [(".mps", write_mps), (".lp", write_lp)])
@pytest.mark.parametrize("seed", range(4))
def test_highs_reads_and_solves_the_linear_program(
    suffix: str, write: Callable[..., bytes], seed: int, tmp_path: Path
) -> None:
    highspy = pytest.importorskip("highspy", reason="highspy is not installed")
    program = linear_program(seed, rows=30, size=20)
    path = tmp_path / f"p{suffix}"
    path.write_bytes(write(program, 4.0, form="geometric", comments=["a remark, 1 < 2: yes"]))
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    assert solver.readModel(str(path)) == highspy.HighsStatus.kOk
    lp = solver.getLp()
    assert lp.num_col_ == program.size
    assert list(lp.col_names_) == [f"x{j + 1}" for j in range(program.size)]
    assert np.array_equal(np.array(lp.col_cost_) * 4.0, program.cost)
    matrix = sp.csc_array((lp.a_matrix_.value_, lp.a_matrix_.index_, lp.a_matrix_.start_), shape=(31, program.size))
    if str(lp.a_matrix_.format_).endswith("kRowwise"):
        matrix = sp.csr_array((lp.a_matrix_.value_, lp.a_matrix_.index_, lp.a_matrix_.start_), shape=(31, program.size))
    order = np.argsort([int(name[1:]) for name in lp.row_names_])
    rest, equal = program.ineq[program.size - 1 :], program.eq
    assert np.array_equal(matrix.toarray()[order], np.vstack([rest.toarray(), equal.toarray()]))
    lower, upper = np.array(lp.row_lower_)[order], np.array(lp.row_upper_)[order]
    assert np.array_equal(lower, -np.concatenate([program.ineq_rhs[program.size - 1 :], program.eq_rhs]))
    assert np.array_equal(np.isinf(upper), [True] * 30 + [False])
    assert np.array_equal(np.array(lp.col_lower_), [0.0] * (program.size - 1) + [-np.inf])
    assert np.all(np.isinf(lp.col_upper_))
    solver.run()
    own = linprog(
        program.cost,
        A_ub=-program.ineq,
        b_ub=program.ineq_rhs,
        A_eq=program.eq,
        b_eq=-program.eq_rhs,
        bounds=(None, None),
    )
    assert own.status == 0
    assert solver.getObjectiveValue() * 4.0 == pytest.approx(own.fun, rel=1e-7)


@pytest.mark.parametrize("suffix", [".mps", ".lp"])
@pytest.mark.parametrize("case", ["dd residual", "random"])
def test_mosek_reads_the_linear_program(suffix: str, case: str, tmp_path: Path) -> None:
    mosek = pytest.importorskip("mosek", reason="mosek is not installed")
    p = linear_program(1, rows=30, size=20) if case == "random" else case_program(case, suffix, "geometric", tmp_path)
    path = tmp_path / f"p{suffix}"
    path.write_bytes(format_of(path).write(p, 1.0, "geometric", ["remark"]))
    x = np.random.default_rng(0).normal(size=p.size)
    with mosek.Task() as task:
        if suffix == ".mps":
            task.putintparam(mosek.iparam.read_mps_format, mosek.mpsformat.free)
        task.readdata(str(path))
        columns = np.array([int(task.getvarname(j).removeprefix("x")) - 1 for j in range(task.getnumvar())])
        assert sorted(columns) == list(range(p.size))
        assert np.array_equal(task.getclist(list(range(p.size))), p.cost[columns])
        free = np.array([str(task.getvarbound(j)[0]).endswith("fr") for j in range(p.size)])
        rows, cols, values = task.getatrip()
        size = task.getnumcon()
        activity = np.bincount(rows, weights=np.array(values) * x[columns][np.array(cols)], minlength=size)
        kinds, low, _ = task.getconboundslice(0, size)
        equal = np.array([str(kind).endswith("fx") for kind in kinds])
    slack = activity - np.array(low)
    np.testing.assert_allclose(np.sort(slack[equal]), np.sort(p.eq @ x + p.eq_rhs), rtol=1e-12, atol=1e-12)
    inequalities = np.concatenate([slack[~equal], x[columns][~free]])
    np.testing.assert_allclose(np.sort(inequalities), np.sort(p.ineq @ x + p.ineq_rhs), rtol=1e-12, atol=1e-12)


def test_matrix_inequalities_are_no_linear_program(tmp_path: Path) -> None:
    model = stated(small_net(1), "lipsdp-neuron", ("2", "2"))
    for suffix in (".mps", ".lp", ".mps.gz"):
        with pytest.raises(lm.UsageError, match="cone=dd"):
            write_problem(model, tmp_path / f"p{suffix}", HEADER)
    assert list(tmp_path.iterdir()) == []
