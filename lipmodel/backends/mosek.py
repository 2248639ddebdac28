"""MOSEK, through its own task interface: the dual in standard form, one equality for each variable of the model.

The multipliers y of these equalities, with the sign turned, are the values of the model's variables.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.backends.base import (
    Availability,
    BackendOption,
    Capabilities,
    Installed,
    Point,
    SolveOptions,
    Termination,
    Unlicensed,
)
from lipmodel.backends.conic import refusal
from lipmodel.backends.running import Answer, solve_conic
from lipmodel.backends.settings import LOG_LEVEL, MAX_ITERATIONS, THREADS, Settings, distribution_state
from lipmodel.errors import BackendUnavailable, UsageError

if TYPE_CHECKING:
    from lipmodel.backends.conic import Task
    from lipmodel.bridges.standard import StandardProgram
    from lipmodel.model.model import Model

Array = np.ndarray[Any, Any]
_HINT = "set MOSEKLM_LICENSE_FILE or put mosek.lic into ~/mosek (https://www.mosek.com/license/request)"


class Mosek:
    """MOSEK's conic interior-point optimizer, called directly."""

    name = "mosek"
    description = "MOSEK conic interior point, called directly, any model"
    capabilities = Capabilities(
        cones=frozenset({"psd", "soc", "rsoc", "nonnegative", "zero", "free"}),
        form="standard",
        max_order=400,
        on_request=True,
        precision=1e-8,
        progress=True,
        licence="commercial",
        options=(
            MAX_ITERATIONS,
            THREADS,
            LOG_LEVEL,
            BackendOption(name="write", default="", help="also write the task to this file (.task, .ptf, .cbf, ...)"),
        ),
        passes_on="parameters by their generic names, such as MSK_DPAR_INTPNT_CO_TOL_REL_GAP=1e-10",
    )

    def available(self) -> Availability:
        state = distribution_state("mosek", "mosek", "mosek")
        if not isinstance(state, Installed):
            return state
        reason = _licence_fault()
        return state if reason is None else Unlicensed(reason=reason)

    def refuses(self, model: Model) -> str | None:
        return refusal(model, self.capabilities)

    def solve(self, model: Model, options: SolveOptions) -> Point:
        """Raises UsageError for an unknown parameter, BackendUnavailable without a licence."""
        return solve_conic(self, model, options, lambda work, settings: _run(work, settings, options))


@lru_cache(maxsize=1)
def _licence_fault() -> str | None:
    """Why there is no licence, or None: asked by checking one out, which needs no problem; once a process."""
    try:
        import mosek

        with mosek.Env() as env:
            for feature in (mosek.feature.pts, mosek.feature.pton):
                env.checkoutlicense(feature)
            env.checkinall()
    except ImportError as error:
        return f"its library cannot be loaded ({error})"
    except mosek.Error as error:
        return _licence_words(error)
    return None


def _licence_words(error: Any) -> str:
    name = str(error.errno).rpartition(".")[2].removeprefix("err_").replace("_", " ")
    return f"MOSEK says {name!r}; {_HINT}"


def build_task(env: Any, standard: StandardProgram, *, names: bool = False) -> Any:
    """The program as a `mosek.Task`: bar variables for the matrices, one equality for each geometric variable.

    env: a `mosek.Env`, or None for the global one. names: equalities are called after the model's variables, bar
    variables `X1`, `X2`, ... No licence is needed to build, write or read a task. Raises mosek.Error.
    """
    import mosek

    task = mosek.Task() if env is None else mosek.Task(env)
    count, blocks, columns = len(standard.rhs), standard.psd, standard.columns
    task.appendcons(count)
    task.appendbarvars(np.array([block.order for block in blocks], dtype=np.int32))
    task.putobjsense(mosek.objsense.minimize)
    if count:
        task.putconboundslice(0, count, [mosek.boundkey.fx] * count, _numbers(standard.rhs), _numbers(standard.rhs))
    row, col, var, value, of = _joined(blocks)
    constant = var < 0
    task.putbarcblocktriplet(of[constant], row[constant], col[constant], value[constant])
    rest = ~constant
    task.putbarablocktriplet(var[rest], of[rest], row[rest], col[rest], value[rest])
    size = columns.shape[1]
    task.appendvars(size)
    if size:
        task.putcslice(0, size, _numbers(standard.cost))
        ends = columns.indptr.astype(np.int64)
        task.putacolslice(0, size, ends[:-1].copy(), ends[1:].copy(), _indices(columns.indices), _numbers(columns.data))
        _put_cones(task, standard.cones)
    if names:
        _name(task, standard)
    return task


def _joined(blocks: tuple[Any, ...]) -> tuple[Array, Array, Array, Array, Array]:
    """Row, column, variable, value and block of all entries."""
    none = np.zeros(0, dtype=np.int32)
    row = _indices(np.concatenate([none, *(b.row for b in blocks)]))
    col = _indices(np.concatenate([none, *(b.col for b in blocks)]))
    var = _indices(np.concatenate([none, *(b.var for b in blocks)]))
    value = _numbers(np.concatenate([np.zeros(0), *(b.value for b in blocks)]))
    of = _indices(np.repeat(np.arange(len(blocks)), [len(b.value) for b in blocks]))
    return row, col, var, value, of


def _put_cones(task: Any, cones: list[tuple[str, int]]) -> None:
    """Bounds of the vector variable, and its parts in second-order cones as affine conic constraints."""
    import mosek

    start, rows = 0, 0
    for kind, size in cones:
        stop = start + size
        key = mosek.boundkey.lo if kind == "nonnegative" else mosek.boundkey.fr
        task.putvarboundsliceconst(start, stop, key, 0.0, 0.0)
        if kind in ("soc", "rsoc"):
            task.appendafes(size)
            expressions = np.arange(rows, rows + size, dtype=np.int64)
            task.putafefentrylist(expressions, np.arange(start, stop, dtype=np.int32), np.ones(size))
            domain = task.appendquadraticconedomain if kind == "soc" else task.appendrquadraticconedomain
            task.appendaccseq(domain(size), rows, np.zeros(size))
            rows += size
        start = stop


def _name(task: Any, standard: StandardProgram) -> None:
    at = 0
    for variable in standard.geometric.model.variables:
        for k in range(variable.size):
            task.putconname(at + k, f"{variable.name}[{k}]" if variable.size > 1 else variable.name)
        at += variable.size
    for k in range(len(standard.psd)):
        task.putbarvarname(k, f"X{k + 1}")


def _indices(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.int32)


def _numbers(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.float64)


def _run(work: Task, settings: Settings, options: SolveOptions) -> Answer:
    import mosek

    with build_task(None, work.standard, names=bool(settings.own["write"])) as task:
        _configure(task, work, settings)
        if settings.own["write"]:
            task.writedata(str(settings.own["write"]))
        watch = _Watch(work, options)
        task.set_InfoCallback(watch)
        try:
            ended = task.optimize()
        except mosek.Error as error:
            if "license" in str(error.errno):
                raise BackendUnavailable(f"the backend 'mosek' is unlicensed: {_licence_words(error)}") from None
            return Answer(x=None, termination="failed", message=str(error))
        finally:
            task.set_InfoCallback(None)
        if watch.interrupted:
            raise KeyboardInterrupt
        return _answer(task, ended)


def _configure(task: Any, work: Task, settings: Settings) -> None:
    """Tolerances, limits, log and whatever the user set. Raises UsageError for a parameter that MOSEK refuses."""
    import mosek

    gap = min(1e-8, max(1e-6 * work.tol, 1e-13))
    for name in ("intpnt_co_tol_rel_gap", "intpnt_tol_rel_gap"):
        task.putdouparam(getattr(mosek.dparam, name), gap)
    # a linear program is solved by the interior point too, and its solution is read where those of cones are
    task.putintparam(mosek.iparam.optimizer, mosek.optimizertype.intpnt)
    task.putintparam(mosek.iparam.intpnt_basis, mosek.basindtype.never)
    task.putintparam(mosek.iparam.num_threads, settings.threads)
    task.putintparam(mosek.iparam.log, settings.log_level)
    if settings.max_iterations:
        task.putintparam(mosek.iparam.intpnt_max_iterations, settings.max_iterations)
    if work.time_left is not None:
        task.putdouparam(mosek.dparam.optimizer_max_time, work.time_left)
    for name, value in settings.passed.items():
        try:
            task.putparam(name, str(value))
        except mosek.Error as error:
            raise UsageError(f"MOSEK has no parameter {name!r} that takes {value!r}: {error.msg or error}") from None
    if settings.log_level:
        task.set_Stream(mosek.streamtype.log, sys.stdout.write)


class _Watch:
    """MOSEK's callback: reports the states of the interior point, and turns an interrupt into a stop."""

    def __init__(self, work: Task, options: SolveOptions) -> None:
        self.work, self.options, self.interrupted = work, options, False

    def __call__(self, code: Any, numbers: Any, counts: Any, more: Any) -> int:
        import mosek

        try:
            if code == mosek.callbackcode.intpnt and self.options.progress is not None:
                self.options.progress(
                    self.work.progress(
                        iteration=int(counts[mosek.iinfitem.intpnt_iter]),
                        objective=-float(numbers[mosek.dinfitem.intpnt_dual_obj]),
                        lower=-float(numbers[mosek.dinfitem.intpnt_primal_obj]),
                        seconds=float(numbers[mosek.dinfitem.intpnt_time]),
                    )
                )
        except KeyboardInterrupt:
            self.interrupted = True
        return int(self.interrupted)


def _answer(task: Any, ended: Any) -> Answer:
    """What the interior point returned: its dual solution with the sign turned, and both objectives."""
    import mosek

    kind = mosek.soltype.itr
    iterations = int(task.getintinf(mosek.iinfitem.intpnt_iter))
    limits: dict[Any, Termination] = {
        mosek.rescode.trm_max_time: "time-limit",
        mosek.rescode.trm_max_iterations: "iteration-limit",
        mosek.rescode.trm_user_callback: "interrupted",
    }
    if not task.solutiondef(kind):
        return Answer(
            x=None, termination=limits.get(ended, "failed"), iterations=iterations, message=f"{ended}: no solution"
        )
    status = task.getsolsta(kind)
    solved: dict[Any, Termination] = {
        mosek.solsta.optimal: "optimal",
        mosek.solsta.unknown: "inaccurate",
        mosek.solsta.prim_feas: "inaccurate",
        mosek.solsta.dual_feas: "inaccurate",
        mosek.solsta.prim_and_dual_feas: "inaccurate",
    }
    termination: Termination = limits.get(ended) or solved.get(status, "failed")
    y = np.zeros(task.getnumcon())
    task.gety(kind, y)
    return Answer(
        x=-y,
        termination=termination,
        objective=-float(task.getdualobj(kind)),
        lower=-float(task.getprimalobj(kind)),
        iterations=iterations,
        message=str(status).rpartition(".")[2],
    )
