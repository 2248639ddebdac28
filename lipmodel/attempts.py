"""One method at a time in a process of its own, with a time limit that is kept: for comparisons.

The process that compares never builds a model and never starts a solver: what hangs, crashes, exits or takes all the
memory ends its own process, and the others go on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lipmodel.clock import Clock
from lipmodel.errors import LipmodelError, SoundnessError
from lipmodel.machine import CAN_FORK

if TYPE_CHECKING:
    from lipmodel.backends.base import Backend
    from lipmodel.lower.witness import Witness
    from lipmodel.network.graph import Network
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.question import Request, Systems
    from lipmodel.result import Result
    from lipmodel.spec import Spec

Send = Callable[[Any], None]
Ended = Literal["done", "not applicable", "did not fit", "failed"]

TOLD = 0.75
"""Part of its time that a method is told to keep to; the rest is for proofs that take longer than planned."""
INTERRUPTED = "interrupted"
AFTER_INTERRUPT = 3.0
"""Seconds in which an interrupted method may still prove what it has."""
_PACKAGES = ("lipmodel.backends.native", "lipmodel.elimination", "lipmodel.ranges")
_MODULES = (
    "scipy.linalg", "threadpoolctl", "lipmodel.backends.conic", "lipmodel.certify.norm_rules",
    "lipmodel.certify.product_rule", "lipmodel.certify.quick", "lipmodel.certify.repair", "lipmodel.lower.search",
    "lipmodel.model.qc", "lipmodel.pipeline",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """How an attempt ended: with a value, or why not."""

    ended: Ended
    value: Any = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a method is: in closed form or not, with a solver or not, what it should cost, why it cannot be tried."""

    closed: bool = False
    solver: bool = True
    cost: float
    refusal: str = ""


class Attempts:
    """Runs calls in processes of their own; `interrupted` is set by the first interrupt, after which none is begun."""

    def __init__(self, *, verbose: bool) -> None:
        self.verbose = verbose
        self.interrupted = False

    def run(self, call: Callable[[Send], Any], *, seconds: float, received: Send) -> Outcome:
        """call(send) in a forked process, which is killed after `seconds`, and soon after an interrupt.

        received: is given what the call sends. Raises SoundnessError where the call does.
        """
        if not CAN_FORK:
            outcome = _settled(call, received)
            self.interrupted |= outcome.reason == INTERRUPTED
            return outcome
        from lipmodel.parallel import forked

        end = time.monotonic() + seconds
        outcome = none = Outcome(ended="did not fit", reason=f"no answer within {seconds:.3g} s")

        def finished(item: int, value: Outcome) -> None:
            nonlocal outcome
            outcome = value

        def lost(item: int, status: int | None) -> None:
            nonlocal outcome
            outcome = Outcome(ended="failed", reason=_death(status))

        def stop() -> None:
            nonlocal end, outcome
            self.interrupted = True
            end = min(end, time.monotonic() + AFTER_INTERRUPT)
            if outcome is none:
                outcome = Outcome(ended="did not fit", reason=INTERRUPTED)

        try:
            forked(
                [0],
                partial(_work, call, verbose=self.verbose),
                workers=1,
                received=received,
                finished=finished,
                interrupted=stop,
                late=lambda: time.monotonic() > end,
                lost=lost,
            )
        except KeyboardInterrupt:
            self.interrupted = True
        if isinstance(outcome.value, SoundnessError):
            raise outcome.value
        return outcome


def _work(call: Callable[[Send], Any], item: int, send: Send, *, verbose: bool) -> Outcome:
    _settle_in(verbose)
    return _settled(call, send)


def _settle_in(verbose: bool) -> None:
    """Nothing of this process reaches the answer on stdout, and memory that is short is taken from here first."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")
    sink = 2 if verbose else os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    # the parent's streams may be locked for ever: what draws progress there has no life here
    sys.stdout = sys.stderr = open(1, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115


def _settled(call: Callable[[Send], Any], send: Send) -> Outcome:
    try:
        return Outcome(ended="done", value=call(send))
    except KeyboardInterrupt:
        return Outcome(ended="did not fit", reason=INTERRUPTED)
    except SoundnessError as error:
        return Outcome(ended="failed", value=SoundnessError(str(error)), reason=str(error))
    except LipmodelError as error:
        if isinstance(error.__cause__, MemoryError):
            return Outcome(ended="did not fit", reason="out of memory")
        kind: Ended = "not applicable" if error.__cause__ is None else "failed"
        return Outcome(ended=kind, reason=str(error))
    except MemoryError:
        return Outcome(ended="did not fit", reason="out of memory")
    except BaseException as error:  # a formulation of a third party may end in any way
        return Outcome(ended="failed", reason=f"{type(error).__name__}: {error}")


def _death(status: int | None) -> str:
    if status is not None and status < 0:
        why = ", as the system does when memory is short" if status == -9 else ""
        return f"its process was ended by signal {-status}{why}"
    return f"its process exited with status {status} and no answer"


def warm_up() -> None:
    """Import once what most methods need, so that no method's time is spent on it. No solver is among them."""
    from importlib import import_module
    from pkgutil import iter_modules

    inside = [f"{name}.{found.name}" for name in _PACKAGES for found in iter_modules(import_module(name).__path__)]
    for name in (*_MODULES, *inside):
        import_module(name)


def outlook(
    system: IncrementSystem, request: Request, backend: Backend | None, send: Callable[[Outlook], None]
) -> None:
    """Sends Outlooks of a method on a system (of chosen outputs), ever better ones; nothing is solved."""
    from collections.abc import Iterator

    from lipmodel.certify.evidence import Evidence
    from lipmodel.certify.lmi import Multipliers
    from lipmodel.choice import choose_backend
    from lipmodel.families import measured, member_spec, members, restricted
    from lipmodel.member import build, provable
    from lipmodel.model.model import Model
    from lipmodel.model.norm_expression import NormExpression

    spec = measured(request.spec)
    family = members(system, spec, request.formulation.norms, request.formulation.name)
    first = restricted(system, family[0])
    if not first.output.blocks:
        return send(Outlook(closed=True, solver=False, cost=0.0))
    order = float(first.order)
    cubic = len(family) * order**3
    send(Outlook(cost=cubic))
    built = build(first, request.formulation, member_spec(spec, family[0]))
    if isinstance(built, NormExpression):
        return send(Outlook(closed=True, solver=False, cost=len(family) * order))
    if isinstance(built, Evidence):
        return send(Outlook(solver=False, cost=10.0 * cubic))
    if not provable(first):
        too_large = f"order {first.order} is too large for a matrix inequality"
        return send(Outlook(solver=isinstance(built, Model), cost=cubic, refusal=too_large))
    if isinstance(built, Iterator):
        return send(Outlook(solver=False, cost=cubic))
    if isinstance(built, Multipliers):
        return send(Outlook(closed=True, solver=False, cost=len(family) * order**2))
    send(Outlook(cost=cubic))
    if backend is None:
        chosen, refusals = choose_backend(built)
        if chosen is None:
            why = "; ".join(f"{name}: {reason}" for name, reason in refusals)
            send(Outlook(cost=cubic, refusal=f"no backend takes it ({why})"))
    return None


def solve_alone(
    network: Network,
    found: Systems,
    request: Request,
    backend: Backend | None,
    seconds: float,
    settings: dict[str, Any],
    send: Send,
) -> Result:
    """The formulation's own bound, without a witness, in `seconds`; what happens is sent."""
    from lipmodel.families import measured
    from lipmodel.member import Run
    from lipmodel.pipeline import answer

    run = Run(
        formulation=request.formulation,
        spec=measured(request.spec),
        clock=Clock(started=time.monotonic(), limit=TOLD * seconds),
        backend=backend,
        assurance="proved",
        native={},
        say=send,
        progress=lambda state: send(replace(state, values=None)),
        alone=True,
        **settings,
    )
    return answer(network, found, request, run, witness=False)


def witness(network: Network, spec: Spec, seconds: float, target: float, send: Send) -> Witness | None:
    """A witness pair for the lower bound, found in `seconds`."""
    from lipmodel.lower.search import search

    return search(
        network,
        spec.input_norm,
        spec.output_norm,
        outputs=spec.outputs,
        domain=spec.domain,
        time_limit=seconds,
        target=target,
    )
