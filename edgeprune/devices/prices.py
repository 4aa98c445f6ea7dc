"""What convolutions in groups cost on a device, and Gathers over channels.

The unit is a multiply-add of a convolution at full rate, as in a profile's cost table. A profile without the table has
its other figures taken: the peak of one core, the bandwidths at which it gathers and reorders, and what starting a node
takes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.devices.device_profile import DeviceProfile, load_profile
from edgeprune.devices.figures import MoveKind, rate_from
from edgeprune.devices.this_machine import default_profile_name

FLOAT_BYTES = 4
MOVED_BYTES = 8
"""For each element that is moved: 4 in, 4 out."""
TYPICAL_BYTES = 2 * 2**20
"""That one Gather touches, where the profile tells bandwidths by it."""


@dataclass(frozen=True)
class Exchange:
    """That groups are computed on several devices, and what moving data between them costs, in multiply-adds."""

    shares: tuple[float, ...]
    """Of the work, a device; relative to each other."""
    macs_per_element: float
    """Of one element that a device gets from another, over the slowest link."""
    macs_per_start: float
    """Of starting an exchange, however little it moves: the round trip."""

    @property
    def devices(self) -> int:
        return len(self.shares)

    def cost(self, elements: float) -> float:
        """Of an exchange in which a device gets so many elements; 0 for none."""
        return elements * self.macs_per_element + self.macs_per_start if elements else 0.0

    def record(self) -> dict[str, Any]:
        """The figures, as a plan's settings hold them."""
        return dataclasses.asdict(self) | {"shares": list(self.shares)}

    def times(self, weight: float) -> Exchange:
        """At another price."""
        return Exchange(self.shares, self.macs_per_element * weight, self.macs_per_start * weight)


@dataclass(frozen=True)
class DevicePrices:
    """Costs in multiply-adds at full rate."""

    device: str
    """The profile's name."""
    macs_per_element: float
    """Of moving one element, with the reordering of data around it."""
    macs_per_gather: float = 0.0
    """Of starting its nodes, however little they move."""
    rates: Mapping[int, float] = field(default_factory=dict)
    """Filters a group, from that number on -> share of the full rate; empty: the full rate for all."""
    exchange: Exchange | None = None
    """Between the devices that compute the groups, in the other figures already; None for one device."""

    @staticmethod
    def of(profile: DeviceProfile) -> DevicePrices:
        """From the profile's cost table, or derived where it has none; what it does not tell at all costs nothing."""
        table, execution, full_rate = profile.convolution, profile.execution, profile.macs_per_s_of(1)
        reorders = bool(execution and "reorder" in execution.bandwidths)
        moves: list[MoveKind] = ["gather", "reorder", "reorder"] if reorders else ["gather"]  # each a node of its own
        if table:
            per_gather = len(moves) * table.macs_per_node
            return DevicePrices(profile.name, table.gather_macs_per_element or 0.0, per_gather, table.rates)
        per_element = macs_per_moved_element(
            (profile.bytes_per_s_of(1, TYPICAL_BYTES, move) for move in moves), full_rate
        )
        if not execution:
            return DevicePrices(profile.name, per_element)
        rates = execution.rates["spatial"].by_filters if "spatial" in execution.rates else {}
        per_gather = len(moves) * execution.dispatch_us.value * 1e-6 * full_rate
        return DevicePrices(profile.name, per_element, per_gather, rates)

    def over(self, exchange: Exchange) -> DevicePrices:
        """Where channels that mix come from other devices: all of them but the part that a device holds anyway."""
        return dataclasses.replace(
            self,
            device=f"{exchange.devices} devices",
            macs_per_element=self.macs_per_element + (1 - 1 / exchange.devices) * exchange.macs_per_element,
            macs_per_gather=self.macs_per_gather + exchange.macs_per_start,
            exchange=exchange,
        )

    def without_exchange(self) -> DevicePrices:
        """On one of the devices by itself."""
        if self.exchange is None:
            return self
        per_element = (1 - 1 / self.exchange.devices) * self.exchange.macs_per_element
        return dataclasses.replace(
            self,
            macs_per_element=self.macs_per_element - per_element,
            macs_per_gather=self.macs_per_gather - self.exchange.macs_per_start,
            exchange=None,
        )

    def record(self) -> dict[str, Any]:
        """The figures, as a plan's settings hold them."""
        return {
            "device": self.device,
            "macs_per_element": self.macs_per_element,
            "macs_per_gather": self.macs_per_gather,
            "rates": {str(filters): rate for filters, rate in self.rates.items()},
            **({"exchange": self.exchange.record()} if self.exchange else {}),
        }

    def gather(self, elements: int) -> float:
        """Of a Gather that moves so many elements; 0 for none, which is no Gather."""
        return elements * self.macs_per_element + self.macs_per_gather if elements else 0.0

    def convolution(self, macs: int, filters: int) -> float:
        """Of a convolution on the channel block with so many multiply-adds, and filters a group."""
        return macs / rate_from(self.rates, filters) if self.rates else float(macs)


def macs_per_moved_element(bytes_per_s: Iterable[float], macs_per_s: float) -> float:
    """Multiply-adds in the time in which one element is moved once at each of these rates."""
    return math.fsum(MOVED_BYTES / rate for rate in bytes_per_s) * macs_per_s


def prices_for(align: int | str, profile: str | Path = "") -> DevicePrices | None:
    """The price on the device that channels are aligned for: where `align` is "auto", else None.

    `profile` is a name or file as for `load_profile`; by default the one nearest to this machine.
    """
    return DevicePrices.of(load_profile(profile or default_profile_name())) if align == "auto" else None
