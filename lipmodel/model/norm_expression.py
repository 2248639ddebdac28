"""Norm expressions: bounds made of norms of linear maps by sums, products, minima, maxima and roots of sums of squares.

    bound = norm(W3, "2", "2") * norm(W2, "2", "2") * norm(W1, "2", "2")
    bound = minimum(bound, norm(W3, "inf", "2") * norm(W2, "inf", "inf") * norm(W1, "2", "inf"))

Every operation is increasing in every operand and all operands are nonnegative, so replacing each norm by a proved
upper bound and rounding up gives a proved upper bound of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from typing import Any, Literal

from lipmodel.errors import UsageError
from lipmodel.network.linear import LinearMap
from lipmodel.spec import Norm, as_norm

Operation = Literal["norm", "constant", "sum", "product", "minimum", "maximum", "root-sum-squares"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NormExpression:
    """A node of a norm expression; made by `norm`, `constant`, +, *, `minimum`, `maximum`, `root_sum_squares`.

    rule: the name of the rule that a checker can recompute the expression by ("product"), None for any other.
    """

    __array_ufunc__ = None

    operation: Operation
    operands: tuple[NormExpression, ...] = ()
    map: LinearMap | None = None
    norms: tuple[Norm, Norm] | None = None
    value: float = 0.0
    label: str = ""
    rule: str | None = None

    def __add__(self, other: NormExpression | float) -> NormExpression:
        return NormExpression(operation="sum", operands=(self, _expression(other)))

    def __radd__(self, other: float) -> NormExpression:
        return _expression(other) + self

    def __mul__(self, other: NormExpression | float) -> NormExpression:
        return NormExpression(operation="product", operands=(self, _expression(other)))

    def __rmul__(self, other: float) -> NormExpression:
        return _expression(other) * self

    def with_rule(self, rule: str | None) -> NormExpression:
        """The same expression, carrying the name of the rule that states it."""
        return replace(self, rule=rule)

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
