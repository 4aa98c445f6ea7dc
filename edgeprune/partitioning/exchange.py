"""What it costs that channels mix between groups which several devices compute: pruning then keeps them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from edgeprune.devices.prices import FLOAT_BYTES, DevicePrices, Exchange
from edgeprune.errors import InputError
from edgeprune.partitioning.devices import Device, link_between, shares


def mixing_price(devices: Sequence[Device], weight: float = 1.0) -> DevicePrices | None:
    """By the slowest of the links between them, in multiply-adds of the slowest of the devices; `weight` times that.

    None where the weight is 0: what costs nothing decides nothing. InputError for less than two devices, and for a
    weight that is no price.
    """
    if len(devices) < 2:
        raise InputError(f"--for-devices names {len(devices)} device", expected="2 or more")
    if not (math.isfinite(weight) and weight >= 0):
        raise InputError(f"--exchange-weight {weight:g} is out of range", expected="0 or a positive number")
    links = [link_between(one, other) for one, other in combinations(devices, 2)]
    slowest = min(devices, key=_macs_per_s)
    rate = _macs_per_s(slowest)
    bytes_per_s = min(link.bandwidth_mbit_per_s for link in links) * 1e6 / 8
    round_trip_s = max(link.round_trip_ms for link in links) / 1e3
    work = shares(devices) or tuple(map(_macs_per_s, devices))
    exchange = Exchange(work, FLOAT_BYTES / bytes_per_s * rate, round_trip_s * rate).times(weight)
    return DevicePrices.of(slowest.known_profile).over(exchange) if weight else None


def _macs_per_s(device: Device) -> float:
    return device.known_profile.macs_per_s_of(device.used_threads)
