"""Convolutional parts of an increment system as stencils on a lattice of pixels, read off the structure of its maps.

A signal is an *image* if each of its entries has a channel and a place on a lattice, and a form reads images by a
*stencil* if v(o, l) = sum over d and c of K_d[o, c] z(c, l + d) for every entry (o, l) of v, images being zero where
they have no entry. Strides make the lattices of later images coarser; nothing is ever expanded. What is read is exact:
a map that does something else at its borders (crops between two convolutions, averages fewer pixels) is no stencil.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.network.conv import Conv, Pool
from lipmodel.network.linear import Composition, Diagonal, LinearMap, Selection, Sum

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem

Array = np.ndarray[Any, Any]
Displacement = tuple[int, ...]
Taps = dict[Displacement, Array]


class NoStencil(Exception):  # noqa: N818 - an answer
    """A map is no stencil; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """Where the entries of a signal are: channel, shape (n,), -1 for nowhere; place, shape (n, axes), integers.

    spacing: of the lattice of its places, per axis, in units of the finest one.
    """

    channels: int
    channel: Array
    place: Array
    spacing: tuple[int, ...]

    @property
    def present(self) -> Array:
        return self.channel >= 0

    def box(self) -> tuple[Array, Array]:
        """The least and the greatest place, per axis."""
        inside = self.place[self.present]
        return inside.min(axis=0), inside.max(axis=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pictures:
    """The images of an increment system, by number of the signal, and what stays dense.

    stencils[k, j]: how image k >= 1 reads image j, matrices of shape (channels of k, channels of j) of float64, or of
    `flint.arb` that enclose them. dense: numbers of the other activations, in order. why: for each of them, why it is
    no image.
    """

    images: Mapping[int, Image]
    stencils: Mapping[tuple[int, int], Taps]
    dense: tuple[int, ...]
    why: Mapping[int, str] = field(default_factory=dict)

    @property
    def axes(self) -> int:
        return len(self.images[0].spacing) if self.images else 0


def pictures(system: IncrementSystem, *, exact: bool = False) -> Pictures:
    """What of a system consists of images and stencils: a prefix of its graph, from the input on.

    exact: stencils of balls that enclose the numbers, instead of float64. An activation is an image if it reads images
    only, each by a stencil, and has more than one pixel. There are no images at all where the first one is none.
    """
    at = system.positions()
    images: dict[int, Image] = {}
    stencils: dict[tuple[int, int], Taps] = {}
    dense: list[int] = []
    why: dict[int, str] = {}
    for k, a in enumerate(system.activations, start=1):
        try:
            if a.groups is not None:
                raise NoStencil("it acts on vectors")
            found = _form({at[s]: m for s, m in a.pre.blocks.items()}, images, exact)
        except NoStencil as reason:
            dense.append(k)
            why[k] = str(reason)
            continue
        source, images[k], taps = found
        if source is not None:
            images[0] = source
        stencils.update({(k, j): block for j, block in taps.items()})
    return Pictures(images=images, stencils=stencils, dense=tuple(dense), why=why)


def _form(
    blocks: Mapping[int, LinearMap], images: Mapping[int, Image], exact: bool
) -> tuple[Image | None, Image, dict[int, Taps]]:
    """The image of the input where it is found here, the image of the form, and its stencils."""
    source: Image | None = None
    image: Image | None = None
    taps: dict[int, Taps] = {}
    for j, m in sorted(blocks.items()):
        if j and j not in images:
            raise NoStencil("it reads a signal that is no image")
        for term in m.terms if isinstance(m, Sum) else (m,):
            read = _read(term, images.get(j) if source is None or j else source, exact)
            if read is None:
                continue
            if not j and 0 not in images:
                source = read.source
            if image is None:
                image = read.image
            shift = _shift(image, read.image)
            block = taps.setdefault(j, {})
            for d, matrix in read.taps.items():
                moved = tuple(a + int(b) for a, b in zip(d, shift, strict=True))
                block[moved] = block[moved] + matrix if moved in block else matrix
    if image is None or len(np.unique(image.place, axis=0)) < 2:
        raise NoStencil("it has one pixel")
    return source, image, taps


def _shift(image: Image, other: Image) -> Array:
    """By how much the places of `other` differ from those of `image`; everything else must be the same."""
    same = image.spacing == other.spacing and np.array_equal(image.channel, other.channel)
    shift = other.place - image.place if same else np.zeros((1, 1))
    if not same or bool(np.any(shift != shift[0])):
        raise NoStencil("its terms have different pixels")
    return np.asarray(shift[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Read:
    source: Image
    image: Image
    taps: Taps


@dataclass(slots=True, eq=False)
class _Located:
    """A vector on the way through a map: what is known of each of its entries.

    size: of the source. entry: the entry of the source that it is, -1 for none, while entries have only been moved;
    else None.
    present: False where the entry is zero. scales: factors, and their errors, still to be applied, entry by entry.
    taps: from the source to the vector.
    """

    size: int
    source: Image | None
    entry: Array | None
    channel: Array
    place: Array
    present: Array
    spacing: tuple[int, ...]
    scales: list[tuple[Array, Array | None]]
    taps: Taps


def _read(m: LinearMap, source: Image | None, exact: bool) -> _Read | None:
    """A map from the source (None: the input, before its image is known) as a stencil; None where it is zero."""
    size = m.shape[1]
    whole = np.arange(size)
    if source is None:
        state = _Located(size, None, whole, np.zeros(size, np.int64), np.zeros((size, 0)), whole >= 0, (), [], {})
    else:
        taps = {(0,) * len(source.spacing): _numbers(np.eye(source.channels), None, exact)}
        state = _Located(size, source, whole, source.channel, source.place, source.present, source.spacing, [], taps)
    for factor in reversed(m.factors) if isinstance(m, Composition) else (m,):
        if isinstance(factor, Selection):
            _select(state, factor.index)
        elif isinstance(factor, Diagonal):
            state.scales.append((factor.values, factor.radius))
        elif isinstance(factor, Conv):
            _convolve(state, factor, None, exact)
        elif isinstance(factor, Pool):
            if len(np.unique(factor.count)) > 1:
                raise NoStencil("an average has other weights at the border")
            _convolve(state, factor.window, float(factor.count.flat[0]), exact)
        else:
            raise NoStencil(f"it reads by a map of the kind {type(factor).__name__}")
        if not state.present.any():
            _require_pixels(state)
            return None
    if state.source is None:
        raise NoStencil("no convolution says what the pixels of the input are")
    if not state.present.all():
        raise NoStencil("some of its entries read nothing")
    channels = int(state.channel.max()) + 1
    scale = _per_channel(state, state.channel, channels, exact)
    taps = {d: scale[:, None] * matrix[:channels] for d, matrix in state.taps.items()}
    pixels = np.column_stack([state.channel, state.place])
    if len(np.unique(pixels, axis=0)) < len(pixels):
        raise NoStencil("two of its entries are the same")
    image = Image(channels=channels, channel=state.channel, place=state.place, spacing=state.spacing)
    return _Read(source=state.source, image=image, taps=taps)


def _numbers(values: Array, radius: Array | None, exact: bool) -> Array:
    """The same numbers, or balls that enclose them, in an array of the same shape."""
    if not exact:
        return np.asarray(values, dtype=np.float64)
    from flint import arb

    errors = np.zeros_like(values) if radius is None else radius
    balls = [arb(v, r) for v, r in zip(values.ravel().tolist(), errors.ravel().tolist(), strict=True)]
    result = np.empty(len(balls), dtype=object)
    result[:] = balls
    return result.reshape(values.shape)


def _select(state: _Located, index: Array) -> None:
    kept = index >= 0
    clipped = np.maximum(index, 0)
    state.present = kept & state.present[clipped]
    state.channel, state.place = state.channel[clipped], state.place[clipped]
    state.scales = [(v[clipped], None if r is None else r[clipped]) for v, r in state.scales]
    state.entry = None if state.entry is None else np.where(kept, state.entry[clipped], -1)


def _per_channel(state: _Located, channel: Array, channels: int, exact: bool) -> Array:
    """The factors that are still to be applied, one for each channel, shape (channels,)."""
    result = _numbers(np.ones(channels), None, exact)
    for parts in state.scales:
        chosen = []
        for part in parts:
            values = np.zeros(channels)
            if part is not None:
                values[channel[state.present]] = part[state.present]
                if not np.array_equal(values[channel[state.present]], part[state.present]):
                    raise NoStencil("its factors differ within a channel")
            chosen.append(values)
        result = result * _numbers(chosen[0], chosen[1], exact)
    return result


def _convolve(state: _Located, conv: Conv, count: float | None, exact: bool) -> None:
    batch, channels, *spatial = conv.input_shape
    if batch != 1:
        raise NoStencil("it is a batch of several images")
    grid = np.indices(spatial).reshape(len(spatial), -1).T
    pixel = np.tile(grid, (channels, 1))
    plane = np.repeat(np.arange(channels), len(grid))
    if state.source is None:
        _place(state, plane, pixel, channels, exact)
    _require_pixels(state)
    if len(state.spacing) != len(spatial):
        raise NoStencil("it has another number of axes")
    spacing = np.array(state.spacing)
    origin = (state.place - pixel * spacing)[state.present]
    if bool(np.any(origin != origin[0])):
        raise NoStencil("the pixels of what it reads have been moved")
    chosen = np.full(channels, -1)
    chosen[plane[state.present]] = state.channel[state.present]
    if not np.array_equal(chosen[plane[state.present]], state.channel[state.present]):
        raise NoStencil("the channels of what it reads have been mixed")
    # what is missing reads as zero here, but not in a stencil on the whole lattice: with a single tap as well
    if prod(conv.taps) > 1 or any(conv.pads) or not state.present.all():
        _require_whole(state, chosen)
    scale = _per_channel(state, plane, channels, exact)
    if count is not None:
        scale = scale * (1 / _numbers(np.array([count]), None, exact))
    pick = np.zeros((channels, len(next(iter(state.taps.values())))))
    pick[chosen >= 0, chosen[chosen >= 0]] = 1.0
    before = {d: scale[:, None] * (_numbers(pick, None, exact) @ matrix) for d, matrix in state.taps.items()}
    taps: Taps = {}
    for tap in np.ndindex(*conv.taps):
        kernel = _tap(conv, tap, exact)
        step = [(t * a - p) * int(s) for t, a, p, s in zip(tap, conv.dilations, conv.pads, state.spacing, strict=True)]
        for d, matrix in before.items():
            moved = tuple(a + b for a, b in zip(step, d, strict=True))
            block = kernel @ matrix
            taps[moved] = taps[moved] + block if moved in taps else block
    outputs = int(conv.kernel.shape[0])
    reached = np.indices(conv.output_spatial).reshape(len(spatial), -1).T
    state.taps, state.entry, state.scales = taps, None, []
    state.channel = np.repeat(np.arange(outputs), len(reached))
    state.place = np.tile(origin[0] + reached * spacing * np.array(conv.strides), (outputs, 1))
    state.present = np.ones(len(state.channel), dtype=bool)
    state.spacing = tuple(int(a * b) for a, b in zip(state.spacing, conv.strides, strict=True))


def _place(state: _Located, plane: Array, pixel: Array, channels: int, exact: bool) -> None:
    """Let the input be the image that a first convolution reads."""
    assert state.entry is not None
    own = state.entry[state.present]
    if len(np.unique(own)) < len(own):
        raise NoStencil("an input is read as two pixels")
    channel, place = np.full(state.size, -1), np.zeros((state.size, pixel.shape[1]), dtype=np.int64)
    channel[own], place[own] = plane[state.present], pixel[state.present]
    state.source = Image(channels=channels, channel=channel, place=place, spacing=(1,) * pixel.shape[1])
    state.channel, state.place, state.spacing = plane, pixel, state.source.spacing
    state.taps = {(0,) * pixel.shape[1]: _numbers(np.eye(channels), None, exact)}


def _require_pixels(state: _Located) -> None:
    """Raise NoStencil where something is read that is no pixel: an image has no entry there, but it is not zero."""
    if state.source is None or state.entry is None:
        return
    if not state.source.present[state.entry[state.entry >= 0]].all():
        raise NoStencil("it reads inputs that are not among the pixels")


def _require_whole(state: _Located, chosen: Array) -> None:
    """Raise NoStencil where a stencil on the whole lattice would not be zero at pixels that were cropped."""
    assert state.source is not None
    if state.entry is not None:
        pixels = np.bincount(state.source.channel[state.source.present], minlength=state.source.channels)
        if pixels[chosen[chosen >= 0]].sum() != np.count_nonzero(state.present):
            raise NoStencil("pixels are cropped before a convolution")
        return
    places = np.unique(state.source.place[state.source.present], axis=0)
    own = np.unique(state.place[state.present], axis=0)
    reached = np.unique(np.vstack([places - np.array(d) for d in state.taps]), axis=0)
    lattice = np.all((reached - own[0]) % np.array(state.spacing) == 0, axis=1)
    if len(np.unique(np.vstack([own, reached[lattice]]), axis=0)) > len(own):
        raise NoStencil("two linear maps follow each other, and pixels are cropped between them")
    if np.count_nonzero(state.present) < len(own) * np.count_nonzero(chosen >= 0):
        raise NoStencil("pixels are cropped before a convolution")


def _tap(conv: Conv, tap: tuple[int, ...], exact: bool) -> Array:
    """The weights at one position of the kernel, groups expanded, shape (outputs, channels)."""
    at: tuple[Any, ...] = (slice(None), slice(None), *tap)
    values = conv.kernel[at].reshape(conv.groups, -1, conv.kernel.shape[1])
    radius = None if conv.radius is None else conv.radius[at].reshape(values.shape)
    weights = _numbers(values, radius, exact)
    _, rows, columns = weights.shape
    result = _numbers(np.zeros((conv.groups * rows, conv.groups * columns)), None, exact)
    for g in range(conv.groups):
        result[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = weights[g]
    return result
