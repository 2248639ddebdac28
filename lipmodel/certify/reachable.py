"""The gradient polynomial of a network on a bounded domain, with the slopes that inputs of the domain can have.

A Lipschitz function on a convex domain has as its constant the largest norm of its derivative where it has one. Almost
everywhere there, a neuron with one kink at b and the pre-activation v has the slope on the side of v - b, or v does not
move and its slope does not matter. With the slope (alpha + beta)/2 + (beta - alpha)/2 sigma, alpha < beta, sigma = +-1,

    sigma (v - b) >= 0  for a convex kink,  sigma (v - b) <= 0  for a concave one,

v being affine in the input. These inequalities join the program of `polynomials.py`, with the input as variables
xi in [-1, 1]: the domain is {middle + radius xi}. Scaled values zeta of the pre-activations, in [-1, 1] as well, are
defined by r zeta = v - (its middle). All of it is made from the network; a certificate has no say in it.

Source: Chen, Lasserre, Magron & Pauwels 2020, arXiv 2002.03657 (SHOR, HR-1, HR-2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING, Any

from lipmodel.certify.evaluation import Ends
from lipmodel.certify.functions import pieces
from lipmodel.certify.kernel import Rejected, System
from lipmodel.certify.polynomials import Exact, Layout, Monomial, Program, decide, gradient_program, layout
from lipmodel.certify.replay import Replay, region
from lipmodel.certify.roots import sqrt_up
from lipmodel.certify.tape import Kind, Reading, Unreadable
from lipmodel.domain import Ball, Box, Domain

if TYPE_CHECKING:
    from lipmodel.certify.rules import Subject
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.spec import Norm

Form = dict[Monomial, Fraction]
"""A polynomial by monomials."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neuron:
    """A neuron whose slope says on which side of zero the value middle + sum_i coefficients_i xi_i +- error is.

    layer, place: of the neuron in the increment system; the slope of the positive side is the larger one.
    """

    layer: int
    place: int
    middle: Fraction
    coefficients: Mapping[int, Fraction]
    error: Fraction


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neurons:
    """What biases and the domain say about the slopes of a system.

    moving: the inputs that are not fixed; round: whether xi lies in the l2 ball, not just in the cube.
    """

    moving: tuple[int, ...]
    round: bool
    listed: tuple[Neuron, ...]


def neurons_of(
    system: IncrementSystem,
    exact: System,
    entries: Mapping[str, Any],
    reading: Reading,
    domain: Domain,
    norm: str,
) -> Neurons:
    """The neurons with one kink whose pre-activation is affine in the input.

    exact: the system's matrices; entries: which entries of its node every activation has. norm: of the inputs; a ball
    that is one of another norm, of a network of which the system sees one column, is taken as the cube around it.
    Raises Rejected.
    """
    if not isinstance(domain, Box | Ball) or domain.is_point:
        return Neurons(moving=(), round=False, listed=())
    if norm == "2" and system.input.size != reading.inputs:
        norm = "inf"
    area = region(domain, norm)
    found = Replay(reading=reading, region=area, claims={})
    try:
        found.run()
    except Unreadable as reason:
        raise Rejected(f"the pre-activations could not be read: {reason}") from None
    unit = Fraction(2) ** -area.box.exponent
    radius = [r * unit for _, r in area.box.entries]
    steps = [step for step in reading.tape.steps if step.kind == "activation"]
    called = [{a.name, a.name.rpartition("#")[0]} - {""} for a in system.activations]
    listed = []
    for layer, a in enumerate(system.activations):
        own = [step for step in steps if step.name in called[layer]]
        # a node that was taken apart into several activations is left out: which of them is which is not said
        if len(own) != 1 or sum(own[0].name in names for names in called) != 1:
            continue
        (step,) = own
        index = entries[a.name]
        form, center = found.forms.get(step.sources[0], (None, area.center))
        if form is None or index is None or index.max(initial=-1) >= step.size:
            continue
        for place, i in enumerate(index.tolist()):
            kink = _kink(step.kinds[i], (Fraction(exact.alpha[layer][place]), Fraction(exact.beta[layer][place])))
            if kink is None:
                continue
            side, at = kink
            low, high = center.ends(i)
            scale = Fraction(2) ** -form.exponent
            row = {c: (v * scale * radius[c], r * scale * radius[c]) for c, (v, r) in form.rows[i].items()}
            listed.append(
                Neuron(
                    layer=layer,
                    place=place,
                    middle=side * ((low + high) / 2 - at),
                    coefficients={c: side * v for c, (v, _) in row.items() if v},
                    error=(high - low) / 2 + sum((r for _, r in row.values()), Fraction(0)),
                )
            )
    moving = tuple(i for i, r in enumerate(radius) if r)
    return Neurons(moving=moving, round=isinstance(domain, Ball) and norm == "2", listed=tuple(listed))


def _kink(kind: Kind, slopes: Ends) -> tuple[int, Fraction] | None:
    """+1 for a convex kink, -1 for a concave one, and where it is; None where the function is not two such lines."""
    try:
        lines = pieces(kind)
    except Unreadable:
        return None
    if lines is None or len(lines[0]) != 1 or slopes != (min(lines[1]), max(lines[1])):
        return None
    (at,), (left, right), _ = lines
    return (1 if left < right else -1), at


# -------------------------------------------------------------------------------------------------------- the program


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Described:
    """What a neuron brings: its variables, and the numbers of its constraints, None where weights are not exact.

    side: sigma (v - b) >= 0 in the inputs; span: r^2 - (v - its middle)^2 >= 0 in the inputs; value_side, value_span:
    the same in zeta; value_is: r zeta = v - its middle; square_is: the squares of both sides.
    """

    slope: int
    side: int
    value: int | None = None
    span: int | None = None
    value_side: int | None = None
    value_span: int | None = None
    value_is: int | None = None
    square_is: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reachable:
    """The program, and where its parts are.

    inputs: the variable xi of every input that a neuron depends on; box: the constraints that hold xi in the domain, by
    input (None: the l2 ball); directions: the variable t of every input.
    """

    program: Program
    where: Layout
    inputs: Mapping[int, int]
    box: Mapping[int | None, int]
    directions: Mapping[int, int]
    neurons: tuple[Described, ...]


def reachable_program(system: System, norms: tuple[str, str], known: Neurons) -> Reachable:
    """The program whose maximum bounds L_{p->q} of a system on a domain. Raises Rejected as `gradient_program`."""
    base = gradient_program(system, *norms)
    where = layout(system.sizes, next((block.shape[0] for block in system.output.values()), 1))
    used = sorted({i for neuron in known.listed for i in neuron.coefficients})
    inputs = {i: base.size + n for n, i in enumerate(used)}
    size = base.size + len(used)
    positive: list[Form] = []
    zero: list[Form] = []

    def put(listed: list[Form], form: Form) -> int:
        listed.append(form)
        return len(listed) - 1

    box: dict[int | None, int] = {}
    one = Fraction(1)
    for i, xi in inputs.items():
        box[i] = put(positive, {(): one, (xi, xi): -one})
    if known.round and used:
        box[None] = put(positive, {(): one, **{(xi, xi): -one for xi in inputs.values()}})
    described = []
    for neuron in known.listed:
        sigma = where.slopes[neuron.layer][neuron.place]
        row = {inputs[i]: c for i, c in neuron.coefficients.items()}
        side: Form = {(sigma, xi): c for xi, c in row.items()}
        side |= {(sigma,): neuron.middle, (): neuron.error}
        own = Described(slope=sigma, side=put(positive, side))
        reach = _reach(row.values(), known.round)
        if not neuron.error and reach:
            zeta, square = size, _square(row)
            size += 1
            own = replace(
                own,
                value=zeta,
                span=put(positive, _sum({(): reach**2}, square, -1)),
                value_side=put(positive, {(sigma,): neuron.middle, (sigma, zeta): reach}),
                value_span=put(positive, {(): one, (zeta, zeta): -one}),
                value_is=len(base.zero) + put(zero, {(zeta,): reach, **{(xi,): -c for xi, c in row.items()}}),
                square_is=len(base.zero) + put(zero, _sum({(zeta, zeta): reach**2}, square, -1)),
            )
        described.append(own)
    program = replace(
        base,
        size=size,
        nonnegative=(*base.nonnegative, *map(_scaled, positive)),
        zero=(*base.zero, *map(_scaled, zero)),
    )
    directions = dict(zip(known.moving, where.inputs, strict=True)) if len(known.moving) == len(where.inputs) else {}
    return Reachable(
        program=program, where=where, inputs=inputs, box=box, directions=directions, neurons=tuple(described)
    )


def _reach(row: Iterable[Fraction], ball: bool) -> Fraction:
    """An upper bound of |sum_i c_i xi_i|."""
    return Fraction(sqrt_up(sum((c * c for c in row), Fraction(0)))) if ball else sum(map(abs, row), Fraction(0))


def _square(row: Mapping[int, Fraction]) -> Form:
    found: Form = {}
    for a, v in row.items():
        for b, w in row.items():
            m = (min(a, b), max(a, b))
            found[m] = found.get(m, Fraction(0)) + v * w
    return found


def _sum(a: Form, b: Form, factor: int) -> Form:
    found = dict(a)
    for m, v in b.items():
        found[m] = found.get(m, Fraction(0)) + factor * v
    return found


def _scaled(form: Form) -> Exact:
    """A constraint in integers, with coefficients of about one: scaling by a positive number changes nothing."""
    unit = lcm(*(c.denominator for c in form.values()))
    terms = {m: int(c * unit) for m, c in form.items() if c}
    return Exact(terms=terms, unit=1 << (max(map(abs, terms.values()), default=1).bit_length() - 1))


# ------------------------------------------------------------------------------------------------------- the decision


def check_reachable(subject: Subject, norms: tuple[Norm, Norm], proof: dict[str, Any]) -> float:
    """The bound that a proof states, if it proves it: {rule, norms, blocks, equalities, bound} as of a sum of squares.

    Raises Refuted, Rejected.
    """
    if any(a.groups is not None for a in subject.system.activations):
        raise Rejected("activations that act on vectors have no gradient polynomial")
    exact = subject.source.exact(subject.system, subject.row, subject.column)
    reading = subject.source.reading
    if reading is None or subject.domain is None:
        raise Rejected("the biases of the network could not be read a second time")
    entries = subject.source.entries(subject.system)
    known = neurons_of(subject.system, exact, entries, reading, subject.domain, norms[0])
    found = reachable_program(exact, norms, known)
    return decide(found.program, {**{k: v for k, v in proof.items() if k != "norms"}, "rule": "sos"})
