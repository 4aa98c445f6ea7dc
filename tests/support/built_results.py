"""Profiles with figures chosen by the test: nothing in them was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.manifest import Accuracy, Manifest
from edgeprune.bundles.names import PROFILE
from edgeprune.bundles.writing import write_manifest
from edgeprune.io.files import pretty_json
from edgeprune.profiling.result import Environment, Latency, LayerResult, ProfileResult, Result, Settings, SweepFailure
from edgeprune.report.comparison.runs import Run


def environment(
    cpu: str = "a processor", *, date: str = "2026-01-02T03:04:05+00:00", ort: str = "1.31.1"
) -> Environment:
    return Environment(cpu, 2, 1, {"onnxruntime": ort}, "Linux", date, memory_gb=8.0)


def latency(ms: float, *, spread: float = 0.02, samples: int = 0, settled: bool = True) -> Latency:
    """A median with an interval of +- spread / 2 around it."""
    raw = tuple(float(x) for x in np.round(ms * (1 + spread * np.linspace(-0.5, 0.5, samples)), 4)) if samples else ()
    interval = (ms * (1 - spread / 2), ms * (1 + spread / 2))
    return Latency(ms, ms * 1.1, ms * 1.2, ms * 1.3, ms, samples or 100, spread, interval, raw, settled)


def layer(
    name: str,
    dense_ms: float | None = 2.0,
    pruned_ms: float | None = 1.0,
    *,
    intensity: float | None = None,
    bound_ms: float | None = None,
    noise: float = 0.01,
    cause: str = "",
) -> LayerResult:
    share = bound_ms / pruned_ms if bound_ms and pruned_ms else None
    return LayerResult(
        name=name,
        op_type="Conv",
        lowering="grouped",
        groups=2,
        in_per_group=16,
        out_per_group=16,
        dense_macs=8_000_000,
        macs=4_000_000,
        executed_macs=4_000_000,
        dense_ms=dense_ms,
        pruned_ms=pruned_ms,
        theoretical_speedup=2.0,
        realistic_speedup=1.5,
        efficiency=0.75,
        noise=noise,
        cause=cause,
        intensity=intensity,
        bound_ms=bound_ms,
        bound_share=share,
        provider="CPUExecutionProvider",
    )


def result(
    dense_ms: float | None = 4.0,
    pruned_ms: float = 2.5,
    *,
    target: str = "cpu",
    threads: int = 1,
    batch: int = 1,
    theoretical: float = 2.0,
    spread: float = 0.02,
    samples: int = 0,
    settled: bool = True,
    layers: Sequence[LayerResult] = (),
    precision: str = "fp32",
    providers: dict[str, int] | None = None,
    advice: tuple[str, ...] = (),
) -> Result:
    real = None if dense_ms is None else dense_ms / pruned_ms
    known = None if real is None else theoretical
    interval = None if real is None else (real * (1 - spread / 2), real * (1 + spread / 2))
    return Result(
        target=target,
        provider="CPUExecutionProvider",
        threads=threads,
        batch_size=batch,
        dense=None if dense_ms is None else latency(dense_ms, spread=spread, samples=samples, settled=settled),
        pruned=latency(pruned_ms, spread=spread, samples=samples, settled=settled),
        dense_macs=None if dense_ms is None else 8_000_000 * batch,
        pruned_macs=4_000_000 * batch,
        theoretical_speedup=known,
        realistic_speedup=real,
        paired_speedup=real,
        paired_interval=interval,
        efficiency=real / theoretical if real else None,
        layers=tuple(layers),
        precision=precision,
        providers=providers or {"CPUExecutionProvider": 10},
        advice=advice,
    )


def profile(*results: Result, where: Environment | None = None, iterations: int = 100) -> ProfileResult:
    return ProfileResult(where or environment(), Settings(10, iterations, 0), results)


def run(name: str, *results: Result, top1: float | None = None, **settings: Environment) -> Run:
    accuracy = None if top1 is None else Accuracy(98.0, top1, None, 360, "digits")
    manifest = None if top1 is None else Manifest(1, "0.1.0", arch="resnet8", accuracy=accuracy)
    return Run(name, profile(*results, **settings), manifest)


def failed(measured: Run, *failures: SweepFailure) -> Run:
    """The run, with what could not be measured in it."""
    return replace(measured, profile=msgspec.structs.replace(measured.profile, failures=failures))


def write_profile(path: Path, *results: Result, where: Environment | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pretty_json(profile(*results, where=where)))
    return path


def put_profile(bundle: Path, measured: ProfileResult) -> None:
    """Give a bundle another profile."""
    (bundle / PROFILE).write_bytes(pretty_json(measured))
    write_manifest(bundle, open_bundle(bundle).manifest)
