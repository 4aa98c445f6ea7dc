"""`profile.json`: what was measured, where, and beside it what the MACs promise. Data only.

Times are milliseconds. A speed-up is dense / pruned, so that more than 1 is faster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from edgeprune.io.json_files import read_json
from edgeprune.precision.formats import PrecisionRecord
from edgeprune.profiling.estimating.estimates import Estimate
from edgeprune.profiling.measurement import Measurement, median_interval

SCHEMA_VERSION = 1
_DIGITS = 6  # of a millisecond: nanoseconds
_SAMPLE_DIGITS = 4  # of raw samples: 100 ns, so that a thousand of them stay below 10 kB


class Environment(msgspec.Struct, frozen=True):
    """The machine as it was when the measurement began."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    threads: int
    """Threads inside one operation."""
    runtime_versions: dict[str, str]
    platform: str
    date: str
    """UTC, ISO 8601."""
    flags: tuple[str, ...] = ()
    """The instruction set extensions that decide about speed."""
    memory_gb: float | None = None
    governor: str = ""
    """How the system sets the clock (Linux); empty where it does not say."""
    load_average: float | None = None
    """Runnable programs, mean of the minute before."""
    gpu: str = ""


class Settings(msgspec.Struct, frozen=True):
    """How it was measured."""

    warmup: int
    """Runs before measuring, at least."""
    iterations: int
    """Measured runs, at most."""
    seed: int
    pin: tuple[int, ...] = ()
    spinning: bool = False
    """Whether idle threads waited by spinning."""
    time_limit_s: float | None = None
    interval: float = 0.0
    """Width of the 95% interval, as a share of the speed-up, at which measuring ended; 0: all iterations were run."""
    fresh_process: bool = False
    """Whether every target and thread count had a process of its own."""
    input_size: tuple[int, ...] = ()
    """Of the last axes of the input, where the networks leave them open."""


class Latency(msgspec.Struct, frozen=True):
    """Times of one model's runs."""

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    n: int
    noise: float
    """Interquartile range over the median."""
    p50_interval_ms: tuple[float, float]
    """95% interval of the median."""
    samples_ms: tuple[float, ...] = ()
    """Every run, in the order of measuring; the n-th of dense and the n-th of pruned are of the same round."""
    settled: bool = True
    """False if the measurement ended, by its limits, before its interval was as narrow as was asked."""

    @staticmethod
    def of(measured: Measurement, *, settled: bool = True) -> Latency:
        low, high = (round(second * 1e3, _DIGITS) for second in median_interval(measured.seconds))
        percentiles = {p: round(measured.percentile_ms(p), _DIGITS) for p in (50, 90, 95, 99)}
        return Latency(
            p50_ms=percentiles[50],
            p90_ms=percentiles[90],
            p95_ms=percentiles[95],
            p99_ms=percentiles[99],
            mean_ms=round(measured.mean_ms, _DIGITS),
            n=measured.n,
            noise=round(measured.noise, 4),
            p50_interval_ms=(low, high),
            samples_ms=tuple(round(second * 1e3, _SAMPLE_DIGITS) for second in measured.seconds),
            settled=settled,
        )


class LayerResult(msgspec.Struct, frozen=True):
    """One layer, dense and pruned. Times are null where the target does not tell, or there is no baseline."""

    name: str
    op_type: str
    lowering: str
    """The form in which the ONNX file holds the layer: grouped, merged, split, padded or dense."""
    groups: int
    in_per_group: int
    """Input channels that each group reads."""
    out_per_group: int
    """Filters of each group."""
    dense_macs: int | None
    macs: int
    """Multiply-adds that the plan leaves, for the whole batch."""
    executed_macs: int
    """Multiply-adds that the lowering computes, filled-in zeros included."""
    dense_ms: float | None = None
    pruned_ms: float | None = None
    """The layer with its Gathers and the reordering of data that it needs."""
    gather_ms: float | None = None
    """Part of `pruned_ms`."""
    reorder_ms: float | None = None
    """Part of `pruned_ms`."""
    theoretical_speedup: float | None = None
    realistic_speedup: float | None = None
    efficiency: float | None = None
    noise: float | None = None
    """The larger spread of `dense_ms` and `pruned_ms` between turns: interquartile range over median."""
    cause: str = ""
    """Why the efficiency is low, or why the layer stays dense; empty if there is nothing to explain."""
    cause_kind: str = ""
    """The cause in one word, as `edgeprune.profiling.explaining.causes.Kind` lists them."""
    bytes_moved: int | None = None
    """Input, weights and output, each once, for the whole batch."""
    intensity: float | None = None
    """Arithmetic intensity: 2 x executed MACs / bytes moved."""
    bound_ms: float | None = None
    """The least time that the device's roofline allows for the executed MACs and the bytes moved."""
    bound_share: float | None = None
    """`bound_ms` / `pruned_ms`: 1 is all that the device can do."""
    provider: str = ""
    """What ran it, as the runtime spells it; empty where the target does not tell."""


class Drift(msgspec.Struct, frozen=True):
    """What the system tells of the machine right before and right after the measured runs; null where it does not."""

    clock_mhz: tuple[float, float] | None = None
    """Mean of the cores that were used."""
    temperature_c: tuple[float, float] | None = None
    """Of the hottest zone."""
    throttled: int | None = None
    """Times that a core was slowed down meanwhile because of heat."""


class Result(msgspec.Struct, frozen=True):
    """Dense against pruned on one target, with one batch size."""

    target: str
    provider: str
    threads: int
    batch_size: int
    dense: Latency | None
    """Null when there is no baseline."""
    pruned: Latency
    dense_macs: int | None
    pruned_macs: int
    """Both for the whole batch."""
    theoretical_speedup: float | None
    realistic_speedup: float | None
    """dense / pruned: the median of the ratios of every round's two runs, which on a steady machine is that of the
    medians. Where other programs come and go, it is the one that repeats."""
    paired_speedup: float | None
    """The same; profiles of former versions have the ratio of the medians in `realistic_speedup`."""
    paired_interval: tuple[float, float] | None
    """95% interval of the realistic speed-up."""
    efficiency: float | None
    """realistic / theoretical speed-up."""
    warnings: tuple[str, ...] = ()
    layers: tuple[LayerResult, ...] = ()
    dense_other_ms: float | None = None
    """Time of everything that is no layer: activations, adds, pooling."""
    pruned_other_ms: float | None = None
    precision: str = "fp32"
    """Number format of the models that ran: fp32, tf32, fp16 or int8."""
    providers: dict[str, int] = {}
    """Provider -> nodes of the pruned model that it ran; empty where the target does not tell."""
    peak_memory_mb: float | None = None
    """Largest resident memory of the process that measured, in 10^6 bytes: all of its models, and the runtime."""
    energy_mj: float | None = None
    """Of one run of the pruned model, in millijoules: the processor's or the whole board's, with what it spends idle;
    null where the machine does not expose it."""
    copy_in_ms: float | None = None
    """Copying the pruned model's inputs to the device, outside of its latency; null where nothing is copied."""
    copy_out_ms: float | None = None
    dense_energy_mj: float | None = None
    drift: Drift | None = None
    advice: tuple[str, ...] = ()
    """What to try next, the largest gain first."""


FailureKind = Literal["input", "gate", "bug", "interrupted"]


class SweepFailure(msgspec.Struct, frozen=True):
    """One target with one number of threads that has no results for these batch sizes."""

    target: str
    threads: int
    error: str
    """One line."""
    kind: FailureKind = "input"
    """Whose fault it is: the user's input or machine, the runtime's, whose outputs are wrong (gate), edgeprune's own
    (bug), or nobody's: the user ended the sweep."""
    batch_sizes: tuple[int, ...] = ()
    """Empty: all."""

    def holds_for(self, target: str, threads: int, batch_size: int) -> bool:
        """Whether a result with these is what is missing."""
        return (self.target, self.threads) == (target, threads) and batch_size in (self.batch_sizes or (batch_size,))

    @property
    def setting(self) -> str:
        """In words."""
        sizes = f", batch {' and '.join(map(str, self.batch_sizes))}" if self.batch_sizes else ""
        return f"{self.target}, threads {self.threads}{sizes}"


class ProfileResult(msgspec.Struct, frozen=True):
    """`profile.json`."""

    environment: Environment
    settings: Settings
    results: tuple[Result, ...]
    precisions: tuple[PrecisionRecord, ...] = ()
    """How the networks in another precision than FP32 compare with it."""
    estimates: tuple[Estimate, ...] = ()
    """For devices that were asked for by their profile. Nothing of these was measured."""
    failures: tuple[SweepFailure, ...] = ()
    """What was asked for and could not be measured."""
    schema_version: int = SCHEMA_VERSION


def load_profile_result(path: Path) -> ProfileResult:
    """Read `profile.json`; InputError if it is missing, none, or of another schema."""
    remedy = "measure again with `edgeprune profile`"
    return read_json(path, ProfileResult, SCHEMA_VERSION, what="profile", expected="a profile", remedy=remedy)
