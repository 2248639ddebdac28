"""Networks in increment form for the exact checker, with multipliers, the inequality by definition, and enumeration."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lipmodel.certify.kernel import Block, Rejected, System, bound_squared, check_lmi
from lipmodel.certify.lmi import FloatSystem, Multipliers
from lipmodel.certify.roots import sqrt_up
from lipmodel.network.exact import ExactMatrix
from lipmodel.ranges.enclosure import MatrixEnclosure


@dataclass(frozen=True, kw_only=True, eq=False)
class Net:
    """A network in increment form, by plain matrices; signal 0 is the input."""

    sizes: tuple[int, ...]
    pre: tuple[dict[int, np.ndarray], ...]
    alpha: tuple[np.ndarray, ...]
    beta: tuple[np.ndarray, ...]
    output: dict[int, np.ndarray]
    radius: float = 0.0

    @property
    def outputs(self) -> int:
        return next(iter(self.output.values())).shape[0]

    def float_system(self) -> FloatSystem:
        def block(a):
            return MatrixEnclosure(center=a, radius=self.radius * np.abs(a) if self.radius else None)

        return FloatSystem(
            sizes=self.sizes,
            pre=tuple({j: block(a) for j, a in form.items()} for form in self.pre),
            alpha=self.alpha,
            beta=self.beta,
            output={j: block(a) for j, a in self.output.items()},
        )

    def exact_system(self) -> System:
        def block(a):
            return exact(a, self.radius * np.abs(a) if self.radius else None)

        return System(
            sizes=self.sizes,
            pre=tuple({j: block(a) for j, a in form.items()} for form in self.pre),
            alpha=self.alpha,
            beta=self.beta,
            output={j: block(a) for j, a in self.output.items()},
        )


def exact(values, radius=None) -> Block:
    return ExactMatrix.from_floats(values, radius).block()


SLOPES = [(0.0, 1.0), (-0.13, 1.13), (-1.0, 1.0), (0.01, 1.0), (0.0, 0.25), (-1.0, -0.5), (0.3, 0.3), (0.0, 1.0)]


def random_net(rng, *, depth=None, width=4, scale=1.0, inputs=None, outputs=None, dag=None) -> Net:
    depth = int(rng.integers(0, 4)) if depth is None else depth
    dag = bool(rng.integers(2)) if dag is None else dag
    sizes = [inputs or int(rng.integers(1, 4)), *(int(rng.integers(1, width + 1)) for _ in range(depth))]
    rows = outputs or int(rng.integers(1, 4))

    def form(m, k):
        reads = [j for j in range(k) if j == k - 1 or (dag and rng.integers(2))]
        return {j: rng.standard_normal((m, sizes[j])) * 10.0 ** rng.uniform(-scale, scale) for j in reads}

    bounds = [[SLOPES[int(rng.integers(len(SLOPES)))] for _ in range(n)] for n in sizes[1:]]
    return Net(
        sizes=tuple(sizes),
        pre=tuple(form(n, k) for k, n in enumerate(sizes[1:], start=1)),
        alpha=tuple(np.array([a for a, _ in b]) for b in bounds),
        beta=tuple(np.array([b for _, b in b]) for b in bounds),
        output=form(rows, depth + 1),
    )


def rows_of(form, sizes, m) -> np.ndarray:
    """A form as one matrix over all signals."""
    return np.hstack([form.get(j, np.zeros((m, n))) for j, n in enumerate(sizes)])


def defined_lmi(net: Net, multipliers: Multipliers) -> list[list[Fraction]]:
    """P straight from its definition, sum_j t_j (u_j r_j' + r_j u_j'), in rationals."""
    total = sum(net.sizes)
    m = net.outputs
    p = [[Fraction(0)] * (total + m) for _ in range(total + m)]
    for i, v in enumerate(multipliers.g.tolist()):
        p[i][i] += Fraction(v)
    start = net.sizes[0]
    for k, n in enumerate(net.sizes[1:], start=1):
        a = rows_of(net.pre[k - 1], net.sizes, n)
        for j in range(n):
            row = [Fraction(v) for v in a[j].tolist()]
            unit = [Fraction(int(c == start + j)) for c in range(total)]
            low, high, t = (Fraction(float(v[k - 1][j])) for v in (net.alpha, net.beta, multipliers.t))
            u = [e - low * v for e, v in zip(unit, row, strict=True)]
            r = [e - high * v for e, v in zip(unit, row, strict=True)]
            for b, c in itertools.product(range(total), repeat=2):
                p[b][c] += t * (u[b] * r[c] + r[b] * u[c])
        start += n
    c = rows_of(net.output, net.sizes, m)
    for i in range(m):
        p[total + i][total + i] = Fraction(float(multipliers.s[i]))
        for j in range(total):
            p[total + i][j] = p[j][total + i] = -Fraction(float(c[i, j]))
    return p


def is_psd(matrix) -> bool:
    """Exact decision by symmetric elimination in rationals."""
    m = [list(row) for row in matrix]
    for k in range(len(m)):
        pivot = m[k][k]
        if pivot < 0 or (pivot == 0 and any(m[k][k:])):
            return False
        for i in range(k + 1, len(m)):
            factor = m[i][k] / pivot if pivot else Fraction(0)
            if factor:
                m[i][k:] = [a - factor * b for a, b in zip(m[i][k:], m[k][k:], strict=True)]
    return True


def sweep(net: Net, s: np.ndarray, stretch=None) -> tuple[list[np.ndarray], np.ndarray] | None:
    """Strictly feasible multipliers from the output back, and the matrix N that diag(g) must dominate."""
    total = sum(net.sizes)
    starts = np.concatenate([[0], np.cumsum(net.sizes)])
    c = rows_of(net.output, net.sizes, net.outputs)
    m = -c.T @ (c / s[:, None])
    t: list[np.ndarray] = []
    for k in range(len(net.sizes) - 1, 0, -1):
        rows = slice(starts[k], starts[k + 1])
        n = net.sizes[k]
        gap = -m[rows, rows]
        level = np.linalg.eigvalsh(gap)[-1]
        own = np.full(n, max(level, 1e-9 * np.abs(gap).max(), 1e-200))
        if stretch is not None:
            own = own * np.exp(stretch[k - 1])
            own = own * max(1.0, 0.5001 * np.linalg.eigvalsh(gap / np.sqrt(np.outer(own, own)))[-1])
        a = rows_of(net.pre[k - 1], net.sizes, n)
        b = np.eye(total)[rows]
        u, r = b - net.alpha[k - 1][:, None] * a, b - net.beta[k - 1][:, None] * a
        m = m + u.T @ (own[:, None] * r) + r.T @ (own[:, None] * u)
        try:
            m = m - m[:, rows] @ np.linalg.solve(m[rows, rows], m[rows])
        except np.linalg.LinAlgError:
            return None
        t.insert(0, own)
    return t, -m[: net.sizes[0], : net.sizes[0]]


def multipliers_of(net: Net, *, margin=1e-9, g0=None, s=None, stretch=None) -> Multipliers | None:
    s = np.ones(net.outputs) if s is None else s
    g0 = np.ones(net.sizes[0]) if g0 is None else g0
    swept = sweep(net, s, stretch)
    if swept is None:
        return None
    t, needed = swept
    level = float(np.linalg.eigvalsh(needed / np.sqrt(np.outer(g0, g0)))[-1])
    g = max(level * (1.0 + margin), 1e-300) * g0
    return Multipliers(t=tuple(t), g=g, s=s)


def induced_norms(j: np.ndarray) -> dict[tuple[str, str], float]:
    """||J||_{p->q} for p in {2, inf}, q in {1, 2}, by enumeration of signs."""
    m, n = j.shape
    left = [np.array(v) for v in itertools.product([-1.0, 1.0], repeat=m)]
    right = [np.array(v) for v in itertools.product([-1.0, 1.0], repeat=n)]
    return {
        ("2", "2"): float(np.linalg.norm(j, 2)),
        ("2", "1"): max(float(np.linalg.norm(j.T @ v)) for v in left),
        ("inf", "2"): max(float(np.linalg.norm(j @ v)) for v in right),
        ("inf", "1"): max(float(np.abs(j @ v).sum()) for v in right),
    }


def enumerated(net: Net) -> dict[tuple[str, str], float]:
    """The largest norm over all vertices of the slope box: a lower bound of every valid bound."""
    best = dict.fromkeys(itertools.product(("2", "inf"), ("1", "2")), 0.0)
    ranges = [
        list({a, b}) for a, b in zip(np.concatenate([*net.alpha, []]), np.concatenate([*net.beta, []]), strict=True)
    ]
    for vertex in itertools.product(*ranges):
        maps = [np.eye(net.sizes[0])]
        start = 0
        for form, n in zip(net.pre, net.sizes[1:], strict=True):
            v = sum(a @ maps[j] for j, a in form.items())
            maps.append(np.array(vertex[start : start + n])[:, None] * v)
            start += n
        for pair, value in induced_norms(sum(a @ maps[j] for j, a in net.output.items())).items():
            best[pair] = max(best[pair], value)
    return best


def check(net: Net, multipliers: Multipliers, p: str = "2", q: str = "2", bound: float | None = None) -> float:
    bound = sqrt_up(bound_squared(multipliers, p, q)) if bound is None else bound
    check_lmi(net.exact_system(), multipliers, p, q, bound)
    return bound


def accepts(net: Net, multipliers: Multipliers, p: str = "2", q: str = "2", bound: float | None = None) -> bool:
    try:
        check(net, multipliers, p, q, bound)
    except Rejected:
        return False
    return True
