"""The rules of proof that a certificate may name, each from its JSON form to the bound that it proves.

A rule reads its own keys strictly and decides in exact arithmetic, by the kernel or by a small file of its own; it
returns the bound that the proof states, or raises Refuted (or the kernel's Rejected). Another rule is one more entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lipmodel.certify.certificate import choice, expect_keys, read_float, read_vector
from lipmodel.certify.kernel import check_largest, check_lmi
from lipmodel.certify.lmi import Multipliers
from lipmodel.errors import Refuted
from lipmodel.families import Member, restricted
from lipmodel.network.increments import IncrementSystem
from lipmodel.spec import Domain, Norm, as_norm

if TYPE_CHECKING:
    from lipmodel.certify.source import Source


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """What a proof is about: L_{p->q} of an increment system, all of a network's or that of a row and/or column.

    source: where its exact matrices come from; masked: the system with neurons left in that are affine on the domain;
    domain: the one that the claim is about; terms: inequalities that are assumed, as a certificate lists them.
    """

    system: IncrementSystem
    p: Norm
    q: Norm
    source: Source
    masked: IncrementSystem | None = None
    domain: Domain | None = None
    terms: tuple[Any, ...] = ()
    row: int | None = None
    column: int | None = None

    def member(self, row: int | None, column: int | None) -> Subject:
        """The subject of one member of a family."""
        part = restricted(self.system, Member(row=row, column=column, norms=(self.p, self.q)))
        return replace(self, system=part, masked=None, row=row, column=column)


Rule = Callable[[Subject, dict[str, Any]], float]


def lmi(subject: Subject, proof: dict[str, Any]) -> float:
    """Multipliers of the quadratic-constraint inequality, with the assumed terms added where there are some."""
    expect_keys(proof, {"rule", "norms", "t", "g", "s", "bound"}, "proof")
    pair = _pair(subject, proof["norms"])
    multipliers = _multipliers(subject.system, proof)
    bound = read_float(proof["bound"], "proof.bound")
    exact = subject.source.exact(subject.system, subject.row, subject.column)
    if subject.terms:
        from lipmodel.certify.assumed import check_assuming

        check_assuming(exact, multipliers, *pair, bound, list(subject.terms))
    else:
        check_lmi(exact, multipliers, *pair, bound)
    return bound


def lmi_pairs(subject: Subject, proof: dict[str, Any]) -> float:
    """Multipliers of the inequality with terms that couple two neurons."""
    from lipmodel.certify.pairs import check_coupled, read_couplings

    expect_keys(proof, {"rule", "norms", "t", "g", "s", "couplings", "bound"}, "proof")
    pair = _pair(subject, proof["norms"])
    multipliers = _multipliers(subject.system, proof)
    couplings = read_couplings(proof["couplings"], "proof.couplings")
    bound = read_float(proof["bound"], "proof.bound")
    exact = subject.source.exact(subject.system, subject.row, subject.column)
    check_coupled(exact, multipliers, couplings, *pair, bound)
    return bound


def _multipliers(system: IncrementSystem, proof: dict[str, Any]) -> Multipliers:
    """The multipliers of a proof. Raises Refuted."""
    if not isinstance(proof["t"], list) or len(proof["t"]) != len(system.activations):
        raise Refuted(f"proof.t: expected one list for each of the {len(system.activations)} activations")
    t = tuple(
        read_vector(v, f"proof.t[{k}]", a.size)
        for k, (v, a) in enumerate(zip(proof["t"], system.activations, strict=True))
    )
    g = read_vector(proof["g"], "proof.g", system.input.size)
    s = read_vector(proof["s"], "proof.s", system.output.size)
    return Multipliers(t=t, g=g, s=s)


def product(subject: Subject, proof: dict[str, Any], *, masked: bool = False) -> float:
    """The product rule, with claimed spectral norms."""
    from lipmodel.certify.product_rule import check_product, product_system

    expect_keys(proof, {"rule", "norms", "spectral", "bound"}, "proof")
    pair = _pair(subject, proof["norms"])
    claims = _claims(proof["spectral"])
    bound = read_float(proof["bound"], "proof.bound")
    subject.source.compare(subject.system, subject.row, subject.column, masked=masked)
    check_product(product_system(subject.system), *pair, bound, claims)
    return bound


def masked_product(subject: Subject, proof: dict[str, Any]) -> float:
    """The product rule on a bounded domain, neurons that are affine there left where they are."""
    if subject.masked is None:
        raise Refuted("proof: masked-product proves nothing on the whole space")
    return product(replace(subject, system=subject.masked), proof, masked=True)


def metric_chain(subject: Subject, proof: dict[str, Any]) -> float:
    """Quadratic metrics between the layers of a chain, and every factor between two of them maximised over slopes."""
    from lipmodel.certify.metric_chain import read_and_check

    if _pair(subject, proof.get("norms")) != ("2", "2"):
        raise Refuted("proof: a chain of metrics is about the norms 2:2")
    return read_and_check(subject, proof)


def fourier_lmi(subject: Subject, proof: dict[str, Any]) -> float:
    """Translation-invariant multipliers of a convolutional network, decided at every frequency."""
    from lipmodel.certify.fourier import check_fourier, read_fourier

    pair = _pair(subject, proof.get("norms"))
    if pair[0] != "2":
        raise Refuted("proof: fourier-lmi is about the input norm 2")
    period, slots, multipliers, bound = read_fourier(proof)
    subject.source.compare(subject.system, subject.row, subject.column)
    check_fourier(subject.system, period, slots, multipliers, pair[1], bound)
    return bound


def by_norms(subject: Subject, proof: dict[str, Any]) -> float:
    """A recursion over norms or moduli of products of layers, computed again in integers; claimed spectral norms."""
    from lipmodel.certify.norm_rules import NORM_RULES, check_norm_rule, read_choices

    rule = proof["rule"]
    expect_keys(proof, {"rule", "norms", "spectral", "bound", *NORM_RULES[rule].choices}, "proof")
    pair = _pair(subject, proof["norms"])
    choices = read_choices(rule, subject.system, proof)
    claims = _claims(proof["spectral"])
    bound = read_float(proof["bound"], "proof.bound")
    subject.source.compare(subject.system, subject.row, subject.column)
    check_norm_rule(rule, subject.system, pair, choices, bound, claims)
    return bound


def by_polynomial(subject: Subject, proof: dict[str, Any]) -> float:
    """An identity of the polynomial of the gradient, which is made again from the exact matrices."""
    from lipmodel.certify.polynomials import decide, gradient_program

    pair = _pair(subject, proof.get("norms"))
    if any(a.groups is not None for a in subject.system.activations):
        raise Refuted("proof: activations that act on vectors have no gradient polynomial")
    exact = subject.source.exact(subject.system, subject.row, subject.column)
    return decide(gradient_program(exact, *pair), {key: value for key, value in proof.items() if key != "norms"})


def reachable(subject: Subject, proof: dict[str, Any]) -> float:
    """A sum of squares for the polynomial of the gradient where the slopes are those that inputs of the domain have."""
    from lipmodel.certify.reachable import check_reachable

    return check_reachable(subject, _pair(subject, proof.get("norms")), proof)


def signs(subject: Subject, proof: dict[str, Any]) -> float:
    """A sum of squares, and triangle inequalities, for a polynomial in signs."""
    from lipmodel.certify.signs import check_signs

    pair = _pair(subject, proof.get("norms"))
    return check_signs(subject.source.exact(subject.system, subject.row, subject.column), pair, proof)


def largest(subject: Subject, proof: dict[str, Any]) -> float:
    """Every row (q = inf) and/or every column (p = 1), each with a proof of its own."""
    expect_keys(proof, {"rule", "members", "bound"}, "proof")
    listed = proof["members"]
    if not isinstance(listed, list) or not listed:
        raise Refuted("proof.members: expected a list of proofs")
    members = [expect_keys(m, {"row", "column", "proof"}, f"proof.members[{k}]") for k, m in enumerate(listed)]
    rules = [choice(m["proof"], MEMBER_RULES, "proof.members") for m in members]
    stated = [read_float(m["proof"].get("bound"), "proof.members: bound") for m in members]
    parts = [(m["row"], m["column"], value) for m, value in zip(members, stated, strict=True)]
    system = subject.system
    bound = read_float(proof["bound"], "proof.bound")
    needed = check_largest(parts, system.output.size, system.input.size, subject.p, subject.q)
    if needed > bound:
        row, column, _ = next(part for part in parts if part[2] == needed)
        raise Refuted(f"the bound {bound!r} is below that of row {row}, column {column}: {needed!r}")
    for m, rule in zip(members, rules, strict=True):
        rule(subject.member(m["row"], m["column"]), m["proof"])
    return bound


MEMBER_RULES: Mapping[str, Rule] = {
    "lmi": lmi,
    "fourier-lmi": fourier_lmi,
    "lmi-pairs": lmi_pairs,
    "metric-chain": metric_chain,
    "product": product,
    "reachable": reachable,
    "signs": signs,
    **dict.fromkeys(("liplt", "k3", "k4", "path-norm"), by_norms),
    **dict.fromkeys(("krivine", "sos", "elimination"), by_polynomial),
}
"""Rules that may prove the bound of one row and/or column."""
RULES: Mapping[str, Rule] = {**MEMBER_RULES, "masked-product": masked_product, "largest": largest}
"""All rules, by the names that certificates use. A rule that is not here is refused."""
ASSUMING: Mapping[str, Rule] = {"lmi": lmi}
"""Rules that may use assumed inequalities."""


def _claims(data: Any) -> list[float]:
    """Claimed spectral norms; "inf" claims nothing."""
    if not isinstance(data, list):
        raise Refuted("proof.spectral: expected a list of hexadecimal floats")
    return [math.inf if v == "inf" else read_float(v, "proof.spectral") for v in data]


def _pair(subject: Subject, norms: Any) -> tuple[Norm, Norm]:
    """The norm pair of a proof, if it is the one asked for (any, on a side with one entry)."""
    if not isinstance(norms, list) or len(norms) != 2 or any(n not in ("1", "2", "inf") for n in norms):
        raise Refuted(f"proof: norms {norms!r} are not a pair of norms")
    a, b = as_norm(norms[0]), as_norm(norms[1])
    if (a != subject.p and subject.system.input.size != 1) or (b != subject.q and subject.system.output.size != 1):
        raise Refuted(f"proof: it is about L({a}→{b}), the claim about L({subject.p}→{subject.q})")
    return a, b
