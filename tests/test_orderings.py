"""The orderings between bounds that are theorems, on a few random networks; benchmarks/orderings.py asks a thousand."""

from __future__ import annotations

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import orderings  # noqa: E402


@pytest.mark.parametrize("first", range(0, 24, 4))
def test_no_theorem_is_violated(first: int) -> None:
    state = orderings.fresh(seed=1)
    state["networks"] = first
    for _ in range(4):
        orderings.next_network(state)
    assert not state["failures"]
    assert state["bounds"] > 50


def test_every_theorem_is_met() -> None:
    """Networks of all kinds occur, so that no ordering goes unchecked."""
    import numpy as np

    facts = [orderings.random_network(np.random.default_rng([1, i]), i)[1] for i in range(60)]
    for ordering in orderings.ORDERINGS:
        assert any(ordering.applies(f) for f in facts), ordering


def test_a_bound_that_is_too_small_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that returns less than the formal constant, and one above what it refines."""
    honest = orderings.bounds

    def wrong(chain):
        for (name, pair), value in honest(chain):
            yield (name, pair), value * {"k4": 0.4, "liplt": 50.0}.get(name, 1.0)

    monkeypatch.setattr(orderings, "bounds", wrong)
    state = orderings.fresh(seed=1)
    for _ in range(3):
        orderings.next_network(state)
    assert any("UNSOUND: k4" in failure for failure in state["failures"])
    assert any("liplt" in failure and "is above norms" in failure for failure in state["failures"])
