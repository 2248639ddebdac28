"""Solvers, found through entry points; each is one file and is only imported when it is asked for."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from lipmodel.backends.base import Backend, Installed, Missing
from lipmodel.errors import BackendUnavailable, UsageError

if TYPE_CHECKING:
    from lipmodel.model.model import Model

__all__ = ["Backend", "backend", "backend_names", "register_backend", "to_native"]

_REGISTERED: dict[str, type[Backend]] = {}
_BUILT_IN = {
    "native": "lipmodel.backends.native:Native",
    "highs": "lipmodel.backends.highs:Highs",
    "clarabel": "lipmodel.backends.clarabel:Clarabel",
    "scs": "lipmodel.backends.scs:SCS",
    "mosek": "lipmodel.backends.mosek:Mosek",
    "sdpa": "lipmodel.backends.sdpa:SDPA",
    "cvxopt": "lipmodel.backends.cvxopt:CVXOPT",
    "copt": "lipmodel.backends.copt:Copt",
    "cvxpy": "lipmodel.backends.cvxpy:CVXPY",
    "picos": "lipmodel.backends.picos:PICOS",
}
"""In the order in which they are asked whether they take a model; those on request are not asked."""


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


def to_native(model: Model, name: str) -> Any:
    """The model as a problem object of a modelling language, "cvxpy" or "picos", to go on with by hand.

    It keeps the names, the signs and the factors of the model, in the model's own units; sets that the language lacks
    are reformulated first. Raises UsageError for a backend without problem objects, BackendUnavailable.
    """
    solver = backend(name)
    if not hasattr(solver, "to_native"):
        raise UsageError(f"the backend {name!r} has no problem objects: choose cvxpy or picos")
    return solver.to_native(model)
