"""Rules of proof for norm expressions: each restates its recursion and recomputes it, rounded up.

A formulation names the rule and what is free in it (`Choices`); the numbers come from here, never from the formulation.
A proof carries the choices, and the spectral norms that were used as claims, which the exact side checks one by one;
everything else is computed again in integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.certify.evidence import Proved
from lipmodel.certify.exact_entries import ExactEntries, exact_entry_norms
from lipmodel.certify.maxima import with_maxima
from lipmodel.certify.norm_arithmetic import ExactArithmetic, FloatArithmetic, enclosed
from lipmodel.certify.norm_recursions import Choices, SignedForms, absolute_bound, liplt_bound
from lipmodel.certify.norm_treatment import is_chain, largest_product
from lipmodel.certify.product_rule import exact_norms
from lipmodel.errors import Refuted, UsageError
from lipmodel.ranges.enclosure import MatrixEnclosure
from lipmodel.ranges.norms import (
    CLAIM_MARGIN,
    Bound,
    EntryNorms,
    NormEvaluator,
    entry_norms,
    float_norms,
    float_up,
    plus,
    rational,
)
from lipmodel.spec import NORMS, Norm, as_norm

if TYPE_CHECKING:
    from lipmodel.model.norm_expression import NormExpression
    from lipmodel.network.increments import IncrementSystem

Recursion = Callable[[SignedForms, Norm, Norm, NormEvaluator], Bound]

LARGEST_PRODUCT = 40_000_000
"""Predicted entries above which no product of layers is formed, whoever asks for it."""
UNCERTAIN = 1e-9
"""The relative error of a product of layers above which products are formed in integers."""
SUBSETS, SUBSETS_SPECTRAL = 12, 8
"""The most matrices of a chain for k3, whose terms double with every one; the second where each has a spectral norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormRule:
    """A rule: its recursion, what is free in it (`choices`, as keys of a proof), and what it asks of a system."""

    recursion: Recursion
    choices: frozenset[str] = frozenset({"unsigned", "maxima"})
    entrywise: bool = True
    on_chains: bool = False


NORM_RULES: Mapping[str, NormRule] = {
    "liplt": NormRule(recursion=liplt_bound, choices=frozenset({"unsigned", "between"}), entrywise=False),
    "k3": NormRule(recursion=partial(absolute_bound, apart=True), on_chains=True),
    "k4": NormRule(recursion=absolute_bound),
    "path-norm": NormRule(recursion=absolute_bound, choices=frozenset({"maxima"})),
}
"""The rules by name, the product rule aside."""


def prove_expression(stated: NormExpression, system: IncrementSystem, norms: tuple[Norm, Norm]) -> Proved:
    """The bound that the rule of an expression proves, in floating point, and its proof.

    Raises UsageError where the rule does not take the system.
    """
    assert stated.rule is not None
    between = tuple(dict.fromkeys(stated.between or norms))
    choices = Choices(unsigned=frozenset(stated.unsigned), maxima=frozenset(stated.maxima), between=between)
    choices = _possible(stated.rule, system, choices)
    system = _rewritten(system, choices)
    reason = refusal(stated.rule, system, norms) or _too_large(system, choices)
    if reason is not None:
        raise UsageError(reason)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite proves nothing
        forms, evaluator = _proving(system, choices)
        bound = float_up(_bound(stated.rule, forms, norms, evaluator))
    written: dict[str, Any] = {
        "unsigned": sorted(choices.unsigned),
        "maxima": sorted(choices.maxima),
        "between": list(choices.between),
    }
    proof = {
        "rule": stated.rule,
        "norms": list(norms),
        **{key: written[key] for key in sorted(NORM_RULES[stated.rule].choices)},
        "spectral": [value.hex() for value in evaluator.log],
        "bound": bound.hex(),
    }
    return Proved(bound=bound, proof=proof)


def read_choices(rule: str, system: IncrementSystem, proof: Mapping[str, Any]) -> Choices:
    """The choices that a proof states. Raises Refuted."""
    known = range(1, len(system.activations) + 1)
    between = proof.get("between", ["2"])
    chosen = {}
    for key in ("unsigned", "maxima"):
        numbers = chosen[key] = proof.get(key, [])
        listed = isinstance(numbers, list) and all(type(k) is int and k in known for k in numbers)
        if not listed or sorted(set(numbers)) != numbers:
            raise Refuted(f"proof.{key}: expected numbers of activations, in order")
    if not isinstance(between, list) or not between or any(r not in NORMS for r in between):
        raise Refuted("proof.between: expected one or more norms")
    if len(set(between)) != len(between):
        raise Refuted("proof.between: a norm is listed twice")
    choices = Choices(
        unsigned=frozenset(chosen["unsigned"]),
        maxima=frozenset(chosen["maxima"]),
        between=tuple(map(as_norm, between)),
    )
    return _possible(rule, system, choices)


def check_norm_rule(
    rule: str,
    system: IncrementSystem,
    norms: tuple[Norm, Norm],
    choices: Choices,
    bound: float,
    claims: Sequence[str | float],
) -> None:
    """Decides in exact arithmetic that a rule proves `bound`, with the spectral norms that it used. Raises Refuted."""
    try:
        system = _rewritten(system, choices)
    except UsageError as error:
        raise Refuted(f"proof.maxima: {error}") from None
    reason = refusal(rule, system, norms) or _too_large(system, choices)
    if reason is not None:
        raise Refuted(reason)
    evaluator = exact_norms(claims)
    forms = SignedForms(system=system, choices=choices, arithmetic=ExactArithmetic())
    proved = _bound(rule, forms, norms, evaluator)
    if len(evaluator.log) != len(claims):
        raise Refuted(f"the certificate lists {len(claims)} spectral norms, and the rule needs {len(evaluator.log)}")
    if not (isinstance(proved, Fraction) and bound >= proved):
        raise Refuted(f"the rule {rule!r} proves {float_up(proved)!r}, not {bound!r}")


def _bound(rule: str, forms: SignedForms, norms: tuple[Norm, Norm], evaluator: NormEvaluator) -> Bound:
    return NORM_RULES[rule].recursion(forms, *norms, evaluator) if forms.system.output.blocks else Fraction(0)


def _proving(system: IncrementSystem, choices: Choices) -> tuple[SignedForms, NormEvaluator]:
    """Forms to prove a bound with: in floating point, or where its errors have grown with the depth, in integers."""
    forms = SignedForms(system=system, choices=choices, arithmetic=FloatArithmetic())
    exact = forms.uncertainty() > UNCERTAIN
    if exact:
        forms = SignedForms(system=system, choices=choices, arithmetic=ExactArithmetic())
    floats = float_norms(margin=CLAIM_MARGIN)

    def spectral(matrix: Any, norms: EntryNorms) -> Bound:
        if norms.spectral is not None:
            return math.inf
        try:
            enclosure = enclosed(matrix) if isinstance(matrix, ExactEntries) else matrix
        except OverflowError:
            return math.inf
        value = floats.spectral(enclosure)
        if isinstance(enclosure, MatrixEnclosure) and enclosure.radius is not None:
            # the exact check charges the radius row by row
            radius = entry_norms(MatrixEnclosure(center=enclosure.radius))
            value = plus(value, max(radius.max_row_sum, radius.max_column_sum))
        return rational(float_up(value))

    return forms, NormEvaluator(exact_entry_norms if exact else entry_norms, spectral)


def _rewritten(system: IncrementSystem, choices: Choices) -> IncrementSystem:
    """The system, its chosen maxima written as such. Raises UsageError for an activation that is no maximum of two."""
    found = with_maxima(system, choices.maxima)
    if found.maxima != choices.maxima:
        others = ", ".join(map(str, sorted(choices.maxima - found.maxima)))
        raise UsageError(f"no maximum of two: activation {others}")
    return found.system


def _possible(rule: str, system: IncrementSystem, choices: Choices) -> Choices:
    """The choices, with everything unsigned that has to be: maxima, and vectors (split in the norm 2 alone)."""
    numbered = list(enumerate(system.activations, start=1))
    if "unsigned" not in NORM_RULES[rule].choices:
        forced = frozenset(k for k, _ in numbered)
    else:
        forced = frozenset(k for k, a in numbered if a.groups is not None and choices.between != ("2",))
    return replace(choices, unsigned=choices.unsigned | forced | choices.maxima)


def _too_large(system: IncrementSystem, choices: Choices) -> str | None:
    entries = largest_product(system, choices.unsigned)
    if entries <= LARGEST_PRODUCT:
        return None
    return f"a product of layers with {entries:.2g} entries is too large to be formed: choose convolutions=auto"


def refusal(rule: str, system: IncrementSystem, norms: tuple[Norm, Norm]) -> str | None:
    """Why a rule does not take a system, or None."""
    kind = NORM_RULES[rule]
    vectors = [a.name for a in system.activations if a.groups is not None]
    if kind.entrywise and vectors:
        names = ", ".join(map(repr, vectors[:5]))
        return f"{rule} takes activations that act entry by entry, and {names} acts on vectors: use liplt or product"
    if not kind.on_chains:
        return None
    if not is_chain(system):
        return f"{rule} is defined for chains of layers, and this network is none: use k4, which is never above it"
    matrices, most = len(system.activations) + 1, SUBSETS_SPECTRAL if norms == ("2", "2") else SUBSETS
    if matrices > most:
        return (
            f"{rule} adds up 2^{matrices - 1} norms for {matrices} matrices, and stops at {most} for "
            f"{norms[0]}:{norms[1]}: use k4, which is never above it"
        )
    return None
