"""What probes of the kernel are made of: questions, and answers in rationals that do not use the kernel."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Matrix = list[list[Fraction]]


@dataclass(frozen=True, slots=True)
class Probe:
    """A question to a kernel and its answer."""

    name: str
    run: Callable[[Any], Any]
    expected: Any

    def passes(self, kernel: Any) -> bool:
        """Whether the kernel answers as it should; whatever it raises beside its verdicts is a wrong answer."""
        try:
            return bool(self.run(kernel) == self.expected)
        except Exception:
            return False


def psd(matrix: Matrix) -> bool:
    """Whether a symmetric rational matrix is positive semidefinite, by its LDL' factorisation."""
    m = [list(row) for row in matrix]
    for k in range(len(m)):
        pivot = m[k][k]
        if pivot < 0 or (pivot == 0 and any(m[k][k + 1 :])):
            return False
        for i in range(k + 1, len(m)):
            if pivot and m[i][k]:
                factor = m[i][k] / pivot
                m[i][k:] = [a - factor * b for a, b in zip(m[i][k:], m[k][k:], strict=True)]
    return True


def inequality(system: dict[str, Any], t: list[list[float]], g: list[float], s: list[float]) -> Matrix:
    """P = diag(g) + sum_j t_j (u_j r_j' + r_j u_j') bordered by -C and diag(s), straight from the definition."""
    sizes, total, m = system["sizes"], sum(system["sizes"]), len(s)
    starts = [0, *itertools.accumulate(sizes)]
    p = [[Fraction(0)] * (total + m) for _ in range(total + m)]

    def row(form: dict[int, list[list[float]]], i: int) -> list[Fraction]:
        result = [Fraction(0)] * total
        for j, block in form.items():
            result[starts[j] : starts[j] + sizes[j]] = map(Fraction, block[i])
        return result

    for i, v in enumerate(g):
        p[i][i] += Fraction(v)
    for k, form in enumerate(system["pre"], start=1):
        for j in range(sizes[k]):
            v, unit = row(form, j), [Fraction(int(c == starts[k] + j)) for c in range(total)]
            low, high = (Fraction(system[name][k - 1][j]) for name in ("alpha", "beta"))
            u = [e - low * a for e, a in zip(unit, v, strict=True)]
            r = [e - high * a for e, a in zip(unit, v, strict=True)]
            for b, c in itertools.product(range(total), repeat=2):
                p[b][c] += Fraction(t[k - 1][j]) * (u[b] * r[c] + r[b] * u[c])
    for i in range(m):
        p[total + i][total + i] = Fraction(s[i])
        for j, v in enumerate(row(system["output"], i)):
            p[total + i][j] = p[j][total + i] = -v
    return p


def built(k: Any, system: dict[str, Any]) -> Any:
    """The system for a kernel module."""
    return k.System(
        sizes=tuple(system["sizes"]),
        pre=tuple({j: block(k, b) for j, b in form.items()} for form in system["pre"]),
        alpha=tuple(map(tuple, system["alpha"])),
        beta=tuple(map(tuple, system["beta"])),
        output={j: block(k, b) for j, b in system["output"].items()},
        groups=tuple(system.get("groups", ())),
    )


def block(k: Any, values: Any, radius: Any = None) -> Any:
    """A matrix of doubles, or of rationals over a power of two, as a block."""
    parts = [[[Fraction(v) for v in row] for row in part] for part in (values, radius) if part is not None]
    exponent = max(v.denominator.bit_length() - 1 for part in parts for row in part for v in row)
    whole = [[[int(v * 2**exponent) for v in row] for row in part] for part in parts]
    return k.Block(mantissa=whole[0], exponent=exponent, radius=whole[1] if radius is not None else None)


def verdict(k: Any, action: Callable[[], Any]) -> Any:
    """What an action returns, "rejected", or "value error"."""
    try:
        return action()
    except k.Rejected:
        return "rejected"
    except ValueError:
        return "value error"


def with_arithmetic(k: Any, fast: bool, action: Callable[[], Any]) -> Any:
    """An action with flint's products, or with the plain ones."""
    saved = k.fmpz_mat
    k.fmpz_mat = saved if fast else None
    try:
        return action()
    finally:
        k.fmpz_mat = saved
