"""Causes of layers that were built to be slow for one reason only, from times that were measured of them.

`python examples/benchmarks/causes.py --record tests/profiling/explaining/cause_times.json` measures the times anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import example_modules
import msgspec
import pytest
from places import BENCHMARKS

from edgeprune.devices.roofline import Roofline
from edgeprune.profiling.explaining.causes import Kind
from edgeprune.profiling.explaining.facts import MachineFacts
from edgeprune.profiling.setup import Batch

BUILT: tuple[Kind, ...] = (
    "fallback", "gather", "reorder", "zeros", "off-block", "part-block", "few-filters", "dispatch", "threads",
    "memory-bound", "compute-bound", "noise",
)  # fmt: skip


@pytest.fixture(scope="module")
def causes() -> Any:
    return example_modules.load(BENCHMARKS, "causes")


@pytest.fixture(scope="module")
def recorded(causes: Any) -> Any:
    text = (Path(__file__).parent / "cause_times.json").read_bytes()
    return msgspec.json.decode(text, type=dict[str, causes.Times])


def machine(threads: int) -> MachineFacts:
    """The one that the times were taken on: an AMD EPYC with AVX-512, peaks as in x86-avx512."""
    roofline = Roofline("x86-avx512", 96e9 * threads, 51.2e9)
    return MachineFacts(16, threads, filter_rates={16: 0.75, 32: 0.9, 64: 1.0}, roofline=roofline)


def test_nineteen_of_twenty_causes_are_named_right(causes: Any, recorded: Any) -> None:
    verdicts = [causes.replay(case, recorded[case.name], machine(case.threads)) for case in causes.cases()]
    wrong = [verdict for verdict in verdicts if not verdict.is_right]
    assert len(wrong) <= (1 - causes.WANTED) * len(verdicts), causes.table(wrong)


def test_every_kind_of_cause_is_built_at_least_once(causes: Any, recorded: Any) -> None:
    assert {case.kind for case in causes.cases()} == set(BUILT)
    assert set(recorded) == {case.name for case in causes.cases()}


def test_a_case_differs_from_its_baseline_in_the_examined_layer_only(causes: Any) -> None:
    for case in causes.cases():
        pair = case.build()
        batch = Batch.of(pair, "cpu", 1, MachineFacts(16))
        if batch.dense is None:
            continue
        changed = [
            after.name
            for before, after in zip(batch.dense.layers, batch.pruned.layers, strict=True)
            if (before.groups, before.macs) != (after.groups, batch.planned(after))
        ]
        assert changed in ([causes.LAYER], [causes.LAYER, "last"]), case.name


def test_a_case_can_be_measured_here(causes: Any) -> None:
    case = next(case for case in causes.cases() if case.kind == "fallback")
    verdict, times = causes.measure(case)
    assert verdict.is_right
    assert causes.replay(case, times, machine(case.threads)).cause == verdict.cause
    assert {name: len(own.turns_ms) for name, own in times.items()} == {"dense": 5, "pruned": 5}


def test_the_table_marks_what_was_named_wrong(causes: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = causes.Verdict("a case", "gather", "noise", "in words", 1.0, None, 0.5)
    assert "| WRONG | a case | gather | noise | 1.00 |  | 0.50 | in words |" in causes.table([wrong])
    assert causes.main(["--only", "linear, another provider", "--json", str(tmp_path / "verdicts.json")]) == 0
    assert "1 of 1 right" in capsys.readouterr().out
    assert msgspec.json.decode((tmp_path / "verdicts.json").read_bytes())[0]["named"] == "fallback"
