"""The picture of the runtimes."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from edgeprune.io import formatting as f
from edgeprune.report.figures.drawing import DENSE, PRUNED, bar_axes, beside, legend
from edgeprune.report.views.runtimes import RuntimePairs

BEST = "fastest"


def runtime_bars(view: RuntimePairs) -> Figure:
    """Two bars a runtime and precision, dense above pruned; beside the fastest of all stands that it is."""
    figure, axes = bar_axes(len(view.pairs), row_inches=0.5, labels=[pair.label for pair in view.pairs])
    for row, pair in enumerate(view.pairs):
        for which, place, value, colour in (
            ("dense", row - 0.19, pair.dense_ms, DENSE),
            ("pruned", row + 0.19, pair.pruned_ms, PRUNED),
        ):
            if value is not None:
                axes.barh(place, value, 0.34, color=colour)
                mark = f"  {BEST}" if pair.best == which else ""
                beside(axes, value, place, f"{f.bare_ms(value)}{mark}")
    axes.set_xlabel("milliseconds, median of runs in turn")
    legend(figure, axes, [Patch(color=DENSE, label="dense"), Patch(color=PRUNED, label="pruned")])
    return figure
