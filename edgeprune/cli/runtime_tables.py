"""What `edgeprune tune` prints of several runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli.tables import say, table
from edgeprune.io import progress

if TYPE_CHECKING:
    from edgeprune.profiling.runtimes.record import RuntimesRecord

LONGEST_REASON = 48


def show_runtimes(record: RuntimesRecord) -> None:
    """One table, then why rows have no figures, which network is the fastest, and what was kept."""
    from edgeprune.io.formatting import shortened
    from edgeprune.report.words.runtimes import (
        cells,
        columns_of,
        deploy_words,
        how_words,
        missing_words,
        place_words,
        verdicts,
    )

    rows = [(*row[:-1], shortened(row[-1], LONGEST_REASON)) for row in cells(record)]
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
