"""Units of signals in which the multipliers of a closed form are ones.

In units in which every layer has norm one, the optimum of a deep network is exponentially small, and beyond some twenty
layers interior-point and first-order solvers alike end far from it. One sweep of block elimination, from the output
back, gives a feasible point of any network; in its units the optimum is of order one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lipmodel.elimination import Blocks, backward_sweep
from lipmodel.model.forms import QuadraticForm, Signal
from lipmodel.model.terms import Factored

Array = np.ndarray[Any, Any]
MAX_ORDER = 4_000
"""Orders up to which the sweep, which is cubic, is worth while."""


def balanced(
    form: QuadraticForm, gains: Mapping[Signal, Array], bases: Mapping[Signal, Array]
) -> dict[Signal, Array] | None:
    """By signal of the form, what it is to be multiplied by; None where the form is no network with one output.

    gains: units in which the matrices are of order one, from which the sweep starts. bases: of signals of the
    activations' own forms that are other coordinates here.
    """
    with np.errstate(all="ignore"):
        return _balanced(form, gains, bases)


def _balanced(
    form: QuadraticForm, gains: Mapping[Signal, Array], bases: Mapping[Signal, Array]
) -> dict[Signal, Array] | None:
    terms = [t for t in form.terms if isinstance(t, Factored) and t.rule is not None]
    slopes = [t for t in terms if t.rule is not None and t.rule.kind == "slope"]
    ends = [t for t in terms if t.rule is not None and t.rule.kind.startswith("output")]
    if len(terms) != len(form.terms) or len(ends) != 1 or sum(s.size for s in form.signals) > MAX_ORDER:
        return None
    subjects = [t.rule.subject for t in slopes if t.rule is not None]
    if any(a is None for a in subjects):
        return None
    dual = ends[0].rule.subject if ends[0].rule is not None else None
    inner = [s for s in form.signals if s is not dual]
    hidden = [a.signal for a in subjects]
    inputs = [s for s in inner if s not in hidden]
    if len(inputs) != 1 or set(hidden) | set(inputs) != set(inner):
        return None
    order = {s: k for k, s in enumerate([inputs[0], *hidden])}
    names = {s: s for s in order} | dict.fromkeys(bases, inputs[0])
    unit = {s: gains.get(s, np.ones(s.size)) for s in order}
    pre: list[dict[int, Array]] = []
    for a in subjects:
        found: dict[int, Array] = {}
        for s, m in a.pre.blocks.items():
            matrix = np.asarray(m.enclosure().dense().center)
            matrix = matrix @ bases[s] if s in bases else matrix
            found[order[names[s]]] = matrix * unit[names[s]] / unit[a.signal][:, None]
        if any(j >= order[a.signal] for j in found):
            return None
        pre.append(found)
    sides = [side for side in (ends[0].left, ends[0].right) if dual not in side.blocks]
    output = {order[s]: np.asarray(m.enclosure().dense().center) * unit[s] for s, m in sides[0].blocks.items()}
    blocks = Blocks(
        sizes=tuple(s.size for s in order),
        pre=tuple(pre),
        alpha=tuple(a.alpha for a in subjects),
        beta=tuple(a.beta for a in subjects),
        output=output,
        outputs=sides[0].size,
        scale=(1.0,) * len(order),
        scale_out=1.0,
    )
    reduced = backward_sweep(blocks, None, 0.0)
    if reduced is None:
        return None
    g, s = _ends(reduced.ends, reduced.inputs)
    # (g, t, s), (c g, c t, s / c) are equally feasible: with a dual signal both prices are alike, without one s is 1
    level = float(np.sqrt(np.float64(s) / g)) if dual is not None else s
    # narrow slopes have large multipliers, which is no matter of units: what exceeds those of [0, 1] is left out
    spans = [np.abs(a.alpha + a.beta) / np.maximum(a.beta - a.alpha, 1e-6 * a.gain) for a in subjects]
    sizes = [np.full(inputs[0].size, g * level)]
    sizes += [4.0 * level * t / (1.0 + span) for t, span in zip(reduced.t, spans, strict=True)]
    if not all(np.all(np.isfinite(x) & (x > 0.0)) for x in (*sizes, np.array([s]))):
        return None
    changed = {signal: unit[signal] / np.sqrt(size) for signal, size in zip(order, sizes, strict=True)}
    if dual is not None:
        changed[dual] = np.full(dual.size, np.sqrt(np.float64(level) / s))
    return changed


def _ends(matrix: Array, inputs: int) -> tuple[float, float]:
    """g and s of least product with diag(g, s) >= matrix, from the norms of its blocks."""
    a = float(np.linalg.norm(matrix[:inputs, :inputs], 2))
    d = float(np.linalg.norm(matrix[inputs:, inputs:], 2))
    b = float(np.linalg.norm(matrix[inputs:, :inputs], 2))
    ratio = np.sqrt(np.float64(a) / d) if a > 0.0 and d > 0.0 else np.float64(1.0)
    return a + float(b * ratio), d + float(b / ratio)
