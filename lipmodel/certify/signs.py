"""Largest values of polynomials in signs, decided in integers: sums of squares with triangle inequalities.

The gradient polynomial of a network (`certify/polynomials.py`) is of degree one in every slope, so that a norm of the
gradient is largest where every slope is at an end of its interval. For the norm inf of the inputs the constant over all
slopes is the largest value of the polynomial itself over signs; for the norm 2 its square is that of

    P = sum_i J_i^2,   J_i the part of the polynomial that input direction i multiplies.

A proof is a vector m of products of signs, a positive semidefinite matrix Q and nonnegative weights of triangle
inequalities: for signs a, b, c and e, f known in advance, 1 + e a b + f b c + e f a c >= 0. In

    R = P + m'Qm + sum_k lambda_k (1 + e a b + f b c + e f a c)_k

every product of signs is at most 1 in modulus, hence P <= R_0 + the moduli of all other coefficients of R. P is made
from the network; a product that a proof forgets is counted there with its whole coefficient.

Sources: the relaxation of Wang, Prakriya & Jha (2022, arXiv 2203.01212) and Shor; triangle inequalities: Deza &
Laurent, Geometry of Cuts and Metrics (1997); sums of squares on the hypercube: Lasserre (2002, SIAM J. Optim. 12:756).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from lipmodel.certify.certificate import expect_keys, read_float
from lipmodel.certify.kernel import Rejected, System
from lipmodel.certify.polynomials import (
    Exact,
    Monomial,
    Program,
    Terms,
    constant_and_rest,
    gradient_program,
    multiply,
    read_square,
)
from lipmodel.certify.roots import sqrt_up

MAX_SQUARE = 4_000_000
"""Products of coefficients that a square may take."""


def sign_program(system: System, p: str, q: str) -> tuple[Program, bool]:
    """The polynomial in signs whose largest value bounds L_{p->q}, and whether that is the square of the bound.

    p in {"2", "inf"} ("1" with one input entry), q = "1" (any with one output entry). Raises Rejected for others, for
    activations that act on vectors and for polynomials that are too large.
    """
    squared = p == "2" and system.sizes[0] > 1
    program = gradient_program(system, "inf" if squared else p, q)
    if program.zero:
        raise Rejected(f"signs say nothing about L({p}→{q}) of several outputs")
    return (_squared(program, system.sizes[0]) if squared else program), squared


def _squared(program: Program, inputs: int) -> Program:
    """The squares of the parts that belong to every input, added up; the blur stays that of the root."""
    parts: list[Terms] = [{} for _ in range(inputs)]
    for m, c in program.objective.terms.items():
        # of degree one in the directions, which are the first variables
        parts[m[0]][m[1:]] = c
    if sum(len(part) ** 2 for part in parts) > MAX_SQUARE:
        raise Rejected(f"the square of a gradient polynomial of {len(program.objective.terms)} monomials is too large")
    found: Terms = {}
    for part in parts:
        for a, v in part.items():
            for b, w in part.items():
                m = multiply(a, b, program.signs)
                found[m] = found.get(m, 0) + v * w
    objective = Exact(terms=found, unit=program.objective.unit**2)
    return Program(size=program.size, objective=objective, signs=program.signs, blur=program.blur)


def signs_bound(program: Program, squared: bool, proof: Mapping[str, Any]) -> float:
    """The bound that a proof gives, rounded up, decided in integers. Raises Rejected (Refuted for a malformed one).

    proof: {basis: products as ascending lists of variables, gram: the lower triangle of Q, row by row, exponent: of the
    common unit 2^-exponent of all integers, triangles: [a, b, c, e, f, weight] with a, b, c numbers in the basis, ..}.
    """
    basis, square = read_square(program, {key: proof[key] for key in ("basis", "gram", "exponent")})
    if len(set(basis)) != len(basis):
        raise Rejected("proof.basis: a product twice")
    terms: Terms = {}
    listed = proof["triangles"]
    if not isinstance(listed, list) or not all(isinstance(t, list) and len(t) == 6 for t in listed):
        raise Rejected("proof.triangles: a triangle inequality is three products, two signs and a weight")
    for triangle in listed:
        _add_triangle(terms, triangle, basis, program)
    value = constant_and_rest([program.objective, square, Exact(terms=terms, unit=square.unit)])
    if not squared:
        return _rounded(max(value + program.blur, Fraction(0)))
    root = sqrt_up(max(value, Fraction(0)))
    return root if math.isinf(root) else _rounded(Fraction(root) + program.blur)


def _add_triangle(terms: Terms, triangle: list[Any], basis: list[Monomial], program: Program) -> None:
    if not all(type(v) is int for v in triangle):
        raise Rejected(f"proof.triangles: {str(triangle)[:80]} are not whole numbers")
    *products, e, f, weight = triangle
    if not all(0 <= a < len(basis) for a in products) or {e, f} - {1, -1}:
        raise Rejected("proof.triangles: a triangle inequality is not one of three products of the vector")
    if weight < 0:
        raise Rejected("proof.triangles: a weight is negative")
    a, b, c = (basis[k] for k in products)
    terms[()] = terms.get((), 0) + weight
    for left, right, sign in ((a, b, e), (b, c, f), (a, c, e * f)):
        m = multiply(left, right, program.signs)
        terms[m] = terms.get(m, 0) + sign * weight


def _rounded(value: Fraction) -> float:
    nearest = float(value) if value < Fraction(2) ** 1023 else math.inf
    return nearest if math.isinf(nearest) or Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def check_signs(system: System, norms: tuple[str, str], proof: dict[str, Any]) -> float:
    """The bound that a proof states, if it proves it. Raises Refuted, Rejected."""
    expect_keys(proof, {"rule", "norms", "basis", "gram", "exponent", "triangles", "bound"}, "proof")
    bound = read_float(proof["bound"], "proof.bound")
    needed = signs_bound(*sign_program(system, *norms), proof)
    if not bound >= needed:
        raise Rejected(f"the bound {bound!r} is below what its sum of squares gives, {needed!r}")
    return bound
