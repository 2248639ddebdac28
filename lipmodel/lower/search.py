"""The search for a witness pair: anytime, in floating point, and only exact quotients count."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from lipmodel.lower.ascent import ascend
from lipmodel.lower.balls import Array
from lipmodel.lower.linearise import FloatProgram, float_program
from lipmodel.lower.moves import DENSE, Box, Flips, Point, cell, climb, flips, local_norms, metric_rows, polish
from lipmodel.lower.pairs import proposals
from lipmodel.lower.realise import LARGEST, improving_flips, realise
from lipmodel.lower.sweep import sweep
from lipmodel.lower.witness import Mode, PairProgram, Rows, Witness, output_rows, pair_program
from lipmodel.lower.zone import Zone, zone
from lipmodel.spec import Domain, Global, Norm, Outputs, parse_outputs

if TYPE_CHECKING:
    from lipmodel.network.graph import Network

POOL = 60
"""Visited points that are remembered on every island."""
ISLANDS = 12
"""Regions that are searched side by side."""
PATIENCE = 25
"""Expansions without success after which an island counts as searched."""
SQUEEZED = 24
"""Linear programs at one summit."""
KEPT = 60
"""Points of a batch that are remembered at most."""


def search(
    network: Network,
    p: Norm,
    q: Norm,
    *,
    outputs: Outputs | str = "all",
    time_limit: float | None = 1.0,
    deadline: float | None = None,
    seed: int = 0,
    domain: Domain | None = None,
    target: float | None = None,
) -> Witness | None:
    """The best witness pair found for ||f(x)-f(y)||_q / ||x-y||_p; None where every quotient found is 0 or undecided.

    time_limit: seconds; deadline: in the clock of time.perf_counter, whichever comes first; a first attempt is made in
    any case. seed: equal seeds try equal starts. domain: where both points lie (default: the whole input space).
    target: the search ends when a quotient reaches it (a proved upper bound, for example). The ratio of the witness is
    proved, whatever the search believed. Raises UsageError where the outputs do not fit the network.
    """
    begin = time.perf_counter()
    end = min(
        math.inf if deadline is None else deadline, math.inf if time_limit is None else begin + max(time_limit, 0.0)
    )
    chosen = parse_outputs(outputs)
    rows, mode = output_rows(chosen, network.output_size)
    where = zone(Global() if domain is None else domain, network.input_size, p)
    if where.domain.is_point:
        return None
    hunt = Hunt(
        program=float_program(network, rows, held=None if where.box is None else where.box[0] == where.box[1]),
        pairs=pair_program(network),
        p=p,
        q=q if mode == "vector" else "inf",
        rows=rows,
        mode=mode,
        asked=q,
        outputs=chosen,
        end=end,
        rng=np.random.default_rng(seed),
        zone=where,
        target=math.inf if target is None else target,
    )
    hunt.run()
    return hunt.best


@dataclass(slots=True, kw_only=True, eq=False)
class Island:
    """A region of the search: the points found from one start, and how long ago the best of them was found."""

    points: dict[bytes, Point] = field(default_factory=dict)
    summit: float = 0.0
    top: bytes = b""
    stalled: int = 0

    def add(self, key: bytes, point: Point) -> None:
        self.points[key] = point
        if point.value > self.summit * (1.0 + 1e-9):
            self.summit, self.top, self.stalled = point.value, key, 0
        if len(self.points) > POOL:
            del self.points[min(self.points, key=lambda k: self.points[k].value)]


@dataclass(slots=True, kw_only=True, eq=False)
class Hunt:
    """The state of one search."""

    program: FloatProgram
    pairs: PairProgram
    p: Norm
    q: Norm
    rows: Rows | None
    mode: Mode
    asked: Norm
    outputs: Outputs
    end: float
    rng: np.random.Generator
    zone: Zone
    target: float
    best: Witness | None = None
    offered: float = 0.0
    offered_at: float = 0.0
    cost: float = 0.0
    waiting: Point | None = None
    scale: float = 1.0
    batch: int = 8
    steps: int = 40
    ascending: float = 0.0
    expanding: float = 0.0
    refused: set[bytes] = field(default_factory=set)
    islands: list[Island] = field(default_factory=list)

    def run(self) -> None:
        """Search until the time is over, the target is reached, or there is nothing left to try."""
        with np.errstate(all="ignore"), threadpool_limits(limits=1):
            self._start()
            if self.program.neurons > 0 and not self._swept():
                self._roam()
            if self.waiting is not None:
                self._offer()

    def _roam(self) -> None:
        while not self.over:
            island = self._chosen_island()
            begin = time.perf_counter()
            if island is None:
                self._settle()
                self.ascending += time.perf_counter() - begin
                continue
            with suppress(np.linalg.LinAlgError):  # a degenerate cell: the next move starts elsewhere
                self._expand(island)
            self.expanding += time.perf_counter() - begin

    def _swept(self) -> bool:
        """Visit every piece of a piecewise linear network of one input; whether that was done."""
        if self.program.inputs != 1 or self.program.has_smooth:
            return False
        x, complete = sweep(self.program, self.scale, self.box, lambda: self.over)
        for first in range(0, x.shape[1], 1024):
            self.visit(x[:, first : first + 1024], self.islands[0], keep=KEPT)
        return complete

    @property
    def box(self) -> Box | None:
        return self.zone.box

    @property
    def over(self) -> bool:
        reserve = self.cost if self.waiting is not None and self.best is not None else 0.0
        return time.perf_counter() + reserve >= self.end or (self.best is not None and self.best.ratio >= self.target)

    def _settle(self) -> None:
        """Found a new island where an ascent from random points, or from the best ones, has led."""
        program, island = self.program, Island()
        count = int(np.clip(self.batch, 8, 64))
        summits = [max(t.points.values(), key=lambda point: point.value).x for t in self.islands if t.points]
        warm = len(summits) >= 2 and self.rng.random() < 0.4
        x = self.starts(count)
        if warm:
            x = np.stack([summits[int(k)] for k in self.rng.integers(len(summits), size=count)], axis=1)
        size = np.maximum(np.linalg.norm(x, axis=0), self.scale * math.sqrt(program.inputs))
        if self.box is not None:
            size = np.full(count, self.zone.diameter)
        x = ascend(
            program,
            x,
            self.p,
            self.q,
            steps=self.steps,
            size=size,
            rng=self.rng,
            warmth=0.2 if warm else 1.0,
            box=self.box,
            stop=lambda: time.perf_counter() >= self.end,
        )
        self.visit(x, island, keep=KEPT)
        self.islands.append(island)
        if len(self.islands) > ISLANDS:
            self.islands.remove(min(self.islands, key=lambda t: (t.summit, -t.stalled)))
        self.steps = min(2 * self.steps, 800) if self.rng.random() < 0.5 else self.steps

    def _chosen_island(self) -> Island | None:
        """Mostly the highest island that has not been searched for long without success; None: a new one."""
        active = [t for t in self.islands if t.points and t.stalled < PATIENCE]
        chance = self.rng.random()
        if self.ascending < self.expanding or (not active and chance < 0.8) or not self.islands[0].points:
            return None
        if not active or chance < 0.15:
            return max(self.islands, key=lambda t: t.summit)
        if chance < 0.8:
            return max(active, key=lambda t: (t.summit, t.stalled))
        return active[int(self.rng.integers(len(active)))]

    @property
    def thin(self) -> bool:
        """Whether patterns can be realised by linear programs."""
        program = self.program
        small = program.neurons * program.inputs <= LARGEST and min(program.inputs, program.outputs) <= DENSE
        return small and not program.has_smooth

    # --- points ---

    def _start(self) -> None:
        program = self.program
        zero = np.zeros((program.inputs, 1)) if self.box is None else (0.5 * (self.box[0] + self.box[1]))[:, None]
        stack = program.forward(zero)
        if program.neurons:
            noise = self.rng.standard_normal((program.inputs, 1))
            tangent = program.push(program.slopes(stack), noise)[1]
            reach = np.min(np.abs(program.breaks - stack), axis=1, initial=np.inf)
            ratio = reach / np.maximum(np.abs(tangent[:, 0]), 1e-300)
            ratio = ratio[np.isfinite(ratio) & (ratio > 0) & (ratio < 1e100)]
            if len(ratio):
                self.scale = float(np.clip(np.median(ratio), 1e-6, 1e6))
        self.islands.append(Island())
        self.visit(np.concatenate([zero, self.starts(7)], axis=1), self.islands[0], keep=4)

    def starts(self, count: int) -> Array:
        """Random points at many scales, shape (inputs, count)."""
        n = self.program.inputs
        if self.box is not None:
            return self.zone.starts(count, self.rng)
        size = self.scale * 10.0 ** self.rng.uniform(-0.7, 1.3, count)
        size[1::4] = self.scale * 10.0 ** self.rng.uniform(-2.0, 3.0, len(size[1::4]))
        x = self.rng.standard_normal((n, count)) * size
        x[:, ::4] *= self.rng.random((n, len(range(0, count, 4)))) < 0.3
        return np.asarray(x + 1e-9 * self.scale * self.rng.standard_normal((n, count)))

    def visit(self, x: Array, island: Island, keep: int) -> None:
        """Evaluate the columns of x, add the best to the island, make a witness of the very best."""
        x = self.zone.inside(x)
        begin = time.perf_counter()
        x = x[:, np.all(np.isfinite(x), axis=0)]
        if not x.shape[1]:
            return
        stack, found = local_norms(self.program, x, self.p, self.q)
        value = np.where(np.isfinite(found.value), found.value, 0.0)
        for k in np.argsort(-value, kind="stable")[:keep].tolist():
            key = self._key(stack[:, k], x[:, k])
            if value[k] > 0 and key not in island.points:
                island.add(key, Point(x=x[:, k].copy(), value=float(value[k]), v=found.v[k], u=found.u[k]))
        top = int(np.argmax(value))
        if value[top] > max(self.offered, 0.0 if self.waiting is None else self.waiting.value) * (1.0 + 1e-12):
            self.waiting = Point(x=x[:, top].copy(), value=float(value[top]), v=found.v[top], u=found.u[top])
        spent = time.perf_counter() - begin
        self.batch = int(np.clip(0.02 / max(spent / x.shape[1], 1e-7), 4, min(256, 2 * x.shape[1])))
        # exact measures of large networks take long: no more than a tenth of the time
        if self.waiting is not None and time.perf_counter() - self.offered_at >= 10.0 * self.cost:
            self._offer()

    def _key(self, stack: Array, x: Array) -> bytes:
        if self.program.has_smooth:
            return x.tobytes()
        live = self.program.jumps != 0.0
        return np.packbits((stack[:, None] > self.program.breaks)[live]).tobytes()

    # --- moves ---

    def _expand(self, island: Island) -> None:
        """Try moves from a promising point of an island."""
        island.stalled += 1
        if island.stalled in (PATIENCE // 3, PATIENCE - 1) and self.thin:
            self._squeeze(island, pairs=island.stalled == PATIENCE - 1)
        elif island.stalled == PATIENCE // 3 and self.program.has_smooth:
            summit = max(island.points.values(), key=lambda t: t.value)
            self.visit(polish(self.program, summit.x, self.p, self.q, self.box)[:, None], island, keep=1)
        points = sorted(island.points.values(), key=lambda t: -t.value / (1.0 + 0.03 * t.visits))
        point = points[0 if self.rng.random() < 0.7 else int(len(points) * self.rng.random() ** 2)]
        point.visits += 1
        known = flips(self.program, point)
        parts = self._crossings(point, known)
        parts.append(self._strides(point, known, max(4, self.batch - sum(part.shape[1] for part in parts))))
        self.visit(np.concatenate(parts, axis=1), island, keep=KEPT)
        if any(t is not island and t.stalled >= PATIENCE and island.top in t.points for t in self.islands):
            island.stalled = max(island.stalled, PATIENCE)

    def _squeeze(self, island: Island, *, pairs: bool) -> None:
        """From the summit of an island, look for better neighbouring cells that are too thin to be met by chance."""
        summit = max(island.points.values(), key=lambda t: t.value)
        found = []
        for pattern in improving_flips(self.program, summit.x, self.p, self.q, pairs=pairs).T[:SQUEEZED]:
            key = self._key(pattern, summit.x)
            if key in self.refused or self.over:
                continue
            x = realise(self.program, pattern, self.box)
            if x is None:
                self.refused.add(key)
            else:
                found.append(x)
        if found:
            self.visit(np.stack(found, axis=1), island, keep=KEPT)

    def _crossings(self, point: Point, known: Flips) -> list[Array]:
        """Moves across the breaks of chosen neurons: single ones in turn, and several gainful ones at once."""
        most = metric_rows(self.program)
        single = np.arange(point.tried, min(point.tried + min(max(4, self.batch // 4), most // 2), len(known.neuron)))
        point.tried += len(single)
        gainful = np.flatnonzero(known.gain > 1e-9 * abs(point.value))[: most // 2]
        wanted = np.unique(np.concatenate([known.neuron[single], known.neuron[gainful]]))
        if not len(wanted):
            return []
        around = cell(self.program, point.x, known, wanted, self.box)
        x = point.x = around.x
        step = around.towards(known.neuron[single], known.need[single])
        parts = [around.beyond(step, self.rng.uniform(0.02, 0.7, len(single)))]
        over = 1.0 + 10.0 ** self.rng.uniform(-2.5, 0.5, len(single))
        parts.append(x[:, None] + step * np.where(self.rng.random(len(single)) < 0.5, over, 1.0))
        for count in self._counts(len(gainful)):
            some = gainful[:count] if self.rng.random() < 0.5 else self.rng.permutation(gainful)[:count]
            some = some[np.unique(known.neuron[some], return_index=True)[1]]
            beyond = 1.0 + 10.0 ** self.rng.uniform(-2.5, 0.5)
            parts.append((x + around.across(known.neuron[some], known.need[some] * beyond))[:, None])
        rays = around.steps @ self.rng.standard_normal((around.steps.shape[1], max(4, self.batch // 6)))
        parts.append(around.beyond(rays, self.rng.uniform(0.02, 0.7, rays.shape[1])))
        return parts

    def _strides(self, point: Point, known: Flips, count: int) -> Array:
        """Steps of all lengths: in random directions, along v, and uphill where the network is smooth."""
        direction = self.rng.standard_normal((self.program.inputs, count))
        direction[:, ::3] = point.v[:, None]
        if self.program.has_smooth:
            direction[:, 1::3] = climb(self.program, known)[:, None]
        direction /= np.maximum(np.max(np.abs(direction), axis=0), 1e-300)
        size = max(self.scale, float(np.max(np.abs(point.x))))
        length = size * 10.0 ** self.rng.uniform(-4.0, 1.0, count)
        length[::3] *= self.rng.choice([-1.0, 1.0], len(length[::3]))
        return np.asarray(point.x[:, None] + direction * length)

    def _counts(self, limit: int) -> list[int]:
        top = min(limit, self.program.inputs)
        counts = sorted({round(2 ** (0.5 * k)) for k in range(2, 22) if round(2 ** (0.5 * k)) < top} | {top})
        return [int(c) for c in self.rng.permutation(counts)[: max(2, self.batch // 8)] if c >= 2]

    # --- witnesses ---

    def _offer(self) -> None:
        """Make pairs around the best point known, along its v and then along a better direction; keep the best."""
        begin = time.perf_counter()
        assert self.waiting is not None
        x, value, v = self.waiting.x, self.waiting.value, self.waiting.v
        self.waiting = None
        if self.best is None or min(self.program.inputs, self.program.outputs) <= DENSE:
            self._measure(x, value, v)
        if not self.over:
            _, found = local_norms(self.program, x[:, None], self.p, self.q, thorough=True)
            better = float(found.value[0])
            if self.best is None or better > self.best.ratio * (1.0 + 1e-12):
                self._measure(x, better, found.v[0])
        self.offered = max(self.offered, value if self.best is None else self.best.ratio)
        self.offered_at = time.perf_counter()
        self.cost = self.offered_at - begin

    def _measure(self, x: Array, value: float, v: Array) -> None:
        for tried, (a, b) in enumerate(proposals(self.program, x, v, self.zone, exact=self.pairs.exact)):
            if tried > 1 and self.over:
                break
            if not (self.zone.holds(a) and self.zone.holds(b)):
                continue
            ratio = self.pairs.ratio(a, b, self.p, self.asked, rows=self.rows, mode=self.mode)
            if ratio > (0.0 if self.best is None else self.best.ratio):
                self.best = Witness(x=a, y=b, p=self.p, q=self.asked, outputs=self.outputs, ratio=ratio)
            if ratio >= value * (1.0 - (1e-9 if self.program.has_smooth else 1e-12)):
                break
