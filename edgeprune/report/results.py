"""What is said of one measured result: where it was measured, and whether to trust it."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.profiling.result import Environment, Latency, Result, SweepFailure
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


def failure_words(failure: SweepFailure) -> str:
    """What could not be measured, and why."""
    return f"{f.clean(failure.setting)}: could not be measured: {f.harmless(failure.error)}"


def precision_words(precision: str) -> tuple[str, ...]:
    """Nothing for FP32."""
    return () if precision == "fp32" else (f.clean(precision),)


def machine_words(machine: Environment) -> dict[str, str]:
    """The machine as it was, by what is told of it; empty text for what it does not tell."""
    return {
        "date (UTC)": machine.date,
        "processor": machine.cpu,
        "instruction sets": " ".join(machine.flags),
        "cores": str(machine.cores),
        "memory": f"{machine.memory_gb:g} GB" if machine.memory_gb else "",
        "GPU": machine.gpu,
        "system": machine.platform,
        "clock governor": machine.governor,
        "load average before": "" if machine.load_average is None else str(machine.load_average),
    }


def samples_per_second(batch_size: int, taken: Latency | None) -> float | None:
    """At the median latency; None where there is none."""
    return batch_size / taken.p50_ms * 1e3 if taken is not None and taken.p50_ms else None


def is_settled(result: Result) -> bool:
    """Whether the times of both networks came to rest within their time limit."""
    return result.pruned.settled and (result.dense is None or result.dense.settled)


def unsettled_mark(settled: bool) -> str:
    """Goes behind a figure that did not settle."""
    return "" if settled else " (unsettled)"
