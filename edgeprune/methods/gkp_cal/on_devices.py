"""A layer in groups that several devices compute: each divides its filters, and reads what is worth its exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgeprune.devices.prices import DevicePrices
from edgeprune.graph import Layer
from edgeprune.methods.base import MethodInput
from edgeprune.methods.gkp_cal.assignment import Grouped, by_saliency, group
from edgeprune.methods.gkp_cal.elimination import Elimination, Matrix, saliency, without
from edgeprune.methods.shared.alignment import Grouping
from edgeprune.methods.shared.clustering import Labels
from edgeprune.methods.shared.placement import Placement, place_layers
from edgeprune.methods.shared.reach import Groups, Mask, Reach, reach_of


@dataclass(frozen=True)
class OnDevices:
    """Where everything lies in one run."""

    placement: Placement
    prices: DevicePrices
    block: int

    @staticmethod
    def of(given: MethodInput, grouped: Mapping[str, Grouping]) -> OnDevices | None:
        """None where one device computes all groups."""
        prices = given.request.mixing_price
        if prices is None:
            return None
        groups = {name: taken.groups for name, taken in grouped.items()}
        return OnDevices(place_layers(given, groups), prices, given.request.align)

    def group(
        self,
        layer: Layer,
        problem: tuple[Matrix, Matrix],
        size: int,
        asked: Grouping,
        rng: np.random.Generator,
        refine: int,
    ) -> Grouped:
        """As `assignment.group`, for each device by itself on the channels that it may read; groups device by device.

        `problem`: the weights, (filters, channels * size), and the inverse.
        """
        weights, inverse = problem
        kernels, devices = saliency(weights, inverse, size), self.placement.filters(layer)
        labels, first = np.zeros(len(weights), dtype=np.int64), 0
        for device, count in self._groups(layer):
            rows = np.flatnonzero(devices == device)
            labels[rows] = first + by_saliency(kernels[rows], count, asked.kept, rng)
            first += count
        reach = self._reach(layer, kernels, labels, asked)
        found: list[Elimination] = []
        for device, count in self._groups(layer):
            rows = np.flatnonzero(devices == device)
            part = _within((weights[rows], inverse), size, count, (reach.keep, reach.allowed[len(found)]), rng, refine)
            labels[rows] = len(found) + part.labels
            found += part.groups
        return Grouped(labels, tuple(found), in_order=True)

    def _groups(self, layer: Layer) -> list[tuple[int, int]]:
        """The devices that compute groups of a layer, and how many."""
        return [(device, count) for device, count in enumerate(self.placement.groups[layer.name]) if count]

    def _reach(self, layer: Layer, kernels: Matrix, labels: Labels, asked: Grouping) -> Reach:
        counts = self.placement.groups[layer.name]
        importance = np.stack([kernels[labels == group].sum(0) for group in range(asked.groups)])
        devices = np.repeat(np.arange(len(counts)), counts)
        groups = Groups(importance, devices, self.placement.owners.get(layer.reads))
        return reach_of(groups, layer, asked, self.block, self.prices)


def _within(
    problem: tuple[Matrix, Matrix],
    size: int,
    count: int,
    reads: tuple[int, Mask],
    rng: np.random.Generator,
    refine: int,
) -> Grouped:
    """Filters in so many groups, which keep a number of the allowed channels; the others go first, all at once."""
    keep, allowed = reads
    channels = np.flatnonzero(allowed)
    weights, inverse, rise = without(*problem, size, np.flatnonzero(~allowed).tolist())
    found = group(weights, inverse, size, count, keep, rng, refine)
    numbered = [Elimination(tuple(channels[list(g.kept)].tolist()), g.weights, g.error) for g in found.groups]
    first = replace(numbered[0], error=numbered[0].error + rise)  # of all filters together, told once
    return Grouped(found.labels, (first, *numbered[1:]))
