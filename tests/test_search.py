"""The search for witness pairs: never above the truth, and as high as the truth where that is known."""

from __future__ import annotations

import itertools
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from witness_networks import build

from lipmodel.activations import activation
from lipmodel.errors import UsageError
from lipmodel.lower import jacobian_vector_product, search, vector_jacobian_product, witness_ratio
from lipmodel.lower.attain import attain, attaining, vector_norm
from lipmodel.lower.linearise import float_program
from lipmodel.lower.moves import centred
from lipmodel.lower.realise import realise
from lipmodel.network.linear import Dense
from lipmodel.network.ops import Add, Concat, Elementwise, Input, Linear, Part, elementwise
from lipmodel.network.sources import from_weights
from lipmodel.spec import Box, Norm, dual

NORMS: tuple[Norm, ...] = ("1", "2", "inf")
PAIRS = [(p, q) for p in NORMS for q in NORMS]
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
PATIENT = 20.0
"""Seconds after which a search that should have reached its target long ago gives up; nothing is timed."""


def signs(n: int) -> Any:
    return np.array(list(itertools.product((-1.0, 1.0), repeat=n)))


def induced(matrix: Any, p: Norm, q: Norm) -> float:
    """||M||_{p->q} by the definition, signs enumerated."""
    orders = {"1": 1, "2": 2, "inf": np.inf}
    if p == "1":
        return float(np.linalg.norm(matrix, orders[q], axis=0).max())
    if q == "inf":
        return float(np.linalg.norm(matrix, orders[{"2": "2", "inf": "1"}[p]], axis=1).max())
    if (p, q) == ("2", "2"):
        return float(np.linalg.norm(matrix, 2))
    if p == "inf":
        return float(np.linalg.norm(signs(matrix.shape[1]) @ matrix.T, orders[q], axis=1).max())
    return float(np.linalg.norm(signs(matrix.shape[0]) @ matrix, 2, axis=1).max())


def formal_constant(weights: list[Any], slopes: tuple[float, float], p: Norm, q: Norm) -> float:
    """The largest norm over all slope patterns, reachable or not."""
    widths = [len(w) for w in weights[:-1]]
    best = 0.0
    for pattern in itertools.product(slopes, repeat=sum(widths)):
        product, at = weights[0], 0
        for width, w in zip(widths, weights[1:], strict=True):
            product = w @ (np.array(pattern[at : at + width])[:, None] * product)
            at += width
        best = max(best, induced(product, p, q))
    return best


@pytest.mark.parametrize("group", range(10))
def test_never_above_the_formal_constant(group: int) -> None:
    rng = np.random.default_rng(group)
    kinds: list[tuple[Any, tuple[float, float]]] = [
        ("relu", (0.0, 1.0)),
        ("abs", (-1.0, 1.0)),
        (activation("LeakyRelu", alpha=0.25), (0.25, 1.0)),
    ]
    kinds.append(("tanh", (0.0, 1.0)))
    for k in range(20):
        n, m = rng.integers(1, 4, 2).tolist()
        sizes = [n, *rng.integers(1, 4, rng.integers(1, 3)).tolist(), m]
        weights = [rng.standard_normal((b, a)) * 10.0 ** rng.integers(-3, 4) for a, b in itertools.pairwise(sizes)]
        biases = [rng.standard_normal(len(w)) * rng.integers(0, 2) for w in weights]
        act, slopes = kinds[k % len(kinds)]
        network = from_weights(weights, biases, activation=act)
        for p, q in (PAIRS[(3 * k + group + j) % 9] for j in (0, 4, 8)):
            witness = search(network, p, q, time_limit=0.0, seed=k)
            if witness is not None:
                assert witness.ratio <= formal_constant(weights, slopes, p, q) * (1 + 1e-12)
                assert witness.ratio == witness_ratio(network, witness.x, witness.y, p, q)


def test_reaches_the_constant_where_every_pattern_is_reachable() -> None:
    """One hidden layer, W1 of full row rank: all patterns are reachable, so enumeration gives the constant."""
    rng = np.random.default_rng(4)
    for p, q in PAIRS:
        weights = [rng.standard_normal((6, 7)), rng.standard_normal((3, 6))]
        network = from_weights(weights, [rng.standard_normal(6), None])
        truth = formal_constant(weights, (0.0, 1.0), p, q)
        witness = search(network, p, q, time_limit=PATIENT, target=truth * (1 - 1e-11))
        assert witness is not None
        assert truth * (1 - 1e-11) <= witness.ratio <= truth * (1 + 1e-12)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_linear_networks_attain_their_norm(p: Norm, q: Norm) -> None:
    rng = np.random.default_rng(8)
    for shape in ((1, 1), (1, 6), (5, 1), (4, 7), (9, 5)):
        matrix = rng.standard_normal(shape) * 10.0 ** rng.integers(-20, 20)
        witness = search(from_weights([matrix], [rng.standard_normal(shape[0])]), p, q, time_limit=0.0)
        truth = induced(matrix, p, q)
        assert witness is not None
        assert truth * (1 - 1e-12) <= witness.ratio <= truth * (1 + 1e-12)


def test_a_linear_network_with_many_inputs_and_outputs() -> None:
    rng = np.random.default_rng(9)
    matrix = rng.standard_normal((90, 80))
    network = from_weights([matrix])
    easy: list[tuple[Norm, Norm]] = [("1", "1"), ("1", "2"), ("2", "2"), ("2", "inf"), ("inf", "inf")]
    for p, q in easy:
        witness = search(network, p, q, time_limit=PATIENT)
        truth = induced(matrix, p, q)
        assert witness is not None
        assert truth * (1 - 1e-9) <= witness.ratio <= truth * (1 + 1e-12)


@pytest.mark.parametrize("name", ["Relu", "Clip", "Abs"])
def test_one_input_is_swept(name: str) -> None:
    """Every linear piece is visited: compared with the slopes between all breaks of one hidden layer."""
    rng = np.random.default_rng(1)
    act = activation("Clip", min=-1.0, max=0.5) if name == "Clip" else activation(name)
    for size in (1, 7, 40):
        w, b, v = rng.standard_normal(size), rng.standard_normal(size), rng.standard_normal((2, size))
        points = np.sort(np.concatenate([(t - b) / w for t in act.breakpoints]))
        middles = np.concatenate([[points[0] - 1], 0.5 * (points[1:] + points[:-1]), [points[-1] + 1]])
        slopes = v @ (act.derivative(np.outer(w, middles) + b[:, None]) * w[:, None])
        truth = float(np.linalg.norm(slopes, axis=0).max())
        witness = search(from_weights([w[:, None], v], [b, None], activation=act), "inf", "2", time_limit=PATIENT)
        assert witness is not None
        assert witness.ratio == pytest.approx(truth, rel=1e-12)


def test_kinks_do_not_fool_it() -> None:
    network = from_weights([[[1.0], [-1.0]], [[1.0, -1.0]]])
    for p, q in PAIRS:
        witness = search(network, p, q, time_limit=0.2)
        assert witness is not None
        assert witness.ratio == 1.0


def test_patterns_out_of_reach_do_not_count() -> None:
    """relu(x1) and relu(-x1 - 1) are never active together: the product of the weights, 2, is no lower bound."""
    weights = [np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.1]]), np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])]
    network = from_weights(weights, [np.array([0.0, -1.0, 0.0]), None])
    assert np.linalg.norm(weights[1] @ weights[0], 2) == 2.0
    witness = search(network, "2", "2", time_limit=0.3)
    assert witness is not None
    assert witness.ratio == pytest.approx(1.0, rel=1e-12)
    assert witness.ratio <= 1.0


def test_a_thin_cell_is_found() -> None:
    """A slope of 11 on a strip of width 1e-7 in the plane, of 1 elsewhere."""
    weights = [np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), np.array([[10.0, -10.0, 0.3, 0.1]])]
    network = from_weights(weights, [np.array([-5.0, -5.0 - 1e-7, 0.0, 0.0]), None])
    truth = float(np.linalg.norm([10.3, 10.1]))
    witness = search(network, "2", "2", time_limit=PATIENT, target=truth * (1 - 1e-6))
    assert witness is not None
    assert truth * (1 - 1e-6) <= witness.ratio <= truth * (1 + 1e-12)


@pytest.mark.parametrize(("name", "slope"), [("Sigmoid", 0.25), ("Tanh", 1.0), ("Erf", 1.1283791670955126)])
def test_smooth_networks_of_full_rank(name: str, slope: float) -> None:
    """One hidden layer, W1 square: all slopes are largest at one point, and with W >= 0 that is the constant."""
    rng = np.random.default_rng(2)
    weights = [np.abs(rng.standard_normal((4, 4))), np.abs(rng.standard_normal((2, 4)))]
    network = from_weights(weights, [rng.standard_normal(4), None], activation=name)
    truth = slope * float(np.linalg.norm(weights[1] @ weights[0], 2))
    witness = search(network, "2", "2", time_limit=PATIENT, target=truth * (1 - 1e-9))
    assert witness is not None
    assert truth * (1 - 1e-9) <= witness.ratio <= truth * (1 + 1e-12)


def test_derivatives_agree_with_differences() -> None:
    rng = np.random.default_rng(6)
    mixed = (
        Part(activation=activation("Relu"), index=np.array([0, 2, 4])),
        Part(activation=activation("Clip", min=-0.5, max=0.5), index=np.array([5, 1, 3])),
    )
    first, second, third = (rng.standard_normal(s) for s in ((6, 4), (6, 6), (3, 12)))
    network = build(
        [
            ("x", Input(shape=(4,)), []),
            ("first", Linear(map=Dense(weights=first), bias=rng.standard_normal(6)), ["x"]),
            ("tanh", elementwise(activation("Tanh"), 6), ["first"]),
            ("second", Linear(map=Dense(weights=second)), ["tanh"]),
            ("sum", Add(), ["second", "tanh", "tanh"]),
            ("mixed", Elementwise(parts=mixed), ["sum"]),
            ("both", Concat(positions=(np.arange(0, 12, 2), np.arange(1, 12, 2))), ["mixed", "first"]),
            ("y", Linear(map=Dense(weights=third)), ["both"]),
        ],
        "y",
    )
    x, v, u = rng.standard_normal(4), rng.standard_normal(4), rng.standard_normal(3)
    h = 1e-6
    expected = (network.evaluate(x + h * v) - network.evaluate(x - h * v)) / (2 * h)
    image = jacobian_vector_product(network, x, v)
    np.testing.assert_allclose(image, expected, rtol=1e-7)
    assert u @ image == pytest.approx(v @ vector_jacobian_product(network, x, u), rel=1e-12)
    program = float_program(network, [{0: 1.0, 1: -1.0}, {2: 2.0}])
    jacobian = program.jacobians(program.slopes(program.forward(x[:, None])))[0]
    np.testing.assert_allclose(jacobian @ v, [image[0] - image[1], 2 * image[2]], rtol=1e-12)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_norms_are_attained(p: Norm, q: Norm) -> None:
    rng = np.random.default_rng(3)
    for _ in range(25):
        m, n = rng.integers(1, 9, 2).tolist()
        matrices = rng.standard_normal((3, m, n))
        for thorough in (False, True):
            found = attain(matrices, p, q, thorough=thorough)
            for k, matrix in enumerate(matrices):
                truth = induced(matrix, p, q)
                assert found.value[k] <= truth * (1 + 1e-12)
                assert vector_norm(found.v[k], p) == pytest.approx(1.0, rel=1e-12)
                assert found.u[k] @ matrix @ found.v[k] == pytest.approx(found.value[k], rel=1e-9)
                assert vector_norm(matrix @ found.v[k], q) == pytest.approx(found.value[k], rel=1e-12)
                if thorough:
                    assert found.value[k] >= truth * (1 - 1e-9)


def test_dual_vectors() -> None:
    x = np.array([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0]])
    for norm in NORMS:
        v, other = attaining(x, norm), dual(norm)
        np.testing.assert_allclose(vector_norm(v, norm), 1.0)
        np.testing.assert_allclose(np.sum(v * x, axis=1), vector_norm(x, other))


def test_cells_are_realised_and_centred() -> None:
    rng = np.random.default_rng(7)
    weights = [rng.standard_normal((8, 3)), rng.standard_normal((6, 8)), rng.standard_normal((2, 6))]
    program = float_program(from_weights(weights, [rng.standard_normal(len(w)) for w in weights]))
    for _ in range(20):
        x = rng.standard_normal(3)
        stack = program.forward(x[:, None])[:, 0]
        pattern = np.where(stack > 0, 1.0, -1.0)
        for y in (realise(program, pattern, None), centred(program, x, None)):
            assert y is not None
            assert np.array_equal(program.forward(y[:, None])[:, 0] > 0, stack > 0)
    impossible = from_weights([np.array([[1.0], [1.0]]), np.ones((1, 2))], [np.array([0.0, -1.0]), None])
    assert realise(float_program(impossible), np.array([-1.0, 1.0]), None) is None


def test_a_box_holds_both_points() -> None:
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal((8, 4)), rng.standard_normal((3, 8))]
    network = from_weights(weights, [rng.standard_normal(8), None])
    low, high = np.array([0.0, 0.5, -1.0, 0.0]), np.array([1.0, 0.5, 1.0, 1e-3])
    for p, q in PAIRS:
        witness = search(network, p, q, domain=Box(low, high), time_limit=0.1)
        assert witness is not None
        for point in (witness.x, witness.y):
            assert np.all((low <= point) & (point <= high))
        assert witness.x[1] == witness.y[1] == 0.5
    with pytest.raises(UsageError):
        search(network, "2", "2", domain=Box(low[:3], high[:3]))


def test_outputs() -> None:
    rng = np.random.default_rng(12)
    weights = [rng.standard_normal((4, 6)), rng.standard_normal((3, 4))]
    network = from_weights(weights, [rng.standard_normal(4), None])
    for outputs, rows in (("1", [[0, 1, 0]]), ("2,0", [[0, 0, 1], [1, 0, 0]]), ("margin:1", [[-1, 1, 0], [0, 1, -1]])):
        chosen = [weights[0], np.array(rows, dtype=float) @ weights[1]]
        q: Norm = "inf" if outputs.startswith("margin") else "1"
        truth = formal_constant(chosen, (0.0, 1.0), "2", q)
        witness = search(network, "2", "1", outputs=outputs, time_limit=PATIENT, target=truth * (1 - 1e-10))
        assert witness is not None
        assert truth * (1 - 1e-10) <= witness.ratio <= truth * (1 + 1e-12)
        assert witness.ratio == witness_ratio(network, witness.x, witness.y, "2", "1", outputs)
    with pytest.raises(UsageError):
        search(network, "2", "2", outputs="3")


def test_nothing_to_find() -> None:
    assert search(from_weights([np.zeros((3, 2)), np.ones((1, 3))]), "2", "2", time_limit=0.05) is None
    huge = from_weights([np.full((2, 2), 1e200), np.full((1, 2), 1e200)], [np.ones(2), None])
    assert search(huge, "2", "2", time_limit=0.05) is None


def test_an_attempt_is_made_without_any_time() -> None:
    rng = np.random.default_rng(0)
    network = from_weights([rng.standard_normal((30, 10)), rng.standard_normal((30, 30)), rng.standard_normal((4, 30))])
    witness = search(network, "2", "2", time_limit=0.0, deadline=0.0)
    assert witness is not None
    assert witness.ratio > 0


def _oracles() -> list[Any]:
    wanted = {"closed_form.json": "nonneg", "digits.json": "fnn2", "exlipbab.json": "_relu"}
    out = []
    for name, part in wanted.items():
        path = SHARED / "oracles" / name
        for oracle in json.loads(path.read_text())["oracles"] if path.exists() else []:
            fits = oracle["quantity"] == "exact" and oracle["relation"] == "equal" and part in oracle["id"]
            if fits and "file" in oracle["network"] and oracle["domain"]["kind"] == "global":
                out.append(pytest.param(oracle, id=oracle["id"]))
    return out


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("oracle", _oracles())
def test_known_constants_are_nearly_reached(oracle: Any) -> None:
    from lipmodel.network.onnx_import import load

    network = load(SHARED / oracle["network"]["file"], check=False)
    p, q, truth = oracle["norm"]["input"], oracle["norm"]["output"], oracle["value"]
    witness = search(network, p, q, outputs=str(oracle["output"]), time_limit=PATIENT, target=truth * 0.98)
    assert witness is not None
    assert truth * 0.97 <= witness.ratio <= truth * (1 + max(oracle["rtol"], 1e-9))
