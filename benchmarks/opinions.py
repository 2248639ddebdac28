"""Certificates that `solve` writes, global, of chains: the exact kernel and the second opinion on the same questions.

    python -m benchmarks.opinions [FOLDER] [--random 200] [--seed 0] [--neurons 700] [--time-limit 20] [--minutes M]

FOLDER: ONNX files, of which those that are chains are taken, small files first; then random chains. Certificates are
read from the JSON that was written, as they are and bent: the bound one double lower, the input or the hidden
multipliers a little other. What `verify` accepts must be what the second opinion finds proved; of bent ones `verify`
may refuse more, as it keeps a distance from singular matrices. Writes results/second_opinion.md.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import lipmodel as lm
from benchmarks.second_opinion import DisagreesError, UndecidedError, check
from benchmarks.second_reader import Layer, NotAChainError, read_chain
from lipmodel.result import write_atomically

HERE = Path(__file__).resolve().parent
QUESTIONS: tuple[tuple[str, str, str], ...] = (
    ("product", "2", "all"),
    ("product", "inf:2", "all"),
    ("lipsdp-neuron", "2", "all"),
    ("geolip", "inf:2", "all"),
    ("geolip", "inf:1", "all"),
    ("lipsdp-layer", "2", "0"),
    ("lipsdp-neuron", "1:2", "all"),
    ("geolip", "inf", "margin:0"),
)
FAMILY = 60
"""Members of a family up to which it is asked."""
ACTIVATIONS: tuple[tuple[str, dict[str, float]], ...] = (
    ("Relu", {}),
    ("Relu", {}),
    ("Tanh", {}),
    ("Sigmoid", {}),
    ("LeakyRelu", {"alpha": 0.125}),
    ("LeakyRelu", {"alpha": -0.5}),
    ("LeakyRelu", {"alpha": 2.0}),
)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What happened: questions by their outcome, rules, reasons to leave networks out, disagreements."""

    outcomes: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    networks: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    undecided: Counter[str] = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    orders: list[int] = field(default_factory=list)


def bent(certificate: dict[str, Any], rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    """Certificates that differ a little, their bounds what their multipliers give, but for the first."""
    upper = certificate["upper"]
    if upper["rule"] != "lmi":
        return

    def stated(bound: float) -> dict[str, Any]:
        other = copy.deepcopy(certificate)
        # the witness is about another claim: left in, it could be above this bound
        other["lower"] = other["claim"]["lower_bound"] = None
        other["claim"]["bound"] = other["upper"]["bound"] = bound.hex()
        return other

    bound = float.fromhex(upper["bound"])
    yield "one double lower", stated(math.nextafter(bound, 0.0))
    factor = 1.0 - 10.0 ** rng.uniform(-12.0, -1.0)
    other = stated(bound)
    other["upper"]["g"] = [(float.fromhex(x) * factor).hex() for x in _listed(upper["g"])]
    yield "input multipliers smaller", other
    other = stated(bound)
    scale = 10.0 ** rng.uniform(-10.0, -2.0)
    other["upper"]["t"] = [
        [(float.fromhex(x) * (1.0 + scale * rng.standard_normal())).hex() for x in _listed(t)] for t in upper["t"]
    ]
    yield "hidden multipliers other", other


def _listed(data: list[Any]) -> list[str]:
    repeated = len(data) == 2 and str(data[0]).startswith("*")
    return [data[1]] * int(data[0][1:]) if repeated else data


def compare(path: Path, layers: list[Layer], certificate: dict[str, Any], kind: str, label: str, tally: Tally) -> None:
    """One certificate, put to both."""
    try:
        lm.verify(path, certificate)
        accepted = True
    except lm.Refuted:
        accepted = False
    start = time.perf_counter()
    try:
        rule = check(layers, certificate)
        proved = True
        tally.rules[rule] += kind == "as written"
    except DisagreesError as error:
        proved, why = False, str(error)
    except UndecidedError as error:
        tally.outcomes[f"{kind}: undecided by the second opinion, {'accepted' if accepted else 'refused'}"] += 1
        tally.undecided[str(error)[:60]] += 1
        return
    tally.slowest = max(tally.slowest, (time.perf_counter() - start, label))
    if accepted and not proved:
        tally.disagreements.append(f"{label}, {kind}: `verify` accepts it, the second opinion says: {why}")
    if kind == "as written" and not accepted:
        tally.disagreements.append(f"{label}: `verify` refuses what `solve` wrote")
    both = {(True, True): "both accept", (False, False): "both refuse", (False, True): "only `verify` refuses"}
    tally.outcomes[f"{kind}: {both.get((accepted, proved), 'DISAGREEMENT')}"] += 1


def questions(layers: list[Layer]) -> Iterator[tuple[str, str, str]]:
    """Those that make sense for a network and are not too many programs."""
    n, m = layers[0].matrix.ncols(), layers[-1].matrix.nrows()
    order = n + m + sum(layer.matrix.nrows() for layer in layers[:-1])
    for formulation, norm, outputs in QUESTIONS:
        programs = (n if norm.startswith("1") else 1) * (m if outputs.startswith("margin") else 1)
        if programs * order <= FAMILY * 50 and (m > 1 or not outputs.startswith("margin")):
            yield formulation, norm, outputs


def examine(path: Path, label: str, tally: Tally, rng: np.random.Generator, limit: float, largest: int) -> None:
    """All questions about one file."""
    try:
        layers = read_chain(path)
    except NotAChainError as error:
        tally.skipped[f"not a chain: {error}"] += 1
        return
    neurons = sum(layer.matrix.nrows() for layer in layers[:-1])
    if neurons > largest:
        tally.skipped[f"more than {largest} neurons"] += 1
        return
    asked = 0
    for formulation, norm, outputs in questions(layers):
        name = f"{label}, {formulation} {norm}, outputs {outputs}"
        try:
            result = lm.solve(path, formulation, norm=norm, outputs=outputs, time_limit=limit)
        except lm.RefusedInput as error:
            tally.skipped[f"refused: {error.reasons[0].kind}"] += 1
            return
        except lm.LipmodelError as error:
            tally.skipped[f"{formulation}, {type(error).__name__}: {str(error)[:50]}"] += 1
            continue
        asked += 1
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "result.json"
            result.save(saved)
            certificate = json.loads(saved.read_text())["certificate"]
        compare(path, layers, certificate, "as written", name, tally)
        for kind, other in bent(certificate, rng):
            compare(path, layers, other, kind, name, tally)
    if asked:
        tally.networks["random" if label.startswith("random") else "files"] += 1
        tally.orders.append(neurons + layers[0].matrix.ncols() + layers[-1].matrix.nrows())


def random_file(path: Path, rng: np.random.Generator) -> None:
    """A random chain of one to three hidden layers, weights and biases in float32 or in eighths."""
    sizes = [int(v) for v in rng.integers(1, 9, size=int(rng.integers(3, 6)))]
    weights = [rng.standard_normal((m, n)) for n, m in itertools.pairwise(sizes)]
    if rng.random() < 0.5:
        weights = [np.round(8 * w) / 8 for w in weights]
    if rng.random() < 0.3:
        weights = [w * (rng.random(w.shape) < 0.6) for w in weights]
    biases = [rng.standard_normal(m).astype(np.float32) for m in sizes[1:]]
    name, parameters = ACTIVATIONS[int(rng.integers(len(ACTIVATIONS)))]
    trailing = [lm.activation(name, **parameters) if rng.random() < 0.2 else None]
    phis = [lm.activation(name, **parameters) for _ in sizes[2:]] + trailing
    lm.from_weights([w.astype(np.float32) for w in weights], biases, activation=phis).save(path)


def report(tally: Tally, seconds: float) -> str:
    """The tally in words."""
    lines = [
        "# A second opinion on certificates",
        "",
        f"{tally.networks['files']} chains from files and {tally.networks['random']} random ones, orders of P up to "
        f"{max(tally.orders, default=0)}; {seconds / 60:.0f} minutes. `benchmarks/second_opinion.py` and "
        "`second_reader.py` share no code with lipmodel: rationals for small P, ball arithmetic for larger ones.",
        "",
        f"**{len(tally.disagreements)} disagreements.**",
        "",
        *(f"- {text}" for text in tally.disagreements[:50]),
        "",
        "| certificate: outcome | number |",
        "|---|---|",
        *(f"| {name} | {number} |" for name, number in sorted(tally.outcomes.items())),
        "",
        "Rules of the certificates as written: " + ", ".join(f"{k} {v}" for k, v in tally.rules.most_common()) + ".",
        "",
        f"The slowest second opinion took {tally.slowest[0]:.1f} s ({tally.slowest[1]}).",
    ]
    for title, counter in (("Undecided", tally.undecided), ("Left out", tally.skipped)):
        if counter:
            lines += ["", f"{title}:", "", *(f"- {number}x {text}" for text, number in counter.most_common(25))]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run, and write second_opinion.md; the exit code is 1 where the two disagree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--random", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--neurons", type=int, default=700)
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds for each program")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args(argv)
    start, tally = time.monotonic(), Tally()
    rng = np.random.default_rng(args.seed)
    paths = [] if args.folder is None else sorted(args.folder.rglob("*.onnx"), key=lambda path: path.stat().st_size)
    for path in paths:
        if time.monotonic() - start > 60.0 * args.minutes:
            tally.skipped["out of time"] += 1
            continue
        label = str(path.relative_to(args.folder))
        try:
            examine(path, label, tally, rng, args.time_limit, args.neurons)
        except Exception as error:  # a file that only one side reads is worth a line
            tally.skipped[f"{label}: {type(error).__name__}: {str(error)[:80]}"] += 1
        print(label, dict(tally.networks), f"{len(tally.disagreements)} disagreements", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for k in range(args.random):
            if k % 20 == 0:
                print(f"random {k}/{args.random}: {len(tally.disagreements)} disagreements", flush=True)
            if time.monotonic() - start > 60.0 * args.minutes:
                break
            path = Path(folder) / "net.onnx"
            random_file(path, rng)
            examine(path, f"random, seed {args.seed}, number {k}", tally, rng, args.time_limit, args.neurons)
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "second_opinion.md", report(tally, time.monotonic() - start))
    return 1 if tally.disagreements else 0


if __name__ == "__main__":
    raise SystemExit(main())
