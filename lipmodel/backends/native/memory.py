"""How many bytes the path follower will take, and how many there are: known before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipmodel.backends.native.chain import Chain
    from lipmodel.backends.native.program import Program

SHARE = 0.6  # of the memory available that a solver may take unless told otherwise
FALLBACK = 4 << 30  # bytes, where the system does not say what it has
DOUBLE = 8
DENSE = 5  # matrices of the order of the unknowns that are alive at once: P, its images, the Hessian and its factor
BAND = 16  # matrices of the shape of every layer: the factors and inverses of a few points


def memory_limit(memory: int | None) -> int:
    """Bytes that a solver may take: `memory`, or a share of what is available where that is None or not positive."""
    return memory if memory is not None and memory > 0 else int(SHARE * available())


def available() -> int:
    """Bytes of memory that can still be had, by /proc/meminfo and by the limits of the control groups."""
    found = [*_system(), *_groups()]
    return max(min(found), 0) if found else FALLBACK


def chain_bytes(chain: Chain) -> int:
    """Bytes that the path follower takes on a chain."""
    unknowns = chain.neurons + chain.cost.size
    band = sum(rows * max(rows, columns) for rows, columns in (weight.shape for weight in chain.weights))
    return int(DOUBLE * (DENSE * unknowns**2 + BAND * band))


def program_bytes(program: Program) -> int:
    """Bytes that the path follower takes on any other program; its fronts may fill the whole matrix."""
    size, rows = sum(program.sizes), len(program.shift)
    return int(DOUBLE * (3 * size**2 + size * rows + 2 * rows**2 + 2 * program.unknowns**2))


def _system() -> Iterator[int]:
    for line in _text(Path("/proc/meminfo")).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable" and rest.split()[:1] and rest.split()[0].isdigit():
            yield 1024 * int(rest.split()[0])


def _groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What every control group that this process is in has left, for both versions of them."""
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = base / path.strip("/")
        for folder in (group, *group.parents):
            limit, used = (_text(folder / name).strip() for name in names)
            if limit.isdigit() and used.isdigit():
                yield int(limit) - int(used) + _reclaimable(folder)
            if folder == base:
                break


def _reclaimable(folder: Path) -> int:
    """Bytes of cached files, which count as used."""
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.strip().isdigit():
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
