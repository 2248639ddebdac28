"""Every network below a folder: product, lipsdp-neuron (2:2) and geolip (inf:2), proved and verified.

    python -m benchmarks.survey FOLDER [--max-activations 1600] [--time-limit 120] [--only product] [--out FOLDER]

A bound worse than the product bound, a refused certificate or an unexpected error is marked DEFECT. Writes survey.json
and survey.md; refused networks are listed with the first reason.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import lipmodel as lm
from lipmodel.result import write_atomically

PROGRAMS = (("product", "2"), ("lipsdp-neuron", "2"), ("geolip", "inf:2"))


def survey(path: Path, name: str, limit: float, largest: int, programs: list[str]) -> list[dict[str, Any]]:
    """One row per program, or one row with the reason of a refusal."""
    try:
        net = lm.load(path)
        neurons = lm.increments(net).neurons
    except lm.RefusedInput as error:
        return [{"network": name, "refused": str(error.reasons[0])}]
    rows: list[dict[str, Any]] = []
    for formulation, norm in PROGRAMS:
        if formulation not in programs or (formulation != "product" and (neurons > largest or neurons == 0)):
            continue
        start = time.perf_counter()
        row: dict[str, Any] = {"network": name, "activations": neurons, "formulation": formulation, "norm": norm}
        try:
            r = lm.solve(net, formulation, norm=norm, time_limit=limit)
            product = lm.solve(net, "product", norm=norm, witness=False).bound
            solved = time.perf_counter()
            verdict = lm.verify(net, r)
            row |= {"bound": r.bound, "lower": r.lower_bound, "product": product, "backend": r.backend}
            row |= {"assurance": r.assurance, "termination": r.termination, "gap": r.gap, "exact": r.exact}
            row |= {"seconds": solved - start, "verify": time.perf_counter() - solved}
            fine = verdict.bound == r.bound and r.bound <= product and r.assurance == "proved"
            row["defect"] = "" if fine else "DEFECT"
        except Exception as error:
            row |= {"defect": f"DEFECT {type(error).__name__}: {str(error)[:200]}"}
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    done = [r for r in rows if "refused" not in r]
    lines = [
        "# Survey",
        "",
        f"{len({r['network'] for r in done})} networks accepted, {len(rows) - len(done)} refused, "
        f"{sum(1 for r in done if r['defect'])} defects. Bounds are proved and verified in exact arithmetic.",
        "",
        "| network | neurons | program | backend | lower | bound | product / bound | gap | s | verify s | ended | |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in done:
        program = f"{r['formulation']} {r['norm']}"
        cells = [r["network"], r["activations"], program, *[""] * 8, r["defect"]]
        if "bound" in r:
            cells[3] = r["backend"] or ""
            cells[4] = "" if r["lower"] is None else f"{r['lower']:.6g}"
            cells[5] = f"{r['bound']:.8g}"
            cells[6] = f"{r['product'] / r['bound']:.3g}" if r["bound"] else ""
            cells[7] = "" if r["gap"] is None else f"{r['gap']:.0e}"
            cells[8:11] = [f"{r['seconds']:.2f}", f"{r['verify']:.2f}", r["termination"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "Refused:", ""] + [f"- {r['network']}: {r['refused']}" for r in rows if "refused" in r]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--max-activations", type=int, default=1600, help="above this only the product bound")
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds for each program")
    parser.add_argument("--only", action="append", choices=[f for f, _ in PROGRAMS], help="only these formulations")
    parser.add_argument("--match", default="", help="only files whose path contains this")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--name", default="survey", help="name of the result files")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in sorted(args.folder.rglob("*.onnx")):
        name = str(path.relative_to(args.folder))
        if args.match in name:
            rows.extend(
                survey(path, name, args.time_limit, args.max_activations, args.only or [f for f, _ in PROGRAMS])
            )
            last = rows[-1]
            print(name, last.get("refused") or last.get("bound"), last.get("defect", ""), flush=True)
            args.out.mkdir(parents=True, exist_ok=True)
            write_atomically(args.out / f"{args.name}.json", json.dumps(rows, indent=1) + "\n")
    write_atomically(args.out / f"{args.name}.md", markdown(rows))


if __name__ == "__main__":
    main()
