"""A hundred thousand small certificates, true ones and false ones, against the rational truth.

    python -m benchmarks.certificates [--count 100000] [--seed 0]

Random tiny networks in increments (chains and skip connections, slopes of every sign, weights with and without a
radius), multipliers with g a hair above or below what is needed. The kernel decides twice, with flint's integers and
with plain ones; the LDL' factorisation in rationals says what is true. Writes results/certificates.md.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.questions import block, built, inequality, psd
from lipmodel.certify import kernel

RESULT = Path(__file__).resolve().parent / "results" / "certificates.md"
MARGINS = (1e-3, 1e-6, 1e-9, 1e-12, 1e-14, 2.0**-52, 0.0, -(2.0**-52), -1e-14, -1e-12, -1e-9, -1e-6, -1e-3)
SURE = 1e-9
"""A margin from which on the kernel should not refuse."""
SLOPES = ((0.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (-0.125, 1.0), (0.25, 1.0), (-1.0, -0.5), (0.0, 0.25), (-0.13, 1.13))


def random_system(rng: Any) -> dict[str, Any]:
    """Weights as doubles, of scales up to 1000 apart; at most eight entries altogether."""
    sizes = [int(rng.integers(1, 3)) for _ in range(int(rng.integers(1, 4)))]
    outputs = int(rng.integers(1, 3))

    def form(rows: int, signals: int) -> dict[int, list[list[float]]]:
        reads = [j for j in range(signals) if j == signals - 1 or rng.integers(3) == 0]
        scale = 10.0 ** rng.uniform(-1.5, 1.5)
        return {j: (scale * rng.standard_normal((rows, sizes[j])).astype(np.float32)).tolist() for j in reads}

    slopes = [[SLOPES[int(rng.integers(len(SLOPES)))] for _ in range(n)] for n in sizes[1:]]
    return {
        "sizes": sizes,
        "pre": [form(n, k) for k, n in enumerate(sizes[1:], start=1)],
        "alpha": [[a for a, _ in row] for row in slopes],
        "beta": [[b for _, b in row] for row in slopes],
        "output": form(outputs, len(sizes)),
    }


def candidate(rng: Any, system: dict[str, Any]) -> tuple[list[list[float]], list[float], list[float]] | None:
    """Multipliers on the edge, found in floating point: t by a backward sweep, g by a Schur complement."""
    sizes, outputs = system["sizes"], len(next(iter(system["output"].values())))
    starts, total = [0, *itertools.accumulate(sizes)], sum(sizes)
    s = np.exp(rng.uniform(-1, 1, outputs))

    def rows(form: dict[int, list[list[float]]], n: int) -> Any:
        return np.hstack([np.array(form.get(j, np.zeros((n, w)))) for j, w in enumerate(sizes)])

    c = rows(system["output"], outputs)
    m = -c.T @ (c / s[:, None])
    t: list[list[float]] = []
    for k in range(len(sizes) - 1, 0, -1):
        own = slice(starts[k], starts[k + 1])
        gap = -m[own, own]
        level = max(float(np.linalg.eigvalsh(gap)[-1]), 1e-9 * float(np.abs(gap).max()), 1e-30)
        chosen = level * np.exp(rng.uniform(0, 1, sizes[k])) * (1.0 if rng.integers(2) else 0.75)
        a, unit = rows(system["pre"][k - 1], sizes[k]), np.eye(total)[own]
        u, r = (unit - np.array(system[name][k - 1])[:, None] * a for name in ("alpha", "beta"))
        m = m + u.T @ (chosen[:, None] * r) + r.T @ (chosen[:, None] * u)
        if not np.linalg.eigvalsh(m[own, own])[0] > 0:
            return None
        m = m - m[:, own] @ np.linalg.solve(m[own, own], m[own])
        t.insert(0, chosen.tolist())
    needed = float(np.linalg.eigvalsh(-m[: sizes[0], : sizes[0]])[-1])
    return (t, [max(needed, 0.0)] * sizes[0], s.tolist()) if math.isfinite(needed) else None


def accepted(system: Any, multipliers: Any) -> bool:
    """The verdict of the kernel, for the smallest bound that these multipliers can prove, rounded up generously."""
    square = kernel.bound_squared(multipliers, "2", "2")
    bound = math.sqrt(square) * (1.0 + 2.0**-40) + 5e-324
    try:
        kernel.check_lmi(system, multipliers, "2", "2", bound)
    except kernel.Rejected:
        return False
    return True


def blurred(k: Any, system: dict[str, Any], relative: float) -> Any:
    """The system with a relative radius on every weight."""

    def wide(values: list[list[float]]) -> Any:
        return block(k, values, [[abs(v) * relative for v in row] for row in values])

    return k.System(
        sizes=tuple(system["sizes"]),
        pre=tuple({j: wide(b) for j, b in form.items()} for form in system["pre"]),
        alpha=tuple(map(tuple, system["alpha"])),
        beta=tuple(map(tuple, system["beta"])),
        output={j: wide(b) for j, b in system["output"].items()},
    )


def corner(rng: Any, system: dict[str, Any], relative: float) -> dict[str, Any]:
    """One of the systems that the blurred one stands for (in exact rationals, at the ends of the radii)."""

    def moved(values: list[list[float]]) -> list[list[Any]]:
        return [[Fraction(v) + int(rng.choice([-1, 1])) * Fraction(abs(v) * relative) for v in row] for row in values]

    changed = [{j: moved(b) for j, b in form.items()} for form in (*system["pre"], system["output"])]
    return {**system, "pre": changed[:-1], "output": changed[-1]}


def one(rng: Any, margin: float) -> tuple[str, bool]:
    """One certificate: what happened, and whether it should not have."""
    system = random_system(rng)
    found = candidate(rng, system)
    if found is None:
        return "no candidate", False
    t, g, s = found
    if margin <= 0.0 and not any(g):
        return "no candidate", False
    g = [v * (1.0 + margin) for v in g]
    multipliers = kernel.Multipliers(t=tuple(map(tuple, t)), g=tuple(g), s=tuple(s))
    relative = 2.0**-30 if rng.integers(5) == 0 else 0.0
    exact = blurred(kernel, system, relative) if relative else built(kernel, system)
    fast = accepted(exact, multipliers)
    saved, kernel.fmpz_mat = kernel.fmpz_mat, None
    try:
        plain = accepted(exact, multipliers)
    finally:
        kernel.fmpz_mat = saved
    truth = psd(inequality(corner(rng, system, relative) if relative else system, t, g, s))
    if fast != plain:
        return "the two arithmetics disagree", True
    if fast and not truth:
        return "FALSE CERTIFICATE ACCEPTED", True
    if not fast and margin >= SURE and not relative:
        return "a true one with a margin refused", False
    kind = "with a radius" if relative else "exact"
    return f"{kind}: {'accepted' if fast else 'refused, false' if not truth else 'refused, true but too close'}", False


def run(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Verdicts by kind, and the certificates that should not have ended as they did."""
    verdicts: Counter[str] = Counter()
    wrong = []
    number = 0
    while sum(verdicts.values()) - verdicts["no candidate"] < count:
        rng = np.random.default_rng([seed, number])
        verdict, bad = one(rng, MARGINS[number % len(MARGINS)])
        verdicts[verdict] += 1
        if bad:
            wrong.append(f"{verdict}: seed {seed}, number {number}")
        number += 1
    return verdicts, wrong


def main() -> int:
    """Run and write the page."""
    parser = argparse.ArgumentParser(description="small certificates against the rational truth")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.monotonic()
    verdicts, wrong = run(args.count, args.seed)
    none = verdicts.pop("no candidate", 0)
    minutes = (time.monotonic() - start) / 60
    page = [
        "# Small certificates against the rational truth",
        "",
        f"`python -m benchmarks.certificates --count {args.count} --seed {args.seed}`: {sum(verdicts.values())} "
        f"certificates in {minutes:.1f} minutes on one core ({none} networks had no candidate).",
        "",
        f"**{len(wrong)} wrong.** Each was decided by flint's integers and by plain ones, which agreed, and checked by",
        "an LDL' factorisation in rationals (for weights with a radius: of a network at the ends of the radii).",
        "",
        f"Margins on g: {', '.join(f'{m:.3g}' for m in MARGINS)}, in turn.",
        "",
        "| verdict | certificates |",
        "|---|---|",
        *(f"| {name} | {n} |" for name, n in sorted(verdicts.items())),
        *(["", *(f"- {line}" for line in wrong[:50])] if wrong else []),
        "",
    ]
    text = "\n".join(page)
    print(text)
    if args.count >= 100_000:
        RESULT.write_text(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
