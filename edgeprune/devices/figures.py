"""Kinds of figures in a device profile, each with its source and how sure it is: rates, bandwidths, tables of costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

import msgspec

Certainty = Literal["measured", "published", "derived", "uncertain"]
KernelKind = Literal[
    "spatial", "pointwise", "image", "depthwise", "off_block", "off_block_pointwise", "off_block_depthwise"
]
"""Convolutions that run at rates of their own: kernels larger than 1x1; 1x1 and matrix products; on fewer input
channels than a block; one channel a group; and off the channel block, larger than 1x1, 1x1, and one channel a group."""
MoveKind = Literal["operation", "gather", "reorder"]
_RELATIVES: Mapping[KernelKind, KernelKind | None] = {
    "spatial": None,
    "pointwise": "spatial",
    "image": "spatial",
    "depthwise": "spatial",
    "off_block": "spatial",
    "off_block_pointwise": "off_block",
    "off_block_depthwise": "off_block",
}
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number, in the unit that its key names."""

    value: Positive
    certainty: Certainty
    """measured: on such a device; published: by its maker; derived: computed, see source; uncertain: check it first."""
    source: str


class ChannelBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Channels a group that fast convolutions want a multiple of, per number format."""

    fp32: Count
    certainty: Certainty
    source: str
    fp16: Count | None = None
    int8: Count | None = None


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The device's network."""

    bandwidth_mbit_per_s: Figure
    round_trip_ms: Figure


class ExchangeCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What it takes besides the link to move a tensor to another device's engine: to number, copy and check it, and to
    wake up who waits for it."""

    message_ms: Figure
    """However small it is."""
    gb_per_s: Figure
    """10^9 bytes a second, beyond that."""

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds a byte, and seconds a message."""
        return 1e-9 / self.gb_per_s.value, self.message_ms.value * 1e-3


Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class ConvolutionCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides between the forms of a grouped convolution, in FP32, relative to a full-rate multiply-add."""

    rates: Annotated[dict[Count, Share], msgspec.Meta(min_length=1)]
    """Filters a group, from that number on -> share of the full rate, on the channel block."""
    off_block_rate: Share
    """Share of the full rate of a grouped convolution whose channels miss the block."""
    macs_per_node: Positive
    """Multiply-adds in the time that starting one node takes."""
    certainty: Certainty
    source: str
    gather_macs_per_element: Positive | None = None
    """Multiply-adds in the time in which a Gather moves one element, with the reordering of data around it; None where
    the runtime has no Gather."""

    def gather_macs(self, elements: int) -> float:
        """Multiply-adds in the time in which Gathers move so many elements; infinite where there is no Gather."""
        return elements * (self.gather_macs_per_element or math.inf) if elements else 0.0


class RuntimeCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What another runtime than ONNX Runtime in FP32, or another number format, wants and costs on the device."""

    channel_block: Figure
    """Channels a group that fast convolutions want a multiple of."""
    convolution: ConvolutionCosts | None = None
    """None where nobody has measured."""

    def __post_init__(self) -> None:
        if not float(self.channel_block.value).is_integer():  # infinity is none
            raise ValueError(f"`channel_block.value` of {self.channel_block.value:g} is no whole number")


class KernelRates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Share of the peak rate at which one kind of convolution multiplies, by its shape."""

    by_filters: Annotated[dict[Count, Share], msgspec.Meta(min_length=1)]
    """Filters a group -> share. Between two entries the share grows linearly; beyond the last it stays."""
    certainty: Certainty
    source: str
    by_width: dict[Count, Positive] = {}
    """Columns of the output -> factor on that share, in the same way. Empty: 1 for all."""
    by_depth: dict[Count, Positive] = {}
    """Multiply-adds of one output (inputs a group times the kernel's size) -> factor, in the same way."""

    def share(self, filters: int, width: int, depth: int) -> float:
        """Of a convolution with so many filters a group, columns of output, and multiply-adds of one output."""
        factors = ((self.by_filters, filters), (self.by_width, width), (self.by_depth, depth))
        return math.prod(between(table, at) for table, at in factors if table)


class Bandwidths(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How fast one core reads and writes, by how much it touches: caches hold what is small."""

    by_mib: Annotated[dict[Count, Positive], msgspec.Meta(min_length=1)]
    """2^20 bytes that one operation touches -> GB/s. Between two entries the rate changes linearly; more than the last
    comes from memory."""
    certainty: Certainty
    source: str


class ExecutionCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What running a network costs besides its multiply-adds at the peak rate, in FP32: estimates are built on it."""

    dispatch_us: Figure
    """To start one node, whatever it does."""
    rates: dict[KernelKind, KernelRates]
    bandwidths: dict[MoveKind, Bandwidths] = {}
    """`operation`: of operations that do little else; without it everything comes from memory. `gather`: of a Gather
    over channels; without it, as any other. `reorder`: of the runtime where it reorders data into and out of the layout
    of its fast kernels; without it they have none."""

    def share(self, kind: KernelKind, filters: int, width: int, depth: int) -> float:
        """Share of the peak rate, as `KernelRates.share`; a kind that is missing is taken for its nearest relative."""
        found: KernelKind | None = kind
        while found is not None and found not in self.rates:
            found = _RELATIVES[found]
        return self.rates[found].share(filters, width, depth) if found else 1.0


def rate_from(rates: Mapping[int, float], filters: int) -> float:
    """The entry of `ConvolutionCosts.rates` for so many filters a group: of fewer than any, the lowest rate."""
    return max((rate for least, rate in rates.items() if least <= filters), default=min(rates.values()))


def between(table: Mapping[int, float], at: float) -> float:
    """The table's value at a point: linear between two entries, constant beyond the first and the last."""
    points = sorted(table.items())
    for (low, first), (high, second) in pairwise(points):
        if at < high:
            return first + (second - first) * (max(at, low) - low) / (high - low)
    return points[-1][1]
