"""Where a function of one variable may vanish: interval branch and bound in balls.

The result is a list of cells that together contain every zero in an interval; between them the sign is proved to be
constant. Cells are tiny (2^-130) unless the function is flat there beyond what subdivision resolves.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from flint import arb, ctx

from lipmodel.activations.balls import ball, rational, rational_ends
from lipmodel.activations.formula import Formula

Cell = tuple[Fraction, Fraction]

_PRECISION = 320
_WIDTH = Fraction(1, 2**130)
_FLAT = Fraction(1, 2**80)
_BUDGET = 10_000
_ISOLATION = 5


class Unresolved(Exception):  # noqa: N818 - neither an error nor a failure
    """A place where the sign could not be determined, or the function not even be bounded."""

    def __init__(self, at: Fraction, reason: str) -> None:
        self.at = at
        super().__init__(reason)


def zero_cells(
    function: Formula, derivative: Formula, lower: Fraction, upper: Fraction, scale: arb | None
) -> list[Cell]:
    """Cells [a, b], increasing, outside which `function` has no zero in [lower, upper]; a = b where the zero is a.

    scale: where given, a cell may also stay wider if |function| * width <= 2^-80 scale on it (an antiderivative then
    varies by no more than that), and touching cells are not united. Raises Unresolved where the function is not finite
    or the budget is spent.
    """
    with ctx.workprec(_PRECISION):
        search = _Search(function.ball, derivative.ball, scale)
        search.run(lower, upper)
    return sorted(search.cells) if scale is not None else merged(search.cells)


def variation(function: Formula, derivative: Formula, cell: Cell) -> arb:
    """Enclosure of a function over a cell: at the middle, plus the mean value theorem."""
    with ctx.workprec(_PRECISION):
        x, middle = ball(cell), rational((cell[0] + cell[1]) / 2)
        direct = function.ball(x)
        centred = function.ball(middle) + derivative.ball(x) * (x - middle)
        if not direct.is_finite() or not centred.is_finite():
            return centred if centred.is_finite() else direct
        return direct.intersection(centred)


def _sign(value: arb) -> int:
    if not value.is_finite():
        return 0
    return 1 if value > 0 else -1 if value < 0 else 0


def _width(a: Fraction) -> Fraction:
    """How narrow a cell at a needs to be."""
    return _WIDTH * max(Fraction(1), abs(a))


class _Search:
    def __init__(self, f: Callable[[arb], arb], df: Callable[[arb], arb], scale: arb | None) -> None:
        self.f, self.df, self.scale = f, df, scale
        self.cells: list[Cell] = []
        self.budget = _BUDGET

    def run(self, lower: Fraction, upper: Fraction) -> None:
        stack = [(lower, upper)]
        while stack:
            a, b = stack.pop()
            self.budget -= 1
            if self.budget < 0:
                raise Unresolved((a + b) / 2, "too many subdivisions")
            if self._without_zero(a, b):
                continue
            middle = (a + b) / 2
            stack.append((middle, b))
            stack.append((a, middle))

    def _without_zero(self, a: Fraction, b: Fraction) -> bool:
        """Whether a cell needs no subdivision: it has no zero, or all its zeros have been recorded."""
        x = ball((a, b))
        value = self.f(x)
        if _sign(value):
            return True
        slope = self.df(x)
        if slope.is_finite():
            middle = rational((a + b) / 2)
            if _sign(self.f(middle) + slope * (x - middle)):
                return True
            if _sign(slope):
                self._isolate(a, b, _sign(slope))
                return True
        width = b - a
        if width <= _width(a):
            if not value.is_finite():
                raise Unresolved((a + b) / 2, "it is not bounded")
            self.cells.append((a, b))
            return True
        if self.scale is not None and value.is_finite() and abs(value) * rational(width) < self.scale * rational(_FLAT):
            self.cells.append((a, b))
            return True
        return False

    def _isolate(self, a: Fraction, b: Fraction, slope: int) -> None:
        """The zero of a function that is strictly monotone on [a, b], by interval Newton steps and bisection."""
        if _sign(self.f(rational(a))) == slope or _sign(self.f(rational(b))) == -slope:
            return
        self.budget -= _ISOLATION
        while b - a > _width(a):
            width, middle = b - a, rational((a + b) / 2)
            value = self.f(middle)
            if _sign(value) == slope:
                b = (a + b) / 2
            elif _sign(value) == -slope:
                a = (a + b) / 2
            ends = rational_ends(middle - value / self.df(ball((a, b))))
            if ends is not None:
                a, b = max(a, ends[0]), min(b, ends[1])
            if a > b:
                return
            if 2 * (b - a) > width:
                break  # the zero is within the error of an evaluation
        simple = simplest(a, b)
        if self.f(rational(simple)) == 0:
            a = b = simple
        self.cells.append((a, b))


def simplest(a: Fraction, b: Fraction) -> Fraction:
    """The rational of least denominator in [a, b] (Stern-Brocot)."""
    if a <= 0 <= b:
        return Fraction(0)
    if b < 0:
        return -simplest(-b, -a)
    whole = Fraction(-(-a.numerator // a.denominator))
    if whole <= b:
        return whole
    floor = whole - 1
    return floor + 1 / simplest(1 / (b - floor), 1 / (a - floor))


def merged(cells: list[Cell]) -> list[Cell]:
    """Touching cells united."""
    result: list[Cell] = []
    for a, b in sorted(cells):
        if result and a <= result[-1][1]:
            result[-1] = (result[-1][0], max(b, result[-1][1]))
        else:
            result.append((a, b))
    return result
