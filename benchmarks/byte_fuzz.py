"""A million mutated files: never a crash, a hang or a bare exception, and what is accepted agrees with onnxruntime.

    python -m benchmarks.byte_fuzz [--count 1000000] [--seed 0] [--minutes M] [--restart]

A run goes on where the last one with this seed ended. File number i depends on the seed and i alone, so whatever is
found can be made again: `case(seed, i)`. The files are read in a child process with 4 GiB of memory, whose death or
silence is a finding. Writes results/byte_fuzz.json and byte_fuzz.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from lipmodel.network import check
from lipmodel.result import write_atomically

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "fuzz")]  # the suite runs the same, briefly

import mutate  # noqa: E402
import oracle  # noqa: E402
import seeds  # noqa: E402

MEMORY = 4 << 30
"""Bytes of address space of the child, beyond what it starts with."""
SILENCE = 180.0
"""Seconds after which a file counts as a hang, on a machine that does other things too."""
SLOW = 5.0
"""Seconds of computing that are worth a line."""
LIFE = 20_000
"""Files after which a child is replaced."""
EVERY = 500


def case(seed: int, index: int) -> bytes:
    """File number `index`."""
    files = list(seeds.files().values())
    random = Random(f"{seed}/{index}")
    return mutate.mutated(random.choice(files), files, random)


def fresh(seed: int) -> dict[str, Any]:
    """The state of a run that has not begun."""
    counters: dict[str, Any] = {key: {} for key in ("verdicts", "kinds", "runtime")}
    lists: dict[str, Any] = {"failures": [], "mended": [], "slowest": [], "disagreed": []}
    return {"seed": seed, "done": 0, "seconds": 0.0, "peak": 0, **lists, **counters}


def child(seed: int, start: int, stop: int, pipe: int) -> None:
    """Judge files and write a line about each; never returns."""
    code = 1
    try:
        with open("/proc/self/statm") as stream:
            mapped = int(stream.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        check.limited = lambda call: call()  # this process is the one that may crash
        with os.fdopen(pipe, "w", buffering=1) as out:
            for index in range(start, stop):
                before = time.process_time()
                outcome = oracle.judge(case(seed, index))
                spent = time.process_time() - before
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                out.write(json.dumps([index, outcome.verdict, outcome.what, round(spent, 3), peak]) + "\n")
        code = 0
    finally:
        os._exit(code)


def outcomes(seed: int, start: int, stop: int) -> Iterator[tuple[int, str, str, float, int]]:
    """What came of every file from start to stop, those included that end the process they are read in."""
    while start < stop:
        last = min(stop, start + LIFE)
        ours, theirs = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(ours)
            child(seed, start, last, theirs)
        os.close(theirs)
        late = False
        try:
            for line in _lines(ours):
                index, verdict, what, spent, peak = json.loads(line)
                start = index + 1
                yield index, verdict, what, spent, peak
        except TimeoutError:
            late = True
        finally:
            os.close(ours)
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
        if start < last:
            code = os.waitstatus_to_exitcode(status)
            yield start, "failure", "a hang" if late else f"the process ended with status {code}", SILENCE * late, 0
            start += 1


def _lines(pipe: int) -> Iterator[bytes]:
    buffer = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], SILENCE)
        if not ready:
            raise TimeoutError
        part = os.read(pipe, 1 << 16)
        if not part:
            return
        *lines, buffer = (buffer + part).split(b"\n")
        yield from lines


def record(state: dict[str, Any], index: int, verdict: str, what: str, spent: float, peak: int) -> None:
    """One file into the state."""
    state["done"] = index + 1
    state["verdicts"][verdict] = state["verdicts"].get(verdict, 0) + 1
    if verdict == "failure":
        state["failures"].append(f"{index}: {what}")
    elif verdict == "disagreed":
        state["disagreed"] = [*state["disagreed"], f"{index}: {what}"][:50]
    elif verdict == "refused":
        for kind in what.split():
            state["kinds"][kind] = state["kinds"].get(kind, 0) + 1
    elif what:
        state["runtime"][what[:70]] = state["runtime"].get(what[:70], 0) + 1
    state["peak"] = max(state["peak"], peak)
    if spent > 1.0:
        state["slowest"] = sorted([*state["slowest"], [spent, verdict, index]], reverse=True)[:20]


def again(state: dict[str, Any]) -> None:
    """Judge the failures of an earlier run again; those that are mended stay on record as such."""
    kept = []
    for failure in state["failures"]:
        index = int(failure.partition(":")[0])
        ((_, verdict, what, _, _),) = outcomes(state["seed"], index, index + 1)
        if verdict == "failure":
            kept.append(f"{index}: {what}")
        else:
            state["mended"].append(failure)
            state["verdicts"]["failure"] -= 1
            state["verdicts"][verdict] = state["verdicts"].get(verdict, 0) + 1
    state["failures"] = kept


def main(argv: list[str] | None = None) -> int:
    """Run, and write byte_fuzz.json and byte_fuzz.md; the exit code is 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10**6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--restart", action="store_true", help="forget the files that were read already")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    saved = args.out / "byte_fuzz.json"
    state = fresh(args.seed)
    if saved.exists() and not args.restart:
        before = json.loads(saved.read_text())
        state = before if before["seed"] == args.seed else state
    again(state)
    start = mark = time.monotonic()
    for outcome in outcomes(args.seed, state["done"], args.count):
        record(state, *outcome)
        now = time.monotonic()
        over = now - start > 60.0 * args.minutes
        if over or state["done"] % EVERY == 0:
            state["seconds"] += now - mark
            mark = now
            save(state, args.out)
        if over:
            break
    state["seconds"] += time.monotonic() - mark
    save(state, args.out)
    return 1 if state["failures"] else 0


def save(state: dict[str, Any], folder: Path) -> None:
    write_atomically(folder / "byte_fuzz.json", json.dumps(state, indent=1) + "\n")
    write_atomically(folder / "byte_fuzz.md", report(state))


def report(state: dict[str, Any]) -> str:
    """The state in words and tables."""
    verdicts = (
        dict.fromkeys(("refused", "disagreed", "accepted", "overflow", "no runtime", "failure"), 0) | state["verdicts"]
    )
    slow = [entry for entry in state["slowest"] if entry[0] > SLOW]
    lines = [
        "# Mutated files",
        "",
        f"Seed {state['seed']}: {state['done']} files made from {len(seeds.files())} small models of our own, by "
        f"changes to bytes and to fields, in {state['seconds'] / 3600:.2f} hours on one core "
        f"({state['done'] / max(state['seconds'], 1e-9):.0f} files a second); "
        f"at most {state['peak'] / 2**10:.0f} MiB of memory.",
        "",
        f"**{len(state['failures'])} failures** (crashes, hangs, bare exceptions, accepted files that onnxruntime "
        "evaluates to something else).",
        "",
        *(f"- {failure}" for failure in state["failures"][:50]),
        "",
        f"{len(state['mended'])} earlier ones are mended.",
        "",
        *(f"- {failure}" for failure in state["mended"][:50]),
        "",
        "| verdict | files |",
        "|---|---|",
        f"| refused with reasons | {verdicts['refused']} |",
        f"| refused as onnxruntime or onnx.reference give something else | {verdicts['disagreed']} |",
        f"| accepted, and equal to a run of the whole file by onnxruntime | {verdicts['accepted']} |",
        f"| accepted, nothing finite in single precision to compare | {verdicts['overflow']} |",
        f"| accepted, but onnxruntime cannot run the file as a whole | {verdicts['no runtime']} |",
        f"| failures | {verdicts['failure']} |",
        "",
        "Where onnxruntime cannot run the file as a whole, it (or onnx.reference, in double precision) has run the",
        "nodes that the output depends on, at import, and agreed.",
        "",
        "Where a runtime gives something else, one of the two is wrong; the first of these:",
        "",
        *(f"- {entry}" for entry in state["disagreed"][:10]),
        "",
        f"Reasons: {_counted(state['kinds'])}.",
        "",
        f"{len(slow)} of the 20 slowest took more than {SLOW:.0f} s of computing: "
        + ("; ".join(f"{s:.1f} s (file {i}, {v})" for s, v, i in slow) or "none")
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items(), key=lambda entry: -entry[1]))


if __name__ == "__main__":
    raise SystemExit(main())
