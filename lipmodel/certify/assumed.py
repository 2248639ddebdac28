"""Inequalities that a formulation states by itself: a bound proved up to them, and how they are written down.

A model requires known(z) + own(z) >= 0, where `own` collects the terms of no rule. If own(z) <= 0 on all increments of
the network, as the formulation states, then the known part is nonnegative there, and the bound follows. The certificate
lists the terms with their weights; the kernel adds them to the inequality and decides the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.certify.certificate import expect_keys, hex_vector, lmi_proof, read_vector
from lipmodel.certify.kernel import (
    Block,
    ExactSymmetric,
    System,
    added,
    bound_squared,
    decides_positive_semidefinite,
    dyadic,
    exact_lmi,
    fault,
    gram,
    scaled,
)
from lipmodel.certify.lmi import Multipliers
from lipmodel.certify.roots import sqrt_up
from lipmodel.errors import Refuted
from lipmodel.model.terms import Factored, Term
from lipmodel.network.exact import ExactMatrix
from lipmodel.network.increments import IncrementSystem, exact_system

if TYPE_CHECKING:
    from lipmodel.families import Member
    from lipmodel.model.forms import LinearForm, Signal
    from lipmodel.model.model import Model

Array = np.ndarray[Any, Any]
MAX_ORDER = 1500
"""Order of the inequality beyond which stated terms are not used (they are checked as dense exact matrices)."""
MAX_TERM = 20_000_000
"""Entries that the matrix of one listed term may have when it is written out."""
STATEMENT = (
    "stated by the formulation: the sum of weight_i left_i(z) right_i(z) over the listed terms is at most 0 for all "
    "increments z of the network and all values of the vector that is paired with the output"
)
"""What a bound under assumptions depends on, in the one wording that a certificate may have."""


def prove_assuming(
    model: Model,
    system: IncrementSystem,
    member: Member,
    values: Mapping[Any, Array],
    multipliers: Multipliers,
    own: Sequence[Term],
) -> tuple[float, dict[str, Any], tuple[dict[str, Any], ...]] | None:
    """(bound, proof, assumptions) from a solver's point and the stated terms; None where the point proves nothing."""
    terms = [t for t in own if isinstance(t, Factored)]
    if len(terms) != len(own) or len(model.matrix_constraints) != 1 or system.order > MAX_ORDER:
        return None
    written = []
    for term in terms:
        entry = _written(term, system, values, _dual_of(model))
        if entry is None:
            return None
        written.append(entry)
    for known in model.matrix_constraints[0].terms:
        coupled = isinstance(known, Factored) and known.rule is not None and known.rule.kind == "output-dual"
        if coupled and isinstance(known, Factored) and np.any(known.weight.constant != -2.0):
            return None
    assumption = {"statement": STATEMENT, "terms": written}
    exact = exact_system(system)
    delta = 1e-12
    while delta < 0.1:
        m = Multipliers(
            t=tuple(np.maximum(t, 0.0) for t in multipliers.t),
            g=multipliers.g * (1.0 + delta),
            s=multipliers.s * (1.0 + delta),
        )
        if fault(exact, m) is None and decides_positive_semidefinite(with_terms(exact, m, written)):
            bound = sqrt_up(bound_squared(m, *member.norms))
            return bound, lmi_proof(m, member.norms, bound), (assumption,)
        delta *= 10.0
    return None


def check_assuming(exact: System, multipliers: Multipliers, p: str, q: str, bound: float, terms: Any) -> None:
    """Decide the inequality with the listed terms added. Raises Refuted, or Rejected for a norm pair without a rule."""
    reason = fault(exact, multipliers)
    if reason is not None:
        raise Refuted(f"the multipliers do not fit the network: {reason}")
    if bound < 0.0 or Fraction(bound) ** 2 < bound_squared(multipliers, p, q):
        raise Refuted(f"the bound {bound!r} is below what its multipliers give")
    if not decides_positive_semidefinite(with_terms(exact, multipliers, terms)):
        raise Refuted("the inequality with the stated terms does not hold for these multipliers")


def with_terms(system: System, multipliers: Multipliers, terms: Any) -> ExactSymmetric:
    """The kernel matrix plus the symmetric matrices of the terms, exact. Raises Refuted where a term is malformed."""
    base = exact_lmi(system, multipliers)
    sizes = (*system.sizes, len(multipliers.s))
    blocks = dict(base.blocks)

    def add(i: int, j: int, block: Block) -> None:
        blocks[i, j] = added(blocks[i, j], block) if (i, j) in blocks else block

    if not isinstance(terms, list):
        raise Refuted("certificate.assumptions: terms must be a list")
    for k, term in enumerate(terms):
        where = f"certificate.assumptions.terms[{k}]"
        expect_keys(term, {"weight", "left", "right"}, where)
        weight = read_vector(term["weight"], f"{where}.weight")
        if len(weight) * sum(sizes) > MAX_TERM:
            raise Refuted(f"{where}: {len(weight)} products are too many")
        left, right = (_matrices(term[side], len(weight), sizes, f"{where}.{side}") for side in ("left", "right"))
        for i in {*left, *right}:
            for j in {*left, *right}:
                if i < j:
                    continue
                for a, b in ((left, right), (right, left)):
                    if i in a and j in b:
                        add(i, j, _half_product(a[i], weight, b[j]))
    return ExactSymmetric(diagonal=base.diagonal, blocks=blocks)


def _half_product(a: Array, weight: Array, b: Array) -> Block:
    """a' diag(weight) b / 2, in exact arithmetic."""
    values, exponent = dyadic(weight)
    left, right = (ExactMatrix.from_floats(m).block() for m in (a, b))
    return gram(left, scaled((values, exponent + 1), right))


def _dual_of(model: Model) -> Signal | None:
    for term in model.matrix_constraints[0].terms:
        if term.rule is not None and term.rule.kind == "ball-dual":
            signal: Signal = term.rule.subject
            return signal
    return None


def _written(
    term: Factored, system: IncrementSystem, values: Mapping[Any, Array], dual: Signal | None
) -> dict[str, Any] | None:
    place = dict(system.positions())
    if dual is not None:
        place[dual] = len(system.signals)
    sides = {}
    for name, form in (("left", term.left), ("right", term.right)):
        if any(s not in place for s in form.blocks):
            return None
        sides[name] = _listed(form, place)
    return {"weight": hex_vector(term.weight.value(values)), **sides}


def _listed(form: LinearForm, place: Mapping[Any, int]) -> list[dict[str, Any]]:
    listed = []
    for signal, m in form.blocks.items():
        coo = sp.coo_array(m.enclosure().center)
        rows, cols = coo.coords
        listed.append(
            {
                "signal": place[signal],
                "rows": [int(r) for r in rows],
                "columns": [int(c) for c in cols],
                "values": [float(v).hex() for v in coo.data],
            }
        )
    return listed


def _matrices(data: Any, rows: int, sizes: tuple[int, ...], where: str) -> dict[int, Array]:
    if not isinstance(data, list):
        raise Refuted(f"{where}: expected a list of blocks")
    found: dict[int, Array] = {}
    for entry in data:
        expect_keys(entry, {"signal", "rows", "columns", "values"}, where)
        signal, at_rows, at_columns = entry["signal"], entry["rows"], entry["columns"]
        if isinstance(signal, bool) or not isinstance(signal, int) or not 0 <= signal < len(sizes) or signal in found:
            raise Refuted(f"{where}: signal {signal!r} does not exist or is listed twice")
        values = read_vector(entry["values"], where) if entry["values"] else np.zeros(0)
        block = np.zeros((rows, sizes[signal]))
        for index, limit in ((at_rows, rows), (at_columns, sizes[signal])):
            fine = isinstance(index, list) and len(index) == len(values)
            if not fine or any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < limit for i in index):
                raise Refuted(f"{where}: an index is out of range")
        if len(set(zip(at_rows, at_columns, strict=True))) != len(values):
            raise Refuted(f"{where}: an entry is listed twice")
        block[at_rows, at_columns] = values
        found[signal] = block
    return found
