"""Small chains, and the proofs of their SeqLip bounds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

import lipmodel as lm
from lipmodel.certify import metric_chain as rule
from lipmodel.certify.certificate import read_vector
from lipmodel.formulation import formulation
from lipmodel.network.increments import IncrementSystem, exact_system

SLOPES = ((0.0, 1.0), (-1.0, 1.0), (-0.5, 1.0), (0.25, 1.0))


def weights(dims: list[int], seed: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((m, n)) / math.sqrt(n) for n, m in itertools.pairwise(dims)]


def prove(system: IncrementSystem, exact_up_to: int = 20) -> tuple[float, dict[str, Any]]:
    """(bound, proof) of the formulation on one system, the exact check repeated."""
    evidence: Any = formulation("seqlip", {"exact_up_to": exact_up_to}).build(system, lm.Spec())
    found = evidence.prove(system, ("2", "2"), math.inf)
    assert found is not None
    check(system, found.proof)
    return found.bound, found.proof


def check(system: IncrementSystem, proof: dict[str, Any]) -> None:
    """The rule's decision about a system. Raises Rejected or Refuted."""
    metrics = [read_vector(v, "metrics") for v in proof["metrics"]]
    squares = [float.fromhex(v) for v in proof["squares"]]
    rule.check_chain(exact_system(system), metrics, squares, proof["trees"], float.fromhex(proof["bound"]))
