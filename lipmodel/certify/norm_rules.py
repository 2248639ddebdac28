"""Rules of proof for norm expressions: each restates its recursion and recomputes it, rounded up.

A formulation names the rule; the numbers come from here, never from the formulation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lipmodel.certify.evidence import Proved

if TYPE_CHECKING:
    from lipmodel.model.norm_expression import NormExpression
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.spec import Norm

NORM_RULES: Mapping[str, Callable[..., Any]] = {}
"""The rules by name, the product rule aside."""


def prove_expression(stated: NormExpression, system: IncrementSystem, norms: tuple[Norm, Norm]) -> Proved:
    """The bound that the rule of an expression proves, in floating point, and its proof."""
    raise NotImplementedError(stated.rule)
