"""What is said of one measured result: where it was measured, and whether to trust it."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.profiling.result import Result
from edgeprune.report import formatting as f


@dataclass(frozen=True, order=True)
class Setting:
    """What must be the same for two results to be held against each other."""

    target: str
    precision: str
    batch_size: int
    threads: int

    @staticmethod
    def of(result: Result) -> Setting:
        return Setting(result.target, result.precision, result.batch_size, result.threads)

    def __str__(self) -> str:
        """cpu, batch 1, 2 threads; with the precision where it is not the usual FP32."""
        size, threads = f"batch {self.batch_size}", f.plural(self.threads, "thread")
        return ", ".join((f.clean(self.target), *precision_words(self.precision), size, threads))


def setting(result: Result) -> str:
    """Where a result was measured, in words."""
    return str(Setting.of(result))


def precision_words(precision: str) -> tuple[str, ...]:
    """Nothing for FP32."""
    return () if precision == "fp32" else (f.clean(precision),)


def is_settled(result: Result) -> bool:
    """Whether the times of both networks came to rest within their time limit."""
    return result.pruned.settled and (result.dense is None or result.dense.settled)


def unsettled_mark(settled: bool) -> str:
    """Goes behind a figure that did not settle."""
    return "" if settled else " (unsettled)"
