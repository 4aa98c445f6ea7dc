"""`runtimes.json`: dense and pruned in every runtime, measured in one run, and which is the fastest. Data only.

Times are milliseconds. A speed-up is dense / pruned, so that more than 1 is faster.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeprune.bundles.names import DENSE_MODEL, MODEL, RUNTIMES
from edgeprune.io.json_files import read_json
from edgeprune.profiling.result import Environment, FailureKind, Latency, SweepFailure
from edgeprune.profiling.setup import Which

SCHEMA_VERSION = 1


class RuntimeRow(msgspec.Struct, frozen=True):
    """One runtime in one precision. Without figures where `error` says why."""

    target: str
    runtime: str
    """With its version, as far as it is known."""
    precision: str
    forms: str = ""
    """How the layers of the pruned network are written."""
    dense: Latency | None = None
    """None without a baseline."""
    pruned: Latency | None = None
    realistic_speedup: float | None = None
    """Over this runtime's own dense network: the median of the ratios of every round's two runs."""
    paired_interval: tuple[float, float] | None = None
    """95% interval of it."""
    speedup_over_fastest_dense: float | None = None
    """Over the fastest dense network of any runtime in this precision, round by round."""
    fastest_dense_interval: tuple[float, float] | None = None
    accuracy_dense: float | None = None
    """Per cent, or in the metric of the bundle; null where nothing is known."""
    accuracy_pruned: float | None = None
    may_win: bool = True
    """False for numbers that nobody should use: INT8 that was calibrated on random inputs."""
    error: str = ""
    """Why there are no figures, in a line."""
    kind: FailureKind = "input"
    """Of the error."""

    def latency(self, network: Which) -> Latency | None:
        return self.dense if network == "dense" else self.pruned

    @property
    def label(self) -> str:
        """litert; with the precision where it is not the usual FP32: cpu, int8."""
        return self.target if self.precision == "fp32" else f"{self.target}, {self.precision}"


class Place(msgspec.Struct, frozen=True):
    """One network in one row."""

    target: str
    precision: str
    network: Which
    p50_ms: float

    def is_of(self, row: RuntimeRow) -> bool:
        return (self.target, self.precision) == (row.target, row.precision)


class MissingRuntime(msgspec.Struct, frozen=True):
    """A runtime that could be here, and is not."""

    target: str
    reason: str
    """With what to install."""


class RuntimesRecord(msgspec.Struct, frozen=True):
    """`runtimes.json`."""

    environment: Environment
    batch_size: int
    seed: int
    time_limit_s: float
    """For all rows together."""
    rows: tuple[RuntimeRow, ...]
    fastest_dense: dict[str, Place] = {}
    """Precision -> the fastest dense network."""
    best: Place | None = None
    """The fastest network of all that may be used; null where nothing was measured."""
    ties: tuple[Place, ...] = ()
    """Others that cannot be told apart from the best: the 95% interval of the ratio to it holds 1."""
    metric: str = ""
    """Of the accuracies; empty for top-1."""
    data: str = ""
    """What the accuracies, and INT8, are from."""
    missing: tuple[MissingRuntime, ...] = ()
    kept: tuple[str, ...] = ()
    """Files of the best that `--keep best` left in the bundle."""
    deploy: str = ""
    """Which of these to deploy, and how."""
    warnings: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def is_best(self, row: RuntimeRow) -> bool:
        return self.best is not None and self.best.is_of(row)

    @property
    def failures(self) -> tuple[SweepFailure, ...]:
        """The rows without figures."""
        threads, sizes = self.environment.threads, (self.batch_size,)
        return tuple(SweepFailure(row.label, threads, row.error, row.kind, sizes) for row in self.rows if row.error)


def files_left_by(folder: Path) -> tuple[str, ...]:
    """Files that an earlier `--keep best` left in a bundle's folder, by its record; not the ONNX files that every
    bundle has. InputError as `load_runtimes`."""
    path = folder / RUNTIMES
    kept = load_runtimes(path).kept if path.is_file() else ()
    return tuple(name for name in kept if name not in (MODEL, DENSE_MODEL))


def load_runtimes(path: Path) -> RuntimesRecord:
    """Read `runtimes.json`; InputError if it is missing, none, or of another schema."""
    remedy = "measure again with `edgeprune tune BUNDLE --target all`"
    expected = "a bundle's runtimes"
    return read_json(path, RuntimesRecord, SCHEMA_VERSION, what="record of runtimes", expected=expected, remedy=remedy)
