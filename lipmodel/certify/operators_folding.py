"""What files compute from constants alone, mostly shapes and masks: exact in integers and rational numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb

from lipmodel.certify.curves import exact
from lipmodel.certify.intervals import Known, applied
from lipmodel.certify.operands import MAX_TENSOR, Array, Node, Value, rational, reals
from lipmodel.certify.tape import Unreadable

MOST = 64
"""The largest exponent of which a power is computed exactly."""
MAX_BALLS = 50_000
COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "Equal": operator.eq,
    "Less": operator.lt,
    "Greater": operator.gt,
    "LessOrEqual": operator.le,
    "GreaterOrEqual": operator.ge,
}
LOGIC: Mapping[str, Callable[..., Array]] = {
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Not": np.logical_not,
}
FUNCTIONS: Mapping[str, Callable[[Fraction], Fraction | int]] = {
    "Floor": math.floor,
    "Ceil": math.ceil,
    "Round": round,
    "Sign": lambda v: (v > 0) - (v < 0),
    "Reciprocal": lambda v: 1 / v,
}
BALLS: Mapping[str, Callable[[arb], arb]] = {
    "Sqrt": lambda x: x.sqrt(),
    "Log": lambda x: x.log(),
    "Tan": lambda x: x.tan(),
}
TRANSCENDENTAL = ("Exp", "Sin", "Cos")
"""Activations that a file applies to constants to compute others."""


def comparison(node: Node) -> Value:
    a, b = (rational(node.fixed(port, "fOi")) for port in (0, 1))
    return np.asarray(COMPARISONS[node.op](a, b), dtype=bool)


def logic(node: Node) -> Value:
    return np.asarray(LOGIC[node.op](*(node.fixed(port, "b") for port in range(len(node.inputs)))))


def function(node: Node) -> Value:
    """Functions that take rational numbers to rational numbers."""
    x = node.fixed(0)
    found = np.array([Fraction(FUNCTIONS[node.op](v)) for v in rational(x).ravel().tolist()], dtype=object)
    return found.reshape(x.shape)


def range_(node: Node) -> Value:
    start, end, step = (node.fixed(port, "fOi") for port in range(3))
    first, last, by = (Fraction(v.reshape(()).item()) for v in (start, end, step))
    count = max(0, math.ceil((last - first) / by))
    if count > MAX_TENSOR:
        raise Unreadable("a constant that is too large")
    found = [first + k * by for k in range(count)]
    whole = start.dtype.kind == "i"
    return np.array(list(map(int, found)), dtype=np.int64) if whole else rational(np.array(found, dtype=object))


def modulus(node: Node) -> Value:
    if node.attributes.get("fmod"):
        raise Unreadable("Mod with fmod")
    a, b = (node.fixed(port, "i") for port in (0, 1))
    if not b.all():
        raise Unreadable("Mod by 0")
    return np.asarray(a % b)


def power(node: Node) -> Value:
    """Powers, exact where the exponent is whole."""
    base, exponent = np.broadcast_arrays(node.fixed(0, "fOi"), node.fixed(1, "fOi"))
    pairs = list(zip(reals(base).ravel().tolist(), map(Fraction, exponent.ravel().tolist()), strict=True))
    if base.dtype.kind == "i":
        if any(e.denominator != 1 or not 0 <= e <= MOST for _, e in pairs):
            raise Unreadable("a power of integers that is none")
        return np.array([int(v ** int(e)) for v, e in pairs], dtype=np.int64).reshape(base.shape)
    return reals(np.array([_power(v, e) for v, e in pairs], dtype=object)).reshape(base.shape)


def _power(base: Known, exponent: Fraction) -> Known:
    if isinstance(base, Fraction) and exponent.denominator == 1 and abs(exponent) <= MOST:
        return Fraction(base ** int(exponent))
    return applied(lambda x: x ** exact(exponent), base)


def enclosed_function(node: Node) -> Value:
    """Functions of constants that are no rational numbers."""
    x = node.fixed(0)
    if x.size > MAX_BALLS:
        raise Unreadable(f"too much arithmetic on constants ({node.op})")
    found = [applied(BALLS[node.op], v) for v in reals(x).ravel().tolist()]
    return reals(np.array(found, dtype=object)).reshape(x.shape)
