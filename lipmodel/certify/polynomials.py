"""Bounds of polynomials, decided in integers: the polynomial of a network's gradient, and three rules of proof.

The slopes of an increment system are s = (alpha + beta)/2 + (beta - alpha)/2 sigma with sigma in [-1, 1], and

    ||dy||_q / ||dx||_p  <=  max  u'y(t, sigma)   over  ||t||_p <= 1, sigma in the cube, ||u||_q* <= 1

is a polynomial of degree one in every variable (Latorre, Rolland & Cevher 2020, arXiv 2004.08688). It is made here
from the exact matrices, never read from a certificate, so that no monomial of it can be missing. Whatever an identity
leaves over is charged: every variable is in [-1, 1], and so is every monomial.

* krivine: objective + sum c_k prod (1 +- x_i) = constant + rest, c >= 0 (Krivine 1964, Handelman 1988).
* sos: objective + sum m'Q m g + sum h q = constant + rest with Q positive semidefinite (Putinar 1993).
* elimination: the maximum over the vertices, variable by variable (Bertele & Brioschi 1972).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

from lipmodel.certify.certificate import expect_keys, read_float
from lipmodel.certify.cube_maximum import maximum_over_signs
from lipmodel.certify.kernel import Block, ExactSymmetric, Rejected, System, decides_positive_semidefinite, dyadic

Monomial = tuple[int, ...]
"""The variables of a product in ascending order, each as often as its power; () is 1."""
Terms = dict[Monomial, int]

MAX_MONOMIALS = 2_000_000
"""Monomials that a gradient polynomial may have, counted before it is expanded."""
MAX_EXPANDED = 100_000_000
"""Terms that the products of a certificate may expand into, in words of 64 bits."""
MAX_HELD = 5_000_000
"""Monomials that the parts of an identity may have together, before they are added up."""
MAX_FACTORS = 20
"""Factors of one product of a certificate, which has a monomial for every subset of them."""
MAX_DEGREE = 64
"""Variables of a monomial of a certificate, powers counted."""
MAX_EXPONENT = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exact:
    """The polynomial sum_m terms[m] x^m / unit, exactly; unit > 0."""

    terms: Terms
    unit: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Maximise the objective over x in [-1, 1]^size, nonnegative >= 0 and zero = 0 entrywise.

    signs: variables for which only the values +-1 need to be looked at; their squares are 1. blur: what the true
    objective may be larger by than the one written down.
    """

    size: int
    objective: Exact
    signs: frozenset[int] = frozenset()
    nonnegative: tuple[Exact, ...] = ()
    zero: tuple[Exact, ...] = ()
    blur: Fraction = Fraction(0)


def multiply(a: Monomial, b: Monomial, signs: frozenset[int]) -> Monomial:
    """The product of two monomials, squares of signs left out."""
    joined = sorted(a + b)
    if not signs:
        return tuple(joined)
    found: list[int] = []
    for i in joined:
        if found and found[-1] == i and i in signs:
            found.pop()
        else:
            found.append(i)
    return tuple(found)


# ------------------------------------------------------------------------------------------ the polynomial of a network


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """Where the variables of a gradient polynomial are: the input t first, then all slopes, then the output u."""

    inputs: range
    slopes: tuple[range, ...]
    outputs: range


def layout(sizes: Sequence[int], outputs: int) -> Layout:
    """The variables for signals of these sizes; a single output needs none."""
    starts = [0]
    for n in sizes:
        starts.append(starts[-1] + n)
    slopes = tuple(range(a, a + n) for a, n in zip(starts[1:], sizes[1:], strict=False))
    return Layout(
        inputs=range(sizes[0]), slopes=slopes, outputs=range(starts[-1], starts[-1] + outputs * (outputs > 1))
    )


def gradient_program(system: System, p: str, q: str) -> Program:
    """The program whose maximum bounds L_{p->q} of a system. Raises Rejected where there is none, or it is too large.

    p = "1" is for a single input only, q = "inf" for a single output.
    """
    if any(labels is not None for labels in system.groups):
        raise Rejected("activations that act on vectors have no gradient polynomial")
    where = layout(system.sizes, _outputs(system))
    if (p == "1" and len(where.inputs) > 1) or (q == "inf" and len(where.outputs) > 1):
        raise Rejected(f"no gradient polynomial for L({p}→{q}) of several inputs or outputs")
    count = predicted_monomials(system)
    if count > MAX_MONOMIALS:
        raise Rejected(f"a gradient polynomial of up to {count} monomials, more than {MAX_MONOMIALS}")
    size = where.outputs.stop
    cubes, spheres = set(range(size)), []
    for norm, part in ((p, where.inputs), (q, where.outputs)):
        if norm == "2" and len(part) > 1:
            cubes -= set(part)
            spheres.append(Exact(terms={(): 1, **{(i, i): -1 for i in part}}))
    return Program(
        size=size,
        objective=_gradient(system, where),
        signs=frozenset(cubes),
        zero=tuple(spheres),
        blur=_blur(system),
    )


def predicted_monomials(system: System) -> int:
    """A bound of the number of monomials, from where the matrices have entries."""
    counts = [[1] * system.sizes[0]]
    for k in range(len(system.sizes) - 1):
        counts.append([2 * c for c in _counted(system.pre[k], counts)])
    return sum(_counted(system.output, counts))


def _counted(form: Mapping[int, Block], counts: Sequence[Sequence[int]]) -> list[int]:
    found = [0] * next((block.shape[0] for block in form.values()), 0)
    for j, block in form.items():
        for i, row in enumerate(block.mantissa):
            found[i] += sum(counts[j][c] for c, v in enumerate(row) if v)
    return found


def _outputs(system: System) -> int:
    return next((block.shape[0] for block in system.output.values()), 1)


def _gradient(system: System, where: Layout) -> Exact:
    """u'y: every signal as polynomials, its exponent beside them; slopes are expanded around their middle."""
    signals: list[list[Terms]] = [[{(i,): 1} for i in where.inputs]]
    exponents = [0]
    for k, slopes in enumerate(where.slopes):
        rows, exponent = _applied(system.pre[k], signals, exponents, len(slopes))
        alpha, beta = dyadic(system.alpha[k]), dyadic(system.beta[k])
        common = max(alpha[1], beta[1])
        lower, upper = ([v << (common - e) for v in values] for values, e in (alpha, beta))
        bent = []
        for i, row, a, b in zip(slopes, rows, lower, upper, strict=True):
            bent.append({m: c * (a + b) for m, c in row.items()} if a + b else {})
            bent[-1].update({(*m, i): c * (b - a) for m, c in row.items()})
        signals.append(bent)
        exponents.append(exponent + common + 1)
    rows, exponent = _applied(system.output, signals, exponents, _outputs(system))
    total: Terms = {}
    if not where.outputs:
        total = rows[0]
    for i, row in zip(where.outputs, rows, strict=False):
        total.update({(*m, i): c for m, c in row.items()})
    return Exact(terms={m: c for m, c in total.items() if c}, unit=1 << exponent)


def _applied(
    form: Mapping[int, Block], signals: Sequence[Sequence[Terms]], exponents: Sequence[int], size: int
) -> tuple[list[Terms], int]:
    """The rows of a linear form in the signals, over one exponent."""
    common = max((block.exponent + exponents[j] for j, block in form.items()), default=0)
    rows: list[Terms] = [{} for _ in range(size)]
    for j, block in form.items():
        shift = common - block.exponent - exponents[j]
        for row, weights in zip(rows, block.mantissa, strict=True):
            for weight, signal in zip(weights, signals[j], strict=True):
                if weight:
                    _add(row, signal, weight << shift)
    return rows, common


def _add(total: Terms, terms: Mapping[Monomial, int], factor: int) -> None:
    for m, c in terms.items():
        total[m] = total.get(m, 0) + factor * c


def _blur(system: System) -> Fraction:
    """What errors of the matrices may add: the same sum over all paths in moduli, with the errors and without."""
    if all(block.radius is None for form in (*system.pre, system.output) for block in form.values()):
        return Fraction(0)
    return _paths(system, blurred=True) - _paths(system, blurred=False)


def _paths(system: System, *, blurred: bool) -> Fraction:
    reach = [[Fraction(1)] * system.sizes[0]]
    for k in range(len(system.sizes) - 1):
        gain = [max(abs(Fraction(a)), abs(Fraction(b))) for a, b in zip(system.alpha[k], system.beta[k], strict=True)]
        moduli = _moduli(system.pre[k], reach, system.sizes[k + 1], blurred)
        reach.append([g * v for g, v in zip(gain, moduli, strict=True)])
    return sum(_moduli(system.output, reach, _outputs(system), blurred), Fraction(0))


def _moduli(form: Mapping[int, Block], reach: Sequence[Sequence[Fraction]], size: int, blurred: bool) -> list[Fraction]:
    found = [Fraction(0)] * size
    for j, block in form.items():
        for i, row in enumerate(block.mantissa):
            radii = block.radius[i] if blurred and block.radius else [0] * len(row)
            total = sum(((abs(v) + r) * x for v, r, x in zip(row, radii, reach[j], strict=True)), Fraction(0))
            found[i] += total / (1 << block.exponent)
    return found


# -------------------------------------------------------------------------------------------------------- the decision


def decide(program: Program, proof: Mapping[str, Any]) -> float:
    """The bound that a proof states, if it proves it. Raises Refuted for a malformed one, Rejected for a false one.

    proof: {rule: "krivine", products, weights, exponent, bound} | {rule: "elimination", order, bound}
         | {rule: "sos", blocks: [{constraint, basis, gram, exponent}], equalities: [{constraint, monomials,
           coefficients, exponent}], bound}
    """
    keys, bound_of = RULES[proof["rule"]]
    expect_keys(proof, {"rule", "bound", *keys}, "proof")
    bound = read_float(proof["bound"], "proof.bound")
    needed = bound_of(program, proof) + program.blur
    if bound < needed:
        raise Rejected(f"the rule {proof['rule']} proves less than the bound {bound!r}")
    return bound


def krivine_bound(program: Program, proof: Mapping[str, Any]) -> Fraction:
    """The bound by objective + sum c_k prod (1 +- x_i) = constant + rest, +-(i + 1) standing for 1 +- x_i."""
    unit = 1 << _natural(proof["exponent"], "exponent", MAX_EXPONENT)
    products, weights = _list(proof["products"], "products"), _list(proof["weights"], "weights")
    if len(products) != len(weights):
        raise Rejected(f"{len(products)} products and {len(weights)} weights")
    left: Terms = {}
    work = 0
    for product, weight in zip(products, weights, strict=True):
        c = _natural(weight, "weights")
        expanded: list[tuple[Monomial, int]] = [((), c)]
        factors = sorted((_integer(f, "products") for f in _list(product, "products")), key=abs)
        words = 1 + c.bit_length() // 64  # a product has its weight in every term
        if (
            len(factors) > MAX_FACTORS
            or (work := work + (words << len(factors))) > MAX_EXPANDED
            or len(left) > MAX_HELD
        ):
            raise Rejected(f"products of more than {MAX_FACTORS} factors, or of too many terms")
        for f in factors:
            i = abs(f) - 1
            if not 0 <= i < program.size:
                raise Rejected(f"proof.products: no variable {i}")
            expanded += [((*m, i), v if f > 0 else -v) for m, v in expanded]
        if len({abs(f) for f in factors}) != len(factors):
            raise Rejected("proof.products: a variable twice in a product")
        for m, v in expanded:
            left[m] = left.get(m, 0) + v
    return constant_and_rest([program.objective, Exact(terms=left, unit=unit)])


def sos_bound(program: Program, proof: Mapping[str, Any]) -> Fraction:
    """The bound by objective + sum m'Q m g + sum h q = constant + rest, every Q positive semidefinite."""
    parts = [program.objective]
    held = 0
    for block in _list(proof["blocks"], "blocks"):
        expect_keys(block, {"constraint", "basis", "gram", "exponent"}, "proof.blocks")
        _, sigma = read_square(program, block)
        if block["constraint"] is not None:
            sigma = _times(sigma, _chosen(program.nonnegative, block["constraint"]), program.signs)
        parts.append(sigma)
        held = _counted_up(held, sigma)
    for free in _list(proof["equalities"], "equalities"):
        expect_keys(free, {"constraint", "monomials", "coefficients", "exponent"}, "proof.equalities")
        monomials = [_monomial(m, program) for m in _list(free["monomials"], "monomials")]
        numbers = [_integer(v, "coefficients") for v in _list(free["coefficients"], "coefficients")]
        if len(numbers) != len(monomials) or len(set(monomials)) != len(monomials):
            raise Rejected("proof.equalities: coefficients do not fit their monomials")
        unit = 1 << _natural(free["exponent"], "exponent", MAX_EXPONENT)
        factor = Exact(terms=dict(zip(monomials, numbers, strict=True)), unit=unit)
        parts.append(_times(factor, _chosen(program.zero, free["constraint"]), program.signs))
        held = _counted_up(held, parts[-1])
    return constant_and_rest(parts)


def _counted_up(held: int, part: Exact) -> int:
    if held + len(part.terms) > MAX_HELD:
        raise Rejected(f"the parts of the identity have more than {MAX_HELD} monomials")
    return held + len(part.terms)


def read_square(program: Program, block: Mapping[str, Any]) -> tuple[list[Monomial], Exact]:
    """m and m'Qm of a part of a proof, Q positive semidefinite. Raises Rejected."""
    basis = [_monomial(m, program) for m in _list(block["basis"], "basis")]
    exponent = _natural(block["exponent"], "exponent", MAX_EXPONENT)
    values = [_integer(v, "gram") for v in _list(block["gram"], "gram")]
    n = len(basis)
    if not basis or len(values) != n * (n + 1) // 2:
        raise Rejected("proof.blocks: a Gram matrix does not fit its basis")
    if len(values) > MAX_HELD:
        raise Rejected(f"proof.blocks: a Gram matrix of order {n} is too large to be checked")
    gram = [[0] * n for _ in range(n)]
    square: Terms = {}
    entries = iter(values)
    for a in range(n):
        for b in range(a + 1):
            gram[a][b] = gram[b][a] = v = next(entries)
            if v:
                m = multiply(basis[a], basis[b], program.signs)
                square[m] = square.get(m, 0) + v * (1 + (a != b))
    if not _semidefinite(gram, exponent):
        raise Rejected("a Gram matrix is not positive semidefinite, or too close to failing to be")
    return basis, Exact(terms=square, unit=1 << exponent)


def elimination_bound(program: Program, proof: Mapping[str, Any]) -> Fraction:
    """The maximum over all signs, by eliminating the variables in the order given; coefficients are rounded."""
    order = [_natural(i, "order") for i in _list(proof["order"], "order")]
    if sorted(order) != list(range(program.size)):
        raise Rejected("proof.order: not every variable once")
    if program.signs != frozenset(order):
        raise Rejected("only a polynomial of degree one in variables of a cube has its maximum at a vertex")
    if any(len(set(m)) != len(m) for m in program.objective.terms):
        raise Rejected("only a polynomial of degree one in every variable has its maximum at a vertex")
    return Fraction(maximum_over_signs(program.objective.terms, order), program.objective.unit)


RULES: Mapping[str, tuple[tuple[str, ...], Callable[[Program, Mapping[str, Any]], Fraction]]] = {
    "krivine": (("products", "weights", "exponent"), krivine_bound),
    "sos": (("blocks", "equalities"), sos_bound),
    "elimination": (("order",), elimination_bound),
}


def constant_and_rest(parts: Iterable[Exact]) -> Fraction:
    """The constant of a sum plus the moduli of all its other coefficients."""
    parts = list(parts)
    unit = lcm(*(part.unit for part in parts))
    terms: Terms = {}
    for part in parts:
        _add(terms, part.terms, unit // part.unit)
    constant = terms.pop((), 0)
    return Fraction(constant + sum(map(abs, terms.values())), unit)


def _times(a: Exact, b: Exact, signs: frozenset[int]) -> Exact:
    if len(a.terms) * len(b.terms) > MAX_HELD:
        raise Rejected(f"a product of polynomials with more than {MAX_HELD} terms")
    found: Terms = {}
    for m, v in a.terms.items():
        for n, w in b.terms.items():
            k = multiply(m, n, signs)
            found[k] = found.get(k, 0) + v * w
    return Exact(terms=found, unit=a.unit * b.unit)


def _semidefinite(gram: list[list[int]], exponent: int) -> bool:
    if not any(map(any, gram)):
        return True
    diagonal = [row[a] for a, row in enumerate(gram)]
    off = [[v if a != b else 0 for b, v in enumerate(row)] for a, row in enumerate(gram)]
    blocks = {(0, 0): Block(mantissa=off, exponent=exponent)}
    return decides_positive_semidefinite(ExactSymmetric(diagonal=((diagonal, exponent),), blocks=blocks))


def _monomial(data: Any, program: Program) -> Monomial:
    listed = _list(data, "a monomial")
    if len(listed) > MAX_DEGREE:
        raise Rejected(f"proof: a monomial of degree {len(listed)}, more than {MAX_DEGREE}")
    found = tuple(_natural(i, "a monomial") for i in listed)
    if list(found) != sorted(found) or not all(i < program.size for i in found):
        raise Rejected("proof: a monomial is not an ascending list of variables")
    return found


def _chosen(constraints: Sequence[Exact], index: Any) -> Exact:
    k = _natural(index, "constraint")
    if k >= len(constraints):
        raise Rejected(f"proof: the program has no constraint {k}")
    return constraints[k]


def _list(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise Rejected(f"proof: {where} is not a list")
    return data


def _integer(data: Any, where: str) -> int:
    if type(data) is not int:
        raise Rejected(f"proof: {where} holds {data!r}, which is not a whole number")
    return data


def _natural(data: Any, where: str, most: int | None = None) -> int:
    value = _integer(data, where)
    if value < 0 or (most is not None and value > most):
        raise Rejected(f"proof: {where} holds {value!r}, out of range")
    return value
