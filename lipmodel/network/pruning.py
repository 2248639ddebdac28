"""Neurons that cannot matter: those that read nothing, and those that nothing reads.

Both leave the constant as it is, and both make programs ill-posed: the best multiplier of the one is infinite, of the
other zero, so that no optimum is attained. They are taken out of the increment system itself, before anything is built
from it, so that every formulation, every backend and the checker work with the same smaller system. What is dead is
decided by the stored zeros alone, without arithmetic. A formulation that ties multipliers is defined with the dead
neurons in it, so it is built and solved with them: multipliers of the complete inequality, less those of the dead, are
multipliers of the smaller one (let a dead neuron run along one of its slopes).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from lipmodel.model.forms import LinearForm, Signal, apply
from lipmodel.network.linear import Composition, Dense, Diagonal, LinearMap, Selection, Sparse, Sum

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem, SlopeRestricted

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def without_dead_neurons(system: IncrementSystem) -> IncrementSystem:
    """The system without neurons whose pre-activation, or whose further path to the output, is zero by stored zeros.

    An activation that is fed or read by a map that keeps a structure (a convolution) is left whole unless all of its
    neurons are dead. In a group each entry feels all others, so that it lives or dies as a whole.
    """
    alive = _alive(system)
    kept = {a.signal: _kept(system, a, alive[a.signal]) for a in system.activations}
    if all(mask.all() for mask in kept.values()):
        return system
    new: dict[Signal, LinearForm] = {}
    activations: list[SlopeRestricted] = []
    living: dict[str, Any] = {}
    for a in system.activations:
        index = np.flatnonzero(kept[a.signal])
        living[a.name] = system.living.get(a.name, np.arange(a.size))[index]
        if not len(index):
            new[a.signal] = LinearForm(size=a.size, blocks={})
            continue
        pre = a.pre.substitute({s: f for s, f in new.items() if s in a.pre.blocks})
        if len(index) == a.size:
            activations.append(replace(a, pre=pre))
            continue
        signal = Signal(name=a.signal.name, size=len(index))
        place = np.full(a.size, -1)
        place[index] = np.arange(len(index))
        new[a.signal] = apply(Selection(index=place, size=len(index)), LinearForm.of(signal))
        activations.append(a.part(index, signal, apply(Selection(index=index, size=a.size), pre)))
    output = system.output.substitute({s: f for s, f in new.items() if s in system.output.blocks})
    signals = (system.signals[0], *(a.signal for a in activations))
    return replace(
        system,
        signals=signals,
        activations=tuple(activations),
        output=output,
        complete=system if system.complete is None else system.complete,
        living=living,
    )


def _alive(system: IncrementSystem) -> dict[Signal, Mask]:
    """Per activation, the neurons that lie on a path of stored nonzeros from the input to the output."""
    reached = {system.signals[0]: np.ones(system.input.size, dtype=bool)}
    for a in system.activations:
        reached[a.signal] = _joined(a, _forward(a.pre, reached))
    wanted = {s: np.zeros(s.size, dtype=bool) for s in system.signals}
    for s, m in system.output.blocks.items():
        wanted[s] |= _back(m, np.ones(system.output.size, dtype=bool))
    for a in reversed(system.activations):
        wanted[a.signal] = _joined(a, wanted[a.signal])
        for s, m in a.pre.blocks.items():
            wanted[s] |= _back(m, wanted[a.signal] & reached[a.signal])
    return {a.signal: reached[a.signal] & wanted[a.signal] for a in system.activations}


def _joined(a: SlopeRestricted, mask: Mask) -> Mask:
    """The mask, and with every neuron in it the others of its group."""
    if a.groups is None:
        return mask
    _, label = np.unique(a.groups, return_inverse=True)
    return np.bincount(label, weights=mask)[label] > 0


def _kept(system: IncrementSystem, a: SlopeRestricted, alive: Mask) -> Mask:
    """The neurons of an activation that stay."""
    if alive.all() or not alive.any():
        return alive
    readers = [form.blocks[a.signal] for form in (*(b.pre for b in system.activations), system.output)
               if a.signal in form.blocks]  # fmt: skip
    return alive if all(_plain(m) for m in (*a.pre.blocks.values(), *readers)) else np.ones_like(alive)


def _plain(m: LinearMap) -> bool:
    if isinstance(m, Composition):
        return all(_plain(factor) for factor in m.factors)
    return isinstance(m, Dense | Sparse | Selection | Diagonal)


def _forward(form: LinearForm, reached: dict[Signal, Mask]) -> Mask:
    result = np.zeros(form.size, dtype=bool)
    for s, m in form.blocks.items():
        result |= _image(m, reached[s])
    return result


def _image(m: LinearMap, mask: Mask) -> Mask:
    """Entries of m x that may be nonzero where x is zero outside the mask."""
    if isinstance(m, Composition):
        for factor in reversed(m.factors):
            mask = _image(factor, mask)
        return mask
    if isinstance(m, Sum):
        return np.asarray(np.any([_image(term, mask) for term in m.terms], axis=0))
    pattern = _pattern(m)
    return np.full(m.shape[0], mask.any()) if pattern is None else np.asarray(pattern @ mask, dtype=bool)


def _back(m: LinearMap, mask: Mask) -> Mask:
    """Entries of x that entries of m x inside the mask may depend on."""
    if isinstance(m, Composition):
        for factor in m.factors:
            mask = _back(factor, mask)
        return mask
    if isinstance(m, Sum):
        return np.asarray(np.any([_back(term, mask) for term in m.terms], axis=0))
    pattern = _pattern(m)
    return np.full(m.shape[1], mask.any()) if pattern is None else np.asarray(pattern.T @ mask, dtype=bool)


def _pattern(m: LinearMap) -> Any:
    """Where entries are, or may be, nonzero; None for maps that keep a structure."""
    if isinstance(m, Dense):
        return (m.weights != 0.0) if m.radius is None else (m.weights != 0.0) | (m.radius != 0.0)
    if isinstance(m, Sparse):
        present = abs(m.weights) if m.radius is None else abs(m.weights) + m.radius
        return sp.csr_array(present != 0.0)
    if isinstance(m, Diagonal):
        present = m.values != 0.0 if m.radius is None else (m.values != 0.0) | (m.radius != 0.0)
        return sp.csr_array(sp.diags_array(present.astype(np.float64))) != 0.0
    if isinstance(m, Selection):
        rows = np.flatnonzero(m.index >= 0)
        ones = np.ones(len(rows), dtype=bool)
        return sp.csr_array((ones, (rows, m.index[rows])), shape=m.shape)
    return None
