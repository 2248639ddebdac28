"""The benchmark of Chen, Lasserre, Magron & Pauwels (2020, arXiv 2002.03657): ours against the published values.

Networks (n, n, 1) and (n, n, 10, 1) with band matrices, norm inf:1. Every published cell of the networks that the
oracle file lists is met by the fastest of our formulations that is at least as tight; where none is, by the tightest.

    python benchmarks/certdnn.py ORACLES OUTPUT.md [--most N]

ORACLES: the folder with certdnn.json and generate.py. Seconds are CPU seconds of one process, the proof included; the
published ones are solver times. Not part of the tests: minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import sys
import time
from dataclasses import dataclass
from typing import Any

import lipmodel as lm

CLOSE = 1e-4
"""Relative accuracy of the published numbers."""
REACH = 10.0
"""The box of SHOR and HR-2 is [-10, 10]^n."""
PUBLISHED = {"shor": "SHOR", "hr2": "HR-2", "HRs": "HR-2", "lp3": "LipOpt-3", "lp4": "LipOpt-4"}
Key = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """One bound of ours."""

    name: str
    bound: float
    seconds: float


def module(path: pathlib.Path) -> Any:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location("certdnn_recipes", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


def listed(data: dict[str, Any]) -> list[Key]:
    """(n, s, seed, hidden layers) of the networks that have an oracle, small ones first."""
    found = set()
    for oracle in data["oracles"]:
        args = oracle["network"]["args"]
        found.add((args["n"], args["s"], args["seed"], args.get("depth", 1)))
    return sorted(found, key=lambda key: (key[3], *key[:3]))


def questions(key: Key) -> list[tuple[str, dict[str, Any]]]:
    """The formulations that take seconds on a network, and their questions."""
    n, _, _, depth = key
    everywhere: dict[str, Any] = {"norm": "inf:1"}
    box = {**everywhere, "domain": lm.Box(lo=(-REACH,) * n, hi=(REACH,) * n)}
    found = [("geolip", everywhere), ("lipopt", everywhere)]
    if (n <= 20 and depth == 1) or n <= 5:
        found.append(("geolip-triangle", everywhere))
    if n <= 10 and depth == 1:
        found.append(("sos", everywhere))
    if depth == 1 or n <= 5:
        found.append(("shor", box))
    if n <= 20 and depth == 1:
        found.append(("hr2", box))
    return found


def bounds(net: Any, key: Key, seconds: float) -> list[Ours]:
    """Our bounds of one network, each proved, within a time limit each."""
    found = []
    for name, question in questions(key):
        start = time.process_time()
        try:
            r = lm.solve(net, name, witness=False, jobs=1, time_limit=seconds, **question)
        except lm.UsageError as error:
            print(f"  {name}: {error}", flush=True)
            continue
        found.append(Ours(name=name, bound=r.bound, seconds=time.process_time() - start))
        print(f"  {name}: {r.bound:.9f} {found[-1].seconds:.2f} s", flush=True)
    return found


def met(value: float, ours: list[Ours]) -> Ours:
    """The fastest bound that is no larger than a published one, or the least."""
    fine = [o for o in ours if o.bound <= value * (1 + CLOSE)]
    return min(fine, key=lambda o: o.seconds) if fine else min(ours, key=lambda o: o.bound)


def verdict(value: float, least: float, ours: float) -> str:
    if value < least * (1 - CLOSE):
        return "published value is below the constant"
    if ours > value * (1 + CLOSE):
        return f"looser by {ours / value - 1:.1e}"
    return "tighter" if ours < value * (1 - CLOSE) else "equal"


def rows(key: Key, row: dict[str, Any], ours: list[Ours]) -> list[str]:
    """The lines of the table of one network."""
    n, s, seed, depth = key
    name = f"({n},{n},1)" if depth == 1 else f"({n},{n},10,1)"
    exact = row.get("fgl")
    lines = []
    for column, method in PUBLISHED.items():
        value, published = row.get(f"pub_{column}"), row.get(f"sec_{column}")
        if value is None:
            continue
        # linear programs bound the constant over all slopes, which HR and SHOR may go below
        least = (exact if exact is not None and column.startswith("lp") else row["pub_sampled"]) or 0.0
        own = met(max(value, least), ours)
        ratio = f"{published / own.seconds:.1f}" if published else "-"
        shown = "-" if published is None else f"{published:.3g}"
        lines.append(
            f"| {name} s={s} seed {seed} | {method} | {value:.8g} | {shown} | {own.name} | {own.bound:.8g} | "
            f"{own.seconds:.2f} | {verdict(value, least, own.bound)} | {ratio} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("oracles", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--most", type=float, default=20.0, help="seconds for each bound")
    given = parser.parse_args()
    data = json.loads((given.oracles / "certdnn.json").read_text())
    recipes = module(given.oracles / "generate.py")
    tables = [{tuple(row[:3]): dict(zip(t["columns"], row, strict=True)) for row in t["rows"]} for t in data["tables"]]
    lines, all_lines, below = [], [], []
    small = lm.load(recipes.certdnn(5, 4, 0, 1).build("certdnn")[0])
    bounds(small, (5, 4, 0, 1), given.most)  # imports and first calls are not measured
    start = time.process_time()
    for key in listed(data):
        row = tables[key[3] - 1][key[:3]]
        print(key, flush=True)
        net = lm.load(recipes.certdnn(*key).build("certdnn")[0])
        ours = bounds(net, key, given.most)
        if row.get("fgl") is not None:
            below += [(key, o) for o in ours if o.name not in ("shor", "hr2") and o.bound < row["fgl"] * (1 - 1e-9)]
        below += [(key, o) for o in ours if o.bound < row["pub_sampled"]]
        lines += rows(key, row, ours)
        known = "-" if row.get("fgl") is None else f"{row['fgl']:.9g}"
        all_lines += [f"| {key} | {known} | {o.name} | {o.bound:.9g} | {o.seconds:.2f} |" for o in ours]
    spent = time.process_time() - start
    given.output.write_text(page(lines, all_lines, below, spent))


def page(lines: list[str], all_lines: list[str], below: list[Any], spent: float) -> str:
    """The results as Markdown."""
    counts = {
        word: sum(f"| {word}" in line for line in lines) for word in ("tighter", "equal", "looser", "published value")
    }
    looser = [f"{part[2].strip()} {part[1].strip()}" for part in (x.split("|") for x in lines) if "looser" in part[8]]
    slower = sum(1 for line in lines if line.split("|")[-2].strip() not in ("-",) and float(line.split("|")[-2]) < 1.0)
    return "\n".join(
        [
            "# CertDNN: ours against the published values",
            "",
            "Networks, values and times of Chen, Lasserre, Magron & Pauwels (2020, arXiv 2002.03657), norm inf:1, made "
            "by `benchmarks/certdnn.py`.",
            "Published seconds are solver times on a 4-core i5-6300HQ; ours are CPU seconds of one process on a shared "
            "machine, with reading the network and the exact proof. Ratio: published / ours.",
            "For every published cell: the fastest of our formulations that is at least as tight (to 1e-4, the "
            "accuracy of the published numbers), else the tightest.",
            "SHOR and HR-2 are on a box [-10, 10]^n, whose centre the publication does not state; LipOpt is for all "
            "inputs.",
            "Published LipOpt-4 values below the constant come from a program that drops monomials.",
            "",
            "Not as tight as published: " + ("; ".join(looser) or "none") + ".",
            "",
            f"{len(lines)} cells: {counts['tighter']} tighter, {counts['equal']} equal, {counts['looser']} looser, "
            f"{counts['published value']} where the published value is below the constant; {slower} slower than "
            f"published. Bounds of ours below the exact constant, or below a sampled gradient: {len(below)}. "
            f"All runs together took {spent:.0f} CPU seconds.",
            "",
            "| network | published method | value | s | ours | bound | CPU s | verdict | ratio |",
            "| - | - | - | - | - | - | - | - | - |",
            *lines,
            "",
            "## All bounds",
            "",
            "| network (n, s, seed, hidden layers) | exact over all slopes | formulation | bound | CPU s |",
            "| - | - | - | - | - |",
            *all_lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
