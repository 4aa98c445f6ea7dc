"""What `edgeprune tune` prints of several runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli.tables import say, table
from edgeprune.io import progress

if TYPE_CHECKING:
    from edgeprune.profiling.runtimes.record import RuntimesRecord

LONGEST_CELL = 60


def show_runtimes(record: RuntimesRecord) -> None:
    """One table, then why rows have no figures, which network is the fastest, and what was kept."""
    from edgeprune.io.formatting import NONE
    from edgeprune.report.words.runtimes import (
        cells,
        columns_of,
        deploy_words,
        how_words,
        missing_words,
        place_words,
        verdicts,
    )

    rows = [tuple("" if cell == NONE else _cut(cell) for cell in row) for row in cells(record)]
    table("Runtimes", columns_of(record), rows)
    for row in record.rows:
        if row.error:
            say(f"not measured ({place_words(row)}): {row.error}")
    for text in verdicts(record):
        say(text)
    if progress.is_shown():
        for text in (how_words(record), *missing_words(record), *(f"note: {text}" for text in record.warnings)):
            say(text)
    if deploy := deploy_words(record):
        say(deploy)


def _cut(text: str) -> str:
    """Reasons stand whole below the table."""
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"
