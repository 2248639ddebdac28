"""The native backend on networks that are dead in part, constant, nearly linear, or at the ends of the double range."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dense_algebra import is_definite
from native_programs import FORMULATIONS, dense, gap, hard_system, is_zero, solved, unknowns

from lipmodel.backends.native import general
from lipmodel.backends.native.launch import launched
from lipmodel.backends.native.pruning import embedded, pruned
from lipmodel.backends.native.reading import read_program
from lipmodel.backends.native.structure import structure_of
from lipmodel.network.increments import IncrementSystem, increments
from lipmodel.network.ops import Add
from lipmodel.testing.networks import MIXED, _Sketch, formal_constant


def dead_system(*, constant: bool = False) -> IncrementSystem:
    """A residual network with neurons that nothing reaches and neurons that reach nothing, which stay in the system."""
    s = _Sketch(11, 3)
    first, branch, back, last = (s.rng.standard_normal(shape) for shape in ((6, 3), (5, 6), (6, 5), (2, 6)))
    first[1] = 0
    branch[:, 2] = 0
    branch[3] = 0
    back[:, 4] = 0
    back[1] = 0
    last[:, 5] = 0
    if constant:
        last[:, [0, 2, 3, 4]] = 0
    node = s.activate(s.linear(s.x, 6, weights=first))
    again = s.linear(s.activate(s.linear(node, 5, weights=branch), MIXED), 6, weights=back)
    node = s.activate(s.add(Add(), [node, again]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lipmodel.network.increments.without_dead_neurons", lambda system: system)
        return increments(s.finish(s.linear(node, 2, weights=last)))


@pytest.mark.parametrize("name", FORMULATIONS)
def test_dead_neurons_get_harmless_multipliers(name):
    model = FORMULATIONS[name](dead_system())
    program = read_program(model)
    small = pruned(program)
    tied = name in ("layer", "grouped")
    assert tied or sum(int((~mask).sum()) for mask in small.kept) >= 4
    point = solved(model)
    assert point.termination == "optimal"
    assert gap(model, point) <= 1e-6
    y = unknowns(model, point)
    terms, constant = dense(program)
    assert is_definite(constant + np.einsum("p,pab->ab", y, terms))
    again = solved(FORMULATIONS[name](dead_system()))
    assert again.objective == point.objective


@pytest.mark.parametrize("name", ["neuron", "geolip-2-1", "geolip-inf-1", "geolip-inf-2"])
def test_a_constant_network_has_the_value_zero_almost(name):
    model = FORMULATIONS[name](dead_system(constant=True))
    point = solved(model)
    assert point.termination == "optimal"
    assert is_zero(model, point)
    terms, constant = dense(read_program(model))
    assert is_definite(constant + np.einsum("p,pab->ab", unknowns(model, point), terms))


def test_entries_that_were_taken_out_come_back_feasible():
    for seed in range(6, 120, 7):  # the sparse ones and those with dead neurons
        for name in ("neuron", "grouped"):
            program = read_program(FORMULATIONS[name](hard_system(seed)))
            small = pruned(program)
            if not small.unknowns.any() or small.unknowns.all():
                continue
            start = launched(small.program, structure_of(small.program), np.inf)
            assert start is not None
            y = np.ldexp(start.point(start.y), start.units.unknowns)
            assert general.feasible(small.program, y)
            assert general.feasible(program, embedded(program, small, y))


@pytest.mark.parametrize("size", [1e-140, 1e-60, 1e60, 1e120])
def test_numbers_at_the_ends_of_the_double_range_do_no_harm(size):
    values = []
    for scale in (1.0, size):
        s = _Sketch(1, 3)
        first = s.activate(s.linear(s.x, 5, scale=scale))
        second = s.activate(s.linear(first, 5))
        system = increments(s.finish(s.add(Add(), [s.linear(second, 3), s.linear(first, 3)])))
        for name in ("layer", "geolip-inf-1"):
            model = FORMULATIONS[name](system)
            point = solved(model)
            assert gap(model, point) <= 1e-6
            values.append(model.bound_of(point.objective) / scale)
    assert values[2:] == pytest.approx(values[:2], rel=2e-6)


def test_a_hundred_blocks_neither_overflow_nor_underflow():
    s = _Sketch(2, 3)
    node = s.x
    for k in range(100):
        gain = 1e3 if k % 2 else 1e-3
        hidden = s.activate(s.linear(node, 3, scale=gain))
        node = s.activate(s.add(Add(), [node, s.linear(hidden, 3, scale=0.4 / gain)]))
    model = FORMULATIONS["neuron"](increments(s.finish(s.linear(node, 1))))
    point = solved(model, max_iterations=5)
    program = read_program(model)
    values = unknowns(model, point)
    fixed = replace(program, weights=program.weights[:, :0], shift=program.weights @ values + program.shift)
    assert is_definite(dense(fixed)[1])


def test_narrow_slopes_are_widened_and_give_no_lower_bound():
    s = _Sketch(3, 3)
    hidden = s.activate(s.linear(s.x, 4), [("LeakyRelu", {"alpha": 1.0 - 1e-9})])
    system = increments(s.finish(s.add(Add(), [s.linear(hidden, 2), s.linear(s.x, 2)])))
    model = FORMULATIONS["neuron"](system)
    point = solved(model)
    assert (point.termination, point.lower) == ("inaccurate", 0.0)
    assert model.bound_of(point.objective) == pytest.approx(formal_constant(system, "2", "2"), rel=1e-3)
