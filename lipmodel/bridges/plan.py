"""The way from a model to what a solver accepts: the cheapest sequence of bridges, by predicted cost.

The states of the search are predicted shapes, not models, and every bridge says what it makes of a shape; nothing is
expanded before a plan is chosen. A uniform-cost search (Dijkstra 1959) then finds the plan for which the reformulations
and the solve together are predicted to take the fewest operations.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.bridges.base import NAMES, Bridge, Part, Shape
from lipmodel.bridges.program import ConeProgram, cone_program, reducible, too_large
from lipmodel.bridges.scaling import Prepared, prepare, scaled_variables
from lipmodel.bridges.standard import StandardProgram
from lipmodel.errors import LipmodelError
from lipmodel.model.forms import QuadraticForm
from lipmodel.model.model import Constraint, Model, order_of, predicted_coefficients
from lipmodel.model.sets import (
    PSD,
    DiagonallyDominant,
    Nonnegative,
    RotatedSecondOrder,
    ScaledDiagonallyDominant,
    SecondOrder,
    SparsePSD,
    Zero,
)

if TYPE_CHECKING:
    from lipmodel.backends.base import Capabilities
    from lipmodel.model.variables import Variable

Array = np.ndarray[Any, Any]
KINDS: Mapping[type, str] = {
    PSD: "psd",
    SparsePSD: "sparse-psd",
    DiagonallyDominant: "dd",
    ScaledDiagonallyDominant: "sdd",
    SecondOrder: "soc",
    RotatedSecondOrder: "rsoc",
    Nonnegative: "nonnegative",
    Zero: "zero",
}
EXPANSION = 100.0
"""Operations that one coefficient costs before a solver starts."""
ITERATIONS = 25
"""Of an interior-point method; a first-order method is compared with itself only."""
MAX_STATES = 500
SHOWN = 5
"""Plans that were not chosen and are named."""
DIFFERENCE = 1.05
"""A longer plan has to be better than a shorter one by this factor."""


def bridges() -> tuple[Bridge, ...]:
    """All bridges, of which a plan is made."""
    from lipmodel.bridges.chordal import Cliques, Whole
    from lipmodel.bridges.cones import Arrow, Pairs, Unrotated
    from lipmodel.bridges.dominance import Dominance, ScaledDominance

    return (Whole(), Cliques(), Dominance(), ScaledDominance(), Unrotated(), Arrow(), Pairs())


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One bridge, the constraint of the model that it is for, and the predicted shape afterwards."""

    bridge: Bridge
    kind: str
    origin: int
    after: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """start: the scaled model. cost: predicted operations of the solve. rejected: what else was considered, and why."""

    start: Shape
    steps: tuple[Step, ...]
    cost: float
    form: str
    rejected: tuple[str, ...] = ()

    @property
    def shape(self) -> Shape:
        """What the solver gets."""
        return self.steps[-1].after if self.steps else self.start

    def lines(self) -> list[tuple[str, str]]:
        """(name, text) of every step."""
        scaling = (
            "; equivalent: input QR, output Gram, balanced layers" if _has_psd(self.start) else "; as it was stated"
        )
        found = [("scaled", f"{self.start}{scaling}")]
        for step in self.steps:
            origin = f" ({step.bridge.source})" if step.bridge.source else ""
            found.append((step.bridge.name, f"{step.after}; {step.bridge.soundness}{origin}"))
        if self.form == "standard":
            found.append(("standard form", f"the dual: {self.shape.variables} equalities, a variable per constraint"))
        found.append(("predicted", f"about {self.cost:.1e} operations to solve"))
        return found

    def __str__(self) -> str:
        names = list(dict.fromkeys(step.bridge.name for step in self.steps))
        return " -> ".join(["scaled", *names, *(["standard form"] if self.form == "standard" else [])])


def _has_psd(shape: Shape) -> bool:
    return any(p.kind in ("psd", "sparse-psd") for p in shape.parts)


def shape_of(model: Model) -> Shape:
    """The predicted shape of a model, without expanding it."""
    parts = []
    for k, c in enumerate(model.constraints):
        kind = KINDS[type(c.set)]
        if isinstance(c.function, QuadraticForm):
            if c.function.signals:
                entries = predicted_coefficients(c.function)
                parts.append(Part(kind=kind, sizes=(order_of(c.function),), entries=entries, origin=k))
            continue
        entries = int(sum(m.nnz for m in c.function.coefficients.values()))
        block = getattr(c.set, "block", None) or c.function.size
        sizes = (block,) * (c.function.size // block) if kind in ("soc", "rsoc") else (c.function.size,)
        parts.append(Part(kind=kind, sizes=sizes, entries=entries, origin=k))
    signs = sum(v.size for v in model.variables if v.nonnegative)
    if signs:
        parts.append(Part(kind="nonnegative", sizes=(signs,), entries=signs, origin=-1))
    return Shape(variables=sum(v.size for v in model.variables), parts=tuple(parts))


def accepted(capabilities: Capabilities) -> frozenset[str]:
    """The kinds of constraint that a solver takes; equalities are free variables of the standard form."""
    cones = set(capabilities.cones) & {"psd", "soc", "rsoc", "nonnegative", "zero"}
    if capabilities.form == "standard":
        cones = (cones - {"zero"}) | ({"zero"} if "free" in capabilities.cones else set())
    return frozenset(cones)


def predicted_cost(shape: Shape, capabilities: Capabilities) -> float:
    """Operations to solve it: of a factorised KKT system (geometric form), of a Schur complement with one row per
    variable (standard form), or of as many steps of a first-order method, whose decompositions are what costs.
    """
    n, entries = shape.variables, sum(p.entries for p in shape.parts)
    matrices: list[tuple[int, int]] = []
    for p in shape.parts:
        if p.kind == "psd":
            matrices += zip(p.sizes, p.touching or (min(n, p.entries // len(p.sizes)),) * len(p.sizes), strict=True)
    if capabilities.precision > 1e-6:
        return ITERATIONS**2 * (sum(15.0 * m**3 for m, _ in matrices) + 4.0 * entries + 20.0 * n)
    if capabilities.form == "standard":
        return ITERATIONS * (n**3 / 3.0 + float(n) * entries + sum(10.0 * m**3 for m, _ in matrices))
    total = 10.0 * entries
    for m, k in matrices:
        d = m * (m + 1) / 2.0
        total += d**3 / 3.0 + d**2 * k + d * k**2
    return ITERATIONS * total


def find_plan(model: Model, start: Shape, capabilities: Capabilities) -> Plan:
    """The cheapest plan for a (scaled) model of shape `start`. Raises LipmodelError, with the reason, where none is."""
    goal, everything, tie = accepted(capabilities), bridges(), count()
    queue: list[tuple[float, int, Shape, tuple[Step, ...]]] = [(0.0, next(tie), start, ())]
    seen: set[Shape] = set()
    finished: list[tuple[float, Plan]] = []
    while queue and len(seen) < MAX_STATES:
        spent, _, shape, steps = heapq.heappop(queue)
        if shape in seen:
            continue
        seen.add(shape)
        open_parts = [p for p in shape.parts if p.kind not in goal][:1]  # in turn: their order makes no difference
        if not open_parts:
            cost = predicted_cost(shape, capabilities)
            plan = Plan(start=start, steps=steps, cost=cost, form=capabilities.form)
            finished.append((spent + cost * DIFFERENCE ** len(steps), plan))
        for part, bridge, after in _next(model, shape, open_parts or shape.parts, everything):
            step = Step(bridge=bridge, kind=part.kind, origin=part.origin, after=after)
            work = EXPANSION * sum(p.entries for p in after.parts if p not in shape.parts)
            heapq.heappush(queue, (spent + work, next(tie), after, (*steps, step)))
    if not finished:
        raise LipmodelError(_unreachable(start, goal, everything))
    finished.sort(key=lambda pair: pair[0])
    best = finished[0][1]
    others = finished[1 : 1 + SHOWN]
    return replace(best, rejected=tuple(f"{plan}: about {plan.cost:.1e} operations" for _, plan in others))


def _next(
    model: Model, shape: Shape, parts: Sequence[Part], everything: Sequence[Bridge]
) -> list[tuple[Part, Bridge, Shape]]:
    """What one bridge makes of one of the parts. A relaxation gives no upper bound: none is taken."""
    found = []
    for part in parts:
        for bridge in everything:
            if part.kind in bridge.sources and part.origin >= 0 and bridge.soundness != "relaxation":
                after = bridge.predict(shape, part, model.constraints[part.origin])
                if after is not None:
                    found.append((part, bridge, after))
    return found


def _unreachable(start: Shape, goal: frozenset[str], everything: Sequence[Bridge]) -> str:
    """Which kinds cannot be brought to the goal, by any sequence of bridges."""
    good = set(goal)
    while True:
        more = {kind for b in everything if b.targets <= good for kind in b.sources} - good
        if not more:
            break
        good |= more
    bad = sorted({p.kind for p in start.parts} - good)
    names = ", ".join(NAMES[k].removesuffix(", order").removesuffix(" order") for k in bad) or "this model"
    takes = ", ".join(NAMES[k].removesuffix(" order") for k in sorted(goal))
    return f"no reformulation leads from {names} to what it takes ({takes})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compiled:
    """A model as a solver gets it, and the way back.

    factors: by variable of program.model, which begins with the model's own: y = factors * (the program's y).
    """

    model: Model
    plan: Plan
    program: ConeProgram
    factors: Mapping[Variable, Array]
    back: Callable[[Sequence[Array], Mapping[Variable, Array]], ModelDuals]

    @property
    def standard(self) -> StandardProgram:
        """The same in standard form."""
        return StandardProgram(geometric=self.program)

    def values(self, y: Array) -> dict[Variable, Array]:
        """The model's variables from a solution of the program, shape (program.size,)."""
        found = self.program.values(np.asarray(y, dtype=np.float64))
        return {v: self.factors[v] * found[v] for v in self.model.variables}

    def duals(self, duals: ProgramDuals) -> ModelDuals:
        """Multipliers of the model's constraints from those of the program's."""
        return self.back(*_by_constraint(self.program, duals))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProgramDuals:
    """psd: a symmetric matrix per block; ineq, eq: vectors; soc: a vector per cone.

    They satisfy sum <A_j, Y> + G'u + E'v + sum A_k'w_k = c (`standard.StandardProgram`), where a solver is exact.
    """

    psd: Sequence[Array]
    ineq: Array
    eq: Array
    soc: Sequence[Array] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelDuals:
    """constraints: one for every constraint of a model, a matrix in the order of a form's signals or a vector;
    signs: of the variables that are nonnegative.
    """

    constraints: tuple[Array, ...]
    signs: Mapping[Variable, Array]


def compile_model(model: Model, capabilities: Capabilities) -> Compiled:
    """A model in the cones and the form that a solver accepts.

    Raises UsageError for a model without an objective, LipmodelError where no bridge leads there or it is too large.
    """
    if model.objective is None:
        model.check()
    prepared = prepare(model)
    excess = too_large(prepared.model)
    if excess is not None:
        raise LipmodelError(f"the model {model.name!r} is out of reach of a general solver: {excess}")
    plan = find_plan(prepared.model, shape_of(prepared.model), capabilities)
    bridged, undo = apply_plan(prepared.model, plan)
    factors = {v: prepared.factors.get(v, np.ones(v.size)) for v in bridged.variables}
    if any(step.kind in ("dd", "sdd") for step in plan.steps):
        rescaled = scaled_variables(bridged)
        bridged = rescaled.model
        factors = {v: f * rescaled.factors[v] for v, f in factors.items()}

    def back(duals: Sequence[Array], signs: Mapping[Variable, Array]) -> ModelDuals:
        triples = zip(model.constraints, prepared.model.constraints, undo(duals), strict=True)
        plain = tuple(_in_signals(given, scaled, dual, prepared) for given, scaled, dual in triples)
        return ModelDuals(constraints=plain, signs={v: signs[v] / factors[v] for v in model.variables if v in signs})

    program = cone_program(bridged)

    return Compiled(model=model, plan=plan, program=program, factors=factors, back=back)


def plan_for(model: Model, capabilities: Capabilities) -> Plan:
    """The plan of a model as it was stated. Raises LipmodelError where there is none."""
    scaled = prepare(model).model
    return find_plan(scaled, shape_of(scaled), capabilities)


def reason_against(model: Model, capabilities: Capabilities) -> str | None:
    """Why no plan leads from the model to such a solver, or None; cheap where the model is far too large."""
    excess = too_large(model)
    if excess is not None and not reducible(model):
        return excess
    scaled = prepare(model).model
    excess = too_large(scaled)
    if excess is not None:
        return excess
    try:
        find_plan(scaled, shape_of(scaled), capabilities)
    except LipmodelError as error:
        return str(error)
    return None


def apply_plan(model: Model, plan: Plan) -> tuple[Model, Callable[[Sequence[Array]], list[Array]]]:
    """The model after all steps, and the way back from the duals of its constraints to those of the model's."""
    items = list(enumerate(model.constraints))
    variables = list(model.variables)
    history: list[list[tuple[int, Callable[[Sequence[Array]], Array]]]] = []
    for step in plan.steps:
        changed: list[tuple[int, Constraint]] = []
        record: list[tuple[int, Callable[[Sequence[Array]], Array]]] = []
        for origin, constraint in items:
            if origin != step.origin or KINDS[type(constraint.set)] != step.kind:
                changed.append((origin, constraint))
                record.append((1, _only))
                continue
            applied = step.bridge.apply(constraint, frozenset(v.name for v in variables))
            variables += applied.variables
            changed += [(origin, c) for c in applied.constraints]
            record.append((len(applied.constraints), applied.dual))
        items = changed
        history.append(record)

    def undo(duals: Sequence[Array]) -> list[Array]:
        left = list(duals)
        for record in reversed(history):
            at, earlier = 0, []
            for number, dual in record:
                earlier.append(dual(left[at : at + number]))
                at += number
            left = earlier
        return left

    constraints = [c for _, c in items]
    used = dict.fromkeys(s for c in constraints if isinstance(c.function, QuadraticForm) for s in c.function.signals)
    return replace(model, constraints=constraints, variables=variables, signals=list(used)), undo


def _only(duals: Sequence[Array]) -> Array:
    return duals[0]


def _by_constraint(program: ConeProgram, duals: ProgramDuals) -> tuple[list[Array], dict[Variable, Array]]:
    """The duals of a program, by constraint of its model, and those of the signs of its variables."""
    signs, at = {}, 0
    for v in program.model.variables:
        if v.nonnegative:
            signs[v] = np.asarray(duals.ineq[at : at + v.size])
            at += v.size
    matrices, cones, zero = iter(duals.psd), iter(duals.soc), 0
    found: list[Array] = []
    for c in program.model.constraints:
        if isinstance(c.function, QuadraticForm):
            found.append(np.asarray(next(matrices)) if c.function.signals else np.zeros((0, 0)))
        elif isinstance(c.set, Nonnegative):
            found.append(np.asarray(duals.ineq[at : at + c.function.size]))
            at += c.function.size
        elif isinstance(c.set, Zero):
            found.append(np.asarray(duals.eq[zero : zero + c.function.size]))
            zero += c.function.size
        else:
            number = c.function.size // (getattr(c.set, "block", None) or c.function.size)
            found.append(np.concatenate([next(cones) for _ in range(number)]))
    return found, signs


def _in_signals(given: Constraint, scaled: Constraint, dual: Array, prepared: Prepared) -> Array:
    """The dual of a form in the coordinates that it was given in: z = S z~ makes S Y~ S' of Y~."""
    if not isinstance(given.function, QuadraticForm) or not isinstance(scaled.function, QuadraticForm):
        return dual
    if not isinstance(given.set, PSD | SparsePSD):
        return dual
    place, at = {}, 0
    for s in scaled.function.signals:
        place[s] = slice(at, at + s.size)
        at += s.size
    rows = []
    for s in given.function.signals:
        new, basis = prepared.signals[s]
        block = np.zeros((s.size, at))
        if new in place:
            block[:, place[new]] = np.diag(basis) if basis.ndim == 1 else basis
        rows.append(block)
    back = np.vstack(rows) if rows else np.zeros((0, at))
    return np.asarray(back @ dual @ back.T)
