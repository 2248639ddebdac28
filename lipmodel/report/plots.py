"""A comparison as a picture: bound against time, both logarithmic, the lower bound as a floor. Needs matplotlib."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.errors import UsageError
from lipmodel.report.comparison import subject
from lipmodel.report.tables import printable
from lipmodel.result import rounded, write_atomically

if TYPE_CHECKING:
    from lipmodel.comparison import Comparison, Entry

SUFFIXES = (".svg", ".png", ".pdf")
SHORTEST = 1e-3
"""Seconds at which the axis of time begins."""
DISTANCES = (9.0, 14.0, 22.0, 34.0, 50.0, 70.0, 95.0, 125.0)
"""Points between a marker and its label: the nearest place that is free is taken."""
DIRECTIONS = 16
SIZES = (1e-150, 1e150)
"""What a logarithmic axis can take with room around it; bounds beyond are not drawn."""
_ALONE, _SOLVED, _FLOOR = "#1f5fa8", "#c4541b", "#3a7d34"
Box = tuple[float, float, float, float]
Array = np.ndarray[Any, np.dtype[np.float64]]


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raises UsageError where a picture cannot be drawn: better before the work than after it."""
    from importlib.util import find_spec

    if Path(path).suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path}: the name must end in {', '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'lipmodel[plot]'")


def plot(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Draw every method that answered to a file; its suffix says the format. Raises UsageError."""
    check_plot(path)
    suffix = Path(path).suffix.lower().removeprefix(".")
    stream = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix, {})
    figure(comparison).savefig(stream, format=suffix, dpi=150, metadata=metadata)
    write_atomically(path, stream.getvalue())


def figure(comparison: Comparison) -> Any:
    """The matplotlib Figure: one labelled marker per method, hollow where another bound stands in for its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8.0, 5.2), layout="constrained")
    canvas = FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    name = comparison.network["path"]
    network = "" if name is None else f"{printable(Path(name).name)}: "
    axes.set_title(_literal(f"{network}{subject(comparison)}"), fontsize=12)
    axes.set_xlabel("time (s)", fontsize=11)
    axes.set_ylabel("proved bound", fontsize=11)
    axes.tick_params(labelsize=10)
    entries = [entry for entry in comparison.answered if SIZES[0] <= entry.bound <= SIZES[1]]
    lower = comparison.lower_bound
    floor = lower if lower is not None and SIZES[0] <= lower <= SIZES[1] else None
    if not entries:
        why = "no bound but 0" if comparison.best == 0.0 else "no bound of a size that can be drawn"
        axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, fontsize=12)
        return drawn
    times = np.array([max(entry.seconds, SHORTEST) for entry in entries])
    bounds = np.array([entry.bound for entry in entries])
    axes.set_xscale("log")
    axes.set_yscale("log")
    _limits(axes, times, bounds, floor)
    _markers(axes, entries, times, bounds)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    taken: list[Box] = []
    canvas.draw()  # the layout must stand before labels can be placed
    if floor is not None:
        axes.axhline(floor, color=_FLOOR, linewidth=1.4)
        text = axes.annotate(
            f"lower bound {rounded(floor, up=False)}",
            (0.01, floor),
            xycoords=("axes fraction", "data"),
            xytext=(0.0, -4.0),
            textcoords="offset points",
            va="top",
            color=_FLOOR,
            fontsize=9,
        )
        left, _, right, _ = axes.get_window_extent().extents
        height = axes.transData.transform((times[0], floor))[1]
        taken += [text.get_window_extent().extents, (left, height - 2.0, right, height + 2.0)]
    _labels(drawn, axes, entries, np.column_stack([times, bounds]), taken)
    return drawn


def _limits(axes: Any, times: Array, bounds: Array, floor: float | None) -> None:
    """Room for labels on every side, and readable ticks whether the bounds span many decades or a few per cent."""
    low = math.log10(min(bounds.min(), math.inf if floor is None else floor))
    high = math.log10(bounds.max())
    room = 0.12 * max(high - low, 0.02)
    axes.set_ylim(10.0 ** (low - 1.8 * room), 10.0 ** (high + room))
    first, last = math.log10(times.min()), math.log10(times.max())
    span = 0.1 * max(last - first, 1.0)
    axes.set_xlim(10.0 ** (first - span), 10.0 ** (last + 2.5 * span))
    for axis, ends in ((axes.yaxis, axes.get_ylim()), (axes.xaxis, axes.get_xlim())):
        _ticks(axis, *ends)


def _ticks(axis: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    decades = math.log10(high) - math.log10(low)
    if decades > 4.0:
        axis.set_minor_formatter(NullFormatter())
        return
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if decades > 1.0 else MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}".replace("e+", "e").replace("e0", "e")))
    axis.set_minor_locator(NullLocator())


def _markers(axes: Any, entries: Sequence[Entry], times: Array, bounds: Array) -> None:
    kinds = {
        ("without a solver", "o", _ALONE, True): [],
        ("with a solver", "s", _SOLVED, True): [],
        ("another bound instead", "o", "#777777", False): [],
    }  # type: dict[tuple[str, str, str, bool], list[int]]
    keys = list(kinds)
    for k, entry in enumerate(entries):
        instead = entry.result is not None and entry.result.instead != ""
        kinds[keys[2] if instead else keys[0] if entry.backend is None else keys[1]].append(k)
    for (name, marker, color, filled), found in kinds.items():
        if found:
            face = color if filled else "none"
            style = {"marker": marker, "s": 42, "edgecolors": color, "facecolors": face, "label": name, "zorder": 3}
            axes.scatter(times[found], bounds[found], **style)
    axes.legend(loc="upper right", fontsize=9, framealpha=0.9)


def _labels(drawn: Any, axes: Any, entries: Sequence[Entry], points: Array, taken: list[Box]) -> None:
    """A label beside every marker, at the nearest place where it covers nothing, with a line where that is far."""
    from matplotlib.text import Text

    scale = drawn.dpi / 72.0
    spots = axes.transData.transform(points)
    frame = axes.get_window_extent().extents
    taken += [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in spots]
    legend = axes.get_legend()
    taken.append(legend.get_window_extent().extents)
    crowd = [sum(float(np.hypot(*(a - b))) < 120 * scale for b in spots) for a in spots]
    for k in sorted(range(len(entries)), key=lambda k: (-crowd[k], float(spots[k][0]))):
        text = axes.annotate(
            _literal(printable(entries[k].label)),
            points[k],
            xytext=(0.0, 0.0),
            textcoords="offset points",
            va="bottom",
            fontsize=9,
            zorder=4,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
        text.set_in_layout(False)  # the axes must stay as they are
        x0, y0, x1, y1 = Text.get_window_extent(text).extents  # without its line
        width, height = x1 - x0, y1 - y0
        offset, box = _place(spots[k], width, height, scale, frame, taken)
        taken.append(box)
        text.set_position(((box[0] - spots[k][0]) / scale, (box[1] - spots[k][1]) / scale))
        if offset <= DISTANCES[0]:
            text.arrow_patch.set_visible(False)


def _place(
    spot: Array, width: float, height: float, scale: float, frame: Sequence[float], taken: Sequence[Box]
) -> tuple[float, Box]:
    """The distance and the box of a label of this size: free of others if any place is, else the least covered."""
    best: tuple[float, float, Box] | None = None
    for distance in DISTANCES:
        for turn in range(DIRECTIONS):
            angle = 2.0 * math.pi * turn / DIRECTIONS
            dx, dy = math.cos(angle), math.sin(angle)
            # the point of the box that is nearest to the marker lies at the distance
            x = spot[0] + dx * distance * scale + (0.5 * dx - 0.5) * width
            y = spot[1] + dy * distance * scale + (0.5 * dy - 0.5) * height
            box = (x, y, x + width, y + height)
            outside = (
                max(0.0, frame[0] - box[0])
                + max(0.0, box[2] - frame[2])
                + max(0.0, frame[1] - box[1])
                + max(0.0, box[3] - frame[3])
            )
            covered = sum(_overlap(box, other) for other in taken) + outside * height
            if covered == 0.0:
                return distance, box
            if best is None or covered < best[0]:
                best = (covered, distance, box)
    assert best is not None
    return best[1], best[2]


def _overlap(a: Box, b: Sequence[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _literal(text: str) -> str:
    """Dollar signs are no mathematics."""
    return text.replace("$", r"\$")
