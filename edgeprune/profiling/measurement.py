"""Times of repeated runs, and how to take them so that two models can be compared.

What was measured is separate from the raw seconds; medians, percentiles and noise are derived. Times are seconds
inside and milliseconds where they are read. Two models are measured in turn in one loop: whatever the machine does
meanwhile (clock changes, other programs) meets both. The loop ends as soon as what is asked for is known well enough.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from edgeprune.errors import InputError

NOISY = 0.10
"""A spread (IQR over median) above this makes a measurement noisy."""
MIN_ROUNDS = 3
"""Rounds that are measured even if they take longer than the time limit."""
SETTLED_ROUNDS = 30
"""Rounds before a measurement can be settled: fewer say too little of the slow runs (P90, P95)."""
SETTLED_SECONDS = 1.0
"""Time before a measurement can be settled: shorter ones see only one phase of what else the machine does."""
STEADY = 0.02
"""Difference of two windows' medians below which warm-up has ended, however narrow their intervals are."""
WARMUP_WINDOWS = 20
"""Windows of warm-up after which measuring begins though times still change."""


@dataclass(frozen=True)
class Measurement:
    """One thing that was run `n` times: raw seconds in the order in which they were taken."""

    what: str
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds:
            raise ValueError(f"{self.what}: a measurement needs at least one run")

    @property
    def n(self) -> int:
        return len(self.seconds)

    def percentile_ms(self, percent: float) -> float:
        """Milliseconds that `percent` of the runs did not exceed (linear between two runs)."""
        return float(np.percentile(self.seconds, percent)) * 1e3

    @property
    def p50_ms(self) -> float:
        return self.percentile_ms(50)

    @property
    def p90_ms(self) -> float:
        return self.percentile_ms(90)

    @property
    def p95_ms(self) -> float:
        return self.percentile_ms(95)

    @property
    def p99_ms(self) -> float:
        return self.percentile_ms(99)

    @property
    def mean_ms(self) -> float:
        return math.fsum(self.seconds) / self.n * 1e3

    @property
    def noise(self) -> float:
        """Interquartile range over the median: the spread of the middle half of the runs. 0 for a single run."""
        median = self.p50_ms
        return (self.percentile_ms(75) - self.percentile_ms(25)) / median if median > 0 else 0.0

    @property
    def is_noisy(self) -> bool:
        return self.noise > NOISY


def median_interval(values: Sequence[float], z: float = 1.96) -> tuple[float, float]:
    """Interval of the median from order statistics; 95% for z = 1.96, whatever the values' distribution.

    The number of n values below the true median is binomial(n, 1/2): the ranks n/2 -+ z sqrt(n)/2, rounded outwards,
    bound it. With fewer than six values these are the smallest and the largest, and the interval covers less.
    """
    ordered = sorted(values)
    n = len(ordered)
    half = z * math.sqrt(n) / 2
    low = max(math.floor(n / 2 - half), 0)
    high = min(math.ceil(n / 2 + half), n - 1)
    return ordered[low], ordered[high]


def paired_ratios(first: Measurement, second: Measurement) -> tuple[float, ...]:
    """first / second of every round; both must come from one `interleave`."""
    return tuple(a / b for a, b in zip(first.seconds, second.seconds, strict=True))


def relative_width(values: Sequence[float]) -> float:
    """Width of the 95% interval of the median, over the median."""
    low, high = median_interval(values)
    return (high - low) / float(np.median(values))


Seconds = Mapping[str, Sequence[float]]
"""What was run -> its times until now, one a round."""


def interval_width(seconds: Seconds) -> float:
    """Relative width of the 95% interval that a measurement is about: of two models, that of the median of their
    ratios round by round (the speed-up); of one, that of its median time."""
    first, *others = seconds.values()
    if not others:
        return relative_width(first)
    return max(relative_width([a / b for a, b in zip(first, other, strict=True)]) for other in others)


def settles_within(width: float) -> Callable[[Seconds], bool]:
    """A condition for `interleave`: `interval_width` is so narrow, and enough was seen to believe it."""

    def settled(seconds: Seconds) -> bool:
        rounds = min(map(len, seconds.values()))
        spent = math.fsum(map(math.fsum, seconds.values()))
        return rounds >= SETTLED_ROUNDS and spent >= SETTLED_SECONDS and interval_width(seconds) <= width

    return settled


def warm_up(runs: Mapping[str, Callable[[], object]], *, least: int = 10, time_limit_s: float = math.inf) -> bool:
    """Run every callable in turn, at least so many times each, until their times are steady; whether they became so.

    Steady: the medians of two successive windows of runs differ by less than `STEADY`, or their 95% intervals overlap.
    Ends after `WARMUP_WINDOWS` windows or the time limit, whichever is first. InputError if `least` is negative.
    """
    check_counts(least, 1)
    window = max(-(-least // 2), 5)
    before: dict[str, list[float]] = {}
    begun = time.perf_counter()
    with _collection_paused():
        for _ in range(WARMUP_WINDOWS):
            now: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(window):
                for name, run in runs.items():
                    now[name].append(_seconds(run))
                if before and time.perf_counter() - begun > time_limit_s:
                    return False
            if before and all(_is_steady(before[name], now[name]) for name in runs):
                return True
            before = now
    return False


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    warmup: int = 10,
    iterations: int = 50,
    time_limit_s: float = math.inf,
    until: Callable[[Seconds], bool] | None = None,
    lead: int = 0,
) -> dict[str, Measurement]:
    """Run every callable once a round and return their times: `iterations` rounds after `warmup` rounds.

    The order is reversed every round (A B, B A, A B ...), so that none always runs in the caches and clock that
    another left; `lead` runs that are not timed go right before each timed one, where what ran in between has filled
    the caches with other programs. The timed region is two clock reads around one call; garbage collection waits until
    the end.
    After `time_limit_s` seconds (half as many of warm-up) no further round is begun, nor once `until` says that the
    times suffice; but `MIN_ROUNDS` are always measured. InputError if `iterations` or `warmup` is out of range.
    """
    check_counts(warmup, iterations)
    order = tuple(runs)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    asked_at = SETTLED_ROUNDS
    with _collection_paused():
        begun = time.perf_counter()
        for number in range(warmup):
            if number and time.perf_counter() - begun > time_limit_s / 2:
                break
            for name in order:
                runs[name]()
        begun = time.perf_counter()
        for number in range(iterations):
            if number >= MIN_ROUNDS and time.perf_counter() - begun > time_limit_s:
                break
            if until is not None and number >= asked_at:
                if until(seconds):
                    break
                asked_at += max(asked_at // 8, 1)  # rarely, since asking takes caches and time from the runs
            for name in order if number % 2 == 0 else reversed(order):
                for _ in range(lead):
                    runs[name]()
                seconds[name].append(_seconds(runs[name]))
    return {name: Measurement(name, tuple(times)) for name, times in seconds.items()}


def check_counts(warmup: int, iterations: int) -> None:
    """InputError if one of the counts makes no sense."""
    if warmup < 0:
        raise InputError(f"--warmup {warmup} is negative", expected="0 or more runs", remedy="try --warmup 10")
    if iterations < 1:
        raise InputError(
            f"--iterations {iterations} is out of range", expected="1 or more", remedy="try --iterations 100"
        )


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _is_steady(before: Sequence[float], now: Sequence[float]) -> bool:
    if abs(float(np.median(now)) / float(np.median(before)) - 1) < STEADY:
        return True
    (low, high), (lower, higher) = median_interval(before), median_interval(now)
    return low <= higher and lower <= high


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Collect garbage now, and not again before the block ends."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
