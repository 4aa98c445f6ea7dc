"""Healing: the network that a one-shot method left, distilled from the dense one, and what is said of it."""

from __future__ import annotations

import dataclasses

from edgeprune.bundles.manifest import Healing
from edgeprune.datasets.images import Dataset
from edgeprune.io import progress
from edgeprune.methods import load_method, needs_images
from edgeprune.pruning.distillation import DistilSettings, distil
from edgeprune.pruning.options import DataOptions
from edgeprune.pruning.pruned import Pruned
from edgeprune.pruning.shared_features import SharedFeatures

AUTO_MACS = 1.0e13
"""Of the dense network's forward pass, in all images of an automatic run together: some minutes on two cores."""
AUTO_STEPS = range(100, 4001)
"""The fewest and the most steps of an automatic run."""


def healed(pruned: Pruned, options: DataOptions, seen: Dataset | None) -> Pruned:
    """The network distilled on the images `seen`, if that is asked for, and only if it got better."""
    heal, looks = options.heal, needs_images(load_method(pruned.plan.method))
    if seen is None or not heal.applies(looks_at_images=looks, finetunes=options.finetune_epochs > 0):
        return pruned
    settings = DistilSettings(precision=options.precision, seed=options.seed)
    if heal.minutes is None:
        settings = dataclasses.replace(settings, steps=auto_steps(pruned.graph.macs, settings.batch_size))
    else:
        settings = dataclasses.replace(settings, seconds=60 * heal.minutes)
    features = SharedFeatures.of(pruned.plan, pruned.graph)
    result = distil(pruned.model, pruned.network.model, seen, features, settings)
    progress.note(healing_words(result.record))
    return dataclasses.replace(pruned, model=result.model, healing=result.record, calibration_images=len(seen))


def auto_steps(macs: int, batch_size: int) -> int:
    """The same work for every network, whose forward pass of one image takes so many multiply-adds."""
    return min(max(round(AUTO_MACS / max(macs * batch_size, 1)), AUTO_STEPS[0]), AUTO_STEPS[-1])


def healing_words(record: Healing) -> str:
    """What healing did, in a sentence."""
    what = f"{record.steps} steps of distillation"
    if record.kept:
        return (
            f"healed: {what} took the loss on held-back images from {record.loss_before:.4f} to {record.loss_after:.4f}"
        )
    return f"not healed: in {what} the loss on held-back images did not fall below {record.loss_before:.4f}"
