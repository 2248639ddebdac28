"""What a backend is told: its own settings, checked, and those that reach the solver as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lipmodel.backends.base import Availability, BackendOption, Capabilities, Installed, Missing, SolveOptions
from lipmodel.errors import UsageError

MAX_ITERATIONS = BackendOption(name="max_iterations", default=0, help="iterations at most (0: the solver's own limit)")
THREADS = BackendOption(name="threads", default=0, help="threads of the solver (0: its own choice)")
LOG_LEVEL = BackendOption(name="log_level", default=0, help="how much of the solver's own log is shown (0: none)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """own: a value for every option that the backend declares; passed: names and values for the solver itself."""

    own: Mapping[str, Any]
    passed: Mapping[str, Any]
    verbose: bool

    @property
    def max_iterations(self) -> int:
        return int(self.own[MAX_ITERATIONS.name])

    @property
    def threads(self) -> int:
        return int(self.own[THREADS.name])

    @property
    def log_level(self) -> int:
        """At least one where the user asked to see the log."""
        return max(int(self.own[LOG_LEVEL.name]), int(self.verbose))


def read_settings(
    name: str, capabilities: Capabilities, options: SolveOptions, known: Mapping[str, Any] | None = None
) -> Settings:
    """Split and check what was asked for.

    known: the solver's own settings with their defaults; None where only the solver can tell what it knows, and
    everything that is not declared is passed. Raises UsageError for names that nobody knows and for wrong types.
    """
    declared = {option.name: option for option in capabilities.options}
    own: dict[str, Any] = {option.name: option.default for option in capabilities.options}
    if options.max_iterations is not None and MAX_ITERATIONS.name in own:
        own[MAX_ITERATIONS.name] = options.max_iterations
    passed: dict[str, Any] = {}
    for key, value in options.native.items():
        if key in declared:
            own[key] = _coerced(name, key, value, declared[key].default, declared[key].choices)
        elif known is None:
            passed[key] = value
        elif key in known:
            passed[key] = _coerced(name, key, value, known[key])
        else:
            names = ", ".join(sorted({*declared, *known}))
            raise UsageError(f"the backend {name!r} has no option {key!r}; its options: {names}")
    return Settings(own=own, passed=passed, verbose=options.verbose)


def check_options(backend: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The options, of the types of the defaults `known`. Raises UsageError, naming what there is."""
    checked = {}
    for key, value in given.items():
        if key not in known:
            raise UsageError(f"the backend {backend!r} has no option {key!r}; its options: {', '.join(sorted(known))}")
        checked[key] = _coerced(backend, key, value, known[key])
    return checked


def _coerced(backend: str, key: str, value: Any, default: Any, choices: tuple[str, ...] = ()) -> Any:
    """The value, of the type of the default. Raises UsageError."""
    kind = type(default)
    wrong = f"option {key} of {backend!r}: {value!r} is not a {kind.__name__} (default {default!r})"
    if choices and str(value) not in choices:
        raise UsageError(f"option {key} of {backend!r}: {value!r} is none of {', '.join(choices)}")
    if kind is bool and value not in (True, False):
        raise UsageError(wrong)
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise UsageError(wrong)
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(wrong) from None


def distribution_state(module: str, distribution: str, extra: str) -> Availability:
    """Whether a package is installed, and its version, without importing it."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    if find_spec(module) is None:
        return Missing(extra=extra)
    try:
        return Installed(version=version(distribution))
    except PackageNotFoundError:
        return Installed()
