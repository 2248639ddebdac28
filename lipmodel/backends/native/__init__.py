"""The native backend: a structure-exploiting solver for diagonal-multiplier programs of any shape.

It reads the factors of a model (quadratic constraints, balls, couplings), not a network, and refuses, with the reason,
what is not of its shape. Chains of layers have an elimination of their own; everything else, residual networks, dead
neurons, tied multipliers and programs stated by hand among them, is eliminated block by block over its signals. NumPy
and SciPy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lipmodel.backends.base import (
    Availability,
    BackendOption,
    Capabilities,
    Installed,
    Point,
    Progress,
    SolveOptions,
    Termination,
)
from lipmodel.model.model import Model, values_of
from lipmodel.model.variables import Variable

Array = np.ndarray[Any, Any]


class Native:
    """The solver for one matrix inequality of weighted products of linear forms, the weights affine.

    Options: max_iterations; memory, the bytes that a solve may take (0: 60 % of what is available), above which it
    does without the path follower, whose matrices are of the order of all unknowns.
    """

    name = "native"
    description = "low-rank ascent and path follower (NumPy/SciPy), diagonal multipliers, any graph"
    capabilities = Capabilities(
        cones=frozenset({"psd-factored", "nonnegative"}),
        structured=True,
        max_order=20_000,
        precision=1e-8,
        feasible=True,
        progress=True,
        licence="Apache-2.0",
        options=(
            BackendOption(name="max_iterations", default=200, help="iterations at most"),
            BackendOption(name="memory", default=0, help="bytes that a solve may take (0: 60 % of what is available)"),
        ),
    )

    def available(self) -> Availability:
        from lipmodel import __version__

        return Installed(version=__version__)

    def refuses(self, model: Model) -> str | None:
        from lipmodel.backends.native.reading import NotReadable, form_of

        try:
            form_of(model)
        except NotReadable as refusal:
            return str(refusal)
        return None

    def solve(self, model: Model, options: SolveOptions) -> Point:
        """Raises UsageError for a model that `refuses` refuses, and for an unknown option."""
        from lipmodel.backends.native.chains import NotAChain, read_chain

        try:
            chain = read_chain(model)
        except NotAChain:
            return _graded(model, _solve_program(model, options), options)
        return _graded(model, _solve_chain(chain, options), options)


AIM = 0.4
"""The share of the tolerance that is aimed at: a bound within it is what a reader takes "to 1e-6" for."""


def _graded(model: Model, point: Point, options: SolveOptions) -> Point:
    """A point within the tolerance is optimal, also where the aim was missed."""
    if point.termination != "inaccurate" or point.objective is None or not point.lower:
        return point
    bound, lower = model.bound_of(point.objective), model.bound_of(point.lower)
    return replace(point, termination="optimal") if bound - lower <= options.tol * bound else point


def _limits(options: SolveOptions) -> dict[str, Any]:
    from lipmodel.backends.settings import check_options

    known = {option.name: option.default for option in Native.capabilities.options}
    limits = known | check_options(Native.name, options.native, known)
    limits |= {"tol": AIM * options.tol, "time_limit": options.time_limit}
    if options.max_iterations is not None:
        limits["max_iterations"] = options.max_iterations
    return limits


def _solve_chain(chain: Any, options: SolveOptions) -> Point:
    from lipmodel.backends.native.core import solve_chain

    def report(state: Any) -> bool | None:
        if options.progress is not None:
            value, lower = (chain.objective(max(float(v), 0.0)) for v in (state.value, state.lower))
            options.progress(
                Progress(
                    iteration=state.iteration,
                    objective=value,
                    lower=lower,
                    seconds=state.elapsed,
                    values=lambda: of(state.solution()),
                )
            )
        return None

    def of(found: Any) -> Mapping[Variable, Array]:
        values: Mapping[Variable, Array] = chain.values(found.t, found.eta, found.value)
        return values

    found = solve_chain(chain.problem, on_iterate=report, **_limits(options))
    return Point(
        values=of(found),
        termination=found.status,
        objective=chain.objective(found.value),
        lower=chain.objective(found.lower),
        iterations=found.iterations,
        message=found.status,
    )


def _solve_program(model: Model, options: SolveOptions) -> Point:
    from lipmodel.backends.native.general import solve_program
    from lipmodel.backends.native.reading import NotReadable, read_program
    from lipmodel.errors import UsageError

    def report(state: Any) -> bool | None:
        if options.progress is not None:
            options.progress(
                Progress(
                    iteration=state.iteration,
                    objective=state.value,
                    lower=state.lower,
                    seconds=state.elapsed,
                    values=lambda: of(state.solution()),
                )
            )
        return None

    def of(found: Any) -> Mapping[Variable, Array]:
        """The values of a solution, infinite where it has none."""
        return values_of(model, np.full(program.unknowns, np.inf) if found.y is None else found.y)

    try:
        program = read_program(model)
    except NotReadable as refusal:
        raise UsageError(f"the native backend does not take this model: {refusal}") from None
    found = solve_program(program, on_iterate=report, **_limits(options))
    if found.y is None:
        status: Termination = found.status if found.status in ("time-limit", "interrupted") else "failed"
        message = "no strictly feasible point was found"
        return Point(values=None, termination=status, iterations=found.iterations, message=message)
    return Point(
        values=of(found),
        termination=found.status,
        objective=found.value,
        lower=found.lower,
        iterations=found.iterations,
        message=found.status,
    )


def improving_points(model: Model) -> Iterator[Mapping[Variable, Array]]:
    """Values of ever better points by descent on the elimination recursion alone, from a closed form on.

    They lie on the boundary of the feasible set, up to rounding. Every step runs on one thread of BLAS. Raises
    UsageError for a model that `Native.refuses` refuses.
    """
    from lipmodel.backends.native.chains import NotAChain, read_chain
    from lipmodel.backends.native.core import chain_descent, single_thread
    from lipmodel.backends.native.general import program_descent
    from lipmodel.backends.native.reading import NotReadable, read_program
    from lipmodel.errors import UsageError

    points: Iterator[Mapping[Variable, Array]]
    try:
        chain = read_chain(model)
        points = (chain.values(found.t, found.eta, found.value) for found in chain_descent(chain.problem))
    except NotAChain:
        try:
            program = read_program(model)
        except NotReadable as refusal:
            raise UsageError(f"descent does not take this model: {refusal}") from None
        points = (values_of(model, found.y) for found in program_descent(program) if found.y is not None)
    while True:
        # around a step, not around the stream: whoever draws from it has settings of their own
        with single_thread(), np.errstate(all="ignore"):
            try:
                values = next(points, None)
            except (MemoryError, np.linalg.LinAlgError):
                return
        if values is None:
            return
        yield values
