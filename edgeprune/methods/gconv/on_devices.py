"""GConv on several devices: channels mix for free among the groups that one device computes.

A tied layer reads the groups that are there. Where a device computes several of a layer's groups, the channels that it
holds may be divided among these as the layer's importance wants: that needs a Gather on the device, but no exchange.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from edgeprune.devices.prices import DevicePrices
from edgeprune.graph import Graph
from edgeprune.methods.gconv.divider import Divider, Divisions, LayerDivision
from edgeprune.methods.gconv.solver import Matrix, best_columns, kept_importance
from edgeprune.methods.shared.clustering import Labels
from edgeprune.methods.shared.placement import groups_a_device


def mixed_on_devices(
    graph: Graph, divider: Divider, divisions: Divisions, tied: Collection[str], prices: DevicePrices
) -> dict[str, LayerDivision]:
    """The divisions with those of tied layers mixed on each device, where that keeps more for the time with the Gather;
    as they are for one device."""
    if prices.exchange is None:
        return dict(divisions)
    found, alone = dict(divisions), prices.without_exchange()
    for name in tied:
        layer, division, importance = graph.layer(name), divisions[name], divider.importance[name]
        if not division.in_order:  # its numbers do not tell the devices
            continue
        counts = groups_a_device(division.groups, prices.exchange.shares)
        mixed = replace(division, columns=_columns(importance, division, counts))
        own = alone.convolution(layer.macs // division.groups, layer.out_channels // division.groups)
        gather = alone.gather(layer.in_channels * layer.input_positions)  # each device a part of both
        before, after = (kept_importance(importance, one.rows, one.columns) for one in (division, mixed))
        if after * own > before * (own + gather):
            found[name] = mixed
    return found


def _columns(importance: Matrix, division: LayerDivision, counts: Collection[int]) -> Labels:
    """(channels,) groups: each device's channels divided anew among its groups."""
    columns, first = division.columns.copy(), 0
    for count in counts:
        rows, held = (
            np.flatnonzero((labels >= first) & (labels < first + count)) for labels in (division.rows, division.columns)
        )
        if count > 1:
            columns[held] = first + best_columns(importance[np.ix_(rows, held)], division.rows[rows] - first, count)
        first += count
    return columns
