"""What the pictures of measurements show: numbers first, then that they are drawn, described, and absent without data."""

from __future__ import annotations

import re

import built_results as built
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.precision.formats import PrecisionRecord
from edgeprune.profiling.estimating.estimates import Estimate, LayerEstimate
from edgeprune.profiling.result import Drift, SweepFailure
from edgeprune.report.document import Notes, Picture, Subject, Table
from edgeprune.report.page.layer_tables import layer_table
from edgeprune.report.page.measured import (
    MOST_LAYER_TABLES,
    advice_section,
    doubtful,
    estimates_section,
    layers_section,
    speed_blocks,
)
from edgeprune.report.page.tables import latency_table, precision_table, resource_table, speed_table
from edgeprune.report.views.measurements import (
    MOST_STEPS,
    Distribution,
    Roofline,
    Trend,
    Waterfall,
    sweep,
    typical_share,
)

CPU = "cpu, batch 1, 1 thread"
milliseconds = st.floats(0.001, 100)


@given(st.lists(st.tuples(milliseconds, milliseconds), min_size=1, max_size=60), milliseconds, milliseconds)
def test_a_waterfall_ends_at_the_pruned_time(times: list[tuple[float, float]], other: float, left: float) -> None:
    layers = [built.layer(f"layer{n}", before, after) for n, (before, after) in enumerate(times)]
    view = Waterfall.of(
        msgspec.structs.replace(built.result(layers=layers), dense_other_ms=other, pruned_other_ms=left)
    )
    assert view is not None
    assert view.dense_ms == pytest.approx(sum(before for before, _ in times) + other)
    assert view.dense_ms - sum(step.saved_ms for step in view.steps) == pytest.approx(view.pruned_ms)
    assert len(view.steps) <= MOST_STEPS + 2
    assert sum(step.is_layer for step in view.steps) == min(len(times), MOST_STEPS)


def test_a_waterfall_keeps_the_order_of_the_network_and_lumps_what_changes_least() -> None:
    layers = [built.layer(f"layer{n}", 2.0, 2.0 - n / 100) for n in range(MOST_STEPS + 6)]
    view = Waterfall.of(built.result(layers=layers))
    assert view is not None
    assert [step.name for step in view.steps] == [*(f"layer{n}" for n in range(6, MOST_STEPS + 6)), "6 other layers"]


def test_a_roofline_has_rates_and_the_lowest_roof_over_all_bounds() -> None:
    # 4 M MACs in 1 ms are 4 GMAC/s; bounds of 0.5 and 0.25 ms allow 8 and 16 GMAC/s
    layers = [built.layer("slow", intensity=4.0, bound_ms=0.5), built.layer("fast", intensity=64.0, bound_ms=0.25)]
    view = Roofline.of(built.result(layers=layers))
    assert view is not None
    assert [point.achieved for point in view.points] == [4.0, 4.0]
    assert [point.bound for point in view.points] == [8.0, 16.0]
    assert view.roof == (16.0, 2.0)
    assert typical_share(view) == pytest.approx(0.375)


def test_a_sweep_joins_what_differs_in_one_thing_alone() -> None:
    results = [
        built.result(batch=8), built.result(batch=1), built.result(batch=1, threads=2), built.result(target="cuda", batch=4),
        built.result(batch=8, precision="int8"),
    ]  # fmt: skip
    sizes, threads = sweep(results, "batch size"), sweep(results, "threads")
    assert sizes is not None
    assert threads is not None
    assert [(line.label, line.x) for line in sizes.lines] == [("cpu, 1 thread", (1, 8))]
    assert [(line.label, line.x) for line in threads.lines] == [("cpu, batch 1", (1, 2))]


def test_there_is_no_view_without_data() -> None:
    plain, untimed = built.result(), built.result(layers=[built.layer("a", None, 1.0), built.layer("b")])
    assert Waterfall.of(plain) is None
    assert Waterfall.of(untimed) is None, "a layer without a dense time cannot be a step"
    assert Roofline.of(untimed) is None, "no intensity"
    assert Roofline.of(built.result(layers=[built.layer("a", intensity=1.0)])) is None, "a single point"
    assert Distribution.of([plain]) is None, "no raw times"
    assert sweep([plain, built.result(target="cuda", batch=8)], "batch size") is None
    assert Trend.of([("a", plain), ("b", None)]) is None


def test_only_what_is_known_becomes_a_picture_and_each_has_words() -> None:
    bare = list(speed_blocks(built.profile(built.result(None, 2.5))))
    assert [block.name for block in bare if isinstance(block, Picture)] == []
    layers = [built.layer("a", intensity=1.0), built.layer("b", 2.0, 2.5, intensity=30.0, bound_ms=0.5)]
    full = built.profile(built.result(samples=30, layers=layers), built.result(batch=8, samples=30, layers=layers))
    blocks = [*speed_blocks(full), *layers_section(full, thins=False).blocks]
    pictures = [block for block in blocks if isinstance(block, Picture)]
    assert [picture.name for picture in pictures] == [
        "speed-ups", "sweep-batch-size", "runs", "waterfall", "layers", "roofline",
    ]  # fmt: skip
    words = {picture.name: picture.text for picture in pictures}
    assert all(words.values())
    assert words["waterfall"].endswith("Most is saved by a (1.00 ms). Slower than before: b (0.500 ms).")
    assert "b, 20 %" in words["roofline"]


def test_what_makes_figures_doubtful_is_told_once_with_its_settings() -> None:
    mixed = {"CUDAExecutionProvider": 90, "CPUExecutionProvider": 3}
    results = [
        built.result(),
        built.result(target="cuda", providers=mixed),
        built.result(target="cuda", batch=8, providers=mixed, settled=False),
    ]
    told = doubtful(results)
    assert told == (
        "what ran is a mixture: 90 nodes on CUDAExecutionProvider, 3 nodes on CPUExecutionProvider "
        "(cuda, batch 1, 1 thread; cuda, batch 8, 1 thread)",
    )
    measured = built.profile(*results)
    assert [row[2] for row in speed_table(measured).rows] == ["1.60x", "1.60x", "1.60x (unsettled)"]
    assert [row[2] for row in latency_table(measured).rows[-2:]] == ["100 (unsettled)"] * 2


def test_a_long_sentence_is_not_cut_and_one_that_differs_by_its_percentage_stands_once() -> None:
    long = f"merge groups: {'layer, ' * 60}(up to %s of the network's time)"
    results = [
        built.result(advice=(long % "9%", "take 5 % of 10 %")),
        built.result(batch=8, advice=(long % "17%", "take 6 % of 10 %")),
        built.result(batch=4, advice=(long % "12%",)),
    ]
    (notes,) = advice_section(built.profile(*results)).blocks
    assert notes == Notes(
        (long % "9–17%", f"take 5 % of 10 % ({CPU})", "take 6 % of 10 % (cpu, batch 8, 1 thread)"),
    )
    (notes,) = advice_section(built.profile(*results[:2], built.result(threads=2))).blocks
    assert isinstance(notes, Notes)
    assert notes.items[0] == f"{long % '9–17%'} ({CPU}; cpu, batch 8, 1 thread)"


def test_what_could_not_be_measured_stands_among_what_makes_figures_doubtful() -> None:
    failures = (SweepFailure("cuda", 2, "not enough memory", batch_sizes=(8,)),)
    profile = msgspec.structs.replace(built.profile(built.result()), failures=failures)
    notes = [block for block in speed_blocks(profile) if isinstance(block, Notes)]
    assert notes == [Notes(("Not measured: cuda, threads 2, batch 8: not enough memory",), warning=True)]


def test_the_layers_of_a_mixture_tell_what_ran_them() -> None:
    layers = [msgspec.structs.replace(built.layer("a"), provider="CUDAExecutionProvider"), built.layer("b")]
    mixed = layer_table(
        built.result(layers=layers, providers={"CUDAExecutionProvider": 9, "CPUExecutionProvider": 1}), folded=False
    )
    names = [column.name for column in mixed.columns]
    assert [row[names.index("ran on")] for row in mixed.rows] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert "ran on" not in [column.name for column in layer_table(built.result(layers=layers), folded=False).columns]
    bounded = layer_table(built.result(layers=[built.layer("a", bound_ms=0.4)]), folded=False)
    assert bounded.rows[0][[column.name for column in bounded.columns].index("of the roof")] == "40 %"


def test_advice_is_told_once_for_all_settings() -> None:
    everywhere, here = ("use --align auto",), ("use --align auto", "run batches of 8")
    found = advice_section(built.profile(built.result(advice=everywhere), built.result(batch=8, advice=here)))
    assert found.blocks == (Notes(("use --align auto", "run batches of 8 (cpu, batch 8, 1 thread)")),)
    assert advice_section(built.profile(built.result())).blocks == ()
    assert advice_section(None).blocks == ()


def test_estimates_are_never_taken_for_measurements() -> None:
    layers = (LayerEstimate("conv1", 2.0, 1.0, "memory"),)
    one = Estimate("raspberry-pi-5", "estimate from derived figures", 1, 1, 30.0, 20.0, 1.5, layers)
    section = estimates_section(msgspec.structs.replace(built.profile(built.result()), estimates=(one,)))
    warning, whole, by_layer = section.blocks
    assert isinstance(warning, Notes)
    assert warning.warning
    assert isinstance(whole, Table)
    assert whole.rows == (("raspberry-pi-5", "1", "1", "30.0", "20.0", "1.50x", "estimate from derived figures"),)
    assert isinstance(by_layer, Table)
    assert by_layer.rows == (("conv1", "2.00", "1.00", "memory"),)
    assert all("not measured" in table.caption for table in (whole, by_layer))
    assert all(
        "estimated" in column.name for table in (whole, by_layer) for column in table.columns if " ms" in column.name
    )
    assert estimates_section(built.profile(built.result())).blocks == ()


def test_memory_and_energy_have_a_table_where_they_are_known() -> None:
    assert resource_table(built.profile(built.result())).rows == ()
    known = msgspec.structs.replace(built.result(target="cuda"), peak_memory_mb=412.5, copy_in_ms=0.05)
    table = resource_table(built.profile(built.result(), known))
    assert [column.name for column in table.columns] == ["where", "peak memory", "copying in ms"]
    assert table.rows[1] == ("cuda, batch 1, 1 thread", "412 MB", "0.050")
    warm = msgspec.structs.replace(known, energy_mj=31.2, drift=Drift((2400.0, 1800.0), None, 3))
    names = [column.name for column in resource_table(built.profile(warm)).columns]
    (row,) = resource_table(built.profile(warm)).rows
    told = dict(zip(names, row, strict=True))
    assert (told["energy a run, pruned"], told["clock before, after"], told["slowed down by heat"]) == (
        "31.2 mJ", "2400, 1800 MHz", "3 times",
    )  # fmt: skip
    assert "temperature before, after" not in told


def test_other_precisions_are_held_against_fp32() -> None:
    good = PrecisionRecord("cpu", "pruned", "int8", 0.04, 0.15, True, 98.5, 200, "digits", 96.5, 97.0)
    bad = msgspec.structs.replace(good, network="dense", max_rel=0.3, passed=False, top1=None, top1_fp32=None)
    table = precision_table(msgspec.structs.replace(built.profile(built.result()), precisions=(good, bad)))
    assert table.rows[0] == (
        "pruned", "cpu", "int8", "4.0e-02", "0.15", "yes", "98.50 %", "96.50 %", "97.00 %", "200 inputs, digits",
    )  # fmt: skip
    assert table.rows[1][5] == "NO"
    assert table.flags == {1}
    assert precision_table(built.profile(built.result())).rows == ()


def test_many_settings_list_the_layers_of_the_first_alone() -> None:
    results = [built.result(batch=n, layers=[built.layer("a"), built.layer("b")]) for n in range(1, 10)]
    blocks = layers_section(built.profile(*results), thins=False).blocks
    assert sum(isinstance(block, Table) for block in blocks) == MOST_LAYER_TABLES
    assert any(isinstance(block, str) and "layers of 3 more settings: cpu, batch 7" in block for block in blocks)


def subjects() -> dict[str, Subject]:
    layers = [built.layer(f"layer{n}", intensity=2.0**n, bound_ms=0.1 * n + 0.1) for n in range(8)]
    lost = built.layer("lost", 1.0, 3.0, intensity=0.5)
    several = [built.result(batch=n, threads=t, samples=40, target=f"t{t}") for n in (1, 2, 8) for t in range(1, 9)]
    runs = [(f"run-with-a-rather-long-name-{n}", built.result(settled=n % 2 == 0)) for n in range(40)]
    found = {
        "waterfall": Waterfall.of(built.result(layers=[*layers, lost])),
        "roofline": Roofline.of(built.result(layers=[*layers, lost])),
        "bare-roofline": Roofline.of(built.result(layers=[built.layer(name, intensity=1.0) for name in "ab"])),
        "runs": Distribution.of(several),
        "same-runs": Distribution.of([built.result(1.0, 1.0, samples=9, spread=0.0)]),
        "sweep": sweep(several, "batch size"),
        "trend": Trend.of(runs),
        "short-trend": Trend.of([("a", built.result(None, 2.0)), ("b", None), ("c", built.result(None, 1.0))]),
    }
    return {name: view for name, view in found.items() if view is not None}


@pytest.mark.parametrize("name", list(subjects()))
def test_every_view_is_drawn_readably_and_the_same_each_time(name: str) -> None:
    pytest.importorskip("matplotlib")
    from edgeprune.report.figures.pictures import draw

    picture = Picture(name, "caption", subjects()[name], "what it shows")
    svg = draw(picture)
    assert svg == draw(picture)
    assert f'aria-labelledby="caption-{name}" aria-describedby="text-{name}"' in svg
    assert len(svg) < 120_000
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert texts
    assert not any("mathdefault" in text or "$" in text for text in texts), "formulas are not typeset"
    assert any(unit in " ".join(texts) for unit in ("millisecond", " ms", "GMAC/s", "speed-up"))


def test_a_picture_says_what_it_left_out() -> None:
    pytest.importorskip("matplotlib")
    from edgeprune.report.figures.pictures import draw

    many = built.profile(*(built.result(batch=n, samples=9) for n in range(1, 20)))
    assert "the first 16 of 19 settings" in draw(Picture("speed-ups", "x", many))
    runs = next(b for b in speed_blocks(many) if isinstance(b, Picture) and b.name == "runs")
    assert runs.text.endswith("13 more settings left out.")


def test_late_runs_do_not_press_the_others_together() -> None:
    pytest.importorskip("matplotlib")
    from edgeprune.report.figures.pictures import draw

    usual = tuple(1.0 + n / 1000 for n in range(80))
    one = built.result()
    late = msgspec.structs.replace(one.pruned, samples_ms=(*usual, *([20.0] * 20)))
    view = Distribution.of([msgspec.structs.replace(one, dense=None, pruned=late)])
    assert view is not None
    svg = draw(Picture("runs", "x", view))
    assert "(20 runs farther right)" in svg
    assert ">10<" not in svg, "the axis ends at three times the median"
