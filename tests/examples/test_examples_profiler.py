"""The benchmark of the profiler: its clocks, its figures, and what counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import example_modules
import pytest
import small_bundle as small
from places import BENCHMARKS

from edgeprune.profiling.environment import current_environment
from edgeprune.profiling.measurement import Measurement
from edgeprune.profiling.setup import ProfileOptions


@pytest.fixture
def profiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = example_modules.load(BENCHMARKS, "profiler")
    monkeypatch.setattr(module, "LOOP_SECONDS", 0.0)
    monkeypatch.setattr(module, "LOOP_RUNS", 12)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    return module


def rounds(module: Any, *figures: tuple[float, float, float]) -> list[Any]:
    """Speed-up, dense and pruned milliseconds by the profiler; by the loops 10 and 5."""
    return [
        module.Round(
            speedup,
            (1.9, 2.1),
            True,
            30,
            module.Taken(dense, 10.0, 10.0, fast_profiler=9.0, fast_loop=9.0),
            module.Taken(pruned, 5.0, 4.0, fast_profiler=4.4, fast_loop=4.0),
        )
        for speedup, dense, pruned in figures
    ]


def test_repeatability_is_the_spread_and_agreement_the_distance_from_the_loops(profiler: Any) -> None:
    taken = rounds(profiler, (2.0, 10.0, 5.0), (2.1, 11.0, 5.0), (1.9, 10.5, 5.5))
    repeated, agreed = profiler._repeatability(taken), profiler._agreement(taken)
    assert repeated["speed-up"] == pytest.approx(0.1)
    assert repeated["dense latency"] == pytest.approx(1 / 10.5)
    assert agreed["speed-up"] == pytest.approx(0.0)
    assert agreed["dense latency"] == pytest.approx(0.05)
    assert agreed["dense latency, fastest tenth"] == 0
    assert agreed["pruned latency, fastest tenth"] == pytest.approx(0.1)
    assert agreed["speed-up, by the runtime's trace"] == pytest.approx(0.2)


def test_what_counts_is_marked_and_decides(profiler: Any) -> None:
    figures = profiler.Figures(
        current_environment(1),
        (),
        {"speed-up": 0.04, "dense latency": 0.5},
        {"speed-up": 0.01, "dense latency": 0.06, "pruned latency": 0.0, "speed-up, by the runtime's trace": 0.3},
        {"a model": 0.001},
    )
    assert figures.passed() == {"repeatability": True, "agreement": False, "cost": True}
    lines = profiler.table(figures).splitlines()
    assert "| repeatability | speed-up | 4.0% | 5% | met |" in lines
    assert "| repeatability | dense latency | 50.0% |  |  |" in lines
    assert "| agreement | dense latency | 6.0% | 5% | MISSED |" in lines


def test_the_loop_in_a_fresh_process_knows_nothing_of_edgeprune(profiler: Any, tmp_path: Path) -> None:
    assert "edgeprune" not in profiler.LOOP
    clocks = profiler.outside(small.write_models(tmp_path, batch=1)[1], ProfileOptions(threads=1))
    assert set(clocks) == {"loop", "fast_loop", "runtime"}
    assert clocks["fast_loop"] <= clocks["loop"]
    assert all(milliseconds > 0 for milliseconds in clocks.values())


def test_the_cost_is_what_a_timed_run_takes_more(profiler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "COST_BLOCKS", 3)
    monkeypatch.setattr(profiler.time, "perf_counter", iter(range(1000)).__next__)
    slow = Measurement("model", (1.25,) * 3)
    monkeypatch.setattr(profiler, "interleave", lambda runs, **options: {"model": slow})
    assert profiler._cost(small.models(batch=1)[1], ProfileOptions()) == pytest.approx(0.25)


def test_a_bundle_is_profiled_in_a_copy(profiler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = small.write_bundle(tmp_path / "bundle", profiled=False)
    before = sorted(path.name for path in bundle.iterdir())
    monkeypatch.setattr(profiler, "outside", lambda path, options: {"loop": 1.0, "fast_loop": 1.0, "runtime": 1.0})
    monkeypatch.setattr(profiler, "_cost", lambda model, options: 0.5)
    assert profiler.main([str(bundle), "--repeats", "1", "--time-limit", "0.2"]) == 3
    assert sorted(path.name for path in bundle.iterdir()) == before
