"""Solvers, found through entry points; each is one file and is only imported when it is asked for."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points

from lipmodel.backends.base import Backend, Installed, Missing
from lipmodel.errors import BackendUnavailable, UsageError

__all__ = ["Backend", "backend", "backend_names", "register_backend"]

_REGISTERED: dict[str, type[Backend]] = {}
_BUILT_IN = {
    "native": "lipmodel.backends.native:Native",
    "clarabel": "lipmodel.backends.clarabel:Clarabel",
    "scs": "lipmodel.backends.scs:SCS",
}


def register_backend(cls: type[Backend]) -> type[Backend]:
    """Class decorator: make a backend known under its name, for this process."""
    _REGISTERED[cls.name] = cls
    return cls


@lru_cache(maxsize=1)
def _entry_points() -> dict[str, str]:
    found = dict(_BUILT_IN)
    found.update({e.name: e.value for e in entry_points(group="lipmodel.backends")})
    return found


def backend_names() -> list[str]:
    """Every known backend, the built-in ones first."""
    return list(dict.fromkeys([*_entry_points(), *_REGISTERED]))


def backend(name: str | Backend, *, usable: bool = True) -> Backend:
    """The backend of that name. Raises UsageError if unknown; BackendUnavailable if `usable` and it is not."""
    if not isinstance(name, str):
        return name
    if name in _REGISTERED:
        solver: Backend = _REGISTERED[name]()
    elif name in _entry_points():
        module, _, attribute = _entry_points()[name].partition(":")
        from importlib import import_module

        solver = getattr(import_module(module), attribute)()
    else:
        raise UsageError(f"unknown backend {name!r}: the known ones are {', '.join(backend_names())}")
    if usable:
        state = solver.available()
        if isinstance(state, Missing):
            raise BackendUnavailable(f"the backend {name!r} is not installed: pip install 'lipmodel[{state.extra}]'")
        if not isinstance(state, Installed):
            raise BackendUnavailable(f"the backend {name!r} is {state}")
    return solver
