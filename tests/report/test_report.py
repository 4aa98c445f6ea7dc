"""The report: complete, self-contained, the same every time, and harmless whatever the bundle holds."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import built_results as built
import msgspec
import numpy as np
import pytest
import small_bundle as small
from hypothesis import given
from hypothesis import strategies as st
from report_pages import PARTITION, Outline

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.manifest import Accuracy, Count, Manifest, ParityRecord
from edgeprune.bundles.names import PROFILE
from edgeprune.bundles.writing import write_manifest
from edgeprune.errors import InputError
from edgeprune.io import formatting
from edgeprune.io.files import pretty_json
from edgeprune.lowering.forms import DENSE, GROUPED, SPLIT, Form
from edgeprune.lowering.record import FromCache, LoweringRecord
from edgeprune.pipeline.report import report as report_bundle
from edgeprune.plans.method_record import FILE_NAME, MethodRecord, RecordCurve, RecordTable
from edgeprune.plans.plan import LayerPlan, Plan
from edgeprune.profiling.environment import current_environment
from edgeprune.profiling.result import load_profile_result
from edgeprune.report import write_report
from edgeprune.report.contents import read_contents
from edgeprune.report.document import Notes, Picture, Table
from edgeprune.report.page.forms import forms_section
from edgeprune.report.page.markdown import escaped
from edgeprune.report.page.sections import OF_ROUNDS, build_document
from edgeprune.report.views.kernels import block_diagonal, kernel_norms, kernel_view, reduced
from edgeprune.report.words.forms import choice_sentence
from edgeprune.report.words.headline import headline_rows

EVIL = "layer1.<script>alert(1)</script>.$x^2$.|`conv`&\"'"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_bundle(tmp_path_factory.mktemp("report") / "bundle", partition=PARTITION)


@pytest.fixture(scope="module")
def html(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    (path,) = write_report(bundle, ["html"], into=tmp_path_factory.mktemp("html"))
    return path.read_text()


def test_the_page_asks_for_nothing_outside_itself(html: str) -> None:
    page = Outline(html)
    assert not {"script", "iframe", "object", "embed", "img"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "data", "action") and tag != "meta":
            assert value.startswith(("#", "data:")), (tag, name, value[:60])
        assert not name.startswith("on"), (tag, name)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert len(html.encode()) < 2_000_000


def test_the_page_is_well_formed_and_accessible(html: str) -> None:
    page = Outline(html)
    assert page.unbalanced == []
    assert page.open == []
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert page.tags.count("table") == page.tags.count("caption")
    assert all(value in ("col", "row") for tag, name, value in page.attributes if (tag, name) == ("th", "scope"))
    assert page.tags.count("th") == sum(1 for tag, name, _ in page.attributes if (tag, name) == ("th", "scope"))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labels = {value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-labelledby")}
    shown = ("speed-ups", "sweep-batch-size", "runs", "waterfall", "layers", "kernels", "split")
    assert labels >= {f"caption-{name}" for name in shown}
    assert labels <= set(ids)
    assert {value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-describedby")} <= set(ids)
    targets = {
        value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href") and value.startswith("#")
    }
    assert targets <= set(ids)
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_the_page_holds_the_figures(html: str) -> None:
    for words in (
        "resnet8, pruned with tmi-gkp", "98.10 %", "97.40 %", "realistic speed-up", "theoretical speed-up",
        "Gathers in the exported model", "layer1.0.conv1", "2\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}16→16", "skipped by request",
        "raspberry-pi-5", "one device alone would be faster", "FLOPs = 2 x MACs", "before: original order",
    ):  # fmt: skip
        assert words in html, words
    assert "currentColor" in html
    assert "#010203" not in html


def test_every_format_shows_the_same_tables(bundle: Path, html: str, tmp_path: Path) -> None:
    (path,) = write_report(bundle, ["md"], into=tmp_path)
    markdown = path.read_text()
    captions = [
        block.caption
        for section in build_document(read_contents(bundle)).sections
        for block in section.blocks
        if isinstance(block, Table)
    ]
    assert len(captions) >= 12
    assert all(f"<caption>{caption}</caption>" in html for caption in captions)
    assert all(f"**{caption}**" in markdown for caption in captions)
    tables = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)
    assert len(tables) == len(captions)
    assert all(len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1 for table in tables)


def test_reports_are_the_same_every_time(bundle: Path, html: str, tmp_path: Path) -> None:
    formats = ["html", "md", "json", "csv"]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert [path.name for path in write_report(bundle, formats, into=tmp_path / folder)] == [
            f"report.{f}" for f in formats
        ]
    for name in formats:
        assert (tmp_path / "a" / f"report.{name}").read_bytes() == (tmp_path / "b" / f"report.{name}").read_bytes()
    assert (tmp_path / "a" / "report.html").read_text() == html


def test_names_out_of_a_bundle_are_shown_and_never_run(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    folder = small.write_bundle(tmp_path / "evil", EVIL, partition=PARTITION.replace(b"pi1", b"<b onload=x>\\u202e"))
    manifest = msgspec.structs.replace(open_bundle(folder).manifest, arch=EVIL, notes=(EVIL,), settings={EVIL: EVIL})
    write_manifest(folder, manifest)
    page, markdown = (path.read_text() for path in write_report(folder, ["html", "md"], into=tmp_path))
    outline = Outline(page)
    assert "script" not in outline.tags
    assert "b" not in outline.tags
    assert not any(name.startswith("on") for _, name, _ in outline.attributes)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\u202e" not in page
    assert "<script>" not in markdown
    assert "&lt;script&gt;" in markdown


def recorded(source: Path, folder: Path, record: bytes) -> Path:
    """A copy of a bundle with what a method recorded."""
    shutil.copytree(source, folder)
    (folder / FILE_NAME).write_bytes(record)
    write_manifest(folder, open_bundle(folder).manifest)
    return folder


RECORD = MethodRecord(
    (
        RecordTable("Path", ("step", "layer", "MACs left"), ((1, "conv1", 0.75), (2, "conv2", 0.5)), "Two steps."),
        RecordTable("Rates", ("layer", "rate", "filters"), tuple((f"l{n}", n / 16, 4096) for n in range(14))),
    ),
    (
        RecordCurve("Path", "MACs left", "kept", (0.75, 0.5), (0.9, 0.8), ("conv1: 2 groups", "conv2: 2 groups")),
        RecordCurve("Loss", "epoch", "loss", (1.0, 2.0, 3.0), (2.5, 1.25, 1.0), text="It falls."),
    ),
)


def test_a_real_run_stands_beside_the_prediction(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    spans = [
        {"kind": "transfer", "device": "pi0", "to": "pi1", "stage": 1, "start_ms": 0.5, "end_ms": 0.75, "tensor": "b"},
        {"kind": "compute", "device": "pi0", "to": "pi0", "stage": 0, "start_ms": 0.0, "end_ms": 0.5, "tensor": ""},
        {"kind": "compute", "device": "pi1", "to": "pi1", "stage": 1, "start_ms": 0.75, "end_ms": 2.0, "tensor": ""},
    ]
    run = tmp_path / "run.json"
    run.write_text(json.dumps({"timeline": {"latency_ms": 2.25, "spans": spans, "clocks_within_ms": 0.1}}))
    formats = ["html", "md", "json"]
    html, markdown, data = (path.read_text() for path in write_report(bundle, formats, into=tmp_path, run=run))
    assert "Which device did what when" in html
    assert "Measured: 2.25 ms, the median of a run, +50.0 % against the estimate" in markdown
    assert "clocks agree within 0.100 ms" in markdown
    assert "| pi0 | 0.500 ms |" in markdown
    assert "| pi1 | 1.25 ms |" in markdown
    assert "9.22 kB |" in markdown
    assert "milliseconds, measured" in html
    assert json.loads(data)["run"]["latency_ms"] == 2.25
    assert not Outline(html).unbalanced


def test_what_is_predicted_of_many_frames_is_told(tmp_path: Path) -> None:
    partition = json.loads(PARTITION)
    partition["predicted"]["throughput"] = {
        "mode": "pipeline", "frames_per_s": 12.5, "devices": ["pi0", "pi1"], "pipeline_frames_per_s": 12.5,
    }  # fmt: skip
    folder = small.write_bundle(tmp_path / "bundle", partition=json.dumps(partition).encode())
    (path,) = write_report(folder, ["md"], into=tmp_path)
    told = "whole frames on each device not at all; parts of each frame on all devices 12.50."
    assert f"Estimated throughput in frames a second: {told}" in path.read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("[]", "tells of no run"),
        ('{"timeline": null}', "no device had a part"),
        ('{"timeline": {"latency_ms": 1, "spans": [{"kind": "compute", "device": "x", "start_ms": 0, "end_ms": 1}]}}',
         "on 'x', which has no part"),
        ('{"timeline": {"latency_ms": 1, "spans": [{"kind": "transfer", "device": "pi0", "to": "pi1", "tensor": "z", '
         '"start_ms": 0, "end_ms": 1}]}}', "a run of another bundle: here pi0 sends no 'z' to pi1"),
    ],
)  # fmt: skip
def test_what_is_no_run_of_this_network_is_refused(bundle: Path, tmp_path: Path, text: str | None, told: str) -> None:
    run = tmp_path / "run.json"
    if text is not None:
        run.write_text(text)
    with pytest.raises(InputError, match=told):
        write_report(bundle, ["md"], into=tmp_path, run=run)


def test_a_run_is_for_the_report_of_a_split_bundle(tmp_path: Path) -> None:
    run = tmp_path / "run.json"
    run.write_text('{"timeline": {"latency_ms": 1}}')
    with pytest.raises(InputError, match="this one is not split"):
        write_report(small.write_bundle(tmp_path / "bundle"), ["md"], into=tmp_path, run=run)


def test_what_a_method_recorded_is_shown_in_every_format(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    folder = recorded(bundle, tmp_path / "recorded", RECORD.to_json())
    html, markdown, data = (path.read_text() for path in write_report(folder, ["html", "md", "json"], into=tmp_path))
    assert msgspec.convert(json.loads(data)["method"], MethodRecord) == RECORD
    for table in ("Path", "Rates", "Loss"):  # the curve without a table gets one of its points
        assert markdown.count(f"**{table}**") == 1
        assert html.count(f"<caption>{table}</caption>") == 1
    assert "| 2 | conv2 | 0.5 |" in markdown
    assert "| l1 | 0.0625 | 4,096 |" in markdown
    assert "| 3 | 3 | 1 |" in markdown
    for text in ("Two steps.", "It falls.", "How tmi-gkp decided"):
        assert text in html
        assert text in markdown
    assert html.count("conv2: 2 groups") == 1  # on the picture
    assert {'aria-labelledby="caption-method-0"', 'aria-labelledby="caption-method-1"'} <= set(
        re.findall(r'aria-labelledby="caption-method-\d"', html)
    )
    assert not Outline(html).unbalanced


def test_what_a_method_recorded_is_never_run(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    record = MethodRecord(
        (RecordTable(EVIL, (EVIL, "b"), ((EVIL, 1),), EVIL),),
        (RecordCurve(EVIL, EVIL, EVIL, (1.0,), (1.0,), (EVIL,), EVIL), RecordCurve("none", "x", "y", (), ())),
    )
    folder = recorded(bundle, tmp_path / "evil", record.to_json())
    page, markdown = (path.read_text() for path in write_report(folder, ["html", "md"], into=tmp_path))
    assert "script" not in Outline(page).tags
    assert "&lt;script&gt;" in page
    assert "<script>" not in markdown


@pytest.mark.parametrize(
    "record",
    [
        b"{",
        MethodRecord((RecordTable("t", ("a", "b"), ((1,),)),)).to_json(),
        MethodRecord((), (RecordCurve("c", "x", "y", (1.0,), ()),)).to_json(),
        MethodRecord((), (RecordCurve("c", "x", "y", (1.0,), (1.0,), ("p", "q")),)).to_json(),
    ],
)
def test_a_record_that_is_none_is_named(bundle: Path, tmp_path: Path, record: bytes) -> None:
    folder = recorded(bundle, tmp_path / "damaged", record)
    with pytest.raises(InputError, match="method.json: is no record of a method"):
        write_report(folder, ["md"], into=tmp_path)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose grouped layer is written dense, as measured."""
    folder = tmp_path_factory.mktemp("lowered") / "bundle"
    return small.write_bundle(folder, partition=PARTITION, lowered=small.lowering())


def test_the_forms_of_the_layers_are_shown_in_every_format(lowered: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    html, markdown, data, table = (
        path.read_text() for path in write_report(lowered, ["html", "md", "json", "csv"], into=tmp_path)
    )
    for text in (html, markdown):
        for words in (
            "on a processor, ONNX Runtime 1.31.1, 2 threads, batch 1. Taken: fastest forms, 2.00 times as fast as dense.",
            "Under the plan one sample takes 2.12 M MACs: these alone count for the theoretical speed-up. In its forms "
            "the network executes 2.78 M, filled-in zeros included (dense network: 2.78 M).",
            "As its layers are written it executes 2.78 M MACs (dense: 2.78 M).",
            "1 of 1 grouped layers are written dense, zeros filled in, since that was measured to be fastest",
            "As it is, dense.onnx is about as fast on this target",
            "the machine was busy",
            "The parts hold the network as planned; the forms above are those of the whole model.",
            "To ONNX the layer is written as dense, which computes the same.",
        ):
            assert words in text, words
    assert "| layer1.0.conv1 | dense | 664 k | 1.33 M | 0.200 | 0.300 | 0.100 |" in markdown
    assert "| fastest forms | 0.500 | 2.00x | taken |" in markdown
    assert "| MACs executed in the chosen forms | 2.78 M | 2.78 M | 1.00x less |" in markdown
    assert 'aria-labelledby="caption-forms"' in html
    assert "filled-in zeros" in html
    read = json.loads(data)
    assert read["lowering"]["layers"][0]["executed_macs"] == 2 * read["lowering"]["layers"][0]["macs"]
    assert read["headline"]["Forms"].startswith("1 dense (measured on a processor, 2 threads, batch 1)")
    middle = next(row for row in csv.DictReader(io.StringIO(table)) if row["name"] == small.MIDDLE)
    assert (middle["lowering"], middle["form"], middle["form_chosen_by"]) == ("dense", "dense", "measured")
    assert int(middle["executed_macs"]) == 2 * int(middle["macs"])


def test_the_report_says_why_a_layer_has_another_form_than_its_fastest() -> None:
    assert choice_sentence(small.lowering(DENSE)) == ""
    assert choice_sentence(small.lowering(SPLIT, measured=False)) == "", "nothing was measured whole"
    assert choice_sentence(small.lowering(SPLIT)).startswith(
        "1 of 1 layers are not written in the form that was fastest in their place: whole networks decide, and of these "
        "'fastest forms' was taken."
    )


def test_the_report_says_which_times_were_remembered(tmp_path: Path) -> None:
    record = msgspec.structs.replace(small.lowering(), from_cache=FromCache(3, 4))
    folder = small.write_bundle(tmp_path / "fresh", profiled=False, lowered=record)
    (path,) = write_report(folder, ["md"], into=tmp_path)
    assert "From the cache: 3 of layers in their forms and 4 of whole networks." in path.read_text()


def test_a_file_is_no_bundle_to_report_on(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text("{}")
    with pytest.raises(InputError, match=r"profile.json: is a file; expected a bundle; .* edgeprune report OLD NEW"):
        report_bundle(tmp_path / "profile.json", ["md"])


def test_forms_are_told_before_anything_is_profiled(tmp_path: Path) -> None:
    folder = small.write_bundle(tmp_path / "fresh", profiled=False, lowered=small.lowering(SPLIT, measured=False))
    markdown, table = (path.read_text() for path in write_report(folder, ["md", "csv"], into=tmp_path))
    assert "the cost table of the device profile x86-avx512: predicted, not measured" in markdown
    assert "edgeprune tune fresh" in markdown
    assert "with the predicted times of all its forms" in markdown
    assert "Whole networks" not in markdown
    assert "it executes" not in markdown.partition("##")[0], "nothing is filled in"
    (row,) = csv.DictReader(io.StringIO(table))
    assert (row["name"], row["lowering"], row["form"], row["form_chosen_by"]) == (
        small.MIDDLE, "split", "split", "predicted",
    )  # fmt: skip


def test_a_device_without_a_cost_table_is_told_to_tune(tmp_path: Path) -> None:
    record = without_costs(small.lowering(GROUPED, measured=False), "raspberry-pi-5")
    folder = small.write_bundle(tmp_path / "pi", profiled=False, lowered=record)
    (path,) = write_report(folder, ["md"], into=tmp_path)
    assert "written as planned: nothing was measured or predicted." in path.read_text()
    assert "edgeprune tune pi" in path.read_text()


def without_costs(record: LoweringRecord, device: str) -> LoweringRecord:
    layers = tuple(msgspec.structs.replace(layer, costs={}) for layer in record.layers)
    return msgspec.structs.replace(record, device=device, layers=layers)


@pytest.mark.parametrize(
    ("record", "row"),
    [
        (small.lowering(), "1 dense (measured on a processor, 2 threads, batch 1), executed MACs 2.78 M"),
        (small.lowering(SPLIT, measured=False), "1 split (predicted for x86-avx512), executed MACs 2.12 M"),
        (small.lowering(Form("padded", block=32)), "1 padded (measured on a processor, 2 threads, batch 1), executed MACs 4.11 M"),
        (
            without_costs(small.lowering(GROUPED, measured=False), "rk3588"),
            "1 grouped (as planned: no cost table for rk3588), executed MACs 2.12 M",
        ),
    ],
)  # fmt: skip
def test_the_headline_tells_the_forms(bundle: Path, record: LoweringRecord, row: str) -> None:
    rows = dict(headline_rows(open_bundle(bundle).manifest, None, record))
    assert rows["Forms"] == row
    assert "Gathers, before to after folding and lowering" in rows
    assert rows["MACs, dense to pruned"] == "2.78 M to 2.12 M (1.31x less)", "never what a form computes in excess"


def advice(record: LoweringRecord, plan: Plan) -> str:
    blocks = forms_section(record, Manifest(1, "0.1.0"), plan, "out").blocks
    return " ".join(item for block in blocks if isinstance(block, Notes) for item in block.items)


def test_advice_fits_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = small.lowering(measured=False)
    aligned = small.plan()
    halves = (tuple(range(24)), tuple(range(8, 32)))
    off_block = replace_inputs(aligned, halves)
    assert "is predicted to be fastest" in advice(predicted, aligned)
    assert "--align auto" not in advice(predicted, aligned)
    assert "1 of 1 grouped layers have channels a group that are no multiple of 16" in advice(predicted, off_block)
    elsewhere, here = small.lowering(), current_environment(1).cpu
    assert "--align auto" not in advice(elsewhere, off_block), "the block of another machine is not known"
    monkeypatch.setattr("edgeprune.report.page.forms.this_machine_block", lambda: 16)
    assert "--align auto" in advice(msgspec.structs.replace(elsewhere, device=here), off_block)
    assert advice(small.lowering(GROUPED, measured=False), aligned) == ""
    slow = msgspec.structs.replace(small.lowering(GROUPED), chosen="as planned")
    assert "dense.onnx is about as fast" in advice(slow, aligned)


def test_many_forms_stay_on_the_picture() -> None:
    pytest.importorskip("matplotlib")
    from edgeprune.report.figures.pictures import MOST_LAYERS, draw

    record = small.lowering(DENSE)
    layers = tuple(msgspec.structs.replace(record.layers[0], name=f"block{n}.conv", macs=1000 + n) for n in range(50))
    svg = draw(Picture("forms", "x", msgspec.structs.replace(record, layers=layers)))
    assert svg.count(">block") == MOST_LAYERS
    assert f"the {MOST_LAYERS} largest of 50" in svg


def test_what_a_lowering_names_is_shown_and_never_run(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    record = small.lowering(middle=EVIL)
    layers = tuple(msgspec.structs.replace(layer, costs={EVIL: 1.0, "dense": 2.0}) for layer in record.layers)
    evil = msgspec.structs.replace(record, device=EVIL, runtime=EVIL, notes=(EVIL,), layers=layers)
    folder = small.write_bundle(tmp_path / "evil", EVIL, profiled=False, lowered=evil)
    page, markdown = (path.read_text() for path in write_report(folder, ["html", "md"], into=tmp_path))
    assert "script" not in Outline(page).tags
    assert "<script>" not in markdown


@given(st.text(max_size=80))
def test_markdown_cells_never_break_their_table(text: str) -> None:
    cell = escaped(formatting.clean(text))
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", cell)
    assert "\n" not in cell
    assert "<" not in cell


def test_the_machine_readable_report_holds_everything(bundle: Path, tmp_path: Path) -> None:
    path, table = write_report(bundle, ["json", "csv"], into=tmp_path)
    read = json.loads(path.read_text())
    assert read["manifest"]["macs"]["dense"] > read["manifest"]["macs"]["pruned"]
    assert read["profile"]["results"][1]["batch_size"] == 4
    assert read["plan"]["layers"][1] == {"name": small.MIDDLE, "groups": 2, "kept": 16, "note": ""}
    assert read["partition"]["predicted"]["speedup"] == 0.8
    assert read["headline"]["Parity"].startswith("2.0e-07 of the output's range, passed")
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["name"] for row in rows[:4]] == [small.STEM, small.MIDDLE, small.LAST, small.HEAD]
    assert len(rows) == 8
    assert int(rows[1]["macs"]) * 2 == int(rows[1]["dense_macs"])


def test_a_spreadsheet_gets_no_formulas(tmp_path: Path) -> None:
    folder = small.write_bundle(tmp_path / "formula", "=cmd|' /C calc'!A0")
    (path,) = write_report(folder, ["csv"], into=tmp_path)
    assert "\n" + "cpu,1,1,'=cmd|' /C calc'!A0" in path.read_text()


def test_an_unmeasured_bundle_says_how_to_measure(tmp_path: Path) -> None:
    folder = small.write_bundle(tmp_path / "fresh", profiled=False)
    paths = write_report(folder, ["md", "html"], into=tmp_path)
    for path in paths:
        assert "Nothing was measured yet. Measure with: edgeprune profile fresh" in path.read_text()
    assert "1.31x fewer MACs; its latency was not measured" in paths[0].read_text()


@pytest.mark.parametrize(("realistic", "told"), [(1.6, False), (1.62, False), (1.7, True), (1.5, True), (None, False)])
def test_a_change_that_is_not_the_ratio_of_the_figures_beside_it_is_explained(
    tmp_path: Path, realistic: float | None, told: bool
) -> None:
    folder = small.write_bundle(tmp_path / "bundle", profiled=False)
    one = msgspec.structs.replace(built.result(4.0, 2.5), realistic_speedup=realistic)
    built.put_profile(folder, built.profile(built.result(4.0, 2.5, batch=8), one))
    first, second, *_ = build_document(read_contents(folder)).sections[0].blocks
    assert isinstance(first, Table)
    assert (second == OF_ROUNDS) is told


def test_a_bundle_that_holds_next_to_nothing_still_has_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    write_manifest(folder, Manifest(1, "0.1.0"))
    for path in write_report(folder, ["html", "md", "json", "csv"], into=tmp_path):
        assert path.stat().st_size > 50
    assert (tmp_path / "report.md").read_text().startswith("# bare\n")


def test_a_trained_network_that_is_not_pruned_has_a_report_without_words_on_pruning(tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    folder.mkdir()
    accuracy, training = Accuracy(96.5, 96.5, None, 360, "digits"), {"epochs": 8, "schedule": "cosine", "seed": 3}
    count = Count(3_060_352, 3_060_352)
    manifest = Manifest(
        1, "0.1.0", arch="resnet8", seed=3, accuracy=accuracy, macs=count, params=count, training=training
    )
    write_manifest(folder, manifest)
    write_report(folder, ["md", "json"], into=tmp_path)
    text = (tmp_path / "report.md").read_text()
    for part in ("| Top-1 (360 images of digits) | 96.50 % |", "| MACs (one sample) | 3.06 M |", "| epochs | 8 |"):
        assert part in text
    told = text.replace("nothing is pruned.", "").replace("Nothing is pruned yet.", "")
    told = told.replace("Prune it with: edgeprune prune trained -o pruned", "").replace("edgeprune", "")
    assert not re.search("prun|dense|less|speed-up|points", told), told
    assert json.loads((tmp_path / "report.json").read_text())["headline"] == {
        "Network": "resnet8",
        "Top-1 (360 images of digits)": "96.50 %",
        "MACs (one sample)": "3.06 M",
        "Parameters": "3.06 M",
    }


def test_a_profile_without_a_baseline_is_reported(tmp_path: Path) -> None:
    folder = small.write_bundle(tmp_path / "alone")
    measured = load_profile_result(folder / PROFILE)
    alone = [
        msgspec.structs.replace(
            result,
            dense=None,
            realistic_speedup=None,
            theoretical_speedup=None,
            efficiency=None,
            paired_interval=None,
            dense_macs=None,
        )
        for result in measured.results
    ]
    (folder / PROFILE).write_bytes(pretty_json(msgspec.structs.replace(measured, results=tuple(alone))))
    write_manifest(folder, open_bundle(folder).manifest)
    markdown, _ = (path.read_text() for path in write_report(folder, ["md", "html"], into=tmp_path))
    assert "There was no baseline" in markdown
    assert "Theoretical and realistic speed-up" not in markdown


def test_wrong_wishes_are_refused_before_anything_is_written(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown report format 'pdf'"):
        write_report(bundle, ["md", "pdf"], into=tmp_path)
    with pytest.raises(InputError, match="no report format"):
        write_report(bundle, [], into=tmp_path)
    with pytest.raises(InputError, match=r"manifest\.json"):
        write_report(tmp_path, ["md"], into=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plan.json", PROFILE, "partition.json", "lowering.json"])
def test_changed_files_are_refused(lowered: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(lowered, tmp_path / "changed")
    (folder / name).write_bytes(b'{"devices": 3')
    with pytest.raises(InputError, match=f"{name}: its SHA-256 is not the manifest's"):
        write_report(folder, ["md"], into=tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plan.json", "is no plan"),
        (PROFILE, "is no profile"),
        ("partition.json", "is no partition"),
        ("lowering.json", "is no lowering"),
    ],
)
def test_damaged_files_are_named(lowered: Path, tmp_path: Path, name: str, words: str) -> None:
    folder = shutil.copytree(lowered, tmp_path / "damaged")
    (folder / name).write_bytes(b'{"devices": 3')
    write_manifest(folder, open_bundle(folder).manifest)
    with pytest.raises(InputError, match=f"{name}: {words}"):
        write_report(folder, ["md"], into=tmp_path)


def test_without_the_drawing_packages_only_html_is_missing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.report.page.html.is_importable", lambda name: name != "matplotlib")
    write_report(bundle, ["md", "json"], into=tmp_path)
    with pytest.raises(InputError, match=r"needs matplotlib; pip install 'edgeprune\[report\]'"):
        write_report(bundle, ["html"], into=tmp_path)


def test_markdown_and_json_import_no_drawing_package(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgeprune.report import write_report\n"
        "write_report(Path(sys.argv[1]), ['md', 'json', 'csv'], into=Path(sys.argv[2]))\n"
        "sys.exit(','.join({'jinja2', 'matplotlib', 'torch'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, bundle, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_headline_is_short_and_in_words(bundle: Path) -> None:
    contents = read_contents(bundle)
    rows = dict(headline_rows(contents.manifest, contents.profile))
    assert rows["Network"] == "resnet8, pruned with tmi-gkp"
    assert rows["MACs, dense to pruned"] == "2.78 M to 2.12 M (1.31x less)"
    assert rows["Gathers, before to after folding"] == "2 to 1"
    assert rows["Top-1, dense to pruned"] == "98.10 % to 97.40 % (-0.70 points)"
    assert rows["Theoretical speed-up (cpu, batch 1, 1 thread)"] == "1.31x"
    failed = msgspec.structs.replace(contents.manifest, parity=ParityRecord(1.0, 0.5, 1e-4, False))
    assert "FAILED" in dict(headline_rows(failed, None))["Parity"]
    assert headline_rows(Manifest(1, "0.1.0"), None) == []


@pytest.mark.parametrize(("write", "value", "text"), [
    (formatting.count, 980, "980"), (formatting.count, 41_200_000, "41.2 M"), (formatting.count, 1.8141e9, "1.81 G"),
    (formatting.count, 999_960, "1.00 M"), (formatting.count, None, "–"),
    (formatting.milliseconds, 1.9234, "1.92 ms"), (formatting.milliseconds, 0.0574, "0.057 ms"),
    (formatting.milliseconds, 123.4, "123 ms"), (formatting.milliseconds, 0.000012, "0.000012 ms"),
    (formatting.times, 1.776, "1.78x"), (formatting.percent, 0.837, "84 %"), (formatting.points, -0.7, "-0.70 points"),
    (formatting.size, 512, "512 B"), (formatting.size, 1_048_576, "1.05 MB"), (formatting.interval, (1.0, 2.345), "1.00 to 2.35x"),
])  # fmt: skip
def test_figures_are_written_with_three_digits(write: Callable[[object], str], value: object, text: str) -> None:
    assert write(value) == text


def test_text_out_of_files_is_one_line_without_control_characters() -> None:
    assert formatting.clean("a\n b\x00\u202ec\td") == "a bc d"
    assert len(formatting.clean("x" * 1000)) == 240
    assert formatting.shortened("features.denseblock3.denselayer24.conv2", 20) == "featur…layer24.conv2"


def test_blocks_hold_the_kernels_of_their_groups_and_nothing_else() -> None:
    weight = np.arange(4 * 4 * 9, dtype=np.float32).reshape(4, 4, 3, 3)
    entry = LayerPlan("c", filters=((3, 0), (1, 2)), inputs=((2,), (0,)))
    norms = kernel_norms(weight)
    assert norms[1, 2] == pytest.approx(np.linalg.norm(weight[1, 2]))
    blocks = block_diagonal(norms, entry)
    assert blocks.shape == (4, 2)
    np.testing.assert_array_equal(blocks[:, 0], [norms[3, 2], norms[0, 2], np.nan, np.nan])
    np.testing.assert_array_equal(blocks[:, 1], [np.nan, np.nan, norms[1, 0], norms[2, 0]])


def test_large_pictures_are_averaged_and_empty_places_stay_empty() -> None:
    image = np.full((600, 10), np.nan)
    image[:300] = 2.0
    small_image = reduced(image)
    assert small_image.shape == (200, 10)
    assert (small_image[:100] == 2.0).all()
    assert np.isnan(small_image[100:]).all()
    assert reduced(image[:256]).shape == (256, 10)


def test_a_plan_of_another_network_gives_no_picture() -> None:
    dense, _ = small.models()
    assert kernel_view(small.plan(), dense) is not None
    halves = ((0, 1), (2, 3))
    other = Plan("m", {}, 0, (LayerPlan(small.MIDDLE, filters=halves, inputs=halves),))
    assert kernel_view(other, dense) is None
    outside = replace_inputs(small.plan(), ((0, 99), (1, 2)))
    assert kernel_view(outside, dense) is None


def replace_inputs(plan: Plan, inputs: tuple[tuple[int, ...], ...]) -> Plan:
    layers = tuple(msgspec.structs.replace(e, inputs=inputs) if e.inputs else e for e in plan.layers)
    return msgspec.structs.replace(plan, layers=layers)


def test_many_long_names_stay_on_the_picture(bundle: Path) -> None:
    pytest.importorskip("matplotlib")
    from edgeprune.report.figures.pictures import MOST_LAYERS, draw

    result = read_contents(bundle).profile.results[0]
    layers = tuple(
        msgspec.structs.replace(result.layers[1], name=f"features.block{n}.{'long' * 20}.conv", pruned_ms=1.0 + n)
        for n in range(90)
    )
    svg = draw(Picture("many", "x", msgspec.structs.replace(result, layers=layers)))
    assert svg.count("features.bl") == MOST_LAYERS
    assert f"the {MOST_LAYERS} slowest of 90" in svg
