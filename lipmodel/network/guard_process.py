"""Work of foreign code on a file, in a process of its own with limits on time and memory."""

from __future__ import annotations

from collections.abc import Callable

from lipmodel.child import in_child
from lipmodel.errors import Reason
from lipmodel.machine import CAN_FORK, available_memory

PATIENCE = 120.0
"""Seconds for a comparison; a runtime in compiled code takes a few for large networks."""


def limited(call: Callable[[], Reason | None]) -> Reason | None:
    """call() in a forked process, or the reason that it died or is late; here where processes cannot be forked."""
    if not CAN_FORK:
        return call()

    def inside() -> Reason | None:
        _limit_memory()
        return call()

    outcome = in_child(inside, seconds=PATIENCE, quiet=True)
    if outcome.ended == "done":
        reason: Reason | None = outcome.value
        return reason
    ends = {"late": f"is not done after {PATIENCE:.0f} s", "died": "crashed", "raised": f"failed: {outcome.message}"}
    message = f"the comparison with a run of the file {ends[outcome.ended]}"
    hint = "with onnxruntime installed it may be faster; check=False leaves it out"
    return Reason(kind="check", where="", message=message, hint=hint)


def _limit_memory() -> None:
    """No more than the machine has left, so that a failed allocation ends this process and no other."""
    import resource

    with open("/proc/self/statm") as stream:
        mapped = int(stream.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = mapped + available_memory()
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
