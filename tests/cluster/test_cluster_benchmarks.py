"""The benchmarks of several devices run, on a small scale."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import example_modules
import numpy as np
import pytest
from places import BENCHMARKS

from edgeprune.cluster.local import LocalWorkers
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


def test_outputs_of_many_inputs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = load("cluster_links")
    load("cluster_faults").write_network(tmp_path / "rows.onnx")
    split(tmp_path / "rows.onnx", SplitOptions("2", force=True), Output(tmp_path / "split"))
    asked = SimpleNamespace(compare=5, data="", link="")
    with LocalWorkers(tmp_path / "split", ["device1"]) as workers:
        found = links.compared(tmp_path / "split", workers.addresses, asked)
        assert (found["inputs"], found["answered"], found["tried_again"], found["passed"]) == (5, 5, 0, True)
        assert found["max_difference_of_range"] <= links.TOLERANCE
        off = {"y": np.float32([0.0, 2.0])}, {"y": np.float32([0.0, 2.1])}
        assert links.difference(*off) == pytest.approx(0.05)
        monkeypatch.setattr(links, "difference", lambda expected, got: float("nan"))
        assert not links.compared(tmp_path / "split", workers.addresses, asked)["passed"]
