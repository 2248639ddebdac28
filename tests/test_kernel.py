"""The exact checker: roots, norms, the inequality against its definition, and bounds against enumeration."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from lipmodel.certify.kernel import (
    Block,
    ExactSymmetric,
    Rejected,
    System,
    bound_squared,
    check_lmi,
    decides_positive_semidefinite,
    exact_lmi,
    spectral_norm_at_most,
)
from lipmodel.certify.lmi import FloatSystem, Multipliers, lmi_enclosure
from lipmodel.certify.rigor import proves_lmi
from lipmodel.certify.roots import sqrt_up
from lipmodel.network.exact import ExactMatrix
from lipmodel.ranges.enclosure import MatrixEnclosure

# ------------------------------------------------------------------------------------------- systems and their oracle


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


# --------------------------------------------------------------------------------------------------- the matrix itself


def test_both_arithmetics_give_the_matrix_of_the_definition():
    rng = np.random.default_rng(0)
    for trial in range(40):
        net = random_net(rng, scale=float(rng.choice([1, 5])))
        multipliers = Multipliers(
            t=tuple(rng.uniform(0, 1, n) * 10.0 ** rng.uniform(-9, 9, n) for n in net.sizes[1:]),
            g=rng.uniform(0, 1, net.sizes[0]),
            s=rng.uniform(0.1, 1, net.outputs),
        )
        if trial % 4 == 0 and multipliers.t:
            multipliers.t[0][0] = 0.0
        expected = defined_lmi(net, multipliers)
        lmi = exact_lmi(net.exact_system(), multipliers)
        enclosure = lmi_enclosure(net.float_system(), multipliers)
        sizes = (*net.sizes, net.outputs)
        assert enclosure.sizes == sizes
        blocks = enclosure.expanded()
        starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        for i, j in itertools.combinations_with_replacement(range(len(sizes)), 2):
            block, bounds = lmi.blocks.get((j, i)), blocks.get((j, i))
            for a, b in itertools.product(range(sizes[j]), range(sizes[i])):
                truth = expected[starts[j] + a][starts[i] + b]
                value = Fraction(0) if block is None else Fraction(block.mantissa[a][b]) / 2**block.exponent
                if i == j and a == b:
                    value += Fraction(lmi.diagonal[i][0][a]) / Fraction(2) ** lmi.diagonal[i][1]
                assert value == truth
                if bounds is None:
                    assert truth == 0
                    continue
                radius = 0.0 if bounds.radius is None else float(bounds.radius[a, b])
                assert abs(Fraction(float(bounds.center[a, b])) - truth) <= Fraction(radius)
                assert radius <= 1e-10 * max(1e-300, float(np.abs(bounds.center).max()))


def test_cross_terms_of_slopes_zero_one_have_one_rounding():
    net = random_net(np.random.default_rng(1), depth=1, dag=False)
    net = replace(net, alpha=(np.zeros(net.sizes[1]),), beta=(np.ones(net.sizes[1]),))
    multipliers = multipliers_of(net)
    block = lmi_enclosure(net.float_system(), multipliers).blocks[1, 0]
    assert np.all(block.radius <= 2.1 * 2.0**-53 * np.abs(block.center) + 1e-290)


# ----------------------------------------------------------------------------------------------- accepting and refusing


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


def test_never_an_indefinite_matrix_and_no_miss_at_a_margin_of_1e9():
    """Both proofs around the threshold, decided by rational elimination."""
    rng = np.random.default_rng(2)
    tried = refused = 0
    for _ in range(60):
        net = random_net(rng)
        for margin in (1e-6, 1e-9, 1e-12, 1e-15, 0.0, -1e-15, -1e-12, -1e-9, -1e-4):
            multipliers = multipliers_of(net, margin=margin)
            if multipliers is None or multipliers.g[0] < 1e-100:
                continue
            tried += 1
            floating, exact = proves_lmi(net.float_system(), multipliers), accepts(net, multipliers)
            assert exact or not floating
            if margin >= 1e-9:
                assert floating
                assert exact
            if margin <= 1e-12:
                truth = is_psd(defined_lmi(net, multipliers))
                assert truth or not exact
                refused += not truth
    assert tried > 300
    assert refused > 60


@pytest.mark.parametrize(
    "layers", [(1e-30, 1e30), (1e30, 1e-30), (1e-30, 1e-30), (1e15, 1e15, 1e-30), (1e-20, 1e20, 1e20)]
)
def test_layers_of_any_scale(layers):
    rng = np.random.default_rng(3)
    net = random_net(rng, depth=len(layers) - 1, scale=0.0, dag=False, outputs=2)
    net = replace(
        net,
        pre=tuple({j: a * c for j, a in form.items()} for form, c in zip(net.pre, layers, strict=False)),
        output={j: a * layers[-1] for j, a in net.output.items()},
    )
    multipliers = multipliers_of(net)
    assert proves_lmi(net.float_system(), multipliers)
    check(net, multipliers)
    lowered = replace(multipliers, g=multipliers.g * (1 - 1e-7))
    assert not proves_lmi(net.float_system(), lowered)
    assert not accepts(net, lowered)


def test_multipliers_over_sixty_binary_orders():
    rng = np.random.default_rng(4)
    net = random_net(rng, depth=2, dag=False, scale=0.0)
    orders = tuple(np.ldexp(1.0, rng.integers(-30, 31, n)) for n in net.sizes[1:])
    # neuron j counted in units of orders_j: the same function, so multipliers scale with orders^-2
    pre = [{0: orders[0][:, None] * net.pre[0][0]}, {1: orders[1][:, None] * net.pre[1][1] / orders[0]}]
    scaled = replace(net, pre=tuple(pre), output={2: net.output[2] / orders[1]})
    m = multipliers_of(net)
    m = replace(m, t=tuple(t / o**2 for t, o in zip(m.t, orders, strict=True)))
    spread = np.concatenate(m.t)
    assert spread.max() / spread.min() > 2.0**60
    assert proves_lmi(scaled.float_system(), m)
    assert check(scaled, m) == check(net, multipliers_of(net))


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_wider_network_with_every_kind_of_slope(scale):
    rng = np.random.default_rng(5)
    net = random_net(rng, depth=3, width=40, scale=scale, inputs=90, outputs=12, dag=True)
    multipliers = multipliers_of(net)
    assert proves_lmi(net.float_system(), multipliers)
    check(net, multipliers)
    lowered = multipliers_of(net, margin=-1e-8)
    assert not proves_lmi(net.float_system(), lowered)
    assert not accepts(net, lowered)


def test_uncertain_weights_hold_for_every_weight_they_allow():
    rng = np.random.default_rng(6)
    needed = 0
    for _ in range(25):
        sharp = random_net(rng, depth=int(rng.integers(1, 3)), width=2, inputs=1)
        net = replace(sharp, radius=1e-6)
        for margin in (1e-7, 1e-3):
            multipliers = multipliers_of(net, margin=margin)
            floating, exact = proves_lmi(net.float_system(), multipliers), accepts(net, multipliers)
            assert exact or not floating
            needed += accepts(sharp, multipliers) and not exact
            for _ in range(8 if exact else 0):
                forms = [
                    {j: a + 0.999e-6 * np.abs(a) * rng.choice([-1, 1], a.shape) for j, a in form.items()}
                    for form in (*net.pre, net.output)
                ]
                blurred = replace(sharp, pre=tuple(forms[:-1]), output=forms[-1])
                assert is_psd(defined_lmi(blurred, multipliers))
    assert needed > 5  # the radius decided


def test_both_arithmetics_contain_the_matrix_of_every_weight_they_allow():
    rng = np.random.default_rng(14)
    for _ in range(30):
        sharp = random_net(rng, depth=2, width=2, inputs=2)
        net = replace(sharp, radius=1e-3)
        multipliers = multipliers_of(net)
        lmi = exact_lmi(net.exact_system(), multipliers)
        enclosure = lmi_enclosure(net.float_system(), multipliers)
        starts = np.concatenate([[0], np.cumsum(enclosure.sizes)]).tolist()
        forms = [
            {j: a + 0.999e-3 * np.abs(a) * rng.choice([-1, 1], a.shape) for j, a in form.items()}
            for form in (*net.pre, net.output)
        ]
        truth = defined_lmi(replace(sharp, pre=tuple(forms[:-1]), output=forms[-1]), multipliers)
        for (i, j), block in enclosure.expanded().items():
            whole = lmi.blocks.get((i, j))
            for a, b in itertools.product(range(enclosure.sizes[i]), range(enclosure.sizes[j])):
                value = truth[starts[i] + a][starts[j] + b]
                radius = 0.0 if block.radius is None else float(block.radius[a, b])
                assert abs(Fraction(float(block.center[a, b])) - value) <= Fraction(radius)
                if i == j and a == b:
                    value -= Fraction(lmi.diagonal[i][0][a]) / Fraction(2) ** lmi.diagonal[i][1]
                center, error = (0, 0) if whole is None else (whole.mantissa[a][b], whole.radius[a][b])
                unit = 1 if whole is None else Fraction(2) ** -whole.exponent
                assert abs(int(center) * unit - value) <= int(error) * unit


def test_dead_neurons_with_a_multiplier_of_zero():
    w = np.array([[1.0, 2.0], [3.0, 4.0]])
    out = np.array([[1.0, 0.0]])
    ones = np.ones(2)
    net = Net(sizes=(2, 2), pre=({0: w},), alpha=(0 * ones,), beta=(ones,), output={1: out})
    multipliers = Multipliers(t=(np.array([1.0, 0.0]),), g=np.full(2, 5.1), s=np.ones(1))
    assert proves_lmi(net.float_system(), multipliers)
    check(net, multipliers)
    alive = replace(net, output={1: np.array([[1.0, 1e-30]])})
    assert not proves_lmi(alive.float_system(), multipliers)
    assert not accepts(alive, multipliers)


# ----------------------------------------------------------------------------------------------- bounds and enumeration


def polished(net: Net, pair: tuple[str, str], rng) -> Multipliers:
    """Multipliers near the optimum of the relaxation: the bounds with the best chance of being too small."""
    n0, m, hidden = net.sizes[0], net.outputs, sum(net.sizes[1:])
    cuts = np.cumsum(net.sizes[1:])[:-1]

    def build(x):
        stretch = np.split(x[:hidden], cuts) if hidden else None
        g0 = np.exp(x[hidden : hidden + n0]) if pair[0] == "inf" else None
        s = np.exp(x[hidden + n0 :]) if pair[1] == "1" else None
        return multipliers_of(net, margin=1e-9, g0=g0, s=s, stretch=stretch)

    def price(x):
        multipliers = build(np.clip(x, -6, 6))
        return 1e6 if multipliers is None else math.log(float(bound_squared(multipliers, *pair)))

    x0 = 0.1 * rng.standard_normal(hidden + n0 + m)
    best = minimize(price, x0, method="Powell", options={"maxfev": 250, "xtol": 1e-3, "ftol": 1e-5})
    return build(np.clip(best.x, -6, 6))


def test_no_bound_is_below_the_largest_vertex_of_the_slopes():
    rng = np.random.default_rng(7)
    tight = proofs = 0
    for trial in range(48):
        net = random_net(rng, depth=trial % 4, width=2, scale=0.3)
        truth = enumerated(net)
        pair = [("2", "2"), ("2", "1"), ("inf", "2"), ("inf", "1")][(trial // 4) % 4]
        multipliers = polished(net, pair, rng)
        if not accepts(net, multipliers, *pair):
            continue
        proofs += 1
        for p, q in truth:
            bound = check(net, multipliers, p, q)
            assert bound >= truth[p, q] * (1 - 1e-12)
            assert not accepts(net, multipliers, p, q, truth[p, q] * (1 - 1e-9))
        tight += sqrt_up(bound_squared(multipliers, *pair)) <= 1.2 * truth[pair]
    assert proofs >= 46
    assert tight >= 40


def test_no_activation_at_all_is_the_norm_of_the_matrix():
    rng = np.random.default_rng(8)
    for _ in range(10):
        net = random_net(rng, depth=0)
        top = float(np.linalg.norm(net.output[0], 2))
        ones = np.ones(net.sizes[0]), np.ones(net.outputs)
        above, below = ((top * (1 + e)) ** 2 for e in (1e-10, -1e-10))
        assert check(net, Multipliers(t=(), g=above * ones[0], s=ones[1])) == pytest.approx(top, rel=1e-9)
        assert not accepts(net, Multipliers(t=(), g=below * ones[0], s=ones[1]))
        assert not proves_lmi(net.float_system(), Multipliers(t=(), g=below * ones[0], s=ones[1]))


# ------------------------------------------------------------------------------------------------------ the certificate


@pytest.fixture
def certified() -> tuple[Net, Multipliers]:
    net = random_net(np.random.default_rng(9), depth=2, dag=True, inputs=3, outputs=2)
    return net, multipliers_of(net, margin=1e-8)


def test_the_bound_is_compared_exactly(certified):
    net, multipliers = certified
    for p, q in itertools.product(("2", "inf"), ("1", "2")):
        bound = check(net, multipliers, p, q)
        assert accepts(net, multipliers, p, q, math.nextafter(bound, math.inf))
        with pytest.raises(Rejected, match="below"):
            check(net, multipliers, p, q, math.nextafter(bound, 0.0))


@pytest.mark.parametrize("bound", [math.nan, math.inf, -math.inf, -1.0, 0.0])
def test_bounds_that_are_no_bounds(certified, bound):
    assert not accepts(*certified, bound=bound)


def test_norm_pairs_that_the_inequality_says_nothing_about(certified):
    net, multipliers = certified
    for p, q in (("1", "2"), ("2", "inf"), ("1", "inf"), ("3", "2"), ("2", "")):
        with pytest.raises(Rejected):
            bound_squared(multipliers, p, q)
        assert not accepts(net, multipliers, p, q, 1e300)


def test_single_entries_have_one_norm():
    net = random_net(np.random.default_rng(10), depth=1, inputs=1, outputs=1)
    multipliers = multipliers_of(net)
    assert len({check(net, multipliers, p, q) for p in ("1", "2", "inf") for q in ("1", "2", "inf")}) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, -5e-324])
def test_every_multiplier_must_be_a_nonnegative_number(certified, bad):
    net, multipliers = certified
    for field in ("t", "g", "s"):
        vectors = getattr(multipliers, field)
        vectors = vectors if field == "t" else (vectors,)
        for k, i in [(k, i) for k, v in enumerate(vectors) for i in range(len(v))]:
            spoiled = [v.copy() for v in vectors]
            spoiled[k][i] = bad
            changed = replace(multipliers, **{field: tuple(spoiled) if field == "t" else spoiled[0]})
            assert not proves_lmi(net.float_system(), changed)
            with pytest.raises(Rejected, match="must be finite"):
                check(net, changed, bound=1e300)
    zero = replace(multipliers, s=multipliers.s * np.array([1.0, 0.0]))
    assert not accepts(net, zero, bound=1e300)


def test_multipliers_of_another_shape(certified):
    net, multipliers = certified
    for changed in (
        replace(multipliers, t=multipliers.t[:1]),
        replace(multipliers, t=(multipliers.t[0][:-1], multipliers.t[1])),
        replace(multipliers, t=(np.diag(multipliers.t[0]), multipliers.t[1])),
        replace(multipliers, g=multipliers.g[:-1]),
        replace(multipliers, s=np.ones(3)),
    ):
        assert not proves_lmi(net.float_system(), changed)
        with pytest.raises(Rejected, match="do not fit"):
            check(net, changed, bound=1e300)


def test_a_tampered_certificate_is_refused_or_still_true(certified):
    net, multipliers = certified
    truth = enumerated(net)["2", "2"]
    rng = np.random.default_rng(11)
    refused = 0
    for _ in range(40):
        t = tuple(
            v * np.where(rng.random(len(v)) < 0.4, rng.choice([0.0, 0.5, 0.99, 1.01, 2.0, 1e9]), 1.0)
            for v in multipliers.t
        )
        changed = replace(multipliers, t=t, g=multipliers.g * rng.choice([0.5, 0.9, 1.0, 1.1]))
        bound = sqrt_up(bound_squared(changed, "2", "2"))
        if accepts(net, changed, bound=bound):
            assert bound >= truth * (1 - 1e-12)
        else:
            refused += 1
    assert refused > 10


# ------------------------------------------------------------------------------------------------- published mistakes


def test_coupled_multipliers_of_lipsdp_network_are_not_a_proof():
    """W1 = (1, 1)', W2 = (1, -1), relu: the coupled program claims 1.4e-5, the constant is 1."""
    net = Net(
        sizes=(1, 2),
        pre=({0: np.ones((2, 1))},),
        alpha=(np.zeros(2),),
        beta=(np.ones(2),),
        output={1: np.array([[1.0, -1.0]])},
    )
    assert enumerated(net)["2", "2"] == 1.0
    grid = np.exp(np.linspace(-12, 6, 25))
    for a, b in itertools.product(grid, grid):
        claim = Multipliers(t=(np.array([a, b]),), g=np.array([0.999**2]), s=np.ones(1))
        assert not proves_lmi(net.float_system(), claim)
    assert not accepts(net, Multipliers(t=(np.ones(2),), g=np.array([2e-10]), s=np.ones(1)), bound=1.4e-5)
    coupled = Multipliers(t=(np.array([[1e5, -1e5], [-1e5, 1e5]]),), g=np.array([2e-10]), s=np.ones(1))
    assert not proves_lmi(net.float_system(), coupled)
    assert not accepts(net, coupled, bound=1.4e-5)


def test_a_recursion_evaluated_where_it_is_not_defined_is_not_a_proof():
    """W1 = (1, 1)', W2 = (1, -1/2), S = 0.45 I: 2S - G is indefinite, the formula returns 0.4797, the constant is 1."""
    w1, w2 = np.ones((2, 1)), np.array([[1.0, -0.5]])
    net = Net(sizes=(1, 2), pre=({0: w1},), alpha=(np.zeros(2),), beta=(np.ones(2),), output={1: w2})
    s = 0.45 * np.eye(2)
    y = s @ np.linalg.inv(2 * s - w1 @ w1.T) @ s
    claimed = float(np.sqrt(np.linalg.eigvalsh(w2 @ y @ w2.T)[-1]))
    assert claimed == pytest.approx(0.4797, abs=1e-4)
    for claim in (claimed, 0.99):
        false = Multipliers(t=(np.full(2, claim**2 / 0.45),), g=np.array([claim**2]), s=np.ones(1))
        assert not proves_lmi(net.float_system(), false)
        assert not accepts(net, false)
    assert check(net, multipliers_of(net)) >= enumerated(net)["2", "2"] == 1.0


def test_a_curved_input_block_must_not_be_dropped():
    """Slopes [-1, 1]: 2 W'diag(alpha beta t)W is negative, and without it any g > 0 would do."""
    ones = np.ones(1)
    net = Net(sizes=(1, 1), pre=({0: 3.0 * np.eye(1)},), alpha=(-ones,), beta=(ones,), output={1: np.eye(1)})
    tight = Multipliers(t=(np.array([0.5 * (1 + 1e-9)]),), g=np.array([9.0 * (1 + 2e-9)]), s=ones)
    assert proves_lmi(net.float_system(), tight)
    assert check(net, tight) == pytest.approx(3.0, rel=1e-8)
    for t in np.exp(np.linspace(-20, 20, 41)):
        lower = Multipliers(t=(np.array([t]),), g=np.array([8.99]), s=ones)
        assert not proves_lmi(net.float_system(), lower)
        assert not accepts(net, lower)


# ------------------------------------------------------------------------------------------- matrices, norms, and roots


def dense(values, radius=None) -> ExactSymmetric:
    n = len(values)
    return ExactSymmetric(diagonal=(([0] * n, 0),), blocks={(0, 0): exact(values, radius)})


def test_small_matrices_by_hand():
    assert decides_positive_semidefinite(dense(np.eye(3)))
    assert decides_positive_semidefinite(dense(np.zeros((2, 2))))
    assert decides_positive_semidefinite(dense([[1.0, 0.999], [0.999, 1.0]]))
    assert not decides_positive_semidefinite(dense([[1.0, 1.0 + 2**-52], [1.0 + 2**-52, 1.0]]))
    assert not decides_positive_semidefinite(dense([[0.0, 1e-300], [1e-300, 1.0]]))
    assert not decides_positive_semidefinite(dense([[-1.0]]))
    assert not decides_positive_semidefinite(dense([[1e-300, 1.0], [1.0, 1e299]]))
    assert decides_positive_semidefinite(dense([[1e-300, 0.999], [0.999, 1e300]]))
    assert decides_positive_semidefinite(dense([[1.0, 0.5], [0.5, 1.0]], [[0.0, 0.499], [0.499, 0.0]]))
    assert not decides_positive_semidefinite(dense([[1.0, 0.5], [0.5, 1.0]], [[0.0, 0.501], [0.501, 0.0]]))
    assert not decides_positive_semidefinite(dense(np.zeros((1, 1)), np.full((1, 1), 1e-300)))
    with pytest.raises(ValueError, match="symmetric"):
        decides_positive_semidefinite(dense([[1.0, 0.5], [0.4, 1.0]]))
    with pytest.raises(ValueError, match="fit"):
        decides_positive_semidefinite(ExactSymmetric(diagonal=(([1], 0),), blocks=dense(np.eye(2)).blocks))


@pytest.mark.parametrize("kind", ["tiny", "projected", "perturbed"])
def test_no_hint_however_wrong_changes_the_decision(kind, monkeypatch):
    """Hubs of stars: indefinite, though all other rows are diagonally dominant; and matrices pushed below zero."""
    rng = np.random.default_rng(15)

    def false_cholesky(a):
        if kind == "tiny":
            return 1e-6 * np.eye(len(a))
        values, vectors = np.linalg.eigh(np.tril(a) + np.tril(a, -1).T)
        factor = genuine((vectors * np.maximum(values, 1e-9)) @ vectors.T)
        return factor * (1.001 if kind == "perturbed" else 1.0)

    genuine = np.linalg.cholesky
    monkeypatch.setattr(np.linalg, "cholesky", false_cholesky)
    if kind == "tiny":
        monkeypatch.setattr(np.linalg, "solve", lambda a, b: np.zeros_like(b))

    def cut(m, at, radius=None) -> ExactSymmetric:
        edges = [0, *at, len(m)]
        blocks = {}
        for i, j in itertools.combinations_with_replacement(range(len(edges) - 1), 2):
            rows, columns = slice(edges[j], edges[j + 1]), slice(edges[i], edges[i + 1])
            blocks[j, i] = exact(m[rows, columns], None if radius is None else radius[rows, columns])
        diagonal = tuple(([0] * (b - a), 0) for a, b in itertools.pairwise(edges))
        return ExactSymmetric(diagonal=diagonal, blocks=blocks)

    for leaves, hub in itertools.product((2, 5), (0, -1)):
        n = leaves + 3
        m = 1.01 * np.eye(n) + 0.001 * (np.ones((n, n)) - np.eye(n))
        m[hub, :] = m[:, hub] = 1.0 / leaves
        m[hub, hub] = 0.3 / leaves
        assert not is_psd([[Fraction(v) for v in row] for row in m.tolist()])
        for at in ((), (2,), (leaves,), (1, 3)):
            assert not decides_positive_semidefinite(cut(m, at))
    for _ in range(40):
        n = int(rng.integers(2, 7))
        b = rng.standard_normal((n, n))
        m = b @ b.T + np.eye(n)
        m = np.tril(m) + np.tril(m, -1).T
        m = m - (np.linalg.eigvalsh(m)[0] + 10.0 ** rng.uniform(-8, -1)) * np.eye(n)
        if np.all(np.diagonal(m) > 0):
            assert not decides_positive_semidefinite(cut(m, (n // 2,)))
    m = np.eye(4) + 1e-3 * (np.ones((4, 4)) - np.eye(4))
    for at in ((), (2,)):
        assert not decides_positive_semidefinite(cut(m, at, 0.6 * (np.ones((4, 4)) - np.eye(4))))


def test_matrices_at_the_edge_of_definiteness():
    rng = np.random.default_rng(12)
    accepted = indefinite = 0
    for _ in range(150):
        n = int(rng.integers(1, 8))
        b = rng.standard_normal((n, int(rng.integers(1, n + 1)))) * 10.0 ** rng.uniform(-3, 3, (n, 1))
        m = b @ b.T
        m = np.tril(m) + np.tril(m, -1).T
        m = m + float(rng.choice([-1, 1])) * 10.0 ** rng.uniform(-18, -9) * np.diag(np.diagonal(m))
        answer = decides_positive_semidefinite(dense(m))
        truth = is_psd([[Fraction(v) for v in row] for row in m.tolist()])
        assert truth or not answer
        d = 1 / np.sqrt(np.diagonal(m))
        if np.linalg.eigvalsh(d[:, None] * m * d)[0] > 1e-13:
            assert answer
        accepted += answer
        indefinite += not truth
    assert accepted > 30
    assert indefinite > 30


def test_spectral_norms_decided_exactly():
    ones = exact(np.ones((2, 2)))
    assert spectral_norm_at_most(ones, 2.0 * (1 + 1e-13))
    assert not spectral_norm_at_most(ones, math.nextafter(2.0, 0.0))
    assert not spectral_norm_at_most(ones, math.sqrt(2.0))  # the largest row norm
    row = exact([[3.0, 4.0]])
    assert spectral_norm_at_most(row, 5.0 * (1 + 1e-13))
    assert not spectral_norm_at_most(row, math.nextafter(5.0, 0.0))
    zero = exact(np.zeros((2, 3)))
    assert spectral_norm_at_most(zero, 0.0)
    assert spectral_norm_at_most(zero, 5e-324)
    for t in (math.nan, math.inf, -1.0, 0.0):
        assert not spectral_norm_at_most(ones, t)
    blurred = exact(np.ones((2, 2)), np.full((2, 2), 0.01))
    assert not spectral_norm_at_most(blurred, 2.019)
    assert spectral_norm_at_most(blurred, 2.0201)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_spectral_norms_of_random_matrices(scale):
    rng = np.random.default_rng(13)
    for shape in ((1, 7), (7, 1), (6, 4), (30, 50)):
        a = rng.standard_normal(shape)
        top = float(np.linalg.norm(a, 2)) * scale
        stored = exact(a * scale)
        assert spectral_norm_at_most(stored, top * (1 + 1e-11))
        assert not spectral_norm_at_most(stored, top * (1 - 1e-11))


fractions = st.builds(
    lambda n, d, e: Fraction(n, d) * Fraction(2) ** e,
    st.integers(0, 2**200),
    st.integers(1, 2**200),
    st.integers(-2200, 2000),
)


@settings(max_examples=300, deadline=None)
@given(fractions, fractions)
def test_square_roots_are_the_nearest_doubles_above(value, other):
    up = sqrt_up(value)
    if math.isfinite(up):
        assert Fraction(up) ** 2 >= value
        assert up == 0.0 or Fraction(math.nextafter(up, 0.0)) ** 2 < value
    else:
        assert Fraction(np.finfo(float).max) ** 2 < value
    low, high = sorted((value, other))
    assert sqrt_up(low) <= sqrt_up(high)


def test_square_roots_by_hand():
    assert sqrt_up(Fraction(0)) == 0.0
    assert sqrt_up(Fraction(9, 4)) == 1.5
    assert sqrt_up(Fraction(2)) == math.nextafter(1.414213562373095, 2.0)
    assert sqrt_up(Fraction(1, 2**2148)) == 5e-324
    assert sqrt_up(Fraction(1, 2**5000)) == 5e-324
    largest = np.finfo(float).max
    assert sqrt_up(Fraction(largest) ** 2) == largest
    assert sqrt_up(Fraction(largest) ** 2 + 1) == math.inf
    with pytest.raises(ValueError):
        sqrt_up(Fraction(-1))
