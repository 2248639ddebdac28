"""What every formulation would cost on a network: programs, sizes, and who would solve them; for `inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lipmodel.report.tables import printable, table

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem

LARGEST = 3_000
"""Orders up to which backends are asked; beyond, their answer takes as long as the import."""


def formulation_costs(system: IncrementSystem, asked: dict[str, Any], *, width: int | None = None) -> list[str]:
    """A table with one line per formulation, each for its own norm pair; nothing is solved.

    asked: norm, outputs and domain, as `question.make_request` takes them.
    """
    from lipmodel.formulation import formulation_names

    rows = []
    for name in formulation_names():
        try:
            rows.append((name, *_costs(system, name, asked)))
        except Exception as error:  # a formulation of a third party may fail in its own ways
            rows.append((name, "", "", printable(f"{type(error).__name__}: {error}"), ""))
    return table(("formulation", "norm", "programs", "each", "solved by"), rows, width=width)


def _costs(system: IncrementSystem, name: str, asked: dict[str, Any]) -> tuple[str, str, str, str]:
    """Norm pair, number of programs, size of one, backend."""
    from lipmodel.certify.evidence import Evidence
    from lipmodel.families import chosen_outputs, measured, member_spec, members, restricted
    from lipmodel.member import build, choose_backend, provable
    from lipmodel.model.model import Model
    from lipmodel.model.norm_expression import NormExpression
    from lipmodel.question import make_request

    request = make_request(system, name, **asked)
    spec = measured(request.spec)
    norm = ":".join(request.spec.norms)
    chosen = chosen_outputs(system, spec.outputs)
    family = members(chosen, spec, request.formulation.norms, name)
    first = restricted(chosen, family[0])
    if not first.output.blocks:
        return norm, str(len(family)), "a constant output", ""
    built = build(first, request.formulation, member_spec(spec, family[0]))
    if isinstance(built, NormExpression):
        return norm, str(len(family)), f"{built.size()} norms, sums and products", "closed form"
    if isinstance(built, Evidence):
        return norm, str(len(family)), built.describe(), "itself"
    if not isinstance(built, Model):
        return norm, str(len(family)), "multipliers in closed form", "closed form"
    if not provable(first):
        return norm, str(len(family)), f"order {first.order}: too large to be proved", "norm bounds only"
    sizes = built.sizes()
    text = f"{sizes.variables} variables, order {' + '.join(map(str, sizes.psd)) or '0'}"
    if first.order > LARGEST:
        return norm, str(len(family)), text, ""
    backend, _ = choose_backend(built)
    return norm, str(len(family)), text, "closed form" if backend is None else backend.name
