"""What it costs that channels mix between groups which several devices compute: pruning then keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from edgeprune.devices.prices import DevicePrices, Exchange
from edgeprune.errors import InputError
from edgeprune.partitioning.devices import Device, link_between


def mixing_price(devices: Sequence[Device]) -> DevicePrices:
    """By the slowest of the links between them, in multiply-adds of the slowest of the devices.

    InputError for less than two devices.
    """
    if len(devices) < 2:
        raise InputError(f"--for-devices names {len(devices)} device", expected="2 or more")
    links = [link_between(one, other) for one, other in combinations(devices, 2)]
    exchange = Exchange(
        len(devices),
        min(link.bandwidth_mbit_per_s for link in links) * 1e6 / 8,
        max(link.round_trip_ms for link in links) / 1e3,
    )
    slowest = min(devices, key=_macs_per_s)
    return DevicePrices.of(slowest.known_profile).over(exchange, _macs_per_s(slowest))


def _macs_per_s(device: Device) -> float:
    return device.known_profile.macs_per_s_of(device.used_threads)
