"""What the causes are found from: figures of one layer, and of the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeprune.devices.roofline import Roofline


@dataclass(frozen=True)
class LayerFacts:
    """What is known of one layer of the pruned model."""

    groups: int
    in_per_group: int
    out_per_group: int
    macs: int
    executed_macs: int
    bytes_moved: int
    """Input, weights and output, each once."""
    pruned_ms: float
    gather_ms: float
    reorder_ms: float
    dense_ms: float | None = None
    """None, as `theoretical`, without a baseline."""
    theoretical: float | None = None
    """MACs of the dense layer / MACs that the plan leaves."""
    noise: float = 0.0
    """Spread of the layer's times, dense or pruned, between turns: interquartile range over median."""
    note: str = ""
    """The plan's, for a layer that stays dense."""
    is_pruned: bool = True
    """False where the dense model has the layer in the same form: nothing was pruned."""
    lowering: str = "grouped"
    """The form in which it is written."""
    is_conv: bool = True
    nodes: int = 1
    """Operations that the runtime starts for it, those that only move data not counted."""
    moves: int = 0
    """Gathers and reorderings that it starts for it."""
    products: int = 0
    """Multiply-adds of one output; 0 if unknown."""
    provider: str = ""
    """What ran it; empty if unknown."""
    wanted_provider: str = ""
    """What the target stands for."""

    @property
    def efficiency(self) -> float | None:
        return self.dense_ms / self.pruned_ms / self.theoretical if self.dense_ms and self.theoretical else None

    @property
    def flops_per_byte(self) -> float:
        """Arithmetic intensity: 2 x executed MACs over the bytes that must be moved at least."""
        return 2 * self.executed_macs / self.bytes_moved if self.bytes_moved else float("inf")

    @property
    def moving(self) -> float:
        """Share of the time in which data is only moved."""
        return (self.gather_ms + self.reorder_ms) / self.pruned_ms


@dataclass(frozen=True)
class MachineFacts:
    """What the rules need to know of the target."""

    channel_block: int
    """Channels a group that its fast kernels want a multiple of; 0 if unknown."""
    threads: int = 1
    off_block: str = "the runtime falls back to slower kernels"
    """What happens to a grouped convolution off the block."""
    off_block_rate: float = 0.36
    """Share of the full rate that is left then."""
    off_block_depthwise_rate: float = 0.15
    """The same of depthwise convolutions."""
    layout_channels: int = 1
    """What all channels together must be a multiple of for the fast kernels, as `channel_block.is_off_block` says."""
    filter_rates: Mapping[int, float] = field(default_factory=dict)
    """Filters a group, from that number on -> share of the full rate: fast kernels work on many filters at a time, and
    with fewer a group, inputs are read more often for less work. Empty if unknown."""
    roofline: Roofline | None = None
    """None if nobody knows the device's peaks."""
    dispatch_ms: float = 0.003
    """To start one operation, whatever it does, as the times of single operations show it: with what telling a time
    takes, several times what a device profile's `dispatch_us` says of runs that nobody watches."""
    wake_ms: float = 0.02
    """To wake the other threads for one operation, and to wait until the last is done."""
    balance_flops_per_byte: float = 8.0
    """Where there is no roofline: FLOPs that can be done while memory brings one byte."""
