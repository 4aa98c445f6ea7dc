"""What it costs that channels mix between groups which several devices compute: pruning then keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.devices.prices import DevicePrices, Exchange
from edgeprune.errors import InputError
from edgeprune.partitioning.devices import Device


def mixing_price(devices: Sequence[Device]) -> DevicePrices:
    """By the slowest of their links, in multiply-adds of the slowest of the devices.

    InputError for less than two devices.
    """
    if len(devices) < 2:
        raise InputError(f"--for-devices names {len(devices)} device", expected="2 or more")
    profile = min((device.known_profile for device in devices), key=lambda known: known.macs_per_s)
    links = [device.link_rate for device in devices]
    exchange = Exchange(
        len(devices),
        min(link.bandwidth_mbit_per_s for link in links) * 1e6 / 8,
        max(link.round_trip_ms for link in links) / 1e3,
    )
    return DevicePrices.of(profile).over(exchange, profile.macs_per_s)
