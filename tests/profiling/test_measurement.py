"""Times: percentiles, noise, intervals, and the order in which two things are measured."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.profiling.measurement import (
    MIN_ROUNDS,
    SETTLED_ROUNDS,
    Measurement,
    interleave,
    interval_width,
    median_interval,
    paired_ratios,
    settles_within,
    warm_up,
)

SECONDS = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60).map(tuple)


def test_percentiles_are_in_milliseconds() -> None:
    taken = Measurement("dense", tuple(n / 1000 for n in range(1, 102)))
    assert (taken.p50_ms, taken.p90_ms, taken.p95_ms, taken.p99_ms) == pytest.approx((51, 91, 96, 100))
    assert taken.mean_ms == pytest.approx(51)
    assert taken.n == 101
    assert taken.noise == pytest.approx(50 / 51)
    assert taken.is_noisy


def test_a_steady_measurement_is_not_noisy_even_with_an_outlier() -> None:
    taken = Measurement("dense", (0.010,) * 30 + (5.0,))
    assert taken.noise == 0
    assert not taken.is_noisy


def test_a_measurement_without_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="dense: .* at least one run"):
        Measurement("dense", ())


@given(SECONDS)
def test_percentiles_never_fall_and_lie_within_the_runs(seconds: tuple[float, ...]) -> None:
    taken = Measurement("m", seconds)
    steps = [taken.percentile_ms(p) for p in (0, 50, 90, 95, 99, 100)]
    assert steps == sorted(steps)
    assert steps[0] == pytest.approx(min(seconds) * 1e3)
    assert steps[-1] == pytest.approx(max(seconds) * 1e3)


@given(SECONDS)
def test_the_interval_holds_the_median(seconds: tuple[float, ...]) -> None:
    low, high = median_interval(seconds)
    assert low <= np.median(seconds) <= high
    assert {low, high} <= set(seconds)


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    draws = rng.exponential(size=(2000, 40))  # skewed, as times are; the true median is ln 2
    covered = [low <= np.log(2) <= high for low, high in map(median_interval, draws.tolist())]
    assert 0.93 < np.mean(covered) < 0.99


def test_the_order_is_reversed_every_round_and_every_run_has_its_time() -> None:
    calls: list[str] = []
    measured = interleave({n: lambda n=n: calls.append(n) for n in "ab"}, warmup=2, iterations=4)
    assert "".join(calls) == "abab" + "abbaabba"
    assert [taken.n for taken in measured.values()] == [4, 4]
    assert list(measured) == ["a", "b"]


def test_garbage_is_not_collected_while_measuring_and_collection_comes_back() -> None:
    states: list[bool] = []
    interleave({"a": lambda: states.append(gc.isenabled())}, warmup=1, iterations=2)
    assert states == [False, False, False]
    assert gc.isenabled()

    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        interleave({"a": fail}, warmup=0, iterations=1)
    assert gc.isenabled()


def test_the_time_limit_ends_the_rounds_but_leaves_the_least_number() -> None:
    measured = interleave({"a": lambda: time.sleep(0.002)}, warmup=50, iterations=500, time_limit_s=0.001)
    assert measured["a"].n == MIN_ROUNDS


@pytest.mark.parametrize(("counts", "words"), [({"warmup": -1}, "--warmup -1"), ({"iterations": 0}, "--iterations 0")])
def test_impossible_counts_are_refused(counts: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        interleave({"a": lambda: None}, **counts)


def test_ratios_are_taken_round_by_round() -> None:
    # The machine's clock halves after two rounds: ratios of neighbours stay right.
    dense, pruned = Measurement("dense", (2.0, 2.0, 4.0, 4.0)), Measurement("pruned", (1.0, 1.0, 2.0, 2.0))
    assert paired_ratios(dense, pruned) == (2.0, 2.0, 2.0, 2.0)


def ticking(monkeypatch: pytest.MonkeyPatch, seconds: Iterator[float]) -> Callable[[], object]:
    """A run that takes this long, one time after the other, by a clock of its own."""
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("edgeprune.profiling.measurement.time", clock)

    def run() -> None:
        now[0] += next(seconds)

    return run


def test_warm_up_goes_on_until_times_are_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    falling = (1.0 / (1 + number) for number in range(20))
    times = itertools.chain(falling, itertools.repeat(0.05))
    run = ticking(monkeypatch, times)
    assert warm_up({"a": run}, least=6)
    assert next(times) == 0.05


def test_warm_up_runs_as_often_as_is_asked_and_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    run = ticking(monkeypatch, itertools.repeat(0.01))
    assert warm_up({n: lambda n=n: calls.append(n) or run() for n in "ab"}, least=13)
    assert "".join(calls) == "ab" * 14
    rising = ticking(monkeypatch, (1.1**number for number in range(1000)))
    assert not warm_up({"a": rising}, least=10)
    assert not warm_up({"a": ticking(monkeypatch, itertools.repeat(1.0))}, least=10, time_limit_s=5.5)
    with pytest.raises(InputError, match="--warmup -1"):
        warm_up({"a": run}, least=-1)


def test_a_measurement_ends_once_the_interval_of_the_speed_up_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    # Both are slowed down alike: single times vary by a fifth, their ratio hardly does.
    phases = (float(value) for pair in rng.uniform(1, 1.2, 5000) for value in (pair, pair))
    run = ticking(monkeypatch, phases)
    until = settles_within(0.02)
    measured = interleave({"dense": run, "pruned": run}, warmup=0, iterations=2000, until=until)
    assert measured["dense"].n == SETTLED_ROUNDS
    alone = interleave({"pruned": run}, warmup=0, iterations=2000, until=until)
    assert SETTLED_ROUNDS < alone["pruned"].n < 2000
    assert interval_width({"pruned": alone["pruned"].seconds}) <= 0.02


def test_short_runs_are_not_settled_before_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ticking(monkeypatch, itertools.repeat(0.004))
    measured = interleave({"a": run}, warmup=0, iterations=2000, until=settles_within(0.02))
    assert sum(measured["a"].seconds) >= 1.0
    assert measured["a"].n < 300


def test_what_never_settles_ends_with_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Callable[[], object]:
        return ticking(monkeypatch, itertools.cycle((1.0, 2.0)))

    until = settles_within(0.02)
    assert interleave({"a": run()}, warmup=0, iterations=50, until=until)["a"].n == 50
    assert interleave({"a": run()}, warmup=0, iterations=50, until=until, time_limit_s=30)["a"].n == 21
