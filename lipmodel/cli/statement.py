"""What a formulation states about a network, for `inspect -f` and `--plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lipmodel.report.tables import facts, printable

if TYPE_CHECKING:
    from lipmodel.backends.base import Backend
    from lipmodel.families import Member
    from lipmodel.model.model import Model
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.pipeline import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What `inspect` shows of a formulation: for which backend (None: the one of `solve`), and what beyond."""

    backend: str | None = None
    plan: bool = False
    latex: bool = False

    @property
    def anything(self) -> bool:
        return self.backend is not None or self.plan or self.latex


def statement(system: IncrementSystem, formulation: str | None, asked: dict[str, Any], shown: Shown) -> list[str]:
    """The problem, its programs, the model of the first of them and the backend; with a plan, every step on the way.

    asked: norm, outputs, domain and options, as `pipeline.make_request` takes them. Raises UsageError as a solve would.
    """
    from lipmodel import pipeline
    from lipmodel.certify.evidence import Evidence
    from lipmodel.families import chosen_outputs, measured, member_spec, members, restricted
    from lipmodel.model.model import Model

    request = pipeline.make_request(system, formulation, **asked)
    spec = measured(request.spec)
    system = chosen_outputs(system, spec.outputs)
    family = members(system, spec, request.formulation.norms, request.formulation.name)
    first = restricted(system, family[0])
    built: Any = None
    if first.output.blocks:
        built = pipeline.build(first, request.formulation, member_spec(spec, family[0]))
    if shown.latex:
        return _latex(built, request)
    lines = _problem(request, family)
    if isinstance(built, Model):
        choice = _choice(built, first, shown.backend)
    else:
        choice = _Choice(text="none is needed" if not isinstance(built, Evidence) else "asked by the evidence itself")
    lines += facts([("backend", choice.text), *([("not chosen", choice.others)] if choice.others else [])])
    lines += ["", *_stated(built)]
    if shown.plan:
        lines += ["", "plan", *_plan(system, first, family, built, choice)]
    return lines


def _latex(built: Any, request: Request) -> list[str]:
    """Raises UsageError for a formulation that states no model."""
    from lipmodel.errors import UsageError
    from lipmodel.model.latex import model_latex
    from lipmodel.model.model import Model

    if not isinstance(built, Model):
        raise UsageError(f"the formulation {request.formulation.name!r} states no model of this network: no LaTeX")
    return model_latex(built).split("\n")


def _problem(request: Request, family: list[Member]) -> list[str]:
    p, q = request.spec.norms
    outputs = "" if request.spec.outputs.kind == "all" else f", outputs {request.spec.outputs}"
    options = ", ".join(f"{k}={v!r}" for k, v in request.formulation.options().items())
    pairs = [
        ("formulation", request.formulation.name + (f" ({options})" if options else "")),
        *([("chosen", request.reason)] if request.reason else []),
        ("programs", family_text(family)),
    ]
    return [f"problem L({p}→{q}{outputs}), domain {request.spec.domain}", *facts(pairs)]


def family_text(family: list[Member]) -> str:
    """How many programs there are, and of what kind."""
    norms = "norm " + ":".join(family[0].norms)
    if len(family) == 1:
        return f"1, {norms}"
    indices = {"output row": family[0].row, "input column": family[0].column}
    axes = [axis for axis, index in indices.items() if index is not None]
    return f"{len(family)}, one per {' and '.join(axes)}, each {norms}; the largest of their bounds is the answer"


def _stated(built: Any) -> list[str]:
    from collections.abc import Iterator

    from lipmodel.certify.evidence import Evidence
    from lipmodel.model.model import Model
    from lipmodel.model.norm_expression import NormExpression

    if built is None:
        return ["the output does not depend on the input: its constant is 0"]
    if isinstance(built, Model | NormExpression):
        return [printable(line) for line in str(built).split("\n")]
    if isinstance(built, Evidence):
        return [printable(line) for line in built.describe().split("\n")]
    return ["ever better multipliers" if isinstance(built, Iterator) else "multipliers in closed form"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Choice:
    """The backend, in words and itself where it takes the model, and why others do not or are not asked."""

    text: str
    backend: Backend | None = None
    others: str = ""


def _choice(model: Model, system: IncrementSystem, name: str | None) -> _Choice:
    """Raises UsageError for a name that is unknown."""
    from lipmodel.backends import backend as find_backend
    from lipmodel.choice import choose_backend
    from lipmodel.member import provable

    if not provable(system):
        text = f"none: order {system.order} is beyond what is proved as a matrix inequality; norm bounds only"
        return _Choice(text=text)
    if name is not None:
        asked = find_backend(name, usable=False)
        refusal = asked.refuses(model)
        if refusal is not None:
            return _Choice(text=f"{asked.name} does not take this model: {refusal}")
        return _Choice(text=f"{asked.name} ({asked.description}), {asked.available()}", backend=asked)
    chosen, refusals = choose_backend(model)
    reasons = "\n".join(f"{name}: {reason}" for name, reason in refusals)
    if chosen is None:
        return _Choice(text="none takes it: closed-form multipliers instead", others=reasons)
    return _Choice(text=f"{chosen.name} ({chosen.description})", backend=chosen, others=reasons)


def _plan(
    system: IncrementSystem, first: IncrementSystem, family: list[Member], built: Any, choice: _Choice
) -> list[str]:
    from lipmodel.member import provable
    from lipmodel.model.model import Model

    layers = ", ".join(str(a.size) for a in system.activations) or "none"
    steps = [
        ("increments", f"input {system.input.size}, activations {layers}, output {system.output.size}"),
        ("family", family_text(family)),
    ]
    small = provable(first)
    rejected: tuple[str, ...] = ()
    if isinstance(built, Model):
        from lipmodel.bridges.plan import plan_for, shape_of

        steps.append(("model", str(shape_of(built))))
        if choice.backend is not None and choice.backend.capabilities.structured:
            steps.append(("factors", f"{choice.backend.name} reads the terms themselves: nothing is reformulated"))
        elif choice.backend is not None:
            found = plan_for(built, choice.backend.capabilities)
            steps += found.lines()
            rejected = found.rejected
        steps.append(("backend", choice.text))
    if built is not None and small:
        steps.append(("repair", "whatever the solver returns is made feasible, or replaced by closed-form multipliers"))
        proof = f"matrix inequality of order {first.order} in rigorous floating point"
        steps.append(("proof", f"{proof}; the product rule where that is better"))
    else:
        steps.append(("proof", "product rule: norms in rigorous arithmetic"))
    steps.append(("lower bound", "search for a pair of points, its ratio in exact arithmetic"))
    lines = facts([(f"{k}. {name}", text) for k, (name, text) in enumerate(steps, start=1)])
    if rejected:
        lines += facts([("not chosen", "\n".join(rejected))])
    return lines
