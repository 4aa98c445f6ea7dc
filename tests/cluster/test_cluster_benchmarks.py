"""The benchmarks of several devices run, on a small scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import example_modules
from places import BENCHMARKS

from edgeprune.pipeline.output import Output
from edgeprune.pipeline.split import SplitOptions, split


def load(name: str) -> Any:
    return example_modules.load(BENCHMARKS, name)


def test_the_engine_is_timed_beside_zenoh_alone() -> None:
    found = load("cluster_overhead").run(exchanges=20)
    assert set(found) == {"64 KB", "1 MB"}
    for row in found.values():
        assert row["ratio"] == row["engine_ms"] / row["bare_ms"]


def test_damaged_frames_are_counted(tmp_path: Path) -> None:
    faults = load("cluster_faults")
    faults.write_network(tmp_path / "rows.onnx")
    split(tmp_path / "rows.onnx", SplitOptions("3", force=True), Output(tmp_path / "split"))
    row = faults.nonsense(tmp_path / "split", 100)
    assert (row["wrong"], row["failed"], row["died"]) == (0, 0, False)
    assert row["refused"] > 50
    assert faults.is_bad({**row, "wrong": 1})
