"""What each device of a split does: its share of each layer, and when it is at work."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.report.contents import MeasuredRun, SplitPlan


@dataclass(frozen=True)
class LayerShares:
    """By layer in the network's order: per device, its share of the work; together more than 1 where several devices
    compute the same."""

    devices: tuple[str, ...]
    layers: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Runs:
    """A split network's run as predicted, and a real one where there is one."""

    split: SplitPlan
    measured: MeasuredRun | None


def layer_shares(split: SplitPlan) -> LayerShares | None:
    """None where the partition does not tell."""
    if not split.layers:
        return None
    devices = tuple(device.name for device in split.devices)
    shares = []
    for layer in split.layers:
        parts = layer.inputs or layer.channels
        whole = max((stop for runs in parts.values() for _, stop in runs), default=0) or 1
        own = {name: sum(stop - start for start, stop in runs) / whole for name, runs in parts.items()}
        shares.append(tuple(own.get(name, 0.0) for name in devices))
    return LayerShares(devices, tuple(layer.name for layer in split.layers), tuple(shares))
