"""Norm expressions: rounded up, evaluated once, printed, and refused where they would not be bounds."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from lipmodel.errors import UsageError
from lipmodel.model.norm_expression import NormExpression, constant, maximum, minimum, norm, root_sum_squares
from lipmodel.network.linear import Dense


def test_norm_expressions_evaluate_upwards():
    a, b = Dense(weights=np.array([[3.0, 4.0]])), Dense(weights=np.array([[0.1], [0.2]]))
    one, two = norm(a, "2", "2", label="A"), norm(b, "2", "2", label="B")
    product = one * two
    exact = 25 * (Fraction(0.1) ** 2 + Fraction(0.2) ** 2)
    value = Fraction(product.evaluate())
    assert exact <= value * value <= exact * (1 + Fraction(1, 10**14))
    assert (one + 2.0).evaluate() == (2.0 + one).evaluate() == 7.0
    assert (0.5 * one).evaluate() == 2.5
    assert minimum(one, 3.0).evaluate() == 3.0
    assert maximum(one, 3.0).evaluate() == 5.0
    assert root_sum_squares(one, 12.0).evaluate() == 13.0
    assert (constant(0.1) + 0.2).evaluate() == 0.30000000000000004  # the sum of the two doubles lies just above 0.3
    assert (constant(1e300) * 1e300).evaluate() == math.inf
    assert (constant(1e-300) * 1e-300).evaluate() == 5e-324
    assert product.evaluate(norm=lambda map, p, q: 2.0) == 4.0


def test_norm_expressions_print_and_count():
    a = Dense(weights=np.eye(3)[:2])
    one = norm(a, "2", "inf", label="W1")
    expression = minimum((one + 1.0) * one, 3.0)
    assert str(expression) == "min((||W1||_{2->inf} + 1) * ||W1||_{2->inf}, 3)"
    assert expression.size() == 6
    assert str(norm(a, "1", "1")) == "||Dense(2x3)||_{1->1}"
    shared = one * 2.0
    assert str(shared + shared) == "t1 = ||W1||_{2->inf} * 2\nt1 + t1"
    assert expression.rule is None
    assert expression.with_rule("product").rule == "product"
    assert "6 nodes" in repr(expression)


def test_norm_expressions_are_evaluated_once_and_may_be_deep():
    calls = []

    def counted(map, p, q):
        calls.append((p, q))
        return 1.0

    doubled: NormExpression = norm(Dense(weights=np.eye(2)), "2", "2")
    for _ in range(60):
        doubled = doubled + doubled
    assert doubled.size() == 61
    assert doubled.evaluate(norm=counted) == 2.0**60
    assert calls == [("2", "2")]
    assert len(str(doubled).splitlines()) == 60
    deep: NormExpression = constant(1.0)
    for _ in range(5000):
        deep = deep * 1.0 + 0.5
    assert deep.evaluate() == 2501.0
    assert deep.size() == 1 + 4 * 5000
    assert str(deep).endswith("+ 0.5")


@pytest.mark.parametrize("value", [-1.0, math.nan, -math.inf])
def test_norm_expressions_refuse_what_is_not_a_bound(value):
    with pytest.raises(UsageError):
        constant(value)
    with pytest.raises(UsageError):
        norm(Dense(weights=np.eye(1)), "1", "1") + value
    with pytest.raises(ValueError, match="not an upper bound"):
        norm(Dense(weights=np.eye(1)), "1", "1").evaluate(norm=lambda *_: value)


def test_expressions_need_operands():
    for operation in (minimum, maximum, root_sum_squares):
        with pytest.raises(UsageError):
            operation()
