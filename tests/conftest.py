"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as edgeprune does, which some tests import behind ONNX Runtime
ROOT = Path(__file__).resolve().parent.parent
os.environ.pop("COLUMNS", None)  # pytest's workers are told 80, which cuts the tables that tests read


@pytest.fixture(autouse=True)
def light_heap() -> Iterator[None]:
    """Leave what lives already out of every collection of garbage: each measurement begins with one, which takes a
    quarter of a second to go through all objects of torch and its exporter."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real checkpoints, tickets and images; the test is skipped where there is none."""
    folder = Path(os.environ.get("EDGEPRUNE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data here: set EDGEPRUNE_TEST_DATA to a folder with checkpoints/ and tickets_resnet20/")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture
def brief_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that are not about times: whatever is measured is measured as ever, but only a few rounds of it, however
    wide the interval still is."""
    from edgeprune.profiling.result import ProfileResult
    from edgeprune.profiling.runtimes.apart import run_together
    from edgeprune.profiling.runtimes.joint import Job, Together
    from edgeprune.profiling.sweeping.process import ProfileJob, run_apart

    def run_briefly(job: ProfileJob) -> ProfileResult:
        options = replace(job.options, warmup=2, iterations=min(job.options.iterations, 40))
        return run_apart(msgspec.structs.replace(job, options=options))

    def together_briefly(job: Job) -> Together:
        options = replace(job.options, warmup=2, iterations=min(job.options.iterations, 20))
        return run_together(msgspec.structs.replace(job, options=options))

    monkeypatch.setattr("edgeprune.profiling.sweeping.sweep.run_apart", run_briefly)
    monkeypatch.setattr("edgeprune.pipeline.runtimes.run_together", together_briefly)
    monkeypatch.setattr("edgeprune.tuning.timer.REPEATS", 1)
