"""Split bundles beside each other: accuracy against the bytes that their devices exchange."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
import small_bundle as small

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.writing import write_manifest
from edgeprune.cli import main
from edgeprune.errors import InputError
from edgeprune.report.comparison.compared import Compared
from edgeprune.report.comparison.exchange import exchanged
from edgeprune.report.comparison.page import build_comparison
from edgeprune.report.comparison.runs import read_runs
from edgeprune.report.document import Document, Picture, Table
from edgeprune.report.figures.pictures import draw


def split_bundle(folder: Path, size: int, top1: float, *, profiled: bool = False) -> Path:
    told = {"bytes_per_inference": size, "latency_ms": size / 1e4, "speedup": 1.0, "basis": ""}
    partition = {"devices": [{"name": "a"}, {"name": "b"}], "predicted": told}
    small.write_bundle(folder, partition=json.dumps(partition).encode(), profiled=profiled)
    manifest = open_bundle(folder).manifest
    assert manifest.accuracy is not None
    write_manifest(
        folder,
        msgspec.structs.replace(manifest, accuracy=msgspec.structs.replace(manifest.accuracy, pruned=top1)),
    )
    return folder


@pytest.fixture
def bundles(tmp_path: Path) -> list[Path]:
    figures = {"apart": (1_000, 80.0), "all": (100_000, 90.0), "between": (20_000, 88.5)}
    return [split_bundle(tmp_path / name, *own) for name, own in figures.items()]


def page(bundles: list[Path]) -> Document:
    return build_comparison(Compared(read_runs(bundles)))


def test_runs_are_drawn_and_listed_from_the_least_exchange_on(bundles: list[Path]) -> None:
    document = page(bundles)
    (section,) = (section for section in document.sections if section.anchor == "exchange")
    picture, table = section.blocks
    assert isinstance(picture, Picture)
    assert isinstance(table, Table)
    curve = picture.subject
    assert (curve.x, curve.y) == ((1.0, 20.0, 100.0), (80.0, 88.5, 90.0))
    assert curve.point_labels == ("apart", "between", "all")
    assert [row[:4] for row in table.rows] == [
        ("apart", "2", "1.00 kB", "1 %"), ("between", "2", "20.0 kB", "20 %"), ("all", "2", "100 kB", "100 %"),
    ]  # fmt: skip
    assert "80.00 %" in table.rows[0]
    told = "apart exchanges 1.00 kB for one inference, 1 % of what all does; its Top-1 is 80.00 % (-10.00 points)."
    assert picture.text == document.summary == told
    assert "<svg" in draw(picture)


def test_the_page_is_written_without_any_profile(bundles: list[Path], tmp_path: Path) -> None:
    for name in ("html", "md", "json"):
        out = tmp_path / f"page.{name}"
        assert main(["report", *map(str, bundles), "-o", str(out), "--quiet"]) == 0
        assert "exchange" in out.read_text()
    told = json.loads((tmp_path / "page.json").read_text())
    assert [run["exchanged_bytes"] for run in told["runs"]] == [1_000, 100_000, 20_000]


def test_bundles_that_were_measured_as_well_are_compared_in_both(tmp_path: Path) -> None:
    both = [split_bundle(tmp_path / name, size, 80.0, profiled=True) for name, size in (("a", 10), ("b", 0))]
    anchors = [section.anchor for section in page(both).sections]
    assert "exchange" in anchors
    assert "setting-0" in anchors
    assert [one.size for one in exchanged(read_runs(both))] == [0, 10]
    mixed = [both[0], split_bundle(tmp_path / "c", 30, 70.0)]
    document = page(mixed)
    assert "nothing to compare" in document.summary
    assert {"exchange", "setting-0"} <= {section.anchor for section in document.sections}


def test_one_split_bundle_has_no_curve_and_a_bundle_without_either_is_refused(tmp_path: Path) -> None:
    (run,) = read_runs([split_bundle(tmp_path / "a", 10, 80.0)])
    plain = dataclasses.replace(run, name="b", split=None)
    assert "exchange" not in [s.anchor for s in build_comparison(Compared((run, plain))).sections]
    with pytest.raises(InputError, match="was not measured.*or split it over devices"):
        read_runs([small.write_bundle(tmp_path / "c", profiled=False)])


def test_a_gate_on_accuracy_holds_for_bundles_without_latencies(bundles: list[Path]) -> None:
    apart, everything, between = map(str, bundles)
    assert main(["report", between, "--baseline", everything, "--max-drop", "2", "--quiet"]) == 0
    assert main(["report", apart, "--baseline", everything, "--max-drop", "2", "--quiet"]) == 3
    assert main(["report", apart, "--baseline", everything, "--fail-on-regression", "5%", "--quiet"]) == 1
