"""The conformance suite of backends: problems with known optima, and everything that may go wrong.

    from lipmodel.testing.backends import parametrize_with_checks

    @parametrize_with_checks(MyBackend())
    def test_conformance(backend, check):
        check(backend)

Checks have names, tags, and the version of the suite that they came with, so that a suite can be pinned. What a backend
is known not to do is declared as an expected failure, and an expected failure that passes is an error.
A structured backend may refuse a model, with a reason; a general one only what its cones do not reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lipmodel.backends import backend as find_backend
from lipmodel.backends.base import Backend, Installed
from lipmodel.errors import UsageError
from lipmodel.testing.conduct import CONDUCT, certifiable, optimum
from lipmodel.testing.models import NETWORK_PROBLEMS, PAIRS
from lipmodel.testing.models import decoupled as decoupled
from lipmodel.testing.models import lipsdp as lipsdp
from lipmodel.testing.models import mixed_norm as mixed_norm
from lipmodel.testing.programs import PROGRAMS

SUITE_VERSION = 2
"""Checks are only ever added, each with the version it came with; a new one does not break a suite that is pinned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendCheck:
    """One named check; calling it with a backend raises AssertionError where the backend does not conform.

    It returns the reason for which the backend refuses the model, or None.
    """

    name: str
    run: Callable[[Backend], str | None]
    since: int
    tags: frozenset[str]

    def __str__(self) -> str:
        return self.name

    def __call__(self, backend: Backend) -> str | None:
        return self.run(backend)


def backend_checks(*, version: int = SUITE_VERSION, tags: Iterable[str] = ()) -> list[BackendCheck]:
    """The checks of a version of the suite, or those with one of the tags.

    Tags: conduct, optimum, certifiable; linear, cone, matrix, network. Each check builds its own problem and takes well
    under a second with an interior-point solver.
    """
    checks = [
        BackendCheck(name=name, run=conduct.run, since=conduct.since, tags=frozenset({"conduct"}))
        for name, conduct in CONDUCT.items()
    ]
    checks += [
        BackendCheck(name=name, run=optimum(p.problem, factor=p.slack), since=p.since, tags=p.tags)
        for name, p in PROGRAMS.items()
    ]
    checks += [
        BackendCheck(name=name, run=optimum(problem), since=1, tags=frozenset({"optimum", "network"}))
        for name, problem in NETWORK_PROBLEMS.items()
    ]
    checks += [
        BackendCheck(
            name=f"{kind}-{p}-{q}",
            run=certifiable(kind, p, q),
            since=1,
            tags=frozenset({"certifiable", "network"}),
        )
        for kind in ("chain", "mixed", "residual", "scaled")
        for p, q in PAIRS
    ]
    wanted = frozenset(tags)
    return [c for c in checks if c.since <= version and (not wanted or c.tags & wanted)]


def parametrize_with_checks(
    *backends: Backend | str,
    expected_failures: Mapping[str, str] | None = None,
    version: int = SUITE_VERSION,
    tags: Iterable[str] = (),
) -> Any:
    """A pytest decorator: one test per backend and check, with the arguments `backend` and `check`.

    expected_failures: reasons by the names of checks, strictly: one that passes is an error, and so is a name that no
    check has (UsageError). A backend that is not installed is skipped, and so is a check whose model it refuses.
    """
    import pytest

    checks = backend_checks(version=version, tags=tags)
    failures = dict(expected_failures or {})
    unknown = failures.keys() - {c.name for c in backend_checks()}
    if unknown:
        raise UsageError(f"expected failures of checks that do not exist: {', '.join(sorted(unknown))}")
    cases = []
    for given in backends:
        solver = find_backend(given, usable=False)
        state = solver.available()
        absent = [] if isinstance(state, Installed) else [pytest.mark.skip(reason=str(state))]
        for check in checks:
            marks = list(absent)
            if check.name in failures:
                marks.append(pytest.mark.xfail(reason=failures[check.name], strict=True, raises=AssertionError))
            cases.append(pytest.param(solver, _Skipping(check), id=f"{solver.name}-{check}", marks=marks))
    return pytest.mark.parametrize(("backend", "check"), cases)


@dataclass(frozen=True, slots=True)
class _Skipping:
    """A check that skips the test where the backend refuses the model."""

    check: BackendCheck

    def __call__(self, backend: Backend) -> None:
        reason = self.check(backend)
        if reason is not None:
            import pytest

            pytest.skip(f"refused: {reason}")
