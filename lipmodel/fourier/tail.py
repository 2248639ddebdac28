"""What stays dense behind the images: the rows that read them, and the small network that those rows feed.

Let v be all values by which dense forms read images. The rest of the network is an increment system of its own, with
the input v: signal 0 is v, signal i the i-th dense activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.fourier.stencils import NoStencil
from lipmodel.model.forms import LinearForm, Signal
from lipmodel.network.increments import IncrementSystem
from lipmodel.network.linear import Dense, LinearMap

if TYPE_CHECKING:
    from lipmodel.fourier.stencils import Pictures

Array = np.ndarray[Any, Any]

MAX_ROWS = 1200
"""Rows that read images, and dense neurons, beyond which they are not treated as dense."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Form:
    """A dense form: rows of v that belong to it (empty: it reads no image), maps from images, maps from dense signals.

    dense: by number of the signal in the tail, from 1 on.
    """

    rows: slice
    images: Mapping[int, LinearMap]
    dense: Mapping[int, LinearMap]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tail:
    """rows: the size of v; forms: of the dense activations, and of the output, the last."""

    rows: int
    forms: tuple[Form, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of v and of the dense signals."""
        return (self.rows, *(form.size for form in self.forms[:-1]))


def tail_of(system: IncrementSystem, found: Pictures) -> Tail:
    """The tail of a system whose images are known. Raises NoStencil where it is too large."""
    at = system.positions()
    place = {k: i for i, k in enumerate(found.dense, start=1)}
    forms: list[Form] = []
    used = 0
    for form in [*(system.activations[k - 1].pre for k in found.dense), system.output]:
        blocks = {at[s]: m for s, m in form.blocks.items()}
        images = {j: m for j, m in blocks.items() if j in found.images}
        rows = form.size if images else 0
        dense = {place[j]: m for j, m in blocks.items() if j not in images}
        forms.append(Form(rows=slice(used, used + rows), images=images, dense=dense, size=form.size))
        used += rows
    if not used:
        raise NoStencil("nothing reads the layers of pixels")
    if used + sum(form.size for form in forms) > MAX_ROWS:
        raise NoStencil(f"what follows the convolutions is too large to be treated as dense: {used} rows read images")
    return Tail(rows=used, forms=tuple(forms))


def row_matrices(tail: Tail, found: Pictures) -> dict[int, Array]:
    """The rows of v by image, dense, in floating point. Raises NoStencil where one reads an input without a pixel."""
    result: dict[int, Array] = {}
    for form in tail.forms:
        for j, m in form.images.items():
            matrix = result.setdefault(j, np.zeros((tail.rows, m.shape[1])))
            matrix[form.rows] = m.rmatvec(np.eye(m.shape[0])).T
    for j, matrix in result.items():
        if bool(np.any(matrix[:, ~found.images[j].present])):
            raise NoStencil("an input that no convolution reads is read later")
    return result


def increments_behind(system: IncrementSystem, found: Pictures, tail: Tail, factor: Array) -> IncrementSystem:
    """The increment system behind the images, with the input u where v = factor u."""
    u = Signal(name="u", size=factor.shape[1])
    behind = [system.activations[k - 1] for k in found.dense]
    signals = (u, *(a.signal for a in behind))
    forms = []
    for form in tail.forms:
        blocks: dict[Signal, LinearMap] = {signals[i]: m for i, m in form.dense.items()}
        if form.images:
            blocks[u] = Dense(weights=np.ascontiguousarray(factor[form.rows]))
        forms.append(LinearForm(size=form.size, blocks=blocks))
    return IncrementSystem(
        signals=signals,
        input=LinearForm.of(u, role="input"),
        activations=tuple(replace(a, pre=form) for a, form in zip(behind, forms[:-1], strict=True)),
        output=replace(forms[-1], role="output"),
    )
