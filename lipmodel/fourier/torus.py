"""Images and stencils on a torus, and their blocks at each frequency.

The torus Z_N^axes is large enough that nothing wraps around onto pixels that exist. An image is extended by zeros: the
neurons outside have slope 0, which their slope interval is widened to contain (padding and cropping are then slopes).
With a period Q that all lattices divide, entries fall into slots (channel, place mod Q); multipliers are constant on
slots, and a unitary Fourier transform over the shifts by Q, entries of slot r at place l having the phase
exp(-2 pi i f l / N), turns a stencil into one matrix per frequency f in {0, .., N/Q - 1}^axes:

    block[(o, r), (c, r')] = sum of K_d[o, c] exp(2 pi i f d / N) over the d with r + d = r' mod Q.

(Strides by polyphase components; frequencies f and -f have conjugate blocks up to phases of the slots.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import lcm, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.fourier.stencils import Displacement, Image, NoStencil, Pictures, Taps

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem

Array = np.ndarray[Any, Any]

MAX_ENTRIES = 60_000_000
"""Entries of the matrices at all frequencies, of 16 bytes each."""
LONGEST = 16
"""Period, in pixels of the finest lattice, up to which multipliers may differ."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Torus:
    """sides: N per axis; period: Q per axis, a divisor of it."""

    sides: tuple[int, ...]
    period: tuple[int, ...]

    def frequencies(self) -> tuple[Array, Array]:
        """One of each pair f, -f, shape (count, axes), and how many there are of it, 1 or 2."""
        shape = [n // q for n, q in zip(self.sides, self.period, strict=True)]
        every = np.indices(shape).reshape(len(shape), -1).T
        opposite = (-every) % np.array(shape)
        number, other = (np.ravel_multi_index(list(f.T), shape) for f in (every, opposite))
        kept = number <= other
        return every[kept], np.where(number == other, 1, 2)[kept]

    @property
    def shifts(self) -> int:
        """The number of frequencies, and of places in a slot."""
        return prod(n // q for n, q in zip(self.sides, self.period, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slots:
    """The slots of an image: residues of its lattice, shape (phases, axes); of: the slot of each entry, -1 for none."""

    channels: int
    residues: Array
    of: Array

    @property
    def count(self) -> int:
        return self.channels * len(self.residues)


def least_torus(found: Pictures, period: int = 1) -> Torus:
    """The smallest torus on which nothing wraps around; its period is a multiple of `period`."""
    axes = found.axes
    q = tuple(lcm(period, *(image.spacing[i] for image in found.images.values())) for i in range(axes))
    needed = np.ones(axes, dtype=np.int64)
    for reach in _reaches(found):
        needed = np.maximum(needed, reach + 1)
    sides = tuple(int(-(-n // p) * p) for n, p in zip(needed, q, strict=True))
    return Torus(sides=sides, period=q)


def _reaches(found: Pictures) -> Iterator[Array]:
    """Per axis, the largest distance of two places of an image, and of one that is read from one that exists."""
    for image in found.images.values():
        low, high = image.box()
        yield high - low
    for (k, j), taps in found.stencils.items():
        (low, high), (first, last) = found.images[k].box(), found.images[j].box()
        d = np.array(list(taps))
        yield np.maximum(high + d.max(axis=0) - first, last - low - d.min(axis=0))


def slots_of(image: Image, torus: Torus) -> Slots:
    """The slots of an image on a torus, phases counted fastest."""
    inside = image.place[image.present]
    spacing, period = np.array(image.spacing), np.array(torus.period)
    steps = period // spacing
    first = inside[0] % spacing
    residues = first + np.indices(tuple(steps)).reshape(len(steps), -1).T * spacing
    phase = np.ravel_multi_index(list(((image.place - first) % period // spacing).T), tuple(steps))
    of = np.where(image.present, image.channel * len(residues) + phase, -1)
    return Slots(channels=image.channels, residues=residues, of=of)


def slot_slopes(system: IncrementSystem, k: int, slots: Slots, torus: Torus) -> tuple[Array, Array]:
    """The least and greatest slope of the neurons in each slot of image k >= 1, 0 for the places outside."""
    a = system.activations[k - 1]
    full = np.bincount(slots.of[slots.of >= 0], minlength=slots.count) == torus.shifts
    alpha, beta = np.where(full, np.inf, 0.0), np.where(full, -np.inf, 0.0)
    np.minimum.at(alpha, slots.of, a.alpha)
    np.maximum.at(beta, slots.of, a.beta)
    return alpha, beta


def phase_pairs(taps: Taps, rows: Slots, columns: Slots, torus: Torus) -> Iterator[tuple[int, int, list[Displacement]]]:
    """(phase of the reader, phase of what is read, displacements) of a stencil; the others are zero."""
    period = np.array(torus.period)
    index = {tuple(map(int, r % period)): i for i, r in enumerate(columns.residues)}
    for i, residue in enumerate(rows.residues):
        groups: dict[int, list[Displacement]] = {}
        for d in taps:
            groups.setdefault(index[tuple(map(int, (residue + np.array(d)) % period))], []).append(d)
        for j, listed in groups.items():
            yield i, j, listed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """Where the slots of all images lie in one vector, the input first; rows: those of the activations."""

    slots: Mapping[int, Slots]
    starts: Mapping[int, int]
    size: int

    def span(self, k: int) -> slice:
        return slice(self.starts[k], self.starts[k] + self.slots[k].count)

    @property
    def inputs(self) -> int:
        return self.slots[0].count


def layout_of(found: Pictures, torus: Torus) -> Layout:
    """The layout of the images of a system on a torus."""
    slots = {k: slots_of(image, torus) for k, image in sorted(found.images.items())}
    starts, size = {}, 0
    for k, s in slots.items():
        starts[k] = size
        size += s.count
    return Layout(slots=slots, starts=starts, size=size)


def require_size(found: Pictures, torus: Torus) -> None:
    """Raise NoStencil where the matrices at all frequencies are too large to be held."""
    order, count = layout_of(found, torus).size, len(torus.frequencies()[0])
    if order**2 * count > MAX_ENTRIES:
        raise NoStencil(f"{count} matrices of order {order} are too many: no period, or a smaller one, may help")


def stencil_blocks(found: Pictures, torus: Torus, layout: Layout, frequencies: Array) -> Array:
    """All stencils at these frequencies in floating point, shape (count, activations' slots, all slots), complex."""
    n0 = layout.inputs
    result = np.zeros((len(frequencies), layout.size - n0, layout.size), dtype=complex)
    sides = np.array(torus.sides)
    for (k, j), taps in found.stencils.items():
        rows, columns = layout.slots[k], layout.slots[j]
        top, left = layout.starts[k] - n0, layout.starts[j]
        for r, c, listed in phase_pairs(taps, rows, columns, torus):
            waves = np.exp(2j * np.pi * (frequencies @ (np.array(listed) / sides).T))
            block = np.tensordot(waves, np.array([taps[d] for d in listed]), axes=1)
            at_rows = top + np.arange(rows.channels) * len(rows.residues) + r
            at_columns = left + np.arange(columns.channels) * len(columns.residues) + c
            result[:, at_rows[:, None], at_columns] = block
    return result


def row_blocks(rows: Mapping[int, Array], found: Pictures, torus: Torus, layout: Layout, frequencies: Array) -> Array:
    """Dense rows that read images at these frequencies, shape (count, rows, all slots), complex, unitary scaling.

    rows: by image, matrices of shape (m, size of the signal).
    """
    m = next(iter(rows.values())).shape[0]
    result = np.zeros((len(frequencies), m, layout.size), dtype=complex)
    sides = np.array(torus.sides)
    for j, matrix in rows.items():
        of, start = layout.slots[j].of, layout.starts[j]
        waves = np.exp(2j * np.pi * ((found.images[j].place / sides) @ frequencies.T)) / np.sqrt(torus.shifts)
        for slot in range(layout.slots[j].count):
            here = np.flatnonzero(of == slot)
            if len(here):
                result[:, :, start + slot] = (matrix[:, here] @ waves[here]).T
    return result
