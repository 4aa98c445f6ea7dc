"""Runs beside each other: changes, noise, what differs, and the gate against a stored baseline."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import built_results as built
import msgspec
import pytest
import small_bundle as small
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.writing import write_manifest
from edgeprune.cli import main
from edgeprune.errors import InputError
from edgeprune.io.files import pretty_json
from edgeprune.profiling.result import Result, SweepFailure
from edgeprune.report import write_comparison
from edgeprune.report.comparison.changes import FIGURES, ChangeRecord, change, changes, drift, facts, layer_changes
from edgeprune.report.comparison.compared import Compared, differences
from edgeprune.report.comparison.gate import Gate, nothing_shared, passed, regressions, unchecked
from edgeprune.report.comparison.page import build_comparison
from edgeprune.report.comparison.runs import Run, read_runs
from edgeprune.report.document import Picture, Table
from edgeprune.report.page.markdown import render
from edgeprune.report.words.results import Setting

CPU = "cpu, batch 1, 1 thread"


def cli(*arguments: object) -> int:
    return main([*map(str, arguments), "--quiet"])


positive = st.floats(0.01, 1e4)


@given(positive, positive, st.floats(0, 0.5))
def test_a_change_and_its_reverse_agree(first: float, second: float, spread: float) -> None:
    before, after = built.result(4.0, first, spread=spread), built.result(4.0, second, spread=spread)
    for figure in FIGURES.values():
        there, back = change(figure, before, after), change(figure, after, before)
        assert there is not None
        assert back is not None
        assert (1 + there.relative) * (1 + back.relative) == pytest.approx(1)
        assert there.exceeds_noise == back.exceeds_noise
        if there.relative and there.exceeds_noise:
            assert (there.loss > 0) != (back.loss > 0)


@pytest.mark.parametrize(("name", "better"), [("realistic", 2.0), ("efficiency", 2.0), ("p50", 2.0)])
def test_less_time_is_better_in_every_figure(name: str, better: float) -> None:
    one = change(FIGURES[name], built.result(4.0, 2.5), built.result(4.0, better))
    assert one is not None
    assert one.loss < 0
    assert one.exceeds_noise


def test_a_change_within_the_intervals_is_noise() -> None:
    before, after = built.result(4.0, 2.5, spread=0.3), built.result(4.0, 2.75, spread=0.3)
    assert not any(one.exceeds_noise for one in (change(figure, before, after) for figure in FIGURES.values()) if one)


def test_without_a_baseline_the_latency_alone_is_compared() -> None:
    old, new = built.run("old", built.result(None, 2.5)), built.run("new", built.result(None, 2.0))
    assert [one.figure.label for one in changes(old, new)] == ["pruned p50"]
    assert regressions(new, old, Gate(0.05)) == (f"{CPU}: pruned p50 2.00 ms to 2.50 ms (+25.0 %)",)


def test_a_regression_is_what_exceeds_both_the_limit_and_noise() -> None:
    old = built.run("old", built.result(4.0, 2.0), built.result(4.0, 2.0, batch=8), built.result(4.0, 2.0, threads=2))
    worse, noisy, little = (
        built.result(4.0, 2.2),
        built.result(4.0, 2.2, batch=8, spread=0.4),
        built.result(4.0, 2.04, threads=2, spread=0.001),
    )
    found = regressions(old, built.run("new", worse, noisy, little), Gate(0.05))
    assert found == (
        f"{CPU}: realistic speed-up 2.00x to 1.82x (-9.1 %)",
        f"{CPU}: pruned p50 2.00 ms to 2.20 ms (+10.0 %)",
    )
    assert regressions(old, built.run("new", worse), Gate(0.11)) == ()
    (lost,) = regressions(old, built.run("new", worse), Gate(0.05, ("efficiency",)))
    assert lost == f"{CPU}: efficiency 100 % to 91 % (-9.1 %)"


def test_the_machines_drift_stands_beside_a_lost_latency() -> None:
    old, new = built.run("old", built.result(4.0, 2.0)), built.run("new", built.result(4.8, 2.4))
    assert [one.relative for one in drift(old, new)] == [pytest.approx(0.2)]
    (fault,) = regressions(old, new, Gate(0.05))
    assert fault == f"{CPU}: pruned p50 2.00 ms to 2.40 ms (+20.0 %), the dense network +20.0 %"
    assert any("the machine drifted" in text for text in differences((old, new)))


def test_another_precision_target_or_batch_is_another_setting() -> None:
    old = built.run("old", built.result(), built.result(precision="int8"), built.result(batch=8))
    new = built.run("new", built.result(precision="fp16"), built.result(batch=8))
    assert {str(one.setting) for one in changes(old, new)} == {"cpu, batch 8, 1 thread"}
    assert {str(s) for s in unchecked(old, new)} == {
        CPU,
        "cpu, int8, batch 1, 1 thread",
        "cpu, fp16, batch 1, 1 thread",
    }


def test_a_target_that_the_baseline_measured_and_the_new_run_could_not_is_a_regression() -> None:
    crash = SweepFailure("openvino-native", 1, "the runtime aborted", "bug")
    native = built.result(target="openvino-native")
    old, fine = built.run("old", built.result(), native), built.run("new", built.result())
    new = built.failed(fine, crash, SweepFailure("coreml", 1, "is not installed"), SweepFailure("cpu", 2, "too many"))
    told = "openvino-native, threads 1: could not be measured: the runtime aborted"
    assert regressions(old, new, Gate(0.05)) == (told,)
    assert regressions(built.run("old", native), new, Gate(0.05)) == (told,), "nothing else is shared"
    assert regressions(old, fine, Gate(0.05)) == (), "it was not asked for"
    assert regressions(built.run("old", built.result()), new, Gate(0.05)) == (), "the baseline lacks it, too"
    too_large = built.failed(fine, SweepFailure("openvino-native", 1, "no memory", batch_sizes=(64,)))
    assert regressions(old, too_large, Gate(0.05)) == (), "the baseline lacks that batch size"
    both = built.failed(old, SweepFailure("cuda", 1, "no GPU"))
    page = render(build_comparison(Compared((both, new))))
    assert f"- new: {told}" in page
    assert "- old: cuda, threads 1: could not be measured: no GPU" in page
    assert "| new | – | – | – | – | – | – | – | could not be measured |" in page


def test_the_gate_and_the_terminal_name_what_crashed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = built.write_profile(tmp_path / "old.json", built.result(), built.result(target="openvino-native"))
    new = tmp_path / "new.json"
    crashed = built.failed(built.run("new", built.result()), SweepFailure("openvino-native", 1, "the runtime aborted"))
    new.write_bytes(pretty_json(crashed.profile))
    assert cli("report", new, "--baseline", old, "--fail-on-regression", "5%", "--json", tmp_path / "c.json") == 3
    told = capsys.readouterr()
    words = "openvino-native, threads 1: could not be measured: the runtime aborted"
    assert told.err == f"edgeprune: worse than old.json: {words}\n"
    assert f"new.json: {words}" in told.out.splitlines()
    assert json.loads((tmp_path / "c.json").read_bytes())["failures"] == [f"new.json: {words}"]
    assert cli("report", new, old, "-o", tmp_path / "page.json") == 0
    (first, second) = json.loads((tmp_path / "page.json").read_bytes())["runs"]
    assert (first["failures"][0]["target"], second["failures"]) == ("openvino-native", [])


@pytest.mark.parametrize("gate", [Gate(0.05), Gate(0.05, ("efficiency",))])
def test_a_gate_that_looks_at_nothing_does_not_pass(gate: Gate) -> None:
    old, new = built.run("old", built.result(batch=8)), built.run("new", built.result(batch=1))
    with pytest.raises(InputError, match="new: has no .* to hold against old.*expected one of cpu, batch 8, 1 thread"):
        regressions(old, new, gate)


def test_lost_accuracy_is_a_regression_where_it_is_asked_for() -> None:
    old, new = built.run("old", built.result(), top1=97.0), built.run("new", built.result(), top1=95.5)
    assert regressions(old, new, Gate(0.05)) == ()
    assert regressions(old, new, Gate(0.05, max_drop=1.5)) == ()
    assert passed(old, new, Gate(None, max_drop=1.5)) == "no regression: top-1 97.00 % to 95.50 %"
    (fault,) = regressions(old, new, Gate(None, max_drop=1.0))
    assert fault == "top-1 97.00 % to 95.50 % (-1.50 points, 1 accepted)"
    with pytest.raises(InputError, match="new: does not tell its accuracy"):
        regressions(old, built.run("new", built.result()), Gate(0.05, max_drop=1.0))


def test_lost_accuracy_is_in_the_unit_of_the_metric() -> None:
    """In which less may be better; and two metrics are not held against each other."""

    def measured(name: str, value: float, metric: str = "error") -> Run:
        run = built.run(name, built.result(), top1=value)
        assert run.manifest is not None
        assert run.manifest.accuracy is not None
        accuracy = msgspec.structs.replace(run.manifest.accuracy, metric=metric, higher_is_better=False)
        return dataclasses.replace(run, manifest=msgspec.structs.replace(run.manifest, accuracy=accuracy))

    old, new = measured("old", 0.5), measured("new", 0.75)
    assert regressions(new, old, Gate(None, max_drop=0.0)) == ()
    assert passed(new, old, Gate(None, max_drop=0.0)) == "no regression: error 0.75 to 0.5"
    assert regressions(old, new, Gate(None, max_drop=0.125)) == ("error 0.5 to 0.75 (+0.25, 0.125 accepted)",)
    with pytest.raises(InputError, match="new: is measured as other, and old as error"):
        regressions(old, measured("new", 0.5, "other"), Gate(None, max_drop=0.125))


def test_every_difference_between_machines_versions_and_settings_is_told() -> None:
    here, there = built.environment(), built.environment("another processor", ort="1.30.0")
    runs = (built.run("a", built.result(), where=here), built.run("b", built.result(), where=there))
    told = differences(runs)
    assert "processor: a processor (a); another processor (b)" in told
    assert "onnxruntime: 1.31.1 (a); 1.30.0 (b)" in told
    shorter = msgspec.structs.replace(
        runs[0].profile, settings=msgspec.structs.replace(runs[0].profile.settings, pin=(1,))
    )
    same = (runs[0], built.run("c", built.result()), Run("d", shorter))
    assert differences(same) == ("pinned to cores: none (a, c); 1 (d)",)
    assert differences(runs[:1] * 2) == ()


def test_dates_and_load_differ_without_a_word() -> None:
    runs = (built.run("a", built.result(), where=built.environment(date="2026-01-01")), built.run("b", built.result()))
    assert differences(runs) == ()
    assert {fact.name for fact in facts(runs) if fact.differs} == {"date (UTC)"}


def of_another_network(result: Result) -> Result:
    return msgspec.structs.replace(result, dense_macs=80_000_000 * result.batch_size)


def test_a_latency_of_another_network_is_neither_better_nor_worse() -> None:
    runs = (
        built.run("small", built.result(4.0, 2.0)),
        built.run("large", of_another_network(built.result(40.0, 30.0))),
    )
    told = {one.figure.label: one for one in changes(*runs)}
    assert told["pruned p50"].verdict == "another network"
    assert told["realistic speed-up"].verdict == "worse", "it compares each with its own dense network"
    assert not ChangeRecord.of(told["pruned p50"]).worse
    document = build_comparison(Compared(runs))
    warning = "he dense networks differ: 8,000,000 (small); 80,000,000 (large) MACs of one sample"
    assert document.summary.startswith(f"T{warning}")
    assert f"- t{warning}" in render(document)
    assert render(document).count("8,000,000 (small)") == 2, "not in the list of differences, too"
    assert "p50 +1400.0 %, another network" in render(document)
    assert [tile.tone for tile in document.tiles] == ["", "", "poor", ""]
    with pytest.raises(InputError, match="large: is of another dense network than small"):
        regressions(*runs, Gate(0.05))
    assert len(regressions(*runs, Gate(0.05, ("realistic",)))) == 1


def test_another_network_is_warned_of_before_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_one = built.write_profile(tmp_path / "a.json", built.result())
    large_one = built.write_profile(tmp_path / "b.json", of_another_network(built.result(40.0, 30.0)))
    assert cli("report", small_one, large_one, "-o", tmp_path / "page.json") == 0
    told = capsys.readouterr().out
    assert told.startswith("warning: the dense networks differ: 8,000,000 (a.json); 80,000,000 (b.json) MACs")
    assert "another network" in told
    assert json.loads((tmp_path / "page.json").read_bytes())["other_networks"] in told


def test_layers_are_compared_by_the_time_that_they_changed_by() -> None:
    before = built.result(
        layers=[built.layer("a", pruned_ms=1.0), built.layer("b", pruned_ms=5.0, noise=0.5), built.layer("gone")]
    )
    after = built.result(layers=[built.layer("a", pruned_ms=1.5), built.layer("b", pruned_ms=6.0), built.layer("new")])
    found = layer_changes(before, after)
    assert [(one.name, one.exceeds_noise) for one in found] == [("b", False), ("a", True)]


def test_the_page_lines_up_every_setting_and_says_what_differs_first() -> None:
    there = built.environment("another processor")
    layers = [built.layer(f"layer{n}", pruned_ms=1.0 + n) for n in range(30)]
    slower = [msgspec.structs.replace(layer, pruned_ms=layer.pruned_ms * 1.5) for layer in layers]
    runs = (
        built.run("one", built.result(layers=layers), built.result(batch=8), top1=97.0),
        built.run("two", built.result(4.0, 2.2), top1=96.0),
        built.run("three", built.result(4.0, 2.9, layers=slower), built.result(batch=8, settled=False), where=there),
    )
    document = build_comparison(Compared(runs, "0.1.0"))
    assert [section.title for section in document.sections] == [
        "What differs between the runs", f"On {CPU}", "On cpu, batch 8, 1 thread", "The networks", "Layers of three",
        "How they were measured", "Words",
    ]  # fmt: skip
    assert "The runs were not made alike" in document.summary
    tables = {
        block.caption: block for section in document.sections for block in section.blocks if isinstance(block, Table)
    }
    speeds = tables[f"Runs on {CPU}"]
    assert [row[0] for row in speeds.rows] == ["one", "two", "three"]
    assert speeds.rows[1][-1] == "speed-up +13.6 %, better; p50 -12.0 %, better"
    assert speeds.flags == {2}
    assert tables["Runs on cpu, batch 8, 1 thread"].rows[1][-1] == "not measured"
    assert "2.50 (unsettled)" in tables["Runs on cpu, batch 8, 1 thread"].rows[2]
    networks = tables["The networks of the runs"].rows
    assert networks[0][:4] == ("one", "–", "98.00 %", "97.00 %")
    assert networks[2][1:6] == ("no bundle: not known", "–", "–", "8.00 M", "4.00 M")
    changed = tables[f"Changes since one on {CPU}, the 15 largest of 30"]
    assert changed.rows[0][0] == "layer29"
    assert len(changed.rows) == 15
    pictures = [b for section in document.sections for b in section.blocks if isinstance(b, Picture)]
    assert [picture.name for picture in pictures] == ["trend-0", "trend-1"]
    assert all(picture.text for picture in pictures)
    markdown = render(document)
    assert "processor: a processor (one, two); another processor (three)" in markdown


def test_runs_without_anything_in_common_still_have_a_page() -> None:
    runs = (built.run("a", built.result(batch=1)), built.run("b", built.result(batch=8)))
    document = build_comparison(Compared(runs))
    assert document.summary == (
        "There is nothing to compare: the runs have no target, precision, batch size and threads in common. "
        "a has cpu, batch 1, 1 thread. b has cpu, batch 8, 1 thread."
    )
    assert document.tiles == ()


def test_runs_without_anything_in_common_are_told_in_a_sentence_and_not_by_an_empty_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [built.write_profile(tmp_path / f"{size}.json", built.result(batch=size)) for size in (1, 8)]
    assert cli("report", *runs, "-o", tmp_path / "page.md", "--json", tmp_path / "c.json") == 0
    told = capsys.readouterr().out
    assert "There is nothing to compare" in told
    assert "8.json has cpu, batch 8, 1 thread" in told
    assert "figure" not in told
    assert json.loads((tmp_path / "c.json").read_bytes())["nothing_shared"] in told
    assert nothing_shared(read_runs(runs)[:1] * 2) == ""


def test_of_three_runs_the_two_that_can_be_compared_are_named_where_the_first_and_the_last_cannot() -> None:
    one, two = built.result(batch=1), built.result(batch=8)
    runs = (built.run("a", one), built.run("b", one, two), built.run("c", two))
    told = build_comparison(Compared(runs)).summary
    assert told == nothing_shared(runs)
    assert told.startswith("The last run, c, and the first, a, have no target, precision, batch size and threads in")
    assert told.endswith(f"a and b share {CPU}. b and c share cpu, batch 8, 1 thread.")
    assert "b has cpu, batch 1, 1 thread; cpu, batch 8, 1 thread." in told
    assert nothing_shared((runs[0], runs[2], runs[1])) == "", "the last and the first can be compared"
    apart = (*runs[::2], built.run("d", built.result(batch=4)))
    assert nothing_shared(apart).startswith("There is nothing to compare: the runs have no target")


def test_runs_are_called_by_as_little_of_their_path_as_tells_them_apart(tmp_path: Path) -> None:
    paths = [
        built.write_profile(tmp_path / "x" / "out" / "profile.json", built.result()),
        built.write_profile(tmp_path / "y" / "out" / "profile.json", built.result()),
        built.write_profile(tmp_path / "old.json", built.result()),
    ]
    assert [run.name for run in read_runs(paths)] == ["x/out", "y/out", f"{tmp_path.name}/old.json"]
    assert [run.name for run in read_runs(paths[1:])] == ["out", "old.json"]
    with pytest.raises(InputError, match="is given twice"):
        read_runs([paths[0], paths[0].parent / ".." / "out" / "profile.json"])


def test_a_bundle_that_was_not_measured_is_no_run(tmp_path: Path) -> None:
    fresh = small.write_bundle(tmp_path / "fresh", profiled=False)
    with pytest.raises(InputError, match=r"was not measured.*edgeprune profile"):
        read_runs([fresh])
    (tmp_path / "junk.json").write_text("{}")
    with pytest.raises(InputError, match="is no profile"):
        read_runs([tmp_path / "junk.json"])
    with pytest.raises(InputError, match="absent: no such file or folder; expected a bundle, or a profile.json"):
        read_runs([tmp_path / "junk.json", tmp_path / "absent"][::-1])


def test_the_command_line_compares_bundles_and_profiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    bundle = small.write_bundle(tmp_path / "bundle", profiled=False, lowered=small.lowering())
    built.put_profile(bundle, built.profile(built.result(4.0, 2.5)))
    other = built.write_profile(tmp_path / "other.json", built.result(4.0, 2.0))
    page, data = tmp_path / "pages" / "page.html", tmp_path / "result.json"
    assert cli("report", bundle, other, "--format", "html,md,json,csv", "-o", page, "--json", data) == 0
    names = [f"page.{ending}" for ending in ("html", "md", "json", "csv")]
    assert sorted(path.name for path in page.parent.iterdir()) == sorted(names)
    told = capsys.readouterr().out.splitlines()
    assert told[-4:] == [str(page.parent / name) for name in names]
    assert any(all(word in line for word in ("pruned p50", "2.500", "2.000", "-20.0 %", "better")) for line in told)
    result = json.loads(data.read_text())
    assert result["regressions"] == []
    assert [one["figure"] for one in result["changes"]] == ["realistic speed-up", "pruned p50", "efficiency"]
    read = json.loads((page.parent / "page.json").read_text())
    assert read["baseline"] == "bundle"
    assert [run["name"] for run in read["runs"]] == ["bundle", "other.json"]
    assert {one["figure"]: one["relative"] for one in read["changes"]["other.json"]}["pruned p50"] == pytest.approx(
        -0.2
    )
    rows = list(csv.DictReader(io.StringIO((page.parent / "page.csv").read_text())))
    assert [(row["run"], row["target"], float(row["pruned_p50_ms"])) for row in rows] == [
        ("bundle", "cpu", 2.5), ("other.json", "cpu", 2.0),
    ]  # fmt: skip
    html = page.read_text()
    assert "1 dense" in html, "the forms"
    assert "script" not in html
    assert open_bundle(bundle).faults() == [], "a comparison leaves the bundles alone"


def test_the_gate_fails_with_exit_3_and_names_each_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old = built.write_profile(tmp_path / "old.json", built.result(4.0, 2.0), built.result(4.0, 2.0, batch=8))
    new = built.write_profile(tmp_path / "new.json", built.result(4.0, 2.2), built.result(4.0, 2.0, batch=8))
    there = built.write_profile(tmp_path / "there.json", built.result(4.0, 2.0), where=built.environment("another"))
    before = sorted(tmp_path.iterdir())
    assert cli("report", new, "--baseline", old, "--fail-on-regression", "5%") == 3
    told = capsys.readouterr().err
    assert told.startswith(f"edgeprune: worse than old.json: {CPU}: realistic speed-up 2.00x to 1.82x")
    assert told.count("\n") == 1
    assert f"{CPU}: pruned p50" in told
    assert "batch 8" not in told
    assert cli("report", new, "--baseline", old, "--fail-on-regression", "11 %") == 0
    assert cli("report", new, "--baseline", old, "--fail-on-regression", "11") == 0
    assert cli("report", new, "--baseline", old, "--fail-on-regression", "5") == 3
    assert cli("report", new, "--baseline", old, "--fail-on-regression", "5%", "--regression-in", "efficiency") == 3
    capsys.readouterr()
    assert cli("report", old, "--baseline", new, "--fail-on-regression", "5%") == 0
    assert "no regression: 2 settings compared" in capsys.readouterr().out.splitlines()
    assert cli("report", there, "--baseline", old, "--fail-on-regression", "5%") == 0
    told = capsys.readouterr().out
    assert "not alike: processor: a processor (old.json); another (there.json)" in told
    assert "not compared, measured in one run only: cpu, batch 8, 1 thread" in told
    assert "no regression: 1 setting compared, 1 measured in one run only" in told.splitlines()
    assert sorted(tmp_path.iterdir()) == before, "a gate alone writes nothing"
    assert cli("report", new, "--baseline", old) == 0
    assert (tmp_path / "comparison.html").is_file()


def test_the_name_of_a_run_is_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (built.write_profile(tmp_path / name / "p[/b].json", built.result()) for name in ("old[red]", "new"))
    assert cli("report", old, new, "-o", tmp_path / "page.md") == 0
    assert "the last run against old[red]/p[/b].json" in capsys.readouterr().out


def test_a_failed_gate_still_writes_the_page_that_was_asked_for(tmp_path: Path) -> None:
    old = built.write_profile(tmp_path / "old.json", built.result(4.0, 2.0))
    new = built.write_profile(tmp_path / "new.json", built.result(4.0, 3.0))
    page = tmp_path / "page.md"
    assert cli("report", old, new, "--fail-on-regression", "5%", "-o", page) == 3
    assert page.read_text().startswith("# 2 runs compared")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--fail-on-regression", "0.05"], "'0.05' is no percentage; expected such as 5%"),
        (["--fail-on-regression=-5%"], "is no percentage"),
        (["--fail-on-regression", "nan%"], "is no percentage"),
        (["--fail-on-regression", "5%", "--regression-in", "p99"], "unknown figure of --regression-in 'p99'"),
        (["--regression-in", "p50"], "--regression-in without a limit"),
        (["--format", "pdf", "-o", "x.pdf"], "unknown report format 'pdf'"),
        (["-o", "."], ".: is a folder"),
        (["--max-drop", "1"], "does not tell its accuracy"),
    ],
)
def test_wrong_wishes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    old, new = (built.write_profile(tmp_path / f"{name}.json", built.result()) for name in ("old", "new"))
    assert cli("report", new, "--baseline", old, *flags) == 1
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"old.json", "new.json"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-o", "x.html"], "-o/--out is"),
        (["--fail-on-regression", "5%"], "--fail-on-regression is"),
        (["--max-drop", "1"], "--max-drop is"),
        (["--regression-in", "p50", "--max-drop", "1"], "--regression-in and --max-drop are"),
    ],
)
def test_a_single_run_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_manifest(bundle, open_bundle(small.write_bundle(tmp_path / "b", profiled=False)).manifest)
    assert cli("report", bundle, *flags) == 1
    assert capsys.readouterr().err.startswith(f"edgeprune: {words} for comparing runs, and there is one")


def test_hostile_names_are_shown_and_never_run(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    evil = "<script>alert(1)</script>$x^2$|`\u202e=cmd"
    results = [
        msgspec.structs.replace(
            built.result(target=evil, precision=evil, layers=[built.layer(evil, pruned_ms=ms)]), provider=evil
        )
        for ms in (1.0, 2.0)
    ]
    runs = tuple(
        built.run(f"{name}{evil}", one, where=built.environment(f"{name}{evil}", ort=evil))
        for name, one in zip("ab", results, strict=True)
    )
    paths = {ending: tmp_path / f"x.{ending}" for ending in ("html", "md", "csv")}
    write_comparison(Compared(runs), paths)
    html, markdown, table = (path.read_text() for path in paths.values())
    assert "<script" not in html
    assert "<script" not in markdown
    assert "&lt;script&gt;" in html
    assert "\u202e" not in html + markdown + table


def test_a_setting_is_told_in_words() -> None:
    assert str(Setting("cuda", "fp16", 8, 2)) == "cuda, fp16, batch 8, 2 threads"
