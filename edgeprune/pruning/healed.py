"""Healing: the network that a one-shot method left, distilled from the dense one, and what is said of it."""

from __future__ import annotations

import dataclasses

from edgeprune.datasets.images import Dataset
from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.io import progress
from edgeprune.pruning.distillation import DistilSettings, distil
from edgeprune.pruning.options import DataOptions
from edgeprune.pruning.pruned import Pruned
from edgeprune.pruning.shared_features import SharedFeatures

AUTO_MACS = 1.6e13
"""Multiply-adds of the dense network's forward passes in an automatic run: some minutes on two cores. A step takes four
times as many: the dense network once, the pruned one forwards and backwards."""
AUTO_STEPS = range(100, 3001)
"""The fewest and the most steps of an automatic run."""
BATCH_SIZES = range(8, 65)
BATCH_VALUES = 200_000_000
"""That the layers of a network may give for a batch: what training keeps in memory is some 8 bytes for each."""


def healed(pruned: Pruned, options: DataOptions, seen: Dataset | None) -> Pruned:
    """The network distilled on the images `seen`, if that is asked for, and only if it got better."""
    heal, looks = options.heal, pruned.calibration_images > 0
    if seen is None or not heal.applies(looks_at_images=looks, finetunes=options.finetune_epochs > 0):
        return pruned
    settings = dataclasses.replace(settings_for(pruned.graph), precision=options.precision, seed=options.seed)
    if heal.minutes is not None:
        settings = dataclasses.replace(settings, seconds=60 * heal.minutes)
    features = SharedFeatures.of(pruned.plan, pruned.graph)
    try:
        result = distil(pruned.model, pruned.network.model, seen, features, settings)
    except InputError as error:
        if heal.minutes is not None:
            raise
        progress.note(f"not healed: {error}")  # no one asked for it
        return pruned
    progress.note(result.record.words)
    return dataclasses.replace(pruned, model=result.model, healing=result.record, calibration_images=len(seen))


def settings_for(graph: Graph) -> DistilSettings:
    """Smaller batches for networks with large tensors, and the same work for every network."""
    values = sum(layer.out_channels * layer.positions for layer in graph.layers)
    batch_size = _within(BATCH_SIZES, BATCH_VALUES // max(values, 1))
    return DistilSettings(
        _within(AUTO_STEPS, round(AUTO_MACS / max(graph.macs * batch_size, 1))), batch_size=batch_size
    )


def _within(bounds: range, value: int) -> int:
    return min(max(value, bounds[0]), bounds[-1])
