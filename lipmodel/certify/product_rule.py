"""The product rule on any acyclic network: norms multiplied along paths, added where branches meet.

One recursion in rational arithmetic serves both sides of a certificate: the bound is computed with norms proved in
floating point, and verified by the same function with norms taken in integers. The spectral norms used are the only
hints that a certificate needs.

Source: Virmaux & Scaman, AutoLip (2018, arXiv 1805.10965), here with the best of the norms 1, 2, inf between layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from lipmodel.errors import Refuted
from lipmodel.network.linear import (
    Composition,
    Dense,
    Diagonal,
    LinearMap,
    Selection,
    Sparse,
    Sum,
    compose,
)
from lipmodel.ranges.norms import (
    CLAIM_MARGIN,
    Bound,
    NormEvaluator,
    float_norms,
    float_up,
    plus,
    rational,
    root_up,
    round_up,
    times,
)
from lipmodel.spec import NORMS, Norm, as_norm

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem

Array = np.ndarray[Any, Any]
NormFunction = Callable[[LinearMap, Norm, Norm], Bound]

_SMALL_FORM = 200
"""Blocks of one form up to which overlapping branches are taken apart one by one."""
_PRUNED_CLAIMS = 100
"""Spectral norms up to which a certificate is searched for those that it does not need."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProductActivation:
    """One layer of activations: v = sum_j pre[j] z_j, and |w_i| <= gain_i |v_i| for every increment.

    pre: maps of shape (size, size of signal j), j smaller than the number of this activation; gain: shape (size,),
    the larger modulus of the two slopes. gains: for activations that act on vectors, norms r for which another gain is
    known: |w|_r <= |diag(gains[r]) v|_r.
    """

    pre: Mapping[int, LinearMap]
    gain: Array
    size: int
    gains: Mapping[Norm, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProductSystem:
    """A network in increments: signal 0 is the input, signal k what the k-th activation returns.

    output: maps of shape (number of outputs, size of signal j); empty if the output is constant.
    """

    input_size: int
    activations: tuple[ProductActivation, ...]
    output: Mapping[int, LinearMap]


def product_system(system: IncrementSystem) -> ProductSystem:
    """What the product rule sees of an increment system."""
    at = system.positions()
    return ProductSystem(
        input_size=system.input.size,
        activations=tuple(
            ProductActivation(
                pre={at[signal]: map for signal, map in a.pre.blocks.items()},
                gain=a.gain,
                size=a.size,
                gains={as_norm(norm): gain for norm, gain in a.gains.items()},
            )
            for a in system.activations
        ),
        output={at[signal]: map for signal, map in system.output.blocks.items()},
    )


def product_bound(system: ProductSystem, p: Any, q: Any, norm: NormEvaluator | NormFunction | None = None) -> Bound:
    """A bound of sup ||dy||_q / ||dx||_p: a fraction, or math.inf if some norm is not finite.

    Every signal carries bounds L_r of ||z||_r / ||dx||_p for r = 1, 2, inf; those of v = sum_j M_j z_j are the sums of
    min_r' L_r'(z_j) ||M_j||_{r'->r}. Branches that write to disjoint entries (a concatenation) are joined by the norm r
    of their bounds instead of their sum. Gains multiply, folded into the map where they differ from entry to entry.

    norm: where norms come from; by default they are proved in floating point, `float_norms(margin=CLAIM_MARGIN)`. After
    the call, the `log` of a `NormEvaluator` lists the spectral norms in the order of use, for `exact_norms`. Raises
    ValueError for a system that does not fit together, UsageError for an unknown norm.
    """
    p, q = as_norm(p), as_norm(q)
    source = float_norms(margin=CLAIM_MARGIN) if norm is None else norm
    of = source.of if isinstance(source, NormEvaluator) else lambda map: partial(source, map)
    sizes = [system.input_size]
    # the nine norms of a map are consistent with ||x||_2 <= ||x||_1 and the like, so the norm p says all of the input
    reached: list[dict[Norm, Bound]] = [{p: Fraction(1)}]
    for activation in system.activations:
        _check(activation.pre, activation.size, sizes)
        reached.append({})
        for gain, norms in _by_gain(activation):
            factor, blocks = _folded(activation, gain)
            for r, bound in _form_bounds(blocks, reached, of, norms).items():
                reached[-1][r] = round_up(times(factor, bound))
        sizes.append(activation.size)
    if system.output:
        _check(system.output, next(iter(system.output.values())).shape[0], sizes)
    return _form_bounds(system.output, reached, of, (q,))[q]


def _by_gain(activation: ProductActivation) -> list[tuple[Array, list[Norm]]]:
    """The different gains of an activation and the norms that each of them is for; the norms are `NORMS`, in order."""
    found: list[tuple[Array, list[Norm]]] = []
    for r in NORMS:
        gain = np.asarray(activation.gains.get(r, activation.gain), dtype=np.float64)
        if gain.shape != (activation.size,) or not bool(np.all(gain >= 0)):
            raise ValueError(f"gains must be {activation.size} nonnegative numbers")
        same = [norms for known, norms in found if np.array_equal(known, gain)]
        if same:
            same[0].append(r)
        else:
            found.append((gain, [r]))
    return found


def _folded(activation: ProductActivation, gain: Array) -> tuple[Bound, dict[int, LinearMap]]:
    """A factor and blocks that the gain went into: it stays a factor where it is the same everywhere."""
    blocks = dict(activation.pre)
    if activation.size and bool(np.all(gain == gain[0])):
        return rational(float(gain[0])), blocks
    if not bool(np.all(np.isfinite(gain))):
        return math.inf, blocks
    return Fraction(1), {j: compose(Diagonal(values=gain), map) for j, map in blocks.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProvedProduct:
    """A proved product bound, rounded up, with the norms that it rests on; rule: what a certificate calls it."""

    system: ProductSystem
    norms: tuple[Norm, Norm]
    bound: float
    evaluator: NormEvaluator
    rule: str = "product"

    def claims(self) -> list[str]:
        """The claims that `check_product` needs to verify the bound, as hexadecimal strings.

        Spectral norms on which the bound does not depend are claimed to be "inf", which costs nothing to check.
        """
        claims = list(self.evaluator.log)
        for k in range(len(claims)) if len(claims) <= _PRUNED_CLAIMS else ():
            fewer = [*claims[:k], math.inf, *claims[k + 1 :]]
            if float_up(product_bound(self.system, *self.norms, _replayed(self.evaluator, fewer))) == self.bound:
                claims = fewer
        return [claim.hex() for claim in claims]


def prove_product(system: ProductSystem, p: Any, q: Any, *, rule: str = "product") -> ProvedProduct:
    """The product bound, proved in floating point; inf where norms overflow."""
    norms = float_norms(margin=CLAIM_MARGIN)
    bound = float_up(product_bound(system, p, q, norms))
    return ProvedProduct(system=system, norms=(as_norm(p), as_norm(q)), bound=bound, evaluator=norms, rule=rule)


def product_certificate(system: ProductSystem, p: Any, q: Any) -> tuple[float, list[str]]:
    """The bound, rounded up, and the claims that `check_product` needs to verify it."""
    proved = prove_product(system, p, q)
    return proved.bound, proved.claims()


def _replayed(norms: NormEvaluator, spectral: Sequence[float]) -> NormEvaluator:
    values = iter(spectral)
    return NormEvaluator(norms.entry_norms, lambda *_: rational(next(values)))


def check_product(system: ProductSystem, p: Any, q: Any, bound: float, claims: Sequence[str | float]) -> None:
    """Decides in exact arithmetic that the product rule proves `bound`, given the spectral norms that it used.

    claims: the spectral norms in the order of use, as floats or hexadecimal strings. Raises Refuted.
    """
    norms = exact_norms(claims)
    proved = product_bound(system, p, q, norms)
    if len(norms.log) != len(claims):
        raise Refuted(
            f"the certificate lists {len(claims)} spectral norms, and the product rule needs {len(norms.log)}"
        )
    if not (isinstance(proved, Fraction) and bound >= proved):
        raise Refuted(f"the product rule proves {float_up(proved)!r}, not {bound!r}")


def _check(blocks: Mapping[int, LinearMap], size: int, sizes: list[int]) -> None:
    for j, map in blocks.items():
        if not 0 <= j < len(sizes) or map.shape != (size, sizes[j]):
            raise ValueError(f"a block from signal {j} of shape {map.shape} does not fit {size} rows and sizes {sizes}")


def _form_bounds(
    blocks: Mapping[int, LinearMap],
    reached: list[dict[Norm, Bound]],
    of: Callable[[LinearMap], Callable[[Norm, Norm], Bound]],
    wanted: Sequence[Norm],
) -> dict[Norm, Bound]:
    """Bounds of ||sum_j M_j z_j||_r for r in `wanted`, from bounds of the signals."""
    order = sorted(blocks)
    each: list[dict[Norm, Bound]] = []
    for j in order:
        norms = of(blocks[j])
        each.append({r: min(times(b, rational(norms(s, r))) for s, b in reached[j].items()) for r in wanted})
    plan = plan_of([written_rows(blocks[j]) for j in order])
    return {r: round_up(plan([bounds[r] for bounds in each], r)) for r in wanted}


# --------------------------------------------------------------------------------------- sums and concatenations

Plan = Callable[[Sequence[Bound], Norm], Bound]
"""From the bounds of all blocks in one norm to a bound of their sum."""


def plan_of(written: Sequence[Array]) -> Plan:
    """How the blocks of a form combine: disjoint rows by the norm itself, overlapping ones by the triangle inequality.

    written: the `written_rows` of every block. The decision depends on where the maps write, never on a norm, so that
    both sides of a certificate decide alike.
    """
    if len(written) <= 1:
        return _summed([_single(k) for k in range(len(written))])
    rows = sp.csr_array(np.array(written), dtype=np.int64)
    overlap = (rows @ rows.T).toarray() > 0
    return _arranged(np.arange(len(written)), overlap)


def _arranged(members: Array, overlap: Array) -> Plan:
    peeled: list[Plan] = []
    while len(members) > 1:
        inner = overlap[np.ix_(members, members)]
        count, label = connected_components(sp.csr_array(inner), directed=False)
        if count > 1:
            groups = [_arranged(members[label == c], overlap) for c in range(count)]
            return _summed([*peeled, _joined(groups)])
        if len(members) > _SMALL_FORM:
            return _summed([*peeled, *(_single(int(k)) for k in members)])
        worst = int(np.argmax(inner.sum(axis=1)))
        peeled.append(_single(int(members[worst])))
        members = np.delete(members, worst)
    return _summed([*peeled, *(_single(int(k)) for k in members)])


def _single(k: int) -> Plan:
    return lambda bounds, r: bounds[k]


def _summed(parts: list[Plan]) -> Plan:
    def total(bounds: Sequence[Bound], r: Norm) -> Bound:
        value: Bound = Fraction(0)
        for part in parts:
            value = plus(value, part(bounds, r))
        return value

    return total


def _joined(parts: list[Plan]) -> Plan:
    def joined(bounds: Sequence[Bound], r: Norm) -> Bound:
        values = [part(bounds, r) for part in parts]
        if r == "inf":
            return max(values)
        total: Bound = Fraction(0)
        for value in values:
            total = plus(total, times(value, value) if r == "2" else value)
        return root_up(total) if r == "2" else total

    return joined


def written_rows(map: LinearMap) -> Array:
    """A superset of the outputs that are not identically zero, shape (m,), bool; read off, never computed."""
    if isinstance(map, Composition):
        first = written_rows(map.factors[0])
        return first & written_rows(map.factors[1]) if isinstance(map.factors[0], Diagonal) else first
    if isinstance(map, Sum):
        return np.asarray(np.any([written_rows(term) for term in map.terms], axis=0))
    if isinstance(map, Selection):
        return np.asarray(map.index >= 0)
    if isinstance(map, Dense) and map.radius is None:
        return np.asarray(np.any(map.weights != 0, axis=1))
    if isinstance(map, Diagonal) and map.radius is None:
        return np.asarray(map.values != 0)
    if isinstance(map, Sparse) and map.radius is None:
        return np.asarray(np.diff(sp.csr_array(map.weights).indptr) > 0)
    return np.ones(map.shape[0], dtype=bool)


# ------------------------------------------------------------------------------------------------ the exact side


def exact_norms(claims: Sequence[str | float], *, spectral_limit: int = 2500) -> NormEvaluator:
    """Norms in exact arithmetic: sums in integers, spectral norms claimed by a certificate and checked one by one.

    claims: floats or hexadecimal strings, in the order of use; inf claims nothing. A claim is accepted if the entry
    norms imply it, the symbols of convolutions do or `kernel.spectral_norm_at_most` decides it (min(m, n) at most
    `spectral_limit`); otherwise the evaluator raises Refuted, as it does when claims are too few or not numbers.
    """
    from lipmodel.certify.exact_entries import exact_entry_norms, exact_matrix

    values = [_claim(claim) for claim in claims]
    used = iter(values)
    accepted: dict[tuple[int, float], bool] = {}

    def spectral(matrix: Any, norms: Any) -> Bound:
        t = next(used, None)
        if t is None:
            raise Refuted(f"the certificate lists only {len(values)} spectral norms")
        if math.isinf(t):
            return math.inf
        cheap = min(norms.frobenius, root_up(times(norms.max_column_sum, norms.max_row_sum)))
        if Fraction(t) >= cheap or accepted.get((id(matrix), t)):
            return Fraction(t)
        from lipmodel.certify.conv_norms import structured_norm_at_most
        from lipmodel.certify.kernel import spectral_norm_at_most

        if structured_norm_at_most(matrix, Fraction(t)):
            accepted[id(matrix), t] = True
            return Fraction(t)
        if min(matrix.shape) > spectral_limit:
            raise Refuted(f"a spectral norm of a matrix of shape {matrix.shape} is claimed, too large to be checked")
        if not spectral_norm_at_most(exact_matrix(matrix).block(), t):
            raise Refuted(f"the spectral norm of a matrix of shape {matrix.shape} is not proved to be at most {t!r}")
        accepted[id(matrix), t] = True
        return Fraction(t)

    return NormEvaluator(exact_entry_norms, spectral)


def _claim(claim: str | float) -> float:
    try:
        value = float.fromhex(claim) if isinstance(claim, str) else float(claim)
    except (TypeError, ValueError, OverflowError):
        raise Refuted(f"{claim!r} is not a spectral norm") from None
    if not value >= 0:
        raise Refuted(f"{claim!r} is not a spectral norm")
    return value
