"""The demo, whole: it is what a stranger runs first."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.bundles.bundle import open_bundle
from edgeprune.cli import main


@pytest.mark.usefixtures("brief_measuring")  # no speed-up is promised
def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    assert main(["demo", "-o", str(tmp_path / "demo"), "--quiet"]) == 0
    bundle = open_bundle(tmp_path / "demo")
    assert bundle.faults() == []
    manifest = bundle.manifest
    assert manifest.accuracy is not None
    assert manifest.macs is not None
    assert manifest.accuracy.dense >= 97.0
    assert manifest.accuracy.dense - manifest.accuracy.pruned <= 1.0
    assert manifest.macs.pruned <= 0.65 * manifest.macs.dense
    assert {"model.onnx", "dense.onnx", "partition.json", "profile.json", "runtimes.json", "report.html"} <= set(
        manifest.files
    )
