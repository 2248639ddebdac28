"""Small conic programs whose optima are known in closed form: every cone, every sign, and what is easily mixed up.

What they cover follows MathOptInterface's `MOI.Test` (Legat, Dowson, Garcia & Lubin 2022, arXiv 2002.03447).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipmodel.model.forms import QuadraticForm
from lipmodel.model.model import Constraint, Model, inner
from lipmodel.model.sets import RotatedSecondOrder, SecondOrder
from lipmodel.model.terms import Congruence
from lipmodel.model.variables import Expression
from lipmodel.testing.models import Problem

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A problem with its tags, the version of the suite that it came with, and a factor of the tolerance."""

    problem: Problem
    tags: frozenset[str]
    since: int
    slack: float = 1.0


def stacked(*parts: Any) -> Expression:
    """Expressions and numbers, one below the other."""
    expressions = [p if isinstance(p, Expression) else Expression.number(p, 1) for p in parts]
    size, at = sum(e.size for e in expressions), 0
    total = Expression.number(0.0, size)
    for e in expressions:
        place = np.zeros((size, e.size))
        place[at : at + e.size] = np.eye(e.size)
        total, at = total + place @ e, at + e.size
    return total


# -------------------------------------------------------------------------------- linear programs


def _vertex() -> tuple[Model, float]:
    """max x + y, x + 2 y <= 4, 3 x + y <= 6, x, y >= 0: the vertex (8/5, 6/5)."""
    m = Model("vertex")
    x = m.variable("x", 2, nonnegative=True)
    m.require(np.array([1.0, 2.0]) @ x <= 4.0)
    m.require(np.array([3.0, 1.0]) @ x <= 6.0)
    m.minimize(-x.sum())
    return m, -14.0 / 5.0


def _transport() -> tuple[Model, float]:
    """min x1 + 3 x2 + 2 x3, x1 + x2 = 2, x2 + x3 = 1, x >= 0: x = (2, 0, 1)."""
    m = Model("equalities")
    x = m.variable("x", 3, nonnegative=True)
    m.require((np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]) @ x).equals([2.0, 1.0]))
    m.minimize(np.array([1.0, 3.0, 2.0]) @ x)
    return m, 4.0


def _free_linear() -> tuple[Model, float]:
    """min u + 7, u >= -2.5, u free: a negative optimum, a constant in the objective."""
    m = Model("free")
    u = m.variable("u")
    m.require(u >= -2.5)
    m.minimize(u + 7.0)
    return m, 4.5


def _degenerate() -> tuple[Model, float]:
    """One inequality thrice, one that says nothing (0 x >= -1), one written as x + x >= 3: x = 3/2 in many ways."""
    m = Model("degenerate")
    x = m.variable("x")
    for _ in range(3):
        m.require(x >= 1.5)
    m.require(0.0 * x >= -1.0)
    m.require(x + x >= 3.0)
    m.minimize(x)
    return m, 1.5


def _absolute_values() -> tuple[Model, float]:
    """min sum of |x_i - a_i| with x_1 + x_2 + x_3 = 0: the sum of the a_i, by its modulus."""
    m = Model("absolute-values")
    a = np.array([1.0, -2.5, 4.0])
    x, t = m.variable("x", 3), m.variable("t", 3)
    m.require(t - x >= -a)
    m.require(t + x >= a)
    m.require(x.sum().equals(0.0))
    m.minimize(t.sum())
    return m, 2.5


def _badly_scaled_rows() -> tuple[Model, float]:
    """min 0.01 x + 100 y, 100 x >= 200, 0.01 y >= 3e-5: x = 2, y = 0.003."""
    m = Model("badly-scaled-rows")
    x, y = m.variable("x", nonnegative=True), m.variable("y", nonnegative=True)
    m.require(1e2 * x >= 2e2)
    m.require(1e-2 * y >= 3e-5)
    m.minimize(1e-2 * x + 1e2 * y)
    return m, 0.32


# -------------------------------------------------------------------------------- second-order cones


def _norm_of_constants() -> tuple[Model, float]:
    """min t, t >= |(3, 4)|."""
    m = Model("norm")
    t = m.variable("t")
    m.require(Constraint(function=stacked(t, 3.0, 4.0), set=SecondOrder()))
    m.minimize(t)
    return m, 5.0


def _disc() -> tuple[Model, float]:
    """max 3 x + 4 y + z over the disc |(x, y)| <= 2 and |z| <= 1: several cones of different sizes."""
    m = Model("disc")
    x = m.variable("x", 3)
    m.require(Constraint(function=stacked(2.0, x[:2]), set=SecondOrder()))
    m.require(Constraint(function=stacked(1.0, x[2]), set=SecondOrder()))
    m.minimize(np.array([-3.0, -4.0, -1.0]) @ x)
    return m, -11.0


def _cone_blocks() -> tuple[Model, float]:
    """min t_1 + t_2 with (t_i, w_i) in cones of three entries each, stated as one constraint: 5 + 13."""
    m = Model("cone-blocks")
    t = m.variable("t", 2)
    m.require(Constraint(function=stacked(t[0], 3.0, 4.0, t[1], 5.0, 12.0), set=SecondOrder(block=3)))
    m.minimize(t.sum())
    return m, 18.0


def _rotated() -> tuple[Model, float]:
    """min u + v, 2 u v >= 1."""
    m = Model("rotated")
    u, v = m.variable("u"), m.variable("v")
    m.require(Constraint(function=stacked(u, v, 1.0), set=RotatedSecondOrder()))
    m.minimize(u + v)
    return m, math.sqrt(2.0)


def _rotated_asymmetric() -> tuple[Model, float]:
    """min u + 9 v, 2 u v >= 3^2 + 1: u = 3 sqrt 5, v = u / 9; u and v must not be exchanged."""
    m = Model("rotated-asymmetric")
    u, v = m.variable("u"), m.variable("v")
    m.require(Constraint(function=stacked(u, v, 3.0, 1.0), set=RotatedSecondOrder()))
    m.minimize(u + 9.0 * v)
    return m, 2.0 * 3.0 * math.sqrt(5.0)


# -------------------------------------------------------------------------------- matrices


def _one_by_one() -> tuple[Model, float]:
    """[2 u - 3] >= 0."""
    m = Model("order-one")
    z = m.signal("z", 1)
    u = m.variable("u")
    m.require(inner(z, z, weight=2.0 * u - 3.0) >= 0)
    m.minimize(u)
    return m, 1.5


def _off_diagonal() -> tuple[Model, float]:
    """min u, [[u, 2], [2, u]] >= 0: 2, where 2 sqrt 2 or sqrt 2 betray a wrong scaling off the diagonal."""
    m = Model("off-diagonal")
    a, b = m.signal("a", 1), m.signal("b", 1)
    u = m.variable("u")
    m.require(inner(a, a, weight=u) + 4 * inner(a, b) + inner(b, b, weight=u) >= 0)
    m.minimize(u)
    return m, 2.0


def _variable_off_diagonal() -> tuple[Model, float]:
    """max x, [[1, x], [x, 4]] >= 0: 2; here it is the coefficient of a variable that is off the diagonal."""
    m = Model("variable-off-diagonal")
    a, b = m.signal("a", 1), m.signal("b", 1)
    x = m.variable("x")
    m.require(inner(a, a) + 2 * inner(a, b, weight=x) + 4 * inner(b, b) >= 0)
    m.minimize(-x)
    return m, -2.0


def _largest_eigenvalue() -> tuple[Model, float]:
    """min u, u I >= A, with entries that are all different: a triangle read in a wrong order gives another matrix."""
    m = Model("largest-eigenvalue")
    z = m.signal("z", 4)
    matrix = np.array([[1.0, 2.0, -3.0, 4.0], [2.0, 5.0, 6.0, -7.0], [-3.0, 6.0, -8.0, 9.0], [4.0, -7.0, 9.0, 10.0]])
    u = m.variable("u")
    m.require(inner(z, z, weight=u.spread(4)) - inner(z, matrix @ z) >= 0)
    m.minimize(u)
    return m, float(np.linalg.eigvalsh(matrix)[-1])


def _constructed() -> tuple[Model, float]:
    """min c'y, C + sum_j y_j A_j >= 0 with asymmetric data, made from a complementary pair: c_j = <A_j, X>, X S = 0."""
    m = Model("constructed")
    rng = np.random.default_rng(4)
    n, y = 5, np.array([0.5, -1.0, 2.0])
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
    dual = basis[:, :2] @ np.diag([1.0, 3.0]) @ basis[:, :2].T
    slack = basis[:, 2:] @ np.diag([1.0, 2.0, 4.0]) @ basis[:, 2:].T
    matrices = [0.5 * (g + g.T) for g in rng.standard_normal((3, n, n))]
    constant = slack - sum(v * a for v, a in zip(y, matrices, strict=True))
    z = m.signal("z", n)
    x = m.variable("y", 3)
    form = inner(z, constant @ z)
    for j, a in enumerate(matrices):
        form = form + inner(z, a @ z, weight=x[j].spread(n))
    m.require(form >= 0)
    cost = np.array([np.sum(a * dual) for a in matrices])
    m.minimize(cost @ x)
    return m, float(cost @ y)


def _several_orders() -> tuple[Model, float]:
    """min u + v + w, each the largest eigenvalue of a matrix of order 1, 3 and 2, in this order of constraints."""
    m = Model("several-orders")
    rng, total = np.random.default_rng(5), 0.0
    objective: Any = 0.0
    for k, size in enumerate((1, 3, 2)):
        matrix = rng.standard_normal((size, size))
        matrix = matrix + matrix.T
        z, u = m.signal(f"z{k}", size), m.variable(f"u{k}")
        m.require(inner(z, z, weight=u.spread(size)) - inner(z, matrix @ z) >= 0)
        objective = u + objective
        total += float(np.linalg.eigvalsh(matrix)[-1])
    m.minimize(objective)
    return m, total


def _blocks_of_signals() -> tuple[Model, float]:
    """Two signals of sizes 2 and 3 and a product of both: the largest singular value, [[u I, B], [B', u I]] >= 0."""
    m = Model("rectangular-block")
    a, b = m.signal("a", 2), m.signal("b", 3)
    matrix = np.array([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]])
    u = m.variable("u")
    form = inner(a, a, weight=u.spread(2)) + inner(b, b, weight=u.spread(3)) + 2 * inner(a, matrix @ b)
    m.require(form >= 0)
    m.minimize(u)
    return m, float(np.linalg.norm(matrix, 2))


def _repeated_terms() -> tuple[Model, float]:
    """The same entries stated several times add up: u - 1 - 1 - 1 >= 0 and u |z|^2 in two halves."""
    m = Model("repeated-terms")
    z = m.signal("z", 2)
    u = m.variable("u")
    half = inner(z, z, weight=0.5 * u.spread(2))
    m.require(half + half - inner(z, z) - inner(z, z) - inner(z, z) >= 0)
    m.minimize(u)
    return m, 3.0


def _unread_signal() -> tuple[Model, float]:
    """A signal that only its own ball reads, and one row of zeros in what it is compared with."""
    m = Model("unread-signal")
    z, spare = m.signal("z", 3), m.signal("spare", 2)
    matrix = np.diag([2.0, 0.0, 1.0])
    u, v = m.variable("u"), m.variable("v", nonnegative=True)
    form = inner(z, z, weight=u.spread(3)) - inner(z, matrix @ z) + inner(spare, spare, weight=(1.0 + v).spread(2))
    m.require(form >= 0)
    m.minimize(u + v)
    return m, 2.0


def _empty_constraints() -> tuple[Model, float]:
    """A form without terms, an inequality and an equality without variables, beside one that matters."""
    m = Model("empty-constraints")
    z = m.signal("z", 1)
    u = m.variable("u")
    m.require(QuadraticForm() >= 0)
    m.require(Expression.number(1.0, 2) >= 0.0)
    m.require(Expression.number(0.0, 1).equals(0.0))
    m.require(inner(z, z, weight=u - 4.0) >= 0)
    m.minimize(u)
    return m, 4.0


def _zero_optimum() -> tuple[Model, float]:
    """min u, [[1 + u, 1], [1, 1]] >= 0: the optimum is zero, and so is every relative tolerance."""
    m = Model("zero-optimum")
    a, b = m.signal("a", 1), m.signal("b", 1)
    u = m.variable("u")
    m.require(inner(a, a, weight=1.0 + u) + 2 * inner(a, b) + inner(b, b) >= 0)
    m.minimize(u)
    return m, 0.0


def _badly_scaled_matrix() -> tuple[Model, float]:
    """Rows of sizes 1, 10 and 1/10: u >= a'A^-1 a by a Schur complement."""
    m = Model("badly-scaled-matrix")
    z, one = m.signal("z", 3), m.signal("one", 1)
    sizes, a = np.array([1.0, 1e2, 1e-2]), np.array([1.0, 10.0, 0.2])
    u = m.variable("u")
    form = inner(z, z, weight=sizes) + inner(one, one, weight=u) + 2 * inner(a[None, :] @ z, one)
    m.require(form >= 0)
    m.minimize(u)
    return m, float(np.sum(a**2 / sizes))


def _all_cones() -> tuple[Model, float]:
    """Problems in every cone side by side, stated in an order no solver has: what is mixed up shows in the sum."""
    m = Model("all-cones")
    z = m.signal("z", 2)
    a, b, c, d, e = (m.variable(name) for name in "abcde")
    m.require(Constraint(function=stacked(a, 5.0, 12.0), set=SecondOrder()))
    m.require(b >= 2.0)
    m.require(inner(z, z, weight=c.spread(2)) - inner(z, np.array([[1.0, 2.0], [2.0, -1.0]]) @ z) >= 0)
    m.require(d.equals(-4.0))
    m.require(Constraint(function=stacked(e, 2.0, 4.0), set=RotatedSecondOrder()))
    m.minimize(a + 10.0 * b + 100.0 * c + 1000.0 * d + 0.5 * e)
    return m, 13.0 + 20.0 + 100.0 * math.sqrt(5.0) - 4000.0 + 2.0


def _hyperbola(*, equality: bool) -> tuple[Model, float]:
    """Minimise u subject to [[u, 1], [1, v]] >= 0 and v = 4 or 3 v <= 12, u and v free: u = 1/4."""
    m = Model("hyperbola")
    a, b = m.signal("a", 1), m.signal("b", 1)
    u, v = m.variable("u"), m.variable("v")
    m.require(inner(a, a, weight=u) + 2 * inner(a, b) + inner(b, b, weight=v) >= 0)
    m.require(v.equals(4.0) if equality else 3 * v <= 12.0)
    m.minimize(u)
    return m, 0.25


def _shifted() -> tuple[Model, float]:
    """A free variable with a negative optimum, and a constant in the objective: min u - 3, u >= largest of -A's."""
    m = Model("shifted")
    z = m.signal("z", 3)
    matrix = np.array([[-2.0, 0.5, 0.0], [0.5, -3.0, 0.1], [0.0, 0.1, -4.0]])
    u = m.variable("u")
    m.require(inner(z, z, weight=u.spread(3)) - inner(z, matrix @ z) >= 0)
    m.minimize(u - 3.0)
    return m, float(np.linalg.eigvalsh(matrix)[-1]) - 3.0


def _positive_part() -> tuple[Model, float]:
    """Minimise tr X subject to X >= A and X >= 0, X a symmetric matrix: the sum of A's positive eigenvalues."""
    m = Model("positive-part")
    z = m.signal("z", 4)
    matrix = np.random.default_rng(2).standard_normal((4, 4))
    matrix = matrix + matrix.T
    x = m.symmetric("X", 4)
    gram = QuadraticForm(terms=(Congruence(form=z, matrix=x),))
    m.require(gram - inner(z, matrix @ z) >= 0)
    m.require(gram >= 0)
    cols, rows = np.triu_indices(4)
    m.minimize(Expression.of(x)[np.flatnonzero(rows == cols)].sum())
    return m, float(np.sum(np.maximum(np.linalg.eigvalsh(matrix), 0.0)))


def _two_blocks() -> tuple[Model, float]:
    """One variable in two matrix inequalities of its own signals: the larger of two spectral norms, squared."""
    m = Model("two-blocks")
    rng = np.random.default_rng(3)
    rho, norms = m.variable("rho", nonnegative=True), []
    for name, size in (("a", 3), ("b", 2)):
        z, weights = m.signal(name, size), rng.standard_normal((4, size))
        m.require(inner(z, z, weight=rho.spread(size)) - inner(weights @ z, weights @ z) >= 0)
        norms.append(float(np.linalg.norm(weights, 2)))
    m.minimize(rho, bound="sqrt")
    return m, max(norms)


def _catalogue() -> dict[str, Program]:
    linear = {
        "vertex": _vertex,
        "equalities": _transport,
        "free-and-constant": _free_linear,
        "degenerate-rows": _degenerate,
        "absolute-values": _absolute_values,
        "badly-scaled-rows": _badly_scaled_rows,
    }
    cones = {
        "norm-of-constants": _norm_of_constants,
        "disc": _disc,
        "cone-blocks": _cone_blocks,
        "rotated-cone": _rotated,
        "rotated-cone-asymmetric": _rotated_asymmetric,
        "all-cones": _all_cones,
    }
    matrices = {
        "order-one": _one_by_one,
        "off-diagonal": _off_diagonal,
        "variable-off-diagonal": _variable_off_diagonal,
        "largest-eigenvalue": _largest_eigenvalue,
        "constructed": _constructed,
        "several-orders": _several_orders,
        "rectangular-block": _blocks_of_signals,
        "repeated-terms": _repeated_terms,
        "unread-signal": _unread_signal,
        "empty-constraints": _empty_constraints,
        "zero-optimum": _zero_optimum,
        "badly-scaled-matrix": _badly_scaled_matrix,
    }
    first = {
        "equality-row": lambda: _hyperbola(equality=True),
        "inequality-row": lambda: _hyperbola(equality=False),
        "free-variable": _shifted,
        "matrix-variable": _positive_part,
        "two-blocks": _two_blocks,
    }
    found: dict[str, Program] = {}
    for since, tag, problems in (
        (2, "linear", linear),
        (2, "cone", cones),
        (2, "matrix", matrices),
        (1, "matrix", first),
    ):
        for name, problem in problems.items():
            slack = 100.0 if "badly-scaled" in name or name == "zero-optimum" else 1.0
            found[name] = Program(problem=problem, tags=frozenset({tag, "optimum"}), since=since, slack=slack)
    return found


PROGRAMS: dict[str, Program] = _catalogue()
