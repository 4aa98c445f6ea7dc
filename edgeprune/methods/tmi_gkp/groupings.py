"""The groups of each layer of a TMI-GKP run and how many grouped kernels they keep: what was asked, and taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from edgeprune.graph import Graph, Layer
from edgeprune.methods.base import MethodInput
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
from edgeprune.methods.tmi_gkp.grouped_kernels import kept_count
from edgeprune.plans.plan import LayerPlan


@dataclass(frozen=True)
class Groupings:
    """How the layers that can be grouped shall be, and how they are on the request's blocks."""

    block: int
    asked: Mapping[str, AskedGrouping]
    taken: Mapping[str, Grouping]

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
            )
        return Groupings(given.request.align, asked, aligned_groupings(asked, given.request.align))

    def note(self, name: str) -> str:
        return grouping_note(self.asked[name], self.taken[name], self.block)

    def recorded(self, entry: LayerPlan) -> LayerPlan:
        """The layer with what was asked, where something else was taken."""
        if entry.name not in self.taken:
            return entry
        asked, taken = self.asked[entry.name].asked, self.taken[entry.name]
        return msgspec.structs.replace(
            entry,
            asked_groups=asked.groups if asked.groups != taken.groups else 0,
            asked_kept=asked.kept if asked.kept != taken.kept else 0,
        )

    def missed(self, graph: Graph) -> list[str]:
        """A sentence if the blocks need more multiply-adds than was asked."""
        more = macs_of(self.asked, self.taken) - asked_macs(self.asked)
        if more <= 0:
            return []
        rest = graph.macs - sum(layer.channel_macs * layer.in_channels for layer in self.asked.values())
        asked, needed = (rest + macs for macs in (asked_macs(self.asked), macs_of(self.asked, self.taken)))
        return [over_asked_note(self.block, needed / graph.macs, asked / graph.macs)]
