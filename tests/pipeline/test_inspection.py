"""What `inspect` tells of a bundle's forms."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_bundle as small

from edgeprune.bundles.names import LOWERING
from edgeprune.cli import main
from edgeprune.lowering.forms import SPLIT
from edgeprune.pipeline.inspect import inspect


def test_a_lowered_bundle_tells_its_forms_and_explains_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small.write_bundle(tmp_path / "tuned", profiled=False, lowered=small.lowering())
    found = inspect(folder)
    assert found.facts["forms"] == "1 dense"
    assert found.facts["forms chosen by"] == "measured on a processor, 2 threads, batch 1"
    assert found.facts["executed MACs"] == "2,778,944 in these forms, filled-in zeros included"
    assert found.facts["networks measured"].endswith("fastest forms 0.500 ms; taken: fastest forms")
    what = {row[0]: row[-1] for row in found.rows}
    assert "each layer as planned" in what["plain.onnx"]
    assert all(what.values())
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["inspect", str(folder)]) == 0
    assert "each layer as planned" in capsys.readouterr().out


def test_predicted_forms_are_told_as_such(tmp_path: Path) -> None:
    record = small.lowering(SPLIT, measured=False)
    facts = inspect(small.write_bundle(tmp_path / "bundle", profiled=False, lowered=record)).facts
    assert facts["forms chosen by"] == "predicted for x86-avx512"
    assert "networks measured" not in facts


def test_a_bundle_that_was_never_lowered_is_inspected(tmp_path: Path) -> None:
    facts = inspect(small.write_bundle(tmp_path / "bundle", profiled=False)).facts
    assert not [name for name in facts if "forms" in name or "executed" in name]


def test_a_changed_lowering_is_a_fault_not_an_end(tmp_path: Path) -> None:
    folder = small.write_bundle(tmp_path / "bundle", profiled=False, lowered=small.lowering())
    (folder / LOWERING).write_bytes(b"{")
    found = inspect(folder)
    assert [fault for fault in found.faults if fault.startswith(LOWERING)]
    assert "forms" not in found.facts
