"""What a method tells of its decisions, as tables and curves: kept in the bundle, shown by the report."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeprune.errors import InputError, first_line

FILE_NAME = "method.json"
Cell = str | int | float


class RecordTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table; every row has one cell a column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    text: str = ""
    """What it shows, in a sentence or two."""


class RecordCurve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A curve through points in their order, such as the path of a search.

    The report gives it a table of its points, too, unless there is a table of the same title.
    """

    title: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    point_labels: tuple[str, ...] = ()
    """What each point stands for; empty, or one a point."""
    text: str = ""
    """What it shows, in a sentence or two."""


class MethodRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that one run of a method tells."""

    tables: tuple[RecordTable, ...] = ()
    curves: tuple[RecordCurve, ...] = ()

    def to_json(self) -> bytes:
        return msgspec.json.encode(self, order="sorted")


def load_method_record(path: Path) -> MethodRecord:
    """Read a record; InputError if the file is none."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=MethodRecord)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is no record of a method: {first_line(error)}", where=path) from error
    uneven = [curve.title for curve in record.curves if not _is_even(curve)]
    uneven += [table.title for table in record.tables if any(len(row) != len(table.columns) for row in table.rows)]
    if uneven:
        raise InputError(f"is no record of a method: {uneven[0]!r} has parts of several lengths", where=path)
    return record


def _is_even(curve: RecordCurve) -> bool:
    return len(curve.x) == len(curve.y) and len(curve.point_labels) in (0, len(curve.x))
