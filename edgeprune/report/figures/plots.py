"""Pictures of measurements: the way from dense to pruned, the roofline, single runs, sweeps, and runs over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from math import log2, nan

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from edgeprune.io import formatting as f
from edgeprune.report.figures.drawing import DENSE, GATHER, INK, PRUNED, REORDER, WIDTH, bar_axes, beside, legend
from edgeprune.report.views.measurements import (
    Distribution,
    Line,
    Roofline,
    RooflinePoint,
    Samples,
    Sweep,
    Trend,
    TrendPoint,
    Waterfall,
)
from edgeprune.report.words.results import samples_per_second

NAMED_POINTS = 3
NAME_ROOM = 0.5
"""Powers of two between two named layers' rates: below, their names would cover each other."""
BINS = 48
FARTHEST = 3.0
"""Times the slower median, at most, that a distribution shows: late runs would press all else together."""
COLOURS = (PRUNED, GATHER, REORDER, "#4c9a6a", "#8a7cc8", "#a8842c")
MARKERS = "osD^vP"
MOST_LABELS = 16
"""Runs that are labelled on a trend; of more, every second, third ..."""


def waterfall_bars(view: Waterfall) -> Figure:
    """Downwards: the dense time, what each layer takes off it (or adds to it), and the pruned time that is left."""
    names = ["dense network", *(step.name for step in view.steps), "pruned network"]
    figure, axes = bar_axes(len(names), row_inches=0.25, labels=names)
    axes.barh(0, view.dense_ms, 0.7, color=DENSE)
    beside(axes, view.dense_ms, 0, f.milliseconds(view.dense_ms))
    level = view.dense_ms
    for row, step in enumerate(view.steps, start=1):
        after = level - step.saved_ms
        axes.barh(row, abs(step.saved_ms), 0.7, left=min(level, after), color=GATHER if step.saved_ms < 0 else PRUNED)
        axes.plot([after, after], [row + 0.35, row + 0.65], color=INK, linewidth=0.5, alpha=0.6)
        beside(axes, max(level, after), row, f.signed_ms(-step.saved_ms))
        level = after
    axes.barh(len(names) - 1, view.pruned_ms, 0.7, color=DENSE)
    beside(axes, view.pruned_ms, len(names) - 1, f.milliseconds(view.pruned_ms))
    axes.set_xlabel("milliseconds, by the runtime's profiler")
    kinds = [Patch(color=DENSE, label="whole network"), Patch(color=PRUNED, label="time saved")]
    slower = [Patch(color=GATHER, label="time lost")] if any(step.saved_ms < 0 for step in view.steps) else []
    legend(figure, axes, [*kinds, *slower])
    return figure


def roofline_scatter(view: Roofline) -> Figure:
    """Rate over intensity, both logarithmic; from each layer a line up to what the device could do there."""
    figure = Figure(figsize=(WIDTH, 3.9))
    axes = figure.subplots()
    handles: list[Artist] = [_marker(PRUNED, "o", "layer")]
    if view.roof is not None:
        peak, slope = view.roof
        lowest = min(point.intensity for point in view.points) / 1.6
        highest = max(max(point.intensity for point in view.points), peak / slope) * 1.6
        xs = np.geomspace(lowest, highest, 96)
        axes.plot(xs, np.minimum(peak, slope * xs), color=INK, linewidth=1.2, alpha=0.8)
        handles.append(Line2D([], [], color=INK, linewidth=1.2, alpha=0.8, label="roof of the device"))
        for point in view.points:
            if point.bound is not None:
                axes.plot([point.intensity] * 2, [point.achieved, point.bound], color=DENSE, linewidth=0.7)
        handles.append(Line2D([], [], color=DENSE, linewidth=0.7, label="what is not used"))
    xs_, ys = [point.intensity for point in view.points], [point.achieved for point in view.points]
    axes.plot(xs_, ys, linestyle="", marker="o", markersize=4.5, color=PRUNED)
    for point in _worst(view):
        spot, name = (point.intensity, point.achieved), f.shortened(point.name, 28)
        axes.annotate(name, spot, (5, -3), textcoords="offset points", ha="left", va="top", fontsize=7.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):  # the usual labels are formulas, which stay unread
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("arithmetic intensity (FLOPs a byte, FLOPs = 2 x MACs)")
    axes.set_ylabel("GMAC/s")
    axes.margins(x=0.08, y=0.14)
    _grid(axes)
    figure.subplots_adjust(left=0.1, right=0.97, top=0.9, bottom=0.14)
    legend(figure, axes, handles)
    return figure


def _worst(view: Roofline) -> list[RooflinePoint]:
    """The layers that are farthest below what they could do, as far as there is room for their names."""
    named: list[RooflinePoint] = []
    best = max(point.achieved for point in view.points)
    for point in sorted(view.points, key=lambda point: point.achieved / (point.bound or best)):
        apart = (abs(log2(point.achieved / other.achieved)) > NAME_ROOM for other in named)
        if len(named) < NAMED_POINTS and all(apart):
            named.append(point)
    return named


def distribution_panels(view: Distribution) -> Figure:
    """One panel a setting: how many runs took how long, dense and pruned, with a line at each median."""
    count = len(view.panels)
    height = 0.5 + 1.35 * count
    figure = Figure(figsize=(WIDTH, height))
    panels = list(figure.subplots(count, 1, squeeze=False)[:, 0])
    for axes, panel in zip(panels, view.panels, strict=True):
        _histograms(axes, panel)
    panels[-1].set_xlabel("milliseconds of a run")
    figure.subplots_adjust(left=0.03, right=0.97, top=1 - 0.46 / height, bottom=0.46 / height, hspace=0.75)
    kinds = sorted({samples.which for panel in view.panels for samples in panel})
    legend(figure, panels[0], [Patch(color=_colour(which), label=which) for which in kinds])
    return figure


def sweep_curves(view: Sweep) -> Figure:
    """Left the speed-up, theoretical dashed and realistic with its interval; right the samples a second."""
    figure = Figure(figsize=(WIDTH, 3.4))
    left, right = figure.subplots(1, 2)
    several = len(view.lines) > 1
    styled = list(zip(view.lines, cycle(COLOURS), cycle(MARKERS), strict=False))
    for line, colour, marker in styled:
        _speedup_line(left, line, colour, marker)
        dense = [samples_per_second(result.batch_size, result.dense) or nan for result in line.results]
        pruned = [samples_per_second(result.batch_size, result.pruned) or nan for result in line.results]
        right.plot(
            line.x,
            dense,
            color=colour if several else DENSE,
            linewidth=1.0,
            marker=marker,
            markersize=3,
            linestyle="--",
        )
        right.plot(line.x, pruned, color=colour, linewidth=1.4, marker=marker, markersize=4)
    for axes, title in ((left, "speed-up"), (right, "samples a second")):
        axes.set_title(title, loc="left")
        axes.set_xscale("log", base=2)
        axes.set_xticks(values := sorted({x for line in view.lines for x in line.x}), list(map(str, values)))
        axes.minorticks_off()
        axes.set_xlabel(view.axis)
        axes.set_ylim(0, None)
        axes.margins(x=0.08, y=0.12)
        _grid(axes)
    figure.subplots_adjust(left=0.06, right=0.97, top=0.78, bottom=0.15, wspace=0.2)
    colours = [_marker(colour, marker, f.shortened(line.label, 30)) for line, colour, marker in styled]
    dashes = [
        Line2D([], [], color=INK, linewidth=1.0, linestyle="--", label="theoretical; dense"),
        Line2D([], [], color=INK, linewidth=1.4, label="realistic; pruned"),
    ]
    legend(figure, left, [*colours, *dashes])
    return figure


def trend_lines(view: Trend) -> Figure:
    """Through the runs: above the speed-up, theoretical and realistic, below the pruned network's p50."""
    points = view.points
    has_speedup = any(point.realistic is not None for point in points)
    figure = Figure(figsize=(WIDTH, 4.4 if has_speedup else 2.6))
    panels = list(figure.subplots(2 if has_speedup else 1, 1, sharex=True, squeeze=False)[:, 0])
    if has_speedup:
        _trend_speedups(panels[0], points)
        panels[0].set_title("speed-up", loc="left")
    latencies = panels[-1]
    latencies.set_title("p50 of the pruned network, ms", loc="left")
    _with_intervals(
        latencies, [(x, p.p50_ms, p.p50_interval_ms, p.settled) for x, p in enumerate(points) if p.p50_ms is not None]
    )
    for axes in panels:
        _grid(axes)
        axes.set_xlim(-0.5, len(points) - 0.5)
        axes.margins(y=0.2)
    height = figure.get_figheight()
    room = _run_labels(latencies, [point.label for point in points])
    figure.subplots_adjust(left=0.12, right=0.97, top=1 - 0.55 / height, bottom=room / height, hspace=0.35)
    dashed = [Line2D([], [], color=DENSE, linewidth=1.2, linestyle="--", label="theoretical (MACs)")]
    measured = _marker(PRUNED, "o", "measured, with its 95 % interval")
    open_ = [_marker(PRUNED, "o", "unsettled", hollow=True)] if not all(point.settled for point in points) else []
    legend(figure, panels[0], [*(dashed if has_speedup else []), measured, *open_])
    return figure


def _run_labels(axes: Axes, labels: Sequence[str]) -> float:
    """Names below the axes, turned where they are long; returns the inches that they need."""
    step = -(-len(labels) // MOST_LABELS)
    places = range(0, len(labels), step)
    shown = [f.shortened(labels[x], 22) for x in places]
    axes.set_xticks(places, shown)
    if sum(map(len, shown)) <= 80:
        return 0.3
    for text in axes.get_xticklabels():
        text.set(rotation=30, ha="right", rotation_mode="anchor")
    return 0.3 + 0.042 * max(map(len, shown))


def _trend_speedups(axes: Axes, points: Sequence[TrendPoint]) -> None:
    promised = [(x, point.theoretical) for x, point in enumerate(points) if point.theoretical is not None]
    if promised:
        axes.plot(*zip(*promised, strict=True), color=DENSE, linewidth=1.2, linestyle="--", marker="s", markersize=3.5)
    found = [(x, p.realistic, p.realistic_interval, p.settled) for x, p in enumerate(points) if p.realistic is not None]
    _with_intervals(axes, found)
    axes.axhline(1.0, color=INK, linewidth=0.7, linestyle=(0, (3, 3)), alpha=0.6)


def _with_intervals(
    axes: Axes, points: Sequence[tuple[int, float, tuple[float, float] | None, bool]], colour: str = PRUNED
) -> None:
    """A line through points, each with its interval; those that did not settle are hollow."""
    axes.plot([x for x, *_ in points], [y for _, y, *_ in points], color=colour, linewidth=1.4)
    for x, y, interval, settled in points:
        if interval is not None:
            axes.plot([x, x], interval, color=INK, linewidth=1.0, solid_capstyle="butt")
        axes.plot(x, y, marker="o", markersize=5, color=colour, markerfacecolor=colour if settled else "none")


def _speedup_line(axes: Axes, line: Line, colour: str, marker: str) -> None:
    promised = [(x, r.theoretical_speedup) for x, r in zip(line.x, line.results, strict=True) if r.theoretical_speedup]
    real = [(x, r) for x, r in zip(line.x, line.results, strict=True) if r.realistic_speedup is not None]
    if promised:
        axes.plot(
            *zip(*promised, strict=True), color=colour, linewidth=1.0, linestyle="--", marker=marker, markersize=3
        )
    axes.plot([x for x, _ in real], [r.realistic_speedup or 0.0 for _, r in real], color=colour, linewidth=1.4,
              marker=marker, markersize=4)  # fmt: skip
    for x, result in real:
        if result.paired_interval:
            axes.plot([x, x], result.paired_interval, color=INK, linewidth=1.0, solid_capstyle="butt")


def _histograms(axes: Axes, panel: Sequence[Samples]) -> None:
    values = np.concatenate([samples.milliseconds for samples in panel])
    slowest = max(float(np.median(samples.milliseconds)) for samples in panel)
    low, high = float(values.min()), min(float(np.percentile(values, 99)), FARTHEST * slowest)
    edges = np.linspace(low, max(high, low * 1.001), BINS + 1)
    beyond = 0
    for samples in panel:
        shares = np.histogram(samples.milliseconds, edges)[0] / len(samples.milliseconds)
        beyond += int(sum(ms > edges[-1] for ms in samples.milliseconds))
        axes.stairs(shares, edges, fill=True, color=_colour(samples.which), alpha=0.75)
        axes.axvline(float(np.median(samples.milliseconds)), color=INK, linewidth=1.0)
    late = f" ({f.plural(beyond, 'run')} farther right)" if beyond else ""
    axes.set_title(f"{f.clean(panel[0].where)}{late}", loc="left", fontsize=8.5, pad=4)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _colour(which: str) -> str:
    return DENSE if which == "dense" else PRUNED


def _marker(colour: str, shape: str, label: str, *, hollow: bool = False) -> Line2D:
    face = "none" if hollow else colour
    return Line2D([], [], color=colour, linestyle="", marker=shape, markersize=5, markerfacecolor=face, label=label)


def _grid(axes: Axes) -> None:
    axes.grid(True, color=DENSE, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
