"""Which of several devices gets which part of work that comes in equal units."""

from __future__ import annotations

import math
from collections.abc import Sequence

Range = tuple[int, int]
"""First unit, and the one behind the last."""


def shares_of(units: int, rates: Sequence[float]) -> tuple[Range, ...]:
    """Divide `units` in contiguous ranges, one a device, in proportion to `rates` by the largest remainder."""
    total = math.fsum(rates)
    quotas = [units * rate / total for rate in rates]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(rates)), key=lambda device: counts[device] - quotas[device])  # ties: first device
    for device in by_remainder[: units - sum(counts)]:
        counts[device] += 1
    stops = [sum(counts[: device + 1]) for device in range(len(rates))]
    return tuple((stop - count, stop) for stop, count in zip(stops, counts, strict=True))
