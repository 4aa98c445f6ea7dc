"""Sets of channels: which part of a value a device holds, or needs.

A set is an integer whose bit n says whether channel n is in it, so that sets are joined, cut and compared at once,
however scattered they are. A tensor that holds some of a value's channels holds them in ascending order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from edgeprune.devices.shares import Range

Channels = int
Parts = tuple[Channels, ...]
"""One set a device, in the devices' order."""
NONE: Channels = 0


def run(start: int, stop: int) -> Channels:
    """Neighbours; none if the stop is not behind the start."""
    return ((1 << (stop - start)) - 1) << start if start < stop else NONE


def whole(count: int) -> Channels:
    """All of so many channels."""
    return run(0, count)


def of_numbers(numbers: Iterable[int]) -> Channels:
    """The set of these channel numbers."""
    places = np.fromiter(numbers, np.int64)
    if not len(places):
        return NONE
    flags = np.zeros(places.max() + 1, np.bool_)
    flags[places] = True
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")


@lru_cache(maxsize=4096)
def numbers(channels: Channels) -> tuple[int, ...]:
    """The channel numbers, ascending."""
    data = np.frombuffer(channels.to_bytes((channels.bit_length() + 7) // 8, "little"), np.uint8)
    return tuple(np.flatnonzero(np.unpackbits(data, bitorder="little")).tolist())


def runs(channels: Channels) -> Iterator[Range]:
    """Its runs of neighbours, ascending."""
    offset = 0
    while channels:
        skipped = (channels & -channels).bit_length() - 1
        channels >>= skipped
        length = (~channels & (channels + 1)).bit_length() - 1
        channels >>= length
        yield offset + skipped, offset + skipped + length
        offset += skipped + length


def size(channels: Channels) -> int:
    return channels.bit_count()


def union(sets: Iterable[Channels]) -> Channels:
    """What lies in any of them."""
    found = NONE
    for one in sets:
        found |= one
    return found


def without(one: Channels, other: Channels) -> Channels:
    """What lies in the first, and not in the other."""
    return one & ~other


@lru_cache(maxsize=4096)
def scaled(channels: Channels, times: int, over: int = 1) -> Channels:
    """The bounds of its runs multiplied and divided: channels from groups, or from the channels of another value."""
    return union(run(start * times // over, stop * times // over) for start, stop in runs(channels))


def shifted(channels: Channels, by: int) -> Channels:
    return channels << by if by >= 0 else channels >> -by
