"""Where the path follower starts: a program in units of order one, its barrier, and a strictly feasible point."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.native.blocks import BlockBarrier
from lipmodel.backends.native.chain import Array, Exponents
from lipmodel.backends.native.closed import Guess, guesses, users
from lipmodel.backends.native.follower import follow_path
from lipmodel.backends.native.program import Program, Rows, plain_rows
from lipmodel.backends.native.start import MARGIN
from lipmodel.backends.native.structure import Structure, guarded
from lipmodel.backends.native.units import (
    Units,
    binary_exponents,
    coefficient_exponents,
    no_units,
    row_masses,
    scaled,
)

EXCESS = (1.02, 1.1, 2.0, 16.0)  # of the weights at one end over what a closed form asks for
BESIDES = tuple(10.0 ** (-k / 2) for k in range(28))  # trial weights of what is stated besides


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Launch:
    """A strictly feasible point y, in the barrier's units and order of unknowns.

    units, program: the scaled program. balance: how the barrier's unknowns stand for the program's, where it fixes the
    price of the far end.
    """

    units: Units
    program: Program
    barrier: BlockBarrier
    y: Array
    balance: Balance | None = None

    def point(self, y: Array) -> Array:
        """The unknowns of the scaled program."""
        found = np.empty(len(y))
        found[self.barrier.unknowns] = y
        return found if self.balance is None else self.balance.point(found)

    def vector(self, unknowns: Array) -> Array:
        """The barrier's y from positive unknowns of the scaled program, up to the balance between its ends."""
        full = unknowns if self.balance is None else self.balance.reduced(unknowns)
        return np.asarray(full[self.barrier.unknowns])

    def objective(self, value: float) -> float:
        """That of the scaled program from the barrier's."""
        return value if self.balance is None else self.balance.objective(value)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Balance:
    """min a'kappa + b'sigma as min a'kappa with b'sigma = price, which is the same up to a factor.

    (kappa, t, sigma) and (c kappa, c t, sigma / c) are equally feasible, and the best c makes the objective
    2 sqrt(a'kappa b'sigma). The square of a constant falls faster along the path than the constant itself. One unknown
    is given by the others.
    """

    cost: Array  # of the unknowns at the near end, zero for the others
    beyond: Array  # b, zero for the others
    price: float
    given: int

    def point(self, y: Array) -> Array:
        """All unknowns, at the best c."""
        full = np.insert(y, self.given, 0.0)
        full[self.given] = (self.price - float(self.beyond @ full)) / self.beyond[self.given]
        value = float(self.cost @ full)
        scale = math.sqrt(self.price / value) if value > 0.0 else 1.0
        return np.where(self.beyond > 0.0, full / scale, full * scale)

    def reduced(self, full: Array) -> Array:
        """The other way round: the unknowns that are not given, at the scale that has the price."""
        scale = self.price / float(self.beyond @ full)
        return np.delete(np.where(self.beyond > 0.0, full * scale, full / scale), self.given)

    def objective(self, value: float) -> float:
        return 2.0 * math.sqrt(max(self.price * value, 0.0))


def launched(program: Program, structure: Structure | None, deadline: float) -> Launch | None:
    """From the first closed form that is strictly feasible, else the first phase; None where that finds nothing."""
    if structure is not None:
        for guess in guesses(program, structure):
            start = _from_guess(program, structure, guess)
            if start is not None:
                return _balanced(start, structure)
    return _first_phase(program, structure, deadline)


def _balanced(start: Launch, structure: Structure) -> Launch:
    """The same start with the price of the far end fixed, where the program allows it."""
    program = start.program
    far = users(program, structure.duals.values())
    if structure.extra or program.root or np.any(program.shift) or not far.any():
        return start
    if not np.all(program.cost[far] > 0.0) or not np.any(program.cost[~far] > 0.0):
        return start
    y = start.point(start.y)
    beyond = np.where(far, program.cost, 0.0)
    price = float(beyond @ y)
    given = int(np.argmax(beyond * y))
    # y_given = (price - sum of the others) / its cost
    column = program.weights[:, [given]]
    others = np.flatnonzero(np.arange(program.unknowns) != given)
    ratio = sp.csr_array(beyond[None, others] / beyond[given])
    changed = replace(
        program,
        weights=sp.csr_array(program.weights[:, others] - column @ ratio),
        shift=np.asarray(column.toarray()).ravel() * (price / beyond[given]),
        cost=np.where(far, 0.0, program.cost)[others],
        nonnegative=program.nonnegative[others],
        root=True,
    )
    barrier = BlockBarrier(changed, guarded(program, structure)[others])
    point = y[others][barrier.unknowns]
    if barrier.factorize(point) is None:
        return start
    balance = Balance(cost=np.where(far, 0.0, program.cost), beyond=beyond, price=price, given=given)
    return replace(start, barrier=barrier, y=point, balance=balance)


def _from_guess(program: Program, structure: Structure, guess: Guess) -> Launch | None:
    known = np.isfinite(guess.unknowns)
    powers = np.round(np.where(known, guess.unknowns, 0.0)).astype(np.int64)
    if not known.all():
        sizes = coefficient_exponents(scaled(program, guess.signals, np.zeros_like(powers))[0])
        powers = np.where(known, powers, -sizes)
    changed, units = scaled(program, guess.signals, powers)
    barrier = BlockBarrier(changed, guarded(program, structure))
    base = np.exp2(np.where(known, guess.unknowns - powers, 0.0))
    raised = users(program, structure.inputs.values())
    margin = np.ones_like(raised) if structure.slack else users(program, structure.duals.values())
    base = np.where(margin, MARGIN * base, base)
    for excess in EXCESS:
        best: tuple[float, Array] | None = None
        for small in (1.0,) if known.all() else BESIDES:
            y = np.where(raised, excess * base, np.where(known, base, small))[barrier.unknowns]
            factor = barrier.factorize(y)
            if factor is not None and (best is None or factor.logdet > best[0]):
                best = factor.logdet, y
        if best is not None:
            return Launch(units=units, program=changed, barrier=barrier, y=best[1])
    return None


def _at_point(program: Program, structure: Structure | None, y: Array, powers: Exponents) -> Launch | None:
    """The launch from y (in units 2^powers), in units in which it is of order one; None unless it is feasible."""
    own = binary_exponents(y)
    masses = row_masses(scaled(program, no_units(program), powers)[0], y)
    changed, units = scaled(program, [-(binary_exponents(part) // 2) for part in masses], powers + own)
    barrier = BlockBarrier(changed, guarded(program, structure))
    start = np.ldexp(y, -own)[barrier.unknowns]
    return None if barrier.factorize(start) is None else Launch(units=units, program=changed, barrier=barrier, y=start)


# ---------------------------------------------------------------------------------------------------------------------
# First phase


def _first_phase(program: Program, structure: Structure | None, deadline: float) -> Launch | None:
    """A strictly feasible point of any program, None where none was found."""
    zero = np.zeros(program.unknowns, dtype=np.int64)
    powers = -coefficient_exponents(scaled(program, no_units(program), zero)[0])
    relaxed = _relaxed(scaled(program, no_units(program), powers)[0])
    barrier = BlockBarrier(relaxed, relaxed.nonnegative)
    start = np.ones(relaxed.unknowns)
    start[-1] = 4.0
    found = follow_path(
        barrier,
        start[barrier.unknowns],
        tol=1e-9,
        deadline=deadline,
        max_iterations=100,
        report=lambda iteration, best, lower, gap: lower <= 0.0,
        target=0.0,
        lower=-math.inf,
        fade=True,
    )
    point = np.empty(relaxed.unknowns)
    point[barrier.unknowns] = found.y
    if not point[-1] < 0.0:
        return None
    return _at_point(program, structure, point[:-2] / point[-2], powers)


def _relaxed(program: Program) -> Program:
    """min s subject to tau C + sum_j y_j A_j + s diag(d) > 0, y bounded and tau > 0: a compact homogeneous program.

    Its unknowns are (y, tau, s); y = 1, tau = 1, s = 4 is strictly feasible, and where s < 0, y / tau is so in the
    program itself.
    """
    count, signals = program.unknowns, len(program.sizes)
    rows, weights, shifts = list(program.rows), [], []

    def add(group: Rows | None, size: int, unknown: int, factor: Array) -> None:
        if group is not None:
            rows.append(group)
        entries = (factor, (np.arange(size), np.full(size, unknown)))
        weights.append(sp.csr_array(entries, shape=(size, count + 2)))
        shifts.append(np.zeros(size))

    add(None, len(program.shift), count, program.shift)
    wider = sp.hstack([program.weights, sp.csr_array((len(program.shift), 2))], format="csr")
    weights[0] = sp.csr_array(weights[0] + wider)
    for (a, b), block in program.constant.items():
        # e m' + m e' = u r' + r u' - 2 e e' with u = e + m, r = e
        ball = plain_rows(a, program.sizes[a])
        ones = np.ones(ball.size)
        add(replace(ball, alpha=-ones, pre={b: block / 2 if a == b else block}), ball.size, count, ones)
        add(ball, ball.size, count, -ones)
    for s, mass in enumerate(row_masses(program, np.ones(count))):
        add(plain_rows(s, program.sizes[s]), program.sizes[s], count + 1, mass / 2)
    free = np.flatnonzero(~program.nonnegative)
    walls = np.zeros((1 + 2 * free.size, count + 2))  # 1 - sum y / 4 > 0 over y >= 0 and tau; |y| < 2 for the others
    walls[0, :-1] = -0.25 * np.append(program.nonnegative, True) / (1 + np.count_nonzero(program.nonnegative))
    walls[1 + np.arange(free.size), free], walls[1 + free.size + np.arange(free.size), free] = 0.25, -0.25
    rows.append(plain_rows(signals, len(walls)))
    weights.append(sp.csr_array(walls))
    shifts.append(np.full(len(walls), 0.5))
    return replace(
        program,
        sizes=(*program.sizes, len(walls)),
        rows=tuple(rows),
        weights=sp.csr_array(sp.vstack(weights, format="csr")),
        shift=np.concatenate(shifts),
        constant={},
        cost=np.append(np.zeros(count + 1), 1.0),
        nonnegative=np.append(program.nonnegative, [True, False]),
        root=False,
    )
