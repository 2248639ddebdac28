"""What every formulation would cost on a network: programs, sizes, and who would solve them; for `inspect`."""

from __future__ import annotations

from collections.abc import Iterator
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
    from lipmodel.errors import UsageError
    from lipmodel.formulation import formulation_names

    rows, refused = [], []
    for name in formulation_names():
        try:
            rows.append((name, *_costs(system, name, asked)))
        except UsageError as error:
            refused.append((name, printable(str(error))))
        except Exception as error:  # a formulation of a third party may fail in its own ways
            refused.append((name, printable(f"{type(error).__name__}: {error}")))
    lines = table(("formulation", "norm", "programs", "solved by", "each"), rows, width=width)
    return lines + (["", *table(("does not apply", "because"), refused, width=width)] if refused else [])


def _costs(system: IncrementSystem, name: str, asked: dict[str, Any]) -> tuple[str, str, str, str]:
    """Norm pair, number of programs, backend, size of one."""
    from lipmodel.certify.evidence import Evidence
    from lipmodel.choice import choose_backend
    from lipmodel.families import chosen_outputs, measured, member_spec, members, restricted
    from lipmodel.member import build, provable
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
        return norm, str(len(family)), "", "a constant output"
    built = build(first, request.formulation, member_spec(spec, family[0]))
    if isinstance(built, NormExpression):
        return norm, str(len(family)), "closed form", f"{built.size()} norms, sums and products"
    if isinstance(built, Evidence):
        return norm, str(len(family)), "itself", built.describe()
    if not isinstance(built, Model):
        kind = "ever better multipliers" if isinstance(built, Iterator) else "multipliers"
        return norm, str(len(family)), "closed form", kind
    if not provable(first):
        return norm, str(len(family)), "norm bounds only", f"order {first.order}: too large to be proved"
    sizes = built.sizes()
    text = f"{sizes.variables} variables, order {' + '.join(map(str, sizes.psd)) or '0'}"
    if first.order > LARGEST:
        return norm, str(len(family)), "", text
    backend, _ = choose_backend(built)
    return norm, str(len(family)), "closed form" if backend is None else backend.name, text
