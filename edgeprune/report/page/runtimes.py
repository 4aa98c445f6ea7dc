"""The report's section on the runtimes of a machine beside each other; see `profiling.runtimes`."""

from __future__ import annotations

from collections.abc import Iterator

from edgeprune.io import formatting as f
from edgeprune.profiling.runtimes.record import RuntimesRecord
from edgeprune.report.document import Block, Column, Notes, Picture, Section, Table
from edgeprune.report.views.runtimes import RuntimePairs
from edgeprune.report.words.runtimes import cells, columns_of, deploy_words, how_words, missing_words, verdicts

WORDS = ("runtime", "precision", "forms", "")
"""Columns of text."""


def runtimes_section(record: RuntimesRecord | None) -> Section:
    """Which network in which runtime is the fastest; empty where runtimes were not compared."""
    return Section("runtimes", "Runtimes beside each other", tuple(_blocks(record)) if record else ())


def _blocks(record: RuntimesRecord) -> Iterator[Block]:
    told = " ".join(verdicts(record))
    if told:
        yield told
    if view := RuntimePairs.of(record):
        text = "The table below holds the latencies, and the speed-ups over both dense networks."
        yield Picture("runtimes", "Latency of dense and pruned in each runtime", view, text)
    columns = tuple(Column(name, name not in WORDS) for name in columns_of(record))
    failed = frozenset(number for number, row in enumerate(record.rows) if row.error)
    yield Table("Dense and pruned in each runtime", columns, cells(record), flags=failed)
    yield how_words(record)
    if deploy := deploy_words(record):
        yield deploy
    if missing := tuple(missing_words(record)):
        yield Notes(missing)
    if doubts := tuple(f.harmless(text) for text in record.warnings):
        yield Notes(doubts, warning=True)
