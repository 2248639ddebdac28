"""Which activations keep the signs of the products that pass through them: a choice, sound whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Literal, get_args

from lipmodel.errors import UsageError
from lipmodel.network.conv import Conv, Pool
from lipmodel.network.linear import Composition, LinearMap, Sum, Transposed

if TYPE_CHECKING:
    from lipmodel.network.increments import IncrementSystem

Treatment = Literal["auto", "explicit", "implicit"]

LARGEST = 4_000_000
"""Entries of a product above which it is not formed."""
BUDGET = 20.0
"""Seconds of exact arithmetic, roughly, that products may cost a verifier before the next activation ends them."""
_DENSE_RATE, _SPARSE_RATE = 2e8, 3e6


def signed(system: IncrementSystem, treatment: str = "auto", maxima: Collection[int] = ()) -> tuple[bool, ...]:
    """For every activation, whether products of matrices go on through it; never through maxima (numbers from 1).

    explicit: all of them; implicit: those that stand between matrices, not next to a convolution; auto: as long as the
    products stay small. Raises UsageError for another word.
    """
    if treatment not in get_args(Treatment):
        raise UsageError(f"convolutions={treatment!r}: choose one of {', '.join(get_args(Treatment))}")
    if treatment == "explicit":
        return tuple(k not in maxima for k in range(1, len(system.activations) + 1))
    if treatment == "implicit":
        beside = set()
        for form, k in [*((a.pre, i) for i, a in enumerate(system.activations)), (system.output, None)]:
            for signal, map in form.blocks.items():
                if _convolves(map):
                    beside |= {k, system.positions()[signal] - 1}
        return tuple(k not in beside and k + 1 not in maxima for k in range(len(system.activations)))
    return _affordable(system, maxima)


def _affordable(system: IncrementSystem, maxima: Collection[int]) -> tuple[bool, ...]:
    """Greedily, in topological order: an activation is signed if the products through it stay small."""
    spent = 0.0

    def fits(number: int, largest: float, seconds: float) -> bool:
        nonlocal spent
        chosen = number not in maxima and largest <= LARGEST and spent + seconds <= BUDGET
        spent += seconds if chosen else 0.0
        return chosen

    return _predicted(system, fits)


def largest_product(system: IncrementSystem, unsigned: Collection[int]) -> float:
    """Entries, by prediction, of the largest matrix that is formed for these unsigned activations (from 1)."""
    most = 0.0

    def follow(number: int, largest: float, seconds: float) -> bool:
        nonlocal most
        chosen = number not in unsigned
        most = max(most, largest if chosen else 0.0)
        return chosen

    _predicted(system, follow)
    return most


def _predicted(system: IncrementSystem, decide: Callable[[int, float, float], bool]) -> tuple[bool, ...]:
    """What `decide` says of every activation, by its number, the entries of the largest matrix and the seconds."""
    at = system.positions()
    sizes = [signal.size for signal in system.signals]
    forms = [a.pre for a in system.activations] + [system.output]
    rows = [*sizes[1:], system.output.size]
    entries = [{at[signal]: float(map.entries) for signal, map in form.blocks.items()} for form in forms]  # of F_kj
    chosen = []
    for i, activation in enumerate(system.activations, start=1):
        products: list[tuple[int, int, float]] = []
        largest = max(entries[i - 1].values(), default=0.0)
        seconds = sum(entries[i - 1].values()) / _SPARSE_RATE
        for k, form in enumerate(forms[i:], start=i):
            reader = form.blocks.get(activation.signal)
            if reader is None:
                continue
            largest = max(largest, reader.entries)
            for j, inner in entries[i - 1].items():
                count = reader.entries * inner / max(1, sizes[i])
                full = float(rows[k]) * sizes[j]
                products.append((k, j, min(full, count)))
                largest = max(largest, products[-1][2])
                seconds += min(count / _SPARSE_RATE, full * sizes[i] / _DENSE_RATE)
        chosen.append(decide(i, largest, seconds))
        if chosen[-1]:
            for k, j, count in products:
                entries[k][j] = min(float(rows[k]) * sizes[j], entries[k].get(j, 0.0) + count)
    return tuple(chosen)


def _convolves(map: LinearMap) -> bool:
    if isinstance(map, Composition | Sum):
        return any(_convolves(part) for part in (map.factors if isinstance(map, Composition) else map.terms))
    return isinstance(map.map if isinstance(map, Transposed) else map, Conv | Pool)


def is_chain(system: IncrementSystem) -> bool:
    """Whether every activation, and the output, reads nothing but what comes right before it."""
    forms = [*(a.pre for a in system.activations), system.output]
    return all(tuple(form.blocks) == (signal,) for form, signal in zip(forms, system.signals, strict=True))
