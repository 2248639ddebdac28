"""Text of a model: what was stated, in the order it was stated."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lipmodel.model.forms import QuadraticForm
from lipmodel.model.sets import PSD
from lipmodel.model.terms import Coefficients, Congruence, Factored

if TYPE_CHECKING:
    from lipmodel.model.model import Model


def model_text(model: Model) -> str:
    """The model in a few readable lines."""
    lines = [f"model {model.name}"]
    lines.append("  signals    " + (", ".join(map(str, model.signals)) or "none"))
    lines.append("  variables  " + (", ".join(map(str, model.variables)) or "none"))
    if model.objective is not None:
        root = "sqrt of " if model.bound == "sqrt" else ""
        lines.append(f"  minimize   {_affine(model.objective)}    (bound: {root}the optimum)")
    of_pairs = 0
    for c in model.constraints:
        if isinstance(c.function, QuadraticForm):
            of_pairs += is_of_pairs(c.function)
            if is_of_pairs(c.function) and of_pairs > 2:
                continue
            cone = "" if isinstance(c.set, PSD) else f" ({c.set})"
            lines.append(f"  require    for all signals: 0 <={cone}")
            lines.extend(f"               {_term(t)}" for t in c.function.terms)
        else:
            lines.append(f"  require    {_affine(c.function)} {c.set}")
    if of_pairs > 2:
        lines.append(f"  require    {of_pairs - 2} more of these for the other pairs of neurons   [pair-cone]")
    sizes = model.sizes()
    named = [("PSD", sizes.psd), ("dominant", sizes.dominant)]
    orders = [f"{name} order {_orders(found)}" for name, found in named if found] or ["PSD order none"]
    coefficients = f"about {sizes.coefficients} coefficients"
    lines.append(f"  size       {sizes.variables} variables, {', '.join(orders)}, {coefficients}")
    return "\n".join(lines)


def is_of_pairs(form: QuadraticForm) -> bool:
    """Whether a form only says that a pair of neurons has valid weights: of those, two are enough to be shown."""
    return any(t.rule is not None and t.rule.kind == "pair-cone" for t in form.terms)


def _orders(found: Iterable[int]) -> str:
    """Orders as a sum; those that many constraints in a row share, once."""
    runs = [(order, len(list(run))) for order, run in groupby(found)]
    return " + ".join(f"{count} x {order}" if count > 9 else " + ".join([str(order)] * count) for order, count in runs)


def _affine(e: Any) -> str:
    parts = []
    for v, k in e.coefficients.items():
        distinct = sorted({float(x) for x in k.data}) if k.nnz else [0.0]
        factor = "" if distinct == [1.0] else f"{distinct[0]:g} " if len(distinct) == 1 else "K "
        many = "sum " if e.size == 1 and v.size > 1 else ""
        parts.append(f"{factor}{many}{v.name}")
    if e.constant.any() or not parts:
        same = e.constant.size and (e.constant == e.constant[0]).all()
        parts.append(f"{e.constant[0]:g}" if same else "const")
    return " + ".join(parts)


def _term(term: Any) -> str:
    rule = f"   [{term.rule.kind}]" if term.rule is not None else "   [stated by hand]"
    if isinstance(term, Factored):
        return f"+ sum_i ({_affine(term.weight)})_i ({term.left!r})_i ({term.right!r})_i{rule}"
    if isinstance(term, Congruence):
        return f"+ {term.scale:g} ({term.form!r})' {term.matrix.name} ({term.form!r}){rule}"
    assert isinstance(term, Coefficients)
    return f"+ {sum(len(t.value) for t in term.entries)} coefficients{rule}"
