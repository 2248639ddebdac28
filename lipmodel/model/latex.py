"""A model as LaTeX (amsmath): variables, objective, and every constraint as it was stated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lipmodel.model.forms import LinearForm, QuadraticForm
from lipmodel.model.render import is_of_pairs
from lipmodel.model.sets import (
    PSD,
    DiagonallyDominant,
    Nonnegative,
    RotatedSecondOrder,
    ScaledDiagonallyDominant,
    SecondOrder,
    SparsePSD,
    Zero,
)
from lipmodel.model.terms import Coefficients, Congruence, Factored, Term
from lipmodel.model.variables import Expression, Variable

if TYPE_CHECKING:
    from lipmodel.model.forms import Signal
    from lipmodel.model.model import Model

_SETS: dict[type, str] = {
    PSD: r"\succeq 0",
    SparsePSD: r"\succeq 0 \text{ (by cliques)}",
    DiagonallyDominant: r"\in \mathrm{DD}",
    ScaledDiagonallyDominant: r"\in \mathrm{SDD}",
    Nonnegative: r"\geq 0",
    Zero: "= 0",
    SecondOrder: r"\in \mathcal{Q}",
    RotatedSecondOrder: r"\in \mathcal{Q}_{r}",
}
_GREEK = {"kappa", "sigma", "rho", "lambda", "mu", "nu", "alpha", "beta", "gamma", "tau"}


def model_latex(model: Model) -> str:
    """The model as an `align*` environment, in matrices W whose meaning is listed behind it.

    A slope restriction is written with its slopes A = diag(alpha), B = diag(beta).
    """
    names = _Names(model)
    rows = []
    if model.objective is not None:
        optimum = r"\qquad (\text{bound } \sqrt{\cdot})" if model.bound == "sqrt" else ""
        variables = ", ".join(names.variable(v) for v in model.variables)
        rows.append(rf"\min_{{{variables}}} \quad & {names.affine(model.objective)}{optimum}")
    lead = r"\text{s.t.} \quad"
    of_pairs = [c for c in model.constraints if isinstance(c.function, QuadraticForm) and is_of_pairs(c.function)]
    hidden = set(map(id, of_pairs[2:]))
    for c in model.constraints:
        if id(c) in hidden:
            continue
        sign = _SETS[type(c.set)]
        if isinstance(c.function, QuadraticForm):
            terms = [names.term(t) for t in c.function.terms] or ["+ 0"]
            rows.append(f"{lead} & {terms[0].removeprefix('+ ')}")
            rows += [rf"& \quad {t}" for t in terms[1:]]
            rows[-1] += rf" \; {sign}"
        else:
            rows.append(rf"{lead} & {names.affine(c.function)} {sign}")
        lead = r"\quad"
    if hidden:
        rows.append(rf"{lead} & \text{{({len(hidden)} more of these for the other pairs of neurons)}}")
    signs = [v for v in model.variables if v.nonnegative]
    if signs:
        rows.append(rf"{lead} & {', '.join(names.variable(v) for v in signs)} \geq 0")
    body = " \\\\\n".join(rows)
    lines = [r"\begin{align*}", body, r"\end{align*}"]
    if names.matrices:
        lines += [r"\noindent where", r"\begin{itemize}", *names.matrices.values(), r"\end{itemize}"]
    return "\n".join(lines)


class _Names:
    """Symbols of the signals, variables and matrices of one model; equal matrices have one symbol."""

    def __init__(self, model: Model) -> None:
        self.signals = {s: _symbol(s.name) for s in model.signals}
        self.matrices: dict[int, str] = {}
        self._symbols: dict[int, str] = {}
        self._slopes = 0

    def variable(self, v: Variable) -> str:
        return _symbol(v.name) if v.order is None else rf"\mathbf{{{_symbol(v.name)}}}"

    def signal(self, s: Signal) -> str:
        return self.signals.setdefault(s, _symbol(s.name))

    def matrix(self, m: Any) -> str:
        if getattr(m, "is_identity", False):
            return ""
        if id(m) not in self._symbols:
            self._symbols[id(m)] = f"W_{{{len(self._symbols) + 1}}}"
            kind = type(m).__name__.lower()
            rows, columns = m.shape
            self.matrices[id(m)] = (
                rf"\item ${self._symbols[id(m)]} \in \mathbb{{R}}^{{{rows} \times {columns}}}$, {kind}"
            )
        return self._symbols[id(m)]

    def form(self, f: LinearForm) -> str:
        parts = [f"{self.matrix(m)} {self.signal(s)}".strip() for s, m in f.blocks.items()]
        return " + ".join(parts) or "0"

    def affine(self, e: Expression) -> str:
        parts = []
        for v, k in e.coefficients.items():
            name, distinct = self.variable(v), sorted({float(x) for x in k.data})
            if not distinct:
                continue
            summed = rf"\mathbf{{1}}^\top {name}" if e.size == 1 and v.size > 1 and k.nnz == v.size else name
            plain = e.size == 1 or v.size == 1 or (k.shape[0] == k.shape[1] and k.nnz == v.size)
            if len(distinct) == 1 and plain:
                parts.append(_signed(distinct[0], summed))
            else:
                parts.append(rf"+ K_{{{name}}} {name}")
        if e.constant.any() or not parts:
            same = bool((e.constant == e.constant[0]).all())
            parts.append(_signed(float(e.constant[0]), "") if same else "+ k")
        return " ".join(parts).removeprefix("+ ")

    def term(self, t: Term) -> str:
        """One term, with its sign in front."""
        if isinstance(t, Congruence):
            f = self.form(t.form)
            return _signed(t.scale, rf"({f})^\top {self.variable(t.matrix)} ({f})")
        if isinstance(t, Coefficients):
            return rf"+ z^\top C z \quad \text{{({sum(len(e.value) for e in t.entries)} coefficients)}}"
        assert isinstance(t, Factored)
        if t.rule is not None and t.rule.kind == "slope":
            a = t.rule.subject
            w, v = self.signal(a.signal), self.form(a.pre)
            sign, weight = _split_sign(self.affine(t.weight))
            self._slopes += 1
            lower, upper = f"A_{{{self._slopes}}}", f"B_{{{self._slopes}}}"
            key = -self._slopes
            low, high = float(a.alpha.min(initial=0.0)), float(a.beta.max(initial=0.0))
            self.matrices[key] = (
                rf"\item ${lower} = \mathrm{{diag}}(\alpha)$, ${upper} = \mathrm{{diag}}(\beta)$: "
                rf"slopes of ${w}$, within $[{low:g}, {high:g}]$"
            )
            inner = rf"({w} - {lower} ({v}))^\top \mathrm{{diag}}({weight}) ({upper} ({v}) - {w})"
            return f"{sign} {inner}"
        left, right = self.form(t.left), self.form(t.right)
        sign, weight = _split_sign(self.affine(t.weight))
        if t.left is t.right:
            if _number(weight):
                return rf"{sign} {'' if weight == '1' else weight} \lVert {left} \rVert^{{2}}".replace("  ", " ")
            return rf"{sign} ({left})^\top \mathrm{{diag}}({weight}) ({left})"
        if _number(weight):
            return rf"{sign} {'' if weight == '1' else weight} ({left})^\top ({right})".replace("  ", " ")
        return rf"{sign} ({left})^\top \mathrm{{diag}}({weight}) ({right})"


def _split_sign(text: str) -> tuple[str, str]:
    """The sign of a sum of one summand, and the rest; + and the sum as it is, if it has more."""
    if text.startswith("-") and " + " not in text and " - " not in text:
        return "-", text[1:].strip()
    return "+", text


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _signed(value: float, what: str) -> str:
    size = f"{abs(value):g}"
    if "e" in size:
        mantissa, _, exponent = size.partition("e")
        size = rf"{mantissa} \cdot 10^{{{int(exponent)}}}"
    factor = "" if size == "1" and what else size + (" " if what else "")
    return f"{'-' if value < 0.0 else '+'} {factor}{what}"


def _symbol(name: str) -> str:
    """A name as a symbol: a letter or Greek letter, the rest as its subscript."""
    head, _, tail = name.partition("_")
    letters = head.rstrip("0123456789")
    subscript = "_".join(x for x in (head[len(letters) :], tail) if x)
    base = rf"\{letters}" if letters in _GREEK else letters if len(letters) == 1 else rf"\mathrm{{{_escaped(letters)}}}"
    return base + (rf"_{{\mathrm{{{_escaped(subscript)}}}}}" if subscript else "")


def _escaped(text: str) -> str:
    special = {"\\": r"\backslash ", "^": r"\wedge ", "~": r"\sim "}
    return "".join(special.get(c, f"\\{c}" if c in "_&%$#{}" else c if " " <= c <= "~" else "?") for c in text)
