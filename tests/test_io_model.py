"""Our own format: a model with its factors, every number and every sharing of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from exported import conv_net, read_json, small_net, spoilt, stated

import lipmodel as lm
from lipmodel.bridges.program import ConeProgram, cone_program
from lipmodel.bridges.scaling import prepare
from lipmodel.io.fields import Fields
from lipmodel.io.maps import MapWriter, read_maps
from lipmodel.io.model_json import model_bytes, read_model
from lipmodel.model import sets
from lipmodel.model.forms import LinearForm, QuadraticForm
from lipmodel.model.model import Constraint
from lipmodel.model.terms import Coefficients, Congruence, Factored, Rule
from lipmodel.network.conv import Conv, Pool
from lipmodel.network.increments import SlopeRestricted
from lipmodel.network.linear import Composition, Dense, Diagonal, LinearMap, Selection, Sparse, Sum
from lipmodel.testing.networks import KINDS, random_network

Array = np.ndarray[Any, Any]


def hand_made() -> lm.Model:
    """Every kind of term, of set and of variable, with a form that is shared."""
    m = lm.Model("by hand", bound="sqrt")
    u, v = m.signal("u", 3), m.signal("v", 2)
    t, free = m.variable("t", 3, nonnegative=True), m.variable("free", 2)
    matrix = m.symmetric("X", 2)
    shared = u + np.array([[1.0, -0.1], [0.0, 1 / 3], [0.0, 0.0]]) @ v
    form = QuadraticForm(
        terms=(
            Factored(weight=2.0 * t + 1 / 7, left=shared, right=shared),
            Factored(weight=lm.Expression.number(-0.0, 3), left=shared, right=u),
            Congruence(form=v, matrix=matrix, scale=-1 / 3, weights=np.array([1.0, 2.0, 0.5])),
            Coefficients(entries=tuple(lm.inner(u, u, weight=t).terms[0].triplets())),
        )
    )
    m.require(form >= 0)
    m.require(Constraint(function=form, set=sets.SparsePSD(cliques=((u.signals[0], v.signals[0]),), merge=False)))
    m.require(Constraint(function=form, set=sets.SparsePSD()))
    m.require(Constraint(function=form, set=sets.DiagonallyDominant()))
    m.require(Constraint(function=form, set=sets.ScaledDiagonallyDominant()))
    m.require(free >= -1.0)
    m.require((free[0] + t.sum()).equals(np.pi))
    m.require(Constraint(function=t, set=sets.SecondOrder()))
    m.require(Constraint(function=t, set=sets.RotatedSecondOrder(block=3)))
    m.minimize(t.sum() + 0.1, bound="sqrt")
    return m


def same_program(a: ConeProgram, b: ConeProgram) -> None:
    assert np.array_equal(a.cost, b.cost)
    assert a.offset == b.offset
    for x, y in zip(a.psd, b.psd, strict=True):
        for name in ("row", "col", "var", "value"):
            assert np.array_equal(getattr(x, name), getattr(y, name))
    for x, y in ((a.ineq, b.ineq), (a.eq, b.eq)):
        assert (x != y).nnz == 0
    assert np.array_equal(a.ineq_rhs, b.ineq_rhs)
    assert np.array_equal(a.eq_rhs, b.eq_rhs)


def again(model: lm.Model, tmp_path: Path) -> lm.Model:
    """The model, written and read; what is written of that is the same file."""
    content = model_bytes(model)
    path = tmp_path / "m.model.json"
    path.write_bytes(content)
    found = read_model(path)
    assert model_bytes(found) == content
    assert str(found) == str(model)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "norms"), [("lipsdp-neuron", ("2", "2")), ("geolip", ("inf", "1"))])
def test_models_of_networks(kind: str, name: str, norms: tuple[Any, Any], tmp_path: Path) -> None:
    model = stated(random_network(kind, 1), name, norms)
    found = again(model, tmp_path)
    same_program(cone_program(found), cone_program(model))
    same_program(cone_program(prepare(found).model), cone_program(prepare(model).model))


def test_convolutions_are_kept(tmp_path: Path) -> None:
    model = stated(lm.load(conv_net(tmp_path / "conv.onnx")), "lipsdp-neuron", ("2", "2"))
    found = again(model, tmp_path)
    same_program(cone_program(found), cone_program(model))
    kinds = {item["kind"] for item in read_json(tmp_path / "m.model.json")["maps"]}
    assert {"convolution", "average-pooling", "dense", "composition", "selection"} <= kinds
    sizes = [sum(m.entries for m in f.blocks.values()) for f in _forms(found)]
    assert sizes == [sum(m.entries for m in f.blocks.values()) for f in _forms(model)]


def _forms(model: lm.Model) -> list[LinearForm]:
    return [side for f in model.matrix_constraints for t in f.terms for side in (t.left, t.right)]  # type: ignore[attr-defined]


def test_rules_name_their_subjects(tmp_path: Path) -> None:
    found = again(stated(small_net(1, "tanh"), "geolip", ("inf", "2")), tmp_path)
    rules = [t.rule for t in found.matrix_constraints[0].terms]
    assert all(isinstance(rule, Rule) for rule in rules)
    assert [rule.kind for rule in rules if rule] == ["ball-input", "ball-dual", "output-dual", "slope", "slope"]
    slopes = [rule.subject for rule in rules if rule and rule.kind == "slope"]
    assert all(isinstance(a, SlopeRestricted) and a.beta.max() == 1.0 for a in slopes)
    (pre,) = (s for s in slopes[1].pre.blocks)
    assert pre is slopes[0].signal


def test_everything_by_hand(tmp_path: Path) -> None:
    model = hand_made()
    found = again(model, tmp_path)
    assert (found.bound, found.name) == ("sqrt", "by hand")
    assert [type(c.set) for c in found.constraints] == [type(c.set) for c in model.constraints]
    first = found.matrix_constraints[0].terms[0]
    assert isinstance(first, Factored)
    assert first.left is first.right
    cliques = found.constraints[1].set.cliques  # type: ignore[union-attr]
    assert cliques == ((found.signals[0], found.signals[1]),)
    rng = np.random.default_rng(0)
    values = {v.name: rng.normal(size=v.size) for v in model.variables}
    point = {s.name: rng.normal(size=s.size) for s in model.signals}
    for a, b in zip(model.constraints, found.constraints, strict=True):
        results = []
        for m, c in ((model, a), (found, b)):
            own = {v: values[v.name] for v in m.variables}
            if isinstance(c.function, QuadraticForm):
                results.append(c.function.value(own, {s: point[s.name] for s in m.signals}))
            else:
                results.append(c.function.value(own).tolist())
        assert results[0] == results[1]


def test_maps_of_every_kind() -> None:
    rng = np.random.default_rng(0)
    dense = Dense(weights=rng.normal(size=(3, 4)), radius=np.full((3, 4), 1e-17))
    conv = Conv(
        kernel=rng.normal(size=(2, 1, 3)),
        input_shape=(1, 2, 6),
        output_spatial=(3,),
        strides=(2,),
        pads=(1,),
        dilations=(1,),
        groups=2,
        radius=np.full((2, 1, 3), 1e-18),
    )
    ones = Conv(
        kernel=np.ones((2, 1, 2)), input_shape=(1, 2, 6), output_spatial=(3,), strides=(2,), pads=(0,), dilations=(1,),
        groups=2,
    )  # fmt: skip
    sparse = Sparse(weights=sp.csr_array([[0.0, 0.1], [1 / 3, 0.0]]), radius=sp.csr_array([[0.0, 1e-18], [0.0, 0.0]]))
    diagonal = Diagonal(values=np.array([0.1, -0.0, 3.0]), radius=np.array([0.0, 1e-20, 0.0]))
    cut = Selection(index=np.array([2, -1, 0]), size=3)
    composed = Composition(factors=(cut, diagonal, dense))
    maps: list[LinearMap] = [dense, conv, Pool(window=ones, count=np.array([2.0, 2.0, 1.0])), diagonal, cut, composed]
    maps += [Sum(terms=(composed, dense)), sparse]
    writer = MapWriter()
    numbers = [writer.number(m) for m in maps]
    assert [writer.number(m) for m in maps] == numbers
    items = json.loads(json.dumps(writer.written))
    found = read_maps([Fields(item) for item in items])
    x = rng.normal(size=20)
    for m, number in zip(maps, numbers, strict=True):
        r = found[number]
        assert type(r) is type(m)
        assert np.array_equal(r.matvec(x[: m.shape[1]]), m.matvec(x[: m.shape[1]]))
        a, b = m.enclosure().dense(), r.enclosure().dense()
        assert np.array_equal(a.center, b.center)
        assert (a.radius is None) == (b.radius is None)
        assert a.radius is None or np.array_equal(a.radius, b.radius)


def test_maps_of_others_are_written_as_matrices() -> None:
    class Swap(LinearMap):
        shape = (2, 2)

        def enclosure(self) -> Any:
            return Dense(weights=np.array([[0.0, 1.0], [1.0, 0.0]])).enclosure()

    writer = MapWriter()
    writer.number(Swap())
    assert writer.written[0]["kind"] == "dense"


@pytest.mark.parametrize("make", [hand_made, lambda: stated(small_net(1), "geolip", ("inf", "2"))])
def test_spoilt_files_are_refused_or_models(make: Callable[[], lm.Model], tmp_path: Path) -> None:
    """Whatever stands in any place of a file, it is a model or a usage error, never another exception."""
    data = json.loads(model_bytes(make()))
    del data["origin"]
    path = tmp_path / "m.model.json"
    refused = 0
    for changed in spoilt(data, first=2, every=5):
        path.write_text(json.dumps(changed))
        try:
            assert isinstance(read_model(path), lm.Model)
        except lm.UsageError as error:
            refused += 1
            assert "is not a model" in str(error)  # noqa: PT017
    assert refused > 200


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "m.model.json"
    for content in ("", "{", "[]", "null", '{"schema": "lipmodel/map/2"}', "[" * 100_000, '{"schema": NaN}'):
        path.write_text(content)
        with pytest.raises(lm.UsageError, match="is not a model"):
            read_model(path)
    with pytest.raises(lm.UsageError, match="cannot read"):
        read_model(tmp_path / "none")
