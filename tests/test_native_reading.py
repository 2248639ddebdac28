"""How the native backend reads models: the program is the inequality that was stated, or the refusal says why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from native_programs import BY_HAND, FORMULATIONS, dense, weighted

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.backends.base import SolveOptions
from lipmodel.backends.native.reading import read_program
from lipmodel.backends.native.structure import structure_of
from lipmodel.bridges.program import cone_program
from lipmodel.model.terms import Congruence
from lipmodel.network.increments import increments
from lipmodel.network.ops import Add
from lipmodel.testing.networks import MIXED, _Sketch, random_system


def expanded(model: lm.Model, y: np.ndarray) -> np.ndarray:
    """The matrix of the model's inequality at y, from its coefficients."""
    (block,) = cone_program(model).psd
    values = np.append(y, 1.0)[block.var] * block.value
    lower = np.zeros((block.order, block.order))
    np.add.at(lower, (block.row, block.col), values)
    return lower + np.tril(lower, -1).T


@pytest.mark.parametrize("name", [*FORMULATIONS, *BY_HAND])
@pytest.mark.parametrize("kind", ["mixed", "residual", "concat", "trailing"])
def test_a_program_is_the_inequality_of_its_model(name, kind):
    system = random_system(kind, 1, inputs=4, outputs=3)
    model = FORMULATIONS[name](system) if name in FORMULATIONS else weighted(system, name)
    program = read_program(model)
    y = np.random.default_rng(0).normal(size=program.unknowns)
    terms, constant = dense(program)
    matrix = constant + np.einsum("p,pab->ab", y, terms)
    expected = expanded(model, y)
    own = len(expected)
    if len(matrix) > own:  # slack, to be eliminated
        corner = matrix[own:, own:]
        matrix = matrix[:own, :own] - matrix[:own, own:] @ np.linalg.solve(corner, matrix[own:, :own])
    assert matrix == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert program.cost @ y == pytest.approx(float(model.objective.value(split(model, y))[0]))


def split(model: lm.Model, y: np.ndarray) -> dict[Any, np.ndarray]:
    ends = np.cumsum([v.size for v in model.variables])[:-1]
    return dict(zip(model.variables, np.split(y, ends), strict=True))


def test_slopes_stated_by_hand_are_recognised():
    system = random_system("residual", 2)
    for model in (FORMULATIONS["neuron"](system), weighted(system, "by-hand")):
        found = structure_of(read_program(model))
        assert found is not None
        assert len(found.activations) == len(system.activations)
        assert found.extra == ()
    assert structure_of(read_program(weighted(system, "extra"))).extra != ()
    assert structure_of(read_program(weighted(system, "shifted"))) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("linear", "constraints besides"),
        ("two", "constraints besides"),
        ("congruence", "not a sum of weighted products"),
        ("offset", "constant"),
        ("reward", "rewards"),
    ],
)
def test_models_of_another_shape_are_refused_with_the_reason(change, reason):
    system = random_system("residual", 0)
    model = FORMULATIONS["neuron"](system)
    kappa = model.variables[0]
    expression = lm.Expression.of(kappa) if hasattr(lm, "Expression") else model.objective
    if change == "linear":
        model.require(expression >= 1.0)
    elif change == "two":
        model.require(lm.inner(system.input, system.input, weight=expression.spread(system.input.size)) >= 0)
    elif change == "congruence":
        x = model.symmetric("X", system.input.size)
        term = Congruence(form=system.input, matrix=x)
        function = type(model.matrix_constraints[0])(terms=(*model.matrix_constraints[0].terms, term))
        model.constraints.clear()
        model.require(function >= 0)
    elif change == "offset":
        model.minimize(expression + 1.0, bound="sqrt")
    else:
        model.minimize(expression - model.variable("y", nonnegative=True), bound="sqrt")
    refusal = backend("native").refuses(model)
    assert refusal is not None
    assert reason in refusal
    with pytest.raises(lm.UsageError, match=reason):
        backend("native").solve(model, SolveOptions())
    assert backend("native").refuses(FORMULATIONS["neuron"](system)) is None


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e200])
def test_slopes_are_read_at_the_ends_of_the_double_range(size):
    s = _Sketch(4, 3)
    hidden = s.activate(s.linear(s.x, 5, scale=size), MIXED)
    system = increments(s.finish(s.add(Add(), [s.linear(hidden, 2), s.linear(s.x, 2)])))
    for model in (FORMULATIONS["neuron"](system), weighted(system, "by-hand")):
        program = read_program(model)
        found = structure_of(program)
        assert found is not None
        (group,) = (program.rows[g] for g in found.activations)
        (activation,) = system.activations
        (weights,) = (np.asarray(m.enclosure().center) for m in activation.pre.blocks.values())
        (read,) = group.pre.values()
        for found_slopes, slopes in ((group.alpha, activation.alpha), (group.beta, activation.beta)):
            scaled = found_slopes[:, None] * (read / size)
            assert scaled == pytest.approx(slopes[:, None] * (weights / size), rel=1e-9, abs=1e-9)
