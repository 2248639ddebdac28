"""What a formulation states about a network, for `inspect -f` and `--plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lipmodel.report.tables import facts, printable

if TYPE_CHECKING:
    from lipmodel.families import Member
    from lipmodel.model.model import Model
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.pipeline import Request


def statement(system: IncrementSystem, formulation: str | None, asked: dict[str, Any], *, plan: bool) -> list[str]:
    """The problem, its programs, the model of the first of them and the backend; with `plan`, every step on the way.

    asked: norm, outputs, domain and options, as `pipeline.make_request` takes them. Raises UsageError as a solve would.
    """
    from lipmodel import pipeline
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
    lines = _problem(request, family)
    if isinstance(built, Model):
        backend, reasons = _backend(built, first)
        lines += facts([("backend", backend), *([("not chosen", reasons)] if reasons else [])])
    else:
        lines += facts([("backend", "none is needed")])
    lines += ["", *_stated(built)]
    if plan:
        lines += ["", "plan", *_plan(system, first, family, built)]
    return lines


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
    from lipmodel.model.model import Model
    from lipmodel.model.norm_expression import NormExpression

    if built is None:
        return ["the output does not depend on the input: its constant is 0"]
    if isinstance(built, Model | NormExpression):
        return [printable(line) for line in str(built).split("\n")]
    return ["multipliers in closed form"]


def _backend(model: Model, system: IncrementSystem) -> tuple[str, str]:
    from lipmodel.member import choose_backend, provable

    if not provable(system):
        return f"none: order {system.order} is beyond what is proved as a matrix inequality; norm bounds only", ""
    chosen, refusals = choose_backend(model)
    reasons = "\n".join(f"{name}: {reason}" for name, reason in refusals)
    if chosen is None:
        return "none takes it: closed-form multipliers instead", reasons
    return f"{chosen.name} ({chosen.description})", reasons


def _plan(system: IncrementSystem, first: IncrementSystem, family: list[Member], built: Any) -> list[str]:
    from lipmodel.member import provable
    from lipmodel.model.model import Model

    layers = ", ".join(str(a.size) for a in system.activations) or "none"
    steps = [
        ("increments", f"input {system.input.size}, activations {layers}, output {system.output.size}"),
        ("family", family_text(family)),
    ]
    small = provable(first)
    if isinstance(built, Model):
        steps.append(("model", _size(built)))
        if small:
            from lipmodel.bridges.scaling import prepare

            scaled = _size(prepare(built).model)
            steps.append(
                ("scaled", f"{scaled}, after input QR, output Gram and unit layers (native reads the factors)")
            )
        steps.append(("backend", _backend(built, first)[0]))
    if built is not None and small:
        steps.append(("repair", "whatever the solver returns is made feasible, or replaced by closed-form multipliers"))
        proof = f"matrix inequality of order {first.order} in rigorous floating point"
        steps.append(("proof", f"{proof}; the product rule where that is better"))
    else:
        steps.append(("proof", "product rule: norms in rigorous arithmetic"))
    steps.append(("lower bound", "search for a pair of points, its ratio in exact arithmetic"))
    return facts([(f"{k}. {name}", text) for k, (name, text) in enumerate(steps, start=1)])


def _size(model: Model) -> str:
    sizes = model.sizes()
    orders = " + ".join(map(str, sizes.psd))
    return f"{sizes.variables} variables, PSD order {orders}, about {sizes.coefficients} coefficients"
