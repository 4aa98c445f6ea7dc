"""How all pictures look, and how a figure becomes SVG: colours, axes for bars, legends.

Text stays text, so that pictures are small, sharp and searchable. The same figures give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgeprune.io import formatting as f

INK = "#010203"
"""Stands for the page's text colour until the SVG is written."""
DENSE, PRUNED, GATHER, REORDER = "#87919d", "#2f86c8", "#c9761f", "#b8679f"
"""Each at a contrast of 3:1 or more to the page, light or dark."""
WIDTH = 7.6  # inches
MOST_LAYERS = 36
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # layer names may hold dollar signs
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9.5,
    "axes.titlepad": 8.0,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    **{key: INK for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")},
}


def bar_axes(rows: int, *, row_inches: float, labels: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes for horizontal bars, the first on top, with room for their labels."""
    shown = [f.shortened(label, 34) for label in labels]
    height = 0.95 + row_inches * rows
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots()
    figure.subplots_adjust(left=margin(shown), right=0.955, top=1 - 0.38 / height, bottom=0.5 / height)
    axes.set_yticks(range(rows), shown)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.xaxis.grid(True, color=DENSE, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.1)
    return figure, axes


def margin(labels: Sequence[str]) -> float:
    """Share of the width that the longest label needs, at 9 points."""
    return 0.03 + max(map(len, labels), default=0) * 0.078 / WIDTH


def beside(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", ha="left", fontsize=8)


def legend(figure: Figure, axes: Axes, handles: Sequence[Artist]) -> None:
    figure.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(axes.get_position().x0 - 0.01, 1.0),
        ncols=4,
        borderpad=0.1,
        handlelength=1.2,
        handleheight=0.9,
        columnspacing=1.4,
        handletextpad=0.5,
        fontsize=8.5,
    )


def svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element without prologue, date, fixed size and ids that nothing refers to; `label` is its
    attributes for those who do not see it."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match.group(0) if match.group(1) in used else "", text)
    opening, rest = text.split(">", 1)
    opening = re.sub(r' (?:width|height|version)="[^"]*"', "", opening)
    return f"{opening} {label}>{rest}".replace(INK, "currentColor")
