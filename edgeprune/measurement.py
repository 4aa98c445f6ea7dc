"""Times of repeated runs, and how to take them so that two models can be compared.

What was measured is separate from the raw seconds; medians, percentiles and noise are derived. Times are seconds
inside and milliseconds where they are read. Two models are measured in turn in one loop: whatever the machine does
meanwhile (clock changes, other programs) meets both.
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


def interleave(
    runs: Mapping[str, Callable[[], object]], *, warmup: int = 10, iterations: int = 50, time_limit_s: float = math.inf
) -> dict[str, Measurement]:
    """Run every callable once a round and return their times: `iterations` rounds after `warmup` rounds.

    The order is reversed every round (A B, B A, A B ...), so that none always runs in the caches and clock that
    another left. The timed region is two clock reads around one call; garbage collection waits until the end.
    After `time_limit_s` seconds (half as many of warm-up) no further round is begun, but `MIN_ROUNDS` are always
    measured. InputError if `iterations` or `warmup` is out of range.
    """
    check_counts(warmup, iterations)
    order = tuple(runs)
    seconds: dict[str, list[float]] = {name: [] for name in order}
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
            for name in order if number % 2 == 0 else reversed(order):
                run = runs[name]
                start = time.perf_counter()
                run()
                end = time.perf_counter()
                seconds[name].append(end - start)
    return {name: Measurement(name, tuple(times)) for name, times in seconds.items()}


def check_counts(warmup: int, iterations: int) -> None:
    """InputError if one of the counts makes no sense."""
    if warmup < 0:
        raise InputError(f"--warmup {warmup} is negative", expected="0 or more runs", remedy="try --warmup 10")
    if iterations < 1:
        raise InputError(
            f"--iterations {iterations} is out of range", expected="1 or more", remedy="try --iterations 100"
        )


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
