"""The runtimes of a machine in the report: table, picture, and figures for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import built_results as built
import msgspec
import pytest
import small_bundle as small

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import RUNTIMES
from edgeprune.bundles.writing import write_manifest
from edgeprune.errors import InputError
from edgeprune.io.files import pretty_json
from edgeprune.profiling.runtimes.record import MissingRuntime, Place, RuntimeRow, RuntimesRecord
from edgeprune.report import write_report
from edgeprune.report.views.runtimes import RuntimePairs
from edgeprune.report.words.runtimes import verdicts


def row(target: str, dense: float, pruned: float, over_fastest: float, **more: object) -> RuntimeRow:
    times = built.latency(dense), built.latency(pruned)
    return RuntimeRow(
        target, "1.0", "fp32", "as planned", *times, dense / pruned, None, over_fastest, accuracy_dense=91.0, **more
    )  # type: ignore[arg-type]


RECORD = RuntimesRecord(
    built.environment(),
    batch_size=1,
    seed=0,
    time_limit_s=10.0,
    rows=(
        row("cpu", 8.0, 4.0, 1.5),
        row("litert", 6.0, 3.0, 2.0),
        RuntimeRow("ncnn", "1.0", "fp32", "as planned", error="ncnn has no Gather <b>", kind="input"),
    ),
    fastest_dense={"fp32": Place("litert", "fp32", "dense", 6.0)},
    best=Place("litert", "fp32", "pruned", 3.0),
    ties=(Place("cpu", "fp32", "pruned", 4.0),),
    missing=(MissingRuntime("openvino-native", "needs openvino"),),
    kept=("model.tflite",),
    deploy="deploy model.tflite with LiteRT",
)


def written(folder: Path, record: RuntimesRecord = RECORD) -> Path:
    small.write_bundle(folder, profiled=False)
    (folder / RUNTIMES).write_bytes(pretty_json(record))
    write_manifest(folder, open_bundle(folder).manifest)
    return folder


def test_every_format_has_the_runtimes(tmp_path: Path) -> None:
    paths = write_report(written(tmp_path / "bundle"), ("html", "md", "json"), into=tmp_path)
    html, markdown, machine = (path.read_text() for path in paths)
    assert (
        "| litert | fp32 | as planned | 6.00 ms | 3.00 ms | 2.00x | 2.00x | 91.00 % to – | fastest: pruned |"
        in markdown
    )
    for text in (html, markdown):
        assert "Runtimes beside each other" in text
        assert "2.00 times as fast as the fastest dense one (litert, fp32, 6.00 ms)" in text
        assert "Not to be told apart from it in this run: pruned in cpu, fp32." in text
        assert "ncnn has no Gather" in text
        assert "needs openvino" in text
        assert "deploy model.tflite with LiteRT" in text
    assert "Gather <b>" not in html
    assert 'id="caption-runtimes"' in html
    assert json.loads(machine)["runtimes"]["best"]["target"] == "litert"


def test_the_picture_shows_what_was_measured_and_marks_the_best() -> None:
    view = RuntimePairs.of(RECORD)
    assert view is not None
    assert [(pair.label, pair.best) for pair in view.pairs] == [("cpu, fp32", None), ("litert, fp32", "pruned")]
    assert RuntimePairs.of(RuntimesRecord(built.environment(), 1, 0, 1.0, RECORD.rows[2:])) is None


def test_a_bundle_without_them_has_no_such_section(tmp_path: Path) -> None:
    (path,) = write_report(small.write_bundle(tmp_path / "bundle", profiled=False), ("md",), into=tmp_path)
    assert "Runtimes beside each other" not in path.read_text()


def test_a_best_that_no_row_is_of_is_no_reason_to_fail() -> None:
    strange = RuntimesRecord(built.environment(), 1, 0, 1.0, (), best=Place("x", "fp32", "pruned", 1.0))
    assert list(verdicts(strange)) == ["The fastest is the pruned network in x, fp32: 1.00 ms."]


@pytest.mark.parametrize(
    ("network", "dense", "pruned", "told"),
    [
        ("pruned", 91.0, 38.12, "Speed alone decided: its top-1 is 38.12 %, 52.88 points below the dense network's"),
        ("pruned", 91.0, 90.5, ""),
        ("dense", 91.0, 38.12, ""),
        ("pruned", None, 38.12, ""),
    ],
)
def test_a_best_that_is_far_less_accurate_is_told_so(
    network: str, dense: float | None, pruned: float, told: str
) -> None:
    rows = (msgspec.structs.replace(RECORD.rows[1], accuracy_dense=dense, accuracy_pruned=pruned),)
    record = msgspec.structs.replace(RECORD, rows=rows, best=Place("litert", "fp32", network, 3.0))  # type: ignore[arg-type]
    found = [text for text in verdicts(record) if "Speed alone" in text]
    assert len(found) == bool(told)
    assert "".join(found).startswith(told)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"schema_version": 9}'])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    folder = written(tmp_path / "bundle")
    (folder / RUNTIMES).write_bytes(content)
    write_manifest(folder, open_bundle(folder).manifest)
    with pytest.raises(InputError, match=r"runtimes\.json"):
        write_report(folder, ("md",), into=tmp_path)
