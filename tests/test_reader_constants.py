"""Constants that a file computes and that are no rational numbers: the checker encloses them by itself."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import make
from operator_cases import DENSE, node

import lipmodel as lm
from lipmodel.certify import reader
from lipmodel.certify.intervals import BITS, Between, between, ends, inverse
from lipmodel.certify.operands import enclosed
from lipmodel.certify.source import source_of
from lipmodel.certify.tape import Unreadable
from lipmodel.network import onnx_folding
from lipmodel.network.increments import increments
from lipmodel.spec import Spec


def times(*nodes, shape=(2, 3), **weights):
    """x times (a constant that these nodes compute as c), plus it."""
    return make([*nodes, node("Mul", ["x", "c"], ["p"]), node("Add", ["p", "c"])], weights, shape=shape)


A = np.array([0.3, 2.0, 5.5])
CASES = {
    **{op: times(node(op, ["a"], ["c"]), a=A) for op in ("Sqrt", "Log", "Exp", "Sin", "Cos", "Tan")},
    "Pow": times(node("Pow", ["a", "e"], ["c"]), a=A, e=np.array([0.5, -0.5, 1.3])),
    "Pow-third": times(node("Pow", ["a", "e"], ["c"]), a=A, e=np.array([[1 / 3], [-70.0]])),
    "exact": times(
        node("Sqrt", ["a"], ["s"]),
        node("Pow", ["a", "e"], ["r"]),
        node("Mul", ["s", "r"], ["c"]),
        a=np.array([4.0, 2.25, 0.0]),
        e=np.array(0.5),
    ),
    "exact-ends": times(node("Exp", ["z"], ["e"]), node("Log", ["e"], ["c"]), z=np.zeros(3)),
    "twice": times(node("Exp", ["a"], ["e"]), node("Sqrt", ["e"], ["s"]), node("Log", ["s"], ["c"]), a=A),
    "powers of roots": times(
        node("Sqrt", ["a"], ["s"]), node("Pow", ["s", "e"], ["c"]), a=A, e=np.array([3.0, -1.0, 0.5])
    ),
    "arithmetic": times(
        node("Sqrt", ["a"], ["s"]),
        node("Div", ["a", "s"], ["d"]),
        node("Sub", ["d", "b"], ["m"]),
        node("Neg", ["m"], ["n"]),
        node("Sum", ["n", "s", "a"], ["t"]),
        node("Mul", ["t", "s"], ["c"]),
        a=A,
        b=np.array([[0.1], [-7.0]]),
    ),
    "sums and products": times(
        node("Sqrt", ["a"], ["s"]),
        node("MatMul", ["b", "s"], ["m"]),
        node("ReduceMean", ["m"], ["c"], axes=[1]),
        a=np.outer(A, A[:2]),
        b=DENSE[:2, :3],
        shape=(2, 3),
    ),
    "moved": times(
        node("Sqrt", ["a"], ["s"]),
        node("Concat", ["s", "a"], ["j"], axis=0),
        node("Gather", ["j", "i"], ["c"]),
        a=A,
        i=np.array([1, 4, 0]),
    ),
    "normalised": make(
        [
            node("Sub", ["x", "m"], ["d"]),
            node("Add", ["v", "e"], ["s"]),
            node("Sqrt", ["s"], ["r"]),
            node("Div", ["d", "r"], ["q"]),
            node("Relu", ["q"], ["h"]),
            node("Mul", ["h", "g"]),
        ],
        {"m": A, "v": A, "e": np.array(1e-5), "g": -A},
        shape=(1, 3),
    ),
    "weight norm": make(
        [
            node("Mul", ["w", "w"], ["s"]),
            node("ReduceSum", ["s", "k"], ["t"]),
            node("Sqrt", ["t"], ["r"]),
            node("Div", ["w", "r"], ["u"]),
            node("Gemm", ["x", "u"], ["h"]),
            node("Tanh", ["h"]),
        ],
        {"w": DENSE, "k": np.array([0])},
        shape=(1, 4),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_system_is_that_of_the_importer(name):
    network = lm.load(CASES[name], check=False)
    source, system = source_of(network, Spec()), increments(network)
    assert not source.why, source.why
    source.compare(system, None, None)
    x = np.random.default_rng(0).standard_normal(network.input_size)
    rise, found = source.moduli(network, Spec(), x, np.zeros(network.input_size))
    gap = np.abs(network.evaluate(x) - network.evaluate(np.zeros(network.input_size))).ravel()
    assert rise == [abs(Fraction(v)) for v in x.tolist()]
    assert not source.why_witness
    np.testing.assert_allclose(list(map(float, found)), gap, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("exact-ends", "Pow", "Pow-third")])
def test_functions_that_the_importer_has_wrong_are_found_out(name, monkeypatch):
    for op, function in onnx_folding.FUNCTIONS.items():
        monkeypatch.setitem(onnx_folding.FUNCTIONS, op, lambda x, f=function: f(x) * 1.0000001)
    network = lm.load(CASES[name], check=False)
    with pytest.raises(lm.Refuted, match="disagree about the network"):
        source_of(network, Spec()).compare(increments(network), None, None)


def read(content):
    data = content.SerializeToString(deterministic=True)
    return reader.read(data, hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("op", "value", "message"),
    [
        ("Sqrt", -1.0, "not known"),
        ("Log", 0.0, "not known"),
        ("Log", -2.0, "not known"),
        ("Exp", 1e6, "very large"),
    ],
)
def test_what_is_not_defined_or_huge(op, value, message):
    with pytest.raises(Unreadable, match=message):
        read(times(node(op, ["a"], ["c"]), a=np.array([value])))


def test_what_is_not_decided_about_an_enclosed_constant():
    for op in ("Less", "Equal"):
        nodes = [node("Sqrt", ["a"], ["s"]), node(op, ["s", "a"], ["m"]), node("Where", ["m", "a", "b"], ["c"])]
        with pytest.raises(Unreadable, match="unusual way"):
            read(times(*nodes, a=A, b=-A))
    for op in ("Max", "Floor"):
        nodes = [node("Sqrt", ["a"], ["s"]), node(op, ["s", "a"] if op == "Max" else ["s"], ["c"])]
        with pytest.raises(Unreadable, match="unusual way"):
            read(times(*nodes, a=A))
    nodes = [node("Sqrt", ["a"], ["s"]), node("Sub", ["s", "s"], ["z"]), node("Div", ["a", "z"], ["c"])]
    with pytest.raises(Unreadable, match="may be 0"):
        read(times(*nodes, a=A))


NUMBERS = st.fractions(min_value=-100, max_value=100, max_denominator=10**6)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.fractions(0, 1), st.fractions(0, 1))
def test_arithmetic_of_intervals_holds_that_of_their_points(a, b, c, d, s, t):
    p, q = between(min(a, b), max(a, b)), between(min(c, d), max(c, d))
    x, y = min(a, b) + s * abs(a - b), min(c, d) + t * abs(c - d)
    for found, value in ((p + q, x + y), (p - q, x - y), (p * q, x * y), (-p, -x), (p + d, x + d), (d - p, d - x)):
        low, high = ends(found)
        assert low <= value <= high
    low, high = ends(q)
    if low <= 0 <= high:
        with pytest.raises(ZeroDivisionError):
            inverse(q)
        return
    for found, value in ((p / q, x / y), (inverse(q), 1 / y), (a * inverse(q), a / y)):
        low, high = ends(found)
        assert low <= value <= high


def test_ends_are_short_and_close():
    third = Fraction(1, 3)
    found = between(third, third + Fraction(1, 10**60))
    assert isinstance(found, Between)
    assert found.low <= third < third + Fraction(1, 10**60) <= found.high
    assert found.high - found.low < Fraction(1, 10**56)
    assert max(v.numerator.bit_length() for v in ends(found)) <= BITS + 1
    assert between(third, third) == third
    ((middle, radius),), exponent = enclosed([found])
    assert Fraction(middle - radius, 2**exponent) <= found.low
    assert found.high <= Fraction(middle + radius, 2**exponent)
    assert math.isclose(middle / 2**exponent, 1 / 3)
