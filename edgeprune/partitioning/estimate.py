"""Estimate what a partition gains, from the device profiles alone. An estimate, never a measurement.

A subgraph takes max(MACs / peak rate, weight bytes / memory bandwidth) on its device: a roofline, so that real times
are longer. A parallel stage takes as long as its slowest device: one round trip, its tensors in and out over its link,
and its subgraph; and no less than all devices' tensors take over the host's own link. Host stages are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeprune.devices.device_profile import DeviceProfile
from edgeprune.partitioning.devices import Device
from edgeprune.partitioning.manifest import Predicted, Stage, Transfer

BASIS = "estimate from the device profiles' peak rates and links, FP32, batch 1; not measured"


@dataclass(frozen=True)
class Piece:
    """The work of one subgraph."""

    device: str
    stage: int
    macs: int
    weight_bytes: int

    def seconds(self, profile: DeviceProfile) -> float:
        """Roofline time on such a device."""
        return max(self.macs / profile.macs_per_s, self.weight_bytes / (profile.memory_gb_per_s.value * 1e9))


def estimate(
    devices: Sequence[Device], stages: Sequence[Stage], pieces: Sequence[Piece], transfers: Sequence[Transfer]
) -> Predicted:
    """Latency of the partition, and its speed-up over the first device working alone."""
    by_place = {(piece.stage, piece.device): piece for piece in pieces}
    host = devices[0]
    together = alone = 0.0
    for stage in stages:
        own = [by_place[stage.index, device] for device in stage.subgraphs]
        whole = Piece(host.name, stage.index, sum(p.macs for p in own), sum(p.weight_bytes for p in own))
        alone += whole.seconds(host.known_profile)
        if stage.kind == "host":
            together += whole.seconds(host.known_profile)
        else:
            back = [move for move in transfers if move.stage == stage.index + 1 and move.to == host.name]
            moved = [move for move in transfers if move.stage == stage.index] + back
            together += _parallel_seconds(devices, own, moved)
    return Predicted(
        latency_ms=together * 1e3,
        speedup=alone / together if together else 1.0,
        bytes_per_inference=sum(transfer.bytes for transfer in transfers),
        basis=BASIS,
    )


def _parallel_seconds(devices: Sequence[Device], pieces: Sequence[Piece], moved: Sequence[Transfer]) -> float:
    by_device = {piece.device: piece for piece in pieces}
    slowest = devices[0].link_rate.seconds(sum(move.bytes for move in moved))
    for number, device in enumerate(devices):
        if device.name not in by_device:
            continue
        seconds = by_device[device.name].seconds(device.known_profile)
        if number:
            link = device.link_rate
            size = sum(move.bytes for move in moved if device.name in (move.from_, move.to))
            seconds += link.round_trip_ms / 1e3 + link.seconds(size)
        slowest = max(slowest, seconds)
    return slowest
