"""What a method recorded of its decisions, as blocks of the report; see `method_record`."""

from __future__ import annotations

from collections.abc import Iterator

from edgeprune.io import formatting as f
from edgeprune.plans.method_record import Cell, MethodRecord, RecordCurve, RecordTable
from edgeprune.report.document import Block, Column, Picture, Section, Table

MOST_ROWS_OPEN = 12
_LONGEST_CELL = 64


def record_section(record: MethodRecord | None, method: str) -> Section:
    """Curves as pictures, tables as tables, each with its text; long tables are folded.

    Markdown shows no pictures: a curve without a table of the same title gets one of its points.
    """
    title = f"How {f.clean(method)} decided" if method else "How the method decided"
    return Section("method", title, tuple(_blocks(record)) if record else ())


def _blocks(record: MethodRecord) -> Iterator[Block]:
    titles = {table.title for table in record.tables}
    for number, curve in enumerate(record.curves):
        if curve.x:
            if curve.text:
                yield f.clean(curve.text)
            yield Picture(f"method-{number}", f.clean(curve.title), curve)
            if curve.title not in titles:
                yield _table(_points(curve))
    for table in record.tables:
        if table.rows:
            if table.text:
                yield f.clean(table.text)
            yield _table(table)


def _points(curve: RecordCurve) -> RecordTable:
    labels = curve.point_labels or tuple(str(number) for number in range(1, len(curve.x) + 1))
    rows = tuple(zip(labels, curve.x, curve.y, strict=True))
    return RecordTable(curve.title, ("point", curve.x_label, curve.y_label), rows)


def _table(table: RecordTable) -> Table:
    """Columns of numbers only are set to the right."""
    numeric = [all(not isinstance(cell, str) for cell in column) for column in zip(*table.rows, strict=True)]
    heads = tuple(Column(f.clean(name), number) for name, number in zip(table.columns, numeric, strict=True))
    cells = tuple(tuple(map(_cell, row)) for row in table.rows)
    return Table(f.clean(table.title), heads, cells, folded=len(cells) > MOST_ROWS_OPEN)


def _cell(value: Cell) -> str:
    """Numbers with up to four digits; whole ones in full."""
    if isinstance(value, str):
        return f.shortened(f.clean(value), _LONGEST_CELL)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
