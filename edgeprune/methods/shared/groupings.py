"""Which layers lose grouped kernels, in how many groups, and how many each keeps: what was asked, and taken."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from edgeprune.devices.prices import DevicePrices
from edgeprune.errors import InputError
from edgeprune.graph import Graph, Layer
from edgeprune.methods.base import (
    MethodInput,
    PruneRequest,
    check_skip_patterns,
    dense_reason,
    nothing_to_prune,
    require_finite,
)
from edgeprune.methods.shared.alignment import (
    AskedGrouping,
    Grouping,
    aligned_groupings,
    asked_macs,
    grouping_note,
    kept_importance,
    macs_of,
    over_asked_note,
)
from edgeprune.plans.plan import LayerPlan


@dataclass(frozen=True)
class Groupings:
    """How the layers that can be grouped shall be, and how they are on the request's blocks."""

    block: int
    asked: Mapping[str, AskedGrouping]
    taken: Mapping[str, Grouping]
    prices: DevicePrices | None = None
    """By which fewer groups than asked may have been taken."""

    @staticmethod
    def on_blocks(given: MethodInput, layers: Sequence[Layer]) -> Groupings:
        asked = {}
        for layer in layers:
            weight = given.weights[layer.name].astype(np.float64)  # (C_out, C_in, *kernel)
            channels = np.square(weight).sum(axis=(0, *range(2, weight.ndim)))  # (C_in,)
            asked[layer.name] = AskedGrouping(
                layer.in_channels,
                layer.out_channels,
                math.prod(layer.kernel_size) * layer.positions,
                Grouping(given.request.groups, kept_count(layer.in_channels, given.request.rate_of(layer.name))),
                kept_importance(channels),
                layer.input_positions,
            )
        align, prices = given.request.align, given.request.prices
        return Groupings(align, asked, aligned_groupings(asked, align, prices), prices)

    def note(self, name: str) -> str:
        return grouping_note(self.asked[name], self.taken[name], self.block, self.prices)

    def recorded(self, entry: LayerPlan) -> LayerPlan:
        """The layer with what was asked, where something else was taken for blocks, or for devices."""
        if entry.name not in self.taken:
            return entry
        asked, taken = self.asked[entry.name].asked, self.taken[entry.name]
        kept, note = entry.kept or taken.kept, entry.note
        if kept < taken.kept:
            note = "; ".join(filter(None, (note, f"keeps the {kept} channels a group that a device holds")))
        return msgspec.structs.replace(
            entry,
            asked_groups=asked.groups if asked.groups != taken.groups else 0,
            asked_kept=asked.kept if asked.kept != kept else 0,
            note=note,
        )

    def missed(self, graph: Graph) -> list[str]:
        """A sentence if the blocks need more multiply-adds than was asked."""
        more = macs_of(self.asked, self.taken) - asked_macs(self.asked)
        if more <= 0:
            return []
        rest = graph.macs - sum(layer.channel_macs * layer.in_channels for layer in self.asked.values())
        asked, needed = (rest + macs for macs in (asked_macs(self.asked), macs_of(self.asked, self.taken)))
        return [over_asked_note(self.block, needed / graph.macs, asked / graph.macs)]


def kernels_to_group(given: MethodInput) -> tuple[list[Layer], Groupings, dict[str, str]]:
    """The layers that lose grouped kernels, in forward order, their groupings, and why each other layer stays dense.

    A layer stays dense where `dense_reason` says so, where the rate leaves it no grouped kernel or removes none, or
    where it has no form on the request's blocks (`alignment`). InputError if that holds for all layers, a --skip
    pattern matches nothing, or weights are not finite.
    """
    request, graph = given.request, given.graph
    check_skip_patterns(graph, request)
    reasons = {layer.name: kernels_stay(layer, request) for layer in graph.layers}
    grouped = [layer for layer in graph.layers if not reasons[layer.name]]
    if not grouped:
        raise no_layer_fits(graph, request, reasons)
    require_finite((layer.name for layer in grouped), given.weights)
    groupings = Groupings.on_blocks(given, grouped)
    reasons |= {name: groupings.note(name) for name, taken in groupings.taken.items() if taken.groups == 1}
    grouped = [layer for layer in grouped if not reasons[layer.name]]
    if not grouped:
        remedy = "a smaller --align, or --align none"
        raise nothing_to_prune(graph, reasons, f"be grouped in blocks of {request.align}", remedy)
    return grouped, groupings, reasons


def kept_count(in_channels: int, rate: float) -> int:
    """s = (1 - rate) * C_in, rounded half up (2.5 -> 3)."""
    return round_half_up((1.0 - rate) * in_channels)


def round_half_up(value: float) -> int:
    # 0.1 * 25 must count as 2.5 although it is stored a little below: nine digits first.
    return math.floor(round(value, 9) + 0.5)


def kernels_stay(layer: Layer, request: PruneRequest) -> str:
    """Why this layer keeps all of its kernels under this request; empty if it can lose some."""
    reason = dense_reason(layer, request)
    if reason:
        return reason
    rate = request.rate_of(layer.name)
    keep = kept_count(layer.in_channels, rate)
    if keep < 1:
        return f"rate {rate} would leave none of its {layer.in_channels} input channels"
    if keep >= layer.in_channels:
        return f"rate {rate} would remove none of its {layer.in_channels} input channels"
    return ""


def no_layer_fits(graph: Graph, request: PruneRequest, reasons: Mapping[str, str]) -> InputError:
    """The error for a request that leaves every layer dense, with what would change that."""
    fitting = {
        groups: sum(not kernels_stay(layer, dataclasses.replace(request, groups=groups)) for layer in graph.layers)
        for groups in range(2, 65)
    }
    most = max(fitting.values())
    if most:
        options = [str(groups) for groups, count in fitting.items() if count == most][:4]
        remedy = f"--groups {' or '.join(options)} would fit {most} of them"
    elif any(not dense_reason(layer, request) for layer in graph.layers):
        remedy = "choose another --rate, such as 0.4375, the paper's value"
    else:
        remedy = "no number of groups fits; see --skip, --include-first and --include-shortcuts"
    asked = f"be pruned with --groups {request.groups} --rate {request.rate}"
    return nothing_to_prune(graph, reasons, asked, remedy)
