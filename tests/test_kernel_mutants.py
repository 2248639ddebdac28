"""The kernel against probes with known answers, and mutated kernels, which the probes must catch."""

from __future__ import annotations

import ast
import pathlib
import random
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import certificates, mutants  # noqa: E402
from benchmarks.equivalent import EQUIVALENT  # noqa: E402
from benchmarks.probes import probes  # noqa: E402
from lipmodel.certify import kernel  # noqa: E402

SOURCE = mutants.KERNEL.read_text(encoding="utf-8")
ALLOWED = {"__future__", "math", "collections", "dataclasses", "fractions", "itertools", "typing", "numpy", "flint"}


def test_the_kernel_is_short_and_imports_nothing_of_lipmodel():
    assert len(SOURCE.splitlines()) <= 500
    imports = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [[n.module or ""] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names] for n in imports]
    assert {name.split(".")[0] for group in names for name in group} <= ALLOWED
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in imports)


@pytest.mark.parametrize("fast", [True, False])
def test_every_probe_gets_its_answer(fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(kernel, "fmpz_mat", None)
    assert [p.name for p in probes() if not p.passes(kernel)] == []
    assert len(probes()) > 400


def test_a_sample_of_mutants_is_caught():
    found = random.Random(0).sample(mutants.mutants(SOURCE), 60)
    survivors = [m for m, probe in mutants.run(found) if not probe]
    assert [m.key for m in survivors if m.key not in EQUIVALENT] == []


def test_mutations_that_would_be_unsound_are_made_and_caught():
    """Each of these accepts something false; the mutator must think of it, and a probe must see it."""
    found = mutants.mutants(SOURCE)
    for line in (
        "if any((v <= 0 for v in lacking)):",
        "if Fraction(bound) ** 2 > bound_squared(multipliers, p, q):",
        "left = Fraction(min(g))",
        "radius = [[0] * n for n in sizes]",
    ):
        (mutant,) = [m for m in found if m.after == line]
        assert mutants.caught_by(mutant)


@pytest.mark.slow
def test_all_mutants():
    results = mutants.run(mutants.mutants(SOURCE))
    survivors = [m for m, probe in results if not probe]
    assert len(survivors) <= 0.05 * len(results)
    assert [m.key for m in survivors if m.key not in EQUIVALENT] == []


def test_small_certificates_against_the_rational_truth():
    verdicts, wrong = certificates.run(400, 1)
    assert wrong == []
    assert verdicts["exact: accepted"] > 80
    assert verdicts["exact: refused, false"] > 100
    assert verdicts["a true one with a margin refused"] == 0


@pytest.mark.slow
def test_a_hundred_thousand_certificates():
    verdicts, wrong = certificates.run(100_000, 2)
    assert wrong == []
    assert verdicts["a true one with a margin refused"] == 0
