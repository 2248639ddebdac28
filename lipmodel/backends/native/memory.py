"""How many bytes the path follower will take, and how many there are: known before anything is allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lipmodel.machine import available_memory

if TYPE_CHECKING:
    from lipmodel.backends.native.chain import Chain
    from lipmodel.backends.native.program import Program

SHARE = 0.6  # of the memory available that a solver may take unless told otherwise
DOUBLE = 8
DENSE = 5  # matrices of the order of the unknowns that are alive at once: P, its images, the Hessian and its factor
BAND = 16  # matrices of the shape of every layer: the factors and inverses of a few points


def memory_limit(memory: int | None) -> int:
    """Bytes that a solver may take: `memory`, or a share of what is available where that is None or not positive."""
    return memory if memory is not None and memory > 0 else int(SHARE * available_memory())


def chain_bytes(chain: Chain) -> int:
    """Bytes that the path follower takes on a chain."""
    unknowns = chain.neurons + chain.cost.size
    band = sum(rows * max(rows, columns) for rows, columns in (weight.shape for weight in chain.weights))
    return int(DOUBLE * (DENSE * unknowns**2 + BAND * band))


def program_bytes(program: Program) -> int:
    """Bytes that the path follower takes on any other program; its fronts may fill the whole matrix."""
    size, rows = sum(program.sizes), len(program.shift)
    return int(DOUBLE * (3 * size**2 + size * rows + 2 * rows**2 + 2 * program.unknowns**2))
