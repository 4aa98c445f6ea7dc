"""Pictures of a split: which device is at work when, predicted and measured, or at least in which stage."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from edgeprune.io import formatting as f
from edgeprune.report.contents import SplitPlan, SplitSpan
from edgeprune.report.figures.drawing import DENSE, GATHER, PRUNED, REORDER, WIDTH, legend, margin
from edgeprune.report.views.parts import LayerShares, Runs

MOST_STAGES = 40
TOLERANCE = 1e-6


def split_picture(runs: Runs) -> Figure:
    """The predicted and the real run where they are told, else the stages."""
    return timelines(runs) if runs.split.predicted.timeline or runs.measured else stage_grid(runs.split)


def timelines(runs: Runs) -> Figure:
    """Devices down, time across: what each computes, and below it what it sends; in strong colours what the predicted
    end waits for. A real run below the predicted one, over the same time."""
    guess, measured = runs.split.predicted, runs.measured
    critical = {(span.kind, span.device, span.start_ms, span.tensor) for span in guess.critical_path}
    drawn = [("predicted", guess.timeline, critical)] if guess.timeline else []
    drawn += [("measured", measured.spans, set())] if measured else []
    devices = [device.name for device in runs.split.devices]
    labels = [f.shortened(f.clean(name), 24) for name in devices]
    panel_inches = 0.7 + 0.62 * len(devices)
    figure = Figure(figsize=(WIDTH, 0.45 + panel_inches * len(drawn)))
    panels = figure.subplots(len(drawn), squeeze=False, gridspec_kw={"hspace": 0.6 / (panel_inches - 0.5)})[:, 0]
    end = max((span.end_ms for _, spans, _ in drawn for span in spans), default=1.0)
    for axes, (how, spans, strong) in zip(panels, drawn, strict=True):
        _draw_spans(axes, spans, devices, strong)
        axes.set_yticks(range(len(devices)), labels)
        axes.set_ylim(len(devices) - 0.5, -0.6)
        axes.set_xlim(0, end)
        axes.set_xlabel(f"milliseconds, {how}")
        for spine in axes.spines.values():
            spine.set_visible(False)
    kinds = [(PRUNED, "computes, the end waits for it")] if critical else []
    kinds += [(DENSE, "computes")]
    kinds += [(GATHER, "sends, the end waits for it")] if critical else []
    kinds += [(REORDER, "sends")]
    _finish(figure, labels, [Patch(color=colour, label=label) for colour, label in kinds])
    return figure


def _draw_spans(
    axes: Axes, spans: Sequence[SplitSpan], devices: list[str], critical: Collection[tuple[str, str, float, str]]
) -> None:
    for span in spans:
        if span.device not in devices:
            continue
        row, computes = devices.index(span.device), span.kind == "compute"
        is_critical = (span.kind, span.device, span.start_ms, span.tensor) in critical
        axes.barh(
            row - 0.1 if computes else row + 0.27,
            span.end_ms - span.start_ms,
            0.5 if computes else 0.16,
            left=span.start_ms,
            color=(PRUNED if computes else GATHER) if is_critical else (DENSE if computes else REORDER),
        )


def share_columns(view: LayerShares) -> Figure:
    """A row a device, a column a layer: filled as far as the device computes of it."""
    labels = [f.shortened(f.clean(name), 24) for name in view.devices]
    figure = Figure(figsize=(WIDTH, 1.15 + 0.5 * len(labels)))
    axes = figure.subplots()
    for row in range(len(labels)):
        shares = [own[row] for own in view.shares]
        colours = [DENSE if sum(own) > 1 + TOLERANCE else PRUNED for own in view.shares]
        columns = range(len(shares))
        axes.bar(columns, [0.8] * len(shares), 0.9, bottom=row - 0.4, color=(0.5, 0.5, 0.5, 0.1))
        axes.bar(columns, [-0.8 * share for share in shares], 0.9, bottom=row + 0.4, color=colours)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.6)
    axes.set_xlim(-0.6, len(view.layers) - 0.4)
    axes.set_xlabel("layers, in the network's order")
    for spine in axes.spines.values():
        spine.set_visible(False)
    kinds = [(PRUNED, "its part of the layer"), (DENSE, "what others compute, too")]
    _finish(figure, labels, [Patch(color=colour, label=label) for colour, label in kinds])
    return figure


def stage_grid(split: SplitPlan) -> Figure:
    """Devices down, stages across; a filled cell is work, its shade the kind of stage; arrows are transfers."""
    devices = [device.name for device in split.devices]
    stages = split.stages[:MOST_STAGES]
    labels = [f.shortened(f.clean(name), 24) for name in devices]
    figure = Figure(figsize=(WIDTH, 1.15 + 0.5 * len(devices)))
    axes = figure.subplots()
    for column, stage in enumerate(stages):
        for row, name in enumerate(devices):
            works = name in stage.subgraphs
            colour = (PRUNED if stage.kind == "parallel" else DENSE) if works else (0.5, 0.5, 0.5, 0.1)
            axes.barh(row, 0.86, 0.62, left=column - 0.43, color=colour)
    place = {stage.index: column for column, stage in enumerate(stages)}
    for move in {(t.from_, t.to, t.stage): t for t in split.transfers}.values():
        if move.stage in place and move.from_ in devices and move.to in devices:
            between = place[move.stage] - 0.5
            arrow = {"arrowstyle": "-|>", "color": GATHER, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
            start, end = devices.index(move.from_), devices.index(move.to)
            edge = 0.31 if end > start else -0.31
            axes.annotate("", (between + 0.03, end - edge), (between - 0.03, start + edge), arrowprops=arrow)
    axes.set_yticks(range(len(devices)), labels)
    axes.set_ylim(len(devices) - 0.5, -0.6)
    axes.set_xlim(-0.6, len(stages) - 0.4)
    step = 1 if len(stages) <= 20 else 5
    axes.set_xticks(range(0, len(stages), step), [str(stages[i].index) for i in range(0, len(stages), step)])
    more = f" (the first {len(stages)} of {len(split.stages)})" if len(split.stages) > len(stages) else ""
    axes.set_xlabel(f"stage{more}")
    for spine in axes.spines.values():
        spine.set_visible(False)
    kinds = [Patch(color=DENSE, label="host stage"), Patch(color=PRUNED, label="parallel stage")]
    _finish(figure, labels, [*kinds, Patch(color=GATHER, label="transfer")])
    return figure


def _finish(figure: Figure, labels: list[str], handles: list[Patch]) -> None:
    """Room for the devices' names, and a legend."""
    height = figure.get_figheight()
    figure.subplots_adjust(left=margin(labels), right=0.99, top=1 - 0.34 / height, bottom=0.48 / height)
    legend(figure, figure.axes[0], handles)
