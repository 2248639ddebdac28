"""MOSEK: tasks are built and read back number by number; what a licence would bring is played by another solver."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import lipmodel as lm
from lipmodel.backends import mosek as adapter
from lipmodel.backends.base import Installed, Progress, SolveOptions, Unlicensed
from lipmodel.backends.conic import task as conic_task
from lipmodel.backends.mosek import Mosek, build_task
from lipmodel.bridges.standard import StandardProgram
from lipmodel.cli import main
from lipmodel.testing.backends import backend_checks, lipsdp, mixed_norm
from lipmodel.testing.networks import random_system
from lipmodel.testing.programs import PROGRAMS

mosek = pytest.importorskip("mosek")
WITHOUT_LICENCE = isinstance(Mosek().available(), Unlicensed)
MODELS = {
    "lipsdp": lambda: lipsdp(random_system("chain", 0)),
    "tied": lambda: lipsdp(random_system("mixed", 1), tied=True),
    "geolip": lambda: mixed_norm(random_system("mixed", 0), "inf", "1"),
    "residual": lambda: mixed_norm(random_system("residual", 0), "2", "1"),
    **{name: lambda name=name: PROGRAMS[name].problem()[0] for name in PROGRAMS},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_task_has_the_numbers_of_the_program(name, tmp_path):
    program = conic_task(MODELS[name](), SolveOptions(), Mosek.capabilities).program
    standard = StandardProgram(geometric=program)
    with build_task(None, standard, names=True) as built:
        _compare(built, standard)
        path = str(tmp_path / "problem.task")
        built.writedata(path)
    with mosek.Task() as read:
        read.readdata(path)
        _compare(read, standard)
        first = program.model.variables[0]
        assert read.getconname(0) == (f"{first.name}[0]" if first.size > 1 else first.name)


def _compare(task: Any, standard: StandardProgram) -> None:
    program, n = standard.geometric, len(standard.rhs)
    assert task.getobjsense() == mosek.objsense.minimize
    assert task.getnumcon() == n
    keys, low, high = task.getconboundslice(0, n)
    assert set(keys) <= {mosek.boundkey.fx}
    assert np.array_equal(low, program.cost)
    assert np.array_equal(high, program.cost)
    assert [task.getdimbarvarj(k) for k in range(task.getnumbarvar())] == [b.order for b in program.psd]
    found = {(-1, *at): v for *at, v in zip(*task.getbarcblocktriplet()[1:], strict=True)}
    found |= {tuple(at): v for *at, v in zip(*task.getbarablocktriplet()[1:], strict=True)}
    expected = {
        (int(var), k, int(row), int(col)): value
        for k, b in enumerate(program.psd)
        for var, row, col, value in zip(b.var, b.row, b.col, b.value, strict=True)
    }
    assert found == expected
    size = task.getnumvar()
    assert size == standard.columns.shape[1]
    if not size:
        return
    assert np.array_equal(task.getcslice(0, size), standard.cost)
    row, col, value = task.getatrip()
    matrix = sp.csr_array((value, (row, col)), shape=(n, size)).toarray()
    assert np.array_equal(matrix, standard.columns.toarray())
    _compare_cones(task, standard, size)


def _compare_cones(task: Any, standard: StandardProgram, size: int) -> None:
    bounds, low, _ = task.getvarboundslice(0, size)
    start, cones = 0, []
    for kind, count in standard.cones:
        key = mosek.boundkey.lo if kind == "nonnegative" else mosek.boundkey.fr
        assert set(bounds[start : start + count]) == {key}
        if kind == "nonnegative":
            assert not np.any(low[start : start + count])
        elif kind != "free":
            cones.append((kind, list(range(start, start + count))))
        start += count
    assert task.getnumacc() == len(cones)
    types = {"soc": mosek.domaintype.quadratic_cone, "rsoc": mosek.domaintype.rquadratic_cone}
    for k, (kind, members) in enumerate(cones):
        assert task.getdomaintype(task.getaccdomain(k)) == types[kind]
        rows = [task.getafefrow(at) for at in task.getaccafeidxlist(k)]
        assert [list(index) for _, index, _ in rows] == [[at] for at in members]
        assert [list(value) for _, _, value in rows] == [[1.0]] * len(members)


# -------------------------------------------------------------------------------- without a licence


@pytest.mark.skipif(not WITHOUT_LICENCE, reason="there is a MOSEK licence here")
def test_without_a_licence_the_command_ends_in_words(tmp_path, capsys):
    path = tmp_path / "net.onnx"
    lm.from_weights([[[1.0, 2.0], [3.0, -4.0]], [[1.0, 1.0]]]).save(path)
    assert main(["solve", str(path), "-f", "geolip", "-b", "mosek"]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unlicensed" in captured.err
    assert "MOSEKLM_LICENSE_FILE" in captured.err
    with pytest.raises(lm.BackendUnavailable, match="unlicensed"):
        Mosek().solve(MODELS["lipsdp"](), SolveOptions())


def test_the_licence_is_asked_for_once(monkeypatch):
    asked = []

    class Env:
        def __enter__(self) -> Env:
            asked.append(self)
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def checkoutlicense(self, feature: Any) -> None:
            pass

        def checkinall(self) -> None:
            pass

    monkeypatch.setattr(mosek, "Env", Env)
    adapter._licence_fault.cache_clear()
    try:
        assert isinstance(Mosek().available(), Installed)
        assert isinstance(Mosek().available(), Installed)
        assert len(asked) == 1
    finally:
        adapter._licence_fault.cache_clear()


# -------------------------------------------------------------------------------- with a licence, as another plays it


class Played:
    """A task whose `optimize` reads its contents back and has Clarabel solve that; all else is the real task's."""

    def __init__(self, task: Any, code: Any = None, error: Any = None, status: Any = None) -> None:
        self.task, self.code, self.error, self.status = task, code, error, status
        self.callback: Any = None
        self.stopped = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def __enter__(self) -> Played:
        return self

    def __exit__(self, *error: object) -> None:
        self.task.__exit__(*error)

    def set_InfoCallback(self, callback: Any) -> None:
        self.callback = callback

    def optimize(self) -> Any:
        if self.error is not None:
            raise mosek.Error(self.error, "as told")
        self.solution = solved_as_it_stands(self.task)
        numbers, counts = np.zeros(500), np.zeros(500, dtype=int)
        for k in (1, 2):
            counts[mosek.iinfitem.intpnt_iter] = k
            numbers[mosek.dinfitem.intpnt_primal_obj] = self.solution.obj_val + 1.0 / k
            numbers[mosek.dinfitem.intpnt_dual_obj] = self.solution.obj_val - 1.0 / k
            if self.callback(mosek.callbackcode.intpnt, numbers, counts, np.zeros(10)):
                return mosek.rescode.trm_user_callback
        assert not self.callback(mosek.callbackcode.begin_intpnt, numbers, counts, np.zeros(10))
        return self.code or mosek.rescode.ok

    def solutiondef(self, kind: Any) -> bool:
        assert kind == mosek.soltype.itr
        return hasattr(self, "solution")

    def getsolsta(self, kind: Any) -> Any:
        done = {"Solved": mosek.solsta.optimal, "PrimalInfeasible": mosek.solsta.prim_infeas_cer}
        done |= {"DualInfeasible": mosek.solsta.dual_infeas_cer}
        return self.status or done.get(str(self.solution.status), mosek.solsta.unknown)

    def gety(self, kind: Any, y: Any) -> None:
        y[:] = -np.asarray(self.solution.z)[: len(y)]

    def getprimalobj(self, kind: Any) -> float:
        return float(self.solution.obj_val)

    def getdualobj(self, kind: Any) -> float:
        return float(self.solution.obj_val_dual)

    def getintinf(self, item: Any) -> int:
        assert item == mosek.iinfitem.intpnt_iter
        return int(self.solution.iterations)


def solved_as_it_stands(task: Any) -> Any:
    """min <C, X> + c'x, <A_i, X> + (A x)_i = b_i, read from the task, by Clarabel."""
    import clarabel

    n, size = task.getnumcon(), task.getnumvar()
    orders = [task.getdimbarvarj(k) for k in range(task.getnumbarvar())]
    starts = np.cumsum([0, *(k * (k + 1) // 2 for k in orders)])
    total = int(starts[-1]) + size
    matrix, cost = sp.lil_array((n, total)), np.zeros(total)

    def place(k: int, row: int, col: int) -> tuple[int, float]:
        return int(starts[k]) + row * (row + 1) // 2 + col, 1.0 if row == col else np.sqrt(2.0)

    for k, row, col, value in zip(*task.getbarcblocktriplet()[1:], strict=True):
        at, factor = place(k, row, col)
        cost[at] += factor * value
    for i, k, row, col, value in zip(*task.getbarablocktriplet()[1:], strict=True):
        at, factor = place(k, row, col)
        matrix[i, at] += factor * value
    cones: list[Any] = [clarabel.ZeroConeT(n)]
    rows: list[Any] = []
    for k, order in enumerate(orders):
        rows.append(sp.eye_array(total, format="csr")[int(starts[k]) : int(starts[k + 1])])
        cones.append(clarabel.PSDTriangleConeT(order))
    if size:
        for i, j, value in zip(*task.getatrip(), strict=True):
            matrix[i, int(starts[-1]) + j] += value
        cost[int(starts[-1]) :] = task.getcslice(0, size)
        _append_cones(task, size, int(starts[-1]), total, rows, cones)
    stacked = sp.csc_matrix(sp.vstack([sp.csr_array(matrix), *(-r for r in rows)]))
    rhs = np.concatenate([np.array(task.getconboundslice(0, n)[1]), np.zeros(stacked.shape[0] - n)])
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_rel = settings.tol_gap_abs = 1e-10
    return clarabel.DefaultSolver(sp.csc_matrix((total, total)), cost, stacked, rhs, cones, settings).solve()


def _append_cones(task: Any, size: int, start: int, total: int, rows: list[Any], cones: list[Any]) -> None:
    import clarabel

    units = sp.eye_array(total, format="csr")
    keys = task.getvarboundslice(0, size)[0]
    lower = [start + j for j, key in enumerate(keys) if key == mosek.boundkey.lo]
    if lower:
        rows.append(units[lower])
        cones.append(clarabel.NonnegativeConeT(len(lower)))
    for k in range(task.getnumacc()):
        members = units[[start + int(task.getafefrow(at)[1][0]) for at in task.getaccafeidxlist(k)]]
        if task.getdomaintype(task.getaccdomain(k)) == mosek.domaintype.rquadratic_cone:
            turn = sp.block_diag([np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2.0), sp.eye(members.shape[0] - 2)])
            members = sp.csr_array(turn @ members)
        rows.append(members)
        cones.append(clarabel.SecondOrderConeT(members.shape[0]))


@pytest.fixture
def licensed(monkeypatch):
    """Plays a licence; called with what `Played` takes, it changes how a solve ends."""
    told: dict[str, Any] = {}

    def played(env: Any, standard: StandardProgram, *, names: bool = False) -> Played:
        return Played(build_task(env, standard, names=names), **told)

    monkeypatch.setattr(adapter, "build_task", played)
    monkeypatch.setattr(adapter, "_licence_fault", lambda: None)
    return told.update


@pytest.mark.parametrize("check", backend_checks(tags=["optimum"]), ids=str)
def test_solutions_are_read_with_the_right_sign(check, licensed):
    assert check(Mosek()) is None


@pytest.mark.parametrize("name", ["infeasible", "unbounded", "infeasible-rows", "no-time", "wrong-option", "progress"])
def test_conduct(name, licensed):
    (check,) = [c for c in backend_checks() if c.name == name]
    assert check(Mosek()) is None


def test_a_whole_solve(licensed):
    net = lm.from_weights([[[1.0, 2.0], [3.0, -4.0]], [[1.0, 1.0]]])
    ours = lm.solve(net, "geolip", norm="inf:2", backend="mosek", witness=False)
    assert (ours.assurance, ours.backend, ours.termination) == ("proved", "mosek", "optimal")
    assert ours.bound == pytest.approx(lm.solve(net, "geolip", norm="inf:2", witness=False).bound, rel=1e-5)


@pytest.mark.parametrize(
    ("code", "status", "termination"),
    [
        ("trm_max_time", "unknown", "time-limit"),
        ("trm_max_iterations", "unknown", "iteration-limit"),
        ("trm_stall", "unknown", "optimal"),
        ("ok", "prim_feas", "optimal"),
        ("ok", "prim_infeas_cer", "failed"),
        ("ok", "dual_infeas_cer", "failed"),
        ("trm_stall", "dual_illposed_cer", "failed"),
    ],
)
def test_statuses(code, status, termination, licensed):
    """What is called optimal is decided by the gap; certificates of infeasibility are no points."""
    licensed(code=getattr(mosek.rescode, code), status=getattr(mosek.solsta, status))
    point = Mosek().solve(MODELS["geolip"](), SolveOptions())
    assert point.termination == termination
    assert (point.values is None) == (termination == "failed")


def test_progress_and_interrupts(licensed):
    states: list[Progress] = []
    model = MODELS["geolip"]()
    point = Mosek().solve(model, SolveOptions(progress=states.append))
    assert [s.iteration for s in states] == [1, 2]
    unit = conic_task(model, SolveOptions(), Mosek.capabilities).unit
    for state in states:
        assert state.objective - point.objective == pytest.approx(unit / state.iteration, rel=1e-4)
        assert point.objective - state.lower == pytest.approx(unit / state.iteration, rel=1e-4)

    def interrupt(state: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Mosek().solve(model, SolveOptions(progress=interrupt))


def test_a_licence_that_ends_in_between(licensed):
    licensed(error=mosek.rescode.err_license_expired)
    with pytest.raises(lm.BackendUnavailable, match="license expired"):
        Mosek().solve(MODELS["geolip"](), SolveOptions())
    licensed(error=mosek.rescode.err_space)
    assert Mosek().solve(MODELS["geolip"](), SolveOptions()).termination == "failed"


def test_parameters_reach_the_task(monkeypatch, licensed, tmp_path):
    seen = {}

    def configured(task: Any, work: Any, settings: Any) -> None:
        configure(task, work, settings)
        seen["threads"] = task.getintparam(mosek.iparam.num_threads)
        seen["iterations"] = task.getintparam(mosek.iparam.intpnt_max_iterations)
        seen["time"] = task.getdouparam(mosek.dparam.optimizer_max_time)
        seen["gap"] = task.getdouparam(mosek.dparam.intpnt_co_tol_rel_gap)

    configure = adapter._configure
    monkeypatch.setattr(adapter, "_configure", configured)
    path = tmp_path / "out.ptf"
    native = {"threads": 3, "max_iterations": 17, "MSK_DPAR_INTPNT_CO_TOL_REL_GAP": 1e-5, "write": str(path)}
    Mosek().solve(MODELS["geolip"](), SolveOptions(native=native, time_limit=30.0))
    assert (seen["threads"], seen["iterations"], seen["gap"]) == (3, 17, 1e-5)
    assert 0.0 < seen["time"] <= 30.0
    assert "kappa" in path.read_text()
