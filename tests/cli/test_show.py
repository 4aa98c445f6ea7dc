"""What the CLI prints of a profile: every sentence once, the settings it holds for, and nothing but tables if quiet."""

from __future__ import annotations

import built_results as built
import pytest
from msgspec.structs import replace

from edgeprune.cli.profile_tables import show
from edgeprune.io import progress
from edgeprune.profiling.result import ProfileResult, Result, SweepFailure
from edgeprune.report.words.results import placed, setting, without_figures

MEASURED = built.result()


def sweep(*texts: tuple[str, str]) -> ProfileResult:
    """A result with a warning and an advice for each number of threads."""
    taken = [
        replace(MEASURED, threads=number + 1, warnings=(warning,), advice=(advice,))
        for number, (warning, advice) in enumerate(texts)
    ]
    failed = SweepFailure("openvino-native", 1, "no room")
    return replace(built.profile(*taken), failures=(failed,))


def test_a_sentence_is_shown_once_with_the_settings_that_it_holds_for(capsys: pytest.CaptureFixture[str]) -> None:
    spreads = [f"spreads over {share}%" for share in (12, 34, 56)]
    with progress.shown():
        show(sweep(*((text, f"prune more: layer{text[-3:-1]} ({text[-3:]})") for text in spreads)))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("note", "what to try"))]
    elsewhere = "likewise, with other figures: cpu, batch 1, 2 threads; cpu, batch 1, 3 threads"
    assert told == [
        "note: spreads over 12–56%",
        f"what to try: prune more: layer12 (12%) (cpu, batch 1, 1 thread; {elsewhere})",
    ]


def test_quiet_shows_tables_and_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    show(sweep(("the machine was busy", "prune more"), ("it was not", "prune less")))
    told = capsys.readouterr().out
    assert "not measured (openvino-native, threads 1): no room" in told
    assert "realistic" in told
    assert not [text for text in ("busy", "it was not", "prune more", "prune less") if text in told]


def test_layers_say_whose_they_are_and_where_the_others_are(capsys: pytest.CaptureFixture[str]) -> None:
    taken = replace(MEASURED, layers=(built.layer("conv1"),))
    show(built.profile(taken, replace(taken, threads=2), replace(taken, threads=3, layers=())))
    assert "layers on cpu, batch 1, 1 thread (of 1 more setting: in profile.json," in capsys.readouterr().out
    show(built.profile(taken))
    assert "layers on cpu, batch 1, 1 thread " in f"{capsys.readouterr().out} ".replace("\n", " ")


def test_only_a_few_settings_are_named() -> None:
    results: list[Result] = [replace(MEASURED, threads=number) for number in range(1, 8)]
    (told,) = placed([("busy", result) for result in results[:6]], len(results))
    assert told == f"busy ({'; '.join(map(setting, results[:4]))} and 2 more)"
    assert placed([("busy", result) for result in results], len(results)) == ("busy",), "all of them"
    different = [(f"layer{n}: {n}.5 ms", result) for n, result in enumerate(results)]
    assert len(placed(different, len(results))) == 7
    assert len(placed(different, len(results), alike=without_figures)) == 1
