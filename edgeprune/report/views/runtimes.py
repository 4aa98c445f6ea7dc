"""What the picture of the runtimes shows, as numbers. Times are milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.profiling.runtimes.record import RuntimesRecord
from edgeprune.profiling.setup import Which
from edgeprune.report.words.runtimes import place_words


@dataclass(frozen=True)
class RuntimePair:
    """Dense and pruned in one runtime and precision."""

    label: str
    dense_ms: float | None
    pruned_ms: float | None
    best: Which | None = None
    """Which of the two is the fastest network of all."""


@dataclass(frozen=True)
class RuntimePairs:
    """In the order in which they were asked for."""

    pairs: tuple[RuntimePair, ...]

    @staticmethod
    def of(record: RuntimesRecord) -> RuntimePairs | None:
        """None where nothing was measured."""
        pairs = tuple(
            RuntimePair(
                place_words(row),
                None if row.dense is None else row.dense.p50_ms,
                None if row.pruned is None else row.pruned.p50_ms,
                record.best.network if record.best is not None and record.is_best(row) else None,
            )
            for row in record.rows
            if row.pruned is not None
        )
        return RuntimePairs(pairs) if pairs else None
