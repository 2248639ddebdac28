"""-logdet of the block tridiagonal matrix inequality of a chain: block Cholesky, gradient, exact Hessian.

S(y) has the diagonal blocks D_0 = diag(eta) + C_1, D_k = 2 diag(t_k) + C_{k+1}, D_L = 2 diag(t_L) - V'V, where C_k is
2 W_k' diag(a b t_k) W_k, and the blocks -diag((a + b) t_k) W_k below them (a, b the slopes). Elimination runs from the
input to the output, E_k = D_k - X_k' X_k. With P = S^-1 and A_j = u_j r_j' + r_j u_j' the gradient of logdet S is
<A_j, P> = 2 u_j'P r_j, and the Hessian of -logdet S is <A_i, P A_j P> = 2 [(U'PU) o (R'PR) + (U'PR) o (R'PU)]_ij:
coefficients of rank two need no matrix products beyond those that form U'PU, U'PR and R'PR, and these follow from P.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dsymv, dtrmm, dtrsm, dtrsv
from scipy.linalg.lapack import dpotrf, dtrtri

from lipmodel.backends.native.chain import Array, Chain, split

PANEL = 128  # rows that are scaled or mirrored at a time, to stay in cache
BELOW = np.tri(PANEL, k=-1, dtype=bool)
CHUNK = 1 << 16  # entries that are multiplied at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factor:
    """Block Cholesky factor of S(y) > 0."""

    t: list[Array]
    eta: Array
    pivots: list[Array]  # lower Cholesky factors of E_1..E_L
    updates: list[Array]  # X_2..X_L, X_k = C_{k-1}^-1 W_k' diag((a + b) t_k)
    reach: Array  # K = E_0^-1 W_1', shape (n0, n1); empty where only G is needed
    gram: Array  # G = W_1 E_0^-1 W_1'
    input_diagonal: Array  # of E_0^-1
    input_inverse: Array  # E_0^-1, shape (n0, n0), where it was needed; else empty
    logdet: float  # of S(y)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Band:
    """The blocks of P = S^-1 that the gradient needs, with the gradient of logdet S."""

    gradient: Array
    diagonal: list[Array]  # P_kk, k = 1..L
    transfers: list[Array]  # Q_2..Q_L: P_{k-1, l} = Q_k P_{k, l} for l >= k


def cholesky(matrix: Array) -> Array | None:
    """Lower Cholesky factor (Fortran order) of a symmetric matrix, which is overwritten; None unless it is definite."""
    factor, info = dpotrf(matrix.T, lower=1, clean=1, overwrite_a=1)
    # LAPACK lets NaN pass, because a comparison with it is false
    return factor if info == 0 and np.isfinite(factor.diagonal().sum()) else None


def add_to_diagonal(matrix: Array, values: Array | float) -> None:
    """In place, on a square matrix."""
    np.einsum("ii->i", matrix)[...] += values


def mirror(matrix: Array) -> None:
    """Make a matrix symmetric, in place, by its upper triangle."""
    for start in range(0, len(matrix), PANEL):
        rows, rest = slice(start, start + PANEL), slice(start + PANEL, None)
        own = matrix[rows, rows]
        np.copyto(own, own.T, where=BELOW[: len(own), : len(own)])
        matrix[rest, rows] = matrix[rows, rest].T


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Head:
    """What the elimination of the input leaves: see Factor."""

    gram: Array
    reach: Array
    diagonal: Array
    inverse: Array
    logdet: float


EMPTY: Array = np.zeros((0, 0))


def _eliminate_input(chain: Chain, t: Array, eta: Array) -> _Head | None:
    """Eliminate E_0 = diag(eta) + 2 W_1' diag(a b t_1) W_1; None unless E_0 > 0."""
    weight = chain.weights[0]
    inverse = 1 / eta
    logdet = float(np.log(eta).sum())
    if not chain.curved[0]:
        if chain.tied:
            return _Head(
                gram=chain.input_gram * inverse[0], reach=EMPTY, diagonal=inverse, inverse=EMPTY, logdet=logdet
            )
        reach = weight.T * inverse[:, None]
        return _Head(gram=weight @ reach, reach=reach, diagonal=inverse, inverse=EMPTY, logdet=logdet)
    curve = 2 * chain.slope_product[0] * t
    if weight.shape[1] > weight.shape[0]:
        # with W_1 diag(1/eta) W_1' = R R' and J = I + R' diag(curve) R: E_0 > 0 exactly where J > 0, and G = R J^-1 R'
        reach = weight.T * inverse[:, None]
        root = cholesky(weight @ reach)
        if root is not None:
            middle = (root.T * curve) @ root
            add_to_diagonal(middle, 1.0)
            pivot = cholesky(middle)
            if pivot is None:
                return None
            half = dtrsm(1.0, pivot, root.T, lower=1)
            gram = half.T @ half
            full = reach - (reach * curve) @ gram
            diagonal = inverse - np.einsum("ij,ij->i", full * curve, reach)
            logdet += 2 * float(np.log(pivot.diagonal()).sum())
            return _Head(gram=gram, reach=full, diagonal=diagonal, inverse=EMPTY, logdet=logdet)
    block = (weight.T * curve) @ weight
    add_to_diagonal(block, eta)
    pivot = cholesky(block)
    if pivot is None:
        return None
    half = dtrsm(1.0, pivot, weight.T, lower=1)
    root = dtrtri(pivot, lower=1)[0]
    reach = dtrmm(1.0, root, half, lower=1, trans_a=1)
    dense = root.T @ root
    return _Head(
        gram=half.T @ half,
        reach=reach,
        diagonal=dense.diagonal(),
        inverse=dense,
        logdet=2 * float(np.log(pivot.diagonal()).sum()),
    )


def factorize(chain: Chain, y: Array) -> Factor | None:
    """The block Cholesky factor of S(y), or None where S(y) is not (numerically) positive definite."""
    if not np.all(y > 0) or not np.all(np.isfinite(y)):
        return None
    t, eta = split(chain, y)
    head = _eliminate_input(chain, t[0], eta)
    if head is None:
        return None
    gram, logdet = head.gram, head.logdet
    scale = chain.slope_sum[0] * t[0]
    gram_scaled = gram * scale
    gram_scaled *= -scale[:, None]
    pivots: list[Array] = []
    updates: list[Array] = []
    schur = gram_scaled
    for k, tk in enumerate(t):
        if k:
            update = dtrsm(1.0, pivots[-1], chain.weights[k].T * (chain.slope_sum[k] * tk), lower=1, overwrite_b=1)
            updates.append(update)
            schur = update.T @ update
            np.negative(schur, out=schur)
        add_to_diagonal(schur, 2 * tk)
        if k + 1 < len(t):
            if chain.curved[k + 1]:
                follower = chain.weights[k + 1]
                schur += 2 * (follower.T * (chain.slope_product[k + 1] * t[k + 1])) @ follower
        else:
            schur -= chain.output_gram
        pivot = cholesky(schur)
        if pivot is None:
            return None
        pivots.append(pivot)
        logdet += 2 * float(np.log(pivot.diagonal()).sum())
    return Factor(
        t=t,
        eta=eta,
        pivots=pivots,
        updates=updates,
        reach=head.reach,
        gram=gram,
        input_diagonal=head.diagonal,
        input_inverse=head.inverse,
        logdet=logdet,
    )


def band_inverse(chain: Chain, factor: Factor) -> Band:
    """P = S^-1 on the clique band, and the gradient of logdet S: <A_j, P> for every unknown j."""
    t = factor.t
    gradient = np.empty(chain.neurons + chain.cost.size)
    diagonal: list[Array] = [np.empty(0)] * len(t)
    transfers: list[Array] = [np.empty(0)] * (len(t) - 1)
    inverse = dtrtri(factor.pivots[-1], lower=1)[0]
    block = inverse.T @ inverse
    for k in range(len(t) - 1, 0, -1):
        diagonal[k] = block
        weight = chain.weights[k]
        inverse = dtrtri(factor.pivots[k - 1], lower=1)[0]
        transfer = dtrmm(1.0, inverse, factor.updates[k - 1], lower=1, trans_a=1)
        transfers[k - 1] = transfer
        cross = transfer @ block
        entries = block.diagonal() - chain.slope_sum[k] * np.einsum("ij,ji->i", weight, cross)
        block = inverse.T @ inverse
        block += cross @ transfer.T
        if chain.curved[k]:
            entries = entries + chain.slope_product[k] * np.einsum("ij,ij->i", weight @ block, weight)
        gradient[chain.spans[k]] = 2 * entries
    diagonal[0] = block
    scale = chain.slope_sum[0] * t[0]
    scaled = block * scale
    middle = scaled * scale[:, None]
    entries = block.diagonal() - chain.slope_sum[0] * np.einsum("ij,ij->i", scaled, factor.gram)
    if chain.curved[0]:
        # W_1 P_00 W_1' = G + G S P_11 S G
        curve = factor.gram.diagonal() + np.einsum("ij,ij->i", factor.gram @ middle, factor.gram)
        entries = entries + chain.slope_product[0] * curve
    gradient[chain.spans[0]] = 2 * entries
    if chain.tied and not chain.curved[0]:
        gradient[-1] = factor.input_diagonal[0] * (factor.eta.size + np.einsum("ij,ij->", factor.gram, middle))
    else:
        own = factor.input_diagonal + np.einsum("ij,ij->i", factor.reach @ middle, factor.reach)
        gradient[chain.neurons :] = own.sum() if chain.tied else own
    return Band(gradient=gradient, diagonal=diagonal, transfers=transfers)


def hessian(chain: Chain, factor: Factor, band: Band) -> Array:
    """The Hessian of -logdet S at y, shape (unknowns, unknowns): its upper triangle, the rest is arbitrary.

    With A the map from all signals to the pre-activations, the rows of P and of P A' that belong to one layer follow
    from those of the next one, P_{k-1, l} = Q_k P_kl, and give those of A P and A P A': no more is ever held.
    """
    count, spans = chain.neurons, chain.spans
    alpha, beta = np.concatenate(chain.alpha), np.concatenate(chain.beta)
    result = np.empty((count + chain.cost.size,) * 2)
    base, right = band.diagonal[-1], np.empty((len(band.diagonal[-1]), 0))
    for k in range(len(spans) - 1, -1, -1):
        here, ahead = spans[k], slice(spans[k].start, count)
        if k:
            weight = chain.weights[k] if chain.sparse[k] is None else chain.sparse[k]
            before = (
                np.hstack([band.diagonal[k - 1], band.transfers[k - 1] @ base]),
                np.hstack([(weight @ band.diagonal[k - 1]).T, band.transfers[k - 1] @ right]),
            )
            left = weight @ before[0][:, len(band.diagonal[k - 1]) :]
            both = weight @ before[1]
            right = np.hstack([left[:, : base.shape[0]].T, right])
        else:
            through = factor.gram * (chain.slope_sum[0] * factor.t[0])
            left = through @ base
            right = np.hstack([left[:, : base.shape[0]].T, right])
            both = through @ right
            both[:, : base.shape[0]] += factor.gram
            before = base, right.copy()
        hadamard(base, right, left, both, alpha[here], beta[here], alpha[ahead], beta[ahead], out=result[here, ahead])
        base, right = before
    _input_rows(chain, factor, band, base, right, result)
    return result


def hadamard(
    base: Array,
    right: Array,
    left: Array,
    both: Array,
    alpha: Array,
    beta: Array,
    alpha_ahead: Array,
    beta_ahead: Array,
    *,
    out: Array,
) -> None:
    """2 [(U'PU) o (R'PR) + (U'PR) o (R'PU)] on a panel, from P, P A', A P and A P A' there."""
    plain = not (np.any(alpha) or np.any(alpha_ahead))
    ones = plain and bool(np.all(beta == 1)) and bool(np.all(beta_ahead == 1))
    height = max(CHUNK // max(base.shape[1], 1), 1)
    for start in range(0, len(base), height):
        rows = slice(start, start + height)
        p, x, y, q = base[rows], right[rows], left[rows], both[rows]
        if plain:
            if not ones:
                x, y, q = x * beta_ahead, y * beta[rows, None], q * beta_ahead * beta[rows, None]
            # U = I: P o (P - x - y + q) + (P - x) o (P - y)
            product, other = p - x, p - y
            twice = product - y
            twice += q
            twice *= p
            product *= other
            product += twice
            np.multiply(product, 2, out=out[rows])
        else:
            pu, pr = p - x * alpha_ahead, p - x * beta_ahead
            au, ar = y - q * alpha_ahead, y - q * beta_ahead  # A P U, A P R
            low, high = alpha[rows, None], beta[rows, None]
            product = (pu - low * au) * (pr - high * ar)
            product += (pr - low * ar) * (pu - high * au)
            np.multiply(product, 2, out=out[rows])


def _input_rows(chain: Chain, factor: Factor, band: Band, inverse: Array, image: Array, result: Array) -> None:
    """Rows and columns of eta, from the rows of P and of P A' of layer 1: P_0h U = K X, P_0h R = K Y."""
    count, first = chain.neurons, chain.spans[0]
    scale = chain.slope_sum[0] * factor.t[0]
    reach = factor.reach if factor.reach.size else chain.weights[0].T * factor.input_diagonal[0]
    sides = []
    for slopes in (np.concatenate(chain.alpha), np.concatenate(chain.beta)):
        side = image * slopes
        np.subtract(inverse, side, out=side)
        side *= scale[:, None]
        side[:, first][np.diag_indices(scale.size)] -= slopes[first]
        sides.append(reach @ side)
    middle = band.diagonal[0] * scale * scale[:, None]
    corner = (reach @ middle) @ reach.T
    if factor.input_inverse.size:
        corner += factor.input_inverse
    else:
        add_to_diagonal(corner, 1 / factor.eta)
        if chain.curved[0]:
            # E_0^-1 = diag(1/eta) - K diag(curve) W_1 diag(1/eta)
            curve = 2 * chain.slope_product[0] * factor.t[0]
            corner -= (reach * curve) @ (chain.weights[0] / factor.eta)
    cross = sides[0]
    cross *= sides[1]
    cross *= 2
    corner *= corner
    if chain.tied:
        result[count, :count] = cross.sum(axis=0)
        result[count, count] = corner.sum()
    else:
        result[count:, :count] = cross
        result[count:, count:] = corner
    result[:count, count:] = result[count:, :count].T


# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metric:
    """A factored Hessian M, scaled to a unit diagonal: its Cholesky factor and M itself share one array."""

    packed: Array  # lower triangle with diagonal: the factor; strict upper triangle: the scaled M
    scale: Array  # diag(M)^-1/2

    def solve(self, right: Array) -> Array:
        """M^-1 right, shape (unknowns,)."""
        # two calls of level 2 are faster than one of LAPACK's dpotrs with its blocks
        half = dtrsv(self.packed, self.scale * right, lower=1, overwrite_x=1)
        return np.asarray(self.scale * dtrsv(self.packed, half, lower=1, trans=1, overwrite_x=1))

    def apply(self, vector: Array) -> Array:
        """M vector, shape (unknowns,)."""
        scaled = vector / self.scale
        # dsymv reads the diagonal of the factor where M has ones
        product = dsymv(1.0, self.packed, scaled, lower=0) + (1 - self.packed.diagonal()) * scaled
        return np.asarray(product / self.scale)

    def refined(self, right: Array) -> Array:
        """M^-1 right with one step of iterative refinement."""
        solution = self.solve(right)
        return solution + self.solve(right - self.apply(solution))


def factor_metric(matrix: Array) -> Metric | None:
    """Cholesky of a Hessian, given by its upper triangle, in place; regularised as little as lets it pass.

    None where that is not little.
    """
    diagonal = matrix.diagonal().copy()
    if not np.all(diagonal > 0) or not np.all(np.isfinite(diagonal)):
        return None
    scale = 1 / np.sqrt(diagonal)
    for start in range(0, len(matrix), PANEL):
        panel = matrix[start : start + PANEL, start:]
        panel *= scale[start:]
        panel *= scale[start : start + PANEL, None]
    mirror(matrix)
    shift = 1e-15
    while shift < 1e-8:
        matrix[np.diag_indices_from(matrix)] = 1 + shift
        packed, info = dpotrf(matrix.T, lower=1, clean=0, overwrite_a=1)
        if info == 0 and np.isfinite(packed.diagonal().sum()):
            return Metric(packed=packed, scale=scale)
        # the factor stands in the upper triangle of `matrix`; the lower one is untouched
        mirror(matrix.T)
        shift *= 100
    return None
