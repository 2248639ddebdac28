"""Norm expressions: bounds made of norms of linear maps by sums, products, minima, maxima and roots of sums of squares.

    bound = norm(W3, "2", "2") * norm(W2, "2", "2") * norm(W1, "2", "2")
    bound = minimum(bound, norm(W3, "inf", "2") * norm(W2, "inf", "inf") * norm(W1, "2", "inf"))

Every operation is increasing in every operand and all operands are nonnegative, so replacing each norm by a proved
upper bound and rounding up gives a proved upper bound of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lipmodel.errors import UsageError
from lipmodel.model.forms import LinearForm
from lipmodel.network.linear import LinearMap
from lipmodel.spec import Norm, as_norm

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem, SlopeRestricted

Array = np.ndarray[Any, Any]

Operation = Literal["norm", "constant", "sum", "product", "minimum", "maximum", "root-sum-squares"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NormExpression:
    """A node of a norm expression; made by `norm`, `constant`, +, *, `minimum`, `maximum`, `root_sum_squares`.

    rule: the name of the rule that a checker can recompute the expression by ("product"), None for any other;
    unsigned, maxima, between: what the rule needs to know besides: the activations, by number from 1, at which products
    of matrices end, and those written as maxima of two; the norms between layers (none: those of the question).
    """

    __array_ufunc__ = None

    operation: Operation
    operands: tuple[NormExpression, ...] = ()
    map: LinearMap | None = None
    norms: tuple[Norm, Norm] | None = None
    value: float = 0.0
    label: str = ""
    rule: str | None = None
    unsigned: tuple[int, ...] = ()
    maxima: tuple[int, ...] = ()
    between: tuple[Norm, ...] = ()

    def __add__(self, other: NormExpression | float) -> NormExpression:
        return NormExpression(operation="sum", operands=(self, _expression(other)))

    def __radd__(self, other: float) -> NormExpression:
        return _expression(other) + self

    def __mul__(self, other: NormExpression | float) -> NormExpression:
        return NormExpression(operation="product", operands=(self, _expression(other)))

    def __rmul__(self, other: float) -> NormExpression:
        return _expression(other) * self

    def with_rule(
        self,
        rule: str | None,
        *,
        signed: Sequence[bool] = (),
        maxima: Collection[int] = (),
        between: Sequence[str] = (),
    ) -> NormExpression:
        """The same expression, carrying the name of the rule that states it.

        signed: by activation, what `signed` said; maxima: what `with_maxima` found; between: the norms tried between
        layers. Raises UsageError.
        """
        unsigned = tuple(k for k, sign in enumerate(signed, start=1) if not sign)
        norms = tuple(map(as_norm, between))
        return replace(self, rule=rule, unsigned=unsigned, maxima=tuple(sorted(maxima)), between=norms)

    def nodes(self) -> Iterator[NormExpression]:
        """Every node once, operands before what uses them."""
        seen: set[int] = set()
        stack: list[tuple[NormExpression, bool]] = [(self, False)]
        while stack:
            node, ready = stack.pop()
            if ready:
                yield node
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack.extend((operand, False) for operand in reversed(node.operands))

    def size(self) -> int:
        """Number of nodes, shared ones counted once."""
        return sum(1 for _ in self.nodes())

    def evaluate(self, norm: Callable[[LinearMap, Norm, Norm], Fraction | float] | None = None) -> float:
        """The value, rounded up; a proved bound where `norm` gives proved bounds (by default, `ranges.norms`)."""
        from lipmodel.ranges.norms import float_norms, float_up, plus, rational, root_up, round_up, times

        source = float_norms() if norm is None else norm
        values: dict[int, Fraction | float] = {}
        for node in self.nodes():
            parts = [values[id(operand)] for operand in node.operands]
            value: Fraction | float
            if node.map is not None and node.norms is not None:
                value = rational(source(node.map, *node.norms))
            elif node.operation == "constant":
                value = rational(node.value)
            elif node.operation == "sum":
                value = reduce(plus, parts)
            elif node.operation == "product":
                value = reduce(times, parts)
            elif node.operation == "minimum":
                value = min(parts)
            elif node.operation == "maximum":
                value = max(parts)
            else:
                value = root_up(reduce(plus, [times(part, part) for part in parts]))
            values[id(node)] = round_up(value)
        return float_up(values[id(self)])

    def __repr__(self) -> str:
        return f"<NormExpression: {self.operation}, {self.size()} nodes>"

    def __str__(self) -> str:
        """The formula; what occurs more than once, and what is nested deeply, is named on a line of its own."""
        uses: dict[int, int] = {}
        for node in self.nodes():
            for operand in node.operands:
                uses[id(operand)] = uses.get(id(operand), 0) + 1
        texts: dict[int, tuple[str, bool]] = {}
        lines: list[str] = []
        for node in self.nodes():
            text, atomic = _text(node, [texts[id(operand)] for operand in node.operands])
            if node is not self and node.operands and (uses[id(node)] > 1 or len(text) > _LINE):
                lines.append(f"t{len(lines) + 1} = {text}")
                text, atomic = f"t{len(lines)}", True
            texts[id(node)] = (text, atomic)
        return "\n".join([*lines, texts[id(self)][0]])


_LINE = 100


def norm(map: LinearMap, p: Any, q: Any, *, label: str = "") -> NormExpression:
    """The induced norm ||M||_{p->q} of a linear map; `label` is what it is called in print. Raises UsageError."""
    return NormExpression(operation="norm", map=map, norms=(as_norm(p), as_norm(q)), label=label)


def constant(value: float) -> NormExpression:
    """A nonnegative number. Raises UsageError for a negative one and for NaN."""
    value = float(value)
    if not value >= 0:
        raise UsageError(f"a norm expression contains the constant {value!r}: constants must be nonnegative numbers")
    return NormExpression(operation="constant", value=value)


def minimum(*operands: NormExpression | float) -> NormExpression:
    """The least of bounds of one quantity. Raises UsageError without operands."""
    return _collected("minimum", operands)


def maximum(*operands: NormExpression | float) -> NormExpression:
    """The largest of several quantities. Raises UsageError without operands."""
    return _collected("maximum", operands)


def root_sum_squares(*operands: NormExpression | float) -> NormExpression:
    """The 2-norm of a vector of bounds. Raises UsageError without operands."""
    return _collected("root-sum-squares", operands)


def signed(
    system: IncrementSystem,
    treatment: str = "auto",
    *,
    between: Sequence[str] = ("2",),
    maxima: Collection[int] = (),
) -> tuple[bool, ...]:
    """For every activation, whether products of layers are formed through it; elsewhere moduli are multiplied.

    treatment: "explicit": everywhere; "implicit": not next to convolutions; "auto": where they stay small. between: the
    norms that what an activation returns is measured in: activations on vectors (Softmax, normalisations) have a middle
    slope in the norm 2 only. maxima: what `with_maxima` found; products end there. Raises UsageError for another
    treatment.
    """
    from lipmodel.certify import norm_treatment

    chosen = zip(system.activations, norm_treatment.signed(system, treatment, maxima), strict=True)
    return tuple(keeps and (a.groups is None or set(between) == {"2"}) for a, keeps in chosen)


def split(activation: SlopeRestricted, *, signed: bool = True) -> tuple[Array, Array]:
    """(c, r) with |w - c v| <= r |v| entry by entry, both of shape (size,), r rounded up.

    c is the middle of the slopes, or 0 and r the gain where the activation is not `signed`.
    """
    from lipmodel.certify.norm_recursions import centres, deviations

    c = centres(activation) if signed else np.zeros(activation.size)
    return c, deviations(activation, c)


def modulus(form: LinearForm) -> LinearForm:
    """The entrywise moduli of the blocks of a linear form."""
    return LinearForm(size=form.size, blocks={signal: map.modulus() for signal, map in form.blocks.items()})


def with_maxima(system: IncrementSystem) -> tuple[IncrementSystem, frozenset[int]]:
    """The system, its maxima of two entries written as such, and the numbers (from 1) of the activations they are.

    Max-pooling, Max, Min, sorting: relus w = s (a - b), s in [0, 1]. The signal of such an activation becomes (m, m'),
    m = b + w and m' = a - w, its pre (a, b): |m| and |m'| are at most the larger of |a| and |b|, entry by entry.
    """
    from lipmodel.certify.maxima import with_maxima

    found = with_maxima(system)
    return found.system, found.maxima


def larger(form: LinearForm) -> LinearForm:
    """(A, B) -> (max(A, B), max(A, B)), entry by entry, for every block of a form of even size."""
    from lipmodel.certify.maxima import Larger

    return LinearForm(size=form.size, blocks={signal: Larger(map=map) for signal, map in form.blocks.items()})


def is_chain(system: IncrementSystem) -> bool:
    """Whether every activation, and the output, reads nothing but what comes right before it."""
    from lipmodel.certify import norm_treatment

    return norm_treatment.is_chain(system)


def require(rule: str, system: IncrementSystem, norms: tuple[Norm, Norm]) -> None:
    """Raises UsageError, saying what to use instead, where a rule ("k3", "k4", "path-norm") does not take a system."""
    from lipmodel.certify.norm_rules import refusal

    reason = refusal(rule, system, norms)
    if reason is not None:
        raise UsageError(reason)


def _collected(operation: Operation, operands: tuple[NormExpression | float, ...]) -> NormExpression:
    if not operands:
        raise UsageError(f"{operation} of nothing")
    return NormExpression(operation=operation, operands=tuple(_expression(operand) for operand in operands))


def _expression(value: NormExpression | float) -> NormExpression:
    return value if isinstance(value, NormExpression) else constant(value)


def _text(node: NormExpression, parts: list[tuple[str, bool]]) -> tuple[str, bool]:
    """The text of a node from those of its operands, and whether it needs no parentheses in a product."""
    if node.map is not None and node.norms is not None:
        m, n = node.map.shape
        name = node.label or f"{type(node.map).__name__}({m}x{n})"
        return f"||{name}||_{{{node.norms[0]}->{node.norms[1]}}}", True
    if node.operation == "constant":
        return ("inf" if math.isinf(node.value) else f"{node.value:.15g}"), True
    if node.operation == "sum":
        return " + ".join(text for text, _ in parts), False
    if node.operation == "product":
        return " * ".join(text if atomic else f"({text})" for text, atomic in parts), True
    name = {"minimum": "min", "maximum": "max"}.get(node.operation, "root_sum_squares")
    return f"{name}({', '.join(text for text, _ in parts)})", True
