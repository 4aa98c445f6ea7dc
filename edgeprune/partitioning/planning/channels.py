"""Sets of channels: which part of a value a device holds, or needs.

A set is its runs of neighbours in ascending order, (start, stop) each; equal sets are equal tuples. A tensor that
holds some of a value's channels holds them in ascending order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Range = tuple[int, int]
"""First channel (or group), and the one behind the last."""
Channels = tuple[Range, ...]
Parts = tuple[Channels, ...]
"""One set a device, in the devices' order."""
NONE: Channels = ()


def whole(count: int) -> Channels:
    """All of so many channels."""
    return ((0, count),) if count else NONE


def merged(ranges: Iterable[Range]) -> Channels:
    """The set of what lies in any of the ranges, which may overlap and be empty."""
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if start >= stop:
            continue
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return tuple(found)


def of_numbers(numbers: Iterable[int]) -> Channels:
    """The set of these channel numbers."""
    return merged((number, number + 1) for number in numbers)


def numbers(channels: Channels) -> tuple[int, ...]:
    """The channel numbers, ascending."""
    return tuple(number for start, stop in channels for number in range(start, stop))


def size(channels: Channels) -> int:
    return sum(stop - start for start, stop in channels)


def union(one: Channels, other: Channels) -> Channels:
    if one == other or not other:
        return one
    return merged((*one, *other))


def common(one: Channels, other: Channels) -> Channels:
    """What lies in both."""
    if one == other:
        return one
    return merged((max(a, c), min(b, d)) for a, b in one for c, d in other)


def without(one: Channels, other: Channels) -> Channels:
    """What lies in the first, and not in the other."""
    if one == other or not one:
        return NONE
    left = list(one)
    for start, stop in other:
        left = [part for a, b in left for part in ((a, min(b, start)), (max(a, stop), b)) if part[0] < part[1]]
    return tuple(left)


def scaled(channels: Channels, times: int, over: int = 1) -> Channels:
    """Every bound multiplied and divided: channels from groups, or from the channels of another value."""
    return tuple((start * times // over, stop * times // over) for start, stop in channels)


def shifted(channels: Channels, by: int) -> Channels:
    return tuple((start + by, stop + by) for start, stop in channels)


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
