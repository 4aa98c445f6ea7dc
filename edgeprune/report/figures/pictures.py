"""The report's pictures, as SVG that takes its text colour from the page: readable on light and on dark."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from edgeprune.io import formatting as f
from edgeprune.lowering.record import LayerChoice, LoweringRecord
from edgeprune.plans.method_record import RecordCurve
from edgeprune.profiling.result import LayerResult, ProfileResult, Result
from edgeprune.report.document import Picture
from edgeprune.report.figures import plots
from edgeprune.report.figures.drawing import (
    DENSE,
    GATHER,
    INK,
    MOST_LAYERS,
    PRUNED,
    REORDER,
    STYLE,
    WIDTH,
    bar_axes,
    beside,
    legend,
    svg,
)
from edgeprune.report.figures.runtimes import runtime_bars
from edgeprune.report.figures.split import share_columns, split_picture
from edgeprune.report.views.kernels import KernelView, reduced
from edgeprune.report.views.measurements import Distribution, Roofline, Sweep, Trend, Waterfall
from edgeprune.report.views.parts import LayerShares, Runs
from edgeprune.report.views.runtimes import RuntimePairs
from edgeprune.report.words.results import setting

MOST_RESULTS, MOST_MARKERS = 16, 60


def draw(picture: Picture) -> str:
    """An SVG element for the page, labelled with the picture's caption and described by its text."""
    described = f' aria-describedby="text-{picture.name}"' if picture.text else ""
    label = f'role="img" aria-labelledby="caption-{picture.name}"{described}'
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": picture.name}):
        return svg(_figure(picture), label)


def _figure(picture: Picture) -> Figure:
    match picture.subject:
        case ProfileResult() as profile:
            return speedup_bars(profile)
        case Result() as result:
            return layer_bars(result)
        case LoweringRecord() as record:
            return form_bars(record)
        case KernelView() as view:
            return kernel_maps(view)
        case Runs() as runs:
            return split_picture(runs)
        case LayerShares() as shares:
            return share_columns(shares)
        case RecordCurve() as curve:
            return curve_line(curve)
        case Waterfall() as waterfall:
            return plots.waterfall_bars(waterfall)
        case Roofline() as roofline:
            return plots.roofline_scatter(roofline)
        case Distribution() as distribution:
            return plots.distribution_panels(distribution)
        case Sweep() as sweep:
            return plots.sweep_curves(sweep)
        case Trend() as trend:
            return plots.trend_lines(trend)
        case RuntimePairs() as pairs:
            return runtime_bars(pairs)


def speedup_bars(profile: ProfileResult) -> Figure:
    """Two bars a result: what the MACs promise (outlined), and what was measured (filled), with its interval."""
    measured = [result for result in profile.results if result.realistic_speedup]
    results = measured[:MOST_RESULTS]
    figure, axes = bar_axes(len(results), row_inches=0.62, labels=[setting(result) for result in results])
    for row, result in enumerate(results):
        promised, real = result.theoretical_speedup or 0.0, result.realistic_speedup or 0.0
        axes.barh(row - 0.19, promised, 0.34, facecolor="none", edgecolor=DENSE, linewidth=1.2)
        axes.barh(row + 0.19, real, 0.34, color=PRUNED)
        if result.paired_interval:
            low, high = result.paired_interval
            axes.plot([low, high], [row + 0.19] * 2, color=INK, linewidth=1.0, solid_capstyle="butt")
        beside(axes, promised, row - 0.19, f.times(promised))
        beside(axes, max(real, *(result.paired_interval or (0.0,))), row + 0.19, f.times(real))
    axes.axvline(1.0, color=INK, linewidth=0.7, linestyle=(0, (3, 3)), alpha=0.6)
    more = f"; the first {len(results)} of {len(measured)} settings" if len(measured) > len(results) else ""
    axes.set_xlabel(f"speed-up over the dense network (dashed line: no gain{more})")
    handles = [
        Patch(facecolor="none", edgecolor=DENSE, linewidth=1.2, label="theoretical (MACs)"),
        Patch(color=PRUNED, label="realistic (measured)"),
    ]
    legend(figure, axes, handles)
    return figure


def layer_bars(result: Result) -> Figure:
    """Time of every layer, dense above pruned; the pruned bar is divided into its parts."""
    timed = [layer for layer in result.layers if layer.pruned_ms]
    shown = sorted(timed, key=_slowest, reverse=True)[:MOST_LAYERS]
    layers = [layer for layer in timed if layer in shown]
    figure, axes = bar_axes(len(layers), row_inches=0.36, labels=[f.clean(layer.name) for layer in layers])
    parts: dict[str, tuple[str, Callable[[LayerResult], float]]] = {
        "pruned: the layer": (PRUNED, lambda x: (x.pruned_ms or 0) - (x.gather_ms or 0) - (x.reorder_ms or 0)),
        "its gathers": (GATHER, lambda x: x.gather_ms or 0.0),
        "its reordering": (REORDER, lambda x: x.reorder_ms or 0.0),
    }
    rows = np.arange(len(layers))
    axes.barh(rows - 0.2, [layer.dense_ms or 0.0 for layer in layers], 0.36, color=DENSE)
    left = np.zeros(len(layers))
    handles = [Patch(color=DENSE, label="dense")] if any(layer.dense_ms for layer in layers) else []
    for label, (colour, value) in parts.items():
        widths = np.array([max(value(layer), 0.0) for layer in layers])
        if widths.any():
            axes.barh(rows + 0.2, widths, 0.36, left=left, color=colour)
            handles.append(Patch(color=colour, label=label))
        left += widths
    for row, layer in enumerate(layers):
        if layer.theoretical_speedup != 1 and layer.realistic_speedup:
            beside(axes, layer.pruned_ms or 0.0, row + 0.2, f.times(layer.realistic_speedup))
    more = f" (the {len(layers)} slowest of {len(timed)})" if len(timed) > len(layers) else ""
    axes.set_xlabel(f"milliseconds{more}")
    legend(figure, axes, handles)
    return figure


def form_bars(record: LoweringRecord) -> Figure:
    """MACs of every grouped layer: what the plan leaves, and behind it the zeros that its form fills in."""
    shown = sorted(record.layers, key=_executed, reverse=True)[:MOST_LAYERS]
    layers = [layer for layer in record.layers if layer in shown]
    figure, axes = bar_axes(len(layers), row_inches=0.24, labels=[f.clean(layer.name) for layer in layers])
    rows, planned = np.arange(len(layers)), np.array([layer.macs for layer in layers]) / 1e6
    executed = np.array([layer.executed_macs for layer in layers]) / 1e6
    axes.barh(rows, planned, 0.7, color=PRUNED)
    axes.barh(rows, np.maximum(executed - planned, 0.0), 0.7, left=planned, color=DENSE)
    for row, layer in enumerate(layers):
        beside(axes, max(planned[row], executed[row]), row, layer.form)
    more = f" (the {len(layers)} largest of {len(record.layers)})" if len(record.layers) > len(layers) else ""
    axes.set_xlabel(f"million MACs of one sample{more}")
    legend(figure, axes, [Patch(color=PRUNED, label="planned"), Patch(color=DENSE, label="filled-in zeros")])
    return figure


def kernel_maps(view: KernelView) -> Figure:
    """Norms before and after on one scale; what holds no kernel is left out."""
    figure = Figure(figsize=(WIDTH, 4.1))
    brightest = float(np.nanpercentile(view.before, 99.5)) or 1.0
    share = float(np.clip(view.after.shape[1] / view.before.shape[1], 0.35, 1.6))
    left, right = figure.subplots(1, 2, width_ratios=(1, share))
    titles = ("before: original order", f"after: {view.entry.groups} groups")
    names = ("input channel", "channels that the groups read")
    wholes = (view.before, view.after)
    for axes, whole, title, name in zip((left, right), wholes, titles, names, strict=True):
        axes.axhspan(0, whole.shape[0], facecolor=(0.5, 0.5, 0.5, 0.13))
        axes.imshow(
            np.ma.masked_invalid(reduced(whole)),
            cmap="viridis",
            vmin=0.0,
            vmax=brightest,
            interpolation="none",
            aspect="auto",
            extent=(0, whole.shape[1], whole.shape[0], 0),
        )
        axes.set_title(title, loc="left")
        axes.set_xlabel(name)
        for spine in axes.spines.values():
            spine.set_visible(False)
    left.set_ylabel("filter")
    right.set_yticks([])
    scale = figure.add_axes((0.6, 0.045, 0.25, 0.022))
    scale.imshow(np.linspace(0, 1, 64)[None], cmap="viridis", aspect="auto", interpolation="none", extent=(0, 1, 0, 1))
    scale.set_axis_off()
    figure.text(0.585, 0.056, "norm 0", ha="right", va="center")
    figure.text(0.865, 0.056, f.bare_ms(brightest), ha="left", va="center")
    figure.subplots_adjust(left=0.08, right=0.985, top=0.91, bottom=0.22, wspace=0.07)
    return figure


def curve_line(curve: RecordCurve) -> Figure:
    """The curve from left to right in the order of its points, its ends labelled."""
    figure = Figure(figsize=(WIDTH, 2.9))
    axes = figure.subplots()
    few = len(curve.x) <= MOST_MARKERS
    axes.plot(curve.x, curve.y, color=PRUNED, linewidth=1.4, marker="o" if few else "", markersize=3.5)
    if curve.x[0] > curve.x[-1]:  # a path to ever fewer MACs
        axes.invert_xaxis()
    falls = curve.y[-1] < curve.y[0]
    for end, side, above in ((0, "left", True), (len(curve.x) - 1, "right", not falls)):  # clear of the curve
        point = (curve.x[end], curve.y[end])
        axes.plot(*point, color=PRUNED, marker="o", markersize=5)
        if curve.point_labels:
            label = f.shortened(f.clean(curve.point_labels[end]), 40)
            offset, edge = ((0, 7), "bottom") if above else ((0, -7), "top")
            axes.annotate(label, point, offset, textcoords="offset points", ha=side, va=edge, fontsize=8)
    axes.set_xlabel(f.clean(curve.x_label))
    axes.set_ylabel(f.clean(curve.y_label))
    axes.grid(True, color=DENSE, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.03, y=0.16)
    figure.subplots_adjust(left=0.11, right=0.97, top=0.96, bottom=0.18)
    return figure


def _executed(layer: LayerChoice) -> int:
    return layer.executed_macs


def _slowest(layer: LayerResult) -> float:
    return max(layer.dense_ms or 0.0, layer.pruned_ms or 0.0)
