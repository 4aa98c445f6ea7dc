"""Clusters on several devices: which device computes which, and the input channels that are worth their exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeprune.devices.prices import DevicePrices
from edgeprune.graph import Layer
from edgeprune.methods.base import MethodInput
from edgeprune.methods.shared.alignment import Grouping
from edgeprune.methods.shared.clustering import Clusters, Labels
from edgeprune.methods.shared.placement import Placement, kernel_importance, place_layers, sized_assignment
from edgeprune.methods.shared.reach import Groups, Reach, reach_of


@dataclass(frozen=True)
class OnDevices:
    """Where every cluster and channel lies in one run."""

    given: MethodInput
    placement: Placement
    prices: DevicePrices

    @staticmethod
    def of(given: MethodInput, clusters: Mapping[str, Clusters]) -> OnDevices | None:
        """`clusters`: of each layer that is grouped, in forward order; they stay as they are. None where one device
        computes all groups."""
        prices = given.request.mixing_price
        if prices is None:
            return None
        blocks: dict[str, Labels] = {}
        for name, own in clusters.items():  # of layers that write one set the first decides
            blocks.setdefault(given.graph.layer(name).writes, _labels(own))
        groups = {name: len(own) for name, own in clusters.items()}
        return OnDevices(given, place_layers(given, groups, blocks), prices)

    def placed(self, layer: Layer, clusters: Clusters, asked: Grouping) -> tuple[Clusters, Reach]:
        """The clusters device by device, and what each may read."""
        counts = self.placement.groups[layer.name]
        held = np.eye(len(counts))[self.placement.owners[layer.writes]]  # (filters, devices)
        devices = sized_assignment(-np.stack([held[list(cluster)].sum(0) for cluster in clusters]), counts)
        ordered = tuple(clusters[number] for number in np.argsort(devices, kind="stable"))
        kernels = kernel_importance(self.given, layer)
        importance = np.stack([kernels[list(cluster)].sum(0) for cluster in ordered])
        groups = Groups(importance, np.sort(devices), self.placement.owners.get(layer.reads))
        return ordered, reach_of(groups, layer, asked, self.given.request.align, self.prices)


def _labels(clusters: Clusters) -> Labels:
    """(filters,) the number of each one's cluster."""
    labels = np.empty(sum(map(len, clusters)), dtype=np.int64)
    for number, cluster in enumerate(clusters):
        labels[list(cluster)] = number
    return labels
