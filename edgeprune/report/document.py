"""What a report consists of, independent of how it is written: sections of paragraphs, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgeprune.lowering.record import LoweringRecord
from edgeprune.plans.method_record import RecordCurve
from edgeprune.profiling.result import ProfileResult, Result
from edgeprune.report.views.kernels import KernelView
from edgeprune.report.views.measurements import Distribution, Roofline, Sweep, Trend, Waterfall
from edgeprune.report.views.parts import LayerShares, Runs
from edgeprune.report.views.runtimes import RuntimePairs

Subject = (
    ProfileResult
    | Result
    | LoweringRecord
    | KernelView
    | Runs
    | LayerShares
    | RecordCurve
    | Waterfall
    | Roofline
    | Distribution
    | Sweep
    | Trend
    | RuntimePairs
)
"""What can be drawn: speed-ups, the layers of one result, their forms, a layer's kernels, a split, a method's curve,
and the views of measurements in `views.measurements` and `views.runtimes`."""


@dataclass(frozen=True)
class Column:
    name: str
    numeric: bool = False
    """Set to the right."""


@dataclass(frozen=True)
class Table:
    """The first column names the row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False
    """Of secondary interest: shown when asked for."""
    flags: frozenset[int] = frozenset()
    """Numbers of the rows to point out."""


@dataclass(frozen=True)
class Picture:
    """Drawn by `figures`. Markdown leaves it out: what it shows must be in `text`, a table or a paragraph too."""

    name: str
    """Letters, digits and dashes; its own in the document."""
    caption: str
    subject: Subject
    text: str = ""
    """What the picture shows, in words: for those who do not see it, and in Markdown in its place."""


@dataclass(frozen=True)
class Notes:
    """Short sentences, one an item."""

    items: tuple[str, ...]
    warning: bool = False


Block = str | Table | Picture | Notes
"""A string is a paragraph."""


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    value: str
    label: str
    detail: str = ""
    tone: str = ""
    """`good`, `poor` or nothing."""


@dataclass(frozen=True)
class Document:
    title: str
    subtitle: str
    summary: str
    tiles: tuple[Tile, ...] = ()
    sections: tuple[Section, ...] = field(default_factory=tuple)


def columns(*names: str, numeric: Sequence[str] = ()) -> tuple[Column, ...]:
    """Columns by name, those in `numeric` set to the right."""
    return tuple(Column(name, name in numeric) for name in names)
