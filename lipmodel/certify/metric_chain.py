"""The rule "metric-chain": a chain of layers between quadratic metrics, each factor proved over all slopes, exactly.

For a chain v_i = W_i x_{i-1}, x_i = S_i v_i (i = 1..d-1), y = W_d x_{d-1}, S_i diagonal with slopes in [alpha, beta],
and matrices G_i (G_{d-1} = W_d), M_i = G_i' G_i, M_0 = I:

    |G_i S W_i x|^2 <= f_i^2 x' M_{i-1} x   for all x and all slopes S   implies   |y|^2 <= f_1^2 ... f_{d-1}^2 |x_0|^2.

Each factor has a tree. {"neuron": j, "low": tree, "high": tree} sets the slope of neuron j to alpha_j and to beta_j,
which is enough because the left side is convex in every slope. A leaf {"t": [...]} has a multiplier for every neuron
that is left free: with w_j = S_j v_j - alpha_j v_j, c = beta - alpha, and sigma the slopes that are set, or alpha,

    f^2 x' M x - |G (diag(sigma) W x + E w)|^2 - 2 sum_j t_j w_j (c_j (W x)_j - w_j)  >= 0   for all x and w

(S-procedure; Fazlyab, Robey, Hassani, Morari & Pappas 2019, arXiv 1906.04893); without free neurons it is the norm at
a vertex. With M_i near (W_{i+1}' W_{i+1})^(1/2) the product is SeqLip (Virmaux & Scaman 2018, arXiv 1805.10965), but
nothing here depends on which matrices G_i are: they are exact numbers of the certificate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lipmodel.certify.certificate import expect_keys, read_float, read_vector
from lipmodel.certify.kernel import (
    Block,
    Dyadic,
    ExactSymmetric,
    Rejected,
    Vector,
    added,
    decides_positive_semidefinite,
    dyadic,
    gram,
    scaled,
)
from lipmodel.errors import Refuted

if TYPE_CHECKING:
    from lipmodel.certify.kernel import System
    from lipmodel.certify.rules import Subject

RULE = "metric-chain"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factor:
    """One hidden layer between two metrics: |G S W x|^2 <= f^2 x' M x is to be decided for all slopes S.

    weights: W, shape (n, m). after: G, shape (r, n). before: M, shape (m, m); None stands for the identity.
    """

    weights: Block
    after: Block
    before: Block | None
    alpha: Vector
    beta: Vector

    @property
    def size(self) -> int:
        """The number n of neurons."""
        return self.weights.shape[0]


def chain_factors(system: System, metrics: Sequence[Vector]) -> list[Factor]:
    """The factors of a chain; metrics: G_i of all layers but the last, by rows of the triangle. Raises Rejected."""
    count = len(system.sizes) - 1
    forms = [*system.pre, system.output]
    if count < 1 or any(set(form) != {k} for k, form in enumerate(forms)):
        raise Rejected("the network is not a chain of layers")
    if any(labels is not None for labels in system.groups):
        raise Rejected("an activation does not act neuron by neuron")
    if len(metrics) != count - 1:
        raise Rejected(f"{len(metrics)} metrics, and the chain needs {count - 1}")
    after = [_triangle(values, n) for values, n in zip(metrics, system.sizes[1:], strict=False)]
    before: list[Block | None] = [None, *(gram(block, block) for block in after)]
    return [
        Factor(weights=forms[k][k], after=g, before=m, alpha=system.alpha[k], beta=system.beta[k])
        for k, (g, m) in enumerate(zip([*after, forms[-1][count]], before, strict=True))
    ]


def check_chain(
    system: System,
    metrics: Sequence[Vector],
    squares: Sequence[float],
    trees: Sequence[Any],
    bound: float,
) -> None:
    """Decide that `bound` is an upper bound of L_{2->2} by these factors; raises Rejected or Refuted if not."""
    factors = chain_factors(system, metrics)
    if not len(squares) == len(trees) == len(factors):
        raise Rejected(f"{len(squares)} factors and {len(trees)} trees, and the chain has {len(factors)} hidden layers")
    if not (math.isfinite(bound) and bound >= 0.0):
        raise Rejected(f"the bound {bound!r} is not a finite nonnegative number")
    if not all(math.isfinite(square) and square > 0.0 for square in squares):
        raise Rejected("the square of a factor is not a finite positive number")
    if Fraction(bound) ** 2 < math.prod(map(Fraction, squares)):
        raise Rejected(f"the bound {bound!r} is below the product of its factors")
    for k, (factor, square, tree) in enumerate(zip(factors, squares, trees, strict=True), start=1):
        if not decides_factor(factor, square, tree):
            raise Rejected(f"factor {k} of the chain fails, or is too close to failing, in a leaf of its tree")


def decides_factor(factor: Factor, square: float, tree: Any) -> bool:
    """Whether the tree proves |G S W x|^2 <= square x' M x for all slopes. Raises Refuted for what is no tree."""
    view = _view(factor)
    return all(_decides(view, square, fixed, t) for fixed, t in leaves(tree, factor.size))


def leaves(tree: Any, size: int) -> Iterator[tuple[dict[int, bool], Any]]:
    """The leaves of a tree: which neurons are set (True: high), and the multipliers of the others. Raises Refuted."""
    pending: list[tuple[Any, dict[int, bool]]] = [(tree, {})]
    while pending:
        node, fixed = pending.pop()
        if isinstance(node, dict) and "neuron" in node:
            expect_keys(node, {"neuron", "low", "high"}, "proof.trees")
            j = node["neuron"]
            if type(j) is not int or not 0 <= j < size or j in fixed:
                raise Refuted(f"proof.trees: neuron {j!r} does not exist, or is set twice")
            pending += [(node["high"], {**fixed, j: True}), (node["low"], {**fixed, j: False})]
            continue
        expect_keys(node, {"t"}, "proof.trees")
        yield fixed, read_vector(node["t"], "proof.trees.t", size - len(fixed))


def read_and_check(subject: Subject, proof: dict[str, Any]) -> float:
    """The bound that a proof states, its other keys read strictly and decided about the exact matrices of the file.

    Raises Refuted or Rejected.
    """
    expect_keys(proof, {"rule", "norms", "squares", "metrics", "trees", "bound"}, "proof")
    if any(a.groups is not None for a in subject.system.activations):
        raise Refuted("proof: an activation does not act neuron by neuron")
    sizes = [a.size for a in subject.system.activations[:-1]]
    for key, count in (("squares", len(sizes) + 1), ("trees", len(sizes) + 1), ("metrics", len(sizes))):
        if not isinstance(proof[key], list) or len(proof[key]) != count:
            raise Refuted(f"proof.{key}: expected a list of {count}")
    metrics = [
        read_vector(values, f"proof.metrics[{k}]", n * (n + 1) // 2)
        for k, (values, n) in enumerate(zip(proof["metrics"], sizes, strict=True))
    ]
    squares = [read_float(value, "proof.squares") for value in proof["squares"]]
    bound = read_float(proof["bound"], "proof.bound")
    exact = subject.source.exact(subject.system, subject.row, subject.column)
    check_chain(exact, metrics, squares, proof["trees"], bound)
    return bound


# ------------------------------------------------------------------------------------------ one leaf, as a matrix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _View:
    """A factor with what all of its leaves have in common.

    turned: G', shape (n, r). lower, steps: alpha and c = beta - alpha over one power of two. gramian: W W' where the
    leaves are decided over outputs, None where over inputs.
    """

    factor: Factor
    turned: Block
    lower: Dyadic
    steps: Dyadic
    gramian: Block | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Leaf:
    """The numbers of one leaf, exactly: f^2, the free neurons, sigma of all neurons, t and c t of the free ones."""

    square: tuple[int, int]
    free: list[int]
    slopes: Dyadic
    t: Dyadic
    drive: Dyadic


def _view(factor: Factor) -> _View:
    """The factor, made ready for the cheaper of two equivalent forms."""
    lower, upper = dyadic(factor.alpha), dyadic(factor.beta)
    exponent = max(lower[1], upper[1])
    low, high = ([v << (exponent - e) for v in values] for values, e in (lower, upper))
    steps = [b - a for a, b in zip(low, high, strict=True)]
    if any(step < 0 for step in steps):
        raise Rejected("a lower slope is above its upper slope")
    outputs, inputs = factor.after.shape[0], factor.weights.shape[1]
    over_outputs = factor.before is None and outputs <= inputs
    across = _transposed(factor.weights)
    return _View(
        factor=factor,
        turned=_transposed(factor.after),
        lower=(low, exponent),
        steps=(steps, exponent),
        gramian=gram(across, across) if over_outputs else None,
    )


def _decides(view: _View, square: float, fixed: dict[int, bool], t: Vector) -> bool:
    """Whether the inequality of a leaf holds."""
    if not all(math.isfinite(v) and v >= 0.0 for v in t):
        return False
    free = [j for j in range(view.factor.size) if j not in fixed]
    (low, exponent), (step, _) = view.lower, view.steps
    slopes = [a + (c if fixed.get(j) else 0) for j, (a, c) in enumerate(zip(low, step, strict=True))]
    multipliers, (value, places) = dyadic(t), dyadic([square])
    leaf = _Leaf(
        square=(value[0], places),
        free=free,
        slopes=(slopes, exponent),
        t=multipliers,
        drive=([step[j] * v for j, v in zip(free, multipliers[0], strict=True)], exponent + multipliers[1]),
    )
    if view.gramian is None:
        return decides_positive_semidefinite(_over_inputs(view, leaf))
    return decides_positive_semidefinite(_over_outputs(view, view.gramian, leaf))


def _over_inputs(view: _View, leaf: _Leaf) -> ExactSymmetric:
    """Over (x, w): f^2 M - (G sigma W)'(G sigma W), -(G_F' G sigma W + diag(c t) W_F), 2 diag(t) - G_F' G_F."""
    factor, (value, exponent) = view.factor, leaf.square
    inputs = factor.weights.shape[1]
    blocks: dict[tuple[int, int], Block] = {}
    diagonal: list[Dyadic] = [([value if factor.before is None else 0] * inputs, exponent)]
    if factor.before is not None:
        blocks[0, 0] = scaled(([value] * inputs, exponent), factor.before)
    through = gram(view.turned, scaled(leaf.slopes, factor.weights)) if any(leaf.slopes[0]) else None
    if through is not None:
        _add(blocks, (0, 0), _negative(gram(through, through)))
    if leaf.free:
        own = _columns(factor.after, leaf.free)
        diagonal.append((leaf.t[0], leaf.t[1] - 1))
        blocks[1, 1] = _negative(gram(own, own))
        blocks[1, 0] = _negative(scaled(leaf.drive, _rows(factor.weights, leaf.free)))
        if through is not None:
            _add(blocks, (1, 0), _negative(gram(own, through)))
    return ExactSymmetric(diagonal=tuple(diagonal), blocks=blocks)


def _over_outputs(view: _View, gramian: Block, leaf: _Leaf) -> ExactSymmetric:
    """Over (w, s), M = I: f^2 [2 diag(t), -G_F'; -G_F, I] - B W W' B' with B = [diag(c t) E'; G diag(sigma)].

    That is what is left of [f^2 I, -W' B'; -B W, [2 diag(t), -G_F'; -G_F, I]] when x is eliminated, f^2 > 0; its least
    value over s is the form of the leaf.
    """
    factor, (value, exponent) = view.factor, leaf.square
    blocks: dict[tuple[int, int], Block] = {}
    own: Dyadic = ([value] * factor.after.shape[0], exponent)
    last = 1 if leaf.free else 0
    diagonal: list[Dyadic] = [own]
    through = None
    if any(leaf.slopes[0]):
        direct = scaled(leaf.slopes, view.turned)
        through = gram(direct, gramian)
        blocks[last, last] = _negative(gram(_transposed(through), direct))
    if leaf.free:
        diagonal.insert(0, ([v * value for v in leaf.t[0]], leaf.t[1] - 1 + exponent))
        inner = _columns(_rows(gramian, leaf.free), leaf.free)
        blocks[0, 0] = _negative(scaled(leaf.drive, _transposed(scaled(leaf.drive, inner))))
        blocks[1, 0] = _negative(scaled(own, _columns(factor.after, leaf.free)))
        if through is not None:
            driven = scaled(leaf.drive, _transposed(_columns(through, leaf.free)))
            _add(blocks, (1, 0), _negative(_transposed(driven)))
    return ExactSymmetric(diagonal=tuple(diagonal), blocks=blocks)


def _triangle(values: Vector, n: int) -> Block:
    """The upper triangular matrix with these rows."""
    if len(values) != n * (n + 1) // 2:
        raise Rejected(f"a metric of {n} neurons has {n * (n + 1) // 2} entries, not {len(values)}")
    numbers, exponent = dyadic(values)
    rows, start = [], 0
    for i in range(n):
        rows.append([0] * i + numbers[start : start + n - i])
        start += n - i
    return Block(mantissa=rows, exponent=exponent)


def _add(blocks: dict[tuple[int, int], Block], key: tuple[int, int], term: Block) -> None:
    blocks[key] = added(blocks[key], term) if key in blocks else term


def _negative(a: Block) -> Block:
    return scaled(([-1] * a.shape[0], 0), a)


def _rows(a: Block, index: Sequence[int]) -> Block:
    radius = a.radius and [a.radius[i] for i in index]
    return Block(mantissa=[a.mantissa[i] for i in index], exponent=a.exponent, radius=radius)


def _columns(a: Block, index: Sequence[int]) -> Block:
    return _transposed(_rows(_transposed(a), index))


def _transposed(a: Block) -> Block:
    mantissa, radius = ([list(c) for c in zip(*part, strict=True)] if part else None for part in (a.mantissa, a.radius))
    assert mantissa is not None
    return Block(mantissa=mantissa, exponent=a.exponent, radius=radius)
